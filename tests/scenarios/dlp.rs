//! Routine reads and data loss prevention: what is flagged is delivered, whichever comes first, and what is not is
//! dropped only when that is known.

use bytes::Bytes;
use m365_audit::checkpoint::held::HeldPage;
use m365_audit::host::{Expected, Health, Op, StateStore as _};
use m365_audit::model::ContentType;
use m365_audit::sim::{CallKind, GenerateSpec, NewBlob, SimFault};
use m365_audit::source::report::LeftKind;
use serde_json::{Value, json};

use crate::host::Manner;
use crate::world::{World, hours, mins};

const SHAREPOINT: ContentType = ContentType::SharePoint;
const EXCHANGE: ContentType = ContentType::Exchange;
const GENERAL: ContentType = ContentType::General;
const DLP: ContentType = ContentType::Dlp;

fn item(n: u64) -> String {
    format!("9cc7be1c-dd5a-4895-b7cb-{n:012x}")
}

fn base(w: &World, id: String) -> Value {
    json!({
        "Id": id,
        "CreationTime": w.now().strftime("%Y-%m-%dT%H:%M:%S").to_string(),
        "OrganizationId": "11111111-2222-3333-4444-555555555555",
        "UserId": "someone@example.com",
    })
}

fn merged(mut event: Value, more: Value) -> String {
    event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    event.to_string()
}

/// The read of file `n`, the `copy`th of it.
fn file_read(w: &World, n: u64, copy: u64) -> String {
    let more = json!({
        "RecordType": 6, "Operation": "FileAccessed", "Workload": "SharePoint", "ListItemUniqueId": item(n),
        "ObjectId": format!("https://contoso.sharepoint.com/sites/a/Shared Documents/file {n}.docx"),
    });
    merged(base(w, format!("10000000-0000-4000-8000-{copy:04x}{n:08x}")), more)
}

/// A read of messages.
fn mail_read(w: &World, number: u64, messages: &[&str]) -> String {
    let items: Vec<Value> = messages.iter().map(|id| json!({"InternetMessageId": id})).collect();
    let more = json!({
        "RecordType": 50, "Operation": "MailItemsAccessed", "Workload": "Exchange", "OperationCount": items.len(),
        "Folders": [{"Path": "\\Inbox", "FolderItems": items}],
    });
    merged(base(w, format!("20000000-0000-4000-8000-{number:012x}")), more)
}

fn policy(name: &str) -> Value {
    json!({
        "Operation": "DlpRuleMatch", "UserType": 4,
        "PolicyDetails": [{"PolicyId": "p", "PolicyName": name, "Rules": [{"RuleName": "r", "Severity": "High"}]}],
    })
}

/// A match on file `n` by a policy.
fn file_match(w: &World, n: u64, name: &str) -> String {
    let more = merged(
        policy(name),
        json!({
            "RecordType": 11, "Workload": "SharePoint", "IncidentId": format!("incident-{n}-{name}"),
            "SharePointMetaData": {"UniqueID": item(n).to_uppercase(), "FileName": "x"},
        }),
    );
    let id = format!("30000000-0000-4000-8000-{:08x}{n:04x}", blake(name));
    merged(base(w, id), serde_json::from_str(&more).unwrap())
}

fn mail_match(w: &World, message: &str) -> String {
    let more = merged(
        policy("Mail"),
        json!({
            "RecordType": 13, "Workload": "Exchange", "IncidentId": "incident-mail", "ObjectId": message,
            "ExchangeMetaData": {"MessageID": message, "From": "a@b.c"},
        }),
    );
    merged(base(w, format!("40000000-0000-4000-8000-{:012x}", blake(message))), serde_json::from_str(&more).unwrap())
}

fn blake(text: &str) -> u32 {
    text.bytes().fold(7, |hash: u32, byte| hash.wrapping_mul(31).wrapping_add(byte.into()))
}

/// SharePoint, Exchange and the two types that reads wait for.
async fn world() -> World {
    let mut w = World::new().await;
    w.set("content_types", [SHAREPOINT, EXCHANGE, GENERAL, DLP].map(ContentType::as_str).to_vec());
    w.set("backfill_secs", 86_400);
    w.drop_routine(3600);
    w
}

impl World {
    fn publish(&mut self, content_type: ContentType, events: impl IntoIterator<Item = String>) -> String {
        let blob = NewBlob::at(self.now()).with_events(events);
        self.add_to(content_type, blob)
    }

    /// The records of reads delivered so far, by operation.
    fn reads(&self) -> Vec<Value> {
        let is_read = |r: &Value| ["FileAccessed", "MailItemsAccessed"].iter().any(|name| r["operation"] == **name);
        self.host.records().into_iter().filter(is_read).collect()
    }

    #[track_caller]
    fn assert_flagged(&self, n: usize) {
        let reads = self.reads();
        assert_eq!(reads.len(), n, "{reads:?}");
        for read in reads {
            assert_eq!(read["dlp"]["flagged"], true, "{read}");
            assert_eq!(read["severity"], "medium", "{read}");
            assert!(read["dlp"]["policy"][0].is_string() && read["dlp"]["incident"][0].is_string(), "{read}");
        }
    }

    /// Nothing of what is on disk waits any more.
    #[track_caller]
    fn assert_nothing_held(&self) {
        assert_eq!(self.watch.held(), 0);
        let left = self.store.entries().keys().filter(|key| key.contains("/dlp/held/")).count();
        assert_eq!(left, 0);
    }
}

#[tokio::test]
async fn a_read_after_its_match_is_shipped_at_once() {
    let mut w = world().await;
    let events = [file_match(&w, 1, "Cards"), mail_match(&w, "<A@Mail.Example>")];
    w.publish(DLP, events);
    let running = w.start();
    w.pass(mins(10)).await;
    let reads = [file_read(&w, 1, 0), file_read(&w, 2, 0)];
    w.publish(SHAREPOINT, reads);
    let reads = [mail_read(&w, 1, &["<x@y>", "<A@mail.example>"])];
    w.publish(EXCHANGE, reads);
    w.pass(mins(6)).await;
    w.assert_flagged(2);
    let read = w.reads().into_iter().find(|r| r["operation"] == "FileAccessed").unwrap();
    assert_eq!(read["dlp"], json!({"flagged": true, "policy": ["Cards"], "incident": ["incident-1-Cards"]}));
    assert_eq!(read["severity_rule"], json!(["SP-12"]));
    assert!(read["severity_reason"].as_str().unwrap().contains("policy Cards"), "{read}");
    w.pass(hours(2)).await;
    w.stop(running).await;
    w.assert_nothing_held();
    w.assert_flagged(2);
    w.assert_clean();
}

#[tokio::test]
async fn a_read_before_its_match_waits_on_disk_and_is_released_by_it() {
    let mut w = world().await;
    let reads: Vec<String> = (1..=50).map(|n| file_read(&w, n, 0)).collect();
    w.publish(SHAREPOINT, reads);
    let reads = [mail_read(&w, 1, &["<x@y>", "<z@y>"]), mail_read(&w, 2, &["<other@y>"])];
    w.publish(EXCHANGE, reads);
    let running = w.start();
    w.pass(mins(40)).await;
    assert_eq!((w.host.event_count(), w.watch.held()), (0, 52));
    let matches = [file_match(&w, 7, "Cards"), file_match(&w, 7, "Names"), mail_match(&w, "<z@y>")];
    w.publish(DLP, matches);
    w.pass(mins(6)).await;
    w.assert_flagged(2);
    let read = w.reads().into_iter().find(|r| r["operation"] == "FileAccessed").unwrap();
    assert_eq!(read["dlp"]["policy"], json!(["Cards", "Names"]));
    assert_eq!(read["raw"]["ListItemUniqueId"], json!(item(7)));
    assert_eq!(w.watch.held(), 50);
    w.pass(hours(2)).await;
    w.stop(running).await;
    w.assert_nothing_held();
    w.assert_flagged(2);
    w.assert_clean();
}

/// The match may come in any content type, in records of data loss prevention.
#[tokio::test]
async fn a_match_in_another_content_type_counts() {
    for (content_type, other_first) in [(GENERAL, false), (EXCHANGE, false), (SHAREPOINT, true), (GENERAL, true)] {
        let mut w = world().await;
        let read = [file_read(&w, 1, 0)];
        let found = [file_match(&w, 1, "Cards")];
        if other_first {
            w.publish(content_type, found.clone());
        } else {
            w.publish(SHAREPOINT, read.clone());
        }
        let running = w.start();
        w.pass(mins(12)).await;
        if other_first {
            w.publish(SHAREPOINT, read);
        } else {
            w.publish(content_type, found);
        }
        w.pass(mins(12)).await;
        w.stop(running).await;
        w.assert_flagged(1);
        w.assert_clean();
    }
}

#[tokio::test]
async fn reads_and_matches_in_one_blob_find_each_other() {
    let mut w = world().await;
    let events = [file_read(&w, 1, 0), file_match(&w, 1, "Cards"), file_read(&w, 1, 1), file_read(&w, 2, 0)];
    w.publish(SHAREPOINT, events);
    w.run_for(mins(12)).await;
    w.assert_flagged(2);
    w.assert_clean();
}

/// Dropped only once both types are complete an hour past it, and then counted as gone.
#[tokio::test]
async fn an_unflagged_read_is_dropped_when_both_types_are_complete_past_it() {
    let mut w = world().await;
    let read = [file_read(&w, 1, 0)];
    w.publish(SHAREPOINT, read.clone());
    let running = w.start();
    w.pass(mins(62)).await;
    assert_eq!(w.watch.held(), 1);
    w.pass(mins(10)).await;
    w.assert_nothing_held();
    // Its event is known: a second copy is not put on hold again.
    w.publish(SHAREPOINT, read);
    w.pass(mins(10)).await;
    w.assert_nothing_held();
    w.stop(running).await;
    assert_eq!(w.reads().len(), 0);
    w.assert_clean();
}

#[tokio::test]
async fn what_is_on_hold_survives_a_stop_and_a_crash() {
    for crash in [false, true] {
        let mut w = world().await;
        let reads = [file_read(&w, 1, 0), file_read(&w, 2, 0)];
        w.publish(SHAREPOINT, reads);
        let running = w.start();
        w.pass(mins(12)).await;
        assert_eq!(w.watch.held(), 2);
        if crash {
            w.kill(running).await
        } else {
            drop(w.stop(running).await)
        }
        let found = [file_match(&w, 2, "Cards")];
        w.publish(DLP, found);
        w.clock.advance(mins(30));
        w.run_for(mins(12)).await;
        w.assert_flagged(1);
        w.run_for(mins(40)).await;
        w.assert_nothing_held();
        w.assert_flagged(1);
        w.assert_clean();
    }
}

/// Wall time drops nothing: with `DLP.All` unread for hours, its matches still find what they flag.
#[tokio::test]
async fn reads_wait_for_a_type_that_lags_however_long() {
    for content_type in [DLP, GENERAL] {
        let mut w = world().await;
        w.sim.faults().next_for_type(CallKind::Content, content_type, u32::MAX, SimFault::InternalError);
        let running = w.start();
        w.pass(mins(12)).await;
        let reads = [file_read(&w, 1, 0), file_read(&w, 2, 0)];
        w.publish(SHAREPOINT, reads);
        let found = [file_match(&w, 1, "Cards")];
        w.publish(content_type, found);
        w.leap(hours(30), mins(5)).await;
        assert_eq!((w.watch.held(), w.reads().len()), (2, 0));
        w.sim.faults().clear();
        w.pass(mins(30)).await;
        w.stop(running).await;
        w.assert_flagged(1);
        w.assert_nothing_held();
        w.assert_clean();
    }
}

/// One blob of matches that cannot be read holds back the drop, too.
#[tokio::test]
async fn reads_wait_for_a_blob_of_matches_that_cannot_be_read() {
    let mut w = world().await;
    let reads = [file_read(&w, 1, 0), file_read(&w, 2, 0)];
    w.publish(SHAREPOINT, reads);
    let found = [file_match(&w, 1, "Cards")];
    let blob = w.publish(DLP, found);
    w.sim.faults().next_for_blob(&blob, u32::MAX, SimFault::InternalError);
    let running = w.start();
    w.leap(hours(10), mins(5)).await;
    assert_eq!((w.watch.held(), w.reads().len()), (2, 0));
    w.sim.faults().clear();
    w.pass(mins(20)).await;
    w.stop(running).await;
    w.assert_flagged(1);
    w.assert_nothing_held();
    w.assert_clean();
}

/// Without the permission the type is not waited for; when it is granted it is again.
#[tokio::test]
async fn a_parked_dlp_type_is_not_waited_for() {
    let mut w = world().await;
    w.sim.set_roles(["ActivityFeed.Read"]);
    let reads = [file_read(&w, 1, 0)];
    w.publish(SHAREPOINT, reads);
    let running = w.start();
    w.pass(mins(50)).await;
    assert_eq!(w.watch.held(), 1, "what else it waits for is waited for");
    w.pass(mins(25)).await;
    w.assert_nothing_held();
    assert!(
        matches!(w.host.health(), Health::Degraded { ref why, .. } if why.contains("DLP.All")),
        "{}",
        w.host.health()
    );
    w.sim.set_roles(["ActivityFeed.Read", "ActivityFeed.ReadDlp"]);
    w.sim.revoke_tokens();
    w.pass(mins(40)).await;
    let reads = [file_read(&w, 2, 0)];
    w.publish(SHAREPOINT, reads);
    w.sim.faults().next_for_type(CallKind::Content, DLP, u32::MAX, SimFault::InternalError);
    w.leap(hours(4), mins(5)).await;
    assert_eq!(w.watch.held(), 1, "a type that only fails is waited for");
    w.sim.faults().clear();
    w.sim.set_roles(["ActivityFeed.Read"]);
    w.sim.revoke_tokens();
    w.pass(mins(20)).await;
    assert_eq!(w.watch.held(), 1, "a type that worked and is refused for a moment is waited for");
    w.sim.set_roles(["ActivityFeed.Read", "ActivityFeed.ReadDlp"]);
    w.sim.revoke_tokens();
    w.pass(mins(20)).await;
    w.stop(running).await;
    w.assert_nothing_held();
    w.assert_clean();
}

/// The same from one single pass to the next: what waits for a type that failed, is refused now and was listed within
/// the last days stays on hold, and so it does while a blob of it that cannot be read holds its position back.
#[tokio::test]
async fn a_single_pass_waits_for_a_dlp_type_that_an_earlier_one_read() {
    for (failing, comes_back) in [(hours(2), true), (hours(2), false), (hours(80), true)] {
        let mut w = world().await;
        w.once().await;
        let created = w.now();
        let reads = [file_read(&w, 1, 0), file_read(&w, 2, 0)];
        w.publish(SHAREPOINT, reads);
        let found = [file_match(&w, 1, "Cards")];
        let blob = w.add_to(DLP, NewBlob::at(created).with_events(found));
        w.sim.faults().next_for_blob(&blob, u32::MAX, SimFault::InternalError);
        w.clock.advance(failing);
        w.once().await;
        w.sim.faults().clear();
        w.sim.set_roles(["ActivityFeed.Read"]);
        w.sim.revoke_tokens();
        w.clock.advance(hours(1));
        w.once().await;
        assert_eq!((w.watch.held(), w.reads().len()), (2, 0), "a refusal may pass");
        if comes_back {
            w.sim.set_roles(["ActivityFeed.Read", "ActivityFeed.ReadDlp"]);
            w.sim.revoke_tokens();
        }
        w.clock.advance(hours(73));
        w.once().await;
        w.assert_nothing_held();
        assert_eq!(w.reads().len(), if comes_back { 1 } else { 0 });
    }
}

/// With neither type configured nothing tells reads apart: they are dropped as they come.
#[tokio::test]
async fn without_the_types_that_bring_matches_nothing_is_held() {
    let mut w = world().await;
    w.set("content_types", vec![SHAREPOINT.as_str()]);
    let reads = [file_read(&w, 1, 0)];
    w.publish(SHAREPOINT, reads);
    w.run_for(mins(12)).await;
    w.assert_nothing_held();
    assert_eq!(w.reads().len(), 0);
    // A match that comes all the same is heeded.
    let events = [file_match(&w, 2, "Cards"), file_read(&w, 2, 0)];
    w.publish(SHAREPOINT, events);
    w.run_for(mins(12)).await;
    let reads = [file_read(&w, 2, 1)];
    w.publish(SHAREPOINT, reads);
    w.run_for(mins(12)).await;
    assert!(w.reads().iter().any(|read| read["dlp"]["flagged"] == true));
}

/// Beyond the bound the oldest are shipped with a marker; nothing is lost, nothing stops.
#[tokio::test]
async fn beyond_the_bound_the_oldest_are_shipped_as_undetermined() {
    let mut w = world().await;
    w.set("hold_bytes_max", 65_536);
    w.sim.faults().next_for_type(CallKind::Content, DLP, u32::MAX, SimFault::InternalError);
    let running = w.start();
    for n in 0..60 {
        let reads: Vec<String> = (0..5).map(|copy| file_read(&w, n, copy)).collect();
        w.publish(SHAREPOINT, reads);
        w.pass(mins(1)).await;
    }
    w.pass(mins(10)).await;
    let reads = w.reads();
    assert!(reads.len() + w.watch.held() == 300 && reads.len() >= 50, "{} {}", reads.len(), w.watch.held());
    assert!(w.watch.held() > 20);
    for (at, read) in reads.iter().enumerate() {
        assert_eq!(read["dlp"], json!({"undetermined": true}), "{read}");
        assert_eq!(read["severity"], "info");
        assert_eq!(read["raw"]["ListItemUniqueId"], json!(item(at as u64 / 5)), "the oldest first");
    }
    let held: usize =
        w.store.entries().iter().filter(|(key, _)| key.contains("/dlp/held/")).map(|(_, v)| v.len()).sum();
    assert!(held <= 65_536, "{held}");
    // What waits still finds its match.
    let found = [file_match(&w, 59, "Cards")];
    w.publish(DLP, found);
    w.sim.faults().clear();
    w.pass(mins(90)).await;
    w.stop(running).await;
    assert_eq!(w.reads().iter().filter(|read| read["dlp"]["flagged"] == true).count(), 5);
    w.assert_nothing_held();
    w.assert_clean();
}

/// A released read that the host refuses stays on disk until it is taken; one it rejects is set aside.
#[tokio::test]
async fn a_released_read_stays_on_disk_until_the_host_has_it() {
    let mut w = world().await;
    let reads = [file_read(&w, 1, 0), file_read(&w, 2, 0), file_read(&w, 3, 0)];
    w.publish(SHAREPOINT, reads);
    let running = w.start();
    w.pass(mins(12)).await;
    w.host.answer(Manner::Refuse);
    let found = [file_match(&w, 1, "Cards"), file_match(&w, 2, "Cards")];
    w.publish(GENERAL, found);
    w.pass(mins(20)).await;
    assert_eq!((w.watch.held(), w.reads().len()), (3, 0));
    w.host.answer(Manner::RejectIf(|record| record["raw"]["ListItemUniqueId"] == json!(item(2))));
    w.pass(mins(10)).await;
    w.assert_flagged(1);
    assert_eq!(w.watch.held(), 1);
    let aside = w.store.entries().into_iter().filter(|(key, _)| key.contains("/aside/")).collect::<Vec<_>>();
    assert_eq!(aside.len(), 1);
    assert!(String::from_utf8_lossy(&aside[0].1).contains("flagged"));
    w.stop(running).await;
    w.host.answer(Manner::Take);
    w.run_for(mins(70)).await;
    w.assert_flagged(2);
    w.assert_nothing_held();
    w.assert_clean();
}

/// Copies of one read in other blobs, before and after it is released, are one read.
#[tokio::test]
async fn copies_of_a_held_read_are_one_read() {
    let mut w = world().await;
    let read = file_read(&w, 1, 0);
    let other = file_read(&w, 2, 0);
    w.publish(SHAREPOINT, [read.clone(), other.clone(), read.clone()]);
    w.publish(SHAREPOINT, [read.clone()]);
    let running = w.start();
    w.pass(mins(12)).await;
    w.publish(SHAREPOINT, [other.clone(), read.clone()]);
    w.pass(mins(12)).await;
    assert_eq!(w.watch.held(), 2);
    let found = [file_match(&w, 1, "Cards")];
    w.publish(DLP, found);
    w.pass(mins(12)).await;
    w.publish(SHAREPOINT, [read]);
    w.pass(mins(12)).await;
    w.stop(running).await;
    w.assert_flagged(1);
    w.assert_clean();
}

/// A second match of a file adds to what is known of it, also after a restart.
#[tokio::test]
async fn matches_of_one_file_add_up_over_restarts() {
    let mut w = world().await;
    for name in ["Cards", "Names", "Cards"] {
        let found = [file_match(&w, 1, name)];
        w.publish(DLP, found);
        w.run_for(mins(12)).await;
    }
    let read = [file_read(&w, 1, 0)];
    w.publish(SHAREPOINT, read);
    w.run_for(mins(12)).await;
    w.assert_flagged(1);
    assert_eq!(w.reads()[0]["dlp"]["policy"], json!(["Cards", "Names"]));
    w.assert_clean();
}

/// While what is known of an item cannot be read, its blob fails, and neither a flagged read nor what came with it is lost.
#[tokio::test]
async fn a_flag_that_cannot_be_read_now_fails_the_blob_and_loses_nothing() {
    let mut w = world().await;
    let found = [file_match(&w, 1, "Cards")];
    w.publish(DLP, found);
    w.run_for(mins(12)).await;
    for part in ["/dlp/flags/", "/dlp/"] {
        let running = w.start();
        w.pass(mins(1)).await;
        *running.store.unreadable.lock().unwrap() = Some(part);
        let copy = w.sim.truth().events.len() as u64;
        let events = [
            w.events(1, w.now()).remove(0),
            file_read(&w, 900 + copy, copy),
            file_read(&w, 1, copy),
            file_match(&w, 1, &format!("Names {copy}")),
        ];
        w.publish(SHAREPOINT, events);
        let before = w.reads().len();
        w.pass(mins(12)).await;
        assert_eq!(w.reads().len(), before);
        *running.store.unreadable.lock().unwrap() = None;
        w.pass(mins(12)).await;
        assert_eq!(w.reads().len(), before + 1);
        w.stop(running).await;
        w.assert_nothing_lost();
    }
    w.run_for(mins(80)).await;
    w.assert_nothing_held();
    w.assert_flagged(2);
    w.assert_clean();
}

/// A flag is forgotten after its time, and not before.
#[tokio::test]
async fn a_flag_ages() {
    let mut w = world().await;
    w.set("dlp_flag_secs", 86_400);
    let found = [file_match(&w, 1, "Cards")];
    w.publish(DLP, found);
    w.run_for(mins(12)).await;
    w.clock.advance(hours(20));
    let read = [file_read(&w, 1, 0)];
    w.publish(SHAREPOINT, read);
    w.run_for(mins(12)).await;
    w.assert_flagged(1);
    w.clock.advance(hours(6));
    w.run_for(mins(12)).await;
    assert_eq!(w.store.entries().keys().filter(|key| key.contains("/dlp/flags/")).count(), 0);
}

/// Many small pages of flags become few, and none is lost.
#[tokio::test]
async fn pages_of_flags_are_folded() {
    let mut w = world().await;
    let running = w.start();
    w.pass(mins(6)).await;
    for n in 0..70 {
        let found = [file_match(&w, n, "Cards")];
        w.publish(DLP, found);
    }
    w.pass(mins(12)).await;
    let pages = |w: &World| w.store.entries().keys().filter(|key| key.contains("/dlp/flags/")).count();
    assert!(pages(&w) < 20, "{}", pages(&w));
    w.stop(running).await;
    let reads: Vec<String> = (0..80).map(|n| file_read(&w, n, 0)).collect();
    w.publish(SHAREPOINT, reads);
    w.run_for(mins(12)).await;
    w.assert_flagged(70);
    w.assert_clean();
}

/// With dropping switched off at a restart, what waited is shipped.
#[tokio::test]
async fn what_waits_is_shipped_when_nothing_is_dropped_any_more() {
    let mut w = world().await;
    let reads = [file_read(&w, 1, 0), file_read(&w, 2, 0)];
    w.publish(SHAREPOINT, reads);
    w.run_for(mins(12)).await;
    assert_eq!(w.watch.held(), 2);
    w.set("drop_routine", false);
    w.run_for(mins(6)).await;
    w.assert_nothing_held();
    assert_eq!(w.reads().len(), 2);
    let reads = [file_read(&w, 3, 0)];
    w.publish(SHAREPOINT, reads);
    w.run_for(mins(12)).await;
    assert_eq!(w.reads().len(), 3);
    assert_eq!(w.reads()[2]["dlp"], Value::Null);
}

/// What was put on hold as an event and is none when it is to be shipped is shipped as the bytes it is, once.
#[tokio::test]
async fn what_can_be_read_no_more_when_it_is_to_be_shipped_is_shipped_as_its_bytes() {
    let mut w = world().await;
    let reads = [file_read(&w, 1, 0), file_read(&w, 2, 0)];
    w.publish(SHAREPOINT, reads);
    w.run_for(mins(12)).await;
    assert_eq!(w.watch.held(), 2);
    let (key, value) = w.store.entries().into_iter().find(|(key, _)| key.contains("/dlp/held/")).unwrap();
    let mut page = HeldPage::decode(&key, &value).unwrap();
    page.records[0].raw = Bytes::from_static(b"{\"Id\":");
    w.store.commit(vec![Op::Put { key, value: page.encode(), expected: Expected::Any }]).await.unwrap();
    w.set("drop_routine", false);
    w.run_for(mins(6)).await;
    w.assert_nothing_held();
    assert_eq!(w.reads().len(), 1);
    let bad: Vec<Value> = w.host.records().into_iter().filter(|r| r["event_type"] == "m365_audit.bad_blob").collect();
    assert_eq!(bad.len(), 1);
    assert_eq!(bad[0]["body_base64"], "eyJJZCI6");
    w.run_for(mins(12)).await;
    assert_eq!(w.reads().len(), 1);
}

/// What waits on disk holds nothing that is masked.
#[tokio::test]
async fn what_waits_holds_nothing_that_was_found() {
    let mut w = world().await;
    w.set("mask_detected_values", true);
    let read = file_read(&w, 1, 0).replacen('{', r#"{"DetectedValues":[{"Name":"4111222233334444"}],"#, 1);
    w.publish(SHAREPOINT, [read]);
    w.run_for(mins(12)).await;
    assert_eq!(w.watch.held(), 1);
    let (key, value) = w.store.entries().into_iter().find(|(key, _)| key.contains("/dlp/held/")).unwrap();
    let page = HeldPage::decode(&key, &value).unwrap();
    let kept = String::from_utf8(page.records[0].raw.to_vec()).unwrap();
    assert!(!kept.contains("4111") && kept.contains("[masked]"), "{kept}");
}

/// A single pass reads matches first, holds what is too young to tell, says so without an error, and the next decides.
#[tokio::test]
async fn a_single_pass_leaves_the_youngest_reads_on_hold_for_the_next() {
    let mut w = world().await;
    for age in [5, 30, 120, 600] {
        let created = w.ago(mins(age));
        let reads = [file_read(&w, age, 0), file_read(&w, 1000 + age, 0)];
        w.add_to(SHAREPOINT, NewBlob::at(created).with_events(reads));
    }
    let found = [file_match(&w, 120, "Cards"), file_match(&w, 5, "Cards")];
    w.add_to(DLP, NewBlob::at(w.ago(mins(3))).with_events(found));
    let report = w.once().await;
    w.assert_flagged(2);
    assert_eq!(w.watch.held(), 3);
    assert_eq!(report.worst(), None, "{:?}", report.left);
    let left = report.left.iter().find(|left| left.kind == LeftKind::Held).expect("it is said");
    assert!(left.why.contains("3 routine reads"), "{}", left.why);
    w.clock.advance(mins(20));
    let found = [file_match(&w, 30, "Cards")];
    w.publish(GENERAL, found);
    w.clock.advance(mins(1));
    w.once().await;
    w.assert_flagged(3);
    w.clock.advance(hours(2));
    let report = w.once().await;
    assert!(report.left.is_empty(), "{:?}", report.left);
    w.assert_nothing_held();
    w.assert_flagged(3);
    w.assert_clean();
}

/// A small life with everything in it, up to the moment the process dies in one of the commits that concern the hold.
async fn life(commits: u64, steps: usize) -> (World, bool) {
    let mut w = world().await;
    w.drop_routine(600);
    let found = [file_match(&w, 1, "Cards")];
    w.publish(DLP, found);
    let reads = [file_read(&w, 1, 0), file_read(&w, 2, 0), file_read(&w, 3, 0)];
    w.publish(SHAREPOINT, reads);
    let running = w.start();
    *running.store.dies.lock().unwrap() = Some((commits, steps));
    w.until_within(mins(6), || running.store.is_dead()).await;
    let events = [file_match(&w, 2, "Cards"), file_read(&w, 4, 0)];
    w.publish(GENERAL, events);
    w.until_within(mins(24), || running.store.is_dead()).await;
    let died = running.store.is_dead();
    w.kill(running).await;
    (w, died)
}

/// A crash in every commit that touches held reads or flags: before it, after it, and after each of its steps on a store
/// that is not all or nothing. Flagged reads are delivered, the others are not, nothing stays behind.
#[tokio::test]
async fn a_crash_in_any_commit_loses_no_flagged_read() {
    let mut deaths = 0;
    for commits in 0.. {
        let mut died_at_all = false;
        for steps in [0, 1, 2, 3, 4, 5, usize::MAX] {
            let (w, died) = life(commits, steps).await;
            died_at_all |= died;
            deaths += u32::from(died);
            w.run_for(mins(24)).await;
            let mut flagged: Vec<String> =
                w.reads().iter().map(|r| r["raw"]["ListItemUniqueId"].as_str().unwrap().to_owned()).collect();
            flagged.sort();
            flagged.dedup();
            assert_eq!(flagged, [item(1), item(2)], "commit {commits}, {steps} steps");
            assert!(w.reads().iter().all(|r| r["dlp"]["flagged"] == true));
            w.assert_nothing_held();
            w.assert_nothing_lost();
        }
        if !died_at_all {
            break;
        }
    }
    assert!(deaths >= 5 * 7, "{deaths}");
}

/// A generated day: every read that was matched in time is there, whatever order the blobs are read in.
#[tokio::test]
async fn of_a_generated_day_every_flagged_read_is_delivered() {
    for (seed, once) in [(3, true), (4, false), (5, false)] {
        let mut w = World::with(m365_audit::sim::SimConfig { seed, ..Default::default() }).await;
        w.all_types();
        w.drop_routine(3600);
        w.generate(GenerateSpec {
            late_rate: 0.0,
            linked_rate: 0.5,
            ..GenerateSpec::new(120, 12, w.ago(hours(20)), w.ago(mins(1)))
        });
        let truth = w.sim.truth().dropping(3600);
        let optional = truth.events.iter().filter(|event| event.optional).count();
        if once {
            w.once().await;
            w.clock.advance(hours(2));
            w.once().await;
        } else {
            let running = w.start();
            w.pass(mins(30)).await;
            w.kill(running).await;
            w.run_for(hours(2)).await;
        }
        w.assert_nothing_held();
        w.assert_nothing_lost();
        let flagged = w.reads().iter().filter(|read| read["dlp"]["flagged"] == true).count();
        let dropped = truth.event_count() as usize - w.compare().expected as usize;
        assert!(flagged > 50 && optional > 100 && dropped > 50, "seed {seed}: {flagged} {optional} {dropped}");
    }
}
