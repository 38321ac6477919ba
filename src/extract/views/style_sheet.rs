//! The rules of a mail's style sheets that hide or change text, and their effect on an element.

use std::collections::BTreeMap;

use super::css_visibility::{Appearance, Colour, lower, without_comments};
use super::html_fast::Attribute;

/// The effects of a mail's style sheets on elements, by tag, class and id.
#[derive(Debug, Default)]
pub(crate) struct StyleSheet {
    /// The effect of the selector `*`.
    every: Appearance,
    /// The effects by tag, also of `*`.
    tags: Rules,
    classes: Rules,
    ids: Rules,
    /// Whether a rule was left out, because there were [`MAX_RULES`] names.
    is_incomplete: bool,
}

/// The effects by name. Most mails have few rules. A B-tree searches few entries linearly, which is faster than a hash map.
type Rules = BTreeMap<String, Appearance>;

/// The most tags, classes and ids for which rules are stored. If a mail has more, its text is not used, because a rule that is left
/// out may hide text.
pub(crate) const MAX_RULES: usize = 2_000;

impl StyleSheet {
    /// Adds the rules of one `<style>` element. Rules inside `@media` and similar blocks are ignored, unless they apply to every
    /// screen.
    pub(crate) fn add_rules(&mut self, css: &str) {
        let css = without_comments(css);
        let mut rest = &*css;
        while let Some(open) = rest.find('{') {
            let (selectors, body) = rest.split_at(open);
            let body = body.get(1..).unwrap_or_default();
            let selectors = selectors.rsplit(['}', ';']).next().unwrap_or(selectors);
            if let Some(at) = selectors.trim_start().strip_prefix('@') {
                rest = if is_for_every_screen(at) { body } else { after_block(body) };
                continue;
            }
            let (declarations, after) = body.split_once('}').unwrap_or((body, ""));
            let appearance = Appearance::parse(declarations);
            if appearance != Appearance::default() {
                self.add_rule(selectors, appearance);
            }
            rest = after;
        }
    }

    fn add_rule(&mut self, selectors: &str, appearance: Appearance) {
        for selector in selectors.split(',') {
            // Only the last name of a selector is compared with an element: `.b` in `div .a > p.b`. A rule may therefore hide too
            // much text, so that a value is missing, but no value is wrong.
            let last = selector.trim().rsplit([' ', '>', '+', '~']).next().unwrap_or_default();
            let start = last.rfind(['.', '#']).unwrap_or(0);
            let name = last.get(start..).unwrap_or_default().split([':', '[']).next().unwrap_or_default();
            let is_simple = selector.trim() == last && !last.contains([':', '[']);
            let appearance = if is_simple { appearance } else { appearance.for_some_elements() };
            if name.is_empty() {
                continue;
            }
            let is_full = self.tags.len() + self.classes.len() + self.ids.len() >= MAX_RULES;
            let (rules, name) = if let Some(class) = name.strip_prefix('.') {
                (&mut self.classes, class)
            } else if let Some(id) = name.strip_prefix('#') {
                (&mut self.ids, id)
            } else {
                (&mut self.tags, name)
            };
            let name = name.to_ascii_lowercase();
            if is_full && !rules.contains_key(&name) {
                self.is_incomplete = true;
                continue;
            }
            let combined = rules.entry(name).or_default();
            *combined = combined.combine(appearance);
        }
        self.every = self.tags.get("*").copied().unwrap_or_default();
    }

    /// Whether a rule was left out.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.is_incomplete
    }

    /// Returns how the tag, the attributes except `style`, and the matching rules of an element affect its visibility and layout.
    pub(crate) fn appearance(&self, tag: &str, attributes: &[Attribute<'_>]) -> Appearance {
        let mut appearance = self.every;
        let rule = |rules: &Rules, name: &str| rules.get(name).copied().unwrap_or_default();
        if !self.tags.is_empty() {
            appearance = appearance.combine(rule(&self.tags, tag));
        }
        for Attribute { name, value } in attributes {
            match &**name {
                "class" if !self.classes.is_empty() => {
                    for class in value.split_ascii_whitespace() {
                        appearance = appearance.combine(rule(&self.classes, &lower(class)));
                    }
                }
                "id" => appearance = appearance.combine(rule(&self.ids, &lower(value))),
                "hidden" => appearance.removed = true,
                "bgcolor" => appearance.background = Some(Colour::parse(&lower(value))),
                "background" => appearance.background = Some(Colour::Unknown),
                "size" if tag == "font" => appearance.has_font_size = Some(true),
                "color" if tag == "font" => appearance.colour = Some(Colour::parse(&lower(value))),
                _ => {}
            }
        }
        appearance
    }
}

/// Whether a condition such as `@media screen` applies to every screen.
pub(crate) fn is_for_every_screen(rule: &str) -> bool {
    let normalized = rule.split_whitespace().collect::<Vec<_>>().join(" ").to_ascii_lowercase();
    matches!(normalized.as_str(), "media" | "media all" | "media screen" | "media only screen")
}

/// Returns the CSS after a block `{…}`. `text` begins after the opening brace of this block.
fn after_block(text: &str) -> &str {
    let mut depth = 1;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return text.get(at + 1..).unwrap_or_default();
        }
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn style_sheets_hide_by_tag_class_and_id() {
        let mut sheet = StyleSheet::default();
        sheet.add_rules(
            "/* x */ .pre, #top{display:none} @media (max-width:9px){ .wide{display:none} } td .x{visibility:hidden}",
        );
        assert!(sheet.classes.get("pre").unwrap().removed && sheet.ids.get("top").unwrap().removed);
        assert!(!sheet.classes.contains_key("wide"));
        assert_eq!(sheet.classes.get("x").unwrap().visibility, Some(false));
    }
}
