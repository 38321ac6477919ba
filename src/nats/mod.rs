//! Connections to NATS servers.
//!
//! `url` and `settings`: the keys with which a table of the configuration names the servers and the login. `connection`: one
//! connection, which is never reused after it was lost.

mod connection;
mod jetstream;
mod settings;
mod url;

pub use connection::{NatsConnection, NatsError, NatsServers};
pub use jetstream::{
    EngineError, Fitness, PublishAnswer, RequiredStream, ServerVersion, StoredMessage, StreamInfo, judge_server,
};
pub use settings::NatsSettings;
pub use url::NatsUrl;
