//! The units of a text, and their places.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use memchr::memchr_iter;

use super::place::InputPlace;
use super::table::Table;

/// A unit that is read by itself.
#[derive(Debug, Clone)]
pub enum TextUnit {
    /// A row of a table.
    Row {
        /// The table.
        table: Arc<Table>,
        /// The row, without the line break that ends it.
        bytes: Bytes,
        /// Where it begins.
        place: InputPlace,
    },
    /// One JSON value, not validated.
    Value {
        /// The value.
        bytes: Bytes,
        /// Where it begins.
        place: InputPlace,
        /// Whether a line's header came before it.
        is_prefixed: bool,
    },
    /// Bytes that cannot be an event. Adjacent ones count as one damaged stretch.
    Damage {
        /// The bytes.
        bytes: Bytes,
        /// Where they begin.
        place: InputPlace,
        /// The fault.
        why: &'static str,
    },
    /// The answer that begins or ends here declares that it lacks rows.
    Truncated {
        /// The place of that declaration.
        place: InputPlace,
    },
}

/// Computes the line of an offset.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// Line breaks before `at`.
    breaks: u64,
    at: u64,
    /// The pushed bytes after `at`.
    chunks: VecDeque<Bytes>,
}

impl Lines {
    pub(super) fn push(&mut self, chunk: Bytes) {
        self.chunks.push_back(chunk);
    }

    /// The place of an offset after the last one requested.
    pub(super) fn place(&mut self, offset: u64, file: &Arc<str>) -> InputPlace {
        while self.at < offset
            && let Some(chunk) = self.chunks.front_mut()
        {
            let step = usize::try_from(offset - self.at).unwrap_or(usize::MAX).min(chunk.len());
            let passed = chunk.split_to(step);
            self.breaks += memchr_iter(b'\n', &passed).count() as u64;
            self.at += step as u64;
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
        InputPlace { file: file.clone(), line: self.breaks + 1, row: None, offset }
    }
}
