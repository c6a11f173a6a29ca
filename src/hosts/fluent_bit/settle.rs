//! What waits for the host, what the host has in its hands, and when a batch counts as delivered.
//!
//! Encoded batches wait in a queue bounded in bytes, in pieces of about a chunk. A collect call gives as many as one
//! tick may carry, in one of two ways:
//! - [`Handover::append`], in the tick and, woken by [`Handover::put`], as soon as records wait: through the host's own
//!   append function, piece by piece. The host would call the same function with what we return, but drops its answer:
//!   a full disk or a missing chunk would cost the records and nobody would know. What it refuses is sent again.
//! - [`Handover::collect`] and [`Handover::cleanup`]: one joined buffer lent until cleanup, as the interface means it;
//!   for a host that does not export the function.
//!
//! Fluent Bit never says that it delivered; what its calls let us infer depends on where it runs us:
//! - **Not threaded** ([`Mode::OnPipeline`]): an append is done when it returns, or when cleanup is asked for. With
//!   filesystem storage the records are then in a chunk file. Settled there.
//! - **Threaded** ([`Mode::OnOwnThread`], the host's default): then the records are in a ring in memory, which
//!   the engine empties every 250 ms. Settled at the second later collect call (they come every second) with no pause
//!   in between; a pause starts the count again, since a paused engine does not empty the ring.
//!
//! Nothing settles after [`Handover::close`]. What is not settled then is refused, and so fetched again after a
//! restart. Refuses to know the C interface ([`super::ffi`]) and the encoding ([`super::encode`]).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::clock::Clock;
use crate::host::{Delivery, DeliveryTicket, TicketAnswer};

/// Bytes waiting for the host or lent to it; beyond it `deliver` waits.
pub const QUEUE_BYTES_MAX: usize = 32 << 20;
/// A piece of the queue is closed at this size, as Fluent Bit closes a chunk (`FLB_INPUT_CHUNK_FS_MAX_SIZE`).
const PIECE_BYTES: usize = 2_000_000;
/// One call of the host appends no more than this, and no longer: the engine's thread has outputs to flush, too.
const CALL_BYTES_MAX: usize = 8 << 20;
const CALL_TIME_MAX: Duration = Duration::from_millis(40);
/// Later collect calls that settle a buffer when threaded.
const LATER_COLLECTS: u8 = 2;
/// A threaded host whose ring is full tries ten times, a tenth of a second apart, then drops the buffer and tells
/// nobody (`flb_input_log_append`). An append that took so long is taken for dropped.
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
    /// Ticks whose bytes are unsettled at a time when every tick is full.
    pub const fn ticks_in_flight(self) -> usize {
        match self {
            Self::OnPipeline => 1,
            Self::OnOwnThread => 1 + LATER_COLLECTS as usize,
        }
    }
}

/// Which call of the host it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// The collect call that comes once a second.
    Tick,
    /// One in between, since records wait. It settles nothing and has what its tick has left.
    Between,
}

/// Room for one batch in the queue; given back when the host has done with the bytes.
#[derive(Debug)]
pub struct Room {
    _permit: OwnedSemaphorePermit,
}

/// The queue and what has left it.
#[derive(Debug)]
pub struct Handover {
    mode: Mode,
    tick_bytes_max: usize,
    room: Arc<Semaphore>,
    /// Has the host call [`Handover::append`] soon.
    waker: Waker,
    clock: Arc<dyn Clock>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: VecDeque<Piece>,
    /// The buffer between collect and cleanup.
    lent: Option<Lent>,
    /// Threaded only: cleaned up, not settled yet.
    unsettled: Vec<Unsettled>,
    paused: bool,
    closed: bool,
    /// The host's last append was refused.
    refusing: bool,
    /// What is left of the running tick's bytes.
    tick_left: usize,
}

/// Batches behind each other, not more than a piece if there are several.
#[derive(Debug)]
struct Piece {
    bytes: Vec<u8>,
    answers: Vec<TicketAnswer>,
    room: Vec<Room>,
}

#[derive(Debug)]
struct Lent {
    bytes: Vec<u8>,
    answers: Vec<TicketAnswer>,
    /// Held for its drop.
    _room: Vec<Room>,
    since: Duration,
}

#[derive(Debug)]
struct Unsettled {
    answers: Vec<TicketAnswer>,
    later_collects: u8,
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
        // The time before the first tick is one, too.
        let inner = Mutex::new(Inner { tick_left: tick_bytes_max, ..Inner::default() });
        Self { mode, tick_bytes_max, room, waker, clock, inner }
    }

    /// Waits until `bytes` more may be queued. More than the whole queue waits for all of it. `None` once closed.
    pub async fn room(&self, bytes: usize) -> Option<Room> {
        let permits = u32::try_from(bytes.min(QUEUE_BYTES_MAX)).unwrap_or(u32::MAX);
        self.room.clone().acquire_many_owned(permits).await.ok().map(|_permit| Room { _permit })
    }

    /// Queues an encoded batch.
    pub fn put(&self, bytes: Vec<u8>, room: Room) -> DeliveryTicket {
        if bytes.is_empty() {
            return DeliveryTicket::resolved(Delivery::Delivered);
        }
        let (answer, ticket) = DeliveryTicket::new();
        let piece_bytes_max = PIECE_BYTES.min(self.tick_bytes_max);
        let mut inner = self.lock();
        if inner.closed {
            return ticket;
        }
        // Else it has been woken, or waits for a tick.
        let wake = inner.waiting.is_empty();
        // Joined here, so that the host's thread need not.
        match inner.waiting.back_mut().filter(|piece| piece.bytes.len() + bytes.len() <= piece_bytes_max) {
            Some(piece) => {
                piece.bytes.extend_from_slice(&bytes);
                piece.answers.push(answer);
                piece.room.push(room);
            }
            None => inner.waiting.push_back(Piece { bytes, answers: vec![answer], room: vec![room] }),
        }
        drop(inner);
        if wake {
            self.waker.wake_by_ref();
        }
        ticket
    }

    /// Gives records to the host's own append, which says whether it took a piece. No lock is held while the host
    /// runs, since it may pause us from inside. Asks to be called again when it leaves what it could have given.
    pub fn append(&self, call: Call, take: &dyn Fn(&[u8]) -> bool) {
        if call == Call::Tick {
            let Some(settled) = self.begin_collect() else { return };
            deliver(settled);
        }
        let start = self.clock.monotonic();
        let mut given = 0;
        while let Some(piece) = self.next() {
            let took = take(&piece.bytes);
            self.note_answer(took);
            if !took {
                // Dropped unanswered, which refuses it. The next try is the next tick's: it comes back at once.
                self.lock().tick_left = 0;
                return;
            }
            let Piece { bytes, answers, .. } = piece;
            given += bytes.len();
            if !self.taken(answers) {
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

    /// The host has appended a piece. `false`: after the end, so that it does not count.
    fn taken(&self, answers: Vec<TicketAnswer>) -> bool {
        let mut inner = self.lock();
        if inner.closed {
            return false;
        }
        match self.mode {
            Mode::OnPipeline => {
                drop(inner);
                deliver(answers);
            }
            Mode::OnOwnThread => inner.unsettled.push(Unsettled { answers, later_collects: 0 }),
        }
        true
    }

    /// Says so when the host begins or ends to refuse.
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

    /// Notes a collect call and takes what it settles. `None`: the host gets nothing.
    fn begin_collect(&self) -> Option<Vec<TicketAnswer>> {
        let mut inner = self.lock();
        // The host can go on collecting from an instance it has paused, and drops what it gets.
        if inner.closed || inner.paused {
            return None;
        }
        // Never cleaned up: never appended.
        inner.lent = None;
        inner.tick_left = self.tick_bytes_max;
        Some(inner.count_collect())
    }

    /// The next buffer for the host, if there is one and the host may have it. Never waits for the queue to fill.
    pub fn collect(&self) -> Option<Buffer> {
        deliver(self.begin_collect()?);
        let taken = std::iter::from_fn(|| self.next()).collect();
        let lent = join(taken, self.clock.monotonic())?;
        let buffer = Buffer { data: lent.bytes.as_ptr(), len: lent.bytes.len() };
        self.lock().lent = Some(lent);
        Some(buffer)
    }

    /// The host has done with the buffer at `data`. `false`: no such buffer is lent.
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
                    inner.unsettled.push(Unsettled { answers: lent.answers, later_collects: 0 });
                }
            }
        }
        true
    }

    /// The host takes nothing more for now, and what it has not written it keeps.
    pub fn pause(&self) {
        let mut inner = self.lock();
        inner.paused = true;
        for unsettled in &mut inner.unsettled {
            unsettled.later_collects = 0;
        }
    }

    /// The host takes buffers again.
    pub fn resume(&self) {
        self.lock().paused = false;
    }

    /// The end: what waits and what is not settled is refused, and nothing is taken any more.
    pub fn close(&self) {
        self.room.close();
        let mut inner = self.lock();
        inner.closed = true;
        let (waiting, unsettled) = (std::mem::take(&mut inner.waiting), std::mem::take(&mut inner.unsettled));
        if let Some(lent) = &mut inner.lent {
            // The bytes stay: the host may still read them.
            lent.answers.clear();
        }
        drop(inner);
        drop((waiting, unsettled));
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
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Whether there is a piece that the host may have: it fits into what is left of the tick; a tick's first whatever
    /// its size.
    fn may_give(&self, tick_bytes_max: usize) -> bool {
        let Some(piece) = self.waiting.front() else { return false };
        let fits = piece.bytes.len() <= self.tick_left || self.tick_left == tick_bytes_max;
        fits && !self.closed && !self.paused && self.tick_left > 0
    }

    /// Notes one collect call and takes what it settles.
    fn count_collect(&mut self) -> Vec<TicketAnswer> {
        for unsettled in &mut self.unsettled {
            unsettled.later_collects += 1;
        }
        self.unsettled
            .extract_if(.., |unsettled| unsettled.later_collects >= LATER_COLLECTS)
            .flat_map(|unsettled| unsettled.answers)
            .collect()
    }
}

fn join(taken: Vec<Piece>, since: Duration) -> Option<Lent> {
    let total: usize = taken.iter().map(|piece| piece.bytes.len()).sum();
    let mut taken = taken.into_iter();
    let Piece { mut bytes, mut answers, room: mut rooms } = taken.next()?;
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
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use futures_util::FutureExt;

    use super::*;
    use crate::clock::TestClock;

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
            self.handover.put(bytes.to_vec(), room)
        }

        /// Whether the host was asked to call since the last question.
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
        assert_eq!(rig.collect_and_clean(), 0);
        assert_eq!(answer(&mut ticket), None);
        rig.collect_and_clean();
        assert_eq!(answer(&mut ticket), Some(Delivery::Delivered));
    }

    #[test]
    fn a_pause_starts_the_count_again_and_collects_meanwhile_do_not_count() {
        let rig = rig(Mode::OnOwnThread, 100);
        let mut ticket = rig.put(b"abc");
        rig.collect_and_clean();
        rig.collect_and_clean();
        rig.handover.pause();
        let _waiting = rig.put(b"def");
        for _ in 0..5 {
            assert_eq!(rig.collect_and_clean(), 0, "nothing is given to a paused host");
        }
        rig.handover.resume();
        assert_eq!(rig.collect_and_clean(), 3);
        assert_eq!(answer(&mut ticket), None);
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

    /// One collect call of a host that appends itself; what it took, piece by piece.
    fn append(rig: &Rig, takes: impl Fn(usize) -> bool) -> Vec<usize> {
        append_in(rig, Call::Tick, takes)
    }

    fn append_in(rig: &Rig, call: Call, takes: impl Fn(usize) -> bool) -> Vec<usize> {
        let taken = std::cell::RefCell::new(Vec::new());
        rig.handover.append(call, &|bytes| {
            let mut taken = taken.borrow_mut();
            let takes = takes(taken.len());
            taken.push(bytes.len());
            takes
        });
        taken.into_inner()
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
    fn on_its_own_thread_what_is_appended_is_delivered_at_the_second_later_collect() {
        let rig = rig(Mode::OnOwnThread, 100);
        let mut ticket = rig.put(b"abc");
        assert_eq!(append(&rig, |_| true), [3]);
        assert!(append(&rig, |_| true).is_empty());
        assert_eq!(answer(&mut ticket), None);
        append(&rig, |_| true);
        assert_eq!(answer(&mut ticket), Some(Delivery::Delivered));
    }

    #[test]
    fn calls_between_ticks_have_what_the_tick_left_and_settle_nothing() {
        let rig = rig(Mode::OnOwnThread, 8);
        let mut first = rig.put(b"abcd");
        let between = || append_in(&rig, Call::Between, |_| true);
        assert_eq!(between(), [4], "before the first tick, too");
        let _second = rig.put(b"efgh");
        assert_eq!(between(), [4]);
        let mut third = rig.put(b"ijkl");
        assert!(between().is_empty(), "the tick is used up");
        assert_eq!(answer(&mut first), None);
        assert_eq!(append(&rig, |_| true), [4]);
        append(&rig, |_| true);
        assert_eq!(answer(&mut first), Some(Delivery::Delivered));
        assert_eq!(answer(&mut third), None);
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
        let _ticket = rig.handover.put(vec![0; 10], room);
        assert!(rig.handover.room(1).now_or_never().is_none());
        let buffer = rig.collect().unwrap();
        assert!(rig.handover.room(1).now_or_never().is_none());
        rig.handover.cleanup(buffer.data);
        assert!(rig.handover.room(1).now_or_never().is_some());
    }
}
