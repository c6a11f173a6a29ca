//! Whether a tenant may read blobs, from the view of its loop: its work, its place in the queue, its room for blobs
//! meanwhile, and the report when it waits long.

use std::time::Duration;

use super::health::{Component, HealthReporter, Level};
use super::stream::Rooms;
use super::turns::{self, Need, Priority, TurnSeat, TurnState};
use crate::metrics;
use crate::model::counted;

/// A tenant that waits this long for its turn is reported.
const ALARM: Duration = Duration::from_secs(900);

/// See the module's documentation.
pub(super) struct TenantTurn {
    seat: TurnSeat,
    turn: TurnState,
    /// Blobs being fetched, and how many fetches have ended.
    fetching: usize,
    ended: u64,
    /// Whether content of it was about to expire at the last check.
    expiring: bool,
    /// Whether the gauge of its waiting time has a value other than 0.
    shown: bool,
}

impl TenantTurn {
    /// For a tenant without work yet.
    pub(super) fn new(seat: TurnSeat) -> Self {
        Self { seat, turn: TurnState::Idle, fetching: 0, ended: 0, expiring: false, shown: false }
    }

    /// Submits how many blobs are ready; returns whether the tenant's state in the queue changed.
    pub(super) fn ask(&mut self, ready: usize, now: Duration) -> bool {
        let class = match () {
            () if self.expiring => Priority::Expiring,
            () if ready + self.fetching <= turns::FEW => Priority::Few,
            () => Priority::Many,
        };
        let need = Need { ready: ready > 0, fetching: self.fetching > 0, class, ended: self.ended };
        let turn = self.seat.ask(now, need);
        std::mem::replace(&mut self.turn, turn) != turn
    }

    /// Whether a fetch may begin.
    pub(super) fn may_begin(&self) -> bool {
        self.turn == TurnState::Reading
    }

    /// A fetch begins.
    pub(super) fn begin(&mut self) {
        self.fetching += 1;
    }

    /// A fetch has ended.
    pub(super) fn end(&mut self) {
        self.fetching = self.fetching.saturating_sub(1);
        self.ended += 1;
    }

    /// Resolves when a turn has come.
    pub(super) async fn woken(&self) {
        self.seat.woken().await;
    }

    /// The room left beside this many unsettled blobs. New content has room of its own beside the backlog, except for a
    /// tenant that waits.
    pub(super) fn rooms(&self, unsettled: usize) -> Rooms {
        let most = self.seat.unsettled_max(self.turn);
        let fresh = if matches!(self.turn, TurnState::Waiting(_)) { most } else { 2 * most };
        Rooms { backlog: unsettled < most, fresh: unsettled < fresh }
    }

    /// Reports when it waits too long; the limit is shorter when it is `expiring`.
    pub(super) fn check(&mut self, expiring: bool, now: Duration, reporter: &HealthReporter) {
        self.expiring = expiring;
        let why = match self.turn {
            TurnState::Waiting(_) if expiring => "the oldest of it is gone within a day",
            TurnState::Waiting(since) if now >= since + ALARM => "for a quarter of an hour or longer",
            _ => return reporter.clear(Component::Turn),
        };
        let (_, most) = self.seat.place();
        reporter.report(
            Component::Turn,
            Level::Degraded,
            format!("turn-awaited: it waits for its turn to be read, {} at a time: {why}", counted(most as u64, "tenant")),
            "nothing is lost while it waits; see whether a sink takes nothing, or raise `catch_up_tenants_max` where there is memory for it",
        );
    }

    /// Sets the gauge of its waiting time, once it had to wait.
    pub(super) fn set_gauge(&mut self, tenant: &::metrics::SharedString, now: Duration) {
        let waited = match self.turn {
            TurnState::Waiting(since) => now.saturating_sub(since).as_secs_f64(),
            _ if self.shown => 0.0,
            _ => return,
        };
        self.shown = waited > 0.0;
        ::metrics::gauge!(metrics::TURN_WAITING_SECONDS, "tenant" => tenant.clone()).set(waited);
    }
}
