//! Whether an account's settings lead to its mailboxes.

use super::connect::{Login, connect};
use super::error::Result;
use super::mailbox;
use super::settings::Settings;
use super::timing::Timing;
use crate::model::printable;

/// For `check --connect`: logs in and opens each mailbox; says in words what it found.
///
/// # Errors
/// The first thing that is wrong.
pub async fn probe(settings: &Settings, login: &Login) -> Result<Vec<String>> {
    let (mut wire, offers) = connect(settings, login, &Timing::default()).await?;
    let how = match (offers.notify, offers.idle) {
        (true, true) => "it pushes new mail (NOTIFY, IDLE)",
        (false, true) => "it announces new mail (IDLE)",
        _ => "it has to be asked for new mail (no IDLE)",
    };
    let mut found = vec![format!("logged in at {} as {}; {how}", settings.host, settings.user)];
    for wanted in &settings.mailboxes {
        let Some(name) = mailbox::resolve(&mut wire, offers, wanted).await? else {
            found.push(format!("no mailbox is marked {}; it will be looked for again", printable(wanted, 100)));
            continue;
        };
        let selected = mailbox::select(&mut wire, &name, false).await?;
        found.push(format!("mailbox {}: {} mails", printable(&name, 100), selected.exists));
    }
    wire.logout().await;
    Ok(found)
}
