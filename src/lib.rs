//! Resmic Pro's payment mails, turned into the gateway's webhook events: IMAP in, SQLite kept, local HTTP out.

pub mod extract;
pub mod model;
pub mod trust;
