//! Texts compared with patterns: without case, `*` for any run of characters.

use memchr::memmem::Finder;

/// A compiled pattern.
#[derive(Debug, Clone)]
pub struct Pattern {
    /// The pieces between the stars, in lower case; one piece and no star is the whole text.
    pieces: Vec<String>,
    /// Searchers of the pieces between the first and the last.
    middle: Vec<Finder<'static>>,
}

impl Pattern {
    /// Compiles a text; every text is a pattern.
    pub fn new(text: &str) -> Pattern {
        let pieces: Vec<String> = text.to_lowercase().split('*').map(str::to_owned).collect();
        let middle = pieces.get(1..pieces.len().saturating_sub(1)).unwrap_or_default();
        let middle = middle.iter().map(|piece| Finder::new(piece).into_owned()).collect();
        Pattern { pieces, middle }
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
            [only] if text.is_ascii() => only.eq_ignore_ascii_case(text),
            [first, last] if text.is_ascii() => {
                let (text, first, last) = (text.as_bytes(), first.as_bytes(), last.as_bytes());
                text.len() >= first.len() + last.len()
                    && text.get(..first.len()).is_some_and(|start| start.eq_ignore_ascii_case(first))
                    && text.get(text.len() - last.len()..).is_some_and(|end| end.eq_ignore_ascii_case(last))
            }
            _ => pattern.in_pieces(lower.get_or_insert_with(|| text.to_lowercase())),
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
        fn no_text_panics(pattern in any::<String>(), text in any::<String>()) {
            Pattern::new(&pattern).matches(&text);
        }
    }
}
