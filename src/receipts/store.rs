//! Reading sealed parts from a state, one part in memory at a time, beside a process that seals and removes others.
//!
//! It does not judge their content, except where that needs the statement: the rule of a class.

use bytes::Bytes;

use super::entry::{Class, Receipt};
use super::head::StoredHead;
use super::note::{VerifierKey, text_of};
use super::seal::{ENTRY_BYTES, Sealed};
use super::statement::{Hour, Outcome, Statement};
use super::verify::{Verification, Verifier, Wrong};
use crate::host::{StateError, StateStore};
use crate::model::TenantId;
use crate::normalise::CanonicalKey;

/// The keys of one tenant's receipts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiptKeys {
    root: String,
}

impl ReceiptKeys {
    /// Those that begin with this prefix, which ends in `/`.
    pub fn below(root: impl Into<String>) -> Self {
        Self { root: root.into() }
    }

    /// Where the sealed parts begin and end: [`StoredHead`].
    pub fn head(&self) -> String {
        format!("{}head", self.root)
    }

    /// Prefix of the pages that are not sealed.
    pub fn open(&self) -> String {
        format!("{}open/", self.root)
    }

    /// Prefix of the pages from which part `seq` will be sealed.
    pub fn open_part(&self, seq: u64) -> String {
        format!("{}open/{seq:016x}/", self.root)
    }

    /// The page of one commit, with how many receipts it has, so that a start need not read it.
    pub fn open_page(&self, seq: u64, number: u64, receipts: usize) -> String {
        format!("{}open/{seq:016x}/{number:08x}-{receipts:x}", self.root)
    }

    /// Prefix of the sealed parts.
    pub fn sealed(&self) -> String {
        format!("{}sealed/", self.root)
    }

    /// Prefix of one of them.
    pub fn part(&self, seq: u64) -> String {
        format!("{}sealed/{seq:016x}/", self.root)
    }

    /// Its signed note.
    pub fn checkpoint(&self, seq: u64) -> String {
        format!("{}sealed/{seq:016x}/checkpoint", self.root)
    }

    /// One page of its entries.
    pub fn page(&self, seq: u64, page: usize) -> String {
        format!("{}sealed/{seq:016x}/{page:08x}", self.root)
    }

    /// The number of the part that a key belongs to.
    fn seq_of(&self, key: &str) -> Option<u64> {
        let part = key.strip_prefix(&self.sealed())?.split('/').next()?;
        u64::from_str_radix(part, 16).ok()
    }
}

/// The entries to store for a sealed part, in the commit that stores [`StoredHead::after`] it: keys and values.
pub fn values_of(keys: &ReceiptKeys, sealed: &Sealed) -> Vec<(String, Bytes)> {
    let seq = sealed.statement.seq;
    let pages = sealed.pages.iter().enumerate().map(|(page, bytes)| (keys.page(seq, page), bytes.clone()));
    pages.chain([(keys.checkpoint(seq), sealed.note.clone().into())]).collect()
}

/// The gap between a part and the previously returned one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartGap {
    /// None: it is the first, or the next.
    Nothing,
    /// Parts that were removed as too old meanwhile.
    Removed,
    /// Missing parts, from this one on.
    Missing(u64),
}

/// A part as it is stored.
#[derive(Debug, Clone)]
pub struct StoredPart {
    /// Its number.
    pub seq: u64,
    /// What is missing before it.
    pub before: PartGap,
    /// Its signed note; `None` if it is missing.
    pub note: Option<Bytes>,
    /// Its pages in order, as far as they exist.
    pub pages: Vec<Bytes>,
    /// Keys below it that are neither.
    pub strays: Vec<String>,
}

impl StoredPart {
    /// Its statement, not verified.
    ///
    /// # Errors
    /// The fault of the note.
    pub fn statement(&self) -> Result<Statement, String> {
        let note = self.note.as_deref().ok_or("the checkpoint is missing")?;
        let note = std::str::from_utf8(note).map_err(|error| error.to_string())?;
        Statement::parse(text_of(note).map_err(|error| error.to_string())?).map_err(|error| error.to_string())
    }

    fn entries(&self) -> u64 {
        (self.pages.iter().map(Bytes::len).sum::<usize>() / ENTRY_BYTES) as u64
    }

    /// Whether it has as many entries as its statement declares.
    fn is_whole(&self) -> bool {
        self.statement().is_ok_and(|statement| statement.entries == self.entries())
    }
}

/// Where the sealed parts begin and end; `None` before anything was sealed.
///
/// # Errors
/// When the state cannot be read or the head is damaged.
pub async fn read_head(store: &dyn StateStore, keys: &ReceiptKeys) -> Result<Option<StoredHead>, StateError> {
    let key = keys.head();
    let Some((bytes, _)) = store.load(&key).await? else { return Ok(None) };
    StoredHead::decode(&bytes).map(Some).map_err(|why| StateError::Corrupt { key, why })
}

async fn load_part(store: &dyn StateStore, keys: &ReceiptKeys, seq: u64) -> Result<StoredPart, StateError> {
    let (mut note, mut pages, mut strays) = (None, Vec::new(), Vec::new());
    for (key, _) in store.list(&keys.part(seq)).await? {
        if key == keys.checkpoint(seq) {
            note = store.load(&key).await?.map(|(note, _)| note);
        } else if key == keys.page(seq, pages.len()) {
            pages.extend(store.load(&key).await?.map(|(page, _)| page));
        } else {
            strays.push(key);
        }
    }
    Ok(StoredPart { seq, before: PartGap::Nothing, note, pages, strays })
}

/// Reads one part after the other, from the first that is kept to the last that was sealed when this was opened.
pub struct SealedParts<'s> {
    store: &'s dyn StateStore,
    keys: &'s ReceiptKeys,
    /// The existing parts.
    seqs: std::vec::IntoIter<u64>,
    expected: u64,
}

impl<'s> SealedParts<'s> {
    /// The parts that this head names, as far as they exist.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub async fn open(store: &'s dyn StateStore, keys: &'s ReceiptKeys, head: &StoredHead) -> Result<Self, StateError> {
        let listed = store.list(&keys.sealed()).await?;
        let named = head.first..head.seq;
        let mut seqs: Vec<u64> = listed.iter().filter_map(|(key, _)| keys.seq_of(key)).collect();
        seqs.retain(|seq| named.contains(seq));
        seqs.dedup();
        Ok(Self { store, keys, seqs: seqs.into_iter(), expected: head.first })
    }

    /// The next part. One that was removed as too old meanwhile is skipped; a damaged one is returned as it is.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub async fn next(&mut self) -> Result<Option<StoredPart>, StateError> {
        let mut removed = false;
        for seq in self.seqs.by_ref() {
            let mut part = load_part(self.store, self.keys, seq).await?;
            if seq != self.expected || !part.is_whole() {
                let first = read_head(self.store, self.keys).await?.map_or(0, |head| head.first);
                removed |= first > self.expected;
                self.expected = self.expected.max(first);
            }
            if seq < self.expected {
                continue;
            }
            part.before = match (seq == self.expected, removed) {
                (false, _) => PartGap::Missing(self.expected),
                (true, true) => PartGap::Removed,
                (true, false) => PartGap::Nothing,
            };
            self.expected = seq.saturating_add(1);
            return Ok(Some(part));
        }
        Ok(None)
    }

    /// The number after the last part returned.
    pub fn end(&self) -> u64 {
        self.expected
    }
}

/// Verifies a tenant's sealed parts, each by any of these keys; `None` when nothing was sealed yet. Damage is a fault.
///
/// # Errors
/// When the state cannot be read.
pub async fn verify(
    store: &dyn StateStore,
    keys: &ReceiptKeys,
    tenant: TenantId,
    by: &[VerifierKey],
    elsewhere: &[Statement],
) -> Result<Option<Verification>, StateError> {
    let mut verifier = Verifier::new(tenant, by.to_vec());
    elsewhere.iter().for_each(|statement| verifier.compare_with(statement));
    let head = match head_of_sealed(store, keys, &mut verifier).await {
        Ok(Some(head)) => head,
        Ok(None) => return Ok((!verifier.is_good()).then(|| verifier.finish())),
        Err(StateError::Corrupt { key, why }) => {
            verifier.fault(Some(key), None, None, Wrong::Unreadable(why));
            return Ok(Some(verifier.finish()));
        }
        Err(error) => return Err(error),
    };
    verifier.begins_with(head.first);
    let mut parts = SealedParts::open(store, keys, &head).await?;
    loop {
        let part = match parts.next().await {
            Ok(Some(part)) => part,
            Ok(None) => break,
            Err(StateError::Corrupt { key, why }) => {
                let seq = keys.seq_of(&key).filter(|seq| *seq >= parts.end());
                match seq {
                    Some(seq) => {
                        let damaged = verifier.begin_part(seq, Some(key), Err(Wrong::Unreadable(why)));
                        verifier.end_part(damaged, None);
                    }
                    None => verifier.fault(Some(key), None, None, Wrong::Unreadable(why)),
                }
                continue;
            }
            Err(error) => return Err(error),
        };
        if part.before == PartGap::Removed {
            verifier.begins_with(part.seq);
        }
        let note = part.note.as_deref().ok_or(Wrong::NoNote);
        let mut checking = verifier.begin_part(part.seq, Some(keys.checkpoint(part.seq)), note);
        part.pages.iter().for_each(|page| checking.entries(page));
        verifier.end_part(checking, None);
        for stray in part.strays {
            verifier.fault(Some(stray), Some(part.seq), None, Wrong::Stray);
        }
    }
    match &head.sealed {
        Some(sealed) => verifier.end_with(Some(keys.head()), head.seq - 1, sealed.hash),
        None => verifier.fault(Some(keys.head()), None, None, Wrong::Head("its last part")),
    }
    find_strays(store, keys, &mut verifier).await?;
    Ok(Some(verifier.finish()))
}

/// The head, if a part was sealed. Parts without a head that names any are faults.
async fn head_of_sealed(
    store: &dyn StateStore,
    keys: &ReceiptKeys,
    verifier: &mut Verifier,
) -> Result<Option<StoredHead>, StateError> {
    if let Some(head) = read_head(store, keys).await?.filter(|head| head.seq > 0) {
        return Ok(Some(head));
    }
    // The head is read after the list: it includes parts sealed meanwhile.
    let listed = store.list(&keys.sealed()).await?;
    let head = read_head(store, keys).await?;
    match head {
        Some(head) if head.seq > 0 => return Ok(Some(head)),
        _ if listed.is_empty() => return Ok(None),
        Some(_) => verifier.fault(Some(keys.head()), None, None, Wrong::Head("there should be none")),
        None => verifier.fault(Some(keys.head()), None, None, Wrong::NoHead),
    }
    for (key, _) in listed {
        let seq = keys.seq_of(&key);
        verifier.fault(Some(key), seq, None, Wrong::Stray);
    }
    Ok(None)
}

/// Reports entries stored as a part that the head does not name. The head is read after the list, so it covers all of
/// it.
async fn find_strays(store: &dyn StateStore, keys: &ReceiptKeys, verifier: &mut Verifier) -> Result<(), StateError> {
    let listed = store.list(&keys.sealed()).await?;
    let Some(head) = read_head(store, keys).await? else { return Ok(()) };
    for (key, _) in listed {
        let seq = keys.seq_of(&key);
        let is_stray = seq.is_none_or(|seq| seq < head.first || seq >= head.seq || !key.starts_with(&keys.part(seq)));
        let is_there = match store.load(&key).await {
            _ if !is_stray => false,
            Ok(value) => value.is_some(),
            Err(StateError::Corrupt { .. }) => true,
            Err(error) => return Err(error),
        };
        if is_there {
            verifier.fault(Some(key), seq, None, Wrong::Stray);
        }
    }
    Ok(())
}

/// One entry, or a receipt that is not sealed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundReceipt<'a> {
    /// The event's key.
    pub key: CanonicalKey,
    /// Its outcome. Of several for one event, the greatest is final.
    pub outcome: Outcome,
    /// The rule that dropped it, if it is named.
    pub rule: Option<&'a str>,
    /// The hour it was sealed in; `None` when it is not sealed yet.
    pub hour: Option<Hour>,
}

/// The range of the entries read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EntryRange {
    /// The first hour read.
    pub from: Option<Hour>,
    /// The last.
    pub to: Option<Hour>,
    /// Whether there were parts before the first, which were removed as too old.
    pub pruned: bool,
    /// The last hour in which receipts began, for the first time or again; `None` when they began before the first hour
    /// read.
    pub begins: Option<Hour>,
    /// How many entries and receipts were read.
    pub entries: u64,
}

/// Passes every entry of the sealed parts to `visit`, oldest part first, then the receipts that are not sealed. It
/// verifies nothing, but unreadable data is an error. Receipts (`open`) are read before the parts, so that one sealed
/// meanwhile may come twice; read after, it could be missed. Entries of parts before `since` are skipped.
///
/// # Errors
/// When the state cannot be read, or a part is damaged.
pub async fn for_each_entry(
    store: &dyn StateStore,
    keys: &ReceiptKeys,
    since: Option<Hour>,
    open: impl IntoIterator<Item = Receipt>,
    visit: &mut (dyn FnMut(FoundReceipt<'_>) + Send),
) -> Result<EntryRange, StateError> {
    let mut reach = EntryRange::default();
    if let Some(head) = read_head(store, keys).await? {
        let mut parts = SealedParts::open(store, keys, &head).await?;
        let missing = |seq| StateError::Corrupt { key: keys.checkpoint(seq), why: "it is missing".to_owned() };
        while let Some(part) = parts.next().await? {
            let damaged = |why: String| StateError::Corrupt { key: keys.checkpoint(part.seq), why };
            if let PartGap::Missing(seq) = part.before {
                return Err(missing(seq));
            }
            let statement = part.statement().map_err(damaged)?;
            if statement.entries != part.entries() {
                return Err(damaged(format!("it has {} entries, expected {}", part.entries(), statement.entries)));
            }
            if reach.from.is_none() {
                reach.pruned = part.seq > 0;
            }
            reach.from.get_or_insert(statement.hour);
            reach.to = Some(statement.hour);
            if statement.begins {
                reach.begins = Some(statement.hour);
            }
            reach.entries += statement.entries;
            if since.is_none_or(|since| since <= statement.hour) {
                visit_part(&part, &statement, visit).map_err(damaged)?;
            }
        }
        if parts.end() < head.seq {
            return Err(missing(parts.end()));
        }
    }
    for Receipt { key, class, .. } in open {
        let Some(key) = key else { continue };
        let (outcome, rule) = match &class {
            Class::Delivered => (Outcome::Delivered, None),
            Class::SetAside => (Outcome::SetAside, None),
            Class::Held => (Outcome::Held, None),
            Class::Dropped(rule) => (Outcome::Dropped, Some(&**rule)),
        };
        reach.entries += 1;
        visit(FoundReceipt { key, outcome, rule, hour: None });
    }
    Ok(reach)
}

fn visit_part(
    part: &StoredPart,
    statement: &Statement,
    visit: &mut (dyn FnMut(FoundReceipt<'_>) + Send),
) -> Result<(), String> {
    for page in &part.pages {
        let (entries, rest) = page.as_chunks::<ENTRY_BYTES>();
        if !rest.is_empty() {
            return Err("a page ends within an entry".to_owned());
        }
        for entry in entries {
            let Some((key, [class])) = entry.split_first_chunk::<16>() else { continue };
            let outcome = Outcome::of_class(*class).filter(|_| statement.has_class(*class));
            let outcome = outcome.ok_or_else(|| format!("an entry has the class {class}, which it does not name"))?;
            let rule = statement.rule(*class).map(|rule| &**rule);
            visit(FoundReceipt { key: CanonicalKey::from_bytes(*key), outcome, rule, hour: Some(statement.hour) });
        }
    }
    Ok(())
}
