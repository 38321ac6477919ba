//! Judges the version of a NATS server: whether this program can use it. Pure.

use crate::model::printable;

/// The first version whose Direct Get API (`allow_direct`) this program can use.
const OLDEST: ServerVersion = ServerVersion(2, 9, 0);
/// The first version that is accepted in a cluster. Clusters with older versions lose or duplicate messages.
const OLDEST_IN_CLUSTER: ServerVersion = ServerVersion(2, 10, 23);
/// The first version that this program recommends.
const RECOMMENDED: ServerVersion = ServerVersion(2, 12, 0);

/// The version of a NATS server, for example `2.10.27`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerVersion(u64, u64, u64);

impl std::fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl ServerVersion {
    /// Parses the version that a server reports. A suffix such as `-beta.1` is ignored.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits_and_dots = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let mut parts = text.get(..digits_and_dots)?.splitn(3, '.').map(|part| part.parse().ok());
        Some(ServerVersion(parts.next()??, parts.next()??, parts.next()??))
    }
}

/// Judges the version that a server reports. `Ok`: a note for the operator, or nothing.
///
/// # Errors
/// The reason why the server is refused: it is too old, or its version cannot be parsed.
pub fn judge_server(reported: &str, is_cluster: bool) -> Result<Option<String>, String> {
    let Some(version) = ServerVersion::parse(reported) else {
        return Err(format!("the server reports the version {:?}, which is not known", printable(reported, 40)));
    };
    let (oldest, kind) = if is_cluster { (OLDEST_IN_CLUSTER, "a cluster") } else { (OLDEST, "one server") };
    if version < oldest {
        return Err(format!("NATS {version} is too old for {kind}, which needs {oldest} or newer"));
    }
    Ok((version < RECOMMENDED).then(|| format!("NATS {version} works; {RECOMMENDED} or newer is recommended")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_need_newer_servers() {
        let is_enough = |version, is_cluster| judge_server(version, is_cluster).is_ok();
        assert!(is_enough("2.9.10", false) && is_enough("2.10.22", false) && !is_enough("2.8.4", false));
        assert!(is_enough("2.10.23", true) && is_enough("2.15.1", true) && !is_enough("2.10.22", true));
        assert!(judge_server("2.9.10", false).unwrap().unwrap().contains("2.12.0 or newer is recommended"));
        assert_eq!(judge_server("2.12.0-beta.1", true), Ok(None));
        for unknown in ["", "2", "2.x.1", "two", "2.10", "99999999999999999999.0.0", "\u{1b}[0m"] {
            assert!(!is_enough(unknown, false), "{unknown}");
        }
    }
}
