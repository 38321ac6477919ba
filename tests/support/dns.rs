//! A real DNS server on loopback: Debian's nsd with zones of our own.

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::process::{Process, free_port};

/// A running server for a few zones.
pub struct Dns {
    pub address: SocketAddr,
    _folder: tempfile::TempDir,
    _process: Process,
}

impl Dns {
    /// Serves these records: `("s1._domainkey.resmic.com", "TXT \"v=DKIM1; …\"")`. All names are in zones of two labels.
    pub fn start(records: &[(String, String)]) -> Dns {
        (0..5).find_map(|_| Dns::try_start(records)).expect("nsd does not start")
    }

    fn try_start(records: &[(String, String)]) -> Option<Dns> {
        let folder = tempfile::Builder::new().prefix("nsd").tempdir().unwrap();
        let at = folder.path().display();
        let port = free_port();
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

/// The last two labels.
fn zone(name: &str) -> String {
    let labels: Vec<_> = name.split('.').collect();
    labels[labels.len().saturating_sub(2)..].join(".")
}

/// Asks for the SOA of a zone; any answer will do.
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
