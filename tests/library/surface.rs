//! What is public without the feature `internals`: the names at the root and in `values`, each with its members, held to
//! `tests/fixtures/public-surface.txt`. Whatever changes that file is a change for those who link the library.
//!
//! Read from the code: an item with `#[doc(hidden)]` is no part of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use expect_test::expect_file;
use quote::ToTokens;
use syn::{Attribute, File, ImplItem, Item, TraitItem, UseTree, Visibility};

/// The files of the library, by module path.
fn files() -> BTreeMap<Vec<String>, File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = BTreeMap::new();
    let mut folders: Vec<PathBuf> = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let below = path.strip_prefix(&root).unwrap().with_extension("");
                let mut module: Vec<String> = below.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
                if module.last().is_some_and(|last| last == "mod" || last == "lib") {
                    module.pop();
                }
                files.insert(module, syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap());
            }
        }
    }
    files
}

fn hidden(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| attribute.to_token_stream().to_string().contains("hidden"))
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// As `rustfmt` would nearly write it, on one line.
fn shown(tokens: impl ToTokens) -> String {
    let mut text = tokens.to_token_stream().to_string();
    for (from, to) in [
        (" :: ", "::"),
        (":: ", "::"),
        (" , ", ", "),
        (" ,", ","),
        (" : ", ": "),
        ("& ", "&"),
        (" < ", "<"),
        ("< ", "<"),
        (" >", ">"),
        (" (", "("),
        ("( ", "("),
        (" )", ")"),
        (" ;", ";"),
        (" [", "["),
        ("[ ", "["),
        (" ]", "]"),
        ("dyn(", "dyn ("),
        ("->(", "-> ("),
        (",)", ")"),
        ("- >", " ->"),
        (" <", "<"),
        ("=>", "= >"),
    ] {
        text = text.replace(from, to);
    }
    text
}

/// What a tree of `use` names: the path and the name it is known by.
fn named(tree: &UseTree, before: &[String], found: &mut Vec<(Vec<String>, String)>) {
    match tree {
        UseTree::Path(path) => {
            let before: Vec<String> = before.iter().cloned().chain([path.ident.to_string()]).collect();
            named(&path.tree, &before, found);
        }
        UseTree::Name(name) => found.push((before.to_vec(), name.ident.to_string())),
        UseTree::Rename(rename) => panic!("{} is renamed: give it one name", rename.ident),
        UseTree::Glob(_) => panic!("{before:?}::*: name what is public"),
        UseTree::Group(group) => group.items.iter().for_each(|tree| named(tree, before, found)),
    }
}

/// What the items of `lib.rs` export: paths in the crate or in another, and names.
fn exported(items: &[Item]) -> Vec<(Vec<String>, String)> {
    let mut found = Vec::new();
    for item in items {
        if let Item::Use(item) = item
            && is_public(&item.vis)
        {
            named(&item.tree, &[], &mut found);
        }
    }
    found.sort_by(|a, b| a.1.cmp(&b.1));
    found
}

fn is_named(item: &Item, name: &str) -> bool {
    match item {
        Item::Struct(item) => item.ident == name,
        Item::Enum(item) => item.ident == name,
        Item::Trait(item) => item.ident == name,
        _ => false,
    }
}

/// Where the item is defined: the path may lead through a `pub use`.
fn defined<'a>(files: &'a BTreeMap<Vec<String>, File>, path: &[String], name: &str) -> Option<(Vec<String>, &'a Item)> {
    let file = files.get(path)?;
    if let Some(item) = file.items.iter().find(|item| is_named(item, name)) {
        return Some((path.to_vec(), item));
    }
    let (inside, _) = exported(&file.items).into_iter().find(|(_, known)| known == name)?;
    let inside: Vec<String> = inside.into_iter().filter(|part| part != "self").collect();
    match inside.split_first() {
        Some((first, rest)) if first == "crate" => defined(files, rest, name),
        _ => defined(files, &[path, &inside].concat(), name),
    }
}

/// The lines of one name: what it is, and its members in order.
fn lines_of(files: &BTreeMap<Vec<String>, File>, path: &[String], name: &str, out: &mut String) {
    let inside = match path.split_first() {
        Some((first, rest)) if first == "crate" => rest,
        _ => {
            writeln!(out, "{name}  (of {})", path.join("::")).unwrap();
            return;
        }
    };
    let Some((module, item)) = defined(files, inside, name) else {
        writeln!(out, "{name}  (of {})", path.join("::")).unwrap();
        return;
    };
    let open = |attributes: &[Attribute]| match attributes.iter().any(|a| a.path().is_ident("non_exhaustive")) {
        true => " (non-exhaustive)",
        false => "",
    };
    let item_of = item;
    match item {
        Item::Struct(item) => {
            writeln!(out, "struct {name}{}{}", shown(&item.generics), open(&item.attrs)).unwrap();
            for field in item.fields.iter().filter(|field| is_public(&field.vis) && !hidden(&field.attrs)) {
                let ident = field.ident.as_ref().map_or_else(|| "0".to_owned(), ToString::to_string);
                writeln!(out, "    {ident}: {}", shown(&field.ty)).unwrap();
            }
        }
        Item::Enum(item) => {
            writeln!(out, "enum {name}{}", open(&item.attrs)).unwrap();
            for variant in item.variants.iter().filter(|variant| !hidden(&variant.attrs)) {
                let mut fields = variant.fields.clone();
                fields.iter_mut().for_each(|field| field.attrs.clear());
                writeln!(out, "    {}{}", variant.ident, shown(&fields)).unwrap();
            }
        }
        Item::Trait(item) => {
            writeln!(out, "trait {name}").unwrap();
            for member in &item.items {
                if let TraitItem::Fn(function) = member {
                    let provided = if function.default.is_some() { "  (provided)" } else { "" };
                    writeln!(out, "    {}{provided}", shown(&function.sig)).unwrap();
                }
            }
        }
        _ => unreachable!("only these are found"),
    }
    let mut functions: Vec<String> = Vec::new();
    // What has the same name elsewhere is something else.
    let is_near = |path: &[String], file: &File| {
        path.first() == module.first() && (path == module || !file.items.iter().any(|item| is_named(item, name)))
    };
    for item in files.iter().filter(|(path, file)| is_near(path, file)).flat_map(|(_, file)| &file.items) {
        let Item::Impl(block) = item else { continue };
        let of = block.self_ty.to_token_stream().to_string();
        if block.trait_.is_some()
            || matches!(item_of, Item::Trait(_))
            || hidden(&block.attrs)
            || of.split(['<', ' ']).next() != Some(name)
        {
            continue;
        }
        for member in &block.items {
            match member {
                ImplItem::Fn(function) if is_public(&function.vis) && !hidden(&function.attrs) => {
                    functions.push(shown(&function.sig));
                }
                ImplItem::Const(constant) if is_public(&constant.vis) => {
                    functions.push(format!("const {}: {}", constant.ident, shown(&constant.ty)));
                }
                _ => {}
            }
        }
    }
    functions.iter().for_each(|function| writeln!(out, "    {function}").unwrap());
}

#[test]
fn the_public_surface_is_the_one_that_is_written_down() {
    let files = files();
    let root = &files[&Vec::new()];
    let mut text =
        "What `m365_audit` promises without the feature `internals`. Written by `UPDATE_EXPECT=1 cargo test --test \
                    library surface::`.\n\n"
            .to_owned();
    for (path, name) in exported(&root.items) {
        lines_of(&files, &path, &name, &mut text);
    }
    let values = root.items.iter().find_map(|item| match item {
        Item::Mod(module) if module.ident == "values" => module.content.as_ref(),
        _ => None,
    });
    text.push_str("\nIn `values`\n\n");
    for (path, name) in exported(&values.unwrap().1) {
        lines_of(&files, &path, &name, &mut text);
    }
    expect_file!["../fixtures/public-surface.txt"].assert_eq(&text);
}

/// No module is public by itself.
#[test]
fn a_module_is_reachable_with_internals_alone() {
    for item in &files()[&Vec::new()].items {
        let Item::Mod(module) = item else { continue };
        if is_public(&module.vis) && module.ident != "values" {
            let condition: String =
                module.attrs.iter().map(|attribute| attribute.to_token_stream().to_string()).collect();
            let gated = condition.contains("\"internals\"") && !condition.contains("not") || module.ident == "cli";
            assert!(gated, "`{}` is public: {condition}", module.ident);
        }
    }
}

/// The first host of the front page is one: with its imports it has at most 40 lines of code.
#[test]
fn the_first_host_of_the_front_page_has_at_most_forty_lines() {
    let page = include_str!("../../src/lib.rs");
    let (_, host) = page.split_once("//!\n//! ```\n").unwrap();
    let (host, _) = host.split_once("//! ```\n").unwrap();
    let is_code = |line: &&str| !line.is_empty() && !line.starts_with('#') && !line.starts_with("//");
    let lines = host.lines().map(|line| line.trim_start_matches("//!").trim()).filter(is_code).count();
    assert!((20..=40).contains(&lines), "{lines} lines");
}

/// What `cargo package` packs beside src/.
#[test]
fn the_package_holds_what_is_built_and_read_and_no_more() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["package", "--list", "--allow-dirty", "--offline", "--quiet", "--package", "m365-audit"]);
    let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let list = String::from_utf8(output.stdout).unwrap();
    let (code, rest): (Vec<&str>, Vec<&str>) = list.lines().partition(|file| file.starts_with("src/"));
    assert!(code.len() > 250 && code.contains(&"src/severity/rules/dlp.toml"), "{} files of src", code.len());
    // The first is there when the package is made from a checkout.
    let rest: Vec<&str> = rest.into_iter().filter(|file| *file != ".cargo_vcs_info.json").collect();
    let expected = "CHANGELOG.md Cargo.lock Cargo.toml Cargo.toml.orig LICENSE README.md SECURITY.md examples/agent.toml \
                    examples/custom_host.rs examples/minimal.toml examples/state_on_disk.rs plugin.toml";
    assert_eq!(rest.join(" "), expected);
}
