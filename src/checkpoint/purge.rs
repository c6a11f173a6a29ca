//! Removes all data of a tenant from the state: positions, keys of events, reads on hold, records set aside, receipts.

use super::format::Keys;
use crate::host::{Expected, Op, StateError, StateStore};
use crate::model::TenantId;

/// Entries deleted in one commit.
const AT_ONCE: usize = 256;

/// The number of entries removed from the state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Purged {
    /// All of them.
    pub entries: u64,
    /// Pages of routine reads on hold.
    pub held: u64,
    /// Records that were set aside.
    pub aside: u64,
    /// Pages of receipts.
    pub receipts: u64,
}

/// Deletes every entry of a tenant. The caller ensures that no source writes its state; after an interruption, another
/// call finishes the work.
///
/// # Errors
/// The store fails; what was deleted before stays deleted.
pub async fn purge(store: &dyn StateStore, tenant: &TenantId) -> Result<Purged, StateError> {
    let keys = Keys::of(tenant);
    let mut purged = Purged::default();
    let found = store.list(&keys.all()).await?;
    for some in found.chunks(AT_ONCE) {
        let delete = |key: &String| Op::Delete { key: key.clone(), expected: Expected::Any };
        store.commit(some.iter().map(|(key, _)| delete(key)).collect()).await?;
        for (key, _) in some {
            purged.entries += 1;
            purged.held += u64::from(key.starts_with(&keys.held()));
            purged.aside += u64::from(key.contains("/aside/"));
            purged.receipts += u64::from(key.starts_with(&keys.receipts()));
        }
    }
    Ok(purged)
}
