//! `session` and `address`: telling us which session is for which order.

use super::args::NewSession;
use super::output::{self, cell};
use crate::config::Config;
use crate::db::StoreReader;
use crate::model;
use crate::payments::SignedAddresses;
use crate::payments::{self};

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
    let settled = super::writing(config, async |store| store.session_add(session).await).await?;
    if settled.resolved + settled.released + settled.held > 0 {
        output::say(&format!(
            "events that have their session now: {}; deliveries let go: {}, held: {}",
            settled.resolved, settled.released, settled.held
        ));
    }
    for event in &settled.too_late {
        output::say(&format!("delivered before, and contradicts it: event {}", model::printable(event, 400)));
    }
    Ok(())
}

pub(super) fn list(config: &Config, json: bool) -> anyhow::Result<()> {
    let reader = StoreReader::open(&config.database())?;
    if json {
        return reader.sessions::<anyhow::Error>(|session| output::json(&session));
    }
    let mut table = output::table(&["session", "order", "amount", "chain", "token", "registered", "status"]);
    reader.sessions::<anyhow::Error>(|s| {
        let [order, amount, chain, token, status] =
            [&s.order_ref, &s.amount, &s.blockchain, &s.token, &s.status].map(|v| cell(v.as_deref()));
        // Others insert here, and of a session's id only its length is asked.
        table.add_row([cell(Some(&s.session_id)), order, amount, chain, token, s.created_at, status]);
        Ok(())
    })?;
    output::line(&table.trim_fmt())
}

/// A person's word on which session an event belongs to.
pub(super) async fn assign(config: &Config, event_id: &str, session_id: &str) -> anyhow::Result<()> {
    // Nothing is made where nothing is.
    drop(StoreReader::open(&config.database())?);
    let assigned = super::writing(config, async |store| store.session_assign(event_id, session_id).await).await?;
    let before = assigned.before.map(|id| format!(", and was of {id}")).unwrap_or_default();
    output::line(&format!(
        "event {event_id} is of session {session_id} now{before}; deliveries let go: {}",
        assigned.released
    ))?;
    if !assigned.registered {
        output::say("the session is not registered: its amount could not be compared");
    }
    Ok(())
}

/// Prints the signed address to give Resmic as `webhook_url`.
pub(super) async fn address(config: &Config, order_ref: &str) -> anyhow::Result<()> {
    let Some(address) = &config.sessions.address else {
        return Err(config
            .wrong("sessions", "expected address = { mailbox = …, key = … } for signed addresses")
            .into());
    };
    let key = config.secret("sessions.address.key", &address.key).await?;
    let addresses = SignedAddresses::new(&address.mailbox, &key)
        .map_err(|words| config.wrong("sessions.address.mailbox", words))?;
    output::line(&addresses.address_for(order_ref).map_err(super::Usage)?)
}
