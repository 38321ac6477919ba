//! Resmic Pro's payment mails, turned into the gateway's webhook events: IMAP in, SQLite kept, local HTTP out.
//!
//! The rooms, from the top: [`cli`] types and prints, [`app`] puts everything together, [`config`] reads what is
//! wanted, [`ingest`] and [`forward`] are the two loops, [`source`] is where mails come from, [`examine`] says what
//! becomes of one ([`trust`]: is it Resmic's? [`extract`]: what does it say?), [`store`] keeps it, [`chain`] asks
//! nodes whether the money arrived, [`ledger`] and [`session`] say what it means beside what is known, and [`model`] has
//! the words. A room imports only from below.

pub mod app;
pub mod backoff;
pub mod chain;
pub mod cli;
pub mod config;
pub mod contain;
pub mod examine;
pub mod extract;
pub mod forward;
pub mod health;
pub mod http;
pub mod ingest;
pub mod ledger;
pub mod metrics;
pub mod model;
pub mod pulse;
pub mod resmic;
pub mod secret;
pub mod session;
pub mod source;
pub mod store;
pub mod systemd;
pub mod telemetry;
pub mod tls;
pub mod trust;
pub mod units;
pub mod vigil;
