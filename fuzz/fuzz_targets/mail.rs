//! Examines any bytes, and checks the invariants of an event.
#![no_main]

use std::sync::LazyLock;

use futures_util::FutureExt;
use libfuzzer_sys::fuzz_target;
use resmic_mailhook::examine::Rules;
use resmic_mailhook::extract::MailParser;
use resmic_mailhook::model::{Judgement, Origin, RawMail, Status};
use resmic_mailhook::trust::{self, Accept, Recipients, dns};

static RULES: LazyLock<(Rules, dns::Resolver)> = LazyLock::new(|| {
    let trust = trust::TrustSettings { accept: vec![Accept::None], ..trust::TrustSettings::default() };
    let recipients = Recipients::new(["payments@shop.example".to_owned()]);
    let rules = Rules { trust, parser: MailParser::new(&Default::default()), recipients, addresses: None };
    let unreachable = dns::DnsSettings { servers: vec!["127.0.0.1:9".to_owned().try_into().unwrap()] };
    (rules, dns::Resolver::new(&unreachable).unwrap())
});

/// Aborts on a panic in this crate. A panic in a library is caught, and affects only the mail that caused it.
fn abort_on_own_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let is_own = panic.location().is_none_or(|place| !place.file().contains("/registry/src/"));
        if is_own {
            eprintln!("{panic}");
            std::process::abort();
        }
    }));
}

fuzz_target!(init: abort_on_own_panics(), |bytes: &[u8]| {
    let origin = Origin { account: "shop".into(), mailbox: "INBOX".into(), uid: None };
    let mail = RawMail { origin, bytes: bytes.to_vec(), size: bytes.len() as u64, received_at: None };
    let (rules, resolver) = &*RULES;
    // No proof is required, so no DNS lookup delays the result.
    let examined = rules.examine(&mail, resolver, jiff::Timestamp::UNIX_EPOCH).now_or_never().unwrap();
    if let Judgement::Event(event) = examined.judgement {
        let payment = &event.payment;
        assert!(payment.transaction_hash.is_some() || payment.session_id.is_some());
        assert!(payment.status != Status::Completed || payment.amount.is_some());
        for amount in &payment.amount {
            assert!(amount.starts_with(|c: char| c.is_ascii_digit()) && amount.ends_with(|c: char| c.is_ascii_digit()));
            assert!(amount.bytes().all(|b| b.is_ascii_digit() || b == b'.'));
        }
        for id in &payment.session_id {
            uuid::Uuid::try_parse(id).unwrap();
        }
        for hash in &payment.transaction_hash {
            assert!(hash.bytes().all(|b| b.is_ascii_alphanumeric()) && (3..=88).contains(&hash.len()));
        }
        assert!(event.id().is_some());
    }
});
