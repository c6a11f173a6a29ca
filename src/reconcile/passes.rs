//! What is made of each event, on any thread, while exports and records of ours are read.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use smallvec::SmallVec;

use super::class::Row;
use super::content_type;
use super::identities::{KeptRow, NumberedIdentity};
use super::rows::RowSet;
use super::spool::SpooledEvent;
use super::table::{Key as TableKey, LookupTable};
use crate::checkpoint::key::{Key, creation_secs};
use crate::exports::form::Form;
use crate::exports::outer::Outer;
use crate::exports::pipeline::{BadItem, Make, ReadEvent};
use crate::exports::restore::{Dialect, restore};
use crate::model::{EventIdentity, Timestamp};
use crate::normalise::{Event, Normaliser, Rendered, canonical_key, json, time};

/// What a row is known by.
pub(super) struct RowFacts {
    pub key: Option<TableKey>,
    /// Its key by the event alone, where the row says beside it what the event does not.
    pub alias: Option<TableKey>,
    pub row: Row,
    pub time: Option<Timestamp>,
    /// Where this is no event but what Graph says of a query.
    pub query: Option<SavedGraphQuery>,
}

impl RowFacts {
    pub fn of(event: &Event<'_>) -> RowFacts {
        let time = event.time();
        let workload = event.find("Workload").and_then(json::scalar).unwrap_or_default();
        let row = Row::new(time, content_type::of(event.record_type(), &workload));
        RowFacts { key: key_of(event), alias: None, row, time, query: None }
    }

    /// The same of an event that was completed by what stands around it: the feed has it as it was carried.
    fn of_read(read: &ReadEvent, event: &Event<'_>) -> RowFacts {
        // A query has an `id`, so that it looks like an event.
        let is_bare = event.operation().is_empty() && event.creation_time().is_empty();
        let query = is_bare.then(|| SavedGraphQuery::of(event.text().as_bytes())).flatten();
        let facts = RowFacts { query, ..RowFacts::of(event) };
        let Some(carried) = &read.carried else { return facts };
        let alias = Event::parse(carried).ok().and_then(|event| key_of(&event));
        // Where a form carries the whole event, one without an `Id` has none in the feed either.
        let is_nameless = alias.is_none() && matches!(read.form, Form::AuditCsv | Form::UnifiedAuditLog | Form::Graph);
        let key = facts.key.filter(|_| !is_nameless);
        RowFacts { alias: alias.filter(|alias| Some(*alias) != key), key, ..facts }
    }
}

fn key_of(event: &Event<'_>) -> Option<TableKey> {
    canonical_key(event).map(|key| *key.as_bytes())
}

/// Reads an export: which rows there are, and what they can be looked up by.
pub(super) struct ExportRows<'a> {
    /// The rules that drop events, where no receipt can name one: of events before this time.
    pub dropping: Option<(&'a Normaliser, Timestamp)>,
}

impl ExportRows<'_> {
    /// What a row is known by; appends what is kept of it ([`KeptRow`]) if it has a key.
    pub fn keep(&self, facts: RowFacts, event: &Event<'_>, carried: Option<&Bytes>, out: &mut Vec<u8>) -> RowFacts {
        let (Some(key), Some(identity), None) = (facts.key, event.identity(), &facts.query) else { return facts };
        let start = out.len();
        let dropping = self.dropping.filter(|(_, before)| facts.row.time().is_none_or(|time| time < *before));
        let rule = dropping.and_then(|(rules, _)| match rules.render_from(event, &Default::default(), out) {
            Rendered::Dropped { rule } => Some(rule),
            Rendered::Record { .. } => None,
        });
        out.truncate(start);
        let carried = carried.and_then(|bytes| Event::parse(bytes).ok());
        let number_of_carried = carried.as_ref().map(number_of).unwrap_or_default();
        let carried = carried.as_ref().and_then(Event::identity);
        let kept = KeptRow {
            key,
            event: NumberedIdentity { identity, number: &number_of(event) },
            carried: carried.map(|identity| NumberedIdentity { identity, number: &number_of_carried }),
            rule: rule.as_deref().unwrap_or_default(),
        };
        kept.push(out);
        facts
    }
}

impl Make for ExportRows<'_> {
    type Made = RowFacts;
    const OUTPUT_PER_INPUT: usize = 0;

    fn make(&self, read: &ReadEvent, event: &Event<'_>, out: &mut Vec<u8>) -> RowFacts {
        self.keep(RowFacts::of_read(read, event), event, read.carried.as_ref(), out)
    }
}

/// The number of an event's record type in digits; empty where it has none.
fn number_of(event: &Event<'_>) -> String {
    event.record_type().map(|number| number.to_string()).unwrap_or_default()
}

/// What identifies the event of a row whose event cannot be read, as the row itself says it: enough to find it by.
pub(super) fn identity_beside(bad: &BadItem) -> Option<Bytes> {
    let Outer { id, time, operation, record_type, .. } = &bad.outer;
    let is_told = [id, time, operation, record_type].into_iter().all(|text| text.is_some());
    let restored = is_told.then(|| restore(&Bytes::from_static(b"{}"), &bad.outer, Dialect::PowerShell).ok())??;
    let event = Event::parse(&restored.event).ok()?;
    (event.identity().is_some() && event.time().is_some()).then_some(restored.event.clone())
}

/// A row of which nothing is known and that is to be looked up.
pub(super) struct LookUp {
    pub key: TableKey,
    /// Keys that the feed's text of the event may have.
    pub keys: SmallVec<[Key; 6]>,
    /// What is known by the `Id` alone, of [`super::class::found`].
    pub by_id: u8,
    pub rule: Option<Arc<str>>,
    pub listed: SpooledEvent,
}

impl LookUp {
    /// `ids` has the hashes of ids of records that hold no event.
    pub fn of(kept: &KeptRow<'_>, ids: &LookupTable<u8>) -> LookUp {
        let identity = &kept.event.identity;
        let by_id = if ids.is_empty() { None } else { ids.get(id_hash(identity.id)) };
        let mut keys = possible_keys(&kept.event);
        keys.extend(kept.carried.iter().flat_map(possible_keys));
        let rule = (!kept.rule.is_empty()).then(|| kept.rule.into());
        LookUp { key: kept.key, keys, by_id: by_id.copied().unwrap_or_default(), rule, listed: listed(identity) }
    }
}

pub(super) fn listed(identity: &EventIdentity<'_>) -> SpooledEvent {
    SpooledEvent {
        id: identity.id.to_owned(),
        time: identity.creation_time.to_owned(),
        operation: identity.operation.to_owned(),
    }
}

/// The duplicate keys of an event: that key is over the feed's text, and exports write some times in another way. The feed
/// itself writes a time in one of four.
fn possible_keys(NumberedIdentity { identity, number }: &NumberedIdentity<'_>) -> SmallVec<[Key; 6]> {
    let mut keys: SmallVec<[Key; 6]> = SmallVec::new();
    keys.push(Key::of_event(identity));
    let record_type = if number.is_empty() { identity.record_type } else { number };
    // Of hundreds of thousands of rows: what is written as the row has it is not hashed twice.
    let mut push = |written: &str| {
        if record_type != identity.record_type || written != identity.creation_time {
            let key = Key::of_event(&EventIdentity { record_type, creation_time: written, ..*identity });
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
    };
    push(identity.creation_time);
    let Some(time) = time::parse(identity.creation_time).map(|time| time.at) else { return keys };
    let mut written = plain_time(identity.creation_time, time);
    let plain = written.len();
    for end in ["", "Z", ".0000000Z"] {
        written.truncate(plain);
        written.push_str(end);
        push(&written);
    }
    written.truncate(plain);
    push(&written.replacen('T', " ", 1));
    keys
}

/// A time as the feed writes it: mostly what the text begins with that says it.
fn plain_time(text: &str, time: Timestamp) -> String {
    let begins = text.get(..PLAIN_BYTES).filter(|plain| {
        // Of a second 60 and of another separator the text is another.
        plain.is_ascii() && matches!(plain.as_bytes(), [.., b'T', _, _, b':', _, _, b':', b'0'..=b'5', _])
    });
    match begins {
        Some(plain) if i64::from(creation_secs(plain)) == time.as_second() && time.as_second() > 0 => plain.to_owned(),
        _ => time.strftime("%Y-%m-%dT%H:%M:%S").to_string(),
    }
}

/// Bytes of `2026-07-17T08:28:17`.
const PLAIN_BYTES: usize = 19;

/// What an id is known by where nothing else is.
pub(super) fn id_hash(id: &str) -> TableKey {
    let hash = blake3::hash(id.trim().to_ascii_lowercase().as_bytes());
    hash.as_bytes().first_chunk().copied().unwrap_or_default()
}

/// Records of ours: what they are of, and whether the export has it.
pub(super) struct OurRecords<'a> {
    pub rows: &'a RowSet,
}

/// A record of ours.
pub(super) struct Ours {
    pub key: Option<TableKey>,
    /// Where the export has no such row.
    pub alone: Option<(Option<Timestamp>, SpooledEvent)>,
}

impl Make for OurRecords<'_> {
    type Made = Ours;
    const OUTPUT_PER_INPUT: usize = 0;

    fn make(&self, read: &ReadEvent, event: &Event<'_>, _: &mut Vec<u8>) -> Ours {
        // A record says a time also of an event that says none: the event as the feed had it is the one that it carries.
        let carried = read.carried.as_ref().and_then(|bytes| Event::parse(bytes).ok());
        let keys = [carried.as_ref().and_then(key_of), key_of(event)];
        let found = keys.iter().flatten().find(|key| self.rows.get(**key).is_some()).copied();
        let identity = event.identity().filter(|_| found.is_none());
        let key = found.or_else(|| keys.into_iter().flatten().next());
        Ours { key, alone: identity.map(|identity| (event.time(), listed(&identity))) }
    }
}

/// The `Id` that a record of ours says where it holds no event: native, ECS, OCSF.
pub(super) fn id_of_record(record: &[u8]) -> Option<String> {
    let record: Value = serde_json::from_slice(record).ok()?;
    let told =
        [record.get("event_id"), record.pointer("/event/id"), record.get("event.id"), record.pointer("/metadata/uid")];
    told.into_iter().flatten().find_map(Value::as_str).filter(|id| !id.trim().is_empty()).map(str::to_owned)
}

/// What Microsoft Graph says of a query beside its records.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SavedGraphQuery {
    pub is_truncated: bool,
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
}

impl SavedGraphQuery {
    /// The query that this object is, if it is one.
    pub fn of(object: &[u8]) -> Option<SavedGraphQuery> {
        const MEMBERS: [&str; 3] = ["isRecordCountLimitExceeded", "filterStartDateTime", "filterEndDateTime"];
        if !MEMBERS.iter().any(|name| memchr::memmem::find(object, name.as_bytes()).is_some()) {
            return None;
        }
        let object: Value = serde_json::from_slice(object).ok()?;
        let [truncated, from, to] = MEMBERS.map(|name| object.get(name));
        let time = |value: Option<&Value>| value.and_then(Value::as_str).and_then(|text| text.parse().ok());
        let is_query = truncated.or(from).or(to).is_some();
        is_query.then(|| SavedGraphQuery {
            is_truncated: truncated.and_then(Value::as_bool) == Some(true),
            from: time(from),
            to: time(to),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn possible_keys_of(event: &Event<'_>) -> SmallVec<[Key; 6]> {
        possible_keys(&NumberedIdentity { identity: event.identity().unwrap(), number: &number_of(event) })
    }

    #[test]
    fn a_key_of_the_feed_is_found_however_it_and_the_export_write_the_time() {
        let event = |time: &str, record_type: &str| {
            format!(r#"{{"Id":"a","RecordType":{record_type},"CreationTime":"{time}","Operation":"o"}}"#)
        };
        let export = event("2026-07-17T08:28:17", "65");
        let export = Event::parse(export.as_bytes()).unwrap();
        let possible = possible_keys_of(&export);
        for time in
            ["2026-07-17T08:28:17", "2026-07-17T08:28:17Z", "2026-07-17T08:28:17.0000000Z", "2026-07-17 08:28:17"]
        {
            let feed = event(time, "65");
            let feed = Event::parse(feed.as_bytes()).unwrap();
            assert!(possible.contains(&Key::of_event(&feed.identity().unwrap())), "{time}");
        }
        let named = event("2026-07-17T08:28:17Z", "\"Quarantine\"");
        let named = Event::parse(named.as_bytes()).unwrap();
        let feed = Event::parse(export.text().as_bytes()).unwrap();
        let possible = possible_keys_of(&named);
        assert!(possible.contains(&Key::of_event(&feed.identity().unwrap())), "the name of a record type");
    }

    #[test]
    fn a_time_is_written_as_the_feed_does_whatever_text_says_it() {
        for text in [
            "2026-07-17T08:28:17",
            "2026-07-17T08:28:17Z",
            "2026-07-17 08:28:17",
            "2026-07-17t08:28:17Z",
            "2026-07-17T08:28:17.9990000Z",
            "2026-07-17T10:28:17+02:00",
            "2026-07-17T08:28:60",
            "1969-07-17T08:28:17",
        ] {
            let event = format!(r#"{{"CreationTime":"{text}"}}"#);
            if let Some(time) = Event::parse(event.as_bytes()).unwrap().time() {
                assert_eq!(plain_time(text, time), time.strftime("%Y-%m-%dT%H:%M:%S").to_string(), "{text}");
            }
        }
    }

    #[test]
    fn the_id_of_a_record_without_an_event_is_found_in_each_format() {
        for record in [
            r#"{"source":"m365","event_type":"x","severity":"low","event_id":"A"}"#,
            r#"{"event":{"id":"A"},"m365":{"audit":{}}}"#,
            r#"{"event.id":"A"}"#,
            r#"{"metadata":{"uid":"A"},"class_uid":1}"#,
        ] {
            assert_eq!(id_of_record(record.as_bytes()).as_deref(), Some("A"), "{record}");
        }
        assert_eq!(id_of_record(b"{}"), None);
        assert_eq!(id_hash(" A "), id_hash("a"));
    }

    #[test]
    fn a_query_of_graph_is_no_row() {
        let query = r#"{"id":"q","filterStartDateTime":"2026-07-17T00:00:00Z","isRecordCountLimitExceeded":true}"#;
        let from = Some("2026-07-17T00:00:00Z".parse().unwrap());
        assert_eq!(SavedGraphQuery::of(query.as_bytes()), Some(SavedGraphQuery { is_truncated: true, from, to: None }));
        assert_eq!(SavedGraphQuery::of(br#"{"Subject":"isRecordCountLimitExceeded"}"#), None);
        assert_eq!(SavedGraphQuery::of(b"{}"), None);
    }
}
