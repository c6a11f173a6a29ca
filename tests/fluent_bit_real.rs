//! The plugin in a real Fluent Bit, named by `FLUENT_BIT` or found in `PATH`; without one each test says so and passes.
//! The simulated tenant on one side, `-o file` on the other, and everything that happens to an agent in between.

#![cfg(all(target_os = "linux", feature = "fluent-bit", feature = "sim"))]

#[path = "fluent_bit_support/mod.rs"]
mod support;

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

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
    output: Option<String>,
    http_port: Option<u16>,
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
}

struct Agent {
    program: PathBuf,
    dir: tempfile::TempDir,
    child: Option<Child>,
}

impl Agent {
    /// Writes the configuration of an agent with `properties` and `setup`. `None`: nothing to test with.
    fn new(properties: &[(String, String)], setup: &Setup) -> Option<Self> {
        let (program, library) = (fluent_bit()?, support::library()?);
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        let port = setup.http_port.map(|p| format!("  http_server: on\n  http_port: {p}\n")).unwrap_or_default();
        let mut text = format!(
            "service:\n  flush: 0.2\n  grace: 2\n  hot_reload: on\n  storage.path: {at}/storage\n{port}\
             plugins:\n  - {}\npipeline:\n  inputs:\n",
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
        }
        let file = format!("name: file\n      path: {at}\n      file: out.json\n      format: plain");
        let output = setup.output.clone().unwrap_or(file);
        let _ = write!(text, "  outputs:\n    - {output}\n      match: '*'\n      retry_limit: no_limits\n");
        fs::write(dir.path().join("agent.yaml"), text).unwrap();
        Some(Self { program, dir, child: None })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(self.path("agent.yaml")).stdout(log.try_clone().unwrap()).stderr(log);
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
    for setup in [Setup { http_port: Some(port), ..Setup::safe() }, Setup { http_port: Some(port), ..Setup::default() }]
    {
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
        let start = Instant::now();
        while !service.has_all(&receiver.records()) {
            assert!(start.elapsed() < PATIENCE, "{}\n{}", service.compare(&receiver.records()), agent.log());
            std::thread::sleep(Duration::from_millis(200));
        }
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
    let service = Service::new(1);
    service.publish(100, 50);
    let setup = Setup::safe().with("bytes_per_tick_max", "512K");
    let Some(mut agent) = Agent::new(&service.properties(), &setup) else { return };
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..6 {
        agent.start();
        let before = agent.records().len();
        wait_until("more records", || agent.records().len() > before || service.has_all(&agent.records()));
        std::thread::sleep(Duration::from_millis(random.u64(..1_200)));
        agent.signal("KILL");
        assert_eq!(agent.wait().signal(), Some(9));
    }
    agent.start();
    agent.wait_until_all(&service);
    agent.terminate();
    service.assert_nothing_lost(&agent.records());
    println!("after six kills: {}", service.compare(&agent.records()));
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
fn a_wrong_value_stops_the_start_with_the_reason() {
    let service = Service::new(1);
    let setup = Setup::safe().with("content_types", "Audit.Exchnage");
    let Some(mut agent) = Agent::new(&service.properties(), &setup) else { return };
    agent.start();
    assert!(!agent.wait().success());
    assert!(agent.log().contains("`content_types[0]` is `Audit.Exchnage`"), "{}", agent.log());
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
