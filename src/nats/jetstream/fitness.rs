//! Checks the configuration of a stream: whether the stream keeps every message that it acknowledges. Pure.
//!
//! A stream is refused if it does not store and acknowledge each message, or if a consumer may miss an acknowledged message or
//! get it twice.

use std::time::Duration;

use serde::Deserialize;

use crate::model::{Status, printable};
use crate::units::HumanDuration;

/// The shortest `max_age` that is accepted. A message that expires sooner is lost if its consumer is down for a month.
const SHORTEST_AGE: Duration = Duration::from_secs(30 * 86_400);
/// The shortest `max_age` that is recommended. A message should stay for more than a year after its payment. While the stream has
/// a message, the same event cannot be stored a second time.
const RECOMMENDED_AGE: Duration = Duration::from_secs(400 * 86_400);

/// The smallest `max_msg_size` that is accepted. Each message with an event is smaller.
const SMALLEST_MESSAGE_LIMIT: i64 = 64 * 1024;

/// The stream that a target publishes to.
#[derive(Debug, Clone, Copy)]
pub struct RequiredStream<'a> {
    /// The stream's name.
    pub name: &'a str,
    /// The beginning of each subject; the status and the event's id follow.
    pub prefix: &'a str,
    /// The statuses of the events that the target publishes.
    pub statuses: &'a [Status],
}

/// The answer of `STREAM.INFO`. Unknown fields are ignored, and missing ones have the server's defaults.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct StreamInfo {
    config: StreamConfig,
    #[serde(default)]
    state: StreamCounts,
    cluster: Option<ClusterInfo>,
}

/// The cluster of the stream's server. A single server reports an empty name and no replicas.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ClusterInfo {
    name: String,
    replicas: Vec<serde::de::IgnoredAny>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct StreamCounts {
    #[serde(default)]
    messages: u64,
    first_seq: Option<u64>,
    last_seq: Option<u64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct StreamConfig {
    subjects: Vec<String>,
    retention: String,
    storage: String,
    discard: String,
    max_msgs: i64,
    max_bytes: i64,
    max_msgs_per_subject: i64,
    discard_new_per_subject: bool,
    max_msg_size: i64,
    /// The age at which messages expire, in nanoseconds; 0: messages do not expire.
    max_age: i64,
    num_replicas: u64,
    no_ack: bool,
    sealed: bool,
    deny_delete: bool,
    deny_purge: bool,
    allow_direct: bool,
    /// Whether the `Nats-TTL` header of a message limits its age (NATS 2.11).
    allow_msg_ttl: bool,
    mirror: Option<serde::de::IgnoredAny>,
    sources: Option<Vec<serde::de::IgnoredAny>>,
    subject_transform: Option<serde::de::IgnoredAny>,
    /// With `async`, the server acknowledges a message before it writes the message (NATS 2.12).
    persist_mode: String,
}

impl Default for StreamConfig {
    fn default() -> Self {
        StreamConfig {
            subjects: Vec::new(),
            retention: "limits".into(),
            storage: "file".into(),
            discard: "old".into(),
            max_msgs: -1,
            max_bytes: -1,
            max_msgs_per_subject: -1,
            discard_new_per_subject: false,
            max_msg_size: -1,
            max_age: 0,
            num_replicas: 1,
            no_ack: false,
            sealed: false,
            deny_delete: false,
            deny_purge: false,
            allow_direct: false,
            allow_msg_ttl: false,
            mirror: None,
            sources: None,
            subject_transform: None,
            persist_mode: String::new(),
        }
    }
}

/// The result of [`StreamInfo::judge`]. Each text is a line for the operator.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fitness {
    /// The settings that forbid the use of the stream.
    pub problems: Vec<String>,
    /// The settings that should be changed.
    pub notes: Vec<String>,
}

impl StreamInfo {
    /// Whether every replica of the stream answers reads, and not only the leader of the stream.
    #[must_use]
    pub fn allows_direct(&self) -> bool {
        self.config.allow_direct
    }

    /// Whether the server that has the stream is part of a cluster.
    #[must_use]
    pub fn is_clustered(&self) -> bool {
        self.cluster.as_ref().is_some_and(|cluster| !cluster.name.is_empty() || !cluster.replicas.is_empty())
    }

    /// The sequence number of the first message that the stream has. If the stream is empty, it is 0, or the number of the next
    /// message. `None` if the server does not report it.
    #[must_use]
    pub fn first_sequence(&self) -> Option<u64> {
        self.state.first_seq
    }

    /// How many messages the stream has removed since its creation. `None` if the server does not report it, or if messages may
    /// expire. From a fit stream whose messages do not expire, no message is removed.
    #[must_use]
    pub fn removed(&self) -> Option<u64> {
        if self.config.max_age > 0 || self.config.allow_msg_ttl {
            return None;
        }
        self.state.last_seq.map(|last| last.saturating_sub(self.state.messages))
    }

    /// The sequence number of the last message that was stored; `None` if the server does not report it.
    #[must_use]
    pub fn last_sequence(&self) -> Option<u64> {
        self.state.last_seq
    }

    /// The number of messages in the stream.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.state.messages
    }

    /// The age at which messages expire. `None`: messages do not expire, or the age is too short for a fit stream. A message that
    /// is removed by such a short age is lost, and has not expired.
    #[must_use]
    pub fn max_age(&self) -> Option<Duration> {
        let age = u64::try_from(self.config.max_age).ok().map(Duration::from_nanos);
        age.filter(|age| *age >= SHORTEST_AGE)
    }

    /// Compares the configuration of the stream with the needs of a target.
    #[must_use]
    pub fn judge(&self, required: &RequiredStream) -> Fitness {
        let config = &self.config;
        let mut fitness = Fitness::default();
        let refused = [
            (
                config.retention != "limits",
                explain_setting(
                    "retention",
                    &config.retention,
                    "limits",
                    "messages are deleted when consumers have read them, or at once if there are none",
                ),
            ),
            (
                config.storage != "file",
                explain_setting("storage", &config.storage, "file", "a restart of the server loses every message"),
            ),
            (
                config.discard != "new",
                explain_setting("discard", &config.discard, "new", "a full stream deletes old messages"),
            ),
            (
                config.max_msgs > 0,
                format!("max_msgs is {}, and must be -1: the number of payments has no limit", config.max_msgs),
            ),
            (
                config.max_msgs_per_subject > 0 && !config.discard_new_per_subject,
                format!(
                    "max_msgs_per_subject is {}, and must be -1: a second message replaces the payment",
                    config.max_msgs_per_subject
                ),
            ),
            (
                (1..SMALLEST_MESSAGE_LIMIT).contains(&config.max_msg_size),
                format!(
                    "max_msg_size is {}, and must be -1 or at least {SMALLEST_MESSAGE_LIMIT}: an event may be larger",
                    config.max_msg_size
                ),
            ),
            (
                config.no_ack,
                "no_ack is true, and must be false: the server does not report whether a message is stored".into(),
            ),
            (config.sealed, "the stream is sealed, and accepts no message".into()),
            (!config.deny_delete, "deny_delete is false, and must be true: a client can delete a payment".into()),
            (!config.deny_purge, "deny_purge is false, and must be true: a client can delete all payments".into()),
            (config.mirror.is_some(), "the stream is a mirror, which accepts no message".into()),
            (
                config.sources.as_ref().is_some_and(|sources| !sources.is_empty()),
                "sources are set, and must not be: messages of other streams are no payments".into(),
            ),
            (
                config.subject_transform.is_some(),
                "subject_transform is set, and must not be: the subject identifies the event".into(),
            ),
            (
                config.persist_mode == "async",
                explain_setting("persist_mode", "async", "default", "the server acknowledges before it writes"),
            ),
        ];
        fitness.problems.extend(refused.into_iter().filter(|(is_wrong, _)| *is_wrong).map(|(_, text)| text));
        self.judge_subjects(required, &mut fitness);
        self.judge_age(&mut fitness);
        if config.max_bytes > 0 {
            fitness.notes.push(format!(
                "max_bytes is {}, and should be -1: a full stream refuses all payments",
                config.max_bytes
            ));
        }
        if self.is_clustered() && config.num_replicas < 3 {
            fitness.notes.push(format!(
                "num_replicas is {}: a failure of one node can stop or lose the stream; 3 is recommended",
                config.num_replicas
            ));
        }
        fitness
    }

    fn judge_age(&self, fitness: &mut Fitness) {
        let age = Duration::from_nanos(u64::try_from(self.config.max_age).unwrap_or(0));
        // The line for the operator does not show a fraction of a millisecond.
        let shown = HumanDuration(Duration::from_millis(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)));
        let expected = HumanDuration(RECOMMENDED_AGE);
        if age.is_zero() || age >= RECOMMENDED_AGE {
            return;
        }
        let line = format!(
            "max_age is {shown}, and should be 0 or at least {expected}: expired payments can be published again"
        );
        if age < SHORTEST_AGE {
            fitness.problems.push(format!("{line}, and a consumer that was down for {shown} never gets them"));
        } else {
            fitness.notes.push(line);
        }
    }

    /// Adds a problem if the stream lacks a subject of the target, or else a note if the stream has subjects of other programs.
    /// Other subjects are no problem, because their messages neither remove nor replace payments.
    fn judge_subjects(&self, required: &RequiredStream, fitness: &mut Fitness) {
        // A mirror has no subjects. The problem about the mirror names the cause.
        if self.config.mirror.is_some() {
            return;
        }
        if let Some(problem) = self.uncovered(required) {
            fitness.problems.push(problem);
            return;
        }
        let begin = format!("{}.", required.prefix);
        let others: Vec<_> =
            self.config.subjects.iter().filter(|subject| !subject.starts_with(&begin)).cloned().collect();
        if !others.is_empty() {
            fitness.notes.push(format!(
                "subjects also have {:?}, and should have only {:?}: a consumer without a filter gets other messages",
                printable(&others.join(", "), 100),
                format!("{begin}>")
            ));
        }
    }

    /// Returns the problem, if the stream's list of subjects does not cover the subjects of the target. A subject in the list
    /// that is more general than the target's prefix is not accepted.
    fn uncovered(&self, required: &RequiredStream) -> Option<String> {
        let RequiredStream { prefix, statuses, .. } = required;
        let has = |subject: String| self.config.subjects.contains(&subject);
        if has(format!("{prefix}.>")) || has(format!("{prefix}.*.*")) {
            return None;
        }
        let is_missing =
            |status: &&Status| !has(format!("{prefix}.{status}.*")) && !has(format!("{prefix}.{status}.>"));
        statuses.iter().any(|status| is_missing(&status)).then(|| {
            let found = printable(&self.config.subjects.join(", "), 100);
            format!(
                "subjects are {found:?}, and must have {:?}, neither more general nor more specific",
                format!("{prefix}.>")
            )
        })
    }
}

fn explain_setting(setting: &str, found: &str, expected: &str, why: &str) -> String {
    format!("{setting} is {:?}, and must be {expected:?}: {why}", printable(found, 40))
}

impl RequiredStream<'_> {
    /// The command of the NATS CLI that creates a stream with the required configuration. A `[[forward]]` table with a name or a
    /// subject that a shell would interpret is an error.
    #[must_use]
    pub fn command(&self, is_cluster: bool) -> String {
        let replicas = if is_cluster { 3 } else { 1 };
        format!(
            "nats stream add {} --subjects='{}.>' --storage=file --replicas={replicas} --retention=limits --discard=new \
             --max-msgs=-1 --max-bytes=-1 --max-age=0 --max-msgs-per-subject=-1 --deny-delete --deny-purge --allow-direct --defaults",
            self.name, self.prefix
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Judges the configuration of a fit stream after `changes`.
    fn judge(changes: Value) -> Fitness {
        let mut config = json!({
            "name": "PAID", "subjects": ["shop.paid.>"], "retention": "limits", "storage": "file", "discard": "new",
            "max_msgs": -1, "max_bytes": -1, "max_age": 0, "num_replicas": 1, "deny_delete": true, "deny_purge": true,
        });
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        let info: StreamInfo = serde_json::from_value(json!({"config": config, "state": {"messages": 3}})).unwrap();
        info.judge(&RequiredStream {
            name: "PAID",
            prefix: "shop.paid",
            statuses: &[Status::Completed, Status::Failed],
        })
    }

    #[test]
    fn fitting_streams_have_no_problem() {
        for changes in [
            json!({}),
            json!({"subjects": ["shop.paid.*.*"]}),
            json!({"subjects": ["shop.paid.completed.*", "shop.paid.failed.>", "shop.paid.pending.*"]}),
            json!({"max_age": 400 * 86_400 * 1_000_000_000_i64}),
            json!({"max_msgs_per_subject": 1, "discard_new_per_subject": true, "max_msg_size": 65_536, "sources": []}),
            json!({"allow_direct": true, "persist_mode": "default", "something": ["new"]}),
        ] {
            assert_eq!(judge(changes.clone()), Fitness::default(), "{changes}");
        }
    }

    #[test]
    fn each_unfit_setting_is_named() {
        for (changes, setting) in [
            (json!({"retention": "interest"}), "retention is \"interest\""),
            (json!({"retention": "workqueue"}), "retention is \"workqueue\""),
            (json!({"storage": "memory"}), "storage is \"memory\""),
            (json!({"discard": "old"}), "discard is \"old\""),
            (json!({"max_msgs": 1000}), "max_msgs is 1000"),
            (json!({"max_age": 60_000_000_000_i64}), "max_age is 1m"),
            (json!({"max_msgs_per_subject": 1}), "max_msgs_per_subject is 1"),
            (json!({"max_msg_size": 1_000}), "max_msg_size is 1000"),
            (json!({"sources": [{"name": "X"}]}), "sources"),
            (json!({"no_ack": true}), "no_ack"),
            (json!({"sealed": true}), "sealed"),
            (json!({"deny_delete": false}), "deny_delete"),
            (json!({"deny_purge": false}), "deny_purge"),
            (json!({"mirror": {"name": "X"}}), "mirror"),
            (json!({"mirror": {"name": "X"}, "subjects": []}), "mirror"),
            (json!({"subject_transform": {"src": ">", "dest": "x.>"}}), "subject_transform"),
            (json!({"persist_mode": "async"}), "persist_mode"),
            (json!({"subjects": ["shop.>"]}), "subjects are \"shop.>\""),
            (json!({"subjects": ["shop.paid.completed.*"]}), "subjects are"),
            (json!({"subjects": []}), "subjects are"),
        ] {
            let fitness = judge(changes.clone());
            assert!(matches!(&fitness.problems[..], [problem] if problem.contains(setting)), "{changes}: {fitness:?}");
        }
        let fitness = judge(json!({"discard": "old", "max_msgs": 5}));
        assert_eq!(fitness.problems.len(), 2);
    }

    #[test]
    fn tolerable_settings_are_notes() {
        for (changes, note) in [
            (json!({"max_age": 90 * 86_400 * 1_000_000_000_i64}), "max_age is 90d"),
            (json!({"max_bytes": 1_000_000}), "max_bytes is 1000000, and should be -1"),
            (json!({"subjects": ["other.>", "shop.paid.*.*", "b"]}), "subjects also have \"other.>, b\""),
        ] {
            let Fitness { problems, notes } = judge(changes.clone());
            assert_eq!(problems, [""; 0], "{changes}");
            assert!(matches!(&notes[..], [found] if found.contains(note)), "{changes}: {notes:?}");
        }
    }

    #[test]
    fn removed_messages_are_counted() {
        let removed = |config: Value, state: Value| {
            let info: StreamInfo = serde_json::from_value(json!({"config": config, "state": state})).unwrap();
            info.removed()
        };
        let state = json!({"messages": 6, "first_seq": 8, "last_seq": 14});
        assert_eq!(removed(json!({}), state.clone()), Some(8));
        assert_eq!(removed(json!({}), json!({"messages": 0, "first_seq": 0, "last_seq": 0})), Some(0));
        assert_eq!(removed(json!({}), json!({"messages": 6})), None);
        for expiring in [json!({"max_age": 1}), json!({"allow_msg_ttl": true})] {
            assert_eq!(removed(expiring, state.clone()), None);
        }
    }

    #[test]
    fn the_command_creates_what_is_required() {
        let required = RequiredStream { name: "PAID", prefix: "shop.paid", statuses: &[Status::Completed] };
        let command = required.command(true);
        assert!(command.starts_with("nats stream add PAID --subjects='shop.paid.>' "), "{command}");
        assert!(command.contains("--replicas=3") && required.command(false).contains("--replicas=1"));
    }
}
