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
use blake2b_simd::many::{HashManyJob, hash_many};
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

/// The second that an event's `CreationTime` says, since 1970, whatever form it has; `None` where it is no time.
pub fn event_secs(creation_time: &str) -> Option<u32> {
    let time = time::parse(creation_time)?;
    u32::try_from(time.at.as_second()).ok()
}

/// The key of an event; `None` when it has no usable `Id`, for then nothing outside can name it.
pub fn canonical_key(event: &Event<'_>) -> Option<CanonicalKey> {
    let mut unhashed = Unhashed::default();
    unhashed.push(event)?;
    PARAMS.hash(&unhashed.bytes).as_bytes().first_chunk().copied().map(CanonicalKey)
}

static PARAMS: LazyLock<Params> = LazyLock::new(|| Params::new().hash_length(16).clone());

/// What keys are made from, of events whose keys are wanted together: four hashes at once take little more than one.
#[derive(Debug, Clone, Default)]
pub struct Unhashed {
    bytes: Vec<u8>,
    /// Where the part of each event ends.
    ends: Vec<usize>,
}

/// What is hashed of most events is no longer.
const USUAL_BYTES: usize = 128;
/// Hashes that are begun at once.
const AT_ONCE: usize = 16;

impl Unhashed {
    /// Makes room for so many events at once.
    pub fn reserve(&mut self, events: usize) {
        self.ends.reserve(events);
        self.bytes.reserve(events * USUAL_BYTES);
    }

    /// Adds an event; the place its key will have in [`Unhashed::keys`]. `None` when it has no usable `Id`.
    pub fn push(&mut self, event: &Event<'_>) -> Option<usize> {
        let identity = event.identity()?;
        if !push_usual(&mut self.bytes, &identity) {
            push_any(&mut self.bytes, event, &identity);
        }
        self.ends.push(self.bytes.len());
        Some(self.ends.len() - 1)
    }

    /// The keys of the events, in the order in which they were added. Nothing waits to be hashed any more.
    pub fn keys(&mut self) -> Vec<CanonicalKey> {
        let mut keys = Vec::with_capacity(self.ends.len());
        let mut begin = 0;
        for ends in self.ends.chunks(AT_ONCE) {
            let mut jobs: SmallVec<[HashManyJob<'_>; AT_ONCE]> = SmallVec::new();
            for end in ends {
                let hashed = self.bytes.get(begin..*end).unwrap_or_default();
                jobs.push(HashManyJob::new(&PARAMS, hashed));
                begin = *end;
            }
            hash_many(&mut jobs);
            let hashes = jobs.iter().map(HashManyJob::to_hash);
            keys.extend(hashes.filter_map(|hash| hash.as_bytes().first_chunk().copied().map(CanonicalKey)));
        }
        self.bytes.clear();
        self.ends.clear();
        keys
    }
}

/// Appends what is hashed of an event.
fn push_any(hashed: &mut Vec<u8>, event: &Event<'_>, identity: &EventIdentity<'_>) {
    let id = identity.id.trim();
    push_netstring(hashed, id.as_bytes());
    let written = hashed.len() - 1 - id.len();
    hashed[written..].make_ascii_lowercase();
    if is_plain_number(identity.record_type) {
        push_netstring(hashed, identity.record_type.as_bytes());
    } else {
        match event.record_type() {
            Some(number) => push_netstring(hashed, number.to_string().as_bytes()),
            None => push_netstring(hashed, identity.record_type.trim().as_bytes()),
        }
    }
    push_time(hashed, identity.creation_time);
    push_netstring(hashed, identity.operation.as_bytes());
    if identity.record_number.is_empty() || is_plain_number(identity.record_number) {
        push_netstring(hashed, identity.record_number.as_bytes());
    } else {
        match event.integer(Member::RecordNumber) {
            Some(number) => push_netstring(hashed, number.to_string().as_bytes()),
            None => push_netstring(hashed, identity.record_number.trim().as_bytes()),
        }
    }
}

/// Bytes of a GUID with its hyphens, and of a time without a fraction.
const GUID_BYTES: usize = 36;
const TIME_BYTES: usize = 19;

/// Appends what is hashed of an identity as nearly every event has it, without a look at anything but its bytes; else
/// appends nothing and says `false`.
#[inline]
fn push_usual(hashed: &mut Vec<u8>, identity: &EventIdentity<'_>) -> bool {
    let (record_type, operation) = (identity.record_type, identity.operation.as_bytes());
    let Ok(mut id) = <[u8; GUID_BYTES]>::try_from(identity.id.as_bytes()) else { return false };
    let Some(time) = usual_time(identity.creation_time.as_bytes()) else { return false };
    let is_usual = id[0].is_ascii_graphic()
        && id[GUID_BYTES - 1].is_ascii_graphic()
        && is_plain_number(record_type)
        && identity.record_number.is_empty()
        && operation.len() < 100;
    if !is_usual {
        return false;
    }
    for eight in id.as_chunks_mut().0 {
        *eight = lower(u64::from_ne_bytes(*eight)).to_ne_bytes();
    }
    id[32..].make_ascii_lowercase();
    let mut usual = [0; 3 + GUID_BYTES + 1];
    usual[..3].copy_from_slice(b"36:");
    usual[3..][..GUID_BYTES].copy_from_slice(&id);
    usual[3 + GUID_BYTES] = b',';
    hashed.reserve(usual.len() + 2 * NETSTRING_BYTES + record_type.len() + 24 + operation.len());
    hashed.extend_from_slice(&usual);
    // Of up to nine digits.
    hashed.extend_from_slice(&[b'0' + record_type.len() as u8, b':']);
    record_type.bytes().for_each(|digit| hashed.push(digit));
    let mut usual = *b",20:0000-00-00T00:00:00Z,";
    usual[4..][..TIME_BYTES].copy_from_slice(time);
    hashed.extend_from_slice(&usual);
    // Shorter than a hundred.
    let length = operation.len() as u8;
    match length {
        0..10 => hashed.extend_from_slice(&[b'0' + length, b':']),
        _ => hashed.extend_from_slice(&[b'0' + length / 10, b'0' + length % 10, b':']),
    }
    hashed.extend_from_slice(operation);
    hashed.extend_from_slice(b",0:,");
    true
}

/// What a netstring of a short text has around it.
const NETSTRING_BYTES: usize = 4;

/// Whether a number is written as it is hashed: up to nine digits, no zero before others.
fn is_plain_number(text: &str) -> bool {
    match text.as_bytes() {
        [digit] => digit.is_ascii_digit(),
        [b'1'..=b'9', rest @ ..] => rest.len() < 9 && rest.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

/// `2026-07-17T08:28:17Z` of any text that `time::parse` reads, a fraction cut off; else the text.
fn push_time(hashed: &mut Vec<u8>, text: &str) {
    if let Some(time) = usual_time(text.as_bytes()) {
        hashed.extend_from_slice(b"20:");
        hashed.extend_from_slice(time);
        hashed.extend_from_slice(b"Z,");
        return;
    }
    match time::parse(text) {
        Some(time) => {
            let civil = TimeZone::UTC.to_datetime(time.at);
            let (date, time) = (civil.date(), civil.time());
            let mut text = *b"0000-00-00T00:00:00Z";
            let parts = [
                (0, date.year() / 100),
                (2, date.year() % 100),
                (5, date.month().into()),
                (8, date.day().into()),
                (11, time.hour().into()),
                (14, time.minute().into()),
                (17, time.second().into()),
            ];
            for (at, number) in parts {
                text[at] += (number / 10) as u8;
                text[at + 1] += (number % 10) as u8;
            }
            push_netstring(hashed, &text);
        }
        None => push_netstring(hashed, text.trim().as_bytes()),
    }
}

/// The whole seconds of a text that is a time as nearly every event has it, `2026-07-17T08:28:17`, with a fraction of up to
/// nine digits and a `Z` or without, of a day that every such month has.
fn usual_time(text: &[u8]) -> Option<&[u8; TIME_BYTES]> {
    let (time, rest) = text.split_first_chunk()?;
    let is_usual = match rest {
        [] | [b'Z'] => true,
        [b'.', digits @ .., b'Z'] | [b'.', digits @ ..] => {
            (1..=9).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit)
        }
        _ => false,
    };
    (is_usual && is_usual_second(time)).then_some(time)
}

/// Eight bytes at a time. The years from 1970 are those from 2000 on as far as anybody's audit log goes; the others take
/// the longer way.
fn is_usual_second(text: &[u8; TIME_BYTES]) -> bool {
    const DAY: Form = Form::of(*b"20dd-dd-");
    const HOUR: Form = Form::of(*b"ddTdd:5d");
    const SECOND: Form = Form::of(*b"5d:5d\0\0\0");
    let (Some(day), Some(hour)) = (text.first_chunk(), text[8..].first_chunk()) else { return false };
    let [.., m1, m2, b':', s1, s2] = *text else { return false };
    let (day, hour) = (u64::from_be_bytes(*day), u64::from_be_bytes(*hour));
    let second = u64::from_be_bytes([m1, m2, b':', s1, s2, 0, 0, 0]);
    // Two digits read as hexadecimal are in the same order.
    let two = |word: u64, at: u32| (word >> (56 - 8 * at) & 0xF) << 4 | word >> (48 - 8 * at) & 0xF;
    let month = two(day, 5);
    let days = if month == 2 { 0x28 } else { 0x30 };
    DAY.is_of(day)
        && HOUR.is_of(hour)
        && SECOND.is_of(second)
        && (1..=0x12).contains(&month)
        && (1..=days).contains(&two(hour, 0))
        && two(hour, 3) < 0x24
}

/// What eight bytes have to be: `d` is any digit, `5` one up to 5, every other byte itself.
struct Form {
    mask: u64,
    value: u64,
    /// Added to each digit: one that is too great runs over into the half of the byte that is looked at.
    over: u64,
    digits: u64,
}

impl Form {
    const fn of(form: [u8; 8]) -> Form {
        let (mut mask, mut value, mut over, mut digits) = ([0xFF; 8], form, [0; 8], [0; 8]);
        let mut at = 0;
        while at < 8 {
            if form[at] == b'd' || form[at] == b'5' {
                (mask[at], value[at], digits[at]) = (0xF0, 0x30, 0xF0);
                over[at] = if form[at] == b'd' { 0x06 } else { 0x0A };
            }
            at += 1;
        }
        Form {
            mask: u64::from_be_bytes(mask),
            value: u64::from_be_bytes(value),
            over: u64::from_be_bytes(over),
            digits: u64::from_be_bytes(digits),
        }
    }

    const fn is_of(&self, word: u64) -> bool {
        // Once the bytes that are digits begin with 3, nothing runs over from one byte into the next.
        word & self.mask == self.value && (word + self.over) & self.digits == self.value & self.digits
    }
}

/// ASCII letters of eight bytes in lower case.
const fn lower(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    // The highest bit of each byte of the two sums tells whether it is at or beyond `A`, and beyond `Z`.
    let low = word & (0x7F * ONES);
    let from_a = low + (0x80 - b'A' as u64) * ONES;
    let beyond_z = low + (0x80 - b'Z' as u64 - 1) * ONES;
    word | (from_a & !beyond_z & !word & (0x80 * ONES)) >> 2
}

/// `5:hello,`: no text can run into the next.
fn push_netstring(out: &mut Vec<u8>, text: &[u8]) {
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
                for rest in ["00:00", "59:59Z", "60:00", "00:60", "0a:00", "00:00.5", "00:00.999999999Z", "00:00.Z"] {
                    let text = format!("{year}-{month:02}-{day:02}T{hour:02}:{rest}");
                    let (mut hashed, mut expected) = (Vec::new(), Vec::new());
                    push_time(&mut hashed, &text);
                    push_netstring(&mut expected, long(&text).as_bytes());
                    assert_eq!(hashed, expected, "{text}");
                }
            }
        }
    }

    #[test]
    fn eight_bytes_in_lower_case_are_those_of_each_byte() {
        for byte in 0..=u8::MAX {
            let bytes = [byte, b'Z', byte.wrapping_add(1), b'@', byte ^ 0x80, b'[', b'a', byte.wrapping_sub(1)];
            assert_eq!(lower(u64::from_ne_bytes(bytes)).to_ne_bytes(), bytes.map(|byte| byte.to_ascii_lowercase()));
        }
    }

    proptest! {
        #[test]
        fn a_second_is_usual_when_each_of_its_parts_is(text in "2[0-9:/;T-]{3}-[0-9:/]{2}-[0-9]{2}[T ][0-9:/]{2}:[0-9]{2}:[0-9:/]{2}") {
            let text: &[u8; TIME_BYTES] = text.as_bytes().first_chunk().unwrap();
            let parsed = time::parse(std::str::from_utf8(text).unwrap());
            if is_usual_second(text) {
                let time = parsed.map(|time| TimeZone::UTC.to_datetime(time.at).strftime("%Y-%m-%dT%H:%M:%S").to_string());
                prop_assert_eq!(time.as_deref().map(str::as_bytes), Some(&text[..]));
            }
        }

        /// Whatever is put together the short way would be hashed the same the long way.
        #[test]
        fn the_short_way_and_the_long_way_hash_the_same_bytes(
            id in "[A-Za-z0-9 -]{36}|[A-Za-z0-9 -]{0,40}", record_type in "[0-9]{0,3}|Quarantine",
            day in "2026-0[0-3]-[0-3][0-9]T08:28:17", rest in "Z?|[.][0-9]{0,10}Z?",
            operation in ".{0,30}", number in "|[0-9]{0,2}| 1",
        ) {
            let identity = EventIdentity {
                id: &id, record_type: &record_type, creation_time: &format!("{day}{rest}"), operation: &operation, record_number: &number,
            };
            let mut short = b"before".to_vec();
            let mut long = short.clone();
            if push_usual(&mut short, &identity) {
                for text in [&*id.to_ascii_lowercase(), &record_type, &format!("{day}Z"), &operation, &number] {
                    push_netstring(&mut long, text.as_bytes());
                }
            }
            prop_assert_eq!(short, long);
        }
    }

    #[test]
    fn keys_made_together_are_those_made_one_by_one() {
        let events: Vec<String> = (0..100)
            .map(|n| format!(r#"{{"Id":"5E1D2A10-0000-4000-8000-{n:012}","RecordType":{n},"CreationTime":"2026-07-17T08:28:17","Operation":"{}"}}"#, "o".repeat(n * 3)))
            .collect();
        let events: Vec<Event<'_>> = events.iter().map(|event| Event::parse(event.as_bytes()).unwrap()).collect();
        let nameless = Event::parse(b"{}").unwrap();
        for count in [0, 1, 3, 4, 5, 15, 16, 17, 33, 100] {
            let mut unhashed = Unhashed::default();
            for round in 0..2 {
                let places: Vec<_> = events[..count].iter().map(|event| unhashed.push(event)).collect();
                assert_eq!(unhashed.push(&nameless), None);
                assert_eq!(places, (0..count).map(Some).collect::<Vec<_>>(), "round {round}");
                let one_by_one: Vec<_> = events[..count].iter().filter_map(canonical_key).collect();
                assert_eq!(unhashed.keys(), one_by_one, "{count} in round {round}");
            }
        }
    }

    #[test]
    fn a_length_is_written_in_decimal_without_zeros_before_it() {
        for length in [0, 1, 9, 10, 19, 99, 100, 101, 110, 999, 1000, 1010, 12_345] {
            let mut out = Vec::new();
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
