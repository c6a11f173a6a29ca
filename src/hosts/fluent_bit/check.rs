//! Checks a configuration of Fluent Bit against the properties that the input `m365_audit` takes, and for settings that
//! lose records in a crash.
//!
//! Values are read by [`PluginSettings`], as the plugin reads them. A setting that ends Fluent Bit's start, or that the
//! plugin never gets, is a problem; one that works but can lose records is a warning. It opens no connection. Of the
//! files that the configuration names it reads only `config_file` and those of secrets, as at a start. It never shows
//! the value of a variable.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use super::file::{Configuration, Finding, Property, PropertyValue, Section};
use super::names::{self, Meant};
use super::settings::{Complaint, PluginSettings, Properties};
use crate::config::SOURCE_TYPE;

/// The result of the check.
#[derive(Debug, Default)]
pub struct ConfigReport {
    /// Faults that must be fixed.
    pub problems: Vec<Finding>,
    /// Settings that should be reviewed.
    pub warnings: Vec<Finding>,
    /// Outputs that get the input's records.
    pub outputs: usize,
}

/// Looks up an environment variable.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Checks a file and all it includes.
///
/// # Errors
/// The file itself cannot be read.
pub fn check(path: &Path, environment: Environment<'_>) -> io::Result<ConfigReport> {
    let mut configuration = Configuration::read(path)?;
    let problems = std::mem::take(&mut configuration.problems);
    let check = ConfigCheck { configuration: &configuration, environment };
    let mut report = ConfigReport { problems, ..ConfigReport::default() };
    let ours = check.ours(&mut report);
    if let Some((first, others)) = ours.split_first() {
        check.properties(first, &mut report);
        check.storage(first, &mut report);
        check.outputs(first, &mut report);
        for other in others {
            let what =
                format!("a second input `{SOURCE_TYPE}`: Fluent Bit pauses the wrong one of two and loses its records");
            let hint =
                "put all tenants into one input: `config_file` names a TOML file with a `[sources.<name>]` for each";
            report.problems.push(Finding::at(&other.place, what).hint(hint));
        }
        check.plugins(&mut report);
    }
    // In the order of the text; a stable sort, so that findings without a place stay last.
    for findings in [&mut report.problems, &mut report.warnings] {
        findings.sort_by_key(|finding| (finding.place.is_none(), finding.place.clone()));
        findings.dedup();
    }
    Ok(report)
}

struct ConfigCheck<'a> {
    configuration: &'a Configuration,
    environment: Environment<'a>,
}

impl ConfigCheck<'_> {
    fn replaced(&self, text: &str) -> String {
        self.configuration.replace(text, self.environment).text
    }

    /// A property's text with its variables replaced; `None` where it is absent or empty.
    fn value(&self, section: &Section, name: &str) -> Option<String> {
        Some(self.replaced(section.text(name)?)).filter(|text| !text.is_empty())
    }

    /// The same of the section `service`.
    fn service(&self, name: &str) -> Option<(String, &Section)> {
        self.configuration.service.iter().find_map(|section| Some((self.value(section, name)?, section)))
    }

    /// The inputs of this plugin.
    fn ours(&self, report: &mut ConfigReport) -> Vec<&Section> {
        let mut ours = Vec::new();
        let mut nearly = false;
        for input in &self.configuration.inputs {
            let Some(name) = self.value(input, "name") else {
                report.problems.push(Finding::at(&input.place, "an input without `name`; Fluent Bit does not start"));
                continue;
            };
            let plain = name.split("://").next().unwrap_or_default().to_ascii_lowercase();
            if plain == SOURCE_TYPE {
                ours.push(input);
            } else if strsim::jaro_winkler(&plain.replace(['-', '.'], "_"), SOURCE_TYPE) > 0.9 {
                nearly = true;
                let what = format!(
                    "`name` is `{}`, this input is called `{SOURCE_TYPE}`",
                    input.text("name").unwrap_or_default()
                );
                report.problems.push(Finding::at(input.place_of("name"), what));
            }
        }
        if ours.is_empty() && !nearly {
            let what = format!("no input `{SOURCE_TYPE}` in this configuration");
            let hint =
                format!("write `name: {SOURCE_TYPE}` under `pipeline.inputs`, or `[INPUT]` with `name {SOURCE_TYPE}`");
            report.problems.push(Finding { place: None, what, hint: Some(hint) });
        }
        ours
    }

    /// Checks names and values of such an input.
    fn properties(&self, input: &Section, report: &mut ConfigReport) {
        let mut values: HashMap<&str, (String, &Property)> = HashMap::new();
        let mut unset: Vec<&str> = Vec::new();
        for property in &input.properties {
            let name = property.name.as_str();
            if !names::is_known(name) {
                report.problems.push(unknown(property));
                continue;
            }
            let is_ours = !names::is_kept_by_the_host(name);
            let Some(text) = self.text_of(property, is_ours, report) else { continue };
            if !is_ours {
                continue;
            }
            let replaced = self.configuration.replace(text, self.environment);
            for variable in &replaced.unset {
                unset.push(name);
                let what = format!("`{}`: the environment variable `{variable}` is not set here", property.written);
                let hint = "Fluent Bit takes it for empty; run this command with the environment Fluent Bit has";
                report.problems.push(Finding::at(&property.place, what).hint(hint));
            }
            if replaced.text.is_empty() && replaced.unset.is_empty() {
                let what = format!("`{}` is empty, which Fluent Bit takes for not written", property.written);
                report.warnings.push(Finding::at(&property.place, what));
            } else if values.contains_key(name) {
                let what = format!("`{}` is written twice; the plugin gets the first only", property.written);
                report.problems.push(Finding::at(&property.place, what));
            } else {
                values.insert(name, (replaced.text, property));
            }
        }
        let written = |name: &str| {
            let (_, property) = values.get(name)?;
            let PropertyValue::Text(text) = &property.value else { return None };
            text.contains("${").then(|| text.clone())
        };
        let read = PluginSettings::read(Properties {
            value: &|name| values.get(name).map(|(text, _)| text.clone()).filter(|text| !text.is_empty()),
            written: &written,
            in_flight_bytes_min: &|_| 0,
        });
        let finding = |complaint: Complaint| Finding {
            place: Some(input.place_of(&complaint.property).clone()),
            what: complaint.what,
            hint: complaint.hint,
        };
        match read {
            Ok(settings) => report.warnings.extend(settings.warnings.into_iter().map(finding)),
            Err(complaints) => {
                let told = complaints.into_iter().filter(|complaint| !unset.contains(&complaint.property.as_str()));
                report.problems.extend(told.map(finding));
            }
        }
    }

    /// The text that Fluent Bit passes to the plugin, if it does.
    fn text_of<'p>(&self, property: &'p Property, is_ours: bool, report: &mut ConfigReport) -> Option<&'p str> {
        match &property.value {
            PropertyValue::Text(text) => Some(text),
            PropertyValue::List(texts) if texts.len() < 2 => texts.first().map(String::as_str),
            PropertyValue::List(texts) if is_ours => {
                let what = format!("`{}` is a list, of which the plugin gets the first item only", property.written);
                let joined = texts.join(", ");
                let hint = match property.name.as_str() {
                    "content_types" | "internal_domains" => format!("write `{}: {joined}`", property.name),
                    name => format!("write the items behind each other, separated by commas: `{name}: A, B`"),
                };
                report.problems.push(Finding::at(&property.place, what).hint(hint));
                None
            }
            PropertyValue::List(_) => None,
            PropertyValue::Nested if ["processors", "routes", "telemetry"].contains(&property.name.as_str()) => None,
            PropertyValue::Nested => {
                let what = format!("`{}` is a table or a nested list; Fluent Bit does not start", property.written);
                let inner = names::own().iter().find(|own| own.starts_with(&format!("{}.", property.name)));
                let hint = inner.map(|inner| format!("write each of its keys with a dot, such as `{inner}`"));
                report.problems.push(Finding { hint, ..Finding::at(&property.place, what) });
                None
            }
        }
    }

    /// Checks whether the input's records survive a crash.
    fn storage(&self, input: &Section, report: &mut ConfigReport) {
        let inherited = self.service("storage.inherit").is_some_and(|(text, _)| switch(&text) == Some(true));
        let written = self.value(input, "storage.type");
        let of_the_service = || self.service("storage.type").map(|(text, _)| text).filter(|_| inherited);
        let storage = written.or_else(of_the_service).unwrap_or_else(|| "memory".to_owned()).to_ascii_lowercase();
        let place = input.place_of("storage.type");
        let on_disk = storage == "filesystem";
        if !["filesystem", "memory", "memrb"].contains(&storage.as_str()) {
            let what = "`storage.type`: expected one of `filesystem`, `memory`, `memrb`; Fluent Bit does not start";
            report.problems.push(Finding::at(place, what));
            return;
        }
        let safe = "`threaded: off` with `storage.type: filesystem`, and `storage.path` in the section `service`";
        if on_disk && self.service("storage.path").is_none() {
            let what =
                "`storage.type: filesystem` needs `storage.path` in the section `service`; Fluent Bit does not start";
            report.problems.push(Finding::at(place, what));
        } else if storage == "memrb" {
            let what = "`storage.type: memrb` drops the oldest records when it is full, and a crash of Fluent Bit costs all of them";
            report.warnings.push(Finding::at(place, what).hint(safe));
        } else if !on_disk {
            let what =
                "records stay in memory only until an output has delivered them: a crash of Fluent Bit costs them";
            report.warnings.push(Finding::at(place, what).hint(safe));
            if self.value(input, "mem_buf_limit").is_none() {
                let what = "without `mem_buf_limit` a blocked output lets Fluent Bit's memory grow without bound";
                report
                    .warnings
                    .push(Finding::at(place, what).hint("`mem_buf_limit: 64M` pauses the input, which loses nothing"));
            }
        }
        let place = input.place_of("threaded");
        match self.value(input, "threaded").map(|text| switch(&text)) {
            Some(None) => {
                let what = "`threaded`: expected `on` or `off`; Fluent Bit does not start";
                report.problems.push(Finding::at(place, what));
            }
            Some(Some(false)) => {}
            written @ (None | Some(Some(true))) => {
                let is = if written.is_none() { "`threaded` is on by default" } else { "`threaded` is on" };
                let what = format!(
                    "{is}: Fluent Bit does not say when a full disk costs records, nor what it has in memory only"
                );
                report.warnings.push(Finding::at(place, what).hint(safe));
            }
        }
        if let Some((_, section)) = self.service("storage.checksum").filter(|(text, _)| switch(text) == Some(true)) {
            let what =
                "with `storage.checksum: on` a kill of Fluent Bit costs chunks it had on disk (fluent-bit#10952)";
            report
                .warnings
                .push(Finding::at(section.place_of("storage.checksum"), what).hint("`storage.checksum: off`"));
        }
    }

    /// Checks whether the input's records are delivered.
    fn outputs(&self, input: &Section, report: &mut ConfigReport) {
        let tag = self.value(input, "tag").unwrap_or_else(|| format!("{SOURCE_TYPE}.0"));
        for output in &self.configuration.outputs {
            let takes = match self.value(output, "match") {
                Some(pattern) => matches(&pattern, &tag),
                // A pattern in another syntax, or the only output.
                None => true,
            };
            if !takes {
                continue;
            }
            report.outputs += 1;
            let name = output.text("name").unwrap_or("without a name");
            let retries = self.value(output, "retry_limit").map(|text| text.to_ascii_lowercase());
            if !retries.as_deref().is_some_and(|text| ["no_limits", "false", "off"].contains(&text)) {
                let when = match retries {
                    None => "after one retry, the default of `retry_limit`,".to_owned(),
                    Some(_) => format!("with `retry_limit: {}`", output.text("retry_limit").unwrap_or_default()),
                };
                let what = format!("output `{name}`: {when} Fluent Bit drops what it could not deliver");
                report
                    .warnings
                    .push(Finding::at(output.place_of("retry_limit"), what).hint("`retry_limit: no_limits`"));
            }
            if self.value(output, "storage.total_limit_size").is_some() {
                let what =
                    format!("output `{name}`: at `storage.total_limit_size` Fluent Bit drops the oldest records");
                let hint = "leave it out; `storage.pause_on_chunks_overlimit: on` at the input pauses it instead";
                report.warnings.push(Finding::at(output.place_of("storage.total_limit_size"), what).hint(hint));
            }
        }
        let is_rewritten = self.configuration.filters.iter().any(|filter| filter.text("name") == Some("rewrite_tag"));
        if report.outputs == 0 && !is_rewritten {
            let what = format!(
                "no output's `match` takes the tag `{}`: Fluent Bit drops its records",
                input.text("tag").unwrap_or(&tag)
            );
            report.warnings.push(Finding::at(input.place_of("tag"), what));
        }
    }

    /// Whether the library is loaded.
    fn plugins(&self, report: &mut ConfigReport) {
        let configuration = self.configuration;
        for place in &configuration.plugins_sections {
            let what = "Fluent Bit does not read `[PLUGINS]` in this file";
            let hint = "put it into a file of its own and name that by `plugins_file` in `[SERVICE]`";
            report.warnings.push(Finding::at(place, what).hint(hint));
        }
        if configuration.plugins.is_empty() && self.service("plugins_file").is_none() {
            let what = "no library is named under `plugins`".to_owned();
            let hint = "right only when Fluent Bit is started with `-e …/libm365_audit.so`".to_owned();
            report.warnings.push(Finding { place: None, what, hint: Some(hint) });
        }
        for (named, place) in &configuration.plugins {
            let file = Path::new(named).file_name().unwrap_or_default().to_string_lossy();
            if file.contains("m365") && (!named.contains('/') || file.starts_with("flb-")) {
                let what =
                    format!("`{named}`: expected a path with a slash, to a file whose name does not begin with `flb-`");
                report.problems.push(Finding::at(place, what));
            }
        }
    }
}

fn unknown(property: &Property) -> Finding {
    let (written, meant) = (&property.written, names::meant(&property.name));
    let what = match meant {
        Some(Meant::Own(own)) if names::is_kept_by_the_host(&property.name) => {
            format!("`{written}` never reaches this input, Fluent Bit keeps it for itself; use `{own}`")
        }
        Some(Meant::Nothing) if names::is_kept_by_the_host(&property.name) => {
            format!("`{written}` never reaches this input, Fluent Bit keeps it for itself; remove it")
        }
        Some(meant) => meant.advice(written),
        None => format!("`{written}` is not a property of this input"),
    };
    let hint = meant.is_none().then(|| "docs/hosts/fluent-bit.md says which there are".to_owned());
    Finding { place: Some(property.place.clone()), what, hint }
}

/// `flb_utils_bool`.
fn switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" => Some(true),
        "off" | "false" | "no" => Some(false),
        _ => None,
    }
}

/// Whether a pattern with `*` for any text takes a tag.
fn matches(pattern: &str, tag: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == tag };
    let Some(mut tag) = tag.strip_prefix(first) else { return false };
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return tag.ends_with(part);
        }
        match tag.find(part) {
            Some(at) => tag = &tag[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    const TENANT: &str = "00000000-1111-2222-3333-444444444444";
    const CLIENT: &str = "00000000-1111-2222-3333-555555555555";

    fn environment(name: &str) -> Option<String> {
        match name {
            "M365_CLIENT_SECRET" => Some("s3cr3t".to_owned()),
            "MISPLACED" => Some("s3cr3t-misplaced".to_owned()),
            _ => None,
        }
    }

    fn report(name: &str, text: &str) -> ConfigReport {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        check(&path, &environment).unwrap()
    }

    /// The findings with their lines, as `problem` or `warning`.
    fn found(name: &str, text: &str) -> String {
        let report = report(name, text);
        let line = |kind: &str, finding: &Finding| {
            let place = finding.place.as_ref().map(|place| format!("{}: ", place.line)).unwrap_or_default();
            let hint = finding.hint.as_ref().map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
            format!("{kind} {place}{}{hint}", finding.what)
        };
        let problems = report.problems.iter().map(|finding| line("problem", finding));
        let all: Vec<String> = problems.chain(report.warnings.iter().map(|finding| line("warning", finding))).collect();
        assert!(!all.join("").contains("s3cr3t"), "{all:?}");
        all.join("\n")
    }

    /// A safe configuration; `more` is added to the input, `beside` at the end.
    fn yaml(more: &str, beside: &str) -> String {
        format!(
            "service:\n  storage.path: /x\nplugins: [/lib/libm365_audit.so]\npipeline:\n  outputs:\n    - {{name: http, match: 'm365.*', retry_limit: no_limits}}\n\
             \x20 inputs:\n    - name: m365_audit\n      tag: m365.audit\n      threaded: off\n      storage.type: filesystem\n      tenant_id: {TENANT}\n\
             \x20     client_id: {CLIENT}\n      client_secret: ${{M365_CLIENT_SECRET}}\n{more}{beside}"
        )
    }

    fn expect_yaml(more: &str, beside: &str, expected: Expect) {
        expected.assert_eq(&found("a.yaml", &yaml(more, beside)));
    }

    #[test]
    fn nothing_is_said_of_a_safe_configuration_in_either_format() {
        expect_yaml(
            "      processors:\n        logs:\n          - name: grep\n            regex: a b\n      pollIntervalSecs: 1m\n      severity.refine: on\n",
            "",
            expect![""],
        );
        let classic = format!(
            "[SERVICE]\n  storage.path /x\n  plugins_file plugins.conf\n[INPUT]\n  Name m365_audit\n  Tag m365.audit\n  Threaded Off\n  Storage.Type filesystem\n\
             \x20 Tenant_Id {TENANT}\n  client_id {CLIENT}\n  client_secret ${{M365_CLIENT_SECRET}}\n  content_types Audit.General, DLP.All\n[OUTPUT]\n  name stdout\n  match *\n  retry_limit False\n"
        );
        assert_eq!(found("a.conf", &classic), "");
    }

    #[test]
    fn every_unknown_name_is_told_with_the_nearest() {
        expect_yaml(
            "      state_path: /s\n      backfil_secs: 1\n      storage_type: memory\n      tls.ca_file: /c\n      qqqqqq: s3cr3t\n      clientsecrets: s3cr3t\n      storage.checksum: on\n      parser: json\n",
            "",
            expect![[r#"
                problem 15: `state_path` is not a property of this input; use `data_dir`
                problem 16: `backfil_secs` is not a property of this input; use `backfill_secs`
                problem 17: `storage_type` is not a property of this input; use Fluent Bit's `storage.type`
                problem 18: `tls.ca_file` never reaches this input, Fluent Bit keeps it for itself; use `ca_file`
                problem 19: `qqqqqq` is not a property of this input
                  hint: docs/hosts/fluent-bit.md says which there are
                problem 20: `clientsecrets` is not a property of this input; use `client_secret`
                problem 21: `storage.checksum` is not a property of this input; it belongs to Fluent Bit's section `service`
                problem 22: `parser` is not a property of this input; remove it, nothing here is like it"#]],
        );
    }

    #[test]
    fn values_are_read_as_the_plugin_reads_them_and_no_secret_is_shown() {
        expect_yaml(
            "      content_types: Audit.Exchnage\n      bytes_per_tick_max: ${MISPLACED}\n      cloud: ${MISPLACED}\n      key_passphrase: ${NOT_SET}\n      poll_interval_secs:\n      tenant_id: again\n",
            "",
            expect![[r#"
                problem 15: `content_types[0]` is `Audit.Exchnage`, expected one of `Audit.AzureActiveDirectory`, `Audit.Exchange`, `Audit.SharePoint`, `Audit.General`, `DLP.All`
                  hint: nearest: `Audit.Exchange`
                problem 16: `bytes_per_tick_max` is `${MISPLACED}`, expected a number of bytes from 65536 to 1073741824, as in `8M`
                problem 17: `cloud` is `${MISPLACED}`, expected one of `enterprise`, `gcc`, `gcc_high`, `dod`, `china`
                problem 18: `key_passphrase`: the environment variable `NOT_SET` is not set here
                  hint: Fluent Bit takes it for empty; run this command with the environment Fluent Bit has
                problem 20: `tenant_id` is written twice; the plugin gets the first only
                warning 19: `poll_interval_secs` is empty, which Fluent Bit takes for not written"#]],
        );
    }

    #[test]
    fn a_file_of_tenants_is_read_too() {
        let text = yaml("      config_file: /not/there.toml\n", "")
            .replace("client_secret: ${M365_CLIENT_SECRET}", "alias: a");
        expect![[r#"
            problem 12: `tenant_id`: expected no key of a source beside `config_file`
              hint: write it into /not/there.toml
            problem 13: `client_id`: expected no key of a source beside `config_file`
              hint: write it into /not/there.toml
            problem 15: cannot read the file: No such file or directory (os error 2) (/not/there.toml)"#]]
        .assert_eq(&found("a.yaml", &text));
    }

    #[test]
    fn what_yaml_can_write_and_the_plugin_never_gets_is_a_problem() {
        expect_yaml(
            "      content_types: [Audit.General, DLP.All]\n      severity:\n        refine: on\n      internal_domains: [contoso.example]\n",
            "",
            expect![[r#"
                problem 15: `content_types` is a list, of which the plugin gets the first item only
                  hint: write `content_types: Audit.General, DLP.All`
                problem 16: `severity` is a table or a nested list; Fluent Bit does not start
                  hint: write each of its keys with a dot, such as `severity.hidden_folders`"#]],
        );
    }

    #[test]
    fn what_a_crash_or_an_output_can_cost_is_a_warning() {
        let text = yaml("", "    - name: m365_audit\n")
            .replace("threaded: off", "alias: x")
            .replace("storage.type: filesystem", "log_level: info")
            .replace("service:\n", "service:\n  storage.checksum: on\n")
            .replace("retry_limit: no_limits", "retry_limit: 5, storage.total_limit_size: 1G");
        expect![[r#"
            problem 16: a second input `m365_audit`: Fluent Bit pauses the wrong one of two and loses its records
              hint: put all tenants into one input: `config_file` names a TOML file with a `[sources.<name>]` for each
            warning 2: with `storage.checksum: on` a kill of Fluent Bit costs chunks it had on disk (fluent-bit#10952)
              hint: `storage.checksum: off`
            warning 7: output `http`: with `retry_limit: 5` Fluent Bit drops what it could not deliver
              hint: `retry_limit: no_limits`
            warning 7: output `http`: at `storage.total_limit_size` Fluent Bit drops the oldest records
              hint: leave it out; `storage.pause_on_chunks_overlimit: on` at the input pauses it instead
            warning 9: records stay in memory only until an output has delivered them: a crash of Fluent Bit costs them
              hint: `threaded: off` with `storage.type: filesystem`, and `storage.path` in the section `service`
            warning 9: without `mem_buf_limit` a blocked output lets Fluent Bit's memory grow without bound
              hint: `mem_buf_limit: 64M` pauses the input, which loses nothing
            warning 9: `threaded` is on by default: Fluent Bit does not say when a full disk costs records, nor what it has in memory only
              hint: `threaded: off` with `storage.type: filesystem`, and `storage.path` in the section `service`"#]].assert_eq(&found("a.yaml", &text));
        let text = yaml("", "")
            .replace("m365.*", "other.*")
            .replace("storage.path: /x", "flush: 1")
            .replace("plugins:", "other:");
        expect![[r#"
            problem 11: `storage.type: filesystem` needs `storage.path` in the section `service`; Fluent Bit does not start
            warning 9: no output's `match` takes the tag `m365.audit`: Fluent Bit drops its records
            warning no library is named under `plugins`
              hint: right only when Fluent Bit is started with `-e …/libm365_audit.so`"#]].assert_eq(&found("a.yaml", &text));
    }

    #[test]
    fn a_file_without_the_input_says_so() {
        expect![[r#"
            problem no input `m365_audit` in this configuration
              hint: write `name: m365_audit` under `pipeline.inputs`, or `[INPUT]` with `name m365_audit`"#]]
        .assert_eq(&found("a.conf", "[INPUT]\n  name tail\n"));
        expect!["problem 2: `name` is `m365-audit`, this input is called `m365_audit`"]
            .assert_eq(&found("a.conf", "[INPUT]\n  name m365-audit\n"));
    }

    #[test]
    fn a_pattern_takes_tags_as_fluent_bits() {
        for (pattern, tag, takes) in [
            ("*", "a", true),
            ("m365.*", "m365.audit", true),
            ("m365.*", "m364.audit", false),
            ("*.audit", "m365.audit", true),
            ("m*.a*t", "m365.audit", true),
            ("m*x*t", "m365.audit", false),
            ("m365.audit", "m365.audit", true),
            ("m365", "m365.audit", false),
        ] {
            assert_eq!(matches(pattern, tag), takes, "{pattern} {tag}");
        }
    }
}
