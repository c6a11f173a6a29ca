//! The real binary, killed at random moments and started again until it is done; and how much memory it takes.
//!
//! Real time, a real state store and a real file: what the scenarios cannot show. Linux, because kill -9 and
//! `/proc/*/status` are.
#![cfg(target_os = "linux")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use m365_audit::clock::SystemClock;
use m365_audit::model::{ContentType, Timestamp};
use m365_audit::sim::{
    CallKind, Delivered, FaultPlan, GenerateSpec, NewBlob, Sim, SimConfig, SimFault, SubscriptionState,
};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Kills in all.
const KILLS: u32 = 50;
/// Simulated tenants they are spread over.
const TENANTS: u64 = 5;
const EVENTS_PER_BLOB: usize = 12;
/// Bodies downloaded and not settled when a process dies, at most (`DOWNLOADS_MAX` of the source, and as many being
/// delivered): what may come twice after one kill.
const BLOBS_IN_FLIGHT_MAX: u32 = 64;
/// A run that takes longer hangs.
const RUN_TIME_MAX: Duration = Duration::from_secs(240);
/// Over idle, by the design.
const MEMORY_BYTES_MAX: u64 = 64 * 1024 * 1024;

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new(sim: &Sim, config: &SimConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let url = sim.url();
        let text = format!(
            "data_dir = {data:?}\n[sources.tenant]\ntype = \"m365_audit\"\ntenant_id = \"{tenant}\"\nclient_id = \"{client}\"\n\
             client_secret = \"${{SECRET}}\"\nbackfill_secs = 604800\ndrop_routine = false\nmax_requests_per_minute = 0\n\
             api_url = {url:?}\nauthority_url = {url:?}\nmask_detected_values = false\n[sinks.file]\ntype = \"file\"\npath = {out:?}\ninputs = [\"tenant\"]\n\
             [log]\nlevel = \"warn\"\n",
            data = at("data"),
            out = at("out.ndjson"),
            tenant = config.tenants[0],
            client = config.client_id,
        );
        fs::create_dir(dir.path().join("data")).unwrap();
        fs::write(dir.path().join("agent.toml"), text).unwrap();
        Self { dir }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out.ndjson")
    }

    fn start(&self, config: &SimConfig, once: bool) -> Child {
        let log = fs::File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
        command.arg("run");
        if once {
            command.arg("--once");
        }
        command.arg("-c").arg(self.dir.path().join("agent.toml"));
        command.env("SECRET", &config.client_secret).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.spawn().unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The events in the file. A torn last line is what the next start cuts off.
    fn delivered(&self) -> Vec<Delivered> {
        #[derive(Deserialize)]
        struct Native<'a> {
            event_id: Option<String>,
            timestamp: Timestamp,
            #[serde(borrow)]
            raw: Option<&'a RawValue>,
        }
        let text = fs::read_to_string(self.out()).unwrap_or_default();
        let mut out = Vec::new();
        for line in text.lines() {
            let native: Native = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            let Some(raw) = native.raw else { continue };
            out.push(Delivered {
                raw: raw.get().as_bytes().to_vec(),
                id: native.event_id,
                timestamp: Some(native.timestamp),
                tenant: None,
            });
        }
        out
    }
}

async fn ended(child: &mut Child, within: Duration) -> Option<ExitStatus> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if begun.elapsed() >= within {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn tenant(config: SimConfig) -> Sim {
    let sim = Sim::start(config.clone(), SystemClock::new()).await.unwrap();
    for content_type in ContentType::ALL {
        sim.set_subscription(&config.tenants[0], content_type, SubscriptionState::Enabled);
    }
    sim
}

fn publish(sim: &Sim, config: &SimConfig, blobs: usize) {
    let now = sim.now();
    let (from, to) = (now - Duration::from_secs(36 * 3600), now - Duration::from_secs(60));
    let spec = GenerateSpec { late_rate: 0.0, ..GenerateSpec::new(blobs, EVENTS_PER_BLOB, from, to) };
    sim.generate(&config.tenants[0], spec);
}

/// Fifty kills over five tenants, half of them in bad weather: nothing lost, and no more came twice than can have been
/// in flight.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_moments_and_restarted_loses_nothing() {
    for seed in 1..=TENANTS {
        let config = SimConfig { seed, page_size: 6, ..SimConfig::default() };
        let sim = tenant(config.clone()).await;
        publish(&sim, &config, 250);
        if seed % 2 == 0 {
            sim.set_faults(FaultPlan::bad_weather(0.05));
        }
        // A blob takes a few milliseconds, as over a network, so that kills meet every stage.
        sim.faults().rate(CallKind::Blob, 0.5, SimFault::Slow(Duration::from_millis(10)));
        let place = Place::new(&sim, &config);
        let mut random = fastrand::Rng::with_seed(seed);
        let mut kills = 0;
        loop {
            let mut child = place.start(&config, true);
            let enough = kills >= KILLS / TENANTS as u32;
            // Start-up takes some tens of milliseconds; most kills come after it.
            let life = if enough { RUN_TIME_MAX } else { Duration::from_millis(random.u64(5..350)) };
            match ended(&mut child, life).await {
                Some(status) => {
                    assert!(status.success() || status.code() == Some(75), "{status}: {}", place.log());
                    if enough && status.success() {
                        break;
                    }
                    // Done before its time: there is more to read for the next one.
                    publish(&sim, &config, 40);
                }
                None => {
                    assert!(!enough, "it does not end: {}", place.log());
                    child.kill().unwrap();
                    child.wait().unwrap();
                    kills += 1;
                }
            }
        }
        let compared = sim.truth().compare(place.delivered());
        let clean = compared.lost.is_empty()
            && compared.expired_unread.is_empty()
            && compared.altered.is_empty()
            && compared.misdated.is_empty()
            && compared.unexpected.is_empty();
        assert!(clean, "seed {seed}: {compared}");
        let bound = (kills * BLOBS_IN_FLIGHT_MAX) as usize * EVENTS_PER_BLOB;
        assert!(compared.duplicated.len() <= bound, "seed {seed}: {} duplicates", compared.duplicated.len());
        // A batch may come once more for each kill that met it, never more often. Events may share an `Id`: Entra ID
        // writes `ANONYMIZED` into many.
        let truth = sim.truth();
        let mut times: HashMap<&str, u64> = HashMap::new();
        for id in &compared.duplicated {
            *times.entry(id).or_default() += 1;
        }
        for (id, times) in times {
            let due = truth.due_under(id);
            assert!(times <= due * u64::from(kills), "seed {seed}: {id}, due {due} times, came {times} times more");
        }
        println!("seed {seed}: {kills} kills, {compared}");
        sim.stop().await;
    }
}

fn status_bytes(process: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.trim_start_matches(':').split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The most memory the process took until it ended.
async fn peak_until_ended(child: &mut Child, out: &Path) -> u64 {
    let begun = Instant::now();
    let mut peak = 0;
    loop {
        peak = peak.max(status_bytes(child.id(), "VmHWM"));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{status}");
            return peak;
        }
        assert!(
            begun.elapsed() < RUN_TIME_MAX,
            "it does not end; {:?} bytes are out",
            fs::metadata(out).map(|m| m.len())
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One huge blob is read within 64 MiB over what the process takes when there is nothing to read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_blob_takes_no_more_memory_than_a_small_one() {
    // An unoptimised build reads some megabytes a second; the bound does not depend on the size.
    let bytes: u64 = if cfg!(debug_assertions) { 48 * 1024 * 1024 } else { 200 * 1024 * 1024 };
    let config = SimConfig { gzip: false, ..SimConfig::default() };
    let sim = tenant(config.clone()).await;
    let place = Place::new(&sim, &config);
    let idle = peak_until_ended(&mut place.start(&config, true), &place.out()).await;
    let created = sim.now() - Duration::from_secs(600);
    sim.add_blob(&config.tenants[0], ContentType::Exchange, NewBlob::huge(created, bytes));
    let begun = Instant::now();
    let peak = peak_until_ended(&mut place.start(&config, true), &place.out()).await;
    println!(
        "{} MB in {:.1} s: peak {:.1} MiB, idle {:.1} MiB",
        bytes >> 20,
        begun.elapsed().as_secs_f64(),
        peak as f64 / 1048576.0,
        idle as f64 / 1048576.0
    );
    assert!(peak.saturating_sub(idle) <= MEMORY_BYTES_MAX, "peak {peak}, idle {idle}");
    let out = fs::metadata(place.out()).unwrap().len();
    assert!(out >= bytes, "all of it was delivered");
    sim.stop().await;
}

/// An agent that was killed starts its child anew: the old one must not wait for the next event to notice, for it holds
/// the state.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_standard_output_that_goes_ends_the_program_though_there_is_nothing_to_write() {
    let config = SimConfig::default();
    let sim = tenant(config.clone()).await;
    let place = Place::new(&sim, &config);
    let path = place.dir.path().join("agent.toml");
    let text = fs::read_to_string(&path).unwrap();
    let file = format!("type = \"file\"\npath = {:?}\n", place.out().display().to_string());
    let text = text.replace(&file, "type = \"stdout\"\n").replace("level = \"warn\"", "level = \"info\"");
    fs::write(&path, text).unwrap();
    let log = fs::File::options().create(true).append(true).open(place.dir.path().join("log")).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_m365-audit"))
        .args(["run", "-c"])
        .arg(&path)
        .env("SECRET", &config.client_secret)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while !place.log().contains("source started") {
        assert!(begun.elapsed() < RUN_TIME_MAX, "it does not start: {}", place.log());
        assert!(child.try_wait().unwrap().is_none(), "it ended though its output is read: {}", place.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(child.stdout.take());
    let status = ended(&mut child, RUN_TIME_MAX).await;
    if status.is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(status.is_some_and(|status| status.success()), "{status:?}: {}", place.log());
    sim.stop().await;
}
