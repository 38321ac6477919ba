//! The host and the port in the authority of a URL (RFC 3986, 3.2).

use hyper::http::uri::Authority;

/// The host and the port of an authority. The host is without the brackets of IPv6; a missing port is `default_port`.
///
/// # Errors
/// What is wrong with the authority, as a text that follows "expected a URL; ".
pub fn host_and_port(authority: &Authority, default_port: u16) -> Result<(String, u16), &'static str> {
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err("it has no host");
    }
    // An empty port and a port above 65535 are errors here, although http::Uri reports them as a missing port.
    let port = match authority.as_str().strip_prefix(authority.host()) {
        Some("") => default_port,
        _ => authority.port_u16().filter(|port| *port > 0).ok_or("its port must be between 1 and 65535")?,
    };
    Ok((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_a_default_and_ipv6_no_brackets() {
        for (text, host, port) in
            [("n1.example", "n1.example", 4222), ("n1.example:5222", "n1.example", 5222), ("[::1]", "::1", 4222)]
        {
            assert_eq!(host_and_port(&text.parse().unwrap(), 4222), Ok((host.to_owned(), port)), "{text}");
        }
        for text in ["n1.example:", "n1.example:0", "n1.example:99999"] {
            assert!(host_and_port(&text.parse().unwrap(), 4222).unwrap_err().contains("port"), "{text}");
        }
    }
}
