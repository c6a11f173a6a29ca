//! Logs to stderr, as text or JSON lines. Standard output belongs to data.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::prelude::*;

use crate::config::{LogConfig, LogFormat};

/// Installs the process's log. A second call changes nothing.
pub fn install(config: &LogConfig) {
    // The configured level is for our own lines; libraries below us speak up only when something is wrong.
    let filter = std::env::var("M365_AUDIT_LOG")
        .ok()
        .and_then(|spec| EnvFilter::try_new(spec).ok())
        .unwrap_or_else(|| EnvFilter::new(format!("warn,m365_audit={}", config.level)));
    let stderr = std::io::stderr;
    let _ = match config.format {
        LogFormat::Json => tracing_subscriber::registry()
            .with(filter)
            .with(tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(stderr).with_target(false))
            .try_init(),
        LogFormat::Text => tracing_subscriber::registry()
            .with(filter)
            .with(
                tracing_subscriber::fmt::layer()
                    .with_writer(stderr)
                    .with_target(false)
                    .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()),
            )
            .try_init(),
    };
}
