//! The image is built from packaging/container/Containerfile and the program runs in it as nobody, where a builder that
//! needs no daemon and no network is at hand (`buildah`, as root).
#![cfg(all(target_os = "linux", feature = "cli"))]

use std::path::Path;
use std::process::{Command, Output};

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
    let buildah = |args: &[&str]| {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(dir.path().join("storage")).arg("--runroot").arg(dir.path().join("run"));
        command.args(["--storage-driver", "vfs"]).args(args).current_dir(dir.path()).output()
    };
    match buildah(&["from", "scratch"]) {
        Err(_) => return println!("skipped: no buildah"),
        Ok(output) if !output.status.success() => {
            return println!("skipped: buildah cannot work here: {}", told(&output));
        }
        Ok(_) => {}
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
