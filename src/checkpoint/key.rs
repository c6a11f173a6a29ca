//! How the key of a blob or of an event is made.

use std::fmt;

use crate::model::{EventIdentity, Timestamp};

/// Input up to this size is hashed in one call; an event's identity is mostly below 64 bytes, one block of the hash.
const PIECE_BYTES: usize = 256;
/// Precedes the 16 bytes of a GUID in place of its text, where a length would be.
const GUID: u8 = 0xFF;
/// Represents a time that the first part of the key contains completely.
const TIME: u8 = 0xFE;
/// Precedes a length of 8 bytes; shorter ones are one byte.
const LONG: u8 = 0x80;

/// Identifies a blob or an event: 32 bits of time (Unix seconds), then 96 bits of a BLAKE3 hash.
///
/// The time places keys that are looked up together next to each other, and for most events it is the only part of
/// `CreationTime` in the key (see [`Key::of_event`]). The hash is cryptographic because parts of an event are chosen by
/// the user it reports on, who must not be able to make it look like one already delivered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub(super) u128);

impl Key {
    /// The key of an event that has an identity. Equal identities, byte for byte, give equal keys. A `CreationTime` in the
    /// usual form is not hashed: different ones give different seconds, and those are in the key.
    pub fn of_event(identity: &EventIdentity<'_>) -> Key {
        let EventIdentity { id, record_type, creation_time, operation, record_number } = *identity;
        let secs = creation_secs(creation_time);
        let mut hashing = Hashing::new();
        hashing.field(b"event");
        match guid(id.as_bytes()) {
            Some(bytes) => {
                hashing.push(&[GUID]);
                hashing.push(&bytes);
            }
            None => hashing.field(id.as_bytes()),
        }
        hashing.field(record_type.as_bytes());
        if says_all(secs, creation_time.as_bytes()) {
            hashing.push(&[TIME]);
        } else {
            hashing.field(creation_time.as_bytes());
        }
        hashing.field(operation.as_bytes());
        hashing.field(record_number.as_bytes());
        hashing.key(secs)
    }

    /// The key of a content blob.
    pub fn of_blob(content_id: &str, created: Timestamp) -> Key {
        Hashing::new().wide(b"blob").wide(content_id.as_bytes()).key(secs_of(created))
    }

    /// The key of an event without an identity: the `occurrence`-th (from 0) with exactly these bytes in this blob. Only
    /// another fetch of the same blob gives the same key, so that equal events of different blobs are both delivered.
    pub fn of_anonymous(content_id: &str, raw: &[u8], occurrence: u64) -> Key {
        let mut hashing = Hashing::new();
        hashing.wide(b"anonymous").wide(content_id.as_bytes()).wide(raw).wide(&occurrence.to_be_bytes());
        hashing.key(0)
    }

    /// The key of an event that is delivered once more, distinguished from its first delivery and from other repeats by
    /// `salt`.
    pub fn of_repeat(self, salt: &str) -> Key {
        Hashing::new().wide(b"repeat").wide(salt.as_bytes()).wide(&self.0.to_be_bytes()).key(self.secs())
    }

    /// The key that one event has in every form, made of its canonical key (`normalise::canonical`) and its time.
    pub fn of_canonical(canonical: &[u8; 16], secs: u32) -> Key {
        Key(u128::from(secs) << 96 | u128::from_be_bytes(*canonical) >> 32)
    }

    /// The whole key as a number.
    pub fn as_u128(self) -> u128 {
        self.0
    }

    /// The time part, Unix seconds; 0 when unknown.
    pub fn secs(self) -> u32 {
        (self.0 >> 96) as u32
    }

    /// The hash on which page filters are built.
    pub(super) fn hash64(self) -> u64 {
        self.0 as u64
    }
}

/// The input of a key, hashed in one piece if it fits: separate calls are most of the cost for a short text.
struct Hashing {
    piece: [u8; PIECE_BYTES],
    used: usize,
    /// The hasher of input that did not fit in one piece.
    hasher: Option<Box<blake3::Hasher>>,
}

impl Hashing {
    fn new() -> Self {
        Self { piece: [0; PIECE_BYTES], used: 0, hasher: None }
    }

    /// Adds a field after its length in eight bytes, as in all keys but those of events.
    fn wide(&mut self, field: &[u8]) -> &mut Self {
        self.push(&(field.len() as u64).to_be_bytes());
        self.push(field);
        self
    }

    /// Adds a field after its length, which distinguishes `ab`+`c` from `a`+`bc`.
    #[inline]
    fn field(&mut self, field: &[u8]) {
        match u8::try_from(field.len()).ok().filter(|length| *length < LONG) {
            Some(length) => self.push(&[length]),
            None => {
                self.push(&[LONG]);
                self.push(&(field.len() as u64).to_be_bytes());
            }
        }
        self.push(field);
    }

    #[inline]
    fn push(&mut self, part: &[u8]) {
        match self.piece.get_mut(self.used..self.used + part.len()).filter(|_| self.hasher.is_none()) {
            Some(room) => {
                room.copy_from_slice(part);
                self.used += part.len();
            }
            None => {
                let hasher = self.hasher.get_or_insert_with(|| {
                    let mut hasher = Box::new(blake3::Hasher::new());
                    hasher.update(self.piece.get(..self.used).unwrap_or_default());
                    hasher
                });
                hasher.update(part);
            }
        }
    }

    fn key(&self, secs: u32) -> Key {
        let full = match &self.hasher {
            Some(hasher) => hasher.finalize(),
            None => blake3::hash(self.piece.get(..self.used).unwrap_or_default()),
        };
        let mut hash = [0; 16];
        hash.copy_from_slice(&full.as_bytes()[..16]);
        Key(u128::from(secs) << 96 | u128::from_be_bytes(hash) >> 32)
    }
}

/// The bytes of a GUID in the spelling that most ids have, `0a1b2c3d-0000-1111-2222-33334444abcd`; `None` for any other.
fn guid(id: &[u8]) -> Option<[u8; 16]> {
    const PAIRS: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
    const NO_DIGIT: u8 = 0x80;
    static DIGITS: [u8; 256] = {
        let mut digits = [NO_DIGIT; 256];
        let mut n = 0;
        while n < 16 {
            digits[b"0123456789abcdef"[n as usize] as usize] = n;
            n += 1;
        }
        digits
    };
    let id: &[u8; 36] = id.try_into().ok()?;
    let mut seen = 0;
    let bytes = PAIRS.map(|at| {
        let (high, low) = (DIGITS[usize::from(id[at])], DIGITS[usize::from(id[at + 1])]);
        seen |= high | low;
        high << 4 | low
    });
    (seen & NO_DIGIT == 0 && [8, 13, 18, 23].iter().all(|at| id[*at] == b'-')).then_some(bytes)
}

/// Whether only this text is read as `secs`: `2026-05-01T10:11:12`, to the byte.
fn says_all(secs: u32, text: &[u8]) -> bool {
    // A leap second and a time out of range are read as a nearby time.
    text.len() == 19 && text[10] == b'T' && text[17] < b'6' && (1..u32::MAX).contains(&secs)
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Unix seconds of a `CreationTime` that begins `YYYY-MM-DDThh:mm:ss`, taken as UTC whatever follows; else 0. Equal
/// texts give equal seconds, and different texts of which `says_all` is true give different ones: keys need both.
pub fn creation_secs(text: &str) -> u32 {
    let part = |from: usize, len: usize| {
        let digits = text.as_bytes().get(from..from + len)?;
        digits.iter().try_fold(0u32, |n, d| d.is_ascii_digit().then(|| n * 10 + u32::from(d - b'0')))
    };
    let parse = || {
        let marks = [4, 7, 10, 13, 16].map(|at| text.as_bytes().get(at).copied());
        let [Some(b'-'), Some(b'-'), Some(b'T' | b't' | b' '), Some(b':'), Some(b':')] = marks else { return None };
        let number = |from, len| part(from, len).and_then(|n| i16::try_from(n).ok());
        let small = |from| part(from, 2).and_then(|n| i8::try_from(n).ok());
        let date = jiff::civil::DateTime::new(
            number(0, 4)?,
            small(5)?,
            small(8)?,
            small(11)?,
            small(14)?,
            small(17)?.min(59),
            0,
        );
        jiff::tz::TimeZone::UTC.to_timestamp(date.ok()?).ok().map(secs_of)
    };
    parse().unwrap_or(0)
}

/// Seconds of a time since 1970, in the form of a key.
pub(super) fn secs_of(time: Timestamp) -> u32 {
    u32::try_from(time.as_second().max(0)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use expect_test::expect;

    use super::*;

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_second(secs).unwrap()
    }

    fn identity<'a>(id: &'a str, operation: &'a str) -> EventIdentity<'a> {
        EventIdentity { id, record_type: "6", creation_time: "2026-05-01T10:11:12", operation, record_number: "" }
    }

    #[test]
    fn keys_never_change_between_builds() {
        let keys = [
            Key::of_event(&identity("0a1b2c3d-0000-1111-2222-33334444abcd", "FileAccessed")),
            Key::of_blob("20260501101112$audit", at(1_777_630_272)),
            Key::of_anonymous("20260501101112$audit", b"{}", 0),
            Key::of_anonymous("20260501101112$audit", b"{}", 1),
        ];
        expect![[r#"
            69f47c401e90f14258c5a0d629d42d0a
            69f47c40075eb4979c49f497977b295c
            00000000c1bc4615a2cc4b83a2677ae1
            00000000e3615f21123d6aab61dcc040"#]]
        .assert_eq(&keys.map(|k| format!("{k:?}")).join("\n"));
    }

    #[test]
    fn fields_of_an_identity_do_not_run_together() {
        let joined = EventIdentity { record_type: "", ..identity("ab6", "c") };
        assert_ne!(Key::of_event(&identity("ab", "c")), Key::of_event(&joined));
        assert_ne!(Key::of_event(&identity("a", "bc")), Key::of_event(&identity("ab", "c")));
    }

    #[test]
    fn identities_that_differ_in_one_field_or_in_two_neighbours_have_different_keys() {
        let key = |[id, record_type, creation_time, operation, record_number]: [&str; 5]| {
            Key::of_event(&EventIdentity { id, record_type, creation_time, operation, record_number })
        };
        let base = ["0a1b2c3d-0000-1111-2222-33334444abcd", "6", "2026-05-01T10:11:12", "FileAccessed", ""];
        for first in 0..5 {
            let mut seen = HashMap::new();
            for (a, b) in PARTS.iter().flat_map(|a| PARTS.iter().map(move |b| (*a, *b))) {
                let mut fields = base;
                fields[first] = a;
                fields[(first + 1) % 5] = b;
                let other = seen.insert(key(fields), fields);
                assert_eq!(other, None, "{fields:?}");
            }
        }
    }

    /// Texts that are shortened, similar texts, and the shortened forms.
    const PARTS: &[&str] = &[
        "",
        "a",
        "\u{1}",
        "\u{2}",
        "6",
        "FileAccessed",
        "0a1b2c3d-0000-1111-2222-33334444abcd",
        "0A1B2C3D-0000-1111-2222-33334444ABCD",
        "0a1b2c3d000011112222-33334444abcd",
        "0a1b2c3d-0000-1111-2222-33334444abcd\0",
        "2026-05-01T10:11:12",
        "2026-05-01t10:11:12",
        "2026-05-01 10:11:12",
        "2026-05-01T10:11:12Z",
        "2026-05-01T10:11:59",
        "2026-05-01T10:11:60",
        "1970-01-01T00:00:00",
        "1601-01-01T00:00:00",
        "2106-02-07T06:28:14",
        "2106-02-07T06:28:15",
        "2106-02-07T06:28:16",
        "9998-12-31T23:59:59",
        "2026-05-01T10:11:6a",
    ];

    #[test]
    fn long_fields_are_kept_apart_as_short_ones_are() {
        for length in [126, 127, 128, 129, 200, 255, 256, 257, 1000] {
            let (long, longer) = ("x".repeat(length), "x".repeat(length + 1));
            let key = |id: &str, operation: &str| Key::of_event(&identity(id, operation));
            assert_ne!(key(&long, &longer), key(&longer, &long), "{length}");
            // Hashing in parts gives the same result as in one piece.
            let mut whole = Vec::new();
            let field = |whole: &mut Vec<u8>, text: &[u8]| {
                if text.len() < 128 {
                    whole.push(text.len() as u8);
                } else {
                    whole.push(128);
                    whole.extend((text.len() as u64).to_be_bytes());
                }
                whole.extend(text);
            };
            for text in [b"event", long.as_bytes(), b"6"] {
                field(&mut whole, text);
            }
            whole.push(TIME);
            field(&mut whole, longer.as_bytes());
            field(&mut whole, b"");
            let hash = blake3::hash(&whole);
            assert_eq!(key(&long, &longer).as_u128().to_be_bytes()[4..], hash.as_bytes()[..12], "{length}");
        }
    }

    #[test]
    fn the_time_of_an_event_is_read_leniently() {
        for (text, secs) in [
            ("2026-05-01T10:11:12", 1_777_630_272),
            ("2026-05-01T10:11:12.345Z", 1_777_630_272),
            ("2026-05-01 10:11:12+02:00", 1_777_630_272),
            ("2026-05-01T10:11:60", 1_777_630_319),
            ("2026-02-30T10:11:12", 0),
            ("1601-01-01T00:00:00", 0),
            ("9998-12-31T23:59:59", u32::MAX),
            ("2026-05-01T10:11", 0),
            ("5/1/2026 10:11:12 AM", 0),
            ("2026-05-01T１0:11:12", 0),
            ("", 0),
        ] {
            assert_eq!(creation_secs(text), secs, "{text}");
        }
    }
}
