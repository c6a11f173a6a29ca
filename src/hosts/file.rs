//! The `file` sink: newline-delimited JSON appended to a file that an agent tails.
//!
//! A batch is delivered when its bytes and the name of the file are synced. Owns the file while it is open (two
//! writers are refused by lock); knows that others may rename, remove or truncate it (logrotate). What is in the file
//! always ends in a whole record, but for the moment between a crash and the next opening: a failed write is cut back
//! before the next one, and a torn last line when the file is opened. Rotation is by renaming, between groups; what
//! was renamed is never written again, and is deleted only when the operator has said how many to keep.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::clock::Clock;
use crate::host::Batch;
use crate::hosts::embedded::sink::{BlockingSink, OwnThread, Written};
use crate::model::{Actionable, Timestamp};

/// Mode of a file this sink creates, before the umask: records name people and what they did.
pub const FILE_MODE: u32 = 0o600;
/// How much is read at a time when looking for the last line break.
const TAIL_CHUNK_BYTES: u64 = 64 << 10;
/// How often a name may point to another file while it is being opened before that counts as trouble.
const REOPEN_TRIES_MAX: usize = 8;

/// Why the file cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum FileSinkError {
    /// The system refuses it.
    #[error("cannot write `{}`: {source}", path.display())]
    NotWritable {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Another process writes to it.
    #[error("cannot write `{}`: another process has it open", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// A directory, a pipe, a device.
    #[error("cannot write `{}`: it is not a regular file", path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
    },
    /// Something else is in it, which cutting a torn line would destroy.
    #[error("cannot write `{}`: its {bytes} bytes are not lines of JSON", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
}

impl Actionable for FileSinkError {
    fn slug(&self) -> &'static str {
        match self {
            Self::NotWritable { .. } => "sink-file-not-writable",
            Self::Locked { .. } => "sink-file-locked",
            Self::NotRegular { .. } => "sink-file-not-regular",
            Self::Foreign { .. } => "sink-file-foreign",
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::NotWritable { .. } => {
                "the directory and the file must be writable for the user this runs as (`path` of the sink)".into()
            }
            Self::Locked { .. } => "give each `file` sink of each process a `path` of its own".into(),
            Self::NotRegular { .. } => "use a `stdout` sink for pipes, and a file's path here".into(),
            Self::Foreign { .. } => "move the file away, or name another `path`".into(),
        }
    }
}

/// What the sink does to its file; a seam for tests, which make it fail.
trait Storage: Send + Sync {
    /// Appends some of `bytes` and says how many.
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Cuts the file back to `length`.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
    /// Makes what was written durable. `fdatasync` is enough: it includes the file's length.
    fn sync(&mut self) -> io::Result<()>;
    /// The file itself, for its metadata.
    fn file(&self) -> &File;
}

impl Storage for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::Write::write(self, bytes)
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn file(&self) -> &File {
        self
    }
}

/// When a file is full or old, and what becomes of those before it.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// Bytes after which the file is renamed.
    pub bytes: Option<u64>,
    /// How long after it was begun the file is renamed.
    pub age: Option<Duration>,
    /// How many renamed files stay; `None`: all.
    pub keep: Option<u64>,
    /// For names and ages.
    pub clock: Arc<dyn Clock>,
}

/// The sink. Its writes block: [`FileSink::into_sink`] gives it a thread.
pub struct FileSink {
    path: PathBuf,
    mode: u32,
    open: Option<Open>,
    wrap: fn(File) -> Box<dyn Storage>,
    rotation: Option<Rotation>,
    /// Renaming failed and was reported.
    stuck: bool,
}

struct Open {
    storage: Box<dyn Storage>,
    /// The length up to which the file is good, when what follows could not be cut off or synced.
    cut_back_to: Option<u64>,
}

impl FileSink {
    /// Opens `path` for appending; creates it with `mode` (see [`FILE_MODE`]) and the directories above it when
    /// missing; cuts off a torn last line.
    ///
    /// A full disk is no error here but back-pressure later, as it is while running.
    pub fn open(path: impl Into<PathBuf>, mode: u32) -> Result<Self, FileSinkError> {
        Self::open_with(path.into(), mode, |file| Box::new(file))
    }

    fn open_with(path: PathBuf, mode: u32, wrap: fn(File) -> Box<dyn Storage>) -> Result<Self, FileSinkError> {
        let mut sink = Self { path, mode, open: None, wrap, rotation: None, stuck: false };
        match sink.ensure_open() {
            Err(FileSinkError::NotWritable { source, .. })
                if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {}
            opened => opened?,
        }
        Ok(sink)
    }

    /// With rotation, if `rotation` names a bound.
    #[must_use]
    pub fn rotating(mut self, rotation: Rotation) -> Self {
        self.rotation = (rotation.bytes.is_some() || rotation.age.is_some()).then_some(rotation);
        self
    }

    /// Renames the file when it is full or old. Trouble is reported and tried again with the next group: a file that
    /// is too large is better than a record that is not written.
    fn rotate(&mut self) {
        let (Some(rotation), Some(open)) = (&self.rotation, &self.open) else { return };
        // A failed write is cut off first: the renamed file ends in a whole record.
        if open.cut_back_to.is_some() || !open.storage.file().metadata().is_ok_and(|m| rotation.is_due(&m)) {
            return;
        }
        match rotation.rename(&self.path) {
            Ok(to) => {
                tracing::info!(path = %self.path.display(), to = %to.display(), "file was renamed, beginning a new one");
                self.open = None;
                self.stuck = false;
                rotation.delete_old(&self.path);
            }
            Err(error) if !self.stuck => {
                self.stuck = true;
                tracing::warn!(path = %self.path.display(), "cannot rename the file, writing on: {error}");
            }
            Err(_) => {}
        }
    }

    /// The sink on a thread of its own, for the embedded host.
    pub fn into_sink(self) -> OwnThread<Self> {
        OwnThread::new(self)
    }

    /// Opens the file when it is not open or no longer the one under its name.
    fn ensure_open(&mut self) -> Result<(), FileSinkError> {
        for _ in 0..REOPEN_TRIES_MAX {
            if let Some(open) = &self.open {
                if is_at(open.storage.file(), &self.path) {
                    return Ok(());
                }
                // Renamed or removed: all that was confirmed is synced in the old one. What a failed write left
                // there was not.
                if let Some(mut old) = self.open.take() {
                    let _ = old.restore();
                }
                tracing::info!(path = %self.path.display(), "file was moved or removed, opening it anew");
            }
            let file = open_for_append(&self.path, self.mode)?;
            self.open = Some(Open { storage: (self.wrap)(file), cut_back_to: None });
        }
        Err(self.not_writable(io::Error::other("its name keeps pointing to another file")))
    }

    fn not_writable(&self, source: io::Error) -> FileSinkError {
        FileSinkError::NotWritable { path: self.path.clone(), source }
    }

    /// Writes the group and syncs once. The answer's first part is how many batches are on disk, its second why the
    /// rest is not.
    fn write_group(&mut self, batches: &[Batch]) -> (usize, Option<FileSinkError>) {
        if let Err(e) = self.ensure_open() {
            return (0, Some(e));
        }
        self.rotate();
        if let Err(e) = self.ensure_open() {
            return (0, Some(e));
        }
        let Some(open) = &mut self.open else { return (0, None) };
        let (written, failure) = open.append_group(batches);
        // Removed while we wrote: synced, and gone all the same.
        let gone = written > 0 && open.storage.file().metadata().is_ok_and(|m| m.nlink() == 0);
        let failure = failure.map(|e| self.not_writable(e));
        if gone {
            return (0, failure.or_else(|| Some(self.not_writable(io::Error::other("it was removed")))));
        }
        (written, failure)
    }
}

impl Rotation {
    fn is_due(&self, file: &fs::Metadata) -> bool {
        // The time of birth outlives a restart; where a file system has none, the last write is near enough.
        let begun = || file.created().or_else(|_| file.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let age = || {
            let begun = Timestamp::try_from(begun()).unwrap_or(Timestamp::UNIX_EPOCH);
            Duration::try_from(self.clock.now().duration_since(begun)).unwrap_or_default()
        };
        file.len() > 0
            && (self.bytes.is_some_and(|bytes| file.len() >= bytes) || self.age.is_some_and(|limit| age() >= limit))
    }

    /// Renames `path` to a name that sorts after all it was given before, so that the oldest can be told even when
    /// the clock was set back.
    fn rename(&self, path: &Path) -> io::Result<PathBuf> {
        let stamp = self.clock.now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let (stamp, n) = match renamed_of(path).into_iter().max() {
            Some((newest, n, _)) if newest >= stamp => (newest, n.saturating_add(1)),
            _ => (stamp, 0),
        };
        let mut to = path.as_os_str().to_owned();
        to.push(if n == 0 { format!(".{stamp}") } else { format!(".{stamp}-{n}") });
        let to = PathBuf::from(to);
        // No other process of ours writes here (the lock), so nothing takes the name in between.
        match fs::symlink_metadata(&to) {
            Err(e) if e.kind() == ErrorKind::NotFound => fs::rename(path, &to).map(|()| to),
            Err(e) => Err(e),
            Ok(_) => Err(io::Error::other(format!("`{}` is there already", to.display()))),
        }
    }

    /// Deletes the oldest renamed files beyond `keep`.
    fn delete_old(&self, path: &Path) {
        let Some(keep) = self.keep else { return };
        let mut renamed = renamed_of(path);
        renamed.sort();
        let excess = renamed.len().saturating_sub(usize::try_from(keep).unwrap_or(usize::MAX));
        for (_, _, old) in renamed.into_iter().take(excess) {
            match fs::remove_file(&old) {
                Ok(()) => tracing::info!(path = %old.display(), "old file was deleted (`keep`)"),
                Err(error) => tracing::warn!(path = %old.display(), "cannot delete the old file: {error}"),
            }
        }
    }
}

/// The files [`Rotation::rename`] made of `path`, each with what orders it.
fn renamed_of(path: &Path) -> Vec<(String, u32, PathBuf)> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Vec::new();
    };
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let file = entry.file_name();
            let suffix = file.to_str()?.strip_prefix(name)?.strip_prefix('.')?;
            let (stamp, n) = suffix.split_once('-').unwrap_or((suffix, "0"));
            // Only names of exactly the form we give: whatever else lies here is somebody's.
            let is_stamp = stamp.len() == 16
                && stamp.bytes().enumerate().all(|(i, b)| match i {
                    8 => b == b'T',
                    15 => b == b'Z',
                    _ => b.is_ascii_digit(),
                });
            let n = n.parse().ok().filter(|_| is_stamp)?;
            Some((stamp.to_owned(), n, entry.path()))
        })
        .collect()
}

impl BlockingSink for FileSink {
    fn write(&mut self, batches: &[Batch]) -> Vec<Written> {
        let (written, failure) = self.write_group(batches);
        let why = failure.map_or_else(|| "nothing was written".into(), |e| e.to_string());
        (0..batches.len()).map(|i| if i < written { Written::Delivered } else { Written::refused(&why) }).collect()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // Closing is not enough: a child being started elsewhere in the process holds a copy until its `exec`.
        let _ = self.storage.file().unlock();
    }
}

impl Open {
    /// Appends whole batches and syncs them; returns how many are durable, and what stopped it.
    fn append_group(&mut self, batches: &[Batch]) -> (usize, Option<io::Error>) {
        // The length is asked for each time: `copytruncate` shortens the file under us.
        let start = match self.restore().and_then(|()| Ok(self.storage.file().metadata()?.len())) {
            Ok(start) => start,
            Err(e) => return (0, Some(e)),
        };
        let mut good = start;
        let mut written = 0;
        let mut failure = None;
        for batch in batches {
            let bytes = batch.ndjson();
            if let Err(e) = append_all(&mut *self.storage, &bytes) {
                // The batches before it are whole and stay: on a nearly full disk that is progress.
                failure = Some(e);
                self.cut_back_to = Some(good);
                let _ = self.restore();
                break;
            }
            good += bytes.len() as u64;
            written += 1;
        }
        if written == 0 {
            return (0, failure);
        }
        match self.storage.sync() {
            Ok(()) => (written, failure),
            Err(e) => {
                // After a failed sync the kernel may have forgotten the pages: they are written again.
                self.cut_back_to = Some(start);
                let _ = self.restore();
                (0, Some(e))
            }
        }
    }

    /// Cuts off what an earlier write left behind.
    fn restore(&mut self) -> io::Result<()> {
        if let Some(good) = self.cut_back_to {
            if self.storage.file().metadata()?.len() > good {
                self.storage.truncate(good)?;
            }
            self.cut_back_to = None;
        }
        Ok(())
    }
}

fn append_all(storage: &mut dyn Storage, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match storage.append(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Whether `path` names this very file.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(there)) => ours.dev() == there.dev() && ours.ino() == there.ino(),
        _ => false,
    }
}

fn open_for_append(path: &Path, mode: u32) -> Result<File, FileSinkError> {
    let not_writable = |source| FileSinkError::NotWritable { path: path.to_owned(), source };
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    // Before opening: to open a pipe would wait for its reader.
    let created = match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => return Err(FileSinkError::NotRegular { path: path.to_owned() }),
        Ok(_) => false,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            create_dirs(dir).map_err(|source| FileSinkError::NotWritable { path: dir.to_owned(), source })?;
            true
        }
        Err(e) => return Err(not_writable(e)),
    };
    let file =
        OpenOptions::new().read(true).append(true).create(created).mode(mode).open(path).map_err(not_writable)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(FileSinkError::Locked { path: path.to_owned() }),
        // A file system without locks cannot keep a second process away; that is no reason not to write.
        Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => {}
        Err(TryLockError::Error(e)) => return Err(not_writable(e)),
    }
    cut_torn_line(&file, path)?;
    // Each time, not only after creating: a crash may have come between an earlier creation and its sync.
    sync_dir(dir).map_err(not_writable)?;
    Ok(file)
}

/// Creates `dir` and what is missing above it, each name synced.
fn create_dirs(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if parent != dir {
        create_dirs(parent)?;
    }
    match fs::create_dir(dir) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(e) => Err(e),
        Ok(()) => sync_dir(parent),
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Cuts off what follows the last line break: a record a crash has torn, which was never confirmed.
fn cut_torn_line(file: &File, path: &Path) -> Result<(), FileSinkError> {
    let not_writable = |source| FileSinkError::NotWritable { path: path.to_owned(), source };
    let length = file.metadata().map_err(not_writable)?.len();
    let good = end_of_last_line(file, length).map_err(not_writable)?;
    if good == length {
        return Ok(());
    }
    if good == 0 {
        let mut first = [0];
        file.read_exact_at(&mut first, 0).map_err(not_writable)?;
        // A lone torn record of ours begins as an object, or as the zeros some file systems leave after a power
        // cut. Anything else was never written here.
        if !matches!(first, [b'{' | 0]) {
            return Err(FileSinkError::Foreign { path: path.to_owned(), bytes: length });
        }
    }
    file.set_len(good).and_then(|()| file.sync_all()).map_err(not_writable)?;
    tracing::warn!(path = %path.display(), bytes = length - good, "cut off a torn last line");
    Ok(())
}

/// The length up to and including the last `\n` of the first `length` bytes; 0 when there is none.
fn end_of_last_line(file: &File, length: u64) -> io::Result<u64> {
    let mut end = length;
    let mut chunk = vec![0; TAIL_CHUNK_BYTES.min(length) as usize];
    while end > 0 {
        let start = end.saturating_sub(TAIL_CHUNK_BYTES);
        let Some(chunk) = chunk.get_mut(..(end - start) as usize) else { break };
        file.read_exact_at(chunk, start)?;
        if let Some(at) = memchr::memrchr(b'\n', chunk) {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::BatchBuilder;
    use crate::model::ContentType;
    use crate::severity::Severity;
    use std::cell::Cell;

    fn batch(lines: &[&str]) -> Batch {
        let mut builder = BatchBuilder::default();
        for line in lines {
            builder.push_with(|out| {
                out.extend_from_slice(line.as_bytes());
                Some((Timestamp::UNIX_EPOCH, Severity::Info))
            });
        }
        builder.finish("s".into(), "00000000-0000-0000-0000-000000000000".parse().unwrap(), ContentType::General)
    }

    fn text(path: &Path) -> String {
        String::from_utf8(fs::read(path).unwrap()).unwrap()
    }

    thread_local! {
        /// Bytes the disk still takes, and how often a sync or a truncation fails next.
        static ROOM: Cell<usize> = const { Cell::new(usize::MAX) };
        static SYNC_FAILURES: Cell<usize> = const { Cell::new(0) };
        static TRUNCATE_FAILURES: Cell<usize> = const { Cell::new(0) };
    }

    struct Faulty(File);

    fn fail(failures: &'static std::thread::LocalKey<Cell<usize>>) -> io::Result<()> {
        match failures.get() {
            0 => Ok(()),
            n => {
                failures.set(n - 1);
                Err(io::Error::other("injected"))
            }
        }
    }

    impl Storage for Faulty {
        fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // As a disk does: what fits is written, the rest fails.
            match ROOM.get().min(bytes.len()) {
                0 => Err(ErrorKind::StorageFull.into()),
                n => {
                    let n = self.0.append(&bytes[..n])?;
                    ROOM.set(ROOM.get().saturating_sub(n));
                    Ok(n)
                }
            }
        }
        fn truncate(&mut self, length: u64) -> io::Result<()> {
            fail(&TRUNCATE_FAILURES)?;
            self.0.truncate(length)
        }
        fn sync(&mut self) -> io::Result<()> {
            fail(&SYNC_FAILURES)?;
            self.0.sync()
        }
        fn file(&self) -> &File {
            &self.0
        }
    }

    fn faulty(path: &Path) -> FileSink {
        FileSink::open_with(path.to_owned(), FILE_MODE, |file| Box::new(Faulty(file))).unwrap()
    }

    fn delivered(written: &[Written]) -> Vec<bool> {
        written.iter().map(|w| *w == Written::Delivered).collect()
    }

    #[test]
    fn a_new_file_is_made_with_its_directories_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("var/log/audit.ndjson");
        let mut sink = FileSink::open(&path, FILE_MODE).unwrap();
        assert_eq!(sink.write(&[batch(&["1", "2"]), batch(&["3"])]), [Written::Delivered, Written::Delivered]);
        assert_eq!(text(&path), "1\n2\n3\n");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn only_what_follows_the_last_line_break_is_cut_off() {
        for (before, after) in [
            ("{\"a\":1}\n{\"b\"", "{\"a\":1}\n"),
            ("{\"a\":1}\n", "{\"a\":1}\n"),
            ("{\"a\"", ""),
            ("\0\0\0\0", ""),
            ("{}\n\0\0", "{}\n"),
            ("", ""),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("f");
            fs::write(&path, before).unwrap();
            let mut sink = FileSink::open(&path, FILE_MODE).unwrap();
            assert_eq!(text(&path), after, "{before:?}");
            sink.write(&[batch(&["x"])]);
            assert_eq!(text(&path), format!("{after}x\n"));
        }
    }

    #[test]
    fn a_torn_line_longer_than_a_chunk_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        for torn in [TAIL_CHUNK_BYTES - 1, TAIL_CHUNK_BYTES, 3 * TAIL_CHUNK_BYTES + 5] {
            fs::write(&path, format!("{{}}\n{}", "x".repeat(torn as usize))).unwrap();
            FileSink::open(&path, FILE_MODE).unwrap();
            assert_eq!(text(&path), "{}\n");
        }
    }

    #[test]
    fn a_file_that_was_never_ours_is_not_emptied() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "PNG and no line break").unwrap();
        assert_eq!(FileSink::open(&path, FILE_MODE).err().unwrap().slug(), "sink-file-foreign");
        assert_eq!(text(&path), "PNG and no line break");
        assert_eq!(FileSink::open(dir.path(), FILE_MODE).err().unwrap().slug(), "sink-file-not-regular");
        assert_eq!(FileSink::open(path.join("x"), FILE_MODE).err().unwrap().slug(), "sink-file-not-writable");
    }

    #[test]
    fn a_second_writer_of_one_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let first = FileSink::open(&path, FILE_MODE).unwrap();
        assert_eq!(FileSink::open(&path, FILE_MODE).err().unwrap().slug(), "sink-file-locked");
        drop(first);
        FileSink::open(&path, FILE_MODE).unwrap();
    }

    #[test]
    fn a_full_disk_leaves_whole_batches_and_no_byte_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut sink = faulty(&path);
        let group = [batch(&["11", "12"]), batch(&["21", "22"]), batch(&["31"])];
        ROOM.set(10);
        assert_eq!(delivered(&sink.write(&group)), [true, false, false]);
        assert_eq!(text(&path), "11\n12\n");
        assert_eq!(delivered(&sink.write(&group[1..])), [false, false]);
        ROOM.set(usize::MAX);
        assert_eq!(delivered(&sink.write(&group[1..])), [true, true]);
        assert_eq!(text(&path), "11\n12\n21\n22\n31\n");
    }

    #[test]
    fn what_could_not_be_cut_off_at_once_is_cut_off_before_the_next_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut sink = faulty(&path);
        ROOM.set(4);
        TRUNCATE_FAILURES.set(2);
        let group = [batch(&["11", "12"])];
        assert_eq!(delivered(&sink.write(&group)), [false]);
        assert_eq!(text(&path), "11\n1");
        ROOM.set(usize::MAX);
        assert_eq!(delivered(&sink.write(&group)), [false]);
        assert_eq!(delivered(&sink.write(&group)), [true]);
        assert_eq!(text(&path), "11\n12\n");
    }

    #[test]
    fn what_could_not_be_synced_is_written_again_and_not_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut sink = faulty(&path);
        sink.write(&[batch(&["0"])]);
        SYNC_FAILURES.set(1);
        assert_eq!(delivered(&sink.write(&[batch(&["1"])])), [false]);
        assert_eq!(delivered(&sink.write(&[batch(&["1"])])), [true]);
        assert_eq!(text(&path), "0\n1\n");
    }

    #[test]
    fn a_rotated_file_is_left_and_a_new_one_begun() {
        let dir = tempfile::tempdir().unwrap();
        let (path, rotated) = (dir.path().join("f"), dir.path().join("f.1"));
        let mut sink = FileSink::open(&path, FILE_MODE).unwrap();
        sink.write(&[batch(&["1"])]);
        fs::rename(&path, &rotated).unwrap();
        sink.write(&[batch(&["2"])]);
        assert_eq!((text(&rotated), text(&path)), ("1\n".into(), "2\n".into()));
        fs::remove_file(&path).unwrap();
        sink.write(&[batch(&["3"])]);
        assert_eq!(text(&path), "3\n");
        // `copytruncate`
        File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        sink.write(&[batch(&["4"])]);
        assert_eq!(text(&path), "4\n");
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_full_file_is_renamed_between_groups_and_nothing_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let clock = Arc::new(crate::clock::TestClock::at("2026-05-01T00:00:00Z".parse().unwrap()));
        let rotation = Rotation { bytes: Some(4), age: None, keep: None, clock };
        let mut sink = FileSink::open(&path, FILE_MODE).unwrap().rotating(rotation);
        for group in [["1", "2"], ["3", "4"], ["5", "6"]] {
            assert_eq!(sink.write(&[batch(&group)]), [Written::Delivered]);
        }
        assert_eq!(names(dir.path()), ["f", "f.20260501T000000Z", "f.20260501T000000Z-1"]);
        assert_eq!(text(&dir.path().join("f.20260501T000000Z")), "1\n2\n");
        assert_eq!(text(&dir.path().join("f.20260501T000000Z-1")), "3\n4\n");
        assert_eq!(text(&path), "5\n6\n");
        drop(sink);
        assert_eq!(text(&path), "5\n6\n");
    }

    #[test]
    fn an_old_file_is_renamed_even_after_a_restart_but_not_while_it_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let clock = Arc::new(crate::clock::TestClock::at(Timestamp::now()));
        let open = || {
            let age = Some(Duration::from_secs(3_600));
            FileSink::open(&path, FILE_MODE).unwrap().rotating(Rotation {
                bytes: None,
                age,
                keep: None,
                clock: clock.clone(),
            })
        };
        let mut sink = open();
        clock.advance(Duration::from_secs(3_700));
        sink.write(&[batch(&["1"])]);
        assert_eq!(names(dir.path()), ["f"], "it was empty");
        drop(sink);
        let mut sink = open();
        sink.write(&[batch(&["2"])]);
        assert_eq!(names(dir.path()).len(), 2);
        assert_eq!(text(&path), "2\n");
    }

    #[test]
    fn only_renamed_files_beyond_keep_are_deleted_oldest_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        for other in ["f.20250101T000000Z.gz", "f.old", "f.20250101T000000Z-x", "g.20250101T000000Z"] {
            fs::write(dir.path().join(other), "not ours").unwrap();
        }
        let clock = Arc::new(crate::clock::TestClock::at("2026-05-01T00:00:00Z".parse().unwrap()));
        let rotation = Rotation { bytes: Some(1), age: None, keep: Some(2), clock: clock.clone() };
        let mut sink = FileSink::open(&path, FILE_MODE).unwrap().rotating(rotation);
        for n in 0..14 {
            sink.write(&[batch(&[&n.to_string()])]);
            if n == 12 {
                clock.advance(Duration::from_secs(1));
            }
        }
        let left = names(dir.path());
        let renamed = ["f.20260501T000000Z-11", "f.20260501T000001Z"];
        let others = ["f", "f.20250101T000000Z-x", "f.20250101T000000Z.gz", "f.old", "g.20250101T000000Z"];
        let mut expected: Vec<&str> = renamed.into_iter().chain(others).collect();
        expected.sort_unstable();
        assert_eq!(left, expected);
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_make_a_new_file_the_oldest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let clock = Arc::new(crate::clock::TestClock::at("2026-05-01T00:00:00Z".parse().unwrap()));
        let rotation = Rotation { bytes: Some(1), age: None, keep: Some(1), clock: clock.clone() };
        let mut sink = FileSink::open(&path, FILE_MODE).unwrap().rotating(rotation);
        sink.write(&[batch(&["1"])]);
        sink.write(&[batch(&["2"])]);
        clock.set_wall("2020-01-01T00:00:00Z".parse().unwrap());
        sink.write(&[batch(&["3"])]);
        assert_eq!(names(dir.path()), ["f", "f.20260501T000000Z-1"]);
        assert_eq!(text(&dir.path().join("f.20260501T000000Z-1")), "2\n");
    }

    #[test]
    fn a_file_that_cannot_be_renamed_is_written_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let clock = Arc::new(crate::clock::TestClock::at("2026-05-01T00:00:00Z".parse().unwrap()));
        let rotation = Rotation { bytes: Some(1), age: None, keep: None, clock };
        fs::write(dir.path().join(format!("f.99990101T000000Z-{}", u32::MAX)), "").unwrap();
        let mut sink = FileSink::open(&path, FILE_MODE).unwrap().rotating(rotation);
        sink.write(&[batch(&["1"])]);
        assert_eq!(sink.write(&[batch(&["2"])]), [Written::Delivered]);
        assert_eq!(text(&path), "1\n2\n");
    }

    #[test]
    fn a_directory_that_went_away_is_passing_trouble() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/f");
        let mut sink = FileSink::open(&path, FILE_MODE).unwrap();
        fs::remove_dir_all(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub"), "in the way").unwrap();
        assert!(matches!(&sink.write(&[batch(&["1"])])[..], [Written::Refused { .. }]));
        fs::remove_file(dir.path().join("sub")).unwrap();
        assert_eq!(sink.write(&[batch(&["1"])]), [Written::Delivered]);
        assert_eq!(text(&path), "1\n");
    }
}
