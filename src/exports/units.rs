//! Cuts text into units: rows of a table, values, and other bytes.
//!
//! The beginning of a text shows whether it is a table. Bytes come in chunks and are cut as they arrive; the result
//! does not depend on the chunking.

use std::sync::Arc;

use bytes::Bytes;
use memchr::memchr_iter;

use super::place::InputPlace;
use super::rows::next_row;
use super::table::{self, HEADER_BYTES_MAX, Table, is_no_table};
use super::unit::{Lines, TextUnit};
use super::values::Values;

/// Cuts the text of one file.
pub struct Cutter {
    file: Arc<str>,
    state: CutState,
    lines: Lines,
}

enum CutState {
    /// The type of the text is not known yet.
    Beginning(Vec<u8>),
    Rows(Box<RowCutter>),
    Values(Box<Values>),
}

impl Cutter {
    /// A cutter for the text of this file.
    pub fn new(file: Arc<str>) -> Cutter {
        Cutter { file, state: CutState::Beginning(Vec::new()), lines: Lines::default() }
    }

    /// Takes the next bytes and appends the units that end in them.
    pub fn push(&mut self, chunk: &[u8], out: &mut Vec<TextUnit>) {
        match &mut self.state {
            CutState::Beginning(beginning) => {
                beginning.extend_from_slice(chunk);
                if is_enough(beginning) {
                    self.begin(out);
                }
            }
            CutState::Rows(rows) => rows.push(chunk, &self.file, false, out),
            CutState::Values(values) => {
                let chunk = Bytes::copy_from_slice(chunk);
                self.lines.push(chunk.clone());
                values.push(chunk, &mut self.lines, &self.file, out);
            }
        }
    }

    pub fn finish(&mut self, out: &mut Vec<TextUnit>) {
        if matches!(self.state, CutState::Beginning(_)) {
            self.begin(out);
        }
        match &mut self.state {
            CutState::Beginning(_) => {}
            CutState::Rows(rows) => rows.push(&[], &self.file, true, out),
            CutState::Values(values) => values.finish(&mut self.lines, &self.file, out),
        }
    }

    fn begin(&mut self, out: &mut Vec<TextUnit>) {
        let CutState::Beginning(beginning) = &mut self.state else { return };
        let beginning = std::mem::take(beginning);
        self.state = match table::begins(&beginning) {
            Some(table::Beginning { table, rows, stray }) => {
                if !stray.is_empty() {
                    let line = 1 + memchr_iter(b'\n', beginning.get(..stray.start).unwrap_or_default()).count() as u64;
                    let place = InputPlace { file: self.file.clone(), line, row: None, offset: stray.start as u64 };
                    let bytes = Bytes::copy_from_slice(beginning.get(stray).unwrap_or_default());
                    out.push(TextUnit::Damage { bytes, place, why: "a line before the header of a table" });
                }
                let (before, after) = beginning.split_at(rows.min(beginning.len()));
                let mut rows = RowCutter::new(table, before);
                rows.push(after, &self.file, false, out);
                CutState::Rows(Box::new(rows))
            }
            None => {
                let mut values = Values::default();
                let chunk = Bytes::from(beginning);
                self.lines.push(chunk.clone());
                values.push(chunk, &mut self.lines, &self.file, out);
                CutState::Values(Box::new(values))
            }
        };
    }
}

/// Whether this beginning identifies the type of the text: it is not a table, or has two complete lines after those
/// that only describe its format.
fn is_enough(beginning: &[u8]) -> bool {
    let blank = beginning.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    let text = beginning.get(blank..).unwrap_or_default();
    if beginning.len() >= HEADER_BYTES_MAX || is_no_table(text) == Some(true) {
        return true;
    }
    let mut ends = memchr_iter(b'\n', text);
    let mut from = 0;
    let mut lines = 0;
    while lines < 2 {
        let Some(end) = ends.next() else { return false };
        let line = text.get(from..end).unwrap_or_default();
        lines +=
            usize::from(!(line.starts_with(b"sep=") || line.starts_with(b"\"sep=") || line.starts_with(b"#TYPE ")));
        from = end + 1;
    }
    true
}

/// The rows of a table.
struct RowCutter {
    table: Arc<Table>,
    /// Bytes after the last row found.
    pending: Vec<u8>,
    /// How many of them were searched.
    tried: usize,
    offset: u64,
    line: u64,
    row: u64,
}

/// After a vain search through this much, the next search waits for twice as much.
const RETRY_BYTES: usize = 1024 * 1024;

impl RowCutter {
    fn new(table: Table, before: &[u8]) -> RowCutter {
        let line = 1 + memchr_iter(b'\n', before).count() as u64;
        RowCutter { table: Arc::new(table), pending: Vec::new(), tried: 0, offset: before.len() as u64, line, row: 0 }
    }

    fn push(&mut self, chunk: &[u8], file: &Arc<str>, ended: bool, out: &mut Vec<TextUnit>) {
        self.pending.extend_from_slice(chunk);
        if !ended && self.tried >= RETRY_BYTES && self.pending.len() < 2 * self.tried {
            return;
        }
        let text = Bytes::from(std::mem::take(&mut self.pending));
        let mut start = 0;
        while let Some(row) = next_row(&self.table.shape, &text, start, ended) {
            let bytes = text.slice(row.start..row.end);
            if !bytes.trim_ascii().is_empty() {
                match self.table.begins_again(&bytes) {
                    Some(None) => {}
                    Some(Some(table)) => self.table = Arc::new(table),
                    None => {
                        self.row += 1;
                        let offset = self.offset + row.start as u64;
                        let place = InputPlace { file: file.clone(), line: self.line, row: Some(self.row), offset };
                        out.push(TextUnit::Row { table: self.table.clone(), bytes, place });
                    }
                }
            }
            self.line += memchr_iter(b'\n', text.get(row.start..row.next).unwrap_or_default()).count() as u64;
            start = row.next;
        }
        self.offset += start as u64;
        self.pending = text.get(start..).unwrap_or_default().to_vec();
        self.tried = self.pending.len();
    }
}
