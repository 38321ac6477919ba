//! Resmic Pro's payment mails, turned into the gateway's webhook events: IMAP in, SQLite kept, local HTTP out.

pub mod backoff;
pub mod extract;
pub mod ledger;
pub mod model;
pub mod secret;
pub mod session;
pub mod source;
pub mod store;
pub mod tls;
pub mod trust;
pub mod units;
