//! Fluent Bit as a host for the source: a queue towards the engine, a state file, and health reports.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use super::encode;
use super::settle::Handover;
use m365_audit::clock::Clock;
use m365_audit::host::{Batch, Delivery, DeliveryTicket, Health, Host, StateStore};
use m365_audit::hosts::embedded::{HealthReport, ReportedHealth};

/// The agent that loaded this plugin.
pub struct FluentBitHost {
    handover: Arc<Handover>,
    state: Arc<dyn StateStore>,
    clock: Arc<dyn Clock>,
    report: watch::Sender<HealthReport>,
}

impl FluentBitHost {
    /// A host that delivers through `handover`, keeps state in `state` and reports health in `report`.
    pub fn new(
        handover: Arc<Handover>,
        state: Arc<dyn StateStore>,
        clock: Arc<dyn Clock>,
        report: watch::Sender<HealthReport>,
    ) -> Self {
        Self { handover, state, clock, report }
    }
}

impl FluentBitHost {
    /// Notes what is wrong with the files of the state, or (`None`) that nothing is.
    pub fn store_trouble(&self, why: Option<String>) {
        let now = self.clock.now();
        self.report.send_modify(|report| report.set_store(why, now));
    }
}

#[async_trait]
impl Host for FluentBitHost {
    /// Waits for room, then encodes here, so that the engine's thread never does.
    async fn deliver(&self, batch: Batch) -> DeliveryTicket {
        // MessagePack is hardly ever longer than the JSON it was made from.
        let Some(room) = self.handover.room(batch.ndjson().len()).await else {
            return DeliveryTicket::resolved(Delivery::Refused("the host is stopping".to_owned()));
        };
        let mut bytes = Vec::with_capacity(batch.ndjson().len());
        let mut records = 0;
        for record in batch.records() {
            records += 1;
            if let Err(error) = encode::entry(&mut bytes, record.time, record.json) {
                // The source splits the batch until it is this record alone.
                return DeliveryTicket::resolved(Delivery::Rejected(format!("a record cannot be encoded: {error}")));
            }
        }
        self.handover.put(bytes, records, room)
    }

    fn state(&self) -> Arc<dyn StateStore> {
        self.state.clone()
    }

    fn health(&self, source: &str, health: Health) {
        match &health {
            Health::Healthy => tracing::debug!(source, "healthy"),
            other => tracing::debug!(source, "{other}"),
        }
        let since = if let Health::Degraded { since, .. } = &health { *since } else { self.clock.now() };
        self.report.send_modify(|report| {
            report.sources.insert(source.to_owned(), ReportedHealth { health, since });
        });
    }
}
