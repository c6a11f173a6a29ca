//! Listed events in a temporary file: with an export of another tenant there are a million missing events.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};

use serde::{Deserialize, Serialize};

/// A listed event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpooledEvent {
    /// `Id`.
    pub id: String,
    /// `CreationTime`, as the feed writes it.
    pub time: String,
    /// `Operation`.
    pub operation: String,
}

/// Events in the order in which they were found.
#[derive(Debug)]
pub struct Spool {
    file: BufWriter<File>,
    count: u64,
}

impl Spool {
    /// An empty spool in an unnamed file.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn new() -> io::Result<Spool> {
        Ok(Spool { file: BufWriter::new(tempfile::tempfile()?), count: 0 })
    }

    /// Adds an event.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn push(&mut self, listed: &SpooledEvent) -> io::Result<()> {
        serde_json::to_writer(&mut self.file, listed)?;
        self.file.write_all(b"\n")?;
        self.count += 1;
        Ok(())
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The events in the order in which they were added, each as the text of a JSON object.
    ///
    /// # Errors
    /// The file cannot be written or read.
    pub fn lines(&mut self) -> io::Result<impl Iterator<Item = io::Result<String>>> {
        self.file.flush()?;
        let mut file = self.file.get_ref().try_clone()?;
        file.seek(SeekFrom::Start(0))?;
        Ok(BufReader::new(file).lines())
    }
}
