//! The `http` sink: it posts batches over HTTP/1.1 or HTTP/2 to any receiver that answers with a status.
//!
//! `answers` defines the meaning of a status. The answers of Vector's `http_server` are those of its source code (200
//! after its sinks confirmed, 500 when they failed, 400 when they rejected or the body cannot be read). Whether a
//! receiver's 2xx means "for good" depends on the receiver: `docs/hosts/` has the configuration that each needs.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use url::Url;

use super::answers::{Meaning, of_status};
use super::net::{AnswerBody, NetSinkError, Presented, SenderIdentity, http_client, read_answer};
use super::no_answer::Wire;
use super::requests::{Exchange, Requests};
use crate::clock::Clock;
use crate::config::sinks::{HttpCompression, HttpConfig, HttpEncoding};
use crate::host::Batch;
use crate::hosts::embedded::sink::{Sink, Written};
use crate::net::retry_after;

/// The level of zlib-rs above which more work saves little on these records: 8.3 us an event and 6.3 times smaller; the
/// usual 6 takes 14.0 us for 7.0 times, 2 takes 6.0 for 5.7.
const GZIP_LEVEL: u32 = 3;
/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;

/// Before the text of some pages.
const UTF8_BOM: &[u8] = b"\xef\xbb\xbf";
/// Behind the words of a success that confirms nothing.
const PAGE: &str = "(a web page, not a receiver's answer: a sign-in gateway, a proxy or a web server answers at `uri`)";

/// The sink as configured. Nothing is connected yet.
///
/// # Errors
/// TLS cannot be set up.
pub fn sink(config: &HttpConfig, clock: Arc<dyn Clock>) -> Result<impl Sink + use<>, NetSinkError> {
    let (client, wire) = http_client(&config.tls_files, &config.uri, &clock)?;
    let post = Post {
        client,
        wire,
        uri: config.uri.clone(),
        encoding: config.encoding,
        compression: config.compression,
        identity: SenderIdentity::new(&config.credentials),
        timeout: Duration::from_secs(config.requests.timeout_secs),
        clock,
    };
    Ok(Requests::new(post, config.batch_bytes_max, &config.requests))
}

struct Post {
    client: reqwest::Client,
    wire: Wire,
    uri: Url,
    encoding: HttpEncoding,
    compression: HttpCompression,
    identity: SenderIdentity,
    timeout: Duration,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl Exchange for Post {
    fn pack(&self, batches: &[Batch]) -> Result<Bytes, String> {
        let plain = match (self.encoding, batches) {
            (HttpEncoding::Ndjson, [batch]) => batch.ndjson(),
            (HttpEncoding::Ndjson, batches) => batches.iter().map(Batch::ndjson).collect::<Vec<_>>().concat().into(),
            (HttpEncoding::Json, batches) => array_of(batches),
        };
        match self.compression {
            HttpCompression::None => Ok(plain),
            HttpCompression::Gzip => gzip(&plain),
            HttpCompression::Zstd => {
                zstd::bulk::compress(&plain, ZSTD_LEVEL).map(Bytes::from).map_err(|e| format!("cannot compress: {e}"))
            }
        }
    }

    async fn send(&self, body: Bytes, _records: usize) -> Written {
        let presented = match self.identity.present() {
            Ok(presented) => presented,
            Err(why) => return Written::refused(why),
        };
        let mut request = self.client.post(self.uri.clone()).headers(self.headers()).headers(presented.headers.clone());
        request = request.body(body);
        let exchange = async {
            match request.send().await {
                Ok(mut response) => {
                    let answer = read_answer(&mut response).await;
                    let (why, words) = said(response.status(), &answer.body, &presented);
                    let meaning = of_status(response.status().as_u16(), &words);
                    if meaning == Meaning::Taken && is_page(response.headers(), &answer) {
                        return Meaning::Setting.written(format!("{why} {PAGE}"), None);
                    }
                    meaning.written(why, retry_after(response.headers(), self.clock.now()))
                }
                Err(error) => no_answer(error, &self.wire),
            }
        };
        tokio::select! {
            written = exchange => written,
            () = self.clock.sleep(self.timeout) => no_answer_within(self.timeout),
        }
    }
}

impl Post {
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let content_type = match self.encoding {
            HttpEncoding::Ndjson => "application/x-ndjson",
            HttpEncoding::Json => "application/json",
        };
        headers.insert(CONTENT_TYPE, reqwest::header::HeaderValue::from_static(content_type));
        let encoding = match self.compression {
            HttpCompression::None => return headers,
            HttpCompression::Gzip => "gzip",
            HttpCompression::Zstd => "zstd",
        };
        headers.insert(CONTENT_ENCODING, reqwest::header::HeaderValue::from_static(encoding));
        headers
    }
}

/// The result of a request without an answer. A request that was not sent was not accepted; for others that is unknown.
pub(crate) fn no_answer(error: reqwest::Error, wire: &Wire) -> Written {
    let is_connect = error.is_connect();
    let why = format!("no answer: {}", wire.explained(&error.without_url()));
    if is_connect { Written::refused(why) } else { Written::Unclear(why) }
}

/// The result of a request without an answer within `timeout`.
pub(crate) fn no_answer_within(timeout: Duration) -> Written {
    Written::Unclear(format!("no answer within {} s", timeout.as_secs()))
}

/// The message of a failure for the operator: the status and the receiver's own text, bounded; and that text.
pub(crate) fn said(status: StatusCode, text: &[u8], presented: &Presented) -> (String, String) {
    let text = String::from_utf8_lossy(text).into_owned();
    let words = presented.shown(&text);
    let why = if words.is_empty() { format!("answer {status}") } else { format!("answer {status}: {words}") };
    (why, text)
}

/// Whether an answer says that it is a web page, as a proxy, a sign-in gateway or a web server sends it.
pub(crate) fn is_html(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    content_type.trim_start().to_ascii_lowercase().starts_with("text/html")
}

/// Whether a success is a web page. By its body, too: receivers made with Flask, Express or PHP call an empty body and `ok`
/// HTML unless told otherwise. A body of which nothing could be read, or that is compressed unasked, may be a page.
fn is_page(headers: &HeaderMap, answer: &AnswerBody) -> bool {
    let body = answer.body.strip_prefix(UTF8_BOM).unwrap_or(&answer.body).trim_ascii_start();
    let may_be_page = match body.first() {
        None => !answer.is_whole,
        Some(first) => *first == b'<' || headers.contains_key(CONTENT_ENCODING),
    };
    is_html(headers) && may_be_page
}

fn array_of(batches: &[Batch]) -> Bytes {
    let mut out = Vec::with_capacity(batches.iter().map(|batch| batch.ndjson().len() + 1).sum::<usize>() + 1);
    for record in batches.iter().flat_map(Batch::records) {
        out.push(if out.is_empty() { b'[' } else { b',' });
        out.extend_from_slice(record.json);
    }
    if out.is_empty() {
        out.push(b'[');
    }
    out.push(b']');
    out.into()
}

/// `plain` as one gzip member.
pub(crate) fn gzip(plain: &[u8]) -> Result<Bytes, String> {
    gzip_after(0, plain).map(Bytes::from)
}

/// As [`gzip`], after `before` bytes that the caller fills.
pub(crate) fn gzip_after(before: usize, plain: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(before + plain.len() / 4);
    out.resize(before, 0);
    let mut encoder = GzEncoder::new(out, Compression::new(GZIP_LEVEL));
    let compressed = encoder.write_all(plain).and_then(|()| encoder.finish());
    compressed.map_err(|error| format!("cannot compress: {error}"))
}
