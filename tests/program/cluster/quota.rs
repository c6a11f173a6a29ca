//! Microsoft's quota is the tenant's, whoever reads it.

use super::*;

/// The most requests in any 60 seconds.
fn most_in_a_minute(fleet: &Fleet) -> usize {
    let mut times: Vec<i64> = fleet.sim.requests().iter().map(|request| request.at.as_millisecond()).collect();
    times.sort_unstable();
    let mut first = 0;
    let of = |(last, at): (usize, &i64)| {
        while *at - times[first] >= 60_000 {
            first += 1;
        }
        last + 1 - first
    };
    times.iter().enumerate().map(of).max().unwrap_or(0)
}

/// One process asks for half of what there is in a minute and ends; the next one would take all of it at once, and has more
/// than that to read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_takes_over_stays_within_the_quota_that_the_former_one_used() {
    const QUOTA: usize = 500;
    let Some(mut fleet) = Fleet::new(1).await else { return };
    fleet.keys = format!("max_requests_per_minute = {QUOTA}\n");
    let now = fleet.sim.now() - jiff::SignedDuration::from_mins(30);
    for number in 0..QUOTA * 2 {
        let event = format!(
            r#"{{"Id":"blob-{number}","CreationTime":"{now}","Operation":"Test","RecordType":1,"Workload":"X"}}"#
        );
        fleet.sim.add_blob(&tenant(0), ContentType::General, NewBlob::at(now).with_events([event]));
    }
    fleet.start(0);
    let asked = |fleet: &Fleet| fleet.sim.requests().len();
    fleet.until("the first has asked for half", || asked(&fleet) > QUOTA / 2).await;
    assert!(fleet.end(0, "-TERM"), "{}", fleet.logs());
    let by_the_first = asked(&fleet);
    fleet.start(1);
    let few = by_the_first + QUOTA / 25;
    fleet.until("the second reads, too", || asked(&fleet) >= few).await;
    // It has more to read than it may ask for; what it asks for is seen for longer than it would need for all of it.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let most = most_in_a_minute(&fleet);
    assert!(most <= QUOTA + QUOTA / 10, "{most} in a minute");
    assert!(asked(&fleet) < by_the_first + QUOTA / 4, "{} after {by_the_first}", asked(&fleet));
    fleet.until("and goes on a minute later", || asked(&fleet) > by_the_first + QUOTA * 3 / 8).await;
    let most = most_in_a_minute(&fleet);
    assert!(most <= QUOTA + QUOTA / 10, "{most} in a minute");
    assert!(fleet.end(1, "-TERM"), "{}", fleet.logs());
}
