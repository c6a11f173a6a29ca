//! Tokens, permissions, subscriptions and throttling.

use m365_audit::host::Health;
use m365_audit::model::ContentType;
use m365_audit::sim::{CallKind, SimConfig, SimFault, StartFailure, SubscriptionState};
use m365_audit::source::report::LeftKind;

use crate::world::{EXCHANGE, World, hours, mins};

/// Trap 21: tokens that live a minute carry a back-fill of many.
#[tokio::test]
async fn tokens_that_expire_in_mid_backfill_are_renewed() {
    let mut w = World::with(SimConfig { token_lifetime_secs: 60, ..SimConfig::default() }).await;
    w.set("max_requests_per_minute", 20);
    for n in 1..100 {
        w.add_aged(2, hours(n));
    }
    let running = w.start();
    w.until_all_delivered().await;
    w.pass(mins(10)).await;
    w.stop(running).await;
    assert!(w.requests(CallKind::Token).len() > 3);
    w.assert_clean();
    w.assert_healthy();
}

/// A token revoked in mid-back-fill is renewed once; calls are repeated, blobs are not failed.
#[tokio::test]
async fn a_revoked_token_is_renewed() {
    let mut w = World::new().await;
    // A few at once, then one by one.
    w.set("max_requests_per_minute", 20);
    for n in 1..100 {
        w.add_aged(2, hours(n));
    }
    let running = w.start();
    for events in [20, 80, 140] {
        w.until("some are delivered", || w.host.event_count() >= events).await;
        w.sim.revoke_tokens();
    }
    w.until_all_delivered().await;
    w.pass(mins(10)).await;
    w.stop(running).await;
    let tokens = w.requests(CallKind::Token).len();
    assert!((4..=5).contains(&tokens), "{tokens}");
    w.assert_clean();
    w.assert_healthy();
}

/// Sign-in that fails for hours is Failed with the cause, is tried slowly, and recovers by itself.
#[tokio::test]
async fn sign_in_that_fails_for_hours_is_tried_slowly_and_recovers() {
    let mut w = World::with(SimConfig { token_lifetime_secs: 1800, ..SimConfig::default() }).await;
    w.add_aged(2, mins(30));
    let running = w.start();
    w.pass(mins(20)).await;
    w.sim.configure(|config| config.token_error = Some(7_000_222));
    w.sim.revoke_tokens();
    w.add_now(2);
    let asked = w.requests(CallKind::Token).len();
    w.pass(hours(5)).await;
    let asked = w.requests(CallKind::Token).len() - asked;
    assert!(asked <= 5 * 61, "{asked} token requests in five hours");
    assert!(matches!(w.host.health(), Health::Failed { ref why } if why.contains("7000222")), "{}", w.host.health());
    w.sim.configure(|config| config.token_error = None);
    w.pass(hours(2)).await;
    w.stop(running).await;
    w.assert_clean();
    w.assert_healthy();
}

/// Trap 20: without `ActivityFeed.ReadDlp` four types are delivered, health says what is missing, and DLP comes once it
/// is granted.
#[tokio::test]
async fn a_missing_dlp_permission_parks_one_type_and_says_so() {
    let mut w = World::new().await;
    w.all_types();
    w.sim.set_roles(["ActivityFeed.Read"]);
    for content_type in ContentType::ALL {
        let blob = w.blob(2, mins(30));
        w.add_to(content_type, blob);
    }
    let running = w.start();
    w.pass(hours(1)).await;
    assert_eq!(w.host.event_count(), 8);
    assert!(
        matches!(w.host.health(), Health::Degraded { ref why, .. } if why.contains("ReadDlp")),
        "{}",
        w.host.health()
    );
    let refused = w.sim.requests().iter().filter(|r| r.status == 401).count();
    assert!(refused <= 24, "{refused} refused calls in an hour");
    w.sim.set_roles(["ActivityFeed.Read", "ActivityFeed.ReadDlp"]);
    w.pass(hours(3)).await;
    w.stop(running).await;
    w.assert_clean();
    w.assert_healthy();
}

/// The five first starts go out at once, each once; traps 13 and 15.
#[tokio::test]
async fn a_refusal_without_a_code_of_one_type_alone_is_a_fault_of_that_type() {
    for status in [401, 403, 404] {
        let body = b"{\"Message\":\"Authorization has been denied for this request.\"}".to_vec();
        let refusal = SimFault::Answer { status, content_type: "application/json".into(), body };
        let mut w = World::new().await;
        w.all_types();
        for content_type in ContentType::ALL {
            let blob = w.blob(2, mins(30));
            w.add_to(content_type, blob);
        }
        w.sim.faults().next_for_type(CallKind::Content, ContentType::Dlp, u32::MAX, refusal.clone());
        let report = w.once().await;
        let left: Vec<_> = report.left.iter().map(|left| (left.kind, left.why.contains("DLP.All"))).collect();
        assert_eq!(left, [(LeftKind::Optional, true)], "{status}: {:?}", report.left);

        let running = w.start();
        w.pass(mins(30)).await;
        for _ in 0..20 {
            w.add_now(2);
            w.pass(mins(10)).await;
            let health = w.host.health();
            assert!(matches!(&health, Health::Degraded { why, .. } if why.contains("DLP.All")), "{status}: {health}");
        }
        w.sim.faults().clear();
        w.pass(hours(1)).await;
        w.stop(running).await;
        w.assert_clean();
        w.assert_healthy();

        // Of all types it is the tenant's.
        let mut w = World::new().await;
        w.all_types();
        w.sim.faults().rate(CallKind::Content, 1.0, refusal);
        let running = w.start();
        w.pass(mins(30)).await;
        assert!(matches!(w.host.health(), Health::Failed { .. }), "{status}: {}", w.host.health());
        w.stop(running).await;
    }
}

#[tokio::test]
async fn the_first_start_starts_each_type_once() {
    let mut w = World::new().await;
    w.all_types();
    for content_type in ContentType::ALL {
        w.sim.set_subscription(&w.tenant, content_type, SubscriptionState::Absent);
    }
    let running = w.start();
    w.pass(mins(2)).await;
    assert_eq!(w.requests(CallKind::Start).len(), 5);
    for content_type in ContentType::ALL {
        assert_eq!(w.sim.subscription(&w.tenant, content_type), SubscriptionState::Enabled);
        let blob = w.blob(2, mins(0));
        w.add_to(content_type, blob);
    }
    w.pass(hours(1)).await;
    w.stop(running).await;
    w.run_for(hours(1)).await;
    assert_eq!(w.requests(CallKind::Start).len(), 5, "never again");
    assert!(w.gaps().is_empty());
    w.assert_clean();
    w.assert_healthy();
}

/// Trap 13: AF20024 is success, and a subscription that was on all the time is no gap.
#[tokio::test]
async fn already_enabled_is_success_and_no_gap() {
    let mut w = World::new().await;
    w.add_aged(2, mins(30));
    w.run_for(mins(30)).await;
    let nothing = SimFault::Answer { status: 200, content_type: "application/json".into(), body: b"[]".to_vec() };
    w.sim.faults().next(CallKind::List, 1, nothing);
    w.add_now(2);
    w.run_for(mins(30)).await;
    assert_eq!(w.requests(CallKind::Start).len(), 1);
    assert!(w.gaps().is_empty());
    w.assert_clean();
    w.assert_healthy();
}

/// Single listings refused with AF20022 or AF20023 although the subscription is on are no gap either.
#[tokio::test]
async fn a_listing_wrongly_refused_as_disabled_is_no_gap() {
    for fault in [SimFault::NotSubscribed, SimFault::SubscriptionDisabled] {
        let mut w = World::new().await;
        w.add_aged(2, mins(30));
        let running = w.start();
        w.pass(mins(30)).await;
        w.sim.faults().next(CallKind::Content, 1, fault);
        w.pass(mins(10)).await;
        w.add_now(2);
        w.pass(hours(1)).await;
        w.stop(running).await;
        assert!(w.gaps().is_empty(), "{:?}", w.gaps());
        w.assert_clean();
    }
}

/// Traps 50 and 51: a subscription disabled while running is started again, once per 15 minutes at most, and the gap is
/// recorded from the last good listing to the restart.
#[tokio::test]
async fn a_subscription_disabled_while_running_is_recovered_with_a_gap_record() {
    let mut w = World::new().await;
    w.add_aged(2, mins(30));
    let running = w.start();
    w.pass(mins(32)).await;
    let last = w.requests(CallKind::Content).last().unwrap().at;
    w.sim.set_subscription(&w.tenant, EXCHANGE, SubscriptionState::Disabled);
    // At once: the next poll may come at any moment, and starts it again.
    let hidden = w.add_now(2);
    w.pass(mins(11)).await;
    let started = w.requests(CallKind::Start)[0].at;
    assert_eq!(w.sim.subscription(&w.tenant, EXCHANGE), SubscriptionState::Enabled);
    w.add_now(2);
    w.pass(hours(1)).await;
    w.stop(running).await;
    assert_eq!(w.requests(CallKind::Start).len(), 1);
    let gaps = w.gaps();
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert_eq!((gaps[0].0.as_str(), gaps[0].3.as_str()), (EXCHANGE.as_str(), "subscription_disabled"));
    let time = |text: &str| text.parse::<jiff::Timestamp>().unwrap();
    assert!(time(&gaps[0].1).duration_since(last).abs().as_secs() <= 1, "{gaps:?} {last}");
    assert!(time(&gaps[0].2) >= started && time(&gaps[0].2) <= started + mins(16), "{gaps:?} {started}");
    assert_eq!(w.fetches(&hidden), 0);
    w.assert_clean();
    w.assert_healthy();
}

/// The same while the process did not run: found at the start, recorded once.
#[tokio::test]
async fn a_subscription_disabled_during_an_outage_is_recovered_with_a_gap_record() {
    let mut w = World::new().await;
    w.add_aged(2, mins(30));
    w.run_for(mins(30)).await;
    w.sim.set_subscription(&w.tenant, EXCHANGE, SubscriptionState::Disabled);
    w.clock.advance(hours(2));
    w.add_now(1);
    w.clock.advance(hours(2));
    let running = w.start();
    w.pass(mins(5)).await;
    w.kill(running).await;
    w.add_now(1);
    w.run_for(hours(1)).await;
    let gaps = w.gaps();
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert_eq!(gaps[0].3, "subscription_disabled");
    w.assert_clean();
}

/// A restart that Microsoft acknowledges and does not honour for an hour is no tight loop, and one gap.
#[tokio::test]
async fn a_restart_that_sticks_is_retried_at_fifteen_minutes_or_more() {
    let mut w = World::with(SimConfig { restart_sticks_secs: Some(3600), ..SimConfig::default() }).await;
    w.add_aged(2, mins(30));
    let running = w.start();
    w.pass(mins(32)).await;
    w.sim.set_subscription(&w.tenant, EXCHANGE, SubscriptionState::Disabled);
    w.pass(hours(3)).await;
    w.add_now(2);
    w.pass(hours(1)).await;
    w.stop(running).await;
    let starts = w.requests(CallKind::Start);
    assert!(starts.windows(2).all(|pair| pair[1].at.duration_since(pair[0].at).as_secs() >= 900), "{starts:?}");
    assert!(w.requests(CallKind::Content).len() < 200);
    assert_eq!(w.gaps().len(), 1, "{:?}", w.gaps());
    w.assert_clean();
    w.assert_healthy();
}

/// Traps 14 and 18: auditing that is off is said as such, retried each cycle within the rules, and recovers.
#[tokio::test]
async fn auditing_that_is_off_is_said_retried_and_recovers() {
    for failure in [StartFailure::AuditOff, StartFailure::NotOnboarded, StartFailure::NoServicePrincipal] {
        let config = SimConfig { start_failure: Some(failure), ..SimConfig::default() };
        let mut w = World::with(config).await;
        w.sim.set_subscription(&w.tenant, EXCHANGE, SubscriptionState::Absent);
        let running = w.start();
        w.pass(hours(3)).await;
        let starts = w.requests(CallKind::Start);
        assert!(starts.len() >= 3, "{failure:?}: {} starts", starts.len());
        assert!(
            starts.windows(2).all(|pair| pair[1].at.duration_since(pair[0].at).as_secs() >= 900),
            "{failure:?}: {starts:?}"
        );
        let said = w.host.health().to_string();
        let expected = match failure {
            StartFailure::AuditOff => "UnifiedAuditLogIngestionEnabled",
            StartFailure::NotOnboarded => "onboarded",
            StartFailure::NoServicePrincipal => "Office 365 Management APIs",
        };
        assert!(said.contains(expected), "{failure:?}: {said}");
        w.sim.configure(|config| config.start_failure = None);
        w.pass(mins(40)).await;
        w.add_now(2);
        w.pass(mins(30)).await;
        w.stop(running).await;
        assert!(w.gaps().is_empty());
        w.assert_clean();
        w.assert_healthy();
    }
}

/// Trap 19: AF429 is throttling in every form, is obeyed, and fails no blob.
#[tokio::test]
async fn throttling_in_every_form_is_obeyed_and_loses_nothing() {
    for (status, retry_after_secs, single_quoted) in
        [(403, None, false), (429, None, false), (403, None, true), (429, Some(30), false), (403, Some(90), false)]
    {
        let mut w = World::new().await;
        for n in 1..20 {
            w.add_aged(2, mins(20 + n));
        }
        let fault = SimFault::Throttled { status, retry_after_secs, single_quoted };
        for kind in [CallKind::List, CallKind::Content, CallKind::Blob] {
            w.sim.faults().next(kind, 6, fault.clone());
        }
        let running = w.start();
        w.until_all_delivered().await;
        w.pass(mins(10)).await;
        w.stop(running).await;
        if let Some(secs) = retry_after_secs {
            let requests = w.sim.requests();
            let throttled = requests.iter().find(|r| r.fault == Some("throttled")).unwrap();
            let next = requests.iter().find(|r| r.at > throttled.at && r.kind != CallKind::Token).unwrap();
            assert!(next.at.duration_since(throttled.at).as_secs() >= secs as i64, "{throttled:?} {next:?}");
        }
        assert!(!w.host.healths().iter().any(|h| matches!(h, Health::Failed { .. })));
        w.assert_clean();
    }
}

/// Trap 20: a permission taken away in mid-run parks, says so, and goes on where it was when it is given back.
#[tokio::test]
async fn a_permission_taken_away_and_given_back_loses_nothing() {
    let mut w = World::new().await;
    w.add_aged(2, mins(30));
    let running = w.start();
    w.pass(mins(30)).await;
    w.sim.set_roles(Vec::<String>::new());
    w.sim.revoke_tokens();
    w.add_now(2);
    w.pass(hours(3)).await;
    assert!(!matches!(w.host.health(), Health::Healthy));
    w.add_now(2);
    w.sim.set_roles(["ActivityFeed.Read"]);
    w.pass(hours(3)).await;
    w.stop(running).await;
    assert!(w.gaps().is_empty());
    w.assert_clean();
    w.assert_healthy();
}
