//! Why a server refuses a login.
//!
//! A login with wrong credentials is retried rarely, because the operator must act first. All other refusals are retried soon. A
//! known response code (RFC 5530) shows the kind of a refusal. Without a known code, the text of the refusal is compared with
//! known texts. Only this module and `throttling` interpret the text of a response.

/// Response codes for wrong credentials, in lower case.
const CREDENTIAL_CODES: [&str; 3] = ["authenticationfailed", "authorizationfailed", "expired"];

/// Response codes for other causes than wrong credentials. A refusal with one of these codes is temporary, whatever its text is.
const OTHER_CODES: [&str; 11] = [
    "unavailable",
    "inuse",
    "limit",
    "overquota",
    "throttled",
    "contactadmin",
    "serverbug",
    "privacyrequired",
    "noperm",
    "corruption",
    "sys/temp",
];

/// Words in refusals with a temporary cause. A refusal with one of these words is temporary even if it also contains one of the
/// `CREDENTIAL_TEXTS`, because QQ Mail names a wrong password and a busy system in one sentence.
const TEMPORARY_TEXTS: [&str; 12] = [
    "temporar",
    "try again",
    "later",
    "throttl",
    "rate limit",
    "too many",
    "limited",
    "busy",
    "unavailable",
    "not available",
    "timeout",
    "timed out",
];

/// How the text of a refusal is compared.
#[derive(Clone, Copy)]
enum TextMatch {
    /// The text of the refusal contains this string.
    Part(&'static str),
    /// The text of the refusal equals this string, without a final `.` or `!`.
    Whole(&'static str),
}
use TextMatch::{Part, Whole};

/// Texts of servers for a wrong user or password, with the servers that send them. A text with `-` is not known from a particular
/// server, but it can have no other meaning.
const CREDENTIAL_TEXTS: [(TextMatch, &str); 26] = [
    (Part("invalid credentials"), "Gmail, Yahoo, Yandex, Zoho"),
    (Part("empty username or password"), "Gmail"),
    (Part("application-specific password required"), "Gmail"),
    (Part("application password is required"), "Mail.ru"),
    (Part("incorrect username or password"), "Yahoo, AOL"),
    (Part("authentication failed"), "Dovecot, iCloud, Mail.ru"),
    (Whole("authenticate failed"), "Exchange, Microsoft 365, Zimbra"),
    (Whole("login failed"), "Exchange, Courier, Zimbra, UW imapd"),
    (Whole("authenticate plain failed"), "UW imapd"),
    (Whole("authentication failure"), "Cyrus"),
    (Whole("login failed: authentication failure"), "Cyrus"),
    (Part("user not found"), "Cyrus"),
    (Part("account disabled"), "Cyrus"),
    (Part("passphrase expired"), "Cyrus"),
    (Part("login error or password error"), "163.com, 126.com"),
    (Part("invalid user name or password"), "hMailServer"),
    (Part("invalid login/password"), "James"),
    (Part("incorrect password"), "CommuniGate"),
    (Part("invalid username or password"), "-"),
    (Part("invalid login or password"), "-"),
    (Part("bad username or password"), "-"),
    (Part("wrong password"), "-"),
    (Part("invalid password"), "-"),
    (Part("bad password"), "-"),
    (Part("password incorrect"), "-"),
    (Part("login incorrect"), "-"),
];

/// The response codes in a text, which must be in lower case.
fn codes(text: &str) -> impl Iterator<Item = &str> {
    text.split('[').skip(1).filter_map(|rest| rest.split([']', ' ']).next())
}

/// Whether the response code of a refused login, or a word in its text, shows another cause than wrong credentials. `text`: the
/// status (`No`, `Bad`) and the text of the server.
pub(super) fn is_temporary(text: &str) -> bool {
    let lower = text.to_lowercase();
    if codes(&lower).any(|code| OTHER_CODES.contains(&code)) {
        return true;
    }
    !codes(&lower).any(|code| CREDENTIAL_CODES.contains(&code))
        && TEMPORARY_TEXTS.iter().any(|part| lower.contains(part))
}

/// Whether the cause of a refusal is wrong credentials. `text`: as for [`is_temporary`].
pub(super) fn is_about_credentials(text: &str) -> bool {
    if is_temporary(text) {
        return false;
    }
    let lower = text.to_lowercase();
    let text = lower.strip_prefix("no ").or_else(|| lower.strip_prefix("bad ")).unwrap_or(&lower).trim();
    if codes(text).any(|code| CREDENTIAL_CODES.contains(&code)) {
        return true;
    }
    let whole = text.trim_end_matches(['.', '!']);
    CREDENTIAL_TEXTS.iter().any(|(pattern, _)| match pattern {
        Part(part) => text.contains(part),
        Whole(expected) => whole == *expected,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_outweigh_text() {
        for credentials in [
            "No [AUTHENTICATIONFAILED] Authentication failed.",
            "No [AUTHENTICATIONFAILED] Service temporarily unavailable",
            "No [AUTHORIZATIONFAILED] not for you",
            "No [EXPIRED] renew it",
        ] {
            assert!(is_about_credentials(credentials), "{credentials}");
        }
        for other in [
            "No [UNAVAILABLE] Authentication failed",
            "No [OVERQUOTA] Account exceeded bandwidth limits. Invalid credentials",
            "No [THROTTLED] LOGIN failed.",
            "No [LIMIT] wrong password",
            "No [INUSE] Authentication failed",
            "No [CONTACTADMIN] Authentication failed",
            "No [PRIVACYREQUIRED] LOGIN failed",
            "No Authentication failed [THROTTLED]",
        ] {
            assert!(!is_about_credentials(other), "{other}");
        }
    }

    #[test]
    fn known_texts_mean_wrong_credentials() {
        for text in [
            "No Authentication failed.",
            "No LOGIN failed.",
            "No Login failed.",
            "No AUTHENTICATE failed.",
            "No LOGIN failed",
            "No Login failed: authentication failure",
            "No Invalid credentials (Failure)",
            "No LOGIN Invalid credentials",
            "No [ALERT] Application-specific password required: https://support.example (Failure)",
            "No LOGIN Login error or password error",
            "Bad Invalid credentials",
            "No Invalid user name or password.",
            "No Login incorrect",
        ] {
            assert!(is_about_credentials(text), "{text}");
        }
        for (pattern, server) in CREDENTIAL_TEXTS {
            let (Part(text) | Whole(text)) = pattern;
            assert!(is_about_credentials(&format!("No {}", text.to_uppercase())), "{text}: {server}");
            assert_eq!(text, text.to_lowercase());
        }
    }

    #[test]
    fn other_texts_are_temporary() {
        for text in [
            "No Request is throttled. Suggested Backoff Time: 297499 milliseconds",
            "Bad User is authenticated but not connected.",
            "No Rate limit exceeded",
            "No Rate limited: Authentication failed",
            "No Temporary authentication failure. [mx:2025-03-05 03:36:00]",
            "No system busy",
            "No Login fail. Account is abnormal, service is not open, password is incorrect, login frequency limited, or system is busy.",
            "No LOGIN Server error - Please try again later",
            "No Too many simultaneous connections. (Failure)",
            "No Too many failed attempts",
            "No Login failed: generic failure",
            "No login not available on this server. 451 Already reached per-10 minute limit for logins",
            "No Internal error occurred. Refer to server log for more information.",
            "Bad Command syntax error",
            "No wrong",
            "No",
            "",
        ] {
            assert!(!is_about_credentials(text), "{text}");
        }
    }
}
