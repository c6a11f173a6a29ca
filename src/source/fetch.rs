//! One blob, from its first byte to its mark: fetched as a stream, cut into events, rendered, delivered, settled.
//!
//! A blob is settled when every record of it is delivered (or set aside), dropped by rule, or a duplicate of one that
//! is delivered, and all of that is durable. Batches are delivered while the body still arrives, and their keys are
//! committed one batch at a time, so memory does not grow with the blob and a crash repeats only the events in flight.
//! A fetch that fails half-way loses nothing: when the blob is fetched again, the keys show which events were
//! delivered.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::batch_receipts::{BatchReceipts, ReceiptCollector};
use super::body::Coming;
use super::budget::BudgetPermit;
use super::context::{BAD_PIECE_BYTES, BATCH_BYTES, FetchContext};
use super::deliver::{RejectedRecord, Stopped};
use super::hold::{HoldDecision, StagedHold};
use super::job::{FetchOutcome, Job, Salvage};
use super::tasks::Tasks;
use super::twin::{Twins, twin_of};
use crate::api::ApiError;
use crate::checkpoint::claims::{ClaimState, Dependency, OpenBatch};
use crate::checkpoint::healed::Unwatched;
use crate::checkpoint::held::HeldRecord;
use crate::checkpoint::key::Key;
use crate::checkpoint::lateness::Lateness;
use crate::checkpoint::ledger::{Change, OnDurable};
use crate::host::{Batch, BatchBuilder, Kind, Noted, RECORDS_EXPECTED, StateError};
use crate::metrics;
use crate::model::{BlobRef, TenantId};
use crate::normalise::dlp_link::{DlpMatch, DlpNote, links_of_read, match_of};
use crate::normalise::scraps::{ScrapFate, Scraps};
use crate::normalise::split::{Ending, Piece, Splitter};
use crate::normalise::{
    BadBody, BadBytes, BlobContext, Event, FoundIn, Members, NotAnEvent, Origin, Rendered, Withheld,
};

/// Capacity of a batch: the size at which it is delivered, plus room for nearly any last record.
const BATCH_ROOM: usize = BATCH_BYTES + BATCH_BYTES / 16;
/// Records in one batch.
pub const BATCH_RECORDS_MAX: usize = 4096;
/// Damaged bytes of one blob that are delivered in such records; one more record reports how many bytes exceed this.
pub const BAD_BYTES_MAX: usize = 1024 * 1024;
/// Such records of one blob.
pub const BAD_RECORDS_MAX: usize = 100;
/// Different events without an identity in one blob whose repeats are counted: each takes some 40 bytes of memory.
const ANONYMOUS_MAX: usize = 100_000;
/// `null` elements remembered until an element of another kind is found in the array.
const NULLS_MAX: usize = 64;

/// Called once the body was read (or could not be): the next download may start.
pub type OnBody = Box<dyn FnOnce(DownloadTimes) + Send>;

/// Where the time of a download went.
#[derive(Debug, Clone, Copy)]
pub struct DownloadTimes {
    /// Waiting for bytes, which more downloads at once could hide.
    pub waited: Duration,
    /// The rest: work on the bytes, and waiting for the host.
    pub worked: Duration,
}

impl FetchContext {
    /// Fetches and settles one blob.
    pub async fn settle(&self, job: Job, on_body: OnBody) -> FetchOutcome {
        match self.try_settle(job, on_body).await {
            Ok(outcome) | Err(outcome) => outcome,
        }
    }

    async fn try_settle(&self, job: Job, on_body: OnBody) -> Result<FetchOutcome, FetchOutcome> {
        if job.track_first {
            self.commit(Change { tracked: vec![job.blob.clone()], ..Change::default() }).await?;
        }
        let mut run = Run::new(self, &job);
        let began = self.clock.monotonic();
        let read = run.read_body().await;
        let took = self.clock.monotonic().saturating_sub(began);
        // Lets the connection go back to its pool, where the next download finds it, instead of opening one more.
        tokio::task::yield_now().await;
        on_body(DownloadTimes { waited: run.waited, worked: took.saturating_sub(run.waited) });
        let settled = match read {
            Ok(()) => run.settle().await,
            Err(FetchOutcome::State(error)) => return Err(FetchOutcome::State(error)),
            // Events from the part that was read are valid and have keys.
            Err(outcome) => run.hand_over().await.and(Err(outcome)),
        };
        // Whatever ended it, deliveries in flight are awaited: records that the host accepts would be delivered twice
        // if their keys were not written.
        match (settled, run.join().await) {
            (Err(FetchOutcome::State(error)), _) | (_, Err(FetchOutcome::State(error))) => {
                Err(FetchOutcome::State(error))
            }
            (Err(outcome), _) | (_, Err(outcome)) => Err(outcome),
            (settled, Ok(())) => settled,
        }
    }

    /// The body read in place of a blob, when events of Microsoft Graph are delivered.
    fn healed_body(&self) -> Option<bytes::Bytes> {
        self.backfill.as_ref().and_then(|backfill| backfill.healed.clone())
    }

    async fn commit(&self, change: Change) -> Result<(), FetchOutcome> {
        self.ledger.commit(change).await.map_err(FetchOutcome::State)
    }

    /// Delivers a batch and commits its keys, together with the changes collected beside it.
    async fn deliver_and_commit(self, closed: Closed) -> Result<(), FetchOutcome> {
        let (change, done) = closed.deliver(&self).await?;
        self.commit(change).await?;
        done.committed();
        Ok(())
    }
}

/// Records to be delivered, and the state changes to commit with them.
struct Closed {
    batch: Batch,
    open: OpenBatch,
    twins: Twins,
    staged: StagedHold,
    collected: BatchReceipts,
    permit: Option<BudgetPermit>,
}

/// Records the host has accepted. They keep their claims and their share of the budget until the commit is durable.
struct DeliveredBatch {
    open: OpenBatch,
    twins: Twins,
    _permit: Option<BudgetPermit>,
}

impl DeliveredBatch {
    /// Marks the keys as durable.
    fn committed(self) {
        self.open.committed();
        self.twins.committed();
    }
}

impl Closed {
    /// Delivers the records to the host; returns the changes to commit.
    async fn deliver(self, context: &FetchContext) -> Result<(Change, DeliveredBatch), FetchOutcome> {
        let Closed { batch, open, twins, mut staged, collected, permit } = self;
        let content_type = batch.content_type;
        let mut aside = if batch.is_empty() {
            Vec::new()
        } else {
            context.deliverer.deliver(batch, &context.stop).await.map_err(|Stopped| FetchOutcome::Stopped)?
        };
        let held = std::mem::take(&mut staged.ops);
        let hold = context.hold.clone();
        let on_durable = OnDurable::new(move || hold.committed(staged));
        let receipts = collected.answered(content_type, aside.iter_mut().map(|aside| (aside.place, &mut aside.record)));
        let aside = aside.into_iter().map(RejectedRecord::stored).collect();
        let (delivered, healed) = (open.keys().to_vec(), twins.to_keep().to_vec());
        let change = Change { held, aside, delivered, healed, receipts, on_durable, ..Change::default() };
        Ok((change, DeliveredBatch { open, twins, _permit: permit }))
    }
}

/// The key over an event's text, and its canonical key if both sides of the gate are active.
type EventKeys = (Key, Option<Key>);

/// The work that remains for a piece.
enum Remaining {
    /// None: the piece is done.
    Nothing,
    /// None, and the batch is now full.
    Full,
    /// An event with these keys that this rule would drop.
    Routine(EventKeys, Arc<str>),
    /// Everything.
    All,
}

/// One attempt at one blob.
struct Run<'a> {
    context: &'a FetchContext,
    job: &'a Job,
    salvage: Salvage,
    builder: BatchBuilder,
    /// The budget reserved for the batch being built.
    reserved: Option<BudgetPermit>,
    open: OpenBatch,
    /// The same events by their canonical keys.
    twins: Twins,
    /// Held while work begins that does not use canonical keys.
    _unwatched: Option<Unwatched>,
    /// Routine reads to be put on hold, and their bytes.
    held: Vec<HeldRecord>,
    held_bytes: usize,
    /// Matches of data loss prevention among the events collected.
    matches: Vec<DlpMatch>,
    /// Time spent waiting for the network: what more downloads at once could hide.
    waited: Duration,
    /// Batches handed over while the body still arrives.
    deliveries: Tasks<Result<(), FetchOutcome>>,
    /// Batches of other blobs that carry events of this one.
    dependencies: Vec<Dependency>,
    /// How often each id-less event occurred in this blob.
    anonymous: HashMap<u128, u64>,
    damage: Option<String>,
    /// Whether an element other than `null` was found in the array.
    something: bool,
    /// Offsets of its `null` elements, until another element is found.
    nulls: Vec<u64>,
    /// How many keys the newest claim took, and whether one is canonical.
    claimed: (u32, bool),
    /// Keys of records in the batch being built that are not claimed yet, and the indexes of those records.
    unclaimed: (Vec<EventKeys>, Vec<usize>),
    /// Adjacent bytes that are not an event, until there are enough for a record.
    scrap: Option<Scrap>,
    scraps: Scraps,
    /// The element that was taken last.
    last: Option<bytes::Bytes>,
    collected: ReceiptCollector,
    lateness: Lateness,
    tally: FetchCounts,
}

struct Scrap {
    bytes: Vec<u8>,
    offset: u64,
    why: &'static str,
}

#[derive(Default)]
struct FetchCounts {
    bytes: u64,
    records: u64,
    duplicates: u64,
    dropped: Vec<(Arc<str>, u64)>,
    bad: u64,
}

impl<'a> Run<'a> {
    fn new(context: &'a FetchContext, job: &'a Job) -> Self {
        let (twins, unwatched) = Twins::begin(&context.healed, context.healed_body().is_some());
        Self {
            context,
            job,
            salvage: job.salvage(),
            builder: BatchBuilder::with_room(context.buffers.clone(), BATCH_ROOM)
                .described_by(context.normaliser.clone()),
            reserved: None,
            waited: Duration::ZERO,
            open: context.events.open_batch(),
            twins,
            _unwatched: unwatched,
            held: Vec::new(),
            held_bytes: 0,
            matches: Vec::new(),
            deliveries: Tasks::new(),
            dependencies: Vec::new(),
            anonymous: HashMap::new(),
            damage: None,
            something: false,
            nulls: Vec::new(),
            claimed: (0, false),
            unclaimed: Default::default(),
            scrap: None,
            scraps: Scraps::new(context.normaliser.censor(), BAD_BYTES_MAX, BAD_RECORDS_MAX),
            last: None,
            collected: ReceiptCollector::new(context.keeps_receipts),
            lateness: Lateness::default(),
            tally: FetchCounts::default(),
        }
    }

    /// Reads the body to its end. `Ok` means that all of it is events (or was salvaged).
    async fn read_body(&mut self) -> Result<(), FetchOutcome> {
        let stop = self.context.stop.clone();
        let clock = self.context.clock.clone();
        let mut asked = clock.monotonic();
        let mut body = tokio::select! {
            body = self.open_body() => body?,
            () = stop.cancelled() => return Err(FetchOutcome::Stopped),
        };
        let mut splitter = Splitter::new();
        let mut members = Box::new(Members::default());
        // Only a body that failed before is hashed.
        let mut hasher = (self.job.failures > 0 || self.job.last_chance).then(blake3::Hasher::new);
        loop {
            let chunk = tokio::select! {
                chunk = body.chunk() => chunk.map_err(failed)?,
                () = stop.cancelled() => return Err(FetchOutcome::Stopped),
            };
            self.waited += clock.monotonic().saturating_sub(asked);
            let Some(chunk) = chunk else { break };
            self.tally.bytes += chunk.len() as u64;
            self.context.host.received(&self.context.source, chunk.len());
            if let Some(backfill) = &self.context.backfill {
                backfill.progress.bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            }
            if let Some(hasher) = &mut hasher {
                hasher.update(&chunk);
            }
            splitter.push(chunk);
            while let Some(piece) = splitter.next_read(|bytes| members.read(bytes)) {
                // Nearly every event can be handled without waiting, and a future for each would double the cost.
                match self.take_at_once(&piece, &members) {
                    Remaining::Nothing => {}
                    Remaining::Full => self.hand_over().await?,
                    Remaining::Routine(keys, rule) => self.take_routine(&piece, &members, keys, rule).await?,
                    Remaining::All => self.take(&piece, &members).await?,
                }
                if let Piece::Element { bytes, .. } = piece {
                    self.last = Some(bytes);
                }
            }
            asked = clock.monotonic();
        }
        let ending = splitter.finish();
        while let Some(piece) = splitter.next() {
            self.take(&piece, &members).await?;
            if let Piece::Element { bytes, .. } = piece {
                self.last = Some(bytes);
            }
        }
        let hash = hasher.map(|h| h.finalize());
        self.judge(ending, hash).await
    }

    /// Decides whether a body that arrived whole can be settled.
    async fn judge(&mut self, ending: Ending, hash: Option<blake3::Hash>) -> Result<(), FetchOutcome> {
        let empty = match ending {
            Ending::Complete if !self.something && self.nulls.is_empty() => Some("the body is an empty array"),
            Ending::Complete if !self.something => Some("the array holds nothing but `null`"),
            Ending::Null => Some("the body is `null`"),
            _ => None,
        };
        if let Some(why) = empty {
            return self.judge_empty(why, ending).await;
        }
        self.ship_nulls().await?;
        // Whether three identical bodies are enough, or only the expiry is.
        let mut may_salvage = true;
        let unreadable = match ending {
            Ending::Complete => None,
            Ending::Cut => Some("the array is not closed".to_owned()),
            // The bytes came as damaged pieces, here and below.
            Ending::TrailingData { .. } => Some("something follows the array".to_owned()),
            Ending::Null => Some("the body is `null`, not an array".to_owned()),
            Ending::Empty => {
                may_salvage = false;
                Some("the body is empty".to_owned())
            }
            Ending::NotAnArray { head } => {
                may_salvage = false;
                if self.context.normaliser.censor().admits(&head) {
                    let head = String::from_utf8_lossy(&head[..head.len().min(80)]).into_owned();
                    Some(format!("the body is not a JSON array; it begins {head:?}"))
                } else {
                    Some("the body is not a JSON array; how it begins may hold what is masked".to_owned())
                }
            }
        };
        self.ship_scrap().await?;
        let Some(why) = unreadable.or(self.damage.take()) else { return self.ship_rest().await };
        let shipped = match self.salvage {
            Salvage::Anything => true,
            Salvage::Body(expected) => may_salvage && hash == Some(expected),
            Salvage::Nothing => false,
        };
        if shipped {
            self.ship_rest().await?;
            tracing::warn!(
                tenant = %self.context.tenant, content_type = %self.job.blob.content_type, content_id = %self.job.blob.id,
                "bad-blob: {why}; what is no event was shipped as m365_audit.bad_blob records"
            );
            return Ok(());
        }
        Err(FetchOutcome::Failed { why, error: None, damaged: if may_salvage { hash } else { None } })
    }

    /// Microsoft lists a blob because it has events, so an empty body is believed only when it stays empty. A body that
    /// is not an array is then still delivered to the operator.
    async fn judge_empty(&mut self, why: &str, ending: Ending) -> Result<(), FetchOutcome> {
        if !self.job.believes_empty() {
            return Err(FetchOutcome::Empty { why: why.to_owned() });
        }
        tracing::warn!(
            tenant = %self.context.tenant, content_type = %self.job.blob.content_type, content_id = %self.job.blob.id,
            answers = self.job.empties + 1, "blob-empty: {why}, and stayed so; it counts as read"
        );
        if matches!(ending, Ending::Null) {
            self.ship_bad(b"null", 0, "the body is `null`").await?;
        }
        self.ship_nulls().await
    }

    /// Delivers the `null` elements, which Microsoft sent although they are not events.
    async fn ship_nulls(&mut self) -> Result<(), FetchOutcome> {
        for offset in std::mem::take(&mut self.nulls) {
            self.ship_bad(b"null", offset, "the element is not an object").await?;
        }
        Ok(())
    }

    /// Handles one piece of the body as far as possible without waiting; returns the work that remains. `members` are
    /// those of the element, if it was read.
    fn take_at_once(&mut self, piece: &Piece, members: &Members) -> Remaining {
        let Piece::Element { bytes, read: true, .. } = piece else { return Remaining::All };
        let Ok(event) = Event::of(bytes, members) else { return Remaining::All };
        let Some(identity) = event.identity() else { return Remaining::All };
        if self.reserved.is_none() || self.delivers_again() || self.match_in(&event).is_some() {
            return Remaining::All;
        }
        self.something = true;
        let keys = self.keys_of(&event, Key::of_event(&identity));
        self.came_late(keys.0);
        if let Some(rule) = self.render(&event) {
            return Remaining::Routine(keys, rule);
        }
        self.rendered(keys);
        if self.is_full() { Remaining::Full } else { Remaining::Nothing }
    }

    /// What [`Run::take_at_once`] left to do with an event that a rule would drop.
    async fn take_routine(
        &mut self,
        piece: &Piece,
        members: &Members,
        keys: EventKeys,
        rule: Arc<str>,
    ) -> Result<(), FetchOutcome> {
        let Piece::Element { bytes, read, .. } = piece else { return Ok(()) };
        match event_of(bytes, members, *read) {
            Ok(event) if self.claims(keys).await? => self.routine(&event, rule).await?,
            Ok(_) => {}
            // It parsed as an event a moment ago; if it did not parse now, the blob would not count as read.
            Err(error) => drop(self.damage.get_or_insert_with(|| error.to_string())),
        }
        if self.is_full() { self.hand_over().await } else { Ok(()) }
    }

    /// One piece of the body. `members` are those of the element, if it was read.
    async fn take(&mut self, piece: &Piece, members: &Members) -> Result<(), FetchOutcome> {
        match piece {
            Piece::Element { bytes, offset, .. } if bytes[..] == *b"null" && self.nulls.len() < NULLS_MAX => {
                self.nulls.push(*offset);
                return Ok(());
            }
            _ => self.something = true,
        }
        match piece {
            // It carries no data, and three bytes would become a record of hundreds.
            Piece::Element { bytes, offset, .. } if is_empty_object(bytes) => {
                self.ship_bad(bytes, *offset, "the element is an object without members").await?;
            }
            Piece::Element { bytes, offset, read } => match event_of(bytes, members, *read) {
                Ok(event) => self.event(&event, bytes, *offset).await?,
                Err(error) => {
                    // A valid value that is not an object was sent by Microsoft, and is not damage.
                    if serde_json::from_slice::<&serde_json::value::RawValue>(bytes).is_ok() {
                        self.ship_bad(bytes, *offset, "the element is not an object").await?;
                    } else {
                        self.damage.get_or_insert_with(|| error.to_string());
                        self.collect(bytes, *offset, "the element is not valid JSON").await?;
                    }
                }
            },
            Piece::Damaged { bytes, offset, why } => {
                self.collect(bytes, *offset, why.as_str()).await?;
                self.damage.get_or_insert_with(|| why.as_str().to_owned());
            }
        }
        if self.is_full() { self.hand_over().await } else { Ok(()) }
    }

    fn is_full(&self) -> bool {
        let records = self.builder.len() + self.held.len();
        self.builder.bytes() + self.held_bytes >= BATCH_BYTES
            || records >= BATCH_RECORDS_MAX
            || self.collected.is_full()
    }

    /// The key of bytes without an identity: their hash and how often they occurred before in this blob. Past the limit
    /// of remembered counts, their offset in the body is used.
    fn anonymous_key(&mut self, bytes: &[u8], offset: u64) -> Key {
        let hash = short_hash(bytes);
        if self.anonymous.len() >= ANONYMOUS_MAX && !self.anonymous.contains_key(&hash) {
            return Key::of_anonymous(&self.job.blob.id, bytes, u64::MAX - offset);
        }
        let occurrence = self.anonymous.entry(hash).or_default();
        let key = Key::of_anonymous(&self.job.blob.id, bytes, *occurrence);
        *occurrence += 1;
        key
    }

    async fn event(&mut self, event: &Event<'_>, bytes: &[u8], offset: u64) -> Result<(), FetchOutcome> {
        let keys = match event.identity() {
            Some(identity) => {
                let keys = self.keys_of(event, Key::of_event(&identity));
                self.came_late(keys.0);
                keys
            }
            None => (self.anonymous_key(bytes, offset), None),
        };
        let found = self.match_in(event);
        // A repeated event must have no side effects.
        let first = found.is_some() || self.delivers_again();
        if first && !self.claims(keys).await? {
            return Ok(());
        }
        self.matches.extend(found);
        self.reserve().await;
        match self.render(event) {
            Some(rule) if first || self.claims(keys).await? => self.routine(event, rule).await,
            Some(_) => Ok(()),
            None if first => {
                self.tally.records += 1;
                Ok(())
            }
            None => {
                self.rendered(keys);
                Ok(())
            }
        }
    }

    /// Records how late an event came into its blob; an event without a time is not counted.
    fn came_late(&mut self, key: Key) {
        if key.secs() > 0 {
            self.lateness.events.add(self.job.blob.created.as_second() - i64::from(key.secs()));
        }
    }

    /// The keys of an event: the one over its text, and the canonical one if both sides of the gate are active.
    fn keys_of(&self, event: &Event<'_>, key: Key) -> EventKeys {
        (key, if self.twins.are_named() { twin_of(event) } else { None })
    }

    /// The body of the blob, or its substitute.
    async fn open_body(&self) -> Result<Coming, FetchOutcome> {
        match self.context.healed_body() {
            Some(body) => Ok(Coming::Whole(Some(body))),
            None => self.context.api.fetch_blob(&self.job.blob).await.map(Coming::Blob).map_err(failed),
        }
    }

    /// Whether a back-fill requests events that were already delivered.
    fn delivers_again(&self) -> bool {
        self.context.backfill.as_ref().is_some_and(|backfill| backfill.again.is_some())
    }

    /// The match of data loss prevention that an event reports, if reads wait for matches.
    fn match_in(&self, event: &Event<'_>) -> Option<DlpMatch> {
        let found = self.context.hold.is_dropping().then(|| match_of(event)).flatten();
        found.filter(|found| !found.links.is_empty())
    }

    /// Puts the record of an event into the batch, or returns the rule that would drop it.
    fn render(&mut self, event: &Event<'_>) -> Option<Arc<str>> {
        let blob = context_of(&self.context.tenant, &self.job.blob);
        let normaliser = &self.context.normaliser;
        let mut dropped = None;
        self.builder.push_with(|out| match normaliser.render(event, &blob, out) {
            Rendered::Record { time, severity, kind } => Some(Noted { time, severity, kind: kind.map(Kind::Event) }),
            Rendered::Dropped { rule } => {
                dropped = Some(rule);
                None
            }
        });
        if dropped.is_none() {
            self.collected.event(event);
        }
        dropped
    }

    /// Notes the newest record as one whose key is to be claimed with those of its batch.
    fn rendered(&mut self, new: EventKeys) {
        self.tally.records += 1;
        let (keys, records) = &mut self.unclaimed;
        if keys.capacity() == 0 {
            keys.reserve(RECORDS_EXPECTED);
            records.reserve(RECORDS_EXPECTED);
        }
        keys.push(new);
        records.push(self.builder.len() - 1);
    }

    /// Claims a single event, after those rendered before it; false when it is in flight or already delivered.
    async fn claims(&mut self, keys: EventKeys) -> Result<bool, FetchOutcome> {
        self.claim_rendered().await?;
        let standing = self.claim(keys).await?;
        Ok(matches!(standing, ClaimState::Claimed) || {
            self.repeated(standing);
            false
        })
    }

    /// Claims the rendered events, and removes from the batch those in flight or already delivered. All in one call: a
    /// call for each event would contend with the other downloads for the locks.
    async fn claim_rendered(&mut self) -> Result<(), FetchOutcome> {
        let (pairs, records) = std::mem::take(&mut self.unclaimed);
        let keys: Vec<Key> = pairs.iter().map(|(key, _)| *key).collect();
        let mut taken = Vec::new();
        let store = &*self.context.store;
        let mut claimed = self.open.claim_all(&keys, store, |at, standing| taken.push((at, standing))).await;
        if claimed.is_ok() {
            claimed = self.twins.claim_all(&mut self.open, &pairs, store, &mut taken).await;
        }
        if let Err((known, _)) = &claimed {
            taken.retain(|(at, _)| at < known);
        }
        let known = claimed.as_ref().map_or_else(|(known, _)| *known, |()| keys.len());
        let unknown = known..keys.len();
        self.tally.records -= (taken.len() + unknown.len()) as u64;
        let gone = taken.iter().map(|(at, _)| *at).chain(unknown).filter_map(|at| records.get(at).copied());
        let mut gone: Vec<usize> = gone.collect();
        gone.sort_unstable();
        gone.dedup();
        self.builder.remove(&gone);
        self.collected.remove(&gone);
        taken.into_iter().for_each(|(_, standing)| self.repeated(standing));
        claimed.map_err(|(_, error)| unclaimed(error))
    }

    /// Counts an event that is not sent, and records which batch carries it.
    fn repeated(&mut self, standing: ClaimState) {
        self.tally.duplicates += 1;
        if let ClaimState::InFlight(dependency) = standing
            && !self.dependencies.iter().any(|known| known.is_same(&dependency))
        {
            self.dependencies.push(dependency);
        }
    }

    /// An event that a rule would drop: shipped if its item is known to be flagged, dropped if it is known that it is
    /// not, else put on hold.
    async fn routine(&mut self, event: &Event<'_>, rule: Arc<str>) -> Result<(), FetchOutcome> {
        let hold = &self.context.hold;
        let links = links_of_read(event);
        let judgement = hold.judge(&links, self.job.blob.created);
        let flag = match judgement {
            HoldDecision::Flagged => hold.flag_of(&links).await,
            HoldDecision::Drop | HoldDecision::Hold => Ok(None),
        };
        let flag = match flag {
            Ok(flag) => flag,
            Err(error) => {
                // If this fetch ends here, the key must not be committed with the events collected before it.
                self.release_claims();
                return Err(unclaimed(error));
            }
        };
        if let Some(flag) = flag {
            let blob = context_of(&self.context.tenant, &self.job.blob);
            let normaliser = &self.context.normaliser;
            self.builder.push_with(|out| Some(normaliser.render_noted(event, &blob, DlpNote::Flagged(&flag), out)));
            self.collected.event(event);
            self.tally.records += 1;
            return Ok(());
        }
        if judgement == HoldDecision::Drop {
            self.release_claims();
            self.collected.dropped(event, &rule);
            match self.tally.dropped.iter_mut().find(|(known, _)| *known == rule) {
                Some((_, count)) => *count += 1,
                None => self.tally.dropped.push((rule, 1)),
            }
            return Ok(());
        }
        // A task that waits for disk space must not hold memory permits, because the task that frees disk space may
        // need them.
        if self.held.is_empty() {
            self.reserved = None;
        }
        if self.held.is_empty() && !hold.room(&self.context.stop).await {
            self.release_claims();
            return Err(FetchOutcome::Stopped);
        }
        let raw = bytes::Bytes::copy_from_slice(self.context.normaliser.keepable(event).as_bytes());
        self.held_bytes += raw.len();
        let key = self.collected.key(event);
        self.collected.held(key);
        self.held.push(HeldRecord { rule, raw, links: links.iter().map(|link| link.prefix()).collect(), key });
        Ok(())
    }

    /// Frees the keys of the newest claim: its event is in no batch.
    fn release_claims(&mut self) {
        for _ in 0..self.claimed.0 {
            self.open.release_last();
        }
        if self.claimed.1 {
            self.twins.release_last();
        }
    }

    /// Claims an event for the batch being collected.
    async fn claim(&mut self, (key, twin): EventKeys) -> Result<ClaimState, FetchOutcome> {
        let standing = self.claim_key(key).await?;
        self.claimed.1 = false;
        let (ClaimState::Claimed, Some(twin)) = (&standing, twin) else { return Ok(standing) };
        let again = self.delivers_again();
        match self.twins.claim(twin, &*self.context.store).await {
            Ok(ClaimState::Claimed) => self.claimed.1 = true,
            Ok(_) if again => {}
            Ok(taken) => {
                self.release_claims();
                return Ok(taken);
            }
            Err(error) => {
                self.release_claims();
                return Err(unclaimed(error));
            }
        }
        Ok(standing)
    }

    async fn claim_key(&mut self, key: Key) -> Result<ClaimState, FetchOutcome> {
        let store = &*self.context.store;
        let again = self.context.backfill.as_ref().and_then(|backfill| backfill.again.as_deref());
        let Some(salt) = again else {
            self.claimed.0 = 1;
            return self.open.claim(key, store).await.map_err(unclaimed);
        };
        // Two keys: this repeat, and the event itself for the case that it was never delivered before.
        let standing = self.open.claim(key.of_repeat(salt), store).await.map_err(unclaimed)?;
        if let ClaimState::Claimed = standing {
            match self.open.claim(key, store).await {
                Ok(first) => self.claimed.0 = if matches!(first, ClaimState::Claimed) { 2 } else { 1 },
                Err(error) => {
                    // The event is in no batch, so its repeat key must not be committed with this one.
                    self.open.release_last();
                    return Err(unclaimed(error));
                }
            }
        }
        Ok(standing)
    }

    /// Collects bytes that are not an event. They are delivered when the blob is being salvaged; otherwise the fetch
    /// counts as failed. Adjacent pieces are joined: one damaged stretch comes in several pieces, hostile input in one
    /// piece a byte.
    async fn collect(&mut self, bytes: &[u8], offset: u64, why: &'static str) -> Result<(), FetchOutcome> {
        if self.salvage == Salvage::Nothing || bytes.is_empty() {
            return Ok(());
        }
        match &mut self.scrap {
            Some(scrap) if scrap.offset + scrap.bytes.len() as u64 == offset => scrap.bytes.extend_from_slice(bytes),
            _ => {
                self.ship_scrap().await?;
                self.scrap = Some(Scrap { bytes: bytes.to_vec(), offset, why });
            }
        }
        if self.scrap.as_ref().is_some_and(|scrap| scrap.bytes.len() >= BAD_PIECE_BYTES) {
            self.ship_scrap().await?;
        }
        Ok(())
    }

    async fn ship_scrap(&mut self) -> Result<(), FetchOutcome> {
        match self.scrap.take() {
            Some(scrap) => self.ship_bad(&scrap.bytes, scrap.offset, scrap.why).await,
            None => Ok(()),
        }
    }

    async fn ship_bad(&mut self, bytes: &[u8], mut offset: u64, why: &str) -> Result<(), FetchOutcome> {
        if let Some(last) = self.last.take() {
            self.scraps.follows(&last);
        }
        for piece in bytes.chunks(BAD_PIECE_BYTES) {
            let at = offset;
            offset += piece.len() as u64;
            let fate = self.scraps.judge(piece, at);
            let body = match &fate {
                ScrapFate::Counted => continue,
                ScrapFate::Shown => BadBody::Shown(piece),
                ScrapFate::Withheld(sha256) => {
                    let bytes = piece.len() as u64;
                    BadBody::Withheld { bytes, sha256, why: Withheld::Masked, stretches: None }
                }
            };
            let key = self.anonymous_key(piece, at);
            self.push_bad(key, at, body, why).await?;
        }
        Ok(())
    }

    /// Delivers a record of how many damaged bytes one blob had beyond the limit.
    async fn ship_rest(&mut self) -> Result<(), FetchOutcome> {
        let Some(rest) = self.scraps.rest() else { return Ok(()) };
        let body = BadBody::Withheld {
            bytes: rest.bytes,
            sha256: &rest.sha256,
            why: Withheld::TooMany,
            stretches: Some(rest.stretches),
        };
        let key = Key::of_anonymous(&self.job.blob.id, &rest.sha256, 0);
        self.push_bad(key, rest.offset, body, "bytes that are no event, in the rest of the blob").await
    }

    async fn push_bad(&mut self, key: Key, offset: u64, body: BadBody<'_>, reason: &str) -> Result<(), FetchOutcome> {
        if !matches!(self.claim((key, None)).await?, ClaimState::Claimed) {
            return Ok(());
        }
        self.reserve().await;
        let blob = context_of(&self.context.tenant, &self.job.blob);
        let now = self.context.clock.now();
        self.tally.bad += 1;
        let found_in = FoundIn::default();
        let bad = BadBytes { origin: Origin::of(&blob), now, offset, total: None, body, reason, found_in };
        let normaliser = &self.context.normaliser;
        self.builder.push_with(|out| Some(Noted::of_ours(normaliser.render_bad(&bad, out))));
        self.collected.notice();
        if self.builder.bytes() >= BATCH_BYTES { self.hand_over().await } else { Ok(()) }
    }

    /// Starts a delivery of the records collected so far.
    async fn hand_over(&mut self) -> Result<(), FetchOutcome> {
        let Some(closed) = self.close_batch().await? else { return Ok(()) };
        self.deliveries.spawn(self.context.clone().deliver_and_commit(closed));
        // Finished deliveries free memory; none is awaited here.
        while let Some(done) = self.deliveries.try_join_next() {
            done.unwrap_or(Err(FetchOutcome::Stopped))?;
        }
        Ok(())
    }

    /// Reserves budget before the first record of a batch, since a batch being built uses memory like one in flight. A
    /// waiter must not hold buffer permits; otherwise the tasks it waits for could not finish.
    async fn reserve(&mut self) {
        if self.reserved.is_none() {
            self.reserved = self.context.budget.take(BATCH_ROOM).await;
        }
    }

    /// Takes the records collected so far; `None` when there are none.
    async fn close_batch(&mut self) -> Result<Option<Closed>, FetchOutcome> {
        self.claim_rendered().await?;
        let staged = self.context.hold.stage(&self.job.blob, &mut self.held, &mut self.matches).await;
        let staged = staged.map_err(unclaimed)?;
        self.held_bytes = 0;
        let collected = self.collected.of_batch(self.job.blob.content_type);
        if self.builder.is_empty() && staged.is_empty() && collected.is_empty() {
            return Ok(None);
        }
        let batch =
            self.builder.finish(self.context.source.clone(), self.context.tenant.clone(), self.job.blob.content_type);
        let bytes = batch.memory_bytes();
        let mut permit = self.reserved.take();
        match &mut permit {
            Some(held) if bytes <= held.bytes() => held.shrink(bytes),
            _ => {
                // Released first: two tasks that wait for more while each holds some could deadlock.
                drop(permit);
                permit = self.context.budget.take(bytes).await;
            }
        }
        let open = std::mem::replace(&mut self.open, self.context.events.open_batch());
        let twins = self.twins.take(&self.context.healed);
        Ok(Some(Closed { batch, open, twins, staged, collected, permit }))
    }

    /// How late its events and the blob itself came, once all of it was read.
    fn read_late(&mut self) -> Lateness {
        let mut lateness = std::mem::take(&mut self.lateness);
        lateness.blobs.add(self.context.clock.now().as_second() - self.job.blob.created.as_second());
        let content_type = self.job.blob.content_type.as_str();
        for (name, delays) in
            [(metrics::EVENT_LATENESS_SECONDS, &lateness.events), (metrics::BLOB_LATENESS_SECONDS, &lateness.blobs)]
        {
            for (secs, count) in delays.bounded() {
                let count = usize::try_from(count).unwrap_or(usize::MAX);
                ::metrics::histogram!(name, "content_type" => content_type).record_many(secs as f64, count);
            }
        }
        lateness
    }

    /// Waits for every delivery under way, also after one of them failed; the first failure.
    async fn join(&mut self) -> Result<(), FetchOutcome> {
        let mut joined = Ok(());
        while let Some(done) = self.deliveries.join_next().await {
            joined = joined.and(done.unwrap_or(Err(FetchOutcome::Stopped)));
        }
        joined
    }

    /// Delivers the rest, waits for everything this blob depends on, and marks it.
    async fn settle(&mut self) -> Result<FetchOutcome, FetchOutcome> {
        let last = match self.close_batch().await? {
            Some(closed) => Some(closed.deliver(self.context).await?),
            None => None,
        };
        // From here on this task waits for others, and they may wait for memory.
        self.reserved = None;
        if let Err(outcome) = self.join().await {
            if let (FetchOutcome::Stopped, Some((change, done))) = (&outcome, last) {
                // The host has accepted these, whatever the outcome of the rest.
                self.context.commit(change).await?;
                done.committed();
            }
            return Err(outcome);
        }
        debug_assert!(self.builder.is_empty() && self.deliveries.is_empty(), "CK-3: a record is not confirmed");
        let blob = &self.job.blob;
        let marks = vec![(blob.content_type, self.job.key)];
        let untracked = if self.job.tracked { marks.clone() } else { Vec::new() };
        let settled = if self.context.backfill.is_none() { marks } else { Vec::new() };
        let mut receipts = self.collected.rest(blob.content_type, self.tally.duplicates);
        let lateness = self.context.backfill.is_none().then(|| (blob.content_type, self.read_late()));
        if self.dependencies.is_empty() {
            // The usual case: the last keys and the blob's mark in one commit.
            let (change, done) = last.unzip();
            let mut change = change.unwrap_or_default();
            receipts.append(std::mem::take(&mut change.receipts));
            self.context.commit(Change { settled, untracked, receipts, lateness, ..change }).await?;
            if let Some(done) = done {
                done.committed();
            }
        } else {
            // Other blobs may wait for this blob's keys while it waits for theirs, so the keys are committed before
            // waiting.
            if let Some((change, done)) = last {
                self.context.commit(change).await?;
                done.committed();
            }
            for dependency in std::mem::take(&mut self.dependencies) {
                if !dependency.committed().await {
                    return Err(FetchOutcome::Superseded);
                }
            }
            self.context.commit(Change { settled, untracked, receipts, lateness, ..Change::default() }).await?;
        }
        self.count();
        Ok(FetchOutcome::Settled)
    }

    fn count(&self) {
        let tenant = self.context.tenant.to_string();
        let content_type = self.job.blob.content_type.as_str();
        let add = |name, n| {
            if n > 0 {
                ::metrics::counter!(name, "tenant" => tenant.clone(), "content_type" => content_type).increment(n);
            }
        };
        add(metrics::RECEIVED_BYTES_TOTAL, self.tally.bytes);
        add(metrics::BAD_RECORDS_TOTAL, self.tally.bad);
        if let Some(backfill) = &self.context.backfill {
            backfill.progress.events.fetch_add(self.tally.records + self.tally.bad, Ordering::Relaxed);
            backfill.progress.duplicates.fetch_add(self.tally.duplicates, Ordering::Relaxed);
        }
        if self.tally.duplicates > 0 {
            ::metrics::counter!(metrics::DUPLICATES_TOTAL, "tenant" => tenant.clone(), "content_type" => content_type, "level" => "event").increment(self.tally.duplicates);
        }
        for (rule, n) in &self.tally.dropped {
            ::metrics::counter!(metrics::DROPPED_EVENTS_TOTAL, "tenant" => tenant.clone(), "content_type" => content_type, "reason" => rule.to_string()).increment(*n);
        }
    }
}

fn event_of<'a>(bytes: &'a [u8], members: &'a Members, read: bool) -> Result<Event<'a>, NotAnEvent> {
    if read { Event::of(bytes, members) } else { Event::parse(bytes) }
}

/// Whether an element is `{}`, blanks inside or not.
fn is_empty_object(element: &[u8]) -> bool {
    let inside = element.strip_prefix(b"{").and_then(|rest| rest.strip_suffix(b"}"));
    inside.is_some_and(|inside| inside.trim_ascii().is_empty())
}

fn context_of<'a>(tenant: &'a TenantId, blob: &'a BlobRef) -> BlobContext<'a> {
    BlobContext { tenant, content_type: blob.content_type, content_id: &blob.id, content_created: blob.created }
}

/// A store that cannot be read now fails this fetch, not the source.
fn unclaimed(error: StateError) -> FetchOutcome {
    match error {
        StateError::Unavailable(why) => {
            FetchOutcome::Failed { why: format!("a key cannot be looked up: {why}"), error: None, damaged: None }
        }
        error => FetchOutcome::State(error),
    }
}

fn failed(error: ApiError) -> FetchOutcome {
    FetchOutcome::Failed { why: error.to_string(), error: Some(error), damaged: None }
}

/// A short hash of a stretch of bytes, to count repeats inside one blob.
fn short_hash(bytes: &[u8]) -> u128 {
    let mut first = [0; 16];
    first.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
    u128::from_be_bytes(first)
}
