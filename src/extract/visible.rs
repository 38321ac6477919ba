//! What HTML hides: inline styles, the mail's own style sheets, attributes.

use std::collections::HashMap;

use html5ever::Attribute;

/// What a declaration block says about being seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// Not there at all, nor anything inside.
    pub(super) gone: bool,
    /// `visibility`, which an inner element may turn back.
    pub(super) visibility: Option<bool>,
    /// Whether the letters have a size, which an inner element may change.
    pub(super) sized: Option<bool>,
}

impl Look {
    /// Reads `name: value; …`. What hides is believed wherever it stands; a browser takes the last, and who says a
    /// thing twice to hide it from one of us is not to be trusted with a value.
    pub(super) fn of(declarations: &str) -> Look {
        let mut look = Look::default();
        // An escape or a comment inside a style is there to be overlooked.
        if declarations.contains('\\') {
            return Look { gone: true, ..look };
        }
        let plain = without_comments(declarations).to_ascii_lowercase();
        let (mut flat, mut clipped, mut outside, mut absolute) = (false, false, false, false);
        for (name, value) in plain.split(';').filter_map(|d| d.split_once(':')) {
            let value = value.replace("!important", "");
            let (name, value) = (name.trim(), value.trim());
            match name {
                "display" if value == "none" => look.gone = true,
                "visibility" => look.visibility = Some(!matches!(value, "hidden" | "collapse")),
                "opacity" if is_zero(value) => look.gone = true,
                "font-size" => look.sized = Some(!is_zero(value)),
                "font" if value.split([' ', '/']).any(|w| w.ends_with("px") && is_zero(w)) => look.sized = Some(false),
                "mso-hide" if value == "all" => look.gone = true,
                "color" if value == "transparent" => look.gone = true,
                "max-height" | "height" | "max-width" | "width" if is_zero(value) => flat = true,
                "overflow" | "overflow-x" | "overflow-y" if value == "hidden" => clipped = true,
                "text-indent" | "left" | "top" | "right" | "bottom" | "margin-left" | "margin-top"
                    if is_far_negative(value) =>
                {
                    outside = true;
                }
                "position" if matches!(value, "absolute" | "fixed") => absolute = true,
                "clip" if value.contains("rect(0") => look.gone = true,
                "clip-path" if value.contains("100%") => look.gone = true,
                "transform" if value.contains("scale(0") => look.gone = true,
                _ => {}
            }
        }
        look.gone |= (flat && clipped) || outside || (absolute && flat);
        look
    }

    /// Both together.
    pub(super) fn and(self, other: Look) -> Look {
        Look {
            gone: self.gone || other.gone,
            visibility: other.visibility.or(self.visibility),
            sized: other.sized.or(self.sized),
        }
    }
}

fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("/*") {
        out.push_str(before);
        rest = after.split_once("*/").map_or("", |(_, after)| after);
    }
    out.push_str(rest);
    out
}

/// `0`, `0px`, `0.0em` and the like, and what is too small to be read.
fn is_zero(value: &str) -> bool {
    let end = value.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(value.len());
    let (number, unit) = value.split_at(end);
    match number.parse::<f32>() {
        Ok(n) if matches!(unit.trim(), "px" | "pt") => n < 2.0,
        Ok(n) => n < 0.05,
        Err(_) => false,
    }
}

fn is_far_negative(value: &str) -> bool {
    let number: String = value.strip_prefix('-').unwrap_or("").chars().take_while(char::is_ascii_digit).collect();
    number.parse::<u64>().is_ok_and(|n| n >= 200)
}

/// The rules of the mail's own style sheets that hide, by tag, class and id.
#[derive(Debug, Default)]
pub(super) struct Sheet(HashMap<String, Look>);

/// The most rules that are read.
const RULES: usize = 2_000;

impl Sheet {
    /// Reads one `<style>` element. Rules inside `@media` and the like do not count: they are for some screens only.
    pub(super) fn read(&mut self, css: &str) {
        let css = without_comments(css);
        let mut rest = css.as_str();
        while let Some(open) = rest.find('{') {
            let (selectors, body) = rest.split_at(open);
            let body = body.get(1..).unwrap_or_default();
            let selectors = selectors.rsplit(['}', ';']).next().unwrap_or(selectors);
            if selectors.trim_start().starts_with('@') {
                rest = after_block(body);
                continue;
            }
            let (declarations, after) = body.split_once('}').unwrap_or((body, ""));
            let look = Look::of(declarations);
            if look != Look::default() {
                self.add(selectors, look);
            }
            rest = after;
        }
    }

    fn add(&mut self, selectors: &str, look: Look) {
        for selector in selectors.split(',') {
            // Of `div .a > p.b` only the last part counts: hiding too much makes a refusal, never a wrong value.
            let last = selector.trim().rsplit([' ', '>', '+', '~']).next().unwrap_or_default();
            let start = last.rfind(['.', '#']).unwrap_or(0);
            let name = last.get(start..).unwrap_or_default().split([':', '[']).next().unwrap_or_default();
            if !name.is_empty() && self.0.len() < RULES {
                let known = self.0.entry(name.to_ascii_lowercase()).or_default();
                *known = known.and(look);
            }
        }
    }

    /// How an element looks, by its tag, its attributes and these rules.
    pub(super) fn look(&self, tag: &str, attributes: &[Attribute]) -> Look {
        let mut look = Look::default();
        let rule = |name: &str| self.0.get(&name.to_ascii_lowercase()).copied().unwrap_or_default();
        if !self.0.is_empty() {
            look = look.and(rule("*")).and(rule(tag));
        }
        let mut inline = Look::default();
        for attribute in attributes {
            match &*attribute.name.local {
                "class" if !self.0.is_empty() => {
                    for class in attribute.value.split_ascii_whitespace() {
                        look = look.and(rule(&format!(".{class}")));
                    }
                }
                "id" if !self.0.is_empty() => look = look.and(rule(&format!("#{}", attribute.value))),
                "style" => inline = Look::of(&attribute.value),
                "hidden" => look.gone = true,
                _ => {}
            }
        }
        look.and(inline)
    }
}

/// What stands behind a block whose opening brace was just passed.
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
    fn what_hides_is_recognised_however_it_is_written() {
        for style in [
            "display:none",
            "DISPLAY : None !important",
            "a:b;display:/**/none",
            "opacity:0",
            "mso-hide:all",
            "max-height:0;overflow:hidden",
            "text-indent:-9999px",
            "position:absolute;left:-5000px",
            "dis\\70lay:none",
        ] {
            assert!(Look::of(style).gone, "{style}");
        }
        for style in ["color:#fff", "display:block", "height:0", "opacity:0.9", "line-height:0", "max-width:600px"] {
            assert!(!Look::of(style).gone, "{style}");
        }
        assert_eq!(Look::of("font-size:0px").sized, Some(false));
        assert_eq!(Look::of("font-size:14px").sized, Some(true));
    }

    #[test]
    fn a_sheet_hides_by_tag_class_and_id_but_not_for_some_screens_only() {
        let mut sheet = Sheet::default();
        sheet.read(
            "/* x */ .pre, #top{display:none} @media (max-width:9px){ .wide{display:none} } td .x{visibility:hidden}",
        );
        assert!(sheet.0.get(".pre").unwrap().gone && sheet.0.get("#top").unwrap().gone);
        assert!(!sheet.0.contains_key(".wide"));
        assert_eq!(sheet.0.get(".x").unwrap().visibility, Some(false));
    }
}
