//! Signed, forged, extended, expired and replayed mails, with a real DNS server.

mod auth_results;

use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use jiff::Timestamp;
use mail_auth::dkim::Canonicalization;
use resmic_mailhook::model::{Authenticity, ReasonCode, SignedHeaders, Trust};
use resmic_mailhook::trust::{Accept, Clock, Recipients, TrustSettings, authenticate, dns};
use testkit::dkim::{Key, SigningOptions, sign};
use testkit::dns::Dns;

const MAIL: &str = "From: Resmic <no-reply@resmic.com>\r\nTo: payments@shop.example\r\nSubject: Paymet received $20 (via Resmic)\r\n\
    Message-ID: <1@resmic.com>\r\nDate: Wed, 05 Mar 2025 03:36:41 +0000\r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\n\
    Received: $20\r\nToken: DAI\r\n";

/// The keys of all tests in this file.
struct Keys {
    rsa: Key,
    short: Key,
    weak: Key,
    ed25519: Key,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let (rsa, short, weak, ed25519) = (Key::rsa(2048), Key::rsa(1024), Key::rsa(512), Key::ed25519());
    Keys { rsa, short, weak, ed25519 }
});

/// The DNS server with the keys. Each test runs in a thread, and the last thread drops the server. A static would never be
/// dropped, so the server would outlive the tests.
static SHARED: Mutex<Weak<Dns>> = Mutex::new(Weak::new());
thread_local!(static DNS: Arc<Dns> = server());

fn server() -> Arc<Dns> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let dns = Arc::new(start());
        *shared = Arc::downgrade(&dns);
        dns
    })
}

fn address() -> String {
    DNS.with(|dns| dns.address.to_string())
}

fn start() -> Dns {
    let Keys { rsa, short, weak, ed25519 } = &*KEYS;
    let key = |name: &str, record: String| (format!("{name}._domainkey.resmic.com"), record);
    Dns::start(&[
        key("s1", rsa.record("")),
        key("ed", ed25519.record("")),
        key("short", short.record("")),
        key("weak", weak.record("")),
        key("testing", rsa.record("t=y; ")),
        key("strict", rsa.record("t=s; ")),
        key("tlsrpt", rsa.record("s=tlsrpt; ")),
        key("sha1", rsa.record("h=sha1; ")),
        key("several", rsa.record("s=tlsrpt : email; h=sha1:sha256; ")),
        key("revoked", "TXT \"v=DKIM1; k=rsa; p=\"".into()),
        key("other", Key::rsa(1024).record("")),
        key("alias", "CNAME s1._domainkey.provider.example.".into()),
        ("s1._domainkey.provider.example".into(), rsa.record("")),
        ("s1._domainkey.mail.resmic.com".into(), rsa.record("")),
        ("s1._domainkey.evil.tld".into(), rsa.record("")),
    ])
}

async fn authenticate_now(mail: &[u8]) -> Authenticity {
    authenticate_at(mail, Timestamp::now(), &[address()]).await
}

async fn authenticate_at(mail: &[u8], clock: impl Into<Clock>, servers: &[String]) -> Authenticity {
    authenticate_with(mail, &TrustSettings::default(), clock, servers).await
}

async fn authenticate_with(
    mail: &[u8],
    trust: &TrustSettings,
    clock: impl Into<Clock>,
    servers: &[String],
) -> Authenticity {
    let resolver = resolver(servers);
    authenticate(mail, &Recipients::new(["payments@shop.example".to_owned()]), trust, &resolver, clock).await
}

fn resolver(servers: &[String]) -> dns::Resolver {
    let servers: Vec<String> = servers.iter().map(|s| format!("{s:?}")).collect();
    let settings: dns::DnsSettings = toml::from_str(&format!("servers = [{}]", servers.join(", "))).unwrap();
    dns::Resolver::new(&settings).unwrap()
}

/// Settings that trust this receiving server.
fn trusting(id: &str) -> TrustSettings {
    TrustSettings {
        accept: vec![Accept::AuthenticationResults],
        authserv_ids: vec![id.into()],
        ..TrustSettings::default()
    }
}

/// A field as OpenDKIM writes it.
const PASS: &str = "Authentication-Results: mx.shop.example;\r\n\tdkim=pass (2048-bit key; unprotected) header.d=resmic.com header.i=@resmic.com header.a=rsa-sha256;\r\n\tdkim-atps=neutral\r\n";

#[track_caller]
fn assert_untrusted(authenticity: &Authenticity, case: &str) {
    assert!(
        matches!(authenticity, Authenticity::Rejected(reason) if reason.code == ReasonCode::Untrusted),
        "{case}: {authenticity:?}"
    );
}

fn signed(options: SigningOptions<'_>) -> Vec<u8> {
    sign(MAIL.as_bytes(), &KEYS.rsa, &options)
}

fn replaced(mail: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(mail.to_vec()).unwrap();
    assert!(text.contains(from), "{from:?} is not in the mail");
    text.replacen(from, to, 1).into_bytes()
}

#[tokio::test]
async fn prefetched_keys_need_no_dns() {
    let dns = Dns::start(&[("s1._domainkey.resmic.com".into(), KEYS.rsa.record(""))]);
    let settings: dns::DnsSettings = toml::from_str(&format!("servers = [\"{}\"]", dns.address)).unwrap();
    let resolver = dns::Resolver::new(&settings).unwrap();
    assert!(resolver.has_cached_keys(), "no key is remembered");
    resolver.remember_key("resmic.com", "s1");
    assert!(!resolver.has_cached_keys());
    resolver.prefetch_keys().await;
    assert!(resolver.has_cached_keys());
    drop(dns);
    let recipients = Recipients::new(["payments@shop.example".to_owned()]);
    let trust = TrustSettings::default();
    let (known, other) =
        (signed(SigningOptions::default()), signed(SigningOptions { selector: "strict", ..SigningOptions::default() }));
    let authenticity = authenticate(&known, &recipients, &trust, &resolver, Timestamp::now()).await;
    assert!(matches!(authenticity, Authenticity::Trusted(_)), "{authenticity:?}");
    let authenticity = authenticate(&other, &recipients, &trust, &resolver, Timestamp::now()).await;
    assert!(matches!(authenticity, Authenticity::TempError(_)), "the server has stopped: {authenticity:?}");
}

#[tokio::test]
async fn good_mails_are_trusted() {
    let good = signed(SigningOptions::default());
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("RSA", good.clone()),
        (
            "Ed25519",
            sign(MAIL.as_bytes(), &KEYS.ed25519, &SigningOptions { selector: "ed", ..SigningOptions::default() }),
        ),
        (
            "RSA of 1024 bits",
            sign(MAIL.as_bytes(), &KEYS.short, &SigningOptions { selector: "short", ..SigningOptions::default() }),
        ),
        ("a selector that is an alias", signed(SigningOptions { selector: "alias", ..SigningOptions::default() })),
        (
            "simple canonicalization",
            signed(SigningOptions { canonicalization: Canonicalization::Simple, ..SigningOptions::default() }),
        ),
        ("a subdomain's signature", signed(SigningOptions { domain: "mail.resmic.com", ..SigningOptions::default() })),
        ("not yet expired", signed(SigningOptions { expires_in: Some(3600), ..SigningOptions::default() })),
        ("a strict key, used strictly", signed(SigningOptions { selector: "strict", ..SigningOptions::default() })),
        (
            "fields that a relay added",
            [b"Received: from a by b\r\nDelivered-To: x@y.example\r\n".as_slice(), &good].concat(),
        ),
        (
            "a second signature, of another domain",
            sign(&good, &KEYS.rsa, &SigningOptions { domain: "evil.tld", ..SigningOptions::default() }),
        ),
        (
            "a second signature that is broken",
            [
                b"DKIM-Signature: v=1; a=rsa-sha256; d=resmic.com; s=none; h=from:to; bh=YQ==; b=YQ==\r\n".as_slice(),
                &good,
            ]
            .concat(),
        ),
        ("line ends of a file", String::from_utf8(good).unwrap().replace("\r\n", "\n").into_bytes()),
    ];
    for (case, mail) in cases {
        let authenticity = authenticate_now(&mail).await;
        let Authenticity::Trusted(proof) = &authenticity else { panic!("{case}: {authenticity:?}") };
        assert_eq!(proof.trust, Trust::Dkim, "{case}");
        assert!(proof.signed_headers.contains("date") && proof.signed_headers.contains("subject"), "{case}: {proof:?}");
        assert_eq!(proof.to, ["payments@shop.example"], "{case}");
    }
}

#[tokio::test]
async fn byte_order_marks_before_mails_are_ignored() {
    const MARK: &[u8] = b"\xef\xbb\xbf";
    let good = signed(SigningOptions::default());
    let received = [b"Received: from a by b\r\n".as_slice(), &good].concat();
    // In the first mail, the signature is the first field. In the second mail, a field of the server comes first.
    for mail in [&good, &received] {
        let authenticity = authenticate_now(&[MARK, mail].concat()).await;
        assert!(matches!(authenticity, Authenticity::Trusted(_)), "{authenticity:?}");
    }
    let with_result = [MARK, PASS.as_bytes(), &replaced(&good, "Token: DAI", "Token: DOGE")].concat();
    let trust = trusting("mx.shop.example");
    let authenticity = authenticate_with(&with_result, &trust, Timestamp::now(), &[address()]).await;
    assert!(matches!(authenticity, Authenticity::Trusted(_)), "{authenticity:?}");
    // A byte order mark permits no other change.
    let text = String::from_utf8(good.clone()).unwrap();
    for (case, mail) in [
        ("changed", [MARK, &replaced(&good, "Received: $20", "Received: $2000")].concat()),
        ("two marks", [MARK, MARK, &good].concat()),
        ("a mark before From", text.replace("\r\nFrom:", "\r\n\u{feff}From:").into_bytes()),
        ("a mark before To", text.replace("\r\nTo:", "\r\n\u{feff}To:").into_bytes()),
        ("a mark in the body", text.replace("\r\n\r\n", "\r\n\r\n\u{feff}").into_bytes()),
        ("a second From", [MARK, b"From: a@resmic.com\r\n", &good].concat()),
        ("unsigned", [MARK, MAIL.as_bytes()].concat()),
    ] {
        assert_untrusted(&authenticate_now(&mail).await, case);
    }
}

#[tokio::test]
async fn lf_line_ends_verify() {
    for canonicalization in [Canonicalization::Relaxed, Canonicalization::Simple] {
        let mail = signed(SigningOptions { canonicalization, ..SigningOptions::default() });
        let text = String::from_utf8(mail).unwrap();
        for mail in [text.replace("\r\n", "\n"), text.replacen("\r\n", "\n", 4)] {
            let authenticity = authenticate_now(mail.as_bytes()).await;
            assert!(matches!(authenticity, Authenticity::Trusted(_)), "{mail:?}: {authenticity:?}");
        }
    }
}

#[tokio::test]
async fn relaxed_bodies_may_end_with_white_space() {
    let (relaxed, simple) = (
        SigningOptions::default(),
        SigningOptions { canonicalization: Canonicalization::Simple, ..SigningOptions::default() },
    );
    for end in [" \r\n", "\r\n\t\r\n \r\n", " ", "\r\n \r\n\r\n"] {
        let authenticity = authenticate_now(&[signed(relaxed.clone()).as_slice(), end.as_bytes()].concat()).await;
        assert!(matches!(authenticity, Authenticity::Trusted(_)), "{end:?}: {authenticity:?}");
        let authenticity = authenticate_now(&[signed(simple.clone()).as_slice(), end.as_bytes()].concat()).await;
        assert!(matches!(authenticity, Authenticity::Rejected(_)), "{end:?}: {authenticity:?}");
    }
    let empty = MAIL.split_inclusive("\r\n\r\n").next().unwrap();
    let mail = [sign(empty.as_bytes(), &KEYS.rsa, &relaxed).as_slice(), b" \r\n"].concat();
    let authenticity = authenticate_now(&mail).await;
    assert!(matches!(authenticity, Authenticity::Trusted(_)), "{authenticity:?}");
}

#[tokio::test]
async fn forged_and_extended_mails_are_untrusted() {
    let good = signed(SigningOptions::default());
    let headers =
        |names: &'static [&'static str]| signed(SigningOptions { headers: names, ..SigningOptions::default() });
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("unsigned", MAIL.as_bytes().to_vec()),
        ("the amount was changed", replaced(&good, "Received: $20", "Received: $2000")),
        ("something was added", [good.as_slice(), b"Received: $2000\r\n"].concat()),
        ("the To was changed", replaced(&good, "To: payments@shop", "To: Payments+x@shop")),
        ("the subject was changed", replaced(&good, "Paymet received", "Payment received")),
        ("of another organisation", signed(SigningOptions { domain: "evil.tld", ..SigningOptions::default() })),
        ("by another key", signed(SigningOptions { selector: "other", ..SigningOptions::default() })),
        ("a key that is not there", signed(SigningOptions { selector: "none", ..SigningOptions::default() })),
        ("a revoked key", signed(SigningOptions { selector: "revoked", ..SigningOptions::default() })),
        ("a key in test mode", signed(SigningOptions { selector: "testing", ..SigningOptions::default() })),
        ("a part of the body only", signed(SigningOptions { body_length: true, ..SigningOptions::default() })),
        ("To is not signed", headers(&["From", "Subject", "Date"])),
        ("a second From on top", [b"From: x@evil.tld\r\n".as_slice(), &good].concat()),
        ("a second From of the same domain", [b"From: a@resmic.com\r\n".as_slice(), &good].concat()),
        ("a second To on top", [b"To: payments@shop.example\r\n".as_slice(), &good].concat()),
        ("no body hash", replaced(&good, "bh=", "xh=")),
    ];
    for (case, mail) in cases {
        let authenticity = authenticate_now(&mail).await;
        let Authenticity::Rejected(reason) = &authenticity else { panic!("{case}: {authenticity:?}") };
        assert_eq!(reason.code, ReasonCode::Untrusted, "{case}: {reason}");
    }
}

#[tokio::test]
async fn signatures_and_their_names_are_limited() {
    let named = |names: &str| {
        let signature =
            format!("DKIM-Signature: v=1; a=rsa-sha256; d=resmic.com; s=s1; h=from:to{names}; bh=YQ==; b=YQ==\r\n");
        format!("{signature}{MAIL}").into_bytes()
    };
    let signatures = [named("").strip_suffix(MAIL.as_bytes()).unwrap().repeat(51), MAIL.as_bytes().to_vec()].concat();
    for (mail, expected) in
        [(named(&":a".repeat(500_000)), "more fields than a mail has"), (signatures, "more than 50 DKIM")]
    {
        let authenticity = authenticate_now(&mail).await;
        let Authenticity::Rejected(reason) = &authenticity else { panic!("{authenticity:?}") };
        assert!(reason.message.contains(expected), "{reason}");
    }
}

#[tokio::test]
async fn a_key_of_512_bits_proves_nothing() {
    let mail = sign(MAIL.as_bytes(), &KEYS.weak, &SigningOptions { selector: "weak", ..SigningOptions::default() });
    assert!(String::from_utf8_lossy(&mail).contains(" b="), "it is signed");
    assert!(matches!(authenticate_now(&mail).await, Authenticity::Rejected(_)));
    // A mail that was signed in the same way with a longer key is trusted. So the length is the reason.
    let Key::Rsa(pkcs8, public) = &KEYS.rsa else { panic!() };
    let by_openssl = Key::Weak(pkcs8.clone(), public.clone());
    assert!(matches!(
        authenticate_now(&sign(MAIL.as_bytes(), &by_openssl, &SigningOptions::default())).await,
        Authenticity::Trusted(_)
    ));
}

#[tokio::test]
async fn expired_signatures_prove_nothing() {
    let mail = signed(SigningOptions { expires_in: Some(3600), ..SigningOptions::default() });
    let later = Timestamp::now() + jiff::SignedDuration::from_hours(2);
    let authenticity = authenticate_at(&mail, later, &[address()]).await;
    let Authenticity::Rejected(reason) = &authenticity else { panic!("{authenticity:?}") };
    assert!(reason.message.contains("has expired"), "{reason}");
}

#[tokio::test]
async fn added_fields_are_not_signed() {
    let mail = [b"Subject: Payment failed\r\n".as_slice(), &signed(SigningOptions::default())].concat();
    let authenticity = authenticate_now(&mail).await;
    let Authenticity::Trusted(proof) = &authenticity else { panic!("{authenticity:?}") };
    assert!(!proof.signed_headers.contains("subject") && proof.signed_headers.contains("date"), "{proof:?}");
    let SignedHeaders::Only(names) = &proof.signed_headers else { panic!() };
    assert!(!names.contains(&"content-type".to_owned()));
}

#[tokio::test]
async fn lookalike_fields_are_not_signed() {
    // Careful senders name each field once more than it occurs, so that no field can be added (oversigning).
    let once_more = ["From", "To", "Subject", "Date", "From", "To", "Subject", "Date"];
    let other = MAIL.replace("To: payments@shop.example", "To: rival@other.example");
    let genuine =
        sign(other.as_bytes(), &KEYS.rsa, &SigningOptions { headers: &once_more, ..SigningOptions::default() });
    for name in ["To ", "to\t", "T o", "To\0"] {
        let mail = [format!("{name}: payments@shop.example\r\n").as_bytes(), &genuine].concat();
        let authenticity = authenticate_now(&mail).await;
        assert!(matches!(authenticity, Authenticity::Rejected(_)), "{name:?}: {authenticity:?}");
    }
    for (options, name) in [
        (SigningOptions::default(), "Sub ject"),
        (SigningOptions { headers: &once_more, ..SigningOptions::default() }, "Subject "),
    ] {
        let mail = [format!("{name}: Payment failed\r\n").as_bytes(), &signed(options)].concat();
        let authenticity = authenticate_now(&mail).await;
        let Authenticity::Trusted(proof) = &authenticity else { panic!("{name:?}: {authenticity:?}") };
        assert!(
            !proof.signed_headers.contains("subject") && proof.signed_headers.contains("date"),
            "{name:?}: {proof:?}"
        );
    }
}

#[tokio::test]
async fn unhashed_characters_invalidate_a_field() {
    let good = signed(SigningOptions::default());
    let simple = signed(SigningOptions { canonicalization: Canonicalization::Simple, ..SigningOptions::default() });
    for mail in [
        replaced(&good, "$20\r\nT", "$2\r0\r\nT"),
        replaced(&good, "$20\r\nT", "$2 \r0\r\nT"),
        replaced(&simple, "DAI", "D\rAI"),
    ] {
        let authenticity = authenticate_now(&mail).await;
        assert!(
            matches!(authenticity, Authenticity::Rejected(_)),
            "{:?}: {authenticity:?}",
            String::from_utf8_lossy(&mail)
        );
    }
    let other = MAIL.replace("To: payments@shop.example", "To: payments@shop.example.evil.tld");
    let genuine = sign(other.as_bytes(), &KEYS.rsa, &SigningOptions::default());
    for inside in ["\r", " \r", "\r\n \r", "\x0c", "\r\n \x0c"] {
        let authenticity =
            authenticate_now(&replaced(&genuine, "example.evil", &format!("example{inside}.evil"))).await;
        let Authenticity::Rejected(reason) = &authenticity else { panic!("{inside:?}: {authenticity:?}") };
        assert_eq!(reason.code, ReasonCode::Untrusted, "{inside:?}: {reason}");
        let subject = authenticate_now(&replaced(&good, "received $20", &format!("received $2{inside}0"))).await;
        let Authenticity::Trusted(proof) = &subject else { panic!("{inside:?}: {subject:?}") };
        assert!(
            !proof.signed_headers.contains("subject") && proof.signed_headers.contains("date"),
            "{inside:?}: {proof:?}"
        );
    }
}

#[tokio::test]
async fn replayed_mails_to_others_are_rejected() {
    let other = MAIL.replace("To: payments@shop.example", "To: rival@other.example");
    let mail = sign(other.as_bytes(), &KEYS.rsa, &SigningOptions::default());
    let delivered = [b"Delivered-To: payments@shop.example\r\n".as_slice(), &mail].concat();
    let authenticity = authenticate_now(&delivered).await;
    let Authenticity::Rejected(reason) = &authenticity else { panic!("{authenticity:?}") };
    assert_eq!(reason.code, ReasonCode::NotOurs);
}

#[tokio::test]
async fn white_space_lines_do_not_hide_to() {
    let other = MAIL.replace("To: payments@shop.example", "To: rival@other.example");
    let genuine = sign(other.as_bytes(), &KEYS.rsa, &SigningOptions::default());
    for end in [" \r\n", "\t\r\n", " \n", "X\r\n \t\r\n", "\x0c\n", "\x0b \n", "\r\r\n"] {
        let forged = format!("From: Resmic <no-reply@resmic.com>\r\nTo: payments@shop.example\r\n{end}");
        let authenticity = authenticate_now(&[forged.as_bytes(), &genuine].concat()).await;
        assert!(matches!(authenticity, Authenticity::Rejected(_)), "{end:?}: {authenticity:?}");
    }
}

#[tokio::test]
async fn lines_without_a_field_prove_nothing() {
    let genuine = signed(SigningOptions::default());
    // The signature is valid, but mail programs show everything below such a line as the body.
    for end in [":\r\n \r\n", "X: y\r\n:\r\n\t\r\n", "x\n \n", "\x0b\n \r\n"] {
        let forged = format!("Date: Wed, 05 Mar 2025 03:36:41 +0000\r\n{end}Amount: $9000\r\nTransaction: 0x1\r\n");
        let authenticity = authenticate_now(&[forged.as_bytes(), &genuine].concat()).await;
        assert!(matches!(authenticity, Authenticity::Rejected(_)), "{end:?}: {authenticity:?}");
    }
    // For the signature, the body begins after this line. For mail programs it begins after the first empty line.
    let authenticity = authenticate_now(&replaced(&genuine, "\r\n\r\n", "\r\nx\r\n")).await;
    assert!(matches!(authenticity, Authenticity::Rejected(_)), "{authenticity:?}");
}

#[tokio::test]
async fn dns_failures_are_temporary() {
    // A socket that is never read, so no query is answered.
    let deaf = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = deaf.local_addr().unwrap().to_string();
    let authenticity = authenticate_at(&signed(SigningOptions::default()), Timestamp::now(), &[server]).await;
    let Authenticity::TempError(reason) = &authenticity else { panic!("{authenticity:?}") };
    assert_eq!(reason.code, ReasonCode::Dns);
    // nsd answers REFUSED for zones that it does not have.
    let mail = MAIL.replace("resmic.com", "resmic.example");
    let mail =
        sign(mail.as_bytes(), &KEYS.rsa, &SigningOptions { domain: "resmic.example", ..SigningOptions::default() });
    let settings: dns::DnsSettings = toml::from_str(&format!("servers = [\"{}\"]", address())).unwrap();
    let resolver = dns::Resolver::new(&settings).unwrap();
    let trust = TrustSettings { from: vec!["resmic.example".into()], ..TrustSettings::default() };
    let recipients = Recipients::new(["payments@shop.example".to_owned()]);
    let authenticity = authenticate(&mail, &recipients, &trust, &resolver, Timestamp::now()).await;
    assert!(matches!(authenticity, Authenticity::TempError(_)), "{authenticity:?}");
}

#[tokio::test]
async fn domains_are_checked_for_the_operator() {
    let settings: dns::DnsSettings = toml::from_str(&format!("servers = [\"{}\"]", address())).unwrap();
    let resolver = dns::Resolver::new(&settings).unwrap();
    let found = dns::check_domain(&resolver, "resmic.com").await;
    assert!(found[0].as_ref().is_ok_and(|line| line.starts_with("DNS works")) && found[1].is_ok(), "{found:?}");
    let found = dns::check_domain(&resolver, "elsewhere.example").await;
    assert!(found.len() == 1 && found[0].is_err(), "{found:?}");
}

/// A DNS server that returns an error for a query with EDNS, and this TXT record for any other query.
fn without_edns(record: &str) -> std::net::SocketAddr {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let pieces = record.split('"').skip(1).step_by(2);
    let data: Vec<u8> =
        pieces.flat_map(|piece| [&[u8::try_from(piece.len()).unwrap()], piece.as_bytes()].concat()).collect();
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let name = buffer[12..].iter().position(|byte| *byte == 0).unwrap();
            let question = &buffer[12..12 + name + 5];
            let has_edns = buffer[11] > 0;
            let (code, answers) = if has_edns { (1, 0) } else { (0, 1) };
            let mut answer = [&buffer[..2], &[0x81, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0], question].concat();
            if !has_edns {
                answer.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 60]);
                answer.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
                answer.extend(&data);
            }
            socket.send_to(&answer, from).unwrap();
        }
    });
    address
}

#[tokio::test]
async fn servers_without_edns_are_queried() {
    let server = without_edns(&KEYS.short.record("")).to_string();
    let mail = sign(MAIL.as_bytes(), &KEYS.short, &SigningOptions::default());
    let authenticity = authenticate_at(&mail, Timestamp::now(), std::slice::from_ref(&server)).await;
    assert!(matches!(authenticity, Authenticity::Trusted(_)), "{authenticity:?}");
    let settings: dns::DnsSettings = toml::from_str(&format!("servers = [\"{server}\"]")).unwrap();
    let resolver = dns::Resolver::new(&settings).unwrap();
    resolver.remember_key("resmic.com", "s1");
    resolver.prefetch_keys().await;
    assert!(resolver.has_cached_keys());
    let found = dns::check_domain(&resolver, "resmic.com").await;
    assert!(found.iter().all(Result::is_ok), "{found:?}");
}

#[tokio::test]
async fn keys_for_another_use_prove_nothing() {
    let recipients = Recipients::new(["payments@shop.example".to_owned()]);
    for (selector, expected) in [("tlsrpt", Some("(s=)")), ("sha1", Some("(h=)")), ("several", None), ("s1", None)] {
        let mail = [PASS.as_bytes(), &signed(SigningOptions { selector, ..SigningOptions::default() })].concat();
        for trust in [TrustSettings::default(), trusting("mx.shop.example")] {
            let resolver = resolver(&[address()]);
            // The second time, the key is cached.
            for _ in 0..2 {
                let authenticity = authenticate(&mail, &recipients, &trust, &resolver, Timestamp::now()).await;
                match (&authenticity, expected) {
                    (Authenticity::Rejected(reason), Some(expected)) => {
                        assert!(reason.message.contains(expected), "{reason}")
                    }
                    (Authenticity::Trusted(_), None) => {}
                    _ => panic!("{selector}: {authenticity:?}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn expiry_is_compared_with_the_receipt() {
    let mail = signed(SigningOptions { expires_in: Some(3600), ..SigningOptions::default() });
    let with_result = [PASS.as_bytes(), &mail].concat();
    let signed_at = Timestamp::now();
    let hours = |n: i64| signed_at + jiff::SignedDuration::from_hours(n);
    for (received, trusted) in [
        (Some(hours(0)), true),
        (Some(hours(2)), false),
        (Some(hours(49)), false),
        (Some(hours(-48)), false),
        (Some(Timestamp::UNIX_EPOCH), false),
        (None, false),
    ] {
        let clock = Clock { now: hours(48), received };
        for (mail, trust) in [(&mail, TrustSettings::default()), (&with_result, trusting("mx.shop.example"))] {
            let authenticity = authenticate_with(mail, &trust, clock, &[address()]).await;
            assert_eq!(matches!(authenticity, Authenticity::Trusted(_)), trusted, "{received:?}: {authenticity:?}");
        }
    }
}

#[tokio::test]
async fn a_signature_from_the_future_waits() {
    let now = Timestamp::now();
    let mail = signed(SigningOptions { ahead: 2 * 86_400, ..SigningOptions::default() });
    let with_result = [PASS.as_bytes(), &mail].concat();
    for (mail, trust) in [(&mail, TrustSettings::default()), (&with_result, trusting("mx.shop.example"))] {
        let authenticity = authenticate_with(mail, &trust, now, &[address()]).await;
        let Authenticity::TempError(reason) = &authenticity else { panic!("{authenticity:?}") };
        assert!(reason.message.contains("this machine's clock"), "{reason}");
        let later = now + jiff::SignedDuration::from_hours(25);
        assert!(matches!(authenticate_with(mail, &trust, later, &[address()]).await, Authenticity::Trusted(_)));
    }
    let forged = replaced(&mail, "Paymet received", "Payment received");
    assert_untrusted(&authenticate_at(&forged, now, &[address()]).await, "it is also forged");
}
