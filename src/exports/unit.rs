//! What a text is cut into, and where each begins.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use memchr::memchr_iter;

use super::place::Place;
use super::table::Table;

/// What is read for itself.
#[derive(Debug, Clone)]
pub enum Unit {
    /// A row of a table.
    Row {
        /// The table.
        table: Arc<Table>,
        /// The row, without the line break that ends it.
        bytes: Bytes,
        /// Where it begins.
        place: Place,
    },
    /// One JSON value; whether it is valid was not looked at.
    Value {
        /// The value.
        bytes: Bytes,
        /// Where it begins.
        place: Place,
        /// Whether a line's header stood before it.
        is_prefixed: bool,
    },
    /// Bytes that cannot be an event. Those that touch are one damage.
    Damage {
        /// The bytes.
        bytes: Bytes,
        /// Where they begin.
        place: Place,
        /// What is wrong.
        why: &'static str,
    },
    /// The answer that begins or ends here says itself that it has not all rows.
    Truncated {
        /// Where it says so.
        place: Place,
    },
}

/// Tells the line of an offset.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// Line breaks before `at`.
    breaks: u64,
    at: u64,
    /// What was pushed and lies behind `at`.
    chunks: VecDeque<Bytes>,
}

impl Lines {
    pub(super) fn push(&mut self, chunk: Bytes) {
        self.chunks.push_back(chunk);
    }

    /// The place of an offset that lies behind the last one asked for.
    pub(super) fn place(&mut self, offset: u64, file: &Arc<str>) -> Place {
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
        Place { file: file.clone(), line: self.breaks + 1, row: None, offset }
    }
}
