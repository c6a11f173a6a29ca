//! `m365-audit validate`: the configuration alone, all problems at once. Opens no connection, writes no file.

use std::io::{self, Write};
use std::path::PathBuf;

use crate::config::{Config, ConfigError};

/// Arguments of `validate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file.
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Why `validate` failed.
#[derive(Debug, thiserror::Error)]
pub enum ValidateError {
    /// The configuration has problems.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The answer could not be written.
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
}

/// Reads the file and says what it found: warnings to `notes` (standard error), the summary to `out`.
///
/// # Errors
/// All problems of the file.
pub fn validate(args: &Args, out: &mut dyn Write, notes: &mut dyn Write) -> Result<(), ValidateError> {
    let config = Config::load(&args.config)?;
    for warning in config.warnings() {
        writeln!(notes, "warning: {warning}")?;
        if let Some(hint) = &warning.hint {
            writeln!(notes, "  hint: {hint}")?;
        }
    }
    let count = |n: usize, what: &str| if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") };
    let sources = count(config.sources.len(), "source");
    let sinks = count(config.sinks.len(), "sink");
    writeln!(out, "{}: valid, {sources}, {sinks}", args.config.display())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_valid_file_is_summed_up_and_its_warnings_go_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        let text = "[sources.a]\ntype = \"m365_audit\"\ntenant_id = \"00000000-1111-2222-3333-444444444444\"\n\
                    client_id = \"app\"\nclient_secret = \"x\"\n[sinks.out]\ntype = \"stdout\"\ninputs = [\"a\"]\n";
        std::fs::write(&path, text).unwrap();
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        validate(&Args { config: path }, &mut out, &mut notes).unwrap();
        assert!(String::from_utf8(out).unwrap().ends_with("agent.toml: valid, 1 source, 1 sink\n"));
        assert!(String::from_utf8(notes).unwrap().starts_with("warning: `sources.a.client_id`: expected a GUID\n"));
    }
}
