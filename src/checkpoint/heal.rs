//! The stored state of gaps that are filled through Microsoft Graph: searches submitted and running, and healed
//! intervals.
//!
//! It is stored beside the positions, which never move because of it.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use super::format::{self, DeclaredGap, FORMAT, Keys, Position, Stored};
use crate::host::{StateError, StateStore};
use crate::model::{ContentType, Timestamp, Window};

/// Healed intervals stored for one stream; above this, neighbours are merged.
const HEALED_MAX: usize = 128;

/// The state of a tenant's healing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredHeal {
    /// Format version.
    pub format: u32,
    /// Whether Graph answers only under `/beta`.
    #[serde(default)]
    pub beta: bool,
    /// When searches were submitted, of the last 24 hours, Microsoft's time.
    #[serde(default)]
    pub submitted: Vec<Timestamp>,
    /// The gaps that are being filled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gaps: Option<StoredJob>,
    /// The requested range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<StoredJob>,
    /// The healed intervals of each stream, by event times.
    #[serde(default)]
    pub healed: BTreeMap<String, Vec<HealedInterval>>,
    /// The parts of gaps that stay open because the state does not show whether earlier events were delivered.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub not_known: BTreeMap<String, Vec<NotKnown>>,
    /// When gaps that could not be filled are tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again_at: Option<Timestamp>,
    /// Why the last attempt left some unfilled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<String>,
}

impl Default for StoredHeal {
    fn default() -> Self {
        Self {
            format: FORMAT,
            beta: false,
            submitted: Vec::new(),
            gaps: None,
            asked: None,
            healed: BTreeMap::new(),
            not_known: BTreeMap::new(),
            again_at: None,
            left: Vec::new(),
        }
    }
}

impl Stored for StoredHeal {
    fn format(&self) -> u32 {
        self.format
    }
}

/// An interval that was healed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealedInterval {
    /// Where it begins.
    pub from: Timestamp,
    /// Where it ends (exclusive).
    pub to: Timestamp,
    /// When it was healed.
    pub at: Timestamp,
    /// How many events it delivered.
    pub events: u64,
}

/// A part of a gap that cannot be filled without repeats: Graph has events that happened before the gap and may have
/// become available in this part of it, and neither a receipt nor a key shows whether the feed had delivered them
/// before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotKnown {
    /// Where it begins.
    pub from: Timestamp,
    /// Where it ends (exclusive).
    pub to: Timestamp,
    /// When that was found.
    pub at: Timestamp,
    /// The number of such events; they are left out.
    pub events: u64,
}

/// Events of before a gap that were left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// The content type that brings them.
    pub content_type: String,
    /// When the first of them happened.
    pub from: Timestamp,
    /// When the last of them happened.
    pub to: Timestamp,
    /// How many.
    pub events: u64,
}

/// A range that is being filled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredJob {
    /// Its beginning, in event times.
    pub from: Timestamp,
    /// Its end (exclusive).
    pub to: Timestamp,
    /// The intervals to be filled, by content type.
    pub types: BTreeMap<String, Vec<WantedInterval>>,
    /// Whether what was delivered already is delivered again.
    #[serde(default)]
    pub again: bool,
    /// Drawn at its start; distinguishes its repeats from those of another.
    pub salt: String,
    /// When it was begun.
    pub started: Timestamp,
    /// The windows still to be searched.
    pub windows: Vec<StoredWindow>,
    /// The windows searched and read.
    #[serde(default)]
    pub done: Vec<DoneWindow>,
    /// The windows that were left, and why.
    #[serde(default)]
    pub left: Vec<LeftWindow>,
    /// Events of before a gap that were left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
}

/// An interval of one stream that is to be filled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedInterval {
    /// The search begins here: a gap's beginning less how late content comes.
    pub lead: Timestamp,
    /// Where the gap begins.
    pub from: Timestamp,
    /// Where it ends (exclusive).
    pub to: Timestamp,
    /// Why it was declared; empty for a requested range.
    #[serde(default)]
    pub reason: String,
}

/// A search to be made, or running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredWindow {
    /// Where it begins.
    pub from: Timestamp,
    /// Where it ends (exclusive).
    pub to: Timestamp,
    /// The running search.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// When that was submitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submitted: Option<Timestamp>,
    /// Searches that failed.
    #[serde(default)]
    pub failures: u32,
    /// Whether it was empty once, and is searched again to be sure.
    #[serde(default)]
    pub was_empty: bool,
    /// How many records a search for a longer one had in this part of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<u64>,
    /// The ids of all searches for it.
    #[serde(default)]
    pub queries: Vec<String>,
    /// Events it brought so far.
    #[serde(default)]
    pub events: u64,
}

impl StoredWindow {
    /// A window that was not searched yet.
    pub fn new(window: Window) -> Self {
        Self {
            from: window.start,
            to: window.end,
            query: None,
            submitted: None,
            failures: 0,
            was_empty: false,
            expected: None,
            queries: Vec::new(),
            events: 0,
        }
    }

    /// Its bounds.
    pub fn window(&self) -> Window {
        Window { start: self.from, end: self.to }
    }
}

/// A search that is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoneWindow {
    /// Where it begins.
    pub from: Timestamp,
    /// Where it ends (exclusive).
    pub to: Timestamp,
    /// The ids of the searches.
    pub queries: Vec<String>,
    /// Different records that Graph gave.
    pub records: u64,
    /// Events delivered of them.
    pub events: u64,
    /// How often it was read.
    pub readings: u32,
}

/// A window that was left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftWindow {
    /// Where it begins.
    pub from: Timestamp,
    /// Where it ends (exclusive).
    pub to: Timestamp,
    /// Why.
    pub why: String,
}

impl StoredHeal {
    /// Loads that of a tenant; an absent entry means that nothing was healed.
    ///
    /// # Errors
    /// The state cannot be read.
    pub async fn load(store: &dyn StateStore, keys: &Keys) -> Result<StoredHeal, StateError> {
        let key = keys.heal();
        let stored = store.load(&key).await?;
        Ok(stored.map(|(bytes, _)| format::decode(&key, &bytes)).transpose()?.unwrap_or_default())
    }

    /// The position of a stream, with only its unfilled gaps.
    pub fn open(&self, content_type: ContentType, mut position: Position) -> Position {
        if !self.healed_of(content_type).is_empty() {
            let parts = |gap: &DeclaredGap| {
                let open = self.open_parts(content_type, Window { start: gap.from, end: gap.to });
                let part = |part: Window| DeclaredGap { from: part.start, to: part.end, reason: gap.reason.clone() };
                open.into_iter().map(part).collect::<Vec<_>>()
            };
            position.gaps = position.gaps.iter().flat_map(parts).collect();
        }
        position
    }

    /// The healed intervals of a stream.
    pub fn healed_of(&self, content_type: ContentType) -> &[HealedInterval] {
        self.healed.get(content_type.as_str()).map_or(&[], Vec::as_slice)
    }

    /// The unhealed parts of a window.
    pub fn open_parts(&self, content_type: ContentType, window: Window) -> Vec<Window> {
        let healed = self.healed_of(content_type).iter().map(|healed| Window { start: healed.from, end: healed.to });
        without(vec![window], healed)
    }

    /// The parts of a stream's gaps that stay open because of earlier events.
    pub fn not_known_of(&self, content_type: ContentType) -> &[NotKnown] {
        self.not_known.get(content_type.as_str()).map_or(&[], Vec::as_slice)
    }

    /// The unhealed parts of a window that can be filled without repeats.
    pub fn fillable_parts(&self, content_type: ContentType, window: Window) -> Vec<Window> {
        let not_known = self.not_known_of(content_type).iter();
        without(self.open_parts(content_type, window), not_known.map(|part| Window { start: part.from, end: part.to }))
    }

    /// Records that a part of a gap stays open because of earlier events.
    pub fn note_not_known(&mut self, content_type: ContentType, new: NotKnown) {
        let all = self.not_known.entry(content_type.as_str().to_owned()).or_default();
        all.retain(|known| known.to <= new.from || new.to <= known.from);
        all.push(new);
        // A forgotten interval is searched once more, and found again.
        if all.len() > HEALED_MAX {
            all.remove(0);
        }
    }

    /// Records that an interval is healed.
    pub fn note_healed(&mut self, content_type: ContentType, new: HealedInterval) {
        if let Some(not_known) = self.not_known.get_mut(content_type.as_str()) {
            not_known.retain(|part| part.from < new.from || new.to < part.to);
            if not_known.is_empty() {
                self.not_known.remove(content_type.as_str());
            }
        }
        let all = self.healed.entry(content_type.as_str().to_owned()).or_default();
        let at = all.partition_point(|known| known.from <= new.from);
        all.insert(at, new);
        while all.len() > HEALED_MAX {
            // Only adjacent intervals may be merged: the time between two others was not healed.
            let touching = all.windows(2).position(|pair| matches!(pair, [one, other] if other.from <= one.to));
            let at = touching.unwrap_or(0);
            let other = all.remove(at + usize::from(touching.is_some()));
            if let Some(one) = all.get_mut(at).filter(|_| touching.is_some()) {
                one.to = one.to.max(other.to);
                one.at = one.at.max(other.at);
                one.events += other.events;
            }
        }
    }
}

/// How much before a gap its events may have happened, at most.
const LEAD_MAX: SignedDuration = SignedDuration::from_hours(10 * 24);
/// A position so far behind will have a gap: the feed lists content for seven days.
const LISTED: SignedDuration = SignedDuration::from_hours(7 * 24 - 1);
/// Microsoft keeps no events for longer, so older gaps cannot be filled.
const KEPT_MAX: SignedDuration = SignedDuration::from_hours(400 * 24);

/// The gaps of a tenant that may still be filled, for the decision which receipts are deleted.
#[derive(Debug)]
pub(super) struct OpenGaps {
    positions: BTreeMap<ContentType, Position>,
    heal: StoredHeal,
}

impl OpenGaps {
    pub(super) fn new(positions: BTreeMap<ContentType, Position>, heal: StoredHeal) -> Self {
        Self { positions, heal }
    }

    /// Updates the gaps after a commit.
    pub(super) fn note(&mut self, positions: &BTreeMap<ContentType, Position>, heal: Option<&StoredHeal>) {
        self.positions.extend(positions.iter().map(|(content_type, position)| (*content_type, position.clone())));
        if let Some(heal) = heal {
            self.heal.healed.clone_from(&heal.healed);
            self.heal.not_known.clone_from(&heal.not_known);
        }
    }

    /// Since when receipts are needed, at `now`; `None`: no gap needs any.
    pub(super) fn needed_from(&self, now: Timestamp) -> Option<Timestamp> {
        let ago = |span| now.saturating_sub(span).unwrap_or(Timestamp::MIN);
        let behind = self.positions.values().filter_map(|position| position.complete_until);
        let gaps = self.positions.iter().flat_map(|(content_type, position)| {
            let windows = position.gaps.iter().map(|gap| Window { start: gap.from, end: gap.to });
            windows.flat_map(|gap| self.heal.fillable_parts(*content_type, gap)).map(|open| open.start)
        });
        let from = behind.filter(|behind| *behind < ago(LISTED)).chain(gaps).min()?;
        Some(from.saturating_sub(LEAD_MAX).unwrap_or(from).max(ago(KEPT_MAX)))
    }
}

/// Windows without what others cover.
pub fn without(mut windows: Vec<Window>, others: impl Iterator<Item = Window>) -> Vec<Window> {
    for other in others {
        windows = windows
            .into_iter()
            .flat_map(|window| {
                if other.end <= window.start || window.end <= other.start {
                    return vec![window];
                }
                let before = Window { start: window.start, end: other.start };
                let after = Window { start: other.end, end: window.end };
                [before, after].into_iter().filter(|part| part.start < part.end).collect()
            })
            .collect();
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::format::{decode, encode};

    fn t(hour: i64) -> Timestamp {
        Timestamp::from_second(hour * 3600).unwrap()
    }

    fn w(from: i64, to: i64) -> Window {
        Window { start: t(from), end: t(to) }
    }

    #[test]
    fn what_is_healed_is_taken_out_of_a_gap() {
        let mut heal = StoredHeal::default();
        let open = |heal: &StoredHeal| heal.open_parts(ContentType::Exchange, w(10, 20));
        assert_eq!(open(&heal), [w(10, 20)]);
        for (from, to, expected) in
            [(12, 14, vec![w(10, 12), w(14, 20)]), (0, 11, vec![w(11, 12), w(14, 20)]), (11, 30, vec![])]
        {
            heal.note_healed(ContentType::Exchange, HealedInterval { from: t(from), to: t(to), at: t(40), events: 1 });
            assert_eq!(open(&heal), expected);
        }
        assert_eq!(heal.open_parts(ContentType::General, w(10, 20)), [w(10, 20)]);
        assert_eq!(decode::<StoredHeal>("h", &encode(&heal)), Ok(heal));
    }

    #[test]
    fn what_is_not_known_stays_open_and_is_not_tried_again_until_it_is_healed() {
        let (mut heal, of) = (StoredHeal::default(), ContentType::Exchange);
        let not_known = |from, to| NotKnown { from: t(from), to: t(to), at: t(40), events: 2 };
        heal.note_not_known(of, not_known(10, 13));
        assert_eq!(heal.open_parts(of, w(10, 20)), [w(10, 20)]);
        assert_eq!(heal.fillable_parts(of, w(10, 20)), [w(13, 20)]);
        heal.note_not_known(of, not_known(10, 14));
        assert_eq!(heal.not_known_of(of), [not_known(10, 14)]);
        assert_eq!(decode::<StoredHeal>("h", &encode(&heal)), Ok(heal.clone()));
        let healed = |from, to| HealedInterval { from: t(from), to: t(to), at: t(41), events: 2 };
        heal.note_healed(of, healed(14, 20));
        assert_eq!(heal.not_known_of(of).len(), 1);
        heal.note_healed(of, healed(9, 14));
        assert!(heal.not_known.is_empty() && heal.open_parts(of, w(10, 20)).is_empty());
        for n in 0..200 {
            heal.note_not_known(of, not_known(100 + 2 * n, 101 + 2 * n));
        }
        assert_eq!(heal.not_known_of(of).len(), HEALED_MAX);
    }

    #[test]
    fn format_1_is_read_for_ever() {
        let stored: StoredHeal = decode("h", include_bytes!("../../tests/fixtures/state/heal.v1.json")).unwrap();
        let job = stored.gaps.as_ref().unwrap();
        assert_eq!((job.windows.len(), job.done.len(), job.left.len(), stored.submitted.len()), (1, 1, 1, 1));
        assert_eq!(job.windows[0].expected, Some(7));
        assert_eq!(stored.healed_of(ContentType::Exchange).len(), 1);
        assert_eq!(decode::<StoredHeal>("h", &encode(&stored)), Ok(stored));
    }

    #[test]
    fn receipts_before_a_gap_are_needed_until_it_is_filled_and_those_of_a_source_that_was_away() {
        let mut position = Position::first(t(0));
        position.complete_until = Some(t(2000));
        let mut gaps = OpenGaps::new([(ContentType::Exchange, position.clone())].into(), StoredHeal::default());
        assert_eq!(gaps.needed_from(t(2010)), None);
        assert_eq!(gaps.needed_from(t(2000 + 24 * 8)), Some(t(2000 - 240)), "it was away");
        position.note_gap(DeclaredGap { from: t(1000), to: t(1300), reason: "outage".into() });
        gaps.note(&[(ContentType::Exchange, position)].into(), None);
        assert_eq!(gaps.needed_from(t(2010)), Some(t(760)));
        let mut heal = StoredHeal::default();
        heal.note_healed(ContentType::Exchange, HealedInterval { from: t(1000), to: t(1300), at: t(2011), events: 1 });
        gaps.note(&BTreeMap::new(), Some(&heal));
        assert_eq!(gaps.needed_from(t(2010)), None);
    }

    #[test]
    fn of_many_healed_intervals_those_that_touch_become_one_and_no_gap_between_two_counts_as_healed() {
        let mut heal = StoredHeal::default();
        for n in 0..400 {
            let healed = HealedInterval { from: t(n * 2), to: t(n * 2 + 1 + n % 2), at: t(900), events: 1 };
            heal.note_healed(ContentType::Exchange, healed);
        }
        let all = heal.healed_of(ContentType::Exchange);
        assert!(all.len() <= HEALED_MAX && all.is_sorted_by_key(|healed| healed.from));
        let parts = heal.open_parts(ContentType::Exchange, w(700, 800));
        assert_eq!(parts.len(), 25, "every other pair is apart");
    }
}
