//! Builds a source's configuration in code, for hosts that have a configuration of their own.
//!
//! The operator's TOML goes through this module, too, once it is a tree: same keys, same checks, same messages. So a
//! key is declared in one place, and a new key needs no change here.

use std::fmt;
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use super::problem::{ConfigError, Fault, Problem};
use super::record::Format;
use super::schema::source_schema;
use super::source::{AuthMethod, Cloud, SourceConfig};
use crate::model::ContentType;

/// Makes a [`SourceConfig`]: see [`SourceConfig::builder`].
#[derive(Clone)]
#[must_use = "`build` makes the configuration"]
pub struct SourceConfigBuilder {
    keys: Map<String, Value>,
    problems: Vec<Problem>,
}

impl SourceConfig {
    /// Begins a configuration in code. A key that is not set has the default of `docs/configuration.md`.
    ///
    /// ```
    /// use m365_audit::SourceConfig;
    /// use m365_audit::values::{ContentType, Format};
    ///
    /// let config = SourceConfig::builder()
    ///     .tenant_id("7f3c0a1e-5b1d-4a54-9a0e-2f0d6c1b8e55")
    ///     .client_id("c0ffee00-1111-4222-8333-444455556666")
    ///     .client_secret("kX48Q~0123456789abcdefghijklmnopqrstuvwx")
    ///     .content_types([ContentType::Exchange, ContentType::Dlp])
    ///     .format(Format::Ecs)
    ///     .set("poll_interval_secs", 60)
    ///     .build()?;
    /// assert_eq!(config.poll_interval_secs, 60);
    /// # Ok::<(), m365_audit::values::ConfigError>(())
    /// ```
    ///
    /// A wrong key is reported as to an operator: by name, with the expected value and the remedy.
    ///
    /// ```
    /// # use m365_audit::SourceConfig;
    /// let wrong = SourceConfig::builder().tenant_id("contoso.com").set("backfil_secs", 0).build().unwrap_err();
    /// let of = |key| wrong.problems.iter().find(|problem| problem.key == key).and_then(|problem| problem.hint.as_deref());
    /// assert_eq!(of("tenant_id"), Some("Entra admin centre > Overview > Tenant ID"));
    /// assert_eq!(of("backfil_secs"), Some("nearest known key: `backfill_secs`"));
    /// ```
    pub fn builder() -> SourceConfigBuilder {
        SourceConfigBuilder { keys: Map::new(), problems: Vec::new() }
    }

    /// JSON Schema of a source's keys, for a host that checks or documents its configuration by schema.
    pub fn json_schema() -> Value {
        source_schema()
    }
}

impl SourceConfigBuilder {
    /// The tenant's directory id, a GUID.
    pub fn tenant_id(self, id: impl AsRef<str>) -> Self {
        self.set("tenant_id", id.as_ref())
    }

    /// The client id of the application that was granted `ActivityFeed.Read`, a GUID.
    pub fn client_id(self, id: impl AsRef<str>) -> Self {
        self.set("client_id", id.as_ref())
    }

    /// Signs in with the application's client secret: its value, not its id.
    pub fn client_secret(self, secret: impl AsRef<str>) -> Self {
        self.set("client_secret", secret.as_ref())
    }

    /// Signs in with the client secret that this file holds; it is read again when it changes.
    pub fn client_secret_file(self, path: impl AsRef<Path>) -> Self {
        self.set("client_secret_file", path.as_ref())
    }

    /// Signs in with the client certificate in this file: PEM with its key, or PFX. Needs the feature `certificates`, or
    /// the configuration is refused.
    pub fn certificate_file(self, path: impl AsRef<Path>) -> Self {
        self.set("auth", AuthMethod::Certificate).set("certificate_file", path.as_ref())
    }

    /// Signs in with the token of an outside issuer, read again from this file for each sign-in.
    pub fn federated_token_file(self, path: impl AsRef<Path>) -> Self {
        self.set("auth", AuthMethod::FederatedToken).set("federated_token_file", path.as_ref())
    }

    /// Signs in with the identity that Azure gave this machine.
    pub fn managed_identity(self) -> Self {
        self.set("auth", AuthMethod::ManagedIdentity)
    }

    /// The content types to read; all five unless set.
    pub fn content_types(self, types: impl IntoIterator<Item = ContentType>) -> Self {
        self.set("content_types", types.into_iter().map(ContentType::as_str).collect::<Vec<_>>())
    }

    /// Which of Microsoft's clouds the tenant lives in.
    pub fn cloud(self, cloud: Cloud) -> Self {
        self.set("cloud", cloud)
    }

    /// The shape of a record.
    pub fn format(self, format: Format) -> Self {
        self.set("format", format)
    }

    /// Any key of `docs/configuration.md`, by its name there. A `$` is a dollar: variables are replaced only in files.
    pub fn set(mut self, key: &str, value: impl Serialize) -> Self {
        match serde_json::to_value(value) {
            Ok(value) => drop(self.keys.insert(key.to_owned(), value)),
            Err(error) => {
                let expected = format!("a value that can be written as JSON ({error})");
                self.problems.push(Problem::new(key, Fault::Invalid, expected));
            }
        }
        self
    }

    /// The configuration.
    ///
    /// # Errors
    /// All problems, each with its key.
    pub fn build(self) -> Result<SourceConfig, ConfigError> {
        let mut problems = self.problems;
        match SourceConfig::parse_json("", self.keys) {
            Ok(config) if problems.is_empty() => return Ok(config),
            Ok(_) => {}
            Err(more) => problems.extend(more),
        }
        for problem in &mut problems {
            problem.key = problem.key.trim_start_matches("sources.").trim_start_matches('.').to_owned();
        }
        Err(ConfigError { path: None, problems })
    }
}

impl fmt::Debug for SourceConfigBuilder {
    /// Names only: a value may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.keys.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> SourceConfigBuilder {
        let ids = ["7f3c0a1e-5b1d-4a54-9a0e-2f0d6c1b8e55", "c0ffee00-1111-4222-8333-444455556666"];
        SourceConfig::builder().tenant_id(ids[0]).client_id(ids[1]).client_secret("${NOT_A_VARIABLE}$")
    }

    #[test]
    fn what_is_set_is_as_it_was_written_and_the_rest_is_as_in_a_file() {
        let config =
            complete().cloud(Cloud::GccHigh).set("heal", serde_json::json!({ "graph": false })).build().unwrap();
        assert_eq!(config.client_secret.as_ref().unwrap().expose(), "${NOT_A_VARIABLE}$");
        assert_eq!(config.cloud, Cloud::GccHigh);
        assert_eq!(config.content_types, ContentType::ALL);
        let other = complete().managed_identity().build().unwrap_err();
        assert_eq!(other.problems[0].key, "client_secret", "{other}");
    }

    #[test]
    fn each_key_of_a_source_can_be_set_by_name_and_a_builder_shows_no_secret() {
        let schema = SourceConfig::json_schema();
        for (key, field) in schema["properties"].as_object().unwrap() {
            let Some(example) = field["examples"].get(0) else { continue };
            let problems = SourceConfig::builder().set(key, example).build().unwrap_err().problems;
            assert!(problems.iter().all(|problem| problem.fault != Fault::Unknown), "{key}: {problems:?}");
        }
        assert_eq!(format!("{:?}", complete()), r#"{"client_id", "client_secret", "tenant_id"}"#);
    }
}
