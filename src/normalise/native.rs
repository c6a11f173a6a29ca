//! The members of a native record for the users and objects that an event involves.

use std::borrow::Cow;

use super::facts::EventFacts;
use super::involved::{Involved, Resource, Target};
use super::writer::Writer;

/// Longest text of one of these members, in bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// The object of an event whose `ObjectId` names nothing: for a conversation with an AI application the resource it
/// read, else the agent; for the directory the target.
pub(crate) fn object<'f>(facts: &'f EventFacts<'_, '_>) -> Option<Cow<'f, str>> {
    if let Some(ai) = facts.ai() {
        let read = ai.read.first().and_then(|read| read.name.as_ref()).or(ai.contexts.first());
        return read.or(ai.agent_name.as_ref()).or(ai.host.as_ref()).map(|name| Cow::Borrowed(&**name));
    }
    if facts.kin() != Some(8) {
        return None;
    }
    let involved = facts.involved();
    let name = involved.target.label().or(involved.application.name.as_deref()).map(Cow::Borrowed);
    name.or_else(|| facts.modified_text("DisplayName"))
}

/// Appends those of `target`, `application`, `error`, `resources` and `privileges` that are known.
pub(crate) fn push_involved(facts: &EventFacts<'_, '_>, out: &mut Vec<u8>) {
    let Involved { target, application, error, resources, privileges } = facts.involved();
    let mut w = Writer::more(out);
    if target.label().is_some() {
        w.nested("target", |w| push_target(target, w));
    }
    if application.id.is_some() || application.name.is_some() {
        w.nested("application", |w| {
            w.maybe("id", application.id.as_deref());
            w.maybe("name", application.name.as_deref());
        });
    }
    if error.code.is_some() || error.message.is_some() {
        w.nested("error", |w| {
            w.maybe("code", error.code.as_deref());
            w.maybe("message", error.message.as_deref());
        });
    }
    if !resources.is_empty() {
        w.objects("resources", |list| resources.iter().for_each(|resource| list.push(|w| push_resource(resource, w))));
    }
    if !privileges.is_empty() {
        w.texts("privileges", privileges.iter().map(|text| super::cut(text, TEXT_BYTES_MAX)));
    }
}

fn push_target(target: &Target<'_>, w: &mut Writer<'_>) {
    let email = target.email();
    let local = email.as_deref().and_then(|email| Some(email.split_once('@')?.0));
    // An id with the same text as the address adds nothing.
    let id = target.id.as_deref().or(target.principal.as_deref().filter(|id| email.as_deref() != Some(*id)));
    w.maybe("id", id.map(|id| super::cut(id, TEXT_BYTES_MAX)));
    w.maybe("name", target.name.as_deref().or(local).map(|name| super::cut(name, TEXT_BYTES_MAX)));
    w.maybe("email", email.as_deref());
    w.maybe("type", target.kind.as_deref().map(kind));
}

fn push_resource(resource: &Resource<'_>, w: &mut Writer<'_>) {
    w.maybe("name", resource.name.as_deref().map(|name| super::cut(name, TEXT_BYTES_MAX)));
    w.maybe("type", resource.kind.as_deref());
    w.maybe("label", resource.label.as_deref());
}

/// The users and objects that an event involves, for people: label and value.
pub(crate) fn in_words(facts: &EventFacts<'_, '_>) -> Vec<(&'static str, String)> {
    let Involved { target, application, error, resources, privileges } = facts.involved();
    let mut words = Vec::new();
    if let Some(label) = target.label() {
        let kind = target.kind.as_deref().map(|word| format!(" ({})", kind(word).replace('_', " ")));
        words.push(("to whom", format!("{label}{}", kind.unwrap_or_default())));
    }
    let name = application.name.as_deref().or(application.id.as_deref());
    words.extend(name.map(|name| ("application", name.to_owned())));
    if !privileges.is_empty() {
        words.push(("rights", privileges.join(", ")));
    }
    let names: Vec<&str> = resources.iter().filter_map(|resource| resource.name.as_deref()).collect();
    if !names.is_empty() {
        words.push(("touched", names.join(", ")));
    }
    let why = error.message.as_deref().or(error.code.as_deref());
    words.extend(why.map(|why| ("why it failed", why.to_owned())));
    words.extend(facts.outcome().map(|outcome| ("outcome", outcome.as_str().to_owned())));
    if let Some(ai) = facts.ai() {
        let signals =
            [("jailbreak", ai.jailbreak), ("xpia", ai.xpia), ("blocked", ai.blocked), ("labelled", ai.labelled)];
        let fired: Vec<&str> = signals.into_iter().filter(|(_, fired)| *fired).map(|(name, _)| name).collect();
        if !fired.is_empty() {
            words.push(("signals", fired.join(", ")));
        }
    }
    words
}

/// The word that a record uses for one of Microsoft's kinds of target.
pub(crate) fn kind(word: &str) -> Cow<'static, str> {
    const KINDS: [(&str, &str); 14] = [
        ("User", "user"),
        ("Group", "group"),
        ("ServicePrincipal", "service_principal"),
        ("Application", "application"),
        ("Device", "device"),
        ("Policy", "policy"),
        ("Role", "role"),
        ("Member", "member"),
        ("Guest", "guest"),
        ("Mailbox", "mailbox"),
        ("Everyone", "everyone"),
        ("SecurityGroup", "security_group"),
        ("SharePointGroup", "sharepoint_group"),
        ("Partner", "partner"),
    ];
    let known = KINDS.iter().find(|(name, _)| name.eq_ignore_ascii_case(word.trim()));
    known.map_or_else(|| Cow::Owned(word.trim().to_lowercase()), |(_, kind)| Cow::Borrowed(*kind))
}
