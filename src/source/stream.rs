//! One content type of a tenant, from the view of its loop: the position, and the blobs that hold it back.
//!
//! It decides how far the position may move and which intervals are gaps. It sends no request and starts no task.

use std::time::Duration;

use jiff::SignedDuration;
use tokio::sync::watch;

use super::gap::{GapReason, remembered};
use super::hold;
use super::listing::Guidance;
use super::report::Left;
use super::unsettled::{Unsettled, UnsettledBlob};
use super::welcome::StreamProgress;
use crate::checkpoint::claims::EventIndex;
use crate::checkpoint::format::Position;
use crate::checkpoint::key::Key;
use crate::checkpoint::key_set::Probe;
use crate::metrics;
use crate::model::{BlobRef, ContentType, Timestamp, Window};
use crate::plan::{self, Bounds, Reach};

/// Windows remembered as read before they are merged.
const READ_WINDOWS_MAX: usize = 512;

/// Which changes of the position the ledger does not have yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Unwritten {
    /// Nothing.
    #[default]
    Nothing,
    /// Only time and empty listings moved it: after a restart, that span is listed again.
    Drift,
    /// It changed.
    Change,
}

/// See the module's documentation.
pub(super) struct Stream {
    pub position: Position,
    pub unwritten: Unwritten,
    pub settled: EventIndex,
    pub unsettled: Unsettled,
    pub guidance: watch::Sender<Guidance>,
    /// A gap's record is on its way to the host.
    pub declaring: bool,
    /// When a new blob was found last, by the monotonic clock.
    pub new_content_at: Duration,
    /// Creation of the newest blob that was settled.
    pub newest: Option<Timestamp>,
    /// With `once`: listed to the end, or given up for the reason given.
    pub ended: Option<Option<Left>>,
    /// Since when a missing permission prevents listing.
    pub parked: Option<Duration>,
    /// Windows read to their last page, beyond the position.
    read: Vec<Window>,
    /// The gauge of the next expiry has a value.
    expiry_shown: bool,
}

/// An interval that was never listed and no longer can be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unlistable {
    /// Not a gap: the first pass took so long that its oldest minutes expired.
    BeforeTheFirst {
        /// Where the first pass was to begin.
        from: Timestamp,
        /// Where it begins.
        begins: Timestamp,
    },
    /// A gap.
    Gap(Window, GapReason),
}

impl Stream {
    /// Starts at `position`, or, if the stream never ran, at a new position that begins at `began` and reads from
    /// `first` on.
    pub(super) fn new(
        stored: Option<Position>,
        (first, began): (Timestamp, Timestamp),
        listable_from: Timestamp,
        settled: EventIndex,
        now: Duration,
    ) -> Self {
        let unwritten = if stored.is_none() { Unwritten::Change } else { Unwritten::Nothing };
        let mut position = stored.unwrap_or_else(|| Position { began: Some(began), ..Position::first(first) });
        if position.last_listing.is_none() && position.origin < listable_from {
            // Never listed before: a first run, not a gap.
            position.origin = first;
        }
        let guidance = watch::Sender::new(guidance_of(&position, Rooms::ALL));
        Self {
            position,
            unwritten,
            settled,
            unsettled: Unsettled::default(),
            guidance,
            declaring: false,
            new_content_at: now,
            newest: None,
            ended: None,
            parked: None,
            read: Vec::new(),
            expiry_shown: false,
        }
    }

    /// Sends the lister the position and the room for more blobs.
    pub(super) fn guide(&self, rooms: Rooms) {
        let guidance = guidance_of(&self.position, rooms);
        self.guidance.send_if_modified(|known| {
            let changed = *known != guidance;
            *known = guidance;
            changed
        });
    }

    // ---- blobs ----

    /// Whether a blob is settled, as far as memory knows.
    pub(super) fn is_settled(&self, key: Key) -> bool {
        self.settled.with_keys(|set| set.probe(key)) == Probe::Present
    }

    /// Adds a blob; returns whether it came late, below the position.
    pub(super) fn add(&mut self, key: Key, blob: &BlobRef, persisted: bool) -> bool {
        let late = self.position.complete_until.is_some_and(|complete| blob.created < complete);
        let BlobRef { created, expires, .. } = *blob;
        self.unsettled
            .insert(key, UnsettledBlob { created, expires, persisted, holds: !late, failures: 0, given_up: false });
        late
    }

    /// With `once`: listed to the end and everything settled or given up.
    pub(super) fn is_finished(&self) -> bool {
        self.ended.is_some() && !self.declaring && self.unsettled.wanted() == 0
    }

    /// Whether content of it, listed or not, may expire `within` a time from `now`.
    pub(super) fn expires_within(&self, within: SignedDuration, now: Timestamp) -> bool {
        let wanted = self.unsettled.values().filter(|blob| !blob.given_up);
        let blobs = wanted.map(|blob| blob.expires).min().is_some_and(|expires| expires.duration_since(now) < within);
        let known = self.position.complete_until.max(self.position.listed_until);
        let unread =
            known.filter(|_| self.parked.is_none()).is_some_and(|at| at < plan::earliest_listable(now) + within);
        blobs || unread
    }

    // ---- position ----

    /// Records that every page of a window was read.
    pub(super) fn note_read(&mut self, window: Window) {
        self.read.retain(|known| !(known.start >= window.start && known.end <= window.end));
        self.read.push(window);
        if self.read.len() > READ_WINDOWS_MAX {
            // Many windows stay when a blob holds the position for days. Merged they are held as one, which moves the
            // position later, never further.
            self.read.sort_by_key(|w| w.start);
            let mut merged: Vec<Window> = Vec::new();
            for window in self.read.drain(..) {
                match merged.last_mut() {
                    Some(last) if window.start <= last.end => last.end = last.end.max(window.end),
                    _ => merged.push(window),
                }
            }
            self.read = merged;
        }
    }

    /// Records that every window of a wider pass, planned at `at`, was read.
    pub(super) fn note_pass(&mut self, reach: Reach, at: Timestamp) {
        self.position.day_listed = Some(at);
        if reach == Reach::Week {
            self.position.week_listed = Some(at);
        }
        self.unwritten = Unwritten::Change;
    }

    /// Moves `complete_until` and `listed_until` as far as the windows read and blobs settled allow.
    pub(super) fn advance(&mut self, now: Timestamp, once: bool) {
        let position = &mut self.position;
        let first = position.complete_until.is_none();
        let bounds = Bounds { origin: position.origin, complete_until: position.complete_until };
        let oldest = self.unsettled.oldest_holding();
        let mut moved = false;
        if let Some(complete) = plan::advance(bounds, &self.read, oldest, now) {
            debug_assert!(position.complete_until.is_none_or(|before| before < complete), "CK-1: never moves back");
            debug_assert!(oldest.is_none_or(|blob| blob >= complete), "CK-1: an unanswered blob was passed");
            position.complete_until = Some(complete);
            moved = true;
        }
        let listed_from = position.listed_until.max(position.complete_until).unwrap_or(position.origin);
        let oldest_untracked = self.unsettled.oldest_untracked();
        let listed = Bounds { origin: position.origin, complete_until: Some(listed_from) };
        let listed_until = plan::advance(listed, &self.read, oldest_untracked, now).unwrap_or(listed_from);
        if position.listed_until != Some(listed_until) && listed_until > position.origin {
            position.listed_until = Some(listed_until);
            moved = true;
        }
        if moved {
            let complete = position.complete_until.unwrap_or(position.origin);
            self.read.retain(|w| w.end > complete);
            self.unwritten = self.unwritten.max(if first || once { Unwritten::Change } else { Unwritten::Drift });
        }
    }

    /// The position, if it needs writing; it counts as written from now on.
    pub(super) fn take_unwritten(&mut self) -> Option<Position> {
        match std::mem::take(&mut self.unwritten) {
            Unwritten::Nothing => None,
            Unwritten::Drift | Unwritten::Change => Some(self.position.clone()),
        }
    }

    /// How far this stream knows matches of data loss prevention. `now` is Microsoft's time, `at` the monotonic
    /// clock's.
    pub(super) fn waited(&self, now: Option<Timestamp>, at: Duration, hold: Duration, once: bool) -> hold::Waited {
        let Position { origin, complete_until, last_listing, .. } = self.position;
        hold::Waited {
            from: origin,
            until: complete_until,
            // A type that was read before may be refused for a moment; reads that wait for it are not dropped for that.
            parked: self.parked.is_some_and(|since| match complete_until {
                None => true,
                // A pass ends before a refusal could last long, so the time since the last listing decides.
                Some(until) if once => {
                    let listed = last_listing.map_or(until, |listed| listed.max(until));
                    now.is_some_and(|now| now.duration_since(listed) > hold::UNLISTED_TO_PASS)
                }
                Some(_) => since + hold <= at,
            }),
        }
    }

    // ---- gaps ----

    /// The interval that was never listed and no longer can be, once the start of the listed content is known. Before
    /// that, the interval would grow by the minute and be declared in pieces.
    pub(super) fn unlistable(&self, now: Timestamp) -> Option<Unlistable> {
        if self.declaring {
            return None;
        }
        let position = &self.position;
        if let Some((start, end)) = position.passed_over {
            return Some(Unlistable::Gap(Window { start, end }, GapReason::PositionMoved));
        }
        position.last_listing?;
        let known = position.complete_until.max(position.listed_until);
        let until = known.unwrap_or(position.origin);
        let window = plan::unlistable(until, now)?;
        let begins = self.read.iter().filter(|read| read.end > until).map(|read| read.start).min();
        let begins = begins.filter(|begins| until < *begins && *begins <= window.end)?;
        if known.is_none() {
            return Some(Unlistable::BeforeTheFirst { from: until, begins });
        }
        // A blob of the interval that is listed and neither settled nor tracked yet will be one of the two soon.
        let window = Window { end: begins, ..window };
        let open = self.unsettled.oldest_untracked().is_some_and(|created| created < window.end);
        (!open).then_some(Unlistable::Gap(window, GapReason::Outage))
    }

    /// Records that the host has accepted the gap's record: the position may pass the gap.
    pub(super) fn declared(&mut self, window: Window, reason: GapReason) {
        self.declaring = false;
        self.unwritten = Unwritten::Change;
        let position = &mut self.position;
        position.note_gap(remembered(window, reason));
        match reason {
            GapReason::Outage => {
                // Blobs of the gap that were listed before are tracked on their own and no longer hold the position
                // back.
                self.unsettled.release_before(window.end);
                position.complete_until = position.complete_until.max(Some(window.end));
                position.listed_until = position.listed_until.max(Some(window.end));
            }
            GapReason::SubscriptionDisabled => {
                position.disabled_since = None;
                position.last_listing = position.last_listing.max(Some(window.end));
            }
            GapReason::PositionMoved => position.passed_over = None,
            GapReason::BlobExpired => {}
        }
    }

    /// The facts about it that are logged after a start.
    pub(super) fn known(&self) -> StreamProgress {
        let (complete_until, pending) = (self.position.complete_until, self.unsettled.len());
        StreamProgress { complete_until, newest: self.newest, pending, parked: self.parked.is_some() }
    }

    // ---- gauges ----

    /// Sets its gauges. `server_now` is Microsoft's time, where it is trusted.
    pub(super) fn set_gauges(
        &mut self,
        tenant: &::metrics::SharedString,
        content_type: ContentType,
        now: Duration,
        server_now: Option<Timestamp>,
    ) {
        let set = |name, value: f64| {
            ::metrics::gauge!(name, "tenant" => tenant.clone(), "content_type" => content_type.as_str()).set(value);
        };
        set(metrics::BLOBS_PENDING, self.unsettled.len() as f64);
        set(metrics::SECONDS_SINCE_CONTENT, now.saturating_sub(self.new_content_at).as_secs_f64());
        if let Some(complete) = self.position.complete_until {
            set(metrics::CHECKPOINT_TIMESTAMP_SECONDS, complete.as_second() as f64);
        }
        if self.unsettled.len() == 0 {
            // Set even with an untrusted clock, since an alert on a settled blob must end.
            set(metrics::OLDEST_BLOB_AGE_SECONDS, 0.0);
            // A series that never had a value is not created just to reset it.
            if std::mem::take(&mut self.expiry_shown) {
                set(metrics::OLDEST_BLOB_EXPIRY_SECONDS, metrics::ABSENT);
            }
        }
        let Some(server_now) = server_now else { return };
        if let Some(oldest) = self.unsettled.values().map(|b| b.created).min() {
            set(metrics::OLDEST_BLOB_AGE_SECONDS, server_now.duration_since(oldest).as_secs_f64());
        }
        if let Some(expires) = self.unsettled.values().map(|b| b.expires).min() {
            self.expiry_shown = true;
            set(metrics::OLDEST_BLOB_EXPIRY_SECONDS, expires.duration_since(server_now).as_secs_f64());
        }
        if let Some(newest) = self.newest {
            set(metrics::LAG_SECONDS, server_now.duration_since(newest).as_secs_f64());
        }
    }
}

/// The room that a lister has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rooms {
    /// More backlog.
    pub backlog: bool,
    /// Content that came since the last poll.
    pub fresh: bool,
}

impl Rooms {
    const ALL: Self = Self { backlog: true, fresh: true };
}

fn guidance_of(position: &Position, rooms: Rooms) -> Guidance {
    Guidance {
        bounds: Bounds { origin: position.origin, complete_until: position.complete_until },
        day_listed: position.day_listed,
        week_listed: position.week_listed,
        room: rooms.backlog,
        fresh_room: rooms.fresh,
    }
}
