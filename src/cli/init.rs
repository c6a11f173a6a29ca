//! `m365-audit init`: writes the first configuration, from questions or options, and prints the commands that create
//! the application in the tenant.
//!
//! Owns the questions, the commands shown and the text of the file; `config` validates the file and `check` tests the
//! tenant. It overwrites no existing file, and a secret never appears in an argument, on the screen or in a file that
//! others may read.

mod commands;
mod destination;

use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::exit::Exit;
use super::{Failure, check};
use crate::config::{Cloud, Config};
use crate::model::is_guid;
use commands::commands;
pub use commands::{RESOURCE, ROLE_READ, ROLE_READ_DLP, Tool};
use destination::{Destination, SinkType};

/// The variable used when no secret is given.
const SECRET_VARIABLE: &str = "M365_CLIENT_SECRET";
/// The file beside the configuration that a secret is written to.
const SECRET_FILE: &str = "client_secret";
/// A question is asked this often before giving up.
const ATTEMPTS_MAX: usize = 5;

/// Arguments of `init`.
#[derive(Debug, Clone, clap::Args)]
pub struct InitArgs {
    /// Where to write the configuration; what exists is never overwritten
    #[arg(short, long, value_name = "FILE", default_value = "agent.toml")]
    output: PathBuf,
    /// The tenant's id, a GUID
    #[arg(long, value_name = "GUID")]
    tenant_id: Option<String>,
    /// A tenant of an app of many, by a name and its id; given once for each
    #[arg(long = "tenant", value_name = "NAME=GUID", conflicts_with = "tenant_id")]
    tenants: Vec<String>,
    /// The application's (client) id, a GUID
    #[arg(long, value_name = "GUID")]
    client_id: Option<String>,
    /// A file that holds the client secret
    #[arg(long, value_name = "FILE", conflicts_with = "client_secret_env")]
    client_secret_file: Option<PathBuf>,
    /// The environment variable that holds the client secret
    #[arg(long, value_name = "NAME")]
    client_secret_env: Option<String>,
    /// Microsoft's cloud: enterprise, gcc, gcc_high, dod or china
    #[arg(long, value_name = "CLOUD", default_value = "enterprise", value_parser = cloud)]
    cloud: Cloud,
    /// Leave out DLP.All, which needs the permission ActivityFeed.ReadDlp besides
    #[arg(long)]
    no_dlp: bool,
    /// Where state is kept
    #[arg(long, value_name = "DIR", default_value = "/var/lib/m365-audit")]
    data_dir: PathBuf,
    /// Where records go; without it, a file
    #[arg(long, value_name = "TYPE")]
    sink: Option<SinkType>,
    /// The file that records are appended to, of the sink `file`
    #[arg(long, value_name = "FILE", default_value = "/var/log/m365-audit/audit.ndjson")]
    records: PathBuf,
    /// The receiver of the other sinks: a URL for `http` and `otlp`, `HOST:PORT` for `fluent_forward`, of one broker or
    /// several, with commas between them, for `kafka`
    #[arg(long, value_name = "ADDRESS")]
    to: Option<String>,
    /// A file that holds what the receiver wants to see: a bearer token for `http` and `otlp`, the shared key for
    /// `fluent_forward`, the password of `--user` for `kafka`
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The topic of the sink `kafka` [default: m365-audit]
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
    /// Who signs in at the brokers of the sink `kafka`, by SCRAM-SHA-512 over TLS; Azure Event Hubs: `$ConnectionString`
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Connect to the brokers of the sink `kafka` with TLS
    #[arg(long)]
    tls: bool,
    /// Only print the commands that create the application and grant its permissions
    #[arg(long, value_name = "TOOL")]
    print: Option<Tool>,
    /// Ask nothing: what is missing is an error
    #[arg(long)]
    no_input: bool,
    /// Do not test the connection afterwards
    #[arg(long)]
    no_check: bool,
}

fn cloud(text: &str) -> Result<Cloud, String> {
    let name = |cloud: &Cloud| serde_json::to_value(cloud).ok().and_then(|v| v.as_str().map(str::to_owned));
    let found = Cloud::ALL.into_iter().find(|cloud| name(cloud).as_deref() == Some(text));
    found.ok_or_else(|| {
        let known = Cloud::ALL.iter().filter_map(name).collect::<Vec<_>>().join(", ");
        format!("expected one of {known}")
    })
}

/// The answers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answers {
    tenants: Tenants,
    client_id: String,
    secret: SecretPlace,
    cloud: Cloud,
    dlp: bool,
    data_dir: PathBuf,
    to: Destination,
}

/// The tenants whose events are read.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Tenants {
    /// One tenant.
    One(String),
    /// Many of one app, each by its name and its id.
    Many(Vec<(String, String)>),
}

impl Tenants {
    /// A GUID, or several, each as `NAME=GUID`.
    fn parse(text: &str, wheres: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split([' ', ',', '\t']).filter(|part| !part.is_empty()).collect();
        if !parts.iter().any(|part| part.contains('=')) {
            return guid(text, "a tenant's id", wheres).map(Self::One);
        }
        let mut tenants: Vec<(String, String)> = Vec::new();
        for part in parts {
            let (name, id) = part.split_once('=').ok_or_else(|| format!("`{part}` is not NAME=GUID"))?;
            let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
            if name.is_empty() || !name.chars().all(is_name) {
                return Err(format!("`{name}` is not a name of letters, digits, `_` and `-`"));
            }
            let id = guid(id, &format!("the id of `{name}`"), wheres)?;
            if tenants.iter().any(|(known, known_id)| known == name || *known_id == id) {
                return Err(format!("`{name}` or its id is there twice"));
            }
            tenants.push((name.to_owned(), id));
        }
        Ok(Self::Many(tenants))
    }

    /// Where the application is registered, as far as it is known.
    fn home(&self) -> &str {
        match self {
            Self::One(id) => id,
            Self::Many(_) => "YOUR_OWN_TENANT_ID",
        }
    }

    fn is_many(&self) -> bool {
        matches!(self, Self::Many(_))
    }

    /// The source that reads them.
    fn source(&self) -> &'static str {
        if self.is_many() { "customers" } else { "m365" }
    }
}

#[derive(Clone, PartialEq, Eq)]
enum SecretPlace {
    Variable(String),
    File(PathBuf),
    /// To be written to this file.
    NewFile(PathBuf, String),
}

impl SecretPlace {
    /// The file to write, and its content.
    fn new_file(&self) -> Option<(&PathBuf, &String)> {
        match self {
            Self::NewFile(path, secret) => Some((path, secret)),
            _ => None,
        }
    }
}

impl std::fmt::Debug for SecretPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Variable(name) => write!(f, "Variable({name})"),
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::NewFile(path, _) => write!(f, "NewFile({}, ***)", path.display()),
        }
    }
}

/// Asks, writes, checks.
///
/// # Errors
/// A missing or invalid answer, an existing file, a directory that cannot be written.
pub async fn init(args: InitArgs) -> Result<Exit, Failure> {
    if let Some(tool) = args.print {
        let home = args.tenant_id.as_deref().unwrap_or("TENANT_ID");
        let text = commands(tool, home, args.cloud, !args.no_dlp, !args.tenants.is_empty());
        io::stdout().write_all(text.as_bytes()).map_err(Failure::io)?;
        return Ok(Exit::Done);
    }
    if args.output.exists() {
        return Err(exists(&args.output));
    }
    let answers = if args.no_input {
        given(&args)?
    } else {
        let mut terminal = Questions::new();
        asked(&args, &mut terminal)?
    };
    let text = render(&answers);
    // The secrets first, since the configuration is checked against the files it names.
    let secrets: Vec<(&PathBuf, &String)> =
        [answers.secret.new_file(), answers.to.new_file()].into_iter().flatten().collect();
    let mut made: Vec<&PathBuf> = Vec::new();
    let mut result = Ok(());
    for (path, secret) in &secrets {
        result = write_new(path, format!("{secret}\n").as_bytes(), 0o600);
        if result.is_err() {
            break;
        }
        made.push(path);
    }
    // The written file must be valid; a variable that is not set yet is not a fault of the file.
    let variable = |name: &str| std::env::var(name).ok().or_else(|| Some(format!("set {name}")));
    let written = result
        .and_then(|()| Config::parse(&text, &variable).map_err(Failure::from))
        .and_then(|_| write_new(&args.output, text.as_bytes(), 0o644));
    for path in made {
        match &written {
            Ok(()) => eprintln!("wrote {} (only you can read it)", path.display()),
            Err(_) => drop(fs::remove_file(path)),
        }
    }
    written?;
    eprintln!("wrote {}", args.output.display());
    let output = args.output.display();
    if let SecretPlace::Variable(name) = &answers.secret
        && std::env::var_os(name).is_none()
    {
        eprintln!(
            "next: put the client secret into the environment variable {name}, then\n  m365-audit check -c {output}\n  m365-audit run -c {output}"
        );
        return Ok(Exit::Done);
    }
    if args.no_check {
        eprintln!("next:\n  m365-audit check -c {output}\n  m365-audit run -c {output}");
        return Ok(Exit::Done);
    }
    let checked = check::check_file(&args.output, &mut io::stdout()).await?;
    if checked == Exit::Done {
        eprintln!("next:\n  m365-audit run -c {output}");
    } else {
        eprintln!("fix what the lines above name, then run `m365-audit check -c {output}` again");
    }
    Ok(checked)
}

fn exists(path: &Path) -> Failure {
    Failure {
        message: format!(
            "init-exists: `{}` is there already; nothing was changed\n  hint: choose another name with --output, or move it away",
            path.display()
        ),
        exit: Exit::Config,
    }
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Failure> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => exists(path),
        _ => Failure {
            message: format!(
                "init-not-written: `{}` cannot be written: {error}\n  hint: choose a directory you may write to with --output",
                path.display()
            ),
            exit: Exit::Config,
        },
    };
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)
}

fn usage(message: impl Into<String>) -> Failure {
    Failure { message: format!("usage: {}", message.into()), exit: Exit::Usage }
}

fn guid(text: &str, what: &str, wheres: &str) -> Result<String, String> {
    let text = text.trim();
    if is_guid(text) {
        return Ok(text.to_ascii_lowercase());
    }
    let domain = if text.contains('.') { " (a domain is not enough)" } else { "" };
    Err(format!("{what} is a GUID such as 00000000-0000-0000-0000-000000000000{domain}; {wheres}"))
}

const TENANT_IS_AT: &str = "Entra admin centre > Overview > Tenant ID";
const CLIENT_IS_AT: &str = "Entra admin centre > App registrations > your app > Application (client) ID";

/// Takes all answers from the options.
fn given(args: &InitArgs) -> Result<Answers, Failure> {
    let need = |value: &Option<String>, option: &str, wheres: &str| {
        let value = value.as_deref().ok_or_else(|| usage(format!("--no-input needs {option}")))?;
        guid(value, option, wheres).map_err(usage)
    };
    let secret = match (&args.client_secret_file, &args.client_secret_env) {
        (Some(path), _) => SecretPlace::File(std::path::absolute(path).map_err(Failure::io)?),
        (None, name) => SecretPlace::Variable(variable(name.as_deref().unwrap_or(SECRET_VARIABLE)).map_err(usage)?),
    };
    let (tenant_at, client_at) = (args.cloud.localised(TENANT_IS_AT), args.cloud.localised(CLIENT_IS_AT));
    let tenants = match args.tenants.as_slice() {
        [] => Tenants::One(need(&args.tenant_id, "--tenant-id", &tenant_at)?),
        tenants => many(tenants, &tenant_at)?,
    };
    Ok(Answers {
        tenants,
        client_id: need(&args.client_id, "--client-id", &client_at)?,
        secret,
        cloud: args.cloud,
        dlp: !args.no_dlp,
        data_dir: args.data_dir.clone(),
        to: destination::given(args)?,
    })
}

/// Those of `--tenant`.
fn many(tenants: &[String], wheres: &str) -> Result<Tenants, Failure> {
    match Tenants::parse(&tenants.join(" "), wheres).map_err(usage)? {
        Tenants::One(_) => Err(usage("--tenant is NAME=GUID")),
        many => Ok(many),
    }
}

fn variable(name: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if !name.is_empty() && name.chars().all(good) && !name.starts_with(|c: char| c.is_ascii_digit()) {
        return Ok(name.to_owned());
    }
    Err(format!("`{name}` is no name of an environment variable"))
}

/// Where answers come from: a terminal or lines of standard input.
trait Dialogue {
    /// Shows something.
    fn say(&mut self, text: &str);
    /// Asks for a line; `None` at the end of input.
    fn line(&mut self, question: &str) -> io::Result<Option<String>>;
    /// Asks for a line that is not shown.
    fn hidden(&mut self, question: &str) -> io::Result<Option<String>>;
}

struct Questions {
    lines: io::StdinLock<'static>,
}

impl Questions {
    fn new() -> Self {
        Self { lines: io::stdin().lock() }
    }
}

impl Dialogue for Questions {
    fn say(&mut self, text: &str) {
        let _ = writeln!(io::stderr(), "{text}");
    }

    fn line(&mut self, question: &str) -> io::Result<Option<String>> {
        write!(io::stderr(), "{question} ")?;
        io::stderr().flush()?;
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        if !io::stdin().is_terminal() {
            writeln!(io::stderr())?;
        }
        Ok(Some(line.trim().to_owned()))
    }

    fn hidden(&mut self, question: &str) -> io::Result<Option<String>> {
        if !io::stdin().is_terminal() {
            return self.line(question);
        }
        rpassword::prompt_password(format!("{question} ")).map(|text| Some(text.trim().to_owned()))
    }
}

/// Asks for the answers that the options leave open.
fn asked(args: &InitArgs, dialogue: &mut dyn Dialogue) -> Result<Answers, Failure> {
    let (tenant_at, client_at) = (args.cloud.localised(TENANT_IS_AT), args.cloud.localised(CLIENT_IS_AT));
    let tenants = match (&args.tenant_id, args.tenants.as_slice()) {
        (Some(text), _) => Tenants::One(guid(text, "--tenant-id", &tenant_at).map_err(usage)?),
        (None, []) => {
            let question =
                format!("Tenant ID ({tenant_at}); for an app of many tenants all of them, each as NAME=GUID:");
            until_right(dialogue, &question, |text| Tenants::parse(text, &tenant_at))?
        }
        (None, tenants) => many(tenants, &tenant_at)?,
    };
    let dlp = !args.no_dlp
        && (args.client_id.is_some()
            || yes(dialogue, "Read data loss prevention events too (permission ActivityFeed.ReadDlp)? [Y/n]", true)?);
    let client_id = match &args.client_id {
        Some(text) => guid(text, "--client-id", &client_at).map_err(usage)?,
        None => {
            if !yes(dialogue, "Is there an application for this already? [y/N]", false)? {
                let tool =
                    until_right(dialogue, "Show the commands that create it for `az` or `powershell`? [az]", |text| {
                        match text.to_ascii_lowercase().as_str() {
                            "" | "az" => Ok(Tool::Az),
                            "powershell" | "pwsh" => Ok(Tool::Powershell),
                            _ => Err("answer az or powershell".into()),
                        }
                    })?;
                dialogue.say("");
                dialogue.say(&commands(tool, tenants.home(), args.cloud, dlp, tenants.is_many()));
            }
            until_right(dialogue, &format!("Client ID ({client_at}):"), |text| {
                guid(text, "an application's id", &client_at)
            })?
        }
    };
    let secret = match (&args.client_secret_file, &args.client_secret_env) {
        (Some(path), _) => SecretPlace::File(std::path::absolute(path).map_err(Failure::io)?),
        (None, Some(name)) => SecretPlace::Variable(variable(name).map_err(usage)?),
        (None, None) => ask_secret(args, dialogue)?,
    };
    let to = destination::asked(args, dialogue)?;
    Ok(Answers { tenants, client_id, secret, cloud: args.cloud, dlp, data_dir: args.data_dir.clone(), to })
}

fn ask_secret(args: &InitArgs, dialogue: &mut dyn Dialogue) -> Result<SecretPlace, Failure> {
    let beside = args.output.parent().unwrap_or(Path::new("")).join(SECRET_FILE);
    let file = std::path::absolute(&beside).map_err(Failure::io)?;
    if file.exists() {
        let question = format!("There is {}: take the client secret from it? [Y/n]", file.display());
        return if yes(dialogue, &question, true)? { Ok(SecretPlace::File(file)) } else { Err(exists(&file)) };
    }
    let question = format!(
        "Client secret, its value and not its id (written to {}, readable by you alone; empty to take it from the environment variable {SECRET_VARIABLE}):",
        file.display()
    );
    for _ in 0..ATTEMPTS_MAX {
        let Some(secret) = dialogue.hidden(&question).map_err(Failure::io)? else { break };
        if secret.is_empty() {
            return Ok(SecretPlace::Variable(SECRET_VARIABLE.into()));
        }
        if !is_guid(&secret) {
            return Ok(SecretPlace::NewFile(file, secret));
        }
        dialogue.say("that is the id of a secret; its value is shown once, when the secret is created");
    }
    Err(ended())
}

fn ended() -> Failure {
    usage("the input ended before all was answered; nothing was written. --no-input takes everything from options")
}

fn until_right<T>(
    dialogue: &mut dyn Dialogue,
    question: &str,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<T, Failure> {
    for _ in 0..ATTEMPTS_MAX {
        let Some(text) = dialogue.line(question).map_err(Failure::io)? else { break };
        match read(&text) {
            Ok(value) => return Ok(value),
            Err(why) => dialogue.say(&why),
        }
    }
    Err(ended())
}

fn yes(dialogue: &mut dyn Dialogue, question: &str, default: bool) -> Result<bool, Failure> {
    until_right(dialogue, question, |text| match text.to_ascii_lowercase().as_str() {
        "" => Ok(default),
        "y" | "yes" => Ok(true),
        "n" | "no" => Ok(false),
        _ => Err("answer y or n".into()),
    })
}

/// The file, with a comment on each choice.
fn render(answers: &Answers) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let path = |path: &Path| quoted(&path.display().to_string());
    let secret = match &answers.secret {
        SecretPlace::Variable(name) => format!("client_secret = \"${{{name}}}\"   # from the environment"),
        SecretPlace::File(file) | SecretPlace::NewFile(file, _) => {
            format!("client_secret_file = {}   # read again when it changes", path(file))
        }
    };
    let cloud = match answers.cloud {
        Cloud::Enterprise => "# cloud = \"enterprise\"                 # gcc, gcc_high, dod, china".to_owned(),
        cloud => {
            let name = serde_json::to_value(cloud).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
            format!("cloud = \"{name}\"")
        }
    };
    let types = if answers.dlp {
        "# content_types: all five; DLP.All needs the permission ActivityFeed.ReadDlp".to_owned()
    } else {
        "content_types = [\"Audit.AzureActiveDirectory\", \"Audit.Exchange\", \"Audit.SharePoint\", \"Audit.General\"]"
            .to_owned()
    };
    let routine = if answers.dlp {
        "# drop_routine = true                  # leave out routine reads such as FileAccessed, and count them"
    } else {
        "drop_routine = false                   # true leaves out routine reads; without DLP.All, flagged ones too"
    };
    let heal = "# heal = { graph = true }              # fill gaps of over 7 days; AuditLogsQuery.Read.All of Microsoft Graph\n";
    let heal = if answers.cloud.has_audit_search() { heal } else { "" };
    let name = answers.tenants.source();
    let (tenant, tenants) = match &answers.tenants {
        Tenants::One(id) => (format!("tenant_id = \"{id}\"\n"), String::new()),
        Tenants::Many(tenants) => {
            let block = |(own, id): &(String, String)| {
                format!("\n[[sources.{name}.tenants]]\nname = \"{own}\"\ntenant_id = \"{id}\"\n")
            };
            let note = "\n# Each tenant is a source of its own, with the keys above and its own over them; an administrator of each\n\
                        # consents to the application once. `m365-audit tenant add` adds more: docs/tenants.md\n";
            (String::new(), note.to_owned() + tenants.iter().map(block).collect::<String>().trim_start())
        }
    };
    format!(
        "# Written by `m365-audit init`. Every key: docs/configuration.md or `m365-audit schema config`.\n\
         # `m365-audit check -c FILE` tests the connection, `m365-audit run -c FILE` runs it.\n\n\
         # Positions and what was delivered. Keep it: without it the last day is delivered again.\n\
         data_dir = {data_dir}\n\n\
         [sources.{name}]\n\
         type = \"m365_audit\"\n\
         {tenant}\
         client_id = \"{client}\"\n\
         {secret}\n\
         {cloud}\n\
         {types}\n\
         # backfill_secs = 86400                # how far back the first run goes; Microsoft keeps 604800\n\
         {routine}\n\
         {heal}\
         # format = \"native\"                    # ecs, ocsf, raw\n\
         {tenants}\n\
         {sink}\n\
         # Prometheus text at /metrics, health at /health.\n\
         [metrics]\n\
         listen = \"127.0.0.1:9598\"\n",
        data_dir = path(&answers.data_dir),
        client = answers.client_id,
        sink = answers.to.render(name),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use clap::Parser;

    const TENANT: &str = "11111111-2222-3333-4444-555555555555";
    const CLIENT: &str = "aaaaaaaa-0000-4000-8000-00000000c11e";

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: InitArgs,
    }

    fn args(options: &[&str]) -> InitArgs {
        Line::parse_from(std::iter::once("init").chain(options.iter().copied())).args
    }

    #[derive(Default)]
    struct Script {
        answers: VecDeque<&'static str>,
        said: String,
    }

    impl Dialogue for Script {
        fn say(&mut self, text: &str) {
            self.said.push_str(text);
            self.said.push('\n');
        }

        fn line(&mut self, question: &str) -> io::Result<Option<String>> {
            self.say(question);
            Ok(self.answers.pop_front().map(str::to_owned))
        }

        fn hidden(&mut self, question: &str) -> io::Result<Option<String>> {
            self.line(question)
        }
    }

    fn script(answers: &[&'static str]) -> Script {
        Script { answers: answers.iter().copied().collect(), said: String::new() }
    }

    #[test]
    fn wrong_answers_are_explained_and_asked_again() {
        let mut dialogue =
            script(&["contoso.onmicrosoft.com", TENANT, "y", "maybe", "n", "", CLIENT, CLIENT, "", "fiel", ""]);
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("agent.toml");
        let answers = asked(&args(&["-o", output.to_str().unwrap()]), &mut dialogue).unwrap();
        assert_eq!(answers.tenants, Tenants::One(TENANT.to_owned()));
        assert_eq!(answers.to, Destination::File("/var/log/m365-audit/audit.ndjson".into()));
        assert_eq!(answers.secret, SecretPlace::Variable(SECRET_VARIABLE.into()), "the id of a secret is not taken");
        assert!(dialogue.said.contains("a domain is not enough"), "{}", dialogue.said);
        assert!(dialogue.said.contains("answer y or n"), "{}", dialogue.said);
        assert!(dialogue.said.contains("that is the id of a secret"), "{}", dialogue.said);
        assert!(dialogue.said.contains(&format!("--api-permissions {ROLE_READ}=Role {ROLE_READ_DLP}=Role")));
    }

    #[test]
    fn input_that_ends_writes_nothing() {
        let error = asked(&args(&[]), &mut script(&[TENANT, "y"])).unwrap_err();
        assert_eq!(error.exit, Exit::Usage);
        assert!(error.message.contains("nothing was written"), "{}", error.message);
    }

    #[test]
    fn what_is_written_is_valid_and_raises_no_warning() {
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("token");
        std::fs::write(&token, "a token\n").unwrap();
        let token = token.to_str().unwrap();
        let many = [
            "--tenant",
            "a=11111111-2222-3333-4444-555555555555",
            "--tenant",
            "b=11111111-2222-3333-4444-666666666666",
        ];
        for (options, dlp) in [
            (&["--no-dlp"][..], false),
            (&["--cloud", "gcc_high"], true),
            (&[], true),
            (&many, true),
            (&["--sink", "stdout"], true),
            (&["--sink", "http", "--to", "https://siem.example.com/in", "--token-file", token], true),
            (&["--sink", "otlp", "--to", "http://127.0.0.1:4317", "--token-file", token], true),
            (&["--sink", "fluent_forward", "--to", "127.0.0.1:24224", "--token-file", token], true),
            (&["--sink", "kafka", "--to", "127.0.0.1:9092"], true),
            (
                &["--sink", "kafka", "--to", "k1.example.com:9093,k2.example.com:9093", "--tls", "--topic", "audit"],
                true,
            ),
            (&["--sink", "kafka", "--to", "k1.example.com:9093", "--user", "m365", "--token-file", token], true),
            (
                &[
                    "--sink",
                    "kafka",
                    "--to",
                    "x.example.com:9093",
                    "--user",
                    "$ConnectionString",
                    "--token-file",
                    token,
                ],
                true,
            ),
        ] {
            let mut all = vec!["--no-input", "--client-id", CLIENT];
            all.extend(if options == &many[..] { &[][..] } else { &["--tenant-id", TENANT] });
            all.extend(options);
            let answers = given(&args(&all)).unwrap();
            assert_eq!(answers.dlp, dlp);
            let text = render(&answers);
            assert!(!text.contains("a token"), "{text}");
            let config = Config::parse(&text, &|name| (name == SECRET_VARIABLE).then(|| "x".repeat(40)));
            match config {
                Ok(config) => assert_eq!(config.warnings(), [], "{text}"),
                // Such a file is not written, and it is said what to do about that.
                Err(problems) if text.contains("kafka") && !cfg!(feature = "kafka") => {
                    let said = problems.to_string();
                    assert!(said.contains("cargo build --release --features kafka"), "{said}");
                    assert_eq!(said.matches("expected").count(), 1, "{said}");
                }
                Err(problems) => panic!("{problems}: {text}"),
            }
        }
        for wrong in [
            &["--sink", "kafka"][..],
            &["--sink", "kafka", "--to", "kafka.example.com"],
            &["--sink", "kafka", "--to", "k.example.com:9092", "--topic", "a topic"],
            &["--sink", "kafka", "--to", "k.example.com:9092", "--user", "m365"],
            &["--sink", "kafka", "--to", "k.example.com:9092", "--token-file", token],
            &["--topic", "audit"],
            &["--sink", "http", "--to", "https://siem.example.com/in", "--user", "m365"],
        ] {
            let all = [&["--no-input", "--client-id", CLIENT, "--tenant-id", TENANT], wrong].concat();
            assert_eq!(given(&args(&all)).unwrap_err().exit, Exit::Usage, "{wrong:?}");
        }
    }

    #[test]
    fn brokers_are_asked_for_and_a_password_goes_into_a_file_and_over_tls() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("agent.toml");
        let kafka = |answers: &[&'static str]| {
            let first = [
                TENANT,
                "n",
                "n",
                "az",
                CLIENT,
                "",
                "kafka",
                "kafka.example.com",
                "k1.example.com:9093, k2.example.com:9093",
            ];
            let answers = [&first[..], answers].concat();
            let answers = asked(&args(&["-o", output.to_str().unwrap()]), &mut script(&answers)).unwrap();
            let text = render(&answers);
            (answers, text.split_once("[sinks.out]").unwrap().1.to_owned())
        };
        let (answers, text) = kafka(&["", "m365", "pa55word"]);
        let (path, password) = answers.to.new_file().unwrap();
        assert_eq!((path.file_name().unwrap().to_str(), password.as_str()), (Some("sink_token"), "pa55word"));
        assert!(!format!("{answers:?}").contains("pa55word"));
        for line in [
            "brokers = [\"k1.example.com:9093\", \"k2.example.com:9093\"]",
            "topic = \"m365-audit\"",
            "tls = true",
            "sasl_mechanism = \"scram_sha_512\"",
            "username = \"m365\"",
            &format!("password_file = \"{}\"", path.display()),
        ] {
            assert!(text.lines().any(|known| known == line), "{line}: {text}");
        }
        let (_, text) = kafka(&["audit", "$ConnectionString", "Endpoint=sb://x/"]);
        assert!(text.contains("topic = \"audit\"") && text.contains("sasl_mechanism = \"plain\""), "{text}");
        assert!(text.contains("username = \"$$ConnectionString\"") && !text.contains("Endpoint"), "{text}");
        let (_, text) = kafka(&["", "", "n"]);
        assert!(!text.contains("tls") && !text.contains("username"), "{text}");
    }

    #[test]
    fn the_commands_name_the_application_permissions_of_the_api_and_consent() {
        for tool in [Tool::Az, Tool::Powershell] {
            let text = commands(tool, TENANT, Cloud::Enterprise, true, false);
            assert!(!commands(tool, TENANT, Cloud::Enterprise, false, false).contains(ROLE_READ_DLP));
            // The secret is written to a file and not shown on the screen.
            let secret =
                text.lines().find(|line| line.contains("--query password") || line.contains("SecretText")).unwrap();
            assert!(secret.contains(SECRET_FILE), "{secret}");
            let many = commands(tool, TENANT, Cloud::Enterprise, true, true);
            assert!(many.contains("AzureADMultipleOrgs") && many.contains("/adminconsent?client_id="), "{many}");
            for part in [TENANT, RESOURCE, ROLE_READ, ROLE_READ_DLP, "Role"] {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
        assert!(commands(Tool::Az, TENANT, Cloud::Dod, true, false).contains("AzureUSGovernment"));
        assert!(commands(Tool::Powershell, TENANT, Cloud::China, true, false).contains("-Environment China"));
    }

    #[test]
    fn an_app_of_many_tenants_is_one_block_of_them_and_a_receivers_token_goes_into_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("agent.toml");
        let (a, b) = ("11111111-2222-3333-4444-555555555555", "11111111-2222-3333-4444-666666666666");
        let tenants: &'static str = Box::leak(format!("adatum={a}, fabrikam={b}").into_boxed_str());
        let said =
            [tenants, "n", "n", "az", CLIENT, "", "http", "siem.example.com", "https://siem.example.com/in", "t0ken"];
        let mut dialogue = script(&said);
        let answers = asked(&args(&["-o", output.to_str().unwrap()]), &mut dialogue).unwrap();
        let text = render(&answers);
        assert_eq!(text.matches("[[sources.customers.tenants]]").count(), 2, "{text}");
        assert!(
            dialogue.said.contains("AzureADMultipleOrgs") && dialogue.said.contains("https://"),
            "{}",
            dialogue.said
        );
        let (path, token) = answers.to.new_file().unwrap();
        assert_eq!((path.file_name().unwrap().to_str(), token.as_str()), (Some("sink_token"), "t0ken"));
        assert!(!text.contains("t0ken") && !format!("{answers:?}").contains("t0ken"), "{text}");
        std::fs::write(path, token).unwrap();
        let config = Config::parse(&text, &|_| Some("x".repeat(40))).unwrap();
        assert_eq!(config.sinks["out"].inputs, ["customers.adatum", "customers.fabrikam"]);
        for twice in
            [format!("a={a} b={a}"), format!("a={a} a={b}"), "a=b".into(), format!("a b={a}"), format!("ä={a}")]
        {
            assert!(Tenants::parse(&twice, "there").is_err(), "{twice}");
        }
    }

    #[test]
    fn a_secret_is_not_in_debug() {
        let place = SecretPlace::NewFile("x".into(), "the-secret".into());
        assert!(!format!("{place:?}").contains("the-secret"));
    }
}
