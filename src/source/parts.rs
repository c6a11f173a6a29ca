//! The parts of a tenant's work, as the configuration and the host give them.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use tokio::sync::mpsc;

use super::aside;
use super::backfill_requests::BackfillQueue;
use super::budget::Pool;
use super::heal::requests::{self as heal_queue, HealSettings};
use super::hold::HoldSettings;
use super::server_time::ServerTime;
use super::turns::Turns;
use crate::api::ApiClient;
use crate::checkpoint::journal::Keeping;
use crate::clock::Clock;
use crate::host::Host;
use crate::model::{ContentType, TenantId};
use crate::normalise::Normaliser;

/// The parts of a tenant's loop.
pub struct TenantParts {
    /// The source's name.
    pub source: Arc<str>,
    /// The tenant.
    pub tenant: TenantId,
    /// The streams to run.
    pub content_types: Vec<ContentType>,
    /// The feed; its answers' dates go to `server`.
    pub api: ApiClient,
    /// Microsoft's clock, fed by `api`.
    pub server: ServerTime,
    /// Events into records.
    pub normaliser: Arc<Normaliser>,
    /// The host.
    pub host: Arc<dyn Host>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Time between polls.
    pub poll_interval: Duration,
    /// How far before `complete_until` a poll begins.
    pub overlap: SignedDuration,
    /// How far back the first run begins.
    pub backfill: SignedDuration,
    /// Bound on bytes in flight.
    pub in_flight_bytes_max: u64,
    /// Bound on those of all sources of the process.
    pub pool: Pool,
    /// The turns to read blobs that those sources share.
    pub(super) turns: Turns,
    /// Bound on event keys.
    pub event_keys_max: u64,
    /// How receipts are kept; `None` keeps none.
    pub receipts: Option<Keeping>,
    /// Requests a minute, 0 for no limit.
    pub max_requests_per_minute: u32,
    /// Routine reads on hold.
    pub hold: HoldSettings,
    /// One pass from `origin`, then end.
    pub once: bool,
    /// How gaps are filled through Microsoft Graph.
    pub heal: HealSettings,
    /// Takes requests to fill ranges while it runs.
    pub heal_queue: Option<heal_queue::HealQueue>,
    /// Takes requests for back-fills while it runs.
    pub backfill_queue: Option<BackfillQueue>,
    /// Takes requests to offer the records set aside again.
    pub retries: Option<mpsc::Receiver<aside::RetryRequest>>,
}
