//! `completions` and `man`: print the shell completions and the manual pages, which packages install.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use clap::CommandFactory;

use super::args::Arguments;

pub(super) fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut text = Vec::new();
    let mut command = Arguments::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut text);
    Ok(std::io::stdout().lock().write_all(&text)?)
}

pub(super) fn man(out: Option<&Path>) -> anyhow::Result<()> {
    // clap_mangen writes no page for `help`, so the other pages must not refer to it.
    let command = Arguments::command().disable_help_subcommand(true);
    if let Some(folder) = out {
        return clap_mangen::generate_to(command, folder)
            .with_context(|| format!("cannot write into {}", folder.display()));
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    Ok(std::io::stdout().lock().write_all(&page)?)
}
