//! The standby file, with the state of the daemon and the [`KnownData`]: the last revision and the newest database. The commands
//! on this host read the state. The daemon reads the `KnownData` after a restart.
//!
//! The daemon keeps the standby file locked, and overwrites the content in place at each change, without fsync. After a power
//! failure the content may be old or missing. Then the daemon may wait longer for the lease, and may fetch the database again.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ring::digest;
use serde::{Deserialize, Serialize};

use super::lease_value::LeaseValue;
use super::machine::KnownData;
use super::view::{LeaseState, LeaseView};
use crate::boot_clock::BootInstant;

/// If the content is half-written, a command reads the standby file up to this number of times. The daemon also tries the lock
/// again up to this number of times, because a command may have the lock for a moment. `PAUSE` is the pause between two tries.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(20);

/// The standby file of this host, whose lock this daemon has.
#[derive(Debug)]
pub struct StandbyFile {
    file: File,
    path: PathBuf,
    /// The content that the file had before this daemon started; `None` if that content cannot be parsed.
    before: Option<Report>,
    /// The present length of the file in bytes.
    length: u64,
}

/// The content of the standby file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The state of the daemon with respect to the lease.
    pub state: LeaseState,
    /// The lease value of the host that has the lease; `None` if no such host is known.
    pub holder: Option<LeaseValue>,
    /// The end of the holder's lease, in milliseconds since the start of the machine.
    ends_ms: Option<u64>,
    /// Why this host could not take over, if it has released the lease for this reason.
    pub failure: Option<String>,
    /// Why the lease cannot be read or written, or why an operator must look at the content of the key.
    pub problem: Option<String>,
    /// Problems that do not keep this host from the lease now, and that an operator must solve.
    #[serde(default)]
    pub faults: Vec<String>,
    bucket: String,
    known: KnownData,
}

/// Why the standby file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StandbyFileError {
    /// Another daemon of this host is already running for this database.
    #[error("{0}: another resmic-mailhook daemon of this host is running; stop that daemon first")]
    Busy(PathBuf),
    /// The standby file cannot be opened, locked or read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
}

impl StandbyFile {
    /// The path of the standby file for the database `name` and the host `host`, in the state folder `folder`.
    #[must_use]
    pub fn path(folder: &Path, name: &str, host: &str) -> PathBuf {
        folder.join(format!("standby-{name}-{host}.json"))
    }

    /// Creates the standby file if it is missing, and locks it. The kernel releases the lock when this process ends.
    ///
    /// # Errors
    /// [`StandbyFileError`].
    pub fn lock(path: &Path) -> Result<Self, StandbyFileError> {
        let io = |source| StandbyFileError::Io { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(io)?;
        }
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).map_err(io)?;
        let mut tries = TRIES;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                // A command takes the lock for a moment to find out whether a daemon has it.
                Err(TryLockError::WouldBlock) if tries > 0 => std::thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => return Err(StandbyFileError::Busy(path.to_owned())),
                Err(TryLockError::Error(source)) => return Err(io(source)),
            }
            tries -= 1;
        }
        let content = std::fs::read(path).map_err(io)?;
        let length = content.len() as u64;
        Ok(StandbyFile { file, path: path.to_owned(), before: serde_json::from_slice(&content).ok(), length })
    }

    /// Returns a hash that identifies the standby file by its machine, its path, its device and its inode. A copy of the state
    /// folder on another machine has another hash.
    #[must_use]
    pub fn identity(&self) -> String {
        let metadata = self.file.metadata().map(|found| (found.dev(), found.ino())).unwrap_or_default();
        let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
        let text = format!("{} {metadata:?} {}", machine.trim(), self.path.display());
        let digest = digest::digest(&digest::SHA256, text.as_bytes());
        data_encoding::HEXLOWER.encode(digest.as_ref().get(..16).unwrap_or_default())
    }

    /// The data that the standby file had before this daemon started: the creation time of the bucket, and the [`KnownData`].
    #[must_use]
    pub fn known(&self) -> (String, KnownData) {
        self.before.as_ref().map(|report| (report.bucket.clone(), report.known.clone())).unwrap_or_default()
    }

    /// Replaces the content of the standby file. A failure is only logged, because the daemon works without the file. Commands
    /// then see an older state.
    pub fn write(&mut self, report: &Report) {
        let content = serde_json::to_vec(report).unwrap_or_default();
        let length = content.len() as u64;
        let written = self
            .file
            .write_all_at(&content, 0)
            .and_then(|()| if length < self.length { self.file.set_len(length) } else { Ok(()) });
        match written {
            Ok(()) => self.length = length,
            Err(error) => tracing::warn!(path = %self.path.display(), %error, "cannot write the state of the standby"),
        }
    }

    /// Reads the last report of the daemon that runs on this host; `None` if no daemon runs.
    ///
    /// # Errors
    /// [`StandbyFileError::Io`], also if the content stays incomplete.
    pub fn read(path: &Path) -> Result<Option<Report>, StandbyFileError> {
        let io = |source| StandbyFileError::Io { path: path.to_owned(), source };
        let file = match File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(io)?,
        };
        let mut failure = None;
        for _ in 0..TRIES {
            match file.try_lock_shared() {
                Ok(()) => return Ok(None),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(source)) => return Err(io(source)),
            }
            match serde_json::from_slice(&std::fs::read(path).map_err(io)?) {
                Ok(report) => return Ok(Some(report)),
                Err(error) => failure = Some(error),
            }
            std::thread::sleep(PAUSE);
        }
        Err(io(failure.map_or_else(|| std::io::ErrorKind::InvalidData.into(), Into::into)))
    }
}

impl Report {
    /// Creates the content of the standby file from a view of the lease. `bucket`: the creation time of the bucket to which the
    /// revision in `known` belongs.
    #[must_use]
    pub fn new(view: &LeaseView, bucket: &str, known: &KnownData) -> Self {
        Report {
            state: view.state,
            holder: view.holder.clone(),
            ends_ms: view.ends.map(BootInstant::as_millis),
            failure: view.failure.clone(),
            problem: view.problem.clone(),
            faults: view.faults.clone(),
            bucket: bucket.to_owned(),
            known: known.clone(),
        }
    }

    /// Converts the report to the daemon's view of the lease. The fields that only the daemon needs have their default values.
    #[must_use]
    pub fn view(self) -> LeaseView {
        let Report { state, holder, ends_ms, failure, problem, faults, .. } = self;
        LeaseView {
            state,
            holder,
            ends: ends_ms.map(BootInstant::from_millis),
            failure,
            problem,
            faults,
            ..LeaseView::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(failure: Option<&str>) -> Report {
        let view = LeaseView {
            state: LeaseState::Waiting,
            ends: Some(BootInstant::from_millis(7)),
            failure: failure.map(str::to_owned),
            ..LeaseView::default()
        };
        Report::new(&view, "1", &KnownData { revision: 9, data: None })
    }

    #[test]
    fn reports_of_ended_daemons_are_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let path = StandbyFile::path(folder.path(), "shop", "a");
        assert_eq!(StandbyFile::read(&path).unwrap(), None);
        let mut file = StandbyFile::lock(&path).unwrap();
        assert_eq!(file.known(), Default::default());
        assert!(StandbyFile::read(&path).is_err(), "the daemon has written nothing yet");
        for failure in [Some("a long reason, which is overwritten"), None, Some("short")] {
            file.write(&report(failure));
            assert_eq!(StandbyFile::read(&path).unwrap(), Some(report(failure)));
        }
        assert!(matches!(StandbyFile::lock(&path), Err(StandbyFileError::Busy(_))));
        let identity = file.identity();
        drop(file);
        assert_eq!(StandbyFile::read(&path).unwrap(), None);
        let next = StandbyFile::lock(&path).unwrap();
        assert_eq!((next.known(), next.identity()), (("1".into(), KnownData { revision: 9, data: None }), identity));
    }
}
