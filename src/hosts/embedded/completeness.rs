//! How completely each tenant was read over the last days, as the state has it, for who looks at a page.

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
/// The state is read again after this time: whoever reloads a page all the time does not keep it busy.
const KEPT_FOR: Duration = Duration::from_secs(15);

/// The bars of all tenants over one period.
#[derive(Debug, Clone, Default)]
pub struct Bars {
    /// Where the period begins.
    pub from: Timestamp,
    /// Where it ends.
    pub to: Timestamp,
    /// By source: of each moment the worst of its content types. A source of which the state has nothing is missing.
    pub of: BTreeMap<String, Vec<Segment>>,
}

/// Reads them from the state, which may be opened later than it is first asked.
pub struct Completeness {
    state: Arc<OnceLock<Arc<dyn StateStore>>>,
    clock: Arc<dyn Clock>,
    known: Mutex<Option<(Duration, Arc<Bars>)>>,
}

impl Completeness {
    /// Of this state.
    pub fn new(state: Arc<OnceLock<Arc<dyn StateStore>>>, clock: Arc<dyn Clock>) -> Self {
        Self { state, clock, known: Mutex::new(None) }
    }

    /// The bars now, or as they were a few seconds ago.
    pub async fn bars(&self, registry: &Registry) -> Arc<Bars> {
        let now = self.clock.monotonic();
        let mut known = self.known.lock().await;
        if let Some((_, bars)) = known.as_ref().filter(|(at, _)| now < *at + KEPT_FOR) {
            return bars.clone();
        }
        let bars = Arc::new(self.read(registry).await);
        *known = Some((now, bars.clone()));
        bars
    }

    async fn read(&self, registry: &Registry) -> Bars {
        let to = self.clock.now();
        let from = to.saturating_sub(PERIOD).unwrap_or(Timestamp::MIN);
        let mut of = BTreeMap::new();
        let Some(store) = self.state.get() else { return Bars { from, to, of } };
        for (name, entry) in registry.entries() {
            let keys = Keys::of(&entry.tenant);
            let mut bars = Vec::new();
            for content_type in entry.content_types {
                let key = keys.position(content_type);
                // What cannot be read is not known; the source itself reports why.
                let Ok(Some((bytes, _))) = store.load(&key).await else { continue };
                let Ok(position) = format::decode::<Position>(&key, &bytes) else { continue };
                bars.push(of_position(Some(&position), from, to));
            }
            if !bars.is_empty() {
                of.insert(name, worst_of(&bars, from, to));
            }
        }
        Bars { from, to, of }
    }
}
