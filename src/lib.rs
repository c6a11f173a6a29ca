//! Microsoft 365 unified audit log as an input source for log agents, with nothing lost.
//!
//! A [`Source`] reads a tenant's audit feed; a [`Host`] is your agent, which accepts the records and stores the
//! position. The position moves only after the host has the records for good. So an outage, a crash or a full disk
//! delays events but does not lose them within the seven days that Microsoft keeps them.
//!
//! # A first host
//! ```toml
//! [dependencies]
//! m365-audit = { version = "0.1", default-features = false, features = ["sim"] }
//! tokio = { version = "1", features = ["macros", "rt-multi-thread"] }
//! ```
//!
//! This host prints records and keeps its state in memory; it needs no account, because the tenant is a simulated one.
//!
//! ```
//! use std::sync::Arc;
//!
//! use m365_audit::{Batch, CancellationToken, Delivery, DeliveryTicket, Health, Host, StateStore, async_trait};
//! use m365_audit::{M365Audit, MemoryStore, SimulatedTenant, Source, SystemClock};
//!
//! struct Agent {
//!     state: Arc<MemoryStore>,
//! }
//!
//! #[async_trait]
//! impl Host for Agent {
//!     async fn deliver(&self, batch: Batch) -> DeliveryTicket {
//!         for record in batch.records() {
//!             println!("{} {}", record.severity(), String::from_utf8_lossy(record.json));
//!         }
//!         DeliveryTicket::resolved(Delivery::Delivered) // true only when the records are safe
//!     }
//!
//!     fn state(&self) -> Arc<dyn StateStore> {
//!         self.state.clone()
//!     }
//!
//!     fn health(&self, source: &str, health: Health) {
//!         eprintln!("{source}: {health}");
//!     }
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let tenant = SimulatedTenant::start().await?;
//!     let source = M365Audit::new("contoso", tenant.config().build()?, SystemClock::new());
//!     let host = Arc::new(Agent { state: Arc::new(MemoryStore::new()) });
//!     // One pass; without `once` it runs until the token is cancelled.
//!     let report = Box::new(source.once()).run(host.clone(), CancellationToken::new()).await?;
//!     assert!(report.left.is_empty(), "{report:?}");
//! #   assert!(!host.state.list("").await?.is_empty());
//!     Ok(())
//! }
//! ```
//!
//! For a real tenant leave `sim` out and make the configuration with [`SourceConfig::builder`], or from your own:
//! [`SourceConfig::parse_table`] reads TOML, [`SourceConfig::parse_json`] a tree, [`SourceConfig::parse_properties`]
//! texts.
//!
//! # What a host must guarantee
//! - **Delivered means for good.** [`Host::deliver`] returns a [`DeliveryTicket`], which may be answered later
//!   ([`DeliveryTicket::new`]): [`Delivery::Delivered`] when a crash can no longer take the records;
//!   [`Delivery::Refused`] for a temporary fault, after which the same bytes come again; [`Delivery::Rejected`] for
//!   records that are never acceptable, which the source then isolates and sets aside. Not answering is back-pressure,
//!   and a ticket that is dropped is a refusal.
//! - **State on disk.** [`StateStore::commit`] is all or nothing, compares and swaps, and is synced before it returns. With
//!   `sqlite` there is one to use, `SqliteStore`; `examples/state_on_disk.rs` writes one in seventy lines.
//! - **A runtime.** The source runs on the one that polls it. It installs no subscriber, recorder, signal handler or
//!   allocator; logs go to `tracing`, metrics to the `metrics` facade. Many sources of one process share connections and
//!   memory by [`M365Audit::in_fleet`].
//!
//! # Features
//! Without any, the library has all that a host needs: `default-features = false`.
//!
//! | feature | adds |
//! | --- | --- |
//! | `sqlite` | `SqliteStore`, a crash-safe [`StateStore`] in one file |
//! | `certificates` | `auth = "certificate"`: signing in with a client certificate, PEM, DER or PFX, its key encrypted or not |
//! | `embedded` | the sinks of the binary, its metrics and pages; `sqlite` and `certificates` |
//! | `postgres` | the state of a cluster, for the binary; `embedded` |
//! | `sim` | `SimulatedTenant`, for tests of a host; `certificates` |
//! | `exports` | exported files of events, for the binary |
//! | `cli` (default) | the binary `m365-audit`; all of the above |
//! | `kafka` | the sink `kafka`, which no other feature turns on; `embedded` |
//! | `internals` | every module, for this repository's own programs and tests, without any stability promise |
//!
//! Without `certificates`, a configuration with a key of that method is refused, and the error names the feature.
//! `ca_file` and `proxy_certificate_file` need no feature: TLS reads those.
//!
//! # Versions
//! Semantic versioning holds for what this page lists without the feature `internals`: the names at the root and in
//! [`values`] (`tests/fixtures/public-surface.txt` in the repository has each with its members, and a test compares it
//! with the code). Before 1.0 a minor version may break it, and the changelog describes how. New configuration keys and
//! new variants of non-exhaustive types are not breaking changes. The state on disk is read by every later version. The
//! oldest Rust that builds it is in `rust-version`; only a minor version may require a newer one.
//!
//! # Reading order
//! For contributors; ARCHITECTURE.md has the journeys of an event and of a checkpoint through these modules. Each
//! module uses only those below it; `tests/library/architecture.rs` checks that.
//!
//! - `docs`: the generated documents: configuration, metrics, record, errors, manifest.
//! - `cli`: the commands of the binary, and every exit code.
//! - `simulated`: a tenant to write a host against.
//! - `sim`: a simulated tenant over real HTTP. Uses only `clock` and `model`.
//! - `hosts`: the agents, one file or folder each; the only place that knows one by name.
//! - `plugin`: the manifest.
//! - `report`: the report for an auditor, read from a state.
//! - `source`: what a host runs: the loop of a tenant, and the connection test.
//! - `reconcile`: compares an export of the audit search with the delivered events, and judges the export.
//! - `checkpoint`: the stored state (delivered events, settled blobs, positions) and its one writer.
//! - `receipts`: the outcome of every event, sealed and signed.
//! - `plan`: pure: from a position and the time to the windows to list.
//! - `delivery`: delivers to one receiver: retries, and isolates the records it will never accept.
//! - `host`: the interface that any agent must offer.
//! - `exports`: reads exported events: files, archives, wrappers of other tools.
//! - `normalise`: from an audit event to a record.
//! - `api`: the feed's calls, its errors and its quota.
//! - `auth`: tokens.
//! - `net`: shared code for HTTP, independent of the peer.
//! - `config`: the operator's configuration.
//! - `severity`: the severity of an event, one row of a table for each rule.
//! - `metrics`: every metric by name.
//! - `clock`: the reader of the time of day and of the monotonic clock.
//! - `backoff`: the pauses before a retry.
//! - `model`: the nouns.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    not(feature = "internals"),
    allow(
        dead_code,
        unused_imports,
        reason = "what the program and the Fluent Bit input use is built, and nobody else reaches it"
    )
)]

#[cfg(feature = "internals")]
pub mod docs;

#[cfg(feature = "cli")]
pub mod cli;

#[cfg(all(feature = "sim", feature = "internals"))]
pub mod simulated;
#[cfg(all(feature = "sim", not(feature = "internals")))]
mod simulated;

#[cfg(all(feature = "sim", feature = "internals"))]
pub mod sim;
#[cfg(all(feature = "sim", not(feature = "internals")))]
mod sim;

#[cfg(feature = "internals")]
pub mod hosts;
#[cfg(not(feature = "internals"))]
mod hosts;

#[cfg(feature = "internals")]
pub mod plugin;

#[cfg(feature = "internals")]
pub mod report;
#[cfg(not(feature = "internals"))]
mod report;

#[cfg(feature = "internals")]
pub mod source;
#[cfg(not(feature = "internals"))]
mod source;

#[cfg(feature = "internals")]
pub mod reconcile;
#[cfg(not(feature = "internals"))]
mod reconcile;

#[cfg(feature = "internals")]
pub mod checkpoint;
#[cfg(not(feature = "internals"))]
mod checkpoint;

#[cfg(feature = "internals")]
pub mod receipts;
#[cfg(not(feature = "internals"))]
mod receipts;

#[cfg(feature = "internals")]
pub mod plan;
#[cfg(not(feature = "internals"))]
mod plan;

#[cfg(feature = "internals")]
pub mod delivery;
#[cfg(not(feature = "internals"))]
mod delivery;

#[cfg(feature = "internals")]
pub mod host;
#[cfg(not(feature = "internals"))]
mod host;

#[cfg(feature = "internals")]
pub mod exports;
#[cfg(not(feature = "internals"))]
mod exports;

#[cfg(feature = "internals")]
pub mod normalise;
#[cfg(not(feature = "internals"))]
mod normalise;

#[cfg(feature = "internals")]
pub mod api;
#[cfg(not(feature = "internals"))]
mod api;

#[cfg(feature = "internals")]
pub mod auth;
#[cfg(not(feature = "internals"))]
mod auth;

#[cfg(feature = "internals")]
pub mod net;
#[cfg(not(feature = "internals"))]
mod net;

#[cfg(feature = "internals")]
pub mod config;
#[cfg(not(feature = "internals"))]
mod config;

#[cfg(feature = "internals")]
pub mod severity;
#[cfg(not(feature = "internals"))]
mod severity;

#[cfg(feature = "internals")]
pub mod metrics;
#[cfg(not(feature = "internals"))]
mod metrics;

#[cfg(feature = "internals")]
pub mod clock;
#[cfg(not(feature = "internals"))]
mod clock;

#[cfg(feature = "internals")]
pub mod backoff;
#[cfg(not(feature = "internals"))]
mod backoff;

#[cfg(feature = "internals")]
pub mod model;
#[cfg(not(feature = "internals"))]
mod model;

#[cfg(feature = "sim")]
pub use crate::simulated::SimulatedTenant;

pub use crate::clock::{Clock, SystemClock};
pub use crate::config::{SourceConfig, SourceConfigBuilder};
pub use crate::host::memory::MemoryStore;
pub use crate::host::{
    Batch, Delivery, DeliveryTicket, Expected, Health, Host, Op, Record, Revision, StateError, StateStore, TicketAnswer,
};
#[cfg(feature = "sqlite")]
pub use crate::hosts::embedded::store::SqliteStore;
pub use crate::source::{M365Audit, Report, Source, SourceError};
#[doc(no_inline)]
pub use async_trait::async_trait;
#[doc(no_inline)]
pub use bytes::Bytes;
#[doc(no_inline)]
pub use tokio_util::sync::CancellationToken;

/// The types used in the signatures of the names at the root.
pub mod values {
    pub use crate::config::{Cloud, ConfigError, Fault, Format, Problem};
    pub use crate::host::{EventKind, Kind, LOAD_BYTES, Loaded, Receipts, Unfit};
    #[cfg(feature = "sqlite")]
    pub use crate::hosts::embedded::store::StoreError;
    pub use crate::model::{Actionable, ContentType, TenantId, Timestamp};
    pub use crate::normalise::category::Category;
    pub use crate::severity::Severity;
    pub use crate::source::fleet::Fleet;
    pub use crate::source::report::{Left, LeftKind};
    pub use crate::source::{CheckFault, CheckStep, FaultKind};
}
