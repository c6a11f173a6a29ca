//! Computes the windows to search for each gap. Pure.
//!
//! A gap is an interval of availability (`contentCreated`), but the audit search selects by the time of events. So the
//! search for a gap begins earlier than the gap, by as much as content may be late, and ends with the gap. Receipts
//! show which events of that range were delivered.

use std::collections::BTreeMap;

use jiff::SignedDuration;

use super::requests::{HealAsk, HealError};
use crate::checkpoint::format::Position;
use crate::checkpoint::heal::{LeftOut, StoredHeal, StoredJob, StoredWindow, WantedInterval, without};
use crate::model::{ContentType, Timestamp, Window};
use crate::plan::floor_to_second;

/// How late content comes, at least: Microsoft's troubleshooting page speaks of up to three days.
pub(super) const LATE_MIN: SignedDuration = SignedDuration::from_hours(72);
/// How late content comes, at most: because of a wrong clock, a month must not be searched for a gap of an hour.
const LATE_MAX: SignedDuration = SignedDuration::from_hours(10 * 24);
/// A gap is searched no sooner than this after its end: the search may get events a day late.
const SETTLED: SignedDuration = SignedDuration::from_hours(24);
/// A search covers at most this, unless the range would then need too many searches.
const WINDOW_MAX: SignedDuration = SignedDuration::from_hours(24);
/// A range is cut into at most this many windows: as many as can be submitted in a day, with room for halves.
const WINDOWS_MAX: i64 = 120;
/// Gaps filled at once.
const GAPS_AT_ONCE: usize = 32;

/// The properties of a stream that planning needs.
pub(super) struct PlannedStream {
    pub content_type: ContentType,
    pub position: Option<Position>,
    /// The greatest delay seen from events to their blobs.
    pub late: SignedDuration,
}

impl PlannedStream {
    /// How long before a gap its missing events may have happened.
    fn lead(&self) -> SignedDuration {
        self.late.clamp(LATE_MIN, LATE_MAX)
    }
}

/// The gaps to be filled at `now`; `None`: there are none.
pub(super) fn for_gaps(
    streams: &[PlannedStream],
    stored: &StoredHeal,
    now: Timestamp,
    salt: String,
) -> Option<StoredJob> {
    let mut types: BTreeMap<String, Vec<WantedInterval>> = BTreeMap::new();
    let ended_by = now.saturating_sub(SETTLED).unwrap_or(now);
    let mut count = 0;
    for stream in streams {
        let gaps = stream.position.iter().flat_map(|position| &position.gaps);
        for gap in gaps {
            let whole = Window { start: gap.from, end: gap.to.min(ended_by) };
            if whole.start >= whole.end {
                continue;
            }
            for part in stored.fillable_parts(stream.content_type, whole) {
                count += 1;
                if count > GAPS_AT_ONCE {
                    break;
                }
                types.entry(stream.content_type.as_str().to_owned()).or_default().push(WantedInterval {
                    lead: floor_to_second(part.start.saturating_sub(stream.lead()).unwrap_or(part.start)),
                    from: part.start,
                    to: part.end,
                    reason: gap.reason.clone(),
                });
            }
        }
    }
    job(types, false, salt, now)
}

/// Plans the requested range.
///
/// # Errors
/// The range is invalid, or the state no longer shows which of its events were delivered. `reach` is the time since
/// which receipts are complete.
pub(super) fn for_range(
    streams: &[PlannedStream],
    ask: &HealAsk,
    reach: Option<Timestamp>,
    stored: &StoredHeal,
    now: Timestamp,
    salt: String,
) -> Result<StoredJob, HealError> {
    let to = floor_to_second(ask.to.map_or(now, |to| to.min(now)));
    let from = floor_to_second(ask.from);
    let range = || HealError::Range { from: ask.from, to: ask.to.unwrap_or(now) };
    if from >= to {
        return Err(range());
    }
    let mut types = BTreeMap::new();
    for stream in streams {
        let name = stream.content_type.as_str().to_owned();
        if !ask.content_types.is_empty() && !ask.content_types.contains(&name) {
            continue;
        }
        if !ask.again {
            is_known(stream, Window { start: from, end: to }, reach, stored)?;
        }
        types.insert(name, vec![WantedInterval { lead: from, from, to, reason: String::new() }]);
    }
    if let Some(unknown) = ask.content_types.iter().find(|name| !types.contains_key(*name)) {
        return Err(HealError::TypeNotRead(unknown.clone()));
    }
    job(types, ask.again, salt, now).ok_or_else(range)
}

/// Whether the state shows which events of a window were delivered: each part of it lies before the source's origin, in
/// a gap, or where receipts reach.
fn is_known(
    stream: &PlannedStream,
    window: Window,
    reach: Option<Timestamp>,
    stored: &StoredHeal,
) -> Result<(), HealError> {
    let Some(position) = &stream.position else { return Ok(()) };
    let min = Timestamp::MIN;
    let gaps = position.gaps.iter().map(|gap| Window { start: gap.from, end: gap.to });
    // The healed part of a gap is known from the keys of healed events, and from receipts.
    let open = gaps.flat_map(|gap| stored.fillable_parts(stream.content_type, gap));
    let before = Window { start: min, end: position.origin };
    let receipts = reach.map(|reach| Window { start: reach, end: Timestamp::MAX });
    let unknown = without(vec![window], open.chain([before]).chain(receipts));
    match unknown.first() {
        None => Ok(()),
        Some(part) => Err(HealError::NotKnown {
            content_type: stream.content_type.as_str().to_owned(),
            from: part.start,
            to: part.end,
            why: match reach {
                Some(reach) => format!("receipts reach back to `{reach}` only"),
                None => "no receipts are kept (`[receipts] days = 0`)".to_owned(),
            },
        }),
    }
}

fn job(types: BTreeMap<String, Vec<WantedInterval>>, again: bool, salt: String, now: Timestamp) -> Option<StoredJob> {
    let mut spans: Vec<Window> =
        types.values().flatten().map(|wanted| Window { start: wanted.lead, end: wanted.to }).collect();
    spans.sort_by_key(|span| span.start);
    let mut joined: Vec<Window> = Vec::new();
    for span in spans {
        match joined.last_mut() {
            Some(last) if last.end >= span.start => last.end = last.end.max(span.end),
            _ => joined.push(span),
        }
    }
    let (from, to) = (joined.first()?.start, joined.last()?.end);
    let windows = cut(&joined).into_iter().map(StoredWindow::new).collect();
    Some(StoredJob {
        from,
        to,
        types,
        again,
        salt,
        started: now,
        windows,
        done: Vec::new(),
        left: Vec::new(),
        left_out: Vec::new(),
    })
}

/// Cuts spans into windows, the newest first.
fn cut(spans: &[Window]) -> Vec<Window> {
    let secs: i64 = spans.iter().map(|span| span.end.duration_since(span.start).as_secs()).sum();
    let step = SignedDuration::from_secs((secs / WINDOWS_MAX).max(WINDOW_MAX.as_secs()));
    let mut windows = Vec::new();
    for span in spans.iter().rev() {
        let mut end = span.end;
        while end > span.start {
            let start = end.saturating_sub(step).map_or(span.start, |start| start.max(span.start));
            windows.push(Window { start, end });
            end = start;
        }
    }
    windows
}

/// The two halves of a window, at a whole second.
pub(super) fn halves(window: Window) -> Option<(Window, Window)> {
    let half = window.end.duration_since(window.start).as_secs() / 2;
    let middle = window.start.saturating_add(SignedDuration::from_secs(half)).ok()?;
    let is_two = window.start < middle && middle < window.end;
    is_two.then_some((Window { start: window.start, end: middle }, Window { start: middle, end: window.end }))
}

/// The part of a gap that is filled, given the windows that were left.
pub(super) fn filled(wanted: &WantedInterval, left: impl Iterator<Item = Window>) -> Vec<Window> {
    // An event that was left may belong to content that is late by up to the lead, so that part of the gap stays open.
    let late = wanted.from.duration_since(wanted.lead);
    let open = left.map(|left| Window { start: left.start, end: left.end.saturating_add(late).unwrap_or(left.end) });
    without(vec![Window { start: wanted.from, end: wanted.to }], open)
}

/// The part of a gap that stays open because earlier events were left out, and their number: they may have become
/// available as late as content comes.
pub(super) fn not_known(
    content_type: &str,
    wanted: &WantedInterval,
    left: &[Window],
    left_out: &[LeftOut],
) -> Vec<(Window, u64)> {
    let of = left_out
        .iter()
        .filter(|events| events.content_type == content_type && wanted.lead <= events.to && events.from < wanted.from);
    let filled = |left: &mut dyn Iterator<Item = Window>| filled(wanted, left);
    let would_be = filled(&mut left.iter().copied());
    let is = filled(&mut left.iter().copied().chain(of.clone().map(span_of)));
    let events = of.map(|events| events.events).sum();
    without(would_be, is.into_iter()).into_iter().map(|part| (part, events)).collect()
}

/// When events that were left out happened.
pub(super) fn span_of(events: &LeftOut) -> Window {
    let second = SignedDuration::from_secs(1);
    Window { start: events.from, end: events.to.saturating_add(second).unwrap_or(events.to) }
}

/// The gap's interval that a range of event times fills, for a stream that comes as late as this.
pub(super) fn filled_by_range(stream: &PlannedStream, range: Window) -> Option<Window> {
    let start = range.start.saturating_add(stream.lead()).ok()?;
    (start < range.end).then_some(Window { start, end: range.end })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::format::DeclaredGap;
    use crate::checkpoint::heal::HealedInterval;
    use crate::model::Actionable as _;

    fn t(hour: i64) -> Timestamp {
        Timestamp::from_second(hour * 3600).unwrap()
    }

    fn stream(gaps: &[(i64, i64)]) -> PlannedStream {
        let mut position = Position::first(t(1000));
        for (from, to) in gaps {
            position.note_gap(DeclaredGap { from: t(*from), to: t(*to), reason: "outage".into() });
        }
        PlannedStream { content_type: ContentType::Exchange, position: Some(position), late: SignedDuration::ZERO }
    }

    fn ask(from: i64, to: i64) -> HealAsk {
        HealAsk { from: t(from), to: Some(t(to)), content_types: Vec::new(), again: false, dry_run: false }
    }

    #[test]
    fn a_gap_is_asked_for_from_three_days_before_it_in_windows_of_a_day() {
        let streams = [stream(&[(2000, 2200)])];
        let job = for_gaps(&streams, &StoredHeal::default(), t(2400), "s".into()).unwrap();
        assert_eq!((job.from, job.to), (t(2000 - 72), t(2200)));
        assert_eq!(job.windows.len(), 12, "272 hours");
        assert_eq!((job.windows[0].from, job.windows[0].to), (t(2176), t(2200)));
        assert_eq!(job.windows[11].from, t(1928));
        assert!(for_gaps(&[stream(&[])], &StoredHeal::default(), t(2400), "s".into()).is_none());
        assert!(
            for_gaps(&[stream(&[(2000, 2010)])], &StoredHeal::default(), t(2010), "s".into()).is_none(),
            "too young"
        );
    }

    #[test]
    fn what_was_healed_is_not_asked_for_again() {
        let mut stored = StoredHeal::default();
        let healed = |from, to| HealedInterval { from: t(from), to: t(to), at: t(3000), events: 1 };
        stored.note_healed(ContentType::Exchange, healed(2050, 2200));
        let job = for_gaps(&[stream(&[(2000, 2200)])], &stored, t(2400), "s".into()).unwrap();
        assert_eq!((job.from, job.to), (t(1928), t(2050)));
        stored.note_healed(ContentType::Exchange, healed(1990, 2060));
        assert!(for_gaps(&[stream(&[(2000, 2200)])], &stored, t(2400), "s".into()).is_none());
    }

    #[test]
    fn a_range_is_refused_where_nobody_knows_what_was_delivered() {
        let streams = [stream(&[(2000, 2200)])];
        let plan = |from, to, reach: Option<i64>, again| {
            let ask = HealAsk { again, ..ask(from, to) };
            for_range(&streams, &ask, reach.map(t), &StoredHeal::default(), t(2400), "s".into()).map_err(|e| e.slug())
        };
        assert!(plan(100, 1000, None, false).is_ok(), "before the origin");
        assert!(plan(2000, 2200, None, false).is_ok(), "in a gap");
        assert_eq!(plan(1900, 2200, None, false), Err("heal-not-known"));
        assert!(plan(1900, 2200, Some(1900), false).is_ok());
        assert_eq!(plan(1900, 2200, Some(1950), false), Err("heal-not-known"));
        assert!(plan(1900, 2200, Some(1950), true).is_ok());
        assert_eq!(plan(2300, 2300, None, false), Err("heal-range"));
        assert_eq!(plan(2500, 2600, None, false), Err("heal-range"), "in the future");
        let of = HealAsk { content_types: vec!["DLP.All".into()], ..ask(100, 200) };
        let refused = for_range(&streams, &of, None, &StoredHeal::default(), t(2400), "s".into());
        assert_eq!(refused.map_err(|e| e.slug()), Err("heal-type-not-read"));
    }

    #[test]
    fn a_long_range_is_cut_into_no_more_windows_than_a_day_allows_and_they_cover_all_of_it() {
        let job = for_range(&[stream(&[])], &ask(0, 1000), None, &StoredHeal::default(), t(5000), "s".into()).unwrap();
        assert_eq!(job.windows.len(), 42);
        let whole = Window { start: t(0), end: t(365 * 24) };
        let windows = cut(&[whole]);
        assert!(windows.len() <= WINDOWS_MAX as usize + 1, "{}", windows.len());
        assert!(without(vec![whole], windows.into_iter()).is_empty());
    }

    #[test]
    fn what_was_left_keeps_open_whatever_its_events_may_be_of() {
        let wanted = WantedInterval { lead: t(28), from: t(100), to: t(200), reason: String::new() };
        let w = |from, to| Window { start: t(from), end: t(to) };
        assert_eq!(filled(&wanted, std::iter::empty()), [w(100, 200)]);
        assert_eq!(filled(&wanted, [w(30, 40)].into_iter()), [w(112, 200)]);
        assert_eq!(filled(&wanted, [w(110, 112)].into_iter()), [w(100, 110), w(184, 200)]);
    }
    #[test]
    fn what_was_left_out_keeps_open_what_it_may_be_of_and_says_so() {
        let wanted = WantedInterval { lead: t(28), from: t(100), to: t(200), reason: String::new() };
        let w = |from, to| Window { start: t(from), end: t(to) };
        let out = |of: &str, from, to| LeftOut { content_type: of.into(), from: t(from), to: t(to), events: 3 };
        let second = SignedDuration::from_secs(1);
        let until = |hour| t(hour) + second;
        let open = |left: &[Window], left_out: &[LeftOut]| not_known("Audit.Exchange", &wanted, left, left_out);
        assert_eq!(open(&[], &[]), []);
        let of_exchange = out("Audit.Exchange", 30, 40);
        let expected = Window { start: t(100), end: until(112) };
        assert_eq!(open(&[], std::slice::from_ref(&of_exchange)), [(expected, 3)]);
        assert_eq!(open(&[], &[out("Audit.General", 30, 40)]), []);
        assert_eq!(open(&[], &[out("Audit.Exchange", 10, 20)]), [], "too long before");
        // A part that stays open for another reason is tried again.
        assert_eq!(open(&[w(30, 60)], std::slice::from_ref(&of_exchange)), []);
    }
}
