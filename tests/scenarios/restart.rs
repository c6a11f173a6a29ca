//! Stops, crashes, outages, and state that cannot be written or read.

use std::sync::atomic::Ordering;

use jiff::SignedDuration;
use m365_audit::host::{Expected, Health, Op, StateError, StateStore};
use m365_audit::model::ContentType;
use m365_audit::sim::{CallKind, GenerateSpec, NewBlob, SimFault};

use crate::host::Manner;
use crate::world::{EXCHANGE, World, days, hours, mins, state_error};

/// Trap 34: a crash after a batch was delivered and before that was written repeats that batch and nothing else.
#[tokio::test]
async fn a_crash_between_delivery_and_commit_repeats_only_what_was_in_flight() {
    let mut w = World::new().await;
    for n in 1..10 {
        w.add_aged(5, mins(20 + n));
    }
    let running = w.start();
    w.pass(mins(10)).await;
    let settled = w.host.event_count();
    for _ in 0..3 {
        w.add_now(5);
    }
    // What is delivered from here on is never written.
    running.store.kill();
    w.pass(mins(10)).await;
    let in_flight = w.host.event_count() - settled;
    assert_eq!(in_flight, 15);
    w.kill(running).await;
    w.run_for(mins(20)).await;
    let compared = w.compare();
    assert_eq!(compared.duplicated.len(), in_flight, "{compared}");
    w.assert_nothing_lost();
}

/// A crash at any commit at all: nothing lost, duplicates only from what was not written.
#[tokio::test]
async fn a_crash_at_any_moment_loses_nothing() {
    for crash_at in [1, 2, 3, 5, 8, 13, 21, 34] {
        let mut w = World::new().await;
        w.generate(GenerateSpec {
            content_types: vec![EXCHANGE],
            late_rate: 0.0,
            ..GenerateSpec::new(25, 8, w.ago(hours(30)), w.ago(mins(10)))
        });
        let running = w.start();
        let reached = w.until_within(mins(10), || w.host.event_count() >= crash_at * 5).await;
        running.store.kill();
        let before = w.host.event_count();
        w.rest().await;
        w.kill(running).await;
        let unwritten = w.host.event_count() - before;
        w.run_for(hours(1)).await;
        let compared = w.compare();
        assert!(compared.duplicated.len() <= unwritten + 32 * 8, "{reached} {crash_at}: {compared}");
        w.assert_nothing_lost();
    }
}

/// A stop in the middle of a back-fill saves what was done; the next start goes on from there.
#[tokio::test]
async fn a_stop_in_mid_backfill_resumes_without_repeating() {
    let mut w = World::new().await;
    w.set("max_requests_per_minute", 60);
    for n in 1..160 {
        w.add_aged(2, hours(n));
    }
    let running = w.start();
    w.until("a part is delivered", || w.host.event_count() >= 100).await;
    w.stop(running).await;
    let before = w.host.event_count();
    assert!(before < 300, "{before}");
    w.clock.advance(hours(1));
    let running = w.start();
    w.until_all_delivered().await;
    w.pass(mins(10)).await;
    w.stop(running).await;
    w.assert_clean();
    let fetches = w.requests(CallKind::Blob).len();
    assert!(fetches <= 159 + 32, "{fetches}");
}

/// A stop while the host does not answer ends all the same, and loses nothing.
#[tokio::test]
async fn a_stop_while_batches_are_unanswered_loses_nothing() {
    let mut w = World::new().await;
    for n in 1..6 {
        w.add_aged(2, mins(20 + n));
    }
    w.host.answer(Manner::Refuse);
    let running = w.start();
    w.pass(mins(10)).await;
    running.stop.cancel();
    // Nobody is left who waits for a time to pass: what was refused is given up.
    w.rest().await;
    w.host.answer(Manner::Take);
    w.ended(running).await.expect("a clean stop");
    w.run_for(mins(20)).await;
    w.assert_clean();
}

/// A full disk moves nothing and loses nothing; when there is room again everything goes on.
#[tokio::test]
async fn a_full_state_store_moves_nothing_and_recovers() {
    let mut w = World::new().await;
    w.add_aged(3, mins(30));
    let running = w.start();
    w.pass(mins(10)).await;
    let before = w.complete_until(EXCHANGE);
    running.store.full.store(u64::MAX, Ordering::SeqCst);
    w.add_now(3);
    w.pass(hours(1)).await;
    assert_eq!(w.complete_until(EXCHANGE), before);
    assert!(
        matches!(w.host.health(), Health::Degraded { ref why, .. } if why.contains("state-not-written")),
        "{}",
        w.host.health()
    );
    running.store.full.store(0, Ordering::SeqCst);
    w.pass(mins(20)).await;
    assert!(w.complete_until(EXCHANGE) > Some(w.ago(mins(20))));
    w.stop(running).await;
    w.assert_clean();
    w.assert_healthy();
}

/// A store that cannot be reached at the start is tried again.
#[tokio::test]
async fn a_store_that_is_full_at_the_start_is_tried_again() {
    let mut w = World::new().await;
    w.add_aged(3, mins(30));
    let running = w.start();
    running.store.full.store(4, Ordering::SeqCst);
    w.pass(mins(20)).await;
    w.stop(running).await;
    w.assert_clean();
    w.assert_healthy();
}

/// A second writer is found out: the source stops with Failed, and the other's state is left as it is.
#[tokio::test]
async fn another_writer_is_a_conflict_and_stops_the_source() {
    let mut w = World::new().await;
    w.add_aged(3, mins(30));
    let first = w.start();
    w.pass(mins(10)).await;
    let second = w.start();
    w.pass(mins(10)).await;
    w.add_now(2);
    let error = state_error(w.ended(first).await);
    assert!(matches!(error, StateError::Conflict { .. }), "{error}");
    assert!(
        w.host
            .healths()
            .iter()
            .any(|health| matches!(health, Health::Failed { why } if why.contains("state-conflict")))
    );
    w.pass(mins(20)).await;
    w.stop(second).await;
    w.assert_nothing_lost();
}

async fn put(w: &World, key: &str, value: &str) {
    let op = Op::Put { key: key.into(), value: value.to_owned().into(), expected: Expected::Any };
    w.store.commit(vec![op]).await.unwrap();
}

/// State of a newer format or damaged state is refused and left as it is.
#[tokio::test]
async fn newer_or_corrupt_state_is_refused_and_kept() {
    let newer = r#"{"format":99,"something":"else"}"#;
    for (what, value) in [
        ("owner", newer),
        ("tenant", newer),
        ("Audit.Exchange/position", newer),
        ("Audit.Exchange/position", "{\"format\":1,\"ori"),
        ("Audit.Exchange/tracked/00000000000000000000000000000001", newer),
        ("Audit.Exchange/aside/00000000000000000000000000000001", "not json"),
        ("Audit.Exchange/blobs/strange", "x"),
        ("events/strange", "x"),
    ] {
        let mut w = World::new().await;
        w.add_aged(3, mins(30));
        w.run_for(mins(20)).await;
        put(&w, &format!("m365_audit/v1/{}/{what}", w.tenant), value).await;
        let before = w.store.entries();
        w.add_now(3);
        let running = w.start();
        let error = state_error(w.ended(running).await);
        assert!(matches!(error, StateError::Corrupt { .. }), "{what}: {error}");
        assert!(matches!(w.host.health(), Health::Failed { .. }), "{what}");
        assert_eq!(w.store.entries(), before, "{what}");
        assert_eq!(w.host.event_count(), 3, "{what}: nothing was delivered");
    }
}

/// Design 3.5: an outage longer than Microsoft keeps content is one gap with the exact interval.
#[tokio::test]
async fn an_outage_longer_than_seven_days_is_one_gap_with_its_exact_interval() {
    let mut w = World::new().await;
    w.add_aged(3, mins(30));
    w.run_for(hours(1)).await;
    let position = w.watch.positions().remove(&EXCHANGE).unwrap();
    let from = position.complete_until.max(position.listed_until).unwrap();
    let first_lost = w.add_now(2);
    w.clock.advance(days(9));
    w.add_aged(2, days(6) + hours(23));
    w.add_aged(2, days(7) + hours(1));
    let start = w.now();
    w.run_for(hours(2)).await;
    let gaps = w.gaps();
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert_eq!(gaps[0].1, from.to_string());
    let to: jiff::Timestamp = gaps[0].2.parse().unwrap();
    let expected = start - SignedDuration::from_hours(168) + SignedDuration::from_mins(5);
    assert!(to.duration_since(expected).abs() < SignedDuration::from_secs(60), "{to} {expected}");
    assert_eq!(gaps[0].3, "outage");
    let compared = w.compare();
    assert!(compared.lost.is_empty(), "{compared}");
    assert_eq!(compared.expired_unread.len(), 4, "{compared}");
    assert_eq!(w.fetches(&first_lost), 0);
    assert!(w.complete_until(EXCHANGE) > Some(w.ago(mins(20))));
    w.run_for(hours(1)).await;
    assert_eq!(w.gaps().len(), 1, "said once");
    w.assert_manners();
}

/// An outage shorter than that loses nothing and is no gap.
#[tokio::test]
async fn an_outage_of_six_days_loses_nothing() {
    let mut w = World::new().await;
    w.add_aged(3, mins(30));
    w.run_for(hours(1)).await;
    for _ in 0..6 {
        w.add_now(2);
        w.clock.advance(days(1));
    }
    w.run_for(hours(2)).await;
    assert!(w.gaps().is_empty());
    w.assert_clean();
}

/// Design 3.5: a type that was never listed before is a first run, not a gap.
#[tokio::test]
async fn a_type_never_listed_before_is_no_gap() {
    let mut w = World::new().await;
    w.add_aged(3, mins(30));
    w.run_for(hours(1)).await;
    w.clock.advance(days(6));
    w.set("content_types", vec![EXCHANGE.as_str(), "Audit.General"]);
    let blob = w.blob(2, days(6));
    w.add_to(ContentType::General, blob);
    w.run_for(hours(1)).await;
    assert!(w.gaps().is_empty(), "{:?}", w.gaps());
    w.assert_clean();
}

/// The same when the type was configured from the first day and could never be listed.
#[tokio::test]
async fn a_type_that_was_refused_from_the_first_day_is_no_gap_when_it_is_granted() {
    let mut w = World::new().await;
    w.set("content_types", vec![EXCHANGE.as_str(), "DLP.All"]);
    w.set("poll_interval_secs", 1800);
    w.sim.set_roles(["ActivityFeed.Read"]);
    w.add_aged(3, mins(30));
    let running = w.start();
    w.leap(days(9), mins(10)).await;
    w.stop(running).await;
    w.sim.set_roles(["ActivityFeed.Read", "ActivityFeed.ReadDlp"]);
    let blob = w.blob(2, days(6));
    w.add_to(ContentType::Dlp, blob);
    w.clock.advance(hours(2));
    w.run_for(hours(2)).await;
    assert!(w.gaps().is_empty(), "{:?}", w.gaps());
    w.assert_clean();
}

/// A late blob is written to state before it is fetched: a crash in between does not lose it even when no listing shows
/// it again.
#[tokio::test]
async fn a_tracked_blob_survives_a_crash_and_the_listing_it_was_found_in() {
    let mut w = World::new().await;
    w.set("overlap_secs", 3600);
    w.add_aged(2, mins(30));
    let running = w.start();
    w.pass(hours(1)).await;
    let late = NewBlob { listable_from: Some(w.now()), ..w.blob(2, mins(50)) };
    let late = w.add(late);
    w.sim.faults().next_for_blob(&late, u32::MAX, SimFault::InternalError);
    w.pass(mins(30)).await;
    assert!(w.fetches(&late) > 0);
    assert!(w.complete_until(EXCHANGE) > Some(w.ago(mins(20))), "it does not hold the position");
    w.kill(running).await;
    // From now on no listing works: only the state knows of it.
    w.sim.faults().clear();
    w.sim.faults().rate(CallKind::Content, 1.0, SimFault::InternalError);
    let running = w.start();
    w.pass(mins(30)).await;
    w.sim.faults().clear();
    w.stop(running).await;
    assert_eq!(w.host.event_count(), 4);
    w.assert_clean();
}
