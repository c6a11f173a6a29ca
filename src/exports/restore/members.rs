//! The members of an event during its restoration.

use std::borrow::Cow;

use bytes::Bytes;

use super::super::outer::Outer;
use super::times::{TimeWriter, as_the_feed_writes};
use crate::normalise::{json, record_types};

/// The top-level members of an event, in order.
#[derive(Debug, Default)]
pub(crate) struct RestoredMembers<'a> {
    /// Keys without their quotes, still escaped, and the tokens of their values.
    pub entries: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// Whether they differ from the text they were read from.
    pub changed: bool,
}

impl<'a> RestoredMembers<'a> {
    /// The members of an object; `None` when the text is not one valid JSON object and nothing else.
    pub fn of(text: &'a str) -> Option<RestoredMembers<'a>> {
        let mut entries = Vec::with_capacity(48);
        let layout =
            json::scan_object(text, |key, value| entries.push((Cow::Borrowed(key), Cow::Borrowed(value)))).ok()?;
        text.get(layout.end..)?.trim().is_empty().then_some(RestoredMembers { entries, changed: false })
    }

    /// The token of a member, of repeated keys the last; `None` also for `null` and an empty text.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.entries.iter().rev().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| &**value).filter(|value| !matches!(*value, "null" | "\"\""))
    }

    /// The text of a member.
    pub fn text(&self, name: &str) -> Option<Cow<'_, str>> {
        json::scalar(self.get(name)?)
    }

    /// Gives a member another token, or adds it.
    pub fn set(&mut self, name: &'static str, token: String) {
        self.changed = true;
        match self.entries.iter_mut().rev().find(|(key, _)| key.eq_ignore_ascii_case(name)) {
            Some((_, value)) => *value = Cow::Owned(token),
            None => self.entries.push((Cow::Borrowed(name), Cow::Owned(token))),
        }
    }

    /// Gives a member a text, or adds it.
    pub fn set_text(&mut self, name: &'static str, text: &str) {
        self.set(name, token_of(text));
    }

    /// Adds missing identifying members from the wrapper.
    pub fn complete(&mut self, outer: &Outer) {
        let time = outer.time.as_deref().and_then(|text| as_the_feed_writes(text, TimeWriter::Region));
        for (name, text) in [
            ("Id", &outer.id),
            ("CreationTime", &time),
            ("Operation", &outer.operation),
            ("UserId", &outer.user),
            ("Workload", &outer.workload),
        ] {
            if let Some(text) = text.as_deref().filter(|text| !text.trim().is_empty())
                && self.get(name).is_none()
            {
                self.set_text(name, text);
            }
        }
        if let Some(text) = outer.record_type.as_deref().filter(|text| !text.trim().is_empty())
            && self.get("RecordType").is_none()
        {
            let token = token_of(text);
            self.set("RecordType", record_types::of_token(&token).map_or(token, |number| number.to_string()));
        }
    }

    pub fn to_bytes(&self) -> Bytes {
        let length = self.entries.iter().map(|(key, value)| key.len() + value.len() + 4).sum::<usize>() + 2;
        let mut out = Vec::with_capacity(length);
        out.push(b'{');
        for (index, (key, value)) in self.entries.iter().enumerate() {
            out.extend_from_slice(if index > 0 { b",\"" } else { b"\"" });
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(b"\":");
            out.extend_from_slice(value.as_bytes());
        }
        out.push(b'}');
        Bytes::from(out)
    }
}

/// A text as a JSON token.
pub(crate) fn token_of(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len() + 2);
    json::push_string(&mut out, text);
    String::from_utf8(out).unwrap_or_default()
}
