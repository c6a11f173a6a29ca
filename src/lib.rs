//! Microsoft 365 unified audit log as an input source for log agents, with nothing lost.
//!
//! A [`Source`](source::Source) reads tenants' audit feeds; a [`Host`](host::Host) is whatever takes the records and
//! keeps the position: the embedded one of the binary, or an agent of yours (`examples/custom_host.rs`). A position
//! moves only after the host has the records for good.
//!
//! # The journey of one event
//! [`plan`] gives the windows to list; [`source::listing`] reads every page through [`api`]; [`source::tenant`] has
//! the newest blob fetched; [`source::fetch`] streams its body through [`normalise::split`]; [`checkpoint::claims`] tells whether the
//! event was delivered already; [`normalise`] renders the record with its [`severity`]; [`source::deliver`] hands the
//! batch to [`host::Host::deliver`], and the ticket says what became of it.
//!
//! # The journey of one checkpoint
//! Delivered: the keys of the events and the mark of the blob go through [`checkpoint::ledger`] to
//! [`host::StateStore::commit`] in one step; when every page of a window was read and every blob in it is settled,
//! [`source::tenant`] moves `complete_until`, and only then is that stored. The invariants CK-1 to CK-5 are named in
//! [`checkpoint`].
//!
//! # Reading order
//! Each module uses only those below it; `tests/library/architecture.rs` holds it to that.
//!
//! - `docs`: the generated documents: configuration, metrics, record, errors, manifest.
//! - `cli`: the commands of the binary, and every exit code.
//! - `sim`: a simulated tenant over real HTTP. Uses only `clock` and `model`.
//! - `hosts`: the agents, one file or folder each; the only place that knows one by name.
//! - `plugin`: the manifest.
//! - `report`: what an operator hands to an auditor, read from a state.
//! - `source`: what a host runs: the loop of a tenant, and the connection test.
//! - `reconcile`: an export of the audit search compared with what was delivered, and the export judged.
//! - `checkpoint`: what is delivered, settled and remembered, and the one writer of it.
//! - `receipts`: what became of every event, sealed and signed.
//! - `plan`: pure: from a position and the time to the windows to list.
//! - `delivery`: to one receiver: trying again, and finding the records it will never take.
//! - `host`: what any agent must offer.
//! - `exports`: events as people have them: files, archives, what other tools wrap around an event.
//! - `normalise`: from an audit event to a record.
//! - `api`: the feed's calls, its errors and its quota.
//! - `auth`: tokens.
//! - `net`: what every conversation over HTTP needs, whoever is at the other end.
//! - `config`: what the operator writes.
//! - `severity`: how bad an event is, one row of a table for each rule.
//! - `metrics`: every metric by name.
//! - `clock`: the reader of the time of day and of the monotonic clock.
//! - `backoff`: how long to wait before something is tried again.
//! - `model`: the nouns.

pub mod docs;

#[cfg(feature = "cli")]
pub mod cli;

#[cfg(feature = "sim")]
pub mod sim;

pub mod hosts;

pub mod plugin;

pub mod report;

pub mod source;

pub mod reconcile;

pub mod checkpoint;

pub mod receipts;

pub mod plan;

pub mod delivery;

pub mod host;

pub mod exports;

pub mod normalise;

pub mod api;

pub mod auth;

pub mod net;

pub mod config;

pub mod severity;

pub mod metrics;

pub mod clock;

pub mod backoff;

pub mod model;
