//! Tenants in the table of a cluster in place of files: `m365-audit tenant` writes them, every member reads them.

use tokio_postgres::types::Type;

use super::{OnWait, PostgresStore};
use crate::host::StateError;
use crate::model::TenantId;

/// A tenant of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTenant {
    /// Its id.
    pub id: String,
    /// Its name, without that of its template.
    pub name: String,
    /// The source that is its template; without one it is a source of its own.
    pub template: Option<String>,
    /// Its own keys, as a JSON object.
    pub settings: String,
}

const STORED: &str = "select id::text, name, template, settings::text from tenant order by name";

fn stored(row: &tokio_postgres::Row) -> StoredTenant {
    StoredTenant { id: row.get(0), name: row.get(1), template: row.get(2), settings: row.get(3) }
}

impl PostgresStore {
    /// All tenants of the table, in the order of their names.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn stored_tenants(&self) -> Result<Vec<StoredTenant>, StateError> {
        Ok(self.rows(STORED, &[]).await?.iter().map(stored).collect())
    }

    /// As [`stored_tenants`](Self::stored_tenants), but waits for a server that is away.
    ///
    /// # Errors
    /// The server refuses, or there is no such table.
    pub async fn stored_tenants_once_there(&self, on_wait: &mut OnWait<'_>) -> Result<Vec<StoredTenant>, StateError> {
        Ok(self.rows_once_there(STORED, on_wait).await?.iter().map(stored).collect())
    }

    /// What changes whenever the table does.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn tenants_version(&self) -> Result<(i64, i64), StateError> {
        let rows = self.rows("select count(*), coalesce(max(revision), 0) from tenant", &[]).await?;
        Ok(rows.first().map_or((0, 0), |row| (row.get(0), row.get(1))))
    }

    /// Adds a tenant; `false` when one of this id or name is there already.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn add_tenant(&self, tenant: &StoredTenant) -> Result<bool, StateError> {
        let StoredTenant { id, name, template, settings } = tenant;
        let rows = self
            .rows(
                "insert into tenant (id, name, template, settings, revision)
                values ($1::text::uuid, $2, $3, $4::text::jsonb, (extract(epoch from clock_timestamp()) * 1000000)::bigint)
                on conflict do nothing returning 1",
                &[(id, Type::TEXT), (name, Type::TEXT), (template, Type::TEXT), (settings, Type::TEXT)],
            )
            .await?;
        Ok(!rows.is_empty())
    }

    /// Takes a tenant out of the table; whether it was there.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn remove_tenant(&self, id: &TenantId) -> Result<bool, StateError> {
        let sql = "delete from tenant where id = $1::text::uuid returning 1";
        Ok(!self.rows(sql, &[(&id.as_str(), Type::TEXT)]).await?.is_empty())
    }
}
