//! Category and event type of an event: the two words by which a route may select it, whatever the format of its
//! record. They are derived from the event, never from a record.

use smallvec::SmallVec;

use super::category::Category;
use super::event::{Event, KnownMember};
use super::workload;
use crate::severity::Severity;

/// Longer event types than this are rare.
const EVENT_TYPE_BYTES: usize = 64;

/// The kind of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A record of the program itself: an interval that is lost, bytes that cannot be parsed.
    Notice,
    /// An audit event.
    Event(EventKind),
}

/// Category and type of an audit event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventKind {
    /// The area, `category` of a native record.
    pub category: Category,
    /// `event_type` of a native record.
    pub event_type: EventType,
}

/// `m365.<workload>.<operation>`, each folded to `[a-z0-9_]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventType(SmallVec<[u8; EVENT_TYPE_BYTES]>);

/// Derives, when a host asks, the properties of a record that are not stored with it. For the raw format, which has no
/// fields for them.
pub trait Describe: std::fmt::Debug + Send + Sync {
    /// The severity of a record, one JSON object.
    fn severity(&self, json: &[u8]) -> Severity;
    /// Its kind; `None` if it cannot be derived.
    fn kind(&self, json: &[u8]) -> Option<Kind>;
}

impl EventKind {
    /// The kind of an event with this record type and folded operation.
    pub(crate) fn of(event: &Event<'_>, record_type: Option<i64>, operation: &str) -> Self {
        let workload = event.text_of(KnownMember::Workload);
        let alert_category = event.text_of(KnownMember::Category);
        let category = workload::category(workload.as_deref(), record_type, alert_category.as_deref());
        let mut event_type = SmallVec::from_slice(b"m365.");
        push_slug(&mut event_type, workload.as_deref().unwrap_or_default().trim());
        event_type.push(b'.');
        push_slug(&mut event_type, operation);
        Self { category, event_type: EventType(event_type) }
    }
}

impl EventType {
    /// The bytes, ASCII.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl From<&[u8]> for EventType {
    fn from(bytes: &[u8]) -> Self {
        Self(SmallVec::from_slice(bytes))
    }
}

/// Appends a folded name as one part of an event type: every run outside `[a-z0-9]` becomes `_`, and an empty name
/// becomes `unknown`.
fn push_slug(out: &mut SmallVec<[u8; EVENT_TYPE_BYTES]>, folded: &str) {
    if folded.is_empty() {
        out.extend_from_slice(b"unknown");
        return;
    }
    // Built in an array and copied at once: a vector that grows by the byte takes several times as long.
    let mut slug = [0; EVENT_TYPE_BYTES];
    let mut length = 0;
    let mut in_run = false;
    for byte in folded.bytes() {
        let byte = byte.to_ascii_lowercase();
        let plain = byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if plain || !in_run {
            if length == slug.len() {
                out.extend_from_slice(&slug);
                length = 0;
            }
            if let Some(place) = slug.get_mut(length) {
                *place = if plain { byte } else { b'_' };
                length += 1;
            }
        }
        in_run = !plain;
    }
    out.extend_from_slice(slug.get(..length).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::severity::operation;

    #[test]
    fn an_event_type_is_workload_and_operation_folded() {
        for (event, category, event_type) in [
            (
                r#"{"Workload":"Exchange","Operation":"New-InboxRule","RecordType":1}"#,
                "email",
                "m365.exchange.new_inboxrule",
            ),
            (
                r#"{"Workload":" Azure Active Directory ","Operation":"Add member to role."}"#,
                "identity",
                "m365.azure_active_directory.add_member_to_role",
            ),
            (
                r#"{"RecordType":11,"Workload":"Exchange","Operation":"DLPRuleMatch"}"#,
                "dlp",
                "m365.exchange.dlprulematch",
            ),
            ("{}", "other", "m365.unknown.unknown"),
            (r#"{"Workload":"É","Operation":"—"}"#, "other", "m365._._"),
        ] {
            let event = Event::parse(event.as_bytes()).unwrap();
            let operation = operation::fold(event.operation());
            let kind = EventKind::of(&event, event.integer(KnownMember::RecordType), &operation);
            assert_eq!((kind.category.as_str(), kind.event_type.as_str()), (category, event_type));
        }
    }
}
