//! Properties of HTML elements, by name, and of an open element: whether its text is visible, altered or quoted.

use std::borrow::Cow;

use super::css_visibility::{Appearance, Colour, Display};
use super::html_fast::Attribute;

/// An open element, with the properties that its content inherits.
pub(crate) struct OpenElement<'a> {
    pub(crate) name: Cow<'a, str>,
    removed: bool,
    invisible: bool,
    without_font_size: bool,
    /// Whether visible text looks different from its characters, for example because it is struck out or reversed.
    pub(crate) odd: bool,
    pub(crate) quoted: bool,
    colour: Colour,
    background: Colour,
    pub(crate) flow: Flow,
    /// Whether the children of the element are laid out side by side.
    is_row: bool,
    /// Whether the element is not a block, and no text precedes it in its line.
    pub(crate) starts_line: bool,
    /// Whether the element changes the font size.
    pub(crate) resized: bool,
    /// Whether the search for an open paragraph, in `HtmlLines::close_implied`, ends at this element.
    pub(crate) is_edge: bool,
}

/// The context of an element when its start tag is found.
#[derive(Clone, Copy)]
pub(crate) struct ElementPosition {
    /// Whether mail programs use this element for quoted text.
    pub(crate) is_quote: bool,
    /// Whether no text precedes the element in its line.
    pub(crate) at_start: bool,
}

impl<'a> OpenElement<'a> {
    /// Opens an element inside `outer`. If `outer` is removed, `odd` or quoted, the new element is, too. `appearance` can
    /// override the visibility, the font size and the colours of `outer`.
    pub(crate) fn new(
        outer: Option<&OpenElement<'a>>,
        name: Cow<'a, str>,
        appearance: Appearance,
        flow: Flow,
        position: ElementPosition,
    ) -> OpenElement<'a> {
        // A link is blue unless a style changes its colour, so it does not inherit the colour of the text.
        let text_colour = if name == "a" { Colour::Unknown } else { outer.map_or(Colour::BLACK, |o| o.colour) };
        OpenElement {
            removed: outer.is_some_and(|o| o.removed) || appearance.removed || has_hidden_content(&name),
            invisible: appearance.visibility.map_or(outer.is_some_and(|o| o.invisible), |seen| !seen),
            without_font_size: appearance
                .has_font_size
                .map_or(outer.is_some_and(|o| o.without_font_size), |has_font_size| !has_font_size),
            odd: outer.is_some_and(|o| o.odd) || appearance.odd || is_altered(&name),
            quoted: outer.is_some_and(|o| o.quoted) || position.is_quote,
            colour: appearance.colour.unwrap_or(text_colour),
            background: appearance.background.unwrap_or(outer.map_or(Colour::WHITE, |o| o.background)),
            flow,
            is_row: appearance.is_row,
            starts_line: flow != Flow::Block && position.at_start,
            is_edge: matches!(&*name, "p" | "table" | "td" | "th" | "li" | "div" | "button"),
            resized: appearance.has_font_size.is_some() || matches!(&*name, "big" | "small"),
            name,
        }
    }

    /// Whether the text of the element is invisible.
    pub(crate) fn hides(&self) -> bool {
        self.removed || self.invisible || self.without_font_size || self.colour == self.background
    }
}

/// The layout of an element relative to its neighbours.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Inline,
    Apart,
    Block,
}

impl Flow {
    /// Returns the layout of an element inside `outer`, by the element's name and styles.
    pub(crate) fn of_child(outer: Option<&OpenElement<'_>>, name: &str, appearance: Appearance) -> Flow {
        let is_table_part = matches!(name, "table" | "tr" | "td" | "th" | "tbody" | "thead" | "tfoot");
        // A table keeps its rows and cells: the `display` of its parts is ignored.
        let display = if is_table_part { None } else { appearance.display };
        match display {
            Some(Display::Block) => Flow::Block,
            Some(Display::Apart) => Flow::Apart,
            None if is_block(name) => Flow::Block,
            None if appearance.apart || is_edged(name) => Flow::Apart,
            // The children of a flex or grid box are visibly separated.
            Some(Display::Inline) | None if outer.is_some_and(|o| o.is_row) => Flow::Apart,
            Some(Display::Inline) | None => Flow::Inline,
        }
    }
}

// The compiler turns `matches!` into a search by the length of the name. `contains` would compare each name of a list.

/// Whether an inline element is visibly separated from its neighbours.
fn is_edged(name: &str) -> bool {
    matches!(name, "img" | "input" | "button" | "meter" | "progress" | "q")
}

/// Whether the content of an element is not visible as text.
fn has_hidden_content(name: &str) -> bool {
    matches!(
        name,
        "style"
            | "script"
            | "title"
            | "template"
            | "iframe"
            | "audio"
            | "video"
            | "canvas"
            | "noembed"
            | "noframes"
            | "datalist"
    )
}

/// Whether the content of an element is visible to some readers only, or is struck out, raised, lowered, reversed or drawn.
fn is_altered(name: &str) -> bool {
    matches!(
        name,
        "noscript"
            | "textarea"
            | "select"
            | "svg"
            | "math"
            | "object"
            | "applet"
            | "s"
            | "strike"
            | "del"
            | "sup"
            | "sub"
            | "rt"
            | "bdo"
    )
}

/// Whether this is a formatting element. A browser opens a formatting element again after a misnested end tag (HTML's "adoption
/// agency algorithm").
pub(crate) fn is_formatting(name: &str) -> bool {
    matches!(
        name,
        "a" | "b" | "big" | "code" | "em" | "font" | "i" | "nobr" | "s" | "small" | "strike" | "strong" | "u"
    )
}

/// Whether an element has no content.
pub(crate) fn is_void(name: &str) -> bool {
    matches!(name, "area" | "base" | "col" | "embed" | "hr" | "img" | "input" | "link" | "meta" | "source" | "wbr")
}

/// Whether an element with this name starts a new line, unless a style changes that.
pub(crate) fn is_block(name: &str) -> bool {
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

/// Returns the value of the attribute `name`, if the element has it.
pub(crate) fn attribute<'a>(attributes: &'a [Attribute<'_>], name: &str) -> Option<&'a str> {
    attributes.iter().find(|a| a.name == name).map(|a| &*a.value)
}

/// Whether mail programs put quoted text into this element.
pub(crate) fn is_quote(name: &str, attributes: &[Attribute<'_>]) -> bool {
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
