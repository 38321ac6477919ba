//! SIGHUP reloads the configuration while mails arrive. Nothing is lost or duplicated, and removed accounts stop.

use std::time::Duration;

use testkit::callback::Callback;
use testkit::daemon::{Home, account, forward};
use testkit::dovecot::Dovecot;
use testkit::payments::{self, payment};

const SOON: Duration = Duration::from_secs(60);
const PAYMENTS: usize = 600;

#[test]
fn accounts_are_reloaded_during_deliveries() {
    let (dovecot, callback) = (Dovecot::start(), Callback::start());
    let mails: Vec<_> = (1..=PAYMENTS).map(payment).collect();
    dovecot.deliver_all("payments@shop.example", mails.iter().map(Vec::as_slice));
    let rest = format!("[trust]\naccept = [\"none\"]\n{}", forward(&callback.url(), ""));
    let first = |keys: &str| account(dovecot.imap, &format!("{keys}\nidle_renew = \"1s\""));
    let second = first("mailboxes = [\"INBOX\"]").replace("\"shop\"", "\"second\"").replace("payments@", "second@");
    let last = format!("{}{rest}", first("dedicated = true\nmailboxes = [\"INBOX\"]"));
    let broken = format!("{last}broken = 1\n");
    let configs = [
        last.clone(),
        format!("{second}{}{rest}", first("dedicated = true")),
        format!("{}{rest}", first("mailboxes = [\"INBOX\"]")),
        broken.clone(),
        format!("{}{second}{rest}", first("mailboxes = [\"INBOX\", \"Resmic\"]")),
    ];
    let home = Home::new(&configs[0]);
    let write = |config: &str| std::fs::write(home.folder.path().join("config.toml"), config).unwrap();
    let daemon = home.start();
    daemon.says("running", SOON);
    for (n, config) in configs.iter().cycle().take(20).enumerate() {
        write(config);
        daemon.process.signal("-HUP");
        // Each reload comes at another time, and possibly before the previous one is complete.
        let some = (n * PAYMENTS / 20).to_string();
        home.until(&format!("SELECT count(*) >= {some} FROM mails"), "1", SOON);
    }
    write(&broken);
    daemon.process.signal("-HUP");
    daemon.says("forward[0].broken", SOON);
    write(&last);
    daemon.process.signal("-HUP");
    payments::wait_until_complete(&home, &callback, PAYMENTS, SOON);
    assert!(callback.repeated().is_empty(), "{:?}", callback.repeated());
    dovecot.until_logged_in(&["payments@shop.example"], SOON);
    let status = home.run(&["status"]);
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stdout));
    assert_eq!(daemon.end(), Some(0));
}
