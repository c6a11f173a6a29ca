//! Hosts that are slow, refuse, reject or forget.

use m365_audit::clock::Clock;
use m365_audit::host::Health;
use m365_audit::sim::{CallKind, NewBlob};
use serde_json::Value;

use crate::host::Manner;
use crate::world::{EXCHANGE, World, hours, mins};

/// CK-5: a host that takes nothing for hours holds a bounded number of bytes, and nothing is fetched in vain.
#[tokio::test]
async fn back_pressure_bounds_bytes_in_flight_and_requests() {
    let mut w = World::new().await;
    w.set("in_flight_bytes_max", 1_048_576);
    for n in 1..60 {
        w.add_aged(200, mins(n));
    }
    let oldest = w.ago(mins(59));
    w.host.answer(Manner::Hold);
    let running = w.start();
    w.pass(hours(2)).await;
    assert!(w.host.held_bytes_max() <= 1_048_576, "{}", w.host.held_bytes_max());
    assert!(w.host.held() >= 2, "{} batches", w.host.held());
    let fetched = w.requests(CallKind::Blob).len();
    assert!(fetched <= 59, "{fetched} fetches of 59 blobs");
    assert!(w.complete_until(EXCHANGE).is_none_or(|t| t <= oldest), "{:?}", w.complete_until(EXCHANGE));
    w.host.release();
    w.pass(hours(1)).await;
    w.stop(running).await;
    w.assert_clean();
    assert_eq!(w.requests(CallKind::Blob).len(), 59, "each blob was fetched once");
}

/// The same for one blob much larger than the bound.
#[tokio::test]
async fn a_blob_larger_than_the_bound_is_delivered_in_pieces() {
    let mut w = World::new().await;
    w.set("in_flight_bytes_max", 1_048_576);
    w.sim.configure(|config| config.gzip = false);
    let created = w.ago(mins(30));
    w.add(NewBlob::huge(created, 6 * 1024 * 1024));
    w.host.answer(Manner::Hold);
    let running = w.start();
    w.pass(mins(2)).await;
    for _ in 0..200 {
        assert!(w.host.held_bytes_max() <= 1_048_576, "{}", w.host.held_bytes_max());
        w.host.answer_held(m365_audit::host::Delivery::Delivered);
        w.rest().await;
        if w.host.held() == 0 {
            break;
        }
    }
    w.pass(mins(10)).await;
    w.stop(running).await;
    w.assert_clean();
}

/// A refusal keeps the bytes and sends them again, with back-off, without fetching again.
#[tokio::test]
async fn refused_batches_are_sent_again_without_fetching_again() {
    let mut w = World::new().await;
    let ids: Vec<String> = (1..10).map(|n| w.add_aged(3, mins(20 + n))).collect();
    let oldest = w.ago(mins(29));
    w.host.answer(Manner::Refuse);
    let running = w.start();
    w.pass(hours(6)).await;
    assert!(matches!(w.host.health(), Health::Degraded { .. }), "{}", w.host.health());
    assert!(w.host.refused() < 9 * 800, "{} refusals in six hours", w.host.refused());
    assert!(w.complete_until(EXCHANGE).is_none_or(|t| t <= oldest), "{:?}", w.complete_until(EXCHANGE));
    w.host.answer(Manner::Take);
    w.pass(mins(20)).await;
    w.stop(running).await;
    assert!(ids.iter().all(|id| w.fetches(id) == 1));
    w.assert_clean();
    w.assert_healthy();
}

/// An agent that ends refuses what waits. Nobody waits for it to take that after all.
#[tokio::test]
async fn a_stop_does_not_wait_for_a_host_that_refuses() {
    let mut w = World::new().await;
    w.add_now(3);
    w.host.answer(Manner::Refuse);
    let running = w.start();
    w.until("a refusal", || w.host.refused() > 0).await;
    let before = w.clock.monotonic();
    w.stop(running).await;
    assert_eq!(w.clock.monotonic(), before, "it waited to offer them again");
    w.host.answer(Manner::Take);
    let running = w.start();
    w.until_all_delivered().await;
    w.stop(running).await;
    w.assert_clean();
}

/// A blob in pieces, some taken as the agent ends and some not: what was taken does not come twice.
#[tokio::test]
async fn what_a_host_takes_of_a_blob_as_it_ends_is_not_repeated() {
    for taken in 1..4 {
        let mut w = World::new().await;
        let blob = w.blob(1_000, mins(1));
        w.add(blob);
        w.host.answer(Manner::Hold);
        let running = w.start();
        w.until("three batches", || w.host.held() >= 3).await;
        running.stop.cancel();
        w.rest().await;
        w.host.answer_held_apart(taken);
        w.ended(running).await.unwrap();
        assert!(w.host.event_count() > 0, "the host took {taken} batches");
        w.host.answer(Manner::Take);
        let running = w.start();
        w.until_all_delivered().await;
        w.stop(running).await;
        w.assert_clean();
    }
}

/// The same where it answers one after the other, and refuses some of them: the last of the blob is waited for before the
/// others are, so it matters which of them it is and when.
#[tokio::test]
async fn what_a_host_takes_after_it_refused_another_as_it_ends_is_not_repeated() {
    const LAST: usize = 99;
    let cases: [(&[usize], &[usize]); 5] = [
        (&[0, 1, LAST], &[0]),
        (&[0, LAST, 1], &[0]),
        (&[LAST, 0, 1], &[0]),
        (&[LAST, 0, 1], &[LAST]),
        (&[LAST, 0, 1, 2], &[0, 1]),
    ];
    for (order, refused) in cases {
        let mut w = World::new().await;
        let blob = w.blob(1_000, mins(1));
        w.add(blob);
        w.host.answer(Manner::Hold);
        let running = w.start();
        w.until("all batches of the blob", || w.host.held_events() == 1_000).await;
        running.stop.cancel();
        w.rest().await;
        let mut places: Vec<usize> = (0..w.host.held()).collect();
        assert!(places.len() >= order.len(), "{} batches", places.len());
        *places.last_mut().unwrap() = LAST;
        for batch in order {
            let place = places.iter().position(|other| other == batch).unwrap();
            places.remove(place);
            w.host.answer_one_held(place, !refused.contains(batch));
            w.rest().await;
        }
        w.host.answer_held_apart(0);
        w.ended(running).await.unwrap();
        assert!(w.host.event_count() > 0, "answered in the order {order:?}, {refused:?} refused");
        w.host.answer(Manner::Take);
        let running = w.start();
        w.until_all_delivered().await;
        w.stop(running).await;
        w.assert_clean();
    }
}

/// A ticket that is dropped is a refusal.
#[tokio::test]
async fn a_dropped_ticket_is_a_refusal() {
    let mut w = World::new().await;
    w.add_aged(3, mins(30));
    w.host.answer_next(5, Manner::Forget);
    w.run_for(mins(30)).await;
    w.assert_clean();
}

fn is_odd(record: &Value) -> bool {
    record["event_id"].as_str().is_some_and(|id| id.ends_with("007"))
}

/// A record the host will never take is set aside after a synced write, its neighbours are delivered, and it is offered
/// again at the next start.
#[tokio::test]
async fn a_rejected_record_is_set_aside_and_offered_again_at_the_next_start() {
    let mut w = World::new().await;
    w.add_aged(20, mins(30));
    w.host.answer(Manner::RejectIf(is_odd));
    w.run_for(mins(20)).await;
    assert_eq!(w.host.event_count(), 19);
    let aside = |w: &World| w.store.entries().keys().filter(|key| key.contains("/aside/")).count();
    assert_eq!(aside(&w), 1);
    assert!(w.complete_until(EXCHANGE) > Some(w.ago(mins(20))), "it does not hold the position");
    w.run_for(mins(20)).await;
    assert_eq!((w.host.event_count(), aside(&w)), (19, 1), "still rejected");
    w.host.answer(Manner::Take);
    w.run_for(mins(20)).await;
    assert_eq!((w.host.event_count(), aside(&w)), (20, 0));
    w.assert_clean();
}

/// A host that takes its time does not stop listing, and what it has not answered is not passed.
#[tokio::test]
async fn a_slow_host_delays_only_the_position() {
    let mut w = World::new().await;
    w.add_aged(3, mins(30));
    w.host.answer_next(1, Manner::Hold);
    let running = w.start();
    w.pass(mins(30)).await;
    w.add_now(2);
    w.pass(mins(30)).await;
    assert_eq!(w.host.event_count(), 2, "later blobs are delivered");
    assert!(w.complete_until(EXCHANGE).is_none_or(|t| t < w.ago(mins(80))));
    w.host.release();
    w.pass(mins(10)).await;
    w.stop(running).await;
    w.assert_clean();
}

/// A host that rejects everything has a wrong setting: it is asked seldom, the source is degraded with the host's words,
/// nothing is set aside, and it goes on by itself.
#[tokio::test]
async fn a_host_that_rejects_everything_is_held_back_and_nothing_is_set_aside() {
    let mut w = World::new().await;
    for n in 0..20 {
        w.add_aged(40, mins(20 + n));
    }
    w.host.answer(Manner::RejectAll);
    let running = w.start();
    w.pass(hours(2)).await;
    assert!(matches!(w.host.health(), Health::Degraded { why, .. } if why.contains("the test says so")));
    let offered = w.host.activity();
    assert!(offered < 400, "{offered} batches offered in two hours");
    assert_eq!(w.store.entries().keys().filter(|key| key.contains("/aside/")).count(), 0);
    w.host.answer(Manner::Take);
    w.pass(hours(1)).await;
    w.stop(running).await;
    assert_eq!(w.host.event_count(), 800);
    w.assert_clean();
    w.assert_healthy();
}
