//! What docs/how.md shows of the program is what it prints: the page is made from real runs, and a stale one fails.

use std::fs;
use std::path::Path;
use std::process::Command;

use jiff::SignedDuration;
use m365_audit::clock::SystemClock;
use m365_audit::sim::{GenerateSpec, Sim, SimConfig};

fn printed(dir: &Path, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
    let output = command.args(args).current_dir(dir).env("NO_PROXY", "*").output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn shown(command: &str, text: &str) -> String {
    format!("```text\n$ {command}\n{}\n```\n", text.trim_end())
}

/// The text without what differs between two runs: numbers, times, ports, how many blanks stand before them.
fn shape(text: &str) -> String {
    let mut shape = String::new();
    for line in text.lines() {
        // Of an event and of a sum over events only the kind of line counts.
        let word = line.split_whitespace().next().unwrap_or_default();
        if word.len() > 10 && word.starts_with("20") {
            continue;
        }
        if ["severity", "category"].contains(&word) {
            shape.push_str(word);
        } else {
            let plain = line.replace(|c: char| c.is_ascii_digit(), "0");
            shape.push_str(&plain.split_whitespace().collect::<Vec<_>>().join(" "));
            while shape.contains("00") {
                shape = shape.replace("00", "0");
            }
        }
        shape.push('\n');
    }
    shape
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_what_demo_and_check_print() {
    let dir = tempfile::tempdir().unwrap();
    let demo = printed(dir.path(), &["demo", "--fast", "--events", "40"]);
    let lines: Vec<&str> = demo.trim_end().lines().collect();
    let sum = lines.iter().rposition(|line| line.is_empty()).unwrap();
    let demo = [&lines[sum - 3..sum], &lines[sum..]].concat().join("\n");

    let service = SimConfig::default();
    let sim = Sim::start(service.clone(), SystemClock::new()).await.unwrap();
    let (from, to) = (sim.now() - SignedDuration::from_hours(20), sim.now());
    sim.generate(&service.tenants[0], GenerateSpec::new(10, 5, from, to));
    let (tenant, url) = (&service.tenants[0], sim.url());
    let config = format!(
        "data_dir = \"state\"\n[sources.contoso]\ntype = \"m365_audit\"\ntenant_id = \"{tenant}\"\nclient_id = \"{}\"\nclient_secret = \"{}\"\n\
         api_url = \"{url}\"\nauthority_url = \"{url}\"\n[sinks.out]\ntype = \"stdout\"\ninputs = [\"contoso\"]\n",
        service.client_id, service.client_secret
    );
    fs::write(dir.path().join("agent.toml"), config).unwrap();
    let check = printed(dir.path(), &["check", "-c", "agent.toml"]).replace(&url, "http://127.0.0.1:8080");

    let seen = format!(
        "{}\n{}",
        shown("m365-audit demo --fast --events 40 | tail -n 12", &demo),
        shown("m365-audit check -c agent.toml", &check)
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/how.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once("<!-- ANCHOR: seen -->\n").unwrap();
    let (there, after) = rest.split_once("<!-- ANCHOR_END: seen -->").unwrap();
    if shape(there) != shape(&format!("\n{seen}\n")) {
        if std::env::var_os("CI").is_none() {
            let page = format!("{before}<!-- ANCHOR: seen -->\n\n{seen}\n<!-- ANCHOR_END: seen -->{after}");
            fs::write(&path, page).unwrap();
        }
        panic!(
            "docs/how.md shows something else than the program prints; without CI in the environment it is written anew: commit it\n{seen}"
        );
    }
}

/// Both pictures are read by people who see no picture, and in the dark.
#[test]
fn each_picture_has_a_title_and_colours_for_light_and_dark() {
    for name in ["how.svg", "event.svg"] {
        let picture = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/images").join(name)).unwrap();
        for needed in ["<title id=\"title\">", "<desc id=\"desc\">", "prefers-color-scheme: dark", "role=\"img\""] {
            assert!(picture.contains(needed), "{name}: {needed}");
        }
        assert!(!picture.contains("<script") && !picture.contains("http-equiv"), "{name}");
    }
}
