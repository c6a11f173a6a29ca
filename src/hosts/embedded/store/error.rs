//! Why the state store cannot be opened, and the remedy.

use std::path::PathBuf;

use crate::model::Actionable;

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
    /// No permission, a read-only file system, or a path that is not a directory.
    #[error("cannot write state under `{}`: {why}", path.display())]
    NotWritable {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        why: String,
    },
    /// The file system lacks what the state needs.
    #[error("cannot keep state under `{}`: its file system{} {lacks}: {why}", path.display(), named(file_system.as_deref()))]
    FileSystem {
        /// The file or directory.
        path: PathBuf,
        /// Its type, as the table of mounts names it.
        file_system: Option<String>,
        /// What it lacks.
        lacks: &'static str,
        /// The system's reason.
        why: String,
    },
    /// Another program holds a lock on the file.
    #[error("cannot write state under `{}`: another program holds a lock on it", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// The disk is full.
    #[error("cannot write state under `{}`: {why}", path.display())]
    Full {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        why: String,
    },
    /// Opened for reading, and there is no state.
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

/// The file system grants no locks.
pub(super) const NO_LOCKS: &str = "grants no locks";
/// The file system has no memory that processes share.
pub(super) const NO_SHARED_MEMORY: &str = "cannot map a file into shared memory";
/// The file system cannot make a name durable.
pub(super) const NO_SYNC: &str = "cannot rename a file or sync a directory";

fn named(file_system: Option<&str>) -> String {
    file_system.map(|kind| format!(" ({kind})")).unwrap_or_default()
}

/// A process in words.
pub(super) fn holder(pid: Option<u32>) -> String {
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
            Self::FileSystem { .. } => "state-file-system",
            Self::Busy { .. } => "state-busy",
            Self::Full { .. } => "state-full",
            Self::Missing { .. } => "state-missing",
            Self::NotReadable { .. } => "state-not-readable",
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Locked { pid: Some(pid), .. } => format!(
                "stop process {pid}, or give this one a `data_dir` of its own; `backfill` and `state set` ask it through its \
                 control socket, and its log says why it has none (`control_socket`)"
            ),
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
            Self::FileSystem { .. } => {
                "put `data_dir` on a local file system (ext4, XFS, a disk of the cloud rather than a share); a share needs \
                 locks: SMB and Azure Files are mounted with `nobrl`, NFS with its lock service or as version 4"
                    .into()
            }
            Self::Busy { .. } => "close what has it open (a `sqlite3` shell, a backup), then start again".into(),
            Self::Full { .. } => "make room on the file system of `data_dir`, then start again".into(),
            Self::Missing { .. } => "check `data_dir`; the first `run` creates it".into(),
            Self::NotReadable { .. } => "run this as the user the service runs as, or as root".into(),
        }
    }
}
