//! Gaps beyond the feed's seven days, filled through Microsoft Graph: each event once, no position moved, whatever Graph
//! does.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::SignedDuration;
use m365_audit::checkpoint::format::{Keys, decode};
use m365_audit::checkpoint::heal::StoredHeal;
use m365_audit::model::{ContentType, Timestamp};
use m365_audit::sim::{CallKind, FaultScript, GraphVersions, NewBlob, QueryFate, SimFault, SubscriptionState};

use m365_audit::source::heal::requests::{HealAsk, HealError, HealRequest, HealResult, HealSender};
use m365_audit::source::report::LeftKind;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::world::{EXCHANGE, Running, World, days, event, hours, mins};

/// A world that heals, after an outage of so many days in which a blob of two events came every six hours. The first of
/// them came before it and were read.
async fn after_outage(outage: u64) -> World {
    let mut w = World::new().await;
    w.config["heal"] = serde_json::json!({ "graph": true });
    for n in 1..8 {
        w.add_aged(2, hours(6 * n));
    }
    w.run_for(hours(1)).await;
    assert_eq!(w.host.event_count(), 14);
    pass_an_outage(&mut w, outage).await;
    w
}

async fn pass_an_outage(w: &mut World, outage: u64) {
    for _ in 0..outage * 4 {
        w.add_now(2);
        w.leap(hours(6), hours(6)).await;
    }
}

fn stored(w: &World) -> StoredHeal {
    let key = Keys::of(&w.tenant).heal();
    w.store.entries().get(&key).map_or_else(StoredHeal::default, |bytes| decode(&key, bytes).unwrap())
}

fn is_healed(w: &World) -> bool {
    let stored = stored(w);
    let positions = w.watch.positions();
    let gaps =
        positions.iter().flat_map(|(content_type, position)| position.gaps.iter().map(|gap| (*content_type, gap)));
    let windows: Vec<_> =
        gaps.map(|(t, gap)| (t, m365_audit::model::Window { start: gap.from, end: gap.to })).collect();
    !windows.is_empty()
        && windows.iter().all(|(content_type, window)| stored.open_parts(*content_type, *window).is_empty())
}

async fn until_healed(w: &World) {
    let healed = w.until_within(days(3), || is_healed(w)).await;
    assert!(healed, "{:#?}", stored(w));
}

/// How often each id came.
fn times(w: &World) -> BTreeMap<String, usize> {
    let mut times = BTreeMap::new();
    for delivered in w.host.delivered() {
        *times.entry(delivered.id.unwrap_or_default()).or_default() += 1;
    }
    times
}

/// Every event that was ever published came once.
#[track_caller]
fn assert_all_once(w: &World) {
    let times = times(w);
    let all: Vec<String> =
        w.sim.truth().events.iter().filter_map(|event| event.id.as_deref().map(str::to_owned)).collect();
    let lost: Vec<_> = all.iter().filter(|id| !times.contains_key(*id)).collect();
    let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
    assert!(lost.is_empty() && twice.is_empty(), "of {}: lost {lost:?}, twice {twice:?}", all.len());
}

/// The event with this behind its time: another text of the same event.
fn written(event: &str, behind: &str) -> String {
    let mut event: Value = serde_json::from_str(event).unwrap();
    event["CreationTime"] = format!("{}{behind}", event["CreationTime"].as_str().unwrap()).into();
    event.to_string()
}

fn from_graph(w: &World) -> Vec<Value> {
    w.host.records().into_iter().filter(|record| record["origin"] == "graph").collect()
}

fn submissions(w: &World) -> usize {
    w.requests(CallKind::GraphSubmit).len()
}

#[tokio::test]
async fn an_outage_of_ten_days_is_filled_each_event_once_and_no_position_moves() {
    let w = after_outage(10).await;
    let running = w.start();
    w.until("the gap is declared", || !w.gaps().is_empty()).await;
    until_healed(&w).await;
    w.until_all_delivered().await;
    w.stop(running).await;
    assert_all_once(&w);
    w.assert_manners();

    let (gap, healed) = (&w.host.notices("m365_audit.gap")[0], &w.host.notices("m365_audit.gap_healed"));
    assert_eq!(healed.len(), 1);
    let healed = &healed[0];
    assert_eq!((&healed["gap_from"], &healed["gap_to"]), (&gap["gap_from"], &gap["gap_to"]));
    assert_eq!((&healed["readings_agree"], &healed["reason"]), (&Value::Bool(true), &Value::from("outage")));
    assert!(healed["queries"].as_array().unwrap().len() >= 6, "{healed}");
    assert!(healed["records"].as_u64() >= healed["events"].as_u64() && healed["events"].as_u64() > Some(0));

    // The gap stays declared in the position, which is where the feed left it.
    let position = &w.watch.positions()[&EXCHANGE];
    assert_eq!(position.gaps.len(), 1);
    assert!(position.complete_until.unwrap() < w.now());
    let graphs = from_graph(&w);
    assert!(!graphs.is_empty() && graphs.iter().all(|record| record["content_id"].is_null()));
    let others =
        w.host.records().into_iter().filter(|record| record.get("raw").is_some() && record["origin"].is_null());
    assert!(others.clone().count() > 0 && others.clone().all(|record| record["content_id"].is_string()));
    // The original is what the feed would have brought.
    assert!(w.compare().altered.is_empty());
}

#[tokio::test]
async fn without_the_key_a_gap_stays_and_graph_is_never_asked() {
    let mut w = after_outage(10).await;
    w.config["heal"] = serde_json::json!({});
    w.run_for(hours(3)).await;
    assert_eq!((w.gaps().len(), submissions(&w), from_graph(&w).len()), (1, 0, 0));
}

/// What the feed brings after all is known, whatever its text says: Graph and the feed write times in their own ways.
#[tokio::test]
async fn what_the_feed_brings_later_is_not_repeated() {
    let mut w = after_outage(9).await;
    let lost = w.now() - SignedDuration::from_hours(8 * 24);
    let late = event(900, lost);
    let id = w.add(NewBlob::at(lost).with_events([late.clone()]));
    let running = w.start();
    until_healed(&w).await;
    assert_eq!(times(&w).get("00000000-0000-4000-8000-000000000900"), Some(&1), "{id} was never listed");
    let other_text = written(&late, ".0000000Z");
    for text in [late, other_text] {
        w.add(NewBlob::at(w.now()).with_events([text]));
        w.pass(mins(20)).await;
    }
    w.stop(running).await;
    // And after a restart, a week later.
    w.leap(days(6), hours(12)).await;
    let text = written(&event(900, lost), "Z");
    w.add(NewBlob::at(w.now()).with_events([text]));
    w.run_for(hours(2)).await;
    assert_eq!(times(&w).get("00000000-0000-4000-8000-000000000900"), Some(&1));
}

/// One fault of Graph's each: the gap is filled all the same.
#[tokio::test]
async fn a_gap_is_filled_in_spite_of_every_fault_of_graph() {
    type Change = fn(&World);
    let answer = |status, body: &str| SimFault::Answer {
        status,
        content_type: "application/json".into(),
        body: body.as_bytes().to_vec(),
    };
    let faults: [(&str, Change); 12] = [
        ("slow", |w| w.sim.configure(|c| c.graph.query_secs = 25 * 60)),
        ("stuck", |w| w.sim.configure(|c| c.graph.fates = vec![QueryFate::Stuck; 3].into())),
        ("failed", |w| w.sim.configure(|c| c.graph.fates = vec![QueryFate::Failed; 5].into())),
        ("cut and says so", |w| w.sim.configure(|c| c.graph.records_max = Some(5))),
        ("cut and says nothing", |w| {
            w.sim.configure(|c| {
                (c.graph.records_max, c.graph.says_cut, c.graph.has_counts) = (Some(30), false, false);
            });
        }),
        ("unstable readings", |w| w.sim.configure(|c| c.graph.unstable = (4, 0.3))),
        ("unstable pages", |w| w.sim.configure(|c| (c.graph.page_rows, c.graph.overlap_rows) = (2, 1))),
        ("beta alone", |w| w.sim.configure(|c| c.graph.versions = GraphVersions::BetaOnly)),
        ("version 1.0 alone", |w| w.sim.configure(|c| c.graph.versions = GraphVersions::V1Only)),
        ("no counts", |w| w.sim.configure(|c| c.graph.has_counts = false)),
        ("a token that is refused", |w| w.sim.faults().next(CallKind::GraphQuery, 1, SimFault::Unauthorized)),
        ("throttled", |w| {
            for kind in [CallKind::GraphSubmit, CallKind::GraphQuery, CallKind::GraphRecords] {
                let fault = SimFault::Throttled { status: 429, retry_after_secs: Some(90), single_quoted: false };
                w.sim.faults().next(kind, 3, fault);
            }
        }),
    ];
    for (name, change) in faults {
        heal_with(name, change).await;
    }
    let bad = [
        ("500", answer(500, r#"{"error":{"code":"InternalServerError"}}"#)),
        ("unparseable", answer(200, "{\"value\":[{")),
        ("a page of a proxy", SimFault::HtmlPage),
        ("nothing", SimFault::EmptyBody),
        ("a reset", SimFault::Reset),
        ("a cut body", SimFault::CutBody(20)),
        ("a redirect", SimFault::Redirect("http://127.0.0.1:9/".into())),
    ];
    for (name, fault) in bad {
        heal_with(name, |w| {
            for kind in [CallKind::GraphSubmit, CallKind::GraphQuery, CallKind::GraphRecords] {
                w.sim.faults().script(FaultScript { skip: 1, ..FaultScript::next(kind, 3, fault.clone()) });
            }
        })
        .await;
    }
}

async fn heal_with(name: &str, change: impl FnOnce(&World)) {
    let mut w = after_outage(8).await;
    // Enough of one time that an answer can be cut.
    for hour in 0..40 {
        let time = w.now() - SignedDuration::from_hours(7 * 24 + 3 + hour / 8) - SignedDuration::from_mins(hour * 7);
        let events = w.events(3, time);
        w.add(NewBlob::at(time).with_events(events));
    }
    change(&w);
    let running = w.start();
    let healed = w.until_within(days(3), || is_healed(&w)).await;
    assert!(healed, "{name}: {:#?}", stored(&w));
    w.until_all_delivered().await;
    w.stop(running).await;
    let times = times(&w);
    assert!(times.values().all(|times| *times == 1), "{name}: {times:?}");
    assert_eq!(times.len(), w.sim.truth().events.len(), "{name}");
    w.assert_manners();
    if name == "beta alone" {
        assert!(stored(&w).beta, "remembered");
    }
    if name == "throttled" {
        let refused = |r: &&m365_audit::sim::RequestLog| r.status == 429;
        let asked = w.sim.requests();
        let graph = asked.iter().filter(|r| r.kind.is_beside_the_feed() && r.kind != CallKind::Token);
        let graph: Vec<_> = graph.collect();
        for pair in graph.windows(2).filter(|pair| refused(&pair[0])) {
            assert!(pair[1].at.duration_since(pair[0].at).as_secs() >= 90, "{pair:?}");
        }
    }
}

#[tokio::test]
async fn no_token_goes_where_a_next_link_leads() {
    let elsewhere = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = elsewhere.local_addr().unwrap();
    let calls = tokio::spawn(async move {
        let _ = elsewhere.accept().await;
    });
    let w = after_outage(9).await;
    w.sim.configure(|config| {
        config.graph.page_rows = 2;
        config.graph.next_link_origin = Some(format!("http://{address}"));
    });
    let running = w.start();
    until_healed(&w).await;
    w.stop(running).await;
    assert!(!calls.is_finished(), "a connection was made to {address}");
    assert!(w.requests(CallKind::GraphRecords).iter().all(|request| request.had_token));
}

/// What never ends stays a gap, and is said; the rest is filled, and the feed does not wait for any of it.
#[tokio::test]
async fn what_never_ends_stays_a_gap_and_is_asked_for_again_with_a_bound() {
    let mut w = after_outage(9).await;
    w.config["heal"] = serde_json::json!({ "graph": true, "query_wait_secs": 600 });
    w.sim.configure(|config| config.graph.stuck_share = 1.0);
    let running = w.start();
    w.until("the gap is declared", || !w.gaps().is_empty()).await;
    for _ in 0..20 {
        w.add_now(1);
        w.pass(hours(1)).await;
    }
    let events: Vec<_> = w.host.records().into_iter().filter(|record| record.get("raw").is_some()).collect();
    assert!(events.iter().all(|record| record["origin"].is_null()));
    assert!(w.complete_until(EXCHANGE).unwrap() > w.now() - SignedDuration::from_hours(2), "the feed goes on");
    assert!(w.host.notices("m365_audit.gap_healed").is_empty() && !is_healed(&w));
    assert!(submissions(&w) <= 200, "{}", submissions(&w));
    // It is said as long as it is so, after a restart, too.
    assert!(w.host.health().to_string().contains("heal-incomplete"), "{}", w.host.health());
    w.stop(running).await;
    let running = w.start();
    w.until("it is said again", || w.host.health().to_string().contains("heal-incomplete")).await;
    w.sim.configure(|config| config.graph.stuck_share = 0.0);
    until_healed(&w).await;
    w.until("it is well", || w.host.health() == m365_audit::host::Health::Healthy).await;
    w.stop(running).await;
    assert_all_once(&w);
}

#[tokio::test]
async fn two_hundred_submissions_a_day_are_not_exceeded_and_a_restart_does_not_forget_them() {
    let w = after_outage(12).await;
    w.sim.configure(|config| config.graph.failed_share = 0.9);
    for _ in 0..6 {
        w.run_for(hours(7)).await;
    }
    w.sim.configure(|config| config.graph.failed_share = 0.0);
    let running = w.start();
    until_healed(&w).await;
    w.stop(running).await;
    let submitted: Vec<Timestamp> = w.requests(CallKind::GraphSubmit).iter().map(|request| request.at).collect();
    for (at, since) in submitted.iter().enumerate() {
        let day = submitted[at..].iter().filter(|later| later.duration_since(*since).as_hours() < 24).count();
        assert!(day <= 200, "{day} from {since}");
    }
    assert!(w.requests(CallKind::GraphSubmit).iter().all(|request| request.status != 429));
    assert_all_once(&w);
}

#[tokio::test]
async fn without_the_permission_the_gap_stays_and_the_feed_goes_on() {
    let mut w = after_outage(9).await;
    w.sim.configure(|config| config.graph.roles.clear());
    let running = w.start();
    w.until("the gap is declared", || !w.gaps().is_empty()).await;
    w.add_now(2);
    w.pass(hours(2)).await;
    assert!(!is_healed(&w) && from_graph(&w).is_empty());
    assert!(w.complete_until(EXCHANGE).unwrap() > w.now() - SignedDuration::from_hours(1));
    assert!(w.host.health().to_string().contains("graph-permission-missing"), "{}", w.host.health());
    assert!(w.requests(CallKind::GraphSubmit).len() < 40, "{}", w.requests(CallKind::GraphSubmit).len());
    w.sim.configure(|config| config.graph.roles = vec!["AuditLogsQuery.Read.All".into()]);
    w.sim.revoke_tokens();
    until_healed(&w).await;
    w.until("it is well", || w.host.health() == m365_audit::host::Health::Healthy).await;
    w.stop(running).await;
    assert_all_once(&w);
}

/// Killed at any commit, it goes on where it was: nothing is lost, and no more repeated than a delivery that was not
/// written.
#[tokio::test]
async fn killed_at_any_moment_it_goes_on_and_repeats_no_more_than_what_was_in_flight() {
    let w = after_outage(9).await;
    let mut kills = 0;
    while !is_healed(&w) && kills < 40 {
        let running = w.start();
        let (commits, more) = (w.commits.load(std::sync::atomic::Ordering::SeqCst), 3 + kills % 7);
        w.until_within(hours(2), || {
            w.commits.load(std::sync::atomic::Ordering::SeqCst) >= commits + more || is_healed(&w)
        })
        .await;
        w.kill(running).await;
        kills += 1;
    }
    assert!(kills > 3, "{kills}");
    let running = w.start();
    until_healed(&w).await;
    w.until_all_delivered().await;
    w.stop(running).await;
    let times = times(&w);
    assert_eq!(times.len(), w.sim.truth().events.len());
    w.assert_manners();
}

/// A month of outage, with faults of Graph and kills of the process in the middle: nothing is lost, the gap is closed, and
/// no more comes twice than a kill leaves unwritten.
#[tokio::test]
async fn an_outage_of_thirty_days_is_filled_through_kills_and_faults() {
    for seed in 0..2_u64 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let w = after_outage(30).await;
        w.sim.configure(|config| {
            let graph = &mut config.graph;
            (graph.page_rows, graph.query_secs, graph.unstable) = (rng.usize(2..6), rng.u64(60..900), (2, 0.2));
            (graph.failed_share, graph.stuck_share) = (0.1, 0.02);
        });
        for kind in [CallKind::GraphSubmit, CallKind::GraphQuery, CallKind::GraphRecords] {
            for fault in [SimFault::Gateway(503), SimFault::Reset, SimFault::CutBody(30)] {
                w.sim.faults().rate(kind, 0.02, fault);
            }
        }
        let mut kills = 0;
        while !is_healed(&w) && kills < 25 {
            let running = w.start();
            let commits = w.commits.load(std::sync::atomic::Ordering::SeqCst) + rng.u64(5..40);
            let reached = || w.commits.load(std::sync::atomic::Ordering::SeqCst) >= commits || is_healed(&w);
            w.until_within(hours(2), reached).await;
            w.kill(running).await;
            kills += 1;
        }
        let running = w.start();
        until_healed(&w).await;
        w.until_all_delivered().await;
        w.stop(running).await;
        let times = times(&w);
        let all: Vec<_> = w.sim.truth().events.iter().filter_map(|event| event.id.clone()).collect();
        let lost: Vec<_> = all.iter().filter(|id| !times.contains_key(&***id)).collect();
        assert!(kills > 5 && lost.is_empty(), "seed {seed}: {kills} kills, lost {lost:?} of {}", all.len());
        // What is in flight at a kill is one window's events: eight of a day, and as many of the feed's.
        let again: usize = times.values().map(|times| times - 1).sum();
        assert!(again <= kills * 16, "seed {seed}: {again} again after {kills} kills");
        assert!(submissions(&w) > 33, "a window a day");
        w.assert_manners();
    }
}

/// An answer of more pages than anybody would send is not read to its end, so nothing says that it has one.
#[tokio::test]
async fn an_answer_of_too_many_pages_is_not_believed_and_its_gap_stays() {
    let mut w = after_outage(9).await;
    w.heal_pages_max = Some(5);
    w.sim.configure(|config| config.graph.page_rows = 1);
    let running = w.start();
    let left = w.until_within(days(1), || !stored(&w).left.is_empty()).await;
    assert!(left && stored(&w).left.iter().all(|why| why.contains("more than 5 pages")), "{:?}", stored(&w).left);
    assert!(!is_healed(&w));
    w.sim.configure(|config| config.graph.page_rows = 150);
    until_healed(&w).await;
    w.stop(running).await;
    assert_all_once(&w);
}

/// Events of before a gap whose content came within it: with receipts they are told from those that were delivered.
#[tokio::test]
async fn what_happened_before_a_gap_and_came_in_it_is_delivered_where_receipts_say_that_it_was_not() {
    let w = with_late_content(true).await;
    let running = w.start();
    until_healed(&w).await;
    w.until_all_delivered().await;
    w.stop(running).await;
    assert_all_once(&w);
}

/// An outage whose first content has an event from before it.
async fn with_late_content(with_receipts: bool) -> World {
    let mut w = World::new().await;
    w.config["heal"] = serde_json::json!({ "graph": true });
    if !with_receipts {
        w.receipts = None;
    }
    for n in 1..8 {
        w.add_aged(2, hours(6 * n));
    }
    w.run_for(hours(1)).await;
    let earlier = w.ago(hours(5));
    w.leap(mins(10), mins(10)).await;
    w.add(NewBlob::at(w.now()).with_events([event(LATE, earlier)]));
    pass_an_outage(&mut w, 10).await;
    w
}

const LATE: u64 = 900;
const LATE_ID: &str = "00000000-0000-4000-8000-000000000900";

/// Without receipts nobody knows whether what happened before a gap was delivered: it is left out, and the part of the gap
/// in which it may have come stays declared, until somebody has it delivered again.
#[tokio::test]
async fn a_gap_stays_declared_where_nobody_knows_whether_events_of_before_are_its_own() {
    let w = with_late_content(false).await;
    let (running, counter) = w.start_with_heal_queue();
    let found = w.until_within(days(1), || stored(&w).not_known.contains_key(EXCHANGE.as_str())).await;
    assert!(found, "{:#?}", stored(&w));
    let gap = w.watch.positions()[&EXCHANGE].gaps[0].clone();
    let whole = m365_audit::model::Window { start: gap.from, end: gap.to };
    let open = stored(&w).open_parts(EXCHANGE, whole);
    assert_eq!((open.len(), open[0].start), (1, gap.from));
    assert!(open[0].end > gap.from + SignedDuration::from_hours(60) && open[0].end < gap.to, "{open:?}");
    let healed = &w.host.notices("m365_audit.gap_healed")[0];
    assert_eq!(healed["gap_from"], open[0].end.to_string(), "what is filled begins where that ends");
    // What happened within the gap was delivered all the same, none of it twice.
    let published = w.sim.truth().events.len();
    // And two that happened minutes before the position at which the outage began.
    w.until("all but three", || times(&w).len() == published - 3).await;
    assert!(!times(&w).contains_key(LATE_ID) && times(&w).values().all(|times| *times == 1));
    // It is not searched for again and again, and no range over it is filled by chance.
    let submitted = submissions(&w);
    w.pass(days(1)).await;
    assert_eq!(submissions(&w), submitted);
    let lead = gap.from - SignedDuration::from_hours(72);
    let refused = asked(&w, &counter, ask(lead, Some(open[0].end))).await.unwrap_err();
    assert!(matches!(refused, HealError::NotKnown { .. }), "{refused}");
    let again = HealAsk { again: true, ..ask(lead, Some(open[0].end)) };
    assert!(asked(&w, &counter, again).await.unwrap().left.is_empty());
    assert_eq!(times(&w).len(), published);
    assert!(times(&w).contains_key(LATE_ID) && is_healed(&w) && stored(&w).not_known.is_empty());
    w.stop(running).await;
}

// ---- a single pass ----

#[tokio::test]
async fn a_single_pass_fills_gaps_and_says_what_stays() {
    let mut w = after_outage(10).await;
    w.sim.configure(|config| config.graph.roles.clear());
    let report = w.once().await;
    assert_eq!(report.worst(), Some(LeftKind::Permission), "{:?}", report.left);
    assert!(report.left[0].why.contains("1 gap of `Audit.Exchange`"), "{:?}", report.left);
    w.sim.configure(|config| config.graph.roles = vec!["AuditLogsQuery.Read.All".into()]);
    w.sim.revoke_tokens();
    // Searches that do not end in time are under way when the next pass comes.
    w.config["heal"] = serde_json::json!({ "graph": true, "query_wait_secs": 600 });
    w.sim.configure(|config| config.graph.query_secs = 700);
    let report = w.once().await;
    assert_eq!(report.worst(), Some(LeftKind::Passing), "{:?}", report.left);
    assert!(report.left[0].why.contains("the next run goes on") && submissions(&w) > 0, "{:?}", report.left);
    w.sim.configure(|config| config.graph.query_secs = 20);
    w.config["heal"] = serde_json::json!({ "graph": true });
    let report = w.once().await;
    assert!(report.left.is_empty() && is_healed(&w), "{:?} {:#?}", report.left, stored(&w));
    assert_all_once(&w);
    w.assert_manners();
    let submitted = submissions(&w);
    assert!(w.once().await.left.is_empty());
    assert_eq!(submissions(&w), submitted, "nothing is left to search for");
}

#[tokio::test]
async fn a_single_pass_says_which_gaps_nobody_can_fill_without_repeats() {
    let w = with_late_content(false).await;
    for _ in 0..2 {
        let report = w.once().await;
        assert_eq!(report.worst(), None, "{:?}", report.left);
        assert!(report.left.iter().any(|left| left.why.starts_with("heal-not-known: 1 gap")), "{:?}", report.left);
    }
}

// ---- a range on demand ----

fn ask(from: Timestamp, to: Option<Timestamp>) -> HealAsk {
    HealAsk { from, to, content_types: Vec::new(), again: false, dry_run: false }
}

async fn asked(w: &World, counter: &HealSender, ask: HealAsk) -> Result<HealResult, HealError> {
    let (begun, _began) = oneshot::channel();
    let (answer, mut answered) = oneshot::channel();
    assert!(counter.hand_in(HealRequest { ask, begun, stop: CancellationToken::new(), answer }).is_ok());
    let mut result = None;
    let within = w.until_within(days(2), || {
        result = result.take().or_else(|| answered.try_recv().ok());
        result.is_some()
    });
    assert!(within.await, "no answer");
    result.unwrap()
}

async fn began(w: &World) -> (Running, HealSender) {
    let (running, counter) = w.start_with_heal_queue();
    w.pass(mins(10)).await;
    (running, counter)
}

#[tokio::test]
async fn a_first_run_can_begin_months_back() {
    let mut w = World::new().await;
    for day in 1..60 {
        w.add_aged(2, days(day));
    }
    let (running, counter) = began(&w).await;
    let before = w.host.event_count();
    let range = ask(w.ago(days(61)), Some(w.ago(days(7))));
    let dry = asked(&w, &counter, HealAsk { dry_run: true, ..range.clone() }).await.unwrap();
    assert_eq!((dry.would_take, submissions(&w)), (Some((54, 200)), 0));
    let ended = asked(&w, &counter, range.clone()).await.unwrap();
    assert!(ended.left.is_empty() && !ended.interrupted, "{ended:?}");
    assert_eq!(ended.progress.span_secs, ended.progress.done_secs);
    assert!(w.host.event_count() > before + 90);
    assert_all_once(&w);
    // The same again brings nothing.
    let again = asked(&w, &counter, range.clone()).await.unwrap();
    assert_eq!(again.progress.events, 0, "{again:?}");
    assert_all_once(&w);
    // Unless it is meant so.
    let again = asked(&w, &counter, HealAsk { again: true, ..range }).await.unwrap();
    assert_eq!(again.progress.events, ended.progress.events, "{again:?}");
    w.stop(running).await;
    assert_eq!(w.watch.positions()[&EXCHANGE].gaps.len(), 0);
}

#[tokio::test]
async fn a_range_of_which_nobody_knows_what_was_delivered_is_refused_with_the_reason() {
    let mut w = World::new().await;
    w.receipts = None;
    w.add_aged(3, days(2));
    let (running, counter) = began(&w).await;
    w.pass(hours(1)).await;
    let refused = asked(&w, &counter, ask(w.ago(days(3)), None)).await.unwrap_err();
    assert!(refused.to_string().contains("no receipts are kept"), "{refused}");
    assert!(asked(&w, &counter, ask(w.ago(days(30)), Some(w.ago(days(8))))).await.is_ok(), "before the origin");
    let other = HealAsk { content_types: vec!["DLP.All".into()], ..ask(w.ago(days(3)), None) };
    assert!(matches!(asked(&w, &counter, other).await, Err(HealError::TypeNotRead(_))));
    w.stop(running).await;
}

#[tokio::test]
async fn a_range_fills_the_gap_in_it_of_the_type_that_has_one() {
    let mut w = World::new().await;
    w.set("content_types", vec!["Audit.Exchange", "Audit.General"]);
    let teams = |n: u64, time: Timestamp| {
        event(n, time).replace("\"RecordType\":1,", "\"RecordType\":25,").replace("\"Exchange\"", "\"MicrosoftTeams\"")
    };
    w.add_aged(2, hours(1));
    w.run_for(hours(3)).await;
    w.sim.set_subscription(&w.tenant, EXCHANGE, SubscriptionState::Disabled);
    for n in 0..6 {
        let now = w.now();
        w.add_to(EXCHANGE, NewBlob::at(now).with_events([event(700 + n, now)]));
        w.add_to(ContentType::General, NewBlob::at(now).with_events([teams(800 + n, now)]));
        w.leap(hours(2), hours(2)).await;
    }
    let (running, counter) = began(&w).await;
    w.sim.set_subscription(&w.tenant, EXCHANGE, SubscriptionState::Enabled);
    w.until("the gap is declared", || !w.gaps().is_empty()).await;
    w.pass(hours(1)).await;
    let gap = w.watch.positions()[&EXCHANGE].gaps[0].clone();
    let ended = asked(&w, &counter, ask(gap.from - SignedDuration::from_hours(73), Some(gap.to))).await.unwrap();
    assert!(ended.left.is_empty(), "{ended:?}");
    w.stop(running).await;
    assert!(is_healed(&w));
    assert_all_once(&w);
    let healed: Vec<_> = from_graph(&w).iter().map(|record| record["content_type"].clone()).collect();
    assert!(!healed.is_empty() && healed.iter().all(|content_type| content_type == "Audit.Exchange"), "{healed:?}");
}

/// Long outages of random length, every fault, kills: what Graph can give comes once, or its gap stays declared.
#[tokio::test]
async fn whatever_graph_does_each_event_comes_once_or_its_gap_stays() {
    for seed in 0..3_u64 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut w = after_outage(8 + seed * 6).await;
        w.config["heal"] = serde_json::json!({ "graph": true, "query_wait_secs": 900 });
        let (rows, max, secs) = (rng.usize(1..9), rng.usize(8..40), rng.u64(5..900));
        let (unstable, says) = (rng.u32(0..4), rng.bool());
        w.sim.configure(|config| {
            let graph = &mut config.graph;
            (graph.page_rows, graph.records_max, graph.query_secs) = (rows, Some(max), secs);
            (graph.unstable, graph.says_cut, graph.failed_share, graph.stuck_share) = ((unstable, 0.2), says, 0.1, 0.1);
        });
        for kind in [CallKind::GraphSubmit, CallKind::GraphQuery, CallKind::GraphRecords] {
            for fault in [SimFault::Gateway(503), SimFault::Reset, SimFault::HtmlPage, SimFault::CutBody(30)] {
                w.sim.faults().rate(kind, 0.03, fault);
            }
        }
        for _ in 0..rng.usize(2..6) {
            let running = w.start();
            w.pass(Duration::from_secs(rng.u64(60..4000))).await;
            w.kill(running).await;
        }
        let running = w.start();
        w.until_within(days(4), || is_healed(&w)).await;
        // What was healed comes late through the feed: none of it again.
        let before = times(&w);
        for record in from_graph(&w).iter().step_by(3) {
            let text = written(&record["raw"].to_string(), "Z");
            w.add(NewBlob::at(w.now()).with_events([text]));
        }
        w.pass(hours(2)).await;
        w.stop(running).await;
        let after = times(&w);
        for (id, times) in &before {
            assert_eq!(after.get(id), Some(times), "seed {seed}: {id} came again");
        }
        if is_healed(&w) {
            let published = w
                .sim
                .truth()
                .events
                .iter()
                .filter_map(|event| event.id.clone())
                .collect::<std::collections::BTreeSet<_>>();
            assert!(
                published.iter().all(|id| after.contains_key(&**id)),
                "seed {seed}: {} of {}",
                after.len(),
                published.len()
            );
        }
        assert!(is_healed(&w) || !stored(&w).left.is_empty() || stored(&w).gaps.is_some(), "seed {seed}");
        let submitted: Vec<Timestamp> = w.requests(CallKind::GraphSubmit).iter().map(|request| request.at).collect();
        for (at, since) in submitted.iter().enumerate() {
            let day = submitted[at..].iter().filter(|later| later.duration_since(*since).as_hours() < 24).count();
            assert!(day <= 200, "seed {seed}: {day} from {since}");
        }
    }
}
