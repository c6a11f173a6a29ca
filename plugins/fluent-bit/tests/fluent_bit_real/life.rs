//! The simulated tenant on one side, `-o file` on the other, and everything that happens to a Fluent Bit in between.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use m365_audit::sim::SimConfig;
use serde_json::Value;
use test_support::{Mounted, free_port};

use crate::agent::{Agent, Build, Setup, fluent_bit};
use crate::support::{self, Patience, Service, wait_until};
use crate::symbols;

/// The loader takes only the memory functions from the executable, for every build of it.
#[test]
fn of_all_that_this_fluent_bit_exports_the_plugin_takes_its_memory_and_nothing_else() {
    let (Some(program), Some(library)) = (fluent_bit(), support::library()) else { return };
    let build = Build::of(&program);
    let undefined = symbols::read(&library).symbols.into_iter().filter(|symbol| !symbol.exported);
    let mut taken: Vec<String> = undefined.map(|symbol| symbol.name).filter(|name| build.exports(name)).collect();
    taken.sort();
    // Rust's own allocator refers to it but is not used, so the optimiser may remove it.
    taken.retain(|name| name != "posix_memalign");
    let expected: &[&str] = match build.has_own_malloc() {
        true => &["calloc", "free", "malloc", "realloc"],
        false => &[],
    };
    assert_eq!(taken, expected, "{build}");
}

/// The cause of crashes at every start of some builds: tables of keys, read at the start, in the memory of Fluent Bit's
/// packages.
#[test]
fn starts_beside_a_kept_state_of_thousands_of_keys_do_not_crash_and_go_on_where_it_ended() {
    for setup in [Setup::safe(), Setup::threaded()] {
        let service = Service::new(1);
        service.publish(40, 150);
        let Some(mut agent) = Agent::new(&service.properties(), &setup) else { return };
        for blobs in [0, 3, 3, 3, 3, 3] {
            service.publish_now(blobs, 20);
            agent.start();
            agent.wait_until_all(&service);
            agent.terminate();
        }
        service.assert_nothing_lost(&agent.records());
    }
}

#[test]
fn every_event_reaches_the_file_once_with_metrics_in_the_hosts_own_page() {
    let service = Service::new(1);
    service.publish(40, 50);
    let port = free_port();
    for setup in [Setup::safe(), Setup::default()] {
        let setup = Setup { http_port: Some(port), ..setup.with("log_level", "debug") };
        let Some(mut agent) = Agent::new(&service.properties(), &setup) else { return };
        agent.start();
        agent.wait_until_all(&service);
        let page = wait_for_page(&agent, port, "a metric of ours", |page| page.contains("m365_audit_events_total{"));
        assert!(page.contains("m365_audit_blobs_total{"), "{page}");
        agent.terminate();
        service.assert_exact(&agent.records());
        let log = agent.log();
        assert!(!log.contains(&service.config.client_secret) && log.contains("client_secret=***"), "{log}");
        let state = format!("state (positions and delivered events): {}", agent.path("state").display());
        assert!(log.contains(&state), "{log}");
        assert!(log.contains("take records as soon as they wait listens=true"), "{log}");
    }
}

#[test]
fn back_pressure_pauses_the_input_and_loses_nothing() {
    let service = Service::new(1);
    service.publish(100, 50);
    for threaded in ["off", "on"] {
        let port = free_port();
        let output = format!("name: tcp\n      host: 127.0.0.1\n      port: {port}\n      format: json_lines");
        let setup = Setup { output: Some(output), ..Setup::default() }
            .with("threaded", threaded)
            .with("mem_buf_limit", "1M")
            .with("bytes_per_tick_max", "512K");
        let Some(mut agent) = Agent::new(&service.properties(), &setup) else { return };
        agent.start();
        wait_until("pause", || agent.log().contains("paused (mem buf overlimit"));
        let receiver = Receiver::start(port);
        wait_until_received(&service, &receiver, &agent);
        service.assert_nothing_lost(&receiver.records());
        agent.terminate();
    }
}

#[test]
fn stops_in_a_backlog_lose_nothing() {
    let service = Service::new(1);
    service.publish(100, 50);
    let setup = Setup::safe().with("bytes_per_tick_max", "512K");
    let Some(mut agent) = Agent::new(&service.properties(), &setup) else { return };
    for _ in 0..3 {
        let before = agent.records().len();
        agent.start();
        wait_until("more records", || agent.records().len() > before);
        agent.terminate();
    }
    assert!(!service.has_all(&agent.records()), "the backlog was too small for this test");
    agent.start();
    agent.wait_until_all(&service);
    agent.terminate();
    service.assert_nothing_lost(&agent.records());
}

#[test]
fn a_reload_in_a_backlog_loses_nothing() {
    let service = Service::new(1);
    service.publish(100, 50);
    for setup in [Setup::safe(), Setup::default()] {
        let setup = setup.with("bytes_per_tick_max", "512K");
        let Some(mut agent) = Agent::new(&service.properties(), &setup) else { return };
        agent.start();
        for _ in 0..2 {
            let before = agent.records().len();
            wait_until("more records", || agent.records().len() > before);
            let starts = agent.log().matches("] started, ").count();
            agent.signal("HUP");
            wait_until("reload", || agent.log().matches("] started, ").count() > starts);
        }
        agent.wait_until_all(&service);
        agent.terminate();
        service.assert_nothing_lost(&agent.records());
    }
}

#[test]
fn killed_at_any_moment_it_loses_nothing_with_filesystem_storage() {
    killed_at_any_moment(&Setup::safe());
}

#[test]
fn killed_at_any_moment_it_loses_nothing_with_filesystem_storage_when_threaded() {
    killed_at_any_moment(&Setup::threaded());
}

fn killed_at_any_moment(setup: &Setup) {
    let service = Service::new(1);
    service.publish(100, 50);
    let setup = setup.clone().with("bytes_per_tick_max", "512K");
    let Some(mut agent) = Agent::new(&service.properties(), &setup) else { return };
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..6 {
        agent.start();
        let before = agent.records().len();
        wait_until("more records", || agent.records().len() > before || service.has_all(&agent.records()));
        std::thread::sleep(Duration::from_millis(random.u64(..1_200)));
        agent.kill();
    }
    agent.start();
    agent.wait_until_all(&service);
    agent.terminate();
    service.assert_nothing_lost(&agent.records());
    println!("after six kills: {}", service.compare(&agent.records()));
}

/// The engine empties the ring each 250 ms; a variable for Fluent Bit's developers makes it as slow as one that is busy.
#[test]
fn killed_while_a_busy_engine_leaves_records_in_memory_it_loses_nothing_when_threaded() {
    let service = Service::new(1);
    service.publish(40, 50);
    let port = free_port();
    let setup = Setup { http_port: Some(port), ..Setup::threaded() };
    let Some(mut agent) = Agent::new(&service.properties(), &setup) else { return };
    agent.environment = vec![("FLB_DEV_RB_MS", "9000".to_owned())];
    agent.start();
    let started = Instant::now();
    let writes = "fluentbit_input_ring_buffer_writes_total{name=\"m365_audit.0\"} ";
    wait_for_page(&agent, port, "records in the ring", |page| {
        page.lines().any(|line| line.strip_prefix(writes).is_some_and(|count| count != "0"))
    });
    // A second in the engine's ring is enough unless the counters show that the engine has not come so far.
    std::thread::sleep(Duration::from_secs(4));
    agent.kill();
    // On a machine too busy to reach this point in time, the test is inconclusive.
    assert!(agent.records().is_empty() || started.elapsed() > Duration::from_secs(9));
    agent.environment.clear();
    agent.start();
    agent.wait_until_all(&service);
    agent.terminate();
    service.assert_nothing_lost(&agent.records());
}

/// It then counts fewer records than it got, and none of some buffers.
#[test]
fn a_processor_that_drops_records_holds_up_none_of_the_others_when_threaded() {
    let service = Service::new(1);
    service.publish(60, 20);
    let processors =
        "      processors:\n        logs:\n          - name: grep\n            exclude: workload ^Exchange$\n";
    let Some(mut agent) = Agent::new(&service.properties(), &Setup { processors, ..Setup::threaded() }) else { return };
    let events = service.sim.truth().events;
    let stays = |event: &[u8]| serde_json::from_slice::<Value>(event).unwrap_or_default()["Workload"] != "Exchange";
    let expected: BTreeSet<&str> =
        events.iter().filter(|event| stays(&event.raw)).filter_map(|event| event.id.as_deref()).collect();
    let ids = |agent: &Agent| -> BTreeSet<String> {
        agent.records().iter().filter_map(|record| record["event_id"].as_str().map(str::to_owned)).collect()
    };
    agent.start();
    wait_until("every record that stays", || {
        let found = ids(&agent);
        expected.iter().all(|id| found.contains(*id))
    });
    // Records not confirmed by the end come again.
    let polled = service.sim.activity();
    wait_until("more polls", || service.sim.activity() > polled + 150);
    agent.terminate();
    agent.start();
    let polled = service.sim.activity();
    wait_until("polls after the restart", || service.sim.activity() > polled + 20);
    agent.terminate();
    let records = agent.records();
    assert!(
        records.iter().all(|record| record["workload"] != "Exchange") && expected.len() > 300,
        "{}",
        expected.len()
    );
    let repeated = service.compare(&records).duplicated;
    assert!(repeated.is_empty(), "{repeated:?}");
}

#[test]
fn two_tenants_go_through_one_instance_and_a_second_instance_is_refused() {
    let service = Service::new(2);
    service.publish(30, 30);
    let files = tempfile::tempdir().unwrap();
    let tenants = files.path().join("tenants.toml");
    fs::write(&tenants, service.config_file(&files.path().join("state"))).unwrap();
    let properties = [("config_file".to_owned(), tenants.display().to_string())];
    let Some(mut agent) = Agent::new(&properties, &Setup::safe()) else { return };
    agent.start();
    agent.wait_until_all(&service);
    agent.terminate();
    service.assert_exact(&agent.records());

    for setup in [Setup::safe(), Setup::default()] {
        let Some(mut agent) = Agent::new(&properties, &Setup { second_input: true, ..setup }) else { return };
        agent.start();
        assert!(!agent.wait().success());
        assert!(agent.log().contains("fluent-bit-second-instance"), "{}", agent.log());
    }
}

#[test]
fn a_full_disk_for_chunks_delays_records_and_loses_none() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = Mounted::at(dir.path(), "size=2m") else { return };
    let service = Service::new(1);
    service.publish(60, 50);
    // An output that accepts nothing at first, so that the chunks stay.
    let port = free_port();
    let output = format!("name: tcp\n      host: 127.0.0.1\n      port: {port}\n      format: json_lines");
    let setup = Setup { output: Some(output), chunks: Some(disk.path().to_owned()), ..Setup::safe() };
    let Some(mut agent) = Agent::new(&service.properties(), &setup) else { return };
    agent.start();
    wait_until("word of the refusal", || agent.log().contains("fluent-bit-append-refused"));
    let receiver = Receiver::start(port);
    wait_until_received(&service, &receiver, &agent);
    service.assert_nothing_lost(&receiver.records());
    wait_until("word of the end", || agent.log().contains("Fluent Bit takes buffers again"));
    agent.terminate();
}

#[test]
fn a_secret_comes_from_the_environment_a_file_or_the_hosts_own_section() {
    let service = Service::new(1);
    service.publish(5, 10);
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("secret");
    fs::write(&file, format!("{}\n", service.config.client_secret)).unwrap();
    let of_the_host = format!("env:\n  - name: FROM_THE_HOST\n    uri: file://{}\n", file.display());
    let in_a_file = file.display().to_string();
    for (key, value, top) in [
        ("client_secret", "${FROM_THE_ENVIRONMENT}", ""),
        ("client_secret_file", in_a_file.as_str(), ""),
        ("client_secret", "${FROM_THE_HOST}", of_the_host.as_str()),
    ] {
        let mut properties = service.properties();
        properties.retain(|(name, _)| name != "client_secret");
        properties.push((key.to_owned(), value.to_owned()));
        let setup = Setup { top: top.to_owned(), ..Setup::safe() };
        let Some(mut agent) = Agent::new(&properties, &setup) else { return };
        agent.environment = vec![("FROM_THE_ENVIRONMENT", service.config.client_secret.clone())];
        agent.start();
        agent.wait_until_all(&service);
        agent.terminate();
        assert!(!agent.log().contains(&service.config.client_secret));
    }
}

/// The folder a user copies: both formats, with only the addresses and the library's path replaced.
#[test]
fn the_examples_show_the_same_records_on_standard_output_and_in_the_file() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/fluent-bit");
    for name in ["fluent-bit.yaml", "fluent-bit.conf"] {
        let (Some(program), Some(library)) = (fluent_bit(), support::library()) else { return };
        let service = Service::of(SimConfig::default());
        service.publish(40, 20);
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        for file in [name, "plugins.conf"] {
            let text = fs::read_to_string(examples.join(file)).unwrap();
            let text = text
                .replace("target/release/libm365_audit.so", library.to_str().unwrap())
                .replace("http://127.0.0.1:8080", &service.sim.url())
                .replace(" 2020", &format!(" {port}"));
            fs::write(dir.path().join(file), text).unwrap();
        }
        let mut agent = Agent { program, dir, config: name, environment: Vec::new(), under: Vec::new(), child: None };
        agent.start();
        // Without the events that the source drops by rule, and the few without an id.
        let events = service.sim.truth().events;
        let expected: BTreeSet<&str> =
            events.iter().filter(|event| !is_routine(&event.raw)).filter_map(|event| event.id.as_deref()).collect();
        let ids = |text: &str| -> BTreeSet<String> {
            let records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            records.filter_map(|record| record["event_id"].as_str().map(str::to_owned)).collect()
        };
        let in_file = |agent: &Agent| ids(&fs::read_to_string(agent.path("m365-try/audit.ndjson")).unwrap_or_default());
        wait_until("every record in the file", || {
            let found = in_file(&agent);
            expected.iter().all(|id| found.contains(*id))
        });
        agent.terminate();
        assert!(expected.len() > 500, "{}", expected.len());
        assert!(ids(&agent.log()) == in_file(&agent), "{}", agent.log());
    }
}

fn is_routine(event: &[u8]) -> bool {
    let event: Value = serde_json::from_slice(event).unwrap_or_default();
    let operation = event["Operation"].as_str().unwrap_or_default().trim().to_ascii_lowercase();
    operation == "fileaccessed" || operation == "mailitemsaccessed"
}

/// From load to unload. Memory that a static of the plugin still holds at the end is not a leak.
#[test]
fn valgrind_finds_no_error_and_no_leak_of_ours() {
    let Some(valgrind) = test_support::program("valgrind") else { return };
    let service = Service::new(1);
    service.publish(5, 10);
    for setup in [Setup::safe(), Setup::default()] {
        let Some(mut agent) = Agent::new(&service.properties(), &setup) else { return };
        let report = agent.path("valgrind");
        let options = [
            valgrind.to_str().unwrap(),
            "--leak-check=full",
            "--show-leak-kinds=definite,indirect",
            "--num-callers=60",
        ];
        agent.under =
            options.map(str::to_owned).into_iter().chain([format!("--log-file={}", report.display())]).collect();
        agent.start();
        agent.wait_until_all(&service);
        agent.terminate();
        let report = fs::read_to_string(report).unwrap();
        assert!(report.contains("ERROR SUMMARY"), "{report}");
        // Each finding is a paragraph; the stack names the library of each frame.
        let lines = report.lines().map(|line| line.split_once("== ").map_or("", |(_, text)| text));
        let text = lines.collect::<Vec<_>>().join("\n");
        let ours: Vec<&str> = text.split("\n\n").filter(|finding| finding.contains("libm365_audit")).collect();
        assert!(ours.is_empty(), "{}", ours.join("\n\n"));
    }
}

/// In the words of the user's own file, even if Fluent Bit converts them.
#[test]
fn a_wrong_name_stops_the_start_with_the_right_one() {
    let service = Service::new(1);
    for (written, said) in [
        ("state_path", "`state_path` is not a property of this input; use `data_dir`"),
        ("Backfil_Secs", "`backfil_secs` is not a property of this input; use `backfill_secs`"),
        ("tenant-id", "`tenant-id` is not a property of this input; use `tenant_id`"),
        ("storage_type", "`storage_type` is not a property of this input; use Fluent Bit's `storage.type`"),
    ] {
        let Some(mut agent) = Agent::new(&service.properties(), &Setup::safe().with(written, "1")) else { return };
        agent.start();
        assert!(!agent.wait().success());
        assert!(agent.log().contains(said), "{}", agent.log());
    }
    // `camelCase` is Fluent Bit's own way to write a name in YAML.
    let mut properties = service.properties();
    let secret = properties.iter_mut().find(|(name, _)| name == "client_secret").unwrap();
    secret.0 = "clientSecret".to_owned();
    service.publish(5, 10);
    let Some(mut agent) = Agent::new(&properties, &Setup::safe()) else { return };
    agent.start();
    agent.wait_until_all(&service);
    agent.terminate();
}

#[test]
fn a_wrong_value_stops_the_start_with_the_reason() {
    let service = Service::new(1);
    let setup = Setup::safe().with("content_types", "Audit.Exchnage");
    let Some(mut agent) = Agent::new(&service.properties(), &setup) else { return };
    agent.start();
    assert!(!agent.wait().success());
    assert!(agent.log().contains("`content_types[0]` is `Audit.Exchnage`"), "{}", agent.log());
}

fn wait_until_received(service: &Service, receiver: &Receiver, agent: &Agent) {
    let mut patience = Patience::new();
    while !service.has_all(&receiver.records()) {
        let lasts = patience.lasts(Duration::from_millis(200));
        assert!(lasts, "{}\n{}", service.compare(&receiver.records()), agent.log());
    }
}

/// Waits for the host's page of metrics to fulfil a condition; what it had instead is in the failure.
fn wait_for_page(agent: &Agent, port: u16, what: &str, fulfils: impl Fn(&str) -> bool) -> String {
    let mut patience = Patience::new();
    loop {
        let page = get(port, "/api/v2/metrics/prometheus");
        if let Ok(text) = &page
            && fulfils(text)
        {
            return text.clone();
        }
        let lasts = patience.lasts(Duration::from_millis(20));
        assert!(lasts, "still not in the host's page: {what}; the page: {page:?}\n{}", agent.log());
    }
}

fn get(port: u16, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

/// Takes JSON lines over TCP.
struct Receiver {
    records: std::sync::Arc<std::sync::Mutex<Vec<Value>>>,
}

impl Receiver {
    fn start(port: u16) -> Self {
        // Whoever asked the system for a port had it open a moment ago; a program that another test starts keeps a copy of it
        // between its `fork` and its `exec`.
        let mut bound = None;
        wait_until(&format!("port {port} is free"), || {
            bound = TcpListener::bind(("127.0.0.1", port)).ok();
            bound.is_some()
        });
        let listener = bound.unwrap();
        let records = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let all = records.clone();
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let all = all.clone();
                std::thread::spawn(move || {
                    for line in BufReader::new(stream).lines().map_while(Result::ok) {
                        all.lock().unwrap().extend(serde_json::from_str::<Value>(&line));
                    }
                });
            }
        });
        Self { records }
    }

    fn records(&self) -> Vec<Value> {
        self.records.lock().unwrap().clone()
    }
}
