//! The examples do what their comments say.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use jiff::SignedDuration;
use m365_audit::SourceConfig;
use m365_audit::clock::SystemClock;
use m365_audit::sim::{Comparison, Delivered, GenerateSpec, Sim, SimConfig, Truth};
use serde_json::Value;
use serde_json::value::RawValue;

#[allow(dead_code, reason = "its main is for `cargo run --example`")]
#[path = "../../examples/custom_host.rs"]
pub mod custom_host;

#[allow(dead_code, reason = "its main is for `cargo run --example`")]
#[path = "../../examples/state_on_disk.rs"]
pub mod state_on_disk;

/// A writer the test can look into.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(serde::Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    raw: &'a RawValue,
}

fn delivered(out: &str) -> Vec<Delivered> {
    out.lines().map(|line| Delivered::from(serde_json::from_str::<Line>(line).unwrap().raw.get())).collect()
}

/// Routine reads, which the source drops by rule.
fn routine(truth: &Truth) -> Vec<String> {
    let is_routine = |raw: &[u8]| {
        let event: Value = serde_json::from_slice(raw).unwrap_or_default();
        let operation = event["Operation"].as_str().unwrap_or_default().trim().to_ascii_lowercase();
        operation == "fileaccessed" || operation == "mailitemsaccessed"
    };
    let events = truth.events.iter().filter(|event| is_routine(&event.raw));
    events.filter_map(|event| event.id.as_deref().map(str::to_owned)).collect()
}

/// Lines of code of an example from this line to its `main`.
fn lines_of(code: &str, begin: &str, end: &str) -> usize {
    let (code, _) = code.split_once(end).expect("the subject ends");
    let (_, code) = code.split_once(begin).expect("the subject begins");
    code.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).count()
}

/// A configuration that leads to the simulated tenant, its events unmasked for the comparison.
fn config(sim: &Sim) -> SourceConfig {
    let of = SimConfig::default();
    let ids = SourceConfig::builder().tenant_id(of.tenants[0].as_str()).client_id(&of.client_id);
    let reached = ids.client_secret(&of.client_secret).set("api_url", sim.url()).set("authority_url", sim.url());
    reached.set("mask_detected_values", false).build().unwrap()
}

async fn tenant_with_events() -> Sim {
    let sim = Sim::start(SimConfig::default(), SystemClock::new()).await.unwrap();
    let tenant = SimConfig::default().tenants[0].clone();
    let (from, to) = (sim.now() - SignedDuration::from_hours(20), sim.now());
    sim.generate(&tenant, GenerateSpec { late_rate: 0.0, ..GenerateSpec::new(40, 10, from, to) });
    sim
}

fn compared(truth: &Truth, text: &str) -> Comparison {
    let mut comparison = truth.compare(delivered(text));
    let routine = routine(truth);
    comparison.lost.retain(|id| !routine.contains(id));
    comparison
}

#[tokio::test]
async fn a_host_of_under_60_lines_gets_every_event_once() {
    let lines = lines_of(include_str!("../../examples/custom_host.rs"), "/// The agent", "#[tokio::main]");
    assert!(lines < 60, "{lines} lines");

    let sim = tenant_with_events().await;
    let out = Shared::default();
    let agent = Arc::new(custom_host::Agent::new(out.clone()));
    custom_host::run_once(agent.clone(), config(&sim)).await.unwrap();
    let text = String::from_utf8(std::mem::take(&mut *out.0.lock().unwrap())).unwrap();
    let comparison = compared(&sim.truth(), &text);
    assert!(comparison.is_clean() && comparison.delivered > 300, "{comparison}");

    custom_host::run_once(agent, config(&sim)).await.unwrap();
    assert_eq!(delivered(&String::from_utf8(out.0.lock().unwrap().clone()).unwrap()).len(), 0, "its state was kept");
}

#[tokio::test]
async fn a_state_on_disk_of_60_lines_survives_its_process_so_that_nothing_comes_twice_and_nothing_is_missing() {
    let code = include_str!("../../examples/state_on_disk.rs");
    let lines = lines_of(code, "/// One file, one table", "/// The agent");
    assert!(lines <= 70, "{lines} lines");

    let sim = tenant_with_events().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("state.sqlite");
    let (mut text, mut runs) = (String::new(), Vec::new());
    for stop_after in [50, 50, usize::MAX, usize::MAX] {
        // Each run opens the file anew.
        let store = state_on_disk::DiskState::open(&file).unwrap();
        let agent = Arc::new(state_on_disk::Agent::new(store, stop_after));
        state_on_disk::run_once(agent.clone(), config(&sim)).await.unwrap();
        let records = agent.records();
        runs.push(records.len());
        for record in records {
            text.push_str(std::str::from_utf8(&record).unwrap());
            text.push('\n');
        }
    }
    let comparison = compared(&sim.truth(), &text);
    assert!(comparison.is_clean() && comparison.delivered > 300, "{runs:?} {comparison}");
    assert!(runs[0] >= 50 && runs[2] > 0 && runs[3] == 0, "{runs:?}");
}
