//! DNS servers on loopback: Debian's nsd with test zones, and one behind a firewall that drops some queries.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::process::{Process, free_port};

/// A running nsd.
pub struct Dns {
    pub address: SocketAddr,
    _folder: tempfile::TempDir,
    _process: Process,
}

impl Dns {
    /// Serves these records, such as `("s1._domainkey.resmic.com", "TXT \"v=DKIM1; …\"")`. The zone of a name is its last two
    /// labels.
    pub fn start(records: &[(String, String)]) -> Dns {
        (0..5).find_map(|_| Dns::try_start(free_port(), records)).expect("nsd does not start")
    }

    /// Like [`Dns::start`], on this port.
    pub fn start_on(port: u16, records: &[(String, String)]) -> Dns {
        Dns::try_start(port, records).expect("nsd does not start")
    }

    fn try_start(port: u16, records: &[(String, String)]) -> Option<Dns> {
        let folder = tempfile::Builder::new().prefix("nsd").tempdir().unwrap();
        let at = folder.path().display();
        let mut config = format!(
            "server:\n  ip-address: 127.0.0.1\n  port: {port}\n  username: \"\"\n  zonesdir: \"{at}\"\n  pidfile: \"{at}/pid\"\n  \
             database: \"\"\n  zonelistfile: \"{at}/zones\"\n  xfrdfile: \"{at}/xfrd\"\n  xfrdir: \"{at}\"\n  cookie-secret-file: \"\"\n  \
             logfile: \"{at}/log\"\n  server-count: 1\nremote-control:\n  control-enable: no\n"
        );
        let mut zones: Vec<String> = records.iter().map(|(name, _)| zone(name)).collect();
        zones.sort();
        zones.dedup();
        for zone in &zones {
            let mut text = format!(
                "$ORIGIN {zone}.\n$TTL 60\n@ SOA ns.{zone}. root.{zone}. 1 60 60 600 60\n@ NS ns.{zone}.\nns A 127.0.0.1\n"
            );
            for (name, record) in records.iter().filter(|(name, _)| self::zone(name) == *zone) {
                let _ = writeln!(text, "{name}. {record}");
            }
            fs::write(folder.path().join(zone), text).unwrap();
            let _ = writeln!(config, "zone:\n  name: {zone}\n  zonefile: \"{at}/{zone}\"");
        }
        let path = folder.path().join("nsd.conf");
        fs::write(&path, config).unwrap();
        let nsd = if std::path::Path::new("/usr/sbin/nsd").exists() { "/usr/sbin/nsd" } else { "nsd" };
        let mut command = Command::new(nsd);
        command.arg("-d").arg("-c").arg(&path).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = Process::start("nsd", "nsd", &mut command);
        let address: SocketAddr = ([127, 0, 0, 1], port).into();
        let probe = zones.first().cloned().unwrap_or_else(|| "example".into());
        let ready = process.until(Duration::from_secs(10), || answers(address, &probe).then_some(()));
        ready.map(|()| Dns { address, _folder: folder, _process: process })
    }
}

/// The zone of a name: its last two labels.
fn zone(name: &str) -> String {
    let labels: Vec<_> = name.split('.').collect();
    labels[labels.len().saturating_sub(2)..].join(".")
}

/// Whether the server answers a query for the SOA record of a zone.
fn answers(server: SocketAddr, zone: &str) -> bool {
    let mut question = vec![0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in zone.split('.') {
        question.push(u8::try_from(label.len()).unwrap());
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(&[0, 0, 6, 0, 1]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket.send_to(&question, server).is_ok() && socket.recv(&mut [0; 512]).is_ok()
}

/// The queries that a firewall or an old router drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// Queries over UDP with EDNS.
    Edns,
    /// All queries over UDP.
    Udp,
    /// All queries.
    Everything,
}

/// The transport of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Query {
    UdpWithEdns,
    Udp,
    Tcp,
}

/// A DNS server behind a firewall that drops some queries. It has the same TXT record for every name.
pub struct Firewalled {
    pub address: SocketAddr,
    queries: Arc<Mutex<Vec<Query>>>,
}

impl Firewalled {
    /// `record` is in the syntax of a zone file: `TXT "…" "…"`.
    pub fn start(dropped: Dropped, record: &str) -> Firewalled {
        let (tcp, udp) = (0..5).find_map(|_| bind_both().ok()).expect("no port for UDP and TCP is free");
        let (address, queries) = (tcp.local_addr().unwrap(), Arc::<Mutex<Vec<Query>>>::default());
        let pieces = record.split('"').skip(1).step_by(2);
        let data: Arc<[u8]> =
            pieces.flat_map(|piece| [&[u8::try_from(piece.len()).unwrap()], piece.as_bytes()].concat()).collect();
        let (received, text) = (queries.clone(), data.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                let has_edns = buffer[11] > 0;
                received.lock().unwrap().push(if has_edns { Query::UdpWithEdns } else { Query::Udp });
                if dropped == Dropped::Edns && !has_edns {
                    udp.send_to(&answer_txt(&buffer[..length], &text), from).unwrap();
                }
            }
        });
        let received = queries.clone();
        std::thread::spawn(move || {
            for stream in tcp.incoming().map_while(Result::ok) {
                let (received, data) = (received.clone(), data.clone());
                // An error means that the client has closed the connection.
                std::thread::spawn(move || {
                    let _ = answer_over_tcp(stream, dropped != Dropped::Everything, &data, &received);
                });
            }
        });
        Firewalled { address, queries }
    }

    /// All queries, including the dropped ones.
    pub fn queries(&self) -> Vec<Query> {
        self.queries.lock().unwrap().clone()
    }
}

fn bind_both() -> io::Result<(TcpListener, UdpSocket)> {
    let tcp = TcpListener::bind("127.0.0.1:0")?;
    let udp = UdpSocket::bind(tcp.local_addr()?)?;
    Ok((tcp, udp))
}

fn answer_over_tcp(mut stream: TcpStream, answers: bool, data: &[u8], queries: &Mutex<Vec<Query>>) -> io::Result<()> {
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut question)?;
        queries.lock().unwrap().push(Query::Tcp);
        if answers {
            let answer = answer_txt(&question, data);
            stream.write_all(&u16::try_from(answer.len()).unwrap().to_be_bytes())?;
            stream.write_all(&answer)?;
        }
    }
}

/// A response with one TXT record (RFC 1035, 4.1). The response to a query for another type has no record.
fn answer_txt(question: &[u8], data: &[u8]) -> Vec<u8> {
    let end = 12 + question[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
    let is_txt = question[end - 4..end - 2] == [0, 16];
    let mut answer =
        [&question[..2], &[0x81, 0x80, 0, 1, 0, u8::from(is_txt), 0, 0, 0, 0], &question[12..end]].concat();
    if is_txt {
        answer.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 60]);
        answer.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        answer.extend(data);
    }
    answer
}
