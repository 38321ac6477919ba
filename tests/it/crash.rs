//! The daemon is killed again and again at random times, while mails arrive and events are delivered. Nothing is lost or
//! duplicated.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use testkit::callback::{Callback, HandlerReply};
use testkit::daemon::{ACCEPT_UNSIGNED, Home, account, forward};
use testkit::dovecot::Dovecot;
use testkit::payments::{self, payment};
use testkit::random::Random;

const KILLS: u64 = 200;
const ADDRESS: &str = "payments@shop.example";

/// Delivers mails in small bursts until `stop` is set, and counts them in `sent`.
fn deliver_until(stop: &AtomicBool, dovecot: &Dovecot, random: &Random, sent: &AtomicUsize) {
    while !stop.load(Ordering::SeqCst) {
        let first = sent.load(Ordering::SeqCst) + 1;
        let count = 1 + random.below(8) as usize;
        let mails: Vec<_> = (first..first + count).map(payment).collect();
        dovecot.deliver_all(ADDRESS, mails.iter().map(Vec::as_slice));
        sent.fetch_add(count, Ordering::SeqCst);
        // In these pauses, the program catches up or is idle.
        std::thread::sleep(random.moment(Duration::from_millis(150)));
    }
}

/// Starts the daemon and kills it after a random time: during its start, its first sync, or its work.
fn run_and_kill(home: &Home, random: &Random) {
    let daemon = home.start();
    let longest = [20, 60, 200, 600][random.below(4) as usize];
    std::thread::sleep(random.moment(Duration::from_millis(longest)));
    daemon.kill();
}

#[test]
fn two_hundred_kills_neither_lose_nor_duplicate_payments() {
    let (dovecot, random) = (Dovecot::start(), Arc::new(Random::from_environment()));
    let chance = random.clone();
    let callback = Callback::replying(move |_, before| match chance.below(10) {
        0 if before == 0 => HandlerReply::Refuse,
        1 if before == 0 => HandlerReply::HangUp,
        2..5 => HandlerReply::AcceptLate(chance.moment(Duration::from_millis(100))),
        _ => HandlerReply::Accept,
    });
    let home = Home::new(&format!(
        "{}{ACCEPT_UNSIGNED}{}",
        account(dovecot.imap, "dedicated = true\nidle_renew = \"1s\""),
        forward(&callback.url(), "")
    ));
    let (stop, sent, began) = (AtomicBool::new(false), AtomicUsize::new(0), Instant::now());
    let mut at_work = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| deliver_until(&stop, &dovecot, &random, &sent));
        let _stop = Stop(&stop);
        for _ in 0..KILLS {
            let before = callback.posts().len();
            run_and_kill(&home, &random);
            at_work += usize::from(callback.posts().len() > before);
        }
    });
    let (sent, repeated) = (sent.into_inner(), callback.repeated().len());
    println!(
        "{KILLS} kills in {:?}; {at_work} while it delivered; {sent} mails; {repeated} posted again",
        began.elapsed()
    );
    assert!(at_work > 20, "it was killed before it did anything");
    let daemon = home.start();
    payments::wait_until_complete(&home, &callback, sent, Duration::from_secs(60));
    assert_eq!(home.ask("SELECT count(*) FROM mails"), sent.to_string(), "no mail was recorded twice");
    assert_eq!(daemon.end(), Some(0));
}

/// Sets the flag when it is dropped, so that the thread also ends if an assertion fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
