//! Properties of the parser for any input, not only for the samples. It parses any bytes without a panic. From a
//! notification in any layout and encoding it parses exactly the values in it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use resmic_mailhook::extract::{ExtractSettings, MailParser, Parsed, SignedFields, html_view};
use resmic_mailhook::model::{PaymentDetails, Status};

fn parse(mail: &[u8]) -> Parsed {
    let report = MailParser::new(&ExtractSettings::default()).parse(mail, SignedFields { subject: true });
    if let Parsed::Unreadable(reason) = &report.parsed {
        assert_ne!(reason.to_string(), "malformed: the parser failed", "a parser panicked");
    }
    report.parsed
}

/// The values of a notification, as written.
#[derive(Debug, Clone)]
struct Payment {
    session: Option<String>,
    amount: String,
    currency: Option<&'static str>,
    chain: &'static str,
    token: &'static str,
    wallet: String,
    hash: String,
    time: (u8, u8, u8, u8),
    status: Status,
}

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

impl Payment {
    fn fields(&self, human: bool) -> Vec<(&'static str, String)> {
        let amount = match self.currency {
            Some("USD") => format!("${}", self.amount),
            Some(token) => format!("{} {token}", self.amount),
            None => self.amount.clone(),
        };
        let (month, day, hour, minute) = self.time;
        let time = format!("{} {day}, 2025, {hour:02}:{minute:02}", MONTHS[usize::from(month)]);
        let status = match self.status {
            Status::Completed => "completed",
            Status::Failed => "failed",
            Status::Pending => "pending",
        };
        let values = [
            ("session_id", "Session ID", self.session.clone()),
            ("amount", "Amount", Some(amount)),
            ("blockchain", "Network", Some(self.chain.to_owned())),
            ("token", "Token", Some(self.token.to_owned())),
            ("from_wallet_address", "Payer's wallet", Some(self.wallet.clone())),
            ("transaction_hash", "Transaction hash", Some(self.hash.clone())),
            ("txTime", "Date & time", Some(time)),
            ("status", "Payment status", Some(status.to_owned())),
        ];
        let named = values.into_iter().map(|(key, label, value)| (if human { label } else { key }, value));
        named.filter_map(|(label, value)| Some((label, value?))).collect()
    }

    fn equals(&self, parsed: &PaymentDetails) -> bool {
        let (month, day, hour, minute) = self.time;
        let time = format!("2025-{:02}-{day:02}T{:02}:{minute:02}:00Z", month + 1, hour % 24);
        parsed.status == self.status
            && parsed.session_id == self.session
            && parsed.amount.as_deref() == Some(&self.amount)
            && parsed.currency.as_deref() == self.currency
            && parsed.blockchain.as_deref() == Some(self.chain)
            && parsed.token.as_deref() == Some(self.token)
            && parsed.from_wallet_address.as_deref() == Some(&self.wallet)
            && parsed.transaction_hash.as_deref() == Some(&self.hash)
            && parsed.tx_time.is_some_and(|t| t.to_string() == time)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

prop_compose! {
    fn payment()(
        session in proptest::option::of(any::<u128>()),
        amount in "[1-9][0-9]{0,6}(\\.[0-9]{1,8})?",
        currency in prop_oneof![Just(None), Just(Some("USD")), Just(Some("USDT"))],
        evm in prop_oneof![Just("Ethereum"), Just("Polygon"), Just("BNB-Chain"), Just("XDC-Network"), Just("Base")],
        solana in any::<bool>(),
        wallet in any::<[u8; 32]>(),
        hash in any::<[u8; 64]>(),
        time in (0..12_u8, 1..29_u8, 0..25_u8, 0..60_u8),
        status in prop_oneof![Just(Status::Completed), Just(Status::Failed), Just(Status::Pending)],
    ) -> Payment {
        let (wallet, hash) = ([&wallet[1..], &[7]].concat(), [&hash[1..], &[7]].concat());
        let (chain, wallet, hash) = if solana {
            let first_is_one = |bytes: &[u8]| { let mut b = bytes.to_vec(); b[0] |= 1; bs58::encode(b).into_string() };
            ("Solana", first_is_one(&wallet), first_is_one(&hash))
        } else {
            (evm, hex(&wallet[12..]), hex(&hash[32..]))
        };
        let session = session.map(|n| uuid::Builder::from_random_bytes(n.to_be_bytes()).into_uuid().to_string());
        Payment { session, amount, currency, chain, token: "USDT", wallet, hash, time, status }
    }
}

/// Writes the payment in one of the layouts. Returns whether the body is HTML, and the body.
fn body(payment: &Payment, layout: u8) -> (bool, String) {
    // An object (JSON or JavaScript) has the keys of the webhook as labels.
    let fields = payment.fields(layout.is_multiple_of(2) && !matches!(layout / 2, 4 | 5));
    let write_each = |write: &dyn Fn(&str, &str) -> String| fields.iter().map(|(l, v)| write(l, v)).collect::<String>();
    let quoted = |mark: char| write_each(&|label, value| format!("  {mark}{label}{mark}: {mark}{value}{mark},\n"));
    let greeting = "Hello,\n\nthis is about a payment.\n\n";
    match layout / 2 {
        0 => (false, greeting.to_owned() + &write_each(&|l, v| format!("{l}: {v}\n"))),
        1 => (false, greeting.to_owned() + &write_each(&|l, v| format!("- **{l}:** {v}\n"))),
        2 => (false, greeting.to_owned() + &write_each(&|l, v| format!("| {l} | {v} |\n"))),
        3 => (false, greeting.to_owned() + &write_each(&|l, v| format!("{l}\n{v}\n\n"))),
        4 => (false, format!("{{\n{}\n}}", quoted('"').trim_end().trim_end_matches(','))),
        5 => (false, format!("{{\n{}}}", quoted('\''))),
        6 => (true, format!("<ul>{}</ul>", write_each(&|l, v| format!("<li><b>{l}:</b> {v}</li>")))),
        7 => (true, format!("<table>{}</table>", write_each(&|l, v| format!("<tr><td>{l}</td><td>{v}</td></tr>")))),
        8 => (true, format!("<dl>{}</dl>", write_each(&|l, v| format!("<dt>{l}<dd>{v}")))),
        9 => (true, format!("<p>{}</p>", write_each(&|l, v| format!("<span>{l}:</span> <i>{v}</i><br>")))),
        10 => {
            let (labels, values): (String, String) =
                fields.iter().map(|(l, v)| (format!("<th>{l}</th>"), format!("<td>{v}</td>"))).unzip();
            (true, format!("<table><tr>{labels}</tr><tr>{values}</tr></table>"))
        }
        _ => (true, format!("<p>{}", write_each(&|l, v| format!("<li><strong>{l}:</strong> <a href=>{v}</li></a>")))),
    }
}

const LAYOUTS: u8 = 24;

/// Encodes as quoted-printable, with soft line breaks at `width` (RFC 2045, 6.7).
fn quoted_printable(text: &str, width: usize) -> String {
    let (mut out, mut column) = (String::new(), 0);
    for byte in text.replace('\n', "\r\n").bytes() {
        let piece = match byte {
            b'\r' => continue,
            b'\n' => {
                out.push_str("\r\n");
                column = 0;
                continue;
            }
            b'=' | 128.. | 0..32 => format!("={byte:02X}"),
            b' ' => "=20".into(),
            byte => char::from(byte).to_string(),
        };
        if column + piece.len() > width {
            out.push_str("=\r\n");
            column = 0;
        }
        column += piece.len();
        out.push_str(&piece);
    }
    out
}

fn mail(html: bool, text: &str, encoding: u8, width: usize) -> Vec<u8> {
    let kind = if html { "html" } else { "plain" };
    let (encoding_name, body) = match encoding {
        0 => ("8bit", text.replace('\n', "\r\n")),
        1 => ("quoted-printable", quoted_printable(text, width)),
        _ => ("base64", {
            let code = STANDARD.encode(text.replace('\n', "\r\n"));
            code.as_bytes().chunks(width).map(|c| String::from_utf8_lossy(c) + "\r\n").collect()
        }),
    };
    let head =
        "From: Resmic <a@resmic.com>\r\nTo: b@shop.example\r\nSubject: About your order\r\nMIME-Version: 1.0\r\n";
    format!(
        "{head}Content-Type: text/{kind}; charset=utf-8\r\nContent-Transfer-Encoding: {encoding_name}\r\n\r\n{body}\r\n"
    )
    .into()
}

#[test]
fn a_configured_label_permits_sessions_in_the_list() {
    let session = "591abe63-aa61-411d-a419-0b546729bbd0";
    let items = ["Received:</b> $20", "Blockchain:</b> BASE", "Token:</b> DAI", &format!("Session ID:</b> {session}")];
    let hash = format!("Transaction Hash:</b> {}", hex(&[7; 32]));
    let items: String = items.into_iter().chain([hash.as_str()]).map(|item| format!("<li><b>{item}</li>")).collect();
    let mail = mail(true, &format!("<h2>Payment received</h2><p>{items}</p>"), 0, 70);
    assert!(
        matches!(parse(&mail), Parsed::Unreadable(reason) if reason.to_string().starts_with("conflict: session_id"))
    );
    let mut settings = ExtractSettings::default();
    settings.labels.session_id = vec!["Session ID".into()];
    let report = MailParser::new(&settings).parse(&mail, SignedFields { subject: true });
    assert!(matches!(report.parsed, Parsed::Payment(payment) if payment.session_id.as_deref() == Some(session)));
}

#[test]
fn the_published_list_needs_no_signed_subject() {
    let mail = include_bytes!("../../sample-mails/published/another-heading.eml");
    let wrong = String::from_utf8_lossy(mail).replace("Subject: Money has arrived", "Subject: Payment failed");
    for (bytes, subject, completed) in [
        (mail.as_slice(), true, true),
        (mail, false, true),
        (wrong.as_bytes(), false, true),
        (wrong.as_bytes(), true, false),
    ] {
        let report = MailParser::new(&ExtractSettings::default()).parse(bytes, SignedFields { subject });
        let is_completed = matches!(&report.parsed, Parsed::Payment(payment) if payment.status == Status::Completed);
        assert_eq!(is_completed, completed, "{:?}", report.parsed);
    }
}

#[test]
fn the_inspector_gets_the_parsed_message() {
    let parser = MailParser::new(&ExtractSettings::default());
    let signed = SignedFields { subject: true };
    let mail = "From: a@b\r\nSubject: Payment received\r\n\r\nx";
    let (report, subject) =
        parser.parse_and_inspect(mail.as_bytes(), signed, |message| message.subject().map(str::to_owned));
    assert_eq!(report.parsed, parse(mail.as_bytes()));
    assert_eq!(subject, Some(Some("Payment received".to_owned())));
    let much = format!("From: a@b\r\n{}\r\nx", "X-A: b\r\n".repeat(1_001));
    assert_eq!(parser.parse_and_inspect(much.as_bytes(), signed, |_| ()).1, None);
}

#[test]
fn a_mail_cut_at_a_limit_is_unreadable() {
    let mail = |kind: &str, start: &str, filler: String, end: &str| {
        format!("From: a@resmic.com\r\nSubject: News\r\nContent-Type: text/{kind}\r\n\r\n{start}{filler}{end}")
            .into_bytes()
    };
    let paid = "Amount: $20 Transaction Hash: 0xab";
    for (kind, start, filler, message) in [
        ("plain", "Hello\r\n", "x\r\n".repeat(6_000), "too-large: it has more than 5000 lines"),
        ("html", "<p <>Hello", "<p>x".repeat(6_000), "too-large: it has more than 5000 lines"),
        ("html", "<p <>Hello", " ".repeat(300 << 10), "too-large: it has more than 256 KiB of HTML that is not plain"),
    ] {
        let Parsed::Unreadable(reason) = parse(&mail(kind, start, filler, paid)) else { panic!("{message}") };
        assert_eq!(reason.to_string(), message);
        assert!(matches!(parse(&mail(kind, start, String::new(), "")), Parsed::NotAPayment(_)), "{kind}");
    }
}

proptest! {
    // A failure is printed in full, so no file of failures is kept.
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_layout_and_encoding_is_parsed(
        payment in payment(), layout in 0..LAYOUTS, encoding in 0..3_u8, width in 20..76_usize,
    ) {
        let (html, text) = body(&payment, layout);
        let mail = mail(html, &text, encoding, width);
        match parse(&mail) {
            Parsed::Payment(details) => prop_assert!(payment.equals(&details), "{details:?}\n{text}"),
            other => prop_assert!(false, "{other:?}\n{}", String::from_utf8_lossy(&mail)),
        }
    }

    /// Characters are inserted or removed anywhere. The parsed values must then still be in the visible text.
    #[test]
    fn damaged_mails_give_no_invented_values(
        payment in payment(), layout in 0..LAYOUTS, at in any::<prop::sample::Index>(), inserted in "[ -~]{0,3}", removed in 0..3_usize,
    ) {
        let (html, text) = body(&payment, layout);
        let at = at.index(text.len());
        let rest = text.get(at + removed..).unwrap_or_default();
        let damaged = format!("{}{inserted}{rest}", &text[..at]);
        if let Parsed::Payment(payment) = parse(&mail(html, &damaged, 0, 70)) {
            let shown = if html {
                html_view(&damaged).lines.iter().map(|l| l.to_text()).collect::<Vec<_>>().join("\n")
            } else {
                damaged.clone()
            };
            let is_shown = |value: &Option<String>| value.as_ref().is_none_or(|v| {
                let (value, shown) = (v.to_lowercase(), shown.to_lowercase());
                shown.contains(&value) || shown.replace(',', "").contains(&value)
            });
            for value in [&payment.amount, &payment.token, &payment.from_wallet_address, &payment.transaction_hash, &payment.session_id] {
                prop_assert!(is_shown(value), "{value:?} is not in\n{shown}");
            }
        }
    }

    #[test]
    fn any_bytes_are_parsed_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn any_mail_is_parsed_without_a_panic(
        kind in "(text/(plain|html)|multipart/(mixed|alternative)|message/rfc822)",
        parameters in "(; charset=(utf-8|utf-16|utf-7|iso-2022-jp|x)|; boundary=b|; format=flowed)?",
        encoding in "(7bit|base64|quoted-printable|x-uuencode)",
        body in "([ -~\u{a0}-\u{ff}]{0,40}|--b|<[a-z]{1,9}( style=\"[a-z:;0-9-]{0,20}\")?>|</[a-z]{1,9}>|\\{|\\}|Amount:|\n|&#?[a-z0-9]{0,6};?){0,80}",
    ) {
        let head = format!("From: a@resmic.com\r\nContent-Type: {kind}{parameters}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n");
        let _ = parse((head + &body).as_bytes());
    }

    #[test]
    fn any_html_is_rendered_without_a_panic(html in "(<[!/]?[a-zA-Z]{0,9}[^<>]{0,30}>?|[^<]{0,20}|<style>[^<]{0,40}</style>|<!--|-->){0,60}") {
        let _ = html_view(&html);
    }
}
