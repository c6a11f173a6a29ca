//! Windows, pages, links: what there is to fetch is found, all of it.

use m365_audit::host::Health;
use m365_audit::sim::{CallKind, GenerateSpec, ListingOrder, ListingSpan, NewBlob, NextPage, SimConfig, SimFault};

use crate::world::{EXCHANGE, World, days, hours, mins};

/// Traps 1 and 3: a blob that becomes listable after blobs with a later `contentCreated`.
#[tokio::test]
async fn a_blob_listable_late_with_an_earlier_created_time_is_found() {
    let mut w = World::new().await;
    let late = NewBlob { listable_from: Some(w.now() + hours(2)), ..w.blob(3, mins(40)) };
    let late = w.add(late);
    w.add_aged(2, mins(10));
    let running = w.start();
    w.pass(hours(1)).await;
    assert_eq!(w.fetches(&late), 0);
    w.add_now(1);
    w.pass(mins(70)).await;
    w.stop(running).await;
    assert_eq!(w.fetches(&late), 1);
    w.assert_clean();
    w.assert_healthy();
}

/// Trap 6: every page is read, whatever the header is called.
#[tokio::test]
async fn every_page_is_read_whatever_the_header_is_called() {
    for (header, version, lower) in [
        ("NextPageUri", "v1.0", false),
        ("nextpageuri", "v1", true),
        ("NextPageUrl", "v1", false),
        ("NEXTPAGEURL", "v1.0", true),
    ] {
        let next_page = NextPage {
            header: header.into(),
            api_version: version.into(),
            lower_case_parameters: lower,
            ..NextPage::default()
        };
        let mut w = World::with(SimConfig { page_size: 3, next_page, ..SimConfig::default() }).await;
        for n in 0..20 {
            w.add_aged(2, mins(30 + n));
        }
        w.once().await;
        assert!(w.requests(CallKind::NextPage).len() >= 6, "{header}");
        w.assert_clean();
    }
}

/// Trap 7: an empty page with a next link is not the end.
#[tokio::test]
async fn an_empty_page_with_a_next_link_is_followed() {
    let next_page = NextPage { empty_pages: true, ..NextPage::default() };
    let mut w = World::with(SimConfig { page_size: 2, next_page, ..SimConfig::default() }).await;
    for n in 0..7 {
        w.add_aged(2, mins(30 + n));
    }
    w.once().await;
    w.assert_clean();
}

/// Traps 4 and 5: blobs of the same millisecond, and within the same second, are all fetched.
#[tokio::test]
async fn blobs_with_equal_created_time_are_all_delivered() {
    let mut w = World::with(SimConfig { page_size: 2, ..SimConfig::default() }).await;
    for age in [mins(30), mins(30), mins(30), mins(30) + std::time::Duration::from_millis(1)] {
        w.add_aged(2, age);
    }
    let running = w.start();
    w.pass(mins(30)).await;
    let created = w.now();
    for _ in 0..3 {
        let events = w.events(1, created);
        w.add(NewBlob::at(created).with_events(events));
    }
    w.pass(mins(30)).await;
    // One more of an instant that was listed and passed long ago.
    let events = w.events(1, created);
    w.add(NewBlob { listable_from: Some(w.now()), ..NewBlob::at(created).with_events(events) });
    w.pass(mins(30)).await;
    w.stop(running).await;
    w.assert_clean();
}

/// Trap 8: a week of back-fill goes in windows under 24 h, every one of them read.
#[tokio::test]
async fn a_week_of_backfill_is_read_in_windows_under_a_day() {
    let mut w = World::new().await;
    for n in 1..165 {
        w.add_aged(1, hours(n));
    }
    let running = w.start();
    w.until_all_delivered().await;
    w.stop(running).await;
    w.assert_clean();
    assert!(w.complete_until(EXCHANGE) > Some(w.ago(days(1))));
}

/// Trap 8: a service that refuses exactly 24 h, or answers only the first 24 h of more, loses nothing.
#[tokio::test]
async fn strict_and_silent_window_limits_lose_nothing() {
    for listing_span in [ListingSpan::Exclusive, ListingSpan::Partial] {
        let mut w = World::with(SimConfig { listing_span, ..SimConfig::default() }).await;
        for n in 1..80 {
            w.add_aged(1, hours(2 * n));
        }
        w.once().await;
        w.assert_clean();
    }
}

/// Trap 9: content at the seven-day edge is read, and no window is too old on arrival.
#[tokio::test]
async fn content_at_the_edge_of_seven_days_is_read() {
    let mut w = World::new().await;
    w.add_aged(2, days(7) - mins(6));
    w.add_aged(2, days(6) + hours(23));
    w.run_for(mins(20)).await;
    w.assert_clean();
    assert!(w.requests(CallKind::Content).iter().all(|request| request.status == 200));
}

/// Traps 2 and 10: a listing that fails, also with AF20055, moves nothing until it was read.
#[tokio::test]
async fn a_window_that_was_refused_or_failed_is_read_before_the_position_moves() {
    for fault in [
        SimFault::WindowRefused,
        SimFault::InternalError,
        SimFault::InternalErrorUndocumented,
        SimFault::Gateway(504),
        SimFault::RequestTimeout,
        SimFault::Reset,
        SimFault::HtmlPage,
        SimFault::EmptyBody,
        SimFault::CutBody(30),
        SimFault::WrongLength(-5),
        SimFault::WrongLength(5),
        SimFault::Redirect("http://127.0.0.1:1/elsewhere".into()),
        SimFault::Answer { status: 403, content_type: "text/html".into(), body: b"<html>denied</html>".to_vec() },
    ] {
        let mut w = World::new().await;
        w.add_aged(2, hours(2));
        w.add_aged(2, hours(30));
        let running = w.start();
        w.pass(mins(10)).await;
        let before = w.complete_until(EXCHANGE);
        w.sim.faults().rate(CallKind::Content, 1.0, fault.clone());
        w.pass(mins(10)).await;
        w.add_now(2);
        w.pass(mins(30)).await;
        let still = w.complete_until(EXCHANGE);
        assert!(still <= before.map(|t| t + mins(10)), "{fault:?}: {before:?} {still:?}");
        w.sim.faults().clear();
        w.pass(hours(1)).await;
        w.stop(running).await;
        assert!(w.complete_until(EXCHANGE) > Some(w.ago(mins(20))), "{fault:?}: it goes on");
        w.assert_clean();
        w.assert_healthy();
    }
}

/// Trap 2: a page that fails, or a link that Microsoft no longer knows, does not count as read.
#[tokio::test]
async fn a_later_page_that_fails_does_not_count_as_read() {
    for fault in [
        SimFault::NextPageInvalid,
        SimFault::Gateway(502),
        SimFault::EmptyBody,
        SimFault::CutBody(10),
        SimFault::HtmlPage,
    ] {
        let mut w = World::with(SimConfig { page_size: 2, ..SimConfig::default() }).await;
        for n in 0..9 {
            w.add_aged(1, mins(30 + n));
        }
        w.sim.faults().next(CallKind::NextPage, 5, fault);
        w.run_for(mins(30)).await;
        w.assert_clean();
    }
}

/// Trap 11: a page link that aged while it was retried starts its window again.
#[tokio::test]
async fn a_page_link_that_aged_starts_the_window_again() {
    let next_page = NextPage { lifetime_secs: Some(20), ..NextPage::default() };
    let mut w = World::with(SimConfig { page_size: 2, next_page, ..SimConfig::default() }).await;
    for n in 0..9 {
        w.add_aged(1, mins(30 + n));
    }
    // Enough for two windows: the second poll may come while the first one's is still tried.
    w.sim.faults().next(CallKind::NextPage, 16, SimFault::InternalError);
    w.run_for(hours(1)).await;
    assert!(w.requests(CallKind::NextPage).iter().any(|r| r.status == 400), "the link had aged");
    w.assert_clean();
}

/// Trap 44: a next page or a blob on another host is not fetched there; the blob is fetched under the configured
/// origin, the listing is not taken for complete.
#[tokio::test]
async fn the_token_goes_to_no_other_host_and_nothing_is_lost() {
    let elsewhere = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", elsewhere.local_addr().unwrap());
    let next_page = NextPage { origin: Some(origin.clone()), ..NextPage::default() };
    let config = SimConfig { page_size: 3, next_page, content_uri_origin: Some(origin), ..SimConfig::default() };
    let mut w = World::with(config).await;
    for n in 0..9 {
        w.add_aged(1, mins(30 + n));
    }
    let running = w.start();
    w.pass(mins(30)).await;
    assert!(w.host.event_count() >= 3, "what the first page lists is delivered");
    assert!(w.complete_until(EXCHANGE).is_none_or(|t| t < w.ago(hours(1))), "{:?}", w.complete_until(EXCHANGE));
    assert!(matches!(w.host.health(), Health::Degraded { .. }));
    w.sim.configure(|config| config.next_page.origin = None);
    w.pass(mins(30)).await;
    w.stop(running).await;
    assert!(futures_util::FutureExt::now_or_never(elsewhere.accept()).is_none(), "somebody called elsewhere");
    w.assert_clean();
    w.assert_healthy();
}

/// With `api_url` set, links that name the cloud's own host lead to the configured origin.
#[tokio::test]
async fn links_to_the_clouds_own_host_lead_to_the_configured_origin() {
    let cloud = Some("https://manage.office.com".to_owned());
    let next_page = NextPage { origin: cloud.clone(), ..NextPage::default() };
    let config = SimConfig { page_size: 2, next_page, content_uri_origin: cloud, ..SimConfig::default() };
    let mut w = World::with(config).await;
    for n in 0..9 {
        w.add_aged(1, mins(30 + n));
    }
    w.once().await;
    w.assert_clean();
}

/// A page that names itself as the next is no tight loop and not the end of the listing.
#[tokio::test]
async fn a_page_that_links_to_itself_is_no_loop_and_no_end() {
    let next_page = NextPage { loops: true, ..NextPage::default() };
    let mut w = World::with(SimConfig { page_size: 2, next_page, ..SimConfig::default() }).await;
    for n in 0..9 {
        w.add_aged(1, mins(30 + n));
    }
    let running = w.start();
    w.pass(mins(30)).await;
    assert!(w.complete_until(EXCHANGE).is_none_or(|t| t < w.ago(hours(1))), "{:?}", w.complete_until(EXCHANGE));
    assert!(w.requests(CallKind::NextPage).len() < 400, "{}", w.requests(CallKind::NextPage).len());
    // What comes meanwhile is read.
    let later = w.add_now(1);
    w.pass(mins(15)).await;
    assert_eq!(w.fetches(&later), 1);
    w.sim.configure(|config| config.next_page.loops = false);
    w.pass(mins(30)).await;
    w.stop(running).await;
    w.assert_clean();
}

/// What came later is read at each poll while an older window cannot be read to its end, and so is what becomes listable
/// late outside it. The position stays before that window until it can.
#[tokio::test]
async fn a_window_that_cannot_be_read_keeps_nothing_newer_from_being_read() {
    let mut w = World::new().await;
    let running = w.start();
    w.pass(mins(10)).await;
    let at = w.now();
    w.sim.configure(|config| config.unreadable_item_at = Some(at));
    w.pass(mins(30)).await;
    for late_by in [mins(90), hours(5)].repeat(8) {
        let new = w.add_now(2);
        w.leap(hours(1), mins(5)).await;
        assert_eq!(w.fetches(&new), 1, "{}", w.now());
        let late = NewBlob { listable_from: Some(w.now() + late_by), ..w.blob(2, mins(1)) };
        let late = w.add(late);
        w.leap(late_by + hours(2), mins(5)).await;
        assert_eq!(w.fetches(&late), 1, "{}", w.now());
    }
    let stands = w.complete_until(EXCHANGE);
    assert!(stands <= Some(at), "days later: {stands:?}");
    w.sim.configure(|config| config.unreadable_item_at = None);
    w.leap(hours(2), mins(5)).await;
    assert!(w.complete_until(EXCHANGE) > Some(w.ago(mins(20))), "it goes on");
    w.stop(running).await;
    w.assert_clean();
    w.assert_healthy();
}

/// As a tenant with a million blobs an hour may have.
#[tokio::test]
async fn a_minute_of_more_pages_than_are_followed_elsewhere_is_read_to_its_end() {
    let mut w = World::with(SimConfig { page_size: 1, ..SimConfig::default() }).await;
    let created = w.ago(hours(1));
    for _ in 0..1_030 {
        let blob = NewBlob { created, ..w.blob(1, hours(1)) };
        w.add(blob);
    }
    w.once().await;
    w.assert_clean();
}

/// A window with more pages than are followed is listed again in halves.
#[tokio::test]
async fn a_window_of_too_many_pages_is_read_in_halves() {
    let listing_order = ListingOrder::Created;
    let mut w = World::with(SimConfig { page_size: 1, listing_order, ..SimConfig::default() }).await;
    let from = w.ago(hours(3));
    w.generate(GenerateSpec {
        content_types: vec![EXCHANGE],
        late_rate: 0.0,
        empty_blob_rate: 0.0,
        ..GenerateSpec::new(1_050, 1, from, w.ago(mins(10)))
    });
    w.set("backfill_secs", 4 * 3600);
    w.once().await;
    w.assert_clean();
}

/// Hourly the last day and daily the whole week are listed again: a blob that becomes listable 20 hours or five days
/// late is still found.
#[tokio::test]
async fn a_blob_listable_a_day_or_five_days_late_is_found_by_listing_again() {
    let mut w = World::new().await;
    w.set("poll_interval_secs", 1800);
    let day = NewBlob { listable_from: Some(w.now() + hours(20)), ..w.blob(2, mins(1)) };
    let day = w.add(day);
    let five_days = NewBlob { listable_from: Some(w.now() + days(5)), ..w.blob(2, mins(1)) };
    let five_days = w.add(five_days);
    let running = w.start();
    w.leap(hours(22), mins(5)).await;
    assert_eq!((w.fetches(&day), w.fetches(&five_days)), (1, 0));
    w.leap(days(5), mins(10)).await;
    assert_eq!((w.fetches(&day), w.fetches(&five_days)), (1, 1));
    w.stop(running).await;
    w.assert_clean();
    assert!(w.gaps().is_empty());
}

/// Listing again is cheap: a day of quiet is a listing per poll, one more an hour, eight a day, and no fetch twice.
#[tokio::test]
async fn listing_again_costs_few_calls_and_fetches_nothing_twice() {
    let mut w = World::new().await;
    let ids: Vec<String> = (1..20).map(|n| w.add_aged(2, hours(n))).collect();
    let running = w.start();
    w.leap(days(1), mins(1)).await;
    w.stop(running).await;
    assert!(ids.iter().all(|id| w.fetches(id) == 1), "CK-2");
    let listings = w.requests(CallKind::Content).len();
    assert!((288..=288 + 24 * 3 + 30).contains(&listings), "{listings}");
    w.assert_clean();
}

/// A listing that is `null` is asked for again before it is taken for an empty one; where it stays `null`, the position
/// goes on, because the same time is listed again later.
#[tokio::test]
async fn a_listing_that_is_null_is_asked_for_again_and_does_not_stop_the_position() {
    let null =
        || SimFault::Answer { status: 200, content_type: "application/json".to_owned(), body: b" null\n".to_vec() };
    let mut w = World::new().await;
    w.add_aged(2, mins(30));
    w.sim.faults().next(CallKind::Content, 3, null());
    let running = w.start();
    w.leap(mins(1), std::time::Duration::from_secs(5)).await;
    assert_eq!(w.host.event_count(), 2, "before the next poll");
    w.stop(running).await;
    w.assert_clean();

    let mut w = World::new().await;
    w.set("backfill_secs", 3600);
    w.sim.faults().next(CallKind::Content, 6, null());
    let running = w.start();
    w.leap(mins(4), std::time::Duration::from_secs(5)).await;
    assert!(w.complete_until(EXCHANGE).is_some(), "believed after six answers");
    w.add_now(1);
    w.leap(mins(20), mins(1)).await;
    w.stop(running).await;
    w.assert_clean();
    w.assert_healthy();
}
