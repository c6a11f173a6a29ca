//! Fluent Bit's configuration files, YAML and classic: their sections, and the place of each property.
//!
//! Reads what `flb_cf_yaml.c` and `flb_cf_fluentbit.c` of 5.1.1 read, as far as inputs, outputs, filters, the section
//! `service`, plugins, variables and included files go: names of sections in any case, `camelCase` properties of YAML
//! as `snake_case`, the first indentation of a classic file as the only one. Input that they refuse becomes a
//! [`Finding`]. It opens only the configuration, the files that this includes, and the files of variables (`file://`).

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput};

/// Files of one configuration, included ones among them.
const FILES_MAX: usize = 128;
/// The limit on nesting; no real configuration reaches it.
const DEPTH_MAX: usize = 64;

/// A configuration, with all it includes.
#[derive(Debug, Default)]
pub struct Configuration {
    /// `pipeline.inputs`, or `[INPUT]`.
    pub inputs: Vec<Section>,
    /// `pipeline.filters`, or `[FILTER]`.
    pub filters: Vec<Section>,
    /// `pipeline.outputs`, or `[OUTPUT]`.
    pub outputs: Vec<Section>,
    /// `service`, or `[SERVICE]`.
    pub service: Vec<Section>,
    /// Libraries named under `plugins`.
    pub plugins: Vec<(String, Place)>,
    /// Where a classic file has `[PLUGINS]`, which Fluent Bit reads in a file of its own only.
    pub plugins_sections: Vec<Place>,
    /// Input that Fluent Bit refuses.
    pub problems: Vec<Finding>,
    variables: BTreeMap<String, String>,
}

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file.
    pub file: Arc<Path>,
    /// The line, from 1.
    pub line: usize,
}

/// A finding for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Its place; `None`: it has none.
    pub place: Option<Place>,
    /// The finding.
    pub what: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Finding {
    /// A finding at a place.
    pub fn at(place: &Place, what: impl Into<String>) -> Self {
        Self { place: Some(place.clone()), what: what.into(), hint: None }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Finding {
    /// The finding and its place, without the hint.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(Place { file, line }) => write!(f, "{} ({}, line {line})", self.what, file.display()),
            None => f.write_str(&self.what),
        }
    }
}

/// A section with its properties.
#[derive(Debug)]
pub struct Section {
    /// Where it begins.
    pub place: Place,
    /// In the order of the file.
    pub properties: Vec<Property>,
}

/// One property as it is written.
#[derive(Debug)]
pub struct Property {
    /// Its name as it is written.
    pub written: String,
    /// Its name as Fluent Bit passes it on, lower case.
    pub name: String,
    /// Its value, variables not replaced.
    pub value: PropertyValue,
    /// Its place.
    pub place: Place,
}

/// The value of a property.
#[derive(Debug, PartialEq, Eq)]
pub enum PropertyValue {
    /// A text.
    Text(String),
    /// A list of texts (YAML).
    List(Vec<String>),
    /// Anything else (YAML).
    Nested,
}

impl Section {
    /// The text of a property as it is written; of a list the first.
    pub fn text(&self, name: &str) -> Option<&str> {
        let property = self.properties.iter().find(|property| property.name == name)?;
        match &property.value {
            PropertyValue::Text(text) => Some(text),
            PropertyValue::List(texts) => texts.first().map(String::as_str),
            PropertyValue::Nested => None,
        }
    }

    /// The place of a property, or of the section if it has no such property.
    pub fn place_of(&self, name: &str) -> &Place {
        self.properties.iter().find(|property| property.name == name).map_or(&self.place, |property| &property.place)
    }
}

/// A text with its variables replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// The text.
    pub text: String,
    /// It had variables.
    pub had_variables: bool,
    /// Names of those that are not set, which Fluent Bit treats as empty.
    pub unset: Vec<String>,
}

impl Configuration {
    /// Reads a file and all it includes; by its name it is YAML (`.yaml`, `.yml`) or classic.
    ///
    /// # Errors
    /// The file itself cannot be read.
    pub fn read(path: &Path) -> io::Result<Self> {
        let text = read_text(path)?;
        let is_yaml =
            path.extension().is_some_and(|end| end.eq_ignore_ascii_case("yaml") || end.eq_ignore_ascii_case("yml"));
        let mut reader = ConfigReader { root: folder_of(path), opened: HashSet::new(), configuration: Self::default() };
        reader.opened.insert(fs::canonicalize(path)?);
        if is_yaml {
            reader.yaml(path, &text);
        } else {
            reader.classic(path, &text);
        }
        Ok(reader.configuration)
    }

    /// Replaces `${NAME}` and `${NAME:-otherwise}` as Fluent Bit does: from the configuration, else from the
    /// environment.
    pub fn replace(&self, text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Replaced {
        let mut replaced = Replaced { text: String::new(), had_variables: false, unset: Vec::new() };
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            let Some((variable, after)) = after.split_once('}').filter(|(variable, _)| !variable.is_empty()) else {
                break;
            };
            replaced.text.push_str(before);
            replaced.had_variables = true;
            let (name, otherwise) =
                variable.split_once(":-").map_or((variable, None), |(name, word)| (name, Some(word)));
            let value =
                self.variables.get(name).cloned().or_else(|| environment(name)).filter(|value| !value.is_empty());
            match (value, otherwise) {
                (Some(value), _) => replaced.text.push_str(&value),
                (None, Some(word)) => replaced.text.push_str(word),
                (None, None) => replaced.unset.push(name.to_owned()),
            }
            rest = after;
        }
        replaced.text.push_str(rest);
        replaced
    }
}

struct ConfigReader {
    /// The folder of the first file.
    root: PathBuf,
    opened: HashSet<PathBuf>,
    configuration: Configuration,
}

impl ConfigReader {
    fn refuse(&mut self, place: &Place, what: impl Into<String>) {
        self.configuration.problems.push(Finding::at(place, what));
    }

    /// The files an instruction names: `*` stands for any part of a name. Those that cannot be read are problems.
    fn included(&mut self, place: &Place, named: &str, folders: &[&Path]) -> Vec<(PathBuf, String)> {
        let candidates = folders.iter().map(|folder| folder.join(named));
        let paths: Vec<PathBuf> = if named.contains('*') {
            let pattern = folders.last().map(|folder| folder.join(named)).unwrap_or_default();
            glob::glob(&pattern.to_string_lossy()).into_iter().flatten().flatten().collect()
        } else {
            candidates
                .clone()
                .find(|path| path.exists())
                .or_else(|| candidates.clone().next_back())
                .into_iter()
                .collect()
        };
        if paths.is_empty() {
            self.refuse(
                place,
                format!("no file is like `{named}`, which is to be included; Fluent Bit does not start"),
            );
        }
        let mut files = Vec::new();
        for path in paths {
            let known = fs::canonicalize(&path).is_ok_and(|path| !self.opened.insert(path));
            if known || self.opened.len() > FILES_MAX {
                let why = if known { "a second time" } else { "as one of too many files" };
                self.refuse(place, format!("`{}` is included {why}; Fluent Bit does not start", path.display()));
                continue;
            }
            match read_text(&path) {
                Ok(text) => files.push((path, text)),
                Err(error) => {
                    let what = format!("cannot open `{}`, which is to be included: {error}", path.display());
                    self.configuration
                        .problems
                        .push(Finding::at(place, what).hint("Fluent Bit does not start without it"));
                }
            }
        }
        files
    }

    /// Sets a variable; one that begins with `file://` is in a file.
    fn set(&mut self, place: &Place, name: &str, value: &str) {
        let value = match value.strip_prefix("file://") {
            None => value.to_owned(),
            Some(file) => match read_text(Path::new(file)) {
                Ok(text) => text.strip_suffix(['\n', '\r']).unwrap_or(&text).to_owned(),
                Err(error) => {
                    self.refuse(place, format!("cannot open the file of the variable `{name}`, `{file}`: {error}"));
                    return;
                }
            },
        };
        self.configuration.variables.insert(name.to_owned(), value);
    }

    // ------------------------------------------------------------------------------------------- classic

    fn classic(&mut self, path: &Path, text: &str) {
        let file: Arc<Path> = path.into();
        let mut indent: Option<String> = None;
        let mut section: Option<(String, Section)> = None;
        let mut in_group = false;
        for (number, line) in text.lines().enumerate() {
            let place = Place { file: file.clone(), line: number + 1 };
            let line = line.strip_suffix('\r').unwrap_or(line);
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(named) = line.get(..9).filter(|word| word.eq_ignore_ascii_case("@include ")).map(|_| &line[9..])
            {
                let root = self.root.clone();
                for (path, text) in self.included(&place, named, &[Path::new(""), &root]) {
                    self.classic(&path, &text);
                }
            } else if let Some(instruction) = line.strip_prefix('@') {
                let (command, rest) = instruction.split_once(' ').unwrap_or((instruction, ""));
                if let Some((name, value)) = rest.split_once('=').filter(|_| command.eq_ignore_ascii_case("set")) {
                    self.set(&place, name.trim(), value.trim());
                }
            } else if let Some(header) = line.strip_prefix('[') {
                self.end_section(section.take());
                in_group = false;
                match header.split_once(']') {
                    Some((name, _)) => {
                        section = Some((name.to_ascii_lowercase(), Section { place, properties: Vec::new() }));
                    }
                    None => self.refuse(&place, "a section without `]`; Fluent Bit does not start"),
                }
            } else {
                let blanks = line.len() - line.trim_start_matches([' ', '\t']).len();
                let (leading, rest) = line.split_at(blanks);
                let indent = indent.get_or_insert_with(|| leading.to_owned());
                let is_below = in_group && leading.starts_with(indent.as_str()) && leading.len() == 2 * indent.len();
                if leading.is_empty() || (leading != indent && !is_below) {
                    let what =
                        "indented by other blanks than the first property of this file; Fluent Bit does not start";
                    self.refuse(&place, what);
                } else if !is_below {
                    in_group = rest.starts_with('[');
                    if !in_group && !rest.starts_with('#') {
                        self.classic_property(place, rest, section.as_mut().map(|(_, section)| section));
                    }
                }
            }
        }
        self.end_section(section);
    }

    fn classic_property(&mut self, place: Place, text: &str, section: Option<&mut Section>) {
        let Some((name, value)) = text.split_once(' ') else {
            let what = format!("`{}` has no value, or no blank before it; Fluent Bit does not start", word_of(text));
            self.refuse(&place, what);
            return;
        };
        let Some(section) = section else {
            self.refuse(&place, format!("`{}` stands in no section; Fluent Bit does not start", word_of(name)));
            return;
        };
        let (written, name) = (name.trim().to_owned(), name.trim().to_ascii_lowercase());
        let value = PropertyValue::Text(value.trim().to_owned());
        section.properties.push(Property { written, name, value, place });
    }

    fn end_section(&mut self, section: Option<(String, Section)>) {
        let Some((name, section)) = section else { return };
        let configuration = &mut self.configuration;
        match name.as_str() {
            "input" => configuration.inputs.push(section),
            "filter" => configuration.filters.push(section),
            "output" => configuration.outputs.push(section),
            "service" => configuration.service.push(section),
            "plugins" => configuration.plugins_sections.push(section.place),
            _ => {}
        }
    }

    // ------------------------------------------------------------------------------------------- YAML

    fn yaml(&mut self, path: &Path, text: &str) {
        let file: Arc<Path> = path.into();
        let mut parser = Parser::new_from_str(text);
        let mut documents = Vec::new();
        loop {
            match parser.next_event() {
                None | Some(Ok((Event::StreamEnd, _))) => break,
                Some(Ok((Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing, _))) => {}
                Some(Ok((event, span))) => match node(&mut parser, event, span, 0) {
                    Ok(document) => documents.push(document),
                    Err((line, why)) => {
                        self.refuse(&Place { file, line }, format!("not YAML: {why}"));
                        return;
                    }
                },
                Some(Err(error)) => {
                    // The message alone, which quotes one letter at most: a line may hold a secret.
                    let line = error.marker().line();
                    self.refuse(&Place { file, line }, format!("not YAML: {}", error.info()));
                    return;
                }
            }
        }
        for document in documents {
            match document.kind {
                NodeKind::Map(sections) => sections.into_iter().for_each(|entry| self.yaml_section(path, &file, entry)),
                _ => self.refuse(
                    &Place { file: file.clone(), line: document.line },
                    "expected sections such as `pipeline:`",
                ),
            }
        }
    }

    fn yaml_pipeline(&mut self, file: &Arc<Path>, lists: Vec<YamlEntry>) {
        for (key, line, node) in lists {
            let place = Place { file: file.clone(), line };
            let sections = match node.kind {
                NodeKind::List(sections) => sections,
                NodeKind::Text(text) if text.is_empty() => continue,
                _ => {
                    self.refuse(&place, format!("`{key}`: expected a list, each item beginning with `- name:`"));
                    continue;
                }
            };
            for node in sections {
                let NodeKind::Map(entries) = node.kind else {
                    let place = Place { file: file.clone(), line: node.line };
                    self.refuse(&place, format!("`{key}`: expected properties such as `name: …`"));
                    continue;
                };
                let section = section(file, node.line, entries);
                match key.to_ascii_lowercase().as_str() {
                    "inputs" => self.configuration.inputs.push(section),
                    "filters" => self.configuration.filters.push(section),
                    "outputs" => self.configuration.outputs.push(section),
                    _ => {}
                }
            }
        }
    }

    fn yaml_section(&mut self, path: &Path, file: &Arc<Path>, (key, line, node): YamlEntry) {
        let place = Place { file: file.clone(), line };
        match (key.to_ascii_lowercase().as_str(), node.kind) {
            ("env", NodeKind::Map(variables)) => {
                for (name, line, node) in variables {
                    if let NodeKind::Text(value) = node.kind {
                        self.set(&Place { file: file.clone(), line }, &name, &value);
                    }
                }
            }
            ("env", NodeKind::List(variables)) => {
                for variable in variables {
                    let NodeKind::Map(entries) = variable.kind else { continue };
                    let text = |wanted: &str| {
                        entries.iter().find_map(|(key, _, node)| match &node.kind {
                            NodeKind::Text(text) if key == wanted => Some(text.clone()),
                            _ => None,
                        })
                    };
                    if let Some(name) = text("name") {
                        let value = text("uri").or_else(|| text("value")).unwrap_or_default();
                        self.set(&Place { file: file.clone(), line: variable.line }, &name, &value);
                    }
                }
            }
            ("includes", NodeKind::List(names)) => {
                let folder = folder_of(path);
                for name in names {
                    let NodeKind::Text(named) = name.kind else { continue };
                    let place = Place { file: file.clone(), line: name.line };
                    for (path, text) in self.included(&place, &named, &[&folder]) {
                        self.yaml(&path, &text);
                    }
                }
            }
            ("plugins", NodeKind::List(names)) => {
                for name in names {
                    if let NodeKind::Text(named) = name.kind {
                        self.configuration.plugins.push((named, Place { file: file.clone(), line: name.line }));
                    }
                }
            }
            ("service", NodeKind::Map(entries)) => self.configuration.service.push(section(file, line, entries)),
            ("pipeline", NodeKind::Map(lists)) => self.yaml_pipeline(file, lists),
            ("env" | "includes" | "plugins" | "service" | "pipeline", NodeKind::Text(text)) if text.is_empty() => {}
            (name @ ("env" | "includes" | "plugins" | "service" | "pipeline"), _) => {
                let expected = if matches!(name, "includes" | "plugins") { "a list" } else { "a table" };
                self.refuse(&place, format!("`{key}`: expected {expected}; Fluent Bit does not start"));
            }
            _ => {}
        }
    }
}

/// A key, its line, and its value.
type YamlEntry = (String, usize, YamlNode);

struct YamlNode {
    line: usize,
    kind: NodeKind,
}

enum NodeKind {
    Text(String),
    List(Vec<YamlNode>),
    Map(Vec<YamlEntry>),
}

type Events<'a> = Parser<'a, StrInput<'a>>;
/// A line, and why it is not YAML.
type YamlFault = (usize, String);

fn next<'a>(events: &mut Events<'a>, line: usize) -> Result<(Event<'a>, Span), YamlFault> {
    match events.next_event() {
        Some(Ok(next)) => Ok(next),
        Some(Err(error)) => Err((error.marker().line(), error.info().to_owned())),
        None => Err((line, "it ends too early".to_owned())),
    }
}

/// The node that begins with `event`.
fn node<'a>(events: &mut Events<'a>, event: Event<'a>, span: Span, depth: usize) -> Result<YamlNode, YamlFault> {
    let line = span.start.line();
    if depth > DEPTH_MAX {
        return Err((line, "nested too deep".to_owned()));
    }
    let kind = match event {
        Event::Scalar(text, style, ..) => {
            // The parser represents an absent value as `~`.
            let is_absent = style == ScalarStyle::Plain && span.start.index() == span.end.index();
            NodeKind::Text(if is_absent { String::new() } else { text.into_owned() })
        }
        Event::SequenceStart(..) => {
            let mut items = Vec::new();
            loop {
                let (event, span) = next(events, line)?;
                if matches!(event, Event::SequenceEnd) {
                    break NodeKind::List(items);
                }
                items.push(node(events, event, span, depth + 1)?);
            }
        }
        Event::MappingStart(..) => {
            let mut entries = Vec::new();
            loop {
                let (event, span) = next(events, line)?;
                if matches!(event, Event::MappingEnd) {
                    break NodeKind::Map(entries);
                }
                let key = node(events, event, span, depth + 1)?;
                let (event, span) = next(events, key.line)?;
                let value = node(events, event, span, depth + 1)?;
                let NodeKind::Text(name) = key.kind else { return Err((key.line, "a key is not a text".to_owned())) };
                entries.push((name, key.line, value));
            }
        }
        Event::Alias(_) => return Err((line, "Fluent Bit reads no aliases (`*name`)".to_owned())),
        _ => return Err((line, "a value is missing".to_owned())),
    };
    Ok(YamlNode { line, kind })
}

fn section(file: &Arc<Path>, line: usize, entries: Vec<YamlEntry>) -> Section {
    let property = |(written, line, node): YamlEntry| {
        let value = match node.kind {
            NodeKind::Text(text) => PropertyValue::Text(text.trim().to_owned()),
            NodeKind::List(items) => {
                let texts =
                    items.into_iter().map(|item| if let NodeKind::Text(text) = item.kind { Some(text) } else { None });
                texts.collect::<Option<Vec<String>>>().map_or(PropertyValue::Nested, PropertyValue::List)
            }
            NodeKind::Map(_) => PropertyValue::Nested,
        };
        Property { name: snake_case(&written), written, value, place: Place { file: file.clone(), line } }
    };
    let place = Place { file: file.clone(), line };
    Section { place, properties: entries.into_iter().map(property).collect() }
}

/// `flb_cf_key_translate`: a YAML key that begins with a small letter and has no underscore is taken for `camelCase`.
fn snake_case(written: &str) -> String {
    let written = written.trim();
    if !written.starts_with(|first: char| first.is_ascii_lowercase()) || written.contains('_') {
        return written.to_ascii_lowercase();
    }
    let mut name = String::with_capacity(written.len() + 4);
    for letter in written.chars() {
        if letter.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

/// The first word of a line, as far as it can be a name: the rest may be a secret.
fn word_of(text: &str) -> &str {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))).unwrap_or(text.len());
    &text[..text.floor_char_boundary(end.min(60))]
}

fn folder_of(path: &Path) -> PathBuf {
    path.parent().map(Path::to_owned).unwrap_or_default()
}

fn read_text(path: &Path) -> io::Result<String> {
    let bytes = fs::read(path)?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `files`, the first of them with what it includes.
    fn read(files: &[(&str, &str)]) -> Configuration {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Configuration::read(&dir.path().join(files[0].0)).unwrap()
    }

    fn problems(configuration: &Configuration) -> Vec<(usize, String)> {
        let problem = |problem: &Finding| (problem.place.as_ref().unwrap().line, problem.what.clone());
        configuration.problems.iter().map(problem).collect()
    }

    fn properties(section: &Section) -> Vec<(&str, &PropertyValue, usize)> {
        section.properties.iter().map(|p| (p.name.as_str(), &p.value, p.place.line)).collect()
    }

    fn text(text: &str) -> PropertyValue {
        PropertyValue::Text(text.to_owned())
    }

    #[test]
    fn both_formats_give_the_same_sections() {
        let yaml = read(&[(
            "a.yaml",
            "env:\n  T: abc\nservice:\n  flush: 1 # a second\n  storage.path: /x\nplugins:\n  - /lib/m365_audit.so\n\
             pipeline:\n  inputs:\n    - name: m365_audit\n      tenantId: ${T}\n      empty:\n      client_secret: 'a # b'\n\
             \x20   - {name: tail, path: /y}\n  filters: [{name: grep}]\n  outputs:\n    - Name: stdout\n      match: '*'\n",
        )]);
        let classic = read(&[(
            "a.conf",
            "@SET T=abc\n[SERVICE]\n    Flush 1\n    storage.path /x\n# a comment\n[Input]\n    name m365_audit\n\
             \x20   Tenant_Id ${T}\n    # another\n    client_secret  a # b\n[INPUT]\n    name tail\n    path /y\n[FILTER]\n\
             \x20   name grep\n[output]\n    Name stdout\n    match *\n",
        )]);
        for configuration in [&yaml, &classic] {
            assert_eq!(problems(configuration), []);
            let counts = (configuration.inputs.len(), configuration.filters.len(), configuration.outputs.len());
            assert_eq!((counts, configuration.service[0].text("storage.path")), ((2, 1, 1), Some("/x")));
            let ours = &configuration.inputs[0];
            assert_eq!((ours.text("name"), ours.text("client_secret")), (Some("m365_audit"), Some("a # b")));
            let tenant = configuration.replace(ours.text("tenant_id").unwrap(), &|_| None);
            assert_eq!((tenant.text.as_str(), tenant.had_variables), ("abc", true));
            assert_eq!(configuration.outputs[0].text("match"), Some("*"));
        }
        assert_eq!(yaml.plugins[0].0, "/lib/m365_audit.so");
        let (m365, tenant, empty) = (text("m365_audit"), text("${T}"), text(""));
        let secret = text("a # b");
        let expected = vec![
            ("name", &m365, 10),
            ("tenant_id", &tenant, 11),
            ("empty", &empty, 12),
            ("client_secret", &secret, 13),
        ];
        assert_eq!(properties(&yaml.inputs[0]), expected);
        assert_eq!(classic.inputs[0].place_of("tenant_id").line, 8);
    }

    #[test]
    fn lists_and_nested_values_are_told_from_texts() {
        let yaml = read(&[(
            "a.yml",
            "pipeline:\n  inputs:\n  - name: x\n    one: [a, b]\n    two:\n      - c\n    processors:\n      logs:\n        - name: grep\n    deep: [[a]]\n",
        )]);
        let values: Vec<&PropertyValue> = yaml.inputs[0].properties.iter().map(|property| &property.value).collect();
        let list = |texts: &[&str]| PropertyValue::List(texts.iter().map(|text| (*text).to_owned()).collect());
        let expected = [text("x"), list(&["a", "b"]), list(&["c"]), PropertyValue::Nested, PropertyValue::Nested];
        assert_eq!(values, expected.iter().collect::<Vec<_>>());
    }

    #[test]
    fn included_files_are_read_from_where_fluent_bit_looks() {
        let yaml = read(&[
            ("main.yaml", "includes:\n  - parts/*.yaml\n  - other.yaml\npipeline: {}\n"),
            ("parts/a.yaml", "pipeline: {inputs: [{name: a}]}\n"),
            ("parts/b.yaml", "includes: [c.yaml]\npipeline: {outputs: [{name: b}]}\n"),
            ("parts/c.yaml", "env: [{name: FROM_C, value: seen}]\n"),
            ("other.yaml", "pipeline: {filters: [{name: f}]}\n"),
        ]);
        // `parts/*.yaml` finds `c.yaml` by itself, too.
        assert_eq!((yaml.inputs.len(), yaml.outputs.len(), yaml.filters.len()), (1, 1, 1));
        assert_eq!(yaml.replace("${FROM_C}", &|_| None).text, "seen");
        let classic = read(&[
            ("main.conf", "@INCLUDE parts/a.conf\n@include out*.conf\n"),
            ("parts/a.conf", "[INPUT]\n  name a\n@INCLUDE parts/b.conf\n"),
            ("parts/b.conf", "[FILTER]\n  name b\n"),
            ("output.conf", "[OUTPUT]\n  name b\n"),
        ]);
        assert_eq!(problems(&classic), []);
        assert_eq!((classic.inputs.len(), classic.outputs.len(), classic.filters.len()), (1, 1, 1));
    }

    #[test]
    fn what_fluent_bit_does_not_start_with_is_told_with_its_line_and_without_its_text() {
        for (name, written, line, part) in [
            ("a.conf", "[INPUT]\n    name a\n  client_secret s3cr3t\n", 3, "indented by other blanks"),
            ("a.conf", "[INPUT]\nclient_secret s3cr3t\n", 2, "indented by other blanks"),
            ("a.conf", "[INPUT]\n    client_secret=s3cr3t\n", 2, "`client_secret` has no value"),
            ("a.conf", "[INPUT]\n    name\ts3cr3t\n", 2, "`name` has no value"),
            ("a.conf", "    client_secret s3cr3t\n", 1, "stands in no section"),
            ("a.conf", "[INPUT\n", 1, "without `]`"),
            ("a.conf", "\n@INCLUDE not-there.conf\n", 2, "cannot open"),
            ("a.conf", "@INCLUDE no*.conf\n", 1, "no file is like `no*.conf`"),
            ("a.conf", "@INCLUDE a.conf\n", 1, "a second time"),
            ("a.conf", "@SET A=file:///not/there\n", 1, "cannot open the file of the variable `A`"),
            ("a.yaml", "pipeline:\n  inputs:\n    - name: a\n     client_secret: s3cr3t\n", 4, "not YAML"),
            ("a.yaml", "pipeline:\n  inputs: [\n", 3, "not YAML"),
            ("a.yaml", "pipeline:\n  inputs:\n    name: a\n", 2, "`inputs`: expected a list"),
            ("a.yaml", "pipeline:\n  - name: a\n", 1, "`pipeline`: expected a table"),
            ("a.yaml", "includes:\n  - not-there.yaml\n", 2, "cannot open"),
            ("a.yaml", "a: &b 1\npipeline: *b\n", 2, "aliases"),
            ("a.yaml", "- name: a\n", 1, "expected sections"),
        ] {
            let found = problems(&read(&[(name, written)]));
            assert!(found.len() == 1 && found[0].0 == line && found[0].1.contains(part), "{written}: {found:?}");
            assert!(!found[0].1.contains("s3cr3t"), "{found:?}");
        }
        let deep = format!("a: {}1{}\n", "[".repeat(200), "]".repeat(200));
        assert!(problems(&read(&[("a.yaml", &deep)]))[0].1.contains("nested too deep"));
    }

    #[test]
    fn variables_come_from_the_configuration_then_the_environment_and_may_have_a_default() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        fs::write(&file, "from a file\n").unwrap();
        let yaml = format!("env:\n  - name: F\n    uri: file://{}\n  - {{name: G, value: g}}\n", file.display());
        let configuration = read(&[("a.yaml", &yaml)]);
        let environment = |name: &str| match name {
            "G" => Some("another".to_owned()),
            "E" => Some("from outside".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (written, expected, unset) in [
            ("${F}", "from a file", &[][..]),
            ("a${G}b${E}c", "agbfrom outsidec", &[]),
            ("${NONE:-x}${EMPTY:-y}${G:-z}", "xyg", &[]),
            ("a${NONE}b", "ab", &["NONE"]),
            ("pa$$w${", "pa$$w${", &[]),
            ("${}", "${}", &[]),
        ] {
            let replaced = configuration.replace(written, &environment);
            assert_eq!(
                (replaced.text.as_str(), &replaced.unset[..]),
                (expected, &unset.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()[..]),
                "{written}"
            );
        }
    }

    #[test]
    fn keys_are_translated_as_fluent_bit_does() {
        for (written, name) in [
            ("tenantId", "tenant_id"),
            ("pollIntervalSecs", "poll_interval_secs"),
            ("Tenant_ID", "tenant_id"),
            ("TenantId", "tenantid"),
            ("storage.type", "storage.type"),
            ("tenant-id", "tenant-id"),
        ] {
            assert_eq!(snake_case(written), name);
        }
    }

    proptest::proptest! {
        /// A file may be anything.
        #[test]
        fn no_text_ends_the_reader(text in "([a-z@#\\[\\]{}:*&!|>'\"$%\\\\ \\t\\r\\n-]|inputs|\\$\\{|@INCLUDE |\\PC){0,120}") {
            let dir = tempfile::tempdir().unwrap();
            for name in ["a.conf", "a.yaml"] {
                let path = dir.path().join(name);
                fs::write(&path, &text).unwrap();
                let configuration = Configuration::read(&path).unwrap();
                configuration.replace(&text, &|_| None);
            }
        }
    }
}
