//! A host of your own: what a Rust agent writes to run the source, here against a simulated tenant.
//!
//! `cargo run --example custom_host` prints records to standard output. Everything above `main` is the host; a test
//! holds it under 60 lines, runs it and compares what came out with what the tenant had.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use m365_audit::{
    Batch, Bytes, CancellationToken, Delivery, DeliveryTicket, Expected, Health, Host, M365Audit, Op, Revision,
    SimulatedTenant, Source, SourceConfig, StateError, StateStore, SystemClock, async_trait,
};

/// The agent: records go to a writer, state to [`State`].
pub struct Agent<W> {
    out: Mutex<W>,
    state: Arc<State>,
}

impl<W> Agent<W> {
    /// An agent with nothing in its state.
    pub fn new(out: W) -> Self {
        Self { out: Mutex::new(out), state: Arc::default() }
    }
}

#[async_trait]
impl<W: Write + Send + 'static> Host for Agent<W> {
    /// The answer must hold *for good*: a real agent resolves the ticket when its pipeline has the bytes. A ticket
    /// need not be resolved at once ([`DeliveryTicket::new`]); while it is not, the source holds back.
    async fn deliver(&self, batch: Batch) -> DeliveryTicket {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let written = out.write_all(&batch.ndjson()).and_then(|()| out.flush());
        DeliveryTicket::resolved(written.map_or_else(|e| Delivery::Refused(e.to_string()), |()| Delivery::Delivered))
    }

    fn state(&self) -> Arc<dyn StateStore> {
        self.state.clone()
    }

    fn health(&self, source: &str, health: Health) {
        eprintln!("{source}: {health}");
    }
}

/// State in memory, gone with the process. A real agent puts its own durable store here; a commit must be synced
/// before it returns.
#[derive(Default)]
pub struct State(Mutex<Values>);

type Values = BTreeMap<String, (Bytes, Revision)>;

#[async_trait]
impl StateStore for State {
    async fn load(&self, key: &str) -> Result<Option<(Bytes, Revision)>, StateError> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Revision)>, StateError> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = state.iter().filter(|(key, _)| key.starts_with(prefix));
        Ok(found.map(|(key, (_, revision))| (key.clone(), *revision)).collect())
    }

    /// All or nothing: the steps are tried on a copy.
    async fn commit(&self, ops: Vec<Op>) -> Result<Revision, StateError> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let revision = Revision::draw();
        let mut values = state.clone();
        for op in ops {
            let found = values.get(op.key()).map(|(_, revision)| *revision);
            let fits = match op.expected() {
                Expected::Any => true,
                Expected::Absent => found.is_none(),
                Expected::At(expected) => found == Some(expected),
            };
            match op {
                op if !fits => return Err(StateError::Conflict { key: op.key().to_owned() }),
                Op::Put { key, value, .. } => values.insert(key, (value, revision)),
                Op::Delete { key, .. } => values.remove(&key),
            };
        }
        *state = values;
        Ok(revision)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let tenant = SimulatedTenant::start().await?;
    run_once(Arc::new(Agent::new(std::io::stdout())), tenant.config().build()?).await
}

/// One pass over everything the tenant has. Without `.once()` the source runs until the token is cancelled.
pub async fn run_once<W: Write + Send + 'static>(
    agent: Arc<Agent<W>>,
    config: SourceConfig,
) -> Result<(), Box<dyn std::error::Error>> {
    let source = Box::new(M365Audit::new("contoso", config, SystemClock::new()).once());
    let report = source.run(agent, CancellationToken::new()).await?;
    for left in &report.left {
        eprintln!("left: {}", left.why);
    }
    Ok(())
}
