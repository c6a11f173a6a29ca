//! Identifies where a directory is: its inode, and the mount it is on.
//!
//! For code that keeps files across restarts and must not mistake the empty directory beneath a vanished mount for the
//! directory it wrote to. A device number alone is not enough: those of LVM, NFS and overlay file systems change with a
//! reboot. So a place counts as the same when it is the same directory, or when its file system is mounted at the same
//! path as before. A container with a new layer, a disk with another name and a directory that was created again all
//! count as the same place. See `proc_pid_mountinfo(5)` for the table that is read.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The table of mounts as this process sees it.
const MOUNTS: &str = "/proc/self/mountinfo";

/// A directory, and the mount it is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPlace {
    /// Its device and inode; `None` when it is not there yet.
    pub directory: Option<(u64, u64)>,
    /// Where its file system is mounted; `None` when the table of mounts cannot be read.
    pub mount: Option<PathBuf>,
}

impl MountPlace {
    /// The place of `dir`, or the place it would have if it was created.
    ///
    /// # Errors
    /// Its metadata cannot be read.
    pub fn of(dir: &Path) -> io::Result<Self> {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        let dir = std::path::absolute(dir)?;
        let mut there = dir.as_path();
        let metadata = loop {
            match fs::metadata(there) {
                Ok(metadata) => break metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => match there.parent() {
                    Some(parent) => there = parent,
                    None => return Err(error),
                },
                Err(error) => return Err(error),
            }
        };
        let directory = (there == dir).then(|| (metadata.dev(), metadata.ino()));
        let mount = fs::read(MOUNTS).ok().and_then(|table| mount_of(&table, &there.canonicalize().ok()?));
        Ok(Self { directory, mount })
    }

    /// How the place changed since `known`.
    pub fn since(&self, known: &MountPlace) -> PlaceChange {
        let (Some(now), Some(before)) = (&self.mount, &known.mount) else { return PlaceChange::No };
        if now == before || self.directory.is_some() && self.directory == known.directory {
            PlaceChange::No
        } else if now.starts_with(before) {
            PlaceChange::Beneath
        } else {
            PlaceChange::Elsewhere
        }
    }

    /// The mount in words.
    pub fn mount(&self) -> &Path {
        self.mount.as_deref().unwrap_or(Path::new("/"))
    }
}

/// The change of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlaceChange {
    /// It is the same.
    No,
    /// A file system was mounted over it: earlier files are hidden beneath.
    Beneath,
    /// Its file system is no longer mounted there.
    Elsewhere,
}

/// The type of the file system of `path`, as the table of mounts names it.
pub fn file_system_of(path: &Path) -> Option<String> {
    let table = fs::read(MOUNTS).ok()?;
    let there = path.ancestors().find_map(|path| path.canonicalize().ok())?;
    let mounts = mounts(&table);
    let found = mounts.into_iter().filter(|mount| there.starts_with(&mount.at)).max_by_key(|mount| depth(&mount.at))?;
    Some(found.kind)
}

fn mount_of(table: &[u8], path: &Path) -> Option<PathBuf> {
    mounts(table).into_iter().map(|mount| mount.at).filter(|at| path.starts_with(at)).max_by_key(|at| depth(at))
}

fn depth(path: &Path) -> usize {
    path.components().count()
}

struct Mount {
    at: PathBuf,
    kind: String,
}

/// Mount point and type of each line: `36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/root rw`.
fn mounts(table: &[u8]) -> Vec<Mount> {
    let line = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let at = fields.by_ref().nth(4)?;
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        Some(Mount { at: unescaped(at), kind: String::from_utf8_lossy(kind).into_owned() })
    };
    table.split(|byte| *byte == b'\n').filter_map(line).collect()
}

/// Blanks, tabs, line breaks and backslashes are encoded as a backslash and three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let digits = tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:5 / /proc rw - proc proc rw
40 22 8:17 / /mnt/logs rw,relatime shared:9 master:2 - xfs /dev/sdb1 rw
41 40 0:40 / /mnt/logs/a\\040b rw - nfs4 server:/export rw
42 22 0:41 /x /mnt/logsother rw - tmpfs tmpfs rw
garbage
";

    #[test]
    fn a_path_lies_on_the_deepest_mount_above_it() {
        for (path, mount) in [
            ("/var/log/m365", "/"),
            ("/mnt/logs", "/mnt/logs"),
            ("/mnt/logs/x/y", "/mnt/logs"),
            ("/mnt/logs/a b/c", "/mnt/logs/a b"),
            ("/mnt/logsother/x", "/mnt/logsother"),
            ("/mnt/logs2", "/"),
        ] {
            assert_eq!(mount_of(TABLE, Path::new(path)), Some(PathBuf::from(mount)), "{path}");
        }
        let kinds: Vec<_> = mounts(TABLE).into_iter().map(|mount| mount.kind).collect();
        assert_eq!(kinds, ["ext4", "proc", "xfs", "nfs4", "tmpfs"]);
        assert_eq!(mount_of(b"", Path::new("/")), None);
    }

    #[test]
    fn a_place_is_the_same_by_its_mount_or_by_its_directory() {
        let place = |directory, mount: &str| MountPlace { directory, mount: (!mount.is_empty()).then(|| mount.into()) };
        let known = place(Some((8, 2)), "/mnt/logs");
        for (now, moved) in [
            (place(Some((8, 2)), "/mnt/logs"), PlaceChange::No),
            // A reboot, a replaced disk, a directory that was created again.
            (place(Some((9, 7)), "/mnt/logs"), PlaceChange::No),
            (place(None, "/mnt/logs"), PlaceChange::No),
            // The same directory without the bind mount that a service manager puts over it.
            (place(Some((8, 2)), "/"), PlaceChange::No),
            // The directory beneath, of a file system of its own or of the same one.
            (place(Some((1, 5)), "/"), PlaceChange::Elsewhere),
            (place(Some((8, 5)), "/"), PlaceChange::Elsewhere),
            (place(None, "/"), PlaceChange::Elsewhere),
            (place(Some((1, 5)), "/mnt"), PlaceChange::Elsewhere),
            (place(Some((1, 5)), "/srv"), PlaceChange::Elsewhere),
            (place(Some((1, 5)), "/mnt/logs/m365"), PlaceChange::Beneath),
            (place(Some((1, 5)), ""), PlaceChange::No),
        ] {
            assert_eq!(now.since(&known), moved, "{now:?}");
        }
    }

    #[test]
    fn a_directory_that_is_not_there_yet_lies_where_it_would_be_made() {
        let dir = tempfile::tempdir().unwrap();
        let there = MountPlace::of(dir.path()).unwrap();
        let below = MountPlace::of(&dir.path().join("a/b")).unwrap();
        assert_eq!(below, MountPlace { directory: None, ..there.clone() });
        assert!(there.directory.is_some() && there.mount.is_some());
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(MountPlace::of(&file.join("below")).is_err());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert_eq!(MountPlace::of(&link).unwrap(), there);
    }
}
