//! The mail account for `init`: its server, its login, and a test of both.

use anyhow::bail;
use secrecy::{ExposeSecret, SecretString};

use super::super::output::message;
use super::super::{UsageError, terminal};
use super::dialogue::DialogueQuestion;
use super::{Obtained, Setup};
use crate::config::Config;
use crate::model::printable;
use crate::setup::{Discovered, Draft, LoginDraft, MailServer, OrderMethod, Provider, ProviderApp, SignIn, discover};
use crate::source::imap::{self, Tls, is_address, is_host};
use crate::tls;
use crate::trust::dns::{self, Resolver};

/// Domains of private mailboxes at Microsoft. The tenant of such mailboxes is `consumers`, not a domain.
const PRIVATE_AT_MICROSOFT: [&str; 4] = ["outlook.com", "hotmail.com", "live.com", "msn.com"];

impl Setup<'_> {
    /// Asks for the mail account, and tests a password with a login. Returns the [`Draft`] of the configuration, and the password
    /// or the OAuth client secret.
    pub(super) async fn mail_account(&self) -> anyhow::Result<(Draft, Option<Obtained>)> {
        let given = self.arguments.email.as_deref();
        let question =
            DialogueQuestion { flag: "--email", given, prompt: "Mail address that Resmic sends to", default: None };
        let is_email = |text: &str| {
            if is_address(text) { Ok(()) } else { Err("expected an address, like payments@shop.example".into()) }
        };
        let email = self.dialogue.text(question, is_email).await?;
        let (provider, server) = self.mail_server(&email).await?;
        let local = email.split('@').next().unwrap_or_default();
        let user = if provider.is_some_and(|p| p.local_user) { local } else { &email };
        let user = self.login_name(user).await?;
        let login = self.login_kind(provider, &email).await?;
        let mut draft = Draft {
            account: self.arguments.account.clone(),
            server,
            ca_file: self.arguments.ca_file.as_ref().map(std::path::absolute).transpose()?,
            user,
            login,
            dedicated: false,
            dns: self.arguments.dns.clone(),
            orders: OrderMethod::Send,
            forward: None,
            email,
        };
        self.check_later_flags().await?;
        let secret = match draft.login {
            LoginDraft::Password => Some(self.password(&mut draft, provider).await?),
            LoginDraft::OAuth(_) => self.client_secret(provider).await?,
        };
        draft.dedicated = self.arguments.dedicated
            || self.dialogue.confirm("\nDoes this mailbox receive only Resmic's mails?", false).await?;
        Ok((draft, secret))
    }

    async fn mail_server(&self, email: &str) -> anyhow::Result<(Option<&'static Provider>, MailServer)> {
        let arguments = self.arguments;
        if let Some(host) = &arguments.host {
            return Ok((Provider::by_host(host), self.server_by_hand(Some(host), None, arguments.port).await?));
        }
        let servers: Result<Vec<_>, _> = arguments.dns.iter().cloned().map(dns::DnsServer::try_from).collect();
        let servers = servers.map_err(|error| UsageError(format!("--dns: {error}")))?;
        let resolver = Resolver::new(&dns::DnsSettings { servers })?;
        let domain = email.rsplit('@').next().unwrap_or_default().to_ascii_lowercase();
        match discover(&resolver, &domain).await {
            Ok(Discovered::Provider(provider, reason)) => {
                message(&format!("{}, because {}", provider.name, printable(&reason, 300)));
                let server = MailServer { host: provider.host.to_owned(), port: None, tls: Tls::Implicit };
                Ok((Some(provider), self.with_flags(server)))
            }
            Ok(Discovered::Server(server, reason)) => {
                message(&format!("IMAP server {} ({})", server.host, printable(&reason, 300)));
                let server = self.with_flags(server);
                if self.dialogue.asks && !self.dialogue.confirm("Use this server?", true).await? {
                    return Ok((None, self.server_by_hand(None, Some(&server), arguments.port).await?));
                }
                Ok((None, server))
            }
            Ok(Discovered::Nothing) => {
                message(&format!("no IMAP server of {domain} is known by MX, SRV, or the names imap. and mail."));
                Ok((None, self.server_by_hand(None, None, arguments.port).await?))
            }
            Err(error) => {
                message(&format!("DNS did not help: {error}"));
                Ok((None, self.server_by_hand(None, None, arguments.port).await?))
            }
        }
    }

    /// Applies the flags --port and --tls to a server.
    fn with_flags(&self, server: MailServer) -> MailServer {
        let arguments = self.arguments;
        MailServer { port: arguments.port.or(server.port), tls: arguments.tls.unwrap_or(server.tls), ..server }
    }

    /// Gets the IMAP server from the flag --host, or from the person. `port`: the flag --port, unless the person wants to replace
    /// its value.
    async fn server_by_hand(
        &self,
        given: Option<&str>,
        known: Option<&MailServer>,
        port: Option<u16>,
    ) -> anyhow::Result<MailServer> {
        let default = known.map(|server| server.host.as_str());
        let question = DialogueQuestion { flag: "--host", given, prompt: "IMAP server", default };
        let check =
            |text: &str| if is_host(text) { Ok(()) } else { Err("expected a host name, without a port".to_owned()) };
        let host = self.dialogue.text(question, check).await?;
        if given.is_some() || !self.dialogue.asks {
            return Ok(self.with_flags(MailServer { host, port: None, tls: Tls::Implicit }));
        }
        let known_tls = self.arguments.tls.or(known.map(|server| server.tls)).unwrap_or(Tls::Implicit);
        let known_port = known.and_then(|server| server.port).unwrap_or(known_tls.default_port()).to_string();
        let port = port.map(|port| port.to_string());
        let question =
            DialogueQuestion { flag: "--port", given: port.as_deref(), prompt: "Port", default: Some(&known_port) };
        let number =
            |text: &str| text.parse().ok().filter(|port| *port > 0_u16).ok_or("expected a port, from 1 to 65535");
        let port = self.dialogue.text(question, |text| number(text).map(drop).map_err(str::to_owned)).await?;
        let port = number(&port).map_err(|error| UsageError(error.to_owned()))?;
        // Connections to port 143 begin without TLS. For a server without STARTTLS, the operator gives `--tls none`.
        let tls = self.arguments.tls.unwrap_or(if port == 143 { Tls::Starttls } else { Tls::Implicit });
        Ok(MailServer { host, port: Some(port).filter(|port| *port != tls.default_port()), tls })
    }

    async fn login_name(&self, default: &str) -> anyhow::Result<String> {
        let given = self.arguments.user.as_deref();
        let question = DialogueQuestion { flag: "--user", given, prompt: "Login name", default: Some(default) };
        let check = |text: &str| {
            let is_right = !text.is_empty() && !text.chars().any(char::is_control);
            if is_right { Ok(()) } else { Err("expected a login name".to_owned()) }
        };
        self.dialogue.text(question, check).await
    }

    async fn login_kind(&self, provider: Option<&Provider>, email: &str) -> anyhow::Result<LoginDraft> {
        let arguments = self.arguments;
        match provider.map(|provider| provider.sign_in) {
            Some(SignIn::Microsoft) => {
                message("Microsoft requires OAuth. Register an application first: docs/mail-providers.md, Microsoft 365");
                let client_id = self.client_id().await?;
                let domain = email.rsplit('@').next().unwrap_or_default().to_ascii_lowercase();
                let is_private = PRIVATE_AT_MICROSOFT.contains(&domain.as_str());
                let default = if is_private { "consumers" } else { &domain };
                let given = arguments.tenant.as_deref();
                let question = DialogueQuestion {
                    flag: "--tenant",
                    given,
                    prompt: "Directory (tenant) id or domain",
                    default: Some(default),
                };
                let tenant = self.dialogue.text(question, is_id).await?;
                Ok(LoginDraft::OAuth(ProviderApp::microsoft(&client_id, &tenant)))
            }
            Some(SignIn::Google) => {
                let question = "Google accepts an app password (https://myaccount.google.com/apppasswords). Use OAuth instead?";
                if !arguments.oauth && !self.dialogue.confirm(question, false).await? {
                    return Ok(LoginDraft::Password);
                }
                message("Register an application first: docs/mail-providers.md, Gmail, With OAuth");
                Ok(LoginDraft::OAuth(ProviderApp::google(&self.client_id().await?)))
            }
            _ if arguments.oauth => Err(UsageError(
                "--oauth: init knows OAuth of Google and Microsoft only; docs/mail-providers.md shows [account.oauth2] for others"
                    .to_owned(),
            )
            .into()),
            Some(SignIn::AppPassword(advice)) => {
                message(advice);
                Ok(LoginDraft::Password)
            }
            None => Ok(LoginDraft::Password),
        }
    }

    async fn client_id(&self) -> anyhow::Result<String> {
        let given = self.arguments.client_id.as_deref();
        let question =
            DialogueQuestion { flag: "--client-id", given, prompt: "Application (client) id", default: None };
        self.dialogue.text(question, is_id).await
    }

    /// Gets the OAuth client secret. Only Google's desktop applications have a client secret.
    async fn client_secret(&self, provider: Option<&Provider>) -> anyhow::Result<Option<Obtained>> {
        if provider.map(|provider| provider.sign_in) != Some(SignIn::Google) {
            return Ok(None);
        }
        let file = self.arguments.client_secret_file.as_deref();
        let obtain = self.dialogue.secret("--client-secret-file", file, "Client secret");
        Ok(Some(self.secret(Draft::CLIENT_SECRET, file.map(|_| "--client-secret-file"), obtain).await?))
    }

    /// Gets the password of the account, and tests it with a login.
    async fn password(&self, draft: &mut Draft, provider: Option<&Provider>) -> anyhow::Result<Obtained> {
        loop {
            let file = self.arguments.password_file.as_deref();
            let obtain = async {
                let password = self.dialogue.secret("--password-file", file, "Password").await?;
                // Google shows an app password in four groups. The spaces between the groups do not belong to the password.
                let is_google = provider.is_some_and(|provider| provider.sign_in == SignIn::Google);
                Ok(if is_google { password.expose_secret().replace(' ', "").into() } else { password })
            };
            let obtained = self.secret(Draft::PASSWORD, file.map(|_| "--password-file"), obtain).await?;
            if self.arguments.no_login {
                return Ok(obtained);
            }
            message(&format!("logging in at {} …", draft.server.host));
            let Err(error) = self.try_login(draft, &obtained.secret).await else { return Ok(obtained) };
            let error = match obtained.file {
                Some(_) => error.to_string(),
                None => format!("{error}; the password is that of the existing {}", self.source(Draft::PASSWORD)),
            };
            if !self.dialogue.asks {
                bail!("{error}; nothing was written");
            }
            message(&format!("FAILED: {error}"));
            let choices = "Enter: try again; s: change server and login name; k: keep these values";
            match terminal::ask(&format!("{choices}: ")).await?.as_str() {
                "k" => return Ok(obtained),
                "s" => {
                    draft.server = self.server_by_hand(None, Some(&draft.server), None).await?;
                    draft.user = self.login_name(&draft.user).await?;
                }
                _ => {}
            }
        }
    }

    /// Logs in with `password`, opens the mailboxes of the account, and prints the findings.
    async fn try_login(&self, draft: &Draft, password: &SecretString) -> anyhow::Result<()> {
        let config = Config::parse(&self.path, draft.text(self.place))?;
        let Some(account) = config.accounts.first() else { bail!("the draft has no account") };
        let tls = if account.tls == Tls::None { None } else { Some(tls::client_config(account.ca_file.as_deref())?) };
        let credentials = imap::Credentials::Password(password.clone());
        for finding in imap::probe(account, &imap::Login { tls, credentials }).await? {
            message(&format!("  {}", finding.unwrap_or_else(|error| format!("warning: {error}"))));
        }
        Ok(())
    }
}

/// Whether the provider of the account may fail to deliver mails to addresses with a `+` tag. Signed addresses have a `+` tag.
pub(super) fn lacks_tags(draft: &Draft) -> bool {
    Provider::by_host(&draft.server.host).is_some_and(|provider| !provider.has_tags)
}

/// Checks the client id or the tenant, which becomes part of a URL.
fn is_id(text: &str) -> Result<(), String> {
    let is_right = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if is_right {
        Ok(())
    } else {
        Err(format!("{:?} is no id of letters, digits, dots and hyphens", printable(text, 80)))
    }
}
