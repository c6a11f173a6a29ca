//! Converts an event back to the form in which the feed sends it.
//!
//! An export writes the same event differently: PowerShell flattens objects and names numbers, Microsoft Graph adds its
//! own types and a `Z`, Sentinel renames the members. A restored event is read by the same rules as an event of the
//! feed, and has the same canonical key. Parts that a form has truncated are reported, never guessed.

use std::borrow::Cow;

use bytes::Bytes;

use super::office_activity;
use super::outer::Outer;
use super::powershell;
use crate::normalise::json;
use crate::normalise::{record_types, time, user_types};
use members::RestoredMembers;
use times::{TimeWriter, as_the_feed_writes};

pub(crate) mod loss;
pub(crate) mod members;
pub(crate) mod times;

pub use loss::{Loss, Unrestorable};

/// The notation of the inner object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// That of the feed.
    Feed,
    /// As Microsoft Graph writes `auditData`.
    Graph,
    /// As PowerShell's `ConvertTo-Json` and `Export-Csv` write objects.
    PowerShell,
    /// As Sentinel's table `OfficeActivity` names its columns.
    OfficeActivity,
}

/// The event in the feed's form, and the parts that its form had lost.
#[derive(Debug, Clone)]
pub struct Restored {
    /// The event.
    pub event: Bytes,
    /// The parts that the form had truncated.
    pub losses: Vec<Loss>,
    /// Whether an identifying member was missing and was added from the wrapper.
    pub is_completed: bool,
}

/// Converts an event back to the feed's form. An event already in that form costs one search. Missing identifying
/// members are taken from `outer`.
///
/// # Errors
/// The bytes are not one JSON object (for [`Dialect::PowerShell`] also `@{…}`), or all members that identify an event
/// are missing.
pub fn restore(event: &Bytes, outer: &Outer, dialect: Dialect) -> Result<Restored, Unrestorable> {
    let text = std::str::from_utf8(event).map_err(|_| unrestorable("is not UTF-8"))?.trim();
    let mut losses = Vec::new();
    let object = match dialect {
        Dialect::PowerShell if text.starts_with("@{") => {
            Cow::Owned(powershell::object(text, &mut losses).ok_or_else(|| unrestorable(CUT))?)
        }
        _ => Cow::Borrowed(text),
    };
    let mut members = RestoredMembers::of(&object).ok_or_else(|| unrestorable("is not one JSON object"))?;
    match dialect {
        Dialect::Feed => {}
        Dialect::Graph => without_graphs_own(&mut members, &mut losses),
        // An event that was one text has already been read back.
        Dialect::PowerShell if matches!(object, Cow::Owned(_)) => {}
        Dialect::PowerShell => read_back(&mut members, event, &mut losses),
        Dialect::OfficeActivity => office_activity::rename(&mut members, &mut losses),
    }
    if dialect != Dialect::Feed {
        numbers_for_names(&mut members);
        lists_without_entries(&members, &mut losses);
    }
    plain_time(&mut members, outer, dialect, &mut losses);
    let before = members.entries.len();
    members.complete(outer);
    let added = members.entries.get(before..).unwrap_or_default();
    let is_completed =
        added.iter().any(|(name, _)| matches!(&**name, "Id" | "CreationTime" | "Operation" | "RecordType"));
    if ["Id", "Operation", "CreationTime"].iter().all(|name| members.get(name).is_none()) {
        return Err(unrestorable("has no `Id`, `Operation` or `CreationTime`"));
    }
    let event = if members.changed || matches!(object, Cow::Owned(_)) { members.to_bytes() } else { event.clone() };
    Ok(Restored { event, losses, is_completed })
}

const CUT: &str = "is an object that PowerShell wrote as text, and is cut or can be read in two ways";

fn unrestorable(why: &str) -> Unrestorable {
    Unrestorable { why: format!("the event {why}") }
}

/// Replaces names by their numbers: `-Formatted`, Graph and Sentinel write names.
fn numbers_for_names(members: &mut RestoredMembers<'_>) {
    const LOGON_TYPES: [&[&str]; 3] = [&["Owner"], &["Admin"], &["Delegate", "Delegated"]];
    let logon = |name: &str| LOGON_TYPES.iter().position(|names| names.iter().any(|n| n.eq_ignore_ascii_case(name)));
    type NumberOf<'n> = &'n dyn Fn(&str) -> Option<i64>;
    let number_of: [(&str, NumberOf<'_>); 3] = [
        ("RecordType", &record_types::number),
        ("UserType", &user_types::number),
        ("LogonType", &|name: &str| i64::try_from(logon(name.trim())?).ok()),
    ];
    for (name, number_of) in number_of {
        let text = members.get(name).filter(|token| json::is_string(token)).and_then(json::scalar);
        if let Some(number) = text.and_then(|text| number_of(&text)) {
            members.set(name, number.to_string());
        }
    }
}

/// `CreationTime` in the feed's form. An ambiguous time is read as the outer time, if that is readable.
fn plain_time(members: &mut RestoredMembers<'_>, outer: &Outer, dialect: Dialect, losses: &mut Vec<Loss>) {
    if let Some(wrapped) = members.get("CreationTime").filter(|token| token.starts_with('{')) {
        match powershell::value(wrapped, "CreationTime", losses) {
            Some(read) => members.set("CreationTime", read),
            None => losses.push(Loss::at("CreationTime", wrapped)),
        }
    }
    let Some(text) = members.text("CreationTime").map(Cow::into_owned) else { return };
    let is_a_time = time::parse(&text).is_some();
    // Also if there is no such time: Graph adds its `Z` to any text.
    let is_graphs = dialect == Dialect::Graph && text.as_bytes().get(10) == Some(&b'T') && text.ends_with('Z');
    if is_a_time || is_graphs {
        // Where the feed writes neither a zone nor a fraction, Graph adds the zone, Sentinel both.
        let plain = match dialect {
            Dialect::Feed | Dialect::PowerShell => None,
            Dialect::Graph => text.strip_suffix('Z').map(str::to_owned),
            Dialect::OfficeActivity => as_the_feed_writes(&text, TimeWriter::Region),
        };
        if let Some(plain) = plain.filter(|plain| *plain != text) {
            members.set_text("CreationTime", &plain);
        }
        return;
    }
    let outer = || outer.time.as_deref().and_then(|text| as_the_feed_writes(text, TimeWriter::Region));
    match as_the_feed_writes(&text, TimeWriter::Region).or_else(outer) {
        Some(plain) => members.set_text("CreationTime", &plain),
        // A text that no program makes of a time belongs to the event.
        None if dialect == Dialect::Feed || !text.contains(['/', '.']) => {}
        None => losses.push(Loss::at("CreationTime", &text)),
    }
}

/// What PowerShell flattened, read back.
fn read_back(members: &mut RestoredMembers<'_>, event: &[u8], losses: &mut Vec<Loss>) {
    if !powershell::may_be_flattened(event) {
        return;
    }
    for (key, value) in &mut members.entries {
        let name = json::unescape(key);
        if let Some(read) = powershell::value(value, &name, losses) {
            *value = Cow::Owned(read);
            members.changed = true;
        }
    }
}

/// Lists of a flat row whose entries could not be joined are under the names of their columns.
fn lists_without_entries(members: &RestoredMembers<'_>, losses: &mut Vec<Loss>) {
    for (key, value) in members.entries.iter().filter(|(key, _)| key.contains("{}.")) {
        losses.push(Loss::at(json::unescape(key), &json::scalar(value).unwrap_or_default()));
    }
}

/// The depth to which Graph's types are searched.
const DEPTH_MAX: usize = 12;

/// Removes Graph's additions: `@odata.type` and similar members, at any depth. Its tools also put the members into a
/// dictionary, which in a table is only the name of a type.
fn without_graphs_own(members: &mut RestoredMembers<'_>, losses: &mut Vec<Loss>) {
    if let Some(name) = members.text("AuditData").filter(|text| text.starts_with("Microsoft.")) {
        losses.push(Loss::at("AuditData", &name));
        members.entries.retain(|(key, _)| !key.eq_ignore_ascii_case("AuditData"));
        members.changed = true;
    }
    for dictionary in ["AdditionalProperties", "dynamicProperties"] {
        let inner = members.get(dictionary).filter(|token| token.starts_with('{')).map(str::to_owned);
        let Some(inner) = inner.filter(|_| members.get("Id").is_none() && members.get("Operation").is_none()) else {
            continue;
        };
        members.entries.retain(|(key, _)| !key.eq_ignore_ascii_case(dictionary));
        json::members(&inner, |key, value| {
            members.entries.push((Cow::Owned(escaped(&key)), Cow::Owned(value.to_owned())));
        });
        members.changed = true;
    }
    let before = members.entries.len();
    members.entries.retain(|(key, _)| !is_graphs(key));
    members.changed |= members.entries.len() < before;
    for (_, value) in &mut members.entries {
        if let Some(clean) = clean(value, DEPTH_MAX) {
            *value = Cow::Owned(clean);
            members.changed = true;
        }
    }
}

fn is_graphs(key: &str) -> bool {
    key.contains("@odata.")
}

fn escaped(key: &str) -> String {
    let mut out = Vec::with_capacity(key.len());
    json::push_escaped(&mut out, key);
    String::from_utf8(out).unwrap_or_default()
}

/// A token without Graph's members; `None` when it has none.
fn clean(token: &str, depth: usize) -> Option<String> {
    if depth == 0 || !is_graphs(token) {
        return None;
    }
    let mut parts = Vec::new();
    let closing = match token.as_bytes().first() {
        Some(b'{') => {
            json::scan_object(token, |key, value| {
                if !is_graphs(key) {
                    let clean = clean(value, depth - 1);
                    parts.push(format!("\"{key}\":{}", clean.as_deref().unwrap_or(value)));
                }
            })
            .ok()?;
            ('{', '}')
        }
        Some(b'[') => {
            json::elements(token, |element| {
                parts.push(clean(element, depth - 1).unwrap_or_else(|| element.to_owned()));
            });
            ('[', ']')
        }
        _ => return None,
    };
    Some(format!("{}{}{}", closing.0, parts.join(","), closing.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(event: &str, outer: &Outer, dialect: Dialect) -> Result<(String, Vec<String>), String> {
        let restored = restore(&Bytes::copy_from_slice(event.as_bytes()), outer, dialect);
        let Restored { event, losses, .. } = restored.map_err(|error| error.to_string())?;
        let event = String::from_utf8(event.to_vec()).unwrap();
        assert!(json::is_valid(&event), "{event}");
        Ok((event, losses.into_iter().map(|loss| loss.member).collect()))
    }

    fn outer() -> Outer {
        let some = |text: &str| Some(text.to_owned());
        Outer {
            id: some("r1"),
            time: some("2026-03-02T10:15:00Z"),
            operation: some("Set-Mailbox"),
            user: some("alex@contoso.example"),
            record_type: some("ExchangeAdmin"),
            workload: None,
        }
    }

    #[test]
    fn an_event_in_the_feeds_form_is_left_alone() {
        let event = Bytes::from_static(
            br#" {"Id":"a", "RecordType": 1,"CreationTime":"2026-03-02T10:15:00Z","Operation":"o","UserId":"u"} "#,
        );
        for dialect in [Dialect::Feed, Dialect::PowerShell, Dialect::Graph] {
            let event = if dialect == Dialect::Feed {
                event.clone()
            } else {
                Bytes::from_static(
                    br#"{"Id":"a", "RecordType": 1,"CreationTime":"2026-03-02T10:15:00","Operation":"o","UserId":"u"}"#,
                )
            };
            let restored = restore(&event, &outer(), dialect).unwrap();
            assert_eq!((restored.event.as_ptr(), restored.event.len()), (event.as_ptr(), event.len()), "{dialect:?}");
            assert!(restored.losses.is_empty());
        }
    }

    #[test]
    fn what_makes_an_event_is_taken_from_around_it_where_it_is_missing() {
        assert_eq!(
            read(r#"{"Operation":"o","UserId":""}"#, &outer(), Dialect::Feed),
            Ok((r#"{"Operation":"o","UserId":"alex@contoso.example","Id":"r1","CreationTime":"2026-03-02T10:15:00","RecordType":1}"#.into(), vec![]))
        );
        for nothing in ["{}", r#"{"a":1}"#] {
            assert!(read(nothing, &Outer::default(), Dialect::Feed).is_err());
        }
        for bad in ["", "[]", "{} {}", "{", "@{Id=a}"] {
            assert!(read(bad, &outer(), Dialect::Feed).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_powershell_wrote_is_the_feeds_again() {
        for (event, expected) in [
            (
                r#"{"Id":"a","RecordType":"Quarantine","UserType":"DcAdmin","LogonType":"Delegate","CreationTime":"\/Date(1772446500000)\/"}"#,
                r#"{"Id":"a","RecordType":65,"UserType":3,"LogonType":2,"CreationTime":"2026-03-02T10:15:00"}"#,
            ),
            (
                r#"{"Id":"a","CreationTime":{"value":"\/Date(1772446500000)\/","DisplayHint":2,"DateTime":"Monday"},"Parameters":["@{Name=ForwardTo; Value=e@outside.example}"]}"#,
                r#"{"Id":"a","CreationTime":"2026-03-02T10:15:00","Parameters":[{"Name":"ForwardTo","Value":"e@outside.example"}]}"#,
            ),
            (
                "@{CreationTime=03/02/2026 10:15:00; Id=a; Operation=Set-Mailbox; RecordType=1; UserAgent=Mozilla/5.0 (Windows NT 10.0; Win64; x64)}",
                r#"{"CreationTime":"2026-03-02T10:15:00","Id":"a","Operation":"Set-Mailbox","RecordType":1,"UserAgent":"Mozilla/5.0 (Windows NT 10.0; Win64; x64)"}"#,
            ),
        ] {
            assert_eq!(read(event, &Outer::default(), Dialect::PowerShell), Ok((expected.into(), vec![])));
        }
        assert_eq!(
            read("@{Id=a; Operation=o; Parameters=System.Object[]}", &Outer::default(), Dialect::PowerShell),
            Ok((r#"{"Id":"a","Operation":"o","Parameters":"System.Object[]"}"#.into(), vec!["Parameters".into()]))
        );
        assert!(read("@{Id=a; Operation=o; Param", &Outer::default(), Dialect::PowerShell).is_err());
    }

    #[test]
    fn a_time_that_only_powershell_writes_is_read_without_its_other_marks() {
        for time in [r#""\/Date(1772446500000)\/""#, r#"{"value":"2026-03-02T10:15:00","DateTime":"Monday"}"#] {
            let event = format!(r#"{{"Id":"a","Operation":"o","CreationTime":{time}}}"#);
            let plain = r#"{"Id":"a","Operation":"o","CreationTime":"2026-03-02T10:15:00"}"#;
            assert_eq!(read(&event, &Outer::default(), Dialect::Feed), Ok((plain.into(), vec![])), "{time}");
        }
        let odd = r#"{"Id":"a","Operation":"o","CreationTime":"yesterday"}"#;
        assert_eq!(read(odd, &Outer::default(), Dialect::Feed), Ok((odd.into(), vec![])));
    }

    #[test]
    fn a_time_that_can_be_read_in_two_ways_is_read_as_the_outer_one() {
        let event = r#"{"Id":"a","Operation":"o","CreationTime":"02/03/2026 10:15:00"}"#;
        let plain = r#"{"Id":"a","Operation":"o","CreationTime":"2026-03-02T10:15:00"}"#;
        let with = Outer { time: Some("2026-03-02T10:15:00Z".into()), ..Outer::default() };
        assert_eq!(read(event, &with, Dialect::PowerShell), Ok((plain.into(), vec![])));
        let without = Outer { time: Some("02/03/2026 10:15:00".into()), ..Outer::default() };
        assert_eq!(read(event, &without, Dialect::PowerShell), Ok((event.into(), vec!["CreationTime".into()])));
    }

    #[test]
    fn what_graph_added_is_taken_out() {
        assert_eq!(
            read(
                r##"{"@odata.type":"#microsoft.graph.security.auditData","Id":"a","CreationTime":"2026-03-02T10:15:00Z","Parameters@odata.type":"#Collection(x)","Parameters":[{"@odata.type":"#x","Name":"ForwardTo","Value":"mailto:@odata.x"}],"Item":{"ParentFolder":{"@odata.type":"y","Path":"p"}}}"##,
                &Outer::default(),
                Dialect::Graph
            ),
            Ok((
                r#"{"Id":"a","CreationTime":"2026-03-02T10:15:00","Parameters":[{"Name":"ForwardTo","Value":"mailto:@odata.x"}],"Item":{"ParentFolder":{"Path":"p"}}}"#.into(),
                vec![]
            ))
        );
        assert_eq!(
            read(
                r##"{"@odata.type":"#x","AdditionalProperties":{"Id":"a","Operation":"o","CreationTime":"2026-03-02T10:15:00Z"}}"##,
                &Outer::default(),
                Dialect::Graph
            ),
            Ok((r#"{"Id":"a","Operation":"o","CreationTime":"2026-03-02T10:15:00"}"#.into(), vec![]))
        );
        let deep = format!(r#"{{"Id":"a","x":{}"@odata.type"{}}}"#, "[".repeat(50_000), "]".repeat(50_000));
        assert!(read(&deep, &Outer::default(), Dialect::Graph).is_ok());
    }

    proptest! {
        #[test]
        fn whatever_a_text_is_no_restoring_panics_and_what_comes_out_is_json(
            value in r#"("[^"\\]{0,40}"|"@\{[A-Za-z=; @{}]{0,60}\}?"|\["@\{Name=[a-z;= {}@]{0,40}\}"\]|-?[0-9]{1,20}|null|\{"value":"/Date\([0-9]{1,20}\)/","DateTime":""\})"#,
            member in "Parameters|ModifiedProperties|CreationTime|RecordType|Item|AuditData|TimeGenerated|X@odata.type|A\\{\\}.b",
        ) {
            let event = Bytes::from(format!(r#"{{"Id":"a","Operation":"o","{member}":{value}}}"#));
            for dialect in [Dialect::Feed, Dialect::Graph, Dialect::PowerShell, Dialect::OfficeActivity] {
                if let Ok(restored) = restore(&event, &outer(), dialect) {
                    let text = std::str::from_utf8(&restored.event).unwrap();
                    prop_assert!(json::is_valid(text), "{text}");
                }
            }
        }

        #[test]
        fn no_object_of_powershells_panics(text in r"@\{[A-Za-z=; @{}]{0,80}\}|@\{.*") {
            let _ = restore(&Bytes::from(text), &outer(), Dialect::PowerShell);
        }
    }
}
