//! What is done to a notification on the server once it is stored.

use super::connection::quoted;
use super::error::{Error, Result};
use super::selected::{SelectedMailbox, uid_set};
use super::settings::After;
use super::utf7;
use crate::model::same_mailbox;

/// Marks or moves mails that are committed. Repeating it does no harm, so a crash before it costs nothing.
pub(super) async fn apply_after(opened: &mut SelectedMailbox, uids: &[u32]) -> Result<()> {
    if uids.is_empty() {
        return Ok(());
    }
    let set = uid_set(uids);
    let done = match opened.account.settings.after.clone() {
        After::Leave => Ok(()),
        After::Seen => store_flag(opened, &set, "\\Seen").await,
        // It lies there already, and would come again, under a number of its own, for ever.
        After::Move(target) if same_mailbox(&target, &opened.name) => Ok(()),
        After::Move(target) => move_to(opened, &set, &target).await,
    };
    match done {
        // A NO leaves the connection as it was. The mails are stored; where they lie on the server is worth a word, and
        // not the next notification's time.
        Err(error @ Error::Refused { .. }) => {
            tracing::warn!(
                account = opened.account.settings.name,
                mailbox = opened.name,
                "`after` cannot be done: {error}"
            );
            Ok(())
        }
        done => done,
    }
}

async fn store_flag(opened: &mut SelectedMailbox, set: &str, flag: &str) -> Result<()> {
    let command = format!("UID STORE {set} +FLAGS.SILENT ({flag})");
    opened.run("UID STORE", &command).await
}

/// MOVE (RFC 6851) where there is one; else COPY, `\Deleted`, and UID EXPUNGE (RFC 4315) of just these. A bare
/// EXPUNGE would remove what other programs have marked; without UIDPLUS the copy stays marked as deleted.
async fn move_to(opened: &mut SelectedMailbox, set: &str, target: &str) -> Result<()> {
    let target = quoted(&utf7::encode(target))
        .ok_or_else(|| Error::Refused { command: "UID MOVE", words: "the mailbox's name holds a line break".into() })?;
    if opened.capabilities.moves {
        return create_and_retry(opened, &target, "UID MOVE", &format!("UID MOVE {set} {target}")).await;
    }
    create_and_retry(opened, &target, "UID COPY", &format!("UID COPY {set} {target}")).await?;
    store_flag(opened, set, "\\Deleted").await?;
    if opened.capabilities.uidplus {
        opened.run("UID EXPUNGE", &format!("UID EXPUNGE {set}")).await?;
    }
    Ok(())
}

/// Runs a command that needs the target; where the server says that there is none, it is made (RFC 3501, TRYCREATE).
async fn create_and_retry(opened: &mut SelectedMailbox, target: &str, name: &'static str, command: &str) -> Result<()> {
    match opened.run(name, command).await {
        Err(Error::Refused { words, .. }) => {
            let (account, mailbox) = (&opened.account.settings.name, &opened.name);
            tracing::info!(account, mailbox, "{name} refused ({words}); making the mailbox {target}");
            opened.run("CREATE", &format!("CREATE {target}")).await?;
            opened.run(name, command).await
        }
        done => done,
    }
}
