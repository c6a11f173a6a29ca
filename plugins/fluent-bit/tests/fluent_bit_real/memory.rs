//! Tests what the plugin uses of the process that loads it, above all its memory, which once crashed agents: a host
//! with its own `malloc`, and the undefined names that the process resolves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use serde_json::Value;

use crate::support::{Service, library, wait_until};
use crate::{decode, symbols};

/// The names that are left undefined on purpose, under the reason why.
const UNDEFINED: &str = include_str!("../../undefined.txt");

/// Names that programs are known to replace, mostly with an allocator of their own, or that bypass one.
const REPLACED: &[&str] = &[
    "aligned_alloc",
    "asprintf",
    "calloc",
    "cfree",
    "free",
    "free_aligned_sized",
    "free_sized",
    "getline",
    "mallinfo",
    "mallinfo2",
    "malloc",
    "malloc_info",
    "malloc_stats",
    "malloc_trim",
    "malloc_usable_size",
    "mallopt",
    "memalign",
    "open_memstream",
    "posix_memalign",
    "pvalloc",
    "realloc",
    "reallocarray",
    "sbrk",
    "strdup",
    "strndup",
    "valloc",
    "vasprintf",
];

/// A host of `host_with_malloc.c`.
struct Host {
    program: PathBuf,
    dir: tempfile::TempDir,
    child: Option<Child>,
}

impl Host {
    /// `None`: the test cannot run here.
    fn compile(flags: &[&str], properties: &[(String, String)]) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fluent_bit_support/host_with_malloc.c");
        let program = dir.path().join("host");
        let mut command = Command::new(test_support::program("cc")?);
        command.args(["-O1", "-fno-builtin", "-rdynamic", "-o"]).arg(&program).args(flags).arg(source).arg("-ldl");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut text = format!("data_dir={}\n", dir.path().join("state").display());
        for (key, value) in properties {
            let _ = writeln!(text, "{key}={value}");
        }
        fs::write(dir.path().join("properties"), text).unwrap();
        Some(Self { program, dir, child: None })
    }

    fn start(&mut self, library: &Path) {
        let path = |name: &str| self.dir.path().join(name);
        let log = fs::OpenOptions::new().create(true).append(true).open(path("log")).unwrap();
        let mut command = Command::new(&self.program);
        command.arg(library).arg(path("properties")).arg(path("appended"));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// The records that the running one has appended.
    fn records(&self) -> Vec<Value> {
        let bytes = fs::read(self.dir.path().join("appended")).unwrap_or_default();
        let (mut rest, mut records) = (bytes.as_slice(), Vec::new());
        while let Some((length, behind)) = rest.split_first_chunk() {
            // The last one may be incomplete.
            let Some(entries) = behind.get(..usize::try_from(u64::from_ne_bytes(*length)).unwrap()) else { break };
            records.extend(decode::decode(entries));
            rest = &behind[entries.len()..];
        }
        records
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn wait_until_all(&mut self, service: &Service, before: &[Value]) -> Vec<Value> {
        let mut records = Vec::new();
        wait_until("all events", || {
            records = before.to_vec();
            records.extend(self.records());
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert_eq!(ended, None, "it has ended:\n{}", self.log());
            service.has_all(&records)
        });
        records
    }

    fn stop(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        drop(child.stdin.take());
        child.wait().unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// With four functions alone, and with those for a larger alignment beside them, as Fluent Bit's packages have it. The
/// second start reads a state of thousands of keys.
#[test]
fn a_host_whose_malloc_aligns_to_eight_bytes_gets_every_event_and_again_beside_its_kept_state() {
    let Some(library) = library() else { return };
    for flags in [&[][..], &["-DMEMALIGN"]] {
        let service = Service::new(1);
        service.publish(40, 100);
        let Some(mut host) = Host::compile(flags, &service.properties()) else { return };
        let mut records = Vec::new();
        for blobs in [0, 5, 5] {
            service.publish_now(blobs, 20);
            host.start(&library);
            records = host.wait_until_all(&service, &records);
            let status = host.stop();
            assert!(status.success(), "{flags:?}, {status}:\n{}", host.log());
        }
        service.assert_exact(&records);
    }
}

#[test]
fn a_host_whose_malloc_aligns_to_four_bytes_is_told_why_the_input_does_not_start() {
    let Some(library) = library() else { return };
    let service = Service::new(1);
    let Some(mut host) = Host::compile(&["-DQUANTUM=4"], &service.properties()) else { return };
    host.start(&library);
    let status = host.stop();
    let log = host.log();
    assert_eq!(status.code(), Some(1), "{status}:\n{log}");
    assert!(log.starts_with("1 [input:m365_audit:") && log.contains("fluent-bit-memory-misaligned: "), "{log}");
    assert!(log.contains("(hint: use one of Fluent Bit's own packages"), "{log}");
    assert_eq!(service.sim.activity(), 0, "it began all the same");
}

/// Names by the reason they are left undefined for.
fn reasons() -> BTreeMap<&'static str, Vec<&'static str>> {
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut reason = "";
    for line in UNDEFINED.lines().filter(|line| !line.is_empty() && !line.starts_with("##")) {
        match line.strip_prefix("# ") {
            Some(text) => reason = text,
            None => reasons.entry(reason).or_default().extend(line.split(' ')),
        }
    }
    reasons
}

#[test]
fn every_name_it_leaves_to_the_process_is_one_of_the_list_with_its_reason() {
    let Some(library) = library() else { return };
    let reasons = reasons();
    assert!(!reasons.contains_key(""), "a name without a reason");
    let mut known = BTreeSet::new();
    for name in reasons.values().flatten() {
        assert!(known.insert(*name), "{name} stands twice in undefined.txt");
    }
    let unversioned: BTreeSet<&str> =
        reasons["weak hooks, null unless somebody defines them"].iter().copied().collect();
    let undefined: Vec<_> = symbols::read(&library).symbols.into_iter().filter(|symbol| !symbol.exported).collect();
    assert!(undefined.len() > 50, "{undefined:?}");
    for symbol in &undefined {
        let name = symbol.name.as_str();
        assert!(
            known.contains(name),
            "`{name}` is new among what the process decides: is it needed, and may a host bring another one? Then write it \
             into undefined.txt under the reason, and docs/hosts/fluent-bit.md if a host may"
        );
        let of_the_system = symbol.version.as_deref().is_some_and(|v| v.starts_with("GLIBC_") || v.starts_with("GCC_"));
        assert_eq!(of_the_system, !unversioned.contains(name), "{symbol:?}: is it part of another library?");
    }
}

#[test]
fn of_what_programs_replace_it_takes_only_the_functions_its_allocator_knows_of() {
    let Some(library) = library() else { return };
    let allocator = &reasons()["memory: the process's, see src/memory.rs"];
    let replaced: BTreeSet<&str> = REPLACED.iter().copied().collect();
    let undefined = symbols::read(&library).symbols.into_iter().filter(|symbol| !symbol.exported);
    let taken: Vec<String> = undefined.map(|s| s.name).filter(|name| replaced.contains(name.as_str())).collect();
    assert!(taken.iter().all(|name| allocator.contains(&name.as_str())), "{taken:?}");
    for needed in ["malloc", "calloc", "realloc", "free"] {
        assert!(taken.iter().any(|name| name == needed), "{needed} is not taken from the process: {taken:?}");
    }
}

/// The loader takes memory for the thread-local variables of a loaded library from the process's `malloc`, and trusts it
/// to be aligned to 16 bytes; to less it need not be, and for more it makes room itself.
#[test]
fn its_thread_local_variables_need_no_alignment_that_a_malloc_of_eight_bytes_does_not_give() {
    let Some(library) = library() else { return };
    let alignment = symbols::read(&library).thread_local_alignment;
    assert!(alignment <= 8 || alignment > 16, "{alignment}");
}

#[test]
fn it_exports_what_fluent_bit_looks_up_and_nothing_else() {
    let Some(library) = library() else { return };
    let mut exported: Vec<String> = symbols::read(&library)
        .symbols
        .into_iter()
        .filter(|symbol| symbol.exported)
        .map(|symbol| symbol.name)
        .collect();
    exported.sort();
    let expected = [
        "FLBPluginExit",
        "FLBPluginInit",
        "FLBPluginInputCallback",
        "FLBPluginInputCallbackCtx",
        "FLBPluginInputCleanupCallback",
        "FLBPluginInputCleanupCallbackCtx",
        "FLBPluginInputPause",
        "FLBPluginInputPreExit",
        "FLBPluginInputPreRun",
        "FLBPluginInputResume",
        "FLBPluginPreRegister",
        "FLBPluginRegister",
        "FLBPluginUnregister",
    ];
    assert_eq!(exported, expected);
}
