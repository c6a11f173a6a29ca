//! Why bytes of a body are no element.

/// Why bytes are no element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Damage {
    /// Bytes between elements that begin no value.
    StrayToken,
    /// Two values without a comma between them. The bytes are empty, the values come as elements.
    MissingComma,
    /// A comma without a value before or after it. The bytes are empty.
    MissingElement,
    /// Brackets, strings, colons and commas of an element do not fit together.
    Unbalanced,
    /// An element over the size limit.
    Oversize,
    /// Bytes after the end of the array.
    AfterEnd,
    /// The body ended inside the element.
    Cut,
    /// The body does not begin with `[`. Empty where the first byte begins an event.
    NotAnArray,
}

impl Damage {
    /// Kebab-case name for logs and records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::StrayToken => "stray-token",
            Self::MissingComma => "missing-comma",
            Self::MissingElement => "missing-element",
            Self::Unbalanced => "unbalanced",
            Self::Oversize => "oversize",
            Self::AfterEnd => "after-end",
            Self::Cut => "cut",
            Self::NotAnArray => "not-an-array",
        }
    }
}
