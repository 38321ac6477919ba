//! DNS behind firewalls and routers that drop some queries.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use resmic_mailhook::model::{Authenticity, ReasonCode};
use resmic_mailhook::trust::{Recipients, TrustSettings, authenticate, dns};
use testkit::dkim::{Key, SigningOptions, sign};
use testkit::dns::{Dropped, Firewalled, Query};

const MAIL: &str = "From: Resmic <no-reply@resmic.com>\r\nTo: payments@shop.example\r\nSubject: Paymet received $20 (via Resmic)\r\n\
    Message-ID: <1@resmic.com>\r\nDate: Wed, 05 Mar 2025 03:36:41 +0000\r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\n\
    Received: $20\r\nToken: DAI\r\n";

/// The timeout for all signatures of a mail is 15 seconds.
const LIMIT: Duration = Duration::from_secs(17);

struct DnsSetup {
    key: Key,
    server: Firewalled,
    resolver: dns::Resolver,
}

impl DnsSetup {
    fn new(dropped: Dropped) -> DnsSetup {
        let key = Key::rsa(2048);
        let server = Firewalled::start(dropped, &key.record(""));
        let settings: dns::DnsSettings = toml::from_str(&format!("servers = [\"{}\"]", server.address)).unwrap();
        DnsSetup { key, server, resolver: dns::Resolver::new(&settings).unwrap() }
    }

    /// The authenticity of a mail with a signature for each selector.
    async fn authenticate_now(&self, selectors: &[&str]) -> Authenticity {
        let signed = |mail: Vec<u8>, selector: &&str| {
            sign(&mail, &self.key, &SigningOptions { selector, ..SigningOptions::default() })
        };
        let mail = selectors.iter().fold(MAIL.as_bytes().to_vec(), signed);
        let recipients = Recipients::new(["payments@shop.example".to_owned()]);
        let began = Instant::now();
        let authenticity =
            authenticate(&mail, &recipients, &TrustSettings::default(), &self.resolver, Timestamp::now()).await;
        assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
        authenticity
    }

    async fn assert_trusted(&self, selectors: &[&str]) {
        let authenticity = self.authenticate_now(selectors).await;
        assert!(
            matches!(authenticity, Authenticity::Trusted(_)),
            "{authenticity:?}; the server received {:?}",
            self.server.queries()
        );
    }

    fn count(&self, kind: Query) -> usize {
        self.server.queries().into_iter().filter(|query| *query == kind).count()
    }
}

#[tokio::test]
async fn dropped_edns_costs_one_timeout() {
    let setup = DnsSetup::new(Dropped::Edns);
    setup.assert_trusted(&["s1"]).await;
    let dropped = setup.count(Query::UdpWithEdns);
    assert!(dropped > 0, "the first query has EDNS");
    setup.assert_trusted(&["s2"]).await;
    assert_eq!(setup.count(Query::UdpWithEdns), dropped, "the way that worked comes first");
    assert_eq!(setup.count(Query::Tcp), 0);
}

#[tokio::test]
async fn dropped_udp_is_replaced_by_tcp() {
    let setup = DnsSetup::new(Dropped::Udp);
    setup.assert_trusted(&["s1"]).await;
    let queries_over_udp = setup.count(Query::UdpWithEdns) + setup.count(Query::Udp);
    assert!(queries_over_udp > 0, "the first query is over UDP");
    setup.assert_trusted(&["s2"]).await;
    assert_eq!(setup.count(Query::UdpWithEdns) + setup.count(Query::Udp), queries_over_udp);
    let found = dns::check_domain(&setup.resolver, "resmic.com").await;
    assert_eq!(found[0].as_deref(), Ok("DNS works; it has no mail server (MX)"));
}

#[tokio::test]
async fn four_signatures_cost_no_more_timeouts_than_one() {
    let setup = DnsSetup::new(Dropped::Udp);
    setup.assert_trusted(&["s1", "s2", "s3", "s4"]).await;
}

#[tokio::test]
async fn a_mail_waits_while_all_dns_is_dropped() {
    let setup = DnsSetup::new(Dropped::Everything);
    let authenticity = setup.authenticate_now(&["s1", "s2"]).await;
    let Authenticity::TempError(reason) = &authenticity else { panic!("{authenticity:?}") };
    assert_eq!(reason.code, ReasonCode::Dns);
    assert!(setup.count(Query::Tcp) > 0, "the last query is over TCP");
}
