//! `m365-audit validate`: checks a configuration alone and reports all problems at once. Opens no connection, writes no
//! file.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::opened;
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, ConfigError, Fault, Problem, SOURCE_TYPE, SinkConfig};
use crate::hosts::fluent_bit::check::{self, ConfigReport};
use crate::hosts::fluent_bit::file::Finding;
use crate::hosts::net;
use crate::model::Actionable;

/// Arguments of `validate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file.
    #[arg(short, long, value_name = "FILE", required_unless_present = "fluent_bit", conflicts_with = "fluent_bit")]
    pub config: Option<PathBuf>,

    /// A configuration of Fluent Bit instead, YAML or classic, with the files it includes: the names and values of its
    /// input `m365_audit`, and what a crash could cost.
    #[arg(long, value_name = "FILE")]
    pub fluent_bit: Option<PathBuf>,
}

/// Why `validate` failed.
#[derive(Debug, thiserror::Error)]
pub enum ValidateError {
    /// The configuration has problems.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Fluent Bit's configuration has problems.
    #[error("{0}")]
    FluentBit(Problems),
    /// Fluent Bit's configuration cannot be opened.
    #[error("config-invalid: cannot open `{}`: {source}\n  hint: name Fluent Bit's main configuration file, such as `/etc/fluent-bit/fluent-bit.yaml`", .path.display())]
    Unopened {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The answer could not be written.
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
}

/// All problems of Fluent Bit's configuration. Never empty.
#[derive(Debug)]
pub struct Problems(Vec<Finding>);

impl fmt::Display for Problems {
    /// The first with its hint, how many more there are, then each of them with its own; as a [`ConfigError`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = match self.0.len() {
            ..=1 => None,
            2 => Some("1 more problem below".to_owned()),
            n => Some(format!("{} more problems below", n - 1)),
        };
        for (number, finding) in self.0.iter().enumerate() {
            let (start, more) = if number == 0 { ("config-invalid: ", more.clone()) } else { ("\n", None) };
            write!(f, "{start}{finding}")?;
            let hints: Vec<String> = finding.hint.clone().into_iter().chain(more).collect();
            if !hints.is_empty() {
                write!(f, "\n  hint: {}", hints.join("; "))?;
            }
        }
        Ok(())
    }
}

/// Reads the file and says what it found: warnings to `notes` (standard error), the summary to `out`.
///
/// # Errors
/// All problems of the file.
pub fn validate(args: &Args, out: &mut dyn Write, notes: &mut dyn Write) -> Result<(), ValidateError> {
    match (&args.config, &args.fluent_bit) {
        (_, Some(path)) => fluent_bit(path, out, notes),
        (Some(path), None) => own(path, out, notes),
        // The command line has one of them.
        (None, None) => Ok(()),
    }
}

fn own(path: &Path, out: &mut dyn Write, notes: &mut dyn Write) -> Result<(), ValidateError> {
    let config = Config::load(path)?;
    for warning in config.warnings() {
        warn(notes, &warning, warning.hint.as_deref())?;
    }
    let mut problems = unusable_files(&config);
    problems.extend(unusable_cluster(&config));
    problems.extend(misplaced(&config));
    if !problems.is_empty() {
        return Err(ConfigError { path: Some(path.to_owned()), problems }.into());
    }
    let (sources, sinks) = (count(config.sources.len(), "source"), count(config.sinks.len(), "sink"));
    writeln!(out, "{}: valid, {sources}, {sinks}", path.display())?;
    Ok(())
}

/// The files of the sinks' TLS that can be read and not be used, or not at this time.
fn unusable_files(config: &Config) -> Vec<Problem> {
    let clock: Arc<dyn Clock> = SystemClock::new();
    let unusable = |(name, entry): (&String, &crate::config::SinkEntry)| {
        let (files, to) = entry.sink.tls()?;
        let (key, error) = net::check(files, &to, &clock).err()?;
        Some(Problem {
            key: format!("sinks.{name}.{key}"),
            line: None,
            file: None,
            fault: Fault::Invalid,
            value: None,
            expected: format!("a file that can be used; {error}"),
            hint: Some(error.hint()),
        })
    };
    config.sinks.iter().filter_map(unusable).collect()
}

/// What is wrong with the database of a cluster, as far as that can be told without asking it.
fn unusable_cluster(config: &Config) -> Option<Problem> {
    let problem = opened::endpoint(config.cluster.as_ref()?).err()?;
    let expected = format!("a database that can be used; it {}", problem.what);
    Some(Problem {
        key: format!("cluster.{}", problem.key),
        line: None,
        file: None,
        fault: Fault::Invalid,
        value: None,
        expected,
        hint: Some(problem.hint),
    })
}

/// Folders where files belong, and files where folders do: what stands there already cannot become the other.
fn misplaced(config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut note = |key: String, path: &Path, expected: &str, hint: &str| {
        problems.push(Problem {
            key,
            line: None,
            file: None,
            fault: Fault::Invalid,
            value: Some(path.display().to_string()),
            expected: expected.to_owned(),
            hint: Some(hint.to_owned()),
        });
    };
    if config.data_dir.exists() && !config.data_dir.is_dir() {
        note(
            "data_dir".to_owned(),
            &config.data_dir,
            "a folder; this is a file",
            "name a folder that this program has for itself",
        );
    }
    for (name, entry) in &config.sinks {
        let SinkConfig::File(file) = &entry.sink else { continue };
        let key = format!("sinks.{name}.path");
        if file.path.is_dir() {
            let hint = format!("name the file in it: `{}`", file.path.join("audit.ndjson").display());
            note(key, &file.path, "a file; this is a folder", &hint);
        } else if let Some(above) = file.path.ancestors().skip(1).find(|above| above.exists() && !above.is_dir()) {
            let hint = format!("`{}` is a file: name another folder", above.display());
            note(key, &file.path, "a file in a folder", &hint);
        }
    }
    problems
}

fn fluent_bit(path: &Path, out: &mut dyn Write, notes: &mut dyn Write) -> Result<(), ValidateError> {
    let environment = |name: &str| std::env::var(name).ok();
    let report = check::check(path, &environment);
    let ConfigReport { problems, warnings, outputs } =
        report.map_err(|source| ValidateError::Unopened { path: path.to_owned(), source })?;
    for warning in &warnings {
        warn(notes, warning, warning.hint.as_deref())?;
    }
    if !problems.is_empty() {
        return Err(ValidateError::FluentBit(Problems(problems)));
    }
    writeln!(out, "{}: valid, 1 input `{SOURCE_TYPE}`, {}", path.display(), count(outputs, "output"))?;
    Ok(())
}

fn warn(notes: &mut dyn Write, warning: &dyn fmt::Display, hint: Option<&str>) -> io::Result<()> {
    writeln!(notes, "warning: {warning}")?;
    hint.map_or(Ok(()), |hint| writeln!(notes, "  hint: {hint}"))
}

fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
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
        validate(&Args { config: Some(path), fluent_bit: None }, &mut out, &mut notes).unwrap();
        assert!(String::from_utf8(out).unwrap().ends_with("agent.toml: valid, 1 source, 1 sink\n"));
        assert!(String::from_utf8(notes).unwrap().starts_with("warning: `sources.a.client_id`: expected a GUID\n"));
    }
}
