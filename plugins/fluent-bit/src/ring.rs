//! The records that a threaded Fluent Bit holds in memory: appended by this plugin, but not yet known to be in a chunk.
//!
//! There an append is done when the records are in a ring in memory, from which the engine, one thread, appends them to
//! chunks in their order, some 250 ms later. It does not report this. Two conditions settle an append, whichever comes
//! first:
//! - **Seen**: the engine counts records and bytes of the input when it begins with a buffer (2.2 and 3.0: when it is
//!   done with it). When both counters are exactly at the end of a later append, it is done with every earlier one.
//!   Processors or conditional routes may change the counts: once the counters had another value, they are ignored.
//! - **Time**: `SETTLE_AFTER`, without pauses, since a paused engine does not process the ring. While the counters are
//!   at the end of an earlier append, `UNSEEN_AFTER`: the engine is busy with other work.
//!
//! Pure: callers pass the time and the counters.

use std::collections::VecDeque;
use std::time::Duration;

use m365_audit::host::TicketAnswer;

/// Four times the engine's own interval.
const SETTLE_AFTER: Duration = Duration::from_secs(1);
/// The same while the counters show that the engine has not come so far. Not for ever: a processor of the input may
/// have taken the records away.
const UNSEEN_AFTER: Duration = Duration::from_secs(10);
/// After this many readings in a row that match no append, the host does not count this plugin's appends. A single one
/// may have been taken between the engine's two counters.
const ODD_READINGS: u8 = 3;

/// A host's counts of the input since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Records.
    pub records: u64,
    /// Their bytes as appended.
    pub bytes: u64,
}

impl Counted {
    fn since(self, base: Self) -> Option<Self> {
        let records = self.records.checked_sub(base.records)?;
        Some(Self { records, bytes: self.bytes.checked_sub(base.bytes)? })
    }
}

/// Appends in their order.
#[derive(Debug, Default)]
pub struct Ring {
    appends: VecDeque<Append>,
    /// The counters when the ring was last empty; `None`: they cannot be read.
    base: Option<Counted>,
    /// Appended since then, and settled of it.
    appended: Counted,
    settled: Counted,
    /// Whether the counters were always at the end of an append since the ring was last empty.
    exact: bool,
    odd_readings: u8,
    /// The call before this one.
    last_call: Duration,
}

#[derive(Debug)]
struct Append {
    answers: Vec<TicketAnswer>,
    /// The counters when the engine has begun with it.
    end: Counted,
    since: Duration,
    /// Whether the engine has begun with it, at `since`.
    begun: bool,
}

impl Ring {
    /// Whether no append waits to be settled.
    pub fn is_empty(&self) -> bool {
        self.appends.is_empty()
    }

    /// Sets the counters before an append to an empty ring.
    pub fn begin(&mut self, counted: Option<Counted>) {
        debug_assert!(self.is_empty());
        (self.base, self.exact) = (counted, counted.is_some());
        (self.appended, self.settled, self.odd_readings) = Default::default();
    }

    /// Records an append at `now`.
    pub fn push(&mut self, answers: Vec<TicketAnswer>, size: Counted, now: Duration) {
        self.appended.records += size.records;
        self.appended.bytes += size.bytes;
        self.appends.push_back(Append { answers, end: self.appended, since: now, begun: false });
    }

    /// A call of the host at `now`, with its counters if they were read: returns the settled ones.
    pub fn settle(&mut self, now: Duration, counted: Option<Counted>) -> Vec<TicketAnswer> {
        let mut settled = Vec::new();
        if let (true, Some(counted), Some(base)) = (self.exact, counted, self.base) {
            self.note(now, counted.since(base), &mut settled);
        }
        while let Some(first) = self.appends.front() {
            let wait = if self.exact && !first.begun { UNSEEN_AFTER } else { SETTLE_AFTER };
            // Between the two calls the host could have reported a pause.
            if now < first.since + wait || self.last_call < first.since + SETTLE_AFTER / 2 {
                break;
            }
            self.pop(&mut settled);
        }
        self.last_call = now;
        settled
    }

    /// Ends a pause, in which no record left the ring.
    pub fn resume(&mut self, now: Duration) {
        for append in &mut self.appends {
            append.since = now;
        }
    }

    /// Processes counters at `at`; `None`: before the base.
    fn note(&mut self, now: Duration, at: Option<Counted>, settled: &mut Vec<TicketAnswer>) {
        if let Some(earlier) = self.appends.iter().position(|append| Some(append.end) == at) {
            self.odd_readings = 0;
            for _ in 0..earlier {
                self.pop(settled);
            }
            if let Some(begun) = self.appends.front_mut().filter(|first| !first.begun) {
                (begun.begun, begun.since) = (true, now);
            }
        } else if at == Some(self.settled) {
            self.odd_readings = 0;
        } else {
            self.odd_readings += 1;
            self.exact = self.odd_readings < ODD_READINGS;
        }
    }

    fn pop(&mut self, settled: &mut Vec<TicketAnswer>) {
        if let Some(append) = self.appends.pop_front() {
            self.settled = append.end;
            settled.extend(append.answers);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use m365_audit::host::{Delivery, DeliveryTicket};

    /// A ring, and the tickets of its appends: records of ten bytes.
    struct Rig {
        ring: Ring,
        tickets: Vec<Option<DeliveryTicket>>,
    }

    fn rig(counted: Option<Counted>) -> Rig {
        let mut ring = Ring::default();
        ring.begin(counted);
        Rig { ring, tickets: Vec::new() }
    }

    const NONE: [usize; 0] = [];

    fn records(records: u64) -> Counted {
        Counted { records, bytes: records * 10 }
    }

    impl Rig {
        fn append(&mut self, ms: u64, size: u64) {
            let (answer, ticket) = DeliveryTicket::new();
            self.tickets.push(Some(ticket));
            self.ring.push(vec![answer], records(size), Duration::from_millis(ms));
        }

        /// A call of the host with such counters. Which tickets it settles.
        fn call(&mut self, ms: u64, counted: Option<Counted>) -> Vec<usize> {
            for answer in self.ring.settle(Duration::from_millis(ms), counted) {
                answer.answer(Delivery::Delivered);
            }
            let mut settled = Vec::new();
            for (n, ticket) in self.tickets.iter_mut().enumerate() {
                if let Some(answer) = ticket.as_mut().and_then(FutureExt::now_or_never) {
                    assert_eq!(answer, Delivery::Delivered);
                    settled.push(n);
                    *ticket = None;
                }
            }
            settled
        }
    }

    #[test]
    fn an_append_is_settled_when_the_engine_has_begun_with_a_later_one_and_not_before() {
        let mut rig = rig(Some(records(1_000)));
        [3, 4, 5].into_iter().for_each(|size| rig.append(0, size));
        assert_eq!(rig.call(1, Some(records(1_000))), NONE);
        assert_eq!(rig.call(2, Some(records(1_003))), NONE, "it may still be at it");
        assert_eq!(rig.call(3, Some(records(1_007))), [0]);
        rig.append(4, 1);
        assert_eq!(rig.call(5, Some(records(1_013))), [1, 2], "two at once");
    }

    #[test]
    fn what_is_counted_and_has_none_behind_it_settles_a_second_later() {
        let mut rig = rig(Some(records(0)));
        rig.append(0, 3);
        assert_eq!(rig.call(900, Some(records(3))), NONE);
        assert_eq!(rig.call(1_500, Some(records(3))), NONE);
        assert_eq!(rig.call(1_899, Some(records(3))), NONE);
        assert_eq!(rig.call(1_900, Some(records(3))), [0]);
        assert!(rig.ring.is_empty());
    }

    #[test]
    fn counters_that_stand_at_the_end_of_no_append_settle_nothing() {
        // More records than were appended, fewer, other bytes, and before the base.
        let odd = [records(14), records(8), Counted { records: 13, bytes: 131 }, records(5)];
        let mut rig = rig(Some(records(10)));
        [3, 4].into_iter().for_each(|size| rig.append(0, size));
        for (ms, counted) in odd.into_iter().enumerate() {
            assert_eq!(rig.call(ms as u64, Some(counted)), NONE, "{counted:?}");
        }
    }

    #[test]
    fn counters_that_stood_elsewhere_are_not_believed_until_the_ring_was_empty() {
        let mut rig = rig(Some(records(0)));
        (0..4).for_each(|_| rig.append(0, 3));
        // Each append is counted twice, so the counters after the second equal those expected after the fourth.
        (1..=ODD_READINGS.into()).for_each(|ms| assert_eq!(rig.call(ms, Some(records(4))), NONE));
        assert_eq!(rig.call(10, Some(records(12))), NONE);
        rig.call(600, Some(records(24)));
        assert_eq!(rig.call(1_000, Some(records(24))), [0, 1, 2, 3]);
        rig.ring.begin(Some(records(24)));
        [3, 4].into_iter().for_each(|size| rig.append(2_000, size));
        assert_eq!(rig.call(2_100, Some(records(31))), [4]);
    }

    #[test]
    fn a_host_that_counts_otherwise_or_not_at_all_settles_by_time() {
        for counted in [None, Some(records(77))] {
            let mut rig = rig(counted.map(|_| records(0)));
            rig.append(0, 3);
            assert_eq!(rig.call(300, counted), NONE);
            assert_eq!(rig.call(400, counted), NONE);
            assert_eq!(rig.call(1_100, counted), NONE, "no call between in which the host could have told of a pause");
            assert_eq!(rig.call(1_150, counted), [0], "{counted:?}");
        }
    }

    #[test]
    fn an_engine_that_has_not_come_so_far_by_its_counters_is_waited_for() {
        for first in [None, Some(records(7))] {
            let mut rig = rig(Some(records(7)));
            rig.append(0, 3);
            rig.call(100, first);
            assert_eq!(rig.call(9_900, first.or(Some(records(7)))), NONE);
            assert_eq!(rig.call(10_000, Some(records(7))), [0]);
        }

        let mut rig = rig(Some(records(0)));
        [3, 4, 5].into_iter().for_each(|size| rig.append(0, size));
        assert_eq!(rig.call(500, Some(records(7))), [0]);
        for ms in (600..10_000).step_by(100) {
            let expected: &[usize] = if ms == 1_500 { &[1] } else { &[] };
            assert_eq!(rig.call(ms, Some(records(7))), expected, "{ms}");
        }
        assert_eq!(rig.call(10_000, Some(records(7))), [2], "something took it away");
    }

    #[test]
    fn counters_that_go_astray_leave_the_rest_to_time() {
        let mut rig = rig(Some(records(0)));
        [3, 4, 5].into_iter().for_each(|size| rig.append(0, size));
        assert_eq!(rig.call(500, Some(records(7))), [0]);
        assert_eq!(rig.call(900, Some(records(8))), NONE);
        assert_eq!(rig.call(1_000, Some(records(9))), NONE);
        assert_eq!(rig.call(1_100, Some(records(10))), NONE, "the second has been begun with 600 ms ago");
        assert_eq!(rig.call(1_500, Some(records(10))), [1, 2]);
    }

    #[test]
    fn an_empty_ring_takes_the_counters_as_they_are() {
        let mut rig = rig(Some(records(0)));
        rig.append(0, 3);
        rig.call(600, Some(records(50)));
        rig.call(700, Some(records(50)));
        assert_eq!(rig.call(1_200, Some(records(50))), [0]);
        rig.ring.begin(Some(records(50)));
        [3, 4].into_iter().for_each(|size| rig.append(2_000, size));
        assert_eq!(rig.call(2_100, Some(records(57))), [1]);
    }

    #[test]
    fn a_pause_starts_the_second_again() {
        let mut rig = rig(None);
        rig.append(0, 3);
        rig.call(900, None);
        rig.ring.resume(Duration::from_millis(5_000));
        assert_eq!(rig.call(5_000, None), NONE);
        assert_eq!(rig.call(5_700, None), NONE);
        assert_eq!(rig.call(5_999, None), NONE);
        assert_eq!(rig.call(6_000, None), [0]);
    }
}
