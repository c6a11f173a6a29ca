//! The canonical key as `docs/receipts.md` defines it: its test vectors, and a second hand that computes it.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use m365_audit::normalise::{Event, canonical_key};

fn root(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Key and event of each vector of the page.
fn vectors() -> Vec<(String, String)> {
    let page = fs::read_to_string(root("docs/receipts.md")).unwrap();
    let block = page.split("```text\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    block.lines().map(|line| line.split_once(' ').unwrap()).map(|(key, event)| (key.into(), event.into())).collect()
}

fn key_of(event: &str) -> String {
    canonical_key(&Event::parse(event.as_bytes()).unwrap()).map_or_else(|| "none".to_owned(), |key| key.to_string())
}

#[test]
fn the_vectors_of_the_page_are_what_is_computed() {
    let vectors = vectors();
    assert!(vectors.len() >= 8);
    let wrong: Vec<String> = vectors
        .iter()
        .filter(|(key, event)| key_of(event) != *key)
        .map(|(_, event)| format!("{} {event}", key_of(event)))
        .collect();
    assert!(wrong.is_empty(), "the key never changes; computed:\n{}", wrong.join("\n"));
}

/// Events in every text that their identity is known to have.
fn events() -> Vec<String> {
    let mut events: Vec<String> = vectors().into_iter().map(|(_, event)| event).collect();
    for entry in fs::read_dir(root("tests/fixtures/records")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        // Not the expected records beside them, nor what is written to be read in odd ways.
        if name.matches('.').count() == 1 && name != "irregular.ndjson" {
            events.extend(fs::read_to_string(&path).unwrap().lines().map(str::to_owned));
        }
    }
    for time in [
        "2026-07-17T08:28:17",
        "2026-07-17 08:28:17",
        "2026-07-17T08:28:17.9990000Z",
        "2026-07-17T01:28:17-07:00",
        "2016-12-31T23:59:60Z",
        "2026-02-30T00:00:00",
    ] {
        for record_type in ["65", "\"65\"", "\"Quarantine\"", "\"quarantine\"", "\"NobodyKnows\""] {
            events.push(format!(
                r#"{{"Id":"AA-bb","RecordType":{record_type},"CreationTime":"{time}","Operation":"Größe ","RecordNumber":7}}"#
            ));
        }
    }
    events
}

#[test]
fn fifty_lines_of_python_compute_the_same_keys() {
    let script = root("tests/library/canonical_key.py");
    assert!(fs::read_to_string(&script).unwrap().lines().count() <= 50, "the page promises fifty lines");
    let Some(python) = test_support::program("python3") else { return };
    let mut python = Command::new(python)
        .arg(&script)
        .arg(root("src/normalise/record_types.csv"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let events = events();
    assert!(events.len() > 50);
    let mut stdin = python.stdin.take().unwrap();
    let input = events.join("\n") + "\n";
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = python.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    let keys = String::from_utf8(output.stdout).unwrap();
    let keys: Vec<&str> = keys.lines().collect();
    assert_eq!(keys.len(), events.len());
    for (event, key) in events.iter().zip(keys) {
        assert_eq!(key, key_of(event), "{event}");
    }
}
