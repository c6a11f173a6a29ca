//! Reads text in any common encoding as UTF-8.
//!
//! UTF-8 passes unchanged, with any damage, which other modules judge. UTF-16 is recognised by its mark or by the zeros
//! in its first characters, Windows-1252 by bytes that are not UTF-8 in a text without other signs of UTF-8.

use std::io::{self, Read};

use encoding_rs::{UTF_16BE, UTF_16LE, WINDOWS_1252};
use encoding_rs_io::{DecodeReaderBytes, DecodeReaderBytesBuilder};
use memchr::memchr;

/// Which byte of a unit of UTF-16 comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ByteOrder {
    Little,
    Big,
}

/// Returns the content of `inner` as UTF-8, without a mark at its beginning.
pub struct Utf8<R>(TextEncoding<R>);

enum TextEncoding<R> {
    /// UTF-8, or Windows-1252.
    Bytes(ByteReader<R>),
    Utf16(Box<DecodeReaderBytes<Aligned<R>, Vec<u8>>>),
}

const UTF_8_MARK: &[u8] = b"\xef\xbb\xbf";

impl<R: Read> Utf8<R> {
    /// `beginning` is the text's first bytes, which identify its encoding; `inner` yields all of it.
    pub fn new(beginning: &[u8], inner: R) -> Utf8<R> {
        match order(beginning) {
            Some(order) => {
                let encoding = if order == ByteOrder::Little { UTF_16LE } else { UTF_16BE };
                let aligned = Aligned { order, inner, pending: Vec::new(), given: 0, run: 0, ended: false };
                let mut decoder = DecodeReaderBytesBuilder::new();
                decoder.encoding(Some(encoding)).strip_bom(true).bom_override(true);
                Utf8(TextEncoding::Utf16(Box::new(decoder.build(aligned))))
            }
            None => Utf8(TextEncoding::Bytes(ByteReader {
                inner,
                skip: if beginning.starts_with(UTF_8_MARK) { UTF_8_MARK.len() } else { 0 },
                is_utf8: beginning.starts_with(UTF_8_MARK),
                was_windows: false,
                held: Vec::new(),
                ready: Vec::new(),
                given: 0,
                ended: false,
            })),
        }
    }

    /// Whether some of it was Windows-1252.
    pub fn was_windows(&self) -> bool {
        matches!(&self.0, TextEncoding::Bytes(bytes) if bytes.was_windows)
    }
}

impl<R: Read> Read for Utf8<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            TextEncoding::Bytes(bytes) => bytes.read(out),
            TextEncoding::Utf16(decoder) => decoder.read(out),
        }
    }
}

/// The order of a text in UTF-16: by its mark, or because each of its first characters, which are ASCII in every export,
/// has a zero on the same side.
fn order(beginning: &[u8]) -> Option<ByteOrder> {
    match beginning {
        [0xff, 0xfe, ..] => return Some(ByteOrder::Little),
        [0xfe, 0xff, ..] => return Some(ByteOrder::Big),
        _ => {}
    }
    let pairs = beginning.chunks_exact(2).take(4);
    let all = |is: fn(&[u8]) -> bool| pairs.len() >= 2 && pairs.clone().all(is);
    if all(|pair| matches!(pair, [text, 0] if *text != 0 && text.is_ascii())) {
        return Some(ByteOrder::Little);
    }
    all(|pair| matches!(pair, [0, text] if *text != 0 && text.is_ascii())).then_some(ByteOrder::Big)
}

/// A text of bytes, processed line by line if they are not ASCII.
struct ByteReader<R> {
    inner: R,
    /// How much of the mark is still to be skipped.
    skip: usize,
    /// Whether it has proved to be UTF-8.
    is_utf8: bool,
    was_windows: bool,
    /// A line with non-ASCII bytes, as far as it was read.
    held: Vec<u8>,
    ready: Vec<u8>,
    given: usize,
    ended: bool,
}

/// How much of a line is judged at once.
const LINE_BYTES_MAX: usize = 64 * 1024;

impl<R: Read> ByteReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let rest = self.ready.get(self.given..).unwrap_or_default();
            if !rest.is_empty() {
                let count = rest.len().min(out.len());
                out.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
                self.given += count;
                return Ok(count);
            }
            if self.ended || out.is_empty() {
                return Ok(0);
            }
            // Into the caller's buffer: bytes that need no conversion are not copied again.
            let read = self.inner.read(out)?;
            let mut chunk = out.get_mut(..read).unwrap_or_default();
            let skip = self.skip.min(chunk.len());
            self.skip -= skip;
            if skip > 0 {
                chunk.copy_within(skip.., 0);
                let left = chunk.len() - skip;
                chunk = chunk.get_mut(..left).unwrap_or_default();
            }
            if read == 0 {
                self.ended = true;
            } else if self.is_utf8 || self.held.is_empty() && chunk.is_ascii() {
                if chunk.is_empty() {
                    continue;
                }
                return Ok(chunk.len());
            }
            self.held.extend_from_slice(chunk);
            self.judge();
        }
    }

    /// Converts the held bytes as far as they can be judged: whole lines.
    fn judge(&mut self) {
        self.ready.clear();
        self.given = 0;
        let held = std::mem::take(&mut self.held);
        let mut rest = held.as_slice();
        while !rest.is_empty() {
            if self.is_utf8 {
                self.ready.extend_from_slice(rest);
                return;
            }
            let line = memchr(b'\n', rest).map(|end| end + 1);
            let line = line.unwrap_or(if self.ended { rest.len() } else { 0 }).min(LINE_BYTES_MAX);
            let line = if line == 0 && rest.len() >= LINE_BYTES_MAX { LINE_BYTES_MAX } else { line };
            let (line, after) = rest.split_at(line);
            if line.is_empty() {
                // Up to its first non-ASCII byte an unfinished line needs no judging.
                let ascii = rest.iter().position(|byte| !byte.is_ascii()).unwrap_or(rest.len());
                let (ascii, other) = rest.split_at(ascii);
                self.ready.extend_from_slice(ascii);
                self.held = other.to_vec();
                return;
            }
            self.line(line);
            rest = after;
        }
    }

    fn line(&mut self, line: &[u8]) {
        if line.is_ascii() {
            return self.ready.extend_from_slice(line);
        }
        // A character that is cut at the end of the judged bytes does not disprove UTF-8.
        let is_sound = match std::str::from_utf8(line) {
            Ok(_) => true,
            Err(error) => error.error_len().is_none() && line.len() == LINE_BYTES_MAX,
        };
        let has_utf8 = || line.utf8_chunks().any(|chunk| !chunk.valid().is_ascii());
        // Bytes that are undefined in Windows-1252 are damage.
        let means_nothing = |byte: &u8| matches!(byte, 0x81 | 0x8d | 0x8f | 0x90 | 0x9d);
        if is_sound || has_utf8() {
            self.is_utf8 = true;
        } else if !line.iter().any(means_nothing) {
            self.was_windows = true;
            let (text, _) = WINDOWS_1252.decode_without_bom_handling(line);
            return self.ready.extend_from_slice(text.as_bytes());
        }
        self.ready.extend_from_slice(line);
    }
}

/// Realigns UTF-16 after a missing or extra byte: otherwise all following characters would be wrong.
struct Aligned<R> {
    order: ByteOrder,
    inner: R,
    /// Bytes read; those before `given` were passed on.
    pending: Vec<u8>,
    given: usize,
    /// Units at the end of the inspected bytes that look swapped.
    run: usize,
    ended: bool,
}

/// This many ASCII characters in a row with swapped bytes do not occur in another script.
const SWAPPED_MAX: usize = 8;
const READ_BYTES: usize = 64 * 1024;

impl<R: Read> Read for Aligned<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let ready = self.ready();
            if ready > 0 || self.ended || out.is_empty() {
                let count = ready.min(out.len());
                let from = self.pending.get(self.given..).unwrap_or_default();
                out.iter_mut().zip(from).take(count).for_each(|(to, from)| *to = *from);
                self.given += count;
                return Ok(count);
            }
            self.fill()?;
        }
    }
}

impl<R: Read> Aligned<R> {
    /// Bytes that can be passed on: whole units, except those that look swapped, which need more context.
    fn ready(&self) -> usize {
        let left = self.pending.len() - self.given;
        if self.ended { left } else { (left - left % 2).saturating_sub(2 * self.run) }
    }

    fn fill(&mut self) -> io::Result<()> {
        // Whole units, since otherwise later units would be misaligned.
        self.pending.drain(..self.given - self.given % 2);
        self.given %= 2;
        let looked_at = self.pending.len() - self.pending.len() % 2;
        let begin = self.pending.len();
        self.pending.resize(begin + READ_BYTES, 0);
        let read = self.inner.read(self.pending.get_mut(begin..).unwrap_or_default());
        self.pending.truncate(begin + read.as_ref().copied().unwrap_or(0));
        self.ended = read? == 0;
        let mut at = looked_at;
        while let Some(&[first, second]) = self.pending.get(at..at + 2) {
            let (low, high) = if self.order == ByteOrder::Little { (first, second) } else { (second, first) };
            let is_swapped = low == 0 && (high.is_ascii_graphic() || matches!(high, b' ' | b'\t' | b'\r' | b'\n'));
            self.run = if is_swapped { self.run + 1 } else { 0 };
            at += 2;
            if self.run == SWAPPED_MAX {
                // The first byte of the run has no partner; it becomes a character of its own.
                let orphan = at - 2 * SWAPPED_MAX;
                let unit = if self.order == ByteOrder::Little { [0xfd, 0xff] } else { [0xff, 0xfd] };
                self.pending.splice(orphan..=orphan, unit);
                self.run = 0;
                at = orphan + 2;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads a few bytes at a time.
    struct InSteps<'t>(&'t [u8], usize);

    impl Read for InSteps<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(out.len());
            out[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    fn decoded(bytes: &[u8], step: usize) -> Vec<u8> {
        let mut text = Vec::new();
        Utf8::new(&bytes[..bytes.len().min(16)], InSteps(bytes, step)).read_to_end(&mut text).unwrap();
        text
    }

    fn wide(text: &str, order: ByteOrder) -> Vec<u8> {
        let bytes = if order == ByteOrder::Little { u16::to_le_bytes } else { u16::to_be_bytes };
        text.encode_utf16().flat_map(bytes).collect()
    }

    #[track_caller]
    fn check(bytes: &[u8], expected: &[u8]) {
        for step in [1, 2, 3, 7, usize::MAX] {
            let text = decoded(bytes, step);
            assert_eq!(String::from_utf8_lossy(&text), String::from_utf8_lossy(expected), "{step}");
        }
    }

    #[test]
    fn a_text_is_read_in_the_encoding_it_was_saved_in() {
        let text = "{\"Name\":\"José 😀\"}\n";
        for order in [ByteOrder::Little, ByteOrder::Big] {
            check(&wide(text, order), text.as_bytes());
            check(&wide(&format!("\u{feff}{text}"), order), text.as_bytes());
        }
        check(text.as_bytes(), text.as_bytes());
        check(format!("\u{feff}{text}").as_bytes(), text.as_bytes());
        check(b"{\"Name\":\"Jos\xe9 \x96 \x80\"}\nJos\xe9", "{\"Name\":\"José – €\"}\nJosé".as_bytes());
        check(b"", b"");
        check(b"\xef\xbb\xbf", b"");
    }

    #[test]
    fn damage_in_utf8_makes_it_no_other_encoding() {
        // Before or after its first sign of UTF-8, and bytes that are invalid in every encoding.
        for text in [&b"Jos\xc3\xa9 \xe9\n\xe9"[..], b"\xe9 Jos\xc3\xa9\n\xe9", b"a\x81\xe9\nb"] {
            check(text, text);
        }
        check(b"a\xe9\nJos\xc3\xa9\n\xe9", "a\u{e9}\nJosé\n".bytes().chain([0xe9]).collect::<Vec<_>>().as_slice());
    }

    #[test]
    fn a_byte_lost_or_added_in_utf16_costs_its_place_only() {
        let text = "{\"Id\":\"abcdefgh\"}\n".repeat(4);
        for order in [ByteOrder::Little, ByteOrder::Big] {
            let whole = wide(&text, order);
            for at in 12..whole.len() / 2 {
                let (before, after) = whole.split_at(at);
                for damaged in [[before, &after[1..]].concat(), [before, b"x", after].concat()] {
                    for step in [1, 7, usize::MAX] {
                        let found = decoded(&damaged, step);
                        assert!(
                            found.ends_with(b"\n{\"Id\":\"abcdefgh\"}\n"),
                            "{at}: {}",
                            String::from_utf8_lossy(&found)
                        );
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_comes_out_as_it_was_in_steps_of_any_size(text in any::<String>(), step in 1_usize..9) {
            prop_assume!(!text.starts_with('\u{feff}'));
            for order in [ByteOrder::Little, ByteOrder::Big] {
                let bytes = wide(&format!("\u{feff}{text}"), order);
                prop_assert_eq!(decoded(&bytes, step), text.as_bytes());
            }
            prop_assert_eq!(decoded(format!("\u{feff}{text}").as_bytes(), step), text.as_bytes());
        }
    }
}
