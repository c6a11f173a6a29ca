//! The input of the benches of pieces: the events of the fixtures, which are real and redistributable.
#![allow(dead_code, reason = "no bench needs all of it")]

use std::sync::Arc;

use divan::counter::{BytesCount, ItemsCount};
use m365_audit::config::{Format, RawForm};
use m365_audit::host::{Batch, BatchBuilder, Kind, Noted};
use m365_audit::model::{ContentType, TenantId};
use m365_audit::normalise::{BlobContext, Event, Normaliser, NormaliserSettings, Rendered};
use m365_audit::severity::Rules;

const FAMILIES: [&str; 4] = [
    include_str!("../../tests/fixtures/records/entra.ndjson"),
    include_str!("../../tests/fixtures/records/exchange.ndjson"),
    include_str!("../../tests/fixtures/records/general.ndjson"),
    include_str!("../../tests/fixtures/records/sharepoint.ndjson"),
];

/// Every event, as received.
pub fn events() -> Vec<&'static [u8]> {
    FAMILIES.iter().flat_map(|family| family.lines()).map(str::as_bytes).collect()
}

/// Every event, parsed.
pub fn parsed() -> Vec<Event<'static>> {
    events().into_iter().map(|event| Event::parse(event).expect("an event")).collect()
}

/// The counts of one pass over the events.
pub fn counts(events: &[&[u8]]) -> (ItemsCount, BytesCount) {
    (ItemsCount::new(events.len()), BytesCount::new(events.iter().map(|event| event.len()).sum::<usize>()))
}

pub fn tenant() -> TenantId {
    "7f3c0000-0000-0000-0000-000000000001".parse().expect("a GUID")
}

/// The blob from which all of them seem to come.
pub fn blob(tenant: &TenantId) -> BlobContext<'_> {
    BlobContext {
        tenant,
        content_type: ContentType::General,
        content_id: "20260501100000000000001$20260501100500000000001$audit_shared$shared",
        content_created: "2026-05-01T10:05:00.123Z".parse().expect("a time"),
    }
}

pub fn normaliser(format: Format, raw: RawForm, with_rules: bool) -> Normaliser {
    let rules = if with_rules { Rules::built_in() } else { Arc::new(Rules::none()) };
    Normaliser::new(NormaliserSettings { format, raw, rules, ..NormaliserSettings::default() })
}

/// Their records, as a host gets them.
pub fn batch(format: Format) -> Batch {
    let (tenant, normaliser) = (tenant(), normaliser(format, RawForm::Object, true));
    let mut builder = BatchBuilder::default();
    for event in parsed() {
        builder.push_with(|out| match normaliser.render(&event, &blob(&tenant), out) {
            Rendered::Record { time, severity, kind } => Some(Noted { time, severity, kind: kind.map(Kind::Event) }),
            Rendered::Dropped { .. } => None,
        });
    }
    builder.finish("bench".into(), tenant, ContentType::General)
}
