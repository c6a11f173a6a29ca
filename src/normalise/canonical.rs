//! The canonical key: one event's identity, whatever form it came in.
//!
//! The feed, the audit search, PowerShell and Microsoft Graph write the same event in different texts: a time with `Z`
//! or without, a record type as a number or a name. This key is over what those texts say, so that one event has one
//! key in all of them. Its definition and its test vectors are in `docs/receipts.md`; whoever wants to compare has to
//! compute it the same way, so it never changes. It is not the key by which repeated events are removed
//! (`checkpoint::key_set`), which is over the texts as they are.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use blake2b_simd::Params;
use jiff::tz::TimeZone;
use serde_with::{DeserializeFromStr, SerializeDisplay};
use smallvec::SmallVec;

use super::event::{Event, Member};
use super::time;
use crate::model::EventIdentity;

/// 128 bits that one event has in every form.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, DeserializeFromStr, SerializeDisplay)]
pub struct CanonicalKey([u8; 16]);

impl CanonicalKey {
    /// The key of these bytes, as a receipt has them.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The key's bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl FromStr for CanonicalKey {
    type Err = NotACanonicalKey;

    fn from_str(text: &str) -> Result<Self, NotACanonicalKey> {
        let number = u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32 && !text.starts_with('+'));
        number.map(|number| Self(number.to_be_bytes())).ok_or(NotACanonicalKey)
    }
}

/// A text that is no canonical key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a canonical key is 32 hexadecimal digits")]
pub struct NotACanonicalKey;

impl fmt::Display for CanonicalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CanonicalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a key is made from, where it is no more than a block of the hash and is as nearly every event has it.
const BLOCK_BYTES: usize = 128;

/// What any key is made from.
type Hashed = SmallVec<[u8; 256]>;

/// The key of an event; `None` when it has no usable `Id`, for then nothing outside can name it.
pub fn canonical_key(event: &Event<'_>) -> Option<CanonicalKey> {
    let identity = event.identity()?;
    static PARAMS: LazyLock<Params> = LazyLock::new(|| Params::new().hash_length(16).clone());
    let key = |hashed: &[u8]| PARAMS.hash(hashed).as_bytes().first_chunk().copied().map(CanonicalKey);
    let mut block = Block { bytes: [0; BLOCK_BYTES], used: 0 };
    if block.usual(&identity).is_some() {
        return key(block.bytes.get(..block.used)?);
    }
    let mut hashed = Hashed::new();
    let id = identity.id.trim();
    push_netstring(&mut hashed, id.as_bytes());
    let written = hashed.len() - 1 - id.len();
    hashed[written..].make_ascii_lowercase();
    if is_plain_number(identity.record_type) {
        push_netstring(&mut hashed, identity.record_type.as_bytes());
    } else {
        match event.record_type() {
            Some(number) => push_netstring(&mut hashed, number.to_string().as_bytes()),
            None => push_netstring(&mut hashed, identity.record_type.trim().as_bytes()),
        }
    }
    push_time(&mut hashed, identity.creation_time);
    push_netstring(&mut hashed, identity.operation.as_bytes());
    if identity.record_number.is_empty() || is_plain_number(identity.record_number) {
        push_netstring(&mut hashed, identity.record_number.as_bytes());
    } else {
        match event.integer(Member::RecordNumber) {
            Some(number) => push_netstring(&mut hashed, number.to_string().as_bytes()),
            None => push_netstring(&mut hashed, identity.record_number.trim().as_bytes()),
        }
    }
    key(&hashed)
}

/// The usual identity, put together without a look at anything but its bytes.
struct Block {
    bytes: [u8; BLOCK_BYTES],
    used: usize,
}

impl Block {
    /// `None` when some part of it is not as nearly every event has it, or all of it is longer.
    #[inline]
    fn usual(&mut self, identity: &EventIdentity<'_>) -> Option<()> {
        let (id, number) = (identity.id.as_bytes(), identity.record_number);
        let is_bare = |byte: &u8| byte.is_ascii_graphic();
        let is_usual = id.first().is_some_and(is_bare)
            && id.last().is_some_and(is_bare)
            && is_plain_number(identity.record_type)
            && (number.is_empty() || is_plain_number(number))
            && is_usual_time(identity.creation_time.as_bytes());
        if !is_usual {
            return None;
        }
        let at = self.push(id)?;
        self.bytes.get_mut(at..at + id.len())?.make_ascii_lowercase();
        self.push(identity.record_type.as_bytes())?;
        self.put(b"20:")?;
        self.put(identity.creation_time.as_bytes())?;
        self.put(b"Z,")?;
        self.push(identity.operation.as_bytes())?;
        self.push(number.as_bytes())?;
        Some(())
    }

    /// A netstring of less than a hundred bytes; where its text begins.
    #[inline]
    fn push(&mut self, text: &[u8]) -> Option<usize> {
        let length = u8::try_from(text.len()).ok().filter(|length| *length < 100)?;
        match length {
            0..10 => self.put(&[b'0' + length, b':'])?,
            _ => self.put(&[b'0' + length / 10, b'0' + length % 10, b':'])?,
        }
        let at = self.used;
        self.put(text)?;
        self.put(b",")?;
        Some(at)
    }

    #[inline]
    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        self.bytes.get_mut(self.used..self.used + bytes.len())?.copy_from_slice(bytes);
        self.used += bytes.len();
        Some(())
    }
}

/// Whether a number is written as it is hashed: up to nine digits, no zero before others.
fn is_plain_number(text: &str) -> bool {
    match text.as_bytes() {
        [digit] => digit.is_ascii_digit(),
        [b'1'..=b'9', rest @ ..] => rest.len() < 9 && rest.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

/// `2026-07-17T08:28:17Z` of any text that `time::parse` reads, a fraction cut off; else the text.
fn push_time(hashed: &mut Hashed, text: &str) {
    if is_usual_time(text.as_bytes()) {
        hashed.extend_from_slice(b"20:");
        hashed.extend_from_slice(text.as_bytes());
        hashed.extend_from_slice(b"Z,");
        return;
    }
    match time::parse(text) {
        Some(time) => {
            let civil = TimeZone::UTC.to_datetime(time.at).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            push_netstring(hashed, civil.as_bytes());
        }
        None => push_netstring(hashed, text.trim().as_bytes()),
    }
}

/// Whether a text is a time as nearly every event has it, `2026-07-17T08:28:17`, of a day that every such month has.
fn is_usual_time(text: &[u8]) -> bool {
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2, b'T', h1, h2, b':', i1, i2, b':', s1, s2] = text else {
        return false;
    };
    let digits = [y1, y2, y3, y4, m1, m2, d1, d2, h1, h2, i1, i2, s1, s2];
    if !digits.iter().all(|digit| digit.is_ascii_digit()) {
        return false;
    }
    let two = |tens: &u8, ones: &u8| (tens - b'0') * 10 + (ones - b'0');
    let (month, day) = (two(m1, m2), two(d1, d2));
    let days = if month == 2 { 28 } else { 30 };
    // The years from 1970 are those from 2000 on as far as anybody's audit log goes; the others take the longer way.
    two(y1, y2) == 20
        && (1..=12).contains(&month)
        && (1..=days).contains(&day)
        && two(h1, h2) < 24
        && two(i1, i2) < 60
        && two(s1, s2) < 60
}

/// `5:hello,`: no text can run into the next.
fn push_netstring(out: &mut Hashed, text: &[u8]) {
    let length = text.len();
    if length >= 100 {
        out.extend_from_slice((length / 100).to_string().as_bytes());
    }
    if length >= 10 {
        out.push(b'0' + (length / 10 % 10) as u8);
    }
    out.push(b'0' + (length % 10) as u8);
    out.push(b':');
    out.extend_from_slice(text);
    out.push(b',');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(json: &str) -> Option<String> {
        canonical_key(&Event::parse(json.as_bytes()).unwrap()).map(|key| key.to_string())
    }

    #[test]
    fn the_forms_of_one_event_have_one_key() {
        let feed = r#"{"Id":"5E1D2A10-0000-4000-8000-00000000000A","RecordType":65,"CreationTime":"2026-07-17T08:28:17","Operation":"QuarantineReleaseMessage"}"#;
        let expected = key(feed);
        assert!(expected.is_some());
        for other in [
            r#"{"id":"5e1d2a10-0000-4000-8000-00000000000a","RecordType":"65","CreationTime":"2026-07-17T08:28:17Z","Operation":"QuarantineReleaseMessage","RecordNumber":null}"#,
            r#"{"Id":"5E1D2A10-0000-4000-8000-00000000000a","RecordType":"Quarantine","CreationTime":"2026-07-17 08:28:17","Operation":"QuarantineReleaseMessage"}"#,
            r#"{"Id":" 5e1d2a10-0000-4000-8000-00000000000a ","RecordType":"quarantine","CreationTime":"2026-07-17T08:28:17.0000000Z","Operation":"QuarantineReleaseMessage","RecordNumber":""}"#,
            r#"{"Id":"5e1d2a10-0000-4000-8000-00000000000a","RecordType":65.0,"CreationTime":"2026-07-17T10:28:17.999+02:00","Operation":"QuarantineReleaseMessage"}"#,
        ] {
            assert_eq!(key(other), expected, "{other}");
        }
    }

    /// What is usual is hashed as it is written; the long way over the same text must come to the same.
    #[test]
    fn the_usual_way_and_the_long_way_agree() {
        let long = |text: &str| {
            let at = time::parse(text).map(|time| TimeZone::UTC.to_datetime(time.at));
            at.map_or(text.trim().to_owned(), |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
        };
        for (day, hour) in (0..=99).flat_map(|day| [0, 9, 23, 24].map(|hour| (day, hour))) {
            for (month, year) in
                (0..=13).flat_map(|month| [1969, 1999, 2000, 2024, 2026, 2099].map(|year| (month, year)))
            {
                for rest in ["00:00", "59:59", "60:00", "00:60", "0a:00"] {
                    let text = format!("{year}-{month:02}-{day:02}T{hour:02}:{rest}");
                    let (mut hashed, mut expected) = (Hashed::new(), Hashed::new());
                    push_time(&mut hashed, &text);
                    push_netstring(&mut expected, long(&text).as_bytes());
                    assert_eq!(hashed, expected, "{text}");
                }
            }
        }
    }

    proptest! {
        /// Whatever is put together the short way would be hashed the same the long way.
        #[test]
        fn the_short_way_and_the_long_way_hash_the_same_bytes(
            id in "[A-Za-z0-9 -]{0,40}", record_type in "[0-9]{0,3}|Quarantine", day in "2026-0[0-3]-[0-3][0-9]T08:28:17Z?",
            operation in ".{0,30}", number in "[0-9]{0,2}| 1",
        ) {
            let identity = EventIdentity {
                id: &id, record_type: &record_type, creation_time: &day, operation: &operation, record_number: &number,
            };
            let mut block = Block { bytes: [0; BLOCK_BYTES], used: 0 };
            if !id.trim().is_empty() && block.usual(&identity).is_some() {
                let mut long = Hashed::new();
                for text in [&*id.to_ascii_lowercase(), &record_type, &format!("{day}Z"), &operation, &number] {
                    push_netstring(&mut long, text.as_bytes());
                }
                prop_assert_eq!(&block.bytes[..block.used], long.as_slice());
            }
        }
    }

    #[test]
    fn a_length_is_written_in_decimal_without_zeros_before_it() {
        for length in [0, 1, 9, 10, 19, 99, 100, 101, 110, 999, 1000, 1010, 12_345] {
            let mut out = Hashed::new();
            push_netstring(&mut out, &vec![b'x'; length]);
            assert_eq!(out.as_slice(), format!("{length}:{},", "x".repeat(length)).as_bytes());
        }
    }

    #[test]
    fn what_differs_in_any_part_has_another_key() {
        let mut keys = std::collections::BTreeSet::new();
        let others = [
            r#"{"Id":"a","RecordType":1,"CreationTime":"2026-07-17T08:28:17","Operation":"o"}"#,
            r#"{"Id":"b","RecordType":1,"CreationTime":"2026-07-17T08:28:17","Operation":"o"}"#,
            r#"{"Id":"a","RecordType":2,"CreationTime":"2026-07-17T08:28:17","Operation":"o"}"#,
            r#"{"Id":"a","CreationTime":"2026-07-17T08:28:17","Operation":"o"}"#,
            r#"{"Id":"a","RecordType":"NobodyKnows","CreationTime":"2026-07-17T08:28:17","Operation":"o"}"#,
            r#"{"Id":"a","RecordType":1,"CreationTime":"2026-07-17T08:28:18","Operation":"o"}"#,
            r#"{"Id":"a","RecordType":1,"CreationTime":"yesterday","Operation":"o"}"#,
            r#"{"Id":"a","RecordType":1,"Operation":"o"}"#,
            r#"{"Id":"a","RecordType":1,"CreationTime":"2026-07-17T08:28:17","Operation":"O"}"#,
            r#"{"Id":"a","RecordType":1,"CreationTime":"2026-07-17T08:28:17","Operation":"o "}"#,
            r#"{"Id":"a","RecordType":1,"CreationTime":"2026-07-17T08:28:17","Operation":"o","RecordNumber":1}"#,
            r#"{"Id":"a","RecordType":1,"CreationTime":"2026-07-17T08:28:17","Operation":"o","RecordNumber":2}"#,
        ];
        for json in others {
            keys.insert(key(json).unwrap());
        }
        assert_eq!(keys.len(), others.len());
    }

    #[test]
    fn an_event_without_a_usable_id_has_no_key() {
        for json in ["{}", r#"{"Id":null,"Operation":"o"}"#, r#"{"Id":"  "}"#, r#"{"Id":{}}"#] {
            assert_eq!(key(json), None, "{json}");
        }
    }
}
