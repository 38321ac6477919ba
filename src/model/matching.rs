//! How sessions are matched.

/// How sessions are matched by what was paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matching {
    /// Off by default: two customers may owe the same amount.
    pub enabled: bool,
    /// How long after its registration a session may still be matched.
    pub window: std::time::Duration,
}
