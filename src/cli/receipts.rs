//! `m365-audit receipts`: verifies and exports the sealed receipts, and prints the key to verify them with.
//!
//! All subcommands work beside a running process and do not change its state. The exit code is 0 only if all requested
//! receipts were verified.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::SignedDuration;
use serde::Serialize;

use super::exit::Exit;
use super::progress::{CountedStore, ProgressDisplay, ProgressUnit};
use super::{Failure, loaded, opened};
use crate::checkpoint::format::Keys;
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, SourceConfig};
use crate::host::StateStore;
use crate::hosts::embedded::receipts_key::{self, KeyError};
use crate::model::{Actionable, TenantId, Timestamp};
use crate::normalise::RECEIPT;
use crate::receipts::directory::{self, CHECKPOINT_SUFFIX, DirectoryError, ENTRIES_SUFFIX, HEAD_FILE, KEY_FILE};
use crate::receipts::leaves::leaves_of;
use crate::receipts::note::{Signer, VerifierKey, split};
use crate::receipts::statement::{Counts, Hour, ReceiptHead, Statement, open_by};
use crate::receipts::store::{self, ReceiptKeys, SealedParts};
use crate::receipts::verify::{ReceiptFault, Verification, Wrong};

/// Arguments of `receipts`.
#[derive(Debug, clap::Args)]
pub struct ReceiptsArgs {
    #[command(subcommand)]
    command: ReceiptsCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ReceiptsCommand {
    /// Verify receipts, in the state or in an exported directory: nothing changed, removed, inserted or exchanged, and no
    /// hour missing. Exit code 0 when everything was verified, 65 when something was not, 66 when something cannot be opened,
    /// 75 when nothing was sealed yet
    Verify(VerifyArgs),
    /// Write receipts as files that can be verified elsewhere
    Export {
        /// The configuration file
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// Only those of this source, by its name in the configuration
        #[arg(long, value_name = "NAME")]
        source: Option<String>,
        /// The public half of a key that was lost and that signed some of them, as `receipts key` printed it; can be given
        /// several times
        #[arg(long, value_name = "FILE")]
        key: Vec<PathBuf>,
        /// The directory to write, which does not exist yet or is empty
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Print the public half of the key that receipts are signed with: what `verify --key` reads
    Key {
        /// The configuration file
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct VerifyArgs {
    /// The configuration file: verifies what is in the state, beside a running process too
    #[arg(short, long, value_name = "FILE", required_unless_present = "dir")]
    config: Option<PathBuf>,
    /// A directory that `receipts export` wrote
    #[arg(value_name = "DIR", conflicts_with = "config")]
    dir: Option<PathBuf>,
    /// The public half of the key, as `receipts key` prints it, kept elsewhere. Default: the one beside the receipts, which
    /// shows only that all of them were signed by one key. Can be given several times: where a key was lost, each part may be
    /// signed by any of them
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// Signed checkpoints kept elsewhere, such as those that `[receipts] to` sent: the receipts must be of the same history
    #[arg(long, value_name = "FILE")]
    checkpoints: Vec<PathBuf>,
    /// Only this source, by its name in the configuration; of a directory by its tenant's GUID
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Why receipts were not verified or written.
#[derive(Debug, thiserror::Error)]
pub enum ReceiptsError {
    /// Some of them are wrong.
    #[error("the receipts were not verified: {0} {fault} found", fault = if *.0 == 1 { "fault was" } else { "faults were" })]
    NotVerified(u64),
    /// Nothing was sealed.
    #[error("there are no receipts in `{}`: nothing was sealed yet", data_dir.display())]
    Nothing {
        /// Where they would be.
        data_dir: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read `{}`: {why}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A checkpoint kept elsewhere that proves nothing.
    #[error("line {line} of `{}` has a checkpoint that cannot be compared: {why}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// The line it begins on.
        line: usize,
        /// Why.
        why: String,
    },
    /// A file of checkpoints without one.
    #[error("there is no checkpoint in `{}`", path.display())]
    NoCheckpoint {
        /// The file.
        path: PathBuf,
    },
    /// They cannot be written.
    #[error("cannot write receipts to `{}`: {why}", path.display())]
    Unwritable {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

impl Actionable for ReceiptsError {
    fn slug(&self) -> &'static str {
        match self {
            Self::NotVerified(_) => "receipts-not-verified",
            Self::Nothing { .. } => "receipts-none",
            Self::Unreadable { .. } => "receipts-unreadable",
            Self::Checkpoint { .. } | Self::NoCheckpoint { .. } => "receipts-checkpoint",
            Self::Unwritable { .. } => "receipts-unwritable",
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::NotVerified(_) => {
                "each fault names its place and what it means; docs/receipts.md says what to do about them".into()
            }
            Self::Nothing { .. } => {
                "an hour is sealed when it has ended; `[receipts] days` must not be 0, and `run` must be running".into()
            }
            Self::Unreadable { .. } => "check the path and its permissions".into(),
            Self::Checkpoint { .. } | Self::NoCheckpoint { .. } => {
                "give records of sinks (`m365_audit.receipt`, a line each) or checkpoints, one after the other, as they were sent; those of a key that was lost need its public half too (`--key`, which can be given several times)".into()
            }
            Self::Unwritable { .. } => "name a directory that does not exist yet, where this user may make one".into(),
        }
    }
}

impl ReceiptsError {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NotVerified(_) | Self::Checkpoint { .. } | Self::NoCheckpoint { .. } => Exit::Data,
            Self::Nothing { .. } => Exit::Left,
            Self::Unreadable { .. } => Exit::NoInput,
            Self::Unwritable { .. } => Exit::State,
        }
    }
}

impl From<ReceiptsError> for Failure {
    fn from(error: ReceiptsError) -> Self {
        Self::of(&error, error.exit())
    }
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        let exit = match error {
            KeyError::Missing { .. } => Exit::NoInput,
            KeyError::File { .. } | KeyError::Damaged { .. } => Exit::State,
        };
        Self::of(&error, exit)
    }
}

impl From<DirectoryError> for Failure {
    fn from(error: DirectoryError) -> Self {
        let DirectoryError::Unreadable { path, why } = error;
        ReceiptsError::Unreadable { path, why }.into()
    }
}

/// Runs the subcommand.
///
/// # Errors
/// When a file or the state cannot be read or written, or not everything was verified.
pub async fn receipts(args: ReceiptsArgs, out: &mut (dyn Write + Send)) -> Result<Exit, Failure> {
    match args.command {
        ReceiptsCommand::Key { config } => {
            let config = loaded::load(&config).await?;
            let signer = receipts_key::open(&config.receipts_key())?;
            writeln!(out, "{}", signer.key()).map_err(Failure::io)?;
            Ok(Exit::Done)
        }
        ReceiptsCommand::Verify(args) => verify(args, out).await,
        ReceiptsCommand::Export { config, source, key, dir } => {
            let lost = read_keys(&key)?;
            export(&loaded::load(&config).await?, source.as_deref(), lost, &dir, out).await
        }
    }
}

// ---------------------------------------------------------------------------------------------- verifying

#[derive(Default)]
struct Verified {
    keys: Vec<VerifierKey>,
    /// The key came with what it verifies.
    is_own_key: bool,
    /// Checkpoints kept elsewhere were given.
    is_compared: bool,
    /// How many of them belong to tenants that `--source` leaves out.
    left_out: u64,
    /// Receipts of this time and later are kept, by the configuration.
    kept_from: Option<Timestamp>,
    faults: Vec<ReceiptFault>,
    /// The verdicts, by the name of the source if it has one.
    tenants: Vec<(Option<String>, Verification)>,
    /// Sources without sealed receipts.
    without: Vec<String>,
}

impl Verified {
    fn faults(&self) -> u64 {
        let of_tenants: u64 = self.tenants.iter().map(|(_, verdict)| verdict.faults_in_all).sum();
        of_tenants + self.faults.len() as u64
    }

    /// Checkpoints kept elsewhere, of a tenant without receipts here, show that its receipts are gone.
    fn compare(&mut self, elsewhere: &[Statement], is_one_meant: bool) {
        let mut counts: BTreeMap<&str, (&TenantId, u64)> = BTreeMap::new();
        for Statement { tenant, .. } in elsewhere {
            counts.entry(tenant.as_str()).or_insert((tenant, 0)).1 += 1;
        }
        counts.retain(|tenant, _| !self.tenants.iter().any(|(_, verdict)| verdict.tenant.as_str() == *tenant));
        for (tenant, count) in counts.into_values() {
            if is_one_meant {
                self.left_out += count;
            } else {
                self.fault(None, Wrong::ElsewhereTenant { tenant: tenant.clone(), count });
            }
        }
    }

    fn fault(&mut self, place: Option<String>, wrong: Wrong) {
        self.faults.push(ReceiptFault { place, seq: None, hour: None, wrong });
    }

    /// Whether parts before the first were removed although the configuration keeps them: it kept fewer days then, or a
    /// person removed them.
    fn is_removed_early(&self, verdict: &Verification) -> bool {
        let first = verdict.hours.map(|(first, _)| first.start());
        verdict.pruned() > 0 && self.kept_from.is_some_and(|kept| first.is_some_and(|first| first > kept))
    }
}

async fn verify(args: VerifyArgs, out: &mut (dyn Write + Send)) -> Result<Exit, Failure> {
    let keys = read_keys(&args.key)?;
    let mut kept = Vec::new();
    for path in &args.checkpoints {
        let text = fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
        kept.extend(checkpoints_of(path, &text)?);
    }
    let only = args.source.as_deref();
    let mut verified = match (&args.config, &args.dir) {
        (Some(path), _) => verify_state(&loaded::load(path).await?, keys, &kept, only).await?,
        (None, Some(dir)) => verify_directory(dir, &keys, &kept, only)?,
        (None, None) => return Err(usage("`-c FILE` or a directory is needed".to_owned())),
    };
    verified.is_compared = !args.checkpoints.is_empty();
    show(&verified, args.json, out)
}

fn unreadable(path: &Path, error: &io::Error) -> ReceiptsError {
    ReceiptsError::Unreadable { path: path.to_owned(), why: error.to_string() }
}

fn usage(message: String) -> Failure {
    Failure { message: format!("usage: {message}"), exit: Exit::Usage }
}

fn read_keys(paths: &[PathBuf]) -> Result<Vec<VerifierKey>, ReceiptsError> {
    paths.iter().map(|path| read_key(path)).collect()
}

fn read_key(path: &Path) -> Result<VerifierKey, ReceiptsError> {
    let text = fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
    let why = |error| ReceiptsError::Unreadable { path: path.to_owned(), why: format!("{error}") };
    text.trim_end().parse().map_err(why)
}

/// A checkpoint kept elsewhere.
struct KeptCheckpoint {
    path: PathBuf,
    line: usize,
    note: String,
}

/// The checkpoints in a text: one after the other, or in records of sinks (`m365_audit.receipt`), one a line, with any
/// other lines between them. There must be at least one.
fn checkpoints_of(path: &Path, text: &str) -> Result<Vec<KeptCheckpoint>, ReceiptsError> {
    fn find(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(members) => members.iter().for_each(|(name, value)| match value.as_str() {
                Some(note) if name == "checkpoint" => found.push(note.to_owned()),
                _ => find(value, found),
            }),
            serde_json::Value::Array(items) => items.iter().for_each(|item| find(item, found)),
            _ => {}
        }
    }
    let path = path.to_owned();
    let mut kept = Vec::new();
    if !text.trim_start().starts_with('{') {
        let mut rest = (text, 1);
        for note in split(text) {
            let before = rest.0.find(note).unwrap_or_default();
            let (blank, after) = rest.0.split_at(before);
            let line = rest.1 + blank.matches('\n').count();
            rest = (after.get(note.len()..).unwrap_or_default(), line + note.matches('\n').count());
            kept.push(KeptCheckpoint { path: path.clone(), line, note: note.to_owned() });
        }
    } else {
        for (number, line) in text.lines().enumerate().filter(|(_, line)| line.contains(RECEIPT)) {
            let line_number = number + 1;
            let record = serde_json::from_str(line).map_err(|error| ReceiptsError::Checkpoint {
                path: path.clone(),
                line: line_number,
                why: format!("the record cannot be read: {error}"),
            })?;
            let mut found = Vec::new();
            find(&record, &mut found);
            kept.extend(found.into_iter().map(|note| KeptCheckpoint { path: path.clone(), line: line_number, note }));
        }
    }
    if kept.is_empty() {
        return Err(ReceiptsError::NoCheckpoint { path });
    }
    Ok(kept)
}

/// The statements in them. One that none of these keys signed is refused, since it proves nothing.
fn statements(kept: &[KeptCheckpoint], keys: &[VerifierKey]) -> Result<Vec<Statement>, ReceiptsError> {
    let read = kept.iter().map(|KeptCheckpoint { path, line, note }| {
        let opened = open_by(keys, |key| Statement::open(note, key));
        opened.map(|(statement, _)| statement).map_err(|error| ReceiptsError::Checkpoint {
            path: path.clone(),
            line: *line,
            why: error.to_string(),
        })
    });
    read.collect()
}

async fn verify_state(
    config: &Config,
    given: Vec<VerifierKey>,
    kept: &[KeptCheckpoint],
    only: Option<&str>,
) -> Result<Verified, Failure> {
    let sources = sources_of(config, only)?;
    let cannot_open = |failure| Failure { exit: Exit::NoInput, ..failure };
    let store = opened::for_reading(config).await.map_err(cannot_open)?;
    let mut verified = Verified { is_own_key: given.is_empty(), keys: given, ..Verified::default() };
    if verified.keys.is_empty() && (!kept.is_empty() || is_any_sealed(&store, &sources).await) {
        verified.keys.push(receipts_key::open(&config.receipts_key())?.key().clone());
    }
    let elsewhere = statements(kept, &verified.keys)?;
    let days = config.receipts.days;
    // A part is removed this long after its hour ended, and the next is sealed within an hour.
    let kept_for = SignedDuration::from_hours(24 * i64::from(days) - 1);
    verified.kept_from = SystemClock::new().now().saturating_sub(kept_for).ok().filter(|_| days > 0);
    let mut pages = 0;
    let mut prefixes = Vec::new();
    for (_, source) in &sources {
        let sealed = ReceiptKeys::below(Keys::of(&source.tenant_id).receipts()).sealed();
        pages += store.list(&sealed).await.map_err(Failure::of_state)?.len() as u64;
        prefixes.push(sealed);
    }
    let progress = ProgressDisplay::at_the_terminal(ProgressUnit::Things("pages"));
    progress.begin("receipts verify", Some(pages));
    let store = CountedStore { store, progress: progress.clone(), prefixes };
    for (name, source) in sources {
        let (tenant, of_tenant) = (source.tenant_id.clone(), Keys::of(&source.tenant_id));
        let keys = ReceiptKeys::below(of_tenant.receipts());
        let verdict = store::verify(&store, &keys, tenant, &verified.keys, &elsewhere).await;
        if let Some(verdict) = verdict.map_err(Failure::of_state)? {
            verified.tenants.push((Some(name.clone()), verdict));
            continue;
        }
        verified.without.push(name.clone());
        // A process that keeps receipts writes the head when it takes the state over.
        let is_there = async |key: &str| Ok(store.load(key).await?.is_some());
        let is_written = async { Ok(!is_there(&keys.head()).await? && is_there(&of_tenant.owner()).await?) };
        if days > 0 && is_written.await.map_err(Failure::of_state)? {
            verified.fault(Some(keys.head()), Wrong::NeverBegun);
        }
    }
    progress.end();
    let is_meant = |statement: &&Statement| {
        only.is_none()
            || config
                .sources
                .iter()
                .any(|(name, source)| Some(name.as_str()) == only && source.tenant_id == statement.tenant)
    };
    let (meant, others): (Vec<Statement>, Vec<Statement>) = elsewhere.into_iter().partition(|s| is_meant(&s));
    verified.compare(&meant, false);
    verified.compare(&others, true);
    if verified.tenants.is_empty() && verified.faults.is_empty() {
        return Err(ReceiptsError::Nothing { data_dir: config.data_dir.clone() }.into());
    }
    Ok(verified)
}

/// Whether there is a part that needs a key.
async fn is_any_sealed(store: &dyn StateStore, sources: &[(&String, &SourceConfig)]) -> bool {
    for (_, source) in sources {
        let keys = ReceiptKeys::below(Keys::of(&source.tenant_id).receipts());
        if store::read_head(store, &keys).await.is_ok_and(|head| head.is_some_and(|head| head.seq > 0)) {
            return true;
        }
    }
    false
}

fn sources_of<'c>(config: &'c Config, only: Option<&str>) -> Result<Vec<(&'c String, &'c SourceConfig)>, Failure> {
    let sources: Vec<_> = config.sources.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)).collect();
    if sources.is_empty() {
        let known = config.sources.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        return Err(usage(format!("no source is named `{}`; there are: {known}", only.unwrap_or_default())));
    }
    Ok(sources)
}

fn verify_directory(
    dir: &Path,
    given: &[VerifierKey],
    kept: &[KeptCheckpoint],
    only: Option<&str>,
) -> Result<Verified, Failure> {
    let only = only.map(str::parse::<TenantId>).transpose();
    let only = only.map_err(|error| usage(format!("`--source` of a directory is its tenant: {error}")))?;
    let elsewhere = match given {
        _ if kept.is_empty() => Vec::new(),
        [] => statements(kept, &[read_key(&dir.join(KEY_FILE))?])?,
        given => statements(kept, given)?,
    };
    let progress = ProgressDisplay::at_the_terminal(ProgressUnit::Things("parts"));
    progress.begin("receipts verify", directory::parts(dir, only.as_ref()));
    let found = directory::verify_telling(dir, given, only.as_ref(), &elsewhere, &*progress.adder());
    progress.end();
    let found = found?;
    let mut verified = Verified {
        keys: found.keys,
        is_own_key: given.is_empty(),
        faults: found.faults,
        tenants: found.tenants.into_iter().map(|verdict| (None, verdict)).collect(),
        ..Verified::default()
    };
    let is_meant = |statement: &Statement| only.as_ref().is_none_or(|only| *only == statement.tenant);
    let (meant, others): (Vec<Statement>, Vec<Statement>) = elsewhere.into_iter().partition(is_meant);
    verified.compare(&meant, false);
    verified.compare(&others, true);
    Ok(verified)
}

#[derive(Serialize)]
struct VerificationView {
    verified: bool,
    key: Option<String>,
    /// All of them, where several were given.
    keys: Vec<String>,
    /// The key came with what it verifies.
    key_is_from_there: bool,
    faults: Vec<FaultShown>,
    tenants: Vec<VerifiedTenant>,
    nothing_sealed: Vec<String>,
    /// Of tenants that `--source` leaves out.
    checkpoints_left_out: u64,
}

#[derive(Serialize)]
struct FaultShown {
    place: Option<String>,
    seq: Option<u64>,
    hour: Option<Hour>,
    what: String,
}

#[derive(Serialize)]
struct VerifiedTenant {
    source: Option<String>,
    tenant: String,
    verified: bool,
    parts: u64,
    first: Option<u64>,
    last: Option<u64>,
    from: Option<Hour>,
    to: Option<Hour>,
    /// Where receipts begin, for the first time or again.
    begins: Vec<Hour>,
    entries: u64,
    counts: Counts,
    last_hash: Option<String>,
    exported: Option<String>,
    /// Parts at which the signing key changed, with the new key.
    key_changes: Vec<(u64, Hour, String)>,
    /// Whether parts at the beginning were removed that the configuration keeps.
    removed_early: bool,
    checkpoints_compared: u64,
    /// Checkpoints of parts that were removed as too old.
    checkpoints_not_compared: u64,
    faults_in_all: u64,
    faults: Vec<FaultShown>,
}

fn fault_shown(fault: &ReceiptFault) -> FaultShown {
    FaultShown { place: fault.place.clone(), seq: fault.seq, hour: fault.hour, what: fault.wrong.to_string() }
}

fn tenant_shown(verified: &Verified, (source, verdict): &(Option<String>, Verification)) -> VerifiedTenant {
    VerifiedTenant {
        source: source.clone(),
        tenant: verdict.tenant.to_string(),
        verified: verdict.is_good(),
        parts: verdict.parts,
        first: verdict.seqs.map(|(first, _)| first),
        last: verdict.seqs.map(|(_, last)| last),
        from: verdict.hours.map(|(from, _)| from),
        to: verdict.hours.map(|(_, to)| to),
        begins: verdict.begins.iter().map(|(_, hour)| *hour).collect(),
        entries: verdict.entries,
        counts: verdict.counts,
        last_hash: verdict.last_hash.map(|hash| STANDARD.encode(hash)),
        exported: verdict.exported.map(|time| time.to_string()),
        key_changes: verdict.key_changes.clone(),
        removed_early: verified.is_removed_early(verdict),
        checkpoints_compared: verdict.compared,
        checkpoints_not_compared: verdict.not_compared,
        faults_in_all: verdict.faults_in_all,
        faults: verdict.faults.iter().map(fault_shown).collect(),
    }
}

fn show(verified: &Verified, json: bool, out: &mut (dyn Write + Send)) -> Result<Exit, Failure> {
    if json {
        let shown = VerificationView {
            verified: verified.faults() == 0,
            key: verified.keys.first().map(ToString::to_string),
            keys: verified.keys.iter().map(ToString::to_string).collect(),
            key_is_from_there: verified.is_own_key,
            faults: verified.faults.iter().map(fault_shown).collect(),
            tenants: verified.tenants.iter().map(|tenant| tenant_shown(verified, tenant)).collect(),
            nothing_sealed: verified.without.clone(),
            checkpoints_left_out: verified.left_out,
        };
        let text = serde_json::to_string_pretty(&shown).map_err(Failure::internal)?;
        writeln!(out, "{text}").map_err(Failure::io)?;
    } else {
        print(verified, out).map_err(Failure::io)?;
    }
    match verified.faults() {
        0 => Ok(Exit::Done),
        faults => Err(ReceiptsError::NotVerified(faults).into()),
    }
}

fn print(verified: &Verified, out: &mut (dyn Write + Send)) -> io::Result<()> {
    for key in &verified.keys {
        let whence = if verified.is_own_key { " (it came with them: compare it with one kept elsewhere)" } else { "" };
        writeln!(out, "key             {}{whence}", key.short())?;
    }
    for fault in &verified.faults {
        writeln!(out, "not verified    {fault}")?;
    }
    for (source, verdict) in &verified.tenants {
        match source {
            Some(name) => writeln!(out, "{name} ({})", verdict.tenant)?,
            None => writeln!(out, "{}", verdict.tenant)?,
        }
        print_tenant(verified, verdict, out)?;
    }
    for name in &verified.without {
        writeln!(out, "{name}\n  nothing was sealed yet")?;
    }
    if verified.left_out > 0 {
        let count = verified.left_out;
        writeln!(out, "not compared    {count} checkpoints kept elsewhere, of tenants that --source leaves out")?;
    }
    Ok(())
}

fn print_tenant(verified: &Verified, verdict: &Verification, out: &mut (dyn Write + Send)) -> io::Result<()> {
    let state = if verdict.is_good() { "verified    " } else { "NOT VERIFIED" };
    if let (Some((first, last)), Some((from, to))) = (verdict.seqs, verdict.hours) {
        writeln!(out, "  {state}  parts {first} to {last}, hours {from} to {to}, {} entries", verdict.entries)?;
    } else {
        writeln!(out, "  {state}")?;
    }
    let counts = &verdict.counts;
    writeln!(
        out,
        "  counts        delivered {}, set aside {}, held {}, dropped {}; without an entry: repeated {}, without id {}",
        counts.delivered, counts.set_aside, counts.held, counts.dropped, counts.repeated, counts.without_id
    )?;
    if let Some(hash) = verdict.last_hash {
        writeln!(out, "  last hash     {}", STANDARD.encode(hash))?;
    }
    if verdict.pruned() > 0 {
        let earlier = verdict.pruned();
        writeln!(out, "  begins        with part {earlier}: those before it were older than `[receipts] days`")?;
    }
    if verified.is_removed_early(verdict) {
        writeln!(
            out,
            "  removed       earlier parts are gone that `[receipts] days` keeps: it was less, or they were removed"
        )?;
    }
    for (seq, hour, key) in &verdict.key_changes {
        writeln!(out, "  key changes   with part {seq} of {hour}: signed by {key} from there on")?;
    }
    for (seq, hour) in verdict.begins.iter().filter(|(seq, _)| *seq > 0) {
        writeln!(out, "  begins again  with part {seq} of {hour}: what was delivered shortly before has no receipts")?;
    }
    if verified.is_compared {
        writeln!(out, "  compared      with {} checkpoints kept elsewhere", verdict.compared)?;
    }
    if verdict.not_compared > 0 {
        writeln!(
            out,
            "  not compared  {} checkpoints kept elsewhere, of parts that were removed as too old",
            verdict.not_compared
        )?;
    }
    for fault in &verdict.faults {
        writeln!(out, "  fault         {fault}")?;
    }
    let more = verdict.faults_in_all.saturating_sub(verdict.faults.len() as u64);
    if more > 0 {
        writeln!(out, "  fault         and {more} more")?;
    }
    Ok(())
}

// ---------------------------------------------------------------------------------------------- exporting

async fn export(
    config: &Config,
    only: Option<&str>,
    lost: Vec<VerifierKey>,
    dir: &Path,
    out: &mut (dyn Write + Send),
) -> Result<Exit, Failure> {
    let sources = sources_of(config, only)?;
    let store = opened::for_reading(config).await?;
    let mut sealed = Vec::new();
    for (name, source) in sources {
        let keys = ReceiptKeys::below(Keys::of(&source.tenant_id).receipts());
        match store::read_head(&store, &keys).await.map_err(Failure::of_state)? {
            Some(head) if head.seq > 0 => sealed.push((source.tenant_id.clone(), keys, head)),
            _ => writeln!(out, "{name}: nothing was sealed yet").map_err(Failure::io)?,
        }
    }
    if sealed.is_empty() {
        return Err(ReceiptsError::Nothing { data_dir: config.data_dir.clone() }.into());
    }
    let signer = receipts_key::open(&config.receipts_key())?;
    let mut signed_by = vec![signer.key().clone()];
    signed_by.extend(lost);
    make_empty(dir)?;
    write_file(&dir.join(KEY_FILE), format!("{}\n", signer.key()).as_bytes())?;
    for (tenant, keys, head) in sealed {
        let mut parts = SealedParts::open(&store, &keys, &head).await.map_err(Failure::of_state)?;
        write_tenant(&dir.join(tenant.as_str()), &mut parts, (&signer, &signed_by)).await?;
    }
    show(&verify_directory(dir, &signed_by, &[], None)?, false, out)
}

/// Writes one tenant's parts, each signed by one of these keys, and the head over what was written.
async fn write_tenant(
    folder: &Path,
    parts: &mut SealedParts<'_>,
    (signer, signed_by): (&Signer, &[VerifierKey]),
) -> Result<(), Failure> {
    make_empty(folder)?;
    let (mut first, mut last) = (None, None);
    while let Some(part) = parts.next().await.map_err(Failure::of_state)? {
        first.get_or_insert(part.seq);
        write_file(&folder.join(directory::file_name(part.seq, ENTRIES_SUFFIX)), &part.pages.concat())?;
        let Some(note) = &part.note else { continue };
        write_file(&folder.join(directory::file_name(part.seq, CHECKPOINT_SUFFIX)), note)?;
        let opened =
            std::str::from_utf8(note).ok().and_then(|note| open_by(signed_by, |key| Statement::open(note, key)).ok());
        last = opened.map(|(statement, _)| statement).or(last);
    }
    let (Some(first), Some(last)) = (first, last) else { return Ok(()) };
    let previous = last.hash();
    let exported = SystemClock::new().now();
    let Statement { tenant, entries, root, seq, .. } = last;
    let head = ReceiptHead { tenant, leaves: leaves_of(entries), root, first, last: seq, previous, exported };
    write_file(&folder.join(HEAD_FILE), head.sign(signer).as_bytes())?;
    Ok(())
}

/// Creates a directory for this user alone. An existing one is used if it is empty.
fn make_empty(dir: &Path) -> Result<(), ReceiptsError> {
    let unwritable = |why: String| ReceiptsError::Unwritable { path: dir.to_owned(), why };
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            match fs::read_dir(dir).map(|mut in_it| in_it.next()) {
                Ok(None) => Ok(()),
                Ok(Some(_)) => Err(unwritable("it is not empty".to_owned())),
                Err(error) => Err(unwritable(error.to_string())),
            }
        }
        Err(error) => Err(unwritable(error.to_string())),
    }
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), ReceiptsError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path);
    let written = file.and_then(|mut file| file.write_all(bytes));
    written.map_err(|error| ReceiptsError::Unwritable { path: path.to_owned(), why: error.to_string() })
}
