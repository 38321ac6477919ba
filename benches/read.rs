//! Measures the parser: mails of the published layout per second, next to MIME parsing alone, and the CPU time and memory
//! of the most expensive inputs.
//!
//! `cargo bench --bench read`. The limits: 5,000 mails per second on one core; for any input 50 ms of CPU per 100 KB, and
//! memory of ten times its size.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout)]

use std::fs;
use std::path::Path;

use divan::counter::ItemsCount;
use mail_parser::MessageParser;
use resmic_mailhook::extract::{ExtractSettings, MailParser, Parsed, SignedFields};

fn main() {
    measure_expensive_mails();
    divan::main();
}

fn published() -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("sample-mails/published/sepolia.eml")).unwrap()
}

/// The floor: MIME parsing alone.
#[divan::bench]
fn floor_mime_parsing(bencher: divan::Bencher<'_, '_>) {
    let mail = published();
    bencher.counter(ItemsCount::new(1_u32)).bench(|| MessageParser::default().parse(&mail).map(|m| m.parts.len()));
}

/// The whole parser, from the bytes to the payment: MIME, the visible text, labels and fields.
#[divan::bench]
fn payment_parsing(bencher: divan::Bencher<'_, '_>) {
    let (mail, parser) = (published(), MailParser::new(&ExtractSettings::default()));
    bencher.counter(ItemsCount::new(1_u32)).bench(|| {
        let report = parser.parse(&mail, SignedFields { subject: true });
        assert!(matches!(report.parsed, Parsed::Payment(_)));
        report
    });
}

/// The approximate size of each expensive input, in bytes.
const SIZE: usize = 1 << 20;

fn repeat_to_size(text: &str) -> String {
    text.repeat(SIZE / text.len())
}

fn expensive_mails() -> Vec<(&'static str, String)> {
    let plain = |body: String| format!("From: a@b\r\nSubject: Payment received\r\n\r\n{body}");
    let html = |body: String| format!("From: a@b\r\nContent-Type: text/html; charset=utf-8\r\n\r\n{body}");
    let parts = |body: String| format!("From: a@b\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n{body}");
    let levels: String =
        (0..60).map(|n| format!("--b{n}\r\nContent-Type: multipart/mixed; boundary=b{}\r\n\r\n", n + 1)).collect();
    let encoded = "=?utf-8?B?UGF5bWVudA==?= ";
    vec![
        ("words", plain(repeat_to_size("lorem ipsum "))),
        ("one long line", plain("x".repeat(SIZE))),
        ("lines", plain(repeat_to_size("x\r\n"))),
        ("labels", plain(repeat_to_size("Amount: $20\r\n"))),
        ("labels that contradict", plain((0..SIZE / 20).map(|n| format!("Amount: ${n}\r\n")).collect())),
        ("labels without values", plain(repeat_to_size("Amount\r\n"))),
        ("headers of forwarded mails", plain(repeat_to_size("From: a\r\n"))),
        ("braces", plain(repeat_to_size("{"))),
        ("objects", plain(repeat_to_size("{a:1}"))),
        ("open objects", plain(repeat_to_size("{\"amount\":"))),
        ("cells", plain(repeat_to_size("| Amount | $20 "))),
        ("colons", plain(repeat_to_size(":"))),
        ("links", plain(repeat_to_size("https://etherscan.io/tx/0xab "))),
        ("flowed", format!("From: a@b\r\nContent-Type: text/plain; format=flowed\r\n\r\n{}", repeat_to_size("a \r\n"))),
        ("tags", html(repeat_to_size("<b>"))),
        ("nested blocks", html(repeat_to_size("<div>"))),
        ("nested tables", html(repeat_to_size("<table><tr><td>"))),
        ("rows", html(repeat_to_size("<tr><td>Amount<td>$20"))),
        ("one row", html(format!("<tr>{}", repeat_to_size("<td>Amount<td>$20")))),
        ("overlapping", html(repeat_to_size("<b><i><a></b></i>"))),
        ("end tags", html(repeat_to_size("</b>"))),
        ("hidden, overlapping", html(repeat_to_size("<p><b hidden></p>"))),
        ("attributes", html(format!("<p {}>", repeat_to_size("a=b ")))),
        (
            "different attributes",
            html(format!("<p {}>", (0..SIZE / 6).map(|n| format!("a{n:x} ")).collect::<String>())),
        ),
        ("styles", html(repeat_to_size("<p style='color:#fff;background:#fff;a:b'>"))),
        (
            "sheets",
            html(format!("<style>{}</style>{}", repeat_to_size(".a{color:red}"), repeat_to_size("<p class=a>"))),
        ),
        ("selectors", html(format!("<style>{}{{display:none}}</style>", repeat_to_size(".a,")))),
        ("comments", html(repeat_to_size("<!---->"))),
        ("open comments in sheets", html(format!("<style>{}</style>", repeat_to_size("/*")))),
        ("entities", html(repeat_to_size("&amp;&#36;"))),
        ("media", html(format!("<style>{}</style>", repeat_to_size("@media x{")))),
        ("parts", parts(repeat_to_size("--b\r\n\r\nx\r\n"))),
        ("levels of parts", parts(levels + &repeat_to_size("x\r\n--b"))),
        ("mails in mails", parts(repeat_to_size("--b\r\nContent-Type: message/rfc822\r\n\r\nFrom: a@b\r\n\r\n"))),
        ("dashes", parts(repeat_to_size("--"))),
        ("header lines", repeat_to_size("X-A: b\r\n")),
        ("one header field", format!("Subject: {}\r\nFrom: a@b\r\n\r\n", repeat_to_size(encoded))),
        ("addresses", format!("To: {}\r\nFrom: a@b\r\n\r\n", repeat_to_size("a@b, "))),
        ("received", format!("From: a@b\r\n{}\r\n\r\n", repeat_to_size("Received: from a by b;\r\n"))),
        ("parameters", format!("From: a@b\r\nContent-Type: text/plain; {}\r\n\r\nx", repeat_to_size("a*0=b; "))),
        (
            "quoted-printable",
            plain(repeat_to_size("=41=\r\n"))
                .replace("\r\n\r\n", "\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"),
        ),
        (
            "utf-7",
            format!("From: a@b\r\nContent-Type: text/plain; charset=utf-7\r\n\r\n{}", repeat_to_size("+AGEAYQ-")),
        ),
    ]
}

fn measure_expensive_mails() {
    let parser = MailParser::new(&ExtractSettings::default());
    let mut measured: Vec<(f64, f64, &str, String)> = expensive_mails()
        .into_iter()
        .map(|(name, mail)| {
            fs::write("/proc/self/clear_refs", "5").unwrap();
            let (before, began) = (memory_kib("VmRSS"), cpu_seconds());
            let report = parser.parse(mail.as_bytes(), SignedFields { subject: true });
            let spent = (cpu_seconds() - began) * 1e3 / (mail.len() as f64 / 1e5);
            let memory = (memory_kib("VmHWM") - before).max(0.0) * 1024.0 / mail.len() as f64;
            let result = match report.parsed {
                Parsed::Payment(_) => "a payment".to_owned(),
                Parsed::Empty => "nothing to read".to_owned(),
                Parsed::NotAPayment(reason) | Parsed::Unreadable(reason) => {
                    reason.to_string().chars().take(60).collect()
                }
            };
            (spent, memory, name, result)
        })
        .collect();
    measured.sort_by(|a, b| b.0.total_cmp(&a.0));
    println!("{SIZE} bytes of               ms of CPU per 100 KB (limit 50)   memory per byte (limit 10)");
    for (spent, memory, name, result) in &measured {
        println!("  {name:<28}{spent:>10.2}{memory:>12.1}   {result}");
    }
    let over: Vec<_> = measured.iter().filter(|(spent, memory, ..)| *spent > 50.0 || *memory > 10.0).collect();
    assert!(over.is_empty(), "over the limit: {over:?}");
}

/// A line of `/proc/self/status`, in KiB.
fn memory_kib(name: &str) -> f64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The CPU time of this thread, in seconds.
fn cpu_seconds() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1e9
}
