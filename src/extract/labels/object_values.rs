//! Finds the values under the keys of JSON objects and JavaScript object literals in a view.

use std::collections::HashSet;

use super::label_table::{LabelTable, fold_label, with_currency};
use super::object::{ObjectValue, parse_objects};
use crate::extract::explain::ValuePlace;
use crate::extract::field::{FoundValue, ValuePosition};
use crate::extract::views::View;

/// Parses the objects in a view, with their keys as labels, and adds the values to `found`. Returns the indexes of the lines with
/// an object that has a known key. The caller does not search these lines for other labels.
pub(crate) fn find_object_values(view: &View, table: &LabelTable, found: &mut Vec<FoundValue>) -> HashSet<usize> {
    let mut used_lines = HashSet::new();
    if !view.lines.iter().flat_map(|line| &line.cells).any(|cell| cell.contains('{')) {
        return used_lines;
    }
    for quoted in [false, true] {
        let lines = || view.lines.iter().enumerate().filter(move |(_, l)| l.quoted == quoted);
        let texts: Vec<String> = lines().map(|(_, line)| line.to_text()).collect();
        for (n, object) in parse_objects(&texts.join("\n")).into_iter().enumerate() {
            let mut known_keys = 0;
            for pair in object.pairs {
                let Some(field) = table.field_of(&pair.key) else { continue };
                known_keys += 1;
                let (ObjectValue::Text(value) | ObjectValue::Bare(value)) = pair.value else { continue };
                if value.trim().is_empty() {
                    continue;
                }
                let value = with_currency(field, &pair.key, &value);
                let label = fold_label(&pair.key);
                let place = ValuePlace::Key { view: view.content_type, object: n + 1, key: pair.key };
                found.push(FoundValue { field, label, value, place, quoted, position: ValuePosition::Key });
            }
            if known_keys > 0 {
                let mut start = 0;
                for ((line, _), text) in lines().zip(&texts) {
                    let end = start + text.len();
                    if start < object.span.end && object.span.start <= end {
                        used_lines.insert(line);
                    }
                    start = end + 1;
                }
            }
        }
    }
    used_lines
}
