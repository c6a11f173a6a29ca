//! Reads the properties of the input's section into settings.
//!
//! Fluent Bit returns the value of a property by name but does not list the properties. So this requests every property
//! of the input, and every name that was probably meant to be one ([`names::look_alikes`]); such a name ends the start.
//! [`PluginSettings::shown`] lists the place of the state and the settings that differ from the defaults.
//!
//! Properties are the keys of `[sources.<name>]`, plus the few that [`names`] has. With `config_file` a TOML file holds
//! the tenants, and the section may have no key of a source.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::names::{
    self, BESIDE_SOURCES, BYTES_PER_TICK_MAX, CONFIG_FILE, DATA_DIR, METRICS_DETAIL, METRICS_DOCS_URL, METRICS_HOSTS,
    METRICS_LISTEN,
};
use crate::config::{
    Config, MetricsConfig, MetricsDetail, Problem, SOURCE_TYPE, SourceConfig, config_schema, source_keys,
    source_schema, typed_from_text,
};

/// The default of `bytes_per_tick_max`: more than a catch-up uses. The plugin's `benches/fluent_bit.rs` measures the
/// curve over it.
pub const BYTES_PER_TICK_DEFAULT: usize = 256 << 20;
/// Its bounds: the size of a record, and a value that no Fluent Bit reaches.
const BYTES_PER_TICK_MIN: usize = 64 << 10;
const BYTES_PER_TICK_LIMIT: usize = 1 << 30;
/// Up to this many sources are shown one by one.
const SHOWN_SOURCES_MAX: usize = 10;
/// Longer lines are broken between two settings.
const SHOWN_LINE_CHARS: usize = 120;

/// What to run.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginSettings {
    /// Where state is kept.
    pub data_dir: PathBuf,
    /// The tenants, by the source's name.
    pub sources: BTreeMap<String, SourceConfig>,
    /// Bytes one collect call may carry.
    pub bytes_per_tick_max: usize,
    /// The plugin's own metrics listener, if configured.
    pub metrics: Option<MetricsConfig>,
    /// Settings that look like mistakes.
    pub warnings: Vec<Complaint>,
}

/// What is wrong with a property, or looks wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Complaint {
    /// The property.
    pub property: String,
    /// What is wrong with it.
    pub what: String,
    /// The remedy, if it is not obvious.
    pub hint: Option<String>,
}

impl fmt::Display for Complaint {
    /// On one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, hint, .. } = self;
        match hint {
            Some(hint) => write!(f, "{what} (hint: {hint})"),
            None => f.write_str(what),
        }
    }
}

/// Where the properties come from.
#[derive(Clone, Copy)]
pub struct Properties<'a> {
    /// The value of a property, requested in lower case, with variables replaced.
    pub value: &'a dyn Fn(&str) -> Option<String>,
    /// The text as written, if that is known and a variable was replaced: values from the environment are not shown.
    pub written: &'a dyn Fn(&str) -> Option<String>,
    /// The minimum of `in_flight_bytes_max` by `bytes_per_tick_max`, unless it is written.
    pub in_flight_bytes_min: &'a dyn Fn(usize) -> u64,
}

impl PluginSettings {
    /// Reads the input's properties, each by its name.
    ///
    /// # Errors
    /// All faults.
    pub fn read(properties: Properties<'_>) -> Result<Self, Vec<Complaint>> {
        let property = properties.value;
        let mut problems = wrong_names(property);
        let is_of_a_source = |name: &&&str| !BESIDE_SOURCES.contains(name);
        let written: Vec<(&str, String)> =
            names::own().iter().filter(is_of_a_source).filter_map(|name| Some((*name, property(name)?))).collect();
        let bytes_per_tick_max = match property(BYTES_PER_TICK_MAX) {
            None => BYTES_PER_TICK_DEFAULT,
            Some(text) => tick_bytes(&text).unwrap_or_else(|expected| {
                problems.push(properties.invalid(BYTES_PER_TICK_MAX, &text, &expected));
                BYTES_PER_TICK_DEFAULT
            }),
        };
        let mut metrics = properties.metrics(None, &mut problems);
        let mut data_dir = property(DATA_DIR).map(PathBuf::from);
        let mut warnings = Vec::new();
        let sources = match property(CONFIG_FILE) {
            Some(path) => {
                for (name, _) in &written {
                    let what = format!("`{name}`: expected no key of a source beside `{CONFIG_FILE}`");
                    let hint = Some(format!("write it into {path}"));
                    problems.push(Complaint { property: (*name).to_owned(), what, hint });
                }
                let of_the_file = |what: String| Complaint { property: CONFIG_FILE.to_owned(), what, hint: None };
                match Config::load_for_host(Path::new(&path)) {
                    Ok((config, files)) => {
                        let notices = config.warnings();
                        let found = files.iter().chain(&notices);
                        let found = found.map(|p| format!("{}{}", one_line(p), p.place(None))).collect::<Vec<_>>();
                        warnings.extend(found.into_iter().map(of_the_file));
                        metrics = properties.metrics(config.metrics, &mut Vec::new());
                        data_dir = data_dir.or(Some(config.data_dir));
                        config.sources
                    }
                    Err(error) => {
                        // The problem may be in a file of `tenants_dir`.
                        let placed = |p: &Problem| format!("{}{}", one_line(p), p.place(Some(Path::new(&path))));
                        problems.extend(error.problems.iter().map(|p| of_the_file(placed(p))));
                        BTreeMap::new()
                    }
                }
            }
            None => match source(&written) {
                Ok(mut source) => {
                    if written.iter().all(|(name, _)| *name != "in_flight_bytes_max") {
                        let least = (properties.in_flight_bytes_min)(bytes_per_tick_max);
                        source.in_flight_bytes_max = source.in_flight_bytes_max.max(least);
                    }
                    warnings.extend(source.warnings(SOURCE_TYPE).into_iter().map(|p| properties.complaint(p)));
                    BTreeMap::from([(SOURCE_TYPE.to_owned(), source)])
                }
                Err(found) => {
                    problems.extend(found.into_iter().map(|problem| properties.complaint(problem)));
                    BTreeMap::new()
                }
            },
        };
        if !problems.is_empty() {
            return Err(problems);
        }
        let data_dir = data_dir.unwrap_or_else(default_data_dir);
        Ok(Self { data_dir, sources, bytes_per_tick_max, metrics, warnings })
    }

    /// Short lines: the place of the state, the tenants read, and the settings that differ from the defaults, with
    /// secrets masked.
    pub fn shown(&self) -> Vec<String> {
        let absolute = std::path::absolute(&self.data_dir).unwrap_or_else(|_| self.data_dir.clone());
        let default = if self.data_dir == default_data_dir() { ", the default of `data_dir`" } else { "" };
        let mut lines = vec![format!("state (positions and delivered events): {}{default}", absolute.display())];
        let mut own = Vec::new();
        if self.bytes_per_tick_max != BYTES_PER_TICK_DEFAULT {
            own.push(format!("{BYTES_PER_TICK_MAX}={}", self.bytes_per_tick_max));
        }
        own.extend(self.metrics.as_ref().map(|metrics| format!("{METRICS_LISTEN}={}", metrics.listen)));
        lines.extend(wrapped("not by default:", &own));
        for (name, source) in self.sources.iter().take(SHOWN_SOURCES_MAX) {
            let types: Vec<&str> = source.content_types.iter().map(|content_type| content_type.as_str()).collect();
            lines.push(format!("source `{name}`: tenant {}, {}", source.tenant_id, types.join(", ")));
            lines.extend(wrapped(&format!("source `{name}`, not by default:"), &unusual(source)));
        }
        if self.sources.len() > SHOWN_SOURCES_MAX {
            lines.push(format!("and {} more sources of `{CONFIG_FILE}`", self.sources.len() - SHOWN_SOURCES_MAX));
        }
        lines
    }
}

impl Properties<'_> {
    /// Names the key as it is written in an input's section.
    fn complaint(&self, mut problem: Problem) -> Complaint {
        if let Some(key) = problem.key.strip_prefix(&format!("sources.{SOURCE_TYPE}.")) {
            problem.key = key.to_owned();
        }
        let property = problem.key.split('[').next().unwrap_or_default().to_owned();
        if let (Some(value), Some(written)) = (&mut problem.value, (self.written)(&property)) {
            *value = written;
        }
        Complaint { property, what: problem.to_string(), hint: problem.hint }
    }

    /// The plugin's listener: the settings of the file, overridden by the properties. Without an address there is none.
    fn metrics(&self, of_the_file: Option<MetricsConfig>, problems: &mut Vec<Complaint>) -> Option<MetricsConfig> {
        let listen = (self.value)(METRICS_LISTEN).and_then(|text| {
            let address = text.trim().parse();
            if address.is_err() {
                let expected = "an address and port, as in `127.0.0.1:9598`";
                problems.push(self.invalid(METRICS_LISTEN, &text, expected));
            }
            address.ok()
        });
        let mut metrics = match (of_the_file, listen) {
            (Some(known), listen) => MetricsConfig { listen: listen.unwrap_or(known.listen), ..known },
            (None, listen) => MetricsConfig::at(listen?),
        };
        if let Some(text) = (self.value)(METRICS_DETAIL) {
            match text.trim() {
                "tenant" => metrics.detail = MetricsDetail::Tenant,
                "content_type" => metrics.detail = MetricsDetail::ContentType,
                _ => problems.push(self.invalid(METRICS_DETAIL, &text, "`tenant` or `content_type`")),
            }
        }
        if let Some(text) = (self.value)(METRICS_HOSTS) {
            metrics.hosts = text.split(',').map(str::trim).filter(|host| !host.is_empty()).map(str::to_owned).collect();
        }
        if let Some(text) = (self.value)(METRICS_DOCS_URL) {
            metrics.docs_url = text.trim().to_owned();
        }
        Some(metrics)
    }

    fn invalid(&self, property: &str, text: &str, expected: &str) -> Complaint {
        let shown = (self.written)(property).unwrap_or_else(|| text.to_owned());
        let what = format!("`{property}` is `{shown}`, expected {expected}");
        Complaint { property: property.to_owned(), what, hint: None }
    }
}

/// The properties written whose names look like one of this input or mean the same elsewhere.
fn wrong_names(property: &dyn Fn(&str) -> Option<String>) -> Vec<Complaint> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    names::look_alikes(&mut |name, meant| {
        if property(name).is_some() && seen.insert(name.to_owned()) {
            found.push(Complaint { property: name.to_owned(), what: meant.advice(name), hint: None });
        }
    });
    found
}

fn source(written: &[(&str, String)]) -> Result<SourceConfig, Vec<Problem>> {
    // The host has already replaced its variables; text that looks like one now is part of a value.
    let literal: Vec<(&str, String)> = written.iter().map(|(key, text)| (*key, text.replace('$', "$$"))).collect();
    let literal = literal.iter().map(|(key, text)| (*key, text.as_str()));
    SourceConfig::parse_properties(SOURCE_TYPE, literal, &|_| None)
}

fn tick_bytes(text: &str) -> Result<usize, String> {
    let schema = json!({ "type": "integer" });
    let bytes = typed_from_text(&schema, BYTES_PER_TICK_MAX, text)
        .and_then(|value| usize::try_from(value.as_integer()?).ok())
        .filter(|bytes| (BYTES_PER_TICK_MIN..=BYTES_PER_TICK_LIMIT).contains(bytes));
    bytes.ok_or_else(|| format!("a number of bytes from {BYTES_PER_TICK_MIN} to {BYTES_PER_TICK_LIMIT}, as in `8M`"))
}

fn one_line(problem: &Problem) -> String {
    let hint = problem.hint.as_ref().map(|hint| format!(" (hint: {hint})")).unwrap_or_default();
    format!("{problem}{hint}")
}

fn default_data_dir() -> PathBuf {
    let schema = config_schema();
    schema["properties"][DATA_DIR]["default"].as_str().map(PathBuf::from).unwrap_or_default()
}

/// The settings of a source that are not the defaults, as `key=value`; those that every line of a source has are left
/// out.
fn unusual(source: &SourceConfig) -> Vec<String> {
    let schema = source_schema();
    // A source serializes with its secrets masked.
    let Ok(Value::Object(values)) = serde_json::to_value(source) else { return Vec::new() };
    let keys = source_keys().iter().filter(|key| !["tenant_id", "content_types"].contains(key));
    keys.filter_map(|key| {
        let value = values.get(*key)?;
        let default = &schema["properties"][key]["default"];
        (!value.is_null() && value != default).then(|| format!("{key}={}", shown_value(value)))
    })
    .collect()
}

fn shown_value(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    }
}

/// Lines that begin with `first` and hold the items.
fn wrapped(first: &str, items: &[String]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for item in items {
        match lines.last_mut().filter(|line| line.chars().count() + item.chars().count() < SHOWN_LINE_CHARS) {
            Some(line) => {
                line.push_str(", ");
                line.push_str(item);
            }
            None => lines.push(format!("{first} {item}")),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    const TENANT: &str = "00000000-1111-2222-3333-444444444444";
    const CLIENT: &str = "00000000-1111-2222-3333-555555555555";

    fn read(properties: &[(&str, &str)]) -> Result<PluginSettings, Vec<Complaint>> {
        let value = |key: &str| {
            properties.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, value)| (*value).to_owned())
        };
        PluginSettings::read(Properties { value: &value, written: &|_| None, in_flight_bytes_min: &|_| 0 })
    }

    fn texts(complaints: &[Complaint]) -> Vec<String> {
        complaints.iter().map(ToString::to_string).collect()
    }

    fn with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let least = [("tenant_id", TENANT), ("client_id", CLIENT), ("client_secret", "pa$$w${o}rd")];
        least.into_iter().chain(more.iter().copied()).collect()
    }

    #[test]
    fn the_page_names_every_key_that_is_not_one_of_a_source() {
        let page = include_str!("../../../docs/hosts/fluent-bit.md");
        for key in names::own().iter().filter(|key| !source_keys().contains(key) && !key.contains('.')) {
            assert!(page.contains(&format!("| `{key}` |")), "{key}");
        }
        let default = format!("| `bytes_per_tick_max` | `{}M` |", BYTES_PER_TICK_DEFAULT >> 20);
        assert!(page.contains(&default), "{default}");
    }

    #[test]
    fn properties_are_read_as_their_types_and_dollars_are_left_alone() {
        let settings = read(&with(&[
            ("Content_Types", "Audit.General, DLP.All"),
            ("poll_interval_secs", "1m"),
            ("drop_routine", "off"),
            ("bytes_per_tick_max", "4M"),
            ("metrics_listen", "127.0.0.1:0"),
            ("metrics_detail", "content_type"),
            ("metrics_hosts", "a.example, b.example"),
        ]))
        .unwrap();
        let source = &settings.sources[SOURCE_TYPE];
        assert_eq!(source.client_secret.as_ref().unwrap().expose(), "pa$$w${o}rd");
        assert_eq!((source.content_types.len(), source.poll_interval_secs, source.drop_routine), (2, 60, false));
        assert_eq!((settings.bytes_per_tick_max, settings.data_dir), (4 << 20, "/var/lib/m365-audit".into()));
        assert_eq!(settings.warnings, []);
        let metrics = settings.metrics.unwrap();
        assert_eq!((metrics.detail, metrics.hosts.len()), (MetricsDetail::ContentType, 2));
        let problems = read(&with(&[("metrics_listen", "127.0.0.1:0"), ("metrics_detail", "fine")])).unwrap_err();
        assert_eq!(texts(&problems), ["`metrics_detail` is `fine`, expected `tenant` or `content_type`"]);
    }

    #[test]
    fn what_may_be_in_flight_follows_the_host_unless_it_is_written() {
        let in_flight = |least: u64, more: &[(&str, &str)]| {
            let properties = with(more);
            let value = |key: &str| properties.iter().find(|(k, _)| *k == key).map(|(_, value)| (*value).to_owned());
            let in_flight_bytes_min = |bytes_per_tick: usize| least.min(bytes_per_tick as u64) * 3;
            let settings = PluginSettings::read(Properties {
                value: &value,
                written: &|_| None,
                in_flight_bytes_min: &in_flight_bytes_min,
            });
            settings.unwrap().sources[SOURCE_TYPE].in_flight_bytes_max >> 20
        };
        assert_eq!(in_flight(0, &[]), 32);
        assert_eq!(in_flight(32 << 20, &[]), 96);
        assert_eq!(in_flight(32 << 20, &[("bytes_per_tick_max", "1M")]), 32);
        assert_eq!(in_flight(32 << 20, &[("in_flight_bytes_max", "8M")]), 8);
    }

    #[test]
    fn a_wrong_name_ends_the_start_with_the_right_one() {
        let wrong =
            with(&[("State_Path", "/x"), ("backfil_secs", "1"), ("storage_type", "filesystem"), ("Parser", "json")]);
        expect![[r#"
            `state_path` is not a property of this input; use `data_dir`
            `parser` is not a property of this input; remove it, nothing here is like it
            `backfil_secs` is not a property of this input; use `backfill_secs`
            `storage_type` is not a property of this input; use Fluent Bit's `storage.type`"#]]
        .assert_eq(&sorted(texts(&read(&wrong).unwrap_err())));
    }

    #[test]
    fn a_key_of_a_sources_table_is_written_with_a_dot() {
        let settings = read(&with(&[("severity.refine", "on"), ("severity.hidden_folders", "A, B")])).unwrap();
        let severity = &settings.sources[SOURCE_TYPE].severity;
        assert!(severity.refine && severity.hidden_folders == ["A", "B"]);
        let problems = read(&with(&[("severity.rules", "x")])).unwrap_err();
        assert!(texts(&problems).join("").contains("use `severity.rules_file`"), "{problems:?}");
    }

    /// A value from the environment may be a secret in the wrong place.
    #[test]
    fn a_value_that_came_from_a_variable_is_shown_as_it_was_written() {
        let properties = with(&[("tenant_id", "s3cr3t"), ("bytes_per_tick_max", "s3cr3t"), ("cloud", "s3cr3t")]);
        let value = |key: &str| properties.iter().rev().find(|(k, _)| *k == key).map(|(_, value)| (*value).to_owned());
        let written = |key: &str| (value(key)? == "s3cr3t").then(|| "${WRONG}".to_owned());
        let problems =
            PluginSettings::read(Properties { value: &value, written: &written, in_flight_bytes_min: &|_| 0 })
                .unwrap_err();
        let text = texts(&problems).join("\n");
        assert!(problems.len() == 3 && text.matches("`${WRONG}`").count() == 3 && !text.contains("s3cr3t"), "{text}");
    }

    #[test]
    fn the_effective_settings_are_short_lines_of_what_is_not_by_default_and_show_no_secret() {
        let settings = read(&with(&[
            ("data_dir", "/var/lib/elsewhere"),
            ("metrics_listen", "127.0.0.1:9598"),
            ("poll_interval_secs", "60"),
            ("backfill_secs", "86400"),
            ("proxy_url", "http://user:pa$$@proxy.example:3128"),
            ("internal_domains", "contoso.example, fabrikam.example"),
        ]));
        expect![[r#"
            state (positions and delivered events): /var/lib/elsewhere
            not by default: metrics_listen=127.0.0.1:9598
            source `m365_audit`: tenant 00000000-1111-2222-3333-444444444444, Audit.AzureActiveDirectory, Audit.Exchange, Audit.SharePoint, Audit.General, DLP.All
            source `m365_audit`, not by default: client_id=00000000-1111-2222-3333-555555555555, client_secret=***
            source `m365_audit`, not by default: poll_interval_secs=60, internal_domains=contoso.example,fabrikam.example
            source `m365_audit`, not by default: proxy_url=http://***@proxy.example:3128/"#]]
        .assert_eq(&settings.unwrap().shown().join("\n"));
        let by_default = read(&with(&[])).unwrap().shown();
        assert_eq!(
            by_default[0],
            "state (positions and delivered events): /var/lib/m365-audit, the default of `data_dir`"
        );
        assert_eq!(by_default.len(), 3, "{by_default:?}");
    }

    fn sorted(mut lines: Vec<String>) -> String {
        lines.sort_by_key(|line| (!line.contains("state_path"), !line.contains("parser"), line.clone()));
        lines.join("\n")
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let problems = read(&[
            ("tenant_id", "contoso.com"),
            ("client_id", CLIENT),
            ("bytes_per_tick_max", "1"),
            ("metrics_listen", "here"),
        ]);
        expect![[r#"
            `bytes_per_tick_max` is `1`, expected a number of bytes from 65536 to 1073741824, as in `8M`
            `metrics_listen` is `here`, expected an address and port, as in `127.0.0.1:9598`
            `tenant_id` is `contoso.com`, expected a GUID (hint: Entra admin centre > Overview > Tenant ID)
            `client_secret` is missing, expected `client_secret` or `client_secret_file` (hint: Entra admin centre > App registrations > Certificates & secrets; write `client_secret = "${M365_CLIENT_SECRET}"` and keep the value in the environment)"#]]
        .assert_eq(&texts(&problems.unwrap_err()).join("\n"));
    }

    #[test]
    fn a_file_of_several_tenants_needs_no_sinks_and_bears_no_source_keys_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tenants.toml");
        let source = |name: &str, tenant: &str| {
            format!(
                "[sources.{name}]\ntype = \"m365_audit\"\ntenant_id = \"{tenant}\"\nclient_id = \"{TENANT}\"\nclient_secret = \"s\"\n"
            )
        };
        let two = source("a", TENANT) + &source("b", "00000000-1111-2222-3333-555555555555");
        std::fs::write(&path, format!("data_dir = \"/somewhere\"\n{two}")).unwrap();
        let file = path.to_str().unwrap();
        let settings = read(&[("config_file", file)]).unwrap();
        assert_eq!((settings.sources.len(), &settings.data_dir), (2, &PathBuf::from("/somewhere")));
        let settings = read(&[("config_file", file), ("data_dir", "/elsewhere")]).unwrap();
        assert_eq!(settings.data_dir, PathBuf::from("/elsewhere"));
        let problems = read(&[("config_file", file), ("tenant_id", TENANT)]).unwrap_err();
        assert!(problems.len() == 1 && problems[0].what.contains("beside `config_file`"), "{problems:?}");
        let problems = read(&[("config_file", "/not/there.toml")]).unwrap_err();
        assert!(problems[0].what.contains("/not/there.toml"), "{problems:?}");
    }
    #[test]
    fn a_folder_of_tenants_is_read_through_the_file_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("tenants.d")).unwrap();
        let text = format!(
            "data_dir = \"/somewhere\"\ntenants_dir = \"tenants.d\"\n[sources.customers]\ntype = \"m365_audit\"\nclient_id = \"{CLIENT}\"\nclient_secret = \"s\"\n"
        );
        std::fs::write(at("tenants.toml"), text).unwrap();
        for number in 0..3 {
            let tenant = format!(
                "[[sources.customers.tenants]]\nname = \"t{number}\"\ntenant_id = \"00000000-1111-2222-3333-00000000000{number}\"\n"
            );
            std::fs::write(at("tenants.d").join(format!("t{number}.toml")), tenant).unwrap();
        }
        let file = at("tenants.toml");
        let file = file.to_str().unwrap();
        let settings = read(&[("config_file", file)]).unwrap();
        let names: Vec<&str> = settings.sources.keys().map(String::as_str).collect();
        assert_eq!(names, ["customers.t0", "customers.t1", "customers.t2"]);
        assert!(settings.warnings.is_empty());
        // A fault is reported with its own file and line.
        let wrong = "[[sources.customers.tenants]]\nname = \"t1\"\ntenant_id = \"contoso.com\"\n";
        std::fs::write(at("tenants.d/t1.toml"), wrong).unwrap();
        let problems = read(&[("config_file", file)]).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:?}");
        let place = format!("({}, line 3)", at("tenants.d/t1.toml").display());
        assert!(problems[0].what.ends_with(&place) && problems[0].property == "config_file", "{problems:?}");
    }
}
