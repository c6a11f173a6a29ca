//! Bounds the memory for records in flight: for each source, and for all sources of a process together.
//!
//! Every source has a bound of its own, `in_flight_bytes_max`. A hundred sources that catch up at once would hold a
//! hundred times as much, so beyond a first [`SHARE_BYTES`] each they draw on one [`Pool`]. The first share always
//! belongs to the source: a source whose sink is blocked can take the whole pool, and the others still continue.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that a source may always hold, whatever the others do; also the minimum of `in_flight_bytes_max`.
pub const SHARE_BYTES: u32 = 1 << 20;
/// Bytes that all sources of a process may hold together beyond their shares. If the greatest `in_flight_bytes_max`
/// among them is larger, the pool has that size.
pub const POOL_BYTES: u32 = 128 << 20;

/// Permits for bytes that the sources of one process share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pool {
    bytes: Arc<Semaphore>,
    total: Arc<Mutex<u32>>,
}

impl Default for Pool {
    fn default() -> Self {
        Self { bytes: Arc::new(Semaphore::new(POOL_BYTES as usize)), total: Arc::new(Mutex::new(POOL_BYTES)) }
    }
}

impl Pool {
    /// Enlarges the pool so that one source alone may hold `bytes`.
    fn fit(&self, bytes: u32) {
        let mut total = self.total.lock();
        self.bytes.add_permits(bytes.saturating_sub(*total) as usize);
        *total = bytes.max(*total);
    }
}

/// The bound on bytes handed to the host and not yet confirmed (CK-5). Cheap to clone.
#[derive(Clone, Debug)]
pub struct Budget {
    bytes: Arc<Semaphore>,
    total: u32,
    share: Arc<Semaphore>,
    pool: Pool,
}

/// A permit for a number of bytes, released when dropped.
#[derive(Debug)]
pub struct BudgetPermit {
    own: OwnedSemaphorePermit,
    drawn: OwnedSemaphorePermit,
}

impl Budget {
    /// A budget of `total` bytes, at least [`SHARE_BYTES`], that draws on `pool`.
    pub fn new(total: u64, pool: &Pool) -> Self {
        let total = u32::try_from(total).unwrap_or(u32::MAX).max(SHARE_BYTES);
        // A semaphore on 32-bit machines counts to 2^29.
        let total = total.min(u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        pool.fit(total);
        let semaphore = |bytes: u32| Arc::new(Semaphore::new(bytes as usize));
        Self { bytes: semaphore(total), total, share: semaphore(SHARE_BYTES), pool: pool.clone() }
    }

    /// Waits until `bytes` fit; a record larger than the whole budget waits until it is alone.
    pub(super) async fn take(&self, bytes: usize) -> Option<BudgetPermit> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.total);
        let own = self.bytes.clone().acquire_many_owned(bytes).await.ok()?;
        let pool = self.pool.bytes.clone().acquire_many_owned(bytes);
        let drawn = if bytes > SHARE_BYTES {
            pool.await
        } else {
            tokio::select! {
                biased;
                share = self.share.clone().acquire_many_owned(bytes) => share,
                pool = pool => pool,
            }
        };
        Some(BudgetPermit { own, drawn: drawn.ok()? })
    }

    /// All bytes that may be in flight.
    pub fn total(&self) -> u64 {
        u64::from(self.total)
    }

    /// Bytes in flight now.
    pub fn used(&self) -> u64 {
        debug_assert!(self.bytes.available_permits() <= self.total as usize, "CK-5: a budget grew");
        u64::from(self.total).saturating_sub(self.bytes.available_permits() as u64)
    }

    /// Bytes that could be taken now.
    pub fn free(&self) -> u64 {
        let drawn = self.share.available_permits() + self.pool.bytes.available_permits();
        self.bytes.available_permits().min(drawn) as u64
    }
}

impl BudgetPermit {
    /// The size of the permit.
    pub(super) fn bytes(&self) -> usize {
        self.own.num_permits()
    }

    /// Releases everything above `bytes`.
    pub(super) fn shrink(&mut self, bytes: usize) {
        for part in [&mut self.own, &mut self.drawn] {
            drop(part.split(part.num_permits().saturating_sub(bytes)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use proptest::prelude::*;

    const MIB: usize = 1 << 20;

    fn try_take(budget: &Budget, bytes: usize) -> Option<BudgetPermit> {
        budget.take(bytes).now_or_never().flatten()
    }

    fn fill(budget: &Budget, bytes: usize) -> Vec<BudgetPermit> {
        std::iter::from_fn(|| try_take(budget, bytes)).collect()
    }

    #[test]
    fn a_source_alone_may_hold_all_of_its_budget_and_no_more() {
        for total in [MIB, 32 * MIB, 200 * MIB] {
            let budget = Budget::new(total as u64, &Pool::default());
            let rooms = fill(&budget, MIB / 4);
            assert_eq!(rooms.len(), 4 * total / MIB);
            assert_eq!((budget.used(), budget.free()), (total as u64, 0));
            drop(rooms);
            assert_eq!((budget.used(), budget.free()), (0, total as u64));
        }
    }

    #[test]
    fn more_than_the_whole_budget_is_taken_when_it_is_alone() {
        let budget = Budget::new(2 << 20, &Pool::default());
        let small = try_take(&budget, 1).expect("room");
        assert!(try_take(&budget, 5 * MIB).is_none());
        drop(small);
        let large = try_take(&budget, 5 * MIB).expect("room");
        assert_eq!(large.bytes(), 2 * MIB);
        assert!(try_take(&budget, 1).is_none());
    }

    #[test]
    fn what_is_given_back_of_a_room_can_be_taken_again() {
        let budget = Budget::new(MIB as u64, &Pool::default());
        let mut room = try_take(&budget, MIB).expect("room");
        room.shrink(MIB / 2);
        assert_eq!(room.bytes(), MIB / 2);
        assert!(try_take(&budget, MIB / 2).is_some());
        room.shrink(MIB);
        assert_eq!(room.bytes(), MIB / 2);
    }

    #[test]
    fn sources_that_stand_still_take_the_pool_and_leave_each_other_its_share() {
        let pool = Pool::default();
        let stuck: Vec<Budget> = (0..8).map(|_| Budget::new(32 << 20, &pool)).collect();
        let held: Vec<Vec<BudgetPermit>> = stuck.iter().map(|budget| fill(budget, MIB / 4)).collect();
        let bytes: usize = held.iter().flatten().map(BudgetPermit::bytes).sum();
        assert_eq!(bytes, POOL_BYTES as usize + 8 * MIB, "in all, whatever each may hold by itself");

        let other = Budget::new(32 << 20, &pool);
        for _ in 0..3 {
            assert_eq!(fill(&other, MIB / 4).len(), 4);
        }
        drop(held);
        assert_eq!(fill(&other, MIB / 4).len(), 128);
    }

    #[test]
    fn who_waits_for_the_pool_goes_on_when_room_of_its_own_share_is_given_back() {
        let pool = Pool::default();
        let stuck: Vec<Budget> = (0..2).map(|_| Budget::new(u64::from(POOL_BYTES), &pool)).collect();
        let _held: Vec<Vec<BudgetPermit>> = stuck.iter().map(|budget| fill(budget, MIB)).collect();
        let other = Budget::new(32 << 20, &pool);
        let mut own = fill(&other, MIB / 4);
        assert_eq!(own.len(), 4);
        let mut waiting = std::pin::pin!(other.take(MIB / 4));
        assert!((&mut waiting).now_or_never().is_none());
        own.pop();
        assert!((&mut waiting).now_or_never().flatten().is_some());
    }

    proptest! {
        #[test]
        fn all_sources_together_stay_under_pool_and_shares(
            steps in prop::collection::vec((0..6_usize, 1..4 * MIB, any::<prop::sample::Index>(), any::<bool>()), 1..400)
        ) {
            let pool = Pool::default();
            let budgets: Vec<Budget> = (0..6).map(|_| Budget::new(64 << 20, &pool)).collect();
            let mut held: Vec<BudgetPermit> = Vec::new();
            for (who, bytes, which, gives) in steps {
                if gives && !held.is_empty() {
                    let at = which.index(held.len());
                    held.swap_remove(at);
                } else {
                    held.extend(try_take(&budgets[who], bytes));
                }
                let all: usize = held.iter().map(BudgetPermit::bytes).sum();
                prop_assert!(all <= POOL_BYTES as usize + 6 * MIB);
                prop_assert_eq!(all as u64, budgets.iter().map(Budget::used).sum::<u64>());
            }
            drop(held);
            prop_assert!(budgets.iter().all(|budget| budget.free() == budget.total()));
        }
    }
}
