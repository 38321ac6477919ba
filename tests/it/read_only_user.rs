//! A user who may read the database, and make no file beside it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::time::Duration;

use testkit::daemon::{Home, account, binary};

const SOON: Duration = Duration::from_secs(20);
/// Nobody, for whom root's files are to be read only.
const NOBODY: &str = "65534";

/// Runs a command as somebody who may not write into the folder: for root another user, else this one.
fn look(home: &Home, arguments: &[&str]) -> Output {
    let ours = home.command(arguments);
    let is_root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    let mut command = if is_root {
        // The one that is tested may lie where nobody else gets.
        let copy = home.folder.path().join("copy");
        if !copy.exists() {
            fs::copy(binary(), &copy).unwrap();
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]).arg(copy);
        command
    } else {
        Command::new(ours.get_program())
    };
    command.args(ours.get_args()).current_dir(home.folder.path());
    for (name, value) in ours.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

fn mode(home: &Home, mode: u32) {
    fs::set_permissions(home.folder.path(), Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_read_only_user_can_run_status() {
    let home = Home::new(&account(1, "mailboxes = [\"INBOX\"]"));
    mode(&home, 0o755);
    let daemon = home.start();
    home.until("SELECT state FROM mailboxes", "failed", SOON);
    let words = said(&look(&home, &["status"]));
    assert!(words.contains("cannot connect") && !words.contains("the daemon is not running"), "{words}");
    assert_eq!(daemon.end(), Some(0));
    mode(&home, 0o555);
    let words = said(&look(&home, &["status"]));
    assert!(words.contains("cannot connect") && words.contains("the daemon is not running"), "{words}");
    let events = look(&home, &["events"]);
    assert!(events.status.success(), "{}", said(&events));
    // What it sees will not change; that is better said than waited for.
    let follow = look(&home, &["events", "--follow"]);
    assert!(follow.status.code() == Some(1) && said(&follow).contains("no events to follow"), "{}", said(&follow));
    assert!(!home.folder.path().join("mailhook.db-shm").exists(), "somebody made a file");
    mode(&home, 0o755);
}
