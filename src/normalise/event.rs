//! One audit event as received: its top-level members as tokens, found by name without regard to case.
//!
//! This module knows the names of members, not their meaning. The names are those of Microsoft's "Office 365 Management
//! Activity API schema"; the case varies on the wire (`IntraSystemsId`, `itemCreationTime`), hence the folding.

use std::borrow::Cow;

use super::category::DLP_RECORD_TYPES;
use super::censor::may_be_detected_values;
use super::{json, record_types, user_types};
use crate::model::{EventIdentity, Timestamp};

/// The bytes are not one valid UTF-8 JSON object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not one JSON object in UTF-8")]
pub struct NotAnEvent;

macro_rules! known_members {
    ($($name:ident),* $(,)?) => {
        /// The members that fields and rules ask for, spelled as the schema spells them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(dead_code, reason = "some are looked up by name only")]
        pub(crate) enum KnownMember { $($name),* }
        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

known_members! {
    Id, RecordType, CreationTime, Operation, RecordNumber, OrganizationId, OrganizationName, UserType, UserKey,
    Workload, ResultStatus, ObjectId, UserId, ClientIP, ClientIPAddress, ActorIpAddress, ActorIP, UserIp, UserAgent,
    ClientInfoString, ErrorNumber, Parameters, ExtendedProperties, MailboxOwnerUPN, Category,
    ModifiedProperties, OperationProperties, ExtraProperties, PropertyCollection, ExternalAccess, ApplicationId,
    Severity, Actor, Target, InterSystemsId, CorrelationId, SessionId, AppAccessContext, ApplicationDisplayName,
    ClientAppId, AppId, LogonError, LogonType, LogonUserDisplayName, ClientProcessName, OperationCount, Item, Folder,
    AffectedItems, ItemType, Site, SiteUrl, SourceFileName, SourceFileExtension, SourceRelativeUrl, ListItemUniqueId,
    EventData, TargetUserOrGroupType, TargetUserOrGroupName, Name, Status, AlertId, PolicyId, TeamName, Members,
    CopilotEventData, ParticipantInfo, RiskLevel, DeliveryAction, DetectionType, Verdict, URLClickAction, Application,
    Url, GroupName, FileSizeBytes, SensitivityLabelId, RecipientList, Recipients, ListTitle, ChannelName, TeamGuid,
    AlertEntityId, AlertType, AlertDisplayName, AlertLinks, EntityType, EndpointMetaData, InvestigationId,
    InvestigationName, AddOnName, AddOnGuid, SendAsUserSmtp, SendOnBehalfOfUserSmtp, AttachmentData, Comments,
    InternetMessageId, NetworkMessageId, P1Sender, P2Sender, Subject, SearchQueryText,
    Data, SenderIp, OriginatingServer, PolicyDetails, SensitiveInfoDetectionIsIncluded, IncidentId, ExceptionInfo, SharePointMetaData, ExchangeMetaData,
    Folders, Messages,
    AuditData, RawEventData, OfficeWorkload,
    AgentId, AgentName, AppIdentity, AppHost, DeviceProperties, EnforcementMode, PolicyMatchInfo,
}

/// How many known names may share a bucket of [`INDEX`].
const BUCKET: usize = 4;
/// This place of a bucket is empty, and so are those after it.
const NONE: u8 = u8::MAX;

/// A known name in [`INDEX`], with the parts that are compared first.
#[derive(Clone, Copy)]
struct KnownName {
    head: u64,
    tail: u64,
    /// Its place in [`NAMES`].
    slot: u8,
    /// Whether comparing head and tail is enough: every byte of the name is in one of them, and all bytes are letters.
    is_all: bool,
}

/// Known names by [`bucket`], so that a key is compared only with the one or two names in its bucket. Built by the
/// compiler, which refuses a name that does not fit.
static INDEX: [[KnownName; BUCKET]; 256] = {
    let mut index = [[KnownName { head: 0, tail: 0, slot: NONE, is_all: false }; BUCKET]; 256];
    let mut i = 0;
    while i < NAMES.len() {
        let name = NAMES[i].as_bytes();
        let (head, tail) = (head(name), tail(name));
        let bucket = bucket(head, tail);
        let mut place = 0;
        while index[bucket][place].slot != NONE {
            place += 1;
        }
        let mut is_all = name.len() <= 15;
        let mut at = 0;
        while at < name.len() {
            is_all &= name[at].is_ascii_alphabetic();
            at += 1;
        }
        index[bucket][place] = KnownName { head, tail, slot: i as u8, is_all };
        i += 1;
    }
    index
};

/// Folds the case of ASCII letters without collisions; other bytes may collide.
const CASELESS: u64 = 0x2020_2020_2020_2020;

/// The length of a name, at most 255, and its first seven bytes, without case.
const fn head(name: &[u8]) -> u64 {
    if let Some(first) = name.first_chunk::<8>() {
        const SEVEN: u64 = u64::MAX >> 8;
        let length = if name.len() < 0xFF { name.len() as u64 } else { 0xFF };
        return (u64::from_le_bytes(*first) | CASELESS) & SEVEN | length << 56;
    }
    let mut bytes = [0; 8];
    let mut i = 0;
    while i < 7 && i < name.len() {
        bytes[i] = name[i] | 0x20;
        i += 1;
    }
    bytes[7] = name.len() as u8;
    u64::from_le_bytes(bytes)
}

/// The last eight bytes of a name, without case; 0 for a name that fits into its head.
const fn tail(name: &[u8]) -> u64 {
    match name.last_chunk::<8>() {
        Some(last) => u64::from_le_bytes(*last) | CASELESS,
        None => 0,
    }
}

const fn bucket(head: u64, tail: u64) -> usize {
    // An odd number without a pattern; the product's upper bits depend on all of both.
    ((head ^ tail.rotate_left(29)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as usize
}

fn known(key: &[u8]) -> Option<usize> {
    let (head, tail) = (head(key), tail(key));
    for known in INDEX.get(bucket(head, tail))?.iter().take_while(|known| known.slot != NONE) {
        if known.head == head && known.tail == tail {
            let name = NAMES.get(usize::from(known.slot))?.as_bytes();
            // Most keys are spelled as in the schema, and a comparison that ignores case costs several times as much.
            if known.is_all || name == key || name.eq_ignore_ascii_case(key) {
                return Some(usize::from(known.slot));
            }
        }
    }
    None
}

/// The positions of one event's members in its bytes. Created once for a blob and refilled for each of its events.
#[derive(Clone)]
pub struct Members {
    /// The start and end of the value token of each known member, if it is `present`.
    values: [(u32, u32); NAMES.len()],
    /// A bit for each known member: to clear these takes less time than to clear all `values`.
    present: u128,
    breaks: bool,
    suspect: bool,
}

const _: () = assert!(NAMES.len() <= u128::BITS as usize, "a known name without a bit");

impl Default for Members {
    fn default() -> Self {
        Self { values: [(0, 0); NAMES.len()], present: 0, breaks: false, suspect: false }
    }
}

impl Members {
    /// Reads the JSON object at the start of `bytes`, whatever follows it, and returns its length. `None` if it is
    /// incomplete or not valid; UTF-8 is not checked.
    pub fn read(&mut self, bytes: &[u8]) -> Option<usize> {
        self.present = 0;
        self.fill(bytes)
    }

    fn have_identity(&self) -> bool {
        const IDENTITY: [KnownMember; 4] =
            [KnownMember::Id, KnownMember::RecordType, KnownMember::CreationTime, KnownMember::Operation];
        IDENTITY.iter().filter(|member| self.present >> (**member as usize) & 1 == 1).count() >= 2
    }

    /// As [`Members::read`], into empty members.
    fn fill(&mut self, bytes: &[u8]) -> Option<usize> {
        let Self { values, present, suspect, .. } = self;
        *suspect = false;
        let layout = json::scan_bytes(bytes, |key, value| {
            let key = bytes.get(key).unwrap_or_default();
            // No name contains a backslash, so a key that is found as written need not be searched for one.
            let unescaped = || {
                let key = std::str::from_utf8(key.contains(&b'\\').then_some(key)?).ok()?;
                known(json::unescape(key).as_bytes())
            };
            let slot = known(key).or_else(unescaped);
            if let Some(slot) = slot
                && let Some(noted) = values.get_mut(slot)
            {
                // A position beyond 4 GiB makes the whole event too long, which is checked below.
                *noted = (value.start as u32, value.end as u32);
                *present |= 1 << slot;
            } else if key.len() > 12 {
                *suspect |= may_be_detected_values(key);
            }
        })
        .ok()?;
        self.breaks = layout.breaks;
        u32::try_from(layout.end).ok().map(|_| layout.end)
    }

    fn get<'a>(&self, text: &'a str, slot: usize) -> &'a str {
        let (start, end) = self.values.get(slot).copied().filter(|_| self.present >> slot & 1 == 1).unwrap_or_default();
        text.get(start as usize..end as usize).unwrap_or_default()
    }
}

/// One audit event, borrowed from its bytes.
///
/// A key given twice counts as its last value; the bytes keep both.
#[derive(Clone)]
pub struct Event<'a> {
    text: &'a str,
    members: Cow<'a, Members>,
    id: Cow<'a, str>,
    record_type: Cow<'a, str>,
    creation_time: Cow<'a, str>,
    operation: Cow<'a, str>,
    record_number: Cow<'a, str>,
}

impl<'a> Event<'a> {
    /// Parses one element: an object, white space around it allowed.
    ///
    /// Values are checked to be JSON and otherwise left alone, at any depth.
    ///
    /// # Errors
    /// Only when the bytes are not one valid UTF-8 JSON object.
    pub fn parse(bytes: &'a [u8]) -> Result<Event<'a>, NotAnEvent> {
        // JSON's white space, not Unicode's.
        let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        let start = bytes.iter().position(|byte| !is_blank(byte)).ok_or(NotAnEvent)?;
        let end = bytes.iter().rposition(|byte| !is_blank(byte)).ok_or(NotAnEvent)? + 1;
        let bytes = bytes.get(start..end).ok_or(NotAnEvent)?;
        let mut members = Members::default();
        match members.fill(bytes) {
            Some(length) if length == bytes.len() => Self::new(bytes, Cow::Owned(members)),
            _ => Err(NotAnEvent),
        }
    }

    /// The event that [`Members::read`] has read: `bytes` has the length that it returned.
    ///
    /// # Errors
    /// When the bytes are not UTF-8.
    pub fn of(bytes: &'a [u8], members: &'a Members) -> Result<Event<'a>, NotAnEvent> {
        Self::new(bytes, Cow::Borrowed(members))
    }

    fn new(bytes: &'a [u8], members: Cow<'a, Members>) -> Result<Event<'a>, NotAnEvent> {
        let text = simdutf8::basic::from_utf8(bytes).map_err(|_| NotAnEvent)?;
        let mut event = Event {
            text,
            members,
            id: Cow::Borrowed(""),
            record_type: Cow::Borrowed(""),
            creation_time: Cow::Borrowed(""),
            operation: Cow::Borrowed(""),
            record_number: Cow::Borrowed(""),
        };
        event.id = event.string_or_number(KnownMember::Id);
        event.record_type = event.string_or_number(KnownMember::RecordType);
        event.creation_time = event.string_or_number(KnownMember::CreationTime);
        event.operation = event.string_or_number(KnownMember::Operation);
        event.record_number = event.string_or_number(KnownMember::RecordNumber);
        Ok(event)
    }

    /// The identity of this event; `None` when it has no usable `Id` (absent, null, empty, blank, not a string or
    /// number).
    pub fn identity(&self) -> Option<EventIdentity<'_>> {
        if json::is_blank(&self.id) {
            return None;
        }
        Some(EventIdentity {
            id: &self.id,
            record_type: &self.record_type,
            creation_time: &self.creation_time,
            operation: &self.operation,
            record_number: &self.record_number,
        })
    }

    /// The event's text, without white space around it.
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// Whether to search for values found by DLP in every spelling, damaged or not: a member may hold them, the record
    /// is a DLP record, or its type is unknown.
    pub(crate) fn is_suspect(&self) -> bool {
        let says_nothing_else = || match &*self.record_type {
            // The usual case: a number as the feed writes it.
            "1" | "2" | "6" | "8" | "14" | "15" | "25" | "50" => false,
            _ => self.record_type().is_none_or(|record_type| DLP_RECORD_TYPES.contains(&record_type)),
        };
        self.members.suspect || self.get(KnownMember::PolicyDetails).is_some() || says_nothing_else()
    }

    /// Appends the event on one line: the bytes as received without CR and LF between tokens.
    pub(crate) fn push_on_one_line(&self, out: &mut Vec<u8>) {
        if self.members.breaks {
            json::push_on_one_line(out, self.text);
        } else {
            out.extend_from_slice(self.text.as_bytes());
        }
    }

    /// Whether this is clearly an event as the feed sends it, not a wrapper whose members have the same names.
    pub(crate) fn is_plain(&self) -> bool {
        let has = |member: KnownMember| self.members.present >> (member as usize) & 1 == 1;
        let is_identified = !self.id.is_empty() && !self.operation.is_empty() && !self.creation_time.is_empty();
        is_identified
            && ![KnownMember::AuditData, KnownMember::RawEventData, KnownMember::OfficeWorkload].into_iter().any(has)
    }

    /// Whether it has two or more of the members that make an event's identity ([`is_like_an_event`]).
    #[cfg(feature = "exports")]
    pub(crate) fn is_whole(&self) -> bool {
        self.members.have_identity()
    }

    /// The token of a member; `None` when it is absent or `null`.
    pub(crate) fn get(&self, member: KnownMember) -> Option<&'a str> {
        self.value(member as usize)
    }

    /// The token of a member of any name, known or not; `None` when it is absent or `null`. An unknown name costs a
    /// pass over the event.
    pub(crate) fn find(&self, name: &str) -> Option<&'a str> {
        match known(name.as_bytes()) {
            Some(slot) => self.value(slot),
            None => json::get(self.text, name),
        }
    }

    /// The text of a member that is a non-empty string, or a number or boolean as written.
    pub(crate) fn text_of(&self, member: KnownMember) -> Option<Cow<'a, str>> {
        json::scalar(self.get(member)?).filter(|text| !json::is_blank(text))
    }

    /// `Workload`; empty when absent.
    pub(crate) fn workload(&self) -> Cow<'a, str> {
        self.text_of(KnownMember::Workload).unwrap_or_default()
    }

    /// The member's integer, read leniently.
    pub(crate) fn integer(&self, member: KnownMember) -> Option<i64> {
        json::integer(self.get(member)?)
    }

    /// `RecordType` as its number: a number, its digits as text, or its name, which exports write.
    pub(crate) fn record_type(&self) -> Option<i64> {
        record_types::of_token(self.get(KnownMember::RecordType)?)
    }

    /// `UserType` as its number: a number, its digits as text, or its name, which exports write.
    pub(crate) fn user_type(&self) -> Option<i64> {
        let token = self.get(KnownMember::UserType)?;
        json::integer(token).or_else(|| user_types::number(&json::scalar(token)?))
    }

    /// `CreationTime` as received; empty when absent.
    pub(crate) fn creation_time(&self) -> &str {
        &self.creation_time
    }

    /// The time of the event, if `CreationTime` can be parsed.
    pub fn time(&self) -> Option<Timestamp> {
        super::time::parse(&self.creation_time).map(|time| time.at)
    }

    /// `Operation` as received; empty when absent.
    pub(crate) fn operation(&self) -> &str {
        &self.operation
    }

    fn value(&self, slot: usize) -> Option<&'a str> {
        let token = self.members.get(self.text, slot);
        (!token.is_empty() && token.as_bytes() != b"null").then_some(token)
    }

    fn string_or_number(&self, member: KnownMember) -> Cow<'a, str> {
        match self.get(member) {
            Some(token) if json::is_string(token) || json::is_number(token) => json::scalar(token).unwrap_or_default(),
            _ => Cow::Borrowed(""),
        }
    }
}

/// Whether the bytes are one valid JSON object that has two or more of the members that make an event's identity. This
/// distinguishes an event from the objects inside one, some of which have an `Id`.
pub(crate) fn is_like_an_event(bytes: &[u8]) -> bool {
    let mut members = Members::default();
    members.read(bytes) == Some(bytes.len()) && members.have_identity()
}

impl std::fmt::Debug for Event<'_> {
    // The body can hold secrets found by DLP; its identity is enough to find it again.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Event").field("id", &self.id).field("operation", &self.operation).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(json: &str) -> Option<String> {
        Event::parse(json.as_bytes()).unwrap().identity().map(|identity| identity.id.to_owned())
    }

    #[test]
    fn only_a_usable_id_makes_an_identity() {
        assert_eq!(id(r#"{"Id":"a"}"#).as_deref(), Some("a"));
        assert_eq!(id(r#"{"Id":12}"#).as_deref(), Some("12"));
        assert_eq!(id(r#"{"\u0049D":"\u0061"}"#).as_deref(), Some("a"));
        for none in ["{}", r#"{"Id":null}"#, r#"{"Id":""}"#, r#"{"Id":" \t"}"#, r#"{"Id":{}}"#, r#"{"Id":true}"#] {
            assert_eq!(id(none), None, "{none}");
        }
    }

    #[test]
    fn the_identity_does_not_tell_a_number_from_its_text() {
        let one = br#"{"Id":"a","RecordType":20,"CreationTime":"t","Operation":"o","RecordNumber":1}"#;
        let other = br#"{"id":"a","recordtype":"20","CREATIONTIME":"t","operation":"o","recordNumber":"1"}"#;
        assert_eq!(Event::parse(one).unwrap().identity(), Event::parse(other).unwrap().identity());
    }

    #[test]
    fn a_record_type_by_name_is_as_suspect_as_its_number() {
        for (json, expected) in [
            (r#"{"RecordType":1}"#, false),
            (r#"{"RecordType":"ExchangeAdmin"}"#, false),
            (r#"{"RecordType":11}"#, true),
            (r#"{"RecordType":" 11 "}"#, true),
            (r#"{"RecordType":"complianceDLPSharePoint"}"#, true),
            (r#"{"RecordType":4711}"#, false),
            (r#"{"RecordType":"NobodyKnows"}"#, true),
            (r#"{"RecordType":null}"#, true),
            ("{}", true),
        ] {
            assert_eq!(Event::parse(json.as_bytes()).unwrap().is_suspect(), expected, "{json}");
        }
    }

    #[test]
    fn of_a_key_given_twice_the_last_counts() {
        assert_eq!(id(r#"{"Id":"a","ID":"b"}"#).as_deref(), Some("b"));
        assert_eq!(id(r#"{"Id":"a","Id":null}"#), None);
    }

    #[test]
    fn every_known_name_is_found_in_any_case() {
        for (i, name) in NAMES.iter().enumerate() {
            assert_eq!(known(name.as_bytes()), Some(i));
            assert_eq!(known(name.to_lowercase().as_bytes()), Some(i));
            assert_eq!(known(name.to_uppercase().as_bytes()), Some(i));
            assert_eq!(known(format!("{name}x").as_bytes()), None);
            assert_eq!(known(format!("{name}{}{name}", "x".repeat(256 - name.len())).as_bytes()), None);
            // Case folding maps some bytes that are not letters to neighbours of letters or digits.
            for at in 0..name.len() {
                for other in [b'@', b'`', b'[', b'{', 0x00, 0x11, 0x20, 0x7F, name.as_bytes()[at] ^ 0x20 ^ 0x80] {
                    let mut key = name.as_bytes().to_vec();
                    key[at] = other;
                    assert_eq!(known(&key), None, "{key:?}");
                }
            }
        }
        assert_eq!(known(b""), None);
    }

    #[test]
    fn what_is_not_one_object_is_no_event() {
        for bad in
            [&b""[..], b"[]", b"null", b"{} {}", b"{}]", b"\xff{}", b"{\"a\":\"\xff\"}", b"\xef\xbb\xbf{}", b"{\"a\":1"]
        {
            assert_eq!(Event::parse(bad).err(), Some(NotAnEvent), "{bad:?}");
        }
        assert!(Event::parse(b" \r\n{}\t").is_ok());
    }
}
