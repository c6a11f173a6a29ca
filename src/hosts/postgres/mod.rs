//! A fleet of processes on one PostgreSQL: the state of all tenants, who is in the fleet, who reads which tenant.
//!
//! What is promised: a commit is all or nothing, compared with the revision of the tenant's owner, and durable as the
//! server's `synchronous_commit` says when it returns. Nothing lost rests on that alone; leases (`leases.rs`) only bound what
//! comes twice. Statements are sent in one round trip and leave nothing behind on the connection, so they go through
//! pgbouncer in transaction mode.
//!
//! A commit is never cancelled: a server that waits for a synchronous standby would take it all the same. Where no answer
//! comes, the connection is dropped and the error says that nothing is known; the writer asks again and finds its own
//! commit by the name in it (`checkpoint::ledger`).

mod connect;
mod failures;
pub mod fence;
pub mod leases;
pub mod members;
pub mod placement;
pub mod requests;
pub mod schema;
pub mod tenants;

use std::collections::{BTreeMap, HashMap};
use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use deadpool_postgres::{Object, Pool, PoolError, TimeoutType};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};

pub use self::connect::{Endpoint, UrlError};
use super::embedded::store::{first_after, sum};
use crate::checkpoint::format::KEY_ROOT;
use crate::clock::Clock;
use crate::host::{Expected, LOAD_BYTES, Loaded, Op, Revision, StateError, StateStore};
use crate::metrics;
use crate::model::TenantId;

/// Keys that are no tenant's are kept under a tenant that Microsoft gives to nobody.
const NOBODY: &str = "ffffffff-ffff-ffff-ffff-ffffffffffff";
/// The key, below a tenant's prefix, that has a table of its own.
const OWNER: &str = "owner";
/// Rows of one read, of which [`LOAD_BYTES`] are answered.
const ROWS_MAX: i64 = 1024;
/// What a source reads ahead when it opens a tenant.
const READ_AHEAD_BYTES: usize = 4 << 20;
/// Connections of one process, beside the one for its leases.
const CONNECTIONS_MAX: usize = 8;
/// For an answer to come. A commit that takes longer has its connection dropped and is asked for again.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// Between two attempts to reach a server that is away.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// Called with why a server is away, after each attempt to reach it.
pub type OnWait<'w> = dyn FnMut(&StateError) + Send + 'w;

/// The state of all tenants of a fleet.
#[derive(Debug, Clone)]
pub struct PostgresStore {
    pool: Pool,
    /// One connection, for heartbeats and leases: they do not wait behind commits.
    leases: Pool,
    member: String,
    shown: String,
    clock: Arc<dyn Clock>,
}

impl PostgresStore {
    /// A store that connects when it is first asked. `member` is noted beside each commit, for people.
    ///
    /// # Errors
    /// Why there can be none.
    pub fn new(endpoint: &Endpoint, member: &str, clock: Arc<dyn Clock>) -> Result<Self, String> {
        let (pool, leases) = (endpoint.pool(CONNECTIONS_MAX)?, endpoint.pool(1)?);
        Ok(Self { pool, leases, member: member.to_owned(), shown: endpoint.shown(), clock })
    }

    /// The same store over the connection that is kept for heartbeats and leases.
    #[must_use]
    pub fn for_leases(&self) -> Self {
        Self { pool: self.leases.clone(), ..self.clone() }
    }

    /// Where it is, without what is secret.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    async fn connection(&self) -> Result<Object, StateError> {
        self.pool.get().await.map_err(|error| {
            let why = match &error {
                PoolError::Backend(error) => in_words(error),
                error => in_words(error),
            };
            StateError::Unavailable(format!("{}: {why}", self.shown))
        })
    }

    /// As [`rows`](Self::rows), but waits for a server that is away. `on_wait` is called with why it is, after each attempt.
    async fn rows_once_there(&self, sql: &str, on_wait: &mut OnWait<'_>) -> Result<Vec<Row>, StateError> {
        loop {
            let answer = match self.pool.get().await {
                Ok(connection) => match tokio::time::timeout(ANSWER_WAIT, connection.query_typed(sql, &[])).await {
                    Ok(answer) => answer.map_err(PoolError::Backend),
                    Err(_) => {
                        drop(Object::take(connection));
                        Err(PoolError::Timeout(TimeoutType::Recycle))
                    }
                },
                Err(error) => Err(error),
            };
            let (is_away, error) = match answer {
                Ok(rows) => return Ok(rows),
                Err(PoolError::Backend(error)) => (is_away(&error), self.failed(&error)),
                Err(PoolError::Timeout(_)) => (true, self.no_answer()),
                Err(error) => (false, StateError::Unavailable(format!("{}: {}", self.shown, in_words(&error)))),
            };
            if !is_away {
                return Err(error);
            }
            on_wait(&error);
            self.clock.sleep(RETRY_WAIT).await;
        }
    }

    /// The rows of one statement, in one round trip.
    ///
    /// # Errors
    /// The server cannot be reached, does not answer, or refuses.
    pub(super) async fn rows(&self, sql: &str, params: &[(&(dyn ToSql + Sync), Type)]) -> Result<Vec<Row>, StateError> {
        let connection = self.connection().await?;
        match tokio::time::timeout(ANSWER_WAIT, connection.query_typed(sql, params)).await {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(error)) => Err(self.failed(&error)),
            Err(_) => {
                // Whatever the server still does there, nobody waits for it.
                drop(Object::take(connection));
                Err(self.no_answer())
            }
        }
    }

    fn no_answer(&self) -> StateError {
        StateError::Unavailable(format!("{}: no answer within {} s", self.shown, ANSWER_WAIT.as_secs()))
    }

    fn failed(&self, error: &tokio_postgres::Error) -> StateError {
        let missing = [SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_FUNCTION, SqlState::UNDEFINED_COLUMN];
        if error.code().is_some_and(|code| missing.contains(code)) {
            let shown = &self.shown;
            return StateError::Unavailable(format!(
                "{shown} has no tables of this build: run `m365-audit cluster init` ({})",
                in_words(error)
            ));
        }
        if matches!(error.code(), Some(code) if *code == SqlState::DATA_CORRUPTED || *code == SqlState::INDEX_CORRUPTED)
        {
            return StateError::Corrupt { key: KEY_ROOT.to_owned(), why: in_words(error) };
        }
        StateError::Unavailable(format!("{}: {}", self.shown, in_words(error)))
    }

    async fn commit_of(&self, of: &Scope, steps: &[&Op]) -> Result<Revision, StateError> {
        let next = Revision::draw();
        let folded = fold(of, steps, next);
        let (mut keys, mut expected, mut sums, mut values) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut owner = (None, None, None, false, 0);
        for CommitStep { short, full, expects, value } in &folded {
            let at = next.0.cast_signed();
            let value = value.as_ref().map(|value| &value[..]);
            let check = value.map_or(0, |value| sum(full.as_bytes(), at, value));
            if *short == OWNER && of.has_owner() && *expects != Some(NEVER) {
                let place = i32::try_from(keys.len()).unwrap_or(i32::MAX);
                owner = (*expects, value.map(|_| check), value, value.is_none(), place);
            } else {
                keys.push(*short);
                expected.push(*expects);
                sums.push(check);
                values.push(value);
            }
        }
        let next_number = next.0.cast_signed();
        let (owner_expects, owner_sum, owner_value, owner_goes, owner_place) = owner;
        let rows = self
            .rows(
                "select m365_commit($1::text::uuid, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
                &[
                    (&of.tenant, Type::TEXT),
                    (&self.member, Type::TEXT),
                    (&next_number, Type::INT8),
                    (&owner_expects, Type::INT8),
                    (&owner_sum, Type::INT8),
                    (&owner_value, Type::BYTEA),
                    (&owner_goes, Type::BOOL),
                    (&owner_place, Type::INT4),
                    (&keys, Type::TEXT_ARRAY),
                    (&expected, Type::INT8_ARRAY),
                    (&sums, Type::INT8_ARRAY),
                    (&values, Type::BYTEA_ARRAY),
                ],
            )
            .await?;
        let clash: Option<String> = rows.first().and_then(|row| row.get(0));
        match clash {
            Some(key) => Err(StateError::Conflict { key: of.full(&key) }),
            None => Ok(next),
        }
    }
}

/// Whose keys: a tenant's, which are kept without its prefix, or nobody's, which are kept whole.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Scope {
    tenant: String,
    prefix: String,
}

impl Scope {
    fn nobody() -> Self {
        Self { tenant: NOBODY.to_owned(), prefix: String::new() }
    }

    /// Of a key, or of a prefix that reaches into a tenant's.
    fn of(key: &str) -> Self {
        let tenant = key.strip_prefix(KEY_ROOT).and_then(|rest| rest.strip_prefix('/')).and_then(|rest| rest.get(..37));
        let tenant = tenant.and_then(|rest| rest.strip_suffix('/'));
        match tenant
            .filter(|tenant| *tenant != NOBODY && tenant.parse::<TenantId>().is_ok_and(|t| t.as_str() == *tenant))
        {
            Some(tenant) => Self { tenant: tenant.to_owned(), prefix: format!("{KEY_ROOT}/{tenant}/") },
            None => Self::nobody(),
        }
    }

    fn has_owner(&self) -> bool {
        !self.prefix.is_empty()
    }

    /// A key without the prefix.
    fn short<'k>(&self, key: &'k str) -> &'k str {
        key.strip_prefix(self.prefix.as_str()).unwrap_or(key)
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

/// What a commit does to one key: what was there before it, and what is there after.
struct CommitStep<'o> {
    /// The key, below the prefix and whole.
    short: &'o str,
    full: &'o str,
    /// `None`: whatever; 0: nothing; else a revision.
    expects: Option<i64>,
    value: Option<&'o Bytes>,
}

/// An expectation that nothing meets.
const NEVER: i64 = -1;

/// The steps of a commit, one for each key, in their order. A step sees those before it; one that does not find what it
/// expects of them becomes a step that never does, so that the first conflict is told, whichever it is.
fn fold<'o>(of: &Scope, steps: &[&'o Op], next: Revision) -> Vec<CommitStep<'o>> {
    let mut folded: Vec<CommitStep<'_>> = Vec::with_capacity(steps.len());
    let mut places: HashMap<&str, usize> = HashMap::with_capacity(steps.len());
    for op in steps {
        let full = op.key();
        let after = match op {
            Op::Put { value, .. } => Some(value),
            Op::Delete { .. } => None,
        };
        match places.get(full).and_then(|place| folded.get_mut(*place)) {
            None => {
                let expects = match op.expected() {
                    Expected::Any => None,
                    Expected::Absent => Some(0),
                    Expected::At(revision) => Some(revision.0.cast_signed()),
                };
                places.insert(full, folded.len());
                folded.push(CommitStep { short: of.short(full), full, expects, value: after });
            }
            Some(before) => {
                let fits = match op.expected() {
                    Expected::Any => true,
                    Expected::Absent => before.value.is_none(),
                    Expected::At(revision) => before.value.is_some() && revision == next,
                };
                if !fits {
                    folded.push(CommitStep { short: of.short(full), full, expects: Some(NEVER), value: None });
                    return folded;
                }
                before.value = after;
            }
        }
    }
    folded
}

/// An entry of `key`, `revision`, `sum`, `value`, checked.
fn entry(of: &Scope, row: &Row) -> Result<(String, Bytes, Revision), StateError> {
    let (key, revision, stored, value): (String, i64, i64, &[u8]) = (row.get(0), row.get(1), row.get(2), row.get(3));
    let key = of.full(&key);
    if sum(key.as_bytes(), revision, value) != stored {
        return Err(StateError::Corrupt { key, why: "it does not match its checksum".into() });
    }
    Ok((key, Bytes::copy_from_slice(value), Revision(revision.cast_unsigned())))
}

/// Entries of a tenant, the owner's among them, from `$2` on (`least` is how: `>` or `>=`) and before `$3`, if there is one.
fn entries(least: &str) -> String {
    let within = |key: &str| format!("{key} {least} $2 and ($3::text is null or {key} < $3)");
    format!(
        "(select key, revision, sum, value from kv where tenant = $1::text::uuid and {}
        union all select 'owner' collate \"C\", revision, sum, value from owner
            where tenant = $1::text::uuid and revision <> 0 and {}) as e(key, revision, sum, value)",
        within("key"),
        within("('owner' collate \"C\")"),
    )
}

#[async_trait]
impl StateStore for PostgresStore {
    async fn load(&self, key: &str) -> Result<Option<(Bytes, Revision)>, StateError> {
        let of = Scope::of(key);
        let short = of.short(key);
        let sql = match short == OWNER && of.has_owner() {
            true => "select $2, revision, sum, value from owner where tenant = $1::text::uuid and revision <> 0",
            false => "select key, revision, sum, value from kv where tenant = $1::text::uuid and key = $2",
        };
        let rows = self.rows(sql, &[(&of.tenant, Type::TEXT), (&short, Type::TEXT)]).await?;
        let found = rows.first().map(|row| entry(&of, row)).transpose()?;
        Ok(found.map(|(_, value, revision)| (value, revision)))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Revision)>, StateError> {
        let of = Scope::of(prefix);
        if of.has_owner() {
            let sql = format!("select key, revision from {} order by key collate \"C\"", entries(">="));
            let (from, before) = (of.short(prefix), first_after(of.short(prefix)));
            let rows = self.rows(&sql, &[(&of.tenant, Type::TEXT), (&from, Type::TEXT), (&before, Type::TEXT)]).await?;
            return Ok(rows
                .iter()
                .map(|row| (of.full(row.get(0)), Revision(row.get::<_, i64>(1).cast_unsigned())))
                .collect());
        }
        // What reaches over tenants: for tools and tests, not for a source at work.
        let sql = "select tenant::text, key, revision from kv
            union all select tenant::text, 'owner', revision from owner where revision <> 0 and tenant <> $1::text::uuid";
        let rows = self.rows(sql, &[(&NOBODY, Type::TEXT)]).await?;
        let mut found: Vec<(String, Revision)> = rows
            .iter()
            .map(|row| {
                let (tenant, key): (String, String) = (row.get(0), row.get(1));
                let key = if tenant == NOBODY { key } else { format!("{KEY_ROOT}/{tenant}/{key}") };
                (key, Revision(row.get::<_, i64>(2).cast_unsigned()))
            })
            .filter(|(key, _)| key.starts_with(prefix))
            .collect();
        found.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(found)
    }

    async fn commit(&self, ops: Vec<Op>) -> Result<Revision, StateError> {
        let mut scopes: Vec<(Scope, Vec<&Op>)> = Vec::new();
        for op in &ops {
            let of = Scope::of(op.key());
            match scopes.iter_mut().find(|(known, _)| *known == of) {
                Some((_, steps)) => steps.push(op),
                None => scopes.push((of, vec![op])),
            }
        }
        // A commit is one tenant's. Steps beside it, of several tenants, come in their order, each tenant's as one.
        let mut revision = Revision::draw();
        let began = self.clock.monotonic();
        for (of, steps) in &scopes {
            revision = self.commit_of(of, steps).await?;
        }
        metrics::store_committed(self.clock.monotonic().saturating_sub(began));
        Ok(revision)
    }

    async fn load_all(&self, after: &str, before: &str) -> Result<Loaded, StateError> {
        let of = Scope::of(after);
        if !of.has_owner() || of.full("\u{10ffff}").as_str() < before {
            return self.load_each(after, before).await;
        }
        // An `owner` in between counts as one more row: the limit holds for both.
        let sql = format!(
            "select key, revision, sum, value, taken from (
                select key, revision, sum, value,
                    sum(octet_length(value)) over (order by key collate \"C\") - octet_length(value) as taken
                from (select * from {} order by key collate \"C\" limit {ROWS_MAX}) as page
            ) as counted where taken < $4 order by key collate \"C\"",
            entries(">")
        );
        let (after, before) = (of.short(after), of.short(before));
        let bytes_max = i64::try_from(LOAD_BYTES).unwrap_or(i64::MAX);
        let rows = self
            .rows(
                &sql,
                &[(&of.tenant, Type::TEXT), (&after, Type::TEXT), (&before, Type::TEXT), (&bytes_max, Type::INT8)],
            )
            .await?;
        let entries = rows.iter().map(|row| entry(&of, row)).collect::<Result<Vec<_>, _>>()?;
        let bytes: usize = entries.iter().map(|(_, value, _)| value.len()).sum();
        let more = bytes >= LOAD_BYTES || entries.len() >= usize::try_from(ROWS_MAX).unwrap_or(usize::MAX);
        Ok(Loaded { entries, more })
    }

    fn read_ahead_bytes(&self) -> usize {
        READ_AHEAD_BYTES
    }
}

impl PostgresStore {
    /// As [`StateStore::load_all`] does by default.
    async fn load_each(&self, after: &str, before: &str) -> Result<Loaded, StateError> {
        let mut loaded = Loaded::default();
        let mut bytes = 0;
        for (key, _) in
            self.list("").await?.into_iter().filter(|(key, _)| key.as_str() > after && key.as_str() < before)
        {
            if bytes >= LOAD_BYTES {
                loaded.more = true;
                break;
            }
            let Some((value, revision)) = self.load(&key).await? else { return Err(StateError::Conflict { key }) };
            bytes += value.len();
            loaded.entries.push((key, value, revision));
        }
        Ok(loaded)
    }
}

/// An error with what it comes from: the library's own words leave that out.
/// Whether a server is not there, or not yet: nothing listens, it starts, ends, or has no room for a connection.
fn is_away(error: &tokio_postgres::Error) -> bool {
    if let Some(code) = error.code() {
        let class = code.code().get(..2).unwrap_or_default();
        return *code == SqlState::TOO_MANY_CONNECTIONS || ["57", "08"].contains(&class);
    }
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            // A failed TLS handshake is an error of I/O with another one in it, and stays one.
            return !error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
        }
        source = error.source();
    }
    error.is_closed()
}

fn in_words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !words.contains(&more) {
            words = format!("{words}: {more}");
        }
        source = error.source();
    }
    words
}

/// Who reads a tenant, and how far it is.
#[derive(Debug, Clone, PartialEq)]
pub struct TenantPlace {
    /// The tenant's id.
    pub tenant: String,
    /// The live member that holds its lease.
    pub member: Option<String>,
    /// A member that should have it and asked for it.
    pub wanted_by: Option<String>,
    /// Its positions, by their keys without the tenant's prefix; what is damaged is left out.
    pub positions: Vec<(String, Bytes)>,
}

impl PostgresStore {
    /// All tenants that anybody reads or ever read, for people.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn standings(&self) -> Result<Vec<TenantPlace>, StateError> {
        let mut found: BTreeMap<String, TenantPlace> = BTreeMap::new();
        let leases = self
            .rows(
                "select l.tenant::text, m.id, l.wanted_by from lease l
                left join member m on m.id = l.member and m.incarnation = l.incarnation and m.expires > clock_timestamp()",
                &[],
            )
            .await?;
        for row in &leases {
            let tenant: String = row.get(0);
            let standing = TenantPlace {
                tenant: tenant.clone(),
                member: row.get(1),
                wanted_by: row.get(2),
                positions: Vec::new(),
            };
            found.insert(tenant, standing);
        }
        let sql =
            "select key, revision, sum, value, tenant::text from kv where key like '%/position' order by tenant, key";
        for row in &self.rows(sql, &[]).await? {
            let tenant: String = row.get(4);
            let of = Scope { prefix: format!("{KEY_ROOT}/{tenant}/"), tenant: tenant.clone() };
            let Ok((key, value, _)) = entry(&of, row) else { continue };
            let empty = || TenantPlace { tenant: tenant.clone(), member: None, wanted_by: None, positions: Vec::new() };
            let standing = found.entry(tenant.clone()).or_insert_with(empty);
            standing.positions.push((of.short(&key).to_owned(), value));
        }
        Ok(found.into_values().collect())
    }
}
