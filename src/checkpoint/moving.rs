//! Moves positions for an operator, while no other process writes the tenant's state.
//!
//! Back: content that became available from there on is read and delivered again, so the marks of those blobs are
//! removed, and with them the keys of delivered events. An event may be days older than the blob that brings it, so all
//! event keys of the tenant are removed: their blobs' marks keep other streams from repeating events. Forward: the
//! interval in between is skipped, and the position records it until its gap record is delivered.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use jiff::SignedDuration;
use parking_lot::Mutex;

use super::format::{self, Keys, Position, TenantState, TrackedBlob};
use super::key_set::{self, KeyKind, KeySet};
use crate::host::{Expected, Op, Revision, StateError, StateStore};
use crate::model::{Actionable, ContentType, TenantId, Timestamp};
use crate::plan;

/// A time at most this long before the listable span counts as its beginning.
const EARLY_MAX: SignedDuration = SignedDuration::from_mins(10);
/// The clocks of two machines differ by less.
const SKEW_MAX: SignedDuration = SignedDuration::from_hours(24);

/// The reason of a gap that an operator made, in records, metrics and the state.
pub const POSITION_MOVED: &str = "position_moved";

/// What to move, and where to.
#[derive(Debug, Clone)]
pub struct Move {
    /// The tenant.
    pub tenant: TenantId,
    /// The streams.
    pub content_types: Vec<ContentType>,
    /// Where to go on from.
    pub to: Timestamp,
    /// Events may be passed over.
    pub may_pass_over: bool,
}

/// One position that was moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MovedPosition {
    /// The stream.
    pub content_type: ContentType,
    /// The position before; `None` when it never ran.
    pub before: Option<Timestamp>,
    /// Where it stands.
    pub after: Timestamp,
}

impl fmt::Display for MovedPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.content_type)?;
        match self.before {
            Some(before) => write!(f, "{before}")?,
            None => f.write_str("never ran")?,
        }
        write!(f, " -> {}", self.after)
    }
}

/// Why nothing was moved.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// A position would move forward, and that was not confirmed.
    #[error(
        "`{content_type}` stands at {before}; moving it forward to {to} passes over what became available between, for good"
    )]
    PassesOver {
        /// The stream.
        content_type: ContentType,
        /// Where it stands.
        before: Timestamp,
        /// The new position.
        to: Timestamp,
    },
    /// Microsoft lists nothing that old.
    #[error("cannot move to {to}: Microsoft keeps seven days, the oldest content still listed is of {oldest}")]
    TooOld {
        /// Asked for.
        to: Timestamp,
        /// The oldest content still listed.
        oldest: Timestamp,
    },
    /// That time has not come.
    #[error("cannot move to {to}: it is {now} now")]
    Future {
        /// Asked for.
        to: Timestamp,
        /// Now.
        now: Timestamp,
    },
    /// The store.
    #[error("{0}")]
    State(#[from] StateError),
}

impl Actionable for MoveError {
    fn slug(&self) -> &'static str {
        match self {
            Self::PassesOver { .. } => "state-set-passes-over",
            Self::TooOld { .. } => "state-set-too-old",
            Self::Future { .. } => "state-set-future",
            Self::State(_) => "state-not-read",
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::PassesOver { .. } => {
                "add --yes if that is meant; a gap record then says what was passed over. Nothing was changed".into()
            }
            Self::TooOld { oldest, .. } => format!("use --from {oldest} or later. Nothing was changed"),
            Self::Future { .. } => "give a time that has passed, in UTC. Nothing was changed".into(),
            Self::State(_) => "nothing was changed; see docs/errors/state-corrupt.md".into(),
        }
    }
}

/// Moves positions in one commit. The caller ensures that no source runs on the tenant; `now` is this machine's.
///
/// # Errors
/// When it may not be done, or the store fails; nothing is changed then.
pub async fn apply(
    store: &Arc<dyn StateStore>,
    wanted: &Move,
    now: Timestamp,
) -> Result<Vec<MovedPosition>, MoveError> {
    let keys = Keys::of(&wanted.tenant);
    let tenant: Option<(TenantState, _)> = load(&**store, &keys.tenant()).await?;
    let now = by_microsoft(now, tenant.map(|(tenant, _)| tenant));
    let oldest = plan::floor_to_second(plan::earliest_listable(now)) + SignedDuration::from_secs(1);
    let to = plan::floor_to_second(wanted.to);
    if to > now {
        return Err(MoveError::Future { to, now });
    }
    if oldest.duration_since(to) > EARLY_MAX {
        return Err(MoveError::TooOld { to, oldest });
    }
    let to = to.max(oldest);
    let mut ops = Vec::new();
    let mut moved = Vec::new();
    let mut goes_back = false;
    for &content_type in &wanted.content_types {
        let key = keys.position(content_type);
        let (mut position, expected, before) = match load::<Position>(&**store, &key).await? {
            Some((position, revision)) => {
                let before = position.complete_until.unwrap_or(position.origin);
                (position, Expected::At(revision), Some(before))
            }
            None => (Position::first(to), Expected::Absent, None),
        };
        if let Some(before) = before.filter(|before| *before < to) {
            if !wanted.may_pass_over {
                return Err(MoveError::PassesOver { content_type, before, to });
            }
            forward(&mut position, before, to);
            ops.extend(passed_over(&**store, &keys.tracked(content_type), before, to).await?);
        } else {
            goes_back = true;
            back(&mut position, to);
            let set = KeySet::load(&**store, &keys.blobs(content_type), KeyKind::Blobs).await?;
            ops.extend(key_set::forget_from(&Mutex::new(set), &**store, to).await?.ops);
        }
        moved.push(MovedPosition { content_type, before, after: to });
        ops.push(Op::Put { key, value: format::encode(&position), expected });
    }
    if goes_back {
        let set = KeySet::load(&**store, &keys.events(), KeyKind::Events).await?;
        ops.extend(key_set::forget_from(&Mutex::new(set), &**store, Timestamp::UNIX_EPOCH).await?.ops);
    }
    store.commit(ops).await?;
    Ok(moved)
}

/// Blobs between `before` and `to` that are tracked on their own need no delivery any more.
async fn passed_over(
    store: &dyn StateStore,
    prefix: &str,
    before: Timestamp,
    to: Timestamp,
) -> Result<Vec<Op>, StateError> {
    let mut ops = Vec::new();
    for (key, _) in store.list(prefix).await? {
        let Some((blob, revision)) = load::<TrackedBlob>(store, &key).await? else { continue };
        if before <= blob.created && blob.created < to {
            ops.push(Op::Delete { key, expected: Expected::At(revision) });
        }
    }
    Ok(ops)
}

/// Moves a position forward from `before`. Content older than `to` is no longer listed: if the origin stayed, the next
/// listing of the whole week would return the content that was to be skipped.
fn forward(position: &mut Position, before: Timestamp, to: Timestamp) {
    let begins = position.passed_over.map_or(before, |(begins, _)| begins.min(before));
    position.passed_over = Some((begins, to));
    position.origin = position.origin.max(to);
    stand(position, to);
}

/// Moves a position back. A gap that is still to be declared ends where reading begins.
fn back(position: &mut Position, to: Timestamp) {
    position.passed_over =
        position.passed_over.map(|(begins, ends)| (begins, ends.min(to))).filter(|(begins, ends)| begins < ends);
    position.reread_from(to, POSITION_MOVED);
    position.origin = position.origin.min(to);
    stand(position, to);
}

fn stand(position: &mut Position, to: Timestamp) {
    position.complete_until = Some(to);
    position.listed_until = Some(to);
    position.day_listed = None;
    position.week_listed = None;
}

/// This machine's time, corrected by the last known difference from Microsoft's.
fn by_microsoft(now: Timestamp, tenant: Option<TenantState>) -> Timestamp {
    let seen = tenant.and_then(|tenant| tenant.server_time.zip(tenant.wall_time));
    let skew = seen.map(|(server, wall)| server.duration_since(wall)).filter(|skew| skew.abs() < SKEW_MAX);
    now.checked_add(skew.unwrap_or_default()).unwrap_or(now)
}

async fn load<T: format::Stored>(store: &dyn StateStore, key: &str) -> Result<Option<(T, Revision)>, StateError> {
    let stored: Option<(Bytes, Revision)> = store.load(key).await?;
    stored.map(|(bytes, revision)| Ok((format::decode(key, &bytes)?, revision))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn at(complete: &str) -> Position {
        Position { complete_until: Some(t(complete)), ..Position::first(t("2026-05-01T00:00:00Z")) }
    }

    #[test]
    fn two_moves_forward_are_one_gap_and_a_move_back_shortens_it() {
        let mut position = at("2026-05-02T00:00:00Z");
        forward(&mut position, t("2026-05-02T00:00:00Z"), t("2026-05-03T00:00:00Z"));
        forward(&mut position, t("2026-05-03T00:00:00Z"), t("2026-05-04T00:00:00Z"));
        assert_eq!(position.passed_over, Some((t("2026-05-02T00:00:00Z"), t("2026-05-04T00:00:00Z"))));
        assert_eq!(position.origin, t("2026-05-04T00:00:00Z"));
        back(&mut position, t("2026-05-03T00:00:00Z"));
        assert_eq!(position.passed_over, Some((t("2026-05-02T00:00:00Z"), t("2026-05-03T00:00:00Z"))));
        assert_eq!(position.origin, t("2026-05-03T00:00:00Z"));
        back(&mut position, t("2026-05-01T00:00:00Z"));
        assert_eq!(position.passed_over, None);
        assert_eq!(position.complete_until, Some(t("2026-05-01T00:00:00Z")));
    }

    #[test]
    fn microsofts_clock_counts_where_it_is_known() {
        let tenant = TenantState {
            server_time: Some(t("2026-05-01T01:00:00Z")),
            wall_time: Some(t("2026-05-01T00:00:00Z")),
            ..TenantState::default()
        };
        assert_eq!(by_microsoft(t("2026-05-02T00:00:00Z"), Some(tenant)), t("2026-05-02T01:00:00Z"));
        assert_eq!(by_microsoft(t("2026-05-02T00:00:00Z"), None), t("2026-05-02T00:00:00Z"));
    }
}
