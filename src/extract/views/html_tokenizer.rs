//! Parses any HTML through html5ever's tokenizer. This parser is slower than `html_fast`, but it accepts any text.

use std::cell::RefCell;

use html5ever::tendril::StrTendril;
use html5ever::tokenizer::states::{Rawtext, Rcdata, ScriptData};
use html5ever::tokenizer::{BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts};

use super::html_fast::{Attribute, HtmlSink};

/// Feeds HTML to a sink, and returns the sink.
pub(crate) fn tokenize<'a, S: HtmlSink<'a>>(html: &str, sink: S) -> S {
    let tokenizer = Tokenizer::new(TokenizerSink(RefCell::new(sink)), TokenizerOpts::default());
    let input = BufferQueue::default();
    input.push_back(StrTendril::from(html));
    let _ = tokenizer.feed(&input);
    tokenizer.end();
    tokenizer.sink.0.into_inner()
}

struct TokenizerSink<S>(RefCell<S>);

impl<'a, S: HtmlSink<'a>> TokenSink for TokenizerSink<S> {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        let mut sink = self.0.borrow_mut();
        match token {
            // `HtmlLines` returns `None` if its result depends on how the text is split. The pieces of html5ever are always
            // accepted, so `None` is ignored.
            Token::CharacterTokens(text) => sink.on_text(&text).unwrap_or(()),
            Token::TagToken(tag) if tag.kind == TagKind::EndTag => sink.on_end_tag(&tag.name),
            Token::TagToken(tag) => {
                let attribute = |a: &html5ever::Attribute| Attribute {
                    name: a.name.local.to_string().into(),
                    value: a.value.to_string().into(),
                };
                let attributes: Vec<_> = tag.attrs.iter().map(attribute).collect();
                sink.on_start_tag(tag.name.to_string().into(), &attributes);
                return raw_text_state(&tag).unwrap_or(TokenSinkResult::Continue);
            }
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

/// The tokenizer's state for the content of an element with raw text. The tokenizer does not set this state itself.
fn raw_text_state<H>(tag: &Tag) -> Option<TokenSinkResult<H>> {
    match &*tag.name {
        "style" | "xmp" | "iframe" | "noembed" | "noframes" => Some(TokenSinkResult::RawData(Rawtext)),
        "script" => Some(TokenSinkResult::RawData(ScriptData)),
        "title" | "textarea" => Some(TokenSinkResult::RawData(Rcdata)),
        _ => None,
    }
}
