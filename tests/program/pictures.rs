//! What docs/how.md and the pictures of terminals in docs/images/ show of the program is what it prints: they are made
//! from real runs, and a stale one fails.

mod screen;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use jiff::SignedDuration;
use m365_audit::clock::SystemClock;
use m365_audit::config::SourceConfig;
use m365_audit::model::ContentType;
use m365_audit::plan;
use m365_audit::sim::{GenerateSpec, Sim, SimConfig, SubscriptionState};
use screen::Row;
use serde_json::Value;

/// For a slow machine; nothing waits for it where all is well.
const PATIENCE: Duration = Duration::from_secs(120);

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
        // Events, and what was listed: which of them are last, the order of the answers decides.
        if word == "listed" || word.len() > 10 && word.starts_with("20") {
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

/// The shape without what a duration is made of, nor how far a content type was read.
fn without_durations(shape: &str) -> String {
    let words: Vec<&str> = shape.split_whitespace().collect();
    let is_stream = ContentType::ALL.iter().any(|content_type| words.first() == Some(&content_type.as_str()));
    let kept = words.into_iter().take(if is_stream { 1 } else { usize::MAX });
    kept.filter(|word| !["0", "s", "min", "h", "d"].contains(word)).collect::<Vec<_>>().join(" ")
}

/// A picture, and what of it is the same in every run.
struct Picture<'a> {
    name: &'a str,
    title: &'a str,
    description: &'a str,
    command: &'a str,
    /// The rows from the one that begins so on; what stands above comes in another order each time.
    from: &'a str,
}

impl Picture<'_> {
    /// The shape of what is the same in every run, and the styles in it.
    fn same(&self, rows: &[Vec<(String, String)>]) -> Vec<(String, BTreeSet<String>)> {
        let begins = |row: &&Vec<(String, String)>| row[0].1.starts_with(self.from);
        let first = rows.iter().position(|row| begins(&row)).unwrap_or(rows.len());
        let same = rows[first..].iter().map(|row| {
            let text = row.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join(" ");
            (without_durations(&shape(&text)), row.iter().map(|(style, _)| style.clone()).collect())
        });
        same.collect()
    }

    /// Fails when the picture of `docs/images/` is not one of such a run; `run` is all that was on the screen, and `rows`
    /// the part to be shown.
    fn is_of(&self, run: &[Row], rows: &[Row]) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/images").join(self.name);
        let drawn = screen::svg(self.title, self.description, self.command, rows);
        let (frame, new) = screen::read(&drawn);
        assert!(!self.same(&new).is_empty(), "no row begins with `{}`\n{drawn}", self.from);
        let there = fs::read_to_string(&path).unwrap_or_default();
        let (old_frame, old) = screen::read(&there);
        let levels = ["critical", "high", "medium", "low", "info"];
        let of_levels = |words: BTreeSet<(String, String)>| -> BTreeSet<(String, String)> {
            words.into_iter().filter(|(_, text)| levels.contains(&text.as_str())).collect()
        };
        let old_levels = of_levels(old.iter().flatten().cloned().collect());
        if frame == old_frame
            && self.same(&new) == self.same(&old)
            && old_levels.is_subset(&of_levels(screen::styled(run)))
        {
            return;
        }
        if std::env::var_os("CI").is_none() {
            fs::write(&path, &drawn).unwrap();
        }
        panic!(
            "docs/images/{} shows something else than `{}` prints; `env -u CI cargo test --test program pictures::` draws it anew: look at it and commit it\n{drawn}",
            self.name, self.command
        );
    }
}

fn program(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
    command.args(args).current_dir(dir);
    command
}

#[test]
fn the_picture_of_demo_is_what_it_shows_on_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let rows = screen::screen(&mut program(dir.path(), &["demo", "--fast", "--events", "40"]), &[]);
    let picture = Picture {
        name: "demo.svg",
        title: "The end of m365-audit demo",
        description: "Events of the simulated tenant, a line each with its severity; then sums, none missing, none lost.",
        command: "m365-audit demo --fast --events 40",
        from: "events",
    };
    picture.is_of(&rows, &rows[rows.len() - 22..]);
}

/// Two tenants, of which one has another secret than the configuration says.
async fn two_tenants(dir: &Path) -> Sim {
    let tenants = ["1", "2"].map(|n| format!("00000000-0000-4000-8000-00000000000{n}").parse().unwrap());
    let service = SimConfig { tenants: tenants.to_vec(), ..SimConfig::default() };
    let sim = Sim::start(service.clone(), SystemClock::new()).await.unwrap();
    let (from, to) = (sim.now() - SignedDuration::from_hours(20), sim.now());
    let mut config = "data_dir = \"state\"\n".to_owned();
    for (tenant, name) in tenants.iter().zip(["contoso", "fabrikam"]) {
        sim.generate(tenant, GenerateSpec::new(10, 5, from, to));
        for content_type in ContentType::ALL {
            sim.set_subscription(tenant, content_type, SubscriptionState::Enabled);
        }
        let secret = if name == "fabrikam" { "not~the~secret" } else { &service.client_secret };
        config += &format!(
            "[sources.{name}]\ntype = \"m365_audit\"\ntenant_id = \"{tenant}\"\nclient_id = \"{}\"\nclient_secret = \"{secret}\"\n\
             api_url = \"{url}\"\nauthority_url = \"{url}\"\n",
            service.client_id,
            url = sim.url()
        );
    }
    config += "[sinks.file]\ntype = \"file\"\npath = \"audit.ndjson\"\ninputs = [\"*\"]\n";
    fs::write(dir.join("agent.toml"), config).unwrap();
    sim
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_picture_of_check_is_what_it_shows_on_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let sim = two_tenants(dir.path()).await;
    let mut check = program(dir.path(), &["check", "-c", "agent.toml"]);
    let rows = screen::screen(&mut check, &[(&sim.url(), "http://127.0.0.1:8080")]);
    let picture = Picture {
        name: "check.svg",
        title: "m365-audit check of two tenants",
        description: "One tenant fails: its secret is wrong, with the remedy. Then each step that was tried, tenant by tenant.",
        command: "m365-audit check -c agent.toml",
        from: "",
    };
    picture.is_of(&rows, &rows);
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_picture_of_status_is_what_it_shows_on_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let sim = two_tenants(dir.path()).await;
    let mut run = program(dir.path(), &["run", "-c", "agent.toml"]);
    let run = run.env("NO_PROXY", "*").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _running = Running(run.spawn().unwrap());
    let begun = Instant::now();
    loop {
        let json = program(dir.path(), &["status", "--json", "-c", "agent.toml"]).output().unwrap().stdout;
        let status: Value = serde_json::from_slice(&json).unwrap_or_default();
        let of = |name: &str| status["sources"].as_array()?.iter().find(|source| source["name"] == name);
        let read = |stream: &Value| !stream["complete_until"].is_null() && stream["pending"] == 0;
        let is_read =
            of("contoso").and_then(|source| source["streams"].as_array()).is_some_and(|all| all.iter().all(read));
        if is_read && of("fabrikam").is_some_and(|source| source["state"] == "failed") {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{status:#}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let mut status = program(dir.path(), &["status", "--once", "-c", "agent.toml"]);
    let rows = screen::screen(&mut status, &[(&sim.url(), "http://127.0.0.1:8080")]);
    let picture = Picture {
        name: "status.svg",
        title: "m365-audit status of two tenants",
        description: "A tenant has failed, its secret is wrong, with the remedy; another is healthy; then the sink and the last warnings.",
        command: "m365-audit status --once -c agent.toml",
        from: "",
    };
    picture.is_of(&rows, &rows);
}

/// Each is read by people who see no picture, and in the dark.
#[test]
fn each_picture_has_a_title_and_colours_for_light_and_dark() {
    for name in ["how.svg", "event.svg", "demo.svg", "check.svg", "status.svg"] {
        let picture = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/images").join(name)).unwrap();
        for needed in ["<title id=\"title\">", "<desc id=\"desc\">", "prefers-color-scheme: dark", "role=\"img\""] {
            assert!(picture.contains(needed), "{name}: {needed}");
        }
        assert!(!picture.contains("<script") && !picture.contains("http-equiv"), "{name}");
    }
}

/// What is drawn by hand says the numbers and names of the code.
#[test]
fn the_drawn_journey_of_an_event_has_the_spans_and_names_of_the_code() {
    let drawn = include_str!("../../docs/images/event.svg");
    let guid = "00000000-0000-4000-8000-000000000001";
    let table = format!("tenant_id = \"{guid}\"\nclient_id = \"{guid}\"\nclient_secret = \"s\"\n").parse().unwrap();
    let source =
        SourceConfig::parse_table("contoso", table, &|_| None).unwrap_or_else(|problems| panic!("{problems:?}"));
    assert_eq!(plan::HOURLY_REACH.as_hours(), 24);
    assert_eq!(plan::LISTABLE_SPAN.as_hours(), 7 * 24);
    for words in [
        format!("a window of at most {} hours", plan::WINDOW_SPAN_MAX.as_hours()),
        format!("the last {} hours are listed at each poll, a day each hour,", source.overlap_secs / 3600),
        "a week each day".to_owned(),
    ] {
        assert!(drawn.contains(&words), "docs/images/event.svg does not say `{words}`");
    }
}
