//! Records that were set aside, offered to the host once more: at each start, and when an operator asks.
//!
//! A refused record says little of its cause: the host may be away, or may never take this record, as it did not when it
//! was set aside. So each is offered by itself, one that is refused keeps no other from its turn, and at a start it is
//! offered again until others were taken in between. It stays set aside unless the host takes it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::deliver::{Deliverer, Trial};
use super::health::HealthReporter;
use crate::backoff::Backoff;
use crate::checkpoint::format::{self, AsideKind, AsideRecord, Keys};
use crate::checkpoint::ledger::{Change, Ledger, LedgerHandle, LedgerSettings};
use crate::clock::Clock;
use crate::host::{Batch, BatchBuilder, Host, Noted, Receipts, StateError, StateStore};
use crate::model::{ContentType, TenantId, Timestamp};
use crate::normalise::CanonicalKey;
use crate::receipts::{Class, OpenReceipts, Receipt};
use crate::severity::Severity;

/// At a start, offering ends after this many rejections in a row: the operator has not applied the remedy yet.
const REJECTIONS_AT_START_MAX: u32 = 16;
/// At a start, a round ends after this many refusals in a row; the next begins with the records behind. Not in a single
/// pass, which has few rounds.
const REFUSALS_IN_ROUND_MAX: u32 = 16;
/// A host that says of this many records in a row that it takes nothing now is away.
const AWAY_AFTER: u32 = 3;
/// At a start, a record stays set aside after this many refusals while others were taken.
const REFUSALS_BESIDE_TAKEN: u32 = 3;
/// The same if others that were set aside were taken at this start, but perhaps all of them before this one.
const REFUSALS_ONCE_TAKEN: u32 = 8;
/// In a single pass, which has to end, it does so after this many refusals, whether or not there were others to take.
const REFUSALS_IN_PASS_MAX: u32 = 3;
/// When an operator asks, a refused record is offered this often: the host may be busy.
const TRIES: u32 = 3;
/// After this many refusals in a row the others are offered once each, so that the operator gets an answer.
const PATIENT_REFUSALS: u32 = 3;
/// When an operator asks and the host refuses everything for so long, the rest is not offered: each refusal may be a
/// request that timed out.
const REFUSING_MAX: Duration = Duration::from_secs(300);
/// Pause before records are offered again to a host that refused.
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

/// The content type of a record and the hash of its bytes.
type AsideKey = (ContentType, u128);

/// Refusals in a row, each of another record.
#[derive(Default)]
struct Row {
    refused: u32,
    /// Those of them by which the host is away.
    away: u32,
    /// When the first was offered, by the monotonic clock.
    since: Option<Duration>,
}

impl Row {
    fn note(&mut self, trial: &Trial, now: Duration) {
        match trial {
            Trial::Delivered | Trial::Rejected(_) => *self = Self::default(),
            Trial::Doubtful(..) | Trial::Away(_) => {
                self.refused += 1;
                self.away = if matches!(trial, Trial::Away(_)) { self.away + 1 } else { 0 };
                self.since.get_or_insert(now);
            }
        }
    }

    fn is_away(&self) -> bool {
        self.away >= AWAY_AFTER
    }

    /// Whether an operator who asked gets the answer now.
    fn is_over(&self, now: Duration) -> bool {
        let has_long = self.since.is_some_and(|since| now.saturating_sub(since) >= REFUSING_MAX);
        self.is_away() || has_long && self.refused >= PATIENT_REFUSALS
    }
}

/// A record that waits at a start, and what speaks against it.
struct Waiting {
    key: AsideKey,
    /// Refusals of which it may be the cause.
    refusals: u32,
    /// Those of them that came after something else was taken.
    beside_taken: u32,
    /// How much was taken when it was first refused.
    taken: u64,
}

impl Waiting {
    fn new(key: AsideKey) -> Self {
        Self { key, refusals: 0, beside_taken: 0, taken: u64::MAX }
    }

    /// Counts a refusal by receivers that had taken so much then. Less than before: a sink was replaced.
    fn refused(&mut self, taken: u64) {
        self.taken = self.taken.min(taken);
        self.refusals += 1;
        self.beside_taken += u32::from(self.taken < taken);
    }

    /// Whether it stays set aside.
    fn stays(&self, once: bool, has_delivered: bool) -> bool {
        self.beside_taken >= REFUSALS_BESIDE_TAKEN
            || has_delivered && self.refusals >= REFUSALS_ONCE_TAKEN
            || once && self.refusals >= REFUSALS_IN_PASS_MAX
    }
}

/// What is offered at a start.
struct AtStart {
    waiting: VecDeque<Waiting>,
    /// In a single pass.
    once: bool,
    /// In a row.
    rejections: u32,
    has_delivered: bool,
}

impl AtStart {
    fn is_over(&self) -> bool {
        self.waiting.is_empty() || self.rejections >= REJECTIONS_AT_START_MAX
    }

    fn note(&mut self, mut record: Waiting, trial: Trial) {
        match trial {
            Trial::Delivered => (self.rejections, self.has_delivered) = (0, true),
            Trial::Rejected(_) => self.rejections += 1,
            Trial::Doubtful(_, taken) => {
                record.refused(taken);
                if !record.stays(self.once, self.has_delivered) {
                    self.waiting.push_back(record);
                }
            }
            Trial::Away(_) => self.waiting.push_back(record),
        }
    }
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
    /// One record at a time, so that none is offered twice at once. Holds which outputs have a record that another of
    /// them refuses: they do not get it again.
    turn: Arc<Mutex<HashMap<AsideKey, Receipts>>>,
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

    /// Offers them as a source starts, in rounds, as long as the host may be away. `once`: in a single pass, which is to
    /// end although a record is refused and there is no other to compare it with.
    pub(super) async fn offer_at_start(&self, once: bool) -> Result<(), StateError> {
        let waiting = self.list().await?.into_iter().map(Waiting::new).collect();
        let mut start = AtStart { waiting, once, rejections: 0, has_delivered: false };
        let mut failures = RETRY.failures();
        loop {
            self.round(&mut start).await?;
            if start.is_over() || self.deliverer.pause(failures.pause(), &self.stop).await.is_err() {
                return Ok(());
            }
        }
    }

    /// Offers each once, and keeps those to be offered again behind those that were not offered.
    async fn round(&self, start: &mut AtStart) -> Result<(), StateError> {
        let mut row = Row::default();
        for _ in 0..start.waiting.len() {
            let is_long = row.refused >= REFUSALS_IN_ROUND_MAX && !start.once;
            if row.is_away() || is_long || start.is_over() || self.stop.is_cancelled() {
                break;
            }
            let Some(record) = start.waiting.pop_front() else { break };
            let Some(trial) = self.offer_one(record.key).await? else { continue };
            row.note(&trial, self.deliverer.monotonic());
            start.note(record, trial);
        }
        Ok(())
    }

    /// Offers all of them. Ends early when the host is away by its own words, or refuses everything for long.
    pub(super) async fn offer(&self) -> Result<Retried, StateError> {
        let mut records: Vec<_> = self.list().await?.into_iter().enumerate().collect();
        // Where it ends early, the next time is the turn of others.
        fastrand::shuffle(&mut records);
        let (mut delivered, mut left) = (0, Vec::new());
        let mut row = Row::default();
        let mut last = String::new();
        for (place, key) in records {
            let now = self.deliverer.monotonic();
            let why = if row.is_over(now) {
                format!("not taken now: {last}")
            } else {
                let tries = if row.refused < PATIENT_REFUSALS { TRIES } else { 1 };
                let Some(trial) = self.offer_patiently(key, tries).await? else { continue };
                row.note(&trial, now);
                match trial {
                    Trial::Delivered => {
                        delivered += 1;
                        continue;
                    }
                    Trial::Rejected(why) => why,
                    Trial::Doubtful(why, _) => {
                        last.clone_from(&why);
                        why
                    }
                    Trial::Away(why) => {
                        last.clone_from(&why);
                        format!("not taken now: {why}")
                    }
                }
            };
            let Some(AsideRecord { since, time, .. }) = self.load(key).await? else { continue };
            left.push((place, StillAside { content_type: key.0.to_string(), since, time, why }));
        }
        left.sort_by_key(|(place, _)| *place);
        Ok(Retried { delivered, left: left.into_iter().map(|(_, record)| record).collect() })
    }

    /// Offers one record, up to `tries` times if it is refused.
    async fn offer_patiently(&self, key: AsideKey, tries: u32) -> Result<Option<Trial>, StateError> {
        let mut failures = RETRY.failures();
        for _ in 1..tries {
            let trial = self.offer_one(key).await?;
            let is_refused = matches!(trial, Some(Trial::Doubtful(..) | Trial::Away(_)));
            if !is_refused || self.deliverer.pause(failures.pause(), &self.stop).await.is_err() {
                return Ok(trial);
            }
        }
        self.offer_one(key).await
    }

    /// Offers one record once; `None` if it is not set aside any more.
    async fn offer_one(&self, key: AsideKey) -> Result<Option<Trial>, StateError> {
        let mut known = self.turn.lock().await;
        let Some(record) = self.load(key).await? else { return Ok(None) };
        let mut batch = self.batch(key.0, &record);
        if let Some(receipts) = known.get(&key) {
            batch.receipts = receipts.clone();
        }
        let receipts = batch.receipts.clone();
        let trial = self.deliverer.try_once(batch).await;
        if trial == Trial::Delivered {
            self.taken(key, record.event).await?;
            known.remove(&key);
        } else if let Some(receipts) = receipts.of_all_records() {
            known.insert(key, receipts);
        }
        Ok(Some(trial))
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

    async fn list(&self) -> Result<Vec<AsideKey>, StateError> {
        let keys = Keys::of(&self.tenant);
        let mut all = Vec::new();
        for &content_type in &*self.content_types {
            let listed = self.store.list(&keys.aside(content_type)).await?;
            all.extend(listed.iter().filter_map(|(key, _)| Some((content_type, format::hash_of(key)?))));
        }
        Ok(all)
    }

    async fn load(&self, (content_type, hash): AsideKey) -> Result<Option<AsideRecord>, StateError> {
        let key = Keys::of(&self.tenant).aside_record(content_type, hash);
        self.store.load(&key).await?.map(|(bytes, _)| format::decode(&key, &bytes)).transpose()
    }

    async fn taken(&self, of: AsideKey, event: Option<CanonicalKey>) -> Result<(), StateError> {
        let mut receipts = OpenReceipts::default();
        if event.is_some() {
            receipts.add(Receipt { content_type: of.0, key: event, class: Class::Delivered });
        }
        self.ledger.commit(Change { taken_back: vec![of], receipts, ..Change::default() }).await
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

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: AsideKey = (ContentType::Exchange, 1);

    fn start(once: bool, keys: u128) -> AtStart {
        let waiting = (0..keys).map(|hash| Waiting::new((ContentType::Exchange, hash))).collect();
        AtStart { waiting, once, rejections: 0, has_delivered: false }
    }

    fn refuse(start: &mut AtStart, taken: u64) {
        let record = start.waiting.pop_front().unwrap();
        start.note(record, Trial::Doubtful("500".into(), taken));
    }

    #[test]
    fn a_record_stays_after_three_refusals_beside_records_that_were_taken() {
        let mut record = Waiting::new(KEY);
        let stays = [5, 5, 6, 6, 7].map(|taken| {
            record.refused(taken);
            record.stays(false, false)
        });
        assert_eq!(stays, [false, false, false, false, true]);
    }

    #[test]
    fn a_record_waits_as_long_as_nothing_was_taken_unless_the_pass_has_to_end() {
        let mut on = start(false, 1);
        (0..1_000).for_each(|_| refuse(&mut on, 3));
        assert!(!on.is_over());
        let mut pass = start(true, 1);
        (0..REFUSALS_IN_PASS_MAX).for_each(|_| refuse(&mut pass, 3));
        assert!(pass.is_over());
    }

    #[test]
    fn the_counts_of_a_sink_that_was_replaced_begin_anew() {
        let mut record = Waiting::new(KEY);
        [900, 0, 0, 0].into_iter().for_each(|taken| record.refused(taken));
        assert!(!record.stays(false, false), "the new one has taken nothing");
        [1, 1, 1].into_iter().for_each(|taken| record.refused(taken));
        assert!(record.stays(false, false));
    }

    #[test]
    fn a_record_that_was_refused_goes_behind_those_that_wait_and_a_host_that_is_away_costs_it_nothing() {
        let mut start = start(true, 3);
        refuse(&mut start, 0);
        let hashes: Vec<u128> = start.waiting.iter().map(|record| record.key.1).collect();
        assert_eq!(hashes, [1, 2, 0]);
        for _ in 0..100 {
            let record = start.waiting.pop_front().unwrap();
            start.note(record, Trial::Away("connection refused".into()));
        }
        assert_eq!(start.waiting.iter().map(|record| record.refusals).sum::<u32>(), 1);
    }

    #[test]
    fn an_operator_gets_an_answer_from_a_host_that_is_away_or_refuses_everything_for_long() {
        let (mut row, now) = (Row::default(), Duration::from_secs);
        (0..AWAY_AFTER).for_each(|_| row.note(&Trial::Away("503".into()), now(0)));
        assert!(row.is_over(now(1)));
        row.note(&Trial::Delivered, now(2));
        assert!(!row.is_over(now(1_000)));
        (0..50).for_each(|_| row.note(&Trial::Doubtful("500".into(), 0), now(10)));
        assert!(!row.is_over(now(60)), "each is offered");
        assert!(row.is_over(now(10) + REFUSING_MAX));
    }
}
