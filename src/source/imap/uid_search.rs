//! Finds out with UID SEARCH whether UIDs belong to mails. Some servers refuse a `UID FETCH` that matches no mail. All servers
//! answer a SEARCH without hits with OK.

use std::time::Duration;

use async_imap::imap_proto::{MailboxDatum, Response};

use super::connection::{Connection, ResponseTimeout};
use super::error::{Error, Result};

/// Returns the highest UID in `set`, a set of UIDs (RFC 3501, 9), that belongs to a mail; 0 if no UID does. `None`: the server
/// refused the SEARCH, or sent no result. Other responses go to `on_other`. `answer`: the timeout of the SEARCH.
pub(super) async fn highest_uid(
    connection: &mut Connection,
    set: &str,
    answer: Duration,
    mut on_other: impl FnMut(&Response<'_>),
) -> Result<Option<u32>> {
    let pending = connection.send("UID SEARCH", &format!("UID SEARCH UID {set}")).await?;
    let mut highest = None;
    let on_response = |response: &Response<'_>| match response {
        Response::MailboxData(MailboxDatum::Search(uids)) => {
            highest = uids.iter().copied().chain(highest).max().or(Some(0));
        }
        other => on_other(other),
    };
    match connection.finish(&pending, ResponseTimeout::within(answer), on_response).await {
        Err(Error::Refused { .. }) => Ok(None),
        answered => answered.map(|()| highest),
    }
}
