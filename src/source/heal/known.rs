//! Reads from receipts which events were delivered, and since when receipts exist; also how late content came.

use std::sync::Arc;

use super::plan;
use crate::checkpoint::format::Keys;
use crate::host::{StateError, StateStore};
use crate::model::{ContentType, Timestamp};
use crate::normalise::CanonicalKey;
use crate::receipts::Class;
use crate::reconcile::class;
use crate::reconcile::evidence::{self, EvidenceReach, Known, ReceiptVisitor};
use crate::reconcile::stored::StateReceipts;

/// Ids of events. They are hashes, and every receipt is looked up among them.
pub(super) type EventIds = std::collections::HashSet<u128, foldhash::fast::RandomState>;

/// Which of some events have a receipt.
struct Search<'a> {
    wanted: &'a EventIds,
    found: EventIds,
}

impl ReceiptVisitor for Search<'_> {
    fn entry(&mut self, key: CanonicalKey, _: &Class) {
        let id = u128::from_be_bytes(*key.as_bytes());
        if self.wanted.contains(&id) {
            self.found.insert(id);
        }
    }

    fn part_ended(&mut self) {}
}

/// Those of `wanted`, which happened from `since` on, that have a receipt, and since when an event without a receipt
/// was not delivered; `None`: unknown.
///
/// # Errors
/// The state cannot be read.
pub(super) async fn by_receipts(
    store: &Arc<dyn StateStore>,
    keys: &Keys,
    wanted: &EventIds,
    since: Timestamp,
) -> Result<(EventIds, Option<Timestamp>), StateError> {
    let mut search = Search { wanted, found: EventIds::default() };
    let reach = StateReceipts::new(store.clone(), keys).of_events_since(since).visit(&mut search).await?;
    let reach = reach.map(|reach| match reach {
        EvidenceReach::Whole => Timestamp::MIN,
        EvidenceReach::From(from) => from,
    });
    Ok((search.found, reach.filter(|reach| *reach < Timestamp::MAX)))
}

/// The streams in the state, with how late their content comes.
///
/// # Errors
/// The state cannot be read.
pub(super) async fn streams(
    store: &dyn StateStore,
    keys: &Keys,
    content_types: &[ContentType],
) -> Result<Vec<plan::PlannedStream>, StateError> {
    let stored = evidence::streams(store, keys, content_types).await?;
    let stream = |stream: class::ComparedStream| plan::PlannedStream {
        content_type: stream.content_type,
        position: stream.position,
        late: stream.late,
    };
    Ok(stored.into_iter().map(stream).collect())
}
