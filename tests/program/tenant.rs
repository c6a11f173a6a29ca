//! Tenants set up, listed and taken out by the real binary: in the configuration and in a folder of files, with the running
//! process that reads them again, and what a tenant will bring.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use m365_audit::clock::SystemClock;
use m365_audit::model::{ContentType, TenantId};
use m365_audit::sim::{CallKind, ListingOrder, NewBlob, Sim, SimConfig, SubscriptionState};
use serde_json::Value;

/// For a slow machine; nothing waits for it where all is well.
const PATIENCE: Duration = Duration::from_secs(240);

fn tenant(number: usize) -> TenantId {
    format!("00000000-0000-4000-8000-{number:012}").parse().unwrap()
}

fn binary(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
    command.args(arguments).current_dir(dir).env_remove("M365_AUDIT_LOG").env_remove("M365_CLIENT_SECRET");
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

const TEMPLATE: &str = "# Our customers.
data_dir = \"state\"
[sources.customers]   # one app
type = \"m365_audit\"
client_id = \"00000000-1111-2222-3333-555555555555\"
client_secret = \"${M365_CLIENT_SECRET}\"   # of the environment

# The first one.
[[sources.customers.tenants]]
name = \"first\"
tenant_id = \"00000000-0000-4000-8000-000000000001\"   # since 2024

[sinks.out]
type = \"stdout\"
inputs = [\"*\"]   # all of them
";

#[test]
fn tenants_come_and_go_in_the_configuration_and_every_comment_stays() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("agent.toml");
    fs::write(&config, TEMPLATE).unwrap();
    let id = tenant(2);
    let added = binary(
        dir.path(),
        &[
            "tenant",
            "add",
            "-c",
            "agent.toml",
            "second",
            "--tenant-id",
            id.as_str(),
            "poll_interval_secs=60",
            "mask=/A,/B",
        ],
    );
    assert!(added.status.success(), "{}", said(&added));
    let text = fs::read_to_string(&config).unwrap();
    let parsed: toml::Table = text.parse().unwrap();
    let second = &parsed["sources"]["customers"]["tenants"][1];
    assert_eq!(second["poll_interval_secs"].as_integer(), Some(60), "{text}");
    assert_eq!(second["mask"].as_array().map(Vec::len), Some(2), "{text}");
    for comment in TEMPLATE.lines().filter_map(|line| line.split_once('#')).map(|(_, comment)| comment) {
        assert!(text.contains(comment), "{comment} is gone:\n{text}");
    }
    let listed = binary(dir.path(), &["tenant", "list", "-c", "agent.toml", "--json"]);
    assert!(listed.status.success(), "{}", said(&listed));
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let names: Vec<&str> = listed["tenants"].as_array().unwrap().iter().filter_map(|t| t["source"].as_str()).collect();
    assert_eq!(names, ["customers.first", "customers.second"]);
    let removed = binary(dir.path(), &["tenant", "remove", "-c", "agent.toml", "second"]);
    assert!(removed.status.success() && said(&removed).contains("stays in state"), "{}", said(&removed));
    assert_eq!(fs::read_to_string(&config).unwrap(), TEMPLATE, "as it was");
}

#[test]
fn a_folder_of_tenants_gets_a_file_for_each_and_loses_it_with_the_last() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("agent.toml");
    let main = format!("tenants_dir = \"tenants.d\"\n{TEMPLATE}").replace("[\"*\"]", "[\"customers\", \"own\"]");
    fs::write(&config, &main).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o640)).unwrap();
    // The folder is made with the first tenant.
    let third = tenant(3);
    let made = binary(dir.path(), &["tenant", "add", "-c", "agent.toml", "third", "--tenant-id", third.as_str()]);
    assert!(made.status.success(), "{}", said(&made));
    fs::remove_file(dir.path().join("tenants.d/third.toml")).unwrap();
    let own = "# Its own app.\n[sources.own]\ntype = \"m365_audit\"\ntenant_id = \"00000000-0000-4000-8000-000000000009\"\n\
               client_id = \"00000000-1111-2222-3333-555555555555\"\nclient_secret = \"${M365_CLIENT_SECRET}\"\n";
    fs::write(dir.path().join("tenants.d/own.toml"), own).unwrap();
    let file = dir.path().join("tenants.d/second.toml");
    let id = tenant(2);
    let arguments = ["tenant", "add", "-c", "agent.toml", "customers.second", "--tenant-id", id.as_str()];
    let added = binary(dir.path(), &arguments);
    assert!(added.status.success() && said(&added).contains("tenants.d/second.toml"), "{}", said(&added));
    let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o640, "whoever reads the configuration reads it");
    assert_eq!(fs::read_dir(dir.path().join("tenants.d")).unwrap().count(), 2, "nothing is left beside it");
    let again = binary(dir.path(), &arguments);
    assert_eq!(again.status.code(), Some(64), "{}", said(&again));
    let listed = binary(dir.path(), &["tenant", "list", "-c", "agent.toml"]);
    let text = said(&listed);
    for (name, file) in [("customers.first", "agent.toml"), ("customers.second", "second.toml"), ("own", "own.toml")] {
        assert!(text.lines().any(|line| line.starts_with(name) && line.contains(file)), "{name}: {text}");
    }
    for name in ["second", "own"] {
        let removed = binary(dir.path(), &["tenant", "remove", "-c", "agent.toml", name]);
        assert!(removed.status.success(), "{}", said(&removed));
    }
    assert_eq!(fs::read_dir(dir.path().join("tenants.d")).unwrap().count(), 0);
    let text = fs::read_to_string(&config).unwrap();
    assert_eq!(text, main.replace(", \"own\"]", "]"), "no sink names what is gone");
}

#[test]
fn no_secret_is_taken_from_the_command_line_and_what_would_be_wrong_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("agent.toml");
    fs::write(&config, TEMPLATE).unwrap();
    let (id, first) = (tenant(2), tenant(1));
    for (arguments, code, told) in [
        (&["second", "--tenant-id", id.as_str(), "client_secret=hunter2~hunter2"][..], 64, "where others see it"),
        (&["second", "--tenant-id", id.as_str(), "hunter2~hunter2"], 64, "KEY=VALUE"),
        (&["second", "--tenant-id", id.as_str(), "poll_interval=60"], 78, "poll_interval_secs"),
        (&["second", "--tenant-id", id.as_str(), "poll_interval_secs=0"], 78, "expected an integer"),
        (&["second", "--tenant-id", first.as_str()], 78, "customers.first"),
        (&["first", "--tenant-id", id.as_str()], 64, "is there already"),
        (&["a b", "--tenant-id", id.as_str()], 64, "letters, digits"),
        (&["second", "--tenant-id", id.as_str(), "--source", "custmers"], 64, "customers"),
        (&["second", "--tenant-id", "contoso.com"], 64, "GUID"),
    ] {
        let all: Vec<&str> =
            ["tenant", "add", "-c", "agent.toml"].into_iter().chain(arguments.iter().copied()).collect();
        let output = binary(dir.path(), &all);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", said(&output));
        assert!(said(&output).contains(told), "{arguments:?}: {}", said(&output));
        assert!(!said(&output).contains("hunter2"), "{arguments:?}: {}", said(&output));
        assert_eq!(fs::read_to_string(&config).unwrap(), TEMPLATE, "{arguments:?}");
    }
    // By the name of a variable, which is not set here.
    let variable = ["second", "--tenant-id", id.as_str(), "client_secret=${SECOND_SECRET}"];
    let all: Vec<&str> = ["tenant", "add", "-c", "agent.toml"].into_iter().chain(variable).collect();
    let output = binary(dir.path(), &all);
    assert!(output.status.success(), "{}", said(&output));
    assert!(fs::read_to_string(&config).unwrap().contains("client_secret = \"${SECOND_SECRET}\""));
    // The last one of all cannot go: a configuration without a source is none.
    let unknown = binary(dir.path(), &["tenant", "remove", "-c", "agent.toml", "third"]);
    assert_eq!(unknown.status.code(), Some(64), "{}", said(&unknown));
}

/// A simulated tenant and a process.
struct Bench {
    sim: Sim,
    dir: tempfile::TempDir,
}

impl Bench {
    async fn new(tenants: usize) -> Self {
        let tenants: Vec<TenantId> = (0..tenants).map(tenant).collect();
        let sim = Sim::start(SimConfig { tenants: tenants.clone(), ..SimConfig::default() }, SystemClock::new())
            .await
            .unwrap();
        for tenant in &tenants {
            sim.set_subscription(tenant, ContentType::General, SubscriptionState::Enabled);
        }
        let bench = Self { sim, dir: tempfile::tempdir().unwrap() };
        fs::create_dir(bench.at("tenants.d")).unwrap();
        let config = SimConfig::default();
        let text = format!(
            "data_dir = '{}'\ntenants_dir = \"tenants.d\"\n[sources.customers]\ntype = \"m365_audit\"\nclient_id = \"{}\"\n\
             client_secret = \"{}\"\napi_url = \"{url}\"\nauthority_url = \"{url}\"\ncontent_types = [\"Audit.General\"]\n\
             drop_routine = false\npoll_interval_secs = 5\n[sinks.file]\ntype = \"file\"\npath = '{}'\ninputs = [\"*\"]\n",
            bench.at("data").display(),
            config.client_id,
            config.client_secret,
            bench.at("out").display(),
            url = bench.sim.url(),
        );
        fs::write(bench.at("agent.toml"), text).unwrap();
        bench
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An event of a tenant becomes available.
    fn event(&self, number: usize, id: &str) {
        let at = self.sim.now().checked_sub(jiff::SignedDuration::from_mins(10)).unwrap();
        let event = format!(
            r#"{{"Id":"{id}","CreationTime":"{at}","Operation":"Test","RecordType":1,"Workload":"X","UserId":"of-{number}@customer.example"}}"#
        );
        self.sim.add_blob(&tenant(number), ContentType::General, NewBlob::at(at).with_events([event]));
    }

    fn add(&self, number: usize) {
        let (name, id) = (format!("t{number}"), tenant(number));
        let output = binary(self.dir.path(), &["tenant", "add", "-c", "agent.toml", &name, "--tenant-id", id.as_str()]);
        assert!(output.status.success(), "{}", said(&output));
    }

    fn start(&self) -> Running {
        let log = fs::File::create(self.at("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
        command.args(["run", "-c"]).arg(self.at("agent.toml")).env_remove("M365_AUDIT_LOG");
        Running(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.at("log")).unwrap_or_default()
    }

    fn has(&self, id: &str) -> bool {
        fs::read_to_string(self.at("out")).unwrap_or_default().contains(&format!("\"event_id\":\"{id}\""))
    }

    async fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !condition() {
            assert!(begun.elapsed() < PATIENCE, "{what}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Files under `data_dir` that have these bytes somewhere.
    fn remembering(&self, bytes: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.at("data")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if fs::read(&path).is_ok_and(|text| memchr::memmem::find(&text, bytes.as_bytes()).is_some()) {
                    found.push(path);
                }
            }
        }
        found
    }
}

struct Running(Child);

impl Running {
    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.0.id().to_string()]).status().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_folder_is_read_again_by_sighup_and_a_file_gone_bad_leaves_what_runs_as_it_is() {
    let bench = Bench::new(3).await;
    bench.add(0);
    bench.event(0, "first-of-0");
    let running = bench.start();
    bench.until("the first tenant", || bench.has("first-of-0")).await;

    bench.add(1);
    bench.event(1, "first-of-1");
    running.signal("-HUP");
    bench.until("the tenant that was added", || bench.has("first-of-1")).await;

    // One file goes bad: the third tenant does not come, and the others go on.
    bench.add(2);
    fs::write(bench.at("tenants.d/t1.toml"), "[[sources.customers.tenants]]\nname = \"t1\"\ntenant_id = 5\n").unwrap();
    running.signal("-HUP");
    bench
        .until("the file is named", || {
            let log = bench.log();
            log.contains("not reloaded, the running configuration stays")
                && log.contains("`sources.customers.tenants[0].tenant_id` is `5`")
                && log.contains("tenants.d/t1.toml, line 3")
        })
        .await;
    for number in 0..3 {
        bench.event(number, &format!("second-of-{number}"));
    }
    bench.until("those that ran go on", || bench.has("second-of-0") && bench.has("second-of-1")).await;
    assert!(!bench.has("second-of-2"), "nothing of the new configuration is applied");
    assert!(!bench.log().contains("source=customers.t2"), "{}", bench.log());

    fs::remove_file(bench.at("tenants.d/t1.toml")).unwrap();
    running.signal("-HUP");
    bench.until("what is sound again is applied", || bench.has("second-of-2")).await;
    assert!(bench.log().contains("source ended"), "{}", bench.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_leaves_not_one_byte_of_the_tenant_under_data_dir_and_the_others_go_on() {
    let bench = Bench::new(2).await;
    (0..2).for_each(|number| bench.add(number));
    (0..2).for_each(|number| bench.event(number, &format!("first-of-{number}")));
    let verdict = bench.at("data/reconcile/customers.t0.json");
    for is_running in [true, false] {
        let running = bench.start();
        bench.until("it runs", || bench.log().matches("source started").count() == 2).await;
        bench.until("both tenants", || bench.has("first-of-0") && bench.has("first-of-1")).await;
        let (gone, stays) = (tenant(0), tenant(1));
        bench.until("it is remembered", || !bench.remembering(gone.as_str()).is_empty()).await;
        fs::create_dir_all(verdict.parent().unwrap()).unwrap();
        fs::write(&verdict, format!("{{\"source\":\"customers.t0\",\"tenant\":\"{gone}\"}}")).unwrap();
        if !is_running {
            running.signal("-TERM");
            let mut running = running;
            assert!(running.0.wait().unwrap().success());
            let purged = binary(bench.dir.path(), &["tenant", "remove", "-c", "agent.toml", "t0", "--purge"]);
            assert!(purged.status.success(), "{}", said(&purged));
            assert_eq!(bench.remembering(gone.as_str()), [] as [PathBuf; 0], "{}", said(&purged));
            assert!(!bench.remembering(stays.as_str()).is_empty());
            return;
        }
        let purged = binary(bench.dir.path(), &["tenant", "remove", "-c", "agent.toml", "t0", "--purge"]);
        assert!(purged.status.success() && said(&purged).contains("entries taken out"), "{}", said(&purged));
        assert_eq!(bench.remembering(gone.as_str()), [] as [PathBuf; 0], "{}", said(&purged));
        assert!(!bench.remembering(stays.as_str()).is_empty());
        bench.event(1, "second-of-1");
        bench.until("the other goes on", || bench.has("second-of-1")).await;
        let again = binary(bench.dir.path(), &["tenant", "remove", "-c", "agent.toml", gone.as_str(), "--purge"]);
        assert!(again.status.success() && said(&again).contains(": 0 entries"), "{}", said(&again));
        // It comes back, as one that is new.
        bench.add(0);
        running.signal("-HUP");
        bench.until("it is read anew", || !bench.remembering(gone.as_str()).is_empty()).await;
        // One whose configuration cannot be applied keeps its tenants, and their data.
        fs::write(bench.at("tenants.d/bad.toml"), "nonsense = 1\n").unwrap();
        let refused = binary(bench.dir.path(), &["tenant", "remove", "-c", "agent.toml", "t0", "--purge"]);
        assert_eq!(refused.status.code(), Some(78), "{}", said(&refused));
        assert!(said(&refused).contains("tenant-still-read"), "{}", said(&refused));
        assert!(!bench.remembering(gone.as_str()).is_empty());
        fs::remove_file(bench.at("tenants.d/bad.toml")).unwrap();
        bench.add(0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_estimate_says_what_the_tenant_brings_within_its_requests_and_remembers_nothing() {
    let bench = Bench::new(1).await;
    bench.add(0);
    // 40 blobs over the day, of 1 to 10 events each; every third is of an inbox rule that forwards, which is not routine.
    let event = |blob: usize, n: usize, at: jiff::Timestamp| {
        let operation = if n.is_multiple_of(3) { "New-InboxRule" } else { "FileAccessed" };
        format!(
            r#"{{"Id":"{blob}-{n}","CreationTime":"{at}","Operation":"{operation}","RecordType":1,"Workload":"Exchange","Parameters":[{{"Name":"ForwardTo","Value":"x@elsewhere.example"}}]}}"#
        )
    };
    let (mut events, mut bytes) = (0, 0);
    for blob in 0..40_usize {
        let at = bench.sim.now().checked_sub(jiff::SignedDuration::from_mins(20 + 34 * blob as i64)).unwrap();
        let count = 1 + blob * 7 % 10;
        let all: Vec<String> = (0..count).map(|n| event(blob, n, at)).collect();
        events += count;
        bytes += all.iter().map(|event| event.len() + 1).sum::<usize>();
        bench.sim.add_blob(&tenant(0), ContentType::General, NewBlob::at(at).with_events(all));
    }
    let estimate = |requests: &str| {
        let arguments = ["check", "-c", "agent.toml", "--estimate", "--requests", requests, "--json"];
        let before = bench.sim.requests().len();
        let output = binary(bench.dir.path(), &arguments);
        assert!(output.status.success(), "{}", said(&output));
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let made: Vec<_> = bench.sim.requests().into_iter().skip(before).collect();
        let feed = made.iter().filter(|request| request.kind != CallKind::Token).count();
        assert!(feed <= requests.parse().unwrap(), "{feed} requests of {requests}");
        assert_eq!(found["estimates"][0]["requests"], feed, "{found:#}");
        assert!(!made.iter().any(|request| matches!(request.kind, CallKind::Start | CallKind::Stop)));
        assert!(!bench.at("data").exists(), "no state");
        found["estimates"][0]["a_day"]["Audit.General"].clone()
    };
    // With enough requests every blob is read, and the estimate is the truth.
    let all = estimate("100");
    assert_eq!(
        (&all["blobs"], &all["blobs_read"], &all["events_error"]),
        (&40.into(), &40.into(), &0.into()),
        "{all:#}"
    );
    assert_eq!(all["delivered"]["events"], events, "{all:#}");
    assert_eq!(all["delivered"]["bytes"]["raw"], bytes, "{all:#}");
    let by_severity = all["by_severity"].as_object().unwrap();
    let sum = |of: &dyn Fn(&Value) -> u64| by_severity.values().map(of).sum::<u64>();
    assert_eq!(sum(&|of| of["events"].as_u64().unwrap()), events as u64, "{all:#}");
    assert!(by_severity.len() > 1, "{all:#}");
    for format in ["native", "ecs", "ocsf", "raw"] {
        let whole = all["delivered"]["bytes"][format].as_u64().unwrap();
        assert_eq!(sum(&|of| of["bytes"][format].as_u64().unwrap()), whole, "{format}: {all:#}");
        assert!(whole >= bytes as u64, "{format}: {all:#}");
    }
    // With few it is off by no more than it says.
    let some = estimate("14");
    assert_eq!(some["blobs"], 40, "{some:#}");
    let (found, error) = (some["delivered"]["events"].as_f64().unwrap(), some["events_error"].as_f64().unwrap());
    assert!(some["blobs_read"].as_u64().unwrap() < 13 && error > 0.0, "{some:#}");
    assert!((found - events as f64).abs() <= error, "{found} ± {error}, it is {events}");
    // Where a day has more pages than half the requests, the time that was listed is taken for a part of the day.
    bench.sim.configure(|config| (config.page_size, config.listing_order) = (4, ListingOrder::Created));
    let part = estimate("11");
    assert_eq!((&part["blobs_listed"], &part["listed_whole"]), (&20.into(), &false.into()), "{part:#}");
    let blobs = part["blobs"].as_f64().unwrap();
    // The day has 42 times 34 minutes, of which 40 have a blob.
    assert!((40.0..=44.0).contains(&blobs), "{part:#}");
    let (found, error) = (part["delivered"]["events"].as_f64().unwrap(), part["events_error"].as_f64().unwrap());
    assert!(error > 0.0 && (found - events as f64).abs() <= error, "{found} ± {error}, it is {events}");
    let output = binary(bench.dir.path(), &["check", "-c", "agent.toml", "--estimate", "--requests", "11"]);
    assert!(said(&output).contains("*: listed in part; more with --requests"), "{}", said(&output));
    bench.sim.configure(|config| config.page_size = 10);
    // What `drop_routine` leaves out is told apart.
    let text = fs::read_to_string(bench.at("agent.toml")).unwrap().replace("drop_routine = false\n", "");
    fs::write(bench.at("agent.toml"), text).unwrap();
    let dropping = estimate("100");
    let dropped = dropping["dropped_events"].as_u64().unwrap();
    let delivered = dropping["delivered"]["events"].as_u64().unwrap();
    assert!(dropped > 0 && dropped + delivered == events as u64, "{dropping:#}");
    let output = binary(bench.dir.path(), &["check", "-c", "agent.toml", "--estimate"]);
    let text = said(&output);
    assert!(output.status.success() && text.contains("from 40 of 40 listed blobs"), "{text}");
}
