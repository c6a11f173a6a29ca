//! The canonical key: one event's identity, whatever form it came in.
//!
//! The feed, the audit search, PowerShell and Microsoft Graph write the same event in different texts: a time with `Z`
//! or without, a record type as a number or a name. This key is over what those texts say, so that one event has one
//! key in all of them. Its definition and its test vectors are in `docs/receipts.md`; whoever wants to compare has to
//! compute it the same way, so it never changes. It is not the key by which repeated events are removed
//! (`checkpoint::key_set`), which is over the texts as they are.

use std::fmt;

use jiff::tz::TimeZone;
use ring::digest;

use super::event::{Event, Member};
use super::time;

/// 128 bits that one event has in every form.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CanonicalKey([u8; 16]);

impl CanonicalKey {
    /// The key's bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for CanonicalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CanonicalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The key of an event; `None` when it has no usable `Id`, for then nothing outside can name it.
pub fn canonical_key(event: &Event<'_>) -> Option<CanonicalKey> {
    let identity = event.identity()?;
    let mut id = identity.id.trim().to_owned();
    id.make_ascii_lowercase();
    let record_type = match event.record_type() {
        Some(number) => number.to_string(),
        None => identity.record_type.trim().to_owned(),
    };
    let creation_time =
        whole_seconds(identity.creation_time).unwrap_or_else(|| identity.creation_time.trim().to_owned());
    let record_number = match event.integer(Member::RecordNumber) {
        Some(number) => number.to_string(),
        None => identity.record_number.trim().to_owned(),
    };
    let mut hashed = Vec::with_capacity(192);
    for text in [&*id, &*record_type, &*creation_time, identity.operation, &*record_number] {
        push_netstring(&mut hashed, text.as_bytes());
    }
    let digest = digest::digest(&digest::SHA256, &hashed);
    digest.as_ref().first_chunk().copied().map(CanonicalKey)
}

/// `2026-07-17T08:28:17Z` of any text that `time::parse` reads; a fraction is cut off.
fn whole_seconds(text: &str) -> Option<String> {
    let at = time::parse(text)?.at;
    Some(TimeZone::UTC.to_datetime(at).strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// `5:hello,`: no text can run into the next.
fn push_netstring(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(text.len().to_string().as_bytes());
    out.push(b':');
    out.extend_from_slice(text);
    out.push(b',');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(json: &str) -> Option<String> {
        canonical_key(&Event::parse(json.as_bytes()).unwrap()).map(|key| key.to_string())
    }

    #[test]
    fn the_forms_of_one_event_have_one_key() {
        let feed = r#"{"Id":"5E1D2A10-0000-4000-8000-00000000000A","RecordType":65,"CreationTime":"2026-07-17T08:28:17","Operation":"QuarantineReleaseMessage"}"#;
        let expected = key(feed);
        assert!(expected.is_some());
        for other in [
            r#"{"id":"5e1d2a10-0000-4000-8000-00000000000a","RecordType":"65","CreationTime":"2026-07-17T08:28:17Z","Operation":"QuarantineReleaseMessage","RecordNumber":null}"#,
            r#"{"Id":"5E1D2A10-0000-4000-8000-00000000000a","RecordType":"Quarantine","CreationTime":"2026-07-17 08:28:17","Operation":"QuarantineReleaseMessage"}"#,
            r#"{"Id":" 5e1d2a10-0000-4000-8000-00000000000a ","RecordType":"quarantine","CreationTime":"2026-07-17T08:28:17.0000000Z","Operation":"QuarantineReleaseMessage","RecordNumber":""}"#,
            r#"{"Id":"5e1d2a10-0000-4000-8000-00000000000a","RecordType":65.0,"CreationTime":"2026-07-17T10:28:17.999+02:00","Operation":"QuarantineReleaseMessage"}"#,
        ] {
            assert_eq!(key(other), expected, "{other}");
        }
    }

    #[test]
    fn what_differs_in_any_part_has_another_key() {
        let mut keys = std::collections::BTreeSet::new();
        let others = [
            r#"{"Id":"a","RecordType":1,"CreationTime":"2026-07-17T08:28:17","Operation":"o"}"#,
            r#"{"Id":"b","RecordType":1,"CreationTime":"2026-07-17T08:28:17","Operation":"o"}"#,
            r#"{"Id":"a","RecordType":2,"CreationTime":"2026-07-17T08:28:17","Operation":"o"}"#,
            r#"{"Id":"a","CreationTime":"2026-07-17T08:28:17","Operation":"o"}"#,
            r#"{"Id":"a","RecordType":"NobodyKnows","CreationTime":"2026-07-17T08:28:17","Operation":"o"}"#,
            r#"{"Id":"a","RecordType":1,"CreationTime":"2026-07-17T08:28:18","Operation":"o"}"#,
            r#"{"Id":"a","RecordType":1,"CreationTime":"yesterday","Operation":"o"}"#,
            r#"{"Id":"a","RecordType":1,"Operation":"o"}"#,
            r#"{"Id":"a","RecordType":1,"CreationTime":"2026-07-17T08:28:17","Operation":"O"}"#,
            r#"{"Id":"a","RecordType":1,"CreationTime":"2026-07-17T08:28:17","Operation":"o "}"#,
            r#"{"Id":"a","RecordType":1,"CreationTime":"2026-07-17T08:28:17","Operation":"o","RecordNumber":1}"#,
            r#"{"Id":"a","RecordType":1,"CreationTime":"2026-07-17T08:28:17","Operation":"o","RecordNumber":2}"#,
        ];
        for json in others {
            keys.insert(key(json).unwrap());
        }
        assert_eq!(keys.len(), others.len());
    }

    #[test]
    fn an_event_without_a_usable_id_has_no_key() {
        for json in ["{}", r#"{"Id":null,"Operation":"o"}"#, r#"{"Id":"  "}"#, r#"{"Id":{}}"#] {
            assert_eq!(key(json), None, "{json}");
        }
    }
}
