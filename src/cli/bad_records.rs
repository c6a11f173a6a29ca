//! Records of bytes that are not an event, in the form of `normalize`: in pieces, and without masked values.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::reading::BadStretch;
use crate::clock::Clock;
use crate::exports::outer::Outer;
use crate::exports::pipeline::{BadItem, ReadEvent};
use crate::exports::place::InputPlace;
use crate::exports::table::Table;
use crate::normalise::scraps::{ScrapFate, Scraps};
use crate::normalise::{BadBody, BadBytes, FoundIn, Normaliser, Origin, Withheld};

/// Bytes of bad input in one record; base64 lengthens it to four thirds.
pub(super) const PIECE_BYTES_MAX: usize = 256 * 1024;

/// Where records go.
type RecordSink<'t> = &'t mut dyn FnMut(&[u8]) -> io::Result<()>;

/// Makes records of bytes that are not an event, in their order.
pub(super) struct BadRecords<'a> {
    normaliser: &'a Normaliser,
    origin: Origin<'a>,
    clock: &'a dyn Clock,
    /// Whether members are masked by name: then a cell beside the event may be one of them.
    masks_members: bool,
    scraps: Scraps,
    /// The last events, not inspected yet: inspecting one costs as much as making its record, and most files have no
    /// bad bytes.
    last: Vec<Bytes>,
    file: Arc<str>,
    /// Bytes that are not an event, until their end is known.
    bad: Option<Bad>,
    /// The last table checked, and whether its header names a masked member.
    header: Option<(Arc<Table>, bool)>,
    line: Vec<u8>,
}

/// Events that wait for inspection.
const LAST_MAX: usize = 8;

/// Bytes that are not an event, as far as they were read.
struct Bad {
    place: InputPlace,
    /// How many are already in records.
    written: u64,
    /// The bytes that are not in records yet.
    bytes: Vec<u8>,
    why: String,
    outer: Outer,
    is_unknown: bool,
    /// Whether their table's header names a masked member.
    is_masked: bool,
    /// Whether their cells may have shifted, so that one may hold a masked value.
    may_have_slipped: bool,
}

impl Bad {
    fn end(&self) -> u64 {
        self.place.offset + self.written + self.bytes.len() as u64
    }
}

impl<'a> BadRecords<'a> {
    pub(super) fn new(
        normaliser: &'a Normaliser,
        origin: Origin<'a>,
        clock: &'a dyn Clock,
        masks_members: bool,
    ) -> Self {
        Self {
            normaliser,
            origin,
            clock,
            masks_members,
            scraps: Self::scraps(normaliser),
            last: Vec::new(),
            file: "".into(),
            bad: None,
            header: None,
            line: Vec::new(),
        }
    }

    /// A file is complete, so all of it is output.
    fn scraps(normaliser: &Normaliser) -> Scraps {
        Scraps::new(normaliser.censor(), usize::MAX, usize::MAX)
    }

    /// Whether these bytes continue where the last ended.
    pub(super) fn goes_on(&self, item: &BadItem) -> bool {
        self.bad.as_ref().is_some_and(|bad| {
            !bad.is_unknown
                && !item.is_unknown
                && bad.end() == item.place.offset
                && bad.place.file == item.place.file
                && (bad.place.row, item.place.row) == (None, None)
        })
    }

    /// Records the last event: a damaged byte can end it early, and then masked values may follow it.
    pub(super) fn follows(&mut self, read: &ReadEvent) {
        self.enter(&read.place.file);
        // An event ends the stretch before it.
        if read.is_whole {
            self.last.clear();
        } else if self.last.len() == LAST_MAX {
            self.inspect_last();
        }
        self.last.push(read.bytes.clone());
    }

    fn inspect_last(&mut self) {
        for event in self.last.drain(..) {
            self.scraps.follows(&event);
        }
    }

    fn enter(&mut self, file: &Arc<str>) {
        if *file != self.file {
            self.file = file.clone();
            self.scraps = Self::scraps(self.normaliser);
            self.last.clear();
        }
    }

    /// Adds bytes that are not an event. An earlier stretch that ends elsewhere must be ended before.
    pub(super) fn push(&mut self, item: &BadItem, take: RecordSink<'_>) -> io::Result<()> {
        if item.bytes.is_empty() {
            return Ok(());
        }
        self.enter(&item.place.file);
        self.inspect_last();
        let is_masked = self.names_masked(item.table.as_ref());
        let bad = self.bad.get_or_insert_with(|| Bad {
            place: item.place.clone(),
            written: 0,
            bytes: Vec::new(),
            why: item.why.clone(),
            outer: item.outer.clone(),
            is_unknown: item.is_unknown,
            is_masked,
            may_have_slipped: may_have_slipped(item),
        });
        bad.bytes.extend_from_slice(&item.bytes);
        self.write(PIECE_BYTES_MAX, take)
    }

    /// Whether the header of a table names a masked member: then its cells may be masked values.
    fn names_masked(&mut self, table: Option<&Arc<Table>>) -> bool {
        let Some(table) = table else { return false };
        match &self.header {
            Some((known, is_masked)) if Arc::ptr_eq(known, table) => *is_masked,
            _ => {
                let is_masked = !self.normaliser.censor().admits(table.header());
                self.header = Some((table.clone(), is_masked));
                is_masked
            }
        }
    }

    /// Writes the collected bad bytes, in pieces, while there are at least `at_least`.
    fn write(&mut self, at_least: usize, take: RecordSink<'_>) -> io::Result<()> {
        let Some(mut bad) = self.bad.take() else { return Ok(()) };
        let mut rest = bad.bytes.as_slice();
        while !rest.is_empty() && rest.len() >= at_least {
            let (piece, after) = rest.split_at(rest.len().min(PIECE_BYTES_MAX));
            let offset = bad.place.offset + bad.written;
            let mut fate = self.scraps.judge(piece, offset);
            if bad.is_masked && !matches!(fate, ScrapFate::Withheld(_)) {
                fate = ScrapFate::Withheld(sha256(piece));
            }
            let body = match &fate {
                ScrapFate::Withheld(sha256) => {
                    let bytes = piece.len() as u64;
                    BadBody::Withheld { bytes, sha256, why: Withheld::MaskedHere, stretches: None }
                }
                ScrapFate::Shown | ScrapFate::Counted => BadBody::Shown(piece),
            };
            let withheld = matches!(fate, ScrapFate::Withheld(_));
            let may_be_masked = self.masks_members || bad.is_masked || bad.may_have_slipped;
            let outer = (!withheld || !may_be_masked).then_some(&bad.outer);
            let bytes = BadBytes {
                origin: self.origin,
                now: self.clock.now(),
                offset,
                total: None,
                body,
                reason: &bad.why,
                found_in: found_in(&bad.place, outer),
            };
            self.line.clear();
            self.normaliser.render_bad(&bytes, &mut self.line);
            self.line.push(b'\n');
            take(&self.line)?;
            bad.written += piece.len() as u64;
            rest = after;
        }
        bad.bytes = rest.to_vec();
        self.bad = Some(bad);
        Ok(())
    }

    /// Ends the stretch of bad bytes: returns its summary, if there was one.
    pub(super) fn end(&mut self, take: RecordSink<'_>) -> io::Result<Option<BadStretch>> {
        self.write(1, take)?;
        Ok(self.bad.take().map(|bad| BadStretch {
            place: bad.place.to_string(),
            bytes: bad.written,
            why: bad.why,
            is_unknown: bad.is_unknown,
        }))
    }
}

/// A row in which no event begins at the expected place may be a piece of one.
fn may_have_slipped(item: &BadItem) -> bool {
    let begins = memchr::memchr(b'{', &item.bytes).is_some();
    item.table.as_ref().is_some_and(|table| table.shape.json.is_none() || !begins)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().get(..32).unwrap_or(&[0; 32]));
    hash
}

fn found_in<'a>(place: &'a InputPlace, outer: Option<&'a Outer>) -> FoundIn<'a> {
    FoundIn {
        file: Some(&place.file),
        line: Some(place.line),
        row: place.row,
        time: outer.and_then(|outer| outer.time.as_deref()),
        id: outer.and_then(|outer| outer.id.as_deref()),
        operation: outer.and_then(|outer| outer.operation.as_deref()),
        user: outer.and_then(|outer| outer.user.as_deref()),
    }
}
