//! Cuts the elements out of a JSON array that arrives in chunks.
//!
//! Owns: where one element of a blob ends and the next begins, and what becomes of bytes that are no element. Refuses
//! to know: what an element means, and whether it is valid JSON beyond its strings and brackets. No I/O, not async,
//! no recursion; time is linear in the bytes, memory is one element at most ([`ELEMENT_BYTES_MAX`]).
//!
//! An element that lies inside one chunk is a slice of it; only an element that spans chunks is copied. Chunks are
//! scanned when [`Splitter::next`] asks for a piece, so take all pieces before pushing the next chunk.
//!
//! # Damage
//!
//! Every byte is a separator (white space, `,`, the outer brackets, a byte order mark), part of an element, or part of
//! a [`Piece::Damaged`]. How reading goes on after damage depends on whether the nesting level is still known:
//!
//! * *Between elements* it is: bytes that begin no value are damage up to the next `,` `]` `{` `[` or `"`.
//! * *Inside an element* (a bracket closed by the wrong kind, a byte that cannot stand outside a string, a string
//!   followed by something other than `:` `,` `}` `]`) it is not. Everything from the element's first byte is damage up
//!   to the next `{` whose first member name is that of an element already seen, or of the damaged element itself: the
//!   events of a blob begin alike, the objects nested in them begin otherwise. This search ignores strings, which the
//!   damage may have turned inside out; quotes inside a string are escaped, so that JSON within a string does not match.
//!   From then on a `]` ends the array only if nothing but white space follows.
//!
//! Nothing is scanned twice, so an intact element glued into the damaged one is delivered with the damaged bytes.

use std::collections::VecDeque;

use bytes::Bytes;
use memchr::{memchr, memchr2};

/// Longest element, in bytes; a longer one is delivered as damage, piece by piece. The largest records known (Exchange
/// and Defender, with nested JSON in strings) stay well under 1 MiB.
pub const ELEMENT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How many bytes of a body that is no array, or of what follows one, are kept for the report.
pub const HEAD_BYTES_MAX: usize = 256;

/// How many different first member names are remembered for finding elements after damage.
const FIRST_NAMES_MAX: usize = 8;

/// The longest `{`, white space and first member name looked at when searching for an element after damage.
const OPENING_BYTES_MAX: usize = 128;

const BOM: [u8; 3] = [0xEF, 0xBB, 0xBF];

/// Cuts elements out of a JSON array; see the module's documentation.
#[derive(Debug)]
pub struct Splitter {
    limit: usize,
    /// Chunks not fully scanned; the first is being scanned at `pos`.
    chunks: VecDeque<Bytes>,
    pos: usize,
    /// Offset in the body of the first chunk's first byte.
    base: u64,
    state: State,
    expects: Expects,
    scan: Scan,
    /// Where the piece being read begins in the first chunk (0 when it began in an earlier one).
    start: usize,
    /// What earlier chunks held of the piece being read.
    held: Vec<u8>,
    /// Offset in the body of the piece being read.
    piece_offset: u64,
    /// Pieces found and not yet taken: a handful at most.
    ready: VecDeque<Piece>,
    first_names: Vec<Box<[u8]>>,
    /// The level was lost once: a `]` may belong to a nested array.
    level_guessed: bool,
    head: Vec<u8>,
    /// Some byte other than white space did not fit into `head`.
    head_cut: bool,
}

/// A stretch of the array, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// One value with balanced strings and brackets, or a literal or number; not validated beyond that.
    Element {
        /// The value, without white space around it.
        bytes: Bytes,
        /// Where it begins in the body.
        offset: u64,
        /// Whether the caller of [`Splitter::next_read`] has read it.
        read: bool,
    },
    /// Bytes that cannot be an element. Consecutive pieces with the same `why` may be one damage; none is longer than
    /// a chunk or the element limit, whichever is greater.
    Damaged {
        /// The bytes; empty where something is missing.
        bytes: Bytes,
        /// Where they begin in the body.
        offset: u64,
        /// What is wrong.
        why: Damage,
    },
}

/// Why bytes are no element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Damage {
    /// Bytes between elements that begin no value.
    StrayToken,
    /// Two values without a comma between them. The bytes are empty, the values come as elements.
    MissingComma,
    /// A comma without a value before or after it. The bytes are empty.
    MissingElement,
    /// Brackets or strings of an element do not match.
    Unbalanced,
    /// An element over the size limit.
    Oversize,
    /// Bytes after the end of the array.
    AfterEnd,
    /// The body ended inside the element.
    Cut,
}

impl Damage {
    /// Kebab-case name for logs and records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::StrayToken => "stray-token",
            Self::MissingComma => "missing-comma",
            Self::MissingElement => "missing-element",
            Self::Unbalanced => "unbalanced",
            Self::Oversize => "oversize",
            Self::AfterEnd => "after-end",
            Self::Cut => "cut",
        }
    }
}

/// How a body ended. Whether it was sound also depends on no [`Piece::Damaged`] having come before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The array was closed and only white space followed.
    Complete,
    /// The body ended before the array was closed (or after damage that hides whether it was).
    Cut {
        /// The piece that was being read, as [`Damage::Cut`] unless it was damaged already. A number or literal at the
        /// very end is here too: more of it may have been cut off.
        tail: Option<Piece>,
    },
    /// The first byte is not `[`.
    NotAnArray {
        /// The first bytes, up to [`HEAD_BYTES_MAX`].
        head: Bytes,
    },
    /// Something followed the array; it was delivered as [`Damage::AfterEnd`].
    TrailingData {
        /// Its first bytes, up to [`HEAD_BYTES_MAX`].
        head: Bytes,
        /// Where it begins in the body.
        offset: u64,
    },
    /// Nothing but white space.
    Empty,
    /// The body is `null`.
    Null,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first byte that counts; so many bytes of a byte order mark were seen.
    Start(usize),
    /// Between elements.
    Level,
    /// Inside an object, array or string.
    Element,
    /// Inside a number or literal.
    Scalar,
    /// Damage between elements.
    Stray,
    /// Damage whose level is unknown: looking for the opening of an element.
    Skip,
    /// `held` is a `{` that may open an element, cut off by the end of its chunk.
    SkipOpening,
    /// The rest of an element over the limit.
    Oversize,
    /// A `]` after the level was lost, at this offset.
    MaybeClosed(u64),
    Closed,
    Trailing,
    Foreign,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expects {
    /// A value or the end, after `[`.
    First,
    /// A value, after a comma.
    Value,
    /// A comma or the end, after a value.
    Separator,
    /// Anything, after damage that was reported.
    Any,
}

impl Default for Splitter {
    fn default() -> Self {
        Self::new()
    }
}

impl Splitter {
    /// A splitter for elements of at most [`ELEMENT_BYTES_MAX`].
    pub fn new() -> Self {
        Self::with_limit(ELEMENT_BYTES_MAX)
    }

    /// A splitter for elements of at most `element_bytes_max` bytes.
    pub fn with_limit(element_bytes_max: usize) -> Self {
        Self {
            limit: element_bytes_max,
            chunks: VecDeque::new(),
            pos: 0,
            base: 0,
            state: State::Start(0),
            expects: Expects::First,
            scan: Scan::default(),
            start: 0,
            held: Vec::new(),
            piece_offset: 0,
            ready: VecDeque::new(),
            first_names: Vec::new(),
            level_guessed: false,
            head: Vec::new(),
            head_cut: false,
        }
    }

    /// Feeds the next bytes of the body. Take all pieces with [`Splitter::next`] first: chunks not yet scanned are kept.
    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.chunks.push_back(chunk);
        }
    }

    /// The next piece found in what was pushed; `None` until more is pushed.
    #[expect(clippy::should_implement_trait, reason = "`None` is not the end: more may be pushed")]
    pub fn next(&mut self) -> Option<Piece> {
        self.next_read(|_| None)
    }

    /// As [`Splitter::next`], and saves a second pass over most elements: `read` is given the bytes from the `{` of an
    /// element on and says how long the object is, if it is whole and valid; else the splitter finds its end. At most
    /// the element this answers was read, and was read last.
    pub fn next_read(&mut self, mut read: impl FnMut(&[u8]) -> Option<usize>) -> Option<Piece> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Some(piece);
            }
            // Taken out and put back: to count references for each piece costs more than looking at its first bytes.
            let chunk = std::mem::take(self.chunks.front_mut()?);
            if self.pos < chunk.len() {
                let mut whole = None;
                if self.state == State::Level
                    && self.expects != Expects::Separator
                    && let Some(rest) = chunk.get(self.pos..).filter(|rest| rest.first() == Some(&b'{'))
                    && let Some(length) = read(rest).filter(|length| *length <= self.limit.min(rest.len()))
                {
                    whole = Some(self.whole(&chunk, length));
                } else {
                    self.step(&chunk);
                }
                if let Some(front) = self.chunks.front_mut() {
                    *front = chunk;
                }
                if whole.is_some() {
                    return whole;
                }
            } else {
                self.leave(&chunk);
            }
        }
    }

    /// How the body ended, after its last chunk. Pieces not taken are lost.
    pub fn finish(&mut self) -> Ending {
        while self.next().is_some() {}
        let head = Bytes::from(std::mem::take(&mut self.head));
        match self.state {
            State::Start(0) => Ending::Empty,
            State::Start(3) => Ending::Empty,
            State::Start(n) => Ending::NotAnArray { head: Bytes::from_static(BOM.get(..n).unwrap_or(&BOM)) },
            State::Foreign if !self.head_cut && head.trim_ascii() == b"null" => Ending::Null,
            State::Foreign => Ending::NotAnArray { head },
            State::Trailing => Ending::TrailingData { head, offset: self.piece_offset },
            State::Closed | State::MaybeClosed(_) => Ending::Complete,
            State::Level | State::Stray | State::Skip | State::Oversize => Ending::Cut { tail: None },
            State::Element | State::Scalar => Ending::Cut { tail: self.tail(Damage::Cut) },
            State::SkipOpening => Ending::Cut { tail: self.tail(Damage::Unbalanced) },
        }
    }

    /// How many bytes of the body were scanned.
    pub fn offset(&self) -> u64 {
        self.base + self.pos as u64
    }

    fn tail(&mut self, why: Damage) -> Option<Piece> {
        let bytes = Bytes::from(std::mem::take(&mut self.held));
        (!bytes.is_empty()).then_some(Piece::Damaged { bytes, offset: self.piece_offset, why })
    }

    /// Scans on in `chunk`, the first, at `pos`, which lies inside it.
    fn step(&mut self, chunk: &Bytes) {
        let rest = chunk.get(self.pos..).unwrap_or_default();
        let Some(&byte) = rest.first() else { return };
        match self.state {
            State::Start(bom) => self.start(byte, bom),
            State::Level => self.level(rest, byte),
            State::Element => match self.scan.run(rest) {
                Found::More => self.pos = chunk.len(),
                Found::End(n) => {
                    self.pos += n;
                    self.element(chunk);
                }
                Found::Bad(n) => {
                    self.pos += n;
                    self.unbalanced(chunk);
                }
            },
            State::Scalar => match rest.iter().position(|b| CLASS[*b as usize] != Class::Plain) {
                None => self.pos = chunk.len(),
                Some(n) => {
                    self.pos += n;
                    self.scalar(chunk);
                }
            },
            State::Stray => match rest.iter().position(|b| matches!(b, b',' | b']' | b'{' | b'[' | b'"')) {
                None => self.pos = chunk.len(),
                Some(n) => {
                    self.pos += n;
                    self.damaged(chunk, Damage::StrayToken);
                    self.state = State::Level;
                    self.expects = Expects::Any;
                }
            },
            State::Skip => self.skip(chunk, rest),
            State::SkipOpening => self.skip_opening(rest),
            State::Oversize => match self.scan.run(rest) {
                Found::More => self.pos = chunk.len(),
                Found::End(n) => {
                    self.pos += n;
                    self.damaged(chunk, Damage::Oversize);
                    self.state = State::Level;
                    self.expects = Expects::Separator;
                }
                Found::Bad(n) => {
                    self.pos += n;
                    self.damaged(chunk, Damage::Oversize);
                    self.begin(State::Skip);
                }
            },
            State::MaybeClosed(offset) => {
                let blank = blank_len(rest);
                self.pos += blank;
                if blank < rest.len() {
                    let bytes = Bytes::from_static(b"]");
                    self.ready.push_back(Piece::Damaged { bytes, offset, why: Damage::Unbalanced });
                    self.begin(State::Skip);
                }
            }
            State::Closed => {
                let blank = blank_len(rest);
                self.pos += blank;
                if blank < rest.len() {
                    self.begin(State::Trailing);
                }
            }
            State::Trailing => {
                self.keep_head(rest);
                let bytes = chunk.slice(self.pos..);
                self.ready.push_back(Piece::Damaged { bytes, offset: self.offset(), why: Damage::AfterEnd });
                self.pos = chunk.len();
            }
            State::Foreign => {
                self.keep_head(rest);
                self.pos = chunk.len();
            }
        }
    }

    /// Lets go of the first chunk, which was scanned to its end, keeping what a piece still needs of it.
    fn leave(&mut self, chunk: &Bytes) {
        match self.state {
            State::Element | State::Scalar => {
                let part = chunk.get(self.start..).unwrap_or_default();
                if self.held.len() + part.len() <= self.limit {
                    self.held.extend_from_slice(part);
                } else {
                    self.note_first_name(chunk);
                    self.damaged(chunk, Damage::Oversize);
                    // An endless number has no brackets to wait for.
                    self.state = if self.state == State::Scalar { State::Stray } else { State::Oversize };
                }
            }
            State::Stray => self.damaged(chunk, Damage::StrayToken),
            State::Skip => self.damaged(chunk, Damage::Unbalanced),
            State::Oversize => self.damaged(chunk, Damage::Oversize),
            _ => {}
        }
        self.base += chunk.len() as u64;
        self.pos = 0;
        self.start = 0;
        self.chunks.pop_front();
    }

    /// The element at `pos`, read by somebody else.
    fn whole(&mut self, chunk: &Bytes, length: usize) -> Piece {
        let offset = self.offset();
        let bytes = chunk.slice(self.pos..self.pos + length);
        self.pos += length;
        self.expects = Expects::Separator;
        self.remember(&bytes);
        Piece::Element { bytes, offset, read: true }
    }

    fn start(&mut self, byte: u8, bom: usize) {
        if (bom == 0 || bom == BOM.len()) && is_blank(byte) {
            // White space before a byte order mark is not told from white space after it.
            self.pos += 1;
        } else if BOM.get(bom) == Some(&byte) {
            self.pos += 1;
            self.state = State::Start(bom + 1);
        } else if byte == b'[' && (bom == 0 || bom == BOM.len()) {
            self.pos += 1;
            self.state = State::Level;
        } else {
            if bom < BOM.len() {
                self.head.extend_from_slice(BOM.get(..bom).unwrap_or_default());
            }
            self.state = State::Foreign;
        }
    }

    fn level(&mut self, rest: &[u8], byte: u8) {
        match byte {
            _ if is_blank(byte) => self.pos += blank_len(rest),
            b',' => {
                if matches!(self.expects, Expects::First | Expects::Value) {
                    self.missing(Damage::MissingElement);
                }
                self.expects = Expects::Value;
                self.pos += 1;
            }
            b']' => {
                if self.expects == Expects::Value {
                    self.missing(Damage::MissingElement);
                }
                self.state = if self.level_guessed { State::MaybeClosed(self.offset()) } else { State::Closed };
                self.pos += 1;
            }
            b'{' | b'[' | b'"' => self.value(State::Element),
            b'-' | b'0'..=b'9' | b't' | b'f' | b'n' => self.value(State::Scalar),
            _ => self.begin(State::Stray),
        }
    }

    fn value(&mut self, state: State) {
        if self.expects == Expects::Separator {
            self.missing(Damage::MissingComma);
        }
        self.begin(state);
    }

    fn missing(&mut self, why: Damage) {
        self.ready.push_back(Piece::Damaged { bytes: Bytes::new(), offset: self.offset(), why });
    }

    /// A piece begins at `pos`.
    fn begin(&mut self, state: State) {
        self.state = state;
        self.start = self.pos;
        self.piece_offset = self.offset();
        self.held.clear();
        if state == State::Element {
            self.scan.reset();
        }
    }

    /// The piece read so far ends at `pos` and is damage.
    fn damaged(&mut self, chunk: &Bytes, why: Damage) {
        let held = Bytes::from(std::mem::take(&mut self.held));
        let part = chunk.slice(self.start.min(self.pos)..self.pos);
        for bytes in [held, part] {
            if !bytes.is_empty() {
                let offset = self.piece_offset;
                self.piece_offset += bytes.len() as u64;
                self.ready.push_back(Piece::Damaged { bytes, offset, why });
            }
        }
        self.start = self.pos;
    }

    /// The piece read so far ends at `pos` and is a value.
    fn element(&mut self, chunk: &Bytes) {
        self.state = State::Level;
        self.expects = Expects::Separator;
        if self.held.len() + (self.pos - self.start) > self.limit {
            self.note_first_name(chunk);
            return self.damaged(chunk, Damage::Oversize);
        }
        let bytes = if self.held.is_empty() {
            chunk.slice(self.start..self.pos)
        } else {
            self.held.extend_from_slice(chunk.get(self.start..self.pos).unwrap_or_default());
            Bytes::from(std::mem::take(&mut self.held))
        };
        self.remember(&bytes);
        self.ready.push_back(Piece::Element { bytes, offset: self.piece_offset, read: false });
    }

    fn scalar(&mut self, chunk: &Bytes) {
        let part = chunk.get(self.start..self.pos).unwrap_or_default();
        let sound = if self.held.is_empty() { is_scalar(part) } else { is_scalar(&[&self.held, part].concat()) };
        if sound && chunk.get(self.pos).is_some_and(|b| is_blank(*b) || matches!(b, b',' | b']')) {
            return self.element(chunk);
        }
        self.state = State::Stray;
    }

    fn unbalanced(&mut self, chunk: &Bytes) {
        self.note_first_name(chunk);
        self.damaged(chunk, Damage::Unbalanced);
        self.begin(State::Skip);
    }

    fn skip(&mut self, chunk: &Bytes, rest: &[u8]) {
        let Some(at) = memchr(b'{', rest) else {
            self.pos = chunk.len();
            return;
        };
        self.pos += at;
        let opening = rest.get(at..).unwrap_or_default();
        match self.opens_element(opening) {
            Some(true) => {
                self.damaged(chunk, Damage::Unbalanced);
                self.level_guessed = true;
                self.begin(State::Element);
            }
            Some(false) => self.pos += 1,
            None => {
                self.damaged(chunk, Damage::Unbalanced);
                self.begin(State::SkipOpening);
                self.held.extend_from_slice(opening);
                self.pos = chunk.len();
            }
        }
    }

    /// Decides on a `{` at the end of an earlier chunk with the bytes that follow it.
    fn skip_opening(&mut self, rest: &[u8]) {
        let more = rest.get(..rest.len().min(OPENING_BYTES_MAX)).unwrap_or_default();
        let opening = [&self.held, more].concat();
        match self.opens_element(&opening) {
            Some(true) => {
                self.level_guessed = true;
                self.state = State::Element;
                self.start = self.pos;
                self.scan.reset();
                // The name is sound, so the scan of what is held ends inside the element.
                self.scan.run(&self.held);
            }
            Some(false) => {
                let bytes = Bytes::from(std::mem::take(&mut self.held));
                self.ready.push_back(Piece::Damaged { bytes, offset: self.piece_offset, why: Damage::Unbalanced });
                self.begin(State::Skip);
            }
            None => {
                self.held = opening;
                self.pos += more.len();
            }
        }
    }

    /// Whether `bytes`, which begin with `{`, open an element as others did; `None` when they are too few to tell.
    fn opens_element(&self, bytes: &[u8]) -> Option<bool> {
        match first_name(bytes) {
            FirstName::Is(name) => Some(self.first_names.iter().any(|known| **known == *name)),
            FirstName::Cut if bytes.len() < OPENING_BYTES_MAX => None,
            FirstName::Cut | FirstName::None => Some(false),
        }
    }

    fn remember(&mut self, element: &[u8]) {
        if let FirstName::Is(name) = first_name(element) {
            let known = self.first_names.iter().any(|known| **known == *name);
            if !known && self.first_names.len() < FIRST_NAMES_MAX {
                self.first_names.push(name.into());
            }
        }
    }

    /// Remembers how the element being read begins.
    fn note_first_name(&mut self, chunk: &Bytes) {
        let mut opening: Vec<u8> = self.held.iter().take(OPENING_BYTES_MAX).copied().collect();
        let part = chunk.get(self.start..self.pos).unwrap_or_default();
        opening.extend(part.iter().take(OPENING_BYTES_MAX - opening.len()));
        self.remember(&opening);
    }

    fn keep_head(&mut self, rest: &[u8]) {
        let kept = rest.len().min(HEAD_BYTES_MAX.saturating_sub(self.head.len()));
        self.head.extend_from_slice(rest.get(..kept).unwrap_or_default());
        self.head_cut |= rest.get(kept..).is_some_and(|rest| blank_len(rest) < rest.len());
    }
}

/// Follows strings and brackets from a value's first byte to its end, over any number of chunks.
#[derive(Debug, Default)]
struct Scan {
    /// One bit per open bracket, 1 for `{`; the innermost is the lowest bit of the last word.
    open: Vec<u64>,
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// A string ended and nothing but white space followed.
    after_string: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// The value goes on.
    More,
    /// The value ends after so many bytes.
    End(usize),
    /// The byte at this index cannot be there.
    Bad(usize),
}

impl Scan {
    fn reset(&mut self) {
        self.open.clear();
        self.depth = 0;
        self.in_string = false;
        self.escaped = false;
        self.after_string = false;
    }

    fn run(&mut self, bytes: &[u8]) -> Found {
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
                self.after_string = true;
            }
            let Some(&byte) = bytes.get(at) else { return Found::More };
            match CLASS[byte as usize] {
                Class::Blank => {}
                Class::Separator => self.after_string = false,
                Class::Plain if !self.after_string => {}
                Class::Quote if !self.after_string => self.in_string = true,
                Class::Open(is_object) if !self.after_string => self.push(is_object),
                Class::Close(is_object) => {
                    if !self.pop(is_object) {
                        return Found::Bad(at);
                    }
                    if self.depth == 0 {
                        return Found::End(at + 1);
                    }
                    self.after_string = false;
                }
                Class::Plain | Class::Quote | Class::Open(_) | Class::Never => return Found::Bad(at),
            }
            at += 1;
        }
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
enum Class {
    /// White space.
    Blank,
    /// `:` and `,`.
    Separator,
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

const CLASS: [Class; 256] = {
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
    table[b':' as usize] = Class::Separator;
    table[b',' as usize] = Class::Separator;
    table[b'"' as usize] = Class::Quote;
    table[b'{' as usize] = Class::Open(true);
    table[b'[' as usize] = Class::Open(false);
    table[b'}' as usize] = Class::Close(true);
    table[b']' as usize] = Class::Close(false);
    table
};

fn is_blank(byte: u8) -> bool {
    CLASS[byte as usize] == Class::Blank
}

fn blank_len(bytes: &[u8]) -> usize {
    bytes.iter().position(|b| !is_blank(*b)).unwrap_or(bytes.len())
}

/// A literal, or something made of the characters of a number.
fn is_scalar(bytes: &[u8]) -> bool {
    match bytes.first() {
        Some(b'-' | b'0'..=b'9') => {
            bytes.iter().all(|b| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'))
                && bytes.last().is_some_and(u8::is_ascii_digit)
        }
        _ => matches!(bytes, b"true" | b"false" | b"null"),
    }
}

enum FirstName<'a> {
    Is(&'a [u8]),
    /// The bytes end before the name does.
    Cut,
    /// Not an object that begins with a plain name.
    None,
}

/// The first member name of an object.
fn first_name(bytes: &[u8]) -> FirstName<'_> {
    let Some(inner) = bytes.strip_prefix(b"{") else { return FirstName::None };
    let inner = inner.get(blank_len(inner)..).unwrap_or_default();
    let Some((quote, name)) = inner.split_first() else { return FirstName::Cut };
    if *quote != b'"' {
        return FirstName::None;
    }
    // A `{` in the name could open an element itself.
    match name.iter().take(OPENING_BYTES_MAX).position(|b| matches!(b, b'"' | b'\\' | b'{')) {
        Some(end) if name.get(end) == Some(&b'"') => FirstName::Is(name.get(..end).unwrap_or_default()),
        Some(_) => FirstName::None,
        None => FirstName::Cut,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::normalise::{Event, Members};
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    /// All pieces and the ending of `body`, cut into chunks of the lengths given (cycled; the rest when empty).
    fn split(body: &[u8], chunk_lens: &[usize], limit: usize) -> (Vec<Piece>, Ending) {
        split_with(body, chunk_lens, limit, Splitter::next)
    }

    fn split_with(
        body: &[u8],
        chunk_lens: &[usize],
        limit: usize,
        mut next: impl FnMut(&mut Splitter) -> Option<Piece>,
    ) -> (Vec<Piece>, Ending) {
        let mut splitter = Splitter::with_limit(limit);
        let mut pieces = Vec::new();
        let mut lens = chunk_lens.iter().copied().cycle();
        let mut rest = Bytes::copy_from_slice(body);
        while !rest.is_empty() {
            let n = lens.next().unwrap_or(rest.len()).clamp(1, rest.len());
            splitter.push(rest.split_to(n));
            pieces.extend(std::iter::from_fn(|| next(&mut splitter)));
        }
        assert_eq!(splitter.offset(), body.len() as u64);
        let mut ending = splitter.finish();
        if let Ending::Cut { tail } = &mut ending {
            pieces.extend(tail.take());
        }
        (pieces, ending)
    }

    fn elements(pieces: &[Piece]) -> Vec<String> {
        pieces
            .iter()
            .filter_map(|p| match p {
                Piece::Element { bytes, .. } => Some(String::from_utf8_lossy(bytes).into_owned()),
                Piece::Damaged { .. } => None,
            })
            .collect()
    }

    /// `why@offset:bytes` of every damage, neighbouring pieces joined.
    fn damage(pieces: &[Piece]) -> Vec<(Damage, u64, Vec<u8>)> {
        let mut out: Vec<(Damage, u64, Vec<u8>)> = Vec::new();
        for piece in pieces {
            if let Piece::Damaged { bytes, offset, why } = piece {
                match out.last_mut() {
                    Some((last, at, held))
                        if last == why && !bytes.is_empty() && *at + held.len() as u64 == *offset =>
                    {
                        held.extend_from_slice(bytes);
                    }
                    _ => out.push((*why, *offset, bytes.to_vec())),
                }
            }
        }
        out
    }

    /// Every byte of `body` is in one piece, in order, or a separator.
    fn account(body: &[u8], pieces: &[Piece]) {
        let mut at = 0usize;
        let separators = |gap: &[u8]| {
            assert!(
                gap.iter().all(|b| is_blank(*b) || b",[]\xEF\xBB\xBF".contains(b)),
                "lost: {:?}",
                String::from_utf8_lossy(gap)
            );
        };
        for piece in pieces {
            let (Piece::Element { bytes, offset, .. } | Piece::Damaged { bytes, offset, .. }) = piece;
            let offset = *offset as usize;
            separators(&body[at..offset]);
            assert_eq!(&body[offset..offset + bytes.len()], &bytes[..]);
            at = offset + bytes.len();
        }
        separators(&body[at..]);
    }

    #[test]
    fn good_elements_come_out_around_damage() {
        use Damage::*;
        #[rustfmt::skip]
        type Case = (&'static str, &'static [&'static str], &'static [(Damage, &'static str)]);
        let table: &[Case] = &[
            (r#"[]"#, &[], &[]),
            (r#" [ 1 , "a]" ,{"a":[]}, null ] "#, &["1", r#""a]""#, r#"{"a":[]}"#, "null"], &[]),
            (r#"[{"a":1}{"a":2}]"#, &[r#"{"a":1}"#, r#"{"a":2}"#], &[(MissingComma, "")]),
            (r#"[{"a":1},,{"a":2},]"#, &[r#"{"a":1}"#, r#"{"a":2}"#], &[(MissingElement, ""), (MissingElement, "")]),
            (
                r#"[{"a":1}}, xyz, {"a":2}, 1x, nul]"#,
                &[r#"{"a":1}"#, r#"{"a":2}"#],
                &[(StrayToken, "}"), (StrayToken, "xyz"), (StrayToken, "1x"), (StrayToken, "nul")],
            ),
            // The nested array holds objects, which do not begin as an event does.
            (
                r#"[{"Id":1,"p":[{"n":1},{"n":2}},{"n":3}],"x":0},{"Id":2}]"#,
                &[r#"{"Id":2}"#],
                &[(Unbalanced, r#"{"Id":1,"p":[{"n":1},{"n":2}},{"n":3}],"x":0},"#)],
            ),
            // A lost quote turns strings inside out; JSON inside a string does not match.
            (
                r#"[{"Id":1},{"Id":2,"o":"x,"p":"{\"Id\":7}"},{"Id":3}]"#,
                &[r#"{"Id":1}"#, r#"{"Id":3}"#],
                &[(Unbalanced, r#"{"Id":2,"o":"x,"p":"{\"Id\":7}"},"#)],
            ),
            // A nested object that begins as the events do is taken for one, but its `]` does not end the array.
            (
                r#"[{"Id":1}},{"Id":2,"p":[}{"Id":3}],"x":0},{"Id":4}]"#,
                &[r#"{"Id":1}"#, r#"{"Id":3}"#, r#"{"Id":4}"#],
                &[(StrayToken, "}"), (Unbalanced, r#"{"Id":2,"p":[}"#), (Unbalanced, r#"],"x":0},"#)],
            ),
            (r#"[1] [2]"#, &["1"], &[(AfterEnd, "[2]")]),
        ];
        for (body, good, bad) in table {
            for chunks in [&[][..], &[1], &[3, 2]] {
                let (pieces, _) = split(body.as_bytes(), chunks, 1000);
                account(body.as_bytes(), &pieces);
                assert_eq!(elements(&pieces), *good, "{body}");
                let found = damage(&pieces);
                let found: Vec<(Damage, &str)> =
                    found.iter().map(|(why, _, bytes)| (*why, std::str::from_utf8(bytes).unwrap())).collect();
                assert_eq!(found, *bad, "{body}");
            }
        }
    }

    #[test]
    fn endings_tell_what_the_body_was() {
        let head = |text: &'static str| Bytes::from_static(text.as_bytes());
        let table = [
            ("", Ending::Empty),
            (" \r\n", Ending::Empty),
            ("\u{feff}", Ending::Empty),
            ("\u{feff} [ ] ", Ending::Complete),
            (" null\n", Ending::Null),
            ("nullx", Ending::NotAnArray { head: head("nullx") }),
            ("{\"error\":1}", Ending::NotAnArray { head: head("{\"error\":1}") }),
            ("[1] x ", Ending::TrailingData { head: head("x "), offset: 4 }),
            ("[{\"a\":1", Ending::Cut { tail: None }),
            ("[", Ending::Cut { tail: None }),
        ];
        for (body, ending) in table {
            for chunks in [&[][..], &[1], &[2]] {
                assert_eq!(split(body.as_bytes(), chunks, 1000).1, ending, "{body:?}");
            }
        }
        assert_eq!(split(b"\xEF\xBBx", &[], 9).1, Ending::NotAnArray { head: Bytes::from_static(b"\xEF\xBBx") });
        assert_eq!(split(b"\xEF\xBB", &[1], 9).1, Ending::NotAnArray { head: Bytes::from_static(b"\xEF\xBB") });
    }

    #[test]
    fn a_null_with_a_long_tail_is_not_null() {
        let body = [b"null".to_vec(), vec![b' '; 2 * HEAD_BYTES_MAX], b"x".to_vec()].concat();
        assert!(matches!(split(&body, &[100], 9).1, Ending::NotAnArray { .. }));
    }

    #[test]
    fn an_element_over_the_limit_streams_as_damage_and_the_next_is_whole() {
        let body = format!(r#"[{{"Id":"{}"}},{{"Id":2}},{},3]"#, "x".repeat(500), "7".repeat(500));
        for chunks in [&[][..], &[1], &[40], &[64, 1]] {
            let (pieces, ending) = split(body.as_bytes(), chunks, 64);
            account(body.as_bytes(), &pieces);
            assert_eq!(elements(&pieces), [r#"{"Id":2}"#, "3"]);
            assert_eq!(ending, Ending::Complete);
            let longest = chunks.iter().copied().max().unwrap_or(body.len()).max(64);
            for piece in &pieces {
                let (Piece::Element { bytes, .. } | Piece::Damaged { bytes, .. }) = piece;
                assert!(bytes.len() <= longest);
            }
        }
    }

    #[test]
    fn an_element_inside_one_chunk_is_not_copied() {
        let chunk = Bytes::from_static(br#"[{"Id":1},{"Id":2}]"#);
        let mut splitter = Splitter::new();
        splitter.push(chunk.clone());
        let Some(Piece::Element { bytes, offset: 1, read: false }) = splitter.next() else { panic!() };
        assert_eq!(bytes.as_ptr(), chunk.slice(1..).as_ptr());
    }

    #[test]
    fn depth_is_no_danger() {
        let body = ["[".repeat(300_000), "{}".into(), "]".repeat(300_000)].concat();
        let (pieces, ending) = split(body.as_bytes(), &[4096], ELEMENT_BYTES_MAX);
        assert_eq!((pieces.len(), ending), (1, Ending::Complete));
    }

    fn blank() -> impl Strategy<Value = String> {
        prop_oneof![4 => Just(String::new()), 1 => "[ \t\r\n]{0,3}"]
    }

    /// A JSON value as text, with arbitrary white space between tokens.
    fn json() -> impl Strategy<Value = String> {
        let string = prop_oneof![
            any::<String>().prop_map(|s| serde_json::to_string(&s).unwrap()),
            "[\\\\\"{}\\[\\],:]{0,12}".prop_map(|s| serde_json::to_string(&s).unwrap()),
        ];
        let leaf = prop_oneof![
            Just("null".to_owned()),
            any::<bool>().prop_map(|b| b.to_string()),
            any::<i64>().prop_map(|n| n.to_string()),
            (-1e300..1e300f64).prop_map(|n| format!("{n:e}")),
            string.clone(),
        ];
        leaf.prop_recursive(4, 40, 6, move |inner| {
            prop_oneof![
                prop::collection::vec((blank(), inner.clone(), blank()), 0..6).prop_map(|items| {
                    let items: Vec<String> = items.into_iter().map(|(a, v, b)| format!("{a}{v}{b}")).collect();
                    format!("[{}]", items.join(","))
                }),
                prop::collection::vec((blank(), string.clone(), blank(), inner, blank()), 0..6).prop_map(|members| {
                    let members: Vec<String> =
                        members.into_iter().map(|(a, k, b, v, c)| format!("{a}{k}{b}:{b}{v}{c}")).collect();
                    format!("{{{}}}", members.join(","))
                }),
            ]
        })
    }

    fn array() -> impl Strategy<Value = String> {
        (any::<bool>(), blank(), prop::collection::vec((blank(), json(), blank()), 0..8), blank()).prop_map(
            |(bom, before, items, after)| {
                let items: Vec<String> = items.into_iter().map(|(a, v, b)| format!("{a}{v}{b}")).collect();
                format!("{}{before}[{}]{after}", if bom { "\u{feff}" } else { "" }, items.join(","))
            },
        )
    }

    /// Bytes that look enough like a body to reach every state.
    fn soup() -> impl Strategy<Value = Vec<u8>> {
        let token = prop_oneof![
            4 => prop::sample::select(vec![
                "{", "}", "[", "]", ",", ":", "\"", "\\", " ", "\n", "a", "1", "-", "true", "null", r#"{"Id":1}"#, r#"{"Id":"#,
                r#""x""#, r#"},{"Id":"#, "[{", "}]", "\u{feff}",
            ]).prop_map(|t| t.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 0..4),
        ];
        (any::<bool>(), prop::collection::vec(token, 0..60)).prop_map(|(array, tokens)| {
            let mut body = tokens.concat();
            if array {
                body.insert(0, b'[');
            }
            body
        })
    }

    fn chunkings() -> impl Strategy<Value = Vec<usize>> {
        prop::collection::vec(1usize..40, 0..6)
    }

    proptest! {
        #[test]
        fn elements_are_those_serde_json_finds_in_any_chunking(body in array(), chunks in chunkings()) {
            let plain = body.trim_start_matches('\u{feff}');
            let wanted: Vec<&RawValue> = serde_json::from_str(plain).unwrap();
            let wanted: Vec<&str> = wanted.iter().map(|v| v.get()).collect();
            let (pieces, ending) = split(body.as_bytes(), &chunks, ELEMENT_BYTES_MAX);
            prop_assert_eq!(ending, Ending::Complete);
            prop_assert_eq!(damage(&pieces), vec![]);
            prop_assert_eq!(elements(&pieces), wanted);
        }

        #[test]
        fn pieces_are_the_same_when_elements_are_read_on_the_way(
            body in prop_oneof![soup(), array().prop_map(String::into_bytes)],
            chunks in chunkings(),
            limit in prop_oneof![Just(ELEMENT_BYTES_MAX), 1usize..100],
        ) {
            let mut members = Members::default();
            let mut events = Vec::new();
            let read = split_with(&body, &chunks, limit, |splitter| {
                let piece = splitter.next_read(|bytes| members.read(bytes))?;
                if let Piece::Element { bytes, read: true, .. } = &piece {
                    let told = |event: Event<'_>| format!("{event:?} {:?}", (event.identity(), event.text()));
                    events.push((Event::of(bytes, &members).map(told), Event::parse(bytes).map(told)));
                }
                Some(piece)
            });
            for (on_the_way, after) in events {
                prop_assert_eq!(on_the_way, after);
            }
            let unread = |(pieces, ending): (Vec<Piece>, Ending)| {
                let unread = |piece| match piece {
                    Piece::Element { bytes, offset, .. } => Piece::Element { bytes, offset, read: false },
                    damaged => damaged,
                };
                (pieces.into_iter().map(unread).collect::<Vec<_>>(), ending)
            };
            prop_assert_eq!(unread(read), split(&body, &chunks, limit));
        }

        #[test]
        fn any_bytes_are_accounted_for_in_any_chunking(body in soup(), chunks in chunkings(), limit in 1usize..100) {
            let (whole, ending) = split(&body, &[], ELEMENT_BYTES_MAX);
            let (parts, ending_of_parts) = split(&body, &chunks, ELEMENT_BYTES_MAX);
            prop_assert_eq!(elements(&whole), elements(&parts));
            prop_assert_eq!(damage(&whole), damage(&parts));
            prop_assert_eq!(&ending, &ending_of_parts);
            let (limited, _) = split(&body, &chunks, limit);
            if !matches!(ending, Ending::NotAnArray { .. } | Ending::Null) {
                account(&body, &whole);
                account(&body, &parts);
                account(&body, &limited);
            }
        }

        #[test]
        fn a_cut_body_yields_the_elements_complete_before_the_cut(body in array(), chunks in chunkings()) {
            let (whole, _) = split(body.as_bytes(), &[], ELEMENT_BYTES_MAX);
            for cut in 0..body.len() {
                let (pieces, ending) = split(&body.as_bytes()[..cut], &chunks, ELEMENT_BYTES_MAX);
                let complete: Vec<Piece> = whole.iter().filter(|p| {
                    let (Piece::Element { bytes, offset, .. } | Piece::Damaged { bytes, offset, .. }) = p;
                    // Only a delimiter shows that a number is over.
                    let open_ended = !matches!(bytes.first(), Some(b'{' | b'[' | b'"'));
                    *offset as usize + bytes.len() + usize::from(open_ended) <= cut
                }).cloned().collect();
                let found: Vec<Piece> = pieces.iter().filter(|p| matches!(p, Piece::Element { .. })).cloned().collect();
                prop_assert_eq!(found, complete);
                let closed = body.trim_end().len() <= cut;
                prop_assert_eq!(closed, ending == Ending::Complete);
            }
        }
    }
}
