//! `session` registers, lists and assigns sessions. `address` prints the signed address of an order.

use super::args::NewSession;
use super::output::{self, cell};
use crate::config::Config;
use crate::db::StoreReader;
use crate::model;
use crate::payments::{self, SignedAddresses};

pub(super) async fn add(config: &Config, new: NewSession) -> anyhow::Result<()> {
    let NewSession { session_id, order, amount, blockchain, token } = new;
    let session = payments::SessionRegistration {
        session_id,
        order_ref: order,
        amount,
        blockchain,
        token,
        ..payments::SessionRegistration::default()
    };
    let reconciled = super::with_store(config, async |store| store.session_add(session).await).await?;
    if reconciled.resolved + reconciled.released + reconciled.held > 0 {
        output::message(&format!(
            "events assigned to the session: {}; deliveries released: {}, held: {}",
            reconciled.resolved, reconciled.released, reconciled.held
        ));
    }
    for event in &reconciled.too_late {
        let event = model::printable(event, 400);
        output::message(&format!("an event contradicts this registration, and was delivered before: {event}"));
    }
    Ok(())
}

pub(super) fn list(config: &Config, requested: Option<u32>, json: bool) -> anyhow::Result<()> {
    let reader = StoreReader::open(&config.database())?;
    let limit = output::limit(requested, json);
    if json {
        return reader.sessions::<anyhow::Error>(limit, |session| output::json(&session)).map(drop);
    }
    let mut table = output::LongTable::new(&["session", "order", "amount", "chain", "token", "registered", "status"]);
    let left_out = reader.sessions::<anyhow::Error>(limit, |s| {
        let [order, amount, chain, token, status] =
            [&s.order_ref, &s.amount, &s.blockchain, &s.token, &s.status].map(|v| cell(v.as_deref()));
        // Other programs insert rows into `sessions`, and the schema checks only the length of an id. So `cell` replaces control
        // characters in the id, too.
        table.add_row([cell(Some(&s.session_id)), order, amount, chain, token, s.created_at, status])
    })?;
    table.finish()?;
    output::report_left_out(requested, left_out);
    Ok(())
}

/// Assigns an event to a session, as the operator has decided.
pub(super) async fn assign(config: &Config, event_id: &str, session_id: &str) -> anyhow::Result<()> {
    // `StoreReader::open` fails if the database does not exist. Opening the store would create the database.
    drop(StoreReader::open(&config.database())?);
    let assigned = super::with_store(config, async |store| store.session_assign(event_id, session_id).await).await?;
    let before = assigned.before.map(|id| format!(" (before: {id})")).unwrap_or_default();
    output::line(&format!(
        "event {event_id} now belongs to session {session_id}{before}; deliveries released: {}",
        assigned.released
    ))?;
    if !assigned.registered {
        output::message("the session is not registered, so its amount was not compared");
    }
    Ok(())
}

/// Prints the signed address of an order. The merchant passes this address to Resmic as `webhook_url`.
pub(super) async fn address(config: &Config, order_ref: &str) -> anyhow::Result<()> {
    let Some(address) = &config.sessions.address else {
        return Err(config
            .wrong("sessions", "expected address = { mailbox = …, key = … } for signed addresses")
            .into());
    };
    let key = config.secret("sessions.address.key", &address.key).await?;
    let addresses = SignedAddresses::new(&address.mailbox, &key)
        .map_err(|message| config.wrong("sessions.address.mailbox", message))?;
    output::line(&addresses.address_for(order_ref).map_err(super::UsageError)?)
}
