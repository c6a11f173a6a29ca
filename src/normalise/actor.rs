//! Who acted: `UserId` and its many forms made into an id, a name, an e-mail address and a kind.

use std::borrow::Cow;

use super::category::DLP_RECORD_TYPES;
use super::event::{Event, Member};
use super::{json, user_types};

/// Who acted. Absent parts could not be derived.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Actor<'a> {
    /// `UserId` as received, else `UserKey`; for a record of data loss prevention the person, not the agent.
    pub id: Option<Cow<'a, str>>,
    /// The part of the address before its `@`.
    pub name: Option<Cow<'a, str>>,
    /// The address, where the id is one; for a guest the one outside.
    pub email: Option<Cow<'a, str>>,
    /// `UserType` as a word; an unknown number as its digits.
    pub kind: Option<Cow<'static, str>>,
}

impl<'a> Actor<'a> {
    /// The actor of an event.
    pub fn of(event: &Event<'a>) -> Actor<'a> {
        if let Some(person) = person_of_dlp(event) {
            // The record's `UserType` is the agent's.
            return Actor::from_id(person, None);
        }
        let kind = event.user_type().map(kind);
        match event.text_of(Member::UserId).or_else(|| event.text_of(Member::UserKey)) {
            Some(id) => Actor::from_id(id, kind),
            None => Actor { kind, ..Actor::default() },
        }
    }

    /// Somebody by their id alone.
    pub fn from_id(id: Cow<'a, str>, kind: Option<Cow<'static, str>>) -> Actor<'a> {
        let email = email(&id);
        let name = email.as_ref().and_then(|email| Some(Cow::Owned(email.split_once('@')?.0.to_owned())));
        Actor { email, name, kind, id: Some(id) }
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        *self == Actor::default()
    }
}

/// `UserType` as a record has it.
fn kind(user_type: i64) -> Cow<'static, str> {
    user_types::info(user_type).map_or_else(|| Cow::Owned(user_type.to_string()), |found| Cow::Borrowed(found.kind))
}

/// Records of data loss prevention name the scanning agent as their user; the person stands in the metadata.
fn person_of_dlp<'a>(event: &Event<'a>) -> Option<Cow<'a, str>> {
    if !DLP_RECORD_TYPES.contains(&event.record_type()?) {
        return None;
    }
    let agent = event
        .text_of(Member::UserId)
        .is_none_or(|id| id.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("dlp")) && !id.contains('@'));
    if !agent {
        return None;
    }
    [Member::SharePointMetaData, Member::ExchangeMetaData]
        .into_iter()
        .find_map(|member| json::scalar(json::get(event.get(member)?, "From")?).filter(|from| !from.trim().is_empty()))
}

/// The e-mail address in a user id, where it is one: exactly one `@`, no backslash, no blank. A guest's is the one
/// outside: `bob_gmail.com#EXT#@contoso.onmicrosoft.com` and `urn:spo:guest#bob@gmail.com` are `bob@gmail.com`.
fn email<'a>(id: &Cow<'a, str>) -> Option<Cow<'a, str>> {
    let text: &str = id;
    if let Some(at) = text.to_ascii_uppercase().find("#EXT#") {
        let (local, domain) = text.get(..at)?.rsplit_once('_')?;
        return Some(Cow::Owned(format!("{local}@{domain}"))).filter(|email| is_email(email));
    }
    const GUEST: &str = "urn:spo:guest#";
    if let Some((start, address)) = text.split_at_checked(GUEST.len())
        && start.eq_ignore_ascii_case(GUEST)
    {
        return is_email(address).then(|| Cow::Owned(address.to_owned()));
    }
    is_email(text).then(|| id.clone())
}

fn is_email(text: &str) -> bool {
    match text.split_once('@') {
        Some((local, domain)) => {
            let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '\\' | '#' | '|' | '/' | '"');
            !local.is_empty() && domain.contains('.') && !domain.contains('@') && !text.contains(odd)
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_becomes_an_email() {
        for (id, expected) in [
            ("Alice@Contoso.com", Some("Alice@Contoso.com")),
            ("bob_smith_gmail.com#EXT#@contoso.onmicrosoft.com", Some("bob_smith@gmail.com")),
            ("urn:spo:guest#bob@gmail.com", Some("bob@gmail.com")),
            ("urn:spo:anon#0123", None),
            ("urn:forms:anonymous#1@forms.office.com", None),
            ("NT AUTHORITY\\SYSTEM (Microsoft.Exchange.ServiceHost)", None),
            ("app@sharepoint", None),
            ("S-1-5-18", None),
            ("a@b@c.d", None),
            ("i:0h.f|membership|1003@live.com", None),
            ("#EXT#", None),
            ("", None),
        ] {
            assert_eq!(email(&Cow::Borrowed(id)).as_deref(), expected, "{id}");
        }
    }

    #[test]
    fn the_person_of_a_dlp_record_is_the_actor() {
        let json = br#"{"RecordType":11,"UserId":"DlpAgent","UserType":4,"SharePointMetaData":{"From":"A@B.COM"}}"#;
        let event = Event::parse(json).unwrap();
        let actor = Actor::of(&event);
        assert_eq!(actor.id.as_deref(), Some("A@B.COM"));
        assert_eq!(actor.kind, None);
    }

    #[test]
    fn user_types_are_words_and_unknown_ones_pass() {
        for (json, expected) in [
            (r#"{"UserType":0}"#, Some("regular")),
            (r#"{"UserType":"2"}"#, Some("admin")),
            (r#"{"UserType":77}"#, Some("77")),
            (r#"{"UserType":"Admin"}"#, Some("admin")),
            (r#"{"UserType":"dcAdmin"}"#, Some("dc_admin")),
            (r#"{"UserType":"Somebody"}"#, None),
        ] {
            assert_eq!(Actor::of(&Event::parse(json.as_bytes()).unwrap()).kind.as_deref(), expected, "{json}");
        }
    }
}
