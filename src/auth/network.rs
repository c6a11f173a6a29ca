//! Why a request got no answer, where the HTTP library tells: one slug and one remedy for each cause an operator can
//! mend. Used for the authority and for the API.

use std::error::Error;

use super::error_chain;

/// A cause of its own.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NetworkCause {
    pub slug: &'static str,
    pub says: &'static str,
    pub hint: &'static str,
}

const PROXY_CREDENTIALS: NetworkCause = NetworkCause {
    slug: "proxy-credentials-missing",
    says: "the proxy asks for credentials (407)",
    hint: "set `proxy_url = \"http://${PROXY_USER}:${PROXY_PASSWORD}@proxy.example.com:3128\"`, or the same in `HTTPS_PROXY`",
};
const PROXY_REFUSED: NetworkCause = NetworkCause {
    slug: "proxy-refused",
    says: "the proxy refuses to connect there",
    hint: "allow CONNECT to this host on port 443 in the proxy, or name the host in `no_proxy`",
};
const PROXY_UNREACHABLE: NetworkCause = NetworkCause {
    slug: "proxy-unreachable",
    says: "the proxy cannot be reached",
    hint: "check `proxy_url` or `HTTPS_PROXY`, and that the proxy runs: `curl -x PROXY -I https://manage.office.com`",
};
const NAME: NetworkCause = NetworkCause {
    slug: "name-not-resolved",
    says: "the host's name is not known to DNS here",
    hint: "`getent hosts NAME` must answer: check the resolver, or set `proxy_url` if names are resolved by a proxy",
};
const UNTRUSTED: NetworkCause = NetworkCause {
    slug: "tls-untrusted",
    says: "the certificate of the other side is not trusted",
    hint: "if a proxy opens TLS, put its authority's PEM into `ca_file`; else update this machine's root certificates",
};
const TLS_TIME: NetworkCause = NetworkCause {
    slug: "tls-time",
    says: "the certificate of the other side is not valid at this machine's time",
    hint: "set the clock (`timedatectl set-ntp true`); if it is right, a proxy presents an old certificate",
};
const TLS_NAME: NetworkCause = NetworkCause {
    slug: "tls-wrong-name",
    says: "the certificate of the other side is for another name",
    hint: "check `cloud`, `api_url`, `authority_url` and `proxy_url`; something answers in the host's place",
};

/// All of them, for the documents.
pub(crate) const CAUSES: [&NetworkCause; 7] =
    [&PROXY_CREDENTIALS, &PROXY_REFUSED, &PROXY_UNREACHABLE, &NAME, &UNTRUSTED, &TLS_TIME, &TLS_NAME];

/// The cause of a request that got no answer, if it is one of these.
pub(crate) fn network_cause(error: &reqwest::Error) -> Option<&'static NetworkCause> {
    let mut next: Option<&(dyn Error + 'static)> = error.source();
    while let Some(inner) = next {
        if let Some(cause) = tls_cause(inner) {
            return Some(cause);
        }
        // An `io::Error` shows what it wraps through `get_ref`, and as its source only what that wraps.
        let wrapped = inner.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(cause) = wrapped.and_then(|wrapped| tls_cause(wrapped)) {
            return Some(cause);
        }
        next = inner.source();
    }
    // The library keeps these to itself but for their words; a test holds the words to its present version.
    let text = error_chain(error);
    match () {
        () if text.contains("proxy authorization required") => Some(&PROXY_CREDENTIALS),
        () if text.contains("tunnel error: unsuccessful") => Some(&PROXY_REFUSED),
        () if text.contains("tunnel error: failed to create underlying connection") => Some(&PROXY_UNREACHABLE),
        () if text.contains("dns error") => Some(&NAME),
        () => None,
    }
}

fn tls_cause(error: &(dyn Error + 'static)) -> Option<&'static NetworkCause> {
    use rustls::CertificateError as Bad;
    match error.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(
            Bad::Expired | Bad::ExpiredContext { .. } | Bad::NotValidYet | Bad::NotValidYetContext { .. },
        ) => Some(&TLS_TIME),
        rustls::Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => Some(&TLS_NAME),
        rustls::Error::InvalidCertificate(_) => Some(&UNTRUSTED),
        _ => None,
    }
}
