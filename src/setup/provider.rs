//! Mail providers: their names in addresses and in MX records, their IMAP server, and how a program logs in there.

/// A mail provider.
#[derive(Debug, PartialEq, Eq)]
pub struct Provider {
    /// The provider's name, for people.
    pub name: &'static str,
    /// The provider's IMAP server, with TLS on port 993.
    pub host: &'static str,
    /// How a program logs in at the provider.
    pub sign_in: SignIn,
    /// Whether `payments+tag@…` is delivered to `payments@…`, as signed addresses need.
    pub has_tags: bool,
    /// Whether the login name is the address without its domain.
    pub local_user: bool,
    /// The domains of the provider's addresses.
    domains: &'static [&'static str],
    /// The domains of the provider's mail exchangers (MX).
    exchangers: &'static [&'static str],
}

/// How a program logs in at a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignIn {
    /// With a password for this program only. The text explains where to create one.
    AppPassword(&'static str),
    /// With an app password, or with OAuth at Google.
    Google,
    /// With OAuth at Microsoft, which refuses passwords.
    Microsoft,
}

const YAHOO: &str = "Yahoo needs an app password: Account Security → Generate app password";
const ZOHO: &str = "Zoho needs an app password if two-factor authentication is on: Security → App Passwords. \
    IMAP must be on: Settings → Mail Accounts → IMAP";

/// Zoho Mail in one region. Personal accounts have a host such as `imap.zoho.eu`, and accounts of organisations have a host such
/// as `imappro.zoho.eu`.
const fn zoho(host: &'static str, domains: &'static [&'static str], exchangers: &'static [&'static str]) -> Provider {
    Provider {
        name: "Zoho Mail",
        host,
        sign_in: SignIn::AppPassword(ZOHO),
        has_tags: true,
        local_user: false,
        domains,
        exchangers,
    }
}

/// The known providers. If several match, the first one is used.
static PROVIDERS: [Provider; 12] = [
    Provider {
        name: "Gmail",
        host: "imap.gmail.com",
        sign_in: SignIn::Google,
        has_tags: true,
        local_user: false,
        domains: &["gmail.com", "googlemail.com"],
        exchangers: &["google.com", "googlemail.com"],
    },
    Provider {
        name: "Microsoft 365",
        host: "outlook.office365.com",
        sign_in: SignIn::Microsoft,
        has_tags: true,
        local_user: false,
        domains: &["onmicrosoft.com", "outlook.com", "hotmail.com", "live.com", "msn.com"],
        exchangers: &["protection.outlook.com", "mx.microsoft"],
    },
    Provider {
        name: "Fastmail",
        host: "imap.fastmail.com",
        sign_in: SignIn::AppPassword(
            "Fastmail needs an app password with access to IMAP: Settings → Privacy & Security → Integrations",
        ),
        has_tags: true,
        local_user: false,
        domains: &["fastmail.com", "fastmail.fm", "messagingengine.com"],
        exchangers: &["messagingengine.com"],
    },
    Provider {
        name: "Yahoo Mail",
        host: "imap.mail.yahoo.com",
        sign_in: SignIn::AppPassword(YAHOO),
        has_tags: false,
        local_user: false,
        domains: &[
            "yahoo.com",
            "ymail.com",
            "rocketmail.com",
            "yahoo.co.uk",
            "yahoo.de",
            "yahoo.fr",
            "yahoo.it",
            "yahoo.es",
            "yahoo.ca",
            "yahoo.co.in",
            "yahoo.in",
            "yahoo.com.br",
            "yahoo.com.au",
        ],
        exchangers: &["yahoodns.net"],
    },
    zoho("imap.zoho.com", &["zoho.com", "zohomail.com"], &[]),
    zoho("imap.zoho.eu", &["zoho.eu", "zohomail.eu"], &[]),
    zoho("imap.zoho.in", &["zoho.in", "zohomail.in"], &[]),
    zoho("imappro.zoho.com", &[], &["zoho.com", "zohomail.com"]),
    zoho("imappro.zoho.eu", &[], &["zoho.eu", "zohomail.eu"]),
    zoho("imappro.zoho.in", &[], &["zoho.in", "zohomail.in"]),
    zoho("imappro.zoho.com.au", &[], &["zoho.com.au"]),
    Provider {
        name: "iCloud Mail",
        host: "imap.mail.me.com",
        sign_in: SignIn::AppPassword(
            "iCloud needs an app-specific password: https://account.apple.com → Sign-In and Security",
        ),
        has_tags: true,
        local_user: true,
        domains: &["icloud.com", "me.com", "mac.com"],
        exchangers: &["mail.icloud.com"],
    },
];

impl Provider {
    /// The provider whose addresses have this domain.
    #[must_use]
    pub fn by_domain(domain: &str) -> Option<&'static Provider> {
        PROVIDERS.iter().find(|provider| provider.domains.iter().any(|end| is_below(domain, end)))
    }

    /// The provider that has this mail exchanger.
    #[must_use]
    pub fn by_exchanger(host: &str) -> Option<&'static Provider> {
        PROVIDERS.iter().find(|provider| provider.exchangers.iter().any(|end| is_below(host, end)))
    }

    /// The provider with this IMAP server.
    #[must_use]
    pub fn by_host(host: &str) -> Option<&'static Provider> {
        PROVIDERS.iter().find(|provider| provider.host.eq_ignore_ascii_case(host))
    }
}

/// Whether a name is the domain `end` or one of its subdomains.
fn is_below(name: &str, end: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == end || name.strip_suffix(end).is_some_and(|before| before.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn providers_are_known_by_their_domains() {
        for (domain, host) in [
            ("Gmail.com", "imap.gmail.com"),
            ("shop.onmicrosoft.com", "outlook.office365.com"),
            ("fastmail.com", "imap.fastmail.com"),
            ("yahoo.de", "imap.mail.yahoo.com"),
            ("zohomail.eu", "imap.zoho.eu"),
            ("me.com", "imap.mail.me.com"),
        ] {
            assert_eq!(Provider::by_domain(domain).map(|p| p.host), Some(host), "{domain}");
        }
        for other in ["shop.example", "notgmail.com", "some.com", "gmail.com.shop.example"] {
            assert_eq!(Provider::by_domain(other), None, "{other}");
        }
    }

    #[test]
    fn providers_are_known_by_their_exchangers() {
        for (exchanger, host) in [
            ("aspmx.l.google.com.", "imap.gmail.com"),
            ("smtp.google.com", "imap.gmail.com"),
            ("shop-example.mail.protection.outlook.com", "outlook.office365.com"),
            ("shop-example.n-v1.mx.microsoft", "outlook.office365.com"),
            ("in1-smtp.messagingengine.com", "imap.fastmail.com"),
            ("mta5.am0.yahoodns.net", "imap.mail.yahoo.com"),
            ("mx2.zoho.com", "imappro.zoho.com"),
            ("mx.zoho.eu", "imappro.zoho.eu"),
            ("mx.zoho.com.au", "imappro.zoho.com.au"),
            ("mx01.mail.icloud.com", "imap.mail.me.com"),
        ] {
            assert_eq!(Provider::by_exchanger(exchanger).map(|p| p.host), Some(host), "{exchanger}");
        }
        assert_eq!(Provider::by_exchanger("mx.notgoogle.com"), None);
    }
}
