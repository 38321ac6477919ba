//! `check --connect`: tests whether the daemon can log in and open the mailboxes with the settings of an account.

use super::error::{Error, Result};
use super::login::{Login, connect};
use super::mailbox;
use super::settings::ImapSettings;
use super::timing::Timing;
use crate::model::printable;
use crate::units::count;

/// Logs in and opens each mailbox. Returns a line for each finding: Ok, or Err for a mailbox that cannot be opened.
///
/// # Errors
/// The error that ended the connection.
pub async fn probe(settings: &ImapSettings, login: &Login) -> Result<Vec<std::result::Result<String, String>>> {
    let (mut connection, capabilities) = connect(settings, login, &Timing::default()).await?;
    let announcing = match (capabilities.notify, capabilities.idle) {
        (true, true) => "it pushes new mail (NOTIFY, IDLE)",
        (false, true) => "it announces new mail (IDLE)",
        _ => "it has to be asked for new mail (no IDLE)",
    };
    let mut lines = vec![Ok(format!("logged in at {} as {}; {announcing}", settings.host, settings.user))];
    for wanted in &settings.mailboxes {
        let Some(name) = mailbox::find_mailbox(&mut connection, capabilities, wanted).await? else {
            lines.push(Ok(format!("no mailbox is marked {}; it will be looked for again", printable(wanted, 100))));
            continue;
        };
        let display = printable(&name.display, 100);
        lines.push(match mailbox::select(&mut connection, &name, false).await {
            Ok(selected) => Ok(format!("mailbox {display}: {}", count(selected.exists, "mail"))),
            // After this refusal, the connection still works, so the other mailboxes are tested, too.
            Err(error @ Error::Refused { .. }) => Err(format!("mailbox {display}: {error}")),
            Err(error) => return Err(error),
        });
    }
    connection.logout().await;
    Ok(lines)
}
