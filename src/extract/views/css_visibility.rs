//! Parses CSS declarations, and computes their effect on visibility and layout.

use std::borrow::Cow;

use memchr::memchr;

/// The effect of a declaration block on visibility and layout.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Appearance {
    /// Whether the element is removed with all its content, as by `display: none`.
    pub(crate) removed: bool,
    /// Whether visible text looks different from its characters: struck through, reversed or moved.
    pub(crate) odd: bool,
    /// Whether a `visibility` declaration shows the element. An inner element can have another declaration.
    pub(crate) visibility: Option<bool>,
    /// Whether a font declaration makes the text large enough to read. An inner element can have another declaration.
    pub(crate) has_font_size: Option<bool>,
    /// The layout, if a `display` declaration sets it.
    pub(crate) display: Option<Display>,
    /// Whether the element has space or a border around it, or is raised or lowered, so that its text does not touch the text of
    /// its neighbours.
    pub(crate) apart: bool,
    /// Whether the children of the element are laid out side by side.
    pub(crate) is_row: bool,
    /// The colours of text and background, if declarations set them.
    pub(crate) colour: Option<Colour>,
    pub(crate) background: Option<Colour>,
}

/// The layout of an element relative to its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Display {
    /// Inline.
    Inline,
    /// Inline, but visibly separated from its neighbours.
    Apart,
    /// A block.
    Block,
}

impl Display {
    /// Parses a value of `display`. Returns `None` for `none`, which removes the element.
    fn parse(value: &str) -> Option<Display> {
        match value {
            "none" => None,
            "inline" | "contents" => Some(Display::Inline),
            "block" | "flex" | "grid" | "table" | "list-item" | "flow-root" | "table-row" => Some(Display::Block),
            _ => Some(Display::Apart),
        }
    }
}

/// A colour as 0xRRGGBB. An image, or a colour in a notation that [`Colour::parse`] does not support, is `Unknown`. An unknown
/// colour differs from every colour, even from another unknown colour.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Colour {
    Known(u32),
    Unknown,
}

impl PartialEq for Colour {
    fn eq(&self, other: &Self) -> bool {
        matches!((self, other), (Colour::Known(a), Colour::Known(b)) if a == b)
    }
}

impl Colour {
    pub(crate) const BLACK: Colour = Colour::Known(0);
    pub(crate) const WHITE: Colour = Colour::Known(0x00ff_ffff);

    /// Parses `#fff`, `#ffffff`, `white`, `black`, `rgb(1, 2, 3)`.
    pub(crate) fn parse(text: &str) -> Colour {
        let text = text.trim();
        let number = |digits: &str| u32::from_str_radix(digits, 16).ok();
        let rgb = match text.strip_prefix('#') {
            Some(short) if short.len() == 3 => number(&short.chars().flat_map(|c| [c, c]).collect::<String>()),
            Some(long) if long.len() == 6 => number(long),
            Some(_) => None,
            None if text == "white" => Some(0x00ff_ffff),
            None if text == "black" => Some(0),
            None => text.strip_prefix("rgb(").and_then(|t| t.strip_suffix(')')).and_then(|inner| {
                let parts: Option<Vec<u32>> =
                    inner.split([',', ' ']).filter(|p| !p.is_empty()).map(|p| p.parse().ok()).collect();
                parts.filter(|p| p.len() == 3).map(|p| p.iter().fold(0, |rgb, part| rgb << 8 | (*part).min(255)))
            }),
        };
        rgb.map_or(Colour::Unknown, Colour::Known)
    }

    /// Whether a colour is `transparent`, or has an alpha near zero.
    fn is_transparent(text: &str) -> bool {
        let hex = text.strip_prefix('#').unwrap_or_default();
        let alpha = text.trim_end_matches(')').rsplit([',', '/']).next().unwrap_or_default().trim();
        text == "transparent"
            || (hex.len() == 4 && hex.ends_with('0'))
            || (hex.len() == 8 && hex.ends_with("00"))
            || ((text.starts_with("rgba(") || text.starts_with("hsla(") || text.contains('/'))
                && alpha.trim_end_matches('%').parse::<f32>().is_ok_and(|alpha| alpha < 0.05))
    }
}

/// Properties that are evaluated together, after all declarations were parsed. For example, an element without size hides its
/// text only if it is also clipped.
#[derive(Default)]
struct CombinedHiding {
    no_size: bool,
    clipped: bool,
    outside: bool,
}

impl Appearance {
    /// Parses CSS declarations: `name: value; …`. A declaration that removes text is applied even if a later one overrides it,
    /// because a mail with both declarations may mislead its reader. For `visibility` and the font size, only the last
    /// declaration is applied.
    pub(crate) fn parse(declarations: &str) -> Appearance {
        let mut appearance = Appearance::default();
        // An escape in a style is an attempt to evade this parser, so the element is removed.
        if memchr(b'\\', declarations.as_bytes()).is_some() {
            return Appearance { removed: true, ..appearance };
        }
        let css = without_comments(declarations);
        let css = lower(&css);
        let mut combined = CombinedHiding::default();
        for (name, value) in css.split(';').filter_map(|d| d.split_once(':')) {
            // `!important` can contain white space.
            let value = value.split_once('!').map_or(value, |(value, _)| value);
            appearance.apply(name.trim(), value.trim(), &mut combined);
        }
        appearance.removed |= (combined.no_size && combined.clipped) || combined.outside;
        appearance
    }

    fn apply(&mut self, name: &str, value: &str, combined: &mut CombinedHiding) {
        match name {
            "display" => {
                self.is_row |= matches!(value, "flex" | "grid" | "inline-flex" | "inline-grid");
                self.removed |= value == "none";
                self.display = Display::parse(value).or(self.display);
            }
            "visibility" => self.visibility = Some(!matches!(value, "hidden" | "collapse")),
            "content-visibility" if value == "hidden" => self.removed = true,
            "opacity" | "zoom" if is_zero(value) => self.removed = true,
            "filter" if value.contains("opacity(0") => self.removed = true,
            "font-size" => self.has_font_size = Some(!is_zero(value)),
            "font" if value.split([' ', '/']).any(is_zero) => self.has_font_size = Some(false),
            "mso-hide" if value == "all" => self.removed = true,
            "color" | "-webkit-text-fill-color" if Colour::is_transparent(value) => self.removed = true,
            "color" => self.colour = Some(Colour::parse(value)),
            "background" | "background-color" if Colour::is_transparent(value) || value == "none" => {}
            "background" | "background-color" => self.background = Some(Colour::parse(value)),
            "background-image" if value != "none" => self.background = Some(Colour::Unknown),
            "max-height" | "height" | "max-width" | "width" if is_zero(value) || value == "1px" => {
                combined.no_size = true
            }
            "overflow" | "overflow-x" | "overflow-y" if matches!(value, "hidden" | "clip") => combined.clipped = true,
            "text-indent" | "left" | "top" | "right" | "bottom" | "margin-left" | "margin-top" | "margin"
                if is_far_negative(value) =>
            {
                combined.outside = true;
            }
            "clip" if value != "auto" => self.removed = true,
            "clip-path" | "mask" if value != "none" => self.removed = true,
            "transform" if value.contains("scale(0") || value.contains("scale(-0") => self.removed = true,
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

    /// Returns the effect of a rule that may or may not apply to an element, because its selector has conditions that are not
    /// checked. The colours in the result are unknown, and the rule's `display`, `apart` and `odd` are ignored.
    pub(crate) fn for_some_elements(self) -> Appearance {
        let unknown = |colour: Option<Colour>| colour.map(|_| Colour::Unknown);
        let (colour, background) = (unknown(self.colour), unknown(self.background));
        Appearance { display: None, apart: false, odd: false, colour, background, ..self }
    }

    /// Combines two effects on one element. Where only one value can apply, such as one colour, the value of `other` is used.
    pub(crate) fn combine(self, other: Appearance) -> Appearance {
        Appearance {
            removed: self.removed || other.removed,
            odd: self.odd || other.odd,
            visibility: other.visibility.or(self.visibility),
            has_font_size: other.has_font_size.or(self.has_font_size),
            display: other.display.or(self.display),
            apart: self.apart || other.apart,
            is_row: self.is_row || other.is_row,
            colour: other.colour.or(self.colour),
            background: other.background.or(self.background),
        }
    }
}

/// Returns the text in lower case, without a copy if the text has no capitals.
#[inline]
pub(crate) fn lower(text: &str) -> Cow<'_, str> {
    if text.bytes().any(|b| b.is_ascii_uppercase()) { text.to_ascii_lowercase().into() } else { text.into() }
}

pub(crate) fn without_comments(text: &str) -> Cow<'_, str> {
    if memchr(b'/', text.as_bytes()).is_none() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hiding_styles_are_recognised() {
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
            assert!(Appearance::parse(style).removed, "{style}");
        }
        for style in ["color:#fff", "display:block", "height:0", "opacity:0.9", "line-height:0", "max-width:600px"] {
            assert!(!Appearance::parse(style).removed, "{style}");
        }
        assert_eq!(Appearance::parse("font-size:0px").has_font_size, Some(false));
        assert_eq!(Appearance::parse("font-size:14px").has_font_size, Some(true));
        assert_eq!(Appearance::parse("font:0/0 a").has_font_size, Some(false));
        assert_eq!(Appearance::parse("font:400 13px/1.5 Arial").has_font_size, None);
    }

    #[test]
    fn altered_text_is_odd() {
        for style in ["text-decoration:line-through", "transform:rotate(180deg)", "position:absolute;top:3px"] {
            assert!(Appearance::parse(style).odd && !Appearance::parse(style).removed, "{style}");
        }
        assert!(!Appearance::parse("text-decoration:none;transform:none;position:relative").odd);
        assert!(
            Appearance::parse("padding-left:4px").apart
                && Appearance::parse("padding:0 4px").apart
                && !Appearance::parse("padding:0").apart
        );
        assert_eq!(Appearance::parse("display:inline-block").display, Some(Display::Apart));
        assert_eq!(Appearance::parse("display:block;margin:3px").display, Some(Display::Block));
    }

    #[test]
    fn unknown_colours_are_equal_to_no_colour() {
        assert_eq!(Colour::parse("#fff"), Colour::WHITE);
        assert_eq!(Colour::parse("rgb(255, 255, 255)"), Colour::WHITE);
        assert_eq!(Colour::parse("white"), Colour::parse("#ffffff"));
        assert_ne!(Colour::parse("url(x.png)"), Colour::parse("url(x.png)"));
    }
}
