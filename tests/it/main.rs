//! All integration tests in one program, which links once and shares its threads.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

mod addresses;
mod api_events;
mod authorize;
mod chain;
mod checkout;
mod commands;
mod configuration;
mod confirm;
mod contradictions;
mod counts;
mod crash;
mod database;
mod dns;
mod documents;
mod end_to_end;
mod faults;
mod forward;
mod init;
mod inquire;
mod inquiry_pace;
mod metrics;
mod nats_consumers;
mod network_faults;
mod oauth;
mod picture;
mod quarantine;
mod quiet;
mod read_only_user;
mod reading;
mod reload;
mod renumbered;
mod resmic_api;
mod restored_database;
mod rooms;
mod sample_mails;
mod servers;
mod sessions;
mod signals;
mod standby;
mod three_holds;
mod trust;
mod undelivered;
mod waiting;
