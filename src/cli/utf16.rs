//! Text in UTF-16 read as UTF-8: what PowerShell's `>` and `Export-Csv -Encoding Unicode` write.

use std::io::{self, Read};

/// Which byte of a unit comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The low one.
    Little,
    /// The high one.
    Big,
}

/// The order that a text's first two bytes say, where they are the mark of UTF-16.
pub fn order(text: &[u8]) -> Option<Order> {
    match text {
        [0xff, 0xfe, ..] => Some(Order::Little),
        [0xfe, 0xff, ..] => Some(Order::Big),
        _ => None,
    }
}

/// Units decoded at once.
const UNITS: usize = 16 * 1024;

/// Gives the UTF-8 of what `inner` holds. Half of a pair becomes U+FFFD, and so does a last odd byte.
pub struct Decoder<R> {
    order: Order,
    inner: R,
    /// Bytes read and not yet decoded: half a unit, or the first half of a pair.
    pending: Vec<u8>,
    /// Text decoded and not yet given.
    decoded: Vec<u8>,
    given: usize,
    begun: bool,
    ended: bool,
}

impl<R: Read> Decoder<R> {
    /// A decoder; the mark at the beginning of `inner` is left out.
    pub fn new(order: Order, inner: R) -> Self {
        Decoder { order, inner, pending: Vec::new(), decoded: Vec::new(), given: 0, begun: false, ended: false }
    }

    fn fill(&mut self) -> io::Result<()> {
        self.decoded.clear();
        self.given = 0;
        let mut chunk = [0; UNITS * 2];
        let read = self.inner.read(&mut chunk)?;
        self.ended = read == 0;
        self.pending.extend_from_slice(chunk.get(..read).unwrap_or_default());
        let unit = |pair: &[u8]| match (pair, self.order) {
            ([low, high], Order::Little) | ([high, low], Order::Big) => u16::from_be_bytes([*high, *low]),
            // One byte alone is no unit; half of a pair is none, either.
            _ => HIGH_HALF,
        };
        let mut units: Vec<u16> = self.pending.chunks_exact(2).map(unit).collect();
        let mut used = units.len() * 2;
        if self.ended {
            units.extend(self.pending.chunks_exact(2).remainder().first().map(|_| HIGH_HALF));
            used = self.pending.len();
        } else if units.last().is_some_and(|last| (HIGH_HALF..LOW_HALF).contains(last)) {
            // Its other half is in the next chunk.
            units.pop();
            used -= 2;
        }
        self.pending.drain(..used);
        let mark = usize::from(!self.begun && units.first() == Some(&MARK));
        self.begun |= !units.is_empty();
        for c in char::decode_utf16(units.into_iter().skip(mark)) {
            let c = c.unwrap_or(char::REPLACEMENT_CHARACTER);
            self.decoded.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
        Ok(())
    }
}

/// The first of the units that are the first half of a pair.
const HIGH_HALF: u16 = 0xd800;
/// The first of those that are the second half.
const LOW_HALF: u16 = 0xdc00;
/// The mark at the beginning.
const MARK: u16 = 0xfeff;

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.given == self.decoded.len() && !self.ended && !out.is_empty() {
            self.fill()?;
        }
        let rest = self.decoded.get(self.given..).unwrap_or_default();
        let count = rest.len().min(out.len());
        for (to, from) in out.iter_mut().zip(rest) {
            *to = *from;
        }
        self.given += count;
        Ok(count)
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

    fn decoded(bytes: &[u8], step: usize) -> String {
        let mut text = String::new();
        Decoder::new(order(bytes).unwrap(), InSteps(bytes, step)).read_to_string(&mut text).unwrap();
        text
    }

    proptest! {
        #[test]
        fn any_text_comes_out_as_it_was_in_steps_of_any_size(text in any::<String>(), step in 1_usize..9) {
            let little: Vec<u8> = std::iter::once(MARK).chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect();
            let big: Vec<u8> = std::iter::once(MARK).chain(text.encode_utf16()).flat_map(u16::to_be_bytes).collect();
            prop_assert_eq!(decoded(&little, step), text.as_str());
            prop_assert_eq!(decoded(&big, step), text.as_str());
        }
    }

    #[test]
    fn halves_are_shown_as_missing() {
        assert_eq!(decoded(b"\xff\xfea\0\x00\xd8b\0c", 3), "a\u{fffd}b\u{fffd}");
        assert_eq!(order(b"{}"), None);
        assert_eq!(order(b""), None);
    }
}
