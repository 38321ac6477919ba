//! Turns Resmic Pro's payment mails into the gateway's webhook events: IMAP in, SQLite in between, local HTTP out.
//!
//! These are the main rooms (top-level modules), from the top. A room imports only from rooms below it; ARCHITECTURE.md has the
//! table of all rooms.
//!
//! - [`cli`] parses arguments and prints. [`app`] builds and supervises everything. [`config`] parses the configuration, and
//!   [`setup`] writes a first configuration.
//! - [`ingest`] and [`forward`] are the main loops: the first makes events from mails, the second delivers events to handlers.
//! - [`source`] reads mails from mailboxes and files.
//! - [`examine`] decides the outcome of a mail: [`trust`] authenticates it, and [`extract`] parses it.
//! - [`payments`] compares a reported payment with the stored ones. [`db`] is the database.
//! - [`chain`] asks blockchain nodes whether the money arrived.
//! - [`model`] has the shared types.

pub mod app;
pub mod backoff;
pub mod boot_clock;
pub mod catch_panic;
pub mod chain;
pub mod cli;
pub mod config;
pub mod configured_text;
pub mod confirm;
pub mod db;
pub mod examine;
pub mod extract;
pub mod forward;
pub mod health;
pub mod heartbeat;
pub mod http;
pub mod ingest;
pub mod inquire;
pub mod loopback;
pub mod metrics;
pub mod model;
pub mod nats;
pub mod payments;
pub mod resmic;
pub mod secret;
pub mod sending_permit;
pub mod setup;
pub mod source;
pub mod standby;
pub mod systemd;
pub mod telemetry;
pub mod tls;
pub mod trust;
pub mod units;
pub mod url_authority;
