//! Checks whether state could be kept in a directory, even while a process runs on it: it opens no state file for
//! writing, and removes what it writes.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use super::store::{StoreError, try_file_system};

/// Written and synced, so that a full disk shows.
const TRIAL_BYTES: usize = 4096;

/// Tries to write where `data_dir` is, or where it would be created. Returns the result in words.
///
/// # Errors
/// Why a `run` could not write there.
pub fn check_writable(data_dir: &Path) -> Result<String, StoreError> {
    let failed = |path: &Path, error: &io::Error| {
        let (path, why) = (path.to_owned(), error.to_string());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full { path, why },
            _ => StoreError::NotWritable { path, why },
        }
    };
    let mut place = data_dir;
    loop {
        match fs::metadata(place) {
            Ok(found) if found.is_dir() => break,
            Ok(_) => return Err(failed(place, &io::Error::from(io::ErrorKind::NotADirectory))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                place = match place.parent() {
                    Some(parent) if !parent.as_os_str().is_empty() => parent,
                    _ => Path::new("."),
                };
            }
            Err(error) => return Err(failed(place, &error)),
        }
    }
    let trial = place.join(format!(".m365-audit-check-{}", std::process::id()));
    let written = OpenOptions::new().write(true).create_new(true).open(&trial).and_then(|mut file| {
        let outcome = file.write_all(&[0; TRIAL_BYTES]).and_then(|()| file.sync_all());
        fs::remove_file(&trial)?;
        outcome
    });
    written.map_err(|error| failed(place, &error))?;
    try_file_system(place)?;
    Ok(match place == data_dir {
        true => format!("`{}` can be written", data_dir.display()),
        false => format!("`{}` will be created by the first `run`", data_dir.display()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_tried_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_writable(dir.path()).unwrap().contains("can be written"));
        assert!(check_writable(&dir.path().join("a/b")).unwrap().contains("will be created"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [file.clone(), file.join("below")] {
            assert!(matches!(check_writable(&path), Err(StoreError::NotWritable { .. })), "{}", path.display());
        }
    }
}
