//! The operator's commands beside a running process and without one: the real binary, a real state store, a simulated
//! tenant.
#![cfg(target_os = "linux")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use m365_audit::clock::SystemClock;
use m365_audit::model::{ContentType, Timestamp};
use m365_audit::sim::{
    CallKind, Delivered, ExportForm, ExportSpec, GenerateSpec, Sim, SimConfig, SimFault, SubscriptionState,
};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// A command that takes longer hangs.
const TIME_MAX: Duration = Duration::from_secs(120);
const HOUR: Duration = Duration::from_secs(3600);

struct Place {
    dir: tempfile::TempDir,
    sim: Sim,
    service: SimConfig,
}

impl Place {
    /// One stream of a tenant with `blobs` blobs of the last `hours`; the first run begins `backfill_secs` ago.
    async fn new(blobs: usize, hours: u32, backfill_secs: u32, more: &str) -> Self {
        let service = SimConfig::default();
        let sim = Sim::start(service.clone(), SystemClock::new()).await.unwrap();
        for content_type in ContentType::ALL {
            sim.set_subscription(&service.tenants[0], content_type, SubscriptionState::Enabled);
        }
        let place = Self { dir: tempfile::tempdir().unwrap(), sim, service };
        let now = place.sim.now();
        place.publish(blobs, now - HOUR * hours, now - Duration::from_secs(420));
        let url = place.sim.url();
        let text = format!(
            "data_dir = {data:?}\n[sources.tenant]\ntype = \"m365_audit\"\ntenant_id = \"{tenant}\"\nclient_id = \"{client}\"\n\
             client_secret = \"${{SECRET}}\"\ncontent_types = [\"Audit.Exchange\"]\nbackfill_secs = {backfill_secs}\n\
             drop_routine = false\nmask_detected_values = false\npoll_interval_secs = 1\napi_url = {url:?}\n\
             authority_url = {url:?}\ngraph_url = {url:?}\n{more}\n[sinks.file]\ntype = \"file\"\npath = {out:?}\ninputs = [\"tenant\"]\n",
            data = place.at("data"),
            tenant = place.service.tenants[0],
            client = place.service.client_id,
            out = place.at("out.ndjson"),
        );
        fs::write(place.at("agent.toml"), text).unwrap();
        place
    }

    fn publish(&self, blobs: usize, from: Timestamp, to: Timestamp) {
        let spec = GenerateSpec {
            late_rate: 0.0,
            content_types: vec![ContentType::Exchange],
            ..GenerateSpec::new(blobs, 5, from, to)
        };
        self.sim.generate(&self.service.tenants[0], spec);
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
        command.args(args).arg("-c").arg(self.at("agent.toml"));
        command.env("SECRET", &self.service.client_secret).env("NO_PROXY", "*").stdin(Stdio::null());
        command
    }

    fn start(&self) -> Process {
        let log = fs::File::options().create(true).append(true).open(self.at("log")).unwrap();
        let child = self.command(&["run"]).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Process(child)
    }

    /// Runs a command to its end.
    async fn run(&self, args: &[&str]) -> Output {
        let mut command = self.command(args);
        let done = tokio::task::spawn_blocking(move || command.output().unwrap());
        tokio::time::timeout(TIME_MAX, done).await.unwrap_or_else(|_| panic!("{args:?} hangs")).unwrap()
    }

    async fn run_well(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        assert!(output.status.success(), "{args:?}: {}{}", text(&output), self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that fails with this exit code and slug.
    async fn run_badly(&self, args: &[&str], exit: i32, slug: &str) -> String {
        let output = self.run(args).await;
        let said = text(&output);
        assert_eq!(output.status.code(), Some(exit), "{args:?}: {said}");
        assert!(said.contains(slug), "{args:?}: {said}");
        said
    }

    fn log(&self) -> String {
        fs::read_to_string(self.at("log")).unwrap_or_default()
    }

    fn records(&self) -> Vec<String> {
        fs::read_to_string(self.at("out.ndjson")).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    fn delivered(&self) -> Vec<Delivered> {
        #[derive(Deserialize)]
        struct Native<'a> {
            #[serde(borrow)]
            raw: Option<&'a RawValue>,
        }
        let mut out = Vec::new();
        for line in self.records() {
            let native: Native = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
            out.extend(native.raw.map(|raw| Delivered::from(raw.get())));
        }
        out
    }

    fn gaps(&self) -> Vec<Value> {
        let all = self.records().into_iter().map(|line| serde_json::from_str::<Value>(&line).unwrap());
        all.filter(|record| record["event_type"] == "m365_audit.gap").collect()
    }

    async fn stream(&self) -> Value {
        let shown = self.run_well(&["state", "show", "--json"]).await;
        serde_json::from_str::<Value>(&shown).unwrap()[0].clone()
    }

    async fn position(&self) -> (Timestamp, Option<Timestamp>) {
        let stream = self.stream().await;
        let time = |name: &str| stream[name].as_str().map(|t| t.parse::<Timestamp>().unwrap());
        (time("origin").unwrap(), time("complete_until"))
    }

    /// Waits for `done`.
    async fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !done() {
            assert!(begun.elapsed() < TIME_MAX, "not within {TIME_MAX:?}: {what}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the position stands within ten minutes of now.
    async fn until_complete(&self) {
        let begun = Instant::now();
        loop {
            let output = self.run(&["state", "show", "--json"]).await;
            let shown = serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default();
            let complete = shown[0]["complete_until"].as_str().and_then(|t| t.parse::<Timestamp>().ok());
            if complete.is_some_and(|complete| complete > self.sim.now() - Duration::from_secs(600)) {
                return;
            }
            assert!(begun.elapsed() < TIME_MAX, "the position does not come near now: {shown}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

struct Process(Child);

impl Process {
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    async fn stop(mut self, place: &Place) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").arg(&pid).status().unwrap().success());
        place.until("the process ends", || self.0.try_wait().unwrap().is_some()).await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Beside a running process that goes on reading: what was never read comes, nothing comes twice, and the position
/// goes its own way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backfill_inside_a_running_process_loses_and_repeats_nothing_and_leaves_the_position_alone() {
    let place = Place::new(60, 30, 6 * 3600, "").await;
    let running = place.start();
    place.until_complete().await;
    let before = place.position().await;
    let first = place.delivered().len();
    assert!(!place.sim.truth().compare(place.delivered()).lost.is_empty(), "older blobs are not read by the run");

    let publishing = async {
        for _ in 0..10 {
            let now = place.sim.now();
            place.publish(2, now - Duration::from_secs(60), now);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let (said, ()) = tokio::join!(place.run_well(&["backfill", "--from", "30h"]), publishing);
    assert!(said.contains("delivered before"), "{said}");
    place.until("new events are read, too", || place.sim.truth().compare(place.delivered()).lost.is_empty()).await;
    assert!(place.delivered().len() > first);
    let after = place.position().await;
    assert_eq!(after.0, before.0, "the origin stays");
    assert!(after.1 >= before.1, "the position does not move back: {before:?} {after:?}");
    running.stop(&place).await;
    let compared = place.sim.truth().compare(place.delivered());
    assert!(compared.is_clean(), "{compared}");

    // A second time there is nothing to deliver, and without a process it works as well.
    let said = place.run_well(&["backfill", "--from", "30h"]).await;
    assert!(said.contains(" 0 events delivered"), "{said}");
    let compared = place.sim.truth().compare(place.delivered());
    assert!(compared.is_clean(), "{compared}");
    assert_eq!(place.position().await.0, before.0, "the origin stays");
}

/// What lies before the first start, through Microsoft Graph: inside the running process, then alone, where nothing is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heal_fills_a_range_inside_a_running_process_and_alone_and_repeats_nothing() {
    let place = Place::new(40, 60, 3600, "").await;
    place.sim.configure(|config| config.graph.query_secs = 1);
    let running = place.start();
    place.until_complete().await;
    let before = place.position().await;
    let range = ["heal", "--from", "50h", "--to", "4h"];
    let said = place.run_well(&[&range[..], &["--dry-run"]].concat()).await;
    assert!(said.contains("it would take 2 searches") && said.contains("200 may still"), "{said}");
    let from_graph = || place.records().iter().filter(|line| line.contains("\"origin\":\"graph\"")).count();
    assert_eq!(from_graph(), 0);
    let said = place.run_well(&range).await;
    let brought = from_graph();
    assert!(brought > 50 && said.contains(&format!("{brought} events delivered")), "{brought}: {said}");
    running.stop(&place).await;
    let said = place.run_well(&range).await;
    assert!(said.contains(" 0 events delivered"), "{said}");
    assert_eq!(from_graph(), brought);
    assert_eq!(place.position().await.0, before.0, "the origin stays");
    let duplicated = place.sim.truth().compare(place.delivered()).duplicated;
    assert!(duplicated.is_empty(), "{duplicated:?}");

    as_normalize_and_explain_read_it(&place).await;
    place.run_badly(&["heal", "--from", "1h", "--to", "2h"], 64, "heal-range").await;
    place.run_badly(&["heal", "--from", "9h", "--content-type", "DLP.All"], 64, "heal-type-not-read").await;
    place.sim.configure(|config| config.graph.roles.clear());
    place.run_badly(&["heal", "--from", "200h", "--to", "100h"], 76, "graph-permission-missing").await;
}

/// `normalize` and `explain` make of saved pages of Graph what was healed of them: the same records, by the same code.
async fn as_normalize_and_explain_read_it(place: &Place) {
    let spec = ExportSpec { page_rows: 40, ..ExportSpec::new(ExportForm::GraphPages) };
    fs::create_dir(place.at("graph")).unwrap();
    for file in place.sim.export(&place.service.tenants[0], &spec) {
        fs::write(place.at("graph").join(file.name), file.bytes).unwrap();
    }
    let reads = |command: &str| {
        let mut reads = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
        reads.arg(command).arg(place.at("graph")).stdin(Stdio::null());
        tokio::task::spawn_blocking(move || reads.output().unwrap())
    };
    let normalized = reads("normalize").await.unwrap();
    let by_id = |lines: &str| -> BTreeMap<String, Value> {
        let records = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        records.filter_map(|record| Some((record["event_id"].as_str()?.to_owned(), record))).collect()
    };
    let normalized_records = by_id(&String::from_utf8(normalized.stdout).unwrap());
    let healed = by_id(&place.records().join("\n"));
    let healed = healed.iter().filter(|(_, record)| record["origin"] == "graph");
    let explained = String::from_utf8(reads("explain").await.unwrap().stdout).unwrap();
    let mut compared = 0;
    for (id, healed) in healed {
        let normalized = normalized_records.get(id).unwrap_or_else(|| panic!("{id} is not normalized"));
        let members: BTreeSet<&String> =
            healed.as_object().unwrap().keys().chain(normalized.as_object().unwrap().keys()).collect();
        let differ: Vec<_> = members.into_iter().filter(|name| healed[*name] != normalized[*name]).collect();
        assert_eq!(differ, ["content_type", "origin"], "{healed:#}\n{normalized:#}");
        assert!(explained.contains(healed["severity"].as_str().unwrap()), "{explained}");
        compared += 1;
    }
    assert!(compared > 50, "{compared}");
}

/// Around duplicate removal every event of the range comes exactly once more.
/// Nothing ever ran here, so no subscription is on: the back-fill starts what is missing, once, and reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backfill_before_the_first_run_starts_what_is_missing_and_nothing_else() {
    let place = Place::new(20, 20, 3600, "").await;
    let tenant = place.service.tenants[0].clone();
    for content_type in ContentType::ALL {
        place.sim.set_subscription(&tenant, content_type, SubscriptionState::Absent);
    }
    let said = place.run_well(&["backfill", "--from", "21h"]).await;
    assert!(said.contains("the subscription to `Audit.Exchange` was off and has been started"), "{said}");
    let calls = |kind: CallKind| place.sim.requests().into_iter().filter(|r| r.kind == kind).collect::<Vec<_>>();
    let starts: Vec<_> = calls(CallKind::Start).into_iter().map(|r| r.content_type).collect();
    assert_eq!(starts, [Some("Audit.Exchange".to_owned())], "one start, of the type the source reads");
    let first = place.sim.requests().into_iter().find(|r| r.kind != CallKind::Token).map(|r| r.kind);
    assert_eq!(first, Some(CallKind::List), "the list comes first");
    let compared = place.sim.truth().compare(place.delivered());
    assert!(compared.is_clean(), "{compared}");

    // Disabled in between, within the 15 minutes: said, with the wait, and no second start.
    place.sim.set_subscription(&tenant, ContentType::Exchange, SubscriptionState::Disabled);
    let said = place.run_badly(&["backfill", "--from", "20h"], 75, "allows a start every 15 minutes").await;
    assert!(said.contains("run the same command again in "), "{said}");
    assert_eq!(calls(CallKind::Start).len(), 1);
}

/// A subscription that was off has nothing from before: that is said and not called done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backfill_that_starts_a_subscription_says_what_it_will_never_have() {
    let place = Place::new(0, 20, 3600, "").await;
    place.sim.set_subscription(&place.service.tenants[0], ContentType::Exchange, SubscriptionState::Absent);
    let said = place.run_badly(&["backfill", "--from", "21h"], 75, "not listed by Microsoft").await;
    assert!(said.contains("what became available while it was off is never listed"), "{said}");
    // The permission for the one type that is missing: named, with its remedy.
    place.sim.faults().next(CallKind::Start, u32::MAX, SimFault::PermissionMissing);
    place.sim.set_subscription(&place.service.tenants[0], ContentType::Exchange, SubscriptionState::Absent);
    fs::remove_dir_all(place.at("data")).unwrap();
    let said = place.run_badly(&["backfill", "--from", "21h"], 75, "api-permission-missing").await;
    assert!(said.contains("hint: grant `ActivityFeed.Read`"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backfill_with_again_delivers_each_event_once_more() {
    let place = Place::new(30, 20, 20 * 3600, "").await;
    let running = place.start();
    place.until_complete().await;
    assert!(place.sim.truth().compare(place.delivered()).is_clean());
    let once = place.delivered().len();
    place.run_well(&["backfill", "--from", "21h", "--again"]).await;
    let compared = place.sim.truth().compare(place.delivered());
    assert_eq!((place.delivered().len(), compared.duplicated.len()), (2 * once, once), "{compared}");
    // And once more for another back-fill, then never again by itself.
    place.run_well(&["backfill", "--from", "21h", "--again"]).await;
    assert_eq!(place.delivered().len(), 3 * once);
    place.run_well(&["backfill", "--from", "21h"]).await;
    assert_eq!(place.delivered().len(), 3 * once);
    running.stop(&place).await;
}

/// Killed client, killed process, resumed alone: it goes on where it was and repeats no request it need not repeat.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_backfill_goes_on_where_it_was() {
    let place = Place::new(120, 48, 3600, "max_requests_per_minute = 1200").await;
    let running = place.start();
    place.until_complete().await;
    let from = (place.sim.now() - 48 * HOUR).to_string();
    let arguments = ["backfill", "--from", &from];
    let blobs = || place.sim.requests().iter().filter(|r| r.kind == CallKind::Blob).count();
    let remaining = async || place.stream().await["backfill"].as_str().map(str::to_owned);

    // Slow enough to be met under way.
    place.sim.faults().rate(CallKind::Blob, 1.0, SimFault::Slow(Duration::from_millis(100)));
    // The client dies: the back-fill stops, its position stays.
    let mut client = place.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let before = blobs();
    place.until("some blobs are read", || blobs() > before + 3).await;
    client.kill().unwrap();
    client.wait().unwrap();
    let begun = Instant::now();
    let mut last = blobs();
    loop {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let now = blobs();
        if now == last {
            break;
        }
        last = now;
        assert!(begun.elapsed() < TIME_MAX, "it does not stop");
    }
    let left = remaining().await.expect("it is not done");
    place.run_badly(&["backfill", "--from", "5h"], 64, "backfill-unfinished").await;

    // Goes on; the process dies.
    let mut client = place.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while remaining().await.as_ref() == Some(&left) {
        assert!(begun.elapsed() < TIME_MAX, "it does not come further");
    }
    running.kill();
    let status = client.wait().unwrap();
    assert_eq!(status.code(), Some(73), "the client says that the process went away");
    assert_ne!(remaining().await.expect("it is not done"), left, "it came further");
    place.sim.faults().clear();

    // Alone, by the same command.
    let said = place.run_well(&arguments).await;
    assert!(said.contains(" events delivered"), "{said}");
    assert_eq!(remaining().await, None);
    place.run_well(&["run", "--once"]).await;
    let compared = place.sim.truth().compare(place.delivered());
    assert!(compared.lost.is_empty() && compared.altered.is_empty(), "{compared}");
    // What was in flight when the process died may come twice: at most what its downloads held.
    assert!(compared.duplicated.len() <= 2 * 32 * 5, "{compared}");
    // 120 blobs once, those of the window under way at each end once more.
    assert!(blobs() < 120 + 2 * 40 + 32, "{}", blobs());
}

/// What cannot be done is said, with what can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backfill_that_cannot_be_done_says_why_and_what_can() {
    let place = Place::new(3, 5, 6 * 3600, "").await;
    place.run_badly(&["backfill"], 64, "--from").await;
    place.run_badly(&["backfill", "--from", "soon"], 64, "an age such as 3d").await;
    place.run_badly(&["backfill", "--from", "3h", "--source", "other"], 64, "source-unknown").await;
    let other = "99999999-9999-9999-9999-999999999999";
    let said = place.run_badly(&["backfill", "--from", "3h", "--tenant", other], 64, "source-unknown").await;
    assert!(said.contains(place.service.tenants[0].as_str()), "it names the tenants there are: {said}");
    for running in [false, true] {
        let running = running.then(|| place.start());
        if running.is_some() {
            place.until_complete().await;
        }
        place.run_badly(&["backfill", "--from", "1h", "--to", "2h"], 64, "backfill-range").await;
        let said = place.run_badly(&["backfill", "--from", "9d"], 64, "backfill-too-old").await;
        assert!(said.contains("the oldest content still listed is of `20"), "{said}");
        place.run_badly(&["backfill", "--from", "3h", "--content-type", "DLP.All"], 64, "backfill-type-not-read").await;
        place.run_badly(&["backfill", "--resume"], 64, "backfill-none").await;
        place.run_badly(&["backfill", "--discard"], 64, "backfill-none").await;
    }
    // A week, to the minute, is meant as what is still listed.
    place.run_well(&["backfill", "--from", "7d"]).await;
}

/// The socket is its owner's alone, and one that a dead process left behind hinders nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_socket_is_private_and_one_left_behind_is_replaced() {
    let place = Place::new(3, 5, 6 * 3600, "").await;
    let said = place.run_badly(&["status"], 69, "not-running").await;
    assert!(said.contains("m365-audit run -c"), "{said}");
    let running = place.start();
    place.until_complete().await;
    let socket = place.at("data/control.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(place.run_well(&["status"]).await.contains("Audit.Exchange"));
    running.kill();
    assert!(socket.exists(), "a process that is killed leaves it");
    place.run_badly(&["status", "--once"], 69, "not-running").await;
    place.run_well(&["backfill", "--from", "5h"]).await;
    let running = place.start();
    place.until("it listens again", || place.log().matches("source started").count() == 2).await;
    let begun = Instant::now();
    while !place.run(&["status", "--json"]).await.status.success() {
        assert!(begun.elapsed() < TIME_MAX, "{}", place.log());
    }
    running.stop(&place).await;
    assert!(!socket.exists(), "a process that is stopped takes it away");
}

/// `status --json` says what is so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_shows_the_process_its_streams_and_what_is_wrong() {
    let place = Place::new(20, 5, 6 * 3600, "").await;
    let running = place.start();
    place.until_complete().await;
    let status: Value = serde_json::from_str(&place.run_well(&["status", "--json"]).await).unwrap();
    assert_eq!(status["process"]["pid"], running.0.id());
    assert_eq!(status["state"], "healthy");
    let stream = &status["sources"][0]["streams"][0];
    assert_eq!(stream["content_type"], "Audit.Exchange");
    assert_eq!(stream["events"].as_u64().unwrap() as usize, place.delivered().len());
    // Listings fail: the source says so, with the remedy, and so do its last warnings.
    place.sim.faults().rate(CallKind::Content, 1.0, SimFault::InternalError);
    let begun = Instant::now();
    loop {
        let status: Value = serde_json::from_str(&place.run_well(&["status", "--json"]).await).unwrap();
        let source = &status["sources"][0];
        if source["state"] != "healthy" {
            let reason = source["reason"].as_str().unwrap();
            assert!(reason.contains("(hint: "), "{reason}");
            let recent = status["recent"].as_array().unwrap();
            assert!(recent.iter().any(|line| line["text"].as_str().unwrap().contains("cannot list")), "{status}");
            break;
        }
        assert!(begun.elapsed() < TIME_MAX, "{status}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let once = place.run_well(&["status", "--once"]).await;
    assert!(once.lines().next().unwrap().starts_with("m365-audit "), "{once}");
    assert!(!once.contains('\u{1b}'), "no colours in a pipe: {once}");
    running.stop(&place).await;
}

/// Back: the events come again. Beside a running process and without one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_set_back_delivers_from_there_again_and_nothing_older() {
    for beside in [true, false] {
        let place = Place::new(40, 20, 21 * 3600, "").await;
        let running = place.start();
        place.until_complete().await;
        let once = place.delivered().len();
        assert!(place.sim.truth().compare(place.delivered()).is_clean());
        let running = if beside {
            Some(running)
        } else {
            running.stop(&place).await;
            None
        };
        let from = place.sim.now() - 10 * HOUR;
        let said = place.run_well(&["state", "set", "--source", "tenant", "--from", &from.to_string()]).await;
        assert!(said.starts_with("Audit.Exchange: 20"), "{said}");
        let running = running.unwrap_or_else(|| place.start());
        let truth = place.sim.truth();
        place.until("events come again", || truth.compare(place.delivered()).duplicated.len() > once / 4).await;
        place.until_complete().await;
        running.stop(&place).await;
        let compared = truth.compare(place.delivered());
        assert!(compared.lost.is_empty() && compared.altered.is_empty(), "{compared}");
        assert!(compared.duplicated.len() < once * 3 / 4, "only what is younger comes again: {compared}");
        assert_eq!(place.gaps().len(), 0, "{:?}", place.gaps());
    }
}

/// Forward: nothing without `--yes`; with it what lies between is passed over, and one gap record says which.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_set_forward_asks_first_passes_over_and_leaves_a_gap_record() {
    for beside in [true, false] {
        // The host does not take what is read at first, so that there is something to pass over.
        let place = Place::new(40, 20, 21 * 3600, "").await;
        place.sim.faults().rate(CallKind::Blob, 1.0, SimFault::InternalError);
        let running = place.start();
        let first = || place.sim.requests().iter().filter(|r| r.kind == CallKind::Blob).count() > 40;
        place.until("every blob was asked for in vain", first).await;
        while place.stream().await["origin"].is_null() {
            // The position is written a moment after the first listing.
            tokio::task::yield_now().await;
        }
        let running = if beside {
            Some(running)
        } else {
            running.kill();
            None
        };
        let to = (place.sim.now() - 5 * HOUR).to_string();
        let arguments = ["state", "set", "--source", "tenant", "--from", &to];
        let before = place.stream().await;
        place.run_badly(&arguments, 64, "state-set-passes-over").await;
        assert_eq!(place.stream().await["origin"], before["origin"]);
        let mut confirmed = arguments.to_vec();
        confirmed.push("--yes");
        place.run_well(&confirmed).await;
        place.sim.faults().clear();
        let running = running.unwrap_or_else(|| place.start());
        place.until("the gap is reported", || !place.gaps().is_empty()).await;
        place.until_complete().await;
        running.stop(&place).await;
        let gaps = place.gaps();
        assert_eq!(gaps.len(), 1, "{gaps:?}");
        assert_eq!(gaps[0]["reason"], "position_moved");
        assert_eq!(gaps[0]["gap_from"], before["complete_until"].as_str().map_or(before["origin"].clone(), Into::into));
        let (gap_to, asked) = (gaps[0]["gap_to"].as_str().unwrap(), to.parse::<Timestamp>().unwrap());
        assert!(asked.duration_since(gap_to.parse::<Timestamp>().unwrap()).as_secs() <= 1, "{gap_to} {asked}");
    }
    let place = Place::new(3, 5, 6 * 3600, "").await;
    let tomorrow = (place.sim.now() + 24 * HOUR).to_string();
    place.run_badly(&["state", "set", "--source", "tenant", "--from", &tomorrow], 64, "state-set-future").await;
    place.run_badly(&["state", "set", "--source", "tenant", "--from", "9d"], 64, "state-set-too-old").await;
    place.run_badly(&["state", "set", "--source", "x", "--from", "1d"], 64, "no source is named").await;
}

/// Such as with `data_dir` on a mount that is not there, while the process that has the state runs on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_asks_a_state_that_is_missing_says_so_and_makes_none() {
    let place = Place::new(3, 5, 6 * 3600, "").await;
    fs::create_dir(place.at("data")).unwrap();
    let asked = ["state show", "state retry", "state export", "report"].map(|command| (command, 73));
    for (command, exit) in asked.into_iter().chain([("receipts verify", 66)]) {
        let args: Vec<&str> = command.split(' ').collect();
        place.run_badly(&args, exit, "state-missing").await;
        assert_eq!(fs::read_dir(place.at("data")).unwrap().count(), 0, "{args:?}");
    }
}

/// Runs a command that needs no configuration, with these lines on standard input.
fn answer(dir: &std::path::Path, args: &[&str], input: &str) -> Output {
    use std::io::Write as _;
    let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
    command.args(args).current_dir(dir).env("NO_PROXY", "*").env_remove("M365_CLIENT_SECRET");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

const TENANT: &str = "11111111-2222-3333-4444-555555555555";
const CLIENT: &str = "aaaaaaaa-0000-4000-8000-00000000c11e";

/// A person who has no application yet: the commands are shown, the file written, the secret kept to its owner, and
/// nothing is overwritten.
#[test]
fn init_asks_and_writes_a_valid_file_and_keeps_the_secret_private() {
    let dir = tempfile::tempdir().unwrap();
    let input = format!("contoso.com\n{TENANT}\ny\nn\naz\n{CLIENT}\nthe-secret's~value\n\n");
    let output = answer(dir.path(), &["init", "--no-check"], &input);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("a domain is not enough") && said.contains("az ad app permission add"), "{said}");
    assert!(!said.contains("the-secret's~value"), "{said}");
    let file = fs::read_to_string(dir.path().join("agent.toml")).unwrap();
    assert!(!file.contains("the-secret's~value"), "{file}");
    let secret = dir.path().join("client_secret");
    assert_eq!(fs::read_to_string(&secret).unwrap().trim(), "the-secret's~value");
    assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(answer(dir.path(), &["validate", "-c", "agent.toml"], "").status.success());

    let again = answer(dir.path(), &["init", "--no-check"], &input);
    assert_eq!(again.status.code(), Some(78), "{}", text(&again));
    assert!(text(&again).contains("init-exists"), "{}", text(&again));
    assert_eq!(fs::read_to_string(dir.path().join("agent.toml")).unwrap(), file, "nothing is overwritten");

    // An input that ends writes nothing.
    let half = answer(dir.path(), &["init", "-o", "other.toml"], &format!("{TENANT}\ny\n"));
    assert_eq!(half.status.code(), Some(64), "{}", text(&half));
    assert!(!dir.path().join("other.toml").exists());
}

/// Without questions, and `check` at the end decides the exit code.
#[test]
fn init_takes_all_from_options_and_runs_check() {
    let dir = tempfile::tempdir().unwrap();
    let missing = answer(dir.path(), &["init", "--no-input"], "");
    assert_eq!(missing.status.code(), Some(64), "{}", text(&missing));
    assert!(text(&missing).contains("--tenant-id"), "{}", text(&missing));
    fs::write(dir.path().join("secret"), "value of a secret\n").unwrap();
    let data = dir.path().join("data");
    let options =
        ["init", "--no-input", "--tenant-id", TENANT, "--client-id", CLIENT, "--client-secret-file", "secret"];
    let options: Vec<&str> = options.into_iter().chain(["--data-dir", data.to_str().unwrap()]).collect();
    // Nobody answers here: the file is written, and check says that Microsoft cannot be reached.
    let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
    command.args(&options).current_dir(dir.path()).stdin(Stdio::null());
    command.env("HTTPS_PROXY", "http://127.0.0.1:9").env_remove("NO_PROXY").env_remove("no_proxy");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(69), "{}", text(&output));
    assert!(text(&output).contains("wrote agent.toml"), "{}", text(&output));
    let shown = answer(dir.path(), &["init", "--print", "powershell", "--tenant-id", TENANT], "");
    assert!(shown.status.success() && text(&shown).contains("New-MgServicePrincipalAppRoleAssignment"));
}

/// Made from the commands as they are: every command is in the pages and in each shell's completions.
#[test]
fn completions_and_manual_pages_name_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let commands = ["run", "check", "validate", "state", "status", "backfill", "init", "normalize", "demo", "man"];
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let output = answer(dir.path(), &["completions", shell], "");
        let said = text(&output);
        assert!(output.status.success() && commands.iter().all(|name| said.contains(name)), "{shell}: {said}");
    }
    let page = text(&answer(dir.path(), &["man"], ""));
    assert!(page.contains(".TH m365") && page.contains("backfill"), "{page}");
    assert!(answer(dir.path(), &["man", "--dir", "pages"], "").status.success());
    for name in commands {
        let page = dir.path().join(format!("pages/m365-audit-{name}.1"));
        assert!(fs::read_to_string(&page).unwrap_or_default().contains(".SH SYNOPSIS"), "{}", page.display());
    }
    assert!(dir.path().join("pages/m365-audit-state-set.1").exists());
    // What a shell makes of it, where there is one.
    if let Ok(output) =
        Command::new("bash").arg("-n").arg("/dev/stdin").stdin(Stdio::piped()).stdout(Stdio::null()).spawn()
    {
        use std::io::Write as _;
        let mut bash = output;
        let completions = answer(dir.path(), &["completions", "bash"], "").stdout;
        bash.stdin.take().unwrap().write_all(&completions).unwrap();
        assert!(bash.wait().unwrap().success(), "bash does not read its completions");
    }
}
