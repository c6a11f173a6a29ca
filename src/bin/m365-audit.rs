//! The `m365-audit` command: parses arguments, calls a command, prints its error, chooses the exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    if !reads_files() {
        give_memory_back();
    }
    raise_limit_of_files();
    m365_audit::cli::main(std::env::args_os()).into()
}

/// Whether the command reads files of events on every core: it ends soon, and an arena for each thread saves a
/// twentieth of its work.
fn reads_files() -> bool {
    let command = std::env::args_os().nth(1);
    command.is_some_and(|command| ["normalize", "reconcile"].iter().any(|known| command == *known))
}

/// Raises the limit on open files to the hard limit: the usual soft limit, 1,024, is for programs that use `select`. If
/// a filter of system calls forbids the change, the limit stays, and `run` keeps within it.
fn raise_limit_of_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    /// A higher limit is useless and makes some systems allocate for all of it.
    const ENOUGH: u64 = 1 << 20;
    let now = getrlimit(Resource::Nofile);
    let most = now.maximum.unwrap_or(ENOUGH).min(ENOUGH);
    if now.current.is_some_and(|current| current < most) {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: now.maximum });
    }
}

/// Tells glibc to give large memory back to the system at once and to keep two arenas: by default it learns from the
/// first batch that is freed to keep them, one heap for each thread, and a run at full speed holds 30 MiB of unused
/// memory. The receive buffers of the HTTP library (up to 408 KiB at a time) stay below the threshold: allocating them
/// from the system for every read costs a tenth of all work. This is in the program and not in the library, which must
/// not configure another program's process.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn give_memory_back() {
    const LARGE: libc::c_int = 512 * 1024;
    const TRIM: libc::c_int = 1024 * 1024;
    for (parameter, value) in [(libc::M_ARENA_MAX, 2), (libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, TRIM)]
    {
        #[expect(unsafe_code, reason = "`mallopt` takes two numbers and no other thread has been started")]
        // SAFETY: no pointer is passed; an unknown parameter is refused by the return value, which changes nothing.
        unsafe {
            libc::mallopt(parameter, value);
        }
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn give_memory_back() {}
