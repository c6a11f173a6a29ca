//! Severity: how much an event matters, and which rules say so.

use std::fmt;

/// How much an event matters, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth keeping.
    Info,
    /// Worth having when something else is found.
    Low,
    /// Worth a look.
    Medium,
    /// Worth waking for.
    High,
    /// Drop everything.
    Critical,
}

impl Severity {
    /// The word in a record: `info`, `low`, `medium`, `high`, `critical`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
