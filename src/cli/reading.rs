//! The messages on standard error and the counts of a command that reads files.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};

use super::Failure;
use super::exit::Exit;
use crate::config::RulesError;
use crate::exports::form::Form;
use crate::exports::input::InputError;
use crate::exports::pipeline::ReadEvent;
use crate::exports::place::InputPlace;
use crate::model::{Actionable, plain};
use crate::normalise::NotAPointer;

/// Why the command stopped, or could not read all of its input.
#[derive(Debug, thiserror::Error)]
pub enum NormalizeError {
    /// An input cannot be read, or not all of it. The others are still read.
    #[error(transparent)]
    Input(InputError),
    /// The rules cannot be used.
    #[error(transparent)]
    Rules(RulesError),
    /// A value to mask is not a JSON pointer.
    #[error("{0}")]
    Mask(NotAPointer),
    /// Records cannot be written.
    #[error("cannot write the records: {0}")]
    Write(io::Error),
}

impl Actionable for NormalizeError {
    fn slug(&self) -> &'static str {
        match self {
            Self::Input(InputError::Open { .. }) => "normalize-open-failed",
            Self::Input(InputError::Cut { .. }) => "normalize-read-failed",
            Self::Input(InputError::Foreign { .. }) => "normalize-not-read",
            Self::Rules(error) => error.slug(),
            Self::Mask(_) => "mask-invalid",
            Self::Write(_) => "normalize-write-failed",
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Input(InputError::Open { .. }) => {
                "check the path and its permissions, or give `-` for standard input".into()
            }
            Self::Input(InputError::Cut { .. }) => {
                "what was read of it came out; fetch the file again, and start again with the whole of it".into()
            }
            Self::Input(InputError::Foreign { .. }) => {
                "what is read is listed in docs/exports.md; gzip, zip and zstd are unpacked as they are read".into()
            }
            Self::Rules(error) => error.hint(),
            Self::Mask(_) => "a pointer begins with `/` and names members from the outside in".into(),
            Self::Write(_) => "check the space and the permissions of where standard output goes".into(),
        }
    }
}

impl NormalizeError {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Input(InputError::Open { .. }) => Exit::NoInput,
            Self::Input(_) => Exit::Data,
            Self::Rules(_) | Self::Mask(_) => Exit::Config,
            Self::Write(_) => Exit::Internal,
        }
    }
}

/// The counts of a run. Their text is its last line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadCounts {
    /// Events that were read, by the form they were in.
    pub forms: BTreeMap<Form, u64>,
    /// Lines that were written for them.
    pub rows: u64,
    /// Stretches of bytes, and rows, whose event could not be read.
    pub bad: u64,
    /// Valid objects that are neither events nor known wrappers.
    pub unknown: u64,
    /// Records of this program without an event, such as `m365_audit.gap`, by their `event_type`; left out.
    pub notices: BTreeMap<String, u64>,
    /// Events left out since they came before; `None` if that is not enabled.
    pub repeated: Option<u64>,
    /// Events left out by rule.
    pub dropped: u64,
    /// Events left out for their time.
    pub outside: u64,
    /// Texts of events that their form had truncated.
    pub cut: u64,
    /// Inputs that cannot be opened.
    pub unopened: u64,
    /// Inputs that could be read only in part.
    pub broken: u64,
}

impl ReadCounts {
    /// How many events were read.
    pub fn read(&self) -> u64 {
        self.forms.values().sum()
    }

    /// The exit code: everything was read, or not.
    pub fn exit(&self) -> Exit {
        match self {
            ReadCounts { unopened: 1.., .. } => Exit::NoInput,
            ReadCounts { bad: 0, unknown: 0, cut: 0, broken: 0, .. } => Exit::Done,
            _ => Exit::Data,
        }
    }
}

impl fmt::Display for ReadCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} events read, {} bad, {} unknown", self.read(), self.bad, self.unknown)?;
        if let Some(repeated) = self.repeated {
            write!(f, ", {repeated} repeated and left out")?;
        }
        for (count, what) in [
            (self.outside, "outside the time asked for"),
            (self.dropped, "routine and left out"),
            (self.cut, "texts were cut by their form"),
            (self.broken, "inputs read in part or not at all"),
            (self.unopened, "inputs not opened"),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        for (kind, count) in &self.notices {
            write!(f, ", {count} {} left out", plain(kind))?;
        }
        for (index, (form, count)) in self.forms.iter().enumerate() {
            write!(f, "{} {form}: {count}", if index == 0 { ";" } else { "," })?;
        }
        Ok(())
    }
}

/// A complete stretch of bytes that are not an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadStretch {
    /// Where they began.
    pub place: String,
    /// How many they are.
    pub bytes: u64,
    /// Why they are not an event.
    pub why: String,
    /// Whether they are valid JSON.
    pub is_unknown: bool,
}

impl fmt::Display for BadStretch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BadStretch { place, bytes, why, .. } = self;
        write!(f, "{place}: {bytes} bytes are no audit event: {why}")
    }
}

/// Kinds of notices that are counted separately.
const NOTICES_MAX: usize = 16;
/// Longest name of such a kind.
const NOTICE_BYTES_MAX: usize = 64;

/// Prints and counts.
pub struct Messages<E> {
    err: E,
    /// What was counted.
    pub tally: ReadCounts,
}

impl<E: Write> Messages<E> {
    /// Prints to `err`; with `is_unique`, repeated events are left out and counted.
    pub fn new(err: E, is_unique: bool) -> Self {
        Self { err, tally: ReadCounts { repeated: is_unique.then_some(0), ..ReadCounts::default() } }
    }

    /// Prints one line. A failure is ignored: standard error may have no reader, and the output has the same facts.
    pub fn say(&mut self, line: &str) {
        let _ = writeln!(self.err, "{}", plain(line));
    }

    /// An event was read.
    pub fn event(&mut self, read: &ReadEvent) {
        *self.tally.forms.entry(read.form).or_default() += 1;
        for loss in &read.losses {
            self.tally.cut += 1;
            let member = if loss.member.is_empty() { "the event" } else { &loss.member };
            self.say(&format!("{}: `{member}` was cut by its form, and what it said is gone", read.place));
        }
    }

    /// An event was left out since it came before.
    pub fn repeated(&mut self) {
        *self.tally.repeated.get_or_insert_default() += 1;
    }

    /// A record of this program without an event was read.
    pub fn notice(&mut self, kind: &str) {
        let notices = &mut self.tally.notices;
        // The author of the file chose the text.
        let is_kept = notices.contains_key(kind) || notices.len() < NOTICES_MAX && kind.len() <= NOTICE_BYTES_MAX;
        *notices.entry(if is_kept { kind } else { "m365_audit.*" }.to_owned()).or_default() += 1;
    }

    /// A stretch of bytes was not an event.
    pub fn bad(&mut self, ended: &BadStretch) {
        if ended.is_unknown {
            self.tally.unknown += 1;
        } else {
            self.tally.bad += 1;
        }
        self.say(&ended.to_string());
    }

    /// An answer declares that it lacks rows.
    pub fn truncated(&mut self, place: &InputPlace) {
        self.say(&format!("{place}: the query found more rows than this answer has (`isRecordCountLimitExceeded`)"));
    }

    /// Something could not be read.
    pub fn problem(&mut self, error: &NormalizeError) {
        match error.exit() {
            Exit::NoInput => self.tally.unopened += 1,
            _ => self.tally.broken += 1,
        }
        let _ = writeln!(self.err, "{}", Failure::of(error, error.exit()));
    }
}
