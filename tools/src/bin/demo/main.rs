//! `make demo`: payment mails arrive, become rows, and reach a handler, with real servers on loopback.
//!
//! The demo is a story in seven parts. It checks each fact that it prints, and ends with exit code 1 if one is wrong.
//! `make demo ALL=1` prints the outcome of every sample mail.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout)]

mod all;
mod chain;
mod screen;
mod story;

use std::time::Duration;

/// The longest wait for something that should happen.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() {
    let demo = match std::env::args().nth(1).as_deref() {
        None => story::tell,
        Some("--all") => all::list,
        Some(other) => {
            println!("demo: {other:?} is not known; expected --all, or nothing");
            std::process::exit(2);
        }
    };
    // If a fact is wrong, the demo panics. The panic is printed like a fact, with a cross.
    std::panic::set_hook(Box::new(|panic| println!("✗ {panic}")));
    let interrupted = tokio::signal::ctrl_c();
    tokio::select! {
        end = tokio::task::spawn_blocking(demo) => if end.is_err() {
            println!("\nThe demo has failed.");
            std::process::exit(1);
        },
        _ = interrupted => {
            println!("interrupted");
            // The servers are in this process group and have received the signal, too.
            std::process::exit(130);
        }
    }
}
