//! Which session is it? Pure: what is registered and what an event says in, an answer out.

use jiff::Timestamp;

use crate::model::{self, Event, same_amount};

/// How sessions are matched by what was paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matching {
    /// Off by default: two customers may owe the same amount.
    pub enabled: bool,
    /// How long after its registration a session may still be matched.
    pub window: std::time::Duration,
}

/// A session that the merchant registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// Resmic's name for it.
    pub session_id: String,
    /// The merchant's name for what is paid.
    pub order_ref: Option<String>,
    /// US dollars, decimal text.
    pub amount: Option<String>,
    /// The chain that was asked for.
    pub blockchain: Option<String>,
    /// The token that was asked for.
    pub token: Option<String>,
    /// When it was registered.
    pub created_at: Timestamp,
    /// After this it is not matched any more.
    pub expires_at: Option<Timestamp>,
}

/// What found an event's session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The mail names it.
    Mail,
    /// The signed address that the mail was sent to.
    Address,
    /// The only open session with this amount, chain and token.
    Match,
    /// A person.
    Operator,
}
model::words!(Source, "session source", Mail => "mail", Address => "address", Match => "match", Operator => "operator");

/// The one open session that this event pays; `None` if there is none, or more than one.
#[must_use]
pub fn matching<'a>(event: &Event, open: &'a [Registered], how: Matching) -> Option<&'a Registered> {
    let at = event.time()?;
    let mut candidates = open.iter().filter(|session| is_candidate(event, session, at, how));
    match (candidates.next(), candidates.next()) {
        (Some(only), None) => Some(only),
        _ => None,
    }
}

fn is_candidate(event: &Event, session: &Registered, at: Timestamp, how: Matching) -> bool {
    let Some((owed, paid)) = session.amount.as_deref().zip(event.reading.amount.as_deref()) else { return false };
    // A payment's time knows no seconds, so it may stand up to a minute before its session.
    let age = at.as_second() - session.created_at.as_second();
    same_amount(owed, paid)
        && contradiction(event, session).is_none()
        && age >= -60
        && age <= i64::try_from(how.window.as_secs()).unwrap_or(i64::MAX)
        && session.expires_at.is_none_or(|end| at <= end)
}

/// In words, the first value registered for a session that the event contradicts. Absent is not different.
#[must_use]
pub fn contradiction(event: &Event, session: &Registered) -> Option<String> {
    let says = |field: &str, registered: &str, said: &str| {
        Some(format!("{field} is registered as {registered:?} for its session and the event says {said:?}"))
    };
    let r = &event.reading;
    if let Some((a, b)) = session.amount.as_deref().zip(r.amount.as_deref()).filter(|(a, b)| !same_amount(a, b)) {
        return says("amount", a, b);
    }
    let chains = session.blockchain.as_deref().zip(r.blockchain.as_deref());
    if let Some((a, b)) = chains.filter(|(a, b)| model::fold_chain(a) != model::fold_chain(b)) {
        return says("blockchain", a, b);
    }
    let tokens = session.token.as_deref().zip(r.token.as_deref());
    if let Some((a, b)) = tokens.filter(|(a, b)| !a.eq_ignore_ascii_case(b)) {
        return says("token", a, b);
    }
    None
}

// ---- placeholder below ----
/// placeholder
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// placeholder
    pub address: Option<AddressSettings>,
}
/// placeholder
#[derive(Debug, Clone, serde::Deserialize)]
pub struct AddressSettings {
    /// placeholder
    pub mailbox: String,
    /// placeholder
    pub key: crate::secret::Source,
}
impl Settings {
    /// placeholder
    pub fn check(&self) -> Result<(), (String, String)> {
        Ok(())
    }
    /// placeholder
    pub fn matching(&self) -> Matching {
        Matching { enabled: false, window: std::time::Duration::from_secs(2700) }
    }
}
/// placeholder
pub struct Addresses;
impl Addresses {
    /// placeholder
    pub fn new(_: &str, _: &secrecy::SecretString) -> Result<Self, String> {
        Ok(Addresses)
    }
    /// placeholder
    pub fn order_of(&self, _: &[String]) -> Option<String> {
        None
    }
}
