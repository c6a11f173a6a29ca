//! One receipt: an event's canonical key and its outcome.

use std::sync::Arc;

use crate::model::ContentType;
use crate::normalise::CanonicalKey;

/// The outcome of an event. Ordered: of several receipts for one event, the greatest is the final outcome, since a held
/// read is dropped or delivered later, and a record that was set aside may be accepted at a later attempt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A routine read waits until it is known whether data loss prevention flagged it.
    Held,
    /// Every receiver refused the record by itself while it accepted others: it is in the state.
    SetAside,
    /// This rule dropped it.
    Dropped(Arc<str>),
    /// The host has accepted it for good.
    Delivered,
}

/// A receipt for one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The content type of the event.
    pub content_type: ContentType,
    /// Its key; `None` for an event without `Id`, which is only counted.
    pub key: Option<CanonicalKey>,
    /// Its outcome.
    pub class: Class,
}
