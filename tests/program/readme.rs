//! What README.md says is so: its first command, its configuration, the files and the tests it names.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use jiff::SignedDuration;
use m365_audit::clock::SystemClock;
use m365_audit::config::Config;
use m365_audit::sim::{Delivered, GenerateSpec, Sim, SimConfig};
use serde_json::value::RawValue;

const README: &str = include_str!("../../README.md");
/// Where the promises stand, each with its tests.
const GUARANTEES: &str = include_str!("../../docs/guarantees.md");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_m365-audit")).args(args).env("NO_PROXY", "*").output().unwrap()
}

fn toml_block() -> &'static str {
    README.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("README.md shows a configuration")
}

#[test]
fn the_demo_loses_nothing_and_is_plain_when_it_is_not_on_a_terminal() {
    let output = run(&["demo", "--fast"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let last = text.trim_end().lines().last().unwrap();
    assert!(last.starts_with("lost        0 "), "{last}");
    let proof = text.trim_end().lines().rev().nth(1).unwrap();
    assert!(proof.starts_with("missing     0 "), "{proof}");
    assert!(README.contains("`lost        0`"));
    assert!(!text.contains('\u{1b}'), "no colours in a pipe");
    let delivered = text.lines().find_map(|line| line.strip_prefix("events      ")?.strip_suffix(" delivered"));
    let is_event = |line: &&str| line.as_bytes().get(10) == Some(&b'T') && line.starts_with("20");
    assert_eq!(text.lines().filter(is_event).count().to_string(), delivered.unwrap(), "one line an event: {text}");
}

#[test]
fn it_does_not_overstate_the_number_of_rules() {
    const RULES: &str = include_str!("../../docs/rules.md");
    let is_rule = |line: &&str| {
        let id = line.strip_prefix("| ").and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        id.as_bytes().get(2) == Some(&b'-') && id[..2].bytes().all(|b| b.is_ascii_uppercase())
    };
    let rules = RULES.lines().filter(is_rule).count();
    let said = README.split("There are over ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    let said: usize = said.parse().unwrap();
    assert!((said..said + 100).contains(&rules), "README.md says over {said}, there are {rules}");
}

#[test]
fn its_configuration_is_valid_and_the_only_warnings_are_of_its_place_holders() {
    let config = Config::parse(toml_block(), &|name| (name == "M365_CLIENT_SECRET").then(|| "x".repeat(40)));
    // But that the ids are place holders.
    let warnings: Vec<String> = config.unwrap().warnings().iter().map(|warning| warning.key.clone()).collect();
    assert_eq!(warnings, ["sources.contoso.tenant_id", "sources.contoso.client_id"]);
}

#[derive(serde::Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    raw: &'a RawValue,
}

fn delivered(path: &Path) -> Vec<Delivered> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| Delivered::from(serde_json::from_str::<Line>(line).unwrap().raw.get())).collect()
}

/// The configuration as printed, with a simulated tenant in the place of Microsoft's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_into_a_file_delivers_every_event_and_a_second_adds_nothing() {
    let service = SimConfig::default();
    let tenant = service.tenants[0].clone();
    let sim = Sim::start(service.clone(), SystemClock::new()).await.unwrap();
    let (from, to) = (sim.now() - SignedDuration::from_hours(20), sim.now());
    sim.generate(&tenant, GenerateSpec { late_rate: 0.0, ..GenerateSpec::new(100, 20, from, to) });

    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("audit.ndjson");
    let mut file: toml::Table = toml_block().parse().unwrap();
    file.insert("data_dir".into(), dir.path().join("data").to_str().unwrap().into());
    file.remove("metrics");
    file["sinks"]["file"]["path"] = out.to_str().unwrap().into();
    let source = file["sources"]["contoso"].as_table_mut().unwrap();
    for (key, value) in [
        ("tenant_id", tenant.as_str()),
        ("client_id", &service.client_id),
        ("client_secret", &service.client_secret),
        ("api_url", &sim.url()),
        ("authority_url", &sim.url()),
    ] {
        source.insert(key.into(), value.into());
    }
    source.insert("drop_routine".into(), false.into());
    source.insert("mask_detected_values".into(), false.into());
    let config = dir.path().join("agent.toml");
    fs::write(&config, file.to_string()).unwrap();

    let pass = || {
        let output = run(&["run", "--once", "-c", config.to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    pass();
    let comparison = sim.truth().compare(delivered(&out));
    assert!(comparison.is_clean() && comparison.delivered > 1_500, "{comparison}");
    let length = fs::metadata(&out).unwrap().len();
    pass();
    assert_eq!(fs::metadata(&out).unwrap().len(), length, "the second pass delivered something again");
}

#[test]
fn every_file_and_every_test_it_names_is_there() {
    for link in README.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        assert!(
            link.starts_with("http") || root().join(link.split('#').next().unwrap()).exists(),
            "README.md links to {link}, which is not there"
        );
    }
    let rows = GUARANTEES.lines().filter(|line| {
        line.starts_with("| ") && (line.contains("/tests/") || line.contains("`tests/") || line.contains("`src/"))
    });
    let mut count = 0;
    for row in rows {
        let shown_by = row.rsplit(" | ").next().unwrap();
        let (mut file, mut text) = ("", String::new());
        for name in shown_by.split('`').skip(1).step_by(2) {
            // A row may name tests of several files, each after its file.
            if name.ends_with(".rs") {
                file = name;
                text = fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
                continue;
            }
            assert!(text.contains(&format!("fn {name}(")), "{file} has no test `{name}`");
            count += 1;
        }
    }
    assert!(count >= 60, "the table of promises was not found");
}

/// The owner sets the address in Cargo.toml, and here.
#[test]
fn it_clones_from_where_the_package_says_the_repository_is() {
    let manifest: toml::Table = include_str!("../../Cargo.toml").parse().unwrap();
    let repository = manifest["workspace"]["package"]["repository"].as_str().unwrap();
    assert!(README.contains(&format!("\ngit clone {repository}\n")), "README.md does not clone {repository}");
    let rust = manifest["workspace"]["package"]["rust-version"].as_str().unwrap();
    assert!(README.contains(&format!("Rust {rust} ")), "README.md names another Rust than {rust}");
}

/// One screen. What is above the first command says what it does, what it promises and why.
#[test]
fn it_is_short_and_begins_with_what_it_is_a_picture_and_why() {
    let lines: Vec<&str> = README.lines().collect();
    assert!(lines.len() <= 80, "{} lines", lines.len());
    let at = |text: &str| lines.iter().position(|line| line.contains(text)).unwrap_or_else(|| panic!("{text}"));
    let order = [
        "Nothing is lost",
        "how.svg",
        "Why another",
        "## See it",
        "## Connect it",
        "## Where it goes",
        "## What a crash costs",
    ];
    assert!(order.is_sorted_by_key(|text| at(text)), "{order:?}");
}
