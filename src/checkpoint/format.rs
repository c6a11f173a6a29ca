//! The stored format, byte for byte: keys and values of format version 1.
//!
//! Every value is JSON with a `format` member, except the packed key sets (`key_set` owns theirs). Readers accept
//! unknown members; a `format` newer than [`FORMAT`] is refused, because a writer that does not understand a value
//! would destroy it. `tests/fixtures/state/` keeps golden copies, one per version, for ever.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::host::{EventKind, Kind, StateError};
use crate::model::{BlobRef, ContentType, TenantId, Timestamp};
use crate::normalise::CanonicalKey;
use crate::normalise::category::Category;

/// The format this build reads and writes.
pub const FORMAT: u32 = 1;
/// The prefix of every key of this source.
pub const KEY_ROOT: &str = "m365_audit/v1";

/// The kinds of entries stored for a tenant, below its prefix.
pub const KINDS: &[&str] = &[
    "owner",
    "tenant",
    "events/{d,p}/<number>",
    "dlp/held/<number>",
    "dlp/flags/<number>",
    "backfill/<source>",
    "heal",
    "healed/{d,p}/<number>",
    "receipts/head",
    "receipts/open/<part>/<page>",
    "receipts/sealed/<part>/{checkpoint,<page>}",
    "<content type>/position",
    "<content type>/blobs/{d,p}/<number>",
    "<content type>/tracked/<blob>",
    "<content type>/aside/<record>",
    "<content type>/lateness/<day>",
];

/// The keys of one tenant.
#[derive(Debug, Clone)]
pub struct Keys {
    tenant: String,
}

impl Keys {
    /// The keys of `tenant`.
    pub fn of(tenant: &TenantId) -> Self {
        Self { tenant: format!("{KEY_ROOT}/{tenant}") }
    }

    /// Prefix of all of the tenant's entries.
    pub fn all(&self) -> String {
        format!("{}/", self.tenant)
    }

    /// The range of keys that a start reads: all but the owner, which is read before, the sealed receipts, and
    /// [`Keys::tenant`], which comes after them.
    pub fn needed_at_start(&self) -> (String, String) {
        (self.all(), format!("{}/receipts/sealed/", self.tenant))
    }

    /// Which process owns the tenant: rewritten by every commit, so that a second writer is detected.
    pub fn owner(&self) -> String {
        format!("{}/owner", self.tenant)
    }

    /// The state of the tenant as a whole: [`TenantState`].
    pub fn tenant(&self) -> String {
        format!("{}/tenant", self.tenant)
    }

    /// A source's unfinished back-fill: [`StoredBackfill`].
    pub fn backfill(&self, source: &str) -> String {
        format!("{}/backfill/{source}", self.tenant)
    }

    /// The state of gaps that are filled through Microsoft Graph: [`super::heal::StoredHeal`].
    pub fn heal(&self) -> String {
        format!("{}/heal", self.tenant)
    }

    /// Prefix of the healed events' keys.
    pub fn healed(&self) -> String {
        format!("{}/healed", self.tenant)
    }

    /// Prefix of all receipts.
    pub fn receipts(&self) -> String {
        format!("{}/receipts/", self.tenant)
    }

    /// Prefix of the delivered events' keys.
    pub fn events(&self) -> String {
        format!("{}/events", self.tenant)
    }

    /// Prefix of the routine reads on hold: [`super::held::HeldPage`].
    pub fn held(&self) -> String {
        format!("{}/dlp/held/", self.tenant)
    }

    /// One page of reads on hold.
    pub fn held_page(&self, number: u64) -> String {
        format!("{}/dlp/held/{number:016x}", self.tenant)
    }

    /// Prefix of the items that data loss prevention flagged: [`super::held::FlagPage`].
    pub fn flags(&self) -> String {
        format!("{}/dlp/flags/", self.tenant)
    }

    /// One page of flagged items.
    pub fn flag_page(&self, number: u64) -> String {
        format!("{}/dlp/flags/{number:016x}", self.tenant)
    }

    /// One stream's [`Position`].
    pub fn position(&self, content_type: ContentType) -> String {
        format!("{}/{content_type}/position", self.tenant)
    }

    /// Prefix of one stream's settled blobs' keys.
    pub fn blobs(&self, content_type: ContentType) -> String {
        format!("{}/{content_type}/blobs", self.tenant)
    }

    /// Prefix of how late the content of one stream came: [`super::lateness::Lateness`].
    pub fn lateness(&self, content_type: ContentType) -> String {
        format!("{}/{content_type}/lateness/", self.tenant)
    }

    /// That of one day, such as `2026-11-30`.
    pub fn lateness_of(&self, content_type: ContentType, day: &str) -> String {
        format!("{}/{content_type}/lateness/{day}", self.tenant)
    }

    /// Prefix of the blobs of one stream that are tracked on their own: [`TrackedBlob`].
    pub fn tracked(&self, content_type: ContentType) -> String {
        format!("{}/{content_type}/tracked/", self.tenant)
    }

    /// One tracked blob, by its key.
    pub fn tracked_blob(&self, content_type: ContentType, key: u128) -> String {
        format!("{}/{content_type}/tracked/{key:032x}", self.tenant)
    }

    /// Prefix of the records of one stream that a host rejected: [`AsideRecord`].
    pub fn aside(&self, content_type: ContentType) -> String {
        format!("{}/{content_type}/aside/", self.tenant)
    }

    /// One record set aside, by a hash of its bytes.
    pub fn aside_record(&self, content_type: ContentType, hash: u128) -> String {
        format!("{}/{content_type}/aside/{hash:032x}", self.tenant)
    }
}

/// A value with a format version.
pub trait Stored: Serialize + DeserializeOwned {
    /// The version found in the value.
    fn format(&self) -> u32;
}

macro_rules! stored {
    ($($name:ty),*) => {$(
        impl Stored for $name {
            fn format(&self) -> u32 {
                self.format
            }
        }
    )*};
}

/// The hash a set-aside record's key ends in.
pub fn hash_of(key: &str) -> Option<u128> {
    u128::from_str_radix(key.rsplit('/').next()?, 16).ok()
}

stored!(TenantState, Position, TrackedBlob, AsideRecord, StoredBackfill, Owner);

/// The bytes of a stored value.
pub fn encode<T: Stored>(value: &T) -> Bytes {
    // Serializing these plain structs to memory cannot fail.
    serde_json::to_vec(value).unwrap_or_default().into()
}

/// A stored value from its bytes.
///
/// # Errors
/// [`StateError::Corrupt`] when the bytes are not such a value, or one of a newer format.
pub fn decode<T: Stored>(key: &str, bytes: &[u8]) -> Result<T, StateError> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let corrupt = |why: String| StateError::Corrupt { key: key.to_owned(), why };
    let version: Version = serde_json::from_slice(bytes).map_err(|e| corrupt(e.to_string()))?;
    if version.format > FORMAT {
        return Err(corrupt(format!(
            "it has format {}, this build writes {FORMAT}; start the newer build that wrote it",
            version.format
        )));
    }
    serde_json::from_slice(bytes).map_err(|e| corrupt(e.to_string()))
}

/// The process that writes this tenant's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Format version.
    pub format: u32,
    /// Drawn at random by every start.
    pub writer: String,
    /// Drawn at random for every commit and kept when it is retried, so that a writer recognises its own commit if the
    /// answer was lost; absent in states of earlier builds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
}

/// The state of a tenant as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantState {
    /// Format version.
    pub format: u32,
    /// The last estimate of Microsoft's time.
    #[serde(default)]
    pub server_time: Option<Timestamp>,
    /// This machine's wall time when `server_time` was stored.
    #[serde(default)]
    pub wall_time: Option<Timestamp>,
    /// When a subscription was last asked to start, by content type, Microsoft's time: at most once in 15 minutes.
    #[serde(default)]
    pub starts: BTreeMap<String, Timestamp>,
}

impl Default for TenantState {
    fn default() -> Self {
        Self { format: FORMAT, server_time: None, wall_time: None, starts: BTreeMap::new() }
    }
}

/// How far one stream has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Format version.
    pub format: u32,
    /// Content made available before this is never listed.
    pub origin: Timestamp,
    /// When the stream first ran; absent in states of earlier builds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began: Option<Timestamp>,
    /// Everything made available from `origin` to here is settled (exclusive). Only `state set` moves it back.
    #[serde(default)]
    pub complete_until: Option<Timestamp>,
    /// Everything made available before this was listed, and the unsettled blobs of it are tracked.
    #[serde(default)]
    pub listed_until: Option<Timestamp>,
    /// Microsoft's time of the last listing that succeeded.
    #[serde(default)]
    pub last_listing: Option<Timestamp>,
    /// When the last 24 hours were last listed again.
    #[serde(default)]
    pub day_listed: Option<Timestamp>,
    /// When the whole 7 days were last listed again.
    #[serde(default)]
    pub week_listed: Option<Timestamp>,
    /// Since when a subscription that once worked is known to be off; a gap is declared when it is on again.
    #[serde(default)]
    pub disabled_since: Option<Timestamp>,
    /// An interval that an operator skipped (`state set` forward), whose gap record is not delivered yet.
    #[serde(default)]
    pub passed_over: Option<(Timestamp, Timestamp)>,
    /// Gaps that were declared, by their beginnings; absent in states of earlier builds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<DeclaredGap>,
}

/// An interval of one stream that can never be read, as its gap record names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeclaredGap {
    /// Where it begins, by `contentCreated`.
    pub from: Timestamp,
    /// Where it ends (exclusive).
    pub to: Timestamp,
    /// The reason in its record.
    pub reason: String,
}

/// Gaps that one position remembers: a few kilobytes, written with every move of the position.
pub const GAPS_MAX: usize = 64;

impl Position {
    /// Adds a gap. Above [`GAPS_MAX`], the two closest neighbours are merged, so that no interval is forgotten.
    pub fn note_gap(&mut self, gap: DeclaredGap) {
        if self.gaps.contains(&gap) {
            return;
        }
        let at = self.gaps.partition_point(|known| (known.from, known.to) <= (gap.from, gap.to));
        self.gaps.insert(at, gap);
        while self.gaps.len() > GAPS_MAX {
            let between = |pair: &[DeclaredGap]| match pair {
                [one, other] => other.from.duration_since(one.to),
                _ => jiff::SignedDuration::MAX,
            };
            let closest = self.gaps.windows(2).enumerate().min_by_key(|(_, pair)| between(pair)).map(|(at, _)| at);
            let Some(at) = closest else { return };
            let other = self.gaps.remove(at + 1);
            if let Some(one) = self.gaps.get_mut(at) {
                one.to = one.to.max(other.to);
                if !one.reason.split(", ").any(|known| known == other.reason) {
                    one.reason = format!("{}, {}", one.reason, other.reason);
                }
            }
        }
    }

    /// Removes the operator's skip of `from` and later: that range is read after all.
    pub fn reread_from(&mut self, from: Timestamp, reason: &str) {
        for gap in self.gaps.iter_mut().filter(|gap| gap.reason == reason) {
            gap.to = gap.to.min(from);
        }
        self.gaps.retain(|gap| gap.from < gap.to);
    }

    /// The position of a stream that never ran.
    pub fn first(origin: Timestamp) -> Self {
        Self {
            format: FORMAT,
            origin,
            began: None,
            complete_until: None,
            listed_until: None,
            last_listing: None,
            day_listed: None,
            week_listed: None,
            disabled_since: None,
            passed_over: None,
            gaps: Vec::new(),
        }
    }
}

/// A blob that outlives the listing it was found in: found below `complete_until`, or failed at least once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackedBlob {
    /// Format version.
    pub format: u32,
    /// `contentId`.
    pub content_id: String,
    /// `contentUri`.
    pub content_uri: String,
    /// `contentCreated`.
    pub created: Timestamp,
    /// `contentExpiration`.
    pub expires: Timestamp,
}

impl TrackedBlob {
    /// The stored form of `blob`.
    pub fn of(blob: &BlobRef) -> Self {
        Self {
            format: FORMAT,
            content_id: blob.id.to_string(),
            content_uri: blob.uri.to_string(),
            created: blob.created,
            expires: blob.expires,
        }
    }

    /// The blob again.
    pub fn into_blob(self, content_type: ContentType) -> BlobRef {
        BlobRef {
            content_type,
            id: self.content_id.into(),
            uri: self.content_uri.into(),
            created: self.created,
            expires: self.expires,
        }
    }
}

/// A record the host rejected for good, kept until it is accepted or exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsideRecord {
    /// Format version.
    pub format: u32,
    /// The host's reason.
    pub why: String,
    /// When it was set aside.
    pub since: Timestamp,
    /// When the event happened.
    pub time: Timestamp,
    /// The name of its severity.
    pub severity: String,
    /// Its subject; absent in those of earlier builds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<AsideKind>,
    /// The canonical key of its event, if receipts are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<CanonicalKey>,
    /// The record, as it was offered to the host.
    pub record: String,
}

/// The subject of a record that was set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AsideKind {
    /// A record that this program made.
    Notice,
    /// An audit event.
    Event {
        /// The name of its category.
        category: String,
        /// Its event type.
        event_type: String,
    },
}

impl AsideKind {
    /// The stored form.
    pub fn of(kind: &Kind) -> Self {
        match kind {
            Kind::Notice => Self::Notice,
            Kind::Event(EventKind { category, event_type }) => {
                Self::Event { category: category.as_str().to_owned(), event_type: event_type.as_str().to_owned() }
            }
        }
    }

    /// The original; `None` for a category that this build does not know.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Self::Notice => Some(Kind::Notice),
            Self::Event { category, event_type } => {
                let category = Category::from_name(category)?;
                Some(Kind::Event(EventKind { category, event_type: event_type.as_bytes().into() }))
            }
        }
    }
}

/// An unfinished back-fill, so that it resumes where it stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredBackfill {
    /// Format version.
    pub format: u32,
    /// Where its range begins.
    pub from: Timestamp,
    /// Where its range ends (exclusive).
    pub to: Timestamp,
    /// Whether events already delivered are delivered again.
    pub again: bool,
    /// Drawn at its start; distinguishes its repeats from those of another back-fill.
    pub salt: String,
    /// When it was begun.
    pub started: Timestamp,
    /// The intervals still to be read, by content type: disjoint, in no order.
    pub remaining: BTreeMap<String, Vec<(Timestamp, Timestamp)>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position() -> Position {
        Position {
            format: 1,
            origin: "2026-05-01T00:00:00Z".parse().unwrap(),
            began: None,
            complete_until: Some("2026-05-03T10:00:00Z".parse().unwrap()),
            listed_until: Some("2026-05-03T10:05:00Z".parse().unwrap()),
            last_listing: Some("2026-05-03T10:05:01Z".parse().unwrap()),
            day_listed: None,
            week_listed: None,
            disabled_since: None,
            passed_over: None,
            gaps: Vec::new(),
        }
    }

    #[test]
    fn gaps_are_remembered_in_order_and_of_too_many_the_closest_become_one() {
        let at = |hour: i64| Timestamp::from_second(hour * 3600).unwrap();
        let gap = |from, to, reason: &str| DeclaredGap { from: at(from), to: at(to), reason: reason.into() };
        let mut position = position();
        for n in (0..GAPS_MAX as i64).rev() {
            position.note_gap(gap(n * 10, n * 10 + 1, "outage"));
            position.note_gap(gap(n * 10, n * 10 + 1, "outage"));
        }
        assert_eq!(position.gaps.len(), GAPS_MAX);
        assert!(position.gaps.is_sorted_by_key(|gap| gap.from));
        position.note_gap(gap(12, 13, "blob_expired"));
        assert_eq!(position.gaps.len(), GAPS_MAX);
        assert_eq!(position.gaps[1], gap(10, 13, "outage, blob_expired"));
        assert_eq!(decode::<Position>("p", &encode(&position)), Ok(position.clone()));
        position.reread_from(at(400), "outage");
        assert!(position.gaps.iter().all(|gap| gap.to <= at(400)) && position.gaps.len() < GAPS_MAX);
    }

    #[test]
    fn format_1_is_read_for_ever() {
        let stored = include_str!("../../tests/fixtures/state/position.v1.json");
        assert_eq!(decode::<Position>("p", stored.as_bytes()), Ok(position()));
        let stored = include_str!("../../tests/fixtures/state/tracked_blob.v1.json");
        let blob: TrackedBlob = decode("t", stored.as_bytes()).unwrap();
        assert_eq!(TrackedBlob::of(&blob.clone().into_blob(ContentType::Exchange)), blob);
        let stored = include_str!("../../tests/fixtures/state/tenant.v1.json");
        assert_eq!(decode::<TenantState>("t", stored.as_bytes()).unwrap().starts.len(), 1);
        let stored = include_str!("../../tests/fixtures/state/backfill.v1.json");
        assert_eq!(decode::<StoredBackfill>("b", stored.as_bytes()).unwrap().remaining.len(), 1);
        let stored = include_str!("../../tests/fixtures/state/aside.v1.json");
        assert_eq!(decode::<AsideRecord>("a", stored.as_bytes()).unwrap().severity, "high");
    }

    #[test]
    fn a_value_comes_back_as_it_was_written() {
        assert_eq!(decode::<Position>("p", &encode(&position())), Ok(position()));
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let newer = r#"{"format":2,"origin":{"entirely":"different"}}"#;
        let error = decode::<Position>("m365_audit/v1/t/position", newer.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("`m365_audit/v1/t/position`"), "{error}");
        assert!(error.to_string().contains("format 2"), "{error}");
    }

    #[test]
    fn damaged_bytes_are_corrupt_not_a_first_run() {
        assert!(matches!(decode::<Position>("p", b"{\"format\":1"), Err(StateError::Corrupt { .. })));
        assert!(matches!(decode::<Position>("p", b""), Err(StateError::Corrupt { .. })));
    }
}
