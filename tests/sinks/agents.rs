//! Real agents that read the `file` sink or run the program: rsyslog and syslog-ng as the examples configure them.
//! A test whose agent is not installed says so and passes.

use std::path::{Path, PathBuf};

/// The program an environment variable names, else the one of this name in `PATH` or where daemons are.
pub fn program(variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    dirs.map(|dir| dir.join(name)).find(|file| Path::is_file(file))
}
