//! `status`: shows the health on one screen, with advice for each problem.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use comfy_table::{Cell, Color};
use jiff::Timestamp;

use super::output::{self, cell, line};
use crate::app;
use crate::boot_clock::BootInstant;
use crate::config::Config;
use crate::db::{self, DaemonLock, StoreReader, StreamRow};
use crate::health::{self, ChainHealth, Health, Mailbox};
use crate::model::MailboxState;
use crate::standby::{LeaseState, LeaseView};
use crate::units::count;

pub(super) fn run(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    // If the database cannot be read, the output is a report that has only this problem. So `status --json` always prints JSON.
    let (health, last_mail) = match lease(config) {
        Ok(None) => assess(config, None),
        // With `[standby]`, `status` reads the database only on the active host. On another host, a restore command may replace
        // the database at any time. If the active host cannot read its database, the output still has the role of the host,
        // because scripts read the role.
        Ok(Some(lease)) if lease.state == LeaseState::Active => assess(config, Some(&lease)).or_else(|error| {
            let mut health = Health::unknown(error.to_string());
            health.add_lease(&lease, BootInstant::now());
            Ok((health, None))
        }),
        Ok(Some(lease)) => Ok((Health::of_standby(&lease, &app::own_program(config), BootInstant::now()), None)),
        Err(error) => Ok((Health::unknown(format!("{error:#}")), None)),
    }
    .unwrap_or_else(|error| (Health::unknown(error.to_string()), None));
    let printed = if json { output::json(&health) } else { print(config, &health, last_mail.as_deref()) };
    output::ignore_closed_pipe(printed)?;
    Ok(if health.ok { ExitCode::SUCCESS } else { ExitCode::from(super::FAILED) })
}

fn assess(config: &Config, lease: Option<&LeaseView>) -> db::Result<(Health, Option<String>)> {
    let reader = StoreReader::open(&config.database())?;
    let running = DaemonLock::is_held(&config.database())?;
    let mut health = health::assess(&reader, &app::expected(config), running, Timestamp::now())?;
    if let Some(lease) = lease {
        health.add_lease(lease, BootInstant::now());
    }
    Ok((health, reader.last_mail()?))
}

/// The lease in the last report of this host's daemon; `None` without `[standby]`.
fn lease(config: &Config) -> anyhow::Result<Option<LeaseView>> {
    let Some(standby) = &config.standby else { return Ok(None) };
    let (_, report) = app::standby_report(config, standby)?;
    Ok(Some(report.context(health::NOT_RUNNING)?.view()))
}

fn print(config: &Config, health: &Health, last_mail: Option<&str>) -> anyhow::Result<()> {
    let (summary, colour) = if health.ok { ("it is working", "32") } else { ("it needs attention", "31") };
    line(&paint(summary, colour))?;
    for problem in &health.attention {
        line(&format!("  - {}", crate::model::printable(problem, 400)))?;
    }
    if let Some(role) = &health.role {
        line(&format!("\nthis host is {}; {}", role.state.as_str(), cell(Some(&role.lease.describe()))))?;
    }
    if !health.mailboxes.is_empty() {
        line("")?;
        print_mailboxes(&health.mailboxes)?;
    }
    if !health.streams.is_empty() {
        line("")?;
        health.streams.iter().try_for_each(print_stream)?;
    }
    if !health.chains.is_empty() {
        line("")?;
        health.chains.iter().try_for_each(print_chain)?;
    }
    if let Some(resmic) = &health.resmic {
        let asked = resmic.asked_at.as_deref().map_or("not asked yet".to_owned(), |at| format!("asked {at}"));
        let error = resmic.last_error.as_ref().map_or(String::new(), |error| format!("; {}", cell(Some(error))));
        line(&format!(
            "\nresmic at {}: {} waiting, {} without a mail; {asked}{error}",
            cell(resmic.host.as_deref()),
            count(resmic.waiting, "event"),
            count(resmic.missing_mails, "session")
        ))?;
    }
    line("")?;
    let mut kinds = vec![("mails", &health.mails), ("events", &health.events), ("deliveries", &health.deliveries)];
    if health.confirmations.values().any(|n| *n > 0) || !config.chains.is_empty() {
        kinds.push(("confirmations", &health.confirmations));
    }
    for (name, counts) in kinds {
        let counts: Vec<_> = counts.iter().map(|(word, n)| format!("{n} {word}")).collect();
        line(&format!("{name:<11} {}", if counts.is_empty() { "-".into() } else { counts.join(", ") }))?;
    }
    line(&format!("{:<11} {}", "last mail", cell(last_mail)))?;
    for account in &health.accounts {
        let at = cell(account.last_notification_at.as_deref());
        line(&format!("last notification of {}: {at}", cell(Some(&account.account))))?;
    }
    if config.trust.accepts_unproven() {
        line("\nnote: [trust] accept has \"none\": mails are trusted without proof; use it for tests only")?;
    }
    Ok(())
}

/// Prints a line for a target that is a stream, and a line for each note about the stream.
fn print_stream(stream: &StreamRow) -> anyhow::Result<()> {
    let version = stream.version.as_ref().map_or(String::new(), |version| format!(", NATS {}", cell(Some(version))));
    line(&format!(
        "target {}: stream {} at {}{version}; {}",
        cell(Some(&stream.target)),
        cell(Some(&stream.stream)),
        cell(Some(&stream.servers)),
        stream.state
    ))?;
    stream.notes.iter().try_for_each(|note| line(&format!("  note: {}", crate::model::printable(note, 400))))
}

/// Prints a line about the nodes of a chain.
fn print_chain(chain: &ChainHealth) -> anyhow::Result<()> {
    let number = |value: Option<i64>| value.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let behind = chain.head.zip(chain.final_block).map(|(head, last)| head - last);
    let asked = chain.asked_at.as_deref().map_or("not asked yet".to_owned(), |at| format!("asked {at}"));
    let error = chain.last_error.as_ref().map_or(String::new(), |error| format!("; {}", cell(Some(error))));
    line(&format!(
        "chain {} at {}: newest block {}, {} s old; final is {} ({} s) behind; {} waiting; {asked}{error}",
        cell(Some(&chain.name)),
        cell(Some(&chain.nodes.join(", "))),
        number(chain.head),
        number(chain.head_age_s),
        behind.map_or_else(|| "-".to_owned(), |blocks| count(blocks, "block")),
        number(chain.final_lag_s),
        count(chain.waiting, "event"),
    ))
}

fn print_mailboxes(mailboxes: &[Mailbox]) -> anyhow::Result<()> {
    let mut table = output::table(&["account", "mailbox", "state", "last round trip", "error"]);
    for row in mailboxes {
        let failed = row.state == MailboxState::Failed.as_str();
        let state = Cell::new(&row.state).fg(if failed { Color::Red } else { Color::Green });
        let state = if is_terminal() { state } else { Cell::new(&row.state) };
        let [seen, error] = [&row.last_seen_at, &row.last_error].map(|v| Cell::new(cell(v.as_deref())));
        let names = [&row.account, &row.mailbox].map(|v| Cell::new(cell(Some(v))));
        table.add_row(names.into_iter().chain([state, seen, error]));
    }
    line(&table.trim_fmt())
}

fn paint(text: &str, colour: &str) -> String {
    if is_terminal() { format!("\u{1b}[{colour}m{text}\u{1b}[0m") } else { text.to_owned() }
}

/// Whether the output has colours: on a terminal, unless `NO_COLOR` is set (no-color.org).
fn is_terminal() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}
