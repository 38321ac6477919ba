//! Renders the text parts of a mail as views: lines of the visible text.
//!
//! `view` has the types. `plain_text` renders text/plain, and `html` renders text/html. For HTML, `html_fast` parses
//! most mails, and `html_tokenizer` parses the rest. `html_lines` builds the lines. `html_element`, `css_visibility`
//! and `style_sheet` determine which text is hidden. `quote` marks quoted and forwarded text.

mod css_visibility;
mod html;
mod html_element;
mod html_fast;
mod html_lines;
mod html_tokenizer;
mod plain_text;
mod quote;
mod style_sheet;
mod view;

pub(crate) use css_visibility::lower;
pub use html::html_view;
pub(crate) use html_element::is_block;
pub(crate) use plain_text::plain_text_view;
#[cfg(test)]
pub(crate) use view::TOO_MANY_LINES;
pub(crate) use view::{HTML, PLAIN_TEXT, normalize_space};
pub use view::{LineKind, View, ViewLine};
