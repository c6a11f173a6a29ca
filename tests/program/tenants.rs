//! Many tenants in one process, the real binary: what is broken at one is not felt by the others, and tenants come and
//! go by SIGHUP.
#![cfg(target_os = "linux")]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use m365_audit::clock::SystemClock;
use m365_audit::metrics;
use m365_audit::model::{ContentType, TenantId};
use m365_audit::sim::{CallKind, FaultPlan, FaultScript, NewBlob, Sim, SimConfig, SimFault, SubscriptionState};

const TENANTS: usize = 101;
/// For a slow machine; nothing waits for it where all is well.
const PATIENCE: Duration = Duration::from_secs(240);

fn tenant(number: usize) -> TenantId {
    format!("00000000-0000-4000-8000-{number:012}").parse().unwrap()
}

struct Bench {
    sim: Sim,
    dir: tempfile::TempDir,
    metrics: std::net::SocketAddr,
}

impl Bench {
    async fn new() -> Self {
        let tenants: Vec<TenantId> = (0..TENANTS).map(tenant).collect();
        let sim = Sim::start(SimConfig { tenants, ..SimConfig::default() }, SystemClock::new()).await.unwrap();
        let hour_ago = sim.now().checked_sub(jiff::SignedDuration::from_hours(1)).unwrap();
        for number in 0..TENANTS {
            sim.set_subscription(&tenant(number), ContentType::General, SubscriptionState::Enabled);
            let event = |n: usize| {
                format!(
                    r#"{{"Id":"{number}-{n}","CreationTime":"{hour_ago}","Operation":"Test","RecordType":1,"Workload":"X"}}"#
                )
            };
            sim.add_blob(&tenant(number), ContentType::General, NewBlob::at(hour_ago).with_events((0..3).map(event)));
        }
        // A port that is free now; nobody else is given it as long as there are others.
        let metrics = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self { sim, dir: tempfile::tempdir().unwrap(), metrics }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The configuration with these tenants; `more` are lines of one tenant's own.
    fn configure(&self, numbers: impl Iterator<Item = usize>, more: &dyn Fn(usize) -> String) {
        let config = SimConfig::default();
        let mut text = format!(
            "data_dir = '{}'\n[sources.customers]\ntype = \"m365_audit\"\nclient_id = \"{}\"\nclient_secret = \"{}\"\n\
             api_url = \"{url}\"\nauthority_url = \"{url}\"\ncontent_types = [\"Audit.General\"]\ndrop_routine = false\n",
            self.at("data").display(),
            config.client_id,
            config.client_secret,
            url = self.sim.url(),
        );
        for number in numbers {
            text +=
                &format!("[[sources.customers.tenants]]\nname = \"t{number}\"\ntenant_id = \"{}\"\n", tenant(number));
            text += &more(number);
        }
        text += &format!(
            "[sinks.file]\ntype = \"file\"\npath = '{}'\ninputs = [\"customers\"]\n",
            self.at("out").display()
        );
        text += &format!("[metrics]\nlisten = \"{}\"\n[log]\nlevel = \"info\"\n", self.metrics);
        fs::write(self.at("agent.toml"), text).unwrap();
    }

    fn start(&self) -> Child {
        let log = fs::File::create(self.at("log")).unwrap();
        Command::new(env!("CARGO_BIN_EXE_m365-audit"))
            .args(["run", "-c"])
            .arg(self.at("agent.toml"))
            .env_remove("M365_AUDIT_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.at("log")).unwrap()
    }

    /// Numbers of the tenants all of whose events are in the file, once.
    fn delivered(&self) -> BTreeSet<usize> {
        let text = fs::read_to_string(self.at("out")).unwrap_or_default();
        let count = |number: usize, n: usize| text.matches(&format!("\"event_id\":\"{number}-{n}\"")).count();
        (0..TENANTS).filter(|number| (0..3).all(|n| count(*number, n) == 1)).collect()
    }

    fn tokens(&self, number: usize) -> usize {
        let requests = self.sim.requests().into_iter();
        requests.filter(|r| r.kind == CallKind::Token && r.tenant == tenant(number).as_str()).count()
    }

    /// The gauges of `/metrics` that speak of a tenant.
    fn gauges(&self, number: usize) -> BTreeSet<&'static str> {
        use std::io::{Read, Write};
        let mut page = String::new();
        let mut stream = std::net::TcpStream::connect(self.metrics).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        stream.read_to_string(&mut page).unwrap();
        let label = format!("tenant=\"{}\"", tenant(number));
        let of_it =
            |name: &str| page.lines().any(|line| line.starts_with(&format!("{name}{{")) && line.contains(&label));
        let gauges = metrics::ALL.iter().filter(|metric| metric.kind == metrics::MetricKind::Gauge);
        gauges.map(|metric| metric.name).filter(|name| of_it(name)).collect()
    }

    async fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !condition() {
            assert!(begun.elapsed() < PATIENCE, "{what}: {:?}\n{}", self.delivered(), self.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_tenants_among_a_hundred_are_not_felt_by_the_others_and_tenants_come_and_go_by_sighup() {
    let bench = Bench::new().await;
    // One with a wrong secret, one whose API never answers, one whose secret's file is not there, one whose CA file is
    // not there, one that gets nothing but server errors.
    let (wrong, silent, fileless, ca_less, failing) = (13, 27, 55, 60, 71);
    let all = |kind, number, fault: SimFault| FaultScript {
        tenant: Some(tenant(number)),
        ..FaultScript::next(kind, u32::MAX, fault)
    };
    bench.sim.set_faults(FaultPlan {
        scripts: vec![
            all(CallKind::List, silent, SimFault::Slow(Duration::from_secs(86_400))),
            all(CallKind::List, failing, SimFault::InternalError),
            all(CallKind::Content, failing, SimFault::InternalError),
        ],
        ..FaultPlan::default()
    });
    let (secret, ca) = (bench.at("secret"), bench.at("ca.pem"));
    let broken = |number: usize| match number {
        _ if number == wrong => "client_secret = \"not~the-secret\"\n".to_owned(),
        _ if number == fileless => format!("client_secret_file = '{}'\n", secret.display()),
        _ if number == ca_less => format!("ca_file = '{}'\n", ca.display()),
        _ => String::new(),
    };
    bench.configure(0..100, &broken);
    let mut child = bench.start();
    let sick = [wrong, silent, fileless, ca_less, failing];
    let healthy: BTreeSet<usize> = (0..100).filter(|number| !sick.contains(number)).collect();
    bench.until("the healthy ones", || bench.delivered() == healthy).await;
    bench
        .until("the broken ones are told", || {
            let log = bench.log();
            let told = |number: usize, slug: &str| {
                let tenant = tenant(number);
                log.lines().any(|line| line.contains(slug) && line.contains(tenant.as_str()))
            };
            told(wrong, "auth-secret-wrong")
                && told(fileless, "auth-secret-file-unreadable")
                && told(ca_less, "file-unreadable")
        })
        .await;

    // One is mended in the configuration, one is removed, one is new.
    let (removed, added) = (2, 100);
    let mended = |number: usize| if number == wrong { String::new() } else { broken(number) };
    let shown = bench.gauges(removed);
    assert!(shown.contains(metrics::HEALTH) && shown.contains(metrics::SECONDS_SINCE_CONTENT), "{shown:?}");
    bench.configure((0..=added).filter(|number| *number != removed), &mended);
    let asked = bench.tokens(removed);
    signal(&child, "-HUP");
    let mut expected = healthy.clone();
    expected.extend([wrong, added]);
    bench.until("the mended and the new one", || expected.is_subset(&bench.delivered())).await;
    assert_eq!(bench.gauges(removed), BTreeSet::new(), "what is removed is not shown as if it stood there");
    assert!(bench.gauges(added).contains(metrics::HEALTH));
    bench.until("its end is told", || bench.log().matches("source ended").count() >= 2).await;
    let log = bench.log();
    // Some are named in the line that counts those who said it alike.
    let ended = |name: &str| {
        let named = |line: &&str| {
            line.contains("source ended") && line.split(['=', ' ', '"', ',', ')']).any(|word| word == name)
        };
        log.lines().filter(named).count()
    };
    assert!(ended("customers.t2") >= 1, "{log}");
    assert_eq!(bench.tokens(removed), asked, "{log}");
    for number in healthy.iter().filter(|number| **number != removed) {
        let name = format!("customers.t{number}");
        assert_eq!(ended(&name), 0, "{name} was disturbed\n{log}");
        assert_eq!(bench.tokens(*number), 1, "{name} signed in once");
    }
    signal(&child, "-TERM");
    let mut status = None;
    bench
        .until("the end", || {
            status = child.try_wait().unwrap();
            status.is_some()
        })
        .await;
    assert!(bench.delivered().is_superset(&expected), "nothing came twice");
}

/// A limit as of a small machine: 128 files, soft and hard, so that it cannot be raised.
const FILES: u64 = 128;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_tenants_catch_up_over_slow_blobs_with_few_files_and_health_answers() {
    use std::io::{Read, Write};
    const MORE: usize = 5;
    let bench = Bench::new().await;
    let hour_ago = bench.sim.now().checked_sub(jiff::SignedDuration::from_hours(1)).unwrap();
    for number in 0..TENANTS {
        for blob in 0..MORE {
            let event = format!(
                r#"{{"Id":"{number}-more{blob}","CreationTime":"{hour_ago}","Operation":"Test","RecordType":1,"Workload":"X"}}"#
            );
            bench.sim.add_blob(&tenant(number), ContentType::General, NewBlob::at(hour_ago).with_events([event]));
        }
    }
    bench.sim.faults().rate(CallKind::Blob, 1.0, SimFault::Slow(Duration::from_millis(500)));
    bench.configure(0..TENANTS, &|_| String::new());
    let shell = format!("ulimit -n {FILES}; exec \"$0\" \"$@\"");
    let mut child = Command::new("sh")
        .args(["-c", &shell, env!("CARGO_BIN_EXE_m365-audit"), "run", "-c"])
        .arg(bench.at("agent.toml"))
        .env_remove("M365_AUDIT_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(bench.at("log")).unwrap())
        .spawn()
        .unwrap();
    let files = format!("/proc/{}/fd", child.id());
    let (mut most, mut answers) = (0, 0);
    bench
        .until("all of them", || {
            most = most.max(fs::read_dir(&files).map_or(0, Iterator::count));
            // Not there before the listener is; from then on every one is answered.
            if let Ok(mut stream) = std::net::TcpStream::connect(bench.metrics) {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut answer = String::new();
                stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").unwrap();
                stream.read_to_string(&mut answer).unwrap();
                assert!(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"), "{answer}");
                answers += 1;
            } else {
                assert_eq!(answers, 0, "the listener is gone");
            }
            let text = fs::read_to_string(bench.at("out")).unwrap_or_default();
            bench.delivered().len() == TENANTS && text.matches("-more").count() >= TENANTS * MORE
        })
        .await;
    signal(&child, "-TERM");
    assert!(child.wait().unwrap().success());
    let log = bench.log();
    assert!(!log.contains("Too many open files") && !log.contains("os error 24"), "{log}");
    assert!(log.contains("few files may be open"), "{log}");
    assert!(answers > 0 && most < FILES as usize, "{answers} answers, at most {most} files");
    println!("at most {most} of {FILES} files, {answers} answers of /health");
}

#[test]
fn the_soft_limit_of_files_is_raised_to_the_hard_one() {
    // Standard output is full at once, so that the process is there to be looked at.
    let shell = "ulimit -Sn 256; ulimit -Hn 3000; exec \"$0\" \"$@\"";
    let mut child = Command::new("sh")
        .args(["-c", shell, env!("CARGO_BIN_EXE_m365-audit"), "schema", "config"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    let limits = fs::read_to_string(format!("/proc/{}/limits", child.id()));
    child.kill().unwrap();
    child.wait().unwrap();
    let limits = limits.unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["3000", "3000"]);
}
