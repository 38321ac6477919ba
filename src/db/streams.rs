//! Writes and reads the table `streams`: the state of each target that is a stream.

use jiff::Timestamp;
use rusqlite::{OptionalExtension, params};
use serde::Serialize;

use super::{Result, Store, StoreReader, current_time, word};
use crate::model::{StreamState, iso};

/// A row of `streams`: a target that is a JetStream stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StreamRow {
    /// The target's name.
    pub target: String,
    /// The stream's name.
    pub stream: String,
    /// Whether the daemon can publish to the stream.
    pub state: StreamState,
    /// The configured URLs of the servers, separated by commas.
    pub servers: String,
    /// The version of the server to which the daemon connected last.
    pub version: Option<String>,
    /// Since when the daemon cannot publish; `None`: it can, or it connects for the first time since its start.
    #[serde(skip)]
    pub failing_since: Option<String>,
    /// Why the daemon cannot publish.
    pub problems: Vec<String>,
    /// The settings that should be changed, one text for each.
    pub notes: Vec<String>,
    /// Whether a person must correct the cause of the problem.
    #[serde(skip)]
    pub needs_person: bool,
    /// How many deliveries had their message in the stream already before an attempt.
    pub there_already: i64,
    /// How many messages the stream had lost and got again.
    pub refilled: i64,
    /// When the daemon found that the stream has lost messages that were not published again; `None`: there is no such loss.
    pub gap_since: Option<String>,
}

/// A change of the state of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamChange {
    /// The daemon has started, and connects for the first time.
    Connecting,
    /// The daemon has connected and can publish.
    Connected {
        /// The version of the NATS server.
        version: String,
        /// The settings that should be changed, one text for each.
        notes: Vec<String>,
    },
    /// The daemon cannot publish.
    Failed {
        /// Why the daemon cannot publish.
        problems: Vec<String>,
        /// Whether a person must correct the cause of the problem.
        needs_person: bool,
    },
}

impl Store {
    /// Writes the state of a target's stream into `streams`.
    ///
    /// # Errors
    ///
    /// [`super::Error`].
    pub async fn record_stream(&self, target: &str, stream: &str, servers: &str, change: StreamChange) -> Result<()> {
        let (target, stream, servers) = (target.to_owned(), stream.to_owned(), servers.to_owned());
        let lines = |lines: Vec<String>| Some(lines.join("\n")).filter(|text| !text.is_empty());
        let (state, version, notes, problems, needs_person) = match change {
            StreamChange::Connecting => (StreamState::Connecting, None, None, None, false),
            StreamChange::Connected { version, notes } => {
                (StreamState::Connected, Some(version), lines(notes), None, false)
            }
            StreamChange::Failed { problems, needs_person } => {
                (StreamState::Failed, None, None, lines(problems), needs_person)
            }
        };
        self.write(move |tx| {
            tx.prepare_cached(
                "INSERT INTO streams (target, stream, state, servers, version, changed_at, failing_since, problems, notes,
                   needs_person)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, CASE WHEN ?3 = 'failed' THEN ?6 END, ?7, ?8, ?9)
                 ON CONFLICT DO UPDATE SET stream = excluded.stream, state = excluded.state, servers = excluded.servers,
                   version = coalesce(excluded.version, version),
                   notes = CASE excluded.state WHEN 'connected' THEN excluded.notes ELSE notes END,
                   removed = CASE WHEN stream = excluded.stream THEN removed END,
                   changed_at = CASE WHEN state = excluded.state THEN changed_at ELSE excluded.changed_at END,
                   failing_since = CASE excluded.state WHEN 'failed' THEN coalesce(failing_since, ?6) END,
                   problems = excluded.problems, needs_person = excluded.needs_person",
            )?
            .execute(params![
                target,
                stream,
                state.as_str(),
                servers,
                version,
                current_time(),
                problems,
                notes,
                needs_person
            ])?;
            Ok(())
        })
        .await
    }

    /// Writes that the stream of a target has lost messages that were not published again.
    ///
    /// # Errors
    ///
    /// [`super::Error`].
    pub async fn record_gap(&self, target: &str) -> Result<()> {
        let target = target.to_owned();
        let sql = "UPDATE streams SET gap_since = coalesce(gap_since, ?2) WHERE target = ?1";
        self.write(move |tx| Ok(tx.prepare_cached(sql)?.execute(params![target, current_time()]).map(drop)?)).await
    }

    /// Writes how many messages the stream of a target has removed since its creation. `republished`: how many of its lost messages
    /// it got again since the previous call. If the stream has removed more than these messages since the previous call, or if
    /// `has_gap` is true, this function also writes that the stream has lost messages. Returns whether it has done so.
    ///
    /// # Errors
    ///
    /// [`super::Error`].
    pub async fn record_removed(
        &self,
        target: &str,
        removed: Option<u64>,
        republished: u64,
        has_gap: bool,
    ) -> Result<bool> {
        let target = target.to_owned();
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let (removed, republished) = (removed.map(signed), signed(republished));
        self.write(move |tx| {
            let sql = "SELECT removed FROM streams WHERE target = ?1";
            let before: Option<i64> =
                tx.prepare_cached(sql)?.query_row([&target], |row| row.get(0)).optional()?.flatten();
            let lost = removed.zip(before).map_or(0, |(removed, before)| removed.saturating_sub(before));
            let has_gap = has_gap || lost > republished;
            let sql = "UPDATE streams SET removed = ?2, gap_since = CASE WHEN ?3 THEN coalesce(gap_since, ?4) ELSE gap_since END
                WHERE target = ?1 AND (?3 OR removed IS NOT ?2)";
            tx.prepare_cached(sql)?.execute(params![target, removed, has_gap, current_time()])?;
            Ok(has_gap)
        })
        .await
    }

    /// Writes that the stream of a target has every acknowledged event. `compared_at`: when the comparison began. A loss that was
    /// found later stays.
    ///
    /// # Errors
    ///
    /// [`super::Error`].
    pub async fn record_no_gap(&self, target: &str, compared_at: Timestamp) -> Result<()> {
        let target = target.to_owned();
        let sql = "UPDATE streams SET gap_since = NULL WHERE target = ?1 AND gap_since <= ?2";
        self.write(move |tx| Ok(tx.prepare_cached(sql)?.execute(params![target, iso(compared_at)]).map(drop)?)).await
    }
}

impl StoreReader {
    /// All rows of `streams`, also those of targets that are no longer configured.
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn streams(&self) -> Result<Vec<StreamRow>> {
        self.query_all("SELECT * FROM streams ORDER BY target", &[], |row| {
            let lines = |column| {
                let text: Option<String> = row.get(column)?;
                Ok::<_, rusqlite::Error>(text.unwrap_or_default().lines().map(str::to_owned).collect())
            };
            Ok(StreamRow {
                target: row.get("target")?,
                stream: row.get("stream")?,
                state: word(row, "state")?,
                servers: row.get("servers")?,
                version: row.get("version")?,
                failing_since: row.get("failing_since")?,
                problems: lines("problems")?,
                notes: lines("notes")?,
                needs_person: row.get("needs_person")?,
                there_already: row.get("there_already")?,
                refilled: row.get("refilled")?,
                gap_since: row.get("gap_since")?,
            })
        })
    }
}
