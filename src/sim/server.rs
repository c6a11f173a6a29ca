//! The HTTP edge: sockets, HTTP/1.1 and HTTP/2 without TLS, response headers, bodies as streams, and the faults that
//! consist of bytes and connections rather than of answers.
//!
//! It does not know the feed: [`feed::answer`] makes the answers.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response, header};
use bytes::{Bytes, BytesMut};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::form_urlencoded;

use super::call::{NEXT_PAGE_HEADER, Reply, ReplyBody, SimCall};
use super::faults::{CallKind, CallNames, Faults, SimFault};
use super::feed;
use super::tenant::{SimBlobBody, SimState};
use super::token::{self, Tokens};
use super::{Counters, RequestLog};
use crate::clock::Clock;
use crate::model::{TenantId, Timestamp};

/// The largest request body that is read, bytes.
const REQUEST_BODY_MAX: usize = 256 * 1024;
/// The size of the pieces in which a body is sent, bytes.
const CHUNK_BYTES: usize = 64 * 1024;
/// How often a body that is about to fail lets the connection's task run first.
const YIELDS_BEFORE_BREAK: usize = 8;
/// How many requests [`super::Sim::requests`] keeps; the counters continue.
const REQUEST_LOG_MAX: usize = 100_000;

/// The state that every connection shares.
pub(super) struct ServerState {
    pub clock: Arc<dyn Clock>,
    pub offset_secs: AtomicI64,
    pub state: Mutex<(SimState, Tokens)>,
    pub faults: Faults,
    pub log: Mutex<RequestRecords>,
    pub in_flight: AtomicUsize,
    pub activity: AtomicU64,
    pub cancel: CancellationToken,
    /// The tasks hyper starts for the streams of HTTP/2 connections.
    pub streams: TaskTracker,
    pub url: String,
    /// Whether it listens on every address of the machine.
    pub everywhere: bool,
}

/// Starts hyper's tasks where [`serve`] can wait for them.
#[derive(Clone)]
struct StreamExecutor(TaskTracker);

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

#[derive(Default)]
pub(super) struct RequestRecords {
    pub requests: VecDeque<RequestLog>,
    pub counters: Counters,
}

impl ServerState {
    /// The simulator's own time.
    pub fn now(&self) -> Timestamp {
        let offset = jiff::SignedDuration::from_secs(self.offset_secs.load(Ordering::Relaxed));
        let now = self.clock.now();
        now.saturating_add(offset).unwrap_or(now)
    }

    pub fn lock(&self) -> MutexGuard<'_, (SimState, Tokens)> {
        self.state.lock()
    }

    pub fn log(&self) -> MutexGuard<'_, RequestRecords> {
        self.log.lock()
    }

    fn stir(&self) {
        self.activity.fetch_add(1, Ordering::Relaxed);
    }
}

/// Accepts until cancelled, then drops every connection and joins its task.
pub(super) async fn serve(listener: TcpListener, shared: Arc<ServerState>) {
    let cancel = shared.cancel.clone();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                // A failed accept (out of descriptors, a peer that left) only affects the peer.
                let Ok((socket, _)) = accepted else { tokio::task::yield_now().await; continue };
                let number = {
                    let mut log = shared.log();
                    log.counters.connections += 1;
                    log.counters.connections
                };
                connections.spawn(connection(socket, number, shared.clone()));
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
    shared.streams.close();
    shared.streams.wait().await;
}

async fn connection(socket: TcpStream, number: u64, shared: Arc<ServerState>) {
    let _ = socket.set_nodelay(true);
    let reset = Arc::new(AtomicBool::new(false));
    let io = Socket { tcp: socket, reset: reset.clone(), shared: shared.clone() };
    let cancel = shared.cancel.clone();
    let mut builder = auto::Builder::new(StreamExecutor(shared.streams.clone()));
    let service = service_fn(move |request| respond(request, number, shared.clone(), reset.clone()));
    builder.http1().title_case_headers(true);
    let serving = builder.serve_connection(TokioIo::new(io), service);
    tokio::select! {
        _ = serving => {}
        // Answers in progress are aborted, since a test that stops the simulator needs it gone.
        () = cancel.cancelled() => {}
    }
}

/// A connection that is to be dropped without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection is reset by a fault")]
struct ConnectionReset;

async fn respond(
    request: Request<Incoming>,
    connection: u64,
    shared: Arc<ServerState>,
    reset: Arc<AtomicBool>,
) -> Result<Response<Body>, ConnectionReset> {
    let guard = InFlight::enter(shared.clone());
    let (call, accepts_gzip, http2) = read_call(request).await;
    let carrier = RequestTransport { http2, connection };
    let fault = strike(&shared, &call);
    match &fault {
        Some(SimFault::Slow(pause)) => wait(&shared, *pause).await,
        Some(SimFault::Reset) => {
            enter_log(&shared, &call, 0, fault.as_ref(), carrier);
            reset.store(!http2, Ordering::Relaxed);
            return Err(ConnectionReset);
        }
        _ => {}
    }
    let now = shared.now();
    let (mut reply, gzip_allowed) = {
        let mut locked = shared.lock();
        let (state, tokens) = &mut *locked;
        let replaced = fault.as_ref().is_some_and(replaces_answer);
        let reply = match &fault {
            Some(fault) if replaced => feed::fault_reply(fault, &state.config, &call, now),
            _ => {
                // A simulator on all addresses has several names: its links use the name that the client used.
                let called = call.host.as_ref().filter(|_| shared.everywhere).map(|host| format!("http://{host}"));
                let own_url = called.as_deref().unwrap_or(&shared.url);
                feed::answer(state, tokens, &call, own_url, now, shared.clock.monotonic())
            }
        };
        (reply, state.config.gzip)
    };
    if fault == Some(SimFault::EmptyBody) {
        reply.body = ReplyBody::Bytes(Bytes::new());
        reply.reads_blob = None;
    }
    enter_log(&shared, &call, reply.status, fault.as_ref(), carrier);
    Ok(build(reply, fault, accepts_gzip && gzip_allowed, guard, now))
}

/// Whether a fault is an answer of its own, rather than damage to the real one.
fn replaces_answer(fault: &SimFault) -> bool {
    !matches!(
        fault,
        SimFault::Reset
            | SimFault::EmptyBody
            | SimFault::CutBody(_)
            | SimFault::WrongLength(_)
            | SimFault::DamagedGzip
            | SimFault::Slow(_)
            | SimFault::SlowBody(_)
            | SimFault::WrongDate(_)
    )
}

/// Parses a request; returns also whether it accepts gzip, and whether it came over HTTP/2.
async fn read_call(request: Request<Incoming>) -> (SimCall, bool, bool) {
    let (parts, body) = request.into_parts();
    let mut call = SimCall::parse(parts.method.as_str(), parts.uri.path(), parts.uri.query().unwrap_or_default());
    let text =
        |name: header::HeaderName| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    call.bearer = match text(header::AUTHORIZATION).split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Some(token.trim().to_owned()),
        _ => None,
    };
    call.identity.metadata = text(header::HeaderName::from_static("metadata")).eq_ignore_ascii_case("true");
    call.identity.forwarded = parts.headers.contains_key("x-forwarded-for");
    call.identity.app_service = text(header::HeaderName::from_static("x-identity-header")).to_owned();
    call.identity.authorization = text(header::AUTHORIZATION).to_owned();
    let host = parts.uri.authority().map(|authority| authority.as_str()).unwrap_or_else(|| text(header::HOST));
    call.host = Some(host.to_owned()).filter(|host| !host.is_empty());
    let languages = text(header::ACCEPT_LANGUAGE).split(',').map(|one| one.trim().to_owned());
    call.languages = languages.filter(|one| !one.is_empty()).collect();
    let accepts_gzip = text(header::ACCEPT_ENCODING).split(',').any(|one| one.trim().starts_with("gzip"));
    // The body is read even if it is not used, so that the connection stays usable.
    let body = axum::body::to_bytes(Body::new(body), REQUEST_BODY_MAX).await.unwrap_or_default();
    if call.kind == CallKind::Token {
        call.form = form_urlencoded::parse(&body).into_owned().collect();
    }
    if call.kind == CallKind::GraphSubmit {
        call.body = body;
    }
    (call, accepts_gzip, parts.version == axum::http::Version::HTTP_2)
}

fn strike(shared: &ServerState, call: &SimCall) -> Option<SimFault> {
    let tenant: Option<TenantId> = call.tenant_text.parse().ok();
    let content_type = match call.blob_id.as_deref() {
        Some(id) => shared.lock().0.blob(id).map(|(stream, _)| stream.content_type),
        None => call.content_type(),
    };
    shared.faults.strike(&CallNames {
        kind: call.kind,
        tenant: tenant.as_ref(),
        content_type,
        blob_id: call.blob_id.as_deref(),
        query: &call.raw_query,
    })
}

/// How a request came.
#[derive(Clone, Copy)]
struct RequestTransport {
    http2: bool,
    connection: u64,
}

fn enter_log(shared: &ServerState, call: &SimCall, status: u16, fault: Option<&SimFault>, carrier: RequestTransport) {
    let had_publisher = call.param("publisheridentifier").is_some_and(|text| !text.is_empty());
    let param = |name| call.param(name).map(str::to_owned);
    let entry = RequestLog {
        kind: call.kind,
        tenant: call.tenant_text.clone(),
        content_type: param("contenttype"),
        blob_id: call.blob_id.clone(),
        start: param("starttime"),
        end: param("endtime"),
        page: param("nextpage"),
        had_publisher,
        had_token: call.bearer.is_some(),
        resource: token::resource_of(call),
        at: shared.now(),
        monotonic: shared.clock.monotonic(),
        status,
        fault: fault.map(SimFault::name),
        http2: carrier.http2,
        connection: carrier.connection,
    };
    let mut log = shared.log();
    *log.counters.requests.entry(call.kind).or_default() += 1;
    if !had_publisher && !call.kind.is_beside_the_feed() {
        *log.counters.without_publisher.entry(call.kind).or_default() += 1;
    }
    *log.counters.statuses.entry(status).or_default() += 1;
    log.requests.push_back(entry);
    if log.requests.len() > REQUEST_LOG_MAX {
        log.requests.pop_front();
    }
}

/// Waits by the simulator's clock, or until the simulator stops.
async fn wait(shared: &ServerState, pause: Duration) {
    tokio::select! {
        () = shared.clock.sleep(pause) => {}
        () = shared.cancel.cancelled() => {}
    }
}

fn build(reply: Reply, fault: Option<SimFault>, gzip: bool, guard: InFlight, now: Timestamp) -> Response<Body> {
    let wrong_date = if let Some(SimFault::WrongDate(secs)) = fault { secs } else { 0 };
    let mut headers = vec![
        ("cache-control", "no-cache".to_owned()),
        ("pragma", "no-cache".to_owned()),
        ("expires", "-1".to_owned()),
        ("server", "Microsoft-IIS/10.0".to_owned()),
        ("x-aspnet-version", "4.0.30319".to_owned()),
        ("x-powered-by", "ASP.NET".to_owned()),
        ("date", http_date(now, wrong_date)),
    ];
    headers.extend(reply.headers);
    let (source, length) = BodySource::open(reply.body);
    let is_blob = reply.reads_blob.is_some();
    let damage_gzip = fault == Some(SimFault::DamagedGzip);
    let wrong_length = if let Some(SimFault::WrongLength(by)) = fault { by } else { 0 };
    let gzip = damage_gzip || (gzip && is_blob && wrong_length == 0);
    if gzip {
        headers.push(("content-encoding", "gzip".to_owned()));
    } else {
        headers.push(("content-length", length.saturating_add_signed(wrong_length).to_string()));
    }
    let cut_after = match fault {
        // The truncation must remove at least one byte.
        Some(SimFault::CutBody(after)) => Some(if gzip { after } else { after.min(length.saturating_sub(1)) }),
        _ => None,
    };
    let pump = Pump {
        source,
        encoder: gzip.then(|| flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast())),
        damage_gzip,
        cut_after,
        pause: if let Some(SimFault::SlowBody(pause)) = fault { pause } else { Duration::ZERO },
        // hyper stops reading once it has all bytes, so the end of a known length is detected by counting.
        length: (!gzip).then_some(length),
        breaks_off: wrong_length > 0 || cut_after.is_some(),
        sent: 0,
        ended: false,
        reads_blob: reply.reads_blob.filter(|_| cut_after.is_none() && !damage_gzip && wrong_length == 0),
        guard,
    };
    let stream = futures_util::stream::unfold(pump, async |mut pump| pump.next().await.map(|piece| (piece, pump)));
    let mut builder = Response::builder().status(reply.status);
    for (name, value) in headers {
        builder = builder.header(name, value);
    }
    // Every header is made here or by `feed` from checked parts; a scripted answer with an impossible one is refused.
    builder.body(Body::from_stream(stream)).unwrap_or_else(|_| {
        let mut broken = Response::new(Body::from("the scripted answer is not HTTP"));
        *broken.status_mut() = axum::http::StatusCode::INTERNAL_SERVER_ERROR;
        broken
    })
}

/// The simulator's time as a `Date` header, whole seconds rounded down.
fn http_date(now: Timestamp, wrong_by_secs: i64) -> String {
    let secs = now.as_second().saturating_add(wrong_by_secs);
    let since_epoch = Duration::from_secs(u64::try_from(secs).unwrap_or(0));
    httpdate::fmt_http_date(std::time::SystemTime::UNIX_EPOCH + since_epoch)
}

/// A body that is generated piece by piece.
enum BodySource {
    Bytes(Option<Bytes>),
    Events { events: Arc<[Bytes]>, next: usize },
    Huge { body: super::events::HugeBody, count: u64, next: u64 },
}

impl BodySource {
    /// The source and the length of the whole, bytes.
    fn open(body: ReplyBody) -> (Self, u64) {
        match body {
            ReplyBody::Bytes(bytes) | ReplyBody::Blob(SimBlobBody::Raw(bytes)) => {
                let length = bytes.len() as u64;
                (Self::Bytes(Some(bytes)), length)
            }
            ReplyBody::Blob(SimBlobBody::Events(events)) => {
                let inside: usize = events.iter().map(Bytes::len).sum();
                let length = inside + 2 + events.len().saturating_sub(1);
                (Self::Events { events, next: 0 }, length as u64)
            }
            ReplyBody::Blob(SimBlobBody::Huge { body, count }) => {
                let length = 1 + count * (body.event(0).len() as u64 + 1);
                (Self::Huge { body, count, next: 0 }, length)
            }
        }
    }

    /// Appends up to about [`CHUNK_BYTES`] to `out`, or returns a whole body unchanged; `None` at the end.
    fn next(&mut self) -> Option<Bytes> {
        let mut out = BytesMut::new();
        match self {
            Self::Bytes(whole) => return whole.take().filter(|bytes| !bytes.is_empty()),
            Self::Events { events, next } => {
                if *next > events.len() {
                    return None;
                }
                if events.is_empty() {
                    *next = 1;
                    return Some(Bytes::from_static(b"[]"));
                }
                while let Some(event) = events.get(*next) {
                    out.extend_from_slice(if *next == 0 { b"[" } else { b"," });
                    out.extend_from_slice(event);
                    *next += 1;
                    if out.len() >= CHUNK_BYTES {
                        return Some(out.freeze());
                    }
                }
                *next = events.len() + 1;
                out.extend_from_slice(b"]");
            }
            Self::Huge { body, count, next } => {
                if *next > *count {
                    return None;
                }
                while *next < *count {
                    out.extend_from_slice(if *next == 0 { b"[" } else { b"," });
                    out.extend_from_slice(&body.event(*next));
                    *next += 1;
                    if out.len() >= CHUNK_BYTES {
                        return Some(out.freeze());
                    }
                }
                *next = *count + 1;
                out.extend_from_slice(b"]");
            }
        }
        Some(out.freeze())
    }
}

/// Sends a body through compression and damage, and records its end.
struct Pump {
    source: BodySource,
    encoder: Option<flate2::write::GzEncoder<Vec<u8>>>,
    damage_gzip: bool,
    cut_after: Option<u64>,
    pause: Duration,
    length: Option<u64>,
    /// Whether the body ends before the end of its framing.
    breaks_off: bool,
    sent: u64,
    ended: bool,
    reads_blob: Option<String>,
    guard: InFlight,
}

impl Pump {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.ended {
            return None;
        }
        if !self.pause.is_zero() {
            wait(&self.guard.shared, self.pause).await;
        }
        let piece = match self.encode() {
            Ok(piece) => piece,
            Err(error) => {
                self.ended = true;
                return Some(Err(error));
            }
        };
        let left = self.cut_after.map(|limit| limit.saturating_sub(self.sent));
        let Some(mut piece) = piece.filter(|_| left != Some(0)) else {
            self.ended = true;
            self.enter_read();
            if self.breaks_off {
                // A failing body discards the bytes that hyper has not written yet; these yields let it write them
                // first.
                for _ in 0..YIELDS_BEFORE_BREAK {
                    tokio::task::yield_now().await;
                }
            }
            return self.cut_after.is_some().then(|| Err(cut()));
        };
        if let Some(left) = left {
            piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        }
        self.sent += piece.len() as u64;
        if Some(self.sent) == self.length {
            self.enter_read();
        }
        self.guard.shared.stir();
        Some(Ok(piece))
    }

    /// Records a complete read of the blob, once.
    fn enter_read(&mut self) {
        if let Some(id) = self.reads_blob.take()
            && let Some((_, blob)) = self.guard.shared.lock().0.blob(&id)
        {
            blob.reads += 1;
        }
    }

    /// The next piece that is not empty, compressed if the body is.
    fn encode(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let piece = self.source.next();
            let Some(encoder) = &mut self.encoder else { return Ok(piece) };
            let Some(piece) = piece else {
                let rest = self.encoder.take().map(flate2::write::GzEncoder::finish).transpose()?;
                return Ok(rest.map(|rest| self.damage(rest)).filter(|rest| !rest.is_empty()));
            };
            encoder.write_all(&piece)?;
            let out = std::mem::take(encoder.get_mut());
            if !out.is_empty() {
                return Ok(Some(self.damage(out)));
            }
        }
    }

    /// Flips bits after the gzip header, in the first piece that is long enough.
    fn damage(&mut self, mut out: Vec<u8>) -> Bytes {
        if self.damage_gzip && out.len() > 12 {
            let from = if self.sent == 0 && out.starts_with(&[0x1f, 0x8b]) { 10 } else { 0 };
            out.iter_mut().skip(from).step_by(7).for_each(|byte| *byte ^= 0x5a);
            self.damage_gzip = false;
        }
        out.into()
    }
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the body is cut by a fault")
}

/// Counts a request as being answered for as long as it lives.
struct InFlight {
    shared: Arc<ServerState>,
}

impl InFlight {
    fn enter(shared: Arc<ServerState>) -> Self {
        shared.in_flight.fetch_add(1, Ordering::AcqRel);
        shared.stir();
        Self { shared }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.shared.stir();
        self.shared.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A socket that can end in a TCP reset, and that spells the next-page header as configured: hyper knows header
/// names in lower case or in title case only, while clients in the field look for one exact spelling.
struct Socket {
    tcp: TcpStream,
    reset: Arc<AtomicBool>,
    shared: Arc<ServerState>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Relaxed) {
            let _ = self.tcp.set_zero_linger();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let respelled = if buf.starts_with(b"HTTP/1.") {
            let header = self.shared.lock().0.config.next_page.header.clone();
            write_name(buf, header.as_bytes())
        } else {
            None
        };
        Pin::new(&mut self.tcp).poll_write(cx, respelled.as_deref().unwrap_or(buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

/// The head with the next-page header's name replaced by one of the same length; `None` when there is none in it.
fn write_name(buf: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    const AS_WRITTEN: &[u8] = b"\r\nNextpageuri: ";
    let head = memchr::memmem::find(buf, b"\r\n\r\n")?;
    let at = memchr::memmem::find(buf.get(..head)?, AS_WRITTEN)? + 2;
    let mut out = buf.to_vec();
    let slot = out.get_mut(at..at + NEXT_PAGE_HEADER.len())?;
    if slot.len() == name.len() {
        slot.copy_from_slice(name);
    }
    Some(out)
}
