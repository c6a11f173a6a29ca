//! What a report says of a state that is made here, in each of its forms, and that nothing it does not know becomes a zero.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use m365_audit::checkpoint::format::{
    self, AsideKind, AsideRecord, DeclaredGap, FORMAT, Keys, Owner, Position, TrackedBlob,
};
use m365_audit::checkpoint::held::{HeldPage, HeldRecord};
use m365_audit::checkpoint::lateness::Lateness;
use m365_audit::host::{Expected, Op, StateStore};
use m365_audit::hosts::embedded::memory::MemoryStore;
use m365_audit::model::{ContentType, TenantId, Timestamp};
use m365_audit::normalise::CanonicalKey;
use m365_audit::receipts::head::StoredHead;
use m365_audit::receipts::note::Signer;
use m365_audit::receipts::seal::{Part, Uncounted, seal};
use m365_audit::receipts::statement::Hour;
use m365_audit::receipts::store::{self, ReceiptKeys};
use m365_audit::receipts::{Class, OpenReceipts, Receipt};
use m365_audit::report::gather::{ReportRequest, ReportTenant, gather};
use m365_audit::report::model::{AuditReport, Chain, Completeness, FindingKind, Reconcile, SegmentState};
use m365_audit::report::{html, reconciled, text};

use crate::pictures::are_of_today;

const CONTOSO: &str = "6f1d3a52-0d2e-4f7e-8a51-2b7c1d9e0a11";
const FABRIKAM: &str = "0d5bb1c4-93b2-4a8e-9d3f-51f0a2a6c7e8";

fn signer(byte: u8) -> Signer {
    let mut der = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20".to_vec();
    der.extend([byte; 32]);
    Signer::from_pkcs8(&der).unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// The moment at which every report here is made.
fn now() -> Timestamp {
    at("2026-11-30T12:20:00Z")
}

fn tenant(text: &str) -> TenantId {
    text.parse().unwrap()
}

async fn put(state: &MemoryStore, values: Vec<(String, bytes::Bytes)>) {
    let put = |(key, value)| Op::Put { key, value, expected: Expected::Any };
    state.commit(values.into_iter().map(put).collect()).await.unwrap();
}

/// How an hour of a tenant is made up, from its number.
type Hourly = fn(u64) -> (Vec<Receipt>, BTreeMap<ContentType, Uncounted>);

fn receipts(content_type: ContentType, hour: u64, class: &Class, count: u64) -> Vec<Receipt> {
    let kind = match class {
        Class::Held => 1u128,
        Class::SetAside => 2,
        Class::Dropped(_) => 3,
        Class::Delivered => 4,
    };
    let key = |n: u64| {
        CanonicalKey::from_bytes(
            (kind << 120 | (content_type as u128) << 112 | u128::from(hour) << 32 | u128::from(n)).to_be_bytes(),
        )
    };
    (0..count).map(|n| Receipt { content_type, key: Some(key(n)), class: class.clone() }).collect()
}

/// Seals hours from `first` to before `last`; in those of `begins` receipts begin.
async fn sealed(state: &MemoryStore, tenant_id: &str, (first, last): (&str, &str), begins: &[&str], hourly: Hourly) {
    let tenant = tenant(tenant_id);
    let keys = ReceiptKeys::below(Keys::of(&tenant).receipts());
    let begins: Vec<Hour> = begins.iter().map(|hour| hour.parse().unwrap()).collect();
    let (mut hour, last): (Hour, Hour) = (first.parse().unwrap(), last.parse().unwrap());
    let mut head = StoredHead { writer: "one".into(), ..StoredHead::default() };
    let mut values = Vec::new();
    while hour < last {
        let part = Part {
            tenant: tenant.clone(),
            seq: head.seq,
            hour,
            part: 0,
            last: true,
            begins: head.seq == 0 || begins.contains(&hour),
            previous: head.previous(),
        };
        let (made, uncounted) = hourly(head.seq);
        let sealed = seal(&part, made, &uncounted, &signer(7));
        head = head.after(&sealed);
        values.extend(store::values_of(&keys, &sealed));
        hour = hour.next();
    }
    values.push((keys.head(), head.encode().into()));
    values.push((
        Keys::of(&tenant).owner(),
        format::encode(&Owner { format: FORMAT, writer: "one".into(), commit: None }),
    ));
    put(state, values).await;
}

/// More by day than by night, of each content type its share.
fn busy(hour: u64) -> (Vec<Receipt>, BTreeMap<ContentType, Uncounted>) {
    let by_day = [2, 1, 1, 1, 2, 3, 6, 10, 14, 16, 15, 14, 12, 14, 16, 15, 13, 9, 7, 5, 4, 3, 3, 2];
    let weekend = (hour + 6) / 24 % 7 >= 4 && (hour + 6) / 24 % 7 <= 5;
    let load = by_day[(hour as usize + 6) % 24] / if weekend { 4 } else { 1 };
    let mut made = Vec::new();
    for (content_type, share) in [
        (ContentType::AzureActiveDirectory, 3),
        (ContentType::Exchange, 4),
        (ContentType::SharePoint, 5),
        (ContentType::General, 2),
    ] {
        made.extend(receipts(content_type, hour, &Class::Delivered, load * share));
    }
    made.extend(receipts(ContentType::SharePoint, hour, &Class::Dropped("SP-01".into()), load * 6));
    made.extend(receipts(ContentType::Exchange, hour, &Class::Dropped("EX-12".into()), load));
    if hour % 50 == 3 {
        made.extend(receipts(ContentType::Dlp, hour, &Class::Delivered, 2));
        made.extend(receipts(ContentType::SharePoint, hour, &Class::Held, 3));
    }
    if hour == 300 {
        made.extend(receipts(ContentType::General, hour, &Class::SetAside, 2));
    }
    let uncounted = BTreeMap::from([
        (ContentType::General, Uncounted { repeated: load / 4, without_id: u64::from(hour % 100 == 9) }),
        (ContentType::Exchange, Uncounted { repeated: load / 3, without_id: 0 }),
    ]);
    (made, uncounted)
}

fn quiet(hour: u64) -> (Vec<Receipt>, BTreeMap<ContentType, Uncounted>) {
    (receipts(ContentType::Exchange, hour, &Class::Delivered, hour % 5), BTreeMap::new())
}

async fn position(
    state: &MemoryStore,
    of: (&str, ContentType),
    origin: &str,
    until: &str,
    gaps: &[(&str, &str, &str)],
) {
    let mut position = Position::first(at(origin));
    position.complete_until = Some(at(until));
    position.listed_until = Some(at(until));
    position.last_listing = Some(at("2026-11-30T12:18:31Z"));
    for (from, to, reason) in gaps {
        position.note_gap(DeclaredGap { from: at(from), to: at(to), reason: (*reason).to_owned() });
    }
    put(state, vec![(Keys::of(&tenant(of.0)).position(of.1), format::encode(&position))]).await;
}

async fn late(state: &MemoryStore, tenant_id: &str, content_type: ContentType, unit: i64) {
    let keys = Keys::of(&tenant(tenant_id));
    for day in 20..=30 {
        let mut lateness = Lateness::default();
        for n in 0..60i64 {
            lateness.events.add(unit * (n % 17) * (n % 5 + 1) + if n == 59 { unit * 300 } else { 0 });
            lateness.blobs.add(30 + n * 7);
        }
        let key = keys.lateness_of(content_type, &format!("2026-11-{day:02}"));
        put(state, vec![(key, format::encode(&lateness))]).await;
    }
}

fn aside(why: &str, since: &str) -> AsideRecord {
    AsideRecord {
        format: FORMAT,
        why: why.into(),
        since: at(since),
        time: at(since),
        severity: "high".into(),
        kind: Some(AsideKind::Notice),
        event: None,
        record: "{}".into(),
    }
}

/// Two tenants: of one something is missing, owed, set aside and on hold, the other is well.
async fn state() -> MemoryStore {
    let state = MemoryStore::new();
    let stands = "2026-11-30T12:10:00Z";
    let origin = "2026-11-09T00:00:00Z";
    let outage = ("2026-11-14T02:00:00Z", "2026-11-15T20:30:00Z", "outage");
    let of = |content_type| (CONTOSO, content_type);
    position(&state, of(ContentType::AzureActiveDirectory), origin, stands, &[outage]).await;
    position(&state, of(ContentType::Exchange), origin, stands, &[outage]).await;
    let expired = ("2026-11-22T08:15:00Z", "2026-11-22T08:15:01Z", "blob_expired");
    position(&state, of(ContentType::SharePoint), origin, stands, &[outage, expired]).await;
    let off = ("2026-11-26T00:00:00Z", "2026-11-27T09:40:12Z", "subscription_disabled");
    position(&state, of(ContentType::General), origin, "2026-11-29T18:00:00Z", &[outage, off]).await;
    position(&state, of(ContentType::Dlp), "2026-11-20T00:00:00Z", stands, &[]).await;
    sealed(
        &state,
        CONTOSO,
        ("2026-11-10T06:00:00Z", "2026-11-30T12:00:00Z"),
        &["2026-11-18T09:00:00Z", "2026-11-18T10:00:00Z"],
        busy,
    )
    .await;
    let keys = Keys::of(&tenant(CONTOSO));
    let mut open = OpenReceipts::default();
    let receipts_of = |class, count| receipts(ContentType::Exchange, 999, &class, count);
    let twice = [
        receipts_of(Class::Delivered, 40),
        receipts_of(Class::Delivered, 3),
        receipts_of(Class::Dropped("EX-12".into()), 9),
    ];
    twice.concat().into_iter().for_each(|receipt| open.add(receipt));
    open.add_repeated(ContentType::Exchange, 4);
    let page = ReceiptKeys::below(keys.receipts()).open_page(486, 0, open.len());
    let blob = |id: &str| TrackedBlob {
        format: FORMAT,
        content_id: id.into(),
        content_uri: "u".into(),
        created: at("2026-11-29T18:02:00Z"),
        expires: at("2026-12-06T18:02:00Z"),
    };
    let record = HeldRecord { rule: "SP-01".into(), raw: "{}".into(), links: vec![1], key: None };
    let held = HeldPage {
        content_type: ContentType::SharePoint,
        content_id: "blob".into(),
        created: at("2026-11-29T20:00:00Z"),
        records: vec![record; 12],
    };
    put(
        &state,
        vec![
            (page, open.encode("2026-11-30T12:00:00Z".parse().unwrap())),
            (keys.tracked_blob(ContentType::General, 1), format::encode(&blob("a"))),
            (keys.tracked_blob(ContentType::General, 2), format::encode(&blob("b"))),
            (
                keys.aside_record(ContentType::General, 1),
                format::encode(&aside("400: mapping conflict", "2026-11-22T18:00:00Z")),
            ),
            (
                keys.aside_record(ContentType::General, 2),
                format::encode(&aside("400: mapping conflict", "2026-11-22T18:00:03Z")),
            ),
            (keys.held_page(1), held.encode()),
        ],
    )
    .await;
    for (content_type, unit) in [
        (ContentType::AzureActiveDirectory, 20),
        (ContentType::Exchange, 45),
        (ContentType::SharePoint, 60),
        (ContentType::General, 200),
    ] {
        late(&state, CONTOSO, content_type, unit).await;
    }
    for content_type in [ContentType::Exchange, ContentType::SharePoint] {
        position(&state, (FABRIKAM, content_type), "2026-11-10T00:00:00Z", stands, &[]).await;
    }
    sealed(&state, FABRIKAM, ("2026-11-10T00:00:00Z", "2026-11-30T12:00:00Z"), &[], quiet).await;
    late(&state, FABRIKAM, ContentType::Exchange, 30).await;
    state
}

fn verdict() -> Reconcile {
    let missing =
        r#"{"id":"3f9ac2d0-7c11-4f57-8a3e-08de1c2b9a77","time":"2026-11-26T14:03:11Z","operation":"MemberAdded"}"#;
    let verdict = format!(
        r#"{{"rows":48213,"classes":{{"delivered":41877,"repeated":12,"dropped":6109,"held":3,"set_aside":2,"not_read":0,"in_gap":207,"too_young":2,"too_old":0,"no_identity":0,"unreadable":0,"missing":1}},"only_ours":118,"witness":{{"looks_cut":false,"why":[]}},"missing":[{missing}],"only_ours_events":[],"source":"contoso","tenant":"{CONTOSO}","made":"2026-11-29T09:12:44Z","between":["2026-11-20T00:00:02Z","2026-11-28T23:59:58Z"],"evidence":["receipts of 2026-11-10T06:00:00Z to 2026-11-29T08:00:00Z"]}}"#
    );
    reconciled::read(verdict.as_bytes(), &tenant(CONTOSO))
}

fn asked() -> ReportRequest {
    ReportRequest {
        program: "m365-audit 0.0.0".into(),
        now: now(),
        from: None,
        to: None,
        receipts_days: 30,
        key: Ok(signer(7).key().clone()),
    }
}

fn contoso() -> ReportTenant {
    ReportTenant {
        source: "contoso".into(),
        tenant: tenant(CONTOSO),
        content_types: ContentType::ALL.to_vec(),
        hold_secs: 86_400,
        reconcile: verdict(),
    }
}

fn fabrikam() -> ReportTenant {
    ReportTenant {
        source: "fabrikam".into(),
        tenant: tenant(FABRIKAM),
        content_types: vec![ContentType::Exchange, ContentType::SharePoint],
        hold_secs: 86_400,
        reconcile: Reconcile::None,
    }
}

async fn report() -> AuditReport {
    gather(&state().await, &asked(), vec![contoso(), fabrikam()]).await.unwrap()
}

fn as_text(report: &AuditReport) -> String {
    let mut out = Vec::new();
    text::write(report, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// Compares with the file, and writes it anew where that is allowed.
#[track_caller]
fn golden(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/report").join(name);
    if fs::read_to_string(&path).is_ok_and(|golden| golden == found) {
        return;
    }
    if std::env::var_os("CI").is_none() {
        fs::write(&path, found).unwrap();
    }
    panic!("{} is not what a report says now; without `CI` it is written anew", path.display());
}

#[tokio::test]
async fn a_report_says_the_same_in_all_its_forms_as_it_did() {
    let report = report().await;
    golden("report.txt", &as_text(&report));
    golden("report.json", &(serde_json::to_string_pretty(&report).unwrap() + "\n"));
    golden("report.html", &html::page(&report));
    are_of_today("report.sha256", ".ci/report-pictures", &BTreeMap::new());
}

#[tokio::test]
async fn what_is_counted_by_day_by_type_and_by_rule_is_what_was_sealed_and_is_open() {
    let report = report().await;
    let tenant = &report.tenants[0];
    let made: u64 = (0..486).flat_map(|hour| busy(hour).0).filter(|made| made.class == Class::Delivered).count() as u64;
    let by_day: u64 = tenant.days.iter().filter_map(|day| day.counts.as_ref()).map(|counts| counts.delivered).sum();
    let by_type: u64 = tenant.streams.iter().filter_map(|stream| stream.counts.as_ref()).map(|c| c.delivered).sum();
    // Of the receipts that are open, three say again what others say.
    assert_eq!((by_day, by_type), (made + 40, made + 40));
    for day in tenant.days.iter().filter(|day| day.counts.is_some()) {
        let of_types: u64 = day.by_type.values().map(|counts| counts.delivered).sum();
        assert_eq!(of_types, day.counts.unwrap().delivered, "{}", day.day);
    }
    let dropped: u64 = tenant.streams.iter().filter_map(|stream| stream.counts.as_ref()).map(|c| c.dropped).sum();
    let by_rule: u64 = tenant.dropped_by_rule.as_ref().unwrap().iter().map(|rule| rule.events).sum();
    assert_eq!(dropped, by_rule);
    let hours: u64 = tenant.days.iter().map(|day| day.hours.all).sum();
    assert_eq!(hours, tenant.receipts.hours.all);
}

#[tokio::test]
async fn of_an_empty_state_everything_is_not_known_and_nothing_is_zero() {
    let state = MemoryStore::new();
    let asked = ReportRequest { from: Some(at("2026-11-20T00:00:00Z")), ..asked() };
    let tenants = vec![ReportTenant { reconcile: Reconcile::None, ..contoso() }];
    let report = gather(&state, &asked, tenants).await.unwrap();
    let tenant = &report.tenants[0];
    assert_eq!(report.completeness, Completeness::NotCovered);
    assert_eq!(tenant.receipts.chain, Chain::NothingSealed);
    assert_eq!(tenant.dropped_by_rule, None);
    assert_eq!(tenant.days.len(), 1, "days of which nothing is known are one row");
    assert_eq!((&*tenant.days[0].day, tenant.days[0].until.as_deref()), ("2026-11-20", Some("2026-11-30")));
    for stream in &tenant.streams {
        assert_eq!((stream.position.as_ref(), stream.counts.as_ref()), (None, None));
        assert_eq!(stream.bar.iter().map(|s| s.state).collect::<Vec<_>>(), [SegmentState::NotKnown]);
        assert_eq!((stream.lateness.events.as_ref(), stream.lateness.content.as_ref()), (None, None));
    }
    let shown = as_text(&report);
    let row = |name: &str| shown.lines().rfind(|line| line.trim_start().starts_with(name)).unwrap().to_owned();
    assert_eq!(row("2026-11-20 to 2026-11-30").matches("not known").count(), 6, "{shown}");
    assert_eq!(
        html::page(&report).matches("<td class=\"n\">0</td>").count(),
        3 * 5,
        "only what is left now is counted"
    );
}

#[tokio::test]
async fn a_period_that_was_asked_for_has_the_hours_in_it_and_no_other() {
    let state = state().await;
    let of = async |from: &str, to: &str| {
        let asked = ReportRequest { from: Some(at(from)), to: Some(at(to)), ..asked() };
        gather(&state, &asked, vec![contoso()]).await.unwrap()
    };
    let report = of("2026-11-24T10:00:00Z", "2026-11-24T12:00:00Z").await;
    let tenant = &report.tenants[0];
    assert!(!report.default_from);
    assert_eq!((tenant.days.len(), tenant.receipts.hours.all, tenant.receipts.hours.known), (1, 2, 2));
    // Hours 340 and 341 of those that were sealed.
    let made = [340, 341].into_iter().flat_map(|hour| busy(hour).0);
    let made = made.filter(|made| made.class == Class::Delivered).count() as u64;
    assert_eq!(tenant.days[0].counts.unwrap().delivered, made);
    assert!(tenant.streams.iter().all(|stream| stream.bar.len() == 1 && stream.counts_are_whole));
    let beyond = of("2026-11-30T00:00:00Z", "2027-06-01T00:00:00Z").await;
    assert_eq!(beyond.to, now(), "nothing is said of the future");
    let before = of("2026-01-01T00:00:00Z", "2026-01-03T00:00:00Z").await;
    assert_eq!(before.tenants[0].days[0].counts, None);
    assert_eq!(before.tenants[0].streams[0].counts, None);
}

#[tokio::test]
async fn receipts_that_were_changed_or_removed_are_told_and_their_hours_are_not_known() {
    let keys = ReceiptKeys::below(Keys::of(&tenant(CONTOSO)).receipts());
    let made = async |state: &MemoryStore, asked: &ReportRequest| gather(state, asked, vec![contoso()]).await.unwrap();
    let kinds = |report: &AuditReport| report.findings.iter().map(|finding| finding.kind).collect::<Vec<_>>();
    let state = state().await;
    let whole = made(&state, &asked()).await;
    assert!(!kinds(&whole).contains(&FindingKind::NotVerified));
    // An hour's checkpoint is gone.
    state.overwrite(&keys.checkpoint(340), None);
    let report = made(&state, &asked()).await;
    let receipts = &report.tenants[0].receipts;
    assert_eq!(receipts.chain, Chain::NotVerified);
    assert!(receipts.faults_in_all > 0 && !receipts.faults.is_empty());
    assert_eq!(receipts.hours.known, whole.tenants[0].receipts.hours.known - 1);
    assert!(kinds(&report).contains(&FindingKind::NotVerified));
    assert!(as_text(&report).contains("NOT verified"));
    // Another key signed them.
    let other = ReportRequest { key: Ok(signer(8).key().clone()), ..asked() };
    assert_eq!(made(&state, &other).await.tenants[0].receipts.chain, Chain::NotVerified);
    let none = ReportRequest { key: Err("there is no key".into()), ..asked() };
    let report = made(&state, &none).await;
    assert_eq!(report.tenants[0].receipts.chain, Chain::NotKnown("there is no key".into()));
    // The head cannot be read: nothing is known of receipts, and the rest of the report is as it was.
    state.overwrite(&keys.head(), Some("{".into()));
    let report = made(&state, &asked()).await;
    assert_eq!(report.tenants[0].receipts.chain, Chain::NotVerified);
    assert_eq!(report.tenants[0].receipts.hours.known, 0);
    assert_eq!(report.tenants[0].streams[0].bar, whole.tenants[0].streams[0].bar);
    // It is gone, and the parts are not.
    state.overwrite(&keys.head(), None);
    for asked in [asked(), none] {
        assert_eq!(made(&state, &asked).await.tenants[0].receipts.chain, Chain::NotVerified);
    }
}

#[tokio::test]
async fn hours_after_a_process_that_kept_no_receipts_are_not_known() {
    let state = state().await;
    let owner = Keys::of(&tenant(CONTOSO)).owner();
    state.overwrite(&owner, Some(format::encode(&Owner { format: FORMAT, writer: "another".into(), commit: None })));
    let asked = ReportRequest { from: Some(at("2026-11-30T10:00:00Z")), ..asked() };
    let report = gather(&state, &asked, vec![contoso()]).await.unwrap();
    let states: Vec<_> = report.tenants[0].receipts.bar.iter().map(|segment| segment.state).collect();
    assert_eq!(states, [SegmentState::Complete, SegmentState::InPart], "the open hour has some receipts");
    let later = ReportRequest { now: at("2026-11-30T18:20:00Z"), ..asked };
    let report = gather(&state, &later, vec![contoso()]).await.unwrap();
    assert_eq!(report.tenants[0].receipts.hours.not_known(), 6);
}

#[tokio::test]
async fn nothing_is_written_while_a_report_is_made() {
    let state = state().await;
    let before = state.list("").await.unwrap();
    gather(&state, &asked(), vec![contoso(), fabrikam()]).await.unwrap();
    assert_eq!(state.list("").await.unwrap(), before);
}

const HOSTILE: &str = "</style></td><script>alert(1)</script><img/src=x/onerror=alert(1)>\"'&";

/// Names and texts that others chose, wherever a report has one.
async fn hostile() -> AuditReport {
    let state = MemoryStore::new();
    sealed(&state, CONTOSO, ("2026-11-30T10:00:00Z", "2026-11-30T12:00:00Z"), &[], |hour| {
        (receipts(ContentType::Exchange, hour, &Class::Dropped(HOSTILE.into()), 3), BTreeMap::new())
    })
    .await;
    let keys = Keys::of(&tenant(CONTOSO));
    position(
        &state,
        (CONTOSO, ContentType::Exchange),
        "2026-11-29T00:00:00Z",
        "2026-11-30T12:00:00Z",
        &[("2026-11-29T05:00:00Z", "2026-11-29T06:00:00Z", HOSTILE)],
    )
    .await;
    let why = format!("\u{1b}[2J{HOSTILE}\u{202e}");
    put(
        &state,
        vec![(keys.aside_record(ContentType::Exchange, 1), format::encode(&aside(&why, "2026-11-30T10:00:00Z")))],
    )
    .await;
    let missing = serde_json::json!({ "id": why, "time": why, "operation": why });
    let verdict = serde_json::json!({
        "rows": 1, "classes": { "missing": 1 }, "only_ours": null, "witness": { "looks_cut": true, "why": [why] },
        "missing": [missing], "tenant": CONTOSO, "made": "2026-11-30T10:00:00Z", "evidence": [why],
    });
    let reconcile = reconciled::read(verdict.to_string().as_bytes(), &tenant(CONTOSO));
    let content_types = vec![ContentType::Exchange];
    let asked_tenant = ReportTenant { source: HOSTILE.into(), content_types, reconcile, ..contoso() };
    let other = ReportTenant { reconcile: Reconcile::Unreadable { why: why.clone() }, ..fabrikam() };
    let asked = ReportRequest { key: Ok(signer(7).key().clone()), program: HOSTILE.into(), ..asked() };
    gather(&state, &asked, vec![asked_tenant, other]).await.unwrap()
}

/// The elements of a page, in their order: name, attributes, and whether it ends one.
fn elements(page: &str) -> Vec<(String, String, bool)> {
    let mut elements = Vec::new();
    let body = page.split_once("<html").unwrap();
    let style = body.1.find("<style>").unwrap();
    let style_end = body.1.find("</style>").unwrap();
    let text = format!("<html{}{}", &body.1[..style], &body.1[style_end + "</style>".len()..]);
    for part in text.split('<').skip(1) {
        let (tag, _) = part.split_once('>').unwrap();
        let ends = tag.starts_with('/');
        let tag = tag.trim_start_matches('/');
        let (name, attributes) = tag.split_once([' ', '\n']).unwrap_or((tag, ""));
        elements.push((name.to_owned(), attributes.to_owned(), ends));
    }
    elements
}

#[tokio::test]
async fn a_page_is_well_formed_and_names_nothing_from_elsewhere_whatever_others_called_things() {
    for report in [report().await, hostile().await] {
        let page = html::page(&report);
        let known = [
            "html", "head", "meta", "title", "body", "main", "header", "section", "footer", "h1", "h2", "h3", "h4",
            "p", "div", "span", "b", "dl", "dt", "dd", "ul", "li", "table", "caption", "thead", "tbody", "tr", "th",
            "td", "svg", "defs", "rect", "path", "g", "use", "text",
        ];
        let mut open = Vec::new();
        for (name, attributes, ends) in elements(&page) {
            assert!(known.contains(&&*name), "<{name} {attributes}>");
            let names = attributes.split('"').step_by(2).map(|name| name.trim().trim_end_matches('='));
            let ours = [
                "lang",
                "charset",
                "http-equiv",
                "content",
                "name",
                "class",
                "id",
                "role",
                "tabindex",
                "scope",
                "colspan",
                "width",
                "height",
                "x",
                "y",
                "d",
                "cx",
                "cy",
                "r",
                "aria-label",
                "aria-labelledby",
                "aria-hidden",
                "focusable",
                "href",
                "",
                "/",
            ];
            for attribute in names {
                assert!(ours.contains(&attribute), "`{attribute}` in <{name} {attributes}>");
            }
            match (ends, attributes.ends_with('/') || name == "meta") {
                (true, _) => assert_eq!(open.pop().as_deref(), Some(&*name)),
                (false, false) => open.push(name),
                (false, true) => {}
            }
        }
        assert_eq!(open, Vec::<String>::new());
        for foreign in ["http:", "https:", "//", "@import", "<script", "<link", "<img", " style=", "\u{202e}", "\u{1b}"]
        {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert_eq!(page.matches("url(").count(), 0);
        assert_eq!(page.matches("href=\"").count(), page.matches("href=\"#p-").count());
    }
}

#[tokio::test]
async fn a_page_allows_its_own_style_alone() {
    use base64::Engine as _;
    let page = html::page(&report().await);
    let style = page.split_once("<style>").unwrap().1.split_once("</style>").unwrap().0;
    let hash = base64::engine::general_purpose::STANDARD.encode(m365_audit::receipts::merkle::sha256(style.as_bytes()));
    let policy = format!(
        "default-src &#39;none&#39;; style-src &#39;sha256-{hash}&#39;; base-uri &#39;none&#39;; form-action &#39;none&#39;"
    );
    assert!(page.contains(&format!("<meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">")), "{hash}");
    for needed in ["<html lang=\"en\">", "@media print", "@page", "prefers-color-scheme", "<meta name=\"viewport\""] {
        assert!(page.contains(needed), "{needed}");
    }
}

#[tokio::test]
async fn every_table_has_a_caption_and_heads_with_their_scope_and_every_section_is_there() {
    let page = html::page(&report().await);
    let tables = page.matches("<table>").count();
    assert!(tables > 15, "{tables}");
    assert_eq!(tables, page.matches("<caption>").count());
    assert_eq!(page.matches("<th ").count(), page.matches("<th scope=\"").count());
    assert!(!page.contains("<th>"));
    for heading in [
        "Missing, open or not known",
        "Tenants at a glance",
        "Tenant contoso",
        "What was read",
        "How far it was read, and what is left",
        "What became of the events",
        "Dropped by rule",
        "How late content came",
        "Receipts",
        "Comparison with Microsoft’s audit search",
        "Annex: days of fabrikam",
        "Which line answers which standard",
        "What this report does not prove",
        "Glossary",
    ] {
        assert!(page.contains(&format!(">{heading}</h")), "{heading}");
    }
    for standard in ["SOC 2", "2024/1774, Article 12", "AU-5"] {
        assert!(page.contains(standard), "{standard}");
    }
}

#[tokio::test]
async fn text_commands_no_terminal() {
    let shown = as_text(&hostile().await);
    assert!(!shown.chars().any(|c| c.is_control() && c != '\n' || c == '\u{202e}'), "{shown}");
    assert!(shown.contains("onerror=alert(1)"));
}
