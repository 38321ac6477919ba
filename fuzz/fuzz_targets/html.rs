//! Renders any HTML. The visible text is not longer than the HTML, apart from entities and marks.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|html: &str| {
    let view = resmic_mailhook::extract::html_view(html);
    let shown: usize = view.lines.iter().flat_map(|line| &line.cells).map(String::len).sum();
    // A short entity can mean a character of three bytes. Marks are added to text that is struck out, superscript or reversed.
    assert!(shown <= 8 * html.len() + 8, "{shown} bytes from {}", html.len());
});
