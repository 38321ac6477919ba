//! Finds the session of a transaction in Resmic's answers about candidate sessions.

use super::same_transaction;
use crate::model::{PaymentDetails, fold_hash};
use crate::resmic::answer::{SessionId, TransactionDetails};

/// The result of [`choose_session`]: the session that the event's transaction paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionChoice {
    /// Resmic names the event's transaction for exactly one session.
    Exact(SessionId),
    /// Resmic names the event's transaction for no session.
    NoneHasIt,
    /// Resmic names the event's transaction for more than one session, or the answers about one session contradict each other. A
    /// person must decide.
    Ambiguous,
}

/// Chooses the session for which Resmic names the event's transaction. `answers` has Resmic's answer about each candidate
/// session.
///
/// A session is chosen only if Resmic names the event's transaction hash for this session, and does not name another chain. If
/// one session is chosen and another session has the same hash on any chain, the choice is ambiguous.
#[must_use]
pub fn choose_session(event: &PaymentDetails, answers: &[TransactionDetails]) -> SessionChoice {
    let Some(chosen) = answers.iter().find(|answer| same_transaction(event, answer)) else {
        return SessionChoice::NoneHasIt;
    };
    let hash = |answer: &TransactionDetails| answer.transaction_hash.as_deref().map(fold_hash);
    let wanted = hash(chosen);
    let is_clear = answers.iter().all(|answer| {
        if answer.session_id == chosen.session_id {
            hash(answer).is_none() || same_transaction(event, answer)
        } else {
            hash(answer) != wanted
        }
    });
    if is_clear { SessionChoice::Exact(chosen.session_id) } else { SessionChoice::Ambiguous }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Status;

    fn session(n: usize) -> SessionId {
        format!("591abe63-aa61-411d-a419-{n:012}").parse().unwrap()
    }

    fn answer(n: usize, hash: Option<&str>, chain: Option<&str>) -> TransactionDetails {
        TransactionDetails {
            session_id: session(n),
            transaction_hash: hash.map(str::to_owned),
            blockchain: chain.map(str::to_owned),
            token: None,
            from_wallet_address: None,
            amount: None,
        }
    }

    fn event(hash: Option<&str>) -> PaymentDetails {
        PaymentDetails {
            transaction_hash: hash.map(str::to_owned),
            blockchain: Some("Sepolia".into()),
            ..PaymentDetails::new(Status::Completed)
        }
    }

    #[test]
    fn session_with_the_transaction_is_chosen() {
        let answers = [
            answer(1, Some("0xaa"), None),
            answer(2, Some("0x00AB"), Some("SEPOLIA")),
            answer(3, None, Some("Sepolia")),
        ];
        assert_eq!(choose_session(&event(Some("0xab")), &answers), SessionChoice::Exact(session(2)));
        assert_eq!(choose_session(&event(Some("0xac")), &answers), SessionChoice::NoneHasIt);
        assert_eq!(choose_session(&event(None), &answers), SessionChoice::NoneHasIt);
    }

    #[test]
    fn two_sessions_with_one_hash_are_ambiguous() {
        let answers = [answer(1, Some("0xab"), None), answer(2, Some("0xAB"), Some("Base"))];
        assert_eq!(choose_session(&event(Some("0xab")), &answers), SessionChoice::Ambiguous);
        let changed = [answer(1, Some("0xab"), None), answer(1, Some("0xac"), None)];
        assert_eq!(choose_session(&event(Some("0xab")), &changed), SessionChoice::Ambiguous);
        let again = [answer(1, None, None), answer(1, Some("0xab"), None), answer(1, Some("0xab"), None)];
        assert_eq!(choose_session(&event(Some("0xab")), &again), SessionChoice::Exact(session(1)));
    }

    #[test]
    fn same_hash_on_another_chain_decides_nothing() {
        let elsewhere = [answer(1, Some("0xab"), Some("Base"))];
        assert_eq!(choose_session(&event(Some("0xab")), &elsewhere), SessionChoice::NoneHasIt);
    }

    proptest! {
        #[test]
        fn only_an_equal_hash_chooses(
            hash in prop::option::of(prop::sample::select(vec!["0xab", "0x0AB", "0xac", "5Kq"])),
            answers in prop::collection::vec((0..4_usize, prop::option::of(
                prop::sample::select(vec!["0xAB", "0xab", "0xac", "5Kq", "5kq"]),
            ), prop::option::of(prop::sample::select(vec!["Sepolia", "sepolia", "Base"]))), 0..6),
        ) {
            let answers: Vec<_> = answers.iter().map(|(n, hash, chain)| answer(*n, *hash, *chain)).collect();
            if let SessionChoice::Exact(chosen) = choose_session(&event(hash), &answers) {
                let is_same = |a: &&TransactionDetails| {
                    a.transaction_hash.as_deref().map(fold_hash) == Some(fold_hash(hash.unwrap()))
                };
                let with_hash: Vec<_> = answers.iter().filter(is_same).map(|a| a.session_id).collect();
                prop_assert!(!with_hash.is_empty());
                prop_assert!(with_hash.iter().all(|id| *id == chosen), "two sessions have the hash");
            }
            let hashless: Vec<_> = answers.into_iter().map(|a| TransactionDetails { transaction_hash: None, ..a }).collect();
            prop_assert_eq!(choose_session(&event(hash), &hashless), SessionChoice::NoneHasIt);
        }
    }
}
