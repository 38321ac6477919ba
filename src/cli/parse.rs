//! `parse`: parses mails from files and prints the payments that they report.

use std::path::PathBuf;
use std::process::ExitCode;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

use super::output;
use crate::app;
use crate::config::Config;
use crate::examine::Rules;
use crate::extract::ParseReport;
use crate::model::{
    self, Event, Examined, Judgement, Origin, Outcome, RawMail, Reason, SignedHeaders, Trust, TrustProof,
};
use crate::source::files::FileMail;
use crate::trust::{self, dns::Resolver};

/// The options of `parse`.
#[derive(Clone, Copy)]
pub(super) struct ParseOptions {
    pub(super) json: bool,
    pub(super) explain: bool,
    pub(super) trust: bool,
}

/// The output of `--json` for a mail. The keys are an interface.
#[derive(Serialize)]
struct ParsedLine<'a> {
    file: &'a str,
    outcome: Outcome,
    reason: Option<String>,
    trust: Option<Trust>,
    event: Option<EventLine<'a>>,
    webhook: Option<Box<RawValue>>,
}

#[derive(Serialize)]
struct EventLine<'a> {
    session_id: Option<&'a str>,
    status: model::Status,
    amount: Option<&'a str>,
    currency: Option<&'a str>,
    blockchain: Option<&'a str>,
    token: Option<&'a str>,
    from_wallet_address: Option<&'a str>,
    transaction_hash: Option<&'a str>,
    #[serde(rename = "txTime")]
    tx_time_text: Option<String>,
    tx_time: Option<String>,
    order_ref: Option<&'a str>,
    event_id: Option<String>,
}

pub(super) async fn run(
    config: &Config,
    options: ParseOptions,
    account: Option<&str>,
    files: &[PathBuf],
) -> anyhow::Result<ExitCode> {
    let parsing = Parsing::new(config, options, account).await?;
    let (mut mails, reading) = super::read_files(files, parsing.max_size);
    let mut all_read = true;
    while let Some(found) = mails.recv().await {
        match found {
            Ok(mail) => parsing.print(mail).await?,
            Err(error) => {
                all_read = false;
                output::message(&format!("error: {error}"));
            }
        }
    }
    reading.await?;
    Ok(if all_read { ExitCode::SUCCESS } else { ExitCode::from(super::FAILED) })
}

struct Parsing {
    options: ParseOptions,
    rules: Rules,
    resolver: Option<Resolver>,
    max_size: u64,
}

impl Parsing {
    async fn new(config: &Config, options: ParseOptions, name: Option<&str>) -> anyhow::Result<Self> {
        let account = match name {
            None if config.accounts.is_empty() => None,
            name => Some(super::account(config, name)?),
        };
        let rules = match account {
            // With --trust, the key of the signed addresses must be readable. Without --trust and without the key, the order of a
            // mail stays empty.
            Some(account) if options.trust => app::rules(config, account).await?,
            Some(account) => app::rules_with(config, account, app::addresses(config).await.unwrap_or_default())?,
            None => app::rules_without_account(config),
        };
        let resolver = if options.trust { Some(Resolver::new(&config.dns)?) } else { None };
        Ok(Parsing { options, rules, resolver, max_size: account.map_or(1 << 20, |a| a.max_size.0) })
    }

    async fn print(&self, mail: FileMail) -> anyhow::Result<()> {
        let name = mail.name;
        let origin = Origin { account: String::new(), mailbox: String::new(), uid: None };
        let mail = RawMail { origin, bytes: mail.bytes, size: mail.size, received_at: None };
        let (examined, report) = self.examine(&mail).await;
        if self.options.json {
            print_json(&name, &examined)?;
        } else {
            print_plain(&name, &examined)?;
        }
        if self.options.explain { explain(&report, self.options.json) } else { Ok(()) }
    }

    async fn examine(&self, mail: &RawMail) -> (Examined, ParseReport) {
        match &self.resolver {
            Some(resolver) => {
                let authenticity = self.rules.authenticate(mail, resolver, Timestamp::now()).await;
                self.rules.examine_with(mail, authenticity)
            }
            None => {
                // Shows the outcome that a trusted mail would have. The mail was not authenticated, so no trust is printed.
                let to = trust::to_addresses(&mail.bytes);
                let proof = TrustProof {
                    trust: Trust::None,
                    domain: None,
                    selector: None,
                    signed_headers: SignedHeaders::All,
                    to,
                };
                let (mut examined, report) = self.rules.examine_trusted(mail, proof);
                examined.proof = None;
                (examined, report)
            }
        }
    }
}

fn outcome(judgement: &Judgement) -> (Outcome, Option<&Reason>, Option<&Event>) {
    match judgement {
        Judgement::Event(event) => (Outcome::Event, None, Some(event)),
        Judgement::Ignored(reason) => (Outcome::Ignored, Some(reason), None),
        Judgement::Quarantined(reason) => (Outcome::Quarantined, Some(reason), None),
        Judgement::Deferred(reason) => (Outcome::Deferred, Some(reason), None),
    }
}

fn print_json(file: &str, examined: &Examined) -> anyhow::Result<()> {
    let (outcome, reason, event) = outcome(&examined.judgement);
    output::json(&ParsedLine {
        file,
        outcome,
        reason: reason.map(ToString::to_string),
        trust: examined.proof.as_ref().map(|p| p.trust),
        event: event.map(event_line),
        webhook: event.map(|e| RawValue::from_string(e.webhook())).transpose()?,
    })
}

fn event_line(event: &Event) -> EventLine<'_> {
    let payment = &event.payment;
    EventLine {
        session_id: payment.session_id.as_deref(),
        status: payment.status,
        amount: payment.amount.as_deref(),
        currency: payment.currency.as_deref(),
        blockchain: payment.blockchain.as_deref(),
        token: payment.token.as_deref(),
        from_wallet_address: payment.from_wallet_address.as_deref(),
        transaction_hash: payment.transaction_hash.as_deref(),
        tx_time_text: payment.tx_time.map(model::webhook_time),
        tx_time: event.time().map(model::iso),
        order_ref: event.order_ref.as_deref(),
        event_id: event.id().map(|id| id.to_string()),
    }
}

fn print_plain(file: &str, examined: &Examined) -> anyhow::Result<()> {
    let (outcome, reason, event) = outcome(&examined.judgement);
    let reason = reason.map(|r| format!(" ({r})")).unwrap_or_default();
    let trust = examined.proof.as_ref().map(|p| format!(", trust {}", p.trust)).unwrap_or_default();
    output::line(&format!("{}: {outcome}{reason}{trust}", model::printable(file, 500)))?;
    let Some(event) = event else { return Ok(()) };
    let line = event_line(event);
    let fields = [
        ("status", Some(line.status.as_str())),
        ("session_id", line.session_id),
        ("amount", line.amount),
        ("currency", line.currency),
        ("blockchain", line.blockchain),
        ("token", line.token),
        ("from_wallet_address", line.from_wallet_address),
        ("transaction_hash", line.transaction_hash),
        ("txTime", line.tx_time_text.as_deref()),
        ("tx_time", line.tx_time.as_deref()),
        ("order_ref", line.order_ref),
        ("event_id", line.event_id.as_deref()),
    ];
    for (name, value) in fields {
        output::line(&format!("  {name:<20} {}", output::cell(value)))?;
    }
    Ok(())
}

/// Prints where in the mail each value was found. With `--json`, these lines go to standard error.
fn explain(report: &ParseReport, json: bool) -> anyhow::Result<()> {
    for note in &report.notes {
        let value = model::printable(&note.value, 120);
        let text = format!("  {:<20} {value:?} at {}: {}", note.field, note.place, note.usage);
        if json { output::message(&text) } else { output::line(&text)? }
    }
    Ok(())
}
