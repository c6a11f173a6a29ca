//! How many files this process may have open, and how many of them connections to Microsoft may take.
//!
//! Each connection is a file. A process without free descriptors can neither read its state nor answer a probe, so a
//! part is reserved for the listener, the control socket, the state and the sinks. The limit is raised by the program
//! itself, not here: a library does not change its host.

use rustix::process::{Resource, getrlimit};

/// The limit used when the number is unlimited or the system does not report it.
const UNLIMITED: u64 = 1 << 20;
/// Descriptors reserved for everything but connections to Microsoft: a quarter, between these two.
const RESERVE_MIN: u64 = 64;
const RESERVE_MAX: u64 = 512;
/// Connections to Microsoft, at most.
const CONNECTIONS_MAX: u64 = 8192;

/// How many files this process may have open now.
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(UNLIMITED).min(UNLIMITED)
}

/// How many connections to Microsoft a process with this limit may have, for all tenants together.
pub fn for_connections(limit: u64) -> usize {
    let reserve = (limit / 4).clamp(RESERVE_MIN, RESERVE_MAX).min(limit / 2);
    usize::try_from((limit - reserve).min(CONNECTIONS_MAX)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_all_files_is_kept_for_what_is_no_connection() {
        for (limit, connections) in
            [(0, 0), (64, 32), (256, 192), (1024, 768), (4096, 3584), (65_536, 8192), (UNLIMITED, 8192)]
        {
            assert_eq!(for_connections(limit), connections, "{limit}");
        }
        assert!(limit() > 0);
    }
}
