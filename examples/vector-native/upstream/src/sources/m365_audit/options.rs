//! Tables and values of the configuration. Their words are the library's.

use std::{collections::BTreeMap, path::PathBuf};

use vector_lib::configurable::configurable_component;
use vrl::value::Value;

/// Which rules assess events: refinements, rules of your own, changes to built-in ones.
#[configurable_component]
#[derive(Clone, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct SeverityConfig {
    /// Let refinements contradict the plain reading of the catalogue's first rows: mailbox access
    /// given by Microsoft's own services is info, throttled or very large mail reads are kept,
    /// failed operations are one step lower.
    #[serde(default)]
    pub(super) refine: bool,

    /// A TOML file of `[[rule]]` tables that add to the built-in rules or change them, in the form
    /// of `rules` here.
    #[configurable(metadata(docs::examples = "/etc/m365-audit/rules.toml"))]
    pub(super) rules_file: Option<PathBuf>,

    /// Mail folders that users do not look into, beside the built-in ones; compared without case
    /// and accents.
    #[serde(default)]
    #[configurable(metadata(docs::examples = "Nieuwsbrieven"))]
    pub(super) hidden_folders: Vec<String>,

    /// Rules of your own, and changes to built-in ones, laid over those of `rules_file`. A known
    /// `id` changes the keys given, `disable = true` removes the rule, a new `id` adds one and
    /// needs `reason`, `severity` (`drop` leaves the event out) and `operations` or `record_types`.
    #[serde(default)]
    pub(super) rules: Vec<Rule>,
}

/// A rule, or a change to one.
#[configurable_component]
#[derive(Clone, Debug)]
pub struct Rule {
    #[serde(flatten)]
    #[configurable(metadata(docs::additional_props_description = "A key of the rule."))]
    pub(super) keys: BTreeMap<String, Value>,
}

/// Gaps beyond the feed's seven days, filled through Microsoft Graph.
#[configurable_component]
#[derive(Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct HealConfig {
    /// Fill declared gaps automatically. Needs the application permission `AuditLogsQuery.Read.All`
    /// of Microsoft Graph.
    #[serde(default)]
    pub(super) graph: bool,

    /// A search of Microsoft Graph that has not ended after this many seconds is given up and
    /// submitted again. They take minutes, some over ten, and some never end.
    #[serde(default = "default_query_wait_secs")]
    #[configurable(metadata(docs::type_unit = "seconds"))]
    #[configurable(validation(range(min = 10, max = 86_400)))]
    #[configurable(metadata(docs::examples = 7200))]
    pub(super) query_wait_secs: u64,
}

impl Default for HealConfig {
    fn default() -> Self {
        Self {
            graph: false,
            query_wait_secs: default_query_wait_secs(),
        }
    }
}

/// A way to sign in.
#[configurable_component]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum AuthMethod {
    /// `client_secret` or `client_secret_file`.
    #[default]
    ClientSecret,

    /// `certificate_file`: a client certificate registered with the application; the secret key is
    /// never sent.
    Certificate,

    /// `federated_token_file`: a token of an outside issuer that a federated credential of the
    /// application accepts.
    FederatedToken,

    /// The identity Azure gave this machine. Its service principal needs the application role
    /// `ActivityFeed.Read`, which only a script can grant.
    ManagedIdentity,
}

/// How the certificate's key signs.
#[configurable_component]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum AssertionAlgorithm {
    /// RSA-PSS, the certificate named by its SHA-256 (`x5t#S256`): the form that Microsoft
    /// recommends today.
    #[default]
    Ps256,

    /// RSA PKCS#1, the certificate named by its SHA-1 (`x5t`), for older authorities.
    Rs256,
}

/// A form of the managed identity's end point.
#[configurable_component]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum IdentityHost {
    /// The instance metadata service of virtual machines, scale sets and AKS nodes, at
    /// 169.254.169.254.
    #[default]
    Imds,

    /// App Service, Functions and Container Apps.
    AppService,

    /// Machines joined with Azure Arc. The user must be in the group `himds`.
    AzureArc,
}

/// Microsoft's clouds that have a Management Activity API of their own.
#[configurable_component]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Cloud {
    /// Microsoft 365 and Office 365 Enterprise plans.
    #[default]
    Enterprise,

    /// US government, GCC.
    Gcc,

    /// US government, GCC High.
    GccHigh,

    /// US government, DoD.
    Dod,

    /// China, operated by 21Vianet. Its hosts are not in Microsoft's reference.
    China,
}

/// A version of the authority's token endpoint.
#[configurable_component]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum TokenEndpoint {
    /// `/oauth2/v2.0/token`, with a scope.
    #[default]
    V2,

    /// `/oauth2/token`, with a resource.
    V1,
}

/// The shape of a record.
#[configurable_component]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One flat, typed object with the original event under `raw`.
    #[default]
    Native,

    /// Elastic Common Schema 8.17, the event as a text under `event.original`.
    Ecs,

    /// Open Cybersecurity Schema Framework, the event as a text under `raw_data`; see
    /// `ocsf_version`.
    Ocsf,

    /// The event as received, alone.
    Raw,
}

/// The version of `format = "ocsf"`.
#[configurable_component]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OcsfVersion {
    /// 1.8.0.
    #[default]
    #[serde(rename = "1.8.0")]
    V1_8_0,

    /// 1.1.0, as Amazon Security Lake requires it.
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

/// The field names of records of `format = "ecs"`.
#[configurable_component]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EcsProfile {
    /// Those of the schema, and those of this program below `m365.audit`.
    #[default]
    #[serde(rename = "ecs")]
    Ecs,

    /// In addition those that Elastic's own rules and dashboards for Microsoft 365 use:
    /// `event.dataset` `o365.audit`, the category `web`, the members of the event below
    /// `o365.audit`.
    #[serde(rename = "elastic-o365")]
    ElasticO365,
}

/// The form of the original event inside a record.
#[configurable_component]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum RawForm {
    /// The event as an object: bytes copied, line breaks between tokens removed.
    #[default]
    Object,

    /// The event as a JSON string that keeps every byte.
    String,

    /// Without the original event; in `ecs` and `ocsf`, too.
    None,
}

/// A content type of the feed.
#[configurable_component]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    /// Sign-ins and changes of Microsoft Entra ID.
    #[serde(rename = "Audit.AzureActiveDirectory")]
    AzureActiveDirectory,

    /// Exchange Online.
    #[serde(rename = "Audit.Exchange")]
    Exchange,

    /// SharePoint Online and OneDrive.
    #[serde(rename = "Audit.SharePoint")]
    SharePoint,

    /// Every other workload.
    #[serde(rename = "Audit.General")]
    General,

    /// Matches of data loss prevention.
    #[serde(rename = "DLP.All")]
    Dlp,
}

const fn default_query_wait_secs() -> u64 {
    1800
}
