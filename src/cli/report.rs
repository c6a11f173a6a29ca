//! `m365-audit report`: writes the report for an auditor, from state and receipts, beside a running process.
//!
//! It owns the options and the output; `crate::report` makes the content. It does not change `data_dir`.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::exit::Exit;
use super::reconcile::verdict_path;
use super::{Failure, loaded, opened};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, SourceConfig};
use crate::host::StateStore;
use crate::hosts::embedded::receipts_key;
use crate::model::{Actionable, TenantId, Timestamp};
use crate::receipts::note::VerifierKey;
use crate::report::gather::{ReportRequest, ReportTenant, gather};
use crate::report::model::{AuditReport, Reconcile};
use crate::report::{html, reconciled, text};

/// Arguments of `report`.
#[derive(Debug, clap::Args)]
pub struct ReportArgs {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// Only this source, by its name in the configuration
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Where the period begins: RFC 3339 (2026-05-01T00:00:00Z), a date, or an age (3d, 12h). Default: 30 days ago, or where
    /// state and receipts begin
    #[arg(long, value_name = "TIME", value_parser = super::moment::time)]
    from: Option<Timestamp>,
    /// Where it ends, likewise. Default: now
    #[arg(long, value_name = "TIME", value_parser = super::moment::time)]
    to: Option<Timestamp>,
    /// The form: `html` is one page to hand over, `json` is for programs. Default: that of the file's name (`.html`,
    /// `.json`), else `text`
    #[arg(long, value_enum)]
    format: Option<ReportFormat>,
    /// The file to write, whole or not at all, readable for others (0644 less the umask). Default: standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// A form of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ReportFormat {
    /// For a terminal.
    Text,
    /// One page.
    Html,
    /// One object.
    Json,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// It cannot be written.
    #[error("the report cannot be written to `{}`: {why}", path.display())]
    Unwritable {
        /// Where.
        path: PathBuf,
        /// Why.
        why: io::Error,
    },
}

impl Actionable for ReportError {
    fn slug(&self) -> &'static str {
        match self {
            Self::Unwritable { .. } => "report-unwritable",
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Unwritable { .. } => {
                "name a file in a directory where this user may write, or leave `-o` out; a file that was there is as it was".into()
            }
        }
    }
}

/// Runs the command. The exit code is 0 when the report was written, whatever its content.
///
/// # Errors
/// When the configuration or the state cannot be read, or the report cannot be written.
pub async fn report(args: ReportArgs, out: &mut (dyn Write + Send)) -> Result<Exit, Failure> {
    let config = loaded::load(&args.config).await?;
    let sources = chosen(&config, args.source.as_deref())?;
    let now = SystemClock::new().now();
    let to = args.to.map_or(now, |to| to.min(now));
    if let Some(from) = args.from.filter(|from| *from >= to) {
        return Err(usage(format!("the period is empty: it would begin {from} and end {to}")));
    }
    let store = opened::for_reading(&config).await?;
    let asked = ReportRequest {
        program: program(),
        now,
        from: args.from,
        to: args.to,
        receipts_days: config.receipts.days,
        key: receipts_key::open(&config.receipts_key()).map(|signer| signer.key().clone()).map_err(|e| e.to_string()),
    };
    let tenant = |(name, source): (&String, &SourceConfig)| {
        asked_tenant(name, source, verdict(&verdict_path(&config.data_dir, name), &source.tenant_id))
    };
    let tenants = sources.into_iter().map(tenant).collect();
    let made = gather(&store, &asked, tenants).await.map_err(Failure::of_state)?;
    let output = args.output.filter(|path| path.as_os_str() != "-");
    let format = args.format.or_else(|| output.as_deref().and_then(format_of)).unwrap_or(ReportFormat::Text);
    match output {
        None => write(&made, format, out).map_err(Failure::io)?,
        Some(path) => keep(&made, format, &path)?,
    }
    Ok(Exit::Done)
}

/// The form that a file's name chooses.
fn format_of(path: &Path) -> Option<ReportFormat> {
    let suffix = path.extension()?.to_str()?.to_ascii_lowercase();
    match suffix.as_str() {
        "html" | "htm" => Some(ReportFormat::Html),
        "json" => Some(ReportFormat::Json),
        _ => None,
    }
}

/// The name and version shown in a report.
fn program() -> String {
    concat!("m365-audit ", env!("CARGO_PKG_VERSION")).to_owned()
}

fn asked_tenant(name: &str, source: &SourceConfig, reconcile: Reconcile) -> ReportTenant {
    ReportTenant {
        source: name.to_owned(),
        tenant: source.tenant_id.clone(),
        content_types: source.content_types.clone(),
        hold_secs: source.hold_secs,
        reconcile,
    }
}

/// Writes the HTML page of one source, from its state, the key of its receipts, and the verdict of a comparison as
/// JSON.
///
/// # Errors
/// When the state cannot be read, or the page cannot be written.
pub(super) async fn of_one(
    state: &dyn StateStore,
    (name, source): (&str, &SourceConfig),
    (key, verdict): (VerifierKey, Option<&[u8]>),
    now: Timestamp,
    path: &Path,
) -> Result<(), Failure> {
    let asked = ReportRequest { program: program(), now, from: None, to: None, receipts_days: 1, key: Ok(key) };
    let tenants = vec![asked_tenant(
        name,
        source,
        verdict.map_or(Reconcile::None, |json| reconciled::read(json, &source.tenant_id)),
    )];
    let made = gather(state, &asked, tenants).await.map_err(Failure::of_state)?;
    keep(&made, ReportFormat::Html, path)
}

fn usage(message: String) -> Failure {
    Failure { message: format!("usage: {message}"), exit: Exit::Usage }
}

fn chosen<'c>(config: &'c Config, only: Option<&str>) -> Result<Vec<(&'c String, &'c SourceConfig)>, Failure> {
    let sources: Vec<_> = config.sources.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)).collect();
    if sources.is_empty() {
        let known = config.sources.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        return Err(usage(format!("no source is named `{}`; there are: {known}", only.unwrap_or_default())));
    }
    Ok(sources)
}

fn verdict(path: &Path, tenant: &TenantId) -> Reconcile {
    match File::open(path) {
        Ok(file) => reconciled::read(BufReader::new(file), tenant),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Reconcile::None,
        Err(error) => Reconcile::Unreadable { why: error.to_string() },
    }
}

fn write(report: &AuditReport, format: ReportFormat, out: &mut dyn Write) -> io::Result<()> {
    match format {
        ReportFormat::Text => text::write(report, out)?,
        ReportFormat::Html => out.write_all(html::page(report).as_bytes())?,
        ReportFormat::Json => {
            serde_json::to_writer_pretty(&mut *out, report)?;
            writeln!(out)?;
        }
    }
    out.flush()
}

/// Writes a file atomically: on failure the old content stays. Anything but a regular file is written to directly.
///
/// # Errors
/// When it cannot be written.
fn keep(report: &AuditReport, format: ReportFormat, path: &Path) -> Result<(), Failure> {
    let written = match fs::metadata(path) {
        Ok(found) if !found.is_file() => {
            OpenOptions::new().write(true).open(path).and_then(|mut file| write(report, format, &mut file))
        }
        _ => replace(report, format, path),
    };
    written.map_err(|why| Failure::of(&ReportError::Unwritable { path: path.to_owned(), why }, Exit::State))
}

fn replace(report: &AuditReport, format: ReportFormat, path: &Path) -> io::Result<()> {
    // A link is kept, and its target is replaced.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().permissions(Permissions::from_mode(0o644)).tempfile_in(folder)?;
    let mut out = BufWriter::new(&mut file);
    write(report, format, &mut out)?;
    drop(out);
    file.as_file().sync_all()?;
    file.persist(&path).map_err(|error| error.error)?;
    Ok(())
}
