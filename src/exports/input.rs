//! Files, folders, archives and standard input, opened and read as text in UTF-8.
//!
//! The first bytes of a file identify its type, not its name. Archives are unpacked while they are read, also inside
//! archives; the readable part of a truncated one is output before the error that names it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::bufread::{DeflateDecoder, MultiGzDecoder};
use zip::ZipArchive;
use zip::result::ZipError;

use super::encoding::Utf8;

/// Called with the number of further bytes of files read, in packed size, from the thread that reads.
pub type Watch = Arc<dyn Fn(u64) + Send + Sync>;

/// An input.
pub enum Input<'a> {
    /// A file or a folder.
    Path(PathBuf),
    /// The same, with a callback for the progress.
    Watched(PathBuf, Watch),
    /// A stream and its name.
    Stream(String, Box<dyn Read + Send + 'a>),
}

impl Input<'_> {
    /// The input that a command line names: `-` is standard input.
    pub fn named(path: &Path) -> Input<'static> {
        match path.as_os_str() == "-" {
            true => Input::Stream("-".into(), Box::new(io::stdin())),
            false => Input::Path(path.into()),
        }
    }

    /// The same; if it is a file or a folder, `watch` is called with the progress.
    #[must_use]
    pub fn watched(self, watch: &Watch) -> Self {
        match self {
            Input::Path(path) => Input::Watched(path, watch.clone()),
            other => other,
        }
    }

    /// The number of bytes to read; `None` if that is known only at the end: for a stream, or a named pipe.
    pub fn bytes(&self) -> Option<u64> {
        match self {
            Input::Path(path) | Input::Watched(path, _) => bytes_of(path, &mut BTreeSet::new()),
            Input::Stream(..) => None,
        }
    }
}

/// A file whose metadata cannot be read counts as 0 bytes, since it cannot be read either.
fn bytes_of(path: &Path, around: &mut BTreeSet<PathBuf>) -> Option<u64> {
    match path.metadata() {
        Err(_) => Some(0),
        Ok(metadata) if metadata.is_file() => Some(metadata.len()),
        Ok(metadata) if metadata.is_dir() => {
            let Ok((real, names)) = names_in(path) else { return Some(0) };
            if !around.insert(real.clone()) {
                return Some(0);
            }
            let bytes = names.iter().map(|name| bytes_of(&path.join(name), around)).sum();
            around.remove(&real);
            bytes
        }
        Ok(_) => None,
    }
}

/// Why an input could not be read, or only in part.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// It cannot be opened.
    #[error("cannot open `{name}`: {source}")]
    Open {
        /// The file or folder.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// Reading stopped half-way; the part before was output.
    #[error("`{name}` could be read in part only: {why}")]
    Cut {
        /// The file, with what is in it behind a colon.
        name: String,
        /// Why.
        why: String,
    },
    /// It is packed in a way that is not read.
    #[error("`{name}` is {what}, which is not read")]
    Foreign {
        /// The file, with what is in it behind a colon.
        name: String,
        /// Its type, and the remedy.
        what: &'static str,
    },
}

/// Receives the texts read.
pub trait Texts {
    /// Takes the text of one file to its end. An error of `text` must be returned; [`StopReading`] ends everything.
    ///
    /// # Errors
    /// The receiver is done, or reading failed.
    fn text(&mut self, name: &Arc<str>, text: &mut dyn Read) -> Result<(), TextEnd>;
    /// Called for an input that could not be read.
    fn problem(&mut self, error: InputError);
    /// Called with a note on an unusual reading.
    fn note(&mut self, note: String);
}

/// Why a text was not taken to its end.
#[derive(Debug)]
pub enum TextEnd {
    /// Nothing more is wanted.
    Stop,
    /// Reading failed.
    Read(io::Error),
}

/// Nothing more is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopReading;

/// The maximum depth of archives within archives.
const DEPTH_MAX: usize = 4;
const READ_BYTES: usize = 128 * 1024;
/// This many bytes identify every known type except a tar, whose mark comes much later.
const MAGIC_BYTES: usize = 8;

/// Reads an input and everything inside it.
///
/// # Errors
/// Nothing more is wanted.
pub fn read(input: Input<'_>, texts: &mut dyn Texts) -> Result<(), StopReading> {
    match input {
        Input::Path(path) => read_path(&path, None, &mut BTreeSet::new(), texts),
        Input::Watched(path, watch) => read_path(&path, Some(&watch), &mut BTreeSet::new(), texts),
        Input::Stream(name, stream) => Layer { name: name.into(), depth: 0 }.read(stream, texts),
    }
}

fn read_path(
    path: &Path,
    watch: Option<&Watch>,
    around: &mut BTreeSet<PathBuf>,
    texts: &mut dyn Texts,
) -> Result<(), StopReading> {
    let name = path.display().to_string();
    let is_folder = path.metadata().map(|metadata| metadata.is_dir());
    let opened = match is_folder {
        Ok(true) => return read_folder(path, watch, around, texts),
        Ok(false) => File::open(path),
        Err(error) => Err(error),
    };
    match opened {
        Ok(file) => Layer { name: name.into(), depth: 0 }.read_file(OpenedFile { file, watch: watch.cloned() }, texts),
        Err(source) => {
            texts.problem(InputError::Open { name, source });
            Ok(())
        }
    }
}

/// The files of a folder in the order of their names, without hidden ones. A link back to a folder that is being read
/// is ignored.
fn read_folder(
    path: &Path,
    watch: Option<&Watch>,
    around: &mut BTreeSet<PathBuf>,
    texts: &mut dyn Texts,
) -> Result<(), StopReading> {
    let (real, names) = match names_in(path) {
        Ok(listed) => listed,
        Err(source) => {
            texts.problem(InputError::Open { name: path.display().to_string(), source });
            return Ok(());
        }
    };
    if !around.insert(real.clone()) {
        return Ok(());
    }
    for name in names {
        read_path(&path.join(name), watch, around, texts)?;
    }
    around.remove(&real);
    Ok(())
}

/// The real path of a folder, and its visible names in order.
fn names_in(path: &Path) -> io::Result<(PathBuf, Vec<OsString>)> {
    let real = path.canonicalize()?;
    let entries = path.read_dir()?.collect::<Result<Vec<_>, _>>()?;
    let mut names: Vec<_> = entries.into_iter().map(|entry| entry.file_name()).collect();
    names.retain(|name| !name.as_encoded_bytes().starts_with(b"."));
    names.sort();
    Ok((real, names))
}

/// A file, and its callback for the progress.
struct OpenedFile {
    file: File,
    watch: Option<Watch>,
}

impl Read for OpenedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        if let Some(watch) = &self.watch {
            watch(read as u64);
        }
        Ok(read)
    }
}

impl Seek for OpenedFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// A file, or an entry of one.
struct Layer {
    name: Arc<str>,
    depth: usize,
}

/// The type of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileKind {
    Gzip,
    Zip,
    Zstd,
    Foreign(&'static str),
    Text,
}

fn kind(beginning: &[u8]) -> FileKind {
    match beginning {
        [0x1f, 0x8b, ..] => FileKind::Gzip,
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => FileKind::Zip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => FileKind::Zstd,
        [b'7', b'z', 0xbc, 0xaf, 0x27, 0x1c, ..] => FileKind::Foreign("a 7z archive: unpack it first"),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => FileKind::Foreign("packed with xz: unpack it first"),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => FileKind::Foreign("packed with bzip2: unpack it first"),
        [b'R', b'a', b'r', b'!', 0x1a, ..] => FileKind::Foreign("a rar archive: unpack it first"),
        [b'P', b'A', b'R', b'1', ..] => FileKind::Foreign("a Parquet file: export it as JSON or CSV"),
        [0xd0, 0xcf, 0x11, 0xe0, ..] => FileKind::Foreign("an old Office document: save it as CSV"),
        _ if beginning.get(257..262) == Some(b"ustar") => FileKind::Foreign("a tar archive: unpack it first"),
        _ => FileKind::Text,
    }
}

impl Layer {
    fn read_file(self, mut file: OpenedFile, texts: &mut dyn Texts) -> Result<(), StopReading> {
        let mut magic = Vec::new();
        // Bytes that are read twice count once.
        let seen = (&mut file.file).take(MAGIC_BYTES as u64).read_to_end(&mut magic);
        let can_seek = seen.is_ok() && file.seek(SeekFrom::Start(0)).is_ok();
        match (seen, kind(&magic)) {
            (Err(error), _) => {
                self.cut(&error.to_string(), texts);
                Ok(())
            }
            (Ok(_), FileKind::Zip) if can_seek => self.read_zip(&mut file, texts),
            // A pipe by name.
            (Ok(_), _) if !can_seek => self.read(Box::new(io::Cursor::new(magic).chain(file)), texts),
            (Ok(_), _) => self.read(Box::new(file), texts),
        }
    }

    /// Reads a stream of any type.
    fn read(self, mut stream: Box<dyn Read + '_>, texts: &mut dyn Texts) -> Result<(), StopReading> {
        let mut beginning = vec![0; READ_BYTES];
        let mut length = 0;
        let mut failed = None;
        while length < MAGIC_BYTES {
            match stream.read(beginning.get_mut(length..).unwrap_or_default()) {
                Ok(0) => break,
                Ok(read) => length += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        beginning.truncate(length);
        let kind = kind(&beginning);
        let seen = beginning.get(..MAGIC_BYTES * 2).unwrap_or(&beginning).to_vec();
        let whole: Box<dyn Read + '_> = Box::new(io::Cursor::new(beginning).chain(FailingReader(failed)).chain(stream));
        match kind {
            FileKind::Foreign(what) => {
                texts.problem(InputError::Foreign { name: self.name.to_string(), what });
                Ok(())
            }
            FileKind::Text => self.text(&seen, whole, texts),
            _ if self.depth >= DEPTH_MAX => {
                let what = "an archive in an archive, too deep: unpack it first";
                texts.problem(InputError::Foreign { name: self.name.to_string(), what });
                Ok(())
            }
            FileKind::Gzip => {
                let inner = MultiGzDecoder::new(BufReader::with_capacity(READ_BYTES, whole));
                Layer { depth: self.depth + 1, ..self }.read(Box::new(inner), texts)
            }
            FileKind::Zstd => match zstd::stream::read::Decoder::new(whole) {
                Ok(inner) => Layer { depth: self.depth + 1, ..self }.read(Box::new(inner), texts),
                Err(error) => {
                    self.cut(&error.to_string(), texts);
                    Ok(())
                }
            },
            FileKind::Zip => self.spool(whole, texts),
        }
    }

    fn text(self, beginning: &[u8], stream: Box<dyn Read + '_>, texts: &mut dyn Texts) -> Result<(), StopReading> {
        let mut text = Utf8::new(beginning, stream);
        let ended = texts.text(&self.name, &mut text);
        if text.was_windows() {
            texts.note(format!("`{}` is not UTF-8 and was read as Windows-1252", self.name));
        }
        match ended {
            Ok(()) => Ok(()),
            Err(TextEnd::Stop) => Err(StopReading),
            Err(TextEnd::Read(error)) => {
                self.cut(&error.to_string(), texts);
                Ok(())
            }
        }
    }

    fn cut(&self, why: &str, texts: &mut dyn Texts) {
        texts.problem(InputError::Cut { name: self.name.to_string(), why: why.to_owned() });
    }

    /// A zip is read from its end, so that a stream of one goes to a file without a name first.
    fn spool(self, mut stream: Box<dyn Read + '_>, texts: &mut dyn Texts) -> Result<(), StopReading> {
        let spooled = tempfile::tempfile().and_then(|mut file| {
            let copied = io::copy(&mut stream, &mut file);
            file.seek(SeekFrom::Start(0))?;
            Ok((file, copied.err()))
        });
        match spooled {
            Ok((mut file, failed)) => {
                if let Some(error) = failed {
                    self.cut(&error.to_string(), texts);
                }
                self.read_zip(&mut file, texts)
            }
            Err(error) => {
                self.cut(&format!("it is a zip archive and cannot be kept in a temporary file: {error}"), texts);
                Ok(())
            }
        }
    }

    fn member(&self, name: &str) -> Layer {
        Layer { name: format!("{}:{name}", self.name).into(), depth: self.depth + 1 }
    }

    fn read_zip<F: Read + Seek>(self, file: &mut F, texts: &mut dyn Texts) -> Result<(), StopReading> {
        let mut archive = match ZipArchive::new(BufReader::new(&mut *file)) {
            Ok(archive) => archive,
            Err(error) => {
                // Its directory is at the end, which a truncation removes first.
                let result = file.seek(SeekFrom::Start(0)).map(|_| self.read_cut_zip(&mut *file, texts));
                self.cut(&format!("the zip archive's list of contents: {error}"), texts);
                return result.unwrap_or(Ok(()));
            }
        };
        if archive.index_for_name("[Content_Types].xml").is_some() {
            let what = "an Office document: save it as CSV";
            texts.problem(InputError::Foreign { name: self.name.to_string(), what });
            return Ok(());
        }
        for index in 0..archive.len() {
            let entry = archive.by_index(index);
            let name = match &entry {
                Ok(entry) => entry.name().map(|name| name.into_owned()).unwrap_or_else(|_| format!("entry {index}")),
                Err(_) => format!("entry {index}"),
            };
            match entry {
                Ok(entry) if entry.is_dir() || is_hidden(&name) => {}
                Ok(entry) => self.member(&name).read(Box::new(entry), texts)?,
                Err(ZipError::UnsupportedArchive(why)) => self.member(&name).cut(why, texts),
                Err(error) => self.member(&name).cut(&error.to_string(), texts),
            }
        }
        Ok(())
    }

    /// Reads the entries of a zip from its beginning, as far as they exist.
    fn read_cut_zip<F: Read>(&self, file: &mut F, texts: &mut dyn Texts) -> Result<(), StopReading> {
        let mut reader = BufReader::with_capacity(READ_BYTES, file);
        while let Some(entry) = LocalEntry::read(&mut reader) {
            let layer = self.member(&entry.name);
            match (entry.method, entry.length) {
                (STORED, Some(length)) => {
                    let mut inside = (&mut reader).take(length);
                    layer.read(Box::new(&mut inside), texts)?;
                    let _ = io::copy(&mut inside, &mut io::sink());
                }
                (DEFLATED, length) => {
                    let mut inside = (&mut reader).take(length.unwrap_or(u64::MAX));
                    let mut decoder = DeflateDecoder::new(&mut inside);
                    layer.read(Box::new(&mut decoder), texts)?;
                    if length.is_some() {
                        let _ = io::copy(&mut inside, &mut io::sink());
                    }
                }
                _ => layer.cut("it is packed in a way that can be read only when the archive is whole", texts),
            }
            if entry.length.is_none() && !skip_descriptor(&mut reader) {
                break;
            }
        }
        Ok(())
    }
}

fn is_hidden(name: &str) -> bool {
    name.split('/').any(|part| part.starts_with('.') && part.len() > 2 || part == "__MACOSX")
}

const STORED: u16 = 0;
const DEFLATED: u16 = 8;

/// The header before an entry of a zip.
struct LocalEntry {
    name: String,
    method: u16,
    /// The packed size, if known in advance.
    length: Option<u64>,
}

impl LocalEntry {
    fn read(reader: &mut impl Read) -> Option<LocalEntry> {
        let mut header = [0; 30];
        reader.read_exact(&mut header).ok()?;
        let short = |at: usize| Some(u16::from_le_bytes(*header.get(at..at + 2)?.first_chunk()?));
        let long = |at: usize| Some(u32::from_le_bytes(*header.get(at..at + 4)?.first_chunk()?));
        if !header.starts_with(b"PK\x03\x04") {
            return None;
        }
        let (flags, method, length) = (short(6)?, short(8)?, long(18)?);
        let mut name = vec![0; short(26)?.into()];
        let mut extra = vec![0; short(28)?.into()];
        reader.read_exact(&mut name).ok()?;
        reader.read_exact(&mut extra).ok()?;
        // Encrypted, or its length follows the data, or is in an extra field because it is over 4 GiB.
        let method = if flags & 1 == 1 { u16::MAX } else { method };
        let length = (flags & 8 == 0 && length != u32::MAX).then_some(u64::from(length));
        Some(LocalEntry { name: String::from_utf8_lossy(&name).into_owned(), method, length })
    }
}

/// Skips the descriptor after an entry of unknown length; false if nothing follows.
fn skip_descriptor(reader: &mut impl BufRead) -> bool {
    // Signature, sum and two lengths of four or of eight bytes.
    let mut seen = [0; 24];
    let Ok(()) = reader.read_exact(seen.get_mut(..16).unwrap_or_default()) else { return false };
    match reader.fill_buf() {
        Ok(next) if next.starts_with(b"PK") => true,
        Ok(_) => reader.read_exact(seen.get_mut(16..).unwrap_or_default()).is_ok(),
        Err(_) => false,
    }
}

/// Fails once, if it has an error.
struct FailingReader(Option<io::Error>);

impl Read for FailingReader {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        self.0.take().map_or(Ok(0), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The results, in order.
    #[derive(Default)]
    struct Heard(Vec<String>);

    impl Texts for Heard {
        fn text(&mut self, _: &Arc<str>, text: &mut dyn Read) -> Result<(), TextEnd> {
            let mut all = String::new();
            text.read_to_string(&mut all).map_err(TextEnd::Read)?;
            self.0.push(all);
            Ok(())
        }

        fn problem(&mut self, error: InputError) {
            self.0.push(error.to_string());
        }

        fn note(&mut self, note: String) {
            self.0.push(note);
        }
    }

    #[test]
    fn folders_are_read_in_the_order_of_names_and_what_cannot_be_opened_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("m")).unwrap();
        for (name, text) in [("b.json", "2"), ("a.json", "1"), ("m/x.json", "3"), ("z.csv", "4"), (".hidden", "5")] {
            std::fs::write(path(name), text).unwrap();
        }
        // A link back to its own folder.
        std::os::unix::fs::symlink(folder.path(), path("n")).unwrap();
        let mut texts = Heard::default();
        for input in [folder.path().to_owned(), path("none"), path("a.json")] {
            read(Input::Path(input), &mut texts).unwrap();
        }
        let missing = texts.0.remove(4);
        assert!(missing.starts_with("cannot open `") && missing.contains("none`"), "{missing}");
        assert_eq!(texts.0, ["1", "2", "3", "4", "1"]);
    }

    #[test]
    fn whoever_watches_is_told_every_byte_of_files_and_folders_and_how_many_there_are_to_be() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("in")).unwrap();
        for (name, bytes) in [("a", 3), ("in/b", 70_000), (".hidden", 9)] {
            std::fs::write(folder.path().join(name), "x".repeat(bytes)).unwrap();
        }
        std::os::unix::fs::symlink(folder.path(), folder.path().join("in/round")).unwrap();
        let counted = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let counter = counted.clone();
        let watch: Watch = Arc::new(move |bytes| {
            counter.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
        });
        let input = Input::named(folder.path()).watched(&watch);
        assert_eq!(input.bytes(), Some(70_003));
        read(input, &mut Heard::default()).unwrap();
        assert_eq!(counted.load(std::sync::atomic::Ordering::Relaxed), 70_003);
        assert_eq!(Input::named(Path::new("-")).bytes(), None);
    }
}
