//! Events made into records.
//!
//! Takes the bytes of one audit event and writes one line of JSON: what could be derived, typed and flat, beside the
//! event as it came. Derives, never judges: severities and drops are the rules' (`crate::severity`). No I/O, no clock,
//! nothing of hosts. A field that cannot be derived is absent and never costs the record.
//!
//! Shapes and their irregularities follow Microsoft's "Office 365 Management Activity API schema" and what public
//! records show of the wire.

pub mod address;
pub mod canonical;
pub mod category;
pub mod dlp_link;
pub mod kind;
pub mod scraps;
pub mod split;

mod actor;
mod ai;
mod blake2b;
mod censor;
mod chunk;
mod dlp;
mod ecs;
mod ecs_class;
mod effects;
mod event;
mod facts;
mod finds;
mod inbox_rule;
mod involved;
pub(crate) mod json;
mod known;
mod likeness;
mod mask;
mod native;
mod notice;
mod o365;
mod ocsf;
mod ocsf_class;
mod outcome;
mod own;
pub(crate) mod parameters;
mod parts;
mod reach;
pub(crate) mod record_types;
pub(crate) mod time;
pub(crate) mod user_types;
mod workload;
mod writer;

use std::borrow::Cow;
use std::sync::Arc;

pub use canonical::{CanonicalKey, Unhashed, canonical_key, event_secs};
pub use censor::Censor;
pub(crate) use event::is_like_an_event;
pub use event::{Event, Members, NotAnEvent};
pub use json::unescape;
pub use kind::{Describe, EventKind, Kind};
pub use mask::{MASKED, Mask, NotAPointer};
pub use own::{
    BAD_BLOB, BadBody, BadBytes, FoundIn, GAP, GAP_HEALED, GapNotice, HealedNotice, RECEIPT, ReceiptNotice, Withheld,
};

use crate::config::{EcsProfile, Format, OcsfVersion, RawForm};
use crate::model::{ContentType, TenantId, Timestamp};
use crate::severity::engine::RuleVerdict;
use crate::severity::{self, Rules, Severity, operation};
use actor::Actor;
use dlp_link::{DlpNote, push_note};
use event::KnownMember;
use facts::EventFacts;
use outcome::EventOutcome;
use parts::Parts;

/// How records are made.
#[derive(Debug, Clone)]
pub struct NormaliserSettings {
    /// The shape of a record.
    pub format: Format,
    /// The form of `raw` in the native format.
    pub raw: RawForm,
    /// The version of the OCSF format.
    pub ocsf_version: OcsfVersion,
    /// Whose names the ECS format has.
    pub ecs_profile: EcsProfile,
    /// Whether events that only `drop` rules match are left out.
    pub drop_routine: bool,
    /// The organisation's mail domains, beyond those its events name.
    pub internal_domains: Vec<String>,
    /// What assesses severities and says what is routine.
    pub rules: Arc<Rules>,
    /// What is not to leave.
    pub mask: Mask,
}

impl Default for NormaliserSettings {
    /// The native format with `raw` as an object, nothing left out, the built-in rules.
    fn default() -> NormaliserSettings {
        NormaliserSettings {
            format: Format::default(),
            raw: RawForm::default(),
            ocsf_version: OcsfVersion::default(),
            ecs_profile: EcsProfile::default(),
            drop_routine: false,
            internal_domains: Vec::new(),
            rules: Rules::built_in(),
            mask: Mask::default(),
        }
    }
}

/// The blob an event came in.
#[derive(Debug, Clone, Copy)]
pub struct BlobContext<'a> {
    /// The configured tenant.
    pub tenant: &'a TenantId,
    /// The content type the blob was listed under.
    pub content_type: ContentType,
    /// `contentId`.
    pub content_id: &'a str,
    /// `contentCreated`.
    pub content_created: Timestamp,
}

/// What [`Normaliser::render`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rendered {
    /// One record was appended.
    Record {
        /// When the event happened; else its blob's `contentCreated`.
        time: Timestamp,
        /// The severity assessed. `None` in the raw format, which has no place for it, when nothing else needed it:
        /// [`Normaliser`] says it of the record when asked ([`Describe`]).
        severity: Option<Severity>,
        /// What the event is about; `None` likewise.
        kind: Option<EventKind>,
    },
    /// The event is not to be shipped; what was appended means nothing.
    Dropped {
        /// The rule that says so, such as `EX-45`.
        rule: Arc<str>,
    },
}

/// Where an event came from, as far as it is known: [`BlobContext`] with everything optional, for events that did not
/// come from the feed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Origin<'a> {
    /// The tenant's GUID; when absent, the event's own `OrganizationId` stands in.
    pub tenant: Option<&'a str>,
    /// The content type.
    pub content_type: Option<ContentType>,
    /// `contentId`.
    pub content_id: Option<&'a str>,
    /// `contentCreated`.
    pub content_created: Option<Timestamp>,
    /// Where it came from, if not from the feed: [`GRAPH`].
    pub source: Option<&'static str>,
}

/// The origin of an event that was healed through Microsoft Graph.
pub const GRAPH: &str = "graph";
/// What stands for the blob of such an event: an id that begins with this, which none of the feed's does.
pub const GRAPH_CONTENT: &str = "graph:";

impl<'a> Origin<'a> {
    /// A blob of the feed, or what stands for one of an event of Graph's.
    pub fn of(blob: &BlobContext<'a>) -> Origin<'a> {
        if blob.content_id.starts_with(GRAPH_CONTENT) {
            return Origin {
                tenant: Some(blob.tenant.as_str()),
                content_type: Some(blob.content_type),
                source: Some(GRAPH),
                ..Origin::default()
            };
        }
        Origin {
            tenant: Some(blob.tenant.as_str()),
            content_type: Some(blob.content_type),
            content_id: Some(blob.content_id),
            content_created: Some(blob.content_created),
            source: None,
        }
    }

    /// Appends `tenant_id` and the content members.
    fn push(&self, tenant: Option<&str>, out: &mut Vec<u8>) {
        if let Some(tenant) = tenant {
            out.extend_from_slice(b",\"tenant_id\":");
            json::push_string(out, tenant);
        }
        if let Some(content_type) = self.content_type {
            out.extend_from_slice(b",\"content_type\":\"");
            out.extend_from_slice(content_type.as_str().as_bytes());
            out.push(b'"');
        }
        if let Some(content_id) = self.content_id {
            out.extend_from_slice(b",\"content_id\":");
            json::push_string(out, content_id);
        }
        if let Some(created) = self.content_created {
            out.extend_from_slice(b",\"content_created\":");
            time::push(out, created);
        }
        if let Some(source) = self.source {
            out.extend_from_slice(b",\"origin\":");
            json::push_string(out, source);
        }
    }
}

/// Makes records of events.
#[derive(Debug, Clone)]
pub struct Normaliser {
    settings: NormaliserSettings,
}

impl Normaliser {
    /// A normaliser of these settings.
    pub fn new(settings: NormaliserSettings) -> Normaliser {
        Normaliser { settings }
    }

    /// Appends one record, a JSON object on one line without a line break at its end, for an event of a blob.
    pub fn render(&self, event: &Event<'_>, blob: &BlobContext<'_>, out: &mut Vec<u8>) -> Rendered {
        self.render_from(event, &Origin::of(blob), out)
    }

    /// The same for an event of any origin. Without a usable time of its own or of its blob, the record has no
    /// `timestamp` and [`Rendered::Record`] says 1970.
    pub fn render_from(&self, event: &Event<'_>, origin: &Origin<'_>, out: &mut Vec<u8>) -> Rendered {
        if self.settings.format == Format::Raw && !self.needs_rules(event) {
            event.push_on_one_line(out);
            return Rendered::Record { time: time_of(event, origin), severity: None, kind: None };
        }
        let folded = operation::fold(event.operation());
        let facts = EventFacts::new(event, &folded, &self.settings.internal_domains);
        let assessment = self.settings.rules.assess(&folded, &facts);
        if self.settings.drop_routine
            && let Some(rule) = assessment.drop
        {
            return Rendered::Dropped { rule: rule.id.as_str().into() };
        }
        let (time, severity, kind) = self.render_assessed(event, &facts, &assessment, (origin, None), out);
        Rendered::Record { time, severity: Some(severity), kind: Some(kind) }
    }

    /// Appends a gap record; its time and severity.
    pub fn render_gap(&self, gap: &GapNotice<'_>, out: &mut Vec<u8>) -> (Timestamp, Severity) {
        own::push(&gap.notice(), (self.settings.format, self.settings.ocsf_version), out)
    }

    /// Appends a record of a gap that is filled; its time and severity.
    pub fn render_healed(&self, healed: &HealedNotice<'_>, out: &mut Vec<u8>) -> (Timestamp, Severity) {
        own::push(&healed.notice(), (self.settings.format, self.settings.ocsf_version), out)
    }

    /// Appends a record of a part of the receipts that was sealed; its time and severity.
    pub fn render_receipt(&self, receipt: &ReceiptNotice<'_>, out: &mut Vec<u8>) -> (Timestamp, Severity) {
        own::push(&receipt.notice(), (self.settings.format, self.settings.ocsf_version), out)
    }

    /// Appends a record of bytes that could not be read as an event; its time and severity. What may be shown of them,
    /// [`Normaliser::censor`] says.
    pub fn render_bad(&self, bad: &BadBytes<'_>, out: &mut Vec<u8>) -> (Timestamp, Severity) {
        own::push(&bad.notice(), (self.settings.format, self.settings.ocsf_version), out)
    }

    /// What says of bytes that cannot be parsed whether they may be shown.
    pub fn censor(&self) -> Censor {
        self.settings.mask.censor()
    }

    /// The event's text as it may be kept: without what data loss prevention found, if that is masked.
    pub fn keepable<'e>(&self, event: &Event<'e>) -> Cow<'e, str> {
        self.settings.mask.without_detected(event).map_or(Cow::Borrowed(event.text()), Cow::Owned)
    }

    /// Whether a record of this event in the raw format may be dropped or differs from the event.
    fn needs_rules(&self, event: &Event<'_>) -> bool {
        let may_drop = || {
            let folded = operation::fold(event.operation());
            self.settings.rules.may_drop(&folded, event.record_type())
        };
        self.settings.drop_routine && may_drop() || self.settings.mask.may_apply(event)
    }

    /// Appends the record of an event that a rule would have dropped, with the reason why it is shipped. Its severity is
    /// not under that of a read of a flagged item.
    pub fn render_noted(
        &self,
        event: &Event<'_>,
        blob: &BlobContext<'_>,
        note: DlpNote<'_>,
        out: &mut Vec<u8>,
    ) -> (Timestamp, Severity, Kind) {
        let folded = operation::fold(event.operation());
        let facts = EventFacts::new(event, &folded, &self.settings.internal_domains);
        let mut assessment = self.settings.rules.assess(&folded, &facts);
        if let DlpNote::Flagged(flag) = note {
            assessment.at_least = Some(flag.severity_of_read());
        }
        let (time, severity, kind) =
            self.render_assessed(event, &facts, &assessment, (&Origin::of(blob), Some(note)), out);
        (time, severity, Kind::Event(kind))
    }

    fn render_assessed<'a>(
        &self,
        event: &Event<'a>,
        facts: &EventFacts<'_, 'a>,
        assessment: &severity::Assessment<'_>,
        (origin, note): (&Origin<'_>, Option<DlpNote<'_>>),
        out: &mut Vec<u8>,
    ) -> (Timestamp, Severity, EventKind) {
        let severity = assessment.severity();
        let folded = facts.folded_operation();
        let kind = EventKind::of(event, facts.kin(), folded);
        // Read once: for the record and for what is told beside it.
        let own = time::parse(event.creation_time());
        let shown = |raw| RecordContext { raw, note, kind: &kind, time: &own };
        let at = own.as_ref().map(|time| time.at);
        let time = at.or(origin.content_created).unwrap_or(Timestamp::UNIX_EPOCH);
        match self.settings.mask.apply(event) {
            None => self.write(event, facts, assessment, origin, shown(RawMember::AsItCame), out),
            Some(text) => match Event::parse(text.as_bytes()) {
                Ok(masked) => {
                    let facts = EventFacts::new(&masked, folded, &self.settings.internal_domains);
                    let kind = EventKind::of(&masked, facts.kin(), folded);
                    let time = time::parse(masked.creation_time());
                    let shown = RecordContext { kind: &kind, time: &time, ..shown(RawMember::Masked) };
                    self.write(&masked, &facts, assessment, origin, shown, out);
                }
                // Scalars took the place of scalars, so this does not happen; if it did, nothing may leak.
                Err(NotAnEvent) => self.write(event, facts, assessment, origin, shown(RawMember::Withheld), out),
            },
        }
        (time, severity, kind)
    }

    /// What the rules make of an event and why, for people. What is masked in records is masked here.
    pub fn explain(&self, event: &Event<'_>) -> Explanation<'_> {
        let folded = operation::fold(event.operation());
        let facts = EventFacts::new(event, &folded, &self.settings.internal_domains);
        let assessment = self.settings.rules.assess(&folded, &facts);
        let dlp = !assessment.matches.is_empty()
            && assessment.matches.iter().all(|found| found.verdict == RuleVerdict::Drop)
            && assessment.drop.is_none();
        let masked = self.settings.mask.apply(event);
        let shown = masked.as_deref().and_then(|text| Event::parse(text.as_bytes()).ok());
        let shown = shown.as_ref().unwrap_or(event);
        let facts = EventFacts::new(shown, &folded, &self.settings.internal_domains);
        let mut title = Vec::new();
        let info = facts.number_of_type().and_then(record_types::info);
        let (operation, object) = (self::shown(shown, KnownMember::Operation), EventObject::of(shown, &facts));
        push_title(&mut title, operation, info.map(|info| info.name), &facts, &object);
        let title = String::from_utf8_lossy(&title).into_owned();
        let title = json::get(&format!("{{{}}}", title.trim_start_matches(',')), "title")
            .and_then(json::scalar)
            .map(Cow::into_owned)
            .unwrap_or_default();
        let values = assessment.matches.iter().map(|found| found.shown(&facts)).collect();
        Explanation { title, assessment, facts: native::in_words(&facts), values, dlp }
    }

    /// Writes the record. `assessment` is of the event as it came, `event` and `facts` are what may be shown of it.
    fn write<'a>(
        &self,
        event: &Event<'a>,
        facts: &EventFacts<'_, 'a>,
        assessment: &severity::Assessment<'_>,
        origin: &Origin<'_>,
        RecordContext { raw, note, kind, time }: RecordContext<'_>,
        out: &mut Vec<u8>,
    ) {
        let reason = || with_note(self.settings.rules.reason(assessment, facts), note);
        match self.settings.format {
            Format::Raw => event.push_on_one_line(out),
            Format::Ecs | Format::Ocsf => {
                let reason = reason();
                let parts = Parts { note, ..Parts::of(event, facts, assessment, kind.category, reason.as_deref()) };
                let kept = self.settings.raw != RawForm::None && raw != RawMember::Withheld;
                let original = kept.then_some((event.text(), raw == RawMember::Masked));
                match self.settings.format {
                    Format::Ecs => ecs::push(&parts, origin, original, self.settings.ecs_profile, out),
                    _ => ocsf::push(&parts, origin, self.settings.ocsf_version, original, out),
                }
            }
            Format::Native => {
                let reason = reason();
                let derived = Derived {
                    time,
                    assessment,
                    reason: reason.as_deref(),
                    severity: assessment.severity(),
                    note,
                    kind,
                    facts,
                };
                push_native(event, origin, &derived, out);
                self.push_raw(event, raw, out);
                out.push(b'}');
            }
        }
    }

    /// Appends the event, as it came but for what is masked in it.
    fn push_raw(&self, event: &Event<'_>, raw: RawMember, out: &mut Vec<u8>) {
        if raw == RawMember::Masked && self.settings.raw != RawForm::None {
            out.extend_from_slice(b",\"raw_masked\":true");
        }
        match self.settings.raw {
            _ if raw == RawMember::Withheld => {}
            RawForm::Object => {
                out.extend_from_slice(b",\"raw\":");
                event.push_on_one_line(out);
            }
            RawForm::String => {
                out.extend_from_slice(b",\"raw\":");
                json::push_string(out, event.text());
            }
            RawForm::None => {}
        }
    }
}

/// Of records in the raw format, which are the events.
impl Describe for Normaliser {
    fn severity(&self, json: &[u8]) -> Severity {
        Event::parse(json).map(|event| Normaliser::assess(self, &event).severity()).unwrap_or(Severity::Info)
    }

    fn kind(&self, json: &[u8]) -> Option<Kind> {
        let event = Event::parse(json).ok()?;
        let operation = operation::fold(event.operation());
        let kin = likeness::of(&event, &operation, event.record_type());
        Some(Kind::Event(EventKind::of(&event, kin, &operation)))
    }
}

/// When an event happened; else its blob's `contentCreated`, else 1970.
fn time_of(event: &Event<'_>, origin: &Origin<'_>) -> Timestamp {
    let own = time::parse(event.creation_time()).map(|time| time.at);
    own.or(origin.content_created).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// What [`Normaliser::explain`] has to say.
#[derive(Debug, Clone)]
pub struct Explanation<'n> {
    /// The event in one line.
    pub title: String,
    /// What the rules make of it.
    pub assessment: severity::Assessment<'n>,
    /// The facts it was judged by, each with what people call it.
    pub facts: Vec<(&'static str, String)>,
    /// The values that each match shows, in the order of the matches.
    pub values: Vec<Vec<String>>,
    /// Whether it would be dropped but for the flag of data loss prevention.
    pub dlp: bool,
}

/// The reason of a severity, with what data loss prevention has to do with it.
fn with_note<'r>(reason: Option<Cow<'r, str>>, note: Option<DlpNote<'_>>) -> Option<Cow<'r, str>> {
    let more = match note {
        None => return reason,
        Some(DlpNote::Undetermined) => {
            "shipped before it could be known whether data loss prevention flagged it".into()
        }
        Some(DlpNote::Flagged(flag)) if flag.policies.is_empty() => "data loss prevention flagged the item".to_owned(),
        Some(DlpNote::Flagged(flag)) => {
            format!("data loss prevention flagged the item (policy {})", flag.policies.join(", "))
        }
    };
    Some(match reason {
        Some(reason) => format!("{more}; {reason}").into(),
        None => more.into(),
    })
}

/// What else a record shows beside what the event says.
#[derive(Debug, Clone, Copy)]
struct RecordContext<'n> {
    raw: RawMember,
    note: Option<DlpNote<'n>>,
    kind: &'n EventKind,
    time: &'n Option<time::EventTime<'n>>,
}

/// What may be shown of the event itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RawMember {
    AsItCame,
    Masked,
    Withheld,
}

/// What rendering knows of an event before it writes the first byte.
struct Derived<'d, 'a> {
    time: &'d Option<time::EventTime<'d>>,
    assessment: &'d severity::Assessment<'d>,
    reason: Option<&'d str>,
    severity: Severity,
    note: Option<DlpNote<'d>>,
    kind: &'d EventKind,
    facts: &'d EventFacts<'d, 'a>,
}

/// Longest object, in bytes of its token, that a title repeats; some are whole JSON texts.
const TITLE_OBJECT_BYTES_MAX: usize = 256;

/// Appends a record of the native format up to `raw`, its closing brace left out.
fn push_native<'a>(event: &Event<'a>, origin: &Origin<'_>, derived: &Derived<'_, 'a>, out: &mut Vec<u8>) {
    let record_type = derived.facts.number_of_type();
    let record_type_info = record_type.and_then(record_types::info);
    let outcome = derived.facts.outcome();
    let actor = derived.facts.actor();
    let object = EventObject::of(event, derived.facts);

    out.extend_from_slice(br#"{"source":"m365","category":""#);
    out.extend_from_slice(derived.kind.category.as_str().as_bytes());
    out.push(b'"');

    match (derived.time, origin.content_created) {
        (Some(time), _) => {
            out.extend_from_slice(b",\"timestamp\":\"");
            out.extend_from_slice(time.civil.as_bytes());
            out.extend_from_slice(b"Z\"");
        }
        (None, Some(created)) => {
            out.extend_from_slice(b",\"timestamp\":");
            time::push(out, created);
            out.extend_from_slice(b",\"timestamp_inferred\":true");
        }
        (None, None) => {}
    }

    push_shown(out, "event_id", shown(event, KnownMember::Id));

    out.extend_from_slice(b",\"event_type\":\"");
    out.extend_from_slice(derived.kind.event_type.as_bytes());
    out.push(b'"');

    let operation = shown(event, KnownMember::Operation);
    push_title(out, operation, record_type_info.map(|info| info.name), derived.facts, &object);
    push_shown(out, "operation", operation);
    push_shown(out, "workload", shown(event, KnownMember::Workload));

    if let Some(record_type) = record_type {
        push_number(out, "record_type", record_type);
    }
    if let Some(info) = record_type_info {
        push_text(out, "record_type_name", info.name);
    }

    push_text(out, "severity", derived.severity.as_str());
    if !derived.assessment.matches.is_empty() {
        out.extend_from_slice(b",\"severity_rule\":[");
        for (i, found) in derived.assessment.matches.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            json::push_string(out, &found.rule().id);
        }
        out.push(b']');
    }
    if let Some(reason) = derived.reason {
        push_text(out, "severity_reason", reason);
    }
    if let Some(note) = derived.note {
        out.extend_from_slice(b",\"dlp\":{");
        push_note(note, out);
        out.push(b'}');
    }
    if let Some(outcome) = outcome {
        push_text(out, "outcome", outcome.as_str());
    }
    push_actor(out, actor);

    if let Some(address) = derived.facts.source_address() {
        push_key(out, "src_ip");
        out.push(b'"');
        address::push(out, address.ip);
        out.push(b'"');
        if let Some(port) = address.port {
            push_number(out, "src_port", i64::from(port));
        }
    }
    if let Some(user_agent) = derived.facts.agent() {
        push_text(out, "user_agent", user_agent);
    }
    match &object {
        EventObject::Token(token) => push_shown(out, "object", Some(token)),
        EventObject::Text(text) => push_text(out, "object", text),
        EventObject::Nothing => {}
    }
    native::push_involved(derived.facts, out);

    let organization = match origin.tenant {
        Some(_) => None,
        None => event.text_of(KnownMember::OrganizationId).map(|id| id.to_lowercase()),
    };
    origin.push(origin.tenant.or(organization.as_deref()), out);
}

/// The beginning of a text, at most `bytes_max` bytes of it, whole characters only.
fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = bytes_max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// The token of a member that is worth showing: a string with something in it, or a number.
fn shown<'a>(event: &Event<'a>, member: KnownMember) -> Option<&'a str> {
    let token = event.get(member)?;
    match json::inner(token) {
        // What begins with a plain character has something in it, whatever follows.
        Some(inside) if matches!(inside.as_bytes().first(), Some(b'!'..=b'[' | b']'..=b'~')) => Some(token),
        Some(inside) => (!json::unescape(inside).trim().is_empty()).then_some(token),
        None => json::is_number(token).then_some(token),
    }
}

/// Appends a member as a JSON string. A string's token is copied as received, a number's is quoted.
fn push_shown(out: &mut Vec<u8>, key: &str, token: Option<&str>) {
    let Some(token) = token else { return };
    push_key(out, key);
    out.push(b'"');
    push_inside(out, json::inner(token).unwrap_or(token));
    out.push(b'"');
}

/// Appends the inside of a string token. A surrogate escape without its partner, which strict readers refuse the
/// whole record for, becomes U+FFFD here; it stays in `raw`.
fn push_inside(out: &mut Vec<u8>, inside: &str) {
    if memchr::memchr(b'\\', inside.as_bytes()).is_some() && memchr::memmem::find(inside.as_bytes(), b"\\u").is_some() {
        json::push_escaped(out, &json::unescape(inside));
    } else {
        out.extend_from_slice(inside.as_bytes());
    }
}

fn push_key(out: &mut Vec<u8>, key: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":");
}

fn push_text(out: &mut Vec<u8>, key: &str, text: &str) {
    push_key(out, key);
    json::push_string(out, text);
}

fn push_number(out: &mut Vec<u8>, key: &str, number: i64) {
    push_key(out, key);
    json::push_integer(out, number);
}

/// What an event was done to.
enum EventObject<'o> {
    /// As received.
    Token(&'o str),
    /// What stands for it where the event says that it is unknown.
    Text(Cow<'o, str>),
    Nothing,
}

impl<'o> EventObject<'o> {
    fn of<'a: 'o>(event: &Event<'a>, facts: &'o EventFacts<'_, 'a>) -> EventObject<'o> {
        match shown(event, KnownMember::ObjectId) {
            Some(token) if !involved::is_nobody(json::inner(token).unwrap_or(token)) => EventObject::Token(token),
            _ => native::object(facts).map_or(EventObject::Nothing, EventObject::Text),
        }
    }
}

/// `<operation> by <actor> on <object>`, ` (failed)` or ` (blocked)` behind it where it did; without an operation the record
/// type's name; of a match of data loss prevention the policy and the rule.
fn push_title(
    out: &mut Vec<u8>,
    operation: Option<&str>,
    record_type_name: Option<&str>,
    facts: &EventFacts<'_, '_>,
    object: &EventObject<'_>,
) {
    out.extend_from_slice(b",\"title\":\"");
    match operation {
        Some(_) if facts.is_dlp() && dlp::is_match(facts.folded_operation()) => {
            json::push_escaped(out, &dlp::matched_in_words(facts.dlp_rules()));
        }
        Some(token) => push_inside(out, json::inner(token).unwrap_or(token).trim().trim_end_matches('.')),
        None => out.extend_from_slice(record_type_name.unwrap_or("audit event").as_bytes()),
    }
    if let Some(id) = &facts.actor().id {
        out.extend_from_slice(b" by ");
        json::push_escaped(out, id);
    }
    match object {
        EventObject::Token(token) if token.len() <= TITLE_OBJECT_BYTES_MAX => {
            out.extend_from_slice(b" on ");
            push_inside(out, json::inner(token).unwrap_or(token));
        }
        EventObject::Text(text) if text.len() <= TITLE_OBJECT_BYTES_MAX => {
            out.extend_from_slice(b" on ");
            json::push_escaped(out, text);
        }
        _ => {}
    }
    if facts.outcome() == Some(EventOutcome::Failure) {
        out.extend_from_slice(if facts.is_dlp() { b" (blocked)" } else { b" (failed)" });
    }
    out.push(b'"');
}

fn push_actor(out: &mut Vec<u8>, actor: &Actor<'_>) {
    if actor.is_empty() {
        return;
    }
    out.extend_from_slice(b",\"actor\":{");
    let mut separator: &[u8] = b"\"";
    let parts = [("id", &actor.id), ("name", &actor.name), ("email", &actor.email), ("type", &actor.kind)];
    for (key, value) in parts {
        if let Some(value) = value {
            out.extend_from_slice(separator);
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(b"\":");
            json::push_string(out, value);
            separator = b",\"";
        }
    }
    out.push(b'}');
}

/// Members that hold the actor's address, best first. Mailbox records have it in `ClientIPAddress`, where `ClientIP`
/// can be a server of Microsoft's; `SenderIp` is a mail server's and never the actor's.
const ADDRESS_MEMBERS: [KnownMember; 5] = [
    KnownMember::ClientIPAddress,
    KnownMember::ClientIP,
    KnownMember::ActorIpAddress,
    KnownMember::ActorIP,
    KnownMember::UserIp,
];

/// The first address that parses; a loopback one (a proxy of Microsoft's own) only when there is no other.
fn source_address(event: &Event<'_>) -> Option<address::Address> {
    let mut loopback = None;
    for member in ADDRESS_MEMBERS {
        if let Some(address) = event.text_of(member).and_then(|text| address::parse(&text)) {
            if !address.ip.is_loopback() {
                return Some(address);
            }
            loopback = loopback.or(Some(address));
        }
    }
    loopback
}

/// `UserAgent`; else the one among `ExtendedProperties` (sign-ins), there also inside the JSON of `additionalDetails`
/// (directory); else `ClientInfoString` (mailboxes).
fn user_agent<'a>(event: &Event<'a>, extended: &parameters::Pairs<'a>) -> Option<Cow<'a, str>> {
    event
        .text_of(KnownMember::UserAgent)
        .or_else(|| user_agent_of_properties(extended).map(Cow::Owned))
        .or_else(|| event.text_of(KnownMember::ClientInfoString))
}

fn user_agent_of_properties(extended: &parameters::Pairs<'_>) -> Option<String> {
    let mut found = None;
    extended.any(&|name| name.eq_ignore_ascii_case("UserAgent"), &mut |value| {
        found = Some(value.to_owned()).filter(|agent| !agent.trim().is_empty());
        found.is_some()
    });
    if found.is_none() {
        extended.any(&|name| name.eq_ignore_ascii_case("additionalDetails"), &mut |value| {
            let agent = json::get(value.trim(), "User-Agent").and_then(json::scalar).map(Cow::into_owned);
            found = agent.filter(|agent| !agent.trim().is_empty());
            found.is_some()
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap_or_default()),
            any::<i64>().prop_map(|number| number.to_string()),
            Just(r#""\ud800\"\\ \u0041""#.to_owned()),
            Just(
                r#"[{"Name":"UserAgent","Value":"x"},{"Name":"additionalDetails","Value":"{\"User-Agent\":1}"}]"#
                    .to_owned()
            ),
            Just(r#"{"From":"a@b.c"}"#.to_owned()),
            prop::sample::select(vec![
                "null",
                "true",
                "11",
                "6",
                "1e9",
                "[]",
                "{}",
                "\"203.0.113.7:1\"",
                "\"New-InboxRule\""
            ])
            .prop_map(str::to_owned),
        ]
    }

    fn key() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "Id",
            "RecordType",
            "CreationTime",
            "Operation",
            "Workload",
            "UserId",
            "UserKey",
            "UserType",
            "ClientIP",
            "ObjectId",
            "ResultStatus",
            "ExtendedProperties",
            "Parameters",
            "PolicyDetails",
            "SharePointMetaData",
        ])
    }

    proptest! {
        #[test]
        fn whatever_the_members_are_the_record_is_one_line_of_json_without_empty_strings(
            members in prop::collection::vec((key(), token()), 0..12)
        ) {
            let body: Vec<String> = members.iter().map(|(key, token)| format!("\"{key}\":\n{token}")).collect();
            let event = format!("{{{}}}", body.join(",\r\n"));
            let event = Event::parse(event.as_bytes()).unwrap();
            let normaliser = Normaliser::new(NormaliserSettings { raw: RawForm::None, ..NormaliserSettings::default() });
            let mut out = Vec::new();
            normaliser.render_from(&event, &Origin::default(), &mut out);
            prop_assert!(!out.contains(&b'\n') && !out.contains(&b'\r'));
            let record: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&out).unwrap();
            for (key, value) in &record {
                prop_assert!(!matches!(value.as_str(), Some("")), "{}", key);
            }
            prop_assert!(record.contains_key("event_type") && record.contains_key("title") && record.contains_key("category"));
        }
    }
}
