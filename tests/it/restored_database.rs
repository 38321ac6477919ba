//! A backup replaces the database file while the daemon runs and the WAL of the old file still exists.

use std::time::Duration;

use testkit::callback::Callback;
use testkit::daemon::{Home, account, forward};
use testkit::dovecot::Dovecot;
use testkit::payments::{self, payment};

const SOON: Duration = Duration::from_secs(20);
/// The daemon checks the file once a minute.
const LATER: Duration = Duration::from_secs(90);

#[test]
fn a_restored_copy_is_intact_and_completed() {
    for asked_to_end in [false, true] {
        let (dovecot, callback) = (Dovecot::start(), Callback::start());
        let home = Home::new(&format!(
            "{}[trust]\naccept = [\"none\"]\n{}",
            account(dovecot.imap, "dedicated = true\nmailboxes = [\"INBOX\"]"),
            forward(&callback.url(), "")
        ));
        let mut daemon = home.start();
        let mails: Vec<_> = (1..=200).map(payment).collect();
        let deliver = |mails: &[Vec<u8>]| dovecot.deliver_all("payments@shop.example", mails.iter().map(Vec::as_slice));
        deliver(&mails[..100]);
        payments::wait_until_complete(&home, &callback, 100, SOON);
        let copy = home.folder.path().join("copy.db");
        home.data(&["backup", copy.to_str().unwrap()]);
        deliver(&mails[100..]);
        payments::wait_until_complete(&home, &callback, 200, SOON);
        std::fs::rename(&copy, home.database()).unwrap();
        if asked_to_end {
            daemon.process.signal("-TERM");
        }
        assert_eq!(daemon.process.wait(LATER), Some(i32::from(!asked_to_end)));
        assert_eq!(
            (home.ask("PRAGMA integrity_check"), home.ask("SELECT count(*) FROM events")),
            ("ok".into(), "100".into())
        );
        let daemon = home.start();
        payments::wait_until_complete(&home, &callback, 200, SOON);
        assert_eq!(daemon.end(), Some(0));
    }
}
