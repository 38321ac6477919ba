//! Printing: JSON Lines for programs, tables for people.

use std::io::{self, Write};

use comfy_table::presets;
use comfy_table::{ContentArrangement, Table};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

/// A line of data.
pub(super) fn line(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.write_all(b"\n")?)
}

/// An object on a line of its own.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string(value)?)
}

/// Something said to a person, beside the data.
pub(super) fn say(text: &str) {
    // If nobody listens there is nothing to do about it.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Whether the reader of our output has gone: `| head` is not a failure.
pub(super) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|e| e.downcast_ref::<io::Error>()).any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Whether the reader of our output has gone, for whoever has nothing to write just now.
pub(super) fn is_unheard() -> bool {
    let out = io::stdout();
    // These are told unasked.
    let mut asked = [PollFd::new(&out, PollFlags::empty())];
    let answered = poll(&mut asked, Some(&Timespec::default())).is_ok();
    answered && asked.iter().any(|out| out.revents().intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL))
}

/// What was printed beside a work that goes on though nobody listens any more, and whose exit code says how it went.
pub(super) fn unheard(printed: anyhow::Result<()>) -> anyhow::Result<()> {
    printed.or_else(|error| if is_closed_pipe(&error) { Ok(()) } else { Err(error) })
}

/// An error with its causes, each once: some say their cause themselves.
pub(super) fn whole(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text {
        text if text.is_empty() => cause,
        text if text.contains(&cause) => text,
        text => format!("{text}: {cause}"),
    })
}

/// A table with these columns, as wide as the terminal.
pub(super) fn table(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_header(columns);
    table
}

/// A cell for what may be absent.
pub(super) fn cell(value: Option<&str>) -> String {
    value.map_or_else(|| "-".into(), |v| crate::model::printable(v, 200))
}
