//! The key that receipts are signed with: one file in `data_dir`, made at the first start.
//!
//! Any holder of the key can sign any receipt, so only the user of the service may read it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use crate::model::Actionable;
use crate::receipts::note::Signer;

/// The suffix of its temporary name, so that the final name never has half a key.
const NEW: &str = ".new";
/// A key has some 120 bytes.
const KEY_BYTES_MAX: u64 = 16 << 10;
/// Characters in a line of PEM (RFC 7468).
const PEM_LINE: usize = 64;

/// Why there is no key to sign with.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is none.
    #[error("there is no key of receipts: `{}` does not exist", path.display())]
    Missing {
        /// Where it would be.
        path: PathBuf,
    },
    /// It cannot be read or made.
    #[error("the key of receipts, `{}`, cannot be {done}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        done: &'static str,
        /// The system's reason.
        why: String,
    },
    /// The file is not a valid key.
    #[error("the key of receipts, `{}`, cannot be used: {why}; the file was left as it is", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl Actionable for KeyError {
    fn slug(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "receipts-key-missing",
            Self::File { .. } | Self::Damaged { .. } => "receipts-key",
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Missing { .. } => {
                "`run` makes it at its first start, unless `[receipts] days` is 0; check `data_dir` and `[receipts] key_file`. \
                 In a cluster `m365-audit cluster init` makes it once, and all members get a copy".into()
            }
            Self::File { .. } => "the file must belong to the user this runs as, on a file system that can be written".into(),
            Self::Damaged { .. } => "restore it from a backup; without it move it away, and the next start makes another: what \
                                     was signed before then verifies only with the old key's public half (`receipts verify --key`)"
                .into(),
        }
    }
}

/// The key in this file.
///
/// # Errors
/// When there is none, or it cannot be used.
pub fn open(path: &Path) -> Result<Signer, KeyError> {
    let path = path.to_owned();
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => KeyError::Missing { path: path.clone() },
        _ => KeyError::File { path: path.clone(), done: "read", why: error.to_string() },
    };
    let file = File::open(&path).map_err(failed)?;
    let mut text = Zeroizing::new(Vec::new());
    (&file).take(KEY_BYTES_MAX).read_to_end(&mut text).map_err(failed)?;
    let damaged = |why: String| KeyError::Damaged { path: path.clone(), why };
    let der = PrivatePkcs8KeyDer::from_pem_slice(&text)
        .map_err(|error| damaged(format!("it is no private key in PEM: {error:?}")))?;
    Signer::from_pkcs8(der.secret_pkcs8_der()).map_err(|error| damaged(error.to_string()))
}

/// The key in this file, made when there is none. For the process that has the state's lock. If other users may read
/// the key, their access is removed and a warning is logged.
///
/// # Errors
/// When it cannot be used or made.
pub fn open_or_make(path: &Path) -> Result<Signer, KeyError> {
    match open(path) {
        Ok(signer) => {
            tighten(path);
            Ok(signer)
        }
        Err(KeyError::Missing { path }) => {
            let made = |why: String| KeyError::File { path: path.clone(), done: "made", why };
            let der = Signer::generate_pkcs8().map_err(|error| made(error.to_string()))?;
            write(&path, &pem(&der)).map_err(|error| made(error.to_string()))?;
            open(&path)
        }
        Err(error) => Err(error),
    }
}

fn pem(der: &[u8]) -> Zeroizing<String> {
    let packed = Zeroizing::new(STANDARD.encode(der));
    let mut text = Zeroizing::new(String::with_capacity(packed.len() * 2 + 64));
    text.push_str("-----BEGIN PRIVATE KEY-----\n");
    for (at, character) in packed.char_indices() {
        text.push(character);
        if (at + 1) % PEM_LINE == 0 || at + 1 == packed.len() {
            text.push('\n');
        }
    }
    text.push_str("-----END PRIVATE KEY-----\n");
    text
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut new = path.as_os_str().to_owned();
    new.push(NEW);
    let new = PathBuf::from(new);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    // A command that root runs must not create a key that the service cannot read.
    let owner = fs::metadata(dir)?;
    if rustix::process::geteuid().is_root()
        && file.metadata()?.uid() != owner.uid()
        && let Err(error) = std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))
    {
        tracing::warn!(
            "`{}` belongs to root, and the owner of `data_dir` may not be able to read it: {error}",
            new.display()
        );
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(dir)?.sync_all()
}

fn tighten(path: &Path) {
    let Ok(metadata) = fs::metadata(path) else { return };
    if metadata.permissions().mode() & 0o077 == 0 {
        return;
    }
    let taken = fs::set_permissions(path, fs::Permissions::from_mode(0o600));
    let done = match taken {
        Ok(()) => "the right was taken away".to_owned(),
        Err(error) => format!("the right could not be taken away ({error})"),
    };
    tracing::warn!(
        "others on this machine could read `{}`, with which receipts are signed: {done}; if somebody may have read it, move it away, and the next start makes another",
        path.display()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_key_is_made_once_and_for_its_user_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("receipts.key");
        assert!(matches!(open(&path), Err(KeyError::Missing { .. })));
        fs::write(dir.path().join("receipts.key.new"), "half a key").unwrap();
        let made = open_or_make(&path).unwrap().key().clone();
        assert_eq!(open_or_make(&path).unwrap().key(), &made);
        assert_eq!(mode(&path), 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(open_or_make(&path).unwrap().key(), &made);
        assert_eq!(mode(&path), 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_key_is_refused_and_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("receipts.key");
        let pem = open_or_make(&path).map(|_| fs::read_to_string(&path).unwrap()).unwrap();
        for damaged in ["", "no key", &pem[..pem.len() / 2], &pem.replacen("MC", "AA", 1).replacen("MF", "AA", 1)] {
            fs::write(&path, damaged).unwrap();
            let error = open_or_make(&path).unwrap_err();
            assert!(matches!(error, KeyError::Damaged { .. }), "{damaged}: {error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
        }
    }
}
