//! `session check` and `reconcile`: both commands ask Resmic's API now, and write the answers into the database as the daemon
//! does.

use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;

use super::output::{self, cell};
use super::standby::ActiveHost;
use crate::app;
use crate::chain::ConfirmationState;
use crate::config::Config;
use crate::db::{self, EventQuery, EventRow, Store, StoreReader};
use crate::inquire::{Inquirer, SessionAnswers};
use crate::model::{DeliveryState, iso, printable};
use crate::payments::RecordedSession;
use crate::resmic::{ApiError, SessionId};

/// The output of `session check` and `reconcile` for a session: Resmic's answer, and the finding. The keys of the JSON are an
/// interface.
#[derive(Serialize)]
struct AnswerLine {
    session_id: String,
    payment_status: Option<String>,
    amount: Option<String>,
    updated_at: Option<String>,
    transaction_hash: Option<String>,
    blockchain: Option<String>,
    token: Option<String>,
    from_wallet_address: Option<String>,
    error: Option<String>,
    finding: &'static str,
    reason: Option<String>,
    event_id: Option<String>,
    held_event_id: Option<String>,
    held_reason: Option<String>,
}

impl AnswerLine {
    fn new(session: SessionId, answers: SessionAnswers) -> Self {
        let SessionAnswers { status, details, recorded } = answers;
        let error = status.as_ref().err().map(ToString::to_string);
        let (status, details) = (status.ok(), details.and_then(Result::ok));
        let (finding, reason, event_id) = match recorded {
            RecordedSession::NotRegistered => ("not-registered", None, None),
            RecordedSession::Waits | RecordedSession::NeedsDetails => ("waits", None, None),
            RecordedSession::Agrees => ("agrees", None, None),
            RecordedSession::MailMissing => ("mail-missing", None, None),
            RecordedSession::NeedsReview(reason) => ("needs-review", Some(reason.to_string()), None),
            RecordedSession::Event { event_id, .. } => ("event", None, Some(event_id)),
        };
        let details = details.as_ref();
        AnswerLine {
            session_id: session.to_string(),
            payment_status: status.as_ref().map(|answer| answer.payment_status.to_string()),
            amount: status.as_ref().and_then(|answer| answer.amount.clone()),
            updated_at: status.as_ref().and_then(|answer| answer.updated_at).map(iso),
            transaction_hash: details.and_then(|d| d.transaction_hash.clone()),
            blockchain: details.and_then(|d| d.blockchain.clone()),
            token: details.and_then(|d| d.token.clone()),
            from_wallet_address: details.and_then(|d| d.from_wallet_address.clone()),
            error,
            finding,
            reason,
            event_id,
            held_event_id: None,
            held_reason: None,
        }
    }

    /// Adds to the output the session's newest event that has a held delivery, and the reasons why the event's deliveries are
    /// held.
    fn with_held_event(mut self, reader: &StoreReader) -> anyhow::Result<Self> {
        if let Some(event) = newest_held_event(reader, &self.session_id)? {
            self.held_reason = Some(reasons_to_hold(&event));
            self.held_event_id = Some(event.event_id);
        }
        Ok(self)
    }

    fn print(&self) -> anyhow::Result<()> {
        let fields = [
            ("session_id", Some(&self.session_id)),
            ("payment_status", self.payment_status.as_ref()),
            ("amount", self.amount.as_ref()),
            ("updated_at", self.updated_at.as_ref()),
            ("transaction_hash", self.transaction_hash.as_ref()),
            ("blockchain", self.blockchain.as_ref()),
            ("token", self.token.as_ref()),
            ("from_wallet_address", self.from_wallet_address.as_ref()),
            ("error", self.error.as_ref()),
            ("finding", Some(&self.finding.to_owned())),
            ("reason", self.reason.as_ref()),
            ("event_id", self.event_id.as_ref()),
            ("held_event_id", self.held_event_id.as_ref()),
            ("held_reason", self.held_reason.as_ref()),
        ];
        for (name, value) in fields {
            // A held event can have three reasons, so this value may be longer than a cell of a table.
            let value = value.map_or_else(|| "-".into(), |value| printable(value, 1_000));
            output::line(&format!("{name:<20} {value}"))?;
        }
        Ok(())
    }

    /// Resmic's answer and the finding, as one line of text.
    fn line(&self) -> String {
        let detail = [&self.reason, &self.event_id, &self.error].into_iter().flatten().next();
        let status = cell(self.payment_status.as_deref());
        format!("{}  {status:<10} {:<14} {}", self.session_id, self.finding, cell(detail.map(String::as_str)))
    }
}

/// [`newest_held_event`] searches only the newest events of a session, at most this number.
const SEARCHED_EVENTS: u32 = 100;

/// The newest event of a session with a held delivery; `None` if the newest [`SEARCHED_EVENTS`] events have no such delivery.
fn newest_held_event(reader: &StoreReader, session_id: &str) -> db::Result<Option<EventRow>> {
    let query =
        EventQuery { session: Some(session_id.to_owned()), limit: Some(SEARCHED_EVENTS), ..EventQuery::default() };
    let mut events = Vec::new();
    reader.events::<db::Error>(&query, |event| {
        events.push(event);
        Ok(())
    })?;
    for event in events.into_iter().rev() {
        let deliveries = reader.deliveries_of_event(&event.event_id)?;
        if deliveries.iter().any(|delivery| delivery.state == DeliveryState::Held) {
            return Ok(Some(event));
        }
    }
    Ok(None)
}

/// The reasons why the deliveries of an event with a known session are held. The event's `hold`, Resmic and the chain can each
/// hold deliveries independently.
fn reasons_to_hold(event: &EventRow) -> String {
    let is_open =
        |state: &str| ![ConfirmationState::Confirmed, ConfirmationState::Operator].iter().any(|s| s.as_str() == state);
    let describe = |state: &str, reason: Option<&str>| match reason {
        Some(reason) => format!("{state}: {reason}"),
        None => state.to_owned(),
    };
    let resmic = event.clearance.as_deref().filter(|state| is_open(state));
    let resmic = resmic.map(|state| format!("Resmic: {}", describe(state, event.clearance_reason.as_deref())));
    let chain = event.confirmation.as_ref().filter(|confirmation| is_open(confirmation.state.as_str()));
    let chain = chain.map(|c| format!("chain: {}", describe(c.state.as_str(), c.reason.as_deref())));
    [event.hold.clone(), resmic, chain].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// Opens the database, and creates an [`Inquirer`] that writes Resmic's answers into this database. A missing database is an
/// error, and is not created.
async fn open(config: &Config) -> anyhow::Result<(Store, Inquirer)> {
    let client = app::resmic_client(config).await?;
    let (Some(client), Some(settings)) = (client, &config.resmic) else {
        return Err(config.wrong("resmic", "no [resmic] is configured, so Resmic cannot be asked").into());
    };
    drop(StoreReader::open(&config.database())?);
    let store = Store::open(app::store_settings(config))?;
    let inquirer = Inquirer::new(store.clone(), client, settings.rate);
    Ok((store, inquirer))
}

/// Asks Resmic about one session, and prints the answer (`session check`).
pub(super) async fn check(config: &Config, session_id: &str, json: bool) -> anyhow::Result<ExitCode> {
    let session: SessionId = session_id.trim().parse().map_err(super::UsageError)?;
    let (store, mut inquirer) = open(config).await?;
    let asked = inquirer.inquire_with_details(session).await;
    drop(inquirer);
    store.close().await;
    let reader = StoreReader::open(&config.database())?;
    let answer = AnswerLine::new(session, asked.context("asking Resmic")?).with_held_event(&reader)?;
    output::ignore_closed_pipe(if json { output::json(&answer) } else { answer.print() })?;
    Ok(if answer.error.is_none() { ExitCode::SUCCESS } else { ExitCode::from(super::FAILED) })
}

/// Asks Resmic about all registered sessions without a completed or failed event, and prints the answers (`reconcile`). Stops at
/// an error that only a person can resolve.
pub(super) async fn reconcile(config: &Config, active: &ActiveHost<'_>, json: bool) -> anyhow::Result<ExitCode> {
    let (store, mut inquirer) = open(config).await?;
    let asked = async {
        // Events may wait for sessions that were registered while no daemon was running.
        store.reconcile().await?;
        let mut failed = false;
        for session in store.unsettled_sessions().await? {
            let (status, recorded) = inquirer.inquire(session).await?;
            let needs_person = status.as_ref().err().is_some_and(ApiError::needs_person);
            let answer = AnswerLine::new(session, SessionAnswers { status, details: None, recorded });
            failed |= answer.error.is_some();
            if json {
                output::json(&answer)?
            } else {
                output::line(&answer.line())?
            }
            active.ensure_still_active()?;
            if needs_person {
                break;
            }
        }
        anyhow::Ok(failed)
    }
    .await;
    drop(inquirer);
    store.close().await;
    Ok(if asked? { ExitCode::from(super::FAILED) } else { ExitCode::SUCCESS })
}
