//! Random blobs of reads and matches, settled in any order, while turns run, stop in the middle of a delivery, and die
//! there or in a commit. The allowed outcomes of a read follow from the blobs alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use jiff::SignedDuration;
use parking_lot::Mutex;
use proptest::prelude::*;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::turn;
use crate::api::{ApiClient, ApiSettings};
use crate::auth::Credential;
use crate::checkpoint::format::Keys;
use crate::checkpoint::held::{HeldPage, HeldRecord};
use crate::checkpoint::ledger::{Change, Ledger, LedgerSettings, OnDurable, ServerTimeSource};
use crate::clock::{Clock, TestClock};
use crate::host::{Batch, Delivery, DeliveryTicket, Health, Host, StateError, StateStore, TicketAnswer};
use crate::hosts::embedded::memory::MemoryStore;
use crate::model::{BlobRef, ContentType, TenantId, Timestamp};
use crate::normalise::dlp_link::{DlpMatch, Flag, Link, links_of_read};
use crate::normalise::{Event, Normaliser, NormaliserSettings};
use crate::severity::Severity;
use crate::source::budget::{Budget, Pool};
use crate::source::context::FetchContext;
use crate::source::deliver::Deliverer;
use crate::source::health::HealthReporter;
use crate::source::hold::{Hold, HoldDecision, HoldSettings, Horizon, PAGE_COST_BYTES, StagedHold};

const HOLD_HOURS: u8 = 6;
/// Ids of items that only fill pages of flags begin here.
const FILLERS: u32 = 1000;
const DEAD: &str = "the process died";

fn tenant() -> TenantId {
    "00000000-0000-4000-8000-000000000000".parse().unwrap()
}

fn hour(hours: u8) -> Timestamp {
    Timestamp::from_second(1_777_600_000 + i64::from(hours) * 3600).unwrap()
}

// ---- what happens ----

/// Item, and by what it is named: 1 by its id, 2 by its address, 3 by both.
type Named = (u32, u8);

#[derive(Debug, Clone)]
struct Read {
    named: Option<Named>,
    /// An item whose link begins with the same 32 bits.
    alike: Option<u32>,
}

#[derive(Debug, Clone)]
struct Blob {
    created: u8,
    reads: Vec<Read>,
    matches: Vec<Named>,
}

#[derive(Debug, Clone, Copy)]
enum Death {
    /// In the commit of this number from now; whether it was made.
    InCommit(usize, bool),
    /// While the host has a batch and has not answered; whether it has stored the batch.
    InDelivery(bool),
}

#[derive(Debug, Clone)]
enum Step {
    Fetch(Blob),
    /// Stages one of the blobs that were fetched and not staged; likewise below.
    Stage(usize),
    Commit(usize, Option<bool>),
    Horizon(u8),
    Turn(Option<Death>),
    /// A turn until its first delivery, or so far; it goes on beside what follows, and ends with the next `Turn`.
    HalfATurn(Option<u8>),
    /// Matches of so many other items, each of a blob of its own.
    Fillers(u8),
    Death,
}

fn named() -> impl Strategy<Value = Named> {
    (0..6u32, 1..=3u8)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let read = || {
        let alike = prop::option::weighted(0.2, 0..6u32);
        (prop::option::weighted(0.9, named()), alike).prop_map(|(named, alike)| Read { named, alike })
    };
    let reads = (0..40u8, prop::collection::vec(read(), 1..4)).prop_map(|(created, reads)| Blob {
        created,
        reads,
        matches: vec![],
    });
    let matches = (0..40u8, prop::collection::vec(read(), 0..2), prop::collection::vec(named(), 1..3))
        .prop_map(|(created, reads, matches)| Blob { created, reads, matches });
    let death = prop_oneof![
        (0..3usize, any::<bool>()).prop_map(|(n, made)| Death::InCommit(n, made)),
        any::<bool>().prop_map(Death::InDelivery),
    ];
    let step = prop_oneof![
        6 => reads.prop_map(Step::Fetch),
        3 => matches.prop_map(Step::Fetch),
        9 => (0..8usize).prop_map(Step::Stage),
        9 => (0..8usize, prop::option::weighted(0.1, any::<bool>())).prop_map(|(n, death)| Step::Commit(n, death)),
        4 => (0..60u8).prop_map(Step::Horizon),
        6 => prop::option::weighted(0.2, death).prop_map(Step::Turn),
        3 => prop::option::of(0..6u8).prop_map(Step::HalfATurn),
        1 => (1..80u8).prop_map(Step::Fillers),
        1 => Just(Step::Death),
    ];
    prop::collection::vec(step, 1..60)
}

// ---- the world around the hold ----

fn death() -> StateError {
    // A conflict would have the writer look whether the commit is its own.
    StateError::Corrupt { key: DEAD.into(), why: "the process has died".into() }
}

/// Records each batch; answers at once, or when the test lets it.
struct Agent {
    store: Arc<MemoryStore>,
    given: Mutex<Vec<String>>,
    waits: AtomicBool,
    keeps: AtomicBool,
    waiting: Mutex<Vec<TicketAnswer>>,
}

#[async_trait]
impl Host for Agent {
    async fn deliver(&self, batch: Batch) -> DeliveryTicket {
        let lines = batch.records().map(|record| String::from_utf8(record.json.to_vec()).unwrap());
        if self.keeps.load(Ordering::Relaxed) {
            self.given.lock().extend(lines);
        }
        if !self.waits.load(Ordering::Relaxed) {
            return DeliveryTicket::resolved(Delivery::Delivered);
        }
        let (answer, ticket) = DeliveryTicket::new();
        self.waiting.lock().push(answer);
        ticket
    }

    fn state(&self) -> Arc<dyn StateStore> {
        self.store.clone()
    }

    fn health(&self, _source: &str, _health: Health) {}
}

/// Never called.
static API: LazyLock<ApiClient> = LazyLock::new(|| {
    let nowhere: url::Url = "http://127.0.0.1:9/".parse().unwrap();
    let settings = ApiSettings::at(&nowhere, tenant(), Credential::SecretFile("/dev/null".into()));
    ApiClient::new(settings, Arc::new(TestClock::at(hour(0)))).unwrap()
});

fn raw(id: usize, named: Option<Named>) -> String {
    let mut raw = format!(
        "{{\"Id\":\"r{id}\",\"RecordType\":6,\"CreationTime\":\"2026-05-01T00:00:00\",\"Operation\":\"FileAccessed\",\"Workload\":\"SharePoint\""
    );
    if let Some((item, by)) = named {
        if by & 1 != 0 {
            raw.push_str(&format!(",\"ListItemUniqueId\":\"{:08x}-1111-4111-8111-111111111111\"", item + 1));
        }
        if by & 2 != 0 {
            raw.push_str(&format!(",\"ObjectId\":\"https://contoso.example/{item}\""));
        }
    }
    raw.push('}');
    raw
}

fn links(named: Option<Named>) -> Vec<Link> {
    links_of_read(&Event::parse(raw(0, named).as_bytes()).unwrap())
}

// ---- the model ----

/// A blob on its way, with what was made of its reads.
struct Under {
    blob: Blob,
    first_id: usize,
    held: Vec<HeldRecord>,
    held_ids: Vec<usize>,
    dropped: Vec<usize>,
    flagged: Vec<usize>,
    staged: Option<StagedHold>,
}

struct World {
    store: Arc<MemoryStore>,
    agent: Arc<Agent>,
    settings: HoldSettings,
    from: u8,
    until: u8,
    context: FetchContext,
    writer: JoinHandle<Result<(), StateError>>,
    turn: Option<JoinHandle<Result<(), StateError>>>,
    under: Vec<Under>,
    /// Every read, by id: when it was made available and what it names.
    reads: Vec<(u8, Option<Named>)>,
    /// Matches that are durable, with the hour of each.
    matches: Vec<(u8, Named)>,
    /// Reads whose hold is durable.
    held: BTreeSet<usize>,
    /// Reads that were dropped, for any reason.
    dropped: BTreeSet<usize>,
    /// Reads delivered to the host, and whether as flagged.
    given: BTreeMap<usize, bool>,
    /// Those of them delivered shortly before a death, which may be delivered again.
    again: BTreeSet<usize>,
    /// Those delivered before the last turn, and the matches known then.
    before: BTreeSet<usize>,
    known_before: usize,
    seen: usize,
    fillers: u32,
}

impl World {
    async fn new(from: u8, bytes_max: u64) -> Self {
        let store = Arc::new(MemoryStore::new());
        let agent = Arc::new(Agent {
            store: store.clone(),
            given: Mutex::default(),
            waits: AtomicBool::new(false),
            keeps: AtomicBool::new(true),
            waiting: Mutex::default(),
        });
        let settings = HoldSettings {
            tenant: tenant(),
            dropping: true,
            hold: SignedDuration::from_hours(HOLD_HOURS.into()),
            bytes_max,
            flags_max: 1_000_000,
            flag_age: SignedDuration::from_hours(24 * 30),
        };
        let (context, writer) = open(&agent, &settings).await;
        let mut world = Self {
            store,
            agent,
            settings,
            from,
            until: from,
            context,
            writer,
            turn: None,
            under: vec![],
            reads: vec![],
            matches: vec![],
            held: BTreeSet::new(),
            dropped: BTreeSet::new(),
            given: BTreeMap::new(),
            again: BTreeSet::new(),
            before: BTreeSet::new(),
            known_before: 0,
            seen: 0,
            fillers: 0,
        };
        world.move_horizon(0);
        world
    }

    fn hold(&self) -> &Hold {
        &self.context.hold
    }

    /// Whether a match of the read is among `matches` and came before the read may be dropped.
    fn is_flagged(&self, id: usize, matches: &[(u8, Named)]) -> bool {
        let (created, named) = self.reads[id];
        matches.iter().any(|(at, (item, by))| {
            *at < created + HOLD_HOURS && named.is_some_and(|(read, read_by)| read == *item && read_by & by != 0)
        })
    }

    /// Moves how far matches are complete: at most to the first that is not durable.
    fn move_horizon(&mut self, until: u8) {
        let open = self.under.iter().filter(|under| !under.blob.matches.is_empty()).map(|under| under.blob.created);
        self.until = open.min().unwrap_or(u8::MAX).min(until).max(self.until);
        self.hold().set_horizon(Horizon::Known { from: hour(self.from), until: hour(self.until) });
    }

    fn fetch(&mut self, mut blob: Blob) {
        if !blob.matches.is_empty() {
            blob.created = blob.created.max(self.until);
        }
        let first_id = self.reads.len();
        self.reads.extend(blob.reads.iter().map(|read| (blob.created, read.named)));
        self.judge(blob, first_id);
    }

    /// Judges the reads as a fetch does.
    fn judge(&mut self, blob: Blob, first_id: usize) {
        let (held, held_ids, dropped, flagged) = (vec![], vec![], vec![], vec![]);
        let mut under = Under { blob, first_id, held, held_ids, dropped, flagged, staged: None };
        for (n, read) in under.blob.reads.iter().enumerate() {
            let id = first_id + n;
            let links = links(read.named);
            match self.hold().judge(&links, hour(under.blob.created)) {
                HoldDecision::Flagged => under.flagged.push(id),
                HoldDecision::Drop => under.dropped.push(id),
                HoldDecision::Hold => {
                    let mut prefixes: Vec<u32> = links.iter().map(|link| link.prefix()).collect();
                    let alike = read.alike.map(|item| self::links(Some((item, 3)))).unwrap_or_default();
                    prefixes.extend(alike.iter().map(|link| link.prefix()));
                    let raw = raw(id, read.named).into_bytes().into();
                    under.held.push(HeldRecord { rule: "EX-45".into(), raw, links: prefixes, key: None });
                    under.held_ids.push(id);
                }
            }
        }
        self.under.push(under);
    }

    async fn stage(&mut self, which: usize) {
        let waiting: Vec<usize> = (0..self.under.len()).filter(|n| self.under[*n].staged.is_none()).collect();
        let Some(&at) = waiting.get(which % waiting.len().max(1)) else { return };
        let hold = self.hold().clone();
        let under = &mut self.under[at];
        let blob = BlobRef {
            content_type: if under.first_id.is_multiple_of(2) { ContentType::SharePoint } else { ContentType::General },
            id: format!("b{}", under.first_id).into(),
            uri: "x".into(),
            created: hour(under.blob.created),
            expires: hour(200),
        };
        let flag = |n: usize| Flag {
            policies: vec!["p".into()],
            incidents: vec![format!("{}-{n}", under.first_id)],
            severity: Severity::High,
        };
        let of = |(n, named): (usize, &Named)| DlpMatch { links: links(Some(*named)), flag: flag(n) };
        let mut matches = under.blob.matches.iter().enumerate().map(of).collect();
        under.staged = Some(hold.stage(&blob, &mut under.held, &mut matches).await.unwrap());
    }

    /// Commits what was staged of a blob; with a death, in that commit, which was made or not.
    async fn commit(&mut self, which: usize, death: Option<bool>) {
        let ready: Vec<usize> = (0..self.under.len()).filter(|n| self.under[*n].staged.is_some()).collect();
        let Some(&at) = ready.get(which % ready.len().max(1)) else { return };
        if self.turn.is_some() && death.is_some() {
            self.finish_turn().await;
        }
        let mut under = self.under.remove(at);
        for id in std::mem::take(&mut under.flagged) {
            // Reads that a fetch delivers itself.
            assert!(self.is_named_by(id, &self.matches), "r{id} is not flagged");
            self.note(id, true);
            if death.is_some() {
                self.again.insert(id);
            }
        }
        let staged = under.staged.take().unwrap_or_default();
        let (held, hold) = (staged.ops.clone(), self.hold().clone());
        let on_durable = OnDurable::new(move || hold.committed(staged));
        if let Some(made) = death {
            self.store.die(0, made, self::death());
        }
        let done = self.context.ledger.commit(Change { held, on_durable, ..Change::default() }).await;
        assert_eq!(done.is_err(), death.is_some(), "{done:?}");
        if death.is_none_or(|made| made) {
            self.matches.extend(under.blob.matches.iter().map(|named| (under.blob.created, *named)));
            self.held.extend(&under.held_ids);
            self.drop_reads(&under.dropped);
        } else {
            self.under.push(under);
        }
        if death.is_some() {
            self.die().await;
        }
    }

    /// Whether one of the matches names the item of the read, whenever it came.
    fn is_named_by(&self, id: usize, matches: &[(u8, Named)]) -> bool {
        let (_, named) = self.reads[id];
        let joins = |by: u8, item: u32| named.is_some_and(|(read, read_by)| read == item && read_by & by != 0);
        matches.iter().any(|(_, (item, by))| joins(*by, *item))
    }

    fn note(&mut self, id: usize, flagged: bool) {
        let before = self.given.insert(id, flagged);
        assert!(before.is_none() || self.again.contains(&id), "r{id} was delivered twice and nothing died");
        assert!(!self.dropped.contains(&id), "r{id} was delivered though dropped");
    }

    fn drop_reads(&mut self, ids: &[usize]) {
        for id in ids {
            let (created, named) = self.reads[*id];
            let of_none = named.is_none();
            assert!(of_none || created >= self.from, "r{id} was dropped though older than all that is listed");
            assert!(of_none || created + HOLD_HOURS <= self.until, "r{id} was dropped before all matches were known");
            assert!(!self.is_flagged(*id, &self.matches), "r{id} was dropped though flagged");
            self.dropped.insert(*id);
        }
    }

    /// Records the deliveries to the host since the last call.
    fn look_at_host(&mut self) {
        let given: Vec<String> = self.agent.given.lock()[self.seen..].to_vec();
        self.seen += given.len();
        for line in given {
            let record: serde_json::Value = serde_json::from_str(&line).unwrap();
            let id = record["event_id"].as_str().unwrap()[1..].parse().unwrap();
            let flagged = record["dlp"]["flagged"] == true;
            assert!(flagged || record["dlp"]["undetermined"] == true, "{line}");
            assert!(self.held.contains(&id), "r{id} was delivered and not on hold");
            assert!(!flagged || self.is_named_by(id, &self.matches), "r{id} is not flagged: {line}");
            assert!(flagged || !self.is_named_by(id, &self.matches[..self.known_before]), "r{id} is flagged: {line}");
            let may_be_undetermined = self.settings.bytes_max < 1 << 20 || self.reads[id].0 < self.from;
            assert!(flagged || may_be_undetermined, "r{id} was shipped as undetermined: {line}");
            self.note(id, flagged);
        }
    }

    /// Ids of the reads whose bodies are in the store, and how many bodies there are.
    async fn stored(&self) -> (BTreeSet<usize>, usize) {
        let keys = Keys::of(&tenant());
        let (mut ids, mut count) = (BTreeSet::new(), 0);
        for (key, _) in self.store.list(&keys.held()).await.unwrap() {
            let (bytes, _) = self.store.load(&key).await.unwrap().unwrap();
            for record in HeldPage::decode(&key, &bytes).unwrap().records {
                let text: serde_json::Value = serde_json::from_slice(&record.raw).unwrap();
                ids.insert(text["Id"].as_str().unwrap()[1..].parse().unwrap());
                count += 1;
            }
        }
        (ids, count)
    }

    /// Every read that was put on hold is on disk, or the host has it, or it may be dropped.
    async fn check(&mut self, turned: bool) {
        self.look_at_host();
        let (stored, bodies) = self.stored().await;
        assert_eq!(bodies, stored.len(), "a read is on hold twice");
        let gone: Vec<usize> =
            self.held.iter().copied().filter(|id| !stored.contains(id) && !self.given.contains_key(id)).collect();
        let newly: Vec<usize> = gone.iter().copied().filter(|id| !self.dropped.contains(id)).collect();
        self.drop_reads(&newly);
        for id in &stored {
            assert!(self.held.contains(id) && !self.dropped.contains(id), "r{id} is on disk and dropped");
            if self.turn.is_none() {
                assert!(!self.given.contains_key(id) || self.again.contains(id), "r{id} is on disk and delivered");
            }
            assert!(!turned || !self.is_named_by(*id, &self.matches), "r{id} is flagged and a turn left it on hold");
        }
        if self.turn.is_none() {
            assert_eq!(self.hold().held().0, stored.len() as u64, "memory and disk disagree");
        }
    }

    /// Goes on until the turn has ended, or the host has a batch and does not answer.
    async fn go_on(&mut self) -> Option<Result<(), StateError>> {
        loop {
            let turn = self.turn.as_mut()?;
            if turn.is_finished() {
                let done = turn.await.unwrap();
                self.turn = None;
                return Some(done);
            }
            if !self.agent.waiting.lock().is_empty() {
                return None;
            }
            tokio::task::yield_now().await;
        }
    }

    fn start_turn(&mut self) {
        let context = self.context.clone();
        self.before = self.given.keys().copied().collect();
        self.known_before = self.matches.len();
        self.turn = Some(tokio::spawn(async move { turn(&context, Some(hour(60))).await }));
    }

    async fn finish_turn(&mut self) {
        self.agent.waits.store(false, Ordering::Relaxed);
        for answer in std::mem::take(&mut *self.agent.waiting.lock()) {
            answer.answer(Delivery::Delivered);
        }
        if let Some(done) = self.go_on().await {
            done.unwrap();
        }
        self.look_at_host();
    }

    async fn turn(&mut self, death: Option<Death>) {
        self.finish_turn().await;
        match death {
            None => {}
            Some(Death::InCommit(n, made)) => self.store.die(n, made, self::death()),
            Some(Death::InDelivery(keeps)) => {
                self.agent.waits.store(true, Ordering::Relaxed);
                self.agent.keeps.store(keeps, Ordering::Relaxed);
            }
        }
        self.start_turn();
        let done = self.go_on().await;
        self.look_at_host();
        match done {
            Some(Ok(())) => self.check(true).await,
            Some(Err(error)) => assert!(error.to_string().contains(DEAD), "{error}"),
            None => {}
        }
        if death.is_some() {
            self.note_again();
            self.die().await;
        }
    }

    fn note_again(&mut self) {
        self.again.extend(self.given.keys().filter(|id| !self.before.contains(id)));
    }

    /// The process ends here and starts again.
    async fn die(&mut self) {
        if let Some(turn) = self.turn.take() {
            turn.abort();
            let _ = turn.await;
            self.look_at_host();
            self.note_again();
        }
        self.agent.waits.store(false, Ordering::Relaxed);
        self.agent.keeps.store(true, Ordering::Relaxed);
        self.agent.waiting.lock().clear();
        self.writer.abort();
        self.store.revive();
        let (context, writer) = open(&self.agent, &self.settings).await;
        (self.context, self.writer) = (context, writer);
        self.move_horizon(0);
        for under in std::mem::take(&mut self.under) {
            self.judge(under.blob, under.first_id);
        }
        self.check(false).await;
    }

    async fn settle_all(&mut self) {
        while !self.under.is_empty() {
            self.stage(0).await;
            self.commit(0, None).await;
        }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Fetch(blob) => self.fetch(blob),
            Step::Stage(which) => self.stage(which).await,
            Step::Commit(which, death) => self.commit(which, death).await,
            Step::Horizon(until) => self.move_horizon(until),
            Step::Turn(death) => self.turn(death).await,
            Step::HalfATurn(so_far) => {
                self.finish_turn().await;
                self.agent.waits.store(true, Ordering::Relaxed);
                self.start_turn();
                match so_far {
                    Some(times) => {
                        for _ in 0..times {
                            tokio::task::yield_now().await;
                        }
                    }
                    None => {
                        if let Some(done) = self.go_on().await {
                            done.unwrap();
                        }
                    }
                }
            }
            Step::Fillers(count) => {
                for _ in 0..count {
                    self.fillers += 1;
                    let of = (FILLERS + self.fillers, 1);
                    self.fetch(Blob { created: 0, reads: vec![], matches: vec![of] });
                    let last = self.under.iter().filter(|under| under.staged.is_none()).count() - 1;
                    self.stage(last).await;
                    let last = self.under.iter().filter(|under| under.staged.is_some()).count() - 1;
                    self.commit(last, None).await;
                }
            }
            Step::Death => self.die().await,
        }
        self.check(false).await;
    }
}

async fn open(agent: &Arc<Agent>, settings: &HoldSettings) -> (FetchContext, JoinHandle<Result<(), StateError>>) {
    let clock: Arc<dyn Clock> = Arc::new(TestClock::at(hour(60)));
    let host: Arc<dyn Host> = agent.clone();
    let ledger = LedgerSettings {
        tenant: tenant(),
        content_types: vec![ContentType::SharePoint, ContentType::General],
        event_keys_max: 1000,
        fills_gaps: false,
        receipts: None,
        server_time: ServerTimeSource::default(),
    };
    let opened = Ledger::open(host.state(), clock.clone(), &ledger, Box::new(|_| {})).await.unwrap();
    let reporter = HealthReporter::new("s".into(), tenant(), host.clone(), clock.clone());
    let context = FetchContext {
        source: "s".into(),
        tenant: tenant(),
        api: API.clone(),
        normaliser: Arc::new(Normaliser::new(NormaliserSettings::default())),
        events: opened.events,
        healed: opened.healed,
        ledger: opened.handle,
        store: host.state(),
        host: host.clone(),
        deliverer: Deliverer::new(host.clone(), clock.clone(), reporter),
        budget: Budget::new(1 << 20, &Pool::default()),
        buffers: crate::host::Buffers::default(),
        hold: Hold::load(&*host.state(), host.state(), settings.clone()).await.unwrap(),
        clock,
        stop: CancellationToken::new(),
        keeps_receipts: false,
        backfill: None,
    };
    (context, tokio::spawn(opened.ledger.run()))
}

proptest! {
    #[test]
    fn a_flagged_read_is_never_dropped_and_no_other_before_all_matches_are_known(
        steps in steps(), from in 0..10u8, little_room in prop::bool::weighted(0.2), blind in any::<bool>()
    ) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let mut world = World::new(from, if little_room { 3 * PAGE_COST_BYTES } else { 64 << 20 }).await;
            for step in steps {
                world.step(step).await;
            }
            world.finish_turn().await;
            world.settle_all().await;
            if blind {
                // No content type brings matches any more, so every held read is delivered.
                world.settings.bytes_max = 0;
                let (waiting, _) = world.stored().await;
                world.hold().set_horizon(Horizon::Blind);
                world.turn(None).await;
                prop_assert!(waiting.iter().all(|id| world.given.contains_key(id)));
            } else {
                world.move_horizon(100);
                world.turn(None).await;
            }
            prop_assert_eq!(world.hold().held(), (0, 0));
            prop_assert!(!world.hold().has_work(Some(hour(60))));
            let all: BTreeSet<usize> = (0..world.reads.len()).collect();
            let ended = world.given.keys().chain(&world.dropped).copied().collect();
            prop_assert_eq!(&all, &ended, "reads are nowhere");
            for id in all {
                prop_assert!(!world.is_flagged(id, &world.matches) || world.given.contains_key(&id));
            }
            Ok::<(), TestCaseError>(())
        })?;
    }
}
