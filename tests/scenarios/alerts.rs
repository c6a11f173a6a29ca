//! Every shipped alert, from what `/metrics` really serves: the source runs against the simulated tenant in each
//! condition, the page is scraped every minute of its time, and `promtool` evaluates the shipped rules over these
//! samples, both while the condition lasts and after its end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use m365_audit::clock::{Clock, SystemClock};
use m365_audit::config::MetricsDetail;
use m365_audit::host::{BatchBuilder, Delivery};
use m365_audit::hosts::embedded::completeness::CompletenessReader;
use m365_audit::hosts::embedded::metrics_server::{MetricsServer, Readiness, Served};
use m365_audit::hosts::embedded::notebook::Notebook;
use m365_audit::hosts::embedded::recorder::Recorder;
use m365_audit::hosts::embedded::registry::{Registry, RunningSource};
use m365_audit::hosts::embedded::sink::{BlockingSink, Written};
use m365_audit::hosts::embedded::status::{Monitor, Recent};
use m365_audit::hosts::embedded::{HealthReport, ReportedHealth};
use m365_audit::hosts::file::{FILE_MODE, FileSink, Memory};
use m365_audit::model::{ContentType, Timestamp};
use m365_audit::severity::Severity;
use m365_audit::sim::{CallKind, SimConfig, SimFault, SubscriptionState};
use m365_audit::source::{aside, backfill, heal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot, watch};

use crate::host::Manner;
use crate::world::{BEGIN, SOURCE, World, days, hours, mins};

/// What was scraped, minute by minute: the value of each series.
type Minutes = Vec<BTreeMap<String, f64>>;

/// The page of one process, and what it served.
struct Scraped {
    _recorder: metrics::LocalRecorderGuard<'static>,
    address: SocketAddr,
    report: watch::Sender<HealthReport>,
    registry: Registry,
    minutes: Minutes,
}

impl Scraped {
    /// A recorder and a listener as `run` has them, for what this thread records.
    async fn new() -> Self {
        let (recorder, recorded) = Recorder::new();
        let server = MetricsServer::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let (report, reported) = watch::channel(HealthReport::default());
        let clock: Arc<dyn Clock> = SystemClock::new();
        let registry = Registry::default();
        let served = Served {
            monitor: Arc::new(Monitor::new(recorded, reported, Recent::default(), clock.clone())),
            registry: registry.clone(),
            completeness: CompletenessReader::new(Arc::new(OnceLock::new()), clock.clone()),
            detail: MetricsDetail::Tenant,
            hosts: Vec::new(),
            docs_url: String::new(),
            readiness: Readiness::default(),
        };
        tokio::spawn(server.serve(served, clock, std::future::pending()));
        let recorder = metrics::set_default_local_recorder(Box::leak(Box::new(recorder)));
        Self { _recorder: recorder, address, report, registry, minutes: Vec::new() }
    }

    async fn page(&self) -> String {
        let mut stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.0 200"), "{head}");
        body.to_owned()
    }

    async fn scrape(&mut self) {
        let page = self.page().await;
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        };
        self.minutes.push(page.lines().filter(|line| line.starts_with("m365_audit_")).map(sample).collect());
    }

    /// Lets so many minutes pass, the page scraped at the end of each.
    async fn pass(&mut self, world: &World, minutes: usize) {
        for _ in 0..minutes {
            world.pass(mins(1)).await;
            self.report_health(world);
            self.scrape().await;
        }
    }

    /// As a host does; the page has the causes from it.
    fn report_health(&self, world: &World) {
        let standing = ReportedHealth { health: world.host.health(), since: world.now() };
        self.report.send_modify(|report| drop(report.sources.insert(SOURCE.to_owned(), standing)));
        if self.registry.entries().is_empty() {
            let entry = RunningSource {
                tenant: world.tenant.clone(),
                content_types: Vec::new(),
                max_requests_per_minute: 0,
                counter: backfill::request_queue().0,
                heal: heal::requests::request_queue().0,
                backfill: None,
                retries: aside::asking().0,
            };
            self.registry.put(SOURCE, entry);
        }
    }

    fn now(&self) -> usize {
        self.minutes.len()
    }
}

/// One target of Prometheus, from the first minute on: `None` is a minute in which it did not answer.
struct Target<'a> {
    instance: &'a str,
    /// Taken in place of the tenant that was scraped.
    tenant: Option<&'a str>,
    minutes: Vec<Option<&'a BTreeMap<String, f64>>>,
    /// The target is known for so many minutes: afterwards `up` is not there either.
    known_for: usize,
}

impl<'a> Target<'a> {
    fn answering(instance: &'a str, minutes: &'a Minutes) -> Self {
        Self { instance, tenant: None, minutes: minutes.iter().map(Some).collect(), known_for: usize::MAX }
    }

    fn with_tenant(self, tenant: &'a str) -> Self {
        Self { tenant: Some(tenant), ..self }
    }

    fn silent_in(mut self, range: std::ops::Range<usize>) -> Self {
        self.minutes[range].fill(None);
        self
    }

    /// Its series in promtool's notation; where one ends, Prometheus marks it.
    fn series(&self, out: &mut String) {
        let names: BTreeSet<&String> = self.minutes.iter().flatten().flat_map(|minute| minute.keys()).collect();
        let begin = BEGIN.parse::<Timestamp>().unwrap().as_second() as f64;
        let mut put = |series: &str, values: &mut dyn Iterator<Item = Option<f64>>| {
            let mut before = None;
            let mut text = String::new();
            for value in values {
                match (value, before) {
                    (Some(value), _) => write!(text, "{value} ").unwrap(),
                    (None, Some(_)) => text.push_str("stale "),
                    (None, None) => text.push_str("_ "),
                }
                before = value;
            }
            writeln!(out, "      - series: '{series}'\n        values: '{}'", text.trim_end()).unwrap();
        };
        let target = format!("instance=\"{}\", job=\"m365-audit\"", self.instance);
        let up = |(n, minute): (usize, &Option<_>)| (n < self.known_for).then(|| f64::from(u8::from(minute.is_some())));
        put(&format!("up{{{target}}}"), &mut self.minutes.iter().enumerate().map(up));
        for name in names {
            let (metric, labels) = name.split_once('{').unwrap_or((name, "}"));
            let mut labels = labels.trim_end_matches('}').to_owned();
            // Some are of the process and of no tenant.
            if let Some(tenant) = self.tenant.filter(|_| labels.contains("tenant=")) {
                let others = labels.split(',').filter(|label| !label.starts_with("tenant=")).map(str::to_owned);
                labels = others.chain([format!("tenant=\"{tenant}\"")]).collect::<Vec<_>>().join(",");
            }
            // Promtool's time begins in 1970.
            let shift = if metric.ends_with("_timestamp_seconds") { begin } else { 0.0 };
            let mut values = self.minutes.iter().map(|minute| Some((*minute)?.get(name)? - shift));
            put(&format!("{metric}{{{target},{labels}}}"), &mut values);
        }
    }
}

/// Which alerts fire at which minute, each as `name` for the first target, `name instance`, or with a space behind it
/// where it names none; promtool says where that is not so.
#[track_caller]
fn assert_alerts(what: &str, targets: &[Target<'_>], expected: &[(usize, &[&str])]) {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/prometheus/m365-audit.rules.yml");
    let mut text = format!(
        "rule_files: ['{}']\nevaluation_interval: 1m\ntests:\n  - name: {what}\n    interval: 1m\n    input_series:\n",
        rules.display()
    );
    for target in targets {
        target.series(&mut text);
    }
    text.push_str("    promql_expr_test:\n");
    for (minute, alerts) in expected {
        let expr = "count by (alertname, instance) (ALERTS{alertstate=\"firing\"})";
        write!(text, "      - expr: '{expr}'\n        eval_time: {minute}m\n        exp_samples:").unwrap();
        text.push_str(if alerts.is_empty() { " []\n" } else { "\n" });
        let count = |alert: &&str| alerts.iter().filter(|other| *other == alert).count();
        for alert in alerts.iter().collect::<BTreeSet<_>>() {
            let (name, instance) = alert.split_once(' ').unwrap_or((alert, targets[0].instance));
            let instance = if instance.is_empty() { String::new() } else { format!(", instance=\"{instance}\"") };
            let labels = format!("{{alertname=\"{name}\"{instance}}}");
            writeln!(text, "          - {{ labels: '{labels}', value: {} }}", count(alert)).unwrap();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("alerts.test.yml");
    std::fs::write(&file, &text).unwrap();
    let Some(promtool) = test_support::program("promtool") else { return };
    let output = Command::new(promtool).args(["test", "rules"]).arg(&file).output().unwrap();
    if !output.status.success() {
        let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        let kept = std::env::temp_dir().join(format!("m365-alerts-{}.yml", std::process::id()));
        std::fs::write(&kept, &text).unwrap();
        panic!("{what}: {printed}\nthe samples are in {}", kept.display());
    }
}

#[tokio::test]
async fn a_busy_tenant_and_a_back_fill_of_a_week_raise_no_alert() {
    let mut world = World::new().await;
    world.all_types();
    for day in 0..6 {
        world.add_aged(3, days(day) + hours(12));
    }
    let mut scraped = Scraped::new().await;
    let running = world.start();
    for _ in 0..12 {
        world.add_now(2);
        scraped.pass(&world, 10).await;
    }
    assert_alerts("busy", &[Target::answering("a", &scraped.minutes)], &[(20, &[]), (60, &[]), (119, &[])]);
    world.stop(running).await;
    world.assert_clean();
}

#[tokio::test]
async fn a_blob_near_its_end_is_alarmed_of_until_it_is_settled_and_no_longer() {
    let mut world = World::new().await;
    let old = world.add_aged(3, days(6) + hours(6));
    let mut scraped = Scraped::new().await;
    world.host.answer(Manner::Hold);
    let running = world.start();
    scraped.pass(&world, 20).await;
    assert!(scraped.page().await.contains("m365_audit_oldest_unsettled_blob_expiry_seconds{"), "{old} is not settled");
    let settled = scraped.now();
    world.host.release();
    scraped.pass(&world, 1).await;
    let page = scraped.page().await;
    assert!(!page.contains("m365_audit_oldest_unsettled_blob_expiry_seconds{"), "absent when there is none: {page}");
    assert!(page.contains("m365_audit_lag_seconds{"), "{page}");
    world.add_now(1);
    scraped.pass(&world, 20).await;
    let fires: &[&str] = &["M365AuditBlobNearExpiry"];
    let minutes = [(3, &[][..]), (settled - 2, fires), (settled + 1, &[]), (settled + 15, &[])];
    assert_alerts("near", &[Target::answering("a", &scraped.minutes)], &minutes);
    world.stop(running).await;
    world.assert_clean();
}

#[tokio::test]
async fn the_lag_is_shown_within_a_second_of_the_delivery() {
    let mut world = World::new().await;
    let scraped = Scraped::new().await;
    let running = world.start();
    world.pass(mins(1)).await;
    assert!(!scraped.page().await.contains("m365_audit_lag_seconds{"), "nothing was delivered so far");
    world.add_aged(1, mins(2));
    world.until_all_delivered().await;
    world.pass(Duration::from_secs(1)).await;
    let page = scraped.page().await;
    assert!(page.contains("m365_audit_lag_seconds{"), "{page}");
    world.stop(running).await;
}

#[tokio::test]
async fn a_tenant_without_content_for_six_hours_is_alarmed_of_until_some_comes() {
    let mut world = World::new().await;
    world.set("content_types", vec![ContentType::Exchange.as_str(), ContentType::General.as_str()]);
    world.add_now(1);
    let mut scraped = Scraped::new().await;
    let running = world.start();
    scraped.pass(&world, 6 * 60 + 30).await;
    let again = scraped.now();
    world.add_now(1);
    scraped.pass(&world, 15).await;
    let minutes = [(6 * 60, &[][..]), (again - 1, &["M365AuditNoContent"]), (again + 10, &[])];
    assert_alerts("quiet", &[Target::answering("a", &scraped.minutes)], &minutes);
    world.stop(running).await;
}

#[tokio::test]
async fn a_tenant_that_lies_hours_behind_is_alarmed_of_until_it_has_caught_up() {
    let mut world = World::new().await;
    world.add_now(1);
    let mut scraped = Scraped::new().await;
    let running = world.start();
    scraped.pass(&world, 20).await;
    world.host.answer(Manner::Hold);
    world.add_now(1);
    scraped.pass(&world, 3 * 60).await;
    let behind = scraped.now();
    world.host.release();
    scraped.pass(&world, 20).await;
    let minutes = [(100, &[][..]), (behind - 1, &["M365AuditLag"]), (behind + 15, &[])];
    assert_alerts("lag", &[Target::answering("a", &scraped.minutes)], &minutes);
    world.stop(running).await;
}

#[tokio::test]
async fn a_gap_is_alarmed_of_for_an_hour() {
    let mut world = World::new().await;
    world.add_now(1);
    world.run_for(hours(1)).await;
    world.leap(days(9), hours(6)).await;
    let mut scraped = Scraped::new().await;
    let running = world.start();
    scraped.pass(&world, 90).await;
    assert_eq!(world.gaps().len(), 1, "{:?}", world.gaps());
    let minutes = [(5, &["M365AuditGap"][..]), (45, &["M365AuditGap"]), (80, &[])];
    assert_alerts("gap", &[Target::answering("a", &scraped.minutes)], &minutes);
    world.stop(running).await;
}

/// What a member of a cluster says of it; `tests/program/cluster.rs` has whole members.
#[tokio::test]
async fn a_cluster_whose_tenants_nobody_takes_and_one_with_two_writers_are_alarmed_of_until_it_is_over() {
    use m365_audit::metrics::{CLUSTER_MEMBERS, HEALTH, LEASES_HELD, TENANTS_WITHOUT_MEMBER, lease_lost};
    let mut scraped = Scraped::new().await;
    metrics::gauge!(CLUSTER_MEMBERS).set(2.0);
    metrics::gauge!(LEASES_HELD).set(7.0);
    metrics::gauge!(HEALTH, "tenant" => "7f3c0000-0000-0000-0000-000000000001").set(0.0);
    for minute in 0..60 {
        metrics::gauge!(TENANTS_WITHOUT_MEMBER).set(if (10..20).contains(&minute) { 3.0 } else { 0.0 });
        if (30..40).contains(&minute) || minute == 5 {
            lease_lost("conflict");
        }
        scraped.scrape().await;
    }
    let unread: &[&str] = &["M365AuditClusterTenantUnread"];
    let conflicts: &[&str] = &["M365AuditClusterConflicts"];
    let minutes = [(8, &[][..]), (11, &[]), (15, unread), (25, &[]), (38, conflicts), (58, &[])];
    assert_alerts("a cluster", &[Target::answering("a", &scraped.minutes)], &minutes);
}

#[tokio::test]
async fn a_throttled_tenant_is_alarmed_of_while_it_is() {
    let mut world = World::new().await;
    // Enough calls that a tenth of them is refused in every quarter of an hour.
    world.all_types();
    let refused = SimFault::Throttled { status: 429, retry_after_secs: Some(1), single_quoted: false };
    world.sim.faults().rate(CallKind::Content, 0.6, refused);
    let mut scraped = Scraped::new().await;
    let running = world.start();
    scraped.pass(&world, 60).await;
    let over = scraped.now();
    world.sim.faults().clear();
    scraped.pass(&world, 40).await;
    let minutes = [(10, &[][..]), (over - 1, &["M365AuditThrottled"]), (over + 35, &[])];
    assert_alerts("throttled", &[Target::answering("a", &scraped.minutes)], &minutes);
    world.stop(running).await;
}

#[tokio::test]
async fn a_tenant_that_works_with_a_part_missing_is_degraded_and_recovers() {
    let mut world = World::new().await;
    world.set("content_types", vec![ContentType::Exchange.as_str(), ContentType::General.as_str()]);
    world.sim.faults().next_for_type(CallKind::Content, ContentType::General, 60, SimFault::PermissionMissing);
    let mut scraped = Scraped::new().await;
    let running = world.start();
    scraped.pass(&world, 45).await;
    let mended = scraped.now();
    world.sim.faults().clear();
    world.until("healthy again", || world.host.health() == m365_audit::host::Health::Healthy).await;
    scraped.pass(&world, 10).await;
    let minutes = [(15, &[][..]), (mended - 1, &["M365AuditDegraded"]), (mended + 5, &[])];
    assert_alerts("degraded", &[Target::answering("a", &scraped.minutes)], &minutes);
    world.stop(running).await;
}

#[tokio::test]
async fn a_tenant_that_cannot_sign_in_has_failed_until_it_can() {
    let world = World::with(SimConfig { token_error: Some(7_000_222), ..SimConfig::default() }).await;
    let mut scraped = Scraped::new().await;
    let running = world.start();
    scraped.pass(&world, 15).await;
    let mended = scraped.now();
    world.sim.configure(|config| config.token_error = None);
    world.until("healthy", || world.host.health() == m365_audit::host::Health::Healthy).await;
    scraped.pass(&world, 10).await;
    let minutes = [(2, &[][..]), (mended - 1, &["M365AuditFailed"]), (mended + 5, &[])];
    assert_alerts("failed", &[Target::answering("a", &scraped.minutes)], &minutes);
    world.stop(running).await;
}

#[tokio::test]
async fn a_tenant_that_waits_for_a_file_has_failed() {
    let mut world = World::new().await;
    let dir = tempfile::tempdir().unwrap();
    world.set("ca_file", dir.path().join("not-there.pem").to_str().unwrap());
    let mut scraped = Scraped::new().await;
    let running = world.start();
    scraped.pass(&world, 15).await;
    assert_alerts("file", &[Target::answering("a", &scraped.minutes)], &[(12, &["M365AuditFailed"])]);
    world.stop(running).await;
}

#[tokio::test]
async fn a_source_that_ended_by_itself_has_failed_and_shows_nothing_else() {
    let mut world = World::new().await;
    world.add_aged(3, days(6) + hours(6));
    world.host.answer(Manner::Hold);
    let mut scraped = Scraped::new().await;
    let first = world.start();
    scraped.pass(&world, 3).await;
    // A second collector of the same state: one of the two ends.
    let second = world.start();
    world.until("one has ended", || first.task.is_finished() || second.task.is_finished()).await;
    let (ended, other) = if first.task.is_finished() { (first, second) } else { (second, first) };
    assert!(world.ended(ended).await.is_err());
    world.kill(other).await;
    for _ in 0..20 {
        scraped.scrape().await;
    }
    let page = scraped.page().await;
    assert!(!page.contains("_blob_expiry_seconds{") && !page.contains("_since_content{"), "{page}");
    let minutes = [(scraped.now() - 1, &["M365AuditFailed"][..])];
    assert_alerts("ended", &[Target::answering("a", &scraped.minutes)], &minutes);
}

#[tokio::test]
async fn a_secret_is_alarmed_of_two_weeks_before_it_ends() {
    let mut world = World::new().await;
    let end = world.now() + days(15);
    world.set("client_secret_expires", end.strftime("%Y-%m-%d").to_string());
    let mut scraped = Scraped::new().await;
    let running = world.start();
    world.add_now(1);
    scraped.pass(&world, 5).await;
    world.leap(days(2), hours(4)).await;
    let late = scraped.now();
    let expected = "m365_audit_credential_expiry_timestamp_seconds{";
    assert!(scraped.page().await.contains(expected));
    scraped.pass(&world, 5).await;
    world.stop(running).await;
    // Two days later by the clock: the samples of the first minutes stand for those between.
    let (first, last) = (&scraped.minutes[late - 1], &scraped.minutes[late]);
    assert_eq!(
        first.iter().find(|(series, _)| series.starts_with(expected)),
        last.iter().find(|(series, _)| series.starts_with(expected))
    );
    let mut steady = first.clone();
    // Its position would stand still.
    steady.retain(|series, _| !series.starts_with("m365_audit_checkpoint"));
    let minutes: Minutes = std::iter::repeat_n(steady, 2 * 24 * 60).collect();
    let fires = ["M365AuditCredentialExpires"];
    assert_alerts("secret", &[Target::answering("a", &minutes)], &[(60, &[]), (2 * 24 * 60 - 1, &fires)]);
}

/// Ninety minutes of a tenant that is read.
async fn well() -> (Minutes, Minutes) {
    let mut world = World::new().await;
    let mut scraped = Scraped::new().await;
    world.add_now(1);
    let running = world.start();
    scraped.pass(&world, 3).await;
    let mut minutes = scraped.minutes.clone();
    let mut steady = minutes.last().unwrap().clone();
    // Its position would stand still.
    steady.retain(|series, _| !series.starts_with("m365_audit_checkpoint"));
    minutes.extend(std::iter::repeat_n(steady, 177));
    let tenant = world.tenant.clone();
    world.stop(running).await;
    m365_audit::metrics::source_removed("test", &tenant);
    scraped.scrape().await;
    (minutes, vec![scraped.minutes.last().unwrap().clone()])
}

#[tokio::test]
async fn one_silent_process_of_two_is_alarmed_of_and_named() {
    let (minutes, removed) = well().await;
    let a = || Target::answering("a", &minutes).with_tenant("t1");
    let b = || Target::answering("b", &minutes).with_tenant("t2");
    let twin = || Target::answering("b", &minutes).with_tenant("t1");
    // Its target stays and does not answer; then it is back.
    let expected: [(usize, &[&str]); 4] =
        [(29, &[]), (60, &["M365AuditSilent a"]), (89, &["M365AuditSilent a"]), (95, &[])];
    assert_alerts("down", &[a().silent_in(30..90), b()], &expected);
    assert_alerts("down beside a twin", &[a().silent_in(30..90), twin()], &expected);
    // Its target is gone, too.
    let vanished = || Target { known_for: 30, ..a().silent_in(30..180) };
    assert_alerts(
        "gone",
        &[vanished(), b()],
        &[(29, &[]), (60, &["M365AuditSilent a"]), (170, &["M365AuditSilent a"])],
    );
    assert_alerts("gone beside a twin", &[vanished(), twin()], &[(29, &[]), (80, &["M365AuditSilent a"])]);
    assert_alerts("the only one", &[vanished()], &[(29, &[]), (60, &["M365AuditSilent a"])]);
    // A pod was replaced: another address reads the tenant.
    let successor = || Target::answering("c", &minutes).with_tenant("t1").silent_in(0..31);
    assert_alerts("replaced", &[vanished(), b(), successor()], &[(60, &[]), (120, &[]), (170, &[])]);
    // A tenant was taken out of the configuration of a process that runs.
    assert!(removed[0].keys().all(|series| !series.starts_with(m365_audit::metrics::HEALTH)), "{:?}", removed[0]);
    let mut two: Vec<BTreeMap<String, f64>> = minutes.clone();
    let other = |minute: &BTreeMap<String, f64>| -> BTreeMap<String, f64> {
        minute.iter().map(|(series, value)| (series.replace("tenant=\"", "tenant=\"other-"), *value)).collect()
    };
    let others: Minutes = minutes.iter().map(other).collect();
    for (n, minute) in two.iter_mut().enumerate() {
        if n >= 30 {
            minute.clone_from(&removed[0]);
        }
        minute.extend(others[n].clone());
    }
    assert_alerts("removed", &[Target::answering("a", &two)], &[(29, &[]), (60, &[]), (120, &[])]);
}

/// As long as `http` and `otlp` wait for an answer by default.
const TIMEOUT: Duration = Duration::from_secs(300);

/// `m365-audit state retry`: how many were delivered, and how many are left.
async fn retry(world: &World, retries: &mpsc::Sender<aside::RetryRequest>) -> (u64, usize) {
    let (ask, mut answer) = oneshot::channel();
    retries.send(ask).await.unwrap();
    let mut retried = None;
    world
        .until("what was set aside is offered", || {
            retried = answer.try_recv().ok();
            retried.is_some()
        })
        .await;
    let retried = retried.unwrap().unwrap();
    (retried.delivered, retried.left.len())
}

#[tokio::test]
async fn a_record_that_is_set_aside_is_alarmed_of_until_it_is_taken() {
    let mut world = World::new().await;
    world.add_aged(20, mins(30));
    world.host.answer(Manner::RejectIf(|record| record["event_id"].as_str().is_some_and(|id| id.ends_with("13"))));
    let mut scraped = Scraped::new().await;
    let (running, retries) = world.start_with_sink(TIMEOUT);
    scraped.pass(&world, 22).await;
    assert_eq!(world.host.event_count(), 19);
    assert_eq!(retry(&world, &retries).await, (0, 1), "the receiver still rejects it");
    scraped.pass(&world, 5).await;
    let corrected = scraped.now();
    world.host.answer(Manner::Take);
    assert_eq!(retry(&world, &retries).await, (1, 0));
    scraped.pass(&world, 20).await;
    let fires: &[&str] = &["M365AuditSetAside"];
    let minutes = [(10, &[][..]), (21, fires), (corrected - 1, fires), (corrected + 1, &[]), (corrected + 19, &[])];
    assert_alerts("aside", &[Target::answering("a", &scraped.minutes)], &minutes);
    world.stop(running).await;
    world.assert_clean();
}

#[tokio::test]
async fn a_receiver_that_rejects_everything_is_alarmed_of_until_it_takes_something_and_nothing_is_set_aside() {
    let mut world = World::new().await;
    for n in 0..5 {
        world.add_aged(20, mins(20 + n));
    }
    world.host.answer(Manner::RejectAll);
    let mut scraped = Scraped::new().await;
    let (running, _retries) = world.start_with_sink(TIMEOUT);
    scraped.pass(&world, 25).await;
    assert_eq!(world.host.event_count(), 0);
    let corrected = scraped.now();
    world.host.answer(Manner::Take);
    scraped.pass(&world, 10).await;
    let minutes = [(5, &[][..]), (corrected - 1, &["M365AuditSinkHeldBack"]), (corrected + 2, &[]), (34, &[])];
    assert_alerts("held back", &[Target::answering("a", &scraped.minutes)], &minutes);
    let asides = |minute: &BTreeMap<String, f64>| -> f64 {
        minute.iter().filter(|(series, _)| series.starts_with("m365_audit_set_aside_records")).map(|(_, n)| n).sum()
    };
    assert_eq!(scraped.minutes.iter().map(asides).sum::<f64>(), 0.0);
    world.stop(running).await;
    world.assert_clean();
}

#[tokio::test]
async fn a_receiver_that_is_out_of_reach_is_alarmed_of_until_it_takes_something_and_a_busy_one_is_not() {
    let mut world = World::new().await;
    let mut scraped = Scraped::new().await;
    let (running, _retries) = world.start_with_sink(TIMEOUT);
    // Refuses at first each time, and takes all of it.
    for _ in 0..9 {
        world.add_now(1);
        world.host.answer_next(4, Manner::Refuse);
        scraped.pass(&world, 10).await;
    }
    assert!(world.host.refused() >= 30, "{}", world.host.refused());
    let away = scraped.now();
    world.host.answer(Manner::Refuse);
    world.add_now(3);
    scraped.pass(&world, 70).await;
    let back = scraped.now();
    world.host.answer(Manner::Take);
    scraped.pass(&world, 20).await;
    let minutes =
        [(60, &[][..]), (away - 1, &[]), (back - 1, &["M365AuditSinkRefused"]), (back + 2, &[]), (back + 19, &[])];
    assert_alerts("away", &[Target::answering("a", &scraped.minutes)], &minutes);
    world.stop(running).await;
    world.assert_clean();
}

/// A request that is given up takes its age with it: however often that happens, the receiver does not answer.
#[tokio::test]
async fn a_receiver_that_does_not_answer_is_alarmed_of_until_it_does_whatever_the_timeout_of_its_sink() {
    let (unanswered, both): (&[&str], &[&str]) =
        (&["M365AuditSinkUnanswered"], &["M365AuditSinkHeldBack", "M365AuditSinkUnanswered"]);
    // Those of `fluent_forward`, of `http` and `otlp`; a file has none. Two requests that were given up are what the
    // receiver is held back for.
    for (timeout, at_last) in [(Duration::from_secs(190), both), (TIMEOUT, both), (days(1), unanswered)] {
        let mut world = World::new().await;
        world.add_aged(3, mins(30));
        world.host.answer(Manner::Hold);
        let mut scraped = Scraped::new().await;
        let (running, _retries) = world.start_with_sink(timeout);
        scraped.pass(&world, 26).await;
        let answers = scraped.now();
        world.host.release();
        scraped.pass(&world, 15).await;
        assert_eq!(world.host.event_count(), 3, "{timeout:?}");
        let minutes = [(5, &[][..]), (15, unanswered), (answers - 1, at_last), (answers + 6, &[]), (answers + 14, &[])];
        assert_alerts(&format!("unanswered, {timeout:?}"), &[Target::answering("a", &scraped.minutes)], &minutes);
        world.stop(running).await;
        world.assert_clean();
    }
}

#[tokio::test]
async fn a_receiver_that_takes_its_time_or_misses_one_answer_raises_no_alert() {
    let mut world = World::new().await;
    let mut scraped = Scraped::new().await;
    world.host.answer(Manner::Hold);
    let (running, _retries) = world.start_with_sink(TIMEOUT);
    let mut answered = 0;
    for _ in 0..15 {
        world.add_now(1);
        scraped.pass(&world, 2).await;
        answered += world.host.held();
        world.host.answer_held(Delivery::Delivered);
    }
    assert!(answered >= 5, "{answered}");
    scraped.pass(&world, 1).await;
    world.host.answer_held(Delivery::Delivered);
    world.add_now(1);
    while world.host.held() == 0 {
        scraped.pass(&world, 1).await;
    }
    // It is given up within the fifth minute from now, and the second time it is taken.
    scraped.pass(&world, 5).await;
    world.host.release();
    scraped.pass(&world, 20).await;
    let oldest = |minute: &BTreeMap<String, f64>| {
        minute.iter().filter(|(series, _)| series.contains("oldest_request")).map(|(_, age)| *age).fold(0.0, f64::max)
    };
    assert!(scraped.minutes.iter().map(oldest).fold(0.0, f64::max) > 120.0, "one was missed");
    let minutes: Vec<(usize, &[&str])> = (0..scraped.now()).map(|minute| (minute, &[][..])).collect();
    assert_alerts("slow", &[Target::answering("a", &scraped.minutes)], &minutes);
    world.stop(running).await;
    world.assert_clean();
}

#[tokio::test]
async fn a_state_store_that_hangs_is_alarmed_of_until_it_answers() {
    let mut world = World::new().await;
    world.add_aged(3, mins(30));
    let mut scraped = Scraped::new().await;
    let running = world.start();
    scraped.pass(&world, 10).await;
    running.store.hangs.send_replace(true);
    world.add_now(3);
    scraped.pass(&world, 20).await;
    let answers = scraped.now();
    running.store.hangs.send_replace(false);
    scraped.pass(&world, 10).await;
    let minutes = [(9, &[][..]), (answers - 1, &["M365AuditStateSlow"]), (answers + 2, &[]), (answers + 9, &[])];
    assert_alerts("the state hangs", &[Target::answering("a", &scraped.minutes)], &minutes);
    world.stop(running).await;
    world.assert_clean();
}

#[tokio::test]
async fn a_file_that_was_cut_is_alarmed_of_for_an_hour() {
    let world = World::new().await;
    let mut scraped = Scraped::new().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.ndjson");
    let memory = Memory {
        sink: "out".into(),
        page: Notebook::default().page("out"),
        clock: Arc::new(world.clock.clone()),
        state_is_new: true,
    };
    let mut sink = FileSink::open_remembering(&path, FILE_MODE, memory).unwrap();
    let mut write = || {
        let mut builder = BatchBuilder::default();
        builder.push_with(|out| {
            out.extend_from_slice(b"{}");
            Some((Timestamp::UNIX_EPOCH, Severity::Info))
        });
        let batch = builder.finish("source".into(), world.tenant.clone(), ContentType::Exchange);
        assert_eq!(sink.write(&[batch]), [Written::Delivered]);
    };
    let running = world.start();
    write();
    scraped.pass(&world, 10).await;
    let cut = scraped.now();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(0).unwrap();
    write();
    scraped.pass(&world, 80).await;
    let minutes = [(cut - 1, &[][..]), (cut + 2, &["M365AuditSinkFileCut"]), (cut + 75, &[])];
    assert_alerts("a file is cut", &[Target::answering("a", &scraped.minutes)], &minutes);
    world.stop(running).await;
}

#[tokio::test]
async fn a_tenant_that_is_removed_leaves_no_gauge_behind() {
    let mut world = World::new().await;
    world.all_types();
    world.set("client_secret_expires", "2026-12-31");
    world.add_aged(3, days(6) + hours(6));
    world.host.answer(Manner::Hold);
    let scraped = Scraped::new().await;
    let running = world.start();
    world.pass(mins(2)).await;
    let gauges = |page: &str| -> BTreeSet<String> {
        let names =
            m365_audit::metrics::ALL.iter().filter(|metric| metric.kind == m365_audit::metrics::MetricKind::Gauge);
        let shown = |name: &&str| page.contains(&format!("\n{name}{{"));
        names.map(|metric| metric.name).filter(shown).map(str::to_owned).collect()
    };
    let before = gauges(&scraped.page().await);
    assert!(before.len() >= 10, "{before:?}");
    world.host.release();
    world.stop(running).await;
    let left = [m365_audit::metrics::HEALTH, m365_audit::metrics::SOURCE_INFO].map(str::to_owned);
    assert_eq!(gauges(&scraped.page().await), BTreeSet::from(left));
    m365_audit::metrics::source_removed("test", &world.tenant);
    assert_eq!(gauges(&scraped.page().await), BTreeSet::new());
    // And comes back with it.
    world.sim.set_subscription(&world.tenant, ContentType::Exchange, SubscriptionState::Enabled);
    let running = world.start();
    world.pass(mins(1)).await;
    assert!(gauges(&scraped.page().await).contains(m365_audit::metrics::HEALTH));
    world.stop(running).await;
}

#[tokio::test]
async fn silence_from_the_first_is_alarmed_of() {
    let minutes: Minutes = vec![BTreeMap::new(); 60];
    let target = Target { minutes: vec![None; 60], ..Target::answering("a", &minutes) };
    assert_alerts("never", &[target], &[(10, &[]), (30, &["M365AuditSilent "])]);
}
