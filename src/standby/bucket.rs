//! The key-value bucket with the lease: reads, conditional writes, and the check of its settings.
//!
//! A bucket `B` is the stream `KV_B`, and its key `K` is the subject `$KV.B.K` (NATS ADR-8). Only the TTL of the whole bucket is
//! used, because servers before 2.11 ignore the TTL of a message and report no error.

use std::error::Error;
use std::time::Duration;

use async_nats::jetstream::context::{
    GetStreamErrorKind, PublishError, PublishErrorKind, RequestError, RequestErrorKind,
};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{self, LastRawMessageErrorKind, StorageType, Stream};
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{Client, HeaderMap, Subscriber, header};

use super::lease_value::{LONGEST_LEASE, LeaseValue};
use super::machine::{Entry, EntryContent, WriteResult};
use crate::model::{NO_ANSWER, printable};
use crate::nats::judge_server;
use crate::units::HumanDuration;

/// How long the NATS server may take to answer a request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The shortest lease (TTL of a bucket) that this program accepts.
const SHORTEST_LEASE: Duration = Duration::from_secs(1);
/// A lease that is shorter than this can end while a NATS cluster elects a leader, which takes up to 8 seconds.
const ELECTION: Duration = Duration::from_secs(10);
/// The header field of a deleted key, and the header field of the marker that newer servers write when a key expires.
const OPERATION: &str = "KV-Operation";
const MARKER: &str = "Nats-Marker-Reason";
/// The number of characters after which an error message of the server is cut off.
const MAX_ERROR_LENGTH: usize = 200;

/// Access to one key of the bucket. The value of this key is the lease of one database.
pub(super) struct LeaseBucket {
    context: Context,
    stream: Stream,
    subject: String,
}

/// Why the bucket cannot be used. The text is for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BucketError {
    /// The server does not answer, or its answer is an error or has an unknown form.
    #[error("{0}")]
    NoAnswer(String),
    /// The bucket is missing, its settings are not fit for a lease, or the server is too old.
    #[error("{0}")]
    Unfit(String),
}

impl LeaseBucket {
    /// Looks up the bucket and checks its settings, without creating the bucket.
    ///
    /// # Errors
    /// [`BucketError`].
    pub(super) async fn open(client: Client, bucket: &str, name: &str) -> Result<LeaseBucket, BucketError> {
        let mut context = jetstream::new(client);
        context.set_timeout(ANSWER_TIMEOUT);
        let stream = context.get_stream(format!("KV_{bucket}")).await.map_err(|error| match error.kind() {
            GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                BucketError::Unfit(format!("bucket {bucket} does not exist; create it: {}", add_command(bucket, 1)))
            }
            kind => {
                let reason = if has_timed_out(&error) { timeout_text() } else { one_line(&kind) };
                BucketError::NoAnswer(format!("cannot look up bucket {bucket}: {reason}"))
            }
        })?;
        let bucket = LeaseBucket { context, stream, subject: format!("$KV.{bucket}.{name}") };
        if let Some(problem) = problem(&bucket.stream.cached_info().config) {
            return Err(BucketError::Unfit(problem));
        }
        bucket.judge_version().map_err(BucketError::Unfit)?;
        Ok(bucket)
    }

    fn judge_version(&self) -> Result<Option<String>, String> {
        judge_server(&self.context.client().server_info().version, self.is_cluster())
    }

    fn is_cluster(&self) -> bool {
        self.stream.cached_info().cluster.as_ref().is_some_and(|cluster| cluster.name.is_some())
    }

    /// The subject of the key. A write of the key is a message with this subject.
    #[must_use]
    pub(super) fn subject(&self) -> &str {
        &self.subject
    }

    /// The length of the lease: the TTL of the bucket.
    #[must_use]
    pub(super) fn lease(&self) -> Duration {
        self.stream.cached_info().config.max_age
    }

    /// The time at which the bucket was created. This time distinguishes the bucket from a later bucket with the same name.
    #[must_use]
    pub(super) fn created(&self) -> String {
        self.stream.cached_info().created.unix_timestamp_nanos().to_string()
    }

    /// Returns lines for the operator about the settings of the bucket, with notes and warnings.
    #[must_use]
    pub(super) fn describe(&self) -> Vec<String> {
        let info = self.stream.cached_info();
        let (lease, replicas) = (HumanDuration(info.config.max_age), info.config.num_replicas);
        let bucket = bucket_name(&info.config);
        let mut lines = vec![format!("bucket {bucket}: a lease of {lease}, on {replicas} of the NATS servers")];
        lines.extend(self.judge_version().ok().flatten());
        if info.config.max_messages_per_subject > 1 {
            lines.push(format!("note: bucket {bucket} has a history of more than one value, which is not needed"));
        }
        if self.is_cluster() && replicas < 3 {
            lines.push(format!(
                "warning: bucket {bucket} is on {replicas} nodes of a cluster; without them no host takes over: nats kv edit \
                 {bucket} --replicas=3"
            ));
        }
        if self.is_cluster() && info.config.max_age < ELECTION {
            lines.push(format!(
                "warning: a lease of {lease} can end while the cluster elects a leader, which takes up to 8 s; 20s is safe"
            ));
        }
        lines
    }

    /// Subscribes to the writes of the key. The NATS server announces each write, also a write that it refuses. In a cluster, the
    /// announcement comes before the write is stored, so a read can still return the old value. An announcement is a hint,
    /// because the server may drop it.
    ///
    /// # Errors
    /// [`BucketError::NoAnswer`].
    pub(super) async fn announcements(&self) -> Result<Subscriber, BucketError> {
        let subscribed = self.context.client().subscribe(self.subject.clone()).await;
        subscribed.map_err(|error| no_answer("cannot watch", &self.subject, &error))
    }

    /// Reads the key of the lease at the leader of the bucket's stream.
    ///
    /// # Errors
    /// [`BucketError::NoAnswer`].
    pub(super) async fn read(&self) -> Result<Entry, BucketError> {
        match self.stream.get_last_raw_message_by_subject(&self.subject).await {
            Ok(message) => Ok(Entry { revision: message.sequence, content: content(&message) }),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                let info = self.stream.get_info().await.map_err(|e| no_answer("cannot read", &self.subject, &e))?;
                let last_revision = Some(info.state.last_sequence);
                Ok(Entry { revision: 0, content: EntryContent::Absent { last_revision } })
            }
            Err(error) => Err(no_answer("cannot read", &self.subject, &error)),
        }
    }

    /// Writes `value` under the key if the key's revision is still `expected`; 0 means that the key does not exist. If the result
    /// is unknown, the reason is returned, too.
    pub(super) async fn write(&self, expected: u64, value: &LeaseValue) -> (WriteResult, Option<BucketError>) {
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, header::HeaderValue::from(expected));
        let sent = self.context.publish_with_headers(self.subject.clone(), headers, value.to_bytes().into()).await;
        let answer = match sent {
            Ok(answer) => answer.await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(ack)
                if ack.sequence > expected && !ack.duplicate && ack.stream == self.stream.cached_info().config.name =>
            {
                (WriteResult::Stored(ack.sequence), None)
            }
            Ok(_) => {
                let problem = format!("the server acknowledges a write of {} in another stream", self.subject);
                (WriteResult::Unknown, Some(BucketError::NoAnswer(problem)))
            }
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => (WriteResult::Conflict, None),
            Err(error) => (WriteResult::Unknown, Some(no_answer("cannot write", &self.subject, &error))),
        }
    }
}

fn no_answer(what: &str, subject: &str, error: &(impl Error + 'static)) -> BucketError {
    let reason = if has_timed_out(error) { timeout_text() } else { one_line(error) };
    BucketError::NoAnswer(format!("{what} {subject}: {reason}"))
}

/// Whether the server has not answered within [`ANSWER_TIMEOUT`]. The text of such an error in async-nats often names neither the
/// timeout nor its length.
fn has_timed_out(error: &(dyn Error + 'static)) -> bool {
    let request = error.downcast_ref().is_some_and(|error: &RequestError| error.kind() == RequestErrorKind::TimedOut);
    let publish = error.downcast_ref().is_some_and(|error: &PublishError| error.kind() == PublishErrorKind::TimedOut);
    request || publish || error.source().is_some_and(has_timed_out)
}

fn timeout_text() -> String {
    format!("{NO_ANSWER} within {}", HumanDuration(ANSWER_TIMEOUT))
}

fn one_line(error: &impl std::fmt::Display) -> String {
    printable(&error.to_string(), MAX_ERROR_LENGTH)
}

/// Converts a message of the bucket's stream to the content of the key.
fn content(message: &StreamMessage) -> EntryContent {
    if message.headers.get(MARKER).is_some() {
        return EntryContent::Absent { last_revision: None };
    }
    if message.headers.get(OPERATION).is_some_and(|operation| operation.as_str() != "PUT") {
        return EntryContent::Deleted;
    }
    LeaseValue::parse(&message.payload).map_or(EntryContent::Unreadable, EntryContent::Value)
}

/// The command of the NATS CLI that creates a fit bucket.
fn add_command(bucket: &str, replicas: usize) -> String {
    format!("nats kv add {bucket} --ttl=20s --history=1 --storage=file --replicas={}", replicas.max(1))
}

fn bucket_name(config: &stream::Config) -> &str {
    config.name.strip_prefix("KV_").unwrap_or(&config.name)
}

/// Why a stream is not fit to be the bucket of a lease; `None` if the stream is fit.
fn problem(config: &stream::Config) -> Option<String> {
    let age = HumanDuration(config.max_age);
    let problem = match config {
        _ if config.max_age.is_zero() => "it has no TTL, so a lease would never end".to_owned(),
        _ if config.max_age < SHORTEST_LEASE => format!("its TTL of {age} is too short; 20s is recommended"),
        _ if config.max_age > LONGEST_LEASE => {
            format!("its TTL of {age} is too long; after a failure no host delivers for that time")
        }
        _ if config.max_messages_per_subject < 1 => "it is no key-value bucket".to_owned(),
        _ if config.storage != StorageType::File => {
            "it is in memory, so a restart of the NATS server forgets the holder; file storage is needed".to_owned()
        }
        _ if config.mirror.is_some() || config.sources.as_ref().is_some_and(|sources| !sources.is_empty()) => {
            "it is a copy of another bucket; two hosts could have the lease".to_owned()
        }
        _ if config.no_ack || config.sealed => "it does not acknowledge writes".to_owned(),
        _ => return None,
    };
    let bucket = printable(bucket_name(config), 64);
    let command = add_command(&bucket, config.num_replicas);
    Some(format!("bucket {bucket} is not fit for a lease: {problem}; delete it, and create it again: {command}"))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that accepts logins and pings, and does not answer requests.
    async fn silent_server() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("nats://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let mut stream = BufReader::new(listener.accept().await.unwrap().0);
            stream
                .write_all(b"INFO {\"version\":\"2.12.0\",\"headers\":true,\"max_payload\":1048576}\r\n")
                .await
                .unwrap();
            let mut line = String::new();
            while stream.read_line(&mut line).await.is_ok_and(|length| length > 0) {
                if line == "PING\r\n" {
                    stream.write_all(b"PONG\r\n").await.unwrap();
                }
                line.clear();
            }
        });
        url
    }

    #[tokio::test]
    async fn a_timeout_is_named_with_its_length() {
        let client = async_nats::connect(silent_server().await).await.unwrap();
        let error = LeaseBucket::open(client, "leases", "shop").await.err().unwrap();
        assert_eq!(error.to_string(), "cannot look up bucket leases: no answer within 2s");
    }

    #[test]
    fn unfit_buckets_are_named_with_the_command() {
        let fit = stream::Config {
            name: "KV_leases".into(),
            max_age: Duration::from_secs(20),
            max_messages_per_subject: 1,
            num_replicas: 3,
            ..stream::Config::default()
        };
        assert_eq!(problem(&fit), None);
        let age = |seconds| stream::Config { max_age: Duration::from_secs(seconds), ..fit.clone() };
        let source = stream::Source { name: "KV_other".into(), ..stream::Source::default() };
        for (config, words) in [
            (age(0), "no TTL"),
            (stream::Config { max_age: Duration::from_millis(500), ..fit.clone() }, "TTL of 500ms is too short"),
            (age(3_600), "TTL of 1h is too long"),
            (stream::Config { max_messages_per_subject: -1, ..fit.clone() }, "no key-value bucket"),
            (stream::Config { storage: StorageType::Memory, ..fit.clone() }, "in memory"),
            (stream::Config { mirror: Some(source.clone()), ..fit.clone() }, "copy of another"),
            (stream::Config { sources: Some(vec![source]), ..fit.clone() }, "copy of another"),
            (stream::Config { no_ack: true, ..fit.clone() }, "acknowledge"),
        ] {
            let found = problem(&config).unwrap();
            let command = "nats kv add leases --ttl=20s --history=1 --storage=file --replicas=3";
            assert!(found.contains(words) && found.contains(command), "{found}");
        }
    }
}
