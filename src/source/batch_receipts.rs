//! What is to be said of the events that are worked on: receipts, collected until the commit they belong to.
//!
//! Of a record it is known only when the host has answered whether it was delivered or set aside, so its key waits beside
//! it. What a rule dropped is said when its blob is settled: until then the blob may be read again and judged anew.

use crate::checkpoint::format::AsideRecord;
use crate::host::RECORDS_EXPECTED;
use crate::model::ContentType;
use crate::normalise::{CanonicalKey, Event, Unhashed, canonical_key};
use crate::receipts::{Class, OpenReceipts, Receipt};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Dropped events of one blob that are kept in mind; of a blob with more they are said before it is settled.
const DROPPED_MAX: usize = 4096;

/// What a record in a batch is about, as far as receipts go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RecordSubject {
    /// No event: a record of ours.
    Notice,
    /// An event that has a key. Their keys stand by themselves, in the order of these.
    Keyed,
    /// An event without a key.
    Nameless,
}

/// Collects what is to be said of one content type's events.
#[derive(Debug, Default)]
pub(super) struct ReceiptCollector {
    /// Whether anybody wants to know.
    keeps: bool,
    /// Of each record of the batch that is being built.
    records: Vec<RecordSubject>,
    unhashed: Unhashed,
    /// Said with the batch that is being built.
    held: Vec<Option<CanonicalKey>>,
    /// Said when the blob is settled.
    dropped: Vec<(Arc<str>, Option<usize>)>,
    unhashed_dropped: Unhashed,
}

/// What is to be said of one batch, once the host has answered.
#[derive(Debug, Default)]
pub(super) struct BatchReceipts {
    records: Vec<RecordSubject>,
    keys: Vec<CanonicalKey>,
    said: OpenReceipts,
}

impl ReceiptCollector {
    pub(super) fn new(keeps: bool) -> Self {
        Self { keeps, ..Self::default() }
    }

    /// The key of an event, if receipts are kept.
    pub(super) fn key(&self, event: &Event<'_>) -> Option<CanonicalKey> {
        self.keeps.then(|| canonical_key(event)).flatten()
    }

    /// The newest record of the batch is that of this event.
    pub(super) fn event(&mut self, event: &Event<'_>) {
        if self.keeps {
            if self.records.is_empty() {
                self.records.reserve(RECORDS_EXPECTED);
                self.unhashed.reserve(RECORDS_EXPECTED);
            }
            self.records.push(self.unhashed.push(event).map_or(RecordSubject::Nameless, |_| RecordSubject::Keyed));
        }
    }

    /// The newest record of the batch is that of a read that was on hold: one without a key was counted then.
    pub(super) fn held_event(&mut self, event: &Event<'_>) {
        if self.keeps {
            self.records.push(self.unhashed.push(event).map_or(RecordSubject::Notice, |_| RecordSubject::Keyed));
        }
    }

    /// The newest record of the batch is about no event.
    pub(super) fn notice(&mut self) {
        if self.keeps {
            self.records.push(RecordSubject::Notice);
        }
    }

    /// These records, named by their places in ascending order, are taken out of the batch again.
    pub(super) fn remove(&mut self, records: &[usize]) {
        if !self.keeps || records.is_empty() {
            return;
        }
        let mut records = records.iter().peekable();
        let (mut at, mut key) = (0, 0);
        let mut keys = Vec::new();
        self.records.retain(|about| {
            let stays = records.next_if_eq(&&at).is_none();
            at += 1;
            if *about == RecordSubject::Keyed {
                keys.extend((!stays).then_some(key));
                key += 1;
            }
            stays
        });
        self.unhashed.remove(&keys);
    }

    /// A routine read is put on hold in the commit of the batch that is being built.
    pub(super) fn held(&mut self, key: Option<CanonicalKey>) {
        if self.keeps {
            self.held.push(key);
        }
    }

    /// A rule dropped this event.
    pub(super) fn dropped(&mut self, event: &Event<'_>, rule: &Arc<str>) {
        if self.keeps {
            self.dropped.push((rule.clone(), self.unhashed_dropped.push(event)));
        }
    }

    /// Whether there is so much to say that it must not wait.
    pub(super) fn is_full(&self) -> bool {
        self.dropped.len() >= DROPPED_MAX
    }

    /// What goes with the batch that is being built, which ends here.
    pub(super) fn of_batch(&mut self, content_type: ContentType) -> BatchReceipts {
        let mut said = OpenReceipts::default();
        said.add_all(content_type, Class::Held, std::mem::take(&mut self.held).into_iter());
        if self.is_full() {
            self.add_dropped(content_type, &mut said);
        }
        BatchReceipts { records: std::mem::take(&mut self.records), keys: self.unhashed.keys(), said }
    }

    /// What is left to say when the blob is settled.
    pub(super) fn rest(&mut self, content_type: ContentType, repeated: u64) -> OpenReceipts {
        let mut said = OpenReceipts::default();
        if self.keeps {
            self.add_dropped(content_type, &mut said);
            said.add_repeated(content_type, repeated);
        }
        said
    }

    fn add_dropped(&mut self, content_type: ContentType, said: &mut OpenReceipts) {
        let keys = self.unhashed_dropped.keys();
        for (rule, place) in std::mem::take(&mut self.dropped) {
            let key = place.and_then(|place| keys.get(place).copied());
            said.add(Receipt { content_type, key, class: Class::Dropped(rule) });
        }
    }
}

impl BatchReceipts {
    /// Whether there is nothing to say.
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.said.is_empty()
    }

    /// What became of the events, now that the host has all of the batch's records but those set aside. Each of those
    /// is told whose event it is, so that it can be said when the host takes it after all.
    pub(super) fn answered<'a>(
        self,
        content_type: ContentType,
        aside: impl IntoIterator<Item = (usize, &'a mut AsideRecord)>,
    ) -> OpenReceipts {
        let BatchReceipts { records, mut keys, mut said } = self;
        let (mut answered, mut aside_keys) = (BTreeSet::new(), BTreeSet::new());
        for (at, record) in aside {
            let key = match records.get(at) {
                Some(RecordSubject::Keyed) => {
                    let before = records.iter().take(at).filter(|about| **about == RecordSubject::Keyed).count();
                    aside_keys.insert(before);
                    keys.get(before).copied()
                }
                Some(RecordSubject::Nameless) => None,
                Some(RecordSubject::Notice) | None => continue,
            };
            if answered.insert(at) {
                record.event = key;
                said.add(Receipt { content_type, key, class: Class::SetAside });
            }
        }
        let nameless = records
            .iter()
            .enumerate()
            .filter(|(at, about)| **about == RecordSubject::Nameless && !answered.contains(at));
        said.add_without_id(content_type, nameless.count() as u64);
        if !aside_keys.is_empty() {
            let mut at = 0;
            keys.retain(|_| {
                at += 1;
                !aside_keys.contains(&(at - 1))
            });
        }
        said.add_keys(content_type, Class::Delivered, keys);
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(json: &str) -> Event<'_> {
        Event::parse(json.as_bytes()).unwrap()
    }

    fn key(json: &str) -> CanonicalKey {
        canonical_key(&event(json)).unwrap()
    }

    const A: &str = r#"{"Id":"a","RecordType":1,"CreationTime":"2026-07-17T08:28:17","Operation":"o"}"#;
    const B: &str = r#"{"Id":"b","RecordType":1,"CreationTime":"2026-07-17T08:28:17","Operation":"o"}"#;
    const NAMELESS: &str = r#"{"RecordType":1,"Operation":"o"}"#;
    const TYPE: ContentType = ContentType::Exchange;

    fn aside() -> AsideRecord {
        crate::checkpoint::format::decode("a", include_bytes!("../../tests/fixtures/state/aside.v1.json")).unwrap()
    }

    #[test]
    fn a_record_is_delivered_unless_it_was_set_aside_or_taken_out() {
        let mut collected = ReceiptCollector::new(true);
        collected.event(&event(A));
        collected.notice();
        collected.event(&event(A));
        collected.event(&event(B));
        collected.event(&event(NAMELESS));
        collected.remove(&[0]);
        collected.held(Some(key(B)));
        let mut record = aside();
        let said = collected.of_batch(TYPE).answered(TYPE, [(2, &mut record)]);
        let expected = [(Class::Held, key(B)), (Class::SetAside, key(B)), (Class::Delivered, key(A))];
        let mut receipts: Vec<_> = said.receipts().map(|receipt| (receipt.class, receipt.key.unwrap())).collect();
        receipts.sort();
        assert_eq!(receipts, expected);
        assert_eq!(said.without_id[&TYPE], 1);
        assert_eq!(record.event, Some(key(B)), "whoever offers it again knows whose it is");
        assert!(collected.of_batch(TYPE).is_empty());
    }

    #[test]
    fn what_a_rule_dropped_is_said_when_its_blob_is_settled_and_not_before() {
        let mut collected = ReceiptCollector::new(true);
        collected.dropped(&event(A), &"routine".into());
        assert!(collected.of_batch(TYPE).is_empty());
        let said = collected.rest(TYPE, 3);
        assert_eq!(said.keys[&(TYPE, Class::Dropped("routine".into()))], [key(A)]);
        assert_eq!(said.repeated[&TYPE], 3);
        assert!(collected.rest(TYPE, 0).is_empty());
    }

    #[test]
    fn of_a_blob_with_very_many_dropped_events_they_are_said_earlier() {
        let mut collected = ReceiptCollector::new(true);
        for _ in 0..DROPPED_MAX {
            assert!(!collected.is_full());
            collected.dropped(&event(A), &"routine".into());
        }
        assert!(collected.is_full());
        assert_eq!(collected.of_batch(TYPE).said.len(), DROPPED_MAX);
        assert!(!collected.is_full());
    }

    #[test]
    fn nothing_is_collected_where_nobody_wants_to_know() {
        let mut collected = ReceiptCollector::new(false);
        collected.event(&event(A));
        collected.notice();
        collected.held(None);
        collected.dropped(&event(A), &"routine".into());
        assert!(collected.of_batch(TYPE).is_empty() && collected.rest(TYPE, 9).is_empty());
        assert_eq!(collected.key(&event(A)), None);
    }
}
