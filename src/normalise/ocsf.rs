//! Records in the Open Cybersecurity Schema Framework.
//!
//! Every record is a complete event of its class: it has all required attributes, and an attribute that the event
//! cannot fill is "unknown", never invented. A record that cannot meet a class (mail without sender and recipient) is
//! an API Activity. Members without an attribute go into `unmapped` as lists of pairs, and the whole event into
//! `raw_data`.

use std::borrow::Cow;

use super::category::Category;
use super::dlp;
use super::effects::forwarded_to;
use super::event::KnownMember;
use super::finds::{Device, Finds};
use super::involved::{Target, is_nobody};
use super::notice::Notice;
use super::ocsf_class::{OTHER, OcsfClass, classify, sent};
use super::outcome::EventOutcome;
use super::parts::{Parts, correlation, push_modified, push_pairs};
use super::reach::{inner, is_address};
use super::writer::Writer;
use super::{Origin, json, record_types, time};
use crate::config::OcsfVersion;
use crate::severity::Severity;

/// Longest text in `privileges`, in bytes.
const COPY_BYTES_MAX: usize = 4096;

/// Appends a record. `original` is the event as text and whether it was masked; `None` leaves it out.
pub(crate) fn push(
    parts: &Parts<'_, '_>,
    origin: &Origin<'_>,
    version: OcsfVersion,
    original: Option<(&str, bool)>,
    out: &mut Vec<u8>,
) {
    let target = parts.target();
    let finds = Finds::of(parts.event, parts.record_type, parts.operation);
    let device = Device::of(parts.event, parts.record_type);
    let (class, activity) = classify(parts, version, target);
    let newest = version == OcsfVersion::V1_8_0;
    let operation = parts.text(KnownMember::Operation).unwrap_or(Cow::Borrowed("unknown"));
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
        // The schema's own caption, also for 99: `activity_name` has the name of the operation.
        w.text("type_name", [class.name(), ": ", class.activity(activity).unwrap_or("Other")].concat());
        w.number("time", at.as_millisecond());
        w.number("severity_id", severity_of(severity).0);
        w.text("severity", severity_of(severity).1);
        w.text("message", message(parts, operation));
        push_status(parts, class, w);
        push_metadata(parts, origin, (class, &device), newest, w);
        push_class(parts, class, target, version, operation, w);
        if class == OcsfClass::DetectionFinding {
            push_found(parts, &finds, newest, w);
        }
        push_session(parts, class, &device, newest, w);
        if newest {
            push_control(parts, class, severity, w);
            push_ai(parts, class, w);
        }
        push_observables(parts, (class, target), &finds, newest, w);
        let masked = original.is_some_and(|(_, masked)| masked);
        push_unmapped(parts, origin, masked, w);
        if let Some((original, _)) = original {
            w.value("raw_data", |out| json::push_string(out, original));
        }
    });
}

/// Appends a record of the program itself: a Base Event, because no class describes a collector.
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
    if parts.is_dlp() && dlp::is_match(parts.operation) {
        let blocked = parts.facts.outcome() == Some(EventOutcome::Failure);
        return dlp::matched_in_words(parts.facts.dlp_rules()) + if blocked { " (blocked)" } else { "" };
    }
    if parts.is_type(&[40])
        && let Some(name) = parts.text(KnownMember::Name)
    {
        return name.into_owned();
    }
    let object = parts
        .text(KnownMember::ObjectId)
        .filter(|object| !is_nobody(object))
        .filter(|object| object.len() <= super::TITLE_OBJECT_BYTES_MAX);
    match object {
        Some(object) => format!("{operation} on {object}"),
        None => operation.to_owned(),
    }
}

fn push_status(parts: &Parts<'_, '_>, class: OcsfClass, w: &mut Writer<'_>) {
    if class.is_finding() {
        // For a finding the status is the progress of its handling.
        let word = parts.text(KnownMember::Status).unwrap_or_default().to_ascii_lowercase();
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
        Some(EventOutcome::Success) => (1, "Success"),
        Some(EventOutcome::Failure) => (2, "Failure"),
        Some(EventOutcome::Unknown) | None => (0, "Unknown"),
    };
    w.number("status_id", id);
    w.text("status", caption);
    let code = parts.event.integer(KnownMember::ErrorNumber).map(|number| number.to_string());
    w.maybe("status_code", code.or_else(|| parts.text(KnownMember::ResultStatus).map(Cow::into_owned)));
    w.maybe("status_detail", parts.text(KnownMember::LogonError));
}

fn push_metadata(
    parts: &Parts<'_, '_>,
    origin: &Origin<'_>,
    (class, device): (OcsfClass, &Device<'_>),
    newest: bool,
    w: &mut Writer<'_>,
) {
    w.nested("metadata", |w| {
        w.text("version", if newest { "1.8.0" } else { "1.1.0" });
        w.nested("product", |w| {
            w.text("name", "Microsoft 365");
            w.text("vendor_name", "Microsoft");
            w.nested("feature", |w| w.maybe("name", parts.text(KnownMember::Workload)));
        });
        let control = newest.then_some("security_control");
        let host = has_host(class, newest) || has_device(class, device);
        let ai = newest && has_ai(parts, class);
        let profiles = control.into_iter().chain(host.then_some("host")).chain(ai.then_some("ai_operation"));
        w.texts("profiles", profiles);
        w.maybe("uid", parts.text(KnownMember::Id));
        if newest {
            w.maybe("original_event_uid", parts.text(KnownMember::Id));
        }
        if let Some(record_type) = parts.facts.number_of_type() {
            w.text("event_code", record_type.to_string());
        }
        w.maybe("log_name", origin.content_type.map(|content_type| content_type.as_str()));
        w.text("log_provider", "Office 365 Management Activity API");
        let organization = parts.text(KnownMember::OrganizationId).map(|id| id.to_lowercase());
        w.maybe("tenant_uid", organization.as_deref().or(origin.tenant));
        let by_type = parts.text(KnownMember::IncidentId).or_else(|| parts.text(KnownMember::AlertId));
        w.maybe("correlation_uid", correlation(parts).or(by_type));
        w.maybe("original_time", Some(parts.event.creation_time()));
        if let Some(created) = origin.content_created {
            w.number("logged_time", created.as_millisecond());
        }
    });
}

/// Whether a class has an actor only with the profile `host`.
const fn has_host(class: OcsfClass, newest: bool) -> bool {
    match class {
        OcsfClass::DetectionFinding
        | OcsfClass::EmailActivity
        | OcsfClass::WebResources
        | OcsfClass::ApplicationLifecycle => true,
        OcsfClass::EntityManagement | OcsfClass::UserAccess | OcsfClass::GroupManagement => !newest,
        _ => false,
    }
}

/// Whether the record has the device of a sign-in.
fn has_device(class: OcsfClass, device: &Device<'_>) -> bool {
    class == OcsfClass::Authentication && !device.is_empty()
}

/// Whether the record is a call of an AI application.
fn has_ai(parts: &Parts<'_, '_>, class: OcsfClass) -> bool {
    class == OcsfClass::ApiActivity && parts.facts.ai().is_some()
}

/// Whether a class has neither the client's endpoint nor the request in version 1.1.
const fn lacks_client(class: OcsfClass, newest: bool) -> bool {
    !newest && matches!(class, OcsfClass::EntityManagement | OcsfClass::UserAccess | OcsfClass::GroupManagement)
}

fn push_class(
    parts: &Parts<'_, '_>,
    class: OcsfClass,
    target: &Target<'_>,
    version: OcsfVersion,
    operation: &str,
    w: &mut Writer<'_>,
) {
    let newest = version == OcsfVersion::V1_8_0;
    push_actor(parts, newest, w);
    match class {
        OcsfClass::Authentication => push_sign_in(parts, newest, w),
        OcsfClass::AccountChange => {
            w.nested("user", |w| push_target(target, newest, w));
            push_endpoint(parts, false, w);
            push_http(parts, class, newest, w);
        }
        OcsfClass::UserAccess => push_privilege(parts, target, newest, operation, w),
        OcsfClass::GroupManagement => push_group(parts, target, newest, w),
        OcsfClass::EntityManagement => {
            w.nested("entity", |w| {
                let name = target.label().map(Cow::Borrowed).or_else(|| parts.text(KnownMember::ObjectId));
                w.text("name", name.unwrap_or(Cow::Borrowed("unknown")));
                w.maybe("uid", target.id.as_deref());
                w.maybe("type", target.kind.as_deref());
            });
            if !lacks_client(class, newest) {
                push_endpoint(parts, false, w);
            }
            push_http(parts, class, newest, w);
        }
        OcsfClass::FileHosting => {
            w.nested("file", |w| push_file(parts, newest, w));
            push_endpoint(parts, true, w);
            push_http(parts, class, newest, w);
        }
        OcsfClass::WebResources => push_web(parts, newest, w),
        OcsfClass::EmailActivity => push_email(parts, w),
        OcsfClass::ApplicationLifecycle => w.nested("app", |w| {
            let name = parts.text(KnownMember::AddOnName).or_else(|| parts.text(KnownMember::ObjectId));
            w.text("name", name.unwrap_or(Cow::Borrowed("unknown")));
            w.text("vendor_name", "unknown");
            w.maybe("uid", parts.text(KnownMember::AddOnGuid));
        }),
        OcsfClass::ApiActivity => push_api(parts, newest, operation, w),
        OcsfClass::DetectionFinding | OcsfClass::DataSecurityFinding => push_finding(parts, class, newest, w),
    }
}

/// Writes a sign-in.
fn push_sign_in(parts: &Parts<'_, '_>, newest: bool, w: &mut Writer<'_>) {
    w.nested("user", |w| push_person(parts, newest, w));
    w.nested("service", |w| {
        let application = &parts.facts.involved().application;
        let id = application.id.as_deref();
        let by_record = parts.text(KnownMember::Application);
        w.text("name", application.name.as_deref().or(by_record.as_deref()).or(id).unwrap_or("unknown"));
        w.maybe("uid", id);
    });
    push_endpoint(parts, false, w);
    push_http(parts, OcsfClass::Authentication, newest, w);
}

/// Writes a privilege that was granted or revoked.
fn push_privilege(parts: &Parts<'_, '_>, target: &Target<'_>, newest: bool, operation: &str, w: &mut Writer<'_>) {
    w.nested("user", |w| push_target(target, newest, w));
    let involved = parts.facts.involved();
    let given = involved.privileges.iter().map(|text| super::cut(text, COPY_BYTES_MAX));
    let unknown = involved.privileges.is_empty().then_some(operation);
    w.texts("privileges", given.chain(unknown));
    if newest {
        push_resources(parts, w);
    }
    if !lacks_client(OcsfClass::UserAccess, newest) {
        push_endpoint(parts, false, w);
    }
    push_http(parts, OcsfClass::UserAccess, newest, w);
}

/// Writes a group and the member who was added or removed.
fn push_group(parts: &Parts<'_, '_>, target: &Target<'_>, newest: bool, w: &mut Writer<'_>) {
    w.nested("group", |w| {
        let group =
            parts.modified("Group.DisplayName").or_else(|| parts.text(KnownMember::TeamName).map(Cow::into_owned));
        let group =
            group.or_else(|| parts.text(KnownMember::GroupName).map(Cow::into_owned)).or_else(|| group_of_site(parts));
        let group = group.or_else(|| target.label().map(str::to_owned));
        w.text("name", group.as_deref().unwrap_or("unknown"));
        let id = parts.modified("Group.ObjectID").or_else(|| parts.text(KnownMember::TeamGuid).map(Cow::into_owned));
        w.maybe("uid", id);
    });
    w.nested("user", |w| {
        let member = parts.event.get(KnownMember::Members).and_then(|members| {
            let mut first = None;
            json::elements(members, |member| first = first.take().or_else(|| inner(member, "UPN")));
            first
        });
        match member {
            Some(member) => {
                w.text("name", &member);
                w.maybe("email_addr", Some(&member).filter(|name| is_address(name)));
            }
            None if matches!(parts.record_type, Some(8))
                && (parts.operation.contains("member") || parts.operation.contains("owner")) =>
            {
                push_target(target, newest, w);
            }
            None if parts.is_type(&[4, 14]) && target.label().is_some() => push_target(target, newest, w),
            None if !newest => w.text("name", "unknown"),
            None => {}
        }
    });
    if !lacks_client(OcsfClass::GroupManagement, newest) {
        push_endpoint(parts, false, w);
    }
    push_http(parts, OcsfClass::GroupManagement, newest, w);
}

/// Writes an operation on a resource that has a URL.
fn push_web(parts: &Parts<'_, '_>, newest: bool, w: &mut Writer<'_>) {
    w.objects("web_resources", |list| {
        list.push(|w| {
            let object = parts.text(KnownMember::ObjectId);
            let url = object.clone().filter(|object| object.contains("://"));
            w.maybe("url_string", url);
            let name = parts
                .named("ListTitle")
                .or_else(|| parts.text(KnownMember::ChannelName))
                .or_else(|| parts.text(KnownMember::TeamName));
            let name = name.or_else(|| parts.text(KnownMember::SourceFileName)).or(object);
            w.text("name", name.unwrap_or(Cow::Borrowed("unknown")));
            w.maybe("uid", parts.text(KnownMember::ListItemUniqueId).or_else(|| parts.text(KnownMember::Site)));
            w.maybe("type", parts.text(KnownMember::ItemType));
        });
    });
    push_endpoint(parts, false, w);
    push_http(parts, OcsfClass::WebResources, newest, w);
}

/// Writes a message that was sent.
fn push_email(parts: &Parts<'_, '_>, w: &mut Writer<'_>) {
    let (from, to) = sent(parts);
    w.number("direction_id", direction(parts, &to));
    w.nested("email", |w| {
        w.maybe("from", from.as_deref());
        w.texts("to", to.iter());
        w.maybe("subject", parts.inner(KnownMember::Item, "Subject"));
        w.maybe("message_uid", parts.inner(KnownMember::Item, "InternetMessageId"));
        w.maybe("uid", parts.inner(KnownMember::Item, "Id"));
    });
    push_endpoint(parts, false, w);
}

/// A call.
fn push_api(parts: &Parts<'_, '_>, newest: bool, operation: &str, w: &mut Writer<'_>) {
    w.nested("api", |w| {
        w.text("operation", operation);
        w.nested("service", |w| w.maybe("name", parts.text(KnownMember::Workload)));
        if let Some(id) = parts.text(KnownMember::Id) {
            w.nested("request", |w| {
                w.text("uid", &id);
                w.nested("data", |w| push_pairs("parameters", parts.facts.parameters(), w));
            });
        }
    });
    push_resources(parts, w);
    push_endpoint(parts, true, w);
    push_http(parts, OcsfClass::ApiActivity, newest, w);
}

fn push_actor(parts: &Parts<'_, '_>, newest: bool, w: &mut Writer<'_>) {
    w.nested("actor", |w| {
        w.nested("user", |w| push_person(parts, newest, w));
        w.nested("session", |w| {
            let session = parts.text(KnownMember::SessionId);
            w.maybe("uid", session.or_else(|| parts.inner(KnownMember::AppAccessContext, "AADSessionId")));
        });
        if newest {
            let application = &parts.facts.involved().application;
            // In directory records it is the target.
            if !parts.is_type(&[8]) {
                w.maybe("app_name", application.name.as_deref());
                let app = parts.text(KnownMember::ClientAppId).or_else(|| parts.text(KnownMember::AppId));
                w.maybe("app_uid", app.as_deref().or(application.id.as_deref()));
            }
        }
    });
}

/// Writes the actor, always with a name, because the schema requires one.
fn push_person(parts: &Parts<'_, '_>, newest: bool, w: &mut Writer<'_>) {
    let key = parts.text(KnownMember::UserKey).filter(|key| !key.eq_ignore_ascii_case("Not Available"));
    w.maybe("uid", key);
    w.text("name", parts.actor.id.as_deref().unwrap_or("unknown"));
    w.maybe("email_addr", parts.actor.email.as_deref().filter(|email| is_address(email)));
    w.maybe("full_name", parts.text(KnownMember::LogonUserDisplayName));
    let (id, caption) = match (parts.actor.kind.as_deref(), parts.record_type) {
        // A cmdlet run by any user has the type 2.
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
    w.maybe("email_addr", target.email().filter(|name| is_address(name)));
    let (id, caption) = match target.kind.as_deref() {
        Some("User" | "Member" | "Guest") => (1, "User"),
        Some("ServicePrincipal" | "Application") if newest => (4, "Service"),
        Some(other) => (OTHER, other),
        None => (0, "Unknown"),
    };
    w.number("type_id", id);
    w.text("type", caption);
}

/// Writes the client's endpoint. A class that requires it gets the client's name, or "unknown".
fn push_endpoint(parts: &Parts<'_, '_>, required: bool, w: &mut Writer<'_>) {
    w.nested("src_endpoint", |w| match parts.facts.source_address() {
        Some(address) => {
            w.text("ip", address.ip.to_string());
            if let Some(port) = address.port {
                w.number("port", i64::from(port));
            }
        }
        None if required => {
            let name =
                parts.text(KnownMember::ApplicationDisplayName).or_else(|| parts.text(KnownMember::ClientProcessName));
            w.text("name", name.unwrap_or(Cow::Borrowed("unknown")));
        }
        None => {}
    });
}

fn push_http(parts: &Parts<'_, '_>, class: OcsfClass, newest: bool, w: &mut Writer<'_>) {
    if lacks_client(class, newest) || (!newest && class == OcsfClass::FileHosting) {
        return;
    }
    w.nested("http_request", |w| w.maybe("user_agent", parts.facts.agent()));
}

fn push_file(parts: &Parts<'_, '_>, newest: bool, w: &mut Writer<'_>) {
    let file = parts.file();
    let of_url = file.url.as_deref().and_then(|url| url.trim_end_matches('/').rsplit('/').next());
    w.text("name", file.name.as_deref().or(of_url).unwrap_or("unknown"));
    let known = parts.event.get(KnownMember::ItemType).is_some() || parts.is_dlp();
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
    w.maybe("confidentiality", parts.text(KnownMember::SensitivityLabelId));
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

fn push_finding(parts: &Parts<'_, '_>, class: OcsfClass, newest: bool, w: &mut Writer<'_>) {
    let first = dlp::foremost(parts.facts.dlp_rules());
    w.nested("finding_info", |w| {
        let id = parts
            .text(KnownMember::IncidentId)
            .or_else(|| parts.text(KnownMember::AlertId))
            .or_else(|| parts.text(KnownMember::InvestigationId));
        w.text("uid", id.or_else(|| parts.text(KnownMember::Id)).unwrap_or(Cow::Borrowed("unknown")));
        let title = first
            .and_then(|rule| rule.policy.clone())
            .or_else(|| parts.text(KnownMember::Name))
            .or_else(|| parts.text(KnownMember::AlertDisplayName))
            .or_else(|| parts.text(KnownMember::InvestigationName))
            .or_else(|| parts.text(KnownMember::Verdict))
            .or_else(|| parts.named("VirusInfo"))
            .or_else(|| parts.text(KnownMember::Operation));
        w.text("title", title.unwrap_or(Cow::Borrowed("unknown")));
        w.texts("types", parts.text(KnownMember::Category).or_else(|| parts.text(KnownMember::AlertType)));
        let (name, id) = match first {
            Some(rule) => (rule.name.clone(), rule.id.clone()),
            None => (parts.text(KnownMember::Name), parts.text(KnownMember::PolicyId)),
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
    if class == OcsfClass::DataSecurityFinding {
        if let Some(rule) = first {
            w.nested("data_security", |w| {
                w.nested("policy", |w| {
                    w.text("name", rule.policy.as_deref().unwrap_or("unknown"));
                    w.maybe("uid", rule.policy_id.as_deref());
                });
                // Never `pattern_match`: it would hold the secret.
                w.maybe("detection_pattern", rule.found.first().map(|found| &found.name));
            });
        }
        let file = parts.file();
        if file.name.is_some() {
            w.nested("file", |w| push_file(parts, newest, w));
        }
        push_endpoint(parts, false, w);
    }
    w.objects("resources", |list| {
        list.push(|w| {
            w.maybe("name", parts.text(KnownMember::ObjectId).or_else(|| parts.text(KnownMember::AlertEntityId)))
        });
    });
}

/// Writes the attributes of the profile `security_control`.
fn push_control(parts: &Parts<'_, '_>, class: OcsfClass, severity: Severity, w: &mut Writer<'_>) {
    w.flag("is_alert", class.is_finding() || severity >= Severity::High);
    let (action, disposition) = match (parts.is_dlp(), parts.facts.outcome()) {
        (true, Some(EventOutcome::Failure)) => ((2, "Denied"), (2, "Blocked")),
        // The user was warned, and the record does not say what the user did then.
        (true, Some(EventOutcome::Unknown)) => ((3, "Observed"), (19, "Alert")),
        (true, _) => ((1, "Allowed"), (1, "Allowed")),
        (false, _) => ((0, "Unknown"), (0, "Unknown")),
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

/// Writes the observables. Version 1.1 omits the types that it does not have.
fn push_observables(
    parts: &Parts<'_, '_>,
    (class, target): (OcsfClass, &Target<'_>),
    finds: &Finds,
    newest: bool,
    w: &mut Writer<'_>,
) {
    w.objects("observables", |list| {
        let mut add = |name: &str, type_id: i64, caption: &str, value: &str| {
            list.push(|w| {
                w.text("name", name);
                w.number("type_id", type_id);
                w.text("type", caption);
                w.text("value", value);
            });
        };
        if let Some(address) = parts.facts.source_address().filter(|_| has_endpoint(class, newest)) {
            add("src_endpoint.ip", 2, "IP Address", &address.ip.to_string());
        }
        if let Some(id) = parts.actor.id.as_deref() {
            add("actor.user.name", 4, "User Name", id);
        }
        if let Some(email) = parts.actor.email.as_deref().filter(|email| is_address(email)) {
            add("actor.user.email_addr", 5, "Email Address", email);
        }
        let has_user = matches!(class, OcsfClass::AccountChange | OcsfClass::UserAccess)
            || (class == OcsfClass::GroupManagement && parts.is_type(&[4, 8, 14]) && target.label().is_some());
        if has_user && let Some(name) = target.label() {
            add("user.name", 4, "User Name", name);
            if let Some(email) = target.email().filter(|email| is_address(email)) {
                add("user.email_addr", 5, "Email Address", &email);
            }
        }
        observe_files(parts, class, finds, &mut add);
        if let Some(agent) = parts.facts.agent().filter(|_| newest && has_request(class, newest)) {
            add("http_request.user_agent", 16, "HTTP User-Agent", agent);
        }
        for address in forwarded_to(parts.facts, parts.operation) {
            add("unmapped.recipients", 5, "Email Address", &address);
        }
    });
}

/// Adds files, their hashes and addresses, if the record has them.
fn observe_files(parts: &Parts<'_, '_>, class: OcsfClass, finds: &Finds, add: &mut dyn FnMut(&str, i64, &str, &str)) {
    let file = parts.file();
    let prefix = match class {
        OcsfClass::FileHosting => "file",
        OcsfClass::DataSecurityFinding if file.name.is_some() => "file",
        OcsfClass::DetectionFinding => "evidences.file",
        _ => return,
    };
    let in_evidence = prefix == "evidences.file";
    let name = file.name.as_deref().or(if in_evidence { finds.files.first().map(String::as_str) } else { None });
    if let Some(name) = name {
        add(&format!("{prefix}.name"), 7, "File Name", name);
    }
    if let Some(url) = file.url.as_deref().filter(|_| !in_evidence) {
        add(&format!("{prefix}.path"), 6, "URL String", url);
    }
    if !in_evidence && let Some(hash) = file.sha256.as_deref() {
        add(&format!("{prefix}.hashes"), 8, "Hash", &hash.to_lowercase());
    }
    for hash in finds.hashes.iter().filter(|_| in_evidence && name.is_some()) {
        add(&format!("{prefix}.hashes"), 8, "Hash", hash);
    }
}

/// Whether records of a class have the client's endpoint.
fn has_endpoint(class: OcsfClass, newest: bool) -> bool {
    !lacks_client(class, newest) && !matches!(class, OcsfClass::DetectionFinding | OcsfClass::ApplicationLifecycle)
}

/// Whether records of a class have the request.
fn has_request(class: OcsfClass, newest: bool) -> bool {
    has_endpoint(class, newest) && !matches!(class, OcsfClass::EmailActivity | OcsfClass::DataSecurityFinding)
}

fn push_unmapped(parts: &Parts<'_, '_>, origin: &Origin<'_>, masked: bool, w: &mut Writer<'_>) {
    w.nested("unmapped", |w| {
        w.texts("severity_rule", parts.assessment.matches.iter().map(|found| found.rule().id.as_str()));
        w.maybe("severity_reason", parts.reason);
        parts.push_dlp(w);
        w.maybe("record_type_name", parts.record_type.and_then(record_types::info).map(|info| info.name));
        w.text("category", parts.category.as_str());
        w.maybe("content_id", origin.content_id);
        w.maybe("origin", origin.source);
        w.texts("recipients", forwarded_to(parts.facts, parts.operation));
        if masked {
            w.flag("raw_masked", true);
        }
        push_pairs("extended_properties", parts.facts.extended(), w);
        push_modified(parts, w);
    });
}

/// The group of a site, as `EventData` has it.
fn group_of_site(parts: &Parts<'_, '_>) -> Option<String> {
    let data = parts.text(KnownMember::EventData)?;
    let (_, rest) = data.split_once("<Group>")?;
    rest.split_once("</Group>").map(|(name, _)| name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// Writes the resources that the event involves, else its object.
fn push_resources(parts: &Parts<'_, '_>, w: &mut Writer<'_>) {
    let involved = parts.facts.involved();
    w.objects("resources", |list| {
        for resource in &involved.resources {
            list.push(|w| {
                w.maybe("name", resource.name.as_deref());
                w.maybe("type", resource.kind.as_deref());
                w.texts("labels", resource.label.iter());
            });
        }
        if involved.resources.is_empty() {
            let object = parts.text(KnownMember::ObjectId).filter(|object| !is_nobody(object));
            list.push(|w| w.maybe("name", object));
        }
    });
}

/// Writes the findings: malware, files with their hashes, mail, the person concerned.
fn push_found(parts: &Parts<'_, '_>, finds: &Finds, newest: bool, w: &mut Writer<'_>) {
    if newest && !finds.malware.is_empty() && parts.is_type(&[4, 6, 14, 28, 47, 64]) {
        w.objects("malware", |list| {
            for name in &finds.malware {
                list.push(|w| {
                    w.value("classification_ids", |out| out.extend_from_slice(b"[0]"));
                    w.text("name", name);
                });
            }
        });
    }
    let person = parts.person_of_alert();
    w.objects("evidences", |list| {
        let file = parts.file();
        let name = file.name.as_deref().or(finds.files.first().map(String::as_str));
        if let Some(name) = name {
            list.push(|w| {
                w.nested("file", |w| {
                    w.text("name", name);
                    w.number("type_id", 1);
                    w.text("type", "Regular File");
                    push_hashes(finds, file.sha256.as_deref(), w);
                });
            });
        }
        if newest && (!finds.senders.is_empty() || !finds.recipients.is_empty()) {
            list.push(|w| {
                w.nested("email", |w| {
                    w.maybe("from", finds.senders.first());
                    w.texts("to", finds.recipients.iter());
                    w.maybe("subject", finds.subjects.first());
                });
            });
        }
        if newest {
            for url in &finds.urls {
                list.push(|w| w.nested("url", |w| w.text("url_string", url)));
            }
        }
        if let Some(person) = &person {
            list.push(|w| {
                let fill = |w: &mut Writer<'_>| {
                    w.text("name", person);
                    w.maybe("email_addr", Some(person).filter(|person| is_address(person)));
                };
                match newest {
                    true => w.nested("user", fill),
                    false => w.nested("actor", |w| w.nested("user", fill)),
                }
            });
        }
    });
}

fn push_hashes(finds: &Finds, own: Option<&str>, w: &mut Writer<'_>) {
    let own = own.map(str::to_lowercase).filter(|own| !finds.hashes.contains(own));
    w.objects("hashes", |list| {
        for hash in own.iter().chain(&finds.hashes) {
            let (id, caption) = match hash.len() {
                32 => (1, "MD5"),
                40 => (2, "SHA-1"),
                _ => (3, "SHA-256"),
            };
            list.push(|w| {
                w.number("algorithm_id", id);
                w.text("algorithm", caption);
                w.text("value", hash);
            });
        }
    });
}

/// Writes the session and the device of a sign-in.
fn push_session(parts: &Parts<'_, '_>, class: OcsfClass, device: &Device<'_>, newest: bool, w: &mut Writer<'_>) {
    if class != OcsfClass::Authentication {
        return;
    }
    w.nested("session", |w| {
        let session = parts.text(KnownMember::SessionId).or_else(|| device.session.clone());
        w.maybe("uid", session.or_else(|| parts.inner(KnownMember::AppAccessContext, "AADSessionId")));
    });
    if !has_device(class, device) {
        return;
    }
    w.nested("device", |w| {
        w.number("type_id", 0);
        w.text("type", "Unknown");
        w.maybe("uid", device.id.as_deref());
        w.maybe("name", device.name.as_deref());
        if let Some(os) = device.os.as_deref() {
            w.nested("os", |w| {
                let kinds = [
                    ("windows", 100, "Windows"),
                    ("mac", 300, "macOS"),
                    ("ios", 301, "iOS"),
                    ("android", 201, "Android"),
                    ("linux", 200, "Linux"),
                ];
                let lower = os.to_ascii_lowercase();
                let kind = kinds.iter().find(|(start, ..)| lower.starts_with(start));
                w.text("name", os);
                w.number("type_id", kind.map_or(0, |kind| kind.1));
                w.text("type", kind.map_or("Unknown", |kind| kind.2));
            });
        }
        if newest && let Some(compliant) = device.compliant {
            w.flag("is_compliant", compliant);
        }
        if let Some(managed) = device.managed {
            w.flag("is_managed", managed);
        }
    });
}

/// Writes the profile of AI applications: the model, if one is named, and the message.
fn push_ai(parts: &Parts<'_, '_>, class: OcsfClass, w: &mut Writer<'_>) {
    if !has_ai(parts, class) {
        return;
    }
    let Some(ai) = parts.facts.ai() else { return };
    if let Some(model) = ai.model() {
        w.nested("ai_model", |w| {
            w.text("ai_provider", ai.provider().as_deref().unwrap_or("Microsoft"));
            w.text("name", model);
        });
    }
    w.nested("message_context", |w| {
        w.maybe("uid", ai.message().as_deref().or(ai.thread.as_deref()));
        w.number("ai_role_id", 1);
        w.text("ai_role", "User");
        w.nested("application", |w| {
            w.text("name", ai.agent_name.as_deref().or(ai.host.as_deref()).unwrap_or("unknown"));
            w.maybe("uid", ai.agent_id.as_deref().or(ai.identity.as_deref()));
        });
    });
}

/// 2 (outbound) if a recipient is external, 3 (internal) if all are internal, 0 if none is named.
fn direction(parts: &Parts<'_, '_>, to: &[String]) -> i64 {
    use crate::severity::Facts as _;
    use crate::severity::recipient::{Recipient, judge};
    match judge(&to.join(";"), &parts.facts.own_domains()) {
        Some(Recipient::External) => 2,
        Some(Recipient::Internal) => 3,
        Some(Recipient::Unknown) | None => 0,
    }
}
