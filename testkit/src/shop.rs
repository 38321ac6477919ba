//! A shop whose payments arrive by mail: a mail server, DNS with a DKIM key, a handler that verifies signatures, and a
//! configuration with signed addresses. All of it is real, and on loopback.

use std::fs;
use std::time::{Duration, Instant};

use super::daemon::{Daemon, Home, account, forward, samples};
use super::dkim::{Key, SigningOptions, sign};
use super::dns::Dns;
use super::dovecot::Dovecot;
use super::handlers::Handler;
use super::proxy::Proxy;

/// The mailbox of the shop.
pub const MAILBOX: &str = "payments@shop.example";
/// The session that the shop registers for [`ORDER`].
pub const SESSION: &str = "591abe63-aa61-411d-a419-0b546729bbd0";
pub const ORDER: &str = "order-1001";

/// The servers and files of the shop. Dropping it ends the servers.
pub struct Shop {
    /// The key that signs Resmic's mails.
    pub key: Key,
    pub dns: Dns,
    pub dovecot: Dovecot,
    /// A proxy between the mail server and the daemon. It notes when the server announces a mail.
    pub link: Proxy,
    pub handler: Handler,
    pub home: Home,
}

impl Shop {
    pub fn open() -> Shop {
        let key = Key::rsa(2048);
        let dns = Dns::start(&[("s1._domainkey.resmic.com".into(), key.record(""))]);
        let dovecot = Dovecot::start();
        let link = Proxy::in_front_of(dovecot.imap);
        let handler = Handler::python();
        let home = Home::new(&format!(
            "{}[sessions]\naddress = {{ mailbox = \"{MAILBOX}\", key = {{ file = \"address-key\" }} }}\n\
             [dns]\nservers = [\"{}\"]\n{}",
            account(link.port, "dedicated = true\nmailboxes = [\"INBOX\"]"),
            dns.address,
            forward(&handler.url(), ""),
        ));
        fs::write(home.folder.path().join("address-key"), "the-key-of-the-demonstration").unwrap();
        Shop { key, dns, dovecot, link, handler, home }
    }

    /// Starts the daemon and waits until it watches the mailbox.
    pub fn watch(&self, limit: Duration) -> Daemon {
        let before = self.home.try_ask("SELECT last_seen_at FROM mailboxes").unwrap_or_default();
        let daemon = self.home.start();
        let idle = format!("SELECT count(*) FROM mailboxes WHERE state = 'idle' AND last_seen_at > '{before}'");
        self.home.until(&idle, "1", limit);
        daemon
    }

    /// Registers the session of the order and returns the signed address of the order.
    pub fn sell(&self) -> String {
        self.home.data(&["session", "add", SESSION, "--order", ORDER, "--amount", "20"]);
        self.home.data(&["address", ORDER]).trim_end().to_owned()
    }

    /// Signs a mail as Resmic does.
    pub fn sign(&self, mail: &[u8]) -> Vec<u8> {
        sign(mail, &self.key, &SigningOptions::default())
    }

    /// Delivers a mail to the mail server and returns the time at which the server accepted it.
    pub fn receive(&self, mail: &[u8]) -> Instant {
        self.dovecot.deliver(MAILBOX, mail)
    }
}

/// Resmic's published mail about 20 DAI on Sepolia, sent to this address and not signed.
pub fn published(to: &str) -> Vec<u8> {
    let mail = fs::read_to_string(samples().join("published/sepolia.eml")).unwrap();
    assert!(mail.contains("To: payments@shop.example\r\n"), "the sample has another recipient");
    mail.replace("To: payments@shop.example\r\n", &format!("To: {to}\r\n")).into_bytes()
}
