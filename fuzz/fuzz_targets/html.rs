//! Any HTML → what a person sees of it, which is never more than there is.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|html: &str| {
    let view = resmic_mailhook::extract::html_view(html);
    let shown: usize = view.lines.iter().flat_map(|line| &line.cells).map(String::len).sum();
    // An entity of two letters may stand for a character of three bytes; oddly seen words are marked.
    assert!(shown <= 8 * html.len() + 8, "{shown} bytes from {}", html.len());
});
