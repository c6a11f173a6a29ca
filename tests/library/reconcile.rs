//! The audit search against what was delivered: a simulated tenant that withholds events from the feed and from the search,
//! in every form in which the search is exported.
#![cfg(all(feature = "sim", feature = "embedded", feature = "exports"))]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::SignedDuration;
use m365_audit::checkpoint::format::{self, AsideRecord, Keys, Owner};
use m365_audit::checkpoint::held::{HeldPage, HeldRecord};
use m365_audit::clock::SystemClock;
use m365_audit::config::SourceConfig;
use m365_audit::exports::input::Input;
use m365_audit::host::{Batch, Delivery, DeliveryTicket, Expected, Health, Host, Op, StateError, StateStore};
use m365_audit::hosts::embedded::memory::MemoryStore;
use m365_audit::model::{ContentType, TenantId, Timestamp};
use m365_audit::normalise::{Event, canonical_key};
use m365_audit::receipts;
use m365_audit::receipts::head::StoredHead;
use m365_audit::receipts::statement::Hour;
use m365_audit::receipts::store::ReceiptKeys;
use m365_audit::reconcile::class::RowClass;
use m365_audit::reconcile::compare::{CompareRequest, compare};
use m365_audit::reconcile::evidence::{EvidenceReach, Known, ReceiptVisitor};
use m365_audit::reconcile::stored::StateReceipts;
use m365_audit::reconcile::verdict::Verdict;
use m365_audit::sim::{ExportFile, ExportForm, ExportSpec, GenerateSpec, Side, Sim, SimConfig, Truth};
use m365_audit::source::report::LeftKind;
use m365_audit::source::{M365Audit, Source};
use serde_json::Value;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// Keeps its state and what it was given.
#[derive(Default)]
struct Recorder {
    state: Arc<MemoryStore>,
    records: Mutex<Vec<Vec<u8>>>,
}

#[async_trait]
impl Host for Recorder {
    async fn deliver(&self, batch: Batch) -> DeliveryTicket {
        self.records.lock().unwrap().extend(batch.records().map(|record| record.json.to_vec()));
        DeliveryTicket::resolved(Delivery::Delivered)
    }

    fn state(&self) -> Arc<dyn StateStore> {
        self.state.clone()
    }

    fn health(&self, _: &str, _: Health) {}
}

/// A tenant that was read once.
struct World {
    sim: Sim,
    tenant: TenantId,
    config: SourceConfig,
    host: Arc<Recorder>,
}

impl World {
    /// `blobs` blobs of 50 events over the last two days, of which `withheld` never reach the feed; their ids.
    async fn read(blobs: usize, seed: u64, withheld: usize, more: &str) -> (World, BTreeSet<String>) {
        let clock = SystemClock::new();
        let service = SimConfig { seed, page_size: 200, ..SimConfig::default() };
        let sim = Sim::start(service.clone(), clock.clone()).await.unwrap();
        let tenant = service.tenants[0].clone();
        let now = sim.now();
        let spec = GenerateSpec {
            late_rate: 0.0,
            linked_rate: 0.05,
            ..GenerateSpec::new(blobs, 50, now - SignedDuration::from_hours(48), now - SignedDuration::from_mins(6))
        };
        sim.generate(&tenant, spec);
        let missing = sim.withhold(&tenant, Side::Feed, withheld, seed).into_iter().collect();
        let table = format!(
            "tenant_id = \"{tenant}\"\nclient_id = \"{}\"\nclient_secret = \"{}\"\napi_url = {url:?}\n\
             authority_url = {url:?}\nmax_requests_per_minute = 0\nbackfill_secs = 604800\n{more}",
            service.client_id,
            service.client_secret,
            url = sim.url()
        );
        let config = SourceConfig::parse_table("tenant", table.parse().unwrap(), &|_| None).unwrap();
        let host = Arc::new(Recorder::default());
        let source = Box::new(M365Audit::new("tenant", config.clone(), clock).once());
        let report = source.run(host.clone(), CancellationToken::new()).await.unwrap();
        let left = report.left.iter().filter(|left| left.kind != LeftKind::Held);
        assert_eq!(left.count(), 0, "{:?}", report.left);
        (World { sim, tenant, config, host }, missing)
    }

    fn export(&self, form: ExportForm) -> Vec<ExportFile> {
        self.sim.export(&self.tenant, &ExportSpec::new(form))
    }

    fn delivered(&self) -> Vec<u8> {
        self.host.records.lock().unwrap().iter().flat_map(|record| [record.as_slice(), b"\n"].concat()).collect()
    }

    async fn compare(&self, files: Vec<ExportFile>, evidence: Evidence) -> Outcome {
        let Evidence { delivered, receipts, store, dropping } = evidence;
        let (tenant, config, now) = (self.tenant.clone(), self.config.clone(), self.sim.now());
        let store = store.then(|| self.host.state());
        let runtime = Handle::current();
        let work = move || {
            let export = || Ok(files.iter().map(|file| input(&file.name, file.bytes.clone())).collect());
            let given = || Ok(delivered.iter().map(|records| input("delivered", records.clone())).collect());
            let request = CompareRequest {
                source: "tenant".into(),
                tenant,
                content_types: config.content_types.clone(),
                event_keys_max: config.event_keys_max,
                dropping,
                export: &export,
                delivered: if delivered.is_some() { Some(&given) } else { None },
                store,
                receipts,
                settle: SignedDuration::ZERO,
                asked: (None, None),
                now,
            };
            Outcome::of(compare(&request, &runtime).unwrap())
        };
        tokio::task::spawn_blocking(work).await.unwrap()
    }
}

fn input(name: &str, bytes: Vec<u8>) -> Input<'static> {
    Input::Stream(name.to_owned(), Box::new(io::Cursor::new(bytes)))
}

/// What is known beside the export.
#[derive(Default)]
struct Evidence {
    delivered: Option<Vec<u8>>,
    receipts: Option<Arc<dyn Known>>,
    store: bool,
    dropping: Option<m365_audit::normalise::Normaliser>,
}

impl Evidence {
    fn of_state() -> Self {
        Self { store: true, ..Self::default() }
    }
}

/// What came out.
struct Outcome {
    json: Value,
    text: String,
    classes: BTreeMap<&'static str, u64>,
    missing: BTreeSet<String>,
}

impl Outcome {
    fn of(mut verdict: Verdict) -> Outcome {
        let (mut json, mut text) = (Vec::new(), Vec::new());
        verdict.write_json(&mut json).unwrap();
        verdict.write_text(&mut text).unwrap();
        let json: Value = serde_json::from_slice(&json).unwrap();
        let classes = RowClass::ALL.iter().map(|class| (class.name(), verdict.classes.of(*class))).collect();
        let ids = |name: &str| json[name].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned());
        let missing = ids("missing").collect();
        let listed = json["missing"].as_array().unwrap().len() as u64;
        let outcome = Outcome { text: String::from_utf8(text).unwrap(), classes, missing, json: json.clone() };
        assert_eq!(
            outcome.classes.values().sum::<u64>(),
            verdict.rows,
            "the classes sum to the rows: {}",
            outcome.text
        );
        assert_eq!(outcome.of_class("missing"), listed, "{}", outcome.text);
        outcome
    }

    fn of_class(&self, class: &str) -> u64 {
        self.classes[class]
    }

    fn only_ours(&self) -> (u64, BTreeSet<String>) {
        let listed = self.json["only_ours_events"].as_array().unwrap().iter();
        (self.json["only_ours"].as_u64().unwrap(), listed.map(|one| one["id"].as_str().unwrap().to_owned()).collect())
    }
}

/// Receipts in one part, as a state would have them.
struct Receipts(Vec<(m365_audit::normalise::CanonicalKey, receipts::Class)>);

#[async_trait]
impl Known for Receipts {
    async fn visit(&self, take: &mut (dyn ReceiptVisitor + Send)) -> Result<Option<EvidenceReach>, StateError> {
        self.0.iter().for_each(|(key, class)| take.entry(*key, class));
        take.part_ended();
        Ok(Some(EvidenceReach::Whole))
    }
}

/// A receipt for each event that the feed had, with the class that `class` gives it.
fn receipts_of(truth: &Truth, class: impl Fn(&[u8]) -> receipts::Class) -> Arc<dyn Known> {
    let events = truth.events.iter().filter(|event| !event.withheld);
    let receipts = events.filter_map(|event| {
        let key = canonical_key(&Event::parse(&event.raw).ok()?)?;
        Some((key, class(&event.raw)))
    });
    Arc::new(Receipts(receipts.collect()))
}

/// `k` events withheld from us and `m` from the search, in every form and by every kind of evidence: exactly those are found.
async fn withheld_are_found(blobs: usize, seed: u64) {
    let (k, m) = (37, 23);
    let (world, missing) = World::read(blobs, seed, k, "drop_routine = false\n").await;
    assert_eq!(missing.len(), k);
    let only_ours: BTreeSet<String> =
        world.sim.withhold(&world.tenant, Side::Search, m, seed + 1).into_iter().collect();
    let delivered = world.delivered();
    let truth = world.sim.truth();
    for form in ExportForm::ALL {
        let export = world.export(form);
        let outcome = world.compare(export.clone(), Evidence::of_state()).await;
        let found = (&outcome.missing, outcome.of_class("unreadable"), outcome.of_class("in_gap"));
        assert_eq!(found, (&missing, 0, 0), "{form:?}, by keys:\n{}", outcome.text);

        let given = Evidence { delivered: Some(delivered.clone()), store: true, ..Evidence::default() };
        let outcome = world.compare(export.clone(), given).await;
        assert_eq!(outcome.missing, missing, "{form:?}, by records:\n{}", outcome.text);
        assert_eq!(outcome.only_ours(), (m as u64, only_ours.clone()), "{form:?}\n{}", outcome.text);

        let receipts = Some(receipts_of(&truth, |_| receipts::Class::Delivered));
        let outcome = world.compare(export, Evidence { receipts, store: true, ..Evidence::default() }).await;
        assert_eq!(outcome.missing, missing, "{form:?}, by receipts:\n{}", outcome.text);
        assert_eq!(outcome.only_ours().0, m as u64, "{form:?}\n{}", outcome.text);
    }
    world.sim.stop().await;
}

/// 10,000 events in each form.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_withheld_on_either_side_is_found_in_every_form() {
    withheld_are_found(200, 1).await;
}

/// The same over 10 seeds of 100,000 events.
/// `cargo test --release --test library reconcile:: -- --ignored ten_seeds`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes, in a release build"]
async fn ten_seeds_of_100_000_events() {
    for seed in 1..=10 {
        withheld_are_found(2000, seed).await;
    }
}

/// Reads on hold, events set aside, dropped by a rule and of a content type that is not read have their classes, and what is
/// withheld is missing all the same.
#[tokio::test(flavor = "multi_thread")]
async fn each_event_has_the_class_of_what_became_of_it() {
    let more = "content_types = [\"Audit.Exchange\", \"Audit.SharePoint\", \"Audit.General\"]\n";
    let (world, missing) = World::read(10, 7, 0, more).await;
    assert!(missing.is_empty());
    let truth = world.sim.truth();
    let operation = |raw: &[u8]| serde_json::from_slice::<Value>(raw).unwrap()["Operation"].to_string();
    let is_routine =
        |raw: &[u8]| operation(raw).contains("FileAccessed") || operation(raw).contains("MailItemsAccessed");
    let class = |raw: &[u8]| match operation(raw).as_str() {
        "\"MailItemsAccessed\"" => receipts::Class::Dropped("EX-45".into()),
        "\"FileAccessed\"" => receipts::Class::Held,
        "\"New-InboxRule\"" => receipts::Class::SetAside,
        _ => receipts::Class::Delivered,
    };
    let is_read = |event: &m365_audit::sim::TruthEvent| {
        event.id.is_some() && world.config.content_types.contains(&event.content_type)
    };
    let count = |wanted: &str| {
        truth.events.iter().filter(|e| is_read(e)).filter(|e| operation(&e.raw) == format!("\"{wanted}\"")).count()
            as u64
    };
    let export = world.export(ExportForm::SearchJsonFormatted);
    let receipts = Some(receipts_of_types(&truth, &world.config, class));
    // What is on hold and set aside, the state says; receipts say that it once was.
    let (mut held, mut aside) = (Vec::new(), Vec::new());
    for event in truth.events.iter().filter(|event| is_read(event) && !event.withheld) {
        match class(&event.raw) {
            receipts::Class::Held => held.push(event.raw.clone()),
            receipts::Class::SetAside => aside.push(event.raw.clone()),
            _ => {}
        }
    }
    wait(&world, held, &aside).await;
    let outcome = world.compare(export.clone(), Evidence { receipts, store: true, ..Evidence::default() }).await;
    let found = ["dropped", "held", "set_aside"].map(|class| outcome.of_class(class));
    let expected = [count("MailItemsAccessed"), count("FileAccessed"), count("New-InboxRule")];
    assert_eq!(found, expected, "{}", outcome.text);
    assert_eq!(outcome.json["rules"]["EX-45"], expected[0], "the rule's class: {}", outcome.text);
    let not_read = truth.events.iter().filter(|e| e.id.is_some() && !is_read(e)).count() as u64;
    assert!(outcome.of_class("not_read") > not_read / 2, "{}", outcome.text);
    assert!(truth.events.iter().any(|event| is_routine(&event.raw)));

    // Without receipts the rules as they are configured say it.
    let dropping = m365_audit::normalise::Normaliser::new(m365_audit::normalise::NormaliserSettings {
        drop_routine: true,
        ..Default::default()
    });
    let outcome =
        world.compare(export, Evidence { store: true, dropping: Some(dropping), ..Evidence::default() }).await;
    let known = outcome.of_class("dropped") + outcome.of_class("held") + outcome.of_class("delivered");
    assert!(known > 0 && outcome.of_class("dropped") + outcome.of_class("held") > 0, "{}", outcome.text);
    let wrongly = outcome
        .missing
        .iter()
        .filter(|id| truth.events.iter().any(|event| event.id.as_deref() == Some(id.as_str()) && is_read(event)));
    assert_eq!(wrongly.count(), 0, "{}", outcome.text);
    world.sim.stop().await;
}

/// Puts events on hold and sets others aside, as a running process does.
async fn wait(world: &World, held: Vec<Bytes>, aside: &[Bytes]) {
    let keys = Keys::of(&world.tenant);
    let records = held.into_iter().map(|raw| HeldRecord { rule: "r".into(), raw, links: vec![], key: None });
    let page = HeldPage {
        content_type: ContentType::SharePoint,
        content_id: "c".into(),
        created: Timestamp::UNIX_EPOCH,
        records: records.collect(),
    };
    let put = |key, value| Op::Put { key, value, expected: Expected::Any };
    let mut ops = vec![put(keys.held_page(7000), page.encode())];
    for (number, raw) in aside.iter().enumerate() {
        // Every other one as an earlier build stored it, which did not say the event.
        let event = canonical_key(&Event::parse(raw).unwrap()).filter(|_| number % 2 == 0);
        let record = match event {
            Some(_) => "not read".to_owned(),
            None => String::from_utf8(raw.to_vec()).unwrap(),
        };
        let record = AsideRecord {
            format: 1,
            why: "w".into(),
            since: Timestamp::UNIX_EPOCH,
            time: Timestamp::UNIX_EPOCH,
            severity: "low".into(),
            kind: None,
            event,
            record,
        };
        ops.push(put(keys.aside_record(ContentType::Exchange, number as u128), format::encode(&record)));
    }
    world.host.state().commit(ops).await.unwrap();
}

/// A receipt says that an event was on hold or set aside once; whether it is now, the state says.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_waits_only_where_the_state_has_it_now() {
    let (world, _) = World::read(5, 11, 0, "drop_routine = false\n").await;
    let truth = world.sim.truth();
    let export = world.export(ExportForm::SearchJson);
    let all = world.compare(export.clone(), Evidence::of_state()).await.of_class("delivered");
    let both = [receipts::Class::Held, receipts::Class::SetAside];
    for class in &both {
        let receipts = Some(receipts_of(&truth, |_| class.clone()));
        let outcome = world.compare(export.clone(), Evidence { receipts, store: true, ..Evidence::default() }).await;
        let found = ["delivered", "held", "set_aside", "missing"].map(|class| outcome.of_class(class));
        assert_eq!(found, [all, 0, 0, 0], "{class:?}: {}", outcome.text);
        // Without a key nothing is known of it.
        let receipts = Some(receipts_of(&truth, |_| class.clone()));
        let outcome = world.compare(export.clone(), Evidence { receipts, ..Evidence::default() }).await;
        assert_eq!(outcome.of_class("missing"), all, "{class:?}: {}", outcome.text);
    }
    let events = truth.events.iter().filter(|event| canonical_key(&Event::parse(&event.raw).unwrap()).is_some());
    let raws: Vec<Bytes> = events.map(|event| event.raw.clone()).collect();
    wait(&world, raws[..3].to_vec(), &raws[3..7]).await;
    for class in &both {
        let receipts = Some(receipts_of(&truth, |_| class.clone()));
        let outcome = world.compare(export.clone(), Evidence { receipts, store: true, ..Evidence::default() }).await;
        let found = ["delivered", "held", "set_aside"].map(|class| outcome.of_class(class));
        assert_eq!(found, [all - 7, 3, 4], "{class:?}: {}", outcome.text);
    }
    world.sim.stop().await;
}

/// A read that was on hold and then dropped leaves its key in the state.
#[tokio::test(flavor = "multi_thread")]
async fn without_receipts_a_key_of_an_event_that_a_rule_drops_is_not_a_delivery() {
    let (world, _) = World::read(10, 12, 0, "drop_routine = false\n").await;
    let export = world.export(ExportForm::SearchJson);
    let dropping = || {
        let settings = m365_audit::normalise::NormaliserSettings { drop_routine: true, ..Default::default() };
        Some(m365_audit::normalise::Normaliser::new(settings))
    };
    let all = world.compare(export.clone(), Evidence::of_state()).await.of_class("delivered");
    let evidence = Evidence { store: true, dropping: dropping(), ..Evidence::default() };
    let outcome = world.compare(export.clone(), evidence).await;
    let dropped = outcome.of_class("dropped");
    assert!(dropped > 0, "{}", outcome.text);
    assert_eq!((outcome.of_class("delivered"), outcome.of_class("missing")), (all - dropped, 0), "{}", outcome.text);
    assert_eq!(outcome.json["dropped_by_configuration"], dropped, "{}", outcome.text);
    let delivered = Some(world.delivered());
    let outcome =
        world.compare(export, Evidence { delivered, store: true, dropping: dropping(), receipts: None }).await;
    assert_eq!((outcome.of_class("delivered"), outcome.of_class("dropped")), (all, 0), "{}", outcome.text);
    world.sim.stop().await;
}

struct Nobody;

impl ReceiptVisitor for Nobody {
    fn entry(&mut self, _: m365_audit::normalise::CanonicalKey, _: &receipts::Class) {}
    fn part_ended(&mut self) {}
}

/// While receipts are off, an event without one may have been delivered.
#[tokio::test]
async fn receipts_reach_no_time_when_a_process_without_them_wrote_last() {
    let hour: Hour = "2026-11-30T10:00:00Z".parse().unwrap();
    let tenant: TenantId = "11111111-2222-3333-4444-555555555555".parse().unwrap();
    let keys = Keys::of(&tenant);
    let receipt_keys = ReceiptKeys::below(keys.receipts());
    for (owner, expected) in [
        (Some("a"), EvidenceReach::Whole),
        (None, EvidenceReach::Whole),
        (Some("b"), EvidenceReach::From(Timestamp::MAX)),
    ] {
        let store = Arc::new(MemoryStore::new());
        let put = |key, value| Op::Put { key, value, expected: Expected::Any };
        let head = StoredHead { writer: "a".into(), ..StoredHead::default() };
        let page = receipts::OpenReceipts::default().encode(hour);
        let mut ops = vec![put(receipt_keys.head(), head.encode().into()), put(receipt_keys.open_page(0, 0, 0), page)];
        let owner = owner.map(|writer| format::encode(&Owner { format: 1, writer: writer.into(), commit: None }));
        ops.extend(owner.clone().map(|owner| put(keys.owner(), owner)));
        store.commit(ops).await.unwrap();
        let reached = StateReceipts::new(store, &keys).visit(&mut Nobody).await.unwrap();
        assert_eq!(reached, Some(expected), "{owner:?}");
    }
}

/// Receipts of the events of the content types that a source reads.
fn receipts_of_types(truth: &Truth, config: &SourceConfig, class: impl Fn(&[u8]) -> receipts::Class) -> Arc<dyn Known> {
    let mut read = truth.clone();
    read.events.retain(|event| config.content_types.contains(&event.content_type));
    receipts_of(&read, class)
}

/// The hold's look-up: a read on hold has a duplicate key, and is not delivered.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_on_hold_is_on_hold_and_neither_delivered_nor_missing() {
    let (world, _) = World::read(10, 3, 0, "hold_secs = 86400\ncontent_types = [\"Audit.Exchange\", \"Audit.SharePoint\", \"DLP.All\", \"Audit.General\"]\n").await;
    let keys = m365_audit::checkpoint::format::Keys::of(&world.tenant);
    let store = world.host.state();
    let mut held = 0;
    for (key, _) in store.list(&keys.held()).await.unwrap() {
        let (bytes, _) = store.load(&key).await.unwrap().unwrap();
        let page = m365_audit::checkpoint::held::HeldPage::decode(&key, &bytes).unwrap();
        held += page.records.iter().filter(|r| canonical_key(&Event::parse(&r.raw).unwrap()).is_some()).count() as u64;
    }
    assert!(held > 0, "nothing is on hold");
    let before = world.host.state.entries();
    for form in [ExportForm::PurviewCsv, ExportForm::GraphPages] {
        let dropping = m365_audit::normalise::Normaliser::new(m365_audit::normalise::NormaliserSettings {
            drop_routine: true,
            ..Default::default()
        });
        let evidence = Evidence { store: true, dropping: Some(dropping), ..Evidence::default() };
        let outcome = world.compare(world.export(form), evidence).await;
        assert_eq!(outcome.of_class("held"), held, "{form:?}\n{}", outcome.text);
    }
    assert_eq!(world.host.state.entries(), before, "a comparison changes nothing in the state");
    world.sim.stop().await;
}

/// An event without a `CreationTime`: its record and its row say one each, and not the same.
#[test]
fn an_event_without_a_time_is_the_same_in_its_record_and_in_its_row() {
    let event = r#"{"Id":"5954da71-c13d-4079-be94-43ab95dea639","RecordType":25,"Workload":"MicrosoftTeams","Operation":"MessageDeleted"}"#;
    let row = format!(
        "RecordId,CreationDate,RecordType,Operation,UserId,AuditData,AssociatedAdminUnits,AssociatedAdminUnitsNames\r\n\
         5954da71-c13d-4079-be94-43ab95dea639,2026-05-01T20:01:29.0000000Z,25,MessageDeleted,a@b.example,\"{}\",,\r\n",
        event.replace('"', "\"\"")
    );
    let record = format!(
        r#"{{"source":"m365","event_type":"m365.microsoftteams.messagedeleted","severity":"info","timestamp":"2026-05-02T04:57:45.764Z","timestamp_inferred":true,"event_id":"5954da71-c13d-4079-be94-43ab95dea639","raw":{event}}}"#
    );
    let export = || Ok(vec![input("x.csv", row.clone().into_bytes())]);
    let given = || Ok(vec![input("y", record.clone().into_bytes())]);
    let request = CompareRequest {
        source: "s".into(),
        tenant: "11111111-2222-3333-4444-555555555555".parse().unwrap(),
        content_types: m365_audit::model::ContentType::ALL.to_vec(),
        event_keys_max: 1000,
        dropping: None,
        export: &export,
        delivered: Some(&given),
        store: None,
        receipts: None,
        settle: SignedDuration::ZERO,
        asked: (None, None),
        now: "2026-05-10T00:00:00Z".parse().unwrap(),
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let outcome = Outcome::of(compare(&request, runtime.handle()).unwrap());
    assert_eq!((outcome.of_class("delivered"), outcome.only_ours().0), (1, 0), "{}", outcome.text);
}

/// A record that holds no event is found by its `Id`, and that is said.
#[tokio::test(flavor = "multi_thread")]
async fn records_without_their_event_are_found_by_id_and_the_verdict_says_so() {
    let (world, _) = World::read(5, 5, 0, "drop_routine = false\nraw = \"none\"\n").await;
    let given = Evidence { delivered: Some(world.delivered()), ..Evidence::default() };
    let outcome = world.compare(world.export(ExportForm::PurviewCsv), given).await;
    assert_eq!(outcome.of_class("missing"), 0, "{}", outcome.text);
    assert!(outcome.of_class("delivered") > 0 && outcome.text.contains("by `Id` alone"), "{}", outcome.text);
    world.sim.stop().await;
}

/// Rows of which nothing can be read, rows that say who they are although their event is cut, and rows twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_whose_event_is_cut_is_found_by_what_stands_beside_it() {
    let (world, _) = World::read(5, 9, 0, "drop_routine = false\n").await;
    let file = world.export(ExportForm::PurviewCsv).remove(0);
    let csv = String::from_utf8(file.bytes).unwrap();
    let row = csv.lines().find(|line| line.contains("\"\"RecordType\"\":1,") && line.ends_with("\",,")).unwrap();
    let cut = format!("{}\",,", &row[..row.len() - 40].trim_end_matches('"'));
    let header = csv.lines().next().unwrap();
    let text = format!("{header}\r\n{row}\r\n{cut}\r\n{row}\r\nnothing of it,,,,,\"{{\"\"x\",,\r\n");
    let file = ExportFile { name: "x.csv".into(), bytes: text.into_bytes() };
    let outcome = world.compare(vec![file], Evidence::of_state()).await;
    let found = ["delivered", "repeated", "unreadable", "missing"].map(|class| outcome.of_class(class));
    assert_eq!(found, [1, 2, 1, 0], "{}\n{row}", outcome.text);
    world.sim.stop().await;
}

/// Graph says itself that a query found more than it returns.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_says_it_is_cut_is_told_of() {
    let (world, _) = World::read(5, 4, 0, "drop_routine = false\n").await;
    let mut files = world.export(ExportForm::GraphPages);
    let outcome = world.compare(files.clone(), Evidence::of_state()).await;
    assert_eq!(outcome.json["witness"]["looks_cut"], false, "{}", outcome.text);
    let query = br#"{"id":"q","status":"succeeded","isRecordCountLimitExceeded":true}"#.to_vec();
    files.push(ExportFile { name: "query.json".into(), bytes: query });
    let outcome = world.compare(files.clone(), Evidence::of_state()).await;
    assert_eq!(outcome.json["witness"]["looks_cut"], true, "{}", outcome.text);
    assert_eq!(outcome.of_class("unreadable"), 0, "{}", outcome.text);
    let page = String::from_utf8(files.remove(0).bytes).unwrap();
    let page = page.replacen("\"value\":[", "\"isRecordCountLimitExceeded\":true,\"value\":[", 1);
    let file = ExportFile { name: "page.json".into(), bytes: page.into_bytes() };
    let outcome = world.compare(vec![file], Evidence::of_state()).await;
    assert_eq!(outcome.json["witness"]["looks_cut"], true, "{}", outcome.text);
    world.sim.stop().await;
}

mod classes {
    use super::*;
    use proptest::prelude::*;

    /// Rows of every kind: events, without an `Id`, damaged, objects that are none, repeats.
    fn row() -> impl Strategy<Value = String> {
        let id = 0u8..20;
        let time =
            prop::sample::select(vec!["2026-05-01T10:00:00", "2026-05-01T10:00:00Z", "never", "1601-01-01T00:00:00"]);
        let record_type = prop::sample::select(vec!["1", "6", "\"Quarantine\"", "25", "null"]);
        prop_oneof![
            8 => (id, time, record_type).prop_map(|(id, time, record_type)| format!(
                r#"{{"Id":"{id}","CreationTime":"{time}","Operation":"o","RecordType":{record_type},"Workload":"Exchange"}}"#
            )),
            1 => Just(r#"{"CreationTime":"2026-05-01T10:00:00","Operation":"o"}"#.to_owned()),
            1 => Just("{\"Id\":".to_owned()),
            1 => Just("{\"x\":1}".to_owned()),
            1 => Just("nonsense".to_owned()),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_classes_sum_to_the_rows(rows in prop::collection::vec(row(), 0..40), delivered in prop::collection::vec(row(), 0..20)) {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let export = || Ok(vec![input("x", rows.join("\n").into_bytes())]);
            let given = || Ok(vec![input("y", delivered.join("\n").into_bytes())]);
            let request = CompareRequest {
                source: "s".into(),
                tenant: "11111111-2222-3333-4444-555555555555".parse().unwrap(),
                content_types: m365_audit::model::ContentType::ALL.to_vec(),
                event_keys_max: 1000,
                dropping: None,
                export: &export,
                delivered: Some(&given),
                store: Some(Arc::new(MemoryStore::new())),
                receipts: None,
                settle: SignedDuration::ZERO,
                asked: (None, None),
                now: "2026-05-10T00:00:00Z".parse().unwrap(),
            };
            // It asserts that the classes sum to the rows, and that as many are listed as are missing.
            let outcome = Outcome::of(compare(&request, runtime.handle()).unwrap());
            prop_assert!(outcome.json["rows"].as_u64().unwrap() <= rows.len() as u64 + 1);
        }
    }
}
