//! `m365-audit completions` and `m365-audit man`: the files for shells and `man`, generated from the commands.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Command;

use super::usage;

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
pub fn man(command: Command, args: &ManArgs, out: &mut dyn Write) -> io::Result<()> {
    let mut command = for_pages(command);
    command.build();
    match &args.dir {
        None => page(command, "", out),
        Some(dir) => {
            fs::create_dir_all(dir)?;
            pages(command, "", dir)
        }
    }
}

/// Removes `help`, which has no page of its own, and the texts that [`usage::sections`] lays out for a page.
fn for_pages(command: Command) -> Command {
    let below: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    let command = command.disable_help_subcommand(true).after_help(None);
    below.into_iter().fold(command, |command, sub| command.mut_subcommand(sub, for_pages))
}

fn pages(command: Command, path: &str, dir: &Path) -> io::Result<()> {
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        pages(sub.clone(), format!("{path} {}", sub.get_name()).trim_start(), dir)?;
    }
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let mut text = Vec::new();
    page(command, path, &mut text)?;
    fs::write(dir.join(format!("{name}.1")), text)
}

fn page(command: Command, path: &str, out: &mut dyn Write) -> io::Result<()> {
    let (has_version, has_commands) = (command.get_version().is_some(), command.has_subcommands());
    let man = clap_mangen::Man::new(command);
    man.render_title(out)?;
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_description_section(out)?;
    man.render_options_section(out)?;
    if has_commands {
        man.render_subcommands_section(out)?;
    }
    usage::sections(path, out)?;
    if has_version { man.render_version_section(out) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::command_line;

    #[test]
    fn each_page_has_examples_files_and_the_environment_and_refers_to_pages_that_are_there() {
        let dir = tempfile::tempdir().unwrap();
        man(command_line(), &ManArgs { dir: Some(dir.path().to_owned()) }, &mut Vec::new()).unwrap();
        let mut pages = 0;
        for entry in fs::read_dir(dir.path()).unwrap() {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            for section in [".SH \"FILES\"", ".SH \"ENVIRONMENT\"", ".SH \"EXIT STATUS\""] {
                assert!(text.contains(section), "{section}: {text}");
            }
            let is_group = text.contains(".SH SUBCOMMANDS");
            assert!(text.contains(".SH EXAMPLES") || is_group, "{text}");
            for named in
                text.lines().filter_map(|line| line.strip_suffix("(1)")).filter(|name| name.starts_with("m365"))
            {
                let name = named.replace("\\-", "-");
                assert!(dir.path().join(format!("{name}.1")).exists(), "{name}(1) does not exist");
            }
            pages += 1;
        }
        assert!(pages > 25, "{pages} pages");
    }
}
