//! Events per second and bytes per second of parse and render, over the fixture events.

use std::sync::Arc;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use m365_audit::config::{Format, RawForm};
use m365_audit::model::{ContentType, TenantId};
use m365_audit::normalise::{BlobContext, Event, Normaliser, Settings};
use m365_audit::severity::Rules;

const FAMILIES: [&str; 4] = [
    include_str!("../tests/fixtures/records/entra.ndjson"),
    include_str!("../tests/fixtures/records/exchange.ndjson"),
    include_str!("../tests/fixtures/records/general.ndjson"),
    include_str!("../tests/fixtures/records/sharepoint.ndjson"),
];

fn main() {
    divan::main();
}

fn events() -> Vec<&'static [u8]> {
    FAMILIES.iter().flat_map(|family| family.lines()).map(str::as_bytes).collect()
}

/// What one pass over the events is counted as.
fn counts(events: &[&[u8]]) -> (ItemsCount, BytesCount) {
    (ItemsCount::new(events.len()), BytesCount::new(events.iter().map(|event| event.len()).sum::<usize>()))
}

#[divan::bench]
fn parse(bencher: Bencher<'_, '_>) {
    let events = events();
    let (items, bytes) = counts(&events);
    bencher.counter(items).counter(bytes).bench_local(|| {
        events
            .iter()
            .filter(|event| Event::parse(divan::black_box(event)).is_ok_and(|e| e.identity().is_some()))
            .count()
    });
}

/// The catalogue costs what stands between the first two.
#[divan::bench(args = ["native", "native, no rules", "native, no raw", "ecs", "ocsf", "raw", "raw, no rules"])]
fn parse_and_render(bencher: Bencher<'_, '_>, shape: &str) {
    let events = events();
    let tenant: TenantId = "7f3c0000-0000-0000-0000-000000000001".parse().expect("a GUID");
    let blob = BlobContext {
        tenant: &tenant,
        content_type: ContentType::General,
        content_id: "20260501100000000000001$20260501100500000000001$audit_shared$shared",
        content_created: "2026-05-01T10:05:00.123Z".parse().expect("a time"),
    };
    let normaliser = Normaliser::new(Settings {
        format: match shape {
            "ecs" => Format::Ecs,
            "ocsf" => Format::Ocsf,
            shape if shape.starts_with("raw") => Format::Raw,
            _ => Format::Native,
        },
        raw: if shape.contains("no raw") { RawForm::None } else { RawForm::Object },
        rules: if shape.contains("no rules") { Arc::new(Rules::none()) } else { Rules::built_in() },
        ..Settings::default()
    });
    let mut out = Vec::new();
    let (items, bytes) = counts(&events);
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
