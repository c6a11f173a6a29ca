//! What `.ci/instructions` makes of counts and budgets. The counting itself is a gate of `.ci/run`.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::Path;
use std::process::Command;

const BUDGETS: &str = "# Instructions\n# toolchain: any\nparse\t1000\necs\t20000\n";

/// Whether it passes, and what it says.
fn compare(counts: &str, budgets: &str) -> (bool, String) {
    let dir = tempfile::tempdir().unwrap();
    let (counted, budgeted) = (dir.path().join("counts"), dir.path().join("budgets"));
    fs::write(&counted, counts).unwrap();
    fs::write(&budgeted, budgets).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/instructions");
    let output = Command::new(script).arg("--compare").args([counted, budgeted]).output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn up_to_five_percent_more_passes() {
    let (passes, said) = compare("parse\t1050\necs\t19100\n", BUDGETS);
    assert!(passes, "{said}");
    assert!(said.contains("+5.0 %") && said.contains("-4.5 %"), "{said}");
}

#[test]
fn over_five_percent_more_fails_and_names_the_piece_and_the_remedy() {
    let (passes, said) = compare("parse\t1051\necs\t20000\n", BUDGETS);
    assert!(!passes, "{said}");
    let parse = said.lines().find(|line| line.starts_with("parse ")).unwrap();
    let ecs = said.lines().find(|line| line.starts_with("ecs ")).unwrap();
    assert!(parse.ends_with("TOO MANY") && !ecs.contains("TOO MANY"), "{said}");
    assert!(said.contains(".ci/instructions --write"), "{said}");
}

#[test]
fn over_five_percent_less_passes_and_asks_for_a_lower_budget() {
    let (passes, said) = compare("parse\t900\necs\t20000\n", BUDGETS);
    assert!(passes, "{said}");
    assert!(said.contains("lower its budget"), "{said}");
}

#[test]
fn a_piece_without_a_budget_and_a_budget_without_a_piece_fail() {
    let (passes, said) = compare("parse\t1000\necs\t20000\nocsf\t7\n", BUDGETS);
    assert!(!passes && said.contains("NO BUDGET"), "{said}");
    let (passes, said) = compare("parse\t1000\n", BUDGETS);
    assert!(!passes && said.contains("NOT COUNTED"), "{said}");
}

#[test]
fn no_counts_at_all_fail() {
    let (passes, said) = compare("", BUDGETS);
    assert!(!passes, "{said}");
}

/// The budgets that are committed are of the pieces there are, each with a number.
#[test]
fn every_piece_has_a_budget() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let budgets = fs::read_to_string(root.join("benches/instructions.tsv")).unwrap();
    assert!(budgets.lines().any(|line| line.starts_with("# toolchain: rustc ")), "{budgets}");
    let budgeted: Vec<&str> = budgets
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (piece, count) = line.split_once('\t').unwrap();
            assert!(count.parse::<u64>().unwrap() > 0, "{line}");
            piece
        })
        .collect();
    let code = fs::read_to_string(root.join("benches/instructions.rs")).unwrap();
    let (_, table) = code.split_once("const PIECES: &[Step] = &[\n").unwrap();
    let (table, _) = table.split_once("];").unwrap();
    let pieces: Vec<&str> = table.lines().map(|line| line.split('"').nth(1).unwrap()).collect();
    assert_eq!(pieces, budgeted, "run .ci/instructions --write");
}

#[test]
fn the_plots_are_of_the_numbers_beside_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let Some(python) = test_support::program("python3") else { return };
    let output = Command::new(python).arg(root.join("benches/plots/draw.py")).arg("--check").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
