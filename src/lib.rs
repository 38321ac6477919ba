//! Resmic Pro's payment mails, turned into the gateway's webhook events: IMAP in, SQLite kept, local HTTP out.
//!
//! The rooms, from the top: [`cli`] types and prints, [`app`] puts everything together, [`config`] reads what is
//! wanted, [`setup`] makes a first configuration, [`ingest`] and [`forward`] are the two loops, [`source`] is where mails
//! come from, [`examine`] says what becomes of one ([`trust`]: is it Resmic's? [`extract`]: what does it say?),
//! [`payments`] decides what a payment report means beside the known ones, [`db`] stores it, [`chain`] asks nodes whether
//! the money arrived, and [`model`] has the shared types. A room imports only from below.

pub mod app;
pub mod backoff;
pub mod catch_panic;
pub mod chain;
pub mod cli;
pub mod config;
pub mod db;
pub mod examine;
pub mod extract;
pub mod forward;
pub mod health;
pub mod heartbeat;
pub mod http;
pub mod ingest;
pub mod loopback;
pub mod metrics;
pub mod model;
pub mod payments;
pub mod resmic;
pub mod secret;
pub mod setup;
pub mod source;
pub mod systemd;
pub mod telemetry;
pub mod tls;
pub mod trust;
pub mod units;
pub mod vigil;
