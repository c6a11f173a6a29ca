//! Finds the event inside the wrappers of other tools.
//!
//! A wrapper is recognised by its members, at any depth, with the event as an object or as text. A value without an
//! event is returned whole, with the reason.

use std::borrow::Cow;
use std::sync::LazyLock;

use bytes::Bytes;
use memchr::memmem::Finder;
use smallvec::SmallVec;

use super::form::Form;
use super::outer::Outer;
use super::page;
use super::powershell;
use super::prefix;
use super::restore::Dialect;
use crate::normalise::{Event, is_like_an_event, json};

/// The content of a value.
#[derive(Debug, Clone)]
pub enum Inside {
    /// An event.
    Event(UnwrappedEvent),
    /// Not an event.
    Unread(UnreadValue),
    /// A record of this program without an event: its `event_type`.
    Notice(String),
}

/// An event that was found.
#[derive(Debug, Clone)]
pub struct UnwrappedEvent {
    /// The event as written there.
    pub event: Bytes,
    /// The outermost known wrapper.
    pub form: Form,
    /// Its notation.
    pub dialect: Dialect,
    /// The data that the wrapper has about it.
    pub outer: Outer,
}

/// A value without an event, or whose event cannot be read.
#[derive(Debug, Clone)]
pub struct UnreadValue {
    /// The value.
    pub bytes: Bytes,
    /// Why, in words.
    pub why: String,
    /// The data beside it.
    pub outer: Outer,
    /// Whether it is valid JSON but neither an event nor a known wrapper.
    pub is_unknown: bool,
}

impl UnreadValue {
    fn of(bytes: Bytes, why: &Nothing, outer: Outer) -> UnreadValue {
        UnreadValue { bytes, why: why.in_words(), outer, is_unknown: *why == Nothing::NoEvent }
    }
}

/// Appends the content of a JSON value: at least one item.
pub fn unwrap(value: &Bytes, is_prefixed: bool, out: &mut Vec<Inside>) {
    let around = Around { form: is_prefixed.then_some(Form::LogLine), ..Around::default() };
    if let Err(why) = search(value, &around, out) {
        out.push(Inside::Unread(UnreadValue::of(value.clone(), &why, Outer::default())));
    }
}

/// Whether this is clearly an event in the feed's form, so that no search inside is needed.
pub fn is_plain(event: &Event<'_>) -> bool {
    // Splunk shows an event's members beside its text. Quotes inside strings are escaped, so this matches a name.
    static RAW: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"_raw\""));
    event.is_plain() && RAW.find(event.text().as_bytes()).is_none()
}

/// The text of the event in an object of `Search-UnifiedAuditLog`, which most exports in JSON are made of, and its form.
/// `None` where only [`unwrap`] can tell.
#[cfg(feature = "exports")]
pub(super) fn carried(value: &Bytes) -> Option<(Bytes, Form)> {
    // Quotes inside strings are escaped, so this matches a name or a whole text.
    static AUDIT_DATA: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"AuditData\""));
    AUDIT_DATA.find(value)?;
    let object = ObjectMembers::of(std::str::from_utf8(value).ok()?.trim_ascii()).ok()?;
    let carrier = CarrierMember::of(&object).filter(|carrier| carrier.form == Form::UnifiedAuditLog)?;
    let (_, is_telling) = object.identity();
    let text = json::inner(carrier.content?).filter(|_| !is_telling).map(json::unescape)?;
    let event = text.trim_ascii();
    event.starts_with('{').then(|| (Bytes::copy_from_slice(event.as_bytes()), carrier.form))
}

/// What the wrapper of an event that [`carried`] found has about it.
#[cfg(feature = "exports")]
pub(super) fn beside(wrapper: &Bytes) -> Outer {
    let object = std::str::from_utf8(wrapper).ok().and_then(|text| ObjectMembers::of(text.trim_ascii()).ok());
    object.map(|object| outer_of(&object, &Around::default())).unwrap_or_default()
}

/// Whether an object found in damaged bytes is, judging by its members, an event or a wrapper of one.
pub(super) fn is_like_a_wrapper(bytes: &[u8]) -> bool {
    const CARRIERS: [&str; 6] = ["AuditData", "RawEventData", "_raw", "raw_data", "_source", "event.original"];
    const PAIRS: [(&str, &str); 3] = [("raw", "event_type"), ("log", "stream"), ("event", "m365")];
    let mut names: SmallVec<[&[u8]; 32]> = SmallVec::new();
    let layout = json::scan_bytes(bytes, |key, _| names.extend(bytes.get(key)));
    let has = |wanted: &str| names.iter().any(|name| name.eq_ignore_ascii_case(wanted.as_bytes()));
    layout.is_ok_and(|layout| layout.end == bytes.len())
        && (is_like_an_event(bytes)
            || CARRIERS.iter().any(|name| has(name))
            || PAIRS.iter().any(|(name, other)| has(name) && has(other))
            || matches!(page::head(bytes, true), page::PageHead::Page(_)))
}

/// The notation of an event's text, if its wrapper does not define it.
pub fn dialect_of(event: &[u8]) -> Dialect {
    if powershell::may_be_flattened(event) { Dialect::PowerShell } else { Dialect::Feed }
}

/// The maximum depth of the search.
const DEPTH_MAX: usize = 16;

/// The context of a value.
#[derive(Debug, Clone, Default)]
struct Around {
    form: Option<Form>,
    dialect: Option<Dialect>,
    outer: Outer,
    depth: usize,
    /// Whether this is the content of a member that carries an event.
    is_carried: bool,
}

/// Why a value has no event.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Nothing {
    /// It is not JSON.
    Damaged,
    /// It is neither an event nor a wrapper.
    NoEvent,
    /// A wrapper without its event.
    Empty(&'static str, &'static str),
    /// The event in it is damaged.
    DamagedIn(&'static str),
    TooDeep,
}

impl Nothing {
    fn in_words(&self) -> String {
        match self {
            Self::Damaged => "not one JSON object in UTF-8".into(),
            Self::NoEvent => {
                "an object without `Id`, `Operation` and `CreationTime`, and no wrapper that is known".into()
            }
            Self::Empty(what, member) => format!("{what} without `{member}`: the original event is not in it"),
            Self::DamagedIn(member) => format!("`{member}` holds no event that can be read"),
            Self::TooDeep => format!("an object nested more than {DEPTH_MAX} deep"),
        }
    }
}

type NamedToken<'a> = (Cow<'a, str>, &'a str);

/// The members of an object.
struct ObjectMembers<'a> {
    text: &'a str,
    members: SmallVec<[NamedToken<'a>; 24]>,
}

impl<'a> ObjectMembers<'a> {
    fn of(text: &'a str) -> Result<ObjectMembers<'a>, Nothing> {
        let mut members = SmallVec::new();
        let layout = json::scan_object(text, |key, value| members.push((json::unescape(key), value)));
        match layout {
            Ok(layout) if text.get(layout.end..).is_some_and(|rest| rest.trim_ascii().is_empty()) => {
                Ok(ObjectMembers { text, members })
            }
            _ => Err(Nothing::Damaged),
        }
    }

    /// The token of a member's value, of any type.
    fn has(&self, name: &str) -> Option<&'a str> {
        self.members.iter().rev().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.has(name).filter(|value| !matches!(*value, "null" | "\"\""))
    }

    fn text(&self, names: &[&str]) -> Option<String> {
        let found = names.iter().find_map(|name| json::scalar(self.get(name)?));
        found.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// How many of the members that identify an event there are, and whether `Operation` or `CreationTime` is one.
    fn identity(&self) -> (usize, bool) {
        let has =
            |name| usize::from(self.get(name).is_some_and(|value| !matches!(value.as_bytes(), [b'{' | b'[', ..])));
        let telling = has("Operation") + has("CreationTime");
        (has("Id") + has("RecordType") + telling, telling > 0)
    }
}

fn search(value: &Bytes, around: &Around, out: &mut Vec<Inside>) -> Result<(), Nothing> {
    if around.depth > DEPTH_MAX {
        return Err(Nothing::TooDeep);
    }
    let text = std::str::from_utf8(value).map_err(|_| Nothing::Damaged)?.trim_ascii();
    match text.as_bytes().first() {
        Some(b'{') => search_object(value, &ObjectMembers::of(text)?, around, out),
        Some(b'[') if json::is_valid(text) => search_array(value, text, around, out),
        _ => Err(Nothing::Damaged),
    }
}

/// Searches an array, each element by itself.
fn search_array(value: &Bytes, text: &str, around: &Around, out: &mut Vec<Inside>) -> Result<(), Nothing> {
    let mut result = Err(Nothing::NoEvent);
    let mut unread = Vec::new();
    let deeper = Around { depth: around.depth + 1, ..around.clone() };
    json::elements(text, |element| {
        let element = value.slice_ref(element.as_bytes());
        match search(&element, &deeper, out) {
            Ok(()) => result = Ok(()),
            Err(why) => unread.push((out.len(), UnreadValue::of(element, &why, Outer::default()))),
        }
    });
    // Nothing was found: the array as a whole is reported.
    if result.is_ok() {
        for (at, unread) in unread.into_iter().rev() {
            out.insert(at, Inside::Unread(unread));
        }
    }
    result
}

fn search_object(
    value: &Bytes,
    object: &ObjectMembers<'_>,
    around: &Around,
    out: &mut Vec<Inside>,
) -> Result<(), Nothing> {
    if let Some(carrier) = CarrierMember::of(object) {
        return search_carried(value, object, carrier, around, out);
    }
    if let Some(tables) = object.get("tables").filter(|tables| json::get(first_element(tables), "columns").is_some()) {
        return search_tables(tables, around, out);
    }
    if object.has("OfficeWorkload").is_some() || object.text(&["Type"]).as_deref() == Some("OfficeActivity") {
        let outer = outer_of(object, around);
        let form = around.form.unwrap_or(Form::OfficeActivity);
        push_event(value, object, form, Dialect::OfficeActivity, outer, out);
        return Ok(());
    }
    let (identity, is_telling) = object.identity();
    let is_event = identity >= 2 && is_telling;
    if !is_event && search_members(value, object, around, out) {
        return Ok(());
    }
    // By itself, or where an event is expected, one of them is enough.
    let is_alone = around.depth == 0 || around.is_carried;
    if is_event || is_alone && (is_telling || object.get("Id").is_some()) {
        let dialect = around.dialect.unwrap_or_else(|| dialect_of(object.text.as_bytes()));
        push_event(value, object, around.form.unwrap_or(Form::Feed), dialect, around.outer.clone(), out);
        return Ok(());
    }
    Err(Nothing::NoEvent)
}

fn push_event(
    value: &Bytes,
    object: &ObjectMembers<'_>,
    form: Form,
    dialect: Dialect,
    outer: Outer,
    out: &mut Vec<Inside>,
) {
    let event = value.slice_ref(object.text.as_bytes());
    out.push(Inside::Event(UnwrappedEvent { event, form, dialect, outer }));
}

/// A member that holds an event.
struct CarrierMember<'a> {
    /// Its form.
    form: Form,
    /// Its name, for people.
    name: &'static str,
    /// Its value; `None` if the wrapper lacks its event.
    content: Option<&'a str>,
    dialect: Option<Dialect>,
}

impl<'a> CarrierMember<'a> {
    fn of(object: &ObjectMembers<'a>) -> Option<CarrierMember<'a>> {
        let carrier = |form, name, content| CarrierMember { form, name, content, dialect: None };
        let has = |name: &str| object.has(name).is_some();
        if object.text(&["source"]).as_deref() == Some("m365") && has("event_type") && has("severity") {
            return Some(carrier(Form::Native, "raw", object.get("raw")));
        }
        if has("AuditData") {
            let of_graph = has("auditLogRecordType") || has("createdDateTime");
            let (form, dialect) =
                if of_graph { (Form::Graph, Some(Dialect::Graph)) } else { (Form::UnifiedAuditLog, None) };
            return Some(CarrierMember { dialect, ..carrier(form, "AuditData", object.get("AuditData")) });
        }
        if has("RawEventData") {
            return Some(carrier(Form::Defender, "RawEventData", object.get("RawEventData")));
        }
        if let Some(source) = object.get("_source").filter(|source| source.starts_with('{')) {
            return Some(carrier(Form::Elastic, "_source", Some(source)));
        }
        let event = object.get("event").filter(|event| event.starts_with('{'));
        let original = object.get("event.original").or_else(|| json::get(event?, "original"));
        let of_ours = object.get("m365").is_some_and(|m365| json::get(m365, "audit").is_some());
        if original.is_some() || of_ours && has("ecs") {
            let form = if of_ours { Form::Ecs } else { Form::Elastic };
            return Some(carrier(form, "event.original", original));
        }
        if has("raw_data") || has("class_uid") && has("category_uid") {
            return Some(carrier(Form::Ocsf, "raw_data", object.get("raw_data")));
        }
        if has("_raw") {
            return Some(carrier(Form::Splunk, "_raw", object.get("_raw")));
        }
        None
    }

    /// The name of a wrapper of this form, for the report of a missing event.
    fn wrapper(&self) -> &'static str {
        match self.form {
            Form::Native => "a native record",
            Form::Ecs => "an ECS record",
            Form::Ocsf => "an OCSF record",
            Form::Graph => "a record of Graph",
            Form::UnifiedAuditLog => "an object of Search-UnifiedAuditLog",
            Form::Defender => "a row of Defender",
            Form::Splunk => "a result of Splunk",
            _ => "a wrapper",
        }
    }
}

fn search_carried(
    value: &Bytes,
    object: &ObjectMembers<'_>,
    carrier: CarrierMember<'_>,
    around: &Around,
    out: &mut Vec<Inside>,
) -> Result<(), Nothing> {
    if carrier.content.is_none()
        && let Some(kind) = notice_of(object)
    {
        out.push(Inside::Notice(kind));
        return Ok(());
    }
    let outer = outer_of(object, around);
    let inner = Around {
        form: around.form.filter(|form| *form != Form::LogLine).or(Some(carrier.form)),
        dialect: carrier.dialect.or(around.dialect),
        outer,
        depth: around.depth + 1,
        is_carried: carrier.form != Form::Elastic || carrier.name != "_source",
    };
    let result = match carrier.content {
        None => Err(Nothing::Empty(carrier.wrapper(), carrier.name)),
        Some(content) => search_content(value, content, &inner, out),
    };
    let why = match result {
        Ok(()) => return Ok(()),
        Err(why @ (Nothing::Empty(..) | Nothing::TooDeep)) => why,
        Err(_) => Nothing::DamagedIn(carrier.name),
    };
    // Reported here, where the data beside it is known.
    let bytes = value.slice_ref(object.text.as_bytes());
    out.push(Inside::Unread(UnreadValue::of(bytes, &why, inner.outer)));
    Ok(())
}

/// The `event_type` of a record of this program without an event: a gap, bytes that could not be read, a receipt.
fn notice_of(object: &ObjectMembers<'_>) -> Option<String> {
    let event = object.get("event").filter(|event| event.starts_with('{'));
    let kind = object
        .text(&["event_type"])
        .or_else(|| Some(json::scalar(json::get(event?, "action")?)?.into_owned()))
        .or_else(|| Some(json::scalar(json::get(object.get("metadata")?, "event_code")?)?.into_owned()))?;
    kind.starts_with("m365_audit.").then_some(kind)
}

/// Searches the value of a member: a container, or a text with one in it.
fn search_content(value: &Bytes, token: &str, around: &Around, out: &mut Vec<Inside>) -> Result<(), Nothing> {
    match token.as_bytes().first() {
        Some(b'{' | b'[') => search(&value.slice_ref(token.as_bytes()), around, out),
        Some(b'"') => {
            let text = json::scalar(token).unwrap_or_default();
            let text = text.trim_ascii();
            if text.starts_with("@{") && around.is_carried {
                let form = around.form.unwrap_or(Form::UnifiedAuditLog);
                let event = Bytes::copy_from_slice(text.as_bytes());
                let outer = around.outer.clone();
                out.push(Inside::Event(UnwrappedEvent { event, form, dialect: Dialect::PowerShell, outer }));
                return Ok(());
            }
            let begins = text.starts_with(['{', '[']);
            let at = if begins { 0 } else { prefix::length(text.as_bytes()).ok_or(Nothing::NoEvent)? };
            search(&Bytes::copy_from_slice(text.as_bytes().get(at..).unwrap_or_default()), around, out)
        }
        _ => Err(Nothing::NoEvent),
    }
}

/// Searches all members, since the wrapper is unknown; returns whether events were found.
fn search_members(value: &Bytes, object: &ObjectMembers<'_>, around: &Around, out: &mut Vec<Inside>) -> bool {
    let is_splunk = object.has("result").is_some_and(|result| json::get(result, "_raw").is_some());
    let form = around.form.unwrap_or(match is_splunk {
        true => Form::Splunk,
        false if object.has("log").is_some() => Form::LogLine,
        false => Form::Wrapped,
    });
    let inner = Around { form: Some(form), depth: around.depth + 1, is_carried: false, ..around.clone() };
    let before = out.len();
    for (_, token) in &object.members {
        if token.len() >= EVENT_BYTES_MIN {
            // A member without an event is not reported: the event may be in another.
            let _ = search_content(value, token, &inner, out);
        }
    }
    // Named wrappers inside keep their name.
    for found in out.iter_mut().skip(before) {
        if let Inside::Event(found) = found
            && found.form == Form::Feed
        {
            found.form = form;
        }
    }
    out.len() > before
}

/// The minimum length of an event.
const EVENT_BYTES_MIN: usize = 20;

/// An answer of the Log Analytics API: names of columns, then rows of values.
fn search_tables(tables: &str, around: &Around, out: &mut Vec<Inside>) -> Result<(), Nothing> {
    let before = out.len();
    json::elements(tables, |table| {
        let mut names = Vec::new();
        json::elements(json::get(table, "columns").unwrap_or_default(), |column| {
            names.push(json::get(column, "name").unwrap_or("\"\""));
        });
        json::elements(json::get(table, "rows").unwrap_or_default(), |row| {
            let mut text = String::with_capacity(row.len() * 2);
            let mut names = names.iter();
            json::elements(row, |cell| {
                if let Some(name) = names.next() {
                    text.push(if text.is_empty() { '{' } else { ',' });
                    text.push_str(name);
                    text.push(':');
                    text.push_str(cell);
                }
            });
            text.push('}');
            let object = Bytes::from(text);
            let deeper = Around { depth: around.depth + 1, ..around.clone() };
            if let Err(why) = search(&object, &deeper, out) {
                out.push(Inside::Unread(UnreadValue::of(object, &why, Outer::default())));
            }
        });
    });
    if out.len() > before { Ok(()) } else { Err(Nothing::Empty("a table", "rows")) }
}

fn first_element(token: &str) -> &str {
    let mut first = None;
    json::elements(token, |element| {
        first.get_or_insert(element);
    });
    first.unwrap_or_default()
}

/// The data that a wrapper has about its event; missing values come from the outer wrapper.
fn outer_of(object: &ObjectMembers<'_>, around: &Around) -> Outer {
    let said = |names: &[&str], else_said: &Option<String>| object.text(names).or_else(|| else_said.clone());
    Outer {
        id: said(super::outer::IDS, &around.outer.id),
        time: said(super::outer::TIMES, &around.outer.time),
        operation: said(super::outer::OPERATIONS, &around.outer.operation),
        user: said(super::outer::USERS, &around.outer.user),
        record_type: said(super::outer::RECORD_TYPES, &around.outer.record_type),
        workload: said(super::outer::WORKLOADS, &around.outer.workload),
    }
}
