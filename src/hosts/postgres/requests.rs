//! What operators ask of a tenant, whichever member reads it: back-fill, heal, a moved position. The question and its
//! answers are rows; the member that has the tenant takes it, and another goes on with it when that one dies.

use tokio_postgres::types::Type;

use super::PostgresStore;
use crate::host::StateError;
use crate::model::TenantId;

/// A question that waits for a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRequest {
    /// Its number.
    pub id: i64,
    /// The question, as JSON.
    pub what: String,
}

/// What was heard of a question.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestNews {
    /// How many lines were said.
    pub said: i64,
    /// The last of them, as JSON.
    pub line: Option<String>,
    /// A live member works on it.
    pub taken: bool,
}

impl PostgresStore {
    /// Asks; the number of the question.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn ask(&self, tenant: &TenantId, what: &str) -> Result<i64, StateError> {
        let rows = self
            .rows(
                "insert into request (tenant, what) values ($1::text::uuid, jsonb_build_object('ask', $2::text::jsonb)) returning id",
                &[(&tenant.as_str(), Type::TEXT), (&what, Type::TEXT)],
            )
            .await?;
        rows.first().map(|row| row.get(0)).ok_or_else(|| StateError::Unavailable("no number was given".into()))
    }

    /// The questions about these tenants that no live member works on, taken by this one.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn take_requests(&self, tenants: &[&str], incarnation: i64) -> Result<Vec<StoredRequest>, StateError> {
        let rows = self
            .rows(
                "update request set claimed_revision = $2 where id in (
                    select r.id from request r
                        left join member m on m.incarnation = r.claimed_revision and m.expires > clock_timestamp()
                        where r.tenant = any ($1::text[]::uuid[]) and m.id is null and coalesce(r.progress->>'over', 'false') = 'false'
                        order by r.id for update of r skip locked)
                returning id, (what->'ask')::text",
                &[(&tenants, Type::TEXT_ARRAY), (&incarnation, Type::INT8)],
            )
            .await?;
        Ok(rows.iter().map(|row| StoredRequest { id: row.get(0), what: row.get(1) }).collect())
    }

    /// Says a line to whoever asked. `over`: it is the last.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn say(&self, id: i64, incarnation: i64, line: &str, over: bool) -> Result<(), StateError> {
        self.rows(
            "update request set progress = jsonb_build_object('said', coalesce((progress->>'said')::bigint, 0) + 1,
                'line', $3::text::jsonb, 'over', $4::boolean)
            where id = $1 and claimed_revision = $2",
            &[(&id, Type::INT8), (&incarnation, Type::INT8), (&line, Type::TEXT), (&over, Type::BOOL)],
        )
        .await?;
        Ok(())
    }

    /// What was said of a question; `None` when there is no such question any more.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn heard(&self, id: i64) -> Result<Option<RequestNews>, StateError> {
        let rows = self
            .rows(
                "select coalesce((r.progress->>'said')::bigint, 0), (r.progress->'line')::text, m.id is not null
                from request r left join member m on m.incarnation = r.claimed_revision and m.expires > clock_timestamp()
                where r.id = $1",
                &[(&id, Type::INT8)],
            )
            .await?;
        Ok(rows.first().map(|row| RequestNews { said: row.get(0), line: row.get(1), taken: row.get(2) }))
    }

    /// Asks for what is done to be stopped in an orderly way.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn stop_request(&self, id: i64) -> Result<(), StateError> {
        let sql = "update request set what = what || '{\"stop\": true}' where id = $1";
        self.rows(sql, &[(&id, Type::INT8)]).await.map(drop)
    }

    /// Whether it is to be stopped, or was taken back.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn is_stopped(&self, id: i64) -> Result<bool, StateError> {
        let sql = "select coalesce((what->>'stop')::boolean, false) from request where id = $1";
        let rows = self.rows(sql, &[(&id, Type::INT8)]).await?;
        Ok(rows.first().is_none_or(|row| row.get(0)))
    }

    /// Takes a question back, or away when it was answered.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn forget_request(&self, id: i64) -> Result<(), StateError> {
        self.rows("delete from request where id = $1", &[(&id, Type::INT8)]).await.map(drop)
    }

    /// Takes out what is left of a tenant beside its entries, which are deleted: the rows that bear its id.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn forget_tenant(&self, tenant: &TenantId) -> Result<(), StateError> {
        for table in ["owner", "lease", "request"] {
            let sql = format!("delete from {table} where tenant = $1::text::uuid");
            self.rows(&sql, &[(&tenant.as_str(), Type::TEXT)]).await?;
        }
        Ok(())
    }

    /// The live member that has a tenant, and where its pages are.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn holder(&self, tenant: &TenantId) -> Result<Option<(String, String)>, StateError> {
        let rows = self
            .rows(
                "select m.id, m.address from lease l join member m on m.id = l.member and m.incarnation = l.incarnation
                    and m.expires > clock_timestamp() where l.tenant = $1::text::uuid",
                &[(&tenant.as_str(), Type::TEXT)],
            )
            .await?;
        Ok(rows.first().map(|row| (row.get(0), row.get(1))))
    }
}
