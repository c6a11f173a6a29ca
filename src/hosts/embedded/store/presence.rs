//! Checks that the state's files are still where they were opened. An open file outlives its name: without this check a
//! process would continue to write into a deleted file.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{LOCK_FILE, with_suffix};
use crate::hosts::embedded::place::{MountPlace, PlaceChange};

/// Device and inode.
type DeviceInode = (u64, u64);

/// The files as they were opened.
#[derive(Debug)]
pub(super) struct Presence {
    path: PathBuf,
    lock: PathBuf,
    place: Option<MountPlace>,
    state: Option<DeviceInode>,
    /// The log and the shared memory beside it.
    beside: [(PathBuf, Option<DeviceInode>); 2],
    locked: Option<DeviceInode>,
    /// The greatest length of the file so far.
    length: u64,
}

/// The result of a check.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FileState {
    /// Nothing changed.
    AsLeft,
    /// This file is gone, and no file replaced it.
    Gone(PathBuf),
    /// Another file replaced the state.
    Other,
    /// The file is shorter than it was.
    Cut,
    /// The file system of `data_dir` is no longer mounted.
    MountGone(PathBuf),
    /// A file system was mounted here over the files, which lie beneath it.
    MountedOver(PathBuf),
    /// It cannot be looked at.
    Unseen(String),
}

impl Presence {
    /// The files as they are now, just opened.
    pub(super) fn of(path: &Path, lock: &File) -> Self {
        let beside = ["-wal", "-shm"].map(|suffix| with_suffix(path, suffix));
        let dir = path.parent().unwrap_or(Path::new("/"));
        Self {
            lock: dir.join(LOCK_FILE),
            place: MountPlace::of(dir).ok(),
            state: identity(path).ok().flatten(),
            beside: beside.map(|path| {
                let found = identity(&path).ok().flatten();
                (path, found)
            }),
            locked: lock.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino())),
            length: fs::metadata(path).map_or(0, |metadata| metadata.len()),
            path: path.to_owned(),
        }
    }

    /// Checks four names; no file is read.
    pub(super) fn look(&mut self) -> FileState {
        let metadata = match fs::symlink_metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) if is_absent(&error) => return self.absent(&self.path),
            Err(error) => return FileState::Unseen(error.to_string()),
        };
        if Some((metadata.dev(), metadata.ino())) != self.state {
            return match self.absent(&self.path) {
                FileState::Gone(_) => FileState::Other,
                found => found,
            };
        }
        if metadata.len() < self.length {
            return FileState::Cut;
        }
        self.length = metadata.len();
        for (path, known) in &self.beside {
            match identity(path) {
                Ok(now) if known.is_none() || now == *known => {}
                Ok(None) => return self.absent(path),
                // The log of another state must not be used with this one.
                Ok(Some(_)) => return FileState::Other,
                Err(error) => return FileState::Unseen(error.to_string()),
            }
        }
        if self.locked.is_some() && !self.has_lock() { self.absent(&self.lock) } else { FileState::AsLeft }
    }

    /// Whether the lock file still has its name.
    pub(super) fn has_lock(&self) -> bool {
        self.locked.is_some() && identity(&self.lock).is_ok_and(|now| now == self.locked)
    }

    /// As if `data_dir` was a mount of its own.
    #[cfg(test)]
    pub(super) fn pretend_mounted_at(&mut self, dir: &Path) {
        self.place = Some(MountPlace { directory: Some((1, 1)), mount: Some(dir.to_owned()) });
    }

    /// The kind of absence.
    fn absent(&self, path: &Path) -> FileState {
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        let now = match MountPlace::of(dir) {
            Ok(now) => now,
            Err(error) => return FileState::Unseen(error.to_string()),
        };
        match self.place.as_ref().map(|known| (now.since(known), known)) {
            Some((PlaceChange::Elsewhere, known)) => FileState::MountGone(known.mount().to_owned()),
            Some((PlaceChange::Beneath, _)) => FileState::MountedOver(now.mount().to_owned()),
            Some((PlaceChange::No, _)) | None => FileState::Gone(path.to_owned()),
        }
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn identity(path: &Path) -> io::Result<Option<DeviceInode>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some((metadata.dev(), metadata.ino()))),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}
