//! How completely each tenant was read over the last days, from the state, for the status page.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::SignedDuration;
use tokio::sync::Mutex;

use super::registry::Registry;
use crate::checkpoint::format::{self, Keys, Position};
use crate::clock::Clock;
use crate::host::StateStore;
use crate::model::Timestamp;
use crate::report::bar::{of_position, worst_of};
use crate::report::model::Segment;

/// As far back as Microsoft keeps content.
const PERIOD: SignedDuration = SignedDuration::from_hours(7 * 24);
/// The state is read again after this time, so that frequent reloads of a page do not keep it busy.
const KEPT_FOR: Duration = Duration::from_secs(15);
/// The same while some tenants have no position yet.
const KEPT_FOR_IN_PART: Duration = Duration::from_secs(1);

/// The bars of all tenants over one period.
#[derive(Debug, Clone, Default)]
pub struct Bars {
    /// Where the period begins.
    pub from: Timestamp,
    /// Where it ends.
    pub to: Timestamp,
    /// By source: at each moment the worst of its content types. A source without state is missing.
    pub of: BTreeMap<String, Vec<Segment>>,
}

/// Reads them from the state, which may be opened after the first request.
pub struct CompletenessReader {
    state: Arc<OnceLock<Arc<dyn StateStore>>>,
    clock: Arc<dyn Clock>,
    known: Mutex<Option<(Duration, Arc<Bars>)>>,
}

impl CompletenessReader {
    /// Reads from this state.
    pub fn new(state: Arc<OnceLock<Arc<dyn StateStore>>>, clock: Arc<dyn Clock>) -> Self {
        Self { state, clock, known: Mutex::new(None) }
    }

    /// The bars now, or as they were a few seconds ago.
    pub async fn bars(&self, registry: &Registry) -> Arc<Bars> {
        let now = self.clock.monotonic();
        let mut known = self.known.lock().await;
        if let Some((_, bars)) = known.as_ref().filter(|(until, _)| now < *until) {
            return bars.clone();
        }
        let bars = Arc::new(self.read(registry).await);
        // After a start, positions appear one after the other, so bars without some of them are soon out of date.
        let is_whole = bars.of.len() == registry.entries().len();
        *known = Some((now + if is_whole { KEPT_FOR } else { KEPT_FOR_IN_PART }, bars.clone()));
        bars
    }

    async fn read(&self, registry: &Registry) -> Bars {
        let to = self.clock.now();
        let from = to.saturating_sub(PERIOD).unwrap_or(Timestamp::MIN);
        let mut of = BTreeMap::new();
        let Some(store) = self.state.get() else { return Bars { from, to, of } };
        for (name, entry) in registry.entries() {
            let keys = Keys::of(&entry.tenant);
            let mut positions = Vec::new();
            for content_type in entry.content_types {
                positions.push(position(&**store, &keys.position(content_type)).await);
            }
            // The completeness of a content type without a position is unknown: it must not count as complete.
            if positions.iter().any(Option::is_some) {
                let bars: Vec<_> = positions.iter().map(|position| of_position(position.as_ref(), from, to)).collect();
                of.insert(name, worst_of(&bars, from, to));
            }
        }
        Bars { from, to, of }
    }
}

/// A position; `None` also when it cannot be read; the source itself reports the reason.
async fn position(store: &dyn StateStore, key: &str) -> Option<Position> {
    let (bytes, _) = store.load(key).await.ok().flatten()?;
    format::decode::<Position>(key, &bytes).ok()
}
