use super::Written;

/// What an answer is about, by its own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AnswerKind {
    /// A temporary condition.
    Moment,
    /// Unknown.
    Unclear,
    /// The settings of this program or of the receiver.
    Setting,
    /// These records.
    Records,
    /// The size of the request.
    Size,
}

impl AnswerKind {
    /// `None` for an answer that needs no judgement.
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

    /// Whether it concerns the records sent.
    pub(super) fn is_rejection(self) -> bool {
        matches!(self, Self::Records | Self::Size)
    }

    /// How often a single record is refused by itself before it is set aside; `None`: never.
    pub(super) fn refusals_alone(self) -> Option<u32> {
        match self {
            Self::Moment => None,
            Self::Unclear => Some(8),
            Self::Setting => Some(6),
            Self::Records | Self::Size => Some(4),
        }
    }
}
