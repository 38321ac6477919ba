//! A loop that sleeps until work is due. A turn is one call of [`TurnWorker::turn`], which does due work. The loop makes a turn
//! after each commit that may have made work due, and when the next row becomes due.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Error, Result, Store};
use crate::heartbeat::Heartbeat;

/// The pause after a turn that failed with an error of the database.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// The longest sleep between two turns. The next turn reads the wall clock again, because the clock may have been set.
const LONGEST_SLEEP: Duration = Duration::from_secs(600);

/// The work of the loop in [`Store::work_in_turns`].
pub trait TurnWorker {
    /// Does one piece of work, if work is due. `None`: more work may be due now, so the next turn follows immediately. `Some`:
    /// the time of the next turn, unless a commit causes an earlier turn.
    fn turn(&mut self) -> impl Future<Output = Result<Option<Instant>>> + Send;

    /// Logs an error of the database. The loop then makes the next turn after a short pause.
    fn report(&self, error: &Error);

    /// The heartbeat of the loop.
    fn heartbeat(&self) -> &Heartbeat;
}

impl Store {
    /// Calls [`TurnWorker::turn`] each time that work may be due. This function never returns `Ok`.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`]: the writer has ended.
    pub async fn work_in_turns(&self, worker: &mut impl TurnWorker) -> Result<()> {
        let mut commits = self.watch_outbox();
        loop {
            commits.mark_unchanged();
            worker.heartbeat().beat();
            let wake_at = match worker.turn().await {
                Ok(None) => continue,
                Ok(Some(wake_at)) => wake_at.min(Instant::now() + LONGEST_SLEEP),
                Err(Error::Stopped) => return Err(Error::Stopped),
                Err(error) => {
                    worker.report(&error);
                    sleep(STORE_PAUSE).await;
                    continue;
                }
            };
            worker.heartbeat().beat_before(LONGEST_SLEEP);
            tokio::select! {
                changed = commits.changed() => changed.map_err(|_| Error::Stopped)?,
                () = sleep_until(wake_at) => {}
            }
        }
    }
}

/// The time of the next turn, if the next row becomes due at `due`; `None`: no row becomes due.
#[must_use]
pub fn turn_at(due: Option<Timestamp>) -> Instant {
    let until = |at: Timestamp| {
        // The time is rounded up: if the timer fired too early, no row would be due.
        Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default() + Duration::from_millis(1)
    };
    Instant::now() + due.map_or(LONGEST_SLEEP, |at| until(at).min(LONGEST_SLEEP))
}
