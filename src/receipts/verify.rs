//! Verifies parts one after another: signatures, numbers, hours, chain, roots, counts, and where they end. Pure.
//!
//! The reader of files or of a state passes each part's note and entries in the order of their numbers. A faulty part
//! does not end the verification: later parts are still checked as far as possible.

use std::collections::BTreeMap;
use std::fmt;

use super::leaves::{EntryTree, leaves_of};
use super::merkle::Hash;
use super::note::VerifierKey;
use super::seal::ENTRY_BYTES;
use super::statement::{Counts, Hour, ReceiptHead, Statement, StatementError, open_by};
use crate::model::{TenantId, Timestamp};

/// Faults that are listed; more are only counted.
pub const FAULTS_MAX: usize = 100;

/// A fault, and its meaning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// The note of a part or of the head.
    #[error(transparent)]
    Note(#[from] StatementError),
    /// Not UTF-8.
    #[error("its checkpoint is no text: it was changed")]
    NotText,
    /// Another tenant's.
    #[error("it was made for tenant `{0}`: it was put here from another place")]
    Tenant(TenantId),
    /// Its statement has another number.
    #[error("its checkpoint is that of part {0}: files were exchanged or renamed")]
    Number(u64),
    /// Parts are missing.
    #[error("{} missing: receipts were removed", parts(*.from, *.to))]
    Hole {
        /// The first missing one.
        from: u64,
        /// The last.
        to: u64,
    },
    /// Not the hour, or not the part of it, that follows.
    #[error("it is part {found_part} of {found}, expected part {part} of {hour}: an hour is missing, or there twice")]
    Hour {
        /// Its hour.
        found: Hour,
        /// Its number in it.
        found_part: u32,
        /// The hour expected after the part before it.
        hour: Hour,
        /// And its number.
        part: u32,
    },
    /// It does not follow on the part before it.
    #[error("it does not follow on the part before it (`previous`): one of the two is of another history, a fork")]
    Fork,
    /// A checkpoint kept elsewhere says something else.
    #[error(
        "a checkpoint kept elsewhere says something else of it, and both are signed: there are two histories, a fork"
    )]
    ForkElsewhere,
    /// A checkpoint kept elsewhere is of a part that is not there.
    #[error(
        "a checkpoint kept elsewhere is of this part, and it is not here: this is an older copy, or its end was cut off"
    )]
    Elsewhere,
    /// A checkpoint kept elsewhere is of a part before the first that is there, and younger.
    #[error(
        "a checkpoint kept elsewhere is of this part, which is not here and is not older than the first that is: the receipts were not removed for their age"
    )]
    ElsewhereBefore,
    /// Checkpoints kept elsewhere are of a tenant that was not looked at.
    #[error(
        "{} of tenant `{tenant}`, of which there are no receipts to verify: they were removed, or nothing here names the tenant",
        match count { 1 => "a checkpoint kept elsewhere is".to_owned(), count => format!("{count} checkpoints kept elsewhere are") }
    )]
    ElsewhereTenant {
        /// Whose they are.
        tenant: TenantId,
        /// How many.
        count: u64,
    },
    /// A state exists, but no head.
    #[error(
        "the tenant has a state and nothing says where its receipts begin: they were removed, or no process that keeps receipts has run since they were turned on"
    )]
    NeverBegun,
    /// No checkpoint.
    #[error("its checkpoint is missing: it was removed")]
    NoNote,
    /// No entries.
    #[error("its entries are missing: they were removed")]
    NoEntries,
    /// Half an entry.
    #[error("its entries end within one: they were cut or changed")]
    Cut,
    /// Not sorted or not distinct.
    #[error("entry {0} does not come after the one before it: entries were exchanged, repeated or changed")]
    Order(u64),
    /// No such class.
    #[error("entry {0} has the class {1}, which its checkpoint does not name: it was changed")]
    Class(u64, u8),
    /// More or fewer entries.
    #[error("it has {found} entries, its checkpoint says {stated}: receipts were removed or added")]
    Entries {
        /// How many there are.
        found: u64,
        /// How many there should be.
        stated: u64,
    },
    /// The root.
    #[error("the root over its entries is not the one that is signed: a receipt was changed")]
    Root,
    /// The counts.
    #[error("its checkpoint counts {stated} {class}, its entries are {found}: it was not made by this program")]
    Counts {
        /// Which class.
        class: &'static str,
        /// In its entries.
        found: u64,
        /// As stated.
        stated: u64,
    },
    /// No head.
    #[error("the head is missing: parts at the end may have been removed")]
    NoHead,
    /// The head contradicts the parts.
    #[error("the head does not fit the parts ({0}): parts were removed or added, or the head is of another copy")]
    Head(&'static str),
    /// Cannot be read as stored.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// A file or key that belongs to no part.
    #[error("it is no file of receipts: it was added or renamed")]
    Stray,
    /// Nothing was found.
    #[error("there are no receipts")]
    Nothing,
    /// The key beside the parts.
    #[error("it is not the key that the receipts are verified with")]
    Key,
}

fn parts(from: u64, to: u64) -> String {
    if from == to { format!("part {from} is") } else { format!("parts {from} to {to} are") }
}

/// One fault and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiptFault {
    /// The file or the state's key, if there is one.
    pub place: Option<String>,
    /// The part's number.
    pub seq: Option<u64>,
    /// Its hour, if its checkpoint can be trusted.
    pub hour: Option<Hour>,
    /// The fault.
    pub wrong: Wrong,
}

impl fmt::Display for ReceiptFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "`{place}`")?;
        }
        let separator = if self.place.is_some() { ", " } else { "" };
        match (self.seq, self.hour) {
            (Some(seq), Some(hour)) => write!(f, "{separator}part {seq} of {hour}")?,
            (Some(seq), None) => write!(f, "{separator}part {seq}")?,
            _ => {}
        }
        if self.place.is_some() || self.seq.is_some() {
            f.write_str(": ")?;
        }
        fmt::Display::fmt(&self.wrong, f)
    }
}

/// The result for one tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verification {
    /// Whose.
    pub tenant: TenantId,
    /// Parts whose checkpoint can be trusted.
    pub parts: u64,
    /// The numbers of the first and the last of them.
    pub seqs: Option<(u64, u64)>,
    /// The first and the last hour.
    pub hours: Option<(Hour, Hour)>,
    /// Parts in which receipts begin, for the first time or again, at most [`FAULTS_MAX`]: events delivered before
    /// that, since the previous part, have none.
    pub begins: Vec<(u64, Hour)>,
    /// Entries in them.
    pub entries: u64,
    /// Parts at which the signing key changed, with the new key, at most [`FAULTS_MAX`].
    pub key_changes: Vec<(u64, Hour, String)>,
    /// Their counts, over all content types.
    pub counts: Counts,
    /// The hash of the last statement.
    pub last_hash: Option<Hash>,
    /// When the directory was written.
    pub exported: Option<Timestamp>,
    /// Checkpoints kept elsewhere that were compared.
    pub compared: u64,
    /// Those of parts that were removed as too old.
    pub not_compared: u64,
    /// The faults, at most [`FAULTS_MAX`].
    pub faults: Vec<ReceiptFault>,
    /// The total number of faults.
    pub faults_in_all: u64,
}

impl Verification {
    /// Nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.faults_in_all == 0
    }

    /// How many parts before the first were removed as older than `[receipts] days`.
    pub fn pruned(&self) -> u64 {
        self.seqs.map_or(0, |(first, _)| first)
    }
}

/// The expected successor of a part.
#[derive(Debug, Clone, Copy)]
struct Following {
    hour: Hour,
    part: u32,
    previous: Hash,
}

impl Following {
    fn on(statement: &Statement) -> Self {
        let (hour, part) = match statement.last {
            true => (statement.hour.next(), 0),
            false => (statement.hour, statement.part.saturating_add(1)),
        };
        Self { hour, part, previous: statement.hash() }
    }
}

/// Verifies the parts of one tenant.
#[derive(Debug)]
pub struct Verifier {
    keys: Vec<VerifierKey>,
    /// Which of them signed the part before the next.
    signed_by: Option<usize>,
    verdict: Verification,
    /// The number that the next part must have.
    next: Option<u64>,
    /// The expectation of the previous part, if its checkpoint can be trusted.
    following: Option<Following>,
    /// The first part whose checkpoint can be trusted, by its hour and its number in it.
    first: Option<(Hour, u32)>,
    last: Option<Statement>,
    elsewhere: BTreeMap<u64, Elsewhere>,
}

/// A checkpoint kept elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Elsewhere {
    hour: Hour,
    part: u32,
    hash: Hash,
}

/// A part whose entries are being read.
#[derive(Debug)]
pub struct Checking {
    seq: u64,
    place: Option<String>,
    statement: Option<Statement>,
    tree: EntryTree,
    counts: Counts,
    /// The bytes of an incomplete entry.
    begun: Vec<u8>,
    before: Option<[u8; ENTRY_BYTES]>,
    /// The first fault of each kind is reported.
    order: Option<u64>,
    class: Option<(u64, u8)>,
}

impl Verifier {
    /// For the parts of `tenant`, each signed by one of these keys.
    pub fn new(tenant: TenantId, keys: Vec<VerifierKey>) -> Self {
        let verdict = Verification {
            tenant,
            parts: 0,
            seqs: None,
            hours: None,
            begins: Vec::new(),
            entries: 0,
            key_changes: Vec::new(),
            counts: Counts::default(),
            last_hash: None,
            exported: None,
            compared: 0,
            not_compared: 0,
            faults: Vec::new(),
            faults_in_all: 0,
        };
        Self {
            keys,
            signed_by: None,
            verdict,
            next: None,
            following: None,
            first: None,
            last: None,
            elsewhere: BTreeMap::new(),
        }
    }

    /// Adds a statement kept elsewhere, which must equal that of its part.
    pub fn compare_with(&mut self, elsewhere: &Statement) {
        if elsewhere.tenant != self.verdict.tenant {
            return;
        }
        let kept = Elsewhere { hour: elsewhere.hour, part: elsewhere.part, hash: elsewhere.hash() };
        if self.elsewhere.insert(elsewhere.seq, kept).is_some_and(|other| other != kept) {
            self.fault(None, Some(elsewhere.seq), Some(elsewhere.hour), Wrong::ForkElsewhere);
        }
    }

    /// Records a fault outside the parts.
    pub fn fault(&mut self, place: Option<String>, seq: Option<u64>, hour: Option<Hour>, wrong: Wrong) {
        self.verdict.faults_in_all += 1;
        if self.verdict.faults.len() < FAULTS_MAX {
            self.verdict.faults.push(ReceiptFault { place, seq, hour, wrong });
        }
    }

    /// The next part, by the number of its place. Pass its entries to the returned value, and that to
    /// [`Verifier::end_part`].
    pub fn begin_part(&mut self, seq: u64, place: Option<String>, note: Result<&[u8], Wrong>) -> Checking {
        if let Some(next) = self.next
            && seq > next
        {
            self.fault(None, None, None, Wrong::Hole { from: next, to: seq - 1 });
            self.following = None;
        }
        self.next = Some(seq.saturating_add(1));
        let statement = note.and_then(|note| {
            let text = std::str::from_utf8(note).map_err(|_| Wrong::NotText)?;
            Ok(open_by(&self.keys, |key| Statement::open(text, key))?)
        });
        let statement = match statement {
            Ok((statement, key)) => {
                self.note_key(key, &statement);
                self.compare(seq, place.as_deref(), &statement);
                Some(statement)
            }
            Err(wrong) => {
                self.fault(place.clone(), Some(seq), None, wrong);
                self.following = None;
                None
            }
        };
        Checking {
            seq,
            place,
            statement,
            tree: EntryTree::default(),
            counts: Counts::default(),
            begun: Vec::new(),
            before: None,
            order: None,
            class: None,
        }
    }

    fn note_key(&mut self, at: usize, statement: &Statement) {
        let is_other = self.signed_by.replace(at).is_some_and(|before| before != at);
        if is_other
            && self.verdict.key_changes.len() < FAULTS_MAX
            && let Some(key) = self.keys.get(at)
        {
            self.verdict.key_changes.push((statement.seq, statement.hour, key.short()));
        }
    }

    /// Compares a statement with its place and with the part before it.
    fn compare(&mut self, seq: u64, place: Option<&str>, statement: &Statement) {
        let mut found = Vec::new();
        if statement.tenant != self.verdict.tenant {
            found.push(Wrong::Tenant(statement.tenant.clone()));
        }
        if statement.seq != seq {
            found.push(Wrong::Number(statement.seq));
        }
        if seq == 0 {
            if statement.previous != [0; 32] {
                found.push(Wrong::Fork);
            }
            if statement.part != 0 {
                let (hour, found_part) = (statement.hour, statement.part);
                found.push(Wrong::Hour { found: hour, found_part, hour, part: 0 });
            }
        }
        if let Some(Following { hour, part, previous }) = self.following {
            if (statement.hour, statement.part) != (hour, part) {
                found.push(Wrong::Hour { found: statement.hour, found_part: statement.part, hour, part });
            }
            if statement.previous != previous {
                found.push(Wrong::Fork);
            }
        }
        let hash = statement.hash();
        if let Some(elsewhere) = self.elsewhere.remove(&seq) {
            self.verdict.compared += 1;
            if elsewhere.hash != hash {
                found.push(Wrong::ForkElsewhere);
            }
        }
        for wrong in found {
            self.fault(place.map(str::to_owned), Some(seq), Some(statement.hour), wrong);
        }
        self.following = Some(Following::on(statement));
        let verdict = &mut self.verdict;
        verdict.parts += 1;
        verdict.seqs = Some((verdict.seqs.map_or(seq, |(first, _)| first), seq));
        verdict.hours = Some((verdict.hours.map_or(statement.hour, |(first, _)| first), statement.hour));
        if statement.begins && verdict.begins.len() < FAULTS_MAX {
            verdict.begins.push((seq, statement.hour));
        }
        verdict.counts = verdict.counts.and(statement.counts_in_all());
        verdict.last_hash = Some(hash);
        self.first.get_or_insert((statement.hour, statement.part));
        self.last = Some(statement.clone());
    }

    /// Ends a part; `wrong` is the reason if its entries could not all be read.
    pub fn end_part(&mut self, part: Checking, wrong: Option<Wrong>) {
        let Checking { seq, place, statement, tree, counts, begun, order, class, .. } = part;
        self.verdict.entries = self.verdict.entries.saturating_add(tree.entries());
        let hour = statement.as_ref().map(|statement| statement.hour);
        let mut found: Vec<Wrong> = wrong.into_iter().collect();
        if found.is_empty()
            && let Some(statement) = statement
        {
            found.extend(order.map(Wrong::Order));
            found.extend(class.map(|(entry, class)| Wrong::Class(entry, class)));
            if !begun.is_empty() {
                found.push(Wrong::Cut);
            }
            if tree.entries() != statement.entries {
                found.push(Wrong::Entries { found: tree.entries(), stated: statement.entries });
            } else if tree.root() != statement.root {
                found.push(Wrong::Root);
            } else if found.is_empty() {
                found.extend(differing(&counts, &statement.counts_in_all()));
            }
        }
        for wrong in found {
            self.fault(place.clone(), Some(seq), hour, wrong);
        }
    }

    /// Ends the verification: the parts must end as in this head.
    pub fn end_with_head(&mut self, place: Option<String>, note: Result<&[u8], Wrong>) {
        let head = note.and_then(|note| {
            let text = std::str::from_utf8(note).map_err(|_| Wrong::NotText)?;
            Ok(open_by(&self.keys, |key| ReceiptHead::open(text, key))?)
        });
        let head = match head {
            Ok((head, _)) => head,
            Err(wrong) => return self.fault(place, None, None, wrong),
        };
        self.verdict.exported = Some(head.exported);
        if head.tenant != self.verdict.tenant {
            self.fault(place.clone(), None, None, Wrong::Tenant(head.tenant.clone()));
        }
        let last = self.last.as_ref();
        let differs = [
            ("its first part", self.verdict.seqs.is_none_or(|(first, _)| first != head.first)),
            ("its last part", self.verdict.seqs.is_none_or(|(_, last)| last != head.last)),
            ("the hash of its last part", self.verdict.last_hash != Some(head.previous)),
            (
                "the root of its last part",
                last.is_none_or(|last| (leaves_of(last.entries), last.root) != (head.leaves, head.root)),
            ),
        ];
        if let Some((what, _)) = differs.into_iter().find(|(_, differs)| *differs) {
            self.fault(place, None, None, Wrong::Head(what));
        }
    }

    /// Ends the verification of a state: the last part must have this number and this hash.
    pub fn end_with(&mut self, place: Option<String>, last: u64, hash: Hash) {
        let differs = match self.verdict.seqs {
            Some((_, found)) if found == last => {
                (self.verdict.last_hash != Some(hash)).then_some("the hash of its last part")
            }
            _ => Some("its last part"),
        };
        if let Some(what) = differs {
            self.fault(place, None, None, Wrong::Head(what));
        }
    }

    /// Expects this part next: those before it were removed as too old.
    pub fn begins_with(&mut self, seq: u64) {
        self.next = Some(seq);
        self.following = None;
    }

    /// The result.
    pub fn finish(mut self) -> Verification {
        let pruned = self.verdict.pruned();
        for (seq, Elsewhere { hour, part, .. }) in std::mem::take(&mut self.elsewhere) {
            let is_older = self.first.is_some_and(|first| (hour, part) < first);
            match seq < pruned {
                true if is_older => self.verdict.not_compared += 1,
                true => self.fault(None, Some(seq), Some(hour), Wrong::ElsewhereBefore),
                false => self.fault(None, Some(seq), Some(hour), Wrong::Elsewhere),
            }
        }
        if self.verdict.parts == 0 && self.verdict.is_good() {
            self.fault(None, None, None, Wrong::Nothing);
        }
        self.verdict
    }

    /// Whether there is no fault so far.
    pub fn is_good(&self) -> bool {
        self.verdict.is_good()
    }

    /// The last part whose checkpoint can be trusted.
    pub fn last(&self) -> Option<&Statement> {
        self.last.as_ref()
    }
}

fn differing(found: &Counts, stated: &Counts) -> Vec<Wrong> {
    let classes = [
        ("delivered", found.delivered, stated.delivered),
        ("set aside", found.set_aside, stated.set_aside),
        ("held", found.held, stated.held),
        ("dropped", found.dropped, stated.dropped),
    ];
    let differing = classes.into_iter().filter(|(_, found, stated)| found != stated);
    differing.map(|(class, found, stated)| Wrong::Counts { class, found, stated }).collect()
}

impl Checking {
    /// The statement, if it can be trusted.
    pub fn statement(&self) -> Option<&Statement> {
        self.statement.as_ref()
    }

    /// Sets the place of its entries, if it differs from that of its checkpoint.
    pub fn set_place(&mut self, place: Option<String>) {
        self.place = place;
    }

    /// More of its entries, cut anywhere.
    pub fn entries(&mut self, mut bytes: &[u8]) {
        if !self.begun.is_empty() {
            let (missing, rest) = bytes.split_at(bytes.len().min(ENTRY_BYTES - self.begun.len()));
            self.begun.extend_from_slice(missing);
            bytes = rest;
            if let Ok(entry) = <[u8; ENTRY_BYTES]>::try_from(self.begun.as_slice()) {
                self.begun.clear();
                self.entry(entry);
            }
        }
        let (entries, rest) = bytes.as_chunks::<ENTRY_BYTES>();
        for entry in entries {
            self.entry(*entry);
        }
        self.begun.extend_from_slice(rest);
    }

    fn entry(&mut self, entry: [u8; ENTRY_BYTES]) {
        let index = self.tree.entries();
        if self.before.is_some_and(|before| before >= entry) {
            self.order.get_or_insert(index);
        }
        self.before = Some(entry);
        let class = entry[ENTRY_BYTES - 1];
        if self.statement.as_ref().is_some_and(|statement| !statement.has_class(class)) {
            self.class.get_or_insert((index, class));
        }
        self.counts.add_entry(class);
        self.tree.push(&entry);
    }
}
