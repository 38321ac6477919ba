//! The cursor of an open mailbox: up to which UID the mailbox is read.

use jiff::Timestamp;

use crate::model::{StartBoundary, SyncPosition, Uid, UidValidity};

/// The cursor of an open mailbox, and the cursor that was last sent to `ingest`.
#[derive(Debug)]
pub(super) struct SyncProgress {
    cursor: u32,
    /// The cursor that was last sent to `ingest`, or read from the database. `None`: the position must be sent even if the cursor
    /// does not move.
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

    /// Every mail up to this UID was sent to `ingest`, is known to be gone, is not Resmic's, or is older than the start boundary.
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

    /// The boundary of the mails that the setting `start` excludes; `None` if it excludes no mails.
    pub(super) fn start_boundary(&self) -> Option<StartBoundary> {
        self.start_boundary
    }

    /// Replaces the start boundary. The next position that is sent to `ingest` contains the new boundary.
    pub(super) fn set_start_boundary(&mut self, boundary: StartBoundary) {
        self.start_boundary = Some(boundary);
        self.reported = None;
    }

    /// Makes sure that the position is sent to `ingest` again, even if the cursor does not move.
    pub(super) fn require_report(&mut self) {
        self.reported = None;
    }

    /// Whether `ingest` or the database has this position. Otherwise the position must be sent to `ingest`, even if the cursor
    /// does not move.
    pub(super) fn is_reported(&self) -> bool {
        self.reported.is_some()
    }

    /// Whether the cursor is still the cursor that was last sent to `ingest`.
    pub(super) fn is_unchanged(&self) -> bool {
        self.reported == Some(self.cursor)
    }

    /// Returns the position that `ingest` writes to the table `mailboxes`. From now on, the cursor counts as reported to
    /// `ingest`.
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
