//! The embedded host's state store: one SQLite file under `data_dir`, one writer, readers beside it.
//!
//! Owns the file, its format, its lock and the two threads that touch it. Does not know the meaning of keys and values,
//! except for the version in a key's prefix, which decides whether an older build may continue.
//!
//! Guarantees: a commit is all or nothing and synced when it returns (WAL, `synchronous=FULL`); a second process is
//! refused, and the error names the first; a file of a newer format is left alone; an unreadable file is reported and
//! kept byte for byte. Every row carries a checksum over key, revision and value, because SQLite detects a damaged page
//! only if its structure is broken. SQLite's own rules: <https://www.sqlite.org/wal.html>.

mod error;
mod presence;
mod writer;

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rusqlite::config::DbConfig;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub use self::error::StoreError;
use self::error::{NO_LOCKS, NO_SHARED_MEMORY, NO_SYNC, holder};
pub(crate) use self::writer::sum;
pub use self::writer::{LOG_HINT, LOST_HINT, MOUNT_HINT, OVER_HINT, REMOVED_HINT, REPLACED_HINT};
use self::writer::{StateWriter, StoreSignals, Task, state_error};
use super::place::file_system_of;
use crate::clock::Clock;
use crate::delivery::LOOK_EVERY;
use crate::host::{Expected, LOAD_BYTES, Loaded, Op, Revision, StateError, StateStore};

/// The state file's name under `data_dir`.
pub const STATE_FILE: &str = "state.sqlite3";
/// The lock file's name under `data_dir`; it holds the writer's process id.
pub const LOCK_FILE: &str = "lock";
/// Format of the tables (`PRAGMA user_version`). A file with a newer format is refused.
pub const FILE_FORMAT: i64 = 1;
/// Newest version in a key's prefix (`m365_audit/v1/…`) this build understands.
pub const KEY_FORMAT: u32 = crate::checkpoint::format::FORMAT;

/// The temporary name of a new file. It is renamed when complete, so that an empty state file is always damage and
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
/// The cost of a row in the log beside its value: about two 4 KiB pages.
const ROW_LOG_BYTES: usize = 8 << 10;
/// Files up to this size are verified row by row at open (a fraction of a second); larger ones only in structure at
/// the root, their rows when they are read.
const VERIFY_BYTES_MAX: u64 = 32 << 20;
/// How long to wait for another program's lock on the file (for example a backup by the `sqlite3` shell).
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// `SQLITE_IOERR_SHMSIZE`: the shared-memory file could not be grown, as happens with a full disk at open.
const IOERR_SHMSIZE: i32 = 4874;
/// `SQLITE_IOERR_UNLOCK`, `_RDLOCK`, `_CHECKRESERVEDLOCK`, `_LOCK`, `_SHMLOCK`: the system fails a lock with an error
/// other than a conflict.
const IOERR_LOCKS: [i32; 5] = [2058, 2314, 3594, 3850, 5130];
/// `SQLITE_IOERR_SHMOPEN`, `_SHMMAP`.
const IOERR_SHARED_MEMORY: [i32; 2] = [4618, 5386];

/// The embedded state store. Dropping it waits for the commit in progress, folds the log back and releases the lock.
#[derive(Debug)]
pub struct SqliteStore {
    writer: Option<StoreThread<Task>>,
    reader: Option<StoreThread<ReadRequest>>,
    shared: Arc<StoreSignals>,
    is_new: bool,
}

/// How long the store waits for each of its threads when it is dropped: a thread that hangs in a file system that does
/// not answer must not keep the process alive.
const END_WAIT: Duration = Duration::from_secs(3);

/// A thread and the bounded queue it drains; it ends when the queue closes.
#[derive(Debug)]
struct StoreThread<T> {
    queue: mpsc::Sender<T>,
    thread: JoinHandle<()>,
    /// Closes when the thread ends.
    ended: Mutex<std::sync::mpsc::Receiver<()>>,
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
    LoadAll(String, String, oneshot::Sender<Result<Loaded, StateError>>),
}

impl SqliteStore {
    /// Opens the store for this process alone; creates `data_dir` (0700) and the state file (0600) when missing.
    ///
    /// Blocking: opens, locks and verifies. An existing file is not changed before it was verified.
    pub fn open(data_dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        let data_dir = absolute(data_dir.as_ref())?;
        create_data_dir(&data_dir)?;
        let lock_path = data_dir.join(LOCK_FILE);
        let was_used = fs::symlink_metadata(&lock_path).is_ok();
        let lock = lock(&data_dir)?;
        let path = data_dir.join(STATE_FILE);
        let is_new = match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                create(&data_dir, &path).inspect_err(|_| {
                    // A lock file without a state shows that there was a state.
                    if !was_used {
                        let _ = fs::remove_file(&lock_path);
                    }
                })?;
                true
            }
            Err(e) => return Err(io_error(&path, &e)),
            Ok(_) => false,
        };
        inspect(&path)?;
        tighten(&path);
        let connection = open_writer(&path).map_err(|e| opened_error(&path, &e))?;
        try_to_write(&connection).map_err(|e| opened_error(&path, &e))?;
        let shared = Arc::new(StoreSignals { trouble: watch::Sender::new(None), written_anew: AtomicU64::new(0) });
        let reader = spawn_reader(&path, shared.clone())?;
        let mut writer = StateWriter::new(connection, &path, shared.clone(), lock);
        if is_new && was_used {
            writer.report_repair(format!(
                "state-lost: `{}` was used before (its `{LOCK_FILE}` is there) and had no state: a first run begins (hint: {LOST_HINT})",
                data_dir.display()
            ));
        }
        let writer = spawn("m365-state-write", &path, COMMITS_QUEUED_MAX, move |queue| writer.run(queue))?;
        Ok(Self { writer: Some(writer), reader: Some(reader), shared, is_new })
    }

    /// Whether this call created the state.
    #[doc(hidden)]
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// The fault of the state's files, in words with the remedy.
    #[doc(hidden)]
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.shared.trouble.subscribe()
    }

    /// Has the writer check that the files are there, as it does with each commit. To be called every few seconds; does
    /// not wait.
    #[doc(hidden)]
    pub fn look(&self) {
        if let Some(writer) = &self.writer {
            // A full queue contains commits, which check the files, too.
            let _ = writer.queue.try_send(Task::Look);
        }
    }

    /// Has the writer look every few seconds, and passes on what is wrong with the files each time that changes, until
    /// `stop`.
    #[doc(hidden)]
    pub async fn watch_files(&self, clock: &dyn Clock, stop: CancellationToken, found: impl Fn(Option<String>)) {
        let mut trouble = self.trouble();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = clock.sleep(LOOK_EVERY) => self.look(),
                changed = trouble.changed() => match changed {
                    Ok(()) => found(trouble.borrow_and_update().clone()),
                    Err(_) => return,
                }
            }
        }
    }

    /// Rewrites the file without deleted data, which SQLite otherwise keeps in free pages. Commits wait meanwhile.
    /// Needs disk space for a second copy.
    ///
    /// # Errors
    /// The file cannot be rewritten, or was opened for reading; it is unchanged.
    pub async fn compact(&self) -> Result<(), StateError> {
        let Some(writer) = &self.writer else {
            return Err(StateError::Unavailable("opened for reading only".into()));
        };
        let (answer, answered) = oneshot::channel();
        writer.queue.send(Task::Compact(answer)).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }

    /// Opens the store for reading, beside a running process or without one. `commit` then always fails.
    #[doc(hidden)]
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
        let shared = Arc::new(StoreSignals { trouble: watch::Sender::new(None), written_anew: AtomicU64::new(0) });
        let reader = spawn_reader(&path, shared.clone()).map_err(readable)?;
        Ok(Self { writer: None, reader: Some(reader), shared, is_new: false })
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

    async fn load_all(&self, after: &str, before: &str) -> Result<Loaded, StateError> {
        self.read(|answer| ReadRequest::LoadAll(after.to_owned(), before.to_owned(), answer)).await
    }

    async fn commit(&self, ops: Vec<Op>) -> Result<Revision, StateError> {
        let Some(writer) = &self.writer else {
            return Err(StateError::Unavailable("opened for reading only".into()));
        };
        let (answer, answered) = oneshot::channel();
        writer.queue.send(Task::Commit(Commit { ops, answer })).await.map_err(|_| ended())?;
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

impl<T> StoreThread<T> {
    /// Closes the queue and waits until the thread has answered what was in it, or [`END_WAIT`].
    fn finish(self) {
        drop(self.queue);
        let ended = self.ended.into_inner();
        match ended.recv_timeout(END_WAIT) {
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                tracing::warn!(
                    "the state's file system does not answer: not waited for; what was not confirmed stays owed"
                );
            }
            _ => drop(self.thread.join()),
        }
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    path: &Path,
    queued_max: usize,
    run: impl FnOnce(mpsc::Receiver<T>) + Send + 'static,
) -> Result<StoreThread<T>, StoreError> {
    let (queue, queued) = mpsc::channel(queued_max);
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let thread = thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            run(queued);
            drop(end);
        })
        .map_err(|e| StoreError::NotWritable { path: path.to_owned(), why: format!("cannot start a thread: {e}") })?;
    Ok(StoreThread { queue, thread, ended: Mutex::new(ended) })
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
        // A parent that others may write to would let them put another directory here.
        DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(|e| io_error(parent, &e))?;
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

/// Exclusive use of a `data_dir` without a state, while the value lives: the directory of a cluster member holds only
/// the control socket.
pub struct DataDir(#[allow(dead_code, reason = "held, not read")] Lock);

impl DataDir {
    /// Creates the folder (0700) if it is missing, and locks it.
    ///
    /// # Errors
    /// Another process has the lock, or the folder cannot be written.
    pub fn take(data_dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        let data_dir = absolute(data_dir.as_ref())?;
        create_data_dir(&data_dir)?;
        lock(&data_dir).map(Self)
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
        // A symbolic link here would redirect the write to another file.
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
        Err(TryLockError::Error(e)) if has_no_locks(&e) => return Err(unsuited(&path, NO_LOCKS, &e)),
        Err(TryLockError::Error(e)) => return Err(io_error(&path, &e)),
    }
    // The id only appears in the error of a second process, so a full disk here is not a reason to stop.
    let _ = file
        .set_len(0)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .and_then(|_| writeln!(file, "{}", std::process::id()));
    Ok(Lock(file))
}

/// Whether a lock fails because the file system has no locks.
pub(crate) fn has_no_locks(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported || matches!(error.raw_os_error(), Some(libc::ENOLCK | libc::EINVAL))
}

/// The process that holds the state in `data_dir`, in words; `None` when none does.
pub fn running(data_dir: &Path) -> Option<String> {
    let file = File::open(data_dir.join(LOCK_FILE)).ok()?;
    let Err(TryLockError::WouldBlock) = file.try_lock_shared() else { return None };
    let mut text = String::new();
    let _ = (&file).take(16).read_to_string(&mut text);
    Some(holder(text.trim().parse().ok()))
}

/// The lock taken by [`lock`].
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a child being started elsewhere in the process holds a copy until its `exec`.
        let _ = self.0.unlock();
    }
}

/// Creates the file under a temporary name, complete and synced, and then renames it.
fn create(data_dir: &Path, path: &Path) -> Result<(), StoreError> {
    let wal = with_suffix(path, "-wal");
    if fs::metadata(&wal).is_ok_and(|m| m.len() > 0) {
        return Err(StoreError::Corrupt {
            path: path.to_owned(),
            why: format!("the file is gone, but its log `{}` is there", wal.display()),
        });
    }
    let new = new_file(data_dir)?;
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
             -- Earlier builds counted revisions here; they ask for the row.
             INSERT INTO meta VALUES('revision', 0);
             COMMIT;"
        ))?;
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        connection.close().map_err(|(_, e)| e)
    };
    // No other process knows this file, so a lock that fails on it would fail on any file.
    make().map_err(|e| fresh_error(&new, &e))?;
    File::open(&new).and_then(|f| f.sync_all()).map_err(|e| io_error(&new, &e))?;
    fs::rename(&new, path).and_then(|()| sync_dir(data_dir)).map_err(|e| match e.kind() {
        io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput => unsuited(path, NO_SYNC, &e),
        _ => io_error(path, &e),
    })
}

/// Tests the file system features that the state needs, on a file that is removed afterwards.
pub(super) fn try_file_system(dir: &Path) -> Result<(), StoreError> {
    let trial = dir.join(format!(".m365-audit-check-{}.sqlite3", std::process::id()));
    let tried = (|| {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&trial).map_err(|e| io_error(&trial, &e))?;
        let file = File::open(&trial).map_err(|e| io_error(&trial, &e))?;
        match file.try_lock() {
            Err(TryLockError::Error(e)) if has_no_locks(&e) => return Err(unsuited(dir, NO_LOCKS, &e)),
            _ => drop(file),
        }
        open_writer(&trial)
            .and_then(|connection| {
                connection.execute_batch("BEGIN IMMEDIATE; CREATE TABLE trial(x); COMMIT")?;
                connection.close().map_err(|(_, e)| e)
            })
            .map_err(|e| fresh_error(dir, &e))
    })();
    for leftover in ["", "-wal", "-shm", "-journal"] {
        let _ = fs::remove_file(with_suffix(&trial, leftover));
    }
    tried
}

/// An error of a file that no other process has open.
fn fresh_error(path: &Path, error: &rusqlite::Error) -> StoreError {
    let is_locked = matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked));
    if is_locked { unsuited(path, NO_LOCKS, error) } else { sqlite_error(path, error) }
}

/// An error of a file that other processes may have open: whether one of them has locked it, or the file system has no
/// locks at all.
fn opened_error(path: &Path, error: &rusqlite::Error) -> StoreError {
    if error.sqlite_error_code() == Some(ErrorCode::ReadOnly) {
        return StoreError::NotWritable { path: path.to_owned(), why: "the file is read-only".into() };
    }
    if !matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)) {
        return sqlite_error(path, error);
    }
    match try_file_system(path.parent().unwrap_or(Path::new("/"))) {
        Err(error @ StoreError::FileSystem { .. }) => error,
        _ => StoreError::Busy { path: path.to_owned() },
    }
}

fn unsuited(path: &Path, lacks: &'static str, why: &dyn std::fmt::Display) -> StoreError {
    StoreError::FileSystem { path: path.to_owned(), file_system: file_system_of(path), lacks, why: why.to_string() }
}

/// Creates an empty file under a temporary name, which will become the state's file.
fn new_file(data_dir: &Path) -> Result<PathBuf, StoreError> {
    let new = data_dir.join(NEW_FILE);
    for leftover in ["", "-wal", "-shm", "-journal"] {
        let leftover = with_suffix(&new, leftover);
        match fs::remove_file(&leftover) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_error(&leftover, &e)),
            _ => {}
        }
    }
    // Made here, not by SQLite, for its mode: the log and the shared memory inherit it.
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).map_err(|e| io_error(&new, &e))?;
    Ok(new)
}

/// Removes access by other users, since the file holds a tenant's records and a copy may have other permissions.
fn tighten(path: &Path) {
    if let Ok(metadata) = fs::metadata(path)
        && metadata.permissions().mode() & 0o077 != 0
        && let Err(e) = fs::set_permissions(path, fs::Permissions::from_mode(0o600))
    {
        tracing::warn!(path = %path.display(), error = %e, "state file can be read by others and could not be closed to them");
    }
}

/// Checks through a read-only connection whether this build may write to the file.
fn inspect(path: &Path) -> Result<(), StoreError> {
    let corrupt = |why: String| StoreError::Corrupt { path: path.to_owned(), why };
    // The link itself, not its target: SQLite would write to the target.
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
    let (connection, application_id, format) = look().map_err(|e| opened_error(path, &e))?;
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
    // The statement names the columns, so a table without one fails here.
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
    // SQLite then refuses a link anywhere in the path. The folder may be a link (systemd creates it so); the file may
    // not.
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
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        // Without shared memory SQLite stays in its former mode and gives no reason.
        let error = rusqlite::ffi::Error::new(IOERR_SHARED_MEMORY[1]);
        return Err(rusqlite::Error::SqliteFailure(error, Some(format!("the journal stays in mode `{mode}`"))));
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    // A safety net only: `StateWriter::fold` does this after the answers are sent.
    connection.pragma_update_and_check(None, "wal_autocheckpoint", 8192, |_| Ok(()))?;
    // After a burst (held bodies) the log shrinks again.
    connection.pragma_update_and_check(None, "journal_size_limit", CHECKPOINT_EVERY_BYTES as i64, |_| Ok(()))?;
    Ok(connection)
}

/// Whether the state can be written. SQLite falls back to reading when the file may not be written, and then begins
/// even an immediate transaction as one that reads; so this runs a statement that changes nothing. It does not use
/// `is_readonly`, whose argument is of another type in the oldest and the newest rusqlite that `Cargo.toml` allows.
fn try_to_write(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch("BEGIN IMMEDIATE; UPDATE meta SET value = value WHERE 0; ROLLBACK")
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
        Some(ErrorCode::FileLockingProtocolFailed) => unsuited(&path, NO_LOCKS, &why),
        Some(_) => match error.sqlite_error().map(|e| e.extended_code) {
            Some(code) if IOERR_LOCKS.contains(&code) => unsuited(&path, NO_LOCKS, &why),
            Some(code) if IOERR_SHARED_MEMORY.contains(&code) => unsuited(&path, NO_SHARED_MEMORY, &why),
            _ => StoreError::NotWritable { path, why },
        },
        // Not an SQLite error: a column of another type, or a missing row.
        None => StoreError::Corrupt { path, why },
    }
}

fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
        || error.sqlite_error().is_some_and(|e| e.extended_code == IOERR_SHMSIZE)
}

// ---------------------------------------------------------------------------------------------- reading

fn spawn_reader(path: &Path, shared: Arc<StoreSignals>) -> Result<StoreThread<ReadRequest>, StoreError> {
    let mut connection = open_reader(path).map_err(|e| sqlite_error(path, &e))?;
    let mut written_anew = shared.written_anew.load(Ordering::Acquire);
    let path = path.to_owned();
    spawn("m365-state-read", &path.clone(), READS_QUEUED_MAX, move |mut queue: mpsc::Receiver<ReadRequest>| {
        while let Some(request) = queue.blocking_recv() {
            let now = shared.written_anew.load(Ordering::Acquire);
            if now != written_anew {
                // A failure is returned as the answer: the old file is not read, since it lacks later commits.
                match open_reader(&path) {
                    Ok(opened) => (connection, written_anew) = (opened, now),
                    Err(error) => {
                        request.refuse(&state_error("", &error));
                        continue;
                    }
                }
            }
            match request {
                ReadRequest::Load(key, answer) => {
                    let _ = answer.send(load(&connection, &key));
                }
                ReadRequest::List(prefix, answer) => {
                    let _ = answer.send(list(&connection, &prefix));
                }
                ReadRequest::LoadAll(after, before, answer) => {
                    let _ = answer.send(load_all(&connection, &after, &before));
                }
            }
        }
    })
}

fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    // The writer closes last and folds the log. The reader of a file that lost its name must not touch the log of
    // another file.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(connection)
}

impl ReadRequest {
    fn refuse(self, error: &StateError) {
        match self {
            Self::Load(_, answer) => drop(answer.send(Err(error.clone()))),
            Self::List(_, answer) => drop(answer.send(Err(error.clone()))),
            Self::LoadAll(_, _, answer) => drop(answer.send(Err(error.clone()))),
        }
    }
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

fn load_all(connection: &Connection, after: &str, before: &str) -> Result<Loaded, StateError> {
    let failed = |e: rusqlite::Error| state_error(after, &e);
    let mut statement = connection
        .prepare_cached("SELECT key, revision, sum, value FROM kv WHERE key > ?1 AND key < ?2 ORDER BY key")
        .map_err(failed)?;
    let mut rows = statement.query([after, before]).map_err(failed)?;
    let mut loaded = Loaded::default();
    let mut bytes = 0;
    while let Some(row) = rows.next().map_err(failed)? {
        if bytes >= LOAD_BYTES {
            loaded.more = true;
            break;
        }
        let read = || -> rusqlite::Result<(String, i64, i64, Vec<u8>)> {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        };
        let damaged = |e: rusqlite::Error| StateError::Corrupt { key: after.to_owned(), why: e.to_string() };
        let (key, revision, stored, value) = read().map_err(damaged)?;
        if sum(key.as_bytes(), revision, &value) != stored {
            return Err(StateError::Corrupt { key, why: "it does not match its checksum".into() });
        }
        bytes += value.len();
        loaded.entries.push((key, value.into(), Revision(revision.cast_unsigned())));
    }
    Ok(loaded)
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
pub(crate) fn first_after(prefix: &str) -> Option<String> {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        // The successor of U+D7FF is U+E000: the surrogates between are not characters.
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
    use crate::model::Actionable;

    fn put(key: &str, value: &str, expected: Expected) -> Op {
        Op::Put { key: key.into(), value: Bytes::copy_from_slice(value.as_bytes()), expected }
    }

    async fn value(store: &SqliteStore, key: &str) -> Option<String> {
        store.load(key).await.unwrap().map(|(v, _)| String::from_utf8(v.to_vec()).unwrap())
    }

    fn raw(dir: &Path) -> Connection {
        Connection::open(dir.join(STATE_FILE)).unwrap()
    }

    #[test]
    fn a_file_system_without_locks_or_shared_memory_is_named_as_the_cause() {
        let path = Path::new("/proc/x/state.sqlite3");
        let error =
            |code| rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), Some("database is locked".into()));
        // Errors on a new file, which no other process can have open.
        for (code, lacks) in [
            (rusqlite::ffi::SQLITE_BUSY, NO_LOCKS),
            (rusqlite::ffi::SQLITE_LOCKED, NO_LOCKS),
            (rusqlite::ffi::SQLITE_PROTOCOL, NO_LOCKS),
            (rusqlite::ffi::SQLITE_IOERR_LOCK, NO_LOCKS),
            (rusqlite::ffi::SQLITE_IOERR_RDLOCK, NO_LOCKS),
            (rusqlite::ffi::SQLITE_IOERR_CHECKRESERVEDLOCK, NO_LOCKS),
            (rusqlite::ffi::SQLITE_IOERR_UNLOCK, NO_LOCKS),
            (rusqlite::ffi::SQLITE_IOERR_SHMLOCK, NO_LOCKS),
            (rusqlite::ffi::SQLITE_IOERR_SHMMAP, NO_SHARED_MEMORY),
            (rusqlite::ffi::SQLITE_IOERR_SHMOPEN, NO_SHARED_MEMORY),
        ] {
            let found = fresh_error(path, &error(code));
            assert_eq!(found.slug(), "state-file-system", "{code}: {found}");
            let text = found.to_string();
            assert!(text.contains(lacks) && text.contains("(proc)") && text.contains("database is locked"), "{text}");
            assert!(found.hint().contains("nobrl") && !found.hint().contains("belong to the user"));
        }
        for (code, slug) in [
            (rusqlite::ffi::SQLITE_FULL, "state-full"),
            (rusqlite::ffi::SQLITE_READONLY, "state-not-writable"),
            (rusqlite::ffi::SQLITE_IOERR_WRITE, "state-not-writable"),
            (rusqlite::ffi::SQLITE_NOTADB, "state-corrupt"),
        ] {
            assert_eq!(fresh_error(path, &error(code)).slug(), slug, "{code}");
        }
        for (code, is) in [(libc::ENOLCK, true), (libc::EOPNOTSUPP, true), (libc::ENOSYS, true), (libc::EACCES, false)]
        {
            assert_eq!(has_no_locks(&io::Error::from_raw_os_error(code)), is, "{code}");
        }
    }

    #[test]
    fn a_state_that_sqlite_opened_to_read_only_is_told_and_asking_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        drop(SqliteStore::open(dir.path()).unwrap());
        let path = dir.path().join(STATE_FILE);
        let writer = open_writer(&path).unwrap();
        try_to_write(&writer).unwrap();
        assert_eq!(writer.changes(), 0);
        let error = try_to_write(&connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()).unwrap_err();
        let error = opened_error(&path, &error);
        assert_eq!((error.slug(), error.to_string().contains("the file is read-only")), ("state-not-writable", true));
    }

    #[test]
    fn a_lock_of_another_program_on_a_good_file_system_is_told_as_that() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(STATE_FILE);
        let busy = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY), None);
        assert_eq!(opened_error(&path, &busy).slug(), "state-busy");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "the trial is removed");
        assert_eq!(running(dir.path()), None);
        let store = SqliteStore::open(dir.path()).unwrap();
        assert_eq!(running(dir.path()), Some(format!("process `{}`", std::process::id())));
        drop(store);
        assert_eq!(running(dir.path()), None);
    }

    #[tokio::test]
    async fn what_was_committed_is_there_after_reopening_and_revisions_are_new() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path()).unwrap();
        let first = store.commit(vec![put("a", "1", Expected::Absent), put("b", "2", Expected::Any)]).await.unwrap();
        drop(store);
        let store = SqliteStore::open(dir.path()).unwrap();
        assert_eq!(store.load("a").await.unwrap(), Some((Bytes::from_static(b"1"), first)));
        let second = store.commit(vec![put("a", "3", Expected::At(first))]).await.unwrap();
        assert_ne!(second, first);
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
            // The second step changes `a`, so that later steps of the same commit see the change.
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
        let shared = Arc::new(StoreSignals { trouble: watch::Sender::new(None), written_anew: AtomicU64::new(0) });
        let mut writer = StateWriter::new(connection, &dir.path().join(STATE_FILE), shared, lock);
        let results = writer.commit_all(&[
            vec![put("a", "1", Expected::Absent)],
            vec![put("b", "1", Expected::Any), put("a", "2", Expected::Absent)],
            vec![put("c", "1", Expected::Absent)],
        ]);
        assert!(results[0].is_ok() && results[2].is_ok() && results[0] != results[2], "{results:?}");
        assert_eq!(results[1], Err(StateError::Conflict { key: "a".into() }));
        let keys: Vec<_> = list(writer.connection.as_ref().unwrap(), "").unwrap().into_iter().map(|(k, _)| k).collect();
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
