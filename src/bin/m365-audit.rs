//! The `m365-audit` command: parses arguments, calls a command, prints its error, chooses the exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    if !reads_files() {
        give_memory_back();
    }
    raise_limit_of_files();
    m365_audit::cli::main(std::env::args_os()).into()
}

/// Whether the command is one that reads files of events on every core: it ends soon, and what an arena of its own for
/// each thread saves it is a twentieth of all its work.
fn reads_files() -> bool {
    let command = std::env::args_os().nth(1);
    command.is_some_and(|command| ["normalize", "reconcile"].iter().any(|known| command == *known))
}

/// Takes as many files as the system allows: the usual soft limit, 1,024, is for programs that use `select`. What may
/// not be changed (a filter of system calls) stays; `run` keeps within the limit there is.
fn raise_limit_of_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    /// More is of no use and makes some systems allocate for all of them.
    const ENOUGH: u64 = 1 << 20;
    let now = getrlimit(Resource::Nofile);
    let most = now.maximum.unwrap_or(ENOUGH).min(ENOUGH);
    if now.current.is_some_and(|current| current < most) {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: now.maximum });
    }
}

/// Tells glibc to give large memory back to the system at once and to keep two arenas: by default it learns from the
/// first batch that is freed to keep them, one heap for each thread, and a run at full speed holds 30 MiB that nothing is
/// in. What the HTTP library receives into (up to 408 KiB at a time) stays below the threshold: asked of the system
/// anew for every read it costs a tenth of all work. Here and not in the library, whose process is not ours.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn give_memory_back() {
    const LARGE: libc::c_int = 512 * 1024;
    const TRIM: libc::c_int = 1024 * 1024;
    for (parameter, value) in [(libc::M_ARENA_MAX, 2), (libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, TRIM)]
    {
        #[expect(unsafe_code, reason = "`mallopt` takes two numbers and no other thread has been started")]
        // SAFETY: no pointer is handed over; an unknown parameter is refused by the return value, which changes nothing.
        unsafe {
            libc::mallopt(parameter, value);
        }
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn give_memory_back() {}
