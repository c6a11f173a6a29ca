//! The interface that any agent must offer a source: delivery of records, storage of state, and reports of health.
//!
//! A source delivers a [`Batch`] with [`Host::deliver`]; the returned [`DeliveryTicket`] reports the outcome. The
//! source moves its checkpoint only after [`Delivery::Delivered`], so the answer must be true *for good*: each host's
//! adapter documents what that means there. This module knows no agent and no API.

mod buffers;
pub mod memory;

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use self::buffers::Buffer;
pub use self::buffers::Buffers;
use crate::model::{ContentType, TenantId, Timestamp};
use crate::normalise::category::Category;
pub use crate::normalise::{Describe, EventKind, Kind};
use crate::severity::Severity;

/// The agent, from the view of a source.
#[async_trait]
pub trait Host: Send + Sync + 'static {
    /// Delivers records. A call that does not return, or a ticket that does not resolve, is back-pressure: the source
    /// then holds at most `in_flight_bytes_max` and stops fetching.
    async fn deliver(&self, batch: Batch) -> DeliveryTicket;

    /// Where checkpoints are kept.
    fn state(&self) -> Arc<dyn StateStore>;

    /// Takes note of the state of a source. Called on every change, never per request.
    fn health(&self, source: &str, health: Health);

    /// Takes note of content that a source has received, in bytes after decompression. Called for each piece of a body
    /// as it arrives, so a body that is fetched again counts again. For hosts that count it as their own sources do; by
    /// default nothing is done.
    fn received(&self, source: &str, bytes: usize) {
        let _ = (source, bytes);
    }
}

/// Records for the host: newline-delimited JSON objects in one buffer, with the facts that a host needs about each.
/// Cloning is cheap; the bytes are shared.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Unique in this process.
    pub id: u64,
    /// The source's name in the configuration (`contoso` of `[sources.contoso]`).
    pub source: Arc<str>,
    /// The tenant the records belong to.
    pub tenant: TenantId,
    /// The content type they were listed under.
    pub content_type: ContentType,
    /// A host's own notes on this batch; they stay with it when it is sent again, and both halves of a split get them.
    pub receipts: Receipts,
    ndjson: Bytes,
    /// The size of the buffer behind `ndjson`.
    memory_bytes: usize,
    spans: Arc<[Span]>,
    /// The concatenated types of its events, which `spans` delimit.
    event_types: Arc<[u8]>,
    /// Shared by all clones and parts; `None` if it is no trial.
    trial: Option<Arc<TrialNotes>>,
    describe: Option<Arc<dyn Describe>>,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    start: usize,
    end: usize,
    time: Timestamp,
    /// `None` when [`Describe`] derives it from the record itself.
    severity: Option<Severity>,
    kind: SpanKind,
}

/// [`Kind`] without its text, which is in the batch.
#[derive(Debug, Clone, Copy)]
enum SpanKind {
    Unknown,
    Notice,
    Event { category: Category, start: u32, end: u32 },
}

/// The facts stored about a record beside its bytes.
#[derive(Debug, Clone)]
pub struct Noted {
    /// When the event happened, else when its blob was created.
    pub time: Timestamp,
    /// The severity assessed; `None` when it is derived from the record itself (see [`BatchBuilder::described_by`]).
    pub severity: Option<Severity>,
    /// The subject of the record; `None` when it is unknown, or derived likewise.
    pub kind: Option<Kind>,
}

impl Noted {
    /// For a record that this program made.
    pub fn of_ours((time, severity): (Timestamp, Severity)) -> Self {
        Self { time, severity: Some(severity), kind: Some(Kind::Notice) }
    }
}

impl<S: Into<Option<Severity>>> From<(Timestamp, S)> for Noted {
    fn from((time, severity): (Timestamp, S)) -> Self {
        Self { time, severity: severity.into(), kind: None }
    }
}

impl<S: Into<Option<Severity>>> From<(Timestamp, S, Kind)> for Noted {
    fn from((time, severity, kind): (Timestamp, S, Kind)) -> Self {
        Self { time, severity: severity.into(), kind: Some(kind) }
    }
}

/// One record of a [`Batch`].
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// The record: one JSON object, UTF-8, without a line break.
    pub json: &'a [u8],
    /// When the event happened (`CreationTime`), else when its blob was created.
    pub time: Timestamp,
    severity: Option<Severity>,
    kind: SpanKind,
    event_types: &'a [u8],
    describe: Option<&'a dyn Describe>,
}

impl Record<'_> {
    /// The subject of the record; `None` if unknown. As for [`Record::severity`], the raw format has no field for it,
    /// so each call derives it from the event.
    pub fn kind(&self) -> Option<Kind> {
        match self.kind {
            SpanKind::Notice => Some(Kind::Notice),
            SpanKind::Event { category, start, end } => {
                let event_type = self.event_types.get(start as usize..end as usize).unwrap_or_default();
                Some(Kind::Event(EventKind { category, event_type: event_type.into() }))
            }
            SpanKind::Unknown => self.describe.and_then(|describe| describe.kind(self.json)),
        }
    }

    /// The severity assessed, also inside `json` if the format has a field for it. If it has none, each call evaluates
    /// the rules, which costs about as much as all earlier processing of the event.
    pub fn severity(&self) -> Severity {
        let assessed = || self.describe.map(|describe| describe.severity(self.json));
        self.severity.or_else(assessed).unwrap_or(Severity::Info)
    }
}

impl Batch {
    /// The records, in order.
    pub fn records(&self) -> impl ExactSizeIterator<Item = Record<'_>> {
        let describe = self.describe.as_deref();
        self.spans.iter().map(move |s| Record {
            json: &self.ndjson[s.start..s.end],
            time: s.time,
            severity: s.severity,
            kind: s.kind,
            event_types: &self.event_types,
            describe,
        })
    }

    /// All records as newline-delimited JSON, each followed by `\n`: file and stream sinks write it unchanged.
    pub fn ndjson(&self) -> Bytes {
        match (self.spans.first(), self.spans.last()) {
            (Some(first), Some(last)) => self.ndjson.slice(first.start..last.end + 1),
            _ => Bytes::new(),
        }
    }

    /// How many records.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Bytes of memory that its records take until its last clone is dropped.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// A range of its records as a batch of its own, which shares the bytes and begins with a copy of the receipts.
    pub fn part(&self, records: Range<usize>) -> Batch {
        let end = records.end.min(self.spans.len());
        let records = records.start.min(end)..end;
        let receipts = self.receipts.fork(&records);
        Batch { id: next_batch_id(), spans: self.spans[records].into(), receipts, ..self.clone() }
    }

    /// A copy of some of its records, given by their places in ascending order, without receipts.
    #[doc(hidden)]
    pub fn copy_of(&self, records: &[usize]) -> Batch {
        let spans: Vec<Span> = records.iter().filter_map(|at| self.spans.get(*at).copied()).collect();
        let mut ndjson = Vec::with_capacity(spans.iter().map(|span| span.end + 1 - span.start).sum());
        let placed = |span: Span| {
            let start = ndjson.len();
            ndjson.extend_from_slice(&self.ndjson[span.start..=span.end]);
            Span { start, end: ndjson.len() - 1, ..span }
        };
        let spans: Arc<[Span]> = spans.into_iter().map(placed).collect();
        let memory_bytes = ndjson.len();
        let receipts = Receipts::default();
        Batch { id: next_batch_id(), ndjson: ndjson.into(), memory_bytes, spans, receipts, ..self.clone() }
    }

    /// Ranges that cut it into parts of at most this many bytes and records; a single record may have more bytes.
    pub fn cut(&self, bytes_max: usize, records_max: usize) -> Vec<Range<usize>> {
        let mut parts = Vec::new();
        let (mut start, mut bytes) = (0, 0);
        for (at, span) in self.spans.iter().enumerate() {
            let length = span.end + 1 - span.start;
            if at > start && (bytes + length > bytes_max || at - start >= records_max) {
                parts.push(start..at);
                (start, bytes) = (at, 0);
            }
            bytes += length;
        }
        if start < self.spans.len() {
            parts.push(start..self.spans.len());
        }
        parts
    }

    /// The batch as a trial: the host offers it once and returns the outcome, even [`Delivery::Rejected`], instead of
    /// isolating the rejected records.
    #[doc(hidden)]
    #[must_use]
    pub fn as_trial(self) -> Batch {
        Batch { trial: Some(Arc::default()), ..self }
    }

    /// Whether it is a trial.
    pub fn is_trial(&self) -> bool {
        self.trial.is_some()
    }

    /// Notes that a receiver refuses this trial: for the moment by its own words (`None`), or perhaps because of the
    /// record (how often it has accepted others).
    pub(crate) fn note_refusal(&self, taken: Option<u64>) {
        let Some(notes) = &self.trial else { return };
        match taken {
            None => notes.is_passing.store(true, Ordering::Relaxed),
            Some(taken) => {
                notes.is_doubtful.store(true, Ordering::Relaxed);
                notes.taken.fetch_add(taken, Ordering::Relaxed);
            }
        }
    }

    /// Of a trial that was refused, and by no receiver for the moment only: how often those that refused it have
    /// accepted others.
    pub(crate) fn doubt(&self) -> Option<u64> {
        let notes = self.trial.as_deref()?;
        let is_set = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        let is_doubtful = is_set(&notes.is_doubtful) && !is_set(&notes.is_passing);
        is_doubtful.then(|| notes.taken.load(Ordering::Relaxed))
    }
}

/// How receivers refused a trial.
#[derive(Debug, Default)]
struct TrialNotes {
    is_passing: AtomicBool,
    is_doubtful: AtomicBool,
    taken: AtomicU64,
}

/// Records for whose facts a batch reserves memory at once: most events have one to three KiB.
pub const RECORDS_EXPECTED: usize = 256;

/// Collects records into a [`Batch`].
#[derive(Debug, Default)]
pub struct BatchBuilder {
    ndjson: Buffer,
    spans: Vec<Span>,
    event_types: Vec<u8>,
    /// Where buffers come from, and their size.
    buffers: Option<(Buffers, usize)>,
    describe: Option<Arc<dyn Describe>>,
}

impl BatchBuilder {
    /// A builder of batches that mostly end a little under `bytes`, in buffers of `buffers`: otherwise growth by
    /// doubling would copy each batch about twice.
    pub fn with_room(buffers: Buffers, bytes: usize) -> Self {
        Self { buffers: Some((buffers, bytes)), ..Self::default() }
    }

    /// With `describe`, which derives the facts that are not given with a record; without it, its severity is info.
    #[must_use]
    pub fn described_by(mut self, describe: Arc<dyn Describe>) -> Self {
        self.describe = Some(describe);
        self
    }

    /// Appends the bytes that `write` puts into the buffer as one record, with the facts it returns: a time, a severity
    /// (see [`BatchBuilder::described_by`]), optionally the subject. When it returns `None`, nothing is added.
    pub fn push_with<N: Into<Noted>>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> Option<N>) -> bool {
        let start = self.ndjson.len();
        if let Some((buffers, room)) = self.buffers.as_ref().filter(|_| self.ndjson.capacity() == 0) {
            self.ndjson = buffers.lend(*room);
        }
        if self.spans.capacity() == 0 {
            // Reserved before the records: allocations beside them would prevent them from growing in place.
            self.spans.reserve(RECORDS_EXPECTED);
        }
        match write(&mut self.ndjson) {
            Some(noted) => {
                let noted: Noted = noted.into();
                let end = self.ndjson.len();
                self.ndjson.push(b'\n');
                let kind = match &noted.kind {
                    None => SpanKind::Unknown,
                    Some(Kind::Notice) => SpanKind::Notice,
                    Some(Kind::Event(kind)) => self.keep(kind),
                };
                self.spans.push(Span { start, end, time: noted.time, severity: noted.severity, kind });
                true
            }
            None => {
                self.ndjson.truncate(start);
                false
            }
        }
    }

    fn keep(&mut self, kind: &EventKind) -> SpanKind {
        let start = self.event_types.len();
        self.event_types.extend_from_slice(kind.event_type.as_bytes());
        // A batch has some MiB, so offsets always fit into 32 bits.
        match (u32::try_from(start), u32::try_from(self.event_types.len())) {
            (Ok(start), Ok(end)) => SpanKind::Event { category: kind.category, start, end },
            _ => SpanKind::Unknown,
        }
    }

    /// Removes records, given by their indexes in ascending order.
    pub fn remove(&mut self, records: &[usize]) {
        if records.is_empty() {
            return;
        }
        let mut records = records.iter().peekable();
        let (mut index, mut kept) = (0, 0);
        let ndjson = &mut *self.ndjson;
        self.spans.retain_mut(|span| {
            let stays = records.next_if_eq(&&index).is_none();
            index += 1;
            if stays {
                // Including the line break after it.
                let bytes = span.start..span.end + 1;
                let length = bytes.len();
                ndjson.copy_within(bytes, kept);
                (span.start, span.end) = (kept, kept + length - 1);
                kept += length;
            }
            stays
        });
        self.ndjson.truncate(kept);
    }

    /// Bytes collected so far.
    pub fn bytes(&self) -> usize {
        self.ndjson.len()
    }

    /// Records collected so far.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether nothing was collected.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Returns the collected records as a batch and leaves the builder empty.
    pub fn finish(&mut self, source: Arc<str>, tenant: TenantId, content_type: ContentType) -> Batch {
        // A mostly empty buffer would stay in memory until the host confirms, so it is returned at once.
        let buffer = std::mem::take(&mut self.ndjson);
        let (ndjson, memory_bytes) = if buffer.len() < buffer.capacity() / 2 {
            (Bytes::copy_from_slice(&buffer), buffer.len())
        } else {
            let room = buffer.capacity();
            (Bytes::from_owner(buffer), room)
        };
        let spans = self.spans.as_slice().into();
        let event_types = self.event_types.as_slice().into();
        self.spans.clear();
        self.event_types.clear();
        Batch {
            id: next_batch_id(),
            source,
            tenant,
            content_type,
            receipts: Receipts::default(),
            ndjson,
            memory_bytes,
            spans,
            event_types,
            trial: None,
            describe: self.describe.clone(),
        }
    }
}

fn next_batch_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Which of a host's outputs have confirmed a batch, so that it is sent again only to those that have not, and which of
/// its records they will never accept.
#[derive(Debug, Clone, Default)]
pub struct Receipts(Arc<Mutex<Vec<OutputReceipt>>>);

#[derive(Debug, Clone)]
struct OutputReceipt {
    output: u32,
    unfit: Vec<Unfit>,
}

impl Receipts {
    /// Whether output `index` has confirmed.
    pub fn has(&self, index: u32) -> bool {
        self.lock().iter().any(|receipt| receipt.output == index)
    }

    /// Records that output `index` has confirmed.
    pub fn add(&self, index: u32) {
        self.add_except(index, Vec::new());
    }

    /// Records that output `index` has confirmed all records except these.
    pub fn add_except(&self, index: u32, unfit: Vec<Unfit>) {
        let mut receipts = self.lock();
        if !receipts.iter().any(|receipt| receipt.output == index) {
            receipts.push(OutputReceipt { output: index, unfit });
        }
    }

    /// The records that output `index` will never accept.
    pub fn unfit_for(&self, index: u32) -> Vec<Unfit> {
        self.lock().iter().find(|receipt| receipt.output == index).map_or_else(Vec::new, |r| r.unfit.clone())
    }

    /// A copy with those outputs that have confirmed every record; `None` if there is none.
    pub(crate) fn of_all_records(&self) -> Option<Self> {
        let whole: Vec<_> = self.lock().iter().filter(|receipt| receipt.unfit.is_empty()).cloned().collect();
        (!whole.is_empty()).then(|| Self(Arc::new(Mutex::new(whole))))
    }

    /// An independent copy for a part of the batch.
    fn fork(&self, records: &Range<usize>) -> Self {
        let mut receipts = self.lock().clone();
        for receipt in &mut receipts {
            receipt.unfit.retain(|unfit| records.contains(&unfit.record));
            receipt.unfit.iter_mut().for_each(|unfit| unfit.record -= records.start);
        }
        Self(Arc::new(Mutex::new(receipts)))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<OutputReceipt>> {
        self.0.lock()
    }
}

/// A record of a batch that a host will never accept, while it accepts others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// Its place in the batch, from 0.
    pub record: usize,
    /// The host's reason.
    pub why: String,
}

/// The outcome of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// The host has accepted the records for good.
    Delivered,
    /// The host has accepted the records for good, except these, which it refused by themselves while it accepted
    /// others: they are set aside.
    DeliveredExcept(Vec<Unfit>),
    /// A temporary fault: the source keeps the bytes and sends them again.
    Refused(String),
    /// Not acceptable in this form, for a reason that need not lie in the records: the source offers the batch in
    /// smaller parts. It sets aside single records that are rejected by themselves while the host accepts others, and
    /// holds everything back while the host accepts nothing (`delivery`).
    Rejected(String),
}

/// The promise of a [`Delivery`]. A ticket whose [`TicketAnswer`] is dropped resolves to a refusal.
#[derive(Debug)]
pub struct DeliveryTicket(oneshot::Receiver<Delivery>);

/// The host's end of a [`DeliveryTicket`].
#[derive(Debug)]
pub struct TicketAnswer(oneshot::Sender<Delivery>);

impl DeliveryTicket {
    /// A ticket and the means to answer it.
    pub fn new() -> (TicketAnswer, DeliveryTicket) {
        let (answer, ticket) = oneshot::channel();
        (TicketAnswer(answer), DeliveryTicket(ticket))
    }

    /// A ticket that is already answered.
    pub fn resolved(delivery: Delivery) -> DeliveryTicket {
        let (answer, ticket) = Self::new();
        answer.answer(delivery);
        ticket
    }
}

impl TicketAnswer {
    /// Answers the ticket.
    pub fn answer(self, delivery: Delivery) {
        let _ = self.0.send(delivery);
    }
}

impl Future for DeliveryTicket {
    type Output = Delivery;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Delivery> {
        Pin::new(&mut self.0)
            .poll(cx)
            .map(|answer| answer.unwrap_or_else(|_| Delivery::Refused("the host dropped the ticket".into())))
    }
}

/// A stored value's version. Only equality is meaningful.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// Draws a unique one: 62 random bits, never 0.
    pub fn draw() -> Self {
        Self(fastrand::u64(1..1 << 62))
    }
}

/// What a commit expects to find under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// No value.
    Absent,
    /// The value of this revision.
    At(Revision),
    /// Any value or none: for keys that only the same commit's other expectations protect.
    Any,
}

/// One step of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Store `value` under `key`.
    Put {
        /// The full key.
        key: String,
        /// The value.
        value: Bytes,
        /// What must be there before.
        expected: Expected,
    },
    /// Remove `key`.
    Delete {
        /// The full key.
        key: String,
        /// What must be there before.
        expected: Expected,
    },
}

impl Op {
    /// The key this step touches.
    pub fn key(&self) -> &str {
        match self {
            Op::Put { key, .. } | Op::Delete { key, .. } => key,
        }
    }

    /// What this step expects to find.
    pub fn expected(&self) -> Expected {
        match self {
            Op::Put { expected, .. } | Op::Delete { expected, .. } => *expected,
        }
    }
}

/// Why state could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Another writer changed `key`, and owns this tenant.
    #[error("state key `{key}` was changed by another writer")]
    Conflict {
        /// The key that was not as expected.
        key: String,
    },
    /// The store cannot do it now (disk full, gone, busy). Whether any part of the commit was applied is unknown; it
    /// may be retried.
    #[error("state store: {0}")]
    Unavailable(String),
    /// The stored bytes are unreadable; they were left unchanged.
    #[error("state key `{key}` is corrupt: {why}")]
    Corrupt {
        /// The key.
        key: String,
        /// What is wrong with it.
        why: String,
    },
}

/// The host's state API: a small key-value store with compare-and-swap.
///
/// Keys are paths, `m365_audit/v1/<tenant>/<content type>/…`.
#[async_trait]
pub trait StateStore: Send + Sync + 'static {
    /// The value under `key` and its revision.
    async fn load(&self, key: &str) -> Result<Option<(Bytes, Revision)>, StateError>;

    /// All keys that begin with `prefix`, in order, with their revisions.
    async fn list(&self, prefix: &str) -> Result<Vec<(String, Revision)>, StateError>;

    /// Applies all steps or none if the store can, else in the order given (which is safe at every interruption), and
    /// returns the revision that every value put by this commit now has. Durable when it returns.
    ///
    /// A revision is never used twice, even after the store has lost commits (a failover, a restored backup): draw it
    /// at random, with 62 bits or more. Otherwise a writer that knows only the lost commits would count as the owner.
    async fn commit(&self, ops: Vec<Op>) -> Result<Revision, StateError>;

    /// The values under the keys that come after `after` and before `before`, in order: some [`LOAD_BYTES`] of them, at
    /// least one. By default they are listed and loaded one by one, and [`StateError::Conflict`] names one that was
    /// removed in between; a store at the other end of a network reads them in one round trip.
    async fn load_all(&self, after: &str, before: &str) -> Result<Loaded, StateError> {
        let common = after.chars().zip(before.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect::<String>();
        let mut loaded = Loaded::default();
        let mut bytes = 0;
        for (key, _) in self.list(&common).await? {
            if key.as_str() <= after || key.as_str() >= before {
                continue;
            }
            if bytes >= LOAD_BYTES {
                loaded.more = true;
                break;
            }
            // Another writer removed it since the listing, perhaps into an entry that was not listed.
            let Some((value, revision)) = self.load(&key).await? else { return Err(StateError::Conflict { key }) };
            bytes += value.len();
            loaded.entries.push((key, value, revision));
        }
        Ok(loaded)
    }

    /// How many bytes of values a source reads ahead when it opens its state: worth the memory if each read is a round
    /// trip over a network. 0 by default.
    fn read_ahead_bytes(&self) -> usize {
        0
    }
}

/// Bytes of values that [`StateStore::load_all`] returns at once, give or take one value.
pub const LOAD_BYTES: usize = 1 << 20;

/// The result of [`StateStore::load_all`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Keys, values and revisions, in the order of the keys.
    pub entries: Vec<(String, Bytes, Revision)>,
    /// Whether there may be more after the last of them.
    pub more: bool,
}

/// All values below a prefix that ends with `/`, one answer of [`StateStore::load_all`] in memory at a time.
#[derive(Debug)]
pub struct Entries<'a> {
    store: &'a dyn StateStore,
    loaded: std::vec::IntoIter<(String, Bytes, Revision)>,
    after: String,
    before: String,
    more: bool,
}

impl<'a> Entries<'a> {
    /// Those of `store` below `prefix`; nothing is read yet.
    pub fn below(store: &'a dyn StateStore, prefix: &str) -> Self {
        let before =
            prefix.strip_suffix('/').map_or_else(|| format!("{prefix}\u{10ffff}"), |prefix| format!("{prefix}0"));
        Self { store, loaded: Vec::new().into_iter(), after: prefix.to_owned(), before, more: true }
    }

    /// The next one.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn next(&mut self) -> Result<Option<(String, Bytes)>, StateError> {
        loop {
            if let Some((key, value, _)) = self.loaded.next() {
                return Ok(Some((key, value)));
            }
            if !self.more {
                return Ok(None);
            }
            let loaded = self.store.load_all(&self.after, &self.before).await?;
            self.more = loaded.more;
            match loaded.entries.last() {
                Some((last, ..)) => self.after.clone_from(last),
                None => self.more = false,
            }
            self.loaded = loaded.entries.into_iter();
        }
    }
}

#[async_trait]
impl StateStore for Arc<dyn StateStore> {
    async fn load(&self, key: &str) -> Result<Option<(Bytes, Revision)>, StateError> {
        (**self).load(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Revision)>, StateError> {
        (**self).list(prefix).await
    }

    async fn commit(&self, ops: Vec<Op>) -> Result<Revision, StateError> {
        (**self).commit(ops).await
    }

    async fn load_all(&self, after: &str, before: &str) -> Result<Loaded, StateError> {
        (**self).load_all(after, before).await
    }

    fn read_ahead_bytes(&self) -> usize {
        (**self).read_ahead_bytes()
    }
}

impl fmt::Debug for dyn StateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StateStore")
    }
}

/// The state of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Polling and delivering.
    Healthy,
    /// Working, with a fault that an operator should fix.
    Degraded {
        /// What is wrong and what to do.
        why: String,
        /// Since when.
        since: Timestamp,
    },
    /// Not working until an operator acts.
    Failed {
        /// What is wrong and what to do.
        why: String,
    },
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Health::Healthy => f.write_str("healthy"),
            Health::Degraded { why, since } => write!(f, "degraded since {since}: {why}"),
            Health::Failed { why } => write!(f, "failed: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch_of(lines: &[&str]) -> Batch {
        let mut builder = BatchBuilder::default();
        for line in lines {
            builder.push_with(|out| {
                out.extend_from_slice(line.as_bytes());
                Some((Timestamp::UNIX_EPOCH, Severity::Info))
            });
        }
        builder.finish("s".into(), "00000000-0000-0000-0000-000000000000".parse().unwrap(), ContentType::General)
    }

    #[tokio::test]
    async fn a_dropped_answer_is_a_refusal() {
        let (answer, ticket) = DeliveryTicket::new();
        drop(answer);
        assert!(matches!(ticket.await, Delivery::Refused(_)));
    }

    #[test]
    fn parts_hold_every_record_once_and_keep_the_receipts() {
        let batch = batch_of(&["1", "2", "3"]);
        batch.receipts.add_except(7, vec![Unfit { record: 2, why: "no".into() }]);
        let (left, right) = (batch.part(0..1), batch.part(1..3));
        assert_eq!(left.ndjson(), "1\n");
        assert_eq!(right.ndjson(), "2\n3\n");
        assert_eq!(left.receipts.unfit_for(7), []);
        assert_eq!(right.receipts.unfit_for(7), [Unfit { record: 1, why: "no".into() }]);
        left.receipts.add(9);
        assert!(left.receipts.has(7) && !right.receipts.has(9));
    }

    #[test]
    fn a_batch_is_cut_at_its_records() {
        let batch = batch_of(&["5", "6", "7", "8888888888", "9"]);
        assert_eq!(batch.cut(6, 1_000), [0..3, 3..4, 4..5]);
        assert_eq!(batch.cut(1_000, 2), [0..2, 2..4, 4..5]);
        assert_eq!(batch.cut(1_000, 1_000), std::slice::from_ref(&(0..5)));
    }

    #[test]
    fn records_taken_out_leave_the_others_whole_and_in_order() {
        for gone in 0..1_usize << 5 {
            let gone: Vec<usize> = (0..5).filter(|at| gone >> at & 1 == 1).collect();
            let mut builder = BatchBuilder::default();
            let record = |at: usize| format!("{{\"{}\":{at}}}", "a".repeat(at));
            let second = |at: usize| Timestamp::from_second(at as i64).unwrap();
            for at in 0..5 {
                builder.push_with(|out| {
                    out.extend_from_slice(record(at).as_bytes());
                    Some((second(at), Severity::Low))
                });
            }
            builder.remove(&gone);
            let kept: Vec<usize> = (0..5).filter(|at| !gone.contains(at)).collect();
            assert_eq!(builder.len(), kept.len());
            let lines: String = kept.iter().map(|at| record(*at) + "\n").collect();
            assert_eq!(builder.bytes(), lines.len());
            let tenant: TenantId = "7f3c0000-0000-0000-0000-000000000001".parse().unwrap();
            let batch = builder.finish("s".into(), tenant, ContentType::General);
            assert_eq!(batch.ndjson(), lines);
            let records: Vec<_> = batch.records().map(|r| (r.json.to_vec(), r.time)).collect();
            let expected: Vec<_> = kept.iter().map(|at| (record(*at).into_bytes(), second(*at))).collect();
            assert_eq!(records, expected);
        }
    }

    #[test]
    fn a_record_that_is_not_written_leaves_no_trace() {
        let mut builder = BatchBuilder::default();
        builder.push_with(|out| {
            out.extend_from_slice(b"half");
            None::<(Timestamp, Severity)>
        });
        assert!(builder.is_empty());
        assert_eq!(builder.bytes(), 0);
    }
}
