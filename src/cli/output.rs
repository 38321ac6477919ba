//! Output: JSON Lines for programs, tables for people, messages on standard error.

use std::io::{self, IsTerminal, Write};

use comfy_table::presets;
use comfy_table::{ContentArrangement, Table};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

/// Prints a line of data to standard output.
pub(super) fn line(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.write_all(b"\n")?)
}

/// Prints an object as one line of JSON.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string(value)?)
}

/// Prints a message for a person to standard error.
pub(super) fn message(text: &str) {
    // If standard error is closed, the program cannot report this error anywhere.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Whether the cause of the error is a closed pipe, as with `| head`. A closed pipe is not a failure.
pub(super) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|e| e.downcast_ref::<io::Error>()).any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Whether the reader of standard output has closed the pipe. The check writes nothing to the pipe.
pub(super) fn is_closed() -> bool {
    let out = io::stdout();
    // poll(2) reports ERR, HUP and NVAL even if they were not requested.
    let mut fds = [PollFd::new(&out, PollFlags::empty())];
    let polled = poll(&mut fds, Some(&Timespec::default())).is_ok();
    polled && fds.iter().any(|out| out.revents().intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL))
}

/// Ignores a closed pipe, for commands that finish their work without a reader, and whose exit code shows the result.
pub(super) fn ignore_closed_pipe(printed: anyhow::Result<()>) -> anyhow::Result<()> {
    match printed {
        Err(error) if !is_closed_pipe(&error) => Err(error),
        _ => Ok(()),
    }
}

/// The text of an error with its causes. Some errors contain the text of their cause, which is then not repeated.
pub(super) fn with_causes(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text {
        text if text.is_empty() => cause,
        text if text.contains(&cause) => text,
        text => format!("{text}: {cause}"),
    })
}

/// A table with these columns, at most as wide as the terminal.
pub(super) fn table(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_header(columns);
    table
}

/// The most rows that a table on a terminal has without --limit.
pub(super) const NEWEST: u32 = 50;

/// The most rows that a list prints: the value of --limit, else [`NEWEST`] for a table on a terminal, else all rows (`None`).
pub(super) fn limit(requested: Option<u32>, json: bool) -> Option<u32> {
    requested.or((!json && io::stdout().is_terminal()).then_some(NEWEST))
}

/// Reports that older rows were left out, unless --limit was given.
pub(super) fn report_left_out(requested: Option<u32>, left_out: bool) {
    if left_out && requested.is_none() {
        message(&format!("these are the newest {NEWEST}; --limit N shows more, --json shows all"));
    }
}

/// The most rows in one part of a [`LongTable`]. A wide cell changes the column widths of its part only.
const PART: usize = 1_000;

/// A table of many rows. The rows are printed in parts, so that the memory of the table does not grow with the number of rows.
pub(super) struct LongTable {
    part: Table,
    rows: usize,
}

impl LongTable {
    pub(super) fn new(columns: &[&str]) -> Self {
        LongTable { part: table(columns), rows: 0 }
    }

    pub(super) fn add_row<const N: usize>(&mut self, cells: [String; N]) -> anyhow::Result<()> {
        self.part.add_row(cells);
        self.rows += 1;
        if self.rows < PART {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.part, unnamed_table());
        self.rows = 0;
        line(&full.trim_fmt())
    }

    /// Prints the last part of the table.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        if self.part.is_empty() && self.part.header().is_none() {
            return Ok(());
        }
        line(&self.part.trim_fmt())
    }
}

/// A table without a header.
fn unnamed_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table
}

/// A progress bar on standard error, if that is a terminal.
pub(super) fn progress(template: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// The text of a cell; `-` for an absent value.
pub(super) fn cell(value: Option<&str>) -> String {
    value.map_or_else(|| "-".into(), |v| crate::model::printable(v, 200))
}
