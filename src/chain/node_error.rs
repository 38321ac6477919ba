//! The errors of JSON-RPC calls to a node. [`NodeErrorKind`] has a variant for each case that a caller distinguishes.

use std::time::Duration;

/// The error of a JSON-RPC call to a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{host}: {method}: {kind}")]
pub struct NodeError {
    /// The node's host.
    pub host: String,
    /// The JSON-RPC method of the call.
    pub method: &'static str,
    /// The kind of the error.
    pub kind: NodeErrorKind,
}

/// The kind of an error. The texts are from the node or the system, with unprintable characters replaced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeErrorKind {
    /// An error that may be temporary: no connection, no answer in time, or an internal error of the node.
    #[error("{0}")]
    Unreachable(String),
    /// HTTP 429, HTTP 503 or the error −32005: too many calls.
    #[error("the node throttles us: {words}")]
    Throttled {
        /// The pause in `Retry-After`.
        retry_after: Option<Duration>,
        /// Whether an HTTP status reported the limit. The error −32005 may also mean a range of too many blocks.
        by_http: bool,
        /// The node's message.
        words: String,
    },
    /// HTTP 401, 402 or 403: a wrong key, or an exhausted quota. An operator must correct the key or the quota.
    #[error("the node refuses us: {0}; look at the key and the quota of its plan")]
    Refused(String),
    /// The node lacks the method. An operator must choose another node or setting.
    #[error("the node lacks this method: {0}")]
    NoMethod(String),
    /// The node has removed the requested part of the chain's history.
    #[error("the node has pruned this: {0}")]
    Pruned(String),
    /// A JSON-RPC or HTTP error for which no other variant exists.
    #[error("error {code}: {words}")]
    Rejected {
        /// The code of the JSON-RPC error, or the HTTP status.
        code: i64,
        /// The node's message.
        words: String,
    },
    /// An unusable answer: it has the id of another call, is not JSON, is too long, is a redirect, or has an impossible value.
    #[error("bad answer: {0}")]
    BadAnswer(String),
}

impl NodeError {
    /// Whether only an operator can solve the problem.
    #[must_use]
    pub fn needs_person(&self) -> bool {
        matches!(self.kind, NodeErrorKind::Refused(_) | NodeErrorKind::NoMethod(_))
    }

    /// Whether the error concerns all calls to the node, not only this call.
    #[must_use]
    pub fn is_of_node(&self) -> bool {
        matches!(self.kind, NodeErrorKind::Unreachable(_) | NodeErrorKind::Throttled { .. } | NodeErrorKind::Refused(_))
    }

    /// The pause that the node demands with `Retry-After`.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match &self.kind {
            NodeErrorKind::Throttled { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether `eth_getLogs` may succeed for a smaller range of blocks. Providers report their limit with different codes and
    /// texts.
    pub(super) fn may_be_the_range(&self) -> bool {
        match &self.kind {
            NodeErrorKind::Throttled { by_http, .. } => !by_http,
            NodeErrorKind::Refused(_) | NodeErrorKind::NoMethod(_) => false,
            NodeErrorKind::Unreachable(_)
            | NodeErrorKind::Pruned(_)
            | NodeErrorKind::Rejected { .. }
            | NodeErrorKind::BadAnswer(_) => true,
        }
    }
}

impl NodeErrorKind {
    /// The name of this kind of error in the metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            NodeErrorKind::Unreachable(_) => "unreachable",
            NodeErrorKind::Throttled { .. } => "throttled",
            NodeErrorKind::Refused(_) => "refused",
            NodeErrorKind::NoMethod(_) => "no-method",
            NodeErrorKind::Pruned(_) => "pruned",
            NodeErrorKind::Rejected { .. } => "rejected",
            NodeErrorKind::BadAnswer(_) => "bad-answer",
        }
    }

    pub(super) fn words_mut(&mut self) -> &mut String {
        match self {
            NodeErrorKind::Unreachable(words)
            | NodeErrorKind::Throttled { words, .. }
            | NodeErrorKind::Refused(words)
            | NodeErrorKind::NoMethod(words)
            | NodeErrorKind::Pruned(words)
            | NodeErrorKind::Rejected { words, .. }
            | NodeErrorKind::BadAnswer(words) => words,
        }
    }
}
