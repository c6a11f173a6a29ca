//! Problems of the library as errors of Vector.
//!
//! A message of the library begins with the name of the problem (`auth-secret-wrong: …`). There are some two hundred, each
//! with a page in its documentation; here a name is the `error_code`.

use crate::internal_events::{
    M365AuditAcknowledgementError, M365AuditAuthenticationError, M365AuditConfigurationError,
    M365AuditConnectionError, M365AuditParseError, M365AuditRequestError, M365AuditStateError,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Acknowledgement,
    Authentication,
    Configuration,
    Connection,
    Parse,
    Request,
    State,
}

/// Emits the error that `error` is. `otherwise` is the code of one without a name.
pub(super) fn tell(error: &str, otherwise: &'static str) {
    let (code, kind) = kind_of(error, otherwise);
    let code = code.as_str();
    match kind {
        Kind::Acknowledgement => emit!(M365AuditAcknowledgementError { code, error }),
        Kind::Authentication => emit!(M365AuditAuthenticationError { code, error }),
        Kind::Configuration => emit!(M365AuditConfigurationError { code, error }),
        Kind::Connection => emit!(M365AuditConnectionError { code, error }),
        Kind::Parse => emit!(M365AuditParseError { code, error }),
        Kind::Request => emit!(M365AuditRequestError { code, error }),
        Kind::State => emit!(M365AuditStateError { code, error }),
    }
}

fn kind_of(error: &str, otherwise: &'static str) -> (String, Kind) {
    if error.starts_with("the host refuses records") {
        return ("not_acknowledged".to_owned(), Kind::Acknowledgement);
    }
    let Some(name) = name_of(error) else {
        return (otherwise.to_owned(), Kind::Request);
    };
    let kind = match name {
        "api-unreachable" | "auth-unreachable" | "graph-unreachable" => Kind::Connection,
        "api-permission-missing" | "api-token-refused" | "graph-permission-missing" => {
            Kind::Authentication
        }
        "api-body-cut" | "api-body-damaged" | "api-unexpected-answer" | "blob-unreadable" => {
            Kind::Parse
        }
        "api-tenant-mismatch" | "config-invalid" => Kind::Configuration,
        _ => match name.split_once('-') {
            Some(("auth" | "dlp", _)) => Kind::Authentication,
            Some(("name" | "proxy" | "tls", _)) => Kind::Connection,
            Some(("hold" | "state", _)) => Kind::State,
            _ => Kind::Request,
        },
    };
    (name.replace('-', "_"), kind)
}

fn name_of(error: &str) -> Option<&str> {
    let (name, _) = error.split_once(':')?;
    let is_name = name.contains('-') && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    is_name.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_has_the_kind_of_its_name() {
        for (error, code, kind) in [
            (
                "auth-secret-wrong: AADSTS7000215",
                "auth_secret_wrong",
                Kind::Authentication,
            ),
            (
                "auth-unreachable: timed out",
                "auth_unreachable",
                Kind::Connection,
            ),
            (
                "tls-untrusted: the proxy's",
                "tls_untrusted",
                Kind::Connection,
            ),
            (
                "api-throttled: wait; state-full: no",
                "api_throttled",
                Kind::Request,
            ),
            ("state-full: no room", "state_full", Kind::State),
            ("blob-unreadable: 3", "blob_unreadable", Kind::Parse),
            ("config-invalid: x", "config_invalid", Kind::Configuration),
            (
                "the host refuses records: a sink",
                "not_acknowledged",
                Kind::Acknowledgement,
            ),
            // Words that only look like a name.
            ("Exchange: 3 blobs fail", "degraded", Kind::Request),
            ("no colon", "degraded", Kind::Request),
        ] {
            assert_eq!(
                kind_of(error, "degraded"),
                (code.to_owned(), kind),
                "{error}"
            );
        }
    }
}
