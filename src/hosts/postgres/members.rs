//! Who is in a fleet. A member is alive while the store's clock says so; a heartbeat renews only what has not expired, so
//! that a process that slept does not come back as if nothing had happened.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::PostgresStore;
use super::placement::Peer;
use crate::host::StateError;

/// What a member says of itself.
#[derive(Debug, Clone)]
pub struct Introduction {
    /// Its name, which no other process of the fleet has.
    pub id: String,
    /// How much of the work it should have.
    pub weight: u32,
    /// Where its own pages are served, for people; empty when nowhere.
    pub address: String,
    /// How long a heartbeat lasts.
    pub lease: Duration,
}

/// This process as a member.
#[derive(Debug, Clone)]
pub struct Member {
    store: PostgresStore,
    said: Introduction,
    incarnation: i64,
}

/// What came of a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// It lasts on.
    Alive,
    /// It had expired: everything this incarnation held may be others' now.
    Expired,
    /// Another process has the name.
    Replaced,
}

/// A member, as `cluster status` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberRow {
    /// Its name.
    pub id: String,
    /// Its share of the work, compared with the others.
    pub weight: u32,
    /// The version of its build.
    pub version: String,
    /// Where its pages are.
    pub address: String,
    /// Seconds until it expires; negative since it has.
    pub expires_in_secs: i64,
    /// Tenants it holds.
    pub tenants: i64,
}

impl Member {
    /// A member that has not joined.
    pub fn new(store: PostgresStore, said: Introduction) -> Self {
        Self { store, said, incarnation: 0 }
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.said.id
    }

    /// Which life of it this is.
    pub fn incarnation(&self) -> i64 {
        self.incarnation
    }

    /// Joins with a new incarnation, and so without any lease. Returns whether the name was in use until now.
    ///
    /// # Errors
    /// The store cannot be written; the member has not joined then, as far as is known.
    pub async fn join(&mut self) -> Result<bool, StateError> {
        self.incarnation = fastrand::i64(1..i64::MAX);
        let secs = self.said.lease.as_secs_f64();
        let weight = i32::try_from(self.said.weight).unwrap_or(i32::MAX);
        let rows = self
            .store
            .rows(
                "with known as (select expires > clock_timestamp() as alive from member where id = $1)
                insert into member values ($1, $2, clock_timestamp() + make_interval(secs => $3), $4, $5, $6)
                on conflict (id) do update set incarnation = excluded.incarnation, expires = excluded.expires,
                    version = excluded.version, weight = excluded.weight, address = excluded.address
                returning coalesce((select alive from known), false)",
                &[
                    (&self.said.id, Type::TEXT),
                    (&self.incarnation, Type::INT8),
                    (&secs, Type::FLOAT8),
                    (&env!("CARGO_PKG_VERSION"), Type::TEXT),
                    (&weight, Type::INT4),
                    (&self.said.address, Type::TEXT),
                ],
            )
            .await?;
        Ok(rows.first().is_some_and(|row| row.get(0)))
    }

    /// Says that it is alive.
    ///
    /// # Errors
    /// The store does not answer: nobody knows.
    pub async fn beat(&self) -> Result<Beat, StateError> {
        let secs = self.said.lease.as_secs_f64();
        let rows = self
            .store
            .rows(
                "with beat as (update member set expires = clock_timestamp() + make_interval(secs => $3)
                    where id = $1 and incarnation = $2 and expires > clock_timestamp() returning 1)
                select exists (select 1 from beat),
                    exists (select 1 from member where id = $1 and incarnation <> $2 and expires > clock_timestamp())",
                &[(&self.said.id, Type::TEXT), (&self.incarnation, Type::INT8), (&secs, Type::FLOAT8)],
            )
            .await?;
        Ok(match rows.first().map(|row| (row.get(0), row.get(1))) {
            Some((true, _)) => Beat::Alive,
            Some((false, true)) => Beat::Replaced,
            _ => Beat::Expired,
        })
    }

    /// Leaves, and gives all leases back.
    ///
    /// # Errors
    /// The store does not answer: it expires by itself then.
    pub async fn leave(&self) -> Result<(), StateError> {
        let me: &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)] =
            &[(&self.said.id, Type::TEXT), (&self.incarnation, Type::INT8)];
        self.store.rows("delete from lease where member = $1 and incarnation = $2", me).await?;
        self.store.rows("delete from member where id = $1 and incarnation = $2", me).await?;
        Ok(())
    }
}

impl PostgresStore {
    /// Live members, in the order of their names.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn peers(&self) -> Result<Vec<Peer>, StateError> {
        let sql = "select id, weight from member where expires > clock_timestamp() order by id";
        let rows = self.rows(sql, &[]).await?;
        let weight = |row: &tokio_postgres::Row| u32::try_from(row.get::<_, i32>(1)).unwrap_or(1).max(1);
        Ok(rows.iter().map(|row| Peer { id: row.get(0), weight: weight(row) }).collect())
    }

    /// All members that are remembered, for people.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn members(&self) -> Result<Vec<MemberRow>, StateError> {
        let rows = self
            .rows(
                "select id, weight, version, address, extract(epoch from expires - clock_timestamp())::bigint,
                    (select count(*) from lease where lease.member = member.id and lease.incarnation = member.incarnation)
                from member order by id",
                &[],
            )
            .await?;
        Ok(rows
            .iter()
            .map(|row| MemberRow {
                id: row.get(0),
                weight: u32::try_from(row.get::<_, i32>(1)).unwrap_or(1),
                version: row.get(2),
                address: row.get(3),
                expires_in_secs: row.get(4),
                tenants: row.get(5),
            })
            .collect())
    }
}
