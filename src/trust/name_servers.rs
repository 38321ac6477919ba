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
const SYSTEM: &str = "/etc/resolv.conf";

type Servers = (ResolverConfig, ResolverOpts);

/// Who is asked, and how.
pub(super) struct NameServers {
    /// Nothing, where the configuration names them.
    system: Option<System>,
    /// What is set for all of them.
    options: fn(&mut ResolverOpts),
    current: Mutex<Current>,
}

/// A file that names servers, and how it is read.
struct System {
    file: PathBuf,
    read: fn() -> anyhow::Result<Servers>,
}

struct Current {
    /// Of the file when it was read.
    stamp: Option<Stamp>,
    askers: Askers,
}

/// The same servers, asked in three ways.
#[derive(Clone)]
struct Askers {
    /// Over UDP with EDNS; over UDP without it; over TCP without it. Old servers and some routers reject or drop
    /// questions with EDNS (RFC 6891), and some firewalls drop DNS over UDP.
    ways: [Arc<MessageAuthenticator>; 3],
    /// The index of the way that was answered last, so that only the first question waits for a timeout.
    answered: Arc<AtomicUsize>,
}

impl Askers {
    /// The way that was answered last, and then the others.
    fn ways(&self) -> impl Iterator<Item = (usize, &Arc<MessageAuthenticator>)> {
        let first = self.answered.load(Ordering::Relaxed);
        let all = self.ways.iter().enumerate();
        all.clone().filter(move |(way, _)| *way == first).chain(all.filter(move |(way, _)| *way != first))
    }
}

/// By what a file that was written again is known.
type Stamp = (Option<SystemTime>, u64);

impl System {
    fn stamp(&self) -> Option<Stamp> {
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
            return Self::of_system(System { file: SYSTEM.into(), read }, options);
        }
        let servers = servers.iter().copied().map(name_server).collect();
        let servers = (ResolverConfig::from_parts(None, Vec::new(), servers), ResolverOpts::default());
        let current = Current { stamp: None, askers: askers(servers, options)? };
        Ok(NameServers { system: None, options, current: Mutex::new(current) })
    }

    fn of_system(system: System, options: fn(&mut ResolverOpts)) -> anyhow::Result<Self> {
        // First, so that what is written meanwhile is read again.
        let stamp = system.stamp();
        let current = Current { stamp, askers: askers((system.read)()?, options)? };
        Ok(NameServers { system: Some(system), options, current: Mutex::new(current) })
    }

    /// Asks in the way that was answered last, and then in the others. Without any answer, the first failure counts.
    pub(super) async fn ask<T, F>(&self, question: impl Fn(Arc<MessageAuthenticator>) -> F) -> mail_auth::Result<T>
    where
        F: Future<Output = mail_auth::Result<T>>,
    {
        let askers = self.askers();
        let mut failure = None;
        for (way, asker) in askers.ways() {
            match question(asker.clone()).await {
                Err(error) if !is_an_answer(&error) => failure = failure.or(Some(error)),
                answer => {
                    if askers.answered.swap(way, Ordering::Relaxed) != way {
                        tracing::debug!(way, "DNS servers answer in another way than the last time");
                    }
                    return answer;
                }
            }
        }
        Err(failure.unwrap_or_else(|| mail_auth::Error::Dns(DnsError::Resolver("no way to ask".into()))))
    }

    /// The servers, asked in the way that was answered last.
    pub(super) fn now(&self) -> Arc<MessageAuthenticator> {
        let askers = self.askers();
        askers.ways().next().map_or_else(|| askers.ways[0].clone(), |(_, asker)| asker.clone())
    }

    /// A file that names no server, as between two networks, changes nothing.
    fn askers(&self) -> Askers {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(system) = &self.system else { return current.askers.clone() };
        let stamp = system.stamp();
        if stamp != current.stamp {
            current.stamp = stamp;
            match (system.read)().and_then(|servers| askers(servers, self.options)) {
                Ok(askers) => {
                    tracing::info!("{} was written again: the servers that it names are asked", system.file.display());
                    current.askers = askers;
                }
                Err(error) => tracing::warn!(%error, "the DNS servers that were known are asked on"),
            }
        }
        current.askers.clone()
    }
}

/// Whether a server has answered: with a record, or that there is none. An error of the server is no answer.
fn is_an_answer(error: &mail_auth::Error) -> bool {
    match error {
        mail_auth::Error::Dns(DnsError::RecordNotFound(code)) => super::dns::is_an_answer(*code),
        mail_auth::Error::Dns(DnsError::Resolver(_)) => false,
        _ => true,
    }
}

fn askers(servers: Servers, set: fn(&mut ResolverOpts)) -> anyhow::Result<Askers> {
    let (config, mut options) = servers;
    set(&mut options);
    // All at once: one that does not answer must not use up the time of the others.
    options.num_concurrent_reqs = config.name_servers.len();
    let usual = authenticator(config.clone(), options.clone())?;
    options.edns0 = false;
    let plain = authenticator(config.clone(), options.clone())?;
    let tcp = authenticator(over_tcp(config), options)?;
    Ok(Askers { ways: [usual, plain, tcp], answered: Arc::default() })
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

    /// Whether this server hears a question.
    async fn is_asked(asked: &NameServers, server: &UdpSocket) -> bool {
        let authenticator = asked.now();
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
        let asked = NameServers::of_system(System { file: FILE.clone(), read }, |_| {}).unwrap();
        assert!(is_asked(&asked, &first).await);
        let before = asked.now();
        fs::write(&*FILE, "").unwrap();
        assert!(Arc::ptr_eq(&before, &asked.now()));
        fs::write(&*FILE, format!("{}\n", second.local_addr().unwrap())).unwrap();
        assert!(is_asked(&asked, &second).await);
        let before = asked.now();
        fs::remove_file(&*FILE).unwrap();
        assert!(Arc::ptr_eq(&before, &asked.now()));
    }
}
