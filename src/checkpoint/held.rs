//! The stored state of data loss prevention: held reads, and flagged items.
//!
//! Both are pages. `dlp/held/<number>` has the routine reads of one stretch of one blob, whose events' keys and blob's
//! mark the same commit makes permanent: from then on this page is the only copy. `dlp/flags/<number>` has the links of
//! some matches. A page is a JSON header with a `format`, a line break, and the data that the header counts: the first
//! 32 bits of the held reads' links (little-endian, so that a start need not read the events), then the events' bytes
//! as one Zstandard frame; of flags a frame alone.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::format::{self, FORMAT, Stored};
use crate::host::StateError;
use crate::model::{ContentType, Timestamp};
use crate::normalise::dlp_link::{Flag, Link};
use crate::normalise::{CanonicalKey, Event, canonical_key};
use crate::severity::Severity;

/// Zstandard's fastest ordinary level: a held page is read again at most once.
const LEVEL: i32 = 1;
/// No page is larger than this before compression; a frame that declares more is damaged.
const PAGE_BYTES_MAX: usize = 1 << 30;

/// Reads on hold, of one blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldPage {
    /// The content type of the blob they came in.
    pub content_type: ContentType,
    /// Its `contentId`.
    pub content_id: Arc<str>,
    /// Its `contentCreated`.
    pub created: Timestamp,
    /// The reads.
    pub records: Vec<HeldRecord>,
}

/// A read on hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldRecord {
    /// The rule that would drop it.
    pub rule: Arc<str>,
    /// The event as received.
    pub raw: Bytes,
    /// [`Link::prefix`] of the items it names.
    pub links: Vec<u32>,
    /// Its canonical key, if receipts are kept and it has one.
    pub key: Option<CanonicalKey>,
}

/// A [`HeldPage`] without its events: the part that is kept in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldHead {
    /// The content type.
    pub content_type: ContentType,
    /// `contentCreated`.
    pub created: Timestamp,
    /// How many reads, by the rule that would drop them.
    pub rules: Vec<(Arc<str>, u32)>,
    /// [`Link::prefix`] of all that its reads name, sorted, each once.
    pub links: Box<[u32]>,
}

impl HeldHead {
    /// How many reads.
    pub fn records(&self) -> u64 {
        self.rules.iter().map(|(_, n)| u64::from(*n)).sum()
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct HeldHeader {
    format: u32,
    content_type: String,
    content_id: Arc<str>,
    created: Timestamp,
    rules: Vec<Arc<str>>,
    /// For each read: bytes, index into `rules`, number of links.
    records: Vec<(u32, u16, u32)>,
    /// The canonical keys of the reads, 16 bytes each, zeros for none; absent where no receipts were kept. As text, so
    /// that an earlier build ignores them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keys: Option<String>,
}

impl Stored for HeldHeader {
    fn format(&self) -> u32 {
        self.format
    }
}

impl HeldHeader {
    /// The keys, in the order of the reads; none where none were kept.
    fn keys(&self, key: &str) -> Result<Vec<Option<CanonicalKey>>, StateError> {
        let corrupt = |why: &str| StateError::Corrupt { key: key.to_owned(), why: why.to_owned() };
        let Some(keys) = &self.keys else { return Ok(Vec::new()) };
        let keys = STANDARD.decode(keys).map_err(|_| corrupt("the keys of its reads are no base64"))?;
        if keys.len() != self.records.len() * 16 {
            return Err(corrupt("it has not one key for each read"));
        }
        let key = |bytes: &[u8; 16]| (*bytes != [0; 16]).then(|| CanonicalKey::from_bytes(*bytes));
        Ok(keys.as_chunks().0.iter().map(key).collect())
    }
}

/// The rule that would drop a read, and the read's key.
pub type KeyedRule = (Arc<str>, Option<CanonicalKey>);

impl HeldPage {
    /// The rule and key of each read on a stored page, as its receipt needs them. The events are read only if the page
    /// has no keys.
    ///
    /// # Errors
    /// [`StateError::Corrupt`] when the bytes are no page, or one of a newer format.
    pub fn keyed_rules(key: &str, bytes: &[u8]) -> Result<Vec<KeyedRule>, StateError> {
        let (header, ..) = take_apart(key, bytes)?;
        if header.keys.is_none() {
            let page = HeldPage::decode(key, bytes)?;
            let of =
                |record: HeldRecord| (record.rule, Event::parse(&record.raw).ok().as_ref().and_then(canonical_key));
            return Ok(page.records.into_iter().map(of).collect());
        }
        let corrupt = || StateError::Corrupt { key: key.to_owned(), why: "a rule is missing".into() };
        let keys = header.keys(key)?;
        let rule = |(_, rule, _): &(u32, u16, u32)| header.rules.get(usize::from(*rule)).cloned().ok_or_else(corrupt);
        header.records.iter().zip(keys).map(|(record, key)| Ok((rule(record)?, key))).collect()
    }

    /// The part of it that is kept in memory.
    pub fn head(&self) -> HeldHead {
        let mut rules: Vec<(Arc<str>, u32)> = Vec::new();
        for record in &self.records {
            count_rule(&mut rules, &record.rule);
        }
        let links = self.records.iter().flat_map(|record| record.links.iter().copied()).collect();
        HeldHead { content_type: self.content_type, created: self.created, rules, links: sorted(links) }
    }

    /// The bytes to store.
    pub fn encode(&self) -> Bytes {
        let mut rules: Vec<Arc<str>> = Vec::new();
        let mut records = Vec::with_capacity(self.records.len());
        let mut links = Vec::new();
        let mut bodies = Vec::with_capacity(self.records.iter().map(|r| r.raw.len()).sum());
        for record in &self.records {
            let known = rules.iter().position(|rule| *rule == record.rule);
            let rule = known.unwrap_or_else(|| {
                rules.push(record.rule.clone());
                rules.len() - 1
            });
            let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            records.push((small(record.raw.len()), u16::try_from(rule).unwrap_or(u16::MAX), small(record.links.len())));
            links.extend(record.links.iter().flat_map(|link| link.to_le_bytes()));
            bodies.extend_from_slice(&record.raw);
        }
        let keys = self.records.iter().any(|record| record.key.is_some()).then(|| {
            let keys: Vec<[u8; 16]> =
                self.records.iter().map(|r| r.key.map_or([0; 16], |key| *key.as_bytes())).collect();
            STANDARD.encode(keys.as_flattened())
        });
        let header = HeldHeader {
            format: FORMAT,
            content_type: self.content_type.as_str().to_owned(),
            content_id: self.content_id.clone(),
            created: self.created,
            rules,
            records,
            keys,
        };
        let mut out = format::encode(&header).to_vec();
        out.push(b'\n');
        out.extend_from_slice(&links);
        out.extend_from_slice(&compress(&bodies));
        out.into()
    }

    /// A page from its bytes.
    ///
    /// # Errors
    /// [`StateError::Corrupt`] when they are none, or one of a newer format.
    pub fn decode(key: &str, bytes: &[u8]) -> Result<HeldPage, StateError> {
        let (header, links, body) = take_apart(key, bytes)?;
        let corrupt = |why: &str| StateError::Corrupt { key: key.to_owned(), why: why.to_owned() };
        let total: usize = header.records.iter().map(|(bytes, ..)| *bytes as usize).sum();
        let bodies = Bytes::from(decompress(key, body, total)?);
        if bodies.len() != total {
            return Err(corrupt("the events are not as long as the header says"));
        }
        let mut keys = header.keys(key)?.into_iter();
        let (mut at, mut link_at) = (0, 0);
        let mut records = Vec::with_capacity(header.records.len());
        for (bytes, rule, count) in &header.records {
            let rule = header.rules.get(usize::from(*rule)).ok_or_else(|| corrupt("a rule is missing"))?;
            let end = at + *bytes as usize;
            let link_end = link_at + *count as usize;
            let links = links.get(link_at..link_end).unwrap_or_default().to_vec();
            let key = keys.next().flatten();
            records.push(HeldRecord { rule: rule.clone(), raw: bodies.slice(at..end), links, key });
            (at, link_at) = (end, link_end);
        }
        let content_type = content_type(key, &header.content_type)?;
        Ok(HeldPage { content_type, content_id: header.content_id, created: header.created, records })
    }
}

impl HeldHead {
    /// The head of a stored page; its events are not read.
    ///
    /// # Errors
    /// [`StateError::Corrupt`] when the bytes are no page, or one of a newer format.
    pub fn decode(key: &str, bytes: &[u8]) -> Result<HeldHead, StateError> {
        let (header, links, _) = take_apart(key, bytes)?;
        let mut rules: Vec<(Arc<str>, u32)> = Vec::new();
        for (_, rule, _) in &header.records {
            let known = header.rules.get(usize::from(*rule));
            count_rule(
                &mut rules,
                known.ok_or_else(|| StateError::Corrupt { key: key.to_owned(), why: "a rule is missing".into() })?,
            );
        }
        let content_type = content_type(key, &header.content_type)?;
        Ok(HeldHead { content_type, created: header.created, rules, links: sorted(links) })
    }
}

fn count_rule(rules: &mut Vec<(Arc<str>, u32)>, rule: &Arc<str>) {
    match rules.iter_mut().find(|(known, _)| known == rule) {
        Some((_, count)) => *count += 1,
        None => rules.push((rule.clone(), 1)),
    }
}

fn sorted(mut links: Vec<u32>) -> Box<[u32]> {
    links.sort_unstable();
    links.dedup();
    links.into()
}

fn content_type(key: &str, text: &str) -> Result<ContentType, StateError> {
    let corrupt = || StateError::Corrupt { key: key.to_owned(), why: format!("`{text}` is not a content type") };
    text.parse().map_err(|_| corrupt())
}

/// Header, links and the compressed events of a held page.
fn take_apart<'a>(key: &str, bytes: &'a [u8]) -> Result<(HeldHeader, Vec<u32>, &'a [u8]), StateError> {
    let corrupt = |why: &str| StateError::Corrupt { key: key.to_owned(), why: why.to_owned() };
    let end = memchr::memchr(b'\n', bytes).ok_or_else(|| corrupt("it has no header"))?;
    let (header, rest) = bytes.split_at(end);
    let header: HeldHeader = format::decode(key, header)?;
    let count: usize = header.records.iter().map(|(.., links)| *links as usize).sum();
    let (links, body) = rest
        .get(1..)
        .and_then(|rest| rest.split_at_checked(count.checked_mul(4)?))
        .ok_or_else(|| corrupt("it is cut short"))?;
    let links = links.chunks_exact(4).filter_map(|four| four.try_into().ok()).map(u32::from_le_bytes).collect();
    Ok((header, links, body))
}

fn compress(bytes: &[u8]) -> Vec<u8> {
    // Compressing into memory at a valid level cannot fail.
    zstd::bulk::compress(bytes, LEVEL).unwrap_or_default()
}

fn decompress(key: &str, bytes: &[u8], length: usize) -> Result<Vec<u8>, StateError> {
    let corrupt = |why: String| StateError::Corrupt { key: key.to_owned(), why };
    if length > PAGE_BYTES_MAX {
        return Err(corrupt(format!("it says that it has {length} bytes")));
    }
    zstd::bulk::decompress(bytes, length).map_err(|error| corrupt(error.to_string()))
}

/// Flagged items.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FlagPage {
    /// The items, and when each was flagged.
    pub flags: Vec<FlagEntry>,
}

/// A flagged item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlagEntry {
    /// The item, its address or a message.
    pub link: Link,
    /// `contentCreated` of the match seen last.
    pub at: Timestamp,
    /// The result of data loss prevention.
    pub flag: Flag,
}

#[derive(Debug, Serialize, Deserialize)]
struct FlagHeader {
    format: u32,
    /// How many flags.
    count: u32,
    /// The newest of them, Unix seconds.
    newest: i64,
    /// Bytes before compression.
    bytes: u32,
}

impl Stored for FlagHeader {
    fn format(&self) -> u32 {
        self.format
    }
}

/// Policy names are few and long; flags name them by number.
#[derive(Debug, Default, Serialize, Deserialize)]
struct FlagBody {
    policies: Vec<String>,
    flags: Vec<FlagRow>,
}

/// Link, Unix seconds, severity, policies by number, incidents.
type FlagRow = (String, i64, String, Vec<u32>, Vec<String>);

impl FlagPage {
    /// The newest of its flags.
    pub fn newest(&self) -> Timestamp {
        self.flags.iter().map(|entry| entry.at).max().unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// The bytes to store.
    pub fn encode(&self) -> Bytes {
        let mut body = FlagBody::default();
        for FlagEntry { link, at, flag } in &self.flags {
            let mut numbers = Vec::with_capacity(flag.policies.len());
            for policy in &flag.policies {
                let known = body.policies.iter().position(|known| known == policy);
                let number = known.unwrap_or_else(|| {
                    body.policies.push(policy.clone());
                    body.policies.len() - 1
                });
                numbers.push(u32::try_from(number).unwrap_or(u32::MAX));
            }
            let link = format!("{:032x}", link.as_u128());
            body.flags.push((link, at.as_second(), flag.severity.as_str().to_owned(), numbers, flag.incidents.clone()));
        }
        let text = serde_json::to_vec(&body).unwrap_or_default();
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let header = FlagHeader {
            format: FORMAT,
            count: small(self.flags.len()),
            newest: self.newest().as_second(),
            bytes: small(text.len()),
        };
        let mut out = format::encode(&header).to_vec();
        out.push(b'\n');
        out.extend_from_slice(&compress(&text));
        out.into()
    }

    /// A page from its bytes.
    ///
    /// # Errors
    /// [`StateError::Corrupt`] when they are none, or one of a newer format.
    pub fn decode(key: &str, bytes: &[u8]) -> Result<FlagPage, StateError> {
        let corrupt = |why: String| StateError::Corrupt { key: key.to_owned(), why };
        let end = memchr::memchr(b'\n', bytes).ok_or_else(|| corrupt("it has no header".into()))?;
        let header: FlagHeader = format::decode(key, &bytes[..end])?;
        let text = decompress(key, bytes.get(end + 1..).unwrap_or_default(), header.bytes as usize)?;
        let body: FlagBody = serde_json::from_slice(&text).map_err(|error| corrupt(error.to_string()))?;
        let mut flags = Vec::with_capacity(body.flags.len());
        for (link, secs, severity, numbers, incidents) in body.flags {
            let link = u128::from_str_radix(&link, 16).map_err(|_| corrupt(format!("`{link}` is not a link")))?;
            let at = Timestamp::from_second(secs).map_err(|error| corrupt(error.to_string()))?;
            let policies = numbers.iter().filter_map(|n| body.policies.get(*n as usize).cloned()).collect();
            let severity = Severity::of_word(&severity).unwrap_or(Severity::Medium);
            flags.push(FlagEntry { link: Link::from_u128(link), at, flag: Flag { policies, incidents, severity } });
        }
        Ok(FlagPage { flags })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page(bodies: &[String]) -> HeldPage {
        let record = |(n, body): (usize, &String)| HeldRecord {
            key: None,
            rule: if n % 3 == 0 { "EX-45".into() } else { "SP-12".into() },
            raw: body.clone().into_bytes().into(),
            links: (0..n as u32 % 4).map(|link| link.wrapping_mul(0x9e37_79b9) ^ n as u32).collect(),
        };
        HeldPage {
            content_type: ContentType::SharePoint,
            content_id: "2026$a$b".into(),
            created: "2026-05-03T10:00:00.123Z".parse().unwrap(),
            records: bodies.iter().enumerate().map(record).collect(),
        }
    }

    proptest! {
        #[test]
        fn a_held_page_comes_back_as_it_was_written(bodies in prop::collection::vec(".{0,60}", 0..20)) {
            let page = page(&bodies);
            let stored = page.encode();
            prop_assert_eq!(HeldPage::decode("k", &stored).unwrap(), page.clone());
            let head = HeldHead::decode("k", &stored).unwrap();
            prop_assert_eq!(head.records(), bodies.len() as u64);
            prop_assert_eq!(head, page.head());
        }

        #[test]
        fn a_damaged_page_is_corrupt_and_never_a_panic(cut in 0usize..400, flip in 0usize..400, to: u8) {
            let mut stored = page(&["{\"Id\":\"a\"}".repeat(9), "{}".into(), "{\"Id\":3}".into()]).encode().to_vec();
            stored.truncate(stored.len().min(cut));
            if let Some(byte) = stored.get_mut(flip) {
                *byte = to;
            }
            let _ = HeldPage::decode("k", &stored);
            let _ = HeldHead::decode("k", &stored);
            let _ = FlagPage::decode("k", &stored);
        }

        #[test]
        fn flags_come_back_as_they_were_written(links in prop::collection::vec(any::<u128>(), 0..30)) {
            let entry = |(n, link): (usize, &u128)| FlagEntry {
                link: Link::from_u128(*link),
                at: Timestamp::from_second(n as i64).unwrap(),
                flag: Flag {
                    policies: vec![format!("policy {}", n % 3), "all".into()],
                    incidents: vec![format!("{link:x}")],
                    severity: Severity::High,
                },
            };
            let page = FlagPage { flags: links.iter().enumerate().map(entry).collect() };
            prop_assert_eq!(FlagPage::decode("k", &page.encode()).unwrap(), page);
        }
    }

    #[test]
    fn format_1_is_read_for_ever() {
        let page = HeldPage::decode("h", include_bytes!("../../tests/fixtures/state/held.v1.bin")).unwrap();
        assert_eq!((page.records.len(), page.records[1].raw.as_ref()), (2, &b"{\"Id\":\"b\"}"[..]));
        assert_eq!(*page.head().links, [1, 7, 0xffff_fffe]);
        let flags = FlagPage::decode("f", include_bytes!("../../tests/fixtures/state/flags.v1.bin")).unwrap();
        assert_eq!(flags.flags[0].flag.policies, ["Payment cards"]);
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let mut stored = page(&["{}".into()]).encode().to_vec();
        let at = stored.iter().position(|b| *b == b'1').unwrap();
        stored[at] = b'2';
        let error = HeldPage::decode("dlp/held/1", &stored).unwrap_err();
        assert!(error.to_string().contains("`dlp/held/1`") && error.to_string().contains("format 2"), "{error}");
    }
}
