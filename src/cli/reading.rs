//! What a command that reads files says of them on standard error, and what it counts.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;

use super::Failure;
use super::exit::Exit;
use super::normalize::NormalizeError;
use crate::exports::form::Form;
use crate::exports::pipeline::ReadEvent;
use crate::model::plain;

/// What was read. Its text is the last line of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Events that were read, by the form they were in.
    pub forms: BTreeMap<Form, u64>,
    /// Lines that were written of them.
    pub rows: u64,
    /// Stretches of bytes, and rows, whose event could not be read.
    pub bad: u64,
    /// Objects that are sound and neither events nor wrappers that are known.
    pub unknown: u64,
    /// Events left out since they came before.
    pub repeated: u64,
    /// Events left out by rule.
    pub dropped: u64,
    /// Events left out for their time.
    pub outside: u64,
    /// Texts of events that their form had cut.
    pub cut: u64,
    /// Inputs that cannot be opened.
    pub unopened: u64,
    /// Inputs of which not all could be read.
    pub broken: u64,
}

impl Tally {
    /// How many events were read.
    pub fn read(&self) -> u64 {
        self.forms.values().sum()
    }

    /// The exit code: everything was read, or not.
    pub fn exit(&self) -> Exit {
        match self {
            Tally { unopened: 1.., .. } => Exit::NoInput,
            Tally { bad: 0, unknown: 0, broken: 0, .. } => Exit::Done,
            _ => Exit::Data,
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { bad, repeated, unknown, .. } = self;
        write!(f, "{} events read, {bad} bad, {repeated} repeated and left out, {unknown} unknown", self.read())?;
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
        for (index, (form, count)) in self.forms.iter().enumerate() {
            write!(f, "{} {form}: {count}", if index == 0 { ";" } else { "," })?;
        }
        Ok(())
    }
}

/// Bytes that were no event, all of them said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Where they began.
    pub place: String,
    /// How many they are.
    pub bytes: u64,
    /// Why they are no event.
    pub why: String,
    /// Whether they are sound JSON.
    pub is_unknown: bool,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ended { place, bytes, why, .. } = self;
        write!(f, "{place}: {bytes} bytes are no audit event: {why}")
    }
}

/// Says and counts.
pub struct Messages<E> {
    err: E,
    /// What was counted.
    pub tally: Tally,
}

impl<E: Write> Messages<E> {
    /// Says it here.
    pub fn new(err: E) -> Self {
        Self { err, tally: Tally::default() }
    }

    /// One line. Nobody may be reading it; what comes out says the same.
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

    /// Bytes were no event.
    pub fn bad(&mut self, ended: &Ended) {
        if ended.is_unknown {
            self.tally.unknown += 1;
        } else {
            self.tally.bad += 1;
        }
        self.say(&ended.to_string());
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
