//! What tests ask of the machine they run on, beyond Rust: real programs, a file system that may be mounted, an address.
//!
//! A test that does not get what it asks for is skipped, in one form, on the standard error of the process, past the test
//! runner, which keeps what a passing test prints. Two variables change that:
//!
//! - `M365_AUDIT_REQUIRE=fluent-bit,vector` names what must be there (`all`: everything): a skip for want of it fails the
//!   test. Names are those of [`NEEDS`]; another name fails, too.
//! - `M365_AUDIT_SKIPPED=<file>` has each skip appended to that file; `.ci/run` prints it before the last count.

pub mod postgres;

use std::fmt::Display;
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a test may ask for.
#[derive(Debug)]
pub struct Need {
    /// As `M365_AUDIT_REQUIRE` and a skip name it.
    pub name: &'static str,
    /// A variable that names the program, where there is one.
    pub variable: Option<&'static str>,
    /// The file that is looked for in `PATH`, for a program.
    pub program: Option<&'static str>,
    pub remedy: &'static str,
}

const fn named(name: &'static str, variable: &'static str, program: &'static str, remedy: &'static str) -> Need {
    Need { name, variable: Some(variable), program: Some(program), remedy }
}

const fn installed(name: &'static str, remedy: &'static str) -> Need {
    Need { name, variable: None, program: Some(name), remedy }
}

const fn given(name: &'static str, remedy: &'static str) -> Need {
    Need { name, variable: None, program: None, remedy }
}

/// Everything that tests ask for.
pub const NEEDS: &[Need] = &[
    named("fluent-bit", "FLUENT_BIT", "fluent-bit", "install it, or `.ci/fluent-bit-build` builds one"),
    named("vector", "VECTOR", "vector", "install it"),
    given("vector-source", "build Vector with examples/vector-native"),
    named("rsyslog", "RSYSLOGD", "rsyslogd", "install the package `rsyslog`, or `.ci/agents` fetches one"),
    named("syslog-ng", "SYSLOG_NG", "syslog-ng", "install the package `syslog-ng-core`"),
    named("otelcol", "OTELCOL", "otelcol", "`.ci/destinations otelcol DIR` builds one"),
    named("opensearch", "OPENSEARCH", "opensearch-library", "`.ci/destinations opensearch DIR` fetches one"),
    named("victorialogs", "VICTORIALOGS", "victoria-logs", "`.ci/destinations victorialogs DIR` fetches one"),
    named("nats-server", "NATS_SERVER", "nats-server", "`.ci/destinations nats DIR` builds one"),
    named("moto", "MOTO_SERVER", "moto_server", "`.ci/destinations s3 DIR` fetches one"),
    given("postgres", "install the package `postgresql`"),
    given("faketime", "install the package `faketime`"),
    named("kafka", "KAFKA_LIB", "kafka-library", "`.ci/destinations kafka DIR` fetches one"),
    installed("java", "install a Java 17 runtime"),
    installed("kcat", "install the package `kcat`"),
    installed("promtool", "install the package `prometheus`"),
    installed("systemd-analyze", "install the package `systemd`"),
    installed("valgrind", "install the package `valgrind`"),
    installed("cc", "install a C compiler"),
    installed("python3", "install it"),
    given("python3-cryptography", "install the package `python3-cryptography`"),
    installed("buildah", "install it, and run the tests as root"),
    given("mount", "run the tests as root, where file systems may be mounted"),
    given("nobody", "put the folder `target` where every user may read it"),
    given("ipv6", "give the loopback interface the address ::1"),
    given("plugin", "`cargo build` makes it"),
    given("kept-state", "name the state of another run in FLUENT_BIT_KEPT_STATE"),
    given("corpus", "it is not part of the repository"),
];

fn need(name: &str) -> &'static Need {
    NEEDS.iter().find(|need| need.name == name).unwrap_or_else(|| panic!("`{name}` is not in test_support::NEEDS"))
}

/// The program of this need, by its variable, in `PATH` or where daemons are. `None`: the test is skipped, which has been
/// reported.
#[track_caller]
pub fn program(name: &str) -> Option<PathBuf> {
    let Need { variable, program, .. } = need(name);
    let program = program.unwrap_or_else(|| panic!("`{name}` is not a program"));
    let (found, why) = match variable.and_then(|variable| Some((variable, std::env::var_os(variable)?))) {
        Some((variable, path)) => (
            Some(PathBuf::from(&path)).filter(|path| path.exists()),
            format!("{variable} names {path:?}, which is not there"),
        ),
        None => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
            let named = variable.map_or_else(String::new, |variable| format!(" and {variable} names none"));
            (folders.map(|folder| folder.join(program)).find(|file| file.is_file()), format!("not in PATH{named}"))
        }
    };
    if found.is_none() {
        skip(name, why);
    }
    found
}

/// The library that gives a program another time of day. `None`: the test is skipped, which has been reported.
#[track_caller]
pub fn library_of_faketime() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let found = folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|file| file.is_file());
    if found.is_none() {
        skip("faketime", "no libfaketimeMT.so.1 in /usr/lib/*/faketime");
    }
    found
}

/// The running test does not get this and ends here: reports it, or fails where it is required.
///
/// # Panics
///
/// Where `M365_AUDIT_REQUIRE` names it, or names what is not in [`NEEDS`].
#[track_caller]
pub fn skip(name: &str, why: impl Display) {
    let need = need(name);
    let line = line(&test_name(), need, &why.to_string());
    let required = std::env::var("M365_AUDIT_REQUIRE").unwrap_or_default();
    if let Err(error) = allowed(&required, need) {
        panic!("{line}\n{error}");
    }
    // Each in one write: tests run beside each other.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(file) = std::env::var_os("M365_AUDIT_SKIPPED") {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(file).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
}

fn line(test: &str, need: &Need, why: &str) -> String {
    let Need { name, variable, remedy, .. } = need;
    let or = variable.map_or_else(String::new, |variable| format!(", or name one in {variable}"));
    format!("skipped: {test}: no {name}: {}; {remedy}{or}\n", why.trim().replace('\n', " "))
}

/// The binary and the test, as `cargo test --test <binary> <test>` takes them.
fn test_name() -> String {
    let binary = std::env::current_exe().ok();
    let binary = binary.as_deref().and_then(Path::file_stem).and_then(|stem| stem.to_str()).unwrap_or_default();
    // Cargo puts a hash behind the name.
    let binary = binary.rsplit_once('-').map_or(binary, |(name, _)| name);
    format!("{binary} {}", std::thread::current().name().unwrap_or("main"))
}

/// Whether a test may be skipped for want of this, where these are required.
///
/// # Errors
///
/// It is required, or what is required is not known.
pub fn allowed(required: &str, need: &Need) -> Result<(), String> {
    for name in required.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        if name == "all" || name == need.name {
            return Err(format!("M365_AUDIT_REQUIRE={required} asks for it"));
        }
        if NEEDS.iter().all(|need| need.name != name) {
            let known: Vec<&str> = NEEDS.iter().map(|need| need.name).collect();
            return Err(format!("M365_AUDIT_REQUIRE names `{name}`, expected `all` or some of {}", known.join(", ")));
        }
    }
    Ok(())
}

/// A file system in memory at a folder of its own, unmounted when dropped, whoever uses it.
#[derive(Debug)]
pub struct Mounted(PathBuf);

impl Mounted {
    /// `options`: of `mount`, as `size=1m`. `None`: the test is skipped, which has been reported.
    #[track_caller]
    pub fn at(path: &Path, options: &str) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(path);
        match command.output() {
            Ok(output) if output.status.success() => return Some(Self(path.to_owned())),
            Ok(output) => skip("mount", String::from_utf8_lossy(&output.stderr)),
            Err(error) => skip("mount", error),
        }
        None
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// A port of loopback that is free now. Another process may take it before it is used, which is rare: the system gives
/// out the same one again only when it has been through the others.
#[must_use]
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
