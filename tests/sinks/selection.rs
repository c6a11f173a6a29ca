//! What goes where, as an operator has it: the whole program with a simulated tenant, one sink that gets everything and
//! others that get a part of it or nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use m365_audit::clock::SystemClock;
use m365_audit::sim::Sim;
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::truth::{Received, assert_nothing_lost, compare, source_table, tenant};
use crate::{http, tls};

/// Nothing here takes nearly so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the sinks of one run are, and where they write.
struct Desk {
    dir: tempfile::TempDir,
    sim: Sim,
    config: PathBuf,
}

impl Desk {
    /// An archive, a file that gets everything, beside `sinks`.
    async fn new(sinks: &str) -> Self {
        let (sim, tenant) = tenant(SystemClock::new(), 10, 20).await;
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "data_dir = {:?}\n[sources.s]\n{}max_requests_per_minute = 0\npoll_interval_secs = 1\n\
             [sinks.archive]\ntype = \"file\"\npath = {:?}\ninputs = [\"s\"]\n{sinks}",
            dir.path().join("state"),
            source_table(&sim, &tenant),
            dir.path().join("archive.ndjson"),
        );
        let config = dir.path().join("agent.toml");
        std::fs::write(&config, text).unwrap();
        Self { dir, sim, config }
    }

    fn program(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
        command.args(args).arg("-c").arg(&self.config).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    fn start(&self) -> Child {
        self.program(&["run"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// One pass, to its end.
    async fn pass(&self) {
        let output = self.program(&["run", "--once"]).output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{text}");
    }

    fn lines(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// How far each content type is complete, by `state show`.
    async fn positions(&self) -> String {
        let output = self.program(&["state", "show"]).output().await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

fn file(dir: &str, keys: &str) -> String {
    format!("[sinks.{dir}]\ntype = \"file\"\npath = \"DIR/{dir}.ndjson\"\ninputs = [\"s\"]\n{keys}\n")
}

/// The texts of the original events, how often each.
fn originals(records: &[Value]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for record in records {
        *counts.entry(record["raw"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    counts
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_sink_gets_what_it_asks_for_and_the_archive_gets_all() {
    let desk = Desk::new("").await;
    let sinks = [
        file("high", "min_severity = \"medium\""),
        file("mail", "categories = [\"email\", \"identity\"]"),
        file("rules", "event_types = [\"M365.Exchange.*\", \"*.userloggedin\"]"),
        file("both", "min_severity = \"low\"\ncategories = [\"file\"]"),
    ];
    let text = std::fs::read_to_string(&desk.config).unwrap()
        + &sinks.concat().replace("DIR", &desk.dir.path().display().to_string());
    std::fs::write(&desk.config, text).unwrap();
    desk.pass().await;
    let all = desk.lines("archive.ndjson");
    assert!(compare(&desk.sim, all.clone()).is_clean());
    let severity =
        |record: &Value| ["info", "low", "medium", "high", "critical"].iter().position(|s| record["severity"] == *s);
    let category = |record: &Value, names: &[&str]| names.iter().any(|name| record["category"] == *name);
    let event_type = |record: &Value| record["event_type"].as_str().unwrap().to_owned();
    type Wanted<'w> = (&'w str, &'w dyn Fn(&Value) -> bool);
    let wanted: [Wanted<'_>; 4] = [
        ("high", &|record| severity(record) >= Some(2)),
        ("mail", &|record| category(record, &["email", "identity"])),
        ("rules", &|record| {
            event_type(record).starts_with("m365.exchange.") || event_type(record).ends_with(".userloggedin")
        }),
        ("both", &|record| severity(record) >= Some(1) && category(record, &["file"])),
    ];
    for (name, is_wanted) in wanted {
        let expected: Vec<Value> = all.iter().filter(|record| is_wanted(record)).cloned().collect();
        let got = desk.lines(&format!("{name}.ndjson"));
        assert!(!got.is_empty() && got.len() < all.len(), "{name}: {} of {}", got.len(), all.len());
        assert_eq!(originals(&got), originals(&expected), "{name}");
    }
    desk.sim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_gets_nothing_holds_nothing_back_even_when_its_receiver_is_away() {
    // Nobody listens there, and nobody is asked.
    let nobody = tls::Kind::Http.table("http", "127.0.0.1:1", "event_types = [\"m365.nothing.at_all\"]");
    let desk = Desk::new(&format!("[sinks.nobody]\ninputs = [\"s\"]\n{nobody}")).await;
    let before = desk.positions().await;
    desk.pass().await;
    assert!(compare(&desk.sim, desk.lines("archive.ndjson")).is_clean());
    assert_ne!(desk.positions().await, before);
    // Everything is known: a second pass delivers nothing.
    desk.pass().await;
    assert!(compare(&desk.sim, desk.lines("archive.ndjson")).is_clean());
    desk.sim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_nothing_at_any_sink_and_give_none_what_is_not_for_it() {
    let (port, siem) = http::taking().await;
    let keys = "min_severity = \"medium\"\nbatch_records_max = 3\nbatch_age_secs = 0";
    let table = tls::Kind::Http.table("http", &format!("127.0.0.1:{port}"), keys);
    let desk = Desk::new(&format!("[sinks.siem]\ninputs = [\"s\"]\n{table}")).await;
    for _ in 0..4 {
        let mut running = desk.start();
        let so_far = siem.count();
        until("the SIEM gets more, or all", || siem.count() > so_far || is_complete(&desk, &siem)).await;
        running.kill().await.unwrap();
    }
    let running = desk.start();
    until("all have arrived", || is_complete(&desk, &siem)).await;
    drop(running);
    assert_nothing_lost(&compare(&desk.sim, desk.lines("archive.ndjson")));
    assert!(siem.all().iter().all(|record| record["severity"] != "info" && record["severity"] != "low"));
    desk.sim.stop().await;
}

/// Whether the archive has everything, and the SIEM everything that is for it.
fn is_complete(desk: &Desk, siem: &Received) -> bool {
    // A line may be half written.
    let text = std::fs::read_to_string(desk.dir.path().join("archive.ndjson")).unwrap_or_default();
    let archive: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let high = archive.iter().filter(|record| record["severity"] != "info" && record["severity"] != "low");
    let (high, got) = (originals(&high.cloned().collect::<Vec<_>>()), originals(&siem.all()));
    compare(&desk.sim, archive).lost.is_empty() && high.keys().all(|text| got.contains_key(text))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_over_the_bound_is_set_aside_alone_and_retried_when_the_bound_is_raised() {
    let (port, received) = http::taking().await;
    let table = |bound: usize| {
        let keys = format!("record_bytes_max = {bound}");
        format!("[sinks.out]\ninputs = [\"s\"]\n{}", tls::Kind::Http.table("http", &format!("127.0.0.1:{port}"), &keys))
    };
    let desk = Desk::new("").await;
    let text = std::fs::read_to_string(&desk.config).unwrap();
    // The middle of the sizes, so that there are some on either side.
    desk.pass().await;
    let sizes = || -> Vec<usize> {
        let text = std::fs::read_to_string(desk.dir.path().join("archive.ndjson")).unwrap();
        text.lines().map(str::len).collect()
    };
    let all = sizes().len();
    let mut sizes_in_order = sizes();
    sizes_in_order.sort_unstable();
    let bound = sizes_in_order[all / 2].max(1024);
    std::fs::remove_dir_all(desk.dir.path().join("state")).unwrap();
    std::fs::remove_file(desk.dir.path().join("archive.ndjson")).unwrap();
    std::fs::write(&desk.config, text.clone() + &table(bound)).unwrap();
    desk.pass().await;

    let large = sizes().into_iter().filter(|bytes| *bytes > bound).count();
    assert!(large > 0 && large < all, "{large} of {all}");
    assert_eq!(received.count(), all - large);
    let retry = |exit: i32, said: String| {
        let mut command = desk.program(&["state", "retry"]);
        async move {
            let output = command.output().await.unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            assert_eq!(output.status.code(), Some(exit), "{text}");
            assert!(text.starts_with(&said), "{text}");
            text
        }
    };
    let text_of_retry = retry(75, format!("s: 0 delivered, {large} still set aside\n")).await;
    assert_eq!(text_of_retry.matches(&format!("`record_bytes_max` of the sink is {bound}")).count(), large);
    std::fs::write(&desk.config, text + &table(1 << 30)).unwrap();
    retry(0, format!("s: {large} delivered, 0 still set aside\n")).await;
    assert_nothing_lost(&compare(&desk.sim, received.all()));
    desk.sim.stop().await;
}

#[test]
fn names_that_do_not_exist_are_a_problem_with_a_suggestion() {
    let dir = tempfile::tempdir().unwrap();
    let validate = |keys: &str| {
        let text = format!(
            "[sources.s]\ntype = \"m365_audit\"\nclient_secret = \"x\"\nclient_id = \"11111111-2222-3333-4444-555555555555\"\n\
             tenant_id = \"11111111-2222-3333-4444-666666666666\"\n[sinks.out]\ninputs = [\"s\"]\ntype = \"stdout\"\n{keys}\n"
        );
        let config: &Path = &dir.path().join("agent.toml");
        std::fs::write(config, text).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_m365-audit"));
        let output = command.args(["validate", "-c"]).arg(config).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (keys, said) in [
        (
            "min_severity = \"hihg\"",
            "`sinks.out.min_severity` is `hihg`, expected one of `info`, `low`, `medium`, `high`, `critical`",
        ),
        ("min_severity = \"hihg\"", "hint: nearest: `high`"),
        ("categories = [\"file\", \"emial\"]", "`sinks.out.categories[1]` is `emial`"),
        ("categories = [\"emial\"]", "hint: nearest: `email`"),
        ("categories = []", "`sinks.out.categories` is `[]`"),
        ("event_types = [\"New-InboxRule\"]", "hint: write `m365.*.new_inboxrule`"),
        ("record_bytes_max = 10", "an integer from 1024 to 1073741824"),
        ("min_severty = \"high\"", "hint: nearest known key: `min_severity`"),
    ] {
        let (exit, text) = validate(keys);
        assert_eq!(exit, Some(78), "{keys}: {text}");
        assert!(text.contains(said), "{keys}: {text}");
    }
    let good = "min_severity = \"high\"\ncategories = [\"dlp\"]\nevent_types = [\"m365.*.dlprulematch\"]\nrecord_bytes_max = 65536";
    assert_eq!(validate(good), (Some(0), String::new()));
}
