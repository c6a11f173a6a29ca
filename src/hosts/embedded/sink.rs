//! What a sink of the embedded host is, and the worker that feeds one.
//!
//! A [`Sink`] writes groups of batches and says of each what became of it. Everything else is the worker's: the
//! bounded queue, writing what queued up as one group, several groups at once where the sink can, trying again for ever
//! with growing pauses, counting, stopping.
//! A worker never drops a batch: it is confirmed, rejected by the sink, or refused to the source, which keeps it.
//! Knows nothing of routes (the host's) and nothing of any destination (the sink's).

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use backon::{BackoffBuilder, ExponentialBuilder};
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, select_all};
use futures_util::stream::FuturesUnordered;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::troubles::Troubles;
use crate::clock::Clock;
use crate::host::Batch;
use crate::metrics::{SINK_RECORDS_TOTAL, SINK_RETRIES_TOTAL};

/// Batches waiting for or in one sink; beyond it `deliver` waits.
pub const QUEUE_BATCHES_MAX: usize = 256;
/// Bytes waiting for or in one sink; beyond it `deliver` waits. A single larger batch passes alone.
pub const QUEUE_BYTES_MAX: usize = 16 << 20;
/// Batches written as one group.
pub const GROUP_BATCHES_MAX: usize = 64;
/// Bytes written as one group; a single larger batch is a group of its own.
pub const GROUP_BYTES_MAX: usize = 8 << 20;
/// A group is written when for this part of its age no batch came.
const QUIET_PART: u32 = 10;
/// First pause after a failed write.
const RETRY_DELAY_MIN: Duration = Duration::from_millis(200);
/// How often a quiet sink that has an eye on its destination looks at it.
pub const LOOK_EVERY: Duration = Duration::from_secs(3);
/// Longest pause between failed writes, before jitter.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(30);

/// What a sink says became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// The destination has the records for good, as far as this sink can know.
    Delivered,
    /// Passing trouble: the worker tries again, in order, for ever.
    Refused {
        /// What went wrong.
        why: String,
        /// When to try again, if the destination said so; else the worker's own back-off.
        retry_after: Option<Duration>,
    },
    /// The destination will never take it as it is.
    Rejected(String),
    /// The destination is gone and cannot come back in this process (a closed pipe): the host should stop.
    Closed(String),
}

impl Written {
    /// Passing trouble, to be tried again after the worker's own back-off.
    pub fn refused(why: impl ToString) -> Self {
        Self::Refused { why: why.to_string(), retry_after: None }
    }
}

/// How much is handed to a sink at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupBounds {
    /// Bytes, at most [`GROUP_BYTES_MAX`]; a single larger batch is a group of its own.
    pub bytes: usize,
    /// Records; a single larger batch is a group of its own.
    pub records: usize,
    /// How long the first batch of a group waits for the group to fill, while others keep coming: a tenth of it without
    /// another means that the source has none for now, and the group is written.
    pub age: Duration,
}

impl Default for GroupBounds {
    /// What has queued up by now, up to the worker's own bounds.
    fn default() -> Self {
        Self { bytes: GROUP_BYTES_MAX, records: usize::MAX, age: Duration::ZERO }
    }
}

/// A destination of records.
#[async_trait]
pub trait Sink: Send + 'static {
    /// How much [`Sink::write`] wants at once; the same for as long as the sink lives.
    fn bounds(&self) -> GroupBounds {
        GroupBounds::default()
    }

    /// More of this sink, asked for once: each is given groups of its own while this one writes. The worker keeps no
    /// order among them.
    fn beside(&self) -> Vec<Box<dyn Sink>> {
        Vec::new()
    }

    /// Writes a group and says of each batch, in the order given, what became of it. The same batches come again
    /// after [`Written::Refused`], first and in the same order. May be cancelled when the host's grace has run out;
    /// what was being written then counts as refused.
    async fn write(&mut self, batches: &[Batch]) -> Vec<Written>;

    /// What the sink finds beside its writes, in words with the remedy, for its health; asked for once. Who has it is
    /// also asked to [`Sink::look`].
    fn notices(&self) -> Option<watch::Receiver<Option<String>>> {
        None
    }

    /// Looks whether the destination is as it was left; called every [`LOOK_EVERY`] while nothing is written.
    async fn look(&mut self) {}

    /// Called once after the last write of an orderly stop.
    async fn close(&mut self) {}
}

/// A sink whose writes block the thread they are called on; [`OwnThread`] makes it a [`Sink`].
pub trait BlockingSink: Send + 'static {
    /// As [`Sink::write`].
    fn write(&mut self, batches: &[Batch]) -> Vec<Written>;

    /// As [`Sink::notices`].
    fn notices(&self) -> Option<watch::Receiver<Option<String>>> {
        None
    }

    /// As [`Sink::look`].
    fn look(&mut self) {}
}

/// Runs a [`BlockingSink`] on a thread of its own.
///
/// Not on the runtime's blocking pool: a write into a pipe nobody reads never returns, and a runtime waits for its
/// pool when it is dropped. A thread of its own ends with its write or with the process.
pub struct OwnThread<S> {
    state: State<S>,
    notices: Option<watch::Receiver<Option<String>>>,
}

enum State<S> {
    Idle(Option<S>),
    Running { jobs: SyncSender<Job>, ended: oneshot::Receiver<()>, thread: JoinHandle<()> },
}

/// Batches to be written; none: to have a look.
struct Job {
    batches: Vec<Batch>,
    answer: oneshot::Sender<Vec<Written>>,
}

impl<S: BlockingSink> OwnThread<S> {
    /// The thread is started by the first write.
    pub fn new(sink: S) -> Self {
        Self { notices: sink.notices(), state: State::Idle(Some(sink)) }
    }

    fn start(sink: S) -> std::io::Result<State<S>> {
        // One job at a time; a second only when the caller of the first gave up on it.
        let (jobs, todo) = sync_channel::<Job>(1);
        let (end, ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name("m365-sink".into()).spawn(move || {
            let mut sink = sink;
            for job in todo {
                let written = match job.batches.is_empty() {
                    true => {
                        sink.look();
                        Vec::new()
                    }
                    false => sink.write(&job.batches),
                };
                let _ = job.answer.send(written);
            }
            drop(sink);
            drop(end);
        })?;
        Ok(State::Running { jobs, ended, thread })
    }
}

#[async_trait]
impl<S: BlockingSink + Sync> Sink for OwnThread<S> {
    async fn write(&mut self, batches: &[Batch]) -> Vec<Written> {
        if let State::Idle(sink) = &mut self.state
            && let Some(sink) = sink.take()
        {
            match Self::start(sink) {
                Ok(running) => self.state = running,
                Err(e) => return vec![Written::Closed(format!("cannot start a thread: {e}")); batches.len()],
            }
        }
        let State::Running { jobs, .. } = &self.state else {
            return vec![Written::Closed("the sink's thread could not be started".into()); batches.len()];
        };
        let (answer, answered) = oneshot::channel();
        match jobs.try_send(Job { batches: batches.to_vec(), answer }) {
            Ok(()) => match answered.await {
                Ok(written) => written,
                Err(_) => vec![Written::Closed("the sink's thread has ended".into()); batches.len()],
            },
            Err(_) => vec![Written::refused("the write before this one has not ended"); batches.len()],
        }
    }

    fn notices(&self) -> Option<watch::Receiver<Option<String>>> {
        self.notices.clone()
    }

    async fn look(&mut self) {
        self.write(&[]).await;
    }

    async fn close(&mut self) {
        if let State::Running { jobs, ended, thread } = std::mem::replace(&mut self.state, State::Idle(None)) {
            drop(jobs);
            let _ = ended.await;
            let _ = thread.join();
        }
    }
}

// ---------------------------------------------------------------------------------------------- the worker

/// How a worker tells its host what happens to it.
pub(super) trait Observer: Send + Sync + 'static {
    /// Writes fail for this reason since now, or (`None`) succeed again. Called on change.
    fn trouble(&self, sink: &str, why: Option<&str>);
    /// The destination is gone for good; the worker has ended.
    fn closed(&self, sink: &str, why: &str);
}

/// What a worker answers for one batch, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Settled {
    Delivered,
    Refused(String),
    Rejected(String),
}

/// Called with what became of a batch; called with a refusal when the worker is lost.
pub(super) struct Confirm(Option<Box<dyn FnOnce(Settled) + Send>>);

impl Confirm {
    pub(super) fn new(settle: impl FnOnce(Settled) + Send + 'static) -> Self {
        Self(Some(Box::new(settle)))
    }

    fn settle(mut self, settled: Settled) {
        if let Some(settle) = self.0.take() {
            settle(settled);
        }
    }
}

impl Drop for Confirm {
    fn drop(&mut self) {
        if let Some(settle) = self.0.take() {
            settle(Settled::Refused("the sink has stopped".into()));
        }
    }
}

struct Queued {
    batch: Batch,
    confirm: Confirm,
    /// Room in the queue, given back when the batch is settled.
    _room: OwnedSemaphorePermit,
}

/// A running sink: its queue and its task.
pub(super) struct Worker {
    /// Unique in this process, so that a receipt of a sink that was replaced never counts for its successor.
    pub(super) id: u32,
    pub(super) name: Arc<str>,
    queue: mpsc::Sender<Queued>,
    room: Arc<Semaphore>,
    drain: CancellationToken,
    abort: CancellationToken,
    task: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Worker {
    /// Starts the worker on the current runtime.
    pub(super) fn start(name: &str, sink: Box<dyn Sink>, clock: Arc<dyn Clock>, observer: Arc<dyn Observer>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let (queue, queued) = mpsc::channel(QUEUE_BATCHES_MAX);
        let name: Arc<str> = name.into();
        let room = Arc::new(Semaphore::new(QUEUE_BYTES_MAX));
        let (drain, abort) = (CancellationToken::new(), CancellationToken::new());
        let mut sinks = sink.beside();
        let bounds = sink.bounds();
        let notices = sink.notices();
        let troubles = Arc::new(Troubles::new(name.clone(), clock.clone(), observer.clone()));
        if let Some(notices) = &notices {
            troubles.noticed(notices.borrow().clone());
        }
        sinks.push(sink);
        let feeder = Feeder {
            name: name.clone(),
            bounds: GroupBounds { bytes: bounds.bytes.min(GROUP_BYTES_MAX), ..bounds },
            idle: sinks.into_iter().map(|sink| Lane { sink, group: Vec::new(), was_refused: false }).collect(),
            queued,
            ended: false,
            group: Group::default(),
            next: None,
            waiting: Waiting::default(),
            room: room.clone(),
            drain: drain.clone(),
            abort: abort.clone(),
            look: notices.as_ref().map(|_| clock.sleep(LOOK_EVERY)),
            notices,
            troubles,
            clock,
            observer,
        };
        let task = Mutex::new(Some(tokio::spawn(feeder.run())));
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), name, queue, room, drain, abort, task }
    }

    /// Queues a batch; waits while the queue is full. A worker that stops refuses through `confirm`.
    pub(super) async fn enqueue(&self, batch: Batch, confirm: Confirm) {
        let bytes = batch.ndjson().len().min(QUEUE_BYTES_MAX);
        // `QUEUE_BYTES_MAX` fits: a semaphore counts permits in 32 bits.
        let Ok(room) = self.room.clone().acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX)).await else {
            return;
        };
        // An error hands the batch back, and dropping its confirmation refuses it.
        let _ = self.queue.send(Queued { batch, confirm, _room: room }).await;
    }

    /// Takes no more batches and writes those it has; what is not written after `grace` is refused. Returns when the
    /// worker has ended.
    pub(super) async fn stop(&self, grace: Duration, clock: &dyn Clock) {
        self.drain.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
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

/// The worker's task.
struct Feeder {
    name: Arc<str>,
    bounds: GroupBounds,
    /// What may begin a write. The last is the one used last, so that a quiet worker uses one connection.
    idle: Vec<Lane>,
    queued: mpsc::Receiver<Queued>,
    /// The queue is closed and empty.
    ended: bool,
    group: Group,
    /// Taken from the queue and too much for the group.
    next: Option<Queued>,
    waiting: Waiting,
    room: Arc<Semaphore>,
    drain: CancellationToken,
    abort: CancellationToken,
    /// What resolves when the sink is to have a look, for those that do.
    look: Option<BoxFuture<'static, ()>>,
    notices: Option<watch::Receiver<Option<String>>>,
    troubles: Arc<Troubles>,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn Observer>,
}

/// A sink and the group it writes, or has to write again.
struct Lane {
    sink: Box<dyn Sink>,
    group: Vec<Queued>,
    /// Some of the group was written before and refused.
    was_refused: bool,
}

impl Lane {
    /// Writes its group; without one, has a look.
    async fn work(mut self, troubles: Arc<Troubles>) -> (Self, Vec<Written>) {
        let batches: Vec<Batch> = self.group.iter().map(|queued| queued.batch.clone()).collect();
        let written = if batches.is_empty() {
            troubles.watched(0, self.sink.look()).await;
            Vec::new()
        } else {
            troubles.watched(batches.len(), self.sink.write(&batches)).await
        };
        (self, written)
    }
}

/// Batches to be written together, oldest first.
#[derive(Default)]
struct Group {
    batches: Vec<Queued>,
    bytes: usize,
    records: usize,
    /// What resolves when it has waited for others long enough, and when none has come for a while; `None` when one of
    /// them has, or when it does not wait.
    young: Option<[BoxFuture<'static, ()>; 2]>,
}

impl Group {
    /// Whether a batch fits beside those that are there.
    fn has_room_for(&self, batch: &Batch, bounds: &GroupBounds) -> bool {
        self.batches.is_empty()
            || self.batches.len() < GROUP_BATCHES_MAX
                && self.bytes + batch.ndjson().len() <= bounds.bytes
                && self.records + batch.len() <= bounds.records
    }

    fn is_full(&self, bounds: &GroupBounds) -> bool {
        self.batches.len() >= GROUP_BATCHES_MAX || self.bytes >= bounds.bytes || self.records >= bounds.records
    }

    fn push(&mut self, queued: Queued) {
        self.bytes += queued.batch.ndjson().len();
        self.records += queued.batch.len();
        self.batches.push(queued);
    }
}

/// What keeps a worker from writing after a refusal.
#[derive(Default)]
struct Waiting {
    /// Until when by the monotonic clock, and what resolves then.
    pause: Option<(Duration, BoxFuture<'static, ()>)>,
    /// Refusals since everything was taken.
    failures: u64,
    /// Lanes whose last write was refused.
    refused: usize,
    delays: Option<backon::ExponentialBackoff>,
}

impl Waiting {
    /// Notes a refusal. A pause that runs already is made longer only by the destination's own word.
    fn refused(&mut self, retry_after: Option<Duration>, clock: &dyn Clock) {
        if self.pause.is_some() && retry_after.is_none() {
            return;
        }
        let delays = self.delays.get_or_insert_with(retry_delays);
        let delay = retry_after.unwrap_or_else(|| delays.next().unwrap_or(RETRY_DELAY_MAX));
        let until = clock.monotonic().saturating_add(delay);
        if self.pause.as_ref().is_none_or(|(known, _)| *known < until) {
            self.pause = Some((until, clock.sleep(delay)));
        }
    }
}

/// Resolves with the first of `waits`; never, if there is nothing to wait for.
async fn over(waits: Option<&mut [BoxFuture<'static, ()>]>) {
    match waits {
        Some(waits) => drop(select_all(waits).await),
        None => std::future::pending().await,
    }
}

impl Feeder {
    async fn run(mut self) {
        let abort = self.abort.clone();
        let (observer, name) = (self.observer.clone(), self.name.clone());
        let closed = tokio::select! {
            biased;
            () = abort.cancelled() => None,
            closed = self.feed() => closed,
        };
        if let Some(why) = closed {
            tracing::error!(sink = %name, why, "sink is closed");
            observer.closed(&name, &why);
        }
        // Dropping what is left refuses it.
    }

    /// Feeds the sink until told to stop, or until it is closed (`Some(why)`).
    async fn feed(&mut self) -> Option<String> {
        let mut writing = FuturesUnordered::new();
        loop {
            self.collect();
            if let Some(lane) = self.begin_next() {
                writing.push(lane.work(self.troubles.clone()));
                continue;
            }
            if self.ended && writing.is_empty() && self.waiting.pause.is_none() {
                // Nothing is written, waits or has to be written again: `begin_next` would have found it.
                for lane in &mut self.idle {
                    lane.sink.close().await;
                }
                return None;
            }
            let has_room = self.next.is_none() && !self.group.is_full(&self.bounds);
            let pause = self.waiting.pause.as_mut().map(|(_, pause)| std::slice::from_mut(pause));
            let young = self.group.young.as_mut().map(|waits| &mut waits[..]);
            let look = self.look.as_mut().filter(|_| !self.idle.is_empty()).map(std::slice::from_mut);
            tokio::select! {
                biased;
                Some((lane, written)) = writing.next() => {
                    if let Some(why) = self.settle(lane, written) {
                        self.close_queue();
                        return Some(why);
                    }
                }
                () = over(pause) => self.waiting.pause = None,
                () = self.drain.cancelled(), if !self.queued.is_closed() => self.close_queue(),
                next = self.queued.recv(), if has_room && !self.ended => match next {
                    Some(next) => self.take(next),
                    None => self.ended = true,
                },
                () = over(young) => self.group.young = None,
                () = over(look) => {
                    self.look = Some(self.clock.sleep(LOOK_EVERY));
                    // One that has to write again finds out by that.
                    if let Some(lane) = self.idle.pop_if(|lane| lane.group.is_empty()) {
                        writing.push(lane.work(self.troubles.clone()));
                    }
                }
            }
        }
    }

    /// No more batches: whoever waits for room is refused.
    fn close_queue(&mut self) {
        self.queued.close();
        self.room.close();
    }

    /// Takes what has queued up into the group, as much as fits.
    fn collect(&mut self) {
        if let Some(next) = self.next.take() {
            self.take(next);
        }
        while self.next.is_none() && !self.group.is_full(&self.bounds) {
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
        if !self.bounds.age.is_zero() {
            let quiet = self.clock.sleep(self.bounds.age / QUIET_PART);
            match &mut self.group.young {
                Some([_, known]) => *known = quiet,
                None if self.group.batches.is_empty() => {
                    self.group.young = Some([self.clock.sleep(self.bounds.age), quiet]);
                }
                None => {}
            }
        }
        self.group.push(queued);
    }

    /// A lane with a group to be written now: one that was refused before a new one, and none during a pause.
    fn begin_next(&mut self) -> Option<Lane> {
        if self.waiting.pause.is_some() {
            return None;
        }
        if let Some(at) = self.idle.iter().position(|lane| !lane.group.is_empty()) {
            return Some(self.idle.remove(at));
        }
        let group = &self.group;
        let is_whole =
            group.young.is_none() || group.is_full(&self.bounds) || self.next.is_some() || self.queued.is_closed();
        if group.batches.is_empty() || !is_whole {
            return None;
        }
        let mut lane = self.idle.pop()?;
        lane.group = std::mem::take(&mut self.group).batches;
        Some(lane)
    }

    /// Tells what became of a group and keeps in its lane what has to be written again; why the destination is gone, if
    /// it is.
    fn settle(&mut self, mut lane: Lane, written: Vec<Written>) -> Option<String> {
        let mut written = written.into_iter();
        let (mut refused, mut closed, mut progress) = (None, None, false);
        self.waiting.refused -= usize::from(lane.was_refused);
        for queued in std::mem::take(&mut lane.group) {
            // A sink that answers for fewer batches than it was given has not confirmed the rest.
            match written.next().unwrap_or_else(|| Written::refused("the sink gave no answer")) {
                Written::Delivered => {
                    metrics::counter!(SINK_RECORDS_TOTAL, "sink" => self.name.to_string())
                        .increment(queued.batch.len() as u64);
                    progress = true;
                    queued.confirm.settle(Settled::Delivered);
                }
                Written::Rejected(why) => {
                    progress = true;
                    queued.confirm.settle(Settled::Rejected(why));
                }
                Written::Refused { why, retry_after } => {
                    refused.get_or_insert((why, retry_after));
                    lane.group.push(queued);
                }
                Written::Closed(why) => {
                    queued.confirm.settle(Settled::Refused(why.clone()));
                    closed = Some(why);
                }
            }
        }
        if progress {
            self.waiting.delays = None;
        }
        if let Some(notices) = &self.notices {
            self.troubles.noticed(notices.borrow().clone());
        }
        lane.was_refused = refused.is_some();
        self.idle.push(lane);
        match refused {
            Some((why, retry_after)) => {
                metrics::counter!(SINK_RETRIES_TOTAL, "sink" => self.name.to_string()).increment(1);
                if self.waiting.failures == 0 {
                    tracing::warn!(sink = %self.name, why, "sink does not take records, trying again");
                }
                self.waiting.failures += 1;
                self.waiting.refused += 1;
                self.troubles.failing(Some(&why));
                self.waiting.refused(retry_after, &*self.clock);
            }
            None if self.waiting.failures > 0 && self.waiting.refused == 0 => {
                tracing::info!(sink = %self.name, failures = self.waiting.failures, "sink takes records again");
                self.troubles.failing(None);
                self.waiting.failures = 0;
            }
            None => {}
        }
        closed
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        // Also when the sink panicked: nobody may wait for room in a queue without a reader.
        self.close_queue();
        if std::thread::panicking() {
            self.observer.closed(&self.name, "the sink's task has failed");
        }
    }
}

fn retry_delays() -> backon::ExponentialBackoff {
    ExponentialBuilder::new()
        .with_jitter()
        .with_min_delay(RETRY_DELAY_MIN)
        .with_max_delay(RETRY_DELAY_MAX)
        .without_max_times()
        .build()
}
