//! The canonical key: one event's identity, whatever form it came in.
//!
//! The feed, the audit search, PowerShell and Microsoft Graph write the same event in different texts: a time with `Z`
//! or without, a record type as a number or a name. This key is over what those texts say, so that one event has one
//! key in all of them. Its definition and its test vectors are in `docs/receipts.md`; whoever wants to compare has to
//! compute it the same way, so it never changes. It is not the key by which repeated events are removed
//! (`checkpoint::key_set`), which is over the texts as they are.

use std::fmt;
use std::str::FromStr;

use jiff::tz::TimeZone;
use serde_with::{DeserializeFromStr, SerializeDisplay};

use super::blake2b::{self, BLOCK_BYTES, Block, TEXT_BYTES_MAX};
use super::event::{Event, KnownMember};
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
    let identity = event.identity()?;
    let mut block = [0; BLOCK_BYTES];
    let hash = match fill_usual(&mut block, &identity, &mut UsualHour::default()) {
        true => blake2b::hash(blake2b::text_of(&block)),
        false => blake2b::hash(&text_of_any(event, &identity)),
    };
    Some(CanonicalKey(hash))
}

/// What keys are made from, of events whose keys are wanted together: four hashes at once take little more than one.
#[derive(Debug, Clone, Default)]
pub struct Unhashed {
    blocks: Vec<Block>,
    /// Of events whose text does not fit into a block: its place and the text, ascending.
    long: Vec<(usize, Vec<u8>)>,
    hour: UsualHour,
}

impl Unhashed {
    /// Makes room for so many events at once.
    pub fn reserve(&mut self, events: usize) {
        self.blocks.reserve(events);
    }

    /// Adds an event; the place its key will have in [`Unhashed::keys`]. `None` when it has no usable `Id`.
    pub fn push(&mut self, event: &Event<'_>) -> Option<usize> {
        let identity = event.identity()?;
        let place = self.blocks.len();
        self.blocks.push([0; BLOCK_BYTES]);
        if !fill_usual(self.blocks.last_mut()?, &identity, &mut self.hour) {
            self.push_long(place, text_of_any(event, &identity));
        }
        Some(place)
    }

    #[cold]
    fn push_long(&mut self, place: usize, text: Vec<u8>) {
        self.long.push((place, text));
    }

    /// Takes out the events of these places, given in ascending order: those behind them move up.
    pub fn remove(&mut self, places: &[usize]) {
        if places.is_empty() {
            return;
        }
        let mut gone = places.iter().peekable();
        let (mut at, mut kept) = (0, 0);
        let mut long = std::mem::take(&mut self.long).into_iter().peekable();
        self.blocks.retain(|_| {
            let stays = gone.next_if_eq(&&at).is_none();
            if let Some((_, text)) = long.next_if(|(place, _)| *place == at)
                && stays
            {
                self.long.push((kept, text));
            }
            at += 1;
            kept += usize::from(stays);
            stays
        });
    }

    /// The keys of the events, in the order in which they were added. Nothing waits to be hashed any more.
    pub fn keys(&mut self) -> Vec<CanonicalKey> {
        let mut hashes = blake2b::hash_all(&self.blocks);
        for (place, text) in self.long.drain(..) {
            if let Some(hash) = hashes.get_mut(place) {
                *hash = blake2b::hash(&text);
            }
        }
        self.blocks.clear();
        hashes.into_iter().map(CanonicalKey).collect()
    }
}

/// What is hashed of any event.
fn text_of_any(event: &Event<'_>, identity: &EventIdentity<'_>) -> Vec<u8> {
    let mut text = Vec::with_capacity(2 * BLOCK_BYTES);
    let hashed = &mut text;
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
        match event.integer(KnownMember::RecordNumber) {
            Some(number) => push_netstring(hashed, number.to_string().as_bytes()),
            None => push_netstring(hashed, identity.record_number.trim().as_bytes()),
        }
    }
    text
}

/// Bytes of a GUID with its hyphens, and of a time without a fraction.
const GUID_BYTES: usize = 36;
const TIME_BYTES: usize = 19;

/// Writes what is hashed of an identity as nearly every event has it, and its length into the last byte; `false` for any
/// other, of which nothing counts that was written.
#[inline]
fn fill_usual(block: &mut Block, identity: &EventIdentity<'_>, hour: &mut UsualHour) -> bool {
    let operation = identity.operation.as_bytes();
    let Some(id) = usual_id(identity.id.as_bytes()) else { return false };
    let Some(time) = usual_time(identity.creation_time.as_bytes(), hour) else { return false };
    if !identity.record_number.is_empty() || operation.len() > OPERATION_BYTES_MAX {
        return false;
    }
    block[..3].copy_from_slice(b"36:");
    block[3..][..GUID_BYTES].copy_from_slice(id);
    // With the number of digits known, the compiler knows all places up to the operation.
    let length = match *identity.record_type.as_bytes() {
        [a @ b'0'..=b'9'] => fill_rest(block, [b',', b'1', b':', a], time, operation),
        [a @ b'1'..=b'9', b @ b'0'..=b'9'] => fill_rest(block, [b',', b'2', b':', a, b], time, operation),
        [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] => {
            fill_rest(block, [b',', b'3', b':', a, b, c], time, operation)
        }
        _ => return false,
    };
    block[TEXT_BYTES_MAX] = length as u8;
    true
}

/// Writes what follows the id: the record type, the time, the operation and the record number, which is none. How long
/// all is.
#[inline]
fn fill_rest<const N: usize>(
    block: &mut Block,
    record_type: [u8; N],
    time: &[u8; TIME_BYTES],
    operation: &[u8],
) -> usize {
    let Some(rest) = block.get_mut(3 + GUID_BYTES..TEXT_BYTES_MAX) else { return 0 };
    rest[..N].copy_from_slice(&record_type);
    let mut usual = *b",20:0000-00-00T00:00:00Z,";
    usual[4..][..TIME_BYTES].copy_from_slice(time);
    rest[N..][..usual.len()].copy_from_slice(&usual);
    let at = N + usual.len();
    let length = operation.len() as u8;
    let end = match length {
        0..10 => {
            rest[at..][..2].copy_from_slice(&[b'0' + length, b':']);
            at + 2
        }
        _ => {
            rest[at..][..3].copy_from_slice(&[b'0' + length / 10, b'0' + length % 10, b':']);
            at + 3
        }
    };
    rest[end..][..operation.len()].copy_from_slice(operation);
    let end = end + operation.len();
    rest[end..][..LAST.len()].copy_from_slice(LAST);
    3 + GUID_BYTES + end + LAST.len()
}

/// What ends the operation, and a record number that is none.
const LAST: &[u8; 4] = b",0:,";
/// What fits into a block beside the longest of all else.
const OPERATION_BYTES_MAX: usize = TEXT_BYTES_MAX - (3 + GUID_BYTES + 6 + 25 + 3 + LAST.len());

/// A text as long as a GUID that neither begins nor ends with a blank and has no letter in upper case.
#[inline]
fn usual_id(id: &[u8]) -> Option<&[u8; GUID_BYTES]> {
    let id: &[u8; GUID_BYTES] = id.try_into().ok()?;
    let is_usual = id[0].is_ascii_graphic() && id[GUID_BYTES - 1].is_ascii_graphic();
    // Of letters in upper case this bit is not set; of digits, hyphens and other letters it is.
    const BIT: u64 = 0x2020_2020_2020_2020;
    let word = |at: usize| id[at..].first_chunk().copied().map_or(0, u64::from_ne_bytes);
    let all = word(0) & word(8) & word(16) & word(24) & word(GUID_BYTES - 8);
    (is_usual && all & BIT == BIT).then_some(id)
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
fn push_time(hashed: &mut Vec<u8>, text: &str) {
    if let Some(time) = usual_time(text.as_bytes(), &mut UsualHour::default()) {
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
/// nine digits and a `Z` or without, of a day that every such month has. Events come by the hour: `hour` is the one that
/// the last of them was of, which is not looked at again.
#[inline]
fn usual_time<'t>(text: &'t [u8], hour: &mut UsualHour) -> Option<&'t [u8; TIME_BYTES]> {
    let (time, rest) = text.split_first_chunk()?;
    let is_usual = match rest {
        [] | [b'Z'] => true,
        _ => is_fraction(rest),
    };
    (is_usual && (hour.has(time) || hour.is_of_another(time))).then_some(time)
}

/// Whether this follows on a second: `.0000000`, with a `Z` or without.
fn is_fraction(rest: &[u8]) -> bool {
    match rest {
        [b'.', digits @ .., b'Z'] | [b'.', digits @ ..] => {
            (1..=9).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit)
        }
        _ => false,
    }
}

/// An hour of a day that there is: the first and the last eight bytes of `2026-07-17T08`. By default none.
#[derive(Debug, Clone, Default)]
struct UsualHour(u64, u64);

impl UsualHour {
    fn of(time: &[u8; TIME_BYTES]) -> UsualHour {
        let [first, last] = [0, 5].map(|at| time[at..].first_chunk().copied().map_or(0, u64::from_be_bytes));
        UsualHour(first, last)
    }

    /// Whether a text is a second of it.
    #[inline]
    fn has(&self, time: &[u8; TIME_BYTES]) -> bool {
        const OF_DAY: BytePattern = BytePattern::of(*b"dd:5d:5d");
        let UsualHour(first, last) = Self::of(time);
        first == self.0
            && last == self.1
            && time.last_chunk().is_some_and(|text| OF_DAY.is_of(u64::from_be_bytes(*text)))
    }

    /// Whether a text is a second of another one, which is known from here on.
    #[cold]
    fn is_of_another(&mut self, time: &[u8; TIME_BYTES]) -> bool {
        let is_second = is_usual_second(time);
        if is_second {
            *self = Self::of(time);
        }
        is_second
    }
}

/// Eight bytes at a time. The years from 1970 are those from 2000 on as far as anybody's audit log goes; the others take
/// the longer way.
fn is_usual_second(text: &[u8; TIME_BYTES]) -> bool {
    const DAY: BytePattern = BytePattern::of(*b"20dd-dd-");
    const HOUR: BytePattern = BytePattern::of(*b"ddTdd:5d");
    const SECOND: BytePattern = BytePattern::of(*b"5d:5d\0\0\0");
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
struct BytePattern {
    mask: u64,
    value: u64,
    /// Added to each digit: one that is too great runs over into the half of the byte that is looked at.
    over: u64,
    digits: u64,
}

impl BytePattern {
    const fn of(form: [u8; 8]) -> BytePattern {
        let (mut mask, mut value, mut over, mut digits) = ([0xFF; 8], form, [0; 8], [0; 8]);
        let mut at = 0;
        while at < 8 {
            if form[at] == b'd' || form[at] == b'5' {
                (mask[at], value[at], digits[at]) = (0xF0, 0x30, 0xF0);
                over[at] = if form[at] == b'd' { 0x06 } else { 0x0A };
            }
            at += 1;
        }
        BytePattern {
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
            let mut block = [0; BLOCK_BYTES];
            let mut long = Vec::new();
            if fill_usual(&mut block, &identity, &mut UsualHour::default()) {
                for text in [&*id.to_ascii_lowercase(), &record_type, &format!("{day}Z"), &operation, &number] {
                    push_netstring(&mut long, text.as_bytes());
                }
                prop_assert_eq!(blake2b::text_of(&block), long);
            }
        }
    }

    #[test]
    fn a_second_is_usual_whatever_hour_is_known() {
        let is_usual = |text: &str, hour: &mut UsualHour| usual_time(text.as_bytes(), hour).is_some();
        for known in ["2026-07-17T08:28:17", "2026-07-17T08:00:00", "2026-02-28T23:59:59", "nothing of a time..", ""] {
            for day in
                ["2026-07-17T08", "2026-07-17T09", "2026-07-18T08", "2026-13-17T08", "1926-07-17T08", "2026-02-28T23"]
            {
                for rest in [
                    ":28:17", ":60:00", ":00:60", ":0:000", ":2a:00", "x28:17", ":28:17Z", ":28:17.5", ":28:17x",
                    ":28:1",
                ] {
                    let (mut hour, text) = (UsualHour::default(), format!("{day}{rest}"));
                    is_usual(known, &mut hour);
                    assert_eq!(
                        is_usual(&text, &mut hour),
                        is_usual(&text, &mut UsualHour::default()),
                        "{known} {text}"
                    );
                }
            }
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
                if round == 1 {
                    let mut without = unhashed.clone();
                    let gone: Vec<usize> = (0..count).filter(|n| n % 3 == 1 || n % 7 == 0).collect();
                    without.remove(&gone);
                    let kept = (0..count).filter(|n| !gone.contains(n)).map(|n| one_by_one[n]);
                    assert_eq!(without.keys(), kept.collect::<Vec<_>>(), "{count}");
                }
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
