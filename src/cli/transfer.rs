//! One tenant's whole state in a file, and back: between SQLite and PostgreSQL, from one machine to another.
//!
//! The file is lines of JSON: what it is, each entry with its value in base64, and at the end how many there are and a
//! checksum over all of them, so that a file that was cut is not taken for a small one. It is taken in by one commit.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::exit::Exit;
use super::progress::{ProgressDisplay, ProgressUnit};
use super::{Failure, opened};
use crate::checkpoint::format::{FORMAT, Keys};
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::host::{Entries, Expected, Op, StateStore};
use crate::hosts::embedded::store::{SqliteStore, running};
use crate::model::{Actionable, TenantId, Timestamp};

/// The version of the file.
const FILE: u32 = 1;
/// The longest line: a value of any size a store keeps, in base64.
const LINE_BYTES_MAX: u64 = 1 << 30;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct HeaderLine {
    m365_audit_state: u32,
    tenant: String,
    /// Version of what is stored under each key.
    format: u32,
    made: Timestamp,
}

/// A line between.
#[derive(Debug, Serialize, Deserialize)]
struct EntryLine {
    key: String,
    value: String,
}

/// The last line.
#[derive(Debug, Serialize, Deserialize)]
struct TrailerLine {
    entries: u64,
    blake3: String,
}

/// Why a state is not moved.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// Somebody reads the tenant.
    #[error("tenant `{tenant}` is read by {by}, so what is exported would be old at once")]
    Read {
        /// The tenant.
        tenant: TenantId,
        /// Who.
        by: String,
    },
    /// There is nothing.
    #[error("nothing is remembered of tenant `{0}`")]
    Nothing(TenantId),
    /// There is something already.
    #[error("something is remembered of tenant `{tenant}` already ({entries} entries)")]
    Occupied {
        /// The tenant.
        tenant: TenantId,
        /// How much.
        entries: usize,
    },
    /// The file cannot be read or written.
    #[error("`{}`: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        why: String,
    },
    /// It is no such file, or not whole.
    #[error("`{}` is not a whole export of a state: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl Actionable for TransferError {
    fn slug(&self) -> &'static str {
        match self {
            Self::Read { .. } => "state-export-read",
            Self::Nothing(_) => "state-export-nothing",
            Self::Occupied { .. } => "state-import-occupied",
            Self::File { .. } => "state-export-file",
            Self::Damaged { .. } => "state-import-damaged",
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Read { .. } => "take the tenant out of the configuration of whoever reads it and have that read again (SIGHUP), or stop \
                                  the process; then run the same command again"
                .into(),
            Self::Nothing(_) => "check the tenant's id and `data_dir` or `[cluster] url`".into(),
            Self::Occupied { .. } => "nothing was changed; take that out first, if it is the one to go: `m365-audit tenant remove --purge \
                                      --tenant-id GUID`"
                .into(),
            Self::File { .. } => "check the path and its permissions".into(),
            Self::Damaged { .. } => "nothing was changed; export it again and compare the sizes of the files".into(),
        }
    }
}

impl TransferError {
    fn exit(&self) -> Exit {
        match self {
            Self::Read { .. } | Self::Occupied { .. } => Exit::State,
            Self::Nothing(_) => Exit::Left,
            Self::File { .. } => Exit::NoInput,
            Self::Damaged { .. } => Exit::Data,
        }
    }
}

impl From<TransferError> for Failure {
    fn from(error: TransferError) -> Self {
        Self::of(&error, error.exit())
    }
}

/// Writes all that is remembered of a tenant into a file that was not there.
///
/// # Errors
/// Somebody reads the tenant, the state cannot be read, or the file not be written.
pub(super) async fn export(
    config: &Config,
    tenant: &TenantId,
    path: &Path,
    out: &mut (dyn Write + Send),
) -> Result<Exit, Failure> {
    nobody_reads(config, tenant).await?;
    let store = opened::for_reading(config).await?;
    let keys = Keys::of(tenant);
    let total = store.list(&keys.all()).await.map_err(Failure::of_state)?.len() as u64;
    if total == 0 {
        return Err(TransferError::Nothing(tenant.clone()).into());
    }
    let failed = |error: std::io::Error| TransferError::File { path: path.to_owned(), why: error.to_string() };
    // For its owner alone: it names files, people and mails.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let mut file = BufWriter::new(file);
    let progress = ProgressDisplay::at_the_terminal(ProgressUnit::Things("entries"));
    progress.begin("state export", Some(total));
    let written = write_all(&*store, &keys, tenant, &mut file, &progress).await;
    progress.end();
    let entries = match written {
        Ok(entries) => entries,
        Err(failure) => {
            // Half a file helps nobody.
            let _ = fs::remove_file(path);
            return Err(failure);
        }
    };
    file.into_inner().map_err(|error| failed(error.into_error())).and_then(|file| file.sync_all().map_err(failed))?;
    writeln!(out, "{tenant}: {entries} entries written to {}", path.display()).map_err(Failure::io)?;
    Ok(Exit::Done)
}

async fn write_all(
    store: &dyn StateStore,
    keys: &Keys,
    tenant: &TenantId,
    file: &mut BufWriter<File>,
    progress: &ProgressDisplay,
) -> Result<u64, Failure> {
    let first = HeaderLine {
        m365_audit_state: FILE,
        tenant: tenant.to_string(),
        format: FORMAT,
        made: SystemClock::new().now(),
    };
    put_line(file, &first)?;
    let mut sum = blake3::Hasher::new();
    let mut count = 0;
    let prefix = keys.all();
    let mut entries = Entries::below(store, &prefix);
    while let Some((key, value)) = entries.next().await.map_err(Failure::of_state)? {
        let key = key.strip_prefix(&prefix).unwrap_or(&key).to_owned();
        add(&mut sum, &key, &value);
        put_line(file, &EntryLine { key, value: STANDARD.encode(&value) })?;
        count += 1;
        progress.add(1);
    }
    put_line(file, &TrailerLine { entries: count, blake3: sum.finalize().to_hex().to_string() })?;
    Ok(count)
}

fn put_line(file: &mut BufWriter<File>, line: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(line).map_err(Failure::internal)?;
    writeln!(file, "{text}").map_err(Failure::io)
}

fn add(sum: &mut blake3::Hasher, key: &str, value: &[u8]) {
    for part in [key.as_bytes(), value] {
        sum.update(&(part.len() as u64).to_le_bytes());
        sum.update(part);
    }
}

/// Takes in what [`export`] wrote, where nothing is remembered of the tenant yet.
///
/// # Errors
/// The file is not whole, something is there already, or the state cannot be written: nothing is changed then.
pub(super) async fn import(config: &Config, path: &Path, out: &mut (dyn Write + Send)) -> Result<Exit, Failure> {
    let progress = ProgressDisplay::at_the_terminal(ProgressUnit::Bytes);
    let bytes = fs::metadata(path).map(|metadata| metadata.len()).ok();
    progress.begin("state import", bytes);
    let read = read_all(path, &progress);
    progress.end();
    let (tenant, entries) = read?;
    nobody_reads(config, &tenant).await?;
    let store: Arc<dyn StateStore> = match &config.cluster {
        Some(cluster) => Arc::new(opened::shared(cluster).await?),
        None => Arc::new(SqliteStore::open(&config.data_dir)?),
    };
    let keys = Keys::of(&tenant);
    let there = store.list(&keys.all()).await.map_err(Failure::of_state)?.len();
    if there > 0 {
        return Err(TransferError::Occupied { tenant, entries: there }.into());
    }
    let count = entries.len();
    let prefix = keys.all();
    let put = |(key, value): (String, Vec<u8>)| Op::Put {
        key: format!("{prefix}{key}"),
        value: value.into(),
        expected: Expected::Absent,
    };
    store.commit(entries.into_iter().map(put).collect()).await.map_err(Failure::of_state)?;
    writeln!(out, "{tenant}: {count} entries taken in").map_err(Failure::io)?;
    Ok(Exit::Done)
}

/// The whole file, once its end is found and its checksum is right.
fn read_all(path: &Path, progress: &ProgressDisplay) -> Result<(TenantId, BTreeMap<String, Vec<u8>>), TransferError> {
    let failed = |error: std::io::Error| TransferError::File { path: path.to_owned(), why: error.to_string() };
    let damaged = |why: String| TransferError::Damaged { path: path.to_owned(), why };
    let mut file = BufReader::new(File::open(path).map_err(failed)?);
    let mut next = || -> Result<Option<String>, TransferError> {
        let mut line = String::new();
        let read = std::io::Read::take(&mut file, LINE_BYTES_MAX).read_line(&mut line).map_err(failed)?;
        progress.add(read as u64);
        Ok((read > 0).then_some(line))
    };
    let first = next()?.ok_or_else(|| damaged("it is empty".into()))?;
    let first: HeaderLine =
        serde_json::from_str(&first).map_err(|error| damaged(format!("its first line: {error}")))?;
    if first.m365_audit_state > FILE || first.format > FORMAT {
        return Err(damaged("a newer build wrote it: use that".into()));
    }
    let tenant: TenantId =
        first.tenant.parse().map_err(|_| damaged(format!("its tenant, `{}`, is no GUID", first.tenant)))?;
    let mut sum = blake3::Hasher::new();
    let mut entries = BTreeMap::new();
    while let Some(line) = next()? {
        if let Ok(last) = serde_json::from_str::<TrailerLine>(&line) {
            let counted = entries.len() as u64;
            if last.entries != counted {
                return Err(damaged(format!("it has {counted} entries, its end says {}", last.entries)));
            }
            if last.blake3 != sum.finalize().to_hex().to_string() {
                return Err(damaged("its checksum is another".into()));
            }
            return Ok((tenant, entries));
        }
        let line: EntryLine =
            serde_json::from_str(&line).map_err(|error| damaged(format!("entry {}: {error}", entries.len() + 1)))?;
        let value = STANDARD.decode(&line.value).map_err(|error| damaged(format!("entry `{}`: {error}", line.key)))?;
        add(&mut sum, &line.key, &value);
        entries.insert(line.key, value);
    }
    Err(damaged("its end is missing".into()))
}

/// Refuses a tenant that somebody reads.
async fn nobody_reads(config: &Config, tenant: &TenantId) -> Result<(), Failure> {
    let by = match &config.cluster {
        Some(cluster) => {
            let holder = opened::shared(cluster).await?.holder(tenant).await.map_err(Failure::of_cluster)?;
            holder.map(|(member, _)| format!("member `{member}` of the cluster"))
        }
        None => match (running(&config.data_dir), super::asking::ask(&config.control_socket()).await?) {
            (_, Some(status)) => {
                let reads = status.sources.iter().any(|source| source.tenant == tenant.as_str());
                reads.then(|| "the running process".to_owned())
            }
            // It has the lock and does not answer.
            (Some(process), None) => Some(format!("process {process}")),
            (None, None) => None,
        },
    };
    match by {
        Some(by) => Err(TransferError::Read { tenant: tenant.clone(), by }.into()),
        None => Ok(()),
    }
}
