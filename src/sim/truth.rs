//! The ledger of truth: every event the simulator made, where it was published, and the comparison with a client's
//! deliveries.
//!
//! It does not know HTTP. It decides identity as the feed's documentation permits: by `Id` with `RecordType`,
//! `CreationTime`, `Operation` and `RecordNumber`, per tenant; for an event without `Id`, every appearance is an event
//! of its own.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};

use super::events::{HugeBody, Irregularity, parse_event_time};
use crate::model::{ContentType, TenantId, Timestamp};

/// 128 bits of BLAKE3.
pub(super) type Digest = [u8; 16];

/// One event that was made, as published in at least one blob.
#[derive(Debug, Clone)]
pub struct TruthEvent {
    /// `Id`, when the event has one.
    pub id: Option<Arc<str>>,
    /// The tenant it was published in.
    pub tenant: TenantId,
    /// The content type of the first blob that held it.
    pub content_type: ContentType,
    /// The blobs that hold it (`contentId`), in the order they were made; one blob may be named twice.
    pub content_ids: Vec<Arc<str>>,
    /// Its bytes as first published.
    pub raw: Bytes,
    /// When the first of its blobs became listable, by the simulator's clock.
    pub listable_from: Timestamp,
    /// When the last of its blobs expires.
    pub expires: Timestamp,
    /// All of its blobs expired and none was ever read to the end.
    pub expired_unread: bool,
    /// Whether none of its blobs can have been listed so far: future ones, ones older than the feed lists, or ones
    /// published while the subscription was not enabled.
    pub withheld: bool,
    /// The irregular shape it was made in.
    pub irregularity: Option<Irregularity>,
    /// A client may leave it out: see [`Truth::dropping`].
    pub optional: bool,
}

/// The events of a blob too large to hold, known by their numbers.
#[derive(Debug, Clone)]
pub struct TruthHuge {
    /// The tenant it was published in.
    pub tenant: TenantId,
    /// The blob's content type.
    pub content_type: ContentType,
    /// The blob.
    pub content_id: Arc<str>,
    /// How many events it holds; [`Truth::huge_event_id`] names them.
    pub count: u64,
    /// As for [`TruthEvent::expired_unread`].
    pub expired_unread: bool,
    /// As for [`TruthEvent::withheld`].
    pub withheld: bool,
    pub(super) body: HugeBody,
}

/// A copy of the ledger at one moment.
#[derive(Debug, Clone)]
pub struct Truth {
    /// Every event, in the order made.
    pub events: Vec<TruthEvent>,
    /// The blobs too large to list event by event.
    pub huge: Vec<TruthHuge>,
    /// How many events of each irregular shape were published (copies in other blobs not counted).
    pub irregularities: BTreeMap<Irregularity, u64>,
    /// How many events were made from each template, by its name; `corpus` counts the real records.
    pub made: BTreeMap<&'static str, u64>,
    /// How many times an event was published again in another blob.
    pub copies: u64,
    /// How many blobs there are, empty ones included.
    pub blobs: u64,
    /// How many of them were read to the end at least once.
    pub blobs_read: u64,
    pub(super) fingerprints: HashMap<Digest, Vec<usize>>,
    pub(super) created: Vec<Vec<Timestamp>>,
}

/// One record as a client delivered it.
#[derive(Debug, Clone, Default)]
pub struct Delivered {
    /// The event as received; line breaks and blanks between tokens do not matter. Empty when the client does not
    /// deliver it: then `id` decides.
    pub raw: Vec<u8>,
    /// `Id`, if known.
    pub id: Option<String>,
    /// The tenant that the client reported, if any.
    pub tenant: Option<TenantId>,
    /// The time the client gave the record, if it is to be checked.
    pub timestamp: Option<Timestamp>,
}

impl From<Vec<u8>> for Delivered {
    fn from(raw: Vec<u8>) -> Self {
        Self { raw, ..Self::default() }
    }
}

impl From<&[u8]> for Delivered {
    fn from(raw: &[u8]) -> Self {
        raw.to_vec().into()
    }
}

impl From<&str> for Delivered {
    fn from(raw: &str) -> Self {
        raw.as_bytes().into()
    }
}

impl From<String> for Delivered {
    fn from(raw: String) -> Self {
        raw.into_bytes().into()
    }
}

/// The result of a comparison. Each list names events by `Id`, or by a digest of their bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// How many events a client could have received.
    pub expected: u64,
    /// How many records it delivered.
    pub delivered: u64,
    /// Events that could be listed and fetched, but were never delivered.
    pub lost: Vec<String>,
    /// Events never delivered that can no longer be fetched, because every blob expired unread.
    pub expired_unread: Vec<String>,
    /// Events delivered more often than due; one entry for each extra delivery.
    pub duplicated: Vec<String>,
    /// Events delivered with other bytes than published.
    pub altered: Vec<String>,
    /// Events delivered with a time that is neither their `CreationTime` nor, without one, their blob's.
    pub misdated: Vec<String>,
    /// Events delivered that were never published.
    pub unexpected: Vec<String>,
}

impl Comparison {
    /// Nothing lost, duplicated, altered, misdated or unexpected, and nothing expired unread.
    pub fn is_clean(&self) -> bool {
        [&self.lost, &self.expired_unread, &self.duplicated, &self.altered, &self.misdated, &self.unexpected]
            .into_iter()
            .all(Vec::is_empty)
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}, delivered {}", self.expected, self.delivered)?;
        for (name, list) in [
            ("lost", &self.lost),
            ("expired unread", &self.expired_unread),
            ("duplicated", &self.duplicated),
            ("altered", &self.altered),
            ("misdated", &self.misdated),
            ("unexpected", &self.unexpected),
        ] {
            write!(f, ", {name} {}", list.len())?;
            if let Some(first) = list.first() {
                write!(f, " (first `{first}`)")?;
            }
        }
        Ok(())
    }
}

impl Truth {
    /// The `Id` of event `n` (from zero) of a huge blob; `None` when it has fewer.
    pub fn huge_event_id(huge: &TruthHuge, n: u64) -> Option<String> {
        (n < huge.count).then(|| huge.body.event_id(n))
    }

    /// How many events there are in all, those of huge blobs included.
    pub fn event_count(&self) -> u64 {
        self.events.len() as u64 + self.huge.iter().map(|huge| huge.count).sum::<u64>()
    }

    /// Compares a client's deliveries with the published events.
    pub fn compare<I>(&self, records: I) -> Comparison
    where
        I: IntoIterator,
        I::Item: Into<Delivered>,
    {
        let mut out = Comparison::default();
        let mut seen = vec![0u64; self.events.len()];
        let mut seen_huge: Vec<Vec<u8>> = self.huge.iter().map(|huge| vec![0; huge.count as usize]).collect();
        let mut by_id: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, event) in self.events.iter().enumerate() {
            if let Some(id) = event.id.as_deref() {
                by_id.entry(id).or_default().push(index);
            }
        }
        for record in records {
            let record: Delivered = record.into();
            out.delivered += 1;
            self.count(&record, &by_id, &mut seen, &mut seen_huge, &mut out);
        }
        self.sum_up(&seen, &seen_huge, &mut out);
        out
    }

    fn count(
        &self,
        record: &Delivered,
        by_id: &HashMap<&str, Vec<usize>>,
        seen: &mut [u64],
        seen_huge: &mut [Vec<u8>],
        out: &mut Comparison,
    ) {
        let parsed = EventFields::parse(&record.raw);
        let id = parsed.as_ref().and_then(|fields| fields.id.clone()).or_else(|| record.id.clone());
        let label = || id.clone().unwrap_or_else(|| label_of(&record.raw));
        if let Some((which, n)) = id.as_deref().and_then(|id| self.find_huge(id, record.tenant.as_ref())) {
            let body = &self.huge[which].body;
            seen_huge[which][n as usize] = seen_huge[which][n as usize].saturating_add(1);
            if seen_huge[which][n as usize] > 1 {
                out.duplicated.push(label());
            }
            if !record.raw.is_empty() && fingerprint(&record.raw) != fingerprint(&body.event(n)) {
                out.altered.push(label());
            }
            if record.timestamp.is_some_and(|time| time != body.time()) {
                out.misdated.push(label());
            }
            return;
        }
        let in_tenant = |index: &&usize| record.tenant.as_ref().is_none_or(|t| *t == self.events[**index].tenant);
        let least_seen = |candidates: &[usize]| {
            candidates
                .iter()
                .filter(in_tenant)
                .copied()
                .min_by_key(|&index| (seen[index] >= self.due(index), seen[index]))
        };
        let exact = self.fingerprints.get(&fingerprint(&record.raw)).and_then(|c| least_seen(c));
        let index = match exact {
            Some(index) => index,
            None => {
                let Some(index) = id.as_deref().and_then(|id| by_id.get(id)).and_then(|c| least_seen(c)) else {
                    out.unexpected.push(label());
                    return;
                };
                if !record.raw.is_empty() {
                    out.altered.push(label());
                }
                index
            }
        };
        seen[index] += 1;
        if seen[index] > self.due(index) {
            out.duplicated.push(label());
        }
        if record.timestamp.is_some_and(|time| !self.dates(index).contains(&time)) {
            out.misdated.push(label());
        }
    }

    fn sum_up(&self, seen: &[u64], seen_huge: &[Vec<u8>], out: &mut Comparison) {
        for (index, event) in self.events.iter().enumerate() {
            if (event.withheld || event.optional) && seen[index] == 0 {
                continue;
            }
            let due = self.due(index);
            out.expected += due;
            for _ in seen[index]..due {
                let label = event.id.as_deref().map_or_else(|| label_of(&event.raw), str::to_owned);
                if event.expired_unread { &mut out.expired_unread } else { &mut out.lost }.push(label);
            }
        }
        for (huge, seen) in self.huge.iter().zip(seen_huge) {
            if huge.withheld && seen.iter().all(|count| *count == 0) {
                continue;
            }
            out.expected += huge.count;
            let missing = (0u64..).zip(seen).filter(|(_, count)| **count == 0).map(|(n, _)| huge.body.event_id(n));
            if huge.expired_unread { &mut out.expired_unread } else { &mut out.lost }.extend(missing);
        }
    }

    /// How often an event is to be delivered: once, but an event without `Id` as often as it was published.
    fn due(&self, index: usize) -> u64 {
        let event = &self.events[index];
        if event.id.is_some() { 1 } else { event.content_ids.len() as u64 }
    }

    /// How often events are to be delivered that [`Comparison`] names `label`: the sum over all that share an `Id`.
    pub fn due_under(&self, label: &str) -> u64 {
        let under = |event: &TruthEvent| match &event.id {
            Some(id) => **id == *label,
            None => label_of(&event.raw) == label,
        };
        (0..self.events.len()).filter(|&index| under(&self.events[index])).map(|index| self.due(index)).sum()
    }

    /// The times a record of the event may carry.
    fn dates(&self, index: usize) -> Vec<Timestamp> {
        let own =
            EventFields::parse(&self.events[index].raw).and_then(|fields| parse_event_time(&fields.creation_time));
        own.map_or_else(|| self.created[index].clone(), |time| vec![time])
    }

    fn find_huge(&self, id: &str, tenant: Option<&TenantId>) -> Option<(usize, u64)> {
        self.huge.iter().enumerate().find_map(|(which, huge)| {
            let n = huge.body.event_number(id)?;
            (n < huge.count && tenant.is_none_or(|t| *t == huge.tenant)).then_some((which, n))
        })
    }
}

/// An event in the ledger.
pub(super) struct LedgerEvent {
    pub id: Option<Arc<str>>,
    pub tenant: TenantId,
    pub content_type: ContentType,
    pub raw: Bytes,
    pub content_ids: Vec<Arc<str>>,
    pub irregularity: Option<Irregularity>,
    /// The witness from which a fault withholds it.
    pub kept_from: Option<Side>,
}

/// One of the two witnesses of the tenant's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The feed of the Management Activity API.
    Feed,
    /// The audit search.
    Search,
}

/// The ledger as it grows.
#[derive(Default)]
pub(super) struct TruthLedger {
    pub entries: Vec<LedgerEvent>,
    pub fingerprints: HashMap<Digest, Vec<usize>>,
    pub irregularities: BTreeMap<Irregularity, u64>,
    pub made: BTreeMap<&'static str, u64>,
    pub copies: u64,
    identities: HashMap<Digest, usize>,
}

impl TruthLedger {
    /// Records one appearance of an event; `true` when it is the first.
    pub fn publish(
        &mut self,
        tenant: &TenantId,
        content_type: ContentType,
        content_id: &Arc<str>,
        raw: &Bytes,
        irregularity: Option<Irregularity>,
    ) -> bool {
        let print = fingerprint(raw);
        let fields = EventFields::parse(raw);
        let id: Option<Arc<str>> = fields.as_ref().and_then(|fields| fields.id.as_deref().map(Arc::from));
        let identity = match &fields {
            Some(fields) if id.is_some() => fields.identity(tenant),
            _ => digest(&[tenant.as_str().as_bytes(), b"no id", &print]),
        };
        let (index, first) = match self.identities.get(&identity) {
            Some(&index) => (index, false),
            None => {
                self.entries.push(LedgerEvent {
                    id,
                    tenant: tenant.clone(),
                    content_type,
                    raw: raw.clone(),
                    content_ids: Vec::new(),
                    irregularity,
                    kept_from: None,
                });
                self.identities.insert(identity, self.entries.len() - 1);
                (self.entries.len() - 1, true)
            }
        };
        self.entries[index].content_ids.push(content_id.clone());
        let known = self.fingerprints.entry(print).or_default();
        if !known.contains(&index) {
            known.push(index);
        }
        if first {
            if let Some(irregularity) = irregularity {
                *self.irregularities.entry(irregularity).or_default() += 1;
            }
        } else {
            self.copies += 1;
        }
        first
    }
}

/// The members of an event that the ledger reads; scalars as text, whatever their JSON type.
#[derive(Debug, Default)]
pub(super) struct EventFields {
    pub id: Option<String>,
    pub creation_time: String,
    record_type: String,
    operation: String,
    record_number: String,
}

impl EventFields {
    /// `None` when the bytes are not a JSON object.
    pub fn parse(raw: &[u8]) -> Option<Self> {
        struct Fields(EventFields);
        impl<'de> Deserialize<'de> for Fields {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct EventMembers;
                impl<'de> Visitor<'de> for EventMembers {
                    type Value = Fields;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("an object")
                    }
                    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                        let mut fields = EventFields::default();
                        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
                            let slot = match &*key {
                                "Id" => fields.id.insert(String::new()),
                                "CreationTime" => &mut fields.creation_time,
                                "RecordType" => &mut fields.record_type,
                                "Operation" => &mut fields.operation,
                                "RecordNumber" => &mut fields.record_number,
                                _ => {
                                    map.next_value::<IgnoredAny>()?;
                                    continue;
                                }
                            };
                            *slot = match map.next_value::<serde_json::Value>()? {
                                serde_json::Value::String(text) => text,
                                serde_json::Value::Null => String::new(),
                                other => other.to_string(),
                            };
                        }
                        fields.id = fields.id.filter(|id| !id.is_empty());
                        Ok(Fields(fields))
                    }
                }
                deserializer.deserialize_map(EventMembers)
            }
        }
        serde_json::from_slice::<Fields>(raw).ok().map(|fields| fields.0)
    }

    fn identity(&self, tenant: &TenantId) -> Digest {
        digest(&[
            tenant.as_str().as_bytes(),
            self.id.as_deref().unwrap_or_default().as_bytes(),
            self.record_type.as_bytes(),
            self.creation_time.as_bytes(),
            self.operation.as_bytes(),
            self.record_number.as_bytes(),
        ])
    }
}

/// A digest of an event's bytes that ignores white space between tokens.
pub(super) fn fingerprint(raw: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    let (mut in_string, mut escaped, mut from) = (false, false, 0);
    for (at, &byte) in raw.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b' ' | b'\t' | b'\r' | b'\n' if !in_string => {
                hasher.update(&raw[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    hasher.update(&raw[from..]);
    shorten(&hasher)
}

fn digest(parts: &[&[u8]]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    shorten(&hasher)
}

fn shorten(hasher: &blake3::Hasher) -> Digest {
    let mut out = [0; 16];
    hasher.finalize_xof().fill(&mut out);
    out
}

fn label_of(raw: &[u8]) -> String {
    let print = fingerprint(raw);
    format!(
        "no id, digest {:016x}",
        u64::from_be_bytes([print[0], print[1], print[2], print[3], print[4], print[5], print[6], print[7]])
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_ignores_blanks_between_tokens_and_only_those() {
        let plain = fingerprint(br#"{"a":"x y","b":[1,2]}"#);
        assert_eq!(plain, fingerprint(b"{ \"a\":\r\n\"x y\",\t\"b\":[1, 2]}"));
        assert_ne!(plain, fingerprint(br#"{"a":"xy","b":[1,2]}"#));
        assert_ne!(fingerprint(br#"{"a":"\" "}"#), fingerprint(br#"{"a":"\""}"#));
    }

    #[test]
    fn event_times_are_read_in_every_form_of_the_feed() {
        let noon: Timestamp = "2026-05-01T12:00:00Z".parse().unwrap();
        for text in
            ["2026-05-01T12:00:00", "2026-05-01T12:00:00Z", "2026-05-01T14:00:00+02:00", "2026-05-01T12:00:00.0000000"]
        {
            assert_eq!(parse_event_time(text), Some(noon), "{text}");
        }
        assert_eq!(parse_event_time("yesterday"), None);
    }
}
