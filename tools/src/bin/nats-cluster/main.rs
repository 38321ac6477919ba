//! `make test-nats-cluster`: the servers of a NATS cluster are killed while payments arrive. `stream`: the payments go through
//! the cluster to consumers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout)]

mod load;
mod stream;

fn main() {
    if !stream::run() {
        std::process::exit(1);
    }
}
