//! Measurements of memory and processor time, in a process without other tests.

use std::process::Command;

const MARK: &str = "RESMIC_MAILHOOK_FAULTS_ALONE";

/// Runs `test` again in a new process and returns false. In the new process it returns true.
pub(crate) fn is_alone(test: &str) -> bool {
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(MARK, "1").output().unwrap();
    let output_text = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && output_text.contains("1 passed"), "{output_text}\n{complaints}");
    false
}

/// Runs a future on one thread.
pub(crate) fn block_on(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
}

/// A value of /proc/self/status in KiB.
fn status(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The resident memory in KiB.
pub(crate) fn memory() -> u64 {
    status("VmRSS:")
}

/// The peak of the resident memory in KiB.
pub(crate) fn memory_at_most() -> u64 {
    status("VmHWM:")
}

/// The number of open files and sockets.
pub(crate) fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The seconds of processor time that this process used.
pub(crate) fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let ticks: Vec<f64> = rest.split(' ').skip(11).take(2).map(|n| n.parse().unwrap()).collect();
    (ticks[0] + ticks[1]) / 100.0
}
