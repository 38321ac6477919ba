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
    /// The name of the field in the webhook's JSON.
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
    /// The label of the value, folded by `fold_label`; empty if the value is from a link.
    pub(crate) label: String,
    pub(crate) value: String,
    pub(crate) place: ValuePlace,
    /// Whether the value is in quoted or forwarded text.
    pub(crate) quoted: bool,
    pub(crate) position: ValuePosition,
}

/// The position of a value relative to its label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValuePosition {
    /// The value is on the label's line, in the next cell, or in the label's column.
    Adjacent,
    /// The value is on the line below the label, or on the same line if only the font separates it from the label.
    Below,
    /// The value is under a key of a JSON or JavaScript object.
    Key,
    /// The value is in a link.
    Link,
    /// The label has no value.
    Empty,
}
