//! Payments as a benchmark stores them, without examining a mail.

use resmic_mailhook::model::{
    Envelope, Event, Examined, Judgement, Origin, PaymentDetails, RawMail, Status, Uid, UidValidity,
};
use resmic_mailhook::payments::ExaminedMail;

/// The event of payment `n`. No other payment has its session or its hash.
#[must_use]
pub fn numbered_event(n: u32) -> Event {
    let payment = PaymentDetails {
        session_id: Some(format!("591abe63-aa61-411d-a419-{n:012}")),
        amount: Some("20".into()),
        blockchain: Some("Sepolia".into()),
        token: Some("DAI".into()),
        transaction_hash: Some(format!("0x{n:064x}")),
        ..PaymentDetails::new(Status::Completed)
    };
    Event { payment, header_time: Some(jiff::Timestamp::UNIX_EPOCH), order_ref: None }
}

/// The mail of payment `n`, which is as large as one of Resmic's published sample mails.
#[must_use]
pub fn numbered_mail(n: u32) -> ExaminedMail {
    let origin = Origin { account: "shop".into(), mailbox: "INBOX".into(), uid: Some((UidValidity(7), Uid(n + 1))) };
    let bytes = vec![b'x'; 6_600];
    let mail = RawMail { origin, size: bytes.len() as u64, bytes, received_at: None };
    let judgement = Judgement::Event(Box::new(numbered_event(n)));
    ExaminedMail::new(mail, Examined { judgement, proof: None, envelope: Envelope::default() })
}
