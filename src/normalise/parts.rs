//! The parts of an event that both foreign formats (ECS and OCSF) use: targets, files, mail, DLP matches.

use std::borrow::Cow;

use super::actor::Actor;
use super::category::{Category, DLP_RECORD_TYPES};
use super::dlp_link::{DlpNote, push_note};
use super::event::{Event, KnownMember};
use super::facts::EventFacts;
use super::involved::Target;
use super::json;
use super::parameters::Pairs;
use super::reach::{inner, is_address};
use super::writer::Writer;
use crate::severity::{Assessment, Modification};

/// An event with its derived parts, for a format to write.
pub(crate) struct Parts<'d, 'a> {
    /// The event, already masked.
    pub event: &'d Event<'a>,
    /// Its facts.
    pub facts: &'d EventFacts<'d, 'a>,
    /// What the rules make of it.
    pub assessment: &'d Assessment<'d>,
    /// Why.
    pub reason: Option<&'d str>,
    /// Who acted.
    pub actor: &'d Actor<'a>,
    /// The record type that it resembles; the number received is `facts.number_of_type()`.
    pub record_type: Option<i64>,
    /// The folded operation.
    pub operation: &'d str,
    /// The area.
    pub category: Category,
    /// Why an event that a rule would have dropped is shipped.
    pub note: Option<DlpNote<'d>>,
}

impl<'d, 'a> Parts<'d, 'a> {
    /// Derives the parts.
    pub fn of(
        event: &'d Event<'a>,
        facts: &'d EventFacts<'d, 'a>,
        assessment: &'d Assessment<'d>,
        category: Category,
        reason: Option<&'d str>,
    ) -> Self {
        let record_type = facts.kin();
        let operation = facts.folded_operation();
        Parts { event, facts, assessment, reason, actor: facts.actor(), record_type, operation, category, note: None }
    }

    /// Writes `dlp`: why an event that a rule would have dropped is shipped.
    pub fn push_dlp(&self, w: &mut Writer<'_>) {
        if let Some(note) = self.note {
            w.value("dlp", |out| {
                out.push(b'{');
                push_note(note, out);
                out.push(b'}');
            });
        }
    }

    /// Whether the record type is one of these.
    pub fn is_type(&self, types: &[i64]) -> bool {
        self.record_type.is_some_and(|record_type| types.contains(&record_type))
    }

    /// Whether the record is one of data loss prevention.
    pub fn is_dlp(&self) -> bool {
        self.is_type(DLP_RECORD_TYPES)
    }

    /// The text of a member of the event's.
    pub fn text(&self, member: KnownMember) -> Option<Cow<'a, str>> {
        self.event.text_of(member)
    }

    /// The text of a member of any name.
    pub fn named(&self, name: &str) -> Option<Cow<'a, str>> {
        json::scalar(self.event.find(name)?).filter(|text| !text.trim().is_empty())
    }

    /// The text of a member of a member.
    pub fn inner(&self, member: KnownMember, name: &str) -> Option<Cow<'a, str>> {
        inner(self.event.get(member)?, name)
    }

    /// The metadata of the file, message or device in which DLP found the match.
    pub fn dlp_metadata(&self) -> Option<&'a str> {
        let found = [KnownMember::SharePointMetaData, KnownMember::ExchangeMetaData, KnownMember::EndpointMetaData];
        found.iter().find_map(|member| self.event.get(*member))
    }

    /// The new value of a modified property, without the list around it.
    pub fn modified(&self, name: &str) -> Option<String> {
        let entries = self.facts.modified().iter().filter(|entry| entry.name.eq_ignore_ascii_case(name));
        let mut values = entries.map(|entry| {
            let new = entry.now().trim().trim_start_matches('[').trim_end_matches(']').trim();
            new.trim_matches('"').trim().to_owned()
        });
        values.find(|new| !new.is_empty())
    }

    /// The target of the operation.
    pub fn target(&self) -> &'d Target<'a> {
        &self.facts.involved().target
    }

    /// The person whom an alert concerns, if the record names a service as its user: the user who is its entity, else
    /// the actor of the cause, else the recipient of the message.
    pub fn person_of_alert(&self) -> Option<Cow<'a, str>> {
        if !self.is_type(&[40]) || self.actor.email.is_some() {
            return None;
        }
        let mut entity = None;
        if self.text(KnownMember::EntityType).is_some_and(|kind| kind.trim().eq_ignore_ascii_case("User")) {
            entity = self.text(KnownMember::AlertEntityId);
        }
        // A display name is less precise than an address.
        if entity.as_deref().is_some_and(is_address) {
            return entity;
        }
        let Some(data) = self.alert_data() else { return entity };
        // Several are joined: the first is used here, and `related.user` has all.
        let person = ["f3u", "suid", "trc"].iter().find_map(|name| {
            let text = inner(&data, name)?;
            let first = text.split([',', ';']).next().map(str::trim).filter(|first| is_address(first))?;
            Some(Cow::Owned(first.to_owned()))
        });
        person.or(entity)
    }

    /// An alert's data on its cause: JSON in a string, in newer records an object.
    fn alert_data(&self) -> Option<Cow<'a, str>> {
        let token = self.event.get(KnownMember::Data)?;
        match json::scalar(token) {
            Some(text) => text.trim_start().starts_with('{').then_some(text),
            None => token.starts_with('{').then_some(Cow::Borrowed(token)),
        }
    }

    /// The addresses of people in an alert's data on its cause.
    pub fn people_of_alert(&self) -> Vec<String> {
        let Some(data) = self.alert_data().filter(|_| self.is_type(&[40])) else { return Vec::new() };
        let texts = ["f3u", "suid", "trc", "tsd"].iter().filter_map(|name| inner(&data, name));
        let mut people = Vec::new();
        for text in texts {
            people.extend(text.split([',', ';']).map(str::trim).filter(|one| is_address(one)).map(str::to_owned));
        }
        people
    }

    /// Every address of the record, also those that are not the actor's: the server that sent a message, the object of
    /// an alert, the extended properties.
    pub fn addresses(&self) -> Vec<String> {
        const OTHERS: [KnownMember; 1] = [KnownMember::SenderIp];
        let members = super::ADDRESS_MEMBERS.iter().chain(&OTHERS);
        let mut found: Vec<String> = members
            .filter_map(|member| self.text(*member))
            .flat_map(|text| super::address::parse_all(&text))
            .map(|address| address.ip.to_string())
            .collect();
        if let Some(data) = self.alert_data() {
            found.extend(inner(&data, "sip").and_then(|text| super::address::parse(&text)).map(|at| at.ip.to_string()));
        }
        self.facts.extended().any(&|_| true, &mut |value| {
            // Most values are words and JSON texts; only a value that is exactly an address counts.
            found.extend(value.trim().parse::<std::net::IpAddr>().ok().map(|ip| ip.to_string()));
            false
        });
        found
    }

    /// The name of the actor's machine, if no address is known: the raw text, the name, the port.
    pub fn source_host(&self) -> Option<(Cow<'a, str>, String, Option<u16>)> {
        super::ADDRESS_MEMBERS.iter().filter_map(|member| self.text(*member)).find_map(|text| {
            let (name, port) = super::address::host(&text).map(|(name, port)| (name.to_owned(), port))?;
            Some((text, name, port))
        })
    }

    /// The raw text of the address that was chosen.
    pub fn address_text(&self) -> Option<Cow<'a, str>> {
        let won = self.facts.source_address()?;
        super::ADDRESS_MEMBERS
            .iter()
            .filter_map(|member| self.text(*member))
            .find(|text| super::address::parse(text).is_some_and(|found| found.ip == won.ip))
    }

    /// The message the record is about.
    pub fn mail(&self) -> Mail<'a> {
        let list = |token: Option<&'a str>| {
            let mut all = Vec::new();
            match token {
                Some(token) if token.starts_with('[') => {
                    json::elements(token, |element| all.extend(json::scalar(element)));
                }
                Some(token) => all.extend(json::scalar(token).filter(|text| !text.trim().is_empty())),
                None => {}
            }
            all
        };
        match self.record_type {
            Some(2) => {
                let Some(item) = self.event.get(KnownMember::Item) else { return Mail::default() };
                Mail {
                    id: inner(item, "InternetMessageId"),
                    subject: inner(item, "Subject"),
                    local_id: inner(item, "Id"),
                    attachments: inner(item, "Attachments"),
                    ..Mail::default()
                }
            }
            Some(28) => Mail {
                id: self.text(KnownMember::InternetMessageId),
                subject: self.text(KnownMember::Subject),
                from: self.text(KnownMember::P2Sender),
                sender: self.text(KnownMember::P1Sender),
                to: list(self.event.get(KnownMember::Recipients)),
                local_id: self.text(KnownMember::NetworkMessageId),
                ..Mail::default()
            },
            Some(13) => {
                let Some(mail) = self.event.get(KnownMember::ExchangeMetaData) else { return Mail::default() };
                Mail {
                    id: inner(mail, "MessageID"),
                    subject: inner(mail, "Subject"),
                    from: inner(mail, "From"),
                    to: list(json::get(mail, "To")),
                    cc: list(json::get(mail, "CC")),
                    bcc: list(json::get(mail, "BCC")),
                    ..Mail::default()
                }
            }
            Some(40) => {
                let Some(data) = self.alert_data() else { return Mail::default() };
                let part = |name: &str| inner(&data, name).map(|text| Cow::Owned(text.into_owned()));
                let to = part("trc").map(|text: Cow<'_, str>| {
                    text.split([',', ';'])
                        .map(str::trim)
                        .filter(|to| !to.is_empty())
                        .map(|to| Cow::Owned(to.to_owned()))
                        .collect()
                });
                Mail {
                    id: part("imsgid"),
                    subject: part("ms"),
                    from: part("tsd"),
                    to: to.unwrap_or_default(),
                    ..Mail::default()
                }
            }
            _ => Mail::default(),
        }
    }

    /// The file the record is about.
    pub fn file(&self) -> File<'a> {
        if self.is_type(&[11, 63]) {
            let Some(data) = self.dlp_metadata() else { return File::default() };
            let url = inner(data, "FilePathUrl");
            let name = inner(data, "FileName").or_else(|| {
                url.as_ref().and_then(|url| url.rsplit('/').next().map(|name| Cow::Owned(name.to_owned())))
            });
            let extension = inner(data, "FileExtension").or_else(|| {
                let (_, extension) = name.as_ref()?.rsplit_once('.')?;
                Some(Cow::Owned(extension.to_owned()))
            });
            return File {
                name,
                extension,
                directory: None,
                id: inner(data, "UniqueID").or_else(|| inner(data, "UniqueId")),
                owner: inner(data, "FileOwner"),
                size: json::get(data, "FileSize").and_then(json::integer),
                url: url.or_else(|| self.text(KnownMember::ObjectId).filter(|text| text.contains("://"))),
                sha256: inner(data, "Sha256"),
                changed: inner(data, "LastModifiedTime").or_else(|| inner(data, "ItemLastModifiedTime")),
                folder: false,
            };
        }
        if !self.is_type(&[4, 6, 14, 36]) {
            return File::default();
        }
        let folder =
            self.text(KnownMember::ItemType).is_some_and(|kind| kind.eq_ignore_ascii_case("Folder") || kind == "5");
        File {
            name: self.text(KnownMember::SourceFileName),
            extension: self.text(KnownMember::SourceFileExtension),
            directory: self.text(KnownMember::SourceRelativeUrl),
            id: self.text(KnownMember::ListItemUniqueId),
            owner: None,
            size: self.event.get(KnownMember::FileSizeBytes).and_then(json::integer),
            url: self.text(KnownMember::ObjectId).filter(|text| text.contains("://")),
            sha256: None,
            changed: None,
            folder,
        }
    }
}

/// Longest derived copy of a value of a pair, in bytes; some are over 100 KB, and the original is kept whole.
const COPY_BYTES_MAX: usize = 4096;

/// Writes pairs as a list of `{name, value}`: as keys their number would be unbounded, and they would have many types.
pub(crate) fn push_pairs(key: &str, pairs: &Pairs<'_>, w: &mut Writer<'_>) {
    w.objects(key, |list| {
        pairs.each(&mut |name, value| {
            list.push(|w| {
                w.text("name", name);
                w.at_hand("value", value, COPY_BYTES_MAX);
            });
        });
    });
}

/// Writes modified properties as a list of `{name, old, new}`.
pub(crate) fn push_modified(parts: &Parts<'_, '_>, w: &mut Writer<'_>) {
    w.objects("modified_properties", |list| {
        for entry in parts.facts.modified() {
            list.push(|w| {
                w.text("name", &entry.name);
                w.at_hand("old", entry.old_value(), COPY_BYTES_MAX);
                w.at_hand("new", entry.new_value(), COPY_BYTES_MAX);
            });
        }
    });
}

/// A message.
#[derive(Debug, Default)]
pub(crate) struct Mail<'a> {
    pub id: Option<Cow<'a, str>>,
    pub subject: Option<Cow<'a, str>>,
    pub from: Option<Cow<'a, str>>,
    pub sender: Option<Cow<'a, str>>,
    pub to: Vec<Cow<'a, str>>,
    pub cc: Vec<Cow<'a, str>>,
    pub bcc: Vec<Cow<'a, str>>,
    pub local_id: Option<Cow<'a, str>>,
    /// One text: `a.png (8192b); b (v2)(1.7).docx (73728b)`.
    pub attachments: Option<Cow<'a, str>>,
}

impl Mail<'_> {
    /// The names and sizes of attachments. The size is in the last brackets.
    pub fn attached(&self) -> Vec<(&str, Option<i64>)> {
        let Some(text) = self.attachments.as_deref() else { return Vec::new() };
        let one = |part: &'_ str| -> Option<(usize, i64)> {
            let open = part.rfind(" (")?;
            let size = part.get(open + 2..)?.strip_suffix("b)")?.parse().ok()?;
            Some((open, size))
        };
        let parts = text.split("; ").map(str::trim).filter(|part| !part.is_empty());
        parts
            .map(|part| match one(part) {
                Some((open, size)) => (part.get(..open).unwrap_or(part), Some(size)),
                None => (part, None),
            })
            .collect()
    }
}

/// A file.
#[derive(Debug, Default)]
pub(crate) struct File<'a> {
    pub name: Option<Cow<'a, str>>,
    pub extension: Option<Cow<'a, str>>,
    pub directory: Option<Cow<'a, str>>,
    /// The item's id, the same in records of files and of data loss prevention.
    pub id: Option<Cow<'a, str>>,
    pub owner: Option<Cow<'a, str>>,
    pub size: Option<i64>,
    pub url: Option<Cow<'a, str>>,
    pub sha256: Option<Cow<'a, str>>,
    pub changed: Option<Cow<'a, str>>,
    pub folder: bool,
}

impl File<'_> {
    /// The folder and the name.
    pub fn path(&self) -> Option<String> {
        match (self.directory.as_deref(), self.name.as_deref()) {
            (Some(directory), Some(name)) => Some(format!("{directory}/{name}")),
            (None, Some(name)) => Some(name.to_owned()),
            (Some(directory), None) => Some(directory.to_owned()),
            (None, None) => None,
        }
    }
}

/// The id that all records of one action share.
pub(crate) fn correlation<'a>(parts: &Parts<'_, 'a>) -> Option<Cow<'a, str>> {
    parts
        .text(KnownMember::InterSystemsId)
        .or_else(|| parts.text(KnownMember::CorrelationId))
        .or_else(|| parts.inner(KnownMember::AppAccessContext, "CorrelationId"))
}
