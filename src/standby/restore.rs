//! The restore command: the program that fetches a copy of the shared database before this host opens the database. This module
//! runs the command, and checks before that it can be run.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::model::printable;
use crate::units::{HumanDuration, count};

/// The limits of the restore command's output in the log: the length of a line in characters, and the number of lines of each
/// stream (standard output, standard error).
const MAX_LINE: usize = 300;
const MAX_LINES: usize = 100;
/// How long the output may go on after the end of the restore command, and how long the command may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);
/// How often the log reports that the restore command still runs.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);
/// How often the daemon checks whether the program of the restore command can be run.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Why the restore command did not fetch the database. The text is for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RestoreError(String);

/// Why the restore command cannot be run, as a text for the operator; `None` if its program exists and this process may run it.
#[must_use]
pub fn restore_problem(command: &[String]) -> Option<String> {
    let program = command.first().map_or("", String::as_str);
    let problem = if program.contains('/') {
        program_problem(Path::new(program))?
    } else {
        // The system searches these folders, too, if there is no PATH (execvp(3)).
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
        let folders: Vec<_> = std::env::split_paths(&path).collect();
        if folders.iter().any(|folder| program_problem(&folder.join(program)).is_none()) {
            return None;
        }
        "no folder of PATH has this program; write its full path".into()
    };
    Some(format!("cannot run {program:?}: {problem}"))
}

fn program_problem(path: &Path) -> Option<String> {
    match std::fs::metadata(path) {
        Err(error) => Some(error.to_string()),
        Ok(found) if !found.is_file() => Some("it is not a file".into()),
        Ok(_) => rustix::fs::access(path, rustix::fs::Access::EXEC_OK)
            .err()
            .map(|error| format!("{}; make it executable: chmod 0755", std::io::Error::from(error))),
    }
}

/// Checks the program of the restore command at once, and then once a minute until the receiver is dropped. The receiver gets the
/// problem that the last check has found.
pub(super) fn watch_restore(command: Option<Vec<String>>) -> watch::Receiver<Option<String>> {
    let (sender, problem) = watch::channel(command.as_deref().and_then(restore_problem));
    if let Some(command) = command {
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = sender.closed() => return,
                    () = sleep(CHECK_INTERVAL) => {}
                }
                let command = command.clone();
                // A network file system may block for long, and the other tasks must go on meanwhile.
                let checked = tokio::task::spawn_blocking(move || restore_problem(&command)).await;
                let found = checked.unwrap_or_default();
                sender.send_if_modified(|before| {
                    let has_changed = *before != found;
                    *before = found;
                    has_changed
                });
            }
        });
    }
    problem
}

/// Runs the restore command until its end, without a shell, and logs its output. `environment`: variables for the command. If
/// `stop` returns first, the command and its children are ended.
///
/// # Errors
/// The restore command cannot be started, fails, or was ended.
pub async fn run_restore(
    command: &[String],
    environment: &[(&str, String)],
    stop: impl Future<Output = ()>,
) -> Result<(), RestoreError> {
    let program = command.first().map_or("", String::as_str);
    let failed = |problem: String| RestoreError(format!("restore command {program:?}: {problem}"));
    let mut child = Command::new(program)
        .args(command.get(1..).unwrap_or_default())
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // The restore command gets a new process group, so that a script ends together with its children.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("cannot run it: {error}")))?;
    let group = ProcessGroup(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let output = tokio::spawn(async move { tokio::join!(log_lines(out), log_lines(err)) });
    // A restore may take long, so it has no time limit. But no host delivers meanwhile, and a command that hangs must be found.
    let report = |time| {
        let time = HumanDuration(time);
        tracing::warn!("restore command {program:?} still runs after {time}; no host is active until it has ended");
    };
    let ended = tokio::select! {
        status = report_each(REPORT_INTERVAL, report, child.wait()) => {
            Some(status.map_err(|error| failed(error.to_string()))?)
        }
        () = stop => None,
    };
    let Some(status) = ended else {
        group.end(&mut child).await;
        output.abort();
        return Err(failed("ended before it was complete, because this host no longer takes over".into()));
    };
    // A child of the restore command may keep the output open, so this wait has a limit.
    let _ = timeout(GRACE, output).await;
    if status.success() { Ok(()) } else { Err(failed(format!("{status}; the log has its output"))) }
}

/// Waits for `work`, and calls `report` with the time since the begin whenever `interval` has passed.
async fn report_each<T>(interval: Duration, report: impl Fn(Duration), work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    let mut time = Duration::ZERO;
    loop {
        match timeout(interval, &mut work).await {
            Ok(done) => return done,
            Err(_) => {
                time += interval;
                report(time);
            }
        }
    }
}

/// The process group of the restore command. Dropping this value kills the processes that are left in the group.
struct ProcessGroup(Option<Pid>);

impl ProcessGroup {
    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            // An error means that no process of the group is left.
            let _ = kill_process_group(group, signal);
        }
    }

    async fn end(self, child: &mut Child) {
        self.signal(Signal::TERM);
        let _ = timeout(GRACE, child.wait()).await;
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Logs the first lines of an output. Reads the further lines without logging them, so that the restore command does not block on
/// a full pipe.
async fn log_lines(output: Option<impl AsyncRead + Unpin>) {
    let Some(mut output) = output else { return };
    let (mut line, mut lines, mut buffer) = (Vec::new(), 0_usize, [0; 4096]);
    while let Ok(read @ 1..) = output.read(&mut buffer).await {
        for byte in buffer.iter().take(read) {
            match byte {
                b'\n' => log_line(&std::mem::take(&mut line), &mut lines),
                // The limit counts characters, and a character has up to four bytes in UTF-8.
                _ if line.len() < 4 * MAX_LINE => line.push(*byte),
                _ => {}
            }
        }
    }
    log_line(&line, &mut lines);
    if lines > MAX_LINES {
        tracing::info!("restore command: {}", count(lines - MAX_LINES, "more line"));
    }
}

fn log_line(line: &[u8], lines: &mut usize) {
    let text = String::from_utf8_lossy(line);
    if text.trim().is_empty() {
        return;
    }
    *lines += 1;
    if *lines <= MAX_LINES {
        tracing::info!("restore command: {}", printable(text.trim_end(), MAX_LINE));
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::ops::Not;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    async fn run(script: &str) -> Result<(), RestoreError> {
        let command = ["sh", "-c", script].map(str::to_owned);
        run_restore(&command, &[("RESMIC_MAILHOOK_LAST_HOST", "a".into())], pending()).await
    }

    #[tokio::test]
    async fn the_exit_status_decides() {
        assert_eq!(run("test \"$RESMIC_MAILHOOK_LAST_HOST\" = a; exit $?").await, Ok(()));
        let error = run("echo no copy >&2; exit 3").await.unwrap_err().to_string();
        assert!(error.contains("\"sh\"") && error.contains("exit status: 3"), "{error}");
        let error = run_restore(&["/nowhere/x".into()], &[], pending()).await.unwrap_err().to_string();
        assert!(error.contains("/nowhere/x") && error.contains("cannot run it"), "{error}");
    }

    #[test]
    fn a_program_that_cannot_run_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("script"), "#!/bin/sh\n").unwrap();
        let problem = |program: &str| restore_problem(&[program.to_owned(), "a".into()]);
        for (program, expected) in [
            (path("missing"), "No such file or directory"),
            (path("script"), "make it executable"),
            (path(""), "it is not a file"),
            ("mailhook-missing".into(), "no folder of PATH"),
        ] {
            let problem = problem(&program).unwrap();
            assert!(problem.contains(expected) && problem.contains(&program), "{problem}");
        }
        std::fs::set_permissions(path("script"), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!((problem(&path("script")), problem("sh")), (None, None));
    }

    #[tokio::test]
    async fn a_long_restore_is_reported_repeatedly() {
        let (interval, times) = (Duration::from_millis(10), std::cell::RefCell::new(Vec::new()));
        let three_reports = async {
            while times.borrow().len() < 3 {
                tokio::task::yield_now().await;
            }
        };
        report_each(interval, |time| times.borrow_mut().push(time), three_reports).await;
        assert_eq!(*times.borrow(), [interval, interval * 2, interval * 3]);
    }

    #[tokio::test]
    async fn endless_output_needs_no_memory() {
        assert_eq!(run("head -c 50000000 /dev/zero").await, Ok(()));
    }

    /// Whether a process has ended. The entry of an ended process stays in `/proc` until its parent waits for it.
    fn has_ended(process: &str) -> bool {
        let found = std::fs::read_to_string(format!("/proc/{process}/stat"));
        found.is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().starts_with(" Z")).not()
    }

    #[tokio::test]
    async fn a_stopped_restore_ends_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let started = folder.path().join("started");
        let script = format!("sleep 1000 & echo $! > {0}.part; mv {0}.part {0}; wait", started.display());
        let stop = async {
            while !started.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let error = run_restore(&["sh".into(), "-c".into(), script], &[], stop).await.unwrap_err().to_string();
        assert!(error.contains("no longer takes over"), "{error}");
        let child = std::fs::read_to_string(started).unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while !has_ended(child.trim()) {
            assert!(tokio::time::Instant::now() < deadline, "process {child} goes on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
