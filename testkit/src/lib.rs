//! What the tests that need real servers stand on, and the demo too.

#![allow(missing_docs)] // simple getters need none
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

/// A real EVM node.
pub mod anvil;
pub mod callback;
pub mod certificate;
pub mod client;
pub mod courier;
pub mod cyrus;
pub mod daemon;
pub mod disk;
pub mod dkim;
pub mod dns;
pub mod dovecot;
pub mod handlers;
pub mod lmtp;
/// A scripted EVM node.
pub mod node;
/// Mails about payments on a chain.
pub mod paid;
/// What was delivered, held against what came of it.
pub mod payments;
pub mod process;
pub mod proxy;
pub mod random;
/// A callback that remembers what it was sent.
pub mod receiver;
pub mod resmic_api;
pub mod scripted;
pub mod tokens;
/// Where the servers are that cannot be installed beside Dovecot.
pub mod unpacked_servers;
pub mod watching;

/// The project's folder.
#[must_use]
pub fn project() -> &'static std::path::Path {
    std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
