//! Agents that tail the file sink's lines, which are longer than most of them take: real ones, with the settings of
//! `examples/` and at their defaults. A test whose agent is not installed says so and passes.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use test_support::program;

use crate::agents::example;

/// Bytes of the lines' texts, in their order; the last is short and shows that the agent has come to the end.
const SIZES: [usize; 10] = [100, 9_000, 40_000, 70_000, 120_000, 350_000, 1_000_000, 4_000_000, 20_000_000, 200];
/// For a slow machine; nothing waits for it where all is well.
const PATIENCE: Duration = Duration::from_secs(240);

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let files = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(files.at("in")).unwrap();
        let mut text = Vec::new();
        for (n, size) in SIZES.iter().enumerate() {
            let timestamp = "2026-05-03T10:00:00Z";
            let line = serde_json::json!({"event_id": n.to_string(), "timestamp": timestamp, "raw": "x".repeat(*size)});
            writeln!(text, "{line}").unwrap();
        }
        fs::write(files.at("in/audit.ndjson"), text).unwrap();
        files
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The example with the folders of this test in the place of its own.
    fn config(&self, name: &str, folders: &[&str], change: &dyn Fn(String) -> String) -> PathBuf {
        let dir = self.dir.path().display().to_string();
        let mut text = change(example(name));
        text = text.replace("/var/log/m365/", &format!("{dir}/in/"));
        text = text.replace("/var/log/m365-out.ndjson", &format!("{dir}/m365-out.ndjson"));
        for folder in folders {
            assert!(text.contains(folder), "{name} has no {folder}");
            text = text.replace(folder, &dir);
        }
        let file = self.at(Path::new(name).file_name().unwrap().to_str().unwrap());
        fs::write(&file, text).unwrap();
        file
    }

    fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.at(name)).unwrap_or_default()).into_owned()
    }

    /// Numbers of the lines that came out whole, and how many did not.
    fn arrived(&self) -> (BTreeSet<usize>, usize) {
        let text = self.text("m365-out.ndjson");
        let mut broken = 0;
        let mut whole = BTreeSet::new();
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let record: Value = serde_json::from_str(line).unwrap_or_default();
            let number = record["event_id"].as_str().and_then(|id| id.parse::<usize>().ok());
            match (number, record["raw"].as_str()) {
                (Some(n), Some(raw)) if raw.len() == SIZES[n] => drop(whole.insert(n)),
                _ => broken += 1,
            }
        }
        (whole, broken)
    }
}

struct Agent(Child);

impl Agent {
    fn start(mut command: Command, log: &Path) -> Self {
        let log = fs::File::create(log).unwrap();
        let (out, err) = (log.try_clone().unwrap(), log);
        Self(command.stdin(Stdio::null()).stdout(out).stderr(err).spawn().unwrap())
    }

    /// Waits until `done`; the agent must live.
    #[track_caller]
    fn until(&mut self, files: &Files, what: &str, done: impl Fn() -> bool) {
        let begun = Instant::now();
        while !done() {
            let ended = self.0.try_wait().unwrap();
            let said = || files.text("log").chars().take(3000).collect::<String>();
            assert!(ended.is_none(), "{what}: the agent has ended: {ended:?}\n{}", said());
            assert!(begun.elapsed() < PATIENCE, "{what}: {:?}\n{}", files.arrived(), said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const LAST: usize = SIZES.len() - 1;

fn all() -> (BTreeSet<usize>, usize) {
    ((0..SIZES.len()).collect(), 0)
}

/// The lines up to so many bytes.
fn up_to(bytes: usize) -> BTreeSet<usize> {
    (0..SIZES.len()).filter(|n| SIZES[*n] <= bytes).collect()
}

#[test]
fn fluent_bit_reads_every_line_as_the_example_has_it_and_stops_at_the_first_long_one_by_default() {
    let Some(fluent_bit) = program("fluent-bit") else { return };
    let start = |files: &Files, change: &dyn Fn(String) -> String| {
        let folders = ["/var/lib/fluent-bit"];
        let change =
            |text: String| change(text.replace("path: /var/log\n", &format!("path: {}\n", files.dir.path().display())));
        let file = files.config("tail/fluent-bit.yaml", &folders, &change);
        let mut command = Command::new(&fluent_bit);
        command.arg("-c").arg(file);
        Agent::start(command, &files.at("log"))
    };
    let files = Files::new();
    let mut agent = start(&files, &|text| text);
    agent.until(&files, "every line", || files.arrived() == all());
    drop(agent);

    let without = |text: String| {
        let is_setting = |line: &&str| line.contains("buffer_chunk_size") || line.contains("buffer_max_size");
        assert_eq!(text.lines().filter(is_setting).count(), 2);
        text.lines().filter(|line| !is_setting(line)).map(|line| format!("{line}\n")).collect()
    };
    let files = Files::new();
    let mut agent = start(&files, &without);
    agent.until(&files, "its word that it stops", || files.text("log").contains("Skipping file"));
    agent.until(&files, "what came before", || files.arrived().0.len() >= 2);
    assert_eq!(files.arrived(), (BTreeSet::from([0, 1]), 0), "the page says it stops at the first line over 32 KiB");

    let skipping =
        |text: String| without(text).replace("      storage.type", "      skip_long_lines: on\n      storage.type");
    let files = Files::new();
    let mut agent = start(&files, &skipping);
    agent.until(&files, "the last line", || files.arrived().0.contains(&LAST));
    assert_eq!(files.arrived(), (up_to(9_000), 0), "the page says it drops longer lines");
}

#[test]
fn rsyslog_reads_every_line_as_the_example_has_it_and_cuts_long_ones_by_default() {
    let Some(rsyslogd) = program("rsyslog") else { return };
    let start = |files: &Files, change: &dyn Fn(String) -> String| {
        let file = files.config("rsyslog/rsyslog.conf", &["/var/spool/rsyslog"], change);
        let mut command = Command::new(&rsyslogd);
        command.arg("-n").arg("-f").arg(file).arg("-i").arg(files.at("pid"));
        Agent::start(command, &files.at("log"))
    };
    let files = Files::new();
    let mut agent = start(&files, &|text| text);
    agent.until(&files, "every line", || files.arrived() == all());
    drop(agent);
    let files = Files::new();
    let mut agent = start(&files, &|text| text.replace(" maxMessageSize=\"32m\"", ""));
    agent.until(&files, "the last line", || files.arrived().0.contains(&LAST));
    assert_eq!(files.arrived(), (up_to(8_000), SIZES.len() - up_to(8_000).len()), "the page says it cuts at 8 KiB");
}

#[test]
fn syslog_ng_reads_every_line_as_the_example_has_it_and_splits_long_ones_by_default() {
    let Some(syslog_ng) = program("syslog-ng") else { return };
    let start = |files: &Files, change: &dyn Fn(String) -> String| {
        let file = files.config("syslog-ng/syslog-ng.conf", &[], change);
        let mut command = Command::new(&syslog_ng);
        command.args(["-F", "--no-caps", "-f"]).arg(file).arg("-R").arg(files.at("persist"));
        command.arg("-p").arg(files.at("pid")).arg("-c").arg(files.at("ctl"));
        if let Some(modules) = std::env::var_os("SYSLOG_NG_MODULES") {
            command.arg("--module-path").arg(modules);
        }
        Agent::start(command, &files.at("log"))
    };
    let files = Files::new();
    let mut agent = start(&files, &|text| text);
    agent.until(&files, "every line", || files.arrived() == all());
    drop(agent);
    let files = Files::new();
    let mut agent = start(&files, &|text| text.replace("log-msg-size(32MiB);", ""));
    agent.until(&files, "the last line", || files.arrived().0.contains(&LAST));
    let (whole, parts) = files.arrived();
    assert_eq!(whole, up_to(64 * 1024), "the page says it splits at 64 KiB");
    assert!(parts > SIZES.len(), "{parts}");
}

#[test]
fn vector_reads_every_line_as_the_example_has_it_and_drops_long_ones_by_default() {
    let Some(vector) = program("vector") else { return };
    let start = |files: &Files, change: &dyn Fn(String) -> String| {
        let file = files.config("tail/vector.yaml", &["/var/lib/vector"], change);
        let mut command = Command::new(&vector);
        command.arg("--config").arg(file);
        Agent::start(command, &files.at("log"))
    };
    let files = Files::new();
    let mut agent = start(&files, &|text| text);
    agent.until(&files, "every line", || files.arrived() == all());
    drop(agent);
    let files = Files::new();
    let mut agent = start(&files, &|text| text.replace("    max_line_bytes: 33554432\n", ""));
    agent.until(&files, "the last line", || files.arrived().0.contains(&LAST));
    assert_eq!(files.arrived(), (up_to(100_000), 0), "the page says it drops lines over 100 KiB");
}

/// What each agent's setting is called where a page or an example has that agent tail the file.
const SETTINGS: [(&str, &str); 9] = [
    ("name: tail", "buffer_max_size: 32M"),
    ("type: file\n    # Renamed", "max_line_bytes: 33554432"),
    ("imfile", "maxMessageSize=\"32m\""),
    ("wildcard-file(", "log-msg-size(32MiB)"),
    ("program(\"m365", "log-msg-size(32MiB)"),
    ("type: filestream", "message_max_bytes: 33554432"),
    ("filelog:", "max_log_size: 32MiB"),
    ("LINE_BREAKER", "TRUNCATE = 33554432"),
    ("@type tail", "max_line_size"),
];

#[test]
fn every_example_that_tails_a_file_raises_the_limit_on_a_line() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/hosts/tail.md")).unwrap();
    let mut seen = BTreeSet::new();
    for folder in fs::read_dir(root.join("examples")).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        for file in fs::read_dir(folder.path()).unwrap().flatten().filter(|entry| entry.path().is_file()) {
            let text = fs::read_to_string(file.path()).unwrap_or_default();
            for (sign, setting) in SETTINGS.iter().filter(|(sign, _)| text.contains(sign)) {
                assert!(text.contains(setting), "{}: `{sign}` without `{setting}`", file.path().display());
                seen.insert(*sign);
            }
        }
    }
    assert_eq!(seen.len(), SETTINGS.len(), "{seen:?}");
    for (_, setting) in SETTINGS {
        assert!(page.contains(setting), "docs/hosts/tail.md does not have `{setting}`");
    }
}

#[test]
fn every_page_that_speaks_of_tailing_leads_to_the_settings() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec![root.join("README.md"), root.join("packaging/agent.toml"), root.join("examples/agent.toml")];
    for folder in ["docs", "docs/hosts"] {
        let files = fs::read_dir(root.join(folder)).unwrap().flatten().map(|entry| entry.path());
        pages.extend(files.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    let mut speaking = 0;
    for page in pages.iter().filter(|page| !page.ends_with("docs/hosts/tail.md")) {
        let text = fs::read_to_string(page).unwrap();
        // Where an agent reads our file; the rule tables and the benchmark of `tail` do not.
        let tails = ["tails the file", "tails files", "tail this file", "agent tails", "imfile", "wildcard-file"];
        if tails.iter().any(|words| text.contains(words)) {
            speaking += 1;
            assert!(text.contains("tail.md"), "{} speaks of tailing and not of the limits", page.display());
        }
        assert!(!text.contains("any agent can tail"), "{}: not any", page.display());
    }
    assert!(speaking >= 7, "{speaking}");
}
