//! Who is asked: the servers of `[dns]`, or the system's, which may become others while the daemon runs.
//!
//! Where a lease or a VPN changes /etc/resolv.conf, the C library sees it and the mail server goes on being found; who
//! read the file at the start only would ask servers that are gone for every key, until somebody starts it anew.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use mail_auth::hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ProtocolConfig, ResolverConfig, ResolverOpts,
};
use mail_auth::hickory_resolver::system_conf::read_system_conf;
use mail_auth::{DnsError, MessageAuthenticator};

/// Where the system names its servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

type Servers = (ResolverConfig, ResolverOpts);

/// Who is asked, and how.
pub(super) struct NameServers {
    /// Nothing, where the configuration names them.
    system: Option<SystemConfig>,
    /// What is set for all of them.
    options: fn(&mut ResolverOpts),
    current: Mutex<LoadedConfig>,
}

/// A file that names servers, and how it is read.
struct SystemConfig {
    file: PathBuf,
    read: fn() -> anyhow::Result<Servers>,
}

struct LoadedConfig {
    /// Of the file when it was read.
    version: Option<FileVersion>,
    query_ways: QueryWays,
}

/// The same servers, asked in three ways.
#[derive(Clone)]
struct QueryWays {
    /// Over UDP with EDNS; over UDP without it; over TCP without it. Old servers and some routers reject or drop
    /// questions with EDNS (RFC 6891), and some firewalls drop DNS over UDP.
    ways: [Arc<MessageAuthenticator>; 3],
    /// The index of the way that was last_working last, so that only the first lookup waits for a timeout.
    last_working: Arc<AtomicUsize>,
}

impl QueryWays {
    /// The way that was last_working last, and then the others.
    fn ways(&self) -> impl Iterator<Item = (usize, &Arc<MessageAuthenticator>)> {
        let first = self.last_working.load(Ordering::Relaxed);
        let all = self.ways.iter().enumerate();
        all.clone().filter(move |(way, _)| *way == first).chain(all.filter(move |(way, _)| *way != first))
    }
}

/// By what a file that was written again is known.
type FileVersion = (Option<SystemTime>, u64);

impl SystemConfig {
    fn version(&self) -> Option<FileVersion> {
        let about = std::fs::metadata(&self.file).ok()?;
        Some((about.modified().ok(), about.len()))
    }
}

impl NameServers {
    /// These servers; none: the system's. `options` has the last word on how they are asked.
    ///
    /// # Errors
    /// What keeps it from starting: an unreadable /etc/resolv.conf.
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
        // First, so that what is written meanwhile is read again.
        let version = system.version();
        let current = LoadedConfig { version, query_ways: query_ways((system.read)()?, options)? };
        Ok(NameServers { system: Some(system), options, current: Mutex::new(current) })
    }

    /// Asks in the way that was last_working last, and then in the others. Without any answer, the first failure counts.
    pub(super) async fn query<T, F>(&self, lookup: impl Fn(Arc<MessageAuthenticator>) -> F) -> mail_auth::Result<T>
    where
        F: Future<Output = mail_auth::Result<T>>,
    {
        let query_ways = self.query_ways();
        let mut failure = None;
        for (way, dns) in query_ways.ways() {
            match lookup(dns.clone()).await {
                Err(error) if !is_answer(&error) => failure = failure.or(Some(error)),
                answer => {
                    if query_ways.last_working.swap(way, Ordering::Relaxed) != way {
                        tracing::debug!(way, "DNS servers answer in another way than the last time");
                    }
                    return answer;
                }
            }
        }
        Err(failure.unwrap_or_else(|| mail_auth::Error::Dns(DnsError::Resolver("no way to ask".into()))))
    }

    /// The servers, asked in the way that was last_working last.
    pub(super) fn preferred(&self) -> Arc<MessageAuthenticator> {
        let query_ways = self.query_ways();
        query_ways.ways().next().map_or_else(|| query_ways.ways[0].clone(), |(_, dns)| dns.clone())
    }

    /// A file that names no server, as between two networks, changes nothing.
    fn query_ways(&self) -> QueryWays {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(system) = &self.system else { return current.query_ways.clone() };
        let version = system.version();
        if version != current.version {
            current.version = version;
            match (system.read)().and_then(|servers| query_ways(servers, self.options)) {
                Ok(query_ways) => {
                    tracing::info!("{} was written again: the servers that it names are asked", system.file.display());
                    current.query_ways = query_ways;
                }
                Err(error) => tracing::warn!(%error, "the DNS servers that were known are asked on"),
            }
        }
        current.query_ways.clone()
    }
}

/// Whether a server has last_working: with a record, or that there is none. An error of the server is no answer.
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
    // All at once: one that does not answer must not use up the time of the others.
    options.num_concurrent_reqs = config.name_servers.len();
    let usual = authenticator(config.clone(), options.clone())?;
    options.edns0 = false;
    let plain = authenticator(config.clone(), options.clone())?;
    let tcp = authenticator(over_tcp(config), options)?;
    Ok(QueryWays { ways: [usual, plain, tcp], last_working: Arc::default() })
}

/// hickory asks over TCP only after a truncated answer, so a server of its own has no UDP.
fn over_tcp(mut config: ResolverConfig) -> ResolverConfig {
    for server in &mut config.name_servers {
        server.connections.retain(|connection| !matches!(connection.protocol, ProtocolConfig::Udp));
    }
    config
}

fn authenticator(config: ResolverConfig, options: ResolverOpts) -> anyhow::Result<Arc<MessageAuthenticator>> {
    let made = MessageAuthenticator::new(config, options);
    made.map(Arc::new).map_err(|e| anyhow::anyhow!("cannot start asking DNS: {e}"))
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

    /// The file has an address with its port, or nothing.
    fn read() -> anyhow::Result<Servers> {
        let server = fs::read_to_string(&*FILE)?.trim().parse()?;
        Ok((ResolverConfig::from_parts(None, Vec::new(), vec![name_server(server)]), ResolverOpts::default()))
    }

    /// Whether this server hears a lookup.
    async fn is_asked(asked: &NameServers, server: &UdpSocket) -> bool {
        let authenticator = asked.preferred();
        let lookup = tokio::spawn(async move { authenticator.txt_raw_lookup("resmic.com.").await.map(drop) });
        let server = server.try_clone().unwrap();
        let heard = tokio::task::spawn_blocking(move || server.recv(&mut [0; 512]).is_ok()).await.unwrap();
        lookup.abort();
        heard
    }

    #[tokio::test]
    async fn who_is_asked_changes_with_the_file_and_a_file_that_names_nobody_changes_nothing() {
        let server = || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            socket
        };
        let (first, second) = (server(), server());
        fs::write(&*FILE, first.local_addr().unwrap().to_string()).unwrap();
        let asked = NameServers::from_system(SystemConfig { file: FILE.clone(), read }, |_| {}).unwrap();
        assert!(is_asked(&asked, &first).await);
        let before = asked.preferred();
        fs::write(&*FILE, "").unwrap();
        assert!(Arc::ptr_eq(&before, &asked.preferred()));
        fs::write(&*FILE, format!("{}\n", second.local_addr().unwrap())).unwrap();
        assert!(is_asked(&asked, &second).await);
        let before = asked.preferred();
        fs::remove_file(&*FILE).unwrap();
        assert!(Arc::ptr_eq(&before, &asked.preferred()));
    }
}
