//! Does some work at the start that would delay the first mail.
//!
//! The regular expressions of the parser are compiled at their first use, which takes longer than parsing a hundred mails. The
//! next mail is probably signed with the same key as the last mails, so this key is looked up before the mail arrives.

use std::sync::Arc;

use crate::db::{self, Store};
use crate::examine::Rules;
use crate::trust::dns::Resolver;

/// Parses an example mail, and looks up the DKIM keys of the latest trusted mails. Failures are ignored, because the first mail
/// repeats the work.
pub async fn warm_up(rules: Arc<Rules>, resolver: Arc<Resolver>, store: Store) {
    rules.warm_up();
    let keys = recent_keys(&store);
    // The database cannot be closed while this task holds a handle, and the lookups in DNS may take long.
    drop(store);
    match keys {
        Ok(keys) => {
            for (domain, selector) in keys.iter().rev() {
                resolver.remember_key(domain, selector);
            }
        }
        Err(error) => tracing::debug!(%error, "cannot read the keys of the latest mails"),
    }
    resolver.prefetch_keys().await;
}

fn recent_keys(store: &Store) -> db::Result<Vec<(String, String)>> {
    store.reader()?.last_keys()
}
