//! What becomes of the files beneath the running program: state, sockets and output that are removed, moved, cut,
//! replaced or unmounted. The real binary against the simulated tenant, in real time.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use m365_audit::clock::SystemClock;
use m365_audit::model::ContentType;
use m365_audit::sim::{GenerateSpec, Sim, SimConfig, SubscriptionState};
use test_support::Mounted;

/// Patience, not a claim: whatever is waited for comes within seconds on an idle machine.
const TIME_MAX: Duration = Duration::from_secs(120);
const EVENTS_PER_BLOB: usize = 5;

struct Place {
    dir: tempfile::TempDir,
    sim: Sim,
    config: SimConfig,
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// As systemd stops it.
    fn stop(mut self) {
        let id = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Place {
    async fn new(more: &str) -> Self {
        let config = SimConfig::default();
        let sim = Sim::start(config.clone(), SystemClock::new()).await.unwrap();
        for content_type in ContentType::ALL {
            sim.set_subscription(&config.tenants[0], content_type, SubscriptionState::Enabled);
        }
        let place = Self { dir: tempfile::tempdir().unwrap(), sim, config };
        place.configure(more);
        place
    }

    fn configure(&self, more: &str) {
        let url = self.sim.url();
        let text = format!(
            "data_dir = {data:?}\n{more}\n[sources.tenant]\ntype = \"m365_audit\"\ntenant_id = \"{tenant}\"\nclient_id = \"{client}\"\n\
             client_secret = \"${{SECRET}}\"\nbackfill_secs = 604800\ndrop_routine = false\nmax_requests_per_minute = 0\n\
             poll_interval_secs = 1\napi_url = {url:?}\nauthority_url = {url:?}\n[sinks.file]\ntype = \"file\"\npath = {out:?}\n\
             inputs = [\"tenant\"]\n",
            data = self.at("data"),
            out = self.out(),
            tenant = self.config.tenants[0],
            client = self.config.client_id,
        );
        fs::write(self.at("agent.toml"), text).unwrap();
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn out(&self) -> PathBuf {
        self.at("logs/out.ndjson")
    }

    fn state_files(&self) -> [PathBuf; 3] {
        ["data/state.sqlite3", "data/state.sqlite3-wal", "data/state.sqlite3-shm"].map(|name| self.at(name))
    }

    /// Makes blobs available; they lie within the last hours.
    fn publish(&self, blobs: usize) {
        let now = self.sim.now();
        let (from, to) = (now - Duration::from_secs(2 * 3600), now - Duration::from_secs(60));
        let spec = GenerateSpec {
            late_rate: 0.0,
            copy_rate: 0.0,
            irregular_rate: 0.0,
            empty_blob_rate: 0.0,
            ..GenerateSpec::new(blobs, EVENTS_PER_BLOB, from, to)
        };
        self.sim.generate(&self.config.tenants[0], spec);
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
        command.args(args).arg("-c").arg(self.at("agent.toml"));
        command.env("SECRET", &self.config.client_secret).stdin(Stdio::null());
        command
    }

    fn start(&self) -> Running {
        let log = fs::File::options().create(true).append(true).open(self.at("log")).unwrap();
        Running(self.command(&["run"]).stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    fn asked(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn status(&self) -> serde_json::Value {
        serde_json::from_slice(&self.asked(&["status", "--json"]).stdout).unwrap_or_default()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.at("log")).unwrap_or_default()
    }

    /// How often each event is in the files that lie beside the output and in it.
    fn delivered(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for entry in fs::read_dir(self.at("logs")).into_iter().flatten() {
            for line in fs::read_to_string(entry.unwrap().path()).unwrap().lines() {
                let Ok(record) = serde_json::from_str::<serde_json::Value>(line) else { continue };
                *counts.entry(record["event_id"].to_string() + &record["raw"].to_string()).or_default() += 1;
            }
        }
        counts
    }

    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !done(self) {
            assert!(begun.elapsed() < TIME_MAX, "not within {TIME_MAX:?}: {what}\n{}\n{}", self.status(), self.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn until_delivered(&self, events: usize) {
        self.until(&format!("{events} events"), |place| place.delivered().len() >= events).await;
    }

    fn sink_reason(&self) -> String {
        self.status()["sinks"][0]["reason"].to_string()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_removed_while_running_is_told_and_written_anew_and_a_kill_after_that_repeats_nothing() {
    let place = Place::new("").await;
    place.publish(20);
    let running = place.start();
    place.until_delivered(20 * EVENTS_PER_BLOB).await;
    for file in place.state_files() {
        fs::remove_file(file).unwrap();
    }
    place.until("it is told", |place| place.status()["store"].to_string().contains("state-removed: ")).await;
    assert_eq!(place.status()["state"], "degraded");
    assert!(place.log().contains("the whole state was written anew"), "{}", place.log());
    fs::remove_file(place.at("data/control.sock")).unwrap();
    place.until("it can be asked again", |place| place.status()["state"] == "degraded").await;
    place.publish(10);
    place.until_delivered(30 * EVENTS_PER_BLOB).await;
    // Its positions follow, so that what was delivered is known to the state on disk.
    let complete = |place: &Place| {
        place.status()["sources"][0]["streams"]
            .as_array()
            .is_some_and(|streams| streams.iter().all(|s| s["pending"] == 0))
    };
    place.until("all is settled", complete).await;
    drop(running);
    let _running = place.start();
    place.publish(1);
    place.until_delivered(31 * EVENTS_PER_BLOB).await;
    let twice: Vec<_> = place.delivered().into_values().filter(|count| *count > 1).collect();
    assert_eq!(twice, Vec::<usize>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_is_gone_at_the_start_is_told_beside_the_records_of_before() {
    let place = Place::new("").await;
    place.publish(3);
    let running = place.start();
    place.until_delivered(3 * EVENTS_PER_BLOB).await;
    assert_eq!(place.status()["state"], "healthy", "a first run is nothing to tell of");
    running.stop();
    fs::rename(place.at("data"), place.at("elsewhere")).unwrap();
    let _running = place.start();
    place.until("it is told", |place| place.sink_reason().contains("state-new-beside-records")).await;
    let page = String::from_utf8(place.asked(&["status", "--once"]).stdout).unwrap();
    assert!(page.contains("degraded") && page.contains("bring the state back"), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_output_that_lost_records_is_told_while_running_and_after_a_restore() {
    let place = Place::new("").await;
    place.publish(4);
    let running = place.start();
    place.until_delivered(4 * EVENTS_PER_BLOB).await;
    // Rotation by renaming is none.
    fs::rename(place.out(), place.at("logs/out.ndjson.1")).unwrap();
    place.publish(4);
    place.until_delivered(8 * EVENTS_PER_BLOB).await;
    assert_eq!(place.status()["state"], "healthy");
    let backup = fs::read(place.out()).unwrap();
    place.publish(4);
    place.until_delivered(12 * EVENTS_PER_BLOB).await;
    place.until("all is settled", |place| place.status()["sources"][0]["streams"][0]["pending"] == 0).await;
    running.stop();
    fs::write(place.out(), &backup).unwrap();
    let running = place.start();
    place.until("it is told", |place| place.sink_reason().contains("sink-file-shorter")).await;
    assert!(place.sink_reason().contains("--again"), "{}", place.sink_reason());
    assert_eq!(place.delivered().len(), 8 * EVENTS_PER_BLOB);
    // The remedy it names brings back what is missing.
    let output = place.asked(&["backfill", "--from", "3h", "--again"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    place.until_delivered(12 * EVENTS_PER_BLOB).await;
    running.stop();
    // `copytruncate` with a sink that is quiet.
    fs::remove_file(place.out()).unwrap();
    fs::remove_dir_all(place.at("data")).unwrap();
    let _running = place.start();
    place.until("all is settled", |place| fs::metadata(place.out()).is_ok_and(|m| m.len() > 0)).await;
    place.until("a write has ended", |place| place.status()["sinks"][0]["records"].as_u64() >= Some(60)).await;
    fs::File::options().write(true).open(place.out()).unwrap().set_len(0).unwrap();
    place.until("it is told", |place| place.sink_reason().contains("copytruncate")).await;
    assert_eq!(place.status()["state"], "degraded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_socket_goes_where_the_configuration_says() {
    let place = Place::new("").await;
    let socket = place.at(&format!("run/{}/control.sock", "long".repeat(40)));
    place.configure(&format!("control_socket = {socket:?}"));
    place.publish(1);
    let running = place.start();
    place.until("it answers", |place| place.status()["state"] == "healthy").await;
    assert!(socket.exists() && !place.at("data/control.sock").exists());
    // Without it the process that runs is named all the same.
    place.configure("");
    let output = place.asked(&["status", "--once"]);
    let said = String::from_utf8_lossy(&output.stderr);
    let process = format!("process `{}` runs on", running.0.id());
    assert!(said.contains(&process) && said.contains("control_socket"), "{said}");
    assert_eq!(output.status.code(), Some(69));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_written_beneath_the_mount_of_an_output_or_a_state_that_went_away() {
    let place = Place::new("").await;
    let Some(logs) = Mounted::at(&place.at("logs"), "size=64m") else { return };
    let data = Mounted::at(&place.at("data"), "size=64m").unwrap();
    place.publish(3);
    let running = place.start();
    place.until_delivered(3 * EVENTS_PER_BLOB).await;
    // Quiet or not: it is told without a record having come.
    drop(logs);
    place.until("it is told", |place| place.sink_reason().contains("sink-file-mount-gone")).await;
    place.publish(3);
    place.until("a write was refused", |place| place.status()["sinks"][0]["retries"].as_u64() > Some(0)).await;
    assert_eq!(fs::read_dir(place.at("logs")).unwrap().count(), 0, "beneath");
    running.stop();
    let running = place.start();
    place.until("it is told at the start", |place| place.sink_reason().contains("sink-file-mount-gone")).await;
    assert_eq!(fs::read_dir(place.at("logs")).unwrap().count(), 0, "beneath");
    let logs = Mounted::at(&place.at("logs"), "size=64m").unwrap();
    place.until_delivered(3 * EVENTS_PER_BLOB).await;
    place.until("all is well", |place| place.status()["state"] == "healthy").await;
    drop(data);
    place.until("the state is missed", |place| place.log().contains("state-mount-gone: ")).await;
    // Told by the check that would have made the socket anew.
    place.until("the socket is missed", |place| place.log().contains("control-mount-gone: ")).await;
    // No socket, no lock, no state.
    let left: Vec<_> = fs::read_dir(place.at("data")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, Vec::<std::ffi::OsString>::new(), "beneath");
    // Mounted again, all goes on by itself.
    let data = Mounted::at(&place.at("data"), "size=64m").unwrap();
    place.publish(3);
    place.until_delivered(6 * EVENTS_PER_BLOB).await;
    place.until("it can be asked again", |place| place.status()["state"] == "degraded").await;
    drop(running);
    drop((logs, data));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_a_reload_cannot_open_holds_its_sources_and_is_opened_as_soon_as_that_works() {
    let place = Place::new("").await;
    place.publish(2);
    let running = place.start();
    place.until_delivered(2 * EVENTS_PER_BLOB).await;
    // A new sink, whose directory is a file.
    fs::write(place.at("archive"), "in the way").unwrap();
    let archive = place.at("archive/out.ndjson");
    place.configure(&format!("[sinks.archive]\ntype = \"file\"\npath = {archive:?}\ninputs = [\"tenant\"]\n"));
    let reload = || {
        let id = rustix::process::Pid::from_child(&running.0);
        rustix::process::kill_process(id, rustix::process::Signal::HUP).unwrap();
    };
    reload();
    let reason = |place: &Place| {
        let status = place.status();
        let sinks = status["sinks"].as_array().cloned().unwrap_or_default();
        let archive = sinks.into_iter().find(|sink| sink["name"] == "archive");
        archive.map(|archive| archive["reason"].to_string()).unwrap_or_default()
    };
    place.until("it is told", |place| reason(place).contains("archive")).await;
    // Nothing counts as delivered without it, whatever the other sink has, and a second reload alters nothing.
    place.publish(2);
    place.until_delivered(4 * EVENTS_PER_BLOB).await;
    reload();
    place.until("a write was refused", |place| place.log().contains("sink does not take records")).await;
    let pending = |place: &Place| {
        let status = place.status();
        let streams = status["sources"][0]["streams"].as_array().cloned().unwrap_or_default();
        streams.iter().filter_map(|stream| stream["pending"].as_u64()).sum::<u64>()
    };
    place.until("its blobs are not settled", |place| pending(place) > 0).await;
    fs::remove_file(place.at("archive")).unwrap();
    let lines = |place: &Place| fs::read_to_string(place.at("archive/out.ndjson")).unwrap_or_default().lines().count();
    place.until("it has what came since", |place| lines(place) == 2 * EVENTS_PER_BLOB).await;
    place.until("all is settled", |place| pending(place) == 0).await;
    assert_eq!(place.delivered().len(), 4 * EVENTS_PER_BLOB);
    assert!(place.delivered().values().all(|count| *count == 1), "the other sink has each once");
}
