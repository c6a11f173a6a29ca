//! The modules depend on each other in the order src/lib.rs lists them, top on bottom. What stands in `plugins/` is above
//! them all.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

mod imports;

use imports::Crate;

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(path)
}

/// The modules in the order of the front page.
fn modules() -> Vec<String> {
    let text = fs::read_to_string(source("lib.rs")).unwrap();
    let names = text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    names.map(str::to_owned).collect()
}

/// The files of a module, without those that are tests alone.
fn files_of(module: &str) -> Vec<PathBuf> {
    let mut files = files_in(source(module));
    files.retain(|file| !file.ends_with("tests.rs"));
    files.extend(Some(source(&format!("{module}.rs"))).filter(|path| path.exists()));
    files
}

/// The folders of the plugins: packages of their own.
fn plugins() -> Vec<PathBuf> {
    let entries = fs::read_dir(source("../plugins")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_dir()).collect()
}

fn files_in(folder: PathBuf) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder];
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
    files
}

/// The modules that the code of a file names as `crate::…`; tests and comments aside.
fn uses(path: &Path) -> BTreeSet<String> {
    uses_after("crate::", path)
}

fn uses_after(root: &str, path: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let named = lines.flat_map(|line| line.split(root).skip(1));
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

/// Two files that import each other can only be read, tested and changed together.
#[test]
fn no_file_imports_itself_through_others() {
    let mut loops = Crate::read(&source(""), "lib.rs").loops();
    for plugin in plugins() {
        loops.extend(Crate::read(&plugin.join("src"), "lib.rs").loops());
    }
    assert!(loops.is_empty(), "{} loops:\n{}", loops.len(), loops.join("\n"));
}

/// A file's imports show whom it needs: through the `mod.rs` they would show the whole folder.
#[test]
fn no_file_takes_from_its_mod_rs_what_a_file_beside_it_defines() {
    let detours = Crate::read(&source(""), "lib.rs").detours();
    assert!(detours.is_empty(), "import from the file that defines it:\n{}", detours.join("\n"));
}

/// The code of a file: without the tests at its end.
fn code_of(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned()
}

/// The functions of a file and how many lines each has. What `rustfmt` has laid out begins and ends at one indentation.
fn functions_of(code: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let mut functions = Vec::new();
    for (begin, line) in lines.iter().enumerate() {
        let words = line.trim_start();
        let indent = &line[..line.len() - words.len()];
        let Some((before, name)) = words.split_once("fn ") else { continue };
        let qualifiers = ["pub", "pub(super)", "pub(crate)", "const", "async", "unsafe", "extern", "\"C\""];
        if !before.split_whitespace().all(|word| qualifiers.contains(&word)) {
            continue;
        }
        let end = lines[begin..]
            .iter()
            .position(|line| *line == format!("{indent}}}") || line.ends_with(';') && line.trim_start() == words);
        let name: String = name.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        functions.push((name, end.map_or(1, |end| end + 1)));
    }
    functions
}

/// Functions that may have more than [`LINES_PREFERRED`] lines: few, so that each has to be worth it.
const LONG_FUNCTIONS_MAX: usize = 6;
const LINES_PREFERRED: usize = 70;

#[test]
fn no_file_has_over_a_thousand_lines_no_function_over_a_hundred_and_six_at_most_over_seventy() {
    let mut files: Vec<PathBuf> = modules().iter().flat_map(|module| files_of(module)).collect();
    files.extend(plugins().into_iter().flat_map(|plugin| files_in(plugin.join("src"))));
    let mut counted = 0;
    let mut long = Vec::new();
    for file in files.iter().filter(|file| !file.ends_with("tests.rs")) {
        let code = code_of(file);
        let lines = code.lines().count();
        assert!(lines <= 1000, "{}: {lines} lines", file.display());
        for (name, lines) in functions_of(&code) {
            assert!(lines <= 100, "{}: `{name}` has {lines} lines", file.display());
            counted += 1;
            if lines > LINES_PREFERRED {
                long.push(format!("{}: `{name}` has {lines} lines", file.display()));
            }
        }
    }
    assert!(counted > 2000, "{counted} functions were found");
    assert!(long.len() <= LONG_FUNCTIONS_MAX, "{} are too many:\n{}", long.len(), long.join("\n"));
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
    let map = include_str!("../../ARCHITECTURE.md");
    for module in modules() {
        assert!(map.contains(&format!("\n| `{module}` |")), "ARCHITECTURE.md does not list `{module}`");
    }
}

/// The invariants' tests that the map names are there.
#[test]
fn every_test_the_map_names_is_there() {
    let map = include_str!("../../ARCHITECTURE.md");
    let mut count = 0;
    for row in map.lines().filter(|line| line.starts_with("| CK-")) {
        for shown_by in row.rsplit(" | ").next().unwrap().split("; ") {
            let mut names = shown_by.split('`').skip(1).step_by(2);
            let file = names.next().unwrap();
            let path = if file.starts_with("tests/") { source("..").join(file) } else { source(file) };
            let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            for name in names {
                assert!(text.contains(&format!("fn {name}(")), "{file} has no `{name}`");
                count += 1;
            }
        }
    }
    assert!(count >= 5, "the table of invariants was not found");
}

/// A plugin is loaded into an agent's process: nothing of the command line and nothing of the simulated tenant is for it,
/// and no two plugins share code.
#[test]
fn a_plugin_uses_the_library_below_the_command_line_and_no_other_plugin() {
    let plugins = plugins();
    assert!(plugins.iter().any(|plugin| plugin.ends_with("fluent-bit")));
    for plugin in plugins {
        let manifest = fs::read_to_string(plugin.join("Cargo.toml")).unwrap();
        let (dependencies, _) = manifest.split_once("[dev-dependencies]").unwrap();
        let library = dependencies.lines().find(|line| line.starts_with("m365-audit = ")).unwrap();
        let expected =
            r#"m365-audit = { path = "../..", default-features = false, features = ["embedded", "internals"] }"#;
        assert_eq!(library, expected);
        assert_eq!(dependencies.matches("path = ").count(), 1, "{}: a plugin beside the library", plugin.display());
        for file in files_in(plugin.join("src")) {
            let above: BTreeSet<String> = ["docs", "cli", "sim", "plugin"].map(str::to_owned).into();
            let used = uses_after("m365_audit::", &file);
            assert!(used.is_disjoint(&above), "{}: {used:?}", file.display());
        }
    }
}

/// An allocator is chosen for a whole program, so a library that others link leaves it to them; the command needs none.
#[test]
fn only_a_plugin_chooses_an_allocator() {
    for file in files_in(source("")) {
        let text = fs::read_to_string(&file).unwrap();
        assert!(!text.contains("global_allocator"), "{}", file.display());
    }
}

/// Files whose code, tests and comments aside, has one of these; as paths below src/.
fn files_with(signs: &[&str]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for module in modules() {
        for file in files_of(&module) {
            let text = fs::read_to_string(&file).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            let mut lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            if lines.any(|line| signs.iter().any(|sign| line.contains(sign))) {
                found.insert(file.strip_prefix(source("")).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found
}

/// The part of a path that is the module's name.
fn module_of(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap()
}

#[test]
fn only_the_clock_reads_the_time() {
    let readers = files_with(&["SystemTime::now(", "Instant::now(", "Timestamp::now(", "Zoned::now(", "Utc::now("]);
    let readers: BTreeSet<&str> = readers.iter().map(String::as_str).collect();
    assert_eq!(readers, BTreeSet::from(["clock.rs", "cli/logging.rs", "hosts/embedded/store/writer.rs"]));
}

#[test]
fn what_takes_over_the_process_stands_in_the_program_and_at_the_edge() {
    let not_in = |signs: &[&str], allowed: &[&str]| {
        let found = files_with(signs);
        let foreign: Vec<_> = found.iter().filter(|file| !allowed.contains(&module_of(file))).collect();
        assert!(foreign.is_empty(), "{signs:?}: {foreign:?}");
        found
    };
    not_in(&["runtime::Builder::new_", "Runtime::new()", "#[tokio::main"], &["cli"]);
    not_in(&["tokio::signal", "signal_hook", "set_global_default(", ".try_init()", ".init()"], &["cli"]);
    let recorders = not_in(&["set_global_recorder(", "install_recorder("], &["hosts"]);
    assert_eq!(recorders, BTreeSet::from(["hosts/embedded/recorder.rs".to_owned()]));
    let writing = ["fs::write(", "fs::rename(", "fs::remove_", "fs::create_dir", "File::create(", "OpenOptions::new()"];
    not_in(&writing, &["cli", "hosts"]);
}

#[test]
fn every_invariant_says_where_it_is_asserted_and_is_asserted_there() {
    let map = include_str!("../../ARCHITECTURE.md");
    let mut rows = 0;
    for row in map.lines().filter(|line| line.starts_with("| CK-")) {
        let cells: Vec<&str> = row.split(" | ").collect();
        let (name, asserted) = (cells[0].trim_start_matches("| "), cells[2].trim());
        assert!(!asserted.is_empty(), "{name} is asserted nowhere");
        let files: Vec<&str> = asserted.split('`').filter(|word| word.ends_with(".rs")).collect();
        assert!(!files.is_empty(), "{name}: {asserted} names no file");
        if asserted.contains("`debug_assert!`") {
            let stands = |file: &&str| fs::read_to_string(source(file)).unwrap().contains(&format!("\"{name}: "));
            assert!(files.iter().any(stands), "{name}: no assertion in {files:?}");
        }
        rows += 1;
    }
    assert!(rows >= 5, "{rows}");
}

/// `unsafe_code` is denied for every package; where it is allowed, and why, is written in one place.
#[test]
fn unsafe_code_stands_only_at_the_edge_of_the_plugin_and_before_one_hash() {
    let manifest = include_str!("../../Cargo.toml");
    assert!(manifest.contains("[workspace.lints.rust]\nunsafe_code = \"deny\"\n"));
    let mut manifests = vec![source("../Cargo.toml")];
    manifests.extend(plugins().iter().map(|plugin| plugin.join("Cargo.toml")));
    for path in manifests {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("[lints]\nworkspace = true\n"), "{}", path.display());
    }
    let mut exceptions = Vec::new();
    let files = modules().iter().flat_map(|module| files_of(module)).collect::<Vec<_>>();
    for file in files.into_iter().chain(plugins().into_iter().flat_map(|plugin| files_in(plugin.join("src")))) {
        let text = fs::read_to_string(&file).unwrap();
        for line in text.lines().filter(|line| line.contains("unsafe_code")) {
            assert!(line.contains("expect(unsafe_code, reason = "), "{}: {line}", file.display());
            exceptions.push(file.clone());
        }
    }
    let (edge, others): (Vec<_>, Vec<_>) =
        exceptions.iter().partition(|file| file.ends_with("plugins/fluent-bit/src/lib.rs"));
    assert_eq!(edge.len(), 3, "the host's tables, the exported functions and the allocator");
    let hash = others.iter().all(|file| file.ends_with("src/normalise/blake2b.rs"));
    assert!(hash && others.len() == 1, "what is compiled for AVX2 is called in one place: {others:?}");
}
