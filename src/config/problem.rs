//! The problems of a configuration, and how they are reported.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use url::Url;

use super::secret::MASK;
use crate::model::Actionable;

/// What kind of problem it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// A required key is missing.
    Missing,
    /// The key is unknown.
    Unknown,
    /// The value cannot be used.
    Invalid,
    /// The file it names cannot be read now. If only one tenant of many is affected, the others still run.
    File,
    /// No sink reads this source.
    Unread,
    /// Two files declare it.
    Twice,
    /// A template that no file declares.
    Undeclared,
    /// The text is not TOML.
    Syntax,
    /// The file cannot be read.
    Unreadable,
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Problem {
    /// The full key: `sources.contoso.tenant_id`; empty for the file as a whole.
    pub key: String,
    /// Its line, from 1; `None` for a missing key or one that did not come from a text.
    pub line: Option<usize>,
    /// The file of `tenants_dir` that contains it; `None` for the configuration itself.
    pub file: Option<PathBuf>,
    /// What kind of problem it is.
    pub fault: Fault,
    /// The value as written (`${NAME}` not replaced, a secret masked); `None` if there is none to show.
    pub value: Option<String>,
    /// What was expected instead.
    pub expected: String,
    /// The remedy: the nearest known key, or where to find the value.
    pub hint: Option<String>,
}

impl Problem {
    pub(super) fn new(key: impl Into<String>, fault: Fault, expected: impl Into<String>) -> Self {
        let (key, expected) = (key.into(), expected.into());
        Self { key, line: None, file: None, fault, value: None, expected, hint: None }
    }

    pub(super) fn value(mut self, value: impl Into<String>) -> Self {
        self.value = Some(value.into());
        self
    }

    pub(super) fn in_file(mut self, file: &Path) -> Self {
        self.file = Some(file.to_owned());
        self
    }

    /// Its place, in parentheses after a blank: the file, or the configuration `path`, and the line; empty if neither
    /// is known.
    pub fn place(&self, path: Option<&Path>) -> String {
        match (self.file.as_deref().or(path), self.line) {
            (Some(path), Some(line)) => format!(" ({}, line {line})", path.display()),
            (Some(path), None) => format!(" ({})", path.display()),
            (None, Some(line)) => format!(" (line {line})"),
            (None, None) => String::new(),
        }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Problem {
    /// One line, without the hint.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, expected, .. } = self;
        match (self.fault, &self.value) {
            (Fault::Missing, _) => write!(f, "`{key}` is missing, expected {expected}"),
            (Fault::Unknown, _) => write!(f, "`{key}` is not a known key, expected {expected}"),
            (Fault::Invalid | Fault::File, Some(value)) => write!(f, "`{key}` is `{value}`, expected {expected}"),
            (Fault::Invalid | Fault::File, None) => write!(f, "`{key}`: expected {expected}"),
            (Fault::Unread, _) => write!(f, "`{key}` is read by no sink, expected {expected}"),
            (Fault::Twice, _) => write!(f, "`{key}` is declared in two files: {expected}"),
            (Fault::Undeclared, _) => write!(f, "`{key}` is declared in no file, expected {expected}"),
            (Fault::Unreadable, _) => write!(f, "cannot read the file: {expected}"),
            (Fault::Syntax, _) if key.is_empty() => write!(f, "not TOML: {expected}"),
            (Fault::Syntax, _) => write!(f, "`{key}`: not TOML: {expected}"),
        }
    }
}

/// The remedy for an unreadable file.
pub(super) fn hint_for_unreadable(file: &Path, error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound if file.is_relative() => {
            "check that it exists; a relative path begins where the program is started, so write the whole path"
        }
        io::ErrorKind::NotFound => "check that it exists: `namei -l FILE` shows where the path ends",
        io::ErrorKind::PermissionDenied => {
            "this user may not read it: `namei -l FILE` shows which folder or file refuses"
        }
        io::ErrorKind::IsADirectory => "this is a folder: name the file in it",
        _ => "it must hold that, and nothing else",
    }
}

/// All problems of a configuration. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigError {
    /// The file, if the configuration came from one.
    pub path: Option<PathBuf>,
    /// All problems, in the order of the text; those without a line last.
    pub problems: Vec<Problem>,
}

impl ConfigError {
    pub(super) fn at(mut self, path: &Path) -> Self {
        self.path = Some(path.to_owned());
        self
    }

    fn place(&self, problem: &Problem) -> String {
        problem.place(self.path.as_deref())
    }
}

impl fmt::Display for ConfigError {
    /// The first problem with its hint, how many more there are, then each of them with its own.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((first, rest)) = self.problems.split_first() else {
            return write!(f, "{}: no problem noted", self.slug());
        };
        write!(f, "{}: {first}{}", self.slug(), self.place(first))?;
        let more = match rest.len() {
            0 => None,
            1 => Some("1 more problem below".to_owned()),
            n => Some(format!("{n} more problems below")),
        };
        let hints: Vec<String> = first.hint.clone().into_iter().chain(more).collect();
        if !hints.is_empty() {
            write!(f, "\n  hint: {}", hints.join("; "))?;
        }
        for problem in rest {
            write!(f, "\n{problem}{}", self.place(problem))?;
            if let Some(hint) = &problem.hint {
                write!(f, "\n  hint: {hint}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl Actionable for ConfigError {
    fn slug(&self) -> &'static str {
        "config-invalid"
    }

    fn hint(&self) -> String {
        self.problems
            .iter()
            .find_map(|p| p.hint.clone())
            .unwrap_or_else(|| "docs/configuration.md describes every key".to_owned())
    }
}

/// A URL for display: user name and password masked, or the whole of it when it cannot be parsed.
pub(super) fn masked_url(text: &str) -> String {
    if !text.contains('@') {
        return text.to_owned();
    }
    let Ok(mut url) = Url::parse(text) else { return MASK.to_owned() };
    if url.set_username(MASK).is_ok() && url.set_password(None).is_ok() { url.into() } else { MASK.to_owned() }
}

/// `parent.key`.
pub(super) fn join(parent: &str, key: &str) -> String {
    if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") }
}
