//! A real Fluent Bit, named by `FLUENT_BIT` or found in `PATH`: its configuration, its process, and which build it is.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Once;
use std::time::Duration;

use serde_json::Value;

use crate::support::{self, Patience, Service};
use crate::symbols;

/// Prints which build it is, in every run: a build from source has by default none of the packages' `malloc`.
pub fn fluent_bit() -> Option<PathBuf> {
    static REPORTED: Once = Once::new();
    let found = test_support::program("fluent-bit")?;
    // Not by `println`: the runner keeps what a passing test prints.
    REPORTED.call_once(|| drop(writeln!(std::io::stderr(), "{}", Build::of(&found))));
    Some(found)
}

/// Which build of Fluent Bit it is, as far as a plugin is concerned.
#[derive(Debug)]
pub struct Build {
    program: PathBuf,
    version: String,
    /// Names it exports: the loader takes them from there.
    exports: std::collections::BTreeSet<String>,
}

impl Build {
    pub fn of(program: &Path) -> Self {
        let output = Command::new(program).arg("--version").output().unwrap();
        let version = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned();
        let exports = symbols::read(program).symbols.into_iter().filter(|s| s.exported).map(|s| s.name).collect();
        Self { program: program.to_owned(), version, exports }
    }

    /// Whether it has its own `malloc`, as the builds of Fluent Bit's packages and images do.
    pub fn has_own_malloc(&self) -> bool {
        self.exports.contains("malloc")
    }

    pub fn exports(&self, name: &str) -> bool {
        self.exports.contains(name)
    }
}

impl std::fmt::Display for Build {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { program, version, exports } = self;
        let sqlite = exports.iter().filter(|name| name.starts_with("sqlite3_")).count();
        write!(f, "with {version} ({}), which exports {sqlite} names of SQLite and ", program.display())?;
        match self.has_own_malloc() {
            true => write!(f, "a malloc of its own, as Fluent Bit's packages do"),
            false => write!(
                f,
                "NO malloc: Fluent Bit's packages have jemalloc, so what this run shows does not hold for them \
                 (build it by .ci/fluent-bit-build)"
            ),
        }
    }
}

/// The settings of an agent, in addition to the common ones.
#[derive(Clone, Default)]
pub struct Setup {
    pub input: Vec<(&'static str, String)>,
    pub second_input: bool,
    /// Written below the input's properties.
    pub processors: &'static str,
    pub output: Option<String>,
    pub http_port: Option<u16>,
    /// Another place for the chunks.
    pub chunks: Option<PathBuf>,
    /// Sections of the configuration beside those all have.
    pub top: String,
}

impl Setup {
    pub fn with(mut self, key: &'static str, value: &str) -> Self {
        self.input.push((key, value.to_owned()));
        self
    }

    /// The settings of the examples, with which a crash of the agent loses nothing.
    pub fn safe() -> Self {
        Self::default().with("threaded", "off").with("storage.type", "filesystem")
    }

    /// The same on a thread of its own.
    pub fn threaded() -> Self {
        Self::default().with("threaded", "on").with("storage.type", "filesystem")
    }
}

pub struct Agent {
    pub program: PathBuf,
    pub dir: tempfile::TempDir,
    /// The name of its configuration in `dir`, where it also runs.
    pub config: &'static str,
    pub environment: Vec<(&'static str, String)>,
    /// A program, with its arguments, that runs Fluent Bit.
    pub under: Vec<String>,
    pub child: Option<Child>,
}

impl Agent {
    /// Writes the configuration of an agent with `properties` and `setup`. `None`: the test cannot run here.
    pub fn new(properties: &[(String, String)], setup: &Setup) -> Option<Self> {
        let (program, library) = (fluent_bit()?, support::library()?);
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        let port = setup.http_port.map(|p| format!("  http_server: on\n  http_port: {p}\n")).unwrap_or_default();
        let chunks = setup.chunks.clone().unwrap_or_else(|| dir.path().join("storage"));
        let mut text = format!(
            "{}service:\n  flush: 0.2\n  grace: 2\n  hot_reload: on\n  storage.path: {}\n{port}\
             plugins:\n  - {}\npipeline:\n  inputs:\n",
            setup.top,
            chunks.display(),
            library.display()
        );
        for n in 0..1 + u8::from(setup.second_input) {
            let _ = write!(text, "    - name: m365_audit\n      tag: m365.{n}\n");
            if !properties.iter().any(|(key, _)| key == "config_file") {
                let _ = writeln!(text, "      data_dir: {at}/state");
            }
            let own = properties.iter().map(|(key, value)| (key.as_str(), value));
            for (key, value) in own.chain(setup.input.iter().map(|(key, value)| (*key, value))) {
                let _ = writeln!(text, "      {key}: '{value}'");
            }
            text += setup.processors;
        }
        let file = format!("name: file\n      path: {at}\n      file: out.json\n      format: plain");
        let output = setup.output.clone().unwrap_or(file);
        let _ = write!(text, "  outputs:\n    - {output}\n      match: '*'\n      retry_limit: no_limits\n");
        fs::write(dir.path().join("agent.yaml"), text).unwrap();
        Some(Self { program, dir, config: "agent.yaml", environment: Vec::new(), under: Vec::new(), child: None })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn start(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let program = self.program.as_os_str().to_owned();
        let words: Vec<OsString> = self.under.iter().map(OsString::from).chain([program]).collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command.current_dir(self.dir.path()).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.arg("-c").arg(self.path(self.config)).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let mut patience = Patience::new();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if !patience.lasts(Duration::from_millis(20)) {
                let _ = child.kill();
                panic!("it does not end:\n{}", self.log());
            }
        }
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().unwrap().try_wait().unwrap().is_some()
    }

    /// The memory of the running process.
    pub fn memory(&self) -> String {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.child.as_ref().unwrap().id())).unwrap_or_default();
        status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap_or("no VmRSS")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    }

    pub fn kill(&mut self) {
        self.signal("KILL");
        assert_eq!(self.wait().signal(), Some(9));
    }

    pub fn terminate(&mut self) {
        self.signal("TERM");
        let status = self.wait();
        assert!(status.success(), "{status}:\n{}", self.log());
    }

    /// The end of its log, where a crash shows.
    pub fn last_lines(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub fn records(&self) -> Vec<Value> {
        read_records(&self.path("out.json"))
    }

    pub fn wait_until_all(&mut self, service: &Service) {
        let mut patience = Patience::new();
        while !service.has_all(&self.records()) {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert_eq!(ended, None, "it has ended:\n{}", self.log());
            let lasts = patience.lasts(Duration::from_millis(200));
            assert!(lasts, "{}\n{}", service.compare(&self.records()), self.log());
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The records of a file; without a line that a killed agent did not finish, but with the lines written after it.
pub fn read_records(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let record = |line: &str| {
        let whole = serde_json::from_str(line).ok();
        whole.or_else(|| serde_json::from_str(line.get(line.rfind("{\"source\":\"m365\"")?..)?).ok())
    };
    text.lines().filter_map(record).collect()
}
