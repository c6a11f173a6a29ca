//! What waits for the host, what the host has in its hands, and when a batch counts as delivered.
//!
//! Encoded batches wait in a queue bounded in bytes. A collect call takes as many as one tick may carry, joined into
//! one buffer. Fluent Bit never says that it delivered; what its calls let us infer depends on where it runs us:
//! - **Not threaded** ([`Mode::OnPipeline`]): the append has been done when it asks us to clean up. With filesystem
//!   storage the records are then in a chunk file. Settled at cleanup.
//! - **Threaded** ([`Mode::OnOwnThread`], the host's default): at cleanup the records are in a ring in memory, which
//!   the engine empties every 250 ms. Settled at the second later collect call (they come every second) with no pause
//!   in between; a pause starts the count again, since a paused engine does not empty the ring.
//!
//! Nothing settles after [`Handover::close`]. What is not settled then is refused, and so fetched again after a
//! restart. Refuses to know the C interface ([`super::ffi`]) and the encoding ([`super::encode`]).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::clock::Clock;
use crate::host::{Delivery, DeliveryTicket, TicketAnswer};

/// Bytes waiting for the host or lent to it; beyond it `deliver` waits. One tick's worth if that is more.
pub const QUEUE_BYTES_MAX: usize = 32 << 20;
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
    room_bytes: u32,
    clock: Arc<dyn Clock>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: VecDeque<Waiting>,
    /// The buffer between collect and cleanup.
    lent: Option<Lent>,
    /// Threaded only: cleaned up, not settled yet.
    unsettled: Vec<Unsettled>,
    paused: bool,
    closed: bool,
}

#[derive(Debug)]
struct Waiting {
    bytes: Vec<u8>,
    answer: TicketAnswer,
    room: Room,
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
    /// An empty queue.
    pub fn new(mode: Mode, tick_bytes_max: usize, clock: Arc<dyn Clock>) -> Self {
        let room_bytes = u32::try_from(QUEUE_BYTES_MAX.max(tick_bytes_max)).unwrap_or(u32::MAX);
        Self {
            mode,
            tick_bytes_max,
            room: Arc::new(Semaphore::new(room_bytes as usize)),
            room_bytes,
            clock,
            inner: Mutex::default(),
        }
    }

    /// Waits until `bytes` more may be queued. More than the whole queue waits for all of it. `None` once closed.
    pub async fn room(&self, bytes: usize) -> Option<Room> {
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.room_bytes);
        self.room.clone().acquire_many_owned(permits).await.ok().map(|_permit| Room { _permit })
    }

    /// Queues an encoded batch.
    pub fn put(&self, bytes: Vec<u8>, room: Room) -> DeliveryTicket {
        if bytes.is_empty() {
            return DeliveryTicket::resolved(Delivery::Delivered);
        }
        let (answer, ticket) = DeliveryTicket::new();
        let mut inner = self.lock();
        if !inner.closed {
            inner.waiting.push_back(Waiting { bytes, answer, room });
        }
        ticket
    }

    /// The next buffer for the host, if there is one and the host may have it. Never waits for the queue to fill.
    pub fn collect(&self) -> Option<Buffer> {
        let settled;
        let taken = {
            let mut inner = self.lock();
            // The host can go on collecting from an instance it has paused, and drops what it gets.
            if inner.closed || inner.paused {
                return None;
            }
            // Never cleaned up: never appended.
            inner.lent = None;
            settled = inner.count_collect();
            inner.take(self.tick_bytes_max)
        };
        deliver(settled);
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

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
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

    /// The longest run of batches within `bytes_max`; the first whatever its size.
    fn take(&mut self, bytes_max: usize) -> Vec<Waiting> {
        let mut total = 0usize;
        let fits = self.waiting.iter().take_while(|waiting| {
            total = total.saturating_add(waiting.bytes.len());
            total <= bytes_max
        });
        let count = fits.count().max(1).min(self.waiting.len());
        self.waiting.drain(..count).collect()
    }
}

fn join(taken: Vec<Waiting>, since: Duration) -> Option<Lent> {
    let total: usize = taken.iter().map(|waiting| waiting.bytes.len()).sum();
    let mut answers = Vec::with_capacity(taken.len());
    let mut rooms = Vec::with_capacity(taken.len());
    let mut taken = taken.into_iter();
    let first = taken.next()?;
    let mut bytes = first.bytes;
    bytes.reserve_exact(total - bytes.len());
    answers.push(first.answer);
    rooms.push(first.room);
    for waiting in taken {
        bytes.extend_from_slice(&waiting.bytes);
        answers.push(waiting.answer);
        rooms.push(waiting.room);
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
    use futures_util::FutureExt;

    use super::*;
    use crate::clock::TestClock;

    struct Rig {
        handover: Handover,
        clock: TestClock,
    }

    fn rig(mode: Mode, tick_bytes_max: usize) -> Rig {
        let clock = TestClock::at("2026-05-01T00:00:00Z".parse().unwrap());
        Rig { handover: Handover::new(mode, tick_bytes_max, Arc::new(clock.clone())), clock }
    }

    impl Rig {
        fn put(&self, bytes: &[u8]) -> DeliveryTicket {
            let room = self.handover.room(bytes.len()).now_or_never().unwrap().unwrap();
            self.handover.put(bytes.to_vec(), room)
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
