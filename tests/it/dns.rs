//! DNS behind firewalls and routers that drop some questions.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use resmic_mailhook::model::{Authenticity, ReasonCode};
use resmic_mailhook::trust::{Recipients, TrustSettings, authenticate, dns};
use testkit::dkim::{How, Key, sign};
use testkit::dns::{Came, Dropped, Firewalled};

const MAIL: &str = "From: Resmic <no-reply@resmic.com>\r\nTo: payments@shop.example\r\nSubject: Paymet received $20 (via Resmic)\r\n\
    Message-ID: <1@resmic.com>\r\nDate: Wed, 05 Mar 2025 03:36:41 +0000\r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\n\
    Received: $20\r\nToken: DAI\r\n";

/// All signatures of a mail have 15 seconds together.
const LIMIT: Duration = Duration::from_secs(17);

struct World {
    key: Key,
    server: Firewalled,
    resolver: dns::Resolver,
}

impl World {
    fn new(dropped: Dropped) -> World {
        let key = Key::rsa(2048);
        let server = Firewalled::start(dropped, &key.record(""));
        let settings: dns::DnsSettings = toml::from_str(&format!("servers = [\"{}\"]", server.address)).unwrap();
        World { key, server, resolver: dns::Resolver::new(&settings).unwrap() }
    }

    /// The verdict on a mail with a signature for each selector.
    async fn judged(&self, selectors: &[&str]) -> Authenticity {
        let signed = |mail: Vec<u8>, selector: &&str| sign(&mail, &self.key, &How { selector, ..How::default() });
        let mail = selectors.iter().fold(MAIL.as_bytes().to_vec(), signed);
        let recipients = Recipients::new(["payments@shop.example".to_owned()]);
        let began = Instant::now();
        let verdict =
            authenticate(&mail, &recipients, &TrustSettings::default(), &self.resolver, Timestamp::now()).await;
        assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
        verdict
    }

    async fn assert_trusted(&self, selectors: &[&str]) {
        let verdict = self.judged(selectors).await;
        assert!(matches!(verdict, Authenticity::Trusted(_)), "{verdict:?}; the server saw {:?}", self.server.came());
    }

    fn count(&self, way: Came) -> usize {
        self.server.came().into_iter().filter(|came| *came == way).count()
    }
}

#[tokio::test]
async fn dropped_edns_costs_one_timeout() {
    let world = World::new(Dropped::Edns);
    world.assert_trusted(&["s1"]).await;
    let dropped = world.count(Came::UdpWithEdns);
    assert!(dropped > 0, "it is asked with EDNS first");
    world.assert_trusted(&["s2"]).await;
    assert_eq!(world.count(Came::UdpWithEdns), dropped, "the way that was answered comes first");
    assert_eq!(world.count(Came::Tcp), 0);
}

#[tokio::test]
async fn dropped_udp_is_replaced_by_tcp() {
    let world = World::new(Dropped::Udp);
    world.assert_trusted(&["s1"]).await;
    let asked_over_udp = world.count(Came::UdpWithEdns) + world.count(Came::Udp);
    assert!(asked_over_udp > 0, "it is asked over UDP first");
    world.assert_trusted(&["s2"]).await;
    assert_eq!(world.count(Came::UdpWithEdns) + world.count(Came::Udp), asked_over_udp);
    let found = dns::check_domain(&world.resolver, "resmic.com").await.unwrap();
    assert_eq!(found[0], "DNS works; it has no mail server (MX)");
}

#[tokio::test]
async fn four_signatures_cost_no_more_timeouts_than_one() {
    let world = World::new(Dropped::Udp);
    world.assert_trusted(&["s1", "s2", "s3", "s4"]).await;
}

#[tokio::test]
async fn a_mail_waits_while_all_dns_is_dropped() {
    let world = World::new(Dropped::Everything);
    let verdict = world.judged(&["s1", "s2"]).await;
    let Authenticity::TempError(reason) = &verdict else { panic!("{verdict:?}") };
    assert_eq!(reason.code, ReasonCode::Dns);
    assert!(world.count(Came::Tcp) > 0, "it is asked over TCP too");
}
