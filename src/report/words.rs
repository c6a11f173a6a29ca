//! The words of a report, for a reader who has never seen the program.

use std::borrow::Cow;

use jiff::tz::TimeZone;

use super::model::{AuditReport, Chain, Completeness, FindingKind, SegmentState, Tenant};
use crate::model::{Timestamp, counted};

/// The text for an unknown value, which is never shown as zero.
pub(super) const NOT_KNOWN: &str = "not known";

/// A moment in UTC, which the report states once; with seconds if they are not 0.
pub(super) fn time(at: Timestamp) -> String {
    let at = TimeZone::UTC.to_datetime(at);
    let form = if at.second() == 0 { "%Y-%m-%d %H:%M" } else { "%Y-%m-%d %H:%M:%S" };
    at.strftime(form).to_string()
}

/// The same, or the text for none.
pub(super) fn time_or(at: Option<Timestamp>, none: &str) -> String {
    at.map_or_else(|| none.to_owned(), time)
}

/// A number of seconds in words.
pub(super) fn span(secs: i64) -> String {
    let secs = secs.unsigned_abs();
    let two = |large: u64, large_word: &str, small: u64, small_word: &str| match small {
        0 => counted(large, large_word),
        _ => format!("{large} {}{} {small} {small_word}", large_word, if large == 1 { "" } else { "s" }),
    };
    match secs {
        0..=119 => format!("{secs} s"),
        120..=7199 => format!("{} min", secs / 60),
        7200..=172_799 => two(secs / 3600, "hour", secs % 3600 / 60, "min"),
        _ => two(secs / 86_400, "day", secs % 86_400 / 3600, "h"),
    }
}

/// A bound of delays.
pub(super) fn bound(secs: u64) -> String {
    match secs {
        0..=59 => format!("{secs} s"),
        60..=3599 => format!("{} min", secs / 60),
        3600..=172_799 if secs < 86_400 => format!("{} h", secs / 3600),
        _ if secs.is_multiple_of(86_400) => format!("{} d", secs / 86_400),
        _ => format!("{} d {} h", secs / 86_400, secs % 86_400 / 3600),
    }
}

/// A delay as it was measured.
pub(super) fn delay(secs: u64) -> String {
    let two =
        |large: String, small: u64, unit: &str| if small == 0 { large } else { format!("{large} {small} {unit}") };
    match secs {
        0..=119 => format!("{secs} s"),
        120..=7199 => format!("{} min", secs / 60),
        7200..=172_799 => two(format!("{} h", secs / 3600), secs % 3600 / 60, "min"),
        _ => two(format!("{} d", secs / 86_400), secs % 86_400 / 3600, "h"),
    }
}

/// A number with separators: 1,234,567.
pub(super) fn number(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count that may be incomplete, in which case zero is not shown.
pub(super) fn at_least(count: u64, is_whole: bool) -> String {
    match count {
        _ if is_whole => number(count),
        0 => "none seen".to_owned(),
        _ => format!("≥ {}", number(count)),
    }
}

/// The reasons in a gap's record, in words.
pub(super) fn reasons(reason: &str) -> String {
    let one = |reason| match reason {
        "outage" => Cow::Borrowed("the collector did not read for longer than Microsoft keeps content"),
        "subscription_disabled" => Cow::Borrowed("the subscription to the feed was off"),
        "blob_expired" => Cow::Borrowed("content expired at Microsoft before it could be read"),
        "position_moved" => Cow::Borrowed("an operator moved the position past it"),
        other => Cow::Owned(format!("reason `{other}`")),
    };
    reason.split(", ").map(one).collect::<Vec<_>>().join("; and ")
}

/// One word for part of a bar.
pub(super) const fn state(state: SegmentState) -> &'static str {
    match state {
        SegmentState::Complete => "complete",
        SegmentState::Gap => "gap",
        SegmentState::NotYet => "not yet",
        SegmentState::NotRead => "not read",
        SegmentState::InPart => "in part",
        SegmentState::NotKnown => NOT_KNOWN,
    }
}

/// The kind of a finding, in a word or two.
pub(super) const fn kind(kind: FindingKind) -> &'static str {
    match kind {
        FindingKind::Lost => "missing",
        FindingKind::NotVerified => "not verified",
        FindingKind::NotCovered => "not covered",
        FindingKind::Open => "open",
        FindingKind::NotKnown => NOT_KNOWN,
        FindingKind::Note => "note",
    }
}

/// Whether it is complete, in two words.
pub(super) const fn verdict(completeness: Completeness) -> &'static str {
    match completeness {
        Completeness::Complete => "complete",
        Completeness::Open => "complete so far, with items left open",
        Completeness::NotCovered => "not covered for the whole period",
        Completeness::Incomplete => "not complete",
    }
}

/// Whether the receipts verify, in a few words.
pub(super) fn chain(chain: &Chain) -> String {
    match chain {
        Chain::Verified => "verified".to_owned(),
        Chain::NotVerified => "NOT verified".to_owned(),
        Chain::NothingSealed => "nothing was sealed yet".to_owned(),
        Chain::Off => "no receipts are kept".to_owned(),
        Chain::NotKnown(why) => format!("{NOT_KNOWN}: {why}"),
    }
}

/// Classes of a comparison: the name in its verdict, and the meaning.
pub(super) const CLASSES: [(&str, &str); 12] = [
    ("delivered", "the event was delivered"),
    ("repeated", "the same event stood in the export before"),
    ("dropped", "a rule dropped the event"),
    ("held", "the event waits on hold"),
    ("set_aside", "every receiver refused the event; it is kept aside"),
    ("not_read", "its content type is not configured"),
    ("in_gap", "it lies in a gap that this report names, or before the source began"),
    ("too_young", "it may still be on its way"),
    ("too_old", "older than receipts reach: cannot be told"),
    ("no_identity", "the row has no `Id`: cannot be told"),
    ("unreadable", "the row cannot be read"),
    ("missing", "none of these: the event is missing"),
];

/// The answer in plain words: period, tenants, whether it is complete, whether it was verified and compared.
pub(super) fn answer(report: &AuditReport) -> Vec<String> {
    let mut sentences = vec![format!(
        "This report says whether the Microsoft 365 audit log of {} was collected completely, from {} to {} (UTC).",
        tenants(&report.tenants),
        time(report.from),
        time(report.to)
    )];
    let lost = report.findings.iter().filter(|finding| finding.kind == FindingKind::Lost).count() as u64;
    sentences.push(match report.completeness {
        Completeness::Complete => {
            let mut streams = report.tenants.iter().flat_map(|tenant| &tenant.streams);
            let waits = streams.any(|stream| stream.on_hold.reads > 0);
            format!(
                "It is complete: all content that Microsoft made available was read, up to the time that each content type \
                 has reached below, and nothing is left over{}.",
                if waits { " but routine reads on hold, which are decided later" } else { "" }
            )
        }
        Completeness::Open => {
            "Nothing is known to be missing, but it is not all done: content or records are left that can still be read or \
             delivered. They are listed below."
                .to_owned()
        }
        Completeness::NotCovered => {
            "It does not cover the whole period: for part of it content was never to be read, or nothing \
                                     is known. Those parts are listed below."
                .to_owned()
        }
        Completeness::Incomplete => format!(
            "It is not complete: {} below what is missing, and why.",
            if lost == 1 { "one finding says".to_owned() } else { format!("{lost} findings say") }
        ),
    });
    sentences.push(verified(report));
    sentences.push(compared(report));
    sentences
}

fn tenants(tenants: &[Tenant]) -> String {
    match tenants {
        [one] => format!("tenant {}", one.source),
        many if many.len() <= 10 => {
            let names: Vec<&str> = many.iter().map(|tenant| &*tenant.source).collect();
            format!("{} tenants ({})", many.len(), names.join(", "))
        }
        many => format!("{} tenants", many.len()),
    }
}

/// The names of the tenants for which `holds` is true.
fn those(tenants: &[Tenant], holds: impl Fn(&Tenant) -> bool) -> Vec<&str> {
    tenants.iter().filter(|tenant| holds(tenant)).map(|tenant| &*tenant.source).collect()
}

/// Names in a sentence; if there are many, their number.
fn of(names: &[&str], all: usize) -> String {
    match names {
        _ if names.len() == all && all == 1 => String::new(),
        _ if names.len() == all => " of every tenant".to_owned(),
        names if names.len() <= 10 => format!(" of {}", names.join(", ")),
        names => format!(" of {} tenants", names.len()),
    }
}

fn verified(report: &AuditReport) -> String {
    let all = report.tenants.len();
    let bad = those(&report.tenants, |tenant| tenant.receipts.chain == Chain::NotVerified);
    let good = those(&report.tenants, |tenant| tenant.receipts.chain == Chain::Verified);
    if !bad.is_empty() {
        return format!(
            "The receipts{} were NOT verified: they were changed, or some are missing, and the counts that rest on them cannot \
             be relied on.",
            of(&bad, all)
        );
    }
    if good.is_empty() {
        return "No receipts were verified: the reasons are below, and nothing but the collector's own state stands behind the \
                counts."
            .to_owned();
    }
    let rest = if good.len() == all { String::new() } else { "; for the others see below".to_owned() };
    format!(
        "The signed receipts{} were verified when this report was made: nobody without the collector's key has changed, removed \
         or added one{rest}.",
        of(&good, all)
    )
}

fn compared(report: &AuditReport) -> String {
    use super::model::Reconcile;
    let mut made = Vec::new();
    for tenant in &report.tenants {
        if let Reconcile::Made(compared) = &tenant.reconcile {
            made.push((tenant, compared));
        }
    }
    match made.as_slice() {
        [] => "It was not compared with Microsoft's own audit search.".to_owned(),
        [(tenant, compared)] => format!(
            "The last comparison with Microsoft's own audit search{} was made on {}: {} of {} rows missing.",
            if report.tenants.len() == 1 { String::new() } else { format!(" of {}", tenant.source) },
            time(compared.made),
            number(compared.class("missing")),
            number(compared.rows)
        ),
        many => {
            let missing: u64 = many.iter().map(|(_, compared)| compared.class("missing")).sum();
            let rows: u64 = many.iter().map(|(_, compared)| compared.rows).sum();
            format!(
                "The last comparisons with Microsoft's own audit search ({} of {}) found {} of {} rows missing.",
                many.len(),
                counted(report.tenants.len() as u64, "tenant"),
                number(missing),
                number(rows)
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_spans_and_numbers_are_as_people_write_them() {
        let at = |text: &str| time(text.parse().unwrap());
        assert_eq!(at("2026-11-30T10:00:00Z"), "2026-11-30 10:00");
        assert_eq!(at("2026-11-30T10:00:05.25Z"), "2026-11-30 10:00:05");
        let spans =
            [(90, "90 s"), (7_199, "119 min"), (7_200, "2 hours"), (90_060, "25 hours 1 min"), (200_000, "2 days 7 h")];
        for (secs, expected) in spans {
            assert_eq!(span(secs), expected);
        }
        for (count, expected) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(number(count), expected);
        }
        let delays = [119, 7_199, 7_200, 172_800, 180_000].map(delay);
        assert_eq!(delays, ["119 s", "119 min", "2 h", "2 d", "2 d 2 h"]);
        let bounds = [60, 1_800, 3_600, 86_400, 604_800].map(bound);
        assert_eq!(bounds, ["1 min", "30 min", "1 h", "1 d", "7 d"]);
        assert_eq!(
            [(1_500, false), (0, false), (0, true)].map(|(n, whole)| at_least(n, whole)),
            ["≥ 1,500", "none seen", "0"]
        );
    }

    #[test]
    fn every_reason_of_a_gap_has_words() {
        for reason in ["outage", "subscription_disabled", "blob_expired", "position_moved"] {
            assert!(!reasons(reason).contains('`'), "{reason}");
        }
        assert_eq!(
            reasons("blob_expired, new_reason"),
            "content expired at Microsoft before it could be read; and reason `new_reason`"
        );
    }
}
