//! The JSON support that audit events need: a validating scanner that builds no tree, does not recurse and does not
//! copy.
//!
//! Why not serde: an event's members are needed as the very bytes received (they go into the record again), nested
//! containers are looked into only when a rule asks, and nesting comes from the network, so depth must cost one bit
//! and no stack. Grammar: RFC 8259; a surrogate escape without its partner is let through, as the grammar does.
//!
//! A *token* here is the text of one JSON value without surrounding white space, `"…"` included for strings. Every
//! function that takes a token accepts any text and returns `None` or nothing if the text does not have the expected
//! form.

use std::borrow::Cow;
use std::ops::Range;

use wide::u8x16;

use super::chunk::{CHUNK, CHUNK_BITS, Specials, escaped};

/// The bytes are not JSON of the expected form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Properties of a valid object that the scanner has read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    /// Whether CR or LF occurs between tokens (inside strings the grammar forbids them).
    pub breaks: bool,
    /// Where the object ends: the index after its `}`.
    pub end: usize,
}

/// Scans one object that begins at the start of `text` (after white space) and passes every top-level member to
/// `member`: the key's token without its quotes, still escaped, and the value's token.
pub(crate) fn scan_object<'a>(text: &'a str, mut member: impl FnMut(&'a str, &'a str)) -> Result<Layout, Malformed> {
    scan_bytes(text.as_bytes(), |key, value| {
        // Both end at a quote, a bracket or a byte of ASCII, so neither cuts a character.
        member(text.get(key).unwrap_or_default(), text.get(value).unwrap_or_default());
    })
}

/// As [`scan_object`], over bytes that may not be UTF-8: `member` gets the positions of key and value.
pub(crate) fn scan_bytes(
    bytes: &[u8],
    mut member: impl FnMut(Range<usize>, Range<usize>),
) -> Result<Layout, Malformed> {
    let mut scanner = Scanner { bytes, breaks: false };
    let start = scanner.space(0);
    scanner.breaks = false;
    let end = scanner.object(start, &mut member).ok_or(Malformed)?;
    Ok(Layout { breaks: scanner.breaks, end })
}

/// Calls `member` for each member of an object token until it returns `false`.
pub(crate) fn members<'a>(token: &'a str, mut member: impl FnMut(Cow<'a, str>, &'a str)) {
    let _ = scan_object(token, |key, value| member(unescape(key), value));
}

/// The value of an object's member, found without regard to case; of repeated keys the last. `None` also for `null`.
pub(crate) fn get<'a>(token: &'a str, name: &str) -> Option<&'a str> {
    let mut found = None;
    members(token, |key, value| {
        if key.eq_ignore_ascii_case(name) {
            found = Some(value);
        }
    });
    found.filter(|value| *value != "null")
}

/// Calls `element` for each element of an array token.
pub(crate) fn elements<'a>(token: &'a str, mut element: impl FnMut(&'a str)) {
    let mut scanner = Scanner { bytes: token.as_bytes(), breaks: false };
    let mut at = scanner.space(0);
    if scanner.bytes.get(at) != Some(&b'[') {
        return;
    }
    at = scanner.space(at + 1);
    while let Some(end) = scanner.value(at) {
        let Some(value) = token.get(at..end) else { return };
        element(value);
        at = scanner.space(end);
        if scanner.bytes.get(at) != Some(&b',') {
            return;
        }
        at = scanner.space(at + 1);
    }
}

/// Calls `member` for each member of each object of an array token, with the object's index and its key still
/// escaped, and `other` for each element that is no object: one pass where [`elements`] and [`members`] take two.
pub(crate) fn objects<'a>(
    token: &'a str,
    mut member: impl FnMut(usize, &'a str, &'a str),
    mut other: impl FnMut(usize, &'a str),
) {
    let mut scanner = Scanner { bytes: token.as_bytes(), breaks: false };
    let mut at = scanner.space(0);
    if scanner.bytes.get(at) != Some(&b'[') {
        return;
    }
    at = scanner.space(at + 1);
    for index in 0.. {
        let end = match scanner.bytes.get(at) {
            Some(b'{') => scanner.object(at, &mut |key, value| {
                member(index, token.get(key).unwrap_or_default(), token.get(value).unwrap_or_default());
            }),
            _ => scanner.value(at),
        };
        let Some(end) = end else { return };
        if scanner.bytes.get(at) != Some(&b'{') {
            other(index, token.get(at..end).unwrap_or_default());
        }
        at = scanner.space(end);
        if scanner.bytes.get(at) != Some(&b',') {
            return;
        }
        at = scanner.space(at + 1);
    }
}

/// Whether a text is one JSON value, white space around it allowed.
pub(crate) fn is_valid(text: &str) -> bool {
    let mut scanner = Scanner { bytes: text.as_bytes(), breaks: false };
    let start = scanner.space(0);
    scanner.value(start).is_some_and(|end| scanner.space(end) == text.len())
}

/// Whether the token is a string.
pub(crate) fn is_string(token: &str) -> bool {
    token.as_bytes().first() == Some(&b'"')
}

/// Whether the token is a number.
pub(crate) fn is_number(token: &str) -> bool {
    matches!(token.as_bytes().first(), Some(b'-' | b'0'..=b'9'))
}

/// The inside of a string token, still escaped.
pub(crate) fn inner(token: &str) -> Option<&str> {
    // By bytes: for one character the searching methods of `str` cost a call of `memcmp` each.
    match token.as_bytes() {
        [b'"', .., b'"'] => token.get(1..token.len() - 1),
        _ => None,
    }
}

/// The text of a scalar: a string unescaped, a number or boolean as written. `None` for `null` and containers.
pub(crate) fn scalar(token: &str) -> Option<Cow<'_, str>> {
    match token.as_bytes().first()? {
        b'"' => inner(token).map(unescape),
        b'{' | b'[' | b'n' => None,
        _ => Some(Cow::Borrowed(token)),
    }
}

/// An integer, parsed leniently: `20`, `"20"`, `" 20 "`, `1.0`, `"1e9"`. `None` if it is not an integer or does not
/// fit.
pub(crate) fn integer(token: &str) -> Option<i64> {
    let text = scalar(token)?;
    let text = text.trim();
    if let Ok(number) = text.parse::<i64>() {
        return Some(number);
    }
    // Up to 2^53 a whole float is exactly the integer; beyond that, digits were lost.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if !text.starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
        return None;
    }
    let float = text.parse::<f64>().ok()?;
    (float.fract() == 0.0 && float.abs() <= EXACT).then_some(float as i64)
}

/// Undoes the escapes of a JSON string's inside. A surrogate without its partner becomes U+FFFD.
pub fn unescape(inner: &str) -> Cow<'_, str> {
    let Some(first) = memchr::memchr(b'\\', inner.as_bytes()) else { return Cow::Borrowed(inner) };
    let mut text = String::with_capacity(inner.len());
    let mut rest = inner;
    let mut next = Some(first);
    while let Some(at) = next {
        let (before, escape) = rest.split_at(at);
        text.push_str(before);
        let (c, used) = unescape_one(escape.as_bytes());
        text.push(c);
        rest = escape.get(used..).unwrap_or_default();
        next = next_backslash(rest.as_bytes());
    }
    text.push_str(rest);
    Cow::Owned(text)
}

/// Escapes usually occur close together (JSON in a string has one every few bytes), and the set-up of a search for long
/// distances would cost more than it saves.
fn next_backslash(bytes: &[u8]) -> Option<usize> {
    const NEAR: usize = 16;
    let near = bytes.get(..NEAR).unwrap_or(bytes);
    if let Some(at) = near.iter().position(|byte| *byte == b'\\') {
        return Some(at);
    }
    let far = bytes.get(NEAR..)?;
    memchr::memchr(b'\\', far).map(|at| at + NEAR)
}

/// One escape at the start of `escape` and how many bytes it takes.
fn unescape_one(escape: &[u8]) -> (char, usize) {
    let plain = match escape.get(1) {
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => return unescape_unit(escape),
        Some(c @ (b'"' | b'\\' | b'/')) => char::from(*c),
        _ => return (char::REPLACEMENT_CHARACTER, 1),
    };
    (plain, 2)
}

fn unescape_unit(escape: &[u8]) -> (char, usize) {
    let unit = |at: usize| -> Option<u32> {
        let digits = escape.get(at..at + 6)?.strip_prefix(b"\\u")?;
        digits.iter().try_fold(0, |sum, digit| Some(sum * 16 + char::from(*digit).to_digit(16)?))
    };
    let Some(first) = unit(0) else { return (char::REPLACEMENT_CHARACTER, 1) };
    if let Some(c) = char::from_u32(first) {
        return (c, 6);
    }
    let pair = match (first, unit(6)) {
        (0xD800..=0xDBFF, Some(second @ 0xDC00..=0xDFFF)) => {
            char::from_u32(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00))
        }
        _ => None,
    };
    pair.map_or((char::REPLACEMENT_CHARACTER, 6), |c| (c, 12))
}

/// Whether a text is only white space. Nearly every text begins with another character.
pub(crate) fn is_blank(text: &str) -> bool {
    match text.as_bytes().first() {
        None => true,
        Some(b'!'..=b'~') => false,
        Some(_) => text.trim().is_empty(),
    }
}

/// Appends an integer. The formatter of the standard library takes several times as long.
pub(crate) fn push_integer(out: &mut Vec<u8>, number: i64) {
    const DIGITS_MAX: usize = 20;
    let mut digits = [0; DIGITS_MAX];
    let mut left = number.unsigned_abs();
    let mut at = DIGITS_MAX;
    loop {
        at -= 1;
        if let Some(digit) = digits.get_mut(at) {
            *digit = b'0' + (left % 10) as u8;
        }
        left /= 10;
        if left == 0 || at == 0 {
            break;
        }
    }
    if number < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(digits.get(at..).unwrap_or_default());
}

/// Appends `text` as a JSON string.
pub(crate) fn push_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    push_escaped(out, text);
    out.push(b'"');
}

/// Appends `text` as the inside of a JSON string.
pub(crate) fn push_escaped(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    // JSON in a string has a quote to escape every few bytes; growing step by step costs more than reserving the space.
    out.reserve(bytes.len() + bytes.len() / 8);
    let mut start = 0;
    loop {
        let at = special(bytes, start);
        out.extend_from_slice(bytes.get(start..at).unwrap_or_default());
        let Some(&byte) = bytes.get(at) else { return };
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                let hex = |nibble: u8| HEX.get(usize::from(nibble)).copied().unwrap_or(b'0');
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', hex(byte >> 4), hex(byte & 15)]);
            }
        }
        start = at + 1;
    }
}

/// Appends a valid JSON text without the CR and LF between its tokens; blanks and tabs stay.
pub(crate) fn push_on_one_line(out: &mut Vec<u8>, text: &str) {
    // CR and LF cannot occur inside a valid string, so every one of them is between tokens.
    let bytes = text.as_bytes();
    let mut start = 0;
    for at in memchr::memchr2_iter(b'\r', b'\n', bytes) {
        out.extend_from_slice(bytes.get(start..at).unwrap_or_default());
        start = at + 1;
    }
    out.extend_from_slice(bytes.get(start..).unwrap_or_default());
}

/// A token without the white space between its inner tokens. The feed does not write such white space, and it has no
/// meaning.
pub(crate) fn compact(token: &str) -> Cow<'_, str> {
    let bytes = token.as_bytes();
    let (mut out, mut start, mut at) = (String::new(), 0, 0);
    while let Some(byte) = bytes.get(at) {
        let end = match byte {
            b'"' => {
                let scanner = Scanner { bytes, breaks: false };
                match scanner.string(at) {
                    Some(end) => end,
                    None => return Cow::Borrowed(token),
                }
            }
            b' ' | b'\t' | b'\r' | b'\n' => {
                out.push_str(token.get(start..at).unwrap_or_default());
                start = at + 1;
                start
            }
            _ => at + 1,
        };
        at = end;
    }
    if start == 0 {
        return Cow::Borrowed(token);
    }
    out.push_str(token.get(start..).unwrap_or_default());
    Cow::Owned(out)
}

struct Scanner<'a> {
    bytes: &'a [u8],
    breaks: bool,
}

impl Scanner<'_> {
    #[inline]
    fn object(&mut self, start: usize, member: &mut impl FnMut(Range<usize>, Range<usize>)) -> Option<usize> {
        if self.bytes.get(start) != Some(&b'{') {
            return None;
        }
        let mut at = self.space(start + 1);
        if self.bytes.get(at) == Some(&b'}') {
            return Some(at + 1);
        }
        loop {
            let key_end = self.string(at)?;
            let key = at + 1..key_end - 1;
            at = self.colon(key_end)?;
            let end = self.value(at)?;
            member(key, at..end);
            at = self.space(end);
            match self.bytes.get(at)? {
                b',' => at = self.space(at + 1),
                b'}' => return Some(at + 1),
                _ => return None,
            }
        }
    }

    /// The index after the value that begins at `at`.
    fn value(&mut self, mut at: usize) -> Option<usize> {
        let mut nesting = Nesting::default();
        loop {
            match *self.bytes.get(at)? {
                open @ (b'{' | b'[') => {
                    let object = open == b'{';
                    at = self.space(at + 1);
                    if *self.bytes.get(at)? == if object { b'}' } else { b']' } {
                        at += 1;
                    } else {
                        nesting.push(object);
                        if object {
                            at = self.key(at)?;
                        }
                        continue;
                    }
                }
                b'"' => at = self.string(at)?,
                b'-' | b'0'..=b'9' => at = self.number(at)?,
                b't' => at = self.word(at, b"true")?,
                b'f' => at = self.word(at, b"false")?,
                b'n' => at = self.word(at, b"null")?,
                _ => return None,
            }
            // A value ends at `at`; any number of containers around it may end there, too.
            loop {
                let Some(object) = nesting.innermost_is_object() else { return Some(at) };
                at = self.space(at);
                match *self.bytes.get(at)? {
                    b',' => {
                        at = self.space(at + 1);
                        if object {
                            at = self.key(at)?;
                        }
                        break;
                    }
                    b'}' if object => nesting.pop(),
                    b']' if !object => nesting.pop(),
                    _ => return None,
                }
                at += 1;
            }
        }
    }

    /// A key and its colon; the index where the member's value begins.
    fn key(&mut self, at: usize) -> Option<usize> {
        let end = self.string(at)?;
        self.colon(end)
    }

    fn colon(&mut self, at: usize) -> Option<usize> {
        let at = self.space(at);
        if *self.bytes.get(at)? == b':' { Some(self.space(at + 1)) } else { None }
    }

    fn string(&self, at: usize) -> Option<usize> {
        if *self.bytes.get(at)? != b'"' {
            return None;
        }
        let at = special(self.bytes, at + 1);
        match *self.bytes.get(at)? {
            b'"' => Some(at + 1),
            b'\\' => self.string_with_escapes(at),
            _ => None,
        }
    }

    /// The index after a string's end quote, from its first escape on. JSON in a string has an escape every few bytes, so
    /// each chunk is looked at once for all of them.
    fn string_with_escapes(&self, mut at: usize) -> Option<usize> {
        while let Some(chunk) = self.bytes.get(at..).and_then(|rest| rest.first_chunk::<CHUNK>()) {
            let Specials { quotes, backslashes, controls } = Specials::of(chunk);
            let escaped = escaped(backslashes);
            // Others than quotes and backslashes are few.
            let ends = (quotes | controls) & !escaped;
            let before_end = (ends & ends.wrapping_neg()).wrapping_sub(1);
            let mut others = escaped & !(quotes | backslashes) & before_end & CHUNK_BITS;
            while others != 0 {
                self.escape(at + others.trailing_zeros() as usize - 1)?;
                others &= others - 1;
            }
            if ends != 0 {
                let end = at + ends.trailing_zeros() as usize;
                return (self.bytes.get(end) == Some(&b'"')).then_some(end + 1);
            }
            at += CHUNK;
            // The last byte is a backslash that escapes the next chunk's first.
            if escaped >> CHUNK & 1 == 1 {
                at = self.escape(at - 1)?;
            }
        }
        loop {
            match *self.bytes.get(at)? {
                b'"' => return Some(at + 1),
                b'\\' => at = self.escape(at)?,
                0..=0x1F => return None,
                _ => at += 1,
            }
        }
    }

    /// The index after the escape at `at`.
    #[inline(always)]
    fn escape(&self, at: usize) -> Option<usize> {
        match *self.bytes.get(at + 1)? {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(at + 2),
            b'u' if self.bytes.get(at + 2..at + 6)?.iter().all(u8::is_ascii_hexdigit) => Some(at + 6),
            _ => None,
        }
    }

    fn number(&self, mut at: usize) -> Option<usize> {
        if self.bytes.get(at) == Some(&b'-') {
            at += 1;
        }
        at = if self.bytes.get(at) == Some(&b'0') { at + 1 } else { self.digits(at)? };
        if self.bytes.get(at) == Some(&b'.') {
            at = self.digits(at + 1)?;
        }
        if let Some(b'e' | b'E') = self.bytes.get(at) {
            at += 1;
            if let Some(b'+' | b'-') = self.bytes.get(at) {
                at += 1;
            }
            at = self.digits(at)?;
        }
        Some(at)
    }

    fn digits(&self, start: usize) -> Option<usize> {
        let mut at = start;
        while self.bytes.get(at).is_some_and(u8::is_ascii_digit) {
            at += 1;
        }
        (at > start).then_some(at)
    }

    fn word(&self, at: usize, word: &[u8]) -> Option<usize> {
        let end = at + word.len();
        (self.bytes.get(at..end)? == word).then_some(end)
    }

    #[inline]
    fn space(&mut self, mut at: usize) -> usize {
        loop {
            match self.bytes.get(at) {
                Some(b' ' | b'\t') => at += 1,
                Some(b'\r' | b'\n') => {
                    self.breaks = true;
                    at += 1;
                }
                _ => return at,
            }
        }
    }
}

/// The index of the first quote, backslash or control character at or after `at`; the length when there is none.
#[inline]
fn special(bytes: &[u8], mut at: usize) -> usize {
    let (controls, quotes, backslashes) = (u8x16::splat(0x1F), u8x16::splat(b'"'), u8x16::splat(b'\\'));
    while let Some(chunk) = bytes.get(at..).and_then(|rest| rest.first_chunk::<CHUNK>()) {
        let chunk = u8x16::new(*chunk);
        let control = chunk.min(controls).simd_eq(chunk);
        let hits = (chunk.simd_eq(quotes) | chunk.simd_eq(backslashes) | control).to_bitmask();
        if hits != 0 {
            return at + hits.trailing_zeros() as usize;
        }
        at += CHUNK;
    }
    while bytes.get(at).is_some_and(|byte| !matches!(byte, b'"' | b'\\' | 0..=0x1F)) {
        at += 1;
    }
    at
}

/// The containers open around a value, one bit each: set for an object.
#[derive(Default)]
struct Nesting {
    depth: usize,
    innermost: u64,
    outer: Vec<u64>,
}

impl Nesting {
    fn push(&mut self, object: bool) {
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.outer.push(self.innermost);
        }
        self.innermost = self.innermost << 1 | u64::from(object);
        self.depth += 1;
    }

    fn pop(&mut self) {
        self.innermost >>= 1;
        self.depth = self.depth.saturating_sub(1);
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.innermost = self.outer.pop().unwrap_or_default();
        }
    }

    fn innermost_is_object(&self) -> Option<bool> {
        (self.depth > 0).then_some(self.innermost & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn valid(text: &str) -> bool {
        scan_object(text, |_, _| {}).is_ok_and(|layout| text[layout.end..].trim().is_empty())
    }

    #[test]
    fn integers_are_written_as_the_standard_library_does() {
        for number in [0, 1, -1, 9, 10, 99, 100, 65_535, i64::MAX, i64::MIN] {
            let mut out = Vec::new();
            push_integer(&mut out, number);
            assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
        }
        assert!(is_blank("") && is_blank(" \u{a0}\t") && !is_blank(" x") && !is_blank("\u{e9}"));
    }

    #[test]
    fn top_level_members_come_in_order_as_tokens() {
        let mut seen = Vec::new();
        scan_object(r#" {"a" : 1 , "b\u0041":"x\"y", "c":{"d":[1,{}]}, "a":null}"#, |k, v| seen.push((k, v))).unwrap();
        assert_eq!(seen, [("a", "1"), ("b\\u0041", r#""x\"y""#), ("c", r#"{"d":[1,{}]}"#), ("a", "null")]);
    }

    #[test]
    fn depth_costs_no_stack() {
        let deep = format!(r#"{{"a":{}{}}}"#, r#"[{"b":"#.repeat(200_000), "1".to_owned() + &"}]".repeat(200_000));
        assert!(valid(&deep));
        assert!(!valid(&deep.replacen("}]", "]}", 1)));
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for bad in [
            "",
            "[]",
            "1",
            "{",
            "{}x",
            "{]",
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{"a":1,}"#,
            r#"{,}"#,
            r#"{a:1}"#,
            r#"{"a":01}"#,
            r#"{"a":1.}"#,
            r#"{"a":-}"#,
            r#"{"a":1e}"#,
            r#"{"a":tru}"#,
            r#"{"a":"\x"}"#,
            r#"{"a":"\u12"}"#,
            "{\"a\":\"\n\"}",
            r#"{"a":[1 2]}"#,
            r#"{"a":[1,]}"#,
            r#"{"a":{"b":1]}"#,
        ] {
            assert!(!valid(bad), "{bad}");
        }
    }

    #[test]
    fn integers_are_read_leniently_and_never_wrongly() {
        for (token, expected) in [
            ("20", Some(20)),
            ("\"20\"", Some(20)),
            ("\" 20 \"", Some(20)),
            ("1.0", Some(1)),
            ("\"1e9\"", Some(1_000_000_000)),
            ("-1", Some(-1)),
            ("1.5", None),
            ("1e400", None),
            ("\"inf\"", None),
            ("\"\"", None),
            ("null", None),
            ("[1]", None),
        ] {
            assert_eq!(integer(token), expected, "{token}");
        }
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(unescape(r#"a\"\\\/\b\f\n\r\tz\u00e9\ud83d\ude00"#), "a\"\\/\u{8}\u{c}\n\r\tz\u{e9}\u{1f600}");
        assert_eq!(unescape(r"\ud83d\u0041\ude00"), "\u{fffd}A\u{fffd}");
    }

    /// The inside of a string, of several chunks, with escapes of every kind, good and bad, at every place.
    fn with_escapes() -> impl Strategy<Value = String> {
        let escape = proptest::sample::select(vec![
            r#"\""#,
            r"\\",
            r"\n",
            r"\/",
            r"\u00e9",
            r"\ud83d\ude00",
            r"\ud83d",
            r"\u00",
            r"\x",
            r"\",
            "\n",
            "\"",
        ]);
        let part = prop_oneof![4 => proptest::sample::select(vec![r#"\""#, r"\\", r"\r\n"]), 1 => escape];
        let part = prop_oneof![part.prop_map(str::to_owned), r"[ !#-\[\]-~é]{0,20}"];
        proptest::collection::vec(part, 0..20).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn a_written_string_reads_back(text in any::<String>()) {
            let mut out = Vec::new();
            push_string(&mut out, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text.clone());
            let token = String::from_utf8(out).unwrap();
            prop_assert_eq!(scalar(&token).unwrap(), text);
        }

        #[test]
        fn the_scanner_agrees_with_serde(text in r#"\{"[a"\\]{0,3}":( |\n)?[\[{"\\0-9.eE+,:a\]}tru-]{0,12}( |\r)?\}"#) {
            let expected = serde_json::from_str::<std::collections::HashMap<String, &serde_json::value::RawValue>>(&text);
            prop_assert_eq!(valid(&text), expected.is_ok(), "{}", text);
        }

        #[test]
        fn the_scanner_agrees_with_serde_on_long_strings(inner in with_escapes()) {
            let text = format!("{{\"a\":\"{inner}\"}}");
            let expected = serde_json::from_str::<std::collections::HashMap<String, &serde_json::value::RawValue>>(&text);
            prop_assert_eq!(valid(&text), expected.is_ok(), "{}", text);
        }

        #[test]
        fn escapes_are_undone_as_one_by_one(inner in with_escapes()) {
            let (mut expected, mut rest) = (String::new(), inner.as_str());
            while let Some(c) = rest.chars().next() {
                let (c, used) = if c == '\\' { unescape_one(rest.as_bytes()) } else { (c, c.len_utf8()) };
                expected.push(c);
                rest = &rest[used..];
            }
            prop_assert_eq!(unescape(&inner), expected);
        }

        #[test]
        fn nothing_panics(text in any::<String>()) {
            let _ = scan_object(&text, |_, _| {});
            elements(&text, |_| {});
            let _ = (integer(&text), unescape(&text));
        }
    }
}
