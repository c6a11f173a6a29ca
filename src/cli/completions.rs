//! `m365-audit completions` and `m365-audit man`: what a shell and `man` want to know, made from the commands as they
//! are.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Command;

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Arguments of `man`.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Write a page for every command into this directory instead of the first to standard output
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints the completions of `command`.
///
/// # Errors
/// Of writing.
pub fn completions(mut command: Command, args: &CompletionsArgs, out: &mut dyn Write) -> io::Result<()> {
    let name = command.get_name().to_owned();
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut text);
    out.write_all(&text)
}

/// Prints the page of `command`, or writes all pages into a directory.
///
/// # Errors
/// Of writing.
pub fn man(mut command: Command, args: &ManArgs, out: &mut dyn Write) -> io::Result<()> {
    command.build();
    match &args.dir {
        None => clap_mangen::Man::new(command).render(out),
        Some(dir) => {
            fs::create_dir_all(dir)?;
            pages(command, dir)
        }
    }
}

fn pages(command: Command, dir: &Path) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help" && !sub.is_hide_set()) {
        pages(sub.clone(), dir)?;
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    fs::write(dir.join(format!("{name}.1")), page)
}
