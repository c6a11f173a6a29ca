//! Names of properties: those of this input, those that Fluent Bit handles itself, and names that look like one of them
//! or mean the same in other programs.
//!
//! Fluent Bit ignores a property that a plugin does not request, and does not list the properties written. So the
//! plugin requests the names that an operator may have written in error ([`look_alikes`]): names one letter away from a
//! known one, the same words with another unit, order or joint, and what other inputs and programs call the same thing.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use crate::config::{source_keys, source_schema};

/// Where state is kept.
pub const DATA_DIR: &str = "data_dir";
/// A TOML file with the tenants.
pub const CONFIG_FILE: &str = "config_file";
/// Bytes one call of the host may carry.
pub const BYTES_PER_TICK_MAX: &str = "bytes_per_tick_max";
/// The address of the plugin's own metrics listener.
pub const METRICS_LISTEN: &str = "metrics_listen";
/// How fine its series are.
pub const METRICS_DETAIL: &str = "metrics_detail";
/// The names its pages for browsers answer to.
pub const METRICS_HOSTS: &str = "metrics_hosts";
/// Where its pages link those of errors.
pub const METRICS_DOCS_URL: &str = "metrics_docs_url";
/// Properties that are not keys of a source.
pub const BESIDE_SOURCES: [&str; 7] =
    [DATA_DIR, CONFIG_FILE, BYTES_PER_TICK_MAX, METRICS_LISTEN, METRICS_DETAIL, METRICS_HOSTS, METRICS_DOCS_URL];
/// Rules as tables, which no property can hold.
pub const RULES: &str = "severity.rules";

/// The properties of an input that Fluent Bit itself acts on (`flb_input_set_property` of 5.1.1, and `name`). A plugin
/// never sees them.
pub const CORE: &[&str] = &[
    "name",
    "alias",
    "tag",
    "log_level",
    "log_suppress_interval",
    "routable",
    "mem_buf_limit",
    "threaded",
    "thread.ring_buffer.capacity",
    "thread.ring_buffer.window",
    "rate_window",
    "rate_gate",
    "rate_gate.max_bytes",
    "rate_gate.max_records",
    "rate_gate.backpressure",
    "rate_gate.resume_ratio",
    "storage.type",
    "storage.pause_on_chunks_overlimit",
    "telemetry",
    "routes",
    "processors",
];

/// Properties that Fluent Bit also handles itself although they have no effect on this input, and what was probably
/// meant.
const KEPT: &[(&str, Meant)] = &[
    ("listen", Meant::Own(METRICS_LISTEN)),
    ("host", Meant::Own("api_url")),
    ("port", Meant::Own("api_url")),
    ("ipv6", Meant::Nothing),
    ("tls", Meant::Nothing),
    ("tls.ca_file", Meant::Own("ca_file")),
    ("tls.ca_path", Meant::Own("ca_file")),
    ("tls.crt_file", Meant::Own("certificate_file")),
    ("tls.key_file", Meant::Own("key_file")),
    ("tls.key_passwd", Meant::Own("key_passphrase")),
    ("net.connect_timeout", Meant::Own("connect_timeout_secs")),
    ("net.io_timeout", Meant::Own("request_timeout_secs")),
    ("net.proxy_url", Meant::Own("proxy_url")),
    ("oauth2.client_id", Meant::Own("client_id")),
    ("oauth2.client_secret", Meant::Own("client_secret")),
    ("oauth2.token_url", Meant::Own("authority_url")),
    ("oauth2_client_id", Meant::Own("client_id")),
    ("oauth2_client_secret", Meant::Own("client_secret")),
    ("oauth2_tenant", Meant::Own("tenant_id")),
    ("oauth2_tenant_id", Meant::Own("tenant_id")),
];
const KEPT_PREFIXES: &[&str] = &["oauth2", "tls.", "net."];

/// What an unknown property was probably meant to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meant {
    /// This property of the input.
    Own(&'static str),
    /// This property, which Fluent Bit acts on.
    Core(&'static str),
    /// It belongs elsewhere in Fluent Bit's configuration.
    Elsewhere(&'static str),
    /// A property of other inputs, and this one has none like it.
    Nothing,
}

impl Meant {
    /// The advice for the operator who wrote `name`.
    pub fn advice(self, name: &str) -> String {
        match self {
            Self::Own(own) => format!("`{name}` is not a property of this input; use `{own}`"),
            Self::Core(core) => format!("`{name}` is not a property of this input; use Fluent Bit's `{core}`"),
            Self::Elsewhere(place) => format!("`{name}` is not a property of this input; it belongs to {place}"),
            Self::Nothing => format!("`{name}` is not a property of this input; remove it, nothing here is like it"),
        }
    }
}

/// Its names in other programs.
const FOREIGN: &[(&str, &[&str])] = &[
    (
        DATA_DIR,
        &[
            "state_path",
            "state_dir",
            "state_file",
            "state_directory",
            "state",
            "storage_path",
            "storage_dir",
            "storage_directory",
            "db",
            "db_path",
            "db_file",
            "database",
            "database_path",
            "sqlite",
            "path",
            "path_db",
            "pos_file",
            "position_file",
            "checkpoint",
            "checkpoint_path",
            "checkpoint_dir",
            "checkpoint_file",
            "cursor",
            "cursor_file",
            "registry",
            "registry_file",
            "registry_path",
            "work_dir",
            "workdir",
            "working_directory",
            "persist",
            "persist_file",
            "bookmark",
            "cache_dir",
            "dir",
            "directory",
        ],
    ),
    (
        "poll_interval_secs",
        &[
            "interval",
            "interval_sec",
            "interval_secs",
            "interval_seconds",
            "interval_nsec",
            "poll",
            "poll_secs",
            "polling",
            "frequency",
            "period",
            "refresh_interval",
            "scrape_interval",
            "scrape_interval_secs",
            "api.poll_interval",
            "api_poll_interval",
            "schedule",
            "poll_every",
            "every",
            "collect_interval",
            "fetch_interval",
            "query_interval",
        ],
    ),
    (
        "tenant_id",
        &[
            "tenant",
            "tenants",
            "tenant_guid",
            "tenantid_guid",
            "tenant_domain",
            "tenant_name",
            "directory_id",
            "aad_tenant_id",
            "azure_tenant",
            "azure_tenant_id",
            "organization_id",
            "organisation_id",
            "customer_id",
        ],
    ),
    (
        "client_id",
        &[
            "application_id",
            "app_id",
            "appid",
            "client",
            "application",
            "application_client_id",
            "azure_client_id",
            "aad_client_id",
            "client_guid",
        ],
    ),
    (
        "client_secret",
        &[
            "secret",
            "secret_key",
            "secret_value",
            "app_secret",
            "application_secret",
            "client_secret_value",
            "password",
            "client_password",
            "api_key",
            "apikey",
            "client_key",
            "azure_client_secret",
            "token",
            "access_token",
        ],
    ),
    (
        "client_secret_file",
        &[
            "secret_file",
            "secret_path",
            "client_secret_path",
            "password_file",
            "client_key_file",
            "client_secret_from_file",
        ],
    ),
    ("client_secret_expires", &["secret_expires", "client_secret_expiry", "secret_expiry", "client_secret_end"]),
    (
        "certificate_file",
        &[
            "certificate",
            "cert",
            "cert_file",
            "crt_file",
            "certificate_path",
            "client_certificate",
            "client_certificate_file",
            "client_cert",
            "client_cert_file",
            "pfx",
            "pfx_file",
            "tls_crt_file",
        ],
    ),
    ("key_file", &["key", "private_key", "private_key_file", "key_path", "certificate_key", "certificate_key_file"]),
    ("key_passphrase", &["passphrase", "key_password", "key_passwd", "certificate_password", "pfx_password"]),
    ("federated_token_file", &["token_file", "identity_token_file", "azure_federated_token_file"]),
    (
        "content_types",
        &[
            "content_type",
            "content",
            "contents",
            "subscriptions",
            "subscription",
            "workload",
            "workloads",
            "audit_types",
            "types",
            "streams",
            "log_types",
            "feeds",
            "sources",
            "api.content_type",
            "categories",
        ],
    ),
    (
        "cloud",
        &["environment", "azure_cloud", "azure_environment", "cloud_type", "api_type", "region", "national_cloud"],
    ),
    ("auth", &["auth_method", "auth_type", "authentication", "auth_mode", "credentials"]),
    (
        "api_url",
        &[
            "endpoint",
            "api_endpoint",
            "url",
            "uri",
            "base_url",
            "api",
            "api_host",
            "api_base",
            "api.resource",
            "resource",
            "api_root",
            "management_url",
            "server",
        ],
    ),
    (
        "authority_url",
        &[
            "authority",
            "authority_host",
            "login_endpoint",
            "login_url",
            "login_host",
            "auth_url",
            "auth_endpoint",
            "token_url",
            "api.authentication_endpoint",
            "authentication_endpoint",
            "issuer",
        ],
    ),
    ("audience", &["scope", "resource_id", "token_audience"]),
    (
        "backfill_secs",
        &[
            "backfill",
            "initial_lookback",
            "lookback",
            "look_back",
            "since",
            "start_time",
            "start",
            "from",
            "history",
            "max_retention",
            "api.max_retention",
            "read_from_head",
            "read_from_beginning",
            "from_beginning",
            "start_from",
            "only_future_events",
            "retention",
            "days",
            "backfill_days",
            "backfill_hours",
            "max_age",
        ],
    ),
    (
        "max_requests_per_minute",
        &[
            "rate_limit",
            "rate",
            "max_rpm",
            "rpm",
            "quota",
            "requests_per_min",
            "max_requests_per_min",
            "max_requests",
            "api.max_requests_per_minute",
            "throttle",
        ],
    ),
    ("proxy_url", &["proxy", "http_proxy", "https_proxy", "proxy_host", "proxy_server", "proxy_address"]),
    ("no_proxy", &["proxy_exceptions", "proxy_bypass"]),
    (
        "ca_file",
        &["ca", "ca_cert", "ca_certificate", "ca_bundle", "cacert", "ca_path", "ssl_ca", "tls_ca_file", "root_ca"],
    ),
    (
        METRICS_LISTEN,
        &[
            "metrics",
            "metrics_port",
            "metrics_addr",
            "metrics_address",
            "metrics_host",
            "prometheus",
            "prometheus_listen",
        ],
    ),
    (
        CONFIG_FILE,
        &[
            "config",
            "conf",
            "config_path",
            "conf_file",
            "configuration",
            "configuration_file",
            "tenants_file",
            "tenants_dir",
            "toml",
        ],
    ),
    (BYTES_PER_TICK_MAX, &["batch_size", "batch_bytes", "batch_bytes_max", "bytes_per_second", "chunk_size_max"]),
    (
        "in_flight_bytes_max",
        &["buffer_size", "buffer_max_size", "buffer_limit", "mem_limit", "memory_limit", "queue_bytes_max"],
    ),
    (
        "request_timeout_secs",
        &[
            "timeout",
            "timeout_secs",
            "http_timeout",
            "read_timeout",
            "scrape_timeout_secs",
            "response_timeout",
            "api_timeout",
        ],
    ),
    ("connect_timeout_secs", &["dial_timeout", "connection_timeout", "connection_timeout_secs", "connecttimeout_secs"]),
    ("format", &["output_format", "record_format", "event_format", "schema", "codec"]),
    (
        "raw",
        &[
            "include_raw",
            "raw_log",
            "keep_raw",
            "raw_form",
            "preserve_original_event",
            "original",
            "raw_event",
            "log_key",
        ],
    ),
    ("drop_routine", &["drop", "drop_noise", "filter_routine", "drop_reads", "routine", "skip_routine"]),
    ("internal_domains", &["domains", "internal_domain", "domain", "own_domains", "company_domains"]),
    ("mask_detected_values", &["mask_dlp", "mask_values", "mask_secrets", "mask_sensitive"]),
    ("publisher_identifier", &["publisher_id", "publisher", "publisher_guid"]),
    (
        "severity.rules_file",
        &["rules_file", "rules", "rules_path", "severity_rules", "severity_rules_file", "severity_file", RULES],
    ),
    ("severity.refine", &["refine", "severity_refine"]),
    ("severity.hidden_folders", &["hidden_folders", "severity_hidden_folders", "folders"]),
];

const FOREIGN_CORE: &[(&str, &[&str])] = &[
    ("tag", &["tag_name", "label"]),
    ("threaded", &["thread", "threads", "threading", "thread.enabled", "multithreaded"]),
    ("mem_buf_limit", &["mem_buffer_limit", "memory_buffer_limit", "memory_buf_limit", "mem_limit_buf", "buf_limit"]),
    ("storage.type", &["storage_type", "storage", "storagetype", "buffer_type", "storage.typ"]),
    ("storage.pause_on_chunks_overlimit", &["storage_pause_on_chunks_overlimit", "pause_on_chunks_overlimit"]),
    ("thread.ring_buffer.capacity", &["ring_buffer_capacity", "thread_ring_buffer_capacity", "ring_buffer.capacity"]),
    ("thread.ring_buffer.window", &["ring_buffer_window", "thread_ring_buffer_window", "ring_buffer.window"]),
    ("log_level", &["loglevel", "log.level", "level", "verbosity", "debug"]),
];

const SERVICE: Meant = Meant::Elsewhere("Fluent Bit's section `service`");
const OUTPUT: Meant = Meant::Elsewhere("an output");

const ELSEWHERE: &[(Meant, &[&str])] = &[
    (
        SERVICE,
        &[
            "flush",
            "grace",
            "daemon",
            "hot_reload",
            "http_server",
            "http_listen",
            "http_port",
            "plugins_file",
            "parsers_file",
            "streams_file",
            "log_file",
            "storage.path",
            "storage.sync",
            "storage.checksum",
            "storage.backlog.mem_limit",
            "storage.max_chunks_up",
            "storage.metrics",
            "storage.inherit",
            "storage.delete_irrecoverable_chunks",
            "storage.keep.rejected",
            "scheduler.base",
            "scheduler.cap",
        ],
    ),
    (OUTPUT, &["retry_limit", "match", "match_regex", "workers", "storage.total_limit_size"]),
    (
        Meant::Nothing,
        &[
            "parser",
            "parsers",
            "multiline",
            "multiline.parser",
            "multiline_parser",
            "parser_firstline",
            "path_key",
            "offset_key",
            "read_from_tail",
            "exclude_path",
            "skip_long_lines",
            "skip_empty_lines",
            "buffer_chunk_size",
            "inotify_watcher",
            "rotate_wait",
            "ignore_older",
            "docker_mode",
            "db.sync",
            "db.locking",
            "db.journal_mode",
            "db.compare_filename",
            "tag_regex",
            "watcher_interval",
            "progress_check_interval",
            "static_batch_size",
            "command",
            "oneshot",
            "samples",
            "dummy",
            "systemd_filter",
            "systemd_filter_type",
            "max_entries",
            "max_fields",
            "strip_underscores",
            "lowercase",
            "unix_path",
            "unix_perm",
            "mode",
            "source_address_key",
            "tag_prefix",
            "index",
            "hostname",
            "user",
            "username",
            "port_name",
            "encoding",
        ],
    ),
];

/// Synonyms.
const SYNONYMS: &[(&str, &[&str])] = &[
    ("dir", &["directory", "folder", "path"]),
    ("file", &["path", "filename"]),
    ("url", &["uri", "endpoint", "host", "address"]),
    ("poll", &["polling"]),
    ("certificate", &["cert", "crt"]),
    ("passphrase", &["password", "passwd"]),
    ("bytes", &["size", "byte"]),
    ("requests", &["request", "reqs"]),
    ("minute", &["min", "minutes"]),
    ("timeout", &["time_out"]),
    ("backfill", &["back_fill"]),
    ("listen", &["address", "addr", "port"]),
    ("identifier", &["id"]),
];
const UNITS: &[&str] =
    &["sec", "s", "second", "seconds", "ms", "msec", "min", "mins", "minute", "minutes", "h", "hours", "days"];
const PREFIXES: &[&str] = &["m365_audit_", "m365_", "audit_", "o365_", "office365_", "microsoft365_"];
const JOINTS: &[&str] = &["_", "-", ".", ""];

/// Every property of this input, in the order of the documentation; a key of a table inside a source's is written with
/// a dot.
pub fn own() -> &'static [&'static str] {
    static OWN: OnceLock<Vec<&'static str>> = OnceLock::new();
    OWN.get_or_init(|| {
        let schema = source_schema();
        let inner = source_keys().iter().flat_map(|key| {
            let properties = schema["properties"][key]["properties"].as_object().into_iter().flatten();
            // A list of tables cannot be written as a text.
            let plain = properties.filter(|(_, inner)| inner["items"]["type"] != "object");
            plain.map(|(inner, _)| &*format!("{key}.{inner}").leak()).collect::<Vec<&'static str>>()
        });
        source_keys().iter().copied().chain(inner).chain(BESIDE_SOURCES).collect()
    })
}

/// Whether Fluent Bit handles this property itself, so that a plugin never gets it; case-insensitive.
pub fn is_kept_by_the_host(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    CORE.contains(&name.as_str())
        || KEPT.iter().any(|(kept, _)| *kept == name)
        || KEPT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether the property has an effect here, this input's or Fluent Bit's; case-insensitive.
pub fn is_known(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    own().contains(&name.as_str()) || CORE.contains(&name.as_str())
}

/// The property that the unknown `name` was probably meant to be.
pub fn meant(name: &str) -> Option<Meant> {
    /// Below this two words have hardly a letter in common.
    const LIKENESS_MIN: f64 = 0.8;
    let name = name.to_ascii_lowercase();
    if let Some((_, meant)) = KEPT.iter().find(|(kept, _)| *kept == name) {
        return Some(*meant);
    }
    if KEPT_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
        return Some(Meant::Nothing);
    }
    let forms = other_forms();
    if let Some(meant) = forms.get(name.as_str()) {
        return Some(*meant);
    }
    let known =
        own().iter().map(|own| (*own, Meant::Own(own))).chain(CORE.iter().map(|core| (*core, Meant::Core(core))));
    let all: Vec<(&str, Meant)> = known.chain(forms.iter().map(|(form, meant)| (form.as_str(), *meant))).collect();
    let slips = |form: &str| strsim::damerau_levenshtein(&name, form);
    let slipped =
        all.iter().map(|(form, meant)| (slips(form), *form, *meant)).min_by_key(|(slips, form, _)| (*slips, *form));
    if let Some((slips, _, meant)) = slipped.filter(|(slips, ..)| *slips * 4 <= name.len()) {
        debug_assert!(slips > 0 || !is_known(&name));
        return Some(meant);
    }
    let like = all.iter().map(|(form, meant)| (strsim::jaro_winkler(&name, form), *meant));
    let nearest = like.max_by(|a, b| a.0.total_cmp(&b.0));
    nearest.filter(|(likeness, _)| *likeness >= LIKENESS_MIN).map(|(_, meant)| meant)
}

/// Visits the names that an operator may have written in place of a known property. Lower case; a name may come more
/// than once, and its first meaning is the most likely.
pub fn look_alikes(visit: &mut dyn FnMut(&str, Meant)) {
    let known: HashSet<&str> = own().iter().chain(CORE).copied().collect();
    for (form, meant) in ordered_forms() {
        visit(form, *meant);
    }
    let targets =
        own().iter().map(|own| (*own, Meant::Own(own))).chain(CORE.iter().map(|core| (*core, Meant::Core(core))));
    for (target, meant) in targets {
        let mut visit = |name: &str| {
            if !known.contains(name) {
                visit(name, meant);
            }
        };
        slips(target, &mut visit);
        if let Some(short) = target.strip_suffix("_secs") {
            slips(short, &mut visit);
        }
    }
}

/// Every text one typing error away: a letter left out, added, replaced, or changed with its neighbour.
fn slips(word: &str, visit: &mut dyn FnMut(&str)) {
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz_-.";
    let letters = word.as_bytes();
    let mut text = String::with_capacity(word.len() + 1);
    let mut tell = |parts: [&[u8]; 3]| {
        text.clear();
        text.extend(parts.iter().flat_map(|part| part.iter()).map(|letter| char::from(*letter)));
        visit(&text);
    };
    for at in 0..=letters.len() {
        let (before, after) = letters.split_at(at);
        for letter in LETTERS {
            tell([before, std::slice::from_ref(letter), after]);
        }
        let Some((here, rest)) = after.split_first() else { continue };
        tell([before, rest, &[]]);
        for letter in LETTERS.iter().filter(|letter| *letter != here) {
            tell([before, std::slice::from_ref(letter), rest]);
        }
        if let Some((next, rest)) = rest.split_first() {
            tell([before, &[*next, *here], rest]);
        }
    }
}

/// Other forms of known properties and their names in other programs, each once.
fn other_forms() -> &'static HashMap<String, Meant> {
    static FORMS: OnceLock<HashMap<String, Meant>> = OnceLock::new();
    FORMS.get_or_init(|| ordered_forms().iter().cloned().collect())
}

/// The same, with the likelier meanings first.
fn ordered_forms() -> &'static [(String, Meant)] {
    static FORMS: OnceLock<Vec<(String, Meant)>> = OnceLock::new();
    FORMS.get_or_init(|| {
        let mut seen: HashSet<String> = own().iter().chain(CORE).map(|known| (*known).to_owned()).collect();
        let mut forms = Vec::new();
        let mut add = |form: String, meant| {
            if seen.insert(form.clone()) {
                forms.push((form, meant));
            }
        };
        for (own, names) in FOREIGN {
            names.iter().for_each(|name| add((*name).to_owned(), Meant::Own(own)));
        }
        for (core, names) in FOREIGN_CORE {
            names.iter().for_each(|name| add((*name).to_owned(), Meant::Core(core)));
        }
        for (meant, names) in ELSEWHERE {
            names.iter().for_each(|name| add((*name).to_owned(), *meant));
        }
        for own in own() {
            forms_of(own).into_iter().for_each(|form| add(form, Meant::Own(own)));
        }
        forms
    })
}

/// The words of `key` with another unit, order or joint.
fn forms_of(key: &str) -> Vec<String> {
    let words: Vec<&str> = key.split('_').collect();
    let mut lists: Vec<Vec<&str>> = vec![words.clone()];
    if let Some((&"secs", rest)) = words.split_last() {
        lists.push(rest.to_vec());
        lists.extend(UNITS.iter().map(|unit| [rest, &[unit]].concat()));
    }
    if let Some(at) = words.iter().position(|word| *word == "max") {
        let rest = [&words[..at], &words[at + 1..]].concat();
        lists.push(rest.clone());
        for word in ["max", "limit", "maximum"] {
            lists.push([&[word], &rest[..]].concat());
            lists.push([&rest[..], &[word]].concat());
        }
    }
    for (at, word) in words.iter().enumerate() {
        let others = SYNONYMS.iter().filter(|(known, _)| known == word).flat_map(|(_, others)| others.iter());
        lists.extend(others.map(|other| [&words[..at], &[other], &words[at + 1..]].concat()));
        if at > 0 {
            let mut swapped = words.clone();
            swapped.swap(at - 1, at);
            lists.push(swapped);
        }
        // `bytes_max` for `hold_bytes_max` would mean several, three words less one seldom do.
        if words.len() > 2 {
            lists.push([&words[..at], &words[at + 1..]].concat());
        }
    }
    let mut forms = Vec::new();
    for list in lists {
        forms.extend(JOINTS.iter().map(|joint| list.join(joint)));
        forms.extend(PREFIXES.iter().map(|prefix| format!("{prefix}{}", list.join("_"))));
    }
    forms
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names that the plugin requests, and the meaning of each.
    fn asked() -> HashMap<String, Meant> {
        let mut asked = HashMap::new();
        look_alikes(&mut |name, meant| {
            asked.entry(name.to_owned()).or_insert(meant);
        });
        asked
    }

    #[test]
    fn no_property_of_ours_is_one_the_host_keeps_for_itself() {
        for name in own() {
            assert!(!is_kept_by_the_host(name), "{name}");
        }
    }

    #[test]
    fn a_name_that_is_likely_written_in_error_is_asked_for_and_its_right_name_told() {
        let asked = asked();
        let found = |written: &str| asked.get(&written.to_ascii_lowercase()).copied();
        for (written, right) in [
            // What other inputs and programs call it.
            ("state_path", DATA_DIR),
            ("db", DATA_DIR),
            ("pos_file", DATA_DIR),
            ("interval_sec", "poll_interval_secs"),
            ("tenant", "tenant_id"),
            ("application_id", "client_id"),
            ("Secret", "client_secret"),
            ("subscriptions", "content_types"),
            ("initial_lookback", "backfill_secs"),
            ("tenants_file", CONFIG_FILE),
            ("rules_file", "severity.rules_file"),
            (RULES, "severity.rules_file"),
            // Slips.
            ("backfil_secs", "backfill_secs"),
            ("tennant_id", "tenant_id"),
            ("cleint_id", "client_id"),
            ("client_secert", "client_secret"),
            ("data_dri", DATA_DIR),
            ("drop_rutine", "drop_routine"),
            ("poll_intervall", "poll_interval_secs"),
            ("severity.rule_file", "severity.rules_file"),
            // Joints, units, order, prefixes.
            ("tenantId", "tenant_id"),
            ("client-secret-file", "client_secret_file"),
            ("data.dir", DATA_DIR),
            ("pollintervalsecs", "poll_interval_secs"),
            ("backfill_days", "backfill_secs"),
            ("overlap_seconds", "overlap_secs"),
            ("request_timeout", "request_timeout_secs"),
            ("max_bytes_per_tick", BYTES_PER_TICK_MAX),
            ("requests_per_minute_max", "max_requests_per_minute"),
            ("m365_tenant_id", "tenant_id"),
            ("audit_content_types", "content_types"),
            ("id_tenant", "tenant_id"),
            ("data_directory", DATA_DIR),
            ("mask_values", "mask_detected_values"),
        ] {
            assert_eq!(found(written), Some(Meant::Own(right)), "{written}");
            assert_eq!(meant(written), Some(Meant::Own(right)), "{written}");
        }
        for (written, right) in [
            ("storage_type", "storage.type"),
            ("mem_buf_limt", "mem_buf_limit"),
            ("treaded", "threaded"),
            ("tags", "tag"),
        ] {
            assert_eq!(found(written), Some(Meant::Core(right)), "{written}");
            assert_eq!(meant(written), Some(Meant::Core(right)), "{written}");
        }
        assert_eq!(found("storage.checksum"), Some(SERVICE));
        assert_eq!(found("retry_limit"), Some(OUTPUT));
        assert_eq!(found("parser"), Some(Meant::Nothing));
    }

    /// Names too different for the plugin to request are still found in a file.
    #[test]
    fn what_is_several_slips_away_is_found_in_a_file() {
        for (written, right) in [
            ("poling_intervall_secs", "poll_interval_secs"),
            ("clientsecretfiles", "client_secret_file"),
            ("max_request_per_minutes", "max_requests_per_minute"),
            ("tls.ca_file", "ca_file"),
            ("oauth2_tenant", "tenant_id"),
        ] {
            assert_eq!(meant(written), Some(Meant::Own(right)), "{written}");
        }
        assert_eq!(meant("zzzzzz"), None);
        assert_eq!(meant("net.keepalive"), Some(Meant::Nothing));
    }

    #[test]
    fn every_slip_in_every_property_of_ours_is_asked_for_and_no_known_name_is() {
        let asked = asked();
        let known: HashSet<&str> = own().iter().chain(CORE).copied().collect();
        assert!(asked.len() > 50_000, "{}", asked.len());
        for name in asked.keys() {
            assert!(!known.contains(name.as_str()) && !name.contains(char::is_uppercase), "{name}");
        }
        for name in own() {
            for at in 0..name.len() {
                let left_out = format!("{}{}", &name[..at], &name[at + 1..]);
                let doubled = format!("{}{}", &name[..=at], &name[at..]);
                assert!(known.contains(left_out.as_str()) || asked.contains_key(&left_out), "{left_out}");
                assert!(known.contains(doubled.as_str()) || asked.contains_key(&doubled), "{doubled}");
            }
        }
    }
}
