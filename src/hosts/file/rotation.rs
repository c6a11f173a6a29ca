//! The `file` sink's own rotation: when, under which name, and what is deleted.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::clock::Clock;
use crate::model::Timestamp;

/// When a file is rotated, and which renamed files are kept.
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

impl Rotation {
    pub(super) fn is_due(&self, file: &fs::Metadata) -> bool {
        // The creation time outlives a restart; if a file system has none, the time of the last write is close enough.
        let begun = || file.created().or_else(|_| file.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let age = || {
            let begun = Timestamp::try_from(begun()).unwrap_or(Timestamp::UNIX_EPOCH);
            Duration::try_from(self.clock.now().duration_since(begun)).unwrap_or_default()
        };
        file.len() > 0
            && (self.bytes.is_some_and(|bytes| file.len() >= bytes) || self.age.is_some_and(|limit| age() >= limit))
    }

    /// Renames `path` to a name that sorts after all earlier ones, so that the oldest is identifiable even if the clock
    /// was set back.
    pub(super) fn rename(&self, path: &Path) -> io::Result<PathBuf> {
        let stamp = self.clock.now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let (stamp, n) = match renamed_of(path).into_iter().max() {
            Some((newest, n, _)) if newest >= stamp => (newest, n.saturating_add(1)),
            _ => (stamp, 0),
        };
        let mut to = path.as_os_str().to_owned();
        to.push(if n == 0 { format!(".{stamp}") } else { format!(".{stamp}-{n}") });
        let to = PathBuf::from(to);
        // The lock keeps other processes of this program away, so the name stays free in between.
        match fs::symlink_metadata(&to) {
            Err(e) if e.kind() == ErrorKind::NotFound => fs::rename(path, &to).map(|()| to),
            Err(e) => Err(e),
            Ok(_) => Err(io::Error::other(format!("`{}` is there already", to.display()))),
        }
    }

    /// Deletes the oldest renamed files beyond `keep`.
    pub(super) fn delete_old(&self, path: &Path) {
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
            // Only names of exactly the form that `rename` gives: other files are left alone.
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
