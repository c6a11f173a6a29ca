//! The `otlp` sink: records as OpenTelemetry logs over gRPC or HTTP with protobuf.
//!
//! Follows the OTLP specification (<https://opentelemetry.io/docs/specs/otlp/>) except for the meaning of an answer,
//! which `answers` defines for all sinks, and for a partial success. That names no records, so its request is sent
//! again in parts until the rejected ones are isolated, which repeats the others.
//!
//! `otlp_message` writes the requests; the types of answers are those of `opentelemetry-proto`. A gRPC request is
//! encoded and compressed once, on a thread for long work, so that a retry sends the same bytes and no other task
//! waits. tonic would compress in the sending task, so this uses tonic's channel and its decoding of answers, but not
//! its client.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use http_body_util::{BodyExt, Full};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsPartialSuccess, ExportLogsServiceResponse};
use parking_lot::{Mutex, MutexGuard};
use prost::Message;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, TE};
use rustls::pki_types::ServerName;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codec::{CompressionEncoding, DecodeBuf, Decoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use url::Url;

use super::answers::{Meaning, of_code, of_status};
use super::grpc_connector::GrpcConnector;
use super::http::{gzip_after, is_html, no_answer, no_answer_within, said};
use super::net::{
    ANSWER_BYTES_MAX, AnswerBody, CONNECT_TIMEOUT, NetSinkError, Presented, SenderIdentity, http_client, read_answer,
    shown, tls_config,
};
use super::no_answer::Wire;
use super::otlp_message;
use super::requests::{Exchange, Requests};
use crate::clock::Clock;
use crate::config::sinks::{OtlpCompression, OtlpConfig, OtlpProtocol};
use crate::host::Batch;
use crate::hosts::embedded::sink::{Sink, Written};
use crate::model::Timestamp;
use crate::net::{error_chain, retry_after};

/// The one call of the logs service.
const EXPORT: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
/// The path over HTTP, for an endpoint without a path.
const HTTP_PATH: &str = "/v1/logs";
/// The header of a message's compression.
const GRPC_ENCODING: &str = "grpc-encoding";
const GRPC_ACCEPT_ENCODING: &str = "grpc-accept-encoding";
/// Before each message of gRPC: whether it is compressed, and its length.
const GRPC_HEAD_BYTES: usize = 5;
/// How often the system probes the peer of an idle connection. HTTP/2 pings are not used: receivers count them (gRPC in
/// Go allows one in five minutes and closes the connection at the third excess ping), which would break a request that
/// waits longer.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// The sink as configured. Nothing is connected yet. Must be called on a tokio runtime.
///
/// # Errors
/// TLS cannot be set up.
pub fn sink(config: &OtlpConfig, clock: Arc<dyn Clock>) -> Result<impl Sink + use<>, NetSinkError> {
    let (transport, wire) = match config.protocol {
        OtlpProtocol::Grpc => {
            let (transport, wire) = GrpcTransport::new(config, &clock)?;
            (Transport::Grpc(Box::new(transport)), wire)
        }
        OtlpProtocol::Http => {
            let mut url = config.endpoint.clone();
            if url.path() == "/" {
                url.set_path(HTTP_PATH);
            }
            let (client, wire) = http_client(&config.tls_files, &url, &clock)?;
            (Transport::Http(client, url), wire)
        }
    };
    let export = OtlpExchange {
        transport,
        wire,
        gzip: config.compression == OtlpCompression::Gzip,
        identity: SenderIdentity::new(&config.credentials),
        timeout: Duration::from_secs(config.requests.timeout_secs),
        clock,
    };
    Ok(Requests::new(export, config.batch_bytes_max, &config.requests))
}

enum Transport {
    Grpc(Box<GrpcTransport>),
    Http(reqwest::Client, Url),
}

struct GrpcTransport {
    endpoint: Endpoint,
    connector: GrpcConnector,
    current: Mutex<Current>,
}

/// The channel for requests, and its sequence number.
#[derive(Clone)]
struct Current {
    number: u64,
    channel: Channel,
}

impl GrpcTransport {
    fn new(config: &OtlpConfig, clock: &Arc<dyn Clock>) -> Result<(Self, Wire), NetSinkError> {
        let to = || shown(&config.endpoint);
        let failed = |error: &dyn std::error::Error| NetSinkError::Tls { to: to(), why: error_chain(error) };
        let origin: http::Uri = config.endpoint.as_str().parse().map_err(|error| failed(&error))?;
        let (tls, wire) = match config.endpoint.scheme() {
            "https" => {
                let host = config.endpoint.host_str().unwrap_or_default().trim_matches(['[', ']']);
                let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(&error))?;
                let (tls, wire) = tls_config(&config.tls_files, &config.endpoint, clock)?;
                (Some((tls, name)), wire)
            }
            _ => (None, Wire::default()),
        };
        // The connector adds TLS, so tonic gets a plain address.
        let port = config.endpoint.port_or_known_default().unwrap_or(443);
        let address = format!("http://{}:{port}", config.endpoint.host_str().unwrap_or_default());
        let endpoint = Endpoint::from_shared(address)
            .map_err(|error| failed(&error))?
            .origin(origin)
            .user_agent(concat!("m365-audit/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| failed(&error))?
            .connect_timeout(CONNECT_TIMEOUT);
        let connector = GrpcConnector::new(tls, wire.clone(), CONNECT_TIMEOUT, KEEP_ALIVE);
        let channel = endpoint.connect_with_connector_lazy(connector.clone());
        Ok((Self { endpoint, connector, current: Mutex::new(Current { number: 0, channel }) }, wire))
    }

    fn current(&self) -> Current {
        self.lock().clone()
    }

    /// Later requests go over a new connection than that of `failed`: its peer may have disappeared silently, and a
    /// channel notices a broken connection only at the next request, which then fails.
    fn renew(&self, failed: u64) {
        let mut current = self.lock();
        if current.number == failed {
            let channel = self.endpoint.connect_with_connector_lazy(self.connector.clone());
            *current = Current { number: failed + 1, channel };
        }
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock()
    }
}

/// What an answer is judged by: how many records the request holds, and what it presented.
struct Sent {
    records: usize,
    presented: Presented,
}

struct OtlpExchange {
    transport: Transport,
    wire: Wire,
    gzip: bool,
    identity: SenderIdentity,
    timeout: Duration,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl Exchange for OtlpExchange {
    fn pack(&self, batches: &[Batch]) -> Result<Bytes, String> {
        let before = match &self.transport {
            Transport::Grpc(_) => GRPC_HEAD_BYTES,
            Transport::Http(..) => 0,
        };
        let message = otlp_message::encode(batches, self.clock.now(), before)?;
        let mut packed = match self.gzip {
            true => gzip_after(before, message.get(before..).unwrap_or_default())?,
            false => message,
        };
        if let Some((head, message)) = packed.split_first_chunk_mut::<GRPC_HEAD_BYTES>().filter(|_| before > 0) {
            let length = u32::try_from(message.len()).map_err(|_| "the records make a message over 4 GiB")?;
            head[0] = self.gzip.into();
            head[1..].copy_from_slice(&length.to_be_bytes());
        }
        Ok(packed.into())
    }

    async fn send(&self, body: Bytes, records: usize) -> Written {
        let presented = match self.identity.present() {
            Ok(presented) => presented,
            Err(why) => return Written::refused(why),
        };
        let deadline = self.clock.sleep(self.timeout);
        let sent = Sent { records, presented };
        match &self.transport {
            Transport::Http(client, url) => tokio::select! {
                written = self.post(client, url.clone(), body, &sent) => written,
                () = deadline => no_answer_within(self.timeout),
            },
            Transport::Grpc(grpc) => {
                let Current { number, channel } = grpc.current();
                let written = tokio::select! {
                    written = self.call(channel, body, &sent) => written,
                    () = deadline => Err(no_answer_within(self.timeout)),
                };
                written.unwrap_or_else(|unanswered| {
                    grpc.renew(number);
                    unanswered
                })
            }
        }
    }
}

impl OtlpExchange {
    async fn post(&self, client: &reqwest::Client, url: Url, body: Bytes, sent: &Sent) -> Written {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        if self.gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        let request = client.post(url).headers(headers).headers(sent.presented.headers.clone()).body(body);
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(error) => return no_answer(error, &self.wire),
        };
        let answer = read_answer(&mut response).await;
        let status = response.status();
        if status.is_success() {
            return taken_over_http(&response, &answer, sent);
        }
        // A failure's body is a `google.rpc.Status`; a proxy in between may send any body.
        let words = RpcStatus::decode(answer.body.as_slice()).map_or(answer.body, |s| s.message.into_bytes());
        let (why, words) = said(status, &words, &sent.presented);
        of_status(status.as_u16(), &words).written(why, retry_after(response.headers(), self.clock.now()))
    }

    /// `Err`: the result of a request without an answer.
    async fn call(&self, mut channel: Channel, body: Bytes, sent: &Sent) -> Result<Written, Written> {
        if let Err(error) = std::future::poll_fn(|cx| GrpcService::<Body>::poll_ready(&mut channel, cx)).await {
            return Err(Written::refused(format!("no connection: {}", self.wire.explained(&error))));
        }
        let mut request = http::Request::new(Body::new(Full::new(body)));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = http::Uri::from_static(EXPORT);
        *request.version_mut() = http::Version::HTTP_2;
        *request.headers_mut() = sent.presented.headers.clone();
        let headers = request.headers_mut();
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        if self.gzip {
            headers.insert(GRPC_ENCODING, HeaderValue::from_static("gzip"));
        }
        match response(channel.call(request).await).await {
            Ok(response) => Ok(match ExportLogsServiceResponse::decode(response) {
                Ok(response) => taken(&response, sent),
                Err(_) => Written::Delivered,
            }),
            Err(NoMessage::Status(status)) => match std::error::Error::source(&status) {
                // A local error of a broken connection gives its reason only in its causes.
                Some(cause) => Err(self.unanswered(&status, cause, &sent.presented)),
                None => Ok(refused(&status, &sent.presented)),
            },
            Err(NoMessage::Http { head, body }) => Ok(self.answered_without_grpc(&head, &body, &sent.presented)),
        }
    }
}

impl OtlpExchange {
    /// The result of an answer that is not gRPC: the same as over HTTP, but no status alone is success.
    fn answered_without_grpc(&self, head: &http::response::Parts, body: &[u8], presented: &Presented) -> Written {
        let (why, words) = said(head.status, body, presented);
        let why = format!("{why} (not in gRPC: of a proxy before the receiver, or of a server of another protocol)");
        let meaning = match of_status(head.status.as_u16(), &words) {
            Meaning::Taken if is_html(&head.headers) => Meaning::Setting,
            Meaning::Taken => Meaning::Unclear,
            meaning => meaning,
        };
        meaning.written(why, retry_after(&head.headers, self.clock.now()))
    }

    /// The result of a request without an answer, with the reason.
    fn unanswered(&self, status: &Status, cause: &(dyn std::error::Error + 'static), presented: &Presented) -> Written {
        // The outermost is tonic's generic error.
        let cause = cause.source().filter(|_| cause.is::<tonic::transport::Error>()).unwrap_or(cause);
        let explained = self.wire.explained_through(cause, |chain| presented.shown(chain));
        let explained = match &self.transport {
            Transport::Grpc(grpc) => grpc.connector.broken().instead_of(explained),
            Transport::Http(..) => explained,
        };
        let why = format!("no answer: {explained}");
        if status.code() == Code::Unavailable { Written::refused(why) } else { Written::Unclear(why) }
    }
}

/// An answer to a gRPC request without a message.
enum NoMessage {
    /// A status of gRPC, or a local error.
    Status(Status),
    /// An answer in HTTP alone, and what was read of its body.
    Http { head: Box<http::response::Parts>, body: Vec<u8> },
}

impl From<Status> for NoMessage {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// The one message of a gRPC answer.
async fn response(answer: Result<http::Response<Body>, tonic::transport::Error>) -> Result<Bytes, NoMessage> {
    let answer = answer.map_err(|error| Status::from_error(Box::new(error)))?;
    // An answer without a message has its status in the headers.
    if let Some(status) = failure_in(answer.headers()) {
        return Err(status.into());
    }
    // tonic would take the first bytes of a proxy's text for the head of a message, and report those instead of the status.
    if answer.status() != http::StatusCode::OK || is_html(answer.headers()) {
        return Err(without_grpc(answer).await);
    }
    let gzip = answer.headers().get(GRPC_ENCODING).is_some_and(|encoding| encoding == "gzip");
    let encoding = gzip.then_some(CompressionEncoding::Gzip);
    let (status, body) = (answer.status(), answer.into_body());
    let mut messages = Streaming::new_response(RawCodec, body, status, encoding, None);
    let message = messages.message().await?;
    // The status is in the trailers.
    messages.trailers().await?;
    message.ok_or_else(|| Status::internal("the answer has no message").into())
}

/// The failure that headers or trailers of gRPC report.
fn failure_in(headers: &HeaderMap) -> Option<Status> {
    Status::from_header_map(headers).filter(|status| status.code() != Code::Ok)
}

/// Reads a bounded part of an answer that is probably not gRPC; its trailers may still hold a status. A broken rest is
/// left out.
async fn without_grpc(answer: http::Response<Body>) -> NoMessage {
    let (head, mut rest) = answer.into_parts();
    let mut body = Vec::new();
    while let Some(Ok(frame)) = rest.frame().await {
        match frame.into_data() {
            Ok(data) => {
                let room = ANSWER_BYTES_MAX - body.len();
                body.extend_from_slice(data.get(..room).unwrap_or(&data));
                if data.len() >= room {
                    break;
                }
            }
            Err(frame) => {
                if let Some(status) = frame.trailers_ref().and_then(failure_in) {
                    return status.into();
                }
            }
        }
    }
    NoMessage::Http { head: Box::new(head), body }
}

/// The result of a success over HTTP. A 2xx alone is success, since some receivers answer with an empty body. But an HTML
/// page comes from a proxy, and a truncated answer may have contained the rejection of some records.
fn taken_over_http(response: &reqwest::Response, answer: &AnswerBody, sent: &Sent) -> Written {
    if is_html(response.headers()) {
        let (why, _) = said(response.status(), &answer.body, &sent.presented);
        return Meaning::Setting.written(format!("{why} (a web page, not an OTLP receiver's answer)"), None);
    }
    if !answer.is_whole {
        return Written::Unclear(format!("answer {}, but it was cut", response.status()));
    }
    // No answer in protobuf is JSON: it has control characters for tags.
    match serde_json::from_slice(&answer.body) {
        Ok(json) => taken(&from_json(&json), sent),
        Err(_) => ExportLogsServiceResponse::decode(answer.body.as_slice())
            .map_or(Written::Delivered, |response| taken(&response, sent)),
    }
}

/// A response in the JSON of protobuf, with names in either of its spellings and 64 bits as text or number.
fn from_json(json: &serde_json::Value) -> ExportLogsServiceResponse {
    let either = |json: &serde_json::Value, camel: &str, snake: &str| json.get(camel).or(json.get(snake)).cloned();
    let partial_success = either(json, "partialSuccess", "partial_success").map(|partial| ExportLogsPartialSuccess {
        rejected_log_records: match either(&partial, "rejectedLogRecords", "rejected_log_records") {
            Some(serde_json::Value::String(digits)) => digits.trim().parse().unwrap_or_default(),
            number => number.and_then(|number| number.as_i64()).unwrap_or_default(),
        },
        error_message: either(&partial, "errorMessage", "error_message")
            .and_then(|words| words.as_str().map(str::to_owned))
            .unwrap_or_default(),
    });
    ExportLogsServiceResponse { partial_success }
}

/// The result of a success: all records accepted, or some rejected, or all.
fn taken(response: &ExportLogsServiceResponse, sent: &Sent) -> Written {
    let Some(partial) = &response.partial_success else { return Written::Delivered };
    let words = sent.presented.shown(&partial.error_message);
    let because = if words.is_empty() { String::new() } else { format!(": {words}") };
    let all = sent.records;
    match usize::try_from(partial.rejected_log_records).unwrap_or(0) {
        0 => {
            if !words.is_empty() {
                tracing::warn!(answer = words, "the OTLP receiver took the records and has something to say");
            }
            Written::Delivered
        }
        // None was taken, so nothing speaks against a single one.
        rejected if rejected >= all => Written::Rejected(format!("the receiver rejected all {all} records{because}")),
        rejected => Written::RejectedSome(format!("the receiver rejected {rejected} of {all} records{because}")),
    }
}

/// The result of a gRPC failure.
fn refused(status: &Status, presented: &Presented) -> Written {
    let why = format!("answer {:?}: {}", status.code(), presented.shown(status.message()));
    of_code(status.code(), status.message()).written(why, retry_delay(status))
}

/// `google.rpc.Status`, whose details hold the data for which gRPC has no field.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<RpcAny>,
}

/// `google.protobuf.Any`
#[derive(Clone, PartialEq, Message)]
struct RpcAny {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.RetryInfo`
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<RpcDuration>,
}

/// `google.protobuf.Duration`
#[derive(Clone, PartialEq, Message)]
struct RpcDuration {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// `RetryInfo` of the status' details.
fn retry_delay(status: &Status) -> Option<Duration> {
    let details = RpcStatus::decode(status.details()).ok()?.details;
    let info = details.iter().find(|any| any.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(info.value.as_slice()).ok()?.retry_delay.unwrap_or_default();
    let (seconds, nanos) = (u64::try_from(delay.seconds).unwrap_or(0), u32::try_from(delay.nanos).unwrap_or(0));
    Some(Duration::from_secs(seconds).saturating_add(Duration::from_nanos(nanos.into())))
}

/// Messages that stay bytes.
#[derive(Debug, Clone, Copy)]
struct RawCodec;

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(bytes.copy_to_bytes(bytes.remaining())))
    }
}

// ------------------------------------------------------------------------------------------ the message

/// The records of a batch as one `ExportLogsServiceRequest` in protobuf: the form in which the sink sends it, before
/// compression.
///
/// # Errors
/// A record is no JSON object.
pub fn encode(batch: &Batch, observed: Timestamp) -> Result<Vec<u8>, String> {
    otlp_message::encode(std::slice::from_ref(batch), observed, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::sinks::RequestCredentials;

    #[test]
    fn a_wait_in_the_details_is_the_receivers_own_word() {
        let presented = SenderIdentity::new(&RequestCredentials::default()).present().unwrap();
        let info = RetryInfo { retry_delay: Some(RpcDuration { seconds: 3, nanos: 500_000_000 }) };
        let any = RpcAny { type_url: "type.googleapis.com/google.rpc.RetryInfo".into(), value: info.encode_to_vec() };
        let details = RpcStatus { code: 8, message: String::new(), details: vec![any] }.encode_to_vec();
        let status = Status::with_details(Code::ResourceExhausted, "busy", details.into());
        assert_eq!(
            refused(&status, &presented),
            Written::Refused {
                why: "answer ResourceExhausted: busy".into(),
                retry_after: Some(Duration::from_millis(3_500))
            }
        );
    }
}
