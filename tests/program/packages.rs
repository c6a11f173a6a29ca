//! What is packaged says what is so: the unit, the configuration it ships, the container, the Kubernetes example, and
//! what the program tells a service manager and a health check.
//!
//! The `.deb` itself is built and installed by `.ci/package`; here is what needs no release build.
#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use m365_audit::clock::SystemClock;
use m365_audit::config::Config;
use m365_audit::sim::{GenerateSpec, Sim, SimConfig};

/// A message of the program, however busy the machine is.
const MESSAGE_WAIT: Duration = Duration::from_secs(60);
/// Highest exposure the unit may have, in tenths, by `systemd-analyze security`: 0 is shut, 100 open.
const EXPOSURE_MAX: &str = "15";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The unit with this build's program in the place of the installed one, which `verify` looks for.
fn unit(dir: &Path) -> PathBuf {
    let text = read("packaging/m365-audit.service");
    let here = text.replace("ExecStart=/usr/bin/m365-audit", concat!("ExecStart=", env!("CARGO_BIN_EXE_m365-audit")));
    assert_ne!(here, text);
    let path = dir.join("m365-audit.service");
    fs::write(&path, here).unwrap();
    path
}

#[test]
fn the_unit_is_understood_and_exposes_little() {
    let dir = tempfile::tempdir().unwrap();
    let path = unit(dir.path());
    let path = path.to_str().unwrap();
    let Some(program) = test_support::program("systemd-analyze") else { return };
    let analyze = |args: &[&str]| Command::new(&program).args(args).output().unwrap();
    let output = analyze(&["verify", "--man=no", path]);
    assert!(output.status.success() && told(&output).is_empty(), "{}", told(&output));
    let threshold = format!("--threshold={EXPOSURE_MAX}");
    let output = analyze(&["security", "--no-pager", "--offline=true", &threshold, path]);
    assert!(output.status.success(), "{}", told(&output));
}

#[test]
fn the_packaged_configuration_is_valid_and_fits_the_unit() {
    let unit = read("packaging/m365-audit.service");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("client_secret"), "x".repeat(40)).unwrap();
    let credentials = dir.path().to_str().unwrap().to_owned();
    let config = Config::parse(&read("packaging/agent.toml"), &|name| {
        (name == "CREDENTIALS_DIRECTORY").then(|| credentials.clone())
    });
    let config = config.unwrap_or_else(|error| panic!("{error}"));
    for warning in config.warnings() {
        assert!(warning.to_string().ends_with("is the place holder of the examples"), "{warning}");
    }
    assert!(unit.contains("LoadCredential=client_secret:"));
    for (setting, below, path) in [
        ("StateDirectory=m365-audit", "/var/lib/", config.data_dir.to_str().unwrap()),
        ("LogsDirectory=m365-audit", "/var/log/", "/var/log/m365-audit/audit.ndjson"),
    ] {
        assert!(unit.contains(setting));
        assert!(path.starts_with(&format!("{below}m365-audit")), "{path} is not writable under the unit");
    }
    assert!(read("packaging/agent.toml").contains("path = \"/var/log/m365-audit/audit.ndjson\""));
}

/// A running program, ended with the test.
struct Running {
    child: Child,
    socket: UnixDatagram,
    dir: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    /// `run` on a simulated tenant, with a service manager that listens.
    fn start(sim: &Sim, service: &SimConfig, environment: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket_path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&socket_path).unwrap();
        socket.set_read_timeout(Some(MESSAGE_WAIT)).unwrap();
        let config = format!(
            "data_dir = {data:?}\n[sources.a]\ntype = \"m365_audit\"\ntenant_id = \"{tenant}\"\nclient_id = \"{client}\"\n\
             client_secret = \"{secret}\"\napi_url = {url:?}\nauthority_url = {url:?}\n[sinks.f]\ntype = \"file\"\n\
             path = {out:?}\ninputs = [\"a\"]\n[metrics]\nlisten = \"{metrics}\"\n",
            data = dir.path().join("data"),
            tenant = service.tenants[0],
            client = service.client_id,
            secret = service.client_secret,
            url = sim.url(),
            out = dir.path().join("out.ndjson"),
            metrics = free_address(),
        );
        fs::write(dir.path().join("agent.toml"), config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
        command.args(["run", "-c"]).arg(dir.path().join("agent.toml"));
        command.env("NOTIFY_SOCKET", &socket_path).envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { child: command.spawn().unwrap(), socket, dir }
    }

    fn config(&self) -> String {
        self.dir.path().join("agent.toml").to_str().unwrap().to_owned()
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// The next message that is no beat, and how many beats came before it.
    fn message(&self) -> (String, usize) {
        let mut beats = 0;
        loop {
            let mut bytes = [0; 4096];
            let read = self.socket.recv(&mut bytes).expect("the program tells nothing more");
            let text = String::from_utf8(bytes[..read].to_vec()).unwrap();
            if text != "WATCHDOG=1\n" {
                return (text, beats);
            }
            beats += 1;
        }
    }
}

/// An address nobody listens on, as far as one can know.
fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

async fn tenant() -> (Sim, SimConfig) {
    let service = SimConfig::default();
    let sim = Sim::start(service.clone(), SystemClock::new()).await.unwrap();
    let now = sim.now();
    let from = now - jiff::SignedDuration::from_hours(2);
    sim.generate(&service.tenants[0], GenerateSpec::new(5, 3, from, now));
    (sim, service)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_manager_hears_ready_beats_reloading_and_stopping() {
    let (sim, service) = tenant().await;
    // Beats are a quarter of the period apart.
    let mut running = Running::start(&sim, &service, &[("WATCHDOG_USEC", "40000")]);
    tokio::task::spawn_blocking(move || {
        let (ready, _) = running.message();
        assert!(ready.starts_with("READY=1\nSTATUS=1 sources into 1 sinks\n"), "{ready}");
        let mut bytes = [0; 64];
        for _ in 0..3 {
            let read = running.socket.recv(&mut bytes).expect("the watchdog is fed");
            assert_eq!(&bytes[..read], b"WATCHDOG=1\n");
        }
        running.signal("HUP");
        let (reloading, _) = running.message();
        assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
        assert!(running.message().0.starts_with("READY=1\n"));
        running.signal("TERM");
        assert_eq!(running.message().0, "STOPPING=1\n");
        assert!(running.child.wait().unwrap().success());
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_of_an_agent_does_not_speak_for_the_agents_service() {
    let (sim, service) = tenant().await;
    let mut running =
        Running::start(&sim, &service, &[("SYSTEMD_EXEC_PID", "1"), ("WATCHDOG_USEC", "40000"), ("WATCHDOG_PID", "1")]);
    tokio::task::spawn_blocking(move || {
        // It runs, which only its metrics listener tells.
        until_healthy(&running.config());
        running.signal("TERM");
        assert!(running.child.wait().unwrap().success());
        running.socket.set_nonblocking(true).unwrap();
        assert!(running.socket.recv(&mut [0; 64]).is_err(), "it told the service manager something");
    })
    .await
    .unwrap();
}

fn health(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_m365-audit")).arg("health").args(args).output().unwrap()
}

fn until_healthy(config: &str) -> Output {
    let begun = std::time::Instant::now();
    loop {
        let output = health(&["-c", config]);
        if output.status.success() || begun.elapsed() > MESSAGE_WAIT {
            return output;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_health_command_answers_for_a_running_process_and_tells_when_there_is_none() {
    let (sim, service) = tenant().await;
    let mut running = Running::start(&sim, &service, &[]);
    tokio::task::spawn_blocking(move || {
        let config = running.config();
        let output = until_healthy(&config);
        assert!(output.status.success(), "{}", told(&output));
        let page: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(page["sources"]["a"]["state"].is_string() || page["sources"].as_object().is_some(), "{page}");
        let live = health(&["-c", &config, "--live"]);
        assert_eq!((live.status.code(), live.stdout.as_slice()), (Some(0), &b"live\n"[..]));
        running.signal("TERM");
        running.child.wait().unwrap();
        let output = health(&["-c", &config]);
        assert_eq!(output.status.code(), Some(69));
        assert!(told(&output).starts_with("health-unreachable: "), "{}", told(&output));
        assert_eq!(health(&[]).status.code(), Some(64));
    })
    .await
    .unwrap();
}

/// Where the package puts the plugin is where the examples look for it.
#[test]
fn the_plugin_is_packaged_where_the_examples_look_for_it() {
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let assets = manifest["package"]["metadata"]["deb"]["assets"].as_array().unwrap();
    let targets: Vec<String> = assets
        .iter()
        .map(|asset| {
            let (from, to) = (asset[0].as_str().unwrap(), asset[1].as_str().unwrap());
            let name = if to.ends_with('/') { Path::new(from).file_name().unwrap().to_str().unwrap() } else { "" };
            format!("/{to}{name}")
        })
        .collect();
    for wanted in ["/usr/bin/m365-audit", "/usr/lib/m365-audit/libm365_audit.so", "/etc/m365-audit/agent.toml"] {
        assert!(targets.iter().any(|target| target == wanted), "{wanted} is not packaged: {targets:?}");
    }
    for asset in assets {
        let from = asset[0].as_str().unwrap();
        if !from.starts_with("target/") && !from.contains('*') {
            assert!(root().join(from).exists(), "{from} is packaged and does not exist");
        }
    }
    let mut seen = 0;
    for folder in ["examples", "docs"] {
        for text in texts(&root().join(folder)) {
            for part in text.split("libm365_audit.so").map(|before| before.rsplit([' ', '"', '\'', '`', '\n']).next()) {
                if let Some(part) = part.filter(|part| part.starts_with('/') && part.contains("m365")) {
                    assert_eq!(part, "/usr/lib/m365-audit/", "an example looks for the plugin elsewhere");
                    seen += 1;
                }
            }
        }
    }
    println!("{seen} places name the plugin's path");
}

fn texts(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(texts(&path));
        } else if let Ok(text) = fs::read_to_string(&path) {
            found.push(text);
        }
    }
    found
}

/// What compose.yaml mounts is there, and its source reads the tenant that its `simulate` plays.
#[test]
fn the_compose_file_mounts_what_is_there_and_reads_its_own_tenant() {
    let folder = root().join("packaging/compose");
    let compose = read("packaging/compose/compose.yaml");
    let mounts = compose.lines().filter_map(|line| line.trim().strip_prefix("- ")?.split_once(':'));
    let mounted: Vec<&str> = mounts.map(|(from, _)| from).filter(|from| from.starts_with('.')).collect();
    assert!(mounted.len() >= 7, "{mounted:?}");
    for file in mounted {
        assert!(folder.join(file).is_file(), "{file}");
    }
    let config =
        Config::parse(&read("packaging/compose/agent.toml"), &|_| None).unwrap_or_else(|error| panic!("{error}"));
    let (source, played) = (&config.sources["simulated"], SimConfig::default());
    assert_eq!(source.tenant_id, played.tenants[0]);
    assert_eq!(source.client_id.as_deref(), Some(played.client_id.as_str()));
    assert_eq!(source.read_secret().unwrap().expose(), played.client_secret);
    // Each name is a service, and Prometheus asks where the metrics are.
    for service in ["tenant", "m365-audit", "fluent-bit", "prometheus", "grafana"] {
        assert!(compose.contains(&format!("\n  {service}:\n")), "{service}");
    }
    let port = config.metrics.unwrap().listen.port();
    assert!(read("packaging/compose/prometheus.yml").contains(&format!("\"m365-audit:{port}\"")));
    assert!(compose.contains("../prometheus/m365-audit.rules.yml:/etc/prometheus/m365-audit.rules.yml"));
}
