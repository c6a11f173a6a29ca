//! One receipt: an event's canonical key and what became of the event.

use std::sync::Arc;

use crate::model::ContentType;
use crate::normalise::CanonicalKey;

/// What became of an event. Ordered: of several receipts for one event the greatest says how it ended, since a read on
/// hold is dropped or delivered later, and a record that is set aside may be taken at another try.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A routine read waits until it is known whether data loss prevention flagged it.
    Held,
    /// Every receiver refused the record alone while it took others: it is in the state.
    SetAside,
    /// This rule dropped it.
    Dropped(Arc<str>),
    /// The host has it for good.
    Delivered,
}

/// What became of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Where the event came from.
    pub content_type: ContentType,
    /// Its key; `None` for an event without `Id`, which is only counted.
    pub key: Option<CanonicalKey>,
    /// What became of it.
    pub class: Class,
}
