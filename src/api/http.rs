//! The HTTP clients and the bodies they give: TLS, proxy, timeouts, gzip. No redirect is ever followed.
//!
//! Process-wide settings are untouched: the TLS provider is passed explicitly. Bodies are decoded here and not by the
//! HTTP library, so that a truncated transfer and damaged gzip are distinguishable and chunks have a useful size.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_compression::tokio::bufread::GzipDecoder;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use reqwest::header::{CONTENT_ENCODING, HeaderMap};
use tokio::io::AsyncReadExt;
use tokio_util::io::StreamReader;
use url::Url;

use super::tls::tls_with;
use crate::auth::network::{NetworkRoute, Proxy};
use crate::config::{Places, is_link_local, is_loopback};
use crate::net::error_chain;

/// `User-Agent` of every request.
const USER_AGENT: &str = concat!("m365-audit/", env!("CARGO_PKG_VERSION"));
/// Decoded bytes passed on at a time.
const CHUNK_BYTES: usize = 64 * 1024;
/// Bytes that tell gzip and text apart, with a mark of the encoding before the text.
const TELLING_BYTES: usize = 4;
/// No more white space than this is read ahead.
const LOOK_AHEAD_BYTES_MAX: usize = 256;
/// The first bytes of gzip.
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Connections kept open for the next call, and as many for the next blob, where the process may have many: a thousand
/// tenants make some 20 calls a second.
pub(super) const IDLE_MAX: usize = 32;
/// How long; shorter than the front ends of such services keep theirs (two minutes and more), so that the server seldom
/// closes first.
const CALLS_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Those for blobs are closed soon after the last one: they are used without a pause or not at all.
const TRANSFERS_IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// The settings of the clients for a host.
pub(super) struct HttpSettings<'a> {
    pub connect_timeout: Duration,
    pub ca_pem: Option<&'a [u8]>,
    pub proxy_url: Option<&'a Url>,
    pub no_proxy: Option<&'a str>,
    pub proxy_client_pem: Option<&'a [u8]>,
}

/// How a host is reached: TLS, proxy, and the connections for small calls and for blobs.
///
/// One for all tenants that reach the host alike ([`super::Connections`]): a connection holds some 30 KiB and a
/// handshake costs a millisecond, and a thousand idle tenants have no more than a handful of calls in flight. All use
/// HTTP/1.1, so that each call has its own connection: no call waits for another tenant's, and a slow reader of a blob
/// does not block a connection of others.
pub(super) struct HostClients {
    calls: reqwest::Client,
    transfers: reqwest::Client,
    tls: rustls::ClientConfig,
    target: Url,
    proxying: Proxying,
    connect_timeout: Duration,
}

/// Through which proxy.
enum Proxying {
    /// None.
    Direct,
    /// As the environment defines, read by the library.
    Environment,
    /// This one.
    Through(Box<reqwest::Proxy>, Url),
}

impl HostClients {
    /// The clients for `target`. Loopback and link-local hosts are reached without a proxy.
    ///
    /// Its clients have no timeout except for connecting: the library's own read timeout would continue while the
    /// caller, delayed by its host, does not read the next bytes. See [`Body`]. Each keeps at most `idle_max`
    /// connections open for the next call.
    pub fn new(settings: &HttpSettings<'_>, target: &Url, idle_max: usize) -> Result<Self, String> {
        let tls = tls_with(settings.ca_pem, target, settings.proxy_url, settings.proxy_client_pem)?;
        let proxying = Proxying::of(settings, target)?;
        let mut client_tls = tls.clone();
        client_tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let client = |idle_timeout| {
            builder(client_tls.clone(), &proxying, settings.connect_timeout)
                .http1_only()
                .pool_idle_timeout(idle_timeout)
                .pool_max_idle_per_host(idle_max)
                .build()
                .map_err(|error| error_chain(&error.without_url()))
        };
        let (calls, transfers) = (client(CALLS_IDLE_TIMEOUT)?, client(TRANSFERS_IDLE_TIMEOUT)?);
        Ok(Self { calls, transfers, tls, target: target.clone(), proxying, connect_timeout: settings.connect_timeout })
    }

    /// For small calls; shares its connections.
    pub fn calls(&self) -> &reqwest::Client {
        &self.calls
    }

    /// The diagnosis for a host that was not reached.
    pub fn route(&self, places: Places) -> NetworkRoute {
        let url = match &self.proxying {
            Proxying::Direct => None,
            Proxying::Environment => proxy_of_environment(&self.target),
            Proxying::Through(_, url) => Some(url.clone()),
        };
        let proxy = url.map(|url| Arc::new(Proxy::new(url, self.tls.clone(), self.connect_timeout)));
        NetworkRoute::new(self.target.clone(), proxy, places)
    }

    /// For blobs; separate from the former, so that a slow blob never delays a small call.
    pub fn transfers(&self) -> &reqwest::Client {
        &self.transfers
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
        Proxying::Through(proxy, _) => builder.proxy(reqwest::Proxy::clone(proxy)),
    }
}

impl Proxying {
    fn of(settings: &HttpSettings<'_>, target: &Url) -> Result<Self, String> {
        let excepted = || match settings.no_proxy {
            Some(hosts) => reqwest::NoProxy::from_string(hosts),
            None => reqwest::NoProxy::from_env(),
        };
        // In the library, `*` matches only names, not addresses.
        let excepts_all = settings.no_proxy.is_some_and(|hosts| hosts.split(',').any(|host| host.trim() == "*"));
        if is_loopback(target) || is_link_local(target) || excepts_all {
            return Ok(Self::Direct);
        }
        if let Some(url) = settings.proxy_url {
            let proxy = reqwest::Proxy::all(url.clone()).map_err(|_| "`proxy_url` is not usable".to_owned())?;
            return Ok(Self::Through(Box::new(proxy.no_proxy(excepted())), url.clone()));
        }
        if settings.no_proxy.is_some()
            && let Some(url) = proxy_of_environment(target)
        {
            // The library would read its exceptions from the environment, too.
            let proxy = reqwest::Proxy::all(url.clone());
            let proxy = proxy.map_err(|_| "the proxy of the environment is not usable".to_owned())?;
            return Ok(Self::Through(Box::new(proxy.no_proxy(excepted())), url));
        }
        Ok(Self::Environment)
    }
}

/// The proxy that the environment names for `target`.
fn proxy_of_environment(target: &Url) -> Option<Url> {
    let names = match target.scheme() {
        "https" => ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"],
        _ => ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"],
    };
    let named = names.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))?;
    // Without a scheme it is `http`, as in other programs.
    let text = if named.contains("://") { named } else { format!("http://{named}") };
    Url::parse(text.trim()).ok()
}

/// A body being received, decoded. The read timeout runs only while the caller waits for bytes.
///
/// Its label is believed where the bytes do not contradict it: a proxy that unpacks a body or packs it may leave the
/// label as it was, and the body would be unreadable for good.
pub(super) struct Body {
    packing: Packing,
    text: TextForm,
}

enum Packing {
    /// Before its first bytes; with its label.
    Unopened(Box<RawBody>, String),
    Plain(Box<RawBody>),
    Gzip(Box<GzipBody>),
    /// Being opened, or not to be opened.
    Closed,
}

/// The encoding of the text, known from its mark.
enum TextForm {
    Unknown,
    AsItIs,
    Utf16(Box<encoding_rs::Decoder>),
}

/// The bytes as they come from the connection.
pub(super) struct RawBody {
    response: reqwest::Response,
    read_timeout: Duration,
    /// Read already.
    ahead: Bytes,
}

impl RawBody {
    /// Reads ahead until the beginning shows what the body is.
    async fn look_ahead(&mut self) -> Result<(), Transfer> {
        let mut ahead = Bytes::new();
        while (ahead.len() < TELLING_BYTES || without_mark(&ahead).len() < 2) && ahead.len() < LOOK_AHEAD_BYTES_MAX {
            let Some(chunk) = self.chunk().await? else { break };
            ahead = if ahead.is_empty() { chunk } else { Bytes::from([ahead, chunk].concat()) };
        }
        self.ahead = ahead;
        Ok(())
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, Transfer> {
        if !self.ahead.is_empty() {
            return Ok(Some(std::mem::take(&mut self.ahead)));
        }
        match tokio::time::timeout(self.read_timeout, self.response.chunk()).await {
            Ok(outcome) => outcome.map_err(|error| Transfer(error_chain(&error.without_url()))),
            Err(_) => Err(Transfer(format!("nothing came for {} s", self.read_timeout.as_secs()))),
        }
    }
}

/// A fault of the connection, as opposed to one of the decoder.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Transfer(String);

pub(super) struct GzipBody {
    reader: GzipDecoder<StreamReader<BoxStream<'static, io::Result<Bytes>>, Bytes>>,
    buffer: BytesMut,
}

impl GzipBody {
    fn of(raw: RawBody) -> Self {
        let stream = futures_util::stream::try_unfold(raw, |mut raw| async move {
            let chunk = raw.chunk().await.map_err(io::Error::other)?;
            Ok(chunk.map(|chunk| (chunk, raw)))
        })
        .boxed();
        let mut reader = GzipDecoder::new(StreamReader::new(stream));
        // RFC 9110 allows several members; whatever else follows the last one is damage.
        reader.multiple_members(true);
        Self { reader, buffer: BytesMut::new() }
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, BodyFault> {
        self.buffer.reserve(CHUNK_BYTES);
        match self.reader.read_buf(&mut self.buffer).await {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(self.buffer.split().freeze())),
            Err(error) => Err(match error.get_ref().and_then(|inner| inner.downcast_ref::<Transfer>()) {
                Some(transfer) => BodyFault::Cut(transfer.0.clone()),
                None => BodyFault::Gzip(error.to_string()),
            }),
        }
    }
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
    /// The body of an answer; its `Content-Encoding` may be absent, `identity` or `gzip`, or any where the bytes show
    /// something else ([`is_packed`]).
    pub fn of(response: reqwest::Response, read_timeout: Duration) -> Self {
        let label = encoding(response.headers());
        let raw = Box::new(RawBody { response, read_timeout, ahead: Bytes::new() });
        Self { packing: Packing::Unopened(raw, label), text: TextForm::Unknown }
    }

    /// The next bytes; `None` at the end, which is reported only when the body was complete and valid.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, BodyFault> {
        loop {
            let mut chunk = self.unpacked().await?;
            if let TextForm::Unknown = self.text {
                // A mark has two bytes.
                while let Some(first) = chunk.as_ref().filter(|first| first.len() == 1).cloned()
                    && let Some(next) = self.unpacked().await?
                {
                    chunk = Some(Bytes::from([first, next].concat()));
                }
                self.text = text_form(chunk.as_deref().unwrap_or_default());
            }
            let TextForm::Utf16(decoder) = &mut self.text else { return Ok(chunk) };
            let text = utf8_of(decoder, chunk.as_deref());
            if chunk.is_none() {
                self.text = TextForm::AsItIs;
            }
            if !text.is_empty() || chunk.is_none() {
                return Ok(Some(Bytes::from(text)).filter(|text| !text.is_empty()));
            }
        }
    }

    /// The next bytes, decompressed.
    async fn unpacked(&mut self) -> Result<Option<Bytes>, BodyFault> {
        if let Packing::Unopened(..) = self.packing
            && let Packing::Unopened(mut raw, label) = std::mem::replace(&mut self.packing, Packing::Closed)
        {
            raw.look_ahead().await.map_err(|error| BodyFault::Cut(error.0))?;
            self.packing = match is_packed(&label, &raw.ahead) {
                Some(true) => Packing::Gzip(Box::new(GzipBody::of(*raw))),
                Some(false) => Packing::Plain(raw),
                None => return Err(BodyFault::Encoding(label)),
            };
        }
        match &mut self.packing {
            Packing::Plain(raw) => raw.chunk().await.map_err(|error| BodyFault::Cut(error.0)),
            Packing::Gzip(gzip) => gzip.chunk().await,
            Packing::Unopened(..) | Packing::Closed => Err(BodyFault::Cut("it was not opened".to_owned())),
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

/// Whether a body of this label that begins so is gzip; `None` when it is of an encoding that was not asked for.
fn is_packed(label: &str, beginning: &[u8]) -> Option<bool> {
    let is_packed = match label {
        _ if beginning.starts_with(&GZIP) => true,
        "" | "identity" => false,
        "gzip" | "x-gzip" | "deflate" if is_json(beginning) || utf16_of(beginning).is_some() => false,
        "gzip" | "x-gzip" => true,
        _ => return None,
    };
    Some(is_packed)
}

/// Whether bytes are the beginning of an array or object. One byte does not suffice: compressed bytes may begin with it.
fn is_json(beginning: &[u8]) -> bool {
    const BLANKS: &[u8] = b" \t\r\n";
    match without_mark(beginning) {
        [b'[', next, ..] => b"{]".contains(next) || BLANKS.contains(next),
        [b'{', next, ..] => b"\"}".contains(next) || BLANKS.contains(next),
        _ => false,
    }
}

/// Without white space and a byte order mark of UTF-8 before the text.
fn without_mark(beginning: &[u8]) -> &[u8] {
    let beginning = beginning.trim_ascii_start();
    beginning.strip_prefix(b"\xef\xbb\xbf").unwrap_or(beginning).trim_ascii_start()
}

fn utf16_of(beginning: &[u8]) -> Option<&'static encoding_rs::Encoding> {
    let (encoding, _) = encoding_rs::Encoding::for_bom(beginning)?;
    (encoding != encoding_rs::UTF_8).then_some(encoding)
}

fn text_form(beginning: &[u8]) -> TextForm {
    let decoder = utf16_of(beginning).map(|encoding| Box::new(encoding.new_decoder_with_bom_removal()));
    decoder.map_or(TextForm::AsItIs, TextForm::Utf16)
}

/// The next bytes of UTF-16 as UTF-8; `None` is the end of the text. What is no character becomes U+FFFD.
fn utf8_of(decoder: &mut encoding_rs::Decoder, bytes: Option<&[u8]>) -> Vec<u8> {
    let source = bytes.unwrap_or_default();
    let mut text = vec![0; decoder.max_utf8_buffer_length(source.len()).unwrap_or(source.len() * 3 + 16)];
    let (_, _, written, _) = decoder.decode_to_utf8(source, &mut text, bytes.is_none());
    text.truncate(written);
    text
}
