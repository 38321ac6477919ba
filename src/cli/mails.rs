//! `mails`: what was judged, and the stored originals.

use std::io::Write;

use anyhow::Context;

use super::output::{self, cell};
use crate::config::Config;
use crate::model::Outcome;
use crate::store::Reader;

pub(super) fn list(config: &Config, outcome: Option<Outcome>, json: bool) -> anyhow::Result<()> {
    let reader = Reader::open(&config.database())?;
    let outcome = outcome.map(Outcome::as_str);
    if json {
        return reader.mails::<anyhow::Error>(outcome, None, |mail| output::json(&mail));
    }
    let mut table = output::table(&["id", "judged", "outcome", "from", "subject", "reason"]);
    reader.mails::<anyhow::Error>(outcome, None, |m| {
        let [from, subject, reason] = [&m.sender, &m.subject, &m.reason].map(|v| cell(v.as_deref()));
        table.add_row([m.id.to_string(), m.judged_at, m.outcome, from, subject, reason]);
        Ok(())
    })?;
    output::line(&table.trim_fmt())
}

/// The bytes as they came, for `| less`, `| resmic-mailhook parse -`, or another program.
pub(super) fn raw(config: &Config, id: i64) -> anyhow::Result<()> {
    let bytes = Reader::open(&config.database())?
        .raw(id)?
        .with_context(|| format!("no mail {id}"))?
        .with_context(|| format!("the bytes of mail {id} were pruned"))?;
    Ok(std::io::stdout().lock().write_all(&bytes)?)
}
