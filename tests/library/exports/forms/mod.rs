//! Events of the feed as other programs write them: one function for each form, which takes events and gives a file.

pub mod powershell;
pub mod tables;
pub mod wrappers;

use m365_audit::exports::form::Form;
use serde_json::Value;

/// A form and what it keeps of an event.
pub struct Written {
    /// What a person would call it.
    pub name: &'static str,
    /// What the reader is to call it.
    pub form: Form,
    /// Writes a file.
    pub write: fn(&[Value]) -> Vec<u8>,
    /// Whether the form can hold this event at all.
    pub holds: fn(&Value) -> bool,
    /// The event without what the form cannot carry; `None` when little more than its identity is left.
    pub kept: fn(&Value) -> Option<Value>,
}

/// Whether any event can be held.
pub fn any(_: &Value) -> bool {
    true
}

/// Everything is kept.
pub fn all(event: &Value) -> Option<Value> {
    Some(event.clone())
}

/// Nothing but what stands around the event is kept for sure.
pub fn identity(_: &Value) -> Option<Value> {
    None
}

/// A form that keeps everything of every event.
pub fn whole(name: &'static str, form: Form, write: fn(&[Value]) -> Vec<u8>) -> Written {
    Written { name, form, write, holds: any, kept: all }
}

/// A member without regard to case.
pub fn member<'a>(event: &'a Value, name: &str) -> Option<&'a Value> {
    event.as_object()?.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// A member as text; empty where there is none.
pub fn text(event: &Value, name: &str) -> String {
    match member(event, name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    }
}

/// Lines of JSON.
pub fn lines(values: impl IntoIterator<Item = Value>) -> Vec<u8> {
    values.into_iter().fold(Vec::new(), |mut out, value| {
        out.extend_from_slice(value.to_string().as_bytes());
        out.push(b'\n');
        out
    })
}

/// `id,name` of every record type.
pub fn name_of_type(number: i64) -> Option<&'static str> {
    const TABLE: &str = include_str!("../../../../src/normalise/record_types.csv");
    let rows = TABLE.lines().skip(1).map(|line| line.splitn(3, ','));
    rows.filter_map(|mut row| Some((row.next()?.parse::<i64>().ok()?, row.next()?)))
        .find(|(id, name)| *id == number && !name.contains(' '))
        .map(|(_, name)| name)
}

/// `UserType` by number.
pub const USER_TYPES: [&str; 11] = [
    "Regular",
    "Reserved",
    "Admin",
    "DcAdmin",
    "System",
    "Application",
    "ServicePrincipal",
    "CustomPolicy",
    "SystemPolicy",
    "PartnerTechnician",
    "Guest",
];

/// The event with the names of its record type and its user type in place of their numbers.
pub fn with_names(event: &Value) -> Value {
    let mut event = event.clone();
    let Some(members) = event.as_object_mut() else { return event };
    if let Some(name) = members.get("RecordType").and_then(Value::as_i64).and_then(name_of_type) {
        members.insert("RecordType".into(), name.into());
    }
    let user_type = members.get("UserType").and_then(Value::as_u64).and_then(|at| USER_TYPES.get(at as usize));
    if let Some(name) = user_type {
        members.insert("UserType".into(), (*name).into());
    }
    event
}

/// The time with the `Z` that others add.
pub fn with_zone(event: &Value) -> String {
    let time = text(event, "CreationTime");
    let is_plain = time.len() == 19 && matches!(time.as_bytes().get(10), Some(b'T' | b' '));
    if is_plain { format!("{}Z", time.replacen(' ', "T", 1)) } else { time }
}

/// The event whose time is written as the feed nearly always does, `2026-03-02T10:15:00`: forms that write times their own
/// way do not keep how it was written.
pub fn with_usual_time(event: &Value) -> Option<Value> {
    let mut event = event.clone();
    let time = text(&event, "CreationTime");
    let members = event.as_object_mut()?;
    if let Some(kept) = members.values_mut().find(|value| value.as_str() == Some(&time) && !time.is_empty()) {
        *kept = time.strip_suffix('Z').unwrap_or(&time).replacen(' ', "T", 1).into();
    }
    Some(event)
}
