//! The same event more than once: delivered once, and never less.

use m365_audit::host::Delivery;
use m365_audit::sim::NewBlob;
use serde_json::{Value, json};

use crate::host::Manner;
use crate::world::{EXCHANGE, World, days, event, hours, mins};

/// Traps 28, 29 and 32: an event that comes again, in a neighbouring blob, hours or days later, with its fields in
/// another order, is delivered once.
#[tokio::test]
async fn an_event_that_comes_again_is_delivered_once() {
    let mut w = World::new().await;
    w.set("poll_interval_secs", 1800);
    // Older than anything kept, by its own time.
    let time = w.ago(days(6));
    let first = event(1, time);
    let value: Value = serde_json::from_str(&first).unwrap();
    let reordered = {
        let members: Vec<String> =
            value.as_object().unwrap().iter().rev().map(|(k, v)| format!("{}:{v}", json!(k))).collect();
        format!("{{{}}}", members.join(", "))
    };
    assert_ne!(first, reordered);
    let created = w.ago(mins(30));
    w.add(NewBlob::at(created).with_events([first.clone(), first.clone()]));
    w.add(NewBlob::at(created).with_events([reordered.clone()]));
    let running = w.start();
    w.leap(hours(1), mins(5)).await;
    for wait in [hours(5), days(2), days(2) + hours(12)] {
        w.leap(wait, mins(15)).await;
        let fresh = event(100 + wait.as_secs(), w.now());
        w.add(NewBlob::at(w.now()).with_events([reordered.clone(), fresh]));
    }
    w.leap(hours(2), mins(5)).await;
    w.stop(running).await;
    assert_eq!(w.host.event_count(), 4);
    w.assert_clean();
}

/// Trap 33: the keys survive a restart, with and without a clean stop.
#[tokio::test]
async fn an_event_that_comes_again_after_a_restart_is_delivered_once() {
    let mut w = World::new().await;
    let first = event(1, w.ago(hours(1)));
    w.add(NewBlob::at(w.ago(mins(30))).with_events([first.clone()]));
    w.run_for(mins(20)).await;
    w.add(NewBlob::at(w.now()).with_events([first.clone()]));
    let running = w.start();
    w.pass(mins(20)).await;
    w.kill(running).await;
    w.add(NewBlob::at(w.now()).with_events([first]));
    w.run_for(mins(20)).await;
    assert_eq!(w.host.event_count(), 1);
    w.assert_clean();
}

/// Trap 30: the same user doing the same thing in the same second is as many events as there are Ids.
#[tokio::test]
async fn real_repeats_are_all_delivered() {
    let mut w = World::new().await;
    let time = w.ago(hours(1));
    let repeats: Vec<String> = (0..20).map(|n| event(n, time)).collect();
    w.add(NewBlob::at(w.ago(mins(30))).with_events(repeats));
    w.once().await;
    assert_eq!(w.host.event_count(), 20);
    w.assert_clean();
}

/// One Id in two record types, two operations, or two parts of an eDiscovery record is as many events.
#[tokio::test]
async fn one_id_in_other_record_types_operations_or_parts_is_another_event() {
    let mut w = World::new().await;
    let base: Value = serde_json::from_str(&event(1, w.ago(hours(1)))).unwrap();
    let mut events = vec![base.clone()];
    for (key, value) in [
        ("RecordType", json!(2)),
        ("Operation", json!("Remove-Mailbox")),
        ("CreationTime", json!("2026-05-10T01:02:03")),
        ("RecordNumber", json!(1)),
        ("RecordNumber", json!(2)),
    ] {
        let mut other = base.clone();
        other[key] = value;
        events.push(other);
    }
    w.add(NewBlob::at(w.ago(mins(30))).with_events(events.iter().map(Value::to_string)));
    w.once().await;
    assert_eq!(w.host.event_count(), 6);
    w.assert_clean();
}

/// Trap 31: events without an Id are never taken for duplicates of one another, and a second fetch of their own blob
/// does not repeat them.
#[tokio::test]
async fn events_without_an_id_are_delivered_as_often_as_they_were_published() {
    let mut w = World::new().await;
    w.sim.configure(|config| config.gzip = false);
    let mut bare: Value = serde_json::from_str(&event(1, w.ago(hours(1)))).unwrap();
    bare.as_object_mut().unwrap().remove("Id");
    let mut empty = bare.clone();
    empty["Id"] = json!("");
    let mut ids = Vec::new();
    for age in [mins(30), mins(29), mins(28)] {
        let events = [&bare, &bare, &empty, &empty, &bare].map(Value::to_string);
        ids.push(w.add(NewBlob::at(w.ago(age)).with_events(events)));
    }
    w.sim.faults().next_for_blob(&ids[1], 2, m365_audit::sim::SimFault::CutBody(700));
    w.run_for(mins(20)).await;
    assert_eq!(w.host.event_count(), 15);
    w.assert_clean();
}

/// A placeholder Id shared by many events loses none of them.
#[tokio::test]
async fn events_that_share_a_placeholder_id_are_all_delivered() {
    let mut w = World::new().await;
    let mut events = Vec::new();
    for n in 0..30 {
        let mut one: Value = serde_json::from_str(&event(n, w.ago(hours(1)) + mins(n))).unwrap();
        one["Id"] = json!("00000000-0000-0000-0000-000000000000");
        events.push(one.to_string());
    }
    let (left, right) = events.split_at(15);
    w.add(NewBlob::at(w.ago(mins(20))).with_events(left.to_vec()));
    w.add(NewBlob::at(w.ago(mins(19))).with_events(right.to_vec()));
    w.once().await;
    assert_eq!(w.host.event_count(), 30);
    w.assert_clean();
}

/// Design 3.4: while the first copy is in flight the second waits for it; a refusal of the first loses neither.
#[tokio::test]
async fn a_second_copy_waits_for_the_first_even_when_that_is_refused() {
    let mut w = World::new().await;
    let shared = event(1, w.ago(hours(1)));
    for age in [mins(30), mins(29)] {
        let own = w.events(1, w.ago(hours(1)));
        w.add(NewBlob::at(w.ago(age)).with_events([shared.clone(), own[0].replace("-4000-", "-4001-")]));
    }
    w.host.answer(Manner::Hold);
    let running = w.start();
    w.pass(mins(5)).await;
    assert_eq!(w.host.held(), 2);
    assert!(w.complete_until(EXCHANGE).is_none_or(|t| t < w.ago(mins(34))));
    w.host.answer_held(Delivery::Refused("not now".into()));
    w.pass(mins(3)).await;
    assert_eq!(w.host.held(), 2, "both are sent again");
    w.host.release();
    w.pass(mins(10)).await;
    w.stop(running).await;
    assert_eq!(w.host.event_count(), 3);
    w.assert_clean();
}

/// The same with the process killed while both are in flight: nothing is delivered twice, because nothing was.
#[tokio::test]
async fn copies_in_flight_at_a_crash_are_delivered_once_afterwards() {
    let mut w = World::new().await;
    let shared = event(1, w.ago(hours(1)));
    for age in [mins(30), mins(29), mins(28)] {
        w.add(NewBlob::at(w.ago(age)).with_events([shared.clone()]));
    }
    w.host.answer(Manner::Hold);
    let running = w.start();
    w.pass(mins(5)).await;
    w.kill(running).await;
    w.host.answer(Manner::Take);
    w.run_for(mins(20)).await;
    assert_eq!(w.host.event_count(), 1);
    w.assert_clean();
}

/// Blobs that hold each other's events settle, whichever comes first, and do not wait for each other for ever.
#[tokio::test]
async fn blobs_that_hold_each_others_events_settle() {
    let mut w = World::new().await;
    let time = w.ago(hours(1));
    let all: Vec<String> = (0..3_000).map(|n| event(n, time)).collect();
    let backwards: Vec<String> = all.iter().rev().cloned().collect();
    let mut shuffled = all.clone();
    shuffled.rotate_left(1_500);
    for (age, events) in [(30, all), (29, backwards), (28, shuffled)] {
        w.add(NewBlob::at(w.ago(mins(age))).with_events(events));
    }
    w.once().await;
    assert_eq!(w.host.event_count(), 3_000);
    w.assert_clean();
}
