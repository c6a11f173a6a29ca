//! The plugin beside Fluent Bit's own `exec` and `tail` inputs on the same events, and its curve over
//! `bytes_per_tick_max`. Needs a Fluent Bit in `FLUENT_BIT` or `PATH`:
//!
//! ```console
//! cargo build --release
//! FLUENT_BIT=/usr/bin/fluent-bit cargo bench --bench fluent_bit
//! ```
//!
//! Every input runs as the examples have it (not threaded, filesystem storage) into the `null` output, one after the
//! other, against one `m365-audit simulate`. The rate comes from Fluent Bit's own counter of the input's records: from
//! the start of its process to the last record. MB are of the records as JSON lines. Medians of three rounds
//! (`M365_BENCH_ROUNDS`) in which the inputs take turns; the curve is one run each, over the `exec` of those rounds.

#[cfg(target_os = "linux")]
fn main() {
    // `cargo test --all-targets` runs benches too, without this.
    if std::env::args().any(|argument| argument == "--bench") {
        linux::run();
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
mod linux {
    use std::fmt::Write as _;
    use std::fs;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use m365_audit::sim::SimConfig;

    /// Events of the tenant; `M365_BENCH_EVENTS` is another number.
    const EVENTS: usize = 200_000;
    const EVENTS_PER_BLOB: usize = 200;
    /// A slow input is stopped after this long, and its rate computed from its records until then.
    const TIME_MAX: Duration = Duration::from_secs(20);
    /// No record after this long is a failure.
    const START_MAX: Duration = Duration::from_secs(60);
    const SAMPLE_EVERY: Duration = Duration::from_millis(20);
    /// Clock ticks of `/proc/<pid>/stat`, the same on every Linux.
    const TICKS_PER_SEC: f64 = 100.0;

    struct Bench {
        fluent_bit: PathBuf,
        library: PathBuf,
        /// The program and the library: those of `cargo build --release`, or `M365_AUDIT` and `M365_AUDIT_PLUGIN`.
        program: PathBuf,
        url: String,
        config: SimConfig,
        dir: tempfile::TempDir,
        lines: f64,
        bytes: f64,
    }

    struct Outcome {
        events_per_sec: f64,
        /// Seconds of processor time: of the plugin's threads or children, and of all.
        cpu_ours: f64,
        cpu_all: f64,
        events: f64,
        memory_mib: f64,
    }

    pub fn run() {
        let named = std::env::var_os("FLUENT_BIT").map(PathBuf::from);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = named.into_iter().chain(std::env::split_paths(&path).map(|dir| dir.join("fluent-bit")));
        let Some(fluent_bit) = found.into_iter().find(|path| path.is_file()) else {
            println!("skipped: no Fluent Bit; name one in FLUENT_BIT or put it into PATH");
            return;
        };
        let built = |variable: &str, name: &str| {
            let executable = std::env::current_exe().unwrap();
            let path = executable.parent().and_then(Path::parent).unwrap().join(name);
            let path = std::env::var_os(variable).map_or(path, PathBuf::from);
            assert!(path.is_file(), "there is no {}: `cargo build --release` makes it", path.display());
            path
        };
        let (library, program) = (built("M365_AUDIT_PLUGIN", "libm365_audit.so"), built("M365_AUDIT", "m365-audit"));
        let config = SimConfig::default();
        let events = std::env::var("M365_BENCH_EVENTS").map_or(EVENTS, |text| text.parse().unwrap());
        let address = format!("127.0.0.1:{}", free_port());
        let url = format!("http://{address}");
        let mut command = Command::new(&program);
        command.args(["simulate", "--listen", &address, "--days", "1", "--page-size", "200", "--blobs"]);
        command.arg((events / EVENTS_PER_BLOB).to_string()).arg("--events-per-blob").arg(EVENTS_PER_BLOB.to_string());
        let _tenant = Agent(command.stderr(Stdio::null()).spawn().unwrap());
        let start = Instant::now();
        while TcpStream::connect(&address).is_err() {
            assert!(start.elapsed() < START_MAX, "the simulated tenant does not listen");
            std::thread::sleep(SAMPLE_EVERY);
        }
        let dir = tempfile::tempdir().unwrap();
        let mut bench = Bench { fluent_bit, library, program, url, config, dir, lines: 0.0, bytes: 0.0 };
        bench.write_records();
        println!("{}", bench.version());
        println!("{} records, {:.0} MB as JSON lines", bench.lines, bench.bytes / 1e6);
        bench.compare();
    }

    impl Bench {
        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn version(&self) -> String {
            let output = Command::new(&self.fluent_bit).arg("--version").output().unwrap();
            String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned()
        }

        /// The configuration of `m365-audit run` with a sink.
        fn agent_toml(&self, name: &str, sink: &str) -> PathBuf {
            let path = self.path(name);
            let SimConfig { client_id, client_secret, tenants, .. } = &self.config;
            let (url, tenant) = (&self.url, &tenants[0]);
            let state = self.path(&format!("{name}.state"));
            let _ = fs::remove_dir_all(&state);
            let text = format!(
                "data_dir = {state:?}\n[sources.s]\ntype = \"m365_audit\"\ntenant_id = \"{tenant}\"\n\
                 client_id = \"{client_id}\"\nclient_secret = \"{client_secret}\"\napi_url = \"{url}\"\n\
                 authority_url = \"{url}\"\nmax_requests_per_minute = 0\ndrop_routine = false\n\
                 [sinks.out]\ninputs = [\"s\"]\n{sink}\n"
            );
            fs::write(&path, text).unwrap();
            path
        }

        /// The records as a file, for `tail` and `cat`.
        fn write_records(&mut self) {
            let records = self.path("records.ndjson");
            let agent = self.agent_toml("file.toml", &format!("type = \"file\"\npath = {records:?}"));
            let status = Command::new(&self.program).args(["run", "--once", "-c"]).arg(agent).status().unwrap();
            assert!(status.success());
            let text = fs::read(&records).unwrap();
            self.lines = text.iter().filter(|byte| **byte == b'\n').count() as f64;
            self.bytes = text.len() as f64;
        }

        fn compare(&self) {
            let records = self.path("records.ndjson");
            let stdout = self.agent_toml("stdout.toml", "type = \"stdout\"");
            let run = format!("{} run --once -c {}", self.program.display(), stdout.display());
            let tail = format!(
                "name: tail\n      path: {}\n      read_from_head: on\n      parser: json\n      \
                 buffer_chunk_size: 1M\n      buffer_max_size: 8M",
                records.display()
            );
            let inputs = [
                ("`exec` of `m365-audit run`", exec(&run)),
                ("`exec` of `cat`", exec(&format!("cat {}", records.display()))),
                ("`tail`", tail),
                ("plugin, `threaded: off`", self.plugin(256, "off")),
                ("plugin, `threaded: on`", self.plugin(256, "on")),
            ];
            let rounds: Vec<Vec<Outcome>> =
                (0..rounds()).map(|_| inputs.iter().map(|(_, input)| self.measure(input)).collect()).collect();
            println!("\n| input | events/s | MB/s | of `exec` | CPU s per million events | of it ours | memory MiB |");
            println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
            for (n, (name, _)) in inputs.iter().enumerate() {
                let ratio = median(rounds.iter().map(|r| r[n].events_per_sec / r[0].events_per_sec));
                self.print_row(name, ratio, &rounds.iter().map(|round| &round[n]).collect::<Vec<_>>());
            }
            let exec = median(rounds.iter().map(|round| round[0].events_per_sec));
            for mib in [1, 4, 16, 64, 256] {
                let outcome = self.measure(&self.plugin(mib, "off"));
                let name = format!("plugin, `bytes_per_tick_max: {mib}M`");
                self.print_row(&name, outcome.events_per_sec / exec, &[&outcome]);
            }
        }

        fn print_row(&self, name: &str, of_exec: f64, outcomes: &[&Outcome]) {
            let of = |what: fn(&Outcome) -> f64| median(outcomes.iter().map(|outcome| what(outcome)));
            let rate = of(|outcome| outcome.events_per_sec);
            let megabytes = rate * self.bytes / self.lines / 1e6;
            let per_million = of(|outcome| outcome.cpu_all / outcome.events * 1e6);
            let ours = of(|outcome| outcome.cpu_ours / outcome.cpu_all * 100.0);
            let memory = of(|outcome| outcome.memory_mib);
            println!(
                "| {name} | {rate:.0} | {megabytes:.1} | {of_exec:.2} | {per_million:.1} | {ours:.0} % | {memory:.0} |"
            );
        }

        fn plugin(&self, mib: usize, threaded: &str) -> String {
            let SimConfig { client_id, client_secret, tenants, .. } = &self.config;
            let (state, url, tenant) = (self.path("state"), &self.url, &tenants[0]);
            format!(
                "name: m365_audit\n      data_dir: {}\n      tenant_id: {tenant}\n      client_id: {client_id}\n      \
                 client_secret: '{client_secret}'\n      api_url: {url}\n      authority_url: {url}\n      \
                 max_requests_per_minute: 0\n      drop_routine: off\n      bytes_per_tick_max: {mib}M\n      \
                 threaded: '{threaded}'",
                state.display()
            )
        }

        fn measure(&self, input: &str) -> Outcome {
            let at = self.dir.path().display();
            let port = free_port();
            // With the state of an earlier run there would be nothing to read.
            for left in ["storage", "state", "stdout.toml.state"] {
                let _ = fs::remove_dir_all(self.path(left));
            }
            fs::write(self.path("parsers.conf"), "[PARSER]\n    name json\n    format json\n").unwrap();
            let mut text = format!(
                "service:\n  flush: 1\n  grace: 1\n  log_level: warn\n  http_server: on\n  http_listen: 127.0.0.1\n  \
                 http_port: {port}\n  storage.path: {at}/storage\n  parsers_file: {at}/parsers.conf\n"
            );
            let _ = write!(text, "plugins:\n  - {}\npipeline:\n  inputs:\n", self.library.display());
            let _ = write!(text, "    - {input}\n      alias: it\n      tag: it\n      storage.type: filesystem\n");
            text += "  outputs:\n    - name: null\n      match: '*'\n";
            let config = self.path("agent.yaml");
            fs::write(&config, text).unwrap();
            let log = fs::File::create(self.path("log")).unwrap();
            let mut command = Command::new(&self.fluent_bit);
            command.arg("-c").arg(config).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
            let started = Instant::now();
            let mut agent = Agent(command.spawn().unwrap());
            let (took, events) = self.watch(&mut agent, started, port);
            let (cpu_ours, cpu_all) = agent.cpu();
            Outcome {
                events_per_sec: events / took.as_secs_f64(),
                cpu_ours,
                cpu_all,
                events,
                memory_mib: agent.memory_mib(),
            }
        }

        /// The time for all records, or those within [`TIME_MAX`], and their number.
        fn watch(&self, agent: &mut Agent, started: Instant, port: u16) -> (Duration, f64) {
            let mut last = (Duration::ZERO, 0.0);
            loop {
                std::thread::sleep(SAMPLE_EVERY);
                let log = || fs::read_to_string(self.path("log")).unwrap_or_default();
                assert!(agent.0.try_wait().unwrap().is_none() && started.elapsed() < START_MAX + TIME_MAX, "{}", log());
                let Some(records) = records(port) else { continue };
                let elapsed = started.elapsed();
                if records > last.1 {
                    last = (elapsed, records);
                }
                if last.1 >= self.lines || (elapsed > TIME_MAX && last.1 > 0.0) {
                    return last;
                }
            }
        }
    }

    struct Agent(Child);

    impl Agent {
        /// Seconds of the plugin's threads and children, and of all.
        fn cpu(&self) -> (f64, f64) {
            let process = Path::new("/proc").join(self.0.id().to_string());
            let children = stat(&process.join("stat"), 15) + stat(&process.join("stat"), 16);
            let (mut ours, mut all) = (children, children);
            for task in fs::read_dir(process.join("task")).unwrap().flatten() {
                let seconds = stat(&task.path().join("stat"), 13) + stat(&task.path().join("stat"), 14);
                all += seconds;
                let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
                if name.starts_with("m365-audit") {
                    ours += seconds;
                }
            }
            (ours, all)
        }

        fn memory_mib(&self) -> f64 {
            let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
        }
    }

    impl Drop for Agent {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// A field of a `stat` file, counted from 0 with the name as the second; in seconds.
    fn stat(path: &Path, field: usize) -> f64 {
        let text = fs::read_to_string(path).unwrap_or_default();
        let behind = text.rfind(") ").map_or("", |at| &text[at + 2..]);
        behind.split(' ').nth(field - 2).and_then(|text| text.parse::<f64>().ok()).unwrap_or_default() / TICKS_PER_SEC
    }

    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    /// `M365_BENCH_ROUNDS`, or three.
    fn rounds() -> usize {
        std::env::var("M365_BENCH_ROUNDS").map_or(3, |text| text.parse().unwrap())
    }

    fn median(values: impl Iterator<Item = f64>) -> f64 {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    }

    fn exec(command: &str) -> String {
        format!("name: exec\n      command: '{command}'\n      oneshot: true\n      buf_size: 8M\n      parser: json")
    }

    /// Fluent Bit's count for the input.
    fn records(port: u16) -> Option<f64> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        stream.write_all(b"GET /api/v2/metrics/prometheus HTTP/1.0\r\n\r\n").ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).ok()?;
        if !page.starts_with("HTTP/1.1 200") && !page.starts_with("HTTP/1.0 200") {
            return None;
        }
        let line = page.lines().find_map(|line| line.strip_prefix("fluentbit_input_records_total{name=\"it\"} "));
        line.map_or(Some(0.0), |number| number.parse().ok())
    }
}
