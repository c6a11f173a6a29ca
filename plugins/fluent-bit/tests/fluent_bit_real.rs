//! The plugin in a real Fluent Bit, named by `FLUENT_BIT` or found in `PATH`; without one each test says so and passes.
//! The simulated tenant on one side, `-o file` on the other, and everything that happens to an agent in between.

#![cfg(target_os = "linux")]

#[path = "fluent_bit_support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use m365_audit::sim::SimConfig;
use serde_json::Value;
use support::{PATIENCE, Service, wait_until};

fn fluent_bit() -> Option<PathBuf> {
    let named = std::env::var_os("FLUENT_BIT").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = named.into_iter().chain(std::env::split_paths(&path).map(|dir| dir.join("fluent-bit")));
    let found = found.into_iter().find(|path| path.is_file());
    if found.is_none() {
        println!("skipped: no Fluent Bit; name one in FLUENT_BIT or put it into PATH");
    }
    found
}

/// How an agent is set up, beside what all of them have.
#[derive(Clone, Default)]
struct Setup {
    input: Vec<(&'static str, String)>,
    second_input: bool,
    /// Written below the input's properties.
    processors: &'static str,
    output: Option<String>,
    http_port: Option<u16>,
    /// Another place for the chunks.
    chunks: Option<PathBuf>,
    /// Sections of the configuration beside those all have.
    top: String,
}

impl Setup {
    fn with(mut self, key: &'static str, value: &str) -> Self {
        self.input.push((key, value.to_owned()));
        self
    }

    /// What the examples have: a crash of the agent then costs nothing.
    fn safe() -> Self {
        Self::default().with("threaded", "off").with("storage.type", "filesystem")
    }

    /// The same on a thread of its own.
    fn threaded() -> Self {
        Self::default().with("threaded", "on").with("storage.type", "filesystem")
    }
}

struct Agent {
    program: PathBuf,
    dir: tempfile::TempDir,
    /// The name of its configuration in `dir`, where it also runs.
    config: &'static str,
    environment: Vec<(&'static str, String)>,
    /// A program, with its arguments, that runs Fluent Bit.
    under: Vec<String>,
    child: Option<Child>,
}

impl Agent {
    /// Writes the configuration of an agent with `properties` and `setup`. `None`: nothing to test with.
    fn new(properties: &[(String, String)], setup: &Setup) -> Option<Self> {
        let (program, library) = (fluent_bit()?, support::library()?);
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        let port = setup.http_port.map(|p| format!("  http_server: on\n  http_port: {p}\n")).unwrap_or_default();
        let chunks = setup.chunks.clone().unwrap_or_else(|| dir.path().join("storage"));
        let mut text = format!(
            "{}service:\n  flush: 0.2\n  grace: 2\n  hot_reload: on\n  storage.path: {}\n{port}\
             plugins:\n  - {}\npipeline:\n  inputs:\n",
            setup.top,
            chunks.display(),
            library.display()
        );
        for n in 0..1 + u8::from(setup.second_input) {
            let _ = write!(text, "    - name: m365_audit\n      tag: m365.{n}\n");
            if !properties.iter().any(|(key, _)| key == "config_file") {
                let _ = writeln!(text, "      data_dir: {at}/state");
            }
            let own = properties.iter().map(|(key, value)| (key.as_str(), value));
            for (key, value) in own.chain(setup.input.iter().map(|(key, value)| (*key, value))) {
                let _ = writeln!(text, "      {key}: '{value}'");
            }
            text += setup.processors;
        }
        let file = format!("name: file\n      path: {at}\n      file: out.json\n      format: plain");
        let output = setup.output.clone().unwrap_or(file);
        let _ = write!(text, "  outputs:\n    - {output}\n      match: '*'\n      retry_limit: no_limits\n");
        fs::write(dir.path().join("agent.yaml"), text).unwrap();
        Some(Self { program, dir, config: "agent.yaml", environment: Vec::new(), under: Vec::new(), child: None })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let program = self.program.as_os_str().to_owned();
        let words: Vec<OsString> = self.under.iter().map(OsString::from).chain([program]).collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command.current_dir(self.dir.path()).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.arg("-c").arg(self.path(self.config)).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    fn signal(&self, name: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let start = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if start.elapsed() > PATIENCE {
                let _ = child.kill();
                panic!("it does not end:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn kill(&mut self) {
        self.signal("KILL");
        assert_eq!(self.wait().signal(), Some(9));
    }

    fn terminate(&mut self) {
        self.signal("TERM");
        let status = self.wait();
        assert!(status.success(), "{status}:\n{}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn records(&self) -> Vec<Value> {
        read_records(&self.path("out.json"))
    }

    fn wait_until_all(&mut self, service: &Service) {
        let start = Instant::now();
        while !service.has_all(&self.records()) {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert_eq!(ended, None, "it has ended:\n{}", self.log());
            assert!(start.elapsed() < PATIENCE, "{}\n{}", service.compare(&self.records()), self.log());
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The records of a file; a line a killed agent did not finish is left out, what it wrote behind it later is not.
fn read_records(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let record = |line: &str| {
        let whole = serde_json::from_str(line).ok();
        whole.or_else(|| serde_json::from_str(line.get(line.rfind("{\"source\":\"m365\"")?..)?).ok())
    };
    text.lines().filter_map(record).collect()
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
        let mut page = String::new();
        wait_until("metric of ours in the host's page", || {
            page = get(port, "/api/v2/metrics/prometheus").unwrap_or_default();
            page.contains("m365_audit_events_total{")
        });
        assert!(page.contains("m365_audit_blobs_total{"), "{page}");
        agent.terminate();
        service.assert_exact(&agent.records());
        let log = agent.log();
        assert!(!log.contains(&service.config.client_secret) && log.contains("\"client_secret\":\"***\""), "{log}");
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
    wait_until("records in the ring", || {
        let page = get(port, "/api/v2/metrics/prometheus").unwrap_or_default();
        page.lines().any(|line| line.strip_prefix(writes).is_some_and(|count| count != "0"))
    });
    // A second in an engine's hands is enough when nothing says that it has not come so far.
    std::thread::sleep(Duration::from_secs(4));
    agent.kill();
    // On a machine too busy to come here in time there is nothing to see.
    assert!(agent.records().is_empty() || started.elapsed() > Duration::from_secs(9));
    agent.environment.clear();
    agent.start();
    agent.wait_until_all(&service);
    agent.terminate();
    service.assert_nothing_lost(&agent.records());
}

/// It then counts fewer records than it was given, and of some buffers nothing.
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
    // What is not confirmed until the end comes again.
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
    let Some(disk) = SmallDisk::mount() else { return };
    let service = Service::new(1);
    service.publish(60, 50);
    // An output that takes nothing at first, so that the chunks stay.
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
        // What the source drops by rule is left out; so are the few events without an id.
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

/// From load to unload. What a static of ours still holds at the end is no leak.
#[test]
fn valgrind_finds_no_error_and_no_leak_of_ours() {
    if !Command::new("valgrind").arg("--version").output().is_ok_and(|output| output.status.success()) {
        println!("skipped: no valgrind in PATH");
        return;
    }
    let service = Service::new(1);
    service.publish(5, 10);
    for setup in [Setup::safe(), Setup::default()] {
        let Some(mut agent) = Agent::new(&service.properties(), &setup) else { return };
        let report = agent.path("valgrind");
        let options = ["valgrind", "--leak-check=full", "--show-leak-kinds=definite,indirect", "--num-callers=60"];
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
    let start = Instant::now();
    while !service.has_all(&receiver.records()) {
        assert!(start.elapsed() < PATIENCE, "{}\n{}", service.compare(&receiver.records()), agent.log());
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A file system of 2 MiB, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(dir.path()).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(dir));
        }
        println!("skipped: a small file system cannot be mounted here (needs root)");
        None
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).output();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
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
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
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
