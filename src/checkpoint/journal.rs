//! Receipts beside the state: a page in each commit, and what is sealed of them.
//!
//! The one writer of a tenant's state writes them too: the page of a commit stands in that commit, so that no crash leaves
//! one without the other. When an hour is over, the pages of it become a sealed part (`crate::receipts`), and hours in
//! which nothing came are sealed as well.

use std::sync::Arc;

use bytes::Bytes;
use jiff::SignedDuration;
use tokio::sync::{Semaphore, watch};

use crate::host::{Expected, Op, StateError, StateStore};
use crate::model::{TenantId, Timestamp};
use crate::receipts::OpenReceipts;
use crate::receipts::head::{LastSealed, StoredHead};
use crate::receipts::note::{Signer, text_of};
use crate::receipts::seal::{PART_ENTRIES_MAX, Part, Sealed, Uncounted, seal};
use crate::receipts::statement::{Hour, Statement};
use crate::receipts::store::{ReceiptKeys, values_of};

/// Pages after which an hour is sealed in a further part: what sealing reads one by one.
const PART_PAGES_MAX: usize = 4096;
/// Checkpoints that are sent anew at a start, at most: a month of hours.
const SENT_AT_START_MAX: u64 = 750;
/// Tenants of one process whose receipts are sorted at once: at the end of an hour all of them want to.
static SORTING: Semaphore = Semaphore::const_new(2);
/// Hours that are sealed in one commit: those in which no process ran.
const SEALED_AT_ONCE: usize = 64;
/// What an error about receipts begins with, and the name of its page.
const DAMAGED: &str = "receipts-damaged";
/// Parts that go with one seal because they are too old.
const FORGOTTEN_AT_ONCE: usize = 64;

/// How receipts are kept.
#[derive(Clone)]
pub struct Keeping {
    /// Signs what is sealed.
    pub signer: Arc<Signer>,
    /// For how many days they are kept, from the hour of delivery; 1 or more.
    pub days: u32,
    /// Whether each signed checkpoint goes to sinks as well.
    pub sends: bool,
}

/// A part whose signed checkpoint is to go to sinks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedPart {
    /// The number of the part.
    pub seq: u64,
    /// When its hour begins.
    pub hour: Timestamp,
    /// How many receipts it has.
    pub receipts: u64,
    /// The signed note.
    pub note: Bytes,
}

/// The parts whose signed checkpoints are to go to sinks, read from the state one by one: after an outage of the sink there
/// may be a month of them.
#[derive(Debug)]
pub struct ToSend {
    keys: ReceiptKeys,
    tenant: TenantId,
    next: u64,
    /// The number after the last part that is sealed.
    sealed: watch::Receiver<u64>,
}

impl ToSend {
    /// The next part, once it is sealed; the same again until [`ToSend::is_sent`]. `None` when no more will be sealed. One that
    /// is damaged is passed over, and said.
    ///
    /// # Errors
    /// The state cannot be read now.
    pub async fn next(&mut self, store: &dyn StateStore) -> Result<Option<SealedPart>, StateError> {
        loop {
            let next = self.next;
            if self.sealed.wait_for(|sealed| *sealed > next).await.is_err() {
                return Ok(None);
            }
            let key = self.keys.checkpoint(self.next);
            let loaded = store.load(&key).await;
            let read = loaded.and_then(|note| note.map(|(note, _)| Ok((statement_of(&key, &note)?, note))).transpose());
            match read {
                Ok(Some((statement, note))) => {
                    let (hour, receipts) = (statement.hour.start(), statement.entries);
                    return Ok(Some(SealedPart { seq: self.next, hour, receipts, note }));
                }
                // It was removed as too old.
                Ok(None) => {}
                Err(error @ StateError::Unavailable(_)) => return Err(error),
                Err(error) => {
                    tracing::error!(tenant = %self.tenant, "{DAMAGED}: a signed checkpoint is not sent: {error}");
                }
            }
            self.next += 1;
        }
    }

    /// The part that was given last is with the sinks.
    pub fn is_sent(&mut self) {
        self.next += 1;
    }
}

impl std::fmt::Debug for Keeping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keeping({} days, {})", self.days, self.signer.key().short())
    }
}

/// The receipts of one tenant.
pub(super) struct Journal {
    keeping: Keeping,
    keys: ReceiptKeys,
    tenant: TenantId,
    head: StoredHead,
    /// The hour that is open; `None` until it is known what time it is.
    hour: Option<Hour>,
    /// A process without receipts wrote last, and it is not known yet until when.
    foreign: bool,
    /// The names of its pages.
    pages: Vec<String>,
    /// How many receipts they have, give or take those that say the same.
    receipts: usize,
    next_page: u64,
    /// Receipts from here on are kept, however old they are: a gap that is to be filled needs them.
    needed_from: Option<Timestamp>,
    /// The number after the last part that is sealed, for whoever sends checkpoints.
    announced: watch::Sender<u64>,
}

/// A part that is to be committed.
pub(super) struct Sealing {
    /// The steps.
    pub ops: Vec<Op>,
    head: StoredHead,
    /// What was sealed: a part, and hours without events after it.
    sealed: Vec<Sealed>,
}

impl Journal {
    /// Reads where an earlier run left off. `found` is the writer that the state names, `writer` the one that takes over.
    pub(super) async fn open(
        store: &dyn StateStore,
        (keys, tenant): (ReceiptKeys, &TenantId),
        keeping: Keeping,
        (found, writer): (Option<&str>, &str),
        now: Timestamp,
    ) -> Result<Journal, StateError> {
        let key = keys.head();
        let mut head = match store.load(&key).await? {
            Some((bytes, _)) => StoredHead::decode(&bytes).map_err(|why| StateError::Corrupt { key, why })?,
            None => StoredHead::default(),
        };
        // A state that nobody has written yet has receipts from its first event on.
        let foreign = found.is_some_and(|found| found != head.writer);
        head.writer = writer.to_owned();
        let after = |sealed: &LastSealed| if sealed.last { sealed.hour.next() } else { sealed.hour };
        let mut journal = Journal {
            hour: head.sealed.as_ref().map(after),
            foreign,
            keeping,
            keys,
            tenant: tenant.clone(),
            pages: Vec::new(),
            receipts: 0,
            next_page: 0,
            needed_from: None,
            announced: watch::Sender::new(head.seq),
            head,
        };
        for (name, _) in store.list(&journal.keys.open()).await? {
            journal.found_page(store, name).await?;
        }
        if foreign {
            // By this machine's clock, until Microsoft's is known.
            let now = Hour::of(now);
            journal.head.begins_until = Some(journal.hour.map_or(now, |hour| hour.max(now)));
        }
        Ok(journal)
    }

    /// What is sealed from now on, and of what is sealed already what may not have been sent: at most as many parts as
    /// a start can bear.
    pub(super) fn to_send(&self) -> Option<ToSend> {
        let oldest = self.head.seq.saturating_sub(SENT_AT_START_MAX);
        self.keeping.sends.then(|| ToSend {
            keys: self.keys.clone(),
            tenant: self.tenant.clone(),
            next: self.head.unsent.max(self.head.first).max(oldest),
            sealed: self.announced.subscribe(),
        })
    }

    /// From now on keeps receipts from `from` on, however old they are.
    pub(super) fn needs(&mut self, from: Option<Timestamp>) {
        self.needed_from = from;
    }

    /// The step that notes that checkpoints up to this part have reached the sinks.
    pub(super) fn sent(&mut self, seq: u64) -> Op {
        self.head.unsent = self.head.unsent.max(seq + 1);
        self.taken_over()
    }

    /// The step that says who keeps the receipts from now on, for the commit that takes the tenant over.
    pub(super) fn taken_over(&self) -> Op {
        put(self.keys.head(), self.head.encode().into())
    }

    /// Takes note of a page that an earlier run left.
    async fn found_page(&mut self, store: &dyn StateStore, name: String) -> Result<(), StateError> {
        let numbers = name.strip_prefix(&self.keys.open()).and_then(|rest| {
            let (seq, page) = rest.split_once('/')?;
            let (page, receipts) = page.split_once('-')?;
            let number = |text| u64::from_str_radix(text, 16).ok();
            Some((number(seq)?, number(page)?, usize::try_from(number(receipts)?).ok()?))
        });
        let Some((seq, page, receipts)) = numbers else {
            return Err(StateError::Corrupt { key: name, why: "its name is none of a page of receipts".into() });
        };
        if seq == self.head.seq {
            if self.pages.is_empty()
                && let Some((bytes, _)) = store.load(&name).await?
            {
                self.hour = Some(OpenReceipts::decode(&name, &bytes)?.0);
            }
            self.receipts += receipts;
        }
        self.next_page = self.next_page.max(page + 1);
        // One that is sealed already, left by a store that stopped between two steps, goes with the next part.
        self.pages.push(name);
        Ok(())
    }

    /// Takes note of Microsoft's time, once it can be acted on: this machine's may jump, and what is sealed cannot be
    /// taken back.
    pub(super) fn now(&mut self, now: Timestamp) {
        let now = Hour::of(now);
        let hour = *self.hour.get_or_insert(now);
        if std::mem::take(&mut self.foreign) {
            self.head.begins_until = Some(hour.max(now));
        }
    }

    /// The steps that commit receipts; `wall` is this machine's time.
    pub(super) fn page(&mut self, receipts: &OpenReceipts, wall: Timestamp) -> Option<Op> {
        if receipts.is_empty() {
            return None;
        }
        let hour = *self.hour.get_or_insert(Hour::of(wall));
        let name = self.keys.open_page(self.head.seq, self.next_page, receipts.len());
        self.next_page += 1;
        self.receipts += receipts.len();
        self.pages.push(name.clone());
        Some(Op::Put { key: name, value: receipts.encode(hour), expected: Expected::Any })
    }

    /// Whether a part is to be sealed before anything more is written.
    pub(super) fn is_due(&self, now: Option<Timestamp>) -> bool {
        let Some(hour) = self.hour else { return false };
        let is_over = now.is_some_and(|now| hour < Hour::of(now));
        is_over || self.receipts >= PART_ENTRIES_MAX || self.pages.len() >= PART_PAGES_MAX
    }

    /// What has to be committed to seal the part that is due, and hours without events after it. Nothing changes before
    /// [`Journal::sealed`].
    pub(super) async fn seal(&self, store: &dyn StateStore, now: Option<Timestamp>) -> Result<Sealing, StateError> {
        // It is never closed; without a turn it would only take more memory.
        let _turn = SORTING.acquire().await.ok();
        let mut receipts = OpenReceipts::default();
        for name in &self.pages {
            let Some((bytes, _)) = store.load(name).await? else {
                return Err(StateError::Corrupt { key: name.clone(), why: "the page of receipts is missing".into() });
            };
            if name.starts_with(&self.keys.open_part(self.head.seq)) {
                receipts.append(OpenReceipts::decode(name, &bytes)?.1);
            }
        }
        let mut uncounted = std::collections::BTreeMap::<_, Uncounted>::new();
        for (content_type, count) in &receipts.without_id {
            uncounted.entry(*content_type).or_default().without_id += count;
        }
        for (content_type, count) in &receipts.repeated {
            uncounted.entry(*content_type).or_default().repeated += count;
        }
        let Some(mut hour) = self.hour else { return Err(StateError::Unavailable("the hour is not known".into())) };
        let is_over = |hour: Hour| now.is_some_and(|now| hour < Hour::of(now));
        let mut head = self.head.clone();
        let mut sealed = Vec::new();
        loop {
            let before = head.sealed.as_ref().filter(|sealed| sealed.hour == hour);
            let part = Part {
                tenant: self.tenant.clone(),
                seq: head.seq,
                hour,
                part: before.map_or(0, |sealed| sealed.part + 1),
                last: is_over(hour),
                begins: head.begins_until.is_some_and(|until| hour <= until),
                previous: head.previous(),
            };
            let next = seal(&part, receipts.receipts(), &uncounted, &self.keeping.signer);
            head = head.after(&next);
            sealed.push(next);
            (receipts, uncounted) = Default::default();
            hour = hour.next();
            if !part.last || !is_over(hour) || sealed.len() >= SEALED_AT_ONCE {
                break;
            }
        }
        let values = sealed.iter().flat_map(|sealed| values_of(&self.keys, sealed));
        let mut ops: Vec<Op> = values.map(|(key, value)| put(key, value)).collect();
        let gone = match now {
            Some(now) => self.forget(store, &mut head, now).await?,
            None => Vec::new(),
        };
        ops.push(put(self.keys.head(), head.encode().into()));
        ops.extend(self.pages.iter().cloned().chain(gone).map(|key| Op::Delete { key, expected: Expected::Any }));
        Ok(Sealing { ops, head, sealed })
    }

    /// The entries of parts that are older than receipts are kept.
    async fn forget(
        &self,
        store: &dyn StateStore,
        head: &mut StoredHead,
        now: Timestamp,
    ) -> Result<Vec<String>, StateError> {
        let kept = SignedDuration::from_hours(24 * i64::from(self.keeping.days));
        let oldest = now.saturating_sub(kept).map_or(Timestamp::MIN, |oldest| oldest);
        let oldest = self.needed_from.map_or(oldest, |needed| oldest.min(needed));
        let mut gone = Vec::new();
        for _ in 0..FORGOTTEN_AT_ONCE {
            if head.first >= self.head.seq {
                break;
            }
            let checkpoint = match self.forgettable(store, head.first, oldest).await {
                Ok(None) => break,
                Ok(Some(keys)) => keys,
                Err(error @ StateError::Unavailable(_)) => return Err(error),
                Err(error) => {
                    // What is old and damaged stays: the events of today do not wait for it.
                    tracing::error!(tenant = %self.tenant, "{DAMAGED}: old receipts are not removed: {error}");
                    break;
                }
            };
            gone.extend(checkpoint);
            head.first += 1;
        }
        Ok(gone)
    }

    /// The keys of a part, if it is older than this.
    async fn forgettable(
        &self,
        store: &dyn StateStore,
        seq: u64,
        oldest: Timestamp,
    ) -> Result<Option<Vec<String>>, StateError> {
        let key = self.keys.checkpoint(seq);
        if let Some((note, _)) = store.load(&key).await?
            && statement_of(&key, &note)?.hour.next().start() > oldest
        {
            return Ok(None);
        }
        Ok(Some(store.list(&self.keys.part(seq)).await?.into_iter().map(|(key, _)| key).collect()))
    }

    /// The part is committed.
    pub(super) fn sealed(&mut self, sealing: Sealing) {
        let Sealing { head, sealed, .. } = sealing;
        for sealed in sealed {
            let statement = &sealed.statement;
            self.hour = Some(if statement.last { statement.hour.next() } else { statement.hour });
        }
        self.announced.send_replace(head.seq);
        self.head = head;
        self.pages.clear();
        self.receipts = 0;
        self.next_page = 0;
    }
}

/// What a stored checkpoint states; whether it is signed is not looked at.
fn statement_of(key: &str, note: &[u8]) -> Result<Statement, StateError> {
    let corrupt = |why: String| StateError::Corrupt { key: key.to_owned(), why };
    let note = std::str::from_utf8(note).map_err(|error| corrupt(error.to_string()))?;
    Statement::parse(text_of(note).map_err(|error| corrupt(error.to_string()))?)
        .map_err(|error| corrupt(error.to_string()))
}

fn put(key: String, value: bytes::Bytes) -> Op {
    Op::Put { key, value, expected: Expected::Any }
}
