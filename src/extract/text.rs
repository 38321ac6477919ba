//! Renders text/plain as a view: flowed lines are joined (RFC 3676), quoted lines are marked.

use super::quote;
use super::view::{CELLS, LINKS, Line, Sort, View, tidy};

/// Renders plain text.
pub(super) fn view(text: &str, flowed: Option<Flowed>) -> View {
    let mut view = View { kind: "text/plain", ..View::default() };
    let joined;
    let text = match flowed {
        Some(how) => {
            joined = unflow(text, how);
            joined.as_str()
        }
        None => text,
    };
    for line in text.lines() {
        let bare = line.trim_start();
        if is_ruler(bare) {
            continue;
        }
        let quoted = bare.starts_with('>');
        let sort = if bare.starts_with(['-', '*', '•', '·', '◦', '‣']) { Sort::Item } else { Sort::Text };
        let cells = cells(line).iter().map(|cell| tidy(cell)).collect();
        view.push(Line { cells, links: links(line), quoted, sort, lead: None });
    }
    quote::mark(&mut view);
    view
}

/// Whether a line is only drawn, below a heading or between rows of a table.
fn is_ruler(line: &str) -> bool {
    !line.is_empty() && line.chars().all(|c| matches!(c, '-' | '=' | '_' | '*' | '+' | '|' | ':' | '─' | ' ' | '\t'))
}

/// `format=flowed`, with `delsp=yes` if the space at a line's end is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flowed {
    pub(super) delete_space: bool,
}

/// Joins each line that ends in a space with the next one (RFC 3676, 4.1). Quoted lines stay unchanged.
fn unflow(text: &str, how: Flowed) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let quoted = line.starts_with('>');
        let line = if quoted { line } else { line.strip_prefix(' ').unwrap_or(line) };
        match line.strip_suffix(' ') {
            // The mark of a signature is not a soft break (RFC 3676, 4.3).
            Some(soft) if !quoted && line != "-- " => {
                out.push_str(if how.delete_space { soft } else { line });
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
fn cells(line: &str) -> Vec<String> {
    let line = line.trim();
    let apart = |separator: &str| -> Vec<String> {
        let cells = line.split(separator).map(|cell| cell.trim().to_owned());
        cells.filter(|cell| !cell.is_empty()).take(CELLS).collect()
    };
    if line.split(['\t', '|']).nth(CELLS).is_some() {
        return vec![line.to_owned()];
    }
    if line.contains('\t') {
        return apart("\t");
    }
    if line.starts_with('|') || line.contains(" | ") {
        // Empty cells count: the row below has the same columns.
        return line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    }
    match line.split_once("  ") {
        Some((first, _)) if !first.contains([':', '=', '：']) => apart("  "),
        _ => vec![line.to_owned()],
    }
}

fn links(line: &str) -> Vec<String> {
    let words = line.split(|c: char| c.is_whitespace() || matches!(c, '<' | '>' | '(' | ')' | '[' | ']' | '"'));
    words.filter(|w| w.starts_with("https://") || w.starts_with("http://")).take(LINKS).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str, flowed: Option<Flowed>) -> Vec<(String, bool)> {
        view(text, flowed).lines.iter().map(|l| (l.cells.join("|"), l.quoted)).collect()
    }

    #[test]
    fn flowed_lines_are_one_line() {
        let text = "Hash: 0xab \r\ncd\r\nToken: DAI\r\n";
        assert_eq!(lines(text, Some(Flowed { delete_space: true }))[0].0, "Hash: 0xabcd");
        assert_eq!(lines(text, Some(Flowed { delete_space: false }))[0].0, "Hash: 0xab cd");
        assert_eq!(lines(text, None).len(), 3);
    }

    #[test]
    fn what_others_wrote_is_marked() {
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
}
