//! The takeover: fetches the database, refuses a copy that is older than the newest known database, and opens the copy.

use std::path::Path;

use tokio::sync::watch;

use super::super::{lock, store_settings};
use super::Standby;
use crate::boot_clock::BootInstant;
use crate::config::Config;
use crate::db::{self, CopyState, Store};
use crate::model::printable;
use crate::standby::{DataOwner, LeaseState, LeaseView, Takeover, run_restore};

/// Why this host did not become active.
pub(super) enum NotOpened {
    /// The process ends, the configuration is reloaded, or the lease is lost.
    Stopped,
    /// An operator asked for the release of the lease.
    Asked,
    /// The takeover has failed. The text is the reason, for the operator.
    Failed(String),
}

impl Standby {
    /// Fetches and opens the database, and returns the term of the lease. After a reload of the configuration, the function only
    /// opens the database. Without the lease, the function opens nothing: it would not know the newest database.
    pub(super) async fn take_over(
        &mut self,
        config: &Config,
        shutdown: &watch::Receiver<bool>,
    ) -> Result<(u64, Store), NotOpened> {
        let lease = self.agent.watch().borrow().clone();
        // The preparation of the loops takes time, so the lease may have ended since this host got it.
        if !lease.is_held(BootInstant::now()) {
            return Err(NotOpened::Stopped);
        }
        let term = lease.term;
        if lease.state != LeaseState::Active || self.lock.is_none() {
            self.fetch(config, lease, shutdown).await?;
        }
        if !self.agent.watch().borrow().is_held_since(term, BootInstant::now()) {
            return Err(NotOpened::Stopped);
        }
        // If the disk is full, this host does not wait for free space, because another host may have free space.
        let store = Store::open(store_settings(config)).map_err(|error| NotOpened::Failed(error.to_string()))?;
        match store.reader().and_then(|reader| reader.last_mail_id()) {
            Ok(last_mail_id) => {
                self.agent.report_opened(term, last_mail_id);
                if self.is_active_in(term).await {
                    self.fresh = false;
                    return Ok((term, store));
                }
                store.close().await;
                Err(NotOpened::Stopped)
            }
            Err(error) => {
                store.close().await;
                Err(NotOpened::Failed(error.to_string()))
            }
        }
    }

    /// Locks the database, runs the restore command if another host may have a newer database, and checks that the database is
    /// not older than the newest known one.
    async fn fetch(
        &mut self,
        config: &Config,
        lease: LeaseView,
        shutdown: &watch::Receiver<bool>,
    ) -> Result<(), NotOpened> {
        let (term, takeover) = (lease.term, lease.takeover.unwrap_or_default());
        // While this host has the lease, the holder is this host. Its name in a reloaded configuration may be another one.
        let host = lease.holder.map(|holder| holder.host).unwrap_or_default();
        let database = config.database();
        self.lock_database(&database)?;
        let found = db::inspect_copy(&database);
        // A missing file may be on a volume that is not attached yet, and the restore command attaches the volume.
        let opens_as_it_is = self.fresh && !matches!(found, Ok(None));
        let restore = config.standby.as_ref().and_then(|standby| standby.restore.as_ref());
        if let Some(restore) = restore
            && !opens_as_it_is
            && must_restore(&found, &takeover)
        {
            tracing::info!("fetching the database with the restore command");
            let environment = environment(&database, host, &takeover, self.fresh);
            let mut stopped = None;
            let stop = async { stopped = Some(self.stopped(term, shutdown).await) };
            let ran = run_restore(&restore.command, &environment, stop).await;
            match (ran, stopped) {
                (Ok(()), _) => {}
                (Err(_), Some(stopped)) => return Err(stopped),
                (Err(error), None) if self.fresh => tracing::warn!("--fresh: going on after an error: {error}"),
                (Err(error), None) => return Err(NotOpened::Failed(error.to_string())),
            }
            // The restore command may have replaced the lock file, or mounted another file system over the folder of the lock
            // file.
            self.lock_database(&database)?;
        }
        if self.fresh {
            tracing::warn!("--fresh: opening {} as it is", database.display());
            return Ok(());
        }
        match db::inspect_copy(&database) {
            Ok(None) if restore.is_none() && takeover.data.as_ref().is_none_or(|known| known.last_mail_id == 0) => {
                Ok(())
            }
            Ok(copy) => {
                refusal(&database, copy, takeover.data.as_ref()).map_or(Ok(()), |why| Err(NotOpened::Failed(why)))
            }
            Err(error) => Err(NotOpened::Failed(error.to_string())),
        }
    }

    /// Waits until this host is active in `term`, because deliveries are permitted only while it is active. Returns false if the
    /// lease is lost during this wait.
    async fn is_active_in(&self, term: u64) -> bool {
        let mut lease = self.agent.watch();
        let decided = lease.wait_for(|lease| lease.term != term || lease.state != LeaseState::TakingOver).await;
        decided.is_ok_and(|lease| lease.state == LeaseState::Active && lease.is_held_since(term, BootInstant::now()))
    }

    fn lock_database(&mut self, database: &Path) -> Result<(), NotOpened> {
        if self.lock.as_ref().is_some_and(|lock| lock.is_of(database)) {
            return Ok(());
        }
        self.lock = Some(lock(database).map_err(|error| NotOpened::Failed(format!("{error:#}")))?);
        Ok(())
    }

    /// Waits until a takeover must end early, and returns the reason.
    async fn stopped(&self, term: u64, shutdown: &watch::Receiver<bool>) -> NotOpened {
        let (mut ending, mut lease) = (shutdown.clone(), self.agent.watch());
        tokio::select! {
            _ = ending.wait_for(|ending| *ending) => NotOpened::Stopped,
            () = self.agent.lost(term) => NotOpened::Stopped,
            Ok(_) = lease.wait_for(|lease| lease.is_asked_to_release) => NotOpened::Asked,
        }
    }
}

/// The environment variables for the restore command. `host`: the name of this host in the lease. `fresh`: the command runs only
/// because the database does not exist.
fn environment(database: &Path, host: String, takeover: &Takeover, fresh: bool) -> [(&'static str, String); 5] {
    let database = std::path::absolute(database).unwrap_or_else(|_| database.to_owned());
    let data = takeover.data.as_ref();
    [
        ("RESMIC_MAILHOOK_DATABASE", database.to_string_lossy().into_owned()),
        ("RESMIC_MAILHOOK_HOST", host),
        ("RESMIC_MAILHOOK_FRESH", if fresh { "1".to_owned() } else { String::new() }),
        ("RESMIC_MAILHOOK_LAST_HOST", data.map(|data| data.host.clone()).unwrap_or_default()),
        ("RESMIC_MAILHOOK_LAST_MAIL_ID", data.map(|data| data.last_mail_id.to_string()).unwrap_or_default()),
    ]
}

/// Whether the restore command must run. The command need not run if the newest database is certainly on this host. A database
/// without mails can have registered sessions, so a missing file is never the newest database.
fn must_restore(copy: &db::Result<Option<CopyState>>, takeover: &Takeover) -> bool {
    let Ok(copy) = copy else { return true };
    // If no host ever had the lease, the database of this host becomes the shared one.
    let is_first = takeover.never_held && copy.is_some_and(|copy| copy.schema > 0);
    copy.is_none() || !(takeover.is_newest_here || is_first) || is_older(*copy, takeover.data.as_ref())
}

fn is_older(copy: Option<CopyState>, known: Option<&DataOwner>) -> bool {
    let last = copy.map_or(0, |copy| copy.last_mail_id);
    known.is_some_and(|known| last < known.last_mail_id)
}

/// The reason why a copy must not be opened, as a text for the operator. `None` if the copy is not older than the newest known
/// database. A missing copy is older than any known database.
fn refusal(database: &Path, copy: Option<CopyState>, known: Option<&DataOwner>) -> Option<String> {
    let known = known.filter(|known| copy.is_none() || is_older(copy, Some(known)))?;
    let found = match copy {
        Some(CopyState { last_mail_id: last @ 1.., .. }) => format!("ends with mail {last}"),
        Some(_) => "has no mail".to_owned(),
        None => "does not exist".to_owned(),
    };
    let (host, last) = (printable(&known.host, 64), known.last_mail_id);
    Some(format!(
        "the database {} {found}, and that of host {host} had mail {last}; fetch that one, or start once with `run --fresh` to \
         go on without it",
        database.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(last_mail_id: i64) -> DataOwner {
        DataOwner { host: "a".into(), home: "h".into(), last_mail_id }
    }

    fn copy(schema: i64, last_mail_id: i64) -> Option<CopyState> {
        Some(CopyState { schema, last_mail_id })
    }

    #[test]
    fn empty_and_older_copies_are_refused() {
        let refusal = |copy, known: Option<DataOwner>| refusal(Path::new("/m.db"), copy, known.as_ref());
        for (copy, expected) in
            [(None, "does not exist"), (copy(0, 0), "has no mail"), (copy(1, 7), "ends with mail 7")]
        {
            let message = refusal(copy, Some(owner(8))).unwrap();
            assert!(message.contains(expected) && message.contains("host a had mail 8"), "{message}");
            assert!(message.contains("--fresh"), "{message}");
        }
        for (copy, known) in
            [(copy(1, 8), Some(owner(8))), (copy(1, 9), Some(owner(8))), (copy(0, 0), Some(owner(0))), (None, None)]
        {
            assert_eq!(refusal(copy, known), None);
        }
        assert!(refusal(None, Some(owner(0))).is_some(), "a database without mails can have registered sessions");
    }

    #[test]
    fn the_newest_database_is_not_replaced() {
        let takeover = |is_newest_here, never_held, data| Takeover { data, is_newest_here, never_held };
        let must = |copy, takeover| must_restore(&Ok(copy), &takeover);
        assert!(!must(copy(1, 8), takeover(true, false, Some(owner(8)))));
        assert!(must(copy(1, 7), takeover(true, false, Some(owner(8)))), "it was lost on this host");
        assert!(must(copy(1, 9), takeover(false, false, Some(owner(8)))));
        assert!(must(copy(1, 9), takeover(false, false, None)));
        assert!(!must(copy(1, 0), takeover(false, true, None)), "the database before there was a [standby]");
        assert!(must(None, takeover(false, true, None)));
        assert!(must(None, takeover(true, false, Some(owner(0)))), "the volume is not attached");
        assert!(!must(copy(1, 0), takeover(true, false, Some(owner(0)))));
    }
}
