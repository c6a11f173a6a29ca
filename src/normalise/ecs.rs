//! Records in the Elastic Common Schema.
//!
//! Fields after Elastic's own `o365` integration, so that its dashboards and rules find what they look for, without
//! what is reported as wrong there: pairs of names and values stay lists (no dynamic keys), every field has one type,
//! an outcome that is not known is not called success, an alert is no sign-in. The whole event is `event.original`.

use std::borrow::Cow;

use super::actor::Actor;
use super::category::Category;
use super::event::Member;
use super::notice::Notice;
use super::outcome::Outcome;
use super::parts::{File, Mail, Parts, Target, correlation, inner, is_address, push_modified, push_pairs};
use super::writer::Writer;
use super::{Origin, json, record_types, time};
use crate::severity::Severity;

/// The version of the schema these records are of.
const VERSION: &str = "8.17.0";

/// Record types that are somebody's verdict.
const ALERTS: &[i64] = &[11, 13, 28, 33, 40, 41, 47, 64, 98, 99, 100, 107, 113];

/// Appends a record. `original` is the event as text and whether it was masked; `None` leaves it out.
pub(crate) fn push(parts: &Parts<'_, '_>, origin: &Origin<'_>, original: Option<(&str, bool)>, out: &mut Vec<u8>) {
    let target = parts.target();
    let file = parts.file();
    let mail = parts.mail();
    let person = match parts.person_of_alert() {
        Some(id) => Cow::Owned(Actor::from_id(id, None)),
        None => Cow::Borrowed(&parts.actor),
    };
    let event_time = time::parse(parts.event.creation_time());
    Writer::object(out, |w| {
        match (&event_time, origin.content_created) {
            (Some(time), _) => w.text("@timestamp", format!("{}Z", time.civil)),
            (None, Some(created)) => w.value("@timestamp", |out| time::push(out, created)),
            (None, None) => {}
        }
        w.nested("ecs", |w| w.text("version", VERSION));
        match parts.record_type {
            Some(40) => w.maybe("message", parts.text(Member::Comments).or_else(|| parts.text(Member::Name))),
            Some(13) => w.maybe("message", mail.subject.as_deref()),
            _ => {}
        }
        w.texts("tags", parts.assessment.matches.iter().map(|found| found.rule().id.as_str()));
        push_event(parts, origin, original.map(|(text, _)| text), w);
        let masked = original.is_some_and(|(_, masked)| masked);
        w.nested("m365", |w| w.nested("audit", |w| push_own(parts, origin, masked, &event_time, w)));
        w.nested("organization", |w| {
            let id = parts.text(Member::OrganizationId).map(|id| id.to_lowercase());
            w.maybe("id", id.as_deref().or(origin.tenant));
            w.maybe("name", parts.text(Member::OrganizationName));
        });
        w.nested("cloud", |w| {
            let tenant = origin
                .tenant
                .map(str::to_owned)
                .or_else(|| parts.text(Member::OrganizationId).map(|id| id.to_lowercase()));
            w.nested("account", |w| w.maybe("id", tenant));
        });
        push_user(parts, &person, &target, w);
        w.nested("group", |w| {
            let of_directory = target.kind.as_deref() == Some("Group");
            let name = parts.text(Member::TeamName).or_else(|| parts.text(Member::GroupName));
            w.maybe("name", name.as_deref().or(if of_directory { target.label() } else { None }));
            w.maybe("id", if of_directory { target.id.as_deref() } else { None });
        });
        push_client(parts, w);
        w.nested("process", |w| w.maybe("name", parts.text(Member::ClientProcessName)));
        w.nested("server", |w| w.maybe("address", parts.text(Member::OriginatingServer)));
        w.nested("service", |w| {
            let agent = parts.text(Member::UserId).filter(|_| parts.is_dlp() || parts.is_type(&[40]));
            w.maybe("name", agent.filter(|agent| person.id.as_ref() != Some(agent)));
        });
        w.nested("file", |w| push_file(&file, w));
        w.nested("url", |w| push_url(parts, &file, w));
        w.nested("email", |w| push_email(&mail, w));
        w.nested("rule", |w| push_rule(parts, w));
        w.nested("threat", |w| push_threat(parts, w));
        w.nested("related", |w| push_related(parts, &person, &target, &file, w));
    });
}

/// The file that was touched.
fn push_file(file: &File<'_>, w: &mut Writer<'_>) {
    w.maybe("name", file.name.as_deref());
    w.maybe("extension", file.extension.as_deref());
    w.maybe("directory", file.directory.as_deref());
    w.maybe("path", file.path());
    w.maybe("inode", file.id.as_deref());
    w.maybe("owner", file.owner.as_deref());
    if let Some(size) = file.size {
        w.number("size", size);
    }
    if let Some(changed) = file.changed.as_deref().and_then(time::parse) {
        w.text("mtime", format!("{}Z", changed.civil));
    }
    if file.name.is_some() {
        w.text("type", if file.folder { "dir" } else { "file" });
    }
    w.nested("hash", |w| w.maybe("sha256", file.sha256.as_deref().map(str::to_lowercase)));
}

/// Where it is, or what was clicked.
fn push_url(parts: &Parts<'_, '_>, file: &File<'_>, w: &mut Writer<'_>) {
    let url = match parts.record_type {
        Some(41) => parts.text(Member::Url),
        _ => file.url.clone(),
    };
    w.maybe("original", url.as_deref());
    if let Some((scheme, domain, path)) = url.as_deref().and_then(split_url) {
        w.text("scheme", scheme);
        w.text("domain", domain);
        w.text("path", path);
    }
}

/// The message.
fn push_email(mail: &Mail<'_>, w: &mut Writer<'_>) {
    w.maybe("message_id", mail.id.as_deref());
    w.maybe("local_id", mail.local_id.as_deref());
    w.maybe("subject", mail.subject.as_deref());
    w.nested("from", |w| w.texts("address", mail.from.iter()));
    w.nested("sender", |w| w.maybe("address", mail.sender.as_deref()));
    w.nested("to", |w| w.texts("address", mail.to.iter()));
    w.nested("cc", |w| w.texts("address", mail.cc.iter()));
    w.nested("bcc", |w| w.texts("address", mail.bcc.iter()));
    w.objects("attachments", |list| {
        for (name, size) in mail.attached() {
            list.push(|w| {
                w.nested("file", |w| {
                    w.text("name", name);
                    if let Some(size) = size {
                        w.number("size", size);
                    }
                });
            });
        }
    });
}

/// The policy or rule, of Microsoft's, that an alert or a match is about.
fn push_rule(parts: &Parts<'_, '_>, w: &mut Writer<'_>) {
    if parts.is_type(&[40]) {
        w.texts("id", parts.text(Member::PolicyId));
        w.texts("name", parts.text(Member::Name));
        w.maybe("category", parts.text(Member::Category));
        w.texts("ruleset", parts.text(Member::EntityType));
        w.maybe("description", parts.text(Member::AlertEntityId));
        let mut links = Vec::new();
        json::elements(parts.event.get(Member::AlertLinks).unwrap_or_default(), |link| {
            links.extend(inner(link, "AlertLinkHref"));
        });
        w.maybe("reference", links.first());
    } else {
        let rules = if parts.is_dlp() { parts.dlp_rules() } else { Vec::new() };
        w.texts("id", rules.iter().filter_map(|rule| rule.id.as_deref()));
        w.texts("name", rules.iter().filter_map(|rule| rule.name.as_deref()));
        w.texts("ruleset", rules.iter().filter_map(|rule| rule.policy.as_deref()));
    }
}

/// Techniques, by the rules that matched, and malware that was found.
fn push_threat(parts: &Parts<'_, '_>, w: &mut Writer<'_>) {
    let techniques = || parts.assessment.matches.iter().filter_map(|found| found.rule().technique.as_deref());
    if techniques().next().is_some() {
        w.text("framework", "MITRE ATT&CK");
        w.nested("technique", |w| w.texts("id", techniques()));
    }
    let mut families = Vec::new();
    if parts.is_type(&[28]) {
        json::elements(parts.event.get(Member::AttachmentData).unwrap_or_default(), |attachment| {
            families.extend(inner(attachment, "MalwareFamily"));
        });
    }
    w.nested("software", |w| w.maybe("name", families.first()));
}

/// Everybody and everything an analyst joins records by.
fn push_related(parts: &Parts<'_, '_>, person: &Actor<'_>, target: &Target<'_>, file: &File<'_>, w: &mut Writer<'_>) {
    w.texts("ip", parts.addresses());
    let names = [
        person.email.as_deref(),
        person.name.as_deref(),
        target.principal.as_deref(),
        target.principal.as_deref().filter(|name| is_address(name)).and_then(|name| Some(name.split_once('@')?.0)),
        file.owner.as_deref(),
    ];
    let mut related: Vec<Cow<'_, str>> = names.into_iter().flatten().map(Cow::Borrowed).collect();
    related.extend(parts.text(Member::MailboxOwnerUPN));
    related.extend(parts.people_of_alert().into_iter().map(Cow::Owned));
    json::elements(parts.event.get(Member::Members).unwrap_or_default(), |member| {
        related.extend(inner(member, "UPN"));
    });
    w.texts("user", related);
    w.texts("hash", file.sha256.as_deref().map(str::to_lowercase));
}

/// Appends a record of ours: of the data set of the events, so that it is indexed where they are, and of the kind that
/// says of a pipeline that it failed.
pub(crate) fn push_notice(notice: &Notice<'_>, out: &mut Vec<u8>) {
    let Notice { origin, .. } = notice;
    let failed = notice.severity >= Severity::High;
    Writer::object(out, |w| {
        w.value("@timestamp", |out| time::push(out, notice.time));
        w.nested("ecs", |w| w.text("version", VERSION));
        w.text("message", &notice.title);
        w.nested("event", |w| {
            w.text("kind", if failed { "pipeline_error" } else { "event" });
            w.texts("type", [if failed { "error" } else { "info" }]);
            w.text("action", notice.event_type);
            w.text("provider", "m365_audit");
            w.text("dataset", "m365.audit");
            w.text("module", "m365");
            w.number("severity", number_of(notice.severity));
            if let Some(created) = origin.content_created {
                w.value("created", |out| time::push(out, created));
            }
        });
        w.nested("m365", |w| {
            w.nested("audit", |w| {
                w.text("category", Category::Other.as_str());
                w.text("severity", notice.severity.as_str());
                w.maybe("content_type", origin.content_type.map(|content_type| content_type.as_str()));
                w.maybe("content_id", origin.content_id);
                notice.push_members(w);
            });
        });
        w.nested("organization", |w| w.maybe("id", origin.tenant));
        w.nested("cloud", |w| w.nested("account", |w| w.maybe("id", origin.tenant)));
    });
}

/// Scheme, host and path of an absolute URL. Not decoded: what is shipped is what was received.
fn split_url(url: &str) -> Option<(&str, &str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, after) = rest.split_at_checked(end)?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = if host.starts_with('[') { host } else { host.split_once(':').map_or(host, |(host, _)| host) };
    let path = after.split(['?', '#']).next().unwrap_or_default();
    let plain = scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) && !host.contains(char::is_whitespace);
    (plain && !host.is_empty()).then_some((scheme, host, path))
}

fn push_event(parts: &Parts<'_, '_>, origin: &Origin<'_>, original: Option<&str>, w: &mut Writer<'_>) {
    w.nested("event", |w| {
        let matched = parts.operation == "dlprulematch";
        let alert = parts.is_type(ALERTS)
            && (!parts.is_type(&[11, 13, 33, 99, 100, 107]) || parts.operation != "miplabel")
            || (parts.is_type(&[63]) && matched);
        w.text("kind", if alert { "alert" } else { "event" });
        let (categories, types) = classify(parts);
        w.texts("category", categories);
        w.texts("type", types);
        w.maybe("action", parts.text(Member::Operation));
        w.maybe("id", parts.text(Member::Id));
        w.maybe("provider", parts.text(Member::Workload));
        if let Some(record_type) = parts.record_type {
            match record_types::info(record_type) {
                Some(info) => w.text("code", info.name),
                None => w.text("code", record_type.to_string()),
            }
        }
        w.text("dataset", "m365.audit");
        w.text("module", "m365");
        w.maybe("outcome", parts.facts.outcome().map(Outcome::as_str));
        w.number("severity", number_of(parts.assessment.severity()));
        w.maybe("reason", parts.reason);
        if let Some(created) = origin.content_created {
            w.value("created", |out| time::push(out, created));
        }
        if let Some(original) = original {
            w.value("original", |out| json::push_string(out, original));
        }
    });
}

/// `event.severity`: 1 info to 5 critical.
fn number_of(severity: Severity) -> i64 {
    match severity {
        Severity::Info => 1,
        Severity::Low => 2,
        Severity::Medium => 3,
        Severity::High => 4,
        Severity::Critical => 5,
    }
}

/// What has no field in the schema: a closed set, each with one type.
fn push_own(
    parts: &Parts<'_, '_>,
    origin: &Origin<'_>,
    masked: bool,
    event_time: &Option<time::EventTime<'_>>,
    w: &mut Writer<'_>,
) {
    w.text("category", parts.category.as_str());
    w.text("severity", parts.assessment.severity().as_str());
    parts.push_dlp(w);
    if let Some(record_type) = parts.record_type {
        w.number("record_type", record_type);
    }
    w.maybe("content_type", origin.content_type.map(|content_type| content_type.as_str()));
    w.maybe("content_id", origin.content_id);
    if event_time.is_none() && origin.content_created.is_some() {
        w.flag("timestamp_inferred", true);
    }
    if masked {
        w.flag("raw_masked", true);
    }
    w.maybe("user_type", parts.actor.kind.as_deref());
    w.maybe("user_key", parts.text(Member::UserKey));
    w.maybe("object_id", parts.text(Member::ObjectId));
    w.maybe("result_status", parts.text(Member::ResultStatus));
    w.maybe("logon_error", parts.text(Member::LogonError));
    if let Some(number) = parts.event.integer(Member::ErrorNumber) {
        w.number("error_number", number);
    }
    w.maybe("application_id", parts.text(Member::ApplicationId).or_else(|| parts.text(Member::ClientAppId)));
    w.maybe("application_name", parts.text(Member::ApplicationDisplayName));
    w.maybe("correlation_id", correlation(parts));
    w.maybe("session_id", parts.text(Member::SessionId));
    w.maybe("alert_id", parts.text(Member::AlertId));
    w.maybe("incident_id", parts.text(Member::IncidentId));
    push_pairs("parameters", parts.facts.parameters(), w);
    push_pairs("extended_properties", parts.facts.extended(), w);
    push_modified(parts, w);
}

fn push_user(parts: &Parts<'_, '_>, actor: &Actor<'_>, target: &Target<'_>, w: &mut Writer<'_>) {
    w.nested("user", |w| {
        w.maybe("id", actor.id.as_deref());
        let split = actor.id.as_deref().filter(|id| is_address(id)).and_then(|id| id.split_once('@'));
        // Whoever is no address is called by the id: services, applications, names of old systems.
        const NOBODY: [&str; 3] = ["Not Available", "Unknown", "NOT-FOUND"];
        let id = actor.id.as_deref().filter(|id| !NOBODY.iter().any(|nobody| id.trim().eq_ignore_ascii_case(nobody)));
        w.maybe("name", split.map(|(name, _)| name).or(actor.name.as_deref()).or(id));
        w.maybe("domain", split.map(|(_, domain)| domain));
        w.maybe("email", actor.email.as_deref());
        w.maybe("full_name", parts.text(Member::LogonUserDisplayName));
        w.nested("target", |w| {
            if parts.is_type(&[8]) && !matches!(target.kind.as_deref(), Some("Group")) {
                let principal = target.principal.as_deref().or(target.name.as_deref().filter(|name| is_address(name)));
                w.maybe("id", target.id.as_deref().or(target.label()));
                let split = principal.filter(|name| is_address(name)).and_then(|name| name.split_once('@'));
                w.maybe("name", split.map(|(name, _)| name).or(target.name.as_deref()));
                w.maybe("domain", split.map(|(_, domain)| domain));
                w.maybe("email", principal.filter(|name| is_address(name)));
            } else if let Some(owner) = parts.text(Member::MailboxOwnerUPN)
                && is_address(&owner)
                && !actor.id.as_deref().is_some_and(|id| id.eq_ignore_ascii_case(&owner))
            {
                w.maybe("name", owner.split_once('@').map(|(name, _)| name));
                w.maybe("domain", owner.split_once('@').map(|(_, domain)| domain));
                w.text("email", &owner);
            }
        });
        if parts.operation.contains("member to role") || parts.operation.contains("member from role") {
            w.texts("roles", parts.modified("Role.DisplayName"));
        }
    });
}

fn push_client(parts: &Parts<'_, '_>, w: &mut Writer<'_>) {
    if let Some(address) = parts.facts.source_address() {
        let ip = address.ip.to_string();
        for (side, with_text) in [("client", true), ("source", false)] {
            w.nested(side, |w| {
                if with_text {
                    w.maybe("address", parts.address_text());
                } else {
                    w.text("address", &ip);
                }
                w.text("ip", &ip);
                if let Some(port) = address.port {
                    w.number("port", i64::from(port));
                }
            });
        }
        w.nested("network", |w| w.text("type", if address.ip.is_ipv4() { "ipv4" } else { "ipv6" }));
    } else if let Some((text, name, port)) = parts.source_host() {
        for side in ["client", "source"] {
            w.nested(side, |w| {
                w.text("address", &text);
                w.text("domain", &name);
                if let Some(port) = port {
                    w.number("port", i64::from(port));
                }
            });
        }
    }
    w.nested("user_agent", |w| w.maybe("original", parts.facts.agent()));
}

type Words = &'static [&'static str];

/// `event.category` and `event.type`.
fn classify(parts: &Parts<'_, '_>) -> (Words, Words) {
    let operation = parts.operation;
    let begins = |words: &[&str]| words.iter().any(|word| operation.starts_with(word));
    let has = |words: &[&str]| words.iter().any(|word| operation.contains(word));
    match parts.record_type {
        Some(9 | 15) => (&["authentication"], &["start"]),
        Some(8) => classify_directory(operation),
        Some(11 | 33 | 63 | 99 | 100) => (&["file"], &["info"]),
        Some(13 | 107) => (&["email"], &["info"]),
        Some(28) => (&["email", "malware"], &["info"]),
        Some(41) => (&["email", "intrusion_detection"], &["info"]),
        Some(47) => (&["file", "malware"], &["info"]),
        Some(40 | 64 | 78 | 98 | 113) => {
            let category = parts.text(Member::Category).unwrap_or_default().to_ascii_lowercase();
            match category.as_str() {
                "datagovernance" | "datalossprevention" => (&["file"], &["info"]),
                "threatmanagement" => (&["threat", "intrusion_detection"], &["info"]),
                _ => (&["intrusion_detection"], &["info"]),
            }
        }
        Some(2 | 3 | 50 | 19) => {
            let kind: Words = if has(&["delete"]) {
                &["deletion"]
            } else if begins(&["mailitemsaccessed", "messagebind", "folderbind", "attachmentaccess", "mailboxlogin"]) {
                &["access"]
            } else if begins(&["create", "send"]) {
                &["creation"]
            } else if begins(&["update", "move", "copy", "modify", "add", "remove"]) {
                &["change"]
            } else {
                &["info"]
            };
            (&["email"], kind)
        }
        Some(1) if has(&["mailboxpermission", "recipientpermission", "rolegroup", "managementrole"]) => {
            (&["iam"], &["change"])
        }
        Some(1 | 18 | 23 | 52) => {
            (&["configuration"], if begins(&["get-", "search-", "test-"]) { &["access"] } else { &["change"] })
        }
        Some(14) => (&["file", "iam"], if has(&["used", "accepted"]) { &["access"] } else { &["access", "change"] }),
        Some(4 | 6 | 36 | 54 | 55 | 56) => classify_file(operation),
        Some(25) if has(&["team", "member", "channel"]) => {
            let kind: Words = if has(&["deleted", "removed"]) {
                &["group", "deletion"]
            } else if has(&["created", "added"]) {
                &["group", "creation"]
            } else {
                &["group", "change"]
            };
            (&["iam"], kind)
        }
        _ => match parts.category {
            Category::Identity => (&["iam"], &["info"]),
            Category::Email => (&["email"], &["info"]),
            Category::File => (&["file"], &["info"]),
            Category::Threat => (&["threat"], &["indicator"]),
            Category::Compliance | Category::Automation => (&["configuration"], &["info"]),
            _ => (&[], &["info"]),
        },
    }
}

fn classify_directory(operation: &str) -> (Words, Words) {
    let begins = |words: &[&str]| words.iter().any(|word| operation.starts_with(word));
    let has = |words: &[&str]| words.iter().any(|word| operation.contains(word));
    if has(&[" role"]) && has(&["member", "pim"]) {
        return (&["iam"], &["admin", "change"]);
    }
    if has(&["policy", "domain", "company", "security defaults", "cross-tenant", "directory feature"]) {
        return (&["configuration"], &["change"]);
    }
    if has(&["application", "service principal", "consent", "app role", "permission grant", "oauth2", "credential"]) {
        return (&["iam", "configuration"], &["change"]);
    }
    let created = begins(&["add ", "create", "invite", "restore"]);
    let deleted = begins(&["delete", "hard delete", "remove"]);
    let group = has(&["group"]);
    let kind: Words = match (group, created, deleted) {
        (true, true, _) if has(&["member", "owner"]) => &["group", "change"],
        (true, true, _) => &["group", "creation"],
        (true, _, true) if has(&["member", "owner"]) => &["group", "change"],
        (true, _, true) => &["group", "deletion"],
        (true, ..) => &["group", "change"],
        (false, true, _) => &["user", "creation"],
        (false, _, true) => &["user", "deletion"],
        _ => &["user", "change"],
    };
    (&["iam"], kind)
}

fn classify_file(operation: &str) -> (Words, Words) {
    let has = |words: &[&str]| words.iter().any(|word| operation.contains(word));
    if has(&["compliancesetting", "policychanged", "sharingpolicy"]) {
        return (&["configuration"], &["change"]);
    }
    let kind: Words = if has(&["deleted", "recycled"]) {
        &["deletion"]
    } else if has(&["uploaded", "created", "copied"]) {
        &["creation"]
    } else if has(&["accessed", "downloaded", "previewed", "viewed", "query"]) {
        &["access"]
    } else if has(&["modified", "moved", "renamed", "restored", "updated", "checked", "changed", "malware"]) {
        &["change"]
    } else {
        &["info"]
    };
    (if operation == "filemalwaredetected" { &["file", "malware"] } else { &["file"] }, kind)
}
