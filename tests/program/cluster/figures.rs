//! What is measured: a command each, for minutes, with its figures in `docs/fleet.md`.

use super::*;

/// How long after `begun` each of these events was in a file, as seconds.
async fn arrivals(fleet: &Fleet, ids: &BTreeSet<String>, begun: Instant) -> Vec<f64> {
    let mut came: BTreeMap<String, f64> = BTreeMap::new();
    while came.len() < ids.len() {
        assert!(begun.elapsed() < fleet.patience(), "{} of {} came", came.len(), ids.len());
        for id in fleet.delivered().into_keys().filter(|id| ids.contains(id)) {
            came.entry(id).or_insert(begun.elapsed().as_secs_f64());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let mut came: Vec<f64> = came.into_values().collect();
    came.sort_by(f64::total_cmp);
    came
}

/// The figures of `docs/fleet.md`: `cargo test --release --test program -- --ignored --nocapture cluster::figures`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, for minutes"]
async fn figures_of_a_fleet_of_four_hundred_tenants() {
    figures(400, 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, for minutes"]
async fn figures_of_a_fleet_of_five_thousand_tenants() {
    figures(5000, 300).await;
}

/// So much memory a process has, in KiB: now, and at most so far.
fn memory(fleet: &Fleet, worker: usize) -> (usize, usize) {
    let status = fs::read_to_string(format!("/proc/{}/status", fleet.workers[&worker].id())).unwrap();
    let of = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (of("VmRSS:"), of("VmHWM:"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, for a quarter of an hour"]
async fn figures_of_ten_thousand_idle_tenants() {
    const TENANTS: usize = 10_000;
    let Some(server) = Postgres::start("track_functions=all") else { return };
    let mut fleet = Fleet::on(server, TENANTS).await;
    fleet.poll_secs = 300;
    fleet.start(0);
    let begun = Instant::now();
    fleet.until("all are taken", || !fleet.shares().contains_key("nobody") && fleet.shares().len() == 1).await;
    println!("all taken after {:.0} s", begun.elapsed().as_secs_f64());
    // One begins each 50 ms.
    let asked = |fleet: &Fleet| fleet.sim.requests().into_iter().map(|request| request.tenant).collect::<BTreeSet<_>>();
    while asked(&fleet).len() < TENANTS {
        assert!(begun.elapsed() < PATIENCE * 8, "{} have begun", asked(&fleet).len());
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    println!("all begun after {:.0} s", begun.elapsed().as_secs_f64());
    let count = |fleet: &Fleet, sql: &str| fleet.server.sql(&fleet.database(), sql).parse::<f64>().unwrap_or(0.0);
    let commits = "select coalesce(sum(calls), 0) from pg_stat_user_functions where funcname = 'm365_commit'";
    let statements = "select xact_commit from pg_stat_database where datname = current_database()";
    tokio::time::sleep(Duration::from_secs(60)).await;
    let before = (count(&fleet, commits), count(&fleet, statements), Instant::now());
    tokio::time::sleep(Duration::from_secs(300)).await;
    let secs = before.2.elapsed().as_secs_f64();
    let (now, most) = memory(&fleet, 0);
    println!(
        "{TENANTS} idle tenants, polled every {} s: {:.1} commits a second, {:.1} transactions a second, {now} KiB resident ({:.1} KiB a tenant), at most {most} KiB",
        fleet.poll_secs,
        (count(&fleet, commits) - before.0) / secs,
        (count(&fleet, statements) - before.1) / secs,
        now as f64 / TENANTS as f64,
    );
    assert!(fleet.end(0, "-TERM"), "{}", fleet.logs());
}

/// `FLEET_AWAY_SECS` is how long the database is away, ten minutes where nobody says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a quarter of an hour"]
async fn figures_of_a_database_that_is_away_for_ten_minutes() {
    let away = std::env::var("FLEET_AWAY_SECS").ok().map_or(600, |text| text.parse().unwrap());
    let Some(mut fleet) = Fleet::new(200).await else { return };
    fleet.poll_secs = 10;
    (0..3).for_each(|worker| fleet.start(worker));
    fleet.add_for_all("first");
    fleet.until_delivered("the first events").await;
    let before: Vec<usize> = (0..3).map(|worker| memory(&fleet, worker).1).collect();
    fleet.server.kill();
    let begun = Instant::now();
    let mut round = 0;
    while begun.elapsed() < Duration::from_secs(away) {
        round += 1;
        fleet.add_for_all(&format!("away-{round}"));
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    fleet.server.resume();
    let back = Instant::now();
    while fleet.delivered().len() < fleet.events.len() {
        assert!(back.elapsed() < Duration::from_secs(900), "{}", fleet.logs());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let took = back.elapsed();
    let alive = fleet.workers.values_mut().all(|child| child.try_wait().unwrap().is_none());
    assert!(alive, "{}", fleet.logs());
    let after: Vec<usize> = (0..3).map(|worker| memory(&fleet, worker).1).collect();
    println!(
        "database away for {away} s: 3 processes, 200 tenants, no restart, caught up {:.1} s after it was back, {} events, 0 lost, {} twice; most memory before {before:?} KiB, at the end {after:?} KiB",
        took.as_secs_f64(),
        fleet.events.len(),
        fleet.twice()
    );
}

async fn figures(tenants: usize, poll_secs: u64) {
    let Some(mut fleet) = Fleet::new(tenants).await else { return };
    fleet.poll_secs = poll_secs;
    (0..4).for_each(|worker| fleet.start(worker));
    fleet.add_for_all("first");
    fleet.until_delivered("the first events").await;
    fleet.until("all are taken", || !fleet.shares().contains_key("nobody") && fleet.shares().len() == 4).await;
    println!("{tenants} tenants, polled every {poll_secs} s");
    println!("shares of four: {:?}", fleet.shares());

    let holders = |fleet: &Fleet| -> BTreeMap<String, String> {
        let (_, said) = fleet.ask(0, &["cluster", "status", "--json"]);
        let status: Value = serde_json::from_str(&said).unwrap();
        let of = |tenant: &Value| {
            (tenant["tenant"].as_str().unwrap().to_owned(), tenant["member"].as_str().unwrap_or("").to_owned())
        };
        status["tenants"].as_array().unwrap().iter().map(of).collect()
    };
    let before = holders(&fleet);
    let known = fleet.events.clone();
    let begun = Instant::now();
    fleet.end(3, "-KILL");
    fleet.add_for_all("killed");
    let of_the_dead = |id: &&String| {
        let number: usize = id.split('-').next().unwrap().parse().unwrap();
        before[tenant(number).as_str()] == "worker-3"
    };
    let new: BTreeSet<String> = fleet.events.difference(&known).filter(of_the_dead).cloned().collect();
    let came = arrivals(&fleet, &new, begun).await;
    let at = |part: f64| came[((came.len() - 1) as f64 * part) as usize];
    println!(
        "killed: the first events of its {} tenants elsewhere after {:.1} s (median), {:.1} s (99 of 100); lease {} s",
        new.len() / EVENTS_PER_BLOB,
        at(0.5),
        at(0.99),
        LEASE.as_secs()
    );
    fleet.until_delivered("those of the living").await;

    let before = holders(&fleet);
    fleet.start(4);
    tokio::time::sleep(Duration::from_secs(70)).await;
    let after = holders(&fleet);
    let moved = before.iter().filter(|(tenant, member)| after[*tenant] != **member).count();
    println!("a fifth joined: {moved} of {tenants} tenants moved within 70 s");

    let mut minutes: BTreeMap<(String, i64), usize> = BTreeMap::new();
    let mut starts: BTreeMap<String, usize> = BTreeMap::new();
    for request in fleet.sim.requests() {
        *minutes.entry((request.tenant.clone(), request.at.as_second() / 60)).or_default() += 1;
        *starts.entry(request.tenant).or_default() += usize::from(request.kind == CallKind::Start);
    }
    println!(
        "requests of one tenant in a minute: at most {}; starts of one tenant: at most {}; {} events, {} twice",
        minutes.values().max().unwrap(),
        starts.values().max().unwrap(),
        fleet.events.len(),
        fleet.twice()
    );
}
