//! The one writer of a tenant's state: takes changes, commits them in groups, answers when they are durable.
//!
//! Every commit rewrites the tenant's `owner` entry against its last revision, so a second writer of the same tenant is
//! detected at the first commit of either. If the store cannot commit now, the ledger retries for ever; it answers no
//! change until then, so no position moves. The order of the steps inside a commit (held bodies, records set aside,
//! receipts, event keys, blob marks, tracked blobs, positions, held bodies to delete) is safe at every interruption for
//! stores that apply them one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::claims::EventIndex;
use super::format::{self, AsideRecord, FORMAT, Keys, Owner, Position, StoredBackfill, TenantState, TrackedBlob};
use super::heal::{OpenGaps, StoredHeal};
use super::healed::{HEALED, Healed};
use super::journal::{Journal, Keeping, ToSend};
use super::key::Key;
use super::key_set::{self, ChangeToken, KeyKind, KeySet, Retention};
use super::lateness::{Lateness, LatenessBook};
use super::snapshot::Snapshot;
use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::host::{Entries, Expected, Op, Revision, StateError, StateStore};
use crate::metrics;
use crate::model::{BlobRef, ContentType, TenantId, Timestamp};
use crate::receipts::OpenReceipts;
use crate::receipts::store::ReceiptKeys;

/// Changes waiting for the writer; a sender waits when there are this many.
const CHANGES_QUEUED_MAX: usize = 1024;
/// Changes that go into one commit.
const CHANGES_PER_COMMIT_MAX: usize = 512;

/// Between two attempts at a commit that the store does not accept.
const RETRY: Backoff = Backoff::between(Duration::from_millis(100), Duration::from_secs(10));

/// How often the writer yields to other tasks before it commits.
const YIELDS_BEFORE_COMMIT: usize = 16;

/// Called when the store refuses a commit and, with `None`, when it accepts one again.
pub type OnTrouble = Box<dyn Fn(Option<&StateError>) + Send + Sync>;

/// A change of the state that must be stored.
#[derive(Debug, Default)]
pub struct Change {
    /// Steps that go before all others: bodies of reads put on hold, flags of data loss prevention.
    pub held: Vec<Op>,
    /// Steps that go after all others: deletions of such entries that are no longer needed.
    pub unheld: Vec<Op>,
    /// Records the host rejected for good.
    pub aside: Vec<(ContentType, u128, AsideRecord)>,
    /// Records set aside earlier that are delivered now.
    pub taken_back: Vec<(ContentType, u128)>,
    /// Keys of events that were delivered (or set aside in this change).
    pub delivered: Vec<Key>,
    /// Keys of events that were healed, by which the feed's copies of them are recognised.
    pub healed: Vec<Key>,
    /// The state of the gaps that are filled through Microsoft Graph.
    pub heal: Option<Box<StoredHeal>>,
    /// The outcomes of events, committed together with the changes they record.
    pub receipts: OpenReceipts,
    /// The signed checkpoints up to this part are delivered to their sinks.
    pub sent: Option<u64>,
    /// How late the content of a blob that is settled came.
    pub lateness: Option<(ContentType, Lateness)>,
    /// Blobs that are settled.
    pub settled: Vec<(ContentType, Key)>,
    /// Blobs to track on their own from now on.
    pub tracked: Vec<BlobRef>,
    /// Blobs that need no tracking any more.
    pub untracked: Vec<(ContentType, Key)>,
    /// New positions.
    pub positions: BTreeMap<ContentType, Position>,
    /// New state of the tenant as a whole.
    pub tenant: Option<TenantState>,
    /// The present state of a source's back-fill; `None` when it is done.
    pub backfill: Option<(Arc<str>, Option<StoredBackfill>)>,
    /// Remove keys that are expired by Microsoft's clock at this time.
    pub expire_at: Option<Timestamp>,
    /// Runs once the whole change is durable, before the submitter is notified, and also if the submitter is gone.
    pub on_durable: OnDurable,
}

/// Work to run once a change is durable.
#[derive(Default)]
pub struct OnDurable(Option<Box<dyn FnOnce() + Send + Sync>>);

impl OnDurable {
    /// Runs `work`.
    pub fn new(work: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(work)))
    }
}

impl std::fmt::Debug for OnDurable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "OnDurable(some)" } else { "OnDurable(none)" })
    }
}

/// The state that an earlier run left.
pub struct OpenedLedger {
    /// The writer, to be run on a task of its own.
    pub ledger: Ledger,
    /// Where changes go.
    pub handle: LedgerHandle,
    /// The tenant as a whole.
    pub tenant: TenantState,
    /// Positions, of the streams that ever ran.
    pub positions: BTreeMap<ContentType, Position>,
    /// Blobs tracked on their own.
    pub tracked: Vec<BlobRef>,
    /// How many records are set aside.
    pub aside: usize,
    /// Signed checkpoints for the sinks, if they are sent.
    pub to_send: Option<ToSend>,
    /// Delivered events.
    pub events: EventIndex,
    /// Events healed through Microsoft Graph.
    pub healed: Healed,
    /// Settled blobs, per stream.
    pub blobs: BTreeMap<ContentType, EventIndex>,
    /// The entries stored when the tenant was opened, for other code that reads the state of an earlier run.
    pub there: Snapshot,
}

/// Where changes are submitted. Cheap to clone.
#[derive(Clone)]
pub struct LedgerHandle {
    /// Boxed, since a channel has room for 32 from the start.
    changes: mpsc::Sender<Box<Pending>>,
}

struct Pending {
    change: Change,
    answer: oneshot::Sender<Result<(), StateError>>,
}

impl LedgerHandle {
    /// Resolves when `change` is durable.
    ///
    /// # Errors
    /// [`StateError::Conflict`] when another writer owns the tenant, [`StateError::Corrupt`] when stored bytes are
    /// invalid, [`StateError::Unavailable`] only when the writer has ended. After any of them nothing more is
    /// committed.
    pub async fn commit(&self, change: Change) -> Result<(), StateError> {
        let (answer, answered) = oneshot::channel();
        let ended = || StateError::Unavailable("the ledger has ended".into());
        self.changes.send(Box::new(Pending { change, answer })).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }
}

/// The writer. See [`Ledger::run`].
pub struct Ledger {
    store: Arc<dyn StateStore>,
    clock: Arc<dyn Clock>,
    keys: Keys,
    owner: Owner,
    owner_revision: Expected,
    tenant_revision: Expected,
    position_revisions: BTreeMap<ContentType, Expected>,
    events: EventIndex,
    healed: Healed,
    blobs: BTreeMap<ContentType, EventIndex>,
    event_keys_max: u64,
    /// The records that are set aside.
    aside: BTreeSet<(ContentType, u128)>,
    /// Receipts, where they are kept.
    journal: Option<Box<Journal>>,
    server_time: ServerTimeSource,
    lateness: LatenessBook,
    /// The receipts that gaps need, if gaps are to be filled.
    gaps: Option<Box<OpenGaps>>,
    tenant: TenantId,
    changes: mpsc::Receiver<Box<Pending>>,
    on_trouble: OnTrouble,
}

/// Settings of a tenant's ledger.
#[derive(Debug, Clone)]
pub struct LedgerSettings {
    /// The tenant.
    pub tenant: TenantId,
    /// The streams that are run.
    pub content_types: Vec<ContentType>,
    /// The maximum number of event keys; above it the oldest are removed, and duplicates of their events are delivered.
    pub event_keys_max: u64,
    /// How receipts are kept; `None` keeps none.
    pub receipts: Option<Keeping>,
    /// Gaps are to be filled: the receipts that show which events were delivered before them are kept until they are
    /// filled.
    pub fills_gaps: bool,
    /// Microsoft's time, by which hours of receipts end.
    pub server_time: ServerTimeSource,
}

/// Returns Microsoft's time if it is trusted; by default it is unknown.
#[derive(Clone, Default)]
pub struct ServerTimeSource(Option<Arc<dyn Fn() -> Option<Timestamp> + Send + Sync>>);

impl ServerTimeSource {
    /// Returns the value of `ask`.
    pub fn new(ask: impl Fn() -> Option<Timestamp> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(ask)))
    }

    fn now(&self) -> Option<Timestamp> {
        self.0.as_ref().and_then(|ask| ask())
    }
}

impl std::fmt::Debug for ServerTimeSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ServerTimeSource({})", if self.0.is_some() { "known" } else { "not known" })
    }
}

impl Ledger {
    /// Reads what an earlier run left and takes the tenant over.
    ///
    /// # Errors
    /// When the store cannot be read or written, or holds a value that this build must not overwrite.
    pub async fn open(
        store: Arc<dyn StateStore>,
        clock: Arc<dyn Clock>,
        settings: &LedgerSettings,
        on_trouble: OnTrouble,
    ) -> Result<OpenedLedger, StateError> {
        let keys = Keys::of(&settings.tenant);
        let (stored_owner, owner_revision) = load(&*store, &keys.owner()).await?;
        // Refuses the whole tenant when a newer build wrote it.
        let found = stored_owner.map(|bytes| format::decode::<Owner>(&keys.owner(), &bytes)).transpose()?;
        // Read after the owner: a commit in between would change the owner's revision.
        let found_there = Snapshot::read(store.clone(), &keys).await?;
        let there: &dyn StateStore = &found_there;
        let (stored_tenant, tenant_revision) = load(there, &keys.tenant()).await?;
        let tenant = match stored_tenant {
            Some(bytes) => format::decode(&keys.tenant(), &bytes)?,
            None => TenantState::default(),
        };
        let StoredStreams { positions, position_revisions, tracked, aside, blobs } =
            StoredStreams::of(there, &keys, &settings.content_types).await?;
        let events = EventIndex::new(KeySet::load(there, &keys.events(), KeyKind::Events).await?);
        let healed = Healed::new(EventIndex::new(KeySet::load(there, &keys.healed(), KeyKind::Events).await?));

        let gaps = open_gaps(there, settings, &keys, &positions).await?;
        let (sender, changes) = mpsc::channel(CHANGES_QUEUED_MAX);
        let owner = Owner { format: FORMAT, writer: drawn(), commit: None };
        let writers = (found.as_ref().map(|owner| &*owner.writer), &*owner.writer);
        let journal = open_journal(there, settings, writers, clock.now()).await?;
        let to_send = journal.as_ref().and_then(|journal| journal.to_send());
        let mut ledger = Ledger {
            store,
            clock,
            keys,
            owner,
            owner_revision,
            tenant_revision,
            position_revisions,
            events: events.clone(),
            healed: healed.clone(),
            blobs: blobs.clone(),
            event_keys_max: settings.event_keys_max,
            aside,
            journal,
            server_time: settings.server_time.clone(),
            lateness: LatenessBook::default(),
            gaps,
            tenant: settings.tenant.clone(),
            changes,
            on_trouble,
        };
        ledger.count_aside();
        let set_aside = ledger.aside.len();
        // Takes the tenant over before anything else is done with it.
        let mut takes_over = vec![ledger.owner_step()];
        takes_over.extend(ledger.journal.as_ref().map(|journal| journal.taken_over()));
        ledger.commit_once(&takes_over, &BTreeMap::new(), false).await?;
        Ok(OpenedLedger {
            ledger,
            handle: LedgerHandle { changes: sender },
            tenant,
            positions,
            tracked,
            aside: set_aside,
            to_send,
            events,
            healed,
            blobs,
            there: found_there,
        })
    }

    /// Commits until every [`LedgerHandle`] is gone.
    ///
    /// # Errors
    /// The error that ended the writer: another writer owns the tenant, or stored bytes are invalid.
    pub async fn run(mut self) -> Result<(), StateError> {
        let mut group = Vec::new();
        while self.changes.recv_many(&mut group, CHANGES_PER_COMMIT_MAX).await > 0 {
            // A commit costs about the same for any number of changes, so tasks that are about to submit a change run
            // first. If there are none, this takes some microseconds; a commit never waits for changes that may not
            // come.
            for _ in 0..YIELDS_BEFORE_COMMIT {
                tokio::task::yield_now().await;
                while group.len() < CHANGES_PER_COMMIT_MAX
                    && let Ok(pending) = self.changes.try_recv()
                {
                    group.push(pending);
                }
            }
            let result = Box::pin(self.commit_group(&mut group)).await;
            for mut pending in group.drain(..) {
                if let Some(work) = pending.change.on_durable.0.take().filter(|_| result.is_ok()) {
                    work();
                }
                let _ = pending.answer.send(result.clone());
            }
            result?;
        }
        Ok(())
    }

    async fn commit_group(&mut self, group: &mut [Box<Pending>]) -> Result<(), StateError> {
        let now = self.clock.now();
        self.seal_receipts().await?;
        let receipts = self.journal.as_mut().and_then(|journal| {
            let mut receipts = OpenReceipts::default();
            group.iter_mut().for_each(|pending| receipts.append(std::mem::take(&mut pending.change.receipts)));
            journal.page(&receipts, now)
        });
        let sent = group.iter().filter_map(|pending| pending.change.sent).max();
        let sent = sent.and_then(|seq| Some(self.journal.as_mut()?.sent(seq)));
        let lateness = self.lateness_steps(group, now).await;
        let mut steps = Steps::default();
        for pending in &*group {
            steps.add(&pending.change, &self.keys);
        }
        let mut marks = Vec::new();
        let mut staged: Vec<(EventIndex, ChangeToken)> = Vec::new();
        let mut stage = |index: &EventIndex, keys: &[Key]| {
            if !keys.is_empty() {
                let mut one = index.with_keys(|set| set.stage(keys, now));
                marks.append(&mut one.ops);
                staged.push((index.clone(), one.token));
            }
        };
        stage(&self.events, &steps.delivered);
        stage(self.healed.index(), &steps.healed);
        for (content_type, keys) in &steps.settled {
            if let Some(index) = self.blobs.get(content_type) {
                stage(index, keys);
            }
        }
        for (content_type, position) in &steps.positions {
            let expected = self.position_revisions.get(content_type).copied().unwrap_or(Expected::Any);
            steps.tail.push(put(self.keys.position(*content_type), format::encode(*position), expected));
        }
        if let Some(tenant) = steps.tenant {
            steps.tail.push(put(self.keys.tenant(), format::encode(tenant), self.tenant_revision));
        }
        let mut ops = vec![self.owner_step()];
        ops.append(&mut steps.held);
        ops.append(&mut steps.aside);
        ops.extend(receipts);
        ops.append(&mut marks);
        ops.append(&mut steps.tail);
        ops.append(&mut steps.unheld);
        ops.extend(lateness);
        ops.extend(sent);
        self.commit_until_taken(ops, staged, &steps.positions, steps.tenant.is_some()).await?;
        self.note_aside(group);
        if let Some(gaps) = &mut self.gaps {
            group.iter().for_each(|pending| gaps.note(&pending.change.positions, pending.change.heal.as_deref()));
        }
        self.maintain(steps.expire_at).await
    }

    /// Counts how late content came, and writes the counts at intervals: at the latest when the tenant's own state is
    /// written, as it is when a source ends.
    async fn lateness_steps(&mut self, group: &[Box<Pending>], now: Timestamp) -> Vec<Op> {
        let mut urgent = false;
        for pending in group {
            urgent |= pending.change.tenant.is_some();
            if let Some(late) = &pending.change.lateness {
                self.lateness.add(&*self.store, &self.keys, late, now).await;
            }
        }
        self.lateness.steps(&*self.store, &self.keys, (now, self.clock.monotonic()), urgent).await
    }

    /// Records which records the durable changes set aside or took back, in their order.
    fn note_aside(&mut self, group: &[Box<Pending>]) {
        let mut is_changed = false;
        for Pending { change, .. } in group.iter().map(|pending| &**pending) {
            is_changed |= !change.aside.is_empty() || !change.taken_back.is_empty();
            self.aside.extend(change.aside.iter().map(|(content_type, hash, _)| (*content_type, *hash)));
            for taken in &change.taken_back {
                self.aside.remove(taken);
            }
        }
        if is_changed {
            self.count_aside();
        }
    }

    fn count_aside(&self) {
        ::metrics::gauge!(metrics::SET_ASIDE_RECORDS, "tenant" => self.tenant.to_string()).set(self.aside.len() as f64);
    }

    /// Seals the receipts of hours that are over, and of one that has too many for a single part. If the store cannot
    /// be read now, this retries, as for every commit. Damaged receipts never stop the collection of events.
    async fn seal_receipts(&mut self) -> Result<(), StateError> {
        let mut failures = RETRY.failures();
        let mut troubled = false;
        loop {
            let now = self.server_time.now();
            let Some(journal) = &mut self.journal else { break };
            if let Some(now) = now {
                journal.now(now);
                journal.needs(self.gaps.as_ref().and_then(|gaps| gaps.needed_from(now)));
            }
            if !journal.is_due(now) {
                break;
            }
            match journal.seal(&*self.store, now).await {
                Ok(mut sealing) => {
                    let mut ops = vec![self.owner_step()];
                    ops.append(&mut sealing.ops);
                    self.commit_until_taken(ops, Vec::new(), &BTreeMap::new(), false).await?;
                    if let Some(journal) = &mut self.journal {
                        journal.sealed(sealing);
                    }
                }
                Err(error @ StateError::Unavailable(_)) => {
                    troubled = true;
                    (self.on_trouble)(Some(&error));
                    self.clock.sleep(failures.pause()).await;
                }
                Err(error) => {
                    without_receipts(&self.tenant, &error);
                    self.journal = None;
                    // The receipts name their writer; from here on that must not be this one.
                    self.owner.writer = drawn();
                }
            }
        }
        if troubled {
            (self.on_trouble)(None);
        }
        Ok(())
    }

    /// Folds, merges and removes keys, between commits.
    async fn maintain(&mut self, expire_at: Option<Timestamp>) -> Result<(), StateError> {
        let events = (self.events.clone(), Retention { keys_max: self.event_keys_max, ..Retention::EVENTS });
        let healed = (self.healed.index().clone(), HEALED);
        let blobs = self.blobs.values().map(|index| (index.clone(), Retention::BLOBS));
        let indexes: Vec<(EventIndex, Retention)> = [events, healed].into_iter().chain(blobs).collect();
        for (index, retention) in indexes {
            let expired = expire_at.and_then(|now| index.with_keys(|set| set.expire(now, retention)));
            let merged = key_set::maintain(index.keys(), &*self.store).await?;
            for staged in expired.into_iter().chain(merged) {
                let mut ops = vec![self.owner_step()];
                ops.extend(staged.ops);
                self.commit_until_taken(ops, vec![(index.clone(), staged.token)], &BTreeMap::new(), false).await?;
            }
        }
        Ok(())
    }

    async fn commit_until_taken(
        &mut self,
        ops: Vec<Op>,
        staged: Vec<(EventIndex, ChangeToken)>,
        positions: &BTreeMap<ContentType, &Position>,
        with_tenant: bool,
    ) -> Result<(), StateError> {
        let mut failures = RETRY.failures();
        let mut troubled = false;
        loop {
            match self.commit_once(&ops, positions, with_tenant).await {
                Ok(()) => {
                    if troubled {
                        (self.on_trouble)(None);
                    }
                    for (index, token) in staged {
                        index.change_committed(token);
                    }
                    return Ok(());
                }
                Err(error @ StateError::Unavailable(_)) => {
                    troubled = true;
                    (self.on_trouble)(Some(&error));
                    self.clock.sleep(failures.pause()).await;
                }
                Err(error) => {
                    for (index, token) in staged {
                        index.change_aborted(token);
                    }
                    (self.on_trouble)(Some(&error));
                    return Err(error);
                }
            }
        }
    }

    async fn commit_once(
        &mut self,
        ops: &[Op],
        positions: &BTreeMap<ContentType, &Position>,
        with_tenant: bool,
    ) -> Result<(), StateError> {
        let taken = match self.store.commit(ops.to_vec()).await {
            Err(conflict @ StateError::Conflict { .. }) => self.taken_before(ops).await?.ok_or(conflict),
            other => other,
        };
        let revision = Expected::At(taken?);
        self.owner_revision = revision;
        for content_type in positions.keys() {
            self.position_revisions.insert(*content_type, revision);
        }
        if with_tenant {
            self.tenant_revision = revision;
        }
        Ok(())
    }

    /// The revision of a commit that the store accepted although its answer was lost: the owner entry is the one that
    /// this commit wrote, with a name that no other commit has. `None` if another writer has committed since, which is
    /// then the owner.
    async fn taken_before(&self, ops: &[Op]) -> Result<Option<Revision>, StateError> {
        let written = ops.iter().find_map(|op| match op {
            Op::Put { key, value, .. } if *key == self.keys.owner() => Some(value),
            _ => None,
        });
        let found = self.store.load(&self.keys.owner()).await?;
        Ok(found.filter(|(value, _)| Some(value) == written).map(|(_, revision)| revision))
    }

    fn owner_step(&mut self) -> Op {
        self.owner.commit = Some(drawn());
        put(self.keys.owner(), format::encode(&self.owner), self.owner_revision)
    }
}

/// The receipts that gaps need, if receipts are kept and gaps are to be filled.
async fn open_gaps(
    store: &dyn StateStore,
    settings: &LedgerSettings,
    keys: &Keys,
    positions: &BTreeMap<ContentType, Position>,
) -> Result<Option<Box<OpenGaps>>, StateError> {
    if !settings.fills_gaps || settings.receipts.is_none() {
        return Ok(None);
    }
    let heal = StoredHeal::load(store, keys).await?;
    Ok(Some(Box::new(OpenGaps::new(positions.clone(), heal))))
}

/// The receipts, if they are kept and valid. `writers` are the writer that the state names and the one that takes over.
async fn open_journal(
    store: &dyn StateStore,
    settings: &LedgerSettings,
    writers: (Option<&str>, &str),
    now: Timestamp,
) -> Result<Option<Box<Journal>>, StateError> {
    let Some(keeping) = settings.receipts.clone() else { return Ok(None) };
    let of = (ReceiptKeys::below(Keys::of(&settings.tenant).receipts()), &settings.tenant);
    match Journal::open(store, of, keeping, writers, now).await {
        Ok(opened) => Ok(Some(Box::new(opened))),
        Err(error @ StateError::Corrupt { .. }) => {
            without_receipts(&settings.tenant, &error);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Reports that a source continues without receipts; the next start with valid ones marks the hours in between.
fn without_receipts(tenant: &TenantId, error: &StateError) {
    tracing::error!(
        %tenant,
        "receipts-damaged: the receipts in the state cannot be used, so none are kept until the next start: {error}; events are collected as before"
    );
}

/// A random name that is never drawn again.
fn drawn() -> String {
    format!("{:016x}", fastrand::u64(..))
}

fn put(key: String, value: Bytes, expected: Expected) -> Op {
    Op::Put { key, value, expected }
}

fn delete(key: String) -> Op {
    Op::Delete { key, expected: Expected::Any }
}

/// The value stored under `key`, and the revision that a commit which replaces it must expect.
async fn load(store: &dyn StateStore, key: &str) -> Result<(Option<Bytes>, Expected), StateError> {
    Ok(match store.load(key).await? {
        Some((bytes, revision)) => (Some(bytes), Expected::At(revision)),
        None => (None, Expected::Absent),
    })
}

/// The streams' state that an earlier run left.
#[derive(Default)]
struct StoredStreams {
    positions: BTreeMap<ContentType, Position>,
    position_revisions: BTreeMap<ContentType, Expected>,
    tracked: Vec<BlobRef>,
    aside: BTreeSet<(ContentType, u128)>,
    blobs: BTreeMap<ContentType, EventIndex>,
}

impl StoredStreams {
    async fn of(store: &dyn StateStore, keys: &Keys, content_types: &[ContentType]) -> Result<Self, StateError> {
        let mut streams = Self::default();
        for content_type in content_types {
            streams.read(store, keys, *content_type).await?;
        }
        Ok(streams)
    }

    async fn read(&mut self, store: &dyn StateStore, keys: &Keys, content_type: ContentType) -> Result<(), StateError> {
        let (stored, revision) = load(store, &keys.position(content_type)).await?;
        if let Some(bytes) = stored {
            self.positions.insert(content_type, format::decode(&keys.position(content_type), &bytes)?);
        }
        self.position_revisions.insert(content_type, revision);
        let mut tracked = Entries::below(store, &keys.tracked(content_type));
        while let Some((key, bytes)) = tracked.next().await? {
            self.tracked.push(format::decode::<TrackedBlob>(&key, &bytes)?.into_blob(content_type));
        }
        let mut aside = Entries::below(store, &keys.aside(content_type));
        while let Some((key, bytes)) = aside.next().await? {
            // Decoded so that an unreadable record is refused, and not kept: there may be many.
            format::decode::<AsideRecord>(&key, &bytes)?;
            self.aside.extend(format::hash_of(&key).map(|hash| (content_type, hash)));
        }
        let set = KeySet::load(store, &keys.blobs(content_type), KeyKind::Blobs).await?;
        self.blobs.insert(content_type, EventIndex::new(set));
        Ok(())
    }
}

/// The steps of a group of changes, in the order of the commit: held reads, records set aside, marks of events and
/// blobs, the tail, and deletions of held reads.
#[derive(Default)]
struct Steps<'a> {
    held: Vec<Op>,
    aside: Vec<Op>,
    tail: Vec<Op>,
    unheld: Vec<Op>,
    delivered: Vec<Key>,
    healed: Vec<Key>,
    settled: BTreeMap<ContentType, Vec<Key>>,
    positions: BTreeMap<ContentType, &'a Position>,
    tenant: Option<&'a TenantState>,
    expire_at: Option<Timestamp>,
}

impl<'a> Steps<'a> {
    fn add(&mut self, change: &'a Change, keys: &Keys) {
        self.held.extend_from_slice(&change.held);
        self.unheld.extend_from_slice(&change.unheld);
        for (content_type, hash, record) in &change.aside {
            let key = keys.aside_record(*content_type, *hash);
            self.aside.push(put(key, format::encode(record), Expected::Any));
        }
        for (content_type, hash) in &change.taken_back {
            self.tail.push(delete(keys.aside_record(*content_type, *hash)));
        }
        self.delivered.extend_from_slice(&change.delivered);
        self.healed.extend_from_slice(&change.healed);
        if let Some(heal) = &change.heal {
            self.tail.push(put(keys.heal(), format::encode(&**heal), Expected::Any));
        }
        for (content_type, key) in &change.settled {
            self.settled.entry(*content_type).or_default().push(*key);
        }
        for blob in &change.tracked {
            let key = keys.tracked_blob(blob.content_type, Key::of_blob(&blob.id, blob.created).as_u128());
            self.tail.push(put(key, format::encode(&TrackedBlob::of(blob)), Expected::Any));
        }
        for (content_type, key) in &change.untracked {
            self.tail.push(delete(keys.tracked_blob(*content_type, key.as_u128())));
        }
        if let Some((source, backfill)) = &change.backfill {
            let key = keys.backfill(source);
            self.tail.push(match backfill {
                Some(backfill) => put(key, format::encode(backfill), Expected::Any),
                None => delete(key),
            });
        }
        self.positions.extend(change.positions.iter().map(|(content_type, position)| (*content_type, position)));
        self.tenant = change.tenant.as_ref().or(self.tenant);
        self.expire_at = change.expire_at.or(self.expire_at);
    }
}
