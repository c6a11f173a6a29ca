//! The one error of the feed's calls: what failed, why, what the caller does, what the operator does.

use std::time::Duration;

use crate::auth::AuthError;
use crate::model::{Actionable, ContentType, TenantId};

use super::codes::{Action, FeedCallKind};

/// The kind of an [`ApiError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The client cannot be made from its settings (CA file, proxy).
    Settings,
    /// There is no token.
    Auth,
    /// The API answered, and its answer was an error.
    Answer,
    /// The API could not be reached, or broke off before an answer.
    Unreachable,
    /// The body broke off or was not as long as announced.
    BodyCut,
    /// The body is not the gzip it claims to be, or of an encoding that was not asked for.
    BodyDamaged,
    /// The body is complete but not of a form that this API sends.
    BodyUnreadable,
    /// A redirect; never followed.
    Redirect,
    /// A link to another origin; never followed with the token.
    OffOrigin,
}

/// Why a call to the feed failed.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.text())]
pub struct ApiError(Box<Details>);

#[derive(Debug)]
pub(super) struct Details {
    pub tenant: TenantId,
    pub endpoint: FeedCallKind,
    pub content_type: Option<ContentType>,
    pub kind: ErrorKind,
    pub action: Action,
    pub slug: &'static str,
    pub says: String,
    pub hint: String,
    pub status: Option<u16>,
    pub code: Option<String>,
    pub excerpt: Option<String>,
    pub auth: Option<AuthError>,
}

impl ApiError {
    pub(super) fn new(details: Details) -> Self {
        Self(Box::new(details))
    }

    /// The kind of error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What the caller must do.
    pub fn action(&self) -> Action {
        self.0.action
    }

    /// The least wait before the same call makes sense, as Microsoft or the token source gave it.
    pub fn not_before(&self) -> Option<Duration> {
        match self.0.action {
            Action::Retry { not_before } => not_before,
            Action::Throttled { retry_after } => retry_after,
            _ => self.0.auth.as_ref().and_then(AuthError::not_before),
        }
    }

    /// Whether it was taken for a fault of the whole tenant by its status alone: it may be one of a content type, which
    /// only the answers to others tell.
    pub fn may_concern_one_type(&self) -> bool {
        matches!(self.0.action, Action::SlowRetryTenant) && super::codes::is_without_code(self.0.slug)
    }

    /// The HTTP status, when there was an answer.
    pub fn status(&self) -> Option<u16> {
        self.0.status
    }

    /// The `AF…` code, when the answer had one.
    pub fn code(&self) -> Option<&str> {
        self.0.code.as_deref()
    }

    /// Which call.
    pub fn endpoint(&self) -> FeedCallKind {
        self.0.endpoint
    }

    /// Of which content type, when it was about one.
    pub fn content_type(&self) -> Option<ContentType> {
        self.0.content_type
    }

    /// Whether Microsoft says that it does not have this blob, or no longer.
    pub(crate) fn says_gone(&self) -> bool {
        let is_gone = match self.code() {
            Some(code) => matches!(code, "AF20050" | "AF20051"),
            None => matches!(self.0.status, Some(404 | 410)),
        };
        is_gone && self.0.endpoint == FeedCallKind::FetchBlob
    }

    /// The beginning of the answer's body, one line, without token or secret.
    pub fn excerpt(&self) -> Option<&str> {
        self.0.excerpt.as_deref()
    }

    /// The token source's error behind this one.
    pub fn auth(&self) -> Option<&AuthError> {
        self.0.auth.as_ref()
    }

    /// The cause in a few words, without the tenant, and with only the code of the answer.
    pub fn summary(&self) -> String {
        let details = &*self.0;
        if let Some(auth) = &details.auth {
            return auth.summary();
        }
        let mut text = details.says.clone();
        if let Some(content_type) = details.content_type {
            text.push_str(&format!(", `{content_type}`"));
        }
        match (&details.code, details.status) {
            (Some(code), _) => text.push_str(&format!(" ({code})")),
            (None, Some(status)) => text.push_str(&format!(" (status {status})")),
            _ => {}
        }
        text
    }

    fn text(&self) -> String {
        let details = &*self.0;
        if let Some(auth) = &details.auth {
            return auth.to_string();
        }
        let mut text = format!("cannot {}", details.endpoint.verb());
        if let Some(content_type) = details.content_type {
            text.push_str(&format!(" `{content_type}`"));
        }
        text.push_str(&format!(" for tenant `{}`: {}", details.tenant, details.says));
        match (&details.code, details.status) {
            (Some(code), Some(status)) => text.push_str(&format!(" ({code}, status {status})")),
            (None, Some(status)) => text.push_str(&format!(" (status {status})")),
            _ => {}
        }
        if let Some(excerpt) = details.excerpt.as_deref().filter(|excerpt| !excerpt.is_empty()) {
            text.push_str(&format!(": `{excerpt}`"));
        }
        text
    }
}

impl Actionable for ApiError {
    fn slug(&self) -> &'static str {
        self.0.slug
    }

    fn hint(&self) -> String {
        self.0.hint.clone()
    }
}
