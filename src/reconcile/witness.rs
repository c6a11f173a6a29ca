//! Judges whether the export is complete: exports are truncated without notice.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::SignedDuration;

use crate::model::Timestamp;

/// The most rows that each tool returns.
const LIMITS: [(u64, &str); 3] = [
    (5_000, "the most that one call of Search-UnifiedAuditLog returns"),
    (50_000, "the most that one session of Search-UnifiedAuditLog and one export of Purview return"),
    (1_000_000, "the most that one query of Microsoft Graph returns"),
];
/// The number of rows from which an hour counts as full.
const FULL_HOUR_ROWS: u32 = 30;
/// An empty stretch of up to this many hours is suspect; a longer one is a night.
const EMPTY_HOURS_MAX: i64 = 3;
/// The number of hours examined on either side of an empty stretch.
const AROUND_HOURS: usize = 6;
/// The emptiest of them must have this share of a full hour; otherwise the rows come in bursts.
const STEADY_SHARE: u32 = 5;
/// The most hours that are counted: ten years. Times in a damaged export must not exhaust the memory.
const HOURS_MAX: usize = 90_000;
/// The most reasons of one kind that are kept.
const REASONS_MAX: usize = 20;

/// Observations on an export, collected while its rows are read.
#[derive(Debug, Default)]
pub struct ExportWitness {
    rows: u64,
    file: Option<(Arc<str>, u64)>,
    files: u64,
    hours: BTreeMap<i64, u32>,
    why: Vec<String>,
    /// The time of the earliest row and of the latest.
    range: Option<(Timestamp, Timestamp)>,
    /// The range of the search, if the export contains it.
    asked: (Option<Timestamp>, Option<Timestamp>),
}

/// The judgement of an export.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct ExportJudgement {
    /// Rows are likely to be missing in it.
    pub looks_cut: bool,
    /// Why.
    pub why: Vec<String>,
}

impl ExportWitness {
    /// Takes a row of a file, with its time if it can be parsed. Times that no audit log has (`plausible` is the
    /// latest) are ignored.
    pub fn row(&mut self, file: &Arc<str>, time: Option<Timestamp>, plausible: Timestamp) {
        self.rows += 1;
        match &mut self.file {
            Some((known, rows)) if known == file => *rows += 1,
            _ => {
                self.end_file();
                self.file = Some((file.clone(), 1));
            }
        }
        let Some(time) = time.filter(|time| time.as_second() > EARLIEST_SECS && *time <= plausible) else { return };
        let (first, last) = self.range.unwrap_or((time, time));
        self.range = Some((first.min(time), last.max(time)));
        let hour = time.as_second().div_euclid(3600);
        let is_known = self.hours.contains_key(&hour);
        if is_known || self.hours.len() < HOURS_MAX {
            *self.hours.entry(hour).or_default() += 1;
        }
    }

    /// Notes that the export itself, or its file, shows that rows are missing.
    pub fn says(&mut self, why: String) {
        if self.why.len() < REASONS_MAX && !self.why.contains(&why) {
            self.why.push(why);
        }
    }

    /// The range that was asked for.
    pub fn asked(&mut self, from: Option<Timestamp>, to: Option<Timestamp>) {
        let (known_from, known_to) = self.asked;
        self.asked = (known_from.into_iter().chain(from).min(), known_to.into_iter().chain(to).max());
    }

    /// The range in which the export should have every event: the range of the search, else the whole hours of its
    /// rows.
    pub fn range(&self) -> Option<(Timestamp, Timestamp)> {
        let whole = |secs: i64| Timestamp::from_second(secs).ok();
        let (first, last) = self.range?;
        let from = self.asked.0.or_else(|| whole(first.as_second().div_euclid(3600) * 3600))?;
        let to = self.asked.1.or_else(|| whole((last.as_second().div_euclid(3600) + 1) * 3600))?;
        Some((from, to))
    }

    /// Whether both ends of that range come from the search.
    pub fn is_asked(&self) -> bool {
        self.asked.0.is_some() && self.asked.1.is_some()
    }

    /// The times of its earliest row and of its latest.
    pub fn rows_between(&self) -> Option<(Timestamp, Timestamp)> {
        self.range
    }

    fn end_file(&mut self) {
        if let Some((file, rows)) = self.file.take() {
            self.files += 1;
            if let Some((_, whose)) = LIMITS.iter().find(|(limit, _)| *limit == rows) {
                self.says(format!("`{file}` has exactly {rows} rows: {whose}"));
            }
        }
    }

    /// Judges the export.
    pub fn judge(mut self) -> ExportJudgement {
        self.end_file();
        if self.files > 1
            && let Some((_, whose)) = LIMITS.iter().find(|(limit, _)| *limit == self.rows)
        {
            self.says(format!("the export has exactly {} rows: {whose}", self.rows));
        }
        if self.rows == 0 {
            self.says("it has not one row".into());
        }
        self.judge_hours();
        self.judge_ends();
        ExportJudgement { looks_cut: !self.why.is_empty(), why: self.why }
    }

    /// Finds hours without rows between full hours.
    fn judge_hours(&mut self) {
        let mut counts: Vec<u32> = self.hours.values().copied().collect();
        counts.sort_unstable();
        let median = counts.get(counts.len() / 2).copied().unwrap_or_default();
        let full = FULL_HOUR_ROWS.max(median / 2);
        let hours: Vec<(i64, u32)> = self.hours.iter().map(|(hour, count)| (*hour, *count)).collect();
        for (at, pair) in hours.windows(2).enumerate() {
            let [(before, rows_before), (after, rows_after)] = pair else { continue };
            let empty = after - before - 1;
            // If other hours nearby are almost empty, an empty hour is not suspect.
            let around = hours.iter().take(at + 2 + AROUND_HOURS).skip((at + 1).saturating_sub(AROUND_HOURS));
            let least = around.map(|(_, rows)| *rows).min().unwrap_or_default();
            let is_steady = least >= rows_before.midpoint(*rows_after) / STEADY_SHARE;
            let is_suspect = (1..=EMPTY_HOURS_MAX).contains(&empty) && is_steady;
            if is_suspect && *rows_before >= full && *rows_after >= full {
                let time = |hour: i64| Timestamp::from_second(hour * 3600).unwrap_or_default();
                self.says(format!(
                    "not a row between {} and {}, {rows_before} in the hour before and {rows_after} in the hour after",
                    time(before + 1),
                    time(*after)
                ));
            }
        }
    }

    /// Finds rows that end far from the end of the range of the search.
    fn judge_ends(&mut self) {
        let Some((first, last)) = self.range else { return };
        let (from, to) = self.asked;
        let span = last.duration_since(first).as_secs().unsigned_abs();
        // Fifty times the mean distance of two rows, and never under an hour.
        let far_secs = (50 * span).checked_div(self.rows).unwrap_or_default().max(3600);
        let far = SignedDuration::from_secs(i64::try_from(far_secs).unwrap_or(i64::MAX));
        if let Some(to) = to.filter(|to| to.duration_since(last) > far) {
            self.says(format!("its last row is of {last}, and {to} was asked for as its end"));
        }
        if let Some(from) = from.filter(|from| first.duration_since(*from) > far) {
            self.says(format!("its first row is of {first}, and {from} was asked for as its beginning"));
        }
    }
}

/// 2000-01-01: no audit log is older.
const EARLIEST_SECS: i64 = 946_684_800;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(1_780_000_000 / 3600 * 3600 + minute * 60).unwrap()
    }

    fn export(files: &[u64]) -> ExportWitness {
        let mut witness = ExportWitness::default();
        for (number, rows) in files.iter().enumerate() {
            let name: Arc<str> = format!("{number}.csv").into();
            (0..*rows).for_each(|row| witness.row(&name, Some(at(row as i64 % 600)), at(10_000)));
        }
        witness
    }

    #[test]
    fn a_limit_of_the_tools_hit_exactly_looks_cut() {
        for (files, expected) in [
            (&[4_999][..], 0),
            (&[5_000], 1),
            (&[5_001], 0),
            (&[50_000], 1),
            (&[1_000_000], 1),
            (&[2_500, 2_500], 1),
            (&[5_000, 100], 1),
            (&[], 1),
        ] {
            let judgement = export(files).judge();
            assert_eq!((judgement.why.len(), judgement.looks_cut), (expected, expected > 0), "{files:?} {judgement:?}");
        }
    }

    #[test]
    fn an_hour_of_nothing_between_full_hours_looks_cut_and_a_night_does_not() {
        let judged = |hours: &[u32]| {
            let mut witness = ExportWitness::default();
            let name: Arc<str> = "x".into();
            for (hour, rows) in hours.iter().enumerate() {
                (0..*rows).for_each(|_| witness.row(&name, Some(at(hour as i64 * 60)), at(100_000)));
            }
            witness.judge()
        };
        for (hours, expected) in [
            (&[100, 0, 100][..], true),
            (&[100, 0, 0, 100], true),
            (&[100, 0, 0, 0, 0, 100], false),
            (&[10, 0, 10], false),
            (&[100, 0, 3], false),
            (&[100, 40, 0, 40, 100, 100, 100], false),
            (&[100, 100, 100], false),
            // Rows in bursts leave hours empty.
            (&[100, 5, 100, 0, 100, 60], false),
            (&[100, 60, 100, 0, 100, 60], true),
        ] {
            let judgement = judged(hours);
            assert_eq!(judgement.looks_cut, expected, "{hours:?} {judgement:?}");
        }
    }

    #[test]
    fn rows_that_end_far_from_what_was_asked_for_look_cut() {
        let mut witness = export(&[600]);
        witness.asked(Some(at(0)), Some(at(630)));
        assert!(!witness.judge().looks_cut);
        let mut witness = export(&[600]);
        witness.asked(Some(at(0)), Some(at(800)));
        assert!(witness.judge().looks_cut);
        let mut witness = export(&[600]);
        witness.asked(Some(at(-200)), None);
        assert_eq!(witness.range(), Some((at(-200), at(600))));
        assert!(witness.judge().looks_cut);
    }

    #[test]
    fn a_time_that_no_audit_log_has_widens_no_range() {
        let mut witness = export(&[600]);
        witness.row(&"x".into(), Some("1601-01-01T00:00:00Z".parse().unwrap()), at(10_000));
        witness.row(&"x".into(), Some("2999-01-01T00:00:00Z".parse().unwrap()), at(10_000));
        witness.row(&"x".into(), None, at(10_000));
        assert_eq!(witness.range(), Some((at(0), at(600))));
    }
}
