//! Prepares the loops from a configuration: reads the secrets and certificates, and binds the port for metrics.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::rustls::ClientConfig;

use crate::config::Config;
use crate::examine::Rules;
use crate::source::imap::{self, Tls};
use crate::telemetry::{NodeRequests, RequestCounters};
use crate::trust::dns::Resolver;
use crate::{confirm, db, extract, forward, payments, resmic, tls, trust};

/// How many watchers may connect to one mail server at the same time.
const CONNECTS: usize = 16;

/// Creates the [`Rules`] by which the mails of an account are authenticated, parsed and matched.
///
/// # Errors
/// A secret cannot be read, or a value in the configuration is invalid.
pub async fn rules(config: &Config, account: &imap::ImapSettings) -> anyhow::Result<Rules> {
    rules_with(config, account, addresses(config).await?)
}

/// Loads the key of the signed addresses, and prepares these addresses; `None` if `[sessions.address]` is not configured.
///
/// # Errors
/// The key of the signed addresses cannot be read, or their mailbox is invalid.
pub async fn addresses(config: &Config) -> anyhow::Result<Option<payments::SignedAddresses>> {
    let Some(address) = &config.sessions.address else { return Ok(None) };
    let key = config.secret("sessions.address.key", &address.key).await?;
    let addresses = payments::SignedAddresses::new(&address.mailbox, &key);
    Ok(Some(addresses.map_err(|message| config.wrong("sessions.address.mailbox", message))?))
}

/// Creates the [`Rules`] for the mails of an account. `addresses`: the signed addresses, if they are configured.
///
/// # Errors
/// A value in the configuration is invalid.
pub fn rules_with(
    config: &Config,
    account: &imap::ImapSettings,
    addresses: Option<payments::SignedAddresses>,
) -> anyhow::Result<Rules> {
    let own = if account.recipients.is_empty() { vec![account.user.clone()] } else { account.recipients.clone() };
    let signed = config.sessions.address.as_ref().map(|a| a.mailbox.clone());
    Ok(Rules {
        trust: config.trust.clone(),
        parser: extract::MailParser::new(&config.extract),
        recipients: trust::Recipients::new(own.into_iter().chain(signed)),
        addresses,
    })
}

/// Creates the [`Rules`] for a mail that belongs to no account, without recipients and signed addresses.
#[must_use]
pub fn rules_without_account(config: &Config) -> Rules {
    Rules {
        trust: config.trust.clone(),
        parser: extract::MailParser::new(&config.extract),
        recipients: trust::Recipients::default(),
        addresses: None,
    }
}

/// Collects the values of the configuration that the database needs.
#[must_use]
pub fn store_settings(config: &Config) -> db::StoreSettings {
    db::StoreSettings {
        path: config.database(),
        targets: config.forwards.iter().map(forward::ForwardSettings::target).collect(),
        matching: config.sessions.matching(),
        // The configuration was checked, so each `[[chain]]` table names a known chain.
        chains: config.chains.iter().filter_map(|chain| chain.chain().ok()).collect(),
        resmic: config.resmic.as_ref().map(|resmic| db::ResmicRules { require: resmic.require }),
    }
}

/// Everything that the loops need, with all secrets. The configuration is valid.
pub struct Prepared {
    pub(super) config: Config,
    pub(super) accounts: Vec<(imap::Account, Rules)>,
    pub(super) targets: Vec<forward::Target>,
    pub(super) chains: Vec<confirm::WatchedChain>,
    pub(super) requests: RequestCounters,
    pub(super) resmic: Option<resmic::ResmicClient>,
    pub(super) resolver: Arc<Resolver>,
    pub(super) metrics: Option<(SocketAddr, Arc<TcpListener>)>,
}

/// Reads the secrets and certificates, and binds the port for metrics, without starting a loop.
///
/// `before`: the listener of the running daemon, which is used again if its address stays the same.
///
/// # Errors
/// A value in the configuration is invalid, or a secret, a certificate or the port is not available.
pub async fn prepare(config: Config, before: Option<&Listener>, requests: RequestCounters) -> anyhow::Result<Prepared> {
    if config.accounts.is_empty() {
        return Err(config.wrong("account", "expected at least one [[account]]").into());
    }
    let accounts = accounts(&config).await?;
    let targets = forward_targets(&config).await?;
    let chains = chains(&config, &requests.nodes).await?;
    let resmic = resmic_client(&config).await?.map(|client| client.counted_in(&requests.resmic));
    let resolver = Arc::new(Resolver::new(&config.dns)?);
    let metrics = match (config.telemetry.metrics, before) {
        (Some(address), Some((bound, listener))) if address == *bound => Some((address, listener.clone())),
        (Some(address), _) => Some((address, Arc::new(listen(&config, address).await?))),
        (None, _) => None,
    };
    Ok(Prepared { config, accounts, targets, chains, resmic, requests, resolver, metrics })
}

/// Binds the port for metrics. If another program uses the port, the error is no configuration error. After a configuration error
/// (exit code 2), systemd would not start the daemon again.
async fn listen(config: &Config, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let wrong = config.wrong("telemetry.metrics", format!("{address}: {error}"));
        if error.kind() == ErrorKind::AddrInUse { anyhow::Error::msg(wrong.to_string()) } else { wrong.into() }
    })
}

/// The address on which metrics are served, and the listener that is bound to this address.
pub type Listener = (SocketAddr, Arc<TcpListener>);

impl Prepared {
    /// The listener for metrics, for a later [`prepare`].
    #[must_use]
    pub fn listener(&self) -> Option<Listener> {
        self.metrics.clone()
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The database file.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.config.database()
    }

    /// The `[standby]` table as text, for a comparison with the table of a later configuration.
    #[must_use]
    pub fn standby(&self) -> String {
        format!("{:?}", self.config.standby)
    }
}

/// Creates the accounts of the configuration, with their secrets and their [`Rules`].
async fn accounts(config: &Config) -> anyhow::Result<Vec<(imap::Account, Rules)>> {
    // Each mail server has a separate limit (`CONNECTS`). So a server that does not answer does not delay the connects to other
    // servers.
    let (mut paces, mut quirks, mut clients) = (HashMap::new(), HashMap::new(), tls::TlsClients::default());
    let mut accounts = Vec::new();
    for (n, settings) in config.accounts.iter().enumerate() {
        let trust = config.trust.clone();
        let server = (settings.host.to_ascii_lowercase(), settings.port());
        let account = imap::Account {
            login: login(config, n, settings, &mut clients).await?,
            settings: settings.clone(),
            is_candidate: Box::new(move |header| trust::is_candidate(header, &trust)),
            pace: paces.entry(server.clone()).or_insert_with(|| Arc::new(Semaphore::new(CONNECTS))).clone(),
            timing: imap::Timing::default(),
            quirks: quirks.entry(server).or_insert_with(imap::Quirks::default).clone(),
        };
        accounts.push((account, rules(config, settings).await?));
    }
    Ok(accounts)
}

/// Loads the credentials and the TLS configuration of the account at index `n` of the configuration.
///
/// # Errors
/// A secret or a file of certificates cannot be read.
pub async fn login(
    config: &Config,
    n: usize,
    settings: &imap::ImapSettings,
    clients: &mut tls::TlsClients,
) -> anyhow::Result<imap::Login> {
    let key = format!("account[{n}]");
    let mut roots = || {
        let client = clients.client(settings.ca_file.as_deref());
        client.map_err(|e| config.wrong(&format!("{key}.ca_file"), e.to_string()))
    };
    let credentials = match (&settings.password, &settings.oauth2) {
        (Some(source), _) => imap::Credentials::Password(config.secret(&format!("{key}.password"), source).await?),
        (None, Some(oauth2)) => {
            let tls = oauth2.token_url.tls.then(&mut roots).transpose()?;
            imap::Credentials::OAuth2(tokens(config, &format!("{key}.oauth2"), oauth2, tls).await?)
        }
        (None, None) => return Err(config.wrong(&key, "expected `password` or `oauth2`").into()),
    };
    let tls = match settings.tls {
        Tls::None => None,
        Tls::Implicit | Tls::Starttls => Some(roots()?),
    };
    Ok(imap::Login { tls, credentials })
}

async fn tokens(
    config: &Config,
    key: &str,
    settings: &imap::OAuthSettings,
    tls: Option<Arc<ClientConfig>>,
) -> anyhow::Result<imap::AccessTokens> {
    let client_secret = match &settings.client_secret {
        Some(source) => Some(config.secret(&format!("{key}.client_secret"), source).await?),
        None => None,
    };
    let refresh_token = config.secret(&format!("{key}.refresh_token"), &settings.refresh_token).await?;
    let database = config.database();
    let folder = database.parent().unwrap_or(Path::new(""));
    Ok(imap::AccessTokens::new(settings, client_secret, refresh_token, folder, tls))
}

/// Creates the targets of all `[[forward]]` tables, with their secrets.
///
/// # Errors
/// A value in a table is invalid, or a secret or a certificate cannot be read.
pub async fn forward_targets(config: &Config) -> anyhow::Result<Vec<forward::Target>> {
    let mut targets = Vec::new();
    for (n, settings) in config.forwards.iter().enumerate() {
        targets.push(forward_target(config, n, settings).await?);
    }
    Ok(targets)
}

/// Creates the target of the `[[forward]]` table at index `n`, with its secrets.
///
/// # Errors
/// A value in the table is invalid, or a secret or a certificate cannot be read.
pub async fn forward_target(
    config: &Config,
    n: usize,
    settings: &forward::ForwardSettings,
) -> anyhow::Result<forward::Target> {
    let secret = config.secret(&format!("forward[{n}].secret"), &settings.secret).await?;
    let target = forward::Target::load(settings.clone(), secret).await;
    Ok(target.map_err(|wrong| config.wrong(&format!("forward[{n}].{}", wrong.key), wrong.message))?)
}

/// Creates the chains of the `[[chain]]` tables, with their nodes, which count their calls in `requests`. This function sends no
/// request.
///
/// # Errors
/// The URL of a node cannot be read, or is invalid.
pub async fn chains(config: &Config, requests: &NodeRequests) -> anyhow::Result<Vec<confirm::WatchedChain>> {
    let mut chains = Vec::new();
    for (n, settings) in config.chains.iter().enumerate() {
        let wrong = |(key, problem): (String, String)| config.wrong(&format!("chain[{n}].{key}"), problem);
        let chain = settings.chain().map_err(wrong)?;
        // Without the system's root certificates, an https URL is an error, but an http URL to this machine is accepted.
        let tls = tls::client_config(None).ok();
        chains.push(confirm::WatchedChain {
            chain,
            nodes: settings.open_nodes(tls.as_ref(), requests).await.map_err(wrong)?,
        });
    }
    Ok(chains)
}

/// Creates the client of Resmic's API, and sends no request; `None` without `[resmic]`.
///
/// # Errors
/// A secret cannot be read or is invalid.
pub async fn resmic_client(config: &Config) -> anyhow::Result<Option<resmic::ResmicClient>> {
    let Some(settings) = &config.resmic else { return Ok(None) };
    let api_key = config.secret("resmic.api_key", &settings.api_key).await?;
    let user_id = config.secret("resmic.user_id", &settings.user_id).await?;
    // Without the system's root certificates, an https URL is an error, but an http URL to this machine is accepted.
    let client = resmic::ResmicClient::new(settings, api_key, user_id, tls::client_config(None).ok());
    Ok(Some(client.map_err(|(key, problem)| config.wrong(&format!("resmic.{key}"), problem))?))
}
