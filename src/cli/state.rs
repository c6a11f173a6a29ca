//! `m365-audit state`: shows the state, and changes it on request.
//!
//! `show` and `export` read beside a running process. `set` and `retry` ask that process, because the state has one
//! writer; if none runs, they write themselves. Moving a position back removes the marks of blobs that are to be read
//! again. Moving it forward skips events, so it requires `--yes`, and a gap record reports it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::SignedDuration;
use serde::Serialize;

use super::exit::Exit;
use super::glance::{self, RowState, Screen, TenantFilter, TenantRow, text_of};
use super::keeping::keeping;
use super::moment::span;
use super::progress::{ProgressDisplay, ProgressUnit};
use super::{Failure, loaded, opened, requests, transfer};
use crate::checkpoint::format::{self, AsideRecord, Keys, Position, StoredBackfill, TrackedBlob};
use crate::checkpoint::heal::{HealedInterval, NotKnown, StoredHeal};
use crate::checkpoint::held::HeldHead;
use crate::checkpoint::journal::Keeping;
use crate::checkpoint::ledger::{LedgerSettings, ServerTimeSource};
use crate::checkpoint::moving::{self, Move};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, SourceConfig};
use crate::host::{Revision, StateStore};
use crate::hosts::embedded::EmbeddedHost;
use crate::hosts::embedded::control::{Client, Say, What};
use crate::model::{ContentType, TenantId, Timestamp, counted};
use crate::source::aside::{self, Retried, StillAside};
use crate::source::backfill;
use crate::source::hold::waited_for;

/// The time that a sink gets to end after `retry`.
const RETRY_GRACE: Duration = Duration::from_secs(8);

/// An unsettled blob that expires within this time is a fault.
const EXPIRES_SOON: SignedDuration = SignedDuration::from_hours(24);
/// A content type that is this far behind is a fault.
const BEHIND: SignedDuration = SignedDuration::from_hours(24);

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
        #[command(flatten)]
        which: TenantFilter,
    },
    /// Move positions, beside a running process too: what became available from a time on is read (again), what lies
    /// before is not
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
        /// Where to go on from: RFC 3339 (2026-05-01T00:00:00Z), a date, or an age (3d, 12h, 90m)
        #[arg(long, value_name = "TIME", value_parser = super::moment::time)]
        from: Timestamp,
        /// Pass events over, when the position moves forward
        #[arg(long)]
        yes: bool,
    },
    /// Offer the records that were set aside to the sinks again, beside a running process too
    Retry {
        /// The configuration file
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// Only those of this source, by its name in the configuration
        #[arg(long, value_name = "NAME")]
        source: Option<String>,
    },
    /// Write the records a host rejected to standard output, one per line, as they were offered; with --tenant, all that
    /// is remembered of a tenant into a file
    Export {
        /// The configuration file
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// All that is remembered of this tenant, for `state import` elsewhere
        #[arg(long, value_name = "GUID", value_parser = super::work::tenant, requires = "output")]
        tenant: Option<TenantId>,
        /// The file to write that to; it must not be there yet
        #[arg(short, long, value_name = "FILE", requires = "tenant")]
        output: Option<PathBuf>,
    },
    /// Take in what `state export --tenant` wrote, where nothing is remembered of the tenant yet
    Import {
        /// The configuration file
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    backfill: Option<String>,
    /// Gaps that were declared and are not filled.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gaps: Vec<GapShown>,
    /// Intervals filled through Microsoft Graph.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    healed: Vec<HealedInterval>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_known: Vec<NotKnown>,
}

#[derive(Serialize)]
struct GapShown {
    from: Timestamp,
    to: Timestamp,
    reason: String,
}

/// Routine reads on hold.
#[derive(Serialize, Default, Clone)]
struct HeldShown {
    events: u64,
    bytes: u64,
    /// `contentCreated` of the oldest.
    oldest: Option<Timestamp>,
    /// What the oldest waits for until its decision.
    #[serde(skip_serializing_if = "Option::is_none")]
    waits_for: Option<ShownWait>,
}

/// A content type that may flag reads on hold.
#[derive(Serialize, Clone, Debug, PartialEq)]
struct ShownWait {
    content_type: String,
    /// The time until which it must be complete to decide the oldest read.
    needed_until: Timestamp,
    complete_until: Option<Timestamp>,
    /// How far it is behind now, in seconds.
    behind_secs: Option<i64>,
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
        StateCommand::Show { config, json, which } => {
            let which = if json { TenantFilter::default() } else { which };
            // The state does not depend on a file that is missing for one of many tenants.
            show(&loaded::load_to_run(&config).await?.0, json, &which, out).await
        }
        StateCommand::Export { config, tenant: Some(tenant), output: Some(path) } => {
            transfer::export(&loaded::load_to_run(&config).await?.0, &tenant, &path, out).await
        }
        StateCommand::Export { config, .. } => export(&loaded::load(&config).await?, out).await,
        StateCommand::Import { config, file } => {
            transfer::import(&loaded::load_to_run(&config).await?.0, &file, out).await
        }
        StateCommand::Retry { config, source } => retry(&loaded::load(&config).await?, source.as_deref(), out).await,
        StateCommand::Set { config, source, content_type, from, yes } => {
            let config = loaded::load(&config).await?;
            let found = source_of(&config, &source)?;
            if let Some(other) = content_type.iter().find(|t| !found.content_types.contains(t)) {
                return Err(usage(format!("source `{source}` does not read `{other}`")));
            }
            let types = if content_type.is_empty() { found.content_types.clone() } else { content_type };
            set(&config, &source, found, &types, from, yes, out).await
        }
    }
}

fn source_of<'a>(config: &'a Config, name: &str) -> Result<&'a SourceConfig, Failure> {
    config.sources.get(name).ok_or_else(|| {
        let known = config.sources.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        usage(format!("no source is named `{name}`; there are: {known}"))
    })
}

fn usage(message: String) -> Failure {
    Failure { message: format!("usage: {message}"), exit: Exit::Usage }
}

async fn show(
    config: &Config,
    json: bool,
    which: &TenantFilter,
    out: &mut (dyn Write + Send),
) -> Result<Exit, Failure> {
    which.known(config.sources.keys().map(String::as_str))?;
    let store = opened::for_reading(config).await?;
    let mut shown = BTreeMap::new();
    for (name, source) in config.sources.iter().filter(|(name, _)| which.names(name)) {
        shown.insert(name.as_str(), streams(&*store, name, source).await?);
    }
    if json {
        let all: Vec<&StreamShown> = shown.values().flatten().collect();
        let text = serde_json::to_string_pretty(&all).map_err(Failure::internal)?;
        writeln!(out, "{text}").map_err(Failure::io)?;
        return Ok(Exit::Done);
    }
    if shown.values().all(Vec::is_empty) {
        writeln!(out, "nothing is remembered yet under {}", config.data_dir.display()).map_err(Failure::io)?;
        return Ok(Exit::Done);
    }
    let now = SystemClock::new().now();
    if which.one_line(shown.keys().copied()) {
        let live = glance::live(config).await;
        let rows = shown.iter().map(|(name, streams)| row(name, streams, now).with_live(live.get(*name), now));
        for line in glance::lines(rows.collect(), which, Screen::of_stdout()) {
            writeln!(out, "{}", text_of(&line)).map_err(Failure::io)?;
        }
        return Ok(Exit::Done);
    }
    for (name, streams) in &shown {
        let is_well = row(name, streams, now).is_well;
        for stream in streams.iter().filter(|_| which.shows(name, is_well)) {
            print(stream, out).map_err(Failure::io)?;
        }
    }
    Ok(Exit::Done)
}

/// The line of a source.
fn row(name: &str, streams: &[StreamShown], now: Timestamp) -> TenantRow {
    let aside: usize = streams.iter().map(|stream| stream.set_aside.len()).sum();
    let owed: usize = streams.iter().map(|stream| stream.tracked.len()).sum();
    let first_gone = streams.iter().flat_map(|stream| &stream.tracked).map(|blob| blob.expires).min();
    let held: u64 = streams.iter().map(|stream| stream.held.events).sum();
    let complete = streams.iter().map(|stream| stream.complete_until.unwrap_or(stream.origin)).min();
    let delay = complete.map(|until| now.duration_since(until));
    let is_expiring = first_gone.is_some_and(|expires| expires.duration_since(now) < EXPIRES_SOON);
    let mut wrong = Vec::new();
    if let Some(expires) = first_gone {
        let in_time = span(expires.duration_since(now).as_secs_f64());
        wrong.push(format!("{} owed, the first is gone in {in_time}", counted(owed as u64, "blob")));
    }
    if aside > 0 {
        wrong.push(format!("{} set aside", counted(aside as u64, "record")));
    }
    let state = match delay {
        None => RowState { word: "new", rank: 3 },
        _ if is_expiring => RowState { word: "expiring", rank: 0 },
        _ if aside > 0 => RowState { word: "aside", rank: 1 },
        Some(delay) if delay > BEHIND => RowState { word: "behind", rank: 2 },
        Some(_) => RowState { word: "well", rank: 4 },
    };
    let is_well = state.rank > 2;
    match delay {
        None => wrong.push("nothing is remembered yet".to_owned()),
        Some(delay) if delay > BEHIND => wrong.push("not read completely for a day".to_owned()),
        Some(_) => {}
    }
    if held > 0 {
        wrong.push(format!("{} on hold", counted(held, "routine read")));
    }
    if let Some(backfill) = streams.iter().find_map(|stream| stream.backfill.as_ref()) {
        wrong.push(format!("back-fill {backfill}"));
    }
    let delay_secs = delay.map(|delay| delay.as_secs_f64());
    TenantRow { delay_secs, wrong: wrong.join("; "), is_well, ..TenantRow::of(name, state) }
}

/// The stored state of a source's content types.
async fn streams(store: &dyn StateStore, name: &str, source: &SourceConfig) -> Result<Vec<StreamShown>, Failure> {
    let keys = Keys::of(&source.tenant_id);
    let mut held = held(store, &keys).await?;
    if !held.is_empty() {
        let mut complete = Vec::new();
        for &content_type in &source.content_types {
            let position = load::<Position>(store, &keys.position(content_type)).await?;
            complete.push((content_type, position.and_then(|(position, _)| position.complete_until)));
        }
        for shown in held.values_mut() {
            shown.waits_for = waits_for(shown.oldest, source.hold_secs, &complete, SystemClock::new().now());
        }
    }
    let unfinished = load::<StoredBackfill>(store, &keys.backfill(name)).await?.map(|(stored, _)| stored);
    let healing = StoredHeal::load(store, &keys).await.map_err(Failure::of_state)?;
    let mut shown = Vec::new();
    for &content_type in &source.content_types {
        let unfinished = unfinished.as_ref().filter(|b| b.remaining.contains_key(content_type.as_str()));
        let Some((position, _)) = load::<Position>(store, &keys.position(content_type)).await? else { continue };
        let tracked = load_all::<TrackedBlob>(store, &keys.tracked(content_type)).await?;
        let aside = load_all::<AsideRecord>(store, &keys.aside(content_type)).await?;
        let tracked = tracked.into_iter().map(|b| TrackedShown {
            content_id: b.content_id,
            created: b.created,
            expires: b.expires,
        });
        let aside = aside.into_iter().map(|a| AsideShown {
            since: a.since,
            time: a.time,
            severity: a.severity,
            why: a.why,
            bytes: a.record.len(),
        });
        let gaps = healing.open(content_type, position.clone()).gaps;
        shown.push(StreamShown {
            source: name.to_owned(),
            tenant: source.tenant_id.to_string(),
            content_type: content_type.to_string(),
            origin: position.origin,
            complete_until: position.complete_until,
            listed_until: position.listed_until,
            last_listing: position.last_listing,
            tracked: tracked.collect(),
            set_aside: aside.collect(),
            held: held.get(&content_type).cloned().unwrap_or_default(),
            backfill: unfinished.map(backfill::describe),
            healed: healing.healed_of(content_type).to_vec(),
            not_known: healing.not_known_of(content_type).to_vec(),
            gaps: gaps.into_iter().map(|gap| GapShown { from: gap.from, to: gap.to, reason: gap.reason }).collect(),
        });
    }
    Ok(shown)
}

/// What a read made available at `oldest` waits for, given how far the configured content types are complete; `None`
/// when it can be decided.
fn waits_for(
    oldest: Option<Timestamp>,
    hold_secs: u64,
    complete: &[(ContentType, Option<Timestamp>)],
    now: Timestamp,
) -> Option<ShownWait> {
    let hold = SignedDuration::from_secs(i64::try_from(hold_secs).unwrap_or(i64::MAX));
    let needed_until = oldest?.saturating_add(hold).unwrap_or(Timestamp::MAX);
    let (content_type, complete_until) = waited_for(complete.iter().copied())?;
    if complete_until.is_some_and(|complete| complete >= needed_until) {
        return None;
    }
    let behind_secs = complete_until.map(|complete| now.duration_since(complete).as_secs());
    Some(ShownWait { content_type: content_type.to_string(), needed_until, complete_until, behind_secs })
}

/// The held reads, by content type.
async fn held(store: &dyn StateStore, keys: &Keys) -> Result<BTreeMap<ContentType, HeldShown>, Failure> {
    let mut all: BTreeMap<ContentType, HeldShown> = BTreeMap::new();
    for (key, _) in store.list(&keys.held()).await.map_err(Failure::of_state)? {
        let Some((bytes, _)) = store.load(&key).await.map_err(Failure::of_state)? else { continue };
        let head = HeldHead::decode(&key, &bytes).map_err(Failure::of_state)?;
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
    if let HeldShown { events, bytes, oldest: Some(oldest), waits_for } = &stream.held {
        writeln!(out, "  on hold         {events} routine reads ({bytes} bytes), the oldest made available {oldest}")?;
        if let Some(ShownWait { content_type, needed_until, complete_until, behind_secs }) = waits_for {
            let stands = match (complete_until, behind_secs) {
                (Some(complete), Some(behind)) => format!("it is until {complete}, {} behind", span(*behind as f64)),
                _ => "nothing of it is yet".to_owned(),
            };
            writeln!(out, "    waits until `{content_type}` is complete until {needed_until}; {stands}")?;
        }
    }
    if let Some(backfill) = &stream.backfill {
        writeln!(out, "  back-fill       {backfill} (`m365-audit backfill --resume` goes on with it)")?;
    }
    for GapShown { from, to, reason } in &stream.gaps {
        writeln!(out, "  gap             {from} to {to}: {reason}")?;
    }
    for NotKnown { from, to, events, .. } in &stream.not_known {
        writeln!(
            out,
            "    stays open    {from} to {to}: whether {} of before it were delivered is not known (heal-not-known)",
            counted(*events, "event")
        )?;
    }
    for HealedInterval { from, to, at, .. } in &stream.healed {
        writeln!(out, "  healed          {from} to {to}, through Microsoft Graph on {at}")?;
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
    let store = opened::for_reading(config).await?;
    let mut found = Vec::new();
    for source in config.sources.values() {
        let keys = Keys::of(&source.tenant_id);
        for &content_type in &source.content_types {
            found.extend(store.list(&keys.aside(content_type)).await.map_err(Failure::of_state)?);
        }
    }
    let progress = ProgressDisplay::beside_output(ProgressUnit::Things("records"));
    progress.begin("state export", Some(found.len() as u64));
    for (key, _) in found {
        // Beside a running process a record may disappear between the list and the load.
        if let Some((record, _)) = load::<AsideRecord>(&store, &key).await? {
            writeln!(out, "{}", record.record).map_err(Failure::io)?;
        }
        progress.add(1);
    }
    progress.end();
    Ok(Exit::Done)
}

/// Offers the records set aside again: in the running process, or with the sinks of the configuration.
async fn retry(config: &Config, only: Option<&str>, out: &mut (dyn Write + Send)) -> Result<Exit, Failure> {
    if let Some(name) = only {
        source_of(config, name)?;
    }
    let names = config.sources.keys().filter(|name| only.is_none_or(|only| only == *name));
    let mut all = Vec::new();
    if config.cluster.is_some() || Client::connect(&config.control_socket()).await?.is_some() {
        for name in names {
            all.push((name.clone(), retry_beside(config, name).await?));
        }
    } else {
        all = retry_alone(config, names.cloned().collect()).await?;
    }
    let mut exit = Exit::Done;
    for (name, Retried { delivered, left }) in all {
        writeln!(out, "{name}: {delivered} delivered, {} still set aside", left.len()).map_err(Failure::io)?;
        for StillAside { content_type, since, time, why } in &left {
            writeln!(out, "  {content_type}  event of {time}, set aside {since}: {why}").map_err(Failure::io)?;
        }
        if !left.is_empty() {
            exit = Exit::Left;
        }
    }
    Ok(exit)
}

async fn retry_beside(config: &Config, name: &str) -> Result<Retried, Failure> {
    let gone = || Failure::internal("the process has ended".to_owned());
    let mut client = requests::client(config, name).await?.ok_or_else(gone)?;
    client.ask(What::Retry { source: name.to_owned() }).await?;
    match client.next().await? {
        Say::Retried(retried) => Ok(retried),
        Say::Refused(refusal) => Err(refusal.into()),
        other => Err(Failure::internal(format!("an answer to another question: {other:?}"))),
    }
}

async fn retry_alone(config: &Config, names: Vec<String>) -> Result<Vec<(String, Retried)>, Failure> {
    let clock: Arc<dyn Clock> = SystemClock::new();
    // A state that is missing has nothing set aside, and opening it for writing would make one.
    opened::for_reading(config).await?;
    let store = opened::alone(config)?;
    let memory = super::run::SinkMemory::load(&store).await?;
    let mut sources = Vec::new();
    for name in names {
        let source = source_of(config, &name)?;
        let keys = Keys::of(&source.tenant_id);
        let mut count = 0;
        for &content_type in &source.content_types {
            count += store.list(&keys.aside(content_type)).await.map_err(Failure::of_state)?.len();
        }
        sources.push((name, source, count));
    }
    let mut all = Vec::new();
    // A sink is opened only if it gets records, since a file has one writer.
    let specs = match sources.iter().any(|(.., count)| *count > 0) {
        true => config
            .sinks
            .keys()
            .map(|name| super::run::sink_spec(config, name, &memory))
            .collect::<Result<Vec<_>, _>>()?,
        false => Vec::new(),
    };
    let host = Arc::new(EmbeddedHost::new(specs, memory.book.kept_in(store), clock.clone()));
    for (name, source, count) in sources {
        let mut retried = Retried::default();
        if count > 0 {
            let settings = LedgerSettings {
                tenant: source.tenant_id.clone(),
                content_types: source.content_types.clone(),
                event_keys_max: source.event_keys_max,
                fills_gaps: false,
                receipts: keeping(config).map(|keeping| Keeping { sends: false, ..keeping }),
                server_time: ServerTimeSource::default(),
            };
            retried = aside::retry_alone(name.as_str().into(), &settings, host.clone(), clock.clone())
                .await
                .map_err(Failure::of_state)?;
        }
        all.push((name, retried));
    }
    host.shutdown(RETRY_GRACE).await;
    Ok(all)
}

async fn set(
    config: &Config,
    name: &str,
    source: &SourceConfig,
    types: &[ContentType],
    from: Timestamp,
    yes: bool,
    out: &mut (dyn Write + Send),
) -> Result<Exit, Failure> {
    let lines = match requests::client(config, name).await? {
        Some(mut client) => {
            let content_types = types.iter().map(|t| t.as_str().to_owned()).collect();
            client.ask(What::Move { source: name.to_owned(), content_types, from, yes }).await?;
            match client.next().await? {
                Say::Moved(lines) => lines,
                Say::Refused(refusal) => return Err(refusal.into()),
                other => return Err(Failure::internal(format!("an answer to another question: {other:?}"))),
            }
        }
        None => {
            let store: Arc<dyn StateStore> = opened::alone(config)?;
            let wanted =
                Move { tenant: source.tenant_id.clone(), content_types: types.to_vec(), to: from, may_pass_over: yes };
            let now = SystemClock::new().now();
            let moved =
                moving::apply(&store, &wanted, now).await.map_err(|error| Failure::of(&error, Exit::from(&error)))?;
            moved.iter().map(ToString::to_string).collect::<Vec<_>>()
        }
    };
    for line in lines {
        writeln!(out, "{line}").map_err(Failure::io)?;
    }
    Ok(Exit::Done)
}

async fn load<T: format::Stored>(store: &dyn StateStore, key: &str) -> Result<Option<(T, Revision)>, Failure> {
    let stored: Option<(Bytes, Revision)> = store.load(key).await.map_err(Failure::of_state)?;
    stored.map(|(bytes, revision)| Ok((format::decode(key, &bytes).map_err(Failure::of_state)?, revision))).transpose()
}

async fn load_all<T: format::Stored>(store: &dyn StateStore, prefix: &str) -> Result<Vec<T>, Failure> {
    let mut all = Vec::new();
    for (key, _) in store.list(prefix).await.map_err(Failure::of_state)? {
        // Beside a running process an entry may disappear between the list and the load.
        all.extend(load(store, &key).await?.map(|(value, _)| value));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_on_hold_wait_for_the_type_that_is_complete_least_far_until_they_may_be_decided() {
        let t = |text: &str| text.parse::<Timestamp>().unwrap();
        let (oldest, now) = (t("2026-05-03T06:00:00Z"), t("2026-05-03T12:00:00Z"));
        let wait = |dlp: Option<&str>, general: Option<&str>| {
            let complete = [(ContentType::Dlp, dlp.map(t)), (ContentType::General, general.map(t))];
            let waits = waits_for(Some(oldest), 3600, &complete, now)?;
            assert_eq!(waits.needed_until, t("2026-05-03T07:00:00Z"));
            Some((waits.content_type, waits.behind_secs))
        };
        let (early, late) = (Some("2026-05-03T06:30:00Z"), Some("2026-05-03T11:55:00Z"));
        assert_eq!(wait(early, late), Some(("DLP.All".into(), Some(19_800))));
        assert_eq!(wait(late, None), Some(("Audit.General".into(), None)));
        assert_eq!(wait(late, late), None, "all that could flag it is known");
        assert_eq!(waits_for(Some(oldest), 3600, &[(ContentType::Exchange, None)], now), None);
        assert_eq!(waits_for(None, 3600, &[(ContentType::Dlp, None)], now), None, "nothing is on hold");
    }
}
