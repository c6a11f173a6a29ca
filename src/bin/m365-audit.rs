//! The `m365-audit` command: parses arguments, calls a command, prints its error, chooses the exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    m365_audit::cli::main(std::env::args_os()).into()
}
