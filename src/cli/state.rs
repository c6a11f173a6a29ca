//! `m365-audit state`: what is remembered, and changing it on purpose.
//!
//! `show` and `export` read beside a running process; `set` needs the process stopped, because the state has one
//! writer. Moving a position back forgets the marks of what is to be read again; moving it forward passes events over,
//! so it asks for `--yes` and the next run delivers a gap record that says so.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use super::Failure;
use super::exit::Exit;
use crate::checkpoint::format::{self, AsideRecord, Keys, Position, TrackedBlob};
use crate::checkpoint::held::HeldHead;
use crate::checkpoint::key_set::{self, KeySet, Kind};
use crate::config::{Config, SourceConfig};
use crate::host::{Expected, Op, Revision, StateError, StateStore};
use crate::hosts::embedded::store::SqliteStore;
use crate::model::{ContentType, Timestamp};

/// Arguments of `state`.
#[derive(Debug, clap::Args)]
pub struct StateArgs {
    #[command(subcommand)]
    command: StateCommand,
}

#[derive(Debug, clap::Subcommand)]
enum StateCommand {
    /// Show positions, blobs still owed, routine reads on hold, and records a host rejected
    Show {
        /// The configuration file
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Move positions: everything made available from a time on is read (again), what lies before is not
    Set {
        /// The configuration file
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// The source, by its name in the configuration
        #[arg(long, value_name = "NAME")]
        source: String,
        /// Only this content type; all of the source's otherwise
        #[arg(long, value_name = "TYPE")]
        content_type: Vec<ContentType>,
        /// Where to go on from, RFC 3339 (2026-05-01T00:00:00Z)
        #[arg(long, value_name = "TIME")]
        from: Timestamp,
        /// Pass events over, when the position moves forward
        #[arg(long)]
        yes: bool,
    },
    /// Write the records a host rejected to standard output, one per line, as they were offered
    Export {
        /// The configuration file
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
    },
}

#[derive(Serialize)]
struct StreamShown {
    source: String,
    tenant: String,
    content_type: String,
    origin: Timestamp,
    complete_until: Option<Timestamp>,
    listed_until: Option<Timestamp>,
    last_listing: Option<Timestamp>,
    tracked: Vec<TrackedShown>,
    set_aside: Vec<AsideShown>,
    held: HeldShown,
}

/// Routine reads on hold.
#[derive(Serialize, Default, Clone)]
struct HeldShown {
    events: u64,
    bytes: u64,
    /// `contentCreated` of the oldest.
    oldest: Option<Timestamp>,
}

#[derive(Serialize)]
struct TrackedShown {
    content_id: String,
    created: Timestamp,
    expires: Timestamp,
}

#[derive(Serialize)]
struct AsideShown {
    since: Timestamp,
    time: Timestamp,
    severity: String,
    why: String,
    bytes: usize,
}

/// Runs the subcommand.
///
/// # Errors
/// When the configuration or the state cannot be read, or `set` is refused.
pub async fn state(args: StateArgs, out: &mut (dyn Write + Send)) -> Result<Exit, Failure> {
    match args.command {
        StateCommand::Show { config, json } => show(&Config::load(&config)?, json, out).await,
        StateCommand::Export { config } => export(&Config::load(&config)?, out).await,
        StateCommand::Set { config, source, content_type, from, yes } => {
            let config = Config::load(&config)?;
            let Some(found) = config.sources.get(&source) else {
                let known = config.sources.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                return Err(usage(format!("no source is named `{source}`; there are: {known}")));
            };
            let types = if content_type.is_empty() { found.content_types.clone() } else { content_type };
            set(&config, found, &types, from, yes, out).await
        }
    }
}

fn usage(message: String) -> Failure {
    Failure { message: format!("usage: {message}"), exit: Exit::Usage }
}

fn broken(error: StateError) -> Failure {
    Failure {
        message: format!("state-not-read: {error}\n  hint: nothing was changed; see docs/errors/state-corrupt.md"),
        exit: Exit::State,
    }
}

async fn show(config: &Config, json: bool, out: &mut (dyn Write + Send)) -> Result<Exit, Failure> {
    let store = SqliteStore::open_read_only(&config.data_dir)?;
    let mut shown = Vec::new();
    for (name, source) in &config.sources {
        let keys = Keys::of(&source.tenant_id);
        let held = held(&store, &keys).await?;
        for &content_type in &source.content_types {
            let Some((position, _)) = load::<Position>(&store, &keys.position(content_type)).await? else { continue };
            let tracked = load_all::<TrackedBlob>(&store, &keys.tracked(content_type)).await?;
            let aside = load_all::<AsideRecord>(&store, &keys.aside(content_type)).await?;
            shown.push(StreamShown {
                source: name.clone(),
                tenant: source.tenant_id.to_string(),
                content_type: content_type.to_string(),
                origin: position.origin,
                complete_until: position.complete_until,
                listed_until: position.listed_until,
                last_listing: position.last_listing,
                tracked: tracked
                    .into_iter()
                    .map(|b| TrackedShown { content_id: b.content_id, created: b.created, expires: b.expires })
                    .collect(),
                set_aside: aside
                    .into_iter()
                    .map(|a| AsideShown {
                        since: a.since,
                        time: a.time,
                        severity: a.severity,
                        why: a.why,
                        bytes: a.record.len(),
                    })
                    .collect(),
                held: held.get(&content_type).cloned().unwrap_or_default(),
            });
        }
    }
    if json {
        let text = serde_json::to_string_pretty(&shown).map_err(Failure::internal)?;
        writeln!(out, "{text}").map_err(Failure::io)?;
        return Ok(Exit::Done);
    }
    if shown.is_empty() {
        writeln!(out, "nothing is remembered yet under {}", config.data_dir.display()).map_err(Failure::io)?;
    }
    for stream in &shown {
        print(stream, out).map_err(Failure::io)?;
    }
    Ok(Exit::Done)
}

/// What is on hold, by content type.
async fn held(store: &dyn StateStore, keys: &Keys) -> Result<BTreeMap<ContentType, HeldShown>, Failure> {
    let mut all: BTreeMap<ContentType, HeldShown> = BTreeMap::new();
    for (key, _) in store.list(&keys.held()).await.map_err(broken)? {
        let Some((bytes, _)) = store.load(&key).await.map_err(broken)? else { continue };
        let head = HeldHead::decode(&key, &bytes).map_err(broken)?;
        let shown = all.entry(head.content_type).or_default();
        shown.events += head.records();
        shown.bytes += bytes.len() as u64;
        shown.oldest = Some(shown.oldest.map_or(head.created, |oldest| oldest.min(head.created)));
    }
    Ok(all)
}

fn print(stream: &StreamShown, out: &mut (dyn Write + Send)) -> std::io::Result<()> {
    let time = |t: Option<Timestamp>| t.map_or("-".to_owned(), |t| t.to_string());
    writeln!(out, "{} {} ({})", stream.source, stream.content_type, stream.tenant)?;
    writeln!(out, "  origin          {}", stream.origin)?;
    writeln!(out, "  complete until  {}", time(stream.complete_until))?;
    writeln!(out, "  listed until    {}", time(stream.listed_until))?;
    writeln!(out, "  last listing    {}", time(stream.last_listing))?;
    if !stream.tracked.is_empty() {
        writeln!(out, "  blobs owed      {}", stream.tracked.len())?;
        for blob in &stream.tracked {
            writeln!(out, "    {}  created {}  expires {}", blob.content_id, blob.created, blob.expires)?;
        }
    }
    if let HeldShown { events, bytes, oldest: Some(oldest) } = &stream.held {
        writeln!(out, "  on hold         {events} routine reads ({bytes} bytes), the oldest made available {oldest}")?;
    }
    if !stream.set_aside.is_empty() {
        writeln!(out, "  set aside       {} (written out by `state export`)", stream.set_aside.len())?;
        for record in &stream.set_aside {
            writeln!(
                out,
                "    since {}  event of {}  {}  {} bytes  {}",
                record.since, record.time, record.severity, record.bytes, record.why
            )?;
        }
    }
    Ok(())
}

async fn export(config: &Config, out: &mut (dyn Write + Send)) -> Result<Exit, Failure> {
    let store = SqliteStore::open_read_only(&config.data_dir)?;
    for source in config.sources.values() {
        let keys = Keys::of(&source.tenant_id);
        for &content_type in &source.content_types {
            for record in load_all::<AsideRecord>(&store, &keys.aside(content_type)).await? {
                writeln!(out, "{}", record.record).map_err(Failure::io)?;
            }
        }
    }
    Ok(Exit::Done)
}

async fn set(
    config: &Config,
    source: &SourceConfig,
    types: &[ContentType],
    from: Timestamp,
    yes: bool,
    out: &mut (dyn Write + Send),
) -> Result<Exit, Failure> {
    let store: Arc<dyn StateStore> = Arc::new(SqliteStore::open(&config.data_dir)?);
    let keys = Keys::of(&source.tenant_id);
    let mut ops = Vec::new();
    let mut said = Vec::new();
    let mut goes_back = false;
    for &content_type in types {
        let key = keys.position(content_type);
        let (mut position, expected) = match load::<Position>(&*store, &key).await? {
            Some((position, revision)) => (position, Expected::At(revision)),
            None => (Position::first(from), Expected::Absent),
        };
        let before = position.complete_until.unwrap_or(position.origin);
        if from > before {
            if !yes {
                return Err(usage(format!(
                    "`{content_type}` stands at {before}; moving it forward to {from} passes over what lies between. \
                     Add --yes to do so; the next run then delivers a gap record for it"
                )));
            }
            position.passed_over = Some((before, from));
        } else {
            goes_back = true;
            let set = KeySet::load(&*store, &keys.blobs(content_type), Kind::Blobs).await.map_err(broken)?;
            let set = std::sync::Mutex::new(set);
            ops.extend(key_set::forget_from(&set, &*store, from).await.map_err(broken)?.ops);
        }
        position.origin = position.origin.min(from);
        position.complete_until = Some(from);
        position.listed_until = Some(from);
        position.day_listed = None;
        position.week_listed = None;
        said.push(format!("{content_type}: {before} -> {from}"));
        ops.push(Op::Put { key, value: format::encode(&position), expected });
    }
    if goes_back {
        // What is read again is delivered again: the keys of events from there on are forgotten, too. An event may be
        // older than its blob, so all keys are.
        let set = KeySet::load(&*store, &keys.events(), Kind::Events).await.map_err(broken)?;
        let set = std::sync::Mutex::new(set);
        let staged = key_set::forget_from(&set, &*store, Timestamp::UNIX_EPOCH).await.map_err(broken)?;
        ops.extend(staged.ops);
    }
    store.commit(ops).await.map_err(broken)?;
    for line in said {
        writeln!(out, "{line}").map_err(Failure::io)?;
    }
    Ok(Exit::Done)
}

async fn load<T: format::Stored + serde::de::DeserializeOwned>(
    store: &dyn StateStore,
    key: &str,
) -> Result<Option<(T, Revision)>, Failure> {
    let stored: Option<(Bytes, Revision)> = store.load(key).await.map_err(broken)?;
    stored.map(|(bytes, revision)| Ok((format::decode(key, &bytes).map_err(broken)?, revision))).transpose()
}

async fn load_all<T: format::Stored + serde::de::DeserializeOwned>(
    store: &dyn StateStore,
    prefix: &str,
) -> Result<Vec<T>, Failure> {
    let mut all = Vec::new();
    for (key, _) in store.list(prefix).await.map_err(broken)? {
        // Beside a running process an entry may go between the list and the load.
        all.extend(load(store, &key).await?.map(|(value, _)| value));
    }
    Ok(all)
}
