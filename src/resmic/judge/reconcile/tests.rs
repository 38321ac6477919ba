use proptest::prelude::*;

use super::*;

const SESSION: &str = "591abe63-aa61-411d-a419-0b546729bbd0";
const TX: &str = "0xA43df332c8d376fc14ffc992c4b87e04a5707a3bc7a92ec4eef7b90c66388db2";
const WALLET: &str = "0x056397760b973BfB921Bc10Be9DA5034B1e921d7";
const MINUTE: i64 = 60;
const HOUR: i64 = 3_600;

/// Returns the time `second` seconds after the registration of the session.
fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_741_145_760 + second).unwrap()
}

fn session() -> AskedSession {
    session_with(|_| ())
}

/// Returns the registered session of these tests, with the values that `change` has set.
fn session_with(change: impl FnOnce(&mut RegisteredSession)) -> AskedSession {
    let mut registered = RegisteredSession {
        session_id: SESSION.into(),
        order_ref: Some("order-1001".into()),
        amount: Some("20".into()),
        blockchain: Some("Sepolia".into()),
        token: Some("DAI".into()),
        created_at: at(0),
        expires_at: None,
    };
    change(&mut registered);
    AskedSession { id: SESSION.parse().unwrap(), registered }
}

fn status(payment_status: PaymentStatus) -> StatusAnswer {
    StatusAnswer {
        session_id: SESSION.parse().unwrap(),
        payment_status,
        amount: Some("20.00".into()),
        created_at: Some(at(0)),
        updated_at: Some(at(119)),
        wallet_address: None,
        is_coupon_applied: Some(false),
    }
}

fn details() -> TransactionDetails {
    TransactionDetails {
        session_id: SESSION.parse().unwrap(),
        transaction_hash: Some(TX.into()),
        blockchain: Some("SEPOLIA".into()),
        token: Some("dai".into()),
        from_wallet_address: Some(WALLET.into()),
        amount: None,
    }
}

fn paid(hash: Option<&str>) -> PaymentsOfSession {
    let payment =
        PaymentDetails { transaction_hash: hash.map(str::to_owned), ..PaymentDetails::new(Status::Completed) };
    PaymentsOfSession { completed: vec![payment], has_failed: false }
}

fn unpaid() -> PaymentsOfSession {
    PaymentsOfSession::default()
}

fn inquired(first_after_expiry: Option<i64>, completed_since: Option<i64>) -> PreviousInquiries {
    PreviousInquiries { first_after_expiry: first_after_expiry.map(at), completed_since: completed_since.map(at) }
}

fn judge(known: &PaymentsOfSession, inquiries: PreviousInquiries, status: &StatusAnswer, now: i64) -> Finding {
    reconcile(&session(), known, inquiries, Ok(status), None, at(now))
}

/// Returns the [`Finding`] ten minutes after Resmic first reported the session as `Completed`.
fn overdue(session: &AskedSession, status: &StatusAnswer, details: &TransactionDetails) -> Finding {
    let inquiries = inquired(Some(0), Some(0));
    reconcile(session, &unpaid(), inquiries, Ok(status), Some(Ok(details)), at(10 * MINUTE))
}

fn reason(finding: Finding) -> String {
    match finding {
        Finding::NeedsReview { reason } => reason.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn failed_session_is_a_failed_event() {
    let Finding::FailedEvent(event) = judge(&unpaid(), inquired(None, None), &status(PaymentStatus::Failed), 5) else {
        panic!()
    };
    let body = format!("{{\"session_id\":\"{SESSION}\",\"txTime\":\"Mar 5, 2025, 03:37\",\"status\":false}}");
    assert_eq!((event.webhook(), event.order_ref.as_deref()), (body, Some("order-1001")));
    assert_eq!(event.payment.tx_time, Some(at(60)), "the webhook knows no seconds");
}

#[test]
fn initiated_session_fails_at_the_second_inquiry() {
    let initiated = status(PaymentStatus::Initiated);
    let until = |until: i64| Finding::Wait { until: at(until) };
    let inquire = |first: Option<i64>, now: i64| judge(&unpaid(), inquired(first, None), &initiated, now);
    assert_eq!(inquire(None, 40 * MINUTE - 1), until(40 * MINUTE));
    assert_eq!(inquire(None, 40 * MINUTE), until(100 * MINUTE));
    assert_eq!(inquire(Some(40 * MINUTE), 100 * MINUTE - 1), until(100 * MINUTE));
    assert!(matches!(inquire(Some(40 * MINUTE), 100 * MINUTE), Finding::FailedEvent(_)));
    assert_eq!(inquire(None, 48 * HOUR), until(49 * HOUR), "the daemon was down, so this is the first inquiry");
}

#[test]
fn registered_expiry_replaces_forty_minutes() {
    let session = session_with(|s| s.expires_at = Some(at(2 * HOUR)));
    assert_eq!(expiry(&session), at(2 * HOUR));
    let initiated = status(PaymentStatus::Initiated);
    let inquire = |now| reconcile(&session, &unpaid(), inquired(None, None), Ok(&initiated), None, at(now));
    assert_eq!(inquire(HOUR), Finding::Wait { until: at(2 * HOUR) });
    assert_eq!(inquire(2 * HOUR), Finding::Wait { until: at(3 * HOUR) });
}

#[test]
fn missing_mail_has_ten_minutes() {
    let completed = status(PaymentStatus::Completed);
    let inquire = |since, now| judge(&unpaid(), inquired(None, since), &completed, now);
    assert_eq!(inquire(None, 50), Finding::MailMissing { until: at(650) });
    assert_eq!(inquire(Some(50), 649), Finding::MailMissing { until: at(650) });
    assert_eq!(inquire(Some(50), 650), Finding::NeedsDetails);
}

#[test]
fn complete_details_make_the_webhooks_event() {
    let Finding::CompletedEvent(event) = overdue(&session(), &status(PaymentStatus::Completed), &details()) else {
        panic!()
    };
    let body = format!(
        "{{\"session_id\":\"{SESSION}\",\"amount\":\"20.00\",\"blockchain\":\"Sepolia\",\"token\":\"dai\",\
         \"from_wallet_address\":\"{WALLET}\",\"transaction_hash\":\"{}\",\"txTime\":\"Mar 5, 2025, 03:37\",\"status\":true}}",
        TX.to_lowercase()
    );
    assert_eq!((event.webhook(), event.order_ref.as_deref()), (body, Some("order-1001")));
}

#[test]
fn incomplete_details_need_review() {
    let completed = status(PaymentStatus::Completed);
    for (bad, expected) in [
        (TransactionDetails { transaction_hash: None, ..details() }, "no transaction_hash"),
        (TransactionDetails { blockchain: None, ..details() }, "no blockchain"),
        (TransactionDetails { token: None, ..details() }, "no token"),
        (TransactionDetails { from_wallet_address: None, ..details() }, "no from_wallet_address"),
        (TransactionDetails { transaction_hash: Some("0xab".into()), ..details() }, "does not fit"),
        (TransactionDetails { from_wallet_address: Some("alice".into()), ..details() }, "does not fit"),
    ] {
        let reason_text = reason(overdue(&session(), &completed, &bad));
        assert!(reason_text.starts_with("unreadable: ") && reason_text.contains(expected), "{reason_text}");
    }
    for bad in [StatusAnswer { amount: None, ..completed.clone() }, StatusAnswer { updated_at: None, ..completed }] {
        assert!(reason(overdue(&session(), &bad, &details())).contains("Resmic names no"));
    }
}

#[test]
fn contradictions_need_review() {
    let completed = status(PaymentStatus::Completed);
    for (session, details, expected) in [
        (session_with(|s| s.amount = Some("21".into())), details(), "amount is known as \"21\""),
        (session_with(|s| s.blockchain = Some("Base".into())), details(), "blockchain is known as \"Base\""),
        (session_with(|s| s.token = Some("USDC".into())), details(), "token is known as \"USDC\""),
        (session(), TransactionDetails { amount: Some("19".into()), ..details() }, "Resmic says \"19\""),
    ] {
        let reason_text = reason(overdue(&session, &completed, &details));
        assert!(reason_text.starts_with("conflict: ") && reason_text.contains(expected), "{reason_text}");
    }
    let free = session_with(|s| (s.amount, s.blockchain, s.token) = (None, None, None));
    assert!(matches!(overdue(&free, &completed, &details()), Finding::CompletedEvent(_)));
}

#[test]
fn amounts_with_a_coupon_need_the_registration() {
    let completed = status(PaymentStatus::Completed);
    let with_coupon = StatusAnswer { is_coupon_applied: Some(true), ..completed.clone() };
    for registered in [None, Some("25")] {
        let session = session_with(|s| s.amount = registered.map(str::to_owned));
        let said = reason(overdue(&session, &with_coupon, &details()));
        assert!(said.starts_with("unreadable: ") && said.contains("coupon"), "{registered:?}: {said}");
    }
    let discounted = TransactionDetails { amount: Some("15".into()), ..details() };
    let Finding::CompletedEvent(event) = overdue(&session(), &with_coupon, &discounted) else { panic!() };
    assert_eq!(event.payment.amount.as_deref(), Some("20.00"));
    assert!(reason(overdue(&session(), &completed, &discounted)).starts_with("conflict: "));
}

#[test]
fn other_names_of_a_token_agree() {
    let completed = status(PaymentStatus::Completed);
    for (registered, named, agrees) in [("ETH", "ethereum", true), ("ETH", "USDC", false)] {
        let session = session_with(|s| s.token = Some(registered.into()));
        let details = TransactionDetails { token: Some(named.into()), ..details() };
        assert_eq!(matches!(overdue(&session, &completed, &details), Finding::CompletedEvent(_)), agrees, "{named}");
    }
}

#[test]
fn known_payment_agrees_or_needs_review() {
    let completed = status(PaymentStatus::Completed);
    let inquire = |known: &PaymentsOfSession, details: Option<&TransactionDetails>| {
        reconcile(&session(), known, inquired(None, None), Ok(&completed), details.map(Ok), at(5))
    };
    assert_eq!(inquire(&paid(Some(&TX.to_lowercase())), Some(&details())), Finding::Agrees);
    assert_eq!(inquire(&paid(Some("0xab")), None), Finding::Agrees);
    assert!(reason(inquire(&paid(Some("0xab")), Some(&details()))).starts_with("conflict: Resmic names another"));
    let reason_text = reason(judge(&paid(None), inquired(None, None), &status(PaymentStatus::Failed), HOUR));
    assert_eq!(reason_text, "conflict: Resmic says \"Failed\" of a session that has a completed payment");
    let failed = PaymentsOfSession { has_failed: true, ..unpaid() };
    assert_eq!(judge(&failed, inquired(None, None), &status(PaymentStatus::Failed), 5), Finding::Agrees);
    assert!(matches!(judge(&failed, inquired(None, None), &completed, 5), Finding::MailMissing { .. }));
}

#[test]
fn unclear_answers_wait_and_then_need_review() {
    let other = status(PaymentStatus::Other("completed".into()));
    let elsewhere = StatusAnswer { session_id: SessionId::NIL, ..status(PaymentStatus::Completed) };
    let errors = [ApiError::NotFound("404".into()), ApiError::Malformed("HTML".into())];
    let answers = [Ok(&other), Ok(&elsewhere)].into_iter().chain(errors.iter().map(Err));
    for answer in answers {
        let inquire =
            |first: Option<i64>, now| reconcile(&session(), &unpaid(), inquired(first, None), answer, None, at(now));
        assert_eq!(inquire(None, HOUR), Finding::Wait { until: at(2 * HOUR) }, "{answer:?}");
        assert!(reason(inquire(Some(HOUR), 2 * HOUR)).starts_with("unreadable: "), "{answer:?}");
    }
}

#[test]
fn failures_of_the_server_only_wait() {
    let error = |retry_after: Option<u64>| ApiError::RateLimited {
        retry_after: retry_after.map(Duration::from_secs),
        message: "429".into(),
    };
    let inquire =
        |error: &ApiError| reconcile(&session(), &unpaid(), inquired(Some(0), None), Err(error), None, at(99 * HOUR));
    assert_eq!(inquire(&error(None)), Finding::Wait { until: at(99 * HOUR + 300) });
    assert_eq!(inquire(&error(Some(900))), Finding::Wait { until: at(99 * HOUR + 900) });
    assert_eq!(inquire(&error(Some(u64::MAX))), Finding::Wait { until: at(123 * HOUR) });
    assert_eq!(inquire(&ApiError::Unauthorized("401".into())), Finding::Wait { until: at(99 * HOUR + 300) });
    let completed = status(PaymentStatus::Completed);
    let details = error(Some(900));
    let inquiries = inquired(Some(0), Some(0));
    let finding = reconcile(&session(), &unpaid(), inquiries, Ok(&completed), Some(Err(&details)), at(HOUR));
    assert_eq!(finding, Finding::Wait { until: at(HOUR + 900) });
}

fn any_status() -> impl Strategy<Value = StatusAnswer> {
    let word = prop::sample::select(vec!["Completed", "Failed", "initiated", "failed", ""]);
    let amount = prop::option::of(prop::sample::select(vec!["20", "21"]));
    (word, amount, prop::option::of(-HOUR..3 * HOUR), any::<bool>()).prop_map(|(word, amount, updated, is_other)| {
        let session_id = if is_other && word != "Completed" { SessionId::NIL } else { SESSION.parse().unwrap() };
        StatusAnswer {
            session_id,
            payment_status: serde_json::from_value(word.into()).unwrap(),
            amount: amount.map(str::to_owned),
            updated_at: updated.map(at),
            ..status(PaymentStatus::Initiated)
        }
    })
}

fn any_details() -> impl Strategy<Value = TransactionDetails> {
    let part = |values: Vec<&'static str>| prop::option::of(prop::sample::select(values));
    (part(vec![TX, "0xab"]), part(vec!["Sepolia", "Base"]), part(vec!["DAI", "USDC"]), part(vec![WALLET, "x"]))
        .prop_map(|(hash, chain, token, wallet)| TransactionDetails {
            transaction_hash: hash.map(str::to_owned),
            blockchain: chain.map(str::to_owned),
            token: token.map(str::to_owned),
            from_wallet_address: wallet.map(str::to_owned),
            ..details()
        })
}

fn any_inquiries() -> impl Strategy<Value = PreviousInquiries> {
    let moment = || prop::option::of(0..4 * HOUR);
    (moment(), moment()).prop_map(|(first, completed)| inquired(first, completed))
}

proptest! {
    #[test]
    fn failed_never_follows_completed(
        status in any_status(), details in prop::option::of(any_details()), inquiries in any_inquiries(), now in 0..9 * HOUR,
        hash in prop::option::of(prop::sample::select(vec![TX, "0xab"])), has_failed: bool,
    ) {
        let known = PaymentsOfSession { has_failed, ..paid(hash) };
        let finding = reconcile(&session(), &known, inquiries, Ok(&status), details.as_ref().map(Ok), at(now));
        prop_assert!(!matches!(finding, Finding::FailedEvent(_) | Finding::CompletedEvent(_)), "{:?}", finding);
    }

    #[test]
    fn events_have_what_the_webhook_has(
        status in any_status(), details in any_details(), inquiries in any_inquiries(), now in 0..9 * HOUR,
    ) {
        let finding = reconcile(&session(), &unpaid(), inquiries, Ok(&status), Some(Ok(&details)), at(now));
        match finding {
            Finding::CompletedEvent(event) => {
                let r = &event.payment;
                prop_assert_eq!(&status.payment_status, &PaymentStatus::Completed);
                prop_assert!(inquiries.completed_since.is_some_and(|since| at(now).duration_since(since).as_secs() >= 600));
                prop_assert_eq!((r.amount.as_deref(), r.token.as_deref()), (Some("20"), Some("DAI")));
                prop_assert_eq!(r.transaction_hash.clone(), Some(TX.to_lowercase()));
                prop_assert_eq!((r.blockchain.as_deref(), r.from_wallet_address.as_deref()), (Some("Sepolia"), Some(WALLET)));
                prop_assert!(r.tx_time.is_some());
            }
            Finding::FailedEvent(_) => {
                let is_old = inquiries.first_after_expiry.is_some_and(|first| at(now).duration_since(first).as_secs() >= HOUR);
                prop_assert!(status.payment_status == PaymentStatus::Failed
                    || status.payment_status == PaymentStatus::Initiated && is_old && now >= 40 * MINUTE);
            }
            Finding::Wait { until } | Finding::MailMissing { until } => prop_assert!(until > at(now)),
            Finding::Agrees | Finding::NeedsDetails => prop_assert!(false, "{:?}", finding),
            Finding::NeedsReview { .. } => {}
        }
    }

    #[test]
    fn errors_make_no_event(inquiries in any_inquiries(), now in 0..9 * HOUR, kind in 0..7_usize) {
        let error = [
            ApiError::Unauthorized("401".into()),
            ApiError::NotFound("404".into()),
            ApiError::RateLimited { retry_after: None, message: "429".into() },
            ApiError::Server { retry_after: None, message: "500".into() },
            ApiError::Unreachable("no answer".into()),
            ApiError::Malformed("HTML".into()),
            ApiError::OtherSession { requested: SESSION.parse().unwrap(), answered: SessionId::NIL },
        ][kind].clone();
        let finding = reconcile(&session(), &unpaid(), inquiries, Err(&error), None, at(now));
        let undecided = matches!(finding, Finding::Wait { .. } | Finding::NeedsReview { .. });
        prop_assert!(undecided);
        let completed = status(PaymentStatus::Completed);
        let finding = reconcile(&session(), &unpaid(), inquiries, Ok(&completed), Some(Err(&error)), at(now));
        let undecided =
            matches!(finding, Finding::Wait { .. } | Finding::NeedsReview { .. } | Finding::MailMissing { .. });
        prop_assert!(undecided);
    }
}
