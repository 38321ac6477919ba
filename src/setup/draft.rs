//! The answers to the questions of `init`, and the text of the configuration that they result in.

use std::fmt::Write as _;
use std::path::PathBuf;

use super::discovery::MailServer;
use crate::http::Url;
use crate::source::imap::Tls;

/// All answers to the questions of `init`.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The account's name.
    pub account: String,
    /// The address that Resmic's mails are sent to.
    pub email: String,
    /// The mail server.
    pub server: MailServer,
    /// A file with certificates to trust in addition to the system's.
    pub ca_file: Option<PathBuf>,
    /// The login name.
    pub user: String,
    /// The kind of login at the mail server.
    pub login: LoginDraft,
    /// Whether the mailbox receives only Resmic's mails.
    pub dedicated: bool,
    /// The DNS servers. If the list is empty, the system's servers are used.
    pub dns: Vec<String>,
    /// How the order of a payment is determined.
    pub orders: OrderMethod,
    /// The handler's URL, if there is a handler.
    pub forward: Option<Url>,
}

/// The kind of login at the mail server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoginDraft {
    /// A password.
    Password,
    /// OAuth, with this application, which is registered at the provider.
    OAuth(ProviderApp),
}

/// An application at an OAuth provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderApp {
    token_url: String,
    client_id: String,
    has_client_secret: bool,
    scope: &'static str,
}

/// How the order of a payment is determined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderMethod {
    /// The signed address names the order.
    Address,
    /// The only registered session with the same amount names the order.
    Match,
    /// This program does not determine the order, because the handler identifies payments itself.
    Send,
}

/// How the configuration names a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretPlace {
    /// A systemd credential, which the packaged unit loads.
    Credential,
    /// A file in the folder of the configuration.
    File,
}

impl ProviderApp {
    /// An application at Microsoft, without a client secret.
    #[must_use]
    pub fn microsoft(client_id: &str, tenant: &str) -> Self {
        ProviderApp {
            token_url: format!("https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token"),
            client_id: client_id.to_owned(),
            has_client_secret: false,
            scope: "https://outlook.office.com/IMAP.AccessAsUser.All offline_access",
        }
    }

    /// A desktop application at Google, which has a client secret.
    #[must_use]
    pub fn google(client_id: &str) -> Self {
        ProviderApp {
            token_url: "https://oauth2.googleapis.com/token".to_owned(),
            client_id: client_id.to_owned(),
            has_client_secret: true,
            scope: "https://mail.google.com/",
        }
    }
}

impl Draft {
    /// The name of the file with the account's password.
    pub const PASSWORD: &'static str = "imap-password";
    /// The name of the file with the key that signs deliveries.
    pub const WEBHOOK_SECRET: &'static str = "webhook-secret";
    /// The name of the file with the key that signs addresses.
    pub const ADDRESS_KEY: &'static str = "address-key";
    /// The name of the file with a refresh token.
    pub const REFRESH_TOKEN: &'static str = "oauth-refresh-token";
    /// The name of the file with the client secret of an application.
    pub const CLIENT_SECRET: &'static str = "oauth-client-secret";

    /// Returns the text of the configuration file. `place` decides how this text names the secrets.
    #[must_use]
    pub fn text(&self, place: SecretPlace) -> String {
        let mut out = String::from(
            "# Written by `resmic-mailhook init`. docs/configuration.md has every key with its default. This file has no secrets.\n\n",
        );
        self.write_account(&mut out, place);
        if !self.dns.is_empty() {
            let servers: Vec<_> = self.dns.iter().map(|server| quoted(server)).collect();
            let _ = write!(out, "\n[dns]\nservers = [{}]\n", servers.join(", "));
        }
        match self.orders {
            OrderMethod::Address => {
                let (mailbox, key) = (quoted(&self.email.to_lowercase()), place.secret(Self::ADDRESS_KEY));
                let _ = write!(out, "\n[sessions]\naddress = {{ mailbox = {mailbox}, key = {key} }}\n");
            }
            OrderMethod::Match => out.push_str("\n[sessions]\nmatch = true\n"),
            OrderMethod::Send => {}
        }
        self.write_forward(&mut out, place);
        out
    }

    fn write_account(&self, out: &mut String, place: SecretPlace) {
        let MailServer { host, port, tls } = &self.server;
        let _ = writeln!(out, "[[account]]\nname = {}\nhost = {}", quoted(&self.account), quoted(host));
        if let Some(port) = port {
            let _ = writeln!(out, "port = {port}");
        }
        match tls {
            Tls::Implicit => {}
            Tls::Starttls => out.push_str("tls = \"starttls\"\n"),
            Tls::None => out.push_str("tls = \"none\"\n"),
        }
        if let Some(file) = &self.ca_file {
            let _ = writeln!(out, "ca_file = {}", quoted(&file.to_string_lossy()));
        }
        let _ = writeln!(out, "user = {}", quoted(&self.user));
        if self.user != self.email {
            let _ = writeln!(out, "recipients = [{}]", quoted(&self.email));
        }
        if self.login == LoginDraft::Password {
            let _ = writeln!(out, "password = {}", place.secret(Self::PASSWORD));
        }
        if self.dedicated {
            out.push_str("dedicated = true\n");
        }
        if let LoginDraft::OAuth(app) = &self.login {
            let (token_url, client_id) = (quoted(&app.token_url), quoted(&app.client_id));
            let _ = write!(out, "\n[account.oauth2]\ntoken_url = {token_url}\nclient_id = {client_id}\n");
            if app.has_client_secret {
                let _ = writeln!(out, "client_secret = {}", place.secret(Self::CLIENT_SECRET));
            }
            let _ = writeln!(out, "refresh_token = {}", place.secret(Self::REFRESH_TOKEN));
            let _ = writeln!(out, "scope = {}", quoted(app.scope));
        }
    }

    fn write_forward(&self, out: &mut String, place: SecretPlace) {
        let Some(url) = &self.forward else { return };
        let (name, url_text, secret) =
            (quoted(&self.account), quoted(&url.to_string()), place.secret(Self::WEBHOOK_SECRET));
        let _ = write!(out, "\n[[forward]]\nname = {name}\nurl = {url_text}\nsecret = {secret}\n");
        if !url.is_loopback() {
            out.push_str("allow_remote = true\n");
        }
        if self.orders == OrderMethod::Send {
            out.push_str("unresolved = \"send\"\n");
        }
    }
}

impl SecretPlace {
    fn secret(self, name: &str) -> String {
        match self {
            SecretPlace::Credential => format!("{{ credential = {} }}", quoted(name)),
            SecretPlace::File => format!("{{ file = {} }}", quoted(name)),
        }
    }
}

/// A text as a TOML string, in quotes.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft() -> Draft {
        Draft {
            account: "shop".into(),
            email: "payments@shop.example".into(),
            server: MailServer { host: "imap.shop.example".into(), port: None, tls: Tls::Implicit },
            ca_file: None,
            user: "payments@shop.example".into(),
            login: LoginDraft::Password,
            dedicated: false,
            dns: Vec::new(),
            orders: OrderMethod::Send,
            forward: None,
        }
    }

    #[test]
    fn a_default_is_not_written() {
        let text = draft().text(SecretPlace::Credential);
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table.keys().collect::<Vec<_>>(), ["account"]);
        let account = table["account"][0].as_table().unwrap();
        let keys: std::collections::BTreeSet<_> = account.keys().map(String::as_str).collect();
        assert_eq!(keys, ["host", "name", "password", "user"].into());
        assert_eq!(account["password"]["credential"].as_str(), Some("imap-password"));
    }

    #[test]
    fn any_text_stays_a_text() {
        let strange = "a\"b\\c\n[trust]\naccept = [\"none\"] # é";
        let draft = Draft { account: strange.into(), user: strange.into(), ..draft() };
        let table: toml::Table = draft.text(SecretPlace::File).parse().unwrap();
        assert_eq!(table.keys().collect::<Vec<_>>(), ["account"]);
        assert_eq!(table["account"][0]["name"].as_str(), Some(strange));
        assert_eq!(table["account"][0]["recipients"][0].as_str(), Some("payments@shop.example"));
    }

    #[test]
    fn a_remote_handler_is_allowed() {
        let with = |url: &str| Draft { forward: Some(url.parse().unwrap()), ..draft() }.text(SecretPlace::File);
        assert!(with("https://handler.example/hook").contains("allow_remote = true"));
        assert!(!with("http://127.0.0.1:3000/hook").contains("allow_remote"));
    }
}
