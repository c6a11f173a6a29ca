//! Files to events on every core, in order and in bounded memory.
//!
//! One thread reads and cuts; the others find and restore each event and pass it to [`Make`]; the caller receives the
//! results in the order of the input. The bytes in between are bounded, so that a file may be of any size.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use bytes::Bytes;

use super::form::Form;
use super::input::{self, Input, InputError, StopReading, TextEnd, Texts};
use super::outer::Outer;
use super::place::InputPlace;
use super::restore::{Dialect, Loss, restore};
use super::table::Table;
use super::unit::TextUnit;
use super::units::Cutter;
use super::unwrap::{self, Inside, UnreadValue, UnwrappedEvent, is_plain};
use crate::normalise::Event;

/// One event that was read.
#[derive(Debug, Clone)]
pub struct ReadEvent {
    /// The event in the feed's form.
    pub bytes: Bytes,
    /// Where it was found.
    pub place: InputPlace,
    /// Its container.
    pub form: Form,
    beside: OuterData,
    /// The parts that its form had lost.
    pub losses: Vec<Loss>,
    /// The event without the members that were added from its wrapper; `None` if there were none.
    pub carried: Option<Bytes>,
    /// Whether it has two or more of the members that make an event's identity; some have but an `Id`.
    pub is_whole: bool,
}

/// The data beside an event.
#[derive(Debug, Clone)]
enum OuterData {
    Told(Outer),
    /// In the cells of its row, not parsed yet.
    Row(Arc<Table>, Bytes),
    /// In the members of its wrapper, not parsed yet.
    Wrapper(Bytes),
}

impl ReadEvent {
    fn new(bytes: Bytes, (place, form): (InputPlace, Form), beside: OuterData, event: &Event<'_>) -> ReadEvent {
        ReadEvent { bytes, place, form, beside, losses: Vec::new(), carried: None, is_whole: event.is_whole() }
    }

    /// The data that its row or wrapper has about it.
    pub fn outer(&self) -> Cow<'_, Outer> {
        match &self.beside {
            OuterData::Told(outer) => Cow::Borrowed(outer),
            OuterData::Row(table, row) => Cow::Owned(table.beside(row)),
            OuterData::Wrapper(wrapper) => Cow::Owned(unwrap::beside(wrapper)),
        }
    }
}

/// Bytes without an event, or whose event cannot be read.
#[derive(Debug, Clone)]
pub struct BadItem {
    /// The bytes: of a row all of it.
    pub bytes: Bytes,
    /// Where they begin.
    pub place: InputPlace,
    /// Why, in words.
    pub why: String,
    /// The data that their row or wrapper has about them.
    pub outer: Outer,
    /// Whether they are valid JSON but not an event.
    pub is_unknown: bool,
    /// The table of which they are a row.
    pub table: Option<Arc<Table>>,
}

/// The conversion of an event, on any thread.
pub trait Make: Sync {
    /// The result beside the bytes.
    type Made: Send;
    /// Bytes that are set aside for the output of one byte of input; more are taken when they are needed.
    const OUTPUT_PER_INPUT: usize = 2;
    /// Appends the output for an event to `out`. `event` is that of `read.bytes`.
    fn make(&self, read: &ReadEvent, event: &Event<'_>, out: &mut Vec<u8>) -> Self::Made;
}

/// An item of the output, in order.
#[derive(Debug)]
pub enum Item<'a, M> {
    /// An event, its result, and the bytes appended for it.
    Event(&'a ReadEvent, M, &'a [u8]),
    /// Bytes that are not an event.
    Bad(&'a BadItem),
    /// A record of this program without an event: its `event_type`.
    Notice(&'a str),
    /// An input could not be read, or only in part.
    Problem(InputError),
    /// The answer at this place declares that it lacks rows.
    Truncated(&'a InputPlace),
    /// A note on an unusual reading.
    Note(String),
    /// The input has no more data for now, so the output should be flushed.
    Pause,
}

/// Receives the items, and may stop the run.
pub type ItemSink<'t, M> = dyn FnMut(Item<'_, M>) -> Result<(), StopReading> + 't;

/// Reads everything, until `take` stops it.
pub fn read<K: Make>(inputs: Vec<Input<'_>>, make: &K, take: &mut ItemSink<'_, K::Made>) -> Result<(), StopReading> {
    let workers = thread::available_parallelism().map_or(1, |cores| cores.get().min(WORKERS_MAX));
    let bytes_max = IN_FLIGHT_BYTES_MAX.min((2 * workers + QUEUE) * READ_BYTES);
    let gate = FlightGate { bytes_max, ..FlightGate::default() };
    let (work_in, work_out) = sync_channel(QUEUE);
    let work_out = Mutex::new(work_out);
    let (done_in, done_out) = channel();
    thread::scope(|scope| {
        let reader = CuttingReader { gate: &gate, number: 0, work: work_in, done: done_in.clone() };
        scope.spawn(|| {
            let _closed = gate.closed_on_panic();
            reader.read_all(inputs);
        });
        for _ in 0..workers {
            let (work, done) = (&work_out, done_in.clone());
            let gate = &gate;
            scope.spawn(move || {
                let _closed = gate.closed_on_panic();
                work_all(work, &done, make);
            });
        }
        drop(done_in);
        let result = take_all(&done_out, &gate, take);
        gate.close();
        result
    })
}

const WORKERS_MAX: usize = 16;
/// Batches that wait for a worker.
const QUEUE: usize = 4;
/// The most bytes of input between the reader and the receiver; the output for them is several times larger.
const IN_FLIGHT_BYTES_MAX: usize = 4 * 1024 * 1024;
const READ_BYTES: usize = 128 * 1024;

/// Units that are processed together.
struct UnitBatch {
    number: u64,
    bytes: usize,
    units: Vec<TextUnit>,
}

/// The results of a batch.
struct BatchDone<M> {
    number: u64,
    bytes: usize,
    items: Vec<DoneItem<M>>,
    /// The bytes appended for its events.
    out: Vec<u8>,
}

enum DoneItem<M> {
    Event(ReadEvent, M, Range<usize>),
    Bad(BadItem),
    Notice(String),
    Problem(InputError),
    Truncated(InputPlace),
    Note(String),
}

/// Blocks the reader while too much is in flight.
#[derive(Default)]
struct FlightGate {
    /// The bytes that may be in flight.
    bytes_max: usize,
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    bytes: usize,
    is_closed: bool,
}

impl FlightGate {
    /// Waits for room; a unit larger than the limit passes alone.
    fn enter(&self, bytes: usize) -> Result<(), StopReading> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.is_closed && state.bytes > 0 && state.bytes + bytes > self.bytes_max {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.is_closed {
            return Err(StopReading);
        }
        state.bytes += bytes;
        Ok(())
    }

    fn leave(&self, bytes: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.bytes = state.bytes.saturating_sub(bytes);
        self.changed.notify_all();
    }

    fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_closed = true;
        self.changed.notify_all();
    }

    /// A thread that panics must not leave the others waiting for it.
    fn closed_on_panic(&self) -> impl Drop + '_ {
        struct Guard<'g>(&'g FlightGate);
        impl Drop for Guard<'_> {
            fn drop(&mut self) {
                if thread::panicking() {
                    self.0.close();
                }
            }
        }
        Guard(self)
    }
}

/// Reads and cuts.
struct CuttingReader<'g, M> {
    gate: &'g FlightGate,
    number: u64,
    work: SyncSender<UnitBatch>,
    done: Sender<BatchDone<M>>,
}

impl<M: Send> CuttingReader<'_, M> {
    fn read_all(mut self, inputs: Vec<Input<'_>>) {
        for input in inputs {
            if input::read(input, &mut self).is_err() {
                return;
            }
        }
    }

    fn send(&mut self, units: Vec<TextUnit>, bytes: usize) -> Result<(), StopReading> {
        self.gate.enter(bytes)?;
        let number = self.number;
        self.number += 1;
        self.work.send(UnitBatch { number, bytes, units }).map_err(|_| StopReading)
    }

    fn say(&mut self, item: DoneItem<M>) {
        let number = self.number;
        self.number += 1;
        // The receiver may be gone.
        let _ = self.done.send(BatchDone { number, bytes: 0, items: vec![item], out: Vec::new() });
    }
}

impl<M: Send> Texts for CuttingReader<'_, M> {
    fn text(&mut self, name: &Arc<str>, text: &mut dyn Read) -> Result<(), TextEnd> {
        let mut cutter = Cutter::new(name.clone());
        let mut buffer = vec![0; READ_BYTES];
        let mut pending = 0;
        loop {
            let read = match text.read(&mut buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    // The readable part is output, and then the error.
                    let mut units = Vec::new();
                    cutter.finish(&mut units);
                    self.send(units, pending).map_err(|StopReading| TextEnd::Stop)?;
                    return Err(TextEnd::Read(error));
                }
            };
            let mut units = Vec::new();
            match read {
                0 => cutter.finish(&mut units),
                _ => cutter.push(buffer.get(..read).unwrap_or_default(), &mut units),
            }
            pending += read;
            if !units.is_empty() {
                self.send(units, pending).map_err(|StopReading| TextEnd::Stop)?;
                pending = 0;
            }
            if read == 0 {
                return Ok(());
            }
        }
    }

    fn problem(&mut self, error: InputError) {
        self.say(DoneItem::Problem(error));
    }

    fn note(&mut self, note: String) {
        self.say(DoneItem::Note(note));
    }
}

fn work_all<K: Make>(work: &Mutex<Receiver<UnitBatch>>, done: &Sender<BatchDone<K::Made>>, make: &K) {
    let mut inside = Vec::new();
    loop {
        let next = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(UnitBatch { number, bytes, units }) = next else { return };
        let mut worked = BatchDone {
            number,
            bytes,
            items: Vec::with_capacity(units.len()),
            out: Vec::with_capacity(K::OUTPUT_PER_INPUT * bytes),
        };
        for unit in units {
            work_unit(unit, &mut inside, make, &mut worked);
        }
        if done.send(worked).is_err() {
            return;
        }
    }
}

fn work_unit<K: Make>(unit: TextUnit, inside: &mut Vec<Inside>, make: &K, done: &mut BatchDone<K::Made>) {
    let (place, whole, table) = match unit {
        TextUnit::Damage { bytes, place, why } => {
            let (why, outer) = (why.to_owned(), Outer::default());
            let bad = BadItem { bytes, place, why, outer, is_unknown: false, table: None };
            return done.items.push(DoneItem::Bad(bad));
        }
        TextUnit::Truncated { place } => return done.items.push(DoneItem::Truncated(place)),
        TextUnit::Value { bytes, place, is_prefixed } => {
            if !is_prefixed
                && let Some((found, form)) = unwrap::carried(&bytes)
                && let Ok(event) = Event::parse(&found)
                && is_plain(&event)
                && unwrap::dialect_of(&found) == Dialect::Feed
            {
                let read = ReadEvent::new(found.clone(), (place, form), OuterData::Wrapper(bytes), &event);
                return done.event(read, &event, make);
            }
            if !is_prefixed
                && let Ok(event) = Event::parse(&bytes)
                && is_plain(&event)
                && unwrap::dialect_of(&bytes) == Dialect::Feed
            {
                let read =
                    ReadEvent::new(bytes.clone(), (place, Form::Feed), OuterData::Told(Outer::default()), &event);
                return done.event(read, &event, make);
            }
            unwrap::unwrap(&bytes, is_prefixed, inside);
            (place, bytes, None)
        }
        TextUnit::Row { table, bytes, place } => {
            if let Some((found, form)) = table.carried(&bytes)
                && let Ok(event) = Event::parse(&found)
                && is_plain(&event)
            {
                let read = ReadEvent::new(found.clone(), (place, form), OuterData::Row(table, bytes), &event);
                return done.event(read, &event, make);
            }
            table.read(&bytes, inside);
            (place, bytes, Some(table))
        }
    };
    let is_one = table.is_some() || inside.len() == 1;
    for found in inside.drain(..) {
        match found {
            Inside::Event(found) => {
                let whole = if is_one { whole.clone() } else { found.event.clone() };
                work_found(found, (&place, whole, &table), make, done);
            }
            Inside::Unread(UnreadValue { bytes, why, outer, is_unknown }) => {
                let bad = BadItem { bytes, place: place.clone(), why, outer, is_unknown, table: table.clone() };
                done.items.push(DoneItem::Bad(bad));
            }
            Inside::Notice(kind) => done.items.push(DoneItem::Notice(kind)),
        }
    }
}

/// Converts an event back to the feed's form. If that fails, `whole` is output.
fn work_found<K: Make>(
    found: UnwrappedEvent,
    (place, whole, table): (&InputPlace, Bytes, &Option<Arc<Table>>),
    make: &K,
    done: &mut BatchDone<K::Made>,
) {
    let UnwrappedEvent { event: bytes, form, dialect, outer } = found;
    let place = place.clone();
    if dialect == Dialect::Feed
        && let Ok(event) = Event::parse(&bytes)
        && is_plain(&event)
    {
        let read = ReadEvent::new(bytes.clone(), (place, form), OuterData::Told(outer), &event);
        return done.event(read, &event, make);
    }
    let bad = |why, outer, place| {
        DoneItem::Bad(BadItem { bytes: whole, place, why, outer, is_unknown: false, table: table.clone() })
    };
    match restore(&bytes, &outer, dialect) {
        Ok(restored) => match Event::parse(&restored.event) {
            Ok(event) => {
                let carried = restored.is_completed.then(|| restore(&bytes, &Outer::default(), dialect).ok()).flatten();
                let carried = carried.map_or_else(Bytes::new, |restored| restored.event);
                let carried = restored.is_completed.then_some(carried);
                let read = ReadEvent::new(restored.event.clone(), (place, form), OuterData::Told(outer), &event);
                done.event(ReadEvent { losses: restored.losses, carried, ..read }, &event, make);
            }
            Err(error) => done.items.push(bad(error.to_string(), outer, place)),
        },
        Err(error) => done.items.push(bad(format!("the event {error}"), outer, place)),
    }
}

impl<M> BatchDone<M> {
    fn event<K: Make<Made = M>>(&mut self, read: ReadEvent, event: &Event<'_>, make: &K) {
        let start = self.out.len();
        let made = make.make(&read, event, &mut self.out);
        self.items.push(DoneItem::Event(read, made, start..self.out.len()));
    }
}

/// Passes on the results, in the order of the input.
fn take_all<M>(
    done: &Receiver<BatchDone<M>>,
    gate: &FlightGate,
    take: &mut ItemSink<'_, M>,
) -> Result<(), StopReading> {
    let mut waiting = BTreeMap::new();
    let mut next = 0;
    while let Ok(worked) = done.recv() {
        waiting.insert(worked.number, worked);
        while let Some(BatchDone { bytes, items, out, .. }) = waiting.remove(&next) {
            next += 1;
            for item in items {
                match item {
                    DoneItem::Event(read, made, range) => {
                        take(Item::Event(&read, made, out.get(range).unwrap_or_default()))?;
                    }
                    DoneItem::Bad(bad) => take(Item::Bad(&bad))?,
                    DoneItem::Notice(kind) => take(Item::Notice(&kind))?,
                    DoneItem::Problem(error) => take(Item::Problem(error))?,
                    DoneItem::Truncated(place) => take(Item::Truncated(&place))?,
                    DoneItem::Note(note) => take(Item::Note(note))?,
                }
            }
            take(Item::Pause)?;
            gate.leave(bytes);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
