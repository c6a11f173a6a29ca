//! Derives the findings from the data read: what is missing, open or unknown, each in a sentence. Pure.

use jiff::SignedDuration;

use super::model::{
    Chain, Compared, Completeness, FindingKind, HealedSummary, Reconcile, ReportFinding, ReportedStream, ReportedWait,
    Segment, SegmentState, Tenant,
};
use super::words::{NOT_KNOWN, number, reasons, span, time, time_or};
use crate::model::{Timestamp, counted, shortened};

/// A smaller delay of the position is normal: the source lists every few minutes and stays some minutes behind
/// Microsoft.
const BEHIND: SignedDuration = SignedDuration::from_hours(1);
/// Streams of one tenant begin within moments of each other.
const BEGINS_TOGETHER: SignedDuration = SignedDuration::from_mins(1);
/// Gaps of one content type that are listed one by one; the JSON object and the bars have all.
const GAPS_LISTED: usize = 10;

/// All of one tenant, the worst first.
pub(super) fn findings(tenant: &Tenant, to: Timestamp) -> Vec<ReportFinding> {
    let mut found: Vec<ReportFinding> = Vec::new();
    for stream in &tenant.streams {
        of_stream(stream, to, &mut |kind, text| {
            let content_type = stream.content_type.clone();
            // A finding that holds for several content types is listed once.
            match found.iter_mut().find(|known| known.kind == kind && known.text == text) {
                Some(known) if !known.content_types.contains(&content_type) => known.content_types.push(content_type),
                _ => found.push(ReportFinding {
                    kind,
                    source: tenant.source.clone(),
                    content_types: vec![content_type],
                    text,
                }),
            }
        });
    }
    let mut add_finding = |kind, text| {
        found.push(ReportFinding { kind, source: tenant.source.clone(), content_types: Vec::new(), text });
    };
    of_receipts(tenant, &mut add_finding);
    of_comparison(&tenant.reconcile, &mut add_finding);
    found.sort_by_key(|finding| finding.kind);
    found
}

/// The completeness that follows from a tenant's findings.
pub(super) fn completeness<'f>(findings: impl IntoIterator<Item = &'f ReportFinding>) -> Completeness {
    let of = |finding: &ReportFinding| match finding.kind {
        FindingKind::Lost => Completeness::Incomplete,
        FindingKind::NotCovered => Completeness::NotCovered,
        FindingKind::Open => Completeness::Open,
        FindingKind::NotVerified | FindingKind::NotKnown | FindingKind::Note => Completeness::Complete,
    };
    findings.into_iter().map(of).max().unwrap_or(Completeness::Complete)
}

fn of_stream(stream: &ReportedStream, to: Timestamp, add_finding: &mut dyn FnMut(FindingKind, String)) {
    let Some(position) = &stream.position else {
        add_finding(
            FindingKind::NotCovered,
            format!("{NOT_KNOWN}: the state has no position of it, so it was never listed, or its state is gone."),
        );
        return;
    };
    let in_state = |state| stream.bar.iter().filter(move |segment: &&Segment| segment.state == state);
    for Segment { from, to, reason, .. } in in_state(SegmentState::Gap).take(GAPS_LISTED) {
        let why = reasons(reason.as_deref().unwrap_or_default());
        let long = span(to.duration_since(*from).as_secs());
        let text = format!(
            "content made available from {} to {} ({long}) can no longer be read: {why}.",
            time(*from),
            time(*to)
        );
        add_finding(FindingKind::Lost, text);
    }
    for HealedSummary { from, to, at, events } in &stream.healed {
        let text = format!(
            "a gap from {} to {} was filled through Microsoft Graph on {}, with {} of all content types. A comparison with the \
             audit search does not tell of it: both are the same source.",
            time(*from),
            time(*to),
            time(*at),
            counted(*events, "event")
        );
        add_finding(FindingKind::Note, text);
    }
    let more = in_state(SegmentState::Gap).count().saturating_sub(GAPS_LISTED);
    if more > 0 {
        add_finding(FindingKind::Lost, format!("{} more can no longer be read.", counted(more as u64, "interval")));
    }
    for segment in in_state(SegmentState::NotRead) {
        if segment.to.duration_since(segment.from) > BEGINS_TOGETHER {
            let text = format!(
                "content made available before {} is never read: the source begins there.",
                time(position.origin)
            );
            add_finding(FindingKind::NotCovered, text);
        }
    }
    let stands = position.complete_until.map_or(position.origin, |complete| complete.max(position.origin));
    let behind = to.duration_since(stands);
    if behind > BEHIND && in_state(SegmentState::NotYet).next().is_some() {
        let long = span(behind.as_secs());
        add_finding(
            FindingKind::Open,
            format!("content made available since {} is not read yet ({long} behind).", time(stands)),
        );
    }
    if let Some(since) = position.disabled_since {
        add_finding(FindingKind::Open, format!("the subscription to the feed is off since {}.", time(since)));
    }
    of_what_is_left(stream, add_finding);
}

fn of_what_is_left(stream: &ReportedStream, add_finding: &mut dyn FnMut(FindingKind, String)) {
    if stream.owed.blobs > 0 {
        let text = format!(
            "{} of content listed and not read yet; the oldest was made available {}, the first expires {}.",
            counted(stream.owed.blobs, "blob"),
            time_or(stream.owed.oldest, NOT_KNOWN),
            time_or(stream.owed.first_expires, NOT_KNOWN)
        );
        add_finding(FindingKind::Open, text);
    }
    if stream.set_aside.records > 0 {
        let is_one = stream.set_aside.records == 1;
        let text = format!(
            "{} set aside, because every receiver refused {}; the oldest since {}. `m365-audit state export` writes them out, \
             `state retry` offers them again.",
            counted(stream.set_aside.records, "record"),
            if is_one { "it" } else { "them" },
            time_or(stream.set_aside.oldest, NOT_KNOWN)
        );
        add_finding(FindingKind::Open, text);
    }
    if stream.on_hold.reads > 0 {
        let waits = match &stream.on_hold.waits_for {
            Some(ReportedWait { content_type, needed_until, complete_until }) => format!(
                "they wait until {content_type} is complete until {}; it is until {}",
                time(*needed_until),
                time_or(*complete_until, "no time yet")
            ),
            None => "they may be decided".to_owned(),
        };
        let text = format!(
            "{} on hold until it is known whether data loss prevention flagged them: {waits}.",
            counted(stream.on_hold.reads, "routine read")
        );
        add_finding(FindingKind::Note, text);
    }
}

fn of_receipts(tenant: &Tenant, add_finding: &mut dyn FnMut(FindingKind, String)) {
    let receipts = &tenant.receipts;
    match &receipts.chain {
        Chain::Verified => {}
        Chain::NotVerified => {
            let first = receipts.faults.first().map(|fault| shortened(fault).into_owned()).unwrap_or_default();
            add_finding(
                FindingKind::NotVerified,
                format!(
                    "the receipts do not verify: {}. The first: {first}.",
                    counted(receipts.faults_in_all, "fault")
                ),
            );
        }
        Chain::NothingSealed => add_finding(
            FindingKind::NotKnown,
            "no receipts were sealed yet, so there is nothing to verify: an hour is sealed when it has ended."
                .to_owned(),
        ),
        Chain::Off => add_finding(
            FindingKind::NotKnown,
            "no receipts are kept (`[receipts] days = 0`), so it is not known what became of each event.".to_owned(),
        ),
        Chain::NotKnown(why) => {
            add_finding(
                FindingKind::NotKnown,
                format!("it is not known whether the receipts verify: {}.", shortened(why)),
            );
        }
    }
    let hours = &receipts.hours;
    if receipts.chain != Chain::Off && hours.not_known() > 0 {
        let text = format!(
            "receipts do not reach {} of the {} hours of the period: what became of events in them is not known.",
            number(hours.not_known()),
            number(hours.all)
        );
        add_finding(FindingKind::NotKnown, text);
    }
    if hours.in_part > 0 {
        let text = format!(
            "in {} some events may have no receipt, because receipts begin there or are damaged; counts of such days are \
             written with ≥.",
            counted(hours.in_part, "hour")
        );
        add_finding(FindingKind::NotKnown, text);
    }
}

fn of_comparison(reconcile: &Reconcile, add_finding: &mut dyn FnMut(FindingKind, String)) {
    let compared = match reconcile {
        Reconcile::None => {
            let text =
                "it was never compared with an export of Microsoft's audit search: `m365-audit reconcile` does that.";
            return add_finding(FindingKind::NotKnown, text.to_owned());
        }
        Reconcile::Unreadable { why } => {
            let text = format!("the verdict of the last comparison cannot be read: {}.", shortened(why));
            return add_finding(FindingKind::NotKnown, text);
        }
        Reconcile::Made(compared) => compared,
    };
    let Compared { made, rows, .. } = &**compared;
    let missing = compared.class("missing");
    if missing > 0 {
        let text = format!(
            "{} of {} rows of an export of Microsoft's audit search are missing here (comparison of {}).",
            number(missing),
            number(*rows),
            time(*made)
        );
        add_finding(FindingKind::Lost, text);
    }
    if compared.looks_cut {
        let why = if compared.why.is_empty() { String::new() } else { format!(": {}", compared.why.join("; ")) };
        let text =
            format!("the export that was compared looks cut{}, so events may be missing in both.", shortened(&why));
        add_finding(FindingKind::NotKnown, text);
    }
    let untold: u64 =
        ["too_old", "no_identity", "unreadable", "too_young"].iter().map(|class| compared.class(class)).sum();
    if untold > 0 {
        let text =
            format!("of {} rows of the compared export it cannot be told whether they were delivered.", number(untold));
        add_finding(FindingKind::NotKnown, text);
    }
}
