//! Windows, pages, links: what there is to fetch is found, all of it.

use m365_audit::sim::{CallKind, NewBlob, NextPage, SimConfig};

use crate::world::{World, days, hours, mins};

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
    assert!(w.complete_until(crate::world::EXCHANGE) > Some(w.ago(days(1))));
}
