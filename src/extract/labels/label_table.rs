//! The labels of a payment's fields in mails: built-in spellings, and the spellings in `[extract.labels]`.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;

use crate::extract::field::PaymentField;

/// Each field with the spellings of its label: its key in the webhook's JSON, and names in mails, folded by [`fold_label`].
const SPELLINGS: &[(PaymentField, &[&str])] = &[
    (
        PaymentField::SessionId,
        &["sessionid", "session", "paymentsession", "paymentsessionid", "checkoutsession", "checkoutsessionid"],
    ),
    (PaymentField::Status, &["status", "paymentstatus", "state", "transactionstatus", "paymentstate"]),
    (
        PaymentField::Amount,
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
        PaymentField::Blockchain,
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
        PaymentField::Token,
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
        PaymentField::Wallet,
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
        PaymentField::Hash,
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
        PaymentField::Time,
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

/// `[extract.labels]`: more spellings of labels, in case Resmic changes its mails. The built-in spellings stay valid.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
#[allow(missing_docs)]
pub struct LabelSettings {
    pub session_id: Vec<String>,
    pub status: Vec<String>,
    pub amount: Vec<String>,
    pub blockchain: Vec<String>,
    pub token: Vec<String>,
    pub from_wallet_address: Vec<String>,
    pub transaction_hash: Vec<String>,
    #[serde(rename = "txTime")]
    pub tx_time: Vec<String>,
}

impl LabelSettings {
    fn by_field(&self) -> [(PaymentField, &[String]); 8] {
        [
            (PaymentField::SessionId, &self.session_id),
            (PaymentField::Status, &self.status),
            (PaymentField::Amount, &self.amount),
            (PaymentField::Blockchain, &self.blockchain),
            (PaymentField::Token, &self.token),
            (PaymentField::Wallet, &self.from_wallet_address),
            (PaymentField::Hash, &self.transaction_hash),
            (PaymentField::Time, &self.tx_time),
        ]
    }

    /// Checks that each label has a letter or digit and belongs to one field.
    ///
    /// # Errors
    /// The field's key in the webhook's JSON, and the reason why one of its labels is wrong.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        let built_in = LabelTable::new(&LabelSettings::default());
        let mut configured = HashMap::new();
        for (field, spellings) in self.by_field() {
            let wrong = |message: String| Err((field.key(), message));
            for spelling in spellings {
                let label = fold_label(spelling);
                if label.is_empty() {
                    return wrong(format!("{spelling:?} has no letter or digit"));
                }
                if let Some(other) = built_in.field_of(spelling).filter(|other| *other != field) {
                    return wrong(format!("{spelling:?} is already a label of {}", other.key()));
                }
                if let Some(other) = configured.insert(label, field).filter(|other| *other != field) {
                    return wrong(format!("{spelling:?} is also configured for {}", other.key()));
                }
            }
        }
        Ok(())
    }
}

/// The known labels: the field of each label, by the label's folded spelling.
pub(crate) struct LabelTable {
    fields: HashMap<String, PaymentField>,
    /// The folded labels of `[extract.labels]`.
    configured: HashSet<String>,
    /// The length of the longest label in bytes.
    longest: usize,
}

impl LabelTable {
    pub(crate) fn new(settings: &LabelSettings) -> Self {
        let mut fields = HashMap::new();
        for (field, spellings) in SPELLINGS {
            fields.extend(spellings.iter().map(|s| ((*s).to_owned(), *field)));
        }
        let mut configured = HashSet::new();
        for (field, spellings) in settings.by_field() {
            fields.extend(spellings.iter().map(|s| (fold_label(s), field)));
            configured.extend(spellings.iter().map(|s| fold_label(s)));
        }
        let longest = fields.keys().map(String::len).max().unwrap_or_default();
        LabelTable { fields, configured, longest }
    }

    /// Whether `[extract.labels]` contains the folded label `label`.
    pub(crate) fn is_configured(&self, label: &str) -> bool {
        self.configured.contains(label)
    }

    /// Returns the field whose label is `text`. `None` if the folded text is not a known label.
    pub(crate) fn field_of(&self, text: &str) -> Option<PaymentField> {
        // Labels are short. Longer texts are not folded, to save time.
        if text.len() > 120 {
            return None;
        }
        let label = fold_up_to(text, self.longest)?;
        self.fields.get(&label).copied()
    }
}

/// Folds a label for comparing: keeps only its letters and digits, in lower case. Spacing, punctuation and emoji do not matter.
pub(crate) fn fold_label(text: &str) -> String {
    fold_up_to(text, usize::MAX).unwrap_or_default()
}

/// Folds a label. Returns `None` if another letter or digit follows when the folded label already has `longest` bytes.
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

/// Adds the currency of a label such as `Amount (USD)` to its value, unless the value names the dollar already.
pub(crate) fn with_currency(field: PaymentField, label: &str, value: &str) -> String {
    let names_dollars = field == PaymentField::Amount && fold_label(label).contains("usd");
    if names_dollars && !value.contains('$') && !value.contains("USD") {
        return format!("{value} USD");
    }
    value.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_match_without_case_and_punctuation() {
        let table = LabelTable::new(&LabelSettings { amount: vec!["Betrag (USD)".into()], ..LabelSettings::default() });
        for text in ["Transaction Hash", "transaction_hash", "💸 TRANSACTION-HASH:", "*Transaction hash*"] {
            assert_eq!(table.field_of(text), Some(PaymentField::Hash), "{text}");
        }
        assert_eq!(table.field_of("betrag usd"), Some(PaymentField::Amount));
        assert_eq!(table.field_of("The amount you received"), None);
        assert_eq!(table.field_of(""), None);
        assert!(table.is_configured("betragusd") && !table.is_configured("amount"));
    }
}
