//! Watches the state store: every commit is held against what the host has confirmed and what the tenant published.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::SignedDuration;
use m365_audit::checkpoint::claims::EventIndex;
use m365_audit::checkpoint::format::{Keys, Position, decode};
use m365_audit::checkpoint::held::HeldPage;
use m365_audit::checkpoint::key_set::{Key, KeyKind, KeySet};
use m365_audit::clock::{Clock, TestClock};
use m365_audit::host::{Op, Revision, StateError, StateStore};
use m365_audit::hosts::embedded::memory::MemoryStore;
use m365_audit::model::{ContentType, TenantId, Timestamp};
use m365_audit::normalise::{CanonicalKey, Event, canonical_key};
use m365_audit::receipts::{Class, OpenReceipts};
use m365_audit::sim::{Sim, Truth};
use serde_json::Value;

/// Beyond this many events the keys on disk are looked at only now and then.
const EVENTS_WATCHED_CLOSELY: usize = 2_000;

/// What tells one event from another, for the watch; two events that share it are watched as one.
pub type Label = String;

/// The label of an event's bytes.
pub fn label(raw: &[u8]) -> Label {
    match Event::parse(raw).ok().and_then(|event| event.identity().map(|id| format!("{id:?}"))) {
        Some(identity) => identity,
        None => serde_json::from_slice::<Value>(raw).map_or_else(|_| format!("{raw:?}"), |value| value.to_string()),
    }
}

struct Published {
    content_type: ContentType,
    created: Timestamp,
    listable_from: Option<Timestamp>,
    labels: Vec<Label>,
}

/// What the host has confirmed, what was published, and what was found to be wrong.
pub struct Watch {
    sim: Sim,
    clock: TestClock,
    tenant: TenantId,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    blobs: HashMap<String, Published>,
    /// Key of each event, by label.
    keys: HashMap<Label, Key>,
    /// Canonical key of each event that has one, by label, and what receipts say of it.
    canonical: HashMap<Label, CanonicalKey>,
    said: HashMap<CanonicalKey, Class>,
    confirmed: HashSet<Label>,
    /// Events that routine reads may be: for how long they wait for a match, and which need not be delivered.
    hold_secs: Option<u32>,
    droppable: HashSet<Label>,
    /// Events on hold on disk, by the key of their page.
    held: HashMap<String, Vec<Label>>,
    excused_blobs: HashSet<String>,
    excused_spans: Vec<(ContentType, Timestamp, Timestamp)>,
    marked: HashSet<String>,
    positions: BTreeMap<ContentType, Position>,
    server_now_max: Option<(Timestamp, Duration)>,
    violations: Vec<String>,
}

impl Watch {
    pub fn new(sim: Sim, clock: TestClock, tenant: TenantId) -> Self {
        Self { sim, clock, tenant, inner: Mutex::default() }
    }

    /// Takes note of a blob whose times are known.
    pub fn published(&self, id: &str, content_type: ContentType, created: Timestamp, listable_from: Timestamp) {
        let listable_from = Some(listable_from);
        let published = Published { content_type, created, listable_from, labels: Vec::new() };
        self.inner.lock().unwrap().blobs.insert(id.to_owned(), published);
    }

    /// The source drops routine reads that are not matched within `hold_secs`.
    pub fn dropping(&self, hold_secs: u32) {
        self.inner.lock().unwrap().hold_secs = Some(hold_secs);
    }

    /// Takes note of the events of all blobs.
    pub fn learn(&self, truth: &Truth) {
        let mut inner = self.inner.lock().unwrap();
        if let Some(hold_secs) = inner.hold_secs {
            let optional = truth.clone().dropping(hold_secs).events.into_iter().filter(|event| event.optional);
            inner.droppable = optional.map(|event| label(&event.raw)).collect();
        }
        for blob in inner.blobs.values_mut() {
            blob.labels.clear();
        }
        for event in &truth.events {
            let label = label(&event.raw);
            if let Some(identity) = Event::parse(&event.raw).ok().and_then(|e| e.identity().map(|i| Key::of_event(&i)))
            {
                inner.keys.insert(label.clone(), identity);
            }
            if let Some(key) = Event::parse(&event.raw).ok().and_then(|event| canonical_key(&event)) {
                inner.canonical.insert(label.clone(), key);
            }
            for id in &event.content_ids {
                let entry = inner.blobs.entry(id.to_string()).or_insert_with(|| Published {
                    content_type: event.content_type,
                    created: created_of(id),
                    listable_from: None,
                    labels: Vec::new(),
                });
                if event.content_ids.len() == 1 && entry.listable_from.is_none() {
                    entry.listable_from = Some(event.listable_from);
                }
                entry.labels.push(label.clone());
            }
        }
    }

    /// The host has this record for good, or has rejected it for good.
    pub fn confirm(&self, record: &Value) {
        let mut inner = self.inner.lock().unwrap();
        let text = |key: &str| record.get(key).and_then(Value::as_str);
        if text("event_type") == Some("m365_audit.gap") {
            if let Some(id) = text("content_id") {
                inner.excused_blobs.insert(id.to_owned());
            } else {
                let time = |key: &str| text(key).unwrap().parse::<Timestamp>().unwrap();
                let content_type = text("content_type").unwrap().parse().unwrap();
                inner.excused_spans.push((content_type, time("gap_from"), time("gap_to")));
            }
        } else if let Some(raw) = record.get("raw") {
            let raw = raw.to_string();
            let label = label(raw.as_bytes());
            // Of a body that was made by hand the tenant's truth has no events.
            if let Some(key) = Event::parse(raw.as_bytes()).ok().and_then(|event| canonical_key(&event)) {
                inner.canonical.entry(label.clone()).or_insert(key);
            }
            inner.confirmed.insert(label);
        }
    }

    /// The positions as last committed.
    pub fn positions(&self) -> BTreeMap<ContentType, Position> {
        self.inner.lock().unwrap().positions.clone()
    }

    /// How many events are on hold on disk.
    pub fn held(&self) -> usize {
        self.inner.lock().unwrap().held.values().map(Vec::len).sum()
    }

    /// Held bodies: what is on disk is as safe as what is delivered, and goes only when it is delivered or may be dropped.
    fn on_held(&self, op: &Op) {
        let now: Vec<Label> = match op {
            Op::Put { key, value, .. } => match HeldPage::decode(key, value) {
                Ok(page) => page.records.iter().map(|record| label(&record.raw)).collect(),
                Err(error) => return self.complain(format!("a held page cannot be read back: {error}")),
            },
            Op::Delete { .. } => Vec::new(),
        };
        let mut wrong = Vec::new();
        {
            let mut inner = self.inner.lock().unwrap();
            let before = inner.held.remove(op.key()).unwrap_or_default();
            for label in before {
                if !now.contains(&label) && !inner.confirmed.contains(&label) && !inner.droppable.contains(&label) {
                    wrong.push(format!("CK-3: the held body of {label} is gone and the event was not confirmed"));
                }
            }
            if !now.is_empty() {
                inner.held.insert(op.key().to_owned(), now);
            }
        }
        wrong.into_iter().for_each(|what| self.complain(what));
    }

    /// Looks at the receipts among these steps.
    fn on_page_of_receipts(&self, ops: &[Op]) {
        for op in ops {
            if let Op::Put { key, value, .. } = op
                && key.starts_with(&format!("{}open/", Keys::of(&self.tenant).receipts()))
            {
                self.on_receipts(key, value);
            }
        }
    }

    /// Receipts: none says more than is true, at any commit.
    fn on_receipts(&self, key: &str, page: &[u8]) {
        let receipts = match OpenReceipts::decode(key, page) {
            Ok((_, receipts)) => receipts,
            Err(error) => return self.complain(format!("receipts cannot be read back: {error}")),
        };
        let mut wrong = Vec::new();
        {
            let mut inner = self.inner.lock().unwrap();
            let labels: HashMap<CanonicalKey, Vec<&Label>> =
                inner.canonical.iter().fold(HashMap::new(), |mut all: HashMap<_, Vec<_>>, (label, key)| {
                    all.entry(*key).or_default().push(label);
                    all
                });
            for receipt in receipts.receipts() {
                let key = receipt.key.unwrap();
                let Some(labels) = labels.get(&key) else {
                    wrong.push(format!("a receipt says {:?} of {key}, which nobody published", receipt.class));
                    continue;
                };
                let is_true = |label: &&Label| match &receipt.class {
                    // A record that was set aside has been confirmed too: as one that is not taken.
                    Class::Delivered | Class::SetAside => inner.confirmed.contains(*label),
                    Class::Held => inner.is_safe(label),
                    Class::Dropped(_) => inner.droppable.contains(*label),
                };
                if !labels.iter().any(is_true) {
                    wrong.push(format!("a receipt says {:?} of {labels:?}, and that is not so", receipt.class));
                }
            }
            for receipt in receipts.receipts() {
                let said = inner.said.entry(receipt.key.unwrap()).or_insert(receipt.class.clone());
                *said = said.clone().max(receipt.class);
            }
        }
        wrong.into_iter().for_each(|what| self.complain(what));
    }

    /// Receipts: none is missing of what is known to be delivered, set aside or on hold.
    async fn on_said(&self, store: &dyn StateStore) {
        let set = KeySet::load(store, &Keys::of(&self.tenant).events(), KeyKind::Events).await.unwrap();
        let index = EventIndex::new(set);
        let unsaid: Vec<(Label, Key)> = {
            let inner = self.inner.lock().unwrap();
            let has_key = |label: &Label| inner.canonical.get(label).is_some_and(|key| !inner.said.contains_key(key));
            inner.keys.iter().filter(|(label, _)| has_key(label)).map(|(l, k)| (l.clone(), *k)).collect()
        };
        for (label, key) in unsaid {
            if index.contains(key, store).await.unwrap() {
                self.complain(format!("the key of event {label} is stored and no receipt says what became of it"));
            }
        }
    }

    /// What was found to be wrong so far.
    pub fn violations(&self) -> Vec<String> {
        self.inner.lock().unwrap().violations.clone()
    }

    fn complain(&self, what: String) {
        let mut inner = self.inner.lock().unwrap();
        if inner.violations.len() < 20 {
            inner.violations.push(format!("{} (at {})", what, self.sim.now()));
        }
    }

    /// Takes note of the time, before it may jump.
    pub fn tick(&self) {
        let (now, at) = (self.sim.now(), self.clock.monotonic());
        let mut inner = self.inner.lock().unwrap();
        // While its clock stands back, Microsoft's time goes on from where it was.
        let known = inner.server_now_max.map(|(max, then)| max + (at - then));
        inner.server_now_max = Some((known.map_or(now, |known| known.max(now)), at));
    }

    /// CK-1: where the position may stand.
    fn on_position(&self, content_type: ContentType, position: Position) {
        self.tick();
        let mut wrong = Vec::new();
        {
            let mut guard = self.inner.lock().unwrap();
            let inner = &mut *guard;
            let server_now_max = inner.server_now_max.map_or(Timestamp::MIN, |(max, _)| max);
            if let Some(before) = inner.positions.get(&content_type) {
                if position.origin != before.origin && before.complete_until.is_some() {
                    wrong.push(format!("{content_type}: origin moved from {} to {}", before.origin, position.origin));
                }
                for (name, before, after) in [
                    ("complete_until", before.complete_until, position.complete_until),
                    ("listed_until", before.listed_until, position.listed_until),
                ] {
                    if after < before {
                        wrong.push(format!("CK-1: {name} of {content_type} moved back from {before:?} to {after:?}"));
                    }
                }
            }
            if let Some(complete) = position.complete_until {
                if complete > server_now_max - SignedDuration::from_mins(5) {
                    wrong.push(format!("CK-1: complete_until of {content_type} is {complete}, too near now"));
                }
                for (id, blob) in &inner.blobs {
                    let at_once = blob.listable_from.is_some_and(|from| from <= blob.created);
                    let passed = blob.content_type == content_type
                        && blob.created < complete
                        && blob.created >= position.origin
                        && at_once;
                    if !passed || inner.excused_blobs.contains(id) {
                        continue;
                    }
                    let excused = inner
                        .excused_spans
                        .iter()
                        .any(|(t, from, to)| *t == content_type && *from <= blob.created && blob.created < *to);
                    if let Some(missing) = blob.labels.iter().find(|label| !inner.is_safe(label))
                        && !excused
                    {
                        wrong.push(format!(
                            "CK-1: complete_until of {content_type} is {complete}, past blob {id} whose event {missing} was not confirmed"
                        ));
                    }
                }
            }
            inner.positions.insert(content_type, position);
        }
        wrong.into_iter().for_each(|what| self.complain(what));
    }

    /// CK-3: no blob is marked before its events are confirmed.
    async fn on_blob_marks(&self, content_type: ContentType, store: &dyn StateStore) {
        let set = KeySet::load(store, &Keys::of(&self.tenant).blobs(content_type), KeyKind::Blobs).await.unwrap();
        let index = EventIndex::new(set);
        let unmarked: Vec<(String, Timestamp)> = {
            let inner = self.inner.lock().unwrap();
            let of_type = inner.blobs.iter().filter(|(_, blob)| blob.content_type == content_type);
            of_type.filter(|(id, _)| !inner.marked.contains(*id)).map(|(id, blob)| (id.clone(), blob.created)).collect()
        };
        for (id, created) in unmarked {
            if !index.contains(Key::of_blob(&id, created), store).await.unwrap() {
                continue;
            }
            let missing = {
                let mut inner = self.inner.lock().unwrap();
                inner.marked.insert(id.clone());
                let labels = inner.blobs.get(&id).map(|blob| blob.labels.clone()).unwrap_or_default();
                let excused = inner.excused_blobs.contains(&id);
                labels.into_iter().find(|label| !inner.is_safe(label)).filter(|_| !excused)
            };
            if let Some(missing) = missing {
                self.complain(format!("CK-3: blob {id} is marked and its event {missing} was not confirmed"));
            }
        }
    }

    /// CK-3: no event's key is stored before the event is confirmed.
    async fn on_event_keys(&self, store: &dyn StateStore) {
        let set = KeySet::load(store, &Keys::of(&self.tenant).events(), KeyKind::Events).await.unwrap();
        let index = EventIndex::new(set);
        let unconfirmed: Vec<(Label, Key)> = {
            let inner = self.inner.lock().unwrap();
            inner.keys.iter().filter(|(l, _)| !inner.is_safe(l)).map(|(l, k)| (l.clone(), *k)).collect()
        };
        for (label, key) in unconfirmed {
            if index.contains(key, store).await.unwrap() {
                self.complain(format!("CK-3: the key of event {label} is stored and the event was not confirmed"));
            }
        }
    }
}

impl Inner {
    /// Confirmed, on hold on disk, or not to be delivered at all.
    fn is_safe(&self, label: &Label) -> bool {
        self.confirmed.contains(label)
            || self.droppable.contains(label)
            || self.held.values().any(|held| held.contains(label))
    }
}

/// `contentCreated`, as the simulator's content ids begin.
fn created_of(id: &str) -> Timestamp {
    let digits = &id[..17];
    format!(
        "{}-{}-{}T{}:{}:{}.{}Z",
        &digits[..4],
        &digits[4..6],
        &digits[6..8],
        &digits[8..10],
        &digits[10..12],
        &digits[12..14],
        &digits[14..17]
    )
    .parse()
    .unwrap()
}

/// One process's way to the store. When the process is gone, nothing it still had to write gets there.
pub struct WatchedStore {
    store: Arc<MemoryStore>,
    watch: Arc<Watch>,
    /// The process was killed: its writes never return.
    dead: AtomicBool,
    /// While above zero, that many commits fail as a full disk does.
    pub full: AtomicU64,
    /// Values whose key holds this cannot be read.
    pub unreadable: Mutex<Option<&'static str>>,
    /// The process dies in a commit that concerns held reads or flags: after how many more of them, and how many of its
    /// steps the store still takes, as one does that is not all or nothing.
    pub dies: Mutex<Option<(u64, usize)>>,
    /// Commits do not return, as on a file system that hangs.
    pub hangs: tokio::sync::watch::Sender<bool>,
    commits: Arc<AtomicU64>,
}

impl WatchedStore {
    pub fn new(store: Arc<MemoryStore>, watch: Arc<Watch>, commits: Arc<AtomicU64>) -> Self {
        Self {
            store,
            watch,
            dead: AtomicBool::new(false),
            full: AtomicU64::new(0),
            dies: Mutex::new(None),
            unreadable: Mutex::new(None),
            hangs: tokio::sync::watch::Sender::new(false),
            commits,
        }
    }

    /// Whether the process has died in a commit.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// Dies in this commit, if it is the one.
    async fn die_in(&self, ops: &[Op]) {
        if !ops.iter().any(|op| op.key().contains("/dlp/")) {
            return;
        }
        let steps = {
            let mut dies = self.dies.lock().unwrap();
            match &mut *dies {
                Some((0, steps)) => *steps,
                Some((left, _)) => {
                    *left -= 1;
                    return;
                }
                None => return,
            }
        };
        self.kill();
        let taken = ops[..steps.min(ops.len())].to_vec();
        if self.store.commit(taken.clone()).await.is_ok() {
            for op in taken.iter().filter(|op| op.key().starts_with(&Keys::of(&self.watch.tenant).held())) {
                self.watch.on_held(op);
            }
            self.watch.on_page_of_receipts(&taken);
        }
        std::future::pending::<()>().await;
    }

    /// From now on nothing is written, and nobody is told so.
    pub fn kill(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }

    async fn inspect(&self, ops: Vec<Op>) {
        let commits = self.commits.load(Ordering::SeqCst);
        let closely =
            self.watch.inner.lock().unwrap().keys.len() <= EVENTS_WATCHED_CLOSELY || commits.is_multiple_of(32);
        let keys = Keys::of(&self.watch.tenant);
        let mut event_keys = false;
        let mut blob_marks = HashSet::new();
        for op in &ops {
            if op.key().starts_with(&keys.held()) {
                self.watch.on_held(op);
            }
        }
        self.watch.on_page_of_receipts(&ops);
        for op in ops {
            event_keys |= op.key().starts_with(&keys.events());
            for content_type in ContentType::ALL {
                if op.key().starts_with(&keys.blobs(content_type)) {
                    blob_marks.insert(content_type);
                }
                if let Op::Put { key, value, .. } = &op
                    && *key == keys.position(content_type)
                {
                    match decode::<Position>(key, value) {
                        Ok(position) => self.watch.on_position(content_type, position),
                        Err(error) => self.watch.complain(format!("a position cannot be read back: {error}")),
                    }
                }
            }
        }
        if closely {
            if event_keys {
                self.watch.on_event_keys(&*self.store).await;
                self.watch.on_said(&*self.store).await;
            }
            for content_type in blob_marks {
                self.watch.on_blob_marks(content_type, &*self.store).await;
            }
        }
    }
}

#[async_trait]
impl StateStore for WatchedStore {
    async fn load(&self, key: &str) -> Result<Option<(Bytes, Revision)>, StateError> {
        if self.unreadable.lock().unwrap().is_some_and(|part| key.contains(part)) {
            return Err(StateError::Unavailable("it cannot be read now".into()));
        }
        self.store.load(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Revision)>, StateError> {
        self.store.list(prefix).await
    }

    fn read_ahead_bytes(&self) -> usize {
        // All of a small tenant, or what ends in the middle of it.
        if self.commits.load(Ordering::SeqCst).is_multiple_of(2) { 1 << 20 } else { 2 << 10 }
    }

    async fn commit(&self, ops: Vec<Op>) -> Result<Revision, StateError> {
        if self.dead.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let _ = self.hangs.subscribe().wait_for(|hangs| !hangs).await;
        self.commits.fetch_add(1, Ordering::SeqCst);
        self.die_in(&ops).await;
        if self.full.load(Ordering::SeqCst) > 0 {
            self.full.fetch_sub(1, Ordering::SeqCst);
            return Err(StateError::Unavailable("no space left on device".into()));
        }
        let revision = self.store.commit(ops.clone()).await?;
        self.inspect(ops).await;
        Ok(revision)
    }
}
