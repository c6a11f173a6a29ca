//! Records of ours that are not audit events: an interval that is gone, bytes that could not be read.
//!
//! They have no `event_id` and look the same in every format, so that one filter finds them everywhere.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{BlobContext, Origin, json, time};
use crate::model::{ContentType, TenantId, Timestamp};
use crate::severity::Severity;

/// `event_type` of a gap record.
pub const GAP: &str = "m365_audit.gap";
/// `event_type` of a record that carries bytes which could not be read as events.
pub const BAD_BLOB: &str = "m365_audit.bad_blob";
/// Both are about something lost or nearly so.
const SEVERITY: Severity = Severity::High;

/// An interval of one content type that can never be read.
#[derive(Debug, Clone, Copy)]
pub struct GapNotice<'a> {
    /// The tenant.
    pub tenant: &'a TenantId,
    /// The content type.
    pub content_type: ContentType,
    /// First instant of `contentCreated` that is gone.
    pub from: Timestamp,
    /// First instant after it.
    pub to: Timestamp,
    /// Why, as a slug (`outage`, `subscription_disabled`, `blob_expired`, `position_moved`).
    pub reason: &'a str,
    /// Why, in words.
    pub detail: &'a str,
    /// When it was noticed.
    pub now: Timestamp,
    /// The blob that is gone, when it is one.
    pub content_id: Option<&'a str>,
}

/// Bytes of a blob that could not be read as an event, or a piece of them.
#[derive(Debug, Clone, Copy)]
pub struct BadPiece<'a> {
    /// The blob they came in.
    pub blob: &'a BlobContext<'a>,
    /// When it was noticed.
    pub now: Timestamp,
    /// Where the piece begins in the blob, in bytes.
    pub offset: u64,
    /// How many bytes the blob has, when that is known.
    pub total: Option<u64>,
    /// The piece.
    pub bytes: &'a [u8],
    /// Why they could not be read, in words.
    pub reason: &'a str,
}

/// Appends a gap record; its time and severity.
pub fn render_gap(gap: &GapNotice<'_>, out: &mut Vec<u8>) -> (Timestamp, Severity) {
    let tenant = gap.tenant.as_str();
    begin(out, GAP, gap.now);
    let title =
        format!("{} of tenant {tenant} has a gap from {} to {}: {}", gap.content_type, gap.from, gap.to, gap.reason);
    text(out, "title", &title);
    text(out, "tenant_id", tenant);
    text(out, "content_type", gap.content_type.as_str());
    if let Some(content_id) = gap.content_id {
        text(out, "content_id", content_id);
    }
    instant(out, "gap_from", gap.from);
    instant(out, "gap_to", gap.to);
    text(out, "reason", gap.reason);
    text(out, "detail", gap.detail);
    out.push(b'}');
    (gap.now, SEVERITY)
}

/// The same as [`BadPiece`] for bytes of any origin.
#[derive(Debug, Clone, Copy)]
pub struct BadBytes<'a> {
    /// Where they came from.
    pub origin: Origin<'a>,
    /// When it was noticed.
    pub now: Timestamp,
    /// Where the piece begins in its input, in bytes.
    pub offset: u64,
    /// How many bytes the input has, when that is known.
    pub total: Option<u64>,
    /// The piece.
    pub bytes: &'a [u8],
    /// Why they could not be read, in words.
    pub reason: &'a str,
}

/// Appends a record that carries bytes as base64 in `body_base64`; its time and severity.
pub fn render_bad_blob(piece: &BadPiece<'_>, out: &mut Vec<u8>) -> (Timestamp, Severity) {
    let BadPiece { blob, now, offset, total, bytes, reason } = *piece;
    render_bad_bytes(&BadBytes { origin: Origin::of(blob), now, offset, total, bytes, reason }, out)
}

/// The same for bytes that may have come from elsewhere than a blob.
pub fn render_bad_bytes(piece: &BadBytes<'_>, out: &mut Vec<u8>) -> (Timestamp, Severity) {
    let BadBytes { origin, now, offset, total, bytes, reason } = *piece;
    begin(out, BAD_BLOB, now);
    text(out, "title", &format!("{} bytes could not be read as an audit event: {reason}", bytes.len()));
    origin.push(origin.tenant, out);
    text(out, "reason", reason);
    number(out, "offset", offset);
    if let Some(total) = total {
        number(out, "total", total);
    }
    key(out, "body_base64");
    out.push(b'"');
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    // The room is exactly what padded base64 takes, so this cannot fail; if it did the body would be cut, not the record.
    let written = out.get_mut(start..).and_then(|room| STANDARD.encode_slice(bytes, room).ok()).unwrap_or(0);
    out.truncate(start + written);
    out.extend_from_slice(b"\"}");
    (now, SEVERITY)
}

fn begin(out: &mut Vec<u8>, event_type: &str, now: Timestamp) {
    out.extend_from_slice(br#"{"source":"m365","category":"other""#);
    instant(out, "timestamp", now);
    text(out, "event_type", event_type);
    text(out, "severity", SEVERITY.as_str());
}

fn key(out: &mut Vec<u8>, key: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":");
}

fn text(out: &mut Vec<u8>, name: &str, value: &str) {
    key(out, name);
    json::push_string(out, value);
}

fn instant(out: &mut Vec<u8>, name: &str, at: Timestamp) {
    key(out, name);
    time::push(out, at);
}

fn number(out: &mut Vec<u8>, name: &str, value: u64) {
    key(out, name);
    out.extend_from_slice(value.to_string().as_bytes());
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
        render_gap(
            &GapNotice {
                tenant: &tenant,
                content_type: ContentType::General,
                from: at("2026-05-01T10:00:00Z"),
                to: at("2026-05-03T09:00:00Z"),
                reason: "outage",
                detail: "nothing was listed for 9 days",
                now: at("2026-05-10T00:00:00Z"),
                content_id: None,
            },
            &mut out,
        );
        out.push(b'\n');
        let blob = BlobContext {
            tenant: &tenant,
            content_type: ContentType::Exchange,
            content_id: "2026$1",
            content_created: at("2026-05-01T10:00:00.123Z"),
        };
        let piece = BadPiece {
            blob: &blob,
            now: at("2026-05-10T00:00:00Z"),
            offset: 3,
            total: Some(9),
            bytes: b"{\xff\"a",
            reason: "not JSON",
        };
        render_bad_blob(&piece, &mut out);
        expect![[r#"
            {"source":"m365","category":"other","timestamp":"2026-05-10T00:00:00Z","event_type":"m365_audit.gap","severity":"high","title":"Audit.General of tenant 7f3c0000-0000-0000-0000-000000000001 has a gap from 2026-05-01T10:00:00Z to 2026-05-03T09:00:00Z: outage","tenant_id":"7f3c0000-0000-0000-0000-000000000001","content_type":"Audit.General","gap_from":"2026-05-01T10:00:00Z","gap_to":"2026-05-03T09:00:00Z","reason":"outage","detail":"nothing was listed for 9 days"}
            {"source":"m365","category":"other","timestamp":"2026-05-10T00:00:00Z","event_type":"m365_audit.bad_blob","severity":"high","title":"4 bytes could not be read as an audit event: not JSON","tenant_id":"7f3c0000-0000-0000-0000-000000000001","content_type":"Audit.Exchange","content_id":"2026$1","content_created":"2026-05-01T10:00:00.123Z","reason":"not JSON","offset":3,"total":9,"body_base64":"e/8iYQ=="}"#]]
        .assert_eq(std::str::from_utf8(&out).unwrap());
    }
}
