//! Reads the records of one search that has succeeded, until two readings agree, and delivers what they hold together.
//!
//! The first reading only collects the keys of the records. The receipts show which of them were delivered before; the
//! later readings deliver the others, page by page. So only the keys of a window's records are in memory.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio_util::sync::CancellationToken;

use super::super::backfill::{SettleFailure, settle};
use super::super::backfill_requests::{BackfillProgress as Counted, Backfilling};
use super::super::context::FetchContext;
use super::judge::{self, RecordSpan};
use super::known::{self, EventIds};
use super::record::{GraphRecord, RecordFate};
use super::requests::HealProgress;
use crate::api::{GraphClient, GraphError, GraphQuery};
use crate::checkpoint::format::Keys;
use crate::checkpoint::heal::{LeftOut, StoredJob};
use crate::checkpoint::key::Key;
use crate::host::StateError;
use crate::model::{BlobRef, ContentType, Timestamp, Window};
use crate::normalise::GRAPH_CONTENT;

/// Readings of one search at most.
const READINGS_MAX: u32 = 10;
/// Up to this many records may be the same in two readings by chance.
const FEW: u64 = 100;
/// Events are delivered when they reach this many bytes.
const BODY_BYTES: usize = 512 * 1024;
/// The blob id of all events from Graph, whichever search returned them: events without an identity are distinguished
/// by their bytes alone.
const CONTENT: &str = "graph:records";

/// The result of reading a search.
#[derive(Debug, Default)]
pub(super) struct ReadResult {
    /// What the readings found together.
    pub found: RecordSpan,
    /// How often it was read.
    pub readings: u32,
    /// Two readings agreed, and all that they hold is delivered.
    pub agreed: bool,
    /// Events delivered now, by content type.
    pub events: HashMap<ContentType, u64>,
    /// Events from before the gap for which the state does not show whether they were delivered: they are left out.
    pub left_out: BTreeMap<ContentType, LeftOut>,
    /// Why the answer was truncated, if the window is too short for halves.
    pub is_cut: Option<String>,
    /// Why it is to be searched again in halves, and how many records lie in the first and the second half; `None` if
    /// these counts prove nothing.
    pub halve: Option<(String, Option<(u64, u64)>)>,
}

/// Why reading stopped early.
pub(super) enum ReadTrouble {
    Stopped,
    State(StateError),
    Graph(GraphError),
    /// Something else, in words.
    Other(String),
}

impl From<GraphError> for ReadTrouble {
    fn from(error: GraphError) -> Self {
        Self::Graph(error)
    }
}

impl From<StateError> for ReadTrouble {
    fn from(error: StateError) -> Self {
        match error {
            StateError::Unavailable(why) => Self::Other(format!("the state cannot be read now: {why}")),
            error => Self::State(error),
        }
    }
}

/// The state of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RecordState {
    /// Found, and not looked up.
    New(Option<Key>),
    /// To be delivered.
    Due,
    /// Delivered, already known, or outside the request.
    Done,
}

/// The context of a reading.
pub(super) struct SearchReader<'a> {
    pub context: &'a FetchContext,
    pub graph: &'a GraphClient,
    pub job: &'a StoredJob,
    pub content_types: &'a [ContentType],
    pub progress: &'a Arc<HealProgress>,
    pub stop: &'a CancellationToken,
    /// Pages of one reading at most.
    pub pages_max: u32,
    /// Microsoft's now.
    pub now: Timestamp,
}

/// A search that is being read.
pub(super) struct SearchReading<'a> {
    of: SearchReader<'a>,
    window: Window,
    records: HashMap<u128, RecordState>,
    /// Since when the state shows which events were delivered.
    reach: Option<Timestamp>,
    read: ReadResult,
    first_half: u64,
    /// Whether some record has no time.
    has_timeless: bool,
    bodies: HashMap<ContentType, (Vec<u8>, Vec<u128>)>,
}

impl<'a> SearchReading<'a> {
    pub(super) fn new(of: SearchReader<'a>, window: Window) -> Self {
        Self {
            of,
            window,
            records: HashMap::new(),
            reach: None,
            read: ReadResult::default(),
            first_half: 0,
            has_timeless: false,
            bodies: HashMap::new(),
        }
    }

    /// Reads a search. `others` are the numbers of records of the job's other windows, `expected` the count that the
    /// whole window had for this half.
    pub(super) async fn run(
        mut self,
        query: &GraphQuery,
        others: &[u64],
        expected: Option<u64>,
    ) -> Result<ReadResult, ReadTrouble> {
        let mut fingerprints: Vec<(u64, u128)> = Vec::new();
        while self.read.readings < READINGS_MAX {
            let fingerprint = self.read_once(&query.id).await?;
            self.read.readings += 1;
            if self.read.readings == 1 && self.must_halve(query, others, expected) {
                return Ok(self.read);
            }
            self.look_up().await?;
            let is_whole = fingerprint.0 == self.records.len() as u64;
            // A small result may repeat by chance. Fewer records than Graph announces are accepted when the result
            // stays the same for long.
            let same = fingerprints.iter().filter(|known| **known == fingerprint).count();
            let needed = match query.approximate {
                Some(said) if fingerprint.0 < said => 5,
                _ if fingerprint.0 < FEW => 2,
                _ => 1,
            };
            self.read.agreed = is_whole && same >= needed;
            fingerprints.push(fingerprint);
            let is_delivered = self.records.values().all(|seen| *seen == RecordState::Done);
            if self.read.agreed && is_delivered {
                break;
            }
            self.read.agreed = false;
        }
        Ok(self.read)
    }

    /// Whether the window is to be searched in halves instead.
    fn must_halve(&mut self, query: &GraphQuery, others: &[u64], expected: Option<u64>) -> bool {
        let span = self.window.end.duration_since(self.window.start);
        let found = self.read.found;
        let halves = (self.first_half, found.count.saturating_sub(self.first_half));
        self.read.halve = match judge::is_cut(query, &found) {
            Some(why) if span > judge::CUT_MIN => Some((why, None)),
            Some(why) => {
                self.read.is_cut = Some(why);
                None
            }
            None => judge::is_doubted(self.window, query, &found, others, expected).map(|why| (why, Some(halves))),
        };
        self.read.halve.is_some()
    }

    /// Reads all pages once; returns how many different records they hold, and a fingerprint of them.
    async fn read_once(&mut self, id: &str) -> Result<(u64, u128), ReadTrouble> {
        let middle = self.window.start + self.window.end.duration_since(self.window.start) / 2;
        let mut seen: HashSet<u128> = HashSet::new();
        let mut visited = HashSet::new();
        let mut link = None;
        let mut pages = 0;
        loop {
            pages += 1;
            if pages > self.of.pages_max {
                // Later pages were not read: two readings that both stop here agree without having seen them.
                return Err(ReadTrouble::Other(format!("it has more than {} pages", self.of.pages_max)));
            }
            let page = tokio::select! {
                page = self.of.graph.records(id, link.as_ref()) => page?,
                () = self.of.stop.cancelled() => return Err(ReadTrouble::Stopped),
            };
            self.read.found.is_cut |= page.is_cut;
            for bytes in &page.records {
                let record = GraphRecord::of(bytes);
                if !seen.insert(record.id) {
                    continue;
                }
                let is_new = !self.records.contains_key(&record.id);
                let state = *self.records.entry(record.id).or_insert(RecordState::New(record.twin));
                if is_new {
                    self.note(&record, middle);
                }
                if state == RecordState::Due {
                    self.collect(record).await?;
                }
            }
            if seen.len() as u64 > judge::RECORDS_MAX {
                break;
            }
            match page.next {
                None => break,
                Some(next) if visited.insert(next.clone()) => link = Some(next),
                Some(_) => return Err(ReadTrouble::Other("a page names one that was read as the next".into())),
            }
        }
        self.deliver_all().await?;
        let fingerprint = seen.iter().fold(0_u128, |sum, id| sum.wrapping_add(*id));
        Ok((seen.len() as u64, fingerprint))
    }

    fn note(&mut self, record: &GraphRecord, middle: Timestamp) {
        self.read.found.count += 1;
        if !record.is_event {
            tracing::warn!(
                tenant = %self.of.context.tenant,
                "a record of Microsoft Graph holds no event that can be read; it is delivered as it is"
            );
        }
        self.of.progress.records.fetch_add(1, Ordering::Relaxed);
        self.has_timeless |= record.time.is_none();
        if let Some(time) = record.time {
            self.read.found.note(time);
            self.first_half += u64::from(time < middle);
        }
    }

    /// When the first of them happened, or its window begins.
    fn since(&self) -> Timestamp {
        if self.has_timeless {
            return Timestamp::MIN;
        }
        self.read.found.between.map_or(self.window.start, |(first, _)| first.min(self.window.start))
    }

    /// Looks up which of the new records were delivered before. From the start of that look-up, the feed reports which
    /// of these records it delivers.
    async fn look_up(&mut self) -> Result<(), ReadTrouble> {
        let new: EventIds =
            self.records.iter().filter(|(_, seen)| matches!(seen, RecordState::New(_))).map(|(id, _)| *id).collect();
        if new.is_empty() {
            return Ok(());
        }
        let twins = self.records.values().filter_map(|seen| match seen {
            RecordState::New(twin) => *twin,
            RecordState::Due | RecordState::Done => None,
        });
        let context = self.of.context;
        context.healed.watch_for(twins.collect::<Vec<_>>());
        let mut known = EventIds::default();
        if context.keeps_receipts && !self.of.job.again {
            let keys = Keys::of(&context.tenant);
            let (found, reach) = known::by_receipts(&context.store, &keys, &new, self.since()).await?;
            (known, self.reach) = (found, reach);
        }
        self.of.progress.known.fetch_add(known.len() as u64, Ordering::Relaxed);
        for id in new {
            self.records.insert(id, if known.contains(&id) { RecordState::Done } else { RecordState::Due });
        }
        Ok(())
    }

    /// Collects a record that is to be delivered.
    async fn collect(&mut self, record: GraphRecord) -> Result<(), ReadTrouble> {
        let fate = record.fate(self.of.job, self.of.content_types, self.reach);
        let RecordFate::Deliver(content_type) = fate else {
            if let (RecordFate::NotKnown(content_type), Some(time)) = (fate, record.time) {
                self.leave_out(content_type, time);
            }
            self.records.insert(record.id, RecordState::Done);
            return Ok(());
        };
        let (body, ids) = self.bodies.entry(content_type).or_default();
        body.push(if body.is_empty() { b'[' } else { b',' });
        body.extend_from_slice(&record.event);
        ids.push(record.id);
        if body.len() >= BODY_BYTES { self.deliver(content_type).await } else { Ok(()) }
    }

    fn leave_out(&mut self, content_type: ContentType, time: Timestamp) {
        let first = || LeftOut { content_type: content_type.as_str().to_owned(), from: time, to: time, events: 0 };
        let left_out = self.read.left_out.entry(content_type).or_insert_with(first);
        left_out.events += 1;
        left_out.from = left_out.from.min(time);
        left_out.to = left_out.to.max(time);
    }

    async fn deliver_all(&mut self) -> Result<(), ReadTrouble> {
        for content_type in self.bodies.keys().copied().collect::<Vec<_>>() {
            self.deliver(content_type).await?;
        }
        Ok(())
    }

    /// Delivers the records collected for a content type, like a blob of the feed.
    async fn deliver(&mut self, content_type: ContentType) -> Result<(), ReadTrouble> {
        let Some((mut body, ids)) = self.bodies.remove(&content_type) else { return Ok(()) };
        body.push(b']');
        let counted = Arc::new(Counted::default());
        let again: Option<Arc<str>> = self.of.job.again.then(|| self.of.job.salt.as_str().into());
        let context = FetchContext {
            stop: self.of.stop.clone(),
            backfill: Some(Backfilling { progress: counted.clone(), again, healed: Some(body.into()) }),
            ..self.of.context.clone()
        };
        debug_assert!(CONTENT.starts_with(GRAPH_CONTENT));
        let blob = BlobRef {
            content_type,
            id: CONTENT.into(),
            uri: "".into(),
            // The time this program got it: reads held for data loss prevention wait from here on.
            created: self.of.now,
            expires: Timestamp::MAX,
        };
        match settle(context, blob).await {
            Ok(()) => {}
            Err(SettleFailure::Stopped) => return Err(ReadTrouble::Stopped),
            Err(SettleFailure::State(error)) => return Err(ReadTrouble::State(error)),
            Err(SettleFailure::Left(why)) => return Err(ReadTrouble::Other(why)),
        }
        let (events, repeated) = (counted.events.load(Ordering::Relaxed), counted.duplicates.load(Ordering::Relaxed));
        *self.read.events.entry(content_type).or_default() += events;
        self.of.progress.events.fetch_add(events, Ordering::Relaxed);
        self.of.progress.known.fetch_add(repeated, Ordering::Relaxed);
        for id in ids {
            self.records.insert(id, RecordState::Done);
        }
        Ok(())
    }
}
