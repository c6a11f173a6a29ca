//! The routes to other agents beside the file: the cost of each in the collector's process, and its speed into a
//! receiver that only accepts the records.
//!
//! Receivers are processes of their own, on loopback: Forward with its acknowledgements, OTLP over gRPC and HTTP, and
//! plain HTTP. A stock Vector named by `VECTOR` is one more, with acknowledgements on and its `blackhole` sink.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{StatusCode, header::CONTENT_TYPE};
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use tokio_stream::wrappers::TcpListenerStream;

use super::child::{Agent, Cost, Server, run, stat};
use super::tenant::Feed;
use super::{FULL_SPEED, Scratch, binary, median};

/// A receiver that does not listen after this long is a failure.
const START_MAX: Duration = Duration::from_secs(60);

/// The name of a route, the sink's table with `PORT` in it, and the receiver.
const ROUTES: [(&str, &str, &str); 8] = [
    ("`file`", "type = \"file\"\npath = \"PATH\"", ""),
    ("Forward", "type = \"fluent_forward\"\nservers = [\"127.0.0.1:PORT\"]\ntag = \"m365\"", "forward"),
    ("OTLP, gRPC", "type = \"otlp\"\nendpoint = \"http://127.0.0.1:PORT\"\nprotocol = \"grpc\"", "otlp-grpc"),
    ("OTLP, HTTP", "type = \"otlp\"\nendpoint = \"http://127.0.0.1:PORT\"\nprotocol = \"http\"", "http"),
    (
        "OTLP, HTTP, not compressed",
        "type = \"otlp\"\nendpoint = \"http://127.0.0.1:PORT\"\nprotocol = \"http\"\ncompression = \"none\"",
        "http",
    ),
    ("HTTP", "type = \"http\"\nuri = \"http://127.0.0.1:PORT/\"", "http"),
    ("HTTP, `batch_age_secs = 0`", "type = \"http\"\nuri = \"http://127.0.0.1:PORT/\"\nbatch_age_secs = 0", "http"),
    ("HTTP into Vector", "type = \"http\"\nuri = \"http://127.0.0.1:PORT/\"", "vector"),
];

/// Each route in turn, `rounds` times, after the file of the same round.
pub fn routes(blobs: u64, events: u64, rounds: u64) {
    let feed = Feed { blobs, events, ..Feed::default() };
    let (server, scratch) = (Server::start(&feed), Scratch::new());
    let vector = std::env::var("VECTOR").ok();
    let total = (blobs * events) as f64;
    let routes: Vec<_> = ROUTES.into_iter().filter(|route| route.2 != "vector" || vector.is_some()).collect();
    let mut costs: Vec<Vec<(Cost, f64)>> = vec![Vec::new(); routes.len()];
    for _ in 0..rounds {
        for ((name, sink, kind), costs) in routes.iter().zip(&mut costs) {
            let dir = scratch.fresh("run");
            let receiver = (!kind.is_empty()).then(|| Receiver::start(kind, vector.as_deref(), &dir));
            let port = receiver.as_ref().map_or(0, |receiver| receiver.port);
            let sink = sink.replace("PORT", &port.to_string()).replace("PATH", &dir.join("out").display().to_string());
            let binary = binary();
            let agent = Agent { server: &server, tenants: 1, source: FULL_SPEED, once: true, binary: &binary };
            let mut command = agent.command(&dir);
            replace_sink(&dir.join("agent.toml"), &sink);
            let before = receiver.as_ref().map_or(0.0, Receiver::cpu);
            let cost = run(&mut command);
            // `--once` succeeds only when every record was confirmed.
            assert!(cost.ok, "{name}: {}", std::fs::read_to_string(dir.join("log")).unwrap_or_default());
            let theirs = receiver.as_ref().map_or(0.0, Receiver::cpu) - before;
            eprintln!("{name}: {:.0} events/s, {:.2} s CPU, receiver {theirs:.2} s", total / cost.wall, cost.cpu);
            costs.push((cost, theirs));
        }
    }
    println!(
        "| route | events/s | of `file` | CPU of ours, us an event | of `file` | cores ours keeps busy | CPU of the receiver, us an event | peak MiB |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for ((name, ..), of_route) in routes.iter().zip(&costs) {
        let of = |what: &dyn Fn(&(Cost, f64)) -> f64| median(of_route.iter().map(what));
        let to_file = |what: &dyn Fn(&Cost) -> f64| {
            median(of_route.iter().zip(&costs[0]).map(|((cost, _), (file, _))| what(cost) / what(file)))
        };
        println!(
            "| {name} | {:.0} | {:.2} | {:.1} | {:.2} | {:.2} | {:.1} | {:.0} |",
            of(&|(cost, _)| total / cost.wall),
            1.0 / to_file(&|cost| cost.wall),
            of(&|(cost, _)| cost.cpu / total * 1e6),
            to_file(&|cost| cost.cpu),
            of(&|(cost, _)| cost.cpu / cost.wall),
            of(&|(_, theirs)| theirs / total * 1e6),
            of(&|(cost, _)| cost.peak_mib),
        );
    }
}

fn replace_sink(config: &Path, sink: &str) {
    let text = std::fs::read_to_string(config).expect("a configuration");
    let source = text.split("[sinks.out]").next().unwrap_or_default();
    std::fs::write(config, format!("{source}[sinks.out]\ninputs = [\"t0\"]\n{sink}\n")).expect("a file");
}

/// A receiver in a process of its own; ends when dropped.
struct Receiver {
    child: Child,
    port: u16,
}

impl Receiver {
    fn start(kind: &str, vector: Option<&str>, dir: &Path) -> Self {
        if let (true, Some(vector)) = (kind == "vector", vector) {
            return Self::vector(vector, dir);
        }
        let this = std::env::current_exe().expect("a path");
        let mut child = Command::new(this).args(["receive", kind]).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut port = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut port).expect("its port");
        Self { child, port: port.trim().parse().expect("a port") }
    }

    fn vector(program: &str, dir: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        let config = dir.join("vector.yaml");
        let text = format!(
            "data_dir: {}\nacknowledgements: {{enabled: true}}\nsources:\n  m365:\n    type: http_server\n    \
             address: 127.0.0.1:{port}\n    decoding: {{codec: json}}\n\
             sinks:\n  out:\n    type: blackhole\n    inputs: [m365]\n    print_interval_secs: 0\n",
            dir.display()
        );
        std::fs::write(&config, text).expect("a file");
        let log = std::fs::File::create(dir.join("vector.log")).expect("a file");
        let mut command = Command::new(program);
        command.arg("--config").arg(config).stdout(log.try_clone().expect("a file")).stderr(log);
        let receiver = Self { child: command.spawn().expect("Vector starts"), port };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let log = || std::fs::read_to_string(dir.join("vector.log")).unwrap_or_default();
            assert!(start.elapsed() < START_MAX, "Vector does not listen: {}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        receiver
    }

    fn cpu(&self) -> f64 {
        stat(self.child.id()).map_or(0.0, |(_, cpu)| cpu)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A receiver as this process: prints its port and never ends.
pub fn receive(kind: &str) -> ! {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    println!("{}", listener.local_addr().expect("an address").port());
    if kind == "forward" {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || forward(stream));
        }
        unreachable!("listening ends with the process");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
    let _in_it = runtime.enter();
    listener.set_nonblocking(true).expect("a socket");
    let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
    match kind {
        "otlp-grpc" => {
            let service = LogsServiceServer::new(Taker).max_decoding_message_size(64 << 20);
            let service = service.accept_compressed(tonic::codec::CompressionEncoding::Gzip);
            let serving = tonic::transport::Server::builder().add_service(service);
            runtime.block_on(serving.serve_with_incoming(TcpListenerStream::new(listener))).expect("it serves");
        }
        "http" => {
            let take = |_: Bytes| async { (StatusCode::OK, [(CONTENT_TYPE, "application/x-protobuf")], "") };
            let router = axum::Router::new().fallback(take).layer(axum::extract::DefaultBodyLimit::disable());
            runtime.block_on(async { axum::serve(listener, router).await }).expect("it serves");
        }
        other => panic!("`{other}` is none of forward, otlp-grpc, http"),
    }
    unreachable!("serving ends with the process");
}

struct Taker;

#[tonic::async_trait]
impl LogsService for Taker {
    async fn export(
        &self,
        _: tonic::Request<ExportLogsServiceRequest>,
    ) -> Result<tonic::Response<ExportLogsServiceResponse>, tonic::Status> {
        Ok(tonic::Response::new(ExportLogsServiceResponse::default()))
    }
}

/// One connection of Forward: of each frame `[tag, entries, {"chunk": id, …}]` the entries are skipped and the id is
/// sent back.
fn forward(mut stream: TcpStream) -> Option<()> {
    let mut reader = BufReader::with_capacity(1 << 16, stream.try_clone().ok()?);
    loop {
        if rmp::decode::read_array_len(&mut reader).ok()? != 3 {
            return None;
        }
        let tag = rmp::decode::read_str_len(&mut reader).ok()?;
        skip(&mut reader, tag)?;
        let entries = rmp::decode::read_bin_len(&mut reader).ok()?;
        skip(&mut reader, entries)?;
        let options = rmpv::decode::read_value(&mut reader).ok()?;
        let chunk = options.as_map()?.iter().find(|(key, _)| key.as_str() == Some("chunk"))?.1.clone();
        let answer = rmpv::Value::Map(vec![("ack".into(), chunk)]);
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, &answer).ok()?;
        stream.write_all(&bytes).ok()?;
    }
}

fn skip(reader: &mut impl Read, bytes: u32) -> Option<()> {
    let skipped = std::io::copy(&mut reader.take(u64::from(bytes)), &mut std::io::sink()).ok()?;
    (skipped == u64::from(bytes)).then_some(())
}
