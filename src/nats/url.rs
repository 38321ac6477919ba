//! The URLs of NATS servers: `tls://n1.example:4222`, `nats://127.0.0.1`.

use std::str::FromStr;

use hyper::Uri;

use crate::configured_text::configured_text;
use crate::loopback::is_loopback_host;
use crate::url_authority::host_and_port;

/// The port of a NATS server if the URL has none.
const DEFAULT_PORT: u16 = 4222;

/// The URL of a NATS server: `tls://` or `nats://`, a host and a port, without a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsUrl {
    /// Whether the scheme is `tls`. The connection is then encrypted before the login is sent.
    pub tls: bool,
    /// The host: a name or an IP address, without the brackets of IPv6.
    pub host: String,
    /// The port; the default is 4222.
    pub port: u16,
}

configured_text!(NatsUrl, "a URL in quotes, for example \"tls://n1.example:4222\"");

impl FromStr for NatsUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "expected a URL such as \"tls://n1.example:4222\"";
        // A URL may contain a password, so the message does not quote the URL.
        let uri: Uri = text.parse().map_err(|e| format!("{EXPECTED}: {e}"))?;
        let tls = match uri.scheme_str() {
            Some("tls") => true,
            Some("nats") => false,
            _ => return Err(format!("{EXPECTED}; it must begin with tls:// or nats://")),
        };
        let authority = uri.authority().ok_or(EXPECTED)?;
        if authority.as_str().contains('@') {
            return Err("a URL must not contain a user or a password; set `user` and `password`, or `token`".into());
        }
        if !uri.path().trim_matches('/').is_empty() || uri.query().is_some() {
            return Err(format!("{EXPECTED}, without a path"));
        }
        let (host, port) = host_and_port(authority, DEFAULT_PORT).map_err(|wrong| format!("{EXPECTED}; {wrong}"))?;
        Ok(NatsUrl { tls, host, port })
    }
}

impl TryFrom<String> for NatsUrl {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl std::fmt::Display for NatsUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls { "tls" } else { "nats" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

impl NatsUrl {
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
    fn ports_have_a_default() {
        for (text, printed) in [
            ("tls://n1.example", "tls://n1.example:4222"),
            ("nats://127.0.0.1:5222/", "nats://127.0.0.1:5222"),
            ("nats://[::1]", "nats://[::1]:4222"),
        ] {
            assert_eq!(text.parse::<NatsUrl>().unwrap().to_string(), printed);
        }
        assert!("nats://[::1]".parse::<NatsUrl>().unwrap().is_loopback());
    }

    #[test]
    fn wrong_urls_are_refused_and_logins_not_quoted() {
        for (text, message) in [
            ("n1.example:4222", "tls:// or nats://"),
            ("https://n1.example", "tls:// or nats://"),
            ("tls://", "expected a URL"),
            ("tls://n1.example:0", "port"),
            ("tls://n1.example:99999", "port"),
            ("tls://n1.example:", "port"),
            ("tls://n1.example/x", "without a path"),
            ("tls://me:s3cret@n1.example", "user or a password"),
        ] {
            let error = text.parse::<NatsUrl>().unwrap_err();
            assert!(error.contains(message) && !error.contains("s3cret"), "{text}: {error}");
        }
    }
}
