//! The book can be believed: every command in it runs, every link leads somewhere, every page is in its table of
//! contents. That it builds without a warning is shown by `.ci/docs`.
#![cfg(unix)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use m365_audit::clock::SystemClock;
use m365_audit::sim::{GenerateSpec, Sim, SimConfig};

/// For a program to start or to end, however busy the machine is.
const WAIT: Duration = Duration::from_secs(120);
/// What a console block may call beside our own program: it is not run here.
const OTHERS: &[&str] = &[
    ".ci/docs",
    ".ci/package",
    "apt-get",
    "az",
    "cargo",
    "curl",
    "docker",
    "dpkg",
    "fluent-bit",
    "fluentd",
    "git",
    "install",
    "journalctl",
    "kubectl",
    "logstash",
    "mdbook",
    "openssl",
    "promtool",
    "python3",
    "rsyslogd",
    "sudo",
    "systemctl",
    "systemd-analyze",
    "tail",
    "vector",
];
/// Files at the root that are written for readers.
const AT_THE_ROOT: &[&str] = &["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every page, by its path from the root.
fn pages() -> Vec<(PathBuf, String)> {
    let mut found: Vec<PathBuf> = AT_THE_ROOT.iter().map(PathBuf::from).collect();
    let mut folders = vec![PathBuf::from("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            if root().join(&path).is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(root().join(&path)).unwrap();
        (path, text)
    };
    found.into_iter().map(read).collect()
}

/// The commands of each ```console block: comments cut off, continued lines joined.
fn blocks(text: &str) -> Vec<Vec<String>> {
    let mut blocks = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match (inside, line.trim_start()) {
            (false, "```console") => {
                inside = true;
                blocks.push(Vec::<String>::new());
            }
            (true, "```") => inside = false,
            (true, line) if !line.is_empty() && !line.starts_with('#') => {
                let command = line.split("  #").next().unwrap().trim_end().trim_end_matches(" &");
                // The one that was built stands for the one that is installed.
                let command = command.strip_prefix("target/release/").unwrap_or(command);
                let commands = blocks.last_mut().unwrap();
                match commands.last_mut() {
                    Some(begun) if begun.ends_with('\\') => {
                        begun.pop();
                        begun.push_str(command);
                    }
                    _ => commands.push(command.to_owned()),
                }
            }
            _ => {}
        }
    }
    blocks
}

/// The program a command calls, past variables that are set for it.
fn program(command: &str) -> &str {
    let mut words = command.split_whitespace();
    words.find(|word| !word.contains('=') || word.starts_with('-')).unwrap_or_default()
}

/// A folder with what the commands of the book are given, and a simulated tenant behind it.
struct Desk {
    dir: tempfile::TempDir,
    running: Vec<(String, Child)>,
}

impl Drop for Desk {
    fn drop(&mut self) {
        for (_, child) in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Desk {
    fn new(sim: &Sim, service: &SimConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = format!(
            "data_dir = \"data\"\n[sources.contoso]\ntype = \"m365_audit\"\ntenant_id = \"{tenant}\"\nclient_id = \"{client}\"\n\
             client_secret_file = \"client_secret\"\napi_url = {url:?}\nauthority_url = {url:?}\n\
             backfill_secs = 604800\n[sinks.file]\ntype = \"file\"\npath = \"audit.ndjson\"\ninputs = [\"contoso\"]\n\
             [metrics]\nlisten = \"{listen}\"\n",
            tenant = service.tenants[0],
            client = service.client_id,
            url = sim.url(),
        );
        fs::write(dir.path().join("agent.toml"), config).unwrap();
        fs::write(dir.path().join("client_secret"), &service.client_secret).unwrap();
        let events = include_str!("../../src/sim/events/azuread.ndjson");
        fs::write(dir.path().join("events.ndjson"), events).unwrap();
        fs::write(dir.path().join("blob.json"), format!("[{}]", events.trim_end().replace('\n', ","))).unwrap();
        let rows = events.lines().map(|event| format!("\"{}\"\n", event.replace('"', "\"\"")));
        fs::write(dir.path().join("export.csv"), format!("AuditData\n{}", rows.collect::<String>())).unwrap();
        let fluent_bit = include_str!("../../examples/fluent-bit/fluent-bit.yaml");
        fs::write(dir.path().join("fluent-bit.yaml"), fluent_bit).unwrap();
        let desk = Self { dir, running: Vec::new() };
        // Most of the book speaks of a collector that has run before.
        let output = desk.run("m365-audit run --once -c agent.toml");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        desk
    }

    fn shell(&self, command: &str) -> Command {
        let bin = Path::new(env!("CARGO_BIN_EXE_m365-audit")).parent().unwrap();
        let path = std::env::join_paths(
            std::iter::once(bin.to_owned()).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
        );
        let mut shell = Command::new("sh");
        // The days of the examples lie in the past of whoever reads them; the feed knows seven.
        let day = |ago: i64| {
            let then = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * ago);
            then.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
        };
        let command = command.replace("2026-05-01T00:00:00Z", &day(2)).replace("2026-05-02T00:00:00Z", &day(1));
        let command = command.replace("/etc/fluent-bit/", "./");
        shell.arg("-c").arg(command.replace("/etc/m365-audit/", "./").replace("/etc/m365-audit", "."));
        shell.current_dir(self.dir.path()).env("PATH", path.unwrap()).env("NO_PROXY", "*").stdin(Stdio::null());
        shell.env_remove("NOTIFY_SOCKET");
        shell
    }

    fn run(&self, command: &str) -> Output {
        self.shell(command).output().unwrap()
    }

    /// Starts what runs until it is told to stop, and waits until it is at work.
    fn start(&mut self, command: &str) {
        let log = self.dir.path().join(format!("log-{}", self.running.len()));
        let told = || fs::read_to_string(&log).unwrap_or_default();
        let socket = self.dir.path().join(format!("notify-{}", self.running.len()));
        let ear = UnixDatagram::bind(&socket).unwrap();
        ear.set_read_timeout(Some(WAIT)).unwrap();
        // A port of its own: the one in the book may be taken.
        let at = if command.contains(" simulate") { " --listen 127.0.0.1:0" } else { "" };
        let mut shell = self.shell(&format!("exec {command}{at}"));
        shell.env("NOTIFY_SOCKET", &socket).stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
        let mut child = shell.spawn().unwrap();
        if at.is_empty() {
            let mut message = [0; 256];
            let ready = ear.recv(&mut message).is_ok();
            assert!(ready && message.starts_with(b"READY=1"), "`{command}` is not at work: {}", told());
        } else {
            let begun = Instant::now();
            while !told().contains("listens on") {
                assert!(begun.elapsed() < WAIT && child.try_wait().unwrap().is_none(), "`{command}`: {}", told());
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.running.push((command.to_owned(), child));
    }

    /// Ends what was started; each must end in good order.
    fn end(&mut self) {
        for (command, mut child) in self.running.drain(..) {
            Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status().unwrap();
            let begun = Instant::now();
            let status = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break status;
                }
                assert!(begun.elapsed() < WAIT, "`{command}` does not end");
                std::thread::sleep(Duration::from_millis(5));
            };
            assert!(status.success(), "`{command}` ended with {status}");
        }
    }
}

/// `run`, `simulate` and the like go on until they are told to stop.
fn goes_on(command: &str) -> bool {
    let words: Vec<&str> = command.split_whitespace().collect();
    let lasting = words.contains(&"run") || words.contains(&"simulate");
    lasting && !words.iter().any(|word| ["--once", "--help"].contains(word))
}

/// These ask a running process.
fn needs_a_running_process(command: &str) -> bool {
    [" health", " status"].iter().any(|name| command.contains(name))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_of_the_book_runs() {
    let service = SimConfig::default();
    let sim = Sim::start(service.clone(), SystemClock::new()).await.unwrap();
    let now = sim.now();
    sim.generate(&service.tenants[0], GenerateSpec::new(10, 5, now - jiff::SignedDuration::from_hours(20), now));
    let mut done = 0;
    for (page, text) in pages() {
        for commands in blocks(&text) {
            let ours = |command: &&String| program(command) == "m365-audit";
            for command in commands.iter().filter(|command| !ours(command)) {
                let known = OTHERS.contains(&program(command));
                assert!(known, "{}: `{command}` is neither our program nor in the list of others", page.display());
            }
            let commands: Vec<String> = commands.iter().filter(ours).cloned().collect();
            if commands.is_empty() {
                continue;
            }
            let (page, mut desk) = (page.display().to_string(), Desk::new(&sim, &service));
            done += commands.len();
            tokio::task::spawn_blocking(move || {
                for command in &commands {
                    if needs_a_running_process(command) && desk.running.is_empty() {
                        desk.start("m365-audit run -c agent.toml");
                    }
                    if goes_on(command) {
                        desk.start(command);
                        continue;
                    }
                    let output = desk.run(command);
                    let told = String::from_utf8_lossy(&output.stderr);
                    assert!(output.status.success(), "{page}: `{command}` ended with {}: {told}", output.status);
                }
                desk.end();
            })
            .await
            .unwrap();
        }
    }
    assert!(done >= 15, "{done} commands were found");
}

/// `[text](target)` outside of code, without the pictures' exclamation marks.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        // What stands between backticks is code.
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("``");
        for rest in prose.split("](").skip(1) {
            if let Some((target, _)) = rest.split_once(')') {
                found.push(target.to_owned());
            }
        }
    }
    found
}

/// The name a heading is linked by.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut dead = Vec::new();
    let mut followed = 0;
    for (page, text) in pages() {
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            followed += 1;
            let (path, fragment) = link.split_once('#').unwrap_or((&link, ""));
            let target = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            let target = root().join(target);
            let alive = target.exists()
                && (fragment.is_empty()
                    || fs::read_to_string(&target)
                        .unwrap_or_default()
                        .lines()
                        .filter(|line| line.starts_with('#'))
                        .map(|line| anchor(line.trim_start_matches('#')))
                        .any(|heading| heading == fragment));
            if !alive {
                dead.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(dead.is_empty(), "dead links:\n{}", dead.join("\n"));
    assert!(followed > 100, "only {followed} links were found");
}

/// What the table of contents leaves out is not in the book, and links to it are dead there.
#[test]
fn every_page_is_in_the_table_of_contents() {
    let summary = fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    let listed: BTreeSet<String> = links(&summary).into_iter().map(|link| format!("docs/{link}")).collect();
    for (page, text) in pages() {
        let page = page.display().to_string();
        if page == "docs/SUMMARY.md" || !page.starts_with("docs/") {
            continue;
        }
        assert!(listed.contains(&page), "{page} is missing from CHAPTERS in src/docs/book.rs");
        // The book has no pages above docs/: links out of it are dead there.
        for link in links(&text).iter().filter(|link| !link.contains("://")) {
            let up = link.matches("../").count();
            assert!(up < page.matches('/').count(), "{page}: `{link}` leads out of the book; name the file instead");
        }
        // Links of a file that a page takes in are meant from where the file lies.
        for included in text.split("{{#include ../").skip(1) {
            let (name, anchor) = included.split_once('}').unwrap().0.split_once(':').unwrap_or((included, ""));
            let name = name.split('}').next().unwrap();
            let whole = fs::read_to_string(root().join(name)).unwrap();
            let text = if anchor.is_empty() {
                whole
            } else {
                let part = whole.split(&format!("ANCHOR: {anchor}")).nth(1).expect("the anchor");
                part.split(&format!("ANCHOR_END: {anchor}")).next().unwrap().to_owned()
            };
            let local: Vec<String> =
                links(&text).into_iter().filter(|link| !link.contains("://") && !link.starts_with('#')).collect();
            assert!(local.is_empty(), "{name}: {local:?} lead nowhere in {page}; name the files instead");
        }
    }
    for page in &listed {
        assert!(root().join(page).exists(), "{page} is in the table of contents and does not exist");
    }
}

/// A page that promises something names the test that shows it; the test must be there.
#[test]
fn every_test_the_book_names_is_there() {
    let mut code = String::new();
    let mut folders = vec![root().join("src"), root().join("tests"), root().join("plugins")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                code.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut named = 0;
    for (page, text) in pages() {
        for word in text.split('`').skip(1).step_by(2) {
            let is_name = word.matches('_').count() >= 4
                && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
            // Names of metrics and settings have their own tests.
            if is_name
                && !word.starts_with("m365_audit_")
                && text.contains(&format!(": `{word}`")) | page.ends_with("security.md")
            {
                named += 1;
                assert!(code.contains(&format!("fn {word}(")), "{}: there is no test `{word}`", page.display());
            }
        }
    }
    assert!(named >= 30, "{named} tests are named");
}

/// So is what a cluster of pods is given.
#[test]
fn the_kubernetes_example_of_a_cluster_has_a_valid_configuration() {
    let text = fs::read_to_string(root().join("packaging/kubernetes/cluster.yaml")).unwrap();
    let block = text.split("  agent.toml: |\n").nth(1).unwrap().split("\n---").next().unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("client_secret"), "not a secret at all").unwrap();
    let toml: String = block.lines().map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect();
    let toml = toml.replace("/etc/m365-audit/secret", &dir.path().display().to_string());
    let config = m365_audit::config::Config::parse(&toml, &|name| match name {
        "POD_NAME" => Some("m365-audit-0".into()),
        "POD_IP" => Some("10.42.0.17".into()),
        _ => None,
    });
    let config = config.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.cluster.as_ref().and_then(|cluster| cluster.member.as_deref()), Some("m365-audit-0"));
    let port = config.metrics.unwrap().listen.port();
    assert!(text.contains(&format!("containerPort: {port}")));
    let probe =
        |name: &str| text.split(&format!("{name}:\n")).nth(1).unwrap().lines().next().unwrap().trim().to_owned();
    assert_eq!(probe("livenessProbe"), "httpGet: { path: /live, port: metrics }");
    assert_eq!(probe("readinessProbe"), "httpGet: { path: /ready, port: metrics }");
    let promised = [
        "kind: StatefulSet",
        "podManagementPolicy: Parallel",
        "terminationGracePeriodSeconds: 60",
        "kind: PodDisruptionBudget",
        "kind: NetworkPolicy",
    ];
    assert!(promised.iter().all(|part| text.contains(part)));
    assert!(!text.contains("volumeClaimTemplates"), "a pod's disk is not for good");
}

/// What Kubernetes is given is a configuration this build takes.
#[test]
fn the_kubernetes_example_has_a_valid_configuration() {
    let text = fs::read_to_string(root().join("packaging/kubernetes/m365-audit.yaml")).unwrap();
    let block = text.split("  agent.toml: |\n").nth(1).unwrap().split("\n---").next().unwrap();
    let toml: String = block.lines().map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect();
    let token = tempfile::NamedTempFile::new().unwrap();
    fs::write(token.path(), "eyJhbGciOiJub25lIn0.e30.").unwrap();
    let config = m365_audit::config::Config::parse(&toml, &|name| match name {
        "AZURE_FEDERATED_TOKEN_FILE" => Some(token.path().display().to_string()),
        "POD_IP" => Some("10.42.0.17".into()),
        _ => None,
    });
    let config = config.unwrap_or_else(|error| panic!("{error}"));
    for warning in config.warnings() {
        assert!(warning.to_string().ends_with("is the place holder of the examples"), "{warning}");
    }
    assert!(text.contains("name: POD_IP") && text.contains("fieldPath: status.podIP"));
    assert!(text.contains("kind: NetworkPolicy"), "who may ask is named");
    // Its probes ask where it listens.
    let port = config.metrics.unwrap().listen.port();
    assert!(
        text.contains(&format!("containerPort: {port}"))
            && text.contains("path: /live")
            && text.contains("path: /health")
    );
    assert!(text.contains(&format!("mountPath: {}", config.data_dir.display())));
}
