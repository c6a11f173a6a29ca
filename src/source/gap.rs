//! Intervals that can never be read: why, and the record that reports one.

use super::context::{FetchContext, NotNoticed, deliver_notice};
use crate::checkpoint::format::DeclaredGap;
use crate::checkpoint::moving::POSITION_MOVED;
use crate::model::{ContentType, Timestamp, Window};
use crate::normalise::GapNotice;
use crate::severity::Severity;

/// Why an interval can never be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapReason {
    /// This program did not run while Microsoft kept the content.
    Outage,
    /// The subscription was off.
    SubscriptionDisabled,
    /// One blob expired before it could be read.
    BlobExpired,
    /// An operator moved the position forward.
    PositionMoved,
}

impl GapReason {
    /// The name in records and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Outage => "outage",
            Self::SubscriptionDisabled => "subscription_disabled",
            Self::BlobExpired => "blob_expired",
            Self::PositionMoved => POSITION_MOVED,
        }
    }
}

/// The gap in the form that the position stores.
pub(super) fn remembered(window: Window, reason: GapReason) -> DeclaredGap {
    DeclaredGap { from: window.start, to: window.end, reason: reason.as_str().to_owned() }
}

/// An interval of one content type that is gone.
#[derive(Debug, Clone)]
pub(super) struct Gap {
    pub content_type: ContentType,
    pub window: Window,
    pub reason: GapReason,
    /// For the operator.
    pub detail: String,
    /// When it was noticed, in Microsoft's time.
    pub noticed: Timestamp,
}

impl Gap {
    /// Delivers the record of the gap, naming the blob if one expired, and resolves when the host has accepted it.
    ///
    /// # Errors
    /// The host did not accept it.
    pub(super) async fn deliver(&self, context: &FetchContext, content_id: Option<&str>) -> Result<(), NotNoticed> {
        let notice = GapNotice {
            tenant: &context.tenant,
            content_type: self.content_type,
            from: self.window.start,
            to: self.window.end,
            reason: self.reason.as_str(),
            detail: &self.detail,
            content_id,
            now: self.noticed,
        };
        deliver_notice(context, self.content_type, (self.noticed, Severity::High), |out| {
            context.normaliser.render_gap(&notice, out);
        })
        .await
    }
}
