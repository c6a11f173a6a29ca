//! What every sink that uses the network says when there is no answer: the cause, down to the system's or the library's
//! own word, and what to do about it; and that the same words stand in `status`, in health and in the log.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use m365_audit::clock::{Clock, SystemClock};
use m365_audit::hosts::embedded::sink::Written;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::tls::{Authority, KINDS, Kind};
use crate::truth::{batch, sink, source_table, tenant};

/// What stands at the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Peer {
    Nobody,
    /// A name that no resolver knows: no label has 64 letters, so nobody is asked.
    NoName,
    /// Accepts and closes.
    Closes,
    /// Speaks plain text where TLS is expected.
    PlainText,
    /// Has a certificate of an unknown authority.
    Untrusted,
    /// HTTP/2 that says goodbye with a reason.
    GoAway,
    /// TLS without HTTP/2 inside.
    NoHttp2,
}

/// SETTINGS, and GOAWAY with ENHANCE_YOUR_CALM and words (RFC 9113, sections 6.5 and 6.8).
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
const GOODBYE: &[u8] = b"\0\0\x16\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0btoo_many_pings";
const HEADERS: u8 = 1;

/// Speaks HTTP/2 until a request has come, then says goodbye.
async fn say_goodbye(mut tcp: TcpStream) -> std::io::Result<()> {
    tcp.write_all(SETTINGS).await?;
    tcp.read_exact(&mut [0; 24]).await?;
    loop {
        let mut head = [0; 9];
        tcp.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        tcp.read_exact(&mut vec![0; length as usize]).await?;
        if head[3] == HEADERS {
            return tcp.write_all(GOODBYE).await;
        }
    }
}

impl Peer {
    /// Whether the sink is to use TLS.
    fn scheme(self) -> &'static str {
        match self {
            Self::PlainText | Self::Untrusted | Self::NoHttp2 => "https",
            _ => "http",
        }
    }

    /// Its address, the keys to reach it, and what must not be dropped meanwhile.
    async fn listen(self, dir: &Path) -> (String, String, Option<TcpSocket>) {
        if self == Self::Nobody {
            // A port that is bound and not listened at refuses, and no other test can have it.
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            return (socket.local_addr().unwrap().to_string(), String::new(), Some(socket));
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        match self {
            Self::Nobody => {}
            Self::NoName => return (format!("{}.invalid:4317", "x".repeat(64)), String::new(), None),
            Self::Untrusted | Self::NoHttp2 => {
                let authority = Authority::new();
                let front = authority.front(port, Vec::new(), None).await;
                let keys = match self {
                    Self::NoHttp2 => {
                        let file = dir.join("ca.pem");
                        std::fs::write(&file, &authority.pem).unwrap();
                        format!("ca_file = \"{}\"", file.display())
                    }
                    _ => String::new(),
                };
                return (format!("127.0.0.1:{front}"), keys, None);
            }
            Self::GoAway => {
                tokio::spawn(async move {
                    while let Ok((tcp, _)) = listener.accept().await {
                        tokio::spawn(say_goodbye(tcp));
                    }
                });
            }
            Self::Closes | Self::PlainText => {
                let answer: &'static [u8] = match self {
                    Self::PlainText => b"HTTP/1.1 400 Bad Request\r\n\r\n",
                    _ => b"",
                };
                tokio::spawn(async move {
                    while let Ok((mut tcp, _)) = listener.accept().await {
                        tokio::spawn(async move {
                            let _ = tcp.write_all(answer).await;
                            let _ = tcp.shutdown().await;
                            let _ = tcp.read_to_end(&mut Vec::new()).await;
                        });
                    }
                });
            }
        }
        (address, String::new(), None)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_has_its_cause_and_a_remedy_in_every_network_sink() {
    let all = &KINDS[..];
    let dir = tempfile::tempdir().unwrap();
    let clock: Arc<dyn Clock> = SystemClock::new();
    for (peer, kinds, said) in [
        (Peer::Nobody, all, &["Connection refused (os error 111)", "(hint: nobody listens"][..]),
        (Peer::NoName, all, &["failed to lookup address information", "`getent hosts NAME`"]),
        (Peer::Closes, &KINDS[..2], &["closed the connection before it answered"]),
        (Peer::Closes, &[Kind::FluentForward], &["the receiver closed the connection"]),
        (Peer::Closes, &[Kind::OtlpGrpc], &["no answer: ", "closed"]),
        (Peer::PlainText, all, &["received corrupt message", "does not speak TLS"]),
        (Peer::Untrusted, all, &["UnknownIssuer", "`ca_file`"]),
        (Peer::GoAway, &[Kind::OtlpGrpc], &["too_many_pings", "(hint: "]),
        (Peer::NoHttp2, &[Kind::OtlpGrpc], &["no HTTP/2 inside it"]),
    ] {
        for kind in kinds {
            let (address, keys, _kept) = peer.listen(dir.path()).await;
            let mut sink = sink(&kind.table(peer.scheme(), &address, &keys), &clock);
            let written = sink.write(&[batch(&["{\"event_id\":\"1\"}"])]).await.remove(0);
            let why = written.why().unwrap_or_default();
            assert!(said.iter().all(|words| why.contains(words)), "{peer:?} {kind:?}: {why}");
            assert!(matches!(written, Written::Refused { .. } | Written::Unclear(_)), "{peer:?} {kind:?}: {written:?}");
            assert!(!why.contains("transport error"), "words that say nothing: {peer:?} {kind:?}: {why}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cause_stands_in_the_log_in_status_and_in_health() {
    let (sim, tenant) = tenant(SystemClock::new(), 4, 5).await;
    let dir = tempfile::tempdir().unwrap();
    let port = test_support::free_port();
    let (address, _, _kept) = Peer::Nobody.listen(dir.path()).await;
    let mut text = format!(
        "data_dir = {:?}\n[metrics]\nlisten = \"127.0.0.1:{port}\"\n[sources.s]\n{}poll_interval_secs = 1\n",
        dir.path().join("state"),
        source_table(&sim, &tenant)
    );
    for kind in KINDS {
        text += &format!("[sinks.{kind:?}]\ninputs = [\"s\"]\n{}", kind.table("http", &address, ""));
    }
    let config = dir.path().join("agent.toml");
    std::fs::write(&config, text).unwrap();
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    let program = |args: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_m365-audit"));
        command.args(args).arg("-c").arg(&config).stdin(Stdio::null()).kill_on_drop(true);
        command
    };
    let mut running = program(&["run"]).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let count = |text: &str| text.matches("Connection refused (os error 111)").count();
    let begun = Instant::now();
    loop {
        let status = program(&["status", "--once"]).output().await.unwrap();
        let status = String::from_utf8_lossy(&status.stdout).into_owned();
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
        let named = |text: &str| KINDS.iter().all(|kind| text.contains(&format!("{kind:?}")));
        if count(&status) >= KINDS.len() && count(&log) >= KINDS.len() {
            assert!(named(&status) && named(&log), "{status}\n{log}");
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{status}\n{log}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut health = String::new();
    stream.read_to_string(&mut health).await.unwrap();
    assert!(count(&health) >= KINDS.len(), "{health}");
    running.kill().await.unwrap();
    sim.stop().await;
}
