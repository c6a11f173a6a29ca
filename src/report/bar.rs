//! Cuts a period into segments by the state of each part. Pure.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::model::{Segment, SegmentState};
use crate::checkpoint::format::Position;
use crate::checkpoint::moving::POSITION_MOVED;
use crate::model::Timestamp;

/// How one content type was read between `from` and `to`, by when content became available. Without a position its
/// state is unknown.
pub fn of_position(position: Option<&Position>, from: Timestamp, to: Timestamp) -> Vec<Segment> {
    let Some(position) = position else {
        return cut(from, to, &[(from, to, SegmentState::NotKnown, None)]);
    };
    let complete = position.complete_until.unwrap_or(position.origin);
    let mut parts = vec![
        (Timestamp::MIN, position.origin, SegmentState::NotRead, None),
        (position.origin, complete, SegmentState::Complete, None),
        (complete.max(position.origin), Timestamp::MAX, SegmentState::NotYet, None),
    ];
    let passed = position.passed_over.map(|(from, to)| (from, to, POSITION_MOVED));
    let gaps = position.gaps.iter().map(|gap| (gap.from, gap.to, &*gap.reason)).chain(passed);
    parts.extend(gaps.map(|(from, to, reason)| (from, to, SegmentState::Gap, Some(reason))));
    cut(from, to, &parts)
}

/// Combines several bars: at each moment, the worst state of any of them.
pub fn worst_of(bars: &[Vec<Segment>], from: Timestamp, to: Timestamp) -> Vec<Segment> {
    let rank = |state| match state {
        SegmentState::Complete => 0,
        SegmentState::NotRead => 1,
        SegmentState::InPart => 2,
        SegmentState::NotKnown => 3,
        SegmentState::NotYet => 4,
        SegmentState::Gap => 5,
    };
    let mut parts: Vec<BarPart<'_>> =
        bars.iter().flatten().map(|s| (s.from, s.to, s.state, s.reason.as_deref())).collect();
    // Of overlapping parts, the last decides.
    parts.sort_by_key(|(_, _, state, _)| rank(*state));
    cut(from, to, &parts)
}

/// A part of a period: its beginning and end, its state, and the reason.
type BarPart<'a> = (Timestamp, Timestamp, SegmentState, Option<&'a str>);

/// Cuts a period at the ends of all parts. Of overlapping parts, the last decides; reasons of gaps are joined. Equal
/// neighbours are merged.
fn cut(from: Timestamp, to: Timestamp, parts: &[BarPart<'_>]) -> Vec<Segment> {
    let ends = parts.iter().flat_map(|(begin, end, ..)| [*begin, *end]).filter(|at| from < *at && *at < to);
    let edges: Vec<Timestamp> = ends.chain([from, to]).collect::<BTreeSet<_>>().into_iter().collect();
    let mut segments: Vec<Segment> = Vec::new();
    for pair in edges.windows(2) {
        let [from, to] = *pair else { continue };
        let over = parts.iter().filter(|(begin, end, ..)| *begin <= from && to <= *end);
        let state = over.clone().next_back().map_or(SegmentState::NotKnown, |(_, _, state, _)| *state);
        let reasons: BTreeSet<&str> = over
            .filter(|part| part.2 == state)
            .filter_map(|part| part.3)
            .flat_map(|reason| reason.split(", "))
            .collect();
        let reason = (!reasons.is_empty()).then(|| reasons.into_iter().collect::<Vec<_>>().join(", "));
        match segments.last_mut() {
            Some(last) if last.state == state && last.reason == reason => last.to = to,
            _ => segments.push(Segment { state, from, to, reason }),
        }
    }
    segments
}

/// The same for hours, which are consecutive and cover the period.
pub fn of_hours(hours: &[(Timestamp, Timestamp, SegmentState)], from: Timestamp, to: Timestamp) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    for (begin, end, state) in hours {
        let (begin, end) = ((*begin).max(from), (*end).min(to));
        match segments.last_mut() {
            Some(last) if last.state == *state => last.to = end,
            _ => segments.push(Segment { state: *state, from: begin, to: end, reason: None }),
        }
    }
    segments
}

/// How many seconds of a period are in each state, the most first.
pub fn shares(bar: &[Segment]) -> Vec<(SegmentState, i64)> {
    let mut shares: Vec<(SegmentState, i64)> = Vec::new();
    for segment in bar {
        let secs = segment.to.duration_since(segment.from).as_secs();
        match shares.iter_mut().find(|(state, _)| *state == segment.state) {
            Some((_, known)) => *known += secs,
            None => shares.push((segment.state, secs)),
        }
    }
    shares.sort_by_key(|(state, secs)| (Reverse(*secs), *state));
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::checkpoint::format::DeclaredGap;

    fn at(hour: i64) -> Timestamp {
        Timestamp::from_second(hour * 3600).unwrap()
    }

    fn position(origin: i64, complete: Option<i64>, gaps: &[(i64, i64, &str)]) -> Position {
        let mut position = Position::first(at(origin));
        position.complete_until = complete.map(at);
        for (from, to, reason) in gaps {
            position.note_gap(DeclaredGap { from: at(*from), to: at(*to), reason: (*reason).to_owned() });
        }
        position
    }

    fn shown(bar: &[Segment]) -> String {
        let hour = |at: Timestamp| at.as_second() / 3600;
        let one = |s: &Segment| {
            format!("{}-{} {:?} {}", hour(s.from), hour(s.to), s.state, s.reason.as_deref().unwrap_or(""))
        };
        bar.iter().map(one).map(|text| text.trim_end().to_owned()).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn a_period_is_cut_at_origin_position_and_gaps() {
        let of = |position: &Position| shown(&of_position(Some(position), at(0), at(100)));
        assert_eq!(of(&position(10, Some(90), &[])), "0-10 NotRead; 10-90 Complete; 90-100 NotYet");
        assert_eq!(
            of(&position(10, Some(90), &[(20, 30, "outage"), (25, 35, "blob_expired"), (95, 120, "outage")])),
            "0-10 NotRead; 10-20 Complete; 20-25 Gap outage; 25-30 Gap blob_expired, outage; 30-35 Gap blob_expired; \
             35-90 Complete; 90-95 NotYet; 95-100 Gap outage"
        );
        assert_eq!(of(&position(-50, Some(200), &[])), "0-100 Complete");
        assert_eq!(of(&position(150, None, &[])), "0-100 NotRead");
        assert_eq!(of(&position(-50, None, &[])), "0-100 NotYet", "what was never listed is not complete");
        assert_eq!(shown(&of_position(None, at(0), at(100))), "0-100 NotKnown");
        let mut moved = position(0, Some(90), &[]);
        moved.passed_over = Some((at(40), at(50)));
        assert_eq!(of(&moved), "0-40 Complete; 40-50 Gap position_moved; 50-90 Complete; 90-100 NotYet");
    }

    #[test]
    fn of_several_content_types_the_worst_is_shown() {
        let bar = |position: &Position| of_position(Some(position), at(0), at(100));
        let one = bar(&position(0, Some(90), &[(20, 30, "outage")]));
        let other = bar(&position(10, Some(95), &[(25, 35, "blob_expired")]));
        assert_eq!(
            shown(&worst_of(&[one, other], at(0), at(100))),
            "0-10 NotRead; 10-20 Complete; 20-25 Gap outage; 25-30 Gap blob_expired, outage; 30-35 Gap blob_expired; \
             35-90 Complete; 90-100 NotYet"
        );
        assert_eq!(shown(&worst_of(&[], at(0), at(100))), "0-100 NotKnown");
    }

    proptest! {
        #[test]
        fn segments_cover_the_period_without_holes_and_a_gap_is_never_called_complete(
            origin in -20i64..120, complete in prop::option::of(-20i64..120),
            gaps in prop::collection::vec((-20i64..120, 1i64..20), 0..8),
        ) {
            let gaps: Vec<_> = gaps.iter().map(|(from, long)| (*from, from + long, "outage")).collect();
            let position = position(origin, complete, &gaps);
            let bar = of_position(Some(&position), at(0), at(100));
            prop_assert_eq!(bar.first().unwrap().from, at(0));
            prop_assert_eq!(bar.last().unwrap().to, at(100));
            prop_assert!(bar.windows(2).all(|pair| pair[0].to == pair[1].from && pair[0].from < pair[0].to));
            for hour in 0..100 {
                let segment = bar.iter().find(|s| s.from <= at(hour) && at(hour) < s.to).unwrap();
                let is_gap = gaps.iter().any(|(from, to, _)| *from <= hour && hour < *to);
                prop_assert_eq!(segment.state == SegmentState::Gap, is_gap);
                if segment.state == SegmentState::Complete {
                    prop_assert!(origin <= hour && complete.is_some_and(|complete| hour < complete));
                }
            }
            prop_assert_eq!(shares(&bar).iter().map(|(_, secs)| secs).sum::<i64>(), 100 * 3600);
        }
    }
}
