//! Microsoft 365 unified audit log as an input source for log agents.
//!
//! Reading order, each module using only those below it:

#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "sim")]
pub mod sim;

pub mod hosts;

pub mod docs;

pub mod plugin;

pub mod source;

pub mod host;

pub mod severity;

pub mod normalise;

pub mod plan;

pub mod checkpoint;

pub mod api;

pub mod auth;

pub mod config;

pub mod metrics;

pub mod model;

pub mod clock;
