//! Commands at a terminal that goes away, and into readers that have seen enough.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use m365_audit::checkpoint::format::{self, AsideRecord, Keys};
use m365_audit::clock::SystemClock;
use m365_audit::host::{Expected, Op, StateStore};
use m365_audit::hosts::embedded::receipts_key;
use m365_audit::hosts::embedded::store::SqliteStore;
use m365_audit::model::ContentType;
use m365_audit::normalise::CanonicalKey;
use m365_audit::receipts::head::StoredHead;
use m365_audit::receipts::seal::{Part, seal};
use m365_audit::receipts::store::{self, ReceiptKeys};
use m365_audit::receipts::{Class, Receipt};
use m365_audit::sim::{GenerateSpec, Sim, SimConfig, SubscriptionState};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// For a slow machine; nothing waits for it where all is well.
const PATIENCE: Duration = Duration::from_secs(120);

fn binary() -> Command {
    Command::new(env!("CARGO_BIN_EXE_m365-audit"))
}

/// Both ends of a terminal.
fn terminal() -> (File, File) {
    terminal_of(80, 24)
}

/// Both ends of a terminal of this size.
pub(super) fn terminal_of(columns: u16, rows: u16) -> (File, File) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    let theirs = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    tcsetwinsize(&theirs, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    (File::from(ours), theirs)
}

fn ends(child: &mut Child, what: &str) -> ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("{what}: it does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process with a source that reaches nobody, and its configuration.
struct Running {
    process: Child,
    config: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn running() -> Running {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("agent.toml");
    let guid = "00000000-1111-2222-3333-444444444444";
    let text = format!(
        "data_dir = {:?}\n[sources.s]\ntype = \"m365_audit\"\ntenant_id = \"{guid}\"\nclient_id = \"{guid}\"\n\
         client_secret = \"s\"\napi_url = \"http://127.0.0.1:9\"\nauthority_url = \"http://127.0.0.1:9\"\n\
         [sinks.out]\ntype = \"stdout\"\ninputs = [\"s\"]\n",
        dir.path().join("state")
    );
    std::fs::write(&config, text).unwrap();
    let mut command = binary();
    command.args(["run", "-c"]).arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
    let running = Running { process: command.spawn().unwrap(), config, _dir: dir };
    let begun = Instant::now();
    loop {
        let mut asked = binary();
        let asked = asked.args(["status", "--once", "-c"]).arg(&running.config).output().unwrap();
        if asked.status.success() {
            return running;
        }
        assert!(begun.elapsed() < PATIENCE, "{}", String::from_utf8_lossy(&asked.stderr));
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn live_status(running: &Running) -> (Child, File) {
    let (mut ours, theirs) = terminal();
    let mut command = binary();
    command.args(["status", "-c"]).arg(&running.config).env("TERM", "xterm");
    let end = || Stdio::from(theirs.try_clone().unwrap());
    let child = command.stdin(end()).stdout(end()).stderr(Stdio::null()).spawn().unwrap();
    drop((theirs, command));
    // It draws: it is live.
    let mut drawn = [0; 256];
    assert!(ours.read(&mut drawn).unwrap() > 0);
    (child, ours)
}

#[test]
fn a_live_status_ends_when_its_terminal_goes_or_a_signal_comes() {
    let running = running();
    let (mut child, ours) = live_status(&running);
    drop(ours);
    assert!(ends(&mut child, "the terminal went").success());
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let (mut child, ours) = live_status(&running);
        // Somebody has to read what it draws.
        let mut reader = ours.try_clone().unwrap();
        let reading = std::thread::spawn(move || while reader.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {});
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert!(ends(&mut child, "a signal came").success());
        drop(ours);
        reading.join().unwrap();
    }
    let (mut child, ours) = live_status(&running);
    std::io::Write::write_all(&mut &ours, b"q").unwrap();
    assert!(ends(&mut child, "a key was pressed").success());
}

#[test]
fn demo_and_simulate_end_when_their_terminal_goes() {
    // The one says where it listens on standard error, the other writes records to standard output.
    for arguments in [&["simulate", "--listen", "127.0.0.1:0"][..], &["demo", "--events", "20000"]] {
        let mut command = binary();
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = match arguments[0] {
            "simulate" => command.stderr(Stdio::piped()).spawn().unwrap(),
            _ => command.stdout(Stdio::piped()).spawn().unwrap(),
        };
        let mut line = String::new();
        // Kept open: what ends it is the signal.
        let mut out = child.stdout.take().map(BufReader::new);
        let mut errors = child.stderr.take().map(BufReader::new);
        if let Some(out) = &mut out {
            out.read_line(&mut line).unwrap();
        }
        if let Some(errors) = &mut errors {
            errors.read_line(&mut line).unwrap();
        }
        kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
        assert!(ends(&mut child, &format!("{arguments:?}")).success(), "{arguments:?}: {line}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let running = running();
    let config = running.config.to_str().unwrap();
    let commands: &[&[&str]] = &[
        &["schema", "config"],
        &["schema", "record"],
        &["plugin"],
        &["man"],
        &["completions", "bash"],
        &["status", "--json", "-c", config],
        &["state", "show", "-c", config],
        &["validate", "-c", config],
        &["demo", "--fast", "--events", "2000"],
    ];
    for arguments in commands {
        let mut child = binary().args(*arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        // Some say little or nothing; those that say much are cut off.
        let _ = out.read_line(&mut line);
        drop(out);
        let mut said = String::new();
        let mut errors = child.stderr.take().unwrap();
        errors.read_to_string(&mut said).unwrap();
        let status = ends(&mut child, &format!("{arguments:?}"));
        assert!(status.success(), "{arguments:?}: {status}\n{said}");
        assert!(!said.contains("roken pipe") && !said.contains("panicked"), "{arguments:?}: {said}");
    }
}

/// What a command writes to standard error, a terminal or a pipe, with its records elsewhere.
fn said(arguments: &[&str], is_terminal: bool) -> String {
    let (ours, theirs) = terminal();
    let mut command = binary();
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).env("TERM", "xterm");
    command.stderr(if is_terminal { Stdio::from(theirs.try_clone().unwrap()) } else { Stdio::piped() });
    let mut child = command.spawn().unwrap();
    drop((theirs, command));
    let mut text = Vec::new();
    let mut piped = child.stderr.take();
    let read: &mut dyn Read = match &mut piped {
        Some(piped) => piped,
        None => &mut &ours,
    };
    // A terminal whose other end is gone is an error, not an end.
    let mut buffer = [0; 4096];
    while let Ok(some @ 1..) = read.read(&mut buffer) {
        text.extend_from_slice(&buffer[..some]);
    }
    assert!(ends(&mut child, &format!("{arguments:?}")).code().is_some());
    String::from_utf8(text).unwrap()
}

#[test]
fn long_work_shows_a_bar_with_rate_and_time_left_on_a_terminal_and_nothing_on_a_pipe() {
    let dir = tempfile::tempdir().unwrap();
    let events = dir.path().join("events.ndjson");
    let event = |n: usize| {
        format!(
            "{{\"Id\":\"{n}\",\"CreationTime\":\"2026-05-01T00:00:00\",\"Operation\":\"Test\",\"RecordType\":1,\"Workload\":\"X\"}}\n"
        )
    };
    std::fs::write(&events, (0..20_000).map(event).collect::<String>()).unwrap();
    let config = dir.path().join("agent.toml");
    let guid = "00000000-1111-2222-3333-444444444444";
    let text = format!(
        "data_dir = {:?}\n[sources.s]\ntype = \"m365_audit\"\ntenant_id = \"{guid}\"\nclient_id = \"{guid}\"\n\
         client_secret = \"s\"\n[sinks.out]\ntype = \"stdout\"\ninputs = [\"s\"]\n",
        dir.path().join("state")
    );
    std::fs::write(&config, text).unwrap();
    let (events, config) = (events.to_str().unwrap(), config.to_str().unwrap());
    for (arguments, bar) in [
        (&["normalize", events][..], "normalize ["),
        (&["explain", events], "explain ["),
        (&["reconcile", "-c", config, "--delivered", events, events], "reconcile: "),
    ] {
        let at_terminal = said(arguments, true);
        assert!(at_terminal.contains(bar) && at_terminal.contains("/s, "), "{arguments:?}: {at_terminal}");
        assert!(at_terminal.contains(" left"), "{arguments:?}: {at_terminal}");
        let piped = said(arguments, false);
        assert!(!piped.contains(bar) && !piped.contains('\u{1b}'), "{arguments:?}: {piped}");
    }
}

/// A simulated tenant whose events of two days lie before the source's first start.
struct Tenant {
    sim: Sim,
    dir: tempfile::TempDir,
    config: String,
}

impl Tenant {
    async fn new() -> Self {
        let service = SimConfig::default();
        let sim = Sim::start(service.clone(), SystemClock::new()).await.unwrap();
        let tenant = &service.tenants[0];
        sim.set_subscription(tenant, ContentType::Exchange, SubscriptionState::Enabled);
        let ago = |hours| sim.now().checked_sub(jiff::SignedDuration::from_hours(hours)).unwrap();
        let content_types = vec![ContentType::Exchange];
        sim.generate(
            tenant,
            GenerateSpec { content_types, late_rate: 0.0, ..GenerateSpec::new(60, 5, ago(48), ago(1)) },
        );
        let dir = tempfile::tempdir().unwrap();
        let url = sim.url();
        let text = format!(
            "data_dir = {:?}\n[sources.s]\ntype = \"m365_audit\"\ntenant_id = \"{tenant}\"\nclient_id = \"{}\"\n\
             client_secret = \"{}\"\ncontent_types = [\"Audit.Exchange\"]\nbackfill_secs = 3600\ndrop_routine = false\n\
             api_url = {url:?}\nauthority_url = {url:?}\ngraph_url = {url:?}\n\
             [sinks.out]\ntype = \"file\"\npath = {:?}\ninputs = [\"s\"]\n",
            dir.path().join("state"),
            service.client_id,
            service.client_secret,
            dir.path().join("out.ndjson"),
        );
        let config = dir.path().join("agent.toml");
        std::fs::write(&config, text).unwrap();
        Self { sim, config: config.to_str().unwrap().to_owned(), dir }
    }

    /// What a command says at a terminal, and what on a pipe.
    async fn said(&self, arguments: &[&str], is_terminal: bool) -> String {
        let arguments: Vec<String> = arguments
            .iter()
            .map(|argument| (*argument).to_owned())
            .chain(["-c".to_owned(), self.config.clone()])
            .collect();
        let said = move || said(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), is_terminal);
        tokio::task::spawn_blocking(said).await.unwrap()
    }

    #[track_caller]
    fn is_a_bar(arguments: &[&str], text: &str, bar: &str, rate: &str) {
        assert!(text.contains(bar) && text.contains(rate) && text.contains(" left"), "{arguments:?}: {text}");
        assert!(text.contains('\u{1b}'), "it is drawn again: {arguments:?}: {text}");
    }

    /// Puts receipts and a record that was set aside into the state, as a run leaves them.
    async fn fill_state(&self) {
        let data = self.dir.path().join("state");
        let state = SqliteStore::open(&data).unwrap();
        let signer = receipts_key::open_or_make(&data.join("receipts.key")).unwrap();
        let tenant = SimConfig::default().tenants[0].clone();
        let keys = Keys::of(&tenant);
        let receipt_keys = ReceiptKeys::below(keys.receipts());
        let hour = "2026-05-01T10:00:00Z".parse().unwrap();
        let part = Part { tenant, seq: 0, hour, part: 0, last: true, begins: true, previous: [0; 32] };
        let receipt = |n: u64| Receipt {
            content_type: ContentType::Exchange,
            key: Some(CanonicalKey::from_bytes(u128::from(n).to_be_bytes())),
            class: Class::Delivered,
        };
        let sealed = seal(&part, (0..20_000).map(receipt), &BTreeMap::new(), &signer);
        let mut values = store::values_of(&receipt_keys, &sealed);
        values.push((receipt_keys.head(), StoredHead::default().after(&sealed).encode().into()));
        for n in 0..200 {
            let record = AsideRecord {
                format: 1,
                why: "refused".into(),
                since: "2026-05-01T10:00:00Z".parse().unwrap(),
                time: "2026-05-01T10:00:00Z".parse().unwrap(),
                severity: "low".into(),
                kind: None,
                event: None,
                record: format!("{{\"n\":{n}}}"),
            };
            values.push((keys.aside_record(ContentType::Exchange, n), format::encode(&record)));
        }
        let put = |(key, value)| Op::Put { key, value, expected: Expected::Any };
        state.commit(values.into_iter().map(put).collect()).await.unwrap();
    }
}

/// The bars of the commands that need a state or a tenant.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_reads_the_state_or_the_tenant_shows_a_bar_on_a_terminal_and_nothing_on_a_pipe() {
    let tenant = Tenant::new().await;
    tenant.fill_state().await;
    tenant.sim.configure(|config| config.graph.query_secs = 2);
    for (arguments, bar, rate) in [
        (&["receipts", "verify"][..], "receipts verify [", "/s, "),
        (&["state", "export"], "state export [", "/s, "),
        (&["backfill", "--from", "40h", "--again"], "s [", " MB/s, "),
        (&["heal", "--from", "40h", "--to", "4h", "--again"], "s [", "/s, "),
    ] {
        Tenant::is_a_bar(arguments, &tenant.said(arguments, true).await, bar, rate);
        let piped = tenant.said(arguments, false).await;
        assert!(!piped.contains(bar) && !piped.contains('\u{1b}'), "{arguments:?}: {piped}");
    }
    tenant.sim.stop().await;
}
