//! Finds the Authentication-Results fields that the merchant's own receiving server added.
//!
//! A server adds its fields at the top, and removes incoming fields with its name (RFC 8601, 5). All other fields may be forged.

use super::auth_results_field::AuthResultsField;
use super::header::{Header, mask_quoted};

/// The entry of `authserv_ids` for Microsoft's servers, whose fields contain no server name.
const MICROSOFT: &str = "microsoft-365";
/// The domains of the hosts that receive mails for Exchange Online and outlook.com, as `Received` fields name these hosts.
const MICROSOFT_HOSTS: [&str; 2] = [".outlook.com", ".outlook.office365.com"];

/// Whether an entry of `authserv_ids` is valid: a name, `*.` and a domain, or [`MICROSOFT`].
pub(super) fn is_valid(id: &str) -> bool {
    match id.strip_prefix("*.") {
        // `*.co.uk` would match servers of many organisations.
        Some(below) => super::is_domain(below) && psl::domain_str(&below.to_ascii_lowercase()).is_some(),
        None => !id.is_empty() && !id.contains(|c: char| c.is_whitespace() || c == '*'),
    }
}

/// Returns the topmost consecutive Authentication-Results fields of the servers in `ids`.
///
/// Header fields with other names between the returned fields are ignored. Authentication-Results fields of other servers above
/// the returned fields are also ignored, because they were added later. Below the returned fields, the first
/// Authentication-Results field of another server ends the search.
///
/// Microsoft's fields name no server. If `ids` contains [`MICROSOFT`] and Microsoft's servers received the mail, a topmost field
/// without a server's name is the only result.
///
/// # Errors
/// The reason, if the mail has no field of these servers, or if one of the fields to return cannot be parsed.
pub(super) fn own_fields(header: &Header<'_>, ids: &[String]) -> Result<Vec<AuthResultsField>, String> {
    let values: Vec<_> = header.all("authentication-results").map(String::from_utf8_lossy).collect();
    if ids.iter().any(|id| id == MICROSOFT)
        && was_received_by_microsoft(header)
        && let Some(field) =
            values.first().and_then(|top| AuthResultsField::parse(top)).filter(|top| top.server.is_none())
    {
        return Ok(vec![field]);
    }
    let is_own = |value: &str| server(value).is_some_and(|server| ids.iter().any(|id| matches(id, &server)));
    let run = values.iter().skip_while(|value| !is_own(value)).take_while(|value| is_own(value));
    let fields: Option<Vec<_>> = run.map(|value| AuthResultsField::parse(value)).collect();
    // The sender may have caused the syntax error, to hide the field's result. So the fields without a syntax error are not used
    // either.
    let fields = fields.ok_or("an Authentication-Results field of its server cannot be parsed")?;
    if fields.is_empty() {
        Err(format!("it has no Authentication-Results of {}", ids.join(" or ")))
    } else {
        Ok(fields)
    }
}

/// Returns the name of the server in an Authentication-Results field, even if the rest of the field cannot be parsed.
fn server(value: &str) -> Option<String> {
    if let Some(field) = AuthResultsField::parse(value) {
        return field.server;
    }
    let first = value.split([';', '(']).next().and_then(|start| start.split_whitespace().next());
    first.map(|name| name.trim_matches('"').to_owned())
}

/// Whether the entry `id` of `authserv_ids` matches this server name. OpenDKIM may append a job id: `mx.shop.example/0C5B13F980`.
fn matches(id: &str, server: &str) -> bool {
    let names = |server: &str| match id.strip_prefix('*') {
        Some(suffix) => ends_with(server, suffix),
        None => server.eq_ignore_ascii_case(id),
    };
    names(server) || server.split_once('/').is_some_and(|(server, _)| names(server))
}

/// Whether `name` consists of labels and this suffix, which begins with a dot.
fn ends_with(name: &str, suffix: &str) -> bool {
    let at = name.len().checked_sub(suffix.len()).filter(|at| *at > 0);
    let (labels, end) = at.and_then(|at| name.split_at_checked(at)).unwrap_or_default();
    end.eq_ignore_ascii_case(suffix) && !labels.is_empty() && labels.split('.').all(|label| !label.is_empty())
}

/// Whether one of Microsoft's servers received the mail last, and no other server added a Received field above the topmost
/// Authentication-Results.
fn was_received_by_microsoft(header: &Header<'_>) -> bool {
    let is_microsofts = |received: &[u8]| {
        receiver(&String::from_utf8_lossy(received))
            .is_some_and(|host| MICROSOFT_HOSTS.iter().any(|suffix| ends_with(&host, suffix)))
    };
    header.all("received").next().is_some_and(is_microsofts)
        && header.all_above("received", "authentication-results").all(is_microsofts)
}

/// Returns the receiving host in a Received field: the word after the only `by`, outside of comments.
fn receiver(received: &str) -> Option<String> {
    let plain = mask_quoted(received);
    let mut words = plain.split([' ', '\t', '\r', '\n']).filter(|word| !word.is_empty());
    words.find(|word| word.eq_ignore_ascii_case("by"))?;
    let host = words.next()?.to_owned();
    (!words.any(|word| word.eq_ignore_ascii_case("by"))).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count_own_fields(header: &str, ids: &[&str]) -> Result<usize, String> {
        let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        own_fields(&Header::parse(header.as_bytes()), &ids).map(|fields| fields.len())
    }

    #[test]
    fn patterns_match_whole_labels() {
        for server in ["a.fastmail.com", "mx1.phl.Fastmail.COM", "a.fastmail.com/7"] {
            assert!(matches("*.fastmail.com", server), "{server}");
        }
        for server in
            ["fastmail.com", ".fastmail.com", "a..fastmail.com", "evilfastmail.com", "a.fastmail.com.evil.tld", ""]
        {
            assert!(!matches("*.fastmail.com", server), "{server}");
        }
        assert!(matches("mx.shop.example", "MX.shop.example/0C5B13F980") && matches("mx.example/7", "mx.example/7"));
        assert!(!matches("mx.shop.example", "mx.shop.example.evil.tld/") && !matches("mx.example/7", "mx.example/8"));
        assert!(!matches("mx.shop.example", "evil.tld/mx.shop.example") && !matches("mx.shop.example", "/"));
    }

    #[test]
    fn another_servers_field_ends_the_search() {
        let field = |server: &str| format!("Authentication-Results: {server}; spf=none\r\n");
        let ours = field("mx.shop.example");
        let other = field("mx.evil.tld");
        let between = "Received: from a by b\r\nX-Spam: no\r\nARC-Seal: i=1\r\n";
        let ids = ["mx.shop.example", "mx.shop2.example"];
        for (header, count) in [
            (format!("{ours}{between}{ours}{ours}{other}{ours}"), 3),
            (format!("{other}{ours}{other}{ours}"), 1),
            (format!("{ours}{}{ours}", field("mx.shop2.example")), 3),
            (format!("{ours}Authentication-Results: spf=none\r\n{ours}"), 1),
        ] {
            assert_eq!(count_own_fields(&header, &ids), Ok(count), "{header}");
        }
        assert!(count_own_fields(&other, &ids).is_err() && count_own_fields("", &ids).is_err());
        for broken in ["mx.shop.example; spf=\"a", "mx.shop.example 2; dkim=pass", "mx.shop.example (a"] {
            let header = format!("{ours}Authentication-Results: {broken}\r\n{ours}");
            assert!(count_own_fields(&header, &ids).unwrap_err().contains("cannot be parsed"), "{broken}");
            let header = format!("{ours}{other}Authentication-Results: {broken}\r\n");
            assert_eq!(count_own_fields(&header, &ids), Ok(1), "{broken}");
        }
    }

    #[test]
    fn microsofts_field_needs_microsofts_received() {
        let field = "Authentication-Results: spf=pass smtp.mailfrom=resmic.com; dkim=pass (signature was verified) header.d=resmic.com\r\n";
        let received =
            |by: &str| format!("Received: from a.example (192.0.2.1)\r\n by {by}; Wed, 5 Mar 2025 03:36:41 +0000\r\n");
        let (https, smtp) = (
            received("PH7PR11MB6428.namprd11.prod.outlook.com with HTTPS"),
            received("DB5EUR01FT008.mail.protection.outlook.com (10.152.4.1) with Microsoft SMTP Server id 15.20.1"),
        );
        let frontend =
            received("SJ0PR13CA0016.outlook.office365.com\r\n (2603:10b6:a03:2c0::21) with Microsoft SMTP Server");
        let (postfix, upper) = (received("mx.shop.example (Postfix) with ESMTPS"), https.to_uppercase());
        for header in [
            format!("{https}{frontend}{field}{smtp}{postfix}"),
            format!("{field}{smtp}{postfix}"),
            format!("{upper}{field}{postfix}"),
        ] {
            assert_eq!(count_own_fields(&header, &[MICROSOFT]), Ok(1), "{header}");
            assert!(count_own_fields(&header, &["mx.shop.example"]).is_err(), "{header}");
        }
        let named = "Authentication-Results: mx.evil.tld; spf=none\r\n";
        for header in [
            field.to_owned(),
            format!("{postfix}{https}{field}"),
            format!("{https}{postfix}{field}"),
            format!("{https}{named}{field}"),
            format!("{field}{postfix}{https}"),
            format!("{https}Authentication-Results: spf=(\r\n{field}"),
            format!("{}{field}", received("mx.outlook.com.evil.tld with ESMTP")),
            format!("{}{field}", received("evil-outlook.com with ESMTP")),
            format!("{}{field}", received("mx.evil.tld (by a.prod.outlook.com) with ESMTP")),
            format!("{}{field}", received("a.prod.outlook.com by mx.evil.tld with ESMTP")),
        ] {
            assert!(count_own_fields(&header, &[MICROSOFT]).is_err(), "{header}");
        }
    }
}
