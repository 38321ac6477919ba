//! `import`: stores mails from files. The command examines the mails and writes them into the database as `run` does.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use serde::Serialize;

use super::output;
use super::standby::ActiveHost;
use crate::app;
use crate::config::Config;
use crate::db::Store;
use crate::ingest::Ingest;
use crate::model::{Origin, Outcome, RawMail};
use crate::payments::Recorded;
use crate::source::files::FileMail;
use crate::telemetry::PushLatency;
use crate::trust::dns::Resolver;

/// The output of `--json` for a mail. The keys are an interface.
#[derive(Serialize)]
struct ImportedLine<'a> {
    file: &'a str,
    outcome: Outcome,
    reason: Option<String>,
    event_id: Option<&'a str>,
    mail_id: Option<i64>,
}

pub(super) async fn run(
    config: &Config,
    active: &ActiveHost<'_>,
    name: Option<&str>,
    json: bool,
    paths: &[PathBuf],
) -> anyhow::Result<ExitCode> {
    let account = super::account(config, name)?;
    let ingest = Ingest {
        account: account.name.clone(),
        rules: Arc::new(app::rules(config, account).await?),
        resolver: Arc::new(Resolver::new(&config.dns)?),
        store: Store::open(app::store_settings(config))?,
        latency: PushLatency::default(),
    };
    let (mut mails, reading) = super::read_files(paths, account.max_size.0);
    let progress = output::progress("{spinner} mails: {pos}, {per_sec}");
    let (mut counts, mut all_read) = (BTreeMap::new(), true);
    let mut batch = Vec::new();
    while mails.recv_many(&mut batch, super::BATCH).await > 0 {
        let (found, unread): (Vec<_>, Vec<_>) = batch.drain(..).partition(Result::is_ok);
        for error in unread.into_iter().filter_map(Result::err) {
            all_read = false;
            progress.suspend(|| output::message(&format!("error: {error}")));
        }
        let (names, raw): (Vec<_>, Vec<_>) = found.into_iter().flatten().map(|m| mail(&account.name, m)).unzip();
        let recorded = ingest.record_now(raw).await?;
        for (name, recorded) in names.iter().zip(&recorded) {
            *counts.entry(recorded.outcome).or_insert(0_u64) += 1;
            if json {
                // The progress bar may be on the same terminal, so it is hidden while the line is printed.
                progress.suspend(|| output::ignore_closed_pipe(print_json(name, recorded)))?;
            }
        }
        progress.inc(recorded.len() as u64);
        active.ensure_still_active()?;
    }
    ingest.store.close().await;
    progress.finish_and_clear();
    if !json {
        for (outcome, count) in &counts {
            output::ignore_closed_pipe(output::line(&format!("{outcome:<12} {count}")))?;
        }
    }
    reading.await?;
    Ok(if all_read { ExitCode::SUCCESS } else { ExitCode::from(super::FAILED) })
}

fn mail(account: &str, found: FileMail) -> (String, RawMail) {
    let origin = Origin { account: account.to_owned(), mailbox: "import".into(), uid: None };
    (found.name, RawMail { origin, bytes: found.bytes, size: found.size, received_at: None })
}

fn print_json(file: &str, recorded: &Recorded) -> anyhow::Result<()> {
    output::json(&ImportedLine {
        file,
        outcome: recorded.outcome,
        reason: recorded.reason.as_ref().map(ToString::to_string),
        event_id: recorded.event_id.as_deref(),
        mail_id: recorded.mail_id,
    })
}
