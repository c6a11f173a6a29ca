//! The content of a record of Copilot or another AI application: the agent, the host application, the resources it read
//! and the signals that fired. One pass over `CopilotEventData` extracts it; rules, facts and formats use the result.
//!
//! After "CopilotInteraction" and "ConnectedAIAppInteraction, AIAppInteraction" of Microsoft's "Office 365 Management
//! Activity API schema" and "Audit logs for Copilot and AI applications" of Purview.

use std::borrow::Cow;

use super::event::{Event, KnownMember};
use super::json;
use super::reach::{any_at, inner};
use crate::severity::is_true;

/// Record types of conversations with an AI application.
pub(crate) const CONVERSATIONS: &[i64] = &[261, 284, 328, 334, 363, 373, 383];
/// Record types for the creation and sharing of plug-ins, workspaces, prompt books and settings.
pub(crate) const MAKING: std::ops::RangeInclusive<i64> = 310..=325;

/// The most resources of a conversation that are listed; the original event has all of them.
const READ_MAX: usize = 20;

/// A record of an AI application.
#[derive(Debug, Default)]
pub(crate) struct Ai<'a> {
    /// `AppHost`: the host application, such as `Word`, `Teams`, `BizChat`.
    pub host: Option<Cow<'a, str>>,
    /// `AppIdentity`: the AI application, such as `Copilot.Studio.…`.
    pub identity: Option<Cow<'a, str>>,
    /// The agent's id.
    pub agent_id: Option<Cow<'a, str>>,
    /// The agent's name.
    pub agent_name: Option<Cow<'a, str>>,
    /// `ThreadId`: the conversation.
    pub thread: Option<Cow<'a, str>>,
    /// The tokens that only some formats show: models, messages, plug-ins.
    models: &'a str,
    messages: &'a str,
    plugins: &'a str,
    /// The contexts it was given, by name or id.
    pub contexts: Vec<Cow<'a, str>>,
    /// What was read.
    pub read: Vec<AiRead<'a>>,
    /// Whether a prompt was a jailbreak attempt.
    pub jailbreak: bool,
    /// Whether a resource contained a hidden instruction (cross-prompt injection).
    pub xpia: bool,
    /// Whether access to a resource was blocked.
    pub blocked: bool,
    /// Whether a resource it read has a sensitivity label.
    pub labelled: bool,
}

/// A resource that the application read.
#[derive(Debug, Default)]
pub(crate) struct AiRead<'a> {
    /// Its name, address or id.
    pub name: Option<Cow<'a, str>>,
    /// Such as `docx`.
    pub kind: Option<Cow<'a, str>>,
    /// The id of its sensitivity label.
    pub label: Option<Cow<'a, str>>,
}

/// The AI data of a record; `None` if it has none.
pub(crate) fn of<'a>(event: &Event<'a>, kin: Option<i64>) -> Option<Ai<'a>> {
    let token = event.get(KnownMember::CopilotEventData);
    let is_kin = kin.is_some_and(|kin| CONVERSATIONS.contains(&kin) || MAKING.contains(&kin));
    if token.is_none() && !is_kin {
        return None;
    }
    let mut ai = Ai {
        agent_id: event.text_of(KnownMember::AgentId),
        agent_name: event.text_of(KnownMember::AgentName),
        identity: event.text_of(KnownMember::AppIdentity),
        host: event.text_of(KnownMember::AppHost),
        ..Ai::default()
    };
    if let Some(token) = token {
        ai.walk(token);
    }
    Some(ai)
}

/// The text of a scalar that is not empty.
fn text(token: &str) -> Option<Cow<'_, str>> {
    json::scalar(token).filter(|text| !text.trim().is_empty())
}

fn is_on(token: &str) -> bool {
    json::scalar(token).is_some_and(|text| is_true(&text))
}

/// Whether a key is a known name, ignoring case.
fn is(key: &str, name: &str) -> bool {
    key.eq_ignore_ascii_case(name)
}

impl<'a> Ai<'a> {
    fn walk(&mut self, token: &'a str) {
        // The data may be an object, or JSON in a string. Of a string with escapes only the signals are read.
        if token.starts_with('"') {
            self.signals_of_text(&json::scalar(token).unwrap_or_default());
            return;
        }
        json::members(token, |key, value| match &*key {
            key if is(key, "AppHost") => self.host = text(value).or_else(|| self.host.take()),
            key if is(key, "AppIdentity") => self.identity = text(value).or_else(|| self.identity.take()),
            key if is(key, "AgentId") => self.agent_id = text(value).or_else(|| self.agent_id.take()),
            key if is(key, "AgentName") => self.agent_name = text(value).or_else(|| self.agent_name.take()),
            key if is(key, "ThreadId") => self.thread = text(value),
            key if is(key, "Messages") => {
                self.messages = value;
                self.signals_of_messages(value);
            }
            key if is(key, "AccessedResources") => json::elements(value, |resource| self.resource(resource)),
            key if is(key, "ModelTransparencyDetails") => self.models = value,
            key if is(key, "AISystemPlugin") => self.plugins = value,
            key if is(key, "Contexts") && value.len() > 2 => {
                json::elements(value, |context| self.contexts.extend(inner(context, "Id")));
            }
            _ => {}
        });
    }

    /// Few messages have a signal, and the names of the signals share a part.
    fn signals_of_messages(&mut self, token: &str) {
        if memchr::memmem::find(token.as_bytes(), b"etected").is_none() {
            return;
        }
        json::objects(
            token,
            |_, key, value| {
                if is(key, "JailbreakDetected") {
                    self.jailbreak |= is_on(value);
                } else if is(key, "XPIADetected") {
                    self.xpia |= is_on(value);
                }
            },
            |_, _| {},
        );
    }

    /// The model's name.
    pub fn model(&self) -> Option<Cow<'a, str>> {
        self.first_of(self.models, "ModelName")
    }

    /// The model's provider, where the record names one.
    pub fn provider(&self) -> Option<Cow<'a, str>> {
        self.first_of(self.models, "ModelProviderName")
    }

    fn first_of(&self, list: &'a str, name: &str) -> Option<Cow<'a, str>> {
        let mut first = None;
        json::elements(list, |one| first = first.take().or_else(|| inner(one, name)));
        first
    }

    /// Plug-ins and other tools that it used.
    pub fn tools(&self) -> Vec<Cow<'a, str>> {
        let mut tools = Vec::new();
        json::elements(self.plugins, |tool| tools.extend(inner(tool, "Id").or_else(|| inner(tool, "Name"))));
        tools
    }

    /// The id of the prompt, else of the first message.
    pub fn message(&self) -> Option<Cow<'a, str>> {
        let (mut first, mut prompt) = (None, None);
        json::elements(self.messages, |message| {
            let id = inner(message, "Id");
            if prompt.is_none() && json::get(message, "isPrompt").is_some_and(is_on) {
                prompt = id;
            } else if first.is_none() {
                first = id;
            }
        });
        prompt.or(first)
    }

    fn resource(&mut self, token: &'a str) {
        let mut read = AiRead::default();
        let (mut id, mut site) = (None, None);
        json::members(token, |key, value| match &*key {
            key if is(key, "Name") => read.name = text(value),
            key if is(key, "Id") => id = text(value),
            key if is(key, "SiteUrl") => site = text(value),
            key if is(key, "Type") => read.kind = text(value),
            key if is(key, "SensitivityLabelId") => {
                read.label = text(value);
                self.labelled |= read.label.is_some();
            }
            key if is(key, "XPIADetected") => self.xpia |= is_on(value),
            key if is(key, "Status") => {
                let status = text(value).unwrap_or_default().to_ascii_lowercase();
                self.blocked |= ["fail", "block", "denied"].iter().any(|word| status.contains(word));
            }
            _ => {}
        });
        read.name = read.name.or(site).or(id);
        if self.read.len() < READ_MAX && (read.name.is_some() || read.label.is_some()) {
            self.read.push(read);
        }
    }

    /// Reads the signals from data that is JSON in a string.
    fn signals_of_text(&mut self, text: &str) {
        let any = |path: &str| {
            let mut found = false;
            any_at(text.trim(), path, &mut |value| {
                found |= is_true(value);
                false
            });
            found
        };
        self.jailbreak = any("Messages.JailbreakDetected");
        self.xpia = any("AccessedResources.XPIADetected") || any("Messages.XPIADetected");
    }
}
