//! Receipts beside the state: a page in each commit, and what is sealed of them.
//!
//! The one writer of a tenant's state writes them too: the page of a commit stands in that commit, so that no crash leaves
//! one without the other. When an hour is over, the pages of it become a sealed part (`crate::receipts`), and hours in
//! which nothing came are sealed as well.

use std::sync::Arc;

use bytes::Bytes;
use jiff::SignedDuration;
use tokio::sync::mpsc;

use crate::host::{Expected, Op, StateError, StateStore};
use crate::model::{TenantId, Timestamp};
use crate::receipts::Receipts;
use crate::receipts::head::StoredHead;
use crate::receipts::note::{Signer, text_of};
use crate::receipts::seal::{PAGE_ENTRIES, PART_ENTRIES_MAX, Part, Sealed, Uncounted, seal};
use crate::receipts::statement::{Hour, Statement};
use crate::receipts::store::{ReceiptKeys, values_of};

/// Pages after which an hour is sealed in a further part: what sealing reads one by one.
const PART_PAGES_MAX: usize = 4096;
/// Checkpoints that are sent anew at a start, at most: a month of hours.
const SENT_AT_START_MAX: u64 = 750;
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
pub struct ToSend {
    /// The number of the part.
    pub seq: u64,
    /// When its hour begins.
    pub hour: Timestamp,
    /// How many receipts it has.
    pub receipts: u64,
    /// The signed note.
    pub note: Bytes,
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
    /// The hour that is open.
    hour: Hour,
    /// The names of its pages.
    pages: Vec<String>,
    /// How many receipts they have, give or take those that say the same.
    receipts: usize,
    next_page: u64,
    /// Where checkpoints that are to go to sinks are announced.
    to_send: Option<mpsc::UnboundedSender<ToSend>>,
}

/// A part that is to be committed.
pub(super) struct Sealing {
    /// The steps.
    pub ops: Vec<Op>,
    head: StoredHead,
    /// What was sealed.
    pub sealed: Sealed,
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
        if found.is_some_and(|found| found != head.writer) {
            head.begins_until = Some(Hour::of(now));
        }
        head.writer = writer.to_owned();
        let after =
            |sealed: &crate::receipts::head::LastSealed| if sealed.last { sealed.hour.next() } else { sealed.hour };
        let mut journal = Journal {
            hour: head.sealed.as_ref().map_or_else(|| Hour::of(now), after),
            keeping,
            keys,
            tenant: tenant.clone(),
            pages: Vec::new(),
            receipts: 0,
            next_page: 0,
            to_send: None,
            head,
        };
        for (name, _) in store.list(&journal.keys.open()).await? {
            journal.found_page(store, name).await?;
        }
        Ok(journal)
    }

    /// What is sealed from now on, and of what is sealed already what may not have been sent: at most as many parts as
    /// a start can bear.
    pub(super) async fn announces(
        &mut self,
        store: &dyn StateStore,
    ) -> Result<Option<mpsc::UnboundedReceiver<ToSend>>, StateError> {
        if !self.keeping.sends {
            return Ok(None);
        }
        let (to_send, announced) = mpsc::unbounded_channel();
        let oldest = self.head.seq.saturating_sub(SENT_AT_START_MAX);
        for seq in self.head.unsent.max(self.head.first).max(oldest)..self.head.seq {
            let key = self.keys.checkpoint(seq);
            let Some((note, _)) = store.load(&key).await? else { continue };
            let statement = statement_of(&key, &note)?;
            // The receiver is at hand.
            let _ = to_send.send(ToSend { seq, hour: statement.hour.start(), receipts: statement.entries, note });
        }
        self.to_send = Some(to_send);
        Ok(Some(announced))
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
                self.hour = Receipts::decode(&name, &bytes)?.0;
            }
            self.receipts += receipts;
        }
        self.next_page = self.next_page.max(page + 1);
        // One that is sealed already, left by a store that stopped between two steps, goes with the next part.
        self.pages.push(name);
        Ok(())
    }

    /// The step that commits receipts; `None` when there are none.
    pub(super) fn page(&mut self, receipts: &Receipts) -> Option<Op> {
        if receipts.is_empty() {
            return None;
        }
        let name = self.keys.open_page(self.head.seq, self.next_page, receipts.len());
        self.next_page += 1;
        self.receipts += receipts.len();
        self.pages.push(name.clone());
        Some(Op::Put { key: name, value: receipts.encode(self.hour), expected: Expected::Any })
    }

    /// Whether a part is to be sealed before anything more is written.
    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        self.hour < Hour::of(now) || self.receipts >= PART_ENTRIES_MAX || self.pages.len() >= PART_PAGES_MAX
    }

    /// What has to be committed to seal the part that is due. Nothing changes before [`Journal::sealed`].
    pub(super) async fn seal(&self, store: &dyn StateStore, now: Timestamp) -> Result<Sealing, StateError> {
        let mut receipts = Receipts::default();
        for name in &self.pages {
            let Some((bytes, _)) = store.load(name).await? else {
                return Err(StateError::Corrupt { key: name.clone(), why: "the page of receipts is missing".into() });
            };
            if name.starts_with(&self.keys.open_part(self.head.seq)) {
                receipts.append(Receipts::decode(name, &bytes)?.1);
            }
        }
        let mut uncounted = std::collections::BTreeMap::<_, Uncounted>::new();
        for (content_type, count) in &receipts.without_id {
            uncounted.entry(*content_type).or_default().without_id += count;
        }
        for (content_type, count) in &receipts.repeated {
            uncounted.entry(*content_type).or_default().repeated += count;
        }
        let part = Part {
            tenant: self.tenant.clone(),
            seq: self.head.seq,
            hour: self.hour,
            part: self
                .head
                .sealed
                .as_ref()
                .filter(|sealed| sealed.hour == self.hour)
                .map_or(0, |sealed| sealed.part + 1),
            last: self.hour < Hour::of(now),
            begins: self.head.begins_until.is_some_and(|until| self.hour <= until),
            previous: self.head.previous(),
        };
        let sealed = seal(&part, receipts.receipts(), &uncounted, &self.keeping.signer);
        let mut head = self.head.after(&sealed);
        let mut ops = Vec::with_capacity(sealed.pages.len() + self.pages.len() + 2);
        ops.extend(values_of(&self.keys, &sealed).into_iter().map(|(key, value)| put(key, value)));
        let gone = self.forget(store, &mut head, now).await?;
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
        let mut gone = Vec::new();
        for _ in 0..FORGOTTEN_AT_ONCE {
            if head.first >= self.head.seq {
                break;
            }
            let key = self.keys.checkpoint(head.first);
            let Some((note, _)) = store.load(&key).await? else {
                head.first += 1;
                continue;
            };
            let statement = statement_of(&key, &note)?;
            if statement.hour.next().start() > oldest {
                break;
            }
            let pages = statement.entries.div_ceil(PAGE_ENTRIES as u64);
            gone.extend((0..pages).map(|page| self.keys.page(head.first, page as usize)));
            gone.push(key);
            head.first += 1;
        }
        Ok(gone)
    }

    /// The part is committed.
    pub(super) fn sealed(&mut self, sealing: Sealing) {
        let statement = &sealing.sealed.statement;
        if let Some(to_send) = &self.to_send {
            let (seq, note) = (statement.seq, sealing.sealed.note.clone().into());
            // Whoever would send it may have ended: it is announced again at the next start.
            let _ = to_send.send(ToSend { seq, hour: statement.hour.start(), receipts: statement.entries, note });
        }
        self.hour = if statement.last { statement.hour.next() } else { statement.hour };
        self.head = sealing.head;
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
