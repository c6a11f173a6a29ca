//! The queue for the host, the batches that the host holds, and the rule when a batch counts as delivered.
//!
//! Encoded batches wait in a queue bounded in bytes, in pieces of about a chunk. A collect call delivers as many as one
//! tick may carry, in one of two ways:
//! - [`Handover::append`], in the tick and, woken by [`Handover::put`], as soon as records wait: through the host's own
//!   append function, piece by piece. The host would call the same function with a returned buffer, but it ignores the
//!   result: a full disk or a missing chunk would silently lose the records. Refused pieces are sent again.
//! - [`Handover::collect`] and [`Handover::cleanup`]: one joined buffer lent until cleanup, as the interface intends;
//!   for a host that does not export the function.
//!
//! Fluent Bit never reports a delivery; the inference from its calls depends on the thread of the input:
//! - **Not threaded** ([`Mode::OnPipeline`]): an append is done when it returns, or when cleanup is called. With
//!   filesystem storage the records are then in a chunk file, so they are settled there.
//! - **Threaded** ([`Mode::OnOwnThread`], the host's default): then the records are in a ring in memory, and [`Ring`]
//!   decides when they have left it. [`Handover::keep_asking`] has the host call the plugin meanwhile, so that this is
//!   noticed soon.
//!
//! No batch is settled after [`Handover::close`]. Unsettled batches are then refused, and so fetched again after a
//! restart. Does not know the C interface ([`super::ffi`]) and the encoding ([`super::encode`]).

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::ring::{Counted, Ring};
use m365_audit::clock::Clock;
use m365_audit::host::{Delivery, DeliveryTicket, TicketAnswer};

/// Bytes waiting for the host or lent to it; above this `deliver` waits.
pub const QUEUE_BYTES_MAX: usize = 32 << 20;
/// A piece of the queue is closed at this size, as Fluent Bit closes a chunk (`FLB_INPUT_CHUNK_FS_MAX_SIZE`).
const PIECE_BYTES: usize = 2_000_000;
/// One call of the host appends at most this, since the engine's thread must also flush outputs.
const CALL_BYTES_MAX: usize = 8 << 20;
const CALL_TIME_MAX: Duration = Duration::from_millis(40);
/// The interval of [`Handover::keep_asking`].
const ASK_EVERY: Duration = Duration::from_millis(50);
/// The minimum interval between two readings of the host's counters; it grows with the time of a reading, since many
/// tenants have many counters.
const READ_EVERY: Duration = Duration::from_millis(20);
const READ_PAUSE_FACTOR: u32 = 20;
/// A threaded host whose ring is full tries ten times, a tenth of a second apart, then silently drops the buffer
/// (`flb_input_log_append`). An append that took this long counts as dropped.
const APPEND_TIME_MAX: Duration = Duration::from_millis(900);

/// Where the host runs the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// `threaded: off`: on the engine's own thread, which appends to chunks itself.
    OnPipeline,
    /// `threaded: on`, the default: on a thread of the input's own, with a ring to the engine.
    OnOwnThread,
}

impl Mode {
    /// Full queues that are in flight at a time: the waiting one, and those that cannot be settled meanwhile.
    pub const fn queues_in_flight(self) -> usize {
        match self {
            Self::OnPipeline => 1,
            Self::OnOwnThread => 3,
        }
    }
}

/// A host that exports its append function.
pub trait Appends {
    /// Appends whole entries. `false`: it did not accept them.
    fn append(&self, entries: &[u8]) -> bool;

    /// Its counts of the input; `None`: they cannot be read.
    fn counted(&self) -> Option<Counted>;
}

/// Which call of the host it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// The collect call that comes once a second.
    Tick,
    /// A call in between, because records wait or to settle some. It may use the rest of its tick's bytes.
    Between,
}

/// A permit for one batch in the queue; released when the host is done with the bytes.
#[derive(Debug)]
pub struct QueuePermit {
    _permit: OwnedSemaphorePermit,
}

/// The queue and the batches that have left it.
#[derive(Debug)]
pub struct Handover {
    mode: Mode,
    tick_bytes_max: usize,
    room: Arc<Semaphore>,
    /// Has the host call [`Handover::append`] soon.
    waker: Waker,
    clock: Arc<dyn Clock>,
    /// Signals that the ring may have new records.
    handed: Notify,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: VecDeque<Piece>,
    /// The buffer between collect and cleanup.
    lent: Option<Lent>,
    /// Threaded only: the records held by the host and not settled yet.
    ring: Ring,
    /// When its counters may be read again.
    next_reading: Duration,
    paused: bool,
    closed: bool,
    /// The host's last append was refused.
    refusing: bool,
    /// The rest of the current tick's bytes.
    tick_left: usize,
}

/// Consecutive batches, together at most a piece unless there is only one.
#[derive(Debug)]
struct Piece {
    bytes: Vec<u8>,
    records: u64,
    answers: Vec<TicketAnswer>,
    room: Vec<QueuePermit>,
}

#[derive(Debug)]
struct Lent {
    bytes: Vec<u8>,
    answers: Vec<TicketAnswer>,
    /// Held until it is dropped.
    _room: Vec<QueuePermit>,
    since: Duration,
}

/// A buffer lent to the host, valid until [`Handover::cleanup`] is called with its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Its address.
    pub data: *const u8,
    /// Its length, never 0.
    pub len: usize,
}

impl Handover {
    /// An empty queue. `waker` is woken when the host should call again before the next tick.
    pub fn new(mode: Mode, tick_bytes_max: usize, waker: Waker, clock: Arc<dyn Clock>) -> Self {
        let room = Arc::new(Semaphore::new(QUEUE_BYTES_MAX));
        // The time before the first tick counts as a tick.
        let inner = Mutex::new(Inner { tick_left: tick_bytes_max, ..Inner::default() });
        Self { mode, tick_bytes_max, room, waker, clock, handed: Notify::new(), inner }
    }

    /// Waits until `bytes` more may be queued. A larger batch than the queue waits for all of it. `None` once closed.
    pub async fn room(&self, bytes: usize) -> Option<QueuePermit> {
        let permits = u32::try_from(bytes.min(QUEUE_BYTES_MAX)).unwrap_or(u32::MAX);
        self.room.clone().acquire_many_owned(permits).await.ok().map(|_permit| QueuePermit { _permit })
    }

    /// Queues an encoded batch of this many records.
    pub fn put(&self, bytes: Vec<u8>, records: u64, room: QueuePermit) -> DeliveryTicket {
        if bytes.is_empty() {
            return DeliveryTicket::resolved(Delivery::Delivered);
        }
        let (answer, ticket) = DeliveryTicket::new();
        let piece_bytes_max = PIECE_BYTES.min(self.tick_bytes_max);
        let mut inner = self.lock();
        if inner.closed {
            return ticket;
        }
        // Otherwise the host was already woken, or waits for a tick.
        let wake = inner.waiting.is_empty();
        // Joined here, so that the host's thread need not.
        match inner.waiting.back_mut().filter(|piece| piece.bytes.len() + bytes.len() <= piece_bytes_max) {
            Some(piece) => {
                piece.bytes.extend_from_slice(&bytes);
                piece.records += records;
                piece.answers.push(answer);
                piece.room.push(room);
            }
            None => inner.waiting.push_back(Piece { bytes, records, answers: vec![answer], room: vec![room] }),
        }
        drop(inner);
        if wake {
            self.waker.wake_by_ref();
        }
        ticket
    }

    /// Passes records to the host's own append, which returns whether it accepted a piece. No lock is held while the
    /// host runs, since it may pause the plugin from inside. Requests another call if records are left.
    pub fn append(&self, call: Call, host: &dyn Appends) {
        if call == Call::Tick && !self.begin_tick() {
            return;
        }
        self.settle(host);
        let start = self.clock.monotonic();
        let mut given = 0;
        while let Some(piece) = self.next() {
            self.begin_ring(host);
            let took = host.append(&piece.bytes);
            self.note_answer(took);
            if !took {
                // Dropped without an answer, which refuses it. The next tick tries again, since it comes back at once.
                self.lock().tick_left = 0;
                return;
            }
            given += piece.bytes.len();
            if !self.taken(piece) {
                return;
            }
            if given >= CALL_BYTES_MAX || self.clock.monotonic().saturating_sub(start) >= CALL_TIME_MAX {
                if self.lock().may_give(self.tick_bytes_max) {
                    self.waker.wake_by_ref();
                }
                return;
            }
        }
    }

    /// Records that the host has appended a piece. `false`: after the end, so it does not count.
    fn taken(&self, piece: Piece) -> bool {
        let mut inner = self.lock();
        if inner.closed {
            return false;
        }
        match self.mode {
            Mode::OnPipeline => {
                drop(inner);
                deliver(piece.answers);
            }
            Mode::OnOwnThread => {
                let size = Counted { records: piece.records, bytes: piece.bytes.len() as u64 };
                inner.ring.push(piece.answers, size, self.clock.monotonic());
                drop(inner);
                self.handed.notify_one();
            }
        }
        true
    }

    /// Records the counters before the first piece goes into an empty ring.
    fn begin_ring(&self, host: &dyn Appends) {
        if self.mode == Mode::OnOwnThread && self.lock().ring.is_empty() {
            let counted = host.counted();
            self.lock().ring.begin(counted);
        }
    }

    /// Settles the records that have left the ring.
    fn settle(&self, host: &dyn Appends) {
        let start = self.clock.monotonic();
        let inner = self.lock();
        if inner.is_deaf() || inner.ring.is_empty() || start < inner.next_reading {
            return;
        }
        drop(inner);
        let counted = host.counted();
        let now = self.clock.monotonic();
        let mut inner = self.lock();
        inner.next_reading = now + READ_EVERY.max(now.saturating_sub(start) * READ_PAUSE_FACTOR);
        let settled = inner.ring.settle(now, counted);
        drop(inner);
        deliver(settled);
    }

    /// Has the host call repeatedly while it has unsettled records of this plugin. Never ends.
    pub async fn keep_asking(&self) {
        loop {
            self.handed.notified().await;
            while self.lock().has_unsettled() {
                self.clock.sleep(ASK_EVERY).await;
                self.waker.wake_by_ref();
            }
        }
    }

    /// Logs when the host begins or stops refusing.
    fn note_answer(&self, took: bool) {
        let before = std::mem::replace(&mut self.lock().refusing, !took);
        if !took && !before {
            tracing::warn!(
                "fluent-bit-append-refused: Fluent Bit did not take a buffer; nothing is lost, it is sent again until it is taken \
                 (hint: Fluent Bit's own lines beside this one say why; mostly the disk of `storage.path` is full)"
            );
        } else if took && before {
            tracing::info!("Fluent Bit takes buffers again");
        }
    }

    /// Records a collect call. `false`: the host gets nothing.
    fn begin_tick(&self) -> bool {
        let mut inner = self.lock();
        if inner.is_deaf() {
            return false;
        }
        // A buffer that was never cleaned up was never appended.
        inner.lent = None;
        inner.tick_left = self.tick_bytes_max;
        true
    }

    /// The next buffer for the host, if there is one and the host may have it. Never waits for the queue to fill.
    pub fn collect(&self) -> Option<Buffer> {
        if !self.begin_tick() {
            return None;
        }
        let now = self.clock.monotonic();
        let settled = self.lock().ring.settle(now, None);
        deliver(settled);
        let taken = std::iter::from_fn(|| self.next()).collect();
        let lent = join(taken, now)?;
        let buffer = Buffer { data: lent.bytes.as_ptr(), len: lent.bytes.len() };
        self.lock().lent = Some(lent);
        Some(buffer)
    }

    /// The host is done with the buffer at `data`. `false`: no such buffer is lent.
    pub fn cleanup(&self, data: *const u8) -> bool {
        let mut inner = self.lock();
        let Some(lent) = inner.lent.take_if(|lent| lent.bytes.as_ptr() == data) else { return false };
        if inner.closed {
            return true;
        }
        match self.mode {
            Mode::OnPipeline => {
                drop(inner);
                deliver(lent.answers);
            }
            Mode::OnOwnThread => {
                let took = self.clock.monotonic().saturating_sub(lent.since);
                if took >= APPEND_TIME_MAX {
                    drop(inner);
                    tracing::warn!(
                        took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                        "the host took so long with a buffer that it may have dropped it; it is sent again"
                    );
                } else {
                    // From the beginning of the call, so that the second later one settles it. The counters of such a
                    // host are not read.
                    inner.ring.push(lent.answers, Counted::default(), lent.since);
                }
            }
        }
        true
    }

    /// The host accepts no more records for now, and keeps those that it has not written.
    pub fn pause(&self) {
        self.lock().paused = true;
    }

    /// The host accepts buffers again.
    pub fn resume(&self) {
        let now = self.clock.monotonic();
        let mut inner = self.lock();
        inner.paused = false;
        inner.ring.resume(now);
        drop(inner);
        self.handed.notify_one();
    }

    /// The end: waiting and unsettled batches are refused, and no more are accepted.
    pub fn close(&self) {
        self.room.close();
        let mut inner = self.lock();
        inner.closed = true;
        let (waiting, ring) = (std::mem::take(&mut inner.waiting), std::mem::take(&mut inner.ring));
        if let Some(lent) = &mut inner.lent {
            // The bytes stay: the host may still read them.
            lent.answers.clear();
        }
        drop(inner);
        drop((waiting, ring));
    }

    /// The next piece the host may have.
    fn next(&self) -> Option<Piece> {
        let mut inner = self.lock();
        if !inner.may_give(self.tick_bytes_max) {
            return None;
        }
        let piece = inner.waiting.pop_front()?;
        inner.tick_left = inner.tick_left.saturating_sub(piece.bytes.len());
        Some(piece)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }
}

impl Inner {
    /// Whether there is a piece that the host may have: one that fits into the rest of the tick, or a tick's first of
    /// any size.
    fn may_give(&self, tick_bytes_max: usize) -> bool {
        let Some(piece) = self.waiting.front() else { return false };
        let fits = piece.bytes.len() <= self.tick_left || self.tick_left == tick_bytes_max;
        fits && !self.is_deaf() && self.tick_left > 0
    }

    /// The host may continue to collect from a paused instance, and drops the records.
    fn is_deaf(&self) -> bool {
        self.closed || self.paused
    }

    fn has_unsettled(&self) -> bool {
        !self.is_deaf() && !self.ring.is_empty()
    }
}

fn join(taken: Vec<Piece>, since: Duration) -> Option<Lent> {
    let total: usize = taken.iter().map(|piece| piece.bytes.len()).sum();
    let mut taken = taken.into_iter();
    let Piece { mut bytes, mut answers, room: mut rooms, .. } = taken.next()?;
    bytes.reserve_exact(total - bytes.len());
    for piece in taken {
        bytes.extend_from_slice(&piece.bytes);
        answers.extend(piece.answers);
        rooms.extend(piece.room);
    }
    Some(Lent { bytes, answers, _room: rooms, since })
}

fn deliver(answers: Vec<TicketAnswer>) {
    for answer in answers {
        answer.answer(Delivery::Delivered);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use futures_util::FutureExt;

    use super::*;
    use m365_audit::clock::TestClock;

    struct Rig {
        handover: Handover,
        calls: Arc<Calls>,
        clock: TestClock,
    }

    /// How often the host was asked to call.
    #[derive(Default)]
    struct Calls(AtomicUsize);

    impl Wake for Calls {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn rig(mode: Mode, tick_bytes_max: usize) -> Rig {
        let clock = TestClock::at("2026-05-01T00:00:00Z".parse().unwrap());
        let calls = Arc::new(Calls::default());
        let waker = Waker::from(calls.clone());
        Rig { handover: Handover::new(mode, tick_bytes_max, waker, Arc::new(clock.clone())), calls, clock }
    }

    impl Rig {
        fn put(&self, bytes: &[u8]) -> DeliveryTicket {
            let room = self.handover.room(bytes.len()).now_or_never().unwrap().unwrap();
            self.handover.put(bytes.to_vec(), 1, room)
        }

        /// Whether the host was asked to call since the last check.
        fn asked(&self) -> bool {
            self.calls.0.swap(0, Ordering::Relaxed) > 0
        }

        /// Collects and reports the size, without cleaning up.
        fn collect(&self) -> Option<Buffer> {
            self.handover.collect()
        }

        fn collect_and_clean(&self) -> usize {
            let Some(buffer) = self.collect() else { return 0 };
            assert!(self.handover.cleanup(buffer.data));
            buffer.len
        }
    }

    const TICK: Duration = Duration::from_secs(1);

    fn answer(ticket: &mut DeliveryTicket) -> Option<Delivery> {
        ticket.now_or_never()
    }

    #[test]
    fn on_the_pipeline_a_batch_is_delivered_at_cleanup_and_not_before() {
        let rig = rig(Mode::OnPipeline, 100);
        let mut ticket = rig.put(b"abc");
        let buffer = rig.collect().unwrap();
        assert_eq!((buffer.len, answer(&mut ticket)), (3, None));
        assert!(rig.handover.cleanup(buffer.data));
        assert_eq!(answer(&mut ticket), Some(Delivery::Delivered));
        assert!(!rig.handover.cleanup(buffer.data), "once only");
    }

    #[test]
    fn on_its_own_thread_a_batch_is_delivered_at_the_second_later_collect() {
        let rig = rig(Mode::OnOwnThread, 100);
        let mut ticket = rig.put(b"abc");
        assert_eq!(rig.collect_and_clean(), 3);
        rig.clock.advance(TICK);
        assert_eq!(rig.collect_and_clean(), 0);
        assert_eq!(answer(&mut ticket), None);
        rig.clock.advance(TICK);
        rig.collect_and_clean();
        assert_eq!(answer(&mut ticket), Some(Delivery::Delivered));
    }

    #[test]
    fn a_pause_starts_the_count_again_and_collects_meanwhile_do_not_count() {
        let rig = rig(Mode::OnOwnThread, 100);
        let mut ticket = rig.put(b"abc");
        rig.collect_and_clean();
        rig.clock.advance(TICK);
        rig.collect_and_clean();
        rig.handover.pause();
        let _waiting = rig.put(b"def");
        for _ in 0..5 {
            rig.clock.advance(TICK);
            assert_eq!(rig.collect_and_clean(), 0, "nothing is given to a paused host");
        }
        rig.handover.resume();
        assert_eq!(rig.collect_and_clean(), 3);
        rig.clock.advance(TICK);
        rig.collect_and_clean();
        assert_eq!(answer(&mut ticket), None);
        rig.clock.advance(TICK);
        rig.collect_and_clean();
        assert_eq!(answer(&mut ticket), Some(Delivery::Delivered));
    }

    #[test]
    fn a_buffer_the_host_may_have_dropped_is_refused() {
        let rig = rig(Mode::OnOwnThread, 100);
        let mut ticket = rig.put(b"abc");
        let buffer = rig.collect().unwrap();
        rig.clock.advance(Duration::from_secs(1));
        assert!(rig.handover.cleanup(buffer.data));
        assert!(matches!(answer(&mut ticket), Some(Delivery::Refused(_))));
    }

    #[test]
    fn a_buffer_never_cleaned_up_is_refused() {
        let rig = rig(Mode::OnPipeline, 100);
        let mut ticket = rig.put(b"abc");
        rig.collect().unwrap();
        assert_eq!(rig.collect(), None);
        assert!(matches!(answer(&mut ticket), Some(Delivery::Refused(_))));
    }

    #[test]
    fn nothing_settles_after_the_end() {
        for mode in [Mode::OnPipeline, Mode::OnOwnThread] {
            let rig = rig(mode, 3);
            let mut cleaned = rig.put(b"abc");
            rig.collect_and_clean();
            let (mut lent, mut waiting) = (rig.put(b"def"), rig.put(b"ghi"));
            let buffer = rig.collect().unwrap();
            rig.handover.close();
            assert!(rig.handover.cleanup(buffer.data));
            assert_eq!(rig.collect(), None);
            assert!(rig.handover.room(1).now_or_never().unwrap().is_none());
            let early = answer(&mut cleaned);
            assert_eq!(early == Some(Delivery::Delivered), mode == Mode::OnPipeline, "{mode:?}: {early:?}");
            for ticket in [&mut lent, &mut waiting] {
                assert!(matches!(answer(ticket), Some(Delivery::Refused(_))), "{mode:?}");
            }
        }
    }

    #[test]
    fn a_tick_carries_whole_batches_up_to_its_limit_and_one_in_any_case() {
        let rig = rig(Mode::OnPipeline, 5);
        let _tickets = [b"ab".as_slice(), b"cd", b"ef", b"too large", b"g"].map(|bytes| rig.put(bytes));
        let sizes: Vec<usize> = (0..5).map(|_| rig.collect_and_clean()).collect();
        assert_eq!(sizes, [4, 2, 9, 1, 0]);
    }

    /// One collect call of a host that appends itself; returns the pieces it accepted.
    fn append(rig: &Rig, takes: impl Fn(usize) -> bool) -> Vec<usize> {
        append_in(rig, Call::Tick, takes)
    }

    fn append_in(rig: &Rig, call: Call, takes: impl Fn(usize) -> bool) -> Vec<usize> {
        let host = Appending { taken: RefCell::default(), takes, counted: None };
        rig.handover.append(call, &host);
        host.taken.into_inner()
    }

    /// A host that accepts the pieces for which `takes` is true.
    struct Appending<F> {
        taken: RefCell<Vec<usize>>,
        takes: F,
        counted: Option<Counted>,
    }

    impl<F: Fn(usize) -> bool> Appends for Appending<F> {
        fn append(&self, entries: &[u8]) -> bool {
            let mut taken = self.taken.borrow_mut();
            let takes = (self.takes)(taken.len());
            taken.push(entries.len());
            takes
        }

        fn counted(&self) -> Option<Counted> {
            self.counted
        }
    }

    #[test]
    fn on_the_pipeline_what_is_appended_is_delivered_and_what_is_not_is_refused() {
        let rig = rig(Mode::OnPipeline, 2 * PIECE_BYTES);
        let mut tickets = [1, 2, 3].map(|_| rig.put(&vec![0; PIECE_BYTES]));
        assert_eq!(append(&rig, |piece| piece == 0), [PIECE_BYTES, PIECE_BYTES]);
        assert_eq!(answer(&mut tickets[0]), Some(Delivery::Delivered));
        assert!(matches!(answer(&mut tickets[1]), Some(Delivery::Refused(_))));
        assert_eq!(answer(&mut tickets[2]), None, "waits for the next tick");
        assert_eq!(append(&rig, |_| true), [PIECE_BYTES]);
        assert_eq!(answer(&mut tickets[2]), Some(Delivery::Delivered));
    }

    #[test]
    fn on_its_own_thread_what_is_appended_is_delivered_after_a_second_in_any_call() {
        for call in [Call::Tick, Call::Between] {
            let rig = rig(Mode::OnOwnThread, 100);
            let mut ticket = rig.put(b"abc");
            assert_eq!(append(&rig, |_| true), [3]);
            for _ in 0..9 {
                rig.clock.advance(TICK / 10);
                assert!(append_in(&rig, call, |_| true).is_empty());
            }
            assert_eq!(answer(&mut ticket), None);
            rig.clock.advance(TICK / 10);
            append_in(&rig, call, |_| true);
            assert_eq!(answer(&mut ticket), Some(Delivery::Delivered));
        }
    }

    #[test]
    fn on_its_own_thread_what_is_appended_is_delivered_when_the_host_has_counted_what_is_behind_it() {
        let rig = rig(Mode::OnOwnThread, 1000);
        let at = |records, bytes| Some(Counted { records, bytes });
        let call = |counted| {
            rig.clock.advance(READ_EVERY);
            let host = Appending { taken: RefCell::default(), takes: |_| true, counted };
            rig.handover.append(Call::Between, &host);
        };
        let mut first = rig.put(&[0; 60]);
        call(at(7, 500));
        let mut second = rig.put(&[0; 50]);
        call(at(8, 560));
        assert_eq!(answer(&mut first), None);
        call(at(9, 610));
        assert_eq!(answer(&mut first), Some(Delivery::Delivered));
        assert_eq!(answer(&mut second), None);
    }

    #[test]
    fn the_hosts_counters_are_read_no_oftener_than_they_are_cheap() {
        struct Slow<'a>(&'a Rig, std::cell::Cell<u32>);
        impl Appends for Slow<'_> {
            fn append(&self, _: &[u8]) -> bool {
                true
            }

            fn counted(&self) -> Option<Counted> {
                self.1.set(self.1.get() + 1);
                self.0.clock.advance(Duration::from_millis(3));
                Some(Counted::default())
            }
        }
        let rig = rig(Mode::OnOwnThread, 100);
        let host = Slow(&rig, std::cell::Cell::new(0));
        let _ticket = rig.put(b"abc");
        rig.handover.append(Call::Tick, &host);
        let calls = 630;
        for _ in 0..calls {
            rig.clock.advance(Duration::from_millis(1));
            rig.handover.append(Call::Between, &host);
        }
        // Once before the append, then for 3 ms in every 63.
        assert_eq!(host.1.get(), 1 + calls / 60 + 1);
    }

    #[test]
    fn the_host_is_asked_to_call_while_it_has_what_is_not_settled() {
        let rig = rig(Mode::OnOwnThread, 100);
        let mut asking = pin!(rig.handover.keep_asking());
        let mut asked_after = |time| {
            assert!(asking.as_mut().now_or_never().is_none());
            rig.clock.advance(time);
            assert!(asking.as_mut().now_or_never().is_none());
            rig.asked()
        };
        assert!(!asked_after(TICK), "it has nothing");
        let _ticket = rig.put(b"abc");
        append(&rig, |_| true);
        rig.asked();
        assert!(asked_after(ASK_EVERY) && asked_after(ASK_EVERY));
        rig.handover.pause();
        assert!(asked_after(ASK_EVERY) && !asked_after(ASK_EVERY), "the last before the pause, and no more");
        rig.handover.resume();
        assert!(asked_after(ASK_EVERY));
        rig.clock.advance(TICK);
        append(&rig, |_| true);
        rig.clock.advance(TICK);
        append(&rig, |_| true);
        assert!(asked_after(ASK_EVERY) && !asked_after(ASK_EVERY), "all is settled");
    }

    #[test]
    fn calls_between_ticks_have_what_the_tick_left() {
        let rig = rig(Mode::OnOwnThread, 8);
        let _first = rig.put(b"abcd");
        let between = || append_in(&rig, Call::Between, |_| true);
        assert_eq!(between(), [4], "before the first tick, too");
        let _second = rig.put(b"efgh");
        assert_eq!(between(), [4]);
        let _third = rig.put(b"ijkl");
        assert!(between().is_empty(), "the tick is used up");
        assert_eq!(append(&rig, |_| true), [4]);
        rig.handover.pause();
        let _fourth = rig.put(b"m");
        assert!(between().is_empty(), "paused");
    }

    #[test]
    fn the_host_is_asked_to_call_when_records_begin_to_wait_and_when_a_call_leaves_some_it_could_have() {
        for mode in [Mode::OnPipeline, Mode::OnOwnThread] {
            let rig = rig(mode, 7 * PIECE_BYTES);
            let piece = || rig.put(&vec![0; PIECE_BYTES]);
            let _first = piece();
            assert!(rig.asked());
            let _more = [(); 5].map(|()| piece());
            assert!(!rig.asked(), "it has been asked");
            assert_eq!(append_in(&rig, Call::Between, |_| true).len(), 5, "what a call may give");
            assert!(rig.asked(), "one is left");
            assert_eq!(append_in(&rig, Call::Between, |_| true).len(), 1);
            assert!(!rig.asked(), "none is left");
            let _last = [piece(), piece(), piece()];
            assert!(rig.asked());
            assert_eq!(append_in(&rig, Call::Between, |_| true).len(), 1);
            assert!(!rig.asked(), "the rest of them is the next tick's");
            assert_eq!(append(&rig, |_| true).len(), 2);
        }
    }

    #[test]
    fn what_the_host_refuses_is_tried_again_in_the_next_tick_and_not_before() {
        let rig = rig(Mode::OnPipeline, 2 * PIECE_BYTES);
        let _refused = rig.put(b"a");
        assert_eq!(append_in(&rig, Call::Between, |_| false), [1]);
        let mut again = rig.put(b"a");
        assert!(append_in(&rig, Call::Between, |_| true).is_empty());
        assert_eq!(append(&rig, |_| true), [1]);
        assert_eq!(answer(&mut again), Some(Delivery::Delivered));
    }

    #[test]
    fn small_batches_share_a_piece_and_a_tick_ends_at_its_limit_a_pause_or_the_end_of_its_time() {
        let rig = rig(Mode::OnPipeline, 2 * PIECE_BYTES);
        let quarters = || -> Vec<DeliveryTicket> { (0..16).map(|_| rig.put(&vec![0; PIECE_BYTES / 4])).collect() };
        let mut tickets = quarters();
        assert_eq!(append(&rig, |_| true), [PIECE_BYTES; 2]);
        assert_eq!(tickets.iter_mut().filter_map(answer).count(), 8);
        let pause = |_| {
            rig.handover.pause();
            true
        };
        assert_eq!(append(&rig, pause), [PIECE_BYTES]);
        assert!(append(&rig, |_| true).is_empty(), "paused");
        rig.handover.resume();
        let _more = quarters();
        let slow = |_| {
            rig.clock.advance(CALL_TIME_MAX);
            true
        };
        assert_eq!(append(&rig, slow), [PIECE_BYTES]);
        rig.handover.close();
        assert!(append(&rig, |_| true).is_empty());
    }

    #[test]
    fn a_full_queue_keeps_deliveries_waiting_until_the_host_is_done_with_bytes() {
        let rig = rig(Mode::OnPipeline, 1);
        let room = rig.handover.room(QUEUE_BYTES_MAX * 2).now_or_never().unwrap().unwrap();
        let _ticket = rig.handover.put(vec![0; 10], 1, room);
        assert!(rig.handover.room(1).now_or_never().is_none());
        let buffer = rig.collect().unwrap();
        assert!(rig.handover.room(1).now_or_never().is_none());
        rig.handover.cleanup(buffer.data);
        assert!(rig.handover.room(1).now_or_never().is_some());
    }
}
