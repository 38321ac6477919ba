//! Settings of session matching.

/// Whether and how an event without a session is matched with a registered one, by amount, chain and token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matching {
    /// Off by default, because two customers can owe the same amount.
    pub enabled: bool,
    /// The time after its registration in which a session can be matched.
    pub window: std::time::Duration,
}
