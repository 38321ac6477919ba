//! The fields of a notification, and the texts that are found as their values.

use super::explain::ValuePlace;

/// A field of a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum PaymentField {
    SessionId,
    Status,
    Amount,
    Blockchain,
    Token,
    Wallet,
    Hash,
    Time,
}

impl PaymentField {
    /// The webhook's key.
    pub(crate) const fn key(self) -> &'static str {
        match self {
            PaymentField::SessionId => "session_id",
            PaymentField::Status => "status",
            PaymentField::Amount => "amount",
            PaymentField::Blockchain => "blockchain",
            PaymentField::Token => "token",
            PaymentField::Wallet => "from_wallet_address",
            PaymentField::Hash => "transaction_hash",
            PaymentField::Time => "txTime",
        }
    }
}

/// A text that was found as the value of a field.
#[derive(Debug, Clone)]
pub(crate) struct FoundValue {
    pub(crate) field: PaymentField,
    /// Its label, folded; empty for a link.
    pub(crate) label: String,
    pub(crate) value: String,
    pub(crate) place: ValuePlace,
    /// In quoted or forwarded text.
    pub(crate) quoted: bool,
    pub(crate) position: ValuePosition,
}

/// The position of a value relative to its label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValuePosition {
    /// On the label's line, or in the next cell.
    Adjacent,
    /// On the line below, or on the same line after a label that only its font sets apart.
    Below,
    /// Under a key of an object.
    Key,
    /// In a link.
    Link,
    /// The label has no value.
    Empty,
}
