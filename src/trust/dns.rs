//! Who is asked for keys, and what is remembered of the answers.

use std::borrow::Borrow;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use mail_auth::common::parse::TxtRecordParser;
use mail_auth::dkim::Signature;
use mail_auth::dmarc::Dmarc;
use mail_auth::hickory_resolver::config::ResolverOpts;
use mail_auth::hickory_resolver::proto::op::ResponseCode;
use mail_auth::{AuthenticatedMessage, DkimOutput, DnsError, Parameters, ResolverCache, Txt};
use serde::Deserialize;

use super::key_record::{self, KeyRecord};
use super::name_servers::NameServers;
use crate::model::printable;

/// `[dns]`: who is asked.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DnsSettings {
    /// Servers, as `127.0.0.1:5353` or `127.0.0.1`; empty: the system's.
    pub servers: Vec<DnsServer>,
}

/// A DNS server's address; port 53 if none is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct DnsServer(SocketAddr);

impl TryFrom<String> for DnsServer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bare = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
        text.parse()
            .or_else(|_| bare())
            .map(DnsServer)
            .map_err(|_| "expected an IP address, like \"127.0.0.1:5353\"".into())
    }
}

/// How long the servers have for an answer in each of three ways: UDP, UDP without EDNS, TCP. Over UDP hickory repeats
/// the question meanwhile; over TCP, connecting has as much time again.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long all signatures of a mail have together, in all ways.
pub(super) const LOOKUP_LIMIT: Duration = Duration::from_secs(15);
/// How many keys are remembered.
const MAX_KEYS: usize = 1_000;
/// How long an answer is remembered at the most: a key that was revoked must not count for long.
const MAX_TTL: Duration = Duration::from_secs(3600);

/// How many keys are kept ready for the mails to come.
const MAX_RECENT_KEYS: usize = 4;

/// Asks for keys, and remembers the answers for as long as they may be.
pub struct Resolver {
    name_servers: NameServers,
    cache: KeyCache,
    /// The names of the keys by which mails were believed, the last first.
    recent_keys: Mutex<VecDeque<String>>,
    /// Held by who asks for them: where DNS does not answer, one asks and not each watcher.
    prefetching: tokio::sync::Mutex<()>,
}

/// Whether this response code is an answer: yes, or no such name. All others say that no answer could be had.
pub(super) fn is_answer(code: ResponseCode) -> bool {
    matches!(code, ResponseCode::NoError | ResponseCode::NXDomain)
}

impl Resolver {
    /// A resolver that asks these servers. Must be made inside a tokio runtime.
    ///
    /// # Errors
    /// What keeps it from starting: an unreadable /etc/resolv.conf.
    pub fn new(settings: &DnsSettings) -> anyhow::Result<Self> {
        let servers: Vec<SocketAddr> = settings.servers.iter().map(|server| server.0).collect();
        let name_servers = NameServers::new(&servers, set_resolver_options)?;
        Ok(Resolver {
            name_servers,
            cache: KeyCache::default(),
            recent_keys: Mutex::default(),
            prefetching: Default::default(),
        })
    }

    /// The servers to ask.
    pub(super) fn name_servers(&self) -> &NameServers {
        &self.name_servers
    }

    /// Takes note of a key by which a mail was believed: the next mail may well be signed with it.
    pub fn remember_key(&self, domain: &str, selector: &str) {
        let name = key_name(domain, selector);
        let Ok(mut recent_keys) = self.recent_keys.lock() else { return };
        if recent_keys.front() != Some(&name) {
            recent_keys.retain(|known| *known != name);
            recent_keys.push_front(name);
            recent_keys.truncate(MAX_RECENT_KEYS);
        }
    }

    /// Whether a mail that is signed with a key that is remembered could be judged without a question.
    #[must_use]
    pub fn has_cached_keys(&self) -> bool {
        self.recent_keys
            .lock()
            .is_ok_and(|recent_keys| recent_keys.iter().all(|name| self.cache.get(name.as_str()).is_some()))
    }

    /// Asks for the keys that are remembered, and are not known or have expired. What cannot be had is asked for again
    /// when a mail needs it.
    pub async fn prefetch_keys(&self) {
        let Ok(_prefetching) = self.prefetching.try_lock() else { return };
        let names: Vec<String> =
            self.recent_keys.lock().map(|recent_keys| recent_keys.iter().cloned().collect()).unwrap_or_default();
        for name in names {
            let _ = tokio::time::timeout(LOOKUP_LIMIT, self.look_up_key(name)).await;
        }
    }

    /// Checks all signatures that are left in `message`; in time, or not at all.
    pub(super) async fn verify<'x>(&'x self, message: &'x AuthenticatedMessage<'x>) -> Vec<DkimOutput<'x>> {
        let checking = async {
            // NameServers at once, so that four keys cost no more timeouts than one. What was found is checked below; what was
            // not is asked for again there, in the way that was answered.
            let names: BTreeSet<_> = message.dkim_headers.iter().map(|s| key_name(&s.header.d, &s.header.s)).collect();
            join_all(names.into_iter().map(|name| self.look_up_key(name))).await;
            self.name_servers.preferred().verify_dkim(Parameters::new(message).with_txt_cache(&self.cache)).await
        };
        match tokio::time::timeout(LOOKUP_LIMIT, checking).await {
            Ok(outputs) => outputs,
            Err(_) => message
                .dkim_headers
                .iter()
                .map(|signed| {
                    let late = mail_auth::Error::Dns(DnsError::Resolver("no answer in time".into()));
                    DkimOutput::temp_err(late).with_signature(&signed.header)
                })
                .collect(),
        }
    }

    /// The key record of a signature, which has just been looked up.
    pub(super) async fn key_record(&self, signature: &Signature) -> Result<Arc<KeyRecord>, String> {
        let lookup = self.look_up_key(key_name(&signature.d, &signature.s));
        let key = tokio::time::timeout(LOOKUP_LIMIT, lookup).await.map_err(|_| "no answer in time".to_owned())?;
        let key = key.map_err(|e| e.to_string())?;
        self.remember_key(&signature.d, &signature.s);
        Ok(key)
    }

    async fn look_up_key(&self, name: String) -> mail_auth::Result<Arc<KeyRecord>> {
        let (name, keys) = (name.as_str(), Some(&self.cache));
        self.name_servers.query(|dns| async move { dns.txt_lookup(name, keys).await }).await
    }

    async fn look_up_txt(&self, name: String) -> Result<Vec<u8>, String> {
        let name = name.as_str();
        let lookup = self.name_servers.query(|dns| async move { dns.txt_raw_lookup(name).await });
        tokio::time::timeout(LOOKUP_LIMIT, lookup)
            .await
            .map_err(|_| "no answer in time".to_owned())?
            .map_err(|e| e.to_string())
    }
}

/// Where a key stands (RFC 6376, 3.6.2.1), as mail-auth writes it.
fn key_name(domain: &str, selector: &str) -> String {
    format!("{selector}._domainkey.{domain}.")
}

/// How the servers are asked, whoever names them.
fn set_resolver_options(options: &mut ResolverOpts) {
    options.timeout = TIMEOUT;
    // The next way to ask takes the place of a retry.
    options.attempts = 0;
    options.positive_max_ttl = Some(MAX_TTL);
    options.negative_max_ttl = Some(Duration::from_secs(300));
    // A key of 4096 bits does not fit into one UDP packet everywhere.
    options.edns0 = true;
}

/// For `check --connect`: whether DNS answers for a domain at all, and what it says.
///
/// # Errors
/// In words, if it does not answer.
pub async fn check_domain(resolver: &Resolver, domain: &str) -> Result<Vec<String>, String> {
    let name = &format!("{domain}.");
    let mx = resolver.name_servers.query(|dns| async move { Ok(dns.0.mx_lookup(name.as_str()).await?) });
    let mx = tokio::time::timeout(LOOKUP_LIMIT, mx)
        .await
        .map_err(|_| "DNS does not answer in time; check [dns] servers".to_owned())?;
    let mut found = Vec::new();
    match mx {
        Ok(answer) => {
            let servers: Vec<_> =
                answer.answers().iter().map(|record| printable(&record.data.to_string(), 100)).collect();
            found.push(format!("DNS works; its mail servers (MX): {}", servers.join(", ")));
        }
        Err(mail_auth::Error::Dns(DnsError::RecordNotFound(code))) if is_answer(code) => {
            found.push("DNS works; it has no mail server (MX)".into())
        }
        Err(error) => {
            return Err(format!("DNS does not answer: {}; check [dns] servers", printable(&error.to_string(), 200)));
        }
    }
    found.push(match resolver.look_up_txt(format!("_dmarc.{domain}.")).await {
        Ok(record) => match Dmarc::parse(&record) {
            Ok(policy) => format!("its DMARC policy is {:?}", policy.p).to_lowercase().replace("dmarc", "DMARC"),
            Err(_) => "its DMARC record cannot be read".into(),
        },
        Err(_) => "it publishes no DMARC policy".into(),
    });
    Ok(found)
}

/// The keys that were looked up, until they expire.
#[derive(Default)]
struct KeyCache(Mutex<HashMap<Box<str>, (Txt, Instant)>>);

impl ResolverCache<Box<str>, Txt> for KeyCache {
    fn get<Q>(&self, name: &Q) -> Option<Txt>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let keys = self.0.lock().ok()?;
        keys.get(name).filter(|(_, until)| *until > Instant::now()).map(|(key, _)| key.clone())
    }

    fn remove<Q>(&self, name: &Q) -> Option<Txt>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.0.lock().ok()?.remove(name).map(|(key, _)| key)
    }

    fn insert(&self, name: Box<str>, key: Txt, until: Instant) {
        if !key_record::is_checked(&key) {
            return;
        }
        let Ok(mut keys) = self.0.lock() else { return };
        if keys.len() >= MAX_KEYS {
            // Whoever sends mails with ever new selectors must not fill the memory.
            let now = Instant::now();
            keys.retain(|_, (_, until)| *until > now);
            if keys.len() >= MAX_KEYS {
                keys.clear();
            }
        }
        keys.insert(name, (key, until.min(Instant::now() + MAX_TTL)));
    }
}
