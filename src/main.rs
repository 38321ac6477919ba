//! The program. All code is in the library crate.

use std::process::ExitCode;

use resmic_mailhook::cli;

fn main() -> ExitCode {
    cli::main()
}
