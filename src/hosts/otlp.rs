//! The `otlp` sink: records as OpenTelemetry logs over gRPC or HTTP with protobuf.
//!
//! Follows the OTLP specification (<https://opentelemetry.io/docs/specs/otlp/>) with these exceptions, each for a
//! receiver that would lose records otherwise. HTTP 500 and gRPC INTERNAL are tried again: Vector answers so when its
//! sinks failed. Answers that speak of our address or credentials are tried again, since an operator mends those.
//! A partial success names no records: its request is rejected and comes again in parts until the rejected ones stand
//! alone, which repeats the others.
//!
//! `otlp_message` writes the requests; the types of answers are those of `opentelemetry-proto`. A gRPC request is
//! encoded and compressed once, where work may take its time, so that what is sent again is the same and nothing else
//! waits for it. tonic would compress in the task that sends; that is why its channel and its reading of answers are
//! used, and its client is not.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use http_body_util::Full;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use prost::Message;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, TE};
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codec::{CompressionEncoding, DecodeBuf, Decoder};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Status, Streaming};
use url::Url;

use super::http::{StatusKind, gzip_after, kind_of, said};
use super::net::{CONNECT_TIMEOUT, Identity, NetSinkError, Presented, http_client, read_answer, read_ca, shown};
use super::otlp_message;
use super::requests::{Answer, Exchange, Part, Requests};
use crate::auth::{error_chain, parse_retry_after};
use crate::clock::Clock;
use crate::config::{OtlpCompression, OtlpConfig, OtlpProtocol};
use crate::host::Batch;
use crate::hosts::embedded::sink::{GroupBounds, Sink, Written};
use crate::model::Timestamp;

/// The one call of the logs service.
const EXPORT: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
/// Where it is over HTTP, below an endpoint without a path.
const HTTP_PATH: &str = "/v1/logs";
/// How a message is compressed, and how its answer may be.
const GRPC_ENCODING: &str = "grpc-encoding";
const GRPC_ACCEPT_ENCODING: &str = "grpc-accept-encoding";
/// Before each message of gRPC: whether it is compressed, and its length.
const GRPC_HEAD_BYTES: usize = 5;
/// What Vector says when its sinks rejected events for good. It answers DATA_LOSS or 500 then, which mean passing
/// trouble elsewhere.
const VECTOR_REJECTED: &str = "Contents failed to deliver to sink";
/// What tonic, with which Vector reads, says of a message over its bound. It answers OUT_OF_RANGE then, which means
/// passing trouble elsewhere.
const TONIC_TOO_LARGE: &str = "message length too large";
/// How often an idle gRPC connection is probed, so that one whose peer vanished is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// The sink.
pub struct OtlpSink {
    requests: Requests<Export>,
    bounds: GroupBounds,
}

impl OtlpSink {
    /// A sink as configured. Nothing is connected yet. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(config: &OtlpConfig, clock: Arc<dyn Clock>) -> Result<Self, NetSinkError> {
        let transport = match config.protocol {
            OtlpProtocol::Grpc => Transport::Grpc(Box::new(channel(config)?)),
            OtlpProtocol::Http => {
                let mut url = config.endpoint.clone();
                if url.path() == "/" {
                    url.set_path(HTTP_PATH);
                }
                Transport::Http(http_client(config.ca_file.as_deref(), &url)?, url)
            }
        };
        let export = Export {
            transport,
            gzip: config.compression == OtlpCompression::Gzip,
            identity: Identity::new(&config.headers, config.credentials()),
            timeout: Duration::from_secs(config.timeout_secs),
            clock,
        };
        let (bytes, records) = (config.batch_bytes_max, config.batch_records_max);
        let bounds = GroupBounds { bytes, records, age: Duration::from_secs(config.batch_age_secs) };
        Ok(Self { requests: Requests::new(export, bytes, records, config.requests_in_flight_max), bounds })
    }
}

#[async_trait]
impl Sink for OtlpSink {
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

fn channel(config: &OtlpConfig) -> Result<Channel, NetSinkError> {
    let failed =
        |error: tonic::transport::Error| NetSinkError::Tls { to: shown(&config.endpoint), why: error_chain(&error) };
    let mut endpoint = Endpoint::from_shared(config.endpoint.as_str().to_owned())
        .map_err(failed)?
        .user_agent(concat!("m365-audit/", env!("CARGO_PKG_VERSION")))
        .map_err(failed)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE);
    if config.endpoint.scheme() == "https" {
        let mut tls = ClientTlsConfig::new().with_native_roots();
        if let Some(ca) = read_ca(config.ca_file.as_deref())? {
            tls = tls.ca_certificate(Certificate::from_pem(ca));
        }
        endpoint = endpoint.tls_config(tls).map_err(failed)?;
    }
    Ok(endpoint.connect_lazy())
}

enum Transport {
    Grpc(Box<Channel>),
    Http(reqwest::Client, Url),
}

struct Export {
    transport: Transport,
    gzip: bool,
    identity: Identity,
    timeout: Duration,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl Exchange for Export {
    fn pack(&self, parts: &[Part]) -> Result<Bytes, String> {
        let before = match &self.transport {
            Transport::Grpc(_) => GRPC_HEAD_BYTES,
            Transport::Http(..) => 0,
        };
        let message = otlp_message::encode(parts, self.clock.now(), before)?;
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

    async fn send(&self, body: Bytes) -> Answer {
        let presented = match self.identity.present() {
            Ok(presented) => presented,
            Err(why) => return Answer::later(why),
        };
        let exchange = async {
            match &self.transport {
                Transport::Grpc(channel) => self.call((**channel).clone(), body, &presented).await,
                Transport::Http(client, url) => self.post(client, url.clone(), body, &presented).await,
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

impl Export {
    async fn post(&self, client: &reqwest::Client, url: Url, body: Bytes, presented: &Presented) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        if self.gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        let request = client.post(url).headers(headers).headers(presented.headers.clone()).body(body);
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Answer::later(format!("no answer: {}", error_chain(&error.without_url()))),
        };
        let text = read_answer(&mut response).await;
        let status = response.status();
        // A failure's body is a `google.rpc.Status`; a proxy in between may answer anything.
        let words = RpcStatus::decode(text.as_slice()).map_or_else(|_| text.clone(), |s| s.message.into_bytes());
        let why = || said(status, &words, presented);
        match http_kind(status, &words) {
            StatusKind::Success => match ExportLogsServiceResponse::decode(text.as_slice()) {
                Ok(response) => taken(&response, presented),
                // 2xx by itself is success; some receivers answer JSON or nothing.
                Err(_) => Answer::Taken,
            },
            StatusKind::Passing => {
                let retry_after = response.headers().get(RETRY_AFTER);
                let retry_after = retry_after.and_then(|value| parse_retry_after(value, self.clock.now()));
                Answer::Later { why: why(), retry_after }
            }
            StatusKind::Ours => Answer::later(format!("{} (check the sink's address and credentials)", why())),
            StatusKind::Rejection => Answer::Never(why()),
        }
    }

    async fn call(&self, mut channel: Channel, body: Bytes, presented: &Presented) -> Answer {
        if let Err(error) = std::future::poll_fn(|cx| GrpcService::<Body>::poll_ready(&mut channel, cx)).await {
            return Answer::later(format!("no connection: {}", error_chain(&error)));
        }
        let mut request = http::Request::new(Body::new(Full::new(body)));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = http::Uri::from_static(EXPORT);
        *request.version_mut() = http::Version::HTTP_2;
        *request.headers_mut() = presented.headers.clone();
        let headers = request.headers_mut();
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        if self.gzip {
            headers.insert(GRPC_ENCODING, HeaderValue::from_static("gzip"));
        }
        match response(channel.call(request).await).await {
            Ok(response) => match ExportLogsServiceResponse::decode(response) {
                Ok(response) => taken(&response, presented),
                Err(_) => Answer::Taken,
            },
            Err(status) => refused(&status, presented),
        }
    }
}

/// The one message of a gRPC answer.
async fn response(answer: Result<http::Response<Body>, tonic::transport::Error>) -> Result<Bytes, Status> {
    let answer = answer.map_err(|error| Status::from_error(Box::new(error)))?;
    // An answer without a message has its status among the headers.
    if let Some(status) = Status::from_header_map(answer.headers()).filter(|status| status.code() != Code::Ok) {
        return Err(status);
    }
    let gzip = answer.headers().get(GRPC_ENCODING).is_some_and(|encoding| encoding == "gzip");
    let encoding = gzip.then_some(CompressionEncoding::Gzip);
    let (status, body) = (answer.status(), answer.into_body());
    let mut messages = Streaming::new_response(Raw, body, status, encoding, None);
    let message = messages.message().await?;
    // The status is in the trailers.
    messages.trailers().await?;
    message.ok_or_else(|| Status::internal("the answer has no message"))
}

/// What success says: all of it, or that some records were not taken.
fn taken(response: &ExportLogsServiceResponse, presented: &Presented) -> Answer {
    let Some(partial) = &response.partial_success else { return Answer::Taken };
    let words = presented.shown(&partial.error_message);
    if partial.rejected_log_records > 0 {
        return Answer::Never(format!(
            "the receiver rejected {} of the records: {words}",
            partial.rejected_log_records
        ));
    }
    if !words.is_empty() {
        tracing::warn!(answer = words, "the OTLP receiver took the records and has something to say");
    }
    Answer::Taken
}

/// The specification's retryable statuses and the exceptions this file's head names.
fn http_kind(status: StatusCode, words: &[u8]) -> StatusKind {
    match (status.as_u16(), kind_of(status)) {
        (500.., _) if memchr::memmem::find(words, VECTOR_REJECTED.as_bytes()).is_some() => StatusKind::Rejection,
        (408 | 429 | 500 | 502 | 503 | 504, _) => StatusKind::Passing,
        (_, StatusKind::Passing) => StatusKind::Rejection,
        (_, kind) => kind,
    }
}

/// What a gRPC failure says of the records.
fn refused(status: &Status, presented: &Presented) -> Answer {
    let retry_after = retry_delay(status);
    let words = presented.shown(status.message());
    let why = format!("answer {:?}: {words}", status.code());
    let later = |why| Answer::Later { why, retry_after };
    match status.code() {
        Code::DataLoss if status.message().contains(VECTOR_REJECTED) => Answer::Never(why),
        Code::OutOfRange if status.message().contains(TONIC_TOO_LARGE) => Answer::Never(why),
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => later(why),
        // Retryable if the receiver says when; else the message is too large, or a quota is used up for good.
        Code::ResourceExhausted if retry_after.is_some() => later(why),
        // INTERNAL is Vector's word for a sink that failed, and both are tonic's for a connection that broke.
        Code::Internal | Code::Unknown | Code::Ok => later(why),
        Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented | Code::NotFound => {
            later(format!("{why} (check the sink's address and credentials)"))
        }
        Code::InvalidArgument | Code::ResourceExhausted | Code::FailedPrecondition | Code::AlreadyExists => {
            Answer::Never(why)
        }
    }
}

/// `google.rpc.Status`, of which the details hold what gRPC has no place for.
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
struct Raw;

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(bytes.copy_to_bytes(bytes.remaining())))
    }
}

// ------------------------------------------------------------------------------------------ the message

/// The records of a batch as one `ExportLogsServiceRequest` in protobuf: what the sink sends of it, before compression.
///
/// # Errors
/// A record is no JSON object.
pub fn encode(batch: &Batch, observed: Timestamp) -> Result<Vec<u8>, String> {
    otlp_message::encode(&[Part::whole(batch)], observed, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_code_speaks_of_the_records_of_us_or_of_the_moment() {
        let none = crate::hosts::net::Identity::new(
            &Default::default(),
            crate::config::Credentials {
                username: None,
                password: None,
                password_file: None,
                bearer_token: None,
                bearer_token_file: None,
            },
        );
        let presented = none.present().unwrap();
        let is_later = |status: &Status| matches!(refused(status, &presented), Answer::Later { .. });
        for code in [1, 4, 10, 11, 14, 15, 13, 2, 16, 7, 12, 5] {
            assert!(is_later(&Status::new(Code::from(code), "x")), "{code}");
        }
        for code in [3, 8, 9, 6] {
            assert!(!is_later(&Status::new(Code::from(code), "x")), "{code}");
        }
        assert!(!is_later(&Status::new(Code::DataLoss, VECTOR_REJECTED)));
        let info = RetryInfo { retry_delay: Some(RpcDuration { seconds: 3, nanos: 500_000_000 }) };
        let any = RpcAny { type_url: "type.googleapis.com/google.rpc.RetryInfo".into(), value: info.encode_to_vec() };
        let details = RpcStatus { code: 8, message: String::new(), details: vec![any] }.encode_to_vec();
        let status = Status::with_details(Code::ResourceExhausted, "busy", details.into());
        assert_eq!(
            refused(&status, &presented),
            Answer::Later {
                why: "answer ResourceExhausted: busy".into(),
                retry_after: Some(Duration::from_millis(3_500))
            }
        );
    }

    #[test]
    fn over_http_only_the_specified_statuses_and_500_are_passing() {
        for (status, words, kind) in [
            (500, "", StatusKind::Passing),
            (503, "", StatusKind::Passing),
            (429, "", StatusKind::Passing),
            (501, "", StatusKind::Rejection),
            (400, "", StatusKind::Rejection),
            (401, "", StatusKind::Ours),
            (500, VECTOR_REJECTED, StatusKind::Rejection),
        ] {
            assert_eq!(http_kind(StatusCode::from_u16(status).unwrap(), words.as_bytes()), kind, "{status} {words}");
        }
    }
}
