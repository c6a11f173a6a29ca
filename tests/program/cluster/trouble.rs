//! Tenants that cannot be read, of whatever: by nobody for a while, or by one member alone; and work that an operator
//! asked for and whose member dies.

use super::*;

/// A damaged entry ends the source wherever it is opened. It goes round the members once, stays with one that tries again
/// and again, and is read once the entry is mended; no other tenant notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_nobody_can_read_goes_round_once_and_is_read_when_that_is_mended() {
    let Some(mut fleet) = Fleet::new(2).await else { return };
    fleet.add_for_all("first");
    fleet.start(0);
    fleet.until_delivered("the first events").await;
    assert!(fleet.end(0, "-TERM"), "{}", fleet.logs());
    let damage = format!("update kv set sum = sum # 1 where tenant = '{}'", tenant(0));
    fleet.server.sql(&fleet.database(), &damage);
    fleet.add(1, "others");
    let known = fleet.events.clone();
    fleet.add(0, "damaged");
    (0..2).for_each(|worker| fleet.start(worker));
    let delivered = |fleet: &Fleet, of: &BTreeSet<String>| of.iter().all(|id| fleet.delivered().contains_key(id));
    fleet.until("the other tenant is read", || delivered(&fleet, &known)).await;
    fleet.until("both have passed it on", || fleet.said("tenant-passed-on") == 2).await;
    let failures = fleet.said("state-corrupt: ");
    fleet.until("it is tried again", || fleet.said("state-corrupt: ") >= failures + 2).await;
    assert_eq!(fleet.said("tenant-passed-on"), 2, "{}", fleet.logs());
    fleet.server.sql(&fleet.database(), &damage);
    fleet.until_delivered("once it is mended").await;
    for worker in 0..2 {
        assert!(fleet.end(worker, "-TERM"), "{}", fleet.logs());
    }
    assert_eq!(fleet.twice(), 0, "{}", fleet.logs());
}

/// What is wrong with one machine alone keeps no tenant unread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_one_member_cannot_read_is_read_by_another() {
    let Some(mut fleet) = Fleet::new(4).await else { return };
    let rules = |worker: usize| fleet.at(format!("rules-{worker}.toml"));
    let paths = [rules(0), rules(1)];
    paths.iter().for_each(|path| fs::write(path, "").unwrap());
    fleet.keys = format!("severity = {{ rules_file = '{}' }}", fleet.at("rules-WORKER.toml").display());
    fleet.add_for_all("first");
    fleet.start(1);
    fleet.until("it has joined", || fleet.said("joined the cluster") == 1).await;
    // Read when the configuration was, and again by each source that begins.
    fs::remove_file(&paths[1]).unwrap();
    fleet.until("it can read nothing", || fleet.said("cannot be read") >= 4).await;
    fleet.start(0);
    fleet.until_delivered("by the other").await;
    fleet.until("all are the other's", || fleet.shares() == BTreeMap::from([("worker-0".into(), 4)])).await;
    fleet.add_for_all("second");
    fleet.until_delivered("by the other, again").await;
    // Each of those that are the first one's otherwise was passed on once.
    let passed = fleet.said("tenant-passed-on");
    assert!((1..=4).contains(&passed), "{passed}: {}", fleet.logs());
    for worker in 0..2 {
        assert!(fleet.end(worker, "-TERM"), "{}", fleet.logs());
    }
    assert_eq!(fleet.twice(), 0, "{}", fleet.logs());
}

/// A range beyond what the feed lists, filled through Microsoft Graph: asked for on a machine where no process runs, done by
/// the member that has the tenant, and gone on with by another when that one is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_healed_for_an_operator_elsewhere_goes_on_when_its_member_dies() {
    let Some(mut fleet) = Fleet::new(2).await else { return };
    fleet.sim.configure(|config| config.graph.query_secs = 1);
    for number in 0..2 {
        for hours in [30, 40, 45] {
            fleet.add_aged(number, &format!("old-{hours}"), jiff::SignedDuration::from_hours(hours));
        }
    }
    let old = std::mem::take(&mut fleet.events);
    fleet.add_for_all("new");
    (0..2).for_each(|worker| fleet.start(worker));
    fleet.until("both are there", || fleet.cluster_status().starts_with("2 members, 2 tenants, 0 ")).await;
    fleet.until_delivered("what the feed brings").await;
    fleet.events.extend(old.iter().cloned());
    assert!(fleet.delivered().keys().all(|id| !old.contains(id)), "older than a source goes back by itself");

    fleet.configure(7);
    let range = ["heal", "--from", "50h", "--to", "26h", "--source"];
    let (code, said) = fleet.ask(7, &[&range[..], &["customers.t0", "--dry-run"]].concat());
    assert!(code == Some(0) && said.contains("it would take"), "{said}");
    let (code, said) = fleet.ask(7, &[&range[..], &["customers.t0"]].concat());
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("customers.t0: ") && said.contains("15 events delivered"), "{said}");
    let (code, said) = fleet.ask(7, &[&range[..], &["customers.t0"]].concat());
    assert!(code == Some(0) && said.contains(" 0 events delivered"), "{said}");
    let (code, said) = fleet.ask(7, &["heal", "--from", "1h", "--to", "2h", "--source", "customers.t0"]);
    assert!(code == Some(64) && said.contains("heal-range"), "{code:?} {said}");

    // The search takes long enough for its member to die meanwhile.
    fleet.sim.configure(|config| config.graph.query_secs = 15);
    let asked = fleet.command(7, &[&range[..], &["customers.t1"]].concat());
    let asked = tokio::process::Command::from(asked).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let submitted = || fleet.sim.requests().iter().filter(|r| r.kind == CallKind::GraphSubmit).count();
    let before = submitted();
    fleet.until("a search is submitted", || submitted() > before).await;
    let (_, status) = fleet.ask(0, &["cluster", "status", "--json"]);
    let status: Value = serde_json::from_str(&status).unwrap();
    let of = |entry: &&Value| entry["tenant"] == tenant(1).as_str();
    let holder = status["tenants"].as_array().unwrap().iter().find(of).unwrap()["member"].as_str().unwrap().to_owned();
    fleet.end(holder.strip_prefix("worker-").unwrap().parse().unwrap(), "-KILL");
    let output = tokio::time::timeout(PATIENCE, asked.wait_with_output()).await.expect("it ends").unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}\n{}", fleet.logs());
    assert!(said.contains("15 events delivered"), "{said}");
    assert_eq!(fleet.delivered().len(), fleet.events.len());
    assert_eq!(fleet.twice(), 0, "{}", fleet.logs());
}

/// As a running one does; only what waiting cannot change ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_started_while_the_database_is_away_waits_for_it_and_joins() {
    let Some(mut fleet) = Fleet::new(2).await else { return };
    fleet.add_for_all("first");
    fleet.server.kill();
    fleet.start(0);
    fleet.until("it says what it waits for", || fleet.said("cluster-store-away: ") == 1).await;
    fleet.server.resume();
    fleet.until_delivered("once the database is there").await;
    // One line a minute.
    assert!(fleet.said("cluster-store-away: ") <= 3, "{}", fleet.logs());
    assert!(fleet.end(0, "-TERM"), "{}", fleet.logs());

    let database = format!("/{}?", fleet.database());
    fleet.start_with(1, |text| text.replace(&database, "/nowhere?"), &[]);
    let ended = fleet.workers.remove(&1).unwrap().wait().unwrap();
    assert_eq!(ended.code(), Some(73), "{}", fleet.logs());
    let said = fleet.logs();
    assert!(said.contains("cluster-store-away: ") && said.contains("\"nowhere\" does not exist"), "{said}");
}
