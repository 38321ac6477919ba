//! Settings of session matching.

/// Whether and how an event without a session is matched with a registered session, by amount, chain and token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matching {
    /// Whether sessions are matched. Off by default, because two customers can owe the same amount.
    pub enabled: bool,
    /// How long a session can be matched, from its registration on.
    pub window: std::time::Duration,
}
