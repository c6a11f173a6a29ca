//! The same event gives the same record, whatever form it came in: every event there is, in every form that is read.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use m365_audit::config::Format;
use m365_audit::exports::input::Input;
use m365_audit::exports::pipeline::{Item, Make, ReadEvent, read};
use m365_audit::normalise::{Event, Normaliser, NormaliserSettings, Origin, Rendered, canonical_key};
use serde_json::Value;

mod forms;

use forms::Written;

/// Fixtures, cases and, where it is there, the corpus: without repeats, each as an object whose keys are sorted.
fn events() -> Vec<Value> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut texts = Vec::new();
    for (folder, is_wanted) in [
        ("tests/fixtures/records", (|name: &str| name.matches('.').count() == 1) as fn(&str) -> bool),
        ("../shared/corpus", |name| name.ends_with(".ndjson")),
        ("../../shared/corpus", |name| name.ends_with(".ndjson")),
    ] {
        let Ok(entries) = fs::read_dir(root.join(folder)) else {
            continue;
        };
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for path in paths.iter().filter(|path| is_wanted(path.file_name().unwrap().to_str().unwrap())) {
            texts.extend(fs::read_to_string(path).unwrap().lines().map(str::to_owned));
        }
    }
    let cases = fs::read_to_string(root.join("tests/fixtures/severity/cases.ndjson")).unwrap();
    texts.extend(cases.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["event"].to_string()));
    let mut seen = BTreeSet::new();
    // One record of the corpus was flattened by PowerShell before it got there.
    // One fixture has half a surrogate pair, which only a reader of our own lets through.
    let events =
        texts.iter().filter(|text| !text.contains("@{")).filter_map(|text| serde_json::from_str::<Value>(text).ok());
    let is_event = |event: &Value| {
        let has = |name| !forms::text(event, name).is_empty();
        let twice =
            |name: &String| event.as_object().unwrap().keys().filter(|key| key.eq_ignore_ascii_case(name)).count() > 1;
        // Which of two members of one name counts is the order's matter, which is not kept here.
        event.is_object()
            && !event.as_object().unwrap().keys().any(twice)
            && (has("Operation") || has("CreationTime"))
            && has("Id")
            && has("RecordType")
    };
    let mut number = 0;
    let of_its_own = |mut event: Value| {
        // Cases have the same few ids; here each event is one of its own.
        number += 1;
        let members = event.as_object_mut().unwrap();
        members.retain(|name, _| !name.eq_ignore_ascii_case("Id"));
        members.insert("Id".into(), format!("{number:08x}-0000-4000-8000-000000000000").into());
        event
    };
    events.filter(|event| is_event(event) && seen.insert(event.to_string())).map(of_its_own).collect()
}

/// A record of an event, with nothing left out.
fn record(format: Format, event: &str) -> String {
    let event = Event::parse(event.as_bytes()).unwrap();
    let mut out = Vec::new();
    let normaliser = Normaliser::new(NormaliserSettings { format, ..NormaliserSettings::default() });
    match normaliser.render_from(&event, &Origin::default(), &mut out) {
        Rendered::Record { .. } => String::from_utf8(out).unwrap(),
        dropped @ Rendered::Dropped { .. } => panic!("{dropped:?}"),
    }
}

/// All that is made of an event, but for its own bytes.
fn made_of(event: &str) -> Vec<(&'static str, Value)> {
    let formats = [("native", Format::Native), ("ECS", Format::Ecs), ("OCSF", Format::Ocsf)];
    let records = formats.map(|(name, format)| {
        let mut record: Value = serde_json::from_str(&record(format, event)).unwrap();
        let members = record.as_object_mut().unwrap();
        members.remove("raw");
        members.remove("raw_data");
        members.get_mut("event").and_then(Value::as_object_mut).map(|event| event.remove("original"));
        (name, record)
    });
    let key = canonical_key(&Event::parse(event.as_bytes()).unwrap());
    records.into_iter().chain([("canonical key", key.map(|key| key.to_string()).into())]).collect()
}

/// Where two values differ.
fn difference(expected: &Value, actual: &Value) -> String {
    match (expected, actual) {
        (Value::Object(expected), Value::Object(actual)) => {
            let names: BTreeSet<&String> = expected.keys().chain(actual.keys()).collect();
            let differ = names.into_iter().filter(|name| expected.get(*name) != actual.get(*name));
            let of = |side: &serde_json::Map<String, Value>, name| side.get(name).cloned().unwrap_or(Value::Null);
            differ.map(|name| format!("{name}: {}; ", difference(&of(expected, name), &of(actual, name)))).collect()
        }
        _ => format!("{expected} is {actual}"),
    }
}

struct Nothing;

impl Make for Nothing {
    type Made = ();
    fn make(&self, _: &ReadEvent, _: &Event<'_>, _: &mut Vec<u8>) {}
}

/// The events of a file, in order; what is bad is an error.
fn read_all(name: &str, file: &[u8]) -> Result<Vec<ReadEvent>, String> {
    let mut events = Vec::new();
    let mut bad = Vec::new();
    let _ = read(vec![Input::Stream(name.to_owned(), Box::new(file))], &Nothing, &mut |item| {
        match item {
            Item::Event(event, ..) => events.push(event.clone()),
            Item::Bad(item) => bad.push(format!("{}: {}", item.place, item.why)),
            Item::Problem(error) => bad.push(error.to_string()),
            Item::Notice(_) | Item::Note(_) | Item::Truncated(_) | Item::Pause => {}
        }
        Ok(())
    });
    if bad.is_empty() { Ok(events) } else { Err(format!("{} bad, the first: {}", bad.len(), bad[0])) }
}

/// What is made of events in the feed's form, made once.
type Known = HashMap<String, Vec<(&'static str, Value)>>;

/// What is wrong with the reading of one form; and how many events were compared in full.
fn check(written: &Written, events: &[Value], known: &mut Known) -> (Vec<String>, usize) {
    let events: Vec<Value> = events.iter().filter(|event| (written.holds)(event)).cloned().collect();
    let read = match read_all(written.name, &(written.write)(&events)) {
        Ok(read) => read,
        Err(bad) => return (vec![bad], 0),
    };
    if read.len() != events.len() {
        return (vec![format!("{} events of {}", read.len(), events.len())], 0);
    }
    let (mut wrong, mut compared) = (Vec::new(), 0);
    for (event, read) in events.iter().zip(&read) {
        let text = std::str::from_utf8(&read.bytes).unwrap();
        if read.form != written.form {
            wrong.push(format!("is called {}", read.form));
        }
        let Some(kept) = (written.kept)(event) else {
            if forms::text(event, "Id") != forms::text(&serde_json::from_str(text).unwrap(), "Id") {
                wrong.push(format!("another Id: {text}"));
            }
            continue;
        };
        compared += 1;
        if !read.losses.is_empty() {
            wrong.push(format!("{:?} of {event}", read.losses));
        }
        let kept = kept.to_string();
        if kept == text {
            continue;
        }
        let expected = known.entry(kept.clone()).or_insert_with(|| made_of(&kept));
        for ((name, expected), (_, actual)) in expected.iter().zip(made_of(text)) {
            if *expected != actual {
                wrong.push(format!("another {name}: {}\n   of {text}\n   for {kept}", difference(expected, &actual)));
            }
        }
    }
    (wrong, compared)
}

#[test]
fn the_same_event_gives_the_same_record_in_every_form() {
    let events = events();
    assert!(events.len() > 200, "{}", events.len());
    let forms = forms::wrappers::forms().into_iter().chain(forms::powershell::forms()).chain(forms::tables::forms());
    let (mut failures, mut known) = (Vec::new(), Known::new());
    for written in forms {
        let (wrong, compared) = check(&written, &events, &mut known);
        eprintln!("{:4} compared, {:3} wrong: {}", compared, wrong.len(), written.name);
        failures.extend(wrong.iter().take(3).map(|wrong| format!("{}: {wrong}", written.name)));
        let is_identity_alone = events.iter().all(|event| (written.kept)(event).is_none());
        if compared < 20 && !is_identity_alone {
            failures.push(format!("{}: only {compared} events were compared", written.name));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn one_object_of_powershells_is_read_like_a_list_of_them() {
    let events = events();
    for event in events.iter().take(20) {
        for written in forms::powershell::forms().into_iter().filter(|written| (written.holds)(event)) {
            let (wrong, _) = check(&written, std::slice::from_ref(event), &mut Known::new());
            assert!(wrong.is_empty(), "{}: {}", written.name, wrong.join("\n"));
        }
    }
}

/// The one event of a text, and its native record.
fn one(text: &str) -> (ReadEvent, Value) {
    let mut events = read_all("case", text.as_bytes()).unwrap_or_else(|bad| panic!("{bad}: {text}"));
    assert_eq!(events.len(), 1, "{text}");
    let event = events.remove(0);
    let record = serde_json::from_str(&record(Format::Native, std::str::from_utf8(&event.bytes).unwrap())).unwrap();
    (event, record)
}

#[test]
fn what_an_export_wrote_in_other_words_gets_the_severity_and_rule_of_the_feeds_event() {
    const RULE: &str = r#"{"CreationTime":"2026-03-02T10:15:00","Id":"a","Operation":"New-InboxRule","RecordType":1,"UserId":"alex@contoso.example","Workload":"Exchange","Parameters":[{"Name":"Name","Value":"x"},{"Name":"ForwardTo","Value":"e@outside.example"}]}"#;
    let flat = RULE.replace(
        r#"[{"Name":"Name","Value":"x"},{"Name":"ForwardTo","Value":"e@outside.example"}]"#,
        r#"["@{Name=Name; Value=x}","@{Name=ForwardTo; Value=e@outside.example}"]"#,
    );
    let wrapped =
        |event: &str| format!(r#"{{"RecordType":"ExchangeAdmin","Operations":"New-InboxRule","AuditData":{event}}}"#);
    let table = "Id,CreationTime,Operation,RecordType,Workload,UserId,Param_Name,Param_ForwardTo\n\
                 a,3/2/2026 10:15:00 AM,New-InboxRule,ExchangeAdmin,Exchange,alex@contoso.example,x,e@outside.example\n";
    let dated = RULE.replace(r#""2026-03-02T10:15:00""#, r#"{"value":"\/Date(1772446500000)\/","DateTime":"Monday"}"#);
    for text in [RULE.to_owned(), wrapped(RULE), flat.clone(), wrapped(&flat), table.to_owned(), wrapped(&dated)] {
        let (event, record) = one(&text);
        let expected =
            (&Value::from("high"), &Value::from(["EX-01", "EX-05"].as_slice()), &Value::from("2026-03-02T10:15:00Z"));
        assert_eq!((&record["severity"], &record["severity_rule"], &record["timestamp"]), expected, "{text}");
        assert!(event.losses.is_empty(), "{text}");
    }
    let quarantine = r#"{"CreationTime":"2026-03-02T10:15:00","Id":"a","Operation":"QuarantineReleaseMessage","RecordType":"Quarantine","Workload":"Quarantine","UserId":"adm@contoso.example"}"#;
    let (_, by_name) = one(quarantine);
    let (_, by_number) = one(&quarantine.replace(r#""Quarantine","Workload""#, r#"65,"Workload""#));
    assert_eq!((&by_name["severity"], &by_name["record_type"]), (&"medium".into(), &65.into()));
    let without = |mut record: Value| {
        record.as_object_mut().map(|members| {
            members.remove("raw");
            members.clone()
        })
    };
    assert_eq!(without(by_name), without(by_number));
}

#[test]
fn what_powershell_cut_is_told_of() {
    for (parameters, lost) in [
        (r#""System.Object[]""#, "Parameters"),
        (r#"["@{Name=ForwardTo; Value=System.Object[]}"]"#, "Parameters[0].Value"),
        (r#"["@{Name=ForwardTo; Val"]"#, "Parameters[0]"),
    ] {
        let event = format!(
            r#"{{"CreationTime":"2026-03-02T10:15:00","Id":"a","Operation":"New-InboxRule","RecordType":1,"Parameters":{parameters}}}"#
        );
        for text in [
            event.clone(),
            format!(r#"[{{"AuditData":{event}}}]"#),
            serde_json::json!({"AuditData": event}).to_string(),
        ] {
            let (event, _) = one(&text);
            assert_eq!(event.losses.iter().map(|loss| loss.member.as_str()).collect::<Vec<_>>(), [lost], "{text}");
        }
    }
}

/// The most memory that `normalize` had resident while it read so many bytes of rows or lines.
#[cfg(all(feature = "cli", target_os = "linux"))]
fn peak_bytes(unit: &str, header: &str, bytes: usize) -> u64 {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    let mut program = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
    program.args(["normalize", "--format", "raw"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = program.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(header.as_bytes()).unwrap();
    let some = unit.repeat(64 * 1024 / unit.len());
    for _ in 0..bytes / some.len() {
        input.write_all(some.as_bytes()).unwrap();
    }
    // It waits for more, so that what it needed can be asked for.
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    drop(input);
    // The last page is not closed.
    assert!(matches!(child.wait().unwrap().code(), Some(0 | 65)));
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
#[cfg(all(feature = "cli", target_os = "linux"))]
fn memory_does_not_grow_with_the_file() {
    const MIB: usize = 1024 * 1024;
    let event = format!(
        r#"{{"CreationTime":"2026-03-02T10:15:00","Id":"a","Operation":"FileAccessed","RecordType":6,"ObjectId":"{}"}}"#,
        "x".repeat(4000)
    );
    let row = format!("a,2026-03-02T10:15:00Z,FileAccessed,\"{}\"\n", event.replace('"', "\"\""));
    for (unit, header) in [
        (format!("{event}\n"), ""),
        (row, "RecordId,CreationDate,Operation,AuditData\n"),
        (format!("{event},"), "{\"value\":["),
    ] {
        let few = peak_bytes(&unit, header, 6 * MIB);
        let many = peak_bytes(&unit, header, 18 * MIB);
        assert!(many < few + 6 * MIB as u64, "{header}: {few} bytes for 6 MiB, {many} for 18 MiB");
        assert!(many < 128 * MIB as u64, "{header}: {many} bytes");
    }
}

#[test]
fn the_page_names_every_form_and_what_it_cannot_carry() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/exports.md")).unwrap();
    for form in m365_audit::exports::form::Form::ALL {
        assert!(page.contains(&format!("| {form} | ")), "docs/exports.md does not name `{form}`");
    }
    let section = page.split("\n## What OfficeActivity keeps\n").nth(1).unwrap();
    let listed: BTreeSet<&str> = section.rsplit("\n\n").next().unwrap().split('`').skip(1).step_by(2).collect();
    let kept: BTreeSet<&str> = forms::tables::COLUMNS.iter().map(|(_, member)| *member).collect();
    assert_eq!(listed, kept);
}
