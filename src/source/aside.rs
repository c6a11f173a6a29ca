//! Records that were set aside, offered to the host once more: at each start, and when an operator asks.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::deliver::Deliverer;
use super::health::HealthReporter;
use crate::backoff::Backoff;
use crate::checkpoint::format::{self, AsideKind, AsideRecord, Keys};
use crate::checkpoint::ledger::{Change, Ledger, LedgerHandle, LedgerSettings};
use crate::clock::Clock;
use crate::host::{Batch, BatchBuilder, Delivery, Host, Noted, StateError, StateStore};
use crate::model::{ContentType, TenantId, Timestamp};
use crate::normalise::CanonicalKey;
use crate::receipts::{Class, OpenReceipts, Receipt};
use crate::severity::Severity;

/// At a start, offering ends after this many rejections in a row: the operator has not applied the remedy yet.
const REJECTIONS_AT_START_MAX: u32 = 16;
/// Pause at a start before records are offered again to a host that refused.
const RETRY: Backoff = Backoff::between(Duration::from_secs(1), Duration::from_secs(60));

/// The outcome of offering the records set aside again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retried {
    /// Records that the host accepted.
    pub delivered: u64,
    /// Records that stay set aside.
    pub left: Vec<StillAside>,
}

/// A record that stays set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StillAside {
    /// Its content type.
    pub content_type: String,
    /// When it was set aside.
    pub since: Timestamp,
    /// When the event happened.
    pub time: Timestamp,
    /// The reason the host gave this time.
    pub why: String,
}

/// Asks a running source to offer the records it has set aside; the source answers when it has offered all of them.
pub type RetryRequest = oneshot::Sender<Result<Retried, StateError>>;

/// Both ends of the channel on which a source is asked.
pub fn asking() -> (mpsc::Sender<RetryRequest>, mpsc::Receiver<RetryRequest>) {
    mpsc::channel(1)
}

/// The records that a tenant has set aside. Cheap to clone.
#[derive(Clone)]
pub(super) struct AsideRecords {
    source: Arc<str>,
    tenant: TenantId,
    content_types: Arc<[ContentType]>,
    deliverer: Deliverer,
    ledger: LedgerHandle,
    store: Arc<dyn StateStore>,
    stop: CancellationToken,
    /// One at a time: no record is offered twice at once.
    turn: Arc<Mutex<()>>,
}

impl AsideRecords {
    pub(super) fn new(
        of: (Arc<str>, TenantId, Vec<ContentType>),
        deliverer: Deliverer,
        ledger: LedgerHandle,
        store: Arc<dyn StateStore>,
        stop: CancellationToken,
    ) -> Self {
        let (source, tenant, content_types) = of;
        let turn = Arc::default();
        Self { source, tenant, content_types: content_types.into(), deliverer, ledger, store, stop, turn }
    }

    /// Offers them as a source starts, and retries as long as the host refuses.
    pub(super) async fn offer_at_start(&self) -> Result<(), StateError> {
        let _turn = self.turn.lock().await;
        let mut rejections = 0;
        for (content_type, hash) in self.list().await? {
            let mut refusals = 0;
            while rejections < REJECTIONS_AT_START_MAX
                && let Some(record) = self.load(content_type, hash).await?
            {
                match self.deliverer.try_once(self.batch(content_type, &record), &self.stop).await {
                    Delivery::Delivered => {
                        self.taken(content_type, hash, record.event).await?;
                        rejections = 0;
                    }
                    Delivery::Rejected(_) | Delivery::DeliveredExcept(_) => rejections += 1,
                    Delivery::Refused(_) => {
                        refusals += 1;
                        if self.deliverer.pause(RETRY.after(refusals), &self.stop).await.is_err() {
                            return Ok(());
                        }
                        continue;
                    }
                }
                break;
            }
        }
        Ok(())
    }

    /// Offers each once. Stops at the first refusal, since the host accepts nothing then.
    pub(super) async fn offer(&self) -> Result<Retried, StateError> {
        let _turn = self.turn.lock().await;
        let mut retried = Retried::default();
        let mut refused = None;
        for (content_type, hash) in self.list().await? {
            let Some(record) = self.load(content_type, hash).await? else { continue };
            let why = match &refused {
                Some(why) => String::clone(why),
                None => match self.deliverer.try_once(self.batch(content_type, &record), &self.stop).await {
                    Delivery::Delivered => {
                        self.taken(content_type, hash, record.event).await?;
                        retried.delivered += 1;
                        continue;
                    }
                    Delivery::DeliveredExcept(unfit) => unfit.into_iter().map(|u| u.why).next().unwrap_or_default(),
                    Delivery::Rejected(why) => why,
                    Delivery::Refused(why) => {
                        let why = format!("not taken now: {why}");
                        refused.insert(why).clone()
                    }
                },
            };
            let AsideRecord { since, time, .. } = record;
            retried.left.push(StillAside { content_type: content_type.to_string(), since, time, why });
        }
        Ok(retried)
    }

    /// Answers requests until every sender is dropped; never returns.
    pub(super) async fn serve(&self, asked: Option<mpsc::Receiver<RetryRequest>>) {
        if let Some(mut asked) = asked {
            while let Some(answer) = asked.recv().await {
                // Boxed: every tenant holds this future, and hardly any tenant is ever asked.
                let _ = answer.send(Box::pin(self.offer()).await);
            }
        }
        std::future::pending().await
    }

    async fn list(&self) -> Result<Vec<(ContentType, u128)>, StateError> {
        let keys = Keys::of(&self.tenant);
        let mut all = Vec::new();
        for &content_type in &*self.content_types {
            let listed = self.store.list(&keys.aside(content_type)).await?;
            all.extend(listed.iter().filter_map(|(key, _)| Some((content_type, format::hash_of(key)?))));
        }
        Ok(all)
    }

    async fn load(&self, content_type: ContentType, hash: u128) -> Result<Option<AsideRecord>, StateError> {
        let key = Keys::of(&self.tenant).aside_record(content_type, hash);
        self.store.load(&key).await?.map(|(bytes, _)| format::decode(&key, &bytes)).transpose()
    }

    async fn taken(
        &self,
        content_type: ContentType,
        hash: u128,
        event: Option<CanonicalKey>,
    ) -> Result<(), StateError> {
        let mut receipts = OpenReceipts::default();
        if event.is_some() {
            receipts.add(Receipt { content_type, key: event, class: Class::Delivered });
        }
        self.ledger.commit(Change { taken_back: vec![(content_type, hash)], receipts, ..Change::default() }).await
    }

    fn batch(&self, content_type: ContentType, record: &AsideRecord) -> Batch {
        let mut builder = BatchBuilder::default();
        builder.push_with(|out| {
            out.extend_from_slice(record.record.as_bytes());
            Some(Noted {
                time: record.time,
                severity: Some(Severity::of_word(&record.severity).unwrap_or(Severity::Info)),
                kind: record.kind.as_ref().and_then(AsideKind::kind),
            })
        });
        builder.finish(self.source.clone(), self.tenant.clone(), content_type)
    }
}

/// Offers the records a source has set aside, while no process runs that source.
///
/// # Errors
/// When the state cannot be used.
pub async fn retry_alone(
    source: Arc<str>,
    settings: &LedgerSettings,
    host: Arc<dyn Host>,
    clock: Arc<dyn Clock>,
) -> Result<Retried, StateError> {
    let opened = Ledger::open(host.state(), clock.clone(), settings, Box::new(|_| {})).await?;
    let writer = tokio::spawn(opened.ledger.run());
    let reporter = HealthReporter::new(source.clone(), settings.tenant.clone(), host.clone(), clock.clone());
    let deliverer = Deliverer::new(host.clone(), clock.clone(), reporter);
    let of = (source, settings.tenant.clone(), settings.content_types.clone());
    let retried = AsideRecords::new(of, deliverer, opened.handle, host.state(), CancellationToken::new()).offer().await;
    // Every handle is gone: the writer ends when it has written what it was given.
    writer.await.unwrap_or_else(|error| Err(StateError::Unavailable(error.to_string())))?;
    retried
}
