//! Several processes of the real binary on one PostgreSQL: tenants are shared out, go to others when a process ends or
//! dies or sleeps, and no event is lost.
#![cfg(target_os = "linux")]

mod cut_off;
mod figures;
mod quota;
mod scale;
mod trouble;
mod upgrade;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use m365_audit::clock::SystemClock;
use m365_audit::model::{ContentType, TenantId, Timestamp};
use m365_audit::sim::{CallKind, NewBlob, Sim, SimConfig, SubscriptionState};
use serde_json::Value;
use test_support::postgres::Postgres;

/// Longer than the shortest there is (5 s), so that a machine that is busy with other tests does not let one expire.
const LEASE: Duration = Duration::from_secs(8);
/// For a slow machine; nothing waits for it where all is well.
const PATIENCE: Duration = Duration::from_secs(240);
const EVENTS_PER_BLOB: usize = 5;

fn tenant(number: usize) -> TenantId {
    format!("00000000-0000-4000-8000-{number:012}").parse().unwrap()
}

struct Fleet {
    sim: Sim,
    server: Postgres,
    url: String,
    dir: tempfile::TempDir,
    tenants: usize,
    poll_secs: u64,
    /// Further keys of the sources; `WORKER` stands for the number of the process.
    keys: String,
    /// What is started, where it is not this build.
    program: Option<PathBuf>,
    /// The sink's keys, where it is not a file of each process.
    sink: Option<String>,
    /// Databases by the process that reaches them in a way of its own.
    urls: BTreeMap<usize, String>,
    /// The tenants stand in the cluster's table, and none in the file.
    in_table: bool,
    workers: BTreeMap<usize, Child>,
    /// How often each worker was started.
    starts: BTreeMap<usize, usize>,
    events: BTreeSet<String>,
    /// When the newest blob was made.
    newest: Timestamp,
}

impl Fleet {
    async fn new(tenants: usize) -> Option<Self> {
        Some(Self::on(Postgres::start("")?, tenants).await)
    }

    async fn on(server: Postgres, tenants: usize) -> Self {
        let ids: Vec<TenantId> = (0..tenants).map(tenant).collect();
        let sim = Sim::start(SimConfig { tenants: ids, ..SimConfig::default() }, SystemClock::new()).await.unwrap();
        for number in 0..tenants {
            sim.set_subscription(&tenant(number), ContentType::General, SubscriptionState::Enabled);
        }
        let (url, dir) = (server.database(), tempfile::tempdir().unwrap());
        let fleet = Self {
            sim,
            server,
            url,
            dir,
            tenants,
            poll_secs: 2,
            keys: String::new(),
            program: None,
            sink: None,
            urls: BTreeMap::new(),
            in_table: false,
            workers: BTreeMap::new(),
            starts: BTreeMap::new(),
            events: BTreeSet::new(),
            newest: Timestamp::UNIX_EPOCH,
        };
        fleet.configure(0);
        let made = fleet.command(0, &["cluster", "init"]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        fleet
    }

    fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same for all workers, but for where each writes.
    fn configure(&self, worker: usize) {
        let config = SimConfig::default();
        let file = format!("type = \"file\"\npath = '{}'\n", self.at(format!("out-{worker}")).display());
        let mut text = format!(
            "data_dir = '{}'\n[cluster]\nurl = \"{}\"\nmember = \"worker-{worker}\"\nlease_secs = {}\nallow_local_sinks = true\n\
             [receipts]\nkey_file = '{}'\n[log]\nlevel = \"info\"\n[sinks.out]\n{sink}inputs = [\"customers\"]\n\
             [sources.customers]\ntype = \"m365_audit\"\nclient_id = \"{}\"\nclient_secret = \"{}\"\napi_url = \"{sim}\"\n\
             authority_url = \"{sim}\"\ncontent_types = [\"Audit.General\"]\ngraph_url = \"{sim}\"\ndrop_routine = false\npoll_interval_secs = {}\n{keys}\n",
            self.at(format!("data-{worker}")).display(),
            self.urls.get(&worker).unwrap_or(&self.url),
            LEASE.as_secs(),
            self.at("receipts.key").display(),
            config.client_id,
            config.client_secret,
            self.poll_secs,
            sim = self.sim.url(),
            sink = self.sink.clone().unwrap_or(file),
            keys = self.keys.replace("WORKER", &worker.to_string()),
        );
        for number in (0..self.tenants).filter(|_| !self.in_table) {
            text +=
                &format!("[[sources.customers.tenants]]\nname = \"t{number}\"\ntenant_id = \"{}\"\n", tenant(number));
        }
        fs::write(self.at(format!("worker-{worker}.toml")), text).unwrap();
    }

    fn command(&self, worker: usize, args: &[&str]) -> Command {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_m365-audit")), worker, args)
    }

    fn command_of(&self, program: &Path, worker: usize, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).arg("-c").arg(self.at(format!("worker-{worker}.toml"))).env_remove("M365_AUDIT_LOG");
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command to its end: its exit code, and all it said.
    fn ask(&self, worker: usize, args: &[&str]) -> (Option<i32>, String) {
        let output = self.command(worker, args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), said)
    }

    fn start(&mut self, worker: usize) {
        self.start_with(worker, |text| text, &[]);
    }

    /// The same with another configuration, and variables of the environment.
    fn start_with(&mut self, worker: usize, edit: impl FnOnce(String) -> String, variables: &[(&str, &str)]) {
        self.configure(worker);
        let path = self.at(format!("worker-{worker}.toml"));
        fs::write(&path, edit(fs::read_to_string(&path).unwrap())).unwrap();
        let log = fs::File::options().create(true).append(true).open(self.at(format!("log-{worker}"))).unwrap();
        let mut command = match &self.program {
            Some(program) => self.command_of(program, worker, &["run"]),
            None => self.command(worker, &["run"]),
        };
        let child = command.envs(variables.iter().copied()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.workers.insert(worker, child);
        *self.starts.entry(worker).or_default() += 1;
    }

    fn signal(&self, worker: usize, name: &str) {
        let id = self.workers[&worker].id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    /// Ends a worker and waits for it; whether it went in order.
    fn end(&mut self, worker: usize, signal: &str) -> bool {
        // Before it listens to signals it does not go in order; where the database is away it never joins.
        let begun = Instant::now();
        let starts = self.starts.get(&worker).copied().unwrap_or(0);
        let has_joined = || {
            let log = fs::read_to_string(self.at(format!("log-{worker}"))).unwrap_or_default();
            log.split(" started version=").skip(starts).any(|life| life.contains("joined the cluster"))
        };
        while signal == "-TERM" && starts > 0 && !has_joined() && begun.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(50));
        }
        self.signal(worker, signal);
        let mut child = self.workers.remove(&worker).unwrap();
        child.wait().unwrap().success()
    }

    /// A blob of events for a tenant, as of now.
    fn add(&mut self, number: usize, name: &str) {
        self.add_aged(number, name, jiff::SignedDuration::from_mins(10));
    }

    /// The same, so old.
    fn add_aged(&mut self, number: usize, name: &str, age: jiff::SignedDuration) {
        let now = self.sim.now() - age;
        let ids: Vec<String> = (0..EVENTS_PER_BLOB).map(|n| format!("{number}-{name}-{n}")).collect();
        let event = |id: &String| {
            format!(r#"{{"Id":"{id}","CreationTime":"{now}","Operation":"Test","RecordType":1,"Workload":"X"}}"#)
        };
        self.sim.add_blob(&tenant(number), ContentType::General, NewBlob::at(now).with_events(ids.iter().map(event)));
        self.newest = self.newest.max(now);
        self.events.extend(ids);
    }

    fn add_for_all(&mut self, name: &str) {
        for number in 0..self.tenants {
            self.add(number, name);
        }
    }

    /// How often each event is in the files of all workers.
    fn delivered(&self) -> BTreeMap<String, usize> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(self.dir.path()).unwrap() {
            let path = entry.unwrap().path();
            if !path.file_name().unwrap().to_string_lossy().starts_with("out-") {
                continue;
            }
            for line in fs::read_to_string(path).unwrap_or_default().lines() {
                // A line that a killed process did not finish is no record: its receipt was not given.
                let Ok(record) = serde_json::from_str::<Value>(line) else { continue };
                if let Some(id) = record["event_id"].as_str().filter(|id| self.events.contains(*id)) {
                    *found.entry(id.to_owned()).or_insert(0) += 1;
                }
            }
        }
        found
    }

    /// What is published just after a poll comes with the next.
    fn patience(&self) -> Duration {
        PATIENCE + Duration::from_secs(self.poll_secs)
    }

    /// A standby of the server, which the processes know beside it.
    fn with_standby(&mut self) -> Postgres {
        let standby = self.server.standby();
        let (first, second) = (self.server.port(), standby.port());
        self.url = self.url.replace(&format!("127.0.0.1:{first}"), &format!("127.0.0.1:{first},127.0.0.1:{second}"));
        standby
    }

    async fn until_delivered(&self, what: &str) {
        self.until(what, || self.delivered().len() == self.events.len()).await;
    }

    /// Waits until the store has it, too, that every event was delivered: no position stands before the newest blob. Before
    /// that, who is killed leaves events to others that are delivered already.
    async fn until_settled(&self, what: &str) {
        self.until_delivered(what).await;
        self.until(what, || self.positions().is_some_and(|all| all.iter().all(|position| *position > self.newest)))
            .await;
    }

    /// Where each tenant was read to, from `state show --json`; `None` while one of them has no position.
    fn positions(&self) -> Option<Vec<Timestamp>> {
        let output = self.command(0, &["state", "show", "--json"]).output().unwrap();
        let shown: Value = serde_json::from_slice(&output.stdout).ok()?;
        let all: Option<Vec<Timestamp>> =
            shown.as_array()?.iter().map(|stream| stream["complete_until"].as_str()?.parse().ok()).collect();
        all.filter(|all| all.len() == self.tenants)
    }

    async fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !condition() {
            let missing: Vec<&String> = {
                let delivered = self.delivered();
                self.events.iter().filter(|id| !delivered.contains_key(*id)).collect()
            };
            assert!(
                begun.elapsed() < self.patience(),
                "{what}: {} missing: {:?}\n{}\n{}",
                missing.len(),
                &missing[..missing.len().min(5)],
                self.cluster_status(),
                self.logs()
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn logs(&self) -> String {
        let log = |worker: usize| fs::read_to_string(self.at(format!("log-{worker}"))).unwrap_or_default();
        let tail = |text: String| {
            text.lines().rev().take(40).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
        };
        (0..8).map(|worker| format!("-- worker {worker}\n{}\n", tail(log(worker).clone()))).collect()
    }

    fn cluster_status(&self) -> String {
        let output = self.command(0, &["cluster", "status"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    /// Tenants by the live member that has them, from `cluster status --json`.
    fn shares(&self) -> BTreeMap<String, usize> {
        let output = self.command(0, &["cluster", "status", "--json"]).output().unwrap();
        let status: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        let mut shares = BTreeMap::new();
        for tenant in status["tenants"].as_array().unwrap() {
            let member = tenant["member"].as_str().unwrap_or("nobody").to_owned();
            *shares.entry(member).or_insert(0) += 1;
        }
        shares
    }

    /// The worker that has most tenants.
    fn busiest(&self) -> usize {
        let (name, _) = self.shares().into_iter().max_by_key(|(_, tenants)| *tenants).unwrap();
        name.strip_prefix("worker-").unwrap().parse().unwrap()
    }

    /// The name of its database.
    fn database(&self) -> String {
        self.url.rsplit('/').next().unwrap().split('?').next().unwrap().to_owned()
    }

    /// How often the logs of all workers say this.
    fn said(&self, what: &str) -> usize {
        let log = |worker: usize| fs::read_to_string(self.at(format!("log-{worker}"))).unwrap_or_default();
        (0..8).map(|worker| log(worker).matches(what).count()).sum()
    }

    fn twice(&self) -> usize {
        self.delivered().values().filter(|count| **count > 1).count()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for child in self.workers.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_are_shared_out_and_go_to_who_is_left_when_a_process_ends_and_nothing_comes_twice() {
    let Some(mut fleet) = Fleet::new(12).await else { return };
    fleet.add_for_all("first");
    fleet.start(0);
    fleet.until("one worker has all", || fleet.shares() == BTreeMap::from([("worker-0".into(), 12)])).await;
    fleet.until_delivered("the first events").await;
    fleet.start(1);
    // One of twenty at most, and at least one, moves in a minute.
    fleet.until("the second worker has a share", || fleet.shares().contains_key("worker-1")).await;
    fleet.add_for_all("second");
    assert!(fleet.end(0, "-TERM"), "{}", fleet.logs());
    fleet.until("the second worker has all", || fleet.shares() == BTreeMap::from([("worker-1".into(), 12)])).await;
    fleet.until_delivered("what came before the first worker ended").await;
    assert!(fleet.end(1, "-TERM"), "{}", fleet.logs());
    assert_eq!(fleet.twice(), 0, "{}", fleet.logs());
    let members = fleet.cluster_status();
    assert!(members.starts_with("0 members, 12 tenants, 12 without a member"), "{members}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_or_sleeps_loses_its_tenants_to_others_and_no_event() {
    let Some(mut fleet) = Fleet::new(10).await else { return };
    fleet.add_for_all("first");
    (0..3).for_each(|worker| fleet.start(worker));
    fleet.until("all three are there", || fleet.cluster_status().starts_with("3 members, 10 tenants, 0 ")).await;
    fleet.until_settled("the first events").await;

    // Which of them have tenants is decided by when each was started: whoever has most.
    let killed = fleet.busiest();
    fleet.end(killed, "-KILL");
    fleet.add_for_all("killed");
    let name = format!("worker-{killed}");
    fleet
        .until("the others have all", || !fleet.shares().contains_key(&name) && !fleet.shares().contains_key("nobody"))
        .await;
    fleet.until_settled("what came when one was killed").await;

    let asleep = fleet.busiest();
    let last = format!("worker-{}", 3 - killed - asleep);
    fleet.signal(asleep, "-STOP");
    fleet.until("the last has all", || fleet.shares() == BTreeMap::from([(last.clone(), 10)])).await;
    fleet.add_for_all("asleep");
    fleet.until_delivered("with one worker").await;
    fleet.signal(asleep, "-CONT");
    fleet.until("the sleeper begins anew", || fleet.logs().contains("lease-lost")).await;
    fleet.add_for_all("awake");
    fleet.until_delivered("all").await;
    // Nothing was under way when either was stopped.
    assert_eq!(fleet.twice(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_away_stops_nothing_but_the_work_and_loses_nothing() {
    let Some(mut fleet) = Fleet::new(4).await else { return };
    fleet.add_for_all("first");
    (0..2).for_each(|worker| fleet.start(worker));
    fleet.until_delivered("the first events").await;
    fleet.server.kill();
    fleet.add_for_all("away");
    fleet.until("both say so", || fleet.logs().matches("cluster-store-away").count() >= 2).await;
    tokio::time::sleep(LEASE * 2).await;
    let alive = |fleet: &mut Fleet| fleet.workers.values_mut().all(|child| child.try_wait().unwrap().is_none());
    assert!(alive(&mut fleet), "{}", fleet.logs());
    fleet.server.resume();
    fleet.until_delivered("after the store came back").await;
    assert!(alive(&mut fleet), "{}", fleet.logs());
}

/// The standby hears nothing of the last commits and is promoted: states go back to what it knows, and what was marked
/// since is delivered again. Nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_loses_commits_repeats_what_they_marked_and_loses_no_event() {
    let Some(mut fleet) = Fleet::new(6).await else { return };
    let standby = fleet.with_standby();
    fleet.add_for_all("first");
    (0..2).for_each(|worker| fleet.start(worker));
    fleet.until_delivered("the first events").await;
    // What moves from one to the other meanwhile goes back to the first, too.
    fleet.until("both have some", || fleet.shares().len() == 2).await;
    // From here on the standby is deaf.
    standby.sql("postgres", "alter system set primary_conninfo = ''");
    standby.sql("postgres", "select pg_reload_conf()");
    fleet
        .until("the standby hears nothing more", || {
            fleet.server.sql("postgres", "select count(*) from pg_stat_replication") == "0"
        })
        .await;
    fleet.add_for_all("lost");
    fleet.until_delivered("what the standby never hears of").await;
    fleet.server.kill();
    standby.promote();
    fleet.add_for_all("after");
    fleet.until_delivered("after the failover").await;
    // Those of the lost commits come once more; of others no more than was under way when the server was killed.
    let repeated = |fleet: &Fleet| {
        let twice = fleet.delivered().into_iter().filter(|(_, count)| *count > 1);
        twice.partition::<Vec<_>, _>(|(id, _)| id.contains("-lost-"))
    };
    fleet.until("the repeats have come", || repeated(&fleet).0.len() == 6 * EVENTS_PER_BLOB).await;
    for worker in 0..2 {
        assert!(fleet.end(worker, "-TERM"), "{}", fleet.logs());
    }
    let (_, others) = repeated(&fleet);
    assert!(others.len() <= EVENTS_PER_BLOB, "{others:?}");
}

/// The standby has every commit before it is answered, so that no mark goes back: only what no commit has marked yet comes
/// again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_to_a_synchronous_standby_repeats_nothing_but_what_was_under_way() {
    let Some(mut fleet) = Fleet::new(6).await else { return };
    let standby = fleet.with_standby();
    fleet.server.sql("postgres", "alter system set synchronous_standby_names = '*'");
    fleet.server.sql("postgres", "select pg_reload_conf()");
    let is_synchronous = "select count(*) from pg_stat_replication where sync_state = 'sync'";
    fleet.until("it is synchronous", || fleet.server.sql("postgres", is_synchronous) == "1").await;
    fleet.add_for_all("before");
    (0..2).for_each(|worker| fleet.start(worker));
    fleet.until_delivered("the first events").await;
    // Once these are there, each tenant's mark of the ones before is in the standby.
    fleet.add_for_all("between");
    fleet.until_delivered("the second events").await;
    let settled = fleet.events.len();
    fleet.add_for_all("struck");
    fleet.until("some of it is under way", || fleet.delivered().len() > settled).await;
    fleet.server.kill();
    standby.promote();
    fleet.add_for_all("after");
    fleet.until_delivered("after the failover").await;
    for worker in 0..2 {
        assert!(fleet.end(worker, "-TERM"), "{}", fleet.logs());
    }
    let twice: Vec<(String, usize)> = fleet.delivered().into_iter().filter(|(_, count)| *count > 1).collect();
    println!("{} of {} events came twice", twice.len(), fleet.events.len());
    assert!(twice.iter().all(|(id, count)| !id.contains("-before-") && *count == 2), "{twice:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_asks_of_a_tenant_reaches_the_member_that_has_it() {
    let Some(mut fleet) = Fleet::new(6).await else { return };
    fleet.add_for_all("first");
    (0..2).for_each(|worker| fleet.start(worker));
    fleet.until("both have some", || fleet.shares().len() == 2 && !fleet.shares().contains_key("nobody")).await;
    fleet.until_delivered("the first events").await;
    // From a machine of neither: it has the configuration, and no process.
    fleet.configure(7);
    for number in 0..6 {
        let name = format!("customers.t{number}");
        let (code, said) = fleet.ask(7, &["backfill", "--from", "1d", "--again", "--source", &name]);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("5 events"), "{said}");
        let (code, said) = fleet.ask(7, &["state", "set", "--source", &name, "--from", "1h"]);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("Audit.General: "), "{said}");
    }
    let (code, said) = fleet.ask(7, &["state", "show", "--json"]);
    assert_eq!(code, Some(0), "{said}");
    assert!((0..6).all(|number| said.contains(&format!("\"customers.t{number}\""))), "{said}");
    fleet.end(0, "-TERM");
    fleet.end(1, "-TERM");
    let (code, said) = fleet.ask(7, &["backfill", "--from", "1d", "--source", "customers.t0"]);
    assert_eq!(code, Some(75), "{said}");
    assert!(said.contains("cluster-nobody"), "{said}");
}

/// Runs the program without a cluster over the same tenants, into files of its own.
fn alone(fleet: &Fleet) -> PathBuf {
    let path = fleet.at("worker-9.toml");
    fleet.configure(9);
    let text = fs::read_to_string(&path).unwrap();
    let own: Vec<&str> = {
        let (before, rest) = text.split_once("[cluster]").unwrap();
        let (_, after) = rest.split_once("allow_local_sinks = true\n").unwrap();
        vec![before, after]
    };
    fs::write(&path, own.concat()).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_moves_between_sqlite_and_postgresql_and_back_without_a_repeat() {
    let Some(mut fleet) = Fleet::new(2).await else { return };
    fleet.add_for_all("first");
    alone(&fleet);
    let (code, said) = fleet.ask(9, &["run", "--once"]);
    assert_eq!(code, Some(0), "{said}");
    fleet.until_delivered("alone").await;
    let ids: Vec<String> = (0..2).map(|number| tenant(number).to_string()).collect();
    let folder = fleet.at("");
    let file = |name: &str| folder.join(name).display().to_string();
    for (n, id) in ids.iter().enumerate() {
        let path = file(&format!("state-{n}"));
        let (code, said) = fleet.ask(9, &["state", "export", "--tenant", id, "-o", &path]);
        assert_eq!(code, Some(0), "{said}");
        // Cut off, it is not taken in.
        let whole = fs::read(&path).unwrap();
        let cut = file("cut");
        fs::write(&cut, &whole[..whole.len() - 20]).unwrap();
        let (code, said) = fleet.ask(0, &["state", "import", &cut]);
        assert_eq!(code, Some(65), "{said}");
        let (code, said) = fleet.ask(0, &["state", "import", &path]);
        assert_eq!(code, Some(0), "{said}");
        let (code, said) = fleet.ask(0, &["state", "import", &path]);
        assert_eq!(code, Some(73), "{said}");
        assert!(said.contains("state-import-occupied"), "{said}");
    }
    fleet.add_for_all("second");
    fleet.start(0);
    fleet.until_delivered("in the cluster").await;
    let (code, said) = fleet.ask(0, &["state", "export", "--tenant", &ids[0], "-o", &file("early")]);
    assert_eq!(code, Some(73), "{said}");
    assert!(said.contains("state-export-read"), "{said}");
    fleet.end(0, "-TERM");
    fs::remove_dir_all(fleet.at("data-9")).unwrap();
    for (n, id) in ids.iter().enumerate() {
        let path = file(&format!("back-{n}"));
        let (code, said) = fleet.ask(0, &["state", "export", "--tenant", id, "-o", &path]);
        assert_eq!(code, Some(0), "{said}");
        let (code, said) = fleet.ask(9, &["state", "import", &path]);
        assert_eq!(code, Some(0), "{said}");
    }
    fleet.add_for_all("third");
    let (code, said) = fleet.ask(9, &["run", "--once"]);
    assert_eq!(code, Some(0), "{said}");
    fleet.until_delivered("alone again").await;
    assert_eq!(fleet.twice(), 0);
    // Receipts went along: one chain, whole, over both moves.
    let (code, said) = fleet.ask(9, &["receipts", "verify"]);
    assert!(code == Some(0) || said.contains("nothing"), "{code:?} {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_remembered_of_a_tenant_that_has_left_goes_from_the_database() {
    let Some(mut fleet) = Fleet::new(2).await else { return };
    fleet.add_for_all("first");
    fleet.start(0);
    fleet.until_delivered("the first events").await;
    let id = tenant(1).to_string();
    let path = fleet.at("worker-0.toml");
    let (code, said) = fleet.ask(0, &["tenant", "remove", "customers.t1", "--purge"]);
    assert_eq!(code, Some(73), "{said}");
    assert!(said.contains("cluster-member-has-it"), "{said}");
    assert!(!fs::read_to_string(&path).unwrap().contains(&id));
    fleet.signal(0, "-HUP");
    let purge = || fleet.ask(0, &["tenant", "remove", &id, "--purge"]).0 == Some(0);
    fleet.until("the member gave it back", purge).await;
    let name = fleet.url.rsplit('/').next().unwrap().split('?').next().unwrap().to_owned();
    for table in ["kv", "owner", "lease", "request"] {
        let left = fleet.server.sql(&name, &format!("select count(*) from {table} where tenant = '{id}'"));
        assert_eq!(left, "0", "{table}");
    }
    assert!(fleet.end(0, "-TERM"), "{}", fleet.logs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_of_the_table_come_and_go_on_all_members_without_a_signal() {
    let Some(mut fleet) = Fleet::new(3).await else { return };
    fleet.in_table = true;
    (0..2).for_each(|worker| fleet.start(worker));
    fleet.until("both are there", || fleet.cluster_status().starts_with("2 members, 0 tenants")).await;
    for number in 0..3 {
        let (name, id) = (format!("t{number}"), tenant(number).to_string());
        let (code, said) = fleet.ask(0, &["tenant", "add", &name, "--tenant-id", &id, "poll_interval_secs=3"]);
        assert_eq!(code, Some(0), "{said}");
    }
    let again = tenant(0).to_string();
    let (code, said) = fleet.ask(1, &["tenant", "add", "t0", "--tenant-id", &again]);
    assert_eq!(code, Some(64), "{said}");
    let (code, said) = fleet.ask(1, &["tenant", "add", "t9", "--tenant-id", &tenant(9).to_string(), "poll_interval=3"]);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("poll_interval_secs") && said.contains("nothing was changed"), "{said}");
    fleet.add_for_all("first");
    fleet.until_delivered("the first events").await;
    let (code, said) = fleet.ask(1, &["tenant", "list"]);
    assert_eq!(code, Some(0), "{said}");
    assert!((0..3).all(|number| said.contains(tenant(number).as_str())), "{said}");
    let name = fleet.url.rsplit('/').next().unwrap().split('?').next().unwrap().to_owned();
    assert_eq!(
        fleet.server.sql(&name, "select settings from tenant where name = 't1'"),
        r#"{"poll_interval_secs": 3}"#
    );

    let (code, said) = fleet.ask(0, &["tenant", "remove", "customers.t1"]);
    assert_eq!(code, Some(0), "{said}");
    let purge = || fleet.ask(0, &["tenant", "remove", tenant(1).as_str(), "--purge"]).0 == Some(0);
    fleet.until("the member gave it back", purge).await;
    let (code, said) = fleet.ask(0, &["tenant", "list"]);
    assert!(code == Some(0) && !said.contains(tenant(1).as_str()), "{said}");
    assert!(fleet.end(0, "-TERM") && fleet.end(1, "-TERM"), "{}", fleet.logs());
    assert_eq!(fleet.twice(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_of_one_folder_or_one_name_are_told_apart() {
    let Some(mut fleet) = Fleet::new(1).await else { return };
    fleet.start(0);
    fleet.until("it has the tenant", || fleet.shares().contains_key("worker-0")).await;
    let output = fleet.command(0, &["run"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(73), "{said}");
    assert!(said.contains("is running on it"), "{said}");
    // The same name from another folder: the one that had it ends.
    fleet.configure(1);
    let text = fs::read_to_string(fleet.at("worker-1.toml")).unwrap().replace("\"worker-1\"", "\"worker-0\"");
    fs::write(fleet.at("worker-1.toml"), text).unwrap();
    let log = fs::File::create(fleet.at("log-1")).unwrap();
    let child = fleet.command(1, &["run"]).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    fleet.workers.insert(1, child);
    let mut first = fleet.workers.remove(&0).unwrap();
    assert_eq!(first.wait().unwrap().code(), Some(73), "{}", fleet.logs());
    assert!(fleet.logs().contains("member-replaced"), "{}", fleet.logs());
    assert!(fleet.end(1, "-TERM"), "{}", fleet.logs());
}

/// What is done to a worker.
#[derive(Debug, Clone, Copy)]
enum Blow {
    Kill,
    End,
    /// For so many tenths of the lease.
    Sleep(u32),
}

/// Blows at random for so long, events all the while; what was lost (nothing) and how many events came twice, of how many.
async fn chaos(workers: usize, tenants: usize, lasts: Duration, seed: u64) -> Option<(usize, usize)> {
    let mut fleet = Fleet::new(tenants).await?;
    let mut random = fastrand::Rng::with_seed(seed);
    (0..workers).for_each(|worker| fleet.start(worker));
    let begun = Instant::now();
    let (mut rounds, mut blows) = (0, BTreeMap::<&str, usize>::new());
    while begun.elapsed() < lasts {
        rounds += 1;
        for number in 0..tenants {
            if random.u8(..) < 128 {
                fleet.add(number, &format!("round-{rounds}"));
            }
        }
        let worker = random.usize(..workers);
        let blow = match random.u8(..3) {
            0 => Blow::Kill,
            1 => Blow::End,
            _ => Blow::Sleep(random.u32(5..30)),
        };
        tokio::time::sleep(Duration::from_millis(random.u64(500..4000))).await;
        match blow {
            Blow::Kill => {
                *blows.entry("kill").or_default() += 1;
                fleet.end(worker, "-KILL");
                fleet.start(worker);
            }
            Blow::End => {
                *blows.entry("end").or_default() += 1;
                assert!(fleet.end(worker, "-TERM"), "{}", fleet.logs());
                fleet.start(worker);
            }
            Blow::Sleep(tenths) => {
                *blows.entry("sleep").or_default() += 1;
                fleet.signal(worker, "-STOP");
                tokio::time::sleep(LEASE * tenths / 10).await;
                fleet.signal(worker, "-CONT");
            }
        }
        if random.u8(..) < 25 {
            *blows.entry("store").or_default() += 1;
            fleet.server.kill();
            tokio::time::sleep(Duration::from_millis(random.u64(500..8000))).await;
            fleet.server.resume();
        }
    }
    fleet.until_delivered(&format!("all, seed {seed}")).await;
    for worker in 0..workers {
        assert!(fleet.end(worker, "-TERM"), "{}", fleet.logs());
    }
    let (twice, all) = (fleet.twice(), fleet.events.len());
    println!("seed {seed}: {workers} processes, {tenants} tenants, {blows:?}, {all} events, 0 lost, {twice} twice");
    Some((twice, all))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_under_chaos_lose_nothing_and_repeat_little() {
    let Some((twice, all)) = chaos(3, 60, Duration::from_secs(120), 1).await else { return };
    // Where nobody is under load what is under way at a blow is a few blobs.
    assert!(twice * 20 <= all, "{twice} of {all} came twice");
}

/// `cargo test --release --test program -- --ignored --nocapture cluster::five_processes`, some twenty minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes twenty minutes"]
async fn five_processes_under_chaos_lose_nothing_and_repeat_little() {
    for seed in 1..=3 {
        let Some((twice, all)) = chaos(5, 200, Duration::from_secs(300), seed).await else { return };
        assert!(twice * 20 <= all, "{twice} of {all} came twice");
    }
}
