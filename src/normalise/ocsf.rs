//! Records in the Open Cybersecurity Schema Framework.
//!
//! Every record is a complete event of its class: what the class requires is there, and what an event cannot fill is
//! named as unknown rather than invented. A record that cannot meet a class (mail without sender and recipient) is an
//! API Activity. What has no attribute goes into `unmapped` as lists of pairs, the whole event into `raw_data`.

use std::borrow::Cow;

use super::category::{Category, DLP_RECORD_TYPES};
use super::effects::{FactorChange, factor_change, forwarded_to};
use super::event::Member;
use super::notice::Notice;
use super::outcome::Outcome;
use super::parts::{Parts, Target, correlation, inner, is_address, push_modified, push_pairs};
use super::writer::Writer;
use super::{Origin, json, record_types, time};
use crate::config::OcsfVersion;
use crate::severity::Severity;

/// Longest text in `privileges`, in bytes.
const COPY_BYTES_MAX: usize = 4096;

/// A class of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    DetectionFinding = 2004,
    DataSecurityFinding = 2006,
    AccountChange = 3001,
    Authentication = 3002,
    EntityManagement = 3004,
    UserAccess = 3005,
    GroupManagement = 3006,
    EmailActivity = 4009,
    WebResources = 6001,
    ApplicationLifecycle = 6002,
    ApiActivity = 6003,
    FileHosting = 6006,
}

/// `99`, an activity that the class has no number for.
const OTHER: i64 = 99;

impl Class {
    const fn name(self) -> &'static str {
        match self {
            Self::DetectionFinding => "Detection Finding",
            Self::DataSecurityFinding => "Data Security Finding",
            Self::AccountChange => "Account Change",
            Self::Authentication => "Authentication",
            Self::EntityManagement => "Entity Management",
            Self::UserAccess => "User Access Management",
            Self::GroupManagement => "Group Management",
            Self::EmailActivity => "Email Activity",
            Self::WebResources => "Web Resources Activity",
            Self::ApplicationLifecycle => "Application Lifecycle",
            Self::ApiActivity => "API Activity",
            Self::FileHosting => "File Hosting Activity",
        }
    }

    const fn category(self) -> (i64, &'static str) {
        match self as i64 / 1000 {
            2 => (2, "Findings"),
            3 => (3, "Identity & Access Management"),
            4 => (4, "Network Activity"),
            _ => (6, "Application Activity"),
        }
    }

    const fn is_finding(self) -> bool {
        matches!(self, Self::DetectionFinding | Self::DataSecurityFinding)
    }

    /// The caption of an activity; `None` for those that have no number.
    fn activity(self, id: i64) -> Option<&'static str> {
        let captions: &[&str] = match self {
            Self::DetectionFinding | Self::DataSecurityFinding => &["Create", "Update", "Close", "Suppressed"],
            Self::AccountChange => &[
                "Create",
                "Enable",
                "Password Change",
                "Password Reset",
                "Disable",
                "Delete",
                "Attach Policy",
                "Detach Policy",
                "Lock",
                "MFA Factor Enable",
                "MFA Factor Disable",
            ],
            Self::Authentication => &["Logon", "Logoff"],
            Self::EntityManagement => {
                &["Create", "Read", "Update", "Delete", "Move", "Enroll", "Unenroll", "Enable", "Disable"]
            }
            Self::UserAccess => &["Assign Privileges", "Revoke Privileges"],
            Self::GroupManagement => {
                &["Assign Privileges", "Revoke Privileges", "Add User", "Remove User", "Delete", "Create"]
            }
            Self::EmailActivity => &["Send", "Receive", "Scan"],
            Self::WebResources => &["Create", "Read", "Update", "Delete", "Search", "Import", "Export", "Share"],
            Self::ApplicationLifecycle => {
                &["Install", "Remove", "Start", "Stop", "Restart", "Enable", "Disable", "Update"]
            }
            Self::ApiActivity => &["Create", "Read", "Update", "Delete"],
            Self::FileHosting => &[
                "Upload", "Download", "Update", "Delete", "Rename", "Copy", "Move", "Restore", "Preview", "Lock",
                "Unlock", "Share", "Unshare", "Open", "Sync",
            ],
        };
        usize::try_from(id - 1).ok().and_then(|index| captions.get(index)).copied()
    }
}

/// Appends a record. `original` is the event as text and whether it was masked; `None` leaves it out.
pub(crate) fn push(
    parts: &Parts<'_, '_>,
    origin: &Origin<'_>,
    version: OcsfVersion,
    original: Option<(&str, bool)>,
    out: &mut Vec<u8>,
) {
    let target = parts.target();
    let (class, activity) = classify(parts, version, &target);
    let newest = version == OcsfVersion::V1_8_0;
    let operation = parts.text(Member::Operation).unwrap_or(Cow::Borrowed("unknown"));
    let operation = operation.trim();
    let caption = class.activity(activity).unwrap_or(if operation.is_empty() { "unknown" } else { operation });
    let severity = parts.assessment.severity();
    let at = time::parse(parts.event.creation_time()).map(|time| time.at).or(origin.content_created);
    let at = at.unwrap_or(crate::model::Timestamp::UNIX_EPOCH);
    Writer::object(out, |w| {
        w.number("class_uid", class as i64);
        w.text("class_name", class.name());
        w.number("category_uid", class.category().0);
        w.text("category_name", class.category().1);
        w.number("activity_id", activity);
        w.text("activity_name", caption);
        w.number("type_uid", class as i64 * 100 + activity);
        // The schema's own caption, for 99 too: what the operation is called stands in `activity_name`.
        w.text("type_name", [class.name(), ": ", class.activity(activity).unwrap_or("Other")].concat());
        w.number("time", at.as_millisecond());
        w.number("severity_id", severity_of(severity).0);
        w.text("severity", severity_of(severity).1);
        w.text("message", message(parts, operation));
        push_status(parts, class, w);
        push_metadata(parts, origin, class, newest, w);
        push_class(parts, class, &target, version, operation, w);
        if newest {
            push_control(parts, class, severity, w);
        }
        push_observables(parts, newest, w);
        let masked = original.is_some_and(|(_, masked)| masked);
        push_unmapped(parts, origin, masked, w);
        if let Some((original, _)) = original {
            w.value("raw_data", |out| json::push_string(out, original));
        }
    });
}

/// Appends a record of ours: a Base Event, for no class is about a collector.
pub(crate) fn push_notice(notice: &Notice<'_>, version: OcsfVersion, out: &mut Vec<u8>) {
    let Notice { origin, .. } = notice;
    Writer::object(out, |w| {
        w.number("class_uid", 0);
        w.text("class_name", "Base Event");
        w.number("category_uid", 0);
        w.text("category_name", "Uncategorized");
        w.number("activity_id", OTHER);
        w.text("activity_name", notice.event_type);
        w.number("type_uid", OTHER);
        w.text("type_name", "Base Event: Other");
        w.number("time", notice.time.as_millisecond());
        w.number("severity_id", severity_of(notice.severity).0);
        w.text("severity", severity_of(notice.severity).1);
        w.text("message", &notice.title);
        w.nested("metadata", |w| {
            w.text("version", if version == OcsfVersion::V1_8_0 { "1.8.0" } else { "1.1.0" });
            w.nested("product", |w| {
                w.text("name", "m365-audit");
                w.text("vendor_name", "m365-audit");
                w.text("version", env!("CARGO_PKG_VERSION"));
            });
            w.text("event_code", notice.event_type);
            w.maybe("log_name", origin.content_type.map(|content_type| content_type.as_str()));
            w.text("log_provider", "Office 365 Management Activity API");
            w.maybe("tenant_uid", origin.tenant);
            if let Some(created) = origin.content_created {
                w.number("logged_time", created.as_millisecond());
            }
        });
        w.nested("unmapped", |w| {
            w.text("category", Category::Other.as_str());
            w.text("event_type", notice.event_type);
            w.maybe("content_id", origin.content_id);
            notice.push_members(w);
        });
    });
}

const fn severity_of(severity: Severity) -> (i64, &'static str) {
    match severity {
        Severity::Info => (1, "Informational"),
        Severity::Low => (2, "Low"),
        Severity::Medium => (3, "Medium"),
        Severity::High => (4, "High"),
        Severity::Critical => (5, "Critical"),
    }
}

fn message(parts: &Parts<'_, '_>, operation: &str) -> String {
    let object = parts.text(Member::ObjectId).filter(|object| object.len() <= super::TITLE_OBJECT_BYTES_MAX);
    match object {
        Some(object) => format!("{operation} on {object}"),
        None => operation.to_owned(),
    }
}

fn push_status(parts: &Parts<'_, '_>, class: Class, w: &mut Writer<'_>) {
    if class.is_finding() {
        // Of a finding the status is how far its handling has come.
        let word = parts.text(Member::Status).unwrap_or_default().to_ascii_lowercase();
        let (id, caption) = match word.as_str() {
            _ if parts.operation == "dlpruleundo" => (4, "Resolved"),
            _ if parts.operation == "dlpinfo" => (3, "Suppressed"),
            "investigating" | "in progress" | "inprogress" => (2, "In Progress"),
            "dismissed" => (3, "Suppressed"),
            "resolved" | "closed" | "remediated" => (4, "Resolved"),
            _ => (1, "New"),
        };
        w.number("status_id", id);
        w.text("status", caption);
        return;
    }
    let (id, caption) = match parts.facts.outcome() {
        Some(Outcome::Success) => (1, "Success"),
        Some(Outcome::Failure) => (2, "Failure"),
        Some(Outcome::Unknown) | None => (0, "Unknown"),
    };
    w.number("status_id", id);
    w.text("status", caption);
    let code = parts.event.integer(Member::ErrorNumber).map(|number| number.to_string());
    w.maybe("status_code", code.or_else(|| parts.text(Member::ResultStatus).map(Cow::into_owned)));
    w.maybe("status_detail", parts.text(Member::LogonError));
}

fn push_metadata(parts: &Parts<'_, '_>, origin: &Origin<'_>, class: Class, newest: bool, w: &mut Writer<'_>) {
    w.nested("metadata", |w| {
        w.text("version", if newest { "1.8.0" } else { "1.1.0" });
        w.nested("product", |w| {
            w.text("name", "Microsoft 365");
            w.text("vendor_name", "Microsoft");
            w.nested("feature", |w| w.maybe("name", parts.text(Member::Workload)));
        });
        let control = newest.then_some("security_control");
        w.texts("profiles", control.into_iter().chain(has_host(class, newest).then_some("host")));
        w.maybe("uid", parts.text(Member::Id));
        if newest {
            w.maybe("original_event_uid", parts.text(Member::Id));
        }
        if let Some(record_type) = parts.record_type {
            w.text("event_code", record_type.to_string());
        }
        w.maybe("log_name", origin.content_type.map(|content_type| content_type.as_str()));
        w.text("log_provider", "Office 365 Management Activity API");
        let organization = parts.text(Member::OrganizationId).map(|id| id.to_lowercase());
        w.maybe("tenant_uid", organization.as_deref().or(origin.tenant));
        let by_type = parts.text(Member::IncidentId).or_else(|| parts.text(Member::AlertId));
        w.maybe("correlation_uid", correlation(parts).or(by_type));
        w.maybe("original_time", Some(parts.event.creation_time()));
        if let Some(created) = origin.content_created {
            w.number("logged_time", created.as_millisecond());
        }
    });
}

/// Classes that have an actor only by the profile `host`.
const fn has_host(class: Class, newest: bool) -> bool {
    match class {
        Class::DetectionFinding | Class::EmailActivity | Class::WebResources | Class::ApplicationLifecycle => true,
        Class::EntityManagement | Class::UserAccess | Class::GroupManagement => !newest,
        _ => false,
    }
}

/// Classes that have no client's end and no request in version 1.1.
const fn lacks_client(class: Class, newest: bool) -> bool {
    !newest && matches!(class, Class::EntityManagement | Class::UserAccess | Class::GroupManagement)
}

fn push_class(
    parts: &Parts<'_, '_>,
    class: Class,
    target: &Target<'_>,
    version: OcsfVersion,
    operation: &str,
    w: &mut Writer<'_>,
) {
    let newest = version == OcsfVersion::V1_8_0;
    push_actor(parts, newest, w);
    match class {
        Class::Authentication => push_sign_in(parts, newest, w),
        Class::AccountChange => {
            w.nested("user", |w| push_target(target, newest, w));
            push_endpoint(parts, false, w);
            push_http(parts, class, newest, w);
        }
        Class::UserAccess => push_privilege(parts, target, newest, operation, w),
        Class::GroupManagement => push_group(parts, target, newest, w),
        Class::EntityManagement => {
            w.nested("entity", |w| {
                let name = target.label().map(Cow::Borrowed).or_else(|| parts.text(Member::ObjectId));
                w.text("name", name.unwrap_or(Cow::Borrowed("unknown")));
                w.maybe("uid", target.id.as_deref());
                w.maybe("type", target.kind.as_deref());
            });
            if !lacks_client(class, newest) {
                push_endpoint(parts, false, w);
            }
            push_http(parts, class, newest, w);
        }
        Class::FileHosting => {
            w.nested("file", |w| push_file(parts, newest, w));
            push_endpoint(parts, true, w);
            push_http(parts, class, newest, w);
        }
        Class::WebResources => push_web(parts, newest, w),
        Class::EmailActivity => push_email(parts, w),
        Class::ApplicationLifecycle => w.nested("app", |w| {
            let name = parts.text(Member::AddOnName).or_else(|| parts.text(Member::ObjectId));
            w.text("name", name.unwrap_or(Cow::Borrowed("unknown")));
            w.text("vendor_name", "unknown");
            w.maybe("uid", parts.text(Member::AddOnGuid));
        }),
        Class::ApiActivity => push_api(parts, newest, operation, w),
        Class::DetectionFinding | Class::DataSecurityFinding => push_finding(parts, class, newest, w),
    }
}

/// A sign-in.
fn push_sign_in(parts: &Parts<'_, '_>, newest: bool, w: &mut Writer<'_>) {
    w.nested("user", |w| push_person(parts, newest, w));
    w.nested("service", |w| {
        let application = parts.text(Member::ApplicationDisplayName).or_else(|| parts.text(Member::Application));
        let id = parts.text(Member::ApplicationId);
        w.text("name", application.or_else(|| id.clone()).unwrap_or(Cow::Borrowed("unknown")));
        w.maybe("uid", id);
    });
    push_endpoint(parts, false, w);
    push_http(parts, Class::Authentication, newest, w);
    w.nested("session", |w| w.maybe("uid", parts.text(Member::SessionId)));
}

/// A privilege that was given or taken.
fn push_privilege(parts: &Parts<'_, '_>, target: &Target<'_>, newest: bool, operation: &str, w: &mut Writer<'_>) {
    w.nested("user", |w| match parts.record_type {
        Some(8) => push_target(target, newest, w),
        _ => {
            let who = parameter(parts, &["User", "Trustee", "Member", "Members"]);
            w.text("name", who.as_deref().unwrap_or("unknown"));
            w.maybe("email_addr", who.as_deref().filter(|who| is_address(who)));
        }
    });
    let named = ["Role.DisplayName", "AppRole.Value", "DelegatedPermissionGrant.Scope", "ConsentAction.Permissions"];
    let privilege = named
        .iter()
        .find_map(|name| parts.modified(name))
        .or_else(|| parameter(parts, &["AccessRights", "Role"]))
        .unwrap_or_else(|| operation.to_owned());
    w.texts("privileges", [super::cut(&privilege, COPY_BYTES_MAX)]);
    if newest {
        w.objects("resources", |list| list.push(|w| w.maybe("name", parts.text(Member::ObjectId))));
    }
    if !lacks_client(Class::UserAccess, newest) {
        push_endpoint(parts, false, w);
    }
    push_http(parts, Class::UserAccess, newest, w);
}

/// A group, and who came or went.
fn push_group(parts: &Parts<'_, '_>, target: &Target<'_>, newest: bool, w: &mut Writer<'_>) {
    w.nested("group", |w| {
        let group = parts.modified("Group.DisplayName").or_else(|| parts.text(Member::TeamName).map(Cow::into_owned));
        let group = group.or_else(|| target.label().map(str::to_owned));
        w.text("name", group.as_deref().unwrap_or("unknown"));
        let id = parts.modified("Group.ObjectID").or_else(|| parts.text(Member::TeamGuid).map(Cow::into_owned));
        w.maybe("uid", id);
    });
    w.nested("user", |w| {
        let member = parts.event.get(Member::Members).and_then(|members| {
            let mut first = None;
            json::elements(members, |member| first = first.take().or_else(|| inner(member, "UPN")));
            first
        });
        match member {
            Some(member) => {
                w.text("name", &member);
                w.maybe("email_addr", Some(&member).filter(|name| is_address(name)));
            }
            None if matches!(parts.record_type, Some(8)) && parts.operation.contains("member") => {
                push_target(target, newest, w);
            }
            None if !newest => w.text("name", "unknown"),
            None => {}
        }
    });
    if !lacks_client(Class::GroupManagement, newest) {
        push_endpoint(parts, false, w);
    }
    push_http(parts, Class::GroupManagement, newest, w);
}

/// What was done to something that has an address.
fn push_web(parts: &Parts<'_, '_>, newest: bool, w: &mut Writer<'_>) {
    w.objects("web_resources", |list| {
        list.push(|w| {
            let object = parts.text(Member::ObjectId);
            let url = object.clone().filter(|object| object.contains("://"));
            w.maybe("url_string", url);
            let name = parts
                .named("ListTitle")
                .or_else(|| parts.text(Member::ChannelName))
                .or_else(|| parts.text(Member::TeamName));
            let name = name.or_else(|| parts.text(Member::SourceFileName)).or(object);
            w.text("name", name.unwrap_or(Cow::Borrowed("unknown")));
            w.maybe("uid", parts.text(Member::ListItemUniqueId).or_else(|| parts.text(Member::Site)));
            w.maybe("type", parts.text(Member::ItemType));
        });
    });
    push_endpoint(parts, false, w);
    push_http(parts, Class::WebResources, newest, w);
}

/// A message that was sent.
fn push_email(parts: &Parts<'_, '_>, w: &mut Writer<'_>) {
    let (from, to) = sent(parts);
    w.number("direction_id", direction(parts, &to));
    w.nested("email", |w| {
        w.maybe("from", from.as_deref());
        w.texts("to", to.iter());
        w.maybe("subject", parts.inner(Member::Item, "Subject"));
        w.maybe("message_uid", parts.inner(Member::Item, "InternetMessageId"));
        w.maybe("uid", parts.inner(Member::Item, "Id"));
    });
    push_endpoint(parts, false, w);
}

/// A call.
fn push_api(parts: &Parts<'_, '_>, newest: bool, operation: &str, w: &mut Writer<'_>) {
    w.nested("api", |w| {
        w.text("operation", operation);
        w.nested("service", |w| w.maybe("name", parts.text(Member::Workload)));
        if let Some(id) = parts.text(Member::Id) {
            w.nested("request", |w| {
                w.text("uid", &id);
                w.nested("data", |w| push_pairs("parameters", parts.facts.parameters(), w));
            });
        }
    });
    w.objects("resources", |list| list.push(|w| w.maybe("name", parts.text(Member::ObjectId))));
    push_endpoint(parts, true, w);
    push_http(parts, Class::ApiActivity, newest, w);
}

fn push_actor(parts: &Parts<'_, '_>, newest: bool, w: &mut Writer<'_>) {
    w.nested("actor", |w| {
        w.nested("user", |w| push_person(parts, newest, w));
        w.nested("session", |w| {
            let session = parts.text(Member::SessionId);
            w.maybe("uid", session.or_else(|| parts.inner(Member::AppAccessContext, "AADSessionId")));
        });
        if newest {
            w.maybe("app_name", parts.text(Member::ApplicationDisplayName));
            let app = parts.text(Member::ClientAppId).or_else(|| parts.text(Member::AppId));
            w.maybe("app_uid", app.or_else(|| parts.text(Member::ApplicationId)));
        }
    });
}

/// Who acted. A name is there in any case, for the schema asks for one.
fn push_person(parts: &Parts<'_, '_>, newest: bool, w: &mut Writer<'_>) {
    let key = parts.text(Member::UserKey).filter(|key| !key.eq_ignore_ascii_case("Not Available"));
    w.maybe("uid", key);
    w.text("name", parts.actor.id.as_deref().unwrap_or("unknown"));
    w.maybe("email_addr", parts.actor.email.as_deref().filter(|email| is_address(email)));
    w.maybe("full_name", parts.text(Member::LogonUserDisplayName));
    let (id, caption) = match (parts.actor.kind.as_deref(), parts.record_type) {
        // A cmdlet run by anyone says 2.
        (Some("admin"), Some(1)) | (Some("regular" | "guest"), _) => (1, "User"),
        (Some("admin"), _) => (2, "Admin"),
        (Some("dc_admin" | "system"), _) => (3, "System"),
        (Some("application" | "service_principal"), _) if newest => (4, "Service"),
        (None, _) => (0, "Unknown"),
        (Some(other), _) => (OTHER, other),
    };
    w.number("type_id", id);
    w.text("type", caption);
}

fn push_target(target: &Target<'_>, newest: bool, w: &mut Writer<'_>) {
    w.text("name", target.label().unwrap_or("unknown"));
    w.maybe("uid", target.id.as_deref());
    w.maybe("email_addr", target.principal.as_deref().filter(|name| is_address(name)));
    let (id, caption) = match target.kind.as_deref() {
        Some("User") => (1, "User"),
        Some("ServicePrincipal" | "Application") if newest => (4, "Service"),
        Some(other) => (OTHER, other),
        None => (0, "Unknown"),
    };
    w.number("type_id", id);
    w.text("type", caption);
}

/// The client's end. A class that asks for it gets the client's name, or says that it is unknown.
fn push_endpoint(parts: &Parts<'_, '_>, required: bool, w: &mut Writer<'_>) {
    w.nested("src_endpoint", |w| match parts.facts.source_address() {
        Some(address) => {
            w.text("ip", address.ip.to_string());
            if let Some(port) = address.port {
                w.number("port", i64::from(port));
            }
        }
        None if required => {
            let name = parts.text(Member::ApplicationDisplayName).or_else(|| parts.text(Member::ClientProcessName));
            w.text("name", name.unwrap_or(Cow::Borrowed("unknown")));
        }
        None => {}
    });
}

fn push_http(parts: &Parts<'_, '_>, class: Class, newest: bool, w: &mut Writer<'_>) {
    if lacks_client(class, newest) || (!newest && class == Class::FileHosting) {
        return;
    }
    w.nested("http_request", |w| w.maybe("user_agent", parts.facts.agent()));
}

fn push_file(parts: &Parts<'_, '_>, newest: bool, w: &mut Writer<'_>) {
    let file = parts.file();
    let of_url = file.url.as_deref().and_then(|url| url.trim_end_matches('/').rsplit('/').next());
    w.text("name", file.name.as_deref().or(of_url).unwrap_or("unknown"));
    let known = parts.event.get(Member::ItemType).is_some() || parts.is_dlp();
    let (id, caption) = match (known, file.folder) {
        (_, true) => (2, "Folder"),
        (true, false) => (1, "Regular File"),
        (false, false) => (0, "Unknown"),
    };
    w.number("type_id", id);
    w.text("type", caption);
    w.maybe("path", file.url.as_deref().map(str::to_owned).or_else(|| file.path()));
    w.maybe("uid", file.id.as_deref());
    if newest {
        w.maybe("ext", file.extension.as_deref());
    }
    if let Some(size) = file.size {
        w.number("size", size);
    }
    w.maybe("confidentiality", parts.text(Member::SensitivityLabelId));
    if let Some(hash) = file.sha256.as_deref() {
        w.objects("hashes", |list| {
            list.push(|w| {
                w.number("algorithm_id", 3);
                w.text("algorithm", "SHA-256");
                w.text("value", hash.to_lowercase());
            });
        });
    }
}

fn push_finding(parts: &Parts<'_, '_>, class: Class, newest: bool, w: &mut Writer<'_>) {
    let rules = parts.dlp_rules();
    let first = rules.first();
    w.nested("finding_info", |w| {
        let id = parts
            .text(Member::IncidentId)
            .or_else(|| parts.text(Member::AlertId))
            .or_else(|| parts.text(Member::InvestigationId));
        w.text("uid", id.or_else(|| parts.text(Member::Id)).unwrap_or(Cow::Borrowed("unknown")));
        let title = first
            .and_then(|rule| rule.policy.clone())
            .or_else(|| parts.text(Member::Name))
            .or_else(|| parts.text(Member::AlertDisplayName))
            .or_else(|| parts.text(Member::InvestigationName))
            .or_else(|| parts.text(Member::Verdict))
            .or_else(|| parts.text(Member::Operation));
        w.text("title", title.unwrap_or(Cow::Borrowed("unknown")));
        w.texts("types", parts.text(Member::Category).or_else(|| parts.text(Member::AlertType)));
        let (name, id) = match first {
            Some(rule) => (rule.name.clone(), rule.id.clone()),
            None => (parts.text(Member::Name), parts.text(Member::PolicyId)),
        };
        if name.is_some() || id.is_some() {
            w.nested("analytic", |w| {
                w.number("type_id", 1);
                w.text("type", "Rule");
                w.maybe("name", name);
                w.maybe("uid", id);
            });
        }
    });
    if class == Class::DataSecurityFinding {
        if let Some(rule) = first {
            w.nested("data_security", |w| {
                w.nested("policy", |w| {
                    w.text("name", rule.policy.as_deref().unwrap_or("unknown"));
                    w.maybe("uid", rule.policy_id.as_deref());
                });
                // Never `pattern_match`: it would hold the secret.
                w.maybe("detection_pattern", rule.types.first());
            });
        }
        let file = parts.file();
        if file.name.is_some() {
            w.nested("file", |w| push_file(parts, newest, w));
        }
        push_endpoint(parts, false, w);
    }
    w.objects("resources", |list| {
        list.push(|w| w.maybe("name", parts.text(Member::ObjectId).or_else(|| parts.text(Member::AlertEntityId))));
    });
}

/// What the profile `security_control` adds.
fn push_control(parts: &Parts<'_, '_>, class: Class, severity: Severity, w: &mut Writer<'_>) {
    w.flag("is_alert", class.is_finding() || severity >= Severity::High);
    let (action, disposition) = match parts.is_type(DLP_RECORD_TYPES) {
        true if parts.facts.outcome() == Some(Outcome::Failure) => ((2, "Denied"), (2, "Blocked")),
        true => ((1, "Allowed"), (1, "Allowed")),
        false => ((0, "Unknown"), (0, "Unknown")),
    };
    w.number("action_id", action.0);
    w.text("action", action.1);
    w.number("disposition_id", disposition.0);
    w.text("disposition", disposition.1);
    w.objects("attacks", |list| {
        let mut seen = Vec::new();
        for technique in parts.assessment.matches.iter().filter_map(|found| found.rule().technique.as_deref()) {
            if seen.contains(&technique) {
                continue;
            }
            seen.push(technique);
            list.push(|w| {
                let (main, _) = technique.split_once('.').unwrap_or((technique, ""));
                w.nested("technique", |w| w.text("uid", main));
                if technique != main {
                    w.nested("sub_technique", |w| w.text("uid", technique));
                }
            });
        }
    });
}

/// What an analyst searches for. Types of the schema that version 1.1 does not have are left out there.
fn push_observables(parts: &Parts<'_, '_>, newest: bool, w: &mut Writer<'_>) {
    w.objects("observables", |list| {
        let mut add = |name: &str, type_id: i64, caption: &str, value: &str| {
            list.push(|w| {
                w.text("name", name);
                w.number("type_id", type_id);
                w.text("type", caption);
                w.text("value", value);
            });
        };
        if let Some(address) = parts.facts.source_address() {
            add("src_endpoint.ip", 2, "IP Address", &address.ip.to_string());
        }
        if let Some(id) = parts.actor.id.as_deref() {
            add("actor.user.name", 4, "User Name", id);
        }
        if let Some(email) = parts.actor.email.as_deref() {
            add("actor.user.email_addr", 5, "Email Address", email);
        }
        let file = parts.file();
        if let Some(name) = file.name.as_deref() {
            add("file.name", 7, "File Name", name);
        }
        if let Some(url) = file.url.as_deref() {
            add("file.path", 6, "URL String", url);
        }
        if let Some(hash) = file.sha256.as_deref() {
            add("file.hashes", 8, "Hash", &hash.to_lowercase());
        }
        if let Some(agent) = parts.facts.agent().filter(|_| newest) {
            add("http_request.user_agent", 16, "HTTP User-Agent", agent);
        }
        for address in forwarded_to(parts.facts, parts.operation) {
            add("unmapped.recipients", 5, "Email Address", &address);
        }
    });
}

fn push_unmapped(parts: &Parts<'_, '_>, origin: &Origin<'_>, masked: bool, w: &mut Writer<'_>) {
    w.nested("unmapped", |w| {
        w.texts("severity_rule", parts.assessment.matches.iter().map(|found| found.rule().id.as_str()));
        w.maybe("severity_reason", parts.reason);
        parts.push_dlp(w);
        w.maybe("record_type_name", parts.record_type.and_then(record_types::info).map(|info| info.name));
        w.text("category", parts.category.as_str());
        w.maybe("content_id", origin.content_id);
        w.texts("recipients", forwarded_to(parts.facts, parts.operation));
        if masked {
            w.flag("raw_masked", true);
        }
        push_pairs("extended_properties", parts.facts.extended(), w);
        push_modified(parts, w);
    });
}

fn parameter(parts: &Parts<'_, '_>, names: &[&str]) -> Option<String> {
    let mut found = None;
    let named = |name: &str| names.iter().any(|wanted| wanted.eq_ignore_ascii_case(name));
    parts.facts.parameters().any(&named, &mut |value| {
        found = Some(value.to_owned()).filter(|value| !value.trim().is_empty());
        found.is_some()
    });
    found
}

/// Sender and recipients of a message that was sent.
fn sent(parts: &Parts<'_, '_>) -> (Option<String>, Vec<String>) {
    let from = parts
        .named("SendAsUserSmtp")
        .or_else(|| parts.text(Member::SendOnBehalfOfUserSmtp))
        .or_else(|| parts.text(Member::MailboxOwnerUPN))
        .or_else(|| parts.actor.email.clone());
    let mut to = Vec::new();
    json::elements(parts.event.get(Member::RecipientList).unwrap_or_default(), |recipient| {
        to.extend(json::scalar(recipient).filter(|text| is_address(text)).map(Cow::into_owned));
    });
    (from.filter(|from| is_address(from)).map(Cow::into_owned), to)
}

/// 2 outbound if a recipient is outside, 3 internal if all are inside, 0 where none is named.
fn direction(parts: &Parts<'_, '_>, to: &[String]) -> i64 {
    use crate::severity::Facts as _;
    use crate::severity::recipient::{Recipient, judge};
    match judge(&to.join(";"), &parts.facts.own_domains()) {
        Some(Recipient::External) => 2,
        Some(Recipient::Internal) => 3,
        Some(Recipient::Unknown) | None => 0,
    }
}

fn classify(parts: &Parts<'_, '_>, version: OcsfVersion, target: &Target<'_>) -> (Class, i64) {
    let newest = version == OcsfVersion::V1_8_0;
    let operation = parts.operation;
    let begins = |words: &[&str]| words.iter().any(|word| operation.starts_with(word));
    let has = |words: &[&str]| words.iter().any(|word| operation.contains(word));
    if parts.is_dlp() && begins(&["dlprulematch", "dlpruleundo", "dlpinfo"]) {
        let activity = match operation {
            "dlpruleundo" => 3,
            "dlpinfo" if newest => 4,
            "dlpinfo" => OTHER,
            _ => 1,
        };
        return (if newest { Class::DataSecurityFinding } else { Class::DetectionFinding }, activity);
    }
    match parts.record_type {
        Some(9 | 15) => (Class::Authentication, if has(&["logout", "loggedout", "logoff"]) { 2 } else { 1 }),
        Some(8) => match classify_directory(operation, newest, target) {
            (Class::AccountChange, OTHER) => (Class::AccountChange, factor_activity(parts)),
            other => other,
        },
        Some(6 | 14) => (Class::FileHosting, file_activity(operation)),
        Some(4 | 36 | 37 | 54 | 55 | 56 | 102) => (Class::WebResources, web_activity(operation)),
        Some(28 | 40 | 41 | 47 | 64 | 78 | 98 | 113) => {
            let closed = parts.text(Member::Status).is_some_and(|status| {
                ["resolved", "dismissed", "closed"].iter().any(|word| status.eq_ignore_ascii_case(word))
            });
            (
                Class::DetectionFinding,
                if closed {
                    3
                } else if operation == "alertupdated" {
                    2
                } else {
                    1
                },
            )
        }
        Some(2 | 3) if matches!(operation, "send" | "sendas" | "sendonbehalf") => {
            let (from, to) = sent(parts);
            // Version 1.1 asks for both ends, later ones for either.
            match (from, to.is_empty()) {
                (Some(_), false) => (Class::EmailActivity, 1),
                (None, true) => (Class::ApiActivity, 1),
                _ if newest => (Class::EmailActivity, 1),
                _ => (Class::ApiActivity, 1),
            }
        }
        Some(2 | 3 | 50) => {
            let activity = if has(&["delete"]) {
                4
            } else if begins(&["create", "send"]) {
                1
            } else if has(&["accessed", "access", "bind", "login"]) {
                2
            } else {
                3
            };
            (Class::ApiActivity, activity)
        }
        Some(1) if has(&["mailboxpermission", "recipientpermission", "folderpermission"]) => {
            (Class::UserAccess, if begins(&["remove"]) { 2 } else { 1 })
        }
        Some(25) if begins(&["appinstalled", "botadded", "connectoradded", "tabadded"]) => {
            (Class::ApplicationLifecycle, 1)
        }
        Some(25) if begins(&["appuninstalled", "botremoved", "connectorremoved", "tabremoved"]) => {
            (Class::ApplicationLifecycle, 2)
        }
        Some(25) if begins(&["memberadded"]) => (Class::GroupManagement, 3),
        Some(25) if begins(&["memberremoved"]) => (Class::GroupManagement, 4),
        Some(25) if begins(&["teamcreated", "teamdeleted"]) && newest => {
            (Class::GroupManagement, if has(&["deleted"]) { 5 } else { 6 })
        }
        Some(25 | 57 | 58 | 59 | 60) => (Class::WebResources, web_activity(operation)),
        Some(20) if begins(&["export"]) => (Class::WebResources, 7),
        Some(24 | 31 | 38) if has(&["export"]) => (Class::WebResources, 7),
        _ if parts.category == Category::Identity && begins(&["userlog"]) => (Class::Authentication, 1),
        _ => (Class::ApiActivity, api_activity(operation)),
    }
}

/// An update of a user that gives or takes a second factor.
fn factor_activity(parts: &Parts<'_, '_>) -> i64 {
    match factor_change(parts.facts, parts.operation) {
        Some(FactorChange::Taken) => 11,
        Some(FactorChange::Given) => 10,
        None => OTHER,
    }
}

fn api_activity(operation: &str) -> i64 {
    let begins = |words: &[&str]| words.iter().any(|word| operation.starts_with(word));
    if begins(&["new", "add", "enable", "create", "install", "start"]) {
        1
    } else if begins(&["get", "search", "test", "view", "read", "list"]) {
        2
    } else if begins(&["set", "update", "disable", "edit", "change", "modify", "put"]) {
        3
    } else if begins(&["remove", "delete", "uninstall", "purge"]) {
        4
    } else {
        OTHER
    }
}

fn file_activity(operation: &str) -> i64 {
    let has = |words: &[&str]| words.iter().any(|word| operation.contains(word));
    const NAMED: &[(&[&str], i64)] = &[
        (&["syncdownloaded", "downloaded"], 2),
        (&["syncuploaded", "uploaded", "foldercreated"], 1),
        (&["deleted", "recycled"], 4),
        (&["renamed"], 5),
        (&["copied"], 6),
        (&["moved"], 7),
        (&["restored"], 8),
        (&["previewed"], 9),
        (&["checkedout"], 10),
        (&["checkedin", "checkoutdiscarded"], 11),
        (&["revoked", "linkremoved", "removedfrom", "unshared"], 13),
        (&["linkused", "accessed", "accepted"], 14),
        (&["sharing", "linkcreated", "linkupdated", "addedto", "shared", "adminadded"], 12),
        (&["modified", "updated", "changed"], 3),
    ];
    NAMED.iter().find(|(words, _)| has(words)).map_or(OTHER, |(_, id)| *id)
}

fn web_activity(operation: &str) -> i64 {
    let has = |words: &[&str]| words.iter().any(|word| operation.contains(word));
    const NAMED: &[(&[&str], i64)] = &[
        (&["search", "query"], 5),
        (&["deleted", "removed", "recycled"], 4),
        (&["created", "added", "uploaded", "sent"], 1),
        (&["viewed", "read", "accessed", "listed"], 2),
        (&["sharing", "shared"], 8),
        (&["modified", "updated", "changed", "edited", "renamed", "set"], 3),
    ];
    NAMED.iter().find(|(words, _)| has(words)).map_or(OTHER, |(_, id)| *id)
}

fn classify_directory(operation: &str, newest: bool, target: &Target<'_>) -> (Class, i64) {
    let begins = |words: &[&str]| words.iter().any(|word| operation.starts_with(word));
    let has = |words: &[&str]| words.iter().any(|word| operation.contains(word));
    let removes = begins(&["remove", "delete", "hard delete"]);
    if has(&["member to role", "member from role"]) {
        return (Class::UserAccess, if removes { 2 } else { 1 });
    }
    if has(&["app role", "permission grant", "oauth2permissiongrant", "consent to application"]) {
        return (Class::UserAccess, if removes { 2 } else { 1 });
    }
    match operation {
        "add user" | "invite external user" => return (Class::AccountChange, 1),
        "delete user" | "hard delete user" => return (Class::AccountChange, 6),
        "disable account" => return (Class::AccountChange, 5),
        "enable account" => return (Class::AccountChange, 2),
        "change user password" | "update passwordprofile" => return (Class::AccountChange, 3),
        "reset user password" => return (Class::AccountChange, 4),
        "disable strong authentication" => return (Class::AccountChange, 11),
        "enable strong authentication" => return (Class::AccountChange, 10),
        "add member to group" => return (Class::GroupManagement, 3),
        "remove member from group" => return (Class::GroupManagement, 4),
        "add group" if newest => return (Class::GroupManagement, 6),
        "delete group" if newest => return (Class::GroupManagement, 5),
        "update group" if newest => return (Class::GroupManagement, OTHER),
        _ => {}
    }
    if has(&["user", "strong authentication", "stsrefreshtoken"])
        && matches!(target.kind.as_deref(), None | Some("User"))
    {
        return (Class::AccountChange, OTHER);
    }
    let activity = if removes {
        4
    } else if begins(&["add ", "create", "register"]) {
        1
    } else if begins(&["enable"]) && newest {
        8
    } else if begins(&["disable"]) && newest {
        9
    } else {
        3
    };
    (Class::EntityManagement, activity)
}
