//! MessagePack (<https://github.com/msgpack/msgpack/blob/master/spec.md>): encodes records, and decodes the few small
//! answers of a Forward receiver.
//!
//! Types are preserved: integers, floats, booleans, nested maps. Of a repeated key the last value counts, as in JSON
//! parsers, because a receiver may refuse or mangle a map that repeats a key. Knows no protocol.

use super::json_walk::{NotAnObject, Number, Visit, walk};
use crate::model::Timestamp;

/// Turns JSON objects into maps. Reuse one encoder, since it keeps its scratch space.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    open: Vec<OpenContainer>,
    entries: Vec<MemberSpan>,
    by_hash: Vec<(u64, usize)>,
    time_elsewhere: Option<Timestamp>,
}

/// The member of a record that repeats the time of its entry.
const TIME_KEY: &str = "timestamp";

/// An object or array that is not complete yet.
#[derive(Debug, Clone, Copy)]
struct OpenContainer {
    /// The offset of its header in the output, where one byte is reserved.
    head: usize,
    /// Where its entries begin among all entries; arrays have none.
    entries: usize,
    /// Elements or members so far.
    count: usize,
    is_map: bool,
}

/// A member of an object that is not complete yet.
#[derive(Debug, Clone, Copy)]
struct MemberSpan {
    start: usize,
    key_end: usize,
    hash: u64,
}

impl Encoder {
    /// Appends the JSON object `json` as a map; appends nothing when it is not one.
    ///
    /// # Errors
    /// `json` is not one JSON object in UTF-8, or has 4 GiB or more.
    pub(crate) fn object(&mut self, json: &[u8], out: &mut Vec<u8>) -> Result<(), NotAnObject> {
        let start = out.len();
        self.open.clear();
        self.entries.clear();
        self.time_elsewhere = None;
        self.record(json, start, out)
    }

    /// As [`Encoder::object`], but leaves out the member `timestamp` when it equals `time` exactly, which the caller
    /// has written as an EventTime.
    ///
    /// # Errors
    /// The same.
    pub(crate) fn object_of(&mut self, time: Timestamp, json: &[u8], out: &mut Vec<u8>) -> Result<(), NotAnObject> {
        let start = out.len();
        self.open.clear();
        self.entries.clear();
        self.time_elsewhere = Some(time).filter(|time| is_event_time(*time));
        self.record(json, start, out)
    }

    fn record(&mut self, json: &[u8], start: usize, out: &mut Vec<u8>) -> Result<(), NotAnObject> {
        if u32::try_from(json.len()).is_err() {
            return Err(NotAnObject);
        }
        let walked = walk(json, &mut MapWriter { encoder: self, out });
        if walked.is_err() {
            out.truncate(start);
        }
        walked
    }
}

struct MapWriter<'a> {
    encoder: &'a mut Encoder,
    out: &'a mut Vec<u8>,
}

impl MapWriter<'_> {
    /// An element of an array is counted when it begins, a member of an object at its key.
    fn element(&mut self) {
        if let Some(open) = self.encoder.open.last_mut().filter(|open| !open.is_map) {
            open.count += 1;
        }
    }

    fn begin(&mut self, is_map: bool) {
        self.element();
        let open = OpenContainer { head: self.out.len(), entries: self.encoder.entries.len(), count: 0, is_map };
        self.encoder.open.push(open);
        self.out.push(0);
    }

    fn end(&mut self) {
        let Some(open) = self.encoder.open.pop() else { return };
        let count = if open.is_map { self.drop_members(&open) } else { open.count };
        let (short, long) = if open.is_map { (0x80, 0xDE) } else { (0x90, 0xDC) };
        let mut header = Vec::with_capacity(5);
        write_length(&mut header, count, short, 15, long);
        match header.as_slice() {
            [one] => {
                if let Some(head) = self.out.get_mut(open.head) {
                    *head = *one;
                }
            }
            // More than fifteen: the content moves to make room.
            _ => drop(self.out.splice(open.head..=open.head, header)),
        }
        self.encoder.entries.truncate(open.entries);
    }

    /// Removes all but the last of the members of one name, and the record's own time if the entry has it; returns how
    /// many are left.
    fn drop_members(&mut self, open: &OpenContainer) -> usize {
        let Encoder { entries, by_hash, open: outer, time_elsewhere } = &mut *self.encoder;
        let entries = entries.get(open.entries..).unwrap_or_default();
        by_hash.clear();
        by_hash.extend(entries.iter().enumerate().map(|(i, entry)| (entry.hash, i)));
        by_hash.sort_unstable();
        let suspicious = by_hash.iter().zip(by_hash.iter().skip(1)).any(|(a, b)| a.0 == b.0);
        let time = time_elsewhere.filter(|_| outer.is_empty());
        if !suspicious && time.is_none() {
            return entries.len();
        }
        let out = &mut *self.out;
        let key = |i: usize| entries.get(i).and_then(|e| out.get(e.start..e.key_end)).unwrap_or_default();
        by_hash.sort_unstable_by(|a, b| key(a.1).cmp(key(b.1)).then(a.1.cmp(&b.1)));
        let mut keep = vec![true; entries.len()];
        for (earlier, later) in by_hash.iter().zip(by_hash.iter().skip(1)) {
            if key(earlier.1) == key(later.1)
                && let Some(keep) = keep.get_mut(earlier.1)
            {
                *keep = false;
            }
        }
        let end = out.len();
        if let Some(time) = time {
            for (i, entry) in entries.iter().enumerate() {
                let next = entries.get(i + 1).map_or(end, |next| next.start);
                let text = |bytes: Option<&[u8]>| match bytes.and_then(|bytes| read_value(bytes).ok()) {
                    Some((MsgpackValue::Bytes(text), _)) => String::from_utf8(text).ok(),
                    _ => None,
                };
                let is_time = text(out.get(entry.start..entry.key_end)).is_some_and(|key| key == TIME_KEY)
                    && text(out.get(entry.key_end..next)).and_then(|at| at.parse().ok()) == Some(time);
                if let Some(keep) = keep.get_mut(i).filter(|_| is_time) {
                    *keep = false;
                }
            }
        }
        let mut to = open.head + 1;
        let mut left = 0;
        for (i, entry) in entries.iter().enumerate() {
            let next = entries.get(i + 1).map_or(end, |next| next.start);
            if keep.get(i) == Some(&true) {
                out.copy_within(entry.start..next, to);
                to += next - entry.start;
                left += 1;
            }
        }
        out.truncate(to);
        left
    }
}

impl Visit for MapWriter<'_> {
    fn begin_object(&mut self) {
        self.begin(true);
    }

    fn key(&mut self, key: &str) {
        let start = self.out.len();
        write_str(self.out, key);
        // FNV-1a: only a hint; names with equal hashes are compared.
        let hash =
            key.bytes().fold(0xCBF2_9CE4_8422_2325, |hash: u64, b| (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
        self.encoder.entries.push(MemberSpan { start, key_end: self.out.len(), hash });
    }

    fn end_object(&mut self) {
        self.end();
    }

    fn begin_array(&mut self) {
        self.begin(false);
    }

    fn end_array(&mut self) {
        self.end();
    }

    fn string(&mut self, text: &str) {
        self.element();
        write_str(self.out, text);
    }

    fn number(&mut self, number: Number<'_>) {
        self.element();
        match number {
            Number::Int(n) => match u64::try_from(n) {
                Ok(n) => write_uint(self.out, n),
                Err(_) => write_negative(self.out, n),
            },
            Number::UInt(n) => write_uint(self.out, n),
            Number::Float(n) => {
                self.out.push(0xCB);
                self.out.extend_from_slice(&n.to_be_bytes());
            }
            Number::Text(digits) => write_str(self.out, digits),
        }
    }

    fn bool(&mut self, value: bool) {
        self.element();
        self.out.push(if value { 0xC3 } else { 0xC2 });
    }

    fn null(&mut self) {
        self.element();
        self.out.push(0xC0);
    }
}

/// Appends a header: `short | length` up to `short_max`, else `long` with 16 or `long + 1` with 32 bits.
fn write_length(out: &mut Vec<u8>, length: usize, short: u8, short_max: u8, long: u8) {
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(n), _) if n <= short_max => out.push(short | n),
        (_, Ok(n)) => {
            out.push(long);
            out.extend_from_slice(&n.to_be_bytes());
        }
        _ => {
            out.push(long + 1);
            // The callers have bounded the whole by 32 bits.
            out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        }
    }
}

/// Appends the header of an array.
pub(crate) fn write_array(out: &mut Vec<u8>, length: usize) {
    write_length(out, length, 0x90, 15, 0xDC);
}

/// Appends the header of a map.
pub(crate) fn write_map(out: &mut Vec<u8>, length: usize) {
    write_length(out, length, 0x80, 15, 0xDE);
}

/// Appends a string.
pub(crate) fn write_str(out: &mut Vec<u8>, text: &str) {
    match u8::try_from(text.len()) {
        Ok(n) if n > 31 => out.extend_from_slice(&[0xD9, n]),
        _ => write_length(out, text.len(), 0xA0, 31, 0xDA),
    }
    out.extend_from_slice(text.as_bytes());
}

/// Appends the header of a byte string of `length` bytes, which are to follow.
pub(crate) fn write_bin_header(out: &mut Vec<u8>, length: usize) {
    match u8::try_from(length) {
        Ok(n) => out.extend_from_slice(&[0xC4, n]),
        Err(_) => write_length(out, length, 0, 0, 0xC5),
    }
}

/// Appends an integer that is not negative.
pub(crate) fn write_uint(out: &mut Vec<u8>, n: u64) {
    match (u8::try_from(n), u16::try_from(n), u32::try_from(n)) {
        (Ok(n @ ..=0x7F), ..) => out.push(n),
        (Ok(n), ..) => out.extend_from_slice(&[0xCC, n]),
        (_, Ok(n), _) => {
            out.push(0xCD);
            out.extend_from_slice(&n.to_be_bytes());
        }
        (.., Ok(n)) => {
            out.push(0xCE);
            out.extend_from_slice(&n.to_be_bytes());
        }
        _ => {
            out.push(0xCF);
            out.extend_from_slice(&n.to_be_bytes());
        }
    }
}

fn write_negative(out: &mut Vec<u8>, n: i64) {
    match (i8::try_from(n), i16::try_from(n), i32::try_from(n)) {
        (Ok(n @ -32..), ..) => out.extend_from_slice(&n.to_be_bytes()),
        (Ok(n), ..) => {
            out.push(0xD0);
            out.extend_from_slice(&n.to_be_bytes());
        }
        (_, Ok(n), _) => {
            out.push(0xD1);
            out.extend_from_slice(&n.to_be_bytes());
        }
        (.., Ok(n)) => {
            out.push(0xD2);
            out.extend_from_slice(&n.to_be_bytes());
        }
        _ => {
            out.push(0xD3);
            out.extend_from_slice(&n.to_be_bytes());
        }
    }
}

/// Appends a time as Forward's EventTime: extension 0, seconds and nanoseconds in 32 bits each
/// (<https://github.com/fluent/fluentd/wiki/Forward-Protocol-Specification-v1>). Times out of its range (before 1970,
/// after 2106) become the nearest in range.
pub(crate) fn write_event_time(out: &mut Vec<u8>, time: Timestamp) {
    let nanos = time.as_nanosecond().clamp(0, EVENT_TIME_END - 1);
    let seconds = u32::try_from(nanos / 1_000_000_000).unwrap_or(u32::MAX);
    let nanos = u32::try_from(nanos % 1_000_000_000).unwrap_or_default();
    out.extend_from_slice(&[0xD7, 0x00]);
    out.extend_from_slice(&seconds.to_be_bytes());
    out.extend_from_slice(&nanos.to_be_bytes());
}

/// The first nanosecond after 1970 that an EventTime cannot hold.
const EVENT_TIME_END: i128 = (u32::MAX as i128 + 1) * 1_000_000_000;

/// Whether an EventTime represents exactly this time.
fn is_event_time(time: Timestamp) -> bool {
    (0..EVENT_TIME_END).contains(&time.as_nanosecond())
}

/// A value that a receiver sends.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum MsgpackValue {
    /// `nil`, numbers, extensions: not used in Forward answers.
    Other,
    /// A boolean.
    Bool(bool),
    /// A string or byte string: receivers send either for the same thing.
    Bytes(Vec<u8>),
    /// An array.
    Array(Vec<MsgpackValue>),
    /// A map, in the order sent.
    Map(Vec<(MsgpackValue, MsgpackValue)>),
}

impl MsgpackValue {
    /// The text of a string.
    pub(crate) fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The value under `key` of a map.
    pub(crate) fn get(&self, key: &str) -> Option<&MsgpackValue> {
        match self {
            Self::Map(members) => {
                members.iter().find(|(k, _)| k.as_bytes() == Some(key.as_bytes())).map(|(_, value)| value)
            }
            _ => None,
        }
    }
}

/// Why no value could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DecodeError {
    /// It is incomplete.
    Incomplete,
    /// It is not a value, or is nested deeper than any answer.
    Malformed,
}

/// How deep an answer may be nested.
const ANSWER_DEPTH_MAX: usize = 8;

/// The value at the start of `bytes` and how many of them it takes. The caller bounds `bytes`.
///
/// # Errors
/// See [`DecodeError`].
pub(crate) fn read_value(bytes: &[u8]) -> Result<(MsgpackValue, usize), DecodeError> {
    let mut reader = Decoder { bytes, at: 0 };
    let value = reader.value(0)?;
    Ok((value, reader.at))
}

struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Decoder<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let end = self.at.checked_add(length).ok_or(DecodeError::Malformed)?;
        let taken = self.bytes.get(self.at..end).ok_or(DecodeError::Incomplete)?;
        self.at = end;
        Ok(taken)
    }

    fn length(&mut self, bytes: usize) -> Result<usize, DecodeError> {
        Ok(self.take(bytes)?.iter().fold(0, |sum, b| (sum << 8) | usize::from(*b)))
    }

    fn value(&mut self, depth: usize) -> Result<MsgpackValue, DecodeError> {
        if depth > ANSWER_DEPTH_MAX {
            return Err(DecodeError::Malformed);
        }
        let tag = self.take(1)?.first().copied().ok_or(DecodeError::Incomplete)?;
        let other = |reader: &mut Self, length| reader.take(length).map(|_| MsgpackValue::Other);
        match tag {
            0x80..=0x8F => self.map(usize::from(tag & 0x0F), depth),
            0x90..=0x9F => self.array(usize::from(tag & 0x0F), depth),
            0xA0..=0xBF => self.bytes(usize::from(tag & 0x1F)),
            0xC0 | 0x00..=0x7F | 0xE0..=0xFF => Ok(MsgpackValue::Other),
            0xC1 => Err(DecodeError::Malformed),
            0xC2 => Ok(MsgpackValue::Bool(false)),
            0xC3 => Ok(MsgpackValue::Bool(true)),
            0xC4 | 0xD9 => self.length(1).and_then(|n| self.bytes(n)),
            0xC5 | 0xDA => self.length(2).and_then(|n| self.bytes(n)),
            0xC6 | 0xDB => self.length(4).and_then(|n| self.bytes(n)),
            0xC7 => self.length(1).and_then(|n| other(self, n + 1)),
            0xC8 => self.length(2).and_then(|n| other(self, n + 1)),
            0xC9 => self.length(4).and_then(|n| other(self, n + 1)),
            0xCC | 0xD0 => other(self, 1),
            0xCD | 0xD1 => other(self, 2),
            0xCA | 0xCE | 0xD2 => other(self, 4),
            0xCB | 0xCF | 0xD3 => other(self, 8),
            0xD4 => other(self, 2),
            0xD5 => other(self, 3),
            0xD6 => other(self, 5),
            0xD7 => other(self, 9),
            0xD8 => other(self, 17),
            0xDC => self.length(2).and_then(|n| self.array(n, depth)),
            0xDD => self.length(4).and_then(|n| self.array(n, depth)),
            0xDE => self.length(2).and_then(|n| self.map(n, depth)),
            0xDF => self.length(4).and_then(|n| self.map(n, depth)),
        }
    }

    fn bytes(&mut self, length: usize) -> Result<MsgpackValue, DecodeError> {
        Ok(MsgpackValue::Bytes(self.take(length)?.to_vec()))
    }

    // Not allocated by the announced length, which may be wrong.
    fn array(&mut self, length: usize, depth: usize) -> Result<MsgpackValue, DecodeError> {
        let mut items = Vec::new();
        for _ in 0..length {
            items.push(self.value(depth + 1)?);
        }
        Ok(MsgpackValue::Array(items))
    }

    fn map(&mut self, length: usize, depth: usize) -> Result<MsgpackValue, DecodeError> {
        let mut members = Vec::new();
        for _ in 0..length {
            members.push((self.value(depth + 1)?, self.value(depth + 1)?));
        }
        Ok(MsgpackValue::Map(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value as Json;

    #[test]
    fn a_records_time_is_left_out_only_when_the_entry_says_the_same() {
        let time: Timestamp = "2026-05-01T10:00:00.000000001Z".parse().unwrap();
        for (record, left) in [
            (
                r#"{"a":1,"timestamp":"2026-05-01T10:00:00.000000001Z","b":{"timestamp":"2026-05-01T10:00:00.000000001Z"}}"#,
                r#"{"a":1,"b":{"timestamp":"2026-05-01T10:00:00.000000001Z"}}"#,
            ),
            (r#"{"timestamp":"2026-05-01T12:00:00.000000001+02:00"}"#, "{}"),
            (r#"{"timestamp":"2026-05-01T10:00:00Z"}"#, r#"{"timestamp":"2026-05-01T10:00:00Z"}"#),
            (r#"{"timestamp":{"timestamp":1}}"#, r#"{"timestamp":{"timestamp":1}}"#),
            (
                r#"{"timestamp":"","timestamp":"2026-05-01T10:00:00.000000001Z","timestamp":"x"}"#,
                r#"{"timestamp":"x"}"#,
            ),
        ] {
            let mut out = Vec::new();
            Encoder::default().object_of(time, record.as_bytes(), &mut out).unwrap();
            assert_eq!(out, encoded(left), "{record}");
        }
        let early: Timestamp = "1969-05-01T10:00:00Z".parse().unwrap();
        let (record, mut out) = (r#"{"timestamp":"1969-05-01T10:00:00Z"}"#, Vec::new());
        Encoder::default().object_of(early, record.as_bytes(), &mut out).unwrap();
        assert_eq!(out, encoded(record));
    }

    fn encoded(json: &str) -> Vec<u8> {
        let mut out = b"before".to_vec();
        Encoder::default().object(json.as_bytes(), &mut out).unwrap();
        out.split_off(6)
    }

    /// Decoded by an independent implementation.
    fn decoded(mut bytes: &[u8]) -> Json {
        let value = rmpv::decode::read_value(&mut bytes).unwrap();
        assert!(bytes.is_empty(), "{} bytes follow the value", bytes.len());
        to_json(&value)
    }

    fn to_json(value: &rmpv::Value) -> Json {
        match value {
            rmpv::Value::Nil => Json::Null,
            rmpv::Value::Boolean(b) => (*b).into(),
            rmpv::Value::Integer(n) => n.as_i64().map_or_else(|| n.as_u64().into(), Into::into),
            rmpv::Value::F64(n) => (*n).into(),
            rmpv::Value::String(s) => s.as_str().unwrap().into(),
            rmpv::Value::Array(items) => items.iter().map(to_json).collect(),
            rmpv::Value::Map(members) => {
                let keys: std::collections::HashSet<&str> = members.iter().map(|(k, _)| k.as_str().unwrap()).collect();
                assert_eq!(keys.len(), members.len(), "a key is repeated");
                Json::Object(members.iter().map(|(k, v)| (k.as_str().unwrap().into(), to_json(v))).collect())
            }
            other => panic!("{other:?}"),
        }
    }

    fn any_json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<i64>().prop_map(Json::from),
            any::<u64>().prop_map(Json::from),
            (-200_i64..200).prop_map(Json::from),
            (-1e9..1e9).prop_map(Json::from),
            "\\PC{0,40}".prop_map(Json::from),
            "[a-c\"\\\\\n]{0,300}".prop_map(Json::from),
        ];
        leaf.prop_recursive(6, 256, 20, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..20).prop_map(Json::from),
                prop::collection::hash_map("[a-z]{0,3}", inner, 0..20)
                    .prop_map(|m| Json::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_another_implementation_reads_is_what_the_json_says(value in any_json()) {
            let json = serde_json::json!({ "x": value });
            prop_assert_eq!(decoded(&encoded(&json.to_string())), json);
        }

        #[test]
        fn bytes_that_are_no_object_leave_no_trace(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut out = vec![7];
            if Encoder::default().object(&bytes, &mut out).is_err() {
                prop_assert_eq!(out, [7]);
            }
        }

        #[test]
        fn reading_an_answer_never_fails_otherwise_than_by_saying_so(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok((_, used)) = read_value(&bytes) {
                prop_assert!(used <= bytes.len());
            }
        }
    }

    #[test]
    fn the_last_of_several_members_of_one_name_counts_at_every_level() {
        for (json, expected) in [
            (r#"{"a":1,"b":2,"a":3}"#, r#"{"b":2,"a":3}"#),
            (r#"{"x":{"a":[1],"a":{"b":1,"b":2}},"y":1}"#, r#"{"x":{"a":{"b":2}},"y":1}"#),
            (r#"{"a":1,"\u0061":2}"#, r#"{"a":2}"#),
            (r#"{"":1,"":2,"":3}"#, r#"{"":3}"#),
        ] {
            assert_eq!(decoded(&encoded(json)), serde_json::from_str::<Json>(expected).unwrap(), "{json}");
        }
        let many: String = (0..5_000).map(|i| format!("\"k{}\":{i},", i % 100)).collect();
        let map = decoded(&encoded(&format!("{{{many}\"end\":true}}")));
        assert_eq!(map.as_object().unwrap().len(), 101);
        assert_eq!(map["k99"], 4_999);
    }

    #[test]
    fn headers_grow_with_what_they_count() {
        for n in [0, 1, 15, 16, 17, 31, 32, 255, 256, 65_535, 65_536] {
            let json = serde_json::json!({ "a": vec![0; n], "s": "x".repeat(n), "m": (0..n.min(300)).map(|i| (i.to_string(), Json::from(i))).collect::<serde_json::Map<_, _>>() });
            assert_eq!(decoded(&encoded(&json.to_string())), json, "{n}");
            let mut bin = Vec::new();
            write_bin_header(&mut bin, n);
            bin.resize(bin.len() + n, 7);
            assert_eq!(rmpv::decode::read_value(&mut &bin[..]).unwrap(), rmpv::Value::Binary(vec![7; n]));
            assert_eq!(read_value(&bin).unwrap(), (MsgpackValue::Bytes(vec![7; n]), bin.len()));
        }
    }

    #[test]
    fn an_event_time_is_eight_bytes_of_extension_zero() {
        let mut out = Vec::new();
        write_event_time(&mut out, "2026-05-01T00:00:00.000000007Z".parse().unwrap());
        assert_eq!(out, [0xD7, 0, 0x69, 0xF3, 0xED, 0x00, 0, 0, 0, 7]);
        out.clear();
        write_event_time(&mut out, Timestamp::MIN);
        assert_eq!(out, [0xD7, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        out.clear();
        write_event_time(&mut out, Timestamp::MAX);
        assert_eq!(out, [0xD7, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0x3B, 0x9A, 0xC9, 0xFF]);
    }

    #[test]
    fn an_answer_cut_anywhere_is_incomplete() {
        let mut answer = Vec::new();
        write_map(&mut answer, 1);
        write_str(&mut answer, "ack");
        write_str(&mut answer, &"x".repeat(40));
        for cut in 0..answer.len() {
            assert_eq!(read_value(&answer[..cut]), Err(DecodeError::Incomplete));
        }
        let (value, used) = read_value(&answer).unwrap();
        assert_eq!(used, answer.len());
        assert_eq!(value.get("ack").and_then(MsgpackValue::as_bytes), Some("x".repeat(40).as_bytes()));
        assert_eq!(read_value(&[0x91; 100]), Err(DecodeError::Malformed));
        assert_eq!(read_value(&[0xDD, 0xFF, 0xFF, 0xFF, 0xFF]), Err(DecodeError::Incomplete));
    }
}
