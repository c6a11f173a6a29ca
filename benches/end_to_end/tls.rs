//! The cost of TLS and HTTP/2 for the collector: the feed over TLS, with the protocol and the cipher that the server
//! offers.
//!
//! The server decides: it offers HTTP/2 or not, and only one cipher suite. The client is the unmodified binary, with
//! the server's certificate as its `ca_file`.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::child::{Agent, Cost, Server, run};
use super::tenant::{Feed, Shared};
use super::{FULL_SPEED, Scratch, binary, lines_of, median};

/// Threads of the server, so that on a machine with two processors the measurement does not cover the server.
const SERVER_THREADS: usize = 2;

/// The name of a way, the protocol and the cipher suite; none is TLS-less.
const WAYS: [(&str, &str); 7] = [
    ("HTTP/1.1, no TLS, the feed of the other benches", ""),
    ("HTTP/1.1, no TLS", "http/1.1,plain"),
    ("HTTP/1.1, AES-128-GCM", "http/1.1,TLS13_AES_128_GCM_SHA256"),
    ("HTTP/1.1, AES-256-GCM", "http/1.1,TLS13_AES_256_GCM_SHA384"),
    ("HTTP/1.1, ChaCha20-Poly1305", "http/1.1,TLS13_CHACHA20_POLY1305_SHA256"),
    ("HTTP/1.1, TLS 1.2, AES-256-GCM", "http/1.1,TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"),
    ("HTTP/2, AES-256-GCM", "h2,TLS13_AES_256_GCM_SHA384"),
];

/// Each way in turn, `rounds` times. The words choose among the ways by a part of their names.
pub fn tls(blobs: u64, events: u64, rounds: u64, only: Option<&str>) {
    let feed = Feed { blobs, events, ..Feed::default() };
    let scratch = Scratch::new();
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
    let pem = format!("{}{}", certified.cert.pem(), certified.signing_key.serialize_pem());
    let (identity, ca) = (scratch.fresh("tls").join("server.pem"), scratch.0.join("tls/ca.pem"));
    std::fs::write(&identity, pem).expect("a file");
    std::fs::write(&ca, certified.cert.pem()).expect("a file");
    let total = (blobs * events) as f64;
    let megabytes = Shared::new(&feed.to_arg(), String::new()).history_bytes() as f64 / 1e6;
    let ways: Vec<_> = WAYS.into_iter().filter(|way| only.is_none_or(|only| way.0.contains(only))).collect();
    let mut costs: Vec<Vec<(Cost, f64)>> = vec![Vec::new(); ways.len()];
    for _ in 0..rounds {
        for ((name, how), costs) in ways.iter().zip(&mut costs) {
            let server = match *how {
                "" => Server::start(&feed),
                how => Server::start_with(&feed, &[how, identity.to_str().expect("a path")]),
            };
            let source = format!("{FULL_SPEED}\nca_file = \"{}\"", ca.display());
            let dir = scratch.fresh("run");
            let binary = binary();
            let agent = Agent { server: &server, tenants: 1, source: &source, once: true, binary: &binary };
            let cost = run(&mut agent.command(&dir));
            assert!(cost.ok, "{name}: {}", std::fs::read_to_string(dir.join("log")).unwrap_or_default());
            assert_eq!(lines_of(&dir.join("out.ndjson")), blobs * events, "events are missing or came twice");
            eprintln!(
                "{name}: {:.0} events/s, {:.2} s CPU, server {:.2} s, {megabytes:.0} MB",
                total / cost.wall,
                cost.cpu,
                server.cpu()
            );
            costs.push((cost, server.cpu()));
        }
    }
    println!(
        "| | events/s | CPU of ours, ms a MB received | more than the first | CPU of the server, ms a MB | peak MiB |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: |");
    let first = |what: &dyn Fn(&(Cost, f64)) -> f64| median(costs[0].iter().map(what));
    for ((name, _), of_way) in ways.iter().zip(&costs) {
        let of = |what: &dyn Fn(&(Cost, f64)) -> f64| median(of_way.iter().map(what));
        let ours = |(cost, _): &(Cost, f64)| cost.cpu * 1e3 / megabytes;
        println!(
            "| {name} | {:.0} | {:.2} | {:.2} | {:.2} | {:.0} |",
            of(&|(cost, _)| total / cost.wall),
            of(&ours),
            of(&ours) - first(&ours),
            of(&|(_, theirs)| theirs * 1e3 / megabytes),
            of(&|(cost, _)| cost.peak_mib),
        );
    }
}

/// Serves the feed as `how` defines until the process is ended; prints its origin.
pub fn serve(feed: &str, how: &str, identity: &Path) -> ! {
    let (protocol, suite) = how.split_once(',').expect("protocol,suite");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let acceptor = (suite != "plain").then(|| acceptor(protocol, suite, identity));
    let scheme = if acceptor.is_some() { "https" } else { "http" };
    let shared = Arc::new(Shared::new(feed, format!("{scheme}://localhost:{port}")));
    println!("{}", shared.origin());
    listener.set_nonblocking(true).expect("a socket");
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(SERVER_THREADS).enable_all().build();
    threads.expect("threads").block_on(async move {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let (shared, acceptor) = (shared.clone(), acceptor.clone());
            tokio::spawn(async move {
                stream.set_nodelay(true).ok()?;
                match acceptor {
                    None => talk(TokioIo::new(stream), shared).await,
                    Some(acceptor) => talk(TokioIo::new(acceptor.accept(stream).await.ok()?), shared).await,
                }
            });
        }
    })
}

fn acceptor(protocol: &str, suite: &str, identity: &Path) -> tokio_rustls::TlsAcceptor {
    let pem = std::fs::read(identity).expect("the identity");
    let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().expect("a certificate");
    let key = PrivateKeyDer::from_pem_slice(&pem).expect("a key");
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites.retain(|known| format!("{:?}", known.suite()) == suite);
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("a suite of that name")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("an identity");
    // Small calls use HTTP/1.1, whatever the protocol of blobs.
    config.alpn_protocols = vec![protocol.into(), b"http/1.1".to_vec()];
    config.alpn_protocols.dedup();
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}

async fn talk<S>(stream: TokioIo<S>, shared: Arc<Shared>) -> Option<()>
where
    TokioIo<S>: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let answer = hyper::service::service_fn(move |request: Request<Incoming>| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(answer(&shared, &request)) }
    });
    auto::Builder::new(TokioExecutor::new()).serve_connection(stream, answer).await.ok()
}

/// The feed's answer, which is written for HTTP/1.1.
fn answer(shared: &Shared, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (mut written, mut out) = (Vec::new(), Vec::new());
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    shared.answer(target, &mut written, &mut out).expect("an answer");
    let end = memchr::memmem::find(&written, b"\r\n\r\n").expect("a head") + 4;
    let written = Bytes::from(written);
    let head = std::str::from_utf8(&written[..end]).expect("a head").to_owned();
    let mut lines = head.trim_end().split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse::<u16>().ok()).expect("a status");
    let mut response = Response::builder().status(status);
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        response = response.header(name, value);
    }
    response.body(Full::new(written.slice(end..))).expect("an answer")
}
