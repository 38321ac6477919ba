//! `make test-nats-cluster`: the servers of a NATS cluster are killed while payments arrive. In the test `stream`, the payments
//! go through the cluster to consumers. In the test `lease`, two hosts share a database by a lease in the cluster. An argument
//! selects one of the two tests.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout)]

mod lease;
mod load;
mod stream;

fn main() {
    let only = std::env::args().nth(1);
    let is_selected = |name: &str| only.as_ref().is_none_or(|only| only == name);
    let mut is_good = true;
    if is_selected("stream") {
        is_good &= stream::run();
    }
    if is_selected("lease") {
        is_good &= lease::run();
    }
    if !is_good {
        std::process::exit(1);
    }
}
