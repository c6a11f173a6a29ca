//! Texts compared with patterns: without case, `*` for any run of characters.

use memchr::memmem::Finder;
use smallvec::SmallVec;

/// A compiled pattern.
#[derive(Debug, Clone)]
pub struct Pattern {
    /// The pieces between the stars, in lower case; one piece and no star is the whole text.
    pieces: Vec<String>,
    /// Whether it is ASCII throughout: then case is ASCII's.
    ascii: bool,
    /// Searchers of the pieces between the first and the last.
    middle: Vec<Finder<'static>>,
    /// Pairs of bytes of the longest of those pieces.
    pairs: Option<[u8; PAIRS_OF_PATTERN]>,
}

/// Pairs of a piece that are looked for before the piece is: its first, its middle, its last.
const PAIRS_OF_PATTERN: usize = 3;
/// Texts of so many bytes for each pattern are asked for pairs first: a search costs as much as the pairs of these bytes.
const PAIRS_WORTH_BYTES: usize = 16;
/// Texts up to this length are made lower case without an allocation.
const SHORT_BYTES: usize = 64;

/// Which pairs of neighbouring bytes a text has, by a hash: no piece is in a text that lacks one of its pairs.
struct PairSet([bool; 256]);

impl PairSet {
    fn of(text: &[u8]) -> PairSet {
        let (mut set, mut before) = ([false; 256], 0);
        for byte in text {
            if let Some(has) = set.get_mut(usize::from(Self::hash(before, *byte))) {
                *has = true;
            }
            before = *byte;
        }
        PairSet(set)
    }

    fn hash(first: u8, second: u8) -> u8 {
        first.wrapping_mul(37) ^ second
    }

    /// The pairs to look for before `piece` is, `None` when it has none.
    fn to_look_for(piece: &str) -> Option<[u8; PAIRS_OF_PATTERN]> {
        let pairs: Vec<u8> = piece.as_bytes().windows(2).map(|pair| Self::hash(pair[0], pair[1])).collect();
        Some([*pairs.first()?, *pairs.get(pairs.len() / 2)?, *pairs.last()?])
    }

    fn may_have(&self, pattern: &Pattern) -> bool {
        pattern.pairs.iter().flatten().all(|pair| self.0.get(usize::from(*pair)) == Some(&true))
    }
}

fn lower_case(text: &str) -> SmallVec<[u8; SHORT_BYTES]> {
    if !text.is_ascii() {
        return SmallVec::from_vec(text.to_lowercase().into_bytes());
    }
    let mut lower = SmallVec::from_slice(text.as_bytes());
    lower.make_ascii_lowercase();
    lower
}

/// Whether two first bytes are the same, or are both missing, whatever their case.
fn is_same_letter(one: Option<&u8>, other: Option<&u8>) -> bool {
    one.map(u8::to_ascii_lowercase) == other.map(u8::to_ascii_lowercase)
}

impl Pattern {
    /// Compiles a text; every text is a pattern.
    pub fn new(text: &str) -> Pattern {
        let pieces: Vec<String> = text.to_lowercase().split('*').map(str::to_owned).collect();
        let between = pieces.get(1..pieces.len().saturating_sub(1)).unwrap_or_default();
        let middle = between.iter().map(|piece| Finder::new(piece).into_owned()).collect();
        let longest = between.iter().max_by_key(|piece| piece.len());
        let pairs = longest.and_then(|piece| PairSet::to_look_for(piece));
        Pattern { ascii: pieces.iter().all(|piece| piece.is_ascii()), pieces, middle, pairs }
    }

    /// Whether the whole of `text` is of this form.
    pub fn matches(&self, text: &str) -> bool {
        Self::any(std::slice::from_ref(self), text)
    }

    /// Whether the whole of `text` is of one of these forms.
    pub fn any(patterns: &[Pattern], text: &str) -> bool {
        // A text is made lower case once for all patterns that need it, and for most none does.
        let (mut lower, mut pairs) = (None, None);
        patterns.iter().any(|pattern| match pattern.pieces.as_slice() {
            // Lengths differ in nearly every comparison, and beyond ASCII a letter's other case may have another.
            [only] if pattern.ascii => {
                only.len() == text.len()
                    && is_same_letter(only.as_bytes().first(), text.as_bytes().first())
                    && *only.as_bytes() == **lower.get_or_insert_with(|| lower_case(text))
            }
            [first, last] if pattern.ascii => {
                let (text, first, last) = (text.as_bytes(), first.as_bytes(), last.as_bytes());
                text.len() >= first.len() + last.len()
                    && text.get(..first.len()).is_some_and(|start| start.eq_ignore_ascii_case(first))
                    && text.get(text.len() - last.len()..).is_some_and(|end| end.eq_ignore_ascii_case(last))
            }
            _ => {
                let lower = lower.get_or_insert_with(|| lower_case(text));
                let is_ruled_out = patterns.len() * PAIRS_WORTH_BYTES >= text.len()
                    && patterns.len() > 1
                    && !pairs.get_or_insert_with(|| PairSet::of(lower)).may_have(pattern);
                !is_ruled_out && pattern.in_pieces(lower)
            }
        })
    }

    fn in_pieces(&self, text: &[u8]) -> bool {
        match self.pieces.as_slice() {
            [] => text.is_empty(),
            [only] => only.as_bytes() == text,
            [first, .., last] => {
                let Some(mut rest) = text.strip_prefix(first.as_bytes()) else { return false };
                for piece in &self.middle {
                    match piece.find(rest) {
                        Some(at) => rest = rest.get(at + piece.needle().len()..).unwrap_or_default(),
                        None => return false,
                    }
                }
                rest.ends_with(last.as_bytes())
            }
        }
    }
}

/// Patterns of names, looked for in lists of pairs. Nearly always no name of a list is meant, so names and lists carry
/// a set of 64 marks each: without a mark in common there is nothing to compare.
#[derive(Debug, Clone)]
pub struct Names {
    patterns: Vec<Pattern>,
    marks: u64,
}

impl Names {
    /// Compiles names.
    pub fn new(names: &[String]) -> Names {
        let patterns: Vec<Pattern> = names.iter().map(|name| Pattern::new(name)).collect();
        let marks = |pattern: &Pattern| match pattern.pieces.as_slice() {
            [only] if pattern.ascii => Self::mark(only),
            _ => u64::MAX,
        };
        Names { marks: patterns.iter().map(marks).fold(0, |all, marks| all | marks), patterns }
    }

    /// The mark of a name: the same for all its spellings in upper and lower case.
    pub fn mark(name: &str) -> u64 {
        let first = name.bytes().next().map_or(0, |byte| u32::from(byte.to_ascii_lowercase()));
        1 << ((first + (name.len() as u32) * 7) & 63)
    }

    /// Whether a name with one of these marks can be meant.
    pub fn may_match(&self, marks: u64) -> bool {
        self.marks & marks != 0
    }

    /// Whether a name is meant.
    pub fn matches(&self, name: &str) -> bool {
        self.may_match(Self::mark(name)) && Pattern::any(&self.patterns, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stars_stand_for_any_run_and_case_does_not_count() {
        for (pattern, text, expected) in [
            ("abc", "ABC", true),
            ("abc", "abcd", false),
            ("é", "É", true),
            ("ab*", "ABcd", true),
            ("*cd", "abCD", true),
            ("*b*d*", "abcde", true),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("*", "", true),
            ("", "", true),
            ("", "x", false),
            ("*\0*", "a\0b", true),
        ] {
            assert_eq!(Pattern::new(pattern).matches(text), expected, "{pattern} {text}");
        }
    }

    /// By trying every length for every star.
    fn is_of_form(text: &str, pattern: &str) -> bool {
        match pattern.chars().next() {
            None => text.is_empty(),
            Some('*') => (0..=text.len()).any(|at| text.get(at..).is_some_and(|rest| is_of_form(rest, &pattern[1..]))),
            Some(c) => text.strip_prefix(c).is_some_and(|rest| is_of_form(rest, &pattern[c.len_utf8()..])),
        }
    }

    proptest! {
        #[test]
        fn stars_around_a_text_find_it(before in "[ -~]*", text in "[ -)+-~]*", after in "[ -~]*") {
            let whole = [before.as_str(), &text, &after].concat();
            let pattern = ["*", text.as_str(), "*"].concat();
            prop_assert!(Pattern::new(&pattern).matches(&whole));
        }

        #[test]
        fn a_list_finds_what_its_patterns_find_one_by_one(
            patterns in proptest::collection::vec(r"[abé]{0,2}(\*[abé]{0,2}){0,3}", 0..6),
            text in "[abABéÉ]{0,40}",
        ) {
            let compiled: Vec<Pattern> = patterns.iter().map(|pattern| Pattern::new(pattern)).collect();
            let expected = patterns.iter().any(|pattern| is_of_form(&text.to_lowercase(), &pattern.to_lowercase()));
            prop_assert_eq!(Pattern::any(&compiled, &text), expected);
        }

        #[test]
        fn marks_never_hide_a_name(name in any::<String>(), upper in any::<bool>()) {
            let written = if upper { name.to_ascii_uppercase() } else { name.to_ascii_lowercase() };
            if !name.contains('*') && name.is_ascii() {
                prop_assert!(Names::new(std::slice::from_ref(&name)).matches(&written));
            }
        }

        #[test]
        fn no_text_panics(pattern in any::<String>(), text in any::<String>()) {
            Pattern::new(&pattern).matches(&text);
        }
    }
}
