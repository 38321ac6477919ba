//! The spellings of labels. The configuration can add more.

use std::collections::{HashMap, HashSet};

use super::{Field, Labels};

/// Each field with the spellings of its label: the webhook's key and names for people, folded by [`fold`].
const SPELLINGS: &[(Field, &[&str])] = &[
    (
        Field::SessionId,
        &["sessionid", "session", "paymentsession", "paymentsessionid", "checkoutsession", "checkoutsessionid"],
    ),
    (Field::Status, &["status", "paymentstatus", "state", "transactionstatus", "paymentstate"]),
    (
        Field::Amount,
        &[
            "amount",
            "received",
            "amountreceived",
            "receivedamount",
            "amountpaid",
            "paidamount",
            "paymentamount",
            "total",
            "totalamount",
            "totalpaid",
            "totalreceived",
            "amountusd",
            "amountinusd",
            "amountpaidusd",
            "amountreceivedusd",
            "paymentamountusd",
            "totalusd",
            "totalamountusd",
            "usdamount",
            "youreceived",
            "paid",
        ],
    ),
    (
        Field::Blockchain,
        &[
            "blockchain",
            "chain",
            "network",
            "blockchainname",
            "chainname",
            "networkname",
            "blockchainnetwork",
            "paymentnetwork",
        ],
    ),
    (
        Field::Token,
        &[
            "token",
            "tokensymbol",
            "tokenname",
            "coin",
            "asset",
            "crypto",
            "cryptocurrency",
            "paymenttoken",
            "paidwith",
            "paidin",
        ],
    ),
    (
        Field::Wallet,
        &[
            "fromwalletaddress",
            "from",
            "fromaddress",
            "fromwallet",
            "walletaddress",
            "wallet",
            "payer",
            "payerwallet",
            "payeraddress",
            "payerwalletaddress",
            "sender",
            "senderaddress",
            "senderwallet",
            "senderwalletaddress",
            "paidfrom",
            "paidby",
            "customerwallet",
            "customerwalletaddress",
            "payerswallet",
            "payersaddress",
            "payerswalletaddress",
            "senderswallet",
            "sendersaddress",
            "senderswalletaddress",
            "customerswallet",
            "buyerwallet",
            "buyerswallet",
        ],
    ),
    (
        Field::Hash,
        &[
            "transactionhash",
            "txhash",
            "hash",
            "transaction",
            "tx",
            "txid",
            "transactionid",
            "paymenthash",
            "transactionreference",
            "txnhash",
            "txn",
        ],
    ),
    (
        Field::Time,
        &[
            "txtime",
            "time",
            "date",
            "transactiontime",
            "transactiondate",
            "paymenttime",
            "paymentdate",
            "datetime",
            "datetimeutc",
            "timeutc",
            "dateutc",
            "transactiontimeutc",
            "transactiondatetime",
            "paymentdatetime",
            "datetimeofpayment",
            "dateandtime",
            "dateofpayment",
            "timeofpayment",
            "timestamp",
            "paidat",
            "paidon",
            "completedat",
            "receivedat",
            "receivedon",
            "transactiondateandtime",
        ],
    ),
];

/// All labels, by their folded spelling.
pub(super) struct Table {
    fields: HashMap<String, Field>,
    configured: HashSet<String>,
    /// The length of the longest label in bytes.
    longest: usize,
}

impl Table {
    pub(super) fn new(more: &Labels) -> Self {
        let mut table = HashMap::new();
        for (field, spellings) in SPELLINGS {
            table.extend(spellings.iter().map(|s| ((*s).to_owned(), *field)));
        }
        let mut configured = HashSet::new();
        for (field, spellings) in more.by_field() {
            table.extend(spellings.iter().map(|s| (fold(s), field)));
            configured.extend(spellings.iter().map(|s| fold(s)));
        }
        let longest = table.keys().map(String::len).max().unwrap_or_default();
        Table { fields: table, configured, longest }
    }

    /// Whether the configuration names this folded label.
    pub(super) fn is_configured(&self, label: &str) -> bool {
        self.configured.contains(label)
    }

    /// The field of this label. The text must contain nothing else.
    pub(super) fn field(&self, text: &str) -> Option<Field> {
        // Labels are short. Folding prose would cost time.
        if text.len() > 120 {
            return None;
        }
        let label = fold_up_to(text, self.longest)?;
        self.fields.get(&label).copied()
    }
}

/// Folds a label for comparing: letters and digits in lower case. Spacing, punctuation and emoji do not matter.
pub(super) fn fold(text: &str) -> String {
    fold_up_to(text, usize::MAX).unwrap_or_default()
}

/// Folds a label, or stops with `None` when the result is longer than every label.
fn fold_up_to(text: &str, longest: usize) -> Option<String> {
    let mut label = String::with_capacity(text.len().min(longest));
    for c in text.chars().filter(|c| c.is_alphanumeric()) {
        match c {
            _ if label.len() >= longest => return None,
            c if c.is_ascii() => label.push(c.to_ascii_lowercase()),
            c => label.extend(c.to_lowercase()),
        }
    }
    Some(label)
}

/// Adds the currency of a label such as `Amount (USD)` to its value.
pub(super) fn with_currency(field: Field, label: &str, value: &str) -> String {
    let named = field == Field::Amount && fold(label).contains("usd");
    if named && !value.contains('$') && !value.contains("USD") {
        return format!("{value} USD");
    }
    value.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_known_in_any_dress_and_prose_is_none() {
        let table = Table::new(&Labels { amount: vec!["Betrag (USD)".into()], ..Labels::default() });
        for text in ["Transaction Hash", "transaction_hash", "💸 TRANSACTION-HASH:", "*Transaction hash*"] {
            assert_eq!(table.field(text), Some(Field::Hash), "{text}");
        }
        assert_eq!(table.field("betrag usd"), Some(Field::Amount));
        assert_eq!(table.field("The amount you received"), None);
        assert_eq!(table.field(""), None);
        assert!(table.is_configured("betragusd") && !table.is_configured("amount"));
    }
}
