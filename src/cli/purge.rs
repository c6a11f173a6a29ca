//! Removes a tenant's data from `data_dir`: from the state, including its free pages, and the verdicts of `reconcile`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::reconcile;
use crate::checkpoint::purge as state;
use crate::host::StateError;
use crate::hosts::embedded::store::SqliteStore;
use crate::model::{Actionable, TenantId};

/// Why not all of it was removed.
#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    /// The state.
    #[error("the data of tenant `{tenant}` was not taken out of the state: {why}")]
    State {
        /// The tenant.
        tenant: TenantId,
        /// Why.
        why: StateError,
    },
    /// The state's free pages.
    #[error("the data of tenant `{tenant}` is deleted, and the state's file may still hold what it was: {why}")]
    Traces {
        /// The tenant.
        tenant: TenantId,
        /// Why it cannot be rewritten.
        why: StateError,
    },
    /// A verdict.
    #[error("the verdict `{}` of tenant `{tenant}` was not removed: {why}", path.display())]
    Verdict {
        /// The tenant.
        tenant: TenantId,
        /// The file.
        path: PathBuf,
        /// Why.
        why: io::Error,
    },
}

impl Actionable for PurgeError {
    fn slug(&self) -> &'static str {
        "tenant-not-purged"
    }

    fn hint(&self) -> String {
        let (Self::State { tenant, .. } | Self::Traces { tenant, .. } | Self::Verdict { tenant, .. }) = self;
        let what = match self {
            Self::State { .. } => "repair what the message names",
            Self::Traces { .. } => "free disk space for a second copy of the state, and close what else reads it",
            Self::Verdict { .. } => "run it as the user who owns `data_dir`",
        };
        format!("{what}, then run `m365-audit tenant remove -c FILE {tenant} --purge` again, which ends what is begun")
    }
}

/// The tenant is still read.
#[derive(Debug, thiserror::Error)]
#[error("the source `{name}` reads tenant `{tenant}`: nothing of it was taken out")]
pub struct StillRead {
    /// The source.
    pub name: String,
    /// The tenant.
    pub tenant: TenantId,
}

impl Actionable for StillRead {
    fn slug(&self) -> &'static str {
        "tenant-still-read"
    }

    fn hint(&self) -> String {
        format!(
            "take the source out of the configuration first: `m365-audit tenant remove -c FILE {} --purge` does both. If it is \
             out already, the log of the running process says why it keeps the configuration it has",
            self.name
        )
    }
}

/// The state belongs to a cluster.
#[derive(Debug, thiserror::Error)]
#[error("the state of a cluster is not taken out from one member: nothing was taken out")]
pub struct InCluster;

impl Actionable for InCluster {
    fn slug(&self) -> &'static str {
        "cluster-member-has-it"
    }

    fn hint(&self) -> String {
        "take the source out of the configuration of all members and have them read it again (SIGHUP), then run          `m365-audit tenant remove --purge` once"
            .into()
    }
}

/// A member of the cluster has the tenant.
#[derive(Debug, thiserror::Error)]
#[error("member `{name}` of the cluster reads tenant `{tenant}`: nothing was taken out")]
pub struct HeldByMember {
    /// The member.
    pub name: String,
    /// The tenant.
    pub tenant: TenantId,
}

impl Actionable for HeldByMember {
    fn slug(&self) -> &'static str {
        "cluster-member-has-it"
    }

    fn hint(&self) -> String {
        "take the source out of the configuration of all members and have them read it again (SIGHUP), then run the same command again".into()
    }
}

/// Removes all data of a tenant. No process may write its state meanwhile. Returns what to print.
///
/// # Errors
/// Some data remains; the same call removes it.
pub async fn purge(store: &SqliteStore, data_dir: &Path, tenant: &TenantId) -> Result<Vec<String>, PurgeError> {
    let in_state = |why| PurgeError::State { tenant: tenant.clone(), why };
    let state::Purged { entries, held, aside, receipts } = state::purge(store, tenant).await.map_err(in_state)?;
    // Also if nothing was found: data that an earlier call deleted may still be in the file.
    store.compact().await.map_err(|why| PurgeError::Traces { tenant: tenant.clone(), why })?;
    let verdicts = remove_verdicts(data_dir, tenant)?;
    tracing::info!(%tenant, entries, verdicts, "everything that was remembered of a tenant was taken out");
    Ok(vec![
        format!(
            "{tenant}: {entries} entries taken out of the state, among them {aside} records set aside, {held} pages of routine \
             reads on hold, {receipts} pages of receipts; its file was written anew without them"
        ),
        format!("{tenant}: {verdicts} verdicts of reconcile removed"),
        "what is left elsewhere, and how long: docs/tenants.md".to_owned(),
    ])
}

/// Removes the verdicts of a tenant, for any name of its source; returns how many there were.
fn remove_verdicts(data_dir: &Path, tenant: &TenantId) -> Result<u64, PurgeError> {
    let failed = |path: &Path, why| PurgeError::Verdict { tenant: tenant.clone(), path: path.to_owned(), why };
    let folder = reconcile::verdicts(data_dir);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(failed(&folder, error)),
    };
    let mut removed = 0;
    for entry in entries {
        let path = entry.map_err(|error| failed(&folder, error))?.path();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(_) if path.is_dir() => continue,
            Err(error) => return Err(failed(&path, error)),
        };
        #[derive(serde::Deserialize)]
        struct Whose {
            tenant: String,
        }
        let is_of_it = serde_json::from_slice::<Whose>(&bytes).is_ok_and(|verdict| verdict.tenant == tenant.as_str());
        if is_of_it {
            fs::remove_file(&path).map_err(|error| failed(&path, error))?;
            removed += 1;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::checkpoint::format::Keys;
    use crate::host::{Expected, Op, StateStore};
    use crate::hosts::embedded::store::STATE_FILE;
    use crate::model::ContentType;

    fn put(key: String, value: String) -> Op {
        Op::Put { key, value: Bytes::from(value), expected: Expected::Any }
    }

    fn entries(tenant: &TenantId, secret: &str) -> Vec<Op> {
        let keys = Keys::of(tenant);
        let mut ops = vec![
            put(keys.owner(), "{}".to_owned()),
            put(keys.position(ContentType::General), "{}".to_owned()),
            put(keys.held_page(1), format!("held {secret}")),
            put(format!("{}sealed/1/checkpoint", keys.receipts()), format!("sealed {secret}")),
        ];
        ops.extend(
            (0..700).map(|n| put(keys.aside_record(ContentType::Exchange, n), format!("aside {secret}").repeat(50))),
        );
        ops
    }

    #[tokio::test]
    async fn not_a_byte_of_a_tenant_is_left_in_the_state_and_another_keeps_all() {
        let dir = tempfile::tempdir().unwrap();
        let [gone, stays] = [1, 2].map(|n| format!("00000000-1111-2222-3333-{n:012}").parse::<TenantId>().unwrap());
        let store = SqliteStore::open(dir.path()).unwrap();
        store.commit(entries(&gone, "of-the-one-that-left")).await.unwrap();
        store.commit(entries(&stays, "of-the-other")).await.unwrap();
        fs::create_dir(reconcile::verdicts(dir.path())).unwrap();
        for (name, tenant) in [("renamed", &gone), ("other", &stays)] {
            fs::write(reconcile::verdict_path(dir.path(), name), format!("{{\"tenant\":\"{tenant}\"}}")).unwrap();
        }
        let state = || {
            let files = ["", "-wal"].map(|suffix| dir.path().join(format!("{STATE_FILE}{suffix}")));
            files.iter().flat_map(|file| fs::read(file).unwrap_or_default()).collect::<Vec<u8>>()
        };
        let has = |bytes: &[u8], text: &str| memchr::memmem::find(bytes, text.as_bytes()).is_some();
        // A mere delete leaves the data in the file.
        state::purge(&store, &gone).await.unwrap();
        assert!(has(&state(), "of-the-one-that-left"), "else this test shows nothing");

        let lines = purge(&store, dir.path(), &gone).await.unwrap();
        assert!(lines[1].contains("1 verdicts"), "{lines:?}");
        let bytes = state();
        assert!(!has(&bytes, "of-the-one-that-left") && !has(&bytes, gone.as_str()));
        assert!(has(&bytes, "of-the-other"));
        assert!(!reconcile::verdict_path(dir.path(), "renamed").exists());
        assert!(reconcile::verdict_path(dir.path(), "other").exists());
        // The store continues, with the same file for writer and reader.
        let keys = Keys::of(&stays);
        assert_eq!(store.list(&keys.all()).await.unwrap().len(), 704);
        store.commit(vec![put(keys.tenant(), "later".to_owned())]).await.unwrap();
        assert_eq!(store.load(&keys.tenant()).await.unwrap().map(|(value, _)| value), Some(Bytes::from("later")));
        drop(store);
        let again = SqliteStore::open(dir.path()).unwrap();
        assert_eq!(again.list(&keys.all()).await.unwrap().len(), 705);
        assert!(!has(&state(), "of-the-one-that-left"));
        assert!(!dir.path().join("state.sqlite3.new").exists());
    }

    #[tokio::test]
    async fn what_was_taken_out_is_counted_by_kind_and_commits_wait_for_the_file_and_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let tenant: TenantId = "00000000-1111-2222-3333-000000000001".parse().unwrap();
        let store = SqliteStore::open(dir.path()).unwrap();
        store.commit(entries(&tenant, "x")).await.unwrap();
        let found = state::purge(&store, &tenant).await.unwrap();
        assert_eq!(found, state::Purged { entries: 704, held: 1, aside: 700, receipts: 1 });
        // Queued one after another: none is lost in any order.
        let commit = |n: u32| store.commit(vec![put(format!("other/{n}"), "y".to_owned())]);
        let (first, compacted, second) = tokio::join!(commit(1), store.compact(), commit(2));
        assert!(first.is_ok() && second.is_ok() && compacted.is_ok(), "{first:?} {compacted:?} {second:?}");
        assert_eq!(store.list("other/").await.unwrap().len(), 2);
        let reader = SqliteStore::open_read_only(dir.path()).unwrap();
        assert!(reader.compact().await.is_err(), "a reader changes nothing");
    }
}
