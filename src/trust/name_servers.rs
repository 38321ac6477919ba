//! The DNS servers: those of `[dns] servers`, or those of /etc/resolv.conf.
//!
//! A DHCP lease or a VPN may change /etc/resolv.conf while the daemon runs. The C library reads the changed file again, and so
//! does this module. Otherwise key lookups would time out until a restart, although the C library would still find the mail
//! server.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::SystemTime;

use mail_auth::hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ProtocolConfig, ResolverConfig, ResolverOpts,
};
use mail_auth::hickory_resolver::system_conf::read_system_conf;
use mail_auth::{DnsError, MessageAuthenticator};

/// The system's list of name servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

type Servers = (ResolverConfig, ResolverOpts);

/// The DNS servers, and the ways to query these servers.
pub(super) struct NameServers {
    /// /etc/resolv.conf; `None` if `[dns] servers` names the servers.
    system: Option<SystemConfig>,
    /// Sets the options that every query has.
    options: fn(&mut ResolverOpts),
    current: Mutex<LoadedConfig>,
}

/// A file with DNS servers (/etc/resolv.conf), and the function that parses this file.
struct SystemConfig {
    file: PathBuf,
    read: fn() -> anyhow::Result<Servers>,
}

struct LoadedConfig {
    /// The version of /etc/resolv.conf that was read; `None` if `[dns] servers` names the servers.
    version: Option<FileVersion>,
    query_ways: QueryWays,
}

type ResolverResult = Result<Arc<MessageAuthenticator>, DnsError>;
type LazyResolver = LazyLock<ResolverResult, Box<dyn FnOnce() -> ResolverResult + Send>>;

/// Three ways to query the same servers: UDP with EDNS, UDP without EDNS, and TCP without EDNS. Old servers and some
/// routers reject or drop queries with EDNS (RFC 6891), and some firewalls drop DNS over UDP.
#[derive(Clone)]
struct QueryWays {
    usual: Arc<MessageAuthenticator>,
    /// The resolvers for UDP without EDNS, and for TCP. Each resolver is created when it is needed, because a resolver of hickory
    /// holds the system's certificate authorities, about 130 KB.
    fallbacks: Arc<[LazyResolver; 2]>,
    /// The index of the way that got the most recent answer. The next lookup begins with this way, so that only the first lookup
    /// waits for a timeout.
    last_working: Arc<AtomicUsize>,
}

impl QueryWays {
    /// Returns all ways to query. The way that got the most recent answer comes first.
    fn ways(&self) -> impl Iterator<Item = (usize, ResolverResult)> {
        let first = self.last_working.load(Ordering::Relaxed);
        let others = (0..=self.fallbacks.len()).filter(move |way| *way != first);
        std::iter::once(first).chain(others).map(|way| (way, self.resolver(way)))
    }

    fn resolver(&self, way: usize) -> ResolverResult {
        match way.checked_sub(1).and_then(|fallback| self.fallbacks.get(fallback)) {
            Some(fallback) => LazyLock::force(fallback).clone(),
            None => Ok(self.usual.clone()),
        }
    }
}

/// Modification time and size of /etc/resolv.conf: a change of either means that the file was written.
type FileVersion = (Option<SystemTime>, u64);

impl SystemConfig {
    fn version(&self) -> Option<FileVersion> {
        let metadata = std::fs::metadata(&self.file).ok()?;
        Some((metadata.modified().ok(), metadata.len()))
    }
}

impl NameServers {
    /// Uses the DNS servers in `servers`, or those of /etc/resolv.conf if the list is empty. `options` overrides the options of
    /// the system.
    ///
    /// # Errors
    /// The list is empty and /etc/resolv.conf cannot be read, or the resolver cannot be started.
    pub(super) fn new(servers: &[SocketAddr], options: fn(&mut ResolverOpts)) -> anyhow::Result<Self> {
        if servers.is_empty() {
            let read = || {
                read_system_conf()
                    .map_err(|e| anyhow::anyhow!("cannot read the system's DNS servers: {e}; set [dns] servers"))
            };
            return Self::from_system(SystemConfig { file: RESOLV_CONF.into(), read }, options);
        }
        let servers = servers.iter().copied().map(name_server).collect();
        let servers = (ResolverConfig::from_parts(None, Vec::new(), servers), ResolverOpts::default());
        let current = LoadedConfig { version: None, query_ways: query_ways(servers, options)? };
        Ok(NameServers { system: None, options, current: Mutex::new(current) })
    }

    fn from_system(system: SystemConfig, options: fn(&mut ResolverOpts)) -> anyhow::Result<Self> {
        // The version of /etc/resolv.conf is read before the content. If the file is written between these two reads, the next
        // query sees another version and reads the file again.
        let version = system.version();
        let current = LoadedConfig { version, query_ways: query_ways((system.read)()?, options)? };
        Ok(NameServers { system: Some(system), options, current: Mutex::new(current) })
    }

    /// Tries one way to query after the other, until a server answers. If no server answers, returns the error of the first way.
    pub(super) async fn query<T, F>(&self, lookup: impl Fn(Arc<MessageAuthenticator>) -> F) -> mail_auth::Result<T>
    where
        F: Future<Output = mail_auth::Result<T>>,
    {
        let query_ways = self.query_ways();
        let mut failure = None;
        for (way, dns) in query_ways.ways() {
            let answer = match dns {
                Ok(dns) => lookup(dns).await,
                Err(error) => Err(mail_auth::Error::Dns(error)),
            };
            match answer {
                Err(error) if !is_answer(&error) => failure = failure.or(Some(error)),
                answer => {
                    if query_ways.last_working.swap(way, Ordering::Relaxed) != way {
                        tracing::debug!(way, "the DNS servers answer over another transport than before");
                    }
                    return answer;
                }
            }
        }
        Err(failure.unwrap_or_else(|| mail_auth::Error::Dns(DnsError::Resolver("there is no way to query DNS".into()))))
    }

    /// Returns the resolver of the way to query that got the most recent answer.
    pub(super) fn preferred(&self) -> Arc<MessageAuthenticator> {
        let query_ways = self.query_ways();
        query_ways.resolver(query_ways.last_working.load(Ordering::Relaxed)).unwrap_or(query_ways.usual)
    }

    /// Returns the ways to query the current servers. If /etc/resolv.conf has no servers, for example while the machine changes
    /// networks, the previous servers are queried.
    fn query_ways(&self) -> QueryWays {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(system) = &self.system else { return current.query_ways.clone() };
        let version = system.version();
        if version != current.version {
            current.version = version;
            match (system.read)().and_then(|servers| query_ways(servers, self.options)) {
                Ok(query_ways) => {
                    tracing::info!("{} has changed; using its DNS servers", system.file.display());
                    current.query_ways = query_ways;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot use the changed list of DNS servers; keeping the previous one")
                }
            }
        }
        current.query_ways.clone()
    }
}

/// Whether this error is an answer: the record does not exist, or cannot be parsed. An error of the server is not an answer.
fn is_answer(error: &mail_auth::Error) -> bool {
    match error {
        mail_auth::Error::Dns(DnsError::RecordNotFound(code)) => super::dns::is_answer(*code),
        mail_auth::Error::Dns(DnsError::Resolver(_)) => false,
        _ => true,
    }
}

fn query_ways(servers: Servers, set: fn(&mut ResolverOpts)) -> anyhow::Result<QueryWays> {
    let (config, mut options) = servers;
    set(&mut options);
    // hickory queries all servers at once, so that a server without an answer does not use up the time of the other servers.
    options.num_concurrent_reqs = config.name_servers.len();
    let usual =
        resolver(config.clone(), options.clone()).map_err(|e| anyhow::anyhow!("cannot start the DNS resolver: {e}"))?;
    options.edns0 = false;
    let plain = lazy_resolver(config.clone(), options.clone());
    let tcp = lazy_resolver(over_tcp(config), options);
    Ok(QueryWays { usual, fallbacks: Arc::new([plain, tcp]), last_working: Arc::default() })
}

/// With UDP configured, hickory uses TCP only after a truncated answer. So this configuration has no UDP.
fn over_tcp(mut config: ResolverConfig) -> ResolverConfig {
    for server in &mut config.name_servers {
        server.connections.retain(|connection| !matches!(connection.protocol, ProtocolConfig::Udp));
    }
    config
}

fn lazy_resolver(config: ResolverConfig, options: ResolverOpts) -> LazyResolver {
    LazyLock::new(Box::new(|| resolver(config, options)))
}

fn resolver(config: ResolverConfig, options: ResolverOpts) -> ResolverResult {
    MessageAuthenticator::new(config, options).map(Arc::new).map_err(|e| DnsError::Resolver(e.to_string()))
}

fn name_server(server: SocketAddr) -> NameServerConfig {
    let with_port = |mut connection: ConnectionConfig| {
        connection.port = server.port();
        connection
    };
    let connections = vec![with_port(ConnectionConfig::udp()), with_port(ConnectionConfig::tcp())];
    NameServerConfig::new(server.ip(), true, connections)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::UdpSocket;
    use std::sync::LazyLock;
    use std::time::Duration;

    use super::*;

    static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
        let (_, path) = tempfile::NamedTempFile::new().unwrap().keep().unwrap();
        path
    });

    /// Reads the server from `FILE`, which contains an address with a port, or is empty.
    fn read() -> anyhow::Result<Servers> {
        let server = fs::read_to_string(&*FILE)?.trim().parse()?;
        Ok((ResolverConfig::from_parts(None, Vec::new(), vec![name_server(server)]), ResolverOpts::default()))
    }

    /// Whether `server` receives a query that `name_servers` sends.
    async fn is_queried(name_servers: &NameServers, server: &UdpSocket) -> bool {
        let authenticator = name_servers.preferred();
        let lookup = tokio::spawn(async move { authenticator.txt_raw_lookup("resmic.com.").await.map(drop) });
        let server = server.try_clone().unwrap();
        let received = tokio::task::spawn_blocking(move || server.recv(&mut [0; 512]).is_ok()).await.unwrap();
        lookup.abort();
        received
    }

    #[tokio::test]
    async fn name_servers_follow_resolv_conf() {
        let server = || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            socket
        };
        let (first, second) = (server(), server());
        fs::write(&*FILE, first.local_addr().unwrap().to_string()).unwrap();
        let name_servers = NameServers::from_system(SystemConfig { file: FILE.clone(), read }, |_| {}).unwrap();
        assert!(is_queried(&name_servers, &first).await);
        let before = name_servers.preferred();
        fs::write(&*FILE, "").unwrap();
        assert!(Arc::ptr_eq(&before, &name_servers.preferred()));
        fs::write(&*FILE, format!("{}\n", second.local_addr().unwrap())).unwrap();
        assert!(is_queried(&name_servers, &second).await);
        let before = name_servers.preferred();
        fs::remove_file(&*FILE).unwrap();
        assert!(Arc::ptr_eq(&before, &name_servers.preferred()));
    }
}
