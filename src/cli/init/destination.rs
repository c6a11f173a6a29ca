//! Where records go: the sink of a first configuration.

use std::path::{Path, PathBuf};

use url::Url;

use super::{Dialogue, InitArgs, ended, exists, until_right, usage, yes};
use crate::cli::Failure;

/// The file beside the configuration that a receiver's token is written to.
const TOKEN_FILE: &str = "sink_token";
/// The topic where nobody names one.
const TOPIC: &str = "m365-audit";
/// Who signs in at Azure Event Hubs, whose password is the connection string.
const EVENT_HUBS_USER: &str = "$ConnectionString";

/// The types of sinks, by the value of `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum SinkType {
    /// A file that an agent tails
    File,
    /// Standard output, for trying out
    Stdout,
    /// Batches posted over HTTP
    Http,
    /// The Fluent Forward protocol
    FluentForward,
    /// OpenTelemetry logs
    Otlp,
    /// Messages of a Kafka topic
    Kafka,
}

/// The chosen destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Destination {
    /// The file.
    File(PathBuf),
    /// Standard output.
    Stdout,
    /// A receiver, its address, and its token.
    Receiver(SinkType, String, ReceiverToken),
    /// Brokers.
    Kafka(Brokers),
}

/// Where a topic is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Brokers {
    addresses: Vec<String>,
    topic: String,
    tls: bool,
    /// Who signs in, and with which password.
    user: Option<(String, ReceiverToken)>,
}

/// The token of a receiver.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum ReceiverToken {
    /// Nothing.
    None,
    /// The content of this file.
    File(PathBuf),
    /// This, to be written to the file.
    NewFile(PathBuf, String),
}

impl std::fmt::Debug for ReceiverToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::NewFile(path, _) => write!(f, "NewFile({}, ***)", path.display()),
        }
    }
}

impl Destination {
    /// The file to write, and its content.
    pub fn new_file(&self) -> Option<(&PathBuf, &String)> {
        match self {
            Self::Receiver(_, _, ReceiverToken::NewFile(path, token))
            | Self::Kafka(Brokers { user: Some((_, ReceiverToken::NewFile(path, token))), .. }) => Some((path, token)),
            _ => None,
        }
    }

    /// The table of the sink, which reads all of `source`.
    pub fn render(&self, source: &str) -> String {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let path = |path: &Path| quoted(&path.display().to_string());
        let (note, keys) = match self {
            Self::File(file) => (
                "A record counts as delivered when it is synced to this file. An agent that tails it must take lines of up to\n\
                 # 32 MiB, which most do not by default: docs/hosts/tail.md has the setting of each.",
                format!("type = \"file\"\npath = {}\n", path(file)),
            ),
            Self::Stdout => (
                "For trying out: a record counts as delivered when its bytes are in the pipe.",
                "type = \"stdout\"\n".to_owned(),
            ),
            Self::Receiver(kind, to, token) => {
                let (name, key, secret) = kind.keys();
                let to = if *kind == SinkType::FluentForward { format!("[{}]", quoted(to)) } else { quoted(to) };
                let token = match token {
                    ReceiverToken::None => String::new(),
                    ReceiverToken::File(file) | ReceiverToken::NewFile(file, _) => {
                        format!("{secret} = {}\n", path(file))
                    }
                };
                (
                    "A record counts as delivered when the receiver answered success; docs/hosts has the settings that matter\n\
                     # there, and docs/hosts/recipes.md ten lines for each destination.",
                    format!("type = \"{name}\"\n{key} = {to}\n{token}"),
                )
            }
            Self::Kafka(brokers) => (
                "A record counts as delivered when all in-sync replicas have it. Keep records of the topic for well over seven\n\
                 # days: docs/hosts/kafka.md has what to set there, and how a consumer removes what came twice.",
                brokers.keys(),
            ),
        };
        let name = if matches!(self, Self::File(_)) { "file" } else { "out" };
        format!("# {note}\n[sinks.{name}]\n{keys}inputs = [\"{source}\"]\n")
    }
}

impl Brokers {
    /// The keys of the sink.
    fn keys(&self) -> String {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let addresses: Vec<String> = self.addresses.iter().map(|address| quoted(address)).collect();
        let mut keys =
            format!("type = \"kafka\"\nbrokers = [{}]\ntopic = {}\n", addresses.join(", "), quoted(&self.topic));
        if self.tls {
            keys.push_str("tls = true\n");
        }
        if let Some((user, token)) = &self.user {
            let mechanism = if user == EVENT_HUBS_USER { "plain" } else { "scram_sha_512" };
            // A dollar begins the name of a variable.
            let user = quoted(&user.replace('$', "$$"));
            keys.push_str(&format!("sasl_mechanism = \"{mechanism}\"\nusername = {user}\n"));
            if let ReceiverToken::File(file) | ReceiverToken::NewFile(file, _) = token {
                keys.push_str(&format!("password_file = {}\n", quoted(&file.display().to_string())));
            }
        }
        keys
    }

    /// Addresses, separated by commas or blanks.
    fn addresses(text: &str) -> Result<Vec<String>, String> {
        let addresses: Vec<&str> = text.split([' ', ',', '\t']).filter(|part| !part.is_empty()).collect();
        if !addresses.is_empty() && addresses.iter().all(|address| is_pair(address)) {
            return Ok(addresses.into_iter().map(str::to_owned).collect());
        }
        Err("write HOST:PORT of one broker or several, such as kafka1.example.com:9093,kafka2.example.com:9093".into())
    }
}

/// Whether it is HOST:PORT.
fn is_pair(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

fn topic(text: &str) -> Result<String, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match text {
        "" => Ok(TOPIC.to_owned()),
        text if text.len() <= 249 && text.chars().all(is_name) => Ok(text.to_owned()),
        _ => Err("a topic's name has letters, digits, `.`, `_` and `-`".into()),
    }
}

impl SinkType {
    /// The value of `type`, the key of the address, and the key of the token's file.
    fn keys(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::File => ("file", "path", ""),
            Self::Stdout => ("stdout", "", ""),
            Self::Http => ("http", "uri", "bearer_token_file"),
            Self::Otlp => ("otlp", "endpoint", "bearer_token_file"),
            Self::FluentForward => ("fluent_forward", "servers", "shared_key_file"),
            Self::Kafka => ("kafka", "brokers", "password_file"),
        }
    }

    /// The question for its address.
    fn question(self) -> &'static str {
        match self {
            Self::FluentForward => "Receiver, as HOST:PORT:",
            Self::Otlp => "Receiver's URL, such as http://127.0.0.1:4317:",
            _ => "Receiver's URL, such as https://siem.example.com/ingest:",
        }
    }

    fn address(self, text: &str) -> Result<String, String> {
        let text = text.trim();
        if self == Self::FluentForward {
            return if is_pair(text) {
                Ok(text.to_owned())
            } else {
                Err("write HOST:PORT, such as 127.0.0.1:24224".into())
            };
        }
        let example = "write a URL with its scheme, such as https://siem.example.com/ingest";
        match Url::parse(text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.host_str().is_some() => Ok(text.to_owned()),
            _ => Err(example.into()),
        }
    }
}

/// Takes all answers from the options.
pub(super) fn given(args: &InitArgs) -> Result<Destination, Failure> {
    let kind = args.sink.unwrap_or(SinkType::File);
    let unused = |what: &str| usage(format!("{what} is for the sinks `http`, `otlp`, `fluent_forward` and `kafka`"));
    if kind != SinkType::Kafka && (args.topic.is_some() || args.user.is_some() || args.tls) {
        return Err(usage("--topic, --user and --tls are for the sink `kafka`"));
    }
    match kind {
        SinkType::File | SinkType::Stdout if args.to.is_some() => Err(unused("--to")),
        SinkType::File | SinkType::Stdout if args.token_file.is_some() => Err(unused("--token-file")),
        SinkType::File => Ok(Destination::File(args.records.clone())),
        SinkType::Stdout => Ok(Destination::Stdout),
        SinkType::Kafka => {
            let to = args.to.as_deref().ok_or_else(|| usage("--sink kafka needs --to HOST:PORT[,HOST:PORT…]"))?;
            let password = args.token_file.as_deref().map(std::path::absolute).transpose().map_err(Failure::io)?;
            let user = match (&args.user, password) {
                (Some(user), Some(password)) => Some((user.clone(), ReceiverToken::File(password))),
                (None, None) => None,
                _ => return Err(usage("--user and --token-file, which holds the password, go together")),
            };
            Ok(Destination::Kafka(Brokers {
                addresses: Brokers::addresses(to).map_err(|why| usage(format!("--to: {why}")))?,
                topic: topic(args.topic.as_deref().unwrap_or(TOPIC)).map_err(|why| usage(format!("--topic: {why}")))?,
                // A password does not cross the network in the clear.
                tls: args.tls || user.is_some(),
                user,
            }))
        }
        kind => {
            let to = args.to.as_deref().ok_or_else(|| usage(format!("--sink {} needs --to ADDRESS", kind.keys().0)))?;
            let to = kind.address(to).map_err(|why| usage(format!("--to: {why}")))?;
            let token = match &args.token_file {
                Some(path) => ReceiverToken::File(std::path::absolute(path).map_err(Failure::io)?),
                None => ReceiverToken::None,
            };
            Ok(Destination::Receiver(kind, to, token))
        }
    }
}

/// Asks for the answers that the options leave open.
pub(super) fn asked(args: &InitArgs, dialogue: &mut dyn Dialogue) -> Result<Destination, Failure> {
    let kind = match args.sink {
        Some(kind) => kind,
        None => until_right(
            dialogue,
            "Where do records go: file, stdout, http, fluent_forward, otlp or kafka? [file]",
            |text| match text {
                "" => Ok(SinkType::File),
                text => <SinkType as clap::ValueEnum>::from_str(text, true)
                    .map_err(|_| "answer file, stdout, http, fluent_forward, otlp or kafka".to_owned()),
            },
        )?,
    };
    if matches!(kind, SinkType::File | SinkType::Stdout) || args.to.is_some() {
        return given(&InitArgs { sink: Some(kind), ..args.clone() });
    }
    if kind == SinkType::Kafka {
        return ask_brokers(args, dialogue);
    }
    let to = until_right(dialogue, kind.question(), |text| kind.address(text))?;
    let token = match &args.token_file {
        Some(path) => ReceiverToken::File(std::path::absolute(path).map_err(Failure::io)?),
        None => ask_token(args, kind, dialogue)?,
    };
    Ok(Destination::Receiver(kind, to, token))
}

fn ask_brokers(args: &InitArgs, dialogue: &mut dyn Dialogue) -> Result<Destination, Failure> {
    let addresses = until_right(dialogue, "Brokers, each as HOST:PORT, with commas between them:", Brokers::addresses)?;
    let topic = match &args.topic {
        Some(name) => topic(name).map_err(|why| usage(format!("--topic: {why}")))?,
        None => until_right(dialogue, &format!("Topic? [{TOPIC}]"), topic)?,
    };
    let user = match &args.user {
        Some(user) => user.clone(),
        None => {
            let question = format!("User to sign in as (empty for none; Azure Event Hubs: {EVENT_HUBS_USER}):");
            until_right(dialogue, &question, |text| Ok(text.to_owned()))?
        }
    };
    if user.is_empty() {
        let tls = args.tls || yes(dialogue, "Do the brokers speak TLS? [Y/n]", true)?;
        return Ok(Destination::Kafka(Brokers { addresses, topic, tls, user: None }));
    }
    let token = match &args.token_file {
        Some(path) => ReceiverToken::File(std::path::absolute(path).map_err(Failure::io)?),
        None => ask_token(args, SinkType::Kafka, dialogue)?,
    };
    if token == ReceiverToken::None {
        return Err(usage("a user signs in with a password; nothing was written"));
    }
    Ok(Destination::Kafka(Brokers { addresses, topic, tls: true, user: Some((user, token)) }))
}

fn ask_token(args: &InitArgs, kind: SinkType, dialogue: &mut dyn Dialogue) -> Result<ReceiverToken, Failure> {
    let beside = args.output.parent().unwrap_or(Path::new("")).join(TOKEN_FILE);
    let file = std::path::absolute(&beside).map_err(Failure::io)?;
    let what = match kind {
        SinkType::FluentForward => "Shared key",
        SinkType::Kafka => "Password",
        _ => "Bearer token",
    };
    let place = file.display();
    let question =
        format!("{what} that the receiver wants to see (written to {place}, readable by you alone; empty for none):");
    let Some(token) = dialogue.hidden(&question).map_err(Failure::io)? else { return Err(ended()) };
    match token.as_str() {
        "" => Ok(ReceiverToken::None),
        _ if file.exists() => Err(exists(&file)),
        _ => Ok(ReceiverToken::NewFile(file, token)),
    }
}
