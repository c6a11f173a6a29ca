//! The line that a source logs once after a good start: that it is signed in, the time of its newest event, and how
//! long until it has caught up. Without it, the last lines of the log would be warnings.

use std::time::Duration;

use jiff::SignedDuration;

use crate::model::{Timestamp, counted};

/// A content type that is complete up to this long ago has caught up: Microsoft lists content that is five minutes old,
/// and the next poll is due within minutes.
const CAUGHT_UP: SignedDuration = SignedDuration::from_mins(15);
/// The remaining time is estimated if it is longer than this.
const ESTIMATE_AFTER: Duration = Duration::from_secs(30);

/// One content type, from the view of the loop.
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamProgress {
    /// Everything before is settled.
    pub complete_until: Option<Timestamp>,
    /// Creation of the newest blob that was settled in this run.
    pub newest: Option<Timestamp>,
    /// Blobs listed and not settled.
    pub pending: usize,
    /// A missing permission prevents listing.
    pub parked: bool,
}

/// Whether the line was logged, and the counts for it.
#[derive(Debug)]
pub(super) struct Welcome {
    began: Duration,
    said: bool,
    subscribed: u64,
    settled: u64,
}

impl Welcome {
    /// At the monotonic time `now`.
    pub(super) fn new(now: Duration) -> Self {
        Self { began: now, said: false, subscribed: 0, settled: 0 }
    }

    /// A subscription was started.
    pub(super) fn subscribed(&mut self) {
        self.subscribed += 1;
    }

    /// A blob was settled.
    pub(super) fn settled(&mut self) {
        self.settled += 1;
    }

    /// The text to log now; returned once. `server_now` is Microsoft's time.
    pub(super) fn words(
        &mut self,
        streams: impl Iterator<Item = StreamProgress> + Clone,
        now: Duration,
        server_now: Timestamp,
    ) -> Option<String> {
        if self.said {
            return None;
        }
        let is_complete =
            |known: StreamProgress| known.complete_until.is_some_and(|at| server_now.duration_since(at) < CAUGHT_UP);
        let read = streams.clone().filter(|known| !known.parked);
        let caught_up = read.clone().all(is_complete);
        let took = now.saturating_sub(self.began);
        if read.clone().count() == 0 || !caught_up && (took < ESTIMATE_AFTER || self.settled == 0) {
            return None;
        }
        self.said = true;
        let pending: usize = read.clone().map(|known| known.pending).sum();
        let until = if caught_up { "caught up".to_owned() } else { self.until(pending as u64, took) };
        let newest = match read.filter_map(|known| known.newest).max() {
            Some(newest) => format!("newest event from {newest}"),
            None if self.subscribed > 0 => return Some(self.nothing_yet()),
            None => "nothing new to read".to_owned(),
        };
        Some(format!("signed in: {newest}, {until}"))
    }

    /// How long it takes at the pace so far.
    fn until(&self, pending: u64, took: Duration) -> String {
        let minutes = (pending as f64 / self.settled as f64 * took.as_secs_f64() / 60.0).ceil().max(1.0);
        let long = if minutes < 120.0 { format!("{minutes:.0} min") } else { format!("{:.0} h", minutes / 60.0) };
        format!("caught up in about {long} ({} listed so far)", counted(pending, "blob"))
    }

    fn nothing_yet(&self) -> String {
        format!(
            "signed in: {} started, no content yet: first events take up to 60 minutes (12 hours after a first start); while \
             none come, check `Get-AdminAuditLogConfig | Format-List UnifiedAuditLogIngestionEnabled`",
            counted(self.subscribed, "subscription")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-05-03T10:00:00Z";

    fn at(text: &str) -> Option<Timestamp> {
        Some(text.parse().unwrap())
    }

    fn known(complete_until: Option<Timestamp>, newest: Option<Timestamp>, pending: usize) -> StreamProgress {
        StreamProgress { complete_until, newest, pending, parked: false }
    }

    fn words(welcome: &mut Welcome, streams: &[StreamProgress], secs: u64) -> Option<String> {
        welcome.words(streams.iter().copied(), Duration::from_secs(secs), NOW.parse().unwrap())
    }

    #[test]
    fn it_is_said_once_when_all_that_can_be_read_has_caught_up() {
        let mut welcome = Welcome::new(Duration::ZERO);
        let fresh = known(at("2026-05-03T09:55:00Z"), at("2026-05-03T09:51:00Z"), 0);
        let behind = known(at("2026-05-03T01:00:00Z"), None, 3);
        let parked = StreamProgress { parked: true, ..known(None, None, 0) };
        assert_eq!(words(&mut welcome, &[fresh, behind], 3), None, "one is behind, and it began just now");
        assert_eq!(words(&mut welcome, &[parked], 3), None, "nothing can be read");
        let said = words(&mut welcome, &[fresh, parked], 4);
        assert_eq!(said.as_deref(), Some("signed in: newest event from 2026-05-03T09:51:00Z, caught up"));
        assert_eq!(words(&mut welcome, &[fresh], 5), None, "it was said");
    }

    #[test]
    fn how_long_it_takes_follows_from_what_was_read_so_far() {
        let mut welcome = Welcome::new(Duration::ZERO);
        let behind = known(None, at("2026-05-03T09:51:00Z"), 900);
        assert_eq!(words(&mut welcome, &[behind], 60), None, "nothing was read");
        (0..100).for_each(|_| welcome.settled());
        assert_eq!(
            words(&mut welcome, &[behind], 60).as_deref(),
            Some(
                "signed in: newest event from 2026-05-03T09:51:00Z, caught up in about 9 min (900 blobs listed so far)"
            )
        );
    }

    #[test]
    fn a_new_tenant_is_told_how_long_first_events_take() {
        let mut welcome = Welcome::new(Duration::ZERO);
        welcome.subscribed();
        let said = words(&mut welcome, &[known(at("2026-05-03T09:55:00Z"), None, 0)], 4).unwrap();
        assert!(
            said.starts_with("signed in: 1 subscription started, no content yet") && said.contains("12 hours"),
            "{said}"
        );
    }
}
