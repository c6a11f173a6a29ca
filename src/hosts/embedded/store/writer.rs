//! The thread that writes the state: it commits in groups and checks the file's name.
//!
//! If the state file was deleted, the thread writes it again from the open file, as long as no other file has the name.
//! If that fails it commits nothing, so that no position advances on the basis of a file without a name.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::{mpsc, oneshot, watch};

use super::presence::{FileState, Presence};
use super::*;
use crate::model::Actionable;

/// How long health reports a state that was deleted and written again.
const REPORTED_FOR: Duration = Duration::from_secs(3600);

/// So large a log is reported: it is folded every 4 MiB, and grows only while that fails.
const LOG_BYTES_MAX: u64 = 64 << 20;
/// Of a page in the log.
const PAGE_BYTES: u64 = 4 << 10;

/// A task of the writer.
#[derive(Debug)]
pub(super) enum Task {
    Commit(Commit),
    /// Check that the files are there.
    Look,
    /// Rewrite the file without deleted data.
    Compact(oneshot::Sender<Result<(), StateError>>),
}

/// State that the writer shares with the store and the reader.
#[derive(Debug)]
pub(super) struct StoreSignals {
    /// The fault of the files, in words with the remedy.
    pub(super) trouble: watch::Sender<Option<String>>,
    /// Counts how often the file was written again: a reader of an older one reopens it.
    pub(super) written_anew: AtomicU64,
}

/// The state of the writer thread. Fields drop in this order: the lock goes last, after the connection is closed.
pub(super) struct StateWriter {
    /// `None` while a rewritten file could not be opened yet.
    pub(super) connection: Option<Connection>,
    /// Bytes in the log since it was last folded into the file, estimated.
    pub(super) unfolded_bytes: usize,
    /// Why the log grows, once it is large.
    unfolded: Option<String>,
    pub(super) presence: Presence,
    pub(super) path: PathBuf,
    pub(super) shared: Arc<StoreSignals>,
    /// The last repair, and when it was made.
    pub(super) repaired: Option<(Instant, String)>,
    pub(super) lock: Lock,
}

impl StateWriter {
    pub(super) fn new(connection: Connection, path: &Path, shared: Arc<StoreSignals>, lock: Lock) -> Self {
        Self {
            connection: Some(connection),
            unfolded_bytes: 0,
            unfolded: None,
            presence: Presence::of(path, &lock.0),
            path: path.to_owned(),
            shared,
            repaired: None,
            lock,
        }
    }

    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Task>) {
        let mut next = None;
        while let Some(first) = next.take().or_else(|| queue.blocking_recv()) {
            let there = self.look();
            let first = match first {
                Task::Commit(first) => first,
                Task::Look => continue,
                Task::Compact(answer) => {
                    let _ = answer.send(there.map_err(StateError::Unavailable).and_then(|()| self.compact()));
                    continue;
                }
            };
            let mut bytes = size(&first.ops);
            let mut group = vec![first];
            // Commits queued during the last fsync share the next one; a commit never waits for others to join.
            while group.len() < GROUP_COMMITS_MAX && bytes < GROUP_BYTES_MAX {
                match queue.try_recv() {
                    Ok(Task::Commit(commit)) => {
                        bytes += size(&commit.ops);
                        group.push(commit);
                    }
                    Ok(Task::Look) => {}
                    Ok(compact @ Task::Compact(_)) => {
                        next = Some(compact);
                        break;
                    }
                    Err(_) => break,
                }
            }
            let (all_ops, answers): (Vec<_>, Vec<_>) = group.into_iter().map(|c| (c.ops, c.answer)).unzip();
            let results = match there {
                Ok(()) => self.commit_all(&all_ops),
                Err(why) => vec![Err(StateError::Unavailable(why)); all_ops.len()],
            };
            for (answer, result) in answers.into_iter().zip(results) {
                let _ = answer.send(result);
            }
            self.unfolded_bytes += bytes;
            if self.unfolded_bytes >= CHECKPOINT_EVERY_BYTES {
                self.fold();
            }
        }
    }

    /// Checks that the files are there and repairs what it can; otherwise returns why nothing may be committed.
    pub(super) fn look(&mut self) -> Result<(), String> {
        let outcome = self.repair();
        let now = match &outcome {
            Err(why) => Some(why.clone()),
            Ok(()) => match &self.repaired {
                Some((at, what)) if at.elapsed() < REPORTED_FOR => Some(what.clone()),
                _ => self.unfolded.clone(),
            },
        };
        self.shared.trouble.send_if_modified(|known| {
            if *known == now {
                return false;
            }
            match &now {
                Some(what) => tracing::warn!("{what}"),
                None => tracing::info!("the state's file is as it should be again"),
            }
            *known = now;
            true
        });
        outcome
    }

    /// Has health report a repair for a limited time.
    pub(super) fn report_repair(&mut self, what: String) {
        self.repaired = Some((Instant::now(), what));
        let _ = self.look();
    }

    fn repair(&mut self) -> Result<(), String> {
        if self.connection.is_none() {
            return self.open_again();
        }
        let path = self.path.display();
        match self.presence.look() {
            FileState::AsLeft => Ok(()),
            FileState::Gone(lock) if lock.ends_with(LOCK_FILE) => {
                self.lock_again()?;
                self.repaired = Some((
                    Instant::now(),
                    format!(
                        "state-removed: `{}` was removed or replaced while this process ran, and was made anew (hint: {REMOVED_HINT})",
                        lock.display()
                    ),
                ));
                Ok(())
            }
            FileState::Gone(gone) => {
                let gone = gone.display();
                self.write_anew().map_err(|error| {
                    format!("state-removed: `{gone}` was removed while this process ran, and cannot be written anew yet: {error} (hint: {REMOVED_HINT})")
                })?;
                self.repaired = Some((
                    Instant::now(),
                    format!(
                        "state-removed: `{gone}` was removed or moved away while this process ran; the whole state was written anew, nothing is lost (hint: {REMOVED_HINT})"
                    ),
                ));
                Ok(())
            }
            FileState::Other => Err(format!(
                "state-replaced: another file was put in the place of `{path}` while this process ran; it is left alone, and nothing is written (hint: {REPLACED_HINT})"
            )),
            FileState::Cut => Err(format!(
                "state-replaced: `{path}` was cut or overwritten while this process ran; nothing is written (hint: {REPLACED_HINT})"
            )),
            FileState::MountGone(mount) => Err(format!(
                "state-mount-gone: what was mounted at `{}` is not mounted any more, and with it `{path}`; nothing is written beneath it (hint: {MOUNT_HINT})",
                mount.display()
            )),
            FileState::MountedOver(mount) => Err(format!(
                "state-mounted-over: `{}` is mounted now over `{path}`, which lies beneath it; nothing is written (hint: {OVER_HINT})",
                mount.display()
            )),
            FileState::Unseen(why) => {
                Err(format!("state-not-written: `{path}` cannot be looked at: {why} (hint: {MOUNT_HINT})"))
            }
        }
    }

    fn lock_again(&mut self) -> Result<(), String> {
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        self.lock = lock(dir).map_err(|error| message(&error))?;
        self.presence = Presence::of(&self.path, &self.lock.0);
        Ok(())
    }

    /// Writes the whole state under its name again, from the open file that lost it.
    fn write_anew(&mut self) -> Result<(), String> {
        let Some(connection) = &self.connection else { return self.open_again() };
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        create_data_dir(dir).map_err(|error| message(&error))?;
        // This process's lock stays if it still has its name.
        if !self.presence.has_lock() {
            self.lock = lock(dir).map_err(|error| message(&error))?;
        }
        let new = new_file(dir).map_err(|error| message(&error))?;
        let copied = connection.execute("VACUUM INTO ?1", [new.to_string_lossy()]);
        copied.map_err(|error| message(&sqlite_error(&new, &error)))?;
        let failed = |error: std::io::Error| message(&io_error(&self.path, &error));
        File::open(&new).and_then(|file| file.sync_all()).map_err(failed)?;
        // Their frames belong to the deleted file; a new one must not be read with them.
        for beside in ["-wal", "-shm"] {
            match fs::remove_file(with_suffix(&self.path, beside)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        fs::rename(&new, &self.path).and_then(|()| sync_dir(dir)).map_err(failed)?;
        if let Some(old) = self.connection.take() {
            // Closing it would otherwise remove the new file's log by its name.
            let _ = old.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
        }
        self.open_again()
    }

    /// Rewrites the state without deleted data, which SQLite leaves in free pages until it uses them again. Commits
    /// wait meanwhile.
    fn compact(&mut self) -> Result<(), StateError> {
        let Some(connection) = &self.connection else { return Err(ended()) };
        // With an empty log the file alone is the whole state, wherever this is interrupted.
        let busy: Result<i64, _> = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0));
        if busy.map_err(|error| state_error("", &error))? != 0 {
            let why = "another program reads the state's file: it cannot be written anew now";
            return Err(StateError::Unavailable(why.to_owned()));
        }
        self.write_anew().map_err(|why| {
            // A partial copy would keep the deleted data.
            let _ = fs::remove_file(self.path.with_file_name(NEW_FILE));
            StateError::Unavailable(why)
        })
    }

    /// Opens a file that was written again.
    fn open_again(&mut self) -> Result<(), String> {
        let opened = open_writer(&self.path).and_then(|connection| {
            connection.execute_batch("BEGIN IMMEDIATE; ROLLBACK")?;
            Ok(connection)
        });
        self.connection = Some(opened.map_err(|error| message(&sqlite_error(&self.path, &error)))?);
        self.unfolded_bytes = 0;
        self.unfolded = None;
        self.presence = Presence::of(&self.path, &self.lock.0);
        self.shared.written_anew.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// One transaction for all; when that fails as a whole, one for each, so that a commit too large for the remaining
    /// disk space does not fail its neighbours.
    pub(super) fn commit_all(&mut self, group: &[Vec<Op>]) -> Vec<Result<Revision, StateError>> {
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
    /// `Err` means that no commit of the group was kept.
    fn transaction(&mut self, group: &[Vec<Op>]) -> Result<Vec<Result<Revision, StateError>>, StateError> {
        let Some(connection) = &self.connection else { return Err(ended()) };
        let mut results = Vec::with_capacity(group.len());
        let outcome = (|| {
            connection.execute_batch("BEGIN IMMEDIATE").map_err(|e| state_error("", &e))?;
            for ops in group {
                connection.execute_batch("SAVEPOINT one").map_err(|e| state_error("", &e))?;
                let revision = Revision::draw();
                match apply(connection, revision.0.cast_signed(), ops) {
                    Ok(()) => {
                        results.push(Ok(revision));
                        connection.execute_batch("RELEASE one")
                    }
                    Err(conflict @ StateError::Conflict { .. }) => {
                        results.push(Err(conflict));
                        connection.execute_batch("ROLLBACK TO one; RELEASE one")
                    }
                    Err(error) => return Err(error),
                }
                .map_err(|e| state_error("", &e))?;
            }
            connection.execute_batch("COMMIT").map_err(|e| state_error("", &e))
        })();
        match outcome {
            Ok(()) => Ok(results),
            Err(error) => {
                // SQLite may have rolled back by itself, on a full disk for one.
                if !connection.is_autocommit() {
                    let _ = connection.execute_batch("ROLLBACK");
                }
                Err(error)
            }
        }
    }

    /// Folds the log into the file, as far as readers allow. Failure costs only disk space: the log is equally durable.
    /// So much of it that somebody has to act is reported.
    fn fold(&mut self) {
        self.unfolded_bytes = 0;
        let Some(connection) = &self.connection else { return };
        let folded = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
            Ok((row.get::<_, i64>("log")?.cast_unsigned(), row.get::<_, i64>("checkpointed")?.cast_unsigned()))
        });
        let log = with_suffix(&self.path, "-wal");
        // The file keeps its greatest length; what is in use of it are the pages that SQLite counts.
        let (bytes, cause) = match folded {
            Ok((pages, folded)) if pages == folded => return self.unfolded = None,
            Ok((pages, _)) => (pages.saturating_mul(PAGE_BYTES), "another program reads the state".to_owned()),
            Err(error) => (fs::metadata(&log).map_or(0, |metadata| metadata.len()), error.to_string()),
        };
        self.unfolded = (bytes >= LOG_BYTES_MAX).then(|| {
            format!(
                "state-log-grows: `{}` has {} MiB, for it cannot be folded into the state's file: {cause} (hint: {LOG_HINT})",
                log.display(),
                bytes >> 20
            )
        });
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

/// Checksum of a row: the first eight bytes of BLAKE3 over its parts, the key's length first, so that the parts cannot
/// be confused.
pub(crate) fn sum(key: &[u8], revision: i64, value: &[u8]) -> i64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(&revision.to_le_bytes());
    hasher.update(value);
    let mut first = [0; 8];
    hasher.finalize_xof().fill(&mut first);
    i64::from_le_bytes(first)
}

pub(super) fn state_error(key: &str, error: &rusqlite::Error) -> StateError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StateError::Corrupt { key: key.to_owned(), why: error.to_string() }
        }
        _ => StateError::Unavailable(error.to_string()),
    }
}

fn message(error: &StoreError) -> String {
    format!("{}: {error}", error.slug())
}

/// The remedy for a missing state.
pub const LOST_HINT: &str = "if that is not meant, stop, restore the state from a backup and start again; what it still \
                             owed from before `backfill_secs` comes by `m365-audit backfill -c FILE --from 7d`";

/// The remedy for deleted files.
pub const REMOVED_HINT: &str = "find out what removes files under `data_dir` while this runs; stop it first when the \
                                state is to be moved or restored";

/// The remedy for a file that replaced the state.
pub const REPLACED_HINT: &str = "to go on with what this process holds, move that file away: the state is written anew \
                                 within seconds; to use that file, restart";

/// The remedy for a log that cannot be folded into the file.
pub const LOG_HINT: &str = "`fuser -v` on that file names the programs: end the one that only reads; with none, look at the disk. \
                            Never remove or cut the log: what is in it is in no other file";

/// The remedy for a mount over the state.
pub const OVER_HINT: &str = "unmount it: writing goes on by itself. To have the state on it, stop this process, unmount \
                             it, move what is in `data_dir` aside, mount it, move that back and start; \
                             `RequiresMountsFor=` has systemd mount first";

/// The remedy for a vanished mount.
pub const MOUNT_HINT: &str = "mount it again: writing goes on by itself; positions stand until then, nothing is lost";

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::time::Duration;

    fn put(key: &str, value: &str) -> Op {
        Op::Put { key: key.into(), value: Bytes::copy_from_slice(value.as_bytes()), expected: Expected::Any }
    }

    async fn value(store: &SqliteStore, key: &str) -> Option<String> {
        store.load(key).await.unwrap().map(|(v, _)| String::from_utf8(v.to_vec()).unwrap())
    }

    /// Has the store check its files, and waits for the result.
    async fn trouble(store: &SqliteStore) -> Option<String> {
        store.look();
        // Answered by the same thread, after the check.
        let _ = store.commit(vec![put("look", "")]).await;
        store.trouble().borrow_and_update().clone()
    }

    fn state(dir: &Path) -> PathBuf {
        dir.join(STATE_FILE)
    }

    fn remove_all(dir: &Path) {
        for suffix in ["", "-wal", "-shm"] {
            fs::remove_file(with_suffix(&state(dir), suffix)).unwrap();
        }
    }

    #[tokio::test]
    async fn a_state_that_vanishes_is_told_and_written_anew_with_all_that_was_in_it() {
        type Case = (&'static str, fn(&Path));
        let cases: [Case; 7] = [
            ("all three files", remove_all),
            ("the file alone", |dir| fs::remove_file(state(dir)).unwrap()),
            ("the log alone", |dir| fs::remove_file(with_suffix(&state(dir), "-wal")).unwrap()),
            ("the shared memory alone", |dir| fs::remove_file(with_suffix(&state(dir), "-shm")).unwrap()),
            ("renamed", |dir| fs::rename(state(dir), dir.join("backup")).unwrap()),
            ("the directory moved away", |dir| fs::rename(dir, dir.with_extension("moved")).unwrap()),
            ("the directory removed", |dir| fs::remove_dir_all(dir).unwrap()),
        ];
        for (what, done) in cases {
            let outer = tempfile::tempdir().unwrap();
            let dir = outer.path().join("data");
            let store = SqliteStore::open(&dir).unwrap();
            let mut revision = store.commit(vec![put("folded", &"x".repeat(100_000)), put("gone", "1")]).await.unwrap();
            for n in 0..50 {
                store.commit(vec![put(&format!("key/{n}"), &n.to_string())]).await.unwrap();
            }
            store.commit(vec![Op::Delete { key: "gone".into(), expected: Expected::Any }]).await.unwrap();
            assert_eq!(trouble(&store).await, None, "{what}");
            done(&dir);
            let message = trouble(&store).await.unwrap_or_else(|| panic!("{what}: nothing is told"));
            assert!(message.starts_with("state-removed:") && message.contains("hint:"), "{what}: {message}");
            for _ in 0..2 {
                assert_eq!(value(&store, "key/49").await.as_deref(), Some("49"), "{what}");
                assert_eq!(value(&store, "gone").await, None, "{what}");
                let next = store.commit(vec![put("after", what)]).await.unwrap();
                assert_ne!(next, revision, "{what}");
                revision = next;
                store.look();
            }
            assert_eq!(value(&store, "after").await.as_deref(), Some(what), "the reader sees the new file");
            for (path, mode) in [(dir.clone(), 0o700), (state(&dir), 0o600), (dir.join(LOCK_FILE), 0o600)] {
                assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
            }
            assert!(matches!(SqliteStore::open(&dir), Err(StoreError::Locked { .. })), "{what}: it is locked");
            drop(store);
            let store = SqliteStore::open(&dir).unwrap();
            assert_eq!(store.list("key/").await.unwrap().len(), 50, "{what}");
            assert_eq!(value(&store, "after").await.as_deref(), Some(what));
            assert_eq!(value(&store, "folded").await.unwrap().len(), 100_000);
        }
    }

    #[tokio::test]
    async fn a_state_that_is_gone_from_a_directory_that_was_used_is_told_and_a_first_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        // A failed first start does not count as one.
        fs::create_dir(dir.path().join(NEW_FILE)).unwrap();
        SqliteStore::open(dir.path()).unwrap_err();
        fs::remove_dir(dir.path().join(NEW_FILE)).unwrap();
        let store = SqliteStore::open(dir.path()).unwrap();
        assert_eq!((trouble(&store).await, store.is_new()), (None, true));
        drop(store);
        let store = SqliteStore::open(dir.path()).unwrap();
        assert_eq!((trouble(&store).await, store.is_new()), (None, false));
        drop(store);
        fs::remove_file(state(dir.path())).unwrap();
        let store = SqliteStore::open(dir.path()).unwrap();
        assert!(trouble(&store).await.unwrap().starts_with("state-lost:"));
    }

    #[tokio::test]
    async fn a_state_that_was_written_anew_outlives_a_process_that_is_killed() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("data");
        let store = SqliteStore::open(&dir).unwrap();
        store.commit(vec![put("a", "1")]).await.unwrap();
        remove_all(&dir);
        store.commit(vec![put("b", "2")]).await.unwrap();
        store.commit(vec![put("c", "3")]).await.unwrap();
        // What a killed process leaves: the files as they are.
        let left = outer.path().join("left");
        fs::create_dir(&left).unwrap();
        for suffix in ["", "-wal"] {
            fs::copy(with_suffix(&state(&dir), suffix), with_suffix(&state(&left), suffix)).unwrap();
        }
        let left = SqliteStore::open(&left).unwrap();
        for (key, found) in [("a", "1"), ("b", "2"), ("c", "3")] {
            assert_eq!(value(&left, key).await.as_deref(), Some(found));
        }
    }

    #[tokio::test]
    async fn a_file_put_in_the_place_of_the_state_is_left_alone_and_nothing_is_committed() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path()).unwrap();
        store.commit(vec![put("a", "1")]).await.unwrap();
        fs::write(dir.path().join("other"), "somebody's").unwrap();
        fs::rename(dir.path().join("other"), state(dir.path())).unwrap();
        let refused = store.commit(vec![put("a", "2")]).await.unwrap_err();
        assert!(matches!(&refused, StateError::Unavailable(why) if why.starts_with("state-replaced:")), "{refused}");
        assert!(trouble(&store).await.unwrap().contains("move that file away"));
        assert_eq!(fs::read_to_string(state(dir.path())).unwrap(), "somebody's");
        // The remedy it names.
        fs::rename(state(dir.path()), dir.path().join("other")).unwrap();
        store.commit(vec![put("a", "2")]).await.unwrap();
        assert_eq!(value(&store, "a").await.as_deref(), Some("2"));
    }

    #[tokio::test]
    async fn a_log_of_another_state_and_a_file_that_was_cut_stop_commits() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path()).unwrap();
        store.commit(vec![put("a", "1")]).await.unwrap();
        let wal = with_suffix(&state(dir.path()), "-wal");
        fs::rename(&wal, dir.path().join("ours")).unwrap();
        fs::write(&wal, "another").unwrap();
        assert!(store.commit(vec![put("a", "2")]).await.is_err());
        fs::rename(dir.path().join("ours"), &wal).unwrap();
        store.commit(vec![put("a", "2")]).await.unwrap();
        File::options().write(true).open(state(dir.path())).unwrap().set_len(0).unwrap();
        assert!(trouble(&store).await.unwrap().starts_with("state-replaced:"));
        assert!(store.commit(vec![put("a", "3")]).await.is_err());
    }

    #[tokio::test]
    async fn a_lock_that_was_removed_is_taken_again_unless_another_process_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path()).unwrap();
        store.commit(vec![put("a", "1")]).await.unwrap();
        fs::remove_file(dir.path().join(LOCK_FILE)).unwrap();
        assert!(trouble(&store).await.unwrap().contains("made anew"));
        assert!(matches!(SqliteStore::open(dir.path()), Err(StoreError::Locked { .. })));
        fs::remove_file(dir.path().join(LOCK_FILE)).unwrap();
        let other = lock(dir.path()).unwrap_or_else(|error| panic!("{error}"));
        let refused = store.commit(vec![put("a", "2")]).await.unwrap_err();
        assert!(matches!(&refused, StateError::Unavailable(why) if why.contains("is running on it")), "{refused}");
        drop(other);
        store.commit(vec![put("a", "2")]).await.unwrap();
    }

    #[tokio::test]
    async fn nothing_is_written_beneath_a_mount_that_went_away() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("data");
        drop(SqliteStore::open(&dir).unwrap());
        let lock = lock(&dir).unwrap();
        let connection = open_writer(&state(&dir)).unwrap();
        let shared = Arc::new(StoreSignals { trouble: watch::Sender::new(None), written_anew: AtomicU64::new(0) });
        let mut writer = StateWriter::new(connection, &state(&dir), shared.clone(), lock);
        writer.presence.pretend_mounted_at(&dir);
        assert_eq!(writer.look(), Ok(()));
        let mounted = outer.path().join("mounted");
        fs::rename(&dir, &mounted).unwrap();
        fs::create_dir(&dir).unwrap();
        let why = writer.look().unwrap_err();
        assert!(why.starts_with("state-mount-gone:") && why.contains("hint: mount it again"), "{why}");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        fs::remove_dir(&dir).unwrap();
        fs::rename(&mounted, &dir).unwrap();
        assert_eq!(writer.look(), Ok(()));
        assert_eq!(*shared.trouble.borrow(), None);
    }

    #[tokio::test]
    async fn a_file_system_that_is_mounted_over_the_state_is_told_as_that() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("data");
        drop(SqliteStore::open(&dir).unwrap());
        let lock = lock(&dir).unwrap();
        let connection = open_writer(&state(&dir)).unwrap();
        let shared = Arc::new(StoreSignals { trouble: watch::Sender::new(None), written_anew: AtomicU64::new(0) });
        let mut writer = StateWriter::new(connection, &state(&dir), shared, lock);
        // Above every mount.
        writer.presence.pretend_mounted_at(Path::new(""));
        fs::rename(&dir, outer.path().join("beneath")).unwrap();
        fs::create_dir(&dir).unwrap();
        let why = writer.look().unwrap_err();
        assert!(why.starts_with("state-mounted-over:") && why.contains("hint: unmount it"), "{why}");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        fs::remove_dir(&dir).unwrap();
        fs::rename(outer.path().join("beneath"), &dir).unwrap();
        assert_eq!(writer.look(), Ok(()));
    }

    #[tokio::test]
    async fn a_log_that_somebody_keeps_from_being_folded_is_told_when_it_is_large_until_it_is_folded() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path()).unwrap();
        store.commit(vec![put("a", "1")]).await.unwrap();
        let reader = Connection::open(state(dir.path())).unwrap();
        reader.execute_batch("BEGIN").unwrap();
        let _: i64 = reader.query_row("SELECT count(*) FROM kv", [], |row| row.get(0)).unwrap();
        let much = "x".repeat(4 << 20);
        let trouble = store.trouble();
        for turn in 0..20 {
            store.commit(vec![put(&turn.to_string(), &much)]).await.unwrap();
        }
        let why = trouble.borrow().clone().unwrap();
        assert!(why.starts_with("state-log-grows:") && why.contains("another program reads"), "{why}");
        reader.execute_batch("COMMIT").unwrap();
        for turn in 0..2 {
            store.commit(vec![put(&format!("again {turn}"), &much)]).await.unwrap();
        }
        assert_eq!(*trouble.borrow(), None);
    }

    #[test]
    fn a_store_whose_thread_hangs_is_not_waited_for_long() {
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let worker = spawn("hangs", Path::new("/"), 1, move |_: mpsc::Receiver<Task>| {
            let _ = hang.recv();
        });
        let began = Instant::now();
        worker.unwrap().finish();
        assert!(began.elapsed() >= END_WAIT);
        drop(release);
        let worker = spawn("ends", Path::new("/"), 1, |mut queue: mpsc::Receiver<Task>| {
            std::thread::sleep(Duration::from_millis(1));
            while queue.blocking_recv().is_some() {}
        });
        worker.unwrap().finish();
    }
}
