//! `init`: asks a few questions, and writes a configuration that `check` accepts. The command writes nothing before the last
//! answer.

mod dialogue;
mod mail;

use std::future::Future;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{Access, access};
use secrecy::{ExposeSecret, SecretString};
use tokio::signal::unix::{SignalKind, signal};

use super::args::InitArguments;
use super::output::{ignore_closed_pipe, line, message};
use super::{UsageError, terminal};
use crate::app;
use crate::config::{self, Config};
use crate::http::Url;
use crate::payments;
use crate::secret::SecretSource;
use crate::setup::{Draft, LoginDraft, NewFiles, OrderMethod, SecretPlace, random_hex};
use dialogue::{Dialogue, DialogueQuestion};

/// The path of the configuration that the packaged systemd unit uses.
const PACKAGED: &str = "/etc/resmic-mailhook/config.toml";

const ORDERS: &str = "\nHow do payments find their orders? Resmic's mails do not name their payment session.
  1 address  Each order has its own signed address, which you give to Resmic as webhook_url.
             The program finds the order in the mail, and the order's registered session; this is exact.
  2 match    You register each payment session when Resmic creates it (`session add`, or SQL).
             The program looks for the one open session with the same amount; equal amounts are held.
  3 send     Your handler identifies payments itself, for example by their transaction.
             Events without a session are delivered at once, with \"session_id\": null.";

/// The flags that answer the question for the handler's key.
const WEBHOOK_SECRET_FLAG: &str = "--webhook-secret-file (or --generate-webhook-secret)";

/// Runs `init`. If a signal ends the command, its new files are removed.
pub(super) async fn run(path: Option<&Path>, arguments: &InitArguments) -> anyhow::Result<()> {
    let (mut interrupt, mut hangup) = (signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?);
    let mut terminate = signal(SignalKind::terminate())?;
    let setup = Setup::new(path.unwrap_or(Path::new(PACKAGED)), arguments)?;
    let reason = tokio::select! {
        done = setup.run() => match done {
            Err(error) if error.is::<terminal::InputEnded>() => "the input has ended",
            done => return done,
        },
        _ = interrupt.recv() => "interrupted",
        _ = hangup.recv() => "the terminal is gone",
        _ = terminate.recv() => "ended by a signal",
    };
    // The terminal's cursor may still be behind a question, so the error message begins on a new line.
    message("");
    bail!("{reason}; nothing was written")
}

/// One run of `init`: its arguments, its dialogue, and the path of the new configuration.
struct Setup<'a> {
    arguments: &'a InitArguments,
    dialogue: Dialogue,
    path: PathBuf,
    place: SecretPlace,
}

/// A secret, and its file if the file must still be written.
struct Obtained {
    secret: SecretString,
    file: Option<PathBuf>,
}

impl<'a> Setup<'a> {
    fn new(path: &Path, arguments: &'a InitArguments) -> anyhow::Result<Self> {
        if path.symlink_metadata().is_ok() {
            return Err(UsageError(format!(
                "{} exists, and init overwrites nothing; move it away, or name another file with --config",
                path.display()
            ))
            .into());
        }
        let path = std::path::absolute(path)?;
        let existing = path.ancestors().skip(1).find(|folder| folder.exists()).unwrap_or(Path::new("/"));
        access(existing, Access::WRITE_OK).with_context(|| {
            format!("cannot write into {}; run init with sudo, or name another file with --config", existing.display())
        })?;
        let place = if config::is_packaged(&path) { SecretPlace::Credential } else { SecretPlace::File };
        Ok(Setup { arguments, dialogue: Dialogue { asks: !arguments.yes && terminal::is_here() }, path, place })
    }

    async fn run(&self) -> anyhow::Result<()> {
        if self.dialogue.asks {
            message(
                "This writes a first configuration. Enter takes the answer in [brackets]; Ctrl-C ends without a trace.\n",
            );
        }
        let (mut draft, login_secret) = self.mail_account().await?;
        let mut obtained = vec![login_secret];
        draft.forward = self.handler().await?;
        if draft.forward.is_some() {
            obtained.push(Some(self.webhook_secret().await?));
        }
        draft.orders = self.order_method(&draft).await?;
        if draft.orders == OrderMethod::Address {
            obtained.push(Some(self.secret(Draft::ADDRESS_KEY, None, async { generated() }).await?));
        }
        let new_secrets: Vec<_> = obtained.into_iter().flatten().filter_map(|o| Some((o.file?, o.secret))).collect();
        message("\nThese files will be written:");
        for file in new_secrets.iter().map(|(file, _)| file).chain([&self.path]) {
            message(&format!("  {}", file.display()));
        }
        if !self.dialogue.confirm("Write them?", true).await? {
            bail!("nothing was written");
        }
        self.write(&draft, &new_secrets).await?;
        self.print_next_commands(&draft)
    }

    /// Writes the secrets, checks the configuration with them, and then writes the configuration.
    async fn write(&self, draft: &Draft, new_secrets: &[(PathBuf, SecretString)]) -> anyhow::Result<()> {
        let text = draft.text(self.place);
        let config = Config::parse(&self.path, text.clone())?;
        let mut files = NewFiles::default();
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        files.create_folder(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        for (file, secret) in new_secrets {
            let created = files.create_file(file, 0o600, &format!("{}\n", secret.expose_secret()));
            created.with_context(|| format!("cannot write {}; nothing was written", file.display()))?;
        }
        check(&config).await?;
        let created = files.create_file(&self.path, 0o644, &text);
        created.with_context(|| format!("cannot write {}; nothing was written", self.path.display()))?;
        files.keep().context("cannot write; nothing was written")
    }

    /// Checks the flags whose questions follow the login. A missing or wrong flag is reported before the login, because the
    /// login takes time, and the server may count it as a failure.
    async fn check_later_flags(&self) -> anyhow::Result<()> {
        let arguments = self.arguments;
        if self.dialogue.asks && arguments.forward.is_none() {
            return Ok(());
        }
        let has_handler = self.handler().await?.is_some();
        if self.dialogue.asks {
            return Ok(());
        }
        let has_key = arguments.generate_webhook_secret || arguments.webhook_secret_file.is_some();
        if has_handler && !has_key && self.source(Draft::WEBHOOK_SECRET).load().await.is_err() {
            return Err(dialogue::missing(WEBHOOK_SECRET_FLAG).into());
        }
        if arguments.orders.is_none() { Err(dialogue::missing("--orders").into()) } else { Ok(()) }
    }

    /// The place of the secret with this name.
    fn source(&self, name: &str) -> SecretSource {
        match self.place {
            SecretPlace::Credential => SecretSource::Credential(name.to_owned()),
            SecretPlace::File => SecretSource::File(self.path.with_file_name(name)),
        }
    }

    /// Returns the existing secret with this name. If no such secret exists, `obtain` gets a new secret, which is not written
    /// yet. `given`: the flag that names a file with the secret, if the flag was given.
    async fn secret(
        &self,
        name: &str,
        given: Option<&str>,
        obtain: impl Future<Output = anyhow::Result<SecretString>>,
    ) -> anyhow::Result<Obtained> {
        let source = self.source(name);
        if let Ok(secret) = source.load().await {
            if let Some(flag) = given
                && obtain.await?.expose_secret() != secret.expose_secret()
            {
                let advice = format!("remove that secret, or leave out {flag}");
                return Err(UsageError(format!("{flag}: {source} exists already, with another value; {advice}")).into());
            }
            message(&format!("{source} exists already and is used"));
            return Ok(Obtained { secret, file: None });
        }
        let file = source.file().map_err(|missing| UsageError(missing.to_string()))?;
        if file.symlink_metadata().is_ok() {
            let problem = "exists, but is empty or cannot be read; write the secret into it, or remove it";
            return Err(UsageError(format!("{} {problem}", file.display())).into());
        }
        let secret = obtain.await?;
        if secret.expose_secret().chars().any(char::is_control) {
            return Err(UsageError(format!("{name}: a secret must not contain control characters")).into());
        }
        Ok(Obtained { secret, file: Some(file) })
    }

    /// Gets the handler's URL from the flag --forward, or from the person. `None`: there is no handler.
    async fn handler(&self) -> anyhow::Result<Option<Url>> {
        if self.arguments.no_forward {
            return Ok(None);
        }
        if self.dialogue.asks && self.arguments.forward.is_none() {
            message(
                "\nEvents can be posted to your handler, signed like Resmic's webhook. Without one they stay in the database.",
            );
        }
        let question = DialogueQuestion {
            flag: "--forward (or --no-forward)",
            given: self.arguments.forward.as_deref(),
            prompt: "URL of the handler, such as http://127.0.0.1:3000/payment-webhook; - for none",
            default: None,
        };
        let url = self.dialogue.text(question, |text| if text == "-" { Ok(()) } else { handler_url(text).map(drop) });
        let url = url.await?;
        if url == "-" { Ok(None) } else { Ok(Some(handler_url(&url).map_err(UsageError)?)) }
    }

    async fn webhook_secret(&self) -> anyhow::Result<Obtained> {
        let given = self.arguments.webhook_secret_file.as_deref();
        let obtain = async {
            let generate = self.arguments.generate_webhook_secret;
            if generate
                || given.is_none() && self.dialogue.asks && {
                    message("The handler verifies X-Signature with a secret key.");
                    self.dialogue.confirm("Generate a new key? (n: type the handler's key)", true).await?
                }
            {
                return generated();
            }
            self.dialogue.secret(WEBHOOK_SECRET_FLAG, given, "Webhook secret").await
        };
        self.secret(Draft::WEBHOOK_SECRET, given.map(|_| "--webhook-secret-file"), obtain).await
    }

    async fn order_method(&self, draft: &Draft) -> anyhow::Result<OrderMethod> {
        if self.dialogue.asks && self.arguments.orders.is_none() {
            message(ORDERS);
        }
        let check = |text: &str| match order_method(text) {
            Some(OrderMethod::Address) => payments::check_mailbox(&draft.email)
                .map_err(|error| format!("signed addresses need another mailbox address: {error}")),
            Some(OrderMethod::Send) if draft.forward.is_none() => Err("there is no handler to send to".to_owned()),
            Some(_) => Ok(()),
            None => Err("expected address, match or send".to_owned()),
        };
        let given = self.arguments.orders.as_deref();
        let question = DialogueQuestion { flag: "--orders", given, prompt: "1, 2 or 3", default: None };
        let answer = self.dialogue.text(question, check).await?;
        let method = order_method(&answer).ok_or_else(|| dialogue::missing("--orders"))?;
        if method == OrderMethod::Address && mail::lacks_tags(draft) {
            message("warning: this provider may not deliver addresses with a + tag; send yourself a mail to one first");
        }
        Ok(method)
    }

    fn print_next_commands(&self, draft: &Draft) -> anyhow::Result<()> {
        let is_packaged = self.place == SecretPlace::Credential;
        let program = if is_packaged {
            "sudo resmic-mailhook".to_owned()
        } else {
            format!("resmic-mailhook --config {}", shell_word(&self.path.to_string_lossy()))
        };
        let mut commands = Vec::new();
        if draft.login != LoginDraft::Password {
            commands.push(format!("{program} authorize {}", shell_word(&draft.account)));
        }
        commands.push(format!("{program} check --connect"));
        commands.push(if is_packaged {
            "sudo systemctl enable --now resmic-mailhook".to_owned()
        } else {
            format!("{program} run")
        });
        match draft.orders {
            OrderMethod::Address => {
                commands.push(format!("{program} address ORDER_REF     # the webhook_url of an order"));
                commands.push(format!("{program} session add SESSION_ID --order ORDER_REF --amount USD"));
            }
            OrderMethod::Match => commands.push(format!("{program} session add SESSION_ID --amount USD")),
            OrderMethod::Send => {}
        }
        commands.push(format!("{program} events --follow"));
        message("\nDone. Next:");
        for command in commands {
            ignore_closed_pipe(line(&format!("  {command}")))?;
        }
        if draft.orders != OrderMethod::Address {
            message(&format!("Give Resmic {} as webhook_url when you create a payment session.", draft.email));
        }
        if draft.forward.is_some() {
            message(&format!("The handler's key is in {}.", self.path.with_file_name(Draft::WEBHOOK_SECRET).display()));
        }
        Ok(())
    }
}

/// Checks the new configuration as `check` does, except for refresh tokens, which may still be missing.
async fn check(config: &Config) -> anyhow::Result<()> {
    let mut clients = crate::tls::TlsClients::default();
    for (n, account) in config.accounts.iter().enumerate() {
        if account.oauth2.is_none() {
            app::login(config, n, account, &mut clients).await?;
        }
        app::rules(config, account).await?;
    }
    app::forward_targets(config).await?;
    Ok(())
}

fn generated() -> anyhow::Result<SecretString> {
    Ok(random_hex().map_err(anyhow::Error::msg)?.into())
}

fn order_method(text: &str) -> Option<OrderMethod> {
    match text {
        "1" | "address" => Some(OrderMethod::Address),
        "2" | "match" => Some(OrderMethod::Match),
        "3" | "send" => Some(OrderMethod::Send),
        _ => None,
    }
}

/// Parses the URL of a handler: https, or http on this machine.
fn handler_url(text: &str) -> Result<Url, String> {
    let url: Url = text.parse()?;
    if !url.tls && !url.is_loopback() {
        return Err("a handler on another machine needs https://".to_owned());
    }
    Ok(url)
}

/// Quotes a word for a shell, if necessary.
fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}
