//! `m365-audit report` as an operator runs it, beside a process that has the state open.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Output};

use m365_audit::checkpoint::format::{self, Keys, Position};
use m365_audit::host::{Expected, Op, StateStore};
use m365_audit::hosts::embedded::store::SqliteStore;
use m365_audit::model::{ContentType, Timestamp};
use serde_json::Value;

const TENANT: &str = "6f1d3a52-0d2e-4f7e-8a51-2b7c1d9e0a11";

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        let text = format!(
            "data_dir = {:?}\n[sources.contoso]\ntype = \"m365_audit\"\ntenant_id = \"{TENANT}\"\nclient_id = \"{TENANT}\"\nclient_secret = \"s\"\n\
             content_types = [\"Audit.Exchange\", \"DLP.All\"]\n[sinks.out]\ntype = \"stdout\"\ninputs = [\"contoso\"]\n",
            place.at("data")
        );
        fs::write(place.at("agent.toml"), text).unwrap();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
        command.arg("report").args(args.split_whitespace()).current_dir(self.dir.path()).output().unwrap()
    }

    fn well(&self, args: &str) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn badly(&self, args: &str, exit: i32, says: &str) {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(exit), "{args}: {}", said(&output));
        assert!(String::from_utf8_lossy(&output.stderr).contains(says), "{args}: {}", said(&output));
        assert!(output.stdout.is_empty(), "{args}");
    }

    /// Opens the state as a running process does, with a position an hour ago.
    async fn running(&self) -> SqliteStore {
        let state = SqliteStore::open(self.at("data")).unwrap();
        let ago = |hours| Timestamp::now() - jiff::SignedDuration::from_hours(hours);
        let mut position = Position::first(ago(72));
        position.complete_until = Some(ago(0));
        let key = Keys::of(&TENANT.parse().unwrap()).position(ContentType::Exchange);
        let put = Op::Put { key, value: format::encode(&position), expected: Expected::Absent };
        state.commit(vec![put]).await.unwrap();
        state
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn what_cannot_be_done_says_so_and_has_its_exit_code() {
    let place = Place::new();
    place.badly("-c nowhere.toml", 78, "nowhere.toml");
    place.badly("-c agent.toml", 73, "state-missing: ");
    let _running = place.running().await;
    place.badly("-c agent.toml --source adatum", 64, "usage: no source is named `adatum`; there are: contoso");
    place.badly("-c agent.toml --from 1d --to 2d", 64, "usage: the period is empty");
    place.badly("-c agent.toml --from 2999-01-01", 64, "usage: the period is empty");
    place.badly("-c agent.toml --from yesterday", 64, "`yesterday` is not a time");
    place.badly("-c agent.toml --format pdf", 64, "invalid value");
    place.badly(
        "-c agent.toml -o nowhere/report.html",
        73,
        "report-unwritable: the report cannot be written to `nowhere/report.html`",
    );
    assert!(!place.at("nowhere").exists());
}

#[tokio::test]
async fn a_report_is_made_in_each_form_beside_a_running_process_and_changes_nothing_of_its_state() {
    let place = Place::new();
    let running = place.running().await;
    let before = running.list("").await.unwrap();
    let shown = place.well("-c agent.toml");
    assert!(shown.starts_with("Completeness of the Microsoft 365 audit log\n"), "{shown}");
    assert!(shown.contains("nothing was sealed yet"), "{shown}");
    let row = shown.lines().find(|line| line.starts_with("    DLP.All ") && line.contains('|')).unwrap();
    assert!(row.contains(&"?".repeat(60)), "{shown}");
    let shown: Value =
        serde_json::from_str(&place.well("-c agent.toml --format json --from 3d --source contoso")).unwrap();
    assert_eq!((&shown["format"], &shown["tenants"][0]["tenant"]), (&1.into(), &TENANT.into()));
    assert_eq!(shown["tenants"][0]["days"][0]["counts"], Value::Null);
    assert_eq!(shown["tenants"][0]["streams"][0]["bar"][0]["state"], "complete");
    assert_eq!(shown["tenants"][0]["reconcile"]["state"], "none");
    assert!(place.well("-c agent.toml --format html").starts_with("<!DOCTYPE html>\n<html lang=\"en\">"));
    assert_eq!(running.list("").await.unwrap(), before);
    assert!(!place.at("data/receipts.key").exists() && !place.at("data/reconcile").exists());
}

#[tokio::test]
async fn a_file_is_written_whole_and_its_name_chooses_the_form_unless_that_is_said() {
    let place = Place::new();
    let _running = place.running().await;
    fs::write(place.at("old"), "before").unwrap();
    symlink("old", place.at("report.html")).unwrap();
    assert_eq!(place.well("-c agent.toml --format text -o report.html"), "");
    let written = fs::read_to_string(place.at("old")).unwrap();
    assert!(written.starts_with("Completeness"), "{written}");
    assert!(fs::symlink_metadata(place.at("report.html")).unwrap().is_symlink());
    assert_eq!(fs::metadata(place.at("old")).unwrap().permissions().mode() & 0o644, 0o644);
    place.well("-c agent.toml -o report.html");
    assert!(fs::read_to_string(place.at("old")).unwrap().starts_with("<!DOCTYPE html>"));
    place.well("-c agent.toml -o old");
    assert!(fs::read_to_string(place.at("old")).unwrap().starts_with("Completeness"));
    assert!(place.well("-c agent.toml -o -").starts_with("Completeness"));
    assert!(place.well("-c agent.toml -o /dev/stdout").starts_with("Completeness"));
    let mut names: Vec<_> = fs::read_dir(place.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["agent.toml", "data", "old", "report.html"], "nothing is left beside it");
}

#[tokio::test]
async fn the_verdict_that_reconcile_left_is_in_it_and_one_that_cannot_be_read_is_told() {
    let place = Place::new();
    let _running = place.running().await;
    fs::create_dir(place.at("data/reconcile")).unwrap();
    let verdict = format!(
        r#"{{"rows":7,"classes":{{"delivered":5,"missing":2}},"only_ours":0,"witness":{{"looks_cut":false,"why":[]}},"missing":[{{"id":"gone","time":"2026-11-30T10:00:00Z","operation":"Add"}}],"source":"contoso","tenant":"{TENANT}","made":"2026-11-30T10:00:00Z","between":null}}"#
    );
    fs::write(place.at("data/reconcile/contoso.json"), verdict).unwrap();
    let shown = place.well("-c agent.toml");
    assert!(shown.contains("2 of 7 rows of an export of Microsoft's audit search are missing here"), "{shown}");
    assert!(shown.contains("answer      not complete") && shown.contains("gone  Add"), "{shown}");
    fs::write(place.at("data/reconcile/contoso.json"), "{\"rows\":").unwrap();
    let shown = place.well("-c agent.toml");
    assert!(shown.contains("the verdict of the last comparison cannot be read: EOF"), "{shown}");
}

#[test]
fn the_demonstration_writes_its_report() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
    let output = command.args(["demo", "--fast", "--report", "r.html"]).current_dir(dir.path()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let page = fs::read_to_string(dir.path().join("r.html")).unwrap();
    assert!(page.contains("Tenant demo") && page.contains("Audit.SharePoint"), "{page}");
    let delivered: u64 = String::from_utf8_lossy(&output.stdout)
        .lines()
        .find_map(|line| line.strip_prefix("events ")?.trim().strip_suffix(" delivered")?.parse().ok())
        .unwrap();
    assert!(delivered > 300 && page.contains("Delivered by day"), "{}", said(&output));
}
