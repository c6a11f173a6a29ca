//! A record of Microsoft Graph as an event of the feed: the same unwrapping and restoring as `normalize` uses.

use bytes::Bytes;

use super::super::twin::twin_from;
use crate::checkpoint::heal::{StoredJob, WantedInterval};
use crate::checkpoint::key::Key;
use crate::exports::outer::Outer;
use crate::exports::restore::restore;
use crate::exports::unwrap::{Inside, unwrap};
use crate::model::{ContentType, Timestamp};
use crate::normalise::{CanonicalKey, Event, canonical_key, event_secs};
use crate::reconcile::content_type;

/// A record of Graph, as an event.
pub(super) struct GraphRecord {
    /// The event in the feed's form; the record itself if it holds no readable event.
    pub event: Bytes,
    /// Distinguishes it from others: its canonical key, else a hash of it.
    pub id: u128,
    /// Its canonical key.
    pub canonical: Option<CanonicalKey>,
    /// The same in the form that the gate uses.
    pub twin: Option<Key>,
    /// When it happened.
    pub time: Option<Timestamp>,
    /// The content type that carries it, if certain, and the likely one.
    content_type: (Option<ContentType>, ContentType),
    /// Whether an event was found in it.
    pub is_event: bool,
}

/// The decision on a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordFate {
    /// It belongs to a stream that is being filled.
    Deliver(ContentType),
    /// Its content type or its time is outside the request.
    NotWanted,
    /// It lies before a gap of this stream, and the state does not show whether it was delivered.
    NotKnown(ContentType),
}

impl GraphRecord {
    /// Reads a record.
    pub(super) fn of(bytes: &Bytes) -> Self {
        let mut inside = Vec::with_capacity(1);
        unwrap(bytes, false, &mut inside);
        let found = match inside.as_slice() {
            // Without the wrapper: the feed carries the event as it is inside.
            [Inside::Event(found)] => restore(&found.event, &Outer::default(), found.dialect).ok(),
            _ => None,
        };
        let beside = || match inside.as_slice() {
            [Inside::Event(found)] => event_secs(found.outer.time.as_deref()?),
            _ => None,
        };
        let beside = || Timestamp::from_second(beside()?.into()).ok();
        let (event, is_event) = match found {
            Some(restored) => (restored.event, true),
            None => (bytes.clone(), false),
        };
        let hash = || {
            let mut first = [0; 16];
            first.copy_from_slice(&blake3::hash(&event).as_bytes()[..16]);
            u128::from_be_bytes(first)
        };
        let Ok(parsed) = Event::parse(&event) else {
            let content_type = (None, ContentType::General);
            return Self { id: hash(), canonical: None, twin: None, time: None, content_type, is_event: false, event };
        };
        let canonical = canonical_key(&parsed);
        let workload = parsed.workload();
        let record_type = parsed.record_type();
        Self {
            id: canonical.map_or_else(hash, |key| u128::from_be_bytes(*key.as_bytes())),
            twin: canonical.map(|key| twin_from(key, &parsed)),
            canonical,
            time: parsed.time().or_else(beside),
            content_type: (content_type::of(record_type, &workload), content_type::likely(record_type, &workload)),
            is_event,
            event: event.clone(),
        }
    }

    /// Decides what to do with it. `read` are the content types of the source; `reach` is the time since which the
    /// state shows which events were delivered.
    pub(super) fn fate(&self, job: &StoredJob, read: &[ContentType], reach: Option<Timestamp>) -> RecordFate {
        let of = |content_type: ContentType| job.types.get(content_type.as_str());
        let (sure, likely) = self.content_type;
        let content_type = match sure {
            Some(sure) => sure,
            None if of(likely).is_some() => likely,
            // Its stream is uncertain. If all streams are filled, or the state shows what was delivered, it belongs to
            // one of them.
            None => {
                let all = read.iter().all(|content_type| of(*content_type).is_some());
                let known = self.time.zip(reach).is_some_and(|(time, reach)| reach <= time);
                let first = read.iter().copied().find(|content_type| of(*content_type).is_some());
                match first.filter(|_| all || known && self.canonical.is_some()) {
                    Some(first) => first,
                    None => return RecordFate::NotWanted,
                }
            }
        };
        let Some(spans) = of(content_type) else { return RecordFate::NotWanted };
        let Some(time) = self.time else { return RecordFate::Deliver(content_type) };
        let is_in = |wanted: &WantedInterval| wanted.from <= time && time < wanted.to;
        if spans.iter().any(is_in) {
            return RecordFate::Deliver(content_type);
        }
        if !spans.iter().any(|wanted| wanted.lead <= time && time < wanted.from) {
            return RecordFate::NotWanted;
        }
        let is_known = self.canonical.is_some() && reach.is_some_and(|reach| reach <= time);
        if is_known || job.again { RecordFate::Deliver(content_type) } else { RecordFate::NotKnown(content_type) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn record(id: &str, time: &str, record_type: i64, workload: &str) -> GraphRecord {
        let record = format!(
            r##"{{"@odata.type":"#microsoft.graph.security.auditLogRecord","id":"{id}","createdDateTime":"{time}Z","auditLogRecordType":"exchangeAdmin","operation":"o","userId":"u","auditData":{{"@odata.type":"#x","Id":"{id}","RecordType":{record_type},"CreationTime":"{time}Z","Operation":"o","Workload":"{workload}","Parameters@odata.type":"#c","Parameters":[{{"Name":"a","Value":"b"}}]}}}}"##
        );
        GraphRecord::of(&Bytes::from(record))
    }

    fn job(types: &[&str]) -> StoredJob {
        let at = |text: &str| text.parse().unwrap();
        let wanted = WantedInterval {
            lead: at("2026-05-01T00:00:00Z"),
            from: at("2026-05-04T00:00:00Z"),
            to: at("2026-05-10T00:00:00Z"),
            reason: String::new(),
        };
        let types: BTreeMap<_, _> = types.iter().map(|name| ((*name).to_owned(), vec![wanted.clone()])).collect();
        let (from, to) = (wanted.lead, wanted.to);
        StoredJob {
            from,
            to,
            types,
            again: false,
            salt: "s".into(),
            started: to,
            windows: vec![],
            done: vec![],
            left: vec![],
            left_out: vec![],
        }
    }

    #[test]
    fn a_record_is_the_event_of_the_feed_again() {
        let record = record("a", "2026-05-05T10:00:00", 1, "Exchange");
        assert_eq!(
            std::str::from_utf8(&record.event).unwrap(),
            r#"{"Id":"a","RecordType":1,"CreationTime":"2026-05-05T10:00:00","Operation":"o","Workload":"Exchange","Parameters":[{"Name":"a","Value":"b"}]}"#
        );
        let feed = br#"{"Operation":"o","Id":"A","RecordType":1,"CreationTime":"2026-05-05T10:00:00.0000000Z"}"#;
        assert_eq!(super::super::super::twin::twin_of(&Event::parse(feed).unwrap()), record.twin);
        assert!(record.is_event && record.twin.is_some());
    }

    #[test]
    fn what_is_delivered_depends_on_stream_time_and_what_is_known() {
        use ContentType::*;
        let (exchange, every) = (job(&["Audit.Exchange"]), job(&["Audit.Exchange", "Audit.General"]));
        let read = [Exchange, General];
        let at = |text: &str| Some(text.parse().unwrap());
        let early = at("2026-01-01T00:00:00Z");
        for (time, record_type, workload, job, reach, expected) in [
            ("2026-05-05T10:00:00", 1, "Exchange", &exchange, None, RecordFate::Deliver(Exchange)),
            ("2026-05-05T10:00:00", 25, "MicrosoftTeams", &exchange, None, RecordFate::NotWanted),
            ("2026-05-05T10:00:00", 8, "AzureActiveDirectory", &every, None, RecordFate::NotWanted),
            ("2026-05-10T00:00:00", 1, "Exchange", &exchange, early, RecordFate::NotWanted),
            ("2026-05-02T10:00:00", 1, "Exchange", &exchange, None, RecordFate::NotKnown(Exchange)),
            (
                "2026-05-02T10:00:00",
                1,
                "Exchange",
                &exchange,
                at("2026-05-03T00:00:00Z"),
                RecordFate::NotKnown(Exchange),
            ),
            ("2026-05-02T10:00:00", 1, "Exchange", &exchange, early, RecordFate::Deliver(Exchange)),
            // Its stream is uncertain.
            ("2026-05-05T10:00:00", 9999, "Novelty", &every, None, RecordFate::Deliver(General)),
            ("2026-05-05T10:00:00", 9999, "Novelty", &exchange, None, RecordFate::NotWanted),
            ("2026-05-05T10:00:00", 9999, "Novelty", &exchange, early, RecordFate::Deliver(Exchange)),
            ("2026-05-05T10:00:00", 154, "Exchange", &exchange, None, RecordFate::Deliver(Exchange)),
        ] {
            let record = record("a", time, record_type, workload);
            assert_eq!(record.fate(job, &read, reach), expected, "{time} {record_type} {workload} {reach:?}");
        }
    }

    #[test]
    fn what_holds_no_event_is_kept_as_it_is() {
        for odd in [r#"{"id":"a"}"#, r#"{"value":1}"#, "[1,2]", "\"text\""] {
            let record = GraphRecord::of(&Bytes::copy_from_slice(odd.as_bytes()));
            assert!(!record.is_event && record.event[..] == *odd.as_bytes() || odd.contains("id"), "{odd}");
        }
    }
}
