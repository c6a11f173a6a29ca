//! How often a call to Microsoft that failed for the moment (a 5xx, no answer, an answer that broke off) is made again:
//! the pauses, and the attempts after which work whose end somebody waits for is left.
//!
//! A wait that Microsoft names counts, where it is longer. Sign-ins have their pauses in `auth`; what is throttled has its
//! own in [`super::job`].

use std::time::Duration;

use crate::backoff::Backoff;

/// Before a blob that could not be read is requested again. It is requested until it expires.
pub(super) const BLOB: Backoff = Backoff::between(Duration::from_millis(500), Duration::from_secs(300));
/// The same in a single pass, whose end a person or script waits for.
pub(super) const BLOB_ONCE: Backoff = Backoff::between(Duration::from_millis(500), Duration::from_secs(10));

/// The longest pause before a window is listed again.
pub(super) const LISTING_MAX: Duration = Duration::from_secs(60);
/// Before a window that could not be listed is listed again, and a subscription that did not start is started again.
pub(super) const LISTING: Backoff = Backoff::between(Duration::from_secs(1), LISTING_MAX);
/// The same in a single pass.
pub(super) const LISTING_ONCE: Backoff = Backoff::between(Duration::from_secs(1), Duration::from_secs(10));

/// Between two requests for the list of subscriptions.
pub(super) const SUBSCRIPTIONS: Backoff = Backoff::between(Duration::from_secs(1), Duration::from_secs(60));
/// The same in a single pass.
pub(super) const SUBSCRIPTIONS_ONCE: Backoff = Backoff::between(Duration::from_secs(1), Duration::from_secs(10));

/// Before a back-fill asks for a listing or a blob again.
pub(super) const BACKFILL: Backoff = Backoff::between(Duration::from_millis(500), Duration::from_secs(20));

/// Before the next request to Microsoft Graph after a fault.
pub(super) const GRAPH: Backoff = Backoff::between(Duration::from_secs(2), Duration::from_secs(300));

/// With `--once`, a page or a blob that failed this often is left.
pub(super) const ONCE_ATTEMPTS_MAX: u32 = 10;
/// After this many failures, a listing or blob is left for the next back-fill.
pub(super) const BACKFILL_ATTEMPTS_MAX: u32 = 10;
