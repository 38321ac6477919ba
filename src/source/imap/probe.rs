//! Whether an account's settings lead to its mailboxes.

use super::error::{Error, Result};
use super::login::{Login, connect};
use super::mailbox;
use super::settings::Settings;
use super::timing::Timing;
use crate::model::printable;

/// For `check --connect`: logs in and opens each mailbox; says in words what it found, or what is wrong with a mailbox.
///
/// # Errors
/// What keeps it from looking any further.
pub async fn probe(settings: &Settings, login: &Login) -> Result<Vec<std::result::Result<String, String>>> {
    let (mut wire, offers) = connect(settings, login, &Timing::default()).await?;
    let how = match (offers.notify, offers.idle) {
        (true, true) => "it pushes new mail (NOTIFY, IDLE)",
        (false, true) => "it announces new mail (IDLE)",
        _ => "it has to be asked for new mail (no IDLE)",
    };
    let mut found = vec![Ok(format!("logged in at {} as {}; {how}", settings.host, settings.user))];
    for wanted in &settings.mailboxes {
        let Some(named) = mailbox::resolve(&mut wire, offers, wanted).await? else {
            found.push(Ok(format!("no mailbox is marked {}; it will be looked for again", printable(wanted, 100))));
            continue;
        };
        let shown = printable(&named.name, 100);
        found.push(match mailbox::select(&mut wire, &named, false).await {
            Ok(selected) => Ok(format!("mailbox {shown}: {} mails", selected.exists)),
            // The others may be opened all the same.
            Err(error @ Error::Refused { .. }) => Err(format!("mailbox {shown}: {error}")),
            Err(error) => return Err(error),
        });
    }
    wire.logout().await;
    Ok(found)
}
