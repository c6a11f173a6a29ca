//! The audit search against what was delivered: a simulated tenant that withholds events from the feed and from the search,
//! in every form in which the search is exported.
#![cfg(all(feature = "sim", feature = "embedded", feature = "exports"))]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use jiff::SignedDuration;
use m365_audit::clock::SystemClock;
use m365_audit::config::SourceConfig;
use m365_audit::exports::input::Input;
use m365_audit::host::{Batch, Delivery, DeliveryTicket, Health, Host, StateError, StateStore};
use m365_audit::hosts::embedded::memory::MemoryStore;
use m365_audit::model::{TenantId, Timestamp};
use m365_audit::normalise::{Event, canonical_key};
use m365_audit::receipts;
use m365_audit::reconcile::class::Class;
use m365_audit::reconcile::compare::{Request, compare};
use m365_audit::reconcile::evidence::{Known, Reached, Take};
use m365_audit::reconcile::verdict::Verdict;
use m365_audit::sim::{ExportFile, ExportForm, ExportSpec, GenerateSpec, Side, Sim, SimConfig, Truth};
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
        assert!(report.left.is_empty(), "{:?}", report.left);
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
            let request = Request {
                source: "tenant".into(),
                tenant,
                content_types: config.content_types.clone(),
                backfill: SignedDuration::from_secs(config.backfill_secs as i64),
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
        let classes = Class::ALL.iter().map(|class| (class.name(), verdict.classes.of(*class))).collect();
        let ids = |name: &str| json[name].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned());
        let missing = ids("missing").collect();
        let outcome = Outcome { text: String::from_utf8(text).unwrap(), classes, missing, json: json.clone() };
        assert_eq!(
            outcome.classes.values().sum::<u64>(),
            verdict.rows,
            "the classes sum to the rows: {}",
            outcome.text
        );
        assert_eq!(outcome.of_class("missing"), outcome.missing.len() as u64, "{}", outcome.text);
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
    async fn visit(&self, take: &mut (dyn Take + Send)) -> Result<Option<Reached>, StateError> {
        self.0.iter().for_each(|(key, class)| take.entry(*key, class));
        take.part_ended();
        Ok(Some(Reached { from: Timestamp::UNIX_EPOCH, pruned: false }))
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

#[tokio::test(flavor = "multi_thread")]
async fn what_is_withheld_on_either_side_is_found_in_every_form() {
    withheld_are_found(200, 1).await;
}

/// The whole: 10 seeds of 100,000 events.
/// `cargo test --release --test library reconcile:: -- --ignored ten_seeds`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes, in a release build"]
async fn ten_seeds_of_100_000_events() {
    for seed in 1..=10 {
        withheld_are_found(2000, seed).await;
    }
}
