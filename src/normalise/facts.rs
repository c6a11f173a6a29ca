//! An event as the severity rules see it.

use super::event::{Event, Member};
use super::{category, json, parameters};
use crate::severity::recipient::Domains;
use crate::severity::{Facts, is_true};

/// `UserType` of a guest.
const GUEST: i64 = 10;

/// An event and the domains the operator says are the organisation's.
pub(crate) struct EventFacts<'e, 'a> {
    /// The event.
    pub event: &'e Event<'a>,
    /// From the configuration.
    pub internal_domains: &'e [String],
}

impl Facts for EventFacts<'_, '_> {
    fn any_parameter(&self, test: &mut dyn FnMut(&str, &str) -> bool) -> bool {
        self.event.get(Member::Parameters).is_some_and(|token| parameters::any(token, test))
    }

    /// The configured domains, `OrganizationName` with its hybrid routing domain, and the domains of the acting
    /// member and of the mailbox's owner.
    fn own_domains(&self) -> Domains {
        let mut own = Domains::default();
        for domain in self.internal_domains {
            own.add(domain);
        }
        if let Some(organization) = self.event.text_of(Member::OrganizationName) {
            own.add(&organization);
            if let Some(name) = organization.strip_suffix(".onmicrosoft.com") {
                own.add(&format!("{name}.mail.onmicrosoft.com"));
            }
        }
        if self.event.integer(Member::UserType) != Some(GUEST)
            && let Some(user) = self.event.text_of(Member::UserId)
        {
            own.add_of_address(&user);
        }
        if let Some(owner) = self.event.text_of(Member::MailboxOwnerUPN) {
            own.add_of_address(&owner);
        }
        own
    }

    /// A record says so by its type (the seven of data loss prevention), by a `PolicyDetails` with something in it,
    /// by `SensitiveInfoDetectionIsIncluded` true, or by an `IncidentId`: the members that "Office 365 Management
    /// Activity API schema" gives to records of data loss prevention and to no others. A sensitivity label is no flag.
    fn flagged_by_dlp(&self) -> bool {
        let event = self.event;
        event.integer(Member::RecordType).is_some_and(|t| category::DLP_RECORD_TYPES.contains(&t))
            || event.get(Member::PolicyDetails).is_some_and(|token| !is_blank(token))
            || event.text_of(Member::SensitiveInfoDetectionIsIncluded).is_some_and(|text| is_true(&text))
            || event.text_of(Member::IncidentId).is_some()
    }
}

/// Whether a token is an empty list, object or string; a list of nothing but `null` is empty, too.
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
        EventFacts { event: &Event::parse(json.as_bytes()).unwrap(), internal_domains: &[] }.flagged_by_dlp()
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
