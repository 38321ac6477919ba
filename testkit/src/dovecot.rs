//! A private Dovecot on loopback: Debian's package, with a throw-away certificate and all files in a temporary folder.
//!
//! Debian 12 has Dovecot 2.3. Debian 13 has 2.4, whose configuration has another syntax. The output of `dovecot --version`
//! decides which syntax is written.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::certificate::certificate;
use super::lmtp;
use super::process::{Process, free_port, greets};

pub const PASSWORD: &str = "throw-away";

/// A running Dovecot. Any user may log in with [`PASSWORD`]; mails are delivered by LMTP.
pub struct Dovecot {
    pub folder: tempfile::TempDir,
    pub imap: u16,
    pub imaps: u16,
    pub lmtp: u16,
    process: Process,
}

impl Dovecot {
    pub fn start() -> Dovecot {
        Dovecot::start_with("")
    }

    /// Starts Dovecot with more lines of configuration, in the syntax of the installed version.
    pub fn start_with(settings: &str) -> Dovecot {
        Dovecot::start_configured(|_| settings.to_owned())
    }

    /// Starts Dovecot with these token mechanisms (`xoauth2 oauthbearer`). It verifies access tokens at
    /// `introspection_url`, and refuses a wrong token without delay.
    pub fn start_with_tokens(mechanisms: &str, introspection_url: &str) -> Dovecot {
        Dovecot::start_configured(|folder| token_settings(folder, mechanisms, introspection_url))
    }

    /// Starts Dovecot with LOGINDISABLED among its capabilities.
    pub fn start_without_login() -> Dovecot {
        let disabled =
            if is_2_4() { "imap_capability {\n  LOGINDISABLED = yes\n}" } else { "imap_capability = +LOGINDISABLED" };
        Dovecot::start_with(&format!("protocol imap {{\n{disabled}\n}}\n"))
    }

    /// Starts Dovecot so that it accepts passwords over TLS only. It also listens on 127.0.0.2, because Dovecot treats a
    /// connection as secure if the client and the server have the same address.
    pub fn start_with_tls_logins_only() -> Dovecot {
        let cleartext = if is_2_4() { "auth_allow_cleartext = no" } else { "disable_plaintext_auth = yes" };
        Dovecot::start_with(&format!("listen = 127.0.0.1, 127.0.0.2\n{cleartext}\n"))
    }

    /// Starts Dovecot with a second password for all users.
    pub fn start_with_password(password: &str) -> Dovecot {
        let passdb = if is_2_4() {
            format!("other {{\n  driver = static\n  passdb_static_password = {password}")
        } else {
            format!("{{\n  driver = static\n  args = password={password}")
        };
        Dovecot::start_with(&format!("passdb {passdb}\n}}\n"))
    }

    fn start_configured(settings: impl Fn(&Path) -> String) -> Dovecot {
        // Another test may bind a free port before Dovecot does. Then Dovecot starts again on other ports.
        (0..5).find_map(|_| Dovecot::try_start(&settings)).expect("Dovecot does not start")
    }

    fn try_start(settings: &dyn Fn(&Path) -> String) -> Option<Dovecot> {
        let folder = tempfile::Builder::new().prefix("dovecot").tempdir().unwrap();
        certificate(folder.path());
        let (imap, imaps, lmtp) = (free_port(), free_port(), free_port());
        let config = folder.path().join("dovecot.conf");
        fs::write(&config, configuration(folder.path(), imap, imaps, lmtp) + &settings(folder.path())).unwrap();
        let mut process = launch(folder.path());
        if !is_up(&mut process, imap, lmtp) {
            let log = fs::read_to_string(folder.path().join("log")).unwrap_or_default();
            // Until its log is open, Dovecot writes errors to standard error, so the log may be empty.
            assert!(log.is_empty() || log.contains("Address already in use"), "Dovecot has ended: {log}");
            return None;
        }
        Some(Dovecot { folder, imap, imaps, lmtp, process })
    }

    pub fn version() -> String {
        let output = Command::new("dovecot").arg("--version").output();
        let output =
            output.unwrap_or_else(|e| panic!("no dovecot: {e}; `apt-get install dovecot-imapd dovecot-lmtpd`"));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// The CA certificate that a client has to trust.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Delivers a mail by LMTP and returns the time at which the server accepted it.
    pub fn deliver(&self, recipient: &str, mail: &[u8]) -> Instant {
        self.deliver_all(recipient, [mail])
    }

    /// Delivers mails over one LMTP connection and returns the time at which the server accepted the last one.
    pub fn deliver_all<'a>(&self, recipient: &str, mails: impl IntoIterator<Item = &'a [u8]>) -> Instant {
        lmtp::deliver(self.lmtp, recipient, mails)
    }

    /// Makes the server end all connections of a user.
    pub fn kick(&self, user: &str) {
        let config = self.folder.path().join("dovecot.conf");
        let output = Command::new("doveadm").arg("-c").arg(config).args(["kick", user]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs a doveadm command, which must succeed.
    pub fn doveadm(&self, arguments: &[&str]) {
        let mut command = Command::new("doveadm");
        command.arg("-c").arg(self.folder.path().join("dovecot.conf")).args(arguments);
        let output = command.output().unwrap();
        assert!(output.status.success(), "doveadm {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Waits until exactly these users are logged in, each once.
    pub fn until_logged_in(&self, users: &[&str], limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            let mut command = Command::new("doveadm");
            command.arg("-c").arg(self.folder.path().join("dovecot.conf")).args(["-f", "tab", "who", "-1"]);
            let output = String::from_utf8(command.output().unwrap().stdout).unwrap();
            let logged_in: Vec<_> = output.lines().skip(1).filter_map(|line| line.split('\t').next()).collect();
            if logged_in == users {
                return;
            }
            assert!(Instant::now() < deadline, "{users:?} are not those who are logged in: {output}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The path of a user's Maildir.
    pub fn maildir(&self, user: &str) -> PathBuf {
        self.folder.path().join("mail").join(user).join("Maildir")
    }

    /// Writes a mail into a user's Maildir under this file name, and makes Dovecot index it.
    pub fn put(&self, user: &str, name: &str, mail: &[u8]) {
        let path = self.maildir(user).join("new").join(name);
        fs::write(&path, mail).unwrap();
        let (user_name, group) = mail_owner();
        let _ = Command::new("chown").arg(format!("{user_name}:{group}")).arg(&path).status();
        self.doveadm(&["mailbox", "status", "-u", user, "messages", "INBOX"]);
    }

    /// Ends the server, runs `work`, which may change the server's files, and starts the server again on the same ports.
    pub fn while_down(&mut self, work: impl FnOnce(&Dovecot)) {
        self.process.end_with_children(Duration::from_secs(20));
        work(self);
        let (folder, imap, lmtp) = (self.folder.path().to_owned(), self.imap, self.lmtp);
        self.process = launch(&folder);
        assert!(is_up(&mut self.process, imap, lmtp), "Dovecot does not start again: {}", self.log());
    }

    pub fn stop(self) -> tempfile::TempDir {
        let Dovecot { folder, process, .. } = self;
        drop(process);
        folder
    }
}

/// Starts the server on the configuration in its folder.
fn launch(folder: &Path) -> Process {
    let mut command = Command::new("dovecot");
    command.arg("-F").arg("-c").arg(folder.join("dovecot.conf")).stdout(Stdio::null()).stderr(Stdio::null());
    Process::start("dovecot", "dovecot-imapd dovecot-lmtpd", &mut command)
}

/// Waits for the greetings on both ports. Returns false if the process has ended.
fn is_up(process: &mut Process, imap: u16, lmtp: u16) -> bool {
    process.until(Duration::from_secs(20), || (greets(imap) && greets(lmtp)).then_some(())).is_some()
}

/// The configuration for access tokens in addition to passwords.
fn token_settings(folder: &Path, mechanisms: &str, introspection_url: &str) -> String {
    let settings = format!(
        "introspection_mode = post\nintrospection_url = {introspection_url}\nusername_attribute = username\n\
         active_attribute = active\nactive_value = true\n"
    );
    let common = format!("auth_mechanisms = plain {mechanisms}\nauth_failure_delay = 0 secs\n");
    if is_2_4() {
        return format!("{common}oauth2 {{\n{settings}}}\n");
    }
    let path = folder.join("oauth2.conf.ext");
    fs::write(&path, settings).unwrap();
    format!("{common}passdb {{\n  driver = oauth2\n  mechanisms = {mechanisms}\n  args = {}\n}}\n", path.display())
}

/// Whether the installed version has the configuration syntax of 2.4.
fn is_2_4() -> bool {
    let version = Dovecot::version();
    version.starts_with("2.4") || version.starts_with("3")
}

/// The user and the group that own the mails. They are not root, because Dovecot does not serve mails of root.
pub fn mail_owner() -> (String, String) {
    let id = |flag: &str| {
        let output = Command::new("id").arg(flag).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    if id("-u") == "0" { ("mail".into(), "mail".into()) } else { (id("-un"), id("-gn")) }
}

fn configuration(folder: &Path, imap: u16, imaps: u16, lmtp: u16) -> String {
    let (user, group) = mail_owner();
    let mail = folder.join("mail");
    fs::create_dir(&mail).unwrap();
    let _ = Command::new("chown").arg(format!("{user}:{group}")).arg(&mail).status();
    let _ = Command::new("chmod").args(["755"]).arg(folder).status();
    let is_root = user == "mail";
    let at = folder.display();
    let users = if is_root {
        String::new()
    } else {
        format!("default_internal_user = {user}\ndefault_login_user = {user}\ndefault_internal_group = {group}\n")
    };
    let chroot = if is_root { "" } else { "chroot =\n" };
    let common = format!(
        "base_dir = {at}/base\nstate_dir = {at}/state\nlog_path = {at}/log\nlisten = 127.0.0.1\n{users}\
         recipient_delimiter = +\nmailbox_list_index = yes\nfirst_valid_uid = 1\nfirst_valid_gid = 1\n\
         postmaster_address = postmaster@shop.example\nlmtp_save_to_detail_mailbox = no\n\
         service imap-login {{\n  {chroot}  process_min_avail = 1\n  inet_listener imap {{\n    port = {imap}\n  }}\n  inet_listener imaps {{\n    port = {imaps}\n    ssl = yes\n  }}\n}}\n\
         service anvil {{\n  {chroot}  client_limit = 4096\n}}\nservice imap {{\n  process_limit = 2048\n  client_limit = 1\n}}\n\
         service lmtp {{\n  inet_listener lmtp {{\n    port = {lmtp}\n  }}\n}}\n\
         namespace inbox {{\n  inbox = yes\n  mailbox Junk {{\n    special_use = \\Junk\n    auto = create\n  }}\n  mailbox Resmic {{\n    auto = create\n  }}\n}}\n\
         protocol imap {{\n  mail_max_userip_connections = 5000\n}}\n"
    );
    if is_2_4() {
        let version = Dovecot::version();
        let language = version.split(['-', ' ', '(']).next().unwrap();
        format!(
            "dovecot_config_version = {language}\ndovecot_storage_version = {language}\nprotocols = imap lmtp\n{common}\
             auth_allow_cleartext = yes\nmail_driver = maildir\nmail_home = {at}/mail/%{{user}}\nmail_path = {at}/mail/%{{user}}/Maildir\n\
             mail_uid = {user}\nmail_gid = {group}\nssl_server_cert_file = {at}/server.pem\nssl_server_key_file = {at}/server.key\n\
             passdb static {{\n  password = {PASSWORD}\n}}\nuserdb static {{\n  fields {{\n    uid = {user}\n    gid = {group}\n    home = {at}/mail/%{{user}}\n  }}\n}}\n"
        )
    } else {
        format!(
            "protocols = imap lmtp\n{common}disable_plaintext_auth = no\nmail_location = maildir:{at}/mail/%u/Maildir\n\
             mail_uid = {user}\nmail_gid = {group}\nssl = yes\nssl_cert = <{at}/server.pem\nssl_key = <{at}/server.key\n\
             passdb {{\n  driver = static\n  args = password={PASSWORD}\n}}\n\
             userdb {{\n  driver = static\n  args = uid={user} gid={group} home={at}/mail/%u allow_all_users=yes\n}}\n"
        )
    }
}
