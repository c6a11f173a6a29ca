//! What is measured: a command each, for minutes, with its figures in `docs/fleet.md`.

use super::*;

/// How long after `begun` each of these events was in a file, as seconds.
async fn arrivals(fleet: &Fleet, ids: &BTreeSet<String>, begun: Instant) -> Vec<f64> {
    let mut came: BTreeMap<String, f64> = BTreeMap::new();
    while came.len() < ids.len() {
        assert!(begun.elapsed() < PATIENCE, "{} of {} came", came.len(), ids.len());
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
    const TENANTS: usize = 400;
    let Some(mut fleet) = Fleet::new(TENANTS).await else { return };
    fleet.poll_secs = 10;
    (0..4).for_each(|worker| fleet.start(worker));
    fleet.add_for_all("first");
    fleet.until_delivered("the first events").await;
    fleet.until("all are taken", || !fleet.shares().contains_key("nobody") && fleet.shares().len() == 4).await;
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
    println!("a fifth joined: {moved} of {TENANTS} tenants moved within 70 s");

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
