//! The HTTP clients and the bodies they give: TLS, proxy, timeouts, gzip. No redirect is ever followed.
//!
//! Nothing process-wide is touched: the TLS provider is handed over explicitly. Bodies are decoded here and not by
//! the HTTP library, so that a cut transfer and damaged gzip can be told apart and chunks are of a useful size.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_compression::tokio::bufread::GzipDecoder;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use reqwest::header::{CONTENT_ENCODING, HeaderMap};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::AsyncReadExt;
use tokio_util::io::StreamReader;
use url::{Host, Url};

use crate::auth::error_chain;

/// `User-Agent` of every request.
const USER_AGENT: &str = concat!("m365-audit/", env!("CARGO_PKG_VERSION"));
/// Decoded bytes handed on at a time.
const CHUNK_BYTES: usize = 64 * 1024;
/// HTTP/2 flow control: what one stream, and one connection with up to 32 of them, may have under way. Bounds memory.
const H2_STREAM_WINDOW: u32 = 512 * 1024;
const H2_CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Connections for small calls kept open for the next ones: a thousand tenants make some 20 calls a second.
const CALLS_IDLE_MAX: usize = 32;
/// How long; shorter than the front ends of such services keep theirs (two minutes and more), so that it is seldom they
/// who close.
const CALLS_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// A tenant's connections for blobs are closed soon after the last one: they are used without a pause or not at all.
const TRANSFERS_IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// What a way to a host is made from.
pub(super) struct HttpSettings<'a> {
    pub connect_timeout: Duration,
    pub ca_pem: Option<&'a [u8]>,
    pub proxy_url: Option<&'a Url>,
    pub no_proxy: Option<&'a str>,
    pub proxy_client_pem: Option<&'a [u8]>,
}

/// How a host is reached: TLS, proxy, and the connections for calls that are small and soon over.
///
/// One for all tenants that reach the host alike ([`super::Connections`]): a connection holds some 30 KiB and a
/// handshake costs a millisecond, and a thousand idle tenants have no more than a handful of calls under way. These
/// calls speak HTTP/1.1, so that each has a connection to itself and none waits for another tenant's.
pub(super) struct Way {
    calls: reqwest::Client,
    tls: rustls::ClientConfig,
    proxying: Proxying,
    connect_timeout: Duration,
}

/// Through which proxy.
enum Proxying {
    /// None.
    Direct,
    /// What the environment says, by the library's reading.
    Environment,
    /// This one.
    Through(Box<reqwest::Proxy>),
}

impl Way {
    /// The way to `target`. Loopback and link-local hosts are reached without a proxy.
    ///
    /// Its clients have no timeout but the one for connecting: the library's own read timeout runs on while the caller,
    /// held back by its host, does not ask for the next bytes. See [`Body`].
    pub fn new(settings: &HttpSettings<'_>, target: &Url) -> Result<Self, String> {
        let tls = tls_with(settings.ca_pem, target, settings.proxy_url, settings.proxy_client_pem)?;
        let proxying = Proxying::of(settings, target)?;
        let mut calls_tls = tls.clone();
        calls_tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let calls = builder(calls_tls, &proxying, settings.connect_timeout)
            .http1_only()
            .pool_idle_timeout(CALLS_IDLE_TIMEOUT)
            .pool_max_idle_per_host(CALLS_IDLE_MAX);
        let calls = calls.build().map_err(|error| error_chain(&error.without_url()))?;
        Ok(Self { calls, tls, proxying, connect_timeout: settings.connect_timeout })
    }

    /// For small calls; shares its connections.
    pub fn calls(&self) -> &reqwest::Client {
        &self.calls
    }

    /// A client with connections of its own, for large answers: whoever reads them slowly, because its host is slow,
    /// must not fill a connection of others.
    pub fn transfers(&self) -> Result<reqwest::Client, String> {
        builder(self.tls.clone(), &self.proxying, self.connect_timeout)
            .pool_idle_timeout(TRANSFERS_IDLE_TIMEOUT)
            .http2_initial_stream_window_size(H2_STREAM_WINDOW)
            .http2_initial_connection_window_size(H2_CONNECTION_WINDOW)
            .build()
            .map_err(|error| error_chain(&error.without_url()))
    }
}

fn builder(tls: rustls::ClientConfig, proxying: &Proxying, connect_timeout: Duration) -> reqwest::ClientBuilder {
    let builder = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .connect_timeout(connect_timeout)
        .tls_backend_preconfigured(tls);
    match proxying {
        Proxying::Direct => builder.no_proxy(),
        Proxying::Environment => builder,
        Proxying::Through(proxy) => builder.proxy(reqwest::Proxy::clone(proxy)),
    }
}

impl Proxying {
    fn of(settings: &HttpSettings<'_>, target: &Url) -> Result<Self, String> {
        let excepted = || match settings.no_proxy {
            Some(hosts) => reqwest::NoProxy::from_string(hosts),
            None => reqwest::NoProxy::from_env(),
        };
        // The library's `*` stands for names only, not for addresses.
        let excepts_all = settings.no_proxy.is_some_and(|hosts| hosts.split(',').any(|host| host.trim() == "*"));
        if is_loopback(target) || is_link_local(target) || excepts_all {
            return Ok(Self::Direct);
        }
        if let Some(proxy) = settings.proxy_url {
            let proxy = reqwest::Proxy::all(proxy.clone()).map_err(|_| "`proxy_url` is not usable".to_owned())?;
            return Ok(Self::Through(Box::new(proxy.no_proxy(excepted()))));
        }
        if settings.no_proxy.is_some()
            && let Some(proxy) = proxy_of_environment(target)
        {
            // The library would read its exceptions from the environment, too.
            let proxy =
                reqwest::Proxy::all(proxy).map_err(|_| "the proxy of the environment is not usable".to_owned())?;
            return Ok(Self::Through(Box::new(proxy.no_proxy(excepted()))));
        }
        Ok(Self::Environment)
    }
}

/// The proxy that the environment names for `target`.
fn proxy_of_environment(target: &Url) -> Option<String> {
    let names = match target.scheme() {
        "https" => ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"],
        _ => ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"],
    };
    names.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
}

#[cfg_attr(not(feature = "embedded"), allow(dead_code, reason = "for sinks, which are left out"))]
pub(crate) fn tls(ca_pem: Option<&[u8]>, target: &Url) -> Result<rustls::ClientConfig, String> {
    tls_with(ca_pem, target, None, None)
}

/// One set of rules for the proxy's TLS and the target's. `client_pem` is shown to whoever asks for a certificate: the
/// proxy it is meant for. Microsoft's hosts do not ask.
fn tls_with(
    ca_pem: Option<&[u8]>,
    target: &Url,
    proxy: Option<&Url>,
    client_pem: Option<&[u8]>,
) -> Result<rustls::ClientConfig, String> {
    let is_tls = target.scheme() == "https" || proxy.is_some_and(|proxy| proxy.scheme() == "https");
    let mut roots = if is_tls { native_roots() } else { Arc::new(rustls::RootCertStore::empty()) };
    if let Some(pem) = ca_pem {
        let own = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| format!("the CA file is not PEM: {error}"))?;
        if own.is_empty() {
            return Err("the CA file holds no certificate".into());
        }
        let roots = Arc::make_mut(&mut roots);
        for certificate in own {
            roots.add(certificate).map_err(|error| format!("a certificate of the CA file is not usable: {error}"))?;
        }
    }
    if is_tls && roots.is_empty() {
        return Err("this machine has no trusted root certificates".into());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let mut config = match client_pem {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
            let chain = chain.map_err(|error| format!("`proxy_certificate_file` is not PEM: {error}"))?;
            let key = PrivateKeyDer::from_pem_slice(pem);
            let key = key.map_err(|error| format!("the proxy certificate's key is not PEM: {error}"))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| format!("`proxy_certificate_file` cannot be used: {error}"))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The certificates this machine trusts, read anew when no client holds them: a process with a thousand tenants must not
/// read and hold them a thousand times.
fn native_roots() -> Arc<rustls::RootCertStore> {
    static IN_USE: Mutex<Weak<rustls::RootCertStore>> = Mutex::new(Weak::new());
    let mut in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(roots) = in_use.upgrade() {
        return roots;
    }
    let mut roots = rustls::RootCertStore::empty();
    // Single certificates that cannot be read are common in system stores and no reason to stop.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let roots = Arc::new(roots);
    *in_use = Arc::downgrade(&roots);
    roots
}

/// Whether a URL names this machine.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

/// Whether a URL names the machine next door by address: Azure's metadata service has 169.254.169.254.
fn is_link_local(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_link_local(),
        Some(Host::Ipv6(ip)) => ip.is_unicast_link_local(),
        _ => false,
    }
}

/// A body on its way, decoded. The read timeout runs only while somebody waits for bytes.
pub(super) enum Body {
    Plain(Raw),
    Gzip(Box<GzipBody>),
}

/// The bytes as they come from the connection.
pub(super) struct Raw {
    response: reqwest::Response,
    read_timeout: Duration,
}

impl Raw {
    async fn chunk(&mut self) -> Result<Option<Bytes>, Transfer> {
        match tokio::time::timeout(self.read_timeout, self.response.chunk()).await {
            Ok(outcome) => outcome.map_err(|error| Transfer(error_chain(&error.without_url()))),
            Err(_) => Err(Transfer(format!("nothing came for {} s", self.read_timeout.as_secs()))),
        }
    }
}

/// Trouble of the connection, to be told from trouble of the decoder.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Transfer(String);

pub(super) struct GzipBody {
    reader: GzipDecoder<StreamReader<BoxStream<'static, io::Result<Bytes>>, Bytes>>,
    buffer: BytesMut,
}

/// Why a body could not be read to its end.
#[derive(Debug)]
pub(super) enum BodyFault {
    /// The transfer broke off, or was shorter or longer than announced.
    Cut(String),
    /// The bytes came, and are not the gzip they claim to be.
    Gzip(String),
    /// An encoding that was not asked for.
    Encoding(String),
}

impl Body {
    /// The body of an answer; its `Content-Encoding` may be absent, `identity` or `gzip`.
    pub fn of(response: reqwest::Response, read_timeout: Duration) -> Result<Self, BodyFault> {
        let encoding = encoding(response.headers());
        let raw = Raw { response, read_timeout };
        match encoding.as_str() {
            "" | "identity" => Ok(Self::Plain(raw)),
            "gzip" | "x-gzip" => {
                let stream = futures_util::stream::try_unfold(raw, |mut raw| async move {
                    let chunk = raw.chunk().await.map_err(io::Error::other)?;
                    Ok(chunk.map(|chunk| (chunk, raw)))
                })
                .boxed();
                let mut reader = GzipDecoder::new(StreamReader::new(stream));
                // RFC 9110 allows several members; whatever else follows the last one is damage.
                reader.multiple_members(true);
                Ok(Self::Gzip(Box::new(GzipBody { reader, buffer: BytesMut::new() })))
            }
            _ => Err(BodyFault::Encoding(encoding)),
        }
    }

    /// The next bytes; `None` at the end, which is reported only when all of the body came and was sound.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, BodyFault> {
        match self {
            Self::Plain(raw) => raw.chunk().await.map_err(|error| BodyFault::Cut(error.0)),
            Self::Gzip(gzip) => {
                gzip.buffer.reserve(CHUNK_BYTES);
                match gzip.reader.read_buf(&mut gzip.buffer).await {
                    Ok(0) => Ok(None),
                    Ok(_) => Ok(Some(gzip.buffer.split().freeze())),
                    Err(error) => Err(match error.get_ref().and_then(|inner| inner.downcast_ref::<Transfer>()) {
                        Some(transfer) => BodyFault::Cut(transfer.0.clone()),
                        None => BodyFault::Gzip(error.to_string()),
                    }),
                }
            }
        }
    }

    /// At most `limit` bytes, and whether that was all.
    pub async fn read(&mut self, limit: usize) -> Result<(Vec<u8>, bool), BodyFault> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            let room = limit - bytes.len();
            if chunk.len() > room {
                bytes.extend_from_slice(chunk.get(..room).unwrap_or_default());
                return Ok((bytes, false));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok((bytes, true))
    }
}

fn encoding(headers: &HeaderMap) -> String {
    headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_ascii_lowercase())
        .filter(|value| !value.is_empty())
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_next_door_are_reached_directly() {
        for (url, direct) in [
            ("http://169.254.169.254/metadata", true),
            ("http://[fe80::1]/", true),
            ("https://manage.office.com/", false),
            ("http://10.0.0.1/", false),
        ] {
            assert_eq!(is_link_local(&Url::parse(url).unwrap()), direct, "{url}");
        }
    }
}
