//! Child processes and their cost, read from `/proc` (Linux).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use rustix::io::retry_on_intr;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use super::tenant::Feed;

/// Clock ticks of `/proc/<pid>/stat` in a second; Linux has had no other for user space since 2.6.
const TICKS: f64 = 100.0;

/// The cost of a process from its start to its end.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    pub wall: f64,
    pub cpu: f64,
    /// Peak resident memory.
    pub peak_mib: f64,
    pub ok: bool,
}

/// How often the peak memory of a process is read. Growth after the last reading is missed; each reading takes
/// processor time from the process.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Cost {
    let started = Instant::now();
    let mut child = command.spawn().expect("it starts");
    let mut cost = Cost::default();
    std::thread::scope(|scope| {
        let id = child.id();
        let (ended, end) = std::sync::mpsc::channel::<()>();
        let peak = scope.spawn(move || {
            let mut peak = 0.0_f64;
            while end.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                peak = peak.max(memory_mib(id, "VmHWM:"));
            }
            peak
        });
        // A process that has ended keeps its times until it is reaped.
        let pid = Pid::from_child(&child);
        retry_on_intr(|| waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)).expect("our child");
        cost.wall = started.elapsed().as_secs_f64();
        drop(ended);
        cost.cpu = stat(id).expect("a process that was not waited for").1;
        cost.peak_mib = peak.join().expect("a peak");
    });
    cost.ok = child.wait().is_ok_and(|status| status.success());
    cost
}

/// A value of `/proc/<pid>/status`, in MiB.
pub fn memory_mib(pid: u32, name: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// The state of a process and the CPU time it has used, in seconds.
pub fn stat(pid: u32) -> Option<(char, f64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    Some((fields.first()?.chars().next()?, ticks / TICKS))
}

/// The feed in a process of its own; ends when dropped.
pub struct Server {
    child: Child,
    pub origin: String,
}

impl Server {
    pub fn start(feed: &Feed) -> Self {
        Self::start_with(feed, &[])
    }

    /// As [`Server::start`], with further arguments that define how it serves.
    pub fn start_with(feed: &Feed, how: &[&str]) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("a path"))
            .args(["serve", &feed.to_arg()])
            .args(how)
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut origin = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut origin).expect("its origin");
        Self { child, origin: origin.trim().to_owned() }
    }

    pub fn cpu(&self) -> f64 {
        stat(self.child.id()).map_or(0.0, |(_, cpu)| cpu)
    }

    pub fn stats(&self) -> serde_json::Value {
        let address = self.origin.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).expect("a connection");
        stream.write_all(b"GET /stats HTTP/1.1\r\n\r\n").expect("a request");
        let mut reader = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).expect("a header");
            if line.trim().is_empty() {
                break;
            }
            if let Some(n) = line.strip_prefix("Content-Length:") {
                length = n.trim().parse().expect("a number");
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("a body");
        serde_json::from_slice(&body).expect("JSON")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A run of this project's binary.
pub struct Agent<'a> {
    pub server: &'a Server,
    pub tenants: usize,
    pub source: &'a str,
    pub once: bool,
    pub binary: &'a str,
}

impl Agent<'_> {
    /// The command; its configuration, state and output are under `dir`.
    pub fn command(&self, dir: &Path) -> Command {
        let mut config = format!("data_dir = \"{}\"\n", dir.join("state").display());
        let mut names = Vec::new();
        for n in 0..self.tenants {
            let (origin, source) = (&self.server.origin, self.source);
            config.push_str(&format!(
                "[sources.t{n}]\ntype = \"m365_audit\"\ntenant_id = \"{n:08x}-0000-4000-8000-000000000000\"\n\
                 client_id = \"00000000-0000-4000-8000-000000000001\"\nclient_secret = \"s\"\n\
                 api_url = \"{origin}\"\nauthority_url = \"{origin}\"\n{source}\n"
            ));
            names.push(format!("\"t{n}\""));
        }
        let path = dir.join("out.ndjson");
        config.push_str(&format!(
            "[sinks.out]\ntype = \"file\"\ninputs = [{}]\npath = \"{}\"\n",
            names.join(","),
            path.display()
        ));
        std::fs::create_dir_all(dir).expect("a directory");
        std::fs::write(dir.join("agent.toml"), config).expect("a file");
        let mut command = Command::new(self.binary);
        command
            .arg("run")
            .arg("-c")
            .arg(dir.join("agent.toml"))
            .stderr(std::fs::File::create(dir.join("log")).expect("a file"));
        if self.once {
            command.arg("--once");
        }
        command
    }
}
