//! `m365-audit reconcile` as an operator runs it: beside a running process, with the exit codes that scripts rely on.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use m365_audit::clock::SystemClock;
use m365_audit::model::Timestamp;
use m365_audit::sim::{ExportForm, ExportSpec, GenerateSpec, Side, Sim, SimConfig};
use serde_json::Value;

const HOUR: Duration = Duration::from_secs(3600);
const TIME_MAX: Duration = Duration::from_secs(120);

struct Place {
    dir: tempfile::TempDir,
    sim: Sim,
    service: SimConfig,
}

impl Place {
    async fn new() -> Place {
        let service = SimConfig::default();
        let sim = Sim::start(service.clone(), SystemClock::new()).await.unwrap();
        let place = Place { dir: tempfile::tempdir().unwrap(), sim, service };
        let now = place.sim.now();
        let spec = GenerateSpec { late_rate: 0.0, ..GenerateSpec::new(20, 10, now - HOUR * 30, now - HOUR) };
        place.sim.generate(&place.service.tenants[0], spec);
        let source = |name: &str| {
            format!(
                "[sources.{name}]\ntype = \"m365_audit\"\ntenant_id = \"{tenant}\"\nclient_id = \"{client}\"\n\
                 client_secret = \"${{SECRET}}\"\nbackfill_secs = 604800\ndrop_routine = false\npoll_interval_secs = 1\n\
                 api_url = {url:?}\nauthority_url = {url:?}\n",
                tenant = place.service.tenants[0],
                client = place.service.client_id,
                url = place.sim.url(),
            )
        };
        let head = format!("data_dir = {:?}\n", place.at("data"));
        let sink = |inputs: &str| {
            format!("[sinks.file]\ntype = \"file\"\npath = {:?}\ninputs = [{inputs}]\n", place.at("out.ndjson"))
        };
        fs::write(place.at("agent.toml"), format!("{head}{}{}", source("tenant"), sink("\"tenant\""))).unwrap();
        let other = source("other").replace(place.service.tenants[0].as_str(), "22222222-2222-3333-4444-555555555555");
        let two = format!("{head}{}{other}{}", source("tenant"), sink("\"tenant\", \"other\""));
        fs::write(place.at("two.toml"), two).unwrap();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, config: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
        command.args(args.iter().take(1)).arg("-c").arg(self.at(config)).args(args.iter().skip(1));
        command.current_dir(self.dir.path()).env("SECRET", &self.service.client_secret).env("NO_PROXY", "*");
        command.stdin(Stdio::null());
        command
    }

    async fn run(&self, args: &[&str]) -> Output {
        let mut command = self.command("agent.toml", args);
        let done = tokio::task::spawn_blocking(move || command.output().unwrap());
        tokio::time::timeout(TIME_MAX, done).await.unwrap_or_else(|_| panic!("{args:?} hangs")).unwrap()
    }

    /// Writes an export of what the audit search has now; its file.
    fn export(&self, form: ExportForm) -> String {
        let file = self.sim.export(&self.service.tenants[0], &ExportSpec::new(form)).remove(0);
        fs::write(self.at(&file.name), file.bytes).unwrap();
        file.name
    }

    /// Everything the state holds, by the tool that reads it.
    async fn state(&self) -> String {
        let output = self.run(&["state", "show", "--json"]).await;
        String::from_utf8(output.stdout).unwrap()
    }
}

fn both(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", both(output)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_has_its_exit_code_and_is_kept_beside_the_state() {
    let place = Place::new().await;
    let tenant = &place.service.tenants[0];
    let missing = place.sim.withhold(tenant, Side::Feed, 2, 1);
    let output = place.run(&["run", "--once"]).await;
    assert!(output.status.success(), "{}", both(&output));
    let export = place.export(ExportForm::SearchJson);
    let before = place.state().await;

    let output = place.run(&["reconcile", "--settle", "0s", "--json", &export]).await;
    assert_eq!(output.status.code(), Some(75), "{}", both(&output));
    let verdict = json(&output);
    let found: Vec<&str> = verdict["missing"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    let (mut found, mut expected) = (found, missing.iter().map(String::as_str).collect::<Vec<_>>());
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected, "{verdict}");
    let sum: u64 = verdict["classes"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!((sum, verdict["classes"].as_object().unwrap().len()), (verdict["rows"].as_u64().unwrap(), 12));
    let kept: Value = serde_json::from_slice(&fs::read(place.at("data/reconcile/tenant.json")).unwrap()).unwrap();
    assert_eq!(kept, verdict);
    assert!(kept["made"].as_str().unwrap().parse::<Timestamp>().is_ok());
    assert_eq!(place.state().await, before, "the state is as it was");

    // Young events are no reason to worry yet, and records that were delivered say what only we have.
    let output = place.run(&["reconcile", "--json", &export]).await;
    assert_eq!(
        (output.status.code(), json(&output)["classes"]["missing"].as_u64()),
        (Some(0), Some(0)),
        "{}",
        both(&output)
    );
    let only_ours = place.sim.withhold(tenant, Side::Search, 3, 2);
    let export = place.export(ExportForm::PurviewCsv);
    let given = ["reconcile", "--delivered", "out.ndjson", "--json", &export];
    let verdict = json(&place.run(&given).await);
    assert_eq!(verdict["only_ours"].as_u64(), Some(only_ours.len() as u64), "{verdict}");

    // What cannot be read, what cannot be opened, what is cut.
    fs::write(
        place.at("bad.csv"),
        format!("{}nothing,,,,,\"{{\"\"x\",,\n", fs::read_to_string(place.at(&export)).unwrap()),
    )
    .unwrap();
    for (args, exit) in [
        (&["reconcile", "bad.csv"][..], 65),
        (&["reconcile", "none.csv"], 66),
        (&["reconcile", "--settle", "0s", "none.csv", &export], 66),
        (&["reconcile", "--delivered", "none.ndjson", &export], 66),
        (&["reconcile", "--settle", "soon", &export], 64),
        (&["reconcile"], 64),
        (&["reconcile", "--source", "nobody", &export], 64),
    ] {
        let output = place.run(args).await;
        assert_eq!(output.status.code(), Some(exit), "{args:?}: {}", both(&output));
    }
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, &fs::read(place.at(&export)).unwrap()).unwrap();
    fs::write(place.at("x.csv.gz"), packed.finish().unwrap()).unwrap();
    let verdict = json(&place.run(&["reconcile", "--json", "x.csv.gz", &export]).await);
    assert!(verdict["classes"]["repeated"].as_u64() >= verdict["rows"].as_u64().map(|rows| rows / 2), "{verdict}");

    // From a pipe.
    let mut command = place.command("agent.toml", &["reconcile", "--settle", "0s", "--json", "-"]);
    command.stdin(fs::File::open(place.at(&export)).unwrap());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert_eq!(json(&output)["missing"].as_array().unwrap().len(), 2, "{}", both(&output));

    // Where the verdict cannot be kept, that is said, and the exit code is still its own.
    fs::remove_dir_all(place.at("data/reconcile")).unwrap();
    fs::write(place.at("data/reconcile"), "in the way").unwrap();
    for (settle, exit) in [("0s", 75), ("72h", 73)] {
        let output = place.run(&["reconcile", "--settle", settle, &export]).await;
        assert_eq!(output.status.code(), Some(exit), "{settle}: {}", both(&output));
        assert!(both(&output).contains("reconcile-write-failed: "), "{}", both(&output));
    }

    let mut command = place.command("two.toml", &["reconcile", &export]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert_eq!(output.status.code(), Some(64), "{}", both(&output));
    assert!(both(&output).contains("other, tenant"), "{}", both(&output));
    place.sim.stop().await;
}

/// Beside a running process: it goes on as if nobody had looked.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_process_is_not_disturbed() {
    let place = Place::new().await;
    let log = fs::File::create(place.at("log")).unwrap();
    let child = place.command("agent.toml", &["run"]).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let mut child = Running(child);
    let begun = Instant::now();
    let is_done = || fs::read_to_string(place.at("out.ndjson")).unwrap_or_default().lines().count() >= 150;
    while !is_done() {
        assert!(begun.elapsed() < TIME_MAX, "{}", fs::read_to_string(place.at("log")).unwrap());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let export = place.export(ExportForm::SearchCsv);
    for _ in 0..3 {
        let output = place.run(&["reconcile", "--json", &export]).await;
        assert_eq!(output.status.code(), Some(0), "{}", both(&output));
    }
    assert!(child.0.try_wait().unwrap().is_none(), "it runs on");
    terminate(&child.0);
    assert!(child.0.wait().unwrap().success(), "{}", fs::read_to_string(place.at("log")).unwrap());
    // Every event once: nothing was read again, and nothing was forgotten.
    let records = fs::read_to_string(place.at("out.ndjson")).unwrap();
    let delivered: Vec<m365_audit::sim::Delivered> = records
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|record| m365_audit::sim::Delivered {
            raw: Vec::new(),
            id: record["event_id"].as_str().map(str::to_owned),
            ..Default::default()
        })
        .filter(|delivered| delivered.id.is_some())
        .collect();
    let comparison = place.sim.truth().compare(delivered);
    assert!(comparison.duplicated.is_empty(), "{comparison}");
    assert!(!fs::read_to_string(place.at("log")).unwrap().contains("state-conflict"));
    place.sim.stop().await;
}

/// A process that ends with its test.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks a process to end.
fn terminate(child: &std::process::Child) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
}

/// As in an image whose root is read-only and that has no `/tmp`.
#[test]
fn a_folder_for_temporary_files_that_cannot_be_used_is_named_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let gone = dir.path().join("gone");
    let mut demo = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
    let output = demo.arg("demo").env("TMPDIR", &gone).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(70), "{said}");
    let named = format!("io: no temporary file can be used in `{}`: ", gone.display());
    assert!(said.contains(&named) && said.contains("hint: set TMPDIR") && !said.contains("bug"), "{said}");
}
