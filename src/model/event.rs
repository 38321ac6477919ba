//! The content of a notification, in the webhook's model.

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use super::enums::Status;
use super::normalize::{fold_chain, fold_hash, iso, webhook_time};

/// The namespace of every event id: a UUIDv5 (RFC 9562, 5.5) of `resmic-mailhook.event` under the DNS namespace.
///
/// This value must never change, so that all databases have the same id for the same payment.
const EVENT_NAMESPACE: Uuid = Uuid::from_u128(0xd146_3efd_5c7f_5b1a_8130_7d45_08e0_3fc0);

/// The parsed fields of a notification. A field has one certain value or is absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaymentDetails {
    /// The status of the payment.
    pub status: Status,
    /// The payment session, a UUID in lower case.
    pub session_id: Option<String>,
    /// Plain decimal digits without thousands separators; trailing zeros are kept.
    pub amount: Option<String>,
    /// `USD`, or the token's symbol that is written next to the amount. `None`: the amount has neither.
    pub currency: Option<String>,
    /// The chain in the webhook's spelling; an unknown chain as the notification writes it.
    pub blockchain: Option<String>,
    /// The token as the notification writes it.
    pub token: Option<String>,
    /// The payer's wallet as the notification writes it.
    pub from_wallet_address: Option<String>,
    /// The hash of the transaction. A hexadecimal hash is in lower case.
    pub transaction_hash: Option<String>,
    /// The time of the payment in the mail's text, UTC.
    pub tx_time: Option<Timestamp>,
}

impl PaymentDetails {
    /// Creates details that have a status and no other field.
    #[must_use]
    pub fn new(status: Status) -> Self {
        PaymentDetails {
            status,
            session_id: None,
            amount: None,
            currency: None,
            blockchain: None,
            token: None,
            from_wallet_address: None,
            transaction_hash: None,
            tx_time: None,
        }
    }

    /// Fills absent values with the values of `other`. The status does not change.
    #[must_use]
    pub fn or(self, other: PaymentDetails) -> PaymentDetails {
        PaymentDetails {
            status: self.status,
            session_id: self.session_id.or(other.session_id),
            amount: self.amount.or(other.amount),
            currency: self.currency.or(other.currency),
            blockchain: self.blockchain.or(other.blockchain),
            token: self.token.or(other.token),
            from_wallet_address: self.from_wallet_address.or(other.from_wallet_address),
            transaction_hash: self.transaction_hash.or(other.transaction_hash),
            tx_time: self.tx_time.or(other.tx_time),
        }
    }
}

/// A payment in the webhook's event model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The parsed fields.
    pub payment: PaymentDetails,
    /// The time in the signed Date header, if the text of the notification has no time.
    pub header_time: Option<Timestamp>,
    /// The order reference, from a signed address.
    pub order_ref: Option<String>,
}

impl Event {
    /// Fills absent values with the values of `other`. A time in a mail's text replaces the time of a Date header.
    #[must_use]
    pub fn or(self, other: Event) -> Event {
        let payment = self.payment.or(other.payment);
        let header_time = self.header_time.or(other.header_time).filter(|_| payment.tx_time.is_none());
        Event { payment, header_time, order_ref: self.order_ref.or(other.order_ref) }
    }

    /// The time of the payment: the time in the mail's text, or else the time of the mail's Date header.
    #[must_use]
    pub fn time(&self) -> Option<Timestamp> {
        self.payment.tx_time.or(self.header_time)
    }

    /// The source of [`Event::time`]: `mail` or `header`.
    #[must_use]
    pub fn time_source(&self) -> Option<&'static str> {
        match (self.payment.tx_time, self.header_time) {
            (Some(_), _) => Some("mail"),
            (None, Some(_)) => Some("header"),
            (None, None) => None,
        }
    }

    /// The event's id: a UUIDv5 over the identity of the payment, so that every database has the same id for the same payment.
    /// `None` if the event has neither a transaction nor a session.
    ///
    /// With a transaction hash, the id covers chain, hash and status. Without a hash, the id covers session, status and the
    /// time in the mail's text. The Date header is left out, because two mails about one payment have different dates.
    #[must_use]
    pub fn id(&self) -> Option<Uuid> {
        let payment = &self.payment;
        let name = if let Some(hash) = &payment.transaction_hash {
            let chain = payment.blockchain.as_deref().unwrap_or("");
            format!("tx\n{}\n{}\n{}", fold_chain(chain), fold_hash(hash), payment.status)
        } else {
            let session = payment.session_id.as_deref()?;
            format!(
                "session\n{}\n{}\n{}",
                session.to_ascii_lowercase(),
                payment.status,
                payment.tx_time.map(iso).unwrap_or_default()
            )
        };
        Some(Uuid::new_v5(&EVENT_NAMESPACE, name.as_bytes()))
    }

    /// The JSON body of the webhook, byte for byte as `JSON.stringify` prints it: the documented keys in the documented
    /// order, `null` for absent fields.
    #[must_use]
    pub fn webhook(&self) -> String {
        let payment = &self.payment;
        let time = self.time().map(webhook_time);
        let session_id = payment.session_id.as_deref();
        let json = if payment.status == Status::Completed {
            serde_json::to_string(&CompletedBody {
                session_id,
                amount: payment.amount.as_deref(),
                blockchain: payment.blockchain.as_deref(),
                token: payment.token.as_deref(),
                from_wallet_address: payment.from_wallet_address.as_deref(),
                transaction_hash: payment.transaction_hash.as_deref(),
                tx_time: time.as_deref(),
                status: true,
            })
        } else {
            let state = (payment.status == Status::Pending).then_some("pending");
            serde_json::to_string(&UnpaidBody { session_id, tx_time: time.as_deref(), status: false, state })
        };
        // serde_json cannot fail on strings and booleans.
        json.unwrap_or_default()
    }
}

#[derive(Serialize)]
struct CompletedBody<'a> {
    session_id: Option<&'a str>,
    amount: Option<&'a str>,
    blockchain: Option<&'a str>,
    token: Option<&'a str>,
    from_wallet_address: Option<&'a str>,
    transaction_hash: Option<&'a str>,
    #[serde(rename = "txTime")]
    tx_time: Option<&'a str>,
    status: bool,
}

/// The webhook's body for failed and pending payments. `status` is false in both, so that no handler takes a pending payment
/// for a paid one.
#[derive(Serialize)]
struct UnpaidBody<'a> {
    session_id: Option<&'a str>,
    #[serde(rename = "txTime")]
    tx_time: Option<&'a str>,
    status: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'a str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paid() -> Event {
        Event {
            payment: PaymentDetails {
                session_id: Some("591abe63-aa61-411d-a419-0b546729bbd0".into()),
                amount: Some("20".into()),
                blockchain: Some("Sepolia".into()),
                token: Some("DAI".into()),
                from_wallet_address: Some("0x056397760b973BfB921Bc10Be9DA5034B1e921d7".into()),
                transaction_hash: Some("0xa43df332c8d376fc14ffc992c4b87e04a5707a3bc7a92ec4eef7b90c66388db2".into()),
                tx_time: Some("2025-03-05T03:36:00Z".parse().unwrap()),
                ..PaymentDetails::new(Status::Completed)
            },
            header_time: None,
            order_ref: None,
        }
    }

    #[test]
    fn completed_payments_have_the_documented_body() {
        assert_eq!(
            paid().webhook(),
            r#"{"session_id":"591abe63-aa61-411d-a419-0b546729bbd0","amount":"20","blockchain":"Sepolia","token":"DAI","from_wallet_address":"0x056397760b973BfB921Bc10Be9DA5034B1e921d7","transaction_hash":"0xa43df332c8d376fc14ffc992c4b87e04a5707a3bc7a92ec4eef7b90c66388db2","txTime":"Mar 5, 2025, 03:36","status":true}"#
        );
    }

    #[test]
    fn merging_fills_gaps_and_changes_nothing_else() {
        let at = |text: &str| Some(text.parse().unwrap());
        let mut sparse = Event { payment: PaymentDetails::new(Status::Completed), header_time: None, order_ref: None };
        assert_eq!(sparse.clone().or(paid()), paid());
        assert_eq!(paid().or(sparse.clone()), paid());
        sparse.payment.amount = Some("21".into());
        sparse.header_time = at("2025-03-05T04:00:00Z");
        let merged = sparse.clone().or(paid());
        assert_eq!((merged.payment.amount.as_deref(), merged.header_time), (Some("21"), None));
        let mut untimed = paid();
        (untimed.payment.tx_time, untimed.header_time) = (None, at("2025-03-05T05:00:00Z"));
        assert_eq!(sparse.clone().or(untimed).header_time, sparse.header_time);
    }

    #[test]
    fn unpaid_bodies_have_status_false() {
        let mut event = paid();
        event.payment.status = Status::Failed;
        assert!(event.webhook().ends_with(r#""txTime":"Mar 5, 2025, 03:36","status":false}"#));
        event.payment.status = Status::Pending;
        assert!(event.webhook().ends_with(r#""status":false,"state":"pending"}"#));
    }

    #[test]
    fn the_body_is_escaped_like_json_stringify() {
        let mut event = paid();
        event.payment.token = Some("a/\"\\\u{1}\u{8}\u{7f}\u{2028}é".into());
        assert!(event.webhook().contains("\"token\":\"a/\\\"\\\\\\u0001\\b\u{7f}\u{2028}é\""));
    }

    #[test]
    fn the_id_is_independent_of_the_spelling() {
        let id = paid().id();
        let mut other = paid();
        other.payment.blockchain = Some("SEPOLIA".into());
        other.payment.transaction_hash = other.payment.transaction_hash.map(|h| h.to_uppercase().replace("0X", "0x"));
        other.payment.session_id = None;
        other.payment.tx_time = None;
        assert_eq!(id, other.id());
        other.payment.status = Status::Failed;
        assert_ne!(id, other.id());
        assert_eq!(id.unwrap().to_string(), "fd50a56e-6359-5deb-bbb1-c18babd155ef", "an id never changes");
    }

    #[test]
    fn without_a_hash_the_session_determines_the_id() {
        let mut event = paid();
        event.payment.transaction_hash = None;
        let id = event.id();
        event.header_time = Some("2025-03-05T03:37:00Z".parse().unwrap());
        assert_eq!(id, event.id());
        event.payment.session_id = None;
        assert_eq!(event.id(), None);
    }
}
