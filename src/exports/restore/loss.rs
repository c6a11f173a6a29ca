//! What cannot be brought back.

/// A part of an event that its form had truncated and that cannot be restored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{member}` is cut to `{text}`")]
pub struct Loss {
    /// The member, by its path, such as `Parameters[1].Value`; empty for the whole event.
    pub member: String,
    /// The text in its place, shortened if it is long.
    pub text: String,
}

/// Longest text of a loss, in bytes.
const TEXT_BYTES_MAX: usize = 96;

impl Loss {
    /// A loss at a path.
    pub(crate) fn at(member: impl Into<String>, text: &str) -> Loss {
        let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        let cut = if end < text.len() { "…" } else { "" };
        Loss { member: member.into(), text: format!("{}{cut}", text.get(..end).unwrap_or_default()) }
    }
}

/// The event cannot be converted back to the feed's form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Unrestorable {
    /// Why, in words.
    pub why: String,
}
