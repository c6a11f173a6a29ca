//! Reads a text into a [`Config`]: lines, components, and conditions across several keys.

use std::cmp::Ordering;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value as Schema;
use toml::{Table, Value};

use super::Config;
use super::check::{Findings, check_file, nearest, one_of, typed_from_text};
use super::cluster::ClusterConfig;
use super::credentials::check_credentials;
use super::file_schema::sink_schema;
use super::folder::{self, ConfigFiles};
use super::lines::parse_toml;
use super::origins::Origins;
use super::problem::{ConfigError, Fault, Problem, join};
use super::schema::{keys_of, known_source_schema, schema_of, source_schema};
use super::severity::{RulesError, SeverityConfig};
use super::sinks::{SINK_KINDS, SelectionConfig, SinkConfig, SinkEntry};
use super::source::{Cloud, SOURCE_TYPE, SourceConfig};
use super::tenants::{self, SourceTable, is_name};
use super::transport::{check_transport, is_exposed};
use crate::model::{ContentType, is_guid};

impl Config {
    /// Reads a file, with the process's environment.
    ///
    /// # Errors
    /// All problems of the file, or the one that it cannot be read.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        Self::load_of(path, &ConfigFiles::beside(path))
    }

    /// As [`Config::load`], for a host that has outputs of its own: `[sinks.*]` may be absent and is not checked;
    /// [`Config::sinks`] is empty. Files are treated as by [`Config::load_to_run`].
    ///
    /// # Errors
    /// All problems of the file but those of its sinks, or the one that it cannot be read.
    pub fn load_for_host(path: &Path) -> Result<(Config, Vec<Problem>), ConfigError> {
        Self::load_leniently(path, Outputs::OfTheHost)
    }

    /// As [`Config::load`], but an unreadable file that one of several sources names is reported beside the
    /// configuration: that source waits for it, and the others are not affected.
    ///
    /// # Errors
    /// All problems, if there are others, or every source has one.
    pub fn load_to_run(path: &Path) -> Result<(Config, Vec<Problem>), ConfigError> {
        Self::load_leniently(path, Outputs::Own)
    }

    /// As [`Config::load`], with these files.
    ///
    /// # Errors
    /// All problems of the files.
    pub fn load_of(path: &Path, files: &ConfigFiles) -> Result<Config, ConfigError> {
        let text = Self::read(path, files)?;
        let env = |name: &str| std::env::var(name).ok();
        Self::parse_with(&text, &env, Outputs::Own, files).map_err(|error| error.at(path))
    }

    /// As [`Config::load_to_run`], with these files.
    ///
    /// # Errors
    /// All problems, if there are others than unreadable files, or every source has one.
    pub fn load_to_run_of(path: &Path, files: &ConfigFiles) -> Result<(Config, Vec<Problem>), ConfigError> {
        Self::lenient(path, Outputs::Own, files)
    }

    /// `[cluster]` alone, before the tenants in its table are known; `None` if there is none, or if it is wrong, which
    /// is reported when the whole file is read.
    pub fn cluster_of(path: &Path) -> Option<ClusterConfig> {
        let text = Self::read(path, &ConfigFiles::beside(path)).ok()?;
        let (root, _) = parse_toml(text.strip_prefix('\u{feff}').unwrap_or(&text)).ok()?;
        let mut alone: Table = root.into_iter().filter(|(key, _)| key == "cluster").collect();
        let mut findings = Findings::default();
        findings.expand(&mut alone, "", &|name| std::env::var(name).ok());
        alone.remove("cluster").filter(|_| findings.count() == 0)?.try_into().ok()
    }

    fn load_leniently(path: &Path, outputs: Outputs) -> Result<(Config, Vec<Problem>), ConfigError> {
        Self::lenient(path, outputs, &ConfigFiles::beside(path))
    }

    fn lenient(path: &Path, outputs: Outputs, files: &ConfigFiles) -> Result<(Config, Vec<Problem>), ConfigError> {
        let text = Self::read(path, files)?;
        Self::parse_leniently(&text, &|name| std::env::var(name).ok(), outputs, files).map_err(|error| error.at(path))
    }

    pub(super) fn read(path: &Path, files: &ConfigFiles) -> Result<String, ConfigError> {
        files.read(path).map_err(|why| {
            let problem = Problem::new("", Fault::Unreadable, why);
            ConfigError { path: Some(path.to_owned()), problems: vec![problem] }
        })
    }

    /// Reads a text; `env` looks up the variables it names.
    ///
    /// # Errors
    /// All problems, in the order of the text.
    pub fn parse(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
        Self::parse_with(text, env, Outputs::Own, &ConfigFiles::default())
    }

    fn parse_with(
        text: &str,
        env: &dyn Fn(&str) -> Option<String>,
        outputs: Outputs,
        files: &ConfigFiles,
    ) -> Result<Config, ConfigError> {
        match Self::parse_leniently(text, env, outputs, files)? {
            (config, problems) if problems.is_empty() => Ok(config),
            (_, problems) => Err(ConfigError { path: None, problems }),
        }
    }

    /// The configuration and, if those are the only problems and not every source has one, the unreadable files.
    fn parse_leniently(
        text: &str,
        env: &dyn Fn(&str) -> Option<String>,
        outputs: Outputs,
        files: &ConfigFiles,
    ) -> Result<(Config, Vec<Problem>), ConfigError> {
        // A byte order mark is not part of the first key.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let (mut root, lines) = match parse_toml(text) {
            Ok(parsed) => parsed,
            Err(problems) => return Err(ConfigError { path: None, problems }),
        };
        let mut findings = Findings::of(Origins::of_text(lines));
        if outputs == Outputs::OfTheHost {
            root.remove("sinks");
        }
        let found = folder::merge(&mut root, &mut findings.origins, env, files);
        findings.expand(&mut root, "", env);
        let config = read_root(&mut findings, root, outputs);
        let mut problems = placed(findings);
        if !found.is_empty() {
            // A key that an unreadable file may have declared does not count as missing.
            problems.retain(|problem| problem.fault != Fault::Missing || problem.key != "sources");
            problems.extend(found);
            problems.sort_by(in_order);
        }
        match config {
            Some((config, healthy)) if problems.is_empty() || (healthy && only_files(&problems)) => {
                Ok((config, problems))
            }
            _ => Err(ConfigError { path: None, problems }),
        }
    }

    /// Settings of all sources that are allowed but look like mistakes.
    pub fn warnings(&self) -> Vec<Problem> {
        self.sources.iter().flat_map(|(name, source)| source.warnings(name)).collect()
    }
}

impl SourceConfig {
    /// Reads one source's table, for hosts that have a configuration of their own. `name` is used only in the keys of
    /// problems; a `type` is allowed and must then be `m365_audit`.
    ///
    /// # Errors
    /// All problems.
    pub fn parse_table(
        name: &str,
        mut table: Table,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<SourceConfig, Vec<Problem>> {
        let path = join("sources", name);
        let mut findings = Findings::default();
        findings.expand(&mut table, &path, env);
        table.entry("type").or_insert_with(|| SOURCE_TYPE.into());
        let source = read_source(&mut findings, table, &path);
        match source {
            Some(source) if findings.count() == 0 => Ok(source),
            _ => Err(findings.into_problems()),
        }
    }

    /// Reads one source from a tree that a host has read already, its variables replaced: a `$` is a dollar, a null is
    /// an absent key.
    ///
    /// # Errors
    /// All problems.
    pub fn parse_json(
        name: &str,
        tree: serde_json::Map<String, serde_json::Value>,
    ) -> Result<SourceConfig, Vec<Problem>> {
        let table = tree.into_iter().filter_map(|(key, value)| Some((key, from_json(value)?))).collect();
        Self::parse_table(name, table, &|_| None)
    }

    /// Reads one source from properties that are all text, as Fluent Bit has them: keys in any case, lists separated
    /// by commas, numbers with units (`5m`, `32M`), switches as `on` and `off`.
    ///
    /// # Errors
    /// All problems.
    pub fn parse_properties<'a>(
        name: &str,
        properties: impl IntoIterator<Item = (&'a str, &'a str)>,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<SourceConfig, Vec<Problem>> {
        let schema = source_schema();
        let mut table = Table::new();
        for (key, text) in properties {
            let key = key.to_ascii_lowercase();
            // `severity.refine` denotes a key of a table.
            let (outer, inner) =
                key.split_once('.').map_or((key.as_str(), None), |(outer, inner)| (outer, Some(inner)));
            let mut field = &schema["properties"][outer];
            if let Some(inner) = inner {
                field = &field["properties"][inner];
            }
            let value = typed_from_text(field, &key, text).unwrap_or_else(|| text.into());
            match inner {
                None => drop(table.insert(key, value)),
                Some(inner) => {
                    let outer = table.entry(outer).or_insert_with(|| Value::Table(Table::new()));
                    if let Value::Table(outer) = outer {
                        outer.insert(inner.to_owned(), value);
                    }
                }
            }
        }
        Self::parse_table(name, table, env)
    }

    /// Settings that are allowed but look like mistakes. `name` is used in the keys of the problems.
    pub fn warnings(&self, name: &str) -> Vec<Problem> {
        let path = join("sources", name);
        let mut warnings = Vec::new();
        // No values: they may have come from the environment, and a secret in the wrong variable is a common mistake.
        let mut warn = |key: &str, expected: &str, hint: &str| {
            warnings.push(Problem::new(join(&path, key), Fault::Invalid, expected).hint(hint));
        };
        if self.client_id.as_deref().is_some_and(|id| !is_guid(id)) {
            warn("client_id", "a GUID", "Entra admin centre > App registrations > Application (client) ID");
        }
        let is_placed = |id: &str| id.bytes().any(|byte| !matches!(byte, b'0' | b'-'));
        let placed = is_placed(self.tenant_id.as_str());
        if !placed {
            warn(
                "tenant_id",
                "the tenant's own id; this one is the place holder of the examples",
                "Entra admin centre > Overview > Tenant ID",
            );
        }
        if self.client_id.as_deref().is_some_and(|id| is_guid(id) && !is_placed(id)) {
            warn(
                "client_id",
                "the application's own id; this one is the place holder of the examples",
                "Entra admin centre > App registrations > Application (client) ID",
            );
        }
        if placed && self.client_id.as_deref().is_some_and(|id| id.eq_ignore_ascii_case(self.tenant_id.as_str())) {
            warn(
                "client_id",
                "the application's id; this is the tenant's",
                "Entra admin centre > App registrations > your app > Application (client) ID, not Directory (tenant) ID",
            );
        }
        // The portal shows a secret's id beside its value, and the id can still be copied when the value cannot.
        if self.read_secret().is_ok_and(|secret| is_guid(secret.expose().trim())) {
            let key = if self.client_secret.is_some() { "client_secret" } else { "client_secret_file" };
            warn(
                key,
                "a secret's value; this one has the form of a secret's id",
                "Entra admin centre > App registrations > Certificates & secrets > Value, shown only once",
            );
        }
        if self.drop_routine && !self.content_types.contains(&ContentType::Dlp) {
            warn(
                "drop_routine",
                "`false`, or `DLP.All` among `content_types`",
                "without DLP.All no item is known to be flagged, so every routine event is left out",
            );
        }
        for (key, url) in
            [("api_url", &self.api_url), ("authority_url", &self.authority_url), ("graph_url", &self.graph_url)]
        {
            if url.as_ref().is_some_and(is_exposed) {
                warn(key, "`https`", "secrets and events cross the network in the clear");
            }
        }
        if self.heal.graph && !self.cloud.has_audit_search() {
            warn(
                "heal.graph",
                "`false` for this cloud",
                "the audit search of Microsoft Graph is in the worldwide service alone: gaps stay declared",
            );
        }
        for warning in &mut warnings {
            warning.hint = warning.hint.take().map(|hint| self.cloud.localised(&hint));
        }
        warnings
    }
}

/// All problems with their places, in the order of the text, and then of the folder's files.
pub(super) fn placed(mut findings: Findings) -> Vec<Problem> {
    let origins = std::mem::take(&mut findings.origins);
    let mut problems = findings.into_problems();
    problems.iter_mut().for_each(|problem| origins.place(problem));
    problems.sort_by(in_order);
    problems
}

fn in_order(a: &Problem, b: &Problem) -> Ordering {
    let place = |problem: &Problem| (problem.file.clone(), problem.line.unwrap_or(usize::MAX));
    place(a).cmp(&place(b))
}

/// The owner of the outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outputs {
    /// The file: `[sinks.*]`.
    Own,
    /// The agent that runs this library.
    OfTheHost,
}

fn only_files(problems: &[Problem]) -> bool {
    problems.iter().all(|problem| problem.fault == Fault::File)
}

/// The configuration, as far as it can be read, and whether some source has no problem.
pub(super) fn read_root(findings: &mut Findings, mut root: Table, outputs: Outputs) -> Option<(Config, bool)> {
    let mut schema = schema_of::<Config>().to_value();
    if let (Outputs::OfTheHost, Some(required)) = (outputs, schema["required"].as_array_mut()) {
        required.retain(|key| key != "sinks");
    }
    findings.check_table(&schema, &mut root, "");
    let is_cluster = root.contains_key("cluster");
    let mut source_tables: Vec<SourceTable> = Vec::new();
    let mut templates: Vec<String> = Vec::new();
    for (name, table) in take_tables(findings, &mut root, "sources") {
        // The tenants of a template may all be in the cluster's table, which may still be empty.
        if is_cluster && !table.contains_key("tenant_id") && !table.contains_key("tenants") {
            templates.push(name);
            continue;
        }
        source_tables.extend(tenants::expand(findings, name, table));
    }
    let sink_tables = take_tables(findings, &mut root, "sinks");
    compare_tenants(findings, &source_tables);
    connect(findings, &source_tables, &templates, &sink_tables);
    if outputs == Outputs::Own {
        check_receipts_to(findings, &root, &sink_tables);
    }

    let mut sources = BTreeMap::new();
    let mut groups: Vec<(String, String)> = Vec::new();
    let mut healthy = false;
    let mut noted: HashSet<Problem> = HashSet::new();
    for source in source_tables {
        let before = findings.count();
        let read = read_source(findings, source.table.clone(), &source.path);
        // A problem of a template is reported once.
        let found = findings.take_since(before);
        healthy |= found.is_empty();
        for mut problem in found {
            source.place(&mut problem);
            if noted.insert(problem.clone()) {
                findings.note(problem);
            }
        }
        if let Some(read) = read {
            groups.push((source.group, source.name.clone()));
            sources.insert(source.name, read);
        }
    }
    let mut sinks = BTreeMap::new();
    for (name, table) in sink_tables {
        if let Some(mut sink) = read_sink(findings, table, &join("sinks", &name)) {
            sink.inputs = inputs_of(&sink.inputs, &groups);
            sinks.insert(name, sink);
        }
    }
    let turns_max = super::default_catch_up_tenants_max;
    let config = Config {
        data_dir: read_key(findings, &mut root, "data_dir", super::default_data_dir)?,
        control_socket: read_key(findings, &mut root, "control_socket", || None)?,
        tenants_dir: read_key(findings, &mut root, "tenants_dir", || None)?,
        catch_up_tenants_max: read_key(findings, &mut root, "catch_up_tenants_max", turns_max)?,
        sources,
        sinks,
        receipts: read_key(findings, &mut root, "receipts", Default::default)?,
        cluster: read_key(findings, &mut root, "cluster", || None)?,
        metrics: read_key(findings, &mut root, "metrics", || None)?,
        log: read_key(findings, &mut root, "log", Default::default)?,
    };
    check_cluster(findings, &config);
    Some((config, healthy))
}

/// Checks the rest of the file for what a cluster requires.
fn check_cluster(findings: &mut Findings, config: &Config) {
    let Some(cluster) = &config.cluster else { return };
    if cluster.url.is_some() == cluster.url_file.is_some() {
        let expected = "one of `cluster.url` and `cluster.url_file`";
        let hint = "write `url = \"postgres://USER@HOST/DATABASE\"`, or put that into a file for `url_file`";
        findings.note(Problem::new("cluster.url", Fault::Missing, expected).hint(hint));
    }
    if config.receipts.days > 0 && config.receipts.key_file.is_none() {
        let expected = "a file with the key that all members sign receipts with";
        let hint = "write `key_file = \"/etc/m365-audit/receipts.key\"` under `[receipts]`: `m365-audit cluster init` makes the file, \
                    copy it to all members; or keep no receipts with `days = 0`";
        findings.note(Problem::new("receipts.key_file", Fault::Missing, expected).hint(hint));
    }
    for (name, entry) in config.sinks.iter().filter(|_| !cluster.allow_local_sinks) {
        if matches!(entry.sink, SinkConfig::File(_) | SinkConfig::Stdout(_)) {
            let away = SINK_KINDS.iter().filter(|kind| !["stdout", "file"].contains(&kind.name));
            let away = away.map(|kind| format!("`{}`", kind.name)).collect::<Vec<_>>().join(", ");
            let expected = format!("in a cluster a sink that sends records away: {away}");
            let hint = "records on the disk of one of many machines go with it; where something else carries them away, write \
                        `allow_local_sinks = true` under `[cluster]`";
            let key = join(&join("sinks", name), "type");
            findings.note(Problem::new(key, Fault::Invalid, expected).value(entry.sink.kind()).hint(hint));
        }
    }
}

/// The wildcard for all sources in `inputs`.
const ALL: &str = "*";

/// The sources a sink's `inputs` name: a template's name selects all its tenants, [`ALL`] all sources.
fn inputs_of(inputs: &[String], groups: &[(String, String)]) -> Vec<String> {
    // A map by name, so that a thousand inputs are not compared with a thousand sources each.
    let mut called: HashMap<&str, Vec<&String>> = HashMap::new();
    called.insert(ALL, groups.iter().map(|(_, name)| name).collect());
    for (group, name) in groups {
        called.entry(group).or_default().push(name);
        if group != name {
            called.entry(name).or_default().push(name);
        }
    }
    let mut seen: HashSet<&String> = HashSet::new();
    let meant = inputs.iter().filter_map(|input| called.get(input.as_str())).flatten();
    let names: Vec<String> = meant.filter(|name| seen.insert(name)).map(|name| (*name).clone()).collect();
    names
}

/// The tables `[<section>.<name>]`, with names valid for metrics and state.
fn take_tables(findings: &mut Findings, root: &mut Table, section: &str) -> Vec<(String, Table)> {
    let Some(Value::Table(section_table)) = root.remove(section) else { return Vec::new() };
    let mut tables = Vec::new();
    for (name, value) in section_table {
        let path = join(section, &name);
        if !is_name(&name) {
            findings.note(Problem::new(&path, Fault::Invalid, "a name of letters, digits, `_` and `-`").value(&name));
        }
        match value {
            Value::Table(table) => tables.push((name, table)),
            // Without its value: it may be a misplaced key of a source, and a secret.
            _ => {
                let expected = format!("a table `[{section}.<name>]`");
                let hint = format!("keys stand below a header with a name: `[{section}.contoso]`");
                findings.note(Problem::new(&path, Fault::Invalid, expected).hint(hint));
            }
        }
    }
    tables
}

/// One key of the root that was checked before; `None` if it has a problem.
fn read_key<T: DeserializeOwned>(
    findings: &mut Findings,
    root: &mut Table,
    key: &str,
    default: impl FnOnce() -> T,
) -> Option<T> {
    match root.remove(key) {
        None => Some(default()),
        Some(value) => deserialize(findings, value, key, Value::try_into),
    }
}

/// Runs `read` if there was no problem before.
fn deserialize<T, V>(
    findings: &mut Findings,
    value: V,
    path: &str,
    read: impl FnOnce(V) -> Result<T, toml::de::Error>,
) -> Option<T> {
    // A table that names an unreadable file is still read.
    if !findings.clean_but_for_files(path) {
        return None;
    }
    match read(value) {
        Ok(read) => Some(read),
        Err(error) => {
            // Reached only for faults that the schema check cannot express.
            findings.note(Problem::new(path, Fault::Invalid, error.message()));
            None
        }
    }
}

/// Removes the `type` from a component's table and returns whether it is one of `known`.
fn take_type(findings: &mut Findings, table: &mut Table, path: &str, known: &[&str]) -> Option<String> {
    let path = join(path, "type");
    match table.remove("type") {
        None => {
            findings.note(Problem::new(path, Fault::Missing, one_of(known)));
            None
        }
        Some(Value::String(word)) if known.contains(&word.as_str()) => Some(word),
        Some(_) if !findings.clean(&path) => None,
        Some(value) => {
            let shown = findings.shown(&Schema::Null, &value, &path);
            let mut problem = Problem::new(path, Fault::Invalid, one_of(known)).value(shown);
            let by_name = value.as_str().filter(|_| known.contains(&"http")).and_then(sink_for);
            let near = || value.as_str().and_then(|word| nearest(word, known)).map(|near| format!("nearest: `{near}`"));
            problem.hint = by_name.or_else(near);
            findings.note(problem);
            None
        }
    }
}

/// Names of destinations that operators write in `type`: the names, the sink if there is only one, the page.
const DESTINATIONS: [(&[&str], &str, &str); 10] = [
    (&["splunk", "splunk_hec", "hec"], "http", "docs/hosts/splunk.md"),
    (&["elastic", "elasticsearch", "opensearch"], "http", "docs/hosts/elastic.md"),
    (&["vector"], "http", "docs/hosts/vector.md"),
    (&["fluentd", "fluent_bit", "fluentbit", "forward"], "fluent_forward", "docs/hosts/README.md"),
    (&["otel", "opentelemetry", "otelcol"], "otlp", "docs/hosts/otel-collector.md"),
    (&["event_hubs", "eventhubs", "event_hub", "eventhub", "redpanda"], "kafka", "docs/hosts/kafka.md"),
    (&["syslog", "rsyslog", "tail", "logfile"], "file", "docs/hosts/rsyslog.md"),
    (&["syslog_ng", "syslogng"], "file", "docs/hosts/syslog-ng.md"),
    (&["logstash", "beats", "filebeat"], "http", "docs/hosts/logstash.md"),
    (&["loki", "sentinel", "victorialogs", "graylog", "wazuh", "qradar", "s3"], "", "docs/hosts/recipes.md"),
];

/// The sink that reaches a destination.
fn sink_for(word: &str) -> Option<String> {
    let word = word.to_ascii_lowercase().replace('-', "_");
    let (_, sink, page) = DESTINATIONS.iter().find(|(names, ..)| names.contains(&word.as_str()))?;
    Some(match *sink {
        "" => format!("{page} says how `{word}` is reached"),
        sink => format!("`{word}` is reached by `type = \"{sink}\"`: {page} has the settings"),
    })
}

fn read_source(findings: &mut Findings, table: Table, path: &str) -> Option<SourceConfig> {
    let before = findings.count();
    let cloud: Option<Cloud> = table.get("cloud").and_then(|cloud| cloud.clone().try_into().ok());
    let read = read_source_table(findings, table, path);
    // An operator of a national cloud finds ids and secrets in that cloud's consoles.
    for mut problem in findings.take_since(before) {
        problem.hint = problem.hint.take().map(|hint| cloud.unwrap_or_default().localised(&hint));
        findings.note(problem);
    }
    read
}

fn read_source_table(findings: &mut Findings, mut table: Table, path: &str) -> Option<SourceConfig> {
    take_type(findings, &mut table, path, &[SOURCE_TYPE]);
    findings.check_table(known_source_schema(), &mut table, path);
    check_credentials(findings, &table, path);
    check_transport(findings, &table, path);
    for key in ["ca_file", "proxy_certificate_file", "proxy_key_file"] {
        check_file(findings, &table, path, key);
    }
    check_mask(findings, &table, path);
    check_rules(findings, &table, path);
    deserialize(findings, Value::Table(table), path, Value::try_into)
}

fn read_sink(findings: &mut Findings, mut table: Table, path: &str) -> Option<SinkEntry> {
    let known: Vec<&str> = SINK_KINDS.iter().map(|kind| kind.name).collect();
    let kind = take_type(findings, &mut table, path, &known)?;
    let kind = SINK_KINDS.iter().find(|k| k.name == kind)?;
    findings.check_table(&sink_schema(kind), &mut table, path);
    let inputs = table.remove("inputs");
    let mut selected = Table::new();
    for key in keys_of::<SelectionConfig>() {
        selected.extend(table.remove_entry(*key));
    }
    let selection: SelectionConfig = deserialize(findings, Value::Table(selected), path, Value::try_into)?;
    for (place, issue, hint) in selection.issues() {
        let path = format!("{}[{place}]", join(path, issue.key));
        let written = Value::String(selection.event_types.get(place).cloned().unwrap_or_default());
        let shown = findings.shown(&Schema::Null, &written, &path);
        findings.note(Problem::new(path, Fault::Invalid, issue.expected).value(shown).hint(hint));
    }
    let sink: SinkConfig = deserialize(findings, table, path, kind.read)?;
    for issue in sink.issues() {
        let mut problem = Problem::new(join(path, issue.key), Fault::Invalid, issue.expected);
        problem.hint = issue.hint.map(str::to_owned);
        findings.note(problem);
    }
    Some(SinkEntry { inputs: deserialize(findings, inputs?, path, Value::try_into)?, selection, sink })
}

/// The same value in TOML, for [`SourceConfig::parse_table`], which replaces variables: hence two dollars for one.
fn from_json(value: serde_json::Value) -> Option<Value> {
    use serde_json::Value as Json;
    Some(match value {
        Json::Null => return None,
        Json::Bool(value) => Value::Boolean(value),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Value::Integer(number),
            // A larger number is out of every key's range, and is reported so.
            None => Value::Float(number.as_f64().unwrap_or(f64::INFINITY)),
        },
        Json::String(text) => Value::String(text.replace('$', "$$")),
        Json::Array(items) => Value::Array(items.into_iter().filter_map(from_json).collect()),
        Json::Object(map) => {
            Value::Table(map.into_iter().filter_map(|(key, value)| Some((key, from_json(value)?))).collect())
        }
    })
}

fn check_mask(findings: &mut Findings, table: &Table, path: &str) {
    for (index, pointer) in table.get("mask").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let path = format!("{}[{index}]", join(path, "mask"));
        if let Some(text) = pointer.as_str().filter(|text| !text.is_empty() && findings.clean(&path))
            && (text == "/" || !text.starts_with('/'))
        {
            let shown = findings.shown(&Schema::Null, pointer, &path);
            findings.note(Problem::new(path, Fault::Invalid, "a JSON pointer such as `/Subject`").value(shown));
        }
    }
}

/// Checks every rule, and reports each problem at its rule.
fn check_rules(findings: &mut Findings, table: &Table, path: &str) {
    let path = join(path, "severity");
    let Some(Value::Table(severity)) = table.get("severity") else { return };
    if !findings.clean(&path) {
        return;
    }
    let Ok(mut config) = Value::Table(severity.clone()).try_into::<SeverityConfig>() else { return };
    let hint = "docs/rules.md lists the built-in rules and describes conditions";
    let rules = std::mem::take(&mut config.rules);
    if let Err(error) = config.load() {
        let path = join(&path, "rules_file");
        findings.note(Problem::new(path, Fault::Invalid, format!("a file of rules: {error}")).hint(hint));
        return;
    }
    // All rules are checked together; an invalid one is reported and removed, and the others are checked again.
    let mut places: Vec<usize> = (0..rules.len()).collect();
    config.rules = rules;
    while let Err(error) = config.load() {
        let RulesError::Inline { index, source } = error else { return };
        if index >= places.len() {
            return;
        }
        config.rules.remove(index);
        let place = format!("{}[{}]", join(&path, "rules"), places.remove(index));
        findings.note(Problem::new(place, Fault::Invalid, format!("a rule: {source}")).hint(hint));
    }
}

/// No two sources may read the same tenant: its quota, its delivered events and its positions belong to one source.
fn compare_tenants(findings: &mut Findings, sources: &[SourceTable]) {
    let mut by_tenant: HashMap<String, &SourceTable> = HashMap::new();
    for source in sources {
        let Some(tenant) = tenant_of(&source.table) else { continue };
        match by_tenant.entry(tenant) {
            Entry::Vacant(free) => drop(free.insert(source)),
            Entry::Occupied(earlier) => {
                let expected = format!("a tenant that `sources.{}` does not read", earlier.get().name);
                let expected = findings.other(&expected, &earlier.get().path);
                let problem = Problem::new(join(&source.path, "tenant_id"), Fault::Invalid, expected);
                findings.note(problem.hint(
                    "one source reads all `content_types` of a tenant; to feed two sinks, name it in the `inputs` of both",
                ));
            }
        }
    }
}

pub(super) fn tenant_of(table: &Table) -> Option<String> {
    table.get("tenant_id").and_then(Value::as_str).map(|id| id.trim().to_ascii_lowercase())
}

/// Checks that every input names a source, and that every source is the input of some sink.
fn connect(findings: &mut Findings, sources: &[SourceTable], templates: &[String], sinks: &[(String, Table)]) {
    let mut known: HashSet<&str> = HashSet::new();
    let names = sources.iter().flat_map(|source| [source.group.as_str(), source.name.as_str()]);
    let names = names.chain(templates.iter().map(String::as_str));
    let names: Vec<&str> = names.filter(|name| known.insert(name)).collect();
    let mut read: HashSet<&str> = HashSet::new();
    let mut is_all_read = false;
    for (sink, table) in sinks {
        let inputs = table.get("inputs").and_then(Value::as_array).into_iter().flatten();
        for (index, input) in inputs.enumerate() {
            let Some(input) = input.as_str() else { continue };
            let path = format!("sinks.{sink}.inputs[{index}]");
            if input == ALL {
                is_all_read = true;
            } else if known.contains(input) {
                read.insert(input);
            } else if !names.is_empty() && findings.clean(&path) {
                let shown = findings.shown(&Schema::Null, &Value::String(input.to_owned()), &path);
                let mut problem = Problem::new(path, Fault::Invalid, one_of(&names)).value(shown);
                let near = nearest(input, &names);
                problem.hint = near.map(|near| format!("nearest source: `{near}`"));
                // That no sink reads a source misspelt here is only a consequence.
                read.extend(near);
                findings.note(problem);
            }
        }
    }
    // Without a sink, the missing section is already reported; if `inputs` is not a list, that is.
    let is_broken = |(_, table): &(String, Table)| !table.get("inputs").is_some_and(Value::is_array);
    if sinks.is_empty() || is_all_read || sinks.iter().any(is_broken) {
        return;
    }
    for source in sources {
        if !read.contains(source.group.as_str()) && !read.contains(source.name.as_str()) {
            let expected = format!("a sink with `{}` in its `inputs`", source.name);
            findings.note(Problem::new(&source.path, Fault::Unread, expected));
        }
    }
}

/// Checks that every sink in `[receipts] to` exists.
fn check_receipts_to(findings: &mut Findings, root: &Table, sinks: &[(String, Table)]) {
    let names: Vec<&str> = sinks.iter().map(|(name, _)| name.as_str()).collect();
    let to = root.get("receipts").and_then(|receipts| receipts.get("to")).and_then(Value::as_array);
    for (index, sink) in to.into_iter().flatten().enumerate() {
        let path = format!("receipts.to[{index}]");
        let Some(name) = sink.as_str().filter(|name| !names.contains(name) && !names.is_empty()) else { continue };
        if findings.clean(&path) {
            let shown = findings.shown(&Schema::Null, sink, &path);
            let mut problem = Problem::new(path, Fault::Invalid, one_of(&names)).value(shown);
            problem.hint = nearest(name, &names).map(|near| format!("nearest sink: `{near}`"));
            findings.note(problem);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use expect_test::{Expect, expect};
    use url::Url;

    use super::*;
    use crate::config::{Cloud, Format, LogFormat, RawForm, ReceiptsConfig, TokenEndpoint};

    const TENANT: &str = "00000000-1111-2222-3333-444444444444";

    /// A file with this many tenants of one template, each with its own line for every key.
    fn with_tenants(count: usize) -> String {
        let mut text = "[sources.all]\ntype = \"m365_audit\"\nclient_secret = \"${SECRET}\"\n".to_owned();
        for n in 0..count {
            text += &format!(
                "[[sources.all.tenants]]\nname = \"t{n}\"\ntenant_id = \"00000000-1111-2222-3333-{n:012}\"\n\
                 client_id = \"00000000-1111-2222-3333-555555555555\"\npublisher_identifier = \"{TENANT}\"\n"
            );
        }
        let inputs: Vec<String> = (0..count).map(|n| format!("\"all.t{n}\"")).collect();
        text + &format!("[sinks.out]\ntype = \"stdout\"\ninputs = [{}]\n", inputs.join(", "))
    }

    /// Processor time of this thread, without the time it waits for others.
    fn processor_time() -> std::time::Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        std::time::Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }

    #[test]
    fn eight_times_the_tenants_take_about_eight_times_the_work() {
        let work = |tenants: usize| {
            let text = with_tenants(tenants);
            let begin = processor_time();
            let config = Config::parse(&text, &env).unwrap();
            assert_eq!(config.sources.len(), tenants);
            (processor_time() - begin).as_secs_f64()
        };
        work(50);
        let (few, many) = (work(200), work(1600));
        assert!(many < few * 24.0, "{few:.3} s for 200 tenants, {many:.3} s for 1,600");
    }

    /// How many keys and problems are compared to read a text.
    fn steps_of(text: &str) -> u64 {
        let (mut root, lines) = parse_toml(text).unwrap();
        let mut findings = Findings::of(Origins::of_text(lines));
        findings.expand(&mut root, "", &|name| (name == "SECRET").then(|| "x".to_owned()));
        read_root(&mut findings, root, Outputs::Own);
        findings.steps.get()
    }

    #[test]
    fn ten_times_the_tenants_are_ten_times_the_work_whether_they_are_right_or_wrong() {
        for more in ["", "poll_interval_secs = 0\n", "client_secret = \"${NOT_SET}\"\n"] {
            let text = |count| with_tenants(count).replace("client_id =", &format!("{more}client_id ="));
            let (few, many) = (steps_of(&text(200)), steps_of(&text(2000)));
            assert!(few > 200 && many <= few * 10 + 100, "{more:?}: {few} steps for 200 tenants, {many} for 2,000");
        }
    }

    fn env(name: &str) -> Option<String> {
        match name {
            "SECRET" => Some("s3cr3t~value".to_owned()),
            "TENANT" => Some(TENANT.to_owned()),
            "POLL" => Some("60".to_owned()),
            _ => None,
        }
    }

    /// A file with one valid source, into which `lines` are inserted from line 3 on.
    fn source_with(lines: &str) -> String {
        let has = |key: &str| lines.lines().any(|l| l.split('=').next().is_some_and(|k| k.trim() == key));
        let mut text = format!("[sources.contoso]\ntype = \"m365_audit\"\n{lines}\n");
        if !has("tenant_id") {
            text += &format!("tenant_id = \"{TENANT}\"\n");
        }
        if !has("client_id") {
            text += "client_id = \"00000000-1111-2222-3333-555555555555\"\n";
        }
        if !has("client_secret") && !has("client_secret_file") {
            text += "client_secret = \"${SECRET}\"\n";
        }
        text + "[sinks.out]\ntype = \"stdout\"\ninputs = [\"contoso\"]\n"
    }

    fn good(text: &str) -> Config {
        Config::parse(text, &env).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_hosts_tree_is_read_with_its_dollars_as_they_are() {
        let tree = |more: serde_json::Value| {
            let mut tree = serde_json::json!({
                "tenant_id": TENANT, "client_id": TENANT, "client_secret": "pa$$w${o}rd", "proxy_url": null,
                "poll_interval_secs": 60, "severity": { "rules": [{ "id": "SP-12", "disable": true }] },
            });
            tree.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            SourceConfig::parse_json("c", tree.as_object().unwrap().clone())
        };
        let config = tree(serde_json::json!({})).unwrap();
        assert_eq!(config.client_secret.unwrap().expose(), "pa$$w${o}rd");
        assert_eq!((config.poll_interval_secs, config.severity.rules.len()), (60, 1));
        let problems = tree(serde_json::json!({ "poll_intervall": 1, "backfill_secs": u64::MAX })).unwrap_err();
        assert_eq!(problems.len(), 2, "{problems:?}");
    }

    /// In place of a snapshot, where only the absence of secrets matters.
    struct Unchecked;

    trait Expected {
        fn compare(self, message: &str);
    }

    impl Expected for Expect {
        fn compare(self, message: &str) {
            self.assert_eq(message);
        }
    }

    impl Expected for Unchecked {
        fn compare(self, _: &str) {}
    }

    fn check(text: &str, expected: impl Expected) {
        let error = Config::parse(text, &env).expect_err("the text has a problem");
        assert!(!error.to_string().contains("s3cr3t"), "{error}");
        assert!(!format!("{error:?}").contains("s3cr3t"), "{error:?}");
        expected.compare(&format!("{error}\n"));
    }

    fn check_source(lines: &str, expected: impl Expected) {
        check(&source_with(lines), expected);
    }

    #[test]
    fn for_a_host_with_outputs_of_its_own_sinks_are_not_looked_at() {
        let source = format!(
            "[sources.a]\ntype = \"m365_audit\"\ntenant_id = \"{TENANT}\"\nclient_id = \"c\"\nclient_secret = \"s\"\n"
        );
        for sinks in ["", "[sinks.out]\ntype = \"of another build\"\nuri = \"${NOT_SET}\"\n"] {
            let config =
                Config::parse_with(&format!("{source}{sinks}"), &env, Outputs::OfTheHost, &ConfigFiles::default())
                    .unwrap();
            assert_eq!((config.sources.len(), config.sinks.len()), (1, 0));
        }
        assert!(Config::parse_with(&source, &env, Outputs::Own, &ConfigFiles::default()).is_err());
        assert!(Config::parse_with("[sinks.out]\n", &env, Outputs::OfTheHost, &ConfigFiles::default()).is_err());
    }

    #[test]
    fn what_is_not_written_has_its_default() {
        let config = good(&source_with(""));
        assert_eq!(config.data_dir, Path::new("/var/lib/m365-audit"));
        assert_eq!((config.log.format, config.log.level.as_str()), (LogFormat::Text, "info"));
        assert_eq!(config.metrics, None);
        assert_eq!(config.sinks["out"].inputs, ["contoso"]);
        assert_eq!(config.sinks["out"].sink.kind(), "stdout");
        let source = &config.sources["contoso"];
        assert_eq!(source.client_secret.as_ref().map(|s| s.expose()), Some("s3cr3t~value"));
        assert_eq!(source.content_types, ContentType::ALL);
        assert_eq!((source.poll_interval_secs, source.backfill_secs, source.overlap_secs), (300, 86_400, 10_800));
        assert_eq!((source.format, source.raw, source.drop_routine), (Format::Native, RawForm::Object, true));
        assert_eq!((source.cloud, source.token_endpoint), (Cloud::Enterprise, TokenEndpoint::V2));
        assert_eq!((source.max_requests_per_minute, source.in_flight_bytes_max), (2000, 33_554_432));
        assert_eq!((source.event_keys_max, source.connect_timeout_secs), (10_000_000, 10));
        assert_eq!((source.request_timeout_secs, source.publisher()), (60, TENANT));
        assert_eq!(source.api_origin(), "https://manage.office.com");
        assert_eq!(source.authority_origin(), "https://login.microsoftonline.com");
        assert_eq!(source.token_audience(), "https://manage.office.com");
        assert_eq!(config.warnings(), []);
    }

    #[test]
    fn what_is_written_is_read() {
        let config = good(&source_with(
            r#"tenant_id = " 00000000-1111-2222-3333-44444444ABCD "
content_types = ["Audit.Exchange", "DLP.All"]
cloud = "gcc_high"
token_endpoint = "v1"
poll_interval_secs = "${POLL}"
raw = "string"
drop_routine = false
internal_domains = ["contoso.com"]
publisher_identifier = "00000000-1111-2222-3333-44444444ABCD"
api_url = "http://127.0.0.1:8080"
authority_url = "http://[::1]:8080/"
audience = "https://manage.office.com"
proxy_url = "http://user:hunter2@proxy.example.com:3128""#,
        ));
        let source = &config.sources["contoso"];
        assert_eq!(source.tenant_id.as_str(), "00000000-1111-2222-3333-44444444abcd");
        assert_eq!(source.content_types, [ContentType::Exchange, ContentType::Dlp]);
        assert_eq!(source.poll_interval_secs, 60);
        assert_eq!(source.api_origin(), "http://127.0.0.1:8080");
        assert_eq!(source.authority_origin(), "http://[::1]:8080");
        assert_eq!(source.publisher(), "00000000-1111-2222-3333-44444444abcd");
        assert_eq!(source.proxy_url.as_ref().and_then(Url::password), Some("hunter2"));
        let shown = format!("{config:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("s3cr3t"), "{shown}");
        assert!(shown.contains("proxy.example.com"), "{shown}");
    }

    #[test]
    fn every_problem_of_a_file_is_told_at_once_in_the_order_of_the_text() {
        check(
            r#"data_dri = "/x"
[sources.contoso]
type = "m365_audit"
tenant_id = "contoso.onmicrosoft.com"
client_secret = "${NOT_SET}"
content_types = ["audit.exchange", "Audit.Teams"]
poll_interval = 60
backfill_secs = 604801
drop_routine = "maybe"
api_url = "http://feed.example.com"

[sources.fabrikam]
tenant_id = 5

[sinks.out]
type = "http"
inputs = ["contoso"]

[sinks.two]
type = "stdout"
inputs = ["contso"]

[metrics]
listen = "everywhere"

[log]
format = "xml"
"#,
            expect![[r#"
                config-invalid: `data_dri` is not a known key, expected one of `catch_up_tenants_max`, `cluster`, `control_socket`, `data_dir`, `log`, `metrics`, `receipts`, `sinks`, `sources`, `tenants_dir` (line 1)
                  hint: nearest known key: `data_dir`; 18 more problems below
                `sources.contoso.client_id` is missing, expected the application's client id, a GUID (line 2)
                  hint: Entra admin centre > App registrations > Application (client) ID
                `sources.contoso.tenant_id` is `contoso.onmicrosoft.com`, expected a GUID (line 4)
                  hint: Entra admin centre > Overview > Tenant ID
                `sources.contoso.client_secret`: expected the environment variable `NOT_SET` to be set (line 5)
                `sources.contoso.content_types[0]` is `audit.exchange`, expected one of `Audit.AzureActiveDirectory`, `Audit.Exchange`, `Audit.SharePoint`, `Audit.General`, `DLP.All` (line 6)
                  hint: write `Audit.Exchange`: upper and lower case matter
                `sources.contoso.content_types[1]` is `Audit.Teams`, expected one of `Audit.AzureActiveDirectory`, `Audit.Exchange`, `Audit.SharePoint`, `Audit.General`, `DLP.All` (line 6)
                  hint: nearest: `Audit.General`
                `sources.contoso.poll_interval` is not a known key, expected a key that docs/configuration.md lists (line 7)
                  hint: nearest known key: `poll_interval_secs`
                `sources.contoso.backfill_secs` is `604801`, expected an integer from 0 to 604800 (line 8)
                `sources.contoso.drop_routine` is `maybe`, expected `true` or `false` (line 9)
                `sources.contoso.api_url` is `http://feed.example.com`, expected `https`, or a host of this machine: the bearer token would cross the network in the clear (line 10)
                  hint: in a closed test network set `allow_plain_http = true`
                `sources.fabrikam` is read by no sink, expected a sink with `fabrikam` in its `inputs` (line 12)
                `sources.fabrikam.type` is missing, expected `m365_audit` (line 12)
                `sources.fabrikam.client_id` is missing, expected the application's client id, a GUID (line 12)
                  hint: Entra admin centre > App registrations > Application (client) ID
                `sources.fabrikam.client_secret` is missing, expected `client_secret` or `client_secret_file` (line 12)
                  hint: Entra admin centre > App registrations > Certificates & secrets; write `client_secret = "${M365_CLIENT_SECRET}"` and keep the value in the environment
                `sources.fabrikam.tenant_id` is `5`, expected a GUID (line 13)
                  hint: write it in quotation marks; Entra admin centre > Overview > Tenant ID
                `sinks.out.uri` is missing, expected an http or https URL (line 15)
                `sinks.two.inputs[0]` is `contso`, expected one of `contoso`, `fabrikam` (line 21)
                  hint: nearest source: `contoso`
                `metrics.listen` is `everywhere`, expected an address and port such as `127.0.0.1:9598` (line 24)
                  hint: the port is missing, or is no number from 1 to 65535
                `log.format` is `xml`, expected one of `text`, `json` (line 27)
            "#]],
        );
    }

    #[test]
    fn receipts_are_kept_thirty_days_and_go_only_to_sinks_that_are_there() {
        let text = source_with("");
        let plain = Config::parse(&text, &env).unwrap();
        assert_eq!(plain.receipts, ReceiptsConfig::default());
        let known = Config::parse(&format!("{text}\n[receipts]\ndays = 0\nto = [\"out\"]\n"), &env).unwrap();
        assert_eq!(known.receipts, ReceiptsConfig { days: 0, to: vec!["out".to_owned()], key_file: None });
        check(
            &format!("{text}\n[receipts]\ndays = 3651\nto = [\"ot\", \"\"]\nsign = true\n"),
            expect![[r#"
            config-invalid: `receipts.days` is `3651`, expected an integer from 0 to 3650 (line 12)
              hint: 3 more problems below
            `receipts.to[1]` is ``, expected a text that is not empty (line 13)
            `receipts.to[0]` is `ot`, expected `out` (line 13)
            `receipts.sign` is not a known key, expected one of `days`, `key_file`, `to` (line 14)
        "#]],
        );
    }

    #[test]
    fn a_tenant_id_is_explained() {
        check_source(
            "tenant_id = \"${SECRET}\"",
            expect![[r#"
            config-invalid: `sources.contoso.tenant_id` is `${SECRET}`, expected a GUID (line 3)
              hint: Entra admin centre > Overview > Tenant ID
        "#]],
        );
        check_source(
            "tenant_id = \"00000000-1111-2222- 3333-444444444444\"",
            expect![[r#"
            config-invalid: `sources.contoso.tenant_id` is `00000000-1111-2222- 3333-444444444444`, expected a GUID without blanks inside; the one pasted has some (line 3)
              hint: Entra admin centre > Overview > Tenant ID
        "#]],
        );
        check_source(
            "client_id = \"00000000-1111 2222\"",
            expect![[r#"
            config-invalid: `sources.contoso.client_id` is `00000000-1111 2222`, expected an id without blanks inside; the one pasted has some (line 3)
              hint: Entra admin centre > App registrations > Application (client) ID
        "#]],
        );
        check_source(
            "publisher_identifier = \"me\"",
            expect![[r#"
            config-invalid: `sources.contoso.publisher_identifier` is `me`, expected a GUID (line 3)
        "#]],
        );
    }

    #[test]
    fn exactly_one_secret_is_needed_and_none_is_shown() {
        check_source(
            "client_secret = \"s3cr3t\"\nclient_secret_file = \"/nowhere\"",
            expect![[r#"
            config-invalid: `sources.contoso.client_secret_file`: expected only one of `client_secret` and `client_secret_file` (line 4)
        "#]],
        );
        check_source(
            "client_secret = [\"s3cr3t\"]",
            expect![[r#"
            config-invalid: `sources.contoso.client_secret` is `***`, expected a text that is not empty (line 3)
        "#]],
        );
        check_source(
            "client_secret = \"\"",
            expect![[r#"
            config-invalid: `sources.contoso.client_secret` is `***`, expected a text that is not empty (line 3)
        "#]],
        );
        check_source(
            "client_secret_file = \"/nowhere/at/all\"",
            expect![[r#"
                config-invalid: `sources.contoso.client_secret_file` is `/nowhere/at/all`, expected a file that can be read: No such file or directory (os error 2) (line 3)
                  hint: check that it exists: `namei -l FILE` shows where the path ends
            "#]],
        );
        check_source(
            "client_secrt = \"s3cr3t\"\nclient_secret_file = \"\"",
            expect![[r#"
                config-invalid: `sources.contoso.client_secrt` is not a known key, expected a key that docs/configuration.md lists (line 3)
                  hint: nearest known key: `client_secret`; 1 more problem below
                `sources.contoso.client_secret_file` is ``, expected a path (line 4)
            "#]],
        );
        let text = source_with("").replace("client_secret = \"${SECRET}\"\n", "");
        check(
            &text,
            expect![[r#"
            config-invalid: `sources.contoso.client_secret` is missing, expected `client_secret` or `client_secret_file` (line 1)
              hint: Entra admin centre > App registrations > Certificates & secrets; write `client_secret = "${M365_CLIENT_SECRET}"` and keep the value in the environment
        "#]],
        );
        check(
            "[sources.contoso]\nclient_secret = \"s3cr3t",
            expect![[r#"
                config-invalid: `sources.contoso.client_secret`: not TOML: invalid basic string, expected `"` (line 2)
                  hint: the text has no quotation mark at its end: close it on the same line
            "#]],
        );
        check(
            "[[sources.contoso]]\nclient_secret = \"s3cr3t\"\n[sinks.a]\ntype=\"stdout\"\ninputs=[]",
            expect![[r#"
                config-invalid: `sources.contoso`: expected a table `[sources.<name>]` (line 1)
                  hint: keys stand below a header with a name: `[sources.contoso]`; 1 more problem below
                `sinks.a.inputs` is `[]`, expected a list of the sources to receive (line 5)
            "#]],
        );
    }

    #[test]
    fn a_template_becomes_a_source_for_each_of_its_tenants() {
        let other = TENANT.replace("4444", "5555");
        let text = format!(
            "[sources.customers]\ntype = \"m365_audit\"\nclient_id = \"{TENANT}\"\nclient_secret = \"${{SECRET}}\"\n\
             poll_interval_secs = \"${{POLL}}\"\n\
             [[sources.customers.tenants]]\nname = \"fabrikam\"\ntenant_id = \"{TENANT}\"\n\
             [[sources.customers.tenants]]\ntenant_id = \"{other}\"\nauth = \"managed_identity\"\npoll_interval_secs = 30\n\
             [sources.own]\ntype = \"m365_audit\"\ntenant_id = \"99999999-1111-2222-3333-444444444444\"\n\
             client_id = \"{TENANT}\"\nclient_secret = \"x\"\n\
             [sinks.all]\ntype = \"stdout\"\ninputs = [\"customers\", \"customers.fabrikam\", \"own\"]\n\
             [sinks.one]\ntype = \"stdout\"\ninputs = [\"customers.fabrikam\"]\n"
        );
        let config = good(&text);
        let second = format!("customers.{other}");
        assert_eq!(config.sources.keys().collect::<Vec<_>>(), [&second, "customers.fabrikam", "own"]);
        let (one, two) = (&config.sources["customers.fabrikam"], &config.sources[&second]);
        assert_eq!((one.poll_interval_secs, two.poll_interval_secs), (60, 30));
        assert_eq!(one.client_secret.as_ref().map(|s| s.expose()), Some("s3cr3t~value"));
        assert_eq!((two.auth.as_str(), &two.client_secret), ("managed_identity", &None));
        assert_eq!(config.sinks["all"].inputs, ["customers.fabrikam", &*second, "own"]);
        assert_eq!(config.sinks["one"].inputs, ["customers.fabrikam"]);
    }

    #[test]
    fn what_is_wrong_with_a_template_is_told_once_and_what_is_wrong_with_a_tenant_at_the_tenant() {
        let tenants = |lines: &str| {
            format!(
                "[sources.customers]\ntype = \"m365_audit\"\n{lines}\n[sinks.out]\ntype = \"stdout\"\ninputs = [\"customers\"]\n"
            )
        };
        let entry = |lines: &str| format!("[[sources.customers.tenants]]\n{lines}\n");
        check(
            &tenants(&format!(
                "pol_interval_secs = 5\nclient_id = \"x\"\nclient_secret = \"${{NOT_SET}}\"\n{}{}{}",
                entry(&format!("tenant_id = \"{TENANT}\"\nname = \"a\"")),
                entry("tenant_id = \"contoso.com\"\ncloud = \"${SECRET}\"\nname = \"b\""),
                entry("name = \"a\""),
            )),
            expect![[r#"
                config-invalid: `sources.customers.pol_interval_secs` is not a known key, expected a key that docs/configuration.md lists (line 3)
                  hint: nearest known key: `poll_interval_secs`; 4 more problems below
                `sources.customers.client_secret`: expected the environment variable `NOT_SET` to be set (line 5)
                `sources.customers.tenants[1].tenant_id` is `contoso.com`, expected a GUID (line 10)
                  hint: Entra admin centre > Overview > Tenant ID
                `sources.customers.tenants[1].cloud` is `${SECRET}`, expected one of `enterprise`, `gcc`, `gcc_high`, `dod`, `china` (line 11)
                `sources.customers.tenants[2].name` is `a`, expected a name that no other tenant of this source has (line 14)
            "#]],
        );
        check(
            &tenants(&entry("name = \"no name\"")),
            expect![[r#"
            config-invalid: `sources.customers.tenants[0].name` is `no name`, expected a name of letters, digits, `_` and `-` (line 4)
        "#]],
        );
        check(
            &tenants("tenants = []\ntenant_id = \"x\""),
            expect![[r#"
            config-invalid: `sources.customers.tenants` is missing, expected at least one table `[[sources.customers.tenants]]` (line 3)
              hint: 1 more problem below
            `sources.customers.tenant_id`: expected no `tenant_id` beside `tenants`: each of them has its own (line 4)
        "#]],
        );
        let twice = entry(&format!("tenant_id = \"{TENANT}\"\nname = \"a\""))
            + &entry(&format!("tenant_id = \"{TENANT}\"\nname = \"b\""));
        check(
            &tenants(&format!("client_id = \"x\"\nclient_secret = \"x\"\n{twice}")),
            expect![[r#"
                config-invalid: `sources.customers.tenants[1].tenant_id`: expected a tenant that `sources.customers.a` does not read (line 9)
                  hint: one source reads all `content_types` of a tenant; to feed two sinks, name it in the `inputs` of both
            "#]],
        );
    }

    #[test]
    fn a_file_that_is_not_there_holds_up_its_own_source_only() {
        let source = |name: &str, tenant: &str, secret: &str| {
            format!(
                "[sources.{name}]\ntype = \"m365_audit\"\ntenant_id = \"{tenant}\"\nclient_id = \"{TENANT}\"\n{secret}\n"
            )
        };
        let sinks = "[sinks.out]\ntype = \"stdout\"\ninputs = [\"a\", \"b\"]\n";
        let broken = source("a", TENANT, "client_secret_file = \"/nowhere/secret\"");
        let whole = source("b", &TENANT.replace("4444", "5555"), "client_secret = \"x\"");
        let two = format!("{broken}{whole}{sinks}");
        let (config, files) = Config::parse_leniently(&two, &env, Outputs::Own, &ConfigFiles::default()).unwrap();
        assert_eq!((config.sources.len(), files.len(), files[0].key.as_str()), (2, 1, "sources.a.client_secret_file"));
        assert!(Config::parse(&two, &env).is_err(), "`validate` and `check` say it");
        let alone = format!("{broken}{}", sinks.replace(", \"b\"", ""));
        assert!(
            Config::parse_leniently(&alone, &env, Outputs::Own, &ConfigFiles::default()).is_err(),
            "there is nothing to run"
        );
        assert!(
            Config::parse_leniently(&format!("{two}[metrics]\n"), &env, Outputs::Own, &ConfigFiles::default()).is_err()
        );
    }

    #[test]
    fn one_way_to_sign_in_is_chosen_and_never_guessed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "x").unwrap();
        let file = path.display();
        let text = |lines: &str| source_with(lines).replace("client_secret = \"${SECRET}\"\n", "");
        let reported = |text: &str| {
            let problems = Config::parse(text, &env).unwrap_err().problems;
            let reported = problems.iter().map(|p| format!("{p}").replace(&*file.to_string(), "FILE"));
            reported.collect::<Vec<_>>().join("\n").replace("sources.contoso.", "")
        };
        for (lines, method) in [
            (format!("auth = \"certificate\"\ncertificate_file = '{file}'\nkey_passphrase = \"${{SECRET}}\""), "certificate"),
            (format!("auth = \"federated_token\"\nfederated_token_file = '{file}'"), "federated_token"),
            ("auth = \"managed_identity\"".to_owned(), "managed_identity"),
            ("auth = \"managed_identity\"\nmanaged_identity_host = \"azure_arc\"\nmanaged_identity_url = \"http://localhost:40342/x\"".to_owned(), "managed_identity"),
        ] {
            assert_eq!(good(&text(&lines)).sources["contoso"].auth.as_str(), method);
        }
        let without_app = text("auth = \"managed_identity\"").replace("client_id =", "# client_id =");
        assert_eq!(good(&without_app).sources["contoso"].client_id, None);

        let guess = text(&format!("certificate_file = '{file}'"));
        expect!["`auth` is missing, expected `auth = \"certificate\"` (for `certificate_file`)"]
            .assert_eq(&reported(&guess));
        let both = source_with(&format!("certificate_file = '{file}'"));
        expect!["`certificate_file`: expected no key of `auth = \"certificate\"` beside `client_secret`"]
            .assert_eq(&reported(&both));
        let other = source_with(&format!("auth = \"federated_token\"\nfederated_token_file = '{file}'"));
        expect!["`client_secret`: expected no key of `auth = \"client_secret\"` beside `auth = \"federated_token\"`"]
            .assert_eq(&reported(&other));
        expect![[r#"
            `certificate_file` is missing, expected the client certificate's file
            `key_passphrase_file`: expected only one of `key_passphrase` and `key_passphrase_file`"#]]
        .assert_eq(&reported(&text(&format!(
            "auth = \"certificate\"\nkey_passphrase = \"x\"\nkey_passphrase_file = '{file}'"
        ))));
        expect!["`managed_identity_url` is missing, expected the end point's address\n`managed_identity_header` is missing, expected what the end point wants to see"]
            .assert_eq(&reported(&text("auth = \"managed_identity\"\nmanaged_identity_host = \"app_service\"")));
        expect!["`managed_identity_url` is `http://10.0.0.1/x`, expected `https`, or a host of this machine: the bearer token would cross the network in the clear"]
            .assert_eq(&reported(&text("auth = \"managed_identity\"\nmanaged_identity_url = \"http://10.0.0.1/x\"")));
        expect!["`federated_token_file` is `/nowhere`, expected a file that can be read: No such file or directory (os error 2)"]
            .assert_eq(&reported(&text("auth = \"federated_token\"\nfederated_token_file = \"/nowhere\"")));
        expect!["`client_secret_expires` is `soon`, expected a date such as `2027-01-31`"]
            .assert_eq(&reported(&source_with("client_secret_expires = \"soon\"")));
    }

    #[test]
    fn a_secret_file_is_read_without_its_line_break() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, "s3cr3t~value\n").unwrap();
        let text = source_with(&format!("client_secret_file = '{}'", path.display()));
        assert_eq!(good(&text).sources["contoso"].read_secret().unwrap().expose(), "s3cr3t~value");
        fs::write(&path, "\n").unwrap();
        assert!(Config::parse(&text, &env).unwrap_err().to_string().contains("the file is empty"));
    }

    #[test]
    fn ranges_and_kinds_are_told() {
        check_source(
            "poll_interval_secs = 0",
            expect![[r#"
            config-invalid: `sources.contoso.poll_interval_secs` is `0`, expected an integer from 1 to 86400 (line 3)
        "#]],
        );
        check_source(
            "backfill_secs = \"7d\"",
            expect![[r#"
                config-invalid: `sources.contoso.backfill_secs` is `7d`, expected an integer from 0 to 604800 (line 3)
                  hint: write a number without quotes or unit: `604800`
            "#]],
        );
        check_source(
            "overlap_secs = 86401\nin_flight_bytes_max = 1",
            expect![[r#"
            config-invalid: `sources.contoso.overlap_secs` is `86401`, expected an integer from 0 to 86400 (line 3)
              hint: 1 more problem below
            `sources.contoso.in_flight_bytes_max` is `1`, expected an integer from 1048576 to 68719476736 (line 4)
        "#]],
        );
        check_source(
            "max_requests_per_minute = -1",
            expect![[r#"
            config-invalid: `sources.contoso.max_requests_per_minute` is `-1`, expected an integer from 0 to 1000000 (line 3)
        "#]],
        );
        check_source(
            "event_keys_max = 99999999999999999999",
            expect![[r#"
                config-invalid: `sources.contoso.event_keys_max`: not TOML: a number too large for any key, expected an integer from 0 to 1000000000 (line 3)
                  hint: write a number within that
            "#]],
        );
        check_source(
            "content_types = []",
            expect![[r#"
            config-invalid: `sources.contoso.content_types` is `[]`, expected a list with at least one of: `Audit.AzureActiveDirectory`, `Audit.Exchange`, `Audit.SharePoint`, `Audit.General`, `DLP.All` (line 3)
        "#]],
        );
        check_source(
            "content_types = \"Audit.General\"",
            expect![[r#"
                config-invalid: `sources.contoso.content_types` is `Audit.General`, expected a list with at least one of: `Audit.AzureActiveDirectory`, `Audit.Exchange`, `Audit.SharePoint`, `Audit.General`, `DLP.All` (line 3)
                  hint: a list stands in brackets: `content_types = ["Audit.General"]`
            "#]],
        );
        check_source(
            "content_types = [\"DLP.ALL\", \"Audit.General\", \"Audit.General\"]",
            expect![[r#"
            config-invalid: `sources.contoso.content_types[0]` is `DLP.ALL`, expected one of `Audit.AzureActiveDirectory`, `Audit.Exchange`, `Audit.SharePoint`, `Audit.General`, `DLP.All` (line 3)
              hint: write `DLP.All`: upper and lower case matter; 1 more problem below
            `sources.contoso.content_types[2]` is `Audit.General`, expected each value once (line 3)
        "#]],
        );
        check_source(
            "cloud = \"GCC\"",
            expect![[r#"
            config-invalid: `sources.contoso.cloud` is `GCC`, expected one of `enterprise`, `gcc`, `gcc_high`, `dod`, `china` (line 3)
              hint: write `gcc`: upper and lower case matter
        "#]],
        );
        check_source(
            "internal_domains = [\"@contoso.com\"]",
            expect![[r#"
                config-invalid: `sources.contoso.internal_domains[0]` is `@contoso.com`, expected a domain name such as `contoso.com` (line 3)
            "#]],
        );
        check_source(
            "format = \"cef\"",
            expect![[r#"
                config-invalid: `sources.contoso.format` is `cef`, expected one of `native`, `ecs`, `ocsf`, `raw` (line 3)
                  hint: nearest: `ocsf`
            "#]],
        );
    }

    #[test]
    fn a_url_that_would_show_secrets_is_refused() {
        check_source(
            "api_url = \"http://10.0.0.7:8080\"",
            expect![[r#"
            config-invalid: `sources.contoso.api_url` is `http://10.0.0.7:8080`, expected `https`, or a host of this machine: the bearer token would cross the network in the clear (line 3)
              hint: in a closed test network set `allow_plain_http = true`
        "#]],
        );
        check_source(
            "authority_url = \"http://127.0.0.1.example.com\"",
            expect![[r#"
            config-invalid: `sources.contoso.authority_url` is `http://127.0.0.1.example.com`, expected `https`, or a host of this machine: the client secret would cross the network in the clear (line 3)
              hint: in a closed test network set `allow_plain_http = true`
        "#]],
        );
        check_source(
            "api_url = \"https://proxy.example.com/m365/\"",
            expect![[r#"
                config-invalid: `sources.contoso.api_url` is `https://proxy.example.com/m365/`, expected an origin: scheme, host and port, without a path (line 3)
                  hint: write `https://proxy.example.com`
            "#]],
        );
        check_source(
            "api_url = \"https://me:s3cr3t@proxy.example.com\"",
            expect![[r#"
            config-invalid: `sources.contoso.api_url` is `https://***@proxy.example.com/`, expected an origin without user name and password (line 3)
        "#]],
        );
        check_source(
            "proxy_url = \"socks5://proxy.example.com\"",
            expect![[r#"
                config-invalid: `sources.contoso.proxy_url` is `socks5://proxy.example.com`, expected an http or https URL (line 3)
                  hint: SOCKS is not spoken: use an HTTP proxy that allows CONNECT, or put one (privoxy, gost, `ssh -D` behind either) before `proxy.example.com` and name that
            "#]],
        );
        let config = good(&source_with("api_url = \"http://10.0.0.7:8080\"\nallow_plain_http = true"));
        assert_eq!(config.warnings().len(), 1);
    }

    #[test]
    fn a_sinks_keys_are_compared_with_each_other() {
        let sink = |table: &str| {
            let text = format!("{}\n[sinks.n]\ninputs = [\"contoso\"]\n{table}", source_with(""));
            Config::parse(&text, &|_| Some("x".into())).err().map_or_else(String::new, |error| error.to_string())
        };
        let http = "type = \"http\"\nuri = \"http://127.0.0.1/\"";
        let forward = "type = \"fluent_forward\"\nservers = [\"127.0.0.1:1\"]";
        for (table, expected) in [
            (http.to_owned(), ""),
            (forward.to_owned(), ""),
            (format!("{http}\nheaders = {{ Authorization = \"Splunk x\" }}"), ""),
            (format!("{http}\nusername = \"u\""), "`username` and a password together"),
            (format!("{http}\nbearer_token = \"a\"\nbearer_token_file = \"/b\""), "only one of `bearer_token`"),
            (format!("{http}\nbearer_token = \"a\"\nheaders = {{ authorization = \"b\" }}"), "no `Authorization`"),
            (format!("{http}\nheaders = {{ \"a b\" = \"c\" }}"), "names of HTTP headers"),
            (format!("{http}\nca_file = \"/does/not/exist\""), "a file that can be read"),
            ("type = \"http\"\nuri = \"http://u:p@127.0.0.1/\"".into(), "no user name and password inside"),
            ("type = \"fluent_forward\"\nservers = [\"collector\"]".into(), "each as `host:port`"),
            (format!("{forward}\nusername = \"u\"\npassword = \"p\""), "a `shared_key` beside it"),
            ("type = \"file\"\npath = \"/x\"\nkeep = 3".into(), "nothing is renamed without them"),
            ("type = \"otlp\"\nendpoint = \"http://127.0.0.1:4317/v1/logs\"".into(), "no path"),
        ] {
            let found = sink(&table);
            match expected {
                "" => assert_eq!(found, "", "{table}"),
                expected => assert!(found.contains(expected), "{table}\n{found}"),
            }
        }
    }

    #[test]
    fn sources_and_sinks_must_meet() {
        check(
            "",
            expect![[r#"
                config-invalid: `sources` is missing, expected at least one table `[sources.<name>]`
                  hint: 1 more problem below
                `sinks` is missing, expected at least one table `[sinks.<name>]`
            "#]],
        );
        check(
            &source_with("").replace("inputs = [\"contoso\"]", "inputs = []"),
            expect![[r#"
                config-invalid: `sources.contoso` is read by no sink, expected a sink with `contoso` in its `inputs` (line 1)
                  hint: 1 more problem below
                `sinks.out.inputs` is `[]`, expected a list of the sources to receive (line 9)
            "#]],
        );
        check(
            &source_with("").replace("inputs = [\"contoso\"]", ""),
            expect![[r#"
                config-invalid: `sinks.out.inputs` is missing, expected a list of the sources to receive (line 7)
            "#]],
        );
        check(
            &source_with("").replace("inputs = [\"contoso\"]", "inputs = [\"contoso\", \"contso\"]"),
            expect![[r#"
                config-invalid: `sinks.out.inputs[1]` is `contso`, expected `contoso` (line 9)
                  hint: nearest source: `contoso`
            "#]],
        );
        check(
            &source_with("").replace("\"stdout\"", "\"sdtout\""),
            expect![[r#"
                config-invalid: `sinks.out.type` is `sdtout`, expected one of `stdout`, `file`, `http`, `fluent_forward`, `otlp`, `kafka` (line 8)
                  hint: nearest: `stdout`
            "#]],
        );
        check(
            &source_with("").replace("\"stdout\"", "\"splunk\""),
            expect![[r#"
            config-invalid: `sinks.out.type` is `splunk`, expected one of `stdout`, `file`, `http`, `fluent_forward`, `otlp`, `kafka` (line 8)
              hint: `splunk` is reached by `type = "http"`: docs/hosts/splunk.md has the settings
        "#]],
        );
        check(
            &source_with("").replace("\"stdout\"", "\"file\""),
            expect![[r#"
                config-invalid: `sinks.out.path` is missing, expected a path (line 7)
            "#]],
        );
        check(
            &source_with("").replace("sources.contoso", "sources.\"con toso\""),
            expect![[r#"
                config-invalid: `sources.con toso` is `con toso`, expected a name of letters, digits, `_` and `-` (line 1)
                  hint: 1 more problem below
                `sinks.out.inputs[0]` is `contoso`, expected `con toso` (line 9)
                  hint: nearest source: `con toso`
            "#]],
        );
    }

    #[test]
    fn two_sources_may_not_read_one_tenant_whatever_their_content_types() {
        let second = |types: &str| {
            format!(
                "{}\n[sources.again]\ntype = \"m365_audit\"\ntenant_id = \"{TENANT}\"\n\
                 client_id = \"x\"\nclient_secret = \"y\"\ncontent_types = [{types}]\n",
                source_with("content_types = [\"Audit.General\"]").replace("[\"contoso\"]", "[\"contoso\", \"again\"]")
            )
        };
        check(
            &second("\"DLP.All\""),
            expect![[r#"
                config-invalid: `sources.contoso.tenant_id`: expected a tenant that `sources.again` does not read (line 4)
                  hint: one source reads all `content_types` of a tenant; to feed two sinks, name it in the `inputs` of both
            "#]],
        );
    }

    #[test]
    fn what_looks_like_a_mistake_is_a_warning() {
        let config = good(&source_with(
            "client_id = \"app\"\nclient_secret = \"00000000-1111-2222-3333-555555555555\"\ncontent_types = [\"Audit.General\"]",
        ));
        let lines: Vec<String> = config.warnings().iter().map(Problem::to_string).collect();
        expect![[r#"
            `sources.contoso.client_id`: expected a GUID
            `sources.contoso.client_secret`: expected a secret's value; this one has the form of a secret's id
            `sources.contoso.drop_routine`: expected `false`, or `DLP.All` among `content_types`"#]]
        .assert_eq(&lines.join("\n"));
    }

    #[test]
    fn other_hosts_read_one_table_or_properties_of_text() {
        let properties = [
            ("Tenant_Id", TENANT),
            ("client_id", "00000000-1111-2222-3333-555555555555"),
            ("client_secret", "${SECRET}"),
            ("content_types", "Audit.Exchange, DLP.All"),
            ("poll_interval_secs", "5m"),
            ("in_flight_bytes_max", "64M"),
            ("drop_routine", "off"),
        ];
        let source = SourceConfig::parse_properties("m365_audit.0", properties, &env).unwrap();
        assert_eq!(source.content_types, [ContentType::Exchange, ContentType::Dlp]);
        assert_eq!((source.poll_interval_secs, source.in_flight_bytes_max), (300, 67_108_864));
        assert!(!source.drop_routine);

        let problems = SourceConfig::parse_table("x", Table::new(), &env).unwrap_err();
        let keys: Vec<&str> = problems.iter().map(|p| p.key.as_str()).collect();
        assert_eq!(keys, ["sources.x.tenant_id", "sources.x.client_id", "sources.x.client_secret"]);
    }

    #[test]
    fn what_came_from_the_environment_is_not_shown() {
        for key in ["tenant_id", "content_types", "cloud", "poll_interval_secs", "drop_routine", "api_url", "proxy_url"]
        {
            check_source(&format!("{key} = \"${{SECRET}}\""), Unchecked);
        }
        for list in ["content_types", "internal_domains"] {
            check_source(&format!("{list} = [\"${{SECRET}}@\"]"), Unchecked);
        }
        let config = good(&source_with("client_id = \"${SECRET}\""));
        assert!(!format!("{:?}", config.warnings()).contains("s3cr3t"));
    }

    #[test]
    fn what_is_shown_cannot_forge_a_line() {
        check_source(
            r#"cloud = "x\n\u001b[2Jy\\z""#,
            expect![[r#"
            config-invalid: `sources.contoso.cloud` is `x\n\u{1b}[2Jy\z`, expected one of `enterprise`, `gcc`, `gcc_high`, `dod`, `china` (line 3)
        "#]],
        );
    }

    #[test]
    fn a_byte_order_mark_and_windows_line_ends_are_fine() {
        good(&format!("\u{feff}{}", source_with("").replace('\n', "\r\n")));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let error = Config::load(Path::new("/nowhere/agent.toml")).unwrap_err();
        assert!(error.to_string().starts_with("config-invalid: cannot read the file: "), "{error}");
        assert!(error.to_string().contains("/nowhere/agent.toml"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[\\[\\]a-z.\"'=$\\{\\}0-9 \n#]{0,200}") {
            let _ = Config::parse(&text, &env);
        }
    }

    #[test]
    fn a_rule_with_a_slip_is_told_at_its_own_line_and_the_others_are_still_looked_at() {
        let text = source_with(
            "[[sources.contoso.severity.rules]]\nid = \"EX-01\"\nseverity = \"critical\"\n\
             [[sources.contoso.severity.rules]]\nid = \"EX-02\"\nseverity = \"hihg\"\n\
             [[sources.contoso.severity.rules]]\nid = \"NEW-1\"\n",
        );
        // The keys that every source needs must come before its tables.
        let (rules, keys) =
            text.split_once("[[sources").map(|(_, rest)| rest.split_once("tenant_id").unwrap()).unwrap();
        let (keys, sinks) = keys.split_once("[sinks").unwrap();
        let text = format!("[sources.contoso]\ntype = \"m365_audit\"\ntenant_id{keys}[[sources{rules}[sinks{sinks}");
        let error = Config::parse(&text, &env).unwrap_err();
        let reported: Vec<_> = error.problems.iter().map(|p| (p.key.as_str(), p.line)).collect();
        let line = |text_of_line: &str| text.lines().position(|l| l.contains(text_of_line)).unwrap();
        assert_eq!(
            reported,
            [
                ("sources.contoso.severity.rules[1]", Some(line("EX-02"))),
                ("sources.contoso.severity.rules[2]", Some(line("NEW-1"))),
            ],
            "{error}"
        );
        assert!(error.to_string().contains("hihg"), "{error}");
    }

    #[test]
    fn a_file_of_rules_is_read_and_its_slips_are_told_with_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rules.toml");
        let text = source_with(&format!("severity = {{ rules_file = \"{}\" }}", file.display()));
        fs::write(&file, "[[rule]]\nid = \"SP-12\"\ndisable = true\n").unwrap();
        assert!(good(&text).sources["contoso"].severity.load().is_ok());
        fs::write(&file, "[[rule]]\nid = \"SP-12\"\n\n[[rule]]\nid = \"X\"\n").unwrap();
        let error = Config::parse(&text, &env).unwrap_err().to_string();
        assert!(error.contains("rules.toml`, line 4") && error.contains("rule `X`"), "{error}");
        fs::remove_file(&file).unwrap();
        assert!(Config::parse(&text, &env).unwrap_err().to_string().contains("cannot be read"));
    }

    #[test]
    fn properties_of_a_host_reach_into_tables() {
        let properties = [
            ("tenant_id", TENANT),
            ("client_id", "00000000-1111-2222-3333-555555555555"),
            ("client_secret", "x"),
            ("severity.refine", "on"),
            ("Severity.Hidden_Folders", "a,b"),
            ("mask", "/Subject"),
        ];
        let source = SourceConfig::parse_properties("x", properties, &env).unwrap();
        assert!(source.severity.refine && source.severity.hidden_folders == ["a", "b"] && source.mask == ["/Subject"]);
        let bad = properties.into_iter().map(|(key, text)| (key, if key == "mask" { "Subject" } else { text }));
        let problems = SourceConfig::parse_properties("x", bad, &env).unwrap_err();
        assert!(problems.iter().any(|p| p.key == "sources.x.mask[0]"), "{problems:?}");
    }
}
