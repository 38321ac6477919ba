//! `http` and `https` URLs.

use std::str::FromStr;

use hyper::Uri;
use hyper::http::uri::{Authority, PathAndQuery, Scheme};

use crate::configured_text::configured_text;
use crate::loopback::is_loopback_host;
use crate::url_authority::host_and_port;

/// An `http` or `https` URL with a host and without credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// Whether the scheme is `https`.
    pub tls: bool,
    /// A name or an IP address, without the brackets of IPv6.
    pub host: String,
    /// The port; the default is 80 or 443.
    pub port: u16,
    /// The value of the `Host` header.
    pub authority: Authority,
    /// The path with the query.
    pub path: PathAndQuery,
}

configured_text!(Url, "a URL in quotes, for example \"http://127.0.0.1:3000/path\"");

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "expected a URL such as \"http://127.0.0.1:3000/path\"";
        let uri: Uri = text.parse().map_err(|e| format!("{EXPECTED}: {e}"))?;
        let parts = uri.into_parts();
        let tls = match parts.scheme {
            Some(scheme) if scheme == Scheme::HTTP => false,
            Some(scheme) if scheme == Scheme::HTTPS => true,
            _ => return Err(format!("{EXPECTED}; it must begin with http:// or https://")),
        };
        let authority = parts.authority.ok_or(EXPECTED)?;
        if authority.as_str().contains('@') {
            return Err("a URL must not contain a user or a password".into());
        }
        let default_port = if tls { 443 } else { 80 };
        let (host, port) = host_and_port(&authority, default_port).map_err(|wrong| format!("{EXPECTED}; {wrong}"))?;
        let path = parts.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
        Ok(Url { tls, host, port, authority, path })
    }
}

impl TryFrom<String> for Url {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}{}", if self.tls { "https" } else { "http" }, self.authority, self.path)
    }
}

impl Url {
    /// Whether the host is this machine; see [`is_loopback_host`].
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        is_loopback_host(&self.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_defaults_and_ipv6_no_brackets() {
        let url: Url = "https://pay.shop.example".parse().unwrap();
        assert_eq!((url.tls, url.port, url.path.as_str()), (true, 443, "/"));
        let url: Url = "http://[::1]:80/x".parse().unwrap();
        assert_eq!((url.host.as_str(), url.port, url.authority.as_str()), ("::1", 80, "[::1]:80"));
    }
}
