//! Records of the program itself, which are not audit events: an interval that is lost, bytes that could not be parsed.
//!
//! The content of such a record is a [`Notice`]; each format has one envelope for all of them, so that they are indexed
//! with the events. They have no `event_id`. In the raw format, which has no envelope, they are as in the native one.

use super::notice::{Notice, NoticeValue};
use super::writer::Writer;
use super::{BlobContext, Origin, ecs, ocsf, time};
use crate::config::{Format, OcsfVersion};
use crate::model::{ContentType, TenantId, Timestamp};
use crate::severity::Severity;

/// `event_type` of a gap record.
pub const GAP: &str = "m365_audit.gap";
/// `event_type` of a record that says that a gap is filled.
pub const GAP_HEALED: &str = "m365_audit.gap_healed";
/// `event_type` of a record that carries bytes which could not be read as events.
pub const BAD_BLOB: &str = "m365_audit.bad_blob";

/// `event_type` of a record that carries the signed checkpoint of a part of the receipts.
pub const RECEIPT: &str = "m365_audit.receipt";

/// Appends the record; returns its time and severity.
pub(crate) fn push(
    notice: &Notice<'_>,
    (format, version): (Format, OcsfVersion),
    out: &mut Vec<u8>,
) -> (Timestamp, Severity) {
    match format {
        Format::Native | Format::Raw => push_native(notice, out),
        Format::Ecs => ecs::push_notice(notice, out),
        Format::Ocsf => ocsf::push_notice(notice, version, out),
    }
    (notice.time, notice.severity)
}

fn push_native(notice: &Notice<'_>, out: &mut Vec<u8>) {
    Writer::object(out, |w| {
        w.text("source", "m365");
        w.text("category", "other");
        w.value("timestamp", |out| time::push(out, notice.time));
        w.text("event_type", notice.event_type);
        w.text("severity", notice.severity.as_str());
        w.text("title", &notice.title);
        w.maybe("tenant_id", notice.origin.tenant);
        w.maybe("content_type", notice.origin.content_type.map(|content_type| content_type.as_str()));
        w.maybe("content_id", notice.origin.content_id);
        if let Some(created) = notice.origin.content_created {
            w.value("content_created", |out| time::push(out, created));
        }
        notice.push_members(w);
    });
}

/// An interval of one content type that can no longer be read.
#[derive(Debug, Clone, Copy)]
pub struct GapNotice<'a> {
    /// The tenant.
    pub tenant: &'a TenantId,
    /// The content type.
    pub content_type: ContentType,
    /// First instant of `contentCreated` that is lost.
    pub from: Timestamp,
    /// First instant after it.
    pub to: Timestamp,
    /// The reason as a slug (`outage`, `subscription_disabled`, `blob_expired`, `position_moved`).
    pub reason: &'a str,
    /// The reason in words.
    pub detail: &'a str,
    /// When it was noticed.
    pub now: Timestamp,
    /// The lost blob, if the gap is a single blob.
    pub content_id: Option<&'a str>,
}

impl<'a> GapNotice<'a> {
    pub(crate) fn notice(&self) -> Notice<'a> {
        let GapNotice { tenant, content_type, from, to, reason, detail, now, content_id } = *self;
        Notice {
            event_type: GAP,
            title: format!("{content_type} of tenant {tenant} has a gap from {from} to {to}: {reason}"),
            time: now,
            severity: Severity::High,
            origin: Origin {
                tenant: Some(tenant.as_str()),
                content_type: Some(content_type),
                content_id,
                content_created: None,
                source: None,
            },
            members: vec![
                ("gap_from", NoticeValue::Time(from)),
                ("gap_to", NoticeValue::Time(to)),
                ("reason", NoticeValue::Text(reason)),
                ("detail", NoticeValue::Text(detail)),
            ],
        }
    }
}

/// An interval of one content type that was filled through Microsoft Graph.
#[derive(Debug, Clone, Copy)]
pub struct HealedNotice<'a> {
    /// The tenant.
    pub tenant: &'a TenantId,
    /// The content type.
    pub content_type: ContentType,
    /// First instant of `contentCreated` that is filled.
    pub from: Timestamp,
    /// First instant after it.
    pub to: Timestamp,
    /// Why the gap was declared.
    pub reason: &'a str,
    /// The ids of the searches.
    pub queries: &'a [&'a str],
    /// Distinct records that they returned, of all content types.
    pub records: u64,
    /// Events delivered of them, of all content types.
    pub events: u64,
    /// How often they were read.
    pub readings: u64,
    /// When it was filled.
    pub now: Timestamp,
}

impl<'a> HealedNotice<'a> {
    pub(crate) fn notice(&self) -> Notice<'a> {
        let HealedNotice { tenant, content_type, from, to, reason, queries, records, events, readings, now } = *self;
        Notice {
            event_type: GAP_HEALED,
            title: format!(
                "the gap of {content_type} of tenant {tenant} from {from} to {to} is filled through Microsoft Graph"
            ),
            time: now,
            severity: Severity::Low,
            origin: Origin { tenant: Some(tenant.as_str()), content_type: Some(content_type), ..Origin::default() },
            members: vec![
                ("gap_from", NoticeValue::Time(from)),
                ("gap_to", NoticeValue::Time(to)),
                ("reason", NoticeValue::Text(reason)),
                ("queries", NoticeValue::Texts(queries)),
                ("records", NoticeValue::Number(records)),
                ("events", NoticeValue::Number(events)),
                ("readings", NoticeValue::Number(readings)),
                // An interval whose readings did not agree stays a gap.
                ("readings_agree", NoticeValue::Flag(true)),
            ],
        }
    }
}

/// The signed checkpoint of a sealed part of the receipts, shipped so that a copy leaves the machine.
#[derive(Debug, Clone, Copy)]
pub struct ReceiptNotice<'a> {
    /// The tenant.
    pub tenant: &'a TenantId,
    /// The part's number.
    pub seq: u64,
    /// When its hour begins.
    pub hour: Timestamp,
    /// How many receipts it has.
    pub receipts: u64,
    /// The signed note (`docs/receipts.md`).
    pub checkpoint: &'a str,
    /// When it was sealed.
    pub now: Timestamp,
}

impl<'a> ReceiptNotice<'a> {
    pub(crate) fn notice(&self) -> Notice<'a> {
        let ReceiptNotice { tenant, seq, hour, receipts, checkpoint, now } = *self;
        Notice {
            event_type: RECEIPT,
            title: format!("{receipts} receipts of tenant {tenant} are sealed: part {seq}, of the hour from {hour}"),
            time: now,
            severity: Severity::Info,
            origin: Origin {
                tenant: Some(tenant.as_str()),
                content_type: None,
                content_id: None,
                content_created: None,
                source: None,
            },
            members: vec![
                ("receipt_part", NoticeValue::Number(seq)),
                ("receipt_hour", NoticeValue::Time(hour)),
                ("receipts", NoticeValue::Number(receipts)),
                ("checkpoint", NoticeValue::Text(checkpoint)),
            ],
        }
    }
}

/// Bytes that could not be read as an event, or a piece of them.
#[derive(Debug, Clone, Copy)]
pub struct BadBytes<'a> {
    /// Where they came from.
    pub origin: Origin<'a>,
    /// When it was noticed.
    pub now: Timestamp,
    /// Where the piece begins in its input, in bytes.
    pub offset: u64,
    /// The size of the input in bytes, if known.
    pub total: Option<u64>,
    /// The piece.
    pub body: BadBody<'a>,
    /// Why they could not be read, in words.
    pub reason: &'a str,
    /// Their place in a file, if they came from one.
    pub found_in: FoundIn<'a>,
}

/// The place of bytes in a file, and the data on the event in the row or wrapper around them.
#[derive(Debug, Clone, Copy, Default)]
pub struct FoundIn<'a> {
    /// The file.
    pub file: Option<&'a str>,
    /// The line, from 1 on.
    pub line: Option<u64>,
    /// The row, from 1 on.
    pub row: Option<u64>,
    /// When the event happened.
    pub time: Option<&'a str>,
    /// Its id.
    pub id: Option<&'a str>,
    /// Its operation.
    pub operation: Option<&'a str>,
    /// Who acted.
    pub user: Option<&'a str>,
}

impl<'a> FoundIn<'a> {
    fn push_members(&self, members: &mut Vec<(&'static str, NoticeValue<'a>)>) {
        let text = |name, text: Option<&'a str>| text.map(|text| (name, NoticeValue::Text(text)));
        let number = |name, number: Option<u64>| number.map(|number| (name, NoticeValue::Number(number)));
        members.extend(text("file", self.file));
        members.extend(number("line", self.line));
        members.extend(number("row", self.row));
        members.extend(text("row_time", self.time));
        members.extend(text("row_id", self.id));
        members.extend(text("row_operation", self.operation));
        members.extend(text("row_user", self.user));
    }
}

/// The bytes of a [`BadBytes`], or their replacement.
#[derive(Debug, Clone, Copy)]
pub enum BadBody<'a> {
    /// The bytes.
    Shown(&'a [u8]),
    /// Bytes that are withheld: their number, their SHA-256 and the reason.
    Withheld {
        /// How many.
        bytes: u64,
        /// Their SHA-256.
        sha256: &'a [u8],
        /// Why they are not shown.
        why: Withheld,
        /// The number of stretches, if there are several.
        stretches: Option<u64>,
    },
}

/// Why bytes are not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withheld {
    /// They contain a masked name, or follow one, and cannot be parsed.
    Masked,
    /// The same for an input that the operator has.
    MaskedHere,
    /// Too many such bytes precede them in their blob.
    TooMany,
}

impl Withheld {
    /// The reason in words, with the place where the bytes still are.
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::Masked => {
                "they may hold what is masked and cannot be parsed; Microsoft has the original under `content_id` for seven days"
            }
            Self::MaskedHere => "they may hold what is masked and cannot be parsed; the input has them at `offset`",
            Self::TooMany => {
                "their blob has more such bytes than are shipped; Microsoft has the original under `content_id` for seven days"
            }
        }
    }
}

impl<'a> BadBytes<'a> {
    /// Bytes that may be shown.
    pub fn of(blob: &BlobContext<'a>, now: Timestamp, offset: u64, bytes: &'a [u8], reason: &'a str) -> Self {
        let body = BadBody::Shown(bytes);
        Self { origin: Origin::of(blob), now, offset, total: None, body, reason, found_in: FoundIn::default() }
    }

    pub(crate) fn notice(&self) -> Notice<'a> {
        let BadBytes { origin, now, offset, total, body, reason, found_in } = *self;
        let count = match body {
            BadBody::Shown(bytes) => bytes.len() as u64,
            BadBody::Withheld { bytes, .. } => bytes,
        };
        let mut title = format!("{count} bytes could not be read as an audit event: {reason}");
        let mut members = vec![("reason", NoticeValue::Text(reason)), ("offset", NoticeValue::Number(offset))];
        members.extend(total.map(|total| ("total", NoticeValue::Number(total))));
        found_in.push_members(&mut members);
        match body {
            BadBody::Shown(bytes) => members.push(("body_base64", NoticeValue::Base64(bytes))),
            BadBody::Withheld { bytes, sha256, why, stretches } => {
                title.push_str("; they are withheld");
                members.push(("body_withheld", NoticeValue::Text(why.in_words())));
                members.push(("body_bytes", NoticeValue::Number(bytes)));
                members.push(("body_sha256", NoticeValue::Made(hex(sha256))));
                members.extend(stretches.map(|stretches| ("body_stretches", NoticeValue::Number(stretches))));
            }
        }
        Notice { event_type: BAD_BLOB, title, time: now, severity: Severity::High, origin, members }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing into a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn records_of_ours_say_what_is_gone_and_keep_the_bytes() {
        let tenant: TenantId = "7f3c0000-0000-0000-0000-000000000001".parse().unwrap();
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let mut out = Vec::new();
        let native = (Format::Native, OcsfVersion::default());
        let gap = GapNotice {
            tenant: &tenant,
            content_type: ContentType::General,
            from: at("2026-05-01T10:00:00Z"),
            to: at("2026-05-03T09:00:00Z"),
            reason: "outage",
            detail: "nothing was listed for 9 days",
            now: at("2026-05-10T00:00:00Z"),
            content_id: None,
        };
        push(&gap.notice(), native, &mut out);
        out.push(b'\n');
        let blob = BlobContext {
            tenant: &tenant,
            content_type: ContentType::Exchange,
            content_id: "2026$1",
            content_created: at("2026-05-01T10:00:00.123Z"),
        };
        let piece =
            BadBytes { total: Some(9), ..BadBytes::of(&blob, at("2026-05-10T00:00:00Z"), 3, b"{\xff\"a", "not JSON") };
        push(&piece.notice(), native, &mut out);
        out.push(b'\n');
        let body = BadBody::Withheld { bytes: 5, sha256: &[0xab, 0x01], why: Withheld::Masked, stretches: Some(2) };
        push(&BadBytes { body, ..piece }.notice(), native, &mut out);
        expect![[r#"
            {"source":"m365","category":"other","timestamp":"2026-05-10T00:00:00Z","event_type":"m365_audit.gap","severity":"high","title":"Audit.General of tenant 7f3c0000-0000-0000-0000-000000000001 has a gap from 2026-05-01T10:00:00Z to 2026-05-03T09:00:00Z: outage","tenant_id":"7f3c0000-0000-0000-0000-000000000001","content_type":"Audit.General","gap_from":"2026-05-01T10:00:00Z","gap_to":"2026-05-03T09:00:00Z","reason":"outage","detail":"nothing was listed for 9 days"}
            {"source":"m365","category":"other","timestamp":"2026-05-10T00:00:00Z","event_type":"m365_audit.bad_blob","severity":"high","title":"4 bytes could not be read as an audit event: not JSON","tenant_id":"7f3c0000-0000-0000-0000-000000000001","content_type":"Audit.Exchange","content_id":"2026$1","content_created":"2026-05-01T10:00:00.123Z","reason":"not JSON","offset":3,"total":9,"body_base64":"e/8iYQ=="}
            {"source":"m365","category":"other","timestamp":"2026-05-10T00:00:00Z","event_type":"m365_audit.bad_blob","severity":"high","title":"5 bytes could not be read as an audit event: not JSON; they are withheld","tenant_id":"7f3c0000-0000-0000-0000-000000000001","content_type":"Audit.Exchange","content_id":"2026$1","content_created":"2026-05-01T10:00:00.123Z","reason":"not JSON","offset":3,"total":9,"body_withheld":"they may hold what is masked and cannot be parsed; Microsoft has the original under `content_id` for seven days","body_bytes":5,"body_sha256":"ab01","body_stretches":2}"#]]
        .assert_eq(std::str::from_utf8(&out).unwrap());
    }
}
