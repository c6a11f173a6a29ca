//! The `fluent_forward` sink: the Fluent Forward protocol, version 1
//! (<https://github.com/fluent/fluentd/wiki/Forward-Protocol-Specification-v1>), as a client.
//!
//! Owns frames (PackedForward, CompressedPackedForward with EventTime in legacy entries, which every receiver reads),
//! the handshake, and which frames are acknowledged. Several frames are in flight on one connection; an acknowledgement
//! names its frame by `chunk`. One server is used at a time; after any fault, the next one. Vector answers with an
//! empty map when its sinks failed or rejected, so the answer is ambiguous.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use ring::digest::{SHA512, digest};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;

use super::http::gzip;
use super::msgpack::{
    DecodeError, Encoder, MsgpackValue, read_value, write_array, write_bin_header, write_event_time, write_map,
    write_str, write_uint,
};
use super::net::{ANSWER_BYTES_MAX, CONNECT_TIMEOUT, NetSinkError, StoredSecret, tls_config};
use super::no_answer::Wire;
use super::requests::Bodies;
use super::stream::SinkConnection;
use crate::clock::Clock;
use crate::config::sinks::{FluentForwardConfig, ForwardCompression};
use crate::config::{Secret, host_and_port};
use crate::host::{Batch, Record};
use crate::hosts::embedded::sink::{GroupBounds, Sink, Written};
use crate::net::excerpt;

/// Bytes of a frame beside its entries and its tag: headers, the options, the chunk's id. Generous.
const FRAME_OVERHEAD_BYTES: usize = 128;
/// Bytes of records joined into one frame, if `frame_bytes_max` allows that many. All frames in flight are in memory.
/// Only a larger batch makes a larger frame.
const FRAME_FILL_BYTES: usize = 2 << 20;
/// The error for a receiver that closes a connection without a reason.
const CLOSED: &str = "the receiver closed the connection";
/// Bytes of the salt of a handshake.
const SALT_BYTES: usize = 16;

/// The sink.
pub struct FluentForwardSink {
    settings: Arc<ForwardSettings>,
    frames: Bodies,
    connection: Option<Connection>,
    /// The server in use or to be tried next.
    server: usize,
}

struct ForwardSettings {
    servers: Vec<String>,
    tag: String,
    gzip: bool,
    require_ack: bool,
    keep_timestamp: bool,
    ack_timeout: Duration,
    frame_bytes_max: usize,
    records_max: usize,
    age: Duration,
    frames_in_flight_max: usize,
    shared_key: StoredSecret,
    username: Option<String>,
    password: StoredSecret,
    self_hostname: String,
    tls: Option<Arc<rustls::ClientConfig>>,
    wire: Wire,
    clock: Arc<dyn Clock>,
}

impl FluentForwardSink {
    /// A sink as configured. Nothing is connected yet.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(config: &FluentForwardConfig, clock: Arc<dyn Clock>) -> Result<Self, NetSinkError> {
        let (tls, wire) = match (config.tls, config.servers.first()) {
            (true, Some(server)) => {
                let why = || NetSinkError::Tls { to: server.clone(), why: "it is no host and port".into() };
                let url = Url::parse(&format!("https://{server}")).map_err(|_| why())?;
                let (mut tls, wire) = tls_config(&config.tls_files, &url, &clock)?;
                tls.alpn_protocols.clear();
                (Some(Arc::new(tls)), wire)
            }
            _ => (None, Wire::default()),
        };
        let settings = ForwardSettings {
            servers: config.servers.clone(),
            tag: config.tag.clone(),
            gzip: config.compression == ForwardCompression::Gzip,
            require_ack: config.require_ack,
            keep_timestamp: config.keep_timestamp,
            ack_timeout: Duration::from_secs(config.ack_timeout_secs),
            frame_bytes_max: config.frame_bytes_max,
            records_max: config.batch_records_max,
            age: Duration::from_secs(config.batch_age_secs),
            frames_in_flight_max: config.frames_in_flight_max,
            shared_key: StoredSecret::of(config.shared_key.as_ref(), config.shared_key_file.as_deref()),
            username: config.username.clone(),
            password: StoredSecret::of(config.password.as_ref(), config.password_file.as_deref()),
            self_hostname: config.self_hostname.clone().unwrap_or_else(host_name),
            tls,
            wire,
            clock,
        };
        Ok(Self { settings: Arc::new(settings), frames: Bodies::default(), connection: None, server: 0 })
    }

    /// The connection in use, or a new one to the first server that accepts it.
    async fn connect(&mut self) -> Result<Connection, String> {
        if let Some(mut connection) = self.connection.take()
            && connection.is_idle_and_open()
        {
            return Ok(connection);
        }
        let mut failures = Vec::new();
        for _ in 0..self.settings.servers.len() {
            let Some(server) = self.settings.servers.get(self.server) else { break };
            let connected = tokio::select! {
                connected = Connection::open(&self.settings, server) => connected,
                () = self.settings.clock.sleep(CONNECT_TIMEOUT) => {
                    Err(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()))
                }
            };
            match connected {
                Ok(connection) => return Ok(connection),
                Err(why) => failures.push(format!("`{server}`: {why}")),
            }
            self.next_server();
        }
        Err(failures.join("; "))
    }

    fn next_server(&mut self) {
        self.server = (self.server + 1) % self.settings.servers.len().max(1);
    }

    /// The frame of these batches, made now unless it exists.
    async fn frame(&self, batches: &[Batch]) -> Result<Bytes, Written> {
        if let Some(frame) = self.frames.take(batches) {
            return Ok(frame);
        }
        let (settings, batches) = (self.settings.clone(), batches.to_vec());
        match tokio::task::spawn_blocking(move || frame(&settings, &batches, &mut Encoder::default())).await {
            Ok(made) => made,
            Err(_) => Err(Written::refused("the frame could not be made")),
        }
    }

    async fn write_once(&mut self, batches: &[Batch]) -> Written {
        let frame = match self.frame(batches).await {
            Ok(frame) => frame,
            Err(written) => return written,
        };
        let written = match self.connect().await {
            Err(why) => Written::refused(why),
            Ok(mut connection) => match connection.send(&self.settings, &frame).await {
                Ok(()) => {
                    self.connection = Some(connection);
                    Written::Delivered
                }
                Err(why) => {
                    let server = self.settings.servers.get(self.server).cloned().unwrap_or_default();
                    self.next_server();
                    // The protocol has no answer for records that will never be accepted: such a frame stays
                    // unacknowledged.
                    Written::Unclear(format!("`{server}`: {why}"))
                }
            },
        };
        self.frames.keep_after(&written, batches, frame);
        written
    }
}

#[async_trait]
impl Sink for FluentForwardSink {
    fn bounds(&self) -> GroupBounds {
        let ForwardSettings { frame_bytes_max, records_max: records, age, .. } = *self.settings;
        GroupBounds { bytes: frame_bytes_max.min(FRAME_FILL_BYTES), records, age, ..GroupBounds::default() }
    }

    fn beside(&self) -> Vec<Box<dyn Sink>> {
        let another =
            |_| Self { settings: self.settings.clone(), frames: self.frames.clone(), connection: None, server: 0 };
        let more = 1..self.settings.frames_in_flight_max;
        more.map(another).map(|another| Box::new(another) as Box<dyn Sink>).collect()
    }

    async fn write(&mut self, batches: &[Batch]) -> Vec<Written> {
        vec![self.write_once(batches).await; batches.len()]
    }

    fn forget(&mut self, batches: &[Batch]) {
        self.frames.take(batches);
    }

    async fn close(&mut self) {
        if let Some(mut connection) = self.connection.take() {
            let _ = connection.stream.shutdown().await;
        }
    }
}

/// One frame: `[tag, entries, options]`.
///
/// # Errors
/// A record is not JSON, or the frame is larger than allowed.
fn frame(settings: &ForwardSettings, batches: &[Batch], encoder: &mut Encoder) -> Result<Bytes, Written> {
    let mut entries = Vec::with_capacity(batches.iter().map(|batch| batch.ndjson().len()).sum());
    for record in batches.iter().flat_map(Batch::records) {
        push_entry(&record, settings.keep_timestamp, encoder, &mut entries).map_err(Written::Rejected)?;
    }
    let bytes = entries.len() + settings.tag.len() + FRAME_OVERHEAD_BYTES;
    if bytes > settings.frame_bytes_max {
        let max = settings.frame_bytes_max;
        return Err(Written::TooLarge(format!(
            "the records make a frame of {bytes} bytes, `frame_bytes_max` is {max}"
        )));
    }
    // Derived from the content, so that the same records have the same id when they are sent again.
    let chunk = settings.require_ack.then(|| chunk_id(batches, &entries));
    let entries: Bytes = if settings.gzip { gzip(&entries).map_err(Written::Rejected)? } else { entries.into() };
    let mut out = Vec::with_capacity(entries.len() + settings.tag.len() + FRAME_OVERHEAD_BYTES);
    write_array(&mut out, 3);
    write_str(&mut out, &settings.tag);
    write_bin_header(&mut out, entries.len());
    out.extend_from_slice(&entries);
    write_map(&mut out, 1 + usize::from(chunk.is_some()) + usize::from(settings.gzip));
    write_str(&mut out, "size");
    write_uint(&mut out, batches.iter().map(Batch::len).sum::<usize>() as u64);
    if let Some(chunk) = &chunk {
        write_str(&mut out, "chunk");
        write_str(&mut out, chunk);
    }
    if settings.gzip {
        write_str(&mut out, "compressed");
        write_str(&mut out, "gzip");
    }
    Ok(out.into())
}

/// Appends one entry: `[EventTime, record]`.
fn push_entry(
    record: &Record<'_>,
    keep_timestamp: bool,
    encoder: &mut Encoder,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    write_array(out, 2);
    write_event_time(out, record.time);
    let encoded = if keep_timestamp {
        encoder.object(record.json, out)
    } else {
        encoder.object_of(record.time, record.json, out)
    };
    encoded.map_err(|error| error.to_string())
}

/// The entries of a batch as a frame carries them with the default settings, before compression.
///
/// # Errors
/// A record is not a JSON object.
pub fn encode(batch: &Batch) -> Result<Vec<u8>, String> {
    let mut entries = Vec::with_capacity(batch.ndjson().len());
    let mut encoder = Encoder::default();
    batch.records().try_for_each(|record| push_entry(&record, true, &mut encoder, &mut entries))?;
    Ok(entries)
}

/// The id of a frame: 128 bits in Base64, as the specification defines it.
fn chunk_id(batches: &[Batch], entries: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new();
    // Two frames of equal content may be in flight together.
    hasher.update(&batches.first().map_or(0, |batch| batch.id).to_be_bytes());
    hasher.update(entries);
    let mut id = [0; 16];
    hasher.finalize_xof().fill(&mut id);
    STANDARD.encode(id)
}

/// The id inside an existing frame.
fn chunk_of(frame: &[u8]) -> Option<Vec<u8>> {
    match read_value(frame) {
        Ok((MsgpackValue::Array(parts), _)) => parts.get(2)?.get("chunk")?.as_bytes().map(<[u8]>::to_vec),
        _ => None,
    }
}

/// This machine's name from the kernel.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = name.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    match name.trim() {
        "" => "m365-audit".into(),
        name => name.into(),
    }
}

// ------------------------------------------------------------------------------------- the connection

struct Connection<S = SinkConnection> {
    stream: S,
    /// Received bytes that are not parsed yet.
    received: BytesMut,
}

impl Connection<SinkConnection> {
    async fn open(settings: &ForwardSettings, server: &str) -> Result<Self, String> {
        let (host, port) = host_and_port(server).ok_or("it is not `host:port`")?;
        let tcp = TcpStream::connect((host, port)).await.map_err(|error| settings.wire.explained(&error))?;
        tcp.set_nodelay(true).map_err(|error| error.to_string())?;
        let stream = match &settings.tls {
            None => SinkConnection::Plain(tcp),
            Some(tls) => {
                let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
                let stream = TlsConnector::from(tls.clone()).connect(name, tcp).await;
                SinkConnection::Tls(Box::new(
                    stream.map_err(|error| format!("TLS: {}", settings.wire.explained(&error)))?,
                ))
            }
        };
        let mut connection = Self { stream, received: BytesMut::new() };
        if let Some(key) = settings.shared_key.read()? {
            connection.shake_hands(settings, &key).await?;
        }
        Ok(connection)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Whether nothing arrived since the last exchange, not even an end of stream.
    fn is_idle_and_open(&mut self) -> bool {
        self.received.is_empty() && self.stream.read_buf(&mut self.received).now_or_never().is_none()
    }

    /// HELO, PING and PONG: each side shows the other that it knows the key.
    async fn shake_hands(&mut self, settings: &ForwardSettings, key: &Secret) -> Result<(), String> {
        let helo = self.next_value(settings).await?;
        let MsgpackValue::Array(helo) = helo else { return Err("the receiver does not begin with HELO".into()) };
        if helo.first().and_then(MsgpackValue::as_bytes) != Some(b"HELO") {
            return Err("the receiver does not begin with HELO".into());
        }
        let option = |name| helo.get(1).and_then(|options| options.get(name)).and_then(MsgpackValue::as_bytes);
        let nonce = option("nonce").ok_or("its HELO has no nonce")?;
        let auth = option("auth").unwrap_or_default();
        let mut salt = [0; SALT_BYTES];
        SystemRandom::new().fill(&mut salt).map_err(|_| "this machine has no random numbers")?;

        let hostname = settings.self_hostname.as_bytes();
        let key = key.expose().as_bytes();
        let (username, password) = match (&settings.username, auth) {
            (None, []) => ("", String::new()),
            (None, _) => return Err("the receiver asks for a user name and password".into()),
            (Some(_), []) => ("", String::new()),
            (Some(username), auth) => {
                let password = settings.password.read()?;
                let password = password.as_ref().map_or("", Secret::expose).as_bytes();
                (username.as_str(), hex_digest(&[auth, username.as_bytes(), password]))
            }
        };
        let mut ping = Vec::new();
        write_array(&mut ping, 6);
        write_str(&mut ping, "PING");
        write_str(&mut ping, &settings.self_hostname);
        write_bin_header(&mut ping, salt.len());
        ping.extend_from_slice(&salt);
        write_str(&mut ping, &hex_digest(&[&salt, hostname, nonce, key]));
        write_str(&mut ping, username);
        write_str(&mut ping, &password);
        self.stream.write_all(&ping).await.map_err(|error| settings.wire.explained(&error))?;
        self.stream.flush().await.map_err(|error| settings.wire.explained(&error))?;

        let MsgpackValue::Array(pong) = self.next_value(settings).await? else {
            return Err("its answer to PING is no PONG".into());
        };
        let text = |at: usize| pong.get(at).and_then(MsgpackValue::as_bytes).unwrap_or_default();
        if text(0) != b"PONG" {
            return Err("its answer to PING is no PONG".into());
        }
        if pong.get(1) != Some(&MsgpackValue::Bool(true)) {
            return Err(format!("the receiver refuses us: {}", excerpt(&String::from_utf8_lossy(text(2)))));
        }
        if text(3) == hostname {
            return Err(format!("the receiver has our own name, `{}`: set `self_hostname`", settings.self_hostname));
        }
        // A hash of values that the receiver cannot know without the key, so a comparison in constant time is not
        // needed.
        if text(4) != hex_digest(&[&salt, text(3), nonce, key]).as_bytes() {
            return Err("the receiver does not know the shared key".into());
        }
        Ok(())
    }

    /// The next value the receiver sends.
    async fn next_value(&mut self, settings: &ForwardSettings) -> Result<MsgpackValue, String> {
        loop {
            if let Some(value) = take_value(&mut self.received)? {
                return Ok(value);
            }
            match self.stream.read_buf(&mut self.received).await {
                Ok(0) => return Err(settings.wire.remarked(CLOSED)),
                Ok(_) => {}
                Err(error) => return Err(settings.wire.explained(&error)),
            }
        }
    }

    /// Sends a frame and reads its acknowledgement.
    async fn send(&mut self, settings: &ForwardSettings, frame: &[u8]) -> Result<(), String> {
        let (mut reader, mut writer) = tokio::io::split(&mut self.stream);
        let mut deadline = settings.clock.sleep(settings.ack_timeout);
        let mut sent = 0;
        loop {
            let is_writing = sent <= frame.len();
            tokio::select! {
                written = write_some(&mut writer, frame, &mut sent), if is_writing => {
                    if let Err(error) = written {
                        return Err(write_error(&mut reader, &mut self.received, &settings.wire, &error).await);
                    }
                    if sent > frame.len() {
                        if !settings.require_ack {
                            return Ok(());
                        }
                        deadline = settings.clock.sleep(settings.ack_timeout);
                    }
                }
                read = reader.read_buf(&mut self.received) => {
                    match read {
                        Ok(0) => return Err(settings.wire.remarked(CLOSED)),
                        Ok(_) => {}
                        Err(error) => return Err(settings.wire.explained(&error)),
                    }
                    if let Some(value) = take_value(&mut self.received)? {
                        // It may arrive when all is written but the flush has not returned.
                        let chunk = chunk_of(frame).filter(|_| sent >= frame.len());
                        return acknowledged(&value, chunk.as_deref());
                    }
                }
                () = &mut deadline => {
                    return Err(format!("no acknowledgement within {} s", settings.ack_timeout.as_secs()));
                }
            }
        }
    }
}

/// Why a write failed. If the receiver closed the connection, it may have sent the reason before: a TLS 1.3 alert about
/// a client certificate comes after the handshake, when records are already in flight.
async fn write_error(
    reader: &mut (impl AsyncRead + Unpin),
    received: &mut BytesMut,
    wire: &Wire,
    error: &io::Error,
) -> String {
    match reader.read_buf(received).now_or_never() {
        Some(Err(said)) if said.kind() == io::ErrorKind::InvalidData => wire.explained(&said),
        _ => wire.explained(error),
    }
}

/// Writes some of a frame from its byte `sent` on, or flushes when all is written, which counts as one more byte. Loses
/// nothing when cancelled.
async fn write_some(writer: &mut (impl AsyncWrite + Unpin), frame: &[u8], sent: &mut usize) -> io::Result<()> {
    match frame.get(*sent..) {
        Some(rest) if !rest.is_empty() => match writer.write(rest).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => *sent += n,
        },
        _ => {
            writer.flush().await?;
            *sent += 1;
        }
    }
    Ok(())
}

/// Whether `value` acknowledges the frame with this id.
fn acknowledged(value: &MsgpackValue, chunk: Option<&[u8]>) -> Result<(), String> {
    match value {
        MsgpackValue::Map(members) if members.is_empty() => Err("the receiver could not deliver the records".into()),
        MsgpackValue::Array(items) if items.first().and_then(MsgpackValue::as_bytes) == Some(b"HELO") => {
            Err("the receiver asks for a `shared_key`".into())
        }
        value => match value.get("ack").and_then(MsgpackValue::as_bytes) {
            None => Err("its answer is not an acknowledgement".into()),
            Some(id) if Some(id) == chunk => Ok(()),
            Some(_) => Err("the receiver acknowledged something that was not sent".into()),
        },
    }
}

/// Takes a value from the received bytes, if one is complete.
fn take_value(received: &mut BytesMut) -> Result<Option<MsgpackValue>, String> {
    if received.is_empty() {
        return Ok(None);
    }
    match read_value(received) {
        Ok((value, used)) => {
            let _ = received.split_to(used);
            Ok(Some(value))
        }
        Err(DecodeError::Incomplete) if received.len() <= ANSWER_BYTES_MAX => Ok(None),
        Err(_) => Err("its answer is not of the Forward protocol".into()),
    }
}

/// SHA-512 of the parts together, in lower case hexadecimal.
fn hex_digest(parts: &[&[u8]]) -> String {
    digest(&SHA512, &parts.concat()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::ReadBuf;

    use super::*;
    use crate::clock::SystemClock;
    use crate::hosts::requests::tests::batch;

    /// A receiver so fast that its acknowledgement arrives before the client's flush returns.
    struct Fast {
        ack: Vec<u8>,
        frame_bytes: usize,
        written: usize,
    }

    impl AsyncRead for Fast {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            if self.written < self.frame_bytes || self.ack.is_empty() {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            buf.put_slice(&std::mem::take(&mut self.ack));
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Fast {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.written += buf.len();
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            cx.waker().wake_by_ref();
            if self.ack.is_empty() { Poll::Ready(Ok(())) } else { Poll::Pending }
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn an_acknowledgement_that_outruns_the_flush_counts() {
        let config: FluentForwardConfig = toml::from_str("servers = [\"127.0.0.1:1\"]").unwrap();
        let sink = FluentForwardSink::new(&config, SystemClock::new()).unwrap();
        let frame = frame(&sink.settings, &[batch(&["{\"a\":1}"])], &mut Encoder::default()).unwrap();
        let mut ack = Vec::new();
        write_map(&mut ack, 1);
        write_str(&mut ack, "ack");
        write_str(&mut ack, std::str::from_utf8(&chunk_of(&frame).unwrap()).unwrap());
        let stream = Fast { ack, frame_bytes: frame.len(), written: 0 };
        let mut connection = Connection { stream, received: BytesMut::new() };
        assert_eq!(connection.send(&sink.settings, &frame).await, Ok(()));
    }

    #[test]
    fn a_digest_is_that_of_the_parts_together() {
        // FIPS 180-2, "abc".
        let expected = "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                        2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";
        assert_eq!(hex_digest(&[b"a", b"", b"bc"]), expected);
    }
}
