//! The content of a record that the program itself makes, before it is written in a format.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::writer::Writer;
use super::{Origin, json, time};
use crate::model::Timestamp;
use crate::severity::Severity;

/// The content of a record that the program itself makes. Its members have the same names in every format: at the top
/// in the native format, below `m365.audit` in ECS, below `unmapped` in OCSF.
#[derive(Debug)]
pub(crate) struct Notice<'a> {
    /// `event_type`.
    pub event_type: &'static str,
    /// One line for people.
    pub title: String,
    /// When it was noticed.
    pub time: Timestamp,
    /// Its severity.
    pub severity: Severity,
    /// The origin of the affected bytes or interval.
    pub origin: Origin<'a>,
    /// The rest, in order.
    pub members: Vec<(&'static str, NoticeValue<'a>)>,
}

/// The value of a member of a [`Notice`].
#[derive(Debug)]
pub(crate) enum NoticeValue<'a> {
    /// A text.
    Text(&'a str),
    /// A text made for the record.
    Made(String),
    /// A number.
    Number(u64),
    /// True or false.
    Flag(bool),
    /// Texts.
    Texts(&'a [&'a str]),
    /// A time.
    Time(Timestamp),
    /// Bytes, as base64.
    Base64(&'a [u8]),
}

impl NoticeValue<'_> {
    pub(super) fn push(&self, out: &mut Vec<u8>) {
        match self {
            Self::Text(text) => json::push_string(out, text),
            Self::Made(text) => json::push_string(out, text),
            Self::Number(number) => out.extend_from_slice(number.to_string().as_bytes()),
            Self::Flag(flag) => out.extend_from_slice(if *flag { b"true" } else { b"false" }),
            Self::Texts(texts) => {
                out.push(b'[');
                for (at, text) in texts.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    json::push_string(out, text);
                }
                out.push(b']');
            }
            Self::Time(at) => time::push(out, *at),
            Self::Base64(bytes) => {
                out.push(b'"');
                let start = out.len();
                out.resize(start + bytes.len().div_ceil(3) * 4, 0);
                // The reserved space is exactly the length of padded base64, so this cannot fail; if it did, the body
                // would be cut, not the record.
                let written = out.get_mut(start..).and_then(|room| STANDARD.encode_slice(bytes, room).ok());
                out.truncate(start + written.unwrap_or(0));
                out.push(b'"');
            }
        }
    }
}

impl Notice<'_> {
    /// Appends the members that only a record of this type has.
    pub fn push_members(&self, w: &mut Writer<'_>) {
        for (name, value) in &self.members {
            w.value(name, |out| value.push(out));
        }
    }
}
