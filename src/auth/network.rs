//! Why a request got no answer, if the HTTP library reports it: one slug and one remedy for each cause that an operator
//! can fix. Used for the authority and for the API.
//!
//! The library reports only that a proxy refused. So this module sends the proxy one more request itself; the answer
//! shows whether the proxy forbids the connection, requires other credentials, or is faulty itself.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use url::Url;

use super::SecretText;
use crate::config::Places;
use crate::net::{error_chain, excerpt, redact};

/// Most bytes read of a proxy's answer; an error page has a few kilobytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// A cause of its own; the hint has the marks of [`Places`], `{host}` and `{proxy}`.
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
const PROXY_CREDENTIALS_REFUSED: NetworkCause = NetworkCause {
    slug: "proxy-credentials-refused",
    says: "the proxy refuses the user name and password it was given (407)",
    hint: "check user and password in `proxy_url` or `HTTPS_PROXY`: they may have changed or expired, and signs such as `@`, \
           `:`, `/`, `#` and `%` must be written as `%40`, `%3A`, `%2F`, `%23`, `%25`; only Basic is spoken, so a proxy that \
           asks for NTLM or Kerberos must let this machine through without",
};
const PROXY_REFUSED: NetworkCause = NetworkCause {
    slug: "proxy-refused",
    says: "the proxy refuses to connect there",
    hint: "allow CONNECT to {host} on port 443 in the proxy {proxy} for this machine, or name the host in `no_proxy`; 400, \
           404, 405 and 501 come from a server that is no proxy: check `proxy_url` or `HTTPS_PROXY`",
};
const PROXY_UNAVAILABLE: NetworkCause = NetworkCause {
    slug: "proxy-unavailable",
    says: "the proxy cannot connect there for the moment",
    hint: "none needed unless it lasts: it is tried again. Then ask whoever runs the proxy {proxy}: 502 and 504 mean that it \
           does not reach {host} or does not know its name, 503 and a closed connection that it is overloaded or restarting",
};
const PROXY_NOT_HTTP: NetworkCause = NetworkCause {
    slug: "proxy-not-http",
    says: "what answers at the proxy's address is no HTTP proxy",
    hint: "check host, port and scheme of `proxy_url` or `HTTPS_PROXY` ({proxy}): `https://` only for a proxy that itself \
           speaks TLS; SOCKS is not spoken",
};
const PROXY_UNREACHABLE: NetworkCause = NetworkCause {
    slug: "proxy-unreachable",
    says: "the proxy cannot be reached",
    hint: "check `proxy_url` or `HTTPS_PROXY`, and that the proxy runs: `curl -x PROXY -I {api}`",
};
const NAME: NetworkCause = NetworkCause {
    slug: "name-not-resolved",
    says: "the host's name is not known to DNS here",
    hint: "`getent hosts {host}` must answer: check the resolver, or set `proxy_url` if names are resolved by a proxy",
};
const UNTRUSTED: NetworkCause = NetworkCause {
    slug: "tls-untrusted",
    says: "the certificate of the other side is not trusted",
    hint: "if a proxy opens TLS, put its authority's PEM into `ca_file` (or the proxy's own certificate, if it signed that \
           itself); if the other side leaves out intermediate certificates, put those there, too; else update this \
           machine's root certificates",
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
const TLS_CERTIFICATE: NetworkCause = NetworkCause {
    slug: "tls-certificate-unusable",
    says: "the certificate of the other side cannot be used for a server",
    hint: "`openssl s_client -connect {host}:443 -showcerts` shows it: whoever runs the other side (a proxy that opens TLS, \
           mostly) must issue one for a server, signed with a usual algorithm and not revoked",
};
const TLS_REFUSED: NetworkCause = NetworkCause {
    slug: "tls-refused",
    says: "the other side breaks TLS off",
    hint: "TLS 1.2 or 1.3 is spoken: look for a proxy or firewall that allows neither, or that asks for a client certificate \
           (`proxy_certificate_file`)",
};
const TLS_NOT_SPOKEN: NetworkCause = NetworkCause {
    slug: "tls-not-spoken",
    says: "what answers there does not speak TLS",
    hint: "check scheme and port of `api_url`, `authority_url` and `proxy_url`: `http://` for a proxy that does not itself \
           speak TLS; else something answers in the host's place",
};

/// All of them, for the documents.
pub(crate) const CAUSES: [&NetworkCause; 13] = [
    &PROXY_CREDENTIALS,
    &PROXY_CREDENTIALS_REFUSED,
    &PROXY_REFUSED,
    &PROXY_UNAVAILABLE,
    &PROXY_NOT_HTTP,
    &PROXY_UNREACHABLE,
    &NAME,
    &UNTRUSTED,
    &TLS_TIME,
    &TLS_NAME,
    &TLS_CERTIFICATE,
    &TLS_REFUSED,
    &TLS_NOT_SPOKEN,
];

/// A cause, with the texts for one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkFault {
    pub slug: &'static str,
    pub says: String,
    pub hint: String,
    /// The proxy's answer, in place of the library's own text.
    pub detail: Option<String>,
}

/// The proxy in front of a host, with the settings to send it a request.
pub(crate) struct Proxy {
    url: Url,
    tls: Arc<rustls::ClientConfig>,
    timeout: Duration,
}

impl Proxy {
    /// `url` may hold credentials; `tls` is for a proxy of the scheme `https`.
    pub fn new(url: Url, mut tls: rustls::ClientConfig, timeout: Duration) -> Self {
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self { url, tls: Arc::new(tls), timeout }
    }

    fn shown(&self) -> String {
        format!("`{}://{}:{}`", self.url.scheme(), self.url.host_str().unwrap_or_default(), self.port())
    }

    fn port(&self) -> u16 {
        self.url.port_or_known_default().unwrap_or(80)
    }

    /// User and password in the form that is sent.
    fn credentials(&self) -> Option<SecretText> {
        let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
        if self.url.username().is_empty() && self.url.password().is_none() {
            return None;
        }
        let pair = format!("{}:{}", decoded(self.url.username()), decoded(self.url.password().unwrap_or_default()));
        Some(SecretText::from(STANDARD.encode(pair)))
    }

    /// The texts that must not be shown if its answer repeats them.
    fn secrets(&self) -> Vec<SecretText> {
        let password = percent_encoding::percent_decode_str(self.url.password().unwrap_or_default());
        self.credentials().into_iter().chain([SecretText::from(password.decode_utf8_lossy().into_owned())]).collect()
    }

    /// Requests a connection to `target` and reads only the answer.
    async fn ask(&self, target: &Url) -> ProxyAnswer {
        match tokio::time::timeout(self.timeout, self.ask_unbounded(target)).await {
            Ok(answer) => answer.unwrap_or(ProxyAnswer::Closed),
            Err(_) => ProxyAnswer::Silent,
        }
    }

    async fn ask_unbounded(&self, target: &Url) -> std::io::Result<ProxyAnswer> {
        let host = self.url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let stream = TcpStream::connect((host, self.port())).await?;
        if self.url.scheme() != "https" {
            return self.converse(stream, target).await;
        }
        let name = ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
        let stream = tokio_rustls::TlsConnector::from(self.tls.clone()).connect(name, stream).await?;
        self.converse(stream, target).await
    }

    async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut stream: S,
        target: &Url,
    ) -> std::io::Result<ProxyAnswer> {
        let place =
            format!("{}:{}", target.host_str().unwrap_or_default(), target.port_or_known_default().unwrap_or(443));
        let mut request = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n");
        if let Some(credentials) = self.credentials() {
            request.push_str(&format!("Proxy-Authorization: Basic {}\r\n", credentials.expose()));
        }
        stream.write_all(format!("{request}\r\n").as_bytes()).await?;
        let mut bytes = Vec::new();
        let mut answer = ProxyAnswer::Closed;
        let mut buffer = [0; 4096];
        loop {
            // A connection that breaks off after the head has still sent its status.
            let read = stream.read(&mut buffer).await.unwrap_or(0);
            bytes.extend_from_slice(buffer.get(..read).unwrap_or_default());
            match ProxyAnswer::of(&bytes) {
                Some((found, complete)) => {
                    answer = found;
                    if complete {
                        break;
                    }
                }
                None if read > 0 && bytes.len() < ANSWER_BYTES_MAX => continue,
                None => break,
            }
            if read == 0 || bytes.len() >= ANSWER_BYTES_MAX {
                break;
            }
        }
        Ok(answer)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({})", self.shown())
    }
}

/// A proxy's answer to CONNECT.
#[derive(Debug, PartialEq, Eq)]
enum ProxyAnswer {
    /// The status and its text, in words.
    Status(u16, String),
    /// It is not HTTP; its beginning.
    NotHttp(String),
    /// The connection ended, or was never made.
    Closed,
    /// No answer arrived.
    Silent,
}

impl ProxyAnswer {
    /// The answer received so far, and whether the rest is worth waiting for. `None` while that is unknown.
    fn of(bytes: &[u8]) -> Option<(Self, bool)> {
        let text = String::from_utf8_lossy(bytes);
        let begins = bytes.len().min(5);
        if bytes.get(..begins) != b"HTTP/".get(..begins) {
            return Some((Self::NotHttp(excerpt(&text)), true));
        }
        let (head, body) = text.split_once("\r\n\r\n").or_else(|| text.split_once("\n\n"))?;
        let first = head.lines().next().unwrap_or_default();
        let mut words = first.splitn(3, ' ').skip(1);
        let Some(status) = words.next().and_then(|status| status.trim().parse::<u16>().ok()) else {
            return Some((Self::NotHttp(excerpt(first)), true));
        };
        let header = |wanted: &str| {
            let lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
            lines.into_iter().find(|(name, _)| name.trim().eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim())
        };
        let mut said = format!("{status} {}", words.next().unwrap_or_default().trim()).trim().to_owned();
        if let Some(place) = header("location").filter(|_| (300..400).contains(&status)) {
            said.push_str(&format!(", to {}", place.split('?').next().unwrap_or_default()));
        }
        if let Some(asked) = header("proxy-authenticate").filter(|_| status == 407) {
            said.push_str(&format!(", asks for {}", asked.split(' ').next().unwrap_or_default()));
        }
        let body_words = words_of(body);
        if !body_words.is_empty() {
            said.push_str(&format!(": {body_words}"));
        }
        let length = header("content-length").and_then(|text| text.parse::<usize>().ok());
        let awaited = length.unwrap_or(if status == 200 { 0 } else { usize::MAX });
        Some((Self::Status(status, said), body.len() >= awaited))
    }
}

/// The text of a page, without its tags, styles and scripts.
fn words_of(page: &str) -> String {
    let mut text = String::new();
    let mut rest = page;
    while let Some(open) = rest.find('<') {
        text.push_str(rest.get(..open).unwrap_or_default());
        text.push(' ');
        let tag = rest.get(open..).unwrap_or_default();
        let hidden = ["style", "script"]
            .iter()
            .find(|name| tag.get(1..=name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name)));
        let end = match hidden {
            Some(name) => tag.to_ascii_lowercase().find(&format!("</{name}")),
            None => tag.find('>').map(|at| at + 1),
        };
        // An unclosed tag extends to the end.
        rest = end.and_then(|at| tag.get(at..)).unwrap_or_default();
        if hidden.is_some() {
            rest = rest.find('>').and_then(|at| rest.get(at + 1..)).unwrap_or_default();
        }
    }
    text.push_str(rest);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// How a host is reached, for the explanation of a failure.
#[derive(Debug, Clone)]
pub(crate) struct NetworkRoute {
    target: Url,
    proxy: Option<Arc<Proxy>>,
    places: Places,
}

impl NetworkRoute {
    /// The path to `target`, through `proxy` if there is one.
    pub fn new(target: Url, proxy: Option<Arc<Proxy>>, places: Places) -> Self {
        Self { target, proxy, places }
    }

    /// The cause of a request that got no answer, if it is one that an operator can fix.
    pub async fn fault(&self, error: &reqwest::Error) -> Option<NetworkFault> {
        match cause_of(error)? {
            Diagnosis::Cause(cause) => Some(self.fault_for(cause, None)),
            Diagnosis::Tunnel(cause) => Some(match &self.proxy {
                Some(proxy) => self.ask(proxy, cause).await,
                None => self.fault_for(cause, None),
            }),
        }
    }

    /// The fault of an answer 407 that came in the host's place.
    pub fn proxy_wants_credentials(&self) -> NetworkFault {
        let has = self.proxy.as_ref().is_some_and(|proxy| proxy.credentials().is_some());
        self.fault_for(if has { &PROXY_CREDENTIALS_REFUSED } else { &PROXY_CREDENTIALS }, None)
    }

    /// Why the proxy refuses the connection; `otherwise` if it gives no reason now.
    async fn ask(&self, proxy: &Proxy, otherwise: &'static NetworkCause) -> NetworkFault {
        let answer = proxy.ask(&self.target).await;
        let cause = match &answer {
            ProxyAnswer::Status(407, _) if proxy.credentials().is_some() => &PROXY_CREDENTIALS_REFUSED,
            ProxyAnswer::Status(407, _) => &PROXY_CREDENTIALS,
            ProxyAnswer::Status(501 | 505 | 511, _) => &PROXY_REFUSED,
            ProxyAnswer::Status(408 | 425 | 429 | 500 | 502.., _) => &PROXY_UNAVAILABLE,
            // It now allows the connection that it refused a moment ago.
            ProxyAnswer::Status(200..=299, _) => &PROXY_UNAVAILABLE,
            ProxyAnswer::Status(..) => &PROXY_REFUSED,
            ProxyAnswer::NotHttp(_) => &PROXY_NOT_HTTP,
            ProxyAnswer::Closed if otherwise.slug == PROXY_REFUSED.slug => &PROXY_UNAVAILABLE,
            ProxyAnswer::Closed | ProxyAnswer::Silent => otherwise,
        };
        let said = match answer {
            ProxyAnswer::Status(200..=299, _) => "it refused, and allows the same connection now".to_owned(),
            ProxyAnswer::Status(_, said) => format!("it answered {said}"),
            ProxyAnswer::NotHttp(said) => format!("it answered {said:?}"),
            ProxyAnswer::Closed => "it closed the connection without an answer".to_owned(),
            ProxyAnswer::Silent => format!("it gave no answer within {} s", proxy.timeout.as_secs()),
        };
        let secrets = proxy.secrets();
        let detail =
            redact(&format!("{}: {said}", proxy.shown().replace('`', "")), &secrets.iter().collect::<Vec<_>>());
        self.fault_for(cause, Some(excerpt(&detail)))
    }

    fn fault_for(&self, cause: &NetworkCause, detail: Option<String>) -> NetworkFault {
        let proxy = self.proxy.as_ref().map_or_else(|| "(none is configured)".to_owned(), |proxy| proxy.shown());
        let hint = cause.hint.replace("{host}", self.target.host_str().unwrap_or_default()).replace("{proxy}", &proxy);
        NetworkFault { slug: cause.slug, says: cause.says.to_owned(), hint: self.places.fill(&hint), detail }
    }
}

enum Diagnosis {
    Cause(&'static NetworkCause),
    /// The tunnel through the proxy was not made; the proxy may give a reason.
    Tunnel(&'static NetworkCause),
}

/// The cause of a request that got no answer, if it is one of these.
fn cause_of(error: &reqwest::Error) -> Option<Diagnosis> {
    let mut next: Option<&(dyn Error + 'static)> = error.source();
    while let Some(inner) = next {
        if let Some(cause) = tls_cause(inner) {
            return Some(Diagnosis::Cause(cause));
        }
        // An `io::Error` shows what it wraps through `get_ref`, and as its source only what that wraps.
        let wrapped = inner.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(cause) = wrapped.and_then(|wrapped| tls_cause(wrapped)) {
            return Some(Diagnosis::Cause(cause));
        }
        next = inner.source();
    }
    // The library exposes these only as text; a test checks the text against its present version.
    let text = error_chain(error);
    let says = |words: &str| text.contains(words);
    match () {
        () if says("proxy authorization required") => Some(Diagnosis::Tunnel(&PROXY_CREDENTIALS)),
        () if says("tunnel error: failed to create underlying connection") => {
            Some(Diagnosis::Cause(&PROXY_UNREACHABLE))
        }
        () if says("tunnel error: unexpected end of file") || says("tunnel error: io error") => {
            Some(Diagnosis::Tunnel(&PROXY_UNAVAILABLE))
        }
        () if says("tunnel error: ") => Some(Diagnosis::Tunnel(&PROXY_REFUSED)),
        () if says("dns error") => Some(Diagnosis::Cause(&NAME)),
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
        rustls::Error::InvalidCertificate(
            Bad::BadEncoding
            | Bad::Revoked
            | Bad::UnhandledCriticalExtension
            | Bad::InvalidPurpose
            | Bad::InvalidPurposeContext { .. },
        ) => Some(&TLS_CERTIFICATE),
        rustls::Error::InvalidCertificate(_) => Some(&UNTRUSTED),
        rustls::Error::AlertReceived(_) | rustls::Error::PeerIncompatible(_) => Some(&TLS_REFUSED),
        rustls::Error::InvalidMessage(_) => Some(&TLS_NOT_SPOKEN),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxys_answer_is_read_as_it_comes() {
        let status = |status, said: &str, complete| Some((ProxyAnswer::Status(status, said.into()), complete));
        let table: [(&str, Option<(ProxyAnswer, bool)>); 11] = [
            ("HTTP/1.1 200 OK\r\n\r\n", status(200, "200 OK", true)),
            ("HTTP/1.1 503 Busy\r\nContent-Length: 5\r\n\r\nabc", status(503, "503 Busy: abc", false)),
            ("HTTP/1.1 503 Busy\r\nContent-Length: 5\r\n\r\nabcde", status(503, "503 Busy: abcde", true)),
            (
                "HTTP/1.0 403 Forbidden\r\n\r\n<html><style>p {}</style><title>Denied</title><p>by <b>policy</b>",
                status(403, "403 Forbidden: Denied by policy", false),
            ),
            (
                "HTTP/1.1 302 Found\r\nLocation: http://portal.example/login?u=secret\r\nContent-Length: 0\r\n\r\n",
                status(302, "302 Found, to http://portal.example/login", true),
            ),
            (
                "HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n",
                status(407, "407 No, asks for NTLM", true),
            ),
            ("HTTP/1.1 503 Busy\r\n", None),
            ("HT", None),
            ("HTTP/1.1 what\r\n\r\n", Some((ProxyAnswer::NotHttp("HTTP/1.1 what".into()), true))),
            ("SSH-2.0-x\r\n", Some((ProxyAnswer::NotHttp("SSH-2.0-x".into()), true))),
            ("\u{5}x", Some((ProxyAnswer::NotHttp(" x".into()), true))),
        ];
        for (text, expected) in table {
            assert_eq!(ProxyAnswer::of(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn neither_credentials_nor_their_form_on_the_wire_are_shown() {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let proxy = Proxy::new(Url::parse("http://me:p%40ss@proxy.example:3128").unwrap(), tls, Duration::from_secs(1));
        assert_eq!(format!("{proxy:?}"), "Proxy(`http://proxy.example:3128`)");
        assert_eq!(proxy.credentials().unwrap().expose(), "bWU6cEBzcw==");
        let secrets = proxy.secrets();
        let shown = redact("you sent bWU6cEBzcw== for p@ss", &secrets.iter().collect::<Vec<_>>());
        assert_eq!(shown, "you sent *** for ***");
    }
}
