//! How far a mailbox is read.

use jiff::Timestamp;

use crate::model::{StartBoundary, SyncPosition, Uid, UidValidity};

/// The cursor of an open mailbox and the cursor that was reported last.
#[derive(Debug)]
pub(super) struct SyncProgress {
    cursor: u32,
    /// `None`: the position must be reported even if the cursor does not move.
    reported: Option<u32>,
    start_boundary: Option<StartBoundary>,
    /// See [`SyncPosition::renumbered_after`].
    renumbered_after: i64,
}

impl SyncProgress {
    /// `is_stored`: the database has exactly this position.
    pub(super) fn new(position: SyncPosition, is_stored: bool) -> Self {
        let cursor = position.last_uid.0;
        SyncProgress {
            cursor,
            reported: is_stored.then_some(cursor),
            start_boundary: position.start_boundary,
            renumbered_after: position.renumbered_after,
        }
    }

    /// Every mail up to this UID is handed over, known to be gone, not Resmic's, or older than the start boundary.
    pub(super) fn cursor(&self) -> u32 {
        self.cursor
    }

    /// The first UID that the cursor has not passed.
    pub(super) fn next_uid(&self) -> u32 {
        self.cursor.saturating_add(1)
    }

    /// Moves the cursor to `uid`. The cursor never moves back.
    pub(super) fn advance(&mut self, uid: u32) {
        self.cursor = self.cursor.max(uid);
    }

    /// The start of the first run, if that was not the oldest mail.
    pub(super) fn start_boundary(&self) -> Option<StartBoundary> {
        self.start_boundary
    }

    /// Replaces the start boundary. The next report contains it.
    pub(super) fn set_start_boundary(&mut self, boundary: StartBoundary) {
        self.start_boundary = Some(boundary);
        self.reported = None;
    }

    /// Makes the next report necessary even if the cursor does not move.
    pub(super) fn require_report(&mut self) {
        self.reported = None;
    }

    /// Whether the position was reported. If not, the next report is necessary even if the cursor does not move.
    pub(super) fn is_reported(&self) -> bool {
        self.reported.is_some()
    }

    /// Whether a report of the cursor would repeat the last report.
    pub(super) fn is_unchanged(&self) -> bool {
        self.reported == Some(self.cursor)
    }

    /// The position for the database. The cursor counts as reported from now on.
    pub(super) fn report(&mut self, uid_validity: u32, newest_at: Option<Timestamp>) -> SyncPosition {
        self.reported = Some(self.cursor);
        SyncPosition {
            uid_validity: UidValidity(uid_validity),
            last_uid: Uid(self.cursor),
            start_boundary: self.start_boundary,
            newest_at,
            renumbered_after: self.renumbered_after,
        }
    }
}
