//! Matches an event with the registered sessions. The functions are pure: they use no database and no clock.
//!
//! If two sessions match an event, no session is chosen. The program does not guess, and an operator can assign a session.

use jiff::Timestamp;

use crate::model::{self, Event, Matching, RegisteredSession, same_amount, same_token};

/// How an event's session was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionSource {
    /// The mail names the session.
    Mail,
    /// The mail was sent to a signed address, which names the order of the session.
    Address,
    /// The session was the only unpaid session that has the event's amount and contradicts no value of the event.
    Match,
    /// An operator assigned the session to the event.
    Operator,
    /// Resmic names the event's transaction for this session, or Resmic's API reported the event.
    Resmic,
}
model::string_enum!(SessionSource, "session source", Mail => "mail", Address => "address", Match => "match", Operator => "operator", Resmic => "resmic");

/// Returns the only session in `open` that this event may pay. `None`: no session matches, or more than one session matches.
#[must_use]
pub fn only_match<'a>(
    event: &Event,
    open: &'a [RegisteredSession],
    matching: Matching,
) -> Option<&'a RegisteredSession> {
    let at = event.time()?;
    only(open.iter().filter(|session| is_candidate(event, session, at, matching)))
}

fn only<T>(mut candidates: impl Iterator<Item = T>) -> Option<T> {
    match (candidates.next(), candidates.next()) {
        (Some(only), None) => Some(only),
        _ => None,
    }
}

/// Whether an event may pay a session, by amount, chain, token and time.
#[must_use]
pub fn may_pay(event: &Event, session: &RegisteredSession, matching: Matching) -> bool {
    event.time().is_some_and(|at| is_candidate(event, session, at, matching))
}

/// Whether Resmic may name the event's transaction for a session: the event does not contradict the session, and the payment was
/// made while the session could be paid. The event, the session or both may lack the amount.
#[must_use]
pub(super) fn may_have_transaction(event: &Event, session: &RegisteredSession, window: std::time::Duration) -> bool {
    contradiction(event, session).is_none() && event.time().is_some_and(|at| is_alive(session, at, window))
}

fn is_candidate(event: &Event, session: &RegisteredSession, at: Timestamp, matching: Matching) -> bool {
    let amounts = session.amount.as_deref().zip(event.payment.amount.as_deref());
    amounts.is_some_and(|(owed, paid)| same_amount(owed, paid))
        && contradiction(event, session).is_none()
        && is_alive(session, at, matching.window)
}

/// Whether a session may be paid at `at`: the session was registered at most `window` before `at`, and has not expired at `at`.
fn is_alive(session: &RegisteredSession, at: Timestamp, window: std::time::Duration) -> bool {
    // The time of a payment has no seconds, so the payment may seem to be up to a minute older than the registration.
    let age = at.as_second() - session.created_at.as_second();
    age >= -60
        && age <= i64::try_from(window.as_secs()).unwrap_or(i64::MAX)
        && session.expires_at.is_none_or(|end| at <= end)
}

/// Chooses the session that an event pays, from the sessions of the event's order.
///
/// The order is certain, so the only session of an order is chosen even if the event contradicts the session. The caller then
/// compares the event with the chosen session. If the order has several sessions, the function excludes the sessions that have a
/// completed event, that the event contradicts, or that could not be paid at the event's time. If more than one session is left,
/// the result is `None`. If no session is left, the function chooses again without the rule about the time, and then also without
/// the rule about contradictions.
#[must_use]
pub fn session_of_order<'a>(
    event: &Event,
    sessions: &'a [(RegisteredSession, bool)],
    window: std::time::Duration,
) -> Option<&'a RegisteredSession> {
    if let [(single, _)] = sessions {
        return Some(single);
    }
    let open = || sessions.iter().filter(|(_, completed)| !completed).map(|(session, _)| session);
    let fit = || open().filter(|session| contradiction(event, session).is_none());
    let alive = || fit().filter(|session| event.time().is_none_or(|at| is_alive(session, at, window)));
    // If there is only one unpaid session, this session is chosen even if the event contradicts it, so that the caller reports
    // the contradiction.
    only(alive()).or_else(|| only(fit())).or_else(|| if fit().next().is_none() { only(open()) } else { None })
}

/// Returns a message about the first registered value of the session that the event contradicts. A missing value contradicts
/// nothing.
#[must_use]
pub fn contradiction(event: &Event, session: &RegisteredSession) -> Option<String> {
    let mismatch = |field: &str, registered: &str, reported: &str| {
        Some(format!("{field} is registered as {registered:?} for its session and the event says {reported:?}"))
    };
    let payment = &event.payment;
    let amounts = session.amount.as_deref().zip(payment.amount.as_deref());
    if let Some((a, b)) = amounts.filter(|(a, b)| !same_amount(a, b)) {
        return mismatch("amount", a, b);
    }
    // Sessions are registered in US dollars. An amount in another currency contradicts the registered amount.
    let other = payment.currency.as_deref().filter(|currency| *currency != "USD");
    if let (Some(_), Some(currency)) = (amounts, other) {
        return mismatch("currency", "USD", currency);
    }
    let chains = session.blockchain.as_deref().zip(payment.blockchain.as_deref());
    if let Some((a, b)) = chains.filter(|(a, b)| model::fold_chain(a) != model::fold_chain(b)) {
        return mismatch("blockchain", a, b);
    }
    let tokens = session.token.as_deref().zip(payment.token.as_deref());
    if let Some((a, b)) = tokens.filter(|(a, b)| !same_token(a, b)) {
        return mismatch("token", a, b);
    }
    let orders = session.order_ref.as_deref().zip(event.order_ref.as_deref());
    orders.filter(|(a, b)| a != b).and_then(|(a, b)| mismatch("order_ref", a, b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{PaymentDetails, Status};

    const HOW: Matching = Matching { enabled: true, window: std::time::Duration::from_secs(2700) };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_741_145_760 + second).unwrap()
    }

    fn paid(amount: &str, chain: &str) -> Event {
        let payment = PaymentDetails {
            amount: Some(amount.into()),
            blockchain: Some(chain.into()),
            token: Some("DAI".into()),
            tx_time: Some(at(0)),
            ..PaymentDetails::new(Status::Completed)
        };
        Event { payment, header_time: None, order_ref: None }
    }

    fn owed(n: usize, amount: &str, age: i64) -> RegisteredSession {
        RegisteredSession {
            session_id: format!("591abe63-aa61-411d-a419-{n:012}"),
            order_ref: None,
            amount: Some(amount.into()),
            blockchain: None,
            token: None,
            created_at: at(-age),
            expires_at: None,
        }
    }

    #[test]
    fn the_only_session_in_the_window_matches() {
        let mut open = vec![owed(1, "20.00", 60), owed(2, "21", 60), owed(3, "20", 2701), owed(4, "20", -61)];
        assert_eq!(only_match(&paid("20", "Sepolia"), &open, HOW), Some(&open[0]));
        open[0].blockchain = Some("SEPOLIA".into());
        open[0].token = Some("dai".into());
        assert_eq!(only_match(&paid("20", "Sepolia"), &open, HOW), Some(&open[0]));
        assert_eq!(only_match(&paid("20", "Base"), &open, HOW), None);
        let mut tokens = paid("20", "Sepolia");
        tokens.payment.currency = Some("DOGE".into());
        assert_eq!(only_match(&tokens, &open, HOW), None);
        open[0].expires_at = Some(at(-1));
        assert_eq!(only_match(&paid("20", "Sepolia"), &open, HOW), None);
    }

    #[test]
    fn sessions_of_one_order_need_a_clear_match() {
        let event = paid("20", "Sepolia");
        let of = |sessions: &[(RegisteredSession, bool)]| {
            session_of_order(&event, sessions, HOW.window)
                .map(|s| s.session_id.trim_start_matches("591abe63-aa61-411d-a419-").to_owned())
        };
        let is = |n: usize| Some(format!("{n:012}"));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[(owed(1, "9000", 999_999), true)]), is(1), "a contradiction is for the caller to see");
        let (cheap, right, old) = (owed(1, "1", 60), owed(2, "20", 60), owed(3, "20", 9_999));
        assert_eq!(of(&[(cheap.clone(), false), (right.clone(), false)]), is(2));
        assert_eq!(of(&[(old.clone(), false), (right.clone(), false)]), is(2));
        assert_eq!(of(&[(old.clone(), false), (right.clone(), true)]), is(3));
        assert_eq!(of(&[(owed(4, "20", 30), false), (right.clone(), false)]), None, "both fit");
        assert_eq!(of(&[(cheap.clone(), false), (right.clone(), true)]), is(1));
        assert_eq!(of(&[(cheap.clone(), false), (owed(5, "2", 1), false)]), None);
    }

    #[test]
    fn a_token_matches_its_other_name() {
        let mut open = vec![owed(1, "20", 60)];
        let mut event = paid("20", "Sepolia");
        event.payment.token = Some("ethereum".into());
        for (asked, fits) in [("SETH", true), ("ETH", true), ("Ethereum", true), ("BNB", false), ("USDC", false)] {
            open[0].token = Some(asked.into());
            assert_eq!(only_match(&event, &open, HOW).is_some(), fits, "{asked}");
        }
    }

    #[test]
    fn another_order_contradicts_a_session() {
        let mut event = paid("20", "Sepolia");
        event.order_ref = Some("dear".into());
        let mut session = owed(1, "20", 0);
        assert_eq!(contradiction(&event, &session), None);
        session.order_ref = Some("cheap".into());
        assert!(contradiction(&event, &session).unwrap().starts_with("order_ref is registered as \"cheap\""));
    }

    fn any_session() -> impl Strategy<Value = RegisteredSession> {
        let amount = prop::sample::select(vec!["20", "20.0", "21", "020"]);
        let chain = prop::option::of(prop::sample::select(vec!["Sepolia", "SEPOLIA", "Base"]));
        (0..1000_usize, amount, chain, -200..4000_i64, prop::option::of(-100..100_i64)).prop_map(
            |(n, amount, chain, age, expires)| RegisteredSession {
                blockchain: chain.map(str::to_owned),
                expires_at: expires.map(at),
                ..owed(n, amount, age)
            },
        )
    }

    proptest! {
        #[test]
        fn an_ambiguous_match_never_resolves(open in prop::collection::vec(any_session(), 0..6)) {
            let event = paid("20", "Sepolia");
            // This closure implements the definition of a match in docs/sessions.md a second time.
            let fits = |s: &&RegisteredSession| {
                s.amount.as_deref().unwrap().parse::<f64>().unwrap() == 20.0
                    && s.blockchain.as_deref().is_none_or(|c| c.eq_ignore_ascii_case("sepolia"))
                    && s.created_at >= at(-2700) && s.created_at <= at(60)
                    && s.expires_at.is_none_or(|end| end >= at(0))
            };
            let fitting: Vec<_> = open.iter().filter(fits).collect();
            let found = only_match(&event, &open, HOW);
            prop_assert_eq!(found, if fitting.len() == 1 { Some(fitting[0]) } else { None });
            let of_one: Vec<_> = open.iter().cloned().map(|s| (s, false)).collect();
            if fitting.len() > 1 {
                prop_assert_eq!(session_of_order(&event, &of_one, HOW.window), None);
            }
        }
    }
}
