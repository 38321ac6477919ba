//! Any bytes → an outcome, and what an event may never be.
#![no_main]

use std::sync::LazyLock;

use futures_util::FutureExt;
use libfuzzer_sys::fuzz_target;
use resmic_mailhook::examine::Rules;
use resmic_mailhook::extract::MailParser;
use resmic_mailhook::model::{Judgement, Origin, RawMail, Status};
use resmic_mailhook::trust::{self, Accept, Ours, dns};

static RULES: LazyLock<(Rules, dns::Resolver)> = LazyLock::new(|| {
    let trust = trust::Settings { accept: vec![Accept::None], ..trust::Settings::default() };
    let ours = Ours::new(["payments@shop.example".to_owned()]);
    let rules = Rules { trust, parser: MailParser::new(&Default::default()), ours, addresses: None };
    let nobody = dns::Settings { servers: vec!["127.0.0.1:9".to_owned().try_into().unwrap()] };
    (rules, dns::Resolver::new(&nobody).unwrap())
});

/// What panics in a library is contained and costs its mail; in code of ours it is a find.
fn tell_of_our_own() {
    std::panic::set_hook(Box::new(|panic| {
        let ours = panic.location().is_none_or(|place| !place.file().contains("/registry/src/"));
        if ours {
            eprintln!("{panic}");
            std::process::abort();
        }
    }));
}

fuzz_target!(init: tell_of_our_own(), |bytes: &[u8]| {
    let origin = Origin { account: "shop".into(), mailbox: "INBOX".into(), uid: None };
    let mail = RawMail { origin, bytes: bytes.to_vec(), size: bytes.len() as u64, received_at: None };
    let (rules, resolver) = &*RULES;
    // Without a proof to look up nothing is waited for.
    let examined = rules.examine(&mail, resolver, jiff::Timestamp::UNIX_EPOCH).now_or_never().unwrap();
    if let Judgement::Event(event) = examined.judgement {
        let read = &event.reading;
        assert!(read.transaction_hash.is_some() || read.session_id.is_some());
        assert!(read.status != Status::Completed || read.amount.is_some());
        for amount in &read.amount {
            assert!(amount.starts_with(|c: char| c.is_ascii_digit()) && amount.ends_with(|c: char| c.is_ascii_digit()));
            assert!(amount.bytes().all(|b| b.is_ascii_digit() || b == b'.'));
        }
        for id in &read.session_id {
            uuid::Uuid::try_parse(id).unwrap();
        }
        for hash in &read.transaction_hash {
            assert!(hash.bytes().all(|b| b.is_ascii_alphanumeric()) && (3..=88).contains(&hash.len()));
        }
        assert!(event.id().is_some());
    }
});
