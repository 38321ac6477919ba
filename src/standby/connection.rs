//! Opens a connection to the bucket of the lease.

use std::sync::Arc;

use async_nats::Subscriber;

use super::bucket::LeaseBucket;
use crate::nats::{NatsConnection, NatsServers};

/// The NATS servers, the bucket and the key that contain the lease.
#[derive(Debug)]
pub struct LeasePlace {
    /// The NATS servers.
    pub servers: NatsServers,
    /// The name of the bucket.
    pub bucket: String,
    /// The key in the bucket: the name of the database.
    pub name: String,
}

/// An open connection to the bucket of the lease.
pub(super) struct LeaseConnection {
    pub(super) nats: NatsConnection,
    pub(super) bucket: LeaseBucket,
    pub(super) announcements: Subscriber,
}

/// Connects to a NATS server, opens the bucket of the lease, and subscribes to the writes of the key.
pub(super) async fn open_connection(place: Arc<LeasePlace>) -> Result<LeaseConnection, String> {
    let nats = place.servers.connect().await.map_err(|error| error.to_string())?;
    let bucket = LeaseBucket::open(nats.client().clone(), &place.bucket, &place.name).await;
    let bucket = bucket.map_err(|error| explain(&nats, error.to_string()))?;
    let announcements = bucket.announcements().await;
    let announcements = announcements.map_err(|error| explain(&nats, error.to_string()))?;
    Ok(LeaseConnection { nats, bucket, announcements })
}

/// Adds the last error that the server sent on the connection to `error`. If a permission is missing, the server does not answer
/// a request, and only sends an error (`-ERR`) on the connection.
pub(super) fn explain(connection: &NatsConnection, error: String) -> String {
    match connection.last_error() {
        Some(reported) => format!("{error}; the server reports: {reported}"),
        None => error,
    }
}
