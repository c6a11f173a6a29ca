//! The page to look at, of two hundred tenants of which some are broken in four ways. It is kept under `target/tmp`, where
//! `.ci/status-pictures` takes pictures of it.

use std::collections::BTreeMap;
use std::path::Path;

use m365_audit::hosts::embedded::completeness::Bars;
use m365_audit::hosts::embedded::status::{Line, Process, Quota, Sink, Source, Status, Stream};
use m365_audit::hosts::embedded::status_html::{self, StatusView};
use m365_audit::model::Timestamp;
use m365_audit::report::model::{Segment, SegmentState};

use crate::pictures::are_of_today;

const HOSTILE: &str = "<script>alert(1)</script>";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn now() -> Timestamp {
    at("2026-11-30T10:00:00Z")
}

fn ago(hours: i64) -> Timestamp {
    now().checked_sub(jiff::SignedDuration::from_hours(hours)).unwrap()
}

/// State, reason, hours behind.
fn condition(number: usize) -> (&'static str, Option<&'static str>, i64) {
    match number {
        17 | 58 | 113 => (
            "failed",
            Some(
                "auth-secret-expired: the client secret has expired (AADSTS7000222) (hint: Entra admin centre > App registrations > your app > Certificates & secrets > New client secret)",
            ),
            31,
        ),
        40 | 141 => (
            "failed",
            Some(
                "api-permission-missing: the application permission `ActivityFeed.Read` is missing (hint: Entra admin centre > App registrations > your app > API permissions)",
            ),
            74,
        ),
        71 => (
            "degraded",
            Some(
                "blob-expiry-near: 3 blobs of `Audit.Exchange` cannot be read; the first is gone at 2026-12-01T02:00:00Z (hint: the source retries until then; look for a proxy or filter that cuts large answers)",
            ),
            150,
        ),
        99 | 180 => (
            "degraded",
            Some("api-throttled: Microsoft refuses half of the calls (hint: set `publisher_identifier`)"),
            3,
        ),
        150 => ("starting", None, 0),
        _ => ("healthy", None, 0),
    }
}

fn source(number: usize) -> Source {
    let (state, reason, behind) = condition(number);
    let stream = Stream {
        content_type: "Audit.Exchange".into(),
        complete_until: (state != "starting").then(|| ago(behind)),
        lag_secs: (state != "starting").then_some(behind as f64 * 3600.0 + 420.0),
        events: 1200,
        events_per_sec: 2.5,
        gaps: u64::from(number == 71),
        ..Stream::default()
    };
    Source {
        name: if number == 7 { HOSTILE.to_owned() } else { format!("customers.t{number:03}") },
        tenant: format!("00000000-0000-4000-8000-{number:012}"),
        state: state.into(),
        reason: reason.map(str::to_owned),
        since: Some(ago(behind)),
        quota: Quota {
            max_per_minute: 2000,
            granted_per_minute: Some(1960.0),
            used_per_minute: 12.0,
            ..Quota::default()
        },
        clock_skew_secs: None,
        in_flight_bytes: 0,
        set_aside: 0,
        turn_waiting_secs: None,
        empty_answers: 0,
        streams: vec![stream],
        backfill: None,
        held: None,
    }
}

fn status() -> Status {
    let sink = |name: &str, state: &str, reason: Option<&str>| Sink {
        name: name.into(),
        state: state.into(),
        reason: reason.map(str::to_owned),
        since: ago(80),
        records_per_sec: 480.0,
        records: 240_000,
        retries: 3,
        oldest_request_secs: 0.0,
    };
    let line = |level: &str, text: &str| Line { time: ago(1), level: level.into(), text: text.into() };
    Status {
        process: Process { pid: 4242, version: "0.1.0".into(), started: ago(80), now: now(), reading: 3, waiting: 0 },
        state: "failed".into(),
        sources: (0..200).map(source).collect(),
        sinks: vec![
            sink("archive", "healthy", None),
            sink("siem", "degraded", Some("sink-slow: a request has been waiting 140 s for its answer")),
        ],
        store: None,
        recent: vec![
            line("error", "auth-secret-expired: the client secret has expired source=customers.t017"),
            line("warn", "</li></ul><script>alert(2)</script>"),
        ],
    }
}

fn bars(status: &Status) -> Bars {
    let (from, to) = (ago(168), now());
    let bar = |source: &Source| {
        let complete = source.streams[0].complete_until?;
        let mut bar = vec![Segment { state: SegmentState::Complete, from, to: complete, reason: None }];
        if source.streams[0].gaps > 0 {
            let (begin, end) = (ago(160), ago(155));
            bar = vec![
                Segment { state: SegmentState::NotRead, from, to: begin, reason: None },
                Segment { state: SegmentState::Gap, from: begin, to: end, reason: Some("outage".into()) },
                Segment { state: SegmentState::Complete, from: end, to: complete, reason: None },
            ];
        }
        if complete < to {
            bar.push(Segment { state: SegmentState::NotYet, from: complete, to, reason: None });
        }
        Some((source.name.clone(), bar))
    };
    let of: BTreeMap<_, _> = status.sources.iter().filter_map(bar).collect();
    Bars { from, to, of }
}

#[test]
fn the_page_of_two_hundred_tenants_has_trouble_first_escapes_names_and_needs_nothing_from_elsewhere() {
    let status = status();
    let bars = bars(&status);
    let shown = StatusView { status: &status, bars: &bars, docs_url: "https://wiki.example.net/m365", every: None };
    let page = status_html::page(&shown);
    std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("status.html"), &page).unwrap();
    assert!(page.contains("200 tenants: 5 failed, 3 degraded, 1 starting, 191 healthy"));
    let place = |name: &str| page.find(&format!(">{name}<")).unwrap_or_else(|| panic!("{name} is missing"));
    let order = ["customers.t017", "customers.t040", "customers.t071", "customers.t150", "customers.t000"].map(place);
    assert!(order.is_sorted(), "{order:?}");
    for markup in ["<script", "javascript:", "onerror=", "onload=", "<img", "<link", "<iframe", "@import", "url("] {
        assert!(!page.contains(markup), "{markup}");
    }
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;") && page.contains("&lt;script&gt;alert(2)"));
    assert_eq!(page.matches("https://").count(), page.matches("href=\"https://wiki.example.net/m365/errors/").count());
    assert!(page.contains("href=\"https://wiki.example.net/m365/errors/stream-gap.html\""));
    // Without colour: each state has its mark and its word, each bar its words.
    for word in ["\u{2716} failed", "\u{25b2} degraded", "\u{2026} starting", "\u{25cf} healthy"] {
        assert!(page.contains(word), "{word}");
    }
    assert!(page.contains("aria-label=\"customers.t071: not read from"), "a bar says what it shows");
    assert!(page.len() < 600_000, "{} bytes", page.len());
    let begun = page.matches("<tr").count();
    assert_eq!((begun, page.matches("<svg").count()), (page.matches("</tr>").count(), page.matches("</svg>").count()));
    // Last, so that what is wrong with the page is said before that its pictures are old.
    let made = BTreeMap::from([("target/tmp/status.html", page.as_bytes())]);
    are_of_today("status.sha256", ".ci/status-pictures", &made);
}
