//! Why a source cannot go on, and what kind of fault that is.

use std::sync::Arc;

use crate::api::{Action, ApiError, ErrorKind};
use crate::config;
use crate::host::StateError;
use crate::model::{Actionable, TenantId};

/// Kinds of fault, worst last; each has an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum FaultKind {
    /// Worth reporting, but not a failure.
    Notice,
    /// The network, or Microsoft's side.
    Network,
    /// Permission, subscription or audit setting in the tenant.
    Permission,
    /// Sign-in.
    Authentication,
    /// The state store.
    State,
}

/// Why a source cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The state store.
    #[error("the state of tenant `{tenant}` cannot be used: {source}")]
    State {
        /// The tenant.
        tenant: TenantId,
        /// What is wrong with it.
        source: StateError,
    },
    /// The feed or sign-in.
    #[error("{source}")]
    Api {
        /// What went wrong.
        source: Box<ApiError>,
    },
    /// A file that the configuration names and that could be read when it was checked.
    #[error("`{key}`: `{}` cannot be read: {why}", path.display())]
    File {
        /// The key that names it.
        key: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// The operating system's error.
        why: String,
    },
    /// The rules, which were fit to use when the configuration was read.
    #[error("the rules of source `{name}` cannot be used: {source}")]
    Rules {
        /// The source.
        name: Arc<str>,
        /// What is wrong with them.
        source: config::RulesError,
    },
    /// A bug in this program.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Actionable for SourceError {
    fn slug(&self) -> &'static str {
        match self {
            Self::State { source: StateError::Conflict { .. }, .. } => "state-conflict",
            Self::State { source: StateError::Corrupt { .. }, .. } => "state-corrupt",
            Self::State { source: StateError::Unavailable(_), .. } => "state-not-written",
            Self::Api { source } => source.slug(),
            Self::File { .. } => "file-unreadable",
            Self::Rules { source, .. } => source.slug(),
            Self::Internal(_) => "internal",
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::State { source: StateError::Conflict { .. }, .. } => {
                "two collectors share this tenant's state: stop one of them, then restart".into()
            }
            Self::State { source: StateError::Corrupt { .. }, .. } => {
                "nothing was changed: restore the state from a backup, start the build that wrote it, or move `data_dir` away and begin anew".into()
            }
            Self::State { source: StateError::Unavailable(_), .. } => "check space and permissions of `data_dir`".into(),
            Self::Api { source } => source.hint(),
            Self::File { .. } => {
                "check that it exists and that this user may read it (`namei -l FILE`); a running source looks again by itself".into()
            }
            Self::Rules { source, .. } => source.hint(),
            Self::Internal(_) => "this is a bug: please report it with the log".into(),
        }
    }
}

/// What kind of fault an error of the feed is.
pub fn fault_kind(error: &ApiError) -> FaultKind {
    match (error.kind(), error.action()) {
        (ErrorKind::Auth, _) if error.auth().is_some_and(|auth| auth.is_passing()) => FaultKind::Network,
        (ErrorKind::Auth, _) => FaultKind::Authentication,
        // A 401 without a code comes from Microsoft's front end and concerns the token, whatever the permissions are.
        (ErrorKind::Answer, Action::SlowRetryTenant) if error.status() == Some(401) && error.code().is_none() => {
            FaultKind::Authentication
        }
        (ErrorKind::Answer, Action::SlowRetryTenant | Action::ParkType | Action::StartSubscription) => {
            FaultKind::Permission
        }
        _ => FaultKind::Network,
    }
}
