//! The image is built from packaging/container/Containerfile and the program runs in it as nobody, where a builder that
//! needs no daemon and no network is at hand (`buildah`, as root).
#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use m365_audit::clock::SystemClock;
use m365_audit::sim::{GenerateSpec, Sim, SimConfig};

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[track_caller]
fn done(output: Output) -> String {
    assert!(output.status.success(), "{}", told(&output));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn the_image_is_built_from_nothing_and_runs_as_nobody() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    // A storage of its own: nothing of the machine's images is seen or left behind.
    let Some(program) = test_support::program("buildah") else { return };
    let buildah = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.arg("--root").arg(dir.path().join("storage")).arg("--runroot").arg(dir.path().join("run"));
        command.args(["--storage-driver", "vfs"]).args(args).current_dir(dir.path()).output()
    };
    let output = buildah(&["from", "scratch"]).unwrap();
    if !output.status.success() {
        return test_support::skip("buildah", format_args!("it cannot work here: {}", told(&output)));
    }
    let rootfs = dir.path().join("rootfs");
    let laid = Command::new(root.join("packaging/container/rootfs"))
        .arg(env!("CARGO_BIN_EXE_m365-audit"))
        .arg(&rootfs)
        .output();
    done(laid.unwrap());
    // The stage that compiles is replaced: its image would have to be fetched.
    let context = format!("rootfs={}", rootfs.display());
    let file = root.join("packaging/container/Containerfile");
    let args = [
        "bud",
        "--quiet",
        "--isolation",
        "chroot",
        "--format",
        "docker",
        "--build-context",
        &context,
        "-t",
        "it",
        "-f",
    ];
    done(buildah(&[&args[..], &[file.to_str().unwrap(), rootfs.to_str().unwrap()]].concat()).unwrap());

    let image: serde_json::Value =
        serde_json::from_str(&done(buildah(&["inspect", "--type", "image", "it"]).unwrap())).unwrap();
    let config = &image["Docker"]["config"];
    assert_eq!(config["User"], "65532:65532", "{config}");
    assert_eq!(config["Healthcheck"]["Test"][1], "/usr/bin/m365-audit", "{config}");
    assert_eq!(config["Entrypoint"][0], "/usr/bin/m365-audit", "{config}");

    let container = done(buildah(&["from", "it"]).unwrap());
    let run = |args: &[&str]| {
        buildah(&[&["run", "--isolation", "chroot", &container, "--", "/usr/bin/m365-audit"], args].concat()).unwrap()
    };
    // A demo that loses an event ends with 70. Its output is not looked at: buildah may end before it has copied all.
    done(run(&["demo", "--fast"]));
    // Nobody listens: the health check says so, and not that it cannot be run.
    let health = run(&["health", "--listen", "127.0.0.1:9"]);
    assert_eq!(health.status.code(), Some(69), "{}", told(&health));
    assert!(!rootfs.join("bin/sh").exists());
}

/// The documented command.
fn docker_run() -> &'static str {
    const PAGE: &str = include_str!("../../docs/packages.md");
    PAGE.lines().find(|line| line.starts_with("docker run ")).expect("docs/packages.md has the command")
}

/// The `-v` of the documented command: what is mounted, and where.
fn mounts() -> Vec<(String, String)> {
    let words: Vec<&str> = docker_run().split(' ').collect();
    let mounted = words.windows(2).filter(|pair| pair[0] == "-v").map(|pair| pair[1]);
    mounted.map(|mount| mount.split_once(':').unwrap()).map(|(from, to)| (from.into(), to.into())).collect()
}

#[test]
fn the_documented_command_is_the_same_everywhere_and_fits_the_image() {
    const FILE: &str = include_str!("../../packaging/container/Containerfile");
    let written: String =
        FILE.lines().map_while(|line| line.strip_prefix('#')).map(|line| line.trim_end_matches('\\')).collect();
    let written = written.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(written.contains(docker_run()), "{written}");
    for (_, to) in mounts().iter().filter(|(_, to)| !to.ends_with(":ro")) {
        assert!(FILE.contains(&format!("\"{to}\"")), "{to} is no volume of the image");
    }
}

/// A container's process as far as a chroot can be one: the image's root read-only, the documented mounts, its user, and
/// of the environment what `-e` names.
struct Container {
    dir: tempfile::TempDir,
}

impl Container {
    /// `None` where this user may not mount.
    fn new(config: &str) -> Option<Self> {
        let may = Command::new("unshare").args(["--mount", "sh", "-c", "mount --bind /tmp /tmp"]).output();
        if !may.is_ok_and(|output| output.status.success()) {
            return None;
        }
        let container = Self { dir: tempfile::tempdir().unwrap() };
        // The folder of a test is its owner's alone.
        fs::set_permissions(container.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let laid = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/container/rootfs"))
            .arg(env!("CARGO_BIN_EXE_m365-audit"))
            .arg(container.at("root"))
            .output();
        done(laid.unwrap());
        fs::write(container.at("agent.toml"), config).unwrap();
        for (from, to) in mounts() {
            let inside = container.at(&format!("root{}", to.trim_end_matches(":ro")));
            if from.starts_with("./") {
                fs::write(inside, "").unwrap();
            } else {
                // A new volume begins as a copy of what the image has there, its owner included.
                assert!(inside.is_dir(), "the image has no {to}");
                let copied = Command::new("cp").arg("-a").arg(inside).arg(container.at(&from)).status();
                assert!(copied.unwrap().success());
            }
        }
        Some(container)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs the program in it, with the variable that the documented command hands on.
    fn command(&self, secret: Option<&str>, args: &[&str]) -> Command {
        let root = self.at("root").display().to_string();
        let mut script = format!("set -e\nmount --bind '{root}' '{root}'\n");
        for (from, to) in mounts() {
            let (to, read_only) = to.strip_suffix(":ro").map_or((to.as_str(), false), |to| (to, true));
            let from = self.at(from.trim_start_matches("./")).display().to_string();
            script += &format!("mount --bind '{from}' '{root}{to}'\n");
            if read_only {
                script += &format!("mount -o remount,ro,bind '{root}{to}'\n");
            }
        }
        script += &format!("mount -o remount,ro,bind '{root}'\nexec chroot --userspec=65532:65532 '{root}' \"$@\"\n");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script, "sh", "/usr/bin/m365-audit"]).args(args);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).stdin(Stdio::null());
        if let Some(secret) = secret.filter(|_| docker_run().contains(" -e M365_CLIENT_SECRET ")) {
            command.env("M365_CLIENT_SECRET", secret);
        }
        command
    }

    fn records(&self) -> usize {
        fs::read_to_string(self.at("m365-records/audit.ndjson")).map_or(0, |text| text.lines().count())
    }
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const RUN: [&str; 3] = ["run", "-c", "/etc/m365-audit/agent.toml"];
const HEALTH: [&str; 3] = ["health", "-c", "/etc/m365-audit/agent.toml"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_command_runs_the_configuration_of_the_readme_on_a_read_only_root() {
    const README: &str = include_str!("../../README.md");
    let printed = README.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let service = SimConfig::default();
    let tenant = service.tenants[0].clone();
    let sim = Sim::start(service.clone(), SystemClock::new()).await.unwrap();
    let (from, to) = (sim.now() - jiff::SignedDuration::from_hours(20), sim.now());
    sim.generate(&tenant, GenerateSpec { late_rate: 0.0, ..GenerateSpec::new(5, 20, from, to) });
    for with_metrics in [true, false] {
        let mut config: toml::Table = printed.parse().unwrap();
        let port = test_support::free_port();
        if with_metrics {
            // Ports are this machine's, not the container's.
            let listen = toml::Table::from_iter([("listen".into(), format!("127.0.0.1:{port}").into())]);
            config.insert("metrics".into(), listen.into());
        }
        let source = config["sources"]["contoso"].as_table_mut().unwrap();
        source.insert("tenant_id".into(), tenant.as_str().into());
        source.insert("client_id".into(), service.client_id.as_str().into());
        source.insert("api_url".into(), sim.url().into());
        source.insert("authority_url".into(), sim.url().into());
        source.insert("audience".into(), sim.url().into());
        let Some(container) = Container::new(&config.to_string()) else {
            return test_support::skip("mount", "not this user, or not by `unshare`");
        };
        let without = container.command(None, &RUN).output().unwrap();
        assert_eq!(without.status.code(), Some(78), "{}", told(&without));
        assert!(told(&without).contains("M365_CLIENT_SECRET"), "{}", told(&without));
        let nobody = container.command(Some(&service.client_secret), &HEALTH).output().unwrap();
        assert_eq!(nobody.status.code(), Some(69), "nobody runs: {}", told(&nobody));
        let log = fs::File::create(container.at("log")).unwrap();
        let running = container.command(Some(&service.client_secret), &RUN).stderr(log).spawn().unwrap();
        let mut running = Ended(running);
        let begun = Instant::now();
        let healthy = || {
            let health = container.command(Some(&service.client_secret), &HEALTH).output().unwrap();
            health.status.code() == Some(0) && told(&health).contains("\"healthy\"")
        };
        while container.records() < 50 || !healthy() {
            let log = fs::read_to_string(container.at("log")).unwrap();
            assert!(running.0.try_wait().unwrap().is_none(), "{log}");
            assert!(begun.elapsed() < Duration::from_secs(240), "{} records\n{log}", container.records());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let live = [&HEALTH[..], &["--live"]].concat();
        let live = container.command(Some(&service.client_secret), &live).output().unwrap();
        assert_eq!((live.status.code(), told(&live)), (Some(0), "live\n".to_owned()));
        drop(running);
        // Outside of a volume nothing can be written: the root is read-only.
        config["sinks"]["file"]["path"] = "/var/audit.ndjson".into();
        fs::write(container.at("agent.toml"), config.to_string()).unwrap();
        let elsewhere = container.command(Some(&service.client_secret), &RUN).output().unwrap();
        assert!(told(&elsewhere).contains("sink-file-not-writable"), "{}", told(&elsewhere));
    }
}
