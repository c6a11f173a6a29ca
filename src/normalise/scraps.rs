//! Handles the bytes of one input that are not an event: how many of them are shown, and how the rest is reported.
//!
//! Otherwise a few kilobytes that expand to endless damage would become countless records of high severity, and masked
//! values would leave the machine in them. So each stretch is shown, or withheld with its length and SHA-256; beyond a
//! bound, one record reports everything that is left.

use ring::digest::{Context, SHA256, digest};

use super::censor::Censor;
use super::event::is_like_an_event;

/// Decides about bytes that are not an event, in their order.
pub struct Scraps {
    censor: Censor,
    bytes_left: usize,
    records_left: usize,
    /// Where the last stretch ended.
    end: Option<u64>,
    rest: Option<ScrapRest>,
}

struct ScrapRest {
    offset: u64,
    bytes: u64,
    stretches: u64,
    hash: Context,
}

/// The decision about a stretch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScrapFate {
    /// It is shown.
    Shown,
    /// It is withheld because it may hold masked values; this is its SHA-256.
    Withheld([u8; 32]),
    /// It is reported together with everything that is left: [`Scraps::rest`].
    Counted,
}

/// The rest of an input beyond the bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remainder {
    /// The offset of its first byte.
    pub offset: u64,
    /// How many bytes.
    pub bytes: u64,
    /// The number of stretches.
    pub stretches: u64,
    /// SHA-256 of all of them, one after the other.
    pub sha256: [u8; 32],
}

impl Scraps {
    /// Shows at most `bytes_max` bytes in at most `records_max` records.
    pub fn new(censor: Censor, bytes_max: usize, records_max: usize) -> Self {
        Self { censor, bytes_left: bytes_max, records_left: records_max, end: None, rest: None }
    }

    /// Tells of the element that ended just before what is judged next. A damaged byte can end an element early, and
    /// then the name of what follows stands in it. What came before an event is over with it.
    pub fn follows(&mut self, element: &[u8]) {
        if is_like_an_event(element) {
            self.censor.restart();
        } else {
            self.censor.elsewhere();
        }
        self.censor.admits(element);
        self.end = None;
    }

    /// What becomes of these bytes, which begin at `offset`.
    pub fn judge(&mut self, bytes: &[u8], offset: u64) -> ScrapFate {
        if self.records_left == 0 || bytes.len() > self.bytes_left || self.rest.is_some() {
            let rest = self.rest.get_or_insert_with(|| ScrapRest {
                offset,
                bytes: 0,
                stretches: 0,
                hash: Context::new(&SHA256),
            });
            rest.stretches += u64::from(self.end != Some(offset) || rest.stretches == 0);
            rest.bytes += bytes.len() as u64;
            rest.hash.update(bytes);
            self.end = Some(offset + bytes.len() as u64);
            return ScrapFate::Counted;
        }
        if self.end.is_some_and(|end| end != offset) {
            self.censor.elsewhere();
        }
        self.end = Some(offset + bytes.len() as u64);
        self.records_left -= 1;
        if !self.censor.admits(bytes) {
            return ScrapFate::Withheld(sha256(digest(&SHA256, bytes).as_ref()));
        }
        self.bytes_left -= bytes.len();
        ScrapFate::Shown
    }

    /// What was left beyond the bound; nothing the second time.
    pub fn rest(&mut self) -> Option<Remainder> {
        let ScrapRest { offset, bytes, stretches, hash } = self.rest.take()?;
        Some(Remainder { offset, bytes, stretches, sha256: sha256(hash.finish().as_ref()) })
    }
}

fn sha256(digest: &[u8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.get(..32).unwrap_or(&[0; 32]));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scraps(bytes_max: usize, records_max: usize) -> Scraps {
        Scraps::new(Censor::new(["DetectedValues"]), bytes_max, records_max)
    }

    #[test]
    fn beyond_the_bound_one_remainder_speaks_for_all() {
        let mut scraps = scraps(10, 3);
        assert_eq!(scraps.judge(b"12345", 0), ScrapFate::Shown);
        assert_eq!(scraps.rest(), None);
        assert_eq!(scraps.judge(b"123456", 10), ScrapFate::Counted);
        assert_eq!(scraps.judge(b"7", 16), ScrapFate::Counted);
        assert_eq!(scraps.judge(b"8", 20), ScrapFate::Counted);
        let rest = scraps.rest().unwrap();
        assert_eq!((rest.offset, rest.bytes, rest.stretches), (10, 8, 2));
        assert_eq!(rest.sha256, sha256(digest(&SHA256, b"12345678").as_ref()));
        assert_eq!(scraps.rest(), None);
        let mut scraps = self::scraps(10, 3);
        assert_eq!(
            [0, 2, 4, 6].map(|at| scraps.judge(b"x", at)).map(|fate| fate == ScrapFate::Shown),
            [true, true, true, false]
        );
    }

    #[test]
    fn what_follows_a_name_is_withheld_also_when_the_name_is_in_the_element_before() {
        let mut scraps = scraps(100, 9);
        assert_eq!(scraps.judge(b"x", 0), ScrapFate::Shown);
        scraps.follows(br#"{"Id":"a","Data":"{\"DetectedValues\":[\"x"}"#);
        assert!(matches!(scraps.judge(br#",\"4111\"]}"}"#, 50), ScrapFate::Withheld(_)));
        // Neither a number nor a gap ends that, but the next event does.
        scraps.follows(b"17");
        assert!(matches!(scraps.judge(b"4111", 90), ScrapFate::Withheld(_)));
        scraps.follows(br#"{"Id":"b","Operation":"o"}"#);
        assert_eq!(scraps.judge(b"nonsense", 200), ScrapFate::Shown);
        let mut scraps = self::scraps(100, 9);
        assert_eq!(scraps.judge(b"{\"Detect", 0), ScrapFate::Shown);
        assert!(matches!(scraps.judge(b"edValues\":[4111", 8), ScrapFate::Withheld(_)));
    }
}
