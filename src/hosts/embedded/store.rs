//! The embedded host's state store: one SQLite file under `data_dir`, one writer, readers beside it.
//!
//! Owns the file, its format, its lock and the two threads that touch it. Refuses to know what a key or a value
//! means, but for the version in a key's prefix, which says whether an older build may go on.
//!
//! What is promised: a commit is all or nothing and synced when it returns (WAL, `synchronous=FULL`); a second
//! process is turned away by name; a file of a newer format is left alone; a file that cannot be understood is
//! reported and kept byte for byte. Every row carries a checksum over key, revision and value, because SQLite finds
//! a damaged page only where its structure is hurt. SQLite's own rules: <https://www.sqlite.org/wal.html>.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::config::DbConfig;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};
use tokio::sync::{mpsc, oneshot};

use crate::host::{Expected, Op, Revision, StateError, StateStore};
use crate::model::Actionable;

/// The state file's name under `data_dir`.
pub const STATE_FILE: &str = "state.sqlite3";
/// The lock file's name under `data_dir`; it holds the writer's process id.
pub const LOCK_FILE: &str = "lock";
/// Format of the tables (`PRAGMA user_version`). A file that says more is refused.
pub const FILE_FORMAT: i64 = 1;
/// Newest version in a key's prefix (`m365_audit/v1/…`) this build understands.
pub const KEY_FORMAT: u32 = crate::checkpoint::format::FORMAT;

/// What the file begins as: created under this name and renamed, so that an empty state file is always damage and
/// never a crash at the first start.
const NEW_FILE: &str = "state.sqlite3.new";
/// `PRAGMA application_id`: "M365" in ASCII, shown by `file(1)`.
const APPLICATION_ID: i64 = 0x4d33_3635;
/// Commits waiting for the writer; beyond it `commit` waits.
const COMMITS_QUEUED_MAX: usize = 64;
/// Commits that share one fsync.
const GROUP_COMMITS_MAX: usize = 64;
/// Bytes of values that share one fsync: bounds the transaction, not a single commit.
const GROUP_BYTES_MAX: usize = 8 << 20;
/// Reads waiting for the reader.
const READS_QUEUED_MAX: usize = 64;
/// Page cache of each connection: the hot rows are few and small, and resident memory is budgeted.
const CACHE_KIB: i64 = 2048;
/// Bytes written before the log is folded back into the file.
const CHECKPOINT_EVERY_BYTES: usize = 4 << 20;
/// What a row costs in the log beside its value: about two 4 KiB pages.
const ROW_LOG_BYTES: usize = 8 << 10;
/// Files up to this size are verified row by row at open (a fraction of a second); larger ones only in structure at
/// the root, their rows when they are read.
const VERIFY_BYTES_MAX: u64 = 32 << 20;
/// How long to wait for somebody else's lock on the file (a backup by the `sqlite3` shell, say).
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// `SQLITE_IOERR_SHMSIZE`: the shared-memory file could not be grown, which is what a full disk looks like at open.
const IOERR_SHMSIZE: i32 = 4874;

/// Why the state store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("cannot open state in `{}`: {} is running on it", data_dir.display(), holder(*pid))]
    Locked {
        /// The directory.
        data_dir: PathBuf,
        /// The process id in the lock file, when it could be read.
        pid: Option<u32>,
    },
    /// Written by a newer build.
    #[error("`{}` has {what} {found}, this build knows {known}; not started, nothing was changed", path.display())]
    TooNew {
        /// The state file.
        path: PathBuf,
        /// Which format.
        what: &'static str,
        /// The version found.
        found: i64,
        /// The newest version this build knows.
        known: i64,
    },
    /// Not a state file, or a damaged one. It was left as it is.
    #[error("`{}` cannot be read as state: {why}; not started, the file was left as it is", path.display())]
    Corrupt {
        /// The state file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No permission, a read-only file system, a path that is no directory.
    #[error("cannot write state under `{}`: {why}", path.display())]
    NotWritable {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        why: String,
    },
    /// No room.
    #[error("cannot write state under `{}`: {why}", path.display())]
    Full {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        why: String,
    },
    /// Opened for reading, and there is nothing.
    #[error("there is no state in `{}`", data_dir.display())]
    Missing {
        /// The directory.
        data_dir: PathBuf,
    },
    /// Opened for reading, and it cannot be read.
    #[error("cannot read state in `{}`: {why}", path.display())]
    NotReadable {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        why: String,
    },
}

fn holder(pid: Option<u32>) -> String {
    match pid {
        Some(pid) => format!("process `{pid}`"),
        None => "another process".into(),
    }
}

impl Actionable for StoreError {
    fn slug(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "state-locked",
            Self::TooNew { .. } => "state-too-new",
            Self::Corrupt { .. } => "state-corrupt",
            Self::NotWritable { .. } => "state-not-writable",
            Self::Full { .. } => "state-full",
            Self::Missing { .. } => "state-missing",
            Self::NotReadable { .. } => "state-not-readable",
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Locked { pid: Some(pid), .. } => {
                format!("stop process {pid}, or give this one a `data_dir` of its own")
            }
            Self::Locked { pid: None, .. } => "stop the other process, or give this one a `data_dir` of its own".into(),
            Self::TooNew { .. } => {
                "start the newer build again, or keep the file and begin with an empty `data_dir`".into()
            }
            Self::Corrupt { .. } => {
                "move the file away (and its `-wal`), keep it, and restore a backup or start anew; \
                                     a new start repeats what Microsoft still lists within `backfill_secs`"
                    .into()
            }
            Self::NotWritable { .. } => {
                "the directory and the files in it must belong to the user this runs as, on a writable file system"
                    .into()
            }
            Self::Full { .. } => "make room on the file system of `data_dir`, then start again".into(),
            Self::Missing { .. } => "check `data_dir`; the first `run` creates it".into(),
            Self::NotReadable { .. } => "run this as the user the service runs as, or as root".into(),
        }
    }
}

/// The embedded state store. Dropping it waits for the commit in progress, folds the log back and releases the lock.
#[derive(Debug)]
pub struct SqliteStore {
    writer: Option<Worker<Commit>>,
    reader: Option<Worker<ReadRequest>>,
}

/// A thread and the bounded queue it drains; it ends when the queue closes.
#[derive(Debug)]
struct Worker<T> {
    queue: mpsc::Sender<T>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Commit {
    ops: Vec<Op>,
    answer: oneshot::Sender<Result<Revision, StateError>>,
}

#[derive(Debug)]
enum ReadRequest {
    Load(String, oneshot::Sender<Result<Option<(Bytes, Revision)>, StateError>>),
    List(String, oneshot::Sender<Result<Vec<(String, Revision)>, StateError>>),
}

impl SqliteStore {
    /// Opens the store for this process alone; creates `data_dir` (0700) and the state file (0600) when missing.
    ///
    /// Blocking: opens, locks and verifies. Nothing of an existing file is changed before it was verified.
    pub fn open(data_dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        let data_dir = absolute(data_dir.as_ref())?;
        create_data_dir(&data_dir)?;
        let lock = lock(&data_dir)?;
        let path = data_dir.join(STATE_FILE);
        match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => create(&data_dir, &path)?,
            Err(e) => return Err(io_error(&path, &e)),
            Ok(_) => {}
        }
        inspect(&path)?;
        tighten(&path);
        let connection = open_writer(&path).map_err(|e| sqlite_error(&path, &e))?;
        if connection.is_readonly("main").map_err(|e| sqlite_error(&path, &e))? {
            // SQLite falls back to reading when the file may not be written.
            return Err(StoreError::NotWritable { path, why: "the file is read-only".into() });
        }
        let revision = connection
            .execute_batch("BEGIN IMMEDIATE; ROLLBACK")
            .and_then(|()| stored_revision(&connection))
            .map_err(|e| sqlite_error(&path, &e))?;
        let reader = spawn_reader(&path)?;
        let writer = Writer { connection, revision, unfolded_bytes: 0, _lock: lock };
        let writer = spawn("m365-state-write", &path, COMMITS_QUEUED_MAX, move |queue| writer.run(queue))?;
        Ok(Self { writer: Some(writer), reader: Some(reader) })
    }

    /// Opens the store for reading, beside a running process or without one. `commit` then always fails.
    pub fn open_read_only(data_dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        let data_dir = absolute(data_dir.as_ref())?;
        let path = data_dir.join(STATE_FILE);
        match fs::metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(StoreError::Missing { data_dir }),
            Err(e) => return Err(StoreError::NotReadable { path, why: e.to_string() }),
            Ok(_) => {}
        }
        let readable = |error| match error {
            StoreError::NotWritable { path, why } | StoreError::Full { path, why } => {
                StoreError::NotReadable { path, why }
            }
            other => other,
        };
        inspect(&path).map_err(readable)?;
        let reader = spawn_reader(&path).map_err(readable)?;
        Ok(Self { writer: None, reader: Some(reader) })
    }

    async fn read<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, StateError>>) -> ReadRequest,
    ) -> Result<T, StateError> {
        let (answer, answered) = oneshot::channel();
        let reader = self.reader.as_ref().ok_or_else(ended)?;
        reader.queue.send(request(answer)).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }
}

fn ended() -> StateError {
    StateError::Unavailable("the store has been closed".into())
}

#[async_trait]
impl StateStore for SqliteStore {
    async fn load(&self, key: &str) -> Result<Option<(Bytes, Revision)>, StateError> {
        self.read(|answer| ReadRequest::Load(key.to_owned(), answer)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Revision)>, StateError> {
        self.read(|answer| ReadRequest::List(prefix.to_owned(), answer)).await
    }

    async fn commit(&self, ops: Vec<Op>) -> Result<Revision, StateError> {
        let Some(writer) = &self.writer else {
            return Err(StateError::Unavailable("opened for reading only".into()));
        };
        let (answer, answered) = oneshot::channel();
        writer.queue.send(Commit { ops, answer }).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        // The reader first: the writer, as the last connection, then folds the log into the file and removes it.
        if let Some(reader) = self.reader.take() {
            reader.finish();
        }
        if let Some(writer) = self.writer.take() {
            writer.finish();
        }
    }
}

impl<T> Worker<T> {
    /// Closes the queue and waits until the thread has answered what was in it.
    fn finish(self) {
        drop(self.queue);
        let _ = self.thread.join();
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    path: &Path,
    queued_max: usize,
    run: impl FnOnce(mpsc::Receiver<T>) + Send + 'static,
) -> Result<Worker<T>, StoreError> {
    let (queue, queued) = mpsc::channel(queued_max);
    let thread = thread::Builder::new()
        .name(name.into())
        .spawn(move || run(queued))
        .map_err(|e| StoreError::NotWritable { path: path.to_owned(), why: format!("cannot start a thread: {e}") })?;
    Ok(Worker { queue, thread })
}

// ---------------------------------------------------------------------------------------------- opening

fn absolute(data_dir: &Path) -> Result<PathBuf, StoreError> {
    // Absolute, because SQLite would take a path that begins with `file:` for a URI.
    std::path::absolute(data_dir).map_err(|e| io_error(data_dir, &e))
}

fn create_data_dir(data_dir: &Path) -> Result<(), StoreError> {
    if let Ok(metadata) = fs::metadata(data_dir)
        && metadata.is_dir()
    {
        if metadata.permissions().mode() & 0o002 != 0 {
            tracing::warn!(
                data_dir = %data_dir.display(),
                "everybody on this machine may write to `data_dir` and can make the state unusable: take the right away"
            );
        }
        return Ok(());
    }
    if let Some(parent) = data_dir.parent() {
        fs::create_dir_all(parent).map_err(|e| io_error(parent, &e))?;
    }
    match DirBuilder::new().mode(0o700).create(data_dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && data_dir.is_dir() => Ok(()),
        Err(e) => Err(io_error(data_dir, &e)),
        Ok(()) => match data_dir.parent() {
            Some(parent) => sync_dir(parent).map_err(|e| io_error(parent, &e)),
            None => Ok(()),
        },
    }
}

/// Takes the writer's lock for as long as the file lives. `flock`, so that a process that dies, however it dies,
/// leaves no lock behind.
fn lock(data_dir: &Path) -> Result<Lock, StoreError> {
    let path = data_dir.join(LOCK_FILE);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        // A link somebody laid here would have us write to another file.
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .map_err(|e| io_error(&path, &e))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // A process id has at most ten digits; the file may be anything.
            let _ = (&file).take(16).read_to_string(&mut text);
            return Err(StoreError::Locked { data_dir: data_dir.to_owned(), pid: text.trim().parse().ok() });
        }
        Err(TryLockError::Error(e)) => return Err(io_error(&path, &e)),
    }
    // The id only helps whoever is turned away: a full disk here is no reason to stop.
    let _ = file
        .set_len(0)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .and_then(|_| writeln!(file, "{}", std::process::id()));
    Ok(Lock(file))
}

/// The lock taken by [`lock`].
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a child being started elsewhere in the process holds a copy until its `exec`.
        let _ = self.0.unlock();
    }
}

/// Makes the file under another name, complete and synced, before it takes its own.
fn create(data_dir: &Path, path: &Path) -> Result<(), StoreError> {
    let wal = with_suffix(path, "-wal");
    if fs::metadata(&wal).is_ok_and(|m| m.len() > 0) {
        return Err(StoreError::Corrupt {
            path: path.to_owned(),
            why: format!("the file is gone, but its log `{}` is there", wal.display()),
        });
    }
    let new = data_dir.join(NEW_FILE);
    for leftover in ["", "-wal", "-shm", "-journal"] {
        let leftover = with_suffix(&new, leftover);
        match fs::remove_file(&leftover) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_error(&leftover, &e)),
            _ => {}
        }
    }
    // Made here, not by SQLite, for its mode: the log and the shared memory inherit it.
    let file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).map_err(|e| io_error(&new, &e))?;
    drop(file);
    let make = || {
        let connection = connect(&new, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.execute_batch(&format!(
            "BEGIN;
             PRAGMA application_id = {APPLICATION_ID};
             PRAGMA user_version = {FILE_FORMAT};
             -- `value` last: a listing must not walk through a large one to reach the revision.
             CREATE TABLE kv(key TEXT NOT NULL PRIMARY KEY, revision INTEGER NOT NULL, sum INTEGER NOT NULL,
                             value BLOB NOT NULL) WITHOUT ROWID;
             CREATE TABLE meta(name TEXT NOT NULL PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
             INSERT INTO meta VALUES('revision', 0);
             COMMIT;"
        ))?;
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        connection.close().map_err(|(_, e)| e)
    };
    make().map_err(|e| sqlite_error(&new, &e))?;
    File::open(&new)
        .and_then(|f| f.sync_all())
        .and_then(|()| fs::rename(&new, path))
        .and_then(|()| sync_dir(data_dir))
        .map_err(|e| io_error(path, &e))
}

/// Others may not read what the records of a tenant are kept in, whoever copied the file here.
fn tighten(path: &Path) {
    if let Ok(metadata) = fs::metadata(path)
        && metadata.permissions().mode() & 0o077 != 0
        && let Err(e) = fs::set_permissions(path, fs::Permissions::from_mode(0o600))
    {
        tracing::warn!(path = %path.display(), error = %e, "state file can be read by others and could not be closed to them");
    }
}

/// Says whether the file is one this build may write to, through a connection that cannot.
fn inspect(path: &Path) -> Result<(), StoreError> {
    let corrupt = |why: String| StoreError::Corrupt { path: path.to_owned(), why };
    // Not what a link leads to: SQLite would write there.
    let metadata = fs::symlink_metadata(path).map_err(|e| io_error(path, &e))?;
    if !metadata.is_file() {
        return Err(corrupt("it is not a regular file".into()));
    }
    if metadata.len() == 0 {
        return Err(corrupt("it is empty".into()));
    }
    let look = || {
        let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        let application_id: i64 = connection.pragma_query_value(None, "application_id", |r| r.get(0))?;
        let format: i64 = connection.pragma_query_value(None, "user_version", |r| r.get(0))?;
        Ok((connection, application_id, format))
    };
    let (connection, application_id, format) = look().map_err(|e| sqlite_error(path, &e))?;
    if application_id != APPLICATION_ID {
        return Err(corrupt("it is a database of another program".into()));
    }
    if format > FILE_FORMAT {
        let path = path.to_owned();
        return Err(StoreError::TooNew { path, what: "file format", found: format, known: FILE_FORMAT });
    }
    if format < 1 {
        return Err(corrupt(format!("file format {format} was never written")));
    }
    // Names the columns: a table that lost one fails here.
    stored_revision(&connection)
        .and_then(|_| {
            connection.prepare("SELECT key, revision, sum, value FROM kv LIMIT 1")?.query([])?.next().map(|_| ())
        })
        .map_err(|e| match e {
            rusqlite::Error::SqliteFailure(..) if !is_schema_error(&e) => sqlite_error(path, &e),
            e => corrupt(e.to_string()),
        })?;
    if let Some(found) = newer_key_version(&connection).map_err(|e| sqlite_error(path, &e))? {
        let (path, known) = (path.to_owned(), i64::from(KEY_FORMAT));
        return Err(StoreError::TooNew { path, what: "state format", found: i64::from(found), known });
    }
    if metadata.len() <= VERIFY_BYTES_MAX
        && let Some(why) = verify(&connection).map_err(|e| sqlite_error(path, &e))?
    {
        return Err(corrupt(why));
    }
    Ok(())
}

fn is_schema_error(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::Unknown)
}

/// The newest version beyond [`KEY_FORMAT`] that a key's prefix names, if there is one. Two look-ups, not a scan:
/// keys of the known version lie between them.
fn newer_key_version(connection: &Connection) -> rusqlite::Result<Option<u32>> {
    let known = format!("m365_audit/v{KEY_FORMAT}");
    let mut statement = connection.prepare(
        "SELECT key FROM (SELECT key FROM kv WHERE key >= 'm365_audit/v' AND key < ?1 || '/' LIMIT 1)
         UNION ALL
         SELECT key FROM (SELECT key FROM kv WHERE key >= ?1 || '0' AND key < 'm365_audit/w' ORDER BY key DESC LIMIT 1)",
    )?;
    let keys = statement.query_map([known], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
    Ok(keys.iter().filter_map(|key| key_version(key)).filter(|version| *version > KEY_FORMAT).max())
}

fn key_version(key: &str) -> Option<u32> {
    key.strip_prefix("m365_audit/v")?.split('/').next()?.parse().ok()
}

/// Reads everything once: SQLite's structure, then each row's checksum. `Some(why)` when something is wrong.
fn verify(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let quick: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if quick != "ok" {
        return Ok(Some(quick.replace('\n', "; ")));
    }
    let mut statement = connection.prepare("SELECT key, revision, sum, value FROM kv")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let key = row.get_ref(0)?;
        let (ValueRef::Text(key), ValueRef::Blob(value)) = (key, row.get_ref(3)?) else {
            return Ok(Some("a row is not a text key with a blob".into()));
        };
        if sum(key, row.get(1)?, value) != row.get::<_, i64>(2)? {
            return Ok(Some(format!("key `{}` does not match its checksum", String::from_utf8_lossy(key))));
        }
    }
    Ok(None)
}

fn connect(path: &Path, access: OpenFlags) -> rusqlite::Result<Connection> {
    // SQLite then refuses a link anywhere in the path; the folder may be one (systemd makes it so), the file not.
    let dir = path.parent().and_then(|dir| dir.canonicalize().ok());
    let real = dir.and_then(|dir| path.file_name().map(|name| dir.join(name)));
    let access = access | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(real.as_deref().unwrap_or(path), access)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update_and_check(None, "mmap_size", 0, |_| Ok(())).optional()?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    Ok(connection)
}

fn open_writer(path: &Path) -> rusqlite::Result<Connection> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // A safety net only: `Writer::fold` does it after the answers are out.
    connection.pragma_update_and_check(None, "wal_autocheckpoint", 8192, |_| Ok(()))?;
    // After a burst (held bodies) the log shrinks again.
    connection.pragma_update_and_check(None, "journal_size_limit", CHECKPOINT_EVERY_BYTES as i64, |_| Ok(()))?;
    Ok(connection)
}

fn stored_revision(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT value FROM meta WHERE name = 'revision'", [], |row| row.get(0))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    // The parent of a relative path with one part is empty.
    File::open(if dir.as_os_str().is_empty() { Path::new(".") } else { dir })?.sync_all()
}

fn io_error(path: &Path, error: &io::Error) -> StoreError {
    let (path, why) = (path.to_owned(), error.to_string());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full { path, why },
        _ => StoreError::NotWritable { path, why },
    }
}

fn sqlite_error(path: &Path, error: &rusqlite::Error) -> StoreError {
    let (path, why) = (path.to_owned(), error.to_string());
    if is_full(error) {
        return StoreError::Full { path, why };
    }
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Corrupt { path, why },
        Some(_) => StoreError::NotWritable { path, why },
        // Not from SQLite: a column of another type, a row that should be there and is not.
        None => StoreError::Corrupt { path, why },
    }
}

fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
        || error.sqlite_error().is_some_and(|e| e.extended_code == IOERR_SHMSIZE)
}

// ---------------------------------------------------------------------------------------------- writing

/// What the writer thread owns. Fields drop in this order: the lock goes last, after the connection is closed.
struct Writer {
    connection: Connection,
    /// The newest revision given out by a commit that is on disk.
    revision: i64,
    /// Bytes in the log since it was last folded into the file, estimated.
    unfolded_bytes: usize,
    _lock: Lock,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Commit>) {
        while let Some(first) = queue.blocking_recv() {
            let mut bytes = size(&first.ops);
            let mut group = vec![first];
            // Whatever queued up during the last fsync shares the next one; nobody is kept waiting for company.
            while group.len() < GROUP_COMMITS_MAX && bytes < GROUP_BYTES_MAX {
                match queue.try_recv() {
                    Ok(commit) => {
                        bytes += size(&commit.ops);
                        group.push(commit);
                    }
                    Err(_) => break,
                }
            }
            let (all_ops, answers): (Vec<_>, Vec<_>) = group.into_iter().map(|c| (c.ops, c.answer)).unzip();
            let results = self.commit_all(&all_ops);
            for (answer, result) in answers.into_iter().zip(results) {
                let _ = answer.send(result);
            }
            self.unfolded_bytes += bytes;
            if self.unfolded_bytes >= CHECKPOINT_EVERY_BYTES {
                self.fold();
            }
        }
    }

    /// One transaction for all; when that fails as a whole, one for each, so that a commit too large for what room
    /// is left does not take its neighbours with it.
    fn commit_all(&mut self, group: &[Vec<Op>]) -> Vec<Result<Revision, StateError>> {
        match self.transaction(group) {
            Ok(results) => results,
            Err(error) if group.len() == 1 => vec![Err(error)],
            Err(_) => group
                .iter()
                .map(|ops| match self.transaction(std::slice::from_ref(ops)) {
                    Ok(mut results) => results.pop().unwrap_or_else(|| Err(ended())),
                    Err(error) => Err(error),
                })
                .collect(),
        }
    }

    /// All commits of the group in one transaction, each in its savepoint, so that a conflict undoes only its own.
    /// `Err` says that nothing of the group was kept.
    fn transaction(&mut self, group: &[Vec<Op>]) -> Result<Vec<Result<Revision, StateError>>, StateError> {
        let mut revision = self.revision;
        let mut results = Vec::with_capacity(group.len());
        let outcome = (|| {
            self.connection.execute_batch("BEGIN IMMEDIATE").map_err(|e| state_error("", &e))?;
            for ops in group {
                self.connection.execute_batch("SAVEPOINT one").map_err(|e| state_error("", &e))?;
                match apply(&self.connection, revision + 1, ops) {
                    Ok(()) => {
                        revision += 1;
                        results.push(Ok(Revision(revision.cast_unsigned())));
                        self.connection.execute_batch("RELEASE one")
                    }
                    Err(conflict @ StateError::Conflict { .. }) => {
                        results.push(Err(conflict));
                        self.connection.execute_batch("ROLLBACK TO one; RELEASE one")
                    }
                    Err(error) => return Err(error),
                }
                .map_err(|e| state_error("", &e))?;
            }
            self.connection
                .prepare_cached("UPDATE meta SET value = ?1 WHERE name = 'revision'")
                .and_then(|mut s| s.execute([revision]))
                .and_then(|_| self.connection.execute_batch("COMMIT"))
                .map_err(|e| state_error("", &e))
        })();
        match outcome {
            Ok(()) => {
                self.revision = revision;
                Ok(results)
            }
            Err(error) => {
                // SQLite may have rolled back by itself, on a full disk for one.
                if !self.connection.is_autocommit() {
                    let _ = self.connection.execute_batch("ROLLBACK");
                }
                Err(error)
            }
        }
    }

    /// Folds the log into the file, as far as readers allow. Failure costs only room: the log is as good a home.
    fn fold(&mut self) {
        self.unfolded_bytes = 0;
        if let Err(e) = self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
            tracing::debug!(error = %e, "state log was not folded into the state file");
        }
    }
}

fn size(ops: &[Op]) -> usize {
    ops.iter()
        .map(|op| match op {
            Op::Put { value, .. } => value.len() + ROW_LOG_BYTES,
            Op::Delete { .. } => ROW_LOG_BYTES,
        })
        .sum()
}

fn apply(connection: &Connection, revision: i64, ops: &[Op]) -> Result<(), StateError> {
    for op in ops {
        let key = op.key();
        let failed = |e: rusqlite::Error| state_error(key, &e);
        let found: Option<i64> = match op.expected() {
            Expected::Any => None,
            _ => connection
                .prepare_cached("SELECT revision FROM kv WHERE key = ?1")
                .and_then(|mut s| s.query_row([key], |row| row.get(0)).optional())
                .map_err(failed)?,
        };
        let as_expected = match op.expected() {
            Expected::Any => true,
            Expected::Absent => found.is_none(),
            Expected::At(expected) => found.map(i64::cast_unsigned) == Some(expected.0),
        };
        if !as_expected {
            return Err(StateError::Conflict { key: key.to_owned() });
        }
        match op {
            Op::Put { value, .. } => connection
                .prepare_cached("INSERT OR REPLACE INTO kv(key, revision, sum, value) VALUES(?1, ?2, ?3, ?4)")
                .and_then(|mut s| s.execute(params![key, revision, sum(key.as_bytes(), revision, value), &value[..]])),
            Op::Delete { .. } => {
                connection.prepare_cached("DELETE FROM kv WHERE key = ?1").and_then(|mut s| s.execute([key]))
            }
        }
        .map_err(failed)?;
    }
    Ok(())
}

/// Checksum of a row: the first eight bytes of BLAKE3 over its parts, the key's length first so that none can lend
/// bytes to another.
fn sum(key: &[u8], revision: i64, value: &[u8]) -> i64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(&revision.to_le_bytes());
    hasher.update(value);
    let mut first = [0; 8];
    hasher.finalize_xof().fill(&mut first);
    i64::from_le_bytes(first)
}

fn state_error(key: &str, error: &rusqlite::Error) -> StateError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StateError::Corrupt { key: key.to_owned(), why: error.to_string() }
        }
        _ => StateError::Unavailable(error.to_string()),
    }
}

// ---------------------------------------------------------------------------------------------- reading

fn spawn_reader(path: &Path) -> Result<Worker<ReadRequest>, StoreError> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(|e| sqlite_error(path, &e))?;
    spawn("m365-state-read", path, READS_QUEUED_MAX, move |mut queue: mpsc::Receiver<ReadRequest>| {
        while let Some(request) = queue.blocking_recv() {
            match request {
                ReadRequest::Load(key, answer) => {
                    let _ = answer.send(load(&connection, &key));
                }
                ReadRequest::List(prefix, answer) => {
                    let _ = answer.send(list(&connection, &prefix));
                }
            }
        }
    })
}

fn load(connection: &Connection, key: &str) -> Result<Option<(Bytes, Revision)>, StateError> {
    let row = connection
        .prepare_cached("SELECT revision, sum, value FROM kv WHERE key = ?1")
        .and_then(|mut s| {
            s.query_row([key], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, Vec<u8>>(2)?)))
                .optional()
        })
        .map_err(|e| match e.sqlite_error_code() {
            Some(_) => state_error(key, &e),
            None => StateError::Corrupt { key: key.to_owned(), why: e.to_string() },
        })?;
    match row {
        Some((revision, stored, value)) if sum(key.as_bytes(), revision, &value) == stored => {
            Ok(Some((value.into(), Revision(revision.cast_unsigned()))))
        }
        Some(_) => Err(StateError::Corrupt { key: key.to_owned(), why: "it does not match its checksum".into() }),
        None => Ok(None),
    }
}

fn list(connection: &Connection, prefix: &str) -> Result<Vec<(String, Revision)>, StateError> {
    let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, Revision(row.get::<_, i64>(1)?.cast_unsigned())));
    let read = || -> rusqlite::Result<Vec<_>> {
        match first_after(prefix) {
            Some(end) => connection
                .prepare_cached("SELECT key, revision FROM kv WHERE key >= ?1 AND key < ?2 ORDER BY key")?
                .query_map([prefix, end.as_str()], row)?
                .collect(),
            None => connection
                .prepare_cached("SELECT key, revision FROM kv WHERE key >= ?1 ORDER BY key")?
                .query_map([prefix], row)?
                .collect(),
        }
    };
    read().map_err(|e| state_error(prefix, &e))
}

/// The first text after all that begin with `prefix`, in the order of code points, which is that of UTF-8 bytes and
/// of SQLite; `None` when there is none.
fn first_after(prefix: &str) -> Option<String> {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        // The successor of U+D7FF is U+E000: the surrogates between are no characters.
        if let Some(next) = (last..=char::MAX).nth(1) {
            end.push(next);
            return Some(end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn put(key: &str, value: &str, expected: Expected) -> Op {
        Op::Put { key: key.into(), value: Bytes::copy_from_slice(value.as_bytes()), expected }
    }

    async fn value(store: &SqliteStore, key: &str) -> Option<String> {
        store.load(key).await.unwrap().map(|(v, _)| String::from_utf8(v.to_vec()).unwrap())
    }

    fn raw(dir: &Path) -> Connection {
        Connection::open(dir.join(STATE_FILE)).unwrap()
    }

    #[tokio::test]
    async fn what_was_committed_is_there_after_reopening_and_revisions_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path()).unwrap();
        let first = store.commit(vec![put("a", "1", Expected::Absent), put("b", "2", Expected::Any)]).await.unwrap();
        drop(store);
        let store = SqliteStore::open(dir.path()).unwrap();
        assert_eq!(store.load("a").await.unwrap(), Some((Bytes::from_static(b"1"), first)));
        let second = store.commit(vec![put("a", "3", Expected::At(first))]).await.unwrap();
        assert!(second.0 > first.0);
        assert_eq!(store.list("").await.unwrap(), [("a".to_owned(), second), ("b".to_owned(), first)]);
    }

    #[tokio::test]
    async fn a_key_deleted_and_stored_again_has_a_new_revision() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path()).unwrap();
        let first = store.commit(vec![put("a", "1", Expected::Absent)]).await.unwrap();
        store.commit(vec![Op::Delete { key: "a".into(), expected: Expected::At(first) }]).await.unwrap();
        let again = store.commit(vec![put("a", "1", Expected::Absent)]).await.unwrap();
        assert_ne!(first, again);
    }

    #[tokio::test]
    async fn a_commit_with_one_wrong_expectation_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path()).unwrap();
        let at = store.commit(vec![put("a", "1", Expected::Absent)]).await.unwrap();
        for wrong in [
            put("a", "x", Expected::Absent),
            put("a", "x", Expected::At(Revision(at.0 + 7))),
            put("none", "x", Expected::At(at)),
            Op::Delete { key: "a".into(), expected: Expected::Absent },
        ] {
            let key = wrong.key().to_owned();
            let result =
                store.commit(vec![put("new", "x", Expected::Any), put("a", "y", Expected::At(at)), wrong]).await;
            // The second step moves `a` on, so that what follows in the same commit sees it moved.
            assert_eq!(result, Err(StateError::Conflict { key }));
            assert_eq!(value(&store, "a").await.as_deref(), Some("1"));
            assert_eq!(value(&store, "new").await, None);
        }
    }

    #[tokio::test]
    async fn commits_that_share_a_transaction_fail_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path()).unwrap();
        drop(store);
        let connection = open_writer(&dir.path().join(STATE_FILE)).unwrap();
        let lock = lock(dir.path()).unwrap();
        let mut writer = Writer { connection, revision: 0, unfolded_bytes: 0, _lock: lock };
        let results = writer.commit_all(&[
            vec![put("a", "1", Expected::Absent)],
            vec![put("b", "1", Expected::Any), put("a", "2", Expected::Absent)],
            vec![put("c", "1", Expected::Absent)],
        ]);
        assert_eq!(results[0], Ok(Revision(1)));
        assert_eq!(results[1], Err(StateError::Conflict { key: "a".into() }));
        assert_eq!(results[2], Ok(Revision(2)));
        let keys: Vec<_> = list(&writer.connection, "").unwrap().into_iter().map(|(k, _)| k).collect();
        assert_eq!(keys, ["a", "c"]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_many_concurrent_writers_of_one_revision_exactly_one_wins() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(dir.path()).unwrap());
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..100 {
            let store = store.clone();
            tasks.spawn(async move { store.commit(vec![put("a", &n.to_string(), Expected::Absent)]).await.is_ok() });
        }
        let wins = tasks.join_all().await.into_iter().filter(|won| *won).count();
        assert_eq!(wins, 1);
    }

    #[tokio::test]
    async fn a_listing_holds_the_keys_of_its_prefix_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path()).unwrap();
        let keys = ["a/b", "a/c", "a0", "a/", "a/\u{10ffff}x", "b"];
        store.commit(keys.iter().map(|k| put(k, "", Expected::Any)).collect()).await.unwrap();
        let listed = |found: Vec<(String, Revision)>| found.into_iter().map(|(k, _)| k).collect::<Vec<_>>();
        assert_eq!(listed(store.list("a/").await.unwrap()), ["a/", "a/b", "a/c", "a/\u{10ffff}x"]);
        assert_eq!(listed(store.list("a/\u{10ffff}").await.unwrap()), ["a/\u{10ffff}x"]);
        assert_eq!(listed(store.list("\u{10ffff}").await.unwrap()), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_second_writer_is_told_who_has_the_state_and_a_reader_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path()).unwrap();
        let error = SqliteStore::open(dir.path()).unwrap_err();
        assert_eq!(error.slug(), "state-locked");
        assert!(error.to_string().contains(&format!("process `{}`", std::process::id())), "{error}");
        let reader = SqliteStore::open_read_only(dir.path()).unwrap();
        store.commit(vec![put("a", "1", Expected::Absent)]).await.unwrap();
        assert_eq!(value(&reader, "a").await.as_deref(), Some("1"));
        assert!(matches!(
            reader.commit(vec![put("a", "2", Expected::Any)]).await,
            Err(StateError::Unavailable(why)) if why.contains("reading only")
        ));
    }

    #[test]
    fn files_and_directory_are_for_the_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("var/lib/m365-audit");
        let _store = SqliteStore::open(&data_dir).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&data_dir), 0o700);
        for entry in fs::read_dir(&data_dir).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
    }

    /// Opening must fail with `slug` and leave the state file as it was.
    #[track_caller]
    fn check_refused(dir: &Path, slug: &str) -> StoreError {
        let path = dir.join(STATE_FILE);
        let before = fs::read(&path).ok();
        let error = SqliteStore::open(dir).unwrap_err();
        assert_eq!(error.slug(), slug, "{error}");
        assert_eq!(fs::read(&path).ok(), before, "the file was changed");
        error
    }

    #[test]
    fn a_file_of_a_newer_format_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        drop(SqliteStore::open(dir.path()).unwrap());
        raw(dir.path()).pragma_update(None, "user_version", 2).unwrap();
        let error = check_refused(dir.path(), "state-too-new");
        assert!(error.to_string().contains("has file format 2, this build knows 1"), "{error}");
        assert_eq!(SqliteStore::open_read_only(dir.path()).unwrap_err().slug(), "state-too-new");
    }

    #[tokio::test]
    async fn keys_of_a_newer_version_are_left_alone() {
        for newer in ["m365_audit/v2/t/x", "m365_audit/v10/t"] {
            let dir = tempfile::tempdir().unwrap();
            let store = SqliteStore::open(dir.path()).unwrap();
            store.commit(vec![put("m365_audit/v1/t", "", Expected::Any), put(newer, "", Expected::Any)]).await.unwrap();
            drop(store);
            check_refused(dir.path(), "state-too-new");
        }
    }

    #[tokio::test]
    async fn damage_is_reported_and_the_file_kept() {
        type Damage = fn(&mut Vec<u8>);
        let damages: [(&str, Damage); 7] = [
            ("emptied", |f| f.clear()),
            ("text", |f| *f = b"{\"complete_until\": 1}\n".to_vec()),
            ("noise", |f| f.iter_mut().for_each(|b| *b = b.wrapping_mul(31) ^ 0xa5)),
            ("cut", |f| f.truncate(f.len() / 2)),
            ("cut within a page", |f| f.truncate(f.len() - 100)),
            ("zeroed page", |f| f[4096..8192].fill(0)),
            ("one bit", |f| {
                let at = f.windows(9).position(|w| w == b"the value").unwrap();
                f[at] ^= 1;
            }),
        ];
        for (name, damage) in damages {
            let dir = tempfile::tempdir().unwrap();
            let store = SqliteStore::open(dir.path()).unwrap();
            store.commit(vec![put("m365_audit/v1/t/x", "the value", Expected::Absent)]).await.unwrap();
            drop(store);
            let path = dir.path().join(STATE_FILE);
            let mut bytes = fs::read(&path).unwrap();
            damage(&mut bytes);
            fs::write(&path, &bytes).unwrap();
            println!("{name}: {}", check_refused(dir.path(), "state-corrupt"));
        }
    }

    #[test]
    fn a_database_of_another_program_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        raw(dir.path()).execute_batch("CREATE TABLE t(x)").unwrap();
        check_refused(dir.path(), "state-corrupt");
    }

    #[test]
    fn a_log_without_its_file_is_not_thrown_away() {
        let dir = tempfile::tempdir().unwrap();
        let wal = dir.path().join("state.sqlite3-wal");
        fs::write(&wal, b"log").unwrap();
        check_refused(dir.path(), "state-corrupt");
        assert_eq!(fs::read(&wal).unwrap(), b"log");
    }

    #[tokio::test]
    async fn a_row_damaged_while_running_is_an_error_not_a_value() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path()).unwrap();
        store.commit(vec![put("a", "1", Expected::Absent)]).await.unwrap();
        raw(dir.path()).execute("UPDATE kv SET value = x'32'", []).unwrap();
        assert!(matches!(store.load("a").await, Err(StateError::Corrupt { key, .. }) if key == "a"));
    }

    #[test]
    fn a_data_dir_that_cannot_be_is_not_writable() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [file.clone(), file.join("below")] {
            assert_eq!(SqliteStore::open(&path).unwrap_err().slug(), "state-not-writable");
        }
        assert_eq!(SqliteStore::open_read_only(dir.path()).unwrap_err().slug(), "state-missing");
    }

    #[tokio::test]
    async fn a_crash_at_the_first_start_leaves_nothing_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(NEW_FILE), b"half a fi").unwrap();
        fs::write(dir.path().join("state.sqlite3.new-wal"), b"x").unwrap();
        let store = SqliteStore::open(dir.path()).unwrap();
        store.commit(vec![put("a", "1", Expected::Absent)]).await.unwrap();
        drop(store);
        let mut names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, [LOCK_FILE, STATE_FILE]);
    }
}
