//! The examples do what their comments say.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use jiff::SignedDuration;
use m365_audit::clock::SystemClock;
use m365_audit::sim::{Delivered, GenerateSpec, Sim, SimConfig, Truth};
use serde_json::Value;
use serde_json::value::RawValue;

#[allow(dead_code, reason = "its main is for `cargo run --example`")]
#[path = "../../examples/custom_host.rs"]
pub mod custom_host;

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

#[tokio::test]
async fn a_host_of_under_60_lines_gets_every_event_once() {
    let code = include_str!("../../examples/custom_host.rs");
    let (host, _) = code.split_once("#[tokio::main]").expect("the host stands above main");
    let (_, host) = host.split_once("/// The agent").expect("the host begins with the agent");
    let lines = host.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).count();
    assert!(lines < 60, "{lines} lines");

    let sim = Sim::start(SimConfig::default(), SystemClock::new()).await.unwrap();
    let tenant = SimConfig::default().tenants[0].clone();
    let (from, to) = (sim.now() - SignedDuration::from_hours(20), sim.now());
    sim.generate(&tenant, GenerateSpec { late_rate: 0.0, ..GenerateSpec::new(40, 10, from, to) });

    let out = Shared::default();
    let agent = Arc::new(custom_host::Agent::new(out.clone()));
    custom_host::run_once(agent.clone(), &sim.url()).await.unwrap();
    let text = String::from_utf8(std::mem::take(&mut *out.0.lock().unwrap())).unwrap();
    let truth = sim.truth();
    let mut comparison = truth.compare(delivered(&text));
    let routine = routine(&truth);
    comparison.lost.retain(|id| !routine.contains(id));
    assert!(comparison.is_clean() && comparison.delivered > 300, "{comparison}");

    custom_host::run_once(agent, &sim.url()).await.unwrap();
    assert_eq!(delivered(&String::from_utf8(out.0.lock().unwrap().clone()).unwrap()).len(), 0, "its state was kept");
}
