//! Records made of fixture events: every family against its expected lines, and the severities of the whole
//! development corpus where it is present.

use std::fs;
use std::path::{Path, PathBuf};

use m365_audit::config::{Format, RawForm};
use m365_audit::model::{ContentType, TenantId};
use m365_audit::normalise::{BlobContext, Event, Normaliser, Rendered, Settings};

/// A fixture file and the content type its events would be listed under.
const FAMILIES: &[(&str, ContentType)] = &[
    ("entra", ContentType::AzureActiveDirectory),
    ("exchange", ContentType::Exchange),
    ("general", ContentType::General),
    ("irregular", ContentType::General),
    ("rules", ContentType::Exchange),
    ("sharepoint", ContentType::SharePoint),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/records").join(name)
}

fn tenant() -> TenantId {
    "7f3c0000-0000-0000-0000-000000000001".parse().unwrap()
}

fn blob(tenant: &TenantId, content_type: ContentType) -> BlobContext<'_> {
    BlobContext {
        tenant,
        content_type,
        content_id: "20260501100000000000001$20260501100500000000001$audit_shared$shared",
        content_created: "2026-05-01T10:05:00.123Z".parse().unwrap(),
    }
}

fn settings(raw: RawForm) -> Settings {
    Settings { raw, drop_routine: true, ..Settings::default() }
}

fn render(settings: Settings, event: &str, content_type: ContentType) -> Result<String, &'static str> {
    let tenant = tenant();
    let mut out = Vec::new();
    let event = Event::parse(event.as_bytes()).expect("fixture is an event");
    match Normaliser::new(settings).render(&event, &blob(&tenant, content_type), &mut out) {
        Rendered::Record { .. } => Ok(String::from_utf8(out).expect("records are UTF-8")),
        Rendered::Dropped { rule } => Err(rule),
    }
}

#[test]
fn fixture_events_become_the_expected_records() {
    let mut stale = Vec::new();
    for (family, content_type) in FAMILIES {
        let events = fs::read_to_string(fixture(&format!("{family}.ndjson"))).unwrap();
        let mut actual = String::new();
        for event in events.lines() {
            match render(settings(RawForm::None), event, *content_type) {
                Ok(record) => actual.push_str(&record),
                Err(rule) => actual.push_str(&format!("dropped by {rule}")),
            }
            actual.push('\n');
        }
        let path = fixture(&format!("{family}.expected.ndjson"));
        if fs::read_to_string(&path).unwrap_or_default() != actual {
            fs::write(&path, actual).unwrap();
            stale.push(path);
        }
    }
    assert!(stale.is_empty(), "rewritten, look at the difference and run again: {stale:?}");
}

fn all_fixture_events() -> Vec<(String, ContentType)> {
    let read = |(family, content_type): &(&str, ContentType)| {
        let text = fs::read_to_string(fixture(&format!("{family}.ndjson"))).unwrap();
        text.lines().map(|line| (line.to_owned(), *content_type)).collect::<Vec<_>>()
    };
    FAMILIES.iter().flat_map(read).collect()
}

#[test]
fn raw_is_the_event_as_it_came_in_every_form() {
    for (event, content_type) in all_fixture_events() {
        let keep = |raw| Settings { drop_routine: false, ..settings(raw) };
        let spread = format!("{{\r\n\t{}\n}}", &event[1..event.len() - 1]);
        let record = render(keep(RawForm::Object), &spread, content_type).unwrap();
        assert!(record.ends_with(&format!(",\"raw\":{{\t{}}}}}", &event[1..event.len() - 1])), "{record}");
        assert!(!record.contains(['\r', '\n']));

        let record = render(keep(RawForm::String), &spread, content_type).unwrap();
        let start = record.find(",\"raw\":").unwrap() + 7;
        let raw: String = serde_json::from_str(&record[start..record.len() - 1]).unwrap();
        assert_eq!(raw, spread);

        let alone = Settings { format: Format::Raw, ..keep(RawForm::None) };
        assert_eq!(render(alone, &event, content_type).unwrap(), event);
    }
}

#[test]
fn severities_are_the_specifications_on_the_whole_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus");
    let Ok(index) = fs::read_to_string(corpus.join("INDEX.tsv")) else {
        eprintln!("skipped: no corpus at {}", corpus.display());
        return;
    };
    let mut lines = index.lines();
    let header: Vec<&str> = lines.next().unwrap().split('\t').collect();
    let column = |name: &str| header.iter().position(|column| *column == name).unwrap();
    let (file, line, label) = (column("file"), column("line"), column("spec_literal"));
    let mut wrong = Vec::new();
    let mut seen = 0;
    for row in lines {
        let row: Vec<&str> = row.split('\t').collect();
        let events = fs::read_to_string(corpus.join(row[file])).unwrap();
        let event = events.lines().nth(row[line].parse::<usize>().unwrap() - 1).unwrap();
        let tenant = tenant();
        let event = Event::parse(event.as_bytes()).unwrap();
        let blob = blob(&tenant, ContentType::General);
        let assessed = match Normaliser::new(settings(RawForm::Object)).render(&event, &blob, &mut Vec::new()) {
            Rendered::Record { severity, .. } => severity.as_str(),
            Rendered::Dropped { .. } => "drop",
        };
        let expected = if row[label] == "-" { "info" } else { row[label] };
        if assessed != expected {
            wrong.push(format!("{} line {}: {assessed}, expected {expected}", row[file], row[line]));
        }
        seen += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 200, "{seen}");
}
