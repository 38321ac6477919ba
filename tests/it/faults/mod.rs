//! Faults of mail servers, networks and restarts, reproduced with a scripted server that lies, stalls and hangs up.

mod after;
mod cursor;
mod daemon;
mod dialects;
mod endurance;
mod fetching;
mod hostile;
mod idle;
mod login;
mod missing_mails;
mod notify;
mod own_process;
mod progress;
mod renewal;
mod renumbering;
mod shared_backfill;
mod start;
mod throttling;
mod undelivered;

use std::time::Duration;

use resmic_mailhook::source::imap::Timing;
use testkit::scripted::{Scripted, Step};
use testkit::watching::{Watching, quick, settings};

const DEDICATED: &str = "dedicated = true\nidle_renew = \"1m\"";
const SHARED: &str = "idle_renew = \"1m\"";

/// The server performs these steps on the `nth` occasion with this name, and responds as usual on all others.
fn once(server: &Scripted, name: &'static str, nth: usize, steps: &[Step]) {
    let steps = steps.to_vec();
    server.script(move |seen| if seen.name == name && seen.nth == nth { steps.clone() } else { vec![Step::Usual] });
}

/// The server performs these steps on each occasion with this name.
fn always(server: &Scripted, name: &'static str, steps: &[Step]) {
    let steps = steps.to_vec();
    server.script(move |seen| if seen.name == name { steps.clone() } else { vec![Step::Usual] });
}

fn say(text: &str) -> Step {
    Step::Say(text.to_owned())
}

fn watch(server: &Scripted, keys: &str) -> Watching {
    watch_in(server, keys, quick())
}

fn watch_in(server: &Scripted, keys: &str, timing: Timing) -> Watching {
    Watching::start(server, settings(server.port, keys), timing)
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}
