//! The order in which blobs are fetched.

use std::cmp::Ordering as Order;

use super::super::job::Job;

/// A blob that may be fetched.
pub(super) struct Ready(pub Job);

impl PartialEq for Ready {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Order::Equal
    }
}
impl Eq for Ready {}
impl PartialOrd for Ready {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}
impl Ord for Ready {
    /// Newest first: today's events are not starved by a back-fill.
    fn cmp(&self, other: &Self) -> Order {
        (self.0.blob.created, self.0.key).cmp(&(other.0.blob.created, other.0.key))
    }
}
