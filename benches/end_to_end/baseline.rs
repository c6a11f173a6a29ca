//! The unavoidable minimum: a small program that downloads every blob, splits it, copies each event and syncs the file.
//! It does not parse, keep state or confirm. `extra` bytes are added to each event, so that it writes as much as the
//! compared run.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, sync_channel};

use bytes::BytesMut;
use m365_audit::normalise::split::{Piece, Splitter};

/// Connections, each with a thread of its own.
const CONNECTIONS: usize = 4;
const CHUNK_BYTES: usize = 256 * 1024;
const BATCH_BYTES: usize = 256 * 1024;
/// Bytes between two syncs, at most.
const GROUP_BYTES: usize = 8 << 20;

pub fn run(origin: &str, path: &str, extra: usize) {
    let address = origin.trim_start_matches("http://");
    let mut uris = Vec::new();
    let mut connection = Connection::open(address);
    for content_type in ["Audit.AzureActiveDirectory", "Audit.Exchange", "Audit.SharePoint", "Audit.General"] {
        let mut next = Some(format!(
            "/api/v1.0/t/activity/feed/subscriptions/content?contentType={content_type}&startTime=2000-01-01T00:00:00&endTime=2100-01-01T00:00:00"
        ));
        while let Some(target) = next {
            let (length, link) = connection.get(&target);
            let mut body = vec![0; length];
            connection.reader.read_exact(&mut body).expect("a body");
            let page: Vec<serde_json::Value> = serde_json::from_slice(&body).expect("a listing");
            let uri = |item: &serde_json::Value| item["contentUri"].as_str().expect("a link").replace(origin, "");
            uris.extend(page.iter().map(uri));
            next = link.map(|link| link.replace(origin, ""));
        }
    }
    let uris = Mutex::new(uris);
    let (send, written) = sync_channel::<Vec<u8>>(64);
    std::thread::scope(|scope| {
        scope.spawn(|| write(path, written));
        for _ in 0..CONNECTIONS {
            let (send, uris) = (send.clone(), &uris);
            scope.spawn(move || {
                let mut connection = Connection::open(address);
                let mut out = Vec::with_capacity(BATCH_BYTES * 5 / 4);
                let filler = vec![b' '; extra];
                loop {
                    let Some(uri) = uris.lock().expect("a lock").pop() else { break };
                    let (mut left, _) = connection.get(&uri);
                    let mut splitter = Splitter::new();
                    while left > 0 {
                        let mut chunk = BytesMut::zeroed(left.min(CHUNK_BYTES));
                        let n = connection.reader.read(&mut chunk).expect("bytes");
                        chunk.truncate(n);
                        left -= n;
                        splitter.push(chunk.freeze());
                        while let Some(piece) = splitter.next() {
                            let Piece::Element { bytes, .. } = piece else { panic!("a sound body") };
                            out.extend_from_slice(&bytes);
                            out.extend_from_slice(&filler);
                            out.push(b'\n');
                            if out.len() >= BATCH_BYTES {
                                let full = std::mem::replace(&mut out, Vec::with_capacity(BATCH_BYTES * 5 / 4));
                                send.send(full).expect("a writer");
                            }
                        }
                    }
                }
                send.send(out).expect("a writer");
            });
        }
        drop(send);
    });
}

fn write(path: &str, written: Receiver<Vec<u8>>) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).expect("a file");
    while let Ok(first) = written.recv() {
        let mut bytes = first.len();
        file.write_all(&first).expect("room");
        while bytes < GROUP_BYTES
            && let Ok(next) = written.try_recv()
        {
            bytes += next.len();
            file.write_all(&next).expect("room");
        }
        file.sync_data().expect("a sync");
    }
}

struct Connection {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Connection {
    fn open(address: &str) -> Self {
        let writer = TcpStream::connect(address).expect("a connection");
        writer.set_nodelay(true).expect("an option");
        Self { reader: BufReader::with_capacity(64 * 1024, writer.try_clone().expect("a copy")), writer }
    }

    /// Sends a request and reads the head of the answer: the length of the body and the next page.
    fn get(&mut self, target: &str) -> (usize, Option<String>) {
        let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
        self.writer.write_all(request.as_bytes()).expect("a request");
        let (mut length, mut link) = (0, None);
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line).expect("a header");
            let line = line.trim();
            if line.is_empty() {
                return (length, link);
            }
            if let Some(n) = line.strip_prefix("Content-Length: ") {
                length = n.parse().expect("a number");
            }
            if let Some(to) = line.strip_prefix("NextPageUri: ") {
                link = Some(to.to_owned());
            }
        }
    }
}
