//! The requests to JetStream that a target needs: read a stream's configuration, publish, and read a message.
//!
//! The answers are parsed here and not by async-nats, because only an answer that names the expected stream and a sequence number
//! may count as a delivery.

mod answer;
mod fitness;
mod requests;
mod version;

pub use answer::PublishAnswer;
pub use fitness::{Fitness, RequiredStream, StreamInfo};
pub use requests::{JetStreamError, StoredMessage};
pub use version::{ServerVersion, judge_server};
