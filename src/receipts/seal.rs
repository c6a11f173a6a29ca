//! Sealing: the receipts of a part become its sorted entries and a signed statement of them. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::entry::{Class, Receipt};
use super::leaves::EntryTree;
use super::merkle::Hash;
use super::note::Signer;
use super::statement::{
    Counts, DELIVERED, DROPPED, DROPPED_BY_FIRST, HELD, Hour, RULES_NAMED_MAX, SET_ASIDE, Statement, is_rule_name,
};
use crate::model::{ContentType, TenantId};

pub use super::leaves::ENTRY_BYTES;
/// Entries in a page of the state.
pub const PAGE_ENTRIES: usize = 4096;
/// The maximum of receipts in one part of an hour, so that sealing takes little memory.
pub const PART_ENTRIES_MAX: usize = 65_536;

/// The part to seal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The tenant of the events.
    pub tenant: TenantId,
    /// Its number: one more than that of the part before it.
    pub seq: u64,
    /// Its hour: the one after that of the part before it, or the same when that was not the hour's last.
    pub hour: Hour,
    /// Its number in the hour, from 0.
    pub part: u32,
    /// Whether it is the hour's last.
    pub last: bool,
    /// Whether receipts begin in it, for the first time or again: events delivered before that, since the previous
    /// part, have none.
    pub begins: bool,
    /// The hash of the statement before it; zeros for the first.
    pub previous: Hash,
}

/// Events that are only counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Uncounted {
    /// Events that were delivered before.
    pub repeated: u64,
    /// Events without `Id`, beside those that have a receipt without a key.
    pub without_id: u64,
}

/// A sealed part.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// The statement.
    pub statement: Statement,
    /// The signed note of it.
    pub note: String,
    /// The value of `previous` in the next part.
    pub statement_hash: Hash,
    /// The entries, [`PAGE_ENTRIES`] a page; the last page is shorter.
    pub pages: Vec<Bytes>,
}

/// Seals receipts. Of equal receipts for one event, one is kept, and counted for the content type whose name comes
/// first.
pub fn seal(
    part: &Part,
    receipts: impl IntoIterator<Item = Receipt>,
    uncounted: &BTreeMap<ContentType, Uncounted>,
    signer: &Signer,
) -> Sealed {
    let mut counts: BTreeMap<ContentType, Counts> = BTreeMap::new();
    for (content_type, uncounted) in uncounted {
        let counts = counts.entry(*content_type).or_default();
        counts.repeated = uncounted.repeated;
        counts.without_id = uncounted.without_id;
    }
    let mut known = Vec::new();
    for receipt in receipts {
        match receipt.key {
            Some(key) => known.push((key, receipt.class, receipt.content_type)),
            None => counts.entry(receipt.content_type).or_default().without_id += 1,
        }
    }
    let rules = rules_of(known.iter().map(|(_, class, _)| class));
    let mut entries: Vec<([u8; ENTRY_BYTES], ContentType)> = known
        .into_iter()
        .map(|(key, class, content_type)| (entry(key.as_bytes(), byte_of(&class, &rules)), content_type))
        .collect();
    entries.sort_unstable_by_key(|(entry, content_type)| (*entry, content_type.as_str()));
    entries.dedup_by_key(|(entry, _)| *entry);
    let mut tree = EntryTree::default();
    for (entry, content_type) in &entries {
        tree.push(entry);
        counts.entry(*content_type).or_default().add_entry(entry[ENTRY_BYTES - 1]);
    }
    counts.retain(|_, counts| !counts.is_empty());
    let statement = Statement {
        tenant: part.tenant.clone(),
        entries: tree.entries(),
        root: tree.root(),
        seq: part.seq,
        hour: part.hour,
        part: part.part,
        last: part.last,
        begins: part.begins,
        previous: part.previous,
        rules,
        counts,
    };
    let (note, statement_hash) = (statement.sign(signer), statement.hash());
    Sealed { statement, note, statement_hash, pages: pages(&entries) }
}

fn pages(entries: &[([u8; ENTRY_BYTES], ContentType)]) -> Vec<Bytes> {
    let page = |entries: &[([u8; ENTRY_BYTES], ContentType)]| {
        let mut page = BytesMut::with_capacity(entries.len() * ENTRY_BYTES);
        entries.iter().for_each(|(entry, _)| page.put_slice(entry));
        page.freeze()
    };
    entries.chunks(PAGE_ENTRIES).map(page).collect()
}

fn entry(key: &[u8; 16], class: u8) -> [u8; ENTRY_BYTES] {
    let mut entry = [class; ENTRY_BYTES];
    entry[..16].copy_from_slice(key);
    entry
}

/// The rules that the statement names, in order.
fn rules_of<'c>(classes: impl Iterator<Item = &'c Class>) -> Vec<Arc<str>> {
    let mut rules: BTreeSet<&Arc<str>> = BTreeSet::new();
    for class in classes {
        if let Class::Dropped(rule) = class
            && is_rule_name(rule)
        {
            rules.insert(rule);
        }
    }
    rules.into_iter().take(RULES_NAMED_MAX).cloned().collect()
}

fn byte_of(class: &Class, rules: &[Arc<str>]) -> u8 {
    match class {
        Class::Delivered => DELIVERED,
        Class::SetAside => SET_ASIDE,
        Class::Held => HELD,
        Class::Dropped(rule) => match rules.binary_search(rule) {
            // At most 199.
            Ok(index) => u8::try_from(index).map_or(DROPPED, |index| DROPPED_BY_FIRST.saturating_add(index)),
            Err(_) => DROPPED,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::normalise::CanonicalKey;

    fn part() -> Part {
        Part {
            tenant: "6f1d3a52-0d2e-4f7e-8a51-2b7c1d9e0a11".parse().unwrap(),
            seq: 0,
            hour: "2026-11-30T10:00:00Z".parse().unwrap(),
            part: 0,
            last: true,
            begins: true,
            previous: [0; 32],
        }
    }

    fn signer() -> Signer {
        Signer::from_pkcs8(&Signer::generate_pkcs8().unwrap()).unwrap()
    }

    fn receipt(content_type: ContentType, key: Option<u8>, class: Class) -> Receipt {
        Receipt { content_type, key: key.map(|byte| CanonicalKey::from_bytes([byte; 16])), class }
    }

    fn bytes_of(sealed: &Sealed) -> Vec<(u8, u8)> {
        let all = sealed.pages.concat();
        all.chunks(ENTRY_BYTES).map(|entry| (entry[0], entry[16])).collect()
    }

    #[test]
    fn entries_are_sorted_distinct_and_counted_once() {
        use ContentType::{Exchange, General};
        let dropped = |rule: &str| Class::Dropped(rule.into());
        let receipts = [
            receipt(General, Some(9), Class::Delivered),
            receipt(Exchange, Some(9), Class::Delivered),
            receipt(General, Some(2), dropped("z")),
            receipt(General, Some(3), dropped("a")),
            receipt(General, Some(4), dropped("not a name")),
            receipt(General, Some(3), Class::Held),
            receipt(General, Some(1), Class::SetAside),
            receipt(Exchange, None, Class::Delivered),
        ];
        let uncounted = BTreeMap::from([(Exchange, Uncounted { repeated: 5, without_id: 1 })]);
        let sealed = seal(&part(), receipts, &uncounted, &signer());
        assert_eq!(bytes_of(&sealed), [(1, 1), (2, 17), (3, 2), (3, 16), (4, 3), (9, 0)]);
        assert_eq!(sealed.statement.rules, ["a".into(), "z".into()]);
        let exchange = Counts { delivered: 1, repeated: 5, without_id: 2, ..Counts::default() };
        assert_eq!(sealed.statement.counts[&Exchange], exchange);
        let general = Counts { set_aside: 1, held: 1, dropped: 3, ..Counts::default() };
        assert_eq!(sealed.statement.counts[&General], general);
    }

    #[test]
    fn an_hour_without_events_is_sealed() {
        let signer = signer();
        let sealed = seal(&part(), [], &BTreeMap::new(), &signer);
        assert!(sealed.pages.is_empty());
        assert_eq!(Statement::open(&sealed.note, signer.key()), Ok(sealed.statement));
    }

    #[test]
    fn more_rules_than_can_be_named_are_dropped_by_one_without_a_name() {
        let rule = |n: usize| Class::Dropped(format!("rule-{n:03}").into());
        let receipts = (0..=RULES_NAMED_MAX).map(|n| receipt(ContentType::General, Some(n as u8), rule(n)));
        let sealed = seal(&part(), receipts, &BTreeMap::new(), &signer());
        assert_eq!(sealed.statement.rules.len(), RULES_NAMED_MAX);
        let last = bytes_of(&sealed).into_iter().filter(|(_, class)| *class == DROPPED).collect::<Vec<_>>();
        assert_eq!(last, [(200, DROPPED)]);
        assert!(bytes_of(&sealed).iter().all(|(_, class)| sealed.statement.has_class(*class)));
        assert_eq!(sealed.statement.counts_in_all().dropped, 201);
    }

    #[test]
    fn entries_are_cut_into_pages() {
        let receipts = (0..PAGE_ENTRIES as u128 + 1).map(|n| Receipt {
            content_type: ContentType::Exchange,
            key: Some(CanonicalKey::from_bytes(n.to_be_bytes())),
            class: Class::Delivered,
        });
        let sealed = seal(&part(), receipts, &BTreeMap::new(), &signer());
        let lengths: Vec<usize> = sealed.pages.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [PAGE_ENTRIES * ENTRY_BYTES, ENTRY_BYTES]);
    }
}
