//! The modules depend on each other in the order src/lib.rs lists them, top on bottom.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(path)
}

/// The modules in the order of the front page.
fn modules() -> Vec<String> {
    let text = fs::read_to_string(source("lib.rs")).unwrap();
    let names = text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    names.map(str::to_owned).collect()
}

fn files_of(module: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![source(module)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files.extend(Some(source(&format!("{module}.rs"))).filter(|path| path.exists()));
    files
}

/// The modules that the code of a file names as `crate::…`; tests and comments aside.
fn uses(path: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let named = lines.flat_map(|line| line.split("crate::").skip(1));
    let first = named.map(|rest| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect());
    // `use crate::{a, b}` would give an empty name and hide what it names.
    first
        .inspect(|name: &String| assert!(!name.is_empty(), "{}: name one module in each `use`", path.display()))
        .collect()
}

#[test]
fn each_module_uses_only_those_below_it() {
    let order = modules();
    assert!(order.len() > 15, "the list of src/lib.rs was not found");
    for (place, module) in order.iter().enumerate() {
        let files = files_of(module);
        assert!(!files.is_empty(), "{module} has no file");
        for file in files {
            for used in uses(&file) {
                let below = order.iter().position(|known| *known == used);
                let below = below.unwrap_or_else(|| panic!("{}: crate::{used} is no module", file.display()));
                assert!(below >= place, "{}: `{module}` may not use `{used}`, which stands above it", file.display());
            }
        }
    }
}

#[test]
fn the_simulated_tenant_shares_no_code_with_what_it_tests() {
    let allowed: BTreeSet<String> = ["sim", "clock", "model"].map(str::to_owned).into();
    for file in files_of("sim") {
        let foreign: Vec<_> = uses(&file).difference(&allowed).cloned().collect();
        assert!(foreign.is_empty(), "{}: {foreign:?}", file.display());
    }
}

#[test]
fn the_map_names_every_module() {
    let map = include_str!("../ARCHITECTURE.md");
    for module in modules() {
        assert!(map.contains(&format!("\n| `{module}` |")), "ARCHITECTURE.md does not list `{module}`");
    }
}

/// The invariants' tests that the map names are there.
#[test]
fn every_test_the_map_names_is_there() {
    let map = include_str!("../ARCHITECTURE.md");
    let mut count = 0;
    for row in map.lines().filter(|line| line.starts_with("| CK-")) {
        for shown_by in row.rsplit(" | ").next().unwrap().split("; ") {
            let mut names = shown_by.split('`').skip(1).step_by(2);
            let file = names.next().unwrap();
            let path = if file.starts_with("tests/") { source("..").join(file) } else { source(file) };
            let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            for name in names {
                assert!(text.contains(&format!("fn {name}(")), "{file} has no test `{name}`");
                count += 1;
            }
        }
    }
    assert!(count >= 5, "the table of invariants was not found");
}

/// `unsafe_code` is denied in Cargo.toml; where it is allowed, and why, is written in one place.
#[test]
fn unsafe_code_stands_only_at_the_edge_of_the_plugin() {
    let manifest = include_str!("../Cargo.toml");
    assert!(manifest.contains("[lints.rust]\nunsafe_code = \"deny\"\n"));
    let mut exceptions = Vec::new();
    for module in modules() {
        for file in files_of(&module) {
            let text = fs::read_to_string(&file).unwrap();
            for line in text.lines().filter(|line| line.contains("unsafe_code")) {
                assert!(line.contains("expect(unsafe_code, reason = "), "{}: {line}", file.display());
                exceptions.push(file.clone());
            }
        }
    }
    assert!(exceptions.iter().all(|file| file.ends_with("hosts/fluent_bit/mod.rs")), "{exceptions:?}");
    assert_eq!(exceptions.len(), 2, "the host's tables and the exported functions");
}
