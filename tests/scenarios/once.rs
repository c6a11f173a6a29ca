//! A single pass: from the origin, everything that is listed, and an honest account of what was left.

use m365_audit::model::ContentType;
use m365_audit::sim::{CallKind, NewBlob, SimConfig, SimFault};
use m365_audit::source::SourceError;
use m365_audit::source::report::LeftKind;

use crate::world::{EXCHANGE, World, days, hours, mins};

/// The pass begins at the origin and reads to now; nothing older is listed.
#[tokio::test]
async fn a_single_pass_reads_from_its_origin_to_now() {
    let mut w = World::new().await;
    w.set("backfill_secs", 86_400);
    let older = w.add_aged(2, hours(25));
    for n in 0..23 {
        w.add_aged(2, hours(n) + mins(10));
    }
    let report = w.once().await;
    assert!(report.left.is_empty(), "{:?}", report.left);
    assert_eq!(w.fetches(&older), 0);
    assert_eq!(w.compare().lost.len(), 2, "those before the origin");
    w.assert_manners();
    // A second pass delivers only what is new.
    let before = w.host.event_count();
    w.add_now(3);
    w.clock.advance(mins(1));
    w.once().await;
    assert_eq!(w.host.event_count(), before + 3);
    assert!(w.compare().duplicated.is_empty());
}

/// A pass that takes seconds declares what is no longer listed, as one that runs on does.
#[tokio::test]
async fn a_single_pass_declares_its_gaps_however_short_it_is() {
    let mut w = World::new().await;
    w.add_aged(2, hours(1));
    w.once().await;
    w.leap(days(9), hours(12)).await;
    w.add_aged(2, mins(30));
    w.once().await;
    assert_eq!((w.gaps().len(), w.host.notices("m365_audit.gap").len()), (1, 1));
    assert!(w.complete_until(EXCHANGE).unwrap() > w.ago(hours(1)));
    w.once().await;
    assert_eq!(w.gaps().len(), 1, "declared once");
}

/// DLP comes first and alone.
#[tokio::test]
async fn dlp_comes_first() {
    let mut w = World::new().await;
    w.all_types();
    for content_type in ContentType::ALL {
        for n in 0..5 {
            let blob = w.blob(2, mins(30 + n));
            w.add_to(content_type, blob);
        }
    }
    w.once().await;
    let mut requests = w.sim.requests();
    requests.retain(|r| matches!(r.kind, CallKind::Content | CallKind::Blob));
    let is_dlp = |r: &m365_audit::sim::RequestLog| {
        r.content_type.as_deref() == Some("DLP.All")
            || r.blob_id.as_deref().is_some_and(|id| id.to_ascii_lowercase().contains("dlp_all"))
    };
    let first_other = requests.iter().position(|r| !is_dlp(r)).unwrap();
    let last_dlp = requests.iter().rposition(is_dlp).unwrap();
    assert!(last_dlp < first_other, "{last_dlp} {first_other}");
    w.assert_clean();
}

/// What failed ten times is left and named; everything else is delivered; the next pass takes it up again.
#[tokio::test]
async fn what_failed_ten_times_is_left_and_taken_up_by_the_next_pass() {
    let mut w = World::new().await;
    let ids: Vec<String> = (0..10).map(|n| w.add_aged(2, mins(30 + n))).collect();
    w.sim.faults().next_for_blob(&ids[3], u32::MAX, SimFault::InternalError);
    w.sim.faults().next_for_blob(&ids[7], u32::MAX, SimFault::ContentMissing);
    let report = w.once().await;
    assert_eq!(report.worst(), Some(LeftKind::Passing));
    assert!(report.left[0].why.contains("2 blobs"), "{:?}", report.left);
    assert_eq!((w.fetches(&ids[3]), w.fetches(&ids[7])), (10, 10));
    assert_eq!(w.host.event_count(), 16);
    w.sim.faults().clear();
    w.clock.advance(hours(1));
    let report = w.once().await;
    assert!(report.left.is_empty(), "{:?}", report.left);
    w.assert_clean();
}

/// A listing that fails ten times leaves its stream, says so, and the next pass reads it.
#[tokio::test]
async fn a_listing_that_keeps_failing_is_left_and_read_by_the_next_pass() {
    let mut w = World::new().await;
    w.set("content_types", vec![EXCHANGE.as_str(), "Audit.General"]);
    w.add_aged(2, mins(30));
    w.add_aged(2, hours(40));
    let blob = w.blob(2, mins(30));
    w.add_to(ContentType::General, blob);
    w.sim.faults().next_for_type(CallKind::Content, EXCHANGE, u32::MAX, SimFault::InternalError);
    let report = w.once().await;
    assert!(report.worst().is_some());
    assert_eq!(w.host.event_count(), 2, "the other stream is read");
    w.sim.faults().clear();
    w.once().await;
    w.assert_clean();
}

/// Missing `ActivityFeed.ReadDlp` is said and is no error; any other missing permission is one.
#[tokio::test]
async fn a_missing_dlp_permission_is_optional() {
    let mut w = World::new().await;
    w.all_types();
    w.sim.set_roles(["ActivityFeed.Read"]);
    w.add_aged(2, mins(30));
    let report = w.once().await;
    assert_eq!(report.worst(), None, "{:?}", report.left);
    assert!(report.left.iter().any(|left| left.kind == LeftKind::Optional && left.why.contains("ReadDlp")));
    w.assert_clean();
}

/// Sign-in that fails ends a single pass with the error.
#[tokio::test]
async fn a_single_pass_that_cannot_sign_in_ends_with_the_error() {
    let w = World::with(SimConfig { token_error: Some(7_000_215), ..SimConfig::default() }).await;
    let running = w.start_once();
    let error = w.ended(running).await.unwrap_err();
    assert!(matches!(error, SourceError::Api { .. }) && error.to_string().contains("7000215"), "{error}");
    assert!(w.requests(CallKind::Token).len() <= 3);
}

/// Killed in the middle, again and again: no pass loses anything, and duplicates are only what was in flight.
#[tokio::test]
async fn a_single_pass_killed_again_and_again_loses_nothing() {
    let mut w = World::new().await;
    for n in 1..60 {
        w.add_aged(10, hours(n));
    }
    let mut in_flight = 0;
    for kill_after in [1, 7, 40, 120, 300, 310] {
        let running = w.start_once();
        w.until_within(mins(5), || w.host.event_count() >= kill_after).await;
        running.store.kill();
        let before = w.host.event_count();
        w.rest().await;
        in_flight += w.host.event_count() - before;
        w.kill(running).await;
    }
    w.once().await;
    w.assert_nothing_lost();
    // A batch is a blob here; each kill costs at most what was settling.
    assert!(w.compare().duplicated.len() <= in_flight + 6 * 10 * 32, "{}", w.compare());
}

/// A late blob found by a later pass is delivered though the position has passed it.
#[tokio::test]
async fn a_late_blob_is_found_by_a_later_pass() {
    let mut w = World::new().await;
    w.add_aged(2, mins(30));
    w.once().await;
    let late = NewBlob { listable_from: Some(w.now()), ..w.blob(2, days(2)) };
    w.add(late);
    w.once().await;
    w.assert_clean();
}

/// A quota that is always used up ends a single pass in the end, with what is left named.
#[tokio::test]
async fn a_single_pass_ends_though_every_fetch_is_throttled() {
    let mut w = World::new().await;
    for n in 0..5 {
        w.add_aged(2, mins(30 + n));
    }
    let fault = SimFault::Throttled { status: 403, retry_after_secs: None, single_quoted: false };
    w.sim.faults().rate(CallKind::Blob, 1.0, fault);
    let report = w.once().await;
    assert_eq!(report.worst(), Some(LeftKind::Passing), "{:?}", report.left);
    w.sim.faults().clear();
    w.once().await;
    w.assert_clean();
}
