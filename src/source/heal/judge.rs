//! Decides whether an answer of the audit search is complete. Pure.
//!
//! Graph may report `succeeded` for a truncated answer. Some truncated answers declare it; others show it by their
//! numbers, as in `reconcile::witness`. If an answer is only doubtful, its window is searched again in two halves,
//! whose counts are compared with those of the whole. A doubt thus costs two searches, and a truncated answer as many
//! as it takes.

use jiff::SignedDuration;

use crate::api::GraphQuery;
use crate::model::{Timestamp, Window};

/// The limits of Microsoft's tools.
const LIMITS: [u64; 3] = [5_000, 50_000, 1_000_000];
/// A window whose answer declares a truncation is halved down to this.
pub(super) const CUT_MIN: SignedDuration = SignedDuration::from_secs(60);
/// A window that is only doubtful is halved down to this.
const DOUBT_MIN: SignedDuration = SignedDuration::from_hours(1);
/// Records of one window at most: what is kept of each while it is read is some forty bytes.
pub(super) const RECORDS_MAX: u64 = 200_000;
/// The distribution of fewer records than this proves nothing.
const ROWS_TO_DOUBT: u64 = 8;
/// Up to this count, two windows may have equally many records by chance.
const SAME_COUNT_MIN: u64 = 20;
/// An edge without records is doubted when it is so many times as long as the mean distance of two.
const EDGE_SPACINGS: i64 = 4;

/// The result of one reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct RecordSpan {
    /// Different records.
    pub count: u64,
    /// The earliest and the latest of them.
    pub between: Option<(Timestamp, Timestamp)>,
    /// A page said that records are missing.
    pub is_cut: bool,
}

impl RecordSpan {
    /// Notes the time of a record.
    pub fn note(&mut self, time: Timestamp) {
        let (first, last) = self.between.unwrap_or((time, time));
        self.between = Some((first.min(time), last.max(time)));
    }
}

/// Why an answer was truncated, if it declares it or the numbers prove it.
pub(super) fn is_cut(query: &GraphQuery, found: &RecordSpan) -> Option<String> {
    if query.is_cut || found.is_cut {
        return Some("Microsoft Graph says that records are missing (isRecordCountLimitExceeded)".into());
    }
    if query.limit.is_some_and(|limit| found.count >= limit) {
        return Some(format!("it has {} records, which is its limit", found.count));
    }
    (found.count >= RECORDS_MAX).then(|| format!("it has {} records or more", found.count))
}

/// Why an answer may have been truncated although it does not declare it. `others` are the record counts of the other
/// windows, and `expected` the count that the whole window had for this half.
pub(super) fn is_doubted(
    window: Window,
    query: &GraphQuery,
    found: &RecordSpan,
    others: &[u64],
    expected: Option<u64>,
) -> Option<String> {
    let span = window.end.duration_since(window.start);
    let count = found.count;
    if span < DOUBT_MIN * 2 || expected == Some(count) {
        return None;
    }
    if query.approximate.is_some_and(|said| said > count + count / 50) {
        return Some(format!("Microsoft Graph speaks of {} records and gives {count}", query.approximate.unwrap_or(0)));
    }
    if LIMITS.contains(&count) || count >= 1_000 && count.is_multiple_of(1_000) {
        return Some(format!("it has exactly {count} records"));
    }
    if count >= SAME_COUNT_MIN && others.contains(&count) {
        return Some(format!("it has as many records as another window: {count}"));
    }
    let (first, last) = found.between.filter(|_| count >= ROWS_TO_DOUBT)?;
    let spacing = last.duration_since(first).as_secs() / i64::try_from(count).unwrap_or(i64::MAX).max(1);
    let empty = first.duration_since(window.start).max(window.end.duration_since(last));
    let is_far = empty.as_secs() > (spacing * EDGE_SPACINGS).max(60);
    is_far.then(|| format!("nothing lies in {} min at an edge of it", empty.as_secs() / 60))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::QueryStatus;

    fn t(minute: i64) -> Timestamp {
        Timestamp::from_second(minute * 60).unwrap()
    }

    fn query() -> GraphQuery {
        GraphQuery {
            id: "q".into(),
            status: QueryStatus::Succeeded,
            is_cut: false,
            limit: Some(1_000_000),
            approximate: None,
        }
    }

    fn found(count: u64, first: i64, last: i64) -> RecordSpan {
        RecordSpan { count, between: Some((t(first), t(last))), is_cut: false }
    }

    #[test]
    fn what_says_that_it_was_cut_or_has_as_much_as_it_may_was_cut() {
        assert_eq!(is_cut(&query(), &found(10, 0, 9)), None);
        assert!(is_cut(&GraphQuery { is_cut: true, ..query() }, &found(10, 0, 9)).is_some());
        assert!(is_cut(&query(), &RecordSpan { is_cut: true, ..found(10, 0, 9) }).is_some());
        assert!(is_cut(&GraphQuery { limit: Some(10), ..query() }, &found(10, 0, 9)).is_some());
        assert!(is_cut(&query(), &found(RECORDS_MAX, 0, 9)).is_some());
    }

    #[test]
    fn an_answer_is_doubted_for_its_numbers_and_its_edges_and_believed_when_it_says_what_the_whole_said() {
        let day = Window { start: t(0), end: t(1440) };
        let doubted =
            |found: RecordSpan, others: &[u64], expected| is_doubted(day, &query(), &found, others, expected).is_some();
        for (what, found, others, is) in [
            ("even", found(100, 5, 1430), &[40_u64][..], false),
            ("round", found(2000, 1, 1439), &[], true),
            ("a limit", found(5000, 1, 1439), &[], true),
            ("as many as another", found(100, 5, 1430), &[100], true),
            ("few, as many as another", found(7, 5, 1430), &[7], false),
            ("nothing at the beginning", found(100, 400, 1439), &[], true),
            ("nothing at the end", found(100, 1, 900), &[], true),
            ("few and far between", found(5, 600, 700), &[], false),
            ("none", RecordSpan::default(), &[], false),
        ] {
            assert_eq!(doubted(found, others, None), is, "{what}");
            assert!(!doubted(found, others, Some(found.count)), "{what}: it is what the whole said");
        }
        let said =
            |approximate| is_doubted(day, &GraphQuery { approximate, ..query() }, &found(100, 5, 1430), &[], None);
        assert_eq!((said(Some(101)), said(Some(100)), said(Some(90))), (None, None, None));
        assert!(said(Some(150)).is_some());
        let short = Window { start: t(0), end: t(60) };
        assert_eq!(
            is_doubted(short, &query(), &found(1000, 30, 31), &[], None),
            None,
            "an hour is not halved on a doubt"
        );
    }
}
