//! Finds the mail servers of a domain in DNS, for `init`: MX (RFC 5321), and SRV for mail clients (RFC 6186).

use mail_auth::DnsError;
use mail_auth::hickory_resolver::proto::rr::{RData, RecordType};

use super::dns::{LOOKUP_LIMIT, Resolver, is_answer};
use crate::model::printable;

/// Returns the hosts that receive the domain's mails, the preferred host first; empty if there is no MX record.
///
/// # Errors
/// A message, if DNS does not answer.
pub async fn exchangers(resolver: &Resolver, domain: &str) -> Result<Vec<String>, String> {
    let records = records(resolver, domain, RecordType::MX).await?;
    let mut found: Vec<_> = records
        .into_iter()
        .filter_map(|record| match record {
            RData::MX(mx) => Some((mx.preference, host(&mx.exchange.to_string()))),
            _ => None,
        })
        .collect();
    found.sort();
    Ok(found.into_iter().map(|(_, host)| host).filter(|host| !host.is_empty()).collect())
}

/// Returns the hosts and ports of a service such as `_imaps._tcp`, the preferred host first; empty if the domain does not offer
/// the service.
///
/// # Errors
/// A message, if DNS does not answer.
pub async fn services(resolver: &Resolver, service: &str, domain: &str) -> Result<Vec<(String, u16)>, String> {
    let records = records(resolver, &format!("{service}.{domain}"), RecordType::SRV).await?;
    let mut found: Vec<_> = records
        .into_iter()
        .filter_map(|record| match record {
            RData::SRV(srv) => {
                let heaviest_first = u16::MAX - srv.weight;
                Some((srv.priority, heaviest_first, host(&srv.target.to_string()), srv.port))
            }
            _ => None,
        })
        .collect();
    found.sort();
    // The target "." means that the domain does not offer the service (RFC 6186, 3.4).
    let found = found.into_iter().map(|(_, _, host, port)| (host, port));
    Ok(found.filter(|(host, port)| !host.is_empty() && *port > 0).collect())
}

/// Whether a host has an IP address in DNS (A or AAAA).
///
/// # Errors
/// A message, if DNS does not answer.
pub async fn has_address(resolver: &Resolver, host: &str) -> Result<bool, String> {
    for kind in [RecordType::A, RecordType::AAAA] {
        let records = records(resolver, host, kind).await?;
        if records.iter().any(|record| matches!(record, RData::A(_) | RData::AAAA(_))) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns a host name without its final dot, in lower case.
fn host(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

async fn records(resolver: &Resolver, name: &str, kind: RecordType) -> Result<Vec<RData>, String> {
    let name = &format!("{}.", name.trim_end_matches('.'));
    let lookup = resolver.name_servers().query(|dns| async move { Ok(dns.0.lookup(name.as_str(), kind).await?) });
    let no_answer = |_| format!("{kind} {}: no answer from DNS in time", printable(name, 100));
    match tokio::time::timeout(LOOKUP_LIMIT, lookup).await.map_err(no_answer)? {
        Ok(found) => Ok(found.answers().iter().map(|record| record.data.clone()).collect()),
        Err(mail_auth::Error::Dns(DnsError::RecordNotFound(code))) if is_answer(code) => Ok(Vec::new()),
        Err(error) => Err(format!("{kind} {}: {}", printable(name, 100), printable(&error.to_string(), 200))),
    }
}
