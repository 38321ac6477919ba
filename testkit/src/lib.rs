//! Servers, signers and fakes for the integration tests, the benchmarks, the demo and the soak test.

#![allow(missing_docs)] // simple getters need no documentation
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

pub mod anvil;
pub mod callback;
pub mod certificate;
pub mod client;
pub mod counts;
pub mod courier;
pub mod cyrus;
pub mod daemon;
pub mod disk;
pub mod dkim;
pub mod dns;
pub mod dovecot;
pub mod examined;
pub mod handlers;
pub mod lmtp;
pub mod nats_cluster;
pub mod nats_consumers;
pub mod nats_server;
pub mod node;
pub mod paid;
pub mod payments;
pub mod process;
pub mod proxy;
pub mod random;
pub mod receiver;
pub mod resmic_api;
pub mod scripted;
pub mod scripted_nats;
pub mod shop;
pub mod tokens;
pub mod unpacked_servers;
pub mod watching;

/// The project's folder.
#[must_use]
pub fn project() -> &'static std::path::Path {
    std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
