//! What all parts of a tenant's work need: fetches, the hold's worker, a back-fill.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::backfill_requests::Backfilling;
use super::budget::Budget;
use super::deliver::{Deliverer, RejectedRecord, Stopped};
use super::health::HealthReporter;
use super::hold::Hold;
use super::parts::TenantParts;
use super::slow_store::SlowStore;
use crate::api::ApiClient;
use crate::checkpoint::claims::EventIndex;
use crate::checkpoint::healed::Healed;
use crate::checkpoint::ledger::{Change, LedgerHandle};
use crate::clock::Clock;
use crate::host::{BatchBuilder, Buffers, Host, Noted, StateError, StateStore};
use crate::metrics;
use crate::model::{ContentType, TenantId, Timestamp};
use crate::normalise::Normaliser;
use crate::severity::Severity;

/// A batch is delivered when it reaches this size.
pub const BATCH_BYTES: usize = 256 * 1024;
/// Bytes of a damaged body in one `m365_audit.bad_blob` record, before base64.
pub const BAD_PIECE_BYTES: usize = 48 * 1024;

/// The part of `in_flight_bytes_max` for batches. The rest is for bodies being read, which are in memory as well.
const fn for_batches(in_flight_bytes_max: u64) -> u64 {
    in_flight_bytes_max - in_flight_bytes_max / 4
}

/// Everything a fetch needs that is the same for all blobs of a tenant. Cheap to clone.
#[derive(Clone)]
pub struct FetchContext {
    /// The source's name.
    pub source: Arc<str>,
    /// The tenant.
    pub tenant: TenantId,
    /// The feed.
    pub api: ApiClient,
    /// Events into records.
    pub normaliser: Arc<Normaliser>,
    /// Delivered events and claims.
    pub events: EventIndex,
    /// Events healed through Microsoft Graph, and the gate that separates them from the feed's.
    pub healed: Healed,
    /// Commits outcomes to the state.
    pub ledger: LedgerHandle,
    /// For pages of keys that are not in memory.
    pub store: Arc<dyn StateStore>,
    /// The host; records go to it by `deliverer`.
    pub host: Arc<dyn Host>,
    /// Delivery.
    pub deliverer: Deliverer,
    /// Bytes in flight.
    pub budget: Budget,
    /// Buffers that batches are written into.
    pub buffers: Buffers,
    /// Routine reads on hold, and what data loss prevention has flagged.
    pub hold: Hold,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// No new body is read once this is cancelled.
    pub stop: CancellationToken,
    /// Whether a receipt records the outcome of each event.
    pub keeps_receipts: bool,
    /// Set in a back-fill, which does not mark blobs: only the loop does.
    pub backfill: Option<Backfilling>,
}

impl FetchContext {
    /// The context of a tenant whose state is open.
    pub(super) fn new(
        parts: &TenantParts,
        reporter: &HealthReporter,
        ledger: LedgerHandle,
        (events, healed): (EventIndex, Healed),
        hold: Hold,
        stop: &CancellationToken,
    ) -> Self {
        Self {
            source: parts.source.clone(),
            tenant: parts.tenant.clone(),
            api: parts.api.clone(),
            normaliser: parts.normaliser.clone(),
            events,
            healed,
            ledger,
            store: SlowStore::watching(parts.host.state(), parts.clock.clone(), reporter),
            host: parts.host.clone(),
            deliverer: Deliverer::new(parts.host.clone(), parts.clock.clone(), reporter.clone()),
            budget: Budget::new(for_batches(parts.in_flight_bytes_max), &parts.pool),
            buffers: Buffers::default(),
            clock: parts.clock.clone(),
            stop: stop.child_token(),
            hold,
            keeps_receipts: parts.receipts.is_some(),
            backfill: None,
        }
    }

    /// Counts an answer that is empty although content was expected.
    pub fn count_empty(&self, content_type: ContentType, endpoint: &'static str) {
        ::metrics::counter!(
            metrics::EMPTY_ANSWERS_TOTAL, "tenant" => self.tenant.to_string(), "content_type" => content_type.as_str(),
            "endpoint" => endpoint
        )
        .increment(1);
    }
}

/// Why the host did not get a record that this program made.
#[derive(Debug)]
pub enum NotNoticed {
    /// The source is stopping: the record is made again after the next start.
    Stopped,
    /// The host rejected it and it cannot be set aside: the state cannot be written.
    State(StateError),
}

/// Delivers one record that this program made (a gap) and resolves when the host has it.
///
/// # Errors
/// The host does not have it.
pub async fn deliver_notice(
    context: &FetchContext,
    content_type: ContentType,
    (time, severity): (Timestamp, Severity),
    write: impl FnOnce(&mut Vec<u8>),
) -> Result<(), NotNoticed> {
    let mut builder = BatchBuilder::default();
    builder.push_with(|out| {
        write(out);
        Some(Noted::of_ours((time, severity)))
    });
    let batch = builder.finish(context.source.clone(), context.tenant.clone(), content_type);
    let aside = context.deliverer.deliver(batch, &context.stop).await.map_err(|Stopped| NotNoticed::Stopped)?;
    if aside.is_empty() {
        return Ok(());
    }
    let aside = aside.into_iter().map(RejectedRecord::stored).collect();
    context.ledger.commit(Change { aside, ..Change::default() }).await.map_err(NotNoticed::State)
}
