//! A private Cyrus on loopback: the programs of Debian's unpacked package, with all other files in a temporary folder.
//!
//! Any user may log in with any password. The first login creates the mailboxes. Mails are delivered by LMTP.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::certificate::certificate;
use super::dovecot::mail_owner;
use super::process::{Process, free_port, greeting};
use super::unpacked_servers::{command_in, copy_programs};

pub struct Cyrus {
    folder: tempfile::TempDir,
    pub imap: u16,
    pub imaps: u16,
    pub lmtp: u16,
    process: Process,
}

impl Cyrus {
    pub fn start() -> Cyrus {
        // Another test may bind a free port before Cyrus does. Then Cyrus starts again on other ports.
        (0..5).find_map(|_| Cyrus::try_start()).expect("Cyrus does not start")
    }

    fn try_start() -> Option<Cyrus> {
        let folder = tempfile::Builder::new().prefix("cyrus").tempdir().unwrap();
        let (imap, imaps, lmtp) = (free_port(), free_port(), free_port());
        configure(folder.path(), imap, imaps, lmtp);
        let process = launch(folder.path(), [imap, imaps, lmtp])?;
        Some(Cyrus { folder, imap, imaps, lmtp, process })
    }

    /// The CA certificate that a client has to trust.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Ends the server and its connections, runs `work`, and starts the server again on the same ports.
    pub fn while_down(&mut self, work: impl FnOnce()) {
        self.process.signal("-TERM");
        self.process.wait(Duration::from_secs(20));
        work();
        let ports = [self.imap, self.imaps, self.lmtp];
        self.process = launch(self.folder.path(), ports).expect("Cyrus does not start again");
    }
}

fn launch(folder: &Path, ports: [u16; 3]) -> Option<Process> {
    let mut command = command_in(&folder.join("programs"), "master");
    // Cyrus ends its children by a signal to its process group, so it must not be in the group of the tests.
    command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).arg("-D");
    for (flag, file) in [("-C", "imapd.conf"), ("-M", "cyrus.conf"), ("-p", "pid"), ("-L", "log")] {
        command.arg(flag).arg(folder.join(file));
    }
    let mut process = Process::start("cyrus", "cyrus-imapd", &mut command);
    // If Cyrus cannot bind a port, it starts without this port, and the server of another test may answer on it. So the greeting
    // is compared with the name of this server.
    let name = server_name(folder);
    let [imap, _, lmtp] = ports;
    let greetings = process.until(Duration::from_secs(20), || Some((greeting(imap)?, greeting(lmtp)?)))?;
    (greetings.0.contains(&name) && greetings.1.contains(&name)).then_some(process)
}

/// The server name in the greeting.
fn server_name(folder: &Path) -> String {
    folder.file_name().unwrap().to_str().unwrap().replace('.', "")
}

fn configure(folder: &Path, imap: u16, imaps: u16, lmtp: u16) {
    let (user, group) = mail_owner();
    let (at, programs) = (folder.display(), copy_programs("cyrus-imapd", folder));
    certificate(folder);
    // For a connection in IDLE, imapd binds a socket in config/socket. Without this folder, imapd finds new mails only by polling.
    for name in ["mail", "config", "config/db", "config/proc", "config/lock", "config/socket"] {
        fs::create_dir(folder.join(name)).unwrap();
    }
    let settings = format!(
        "cyrus_user: {user}\ncyrus_group: {group}\nconfigdirectory: {at}/config\ndefaultpartition: default\n\
         partition-default: {at}/mail\nsievedir: {at}/sieve\nservername: {}\n\
         sasl_pwcheck_method: alwaystrue\nallowplaintext: yes\nvirtdomains: userid\ndefaultdomain: shop.example\n\
         unixhierarchysep: yes\naltnamespace: yes\nduplicatesuppression: no\nautocreate_quota: 0\nautocreate_post: yes\n\
         autocreate_users: anyone\nautocreate_inbox_folders: Junk\nxlist-junk: Junk\nsyslog_prefix: mailhook-test\n\
         tls_server_cert: {at}/server.pem\ntls_server_key: {at}/server.key\n\
         allowstarttls: yes\n",
        server_name(folder)
    );
    fs::write(folder.join("imapd.conf"), settings).unwrap();
    let run = |name: &str| format!("{}/{name} -C {at}/imapd.conf", programs.display());
    let (recover, idled, imapd, lmtpd) = (run("ctl_cyrusdb"), run("idled"), run("imapd"), run("lmtpd"));
    let services = format!(
        "START {{\n  recover cmd=\"{recover} -r\"\n  idled cmd=\"{idled}\"\n}}\nSERVICES {{\n\
         \x20 imap cmd=\"{imapd}\" listen=\"127.0.0.1:{imap}\"\n\
         \x20 imaps cmd=\"{imapd} -s\" listen=\"127.0.0.1:{imaps}\"\n\
         \x20 lmtp cmd=\"{lmtpd} -a\" listen=\"127.0.0.1:{lmtp}\"\n}}\n"
    );
    fs::write(folder.join("cyrus.conf"), services).unwrap();
    let chown = Command::new("chown").arg("-R").arg(format!("{user}:{group}")).arg(folder).status().unwrap();
    let chmod = Command::new("chmod").arg("755").arg(folder).status().unwrap();
    assert!(chown.success() && chmod.success());
}
