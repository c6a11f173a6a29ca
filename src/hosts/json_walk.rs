//! One pass over a JSON text that calls a visitor for each token: for encoders into other formats.
//!
//! Knows JSON and no other format. The nesting it descends into is bounded, so that no record can exhaust the stack
//! here or the parser of a receiver: deeper values are passed on as text.

use std::borrow::Cow;

use crate::normalise::json::unescape;

/// The depth to which values are visited, the record itself being 1. A deeper object or array becomes a string that
/// holds its JSON. msgpack-c, with which Fluent Bit reads, stops at 32 levels with its own envelope counted, and prost,
/// with which Vector reads OTLP, at 100 messages, of which each level of JSON takes three.
pub(crate) const DEPTH_MAX: usize = 24;

/// A JSON number, in the narrowest type that holds it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Number<'a> {
    /// An integer that fits.
    Int(i64),
    /// A larger positive integer that fits.
    UInt(u64),
    /// A number with a fraction or an exponent.
    Float(f64),
    /// A number that fits none of them (more digits than 64 bits hold), as written.
    Text(&'a str),
}

/// The callbacks of [`walk`], called in the order of the text.
pub(crate) trait Visit {
    /// `{`
    fn begin_object(&mut self);
    /// A member's name; its value follows.
    fn key(&mut self, key: &str);
    /// `}`
    fn end_object(&mut self);
    /// `[`
    fn begin_array(&mut self);
    /// `]`
    fn end_array(&mut self);
    /// A string, unescaped; a surrogate without its partner has become U+FFFD.
    fn string(&mut self, text: &str);
    /// A number.
    fn number(&mut self, number: Number<'_>);
    /// `true`, `false`
    fn bool(&mut self, value: bool);
    /// `null`
    fn null(&mut self);
}

/// The text is not one JSON object in UTF-8. The visitor's data is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the record is not one JSON object")]
pub(crate) struct NotAnObject;

/// Visits one JSON object.
///
/// # Errors
/// The text is anything else.
pub(crate) fn walk(json: &[u8], visitor: &mut impl Visit) -> Result<(), NotAnObject> {
    let text = std::str::from_utf8(json).map_err(|_| NotAnObject)?;
    let mut walker = Walker { text, at: 0 };
    walker.blanks();
    if walker.peek() != Some(b'{') {
        return Err(NotAnObject);
    }
    walker.value(visitor, 1)?;
    walker.blanks();
    if walker.at == text.len() { Ok(()) } else { Err(NotAnObject) }
}

struct Walker<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Walker<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn expect(&mut self, word: &str) -> Result<(), NotAnObject> {
        match self.text.get(self.at..).is_some_and(|rest| rest.starts_with(word)) {
            true => {
                self.at += word.len();
                Ok(())
            }
            false => Err(NotAnObject),
        }
    }

    /// One value; `depth` counts the objects and arrays it would open, itself included.
    fn value(&mut self, visitor: &mut impl Visit, depth: usize) -> Result<(), NotAnObject> {
        match self.peek() {
            Some(b'{' | b'[') if depth > DEPTH_MAX => visitor.string(self.skip_nested()?),
            Some(b'{') => self.object(visitor, depth)?,
            Some(b'[') => self.array(visitor, depth)?,
            Some(b'"') => visitor.string(&self.string()?),
            Some(b't') => {
                self.expect("true")?;
                visitor.bool(true);
            }
            Some(b'f') => {
                self.expect("false")?;
                visitor.bool(false);
            }
            Some(b'n') => {
                self.expect("null")?;
                visitor.null();
            }
            Some(b'-' | b'0'..=b'9') => visitor.number(self.number()?),
            _ => return Err(NotAnObject),
        }
        Ok(())
    }

    fn object(&mut self, visitor: &mut impl Visit, depth: usize) -> Result<(), NotAnObject> {
        self.at += 1;
        visitor.begin_object();
        self.blanks();
        if self.peek() == Some(b'}') {
            self.at += 1;
            visitor.end_object();
            return Ok(());
        }
        loop {
            self.blanks();
            if self.peek() != Some(b'"') {
                return Err(NotAnObject);
            }
            visitor.key(&self.string()?);
            self.blanks();
            self.expect(":")?;
            self.blanks();
            self.value(visitor, depth + 1)?;
            self.blanks();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => break,
                _ => return Err(NotAnObject),
            }
        }
        self.at += 1;
        visitor.end_object();
        Ok(())
    }

    fn array(&mut self, visitor: &mut impl Visit, depth: usize) -> Result<(), NotAnObject> {
        self.at += 1;
        visitor.begin_array();
        self.blanks();
        if self.peek() == Some(b']') {
            self.at += 1;
            visitor.end_array();
            return Ok(());
        }
        loop {
            self.blanks();
            self.value(visitor, depth + 1)?;
            self.blanks();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => break,
                _ => return Err(NotAnObject),
            }
        }
        self.at += 1;
        visitor.end_array();
        Ok(())
    }

    /// The string at hand, whose opening quote was seen.
    fn string(&mut self) -> Result<Cow<'a, str>, NotAnObject> {
        let start = self.at + 1;
        self.skip_string()?;
        let inner = self.text.get(start..self.at - 1).ok_or(NotAnObject)?;
        Ok(unescape(inner))
    }

    fn skip_string(&mut self) -> Result<(), NotAnObject> {
        self.at += 1;
        loop {
            let rest = self.text.as_bytes().get(self.at..).ok_or(NotAnObject)?;
            let found = memchr::memchr2(b'"', b'\\', rest).ok_or(NotAnObject)?;
            match rest.get(found) {
                Some(b'"') => {
                    self.at += found + 1;
                    return Ok(());
                }
                // An escaped character never ends the string.
                _ => self.at += found + 2,
            }
        }
    }

    /// The text of an object or array, found without descending.
    fn skip_nested(&mut self) -> Result<&'a str, NotAnObject> {
        let start = self.at;
        let mut open = 0_usize;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.skip_string()?;
                    continue;
                }
                Some(b'{' | b'[') => open += 1,
                Some(b'}' | b']') => open -= 1,
                Some(_) => {}
                None => return Err(NotAnObject),
            }
            self.at += 1;
            if open == 0 {
                return self.text.get(start..self.at).ok_or(NotAnObject);
            }
        }
    }

    fn number(&mut self) -> Result<Number<'a>, NotAnObject> {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        let length = rest
            .iter()
            .position(|b| !matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'))
            .unwrap_or(rest.len());
        let token = self.text.get(self.at..self.at + length).ok_or(NotAnObject)?;
        self.at += length;
        if !token.bytes().any(|b| matches!(b, b'.' | b'e' | b'E')) {
            if let Ok(n) = token.parse() {
                return Ok(Number::Int(n));
            }
            if let Ok(n) = token.parse() {
                return Ok(Number::UInt(n));
            }
            let digits = token.strip_prefix('-').unwrap_or(token);
            let is_integer = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            return if is_integer { Ok(Number::Text(token)) } else { Err(NotAnObject) };
        }
        match token.parse::<f64>() {
            Ok(n) if n.is_finite() => Ok(Number::Float(n)),
            Ok(_) => Ok(Number::Text(token)),
            Err(_) => Err(NotAnObject),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    /// Writes its calls as a line of text.
    #[derive(Default)]
    struct Tale(String);

    impl Visit for Tale {
        fn begin_object(&mut self) {
            self.0.push_str("{ ");
        }
        fn key(&mut self, key: &str) {
            let _ = write!(self.0, "{key:?}: ");
        }
        fn end_object(&mut self) {
            self.0.push_str("} ");
        }
        fn begin_array(&mut self) {
            self.0.push_str("[ ");
        }
        fn end_array(&mut self) {
            self.0.push_str("] ");
        }
        fn string(&mut self, text: &str) {
            let _ = write!(self.0, "{text:?} ");
        }
        fn number(&mut self, number: Number<'_>) {
            let _ = write!(self.0, "{number:?} ");
        }
        fn bool(&mut self, value: bool) {
            let _ = write!(self.0, "{value} ");
        }
        fn null(&mut self) {
            self.0.push_str("null ");
        }
    }

    fn visited(json: &str) -> Result<String, NotAnObject> {
        let mut tale = Tale::default();
        walk(json.as_bytes(), &mut tale)?;
        Ok(tale.0.trim_end().to_owned())
    }

    #[test]
    fn every_kind_of_value_is_told_with_its_type() {
        let json = r#" {"a":[1,-2,1.5,18446744073709551615,123456789012345678901,1e400],"b":{"c":null,"d":[],"e":{}},"f":true,"\u00e9":"x\n\ud800"} "#;
        expect_test::expect![[r#"{ "a": [ Int(1) Int(-2) Float(1.5) UInt(18446744073709551615) Text("123456789012345678901") Text("1e400") ] "b": { "c": null "d": [ ] "e": { } } "f": true "é": "x\n�" }"#]]
        .assert_eq(&visited(json).unwrap());
    }

    #[test]
    fn anything_but_one_object_is_refused() {
        for bad in [
            "",
            "1",
            "[]",
            "{",
            "{}x",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{\"a\":[1,]}",
            "{\"a\":tru}",
            "{\"a\":-}",
            "{\"a\":1.e.3}",
            "{\"a",
            "{\"a\":\"\\",
            "{\"a\":1 2}",
            "{a:1}",
        ] {
            assert!(visited(bad).is_err(), "{bad}");
        }
        assert!(walk(b"{\"\xff\":1}", &mut Tale::default()).is_err());
    }

    #[test]
    fn what_is_nested_too_deep_comes_as_its_text() {
        let levels = 100_000;
        let json = format!("{{\"a\":{}\"]\"{}}}", "[".repeat(levels), "]".repeat(levels));
        let visited = visited(&json).unwrap();
        assert_eq!(visited.matches("[ ").count(), DEPTH_MAX - 1);
        assert!(visited.contains("\"[[["));
        let open = format!("{{\"a\":{}", "[".repeat(levels));
        assert!(self::visited(&open).is_err());
    }
}
