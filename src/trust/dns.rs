//! Looks up DKIM keys in DNS, and caches them.

use std::borrow::Borrow;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use mail_auth::common::parse::TxtRecordParser;
use mail_auth::dkim::Signature;
use mail_auth::dmarc::{Dmarc, Policy};
use mail_auth::hickory_resolver::config::ResolverOpts;
use mail_auth::hickory_resolver::proto::op::ResponseCode;
use mail_auth::{AuthenticatedMessage, DkimOutput, DnsError, Parameters, ResolverCache, Txt};
use serde::Deserialize;

use super::key_record::{self, KeyRecord};
use super::name_servers::NameServers;
use crate::configured_text::configured_text;
use crate::model::printable;

/// `[dns]`: the DNS servers.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: the keys below [dns]")]
pub struct DnsSettings {
    /// The DNS servers, as `127.0.0.1:5353` or `127.0.0.1`. If the list is empty, the servers of the system are used.
    pub servers: Vec<DnsServer>,
}

/// The address of a DNS server. The default port is 53.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DnsServer(SocketAddr);

configured_text!(DnsServer, "an IP address in quotes, for example \"127.0.0.1:5353\"");

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

/// The timeout of each way to query: UDP with EDNS, UDP, TCP. Over UDP, hickory repeats the query within this time. Over TCP,
/// connecting has a separate timeout of the same length.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The timeout of one lookup with all ways to query together, and of the verification of all signatures of a mail.
pub(super) const LOOKUP_LIMIT: Duration = Duration::from_secs(15);
/// The most DKIM keys in the cache.
const MAX_KEYS: usize = 1_000;
/// The longest time that a key stays in the cache, even if its TTL is longer. A revoked key must not be used for longer.
const MAX_TTL: Duration = Duration::from_secs(3600);

/// The most DKIM keys that are looked up before a mail needs these keys.
const MAX_RECENT_KEYS: usize = 4;

/// Looks up DKIM keys in DNS. Caches each key until its TTL ends, but for an hour at most.
pub struct Resolver {
    name_servers: NameServers,
    cache: KeyCache,
    /// The DNS names of the DKIM keys that verified recent mails, the most recent name first.
    recent_keys: Mutex<VecDeque<String>>,
    /// Locked while a task prefetches keys. Another such task ends at once, so that only one task waits if DNS does not answer.
    prefetching: tokio::sync::Mutex<()>,
}

/// Whether this response code is an answer: success, or no such name. All other codes mean that the server could not answer.
pub(super) fn is_answer(code: ResponseCode) -> bool {
    matches!(code, ResponseCode::NoError | ResponseCode::NXDomain)
}

impl Resolver {
    /// Creates a resolver for the servers in `settings`, or for those of /etc/resolv.conf. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// `settings` names no servers and /etc/resolv.conf cannot be read, or the resolver cannot be started.
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

    pub(super) fn name_servers(&self) -> &NameServers {
        &self.name_servers
    }

    /// Adds the name of a key that verified a mail to `recent_keys`. The next mail is probably signed with the same key.
    pub fn remember_key(&self, domain: &str, selector: &str) {
        let name = key_name(domain, selector);
        let Ok(mut recent_keys) = self.recent_keys.lock() else { return };
        if recent_keys.front() != Some(&name) {
            recent_keys.retain(|known| *known != name);
            recent_keys.push_front(name);
            recent_keys.truncate(MAX_RECENT_KEYS);
        }
    }

    /// Whether the cache has all keys in `recent_keys`. A mail that is signed with one of these keys needs no lookup.
    #[must_use]
    pub fn has_cached_keys(&self) -> bool {
        self.recent_keys
            .lock()
            .is_ok_and(|recent_keys| recent_keys.iter().all(|name| self.cache.get(name.as_str()).is_some()))
    }

    /// Looks up the keys in `recent_keys` that the cache does not have. A failure is ignored, because the lookup is repeated when
    /// a mail needs the key.
    pub async fn prefetch_keys(&self) {
        let Ok(_prefetching) = self.prefetching.try_lock() else { return };
        let names: Vec<String> =
            self.recent_keys.lock().map(|recent_keys| recent_keys.iter().cloned().collect()).unwrap_or_default();
        for name in names {
            let _ = tokio::time::timeout(LOOKUP_LIMIT, self.look_up_key(name)).await;
        }
    }

    /// Verifies all signatures in `message`. After [`LOOKUP_LIMIT`], the result of each signature is a temporary error.
    pub(super) async fn verify<'x>(&'x self, message: &'x AuthenticatedMessage<'x>) -> Vec<DkimOutput<'x>> {
        let checking = async {
            // All lookups run at once, so that four keys take no longer than one, even if DNS does not answer. mail-auth then
            // takes the found keys from the cache. mail-auth repeats each failed lookup through `NameServers::preferred`.
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

    /// Returns the DKIM key record of a signature, usually from the cache, and adds the key to `recent_keys`.
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
}

/// Returns the DNS name of a DKIM key (RFC 6376, 3.6.2.1), in the form that mail-auth uses as the key of its cache.
fn key_name(domain: &str, selector: &str) -> String {
    format!("{selector}._domainkey.{domain}.")
}

/// Sets the options that apply to configured servers and to the system's servers.
fn set_resolver_options(options: &mut ResolverOpts) {
    options.timeout = TIMEOUT;
    // After the timeout, hickory does not retry, because `NameServers` then uses the next way to query.
    options.attempts = 0;
    options.positive_max_ttl = Some(MAX_TTL);
    options.negative_max_ttl = Some(Duration::from_secs(300));
    // Without EDNS, a response with a key of 4096 bits does not fit into one UDP packet.
    options.edns0 = true;
}

/// For `check --connect`: looks up a domain's mail servers and its DMARC policy. Returns one line for the operator per
/// lookup. The line is an `Err` if DNS does not answer. If the first lookup fails, the DMARC policy is not looked up.
pub async fn check_domain(resolver: &Resolver, domain: &str) -> Vec<Result<String, String>> {
    let mail_servers = check_mail_servers(resolver, domain).await;
    if mail_servers.is_err() {
        return vec![mail_servers];
    }
    vec![mail_servers, check_dmarc(resolver, domain).await]
}

async fn check_mail_servers(resolver: &Resolver, domain: &str) -> Result<String, String> {
    let name = &format!("{domain}.");
    let lookup = resolver.name_servers.query(|dns| async move { Ok(dns.0.mx_lookup(name.as_str()).await?) });
    Ok(match answer(lookup).await? {
        Some(answer) => {
            let servers: Vec<_> =
                answer.answers().iter().map(|record| printable(&record.data.to_string(), 100)).collect();
            format!("DNS works; its mail servers (MX): {}", servers.join(", "))
        }
        None => "DNS works; it has no mail server (MX)".into(),
    })
}

async fn check_dmarc(resolver: &Resolver, domain: &str) -> Result<String, String> {
    let name = &format!("_dmarc.{domain}.");
    let lookup = resolver.name_servers.query(|dns| async move { dns.txt_raw_lookup(name.as_str()).await });
    Ok(match answer(lookup).await.map_err(|error| format!("the DMARC policy is unknown: {error}"))? {
        Some(record) => match Dmarc::parse(&record) {
            Ok(dmarc) => format!("its DMARC policy is {}", policy_name(dmarc.p)),
            Err(_) => "its DMARC record cannot be parsed".into(),
        },
        None => "it publishes no DMARC policy".into(),
    })
}

/// Returns the records that a lookup found, or `None` if no such record exists.
async fn answer<T>(lookup: impl Future<Output = mail_auth::Result<T>>) -> Result<Option<T>, String> {
    match tokio::time::timeout(LOOKUP_LIMIT, lookup).await {
        Ok(Ok(answer)) => Ok(Some(answer)),
        Ok(Err(mail_auth::Error::Dns(DnsError::RecordNotFound(code)))) if is_answer(code) => Ok(None),
        Ok(Err(error)) => {
            Err(format!("DNS does not answer: {}; check [dns] servers", printable(&error.to_string(), 200)))
        }
        Err(_) => Err("DNS does not answer in time; check [dns] servers".into()),
    }
}

/// Returns the name of a policy in a DMARC record (RFC 7489, 6.3).
fn policy_name(policy: Policy) -> &'static str {
    match policy {
        Policy::None => "none",
        Policy::Quarantine => "quarantine",
        Policy::Reject => "reject",
        Policy::Unspecified => "unspecified",
    }
}

/// The cached DKIM key records by DNS name, each with the time at which the record expires.
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
            // Many mails, each with another selector, must not fill the memory.
            let now = Instant::now();
            keys.retain(|_, (_, until)| *until > now);
            if keys.len() >= MAX_KEYS {
                keys.clear();
            }
        }
        keys.insert(name, (key, until.min(Instant::now() + MAX_TTL)));
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UdpSocket;

    use super::*;

    /// Starts a DNS server that answers each query with a response code. `codes` maps the first label of the queried name to this
    /// code.
    async fn server(codes: &'static [(&str, u8)]) -> (Resolver, tokio::task::JoinHandle<()>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let servers = vec![DnsServer(socket.local_addr().unwrap())];
        let answers = tokio::spawn(async move {
            let mut message = [0; 512];
            loop {
                let (length, client) = socket.recv_from(&mut message).await.unwrap();
                // The header has 12 bytes (RFC 1035, 4.1.1). The length of the first label follows, and then the label.
                let label = &message[13..13 + usize::from(message[12])];
                let code = codes.iter().find(|(name, _)| name.as_bytes() == label).unwrap().1;
                message[2] |= 0x80;
                message[3] = 0x80 | code;
                socket.send_to(&message[..length], client).await.unwrap();
            }
        });
        (Resolver::new(&DnsSettings { servers }).unwrap(), answers)
    }

    #[tokio::test]
    async fn an_unanswered_dmarc_lookup_is_an_error() {
        const NO_SUCH_NAME: u8 = 3;
        const SERVER_FAILURE: u8 = 2;
        let (resolver, _answers) = server(&[("resmic", NO_SUCH_NAME), ("_dmarc", SERVER_FAILURE)]).await;
        let lines = check_domain(&resolver, "resmic.com").await;
        assert_eq!(lines[0].as_deref(), Ok("DNS works; it has no mail server (MX)"));
        assert!(lines[1].as_ref().is_err_and(|error| error.starts_with("the DMARC policy is unknown:")), "{lines:?}");
        let (resolver, _answers) = server(&[("resmic", NO_SUCH_NAME), ("_dmarc", NO_SUCH_NAME)]).await;
        let lines = check_domain(&resolver, "resmic.com").await;
        assert_eq!(lines[1].as_deref(), Ok("it publishes no DMARC policy"));
    }
}
