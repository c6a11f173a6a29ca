//! How late content came, per stream and day: `report` shows it, and the search for events of a gap allows for it.
//!
//! Two delays are counted. How long Microsoft took from an event (`CreationTime`) to the blob it is in
//! (`contentCreated`), and how long it took from there until this source had read the blob, which includes the time
//! when no process ran. Counts are written every few minutes, not with each blob: a crash may lose those of the last
//! minutes.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::SignedDuration;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::format::{self, FORMAT, Keys, Stored};
use crate::host::{Expected, Op, StateError, StateStore};
use crate::model::{ContentType, Timestamp};

/// Upper bounds of the counts, in seconds; one more count covers longer delays.
pub const BOUNDS_SECS: [u64; 12] =
    [60, 300, 900, 1_800, 3_600, 7_200, 21_600, 43_200, 86_400, 172_800, 259_200, 604_800];
/// How often counts are written.
const WRITTEN_EVERY: Duration = Duration::from_secs(300);
/// Days that are kept.
const DAYS_KEPT: i64 = 35;

/// Delays by how long they were.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delays {
    /// How many were within each of [`BOUNDS_SECS`] and not within the one before; the last are longer than all.
    pub counts: [u64; BOUNDS_SECS.len() + 1],
    /// The longest, in seconds.
    #[serde(default)]
    pub longest_secs: u64,
}

impl Delays {
    /// Counts one delay; a negative one counts as 0.
    pub fn add(&mut self, secs: i64) {
        let secs = u64::try_from(secs).unwrap_or(0);
        let place = BOUNDS_SECS.partition_point(|bound| *bound < secs);
        if let Some(count) = self.counts.get_mut(place) {
            *count += 1;
        }
        self.longest_secs = self.longest_secs.max(secs);
    }

    /// Each bound with how many were within it and not within the one before; longer ones are listed at the longest.
    pub fn bounded(&self) -> impl Iterator<Item = (u64, u64)> {
        let bounds = BOUNDS_SECS.into_iter().chain([self.longest_secs]);
        bounds.zip(self.counts).filter(|(_, count)| *count > 0)
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: &Delays) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.longest_secs = self.longest_secs.max(other.longest_secs);
    }

    /// How many in all.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Within how many seconds so many of a thousand were: the bound of the count it falls into, for the last the longest.
    pub fn within(&self, of_thousand: u64) -> Option<u64> {
        let wanted = self.total().checked_mul(of_thousand)?.div_ceil(1000).max(1);
        let mut seen = 0;
        for (place, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Some(BOUNDS_SECS.get(place).map_or(self.longest_secs, |bound| (*bound).min(self.longest_secs)));
            }
        }
        None
    }
}

/// How late the content of one stream came on one day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lateness {
    /// Format version.
    pub format: u32,
    /// From events to their blobs.
    pub events: Delays,
    /// From blobs to when they were read.
    pub blobs: Delays,
}

impl Default for Lateness {
    fn default() -> Self {
        Self { format: FORMAT, events: Delays::default(), blobs: Delays::default() }
    }
}

impl Stored for Lateness {
    fn format(&self) -> u32 {
        self.format
    }
}

impl Lateness {
    /// Adds all of another.
    pub fn merge(&mut self, other: &Lateness) {
        self.events.merge(&other.events);
        self.blobs.merge(&other.blobs);
    }
}

/// The day of a time, UTC, as it is stored: `2026-11-30`.
pub fn day_of(time: Timestamp) -> String {
    TimeZone::UTC.to_datetime(time).date().to_string()
}

/// How late the content of a stream may become available after its events, unless it was observed later.
///
/// Microsoft names no bound: "typically 60 to 90 minutes" for most workloads, up to 24 hours for others, and delays of
/// days have been observed.
pub const AT_LEAST: SignedDuration = SignedDuration::from_hours(72);

/// How late the content of a stream may become available after its events: the longest delay of the days that are kept,
/// and no less than [`AT_LEAST`].
///
/// # Errors
/// The state cannot be read, or a day is damaged.
pub async fn bound(
    store: &dyn StateStore,
    keys: &Keys,
    content_type: ContentType,
) -> Result<SignedDuration, StateError> {
    let mut longest = AT_LEAST;
    for (key, _) in store.list(&keys.lateness(content_type)).await? {
        let Some((bytes, _)) = store.load(&key).await? else { continue };
        let day: Lateness = format::decode(&key, &bytes)?;
        longest = longest.max(SignedDuration::from_secs(i64::try_from(day.events.longest_secs).unwrap_or(i64::MAX)));
    }
    Ok(longest)
}

/// The counts that are not written yet, and those written today.
#[derive(Debug, Default)]
pub(super) struct LatenessBook {
    days: BTreeMap<(ContentType, String), Lateness>,
    dirty: bool,
    written: Option<Duration>,
    swept: Option<String>,
}

impl LatenessBook {
    /// Adds the delays of a blob. The first of a day adds to the counts of an earlier process.
    pub(super) async fn add(
        &mut self,
        store: &dyn StateStore,
        keys: &Keys,
        (content_type, more): &(ContentType, Lateness),
        now: Timestamp,
    ) {
        let of = (*content_type, day_of(now));
        if !self.days.contains_key(&of) {
            let key = keys.lateness_of(of.0, &of.1);
            let known = match store.load(&key).await {
                Ok(Some((bytes, _))) => format::decode(&key, &bytes),
                Ok(None) => Ok(Lateness::default()),
                Err(error) => Err(error),
            };
            let known = known.unwrap_or_else(|error| {
                // The counts are only for reports: no event waits for them.
                tracing::warn!("state-corrupt: how late content came today is counted anew: {error}");
                Lateness::default()
            });
            self.days.insert(of.clone(), known);
        }
        if let Some(day) = self.days.get_mut(&of) {
            day.merge(more);
            self.dirty = true;
        }
    }

    /// The operations that write it, if it is time; `at` is monotonic. With `urgent` they are returned regardless of
    /// the time since the last write.
    pub(super) async fn steps(
        &mut self,
        store: &dyn StateStore,
        keys: &Keys,
        (now, at): (Timestamp, Duration),
        urgent: bool,
    ) -> Vec<Op> {
        let due = urgent || self.written.is_none_or(|written| at.saturating_sub(written) >= WRITTEN_EVERY);
        if !self.dirty || !due {
            return Vec::new();
        }
        let today = day_of(now);
        let mut ops: Vec<Op> = self
            .days
            .iter()
            .map(|((content_type, day), lateness)| Op::Put {
                key: keys.lateness_of(*content_type, day),
                value: format::encode(lateness),
                expected: Expected::Any,
            })
            .collect();
        if self.swept.as_ref() != Some(&today) {
            let oldest = now.saturating_sub(SignedDuration::from_hours(24 * DAYS_KEPT));
            let oldest = oldest.map_or_else(|_| String::new(), day_of);
            for content_type in ContentType::ALL {
                // Days that cannot be listed now are deleted on a later day.
                let listed = store.list(&keys.lateness(content_type)).await.unwrap_or_default();
                let listed = listed.into_iter().map(|(key, _)| key);
                let old = listed.filter(|key| key.rsplit('/').next().is_some_and(|day| *day < *oldest));
                ops.extend(old.map(|key| Op::Delete { key, expected: Expected::Any }));
            }
            self.swept = Some(today.clone());
        }
        self.days.retain(|(_, day), _| *day == today);
        (self.dirty, self.written) = (false, Some(at));
        ops
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosts::embedded::memory::MemoryStore;
    use crate::model::TenantId;

    fn keys() -> Keys {
        Keys::of(&"6f1d3a52-0d2e-4f7e-8a51-2b7c1d9e0a11".parse::<TenantId>().unwrap())
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn late(secs: &[i64]) -> Lateness {
        let mut lateness = Lateness::default();
        secs.iter().for_each(|secs| lateness.events.add(*secs));
        lateness
    }

    #[test]
    fn delays_are_counted_by_their_bounds() {
        let delays = late(&[-5, 0, 60, 61, 300, 604_800, 604_801, 9_999_999]).events;
        assert_eq!(delays.counts, [3, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!((delays.total(), delays.longest_secs), (8, 9_999_999));
    }

    #[test]
    fn a_share_of_delays_is_within_the_bound_it_falls_into() {
        let delays = late(&[10, 20, 30, 200, 4_000, 999_999]).events;
        for (of_thousand, expected) in [(1, 60), (500, 60), (501, 300), (834, 999_999), (833, 7_200), (1000, 999_999)] {
            assert_eq!(delays.within(of_thousand), Some(expected), "{of_thousand}");
        }
        assert_eq!(late(&[7]).events.within(500), Some(7));
        assert_eq!(Delays::default().within(500), None);
    }

    #[tokio::test]
    async fn a_day_goes_on_after_a_restart_and_old_days_leave() {
        let store = MemoryStore::new();
        let (keys, now) = (keys(), at("2026-11-30T10:00:00Z"));
        let day = keys.lateness_of(ContentType::Dlp, "2026-11-30");
        let old = keys.lateness_of(ContentType::Dlp, "2026-10-01");
        for (secs, run) in [(30, 0), (90, 1)] {
            let mut book = LatenessBook::default();
            book.add(&store, &keys, &(ContentType::Dlp, late(&[secs])), now).await;
            if run == 0 {
                let old = Op::Put { key: old.clone(), value: format::encode(&late(&[1])), expected: Expected::Any };
                store.commit(vec![old]).await.unwrap();
            }
            let ops = book.steps(&store, &keys, (now, Duration::ZERO), false).await;
            store.commit(ops).await.unwrap();
            book.add(&store, &keys, &(ContentType::Dlp, late(&[5])), now).await;
            let soon = (now, Duration::from_secs(10));
            assert!(book.steps(&store, &keys, soon, false).await.is_empty(), "it is not time");
            assert!(!book.steps(&store, &keys, soon, true).await.is_empty());
        }
        let stored: Lateness = format::decode(&day, &store.load(&day).await.unwrap().unwrap().0).unwrap();
        assert_eq!(stored.events.counts[..2], [1, 1], "what was not written is not there, what was adds up");
        assert!(store.load(&old).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn content_may_come_as_late_as_it_did_and_three_days_in_any_case() {
        let (store, keys) = (MemoryStore::new(), keys());
        let bound = async || bound(&store, &keys, ContentType::Dlp).await;
        assert_eq!(bound().await, Ok(AT_LEAST));
        for (day, secs, expected) in [("2026-11-28", 60, 72), ("2026-11-29", 100 * 3600, 100), ("2026-11-30", 5, 100)] {
            let value = format::encode(&late(&[1, secs]));
            let put = Op::Put { key: keys.lateness_of(ContentType::Dlp, day), value, expected: Expected::Any };
            store.commit(vec![put]).await.unwrap();
            assert_eq!(bound().await, Ok(SignedDuration::from_hours(expected)), "{day}");
        }
        let key = keys.lateness_of(ContentType::Dlp, "2026-12-01");
        store.commit(vec![Op::Put { key, value: "{".into(), expected: Expected::Any }]).await.unwrap();
        assert!(matches!(bound().await, Err(StateError::Corrupt { .. })));
    }
}
