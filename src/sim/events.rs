//! The event generator: templates of real and of invented records, and the values filled into them.
//!
//! The real records are the redistributable ones of the development corpus (see `events/NOTICE.md`), with fresh `Id`,
//! `CreationTime` and `OrganizationId`. The others were written for this project in shapes seen on the wire:
//! `events/own.tsv`, one line each: kind (`signal` or `irregular`), name, content type, record. A text between `@`
//! signs is replaced by a value, which [`Filling`] defines.

use std::sync::OnceLock;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::model::{ContentType, TenantId, Timestamp};

macro_rules! irregularities {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// The irregular shapes records come in, each with a template of its own.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Irregularity { $($(#[$doc])* $variant,)* }

        impl Irregularity {
            /// Every one.
            pub const ALL: &'static [Irregularity] = &[$(Self::$variant,)*];

            /// Its name in the template file.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

irregularities! {
    /// `RecordType` is a string.
    RecordTypeString = "record-type-string",
    /// `RecordType` is -1.
    RecordTypeNegative = "record-type-negative",
    /// A `RecordType` no documentation lists.
    RecordTypeUnknown = "record-type-unknown",
    /// No `Id`.
    IdMissing = "id-missing",
    /// `Id` is an empty string.
    IdEmpty = "id-empty",
    /// `Id` is a word many events share.
    IdPlaceholder = "id-placeholder",
    /// No `Workload`.
    WorkloadMissing = "workload-missing",
    /// `203.0.113.7:33758`
    AddressWithPort = "address-with-port",
    /// `[203.0.113.7]:12345`
    AddressBracketedWithPort = "address-bracketed-with-port",
    /// `[203.0.113.7]`
    AddressBracketed = "address-bracketed",
    /// `2001:db8::5`
    AddressV6 = "address-v6",
    /// `[2001:db8::5]:37009`
    AddressV6BracketedWithPort = "address-v6-bracketed-with-port",
    /// `[2001:db8::5]`
    AddressV6Bracketed = "address-v6-bracketed",
    /// `::ffff:203.0.113.7`
    AddressV4Mapped = "address-v4-mapped",
    /// `[::ffff:203.0.113.7]:12345`
    AddressV4MappedBracketedWithPort = "address-v4-mapped-bracketed-with-port",
    /// `ffff:10.11.0.229`
    AddressBrokenMapped = "address-broken-mapped",
    /// `::1`
    AddressLoopback = "address-loopback",
    /// An empty `ClientIP`.
    AddressEmpty = "address-empty",
    /// A null `ClientIP`.
    AddressNull = "address-null",
    /// No `ClientIP`.
    AddressAbsent = "address-absent",
    /// An address after a blank.
    AddressLeadingBlank = "address-leading-blank",
    /// `localhost:443`
    AddressHostName = "address-host-name",
    /// A host and a build number that looks like an address.
    AddressHostAndBuild = "address-host-and-build",
    /// A failed sign-in whose `ResultStatus` is `Success`.
    ResultStatusSignInFailedSuccess = "result-status-sign-in-failed-success",
    /// `ResultStatus` is a number.
    ResultStatusNumber = "result-status-number",
    /// `Parameters` is one string in cmdlet syntax (record type 18).
    ParametersString = "parameters-string",
    /// The same on record type 1, itself a string.
    ParametersStringOnAdminCmdlet = "parameters-string-on-admin-cmdlet",
    /// `ExtendedProperties` is a string.
    ExtendedPropertiesString = "extended-properties-string",
    /// `ModifiedProperties` is a list of strings.
    ModifiedPropertiesStrings = "modified-properties-strings",
    /// `OperationProperties` is a string that holds JSON.
    OperationPropertiesString = "operation-properties-string",
    /// `AdditionalInfo` is a string that holds JSON; coordinates are strings.
    AdditionalInfoString = "additional-info-string",
    /// `Recipients` is a string, `SenderIp` empty.
    RecipientsString = "recipients-string",
    /// `Target[].Type` is a string.
    TargetTypeString = "target-type-string",
    /// `SharedBy` is `[null]`.
    SharedByNull = "shared-by-null",
    /// Numbers as strings, `1e9` among them.
    NumbersAsStrings = "numbers-as-strings",
    /// The same key twice in the record.
    DuplicateKey = "duplicate-key",
    /// The same key twice in the JSON inside `Data`, dates in two formats.
    DuplicateKeyInData = "duplicate-key-in-data",
    /// Integers that do not fit a double.
    Integer64Bit = "integer-64-bit",
    /// `OriginatingServer` ends in CR LF.
    OriginatingServerLineBreak = "originating-server-line-break",
    /// `Operation` with an en dash and a trailing blank.
    OperationTrailingBlank = "operation-trailing-blank",
    /// `CreationTime` with seven fractional digits.
    TimeFractional = "time-fractional",
    /// `CreationTime` with `Z`.
    TimeZulu = "time-zulu",
    /// `CreationTime` with an offset from UTC.
    TimeOffset = "time-offset",
    /// No `CreationTime`.
    TimeMissing = "time-missing",
    /// `UserType` is a string.
    UserTypeString = "user-type-string",
    /// A `UserType` no documentation lists.
    UserTypeUnknown = "user-type-unknown",
    /// The service as the user.
    UserSystem = "user-system",
    /// `UserId` is `Not Available`.
    UserNotAvailable = "user-not-available",
    /// The anonymous user of Forms.
    UserFormsAnonymous = "user-forms-anonymous",
    /// A value a hundred objects deep.
    DeepNesting = "deep-nesting",
    /// A record of about 64 KiB.
    LargeRecord = "large-record",
    /// Names outside ASCII and outside the basic plane.
    Utf8Names = "utf-8-names",
    /// Escapes in a key and in values, a surrogate pair among them.
    EscapedCharacters = "escaped-characters",
    /// Nulls where strings are documented.
    NullFields = "null-fields",
    /// Keys with blanks in them.
    KeyNamesWithBlanks = "key-names-with-blanks",
    /// `AppAccessContext` is a list.
    AppAccessContextList = "app-access-context-list",
    /// `OrganizationId` is another tenant's.
    OrganizationDiffers = "organization-differs",
    /// `EventData` holds markup.
    EventDataMarkup = "event-data-markup",
    /// `DLPRuleMatch`, as OneDrive spells it.
    DlpOperationSpelling = "dlp-operation-spelling",
    /// A record in numbered parts.
    RecordNumber = "record-number",
    /// Line breaks and blanks between the tokens.
    WhiteSpaceInside = "white-space-inside",
}

const OWN: &str = include_str!("events/own.tsv");
const CORPUS: [(ContentType, &str); 4] = [
    (ContentType::AzureActiveDirectory, include_str!("events/azuread.ndjson")),
    (ContentType::Exchange, include_str!("events/exchange.ndjson")),
    (ContentType::SharePoint, include_str!("events/sharepoint.ndjson")),
    (ContentType::General, include_str!("events/general.ndjson")),
];

/// Levels of nesting of `@DEEP@`; parsers commonly give up at 128.
const DEEP_LEVELS: usize = 100;
/// Items of `@BULK@`, about 90 bytes each.
const BULK_ITEMS: usize = 700;

/// A variable part of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filling {
    /// `@ID@`: a fresh GUID, the same at every place of one record.
    Id,
    /// `@TIME@`: the event's time, UTC, no zone, whole seconds.
    Time,
    /// `@UNIQUETIME@`: the same, but no other record of this template has it.
    UniqueTime,
    /// `@TIMEPLUS2H@`: the same two hours later, for a following `+02:00`.
    TimePlusTwoHours,
    /// `@TENANT@`
    Tenant,
    /// `@N@`: a number of eight digits.
    Number,
}

const FILLINGS: [(&str, Filling); 6] = [
    ("@ID@", Filling::Id),
    ("@TIME@", Filling::Time),
    ("@UNIQUETIME@", Filling::UniqueTime),
    ("@TIMEPLUS2H@", Filling::TimePlusTwoHours),
    ("@TENANT@", Filling::Tenant),
    ("@N@", Filling::Number),
];

/// The template of one record.
#[derive(Debug)]
pub(super) struct Template {
    /// Its name: of the irregular shape, of the signal, or `corpus`.
    pub name: &'static str,
    pub irregularity: Option<Irregularity>,
    pieces: Vec<(String, Option<Filling>)>,
}

impl Template {
    fn new(name: &'static str, irregularity: Option<Irregularity>, text: &str) -> Self {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((at, mark, filling)) = FILLINGS
            .iter()
            .filter_map(|(mark, f)| rest.find(mark).map(|at| (at, *mark, *f)))
            .min_by_key(|found| found.0)
        {
            let (before, after) = rest.split_at(at);
            pieces.push((before.to_owned(), Some(filling)));
            rest = after.strip_prefix(mark).unwrap_or_default();
        }
        pieces.push((rest.to_owned(), None));
        Self { name, irregularity, pieces }
    }

    /// Whether each record of the template needs a time of its own.
    pub fn wants_unique_time(&self) -> bool {
        self.pieces.iter().any(|(_, filling)| *filling == Some(Filling::UniqueTime))
    }

    /// A record of `tenant` at `time` (whole seconds).
    pub fn fill(&self, rng: &mut fastrand::Rng, tenant: &TenantId, time: Timestamp) -> Vec<u8> {
        let id = fresh_guid(rng);
        let number = rng.u32(10_000_000..100_000_000);
        let mut out = String::with_capacity(self.pieces.iter().map(|(text, _)| text.len() + 36).sum());
        for (text, filling) in &self.pieces {
            out.push_str(text);
            match filling {
                None => {}
                Some(Filling::Id) => out.push_str(&id),
                Some(Filling::Time | Filling::UniqueTime) => out.push_str(&zoneless(time)),
                Some(Filling::TimePlusTwoHours) => {
                    let later = time.saturating_add(jiff::SignedDuration::from_hours(2)).unwrap_or(time);
                    out.push_str(&zoneless(later));
                }
                Some(Filling::Tenant) => out.push_str(tenant.as_str()),
                Some(Filling::Number) => out.push_str(&number.to_string()),
            }
        }
        out.into_bytes()
    }
}

/// The templates of one content type.
#[derive(Debug, Default)]
pub(super) struct Templates {
    /// Real records and signals.
    pub regular: Vec<Template>,
    pub irregular: Vec<Template>,
}

/// The templates of a content type, parsed once.
pub(super) fn templates(content_type: ContentType) -> &'static Templates {
    static ALL: OnceLock<Vec<(ContentType, Templates)>> = OnceLock::new();
    static NONE: Templates = Templates { regular: Vec::new(), irregular: Vec::new() };
    let all = ALL.get_or_init(|| ContentType::ALL.into_iter().map(|t| (t, load(t))).collect());
    all.iter().find(|(t, _)| *t == content_type).map_or(&NONE, |(_, templates)| templates)
}

fn load(content_type: ContentType) -> Templates {
    let mut templates = Templates::default();
    for (_, lines) in CORPUS.iter().filter(|(t, _)| *t == content_type) {
        let records = lines.lines().filter_map(corpus_template);
        templates.regular.extend(records);
    }
    for line in OWN.lines() {
        let mut columns = line.splitn(4, '\t');
        let (Some(kind), Some(name), Some(of), Some(text)) =
            (columns.next(), columns.next(), columns.next(), columns.next())
        else {
            continue;
        };
        if of != content_type.as_str() {
            continue;
        }
        let text = expand(text);
        if kind == "irregular" {
            let irregularity = Irregularity::ALL.iter().copied().find(|known| known.as_str() == name);
            templates.irregular.push(Template::new(name, irregularity, &text));
        } else {
            templates.regular.push(Template::new(name, None, &text));
        }
    }
    templates
}

fn expand(text: &str) -> String {
    let deep = format!("{}1{}", r#"{"n":"#.repeat(DEEP_LEVELS), "}".repeat(DEEP_LEVELS));
    let bulk = || {
        let item =
            |n| format!(r#"{{"InternetMessageId":"<{n:08}.0123456789abcdef@contoso.example>","SizeInBytes":{n}}}"#);
        (0..BULK_ITEMS).map(item).collect::<Vec<_>>().join(",")
    };
    let text = text.replace("@EOL@", "\r\n").replace("@DEEP@", &deep);
    if text.contains("@BULK@") { text.replace("@BULK@", &bulk()) } else { text }
}

/// A real record with its `Id`, `CreationTime` and `OrganizationId` replaced by marks, and otherwise unchanged.
fn corpus_template(line: &str) -> Option<Template> {
    let mut members = RawMembers::parse(line.as_bytes())?;
    for (key, value) in &mut members.0 {
        let mark = match key.as_str() {
            "Id" => "\"@ID@\"",
            "CreationTime" => "\"@TIME@\"",
            "OrganizationId" => "\"@TENANT@\"",
            _ => continue,
        };
        *value = RawValue::from_string(mark.to_owned()).ok()?;
    }
    Some(Template::new("corpus", None, &members.print()))
}

/// The members of an object in their order, with raw values; a key may occur twice.
pub(super) struct RawMembers(Vec<(String, Box<RawValue>)>);

impl RawMembers {
    /// Each key with its value.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&str, &RawValue)> {
        self.0.iter().map(|(key, value)| (key.as_str(), &**value))
    }

    pub fn parse(object: &[u8]) -> Option<Self> {
        serde_json::from_slice(object).ok()
    }

    fn print(&self) -> String {
        let mut out = String::from("{");
        for (key, value) in &self.0 {
            if out.len() > 1 {
                out.push(',');
            }
            out.push_str(&serde_json::Value::from(key.as_str()).to_string());
            out.push(':');
            out.push_str(value.get());
        }
        out.push('}');
        out
    }
}

impl<'de> Deserialize<'de> for RawMembers {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = RawMembers;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawMembers, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(RawMembers(members))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// The same event with its fields in another order; `None` when there is nothing to reorder, or when a key occurs
/// twice and the order has a meaning.
pub(super) fn reorder_fields(raw: &[u8], rng: &mut fastrand::Rng) -> Option<Vec<u8>> {
    let mut members = RawMembers::parse(raw)?;
    let mut keys: Vec<&str> = members.0.iter().map(|(key, _)| key.as_str()).collect();
    keys.sort_unstable();
    if keys.len() < 2 || keys.windows(2).any(|pair| pair[0] == pair[1]) {
        return None;
    }
    let turn = rng.usize(1..members.0.len());
    members.0.rotate_left(turn);
    Some(members.print().into_bytes())
}

/// `2026-07-16T20:45:19`: the feed's form of `CreationTime`.
pub(super) fn zoneless(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S").to_string()
}

pub(super) fn fresh_guid(rng: &mut fastrand::Rng) -> String {
    let (a, b) = (rng.u64(..), rng.u64(..));
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        a >> 32,
        (a >> 16) & 0xffff,
        a & 0xfff,
        0x8000 | ((b >> 48) & 0x3fff),
        b & 0xffff_ffff_ffff
    )
}

/// The body of a blob too large to hold: events identified by their numbers, all of one length.
#[derive(Debug, Clone)]
pub(super) struct HugeBody {
    serial: u32,
    tenant: TenantId,
    time: String,
}

/// The mark of ids in huge blobs: the third to fifth groups of the GUID begin like this.
const HUGE_MARK: &str = "4875-4765-8000";

impl HugeBody {
    pub fn new(serial: u32, tenant: TenantId, time: Timestamp) -> Self {
        Self { serial, tenant, time: zoneless(time) }
    }

    /// How many events fill about `bytes` bytes; at least one.
    pub fn count(&self, bytes: u64) -> u64 {
        (bytes / (self.event(0).len() as u64 + 1)).max(1)
    }

    pub fn event_id(&self, n: u64) -> String {
        format!("{:08x}-{HUGE_MARK}-{n:012x}", self.serial)
    }

    pub fn event_number(&self, id: &str) -> Option<u64> {
        let rest = id.strip_prefix(&format!("{:08x}-{HUGE_MARK}-", self.serial))?;
        u64::from_str_radix(rest, 16).ok()
    }

    pub fn time(&self) -> Timestamp {
        parse_event_time(&self.time).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    pub fn event(&self, n: u64) -> Bytes {
        format!(
            concat!(
                r#"{{"CreationTime":"{time}","Id":"{id}","Operation":"FileModified","OrganizationId":"{tenant}","#,
                r#""RecordType":6,"UserKey":"i:0h.f|membership|{n:016}@live.com","UserType":0,"Version":1,"#,
                r#""Workload":"SharePoint","ClientIP":"198.51.100.23","#,
                r#""ObjectId":"https://contoso.sharepoint.com/sites/archive/Shared Documents/report-{n:012}.docx","#,
                r#""UserId":"migration@contoso.example","EventSource":"SharePoint","ItemType":"File","#,
                r#""SiteUrl":"https://contoso.sharepoint.com/sites/archive/","SourceFileName":"report-{n:012}.docx","#,
                r#""SourceFileExtension":"docx","SourceRelativeUrl":"Shared Documents","UserAgent":"Mozilla/5.0"}}"#
            ),
            time = self.time,
            id = self.event_id(n),
            tenant = self.tenant,
            n = n,
        )
        .into()
    }
}

/// A `CreationTime` in any of the forms the feed has: no zone (UTC), `Z`, an offset, with or without a fraction.
pub(super) fn parse_event_time(text: &str) -> Option<Timestamp> {
    text.parse().or_else(|_| format!("{text}Z").parse()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_irregularity_has_exactly_one_template_and_every_template_a_name() {
        let mut found: Vec<Irregularity> = ContentType::ALL
            .into_iter()
            .flat_map(|t| &templates(t).irregular)
            .map(|template| template.irregularity.expect(template.name))
            .collect();
        found.sort();
        assert_eq!(found, Irregularity::ALL.iter().copied().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn every_template_fills_into_json_with_nothing_left_to_fill() {
        let mut rng = fastrand::Rng::with_seed(1);
        let tenant: TenantId = "11111111-2222-3333-4444-555555555555".parse().unwrap();
        let mut corpus = 0;
        for content_type in ContentType::ALL {
            let all = templates(content_type);
            for template in all.regular.iter().chain(&all.irregular) {
                let raw = template.fill(&mut rng, &tenant, "2026-05-01T12:00:00Z".parse().unwrap());
                let text = String::from_utf8(raw).unwrap();
                serde_json::from_str::<RawMembers>(&text).unwrap_or_else(|e| panic!("{}: {e}", template.name));
                for (mark, _) in FILLINGS {
                    assert!(!text.contains(mark), "{}: {mark}", template.name);
                }
                corpus += usize::from(template.name == "corpus");
            }
        }
        assert_eq!(corpus, 37);
    }

    #[test]
    fn reordering_keeps_every_member_and_refuses_duplicate_keys() {
        let mut rng = fastrand::Rng::with_seed(7);
        let moved = reorder_fields(br#"{"a":1e9,"b":{"x":"\u0041"},"c":9223372036854775807}"#, &mut rng).unwrap();
        let moved = String::from_utf8(moved).unwrap();
        for member in [r#""a":1e9"#, r#""b":{"x":"\u0041"}"#, r#""c":9223372036854775807"#] {
            assert!(moved.contains(member), "{moved}");
        }
        assert_eq!(reorder_fields(br#"{"a":1,"a":2}"#, &mut rng), None);
    }

    #[test]
    fn events_of_a_huge_blob_have_one_length_and_are_found_by_id() {
        let tenant: TenantId = "11111111-2222-3333-4444-555555555555".parse().unwrap();
        let body = HugeBody::new(3, tenant, "2026-05-01T12:00:00Z".parse().unwrap());
        assert_eq!(body.event(0).len(), body.event(123_456_789).len());
        assert_eq!(body.event_number(&body.event_id(77)), Some(77));
        assert!(serde_json::from_slice::<serde_json::Value>(&body.event(5)).is_ok());
    }
}
