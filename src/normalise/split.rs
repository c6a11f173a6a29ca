//! Cuts the elements out of a JSON array that arrives in chunks.
//!
//! Owns: where one element of a blob ends and the next begins, and what becomes of bytes that are no element. Refuses
//! to know: what an element means, beyond telling an event from another object in damage. No I/O, not async, no
//! recursion; time is linear in the bytes, memory is one element at most ([`ELEMENT_BYTES_MAX`]).
//!
//! An element that lies inside one chunk is a slice of it; only an element that spans chunks is copied. Chunks are
//! scanned when [`Splitter::next`] asks for a piece, so take all pieces before pushing the next chunk.
//!
//! # Damage
//!
//! Every byte is a separator (white space, `,`, the outer brackets, a byte order mark), part of an element, or part of
//! a [`Piece::Damaged`]. The scan follows JSON's grammar, so an element is found damaged at the first byte that cannot
//! be there. What was read of it is then looked through once more, and what follows it is looked through for the first
//! time, for *an object that is an event*: whole, not the value of a member, and with two or more of the four members
//! that make an event's identity (`Id`, `RecordType`, `CreationTime`, `Operation`). Where elements of this body came and
//! none of them was such, an object that begins with the same name as two of them is enough. Everything before it is
//! damage.
//!
//! Why that is enough for one byte that was changed, removed or added: it leaves the nesting known up to the damage, and
//! of the brackets and strings that it turns inside out none survives the next key, whose first letter then follows a
//! string. So what is read before the scan stops never holds the next event, but for its `{"`; that is looked at again.
//! Objects inside the damaged event (a folder with an `Id`) are no events, and text in a string cannot become one: its
//! quotes are escaped, and would have to lose their backslashes all at once.
//!
//! A `[` before an event where an element should begin is damage of one byte, as is any other byte that begins no value
//! and stands alone. After the `]` that ends the array, and before the `[` that begins it, events are looked for
//! in the same way. An object there that is no event and begins the body may have them in a member, and is looked through
//! twice, too. What was looked through twice is not looked through again.

mod damage;
mod scan;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use bytes::Bytes;
use memchr::{memchr, memchr2};

use super::event::is_like_an_event;
use super::json;
pub use damage::Damage;
use scan::{Scan, ScanStep, blank_len, is_blank, is_plain, is_scalar};

/// Longest element, in bytes; a longer one is delivered as damage, piece by piece. The largest records known (Exchange
/// and Defender, with nested JSON in strings) stay well under 1 MiB.
pub const ELEMENT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How many bytes of a body that is no array, or of what follows one, are kept for the report.
pub const HEAD_BYTES_MAX: usize = 256;

/// How many different first member names are remembered for finding elements after damage.
const FIRST_NAMES_MAX: usize = 8;

/// The longest first member name that is remembered.
const FIRST_NAME_BYTES_MAX: usize = 128;

const BOM: [u8; 3] = [0xEF, 0xBB, 0xBF];

/// Cuts elements out of a JSON array; see the module's documentation.
#[derive(Debug)]
pub struct Splitter {
    limit: usize,
    form: Form,
    /// Whether what follows the array is left to the caller.
    stops_at_end: bool,
    /// What tells an object that is looked for in damage.
    is_sought: fn(&[u8]) -> bool,
    /// Chunks not fully scanned; the first is being scanned at `pos`.
    chunks: VecDeque<Bytes>,
    pos: usize,
    /// Offset in the body of the first chunk's first byte.
    base: u64,
    state: SplitState,
    expects: Expects,
    scan: Scan,
    /// Where the piece being read begins in the first chunk (0 when it began in an earlier one).
    start: usize,
    /// What earlier chunks held of the piece being read; in [`SplitState::Doubt`], of the object only.
    held: Vec<u8>,
    /// Offset in the body of the piece being read.
    piece_offset: u64,
    /// Pieces found and not yet taken: a handful at most.
    ready: VecDeque<Piece>,
    /// How whole elements began that were no events, and how many did.
    first_names: Vec<(Box<[u8]>, usize)>,
    /// Some whole element was an event: all are taken to be.
    has_events: bool,
    skip: Skip,
    /// Up to where bytes were looked through again: not a third time.
    looked_until: u64,
    /// How far `pos` went, back and forth.
    #[cfg(test)]
    went: u64,
    head: Vec<u8>,
    /// Some byte other than white space did not fit into `head`.
    head_cut: bool,
}

/// What is known while looking for an event in damage.
#[derive(Debug)]
struct Skip {
    why: Damage,
    /// The last byte, and the last that is not white space.
    previous: u8,
    before: u8,
    /// In [`SplitState::Doubt`], where the object begins in the first chunk (0 when it began in an earlier one).
    object: usize,
    /// The object is on a line of its own, as far as was read.
    on_own_line: bool,
    /// The damage ends with its line.
    to_line_end: bool,
    /// Some of the damage is among the pieces already.
    said: bool,
    /// Where the damage began.
    offset: u64,
}

/// What the elements stand in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// One array, which is the whole body.
    Array,
    /// Objects one after the other, on lines or not, with or without commas, inside arrays or not.
    Stream {
        /// Whether an array is open.
        in_array: bool,
    },
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
    /// Bytes that cannot be an element. Pieces that touch are one damage, whatever their `why`; none is longer than a
    /// chunk or the element limit, whichever is greater.
    Damaged {
        /// The bytes; empty where something is missing.
        bytes: Bytes,
        /// Where they begin in the body.
        offset: u64,
        /// What is wrong.
        why: Damage,
    },
}

/// How a body ended. Whether it was sound also depends on no [`Piece::Damaged`] having come before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The array was closed and only white space followed.
    Complete,
    /// The body ended before the array was closed (or after damage that hides whether it was). What was being read
    /// comes as [`Damage::Cut`], a number or literal at the very end too: more of it may have been cut off.
    Cut,
    /// The first byte is not `[`, and no event was found. All of it came as [`Damage::NotAnArray`].
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
    /// The body is `null`, which came as [`Damage::NotAnArray`].
    Null,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SplitState {
    /// Before the first byte that counts; so many bytes of a byte order mark were seen.
    Start(usize),
    /// Between elements.
    Level,
    /// Inside an object, array or string.
    Element,
    /// After a string of so many bytes, until it is known that it is followed by what may follow an element.
    Text(usize),
    /// Inside a number or literal.
    Scalar,
    /// After a `[` where an element may begin.
    Bracket,
    /// Inside the first object of a list where an element may begin: if it is an event, the list is none.
    FirstOfList,
    /// After one byte that begins no value.
    Stray,
    /// In damage, looking for an object.
    Skip,
    /// In damage, inside an object that may be an event.
    Doubt,
    /// The rest of an element over the limit.
    Oversize,
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expects {
    /// A value or the end, after `[`.
    First,
    /// A value, after a comma.
    Value,
    /// A comma or the end, after a value.
    Separator,
    /// Anything, after damage that was reported, and in a stream.
    Any,
}

impl Default for Splitter {
    fn default() -> Self {
        Self::new()
    }
}

impl Splitter {
    /// A splitter for an array with elements of at most [`ELEMENT_BYTES_MAX`].
    pub fn new() -> Self {
        Self::with_limit(ELEMENT_BYTES_MAX)
    }

    /// A splitter for an array with elements of at most `element_bytes_max` bytes.
    pub fn with_limit(element_bytes_max: usize) -> Self {
        Self {
            limit: element_bytes_max,
            form: Form::Array,
            stops_at_end: false,
            is_sought: is_like_an_event,
            chunks: VecDeque::new(),
            pos: 0,
            base: 0,
            state: SplitState::Start(0),
            expects: Expects::First,
            scan: Scan::default(),
            start: 0,
            held: Vec::new(),
            piece_offset: 0,
            ready: VecDeque::new(),
            first_names: Vec::new(),
            has_events: false,
            skip: Skip {
                why: Damage::StrayToken,
                previous: b',',
                before: b',',
                object: 0,
                on_own_line: false,
                to_line_end: false,
                said: false,
                offset: 0,
            },
            looked_until: 0,
            #[cfg(test)]
            went: 0,
            head: Vec::new(),
            head_cut: false,
        }
    }

    /// A splitter for what people have of the feed: objects one after the other, on lines or not, with or without
    /// commas between them, inside any number of arrays or none. Here an object on a line of its own is also found
    /// after damage, and a line that is no JSON is damage to its end only.
    pub fn of_stream(element_bytes_max: usize) -> Self {
        let form = Form::Stream { in_array: false };
        Self { form, expects: Expects::Any, ..Self::with_limit(element_bytes_max) }
    }

    /// Looks in damage for what `is_sought` says, in place of an event alone.
    pub fn seeking(self, is_sought: fn(&[u8]) -> bool) -> Self {
        Self { is_sought, ..self }
    }

    /// A splitter for an array inside something else: it stops after the `]`, and [`Splitter::take_rest`] has what follows.
    pub fn of_page(element_bytes_max: usize) -> Self {
        Self { stops_at_end: true, ..Self::with_limit(element_bytes_max) }
    }

    /// Whether the array has ended.
    pub fn is_closed(&self) -> bool {
        self.state == SplitState::Closed
    }

    /// What was pushed and not scanned, when no element is open.
    pub fn take_rest(&mut self) -> Vec<Bytes> {
        let mut rest: Vec<Bytes> = self.chunks.drain(..).collect();
        if let Some(first) = rest.first_mut() {
            *first = first.slice(self.pos.min(first.len())..);
        }
        self.base += self.pos as u64;
        self.pos = 0;
        rest.retain(|chunk| !chunk.is_empty());
        rest
    }

    /// Feeds the next bytes of the body. Take all pieces with [`Splitter::next`] first: chunks not yet scanned are kept.
    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.chunks.push_back(chunk);
        }
    }

    /// The next piece found in what was pushed; `None` until more is pushed.
    #[cfg_attr(
        feature = "internals",
        expect(clippy::should_implement_trait, reason = "`None` is not the end: more may be pushed")
    )]
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
            if self.stops_at_end && self.state == SplitState::Closed {
                return None;
            }
            // Taken out and put back: to count references for each piece costs more than looking at its first bytes.
            let mut chunk = std::mem::take(self.chunks.front_mut()?);
            if self.pos < chunk.len() {
                let mut whole = None;
                if self.state == SplitState::Level
                    && self.expects != Expects::Separator
                    && let Some(rest) = chunk.get(self.pos..).filter(|rest| rest.first() == Some(&b'{'))
                    && let Some(length) = read(rest).filter(|length| *length <= self.limit.min(rest.len()))
                {
                    whole = Some(self.whole(&chunk, length));
                } else {
                    #[cfg(test)]
                    let from = self.offset();
                    self.step(&mut chunk);
                    #[cfg(test)]
                    (self.went += self.offset().abs_diff(from));
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

    /// How the body ended, after its last chunk. Take all pieces before, and once more afterwards: what the body ended
    /// in comes then.
    pub fn finish(&mut self) -> Ending {
        let mut found = VecDeque::new();
        loop {
            while let Some(piece) = self.next() {
                found.push_back(piece);
            }
            let is_open = matches!(self.state, SplitState::Element | SplitState::FirstOfList);
            if !is_open || self.piece_offset < self.looked_until {
                break;
            }
            // The element may have lost its end long before the end of the body.
            let element = Bytes::from(std::mem::take(&mut self.held));
            self.looked_until = self.piece_offset + element.len() as u64;
            self.base = self.piece_offset;
            self.enter_skip(Damage::Cut, 1, element.first().copied().unwrap_or(b','));
            self.chunks.push_back(element);
        }
        let why = if matches!(self.state, SplitState::Doubt) { self.skip.why } else { Damage::Cut };
        let held = Bytes::from(std::mem::take(&mut self.held));
        // A `[` that nothing follows separates in a stream.
        let separates = self.state == SplitState::Bracket && self.form != Form::Array;
        if !held.is_empty() && !separates {
            self.say(held, why);
        }
        found.append(&mut self.ready);
        self.ready = found;
        let head = Bytes::from(std::mem::take(&mut self.head));
        match (self.state, self.skip.why) {
            (SplitState::Start(0 | 3), _) => Ending::Empty,
            (SplitState::Start(n), _) => Ending::NotAnArray { head: Bytes::from_static(BOM.get(..n).unwrap_or(&BOM)) },
            (SplitState::Closed, _) => Ending::Complete,
            (SplitState::Skip | SplitState::Doubt, Damage::AfterEnd) => {
                Ending::TrailingData { head, offset: self.skip.offset }
            }
            (SplitState::Skip | SplitState::Doubt, Damage::NotAnArray) => {
                if !self.head_cut && head.trim_ascii() == b"null" { Ending::Null } else { Ending::NotAnArray { head } }
            }
            _ => Ending::Cut,
        }
    }

    /// How many bytes of the body were scanned.
    pub fn offset(&self) -> u64 {
        self.base + self.pos as u64
    }

    /// Scans on in `chunk`, the first, at `pos`, which lies inside it.
    fn step(&mut self, chunk: &mut Bytes) {
        let rest = chunk.get(self.pos..).unwrap_or_default();
        let Some(&byte) = rest.first() else { return };
        match self.state {
            SplitState::Start(bom) => self.start(byte, bom),
            SplitState::Level => self.level(rest, byte),
            SplitState::Element => match self.scan.run(rest) {
                ScanStep::More => self.pos = chunk.len(),
                ScanStep::End(n) => {
                    self.pos += n;
                    self.element(chunk);
                }
                ScanStep::Bad(n) => {
                    self.pos += n;
                    self.unbalanced(chunk);
                }
            },
            SplitState::Text(length) => match byte {
                _ if is_blank(byte) => self.pos += blank_len(rest),
                b',' | b']' => self.text(chunk, length),
                _ => self.unbalanced(chunk),
            },
            SplitState::Scalar => match rest.iter().position(|b| !is_plain(*b)) {
                None => self.pos = chunk.len(),
                Some(n) => {
                    self.pos += n;
                    self.scalar(chunk);
                }
            },
            SplitState::Bracket if is_blank(byte) => self.pos += blank_len(rest),
            SplitState::Bracket => self.bracket(byte),
            SplitState::FirstOfList => match self.scan.run(rest) {
                ScanStep::More => self.pos = chunk.len(),
                ScanStep::End(n) => {
                    self.pos += n;
                    self.first_of_list(chunk);
                }
                ScanStep::Bad(n) => {
                    self.pos += n;
                    self.go_on_as_list(chunk);
                }
            },
            SplitState::Stray => self.stray(chunk, byte),
            SplitState::Skip => self.skip(chunk),
            SplitState::Doubt => match self.scan.run(rest) {
                ScanStep::More => self.pos = chunk.len(),
                ScanStep::End(n) => {
                    self.pos += n;
                    self.doubt_ended(chunk);
                }
                ScanStep::Bad(n) => {
                    self.pos += n;
                    self.go_on_at_the_fault(chunk, self.skip.why);
                }
            },
            SplitState::Oversize => match self.scan.run(rest) {
                ScanStep::More => self.pos = chunk.len(),
                ScanStep::End(n) => {
                    self.pos += n;
                    self.damaged(chunk, Damage::Oversize);
                    self.state = SplitState::Level;
                    self.expect_separator();
                }
                ScanStep::Bad(n) => {
                    self.pos += n;
                    self.damaged(chunk, Damage::Oversize);
                    self.enter_skip(Damage::Unbalanced, self.pos, b',');
                }
            },
            SplitState::Closed => {
                let blank = blank_len(rest);
                self.pos += blank;
                if blank < rest.len() {
                    self.begin(SplitState::Skip);
                    self.enter_skip(Damage::AfterEnd, self.pos, b',');
                }
            }
        }
    }

    /// Lets go of the first chunk, which was scanned to its end, keeping what a piece still needs of it.
    fn leave(&mut self, chunk: &Bytes) {
        match self.state {
            SplitState::Element
            | SplitState::Text(_)
            | SplitState::Scalar
            | SplitState::Bracket
            | SplitState::FirstOfList => {
                let part = chunk.get(self.start..).unwrap_or_default();
                if self.held.len() + part.len() <= self.limit {
                    self.held.extend_from_slice(part);
                } else {
                    self.damaged(chunk, Damage::Oversize);
                    match self.state {
                        SplitState::Element => self.state = SplitState::Oversize,
                        // An endless number, or endless white space, has no bracket to wait for.
                        _ => self.enter_skip(Damage::Oversize, self.pos, b','),
                    }
                }
            }
            SplitState::Doubt => {
                if self.held.is_empty() {
                    let before = chunk.slice(self.start..self.skip.object);
                    if !before.is_empty() {
                        self.say(before, self.skip.why);
                    }
                    self.start = self.skip.object;
                }
                let part = chunk.get(self.start..).unwrap_or_default();
                if self.held.len() + part.len() <= self.limit {
                    self.held.extend_from_slice(part);
                } else {
                    self.damaged(chunk, self.skip.why);
                    self.state = SplitState::Skip;
                }
            }
            SplitState::Stray => self.damaged(chunk, Damage::StrayToken),
            SplitState::Skip => self.damaged(chunk, self.skip.why),
            SplitState::Oversize => self.damaged(chunk, Damage::Oversize),
            SplitState::Start(_) | SplitState::Level | SplitState::Closed => {}
        }
        self.base += chunk.len() as u64;
        self.pos = 0;
        self.start = 0;
        self.skip.object = 0;
        self.chunks.pop_front();
    }

    /// The element at `pos`, read by somebody else.
    fn whole(&mut self, chunk: &Bytes, length: usize) -> Piece {
        let offset = self.offset();
        let bytes = chunk.slice(self.pos..self.pos + length);
        self.pos += length;
        self.expect_separator();
        self.remember(&bytes);
        Piece::Element { bytes, offset, read: true }
    }

    fn expect_separator(&mut self) {
        self.expects = if self.form == Form::Array { Expects::Separator } else { Expects::Any };
    }

    fn start(&mut self, byte: u8, bom: usize) {
        let begins = bom == 0 || bom == BOM.len();
        if begins && is_blank(byte) {
            // White space before a byte order mark is not told from white space after it.
            self.pos += 1;
        } else if BOM.get(bom) == Some(&byte) {
            self.pos += 1;
            self.state = SplitState::Start(bom + 1);
        } else if begins && self.form != Form::Array {
            self.state = SplitState::Level;
        } else if begins && byte == b'[' {
            self.pos += 1;
            self.state = SplitState::Level;
        } else {
            self.begin(SplitState::Skip);
            self.enter_skip(Damage::NotAnArray, self.pos, b',');
            if bom < BOM.len() && bom > 0 {
                self.piece_offset -= bom as u64;
                self.say(Bytes::from_static(BOM.get(..bom).unwrap_or_default()), Damage::NotAnArray);
            }
        }
    }

    fn level(&mut self, rest: &[u8], byte: u8) {
        // Outside arrays a stream has lines, and what is no object there is no element.
        let is_line = self.form == Form::Stream { in_array: false };
        match byte {
            _ if is_blank(byte) => self.pos += blank_len(rest),
            b',' => {
                if matches!(self.expects, Expects::First | Expects::Value) && self.form == Form::Array {
                    self.missing(Damage::MissingElement);
                }
                self.expects = if self.form == Form::Array { Expects::Value } else { Expects::Any };
                self.pos += 1;
            }
            b']' => match &mut self.form {
                Form::Array => {
                    if self.expects == Expects::Value {
                        self.missing(Damage::MissingElement);
                    }
                    self.state = SplitState::Closed;
                    self.pos += 1;
                }
                Form::Stream { in_array } if *in_array => {
                    *in_array = false;
                    self.pos += 1;
                }
                Form::Stream { .. } => self.begin_stray(),
            },
            b'{' => self.value(SplitState::Element),
            b'[' => {
                self.begin(SplitState::Bracket);
                self.pos += 1;
            }
            b'"' if !is_line => self.value(SplitState::Element),
            b'-' | b'0'..=b'9' | b't' | b'f' | b'n' if !is_line => self.value(SplitState::Scalar),
            _ => self.begin_stray(),
        }
    }

    fn value(&mut self, state: SplitState) {
        if self.expects == Expects::Separator {
            self.missing(Damage::MissingComma);
        }
        self.begin(state);
    }

    fn missing(&mut self, why: Damage) {
        self.ready.push_back(Piece::Damaged { bytes: Bytes::new(), offset: self.offset(), why });
    }

    fn begin_stray(&mut self) {
        self.begin(SplitState::Stray);
        self.pos += 1;
    }

    /// A piece begins at `pos`.
    fn begin(&mut self, state: SplitState) {
        self.state = state;
        self.start = self.pos;
        self.piece_offset = self.offset();
        self.held.clear();
        if state == SplitState::Element {
            self.scan.reset();
        }
    }

    /// Decides what the `[` was, by what follows it.
    fn bracket(&mut self, byte: u8) {
        match &mut self.form {
            Form::Stream { in_array } if byte == b'{' || !*in_array => {
                *in_array = true;
                self.held.clear();
                self.state = SplitState::Level;
            }
            Form::Array if byte == b'{' => {
                self.state = SplitState::FirstOfList;
                self.scan.reset();
            }
            _ => {
                self.list_begins();
                self.scan.run(b"[");
            }
        }
    }

    /// The `[` begins an element.
    fn list_begins(&mut self) {
        if self.expects == Expects::Separator {
            let offset = self.piece_offset;
            self.ready.push_back(Piece::Damaged { bytes: Bytes::new(), offset, why: Damage::MissingComma });
        }
        self.state = SplitState::Element;
        self.scan.reset();
    }

    /// The first object of a list ends at `pos`.
    fn first_of_list(&mut self, chunk: &mut Bytes) {
        self.join(chunk);
        let list = chunk.get(self.start..self.pos).unwrap_or_default();
        let object = self.start + memchr(b'{', list).unwrap_or(list.len());
        if !(self.is_sought)(chunk.get(object..self.pos).unwrap_or_default()) {
            return self.go_on_as_list(chunk);
        }
        self.say(chunk.slice(self.start..object), Damage::StrayToken);
        let bytes = chunk.slice(object..self.pos);
        self.remember(&bytes);
        self.ready.push_back(Piece::Element { bytes, offset: self.piece_offset, read: false });
        self.state = SplitState::Level;
        self.expect_separator();
    }

    /// What was read of a list so far is followed as a list.
    fn go_on_as_list(&mut self, chunk: &mut Bytes) {
        self.join(chunk);
        self.list_begins();
        // Ends inside the list: it is open, and what was read of its first object was sound.
        self.scan.run(chunk.get(self.start..self.pos).unwrap_or_default());
    }

    /// What follows one byte that begins no value.
    fn stray(&mut self, chunk: &Bytes, byte: u8) {
        match byte {
            b'\n' if self.form != Form::Array => {
                self.pos += 1;
                self.damaged(chunk, Damage::StrayToken);
                self.state = SplitState::Level;
            }
            _ if is_blank(byte) => self.pos += 1,
            b',' | b']' if self.form == (Form::Stream { in_array: false }) => self.skip_stray(),
            b'{' | b',' | b']' => {
                self.damaged(chunk, Damage::StrayToken);
                self.state = SplitState::Level;
                self.expects = Expects::Any;
            }
            _ => self.skip_stray(),
        }
    }

    fn skip_stray(&mut self) {
        self.enter_skip(Damage::StrayToken, self.pos, b',');
        self.skip.to_line_end = self.form != Form::Array;
    }

    /// From `pos` on, what belongs to the damage that began at `start` is looked through for an event. `before` is what
    /// counts as the last byte before `pos`.
    fn enter_skip(&mut self, why: Damage, pos: usize, before: u8) {
        self.state = SplitState::Skip;
        self.pos = pos;
        let offset = self.piece_offset;
        self.skip = Skip {
            why,
            previous: before,
            before,
            object: 0,
            on_own_line: false,
            to_line_end: false,
            said: false,
            offset,
        };
    }

    /// A stretch of the damage being read.
    fn say(&mut self, bytes: Bytes, why: Damage) {
        if matches!(why, Damage::AfterEnd | Damage::NotAnArray) {
            let kept = bytes.len().min(HEAD_BYTES_MAX.saturating_sub(self.head.len()));
            self.head.extend_from_slice(bytes.get(..kept).unwrap_or_default());
            self.head_cut |= bytes.get(kept..).is_some_and(|rest| blank_len(rest) < rest.len());
        }
        let offset = self.piece_offset;
        self.piece_offset += bytes.len() as u64;
        self.skip.said = true;
        self.ready.push_back(Piece::Damaged { bytes, offset, why });
    }

    /// The piece read so far ends at `pos` and is damage.
    fn damaged(&mut self, chunk: &Bytes, why: Damage) {
        let held = Bytes::from(std::mem::take(&mut self.held));
        let part = chunk.slice(self.start.min(self.pos)..self.pos);
        for bytes in [held, part] {
            if !bytes.is_empty() {
                self.say(bytes, why);
            }
        }
        self.start = self.pos;
    }

    /// The piece read so far ends at `pos` and is a value.
    fn element(&mut self, chunk: &Bytes) {
        let length = self.held.len() + (self.pos - self.start);
        let first = self.held.first().or_else(|| chunk.get(self.start));
        if first == Some(&b'"') && length <= self.limit {
            self.state = SplitState::Text(length);
            return;
        }
        self.state = SplitState::Level;
        self.expect_separator();
        if length > self.limit {
            return self.damaged(chunk, Damage::Oversize);
        }
        let bytes = self.take_piece(chunk, self.start);
        self.remember(&bytes);
        self.ready.push_back(Piece::Element { bytes, offset: self.piece_offset, read: false });
    }

    /// What earlier chunks held, and this one from `start` to `pos`.
    fn take_piece(&mut self, chunk: &Bytes, start: usize) -> Bytes {
        if self.held.is_empty() {
            return chunk.slice(start..self.pos);
        }
        self.held.extend_from_slice(chunk.get(start..self.pos).unwrap_or_default());
        Bytes::from(std::mem::take(&mut self.held))
    }

    /// The string read is an element.
    fn text(&mut self, chunk: &Bytes, length: usize) {
        let bytes = self.take_piece(chunk, self.start);
        let bytes = bytes.slice(..length.min(bytes.len()));
        self.ready.push_back(Piece::Element { bytes, offset: self.piece_offset, read: false });
        self.state = SplitState::Level;
        self.expect_separator();
    }

    fn scalar(&mut self, chunk: &mut Bytes) {
        let part = chunk.get(self.start..self.pos).unwrap_or_default();
        let sound = if self.held.is_empty() { is_scalar(part) } else { is_scalar(&[&self.held, part].concat()) };
        if sound && chunk.get(self.pos).is_some_and(|b| is_blank(*b) || matches!(b, b',' | b']')) {
            return self.element(chunk);
        }
        self.join(chunk);
        self.enter_skip(Damage::StrayToken, self.pos, b',');
    }

    /// The element cannot go on at `pos`: looks through it again from its second byte, or, when that was done, goes on.
    fn unbalanced(&mut self, chunk: &mut Bytes) {
        let fault = self.offset();
        if self.piece_offset < self.looked_until {
            self.skip.object = self.start;
            self.skip.to_line_end = false;
            self.skip.said = false;
            return self.go_on_at_the_fault(chunk, Damage::Unbalanced);
        }
        self.looked_until = fault;
        self.join(chunk);
        let first = chunk.get(self.start).copied().unwrap_or(b',');
        self.enter_skip(Damage::Unbalanced, self.start + 1, first);
    }

    /// Puts what earlier chunks held of a piece before this one.
    fn join(&mut self, chunk: &mut Bytes) {
        if !self.held.is_empty() {
            let mut all = std::mem::take(&mut self.held);
            self.base = self.piece_offset;
            self.pos += all.len();
            all.extend_from_slice(chunk);
            *chunk = Bytes::from(all);
        }
    }

    /// An object that is no element cannot go on at `pos`. If a string ended just before, it may have been the opening
    /// quote of an event's first name: the `{` before it is looked at, too.
    fn go_on_at_the_fault(&mut self, chunk: &mut Bytes, why: Damage) {
        self.join(chunk);
        let read = chunk.get(self.skip.object..self.pos).unwrap_or_default();
        let mut back = 0;
        if let Some((b'"', before)) = read.split_last() {
            let blank = before.iter().rev().take_while(|byte| is_blank(**byte)).count();
            if before.len() > blank + 1 && before.get(before.len() - blank - 1) == Some(&b'{') {
                back = blank + 2;
            }
        }
        let read = read.get(..read.len() - back).unwrap_or_default();
        self.pos -= back;
        self.skip.why = why;
        self.skip.previous = read.last().copied().unwrap_or(b',');
        self.skip.before = read.iter().rev().find(|byte| !is_blank(**byte)).copied().unwrap_or(b',');
        self.state = SplitState::Skip;
    }

    /// Looks for the next object in damage.
    fn skip(&mut self, chunk: &Bytes) {
        let rest = chunk.get(self.pos..).unwrap_or_default();
        let found = if self.skip.to_line_end { memchr2(b'{', b'\n', rest) } else { memchr(b'{', rest) };
        let passed = rest.get(..found.unwrap_or(rest.len())).unwrap_or_default();
        if let Some(last) = passed.last() {
            self.skip.previous = *last;
        }
        if let Some(last) = passed.iter().rev().find(|byte| !is_blank(**byte)) {
            self.skip.before = *last;
        }
        let Some(at) = found else {
            self.pos = chunk.len();
            return;
        };
        self.pos += at;
        if rest.get(at) == Some(&b'\n') {
            self.pos += 1;
            self.damaged(chunk, self.skip.why);
            self.state = SplitState::Level;
            self.expects = Expects::Any;
        } else if self.skip.before == b':' {
            // The value of a member.
            self.pos += 1;
            self.skip.previous = b'{';
            self.skip.before = b'{';
        } else {
            let Skip { previous, before, .. } = self.skip;
            self.skip.on_own_line =
                self.form != Form::Array && previous == b'\n' && !matches!(before, b'[' | b',' | b':');
            self.skip.object = self.pos;
            self.state = SplitState::Doubt;
            self.scan.reset();
        }
    }

    /// An object found in damage ends at `pos`.
    fn doubt_ended(&mut self, chunk: &mut Bytes) {
        let object = self.skip.object;
        let is_element = if self.held.is_empty() {
            self.is_element(chunk.get(object..self.pos).unwrap_or_default())
        } else {
            self.held.extend_from_slice(chunk.get(..self.pos).unwrap_or_default());
            self.is_element(&self.held)
        };
        if !is_element {
            if self.skip.why == Damage::NotAnArray && self.piece_offset == self.skip.offset && object == self.start {
                return self.look_inside(chunk);
            }
            if !self.held.is_empty() {
                let held = Bytes::from(std::mem::take(&mut self.held));
                self.say(held, self.skip.why);
                self.start = self.pos;
            }
            self.skip.previous = b'}';
            self.skip.before = b'}';
            self.state = SplitState::Skip;
            return;
        }
        let bytes = if self.held.is_empty() {
            let before = chunk.slice(self.start..object);
            // Where nothing stands between the array and the event, something is missing.
            if !before.is_empty() || !self.skip.said {
                self.say(before, self.skip.why);
            }
            chunk.slice(object..self.pos)
        } else {
            if !self.skip.said {
                self.say(Bytes::new(), self.skip.why);
            }
            Bytes::from(std::mem::take(&mut self.held))
        };
        self.head.clear();
        self.head_cut = false;
        self.remember(&bytes);
        self.ready.push_back(Piece::Element { bytes, offset: self.piece_offset, read: false });
        self.state = SplitState::Level;
        self.expect_separator();
        if let Form::Stream { in_array } = &mut self.form {
            // Whether an array is open is not known any more; where none is, a `]` means nothing.
            *in_array |= !self.skip.on_own_line;
        }
    }

    /// The body begins with an object that is no event, which may have the events in a member: `{"value":[…]}`. It is
    /// looked through once more from its second byte.
    fn look_inside(&mut self, chunk: &mut Bytes) {
        self.looked_until = self.offset();
        // All of the object that came in this chunk is held, too.
        let end = self.pos;
        if !self.held.is_empty() {
            self.held.truncate(self.held.len() - end);
        }
        self.join(chunk);
        self.enter_skip(Damage::NotAnArray, self.start + 1, b'{');
    }

    /// Whether a balanced object found in damage is one of the elements.
    fn is_element(&self, object: &[u8]) -> bool {
        if (self.is_sought)(object) {
            return true;
        }
        // In an element that was only cut off its own objects are likelier than those of others.
        let as_others_began = || {
            let is_known = |name: &[u8]| self.first_names.iter().any(|(known, n)| **known == *name && *n > 1);
            !self.has_events && self.skip.why != Damage::Cut && first_name(object).is_some_and(is_known)
        };
        let on_own_line = self.skip.on_own_line && memchr(b'\n', object).is_none();
        (on_own_line || as_others_began())
            && json::scan_bytes(object, |_, _| {}).is_ok_and(|layout| layout.end == object.len())
    }

    /// Learns from a whole element how elements begin. Once there was an event there is nothing more to learn.
    fn remember(&mut self, element: &[u8]) {
        if self.has_events {
            return;
        }
        self.has_events = is_like_an_event(element);
        let Some(name) = first_name(element).filter(|_| !self.has_events) else { return };
        if let Some((_, count)) = self.first_names.iter_mut().find(|(known, _)| **known == *name) {
            *count += 1;
        } else if self.first_names.len() < FIRST_NAMES_MAX {
            self.first_names.push((name.into(), 1));
        }
    }
}

/// The first member name of an object, if it is plain and not too long.
fn first_name(bytes: &[u8]) -> Option<&[u8]> {
    let inner = bytes.strip_prefix(b"{")?;
    let inner = inner.get(blank_len(inner)..)?;
    let name = inner.strip_prefix(b"\"")?;
    let end = name.iter().take(FIRST_NAME_BYTES_MAX).position(|b| matches!(b, b'"' | b'\\'))?;
    if name.get(end) == Some(&b'"') { name.get(..end) } else { None }
}
