//! Decides whether bytes that cannot be parsed may be shown.
//!
//! The mask needs JSON: it searches for members. In damaged bytes only a member's name can be searched for, and the
//! name itself may be damaged. So bytes are followed as they come, piece by piece, and nothing from a masked name on,
//! in any spelling, may be shown. The bytes before it may: a value follows its name.
//!
//! Only letters count, without case, escapes undone: so quotes, blanks, the zeros of UTF-16, backslashes of JSON within
//! strings and line breaks do not hide a name. Three letters may be wrong, missing or too many: what one damaged byte does
//! to an escape. Base64 is searched for the name as it is encoded.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use memchr::memmem;

/// Letters that may be wrong, missing or too many in a name.
const EDITS_MAX: u8 = 3;
/// The same in a name of fewer letters than this.
const SHORT: usize = 12;
const EDITS_OF_SHORT_MAX: u8 = 1;
/// A name shorter than this is not looked for in base64.
const SHORT_IN_BASE64: usize = 6;

/// Follows bytes and says whether they may be shown; see the module's documentation.
#[derive(Debug, Clone)]
pub struct Censor {
    names: Vec<Name>,
    fold: Fold,
    /// A name was found: nothing may be shown any more.
    named: bool,
    /// The last bytes, for base64 that goes on in the next piece.
    tail: Vec<u8>,
}

/// A name that is looked for.
#[derive(Debug, Clone)]
struct Name {
    letters: Vec<u8>,
    edits_max: u8,
    /// How many edits make the end of what was read the first `n` letters of the name (Sellers's algorithm).
    edits: Vec<u8>,
    /// The name in base64, by where in a group of three bytes it begins.
    encoded: [Vec<u8>; 3],
}

/// Undoes escapes, over piece ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fold {
    Plain,
    /// After a backslash.
    Escape,
    /// After `\u` and so many digits.
    Unit(u8, u32),
}

impl Censor {
    /// Looks for these names. An empty one may be anywhere: nothing may be shown.
    pub(crate) fn new<'n>(names: impl IntoIterator<Item = &'n str>) -> Self {
        let names: Vec<Name> = names.into_iter().map(Name::new).collect();
        let named = names.iter().any(|name| name.letters.is_empty());
        Self { names, fold: Fold::Plain, named, tail: Vec::new() }
    }

    /// Whether these bytes, which follow those of the last call, may be shown.
    pub fn admits(&mut self, bytes: &[u8]) -> bool {
        if self.names.is_empty() {
            return true;
        }
        if self.named {
            return false;
        }
        for byte in bytes {
            if let Some(letter) = self.fold.letter(*byte)
                && self.names.iter_mut().any(|name| name.read(letter))
            {
                self.named = true;
                return false;
            }
        }
        self.tail.extend_from_slice(bytes);
        self.named = self.is_in_base64(&self.tail);
        let longest = self.names.iter().map(|name| name.encoded[0].len()).max().unwrap_or(0);
        self.tail.drain(..self.tail.len().saturating_sub(longest));
        !self.named
    }

    /// Whether a name stands in these bytes as base64 has it.
    pub(crate) fn is_in_base64(&self, bytes: &[u8]) -> bool {
        let mut encoded = self.names.iter().flat_map(|name| &name.encoded).filter(|text| !text.is_empty());
        encoded.any(|text| memmem::find(bytes, text).is_some())
    }

    /// What comes next has nothing to do with what came before.
    pub(crate) fn restart(&mut self) {
        self.elsewhere();
        self.named = self.names.iter().any(|name| name.letters.is_empty());
    }

    /// What comes next does not follow what came last; a name that was found stays found.
    pub fn elsewhere(&mut self) {
        self.fold = Fold::Plain;
        self.tail.clear();
        self.names.iter_mut().for_each(Name::forget);
    }
}

impl Name {
    fn new(name: &str) -> Self {
        let letters: Vec<u8> =
            name.bytes().filter(u8::is_ascii_alphabetic).map(|byte| byte.to_ascii_lowercase()).collect();
        let edits_max = if letters.len() < SHORT { EDITS_OF_SHORT_MAX } else { EDITS_MAX };
        // Whole groups only: what stands beside the name changes the letters at its ends.
        let encoded = [0_usize, 1, 2].map(|before| {
            let text = STANDARD_NO_PAD.encode([vec![0; before], name.as_bytes().to_vec()].concat());
            let (from, to) = ((before * 8).div_ceil(6), (before + name.len()) * 8 / 6);
            // Of a short name the same letters stand in any base64.
            let to = if name.len() < SHORT_IN_BASE64 { from } else { to };
            text.as_bytes().get(from..to).unwrap_or_default().to_vec()
        });
        let mut name = Self { letters, edits_max, edits: Vec::new(), encoded };
        name.forget();
        name
    }

    fn forget(&mut self) {
        self.edits = (0..=self.letters.len()).map(|n| u8::try_from(n).unwrap_or(u8::MAX)).collect();
    }

    /// Whether the name, or nearly, ends with this letter.
    fn read(&mut self, letter: u8) -> bool {
        // The name may begin anywhere: none of it costs nothing.
        let (mut diagonal, mut left) = (0_u8, 0_u8);
        for (wanted, above) in self.letters.iter().zip(self.edits.iter_mut().skip(1)) {
            let here = if *wanted == letter { diagonal } else { diagonal.min(*above).min(left).saturating_add(1) };
            diagonal = *above;
            *above = here;
            left = here;
        }
        left <= self.edits_max
    }
}

impl Fold {
    /// The letter, if any, that the next byte completes.
    fn letter(&mut self, byte: u8) -> Option<u8> {
        match (*self, byte) {
            (Self::Unit(digits, value), byte) if byte.is_ascii_hexdigit() => {
                let value = value * 16 + char::from(byte).to_digit(16).unwrap_or(0);
                *self = if digits < 3 { Self::Unit(digits + 1, value) } else { Self::Plain };
                let letter = u8::try_from(value).ok().filter(|_| digits == 3)?;
                letter.is_ascii_alphabetic().then(|| letter.to_ascii_lowercase())
            }
            (_, b'\\') => {
                *self = Self::Escape;
                None
            }
            (Self::Escape, b'u') => {
                *self = Self::Unit(0, 0);
                None
            }
            (Self::Escape, b'b' | b'f' | b'n' | b'r' | b't') => {
                *self = Self::Plain;
                None
            }
            (_, byte) => {
                *self = Self::Plain;
                byte.is_ascii_alphabetic().then(|| byte.to_ascii_lowercase())
            }
        }
    }
}

/// Whether a key of more than twelve bytes, as it stands, may be `DetectedValues`: one damaged byte leaves one half of it as it
/// is, or a backslash of an escape.
pub(super) fn may_be_detected_values(key: &[u8]) -> bool {
    let (Some(first), Some(last)) = (key.first_chunk::<7>(), key.last_chunk::<7>()) else { return false };
    first.eq_ignore_ascii_case(b"Detecte")
        || last.eq_ignore_ascii_case(b"dValues")
        || key.len() > 16 && key.contains(&b'\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shows(text: &[u8]) -> bool {
        let whole = Censor::new(["DetectedValues"]).admits(text);
        for at in 0..text.len() {
            let mut censor = Censor::new(["DetectedValues"]);
            let (first, second) = text.split_at(at);
            let first = censor.admits(first);
            assert_eq!(first && censor.admits(second), whole, "{at}: {}", String::from_utf8_lossy(text));
        }
        whole
    }

    #[test]
    fn a_name_is_found_in_every_spelling_and_with_any_byte_of_it_damaged() {
        let utf16: Vec<u8> = r#""DetectedValues":["#.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let base64 = |before: &str| STANDARD_NO_PAD.encode(format!("{before}\"DetectedValues\":[{{")).into_bytes();
        let spellings: Vec<Vec<u8>> = [
            r#"{"DetectedValues":["#,
            r#"{"DETECTEDVALUES" : ["#,
            r#"{\"detectedValues\":["#,
            r#"{\\\"DetectedValues\\\":["#,
            r#"{"\u0044etectedValues":["#,
            r#"{"Detecte\u0064\u0056alues":["#,
            r#"{\"Detect\\u0065dValues\":["#,
            "{\"Detected\nValues\":[",
        ]
        .iter()
        .map(|text| text.as_bytes().to_vec())
        .chain([utf16])
        .collect();
        for spelling in &spellings {
            assert!(!shows(spelling), "{}", String::from_utf8_lossy(spelling));
            for at in 0..spelling.len() {
                for byte in [None, Some(b'x'), Some(b'\\'), Some(b'"'), Some(b'0'), Some(0), Some(0xff)] {
                    for skip in [0, 1] {
                        let mut damaged = spelling[..at].to_vec();
                        damaged.extend(byte);
                        damaged.extend_from_slice(&spelling[at + skip..]);
                        let mut censor = Censor::new(["DetectedValues"]);
                        assert!(!censor.admits(&damaged), "{at} {}", String::from_utf8_lossy(&damaged));
                    }
                }
            }
        }
        for before in ["", "x", "xy"] {
            assert!(!shows(&base64(before)), "{before}");
        }
        for other in [r#"{"Id":"a","ModifiedProperties":[{"OldValue":"x"}]}"#, "values were detected", "Detected"] {
            assert!(shows(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn what_follows_a_name_is_not_shown_and_what_stands_before_it_is() {
        let mut censor = Censor::new(["DetectedValues"]);
        let pieces = [r#"{"Id":"a","Detect"#, r#"edValues":["#, "4111", "}", "]"];
        assert_eq!(pieces.map(|piece| censor.admits(piece.as_bytes())), [true, false, false, false, false]);
        censor.elsewhere();
        assert!(!censor.admits(b"{}"));
        let mut censor = Censor::new(["DetectedValues"]);
        assert!(censor.admits(b"Detect"));
        censor.elsewhere();
        assert!(censor.admits(b"Values"));
        assert!(Censor::new([]).admits(b"DetectedValues"));
        assert!(!Censor::new([""]).admits(b"x"));
        assert!(Censor::new(["Subject"]).admits(b"SWSW {\"Operation\":\"x\"}"));
    }
}
