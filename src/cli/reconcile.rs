//! `m365-audit reconcile`: compares an export of the audit search with the delivered events.
//!
//! It owns the options, the output of the verdict and the exit code; `crate::reconcile` compares. It reads the state
//! beside a running process and does not change it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::SignedDuration;
use tokio::runtime::Handle;

use super::exit::Exit;
use super::progress::{ProgressDisplay, ProgressUnit};
use super::{Failure, loaded, opened};
use crate::checkpoint::format::Keys;
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, Format, SourceConfig};
use crate::exports::input::Input;
use crate::host::StateStore;
use crate::hosts::embedded::store::{SqliteStore, StoreError};
use crate::model::{Actionable, Timestamp};
use crate::normalise::{Normaliser, NormaliserSettings};
use crate::reconcile::class::RowClass;
use crate::reconcile::compare::{CompareError, CompareRequest, compare};
use crate::reconcile::evidence::Known;
use crate::reconcile::stored::StateReceipts;
use crate::reconcile::verdict::Verdict;

/// The folder beside the state, with a file for each source.
const FOLDER: &str = "reconcile";

/// Compares an export of the audit search with what was delivered.
#[derive(Debug, Clone, clap::Args)]
pub struct ReconcileArgs {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// The source, by its name in the configuration; needed when it has several
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
    /// Events younger than this may be on their way: an age such as 72h, 3d, 90m; 0s asks of every row what became of it
    #[arg(long, value_name = "AGE", default_value = "72h", value_parser = age)]
    pub settle: SignedDuration,
    /// Records that were delivered, in any format of ours; can be given several times
    #[arg(long, value_name = "FILE")]
    pub delivered: Vec<PathBuf>,
    /// Where the time that was searched begins, to see whether the export is cut there
    #[arg(long, value_name = "TIME", value_parser = super::moment::time)]
    pub from: Option<Timestamp>,
    /// Where the time that was searched ends, likewise
    #[arg(long, value_name = "TIME", value_parser = super::moment::time)]
    pub to: Option<Timestamp>,
    /// The verdict as one JSON object
    #[arg(long)]
    pub json: bool,
    /// The export: files and folders in any form that `docs/exports.md` names, packed or not; `-` is standard input
    #[arg(required = true, value_name = "EXPORT")]
    pub exports: Vec<PathBuf>,
}

/// An age, which may be 0.
fn age(text: &str) -> Result<SignedDuration, String> {
    super::moment::age(text).ok_or_else(|| format!("`{text}` is not an age: expected one such as 72h, 3d, 90m, or 0s"))
}

/// Why there is no verdict, or why it was not stored.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The verdict was shown but cannot be stored.
    #[error("the verdict cannot be written to `{}`: {why}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        why: io::Error,
    },
    /// The export was to come from standard input.
    #[error("standard input cannot be read: {0}")]
    Stdin(io::Error),
}

impl Actionable for ReconcileError {
    fn slug(&self) -> &'static str {
        match self {
            Self::Write { .. } => "reconcile-write-failed",
            Self::Stdin(_) => "normalize-read-failed",
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Write { .. } => {
                "the verdict above is whole; `report` will not know of it. Run the command as the user who owns `data_dir`, or free disk space".into()
            }
            Self::Stdin(_) => "give the export as a file".into(),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When the configuration or the state cannot be read, or the verdict cannot be stored.
pub async fn reconcile(args: ReconcileArgs, out: &mut (dyn Write + Send)) -> Result<Exit, Failure> {
    let config = loaded::load(&args.config).await?;
    let (name, source) = chosen(&config, args.source.as_deref())?;
    let store = match &config.cluster {
        Some(cluster) => Some(Arc::new(opened::shared(cluster).await?) as Arc<dyn StateStore>),
        None => match SqliteStore::open_read_only(&config.data_dir) {
            Ok(store) => Some(Arc::new(store) as Arc<dyn StateStore>),
            Err(StoreError::Missing { .. }) if !args.delivered.is_empty() => None,
            Err(error) => return Err(error.into()),
        },
    };
    let receipts = receipts_of(store.as_ref(), source);
    let dropping = dropping(source)?;
    let spooled = spool_stdin(args.exports.iter().chain(&args.delivered))?;
    let (json, data_dir) = (args.json, config.data_dir.clone());
    let (name, source) = (name.to_owned(), source.clone());
    let runtime = Handle::current();
    let progress = ProgressDisplay::at_the_terminal(ProgressUnit::Bytes);
    let shown = progress.clone();
    let work = move || {
        let export = || watched(inputs(&args.exports, spooled.as_ref())?, &shown, "reconcile: the export");
        let delivered = || watched(inputs(&args.delivered, spooled.as_ref())?, &shown, "reconcile: what was delivered");
        let request = CompareRequest {
            source: name,
            tenant: source.tenant_id.clone(),
            content_types: source.content_types.clone(),
            event_keys_max: source.event_keys_max,
            dropping,
            export: &export,
            delivered: if args.delivered.is_empty() { None } else { Some(&delivered) },
            store,
            receipts,
            settle: args.settle,
            asked: (args.from, args.to),
            now: SystemClock::new().now(),
        };
        compare(&request, &runtime)
    };
    let compared = tokio::task::spawn_blocking(work).await;
    progress.end();
    let compared = compared.map_err(Failure::internal)?;
    let mut verdict = compared.map_err(of_comparison)?;
    let mut text = BufWriter::new(&mut *out);
    let written = if json { verdict.write_json(&mut text) } else { verdict.write_text(&mut text) };
    written.and_then(|()| text.flush()).map_err(Failure::io)?;
    drop(text);
    let path = verdict_path(&data_dir, &verdict.source);
    let exit = exit_of(&verdict);
    keep(&mut verdict, &path).map_err(|why| {
        // The result takes precedence over the failure to store it.
        let exit = if exit == Exit::Done { Exit::State } else { exit };
        Failure::of(&ReconcileError::Write { path, why }, exit)
    })?;
    Ok(exit)
}

/// The receipts of a tenant, if the state has any.
pub(super) fn receipts_of(store: Option<&Arc<dyn StateStore>>, source: &SourceConfig) -> Option<Arc<dyn Known>> {
    let keys = Keys::of(&source.tenant_id);
    store.map(|store| Arc::new(StateReceipts::new(store.clone(), &keys)) as Arc<dyn Known>)
}

/// The selected source.
fn chosen<'a>(config: &'a Config, name: Option<&str>) -> Result<(&'a str, &'a SourceConfig), Failure> {
    let known = || config.sources.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let usage = |message: String| Failure { message: format!("usage: {message}"), exit: Exit::Usage };
    match name {
        Some(name) => {
            let found = config.sources.get_key_value(name);
            found.ok_or_else(|| usage(format!("no source is named `{name}`; there are: {}", known())))
        }
        None if config.sources.len() > 1 => {
            Err(usage(format!("an export is of one tenant: name its source with --source; there are: {}", known())))
        }
        None => config.sources.first_key_value().ok_or_else(|| usage("the configuration has no source".into())),
    }
    .map(|(name, source)| (name.as_str(), source))
}

/// The normaliser that decides which events the source drops, if it drops any.
pub(super) fn dropping(source: &SourceConfig) -> Result<Option<Normaliser>, Failure> {
    if !source.drop_routine {
        return Ok(None);
    }
    let rules = source.severity.load().map_err(|error| Failure::of(&error, Exit::Config))?;
    Ok(Some(Normaliser::new(NormaliserSettings {
        format: Format::Raw,
        drop_routine: true,
        internal_domains: source.internal_domains.clone(),
        rules,
        ..NormaliserSettings::default()
    })))
}

/// Why a comparison could not be made.
pub(super) fn of_comparison(error: CompareError) -> Failure {
    match error {
        CompareError::State(error) => Failure::of_state(error),
        CompareError::Temporary(error) => Failure {
            message: format!(
                "io: no temporary file can be used in `{}`: {error}\n  hint: set TMPDIR to a folder that can be written, with room \
                 for the export's rows (120 bytes each)",
                std::env::temp_dir().display()
            ),
            exit: Exit::Internal,
        },
    }
}

/// Copies standard input, if selected, to a file without a name: it may be the export and what was delivered.
fn spool_stdin<'a>(mut files: impl Iterator<Item = &'a PathBuf>) -> Result<Option<Arc<File>>, Failure> {
    if !files.any(|file| file.as_os_str() == "-") {
        return Ok(None);
    }
    let spooled = tempfile::tempfile().and_then(|mut file| io::copy(&mut io::stdin().lock(), &mut file).map(|_| file));
    let failed = |error| Failure::of(&ReconcileError::Stdin(error), Exit::Data);
    Ok(Some(Arc::new(spooled.map_err(failed)?)))
}

fn inputs(files: &[PathBuf], stdin: Option<&Arc<File>>) -> io::Result<Vec<Input<'static>>> {
    let mut opened = BTreeSet::new();
    let mut inputs = Vec::new();
    // A file that is named twice is read once.
    for file in files.iter().filter(|file| opened.insert(file.as_path())) {
        inputs.push(match stdin.filter(|_| file.as_os_str() == "-") {
            Some(stdin) => {
                let mut stdin = stdin.try_clone()?;
                stdin.seek(SeekFrom::Start(0))?;
                Input::Stream("-".into(), Box::new(stdin))
            }
            None => Input::named(file),
        });
    }
    Ok(inputs)
}

/// A progress bar for each reading of the inputs.
fn watched(inputs: Vec<Input<'static>>, progress: &ProgressDisplay, what: &str) -> io::Result<Vec<Input<'static>>> {
    progress.begin(what, inputs.iter().map(Input::bytes).sum());
    let watch = progress.adder();
    Ok(inputs.into_iter().map(|input| input.watched(&watch)).collect())
}

/// The file of a source's verdict.
pub fn verdict_path(data_dir: &Path, source: &str) -> PathBuf {
    verdicts(data_dir).join(format!("{source}.json"))
}

/// The folder of all verdicts.
pub(super) fn verdicts(data_dir: &Path) -> PathBuf {
    data_dir.join(FOLDER)
}

/// Stores a verdict atomically; on failure the one before stays.
fn keep(verdict: &mut Verdict, path: &Path) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut make = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut make, 0o700);
    make.recursive(true).create(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    let mut out = BufWriter::new(&mut file);
    verdict.write_json(&mut out)?;
    out.flush()?;
    drop(out);
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// The exit code: the first of these that applies.
fn exit_of(verdict: &Verdict) -> Exit {
    let is_unreadable = verdict.classes.of(RowClass::Unreadable) > 0 || !verdict.broken.is_empty();
    match () {
        () if !verdict.unopened.is_empty() => Exit::NoInput,
        () if verdict.classes.of(RowClass::Missing) > 0 || verdict.witness.looks_cut => Exit::Left,
        () if is_unreadable => Exit::Data,
        () => Exit::Done,
    }
}
