//! Which windows to list: pure arithmetic over a position and Microsoft's clock.
//!
//! The API lists by `contentCreated`, at most 24 hours a call and at most 7 days back, and refuses windows that break
//! either rule by its own clock (AF20055). Every span and margin of that arithmetic is named here and nowhere else.
//! This module does no I/O, reads no clock and does not handle blobs.

use jiff::{SignedDuration, Unit};

use crate::model::{Timestamp, Window};

/// The longest window requested. The documentation allows 24 h; one client was refused at exactly 24 h in May 2026.
pub const WINDOW_SPAN_MAX: SignedDuration = SignedDuration::from_hours(23);
/// How far back Microsoft lists.
pub const LISTABLE_SPAN: SignedDuration = SignedDuration::from_hours(7 * 24);
/// The distance kept from [`LISTABLE_SPAN`], so that a request is not too old on arrival.
pub const LISTABLE_MARGIN: SignedDuration = SignedDuration::from_mins(5);
/// `complete_until` stays this far behind Microsoft's now: the newest minutes of a listing are not stable.
pub const COMPLETE_MARGIN: SignedDuration = SignedDuration::from_mins(5);
/// Listed again once an hour.
pub const HOURLY_REACH: SignedDuration = SignedDuration::from_hours(24);
/// A window narrower than this is not halved further.
pub const WINDOW_SPAN_MIN: SignedDuration = SignedDuration::from_secs(60);

/// How far back a pass lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// From `complete_until` minus the overlap.
    Overlap,
    /// The last 24 hours, or the overlap if that reaches further.
    Day,
    /// Everything Microsoft still lists, but never before `origin`.
    Week,
}

/// The bounds from which a pass of one stream is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Older content is never listed.
    pub origin: Timestamp,
    /// Everything made available before it is settled; `None` before the first complete pass.
    pub complete_until: Option<Timestamp>,
}

/// The earliest instant that may be listed at `now`.
pub fn earliest_listable(now: Timestamp) -> Timestamp {
    now - (LISTABLE_SPAN - LISTABLE_MARGIN)
}

/// Where a source that never ran begins: `backfill` before `now`, as far as Microsoft lists.
pub fn first_origin(now: Timestamp, backfill: SignedDuration) -> Timestamp {
    floor_to_second(minus(now, backfill).max(earliest_listable(now)))
}

/// The windows of one pass at Microsoft's time `now`, newest first, each at most [`WINDOW_SPAN_MAX`] long, together
/// covering `[from, now)` completely, where `from` follows from `reach`, but is not before `origin` nor before the
/// listable span.
pub fn windows(bounds: Bounds, now: Timestamp, overlap: SignedDuration, reach: Reach) -> Vec<Window> {
    let from = match (reach, bounds.complete_until) {
        (Reach::Week, _) | (_, None) => bounds.origin,
        (Reach::Overlap, Some(complete)) => minus(complete, overlap),
        (Reach::Day, Some(complete)) => minus(complete, overlap).min(minus(now, HOURLY_REACH)),
    };
    tile(from.max(bounds.origin), now)
}

/// Cuts `[from, now)` into windows, newest first; the part that is no longer listable at `now` is left out.
pub fn tile(from: Timestamp, now: Timestamp) -> Vec<Window> {
    let end = floor_to_second(now);
    let from = floor_to_second(from.max(earliest_listable(now)));
    let mut windows = Vec::new();
    let mut upper = end;
    while upper > from {
        let start = minus(upper, WINDOW_SPAN_MAX).max(from);
        windows.push(Window { start, end: upper });
        upper = start;
    }
    windows
}

/// The interval that was never listed and no longer can be: from the end of the last listing to the start of the
/// listable span.
pub fn unlistable(listed_until: Timestamp, now: Timestamp) -> Option<Window> {
    let earliest = earliest_listable(now);
    (listed_until < earliest).then_some(Window { start: listed_until, end: earliest })
}

/// A window in two halves, newest first; `None` when it is too narrow.
pub fn halves(window: Window) -> Option<[Window; 2]> {
    let span = window.end.duration_since(window.start);
    if span < WINDOW_SPAN_MIN * 2 {
        return None;
    }
    let middle = floor_to_second(window.start + span / 2);
    Some([Window { start: middle, end: window.end }, Window { start: window.start, end: middle }])
}

/// How far `complete_until` may move: the end of the furthest run of read windows that begins at or before
/// `complete_until` (or `origin`), no window of which holds an unsettled blob, and at most [`COMPLETE_MARGIN`] behind
/// `now`. `None` when it stays where it is.
///
/// `read` holds windows whose every page was read, in any order, overlapping or not. `oldest_unsettled` is the
/// smallest `contentCreated` among blobs that are listed and not settled (those tracked on their own left out).
pub fn advance(
    bounds: Bounds,
    read: &[Window],
    oldest_unsettled: Option<Timestamp>,
    now: Timestamp,
) -> Option<Timestamp> {
    let mut read: Vec<Window> = read.to_vec();
    read.sort_by_key(|w| (w.start, w.end));
    let from = bounds.complete_until.unwrap_or(bounds.origin);
    let mut reached = from;
    for window in read {
        if window.start > reached {
            break;
        }
        if oldest_unsettled.is_some_and(|blob| blob < window.end) {
            // This window, or one before it, holds an unanswered blob: CK-1 stops here, but an older window that
            // overlaps this one may still have been passed.
            continue;
        }
        reached = reached.max(window.end);
    }
    let reached = reached.min(floor_to_second(now - COMPLETE_MARGIN));
    (reached > from || (bounds.complete_until.is_none() && reached >= from && reached > bounds.origin))
        .then_some(reached)
}

/// `time` with its fraction of a second cut off: the API's parameter has whole seconds, and a start must never be
/// rounded up.
pub fn floor_to_second(time: Timestamp) -> Timestamp {
    time.round(jiff::TimestampRound::new().smallest(Unit::Second).mode(jiff::RoundMode::Floor)).unwrap_or(time)
}

/// `time - span`, limited to the calendar's range.
fn minus(time: Timestamp, span: SignedDuration) -> Timestamp {
    time.checked_sub(span).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn t(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn bounds(origin: &str, complete: Option<&str>) -> Bounds {
        Bounds { origin: t(origin), complete_until: complete.map(t) }
    }

    const OVERLAP: SignedDuration = SignedDuration::from_hours(3);

    #[test]
    fn a_poll_lists_from_complete_until_minus_the_overlap() {
        let windows = windows(
            bounds("2026-05-01T00:00:00Z", Some("2026-05-03T10:00:00Z")),
            t("2026-05-03T10:05:00.900Z"),
            OVERLAP,
            Reach::Overlap,
        );
        assert_eq!(windows, [Window { start: t("2026-05-03T07:00:00Z"), end: t("2026-05-03T10:05:00Z") }]);
    }

    #[test]
    fn nothing_before_origin_is_listed_by_any_reach() {
        for reach in [Reach::Overlap, Reach::Day, Reach::Week] {
            let windows = windows(
                bounds("2026-05-03T09:00:00Z", Some("2026-05-03T10:00:00Z")),
                t("2026-05-03T10:05:00Z"),
                OVERLAP,
                reach,
            );
            assert_eq!(windows.last().unwrap().start, t("2026-05-03T09:00:00Z"), "{reach:?}");
        }
    }

    #[test]
    fn a_week_is_eight_windows_newest_first_and_stays_listable() {
        let now = t("2026-05-08T00:00:00Z");
        let windows = windows(bounds("2026-04-01T00:00:00Z", None), now, OVERLAP, Reach::Week);
        assert_eq!(windows.len(), 8);
        assert_eq!(windows[0].end, now);
        assert_eq!(windows[7].start, t("2026-05-01T00:05:00Z"));
    }

    #[test]
    fn the_interval_that_can_no_longer_be_listed_is_named() {
        let now = t("2026-05-10T00:00:00Z");
        assert_eq!(unlistable(t("2026-05-09T00:00:00Z"), now), None);
        assert_eq!(
            unlistable(t("2026-05-01T00:00:00Z"), now),
            Some(Window { start: t("2026-05-01T00:00:00Z"), end: t("2026-05-03T00:05:00Z") })
        );
    }

    #[test]
    fn frontier_never_passes_an_unread_window_or_an_unanswered_blob() {
        let w = |a: &str, b: &str| Window { start: t(a), end: t(b) };
        let b = bounds("2026-05-01T00:00:00Z", Some("2026-05-03T00:00:00Z"));
        let now = t("2026-05-04T12:00:00Z");
        let newest = w("2026-05-03T13:00:00Z", "2026-05-04T12:00:00Z");
        let older = w("2026-05-02T14:00:00Z", "2026-05-03T13:00:00Z");
        // Only the newest window was read: nothing moves.
        assert_eq!(advance(b, &[newest], None, now), None);
        // Both read: up to five minutes behind now.
        assert_eq!(advance(b, &[newest, older], None, now), Some(t("2026-05-04T11:55:00Z")));
        // A blob of the newest window is unanswered: the older window may be passed.
        assert_eq!(advance(b, &[newest, older], Some(t("2026-05-03T13:00:00Z")), now), Some(t("2026-05-03T13:00:00Z")));
        // A blob of the older window is unanswered: nothing moves.
        assert_eq!(advance(b, &[newest, older], Some(t("2026-05-03T12:59:59.999Z")), now), None);
    }

    fn instants() -> impl Strategy<Value = i64> {
        0i64..40 * 86_400_000
    }

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(1_780_000_000_000 + millis).unwrap()
    }

    proptest! {
        #[test]
        fn ck_4_windows_tile_without_a_hole_and_stay_within_the_limits(
            origin in instants(), complete in proptest::option::of(instants()), now in instants(), overlap_s in 0i64..86_400,
            reach in prop_oneof![Just(Reach::Overlap), Just(Reach::Day), Just(Reach::Week)],
        ) {
            let (origin, now) = (at(origin), at(now));
            let complete_until = complete.map(at);
            let bounds = Bounds { origin, complete_until };
            let windows = windows(bounds, now, SignedDuration::from_secs(overlap_s), reach);
            let mut expected_end = floor_to_second(now);
            for w in &windows {
                prop_assert_eq!(w.end, expected_end);
                prop_assert!(w.start < w.end);
                prop_assert!(w.end.duration_since(w.start) <= WINDOW_SPAN_MAX);
                prop_assert!(w.end <= now);
                prop_assert!(now.duration_since(w.start) <= LISTABLE_SPAN);
                prop_assert_eq!(w.start.subsec_nanosecond(), 0);
                expected_end = w.start;
            }
            if let Some(last) = windows.last() {
                let lower = floor_to_second(earliest_listable(now)).max(floor_to_second(origin));
                prop_assert!(last.start >= lower);
                if let Some(c) = complete_until {
                    prop_assert!(last.start <= floor_to_second(c).max(lower), "the pass begins at or before complete_until");
                }
            }
        }

        #[test]
        fn ck_1_the_frontier_is_covered_and_behind_every_unsettled_blob(
            complete in instants(),
            read in proptest::collection::vec((instants(), 1i64..80_000_000), 0..8),
            unsettled in proptest::option::of(instants()), now in instants(),
        ) {
            let bounds = Bounds { origin: at(0), complete_until: Some(at(complete)) };
            let read: Vec<Window> = read.into_iter().map(|(s, l)| Window { start: at(s), end: at(s + l) }).collect();
            let unsettled = unsettled.map(at);
            if let Some(next) = advance(bounds, &read, unsettled, at(now)) {
                prop_assert!(next > at(complete));
                prop_assert!(next <= at(now) - COMPLETE_MARGIN);
                if let Some(blob) = unsettled { prop_assert!(next <= blob); }
                // Every instant between the old and the new frontier lies in a window that was read.
                let mut reached = at(complete);
                while reached < next {
                    let further = read.iter().filter(|w| w.start <= reached && w.end > reached).map(|w| w.end).max();
                    prop_assert!(further.is_some(), "hole at {}", reached);
                    reached = further.unwrap();
                }
            }
        }

        #[test]
        fn halves_make_the_whole(start in instants(), span_s in 1i64..90_000) {
            let start = floor_to_second(at(start));
            let window = Window { start, end: start + SignedDuration::from_secs(span_s) };
            match halves(window) {
                Some([new, old]) => {
                    prop_assert_eq!(old.start, window.start);
                    prop_assert_eq!(old.end, new.start);
                    prop_assert_eq!(new.end, window.end);
                    prop_assert!(old.start < old.end && new.start < new.end);
                }
                None => prop_assert!(span_s < 120),
            }
        }
    }
}
