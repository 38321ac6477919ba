//! Renders text/plain as a view: flowed lines are joined (RFC 3676), quoted lines are marked.

use super::quote;
use super::view::{LineKind, MAX_CELLS, MAX_LINKS, PLAIN_TEXT, View, ViewLine, normalize_space};
use crate::extract::mime::Flowed;

/// Renders plain text.
pub(crate) fn plain_text_view(text: &str, flowed: Option<Flowed>) -> View {
    let mut view = View { content_type: PLAIN_TEXT, ..View::default() };
    let joined;
    let text = match flowed {
        Some(flowed) => {
            joined = join_flowed(text, flowed);
            joined.as_str()
        }
        None => text,
    };
    for line in text.lines() {
        let trimmed = line.trim_start();
        if is_ruler(trimmed) {
            continue;
        }
        let quoted = trimmed.starts_with('>');
        let kind =
            if trimmed.starts_with(['-', '*', '•', '·', '◦', '‣']) { LineKind::Item } else { LineKind::Text };
        let cells = split_cells(line).iter().map(|cell| normalize_space(cell)).collect();
        view.push_line(ViewLine { cells, links: find_links(line), quoted, kind, lead: None });
    }
    quote::mark_quoted(&mut view);
    view
}

/// Whether a line consists only of ruler characters, as below a heading or between the rows of a table.
fn is_ruler(line: &str) -> bool {
    !line.is_empty() && line.chars().all(|c| matches!(c, '-' | '=' | '_' | '*' | '+' | '|' | ':' | '─' | ' ' | '\t'))
}

/// Joins each line that ends in a space with the next line (RFC 3676, 4.1). Quoted lines stay unchanged.
fn join_flowed(text: &str, flowed: Flowed) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let quoted = line.starts_with('>');
        let line = if quoted { line } else { line.strip_prefix(' ').unwrap_or(line) };
        match line.strip_suffix(' ') {
            // The line `-- ` above a signature does not end in a soft line break (RFC 3676, 4.3).
            Some(soft) if !quoted && line != "-- " => {
                out.push_str(if flowed.delete_space { soft } else { line });
            }
            _ => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    out
}

/// Splits a row of a plain text table at bars, tabs or several spaces.
fn split_cells(line: &str) -> Vec<String> {
    let line = line.trim();
    let split_at = |separator: &str| -> Vec<String> {
        let cells = line.split(separator).map(|cell| cell.trim().to_owned());
        cells.filter(|cell| !cell.is_empty()).take(MAX_CELLS + 1).collect()
    };
    if line.split(['\t', '|']).nth(MAX_CELLS).is_some() {
        return vec![line.to_owned()];
    }
    if line.contains('\t') {
        return split_at("\t");
    }
    if line.starts_with('|') || line.contains(" | ") {
        // Empty cells are kept, so that all rows of the table have the same columns.
        return line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    }
    match line.split_once("  ") {
        Some((first, _)) if !first.contains([':', '=', '：']) => {
            Some(split_at("  ")).filter(|cells| cells.len() <= MAX_CELLS).unwrap_or_else(|| vec![line.to_owned()])
        }
        _ => vec![line.to_owned()],
    }
}

fn find_links(line: &str) -> Vec<String> {
    let words = line.split(|c: char| c.is_whitespace() || matches!(c, '<' | '>' | '(' | ')' | '[' | ']' | '"'));
    words.filter(|w| w.starts_with("https://") || w.starts_with("http://")).take(MAX_LINKS).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str, flowed: Option<Flowed>) -> Vec<(String, bool)> {
        plain_text_view(text, flowed).lines.iter().map(|l| (l.cells.join("|"), l.quoted)).collect()
    }

    #[test]
    fn flowed_lines_are_one_line() {
        let text = "Hash: 0xab \r\ncd\r\nToken: DAI\r\n";
        assert_eq!(lines(text, Some(Flowed { delete_space: true }))[0].0, "Hash: 0xabcd");
        assert_eq!(lines(text, Some(Flowed { delete_space: false }))[0].0, "Hash: 0xab cd");
        assert_eq!(lines(text, None).len(), 3);
    }

    #[test]
    fn quoted_text_is_marked() {
        let text = "mine\n> theirs\nmine too\nOn Monday, A wrote:\ntheirs\n";
        let quoted: Vec<_> = lines(text, None).into_iter().map(|(_, q)| q).collect();
        assert_eq!(quoted, [false, true, false, true, true]);
    }

    #[test]
    fn bars_and_tabs_make_cells() {
        assert_eq!(lines("| Amount | $20 |", None)[0].0, "Amount|$20");
        assert_eq!(lines("| Amount | | Token |", None)[0].0, "Amount||Token");
        assert_eq!(lines("Amount\t$20", None)[0].0, "Amount|$20");
        assert_eq!(lines("| A | B |\n|---|:-:|\n| 1 | 2 |", None)[1].0, "1|2");
        assert_eq!(lines("Amount      $20", None)[0].0, "Amount|$20");
        assert_eq!(lines("Amount:     $20", None)[0].0, "Amount: $20");
    }

    #[test]
    fn a_line_of_too_many_cells_stays_whole() {
        for separator in ["  ", "\t", " | "] {
            let at_most = vec!["x"; MAX_CELLS].join(separator);
            assert_eq!(split_cells(&at_most).len(), MAX_CELLS, "{separator:?}");
            let too_many = format!("{at_most}{separator}$30");
            assert_eq!(split_cells(&too_many), [too_many.as_str()], "{separator:?}");
        }
    }
}
