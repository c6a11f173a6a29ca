//! Places in inputs.

use std::fmt;
use std::sync::Arc;

/// Where an event, or a stretch of other bytes, begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputPlace {
    /// The file as given; for an archive, followed by a colon and the entry; `-` is standard input.
    pub file: Arc<str>,
    /// The line, from 1 on.
    pub line: u64,
    /// The row of a table, from 1 on and without its header.
    pub row: Option<u64>,
    /// The byte, from 0 on, in the file's text: unpacked, in UTF-8 and without its mark.
    pub offset: u64,
}

impl fmt::Display for InputPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: line {}", self.file, self.line)?;
        if let Some(row) = self.row {
            write!(f, ", row {row}")?;
        }
        Ok(())
    }
}
