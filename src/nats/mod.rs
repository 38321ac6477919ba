//! Connections to NATS servers.
//!
//! `url` and `settings` parse the keys that name the servers and the login in a table of the configuration. `connection` is one
//! connection, which is never reused after it was lost. `jetstream` has the requests to a stream.

mod connection;
mod jetstream;
mod settings;
mod url;

pub use connection::{NatsConnection, NatsError, NatsServers};
pub use jetstream::{
    Fitness, JetStreamError, PublishAnswer, RequiredStream, ServerVersion, StoredMessage, StreamInfo, judge_server,
};
pub use settings::NatsSettings;
pub use url::NatsUrl;
