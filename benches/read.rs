//! How many mails of the published layout are read in a second, beside what taking the mail apart costs alone; and what
//! the worst that anyone can send costs, in time and memory.
//!
//! `cargo bench --bench read`. The limits: 5,000 mails a second on one core; 50 ms of CPU per 100 KB of any input, and memory
//! of ten times its size.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout)]

use std::fs;
use std::path::Path;

use divan::counter::ItemsCount;
use mail_parser::MessageParser;
use resmic_mailhook::extract::{ExtractSettings, MailParser, Parsed, SignedFields};

fn main() {
    worst_cases();
    divan::main();
}

fn published() -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("sample-mails/published/sepolia.eml")).unwrap()
}

/// The floor: the mail is taken apart, and nothing is read.
#[divan::bench]
fn floor_taking_it_apart(bencher: divan::Bencher<'_, '_>) {
    let mail = published();
    bencher.counter(ItemsCount::new(1_u32)).bench(|| MessageParser::default().parse(&mail).map(|m| m.parts.len()));
}

/// The reading: taken apart, rendered, labelled, agreed, judged.
#[divan::bench]
fn reading_it(bencher: divan::Bencher<'_, '_>) {
    let (mail, parser) = (published(), MailParser::new(&ExtractSettings::default()));
    bencher.counter(ItemsCount::new(1_u32)).bench(|| {
        let report = parser.parse(&mail, SignedFields { subject: true });
        assert!(matches!(report.parsed, Parsed::Payment(_)));
        report
    });
}

/// About so many bytes of each thing that is dear to read.
const SIZE: usize = 1 << 20;

fn many(text: &str) -> String {
    text.repeat(SIZE / text.len())
}

fn worst() -> Vec<(&'static str, String)> {
    let plain = |body: String| format!("From: a@b\r\nSubject: Payment received\r\n\r\n{body}");
    let html = |body: String| format!("From: a@b\r\nContent-Type: text/html; charset=utf-8\r\n\r\n{body}");
    let parts = |body: String| format!("From: a@b\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n{body}");
    let levels: String =
        (0..60).map(|n| format!("--b{n}\r\nContent-Type: multipart/mixed; boundary=b{}\r\n\r\n", n + 1)).collect();
    let encoded = "=?utf-8?B?UGF5bWVudA==?= ";
    vec![
        ("words", plain(many("lorem ipsum "))),
        ("one long line", plain("x".repeat(SIZE))),
        ("lines", plain(many("x\r\n"))),
        ("labels", plain(many("Amount: $20\r\n"))),
        ("labels that contradict", plain((0..SIZE / 20).map(|n| format!("Amount: ${n}\r\n")).collect())),
        ("labels without values", plain(many("Amount\r\n"))),
        ("headers of forwarded mails", plain(many("From: a\r\n"))),
        ("braces", plain(many("{"))),
        ("objects", plain(many("{a:1}"))),
        ("open objects", plain(many("{\"amount\":"))),
        ("cells", plain(many("| Amount | $20 "))),
        ("colons", plain(many(":"))),
        ("links", plain(many("https://etherscan.io/tx/0xab "))),
        ("flowed", format!("From: a@b\r\nContent-Type: text/plain; format=flowed\r\n\r\n{}", many("a \r\n"))),
        ("tags", html(many("<b>"))),
        ("nested blocks", html(many("<div>"))),
        ("nested tables", html(many("<table><tr><td>"))),
        ("rows", html(many("<tr><td>Amount<td>$20"))),
        ("one row", html(format!("<tr>{}", many("<td>Amount<td>$20")))),
        ("overlapping", html(many("<b><i><a></b></i>"))),
        ("end tags", html(many("</b>"))),
        ("hidden, overlapping", html(many("<p><b hidden></p>"))),
        ("attributes", html(format!("<p {}>", many("a=b ")))),
        (
            "different attributes",
            html(format!("<p {}>", (0..SIZE / 6).map(|n| format!("a{n:x} ")).collect::<String>())),
        ),
        ("styles", html(many("<p style='color:#fff;background:#fff;a:b'>"))),
        ("sheets", html(format!("<style>{}</style>{}", many(".a{color:red}"), many("<p class=a>")))),
        ("selectors", html(format!("<style>{}{{display:none}}</style>", many(".a,")))),
        ("comments", html(many("<!---->"))),
        ("open comments in sheets", html(format!("<style>{}</style>", many("/*")))),
        ("entities", html(many("&amp;&#36;"))),
        ("media", html(format!("<style>{}</style>", many("@media x{")))),
        ("parts", parts(many("--b\r\n\r\nx\r\n"))),
        ("levels of parts", parts(levels + &many("x\r\n--b"))),
        ("mails in mails", parts(many("--b\r\nContent-Type: message/rfc822\r\n\r\nFrom: a@b\r\n\r\n"))),
        ("dashes", parts(many("--"))),
        ("header lines", many("X-A: b\r\n")),
        ("one header field", format!("Subject: {}\r\nFrom: a@b\r\n\r\n", many(encoded))),
        ("addresses", format!("To: {}\r\nFrom: a@b\r\n\r\n", many("a@b, "))),
        ("received", format!("From: a@b\r\n{}\r\n\r\n", many("Received: from a by b;\r\n"))),
        ("parameters", format!("From: a@b\r\nContent-Type: text/plain; {}\r\n\r\nx", many("a*0=b; "))),
        (
            "quoted-printable",
            plain(many("=41=\r\n")).replace("\r\n\r\n", "\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"),
        ),
        ("utf-7", format!("From: a@b\r\nContent-Type: text/plain; charset=utf-7\r\n\r\n{}", many("+AGEAYQ-"))),
    ]
}

fn worst_cases() {
    let parser = MailParser::new(&ExtractSettings::default());
    let mut measured: Vec<(f64, f64, &str, String)> = worst()
        .into_iter()
        .map(|(name, mail)| {
            fs::write("/proc/self/clear_refs", "5").unwrap();
            let (before, began) = (status("VmRSS"), cpu());
            let report = parser.parse(mail.as_bytes(), SignedFields { subject: true });
            let spent = (cpu() - began) * 1e3 / (mail.len() as f64 / 1e5);
            let memory = (status("VmHWM") - before).max(0.0) * 1024.0 / mail.len() as f64;
            let said = match report.parsed {
                Parsed::Payment(_) => "a payment".to_owned(),
                Parsed::Empty => "nothing to read".to_owned(),
                Parsed::NotAPayment(reason) | Parsed::Unreadable(reason) => {
                    reason.to_string().chars().take(60).collect()
                }
            };
            (spent, memory, name, said)
        })
        .collect();
    measured.sort_by(|a, b| b.0.total_cmp(&a.0));
    println!("{SIZE} bytes of               ms of CPU per 100 KB (limit 50)   memory per byte (limit 10)");
    for (spent, memory, name, said) in &measured {
        println!("  {name:<28}{spent:>10.2}{memory:>12.1}   {said}");
    }
    let over: Vec<_> = measured.iter().filter(|(spent, memory, ..)| *spent > 50.0 || *memory > 10.0).collect();
    assert!(over.is_empty(), "over the limit: {over:?}");
}

/// A line of this process's memory, in KiB.
fn status(name: &str) -> f64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Seconds that this thread has run.
fn cpu() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1e9
}
