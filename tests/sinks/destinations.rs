//! What real stores behind the routes of `docs/hosts/` have in common, and VictoriaLogs; `opensearch.rs`, `s3.rs` and
//! `nats.rs` are of the others. `.ci/destinations` fetches them and says which variable names each. Without one its tests
//! say so and pass. Real time: they know no other.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use test_support::{free_port, program};
use tokio::net::TcpStream;

use crate::truth::{FastClock, compare, pass_in, tenant};

/// Nothing here takes nearly so long unless it hangs, or the machine has ten times the load it can bear.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// VictoriaLogs looks every 5 s (`-inmemoryDataFlushInterval`) for what has been in its memory for 5 s, and writes that to
/// disk: 10 s at most, and what the writing takes (`lib/logstorage/datadb.go`, 1.52.1).
const FLUSH: Duration = Duration::from_secs(14);

/// A server in a directory of its own, ended with the test.
pub struct Server {
    command: Box<dyn Fn() -> Command + Send>,
    child: Child,
    pub port: u16,
    pub url: String,
    dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// It is there when the port takes connections.
    pub async fn start(make: impl Fn(&Path, u16) -> Command + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let home = dir.path().to_owned();
        let command = Box::new(move || {
            let mut command = make(&home, port);
            let log = fs::OpenOptions::new().create(true).append(true).open(home.join("log")).unwrap();
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
            command
        });
        let child = command().spawn().unwrap();
        let server = Self { command, child, port, url: format!("http://127.0.0.1:{port}"), dir };
        server.answers().await;
        server
    }

    async fn answers(&self) {
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            let log = || fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(begun.elapsed() < PATIENCE, "it does not listen: {}", log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn ask(&self, method: reqwest::Method, path: &str, kind: &str, body: impl Into<reqwest::Body>) -> Value {
        let request = client().request(method, format!("{}{path}", self.url));
        let answer = request.header("content-type", kind).body(body).send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{path}: {status}: {text:.1000}");
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub async fn start_again(&mut self) {
        self.child = (self.command)().spawn().unwrap();
        self.answers().await;
    }

    pub async fn kill_and_start_again(&mut self) {
        self.kill();
        self.start_again().await;
    }
}

pub fn client() -> reqwest::Client {
    // The library leaves the choice to the program; a second time is no error here.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

/// Fluent Bit between our `fluent_forward` sink and an output, in a directory of its own, ended with the test.
pub struct FluentBit {
    program: PathBuf,
    pub dir: tempfile::TempDir,
    pub port: u16,
    child: Child,
}

impl Drop for FluentBit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl FluentBit {
    /// `config` has the port 24224 for its input and folders below `/var/lib/fluent-bit`, as the examples have.
    pub fn start(program: PathBuf, config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let config = config
            .replace("port: 24224", &format!("port: {port}"))
            .replace("/var/lib/fluent-bit", dir.path().to_str().unwrap());
        fs::write(dir.path().join("f.yaml"), config).unwrap();
        let child = Self::spawn(&program, dir.path());
        Self { program, dir, port, child }
    }

    fn spawn(program: &Path, dir: &Path) -> Child {
        let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).unwrap();
        let mut command = Command::new(program);
        command.arg("-c").arg(dir.join("f.yaml")).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        // What its output `s3` signs with; whoever plays S3 here takes any.
        command.env("AWS_ACCESS_KEY_ID", "x").env("AWS_SECRET_ACCESS_KEY", "x");
        command.spawn().unwrap()
    }

    pub fn kill_and_start_again(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Self::spawn(&self.program, self.dir.path());
    }

    /// The sink of ours that feeds it.
    pub fn table(&self) -> String {
        format!(
            "type = \"fluent_forward\"\nservers = [\"127.0.0.1:{}\"]\ntag = \"m365.contoso\"\nack_timeout_secs = 600\n",
            self.port
        )
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

async fn victorialogs(program: &Path) -> Server {
    let program = program.to_owned();
    Server::start(move |dir, port| {
        let mut command = Command::new(&program);
        command.arg(format!("-httpListenAddr=127.0.0.1:{port}")).arg(format!("-storageDataPath={}", dir.display()));
        // What `docs/hosts/README.md` says.
        command.args(["-retentionPeriod=100y", "-insert.maxLineSizeBytes=2MB"]);
        command
    })
    .await
}

/// Each line it has, in any order. It takes objects apart: of interest here is the original's text.
async fn stored(server: &Server) -> Vec<Value> {
    let path = "/select/logsql/query?query=*&limit=1000000";
    let answer = server.ask(reqwest::Method::GET, path, "text/plain", "").await;
    let text = match answer {
        Value::String(text) => text,
        one => one.to_string(),
    };
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .map(|line| {
            let raw = line.as_object().unwrap().iter().find(|(name, _)| *name == "raw" || name.ends_with(".raw"));
            json!({"raw": raw.unwrap_or_else(|| panic!("no raw in {line}")).1})
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn victorialogs_has_every_record_of_the_http_and_the_otlp_sink() {
    let Some(program) = program("victorialogs") else { return };
    for table in [
        "type = \"http\"\nuri = \"URL/insert/jsonline?_time_field=timestamp&_msg_field=title&_stream_fields=tenant_id,content_type\"\n",
        "type = \"otlp\"\nprotocol = \"http\"\nendpoint = \"URL/insert/opentelemetry/v1/logs\"\n",
    ] {
        let mut server = victorialogs(&program).await;
        let clock = FastClock::start();
        let (sim, tenant) = tenant(clock.clone(), 20, 200).await;
        pass_in(&table.replace("URL", &server.url), &sim, &tenant, clock).await;
        // What it has answered for is there to be asked for a moment later, and on disk within seconds.
        let begun = Instant::now();
        let mut killed = false;
        loop {
            let comparison = compare(&sim, stored(&server).await);
            if comparison.is_clean() && killed {
                println!("{} of {}: {table}", comparison.expected, comparison.expected);
                break;
            }
            if comparison.is_clean() {
                tokio::time::sleep(FLUSH).await;
                server.kill_and_start_again().await;
                killed = true;
            }
            assert!(begun.elapsed() < PATIENCE, "killed: {killed}: {comparison}: {table}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        sim.stop().await;
    }
}
