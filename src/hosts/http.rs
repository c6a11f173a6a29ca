//! The `http` sink: batches posted over HTTP/1.1 or HTTP/2 to anything that answers a status.
//!
//! Owns what a status means for the records; the answers of Vector's `http_server` are those of its source code
//! (200 after its sinks confirmed, 500 when they failed, 400 when they rejected or the body cannot be read). That a
//! receiver's 2xx means "for good" is the receiver's affair: `docs/hosts/` says how each is configured for it.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use url::Url;

use super::net::{Identity, NetSinkError, Presented, http_client, read_answer};
use super::requests::{Answer, Exchange, Part, Requests};
use crate::auth::{error_chain, parse_retry_after};
use crate::clock::Clock;
use crate::config::{HttpCompression, HttpConfig, HttpEncoding};
use crate::host::Batch;
use crate::hosts::embedded::sink::{GroupBounds, Sink, Written};

/// Of the levels of zlib-rs on these records the one after which more work saves little: 8.3 us an event and 6.3 times
/// smaller; the usual 6 takes 14.0 us for 7.0 times, 2 takes 6.0 for 5.7.
const GZIP_LEVEL: u32 = 3;
/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;

/// The sink.
pub struct HttpSink {
    requests: Requests<Post>,
    bounds: GroupBounds,
}

impl HttpSink {
    /// A sink as configured. Nothing is connected yet.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(config: &HttpConfig, clock: Arc<dyn Clock>) -> Result<Self, NetSinkError> {
        let post = Post {
            client: http_client(config.ca_file.as_deref(), &config.uri)?,
            uri: config.uri.clone(),
            encoding: config.encoding,
            compression: config.compression,
            identity: Identity::new(&config.headers, config.credentials()),
            timeout: Duration::from_secs(config.timeout_secs),
            clock,
        };
        let (bytes, records) = (config.batch_bytes_max, config.batch_records_max);
        let bounds = GroupBounds { bytes, records, age: Duration::from_secs(config.batch_age_secs) };
        Ok(Self { requests: Requests::new(post, bytes, records, config.requests_in_flight_max), bounds })
    }
}

#[async_trait]
impl Sink for HttpSink {
    fn bounds(&self) -> GroupBounds {
        self.bounds
    }

    fn beside(&self) -> Vec<Box<dyn Sink>> {
        let bounds = self.bounds;
        self.requests.beside().map(|requests| Box::new(Self { requests, bounds }) as Box<dyn Sink>).collect()
    }

    async fn write(&mut self, batches: &[Batch]) -> Vec<Written> {
        self.requests.write(batches).await
    }
}

struct Post {
    client: reqwest::Client,
    uri: Url,
    encoding: HttpEncoding,
    compression: HttpCompression,
    identity: Identity,
    timeout: Duration,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl Exchange for Post {
    fn pack(&self, parts: &[Part]) -> Result<Bytes, String> {
        let plain = match (self.encoding, parts) {
            (HttpEncoding::Ndjson, [part]) => part.ndjson(),
            (HttpEncoding::Ndjson, parts) => parts.iter().map(Part::ndjson).collect::<Vec<_>>().concat().into(),
            (HttpEncoding::Json, parts) => array_of(parts),
        };
        match self.compression {
            HttpCompression::None => Ok(plain),
            HttpCompression::Gzip => gzip(&plain),
            HttpCompression::Zstd => {
                zstd::bulk::compress(&plain, ZSTD_LEVEL).map(Bytes::from).map_err(|e| format!("cannot compress: {e}"))
            }
        }
    }

    async fn send(&self, body: Bytes) -> Answer {
        let presented = match self.identity.present() {
            Ok(presented) => presented,
            Err(why) => return Answer::later(why),
        };
        let mut request = self.client.post(self.uri.clone()).headers(self.headers()).headers(presented.headers.clone());
        request = request.body(body);
        let exchange = async {
            match request.send().await {
                Ok(mut response) => {
                    let text = read_answer(&mut response).await;
                    self.meaning(response.status(), response.headers(), &text, &presented)
                }
                Err(error) => Answer::later(format!("no answer: {}", error_chain(&error.without_url()))),
            }
        };
        tokio::select! {
            answer = exchange => answer,
            () = self.clock.sleep(self.timeout) => {
                Answer::later(format!("no answer within {} s", self.timeout.as_secs()))
            }
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

    fn meaning(&self, status: StatusCode, headers: &HeaderMap, text: &[u8], presented: &Presented) -> Answer {
        let why = || said(status, text, presented);
        match kind_of(status) {
            StatusKind::Success => Answer::Taken,
            StatusKind::Passing => {
                let retry_after = headers.get(RETRY_AFTER).and_then(|value| parse_retry_after(value, self.clock.now()));
                Answer::Later { why: why(), retry_after }
            }
            StatusKind::Ours => Answer::later(format!("{} (check the sink's address and credentials)", why())),
            StatusKind::Rejection => Answer::Never(why()),
        }
    }
}

/// What a status says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatusKind {
    /// The receiver has the records.
    Success,
    /// It does not take them now.
    Passing,
    /// It does not take anything as we are configured. Setting records aside for an expired token would be wrong, and
    /// an operator mends it.
    Ours,
    /// It will never take these records.
    Rejection,
}

pub(crate) fn kind_of(status: StatusCode) -> StatusKind {
    match status.as_u16() {
        200..=299 => StatusKind::Success,
        408 | 425 | 429 | 500.. => StatusKind::Passing,
        // Informational answers and redirects, which are not followed: the records are not there.
        ..=399 | 401 | 403 | 404 | 405 | 407 | 415 | 421 => StatusKind::Ours,
        _ => StatusKind::Rejection,
    }
}

/// A failure as the operator reads it: the status and the receiver's own words, bounded.
pub(crate) fn said(status: StatusCode, text: &[u8], presented: &Presented) -> String {
    let words = presented.shown(&String::from_utf8_lossy(text));
    if words.is_empty() { format!("answer {status}") } else { format!("answer {status}: {words}") }
}

fn array_of(parts: &[Part]) -> Bytes {
    let mut out = Vec::with_capacity(parts.iter().map(|part| part.ndjson().len() + 1).sum::<usize>() + 1);
    for record in parts.iter().flat_map(Part::records) {
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

/// As [`gzip`], after `before` bytes that are left for the caller to fill.
pub(crate) fn gzip_after(before: usize, plain: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(before + plain.len() / 4);
    out.resize(before, 0);
    let mut encoder = GzEncoder::new(out, Compression::new(GZIP_LEVEL));
    let compressed = encoder.write_all(plain).and_then(|()| encoder.finish());
    compressed.map_err(|error| format!("cannot compress: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_speaks_of_the_records_of_us_or_of_the_moment() {
        for (kind, statuses) in [
            (StatusKind::Success, vec![200, 201, 202, 204, 299]),
            (StatusKind::Passing, vec![408, 425, 429, 500, 501, 502, 503, 504, 599]),
            (StatusKind::Ours, vec![301, 302, 307, 401, 403, 404, 405, 407, 415]),
            (StatusKind::Rejection, vec![400, 406, 409, 411, 413, 414, 422, 431, 499]),
        ] {
            for status in statuses {
                assert_eq!(kind_of(StatusCode::from_u16(status).unwrap()), kind, "{status}");
            }
        }
    }
}
