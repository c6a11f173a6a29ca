//! The cost of assessing an event: folding its operation, finding its rules and trying them. Parsing is not included.

mod events;

use std::sync::Arc;

use divan::Bencher;
use m365_audit::normalise::{Normaliser, NormaliserSettings};
use m365_audit::severity::Rules;

fn main() {
    divan::main();
}

/// The whole catalogue and this many rules of an operator, each about an operation that no event has.
#[divan::bench(args = [0, 100, 1000])]
fn assess(bencher: Bencher<'_, '_>, own_rules: usize) {
    let own: Vec<toml::Table> = (0..own_rules)
        .map(|n| {
            format!("id = \"bench-{n}\"\noperations = [\"bench operation {n}\"]\nseverity = \"high\"\nreason = \"x\"")
                .parse()
                .expect("a rule")
        })
        .collect();
    let rules = Arc::new(Rules::with(false, &[], &own).expect("rules"));
    assert!(rules.rules().count() >= own_rules);
    let normaliser = Normaliser::new(NormaliserSettings { rules, ..NormaliserSettings::default() });
    let events = events::parsed();
    let (items, bytes) = events::counts(&events::events());
    bencher
        .counter(items)
        .counter(bytes)
        .bench_local(|| events.iter().map(|event| normaliser.assess(divan::black_box(event)).severity()).max());
}
