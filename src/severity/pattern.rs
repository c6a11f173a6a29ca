//! Texts compared with patterns: without case, `*` for any run of characters.

use memchr::memmem::Finder;

/// A compiled pattern.
#[derive(Debug, Clone)]
pub struct Pattern {
    /// The pieces between the stars, in lower case; one piece and no star is the whole text.
    pieces: Vec<String>,
    /// Whether it is ASCII throughout: then case is ASCII's.
    ascii: bool,
    /// Searchers of the pieces between the first and the last.
    middle: Vec<Finder<'static>>,
}

impl Pattern {
    /// Compiles a text; every text is a pattern.
    pub fn new(text: &str) -> Pattern {
        let pieces: Vec<String> = text.to_lowercase().split('*').map(str::to_owned).collect();
        let middle = pieces.get(1..pieces.len().saturating_sub(1)).unwrap_or_default();
        let middle = middle.iter().map(|piece| Finder::new(piece).into_owned()).collect();
        Pattern { ascii: pieces.iter().all(|piece| piece.is_ascii()), pieces, middle }
    }

    /// Whether the whole of `text` is of this form.
    pub fn matches(&self, text: &str) -> bool {
        Self::any(std::slice::from_ref(self), text)
    }

    /// Whether the whole of `text` is of one of these forms.
    pub fn any(patterns: &[Pattern], text: &str) -> bool {
        // A text is made lower case once for all patterns that need it, and for most none does.
        let mut lower = None;
        patterns.iter().any(|pattern| match pattern.pieces.as_slice() {
            // Lengths differ in nearly every comparison, and beyond ASCII a letter's other case may have another.
            [only] if pattern.ascii => only.len() == text.len() && only.eq_ignore_ascii_case(text),
            [first, last] if pattern.ascii => {
                let (text, first, last) = (text.as_bytes(), first.as_bytes(), last.as_bytes());
                text.len() >= first.len() + last.len()
                    && text.get(..first.len()).is_some_and(|start| start.eq_ignore_ascii_case(first))
                    && text.get(text.len() - last.len()..).is_some_and(|end| end.eq_ignore_ascii_case(last))
            }
            _ => pattern.in_pieces(lower.get_or_insert_with(|| match text.is_ascii() {
                true => text.to_ascii_lowercase(),
                false => text.to_lowercase(),
            })),
        })
    }

    fn in_pieces(&self, text: &str) -> bool {
        match self.pieces.as_slice() {
            [] => text.is_empty(),
            [only] => only == text,
            [first, .., last] => {
                let Some(mut rest) = text.strip_prefix(first.as_str()) else { return false };
                for piece in &self.middle {
                    match piece.find(rest.as_bytes()) {
                        Some(at) => rest = rest.get(at + piece.needle().len()..).unwrap_or_default(),
                        None => return false,
                    }
                }
                rest.ends_with(last.as_str())
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

    proptest! {
        #[test]
        fn stars_around_a_text_find_it(before in "[ -~]*", text in "[ -)+-~]*", after in "[ -~]*") {
            let whole = [before.as_str(), &text, &after].concat();
            let pattern = ["*", text.as_str(), "*"].concat();
            prop_assert!(Pattern::new(&pattern).matches(&whole));
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
