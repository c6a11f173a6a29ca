//! `tenants_dir`: a folder of files, each with sources or with tenants of a template. They are merged into the table of
//! the configuration before the checks, so that a tenant from a file is treated like one of the configuration.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::check::nearest;
use super::lines::parse_toml;
use super::origins::{Origins, TENANTS};
use super::problem::{Fault, Problem, join};
use super::text;
use super::variables::{self, Env};

/// The key of the folder.
const TENANTS_DIR: &str = "tenants_dir";
/// The extension of the files that are read.
const EXTENSION: &str = "toml";

/// The files of a configuration: as they are, or with planned changes to some of them.
#[derive(Debug, Default)]
pub struct ConfigFiles {
    /// The base of a relative `tenants_dir`: the folder of the configuration.
    base: PathBuf,
    /// Texts that replace files; `None`: as if the file did not exist.
    instead: BTreeMap<PathBuf, Option<String>>,
    /// Texts that are treated like files of the folder, by name: the rows of a cluster's table.
    stored: Vec<(PathBuf, String)>,
}

impl ConfigFiles {
    /// Those beside the configuration file `config`.
    pub fn beside(config: &Path) -> Self {
        Self { base: config.parent().unwrap_or(Path::new("")).to_owned(), instead: BTreeMap::new(), stored: Vec::new() }
    }

    /// Replaces a file's text; `None`: as if it did not exist.
    #[must_use]
    pub fn with(mut self, path: &Path, text: Option<String>) -> Self {
        self.instead.insert(path.to_owned(), text);
        self
    }

    /// Adds these texts to the folder's, by their names in problems.
    #[must_use]
    pub fn with_stored(mut self, stored: Vec<(PathBuf, String)>) -> Self {
        self.stored = stored;
        self
    }

    /// The text of a file.
    ///
    /// # Errors
    /// Why it cannot be read, in words.
    pub fn read(&self, path: &Path) -> Result<String, String> {
        match self.instead.get(path) {
            Some(Some(text)) => Ok(text.clone()),
            Some(None) => Err(io::Error::from(io::ErrorKind::NotFound).to_string()),
            None => {
                let bytes = fs::read(path).map_err(|error| error.to_string())?;
                Ok(text::decode(&bytes).map_err(|error| error.to_string())?.as_str().to_owned())
            }
        }
    }

    /// The folder to which `tenants_dir` resolves.
    pub fn resolve(&self, dir: &Path) -> PathBuf {
        self.base.join(dir)
    }

    /// The files of the folder that are read, in the order of their names: `*.toml`, hidden ones left out.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if is_read(&path) && self.instead.get(&path) != Some(&None) {
                paths.push(path);
            }
        }
        let new = self.instead.iter().filter(|(path, text)| text.is_some() && path.parent() == Some(dir));
        paths.extend(new.map(|(path, _)| path.clone()).filter(|path| is_read(path)));
        paths.sort();
        paths.dedup();
        Ok(paths)
    }
}

/// Whether a file of the folder is read, by its name.
fn is_read(path: &Path) -> bool {
    let is_hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !is_hidden && path.extension() == Some(OsStr::new(EXTENSION)) && !path.is_dir()
}

/// Tenants of a template that may be declared in another file.
struct TemplateTenants {
    template: String,
    file: usize,
    path: PathBuf,
    entries: Vec<Value>,
    lines: std::collections::HashMap<String, usize>,
}

/// Merges the folder's files into `root`, whose `tenants_dir` then has the folder's path. Returns the problems of the
/// files themselves; their keys are checked with all others.
pub(super) fn merge(root: &mut Table, origins: &mut Origins, env: Env<'_>, files: &ConfigFiles) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut texts: Vec<Text> = Vec::new();
    if let Some(dir) = folder_of(root, env) {
        match of_folder(&dir, root, origins, files) {
            Ok(found) => texts = found,
            Err(problem) => problems.push(*problem),
        }
    }
    texts.extend(files.stored.iter().map(|(name, text)| (name.clone(), Ok(text.clone()))));
    let mut pending: Vec<TemplateTenants> = Vec::new();
    for (path, text) in texts {
        let parsed = text.map_err(|why| vec![Problem::new("", Fault::Unreadable, why)]);
        let parsed = parsed.and_then(|text| parse_toml(text.strip_prefix('\u{feff}').unwrap_or(&text)));
        match parsed {
            Ok((table, lines)) => {
                let mut file = OneFile { number: origins.file(path.clone()), path, lines, problems: &mut problems };
                file.take(table, root, origins, &mut pending);
            }
            Err(found) => problems.extend(found.into_iter().map(|problem| problem.in_file(&path))),
        }
    }
    for entries in pending {
        add_tenants(entries, root, origins, &mut problems);
    }
    problems
}

/// The text of a file, or why it has none, with the file's path.
type Text = (PathBuf, Result<String, String>);

/// The texts of the folder's files, by their paths.
fn of_folder(dir: &Path, root: &mut Table, origins: &Origins, files: &ConfigFiles) -> Result<Vec<Text>, Box<Problem>> {
    let dir = files.resolve(dir);
    // A dollar in the folder's name is a dollar, so it is escaped: variables in this value are replaced once more.
    root.insert(TENANTS_DIR.to_owned(), Value::String(dir.display().to_string().replace('$', "$$")));
    match files.list(&dir) {
        Ok(paths) => Ok(paths.into_iter().map(|path| (path.clone(), files.read(&path))).collect()),
        Err(error) => {
            let expected = format!("a folder that can be read: {error}");
            let hint = "make it, empty: `m365-audit tenant add` puts files there. A relative path is relative to the folder \
                        of the configuration file";
            let shown = dir.display().to_string();
            let mut problem = Problem::new(TENANTS_DIR, Fault::Invalid, expected).value(shown).hint(hint);
            origins.place(&mut problem);
            Err(Box::new(problem))
        }
    }
}

/// The configured folder, with its variables replaced. A fault of its key is found with all other keys.
fn folder_of(root: &Table, env: Env<'_>) -> Option<PathBuf> {
    let mut alone = Table::new();
    alone.insert(TENANTS_DIR.to_owned(), root.get(TENANTS_DIR)?.clone());
    let (mut written, mut problems) = (BTreeMap::new(), Vec::new());
    variables::expand(&mut alone, "", env, &mut written, &mut problems);
    let dir = alone.get(TENANTS_DIR)?.as_str()?;
    (problems.is_empty() && !dir.is_empty()).then(|| PathBuf::from(dir))
}

/// A file of the folder that is TOML.
struct OneFile<'p> {
    path: PathBuf,
    number: usize,
    lines: std::collections::HashMap<String, usize>,
    problems: &'p mut Vec<Problem>,
}

impl OneFile<'_> {
    fn note(&mut self, key: &str, fault: Fault, expected: impl Into<String>) {
        let mut problem = Problem::new(key, fault, expected).in_file(&self.path);
        problem.line = self.lines.get(key).copied();
        self.problems.push(problem);
    }

    fn take(&mut self, table: Table, root: &mut Table, origins: &mut Origins, pending: &mut Vec<TemplateTenants>) {
        let expected = "`[sources.<name>]` or `[[sources.<name>.tenants]]`: the rest stands in the configuration file";
        if table.is_empty() {
            return; // All of it is commented out.
        }
        for (key, value) in table {
            match (key.as_str(), value) {
                ("sources", Value::Table(sources)) => {
                    for (name, source) in sources {
                        self.take_source(name, source, root, origins, pending);
                    }
                }
                ("sources", _) => self.note(&key, Fault::Invalid, "a table `[sources.<name>]`"),
                _ => self.note(&key, Fault::Unknown, expected),
            }
        }
    }

    fn take_source(
        &mut self,
        name: String,
        source: Value,
        root: &mut Table,
        origins: &mut Origins,
        pending: &mut Vec<TemplateTenants>,
    ) {
        let path = join("sources", &name);
        let Value::Table(mut source) = source else {
            return self.note(&path, Fault::Invalid, "a table `[sources.<name>]`");
        };
        // A value that is not a list stays, and is found with all other keys.
        let entries = match source.remove(TENANTS) {
            Some(Value::Array(entries)) => Some(entries),
            Some(other) => {
                source.insert(TENANTS.to_owned(), other);
                None
            }
            None => None,
        };
        if let Some(entries) = &entries
            && source.is_empty()
            && entries.is_empty()
        {
            self.note(&join(&path, TENANTS), Fault::Missing, format!("at least one table `[[{path}.tenants]]`"));
        }
        let is_declared = !source.is_empty() || entries.is_none();
        if is_declared && let Some(sources) = sources_of(root) {
            if sources.contains_key(&name) {
                let there = origins.words(&path);
                self.note(&path, Fault::Twice, format!("{there}, declares it, too"));
                return;
            }
            origins.source(self.number, &name, &self.lines);
            sources.insert(name.clone(), Value::Table(source));
        }
        if let Some(entries) = entries.filter(|entries| !entries.is_empty()) {
            let (path, lines) = (self.path.clone(), self.lines.clone());
            pending.push(TemplateTenants { template: name, file: self.number, path, entries, lines });
        }
    }
}

/// The table of all sources; `None` if the value is not a table, which is found with all other keys.
fn sources_of(root: &mut Table) -> Option<&mut Table> {
    root.entry("sources").or_insert_with(|| Value::Table(Table::new())).as_table_mut()
}

fn add_tenants(entries: TemplateTenants, root: &mut Table, origins: &mut Origins, problems: &mut Vec<Problem>) {
    let TemplateTenants { template, file, path, entries, lines } = entries;
    let Some(sources) = sources_of(root) else { return };
    let Some(source) = sources.get_mut(&template) else {
        let key = join("sources", &template);
        let expected = format!("`[{key}]`, the template of its tenants, in the configuration or in another file");
        let mut problem = Problem::new(&key, Fault::Undeclared, expected).in_file(&path);
        problem.line = lines.get(&key).copied();
        let known: Vec<&str> = sources.keys().map(String::as_str).collect();
        problem.hint = nearest(&template, &known).map(|near| format!("nearest source: `{near}`"));
        return problems.push(problem);
    };
    // Any other value is found with all other keys.
    let Some(source) = source.as_table_mut() else { return };
    let all = source.entry(TENANTS).or_insert_with(|| Value::Array(Vec::new()));
    let Some(all) = all.as_array_mut() else { return };
    origins.tenants(file, &template, all.len(), &lines);
    all.extend(entries);
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use crate::config::Config;

    const MAIN: &str = "tenants_dir = \"tenants.d\"\n[sources.customers]\ntype = \"m365_audit\"\n\
                        client_id = \"00000000-1111-2222-3333-555555555555\"\nclient_secret = \"x\"\n\
                        [sinks.out]\ntype = \"stdout\"\ninputs = [\"*\"]\n";

    fn tenant(name: &str, number: u32) -> String {
        format!(
            "[[sources.customers.tenants]]\nname = \"{name}\"\ntenant_id = \"00000000-1111-2222-3333-{number:012}\"\n"
        )
    }

    fn source(name: &str, number: u32) -> String {
        format!(
            "[sources.{name}]\ntype = \"m365_audit\"\ntenant_id = \"00000000-1111-2222-3333-{number:012}\"\n\
             client_id = \"00000000-1111-2222-3333-555555555555\"\nclient_secret = \"y\"\n"
        )
    }

    /// The configuration with these files beside it, or its problems, without the folder of the test.
    fn load(main: &str, files: &[(&str, &str)]) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("tenants.d");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(dir.path().join("agent.toml"), main).unwrap();
        for (name, text) in files {
            std::fs::write(folder.join(name), text).unwrap();
        }
        let loaded = Config::load(&dir.path().join("agent.toml"));
        loaded.map_err(|error| error.to_string().replace(&format!("{}/", dir.path().display()), "") + "\n")
    }

    fn check(main: &str, files: &[(&str, &str)], expected: Expect) {
        expected.assert_eq(&load(main, files).expect_err("there is a problem"));
    }

    #[test]
    fn what_stands_in_a_folder_is_as_if_it_stood_in_the_configuration() {
        let main = format!("{MAIN}{}", tenant("first", 1));
        let files = [
            ("b.toml", &*tenant("second", 2)),
            ("a.toml", &(tenant("third", 3) + &tenant("fourth", 4))),
            ("own.toml", &source("own", 5)),
            (
                "more.toml",
                &(source("others", 6).replace("tenant_id = \"00000000-1111-2222-3333-000000000006\"\n", "")
                    + &tenant("fifth", 7).replace("customers", "others")),
            ),
            ("comment.toml", "# nothing yet\n"),
            ("notes.txt", "not a configuration"),
            (".hidden.toml", "not TOML"),
            ("old.toml~", "not TOML"),
        ];
        let config = load(&main, &files).unwrap();
        let names: Vec<&str> = config.sources.keys().map(String::as_str).collect();
        let expected =
            ["customers.first", "customers.fourth", "customers.second", "customers.third", "others.fifth", "own"];
        assert_eq!(names, expected);
        let mut inputs = config.sinks["out"].inputs.clone();
        inputs.sort();
        assert_eq!(inputs, expected, "`*` is all of them, each once");
        assert!(config.tenants_dir.unwrap().ends_with("tenants.d"));
    }

    #[test]
    fn an_input_may_be_all_beside_names_and_templates() {
        for inputs in ["\"*\"", "\"customers\", \"*\"", "\"customers.a\", \"customers\""] {
            let main = MAIN.replace("\"*\"", inputs);
            let config = load(&main, &[("a.toml", &tenant("a", 1)), ("b.toml", &tenant("b", 2))]).unwrap();
            let mut read = config.sinks["out"].inputs.clone();
            read.sort();
            assert_eq!(read, ["customers.a", "customers.b"], "{inputs}");
        }
    }

    #[test]
    fn problems_name_the_file_the_line_and_the_key_as_they_stand_there() {
        check(
            MAIN,
            &[
                ("a.toml", &tenant("a", 1)),
                ("b.toml", &(tenant("b", 2) + "\n" + &tenant("c", 3) + "poll_interval = 60\n")),
                ("c.toml", &source("own", 4).replace("00000000-1111-2222-3333-000000000004", "contoso.com")),
                ("d.toml", "data_dir = \"/x\"\nsources = 3\n"),
                ("e.toml", "[sources.own2\n"),
            ],
            expect![[r#"
                config-invalid: `sources.customers.tenants[1].poll_interval` is not a known key, expected a key that docs/configuration.md lists (tenants.d/b.toml, line 8)
                  hint: nearest known key: `poll_interval_secs`; 4 more problems below
                `sources.own.tenant_id` is `contoso.com`, expected a GUID (tenants.d/c.toml, line 3)
                  hint: Entra admin centre > Overview > Tenant ID
                `data_dir` is not a known key, expected `[sources.<name>]` or `[[sources.<name>.tenants]]`: the rest stands in the configuration file (tenants.d/d.toml, line 1)
                `sources`: expected a table `[sources.<name>]` (tenants.d/d.toml, line 2)
                `sources.own2`: not TOML: unclosed table, expected `]` (tenants.d/e.toml, line 1)
                  hint: close the header with `]`: `[sources.own2]`
            "#]],
        );
    }

    #[test]
    fn what_two_files_declare_is_an_error_that_names_both() {
        check(
            MAIN,
            &[
                ("a.toml", &tenant("a", 1)),
                ("b.toml", &tenant("a", 2)),
                ("c.toml", &tenant("c", 1)),
                ("d.toml", &source("own", 5)),
                ("e.toml", &source("own", 6)),
                ("f.toml", &source("customers", 7)),
            ],
            expect![[r#"
                config-invalid: `sources.customers.tenants[0].name` is `a`, expected a name that no other tenant of this source has; the other one is in `tenants.d/a.toml`, line 1 (tenants.d/b.toml, line 2)
                  hint: 3 more problems below
                `sources.customers.tenants[0].tenant_id`: expected a tenant that `sources.customers.a` does not read; the other one is in `tenants.d/a.toml`, line 1 (tenants.d/c.toml, line 3)
                  hint: one source reads all `content_types` of a tenant; to feed two sinks, name it in the `inputs` of both
                `sources.own` is declared in two files: `tenants.d/d.toml`, line 1, declares it, too (tenants.d/e.toml, line 1)
                `sources.customers` is declared in two files: the configuration, line 2, declares it, too (tenants.d/f.toml, line 1)
            "#]],
        );
    }

    #[test]
    fn a_template_must_be_declared_and_the_folder_be_there() {
        check(
            MAIN,
            &[("a.toml", &tenant("a", 1).replace("customers", "custmers"))],
            expect![[r#"
            config-invalid: `sources.customers.tenant_id` is missing, expected a GUID (agent.toml, line 2)
              hint: Entra admin centre > Overview > Tenant ID; 1 more problem below
            `sources.custmers` is declared in no file, expected `[sources.custmers]`, the template of its tenants, in the configuration or in another file (tenants.d/a.toml, line 1)
              hint: nearest source: `customers`
        "#]],
        );
        check(
            &format!("{}{}", MAIN.replace("tenants.d", "nowhere"), tenant("a", 1)),
            &[],
            expect![[r#"
            config-invalid: `tenants_dir` is `nowhere`, expected a folder that can be read: No such file or directory (os error 2) (agent.toml, line 1)
              hint: make it, empty: `m365-audit tenant add` puts files there. A relative path is relative to the folder of the configuration file
        "#]],
        );
    }
}
