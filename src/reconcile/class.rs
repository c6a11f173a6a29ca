//! Assigns one class to each row of an export, by the evidence on its event and by its time.

use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use jiff::SignedDuration;

use crate::checkpoint::format::Position;
use crate::model::{ContentType, Timestamp};

macro_rules! classes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What a row is. Each row is exactly one, and they sum to the rows.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum RowClass { $($(#[$doc])* $variant),* }

        impl RowClass {
            /// All of them, in the order in which they are shown.
            pub const ALL: &'static [RowClass] = &[$(RowClass::$variant),*];

            /// Its name in the verdict.
            pub const fn name(self) -> &'static str {
                match self { $(RowClass::$variant => $name),* }
            }
        }
    };
}

classes! {
    /// The host has the event.
    Delivered = "delivered",
    /// The same event stood in the export before.
    Repeated = "repeated",
    /// A rule dropped it.
    Dropped = "dropped",
    /// It waits until it is known whether data loss prevention flagged it.
    Held = "held",
    /// Every receiver refused its record: it is in the state.
    SetAside = "set_aside",
    /// Its content type is not configured.
    NotRead = "not_read",
    /// It became available in a gap that was declared, or before the source's origin.
    InGap = "in_gap",
    /// It may be on its way.
    TooYoung = "too_young",
    /// What was delivered then is not remembered any more.
    TooOld = "too_old",
    /// It has no `Id`, by which it could be found.
    NoIdentity = "no_identity",
    /// Neither the event nor what identifies it can be read.
    Unreadable = "unreadable",
    /// None of these: it should have been delivered.
    Missing = "missing",
}

/// How many rows are of each class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClassCounts([u64; RowClass::ALL.len()]);

impl ClassCounts {
    /// Counts rows.
    pub fn add(&mut self, class: RowClass, rows: u64) {
        if let Some(count) = self.0.get_mut(class as usize) {
            *count += rows;
        }
    }

    /// How many are of a class.
    pub fn of(&self, class: RowClass) -> u64 {
        self.0.get(class as usize).copied().unwrap_or_default()
    }

    /// How many there are.
    pub fn sum(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// The evidence on a row's event. Several bits can be set: [`ClassTerms::class_of`] decides.
pub mod found {
    /// A receipt says that it was delivered.
    pub const DELIVERED: u8 = 1;
    /// A receipt names the rule that dropped it.
    pub const DROPPED: u8 = 1 << 1;
    /// It is on hold, according to the state. A receipt with this class is only about the past.
    pub const HELD: u8 = 1 << 2;
    /// It is set aside, according to the state.
    pub const ASIDE: u8 = 1 << 3;
    /// It is among the records that were given as delivered.
    pub const GIVEN: u8 = 1 << 4;
    /// Its duplicate key is in the state.
    pub const KEY: u8 = 1 << 5;
    /// The rules as they are configured now drop it, and no receipt would name them.
    pub const ROUTINE: u8 = 1 << 6;
}

/// The data kept for a row: eight bytes beside its key.
#[derive(Debug, Default)]
pub struct Row {
    /// Seconds since 1970 of `CreationTime`; 0 where it cannot be read.
    secs: u32,
    /// The rule that dropped it, by its number from 1 on.
    rule: AtomicU16,
    /// Its content type as an index of [`ContentType::ALL`]; a greater number means that it is uncertain.
    content_type: u8,
    found: AtomicU8,
}

impl Row {
    /// A row without evidence.
    pub fn new(time: Option<Timestamp>, content_type: Option<ContentType>) -> Row {
        let secs = time.map_or(0, |time| u32::try_from(time.as_second().max(1)).unwrap_or(u32::MAX));
        let place = content_type.and_then(|wanted| ContentType::ALL.iter().position(|known| *known == wanted));
        let content_type = place.and_then(|place| u8::try_from(place).ok()).unwrap_or(u8::MAX);
        Row { secs, content_type, ..Row::default() }
    }

    /// The time of the event; `None` if it cannot be parsed.
    pub fn time(&self) -> Option<Timestamp> {
        (self.secs != 0).then(|| Timestamp::from_second(self.secs.into()).ok()).flatten()
    }

    /// The content type that would have contained it, if that is certain.
    pub fn content_type(&self) -> Option<ContentType> {
        ContentType::ALL.get(usize::from(self.content_type)).copied()
    }

    /// Adds evidence.
    pub fn note(&self, what: u8) {
        self.found.fetch_or(what, Ordering::Relaxed);
    }

    /// Notes the rule that dropped it; the first one noted is kept.
    pub fn note_rule(&self, number: u16, what: u8) {
        let _ = self.rule.compare_exchange(0, number, Ordering::Relaxed, Ordering::Relaxed);
        self.note(what);
    }

    /// Its evidence: bits of [`found`].
    pub fn found(&self) -> u8 {
        self.found.load(Ordering::Relaxed)
    }

    /// The number of the rule that dropped it.
    pub fn rule(&self) -> u16 {
        self.rule.load(Ordering::Relaxed)
    }
}

/// For how long the feed lists content.
const LISTED: SignedDuration = SignedDuration::from_hours(7 * 24);

/// The progress of one stream of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComparedStream {
    /// The content type.
    pub content_type: ContentType,
    /// Its position; `None` when it never ran.
    pub position: Option<Position>,
    /// How late its content may become available after its events ([`lateness::bound`](crate::checkpoint::lateness::bound)).
    pub late: SignedDuration,
}

/// The parameters by which rows are classified.
#[derive(Debug, Clone)]
pub struct ClassTerms {
    /// The time of the comparison.
    pub now: Timestamp,
    /// Events younger than this may still arrive; with zero every row is classified.
    pub settle: SignedDuration,
    /// The content types that are configured, with their positions.
    pub streams: Vec<ComparedStream>,
    /// Whether there is a state: without one the only evidence is the records given as delivered.
    pub has_state: bool,
    /// Events delivered before this may no longer be known; `None` if all are known.
    pub reach: Option<Timestamp>,
}

impl ClassTerms {
    /// The class of a row; `has_id` where its event has an `Id`.
    pub fn class_of(&self, row: &Row, has_id: bool) -> RowClass {
        let found = row.found();
        let is = |what: u8| found & what != 0;
        match () {
            () if is(found::DELIVERED | found::GIVEN) => RowClass::Delivered,
            () if is(found::DROPPED) => RowClass::Dropped,
            () if is(found::HELD) => RowClass::Held,
            () if is(found::ASIDE) => RowClass::SetAside,
            // The key of a read that was on hold and then dropped is kept, too.
            () if is(found::KEY) && is(found::ROUTINE) => RowClass::Dropped,
            () if is(found::KEY) => RowClass::Delivered,
            () => self.class_of_unknown(row, has_id),
        }
    }

    /// The class of a row without evidence.
    fn class_of_unknown(&self, row: &Row, has_id: bool) -> RowClass {
        let content_type = row.content_type();
        let is_read = |wanted| self.streams.iter().any(|stream| stream.content_type == wanted);
        if content_type.is_some_and(|wanted| !is_read(wanted)) {
            return RowClass::NotRead;
        }
        // If the type is uncertain, a condition that holds for any stream may hold for this row.
        let streams = self.streams.iter().filter(|s| content_type.is_none_or(|wanted| s.content_type == wanted));
        let time = row.time();
        if time.is_some_and(|time| streams.clone().any(|stream| stream.is_in_gap(time, self.now))) {
            return RowClass::InGap;
        }
        match time {
            _ if row.found() & found::ROUTINE != 0 => RowClass::Dropped,
            Some(time) if self.is_young(time, streams, content_type.is_some()) => RowClass::TooYoung,
            Some(time) if self.reach.is_some_and(|reach| time < reach) => RowClass::TooOld,
            // Its time is unknown, so it may be before the reach.
            None if self.reach.is_some() => RowClass::TooOld,
            _ if has_id => RowClass::Missing,
            _ => RowClass::NoIdentity,
        }
    }

    /// Whether an event with this time may still arrive in one of these streams.
    fn is_young<'s>(
        &self,
        time: Timestamp,
        streams: impl Iterator<Item = &'s ComparedStream> + Clone,
        is_type_sure: bool,
    ) -> bool {
        if self.settle.is_zero() {
            return false;
        }
        let complete = |stream: &ComparedStream| stream.position.as_ref()?.complete_until;
        // A stream without a position may be parked. If the type is uncertain, the other streams decide.
        let waits_for_all = is_type_sure || !streams.clone().any(|stream| complete(stream).is_some());
        let is_behind = |stream: &ComparedStream| complete(stream).map_or(waits_for_all, |complete| time >= complete);
        let (age, mut streams) = (self.now.duration_since(time), streams);
        let is_listed = |stream: &ComparedStream| age < LISTED.saturating_add(stream.late);
        age < self.settle || self.has_state && streams.any(|stream| is_behind(stream) && is_listed(stream))
    }
}

impl ComparedStream {
    /// Whether an event with this time became available in a gap.
    fn is_in_gap(&self, time: Timestamp, now: Timestamp) -> bool {
        let Some(position) = &self.position else { return false };
        let within = |from: Timestamp, to: Timestamp| {
            let from = from.saturating_sub(self.late).unwrap_or(Timestamp::MIN);
            from <= time && time < to
        };
        time < position.origin
            || position.gaps.iter().any(|gap| within(gap.from, gap.to))
            || position.passed_over.is_some_and(|(from, to)| within(from, to))
            || position.disabled_since.is_some_and(|from| within(from, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::format::DeclaredGap;
    use proptest::prelude::*;

    fn at(hour: i64) -> Timestamp {
        Timestamp::from_second(1_780_000_000 / 3600 * 3600 + hour * 3600).unwrap()
    }

    /// The source reads two types: from hour 0 to hour 400, with a gap in hours 200 to 210 of Exchange.
    fn terms() -> ClassTerms {
        let stream = |content_type, gaps: &[(i64, i64)]| {
            let gap = |(from, to): &(i64, i64)| DeclaredGap { from: at(*from), to: at(*to), reason: "outage".into() };
            let position = Position {
                complete_until: Some(at(400)),
                gaps: gaps.iter().map(gap).collect(),
                ..Position::first(at(0))
            };
            ComparedStream { content_type, position: Some(position), late: SignedDuration::from_hours(72) }
        };
        ClassTerms {
            now: at(410),
            settle: SignedDuration::from_hours(72),
            streams: vec![stream(ContentType::Exchange, &[(200, 210)]), stream(ContentType::SharePoint, &[])],
            has_state: true,
            reach: Some(at(20)),
        }
    }

    fn class(terms: &ClassTerms, hour: i64, content_type: Option<ContentType>, what: u8) -> RowClass {
        let row = Row::new(Some(at(hour)), content_type);
        row.note(what);
        terms.class_of(&row, true)
    }

    #[test]
    fn the_first_line_of_the_table_that_applies_decides() {
        use ContentType::*;
        let terms = terms();
        for (hour, content_type, what, expected) in [
            (100, Some(SharePoint), 0, RowClass::Missing),
            (100, Some(SharePoint), found::DELIVERED, RowClass::Delivered),
            (100, Some(SharePoint), found::GIVEN | found::DROPPED, RowClass::Delivered),
            (100, Some(SharePoint), found::KEY, RowClass::Delivered),
            (100, Some(SharePoint), found::KEY | found::HELD, RowClass::Held),
            (100, Some(SharePoint), found::KEY | found::ASIDE, RowClass::SetAside),
            (100, Some(SharePoint), found::HELD | found::DROPPED | found::KEY, RowClass::Dropped),
            (100, Some(SharePoint), found::HELD | found::DELIVERED, RowClass::Delivered),
            (100, Some(SharePoint), found::ROUTINE, RowClass::Dropped),
            (100, Some(SharePoint), found::KEY | found::ROUTINE, RowClass::Dropped),
            (100, Some(SharePoint), found::KEY | found::ROUTINE | found::GIVEN, RowClass::Delivered),
            (100, Some(SharePoint), found::KEY | found::ROUTINE | found::HELD, RowClass::Held),
            (100, Some(Dlp), found::ROUTINE, RowClass::NotRead),
            (205, Some(Exchange), found::ROUTINE, RowClass::InGap),
            (410 - 71, Some(SharePoint), found::ROUTINE, RowClass::Dropped),
            (19, Some(SharePoint), found::ROUTINE, RowClass::Dropped),
            (100, Some(Dlp), 0, RowClass::NotRead),
            (100, Some(Dlp), found::DELIVERED, RowClass::Delivered),
            (205, Some(Exchange), 0, RowClass::InGap),
            (205, Some(SharePoint), 0, RowClass::Missing),
            (205, None, 0, RowClass::InGap),
            (200 - 72, Some(Exchange), 0, RowClass::InGap),
            (200 - 73, Some(Exchange), 0, RowClass::Missing),
            (210, Some(Exchange), 0, RowClass::Missing),
            (-1, Some(SharePoint), 0, RowClass::InGap),
            (-1, Some(SharePoint), found::KEY, RowClass::Delivered),
            (410 - 71, Some(SharePoint), 0, RowClass::TooYoung),
            (410 - 73, Some(SharePoint), 0, RowClass::Missing),
            (19, Some(SharePoint), 0, RowClass::TooOld),
            (20, Some(SharePoint), 0, RowClass::Missing),
        ] {
            assert_eq!(class(&terms, hour, content_type, what), expected, "{hour} {content_type:?} {what}");
        }
    }

    #[test]
    fn a_settle_of_zero_switches_too_young_off_and_a_position_that_lags_makes_rows_young() {
        let mut terms = terms();
        terms.settle = SignedDuration::ZERO;
        assert_eq!(class(&terms, 405, Some(ContentType::SharePoint), 0), RowClass::Missing);
        terms.settle = SignedDuration::from_secs(1);
        assert_eq!(class(&terms, 405, Some(ContentType::SharePoint), 0), RowClass::TooYoung);
        assert_eq!(class(&terms, 399, Some(ContentType::SharePoint), 0), RowClass::Missing);
        terms.streams[1].position = None;
        assert_eq!(class(&terms, 230, Some(ContentType::SharePoint), 0), RowClass::TooYoung, "it never ran");
        terms.has_state = false;
        assert_eq!(class(&terms, 230, Some(ContentType::SharePoint), 0), RowClass::Missing);
    }

    #[test]
    fn a_stream_that_never_ran_does_not_make_rows_young_for_ever() {
        let mut terms = terms();
        terms.streams[1].position = Some(Position::first(at(0)));
        let oldest = 410 - (7 * 24 + 72);
        for (hour, content_type, exchange, expected) in [
            (230, Some(ContentType::SharePoint), Some(400), RowClass::TooYoung),
            (oldest + 1, Some(ContentType::SharePoint), Some(400), RowClass::TooYoung),
            (oldest, Some(ContentType::SharePoint), Some(400), RowClass::Missing),
            // The other stream has, or has not, read beyond it.
            (230, None, Some(400), RowClass::Missing),
            (230, None, Some(220), RowClass::TooYoung),
            (230, None, None, RowClass::TooYoung),
            (100, None, None, RowClass::Missing),
            (100, Some(ContentType::Exchange), Some(50), RowClass::Missing),
        ] {
            terms.streams[0].position.as_mut().unwrap().complete_until = exchange.map(at);
            assert_eq!(class(&terms, hour, content_type, 0), expected, "{hour} {content_type:?} {exchange:?}");
        }
    }

    #[test]
    fn a_row_without_an_id_cannot_be_missing_and_one_without_a_time_only_where_everything_is_known() {
        let mut terms = terms();
        let row = |time: Option<i64>| Row::new(time.map(at), Some(ContentType::SharePoint));
        assert_eq!(terms.class_of(&row(Some(100)), false), RowClass::NoIdentity);
        assert_eq!(terms.class_of(&row(Some(-5)), false), RowClass::InGap);
        assert_eq!(terms.class_of(&row(None), true), RowClass::TooOld);
        terms.reach = None;
        let classes = [true, false].map(|has_id| terms.class_of(&row(None), has_id));
        assert_eq!(classes, [RowClass::Missing, RowClass::NoIdentity]);
    }

    #[test]
    fn a_row_keeps_its_time_and_type_in_eight_bytes() {
        assert_eq!(size_of::<Row>(), 8);
        for content_type in ContentType::ALL.into_iter().map(Some).chain([None]) {
            let row = Row::new(Some(at(3)), content_type);
            assert_eq!((row.time(), row.content_type()), (Some(at(3)), content_type));
        }
        assert_eq!(Row::new(None, None).time(), None);
        let early = Row::new(Some("1601-01-01T00:00:00Z".parse().unwrap()), None);
        assert!(early.time().is_some_and(|time| time < at(0)), "an odd time is not an unknown one");
    }

    proptest! {
        #[test]
        fn every_row_has_one_class_whatever_is_known(
            what in 0u8..1 << 7, hour in -200i64..900, content_type in 0usize..6, has_id: bool, settle in 0i64..3
        ) {
            let terms = ClassTerms { settle: SignedDuration::from_hours(settle * 36), ..terms() };
            let row = Row::new(Some(at(hour)), ContentType::ALL.get(content_type).copied());
            row.note(what);
            let class = terms.class_of(&row, has_id);
            let never = [RowClass::Repeated, RowClass::Unreadable];
            prop_assert!(!never.contains(&class), "{class:?}");
            prop_assert!(class != RowClass::Missing || has_id);
            let known = what & !found::ROUTINE;
            prop_assert!(known == 0 || class <= RowClass::SetAside, "{:?}", class);
            prop_assert!(what != 0 || class > RowClass::SetAside, "{:?}", class);
        }
    }
}
