//! The tables, made by `m365-audit cluster init`, and which version of them is there.

use tokio_postgres::types::Type;

use super::{OnWait, PostgresStore, in_words};
use crate::host::StateError;

/// The version of the tables this build makes and knows.
pub const SCHEMA: i64 = 1;
const TABLES: &str = include_str!("schema.sql");
/// Below this number of tenants one table is as good.
pub const PARTITIONS_MAX: u32 = 256;

/// What `cluster init` found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TablesMade {
    /// There was nothing.
    New,
    /// The tables were there; functions were made anew.
    Known,
}

impl PostgresStore {
    /// Makes the tables that are not there. With `partitions` over 1 a new table of entries is cut into so many by a hash
    /// of the tenant.
    ///
    /// # Errors
    /// The server cannot be reached, the role may not, or the tables are of a newer build: nothing is changed then.
    pub async fn make_tables(&self, partitions: u32) -> Result<TablesMade, StateError> {
        let known = match self.version().await {
            Ok(version) => Some(version),
            Err(StateError::Unavailable(why)) if why.contains("cluster init") => None,
            Err(error) => return Err(error),
        };
        if let Some(version) = known.flatten() {
            self.refuse_newer(version)?;
        }
        let mut tables = TABLES.to_owned();
        if partitions > 1 {
            let one = "    primary key (tenant, key)\n) with (fillfactor = 85);";
            let parts: String = (0..partitions)
                .map(|part| {
                    format!(
                        "create table if not exists kv_{part} partition of kv for values with (modulus {partitions}, remainder {part}) with (fillfactor = 85);\n"
                    )
                })
                .collect();
            tables =
                tables.replace(one, &format!("    primary key (tenant, key)\n) partition by hash (tenant);\n{parts}"));
        }
        let done = format!(
            "begin;\n{tables}\ninsert into meta values ('schema', {SCHEMA}) on conflict (name) do update set value = excluded.value;\ncommit;"
        );
        let connection = self.connection().await?;
        if let Err(error) = connection.batch_execute(&done).await {
            let _ = connection.batch_execute("rollback").await;
            return Err(StateError::Unavailable(format!("{}: {}", self.shown(), in_words(&error))));
        }
        Ok(if known.flatten().is_some() { TablesMade::Known } else { TablesMade::New })
    }

    /// Refuses tables that are not there or of a newer build.
    ///
    /// # Errors
    /// In words, with the remedy.
    pub async fn verify_tables(&self) -> Result<(), StateError> {
        self.verify_version(self.version().await?)
    }

    /// As [`verify_tables`](Self::verify_tables), but waits for a server that is away: one that starts, ends, cannot be
    /// reached or has no room for a connection. `on_wait` is called with why it is, after each attempt.
    ///
    /// # Errors
    /// The server refuses: the role, its password, the database, TLS; or the tables are not there, or of a newer build.
    pub async fn verify_tables_once_there(&self, on_wait: &mut OnWait<'_>) -> Result<(), StateError> {
        let rows = self.rows_once_there("select value from meta where name = 'schema'", on_wait).await?;
        self.verify_version(rows.first().map(|row| row.get(0)))
    }

    fn verify_version(&self, version: Option<i64>) -> Result<(), StateError> {
        match version {
            Some(version) => self.refuse_newer(version),
            None => Err(StateError::Unavailable(format!(
                "{} has no tables of this build: run `m365-audit cluster init`",
                self.shown()
            ))),
        }
    }

    /// The setting by which commits that are reported may be lost in a crash; `None` where all is on disk.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub async fn not_durable(&self) -> Result<Option<String>, StateError> {
        let sql = "select name || ' = ' || setting from pg_settings
            where setting = 'off' and name in ('synchronous_commit', 'fsync', 'full_page_writes') order by name limit 1";
        let rows = self.rows(sql, &[]).await?;
        Ok(rows.first().map(|row| row.get(0)))
    }

    async fn version(&self) -> Result<Option<i64>, StateError> {
        let rows = self.rows("select value from meta where name = $1", &[(&"schema", Type::TEXT)]).await?;
        Ok(rows.first().map(|row| row.get(0)))
    }

    fn refuse_newer(&self, version: i64) -> Result<(), StateError> {
        if version > SCHEMA {
            let shown = self.shown();
            return Err(StateError::Unavailable(format!(
                "{shown} has tables of version {version}, this build knows {SCHEMA}; nothing was changed: run the newer build"
            )));
        }
        Ok(())
    }
}
