//! Asks Resmic's API for facts that are not in a mail, and judges the answers.
//!
//! `client` sends the requests, and `pace` limits their rate. `answer` parses the bodies. `judge` is pure: it decides from parsed
//! answers and the time, which are its arguments. The API may fail or change, so an answer with an undocumented form is an error,
//! and no statement about a payment.

mod answer;
mod client;
mod judge;
mod pace;
mod settings;

pub use answer::{PaymentStatus, SessionId, StatusAnswer, TransactionDetails};
pub use client::{ApiError, ResmicClient};
pub use judge::{
    AskedSession, Clearance, Finding, PaymentsOfSession, PreviousInquiries, SessionChoice, choose_session,
    clear_delivery, expiry, reconcile,
};
pub use pace::{Pace, Priority};
pub use settings::ResmicSettings;
