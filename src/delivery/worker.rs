//! The queue in front of a sink and the task that empties it. The documentation of `delivery` has its rules.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, select_all};
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::account::{Account, BatchSettled, Confirm};
use super::evidence::{Evidence, RetryDecision};
use super::kind::AnswerKind;
use super::unit::{BatchPiece, RETRY, SendUnit};
use super::{
    GROUP_BATCHES_MAX, GROUP_BYTES_MAX, GroupBounds, LOOK_EVERY, Observer, QUEUE_BATCHES_MAX, QUEUE_BYTES_MAX,
    SLOW_HINT, Sink, Written,
};
use crate::backoff::Failures;
use crate::clock::Clock;
use crate::host::Batch;

/// A group is written when no batch arrived for this part of its age.
const QUIET_PART: u32 = 10;
/// While requests are in flight, their age is checked this often.
const AGE_EVERY: Duration = Duration::from_secs(5);
/// A record that was refused by itself this often waits for another to compare it with.
const REFUSALS_TO_REPORT: u32 = 5;

struct Queued {
    batch: Batch,
    confirm: Confirm,
    /// A permit of the queue, released as its records are settled.
    room: OwnedSemaphorePermit,
}

/// A running sink: its queue and its task.
pub struct Worker {
    /// Unique in this process, so that a receipt of a sink that was replaced never counts for its successor.
    pub id: u32,
    /// The sink's name.
    pub name: Arc<str>,
    queue: mpsc::Sender<Queued>,
    /// Separate from the queue: trials are answered even while that is full.
    trials: mpsc::Sender<Queued>,
    room: Arc<Semaphore>,
    drain: CancellationToken,
    abort: CancellationToken,
    task: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Worker {
    /// Starts the worker on the current runtime.
    pub fn start(name: &str, sink: Box<dyn Sink>, clock: Arc<dyn Clock>, observer: Arc<dyn Observer>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let (queue, queued) = mpsc::channel(QUEUE_BATCHES_MAX);
        let (trials, tried) = mpsc::channel(1);
        let name: Arc<str> = name.into();
        let room = Arc::new(Semaphore::new(QUEUE_BYTES_MAX));
        let (drain, abort) = (CancellationToken::new(), CancellationToken::new());
        let mut sinks = sink.beside();
        let (bounds, is_sequential) = (sink.bounds(), sink.is_sequential());
        let (answer_expected, notices) = (sink.answer_expected(), sink.notices());
        let look = notices.as_ref().map(|_| clock.sleep(LOOK_EVERY));
        sinks.push(sink);
        let feeder = Feeder {
            name: name.clone(),
            bounds: GroupBounds {
                bytes: bounds.bytes.min(GROUP_BYTES_MAX),
                batches: bounds.batches.min(GROUP_BATCHES_MAX),
                ..bounds
            },
            lanes: sinks.len(),
            is_sequential,
            answer_expected,
            notices,
            looking: None,
            idle: sinks,
            queued,
            tried,
            ended: false,
            group: Group::default(),
            next: None,
            ready: VecDeque::new(),
            parked: Vec::new(),
            under_way: BTreeMap::new(),
            repairing: 0,
            repaired_last: false,
            sent: 0,
            evidence: Evidence::default(),
            held: None,
            pauses: Pauses { look, ..Pauses::default() },
            reported: Reported::default(),
            room: room.clone(),
            drain: drain.clone(),
            abort: abort.clone(),
            clock,
            observer,
        };
        let task = Mutex::new(Some(tokio::spawn(feeder.run())));
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), name, queue, trials, room, drain, abort, task }
    }

    /// Queues a batch; waits while the queue is full. A worker that stops refuses through `confirm`.
    pub async fn enqueue(&self, batch: Batch, confirm: Confirm) {
        let is_trial = batch.is_trial();
        let bytes = if is_trial { 0 } else { batch.ndjson().len().min(QUEUE_BYTES_MAX) };
        // `QUEUE_BYTES_MAX` fits: a semaphore counts permits in 32 bits.
        let Ok(room) = self.room.clone().acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX)).await else {
            return;
        };
        // An error returns the batch, and dropping its confirmation refuses it.
        let queue = if is_trial { &self.trials } else { &self.queue };
        let _ = queue.send(Queued { batch, confirm, room }).await;
    }

    /// Stops taking batches and writes those it has; batches not written after `grace` are refused. Returns when the
    /// worker has ended.
    pub async fn stop(&self, grace: Duration, clock: &dyn Clock) {
        self.drain.cancel();
        let task = self.task.lock().take();
        let Some(mut task) = task else { return };
        tokio::select! {
            _ = &mut task => return,
            () = clock.sleep(grace) => self.abort.cancel(),
        }
        let _ = task.await;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.abort.cancel();
    }
}

/// The data kept for a request in flight.
struct UnderWay {
    began: Duration,
    /// Whether it must be the only one.
    is_quiet: bool,
    /// How often it was refused before, and why; 0 if that is not a fault.
    refusals: u32,
    why: String,
}

/// A request in flight.
struct SentUnit {
    unit: SendUnit,
    /// Whether no other was in flight when it began.
    began_quiet: bool,
    is_repair: bool,
}

/// A returned sink, with the request and its answers; without them after a check.
type Back = (Box<dyn Sink>, Option<(SentUnit, Vec<Written>)>);

/// Sends a request; without one, checks the destination.
async fn send(mut sink: Box<dyn Sink>, sent: Option<SentUnit>) -> Back {
    match sent {
        Some(sent) => {
            let written = sink.write(&sent.unit.batches()).await;
            (sink, Some((sent, written)))
        }
        None => {
            sink.look().await;
            (sink, None)
        }
    }
}

/// Batches to be written together, oldest first.
#[derive(Default)]
struct Group {
    pieces: Vec<BatchPiece>,
    bytes: usize,
    records: usize,
    /// Futures that resolve when the group has waited long enough, and when no batch has come for a while; `None` once
    /// one of them has resolved, or when the group does not wait.
    young: Option<[BoxFuture<'static, ()>; 2]>,
}

impl Group {
    /// Whether a batch fits beside the present ones.
    fn has_room_for(&self, batch: &Batch, bounds: &GroupBounds) -> bool {
        self.pieces.is_empty()
            || self.pieces.len() < bounds.batches
                && self.bytes + batch.ndjson().len() <= bounds.bytes
                && self.records + batch.len() <= bounds.records
    }

    fn is_full(&self, bounds: &GroupBounds) -> bool {
        self.pieces.len() >= bounds.batches || self.bytes >= bounds.bytes || self.records >= bounds.records
    }

    fn push(&mut self, piece: BatchPiece) {
        self.bytes += piece.bytes();
        self.records += piece.batch.len();
        self.pieces.push(piece);
    }
}

/// The pauses of a worker.
#[derive(Default)]
struct Pauses {
    /// The end on the monotonic clock, whether the receiver requested it, and a future that resolves then.
    all: Option<(Duration, bool, BoxFuture<'static, ()>)>,
    failures: Option<Failures>,
    /// When the first waiting request may be sent, and a future that resolves then.
    due: Option<(Duration, BoxFuture<'static, ()>)>,
    /// The next check of the age of requests.
    age: Option<BoxFuture<'static, ()>>,
    /// The next check of a destination by its sink.
    look: Option<BoxFuture<'static, ()>>,
}

impl Pauses {
    fn hold(&mut self, clock: &dyn Clock) {
        let delay = self.failures.get_or_insert_with(|| RETRY.failures()).pause();
        self.until(delay, false, clock);
    }

    /// Starts a pause; a running one is only extended.
    fn until(&mut self, delay: Duration, is_asked: bool, clock: &dyn Clock) {
        let until = clock.monotonic().saturating_add(delay);
        if self.all.as_ref().is_none_or(|(known, ..)| *known < until) {
            self.all = Some((until, is_asked, clock.sleep(delay)));
        }
    }

    /// Records were accepted: ends every pause that the receiver did not request.
    fn lift(&mut self) {
        self.failures = None;
        self.all.take_if(|(_, is_asked, _)| !*is_asked);
    }
}

/// The last report to the observer.
#[derive(Default)]
struct Reported {
    trouble: Option<String>,
    is_held: bool,
    age_secs: u64,
    refusals: u64,
}

/// Resolves with the first of `waits`; never, if there are none.
async fn over(waits: Option<&mut [BoxFuture<'static, ()>]>) {
    match waits {
        Some(waits) => drop(select_all(waits).await),
        None => std::future::pending().await,
    }
}

/// As [`over`], for one.
async fn passed(wait: Option<&mut BoxFuture<'static, ()>>) {
    over(wait.map(std::slice::from_mut)).await;
}

/// The worker's task.
struct Feeder {
    name: Arc<str>,
    bounds: GroupBounds,
    /// How many requests the sink can have in flight.
    lanes: usize,
    /// Whether refused requests are retried before any other.
    is_sequential: bool,
    answer_expected: Duration,
    /// Faults that the sink finds beside its writes.
    notices: Option<watch::Receiver<Option<String>>>,
    /// Since when a sink has been checking its destination.
    looking: Option<Duration>,
    /// The idle sinks. The last is the one used most recently, so that a quiet worker uses one connection.
    idle: Vec<Box<dyn Sink>>,
    queued: mpsc::Receiver<Queued>,
    tried: mpsc::Receiver<Queued>,
    /// The queue is closed and empty.
    ended: bool,
    group: Group,
    /// A batch taken from the queue that does not fit into the group.
    next: Option<Queued>,
    /// Never sent, and to be sent before the group: parts of a batch that is too large for one request.
    ready: VecDeque<SendUnit>,
    /// Refused requests, or parts of them.
    parked: Vec<SendUnit>,
    /// The requests in flight, by their numbers.
    under_way: BTreeMap<u64, UnderWay>,
    /// How many of them come from `parked`.
    repairing: usize,
    repaired_last: bool,
    /// Requests begun.
    sent: u64,
    evidence: Evidence,
    /// The last answer while nothing is accepted.
    held: Option<(AnswerKind, String)>,
    pauses: Pauses,
    reported: Reported,
    room: Arc<Semaphore>,
    drain: CancellationToken,
    abort: CancellationToken,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn Observer>,
}

impl Feeder {
    async fn run(mut self) {
        let abort = self.abort.clone();
        let (observer, name) = (self.observer.clone(), self.name.clone());
        observer.held_back(&name, false);
        observer.oldest_request(&name, Duration::ZERO);
        let closed = tokio::select! {
            biased;
            () = abort.cancelled() => None,
            closed = self.feed() => closed,
        };
        if let Some(why) = closed {
            tracing::error!(sink = %name, why, "sink is closed");
            observer.closed(&name, &why);
        }
        // Dropping the rest refuses it.
    }

    /// Feeds the sink until stopped, or until it is closed (`Some(why)`).
    async fn feed(&mut self) -> Option<String> {
        let mut writing = FuturesUnordered::new();
        loop {
            self.collect();
            // One reading for both: a request that becomes due between two of them would be neither sent nor waited for.
            let now = self.clock.monotonic();
            if let Some((sink, sent)) = self.begin_next(now) {
                writing.push(send(sink, Some(sent)));
                continue;
            }
            self.report();
            if self.ended && writing.is_empty() && self.is_empty() {
                for sink in &mut self.idle {
                    sink.close().await;
                }
                return None;
            }
            self.arm(now);
            let has_room = self.next.is_none() && self.ready.is_empty() && !self.group.is_full(&self.bounds);
            let pause = self.pauses.all.as_mut().map(|(.., pause)| pause);
            let due = self.pauses.due.as_mut().map(|(_, due)| due);
            let young = self.group.young.as_mut().map(|waits| &mut waits[..]);
            let look = self.pauses.look.as_mut().filter(|_| !self.idle.is_empty());
            tokio::select! {
                biased;
                Some((sink, back)) = writing.next() => match back {
                    Some((sent, written)) => {
                        if let Some(why) = self.settle(sink, sent, written) {
                            self.close_queue();
                            return Some(why);
                        }
                    }
                    None => {
                        self.looking = None;
                        self.idle.push(sink);
                    }
                },
                () = passed(pause) => self.pauses.all = None,
                () = passed(due) => self.pauses.due = None,
                () = passed(self.pauses.age.as_mut()) => self.pauses.age = None,
                Some(Queued { batch, confirm, room }) = self.tried.recv() => {
                    let account = Account::new(batch.len(), confirm, room);
                    self.parked.push(SendUnit::new(vec![BatchPiece::whole(batch, account)]));
                }
                () = self.drain.cancelled(), if !self.queued.is_closed() => self.close_queue(),
                next = self.queued.recv(), if has_room && !self.ended => match next {
                    Some(next) => self.take(next),
                    None => self.ended = true,
                },
                () = over(young) => self.group.young = None,
                () = passed(look) => {
                    self.pauses.look = Some(self.clock.sleep(LOOK_EVERY));
                    if let Some(sink) = self.idle.pop() {
                        self.looking = Some(self.clock.monotonic());
                        writing.push(send(sink, None));
                    }
                }
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.has_nothing_new() && self.parked.is_empty()
    }

    fn has_nothing_new(&self) -> bool {
        self.group.pieces.is_empty() && self.next.is_none() && self.ready.is_empty() && self.queued.is_empty()
    }

    /// Sets the timers that are needed at `now`, the time for which [`Self::begin_next`] found nothing to send.
    fn arm(&mut self, now: Duration) {
        // While it holds back, one pause applies to all.
        let waits = self.parked.iter().filter(|_| !self.evidence.is_holding());
        let due = waits.map(|unit| unit.due).filter(|due| *due > now).min();
        match (due, &self.pauses.due) {
            (None, _) => self.pauses.due = None,
            (Some(due), Some((known, _))) if *known == due => {}
            (Some(due), _) => self.pauses.due = Some((due, self.clock.sleep(due - now))),
        }
        if self.under_way.is_empty() && self.looking.is_none() {
            self.pauses.age = None;
        } else if self.pauses.age.is_none() {
            self.pauses.age = Some(self.clock.sleep(AGE_EVERY));
        }
    }

    /// Closes the queue: callers that wait for room are refused.
    fn close_queue(&mut self) {
        self.queued.close();
        self.tried.close();
        self.room.close();
    }

    /// Moves queued batches into the group, as many as fit.
    fn collect(&mut self) {
        if let Some(next) = self.next.take() {
            self.take(next);
        }
        while self.next.is_none() && self.ready.is_empty() && !self.group.is_full(&self.bounds) {
            match self.queued.try_recv() {
                Ok(next) => self.take(next),
                Err(mpsc::error::TryRecvError::Empty) => break,
                Err(mpsc::error::TryRecvError::Disconnected) => {
                    self.ended = true;
                    break;
                }
            }
        }
    }

    fn take(&mut self, queued: Queued) {
        if !self.group.has_room_for(&queued.batch, &self.bounds) {
            self.next = Some(queued);
            return;
        }
        let Queued { batch, confirm, room } = queued;
        let account = Account::new(batch.len(), confirm, room);
        let piece = BatchPiece::whole(batch, account);
        if piece.bytes() > self.bounds.bytes || piece.batch.len() > self.bounds.records {
            let parts = piece.batch.cut(self.bounds.bytes, self.bounds.records);
            self.ready.extend(parts.into_iter().map(|part| SendUnit::new(vec![piece.part(part)])));
            return;
        }
        if !self.bounds.age.is_zero() {
            let quiet = self.clock.sleep(self.bounds.age / QUIET_PART);
            match &mut self.group.young {
                Some([_, known]) => *known = quiet,
                None if self.group.pieces.is_empty() => {
                    self.group.young = Some([self.clock.sleep(self.bounds.age), quiet]);
                }
                None => {}
            }
        }
        self.group.push(piece);
    }

    // ---- sending ----

    /// The next request to send, and its lane.
    fn begin_next(&mut self, now: Duration) -> Option<(Box<dyn Sink>, SentUnit)> {
        if self.idle.is_empty() {
            return None;
        }
        let (unit, is_repair) = self.choose(now)?;
        let sink = self.idle.pop()?;
        self.repaired_last = is_repair;
        self.repairing += usize::from(is_repair);
        self.sent += 1;
        let began_quiet = self.under_way.is_empty();
        let refusals = if is_waiting(&unit) { unit.refusals } else { 0 };
        let why = if refusals > 0 { unit.why.clone() } else { String::new() };
        self.under_way.insert(self.sent, UnderWay { began: now, is_quiet: unit.wants_quiet, refusals, why });
        Some((sink, SentUnit { unit: SendUnit { sent: self.sent, ..unit }, began_quiet, is_repair }))
    }

    fn choose(&mut self, now: Duration) -> Option<(SendUnit, bool)> {
        if self.is_sequential
            && let Some(at) = self.parked.iter().position(|unit| unit.refusals_ever > 0)
        {
            let may_be_sent = self.evidence.is_holding() || self.parked.get(at).is_some_and(|unit| unit.due <= now);
            return (self.pauses.all.is_none() && may_be_sent).then(|| (self.parked.remove(at), true));
        }
        if let Some(at) = self.parked.iter().position(SendUnit::is_trial) {
            return Some((self.parked.remove(at), true));
        }
        if self.pauses.all.is_some() {
            return None;
        }
        let idle = self.under_way.is_empty();
        if self.under_way.values().any(|other| other.is_quiet) {
            return None;
        }
        if self.evidence.is_holding() {
            return if idle { self.probe() } else { None };
        }
        let due = |unit: &SendUnit| unit.due <= now;
        if let Some(at) = self.parked.iter().position(|unit| unit.wants_quiet && due(unit)) {
            return idle.then(|| (self.parked.remove(at), true));
        }
        if self.evidence.is_careful() && !idle {
            return None;
        }
        // The smallest first: it identifies a bad record soonest.
        let waits = self.parked.iter().enumerate().filter(|(_, unit)| due(unit));
        let repair = waits.min_by_key(|(_, unit)| (unit.records(), unit.sent)).map(|(at, _)| at);
        let has_fresh = self.has_fresh();
        let may_repair = match self.lanes {
            2.. if !self.evidence.is_careful() => self.repairing < self.lanes / 2,
            _ => !self.repaired_last,
        };
        match repair {
            Some(at) if may_repair || !has_fresh => Some((self.parked.remove(at), true)),
            _ => self.fresh().map(|unit| (unit, false)),
        }
    }

    /// The probe while nothing is accepted: alternates between requests never sent and the one sent longest ago; of
    /// rejected ones, a single record.
    fn probe(&mut self) -> Option<(SendUnit, bool)> {
        self.evidence.probes += 1;
        if self.evidence.probes.is_multiple_of(2)
            && let Some(unit) = self.fresh()
        {
            return Some((unit, false));
        }
        let oldest = self.parked.iter().enumerate().min_by_key(|(_, unit)| unit.sent).map(|(at, _)| at);
        let Some(at) = oldest else { return self.fresh().map(|unit| (unit, false)) };
        let unit = self.parked.remove(at);
        if unit.records() < 2 || !self.evidence.probes_with_one(&unit) {
            return Some((unit, true));
        }
        if let Some(sink) = self.idle.last_mut() {
            sink.forget(&unit.batches());
        }
        let (one, rest) = unit.split_off_one();
        self.parked.extend(rest.map(|rest| SendUnit { sent: self.sent + 1, ..rest }));
        Some((one, true))
    }

    fn has_fresh(&self) -> bool {
        let group = &self.group;
        let is_whole =
            group.young.is_none() || group.is_full(&self.bounds) || self.next.is_some() || self.queued.is_closed();
        !self.ready.is_empty() || !group.pieces.is_empty() && is_whole
    }

    fn fresh(&mut self) -> Option<SendUnit> {
        if !self.has_fresh() {
            return None;
        }
        // A batch larger than a request came after the group.
        if !self.group.pieces.is_empty() {
            return Some(SendUnit::new(std::mem::take(&mut self.group).pieces));
        }
        self.ready.pop_front()
    }

    // ---- outcomes ----

    /// Settles the accepted records and decides on the others; returns why the destination is gone, if it is.
    fn settle(&mut self, mut sink: Box<dyn Sink>, sent: SentUnit, written: Vec<Written>) -> Option<String> {
        let SentUnit { mut unit, began_quiet, is_repair } = sent;
        self.under_way.remove(&unit.sent);
        self.repairing -= usize::from(is_repair);
        let was_quiet = began_quiet && self.sent == unit.sent;
        let mut written = written.into_iter();
        let (mut closed, mut taken) = (None, false);
        let mut refused: Vec<(BatchPiece, Written)> = Vec::new();
        for piece in std::mem::take(&mut unit.pieces) {
            // A sink that returns fewer answers than batches has not confirmed the rest.
            match written.next().unwrap_or_else(|| Written::refused("the sink gave no answer")) {
                Written::Delivered => {
                    taken = true;
                    self.observer.confirmed(&self.name, piece.batch.len() as u64);
                    piece.delivered();
                }
                Written::Closed(why) => {
                    piece.end(BatchSettled::Refused(why.clone()));
                    closed = Some(why);
                }
                answer => refused.push((piece, answer)),
            }
        }
        if taken {
            self.took(&unit);
        }
        if let Some((_, first)) = refused.first() {
            let first = first.clone();
            let is_one = refused.iter().all(|(_, answer)| AnswerKind::of(answer) == AnswerKind::of(&first));
            if is_one {
                unit.pieces = refused.into_iter().map(|(piece, _)| piece).collect();
                self.refused(&mut *sink, unit, &first, was_quiet);
            } else {
                for (piece, answer) in refused {
                    self.refused(
                        &mut *sink,
                        SendUnit { is_part: true, ..SendUnit::new(vec![piece]) },
                        &answer,
                        was_quiet,
                    );
                }
            }
        }
        self.idle.push(sink);
        closed
    }

    /// Records were accepted: requests that waited because of that may continue.
    fn took(&mut self, unit: &SendUnit) {
        let (was_holding, taken_before) = (self.evidence.is_holding(), self.evidence.taken);
        self.evidence.took(unit);
        self.held = None;
        self.pauses.lift();
        let now = self.clock.monotonic();
        for other in &mut self.parked {
            if was_holding {
                other.acquit(now, taken_before, unit.is_part);
            } else if other.alone >= REFUSALS_TO_REPORT {
                other.due = other.due.min(now);
            }
        }
    }

    fn refused(&mut self, sink: &mut dyn Sink, mut unit: SendUnit, answer: &Written, was_quiet: bool) {
        let (Some(kind), Some(why)) = (AnswerKind::of(answer), answer.why()) else { return };
        self.observer.refused(&self.name);
        self.reported.refusals += 1;
        if unit.is_trial() {
            let settled = match kind {
                AnswerKind::Moment | AnswerKind::Unclear | AnswerKind::Setting => BatchSettled::Refused(why.to_owned()),
                AnswerKind::Records | AnswerKind::Size => BatchSettled::Rejected(why.to_owned()),
            };
            for piece in unit.pieces {
                piece.batch.note_refusal((kind != AnswerKind::Moment).then_some(self.evidence.taken));
                piece.end(settled.clone());
            }
            return;
        }
        unit.kind = Some(kind);
        unit.why = why.to_owned();
        unit.refusals += 1;
        unit.refusals_ever += 1;
        unit.wants_quiet = false;
        unit.since.get_or_insert(self.evidence.taken);
        if unit.records() == 1 && kind != AnswerKind::Moment {
            unit.alone_since.get_or_insert(self.evidence.taken);
            unit.alone += 1;
        }
        if let Written::RejectedSome(_) = answer
            && unit.records() > 1
        {
            self.evidence.took_some();
            self.held = None;
            self.pauses.lift();
        }
        let was_holding = self.evidence.is_holding();
        self.evidence.refused(&unit, kind);
        if let Written::Refused { retry_after: Some(after), .. } = answer {
            self.pauses.until(*after, true, &*self.clock);
            unit.due = self.clock.monotonic() + *after;
        } else {
            unit.due = self.clock.monotonic() + unit.delay();
        }
        if self.evidence.is_holding() {
            self.pauses.hold(&*self.clock);
            // An answer about a setting may come among others.
            if !was_holding || self.held.as_ref().is_some_and(|(known, _)| is_passing(*known) && !is_passing(kind)) {
                self.report_held(kind, why);
            }
            self.held = Some((kind, why.to_owned()));
        }
        let nothing_else =
            self.under_way.is_empty() && self.has_nothing_new() && self.parked.iter().all(SendUnit::is_alone);
        match self.evidence.judge(&unit, kind, was_quiet, nothing_else) {
            RetryDecision::Wait => self.parked.push(unit),
            RetryDecision::Again => self.parked.push(SendUnit { due: Duration::ZERO, ..unit }),
            RetryDecision::Quiet => self.parked.push(SendUnit { due: Duration::ZERO, wants_quiet: true, ..unit }),
            RetryDecision::Split => {
                sink.forget(&unit.batches());
                unit.is_suspected |= unit.has_contrast(self.evidence.taken);
                self.parked.extend(unit.split());
            }
            RetryDecision::Unfit => {
                sink.forget(&unit.batches());
                self.evidence.set_aside();
                let SendUnit { pieces, why, .. } = unit;
                pieces.into_iter().for_each(|piece| piece.unfit(why.clone()));
            }
        }
    }

    // ---- reports ----

    fn report_held(&self, kind: AnswerKind, why: &str) {
        if is_passing(kind) {
            tracing::warn!(sink = %self.name, why, "sink does not take records, trying again");
        } else {
            tracing::error!(
                sink = %self.name, why,
                "sink-rejects-everything: the receiver rejects every record; none is set aside, they wait until it takes them (hint: {HELD_HINT})"
            );
        }
    }

    /// Reports the fault, if it changed.
    fn report(&mut self) {
        let now = self.clock.monotonic();
        let oldest = self.under_way.values().map(|unit| unit.began).chain(self.looking).min();
        let age = oldest.map_or(Duration::ZERO, |began| now.saturating_sub(began));
        if age.as_secs() != self.reported.age_secs {
            self.reported.age_secs = age.as_secs();
            self.observer.oldest_request(&self.name, age);
        }
        let is_held = self.held.as_ref().is_some_and(|(kind, _)| *kind != AnswerKind::Moment);
        if is_held != self.reported.is_held {
            self.reported.is_held = is_held;
            self.observer.held_back(&self.name, is_held);
        }
        let noticed = self.notices.as_ref().and_then(|notices| notices.borrow().clone());
        let trouble = match (self.trouble(age), noticed) {
            (Some(trouble), Some(noticed)) => Some(format!("{trouble}; {noticed}")),
            (trouble, noticed) => trouble.or(noticed),
        };
        if trouble == self.reported.trouble {
            return;
        }
        match (&self.reported.trouble, &trouble) {
            (None, Some(why)) if self.held.is_none() => {
                tracing::warn!(sink = %self.name, why, "sink does not take records, trying again");
            }
            (Some(_), None) => {
                tracing::info!(sink = %self.name, failures = self.reported.refusals, "sink takes records again");
                self.reported.refusals = 0;
            }
            _ => {}
        }
        self.observer.trouble(&self.name, trouble.as_deref());
        self.reported.trouble = trouble;
    }

    fn trouble(&self, age: Duration) -> Option<String> {
        match &self.held {
            Some((kind, why)) if is_passing(*kind) => return Some(why.clone()),
            Some((_, why)) => {
                return Some(format!(
                    "sink-rejects-everything: {why}; nothing is set aside, records wait until the receiver takes them (hint: {HELD_HINT})"
                ));
            }
            None => {}
        }
        // Reports the one that was refused most often, so that the report changes seldom.
        let parked = self.parked.iter().filter(|unit| is_waiting(unit)).map(|unit| (unit.refusals, &unit.why));
        let under_way = self.under_way.values().map(|unit| (unit.refusals, &unit.why)).filter(|(n, _)| *n > 0);
        if let Some((_, why)) = parked.chain(under_way).max_by_key(|(refusals, _)| *refusals) {
            return Some(why.clone());
        }
        (age >= self.answer_expected).then(|| {
            format!("sink-slow: a request has been waiting {} s for its answer (hint: {SLOW_HINT})", age.as_secs())
        })
    }
}

/// The remedy when everything is rejected.
const HELD_HINT: &str =
    "look for a wrong setting of the sink or of its receiver: address, credentials, index, channel, format";

/// Whether it is likely to end by itself.
fn is_passing(kind: AnswerKind) -> bool {
    matches!(kind, AnswerKind::Moment | AnswerKind::Unclear)
}

/// Whether its waiting is worth a report: a rejected request is settled within seconds, unless there is nothing to
/// compare it with.
fn is_waiting(unit: &SendUnit) -> bool {
    match unit.kind {
        Some(AnswerKind::Moment | AnswerKind::Unclear) => unit.refusals > 0,
        // If everything is refused, another report covers it.
        Some(AnswerKind::Setting) => unit.refusals >= REFUSALS_TO_REPORT,
        _ => unit.alone >= REFUSALS_TO_REPORT,
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        // Also when the sink panicked: no caller may wait for room in a queue without a reader.
        self.close_queue();
        self.observer.oldest_request(&self.name, Duration::ZERO);
        // A removed sink holds nothing back; removing it may have been the remedy.
        self.observer.held_back(&self.name, false);
        if std::thread::panicking() {
            self.observer.closed(&self.name, "the sink's task has failed");
        }
    }
}
