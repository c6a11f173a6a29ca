//! Who acted: derives an id, a name, an e-mail address and a kind from the many forms of `UserId`.

use std::borrow::Cow;

use super::category::DLP_RECORD_TYPES;
use super::event::{Event, KnownMember};
use super::{json, user_types};

/// Who acted. A part that could not be derived is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Actor<'a> {
    /// `UserId` as received, else `UserKey`; for a record of data loss prevention the person, not the agent.
    pub id: Option<Cow<'a, str>>,
    /// The part of the address before its `@`.
    pub name: Option<Cow<'a, str>>,
    /// The address, if the id is one; for a guest the address in the home tenant.
    pub email: Option<Cow<'a, str>>,
    /// `UserType` as a word; an unknown number stays as its digits.
    pub kind: Option<Cow<'static, str>>,
}

impl<'a> Actor<'a> {
    /// The actor of an event that is made like those of record type `kin`.
    pub fn of(event: &Event<'a>, kin: Option<i64>) -> Actor<'a> {
        if kin.is_some_and(|kin| DLP_RECORD_TYPES.contains(&kin))
            && let Some(person) = person_of_dlp(event)
        {
            // The record's `UserType` is the agent's.
            return Actor::from_id(person, None);
        }
        let kind = event.user_type().map(kind);
        match event.text_of(KnownMember::UserId).or_else(|| event.text_of(KnownMember::UserKey)) {
            Some(id) => Actor::from_id(id, kind),
            None => Actor { kind, ..Actor::default() },
        }
    }

    /// An actor of whom only the id is known.
    pub fn from_id(id: Cow<'a, str>, kind: Option<Cow<'static, str>>) -> Actor<'a> {
        let email = email(&id);
        let name = email.as_ref().and_then(|email| {
            Some(match email {
                Cow::Borrowed(email) => Cow::Borrowed(email.split_once('@')?.0),
                Cow::Owned(email) => Cow::Owned(email.split_once('@')?.0.to_owned()),
            })
        });
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

/// A DLP record names the scanning agent as its user; its metadata name the person.
fn person_of_dlp<'a>(event: &Event<'a>) -> Option<Cow<'a, str>> {
    let agent = event
        .text_of(KnownMember::UserId)
        .is_none_or(|id| id.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("dlp")) && !id.contains('@'));
    if !agent {
        return None;
    }
    [KnownMember::SharePointMetaData, KnownMember::ExchangeMetaData]
        .into_iter()
        .find_map(|member| json::scalar(json::get(event.get(member)?, "From")?).filter(|from| !from.trim().is_empty()))
}

/// The e-mail address in a user id, where it is one: exactly one `@`, no backslash, no blank. For a guest it is the
/// address in the home tenant: `bob_gmail.com#EXT#@contoso.onmicrosoft.com` and `urn:spo:guest#bob@gmail.com` are
/// `bob@gmail.com`. For a SharePoint claim (`i:0#.f|membership|alex@contoso.example`) it is the claimed address.
pub(crate) fn email<'a>(id: &Cow<'a, str>) -> Option<Cow<'a, str>> {
    let text: &str = unclaimed(id);
    if text.len() < id.len() {
        let claimed = Cow::Owned(text.to_owned());
        return email(&claimed).map(|email| Cow::Owned(email.into_owned()));
    }
    // Only ids of guests contain this character.
    if memchr::memchr(b'#', text.as_bytes()).is_none() {
        return is_email(text).then(|| id.clone());
    }
    const MARK: &[u8] = b"#EXT#";
    if let Some(at) = text.as_bytes().windows(MARK.len()).position(|part| part.eq_ignore_ascii_case(MARK)) {
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

/// The claimed address of a site member: `alex@contoso.example` for `i:0#.f|membership|alex@contoso.example`. Any other
/// text is returned unchanged. A claim by a number (`i:0h.f|membership|1003…@live.com`) identifies nobody whom another
/// record names.
pub(crate) fn unclaimed(text: &str) -> &str {
    const MARK: &str = "i:0#.";
    let is_claim = text.trim_start().get(..MARK.len()).is_some_and(|start| start.eq_ignore_ascii_case(MARK));
    if !is_claim {
        return text;
    }
    match text.rsplit_once('|') {
        Some((_, claimed)) if claimed.contains('@') => claimed.trim_end(),
        _ => text,
    }
}

fn is_email(text: &str) -> bool {
    let bytes = text.as_bytes();
    let Some(at) = memchr::memchr(b'@', bytes) else { return false };
    let (local, domain) = (bytes.get(..at).unwrap_or_default(), bytes.get(at + 1..).unwrap_or_default());
    let odd = |byte: &u8| {
        byte.is_ascii_whitespace() || byte.is_ascii_control() || matches!(byte, b'\\' | b'#' | b'|' | b'/' | b'"')
    };
    let plain =
        !bytes.iter().any(odd) && (text.is_ascii() || !text.contains(|c: char| c.is_whitespace() || c.is_control()));
    !local.is_empty() && domain.contains(&b'.') && !domain.contains(&b'@') && plain
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
            ("i:0#.f|membership|alex@contoso.example", Some("alex@contoso.example")),
            ("I:0#.F|membership|kim_fabrikam.example#ext#@contoso.onmicrosoft.example", Some("kim@fabrikam.example")),
            ("i:0#.f|membership|urn:spo:guest#bob@gmail.com", Some("bob@gmail.com")),
            ("i:0#.w|contoso\\alex", None),
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
        let actor = Actor::of(&event, Some(11));
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
            assert_eq!(Actor::of(&Event::parse(json.as_bytes()).unwrap(), None).kind.as_deref(), expected, "{json}");
        }
    }
}
