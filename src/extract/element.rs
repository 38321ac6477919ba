//! Properties of HTML elements, and the state of an open one: visible, odd, quoted.

use std::borrow::Cow;

use super::plain::Attribute;
use super::visible::{Colour, Display, Look};

/// An open element, with the properties that its content inherits.
pub(super) struct Open<'a> {
    pub(super) name: Cow<'a, str>,
    gone: bool,
    invisible: bool,
    unsized_: bool,
    /// Visible, but different from its text.
    pub(super) odd: bool,
    pub(super) quoted: bool,
    colour: Colour,
    background: Colour,
    pub(super) flow: Flow,
    /// Its children are laid out side by side.
    spreads: bool,
    /// It starts its line.
    pub(super) leads: bool,
    /// It changes the font size.
    pub(super) resized: bool,
    /// Whether a search for an open paragraph ends here, at each block.
    pub(super) is_edge: bool,
}

/// The position of an element.
#[derive(Clone, Copy)]
pub(super) struct Where {
    /// A mail program's element for quoted text.
    pub(super) quote: bool,
    /// No text precedes it in its line.
    pub(super) at_start: bool,
}

impl<'a> Open<'a> {
    /// Opens an element inside another. It inherits hidden, odd and quoted.
    pub(super) fn new(outer: Option<&Open<'a>>, name: Cow<'a, str>, look: Look, flow: Flow, place: Where) -> Open<'a> {
        // A link is blue unless a style changes it.
        let ink = if name == "a" { Colour::Unknown } else { outer.map_or(Colour::BLACK, |o| o.colour) };
        Open {
            gone: outer.is_some_and(|o| o.gone) || look.gone || UNSEEN.contains(&&*name),
            invisible: look.visibility.map_or(outer.is_some_and(|o| o.invisible), |seen| !seen),
            unsized_: look.sized.map_or(outer.is_some_and(|o| o.unsized_), |sized| !sized),
            odd: outer.is_some_and(|o| o.odd) || look.odd || ODDLY_SEEN.contains(&&*name),
            quoted: outer.is_some_and(|o| o.quoted) || place.quote,
            colour: look.colour.unwrap_or(ink),
            background: look.background.unwrap_or(outer.map_or(Colour::WHITE, |o| o.background)),
            flow,
            spreads: look.spreads,
            leads: flow != Flow::Block && place.at_start,
            is_edge: matches!(&*name, "p" | "table" | "td" | "th" | "li" | "div" | "button"),
            resized: look.sized.is_some() || RESIZED.contains(&&*name),
            name,
        }
    }

    /// Whether its text is invisible.
    pub(super) fn hides(&self) -> bool {
        self.gone || self.invisible || self.unsized_ || self.colour == self.background
    }
}

/// The layout of an element relative to its neighbours.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Inline,
    Apart,
    Block,
}

impl Flow {
    /// The layout of a child of `outer`.
    pub(super) fn of(outer: Option<&Open<'_>>, name: &str, look: Look) -> Flow {
        let table = matches!(name, "table" | "tr" | "td" | "th" | "tbody" | "thead" | "tfoot");
        match look.display.filter(|_| !table) {
            Some(Display::Block) => Flow::Block,
            Some(Display::Apart) => Flow::Apart,
            None if is_block(name) => Flow::Block,
            None if look.apart || PICTURES.contains(&name) => Flow::Apart,
            // Every child of a flex or grid box has an edge.
            Some(Display::Inline) | None if outer.is_some_and(|o| o.spreads) => Flow::Apart,
            Some(Display::Inline) | None => Flow::Inline,
        }
    }
}

/// Inline elements with a visible edge.
const PICTURES: [&str; 6] = ["img", "input", "button", "meter", "progress", "q"];

/// Elements whose content is not visible as text.
const UNSEEN: [&str; 11] =
    ["style", "script", "title", "template", "iframe", "audio", "video", "canvas", "noembed", "noframes", "datalist"];

/// Elements whose content is visible to some readers only, or is struck out, raised, lowered, reversed or drawn.
const ODDLY_SEEN: [&str; 14] = [
    "noscript", "textarea", "select", "svg", "math", "object", "applet", "s", "strike", "del", "sup", "sub", "rt",
    "bdo",
];

/// Elements that change the font size.
const RESIZED: [&str; 2] = ["big", "small"];

/// Formatting elements, which HTML opens again after a misnested end tag (the "adoption agency").
pub(super) const FORMATTING: [&str; 13] =
    ["a", "b", "big", "code", "em", "font", "i", "nobr", "s", "small", "strike", "strong", "u"];

/// Elements without content.
pub(super) const VOID: [&str; 11] =
    ["area", "base", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"];

/// Elements that start a new line, unless a style changes that.
pub(super) fn is_block(name: &str) -> bool {
    matches!(
        name,
        "address"
            | "article"
            | "aside"
            | "blockquote"
            | "body"
            | "center"
            | "dd"
            | "details"
            | "dialog"
            | "dir"
            | "div"
            | "dl"
            | "dt"
            | "fieldset"
            | "figcaption"
            | "figure"
            | "footer"
            | "form"
            | "h1"
            | "h2"
            | "h3"
            | "h4"
            | "h5"
            | "h6"
            | "header"
            | "hr"
            | "html"
            | "legend"
            | "li"
            | "main"
            | "menu"
            | "nav"
            | "ol"
            | "p"
            | "pre"
            | "section"
            | "summary"
            | "table"
            | "tbody"
            | "tfoot"
            | "thead"
            | "tr"
            | "ul"
            | "caption"
            | "br"
            | "optgroup"
    )
}

/// The value of an attribute.
pub(super) fn attribute<'a>(attributes: &'a [Attribute<'_>], name: &str) -> Option<&'a str> {
    attributes.iter().find(|a| a.name == name).map(|a| &*a.value)
}

/// Whether mail programs put quoted text into this element.
pub(super) fn is_quote(name: &str, attributes: &[Attribute<'_>]) -> bool {
    let has = |value: &str, words: &[&str]| {
        value.split_ascii_whitespace().any(|w| words.iter().any(|word| w.eq_ignore_ascii_case(word)))
    };
    name == "blockquote"
        || attributes.iter().any(|a| match &*a.name {
            "class" => {
                has(&a.value, &["gmail_quote", "gmail_attr", "yahoo_quoted", "moz-cite-prefix", "OutlookMessageHeader"])
            }
            "id" => has(&a.value, &["divRplyFwdMsg", "appendonsend", "mail-editor-reference-message-container"]),
            "type" => has(&a.value, &["cite"]),
            _ => false,
        })
}
