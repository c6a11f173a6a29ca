//! Records in the Elastic Common Schema.
//!
//! The fields follow Elastic's own `o365` integration, so that its dashboards and rules work, but avoid the faults
//! reported against it: pairs of names and values stay lists (no dynamic keys), every field has one type, an unknown
//! outcome is not success, an alert is not a sign-in. The whole event is `event.original`.

use std::borrow::Cow;

use super::actor::Actor;
use super::category::Category;
use super::dlp;
use super::ecs_class::{classify, is_alert};
use super::event::KnownMember;
use super::finds::{Device, Finds};
use super::involved::Target;
use super::notice::Notice;
use super::outcome::EventOutcome;
use super::parts::{File, Mail, Parts, correlation, push_modified, push_pairs};
use super::reach::{inner, is_address};
use super::writer::Writer;
use super::{Origin, json, o365, record_types, time};
use crate::config::EcsProfile;
use crate::severity::Severity;

/// The version of the schema these records are of.
const VERSION: &str = "8.17.0";

/// Appends a record. `original` is the event as text and whether it was masked; `None` leaves it out.
pub(crate) fn push(
    parts: &Parts<'_, '_>,
    origin: &Origin<'_>,
    original: Option<(&str, bool)>,
    profile: EcsProfile,
    out: &mut Vec<u8>,
) {
    let target = parts.target();
    let finds = Finds::of(parts.event, parts.record_type, parts.operation);
    let device = Device::of(parts.event, parts.record_type);
    let file = file_of(parts, &finds);
    let mail = mail_of(parts, &finds);
    let person = match parts.person_of_alert() {
        Some(id) => Cow::<Actor<'_>>::Owned(Actor::from_id(id, None)),
        None => Cow::Borrowed(parts.actor),
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
            Some(40) => w.maybe("message", parts.text(KnownMember::Name).or_else(|| parts.text(KnownMember::Comments))),
            _ if parts.is_dlp() && dlp::is_match(parts.operation) => {
                let blocked = parts.facts.outcome() == Some(EventOutcome::Failure);
                let words = dlp::matched_in_words(parts.facts.dlp_rules());
                w.text("message", words + if blocked { " (blocked)" } else { "" });
            }
            _ => {}
        }
        w.texts("tags", parts.assessment.matches.iter().map(|found| found.rule().id.as_str()));
        push_event(parts, origin, original.map(|(text, _)| text), profile, w);
        if profile == EcsProfile::ElasticO365 {
            w.nested("data_stream", |w| w.text("dataset", o365::DATASET));
            o365::push(parts.event, w);
        }
        let masked = original.is_some_and(|(_, masked)| masked);
        w.nested("m365", |w| w.nested("audit", |w| push_own(parts, origin, (masked, &event_time), &device, w)));
        w.nested("organization", |w| {
            let id = parts.text(KnownMember::OrganizationId).map(|id| id.to_lowercase());
            w.maybe("id", id.as_deref().or(origin.tenant));
            w.maybe("name", parts.text(KnownMember::OrganizationName));
        });
        w.nested("cloud", |w| {
            let tenant = origin
                .tenant
                .map(str::to_owned)
                .or_else(|| parts.text(KnownMember::OrganizationId).map(|id| id.to_lowercase()));
            w.nested("account", |w| w.maybe("id", tenant));
        });
        push_user(parts, &person, target, w);
        w.nested("group", |w| {
            let of_directory = target.kind.as_deref() == Some("Group");
            let name = parts.text(KnownMember::TeamName).or_else(|| parts.text(KnownMember::GroupName));
            let resources = &parts.facts.involved().resources;
            let joined = resources.iter().find(|resource| resource.kind.as_deref() == Some("group"));
            let joined = joined.and_then(|group| group.name.as_deref());
            w.maybe("name", name.as_deref().or(if of_directory { target.label() } else { joined }));
            w.maybe("id", if of_directory { target.id.as_deref() } else { None });
        });
        push_client(parts, &device, w);
        push_device(&device, w);
        push_error(parts, w);
        push_ai(parts, w);
        w.nested("process", |w| w.maybe("name", parts.text(KnownMember::ClientProcessName)));
        w.nested("server", |w| push_server(parts, w));
        w.nested("service", |w| {
            let agent = parts.text(KnownMember::UserId).filter(|_| parts.is_dlp() || parts.is_type(&[40]));
            w.maybe("name", agent.filter(|agent| person.id.as_ref() != Some(agent)));
        });
        w.nested("file", |w| push_file(&file, &finds, w));
        w.nested("url", |w| push_url(parts, &file, &finds, w));
        w.nested("email", |w| push_email(parts, &mail, w));
        w.nested("rule", |w| push_rule(parts, &finds, w));
        w.nested("threat", |w| push_threat(parts, &finds, w));
        w.nested("related", |w| push_related(parts, (&person, target), (&file, &mail), &finds, w));
    });
}

/// The file that was accessed, or found to be malicious.
fn file_of<'a>(parts: &Parts<'_, 'a>, finds: &Finds) -> File<'a> {
    let mut file = parts.file();
    let of_finding = || finds.files.first().map(|name| Cow::Owned(name.clone()));
    // Of mail the files are attachments.
    if !parts.is_type(&[28]) {
        file.name = file.name.or_else(of_finding);
    }
    file.sha256 = file.sha256.or_else(|| finds.hash_of(64).map(|hash| Cow::Owned(hash.to_owned())));
    file
}

/// The message that the event is about, or that was found to be malicious.
fn mail_of<'a>(parts: &Parts<'_, 'a>, finds: &Finds) -> Mail<'a> {
    let mut mail = parts.mail();
    if !parts.is_type(&[64]) {
        return mail;
    }
    let owned = |texts: &[String]| texts.iter().map(|text| Cow::Owned(text.clone())).collect::<Vec<_>>();
    mail.subject = owned(&finds.subjects).into_iter().next();
    mail.id = owned(&finds.message_ids).into_iter().next();
    mail.from = owned(&finds.senders).into_iter().next();
    mail.to = owned(&finds.recipients);
    mail
}

/// Writes the file that was accessed.
fn push_file(file: &File<'_>, finds: &Finds, w: &mut Writer<'_>) {
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
    w.nested("hash", |w| {
        w.maybe("md5", finds.hash_of(32));
        w.maybe("sha1", finds.hash_of(40));
        w.maybe("sha256", file.sha256.as_deref().map(str::to_lowercase));
    });
}

/// Writes the address of the file, or the link that was clicked.
fn push_url(parts: &Parts<'_, '_>, file: &File<'_>, finds: &Finds, w: &mut Writer<'_>) {
    let url = match parts.record_type {
        Some(41) => parts.text(KnownMember::Url),
        Some(64) => finds.urls.first().map(|url| Cow::Borrowed(url.as_str())),
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
fn push_email(parts: &Parts<'_, '_>, mail: &Mail<'_>, w: &mut Writer<'_>) {
    w.maybe("message_id", mail.id.as_deref());
    w.maybe("local_id", mail.local_id.as_deref());
    w.maybe("subject", mail.subject.as_deref());
    w.nested("from", |w| w.texts("address", mail.from.iter()));
    w.nested("sender", |w| w.maybe("address", mail.sender.as_deref()));
    w.nested("to", |w| w.texts("address", mail.to.iter()));
    w.nested("cc", |w| w.texts("address", mail.cc.iter()));
    w.nested("bcc", |w| w.texts("address", mail.bcc.iter()));
    w.objects("attachments", |list| {
        if parts.is_type(&[28]) {
            json::elements(parts.event.get(KnownMember::AttachmentData).unwrap_or_default(), |attachment| {
                list.push(|w| {
                    w.nested("file", |w| {
                        w.maybe("name", inner(attachment, "FileName"));
                        w.maybe("extension", inner(attachment, "FileType"));
                        let hash = inner(attachment, "SHA256").map(|hash| hash.to_lowercase());
                        w.nested("hash", |w| w.maybe("sha256", hash));
                    });
                });
            });
        }
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

/// Writes the Microsoft policy or rule that caused an alert or a match.
fn push_rule(parts: &Parts<'_, '_>, finds: &Finds, w: &mut Writer<'_>) {
    if parts.is_type(&[40]) {
        w.maybe("id", parts.text(KnownMember::PolicyId));
        w.maybe("name", parts.text(KnownMember::Name));
        w.maybe("category", parts.text(KnownMember::Category));
        w.maybe("ruleset", parts.text(KnownMember::EntityType));
        w.maybe("description", parts.text(KnownMember::AlertEntityId));
        let mut links = Vec::new();
        json::elements(parts.event.get(KnownMember::AlertLinks).unwrap_or_default(), |link| {
            links.extend(inner(link, "AlertLinkHref"));
        });
        w.maybe("reference", links.first());
    } else {
        let rules = parts.facts.dlp_rules();
        if let Some(rule) = dlp::foremost(rules) {
            w.maybe("id", rule.id.as_deref());
            w.maybe("name", rule.name.as_deref());
            w.maybe("ruleset", rule.policy.as_deref());
        } else if parts.is_type(&[64, 98, 78, 113]) {
            let name = parts.text(KnownMember::AlertDisplayName).or_else(|| parts.text(KnownMember::InvestigationName));
            let name = name.or_else(|| finds.alert.as_deref().map(Cow::Borrowed));
            w.maybe("name", name.or_else(|| parts.text(KnownMember::Name)));
        }
    }
}

/// Writes the techniques of the rules that matched, and the malware that was found.
fn push_threat(parts: &Parts<'_, '_>, finds: &Finds, w: &mut Writer<'_>) {
    let techniques = || parts.assessment.matches.iter().filter_map(|found| found.rule().technique.as_deref());
    if techniques().next().is_some() {
        w.text("framework", "MITRE ATT&CK");
        w.nested("technique", |w| w.texts("id", techniques()));
    }
    w.nested("software", |w| w.maybe("name", finds.malware.first()));
}

/// Writes the users, hosts, addresses and hashes by which an analyst joins records.
fn push_related(
    parts: &Parts<'_, '_>,
    (person, target): (&Actor<'_>, &Target<'_>),
    (file, mail): (&File<'_>, &Mail<'_>),
    finds: &Finds,
    w: &mut Writer<'_>,
) {
    let server = server_of(parts).and_then(|(_, ip)| ip).map(|ip| ip.to_string());
    w.texts("ip", parts.addresses().into_iter().chain(server).chain(finds.ips.iter().cloned()));
    let email = target.email();
    let names = [
        person.email.as_deref(),
        person.name.as_deref(),
        email.as_deref(),
        target.principal.as_deref(),
        email.as_deref().and_then(|name| Some(name.split_once('@')?.0)),
        target.name.as_deref().filter(|_| matches!(target.kind.as_deref(), Some("User" | "Member" | "Guest"))),
        file.owner.as_deref(),
        mail.from.as_deref(),
        mail.sender.as_deref(),
    ];
    let mut related: Vec<Cow<'_, str>> = names.into_iter().flatten().map(Cow::Borrowed).collect();
    related.extend(parts.text(KnownMember::MailboxOwnerUPN));
    related.extend(parts.people_of_alert().into_iter().map(Cow::Owned));
    related.extend([&mail.to, &mail.cc, &mail.bcc].into_iter().flatten().map(|one| Cow::Borrowed(&**one)));
    related.extend(finds.people.iter().chain(&finds.senders).map(|one| Cow::Borrowed(one.as_str())));
    json::elements(parts.event.get(KnownMember::Members).unwrap_or_default(), |member| {
        related.extend(inner(member, "UPN"));
    });
    json::elements(parts.event.get(KnownMember::RecipientList).unwrap_or_default(), |recipient| {
        related.extend(json::scalar(recipient).filter(|text| is_address(text)));
    });
    w.texts("user", related);
    let own = file.sha256.as_deref().map(str::to_lowercase);
    w.texts("hash", own.into_iter().chain(finds.hashes.iter().cloned()));
}

/// The server that wrote the record, `NAME (address)`: its name, and its address unless the text in parentheses is a
/// build number.
fn server_of(parts: &Parts<'_, '_>) -> Option<(String, Option<std::net::IpAddr>)> {
    let text = parts.text(KnownMember::OriginatingServer)?;
    let text = text.trim();
    let Some((name, rest)) = text.split_once('(') else { return Some((text.to_owned(), None)) };
    let inside = rest.trim_end().trim_end_matches(')').trim();
    // Exchange Online's builds are `15.20.…`, of which some look like an address.
    let ip = inside.parse().ok().filter(|_| !inside.starts_with("15.20.") && !inside.starts_with("15.01."));
    match ip {
        Some(_) => Some((name.trim().to_owned(), ip)),
        None => Some((text.to_owned(), None)),
    }
}

fn push_server(parts: &Parts<'_, '_>, w: &mut Writer<'_>) {
    if let Some((name, ip)) = server_of(parts) {
        w.text("address", name);
        w.maybe("ip", ip.map(|ip| ip.to_string()));
    }
}

/// The device.
fn push_device(device: &Device<'_>, w: &mut Writer<'_>) {
    w.nested("device", |w| w.maybe("id", device.id.as_deref()));
    w.nested("host", |w| {
        w.maybe("name", device.name.as_deref());
        w.nested("os", |w| w.maybe("full", device.os.as_deref()));
    });
}

/// Why it failed.
fn push_error(parts: &Parts<'_, '_>, w: &mut Writer<'_>) {
    let error = &parts.facts.involved().error;
    w.nested("error", |w| {
        w.maybe("code", error.code.as_deref());
        w.maybe("message", error.message.as_deref());
    });
}

/// An AI application: who was asked, in which conversation.
fn push_ai(parts: &Parts<'_, '_>, w: &mut Writer<'_>) {
    let Some(ai) = parts.facts.ai() else { return };
    w.nested("gen_ai", |w| {
        w.nested("agent", |w| {
            w.maybe("id", ai.agent_id.as_deref().or(ai.identity.as_deref()));
            w.maybe("name", ai.agent_name.as_deref().or(ai.host.as_deref()));
        });
        w.nested("conversation", |w| w.maybe("id", ai.thread.as_deref()));
        w.nested("provider", |w| w.maybe("name", ai.provider()));
        w.nested("response", |w| w.maybe("model", ai.model()));
        if super::ai::CONVERSATIONS.iter().any(|kin| parts.is_type(&[*kin])) {
            w.nested("operation", |w| w.text("name", "chat"));
        }
    });
}

/// Appends a record that the program itself made: in the data set of the events, so that it is indexed with them, and
/// with the `event.kind` for a pipeline error.
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

/// Scheme, host and path of an absolute URL. Not decoded: the record has the text as received.
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

fn push_event(
    parts: &Parts<'_, '_>,
    origin: &Origin<'_>,
    original: Option<&str>,
    profile: EcsProfile,
    w: &mut Writer<'_>,
) {
    let theirs = profile == EcsProfile::ElasticO365;
    w.nested("event", |w| {
        w.text("kind", if is_alert(parts) { "alert" } else { "event" });
        let (categories, types) = classify(parts);
        w.texts("category", theirs.then_some(&"web").into_iter().chain(categories));
        w.texts("type", types);
        w.maybe("action", parts.text(KnownMember::Operation));
        w.maybe("id", parts.text(KnownMember::Id));
        w.maybe("provider", parts.text(KnownMember::Workload));
        if let Some(record_type) = parts.facts.number_of_type() {
            match record_types::info(record_type) {
                // Elastic's integration still uses the old name of Viva Engage.
                Some(_) if record_type == 22 => w.text("code", "Yammer"),
                Some(info) => w.text("code", info.name),
                None => w.text("code", record_type.to_string()),
            }
        }
        w.text("dataset", if theirs { o365::DATASET } else { "m365.audit" });
        w.text("module", if theirs { o365::MODULE } else { "m365" });
        // Elastic's integration records success unless the event says otherwise, and its rules depend on this.
        let outcome = parts.facts.outcome().or(if theirs { Some(EventOutcome::Success) } else { None });
        w.maybe("outcome", outcome.map(EventOutcome::as_str));
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

/// Writes the members that have no field in the schema: a closed set, each with one type.
fn push_own(
    parts: &Parts<'_, '_>,
    origin: &Origin<'_>,
    (masked, event_time): (bool, &Option<time::EventTime<'_>>),
    device: &Device<'_>,
    w: &mut Writer<'_>,
) {
    w.text("category", parts.category.as_str());
    w.text("severity", parts.assessment.severity().as_str());
    parts.push_dlp(w);
    if let Some(record_type) = parts.facts.number_of_type() {
        w.number("record_type", record_type);
    }
    w.maybe("content_type", origin.content_type.map(|content_type| content_type.as_str()));
    w.maybe("content_id", origin.content_id);
    w.maybe("origin", origin.source);
    if event_time.is_none() && origin.content_created.is_some() {
        w.flag("timestamp_inferred", true);
    }
    if masked {
        w.flag("raw_masked", true);
    }
    w.maybe("user_type", parts.actor.kind.as_deref());
    w.maybe("user_key", parts.text(KnownMember::UserKey));
    w.maybe("object_id", parts.text(KnownMember::ObjectId));
    w.maybe("result_status", parts.text(KnownMember::ResultStatus));
    w.maybe("logon_error", parts.text(KnownMember::LogonError));
    if let Some(number) = parts.event.integer(KnownMember::ErrorNumber) {
        w.number("error_number", number);
    }
    let involved = parts.facts.involved();
    w.maybe("application_id", involved.application.id.as_deref());
    w.maybe("application_name", involved.application.name.as_deref());
    w.maybe("correlation_id", correlation(parts));
    let session =
        parts.text(KnownMember::SessionId).or_else(|| parts.inner(KnownMember::AppAccessContext, "AADSessionId"));
    w.maybe("session_id", session.or_else(|| device.session.clone()));
    w.maybe("token_id", parts.inner(KnownMember::AppAccessContext, "UniqueTokenId"));
    w.texts("privileges", involved.privileges.iter().map(|text| super::cut(text, 1024)));
    w.objects("resources", |list| {
        for resource in &involved.resources {
            list.push(|w| {
                w.maybe("name", resource.name.as_deref());
                w.maybe("type", resource.kind.as_deref());
                w.maybe("label", resource.label.as_deref());
            });
        }
    });
    w.nested("device", |w| {
        for (name, flag) in [("compliant", device.compliant), ("managed", device.managed)] {
            if let Some(flag) = flag {
                w.flag(name, flag);
            }
        }
    });
    push_dlp_match(parts, w);
    push_mail_access(parts, w);
    push_ai_own(parts, w);
    w.maybe("alert_id", parts.text(KnownMember::AlertId));
    w.maybe("incident_id", parts.text(KnownMember::IncidentId));
    push_pairs("parameters", parts.facts.parameters(), w);
    push_pairs("extended_properties", parts.facts.extended(), w);
    push_modified(parts, w);
}

/// Writes the details of a DLP match beside its policy and rule: names and numbers, never the values found.
fn push_dlp_match(parts: &Parts<'_, '_>, w: &mut Writer<'_>) {
    let rules = parts.facts.dlp_rules();
    if rules.is_empty() && !parts.is_dlp() {
        return;
    }
    w.nested("dlp_match", |w| {
        w.texts("policies", rules.iter().filter_map(|rule| rule.policy.as_deref()));
        w.texts("rules", rules.iter().filter_map(|rule| rule.name.as_deref()));
        w.texts("severity", rules.iter().filter_map(|rule| rule.severity.as_deref()));
        w.texts("modes", rules.iter().filter_map(|rule| rule.mode.as_deref()));
        w.texts("actions", rules.iter().flat_map(|rule| rule.actions.iter()));
        if let Some(mode) = dlp::enforcement(parts.event) {
            w.number("enforcement_mode", mode);
        }
        w.objects("sensitive_types", |list| {
            for found in rules.iter().flat_map(|rule| &rule.found) {
                list.push(|w| {
                    w.text("name", &found.name);
                    for (name, number) in [("count", found.count), ("confidence", found.confidence)] {
                        if let Some(number) = number {
                            w.number(name, number);
                        }
                    }
                });
            }
        });
        w.maybe("target_domain", parts.named("TargetDomain"));
        w.maybe("application", parts.text(KnownMember::Application));
    });
}

/// Writes how the mail was read.
fn push_mail_access(parts: &Parts<'_, '_>, w: &mut Writer<'_>) {
    if !parts.is_type(&[2, 50]) || parts.operation != "mailitemsaccessed" {
        return;
    }
    let mut found = [None, None];
    json::elements(parts.event.get(KnownMember::OperationProperties).unwrap_or_default(), |pair| {
        let name = inner(pair, "Name").unwrap_or_default();
        for (place, wanted) in ["MailAccessType", "IsThrottled"].into_iter().enumerate() {
            if name.eq_ignore_ascii_case(wanted)
                && let Some(slot) = found.get_mut(place)
            {
                *slot = inner(pair, "Value");
            }
        }
    });
    let [kind, throttled] = found;
    w.maybe("mail_access_type", kind);
    if let Some(throttled) = throttled {
        w.flag("is_throttled", crate::severity::is_true(&throttled));
    }
}

/// Writes the tools that an AI application used and the signals that fired.
fn push_ai_own(parts: &Parts<'_, '_>, w: &mut Writer<'_>) {
    let Some(ai) = parts.facts.ai() else { return };
    w.nested("ai", |w| {
        w.maybe("host", ai.host.as_deref());
        w.texts("tools", ai.tools());
        w.texts("contexts", ai.contexts.iter().take(20).map(|context| super::cut(context, 1024)));
        let signals =
            [("jailbreak", ai.jailbreak), ("xpia", ai.xpia), ("blocked", ai.blocked), ("labelled", ai.labelled)];
        w.texts("signals", signals.into_iter().filter(|(_, fired)| *fired).map(|(name, _)| name));
    });
}

fn push_user(parts: &Parts<'_, '_>, actor: &Actor<'_>, target: &Target<'_>, w: &mut Writer<'_>) {
    w.nested("user", |w| {
        w.maybe("id", actor.id.as_deref());
        let split = actor.id.as_deref().filter(|id| is_address(id)).and_then(|id| id.split_once('@'));
        // An actor without an address is named by the id: services, applications, names from old systems.
        const NOBODY: [&str; 3] = ["Not Available", "Unknown", "NOT-FOUND"];
        let id = actor.id.as_deref().filter(|id| !NOBODY.iter().any(|nobody| id.trim().eq_ignore_ascii_case(nobody)));
        w.maybe("name", split.map(|(name, _)| name).or(actor.name.as_deref()).or(id));
        let claimed = actor.email.as_deref().and_then(|email| email.split_once('@'));
        w.maybe("domain", split.or(claimed).map(|(_, domain)| domain));
        w.maybe("email", actor.email.as_deref());
        w.maybe("full_name", parts.text(KnownMember::LogonUserDisplayName));
        w.nested("target", |w| {
            push_target_user(parts, actor, target, w);
        });
        if parts.operation.contains("member to role") || parts.operation.contains("member from role") {
            w.texts("roles", parts.facts.involved().privileges.iter());
        }
    });
}

/// Writes the user that the operation targeted: not a group (that is `group`), and the owner of a mailbox only if
/// somebody else acted.
fn push_target_user(parts: &Parts<'_, '_>, actor: &Actor<'_>, target: &Target<'_>, w: &mut Writer<'_>) {
    let kind = target.kind.as_deref().unwrap_or_default();
    if matches!(kind, "Group" | "SecurityGroup" | "SharePointGroup") || parts.is_type(&[40]) {
        return;
    }
    let is_own = actor.id.as_deref().zip(target.principal.as_deref()).is_some_and(|(a, b)| a.eq_ignore_ascii_case(b));
    if kind == "Mailbox" && is_own {
        return;
    }
    let email = target.email();
    let split = email.as_deref().and_then(|email| email.split_once('@'));
    if parts.is_type(&[8]) {
        w.maybe("id", target.id.as_deref().or(target.label()));
    } else {
        w.maybe("id", target.id.as_deref());
    }
    w.maybe("name", split.map(|(name, _)| name).or(target.name.as_deref()).or(target.principal.as_deref()));
    w.maybe("full_name", target.name.as_deref().filter(|_| email.is_some()));
    w.maybe("domain", split.map(|(_, domain)| domain));
    w.maybe("email", email.as_deref());
}

fn push_client(parts: &Parts<'_, '_>, device: &Device<'_>, w: &mut Writer<'_>) {
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
    w.nested("user_agent", |w| {
        w.maybe("original", parts.facts.agent());
        w.maybe("name", device.browser.as_deref());
        if device.browser.is_some() {
            w.nested("os", |w| w.maybe("full", device.os.as_deref()));
        }
    });
}
