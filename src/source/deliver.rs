//! Handing a batch to the host until the host has it for good.
//!
//! A refusal keeps the bytes and sends them again, for ever, with back-off. A rejection splits the batch down to the
//! single records the host will never take; those are returned to be set aside in the state store.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

use super::health::{Board, Level, Place};
use crate::checkpoint::format::{AsideRecord, FORMAT};
use crate::clock::Clock;
use crate::host::{Batch, Delivery, Host};
use crate::metrics;
use crate::model::ContentType;

const DELAY_MIN: Duration = Duration::from_secs(1);
const DELAY_MAX: Duration = Duration::from_secs(60);
/// Refusals in a row before health says so: a sink that restarts is no trouble.
const REFUSALS_BEFORE_TROUBLE: u32 = 3;

/// A record the host rejected, ready to be stored.
pub type Aside = (ContentType, u128, AsideRecord);

/// Delivers batches to one host.
#[derive(Clone)]
pub struct Courier {
    /// The host.
    pub host: Arc<dyn Host>,
    /// Time, for the back-off.
    pub clock: Arc<dyn Clock>,
    /// Told when the host keeps refusing.
    pub board: Board,
}

impl Courier {
    /// Resolves when every record of `batch` is delivered or was rejected on its own; the latter are returned.
    pub async fn deliver(&self, batch: Batch) -> Vec<Aside> {
        let mut aside = Vec::new();
        let mut todo = vec![batch];
        while let Some(batch) = todo.pop() {
            let mut delays = ExponentialBuilder::default()
                .with_min_delay(DELAY_MIN)
                .with_max_delay(DELAY_MAX)
                .without_max_times()
                .with_jitter()
                .build();
            let mut refusals = 0;
            loop {
                match self.host.deliver(batch.clone()).await.await {
                    Delivery::Delivered => {
                        let events = batch.len() as u64;
                        ::metrics::counter!(metrics::EVENTS_TOTAL, "tenant" => batch.tenant.to_string(), "content_type" => batch.content_type.as_str()).increment(events);
                        if refusals >= REFUSALS_BEFORE_TROUBLE {
                            self.board.clear(Place::Delivery);
                        }
                        break;
                    }
                    Delivery::Refused(why) => {
                        refusals += 1;
                        ::metrics::counter!(metrics::REFUSED_BATCHES_TOTAL, "tenant" => batch.tenant.to_string())
                            .increment(1);
                        tracing::debug!(source = %batch.source, batch = batch.id, why, "the host refused a batch, it is sent again");
                        if refusals >= REFUSALS_BEFORE_TROUBLE {
                            self.board.report(
                                Place::Delivery,
                                Level::Degraded,
                                format!("the host refuses records: {why}"),
                                "nothing is lost, they are sent again until it takes them",
                            );
                        }
                        self.clock.sleep(delays.next().unwrap_or(DELAY_MAX)).await;
                    }
                    Delivery::Rejected(why) => {
                        match batch.split() {
                            Some((first, second)) => {
                                todo.push(second);
                                todo.push(first);
                            }
                            None => aside.extend(self.set_aside(&batch, &why)),
                        }
                        break;
                    }
                }
            }
        }
        aside
    }

    fn set_aside(&self, batch: &Batch, why: &str) -> Vec<Aside> {
        tracing::error!(
            source = %batch.source, tenant = %batch.tenant, content_type = %batch.content_type, why,
            "record-rejected: the host rejected a record for good; it is set aside in the state store (see `m365-audit state show`)"
        );
        batch
            .records()
            .map(|record| {
                let hash = blake3::hash(record.json);
                let mut first = [0; 16];
                first.copy_from_slice(&hash.as_bytes()[..16]);
                let aside = AsideRecord {
                    format: FORMAT,
                    why: why.to_owned(),
                    since: self.clock.now(),
                    time: record.time,
                    severity: record.severity().as_str().to_owned(),
                    record: String::from_utf8_lossy(record.json).into_owned(),
                };
                (batch.content_type, u128::from_be_bytes(first), aside)
            })
            .collect()
    }
}
