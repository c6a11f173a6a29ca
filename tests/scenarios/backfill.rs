//! A back-fill beside the loop: its share of the quota, its duplicates, what it leaves.

use std::sync::Arc;

use m365_audit::sim::{CallKind, SimFault};
use m365_audit::source::backfill::{
    BackfillAsk, BackfillError, BackfillProgress, BackfillRequest, BackfillResult, BackfillSender,
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::world::{EXCHANGE, World, hours, mins};

struct Backfill {
    begun: oneshot::Receiver<Arc<BackfillProgress>>,
    answer: oneshot::Receiver<Result<BackfillResult, BackfillError>>,
    stop: CancellationToken,
}

fn ask(counter: &BackfillSender, ask: BackfillAsk) -> Backfill {
    let (begun_sender, begun) = oneshot::channel();
    let (answer_sender, answer) = oneshot::channel();
    let stop = CancellationToken::new();
    counter.hand_in(BackfillRequest { ask, begun: begun_sender, stop: stop.clone(), answer: answer_sender }).unwrap();
    Backfill { begun, answer, stop }
}

fn range(w: &World, from_hours: u64, again: bool) -> BackfillAsk {
    BackfillAsk::Range { from: w.ago(hours(from_hours)), to: None, content_types: Vec::new(), again }
}

impl Backfill {
    async fn ended(&mut self, w: &World) -> Result<BackfillResult, BackfillError> {
        let mut result = None;
        w.until("the back-fill ends", || {
            result = result.take().or_else(|| self.answer.try_recv().ok());
            result.is_some()
        })
        .await;
        result.unwrap()
    }
}

/// Half the quota in any 60 seconds, and a new blob is not kept waiting by it.
#[tokio::test]
async fn a_backfill_takes_at_most_half_the_quota_and_does_not_delay_what_is_new() {
    let mut w = World::new().await;
    w.set("max_requests_per_minute", 60).set("backfill_secs", 3600).set("poll_interval_secs", 60);
    for n in 2..150 {
        w.add_aged(2, mins(n * 15));
    }
    let (running, counter) = w.start_with_desk();
    w.pass(mins(5)).await;
    let before = w.sim.requests().len();
    let mut backfill = ask(&counter, range(&w, 38, false));
    w.pass(mins(2)).await;
    let fresh = w.add_now(2);
    w.pass(mins(2)).await;
    assert_eq!(w.fetches(&fresh), 1, "what is new is read within two minutes");
    let ended = backfill.ended(&w).await.unwrap();
    assert!(ended.left.is_empty() && !ended.interrupted, "{ended:?}");
    let times: Vec<_> = w.sim.requests()[before..].iter().map(|request| request.at).collect();
    assert!(times.len() > 150, "{}", times.len());
    let busiest = times
        .iter()
        .map(|begin| times.iter().filter(|t| *t >= begin && t.duration_since(*begin).as_secs_f64() < 60.0).count())
        .max()
        .unwrap();
    // The loop's own: a listing a minute and the new blob, at most two of each in any 60 seconds.
    assert!((24..=30 + 4).contains(&busiest), "{busiest} requests in 60 s");
    w.until_all_delivered().await;
    w.stop(running).await;
    w.assert_clean();
}

/// The same events from the loop and from a back-fill at the same time: each once.
#[tokio::test]
async fn a_backfill_and_the_loop_on_the_same_blobs_deliver_each_event_once() {
    let mut w = World::new().await;
    for n in 1..60 {
        w.add_aged(3, mins(n * 20));
    }
    let (running, counter) = w.start_with_desk();
    // At once, while the loop reads the same for the first time.
    let mut backfill = ask(&counter, range(&w, 30, false));
    let ended = backfill.ended(&w).await.unwrap();
    assert!(backfill.begun.try_recv().is_ok());
    assert_eq!(ended.progress.blobs, 59);
    w.until_all_delivered().await;
    w.pass(mins(20)).await;
    w.stop(running).await;
    w.assert_clean();
}

/// A blob that cannot be read is left, named, and read by the next attempt; the rest comes.
#[tokio::test]
async fn a_blob_that_fails_is_left_and_read_when_asked_again() {
    let mut w = World::new().await;
    w.set("backfill_secs", 3600);
    let bad = w.add_aged(2, hours(9));
    w.add_aged(2, hours(20));
    w.sim.faults().next_for_blob(&bad, u32::MAX, SimFault::InternalError);
    let (running, counter) = w.start_with_desk();
    w.pass(mins(5)).await;
    let ended = ask(&counter, range(&w, 30, false)).ended(&w).await.unwrap();
    assert_eq!(ended.left.len(), 1, "{ended:?}");
    assert!(ended.left[0].contains(&bad), "{ended:?}");
    assert_eq!(ended.progress.events, 2);
    w.sim.faults().clear();
    let fetched = w.requests(CallKind::Blob).len();
    let ended = ask(&counter, BackfillAsk::Resume).ended(&w).await.unwrap();
    assert!(ended.left.is_empty(), "{ended:?}");
    assert_eq!(w.requests(CallKind::Blob).len(), fetched + 1, "only what was left");
    assert!(matches!(ask(&counter, BackfillAsk::Resume).ended(&w).await, Err(BackfillError::Nothing)));
    w.stop(running).await;
    w.assert_clean();
}

/// Stopped in the middle it goes on with what it had not read; a second one meanwhile is turned away.
#[tokio::test]
async fn a_stopped_backfill_goes_on_and_a_second_one_is_turned_away() {
    let mut w = World::new().await;
    w.set("backfill_secs", 3600).set("max_requests_per_minute", 60);
    for n in 2..80 {
        w.add_aged(2, mins(n * 20));
    }
    let (running, counter) = w.start_with_desk();
    w.pass(mins(5)).await;
    let mut first = ask(&counter, range(&w, 28, false));
    w.pass(mins(2)).await;
    assert!(matches!(ask(&counter, range(&w, 5, false)).ended(&w).await, Err(BackfillError::Busy)));
    first.stop.cancel();
    let ended = first.ended(&w).await.unwrap();
    assert!(ended.interrupted && ended.progress.events > 0, "{ended:?}");
    assert!(matches!(ask(&counter, range(&w, 5, false)).ended(&w).await, Err(BackfillError::Unfinished { .. })));
    // The source ends and comes back; the position was kept.
    w.stop(running).await;
    let (running, counter) = w.start_with_desk();
    w.pass(mins(1)).await;
    let ended = ask(&counter, BackfillAsk::Resume).ended(&w).await.unwrap();
    assert!(!ended.interrupted && ended.left.is_empty(), "{ended:?}");
    assert!(ended.progress.span_secs < 27 * 3600, "it does not begin anew: {ended:?}");
    w.until_all_delivered().await;
    w.stop(running).await;
    w.assert_clean();
    assert!(w.complete_until(EXCHANGE) > Some(w.ago(mins(20))));
}

/// Left for days: what Microsoft lists no more by then is named, and the rest is read.
#[tokio::test]
async fn a_backfill_resumed_too_late_names_what_is_gone() {
    let mut w = World::new().await;
    w.set("backfill_secs", 3600).set("max_requests_per_minute", 60);
    let old = w.add_aged(2, hours(6 * 24));
    w.add_aged(2, hours(2 * 24));
    let (running, counter) = w.start_with_desk();
    w.pass(mins(2)).await;
    // Its first listing is under way when it is stopped.
    w.sim.faults().rate(CallKind::Content, 1.0, SimFault::Slow(mins(2)));
    let mut backfill = ask(&counter, range(&w, 6 * 24 + 2, false));
    w.until("it has begun", || backfill.begun.try_recv().is_ok()).await;
    backfill.stop.cancel();
    assert!(backfill.ended(&w).await.unwrap().interrupted);
    w.sim.faults().clear();
    w.stop(running).await;
    w.clock.advance(hours(48));
    let (running, counter) = w.start_with_desk();
    w.pass(mins(2)).await;
    let ended = ask(&counter, BackfillAsk::Resume).ended(&w).await.unwrap();
    assert!(!ended.gone.is_empty() && ended.left.is_empty(), "{ended:?}");
    assert_eq!((w.fetches(&old), ended.progress.events), (0, 2), "{ended:?}");
    assert!(matches!(ask(&counter, BackfillAsk::Resume).ended(&w).await, Err(BackfillError::Nothing)), "it is done");
    w.stop(running).await;
    w.assert_manners();
}

/// Throttled and in bad weather: slower, and nothing is lost.
#[tokio::test]
async fn a_backfill_in_bad_weather_loses_nothing() {
    let mut w = World::new().await;
    w.set("backfill_secs", 3600);
    for n in 2..60 {
        w.add_aged(3, mins(n * 20));
    }
    for (kind, fault) in [
        (CallKind::Blob, SimFault::InternalError),
        (CallKind::Blob, SimFault::Throttled { status: 403, retry_after_secs: None, single_quoted: false }),
        (CallKind::Content, SimFault::InternalError),
    ] {
        w.sim.faults().rate(kind, 0.15, fault);
    }
    let (running, counter) = w.start_with_desk();
    w.pass(mins(10)).await;
    let mut ended = ask(&counter, range(&w, 28, false)).ended(&w).await.unwrap();
    while !ended.left.is_empty() {
        ended = ask(&counter, BackfillAsk::Resume).ended(&w).await.unwrap();
    }
    w.sim.faults().clear();
    w.until_all_delivered().await;
    w.stop(running).await;
    w.assert_clean();
}
