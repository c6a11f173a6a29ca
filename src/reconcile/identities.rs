//! The identities of an export's rows in a temporary file, so that an export is read once: of which rows nothing is known
//! shows only after all evidence was read.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};

use super::table::Key;
use crate::model::EventIdentity;

/// Bytes that are written and read at a time.
const BUFFER_BYTES: usize = 64 * 1024;
/// Texts of an identity with the number of its record type.
const PARTS: usize = 6;
/// In place of a length: it follows in four bytes.
const LONG: u8 = u8::MAX;

/// An identity with the number of the record type, where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NumberedIdentity<'a> {
    pub identity: EventIdentity<'a>,
    /// Digits; empty where there is no number.
    pub number: &'a str,
}

/// What is kept of a row: what its event is looked up and listed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeptRow<'a> {
    /// The key of the row.
    pub key: Key,
    pub event: NumberedIdentity<'a>,
    /// The event as the row carries it, where the row says beside it what the event does not.
    pub carried: Option<NumberedIdentity<'a>>,
    /// The rule that drops the event as rules are configured now; empty where none does or nobody asked.
    pub rule: &'a str,
}

impl<'a> NumberedIdentity<'a> {
    fn texts(&self) -> [&'a str; PARTS] {
        let EventIdentity { id, record_type, creation_time, operation, record_number } = self.identity;
        [id, record_type, creation_time, operation, record_number, self.number]
    }

    fn of(texts: [&'a str; PARTS]) -> Self {
        let [id, record_type, creation_time, operation, record_number, number] = texts;
        let identity = EventIdentity { id, record_type, creation_time, operation, record_number };
        NumberedIdentity { identity, number }
    }
}

impl<'a> KeptRow<'a> {
    /// Appends the entry.
    pub fn push(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.key);
        let mut push = |text: &str| {
            match u8::try_from(text.len()) {
                Ok(length) if length < LONG => out.push(length),
                _ => {
                    out.push(LONG);
                    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
                }
            }
            out.extend_from_slice(text.as_bytes());
        };
        push(self.rule);
        for numbered in [Some(&self.event), self.carried.as_ref()] {
            match numbered {
                Some(numbered) => numbered.texts().into_iter().for_each(&mut push),
                None => [""; PARTS].into_iter().for_each(&mut push),
            }
        }
        let length = (out.len() - start - 4) as u32;
        if let Some(place) = out.get_mut(start..start + 4) {
            place.copy_from_slice(&length.to_le_bytes());
        }
    }

    /// The entry of these bytes; `None` if they are none.
    fn of(mut bytes: &'a [u8]) -> Option<KeptRow<'a>> {
        let key = *bytes.split_off(..size_of::<Key>())?.first_chunk()?;
        let mut text = || {
            let length = match *bytes.split_off_first()? {
                LONG => u32::from_le_bytes(*bytes.split_off(..4)?.first_chunk()?),
                length => length.into(),
            };
            std::str::from_utf8(bytes.split_off(..usize::try_from(length).ok()?)?).ok()
        };
        let rule = text()?;
        let mut numbered = || Some(NumberedIdentity::of([text()?, text()?, text()?, text()?, text()?, text()?]));
        let (event, carried) = (numbered()?, numbered()?);
        // An identity has an id.
        let carried = Some(carried).filter(|carried| !carried.identity.id.is_empty());
        Some(KeptRow { key, event, carried, rule })
    }
}

/// Rows in the order in which they were read.
#[derive(Debug)]
pub(super) struct KeptRows(BufWriter<File>);

impl KeptRows {
    /// None yet, in an unnamed file.
    pub fn new() -> io::Result<KeptRows> {
        Ok(KeptRows(BufWriter::with_capacity(BUFFER_BYTES, tempfile::tempfile()?)))
    }

    /// Adds an entry that [`KeptRow::push`] has written.
    pub fn add(&mut self, entry: &[u8]) -> io::Result<()> {
        self.0.write_all(entry)
    }

    /// Reads them from the first on.
    pub fn read(&mut self) -> io::Result<KeptRowsReader> {
        self.0.flush()?;
        let mut file = self.0.get_ref().try_clone()?;
        file.seek(SeekFrom::Start(0))?;
        Ok(KeptRowsReader { file: BufReader::with_capacity(BUFFER_BYTES, file), entry: Vec::new() })
    }
}

/// Reads rows, one at a time.
pub(super) struct KeptRowsReader {
    file: BufReader<File>,
    entry: Vec<u8>,
}

impl KeptRowsReader {
    /// The next row; `None` after the last.
    pub fn next(&mut self) -> io::Result<Option<KeptRow<'_>>> {
        let mut length = [0; 4];
        match self.file.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        self.entry.resize(usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX), 0);
        self.file.read_exact(&mut self.entry)?;
        let row = KeptRow::of(&self.entry);
        row.map(Some).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a row's identity cannot be read back"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_back_as_they_were_added() {
        let long = "x".repeat(70_000);
        let event = |id| NumberedIdentity {
            identity: EventIdentity {
                id,
                record_type: "Quarantine",
                creation_time: "t",
                operation: &long,
                record_number: "",
            },
            number: "65",
        };
        let plain = KeptRow { key: [7; 16], event: event("a"), carried: None, rule: "" };
        let rows = [plain, KeptRow { carried: Some(event("\u{e9}")), rule: "EX-45", ..plain }, plain];
        let mut kept = KeptRows::new().unwrap();
        for row in &rows {
            let mut entry = Vec::new();
            row.push(&mut entry);
            kept.add(&entry).unwrap();
        }
        for _ in 0..2 {
            let mut read = kept.read().unwrap();
            for row in &rows {
                assert_eq!(read.next().unwrap().as_ref(), Some(row));
            }
            assert_eq!(read.next().unwrap(), None);
        }
    }
}
