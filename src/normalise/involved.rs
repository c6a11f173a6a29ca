//! The users and objects that an event involves beside the actor: the target, the application, the resources and the
//! error. They are derived once for an event, on first use; rules, reasons and every format use the result.
//!
//! Kind and operation decide what an event cannot have, before any member is read.

use std::borrow::Cow;

use super::actor;
use super::ai;
use super::event::{Event, KnownMember};
use super::parameters::{Modified, Pairs};
use super::reach::{inner, is_address};
use super::{json, known};

/// The most things of one kind that are named; the original event has all of them.
const NAMED_MAX: usize = 20;

/// Words that mean "unknown".
const NOBODY: [&str; 5] = ["Not Available", "Unknown", "NOT-FOUND", "Not-Found", "NotAvailable"];

/// Whether a text is one of these words.
pub(crate) fn is_nobody(text: &str) -> bool {
    let text = text.trim();
    // Nearly every text is longer than these words, or begins with another letter.
    text.len() <= 13
        && matches!(text.as_bytes().first(), Some(b'N' | b'n' | b'U' | b'u'))
        && NOBODY.iter().any(|nobody| text.eq_ignore_ascii_case(nobody))
}

/// The users and objects that an event involves. A part that the event does not name is absent.
#[derive(Debug, Default)]
pub(crate) struct Involved<'a> {
    /// The target of the operation, or the recipient of a grant.
    pub target: Target<'a>,
    /// The application that was used or changed.
    pub application: Application<'a>,
    /// Why it failed.
    pub error: EventFailure<'a>,
    /// The resources that were accessed or changed.
    pub resources: Vec<Resource<'a>>,
    /// Roles, scopes and rights that were granted or revoked.
    pub privileges: Vec<Cow<'a, str>>,
}

/// The target of an operation.
#[derive(Debug, Default, Clone)]
pub(crate) struct Target<'a> {
    /// A principal name.
    pub principal: Option<Cow<'a, str>>,
    /// A display name, or the text of `ObjectId`.
    pub name: Option<Cow<'a, str>>,
    /// A GUID, or the text of a claim.
    pub id: Option<Cow<'a, str>>,
    /// `User`, `Group`, `ServicePrincipal`, …
    pub kind: Option<Cow<'a, str>>,
}

impl Target<'_> {
    /// The best name available.
    pub fn label(&self) -> Option<&str> {
        self.principal.as_deref().or(self.name.as_deref()).or(self.id.as_deref())
    }

    /// Its address, if it has one.
    pub fn email(&self) -> Option<Cow<'_, str>> {
        actor::email(self.principal.as_ref()?)
    }
}

/// An application.
#[derive(Debug, Default)]
pub(crate) struct Application<'a> {
    /// Its id.
    pub id: Option<Cow<'a, str>>,
    /// Its name.
    pub name: Option<Cow<'a, str>>,
}

/// Why something failed.
#[derive(Debug, Default)]
pub(crate) struct EventFailure<'a> {
    /// Microsoft's number or word for the error.
    pub code: Option<Cow<'a, str>>,
    /// Its meaning in words, if known.
    pub message: Option<Cow<'a, str>>,
}

/// A resource that was accessed or changed.
#[derive(Debug, Default)]
pub(crate) struct Resource<'a> {
    /// Its name.
    pub name: Option<Cow<'a, str>>,
    /// What it is.
    pub kind: Option<Cow<'a, str>>,
    /// The id of its sensitivity label.
    pub label: Option<Cow<'a, str>>,
}

/// The parts of an event from which this is derived.
pub(crate) trait EventEvidence<'a> {
    /// The event.
    fn event(&self) -> &Event<'a>;
    /// Its folded operation.
    fn operation(&self) -> &str;
    /// The record type that it resembles.
    fn kin(&self) -> Option<i64>;
    /// The cmdlet parameters.
    fn parameters(&self) -> &Pairs<'a>;
    /// The modified properties.
    fn modified(&self) -> &[Modified<'a>];
    /// Its data on an AI application.
    fn ai(&self) -> Option<&ai::Ai<'a>>;

    /// The value of a modified property: the old value if `before` is true or there is no new one.
    fn modified_value(&self, name: &str, before: bool) -> Option<Cow<'a, str>> {
        let mut entries = self.modified().iter().filter(|entry| entry.name.eq_ignore_ascii_case(name));
        entries.find_map(|entry| if before { entry.value_before() } else { entry.value() })
    }
}

impl<'a> Involved<'a> {
    /// Derives the users and objects that an event involves.
    pub fn of(facts: &impl EventEvidence<'a>) -> Self {
        let event = facts.event();
        let mut involved = Involved { application: application(event), ..Involved::default() };
        match facts.kin() {
            Some(8) => involved.of_directory(facts),
            Some(9 | 15) => involved.of_sign_in(facts),
            Some(1) => involved.of_cmdlet(facts),
            Some(2 | 3 | 50) => involved.of_mailbox(event, facts.operation()),
            Some(4 | 6 | 14 | 36) => involved.of_sharing(event),
            Some(25) => involved.of_team(event),
            Some(40) => involved.of_alert(event),
            _ => {}
        }
        if let Some(ai) = facts.ai() {
            involved.of_ai(ai);
        }
        involved
    }

    fn resource(&mut self, name: Option<Cow<'a, str>>, kind: &'static str) {
        if let Some(name) = name.filter(|name| !name.trim().is_empty())
            && self.resources.len() < NAMED_MAX
        {
            self.resources.push(Resource { name: Some(name), kind: Some(kind.into()), label: None });
        }
    }

    fn privilege(&mut self, text: Cow<'a, str>) {
        let known = self.privileges.contains(&text);
        if !known && !text.trim().is_empty() && self.privileges.len() < NAMED_MAX {
            self.privileges.push(text);
        }
    }

    /// Adds the privileges listed in one text.
    fn privileges_in(&mut self, text: Cow<'a, str>, between: &[char]) {
        match text {
            Cow::Borrowed(text) => {
                text.split(between).for_each(|one| self.privilege(Cow::Borrowed(one.trim())));
            }
            Cow::Owned(text) => {
                text.split(between).for_each(|one| self.privilege(Cow::Owned(one.trim().to_owned())));
            }
        }
    }

    /// Directory: `Target` names the target of an operation. For a grant `Target` is the resource, and the modified
    /// properties name the grantee.
    fn of_directory(&mut self, facts: &impl EventEvidence<'a>) {
        let operation = facts.operation();
        let event = facts.event();
        let (target, app_id) = directory_target(event);
        self.target = target;
        let kind = DirectoryKind::of(operation);
        if kind == DirectoryKind::Grant {
            self.of_grant(facts, app_id);
            return;
        }
        if matches!(self.target.kind.as_deref(), Some("ServicePrincipal" | "Application")) {
            self.application = Application { id: app_id, name: self.target.name.clone() };
        }
        let taken = operation.starts_with("remove");
        match kind {
            DirectoryKind::Consent => {
                if let Some(text) = facts.modified_value("ConsentAction.Permissions", false) {
                    scopes_of_consent(&text).for_each(|scope| self.privilege(Cow::Owned(scope.to_owned())));
                }
            }
            DirectoryKind::Role => {
                let role = facts.modified_value("Role.DisplayName", taken);
                self.privileges.extend(role.or_else(|| facts.modified_value("Role.WellKnownObjectName", taken)));
            }
            DirectoryKind::Group => self.resource(facts.modified_value("Group.DisplayName", taken), "group"),
            DirectoryKind::Owner => {
                let value = |of: &str| facts.modified_value(of, taken);
                let id = value("Application.AppId").or_else(|| value("ServicePrincipal.AppId"));
                let name = value("Application.DisplayName").or_else(|| value("ServicePrincipal.DisplayName"));
                self.application = Application { id, name };
            }
            DirectoryKind::Grant | DirectoryKind::Other => {}
        }
    }

    /// An application role or scopes that were granted to, or revoked from, a service principal, a user or a group.
    fn of_grant(&mut self, facts: &impl EventEvidence<'a>, app_id: Option<Cow<'a, str>>) {
        let operation = facts.operation();
        let taken = revokes(operation);
        let value = |name: &str| facts.modified_value(name, taken);
        let of_what = std::mem::take(&mut self.target);
        let (user, group) = (value("User.UPN").or_else(|| value("User.ObjectID")), value("Group.ObjectID"));
        let principal = value("ServicePrincipal.ObjectID");
        let delegated = operation.contains("permission");
        self.target = if let (Some(user), false) = (user, delegated || operation.contains("service principal")) {
            let principal = Some(user).filter(|user| user.contains('@'));
            Target { principal, name: None, id: value("User.ObjectID"), kind: Some("User".into()) }
        } else if let (Some(id), false) = (group, delegated) {
            Target { principal: None, name: value("Group.DisplayName"), id: Some(id), kind: Some("Group".into()) }
        } else if principal.is_some() || value("ServicePrincipal.AppId").is_some() {
            let name = value("ServicePrincipal.DisplayName");
            Target { principal: None, name, id: principal, kind: Some("ServicePrincipal".into()) }
        } else if matches!(of_what.kind.as_deref(), Some("User" | "Group")) {
            of_what.clone()
        } else {
            Target::default()
        };
        let api = of_what.name.or(of_what.id);
        if self.target.kind.as_deref() == Some("ServicePrincipal") {
            let id = value("ServicePrincipal.AppId");
            let name = self.target.name.clone().or_else(|| Some(known::application(id.as_deref()?)?.into()));
            self.application = Application { id, name };
            self.resource(api, "api");
        } else {
            self.application = Application { id: app_id, name: api };
        }
        match value("DelegatedPermissionGrant.Scope") {
            Some(scopes) => self.privileges_in(scopes, &[' ']),
            None => {
                let role = ["AppRole.Value", "AppRole.DisplayName", "AppRole.Id"].iter().find_map(|name| value(name));
                self.privileges.extend(role);
            }
        }
    }

    /// A sign-in: the application, the service signed in to, the error.
    fn of_sign_in(&mut self, facts: &impl EventEvidence<'a>) {
        let event = facts.event();
        let service = event.text_of(KnownMember::ObjectId).and_then(|id| known::application(id.trim()));
        self.resource(service.map(Cow::Borrowed), "api");
        self.error = fault(event);
    }

    /// A cmdlet that grants or revokes rights to mailboxes, or roles.
    fn of_cmdlet(&mut self, facts: &impl EventEvidence<'a>) {
        let operation = facts.operation();
        let of_mailbox = operation.ends_with("permission");
        const ROLES: [&str; 6] =
            ["add-role", "update-role", "remove-role", "new-role", "new-managementrole", "remove-managementrole"];
        if !of_mailbox && !ROLES.iter().any(|role| operation.starts_with(role)) {
            return;
        }
        let event = facts.event();
        let value = |names: &[&str]| {
            let mut found = None;
            let named = |name: &str| names.iter().any(|wanted| wanted.eq_ignore_ascii_case(name));
            facts.parameters().any(&named, &mut |value| {
                found = Some(value.to_owned()).filter(|value| !value.trim().is_empty());
                found.is_some()
            });
            found.map(Cow::Owned)
        };
        let who: Option<Cow<'a, str>> = value(&["User", "Trustee", "Member", "Members", "App", "SecurityGroup"]);
        self.target = person(who, None);
        let thing = event.text_of(KnownMember::ObjectId).or_else(|| value(&["Identity", "Name"]));
        if of_mailbox {
            if let Some(rights) = value(&["AccessRights"]) {
                self.privileges_in(rights, &[',', ';']);
            }
            let kind = if operation.contains("folder") { "folder" } else { "mailbox" };
            self.resource(value(&["Identity"]).or(thing), kind);
        } else {
            match value(&["Roles", "Role"]) {
                Some(roles) => self.privileges_in(roles, &[',', ';']),
                None => self.privileges.extend(value(&["Identity", "Name"]).or(thing)),
            }
        }
    }

    /// A mailbox: its owner, the folders and items that were accessed, the grantee of rights to a folder.
    fn of_mailbox(&mut self, event: &Event<'a>, operation: &str) {
        let owner = event.text_of(KnownMember::MailboxOwnerUPN);
        if operation.ends_with("folderpermissions") {
            let folder =
                event.get(KnownMember::Item).and_then(|item| json::get(item, "ParentFolder")).unwrap_or_default();
            self.target = person(inner(folder, "MemberUpn"), None);
            if let Some(rights) = inner(folder, "MemberRights") {
                self.privileges_in(rights, &[',']);
            }
            self.resource(inner(folder, "Path"), "folder");
            self.resource(owner, "mailbox");
            return;
        }
        self.target = Target { principal: owner, kind: Some("Mailbox".into()), ..Target::default() };
        if self.target.principal.is_none() {
            self.target.kind = None;
        }
        if let Some(item) = event.get(KnownMember::Item) {
            self.resource(inner(item, "Subject").or_else(|| inner(item, "InternetMessageId")), "message");
        }
        for (list, name, kind) in
            [(KnownMember::AffectedItems, "Subject", "message"), (KnownMember::Folders, "Path", "folder")]
        {
            if let Some(token) = event.get(list) {
                json::elements(token, |one| {
                    self.resource(inner(one, name).or_else(|| inner(one, "InternetMessageId")), kind);
                });
            }
        }
    }

    /// Sharing: the recipient.
    fn of_sharing(&mut self, event: &Event<'a>) {
        if let Some(name) = event.text_of(KnownMember::TargetUserOrGroupName) {
            let kind = event.text_of(KnownMember::TargetUserOrGroupType);
            self.target = match everyone(&name) {
                Some(words) => {
                    Target { principal: None, name: Some(words.into()), id: Some(name), kind: Some("Everyone".into()) }
                }
                None => person(Some(name), kind),
            };
        }
    }

    /// A team: the member who was added, removed or given another role.
    fn of_team(&mut self, event: &Event<'a>) {
        let Some(members) = event.get(KnownMember::Members) else { return };
        let mut first = None;
        json::elements(members, |member| {
            if first.is_none() {
                first = Some((inner(member, "UPN"), inner(member, "DisplayName")));
            }
        });
        if let Some((principal, name)) = first {
            self.target = Target { principal, name, id: None, kind: Some("User".into()) };
        }
        self.resource(event.text_of(KnownMember::TeamName), "team");
    }

    /// An alert: the user it concerns.
    fn of_alert(&mut self, event: &Event<'a>) {
        let is_user =
            event.text_of(KnownMember::EntityType).is_some_and(|kind| kind.trim().eq_ignore_ascii_case("User"));
        if is_user {
            self.target = person(event.text_of(KnownMember::AlertEntityId), Some("User".into()));
        }
    }

    /// An AI application: the host application, the agent, the resources it read.
    fn of_ai(&mut self, ai: &ai::Ai<'a>) {
        let id = ai.agent_id.clone().or_else(|| ai.identity.clone());
        let name = ai.agent_name.clone().or_else(|| ai.host.clone());
        if id.is_some() || name.is_some() {
            self.application = Application { id, name };
        }
        let read = ai.read.iter();
        self.resources.extend(read.map(|read| Resource {
            name: read.name.clone(),
            kind: read.kind.clone(),
            label: read.label.clone(),
        }));
    }
}

/// The application of a record of any kind.
fn application<'a>(event: &Event<'a>) -> Application<'a> {
    let id = event
        .text_of(KnownMember::ApplicationId)
        .or_else(|| event.text_of(KnownMember::ClientAppId))
        .or_else(|| event.text_of(KnownMember::AppId));
    let name = event.text_of(KnownMember::ApplicationDisplayName);
    // Some records have the id in place of the name.
    let name = name.filter(|name| Some(name) != id.as_ref());
    let name = name.or_else(|| Some(Cow::Borrowed(known::application(id.as_deref()?.trim())?)));
    Application { id, name }
}

/// Why a sign-in failed.
fn fault<'a>(event: &Event<'a>) -> EventFailure<'a> {
    let number = event.integer(KnownMember::ErrorNumber).filter(|number| *number != 0);
    let word = event.text_of(KnownMember::LogonError);
    let message = number.and_then(known::sign_in_error).map(Cow::Borrowed);
    EventFailure {
        code: number.map(|number| Cow::Owned(number.to_string())).or_else(|| word.clone()),
        message: message.or(word),
    }
}

/// What an operation of the directory grants or revokes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum DirectoryKind {
    Grant,
    Consent,
    Role,
    Group,
    Owner,
    Other,
}

impl DirectoryKind {
    /// Classifies by the folded name; prefixes are compared first, because nearly every event has another.
    fn of(operation: &str) -> DirectoryKind {
        if operation.starts_with("consent to application") {
            return Self::Consent;
        }
        let Some((verb, what)) = operation.split_once(' ') else { return Self::Other };
        if !matches!(verb, "add" | "remove" | "update" | "delete" | "revoke") {
            return Self::Other;
        }
        let begins = |words: &[&str]| words.iter().any(|word| what.starts_with(word));
        if begins(&["app role assignment", "a deletion-marked", "delegated permission", "oauth2permission"]) {
            Self::Grant
        } else if begins(&["member to role", "member from role", "eligible member", "scoped member"]) {
            Self::Role
        } else if begins(&["member to group", "member from group", "owner to group", "owner from group"]) {
            Self::Group
        } else if begins(&["owner to ", "owner from "]) {
            Self::Owner
        } else {
            Self::Other
        }
    }
}

/// Whether an operation revokes a grant.
pub(crate) fn revokes(operation: &str) -> bool {
    operation.starts_with("remove") || operation.starts_with("delete") || operation.contains("deletion-marked")
}

/// Words in `Target` for the kind of object.
const TARGET_KINDS: [&str; 8] =
    ["User", "Group", "ServicePrincipal", "Application", "Device", "Policy", "Role", "Other"];

/// The target of a directory operation: the principal name in `Target` (type 5), an id in it (type 2), else `ObjectId`;
/// and for an application the id that it has in every tenant.
fn directory_target<'a>(event: &Event<'a>) -> (Target<'a>, Option<Cow<'a, str>>) {
    let mut target = Target::default();
    let mut app_id = None;
    let mut close = |(_, id, kind): (usize, &'a str, u8)| {
        let Some(inside) = json::inner(id).filter(|inside| !inside.is_empty()) else { return };
        let text = || json::scalar(id).filter(|id| !id.trim().is_empty());
        match kind {
            b'5' if target.principal.is_none() => target.principal = text(),
            b'1' if target.name.is_none() => target.name = text(),
            b'2' if inside.len() == 36 && crate::model::is_guid(inside) => match target.id {
                None => target.id = Some(Cow::Borrowed(inside)),
                Some(_) if app_id.is_none() => app_id = Some(Cow::Borrowed(inside)),
                Some(_) => {}
            },
            b'2' if TARGET_KINDS.contains(&inside) => target.kind = Some(Cow::Borrowed(inside)),
            _ => {}
        }
    };
    if let Some(token) = event.get(KnownMember::Target) {
        let mut open = (usize::MAX, "", 0);
        json::objects(
            token,
            |index, key, value| {
                if open.0 != index {
                    close(open);
                    open = (index, "", 0);
                }
                // The two names on the wire differ in length.
                match key.len() {
                    2 => open.1 = value,
                    4 => open.2 = value.bytes().find(u8::is_ascii_digit).unwrap_or(0),
                    _ => {}
                }
            },
            |_, _| {},
        );
        close(open);
    }
    if target.principal.is_none() && target.id.is_none() && target.name.is_none() {
        target = person(event.text_of(KnownMember::ObjectId), target.kind);
    }
    (target, app_id)
}

/// A person identified by a name, an address or a claim.
fn person<'a>(name: Option<Cow<'a, str>>, kind: Option<Cow<'a, str>>) -> Target<'a> {
    let Some(name) = name.filter(|name| !is_nobody(name)) else { return Target::default() };
    let inside = actor::unclaimed(&name).len();
    if inside < name.len() {
        let from = name.len() - inside;
        let principal = match &name {
            Cow::Borrowed(text) => Cow::Borrowed(text.get(from..).unwrap_or_default()),
            Cow::Owned(text) => Cow::Owned(text.get(from..).unwrap_or_default().to_owned()),
        };
        return Target { principal: Some(principal), name: None, id: Some(name), kind };
    }
    let is_principal = actor::email(&name).is_some() || is_address(&name);
    match is_principal {
        true => Target { principal: Some(name), kind, ..Target::default() },
        false => Target { name: Some(name), kind, ..Target::default() },
    }
}

/// SharePoint claims that mean everybody, and their usual names.
fn everyone(claim: &str) -> Option<&'static str> {
    let claim = claim.trim();
    if !claim.starts_with(['c', 'C']) {
        return None;
    }
    if claim.to_ascii_lowercase().contains("spo-grid-all-users") {
        return Some("Everyone except external users");
    }
    let is = |text: &str| claim.eq_ignore_ascii_case(text);
    (is("c:0(.s|true") || is("c:0!.s|windows")).then_some("Everyone")
}

/// The scopes that a consent granted: in `[] => [[Id: …, Scope: User.Read Mail.Read, …]]` those after the arrow.
fn scopes_of_consent(text: &str) -> impl Iterator<Item = &str> {
    let granted = text.rsplit_once("=>").map_or(text, |(_, granted)| granted);
    granted.split("Scope:").skip(1).flat_map(|part| {
        let end = part.find([',', ']']).unwrap_or(part.len());
        part.get(..end).unwrap_or_default().split_whitespace()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(json: &str) -> String {
        let event = Event::parse(json.as_bytes()).unwrap();
        let operation = crate::severity::operation::fold(event.operation());
        let facts = super::super::facts::EventFacts::new(&event, &operation, &[]);
        let Involved { target, application, error, resources, privileges } = facts.involved();
        let resources: Vec<_> = resources.iter().filter_map(|resource| resource.name.as_deref()).collect();
        format!(
            "{}/{}/{} {} {} {}",
            target.label().unwrap_or_default(),
            target.kind.as_deref().unwrap_or_default(),
            application.name.as_deref().or(application.id.as_deref()).unwrap_or_default(),
            privileges.join("+"),
            resources.join("+"),
            error.message.as_deref().unwrap_or_default(),
        )
    }

    #[test]
    fn who_got_what_is_the_grantee_and_never_the_api() {
        const API: &str = r#""Target":[{"ID":"ServicePrincipal_1","Type":2},{"ID":"8429eb5c-faeb-4ade-8eac-acc003790769","Type":2},{"ID":"ServicePrincipal","Type":2},{"ID":"Microsoft Graph","Type":1},{"ID":"00000003-0000-0000-c000-000000000000","Type":2}]"#;
        let event = |operation: &str, modified: &str| {
            told(&format!(
                r#"{{"RecordType":8,"Operation":"{operation}","ObjectId":"https://graph.microsoft.com",{API},"ModifiedProperties":[{modified}]}}"#
            ))
        };
        let principal = |old: bool| {
            let pair = |name: &str, value: &str| match old {
                true => format!(r#"{{"Name":"{name}","OldValue":"{value}","NewValue":""}}"#),
                false => format!(r#"{{"Name":"{name}","NewValue":"{value}","OldValue":""}}"#),
            };
            [
                pair("ServicePrincipal.ObjectID", "2e5c2fd0-cca4-452c-9891-a07c0dafd964"),
                pair("ServicePrincipal.DisplayName", "Evil"),
                pair("ServicePrincipal.AppId", "5f91ce94-4cc5-4ebe-aeb6-f074e57201bb"),
                pair("AppRole.Value", "Mail.Read"),
            ]
            .join(",")
        };
        let granted = "Evil/ServicePrincipal/Evil Mail.Read Microsoft Graph ";
        assert_eq!(event("Add app role assignment to service principal.", &principal(false)), granted);
        assert_eq!(event("Remove app role assignment from service principal.", &principal(true)), granted);
        assert_eq!(
            event("Add a deletion-marked app role assignment grant to service principal.", &principal(true)),
            granted
        );
        assert_eq!(
            event(
                "Add delegated permission grant.",
                r#"{"Name":"DelegatedPermissionGrant.Scope","NewValue":" openid Mail.Read","OldValue":""},{"Name":"ServicePrincipal.ObjectID","NewValue":"2e5c2fd0-cca4-452c-9891-a07c0dafd964"}"#
            ),
            "2e5c2fd0-cca4-452c-9891-a07c0dafd964/ServicePrincipal/ openid+Mail.Read Microsoft Graph "
        );
        assert_eq!(
            event(
                "Remove OAuth2PermissionGrant.",
                r#"{"Name":"DelegatedPermissionGrant.Scope","NewValue":"","OldValue":"Mail.Read"},{"Name":"ServicePrincipal.ObjectID","OldValue":"2e5c2fd0-cca4-452c-9891-a07c0dafd964","NewValue":""}"#
            ),
            "2e5c2fd0-cca4-452c-9891-a07c0dafd964/ServicePrincipal/ Mail.Read Microsoft Graph "
        );
        assert_eq!(
            event(
                "Add app role assignment grant to user.",
                r#"{"Name":"AppRole.Value","NewValue":"User","OldValue":""},{"Name":"User.UPN","NewValue":"kim@contoso.example","OldValue":""}"#
            ),
            "kim@contoso.example/User/Microsoft Graph User  "
        );
        assert_eq!(event("Add app role assignment to service principal.", ""), "//Microsoft Graph   ");
        assert_eq!(
            event(
                "Consent to application.",
                r#"{"Name":"ConsentAction.Permissions","NewValue":"[] => [[Id: x, Scope: User.Read Mail.Read, CreatedDateTime: ]]; ","OldValue":""}"#
            ),
            "Microsoft Graph/ServicePrincipal/Microsoft Graph User.Read+Mail.Read  "
        );
    }

    #[test]
    fn other_records_name_whom_and_what_they_involve() {
        for (json, expected) in [
            (
                r#"{"RecordType":15,"ApplicationId":"1b730954-1685-4b74-9bfd-dac224a7b894","ObjectId":"00000003-0000-0000-c000-000000000000","ErrorNumber":"50126","LogonError":"InvalidUserNameOrPassword"}"#,
                "//Azure Active Directory PowerShell  Microsoft Graph the user name or the password is wrong",
            ),
            (
                r#"{"RecordType":1,"Operation":"Add-MailboxPermission","ObjectId":"boss","Parameters":[{"Name":"User","Value":"kim@contoso.example"},{"Name":"AccessRights","Value":"FullAccess, ReadPermission"}]}"#,
                "kim@contoso.example// FullAccess+ReadPermission boss ",
            ),
            (
                r#"{"RecordType":1,"Operation":"New-RoleGroup","ObjectId":"x","Parameters":[{"Name":"Roles","Value":"ApplicationImpersonation"},{"Name":"Members","Value":"kim"}]}"#,
                "kim// ApplicationImpersonation  ",
            ),
            (
                r#"{"RecordType":2,"Operation":"Update","MailboxOwnerUPN":"boss@contoso.example","Item":{"Subject":"hello"}}"#,
                "boss@contoso.example/Mailbox/  hello ",
            ),
            (
                r#"{"RecordType":14,"TargetUserOrGroupName":"i:0#.f|membership|kim@contoso.example","TargetUserOrGroupType":"Member"}"#,
                "kim@contoso.example/Member/   ",
            ),
            (
                r#"{"RecordType":14,"TargetUserOrGroupName":"c:0-.f|rolemanager|spo-grid-all-users/1111"}"#,
                "Everyone except external users/Everyone/   ",
            ),
            (
                r#"{"RecordType":25,"TeamName":"Board","Members":[{"UPN":"kim@contoso.example","DisplayName":"Kim"}]}"#,
                "kim@contoso.example/User/  Board ",
            ),
            (
                r#"{"RecordType":8,"Operation":"Add member to role.","ObjectId":"Not Available","ModifiedProperties":[{"Name":"Role.DisplayName","NewValue":"[\"Helpdesk\"]"}]}"#,
                "// Helpdesk  ",
            ),
        ] {
            assert_eq!(told(json), expected, "{json}");
        }
    }
}
