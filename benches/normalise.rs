//! Events per second and bytes per second of parse and render, over the fixture events.

mod events;

use divan::Bencher;
use m365_audit::config::{Format, RawForm};
use m365_audit::normalise::Event;

fn main() {
    divan::main();
}

#[divan::bench]
fn parse(bencher: Bencher<'_, '_>) {
    let events = events::events();
    let (items, bytes) = events::counts(&events);
    bencher.counter(items).counter(bytes).bench_local(|| {
        events
            .iter()
            .filter(|event| Event::parse(divan::black_box(event)).is_ok_and(|e| e.identity().is_some()))
            .count()
    });
}

/// The difference of the first two is the cost of the catalogue.
#[divan::bench(args = ["native", "native, no rules", "native, no raw", "ecs", "ocsf", "raw", "raw, no rules"])]
fn parse_and_render(bencher: Bencher<'_, '_>, shape: &str) {
    let events = events::events();
    let tenant = events::tenant();
    let blob = events::blob(&tenant);
    let format = match shape {
        "ecs" => Format::Ecs,
        "ocsf" => Format::Ocsf,
        shape if shape.starts_with("raw") => Format::Raw,
        _ => Format::Native,
    };
    let raw = if shape.contains("no raw") { RawForm::None } else { RawForm::Object };
    let normaliser = events::normaliser(format, raw, !shape.contains("no rules"));
    let mut out = Vec::new();
    let (items, bytes) = events::counts(&events);
    bencher.counter(items).counter(bytes).bench_local(|| {
        out.clear();
        for event in &events {
            if let Ok(event) = Event::parse(event) {
                normaliser.render(&event, &blob, &mut out);
                out.push(b'\n');
            }
        }
        out.len()
    });
}
