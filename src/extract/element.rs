//! What is known of HTML's elements, and how one stands open: whether it is seen, how, and in whose words.

use std::borrow::Cow;

use super::plain::Attribute;
use super::visible::{Colour, Display, Look};

/// An open element, as far as it matters for what is inside.
pub(super) struct Open<'a> {
    pub(super) name: Cow<'a, str>,
    gone: bool,
    invisible: bool,
    unsized_: bool,
    /// Seen, and not as it stands in the text.
    pub(super) odd: bool,
    pub(super) quoted: bool,
    colour: Colour,
    background: Colour,
    pub(super) flow: Flow,
    /// What is directly inside stands in places of its own.
    spreads: bool,
    /// It begins its line.
    pub(super) leads: bool,
    /// Its letters have a size of their own.
    pub(super) resized: bool,
    /// A paragraph, or what none that is open outside of it is closed from: looked for at each block.
    pub(super) is_edge: bool,
}

/// Where an element stands.
#[derive(Clone, Copy)]
pub(super) struct Where {
    /// It is what a mail program puts around what it quotes.
    pub(super) quote: bool,
    /// Nothing stands before it in its line.
    pub(super) at_start: bool,
}

impl<'a> Open<'a> {
    /// An element inside another: what is gone, odd or quoted outside is so inside.
    pub(super) fn new(outer: Option<&Open<'a>>, name: Cow<'a, str>, look: Look, flow: Flow, place: Where) -> Open<'a> {
        // A link is blue unless somebody says otherwise.
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

    /// Nothing of it is seen.
    pub(super) fn hides(&self) -> bool {
        self.gone || self.invisible || self.unsized_ || self.colour == self.background
    }
}

/// How an element stands among its neighbours.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Inline,
    Apart,
    Block,
}

impl Flow {
    /// Of an element that is directly inside of `outer`.
    pub(super) fn of(outer: Option<&Open<'_>>, name: &str, look: Look) -> Flow {
        let table = matches!(name, "table" | "tr" | "td" | "th" | "tbody" | "thead" | "tfoot");
        match look.display.filter(|_| !table) {
            Some(Display::Block) => Flow::Block,
            Some(Display::Apart) => Flow::Apart,
            None if is_block(name) => Flow::Block,
            None if look.apart || PICTURES.contains(&name) => Flow::Apart,
            // In a row of boxes each has its own edge, whatever it is.
            Some(Display::Inline) | None if outer.is_some_and(|o| o.spreads) => Flow::Apart,
            Some(Display::Inline) | None => Flow::Inline,
        }
    }
}

/// Elements in the line that have an edge to be seen.
const PICTURES: [&str; 6] = ["img", "input", "button", "meter", "progress", "q"];

/// Elements whose content nobody sees as text.
const UNSEEN: [&str; 11] =
    ["style", "script", "title", "template", "iframe", "audio", "video", "canvas", "noembed", "noframes", "datalist"];

/// Elements whose content is seen by some, or struck out, raised, lowered, turned round, drawn.
const ODDLY_SEEN: [&str; 14] = [
    "noscript", "textarea", "select", "svg", "math", "object", "applet", "s", "strike", "del", "sup", "sub", "rt",
    "bdo",
];

/// Elements whose letters have a size of their own.
const RESIZED: [&str; 2] = ["big", "small"];

/// Elements that close where HTML reopens them (the "adoption agency").
pub(super) const FORMATTING: [&str; 13] =
    ["a", "b", "big", "code", "em", "font", "i", "nobr", "s", "small", "strike", "strong", "u"];

/// Elements that have no content.
pub(super) const VOID: [&str; 11] =
    ["area", "base", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"];

/// Elements that stand on lines of their own, unless a style says otherwise.
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

/// An attribute's value.
pub(super) fn attribute<'a>(attributes: &'a [Attribute<'_>], name: &str) -> Option<&'a str> {
    attributes.iter().find(|a| a.name == name).map(|a| &*a.value)
}

/// Where mail programs put what they quote.
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
