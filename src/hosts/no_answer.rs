//! Explains why a receiver gave no answer: the library's error with all its causes, and the remedy for those that an
//! operator can fix. The same for every sink that uses the network. Decides nothing.

use std::error::Error;
use std::io;
use std::sync::Arc;

use rustls::{AlertDescription, CertificateError as Bad};

use super::client_certificate::ClientCertificate;
use crate::net::error_chain;

/// A connection that the other side ended. With TLS 1.3 a receiver refuses a client certificate after the handshake,
/// and the library may read its alert, or see only the closed connection.
const ENDED: [&str; 4] =
    ["connection was not ready", "connection closed before message completed", "Connection reset", "Broken pipe"];

/// How a sink reaches its receiver, for the explanation of a failure.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wire {
    certificate: Option<Arc<ClientCertificate>>,
}

impl Wire {
    /// A connection that presents this certificate.
    pub(crate) fn showing(certificate: Arc<ClientCertificate>) -> Self {
        Self { certificate: Some(certificate) }
    }

    /// The error with its causes and, where there is one, the remedy.
    pub(crate) fn explained(&self, error: &(dyn Error + 'static)) -> String {
        self.explained_through(error, str::to_owned)
    }

    /// As [`Wire::explained`], with the receiver's own text in it cleaned by `shown`.
    pub(crate) fn explained_through(
        &self,
        error: &(dyn Error + 'static),
        shown: impl FnOnce(&str) -> String,
    ) -> String {
        let chain = error_chain(error);
        let hint = tls_error(error).and_then(|error| self.hint(error)).or_else(|| self.hint_of_words(&chain));
        let chain = self.remarked(&shown(&chain));
        match hint {
            Some(hint) => format!("{chain} (hint: {hint})"),
            None => chain,
        }
    }

    /// The words, followed by the fault of the client certificate, if any.
    pub(crate) fn remarked(&self, words: &str) -> String {
        match self.certificate.as_ref().and_then(|certificate| certificate.remark()) {
            Some(remark) => format!("{words}; {remark}"),
            None => words.to_owned(),
        }
    }

    /// The remedy for errors that the libraries expose only as text; a test checks the texts against their present
    /// versions.
    fn hint_of_words(&self, chain: &str) -> Option<&'static str> {
        let says = |words: &&str| chain.contains(*words);
        match &self.certificate {
            _ if ["dns error", "failed to lookup address"].iter().any(says) => {
                Some("`getent hosts NAME` must answer on this machine for the name in the sink's address")
            }
            _ if says(&"Connection refused") => Some("nobody listens at that address and port"),
            _ if says(&"too_many_pings") => Some("a proxy or the receiver counts our pings: raise what it allows"),
            Some(_) if ENDED.iter().any(says) => Some(
                "the receiver closed the connection before it answered; if it does so each time it most likely does not \
                 accept the client certificate: its log says so",
            ),
            None if ENDED.iter().any(says) => Some(
                "what listens there closed the connection before it answered: look into its log; it may want TLS \
                 (`https`), or a client certificate (`client_certificate_file`)",
            ),
            _ => None,
        }
    }

    fn hint(&self, error: &rustls::Error) -> Option<&'static str> {
        Some(match error {
            rustls::Error::AlertReceived(alert) => return self.hint_of_alert(*alert),
            rustls::Error::InvalidCertificate(bad) => match bad {
                Bad::Expired | Bad::ExpiredContext { .. } | Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
                    "the receiver's certificate is not valid at this machine's time: have it renewed, or set the clock"
                }
                Bad::NotValidForName | Bad::NotValidForNameContext { .. } => {
                    "write the address with a name that stands in the receiver's certificate"
                }
                Bad::UnknownIssuer => {
                    "put the certificate of the receiver's authority, or its own if it signed that itself, into `ca_file`"
                }
                _ => "the receiver needs a certificate for a server, signed with a usual algorithm and not revoked",
            },
            rustls::Error::InvalidMessage(_) => {
                "what answers there does not speak TLS: look at scheme and port of the sink's address"
            }
            rustls::Error::PeerIncompatible(_) => "the receiver must speak TLS 1.2 or 1.3 with a usual cipher",
            _ => return None,
        })
    }

    fn hint_of_alert(&self, alert: AlertDescription) -> Option<&'static str> {
        use AlertDescription as Alert;
        match (alert, &self.certificate) {
            (Alert::CertificateRequired | Alert::HandshakeFailure | Alert::BadCertificate, None) => Some(
                "the receiver asks for a client certificate, most likely: `client_certificate_file` and `client_key_file`",
            ),
            (
                Alert::UnknownCA
                | Alert::BadCertificate
                | Alert::CertificateUnknown
                | Alert::UnsupportedCertificate
                | Alert::CertificateRequired
                | Alert::AccessDenied
                | Alert::DecryptError,
                Some(_),
            ) => Some(
                "the receiver does not accept the client certificate: its authority must be one that the receiver knows \
                 (`client_ca_file`, `ca_file` there), and those between must stand behind it in `client_certificate_file`",
            ),
            (Alert::CertificateExpired | Alert::CertificateRevoked, Some(_)) => Some(
                "put a new client certificate into `client_certificate_file`: it is read again for every connection",
            ),
            (Alert::ProtocolVersion | Alert::InsufficientSecurity, _) => {
                Some("the receiver must speak TLS 1.2 or 1.3 with a usual cipher")
            }
            (Alert::UnrecognisedName, _) => Some("the receiver does not know itself by the name in the sink's address"),
            _ => None,
        }
    }
}

/// The first error of TLS among the causes.
fn tls_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    let mut next = Some(error);
    while let Some(inner) = next {
        if let Some(found) = inner.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // An `io::Error` shows what it wraps through `get_ref`, and as its source only what that wraps.
        let wrapped = inner.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(found) = wrapped.and_then(|wrapped| tls_error(wrapped)) {
            return Some(found);
        }
        next = inner.source();
    }
    None
}
