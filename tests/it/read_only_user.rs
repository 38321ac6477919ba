//! A user with read access to the database who cannot create files in its folder.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::time::Duration;

use testkit::daemon::{Home, account, binary};

const SOON: Duration = Duration::from_secs(20);
/// The user `nobody`.
const NOBODY: &str = "65534";

/// Runs a command as a user who cannot write into the folder: as `nobody` if the test runs as root.
fn run_unprivileged(home: &Home, arguments: &[&str]) -> Output {
    let ours = home.command(arguments);
    let is_root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    let mut command = if is_root {
        // Other users may have no access to the path of the tested binary.
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

fn output_text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

fn set_mode(home: &Home, mode: u32) {
    fs::set_permissions(home.folder.path(), Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_read_only_user_can_run_status() {
    let home = Home::new(&account(1, "mailboxes = [\"INBOX\"]"));
    set_mode(&home, 0o755);
    let daemon = home.start();
    home.until("SELECT state FROM mailboxes", "failed", SOON);
    let printed = output_text(&run_unprivileged(&home, &["status"]));
    assert!(printed.contains("cannot connect") && !printed.contains("the daemon is not running"), "{printed}");
    assert_eq!(daemon.end(), Some(0));
    set_mode(&home, 0o555);
    let printed = output_text(&run_unprivileged(&home, &["status"]));
    assert!(printed.contains("cannot connect") && printed.contains("the daemon is not running"), "{printed}");
    let events = run_unprivileged(&home, &["events"]);
    assert!(events.status.success(), "{}", output_text(&events));
    // The snapshot cannot change, so `--follow` is refused.
    let follow = run_unprivileged(&home, &["events", "--follow"]);
    assert!(
        follow.status.code() == Some(1) && output_text(&follow).contains("no events to follow"),
        "{}",
        output_text(&follow)
    );
    assert!(!home.folder.path().join("mailhook.db-shm").exists(), "somebody made a file");
    set_mode(&home, 0o755);
}
