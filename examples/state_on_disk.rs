//! A state that survives the process: SQLite behind [`StateStore`], as an agent with a database of its own would do it.
//!
//! `cargo run --example state_on_disk -- DIR` reads a simulated tenant, stops in the middle as a killed process would,
//! and begins again: what was confirmed does not come a second time. Everything above `main` is the store; a test holds
//! it to the contract of every store and to 70 lines. Whoever wants a store and not an example of one takes
//! `m365_audit::SqliteStore` (feature `sqlite`), which writes off the runtime and joins commits.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use m365_audit::{
    Batch, Bytes, CancellationToken, Delivery, DeliveryTicket, Expected, Health, Host, M365Audit, Op, Revision,
    SimulatedTenant, Source, SourceConfig, StateError, StateStore, SystemClock, async_trait,
};
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

/// One file, one table: a key, its value, and the revision of the commit that wrote it.
pub struct DiskState(Mutex<Connection>);

impl DiskState {
    /// Opens the file, or makes it.
    pub fn open(file: &Path) -> rusqlite::Result<Self> {
        let connection = Connection::open(file)?;
        // A commit is on the disk when it returns: `synchronous` is what keeps the state from being behind.
        connection.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
             CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL);",
        )?;
        Ok(Self(Mutex::new(connection)))
    }

    fn with<T>(&self, work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T, StateError> {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
            .map_err(|e| StateError::Unavailable(e.to_string()))
    }
}

/// SQLite's numbers have a sign.
fn revision(row: &rusqlite::Row, column: usize) -> rusqlite::Result<Revision> {
    Ok(Revision(row.get::<_, i64>(column)?.cast_unsigned()))
}

/// One step of a commit: `false` where something else is under the key than the source expects.
fn apply(commit: &Transaction, op: &Op, now: Revision) -> rusqlite::Result<bool> {
    let select = "SELECT revision FROM state WHERE key = ?1";
    let found = commit.query_row(select, [op.key()], |row| revision(row, 0)).optional()?;
    let fits = match op.expected() {
        Expected::Any => true,
        Expected::Absent => found.is_none(),
        Expected::At(expected) => found == Some(expected),
    };
    let put = "REPLACE INTO state VALUES (?1, ?2, ?3)";
    match op {
        _ if !fits => 0,
        Op::Put { key, value, .. } => commit.execute(put, params![key, &value[..], now.0.cast_signed()])?,
        Op::Delete { key, .. } => commit.execute("DELETE FROM state WHERE key = ?1", [key])?,
    };
    Ok(fits)
}

#[async_trait]
impl StateStore for DiskState {
    async fn load(&self, key: &str) -> Result<Option<(Bytes, Revision)>, StateError> {
        let row = |row: &rusqlite::Row| Ok((Bytes::from(row.get::<_, Vec<u8>>(0)?), revision(row, 1)?));
        self.with(|c| c.query_row("SELECT value, revision FROM state WHERE key = ?1", [key], row).optional())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Revision)>, StateError> {
        let select = "SELECT key, revision FROM state WHERE substr(key, 1, length(?1)) = ?1 ORDER BY key";
        self.with(|c| c.prepare(select)?.query_map([prefix], |r| Ok((r.get(0)?, revision(r, 1)?)))?.collect())
    }

    /// All or nothing: one transaction, which is taken back when a step meets another writer.
    async fn commit(&self, ops: Vec<Op>) -> Result<Revision, StateError> {
        self.with(|connection| {
            let commit = connection.transaction()?;
            // Not counted: a file brought back from a backup would count on from where it was, and give one out twice.
            let now = Revision::draw();
            for op in &ops {
                if !apply(&commit, op, now)? {
                    return Ok(Err(StateError::Conflict { key: op.key().to_owned() }));
                }
            }
            commit.commit()?;
            Ok(Ok(now))
        })?
    }
}

/// The agent: it counts records, and stops the source when it has `stop_after`.
pub struct Agent {
    state: Arc<DiskState>,
    stop: CancellationToken,
    stop_after: usize,
    records: Mutex<Vec<Vec<u8>>>,
}

impl Agent {
    /// An agent over a state that may have one before it.
    pub fn new(state: DiskState, stop_after: usize) -> Self {
        Self { state: Arc::new(state), stop: CancellationToken::new(), stop_after, records: Mutex::default() }
    }

    /// What it got.
    pub fn records(&self) -> Vec<Vec<u8>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl Host for Agent {
    async fn deliver(&self, batch: Batch) -> DeliveryTicket {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        if records.len() >= self.stop_after {
            return DeliveryTicket::resolved(Delivery::Refused("the agent is stopping".into()));
        }
        records.extend(batch.records().map(|record| record.json.to_vec()));
        if records.len() >= self.stop_after {
            self.stop.cancel();
        }
        DeliveryTicket::resolved(Delivery::Delivered)
    }

    fn state(&self) -> Arc<dyn StateStore> {
        self.state.clone()
    }

    fn health(&self, source: &str, health: Health) {
        eprintln!("{source}: {health}");
    }
}

/// One pass, or less if the agent stops it.
pub async fn run_once(agent: Arc<Agent>, config: SourceConfig) -> Result<(), Box<dyn std::error::Error>> {
    let source = Box::new(M365Audit::new("contoso", config, SystemClock::new()).once());
    source.run(agent.clone(), agent.stop.clone()).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).ok_or("which directory may the state be in?")?;
    let file = Path::new(&dir).join("state.sqlite");
    let tenant = SimulatedTenant::start().await?;
    for (run, stop_after) in [("first", 20), ("second", usize::MAX), ("third", usize::MAX)] {
        let agent = Arc::new(Agent::new(DiskState::open(&file)?, stop_after));
        run_once(agent.clone(), tenant.config().build()?).await?;
        println!("{run} run: {} records", agent.records().len());
    }
    Ok(())
}
