//! Follows the grammar of one JSON value, from its first byte to its end, over any number of chunks.
//!
//! What stands inside a string, a number or a literal is not looked at; where strings, brackets, colons and commas stand
//! is. So damage is found at the first byte that cannot be there, which is hardly ever far from where it is.

use memchr::memchr2;

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
    /// White space may stand everywhere.
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
pub(super) enum Found {
    /// The value goes on.
    More,
    /// The value ends after so many bytes.
    End(usize),
    /// The byte at this index cannot be there.
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

    pub(super) fn run(&mut self, bytes: &[u8]) -> Found {
        let mut next = self.next;
        let found = self.run_from(bytes, &mut next);
        self.next = next;
        found
    }

    #[inline]
    fn run_from(&mut self, bytes: &[u8], next: &mut u8) -> Found {
        let mut at = 0;
        loop {
            if self.in_string {
                let Some(rest) = bytes.get(at..) else { return Found::More };
                if self.escaped {
                    if rest.is_empty() {
                        return Found::More;
                    }
                    self.escaped = false;
                    at += 1;
                    continue;
                }
                let Some(n) = string_stop(rest) else { return Found::More };
                at += n + 1;
                if rest.get(n) == Some(&b'\\') {
                    self.escaped = true;
                    continue;
                }
                self.in_string = false;
                if self.depth == 0 {
                    return Found::End(at);
                }
                *next = if *next & (may::FIRST_KEY | may::KEY) != 0 { may::COLON } else { may::AFTER };
            }
            let Some(&byte) = bytes.get(at) else { return Found::More };
            let class = CLASS[byte as usize];
            if ALLOWED[byte as usize] & *next == 0 {
                return Found::Bad(at);
            }
            match class {
                Class::Blank | Class::Never => {}
                Class::Comma => *next = if self.in_object() { may::KEY } else { may::VALUE },
                Class::Colon => *next = may::VALUE,
                Class::Plain => *next = may::PLAIN,
                Class::Quote => self.in_string = true,
                Class::Open(is_object) => {
                    self.push(is_object);
                    *next = if is_object { may::FIRST_KEY } else { may::FIRST_VALUE };
                }
                Class::Close(is_object) => {
                    if !self.pop(is_object) {
                        return Found::Bad(at);
                    }
                    if self.depth == 0 {
                        return Found::End(at + 1);
                    }
                    *next = may::AFTER;
                }
            }
            at += 1;
        }
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

/// Index of the first `"` or `\`. Most strings of an event are short: a call to `memchr2` costs more than looking.
#[inline]
fn string_stop(bytes: &[u8]) -> Option<usize> {
    const NEAR: usize = 8;
    match bytes.iter().take(NEAR).position(|b| matches!(b, b'"' | b'\\')) {
        Some(n) => Some(n),
        None => memchr2(b'"', b'\\', bytes.get(NEAR..)?).map(|n| n + NEAR),
    }
}

/// What a byte outside strings is to the scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// White space.
    Blank,
    Comma,
    Colon,
    /// Part of a number or literal.
    Plain,
    Quote,
    /// `{` (true) or `[`.
    Open(bool),
    /// `}` (true) or `]`.
    Close(bool),
    /// Not to be found outside strings.
    Never,
}

pub(super) const CLASS: [Class; 256] = {
    let mut table = [Class::Never; 256];
    let plain = b"0123456789+-.eEtrufalsn";
    let mut i = 0;
    while i < plain.len() {
        table[plain[i] as usize] = Class::Plain;
        i += 1;
    }
    table[b' ' as usize] = Class::Blank;
    table[b'\t' as usize] = Class::Blank;
    table[b'\n' as usize] = Class::Blank;
    table[b'\r' as usize] = Class::Blank;
    table[b':' as usize] = Class::Colon;
    table[b',' as usize] = Class::Comma;
    table[b'"' as usize] = Class::Quote;
    table[b'{' as usize] = Class::Open(true);
    table[b'[' as usize] = Class::Open(false);
    table[b'}' as usize] = Class::Close(true);
    table[b']' as usize] = Class::Close(false);
    table
};

/// Where a byte may stand outside strings: bits of [`may`].
const ALLOWED: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        table[i] = match CLASS[i] {
            Class::Blank => may::ANYTHING,
            Class::Comma => may::AFTER | may::PLAIN,
            Class::Colon => may::COLON,
            Class::Plain => may::VALUE | may::FIRST_VALUE | may::PLAIN,
            Class::Quote => may::VALUE | may::FIRST_VALUE | may::FIRST_KEY | may::KEY,
            Class::Open(_) => may::VALUE | may::FIRST_VALUE,
            Class::Close(true) => may::AFTER | may::PLAIN | may::FIRST_KEY,
            Class::Close(false) => may::AFTER | may::PLAIN | may::FIRST_VALUE,
            Class::Never => 0,
        };
        i += 1;
    }
    table
};

pub(super) fn is_blank(byte: u8) -> bool {
    CLASS[byte as usize] == Class::Blank
}

pub(super) fn blank_len(bytes: &[u8]) -> usize {
    bytes.iter().position(|b| !is_blank(*b)).unwrap_or(bytes.len())
}

/// A literal, or something made of the characters of a number.
pub(super) fn is_scalar(bytes: &[u8]) -> bool {
    match bytes.first() {
        Some(b'-' | b'0'..=b'9') => {
            bytes.iter().all(|b| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'))
                && bytes.last().is_some_and(u8::is_ascii_digit)
        }
        _ => matches!(bytes, b"true" | b"false" | b"null"),
    }
}
