#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]
mod support;
use std::time::{Duration, Instant};
use support::books::{self, payment};
use support::callback::{Callback, Reply};
use support::daemon::{Home, account, forward};
use support::dovecot::Dovecot;
const NO_PROOF: &str = "[trust]\naccept = [\"none\"]\n";
const SOON: Duration = Duration::from_secs(60);
const ADDRESS: &str = "payments@shop.example";

fn write(home: &Home, text: &str) {
    std::fs::write(home.folder.path().join("config.toml"), text).unwrap();
}
fn second(imap: u16, more: &str) -> String {
    account(imap, more).replace("\"shop\"", "\"second\"").replace("payments@shop.example", "second@shop.example")
}

#[test]
fn reloads_in_a_backfill() {
    let dovecot = Dovecot::start();
    let callback =
        Callback::that(|n, _| if n % 50 == 7 { Reply::AcceptLate(Duration::from_millis(300)) } else { Reply::Accept });
    let n = 3000;
    let mails: Vec<_> = (1..=n).map(payment).collect();
    dovecot.deliver_all(ADDRESS, mails.iter().map(Vec::as_slice));
    let base = account(dovecot.imap, "dedicated = true\nmailboxes = [\"INBOX\"]\nidle_renew = \"1s\"");
    let fw = forward(&callback.url(), "");
    let configs = [
        format!("{base}{NO_PROOF}{fw}"),
        format!("{base}{}{NO_PROOF}{fw}", second(dovecot.imap, "")),
        format!("{}{NO_PROOF}{fw}", account(dovecot.imap, "dedicated = false\nmailboxes = [\"INBOX\", \"\\\\Junk\"]")),
        format!("{base}{NO_PROOF}{fw}\nbroken = 3\n"),
        format!("{}{base}{NO_PROOF}{fw}", second(dovecot.imap, "idle_renew = \"2s\"")),
    ];
    let home = Home::new(&configs[0]);
    let daemon = home.start();
    daemon.says("running", SOON);
    let began = Instant::now();
    let mut reloads = 0;
    while began.elapsed() < SOON {
        let done = home.try_ask("SELECT count(*) FROM deliveries WHERE state = 'delivered'").unwrap_or_default();
        if done == n.to_string() {
            break;
        }
        reloads += 1;
        write(&home, &configs[reloads % configs.len()]);
        daemon.process.signal("-HUP");
        if reloads % 7 == 0 {
            daemon.process.signal("-HUP");
        }
        std::thread::sleep(Duration::from_millis(37 * (reloads as u64 % 11)));
    }
    println!("{reloads} reloads in {:?}; repeated {:?}", began.elapsed(), callback.repeated().len());
    write(&home, &configs[0]);
    daemon.process.signal("-HUP");
    books::balance(&home, &callback, n, SOON);
    std::thread::sleep(Duration::from_secs(3));
    let who = std::process::Command::new("doveadm")
        .arg("-c")
        .arg(dovecot.folder.path().join("dovecot.conf"))
        .arg("who")
        .output()
        .unwrap();
    println!("{}", String::from_utf8_lossy(&who.stdout));
    let s = home.run(&["status"]);
    println!("{}", String::from_utf8_lossy(&s.stdout));
    let fds = std::fs::read_dir(format!("/proc/{}/fd", daemon.process.id())).unwrap().count();
    let threads = std::fs::read_dir(format!("/proc/{}/task", daemon.process.id())).unwrap().count();
    println!("fds {fds} threads {threads}");
    let log = daemon.log();
    for l in log.lines().filter(|l| !l.contains("mail: ") && !l.contains("delivered")).take(60) {
        println!("{l}");
    }
    println!("did not close: {}", log.matches("did not close").count());
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn a_slow_callback_at_a_reload() {
    let dovecot = Dovecot::start();
    let callback = Callback::that(|_, _| Reply::AcceptLate(Duration::from_secs(5)));
    let base = account(dovecot.imap, "dedicated = true\nmailboxes = [\"INBOX\"]\nidle_renew = \"1s\"");
    let home = Home::new(&format!("{base}{NO_PROOF}{}", forward(&callback.url(), "")));
    let daemon = home.start();
    dovecot.deliver(ADDRESS, &payment(1));
    while callback.came().is_empty() {
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon.process.signal("-HUP");
    home.until("SELECT count(*) FROM deliveries WHERE state = 'delivered'", "1", SOON);
    println!("came {:?}", callback.came());
    println!("{}", daemon.log());
    println!("{:?}", home.column("SELECT attempt || ' ' || coalesce(error, '-') FROM attempts"));
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn replaced_then_sigterm() {
    let dovecot = Dovecot::start();
    let callback = Callback::start();
    let base = account(dovecot.imap, "dedicated = true\nmailboxes = [\"INBOX\"]\nidle_renew = \"1s\"");
    let home = Home::new(&format!("{base}{NO_PROOF}{}", forward(&callback.url(), "")));
    let daemon = home.start();
    let mails: Vec<_> = (1..=20).map(payment).collect();
    dovecot.deliver_all(ADDRESS, mails.iter().map(Vec::as_slice));
    books::balance(&home, &callback, 20, SOON);
    let copy = home.folder.path().join("copy.db");
    home.data(&["backup", copy.to_str().unwrap()]);
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(home.folder.path().join(format!("mailhook.db{end}")));
    }
    std::fs::copy(&copy, home.database()).unwrap();
    let other = rusqlite::Connection::open(home.database()).unwrap();
    other.execute_batch("PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; INSERT INTO sessions(session_id) VALUES ('591abe63-aa61-411d-a419-0b546729bbd0')").unwrap();
    println!(
        "{:?}",
        std::fs::read_dir(home.folder.path())
            .unwrap()
            .map(|e| {
                let e = e.unwrap();
                (e.file_name(), e.metadata().unwrap().len())
            })
            .collect::<Vec<_>>()
    );
    assert_eq!(daemon.end(), Some(0));
    println!(
        "{:?}",
        std::fs::read_dir(home.folder.path())
            .unwrap()
            .map(|e| {
                let e = e.unwrap();
                (e.file_name(), e.metadata().unwrap().len())
            })
            .collect::<Vec<_>>()
    );
    let wal = home.folder.path().join("mailhook.db-wal");
    assert!(wal.exists(), "the new file's wal is gone");
}

#[test]
fn replaced_by_mv_while_it_runs() {
    let dovecot = Dovecot::start();
    let callback = Callback::start();
    let base = account(dovecot.imap, "dedicated = true\nmailboxes = [\"INBOX\"]\nidle_renew = \"1s\"");
    let home = Home::new(&format!("{base}{NO_PROOF}{}", forward(&callback.url(), "")));
    let daemon = home.start();
    let mails: Vec<_> = (1..=200).map(payment).collect();
    dovecot.deliver_all(ADDRESS, mails.iter().take(100).map(Vec::as_slice));
    books::balance(&home, &callback, 100, SOON);
    let copy = home.folder.path().join("copy.db");
    home.data(&["backup", copy.to_str().unwrap()]);
    dovecot.deliver_all(ADDRESS, mails.iter().skip(100).map(Vec::as_slice));
    books::balance(&home, &callback, 200, SOON);
    std::fs::rename(&copy, home.database()).unwrap();
    println!(
        "{:?}",
        std::fs::read_dir(home.folder.path())
            .unwrap()
            .map(|e| {
                let e = e.unwrap();
                (e.file_name(), e.metadata().unwrap().len())
            })
            .collect::<Vec<_>>()
    );
    let mut daemon = daemon;
    let began = Instant::now();
    println!("exit {:?} after {:?}", daemon.process.wait(Duration::from_secs(90)), began.elapsed());
    println!("{}", daemon.log().lines().rev().take(3).collect::<Vec<_>>().join("\n"));
    let daemon = home.start();
    std::thread::sleep(Duration::from_secs(3));
    println!("{:?}", home.try_ask("PRAGMA integrity_check"));
    println!("{:?}", home.try_ask("SELECT count(*) FROM events"));
    let s = home.run(&["status"]);
    println!("{}", String::from_utf8_lossy(&s.stdout));
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn two_names() {
    let base = account(1, "mailboxes = [\"INBOX\"]");
    let home = Home::new(&base);
    let daemon = home.start();
    daemon.says("running", SOON);
    std::os::unix::fs::symlink(home.database(), home.folder.path().join("other.db")).unwrap();
    write(&home, &format!("{base}[store]\npath = \"other.db\"\n"));
    let mut two = home.start();
    std::thread::sleep(Duration::from_secs(2));
    println!("{}", two.log());
    assert!(two.process.has_ended());
    daemon.end();
}

fn mv_variant(status_first: bool, term: bool) {
    let dovecot = Dovecot::start();
    let callback = Callback::start();
    let base = account(dovecot.imap, "dedicated = true\nmailboxes = [\"INBOX\"]\nidle_renew = \"9m\"");
    let home = Home::new(&format!("{base}{NO_PROOF}{}", forward(&callback.url(), "")));
    let mut daemon = home.start();
    let mails: Vec<_> = (1..=200).map(payment).collect();
    dovecot.deliver_all(ADDRESS, mails.iter().take(100).map(Vec::as_slice));
    books::balance(&home, &callback, 100, SOON);
    let copy = home.folder.path().join("copy.db");
    home.data(&["backup", copy.to_str().unwrap()]);
    dovecot.deliver_all(ADDRESS, mails.iter().skip(100).map(Vec::as_slice));
    books::balance(&home, &callback, 200, SOON);
    std::fs::rename(&copy, home.database()).unwrap();
    if status_first {
        println!("{}", String::from_utf8_lossy(&home.run(&["status"]).stdout));
    }
    if term {
        daemon.process.signal("-TERM");
    }
    println!("exit {:?}", daemon.process.wait(Duration::from_secs(90)));
    println!("{}", daemon.log().lines().rev().take(3).collect::<Vec<_>>().join("\n"));
    let daemon = home.start();
    println!("integrity {:?}", home.try_ask("PRAGMA integrity_check"));
    books::balance(&home, &callback, 200, SOON);
    assert_eq!(daemon.end(), Some(0));
}
#[test]
fn mv_a() {
    mv_variant(false, false)
}
#[test]
fn mv_b() {
    mv_variant(false, true)
}
#[test]
fn mv_c() {
    mv_variant(true, true)
}
#[test]
fn mv_d() {
    mv_variant(true, false)
}
#[test]
fn long_reader() {
    let dovecot = Dovecot::start();
    let callback = Callback::start();
    let base = account(dovecot.imap, "dedicated = true\nmailboxes = [\"INBOX\"]\nidle_renew = \"9m\"");
    let home = Home::new(&format!("{base}{NO_PROOF}{}", forward(&callback.url(), "")));
    let daemon = home.start();
    let other = {
        home.until("SELECT state FROM mailboxes", "idle", SOON);
        home.sqlite()
    };
    other.execute_batch("BEGIN; SELECT * FROM mails").unwrap();
    let mails: Vec<_> = (1..=100)
        .map(|n| {
            let mut m = payment(n);
            m.extend(format!("\r\n{}\r\n", "abcdefghi\r\n".repeat(90_000)).into_bytes());
            m
        })
        .collect();
    dovecot.deliver_all(ADDRESS, mails.iter().map(Vec::as_slice));
    daemon.says("reads the database without an end", SOON);
    home.until("SELECT count(*) FROM mails", "100", SOON);
    let s = home.run(&["status"]);
    println!("{}", String::from_utf8_lossy(&s.stdout));
    other.execute_batch("COMMIT").unwrap();
    dovecot.deliver(ADDRESS, &payment(101));
    home.until("SELECT count(*) FROM mails", "101", SOON);
    std::thread::sleep(Duration::from_secs(1));
    dovecot.deliver(ADDRESS, &payment(102));
    home.until("SELECT count(*) FROM mails", "102", SOON);
    let s = home.run(&["status"]);
    println!("{}", String::from_utf8_lossy(&s.stdout));
    println!("{:?}", std::fs::metadata(home.folder.path().join("mailhook.db-wal")).unwrap().len());
    println!("{}", daemon.log().lines().filter(|l| l.contains("WARN")).collect::<Vec<_>>().join("\n"));
    assert_eq!(daemon.end(), Some(0));
}
