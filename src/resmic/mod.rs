//! Resmic's API: asks what a mail does not say, and judges the answers.
//!
//! `client` sends the requests, at the `pace` that the `settings` allow. `answer` parses the bodies. `judge` is pure: it
//! takes parsed answers and the time as arguments, and it decides. The API is another party's server, so an answer that is
//! not exactly as documented decides nothing.

mod answer;
mod client;
mod judge;
mod pace;
mod settings;

pub use answer::{PaymentStatus, SessionId, StatusAnswer, TransactionDetails};
pub use client::{ApiError, ResmicClient};
pub use judge::{
    Clearance, Finding, PaymentsOfSession, PreviousLooks, Registration, SessionChoice, choose_session, clear_delivery,
    expiry, reconcile,
};
pub use pace::{Pace, Priority};
pub use settings::ResmicSettings;
