//! The program. Everything is in the library.

use std::process::ExitCode;

use resmic_mailhook::cli;

fn main() -> ExitCode {
    cli::main()
}
