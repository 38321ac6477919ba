//! The daemon reacts to signals also while it waits for a secret.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use testkit::daemon::{Home, account};

const SOON: Duration = Duration::from_secs(20);

/// An account with a slow password command, which creates the file `asked` when it starts.
fn slow() -> String {
    let program = "password = { command = [\"sh\", \"-c\", \"touch asked; exec sleep 60\"] }";
    account(1, "mailboxes = [\"INBOX\"]").replace("password = { env = \"MAILHOOK_PASSWORD\" }", program)
}

fn until_there(path: &Path) {
    let deadline = Instant::now() + SOON;
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} is not there", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn shutdown_does_not_wait_for_a_secret() {
    let home = Home::new(&slow());
    let daemon = home.start();
    until_there(&home.folder.path().join("asked"));
    assert_eq!(daemon.end(), Some(0));
    assert!(!home.database().exists(), "nothing was begun");
}

#[test]
fn shutdown_does_not_wait_for_a_reloaded_secret() {
    let home = Home::new(&account(1, "mailboxes = [\"INBOX\"]"));
    let daemon = home.start();
    daemon.says("running", SOON);
    fs::write(home.folder.path().join("config.toml"), slow()).unwrap();
    daemon.process.signal("-HUP");
    until_there(&home.folder.path().join("asked"));
    assert_eq!(daemon.end(), Some(0));
    assert!(!home.folder.path().join("mailhook.db-wal").exists(), "it was closed");
}
