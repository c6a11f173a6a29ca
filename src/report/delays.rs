//! How late content came, read from the state: over the period, and on each of its days.

use super::model::{LatenessDay, LatenessSummary as Shown, Spread};
use crate::checkpoint::format::{self, Keys};
use crate::checkpoint::lateness::{Delays, Lateness, day_of};
use crate::host::{StateError, StateStore};
use crate::model::{ContentType, Timestamp};

/// That of one content type on the days that have a part in `[from, to)`.
///
/// # Errors
/// When the state cannot be read, or a value is damaged.
pub(super) async fn delays(
    store: &dyn StateStore,
    keys: &Keys,
    content_type: ContentType,
    (from, to): (Timestamp, Timestamp),
) -> Result<Shown, StateError> {
    let (first, last) = (day_of(from), day_of(to));
    let (mut all, mut days) = (Lateness::default(), Vec::new());
    let prefix = keys.lateness(content_type);
    for (key, _) in store.list(&prefix).await? {
        let Some(day) = key.strip_prefix(&prefix).filter(|day| (&*first..=&*last).contains(day)) else { continue };
        let Some((bytes, _)) = store.load(&key).await? else { continue };
        let lateness: Lateness = format::decode(&key, &bytes)?;
        all.merge(&lateness);
        let (events, content) = (spread(&lateness.events), spread(&lateness.blobs));
        days.push(LatenessDay { day: day.to_owned(), events, content });
    }
    Ok(Shown { events: spread(&all.events), content: spread(&all.blobs), days })
}

/// `None` if nothing was counted.
fn spread(delays: &Delays) -> Option<Spread> {
    Some(Spread {
        counted: delays.total(),
        counts: delays.counts.to_vec(),
        median_secs: delays.within(500).filter(|_| delays.total() > 0)?,
        p99_secs: delays.within(990)?,
        longest_secs: delays.longest_secs,
    })
}
