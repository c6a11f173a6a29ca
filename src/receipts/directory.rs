//! Verifying an exported directory: `key.pub`, and for each tenant a folder of checkpoints, entries and a head.
//!
//! Reads only. Any other file in it is a fault, and so is a link.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::note::{NOTE_BYTES_MAX, VerifierKey};
use super::statement::Statement;
use super::verify::{ReceiptFault, Verification, Verifier, Wrong};
use crate::model::TenantId;

/// The verifier key beside the tenants.
pub const KEY_FILE: &str = "key.pub";
/// The signed head of a tenant.
pub const HEAD_FILE: &str = "head";
/// The suffix of a part's signed note.
pub const CHECKPOINT_SUFFIX: &str = ".checkpoint";
/// The suffix of a part's entries.
pub const ENTRIES_SUFFIX: &str = ".entries";

/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;

/// Why a directory cannot be verified.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// It cannot be opened.
    #[error("cannot read receipts in `{}`: {why}", path.display())]
    Unreadable {
        /// The directory or the file.
        path: PathBuf,
        /// The system's reason.
        why: String,
    },
}

/// The result for a directory.
#[derive(Debug)]
pub struct DirectoryVerdict {
    /// The keys used for verification; empty when there was none.
    pub keys: Vec<VerifierKey>,
    /// Faults outside the tenants.
    pub faults: Vec<ReceiptFault>,
    /// The tenants, by their ids.
    pub tenants: Vec<Verification>,
}

impl DirectoryVerdict {
    /// Whether there is no fault.
    pub fn is_good(&self) -> bool {
        self.faults.is_empty() && self.tenants.iter().all(Verification::is_good)
    }
}

/// The name of a part's file.
pub fn file_name(seq: u64, suffix: &str) -> String {
    format!("{seq:016x}{suffix}")
}

/// Verifies a directory by these keys, each part by any of them. Without one, by the one in it, which shows only that one
/// key signed all of it.
///
/// # Errors
/// When it cannot be opened.
pub fn verify(
    dir: &Path,
    given: &[VerifierKey],
    only: Option<&TenantId>,
    elsewhere: &[Statement],
) -> Result<DirectoryVerdict, DirectoryError> {
    verify_telling(dir, given, only, elsewhere, &|_| ())
}

/// How many parts there are to verify; `None` when the directory cannot be read.
pub fn parts(dir: &Path, only: Option<&TenantId>) -> Option<u64> {
    let mut parts = 0;
    for (name, _) in names(dir).ok()?.iter().filter(|(_, is)| **is == Is::Folder) {
        if only.is_none_or(|only| only.as_str() == name) {
            parts +=
                names(&dir.join(name)).ok()?.keys().filter(|name| name.ends_with(CHECKPOINT_SUFFIX)).count() as u64;
        }
    }
    Some(parts)
}

/// As [`verify`], and calls back with the number of further parts read.
///
/// # Errors
/// When it cannot be opened.
pub fn verify_telling(
    dir: &Path,
    given: &[VerifierKey],
    only: Option<&TenantId>,
    elsewhere: &[Statement],
    tell: &dyn Fn(u64),
) -> Result<DirectoryVerdict, DirectoryError> {
    let unreadable = |error: io::Error| DirectoryError::Unreadable { path: dir.to_owned(), why: error.to_string() };
    let mut names = names(dir).map_err(unreadable)?;
    let mut found = DirectoryVerdict { keys: given.to_vec(), faults: Vec::new(), tenants: Vec::new() };
    let has_key = names.remove(KEY_FILE).is_some_and(|is| is == Is::File);
    match read_key(dir, has_key) {
        Err(wrong) => found.faults.push(fault_of(KEY_FILE, wrong)),
        Ok(own) if given.is_empty() => found.keys.push(own),
        Ok(own) if !given.contains(&own) => found.faults.push(fault_of(KEY_FILE, Wrong::Key)),
        Ok(_) => {}
    }
    for (name, is) in names {
        let tenant = name.parse::<TenantId>().ok().filter(|tenant| tenant.as_str() == name && is == Is::Folder);
        match tenant {
            None => found.faults.push(fault_of(&name, Wrong::Stray)),
            Some(tenant) if !found.keys.is_empty() && only.is_none_or(|only| *only == tenant) => {
                found.tenants.push(verify_tenant(dir, tenant, found.keys.clone(), elsewhere, tell));
            }
            Some(_) => {}
        }
    }
    if found.tenants.is_empty() {
        found.faults.push(ReceiptFault { place: None, seq: None, hour: None, wrong: Wrong::Nothing });
    }
    Ok(found)
}

fn fault_of(place: &str, wrong: Wrong) -> ReceiptFault {
    ReceiptFault { place: Some(place.to_owned()), seq: None, hour: None, wrong }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    File,
    Folder,
    Other,
}

/// The entries of a folder, without following links.
fn names(dir: &Path) -> io::Result<BTreeMap<String, Is>> {
    let mut names = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let is = match (kind.is_file(), kind.is_dir()) {
            (true, _) => Is::File,
            (_, true) => Is::Folder,
            _ => Is::Other,
        };
        names.insert(entry.file_name().to_string_lossy().into_owned(), is);
    }
    Ok(names)
}

fn read_key(dir: &Path, is_there: bool) -> Result<VerifierKey, Wrong> {
    if !is_there {
        return Err(Wrong::Unreadable(format!("`{KEY_FILE}` is missing, or no file")));
    }
    let bytes = read_small(&dir.join(KEY_FILE))?;
    let text = String::from_utf8(bytes).map_err(|_| Wrong::NotText)?;
    let key: VerifierKey = text.parse().map_err(|error| Wrong::Unreadable(format!("{error}")))?;
    if text == format!("{key}\n") { Ok(key) } else { Err(Wrong::Unreadable("it was changed".to_owned())) }
}

/// Reads a file that must not be longer than a note; of a longer one, one byte more than that.
fn read_small(path: &Path) -> Result<Vec<u8>, Wrong> {
    let read = File::open(path).and_then(|file| {
        let mut bytes = Vec::new();
        file.take(NOTE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    read.map_err(|error| Wrong::Unreadable(error.to_string()))
}

/// Which of a part's two files are there.
#[derive(Debug, Default)]
struct PartFiles {
    checkpoint: bool,
    entries: bool,
}

fn verify_tenant(
    dir: &Path,
    tenant: TenantId,
    keys: Vec<VerifierKey>,
    elsewhere: &[Statement],
    tell: &dyn Fn(u64),
) -> Verification {
    let folder = dir.join(tenant.as_str());
    let place = |name: &str| Some(format!("{tenant}/{name}"));
    let mut verifier = Verifier::new(tenant.clone(), keys);
    elsewhere.iter().for_each(|statement| verifier.compare_with(statement));
    let names = names(&folder).unwrap_or_else(|error| {
        verifier.fault(place(""), None, None, Wrong::Unreadable(error.to_string()));
        BTreeMap::new()
    });
    let mut parts: BTreeMap<u64, PartFiles> = BTreeMap::new();
    let mut has_head = false;
    for (name, is) in names {
        match (part_of(&name), is) {
            (Some((seq, CHECKPOINT_SUFFIX)), Is::File) => parts.entry(seq).or_default().checkpoint = true,
            (Some((seq, _)), Is::File) => parts.entry(seq).or_default().entries = true,
            (None, Is::File) if name == HEAD_FILE => has_head = true,
            _ => verifier.fault(place(&name), None, None, Wrong::Stray),
        }
    }
    for (seq, files) in parts {
        let name = file_name(seq, CHECKPOINT_SUFFIX);
        let note = if files.checkpoint { read_small(&folder.join(&name)) } else { Err(Wrong::NoNote) };
        let mut part = verifier.begin_part(seq, place(&name), note.as_deref().map_err(Clone::clone));
        let wrong = match files.entries {
            true => read_entries(&folder.join(file_name(seq, ENTRIES_SUFFIX)), &mut |bytes| part.entries(bytes)).err(),
            false => Some(Wrong::NoEntries),
        };
        part.set_place(place(&file_name(seq, ENTRIES_SUFFIX)));
        verifier.end_part(part, wrong);
        tell(1);
    }
    let head = if has_head { read_small(&folder.join(HEAD_FILE)) } else { Err(Wrong::NoHead) };
    verifier.end_with_head(place(HEAD_FILE), head.as_deref().map_err(Clone::clone));
    verifier.finish()
}

/// The number and the suffix of a part's file.
fn part_of(name: &str) -> Option<(u64, &'static str)> {
    let suffix = [CHECKPOINT_SUFFIX, ENTRIES_SUFFIX].into_iter().find(|suffix| name.ends_with(suffix))?;
    let seq = u64::from_str_radix(name.strip_suffix(suffix)?, 16).ok()?;
    (file_name(seq, suffix) == name).then_some((seq, suffix))
}

fn read_entries(path: &Path, take: &mut dyn FnMut(&[u8])) -> Result<(), Wrong> {
    let unreadable = |error: io::Error| Wrong::Unreadable(error.to_string());
    let mut file = File::open(path).map_err(unreadable)?;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => take(buffer.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
}
