//! What docs/security.md claims against four attackers, each claim by a test of the program itself: a hostile origin of
//! the API, hostile content of events, a hostile local user, and a thief of the state directory.
//!
//! What is already shown closer to the code (where the token goes, file modes, damage) is not repeated here; the page
//! names those tests.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use m365_audit::clock::SystemClock;
use m365_audit::hosts::embedded::store::{LOCK_FILE, STATE_FILE, SqliteStore};
use m365_audit::model::{ContentType, Timestamp};
use m365_audit::sim::{CallKind, FaultPlan, GenerateSpec, Sim, SimConfig, SimFault, SubscriptionState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const TENANT: &str = "11111111-2222-3333-4444-555555555555";
const SECRET: &str = "Qx7~canary-of-the-client-secret.0123456789";
const TOKEN: &str = "canary-of-the-access-token-0123456789abcdef";
/// For something to happen, however busy the machine is.
const WAIT: Duration = Duration::from_secs(180);
/// What the bomb inflates to. Its compressed form has a thousandth of that.
const BOMB_BYTES: u64 = 256 << 20;
/// Resident memory of the program at most: in a debug build, with the bomb under way.
/// Most of it is a listing, of which up to 64 MiB are read.
const MEMORY_BYTES_MAX: u64 = 192 << 20;
/// Clears the screen and writes in red, in the seven-bit and the eight-bit form; then begins a line of its own.
const ESCAPES: &str = "\u{1b}[2J\u{1b}[31mred\u{9b}31m\r\nFORGED line\u{7}\u{202e}";

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
    command.env("NO_PROXY", "*").env_remove("NOTIFY_SOCKET");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A running program, ended with the test.
struct Running {
    child: Child,
    dir: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    fn configure(dir: &Path, url: &str, more: &str) {
        let config = format!(
            "data_dir = {data:?}\n[sources.a]\ntype = \"m365_audit\"\ntenant_id = \"{TENANT}\"\nclient_id = \"{TENANT}\"\n\
             client_secret_file = {secret:?}\napi_url = {url:?}\nauthority_url = {url:?}\npoll_interval_secs = 10\n\
             content_types = [\"Audit.General\"]\nbackfill_secs = 3600\ndrop_routine = false\n\
             [sinks.f]\ntype = \"file\"\npath = {out:?}\ninputs = [\"a\"]\n{more}",
            data = dir.join("data"),
            secret = dir.join("secret"),
            out = dir.join("out.ndjson"),
        );
        fs::write(dir.join("secret"), SECRET).unwrap();
        fs::write(dir.join("agent.toml"), config).unwrap();
    }

    fn start(dir: &Path, url: &str, more: &str, log: &str) -> Self {
        Self::configure(dir, url, more);
        let mut command = program();
        command.args(["run", "-c"]).arg(dir.join("agent.toml")).env("M365_AUDIT_LOG", log);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(dir.join("log")).unwrap());
        Self { child: command.spawn().unwrap(), dir: dir.to_owned() }
    }

    fn log(&self) -> String {
        text(&fs::read(self.dir.join("log")).unwrap_or_default())
    }

    fn records(&self) -> String {
        text(&fs::read(self.dir.join("out.ndjson")).unwrap_or_default())
    }

    async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !done(self) {
            assert!(self.child.try_wait().unwrap().is_none(), "it ended before {what}: {}", self.log());
            assert!(begun.elapsed() < WAIT, "waited in vain for {what}: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The most it ever had resident.
    fn peak_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    fn stop(mut self) -> String {
        Command::new("kill").args(["-s", "TERM", &self.child.id().to_string()]).status().unwrap();
        let status = self.child.wait().unwrap();
        let log = self.log();
        assert!(status.success(), "{status}: {log}");
        log
    }
}

/// A feed that answers as it likes. `answer` gives head and body for a path.
async fn hostile(answer: impl Fn(&str, &str) -> (String, Vec<u8>) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (answer, origin) = (Arc::new(answer), url.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (answer, origin) = (answer.clone(), origin.clone());
            tokio::spawn(async move {
                let _ = serve(stream, &*answer, &origin).await;
            });
        }
    });
    url
}

async fn serve(
    mut stream: TcpStream,
    answer: &(impl Fn(&str, &str) -> (String, Vec<u8>) + Send + Sync),
    origin: &str,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    let head_end = loop {
        if let Some(at) = request.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    };
    let head = text(&request[..head_end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok()).unwrap_or(0);
    while request.len() < head_end + length {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let line = text(&request);
    // Without what follows it: every call has the publisher's id in its query.
    let path = line.split([' ', '?']).nth(1).unwrap_or_default();
    let date = httpdate_now();
    let (head, body) = if path.contains("/oauth2/") {
        let answer = format!(r#"{{"token_type":"Bearer","expires_in":3600,"access_token":"{TOKEN}"}}"#);
        ("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n".to_owned(), answer.into_bytes())
    } else {
        answer(path, origin)
    };
    let head = format!("{head}Date: {date}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&body).await?;
    stream.shutdown().await
}

fn httpdate_now() -> String {
    jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

fn ok(more: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{more}")
}

const ENABLED: &str = r#"[{"contentType":"Audit.General","status":"enabled","webhook":null}]"#;

/// A listing of these blobs, all of ten minutes ago.
fn listing(origin: &str, ids: &[&str]) -> Vec<u8> {
    let now = Timestamp::now();
    let at =
        |minutes: i64| (now + jiff::SignedDuration::from_mins(minutes)).strftime("%Y-%m-%dT%H:%M:%S.000Z").to_string();
    let items: Vec<serde_json::Value> = ids
        .iter()
        .map(|id| {
            serde_json::json!({
                "contentType": "Audit.General", "contentId": id, "contentCreated": at(-10),
                "contentExpiration": at(7 * 24 * 60 - 10),
                "contentUri": format!("{origin}/api/v1.0/{TENANT}/activity/feed/audit/{}", id.len()),
            })
        })
        .collect();
    serde_json::to_vec(&items).unwrap()
}

fn event(id: &str) -> String {
    format!(r#"{{"CreationTime":"2026-05-01T10:00:00","Id":"{id}","Operation":"X","RecordType":25,"Workload":"W"}}"#)
}

/// Members of one gzip stream, each small and inflating to 4 MiB of one text that never ends.
fn bomb(opening: &str) -> Vec<u8> {
    let member = |bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let mut out = member(opening.as_bytes());
    let filling = member(&vec![b'A'; 4 << 20]);
    for _ in 0..BOMB_BYTES / (4 << 20) {
        out.extend_from_slice(&filling);
    }
    assert!((out.len() as u64) < BOMB_BYTES / 500, "{} bytes are no bomb", out.len());
    out
}

// ------------------------------------------------------------------------------------- a hostile origin of the API

/// In a blob, and in the answers around it that are read whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decompression_bomb_takes_no_memory_and_holds_nobody_up() {
    let (blobs, answers) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (blobs_served, answers_served) = (blobs.clone(), answers.clone());
    let (blob_bomb, listing_bomb) = (bomb(r#"[{"Id":""#), bomb(r#"[{"contentId":""#));
    let url = hostile(move |path, origin| {
        let gzip = ok("Content-Encoding: gzip\r\n");
        if path.contains("/subscriptions/list") {
            (ok(""), ENABLED.as_bytes().to_vec())
        } else if path.contains("/subscriptions/content") {
            // Every second listing is a bomb as well.
            if answers_served.fetch_add(1, Ordering::SeqCst) % 2 == 1 {
                return (gzip, listing_bomb.clone());
            }
            (ok(""), listing(origin, &["bomb", "good1"]))
        } else if path.ends_with("/audit/4") {
            blobs_served.fetch_add(1, Ordering::SeqCst);
            (gzip, blob_bomb.clone())
        } else {
            (ok(""), format!("[{}]", event("good")).into_bytes())
        }
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let mut running = Running::start(dir.path(), &url, "", "info");
    running.until("the good blob beside the bomb", |running| running.records().contains(r#""event_id":"good""#)).await;
    // The second of each is asked for only when the first has been dealt with.
    running.until("the bombs", |_| blobs.load(Ordering::SeqCst) >= 2 && answers.load(Ordering::SeqCst) >= 3).await;
    let peak = running.peak_bytes();
    assert!(peak < MEMORY_BYTES_MAX, "{} MiB resident", peak >> 20);
    running.stop();
}

/// Texts of the origin reach the log: codes, messages, ids of blobs. None may move the cursor or begin a line.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_of_the_origin_cannot_write_on_the_terminal_or_forge_a_line() {
    let url = hostile(move |path, origin| {
        let refusal =
            serde_json::json!({"error": {"code": format!("AF50000{ESCAPES}"), "message": ESCAPES}}).to_string();
        if path.contains("/subscriptions/list") {
            let odd = format!("Audit.{ESCAPES}");
            let list = serde_json::json!([
                {"contentType": "Audit.General", "status": "enabled", "webhook": null},
                {"contentType": odd, "status": odd, "webhook": {"status": odd, "address": odd, "authId": odd}},
            ]);
            (ok(""), list.to_string().into_bytes())
        } else if path.contains("/subscriptions/content") {
            (ok(""), listing(origin, &[&format!("ten{ESCAPES}"), "ok"]))
        } else if path.ends_with("/audit/2") {
            (ok(""), format!("[{}]", event("good")).into_bytes())
        } else {
            ("HTTP/1.1 500 Oh\r\nContent-Type: application/json\r\n".to_owned(), refusal.into_bytes())
        }
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let mut running = Running::start(dir.path(), &url, "", "debug,hyper=off,hyper_util=off");
    running.until("the record", |running| running.records().contains(r#""event_id":"good""#)).await;
    running
        .until("a failed blob in the log", |running| {
            running.log().contains("AF50000") || running.log().contains("FORGED")
        })
        .await;
    let log = running.stop();
    let config = dir.path().join("agent.toml");
    let config = config.to_str().unwrap().to_owned();
    let ask = |args: &[&str]| program().args(args).args(["-c", &config]).output().unwrap();
    for (what, shown) in [("the log", log)].into_iter().chain([["check"].as_slice(), &["state", "show"]].map(|args| {
        let output = ask(args);
        (args[0], text(&output.stdout) + &text(&output.stderr))
    })) {
        assert!(!shown.is_empty());
        assert_plain(what, &shown);
        assert!(!shown.lines().any(|line| line.starts_with("FORGED")), "{what} has a forged line: {shown}");
    }
}

#[track_caller]
fn assert_plain(what: &str, text: &str) {
    let found = text.chars().find(|c| c.is_control() && *c != '\n' && *c != '\t');
    assert_eq!(found, None, "{what} has control characters");
}

// ------------------------------------------------------------------------------------- hostile content of events

fn fed(args: &[&str], input: &[u8]) -> Output {
    let mut child =
        program().args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    let _ = feeder.join();
    output
}

const FORMATS: [&str; 4] = ["native", "ecs", "ocsf", "raw"];

#[test]
fn an_event_nested_a_hundred_thousand_deep_is_one_record_in_every_format() {
    let deep = 100_000;
    let nested = [
        format!("{}{}", "[".repeat(deep), "]".repeat(deep)),
        format!("{}1{}", r#"{"a":"#.repeat(deep), "}".repeat(deep)),
    ];
    for name in ["ExtendedProperties", "Parameters", "ModifiedProperties", "Actor", "PolicyDetails", "Unknown"] {
        for nested in &nested {
            let good = event("after");
            let deep = event("deep").replacen('{', &format!(r#"{{"{name}":{nested},"#), 1);
            let input = format!("{deep}\n{good}\n");
            for format in FORMATS {
                let output = fed(&["normalize", "--format", format, "-"], input.as_bytes());
                assert!(output.status.success(), "{name} as {format}: {} {}", output.status, text(&output.stderr));
                assert_eq!(output.stdout.iter().filter(|b| **b == b'\n').count(), 2, "{name} as {format}");
            }
        }
    }
    let output = fed(&["explain", "-"], format!("{}\n", event("x")).as_bytes());
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn a_text_of_a_megabyte_is_one_record_in_every_format() {
    let long = "\\u0041\u{e9}".repeat(1 << 17);
    for name in ["Operation", "UserId", "ObjectId", "ClientIP", "UserAgent", "CreationTime", "Workload", "Id"] {
        let input = format!("{{\"Id\":\"x\",\"{name}\":\"{long}\",\"RecordType\":25}}\n{}\n", event("after"));
        for format in FORMATS {
            let output = fed(&["normalize", "--format", format, "-"], input.as_bytes());
            assert!(output.status.success(), "{name} as {format}: {}", text(&output.stderr));
            assert_eq!(output.stdout.iter().filter(|b| **b == b'\n').count(), 2, "{name} as {format}");
        }
    }
}

/// A record is one line of JSON; what people read is free of anything a terminal would obey.
#[test]
fn control_characters_of_events_reach_no_terminal() {
    let mut value = serde_json::Map::new();
    for name in ["Operation", "UserId", "ObjectId", "ClientIP", "UserAgent", "Workload", "Id", "ResultStatus"] {
        value.insert(name.to_owned(), ESCAPES.into());
    }
    value.insert("RecordType".into(), 1.into());
    value.insert(
        "Parameters".into(),
        serde_json::json!([{"Name": "ForwardTo", "Value": format!("a@b.example{ESCAPES}")}]),
    );
    let forward = serde_json::json!({"Operation": "New-InboxRule", "RecordType": 1, "UserId": format!("bob{ESCAPES}"),
        "Parameters": [{"Name": "ForwardTo", "Value": format!("m{ESCAPES}@example.net")}]});
    let input = format!("{}\n{forward}\n", serde_json::Value::Object(value));
    for format in FORMATS {
        let output = fed(&["normalize", "--format", format, "-"], input.as_bytes());
        assert!(output.status.success(), "{}", text(&output.stderr));
        let out = text(&output.stdout);
        assert_eq!(out.lines().count(), 2, "{format}");
        // JSON has escapes for these; U+009B and the like are letters to it and stay as Microsoft sent them.
        let bare = out.chars().find(|c| *c < ' ' && *c != '\n');
        assert_eq!(bare, None, "{format}");
        for line in out.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
        assert_plain("what normalize says", &text(&output.stderr));
    }
    let output = fed(&["explain", "-"], input.as_bytes());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let out = text(&output.stdout);
    assert!(out.contains("FORGED"), "the event is not shown at all: {out}");
    assert_plain("what explain shows", &out);
    assert!(!out.contains('\u{202e}'), "the direction of writing is turned");
    assert!(!out.lines().any(|line| line.starts_with("FORGED")), "a line was forged: {out}");
}

// ------------------------------------------------------------------------------------- a hostile local user

#[test]
fn links_in_the_data_directory_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let victim = dir.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    for name in [STATE_FILE, LOCK_FILE] {
        let data = dir.path().join(format!("data-{name}"));
        fs::create_dir(&data).unwrap();
        symlink(&victim, data.join(name)).unwrap();
        let error = SqliteStore::open(&data).map(|_| ()).unwrap_err();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious", "{name}: {error}");
    }
    // A link to a state of another place is no state of this one.
    let elsewhere = dir.path().join("elsewhere");
    drop(SqliteStore::open(&elsewhere).unwrap());
    let data = dir.path().join("borrowed");
    fs::create_dir(&data).unwrap();
    symlink(elsewhere.join(STATE_FILE), data.join(STATE_FILE)).unwrap();
    SqliteStore::open(&data).map(|_| ()).unwrap_err();
    // Nor is a log that is a link written through.
    let data = dir.path().join("log");
    drop(SqliteStore::open(&data).unwrap());
    let log = data.join(format!("{STATE_FILE}-wal"));
    let _ = fs::remove_file(&log);
    symlink(&victim, &log).unwrap();
    let _ = SqliteStore::open(&data);
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    // The folder itself may be a link: systemd makes it one.
    symlink(&elsewhere, dir.path().join("folder")).unwrap();
    SqliteStore::open(dir.path().join("folder")).unwrap();
}

/// A secret on a command line is read by every user of the machine.
#[test]
fn no_option_takes_a_secret() {
    let help = |args: &[&str]| text(&program().args(args).arg("--help").output().unwrap().stdout);
    let commands: Vec<String> = help(&[])
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' '))?.split(' ').next())
        .map(str::to_owned)
        .collect();
    assert!(commands.len() >= 10, "{commands:?}");
    for command in commands {
        let help = help(&[&command]);
        let options = help.split_whitespace().filter(|word| word.starts_with("--"));
        for option in options {
            let word = option.to_ascii_lowercase();
            let takes = ["secret", "password", "token", "credential"].iter().any(|name| word.contains(name));
            // A path, or the name of a variable, is no secret.
            let points = word.contains("-file") || word.contains("-env");
            assert!(!takes || points, "`{command}` takes `{option}`");
        }
    }
}

// ------------------------------------------------------------------------------------- a thief of the state directory

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found
}

fn holds(bytes: &[u8], what: &str) -> bool {
    let encoded: String = url::form_urlencoded::byte_serialize(what.as_bytes()).collect();
    [what, &encoded].iter().any(|form| bytes.windows(form.len()).any(|seen| seen == form.as_bytes()))
}

/// With every call failing now and then, at the most talkative log level, with everything written that is ever written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_records_log_and_metrics_hold_neither_secret_nor_token() {
    let service = SimConfig {
        tenants: vec![TENANT.parse().unwrap()],
        client_id: TENANT.to_owned(),
        client_secret: SECRET.to_owned(),
        ..SimConfig::default()
    };
    let sim = Sim::start(service.clone(), SystemClock::new()).await.unwrap();
    let now = sim.now();
    sim.set_subscription(&service.tenants[0], ContentType::General, SubscriptionState::Enabled);
    let spec =
        GenerateSpec::new(30, 5, now - jiff::SignedDuration::from_mins(50), now - jiff::SignedDuration::from_mins(10));
    sim.generate(&service.tenants[0], GenerateSpec { content_types: vec![ContentType::General], ..spec });
    // An answer that throws what it was sent back at us.
    let mirror = format!("{{\"error\":\"invalid_client\",\"error_description\":\"AADSTS7000215: {SECRET} is wrong\"}}");
    sim.faults().next(
        CallKind::Token,
        1,
        SimFault::Answer { status: 401, content_type: "application/json".into(), body: mirror.into_bytes() },
    );
    let listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let metrics = format!("[metrics]\nlisten = \"{listen}\"\n");
    Running::configure(dir.path(), &sim.url(), &metrics);
    let config = dir.path().join("agent.toml");
    let mut check = program();
    check.args(["check", "-c"]).arg(config).env("M365_AUDIT_LOG", "trace");
    let check = tokio::task::spawn_blocking(move || check.output().unwrap()).await.unwrap();
    let checked = [check.stdout, check.stderr].concat();
    assert!(text(&checked).contains("AADSTS7000215"), "{}", text(&checked));
    sim.set_faults(FaultPlan::bad_weather(0.2));
    let mut running = Running::start(dir.path(), &sim.url(), &metrics, "trace");
    running.until("records", |running| running.records().lines().count() >= 20).await;
    let mut page = Vec::new();
    let mut stream = TcpStream::connect(&listen).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
    stream.read_to_end(&mut page).await.unwrap();
    assert!(page.windows(11).any(|seen| seen == b"m365_audit_"), "{}", text(&page));
    let command_line = fs::read(format!("/proc/{}/cmdline", running.child.id())).unwrap();
    running.stop();

    let records = fs::read_to_string(dir.path().join("out.ndjson")).unwrap();
    let ids: Vec<String> = records
        .lines()
        .filter_map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["event_id"].as_str().map(str::to_owned)
        })
        .filter(|id| id.len() >= 16)
        .collect();
    assert!(!ids.is_empty(), "no record has an id");
    let mut read = vec![
        ("the metrics".to_owned(), page),
        ("the command line".to_owned(), command_line),
        ("what check says".to_owned(), checked),
    ];
    let places = files_below(&dir.path().join("data"))
        .into_iter()
        .chain([dir.path().join("log"), dir.path().join("out.ndjson")]);
    for path in places {
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        let ours = path.starts_with(dir.path().join("data")) || path.ends_with("out.ndjson");
        assert!(!ours || mode & 0o077 == 0, "{} may be read by others: {mode:o}", path.display());
        read.push((path.display().to_string(), fs::read(&path).unwrap()));
    }
    assert!(read.len() >= 5, "{} files were read", read.len());
    for (place, bytes) in &read {
        assert!(!holds(bytes, SECRET), "{place} holds the client secret");
        // Tokens of the simulated authority are JWTs, which begin so.
        assert!(!holds(bytes, "eyJ"), "{place} holds a token");
        let bearer = text(bytes).to_ascii_lowercase().replace("bearer ***", "");
        assert!(!bearer.contains("authorization: bearer "), "{place} holds an Authorization header");
        if Path::new(place).starts_with(dir.path().join("data")) {
            let kept = ids.iter().find(|id| bytes.windows(id.len()).any(|seen| seen == id.as_bytes()));
            assert_eq!(kept, None, "{place} holds an event that was delivered");
        }
    }
}
