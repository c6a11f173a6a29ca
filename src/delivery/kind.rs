//! What an answer of a receiver is about, by its own words.

use super::Written;

/// What an answer is about, by its own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The moment.
    Moment,
    /// It does not say.
    Unclear,
    /// Our settings, or the receiver's.
    Setting,
    /// These records.
    Records,
    /// How much it is at once.
    Size,
}

impl Kind {
    /// `None` for what needs no judgement.
    pub(super) fn of(written: &Written) -> Option<Self> {
        match written {
            Written::Delivered | Written::Closed(_) => None,
            Written::Refused { .. } => Some(Self::Moment),
            Written::Unclear(_) => Some(Self::Unclear),
            Written::Misconfigured(_) => Some(Self::Setting),
            Written::Rejected(_) | Written::RejectedSome(_) => Some(Self::Records),
            Written::TooLarge(_) => Some(Self::Size),
        }
    }

    /// Whether it speaks of what was sent.
    pub(super) fn is_rejection(self) -> bool {
        matches!(self, Self::Records | Self::Size)
    }

    /// How often a single record is refused alone before it is set aside; `None`: never.
    pub(super) fn refusals_alone(self) -> Option<u32> {
        match self {
            Self::Moment => None,
            Self::Unclear => Some(8),
            Self::Setting => Some(6),
            Self::Records | Self::Size => Some(4),
        }
    }
}
