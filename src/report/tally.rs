//! Counts a tenant's receipts by the hour in which events were settled: the counts by the day, and the hours that
//! receipts do not cover. It verifies nothing.
//!
//! One part is in memory at a time. Unsealed receipts are read before the head, so that a part sealed meanwhile is
//! counted once.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::bar;
use super::model::{Day, DroppingRule, Hours, Segment, SegmentState};
use crate::checkpoint::format::{self, Keys, Owner};
use crate::checkpoint::lateness::day_of;
use crate::host::{StateError, StateStore};
use crate::model::{ContentType, Timestamp};
use crate::receipts::Class;
use crate::receipts::head::StoredHead;
use crate::receipts::open::OpenReceipts;
use crate::receipts::seal::ENTRY_BYTES;
use crate::receipts::statement::{Counts, DELIVERED, DROPPED, HELD, Hour, Outcome, SET_ASIDE, Statement};
use crate::receipts::store::{self, PartGap, ReceiptKeys, SealedParts, StoredPart};

/// The maximum of rules counted by name; others are counted with the unnamed ones.
const RULES_MAX: usize = 10_000;

/// The counts of receipts over a period.
#[derive(Debug)]
pub(super) struct ReceiptCounts {
    /// By the day.
    pub days: Vec<Day>,
    /// By content type, if any hour is known.
    pub by_type: Option<BTreeMap<ContentType, Counts>>,
    /// By rule, likewise.
    pub rules: Option<Vec<DroppingRule>>,
    /// The hours they cover.
    pub hours: Hours,
    /// The period, by their coverage.
    pub bar: Vec<Segment>,
}

impl ReceiptCounts {
    /// For unreadable receipts: everything is unknown.
    pub(super) fn of_nothing((from, to): (Timestamp, Timestamp)) -> Self {
        Counting::new(from, to).finish(&[])
    }
}

/// The hour in which the receipts that are kept begin; `None` if none are sealed or it cannot be read.
pub(super) async fn first_hour(store: &dyn StateStore, keys: &ReceiptKeys) -> Result<Option<Hour>, StateError> {
    let Some(head) = store::read_head(store, keys).await? else { return Ok(None) };
    let first = SealedParts::open(store, keys, &head).await?.next().await?;
    Ok(first.and_then(|part| part.statement().ok()).map(|statement| statement.hour))
}

/// Counts the receipts of the hours that begin in `[from, to)`; `to` is not in the future.
///
/// # Errors
/// When the state cannot be read, or the head or an unsealed page is damaged.
pub(super) async fn tally(
    store: &dyn StateStore,
    keys: &Keys,
    content_types: &[ContentType],
    (from, to): (Timestamp, Timestamp),
) -> Result<ReceiptCounts, StateError> {
    let receipts = ReceiptKeys::below(keys.receipts());
    let mut counting = Counting::new(from, to);
    let open = open_pages(store, &receipts).await?;
    if let Some(head) = store::read_head(store, &receipts).await? {
        let mut parts = SealedParts::open(store, &receipts, &head).await?;
        while let Some(part) = parts.next().await? {
            counting.part(&part);
        }
        if parts.end() < head.seq {
            counting.is_missing();
        }
        let mut begun = None;
        for (seq, (hour, receipts)) in open.into_iter().filter(|(seq, _)| *seq >= head.seq) {
            begun = begun.or(Some(hour).filter(|_| seq == head.seq));
            counting.open(hour, receipts);
        }
        let owner = store.load(&keys.owner()).await?;
        let owner = owner.map(|(bytes, _)| format::decode::<Owner>(&keys.owner(), &bytes)).transpose()?;
        let is_kept = owner.is_some_and(|owner| owner.writer == head.writer);
        counting.since(&head, begun, is_kept);
    }
    Ok(counting.finish(content_types))
}

/// Receipts that are not sealed, by the part they will be sealed in.
async fn open_pages(
    store: &dyn StateStore,
    keys: &ReceiptKeys,
) -> Result<BTreeMap<u64, (Hour, OpenReceipts)>, StateError> {
    let mut open: BTreeMap<u64, (Hour, OpenReceipts)> = BTreeMap::new();
    let prefix = keys.open();
    for (name, _) in store.list(&prefix).await? {
        let seq = name.strip_prefix(&prefix).and_then(|rest| u64::from_str_radix(rest.split('/').next()?, 16).ok());
        let Some(seq) = seq else { continue };
        let Some((page, _)) = store.load(&name).await? else { continue };
        let (hour, receipts) = OpenReceipts::decode(&name, &page)?;
        open.entry(seq).or_insert_with(|| (hour, OpenReceipts::default())).1.append(receipts);
    }
    Ok(open)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HourCoverage {
    Whole,
    InPart,
}

/// The counts so far.
struct Counting {
    from: Timestamp,
    to: Timestamp,
    hours: BTreeMap<Hour, HourCoverage>,
    days: BTreeMap<String, BTreeMap<ContentType, Counts>>,
    rules: BTreeMap<Option<Arc<str>>, u64>,
    /// The hour of the previous part, if that was not the hour's last.
    unfinished: Option<Hour>,
}

impl Counting {
    fn new(from: Timestamp, to: Timestamp) -> Self {
        let (hours, days, rules) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { from: Hour::of(from).start(), to, hours, days, rules, unfinished: None }
    }

    fn has(&self, hour: Hour) -> bool {
        self.from <= hour.start() && hour.start() < self.to
    }

    fn reaches(&mut self, hour: Hour, in_part: bool) {
        if self.has(hour) {
            let reached = self.hours.entry(hour).or_insert(HourCoverage::Whole);
            if in_part {
                *reached = HourCoverage::InPart;
            }
        }
    }

    /// Records that the next part is missing or unreadable.
    fn is_missing(&mut self) {
        if let Some(hour) = self.unfinished.take() {
            self.reaches(hour, true);
        }
    }

    fn part(&mut self, part: &StoredPart) {
        let Ok(statement) = part.statement() else { return self.is_missing() };
        if self.unfinished.is_some_and(|hour| hour != statement.hour) || matches!(part.before, PartGap::Missing(_)) {
            self.is_missing();
        }
        let is_cut = statement.part > 0 && self.unfinished != Some(statement.hour);
        self.reaches(statement.hour, statement.begins || is_cut);
        self.unfinished = (!statement.last).then_some(statement.hour);
        if self.has(statement.hour) {
            let day = self.days.entry(day_of(statement.hour.start())).or_default();
            for (content_type, counts) in &statement.counts {
                let known = day.entry(*content_type).or_default();
                *known = known.and(*counts);
            }
            self.count_rules(part, &statement);
        }
    }

    fn count_rules(&mut self, part: &StoredPart, statement: &Statement) {
        let mut classes = [0u64; 256];
        for page in &part.pages {
            for entry in page.as_chunks::<ENTRY_BYTES>().0 {
                if let Some(count) = classes.get_mut(usize::from(entry[ENTRY_BYTES - 1])) {
                    *count += 1;
                }
            }
        }
        for (class, count) in (0u8..=u8::MAX).zip(classes).filter(|(_, count)| *count > 0) {
            if Outcome::of_class(class) == Some(Outcome::Dropped) {
                self.dropped(statement.rule(class).cloned(), count);
            }
        }
    }

    fn dropped(&mut self, rule: Option<Arc<str>>, count: u64) {
        let is_named = self.rules.len() < RULES_MAX || self.rules.contains_key(&rule);
        *self.rules.entry(rule.filter(|_| is_named)).or_default() += count;
    }

    /// Counts unsealed receipts. As in sealing, equal ones count once.
    fn open(&mut self, hour: Hour, receipts: OpenReceipts) {
        if !self.has(hour) {
            return;
        }
        let mut seen: HashSet<_> = HashSet::new();
        let mut by_type: BTreeMap<ContentType, Counts> = BTreeMap::new();
        for ((content_type, class), keys) in receipts.keys {
            let counts = by_type.entry(content_type).or_default();
            let fresh = keys.into_iter().filter(|key| seen.insert((*key, class.clone()))).count() as u64;
            let code = match &class {
                Class::Delivered => DELIVERED,
                Class::SetAside => SET_ASIDE,
                Class::Held => HELD,
                Class::Dropped(_) => DROPPED,
            };
            (0..fresh).for_each(|_| {
                counts.add_entry(code);
            });
            if let (Class::Dropped(rule), true) = (class, fresh > 0) {
                self.dropped(Some(rule), fresh);
            }
        }
        for (content_type, count) in receipts.without_id {
            by_type.entry(content_type).or_default().without_id += count;
        }
        for (content_type, count) in receipts.repeated {
            by_type.entry(content_type).or_default().repeated += count;
        }
        let day = self.days.entry(day_of(hour.start())).or_default();
        for (content_type, counts) in by_type {
            let known = day.entry(content_type).or_default();
            *known = known.and(counts);
        }
    }

    /// Adds the hours after the sealed ones: as long as the last writer keeps receipts, every settled event has its
    /// receipt.
    fn since(&mut self, head: &StoredHead, begun: Option<Hour>, is_kept: bool) {
        let sealed = head.sealed.as_ref().map(|sealed| if sealed.last { sealed.hour.next() } else { sealed.hour });
        let Some(mut hour) = begun.or(sealed).or(head.begins_until) else { return };
        if !is_kept {
            if begun.is_some() || self.unfinished.is_some() {
                self.reaches(hour, true);
            }
            return;
        }
        hour = hour.max(Hour::of(self.from));
        while hour.start() < self.to {
            self.reaches(hour, head.begins_until.is_some_and(|until| hour <= until));
            hour = hour.next();
        }
    }

    fn finish(self, content_types: &[ContentType]) -> ReceiptCounts {
        let Counting { from, to, hours, mut days, rules, .. } = self;
        let types: BTreeSet<ContentType> =
            days.values().flat_map(|day| day.keys().copied()).chain(content_types.iter().copied()).collect();
        let mut shown: Vec<Day> = Vec::new();
        let mut parts = Vec::new();
        let (mut all, mut in_all) = (Hours::default(), BTreeMap::<ContentType, Counts>::new());
        let mut hour = Hour::of(from);
        while hour.start() < to {
            let (day, mut of_day) = (day_of(hour.start()), Hours::default());
            while hour.start() < to && day_of(hour.start()) == day {
                let reached = hours.get(&hour);
                of_day.all += 1;
                of_day.known += u64::from(reached == Some(&HourCoverage::Whole));
                of_day.in_part += u64::from(reached == Some(&HourCoverage::InPart));
                let state = match reached {
                    Some(HourCoverage::Whole) => SegmentState::Complete,
                    Some(HourCoverage::InPart) => SegmentState::InPart,
                    None => SegmentState::NotKnown,
                };
                parts.push((hour.start(), hour.next().start(), state));
                hour = hour.next();
            }
            all = Hours {
                all: all.all + of_day.all,
                known: all.known + of_day.known,
                in_part: all.in_part + of_day.in_part,
            };
            let counted = days.remove(&day).unwrap_or_default();
            for (content_type, counts) in &counted {
                let known = in_all.entry(*content_type).or_default();
                *known = known.and(*counts);
            }
            push_day(&mut shown, day, of_day, &counted, &types);
        }
        let is_known = all.known + all.in_part > 0;
        ReceiptCounts {
            days: shown,
            by_type: is_known.then_some(in_all),
            rules: is_known.then(|| by_count(rules)),
            hours: all,
            bar: bar::of_hours(&parts, from, to),
        }
    }
}

/// Adds a day. Consecutive unknown days are merged.
fn push_day(
    days: &mut Vec<Day>,
    day: String,
    hours: Hours,
    counted: &BTreeMap<ContentType, Counts>,
    types: &BTreeSet<ContentType>,
) {
    if hours.known + hours.in_part > 0 {
        let of = |content_type: &ContentType| counted.get(content_type).copied().unwrap_or_default();
        let by_type = types.iter().map(|content_type| (content_type.to_string(), of(content_type))).collect();
        let counts = counted.values().fold(Counts::default(), |all, counts| all.and(*counts));
        days.push(Day { day, until: None, hours, counts: Some(counts), by_type });
        return;
    }
    match days.last_mut().filter(|last| last.counts.is_none()) {
        Some(last) => {
            last.until = Some(day);
            last.hours.all += hours.all;
        }
        None => days.push(Day { day, until: None, hours, counts: None, by_type: BTreeMap::new() }),
    }
}

fn by_count(rules: BTreeMap<Option<Arc<str>>, u64>) -> Vec<DroppingRule> {
    let mut rules: Vec<DroppingRule> = rules
        .into_iter()
        .map(|(rule, events)| DroppingRule { rule: rule.map(|rule| rule.to_string()), events })
        .collect();
    rules.sort_by_key(|rule| std::cmp::Reverse(rule.events));
    rules
}
