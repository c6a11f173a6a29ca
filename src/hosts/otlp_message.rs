//! Records as one `ExportLogsServiceRequest`, written as protobuf in one pass over their JSON.
//!
//! It does not use the message types of `opentelemetry-proto`: a tree of those for each record took two thirds of the
//! processor time of the whole path without compression (`benches/README.md`). The output equals prost's, with every
//! length in its shortest form; tests decode it with those types.
//!
//! A message begins with its length, which is known at its end. So two bytes are reserved for each, and if they do not
//! suffice, the following bytes are moved.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use opentelemetry_proto::tonic::logs::v1::SeverityNumber;

use super::json_walk::{NotAnObject, Number, Visit, walk};
use crate::host::{Batch, Record};
use crate::model::Timestamp;
use crate::severity::Severity;

/// `service.name` and the name of the scope.
const NAME: &str = "m365-audit";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Capacity for the bytes before the records: resource and scope, with the total length.
const HEAD_BYTES_MAX: usize = 160;

/// Tags: the number of a field and how its value is written.
mod tag {
    const fn bytes(number: u8) -> u8 {
        number << 3 | 2
    }

    pub(super) const REQUEST_RESOURCE_LOGS: u8 = bytes(1);
    pub(super) const RESOURCE_LOGS_RESOURCE: u8 = bytes(1);
    pub(super) const RESOURCE_LOGS_SCOPE_LOGS: u8 = bytes(2);
    pub(super) const RESOURCE_ATTRIBUTES: u8 = bytes(1);
    pub(super) const SCOPE_LOGS_SCOPE: u8 = bytes(1);
    pub(super) const SCOPE_LOGS_LOG_RECORDS: u8 = bytes(2);
    pub(super) const SCOPE_NAME: u8 = bytes(1);
    pub(super) const SCOPE_VERSION: u8 = bytes(2);
    pub(super) const RECORD_TIME: u8 = 1 << 3 | 1;
    pub(super) const RECORD_OBSERVED_TIME: u8 = 11 << 3 | 1;
    pub(super) const RECORD_SEVERITY_NUMBER: u8 = 2 << 3;
    pub(super) const RECORD_SEVERITY_TEXT: u8 = bytes(3);
    pub(super) const RECORD_BODY: u8 = bytes(5);
    pub(super) const RECORD_ATTRIBUTES: u8 = bytes(6);
    pub(super) const RECORD_EVENT_NAME: u8 = bytes(12);
    pub(super) const KEY: u8 = bytes(1);
    pub(super) const VALUE: u8 = bytes(2);
    pub(super) const LIST_VALUES: u8 = bytes(1);
    pub(super) const ANY_STRING: u8 = bytes(1);
    pub(super) const ANY_BOOL: u8 = 2 << 3;
    pub(super) const ANY_INT: u8 = 3 << 3;
    pub(super) const ANY_DOUBLE: u8 = 4 << 3 | 1;
    pub(super) const ANY_ARRAY: u8 = bytes(5);
    pub(super) const ANY_KVLIST: u8 = bytes(6);
}

/// The message after `before` bytes that the caller fills.
///
/// # Errors
/// A record is not a JSON object.
pub(super) fn encode(batches: &[Batch], observed: Timestamp, before: usize) -> Result<Vec<u8>, String> {
    let observed = unix_nanos(observed);
    let json: usize = batches.iter().map(|batch| batch.ndjson().len()).sum();
    let room = before + HEAD_BYTES_MAX;
    let mut writer = MessageWriter::new(room + json + json / 4);
    writer.out.resize(room, 0);
    for batch in batches {
        for record in batch.records() {
            writer.log_record(batch, &record, observed).map_err(|error| error.to_string())?;
        }
    }
    let mut out = writer.out;
    let head = head(out.len() - room);
    let start = room - head.len();
    out[start..room].copy_from_slice(&head);
    out.drain(before..start);
    Ok(out)
}

/// The head before `bytes` of records.
fn head(bytes: usize) -> Vec<u8> {
    let mut resource = Vec::new();
    for (key, value) in [("service.name", NAME), ("service.version", VERSION)] {
        put_member(&mut resource, tag::RESOURCE_ATTRIBUTES, key, Scalar::Text(value));
    }
    let mut scope = Vec::new();
    put_text(&mut scope, tag::SCOPE_NAME, NAME);
    put_text(&mut scope, tag::SCOPE_VERSION, VERSION);
    let mut scope_logs = Vec::new();
    put_bytes(&mut scope_logs, tag::SCOPE_LOGS_SCOPE, &scope);
    let mut resource_logs = Vec::new();
    put_bytes(&mut resource_logs, tag::RESOURCE_LOGS_RESOURCE, &resource);
    put_head(&mut resource_logs, tag::RESOURCE_LOGS_SCOPE_LOGS, scope_logs.len() + bytes);
    resource_logs.extend(scope_logs);
    let mut head = Vec::with_capacity(HEAD_BYTES_MAX);
    put_head(&mut head, tag::REQUEST_RESOURCE_LOGS, resource_logs.len() + bytes);
    head.extend(resource_logs);
    head
}

/// The severity numbers of the logs data model for the five severities.
const fn severity_number(severity: Severity) -> SeverityNumber {
    match severity {
        Severity::Info => SeverityNumber::Info,
        Severity::Low => SeverityNumber::Info2,
        Severity::Medium => SeverityNumber::Warn,
        Severity::High => SeverityNumber::Error,
        Severity::Critical => SeverityNumber::Fatal,
    }
}

/// Nanoseconds since 1970; 0, which means unknown, before it.
fn unix_nanos(time: Timestamp) -> u64 {
    u64::try_from(time.as_nanosecond()).unwrap_or(0)
}

// ------------------------------------------------------------------------------------------ pieces

fn varint_len(n: usize) -> usize {
    // Seven bits a byte.
    (n | 1).ilog2() as usize / 7 + 1
}

fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// The tag and the length of a field.
fn put_head(out: &mut Vec<u8>, tag: u8, length: usize) {
    out.push(tag);
    put_varint(out, length as u64);
}

fn put_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    put_head(out, tag, bytes.len());
    out.extend_from_slice(bytes);
}

/// A string field, which is left out when it is empty.
fn put_text(out: &mut Vec<u8>, tag: u8, text: &str) {
    if !text.is_empty() {
        put_bytes(out, tag, text.as_bytes());
    }
}

fn text_len(text: &str) -> usize {
    if text.is_empty() { 0 } else { 1 + varint_len(text.len()) + text.len() }
}

/// The content of an `AnyValue` that is not a list.
#[derive(Clone, Copy)]
enum Scalar<'a> {
    Null,
    Text(&'a str),
    Bool(bool),
    Int(i64),
    Double(f64),
    /// An `AnyValue` that was written before.
    Written(&'a [u8]),
}

impl Scalar<'_> {
    fn len(self) -> usize {
        match self {
            Scalar::Null => 0,
            Scalar::Text(text) => 1 + varint_len(text.len()) + text.len(),
            Scalar::Bool(_) => 2,
            // Negative ones take ten bytes.
            Scalar::Int(n) => 1 + usize::try_from(n).map_or(10, varint_len),
            Scalar::Double(_) => 9,
            Scalar::Written(any) => any.len(),
        }
    }

    fn put(self, out: &mut Vec<u8>) {
        match self {
            Scalar::Null => {}
            Scalar::Text(text) => put_bytes(out, tag::ANY_STRING, text.as_bytes()),
            Scalar::Bool(value) => out.extend_from_slice(&[tag::ANY_BOOL, value.into()]),
            Scalar::Int(n) => {
                out.push(tag::ANY_INT);
                put_varint(out, n.cast_unsigned());
            }
            Scalar::Double(n) => {
                out.push(tag::ANY_DOUBLE);
                out.extend_from_slice(&n.to_le_bytes());
            }
            Scalar::Written(any) => out.extend_from_slice(any),
        }
    }
}

/// A `KeyValue`.
fn put_member(out: &mut Vec<u8>, tag: u8, key: &str, value: Scalar<'_>) {
    let any = value.len();
    put_head(out, tag, text_len(key) + 1 + varint_len(any) + any);
    put_text(out, tag::KEY, key);
    put_head(out, tag::VALUE, any);
    value.put(out);
}

/// Splits a length and the bytes it counts off output of this module.
fn take_counted(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (mut length, mut at) = (0_usize, 0);
    loop {
        let byte = *bytes.get(at)?;
        length |= usize::from(byte & 0x7f) << (7 * at);
        at += 1;
        if byte < 0x80 {
            break;
        }
    }
    bytes.get(at..)?.split_at_checked(length)
}

/// A key and its `AnyValue`.
type KeyAndValue<'a> = (&'a [u8], &'a [u8]);

/// The first `KeyValue` of a list that this module wrote, and the rest of the list.
fn take_member(list: &[u8]) -> Option<(KeyAndValue<'_>, &[u8])> {
    let (member, rest) = take_counted(list.strip_prefix(&[tag::LIST_VALUES])?)?;
    let (key, value) = match member.strip_prefix(&[tag::KEY]) {
        Some(key) => take_counted(key)?,
        None => (&[][..], member),
    };
    let (any, _) = take_counted(value.strip_prefix(&[tag::VALUE])?)?;
    Some(((key, any), rest))
}

/// The members of a list that this module wrote.
fn members(mut list: &[u8]) -> impl Iterator<Item = KeyAndValue<'_>> {
    std::iter::from_fn(move || {
        let (member, rest) = take_member(list)?;
        list = rest;
        Some(member)
    })
}

/// The values of attributes, as `AnyValue`s.
#[derive(Default)]
struct AttributeValues<'a> {
    event_type: Option<&'a [u8]>,
    /// The id in each format: native, raw, ECS, OCSF.
    ids: [Option<&'a [u8]>; 4],
    /// As [`ATTRIBUTES`] names them.
    others: [Option<&'a [u8]>; 7],
}

const ATTRIBUTES: [&str; 7] =
    ["m365.operation", "m365.workload", "user.id", "user.name", "client.address", "client.port", "user_agent.original"];

impl<'a> AttributeValues<'a> {
    fn of(body: &'a [u8]) -> Self {
        let mut known = Self::default();
        for (key, any) in members(body) {
            let place = match key {
                b"event_type" => &mut known.event_type,
                b"event_id" => &mut known.ids[0],
                b"Id" => &mut known.ids[1],
                b"operation" => &mut known.others[0],
                b"workload" => &mut known.others[1],
                b"src_ip" => &mut known.others[4],
                b"src_port" => &mut known.others[5],
                b"user_agent" => &mut known.others[6],
                b"actor" | b"event" | b"metadata" => {
                    known.note_nested(key, any);
                    continue;
                }
                _ => continue,
            };
            *place = Some(any).filter(|any| is_attribute(any));
        }
        known
    }

    fn note_nested(&mut self, outer: &[u8], any: &'a [u8]) {
        let Some((list, _)) = any.strip_prefix(&[tag::ANY_KVLIST]).and_then(take_counted) else { return };
        for (key, any) in members(list) {
            let place = match (outer, key) {
                (b"actor", b"id") => &mut self.others[2],
                (b"actor", b"name") => &mut self.others[3],
                (b"event", b"id") => &mut self.ids[2],
                (b"metadata", b"uid") => &mut self.ids[3],
                _ => continue,
            };
            *place = Some(any).filter(|any| is_attribute(any));
        }
    }
}

/// Attributes are strings and integers.
fn is_attribute(any: &[u8]) -> bool {
    matches!(any.first(), Some(&(tag::ANY_STRING | tag::ANY_INT)))
}

// ------------------------------------------------------------------------------------------ the writer

struct MessageWriter {
    out: Vec<u8>,
    open: Vec<OpenMessage>,
    /// The name of the member whose value is awaited.
    key: String,
    /// Of the maps that are open, innermost last.
    members: Vec<MemberRange>,
    /// To find a name twice.
    sorted: Vec<(u64, usize)>,
    hasher: RandomState,
    /// Copied from the body while attributes are written behind it.
    attributes: Vec<u8>,
}

/// A map or an array that has begun.
struct OpenMessage {
    place: ValueOwner,
    /// Where its container begins.
    start: usize,
    /// Where its own content begins.
    content: usize,
    list: u8,
    /// The first of its [`MessageWriter::members`].
    first_member: usize,
}

/// The container of an `AnyValue`.
#[derive(Clone, Copy)]
enum ValueOwner {
    Body,
    Member,
    Element,
}

impl ValueOwner {
    const fn tag(self) -> u8 {
        match self {
            ValueOwner::Body => tag::RECORD_BODY,
            ValueOwner::Member => tag::VALUE,
            ValueOwner::Element => tag::LIST_VALUES,
        }
    }
}

struct MemberRange {
    hash: u64,
    start: usize,
}

/// Two bytes for a length that is not known yet.
const LATER: [u8; 2] = [0; 2];
/// Lengths that take exactly two bytes.
const TWO_BYTES: std::ops::Range<usize> = 0x80..0x4000;

/// A length of [`TWO_BYTES`].
fn two_bytes(n: usize) -> [u8; 2] {
    [n as u8 | 0x80, (n >> 7) as u8]
}

impl MessageWriter {
    fn new(capacity: usize) -> Self {
        Self {
            out: Vec::with_capacity(capacity),
            open: Vec::new(),
            key: String::new(),
            members: Vec::new(),
            sorted: Vec::new(),
            hasher: RandomState::default(),
            attributes: Vec::new(),
        }
    }

    fn log_record(&mut self, batch: &Batch, record: &Record<'_>, observed: u64) -> Result<(), NotAnObject> {
        let start = self.out.len();
        self.out.push(tag::SCOPE_LOGS_LOG_RECORDS);
        self.out.extend_from_slice(&LATER);
        let content = self.out.len();
        for (tag, nanos) in [(tag::RECORD_TIME, unix_nanos(record.time)), (tag::RECORD_OBSERVED_TIME, observed)] {
            if nanos != 0 {
                self.out.push(tag);
                self.out.extend_from_slice(&nanos.to_le_bytes());
            }
        }
        let severity = record.severity();
        self.out.push(tag::RECORD_SEVERITY_NUMBER);
        put_varint(&mut self.out, severity_number(severity) as u64);
        put_text(&mut self.out, tag::RECORD_SEVERITY_TEXT, severity.as_str());
        let body = self.out.len();
        walk(record.json, self)?;
        self.attributes(batch, body);
        let length = self.out.len() - content;
        if TWO_BYTES.contains(&length) {
            self.out[start + 1..content].copy_from_slice(&two_bytes(length));
        } else {
            let mut head = Vec::new();
            put_head(&mut head, tag::SCOPE_LOGS_LOG_RECORDS, length);
            self.out.splice(start..content, head);
        }
        Ok(())
    }

    /// Writes the fields beside the body that begins at `body`.
    fn attributes(&mut self, batch: &Batch, body: usize) {
        let any = self.out.get(body + 1..).and_then(take_counted);
        let list = any.and_then(|(any, _)| take_counted(any.strip_prefix(&[tag::ANY_KVLIST])?));
        let known = list.map_or_else(AttributeValues::default, |(list, _)| AttributeValues::of(list));
        let mut put = |key, value| put_member(&mut self.attributes, tag::RECORD_ATTRIBUTES, key, value);
        put("m365.tenant_id", Scalar::Text(batch.tenant.as_str()));
        put("m365.content_type", Scalar::Text(batch.content_type.as_str()));
        if let Some(id) = known.ids.into_iter().flatten().next() {
            put("m365.id", Scalar::Written(id));
        }
        for (key, any) in ATTRIBUTES.into_iter().zip(known.others) {
            if let Some(any) = any {
                put(key, Scalar::Written(any));
            }
        }
        let name = known.event_type.and_then(|any| take_counted(any.strip_prefix(&[tag::ANY_STRING])?));
        if let Some((name, _)) = name.filter(|(name, _)| !name.is_empty()) {
            put_bytes(&mut self.attributes, tag::RECORD_EVENT_NAME, name);
        }
        self.out.append(&mut self.attributes);
    }

    fn place(&self) -> ValueOwner {
        match self.open.last() {
            None => ValueOwner::Body,
            Some(OpenMessage { list: tag::ANY_KVLIST, .. }) => ValueOwner::Member,
            Some(_) => ValueOwner::Element,
        }
    }

    fn scalar(&mut self, value: Scalar<'_>) {
        match self.place() {
            ValueOwner::Member => put_member(&mut self.out, tag::LIST_VALUES, &self.key, value),
            place => {
                put_head(&mut self.out, place.tag(), value.len());
                value.put(&mut self.out);
            }
        }
    }

    fn begin(&mut self, list: u8) {
        let (place, start) = (self.place(), self.out.len());
        if matches!(place, ValueOwner::Member) {
            self.out.push(tag::LIST_VALUES);
            self.out.extend_from_slice(&LATER);
            put_text(&mut self.out, tag::KEY, &self.key);
        }
        for tag in [place.tag(), list] {
            self.out.push(tag);
            self.out.extend_from_slice(&LATER);
        }
        let (content, first_member) = (self.out.len(), self.members.len());
        self.open.push(OpenMessage { place, start, content, list, first_member });
    }

    fn end(&mut self) {
        let Some(OpenMessage { place, start, content, list: list_tag, first_member }) = self.open.pop() else { return };
        self.keep_last(first_member);
        self.members.truncate(first_member);
        let list = self.out.len() - content;
        let any = 1 + varint_len(list) + list;
        let any_head = content - 2 * (1 + LATER.len());
        let key_start = start + 1 + LATER.len();
        let member = match place {
            ValueOwner::Member => Some(any_head - key_start + 1 + varint_len(any) + any),
            ValueOwner::Body | ValueOwner::Element => None,
        };
        if TWO_BYTES.contains(&list) && TWO_BYTES.contains(&any) && member.is_none_or(|n| TWO_BYTES.contains(&n)) {
            self.out[any_head + 1..any_head + 3].copy_from_slice(&two_bytes(any));
            self.out[content - 2..content].copy_from_slice(&two_bytes(list));
            if let Some(member) = member {
                self.out[start + 1..key_start].copy_from_slice(&two_bytes(member));
            }
            return;
        }
        let mut head: Vec<u8> = Vec::with_capacity(64);
        if let Some(member) = member {
            put_head(&mut head, tag::LIST_VALUES, member);
            head.extend_from_slice(&self.out[key_start..any_head]);
        }
        put_head(&mut head, place.tag(), any);
        put_head(&mut head, list_tag, list);
        self.out.splice(start..content, head);
    }

    /// Removes members whose name is repeated later: the specification forbids repeated keys, and the last counts, as
    /// in JSON parsers.
    fn keep_last(&mut self, first_member: usize) {
        let members = &self.members[first_member..];
        self.sorted.clear();
        self.sorted.extend(members.iter().enumerate().map(|(index, member)| (member.hash, index)));
        self.sorted.sort_unstable();
        if self.sorted.windows(2).all(|pair| pair[0].0 != pair[1].0) {
            return;
        }
        let key_at = |index: usize| {
            let member = self.out.get(members[index].start..).and_then(take_member);
            member.map(|((key, _), _)| key)
        };
        let end = self.out.len();
        let mut dead: Vec<std::ops::Range<usize>> = Vec::new();
        for (at, (hash, index)) in self.sorted.iter().enumerate() {
            let mut later = self.sorted[at + 1..].iter().take_while(|(other, _)| other == hash);
            if later.any(|(_, other)| key_at(*other) == key_at(*index)) {
                dead.push(members[*index].start..members.get(index + 1).map_or(end, |next| next.start));
            }
        }
        dead.sort_unstable_by_key(|range| range.start);
        // Moves the remaining bytes together, each once.
        let mut to = dead.first().map_or(end, |range| range.start);
        for (at, range) in dead.iter().enumerate() {
            let kept = range.end..dead.get(at + 1).map_or(end, |next| next.start);
            self.out.copy_within(kept.clone(), to);
            to += kept.len();
        }
        self.out.truncate(to);
    }
}

impl Visit for MessageWriter {
    fn begin_object(&mut self) {
        self.begin(tag::ANY_KVLIST);
    }

    fn key(&mut self, name: &str) {
        self.members.push(MemberRange { hash: self.hasher.hash_one(name), start: self.out.len() });
        self.key.clear();
        self.key.push_str(name);
    }

    fn end_object(&mut self) {
        self.end();
    }

    fn begin_array(&mut self) {
        self.begin(tag::ANY_ARRAY);
    }

    fn end_array(&mut self) {
        self.end();
    }

    fn string(&mut self, text: &str) {
        self.scalar(Scalar::Text(text));
    }

    fn number(&mut self, number: Number<'_>) {
        match number {
            Number::Int(n) => self.scalar(Scalar::Int(n)),
            // OTLP has no larger integers.
            Number::UInt(n) => self.scalar(Scalar::Text(&n.to_string())),
            Number::Float(n) => self.scalar(Scalar::Double(n)),
            Number::Text(digits) => self.scalar(Scalar::Text(digits)),
        }
    }

    fn bool(&mut self, value: bool) {
        self.scalar(Scalar::Bool(value));
    }

    fn null(&mut self) {
        self.scalar(Scalar::Null);
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
    use opentelemetry_proto::tonic::logs::v1::LogRecord;
    use proptest::prelude::*;
    use prost::Message;
    use serde_json::Value as Json;

    use super::*;
    use crate::hosts::requests::tests::batch;

    /// Decodes with prost, after a check of the length: prost writes every length in its shortest form.
    fn decoded(lines: &[&str]) -> Vec<LogRecord> {
        let bytes = encode(&[batch(lines)], "2026-01-01T00:00:00Z".parse().unwrap(), 3).unwrap();
        assert_eq!(bytes[..3], [0; 3]);
        let message = ExportLogsServiceRequest::decode(&bytes[3..]).unwrap();
        assert_eq!(message.encoded_len(), bytes.len() - 3, "{lines:?}");
        let [resource] = message.resource_logs.try_into().unwrap();
        let attributes = resource.resource.unwrap().attributes;
        assert_eq!(attributes.iter().map(member).collect::<Vec<_>>()[0], ("service.name".into(), NAME.into()));
        let [scope] = resource.scope_logs.try_into().unwrap();
        assert_eq!(scope.scope.unwrap().name, NAME);
        scope.log_records
    }

    fn json_of(value: Option<&AnyValue>) -> Json {
        match value.and_then(|value| value.value.as_ref()) {
            None => Json::Null,
            Some(Value::StringValue(text)) => text.as_str().into(),
            Some(Value::BoolValue(value)) => (*value).into(),
            Some(Value::IntValue(n)) => (*n).into(),
            Some(Value::DoubleValue(n)) => (*n).into(),
            Some(Value::ArrayValue(list)) => list.values.iter().map(|value| json_of(Some(value))).collect(),
            Some(Value::KvlistValue(list)) => {
                let members: serde_json::Map<_, _> = list.values.iter().map(member).collect();
                assert_eq!(members.len(), list.values.len(), "a key is repeated");
                members.into()
            }
            Some(other) => panic!("{other:?}"),
        }
    }

    fn member(member: &KeyValue) -> (String, Json) {
        (member.key.clone(), json_of(member.value.as_ref()))
    }

    fn body(json: &str) -> Json {
        let [record] = decoded(&[json]).try_into().unwrap();
        json_of(record.body.as_ref())
    }

    fn any_json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<i64>().prop_map(Json::from),
            (-200_i64..200).prop_map(Json::from),
            (-1e9..1e9).prop_map(Json::from),
            "\\PC{0,40}".prop_map(Json::from),
            "[a-c\"\\\\\n]{0,300}".prop_map(Json::from),
        ];
        leaf.prop_recursive(6, 256, 20, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..20).prop_map(Json::from),
                prop::collection::hash_map("[a-z]{0,3}", inner, 0..20)
                    .prop_map(|m| Json::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_prost_reads_is_what_the_json_says(value in any_json()) {
            let json = serde_json::json!({ "x": value });
            prop_assert_eq!(body(&json.to_string()), json);
        }
    }

    #[test]
    fn lengths_grow_with_what_they_count() {
        for n in (0..300).chain(16_000..16_400).chain(2_097_100..2_097_160) {
            let json = serde_json::json!({ "o": { "s": "x".repeat(n) }, "a": [["y"], 1], "end": n });
            assert_eq!(body(&json.to_string()), json, "{n}");
        }
    }

    #[test]
    fn integers_over_64_bits_are_their_digits() {
        for (json, expected) in [
            (r#"{"n":18446744073709551615}"#, r#"{"n":"18446744073709551615"}"#),
            (r#"{"n":-9223372036854775808}"#, r#"{"n":-9223372036854775808}"#),
        ] {
            assert_eq!(body(json), serde_json::from_str::<Json>(expected).unwrap());
        }
    }

    #[test]
    fn the_last_of_several_members_of_one_name_counts_at_every_level() {
        for (json, expected) in [
            (r#"{"a":1,"b":2,"a":3}"#, r#"{"b":2,"a":3}"#),
            (r#"{"a":1,"b":2,"b":4,"c":5,"a":3,"d":6}"#, r#"{"b":4,"c":5,"a":3,"d":6}"#),
            (r#"{"x":{"a":[1],"a":{"b":1,"b":2}},"y":1}"#, r#"{"x":{"a":{"b":2}},"y":1}"#),
            (r#"{"a":1,"\u0061":2}"#, r#"{"a":2}"#),
            (r#"{"":1,"":2,"":3}"#, r#"{"":3}"#),
        ] {
            assert_eq!(body(json), serde_json::from_str::<Json>(expected).unwrap(), "{json}");
        }
        let many: String = (0..5_000).map(|i| format!("\"k{}\":{i},", i % 100)).collect();
        let map = body(&format!("{{{many}\"end\":true}}"));
        assert_eq!(map.as_object().unwrap().len(), 101);
        assert_eq!(map["k99"], 4_999);
    }

    #[test]
    fn no_record_is_too_deep_for_a_prost_receiver() {
        decoded(&[&format!("{{\"a\":{}1{}}}", "{\"a\":[".repeat(5_000), "]}".repeat(5_000))]);
    }

    #[test]
    fn attributes_are_strings_and_integers_of_the_body_in_every_format() {
        for (json, expected, name) in [
            (
                r#"{"event_id":"e","operation":"o","workload":"w","actor":{"id":"i","name":"n"},"src_ip":"::1",
                    "src_port":9,"user_agent":"u","event_type":"m365.w.o"}"#,
                r#"{"m365.id":"e","m365.operation":"o","m365.workload":"w","user.id":"i","user.name":"n",
                    "client.address":"::1","client.port":9,"user_agent.original":"u"}"#,
                "m365.w.o",
            ),
            (r#"{"Id":"raw"}"#, r#"{"m365.id":"raw"}"#, ""),
            (r#"{"event":{"id":"ecs"},"actor":"text","workload":{"x":1}}"#, r#"{"m365.id":"ecs"}"#, ""),
            (r#"{"metadata":{"uid":7},"event_type":1}"#, r#"{"m365.id":7}"#, ""),
            (r#"{"event_id":"1","event_id":"2","Id":"3"}"#, r#"{"m365.id":"2"}"#, ""),
            (r#"{"event_id":null}"#, "{}", ""),
        ] {
            let [record] = decoded(&[json]).try_into().unwrap();
            let mut attributes: serde_json::Map<_, _> = record.attributes.iter().map(member).collect();
            assert_eq!(attributes.remove("m365.tenant_id").unwrap(), "00000000-0000-0000-0000-000000000000");
            assert_eq!(attributes.remove("m365.content_type").unwrap(), "Audit.General");
            assert_eq!(Json::from(attributes), serde_json::from_str::<Json>(expected).unwrap(), "{json}");
            assert_eq!(record.event_name, name);
            assert_eq!((record.severity_number, record.severity_text.as_str()), (9, "info"));
        }
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        for json in ["1", "[]", "{\"a\":}", "{\"a\":{\"b\":[1,}"] {
            assert!(encode(&[batch(&["{}", json])], Timestamp::UNIX_EPOCH, 0).is_err(), "{json}");
        }
    }
}
