//! An event as the severity rules see it.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::net::IpAddr;

use super::actor::{Actor, unclaimed};
use super::ai::{self, Ai};
use super::dlp::{self, DlpRule};
use super::event::{Event, KnownMember};
use super::involved::{EventEvidence, Involved};
use super::outcome::{self, EventOutcome};
use super::parameters::{self, Modified, Pairs};
use super::reach::{any_at, first_member};
use super::{Normaliser, address, category, inbox_rule, json, likeness};
use crate::severity::engine::{ActorKind, AiSignal, Fact};
use crate::severity::pattern::Names;
use crate::severity::recipient::Domains;
use crate::severity::{Assessment, Facts, Modification, is_true, operation};

/// The mark in the `UserId` of a guest.
const GUEST_MARK: &[u8] = b"#EXT#";
/// `UserType` of a guest.
const GUEST: i64 = 10;

impl Normaliser {
    /// Assesses an event by the rules, without its context.
    pub fn assess(&self, event: &Event<'_>) -> Assessment<'_> {
        let folded = operation::fold(event.operation());
        self.settings.rules.assess(&folded, &EventFacts::new(event, &folded, &self.settings.internal_domains))
    }
}

/// An event and the internal domains that the operator configured. Facts that cost a search are looked up once.
pub(crate) struct EventFacts<'e, 'a> {
    event: &'e Event<'a>,
    folded_operation: &'e str,
    internal_domains: &'e [String],
    record_type: Option<i64>,
    kin: Option<i64>,
    actor: OnceCell<Actor<'a>>,
    involved: OnceCell<Involved<'a>>,
    ai: OnceCell<Option<Box<Ai<'a>>>>,
    dlp_rules: OnceCell<Vec<DlpRule<'a>>>,
    user_agent: OnceCell<Option<Cow<'a, str>>>,
    address: OnceCell<Option<address::Address>>,
    outcome: OnceCell<Option<EventOutcome>>,
    parameters: OnceCell<Pairs<'a>>,
    extended: OnceCell<Pairs<'a>>,
    modified: OnceCell<Vec<Modified<'a>>>,
    inbox_rule: OnceCell<Vec<(String, String)>>,
}

impl<'e, 'a> EventFacts<'e, 'a> {
    /// Facts of an event; `internal_domains` from the configuration.
    pub fn new(event: &'e Event<'a>, folded_operation: &'e str, internal_domains: &'e [String]) -> Self {
        let record_type = event.record_type();
        EventFacts {
            event,
            folded_operation,
            internal_domains,
            record_type,
            kin: likeness::of(event, folded_operation, record_type),
            actor: OnceCell::new(),
            involved: OnceCell::new(),
            ai: OnceCell::new(),
            dlp_rules: OnceCell::new(),
            user_agent: OnceCell::new(),
            address: OnceCell::new(),
            outcome: OnceCell::new(),
            parameters: OnceCell::new(),
            extended: OnceCell::new(),
            modified: OnceCell::new(),
            inbox_rule: OnceCell::new(),
        }
    }

    /// The record type that the event resembles, whatever its own number: this decides how it is classified.
    pub fn kin(&self) -> Option<i64> {
        self.kin
    }

    /// Who acted.
    pub fn actor(&self) -> &Actor<'a> {
        self.actor.get_or_init(|| Actor::of(self.event, self.kin))
    }

    /// The other users and objects that the event involves.
    pub fn involved(&self) -> &Involved<'a> {
        self.involved.get_or_init(|| Involved::of(self))
    }

    /// Its data on an AI application.
    pub fn ai(&self) -> Option<&Ai<'a>> {
        self.ai.get_or_init(|| ai::of(self.event, self.kin).map(Box::new)).as_deref()
    }

    /// The actor's address with its port.
    pub fn source_address(&self) -> Option<address::Address> {
        *self.address.get_or_init(|| super::source_address(self.event))
    }

    /// The client's own name for itself.
    pub fn agent(&self) -> Option<&Cow<'a, str>> {
        self.user_agent.get_or_init(|| super::user_agent(self.event, self.extended())).as_ref()
    }

    /// How the event ended.
    pub fn outcome(&self) -> Option<EventOutcome> {
        *self.outcome.get_or_init(|| match self.is_dlp() {
            true => Some(dlp::outcome(self.event, self.folded_operation, self.dlp_rules())),
            false => outcome::of(self.event, self.folded_operation, self.kin),
        })
    }

    /// Whether the record is one of data loss prevention.
    pub fn is_dlp(&self) -> bool {
        self.kin.is_some_and(|kin| category::DLP_RECORD_TYPES.contains(&kin))
    }

    /// The rules of data loss prevention that matched.
    pub fn dlp_rules(&self) -> &[DlpRule<'a>] {
        self.dlp_rules.get_or_init(|| if self.is_dlp() { dlp::rules(self.event) } else { Vec::new() })
    }

    fn pairs_of<'c>(&self, cell: &'c OnceCell<Pairs<'a>>, member: KnownMember) -> &'c Pairs<'a> {
        cell.get_or_init(|| self.event.get(member).map(Pairs::of).unwrap_or_default())
    }

    /// The cmdlet parameters.
    pub fn parameters(&self) -> &Pairs<'a> {
        self.pairs_of(&self.parameters, KnownMember::Parameters)
    }

    /// The extended properties.
    pub fn extended(&self) -> &Pairs<'a> {
        self.pairs_of(&self.extended, KnownMember::ExtendedProperties)
    }

    /// The modified properties.
    pub fn modified(&self) -> &[Modified<'a>] {
        self.modified.get_or_init(|| {
            let token = self.event.get(KnownMember::ModifiedProperties);
            let entries = token.map(parameters::modified).unwrap_or_default();
            // The directory writes long changes into the details and none into the modified properties. Each part has
            // its number and the total.
            let may_be_split = || {
                let details = self.event.get(KnownMember::ExtendedProperties).unwrap_or_default();
                [&b"seq"[..], b"targetUpdated"]
                    .iter()
                    .any(|word| memchr::memmem::find(details.as_bytes(), word).is_some())
            };
            match entries.is_empty() && self.kin == Some(8) && may_be_split() {
                true => parameters::changes_in_details(self.extended()),
                false => entries,
            }
        })
    }

    /// The value of a modified property as text.
    pub fn modified_text(&self, name: &str) -> Option<Cow<'a, str>> {
        self.modified_value(name, false)
    }

    /// The folded name of the operation.
    pub fn folded_operation(&self) -> &'e str {
        self.folded_operation
    }

    /// The record type.
    pub fn number_of_type(&self) -> Option<i64> {
        self.record_type
    }
}

impl<'a> EventEvidence<'a> for EventFacts<'_, 'a> {
    fn event(&self) -> &Event<'a> {
        self.event
    }

    fn operation(&self) -> &str {
        self.folded_operation
    }

    fn kin(&self) -> Option<i64> {
        self.kin
    }

    fn parameters(&self) -> &Pairs<'a> {
        EventFacts::parameters(self)
    }

    fn modified(&self) -> &[Modified<'a>] {
        EventFacts::modified(self)
    }

    fn ai(&self) -> Option<&Ai<'a>> {
        EventFacts::ai(self)
    }
}

/// Lists of pairs other than parameters, modified and extended properties.
const PROPERTY_LISTS: [KnownMember; 3] =
    [KnownMember::OperationProperties, KnownMember::ExtraProperties, KnownMember::PropertyCollection];

/// Prefixes of a `UserId` that is a Microsoft service.
const SERVICES: [&str; 1] = ["nt authority\\system ("];
/// Prefixes of a `UserId` that is an application.
const APPLICATIONS: [&str; 3] = ["serviceprincipal_", "app@sharepoint", "certificate"];
/// Prefixes of an anonymous `UserId`.
const ANONYMOUS: [&str; 3] = ["anonymous", "urn:spo:anon#", "urn:forms:anonymous#"];

fn begins(text: &str, beginnings: &[&str]) -> bool {
    let text = text.trim();
    let begins =
        |beginning: &&str| text.get(..beginning.len()).is_some_and(|start| start.eq_ignore_ascii_case(beginning));
    beginnings.iter().any(begins)
}

impl Facts for EventFacts<'_, '_> {
    fn any_parameter(&self, named: &Names, test: &mut dyn FnMut(&str) -> bool) -> bool {
        self.parameters().any_named(named, test)
    }

    fn any_inbox_rule_part(&self, named: &Names, test: &mut dyn FnMut(&str) -> bool) -> bool {
        let parts = self.inbox_rule.get_or_init(|| {
            let mut parts = Vec::new();
            inbox_rule::any(self.event, &mut |name, value| {
                parts.push((name.to_owned(), value.to_owned()));
                false
            });
            parts
        });
        parts.iter().any(|(name, value)| named.matches(name) && test(value))
    }

    fn any_property(&self, named: &Names, test: &mut dyn FnMut(&str) -> bool) -> bool {
        self.extended().any_named(named, test)
            || PROPERTY_LISTS.iter().any(|list| {
                self.event
                    .get(*list)
                    .is_some_and(|token| parameters::any(token, &mut |name, value| named.matches(name) && test(value)))
            })
    }

    fn any_modified(&self, named: &Names, test: &mut dyn FnMut(&dyn Modification) -> bool) -> bool {
        self.modified().iter().filter(|entry| named.matches(&entry.name)).any(|entry| test(entry))
    }

    fn any_field(&self, path: &str, test: &mut dyn FnMut(&str) -> bool) -> bool {
        let (first, rest) = first_member(path);
        self.event.find(first).is_some_and(|token| any_at(token, rest, test))
    }

    fn record_type(&self) -> Option<i64> {
        self.record_type
    }

    fn kin(&self) -> Option<i64> {
        self.kin
    }

    fn user_type(&self) -> Option<i64> {
        self.event.user_type()
    }

    fn user_agent(&self) -> Option<Cow<'_, str>> {
        self.agent().map(|agent| Cow::Borrowed(agent.as_ref()))
    }

    fn address(&self) -> Option<IpAddr> {
        self.source_address().map(|address| address.ip)
    }

    fn is_actor(&self, text: &str) -> bool {
        let same = |id: Cow<'_, str>| unclaimed(id.trim()).eq_ignore_ascii_case(unclaimed(text.trim()));
        self.event.text_of(KnownMember::UserId).is_some_and(same)
    }

    fn actor_is(&self, kind: ActorKind) -> bool {
        let user = self.event.text_of(KnownMember::UserId).unwrap_or_default();
        let user_type = self.user_type();
        let external = || self.event.find("ExternalAccess").and_then(json::scalar).is_some_and(|text| is_true(&text));
        let service = || matches!(user_type, Some(3 | 4)) || begins(&user, &SERVICES) || external();
        let application = || matches!(user_type, Some(5 | 6)) || begins(&user, &APPLICATIONS);
        let guest = || {
            let marked = user.as_bytes().windows(GUEST_MARK.len()).any(|part| part.eq_ignore_ascii_case(GUEST_MARK));
            marked || begins(&user, &["urn:spo:guest#"])
        };
        let anonymous = || begins(&user, &ANONYMOUS);
        match kind {
            ActorKind::Service => service(),
            ActorKind::Application => application(),
            ActorKind::Guest => guest(),
            ActorKind::Anonymous => anonymous(),
            // A name with a backslash is a system account: `SHAREPOINT\system`, `Microsoft\ServiceOperator`.
            ActorKind::Person => {
                !user.is_empty() && !user.contains('\\') && !service() && !application() && !guest() && !anonymous()
            }
        }
    }

    fn any_fact(&self, fact: Fact, test: &mut dyn FnMut(&str) -> bool) -> bool {
        let involved = self.involved();
        let any = |text: Option<&str>, test: &mut dyn FnMut(&str) -> bool| text.is_some_and(test);
        match fact {
            Fact::Target => any(involved.target.label(), test),
            Fact::Application => {
                let application = &involved.application;
                any(application.name.as_deref().or(application.id.as_deref()), test)
            }
            Fact::Error => any(involved.error.message.as_deref().or(involved.error.code.as_deref()), test),
            Fact::Resources => involved.resources.iter().any(|resource| any(resource.name.as_deref(), test)),
            Fact::Privileges => involved.privileges.iter().any(|privilege| test(privilege)),
        }
    }

    fn ai_signal(&self, signal: AiSignal) -> bool {
        self.ai().is_some_and(|ai| match signal {
            AiSignal::Jailbreak => ai.jailbreak,
            AiSignal::Xpia => ai.xpia,
            AiSignal::Blocked => ai.blocked,
            AiSignal::Labelled => ai.labelled,
        })
    }

    fn failed(&self) -> bool {
        // For data loss prevention "failure" means that access was blocked, and the match is no less a match.
        !self.is_dlp() && self.outcome() == Some(EventOutcome::Failure)
    }

    /// The configured domains, `OrganizationName` with its hybrid routing domain, and the domains of the acting
    /// member and of the mailbox's owner.
    fn own_domains(&self) -> Domains {
        let mut own = Domains::default();
        for domain in self.internal_domains {
            own.add(domain);
        }
        if let Some(organization) = self.event.text_of(KnownMember::OrganizationName) {
            own.add(&organization);
            if let Some(name) = organization.trim().to_ascii_lowercase().strip_suffix(".onmicrosoft.com") {
                own.add(&format!("{name}.mail.onmicrosoft.com"));
            }
        }
        if self.event.user_type() != Some(GUEST)
            && let Some(user) = self.event.text_of(KnownMember::UserId)
        {
            own.add_of_address(&user);
        }
        if let Some(owner) = self.event.text_of(KnownMember::MailboxOwnerUPN) {
            own.add_of_address(&owner);
        }
        own
    }

    /// Whether DLP flagged the record: by its type (the seven DLP types), by a `PolicyDetails` that is not empty, by
    /// `SensitiveInfoDetectionIsIncluded` true, or by an `IncidentId`: the members that "Office 365 Management Activity
    /// API schema" gives to records of data loss prevention and to no others. A sensitivity label is no flag.
    fn flagged_by_dlp(&self) -> bool {
        let event = self.event;
        self.is_dlp()
            || event.get(KnownMember::PolicyDetails).is_some_and(|token| !is_blank(token))
            || event.text_of(KnownMember::SensitiveInfoDetectionIsIncluded).is_some_and(|text| is_true(&text))
            || event.text_of(KnownMember::IncidentId).is_some()
    }
}

/// Whether a token is an empty list, object or string; a list with only `null` elements counts as empty.
fn is_blank(token: &str) -> bool {
    match token.as_bytes().first() {
        Some(b'[') => {
            let mut blank = true;
            json::elements(token, |element| blank &= is_blank(element));
            blank
        }
        Some(b'{') => {
            let mut blank = true;
            json::members(token, |_, _| blank = false);
            blank
        }
        _ => json::scalar(token).is_none_or(|text| text.trim().is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flagged(json: &str) -> bool {
        EventFacts::new(&Event::parse(json.as_bytes()).unwrap(), "", &[]).flagged_by_dlp()
    }

    #[test]
    fn a_dlp_flag_needs_something_in_it() {
        for json in [
            r#"{"PolicyDetails":[{"PolicyId":"x"}]}"#,
            r#"{"SensitiveInfoDetectionIsIncluded":true}"#,
            r#"{"SensitiveInfoDetectionIsIncluded":"True"}"#,
            r#"{"IncidentId":"7"}"#,
            r#"{"RecordType":11}"#,
        ] {
            assert!(flagged(json), "{json}");
        }
        for json in [
            "{}",
            r#"{"PolicyDetails":[]}"#,
            r#"{"PolicyDetails":[{}, null]}"#,
            r#"{"PolicyDetails":null}"#,
            r#"{"PolicyDetails":""}"#,
            r#"{"SensitiveInfoDetectionIsIncluded":false}"#,
            r#"{"IncidentId":""}"#,
            r#"{"RecordType":6,"SensitivityLabelId":"x"}"#,
        ] {
            assert!(!flagged(json), "{json}");
        }
    }
}
