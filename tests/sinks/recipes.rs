//! The recipes of `docs/hosts/recipes.md`, as they stand there: our own blocks are read by the configuration, those of
//! Fluent Bit and rsyslog by these programs, where they are installed.

use std::fs;
use std::path::Path;
use std::process::Command;

use m365_audit::config::Config;

use test_support::program;

/// The blocks of one language, and the heading each stands under.
pub fn blocks(language: &str) -> Vec<(String, String)> {
    blocks_of("recipes.md", language)
}

/// The same, of another page of `docs/hosts/`. A heading is one of any depth.
pub fn blocks_of(page: &str, language: &str) -> Vec<(String, String)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/hosts").join(page);
    let page = fs::read_to_string(page).unwrap();
    let (mut blocks, mut heading, mut block) = (Vec::new(), String::new(), None::<String>);
    for line in page.lines() {
        match &mut block {
            None if line.starts_with("##") => line.trim_start_matches('#').trim().clone_into(&mut heading),
            None if line.strip_prefix("```") == Some(language) => block = Some(String::new()),
            None => {}
            Some(_) if line == "```" => blocks.extend(block.take().map(|block| (heading.clone(), block))),
            Some(block) => *block += &format!("{line}\n"),
        }
    }
    blocks
}

#[test]
fn every_destination_of_the_table_has_its_section_and_says_what_was_run() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/hosts/recipes.md");
    let page = fs::read_to_string(page).unwrap();
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| [")).collect();
    assert!(rows.len() >= 13, "{rows:#?}");
    for row in rows {
        let cells: Vec<&str> = row.split(" | ").collect();
        assert_eq!(cells.len(), 3, "{row}");
        let said = cells[2];
        assert!(said.contains("untested") || said.contains(|c: char| c.is_ascii_digit()), "{row}");
        let anchor = row.split_once("](#").and_then(|(_, rest)| rest.split_once(')'));
        if let Some((anchor, _)) = anchor {
            let has =
                |line: &str| line.strip_prefix("## ").is_some_and(|h| h.to_lowercase().replace(' ', "-") == anchor);
            assert!(page.lines().any(has), "no section {anchor}");
        }
    }
}

#[test]
fn every_sink_of_a_recipe_is_a_valid_one() {
    let sinks = blocks("toml");
    assert!(sinks.len() >= 2);
    for (heading, sink) in sinks {
        let text = format!(
            "data_dir = \"/var/lib/m365-audit\"\n[sources.contoso]\ntype = \"m365_audit\"\nclient_secret = \"x\"\n\
             client_id = \"x\"\ntenant_id = \"11111111-2222-3333-4444-555555555555\"\n{sink}"
        );
        Config::parse(&text, &|_| Some("x".to_owned())).unwrap_or_else(|error| panic!("{heading}: {error}"));
    }
}

#[test]
fn fluent_bit_knows_every_property_of_a_recipe() {
    let outputs = blocks("yaml");
    assert!(outputs.len() >= 6);
    let Some(program) = program("fluent-bit") else { return };
    let dir = tempfile::tempdir().unwrap();
    // Fluent Bit's look at a configuration crashes with this output in it (`cb_nats_exit` without a context); `nats.rs` runs
    // the recipe.
    for (heading, output) in outputs.into_iter().filter(|(heading, _)| heading != "NATS") {
        let indented: String = output.lines().map(|line| format!("    {line}\n")).collect();
        let file = dir.path().join("fluent-bit.yaml");
        let inputs = "pipeline:\n  inputs:\n    - name: dummy\n      tag: m365.audit\n  outputs:\n";
        fs::write(&file, format!("{inputs}{indented}")).unwrap();
        let secrets = ["DCR_CLIENT_SECRET", "SPLUNK_TOKEN", "EVENTHUBS_CONNECTION_STRING"].map(|name| (name, "x"));
        let output = Command::new(&program).arg("--dry-run").arg("-c").arg(&file).envs(secrets).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("configuration test is successful"), "{heading}: {said}");
    }
}

#[test]
fn rsyslog_reads_the_recipe_for_qradar() {
    let [(_, recipe)] = &blocks("text")[..] else { panic!("one block") };
    let Some(program) = program("rsyslog") else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rsyslog.conf");
    fs::write(&file, recipe.replace("/var/spool/rsyslog", dir.path().to_str().unwrap())).unwrap();
    let output = Command::new(program).args(["-N1", "-f"]).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !said.to_lowercase().contains("error"), "{said}");
}
