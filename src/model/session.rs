//! A registered session.

use jiff::Timestamp;

/// A session that the merchant registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredSession {
    /// Resmic's id of the session.
    pub session_id: String,
    /// The merchant's order reference.
    pub order_ref: Option<String>,
    /// US dollars, decimal text.
    pub amount: Option<String>,
    /// The requested chain.
    pub blockchain: Option<String>,
    /// The requested token.
    pub token: Option<String>,
    /// When the session was registered.
    pub created_at: Timestamp,
    /// After this time, the session is no longer matched by amount.
    pub expires_at: Option<Timestamp>,
}
