//! Connections for gRPC, with the TLS of all sinks: the machine's authorities and `ca_file` as `api::tls` trusts them,
//! the client certificate read again for each. tonic's own TLS takes a certificate once, as bytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use parking_lot::{Mutex, MutexGuard};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;
use tower_service::Service;

use super::no_answer::Wire;
use super::stream::SinkConnection;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Makes connections to one receiver.
#[derive(Clone)]
pub(crate) struct GrpcConnector {
    tcp: HttpConnector,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    wire: Wire,
    broken: Broken,
}

/// Why the newest connection broke. HTTP/2 reports to a request only that it was cancelled. Only the connection has the
/// peer's reason (the alert about a client certificate comes after the handshake).
#[derive(Debug, Clone, Default)]
pub(crate) struct Broken(Arc<Mutex<Option<BreakReason>>>);

/// Why a connection ended.
#[derive(Debug)]
struct BreakReason {
    /// The text of the system or the library.
    plain: String,
    /// The same with the fault of the certificate, if any, and the remedy.
    explained: String,
}

/// hyper's error for a request whose connection broke.
const CANCELLED: &str = "operation was canceled";

impl Broken {
    /// The reason for a request that failed with `words`: that of the connection if it broke.
    pub(crate) fn instead_of(&self, words: String) -> String {
        match &*self.lock() {
            Some(known) if words.contains(CANCELLED) || words.contains(&known.plain) => known.explained.clone(),
            _ => words,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<BreakReason>> {
        self.0.lock()
    }
}

impl GrpcConnector {
    /// Without `tls` connections are plain. `keep_alive`: how often the system probes the peer.
    pub(crate) fn new(
        tls: Option<(rustls::ClientConfig, ServerName<'static>)>,
        wire: Wire,
        connect_timeout: Duration,
        keep_alive: Duration,
    ) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(connect_timeout));
        tcp.set_keepalive(Some(keep_alive));
        let tls = tls.map(|(mut config, name)| {
            config.alpn_protocols = vec![b"h2".to_vec()];
            (TlsConnector::from(Arc::new(config)), name)
        });
        Self { tcp, tls, wire, broken: Broken::default() }
    }

    /// Why the newest connection broke.
    pub(crate) fn broken(&self) -> &Broken {
        &self.broken
    }
}

impl Service<Uri> for GrpcConnector {
    type Response = TokioIo<WatchedConnection>;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Self::Response, Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.tcp.poll_ready(cx).map_err(Error::from)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let (connecting, tls) = (self.tcp.call(to), self.tls.clone());
        *self.broken.lock() = None;
        let (wire, broken) = (self.wire.clone(), self.broken.clone());
        let watched = move |stream| TokioIo::new(WatchedConnection { stream, wire, broken });
        Box::pin(async move {
            let tcp = connecting.await?.into_inner();
            let Some((connector, name)) = tls else { return Ok(watched(SinkConnection::Plain(tcp))) };
            let stream = connector.connect(name, tcp).await?;
            if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
                return Err("the receiver speaks TLS there, and no HTTP/2 inside it, which gRPC needs".into());
            }
            Ok(watched(SinkConnection::Tls(Box::new(stream))))
        })
    }
}

/// A connection that records why it breaks.
pub(crate) struct WatchedConnection {
    stream: SinkConnection,
    wire: Wire,
    broken: Broken,
}

impl WatchedConnection {
    fn noted<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &polled {
            *self.broken.lock() = Some(BreakReason { plain: error.to_string(), explained: self.wire.explained(error) });
        }
        polled
    }
}

impl AsyncRead for WatchedConnection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.noted(polled)
    }
}

impl AsyncWrite for WatchedConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.noted(polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.noted(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
