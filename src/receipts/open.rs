//! Receipts that are not sealed yet: one page for each commit.
//!
//! A page is the format (1), the hour (big-endian, hours since 1970), and groups to its end. A group is the place of
//! its content type in [`ContentType::ALL`], the class of the events, for a drop the length of the rule's id in two
//! bytes and the id, a count in four bytes, and as many keys of 16 bytes; groups that are only counted have none.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use bytes::{BufMut, Bytes, BytesMut};

use super::entry::{Class, Receipt};
use super::statement::Hour;
use crate::host::StateError;
use crate::model::{ContentType, Timestamp};
use crate::normalise::CanonicalKey;

const FORMAT: u8 = 1;
const KEY_BYTES: usize = 16;
const HOUR_SECS: i64 = 3600;
/// The maximum kept of a rule's id: a longer one is identifiable by its beginning.
const RULE_BYTES_MAX: usize = 1024;

const DELIVERED: u8 = 0;
const SET_ASIDE: u8 = 1;
const HELD: u8 = 2;
const DROPPED: u8 = 3;
const WITHOUT_ID: u8 = 4;
const REPEATED: u8 = 5;

/// Receipts that are committed together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenReceipts {
    /// Keys by content type and outcome.
    pub keys: BTreeMap<(ContentType, Class), Vec<CanonicalKey>>,
    /// How many events had no `Id`, by content type: no external record can name them.
    pub without_id: BTreeMap<ContentType, u64>,
    /// How many events were repeats of others, by content type.
    pub repeated: BTreeMap<ContentType, u64>,
}

impl OpenReceipts {
    /// Adds one.
    pub fn add(&mut self, receipt: Receipt) {
        let Receipt { content_type, key, class } = receipt;
        match key {
            Some(key) => self.keys.entry((content_type, class)).or_default().push(key),
            None => *self.without_id.entry(content_type).or_default() += 1,
        }
    }

    /// Adds several events with the same outcome.
    pub fn add_all(
        &mut self,
        content_type: ContentType,
        class: Class,
        keys: impl Iterator<Item = Option<CanonicalKey>>,
    ) {
        let mut without_id = 0;
        let known = keys.filter_map(|key| {
            without_id += u64::from(key.is_none());
            key
        });
        let known = known.collect();
        self.add_keys(content_type, class, known);
        self.add_without_id(content_type, without_id);
    }

    /// Adds what became of these events alike, which all have a key.
    pub fn add_keys(&mut self, content_type: ContentType, class: Class, mut keys: Vec<CanonicalKey>) {
        if keys.is_empty() {
            return;
        }
        match self.keys.entry((content_type, class)) {
            Entry::Vacant(none) => drop(none.insert(keys)),
            Entry::Occupied(some) => some.into_mut().append(&mut keys),
        }
    }

    /// Counts events that have none.
    pub fn add_without_id(&mut self, content_type: ContentType, count: u64) {
        if count > 0 {
            *self.without_id.entry(content_type).or_default() += count;
        }
    }

    /// Counts repeats.
    pub fn add_repeated(&mut self, content_type: ContentType, count: u64) {
        if count > 0 {
            *self.repeated.entry(content_type).or_default() += count;
        }
    }

    /// Adds all of another.
    pub fn append(&mut self, other: OpenReceipts) {
        for ((content_type, class), keys) in other.keys {
            self.add_keys(content_type, class, keys);
        }
        for (content_type, count) in other.without_id {
            *self.without_id.entry(content_type).or_default() += count;
        }
        for (content_type, count) in other.repeated {
            self.add_repeated(content_type, count);
        }
    }

    /// The receipts with a key, one by one.
    pub fn receipts(&self) -> impl Iterator<Item = Receipt> {
        self.keys.iter().flat_map(|((content_type, class), keys)| {
            keys.iter().map(|key| Receipt { content_type: *content_type, key: Some(*key), class: class.clone() })
        })
    }

    /// How many have a key.
    pub fn len(&self) -> usize {
        self.keys.values().map(Vec::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.without_id.is_empty() && self.repeated.is_empty()
    }

    /// The page of a commit.
    pub fn encode(&self, hour: Hour) -> Bytes {
        let mut out = BytesMut::with_capacity(64 + self.len() * KEY_BYTES);
        out.put_u8(FORMAT);
        out.put_u32(u32::try_from(hour.start().as_second() / HOUR_SECS).unwrap_or_default());
        for ((content_type, class), keys) in &self.keys {
            // A group has a count of four bytes; one commit has some thousands of keys.
            for keys in keys.chunks(u32::MAX as usize) {
                head(&mut out, *content_type, class);
                out.put_u32(u32::try_from(keys.len()).unwrap_or(u32::MAX));
                // Into room that is there: to ask for each key whether there is some takes several times as long.
                let begin = out.len();
                out.resize(begin + keys.len() * KEY_BYTES, 0);
                let room = out.get_mut(begin..).unwrap_or_default().as_chunks_mut::<KEY_BYTES>().0;
                room.iter_mut().zip(keys).for_each(|(room, key)| *room = *key.as_bytes());
            }
        }
        for (what, counts) in [(WITHOUT_ID, &self.without_id), (REPEATED, &self.repeated)] {
            for (content_type, count) in counts {
                out.put_u8(place_of(*content_type));
                out.put_u8(what);
                out.put_u32(u32::try_from(*count).unwrap_or(u32::MAX));
            }
        }
        out.freeze()
    }

    /// A page and its hour.
    ///
    /// # Errors
    /// [`StateError::Corrupt`] names the entry that is not such a page, or belongs to a newer build.
    pub fn decode(key: &str, page: &[u8]) -> Result<(Hour, OpenReceipts), StateError> {
        let corrupt = |why: &str| StateError::Corrupt { key: key.to_owned(), why: why.to_owned() };
        let mut left = PageRest(page);
        match left.byte() {
            Some(FORMAT) => {}
            Some(newer) if newer > FORMAT => {
                return Err(corrupt(&format!(
                    "its receipts have format {newer}, this build writes {FORMAT}; start the newer build that wrote them"
                )));
            }
            _ => return Err(corrupt("these are no receipts")),
        }
        let hour = left.number().ok_or_else(|| corrupt("the hour is cut off"))?;
        let begins = Timestamp::from_second(i64::from(hour) * HOUR_SECS);
        let hour = Hour::of(begins.map_err(|_| corrupt("there is no such hour"))?);
        let mut receipts = OpenReceipts::default();
        while !left.0.is_empty() {
            left.group(&mut receipts).ok_or_else(|| corrupt("a group of receipts is cut off or none"))?;
        }
        Ok((hour, receipts))
    }
}

fn head(out: &mut BytesMut, content_type: ContentType, class: &Class) {
    out.put_u8(place_of(content_type));
    match class {
        Class::Delivered => out.put_u8(DELIVERED),
        Class::SetAside => out.put_u8(SET_ASIDE),
        Class::Held => out.put_u8(HELD),
        Class::Dropped(rule) => {
            let mut end = rule.len().min(RULE_BYTES_MAX);
            while !rule.is_char_boundary(end) {
                end -= 1;
            }
            out.put_u8(DROPPED);
            out.put_u16(end as u16);
            out.put_slice(rule.as_bytes().get(..end).unwrap_or_default());
        }
    }
}

fn place_of(content_type: ContentType) -> u8 {
    ContentType::ALL.iter().position(|known| *known == content_type).unwrap_or_default() as u8
}

/// The rest of a page.
struct PageRest<'a>(&'a [u8]);

impl<'a> PageRest<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(*self.take(4)?.first_chunk()?))
    }

    fn group(&mut self, receipts: &mut OpenReceipts) -> Option<()> {
        let content_type = *ContentType::ALL.get(usize::from(self.byte()?))?;
        let class = match self.byte()? {
            DELIVERED => Class::Delivered,
            SET_ASIDE => Class::SetAside,
            HELD => Class::Held,
            DROPPED => {
                let length = u16::from_be_bytes(*self.take(2)?.first_chunk()?);
                Class::Dropped(std::str::from_utf8(self.take(usize::from(length))?).ok()?.into())
            }
            WITHOUT_ID => {
                *receipts.without_id.entry(content_type).or_default() += u64::from(self.number()?);
                return Some(());
            }
            REPEATED => {
                receipts.add_repeated(content_type, u64::from(self.number()?));
                return Some(());
            }
            _ => return None,
        };
        let count = self.number()? as usize;
        let keys = self.take(count.checked_mul(KEY_BYTES)?)?;
        let keys = keys.as_chunks::<KEY_BYTES>().0.iter().map(|key| CanonicalKey::from_bytes(*key));
        receipts.keys.entry((content_type, class)).or_default().extend(keys);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(n: u8) -> CanonicalKey {
        CanonicalKey::from_bytes([n; 16])
    }

    fn hour() -> Hour {
        "2026-11-30T10:00:00Z".parse().unwrap()
    }

    fn some() -> OpenReceipts {
        let mut receipts = OpenReceipts::default();
        let classes = [Class::Delivered, Class::SetAside, Class::Held, Class::Dropped("routine-read".into())];
        for (at, class) in classes.into_iter().enumerate() {
            for content_type in [ContentType::Exchange, ContentType::Dlp] {
                receipts.add(Receipt { content_type, key: Some(key(at as u8)), class: class.clone() });
            }
        }
        receipts.add(Receipt { content_type: ContentType::General, key: None, class: Class::Delivered });
        receipts.add_repeated(ContentType::SharePoint, 7);
        receipts.add_repeated(ContentType::AzureActiveDirectory, 0);
        receipts
    }

    #[test]
    fn a_page_comes_back_as_it_was_written() {
        assert_eq!(OpenReceipts::decode("k", &some().encode(hour())), Ok((hour(), some())));
        assert_eq!(
            OpenReceipts::decode("k", &OpenReceipts::default().encode(hour())),
            Ok((hour(), OpenReceipts::default()))
        );
    }

    #[test]
    fn a_page_that_is_cut_anywhere_between_groups_is_refused_by_name() {
        let page = some().encode(hour());
        let whole: Vec<usize> =
            (0..page.len()).filter(|end| OpenReceipts::decode("k", &page[..*end]).is_ok()).collect();
        // One cut before each group after the first, and the one that leaves none.
        assert_eq!(whole.len(), 8 + 2, "{whole:?}");
        let error = OpenReceipts::decode("m365_audit/v1/t/receipts", &page[..3]).unwrap_err();
        assert!(error.to_string().contains("m365_audit/v1/t/receipts"), "{error}");
        let newer = OpenReceipts::decode("k", &[2, 0, 0, 0, 0]).unwrap_err();
        assert!(newer.to_string().contains("newer build"), "{newer}");
    }

    #[test]
    fn a_rule_of_any_length_is_kept_by_its_beginning() {
        let mut receipts = OpenReceipts::default();
        let rule = "ü".repeat(2_000);
        receipts.add(Receipt { content_type: ContentType::Dlp, key: Some(key(1)), class: Class::Dropped(rule.into()) });
        let (_, back) = OpenReceipts::decode("k", &receipts.encode(hour())).unwrap();
        let Some(((_, Class::Dropped(kept)), _)) = back.keys.first_key_value() else { panic!("not dropped") };
        assert_eq!(kept.len(), RULE_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(page in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = OpenReceipts::decode("k", &page);
        }
    }
}
