//! Asks whether UIDs belong to mails. Some servers refuse a `UID FETCH` that matches no mail. All servers answer a SEARCH without
//! hits with OK.

use std::time::Duration;

use async_imap::imap_proto::{MailboxDatum, Response};

use super::connection::{Connection, ResponseTimeout};
use super::error::{Error, Result};

/// The highest UID of the mails in `set`, a set of UIDs (RFC 3501, 9); 0 if it has no mail. `None`: the server does not say it.
/// Other responses go to `on_other`. `answer`: the timeout.
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
