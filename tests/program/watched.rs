//! Two hundred tenants of one process, some broken in four ways, as somebody sees them who has one minute: the commands, the
//! pages, the metrics and the log. The real binary against a simulated set of tenants.
#![cfg(target_os = "linux")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use m365_audit::clock::SystemClock;
use m365_audit::metrics;
use m365_audit::model::{ContentType, TenantId};
use m365_audit::sim::{CallKind, FaultPlan, FaultScript, NewBlob, Sim, SimConfig, SimFault, SubscriptionState};
use serde_json::Value;

use super::terminal::terminal_of;

const TENANTS: usize = 200;
/// For a slow machine; nothing waits for it where all is well.
const PATIENCE: Duration = Duration::from_secs(240);
/// Three of each: a wrong secret, a secret file that is not there, a permission that is missing, a CA file that is not
/// there.
const WRONG: [usize; 3] = [13, 14, 113];
const FILELESS: [usize; 3] = [27, 28, 127];
const UNPERMITTED: [usize; 3] = [55, 56, 155];
const CA_LESS: [usize; 3] = [60, 61, 160];

fn tenant(number: usize) -> TenantId {
    format!("00000000-0000-4000-8000-{number:012}").parse().unwrap()
}

fn broken() -> impl Iterator<Item = usize> {
    [WRONG, FILELESS, UNPERMITTED, CA_LESS].into_iter().flatten()
}

struct Watched {
    _sim: Sim,
    dir: tempfile::TempDir,
    metrics: SocketAddr,
    process: Child,
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Watched {
    async fn new() -> Self {
        let tenants: Vec<TenantId> = (0..TENANTS).map(tenant).collect();
        let sim = Sim::start(SimConfig { tenants, ..SimConfig::default() }, SystemClock::new()).await.unwrap();
        let hour_ago = sim.now().checked_sub(jiff::SignedDuration::from_hours(1)).unwrap();
        for number in 0..TENANTS {
            let event = format!(
                r#"{{"Id":"{number}","CreationTime":"{hour_ago}","Operation":"Test","RecordType":1,"Workload":"X"}}"#
            );
            for content_type in ContentType::ALL {
                sim.set_subscription(&tenant(number), content_type, SubscriptionState::Enabled);
            }
            sim.add_blob(&tenant(number), ContentType::General, NewBlob::at(hour_ago).with_events([event]));
        }
        let denied = |number, kind| FaultScript {
            tenant: Some(tenant(number)),
            ..FaultScript::next(kind, u32::MAX, SimFault::PermissionMissing)
        };
        let scripts = UNPERMITTED
            .into_iter()
            .flat_map(|number| [CallKind::List, CallKind::Content].map(|kind| denied(number, kind)))
            .collect();
        sim.set_faults(FaultPlan { scripts, ..FaultPlan::default() });
        let dir = tempfile::tempdir().unwrap();
        let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        fs::write(dir.path().join("agent.toml"), configuration(&sim, dir.path(), metrics)).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_m365-audit"))
            .args(["run", "-c"])
            .arg(dir.path().join("agent.toml"))
            .env_remove("M365_AUDIT_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        Self { _sim: sim, dir, metrics, process }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.at("log")).unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
        command.args(args).arg("-c").arg(self.at("agent.toml")).stdin(Stdio::null());
        command
    }

    async fn output(&self, args: &[&str]) -> Output {
        let mut command = self.command(args);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    async fn printed(&self, args: &[&str]) -> Vec<String> {
        let output = self.output(args).await;
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        text.lines().map(str::to_owned).collect()
    }

    fn get(&self, path: &str) -> String {
        let mut answer = String::new();
        let Ok(mut stream) = TcpStream::connect(self.metrics) else { return answer };
        write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").unwrap();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    async fn status(&self) -> Value {
        let output = self.output(&["status", "--json"]).await;
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Waits until each tenant is in its state.
    async fn until_settled(&self) {
        let begun = Instant::now();
        loop {
            let status = self.status().await;
            let in_state = |state: &str| {
                let sources = status["sources"].as_array().into_iter().flatten();
                sources.filter(|source| source["state"] == state).count()
            };
            let delivered = fs::read_to_string(self.at("out")).unwrap_or_default().lines().count();
            let failed = broken().count();
            if in_state("failed") == failed && in_state("healthy") == TENANTS - failed && delivered == TENANTS - failed
            {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{} failed, {delivered} delivered: {}", in_state("failed"), self.log());
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// What a terminal of 80 columns and 24 rows shows after a command printed to it.
    fn on_a_terminal(&self, args: &[&str]) -> Vec<String> {
        let (mut ours, theirs) = terminal_of(80, 24);
        let mut child = self.command(args).stdout(theirs).stderr(Stdio::null()).spawn().unwrap();
        let mut printed = Vec::new();
        let mut part = [0; 4096];
        // The end of a terminal whose other end is closed is an error.
        while let Ok(n) = ours.read(&mut part) {
            printed.extend_from_slice(&part[..n]);
            if n == 0 {
                break;
            }
        }
        child.wait().unwrap();
        let text = String::from_utf8(printed).unwrap();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "a line is wrapped: {lines:#?}");
        lines[lines.len().saturating_sub(23)..].to_vec()
    }
}

/// Keys, and what the screen is to be like after them.
type Wanted<'a> = (&'a [u8], &'a dyn Fn(&str) -> bool);

impl Watched {
    /// What the live `status` has drawn on a terminal of 80 columns and 24 rows, at first and after some keys, once each
    /// is as it is `wanted`.
    fn live(&self, wanted: &[Wanted<'_>]) -> Vec<String> {
        let (ours, theirs) = terminal_of(80, 24);
        let end = || Stdio::from(theirs.try_clone().unwrap());
        let mut command = self.command(&["status"]);
        let mut child = command.env("TERM", "xterm").stdin(end()).stdout(end()).stderr(Stdio::null()).spawn().unwrap();
        drop((theirs, command));
        let (drawn, drawing) = mpsc::channel();
        let mut from = ours.try_clone().unwrap();
        let reading = std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut part) {
                if drawn.send(part[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        let mut screen = vt100::Parser::new(24.try_into().unwrap(), 80.try_into().unwrap(), 0);
        let mut seen = Vec::new();
        let begun = Instant::now();
        for (keys, is_as_wanted) in wanted {
            (&ours).write_all(keys).unwrap();
            while !is_as_wanted(&screen.screen().contents()) {
                let contents = screen.screen().contents();
                assert!(begun.elapsed() < PATIENCE, "after {:?}:\n{contents}", String::from_utf8_lossy(keys));
                if let Ok(part) = drawing.recv_timeout(Duration::from_millis(200)) {
                    screen.process(&part);
                }
            }
            seen.push(screen.screen().contents());
        }
        (&ours).write_all(b"q").unwrap();
        assert!(child.wait().unwrap().success());
        drop((ours, drawing));
        reading.join().unwrap();
        seen
    }
}

fn configuration(sim: &Sim, dir: &std::path::Path, metrics: SocketAddr) -> String {
    let config = SimConfig::default();
    let mut text = format!(
        "data_dir = '{}'\n[sources.customers]\ntype = \"m365_audit\"\nclient_id = \"{}\"\nclient_secret = \"{}\"\n\
         api_url = \"{url}\"\nauthority_url = \"{url}\"\ndrop_routine = false\n",
        dir.join("data").display(),
        config.client_id,
        config.client_secret,
        url = sim.url(),
    );
    for number in 0..TENANTS {
        text += &format!("[[sources.customers.tenants]]\nname = \"t{number}\"\ntenant_id = \"{}\"\n", tenant(number));
        match number {
            _ if WRONG.contains(&number) => text += "client_secret = \"not~the-secret\"\n",
            _ if FILELESS.contains(&number) => text += "client_secret_file = '/not/there/secret'\n",
            _ if CA_LESS.contains(&number) => text += "ca_file = '/not/there/ca.pem'\n",
            _ => {}
        }
    }
    text += &format!(
        "[sinks.file]\ntype = \"file\"\npath = '{}'\ninputs = [\"customers\"]\n[metrics]\nlisten = \"{metrics}\"\n",
        dir.join("out").display()
    );
    text
}

/// Names of broken tenants that stand nowhere in the text.
fn unnamed(text: &str) -> Vec<String> {
    let names: BTreeSet<&str> = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '.')).collect();
    broken().map(|number| format!("customers.t{number}")).filter(|name| !names.contains(name.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_tenants_broken_in_four_ways_are_overseen_in_a_minute() {
    let watched = Watched::new().await;
    watched.until_settled().await;
    commands(&watched).await;
    pages(&watched);
    series(&watched);
    let log = watched.log();
    let lines: Vec<&str> = log.lines().collect();
    let welcomed = lines.iter().filter(|line| line.contains("signed in: ")).count();
    assert!(welcomed <= TENANTS, "{welcomed} lines of {TENANTS} tenants");
    let others = lines.len() - welcomed;
    assert!(others <= 40, "{others} lines beside one a tenant:\n{log}");
    assert!(log.contains("signed in: newest event from ") && log.contains(", caught up"), "{log}");
}

async fn commands(watched: &Watched) {
    let printed = watched.printed(&["status", "--once"]).await;
    assert!(printed.len() <= 215, "{} lines", printed.len());
    let first: Vec<String> = printed.iter().take(23).cloned().collect();
    assert_eq!(unnamed(&first.join("\n")), Vec::<String>::new(), "{first:#?}");
    assert!(first.iter().any(|line| line.starts_with("200 tenants: 12 failed, 188 healthy")), "{first:#?}");
    for cause in ["auth-secret-wrong", "auth-secret-file-unreadable", "api-permission-missing", "file-unreadable"] {
        assert_eq!(printed.iter().filter(|line| line.contains(&format!(" {cause}"))).count(), 3, "{cause}: {first:#?}");
    }
    let screen = watched.on_a_terminal(&["status", "--once"]);
    assert_eq!(unnamed(&screen.join("\n")), Vec::<String>::new(), "{screen:#?}");
    assert!(screen.iter().any(|line| line.contains("200 tenants: 12 failed")), "{screen:#?}");

    // Live, as drawn: the sum and every failed one at once, the others by the arrows.
    let causes = ["auth-secret-wrong", "auth-secret-file-unreadable", "api-permission-missing", "file-unreadable"];
    let counted = |screen: &str, cause: &str| {
        // A slug may be cut where the line ends.
        let begins = format!(" {}", &cause[..cause.len().min(20)]);
        screen.lines().filter(|line| line.contains(&begins)).count()
    };
    // A screen is written in several pieces: it is whole when the last line has its cause.
    let all_named = |screen: &str| {
        screen.contains("200 tenants: 12 failed")
            && unnamed(screen).is_empty()
            && causes.iter().all(|cause| counted(screen, cause) == 3)
    };
    // They are in the order of their names: behind the first screen comes t101.
    let has_healthy = |screen: &str| screen.contains("customers.t101 ") && !screen.contains("12 failed");
    let seen = watched.live(&[(b"", &all_named), (b"\x1b[6~\x1b[6~", &has_healthy)]);
    for cause in causes {
        assert_eq!(counted(&seen[0], cause), 3, "{cause}: {}", seen[0]);
    }

    let failed = watched.printed(&["status", "--once", "--failed"]).await;
    assert_eq!((unnamed(&failed.join("\n")), failed.len() < 24), (vec![], true), "{failed:#?}");
    let one = watched.printed(&["status", "--once", "--source", "customers.t13"]).await.join("\n");
    assert!(one.contains("(hint: ") && one.contains("requests a minute:") && !one.contains("customers.t15"), "{one}");
    assert!(watched.printed(&["status", "--once", "--full"]).await.len() > 1500);
    let nobody = watched.output(&["status", "--once", "--source", "customers.t999"]).await;
    assert_eq!(nobody.status.code(), Some(64));
    let status = watched.status().await;
    assert_eq!(status["sources"].as_array().unwrap().len(), TENANTS);
    assert!(watched.output(&["status", "--json", "--failed"]).await.stdout.len() > 100_000, "JSON has everything");

    let checked = watched.printed(&["check"]).await;
    let first = checked.iter().take(23).cloned().collect::<Vec<_>>().join("\n");
    assert_eq!((unnamed(&first), first.starts_with("200 tenants: 12 FAIL, ")), (vec![], true), "{first}");
    assert!(checked.len() <= 260, "{} lines", checked.len());
    assert_eq!(checked.iter().filter(|line| line.starts_with("FAIL  3 tenants: ")).count(), 4, "{checked:#?}");
    let failed = watched.printed(&["check", "--failed", "--source", "customers.t13"]).await.join("\n");
    assert!(failed.contains("auth-secret-wrong") && failed.contains("source customers.t13"), "{failed}");

    let state = watched.printed(&["state", "show"]).await;
    assert!(state.len() <= 215 && state[0].starts_with("200 tenants: "), "{}: {:?}", state.len(), &state[..3]);
    assert!(watched.printed(&["state", "show", "--full"]).await.len() > 900);
    let one = watched.printed(&["state", "show", "--source", "customers.t1"]).await.join("\n");
    assert!(one.contains("customers.t1 Audit.General") && !one.contains("customers.t100"), "{one}");
}

fn pages(watched: &Watched) {
    let page = watched.get("/status.html");
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    let place = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text} is missing"));
    assert!(page.contains("200 tenants: 12 failed, 188 healthy"), "the sum");
    // Trouble first.
    let last_broken = broken().map(|number| place(&format!(">customers.t{number}<"))).max().unwrap();
    assert!(last_broken < place(">customers.t0<"));
    assert_eq!(page.matches("/errors/auth-secret-wrong.html").count(), 3, "each reason leads to its page");
    assert!(page.matches("aria-label=\"customers.t").count() >= 188, "bars");
    assert!(!page.contains("<script") && !page.contains("\"Test\""), "neither scripts nor events");
    let (_, body) = watched.get("/status").split_once("\r\n\r\n").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let status: Value = serde_json::from_str(&body).unwrap();
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schema/status.json");
    let published = fs::read_to_string(path).unwrap();
    let schema: Value = serde_json::from_str(&published).unwrap();
    held_to(&schema, &schema, &status, "status");
    let health = watched.get("/health");
    assert!(health.starts_with("HTTP/1.1 503"), "{health}");
}

/// That every member is in the schema, and each that must be there is.
fn held_to(root: &Value, schema: &Value, value: &Value, place: &str) {
    let schema = match schema["$ref"].as_str() {
        Some(path) => root.pointer(path.trim_start_matches('#')).unwrap(),
        None => schema["anyOf"]
            .as_array()
            .and_then(|choices| choices.iter().find(|choice| choice["$ref"].is_string()))
            .map_or(schema, |choice| root.pointer(choice["$ref"].as_str().unwrap().trim_start_matches('#')).unwrap()),
    };
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                let known = &schema["properties"][name];
                assert!(!known.is_null(), "{place}.{name} is not in the schema");
                held_to(root, known, value, &format!("{place}.{name}"));
            }
            for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                assert!(members.contains_key(required), "{place}.{required} is missing");
            }
        }
        Value::Array(items) => items.iter().for_each(|item| held_to(root, &schema["items"], item, place)),
        _ => {}
    }
}

fn series(watched: &Watched) {
    let page = watched.get("/metrics");
    let mut of: BTreeMap<&str, usize> = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        if let Some((_, rest)) = line.split_once("tenant=\"") {
            *of.entry(rest.split('"').next().unwrap()).or_default() += 1;
        }
    }
    assert_eq!(of.len(), TENANTS);
    let most = of.values().max().unwrap();
    assert!(*most <= metrics::SERIES_OF_TENANT_MAX, "{most} series of one tenant");
    assert!(page.len() < 4_000_000 * TENANTS / 1000, "{} bytes", page.len());
    let named = format!("m365_audit_source_info{{tenant=\"{}\",source=\"customers.t7\"}} 1\n", tenant(7));
    assert!(page.contains(&named), "{named}");
    let cause = format!("{{tenant=\"{}\",source=\"customers.t13\",cause=\"auth-secret-wrong\"}} 1\n", tenant(13));
    assert!(page.contains(&cause), "{cause}");
}
