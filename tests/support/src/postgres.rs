//! A PostgreSQL of the test's own: a cluster in a temporary folder, on a port of loopback, under an unprivileged user. It
//! ends with the process that started it, however that ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::{free_port, skip};

/// A server.
#[derive(Debug)]
pub struct Postgres {
    programs: PathBuf,
    folder: PathBuf,
    port: u16,
    settings: String,
    guard: Option<Child>,
}

static DATABASES: AtomicUsize = AtomicUsize::new(0);

impl Postgres {
    /// The one that all tests of this process share, each with a database of its own. `None`: the test is skipped, which
    /// has been reported.
    #[track_caller]
    pub fn shared() -> Option<&'static Postgres> {
        static SHARED: OnceLock<Option<Postgres>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| Self::programs().map(|programs| Self::begin(programs, "fsync=off")));
        if shared.is_none() {
            skip("postgres", "no initdb in /usr/lib/postgresql/*/bin and none in PATH");
        }
        shared.as_ref()
    }

    /// One for this test alone, with settings beside the defaults (`name=value`, separated by blanks).
    #[track_caller]
    pub fn start(settings: &str) -> Option<Postgres> {
        let programs = Self::programs();
        if programs.is_none() {
            skip("postgres", "no initdb in /usr/lib/postgresql/*/bin and none in PATH");
        }
        programs.map(|programs| Self::begin(programs, settings))
    }

    /// The same in this folder, which is made: on a disk of the test's own.
    #[track_caller]
    pub fn start_in(folder: &Path, settings: &str) -> Option<Postgres> {
        let programs = Self::programs();
        if programs.is_none() {
            skip("postgres", "no initdb in /usr/lib/postgresql/*/bin and none in PATH");
        }
        programs.map(|programs| Self::begin_in(programs, folder.to_owned(), settings))
    }

    /// One that speaks TLS with this certificate and key (PEM), and nothing else over TCP.
    #[track_caller]
    pub fn start_with_tls(certificate: &str, key: &str) -> Option<Postgres> {
        let programs = Self::programs();
        if programs.is_none() {
            skip("postgres", "no initdb in /usr/lib/postgresql/*/bin and none in PATH");
        }
        programs.map(|programs| {
            let mut server = Self::begin(programs, "fsync=off");
            server.kill();
            for (name, text) in [("server.crt", certificate), ("server.key", key)] {
                server.write(name, text);
            }
            server.write("pg_hba.conf", "local all all trust\nhostssl all all 127.0.0.1/32 trust\n");
            server.settings += " ssl=on";
            server.resume();
            server
        })
    }

    /// A file in the folder of its data, for its user alone.
    fn write(&self, name: &str, text: &str) {
        let path = self.folder.join("data").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(&path));
        }
    }

    /// Where the server's programs are.
    fn programs() -> Option<PathBuf> {
        let debian = fs::read_dir("/usr/lib/postgresql").ok();
        let mut folders: Vec<PathBuf> =
            debian.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path().join("bin"))).collect();
        folders.sort();
        let path = std::env::var_os("PATH").unwrap_or_default();
        folders.into_iter().rev().chain(std::env::split_paths(&path)).find(|folder| folder.join("initdb").is_file())
    }

    fn begin(programs: PathBuf, settings: &str) -> Postgres {
        let folder = std::env::temp_dir().join(format!("m365-postgres-{}-{}", std::process::id(), free_port()));
        Self::begin_in(programs, folder, settings)
    }

    fn begin_in(programs: PathBuf, folder: PathBuf, settings: &str) -> Postgres {
        fs::create_dir_all(&folder).unwrap();
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(&folder));
            // The way to it is the test's own.
            let own = folder.ancestors().skip(1).take_while(|above| above.starts_with(std::env::temp_dir()));
            for above in own.filter(|above| *above != std::env::temp_dir()) {
                fs::set_permissions(above, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            }
        }
        let mut server = Postgres { programs, folder, port: free_port(), settings: settings.to_owned(), guard: None };
        let data = server.folder.join("data");
        let mut initdb = server.as_user("initdb");
        run(initdb.args(["--no-sync", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "-D"]).arg(&data));
        server.resume();
        server
    }

    /// A second server that follows this one: what it has not heard of yet is lost when it takes over.
    pub fn standby(&self) -> Postgres {
        let folder = std::env::temp_dir().join(format!("m365-postgres-{}-{}", std::process::id(), free_port()));
        fs::create_dir_all(&folder).unwrap();
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(&folder));
        }
        let (programs, settings) = (self.programs.clone(), self.settings.clone());
        let mut server = Postgres { programs, folder, port: free_port(), settings, guard: None };
        let port = self.port.to_string();
        let mut copy = self.as_user("pg_basebackup");
        run(copy
            .args(["-R", "-X", "stream", "-c", "fast", "-h", "127.0.0.1", "-U", "postgres", "-p", &port, "-D"])
            .arg(server.folder.join("data")));
        server.resume();
        server
    }

    /// Makes a standby the one that is written.
    pub fn promote(&self) {
        let mut promote = self.as_user("pg_ctl");
        run(promote.args(["-w", "-D"]).arg(self.folder.join("data")).arg("promote"));
    }

    /// Starts it again after [`Postgres::kill`].
    pub fn resume(&mut self) {
        let data = self.folder.join("data");
        let mut options = format!("-c listen_addresses=127.0.0.1 -p {} -k {}", self.port, self.folder.display());
        for setting in self.settings.split_whitespace() {
            options.push_str(&format!(" -c {setting}"));
        }
        let mut start = self.as_user("pg_ctl");
        run(start
            .args(["-w", "-t", "60", "-o", &options, "-l"])
            .arg(self.folder.join("log"))
            .arg("-D")
            .arg(&data)
            .arg("start"));
        // Reads until this process is gone, and then stops the server and takes its folder away.
        let stop = format!(
            "cat >/dev/null; kill -QUIT $(head -n 1 '{0}/data/postmaster.pid') 2>/dev/null; sleep 1; rm -rf '{0}'",
            self.folder.display()
        );
        let mut guard = Command::new("sh");
        guard.args(["-c", &stop]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut guard, 0);
        if let Some(mut old) = self.guard.replace(guard.spawn().unwrap()) {
            let _ = old.kill();
            let _ = old.wait();
        }
    }

    /// Starts it again if it has ended by itself.
    pub fn revive(&mut self) {
        if !self.answers() {
            let mut stop = self.as_user("pg_ctl");
            let _ = stop.args(["-w", "-m", "immediate", "-D"]).arg(self.folder.join("data")).arg("stop").output();
            self.resume();
        }
    }

    /// Ends it as a crash does, and waits until it is gone.
    pub fn kill(&self) {
        let mut stop = self.as_user("pg_ctl");
        run(stop.args(["-w", "-m", "immediate", "-D"]).arg(self.folder.join("data")).arg("stop"));
    }

    /// Makes an empty database; its URL.
    pub fn database(&self) -> String {
        let name = format!("t{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("create database {name}"));
        self.url(&name)
    }

    /// The URL of a database.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// The port of loopback it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What a statement answers, unaligned.
    pub fn sql(&self, database: &str, statement: &str) -> String {
        run(&mut self.psql(database, statement))
    }

    /// The same; `None` where it fails.
    pub fn try_sql(&self, database: &str, statement: &str) -> Option<String> {
        let output = self.psql(database, statement).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Whether it takes connections.
    pub fn answers(&self) -> bool {
        self.try_sql("postgres", "select 1").is_some()
    }

    fn psql(&self, database: &str, statement: &str) -> Command {
        let mut psql = Command::new(self.programs.join("psql"));
        let port = self.port.to_string();
        psql.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-U",
            "postgres",
            "-d",
            database,
            "-c",
            statement,
        ]);
        psql
    }

    /// The folder of its data and sockets.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn as_user(&self, program: &str) -> Command {
        let program = self.programs.join(program);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir("/").stdin(Stdio::null());
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // It may have been killed already.
        let mut stop = self.as_user("pg_ctl");
        let _ = stop.args(["-m", "immediate", "-D"]).arg(self.folder.join("data")).arg("stop").output();
        if let Some(mut guard) = self.guard.take() {
            drop(guard.stdin.take());
            let _ = guard.wait();
        }
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0)
}

fn run(command: &mut Command) -> String {
    // A server that goes on would keep a pipe open.
    let output = command.stdout(Stdio::piped()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
