//! A file of the operator's, replaced whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use crate::model::Actionable;

/// A configuration was not written.
#[derive(Debug, thiserror::Error)]
#[error("`{}` cannot be written: {why}; it is as it was", path.display())]
pub struct NotWritten {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub why: io::Error,
}

impl Actionable for NotWritten {
    fn slug(&self) -> &'static str {
        "config-not-written"
    }

    fn hint(&self) -> String {
        "run it as a user who may write the file and its folder, or free disk space".into()
    }
}

/// Puts a text in place of a file's, `None` removes the file. A file that is new gets the mode and the owner that `like`
/// has; another keeps its own. A link is followed.
///
/// # Errors
/// It cannot be written; what was there is there.
pub fn replace(path: &Path, text: Option<&str>, like: &Path) -> Result<(), NotWritten> {
    let failed = |why| NotWritten { path: path.to_owned(), why };
    match text {
        Some(text) => put(path, text, like).map_err(failed),
        None => fs::remove_file(path).and_then(|()| sync_folder(path)).map_err(failed),
    }
}

fn put(path: &Path, text: &str, like: &Path) -> io::Result<()> {
    let (path, model) = match path.canonicalize() {
        Ok(real) => (real.clone(), fs::metadata(&real)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (path.to_owned(), fs::metadata(like)?),
        Err(error) => return Err(error),
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".m365-audit-").tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(model.permissions())?;
    // Only root may; the service's user reads it by its mode otherwise.
    let _ = chown(file.path(), Some(model.uid()), Some(model.gid()));
    file.as_file().sync_all()?;
    file.persist(&path).map_err(|error| error.error)?;
    sync_folder(&path)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}
