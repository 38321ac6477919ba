//! Whether an address or a host name means this machine.
//!
//! Secrets and events never leave this machine unencrypted, unless `allow_remote` of a `[[forward]]` or of `[standby]` is set.
//! Every check of this rule uses these two functions.

use std::net::IpAddr;

/// Whether this is a loopback address. An IPv4-mapped IPv6 address such as `::ffff:127.0.0.1` counts as its IPv4 address.
#[must_use]
pub fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// Whether this host is `localhost` or a loopback address. DNS is not used, because other names may resolve to any address.
#[must_use]
pub fn is_loopback_host(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(is_loopback)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_hosts_need_no_dns() {
        for host in ["localhost", "127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"] {
            assert!(is_loopback_host(host), "{host}");
        }
        for host in ["", "localhost.example", "10.0.0.1", "0.0.0.0", "::", "::ffff:10.0.0.1", "127.0.0.1.example"] {
            assert!(!is_loopback_host(host), "{host}");
        }
    }
}
