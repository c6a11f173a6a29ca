//! What the operator wrote into the input's section, as settings.
//!
//! Fluent Bit gives the value of a key one asks for and no list of the keys there are: a misspelt key cannot be seen
//! from here. So every key of the source's schema is asked for, and [`Settings::shown`] says what came of it.
//!
//! Keys are those of `[sources.<name>]`, plus the few of `Key`. With `config_file` a file of our own holds the
//! tenants, and no key of a source may stand beside it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::settle::{Mode, QUEUE_BYTES_MAX};
use m365_audit::config::{Config, Problem, SOURCE_TYPE, SourceConfig, config_schema, source_keys, typed_from_text};

/// The default of `bytes_per_tick_max`: more than a catch-up reaches. `benches/fluent_bit.rs` measures the
/// curve over it.
pub const BYTES_PER_TICK_DEFAULT: usize = 256 << 20;
/// Its bounds: a record's worth, and what no Fluent Bit comes near.
const BYTES_PER_TICK_MIN: usize = 64 << 10;
const BYTES_PER_TICK_LIMIT: usize = 1 << 30;

/// A key of the input that is not one of a source's.
struct Key;

impl Key {
    const DATA_DIR: &'static str = "data_dir";
    const CONFIG_FILE: &'static str = "config_file";
    const BYTES_PER_TICK_MAX: &'static str = "bytes_per_tick_max";
    const METRICS_LISTEN: &'static str = "metrics_listen";
}

/// What to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Where state is kept.
    pub data_dir: PathBuf,
    /// The tenants, by the source's name.
    pub sources: BTreeMap<String, SourceConfig>,
    /// Bytes one collect call may carry.
    pub bytes_per_tick_max: usize,
    /// Where our own metrics listener listens, if it should.
    pub metrics_listen: Option<SocketAddr>,
    /// What looks like a mistake.
    pub warnings: Vec<String>,
}

impl Settings {
    /// Reads the input's properties, each asked for by its key.
    ///
    /// # Errors
    /// Everything that is wrong, a line each.
    pub fn read(property: &dyn Fn(&str) -> Option<String>, mode: Mode) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let written: Vec<(&str, String)> =
            source_keys().iter().filter_map(|key| Some((*key, property(key)?))).collect();
        let bytes_per_tick_max = match property(Key::BYTES_PER_TICK_MAX) {
            None => BYTES_PER_TICK_DEFAULT,
            Some(text) => tick_bytes(&text).unwrap_or_else(|problem| {
                problems.push(problem);
                BYTES_PER_TICK_DEFAULT
            }),
        };
        let mut metrics_listen = property(Key::METRICS_LISTEN).and_then(|text| {
            let address = text.trim().parse();
            if address.is_err() {
                let key = Key::METRICS_LISTEN;
                problems.push(format!("`{key}` is `{text}`, expected an address and port, as in `127.0.0.1:9598`"));
            }
            address.ok()
        });
        let mut data_dir = property(Key::DATA_DIR).map(PathBuf::from);
        let mut warnings = Vec::new();
        let sources = match property(Key::CONFIG_FILE) {
            Some(path) => {
                for (key, _) in &written {
                    let why = "expected no key of a source beside `config_file`";
                    problems.push(format!("`{key}`: {why} (hint: write it into {path})"));
                }
                match Config::load_for_host(Path::new(&path)) {
                    Ok((config, files)) => {
                        warnings.extend(files.iter().map(shown_problem));
                        warnings.extend(config.warnings().iter().map(shown_problem));
                        metrics_listen = metrics_listen.or(config.metrics.map(|metrics| metrics.listen));
                        data_dir = data_dir.or(Some(config.data_dir));
                        config.sources
                    }
                    Err(error) => {
                        let line = |p: &Problem| p.line.map(|line| format!(", line {line}")).unwrap_or_default();
                        let place = |p: &Problem| format!("{} ({path}{})", shown_problem(p), line(p));
                        problems.extend(error.problems.iter().map(place));
                        BTreeMap::new()
                    }
                }
            }
            None => match source(&written) {
                Ok(mut source) => {
                    if written.iter().all(|(key, _)| *key != "in_flight_bytes_max") {
                        // Full queues, one behind the other, must not wait for each other to be settled.
                        let full = (QUEUE_BYTES_MAX.min(bytes_per_tick_max) * mode.queues_in_flight()) as u64;
                        source.in_flight_bytes_max = source.in_flight_bytes_max.max(full);
                    }
                    warnings.extend(source.warnings(SOURCE_TYPE).iter().map(shown_problem));
                    BTreeMap::from([(SOURCE_TYPE.to_owned(), source)])
                }
                Err(found) => {
                    problems.extend(found.iter().map(shown_problem));
                    BTreeMap::new()
                }
            },
        };
        if !problems.is_empty() {
            return Err(problems);
        }
        let data_dir = data_dir.unwrap_or_else(default_data_dir);
        Ok(Self { data_dir, sources, bytes_per_tick_max, metrics_listen, warnings })
    }

    /// The effective settings, secrets masked, a line each: of a misspelt key the default is seen here.
    pub fn shown(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "configuration: {}",
            json!({
                Key::DATA_DIR: self.data_dir,
                Key::BYTES_PER_TICK_MAX: self.bytes_per_tick_max,
                Key::METRICS_LISTEN: self.metrics_listen,
            })
        )];
        // A source serializes with its secrets masked.
        lines.extend(self.sources.iter().map(|(name, source)| {
            let source = serde_json::to_string(source).unwrap_or_else(|_| "not to be shown".to_owned());
            format!("configuration of `{name}`: {source}")
        }));
        lines
    }
}

fn source(written: &[(&str, String)]) -> Result<SourceConfig, Vec<Problem>> {
    // The host has replaced its variables already; what looks like one now is a part of a value.
    let literal: Vec<(&str, String)> = written.iter().map(|(key, text)| (*key, text.replace('$', "$$"))).collect();
    let literal = literal.iter().map(|(key, text)| (*key, text.as_str()));
    SourceConfig::parse_properties(SOURCE_TYPE, literal, &|_| None)
}

fn tick_bytes(text: &str) -> Result<usize, String> {
    let schema = json!({ "type": "integer" });
    let bytes = typed_from_text(&schema, Key::BYTES_PER_TICK_MAX, text)
        .and_then(|value| usize::try_from(value.as_integer()?).ok())
        .filter(|bytes| (BYTES_PER_TICK_MIN..=BYTES_PER_TICK_LIMIT).contains(bytes));
    bytes.ok_or_else(|| {
        let key = Key::BYTES_PER_TICK_MAX;
        format!("`{key}` is `{text}`, expected a number of bytes from {BYTES_PER_TICK_MIN} to {BYTES_PER_TICK_LIMIT}, as in `8M`")
    })
}

/// A problem on one line, with the key as it is written in an input's section.
fn shown_problem(problem: &Problem) -> String {
    let mut problem = problem.clone();
    if let Some(key) = problem.key.strip_prefix(&format!("sources.{SOURCE_TYPE}.")) {
        problem.key = key.to_owned();
    }
    let hint = problem.hint.as_ref().map(|hint| format!(" (hint: {hint})")).unwrap_or_default();
    format!("{problem}{hint}")
}

fn default_data_dir() -> PathBuf {
    let schema = config_schema();
    schema["properties"][Key::DATA_DIR]["default"].as_str().map(PathBuf::from).unwrap_or_default()
}

/// Every key an input may have: those of a source and our own.
pub fn keys() -> Vec<&'static str> {
    let own = [Key::DATA_DIR, Key::CONFIG_FILE, Key::BYTES_PER_TICK_MAX, Key::METRICS_LISTEN];
    source_keys().iter().copied().chain(own).collect()
}

/// Whether the host keeps this key for itself, so that a plugin never sees it. From its `flb_input_set_property`.
#[cfg(test)]
fn is_swallowed_by_the_host(key: &str) -> bool {
    const NAMES: &[&str] = &[
        "name",
        "alias",
        "tag",
        "log_level",
        "log_suppress_interval",
        "routable",
        "mem_buf_limit",
        "listen",
        "host",
        "port",
        "ipv6",
        "threaded",
        "telemetry",
        "routes",
        "processors",
        "rate_window",
        "tls",
        "storage.type",
    ];
    const PREFIXES: &[&str] = &["oauth2", "tls.", "net.", "thread.", "rate_gate", "storage."];
    NAMES.contains(&key) || PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    const TENANT: &str = "00000000-1111-2222-3333-444444444444";

    fn read(properties: &[(&str, &str)]) -> Result<Settings, Vec<String>> {
        let get = |key: &str| {
            properties.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, value)| (*value).to_owned())
        };
        Settings::read(&get, Mode::OnPipeline)
    }

    fn with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let least = [("tenant_id", TENANT), ("client_id", TENANT), ("client_secret", "pa$$w${o}rd")];
        least.into_iter().chain(more.iter().copied()).collect()
    }

    #[test]
    fn no_key_is_one_the_host_keeps_for_itself() {
        for key in keys() {
            assert!(!is_swallowed_by_the_host(key), "{key}");
        }
    }

    #[test]
    fn the_page_names_every_key_that_is_not_one_of_a_source() {
        let page = include_str!("../../../docs/hosts/fluent-bit.md");
        for key in keys().into_iter().filter(|key| !source_keys().contains(key)) {
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
        ]))
        .unwrap();
        let source = &settings.sources[SOURCE_TYPE];
        assert_eq!(source.client_secret.as_ref().unwrap().expose(), "pa$$w${o}rd");
        assert_eq!((source.content_types.len(), source.poll_interval_secs, source.drop_routine), (2, 60, false));
        assert_eq!((settings.bytes_per_tick_max, settings.data_dir), (4 << 20, "/var/lib/m365-audit".into()));
        assert_eq!(settings.warnings, Vec::<String>::new());
    }

    #[test]
    fn what_may_be_in_flight_follows_the_mode_unless_it_is_written() {
        let in_flight = |mode, more: &[(&str, &str)]| {
            let properties = with(more);
            let get = |key: &str| properties.iter().find(|(k, _)| *k == key).map(|(_, value)| (*value).to_owned());
            Settings::read(&get, mode).unwrap().sources[SOURCE_TYPE].in_flight_bytes_max >> 20
        };
        assert_eq!(in_flight(Mode::OnPipeline, &[]), 32);
        assert_eq!(in_flight(Mode::OnOwnThread, &[]), 96);
        assert_eq!(in_flight(Mode::OnOwnThread, &[("bytes_per_tick_max", "1M")]), 32);
        assert_eq!(in_flight(Mode::OnOwnThread, &[("in_flight_bytes_max", "8M")]), 8);
    }

    #[test]
    fn the_effective_settings_show_no_secret() {
        let shown = read(&with(&[])).unwrap().shown().join("\n");
        assert!(shown.contains("\"client_secret\":\"***\"") && shown.contains("\"poll_interval_secs\":300"), "{shown}");
        assert!(!shown.contains("pa$"), "{shown}");
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let problems = read(&[
            ("tenant_id", "contoso.com"),
            ("client_id", TENANT),
            ("bytes_per_tick_max", "1"),
            ("metrics_listen", "here"),
        ]);
        expect![[r#"
            `bytes_per_tick_max` is `1`, expected a number of bytes from 65536 to 1073741824, as in `8M`
            `metrics_listen` is `here`, expected an address and port, as in `127.0.0.1:9598`
            `tenant_id` is `contoso.com`, expected a GUID (hint: Entra admin centre > Overview > Tenant ID)
            `client_secret` is missing, expected `client_secret` or `client_secret_file` (hint: Entra admin centre > App registrations > Certificates & secrets; write `client_secret = "${M365_CLIENT_SECRET}"` and keep the value in the environment)"#]]
        .assert_eq(&problems.unwrap_err().join("\n"));
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
        assert!(problems.len() == 1 && problems[0].contains("beside `config_file`"), "{problems:?}");
        let problems = read(&[("config_file", "/not/there.toml")]).unwrap_err();
        assert!(problems[0].contains("/not/there.toml"), "{problems:?}");
    }
}
