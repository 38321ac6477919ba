//! Finds the text that HTML hides, by inline styles, the mail's style sheets and attributes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::plain::Attribute;

/// The effect of a declaration block on visibility.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// Removed with all its content.
    pub(super) gone: bool,
    /// Visible, but different from its text: struck through, reversed, moved.
    pub(super) odd: bool,
    /// `visibility`, which an inner element can reset.
    pub(super) visibility: Option<bool>,
    /// Whether the font has a size, which an inner element can change.
    pub(super) sized: Option<bool>,
    /// The layout, where it is not the default of the element.
    pub(super) display: Option<Display>,
    /// It has space around it, or is higher or lower: its text does not touch its neighbours'.
    pub(super) apart: bool,
    /// Its children are laid out side by side.
    pub(super) spreads: bool,
    /// The colours of text and background.
    pub(super) colour: Option<Colour>,
    pub(super) background: Option<Colour>,
}

/// The layout of an element relative to its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Display {
    /// Inline.
    Inline,
    /// Inline, with a visible edge.
    Apart,
    /// A block.
    Block,
}

impl Display {
    /// `None` for an element that is removed.
    fn of(value: &str) -> Option<Display> {
        match value {
            "none" => None,
            "inline" | "contents" => Some(Display::Inline),
            "block" | "flex" | "grid" | "table" | "list-item" | "flow-root" | "table-row" => Some(Display::Block),
            _ => Some(Display::Apart),
        }
    }
}

/// A colour, 0xRRGGBB. Others, such as an image, are unknown and equal to no colour.
#[derive(Debug, Clone, Copy)]
pub(super) enum Colour {
    Known(u32),
    Unknown,
}

impl PartialEq for Colour {
    fn eq(&self, other: &Self) -> bool {
        matches!((self, other), (Colour::Known(a), Colour::Known(b)) if a == b)
    }
}

impl Eq for Colour {}

impl Colour {
    pub(super) const BLACK: Colour = Colour::Known(0);
    pub(super) const WHITE: Colour = Colour::Known(0x00ff_ffff);

    /// `#fff`, `#ffffff`, `white`, `black`, `rgb(1, 2, 3)`.
    pub(super) fn of(text: &str) -> Colour {
        let text = text.trim();
        let number = |digits: &str| u32::from_str_radix(digits, 16).ok();
        let known = match text.strip_prefix('#') {
            Some(short) if short.len() == 3 => number(&short.chars().flat_map(|c| [c, c]).collect::<String>()),
            Some(long) if long.len() == 6 => number(long),
            Some(_) => None,
            None if text == "white" => Some(0x00ff_ffff),
            None if text == "black" => Some(0),
            None => text.strip_prefix("rgb(").and_then(|t| t.strip_suffix(')')).and_then(|inner| {
                let parts: Option<Vec<u32>> =
                    inner.split([',', ' ']).filter(|p| !p.is_empty()).map(|p| p.parse().ok()).collect();
                parts.filter(|p| p.len() == 3).map(|p| p.iter().fold(0, |all, part| all << 8 | (*part).min(255)))
            }),
        };
        known.map_or(Colour::Unknown, Colour::Known)
    }

    /// Whether it is `transparent`, or has an alpha of zero.
    fn is_clear(text: &str) -> bool {
        let hex = text.strip_prefix('#').unwrap_or_default();
        let part = text.trim_end_matches(')').rsplit([',', '/']).next().unwrap_or_default().trim();
        text == "transparent"
            || (hex.len() == 4 && hex.ends_with('0'))
            || (hex.len() == 8 && hex.ends_with("00"))
            || ((text.starts_with("rgba(") || text.starts_with("hsla(") || text.contains('/'))
                && part.trim_end_matches('%').parse::<f32>().is_ok_and(|alpha| alpha < 0.05))
    }
}

/// Properties that hide only in combination.
#[derive(Default)]
struct Together {
    flat: bool,
    clipped: bool,
    outside: bool,
}

impl Look {
    /// Parses `name: value; …`. A declaration that hides counts even if a later one overrides it. A mail that uses both
    /// to mislead a reader should not give values.
    pub(super) fn of(declarations: &str) -> Look {
        let mut look = Look::default();
        // An escape in a style is an attempt to evade this parser.
        if declarations.contains('\\') {
            return Look { gone: true, ..look };
        }
        let plain = without_comments(declarations);
        let plain = lower(&plain);
        let mut together = Together::default();
        for (name, value) in plain.split(';').filter_map(|d| d.split_once(':')) {
            // `!important` can contain white space.
            let value = value.split_once('!').map_or(value, |(value, _)| value);
            look.declare(name.trim(), value.trim(), &mut together);
        }
        look.gone |= (together.flat && together.clipped) || together.outside;
        look
    }

    fn declare(&mut self, name: &str, value: &str, together: &mut Together) {
        match name {
            "display" => {
                self.spreads |= matches!(value, "flex" | "grid" | "inline-flex" | "inline-grid");
                self.gone |= value == "none";
                self.display = Display::of(value).or(self.display);
            }
            "visibility" => self.visibility = Some(!matches!(value, "hidden" | "collapse")),
            "content-visibility" if value == "hidden" => self.gone = true,
            "opacity" | "zoom" if is_zero(value) => self.gone = true,
            "filter" if value.contains("opacity(0") => self.gone = true,
            "font-size" => self.sized = Some(!is_zero(value)),
            "font" if value.split([' ', '/']).any(is_zero) => self.sized = Some(false),
            "mso-hide" if value == "all" => self.gone = true,
            "color" | "-webkit-text-fill-color" if Colour::is_clear(value) => self.gone = true,
            "color" => self.colour = Some(Colour::of(value)),
            "background" | "background-color" if Colour::is_clear(value) || value == "none" => {}
            "background" | "background-color" => self.background = Some(Colour::of(value)),
            "background-image" if value != "none" => self.background = Some(Colour::Unknown),
            "max-height" | "height" | "max-width" | "width" if is_zero(value) || value == "1px" => together.flat = true,
            "overflow" | "overflow-x" | "overflow-y" if matches!(value, "hidden" | "clip") => together.clipped = true,
            "text-indent" | "left" | "top" | "right" | "bottom" | "margin-left" | "margin-top" | "margin"
                if is_far_negative(value) =>
            {
                together.outside = true;
            }
            "clip" if value != "auto" => self.gone = true,
            "clip-path" | "mask" if value != "none" => self.gone = true,
            "transform" if value.contains("scale(0") || value.contains("scale(-0") => self.gone = true,
            "transform" | "rotate" | "scale" | "translate" if value != "none" => self.odd = true,
            "position" if matches!(value, "absolute" | "fixed") => self.odd = true,
            "text-decoration" | "text-decoration-line" if value.contains("line-through") => self.odd = true,
            "unicode-bidi" if value.contains("override") => self.odd = true,
            "vertical-align" if matches!(value, "super" | "sub") => self.odd = true,
            "vertical-align" if value != "baseline" && !is_zero(value) => self.apart = true,
            "position" if value == "relative" => self.apart = true,
            "border" | "border-left" | "border-right"
                if !value.split(' ').any(|part| matches!(part, "0" | "0px" | "none" | "hidden")) =>
            {
                self.apart = true;
            }
            "float" if value != "none" => self.apart = true,
            "margin" | "margin-left" | "margin-right" | "padding" | "padding-left" | "padding-right"
            | "letter-spacing"
                if !value.split_whitespace().all(is_zero) =>
            {
                self.apart = true;
            }
            _ => {}
        }
    }

    /// Reduces the effect of a rule that applies to some elements only: its colours are not reliable.
    fn sometimes(self) -> Look {
        let unknown = |colour: Option<Colour>| colour.map(|_| Colour::Unknown);
        let (colour, background) = (unknown(self.colour), unknown(self.background));
        Look { display: None, apart: false, odd: false, colour, background, ..self }
    }

    /// Combines two effects.
    pub(super) fn and(self, other: Look) -> Look {
        Look {
            gone: self.gone || other.gone,
            odd: self.odd || other.odd,
            visibility: other.visibility.or(self.visibility),
            sized: other.sized.or(self.sized),
            display: other.display.or(self.display),
            apart: self.apart || other.apart,
            spreads: self.spreads || other.spreads,
            colour: other.colour.or(self.colour),
            background: other.background.or(self.background),
        }
    }
}

/// Lower case, copied only if necessary.
fn lower(text: &str) -> Cow<'_, str> {
    if text.bytes().any(|b| b.is_ascii_uppercase()) { text.to_ascii_lowercase().into() } else { text.into() }
}

fn without_comments(text: &str) -> Cow<'_, str> {
    if !text.contains('/') {
        return text.into();
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("/*") {
        out.push_str(before);
        rest = after.split_once("*/").map_or("", |(_, after)| after);
    }
    out.push_str(rest);
    out.into()
}

/// Whether a length is zero (`0`, `0px`, `0.0em`) or too small to read.
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

/// The hiding rules of the mail's style sheets, by tag, class and id.
///
/// Most mails have few rules, and a linear search over them is faster than a hash map.
#[derive(Debug, Default)]
pub(super) struct Sheet(BTreeMap<String, Look>);

/// The most rules that are kept.
const RULES: usize = 2_000;

impl Sheet {
    /// Parses one `<style>` element. Rules inside `@media` and similar blocks are ignored, unless they apply to every
    /// screen.
    pub(super) fn read(&mut self, css: &str) {
        let css = without_comments(css);
        let mut rest = &*css;
        while let Some(open) = rest.find('{') {
            let (selectors, body) = rest.split_at(open);
            let body = body.get(1..).unwrap_or_default();
            let selectors = selectors.rsplit(['}', ';']).next().unwrap_or(selectors);
            if let Some(at) = selectors.trim_start().strip_prefix('@') {
                rest = if is_for_all(at) { body } else { after_block(body) };
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
            // Only the last part of `div .a > p.b` counts. Hiding too much refuses a mail, but never gives a wrong
            // value.
            let last = selector.trim().rsplit([' ', '>', '+', '~']).next().unwrap_or_default();
            let start = last.rfind(['.', '#']).unwrap_or(0);
            let name = last.get(start..).unwrap_or_default().split([':', '[']).next().unwrap_or_default();
            let plain = selector.trim() == last && !last.contains([':', '[']);
            let look = if plain { look } else { look.sometimes() };
            if !name.is_empty() && self.0.len() < RULES {
                let known = self.0.entry(name.to_ascii_lowercase()).or_default();
                *known = known.and(look);
            }
        }
    }

    /// The effect of an element's tag, attributes and matching rules.
    pub(super) fn look(&self, tag: &str, attributes: &[Attribute<'_>]) -> Look {
        let mut look = Look::default();
        let rule = |name: &str| self.0.get(&*lower(name)).copied().unwrap_or_default();
        if !self.0.is_empty() {
            look = look.and(rule("*")).and(rule(tag));
        }
        let mut inline = Look::default();
        for attribute in attributes {
            match &*attribute.name {
                "class" if !self.0.is_empty() => {
                    for class in attribute.value.split_ascii_whitespace() {
                        look = look.and(rule(&format!(".{class}")));
                    }
                }
                "id" if !self.0.is_empty() => look = look.and(rule(&format!("#{}", attribute.value))),
                "style" => inline = Look::of(&attribute.value),
                "hidden" => look.gone = true,
                "bgcolor" => look.background = Some(Colour::of(&attribute.value.to_ascii_lowercase())),
                "background" => look.background = Some(Colour::Unknown),
                "size" if tag == "font" => look.sized = Some(true),
                "color" if tag == "font" => look.colour = Some(Colour::of(&attribute.value.to_ascii_lowercase())),
                _ => {}
            }
        }
        look.and(inline)
    }
}

/// Whether a condition such as `@media screen` applies to every screen.
pub(super) fn is_for_all(rule: &str) -> bool {
    let words = rule.split_whitespace().collect::<Vec<_>>().join(" ").to_ascii_lowercase();
    matches!(words.as_str(), "media" | "media all" | "media screen" | "media only screen")
}

/// The text after a block whose opening brace was just consumed.
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
            "display:none! important",
            "a:b;display:/**/none",
            "opacity:0",
            "mso-hide:all",
            "max-height:0;overflow:hidden",
            "text-indent:-9999px",
            "position:absolute;left:-5000px",
            "dis\\70lay:none",
            "color:#ffffff00",
            "color: rgba(0, 0, 0, 0)",
            "clip:rect(0,0,0,0)",
            "width:1px;overflow:hidden",
        ] {
            assert!(Look::of(style).gone, "{style}");
        }
        for style in ["color:#fff", "display:block", "height:0", "opacity:0.9", "line-height:0", "max-width:600px"] {
            assert!(!Look::of(style).gone, "{style}");
        }
        assert_eq!(Look::of("font-size:0px").sized, Some(false));
        assert_eq!(Look::of("font-size:14px").sized, Some(true));
        assert_eq!(Look::of("font:0/0 a").sized, Some(false));
        assert_eq!(Look::of("font:400 13px/1.5 Arial").sized, None);
    }

    #[test]
    fn what_is_seen_otherwise_than_it_stands_is_odd() {
        for style in ["text-decoration:line-through", "transform:rotate(180deg)", "position:absolute;top:3px"] {
            assert!(Look::of(style).odd && !Look::of(style).gone, "{style}");
        }
        assert!(!Look::of("text-decoration:none;transform:none;position:relative").odd);
        assert!(Look::of("padding-left:4px").apart && Look::of("padding:0 4px").apart && !Look::of("padding:0").apart);
        assert_eq!(Look::of("display:inline-block").display, Some(Display::Apart));
        assert_eq!(Look::of("display:block;margin:3px").display, Some(Display::Block));
    }

    #[test]
    fn colours_are_compared_and_unknown_ones_are_equal_to_nothing() {
        assert_eq!(Colour::of("#fff"), Colour::WHITE);
        assert_eq!(Colour::of("rgb(255, 255, 255)"), Colour::WHITE);
        assert_eq!(Colour::of("white"), Colour::of("#ffffff"));
        assert_ne!(Colour::of("url(x.png)"), Colour::of("url(x.png)"));
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
