//! Blobs that fail, are damaged, or expire: neighbours go on, nothing is given up early, what is lost is said.

use jiff::SignedDuration;
use m365_audit::clock::Clock;
use m365_audit::host::Health;
use m365_audit::sim::{NewBlob, SimFault};

use crate::world::{EXCHANGE, World, days, event, hours, mins};

/// Traps 3 and 23: neighbours of a failing blob are delivered, the position waits for it.
#[tokio::test]
async fn a_failing_blob_holds_the_position_and_not_its_neighbours() {
    let mut w = World::new().await;
    let ids: Vec<String> = (1..6).map(|n| w.add_aged(2, mins(20 * n))).collect();
    w.sim.faults().next_for_blob(&ids[2], u32::MAX, SimFault::InternalError);
    let running = w.start();
    w.pass(hours(2)).await;
    assert_eq!(w.host.event_count(), 8);
    let created = w.sim.truth().events.iter().find(|e| *e.content_ids[0] == *ids[2]).unwrap().listable_from;
    assert!(w.complete_until(EXCHANGE).is_some_and(|t| t <= created), "{:?}", w.complete_until(EXCHANGE));
    assert!(matches!(w.host.health(), Health::Degraded { .. }));
    w.sim.faults().clear();
    w.pass(mins(20)).await;
    assert!(w.complete_until(EXCHANGE) > Some(w.ago(mins(30))));
    w.stop(running).await;
    w.assert_clean();
    w.assert_healthy();
}

/// Trap 24: no error code makes a blob lost before it expires.
#[tokio::test]
async fn a_blob_is_tried_until_it_expires_whatever_the_error() {
    let faults = [
        SimFault::InternalError,
        SimFault::ContentMissing,
        SimFault::ContentExpired,
        SimFault::ContentIdInvalid,
        SimFault::NotFound,
        SimFault::Reset,
        SimFault::HtmlPage,
        SimFault::PermissionMissing,
        SimFault::Unauthorized,
    ];
    let mut w = World::new().await;
    for fault in faults {
        let id = w.add_aged(2, mins(30));
        w.sim.faults().next_for_blob(&id, u32::MAX, fault);
    }
    w.set("poll_interval_secs", 1800);
    let running = w.start();
    w.leap(days(5), mins(10)).await;
    assert_eq!(w.host.event_count(), 0);
    w.sim.faults().clear();
    w.leap(hours(2), mins(2)).await;
    w.stop(running).await;
    w.assert_clean();
    assert!(w.gaps().is_empty());
}

fn answer(body: &str) -> SimFault {
    SimFault::Answer { status: 200, content_type: "application/json".to_owned(), body: body.as_bytes().to_vec() }
}

/// A blob is listed because it has events: an answer without any is not believed at once.
#[tokio::test]
async fn a_blob_that_is_answered_empty_for_a_while_loses_nothing() {
    let mut w = World::new().await;
    let empties = ["[]", " [ ] ", "\u{feff}[]", "null", "[null]", "[null,null]"];
    for (n, body) in empties.iter().enumerate() {
        let id = w.add_aged(2, mins(30));
        w.sim.faults().next_for_blob(&id, n as u32 % 5 + 1, answer(body));
    }
    // Answers that are no array at all are never believed, as before.
    for body in ["{}", "{\"value\":[]}", " ", "<html>sign in</html>"] {
        let id = w.add_aged(2, mins(30));
        w.sim.faults().next_for_blob(&id, 9, answer(body));
    }
    w.set("poll_interval_secs", 1800);
    let running = w.start();
    w.leap(hours(2), mins(1)).await;
    w.stop(running).await;
    w.assert_clean();
    assert!(w.bad_bytes().is_empty(), "no damage is reported of what came well in the end");
}

/// And one that stays empty is believed within the hour: the position does not wait for it until it expires.
#[tokio::test]
async fn a_blob_that_stays_empty_holds_the_position_for_an_hour_and_no_longer() {
    let mut w = World::new().await;
    let mut blob = w.blob(0, mins(30));
    let created = blob.created;
    blob.body = Some(b"[]".to_vec());
    let empty = w.add(blob);
    w.add_aged(3, mins(20));
    let running = w.start();
    w.leap(mins(40), mins(1)).await;
    assert!(w.complete_until(EXCHANGE).is_some_and(|t| t <= created), "{:?}", w.complete_until(EXCHANGE));
    assert_eq!(w.host.event_count(), 3, "its neighbours are not held back");
    w.leap(mins(30), mins(1)).await;
    assert!(w.complete_until(EXCHANGE) > Some(w.ago(mins(30))), "{:?}", w.complete_until(EXCHANGE));
    assert_eq!(w.fetches(&empty), 7);
    w.leap(hours(2), mins(5)).await;
    assert_eq!(w.fetches(&empty), 7, "once believed it is not asked for again");
    w.stop(running).await;
    w.assert_clean();
    w.assert_healthy();
    assert!(w.gaps().is_empty());
}

/// A single pass does not wait an hour for it, and loses nothing to a slip.
#[tokio::test]
async fn a_single_pass_asks_an_empty_blob_again_and_ends() {
    let mut w = World::new().await;
    let slip = w.add_aged(2, mins(30));
    w.sim.faults().next_for_blob(&slip, 3, answer("[]"));
    let mut blob = w.blob(0, mins(25));
    blob.body = Some(b"[]".to_vec());
    let empty = w.add(blob);
    w.once().await;
    assert_eq!((w.fetches(&slip), w.fetches(&empty)), (4, 4));
    w.assert_clean();
}

/// What is not an array and stays so reaches the operator when it is believed.
#[tokio::test]
async fn a_body_that_stays_null_is_reported_when_it_is_believed() {
    let mut w = World::new().await;
    for body in ["null", "[null]"] {
        let mut blob = w.blob(0, mins(30));
        blob.body = Some(body.as_bytes().to_vec());
        w.add(blob);
    }
    let running = w.start();
    w.leap(mins(30), mins(1)).await;
    assert!(w.bad_bytes().is_empty());
    w.leap(mins(40), mins(1)).await;
    w.stop(running).await;
    assert_eq!(w.bad_bytes(), b"nullnull");
}

/// Design 3.3 and 3.5: a blob that could not be read before it expired is reported once, exactly, and then passed.
#[tokio::test]
async fn a_blob_that_expired_unread_is_one_gap_record_and_is_passed() {
    let mut w = World::new().await;
    w.set("poll_interval_secs", 1800);
    let blob = w.blob(2, mins(30));
    let created = blob.created;
    let gone = w.add(blob);
    w.add_aged(2, mins(20));
    w.sim.faults().next_for_blob(&gone, u32::MAX, SimFault::Gateway(503));
    let running = w.start();
    w.leap(days(6) + hours(23), mins(10)).await;
    assert!(w.gaps().is_empty());
    assert!(
        matches!(w.host.health(), Health::Degraded { ref why, .. } if why.contains("blob-expiry-near")),
        "{}",
        w.host.health()
    );
    w.leap(hours(3), mins(2)).await;
    let gap = (
        EXCHANGE.as_str().to_owned(),
        created.to_string(),
        (created + SignedDuration::from_millis(1)).to_string(),
        "blob_expired".to_owned(),
    );
    assert_eq!(w.gaps(), [gap]);
    assert_eq!(w.host.notices("m365_audit.gap")[0]["content_id"], *gone);
    assert!(w.complete_until(EXCHANGE) > Some(w.ago(hours(1))));
    w.stop(running).await;
    w.run_for(hours(1)).await;
    assert_eq!(w.gaps().len(), 1, "said once, also after a restart");
    let compared = w.compare();
    assert_eq!((compared.lost.len(), compared.expired_unread.len(), compared.delivered), (0, 2, 2), "{compared}");
    w.assert_manners();
}

/// Content is kept for seven days after it was made available, whatever a listing says of its end.
#[tokio::test]
async fn a_blob_whose_stated_expiry_is_wrong_is_not_given_up() {
    let mut w = World::new().await;
    let just_past = (w.now() - SignedDuration::from_secs(1)).to_string();
    let before_created = w.ago(hours(2)).to_string();
    let mut ids = Vec::new();
    for lie in ["0001-01-01T00:00:00", "2015-06-03T17:14:15.000Z", &before_created, &just_past, "soon", ""] {
        let blob = NewBlob { listed_expiration: Some(lie.to_owned()), ..w.blob(2, mins(30)) };
        ids.push(w.add(blob));
    }
    for id in &ids {
        w.sim.faults().next_for_blob(id, 1, SimFault::Gateway(503));
    }
    w.run_for(mins(20)).await;
    assert!(w.gaps().is_empty(), "{:?}", w.gaps());
    assert!(ids.iter().all(|id| w.fetches(id) == 2));
    w.assert_clean();
    w.assert_healthy();
}

/// A blob is known by its id and the time it was made available: one without that time is known by what stays the same.
#[tokio::test]
async fn a_blob_that_is_listed_without_its_time_is_fetched_once() {
    let mut w = World::new().await;
    let mut ids = Vec::new();
    for (n, said) in ["", "yesterday", "0001-01-01T00:00:00"].iter().enumerate() {
        let dated = NewBlob { listed_created: Some((*said).to_owned()), ..w.blob(2, mins(30)) };
        ids.push(w.add(dated));
        let content_id = Some(format!("49263800802{n}$49263800802{n}$x"));
        let undated = NewBlob { listed_created: Some((*said).to_owned()), content_id, ..w.blob(2, mins(40)) };
        ids.push(w.add(undated));
    }
    w.run_for(hours(2)).await;
    w.run_for(hours(2)).await;
    let fetches: Vec<usize> = ids.iter().map(|id| w.fetches(id)).collect();
    assert_eq!(fetches, [1; 6]);
    w.assert_clean();
    w.assert_healthy();
}

/// A stated expiry is no proof that the content is gone: the service may be away when it comes.
#[tokio::test]
async fn a_blob_past_its_expiry_that_is_still_served_is_not_lost_to_a_passing_failure() {
    for damaged in [false, true] {
        let mut w = World::new().await;
        let blob = NewBlob { expires: Some(w.now() + days(30)), ..w.blob(2, days(7) - hours(2)) };
        let end = blob.created + days(7);
        let lie = NewBlob { listed_expiration: Some(end.to_string()), ..blob };
        let events: Vec<String> = lie.events.iter().map(|e| String::from_utf8(e.clone()).unwrap()).collect();
        let id = w.add(lie);
        w.sim.faults().next_for_blob(&id, u32::MAX, SimFault::Gateway(503));
        let running = w.start();
        w.pass(mins(30)).await;
        w.kill(running).await;
        // The first attempt after it was down comes past the expiry.
        w.clock.advance(hours(2));
        w.sim.faults().clear();
        let cut = answer(&format!("[{},{},", events[0], events[1]));
        w.sim.faults().next_for_blob(&id, 3, if damaged { cut } else { SimFault::Gateway(503) });
        w.run_for(mins(30)).await;
        assert!(w.gaps().is_empty(), "{:?}", w.gaps());
        w.assert_clean();
    }
}

/// What Microsoft says is gone is not waited for; and a single pass ends, whatever it answers.
#[tokio::test]
async fn a_blob_past_its_expiry_is_lost_once_microsoft_says_so_or_after_some_attempts() {
    let gone = [SimFault::ContentMissing, SimFault::ContentExpired, SimFault::NotFound];
    for (fault, fetches) in gone.map(|fault| (fault, 1)).into_iter().chain([(SimFault::Gateway(503), 10)]) {
        let mut w = World::new().await;
        let id = w.add_aged(2, days(7) - hours(2));
        w.sim.faults().next_for_blob(&id, u32::MAX, SimFault::Gateway(503));
        w.run_for(mins(30)).await;
        w.clock.advance(hours(2));
        let before = w.fetches(&id);
        w.sim.faults().clear();
        w.sim.faults().next_for_blob(&id, u32::MAX, fault.clone());
        w.once().await;
        assert_eq!(w.fetches(&id) - before, fetches, "{fault:?}");
        assert_eq!(w.gaps().len(), 1, "{fault:?}");
        w.assert_manners();
    }
}

/// Trap 25 and a fetch that broke: what was delivered of a body that broke off is not delivered again.
#[tokio::test]
async fn a_body_that_broke_off_is_read_again_without_duplicates() {
    for fault in [
        SimFault::CutBody(3_000),
        SimFault::WrongLength(-700),
        SimFault::WrongLength(700),
        SimFault::DamagedGzip,
        SimFault::HtmlPage,
        SimFault::EmptyBody,
        SimFault::RequestTimeout,
    ] {
        let mut w = World::new().await;
        w.sim.configure(|config| config.gzip = matches!(fault, SimFault::DamagedGzip));
        let id = w.add_aged(40, mins(30));
        w.sim.faults().next_for_blob(&id, 4, fault.clone());
        w.run_for(mins(30)).await;
        assert_eq!(w.fetches(&id), 5, "{fault:?}");
        w.assert_clean();
        assert!(w.host.notices("m365_audit.bad_blob").is_empty(), "{fault:?}");
    }
}

fn joined(parts: &[&str]) -> Vec<u8> {
    parts.concat().into_bytes()
}

/// Design 3.3: a damaged array that came byte-identical three times is shipped: its events as events, the rest as
/// `bad_blob` records.
#[tokio::test]
async fn a_damaged_body_that_came_thrice_the_same_is_shipped_in_full() {
    let mut w = World::new().await;
    let blob = w.blob(3, mins(30));
    let events: Vec<String> = blob.events.iter().map(|e| String::from_utf8(e.clone()).unwrap()).collect();
    let damage = r#"{"Id":"broken","Operation":tru}"#;
    let body = joined(&["[", &events[0], ",", &events[1], ",", damage, ",", &events[2], "]"]);
    let id = w.add(NewBlob { body: Some(body), ..blob });
    w.add_aged(1, mins(10));
    w.run_for(mins(60)).await;
    assert!(w.fetches(&id) > 3 && w.fetches(&id) <= 6, "{}", w.fetches(&id));
    assert_eq!(String::from_utf8(w.bad_bytes()).unwrap(), damage);
    assert!(w.complete_until(EXCHANGE) > Some(w.ago(mins(20))));
    w.assert_clean();
    w.assert_healthy();
}

/// The same for an array that is not closed: all its whole elements are events.
#[tokio::test]
async fn an_array_that_never_closes_is_shipped_after_three_identical_fetches() {
    let mut w = World::new().await;
    let blob = w.blob(2, mins(30));
    let events: Vec<String> = blob.events.iter().map(|e| String::from_utf8(e.clone()).unwrap()).collect();
    let body = joined(&["[", &events[0], ",", &events[1], ",{\"Id\":\"half"]);
    w.add(NewBlob { body: Some(body), ..blob });
    w.run_for(mins(60)).await;
    assert_eq!(String::from_utf8(w.bad_bytes()).unwrap(), "{\"Id\":\"half");
    w.assert_clean();
}

/// Events in a member of an object around them, as other APIs of Microsoft send theirs.
#[tokio::test]
async fn an_array_in_a_member_is_read() {
    let mut w = World::new().await;
    let blob = w.blob(3, mins(30));
    let events: Vec<String> = blob.events.iter().map(|e| String::from_utf8(e.clone()).unwrap()).collect();
    let body = joined(&["{\"value\":[", &events.join(","), "]}"]);
    let id = w.add(NewBlob { body: Some(body), ..blob });
    w.run_for(mins(60)).await;
    assert!(w.fetches(&id) <= 6, "{}", w.fetches(&id));
    assert_eq!(String::from_utf8(w.bad_bytes()).unwrap(), "{\"value\":[}", "what is around them");
    w.assert_clean();
}

/// A damaged body that differs each time is a passing fault for as long as the blob lives.
#[tokio::test]
async fn a_damaged_body_that_differs_each_time_is_never_given_up_early() {
    let mut w = World::new().await;
    w.sim.configure(|config| config.gzip = false);
    let id = w.add_aged(40, mins(30));
    for cut in 0..12 {
        w.sim.faults().next_for_blob(&id, 1, SimFault::WrongLength(-500 - cut));
    }
    w.run_for(hours(2)).await;
    assert_eq!(w.fetches(&id), 13);
    assert!(w.bad_bytes().is_empty());
    w.assert_clean();
}

/// Trap 55: `[]` settles and `null` is shipped, each once it came often enough.
#[tokio::test]
async fn an_empty_array_settles_and_null_is_shipped() {
    let mut w = World::new().await;
    let empty = w.add_aged(0, mins(30));
    let created = w.ago(mins(20));
    w.add(NewBlob { body: Some(b"null".to_vec()), ..NewBlob::at(created) });
    w.add_aged(1, mins(10));
    w.run_for(mins(80)).await;
    assert_eq!(w.fetches(&empty), 7);
    assert_eq!(w.bad_bytes(), b"null");
    assert!(w.complete_until(EXCHANGE) > Some(w.ago(mins(20))));
    w.assert_clean();
}

/// A body that is no array (a proxy's page) waits until shortly before the blob expires, then is shipped byte for byte.
#[tokio::test]
async fn a_proxys_page_is_shipped_only_when_the_blob_is_about_to_expire() {
    let mut w = World::new().await;
    let page = b"<html><body>denied by policy</body></html>".repeat(2_000);
    let created = w.ago(days(6) + hours(12));
    let blob = NewBlob { body: Some(page.clone()), ..NewBlob::at(created) };
    w.add(blob);
    w.add_aged(1, mins(10));
    let running = w.start();
    w.leap(hours(10), mins(2)).await;
    assert!(w.bad_bytes().is_empty());
    w.leap(hours(2) - mins(10), mins(2)).await;
    assert_eq!(w.bad_bytes(), page);
    assert!(w.gaps().is_empty());
    w.leap(hours(1), mins(5)).await;
    w.stop(running).await;
    assert_eq!(w.bad_bytes(), page, "shipped once");
    w.assert_clean();
}

/// An element no host could take is not held in memory; its bytes reach the operator in pieces.
#[tokio::test]
async fn an_oversize_element_is_shipped_in_pieces_and_its_neighbours_as_events() {
    let mut w = World::new().await;
    let blob = w.blob(2, mins(30));
    let events: Vec<String> = blob.events.iter().map(|e| String::from_utf8(e.clone()).unwrap()).collect();
    let long = format!(r#"{{"Id":"long","Text":"{}"}}"#, "x".repeat(17 * 1024 * 1024));
    let body = joined(&["[", &events[0], ",", &long, ",", &events[1], "]"]);
    w.sim.configure(|config| config.gzip = false);
    w.add(NewBlob { body: Some(body), ..blob });
    w.run_for(mins(60)).await;
    let shipped = w.bad_bytes();
    assert!(shipped.len() <= 1 << 20 && long.as_bytes().starts_with(&shipped), "{}", shipped.len());
    let rest: Vec<u64> =
        w.host.notices("m365_audit.bad_blob").iter().filter_map(|record| record["body_bytes"].as_u64()).collect();
    assert_eq!(rest, [(long.len() - shipped.len()) as u64]);
    let largest = w.host.notices("m365_audit.bad_blob").iter().map(|r| r.to_string().len()).max().unwrap();
    assert!(largest < 100_000, "{largest}");
    w.assert_clean();
}

/// Elements that are valid JSON and no objects are what Microsoft sent: shipped at once, the blob settles.
#[tokio::test]
async fn elements_that_are_no_objects_are_shipped_and_settle() {
    let mut w = World::new().await;
    let blob = w.blob(1, mins(30));
    let event = String::from_utf8(blob.events[0].clone()).unwrap();
    let body = joined(&["[null,17,\"text\",[1],", &event, "]"]);
    let id = w.add(NewBlob { body: Some(body), ..blob });
    w.run_for(mins(20)).await;
    assert_eq!(w.fetches(&id), 1);
    assert_eq!(String::from_utf8(w.bad_bytes()).unwrap(), "null17\"text\"[1]");
    w.assert_clean();
}

/// Traps 36, 38, 39: whatever shape events come in, they are all delivered, unaltered and dated right.
#[tokio::test]
async fn irregular_events_are_all_delivered_unaltered() {
    let mut w = World::new().await;
    w.all_types();
    let spec = m365_audit::sim::GenerateSpec {
        irregular_rate: 0.9,
        late_rate: 0.0,
        ..m365_audit::sim::GenerateSpec::new(60, 20, w.ago(hours(20)), w.ago(hours(1)))
    };
    w.generate(spec);
    w.once().await;
    w.assert_clean();
    let missing: Vec<_> = m365_audit::sim::Irregularity::ALL
        .iter()
        .filter(|shape| !w.sim.truth().irregularities.contains_key(*shape))
        .collect();
    assert!(missing.is_empty(), "not generated: {missing:?}");
}

/// An event in which data loss prevention found `4111…`, and bytes of a blob around it that cannot be parsed.
const FOUND: &str = "4111222233334444";

fn dlp_event() -> String {
    format!(
        r#"{{"CreationTime":"2026-05-01T10:00:00","Id":"dlp","Operation":"DlpRuleMatch","RecordType":11,"PolicyDetails":[{{"Rules":[{{"ConditionsMatched":{{"SensitiveInformation":[{{"SensitiveInformationDetections":{{"DetectedValues":[{{"Name":"{FOUND}","Value":"pay with {FOUND}"}},{{"Name":"{FOUND}"}}]}}}}]}}}}]}}]}}"#
    )
}

/// In records, and in the state: nothing of what was found, base64 or not. What is withheld is named by length and hash.
fn assert_withheld(w: &World, withheld: bool) {
    use base64::Engine as _;
    let mut seen = 0;
    for record in w.host.records() {
        assert!(!record.to_string().contains(FOUND), "{record}");
        if let Some(body) = record["body_base64"].as_str() {
            let body = base64::engine::general_purpose::STANDARD.decode(body).unwrap();
            assert!(!String::from_utf8_lossy(&body).contains(FOUND), "{record}");
        }
        if record["body_withheld"].is_string() {
            seen += 1;
            assert_eq!(record["body_sha256"].as_str().unwrap().len(), 64);
            assert!(record["body_bytes"].as_u64().unwrap() > 0 && record["content_id"].is_string());
        }
    }
    assert_eq!(seen > 0, withheld);
    for (key, value) in w.store.entries() {
        let found = value.windows(FOUND.len()).any(|bytes| bytes == FOUND.as_bytes());
        assert!(!found, "{key} holds what was found");
    }
}

/// README: what data loss prevention found leaves in no format; nor does it in what damage has left of a record.
#[tokio::test]
async fn what_was_found_does_not_leave_in_damaged_records() {
    let whole = dlp_event();
    let value = whole.find(FOUND).unwrap();
    let cases = [
        // Cut, at the body's end, in the second value.
        (format!("{{\"Id\":\"a\",\"Operation\":\"x\"}},{}", &whole[..whole.rfind(FOUND).unwrap() + 10]), "", true),
        // A bracket gone, a quote gone, a byte of the name damaged.
        (whole.replacen("}]}", "}}", 1), "]", true),
        (whole.replacen("\"Name", "Name", 1), "]", true),
        (whole.replacen("DetectedValues\"", "DetectedValxes", 1), "]", true),
        // The name is sound or damaged, and the event is one.
        (whole.clone(), "]", false),
        (whole.replacen("DetectedValues", "DetectedVal es", 1), "]", false),
        // No object, and no JSON at all.
        (format!("[{whole}x]"), "]", true),
        (format!("\"{}\"", whole.replace('"', "\\\"")), "]", true),
        // Longer than a record of such bytes: the name is in one piece, what was found in the next.
        (
            format!("{}{}{},", &whole[..value], "x".repeat(60 * 1024), &whole[value..]).replacen("}]}", "}}", 1),
            "]",
            true,
        ),
    ];
    for (damaged, end, withheld) in cases {
        let mut w = World::new().await;
        w.set("mask_detected_values", true);
        let blob = w.blob(2, mins(30));
        let events: Vec<String> = blob.events.iter().map(|e| String::from_utf8(e.clone()).unwrap()).collect();
        let body = joined(&["[", &events[0], ",", &events[1], ",", &damaged, end]);
        w.add(NewBlob { body: Some(body), ..blob });
        w.run_for(mins(60)).await;
        assert!(w.host.records().len() >= 3, "{damaged:.200}");
        assert_withheld(&w, withheld);
    }
}

/// Microsoft's side may send bytes without end: few records are made of them, and what they do not show they count.
#[tokio::test]
async fn what_one_blob_writes_as_bad_is_bounded() {
    for (element, count, shipped_at_once) in
        [("1", 200_000, true), ("{}", 200_000, true), ("{\"Id\":1 2}", 30_000, false)]
    {
        let mut w = World::new().await;
        let blob = w.blob(1, mins(30));
        let event = String::from_utf8(blob.events[0].clone()).unwrap();
        let bad = vec![element; count].join(",");
        let body = joined(&["[", &bad, ",", &event, "]"]);
        let id = w.add(NewBlob { body: Some(body), ..blob });
        w.run_for(mins(60)).await;
        let records = w.host.notices("m365_audit.bad_blob");
        assert!(records.len() <= 101, "{} records of {element}", records.len());
        let counted: u64 = records.iter().filter_map(|record| record["body_bytes"].as_u64()).sum();
        let told = w.bad_bytes().len() as u64 + counted;
        assert!(told >= (element.len() * count) as u64, "{told} bytes of {element}");
        assert_eq!(w.fetches(&id) == 1, shipped_at_once);
        w.assert_clean();
    }
}

/// README: the exception to "the whole of `raw` is the same".
#[tokio::test]
async fn a_version_damaged_on_the_way_may_be_delivered_beside_the_good_one_or_in_its_place() {
    let mut w = World::new().await;
    w.sim.configure(|config| config.gzip = false);
    let at = w.ago(mins(30));
    let event = |id: &str| {
        let time = at.strftime("%Y-%m-%dT%H:%M:%S").to_string();
        format!(r#"{{"CreationTime":"{time}","Id":"{id}","Operation":"Op","RecordType":1,"Text":"whole"}}"#)
    };
    let (first, second) = (event("first"), event("second"));
    let id = w.add(NewBlob::at(at).with_events([first.clone(), second.clone()]));
    // One byte of what identifies the first, one of the text of the second, and the end is cut off.
    let damaged = format!("[{},{},", first.replace("\"first\"", "\"fir5t\""), second.replace("whole", "wh0le"));
    let answer = SimFault::Answer { status: 200, content_type: "application/json".into(), body: damaged.into_bytes() };
    w.sim.faults().next_for_blob(&id, 1, answer);
    w.run_for(mins(30)).await;
    assert_eq!(w.fetches(&id), 2);
    let mut raw: Vec<(String, String)> = w
        .host
        .records()
        .iter()
        .map(|record| (record["raw"]["Id"].to_string(), record["raw"]["Text"].to_string()))
        .collect();
    raw.sort();
    let expected = [("\"fir5t\"", "\"whole\""), ("\"first\"", "\"whole\""), ("\"second\"", "\"wh0le\"")];
    assert_eq!(raw, expected.map(|(id, text)| (id.to_owned(), text.to_owned())));
}

/// A body that comes again counts again: it was received twice.
#[tokio::test]
async fn a_host_is_told_what_was_received() {
    let mut w = World::new().await;
    w.add_aged(3, mins(30));
    let empty = w.add_aged(2, mins(20));
    w.sim.faults().next_for_blob(&empty, 1, answer("[]"));
    w.run_for(mins(30)).await;
    assert_eq!(w.fetches(&empty), 2);
    // All events of `World` are of one length; around them are brackets and commas.
    let body = |events: usize| events * event(0, w.clock.now()).len() + events + 1;
    assert_eq!(w.host.received(), (body(3) + "[]".len() + body(2)) as u64);
    w.assert_clean();
}
