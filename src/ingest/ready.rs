//! What the first mail would have to wait for is done before it comes.
//!
//! The patterns that mails are read by are made when they are first used, which takes longer than a hundred mails; and
//! the key that a mail is signed with is most likely the one that the last ones were signed with.

use std::sync::Arc;

use crate::db::{self, Store};
use crate::examine::Rules;
use crate::trust::dns::Resolver;

/// Reads a mail that nobody sent, and asks for the keys by which mails were believed last. What of it fails is done
/// when a mail needs it.
pub async fn get_ready(rules: Arc<Rules>, resolver: Arc<Resolver>, store: Store) {
    rules.warm_up();
    let keys = keys(&store);
    // The database closes when nobody holds it any more, and DNS may take its time.
    drop(store);
    match keys {
        Ok(keys) => keys.iter().rev().for_each(|(domain, selector)| resolver.remember_key(domain, selector)),
        Err(error) => tracing::debug!(%error, "cannot look for the keys that were used last"),
    }
    resolver.prefetch_keys().await;
}

fn keys(store: &Store) -> db::Result<Vec<(String, String)>> {
    store.reader()?.last_keys()
}
