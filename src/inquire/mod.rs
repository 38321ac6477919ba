//! The loop that asks Resmic's API about sessions. The loop makes each inquiry that is due, and stores the answer in the
//! database.
//!
//! The loop makes one inquiry at a time, at the rate that `[resmic] rate` allows. Inquiries for events that wait go first. The
//! loop sleeps until the next inquiry is due, or until a commit may have made an inquiry due. Without `[resmic]` in the
//! configuration, there is no loop and no connection to Resmic.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::db::{self, Store, TurnWorker, turn_at};
use crate::heartbeat::{Heartbeat, Heartbeats};
use crate::model::printable;
use crate::payments::{DueClearance, DueInquiry, RecordedClearance, RecordedSession};
use crate::resmic::{
    ApiError, Pace, PaymentStatus, Priority, ResmicClient, SessionId, StatusAnswer, TransactionDetails,
};

/// While requests to Resmic's API succeed, the table `resmic_api` is updated at most once in this interval. The first success
/// after a failure is written immediately.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);
/// The longest duration of one inquiry: two requests to Resmic's API, and the pause between the two requests.
const LONGEST_QUESTION: Duration = Duration::from_secs(180);
/// The longest error message that is stored in `resmic_api.last_error`, in characters.
const MAX_MESSAGE: usize = 300;

/// Asks Resmic's API about sessions until `shutdown` is true, with at most `rate` requests in a minute.
///
/// # Errors
/// [`db::Error::Stopped`] if the database's writer thread has ended.
pub async fn run(
    store: Store,
    client: ResmicClient,
    rate: u32,
    heartbeats: &Heartbeats,
    mut shutdown: watch::Receiver<bool>,
) -> db::Result<()> {
    let heartbeat = heartbeats.begin("asking Resmic".to_owned(), LONGEST_QUESTION * 2);
    let mut worker = InquiryWorker { inquirer: Inquirer::new(store.clone(), client, rate), heartbeat };
    let mut ending = shutdown.clone();
    tokio::select! {
        // An inquiry stores nothing before the answer arrives, so the inquiry can be cancelled at any moment.
        _ = ending.wait_for(|ending| *ending) => {}
        ended = store.work_in_turns(&mut worker) => ended?,
    }
    let _ = shutdown.wait_for(|ending| *ending).await;
    Ok(())
}

struct InquiryWorker {
    inquirer: Inquirer,
    heartbeat: Heartbeat,
}

impl TurnWorker for InquiryWorker {
    async fn turn(&mut self) -> db::Result<Option<Instant>> {
        Ok(match self.inquirer.ask_next(|| Instant::now().into_std()).await? {
            Turn::Asked => None,
            Turn::Paced(at) => Some(at.into()),
            Turn::Idle(next) => Some(turn_at(next)),
        })
    }

    fn report(&self, error: &db::Error) {
        tracing::error!(%error, "cannot read or record the questions to Resmic; trying again");
    }

    fn heartbeat(&self) -> &Heartbeat {
        &self.heartbeat
    }
}

/// The result of [`Inquirer::ask_next`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The [`Inquirer`] made an inquiry and stored the result. Another inquiry may be due.
    Asked,
    /// An inquiry is due, but [`Pace`] allows the next request only at this time.
    Paced(std::time::Instant),
    /// No inquiry is due. The next inquiry becomes due at this time. `None`: no further inquiry is planned.
    Idle(Option<Timestamp>),
}

/// The two answers of Resmic's API about a session.
#[derive(Debug, Clone)]
pub struct SessionAnswers {
    /// The answer about the payment status of the session.
    pub status: Result<StatusAnswer, ApiError>,
    /// The answer about the transaction of the session. `None`: the API did not answer the request for the status, so the
    /// transaction was not requested.
    pub details: Option<Result<TransactionDetails, ApiError>>,
    /// The effect of the two answers in the database.
    pub recorded: RecordedSession,
}

/// Sends requests to Resmic's API at the allowed rate, stores the answers, and records in `resmic_api` whether the API answers.
pub struct Inquirer {
    store: Store,
    client: ResmicClient,
    pace: Pace,
    reported: Option<Instant>,
    failing: bool,
}

impl Inquirer {
    /// Creates an inquirer that sends at most `rate` requests in a minute.
    #[must_use]
    pub fn new(store: Store, client: ResmicClient, rate: u32) -> Self {
        Inquirer { store, client, pace: Pace::new(rate), reported: None, failing: false }
    }

    /// Makes the most urgent inquiry that is due, if [`Pace`] allows a request now, and stores the answer. `clock` is called only
    /// after the inquiry was read from the database, because that reading may take long.
    ///
    /// # Errors
    /// The database cannot be read or written.
    pub async fn ask_next(&mut self, clock: impl FnOnce() -> std::time::Instant) -> db::Result<Turn> {
        let (due, next) = self.store.due_inquiry().await?;
        let Some(due) = due else { return Ok(Turn::Idle(next)) };
        let priority = match due {
            DueInquiry::Session(_) => Priority::Background,
            DueInquiry::Clearance(_) | DueInquiry::Search(_) => Priority::Event,
        };
        if let Err(at) = self.pace.start_request(clock(), priority) {
            return Ok(Turn::Paced(at));
        }
        match due {
            DueInquiry::Clearance(due) => self.ask_about_event(due).await?,
            DueInquiry::Search(due) => {
                let answer = self.ask_details(due.session).await?;
                self.store.record_transaction(due, answer).await?;
            }
            DueInquiry::Session(session) => {
                let status = self.ask_status(session).await?;
                report_session(session, &self.record_status(session, status).await?);
            }
        }
        Ok(Turn::Asked)
    }

    /// Asks Resmic whether the session of an event is completed, so that the event may be delivered.
    async fn ask_about_event(&mut self, due: DueClearance) -> db::Result<()> {
        let status = self.ask_status(due.session).await?;
        let details = match &status {
            // The event may be delivered only if its session is `Completed`, so the details are not requested for another status.
            Ok(answer) if answer.payment_status != PaymentStatus::Completed => {
                Err(ApiError::NotFound("the session is not completed".into()))
            }
            Ok(_) => self.ask_details_in_turn(due.session).await?,
            Err(error) => Err(error.clone()),
        };
        let event_id = due.event_id.clone();
        report_clearance(&event_id, &self.store.record_clearance(due, status, details).await?);
        Ok(())
    }

    /// Asks Resmic for the payment status of a session, as soon as [`Pace`] allows the request. Stores the answer if the session
    /// is registered.
    ///
    /// # Errors
    /// The database cannot be read or written.
    pub async fn inquire(
        &mut self,
        session: SessionId,
    ) -> db::Result<(Result<StatusAnswer, ApiError>, RecordedSession)> {
        self.wait_for_turn().await;
        let status = self.ask_status(session).await?;
        let recorded = self.record_status(session, status.clone()).await?;
        Ok((status, recorded))
    }

    /// Does the same as [`Inquirer::inquire`], and also asks Resmic for the transaction of the session. So the program notices a
    /// stored event of the session that has another transaction.
    ///
    /// # Errors
    /// The database cannot be read or written.
    pub async fn inquire_with_details(&mut self, session: SessionId) -> db::Result<SessionAnswers> {
        self.wait_for_turn().await;
        let status = self.ask_status(session).await?;
        let details = match &status {
            Ok(_) => Some(self.ask_details_in_turn(session).await?),
            Err(_) => None,
        };
        let recorded = self.store.record_session(session, status.clone(), details.clone()).await?;
        Ok(SessionAnswers { status, details, recorded })
    }

    /// Asks Resmic for the transaction of a session, as soon as [`Pace`] allows the request.
    async fn ask_details_in_turn(&mut self, session: SessionId) -> db::Result<Result<TransactionDetails, ApiError>> {
        self.wait_for_turn().await;
        self.ask_details(session).await
    }

    /// Stores Resmic's answer about the status of a session. If the status alone is not enough, this function also asks Resmic
    /// for the transaction, and stores both answers.
    async fn record_status(
        &mut self,
        session: SessionId,
        status: Result<StatusAnswer, ApiError>,
    ) -> db::Result<RecordedSession> {
        match self.store.record_session(session, status.clone(), None).await? {
            RecordedSession::NeedsDetails => {
                let details = self.ask_details_in_turn(session).await?;
                self.store.record_session(session, status, Some(details)).await
            }
            recorded => Ok(recorded),
        }
    }

    async fn wait_for_turn(&mut self) {
        while let Err(at) = self.pace.start_request(Instant::now().into_std(), Priority::Event) {
            sleep_until(at.into()).await;
        }
    }

    async fn ask_status(&mut self, session: SessionId) -> db::Result<Result<StatusAnswer, ApiError>> {
        let answer = self.client.payment_status(session).await;
        self.note(answer.as_ref().err()).await?;
        Ok(answer)
    }

    async fn ask_details(&mut self, session: SessionId) -> db::Result<Result<TransactionDetails, ApiError>> {
        let answer = self.client.transaction_details(session).await;
        self.note(answer.as_ref().err()).await?;
        Ok(answer)
    }

    /// Reports the result of a request to [`Pace`], and writes the result into the table `resmic_api`, which `status` and the
    /// metrics read. An error that concerns only one session counts as a success, because the API has answered.
    async fn note(&mut self, error: Option<&ApiError>) -> db::Result<()> {
        let error = error.filter(|error| error.concerns_all_sessions());
        match error {
            Some(error) => self.pace.failed(Instant::now().into_std(), error.retry_after()),
            None => self.pace.succeeded(),
        }
        let is_recent = self.reported.is_some_and(|at| at.elapsed() < REPORT_INTERVAL);
        if error.is_none() && !self.failing && is_recent {
            return Ok(());
        }
        if let (Some(error), false) = (error, self.failing) {
            tracing::warn!(%error, "Resmic's API gives no answer; asking again later");
        }
        (self.failing, self.reported) = (error.is_some(), Some(Instant::now()));
        let result = error.map_or(Ok(()), |e| Err((printable(&e.to_string(), MAX_MESSAGE), e.needs_person())));
        self.store.record_api(self.client.host().to_owned(), result).await
    }
}

fn report_clearance(event_id: &str, recorded: &RecordedClearance) {
    match recorded {
        RecordedClearance::Cleared { released } => {
            tracing::info!(event_id, released, "Resmic reports the session of the event as Completed");
        }
        RecordedClearance::Contradicted(reason) => {
            tracing::warn!(event_id, %reason, "Resmic contradicts the event; `show EVENT_ID` shows both");
        }
        RecordedClearance::Waits(words) => tracing::debug!(event_id, words, "waiting for Resmic"),
        RecordedClearance::Outdated => tracing::debug!(event_id, "the event changed during the question"),
    }
}

fn report_session(session: SessionId, recorded: &RecordedSession) {
    let session_id = session.to_string();
    match recorded {
        RecordedSession::Event { event_id, status } => {
            tracing::info!(session_id, event_id, %status, "Resmic reports how a session without a mail ended");
        }
        RecordedSession::MailMissing => {
            tracing::warn!(session_id, "Resmic reports the session as Completed, and its mail is missing");
        }
        RecordedSession::NeedsReview(reason) => {
            tracing::warn!(session_id, %reason, "a session needs review: `session check SESSION_ID`");
        }
        RecordedSession::Waits
        | RecordedSession::Agrees
        | RecordedSession::NeedsDetails
        | RecordedSession::NotRegistered => tracing::debug!(session_id, ?recorded, "asked Resmic"),
    }
}
