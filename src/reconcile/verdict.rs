//! The result of a comparison, as text for people and as one JSON object.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;

use super::class::{ClassCounts, RowClass};
use super::spool::Spool;
use super::witness::ExportJudgement;
use crate::model::{Timestamp, plain};

/// The most events that the text lists; the JSON object lists all.
const LISTED_MAX: usize = 50;

/// The outcome.
#[derive(Debug)]
pub struct Verdict {
    /// The source.
    pub source: String,
    /// Its tenant.
    pub tenant: String,
    /// When it was made.
    pub made: Timestamp,
    /// How many rows the export has.
    pub rows: u64,
    /// The number of rows of each class.
    pub classes: ClassCounts,
    /// Dropped rows by rule.
    pub rules: BTreeMap<String, u64>,
    /// Rows without a receipt that the rules, as configured now, drop.
    pub dropped_by_configuration: u64,
    /// Events that were delivered but are not in the export; `None` if there is no evidence.
    pub only_ours: Option<u64>,
    /// Those of them that are known by id.
    pub only_ours_listed: Spool,
    /// The judgement of the export.
    pub witness: ExportJudgement,
    /// The events that are missing.
    pub missing: Spool,
    /// The times of the export's first row and of its last.
    pub between: Option<(Timestamp, Timestamp)>,
    /// Younger events may be on their way.
    pub settle_secs: i64,
    /// Events delivered before this may no longer be known.
    pub known_from: Option<Timestamp>,
    /// The evidence that the comparison used.
    pub evidence: Vec<String>,
    /// The first rows that could not be read: places and reasons.
    pub unreadable: Vec<Unreadable>,
    /// Inputs that could not be opened.
    pub unopened: Vec<String>,
    /// Inputs that could not be read completely.
    pub broken: Vec<String>,
    /// Further notes.
    pub notes: Vec<String>,
}

/// A row that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// File, line and row.
    pub place: String,
    /// Why.
    pub why: String,
}

/// The members after the long list.
#[derive(Serialize)]
struct VerdictTail<'a> {
    source: &'a str,
    tenant: &'a str,
    made: Timestamp,
    between: Option<(Timestamp, Timestamp)>,
    settle_secs: i64,
    known_from: Option<Timestamp>,
    evidence: &'a [String],
    rules: &'a BTreeMap<String, u64>,
    dropped_by_configuration: u64,
    unreadable: &'a [Unreadable],
    unopened: &'a [String],
    broken: &'a [String],
    notes: &'a [String],
}

impl Verdict {
    /// Writes the JSON object on one line.
    ///
    /// # Errors
    /// `out` cannot be written, or what was kept in a temporary file not read.
    pub fn write_json(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let classes: Vec<String> =
            RowClass::ALL.iter().map(|class| format!("\"{}\":{}", class.name(), self.classes.of(*class))).collect();
        write!(out, "{{\"rows\":{},\"classes\":{{{}}},\"only_ours\":", self.rows, classes.join(","))?;
        serde_json::to_writer(&mut *out, &self.only_ours)?;
        write!(out, ",\"witness\":")?;
        serde_json::to_writer(&mut *out, &self.witness)?;
        write!(out, ",\"missing\":")?;
        write_list(&mut self.missing, out)?;
        write!(out, ",\"only_ours_events\":")?;
        write_list(&mut self.only_ours_listed, out)?;
        let rest = serde_json::to_string(&VerdictTail {
            source: &self.source,
            tenant: &self.tenant,
            made: self.made,
            between: self.between,
            settle_secs: self.settle_secs,
            known_from: self.known_from,
            evidence: &self.evidence,
            rules: &self.rules,
            dropped_by_configuration: self.dropped_by_configuration,
            unreadable: &self.unreadable,
            unopened: &self.unopened,
            broken: &self.broken,
            notes: &self.notes,
        })?;
        writeln!(out, ",{}", rest.trim_start_matches('{'))
    }

    /// Writes it for people: each line says what it means, or what to do.
    ///
    /// # Errors
    /// As for [`Verdict::write_json`].
    pub fn write_text(&mut self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "source      {} (tenant {})", self.source, self.tenant)?;
        let between = self.between.map(|(first, last)| format!(", events of {first} to {last}")).unwrap_or_default();
        writeln!(out, "rows        {}{between}", self.rows)?;
        writeln!(out, "evidence    {}", self.evidence.join("; "))?;
        writeln!(out)?;
        for class in RowClass::ALL {
            let count = self.classes.of(*class);
            if count > 0 || matches!(class, RowClass::Delivered | RowClass::Missing) {
                writeln!(out, "{:<11} {count:>9}  {}", class.name().replace('_', " "), self.explained(*class))?;
            }
            if *class == RowClass::Unreadable && count > 0 {
                for Unreadable { place, why } in &self.unreadable {
                    writeln!(out, "              {}: {}", plain(place), plain(why))?;
                }
            }
        }
        list(&mut self.missing, out)?;
        match self.only_ours {
            Some(0) => writeln!(out, "only ours           0  the export has every event of ours of its time")?,
            Some(count) => {
                writeln!(
                    out,
                    "only ours   {count:>9}  delivered, and not in the export: search again before you trust it"
                )?;
            }
            None => {
                writeln!(out, "only ours           -  not known: give the records that were delivered as --delivered")?
            }
        }
        list(&mut self.only_ours_listed, out)?;
        writeln!(out)?;
        match self.witness.looks_cut {
            false => writeln!(out, "the export looks whole")?,
            true => {
                writeln!(out, "the export looks cut: search a shorter time, or page to the end, and compare again")?;
                for why in &self.witness.why {
                    writeln!(out, "  {}", plain(why))?;
                }
            }
        }
        for (what, lines) in [("not opened", &self.unopened), ("not read", &self.broken), ("note", &self.notes)] {
            for line in lines {
                writeln!(out, "{what}: {}", plain(line))?;
            }
        }
        Ok(())
    }

    /// The meaning of a class, and the action to take.
    fn explained(&self, class: RowClass) -> String {
        match class {
            RowClass::Delivered => "the receivers have them".into(),
            RowClass::Repeated => "stood in the export before".into(),
            RowClass::Dropped => {
                let rules: Vec<String> = self.rules.iter().map(|(rule, count)| format!("{rule} {count}")).collect();
                let by = match self.dropped_by_configuration {
                    0 => "",
                    _ => ", by the rules as they are configured now: there is no receipt",
                };
                format!("by rule: {}{by}", rules.join(", "))
            }
            RowClass::Held => "routine reads that wait for data loss prevention; `state show` says how long".into(),
            RowClass::SetAside => "refused by every receiver: see `m365-audit state export`, then `state retry`".into(),
            RowClass::NotRead => "of content types that `content_types` does not name".into(),
            RowClass::InGap => "became available in a gap that was reported, or before the source began".into(),
            RowClass::TooYoung => "may be on their way: compare again later, or with --settle 0s now".into(),
            RowClass::TooOld => match self.known_from {
                Some(from) => format!("cannot tell: what was delivered before {from} may be forgotten"),
                None => "cannot tell".into(),
            },
            RowClass::NoIdentity => "cannot tell: these events have no `Id`".into(),
            RowClass::Unreadable => "neither the event nor what identifies it can be read".into(),
            RowClass::Missing if self.missing.count() == 0 => "every event of the export is accounted for".into(),
            RowClass::Missing => {
                "not delivered, and nothing says why: `m365-audit backfill` reads the last 7 days again".into()
            }
        }
    }
}

fn write_list(spool: &mut Spool, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(b"[")?;
    for (number, line) in spool.lines()?.enumerate() {
        if number > 0 {
            out.write_all(b",")?;
        }
        out.write_all(line?.as_bytes())?;
    }
    out.write_all(b"]")
}

fn list(spool: &mut Spool, out: &mut dyn Write) -> io::Result<()> {
    let count = spool.count();
    for line in spool.lines()?.take(LISTED_MAX) {
        let listed: super::spool::SpooledEvent = serde_json::from_str(&line?)?;
        let time = if listed.time.is_empty() { "no time" } else { &listed.time };
        writeln!(out, "              {}  {}  {}", plain(time), plain(&listed.id), plain(&listed.operation))?;
    }
    match count.saturating_sub(LISTED_MAX as u64) {
        0 => Ok(()),
        more => writeln!(out, "              and {more} more: --json lists all"),
    }
}
