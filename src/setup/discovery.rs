//! Finds the IMAP server of an address.

use super::provider::Provider;
use crate::source::imap::{Tls, is_host};
use crate::trust::dns::Resolver;
use crate::trust::mail_servers;

/// The SRV services of RFC 6186 and RFC 8314. Implicit TLS comes first.
const SERVICES: [(&str, Tls); 2] = [("_imaps._tcp", Tls::Implicit), ("_imap._tcp", Tls::Starttls)];
/// Usual names of IMAP servers below the domain of the address.
const NAMES: [&str; 2] = ["imap", "mail"];

/// An IMAP server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailServer {
    /// The server's host.
    pub host: String,
    /// The server's port, if it is not the default of `port` in the configuration.
    pub port: Option<u16>,
    /// How the connection is protected.
    pub tls: Tls,
}

/// The result of [`discover`]. The text explains to the person how the server was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discovered {
    /// The server of a known provider.
    Provider(&'static Provider, String),
    /// A server of another provider.
    Server(MailServer, String),
    /// No server was found.
    Nothing,
}

/// Finds the IMAP server for addresses of a domain: by the domain's name, its MX records, its SRV records, or a usual name.
///
/// # Errors
/// A message for the operator, if DNS does not answer.
pub async fn discover(resolver: &Resolver, domain: &str) -> Result<Discovered, String> {
    if let Some(provider) = Provider::by_domain(domain) {
        return Ok(Discovered::Provider(provider, format!("the domain is {domain}")));
    }
    for exchanger in mail_servers::exchangers(resolver, domain).await? {
        if let Some(provider) = Provider::by_exchanger(&exchanger) {
            return Ok(Discovered::Provider(provider, format!("the MX of {domain} is {exchanger}")));
        }
    }
    for (service, tls) in SERVICES {
        let found = mail_servers::services(resolver, service, domain).await?;
        if let Some((host, port)) = found.into_iter().find(|(host, _)| is_plain_host(host)) {
            let server = MailServer { port: Some(port).filter(|port| *port != tls.default_port()), host, tls };
            return Ok(Discovered::Server(server, format!("the SRV record {service}.{domain}")));
        }
    }
    for name in NAMES {
        let host = format!("{name}.{domain}");
        if mail_servers::has_address(resolver, &host).await? {
            let server = MailServer { host, port: None, tls: Tls::Implicit };
            return Ok(Discovered::Server(server, "a usual name; nothing else names the server".to_owned()));
        }
    }
    Ok(Discovered::Nothing)
}

/// Whether a host name from DNS can be shown and configured unchanged.
fn is_plain_host(host: &str) -> bool {
    is_host(host) && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}
