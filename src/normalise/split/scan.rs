//! Follows the grammar of one JSON value, from its first byte to its end, over any number of chunks.
//!
//! The scan checks the places of strings, brackets, colons and commas, not the content of strings, numbers and
//! literals. So damage is found at the first byte that the grammar forbids, usually close to the actual damage.

use crate::normalise::chunk::{CHUNK, Specials, escaped};

/// What may come next, one bit each.
mod may {
    /// A value, and nothing else.
    pub const VALUE: u8 = 1;
    /// A value or the end of the list just begun.
    pub const FIRST_VALUE: u8 = 1 << 1;
    /// A key or the end of the object just begun.
    pub const FIRST_KEY: u8 = 1 << 2;
    /// A key, after a comma.
    pub const KEY: u8 = 1 << 3;
    /// The colon after a key.
    pub const COLON: u8 = 1 << 4;
    /// A comma or the end of what the value is in.
    pub const AFTER: u8 = 1 << 5;
    /// As [`AFTER`], or more of a number or literal.
    pub const PLAIN: u8 = 1 << 6;
    /// White space is allowed everywhere.
    pub const ANYTHING: u8 = u8::MAX;
}

/// The state of the scan of one value.
#[derive(Debug)]
pub(super) struct Scan {
    /// One bit per open bracket, 1 for `{`; the innermost is the lowest bit of the last word.
    open: Vec<u64>,
    depth: usize,
    in_string: bool,
    escaped: bool,
    next: u8,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum ScanStep {
    /// The value goes on.
    More,
    /// The value ends after so many bytes.
    End(usize),
    /// The grammar forbids the byte at this index.
    Bad(usize),
}

impl Default for Scan {
    fn default() -> Self {
        Self { open: Vec::new(), depth: 0, in_string: false, escaped: false, next: may::VALUE }
    }
}

impl Scan {
    pub(super) fn reset(&mut self) {
        self.open.clear();
        self.depth = 0;
        self.in_string = false;
        self.escaped = false;
        self.next = may::VALUE;
    }

    pub(super) fn run(&mut self, bytes: &[u8]) -> ScanStep {
        let mut next = self.next;
        let mut at = 0;
        if self.in_string {
            let Some(end) = self.string(bytes, 0) else { return ScanStep::More };
            if self.depth == 0 {
                return ScanStep::End(end);
            }
            next = after_string(next);
            at = end;
        }
        while let Some(&byte) = bytes.get(at) {
            let ByteRule { class, allowed } = PLACES[byte as usize];
            if allowed & next == 0 {
                self.next = next;
                return ScanStep::Bad(at);
            }
            at += 1;
            match class {
                ByteClass::Blank | ByteClass::Never => {}
                ByteClass::Comma => next = if self.in_object() { may::KEY } else { may::VALUE },
                ByteClass::Colon => next = may::VALUE,
                ByteClass::Plain => next = may::PLAIN,
                ByteClass::Quote => {
                    let Some(end) = self.string(bytes, at) else {
                        self.next = next;
                        return ScanStep::More;
                    };
                    if self.depth == 0 {
                        return ScanStep::End(end);
                    }
                    next = after_string(next);
                    at = end;
                }
                ByteClass::OpenObject | ByteClass::OpenList => {
                    let is_object = class == ByteClass::OpenObject;
                    self.push(is_object);
                    next = if is_object { may::FIRST_KEY } else { may::FIRST_VALUE };
                }
                ByteClass::CloseObject | ByteClass::CloseList => {
                    if !self.pop(class == ByteClass::CloseObject) {
                        self.next = next;
                        return ScanStep::Bad(at - 1);
                    }
                    if self.depth == 0 {
                        return ScanStep::End(at);
                    }
                    next = may::AFTER;
                }
            }
        }
        self.next = next;
        ScanStep::More
    }

    /// Continues inside a string and returns the index after its closing quote; `None` if the string continues after
    /// `bytes`.
    #[inline]
    fn string(&mut self, bytes: &[u8], mut at: usize) -> Option<usize> {
        if self.escaped {
            if bytes.is_empty() {
                return None;
            }
            self.escaped = false;
            at += 1;
        }
        while let Some(chunk) = bytes.get(at..).and_then(|rest| rest.first_chunk::<CHUNK>()) {
            // What is not needed of them is not computed.
            let Specials { quotes, backslashes, .. } = Specials::of(chunk);
            let escaped = if backslashes == 0 { 0 } else { escaped(backslashes) };
            let ends = quotes & !escaped;
            if ends != 0 {
                self.in_string = false;
                return Some(at + ends.trailing_zeros() as usize + 1);
            }
            // The last byte may escape the first of what comes after.
            at += CHUNK + (escaped >> CHUNK & 1) as usize;
        }
        while let Some(byte) = bytes.get(at) {
            at += 1;
            match byte {
                b'"' => {
                    self.in_string = false;
                    return Some(at);
                }
                b'\\' => at += 1,
                _ => {}
            }
        }
        self.escaped = at > bytes.len();
        self.in_string = true;
        None
    }

    fn in_object(&self) -> bool {
        self.open.last().is_some_and(|word| word & 1 == 1)
    }

    fn push(&mut self, is_object: bool) {
        if self.depth.is_multiple_of(64) {
            self.open.push(0);
        }
        if let Some(word) = self.open.last_mut() {
            *word = *word << 1 | u64::from(is_object);
        }
        self.depth += 1;
    }

    /// Closes the innermost bracket if it is of this kind.
    fn pop(&mut self, is_object: bool) -> bool {
        let Some(word) = self.open.last_mut() else { return false };
        if *word & 1 != u64::from(is_object) {
            return false;
        }
        *word >>= 1;
        self.depth -= 1;
        if self.depth.is_multiple_of(64) {
            self.open.pop();
        }
        true
    }
}

/// The state after a string that was read where `next` was expected.
const fn after_string(next: u8) -> u8 {
    if next & (may::FIRST_KEY | may::KEY) != 0 { may::COLON } else { may::AFTER }
}

/// The class of a byte outside strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ByteClass {
    /// White space.
    Blank,
    Comma,
    Colon,
    /// Part of a number or literal.
    Plain,
    Quote,
    OpenObject,
    OpenList,
    CloseObject,
    CloseList,
    /// Forbidden outside strings.
    Never,
}

/// The class of a byte and the places where it is allowed outside strings: bits of [`may`].
#[derive(Clone, Copy)]
struct ByteRule {
    class: ByteClass,
    allowed: u8,
}

const PLACES: [ByteRule; 256] = {
    let mut table = [ByteRule { class: ByteClass::Never, allowed: 0 }; 256];
    let mut byte = 0;
    while byte < 256 {
        let (class, allowed) = match byte as u8 {
            b' ' | b'\t' | b'\n' | b'\r' => (ByteClass::Blank, may::ANYTHING),
            b',' => (ByteClass::Comma, may::AFTER | may::PLAIN),
            b':' => (ByteClass::Colon, may::COLON),
            b'"' => (ByteClass::Quote, may::VALUE | may::FIRST_VALUE | may::FIRST_KEY | may::KEY),
            b'{' => (ByteClass::OpenObject, may::VALUE | may::FIRST_VALUE),
            b'[' => (ByteClass::OpenList, may::VALUE | may::FIRST_VALUE),
            b'}' => (ByteClass::CloseObject, may::AFTER | may::PLAIN | may::FIRST_KEY),
            b']' => (ByteClass::CloseList, may::AFTER | may::PLAIN | may::FIRST_VALUE),
            // Numbers, `true`, `false`, `null`.
            b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E' | b't' | b'r' | b'u' | b'f' | b'a' | b'l' | b's' | b'n' => {
                (ByteClass::Plain, may::VALUE | may::FIRST_VALUE | may::PLAIN)
            }
            _ => (ByteClass::Never, 0),
        };
        table[byte] = ByteRule { class, allowed };
        byte += 1;
    }
    table
};

/// Whether a byte can be part of a number or literal.
pub(super) fn is_plain(byte: u8) -> bool {
    PLACES[byte as usize].class == ByteClass::Plain
}

pub(super) fn is_blank(byte: u8) -> bool {
    PLACES[byte as usize].class == ByteClass::Blank
}

pub(super) fn blank_len(bytes: &[u8]) -> usize {
    bytes.iter().position(|b| !is_blank(*b)).unwrap_or(bytes.len())
}

/// Whether the bytes are a literal, or consist of characters of a number.
pub(super) fn is_scalar(bytes: &[u8]) -> bool {
    match bytes.first() {
        Some(b'-' | b'0'..=b'9') => {
            bytes.iter().all(|b| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'))
                && bytes.last().is_some_and(u8::is_ascii_digit)
        }
        _ => matches!(bytes, b"true" | b"false" | b"null"),
    }
}
