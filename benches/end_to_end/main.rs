//! The whole collector against a feed that costs nothing to serve: throughput, memory, growth, many tenants, latency
//! and pace. See `benches/README.md` for the commands and the results.
//!
//! Every contender is a process of its own, so that the kernel measures CPU time and peak memory. Linux only.

mod baseline;
mod child;
mod routes;
mod tenant;
mod tls;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use child::{Agent, Cost, Server, memory_mib, run, stat};
use tenant::Feed;

/// Without a limit on requests, from the whole week.
const FULL_SPEED: &str =
    "max_requests_per_minute = 0\nbackfill_secs = 604800\npoll_interval_secs = 300\ndrop_routine = false";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |at: usize, otherwise: u64| words.get(at).map_or(otherwise, |n| n.parse().expect("a number"));
    match words.first().copied().unwrap_or("throughput") {
        "serve" if args.len() > 3 => tls::serve(&args[1], &args[2], Path::new(&args[3])),
        "serve" => tenant::serve(&args[1]),
        "baseline" => baseline::run(&args[1], &args[2], args[3].parse().expect("a number")),
        "receive" => routes::receive(&args[1]),
        "routes" => routes::routes(number(1, 500), number(2, 200), number(3, 3)),
        "tls" => tls::tls(number(1, 500), number(2, 200), number(3, 5), words.get(4).copied()),
        "throughput" => throughput(number(1, 1500), number(2, 200), number(3, 5)),
        "memory" => memory(),
        "growth" => growth(words.get(1).copied()),
        "tenants" => tenants(number(1, 1000), number(2, 300)),
        "share" => share(number(1, 100)),
        "catch-up" => catch_up(number(1, 300), number(2, 400), number(3, 50), number(4, 200), number(5, 200)),
        "latency" => latency(number(1, 100)),
        "keys" => keys(number(1, 1_000_000), number(2, 10_000_000)),
        "pace" => pace(number(1, 180), number(2, 2000)),
        other => {
            panic!(
                "`{other}` is none of throughput, routes, tls, memory, growth, keys, tenants, share, catch-up, latency, pace"
            )
        }
    }
}

/// The binary to be measured: `M365_AUDIT_BIN`, else the one cargo built beside this bench.
fn binary() -> String {
    std::env::var("M365_AUDIT_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_m365-audit").to_owned())
}

/// A directory that is removed at the end; below `M365_BENCH_DIR`, else the system's.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let root = std::env::var_os("M365_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let path = root.join(format!("m365-bench-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    fn fresh(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a directory");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn bytes_of(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |m| m.len())
}

fn lines_of(path: &Path) -> u64 {
    use std::io::Read;
    let mut file = std::fs::File::open(path).expect("an output");
    let mut buffer = vec![0; 1 << 20];
    let mut lines = 0;
    loop {
        let n = file.read(&mut buffer).expect("bytes");
        if n == 0 {
            return lines;
        }
        lines += memchr::memchr_iter(b'\n', &buffer[..n]).count() as u64;
    }
}

/// One pass of the binary over the feed; returns the output's bytes and the cost. Panics when an event is missing.
fn pass(server: &Server, feed: &Feed, dir: &Path, source: &str, binary: &str) -> (u64, Cost) {
    pass_of(1, server, feed, dir, source, binary)
}

/// As [`pass`], by so many tenants at once, each of which has the whole feed.
fn pass_of(tenants: u64, server: &Server, feed: &Feed, dir: &Path, source: &str, binary: &str) -> (u64, Cost) {
    let source = format!("{FULL_SPEED}\n{source}");
    let agent = Agent { server, tenants: tenants as usize, source: &source, once: true, binary };
    let cost = run(&mut agent.command(dir));
    let out = dir.join("out.ndjson");
    let lines = lines_of(&out);
    assert!(cost.ok, "{}", std::fs::read_to_string(dir.join("log")).unwrap_or_default());
    assert_eq!(lines, tenants * feed.blobs * feed.events, "events are missing or came twice");
    (bytes_of(&out), cost)
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Contenders one after the other, `rounds` times. `M365_AUDIT_OLD` adds another build of the binary.
fn throughput(blobs: u64, events: u64, rounds: u64) {
    let feed = Feed { blobs, events, ..Feed::default() };
    let (server, scratch) = (Server::start(&feed), Scratch::new());
    let formats = ["native", "raw", "ecs", "ocsf"];
    let old = std::env::var("M365_AUDIT_OLD").ok();
    let total = (blobs * events) as f64;
    let mut rows: Vec<(String, Vec<Cost>, u64)> = Vec::new();
    let note = |rows: &mut Vec<(String, Vec<Cost>, u64)>, name: &str, cost: Cost, bytes: u64| {
        eprintln!("{name}: {:.0} events/s, {:.2} s CPU, {:.1} MiB", total / cost.wall, cost.cpu, cost.peak_mib);
        match rows.iter_mut().find(|row| row.0 == name) {
            Some(row) => row.1.push(cost),
            None => rows.push((name.to_owned(), vec![cost], bytes)),
        }
    };
    for _ in 0..rounds {
        for format in formats {
            let binary = binary();
            let source = format!("format = \"{format}\"");
            let (bytes, cost) = pass(&server, &feed, &scratch.fresh("run"), &source, &binary);
            note(&mut rows, format, cost, bytes);
            if let Some(old) = &old {
                let (bytes, cost) = pass(&server, &feed, &scratch.fresh("run"), &source, old);
                note(&mut rows, &format!("{format}, other build"), cost, bytes);
            }
            if format == "native" || format == "raw" {
                let input: u64 = server.stats()["blob_bytes"].as_u64().expect("a number");
                let runs = rows.iter().map(|row| row.1.len() as u64).sum::<u64>();
                let extra = (bytes.saturating_sub(input / runs)) / (blobs * events);
                let out = scratch.fresh("run").join("out.ndjson");
                let cost = run(Command::new(std::env::current_exe().expect("a path")).args([
                    "baseline",
                    &server.origin,
                    &out.display().to_string(),
                    &extra.to_string(),
                ]));
                assert!(cost.ok && lines_of(&out) == blobs * events, "the baseline lost something");
                note(&mut rows, &format!("baseline, bytes of {format}"), cost, bytes_of(&out));
            }
        }
    }
    println!("| contender | events/s | MB/s written | CPU us/event | cores used | peak MiB |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: |");
    for (name, costs, bytes) in &rows {
        let wall = median(costs.iter().map(|c| c.wall));
        let cpu = median(costs.iter().map(|c| c.cpu));
        let peak = costs.iter().map(|c| c.peak_mib).fold(0.0, f64::max);
        println!(
            "| {name} | {:.0} | {:.0} | {:.2} | {:.2} | {peak:.1} |",
            total / wall,
            *bytes as f64 / wall / 1e6,
            cpu * 1e6 / total,
            cpu / wall
        );
    }
    let ratio = |a: &str, b: &str| {
        let of = |name: &str| &rows.iter().find(|row| row.0 == name).expect("a row").1;
        let pairs = || of(a).iter().zip(of(b));
        println!(
            "{a} / {b}: {:.0} % of the rate (median of {rounds} rounds), {:.2} x the CPU time",
            100.0 * median(pairs().map(|(a, b)| b.wall / a.wall)),
            median(pairs().map(|(a, b)| a.cpu / b.cpu))
        );
    };
    ratio("native", "baseline, bytes of native");
    ratio("raw", "baseline, bytes of raw");
    ratio("ecs", "native");
    ratio("ocsf", "native");
    if old.is_some() {
        for format in formats {
            ratio(format, &format!("{format}, other build"));
        }
    }
    println!("server: {:.1} s CPU in all", server.cpu());
}

/// Peak memory for a long backlog and for one huge blob.
fn memory() {
    let scratch = Scratch::new();
    println!("| feed | MB | peak MiB, three runs |\n| --- | ---: | ---: |");
    for (name, blobs, events) in [("1,500 blobs", 1500, 200), ("4,000 blobs", 4000, 200), ("one blob", 1, 135_000)] {
        let feed = Feed { blobs, events, ..Feed::default() };
        let server = Server::start(&feed);
        let peaks: Vec<String> = (0..3)
            .map(|_| format!("{:.1}", pass(&server, &feed, &scratch.fresh("run"), "", &binary()).1.peak_mib))
            .collect();
        let mb = server.stats()["blob_bytes"].as_f64().expect("a number") / 3e6;
        println!("| {name} | {mb:.0} | {} |", peaks.join(", "));
    }
}

/// How cost grows with blobs, their size, tenants and rules; one line of CSV a point, for `benches/plots/draw.py`. `only`
/// names one series.
fn growth(only: Option<&str>) {
    let scratch = Scratch::new();
    println!("series,x,us_per_event,cpu_us_per_event,peak_mib");
    let measure = |series: &str, x: u64, tenants: u64, feed: &Feed, source: &str| {
        if only.is_some_and(|only| only != series) {
            return;
        }
        let server = Server::start(feed);
        let costs: Vec<Cost> =
            (0..3).map(|_| pass_of(tenants, &server, feed, &scratch.fresh("run"), source, &binary()).1).collect();
        let events = (tenants * feed.blobs * feed.events) as f64;
        println!(
            "{series},{x},{:.3},{:.3},{:.1}",
            median(costs.iter().map(|c| c.wall)) * 1e6 / events,
            median(costs.iter().map(|c| c.cpu)) * 1e6 / events,
            costs.iter().map(|c| c.peak_mib).fold(0.0, f64::max)
        );
    };
    for blobs in [250, 500, 1000, 2000, 4000, 8000] {
        measure("blobs", blobs, 1, &Feed { blobs, events: 50, ..Feed::default() }, "");
    }
    for events in [1, 10, 100, 1000, 10_000, 100_000] {
        measure("events-in-a-blob", events, 1, &Feed { blobs: 100_000 / events, events, ..Feed::default() }, "");
    }
    for tenants in [1, 10, 100, 300] {
        measure("tenants", tenants, tenants, &Feed { blobs: 3000 / tenants, events: 50, ..Feed::default() }, "");
    }
    for rules in [0, 10, 100, 1000] {
        let mut source = String::new();
        for n in 0..rules {
            source.push_str(&format!(
                "[[sources.t0.severity.rules]]\nid = \"bench-{n}\"\noperations = [\"bench operation {n}\"]\nseverity = \"high\"\n\
                 reason = \"to be measured\"\n"
            ));
        }
        measure("operator-rules", rules, 1, &Feed { blobs: 500, ..Feed::default() }, &source);
    }
}

/// The cost of known blobs and event keys in memory, on disk and in bytes written, in the embedded host's own store.
fn keys(blobs: u64, events: u64) {
    use m365_audit::checkpoint::key_set::{Key, KeyKind, KeySet, maintain};
    use m365_audit::host::StateStore as _;
    use m365_audit::model::Timestamp;

    let scratch = Scratch::new();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let written = || -> f64 {
        let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
        io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok()).unwrap_or(0.0)
    };
    println!("| keys | in a commit | memory, bytes a key | on disk, bytes a key | written, bytes a key | load, s |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: |");
    for (name, kind, count, each) in [("blobs", KeyKind::Blobs, blobs, 16), ("events", KeyKind::Events, events, 2000)] {
        let dir = scratch.fresh("keys");
        let before = written();
        let file = dir.join("keys");
        runtime.block_on(async {
            let store = m365_audit::hosts::embedded::store::SqliteStore::open(&file).expect("a store");
            let set = parking_lot::Mutex::new(KeySet::load(&store, "bench", kind).await.expect("a set"));
            // A week's worth, the newest last; events are up to an hour older than those before them.
            let second = |n: u64| 1_800_000_000 + (n * 604_800 / count) as i64 - (n % 3600) as i64;
            for from in (0..count).step_by(each as usize) {
                let key = |n: u64| Key::of_blob(&n.to_string(), Timestamp::from_second(second(n)).expect("a time"));
                let keys: Vec<Key> = (from..count.min(from + each)).map(key).collect();
                let now = Timestamp::from_second(second(from)).expect("a time");
                let staged = set.lock().stage(&keys, now);
                store.commit(staged.ops).await.expect("room");
                set.lock().committed(staged.token);
                while let Some(staged) = maintain(&set, &store).await.expect("a store") {
                    store.commit(staged.ops).await.expect("room");
                    set.lock().committed(staged.token);
                }
            }
            let memory = set.lock().memory_bytes() as f64;
            drop(set);
            let started = Instant::now();
            let again = KeySet::load(&store, "bench", kind).await.expect("a set");
            let load = started.elapsed().as_secs_f64();
            assert!(again.len() >= count);
            drop(store);
            let disk: u64 = std::fs::read_dir(&file).expect("a directory").flatten().map(|f| bytes_of(&f.path())).sum();
            let each_key = |bytes: f64| bytes / count as f64;
            println!(
                "| {count} {name} | {each} | {:.2} | {:.1} | {:.0} | {load:.1} |",
                each_key(memory),
                each_key(disk as f64),
                each_key(written() - before)
            );
        });
    }
}

/// Many idle tenants in one process.
fn tenants(count: u64, seconds: u64) {
    let scratch = Scratch::new();
    let feed = Feed { blobs: 0, ..Feed::default() };
    let source = "poll_interval_secs = 300";
    let mut memory = Vec::new();
    for tenants in [1, count as usize] {
        let server = Server::start(&feed);
        let dir = scratch.fresh("run");
        let agent = Agent { server: &server, tenants, source, once: false, binary: &binary() };
        let mut child = agent.command(&dir).spawn().expect("it starts");
        // Until every tenant has listed a day once: the subscriptions, and two windows of each of five types.
        let until = Instant::now() + Duration::from_secs(180);
        let expected = tenants as u64 * 11;
        while server.stats()["requests"].as_u64().expect("a number") < expected && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(200));
        }
        std::thread::sleep(Duration::from_secs(5));
        let before = (Instant::now(), stat(child.id()).expect("it runs").1, server.stats());
        let wait = if tenants == 1 { 10 } else { seconds };
        std::thread::sleep(Duration::from_secs(wait));
        let took = before.0.elapsed().as_secs_f64();
        let cpu = stat(child.id()).expect("it runs").1 - before.1;
        let after = server.stats();
        let resident = memory_mib(child.id(), "VmRSS:");
        let peak = memory_mib(child.id(), "VmHWM:");
        let seconds: Vec<u64> = serde_json::from_value(after["by_second"].clone()).expect("numbers");
        let skip = before.2["by_second"].as_array().expect("numbers").len();
        let idle = &seconds[skip.min(seconds.len())..];
        let start = &seconds[..skip.min(seconds.len())];
        println!(
            "{tenants} tenants: {:.2} % of a core over {took:.0} s, {resident:.1} MiB resident (peak {peak:.1}), {} requests in all, most in one second {} at the start and {} while idle (mean {:.1})",
            100.0 * cpu / took,
            after["requests"],
            start.iter().max().unwrap_or(&0),
            idle.iter().max().unwrap_or(&0),
            idle.iter().sum::<u64>() as f64 / idle.len().max(1) as f64
        );
        memory.push(resident);
        let _ = child.kill();
        let _ = child.wait();
    }
    println!(
        "{:.1} KiB for each tenant beyond the first",
        (memory[1] - memory[0]) * 1024.0 / (count - 1).max(1) as f64
    );
}

/// Many active tenants: how evenly they progress.
fn share(count: u64) {
    let scratch = Scratch::new();
    let feed = Feed { blobs: 400, events: 50, ..Feed::default() };
    let server = Server::start(&feed);
    let dir = scratch.fresh("run");
    let agent = Agent { server: &server, tenants: count as usize, source: FULL_SPEED, once: true, binary: &binary() };
    let mut child = agent.command(&dir).spawn().expect("it starts");
    let total = count * 400;
    let blobs = |stats: &serde_json::Value| -> Vec<u64> {
        stats["by_tenant"].as_object().expect("tenants").values().filter_map(serde_json::Value::as_u64).collect()
    };
    // Half-way.
    loop {
        let now = blobs(&server.stats());
        if now.iter().sum::<u64>() > total / 2 {
            let (least, most) = (now.iter().min().unwrap_or(&0), now.iter().max().unwrap_or(&0));
            println!(
                "{} tenants began; half-way the slowest had {least} requests answered, the fastest {most}",
                now.len()
            );
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut peak = 0.0_f64;
    while stat(child.id()).is_some_and(|(state, _)| state != 'Z') {
        peak = peak.max(memory_mib(child.id(), "VmHWM:"));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(child.wait().is_ok_and(|status| status.success()), "the run failed");
    println!("{} events delivered of {}, peak {peak:.1} MiB", lines_of(&dir.join("out.ndjson")), total * 50);
}

/// Many tenants that catch up over blobs that take a while each, so many at once: how much memory they hold together.
fn catch_up(count: u64, blobs: u64, events: u64, latency_ms: u64, reading: u64) {
    let scratch = Scratch::new();
    let feed = Feed { blobs, events, latency_ms, ..Feed::default() };
    let server = Server::start(&feed);
    let dir = scratch.fresh("run");
    let agent = Agent { server: &server, tenants: count as usize, source: FULL_SPEED, once: false, binary: &binary() };
    let began = Instant::now();
    let mut command = agent.command(&dir);
    if reading > 0 {
        let path = dir.join("agent.toml");
        let text = std::fs::read_to_string(&path).expect("a file");
        std::fs::write(path, format!("catch_up_tenants_max = {reading}\n{text}")).expect("a file");
    }
    let mut child = command.spawn().expect("it starts");
    let out = dir.join("out.ndjson");
    let bytes = || std::fs::metadata(&out).map_or(0, |m| m.len());
    let (mut peak, mut grown, mut seen) = (0.0_f64, Instant::now(), 0);
    // It ends when no record has come for a while.
    while grown.elapsed() < Duration::from_secs(15) {
        peak = peak.max(memory_mib(child.id(), "VmHWM:"));
        let now = bytes();
        if now != seen {
            (grown, seen) = (Instant::now(), now);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    println!(
        "{count} tenants, {reading} at once, {} events delivered of {}, {:.0} s, peak {peak:.1} MiB, {:.1} MiB when done",
        lines_of(&out),
        count * blobs * events,
        (grown - began).as_secs_f64(),
        memory_mib(child.id(), "VmRSS:")
    );
    let _ = child.kill();
    let _ = child.wait();
}

/// From the listing that first shows a blob to its records in the file.
fn latency(blobs: u64) {
    let scratch = Scratch::new();
    let feed = Feed { blobs: 0, events: 20, fresh_ms: 700, ..Feed::default() };
    let server = Server::start(&feed);
    let dir = scratch.fresh("run");
    let source = "poll_interval_secs = 1";
    let agent = Agent { server: &server, tenants: 1, source, once: false, binary: &binary() };
    let mut child = agent.command(&dir).spawn().expect("it starts");
    let out = dir.join("out.ndjson");
    let (mut seen, mut at) = (Vec::new(), Vec::new());
    while (at.len() as u64) < blobs {
        let lines = std::fs::metadata(&out).map_or(0, |m| m.len());
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time").as_millis() as i64;
        if lines > 0 && seen.last() != Some(&lines) {
            seen.push(lines);
            let complete = lines_of(&out) / 20;
            at.resize(at.len().max(complete as usize), now);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let listed: Vec<i64> = serde_json::from_value(server.stats()["fresh_listed"].clone()).expect("times");
    let mut late: Vec<i64> = listed.iter().zip(&at).map(|(listed, at)| at - listed).collect();
    late.sort_unstable();
    let of = |share: f64| late[((late.len() - 1) as f64 * share) as usize];
    println!(
        "{} blobs, from listing to file: median {} ms, p90 {} ms, p99 {} ms, worst {} ms",
        late.len(),
        of(0.5),
        of(0.9),
        of(0.99),
        of(1.0)
    );
    let _ = child.kill();
    let _ = child.wait();
}

/// A backlog larger than the quota: how much of the quota is used, and whether new blobs wait.
fn pace(seconds: u64, quota: u64) {
    let scratch = Scratch::new();
    let feed =
        Feed { blobs: 60_000, events: 20, quota, latency_ms: 300, fresh_ms: 20_000, page: 500, ..Feed::default() };
    let server = Server::start(&feed);
    let dir = scratch.fresh("run");
    let source = "max_requests_per_minute = 2000\nbackfill_secs = 604800\npoll_interval_secs = 30";
    let agent = Agent { server: &server, tenants: 2, source, once: false, binary: &binary() };
    let mut child = agent.command(&dir).spawn().expect("it starts");
    std::thread::sleep(Duration::from_secs(seconds));
    let stats = server.stats();
    let _ = child.kill();
    let _ = child.wait();
    let by_tenant = stats["by_tenant"].as_object().expect("tenants");
    for (tenant, requests) in by_tenant {
        println!(
            "tenant {tenant}: {requests} requests, {:.1} % of {quota} a minute",
            requests.as_f64().unwrap_or(0.0) * 6000.0 / (seconds * quota) as f64
        );
    }
    println!("{} of {} throttled", stats["throttled"], stats["requests"]);
    // The second group of an id of a fresh blob is its number; its events are looked for in the output.
    let text = std::fs::read_to_string(dir.join("out.ndjson")).unwrap_or_default();
    let listed: Vec<i64> = serde_json::from_value(stats["fresh_listed"].clone()).expect("times");
    let delivered = (0..listed.len()).filter(|n| text.contains(&format!("\"event_id\":\"{:08x}-", 60_000 + n))).count();
    println!("{delivered} of {} blobs published meanwhile were delivered", listed.len());
}
