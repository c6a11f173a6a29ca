//! Texts compared with patterns: without case, `*` for any run of characters.

/// A compiled pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// The pieces between the stars, in lower case; one piece and no star is the whole text.
    pieces: Vec<String>,
}

impl Pattern {
    /// Compiles a text; every text is a pattern.
    pub fn new(text: &str) -> Pattern {
        Pattern { pieces: text.to_lowercase().split('*').map(str::to_owned).collect() }
    }

    /// Whether the whole of `text` is of this form.
    pub fn matches(&self, text: &str) -> bool {
        match self.pieces.as_slice() {
            [] => text.is_empty(),
            [only] if text.is_ascii() => only.eq_ignore_ascii_case(text),
            [only] => *only == text.to_lowercase(),
            [first, middle @ .., last] => {
                let text = text.to_lowercase();
                let Some(mut rest) = text.strip_prefix(first.as_str()) else { return false };
                for piece in middle {
                    match rest.find(piece.as_str()) {
                        Some(at) => rest = rest.get(at + piece.len()..).unwrap_or_default(),
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
