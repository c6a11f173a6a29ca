//! A record in Fluent Bit's form: `[EventTime, map]` in MessagePack, made from the record's JSON in one pass.
//!
//! Does not know where records come from and where they go. Three facts of the host shape it, each found in its source
//! code and observed in a running one:
//! - One undecodable entry silently discards every later entry of the same buffer. So a record that is not valid JSON
//!   is refused before a byte of it reaches the buffer.
//! - Its decoder (`unpack_template.h`, `MSGPACK_EMBED_STACK_SIZE`) gives up on an entry with more than 32 nested
//!   containers. So values nested deeper than [`DEPTH_MAX`] are carried as JSON text.
//! - It does not check for repeated keys. So of members with the same name the last is kept, as in JSON readers.
//!
//! `serde_json` through `serde_transcode` or `rmp-serde` is not used: a surrogate without its partner (.NET cuts texts
//! in the middle of one) would cost the record, digits beyond 64 bits would be rounded, and repeated keys would pass.
//! `rmp`, the base of `rmp-serde`, does the encoding itself.

use std::borrow::Cow;
use std::collections::HashMap;

use m365_audit::model::Timestamp;
use m365_audit::normalise::unescape;
use rmp::encode;

/// Nested containers, including the record itself. Below the host's 32: the entry's own array is one, and filters wrap
/// their input.
pub const DEPTH_MAX: usize = 24;

/// `EventTime`: MessagePack extension type 0 of 8 bytes, of the Forward protocol.
const EVENT_TIME_TYPE: i8 = 0;
const EVENT_TIME_BYTES: u32 = 8;
/// The two greatest values of its seconds mark the begin and the end of a group of records.
const SECONDS_MAX: i64 = u32::MAX as i64 - 2;

/// The number of members above which repeated keys are found with a table instead of pairwise comparison.
const PAIRWISE_KEYS_MAX: usize = 32;

/// Keys of the open objects of nearly every record, reserved at once.
const KEYS_USUAL: usize = 64;

/// Headers that are filled in when the container's size is known: MessagePack's 16-bit forms.
const MAP_16: u8 = 0xde;
const ARRAY_16: u8 = 0xdc;
const MAP_32: u8 = 0xdf;
const ARRAY_32: u8 = 0xdd;

/// The bytes are not one JSON object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a JSON object at byte {at}")]
pub struct NotAnObject {
    /// How far it could be read.
    pub at: usize,
}

/// Appends one entry to `out`.
///
/// # Errors
/// `json` is not one JSON object in UTF-8; `out` is then as it was.
pub fn entry(out: &mut Vec<u8>, time: Timestamp, json: &[u8]) -> Result<(), NotAnObject> {
    let start = out.len();
    let done = write_entry(out, time, json);
    if done.is_err() {
        out.truncate(start);
    }
    done
}

fn write_entry(out: &mut Vec<u8>, time: Timestamp, json: &[u8]) -> Result<(), NotAnObject> {
    let text = std::str::from_utf8(json).map_err(|e| NotAnObject { at: e.valid_up_to() })?;
    let (open, keys) = (Vec::with_capacity(DEPTH_MAX), Vec::with_capacity(KEYS_USUAL));
    let mut transcoder = Transcoder { text, at: 0, out, open, keys };
    let written = transcoder.entry(time);
    let at = transcoder.at;
    written.ok_or(NotAnObject { at })
}

/// A container that is not closed yet.
struct Open {
    /// The offset of its header in the output.
    header: usize,
    object: bool,
    entries: usize,
    /// Where its keys begin in [`Transcoder::keys`].
    first_key: usize,
}

struct Key<'a> {
    name: Cow<'a, str>,
    /// Where the member begins in the output.
    start: usize,
}

/// `None` of its functions: not JSON, at `at`.
struct Transcoder<'a, 'o> {
    text: &'a str,
    at: usize,
    out: &'o mut Vec<u8>,
    open: Vec<Open>,
    keys: Vec<Key<'a>>,
}

impl<'a> Transcoder<'a, '_> {
    fn entry(&mut self, time: Timestamp) -> Option<()> {
        encode::write_array_len(self.out, 2).ok()?;
        let (seconds, nanoseconds) = event_time(time);
        encode::write_ext_meta(self.out, EVENT_TIME_BYTES, EVENT_TIME_TYPE).ok()?;
        self.out.extend_from_slice(&seconds.to_be_bytes());
        self.out.extend_from_slice(&nanoseconds.to_be_bytes());
        self.space();
        if self.peek()? != b'{' {
            return None;
        }
        self.value()?;
        self.space();
        (self.at == self.text.len()).then_some(())
    }

    /// One value and all that is in it. Nesting is kept in `open`, never on the stack.
    fn value(&mut self) -> Option<()> {
        loop {
            match self.peek()? {
                open @ (b'{' | b'[') => {
                    if self.open.len() == DEPTH_MAX {
                        let text = self.container_text()?;
                        encode::write_str(self.out, text).ok()?;
                    } else if self.begin(open == b'{')? {
                        continue;
                    }
                }
                b'"' => {
                    let text = self.string()?;
                    encode::write_str(self.out, &text).ok()?;
                }
                b'-' | b'0'..=b'9' => self.number()?,
                b't' => {
                    self.word("true")?;
                    encode::write_bool(self.out, true).ok()?;
                }
                b'f' => {
                    self.word("false")?;
                    encode::write_bool(self.out, false).ok()?;
                }
                b'n' => {
                    self.word("null")?;
                    encode::write_nil(self.out).ok()?;
                }
                _ => return None,
            }
            // A value has ended; so may any number of containers around it.
            loop {
                let Some(container) = self.open.last_mut() else { return Some(()) };
                container.entries += 1;
                let object = container.object;
                self.space();
                let byte = self.peek()?;
                self.at += 1;
                match byte {
                    b',' => {
                        self.space();
                        if object {
                            self.key()?;
                        }
                        break;
                    }
                    b'}' if object => self.end()?,
                    b']' if !object => self.end()?,
                    _ => {
                        self.at -= 1;
                        return None;
                    }
                }
            }
        }
    }

    /// Opens a container. `false`: it was empty and is closed again.
    fn begin(&mut self, object: bool) -> Option<bool> {
        let container = Open { header: self.out.len(), object, entries: 0, first_key: self.keys.len() };
        self.out.extend_from_slice(&[if object { MAP_16 } else { ARRAY_16 }, 0, 0]);
        self.at += 1;
        self.space();
        if self.peek()? == if object { b'}' } else { b']' } {
            self.at += 1;
            return Some(false);
        }
        self.open.push(container);
        if object {
            self.key()?;
        }
        Some(true)
    }

    fn end(&mut self) -> Option<()> {
        let mut container = self.open.pop()?;
        if container.object {
            container.entries -= self.drop_repeated(container.first_key);
            self.keys.truncate(container.first_key);
        }
        let header = container.header;
        match u16::try_from(container.entries) {
            Ok(count) => self.out.get_mut(header + 1..header + 3)?.copy_from_slice(&count.to_be_bytes()),
            Err(_) => {
                let count = u32::try_from(container.entries).ok()?.to_be_bytes();
                let wide = if container.object { MAP_32 } else { ARRAY_32 };
                let [a, b, c, d] = count;
                self.out.splice(header..header + 3, [wide, a, b, c, d]);
            }
        }
        Some(())
    }

    /// Removes every member whose name is repeated later in the object that ends here; returns how many.
    fn drop_repeated(&mut self, first_key: usize) -> usize {
        let keys = self.keys.get(first_key..).unwrap_or_default();
        let repeated: Vec<usize> = if keys.len() <= PAIRWISE_KEYS_MAX {
            let comes_again = |index: usize, key: &Key<'_>| keys.iter().skip(index + 1).any(|k| k.name == key.name);
            keys.iter().enumerate().filter(|(index, key)| comes_again(*index, key)).map(|(index, _)| index).collect()
        } else {
            let last: HashMap<&str, usize> = keys.iter().enumerate().map(|(index, k)| (&*k.name, index)).collect();
            (0..keys.len()).filter(|i| keys.get(*i).is_some_and(|k| last.get(&*k.name) != Some(i))).collect()
        };
        let Some(&first) = repeated.first() else { return 0 };
        // One pass for any number: kept members move down over removed ones.
        let mut to = keys.get(first).map_or(self.out.len(), |key| key.start);
        let mut gone = repeated.iter().peekable();
        for index in first..keys.len() {
            if gone.next_if_eq(&&index).is_some() {
                continue;
            }
            let Some(key) = keys.get(index) else { break };
            let end = keys.get(index + 1).map_or(self.out.len(), |next| next.start);
            self.out.copy_within(key.start..end, to);
            to += end - key.start;
        }
        self.out.truncate(to);
        repeated.len()
    }

    fn key(&mut self) -> Option<()> {
        let start = self.out.len();
        let name = self.string()?;
        encode::write_str(self.out, &name).ok()?;
        self.keys.push(Key { name, start });
        self.space();
        if self.peek()? != b':' {
            return None;
        }
        self.at += 1;
        self.space();
        Some(())
    }

    fn string(&mut self) -> Option<Cow<'a, str>> {
        if self.peek()? != b'"' {
            return None;
        }
        let start = self.at + 1;
        let (end, escaped) = string_end(self.text.as_bytes(), start)?;
        self.at = end + 1;
        let inside = self.text.get(start..end)?;
        Some(if escaped { unescape(inside) } else { Cow::Borrowed(inside) })
    }

    /// The smallest integer form that holds it, a double for fractions and exponents, and the digits as text if neither
    /// can hold it.
    fn number(&mut self) -> Option<()> {
        let rest = self.text.get(self.at..)?;
        let length = rest
            .bytes()
            .position(|b| !matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'))
            .unwrap_or(rest.len());
        let token = rest.get(..length)?;
        let whole = !token.bytes().any(|b| matches!(b, b'.' | b'e' | b'E'));
        if let (true, Ok(number)) = (whole, token.parse::<i64>()) {
            encode::write_sint(self.out, number).ok()?;
        } else if let (true, Ok(number)) = (whole, token.parse::<u64>()) {
            encode::write_uint(self.out, number).ok()?;
        } else {
            let number: f64 = token.parse().ok()?;
            if whole || !number.is_finite() {
                encode::write_str(self.out, token).ok()?;
            } else {
                encode::write_f64(self.out, number).ok()?;
            }
        }
        self.at += length;
        Some(())
    }

    fn word(&mut self, word: &str) -> Option<()> {
        self.text.get(self.at..)?.strip_prefix(word)?;
        self.at += word.len();
        Some(())
    }

    /// The text of the container that begins here, brackets balanced.
    fn container_text(&mut self) -> Option<&'a str> {
        let bytes = self.text.as_bytes();
        let start = self.at;
        let mut depth = 0usize;
        loop {
            match self.peek()? {
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                b'"' => self.at = string_end(bytes, self.at + 1)?.0,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return self.text.get(start..self.at);
            }
        }
    }

    fn space(&mut self) {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        self.at += rest.iter().take_while(|b| matches!(b, b' ' | b'\t' | b'\r' | b'\n')).count();
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }
}

/// The index of the quote that ends the string whose inside begins at `at`, and whether there is an escape in it.
fn string_end(bytes: &[u8], mut at: usize) -> Option<(usize, bool)> {
    let mut escaped = false;
    loop {
        at += memchr::memchr2(b'"', b'\\', bytes.get(at..)?)?;
        if bytes.get(at) == Some(&b'"') {
            return Some((at, escaped));
        }
        escaped = true;
        at += 2;
    }
}

/// Seconds and nanoseconds in the host's form, without times before 1970 or values that would mark a group.
fn event_time(time: Timestamp) -> (u32, u32) {
    let seconds = time.as_second();
    match u32::try_from(seconds.min(SECONDS_MAX)) {
        Ok(seconds) => (seconds, u32::try_from(time.subsec_nanosecond()).unwrap_or(0)),
        Err(_) => (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rmpv::Value;

    use super::*;

    const NOON: &str = "2026-05-01T12:00:00.25Z";

    fn noon() -> Timestamp {
        NOON.parse().unwrap()
    }

    fn decode(bytes: &[u8]) -> Vec<Value> {
        let mut rest = bytes;
        let mut entries = Vec::new();
        while !rest.is_empty() {
            entries.push(rmpv::decode::read_value(&mut rest).unwrap());
        }
        entries
    }

    fn body(json: &str) -> Value {
        let mut out = Vec::new();
        entry(&mut out, noon(), json.as_bytes()).unwrap_or_else(|e| panic!("{json}: {e}"));
        let entries = decode(&out);
        assert_eq!(entries.len(), 1, "{json}");
        entries[0][1].clone()
    }

    fn map<const N: usize>(members: [(&str, Value); N]) -> Value {
        Value::Map(members.into_iter().map(|(key, value)| (key.into(), value)).collect())
    }

    #[test]
    fn values_keep_their_types() {
        let json = r#"{"i":-7,"u":18446744073709551615,"f":1.5,"t":true,"f2":false,"n":null,"s":"é\n\u0041","o":{"a":[1,"2",{}],"e":[]}}"#;
        let inner = map([("a", Value::Array(vec![1.into(), "2".into(), map([])])), ("e", Value::Array(vec![]))]);
        assert_eq!(
            body(json),
            map([
                ("i", (-7).into()),
                ("u", u64::MAX.into()),
                ("f", 1.5.into()),
                ("t", true.into()),
                ("f2", false.into()),
                ("n", Value::Nil),
                ("s", "é\nA".into()),
                ("o", inner),
            ])
        );
    }

    #[test]
    fn a_number_no_type_can_hold_keeps_its_digits() {
        let members = map([("a", "18446744073709551616".into()), ("b", "-9223372036854775809".into())]);
        assert_eq!(body(r#"{"a":18446744073709551616,"b":-9223372036854775809}"#), members);
        assert_eq!(body(r#"{"a":1e999,"b":1e3}"#), map([("a", "1e999".into()), ("b", 1000.0.into())]));
    }

    #[test]
    fn of_a_repeated_key_the_last_is_kept() {
        assert_eq!(body(r#"{"a":1,"b":{"x":1,"x":2},"a":[3]}"#), {
            map([("b", map([("x", 2.into())])), ("a", Value::Array(vec![3.into()]))])
        });
        assert_eq!(body(r#"{"\u0061":1,"a":2}"#), map([("a", 2.into())]));
        let many: Vec<String> = (0..100).map(|n| format!("\"k{}\":{n}", n % 50)).collect();
        let Value::Map(members) = body(&format!("{{{}}}", many.join(","))) else { panic!("not a map") };
        assert_eq!(members.len(), 50);
        assert!(members.iter().zip(50..).all(|((_, value), n)| *value == Value::from(n)));
    }

    #[test]
    fn a_lone_surrogate_does_not_cost_the_record() {
        assert_eq!(body(r#"{"a":"x\ud83d","b":"\ud83d\ude00"}"#), map([("a", "x\u{fffd}".into()), ("b", "😀".into())]));
    }

    #[test]
    fn what_is_nested_too_deep_for_the_host_is_carried_as_text() {
        let nested = |depth: usize| format!("{}\"x\\\"]\"{}", "[".repeat(depth), "]".repeat(depth));
        let depth_of = |mut value: &Value| {
            let mut depth = 0;
            while let Value::Array(items) = value {
                depth += 1;
                value = &items[0];
            }
            (depth, value.clone())
        };
        let reach = DEPTH_MAX - 1;
        let fits = body(&format!("{{\"a\":{}}}", nested(reach)));
        assert_eq!(depth_of(&fits["a"]), (reach, "x\"]".into()));
        let too_deep = body(&format!("{{\"a\":{},\"b\":1}}", nested(reach + 3)));
        assert_eq!(depth_of(&too_deep["a"]), (reach, nested(3).as_str().into()));
        assert_eq!(too_deep["b"], 1.into());
        // This uses no stack.
        body(&format!("{{\"a\":{}}}", nested(1_000_000)));
    }

    #[test]
    fn more_entries_than_sixteen_bits_count_are_kept() {
        let items = vec!["1"; 70_000].join(",");
        let members: Vec<String> = (0..70_000).map(|n| format!("\"{n}\":{n}")).collect();
        let value = body(&format!("{{\"a\":[{items}],\"o\":{{{}}},\"z\":1}}", members.join(",")));
        assert_eq!(value["a"].as_array().unwrap().len(), 70_000);
        assert_eq!(value["o"].as_map().unwrap().len(), 70_000);
        assert_eq!(value["z"], 1.into());
    }

    #[test]
    fn times_the_host_would_misread_are_not_written() {
        for (time, expected) in [
            (NOON, (1_777_636_800, 250_000_000)),
            ("1969-12-31T23:59:59Z", (0, 0)),
            ("2106-02-07T06:28:15Z", (u32::MAX - 2, 0)),
            ("9999-01-01T00:00:00Z", (u32::MAX - 2, 0)),
        ] {
            assert_eq!(event_time(time.parse().unwrap()), expected, "{time}");
        }
        let mut out = Vec::new();
        entry(&mut out, noon(), b"{}").unwrap();
        assert_eq!(out[..2], [0x92, 0xd7]);
        assert_eq!(out[2..11], [0, 0x69, 0xf4, 0x95, 0xc0, 0x0e, 0xe6, 0xb2, 0x80]);
    }

    #[test]
    fn what_is_not_an_object_leaves_the_buffer_as_it_was() {
        for json in [
            "",
            "[]",
            "1",
            "{",
            "{\"a\"",
            "{\"a\":}",
            "{\"a\":1,}",
            "{\"a\":1]",
            "{\"a\":tru}",
            "{\"a\":1}x",
            "{\"a\":\"",
            "{\"a\":\"\\",
            "{\"a\":-}",
            "{1:2}",
            "{\"a\":[1,]}",
        ] {
            let mut out = vec![1, 2, 3];
            assert!(entry(&mut out, noon(), json.as_bytes()).is_err(), "{json}");
            assert_eq!(out, [1, 2, 3], "{json}");
        }
        assert!(entry(&mut Vec::new(), noon(), b"{\"a\":\"\xff\"}").is_err());
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<u64>().prop_map(Into::into),
            (-1e300..1e300f64).prop_map(Into::into),
            any::<String>().prop_map(Into::into),
        ];
        leaf.prop_recursive(8, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Into::into),
                prop::collection::hash_map(any::<String>(), inner, 0..8)
                    .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
            ]
        })
    }

    fn expected(value: &serde_json::Value) -> Value {
        match value {
            serde_json::Value::Null => Value::Nil,
            serde_json::Value::Bool(b) => (*b).into(),
            serde_json::Value::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(n), _) => n.into(),
                (None, Some(n)) => n.into(),
                (None, None) => n.as_f64().unwrap().into(),
            },
            serde_json::Value::String(s) => s.as_str().into(),
            serde_json::Value::Array(items) => Value::Array(items.iter().map(expected).collect()),
            serde_json::Value::Object(members) => {
                Value::Map(members.iter().map(|(k, v)| (k.as_str().into(), expected(v))).collect())
            }
        }
    }

    proptest! {
        #[test]
        fn any_object_comes_back_as_it_was(value in json(), pretty in any::<bool>()) {
            let object = serde_json::json!({ "v": value });
            let text = if pretty { serde_json::to_vec_pretty(&object) } else { serde_json::to_vec(&object) }.unwrap();
            let mut out = Vec::new();
            entry(&mut out, noon(), &text).unwrap();
            let entries = decode(&out);
            prop_assert_eq!(&entries[0][1], &expected(&object));
        }

        #[test]
        fn no_bytes_spoil_a_buffer(bytes in prop::collection::vec(prop_oneof![
            any::<u8>(), Just(b'{'), Just(b'}'), Just(b'['), Just(b']'), Just(b'"'), Just(b':'), Just(b','), Just(b'1'),
        ], 0..64)) {
            let mut out = Vec::new();
            let _ = entry(&mut out, noon(), &bytes);
            let _ = decode(&out);
        }
    }
}
