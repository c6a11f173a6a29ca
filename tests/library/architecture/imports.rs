//! Which file of a crate imports which: read from the code's own paths, tests and comments aside.
//!
//! A path counts for the file that defines what it names, and for every file whose `pub use` it passes on the way. It
//! makes no difference whether a path stands in a `use`, in the middle of a function or among the arguments of a macro.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Modules from the root of the crate down, and what is named in the last.
type Names = Vec<String>;

/// The files of a crate and what each imports.
pub struct Crate {
    /// By module path; the root's is empty.
    files: BTreeMap<Names, SourceFile>,
}

struct SourceFile {
    path: PathBuf,
    /// What it names, from the root down.
    paths: BTreeSet<Names>,
    /// What it offers under a name of its own: the name (`*`: all that is in there), and what it stands for.
    offers: Vec<(String, Names)>,
    /// Modules of its own that are there for tests alone.
    tests: Vec<Names>,
}

/// Where a path leads.
struct Found {
    /// The module that defines what it names.
    defined: Names,
    /// Modules whose `pub use` it passed.
    passed: Vec<Names>,
}

impl Crate {
    /// Reads the files below `folder`, whose root is `root` (`lib.rs`).
    pub fn read(folder: &Path, root: &str) -> Self {
        let mut files = BTreeMap::new();
        for path in super::files_in(folder.to_owned()) {
            let below = path.strip_prefix(folder).unwrap();
            let mut module: Names =
                below.with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()).collect();
            if module.last().is_some_and(|last| last == "mod") || below == Path::new(root) {
                module.pop();
            }
            // What belongs to a program stands above the library.
            if module.first().is_some_and(|first| first == "bin") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let tokens: TokenStream = text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let mut file =
                SourceFile { path: below.to_owned(), paths: BTreeSet::new(), offers: Vec::new(), tests: Vec::new() };
            read(tokens, &module, &mut file);
            files.insert(module, file);
        }
        for tests in files.values().flat_map(|file| file.tests.clone()).collect::<Vec<_>>() {
            files.remove(&tests);
        }
        let mut whole = Self { files };
        whole.name_in_full();
        whole
    }

    /// Paths that begin with the name of a child or of a module that was imported begin at the root afterwards.
    fn name_in_full(&mut self) {
        let modules: BTreeSet<Names> = self.files.keys().cloned().collect();
        for (module, file) in &mut self.files {
            let mut known: BTreeMap<String, Names> = BTreeMap::new();
            for path in file.paths.iter().filter(|path| modules.contains(*path)) {
                if let Some(name) = path.last() {
                    known.insert(name.clone(), path.clone());
                }
            }
            for child in modules.iter().filter(|child| child.len() == module.len() + 1 && child.starts_with(module)) {
                known.insert(child.last().unwrap().clone(), child.clone());
            }
            let full = |path: &Names| match path.split_first() {
                Some((first, rest)) if first == LOCAL => {
                    let (name, rest) = rest.split_first()?;
                    known.get(name).map(|path| [path.as_slice(), rest].concat())
                }
                _ => Some(path.clone()),
            };
            file.paths = file.paths.iter().filter_map(full).collect();
            file.offers = file.offers.iter().filter_map(|(name, path)| Some((name.clone(), full(path)?))).collect();
        }
    }

    fn find(&self, path: &[String]) -> Found {
        let mut at: Names = Vec::new();
        for (depth, name) in path.iter().enumerate() {
            let below = [at.as_slice(), std::slice::from_ref(name)].concat();
            if self.files.contains_key(&below) {
                at = below;
                continue;
            }
            let Some(file) = self.files.get(&at) else { break };
            let by_name = file.offers.iter().find(|(offered, _)| offered == name).map(|(_, target)| target.clone());
            let by_glob = || {
                let globs = file.offers.iter().filter(|(offered, _)| offered == "*");
                globs.map(|(_, target)| target).find(|target| self.defines(target, name)).map(|target| {
                    let mut path = target.clone();
                    path.push(name.clone());
                    path
                })
            };
            if let Some(target) = by_name.or_else(by_glob) {
                let mut found = self.find(&[target.as_slice(), &path[depth + 1..]].concat());
                found.passed.push(at);
                return found;
            }
            break;
        }
        Found { defined: at, passed: Vec::new() }
    }

    fn defines(&self, module: &Names, name: &str) -> bool {
        let Some(file) = self.files.get(module) else { return false };
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(&file.path));
        let kinds = ["struct", "enum", "trait", "fn", "const", "type", "static"];
        text.is_ok_and(|text| kinds.iter().any(|kind| text.contains(&format!("{kind} {name}"))))
    }

    /// File by file, whom each imports. A file that uses those below its own folder is not counted: it is their front.
    fn arrows(&self) -> BTreeMap<&Names, BTreeSet<&Names>> {
        let mut arrows = BTreeMap::new();
        for (module, file) in &self.files {
            let targets: &mut BTreeSet<&Names> = arrows.entry(module).or_default();
            for path in &file.paths {
                let found = self.find(path);
                for target in found.passed.iter().chain([&found.defined]) {
                    let (target, _) = self.files.get_key_value(target).unwrap();
                    if !target.starts_with(module) {
                        targets.insert(target);
                    }
                }
            }
        }
        arrows
    }

    /// The shortest way from a file back to itself, for each file that has one; each loop once, its files in order.
    pub fn loops(&self) -> Vec<String> {
        let arrows = self.arrows();
        let mut seen: BTreeSet<BTreeSet<&Names>> = BTreeSet::new();
        let mut loops = Vec::new();
        for start in arrows.keys().copied() {
            let Some(way) = way_back(&arrows, start) else { continue };
            if seen.insert(way.iter().copied().collect()) {
                let shown: Vec<String> = way.iter().chain([&start]).map(|module| self.shown(module)).collect();
                loops.push(shown.join(" -> "));
            }
        }
        loops
    }

    /// What files import through the front of their own folder although a file beside them defines it.
    pub fn detours(&self) -> Vec<String> {
        let mut detours = Vec::new();
        for (module, file) in &self.files {
            for path in &file.paths {
                let found = self.find(path);
                let front = found.passed.iter().find(|front| module.starts_with(front) && module != *front);
                if front.is_some_and(|front| found.defined.starts_with(front)) {
                    let (from, to) = (file.path.display(), self.shown(&found.defined));
                    detours.push(format!("{from} imports `{}`, which {to} defines", path.join("::")));
                }
            }
        }
        detours
    }

    fn shown(&self, module: &Names) -> String {
        self.files[module].path.display().to_string()
    }
}

fn way_back<'a>(arrows: &BTreeMap<&'a Names, BTreeSet<&'a Names>>, start: &'a Names) -> Option<Vec<&'a Names>> {
    let mut from: BTreeMap<&Names, &Names> = BTreeMap::new();
    let mut next = std::collections::VecDeque::from([start]);
    while let Some(at) = next.pop_front() {
        for target in &arrows[at] {
            if *target == start {
                let mut way = vec![at];
                while *way.last().unwrap() != start {
                    way.push(from[way.last().unwrap()]);
                }
                way.reverse();
                return Some(way);
            }
            if !from.contains_key(target) {
                from.insert(target, at);
                next.push_back(target);
            }
        }
    }
    None
}

/// Stands before a path that begins with a name of the file itself.
const LOCAL: &str = "(here)";

/// Collects the paths of a stream of tokens.
fn read(tokens: TokenStream, module: &Names, file: &mut SourceFile) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    let (mut public, mut using) = (false, false);
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Punct(punct) if punct.as_char() == '#' => {
                let attribute = tokens.get(at + 1).map(ToString::to_string).unwrap_or_default();
                at += 2;
                if attribute.replace(' ', "") == "[cfg(test)]" {
                    let begin = at;
                    at = end_of_item(&tokens, at);
                    if let [.., TokenTree::Ident(kind), TokenTree::Ident(name), TokenTree::Punct(_)] =
                        &tokens[begin..at]
                        && kind == "mod"
                    {
                        file.tests.push([module.as_slice(), &[name.to_string()]].concat());
                    }
                }
            }
            TokenTree::Punct(punct) if punct.as_char() == ':' && is_path_sign(&tokens, at) => {
                // A path that begins outside of the crate, or the rest of one that was read.
                at += 2;
                while matches!(tokens.get(at), Some(TokenTree::Ident(_))) {
                    at += 1;
                    if !is_path_sign(&tokens, at) {
                        break;
                    }
                    at += 2;
                }
            }
            TokenTree::Punct(punct) => {
                (public, using) = if punct.as_char() == ';' { (false, false) } else { (public, using) };
                at += 1;
            }
            TokenTree::Ident(ident) if ident == "pub" => {
                public = true;
                at += 1;
                // `pub(in crate::x)` imports nothing.
                at += usize::from(
                    matches!(tokens.get(at), Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Parenthesis),
                );
            }
            TokenTree::Ident(ident) if ident == "use" => {
                using = true;
                at += 1;
            }
            TokenTree::Ident(_) => {
                let mut paths = Vec::new();
                at = path(&tokens, at, &[], &mut paths);
                for (names, alias) in paths {
                    let Some(names) = from_the_root(names, module, using) else { continue };
                    if using && public {
                        let name = alias.or_else(|| names.last().cloned()).unwrap_or_default();
                        if name == "*" {
                            file.offers.push((name, names[..names.len() - 1].to_vec()));
                        } else {
                            file.offers.push((name, names.clone()));
                        }
                    }
                    file.paths.insert(names);
                }
                if !using {
                    public = false;
                }
            }
            TokenTree::Group(group) => {
                read(group.stream(), module, file);
                (public, using) = (false, false);
                at += 1;
            }
            TokenTree::Literal(_) => at += 1,
        }
    }
}

fn is_path_sign(tokens: &[TokenTree], at: usize) -> bool {
    let colon = |at: usize| matches!(tokens.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
    colon(at) && colon(at + 1)
}

/// Reads a path, or the tree of a `use`, from `at` on; where it ends.
fn path(tokens: &[TokenTree], mut at: usize, before: &[String], paths: &mut Vec<(Names, Option<String>)>) -> usize {
    let mut names = before.to_vec();
    loop {
        match tokens.get(at) {
            Some(TokenTree::Ident(ident)) => names.push(ident.to_string()),
            Some(TokenTree::Punct(punct)) if punct.as_char() == '*' => names.push("*".into()),
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                let mut inside = 0;
                while inside < inner.len() {
                    inside = path(&inner, inside, &names, paths).max(inside + 1);
                }
                return at + 1;
            }
            _ => break,
        }
        at += 1;
        if !is_path_sign(tokens, at) {
            break;
        }
        at += 2;
    }
    let mut alias = None;
    if matches!(tokens.get(at), Some(TokenTree::Ident(ident)) if ident == "as") {
        alias = tokens.get(at + 1).map(ToString::to_string);
        at += 2;
    }
    if names.len() > before.len() {
        paths.push((names, alias));
    }
    at
}

fn from_the_root(mut names: Names, module: &Names, using: bool) -> Option<Names> {
    if names.last().is_some_and(|last| last == "self") && names.len() > 1 {
        names.pop();
    }
    match names.first()?.as_str() {
        "crate" => Some(names.split_off(1)),
        "self" => Some([module.as_slice(), &names[1..]].concat()),
        "super" => {
            let up = names.iter().take_while(|name| *name == "super").count();
            let parent = module.get(..module.len().checked_sub(up)?)?;
            Some([parent, &names[up..]].concat())
        }
        _ if names.len() > 1 || using => Some([vec![LOCAL.to_owned()], names].concat()),
        _ => None,
    }
}

/// Behind the item that stands at `at`, with its attributes.
fn end_of_item(tokens: &[TokenTree], mut at: usize) -> usize {
    while let Some(token) = tokens.get(at) {
        at += 1;
        match token {
            TokenTree::Punct(punct) if punct.as_char() == ';' => break,
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => break,
            _ => {}
        }
    }
    at
}
