//! The `file` sink: newline-delimited JSON appended to a file that an agent tails.
//!
//! A batch is delivered when its bytes and the name of the file are synced. Owns the file while it is open (two writers
//! are refused by lock); expects that other programs may rename, remove or truncate it (logrotate). The file always
//! ends in a whole record, except between a crash and the next opening: a failed write is truncated before the next
//! one, and a torn last line when the file is opened. Rotation renames the file between groups. A renamed file is never
//! written again, and is deleted only if the operator has configured how many to keep.

mod known;
mod rotation;

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;

use crate::config::sinks::FileConfig;
use crate::host::Batch;
use crate::hosts::embedded::place::{MountPlace, PlaceChange};
use crate::hosts::embedded::sink::{BlockingSink, OwnThread, Written};
use crate::hosts::embedded::store::has_no_locks;
use crate::model::Actionable;
use known::{Differs, SinkFileMemory, directory_of, place_of};
pub use known::{Memory, NEW_STATE_HINT, SHORTER_HINT};
pub use rotation::Rotation;

/// Mode of a file this sink creates, before the umask: records name people and what they did.
pub const FILE_MODE: u32 = 0o600;
/// Mode of a directory this sink creates.
const DIRECTORY_MODE: u32 = 0o700;
/// How much is read at a time when looking for the last line break.
const TAIL_CHUNK_BYTES: u64 = 64 << 10;
/// How often a name may point to another file while it is being opened before that counts as a fault.
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
    /// It has other content, which truncating a torn line would destroy.
    #[error("cannot write `{}`: its {bytes} bytes are not lines of JSON", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// The file system of the file is no longer mounted: records written now would be beneath the mount point, and
    /// hidden when it is mounted again.
    #[error(
        "cannot write `{}`: what was mounted at `{}` when it was last written is not mounted any more", path.display(), mount.display()
    )]
    MountGone {
        /// The file.
        path: PathBuf,
        /// Where it was mounted.
        mount: PathBuf,
    },
    /// Another program truncated the file while a group was being written.
    #[error("`{}` became shorter while it was written to; the group is written again", path.display())]
    CutMeanwhile {
        /// The file.
        path: PathBuf,
    },
}

impl Actionable for FileSinkError {
    fn slug(&self) -> &'static str {
        match self {
            Self::NotWritable { .. } => "sink-file-not-writable",
            Self::Locked { .. } => "sink-file-locked",
            Self::NotRegular { .. } => "sink-file-not-regular",
            Self::Foreign { .. } => "sink-file-foreign",
            Self::MountGone { .. } => "sink-file-mount-gone",
            Self::CutMeanwhile { .. } => "sink-file-shorter",
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
            Self::MountGone { path, mount } => format!(
                "mount `{}` again: writing goes on by itself. If records are to go here from now on, make the file: \
                 `install -D -m 600 /dev/null {}` as the user this runs as",
                mount.display(),
                path.display()
            ),
            Self::CutMeanwhile { .. } => {
                "rotate by renaming (logrotate: `create`, not `copytruncate`) or with `rotate_bytes`".into()
            }
        }
    }
}

/// The operations of the sink on its file; tests replace it to make them fail.
trait Storage: Send + Sync {
    /// Appends some of `bytes` and returns how many.
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

/// The sink. Its writes block: [`FileSink::into_sink`] gives it a thread.
pub struct FileSink {
    path: PathBuf,
    mode: u32,
    open: Option<OpenFile>,
    wrap: fn(File) -> Box<dyn Storage>,
    rotation: Option<Rotation>,
    /// Renaming failed and was reported.
    stuck: bool,
    remembered: SinkFileMemory,
}

struct OpenFile {
    storage: Box<dyn Storage>,
    /// Its length after our last write.
    end: u64,
    /// The length up to which the file is valid, if the rest could not be truncated or synced.
    cut_back_to: Option<u64>,
    tail: Tail,
}

/// What the file ends in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tail {
    /// A whole record of this sink.
    Whole,
    /// Perhaps a part of a record: others cut it.
    Cut,
    /// Perhaps a part of a line that another program appended.
    OfAnother,
}

impl FileSink {
    /// Opens `path` for appending; creates it with `mode` (see [`FILE_MODE`]) and the directories above it (0700) when
    /// missing; truncates a torn last line.
    ///
    /// A full disk is not an error here: it causes back-pressure later, as it does while running.
    pub fn open(path: impl Into<PathBuf>, mode: u32) -> Result<Self, FileSinkError> {
        Self::open_with(path.into(), mode, None, |file| Box::new(file))
    }

    /// As [`FileSink::open`], with a memory that outlives the process: it reports a file that is shorter than it was
    /// left, or is another file, and writes nothing beneath a vanished mount.
    pub fn open_remembering(path: impl Into<PathBuf>, mode: u32, memory: Memory) -> Result<Self, FileSinkError> {
        Self::open_with(path.into(), mode, Some(memory), |file| Box::new(file))
    }

    /// As [`FileSink::open_remembering`], with the rotation that is configured.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn configured(config: &FileConfig, memory: Memory) -> Result<Self, FileSinkError> {
        let rotation = Rotation {
            bytes: config.rotate_bytes,
            age: config.rotate_secs.map(Duration::from_secs),
            keep: config.keep,
            clock: memory.clock.clone(),
        };
        Ok(Self::open_remembering(&config.path, FILE_MODE, memory)?.rotating(rotation))
    }

    fn open_with(
        path: PathBuf,
        mode: u32,
        memory: Option<Memory>,
        wrap: fn(File) -> Box<dyn Storage>,
    ) -> Result<Self, FileSinkError> {
        let remembered = SinkFileMemory::new(&path, memory);
        let mut sink = Self { path, mode, open: None, wrap, rotation: None, stuck: false, remembered };
        match sink.ensure_open() {
            Ok(()) => {}
            Err(FileSinkError::NotWritable { source, .. })
                if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {}
            // The sink waits for the mount, as while running: a start must not depend on the order of mounts.
            Err(error @ FileSinkError::MountGone { .. }) => sink.remembered.set_passing(Some(message(&error))),
            Err(error) => return Err(error),
        }
        if let Some(open) = &sink.open {
            sink.remembered.report_unknown_records(open.storage.file());
        }
        Ok(sink)
    }

    /// With rotation, if `rotation` names a bound.
    #[must_use]
    pub fn rotating(mut self, rotation: Rotation) -> Self {
        self.rotation = (rotation.bytes.is_some() || rotation.age.is_some()).then_some(rotation);
        self
    }

    /// Renames the file when it is full or old. A failure is reported and retried with the next group: an oversized
    /// file is better than an unwritten record.
    fn rotate(&mut self) {
        let (Some(rotation), Some(open)) = (&self.rotation, &self.open) else { return };
        // A failed write is truncated first, so that the renamed file ends in a whole record.
        if open.cut_back_to.is_some() || !open.storage.file().metadata().is_ok_and(|m| rotation.is_due(&m)) {
            return;
        }
        // A link stays: what it leads to is renamed, where that lies.
        let path = match self.path.is_symlink() {
            true => self.path.canonicalize().unwrap_or_else(|_| self.path.clone()),
            false => self.path.clone(),
        };
        match rotation.rename(&path) {
            Ok(to) => {
                tracing::info!(path = %path.display(), to = %to.display(), "file was renamed, beginning a new one");
                self.open = None;
                self.stuck = false;
                self.remembered.begins_anew();
                rotation.delete_old(&path);
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
                self.leave_moved();
            }
            let place = self.place()?;
            let file = open_for_append(&self.path, self.mode)?;
            // Before its length is remembered.
            cut_torn_line(&file, &self.path)?;
            self.found(&file, place).map_err(|source| self.not_writable(source))?;
            let end = file.metadata().map_err(|source| self.not_writable(source))?.len();
            self.open = Some(OpenFile { storage: (self.wrap)(file), end, cut_back_to: None, tail: Tail::Whole });
        }
        Err(self.not_writable(io::Error::other("its name keeps pointing to another file")))
    }

    /// Closes a file that is not under its name any more: renamed, removed, replaced, or unmounted. All confirmed
    /// records in it are synced. Bytes of a failed write were never confirmed.
    fn leave_moved(&mut self) {
        let Some(mut old) = self.open.take() else { return };
        let _ = old.restore();
        let path = self.path.display();
        match old.storage.file().metadata() {
            Ok(metadata) if metadata.nlink() == 0 => {
                self.remembered.is_gone();
                tracing::warn!(%path, bytes = metadata.len(), "file was removed or replaced: what no reader had read of it is gone; opening it anew");
            }
            // Renamed within its file system, or gone with it: the place shows which.
            _ => tracing::info!(%path, "file was moved, opening it anew"),
        }
        if let Ok(metadata) = old.storage.file().metadata()
            && metadata.nlink() > 0
            && self.remembered.place().is_none_or(|known| !self.has_moved(known))
        {
            self.remembered.begins_anew();
        }
    }

    fn has_moved(&self, known: &MountPlace) -> bool {
        place_of(&self.path).is_ok_and(|now| now.since(known) != PlaceChange::No)
    }

    /// The place of the file, before it is opened or created; an error if that is beneath a vanished mount.
    fn place(&self) -> Result<Option<MountPlace>, FileSinkError> {
        let now = match place_of(&self.path) {
            Ok(now) => now,
            Err(source) => return Err(self.not_writable(source)),
        };
        let Some(known) = self.remembered.place() else { return Ok(Some(now)) };
        match now.since(known) {
            PlaceChange::No => {}
            PlaceChange::Beneath => tracing::warn!(
                path = %self.path.display(),
                "`{}` is mounted now over where records were written before: those lie beneath it, where only who unmounts it sees them",
                now.mount().display()
            ),
            // An empty file is the operator's consent, since nothing else creates one. If this sink's own records are
            // there, the file itself was moved.
            PlaceChange::Elsewhere => match File::open(&self.path) {
                Ok(file)
                    if file
                        .metadata()
                        .is_ok_and(|m| m.is_file() && (m.len() == 0 || self.remembered.is_ours(&file))) => {}
                _ => {
                    let (path, mount) = (self.path.clone(), known.mount().to_owned());
                    return Err(FileSinkError::MountGone { path, mount });
                }
            },
        }
        Ok(Some(now))
    }

    /// Compares a file that was just opened with what is remembered.
    fn found(&mut self, file: &File, place: Option<MountPlace>) -> io::Result<()> {
        let differs = self.remembered.compare(file)?;
        if differs != Differs::No {
            self.remembered.report_cut(differs, file.metadata()?.len());
            self.remembered.accepted(file)?;
        }
        // Read again, since its directory may have been created meanwhile.
        let place = place_of(&self.path).ok().or(place);
        self.remembered.lies_at(place);
        self.remembered.store();
        Ok(())
    }

    /// Checks that the open file is as it was left, and reports once if it is not.
    fn check_length(&mut self) -> io::Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let length = open.storage.file().metadata()?.len();
        // A file shorter than the part that could not be truncated is as expected.
        let left = open.cut_back_to.unwrap_or(open.end);
        if length < left {
            self.remembered.report_cut(Differs::Shorter { was: left }, length);
            self.remembered.accepted(open.storage.file())?;
            self.remembered.store();
            open.cut_back_to = None;
            open.tail = Tail::Cut;
        } else if length > open.end && open.cut_back_to.is_none() {
            open.tail = Tail::OfAnother;
        }
        open.end = length;
        Ok(())
    }

    /// Has the next record begin on a line of its own, after others changed the file.
    fn mend_tail(&mut self) -> Result<(), FileSinkError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let failed = |source| FileSinkError::NotWritable { path: self.path.clone(), source };
        match open.tail {
            Tail::Whole => return Ok(()),
            Tail::Cut => cut_torn_line(open.storage.file(), &self.path)?,
            // Whoever writes there may go on with its line, so its bytes stay.
            Tail::OfAnother => {
                let length = open.storage.file().metadata().map_err(failed)?.len();
                if end_of_last_line(open.storage.file(), length).map_err(failed)? < length {
                    append_all(&mut *open.storage, b"\n").map_err(failed)?;
                }
            }
        }
        open.tail = Tail::Whole;
        open.end = open.storage.file().metadata().map_err(failed)?.len();
        self.remembered.accepted(open.storage.file()).map_err(failed)?;
        self.remembered.store();
        Ok(())
    }

    fn not_writable(&self, source: io::Error) -> FileSinkError {
        FileSinkError::NotWritable { path: self.path.clone(), source }
    }

    /// Writes the group and syncs once. Returns how many batches are on disk, and why the rest is not.
    fn write_group(&mut self, batches: &[Batch]) -> (usize, Option<FileSinkError>) {
        if let Err(e) = self.ensure_open() {
            return (0, Some(e));
        }
        self.rotate();
        // No file was renamed in between, except by this sink's own rotation.
        if self.open.is_none()
            && let Err(e) = self.ensure_open()
        {
            return (0, Some(e));
        }
        if let Err(source) = self.check_length() {
            return (0, Some(self.not_writable(source)));
        }
        if let Err(error) = self.mend_tail() {
            return (0, Some(error));
        }
        let Some(open) = &mut self.open else { return (0, None) };
        let (written, failure) = open.append_group(batches);
        let failure = failure.map(|source| FileSinkError::NotWritable { path: self.path.clone(), source });
        if written == 0 {
            return (0, failure);
        }
        let after = match open.storage.file().metadata() {
            Ok(after) => after,
            Err(source) => return (0, Some(self.not_writable(source))),
        };
        // Removed during the write: synced, but deleted.
        if after.nlink() == 0 {
            return (0, failure.or_else(|| Some(self.not_writable(io::Error::other("it was removed")))));
        }
        if after.len() < open.end {
            // Truncated during the write: part of the group may be lost.
            let was = std::mem::replace(&mut open.end, after.len());
            open.tail = Tail::Cut;
            self.remembered.report_cut(Differs::Shorter { was }, after.len());
            let _ = self.remembered.accepted(open.storage.file());
            return (0, Some(FileSinkError::CutMeanwhile { path: self.path.clone() }));
        }
        if after.len() > open.end {
            // Another program appends, too, so the place of this sink's last bytes is unknown.
            open.end = after.len();
            open.tail = Tail::OfAnother;
            let _ = self.remembered.accepted(open.storage.file());
            self.remembered.store();
        } else {
            let last = batches.get(written - 1).map(Batch::ndjson).unwrap_or_default();
            self.remembered.written(&after, open.end, &last);
        }
        (written, failure)
    }

    /// Checks the file without changing it.
    fn glance(&mut self) -> Result<(), FileSinkError> {
        match &self.open {
            Some(open) if is_at(open.storage.file(), &self.path) => {
                self.check_length().map_err(|source| self.not_writable(source))
            }
            // The next write reopens or creates it; this shows already whether it may.
            _ => match fs::metadata(&self.path) {
                Ok(there) if !there.is_file() => Err(FileSinkError::NotRegular { path: self.path.clone() }),
                _ => self.place().map(drop),
            },
        }
    }
}

fn message(error: &FileSinkError) -> String {
    format!("{}: {error} (hint: {})", error.slug(), error.hint())
}

impl BlockingSink for FileSink {
    fn write(&mut self, batches: &[Batch]) -> Vec<Written> {
        let (written, failure) = self.write_group(batches);
        // A fault found by a check is now in the refusal, or has ended.
        self.remembered.set_passing(None);
        let why = failure.map_or_else(|| "nothing was written".into(), |error| message(&error));
        (0..batches.len()).map(|i| if i < written { Written::Delivered } else { Written::refused(&why) }).collect()
    }

    fn notices(&self) -> Option<watch::Receiver<Option<String>>> {
        Some(self.remembered.notices())
    }

    fn look(&mut self) {
        let found = self.glance().err().map(|error| message(&error));
        self.remembered.set_passing(found);
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        // Closing is not enough: a child being started elsewhere in the process holds a copy until its `exec`.
        let _ = self.storage.file().unlock();
    }
}

impl OpenFile {
    /// Appends whole batches and syncs them; returns how many are durable, and the error that stopped it. [`OpenFile::end`]
    /// is then where the last of them should end.
    fn append_group(&mut self, batches: &[Batch]) -> (usize, Option<io::Error>) {
        if let Err(e) = self.restore() {
            return (0, Some(e));
        }
        let start = self.end;
        let mut good = start;
        let mut written = 0;
        let mut failure = None;
        for batch in batches {
            let bytes = batch.ndjson();
            if let Err(e) = append_all(&mut *self.storage, &bytes) {
                // The batches before it are complete and stay, which is progress on a nearly full disk.
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
            Ok(()) => {
                self.end = good;
                (written, failure)
            }
            Err(e) => {
                // After a failed sync the kernel may have forgotten the pages: they are written again.
                self.cut_back_to = Some(start);
                let _ = self.restore();
                (0, Some(e))
            }
        }
    }

    /// Truncates the remains of an earlier write.
    fn restore(&mut self) -> io::Result<()> {
        if let Some(good) = self.cut_back_to {
            if self.storage.file().metadata()?.len() > good {
                self.storage.truncate(good)?;
            }
            self.end = good;
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
    let dir = &directory_of(path);
    // Checked before opening, since opening a pipe would wait for its reader.
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
        // A file system without locks cannot keep a second process away; the sink writes anyway.
        Err(TryLockError::Error(e)) if has_no_locks(&e) => {}
        Err(TryLockError::Error(e)) => return Err(not_writable(e)),
    }
    // Each time, not only after creating: a crash may have come between an earlier creation and its sync.
    sync_dir(dir).map_err(not_writable)?;
    Ok(file)
}

/// Creates `dir` and its missing parents, for the owner alone whatever the umask; each name synced.
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
    match DirBuilder::new().mode(DIRECTORY_MODE).create(dir) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(e) => Err(e),
        Ok(()) => sync_dir(parent),
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Truncates the bytes after the last line break: a record torn by a crash, which was never confirmed.
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
        // A single torn record of this sink begins like an object, or with the zeros that some file systems leave after
        // a power cut. This sink never wrote anything else.
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
    use crate::model::Timestamp;
    use crate::severity::Severity;
    use std::cell::Cell;
    use std::sync::Arc;
    use std::time::Duration;

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
            // As on a disk, the part that fits is written, and the rest fails.
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
        FileSink::open_with(path.to_owned(), FILE_MODE, None, |file| Box::new(Faulty(file))).unwrap()
    }

    fn delivered(written: &[Written]) -> Vec<bool> {
        written.iter().map(|w| *w == Written::Delivered).collect()
    }

    #[test]
    fn a_new_file_is_made_with_its_directories_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("var/log/audit.ndjson");
        let clock = Arc::new(crate::clock::TestClock::at("2026-05-01T00:00:00Z".parse().unwrap()));
        let rotation = Rotation { bytes: Some(4), age: None, keep: None, clock };
        let mut sink = FileSink::open(&path, FILE_MODE).unwrap().rotating(rotation);
        assert_eq!(sink.write(&[batch(&["1", "2"]), batch(&["3"])]), [Written::Delivered, Written::Delivered]);
        assert_eq!(text(&path), "1\n2\n3\n");
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(sink.write(&[batch(&["4"])]), [Written::Delivered]);
        for file in [path.clone(), dir.path().join("var/log/audit.ndjson.20260501T000000Z")] {
            assert_eq!(mode(&file), 0o600, "{}", file.display());
        }
        for made in ["var", "var/log"] {
            assert_eq!(mode(&dir.path().join(made)), 0o700, "{made}");
        }
    }

    #[test]
    fn the_mode_of_a_directory_and_file_that_are_there_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (logs, path) = (dir.path().join("logs"), dir.path().join("logs/f"));
        fs::create_dir(&logs).unwrap();
        fs::write(&path, "{}\n").unwrap();
        for (path, mode) in [(&logs, 0o755), (&path, 0o640)] {
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        }
        FileSink::open(&path, FILE_MODE).unwrap().write(&[batch(&["1"])]);
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&logs), mode(&path)), (0o755, 0o640));
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
