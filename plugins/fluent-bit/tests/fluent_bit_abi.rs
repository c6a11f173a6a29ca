//! Tests the plugin from the view of a host: the built library is loaded by `dlopen` and every exported function is
//! called as Fluent Bit calls it, on a thread named as Fluent Bit names it, against the simulated tenant. Every buffer
//! is decoded by a MessagePack reader that shares no code with the encoder.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

#[path = "fluent_bit_support/decode.rs"]
mod decode;
#[path = "fluent_bit_support/mod.rs"]
mod support;

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use decode::decode;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use m365_audit::source::fleet::BEGIN_EVERY;
use serde_json::Value;
use support::{PATIENCE, Patience, Service, library};

/// The plugin is one instance for a process, as in the host: one test at a time.
static TURN: Mutex<()> = Mutex::new(());
static LOG: Mutex<Vec<(c_int, String)>> = Mutex::new(Vec::new());

/// Longer than any wait of these tests: a call that waits for a test server is still waiting when the test gives up.
const REQUEST_TIMEOUT: (&str, &str) = ("request_timeout_secs", "600");

/// The bytes and calls that the calling thread has read and written.
#[derive(Clone, Copy)]
struct Asked {
    reads: u64,
    writes: u64,
    written_bytes: u64,
}

impl Asked {
    /// `None` if the kernel does not count it. Reading the counts is counted, too.
    fn so_far() -> Option<Self> {
        let text = std::fs::read_to_string("/proc/thread-self/io").ok()?;
        let count = |name: &str| text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse::<u64>().ok();
        Some(Self { reads: count("syscr:")?, writes: count("syscw:")?, written_bytes: count("wchar:")? })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Threading {
    Off,
    On,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Callbacks {
    WithContext,
    Old,
    /// As with a context, in a host that exports its append function, as every Fluent Bit does.
    HostAppends,
}

/// The appends of the host of [`Callbacks::HostAppends`], and its behaviour.
static HOST: Mutex<AppendingHost> = Mutex::new(AppendingHost::new());

struct AppendingHost {
    appended: Vec<Value>,
    /// Records and bytes of each append that it took, and how many of them its engine has counted.
    appends: Vec<(usize, usize)>,
    counted: (usize, usize),
    calls: usize,
    /// This many calls are refused first.
    refusals: usize,
    /// Pauses the input from inside every third append.
    pause: Option<unsafe extern "C" fn()>,
    paused: bool,
}

impl AppendingHost {
    const fn new() -> Self {
        Self {
            appended: Vec::new(),
            appends: Vec::new(),
            counted: (0, 0),
            calls: 0,
            refusals: 0,
            pause: None,
            paused: false,
        }
    }

    /// Its engine begins with the last append but `left`.
    fn count_all_but(&mut self, left: usize) {
        let begun = self.appends.iter().take(self.appends.len().saturating_sub(left));
        self.counted = begun.fold((0, 0), |(records, bytes), append| (records + append.0, bytes + append.1));
    }
}

fn host() -> MutexGuard<'static, AppendingHost> {
    HOST.lock().unwrap_or_else(PoisonError::into_inner)
}

unsafe extern "C" fn append(
    instance: *mut c_void,
    tag: *const c_char,
    tag_len: usize,
    data: *const c_void,
    size: usize,
) -> c_int {
    let on_host_thread = std::thread::current().name().is_some_and(|name| name.starts_with("flb-"));
    let mut host = host();
    if instance.is_null() || !tag.is_null() || tag_len != 0 || host.paused || !on_host_thread {
        return -1;
    }
    host.calls += 1;
    if host.calls <= host.refusals {
        return -1;
    }
    let records = decode(unsafe { std::slice::from_raw_parts(data.cast(), size) });
    host.appends.push((records.len(), size));
    host.appended.extend(records);
    if let Some(pause) = host.pause.filter(|_| host.calls.is_multiple_of(3)) {
        host.paused = true;
        drop(host);
        unsafe { pause() };
    }
    0
}

/// The page of a host that has begun with this many of its appends, as `cmt_encode_prometheus_create` makes it.
unsafe extern "C" fn encode(metrics: *mut c_void, with_timestamps: c_int) -> *mut c_char {
    assert!(metrics == METRICS && with_timestamps == 0);
    let (records, bytes) = host().counted;
    let line = |name: &str, value: usize| format!("fluentbit_input_{name}_total{{name=\"m365_audit.0\"}} {value}\n");
    let page = CString::new(line("bytes", bytes) + &line("records", records)).unwrap();
    unsafe { libc::strdup(page.as_ptr()) }
}

/// Set in a process whose host appends.
const HOST_APPENDS: &str = "M365_AUDIT_HOST_APPENDS";

/// Exports what the executable of Fluent Bit exports. The loader caches the plugin's lookups there, so `test` runs in a
/// process of its own: `false` in the process that started it, where it is then done.
fn host_appends(test: &str) -> bool {
    type Append = unsafe extern "C" fn(*mut c_void, *const c_char, usize, *const c_void, usize) -> c_int;
    if std::env::var_os(HOST_APPENDS).is_none() {
        let mut child = Command::new(std::env::current_exe().unwrap());
        let status = child.args(["--exact", test, "--nocapture"]).env(HOST_APPENDS, "1").status().unwrap();
        assert!(status.success(), "{test} failed in a process of its own");
        return false;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("libhost.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fluent_bit_support/host.c");
    let Some(compiler) = test_support::program("cc") else { return false };
    let made = Command::new(compiler).args(["-shared", "-fPIC", "-o"]).arg(&path).arg(source).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }.unwrap();
    unsafe { **library.get::<*mut Append>(b"append_for_test").unwrap() = append };
    *EXPORTS.lock().unwrap() = Some(library);
    true
}

/// Sets the address of an export, in a process where [`host_appends`].
fn export(name: &str, value: usize) {
    let exports = EXPORTS.lock().unwrap();
    unsafe { **exports.as_ref().unwrap().get::<*mut usize>(name.as_bytes()).unwrap() = value };
}

/// The exports of [`host_appends`], for the lifetime of the process.
static EXPORTS: Mutex<Option<Library>> = Mutex::new(None);

/// The event loop of a host's engine, as far as the plugin uses it.
#[derive(Default)]
struct Engine {
    timers: Vec<OnTimer>,
    collector: Option<(OnReadable, c_int)>,
    started: bool,
}

type OnTimer = unsafe extern "C" fn(*mut c_void, *mut c_void);
type OnReadable = unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_void) -> c_int;

static ENGINE: Mutex<Engine> = Mutex::new(Engine { timers: Vec::new(), collector: None, started: false });
const SCHEDULER: *mut c_void = 0x5c4ed as *mut c_void;
const CONFIG: *mut c_void = 0xc0f19 as *mut c_void;
const COLLECTOR: c_int = 7;

unsafe extern "C" fn create_timer(
    scheduler: *mut c_void,
    kind: c_int,
    milliseconds: c_int,
    callback: OnTimer,
    data: *mut c_void,
    timer: *mut *mut c_void,
) -> c_int {
    let one_shot = 3;
    assert!(kind == one_shot && milliseconds > 0 && scheduler == SCHEDULER && data.is_null() && timer.is_null());
    ENGINE.lock().unwrap().timers.push(callback);
    0
}

unsafe extern "C" fn set_collector(
    instance: *mut c_void,
    callback: OnReadable,
    descriptor: c_int,
    config: *mut c_void,
) -> c_int {
    assert!(!instance.is_null() && config == CONFIG);
    let before = ENGINE.lock().unwrap().collector.replace((callback, descriptor));
    assert!(before.is_none(), "a second collector");
    COLLECTOR
}

unsafe extern "C" fn start_collector(collector: c_int, instance: *mut c_void) -> c_int {
    assert!(!instance.is_null() && collector == COLLECTOR);
    ENGINE.lock().unwrap().started = true;
    0
}

impl Engine {
    /// A new one, in a process where [`host_appends`].
    fn start() {
        *ENGINE.lock().unwrap() = Self::default();
        export("scheduler_for_test", SCHEDULER as usize);
        export("create_timer_for_test", create_timer as *const () as usize);
        export("set_collector_for_test", set_collector as *const () as usize);
        export("start_collector_for_test", start_collector as *const () as usize);
    }

    /// Runs the callbacks of its timers; returns how many.
    fn run_timers() -> usize {
        let timers = std::mem::take(&mut ENGINE.lock().unwrap().timers);
        timers.iter().for_each(|callback| unsafe { callback(CONFIG, std::ptr::null_mut()) });
        timers.len()
    }

    /// Calls the collector if there is data to read; returns whether there was.
    fn run_collector() -> bool {
        let engine = ENGINE.lock().unwrap();
        let (true, Some((callback, fd))) = (engine.started, engine.collector) else { return false };
        drop(engine);
        let mut watched = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        if unsafe { libc::poll(&raw mut watched, 1, 0) } == 0 {
            return false;
        }
        assert_eq!(watched.revents, libc::POLLIN);
        assert_eq!(unsafe { callback(std::ptr::null_mut(), CONFIG, std::ptr::null_mut()) }, 0);
        true
    }
}

/// `struct flb_plugin_proxy_def` as 5.1.1 has it, in memory that ends after `description`, as in a host before 5.0.
#[repr(C)]
struct Def {
    kind: c_int,
    proxy: c_int,
    flags: c_int,
    name: *const c_char,
    description: *const c_char,
    behind: [u8; 16],
}

#[repr(C)]
struct Plugin {
    name: *const c_char,
    api: *const Api,
    instance: *const Instance,
    context: *mut [usize; 3],
    private: [usize; 6],
}

#[repr(C)]
struct Api {
    output_get_property: usize,
    input_get_property: unsafe extern "C" fn(*const c_char, *const Instance) -> *const c_char,
    output_get_cmt_instance: usize,
    input_get_cmt_instance: unsafe extern "C" fn(*const Instance) -> *mut c_void,
    log_print: unsafe extern "C" fn(c_int, *const c_char, c_int, *const c_char, *const c_char),
    input_log_check: unsafe extern "C" fn(*const Instance, c_int) -> c_int,
}

struct Instance {
    properties: HashMap<String, CString>,
}

unsafe extern "C" fn get_property(key: *const c_char, instance: *const Instance) -> *const c_char {
    let key = unsafe { CStr::from_ptr(key) }.to_str().unwrap().to_ascii_lowercase();
    unsafe { &*instance }.properties.get(&key).map_or(std::ptr::null(), |value| value.as_ptr())
}

/// Called as a variadic function: with one pointer after the format, which is the same on Linux.
unsafe extern "C" fn log_print(
    level: c_int,
    _file: *const c_char,
    _line: c_int,
    format: *const c_char,
    text: *const c_char,
) {
    assert_eq!(unsafe { CStr::from_ptr(format) }, c"%s", "a text must never be the format");
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    assert!(name.starts_with("flb-"), "logged from `{name}`, which is no thread of the host");
    let text = unsafe { CStr::from_ptr(text) }.to_str().unwrap().to_owned();
    LOG.lock().unwrap_or_else(PoisonError::into_inner).push((level, text));
}

unsafe extern "C" fn log_check(_instance: *const Instance, level: c_int) -> c_int {
    c_int::from(level <= 3)
}

/// The address of the instance's metrics, for a host that has some.
const METRICS: *mut c_void = 0x3e7 as *mut c_void;

unsafe extern "C" fn get_metrics(instance: *const Instance) -> *mut c_void {
    assert!(!instance.is_null());
    METRICS
}

static API: Api = Api {
    output_get_property: 0,
    input_get_property: get_property,
    output_get_cmt_instance: 0,
    input_get_cmt_instance: get_metrics,
    log_print,
    input_log_check: log_check,
};

/// A host: the functions it has looked up, and one configured instance.
struct Agent {
    library: Library,
    callbacks: Callbacks,
    instance: Box<Instance>,
    context: Box<[usize; 3]>,
    records: Vec<Value>,
}

impl Agent {
    fn new(library: &Path, callbacks: Callbacks, properties: &[(String, String)]) -> Self {
        let properties = properties.iter().map(|(k, v)| (k.clone(), CString::new(v.as_str()).unwrap())).collect();
        let library = unsafe { Library::new(library) }.unwrap();
        Self {
            library,
            callbacks,
            instance: Box::new(Instance { properties }),
            // A host before 4.1 keeps a pointer of its own where later ones have the plugin's context.
            context: Box::new([7, 0xdead_beef, 0xdead_beef]),
            records: Vec::new(),
        }
    }

    fn symbol<T: Copy>(&self, name: &str) -> T {
        *unsafe { self.library.get::<T>(name.as_bytes()) }.unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn call(&self, name: &str) -> c_int {
        unsafe { self.symbol::<unsafe extern "C" fn(c_int) -> c_int>(name)(0) }
    }

    fn init(&mut self) -> c_int {
        let mut plugin = Plugin {
            name: c"m365_audit".as_ptr(),
            api: &raw const API,
            instance: &raw const *self.instance,
            context: &raw mut *self.context,
            private: [0xdead_beef; 6],
        };
        let init = self.symbol::<unsafe extern "C" fn(*mut Plugin) -> c_int>("FLBPluginInit");
        let result = unsafe { init(&raw mut plugin) };
        assert_eq!(plugin.private, [0xdead_beef; 6], "written where the host keeps its own");
        assert_eq!(*self.context, [7, 0xdead_beef, 0xdead_beef], "written where an old host keeps its own");
        result
    }

    fn start(&mut self) {
        assert_eq!(self.init(), 1, "{:?}", taken_log());
        self.call("FLBPluginInputPreRun");
    }

    fn collect(&mut self) -> (*mut c_void, usize) {
        type Collect = unsafe extern "C" fn(*mut *mut c_void, *mut usize) -> c_int;
        type CollectCtx = unsafe extern "C" fn(*mut c_void, *mut *mut c_void, *mut usize) -> c_int;
        let (mut data, mut size) = (std::ptr::null_mut(), 0);
        // Twice: the difference is the cost of reading the counts.
        let (first, before) = (Asked::so_far(), Asked::so_far());
        let result = match self.callbacks {
            Callbacks::Old => unsafe { self.symbol::<Collect>("FLBPluginInputCallback")(&raw mut data, &raw mut size) },
            Callbacks::WithContext | Callbacks::HostAppends => unsafe {
                let garbage = 0xdead_beef as *mut c_void;
                self.symbol::<CollectCtx>("FLBPluginInputCallbackCtx")(garbage, &raw mut data, &raw mut size)
            },
        };
        if let (Some(first), Some(before), Some(after)) = (first, before, Asked::so_far()) {
            let reads = (after.reads - before.reads) - (before.reads - first.reads);
            let (writes, bytes) = (after.writes - before.writes, after.written_bytes - before.written_bytes);
            // Waking a thread takes eight bytes.
            assert_eq!((reads, bytes), (0, writes * 8), "a collect call reads or writes files itself");
        }
        assert_ne!(result, -1);
        (data, size)
    }

    fn cleanup(&self, data: *mut c_void) -> c_int {
        match self.callbacks {
            Callbacks::Old => unsafe {
                self.symbol::<unsafe extern "C" fn(*mut c_void) -> c_int>("FLBPluginInputCleanupCallback")(data)
            },
            Callbacks::WithContext | Callbacks::HostAppends => unsafe {
                type Cleanup = unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int;
                self.symbol::<Cleanup>("FLBPluginInputCleanupCallbackCtx")(std::ptr::null_mut(), data)
            },
        }
    }

    /// One tick: collect, append, cleanup. Returns how many records came.
    fn tick(&mut self) -> usize {
        let (data, size) = self.collect();
        if self.callbacks == Callbacks::HostAppends {
            assert_eq!(size, 0, "appended and lent");
            let appended = std::mem::take(&mut host().appended);
            let count = appended.len();
            self.records.extend(appended);
            return count;
        }
        if size == 0 {
            return 0;
        }
        // Cleaned up at once, as in the host: a buffer it keeps for long counts as dropped.
        let bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), size) }.to_vec();
        assert_eq!(self.cleanup(data), 0);
        let entries = decode(&bytes);
        let count = entries.len();
        self.records.extend(entries);
        count
    }

    /// Ticks until every event has come at least once; faster than a host, so that the test need not wait.
    fn tick_until_all(&mut self, service: &Service) {
        let mut patience = Patience::new();
        while !service.has_all(&self.records) {
            let lasts = patience.lasts(Duration::from_millis(5));
            assert!(lasts, "{}; {:?}", service.compare(&self.records), taken_log());
            self.tick();
        }
    }

    fn tick_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let mut patience = Patience::new();
        while !done(self) {
            let lasts = patience.lasts(Duration::from_millis(5));
            assert!(lasts, "still no {what} after {} records; {:?}", self.records.len(), taken_log());
            self.tick();
        }
    }

    /// As in the host: Pause twice, PreExit, Exit.
    fn stop(&self) {
        for name in ["FLBPluginInputPause", "FLBPluginInputPause", "FLBPluginInputPreExit", "FLBPluginExit"] {
            self.call(name);
        }
        let left_behind = LOG.lock().unwrap().iter().any(|(_, line)| line.contains("not everything ended in time"));
        if left_behind {
            // On a machine too busy to run them for two seconds, they still end.
            support::wait_until("end of the threads", || own_threads().is_empty());
        }
        assert_eq!(own_threads(), Vec::<String>::new(), "threads outlive the exit");
    }
}

/// `PF_EXITING` of the kernel: the thread has run its last instruction outside of it.
const EXITING: u64 = 4;

/// Threads in this process that may still run the plugin's code. A thread whose join has returned can stay listed for a
/// while: the kernel wakes who joins it before it takes the thread off the list. It has set `PF_EXITING` by then.
fn own_threads() -> Vec<String> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let stats = threads.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
    let running = stats.filter_map(|stat| {
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
        let flags: u64 = rest.split(' ').nth(6)?.parse().ok()?;
        (name.starts_with("m365-") && flags & EXITING == 0).then(|| name.to_owned())
    });
    running.collect()
}

/// Parses JSON in texts: values nested too deep for the host come as text.
fn with_texts_read(value: Value) -> Value {
    match value {
        Value::String(text) => match serde_json::from_str(&text) {
            Ok(inner @ (Value::Object(_) | Value::Array(_))) => with_texts_read(inner),
            _ => Value::String(text),
        },
        Value::Array(items) => items.into_iter().map(with_texts_read).collect(),
        Value::Object(members) => members.into_iter().map(|(key, value)| (key, with_texts_read(value))).collect(),
        other => other,
    }
}

fn taken_log() -> Vec<(c_int, String)> {
    std::mem::take(&mut LOG.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A page of the plugin's own listener.
fn page(address: &str, path: &str) -> Option<String> {
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok().map(|_| page)
}

/// An address for the plugin's own listener.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// How many blobs the plugin has settled since its start.
fn settled_blobs(address: &str) -> u64 {
    let page = page(address, "/metrics").unwrap_or_default();
    let settled =
        page.lines().filter(|line| line.starts_with("m365_audit_blobs_total{") && line.contains("\"settled\""));
    settled.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
}

fn logged(lines: &[(c_int, String)], level: c_int, part: &str) -> bool {
    lines.iter().any(|(l, line)| *l == level && line.contains(part))
}

/// Runs `script` on a thread of the host, alone in the process.
fn on_host_thread(threading: Threading, script: impl FnOnce(&Path) + Send + 'static) {
    let Some(library) = library() else { return };
    let _turn: MutexGuard<'_, ()> = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    taken_log();
    let name = if threading == Threading::Off { "flb-pipeline" } else { "flb-in-m365_aud" };
    let body = move || {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| script(&library)));
        if result.is_err() {
            // Threads left over must not affect the next script.
            Agent::new(&library, Callbacks::Old, &[]).call("FLBPluginExit");
        }
        result
    };
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body).unwrap();
    if let Err(panic) = thread.join().and_then(|result| result) {
        println!("log: {:#?}", taken_log());
        std::panic::resume_unwind(panic);
    }
}

fn with_data_dir(service: &Service, dir: &Path, more: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut properties = service.properties();
    properties.push(("data_dir".to_owned(), dir.to_str().unwrap().to_owned()));
    for (key, value) in more {
        properties.retain(|(k, _)| k != key);
        properties.push(((*key).to_owned(), (*value).to_owned()));
    }
    properties
}

#[test]
fn every_event_comes_once_and_a_restart_repeats_nothing() {
    for (threading, callbacks) in [
        (Threading::Off, Callbacks::WithContext),
        (Threading::Off, Callbacks::Old),
        (Threading::On, Callbacks::WithContext),
        (Threading::On, Callbacks::Old),
    ] {
        every_event_comes_once(threading, callbacks);
    }
}

#[test]
fn every_event_comes_once_in_a_host_that_appends() {
    if host_appends("every_event_comes_once_in_a_host_that_appends") {
        every_event_comes_once(Threading::Off, Callbacks::HostAppends);
        every_event_comes_once(Threading::On, Callbacks::HostAppends);
    }
}

fn every_event_comes_once(threading: Threading, callbacks: Callbacks) {
    on_host_thread(threading, move |library| {
        comes_once(library, callbacks);
    });
}

fn comes_once(library: &Path, callbacks: Callbacks) {
    let service = Service::new(1);
    service.publish(40, 25);
    let dir = tempfile::tempdir().unwrap();
    let address = free_address();
    let more = [("metrics_listen", address.as_str()), ("metrics_detail", "content_type")];
    let properties = with_data_dir(&service, dir.path(), &more);
    let mut agent = Agent::new(library, callbacks, &properties);
    agent.start();
    agent.tick_until_all(&service);
    service.assert_exact(&agent.records);
    // In either mode; threaded, without counters, by time.
    let blobs = service.sim.truth().blobs;
    agent.tick_until("settlement of every blob", |_| settled_blobs(&address) >= blobs);
    agent.stop();
    let mut log = taken_log();
    agent.start();
    let listed = service.sim.activity();
    agent.tick_until("polls after the restart", |_| service.sim.activity() > listed + 20);
    service.assert_exact(&agent.records);
    agent.stop();
    log.extend(taken_log());
    let state =
        format!("[input:m365_audit:m365_audit.0] state (positions and delivered events): {}", dir.path().display());
    assert!(logged(&log, 3, &state) && logged(&log, 3, "not by default: client_id="), "{log:?}");
    assert!(log.iter().all(|(_, line)| line.len() < 300), "{log:?}");
    assert!(!log.iter().any(|(_, line)| line.contains(&service.config.client_secret)), "a secret is logged");
}

#[test]
fn what_a_threaded_host_may_not_have_written_comes_again() {
    on_host_thread(Threading::On, |library| {
        let service = Service::new(1);
        service.publish(10, 25);
        let dir = tempfile::tempdir().unwrap();
        let mut agent = Agent::new(library, Callbacks::WithContext, &with_data_dir(&service, dir.path(), &[]));
        agent.start();
        // Cleaned up, so only in the host's memory, and lost with it.
        agent.tick_until("a first buffer", |agent| !agent.records.is_empty());
        let lost = std::mem::take(&mut agent.records);
        agent.stop();
        agent.start();
        agent.tick_until_all(&service);
        service.assert_nothing_lost(&agent.records);
        assert!(!lost.is_empty());
        agent.stop();
    });
}

#[test]
fn a_pause_at_any_moment_loses_and_repeats_nothing() {
    for threading in [Threading::Off, Threading::On] {
        on_host_thread(threading, move |library| {
            let service = Service::new(1);
            service.publish(40, 50);
            let dir = tempfile::tempdir().unwrap();
            let properties = with_data_dir(&service, dir.path(), &[("bytes_per_tick_max", "64K")]);
            let mut agent = Agent::new(library, Callbacks::WithContext, &properties);
            agent.start();
            let mut random = fastrand::Rng::with_seed(7);
            agent.tick_until("whole truth", |agent| {
                if random.u8(..4) == 0 {
                    agent.call("FLBPluginInputPause");
                    // The host may continue to collect from a paused instance, and drops the records.
                    assert_eq!(agent.tick(), 0);
                    agent.call("FLBPluginInputResume");
                }
                service.has_all(&agent.records)
            });
            service.assert_exact(&agent.records);
            agent.stop();
        });
    }
}

#[test]
fn what_the_host_does_not_append_comes_again() {
    if !host_appends("what_the_host_does_not_append_comes_again") {
        return;
    }
    for threading in [Threading::Off, Threading::On] {
        on_host_thread(threading, move |library| {
            *host() = AppendingHost::new();
            let service = Service::new(1);
            service.publish(40, 25);
            let dir = tempfile::tempdir().unwrap();
            let mut agent = Agent::new(library, Callbacks::HostAppends, &with_data_dir(&service, dir.path(), &[]));
            host().refusals = 4;
            agent.start();
            agent.tick_until_all(&service);
            service.assert_exact(&agent.records);
            assert!(host().calls > 4);
            agent.tick();
            let log = taken_log();
            let refusals = log.iter().filter(|(_, line)| line.contains("fluent-bit-append-refused")).count();
            assert!(refusals == 1 && logged(&log, 3, "takes buffers again"), "{log:?}");
            agent.stop();
        });
    }
}

#[test]
fn a_pause_from_inside_an_append_ends_the_tick_and_loses_and_repeats_nothing() {
    if !host_appends("a_pause_from_inside_an_append_ends_the_tick_and_loses_and_repeats_nothing") {
        return;
    }
    for threading in [Threading::Off, Threading::On] {
        on_host_thread(threading, move |library| {
            *host() = AppendingHost::new();
            let service = Service::new(1);
            service.publish(40, 50);
            let dir = tempfile::tempdir().unwrap();
            let properties = with_data_dir(&service, dir.path(), &[("bytes_per_tick_max", "64K")]);
            let mut agent = Agent::new(library, Callbacks::HostAppends, &properties);
            host().pause = Some(agent.symbol("FLBPluginInputPause"));
            agent.start();
            agent.tick_until("whole truth", |agent| {
                if host().paused {
                    assert_eq!(agent.tick(), 0, "appended to a paused host");
                    host().paused = false;
                    agent.call("FLBPluginInputResume");
                }
                service.has_all(&agent.records)
            });
            service.assert_exact(&agent.records);
            agent.stop();
            assert!(!taken_log().iter().any(|(_, line)| line.contains("fluent-bit-append-refused")));
        });
    }
}

#[test]
fn a_host_with_an_engine_takes_records_as_soon_as_they_wait_and_not_only_in_its_ticks() {
    if !host_appends("a_host_with_an_engine_takes_records_as_soon_as_they_wait_and_not_only_in_its_ticks") {
        return;
    }
    for threading in [Threading::Off, Threading::On] {
        on_host_thread(threading, move |library| {
            *host() = AppendingHost::new();
            Engine::start();
            let service = Service::new(1);
            service.publish(40, 25);
            let dir = tempfile::tempdir().unwrap();
            let mut agent = Agent::new(library, Callbacks::HostAppends, &with_data_dir(&service, dir.path(), &[]));
            agent.start();
            assert_eq!(Engine::run_timers(), 1, "asked in PreRun");
            let without_a_tick = |records: &mut Vec<Value>| {
                support::wait_until("every event without a tick", || {
                    let called = Engine::run_collector();
                    let appended = std::mem::take(&mut host().appended);
                    assert!(called || appended.is_empty());
                    records.extend(appended);
                    service.has_all(records)
                });
            };
            without_a_tick(&mut agent.records);
            service.assert_exact(&agent.records);

            // Ticks settle the records that a threaded host holds.
            let listed = service.sim.activity();
            agent.tick_until("more polls", |_| service.sim.activity() > listed + 20);
            agent.call("FLBPluginInputPause");
            while Engine::run_collector() {}
            service.publish_now(4, 25);
            support::wait_until("call in a pause", Engine::run_collector);
            assert!(host().appended.is_empty(), "appended to a paused host");
            agent.call("FLBPluginInputResume");
            agent.tick_until_all(&service);
            service.publish_now(4, 25);
            without_a_tick(&mut agent.records);
            service.assert_nothing_lost(&agent.records);
            assert_eq!(Engine::run_timers(), 0, "asked twice");

            agent.stop();
            Engine::run_collector();
            assert!(!Engine::run_collector(), "it rings for ever");
            assert!(host().appended.is_empty(), "appended after the exit");
        });
    }
}

#[test]
fn what_a_threaded_host_has_not_counted_comes_again_and_what_it_has_counted_does_not() {
    if !host_appends("what_a_threaded_host_has_not_counted_comes_again_and_what_it_has_counted_does_not") {
        return;
    }
    on_host_thread(Threading::On, move |library| {
        export("encode_for_test", encode as *const () as usize);
        let begun = Instant::now();
        while !settles_what_is_counted_and_nothing_else(library) {
            assert!(begun.elapsed() < PATIENCE, "this machine never gets through within {UNSEEN:?}");
        }
    });
}

/// Less than the plugin's wait for an engine that does not count its appends (`UNSEEN_AFTER`).
const UNSEEN: Duration = Duration::from_secs(9);

/// `false`: inconclusive, since on a slow machine the plugin has already waited long enough for its engine.
fn settles_what_is_counted_and_nothing_else(library: &Path) -> bool {
    let service = Service::new(1);
    service.publish(8, 25);
    let dir = tempfile::tempdir().unwrap();
    let address = free_address();
    let more =
        [("metrics_listen", address.as_str()), ("metrics_detail", "content_type"), ("bytes_per_tick_max", "64K")];
    let mut agent = Agent::new(library, Callbacks::HostAppends, &with_data_dir(&service, dir.path(), &more));

    // An engine that is busy elsewhere.
    *host() = AppendingHost::new();
    let start = Instant::now();
    agent.start();
    agent.tick_until_all(&service);
    let delivered = Instant::now();
    agent.tick_until("time that settles what nothing is known of", |_| {
        delivered.elapsed() > Duration::from_millis(2_500)
    });
    agent.stop();
    if start.elapsed() > UNSEEN {
        return false;
    }

    // All comes again. Then an engine that has begun with all but the last append, and at last with all.
    *host() = AppendingHost::new();
    agent.records.clear();
    let start = Instant::now();
    agent.start();
    agent.tick_until_all(&service);
    service.assert_exact(&agent.records);
    agent.tick_until("settlement of what is counted", |_| {
        host().count_all_but(1);
        settled_blobs(&address) > 0 || start.elapsed() > UNSEEN
    });
    let in_time = start.elapsed() < UNSEEN;
    let blobs = service.sim.truth().blobs;
    agent.tick_until("settlement of every blob", |_| {
        host().count_all_but(0);
        settled_blobs(&address) >= blobs
    });
    agent.stop();

    *host() = AppendingHost::new();
    agent.records.clear();
    agent.start();
    let listed = service.sim.activity();
    agent.tick_until("more polls", |_| service.sim.activity() > listed + 20);
    assert_eq!(agent.records, Vec::<Value>::new(), "settled, and come again");
    agent.stop();
    in_time
}

/// Lower bounds only: a busy machine makes them begin later.
#[test]
fn the_tenants_of_an_instance_begin_one_after_the_other_and_share_connections() {
    on_host_thread(Threading::Off, |library| {
        let tenants = 30;
        let service = Service::new(tenants);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tenants.toml");
        std::fs::write(&file, service.config_file(&dir.path().join("state"))).unwrap();
        let properties = [("config_file".to_owned(), file.to_str().unwrap().to_owned())];
        let mut agent = Agent::new(library, Callbacks::WithContext, &properties);
        let start = Instant::now();
        agent.start();
        agent.tick_until("word of every tenant", |_| {
            let asked: HashSet<String> = service.sim.requests().into_iter().map(|request| request.tenant).collect();
            let turns = start.elapsed().as_millis() / BEGIN_EVERY.as_millis();
            assert!(asked.len() as u128 <= turns + 1, "{} of them in {turns} turns", asked.len());
            asked.len() == tenants
        });
        // Their number depends on how many calls are in flight at a time on this machine.
        agent.tick_until("a connection in common with another for every tenant", |_| {
            let mut tenants_of: HashMap<u64, HashSet<String>> = HashMap::new();
            for request in service.sim.requests() {
                tenants_of.entry(request.connection).or_default().insert(request.tenant);
            }
            let sharing: HashSet<String> = tenants_of.into_values().filter(|of| of.len() > 1).flatten().collect();
            sharing.len() == tenants
        });
        agent.stop();
    });
}

#[test]
fn a_full_queue_stops_the_fetching_and_a_stop_in_a_backlog_loses_nothing() {
    on_host_thread(Threading::Off, |library| {
        let service = Service::new(1);
        service.publish(800, 10);
        let dir = tempfile::tempdir().unwrap();
        let small = [("bytes_per_tick_max", "256K"), ("in_flight_bytes_max", "1M")];
        let mut agent = Agent::new(library, Callbacks::WithContext, &with_data_dir(&service, dir.path(), &small));
        agent.start();
        support::wait_until("standstill", || {
            let before = service.sim.activity();
            std::thread::sleep(Duration::from_millis(300));
            before > 5 && service.sim.activity() == before
        });
        let truth = service.sim.truth();
        assert!(truth.blobs_read < truth.blobs, "a full queue does not stop the fetching");
        for _ in 0..3 {
            agent.tick_until("a buffer", |agent| agent.tick() > 0);
        }
        agent.stop();
        agent.start();
        agent.tick_until_all(&service);
        service.assert_nothing_lost(&agent.records);
        agent.stop();
    });
}

#[test]
fn an_event_kept_as_an_object_keeps_its_types() {
    on_host_thread(Threading::Off, |library| {
        let service = Service::new(1);
        service.publish(20, 50);
        let dir = tempfile::tempdir().unwrap();
        let properties = with_data_dir(&service, dir.path(), &[("raw", "object")]);
        let mut agent = Agent::new(library, Callbacks::WithContext, &properties);
        agent.start();
        let expected = service.sim.truth().event_count() * 9 / 10;
        agent.tick_until("most records", |agent| agent.records.len() as u64 >= expected);
        agent.stop();
        let truth: HashSet<String> = service
            .sim
            .truth()
            .events
            .iter()
            .map(|event| with_texts_read(serde_json::from_slice(&event.raw).unwrap()).to_string())
            .collect();
        for record in agent.records.iter().filter(|record| !support::is_own(record)) {
            assert!(record["record_type"].is_i64() || record["record_type"].is_null(), "{record}");
            assert!(truth.contains(&with_texts_read(record["raw"].clone()).to_string()), "{}", record["raw"]);
        }
    });
}

#[test]
fn one_instance_serves_several_tenants() {
    on_host_thread(Threading::Off, |library| {
        let service = Service::new(2);
        service.publish(20, 20);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tenants.toml");
        std::fs::write(&file, service.config_file(&dir.path().join("state"))).unwrap();
        let properties = [("config_file".to_owned(), file.to_str().unwrap().to_owned())];
        let mut agent = Agent::new(library, Callbacks::WithContext, &properties);
        agent.start();
        agent.tick_until_all(&service);
        service.assert_exact(&agent.records);
        agent.stop();
    });
}

#[test]
fn a_second_instance_is_refused_with_the_reason_and_the_first_goes_on() {
    on_host_thread(Threading::Off, |library| {
        let service = Service::new(1);
        service.publish(10, 10);
        let dir = tempfile::tempdir().unwrap();
        let properties = with_data_dir(&service, dir.path(), &[]);
        let mut first = Agent::new(library, Callbacks::WithContext, &properties);
        first.start();
        let mut second = Agent::new(library, Callbacks::WithContext, &properties);
        assert_eq!(second.init(), 0);
        let log = taken_log();
        assert!(logged(&log, 1, "fluent-bit-second-instance") && logged(&log, 1, "config_file"), "{log:?}");
        first.tick_until_all(&service);
        service.assert_exact(&first.records);
        first.stop();
    });
}

#[test]
fn a_host_without_metrics_leaves_them_to_our_listener() {
    on_host_thread(Threading::Off, |library| {
        let service = Service::new(1);
        service.publish(5, 10);
        let dir = tempfile::tempdir().unwrap();
        let address = free_address();
        let properties = with_data_dir(&service, dir.path(), &[("metrics_listen", &address)]);
        let mut agent = Agent::new(library, Callbacks::WithContext, &properties);
        agent.start();
        agent.tick_until_all(&service);
        let page = |path: &str| page(&address, path);
        agent.tick_until("metrics", |_| page("/metrics").is_some_and(|p| p.contains("m365_audit_events_total{")));
        assert!(page("/health").is_some_and(|p| p.starts_with("HTTP/1.") && p.contains("m365_audit")));
        // The status page is here, too.
        let shown = page("/status.html").unwrap();
        assert!(
            shown.contains("1 tenant: ") && shown.contains("content-security-policy: default-src 'none'"),
            "{shown}"
        );
        // With the bar of its state, once that has a position.
        let has_bar = |page: String| page.contains("aria-label=\"m365_audit: ");
        agent.tick_until("bar", |_| page("/status.html").is_some_and(has_bar));
        let status = page("/status").unwrap();
        assert!(status.contains("\"name\": \"m365_audit\""), "{status}");
        assert!(page("/").is_some_and(|p| p.contains("/status.html")));
        // The state's file is looked after also while nothing is written.
        std::fs::rename(dir.path().join("state.sqlite3"), dir.path().join("away")).unwrap();
        agent.tick_until("state", |_| page("/status").is_some_and(|p| p.contains("state-removed: ")));
        agent.stop();
        assert!(page("/metrics").is_none(), "the listener outlives the exit");
    });
}

#[test]
fn only_what_can_never_work_fails_the_start() {
    on_host_thread(Threading::On, |library| {
        let service = Service::new(1);
        let dir = tempfile::tempdir().unwrap();
        for (key, value) in [("tenant_id", "contoso.com"), ("content_types", "Audit.Exchnage"), ("config_file", "/no")]
        {
            let properties = with_data_dir(&service, dir.path(), &[(key, value)]);
            let mut agent = Agent::new(library, Callbacks::WithContext, &properties);
            assert_eq!(agent.init(), 0, "{key}");
            let log = taken_log();
            assert!(logged(&log, 1, value) && logged(&log, 1, "config-invalid"), "{key}: {log:?}");
        }
        // A wrong secret, an address where nobody listens, a state that cannot be opened: these faults may end by
        // themselves.
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        for (key, value) in [
            ("client_secret", "wrong"),
            ("authority_url", "http://127.0.0.1:9"),
            ("data_dir", file.join("below").to_str().unwrap()),
        ] {
            let mut agent = Agent::new(
                library,
                Callbacks::WithContext,
                &with_data_dir(&service, &dir.path().join("s"), &[(key, value)]),
            );
            agent.start();
            agent.tick_until("word of what is wrong", |_| {
                taken_log().iter().any(|(level, line)| (1..=2).contains(level) && !line.contains("started, threaded"))
            });
            agent.stop();
        }
    });
}

/// Fluent Bit ignores properties that the plugin does not request.
#[test]
fn a_property_that_was_probably_meant_to_be_another_ends_the_start_with_the_right_name() {
    on_host_thread(Threading::Off, |library| {
        let service = Service::new(1);
        let dir = tempfile::tempdir().unwrap();
        for (written, right) in [
            ("state_path", "use `data_dir`"),
            ("db", "use `data_dir`"),
            ("backfil_secs", "use `backfill_secs`"),
            ("pollInterval", "use `poll_interval_secs`"),
            ("tenant", "use `tenant_id`"),
            ("storage_type", "use Fluent Bit's `storage.type`"),
            ("retry_limit", "it belongs to an output"),
            ("parser", "remove it"),
        ] {
            let properties = with_data_dir(&service, dir.path(), &[(&written.to_ascii_lowercase(), "1")]);
            let mut agent = Agent::new(library, Callbacks::WithContext, &properties);
            assert_eq!(agent.init(), 0, "{written}");
            let log = taken_log();
            let said = format!("`{}` is not a property of this input; {right}", written.to_ascii_lowercase());
            assert!(logged(&log, 1, "config-invalid") && logged(&log, 1, &said), "{said}: {log:?}");
        }
    });
}

#[test]
fn neither_a_collect_nor_an_exit_waits_for_a_server_that_does_not_answer() {
    on_host_thread(Threading::On, |library| {
        let service = Service::new(1);
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        let dir = tempfile::tempdir().unwrap();
        for key in ["api_url", "authority_url"] {
            let properties = with_data_dir(&service, dir.path(), &[(key, &url), REQUEST_TIMEOUT]);
            let mut agent = Agent::new(library, Callbacks::WithContext, &properties);
            agent.start();
            let (_connection, _) = silent.accept().unwrap();
            let begun = Instant::now();
            for _ in 0..20 {
                assert_eq!(agent.tick(), 0);
            }
            agent.stop();
            assert!(begun.elapsed() < PATIENCE, "it waited for the server");
        }
    });
}

#[test]
fn misuse_of_any_function_is_harmless() {
    on_host_thread(Threading::Off, |library| {
        let service = Service::new(1);
        service.publish(5, 10);
        let dir = tempfile::tempdir().unwrap();
        let mut agent = Agent::new(library, Callbacks::WithContext, &with_data_dir(&service, dir.path(), &[]));
        type WithTwo = unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int;
        type WithThree = unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_void) -> c_int;
        let null = std::ptr::null_mut();
        let one = |agent: &Agent, name: &str, argument: *mut c_void| unsafe {
            agent.symbol::<unsafe extern "C" fn(*mut c_void) -> c_int>(name)(argument)
        };
        let every_call = |agent: &mut Agent| {
            assert_eq!(agent.tick(), 0);
            for name in ["FLBPluginInputPause", "FLBPluginInputResume", "FLBPluginInputPreExit", "FLBPluginExit"] {
                agent.call(name);
            }
            assert_eq!(agent.cleanup(0x1000 as *mut c_void), -1);
        };
        let nulls = |agent: &Agent| unsafe {
            assert_eq!(one(agent, "FLBPluginRegister", null), -1);
            assert_eq!(one(agent, "FLBPluginInit", null), 0);
            assert_eq!(one(agent, "FLBPluginInputCleanupCallback", null), -1);
            assert_eq!(agent.symbol::<WithTwo>("FLBPluginInputCleanupCallbackCtx")(null, null), -1);
            assert_eq!(agent.symbol::<WithTwo>("FLBPluginInputCallback")(null, null), -1);
            assert_eq!(agent.symbol::<WithThree>("FLBPluginInputCallbackCtx")(null, null, null), -1);
            one(agent, "FLBPluginUnregister", null);
        };
        nulls(&agent);
        every_call(&mut agent);
        // A struct without a table or an instance.
        let mut empty: [usize; 10] = [0; 10];
        assert_eq!(one(&agent, "FLBPluginInit", empty.as_mut_ptr().cast()), 0);

        agent.start();
        nulls(&agent);
        agent.tick_until("a buffer", |agent| agent.records.len() > 3 || agent.tick() > 0);
        // A buffer that is never cleaned up, then cleaned up late, twice, and by another address.
        service.publish_now(5, 10);
        let mut held = (null, 0);
        support::wait_until("another buffer", || {
            held = agent.collect();
            held.1 > 0
        });
        assert_eq!(agent.cleanup(held.0.wrapping_byte_add(1)), -1);
        assert_eq!(agent.cleanup(held.0), 0);
        assert_eq!(agent.cleanup(held.0), -1);
        agent.call("FLBPluginInputResume");
        agent.stop();
        agent.call("FLBPluginExit");
        every_call(&mut agent);
        nulls(&agent);
    });
}

#[test]
fn registration_writes_five_fields_and_nothing_behind_them() {
    on_host_thread(Threading::Off, |library| {
        let agent = Agent::new(library, Callbacks::Old, &[]);
        assert_eq!(agent.call("FLBPluginPreRegister"), 0);
        let nothing = std::ptr::null();
        let mut def = Def { kind: 0, proxy: 0, flags: 9, name: nothing, description: nothing, behind: [0xaa; 16] };
        let register = agent.symbol::<unsafe extern "C" fn(*mut Def) -> c_int>("FLBPluginRegister");
        assert_eq!(unsafe { register(&raw mut def) }, 0);
        assert_eq!((def.kind, def.proxy, def.flags, def.behind), (1, 11, 0, [0xaa; 16]));
        assert_eq!(unsafe { CStr::from_ptr(def.name) }, c"m365_audit");
        assert!(!unsafe { CStr::from_ptr(def.description) }.is_empty());
        assert_eq!(own_threads(), Vec::<String>::new(), "a thread before the host has forked");
        unsafe { agent.symbol::<unsafe extern "C" fn(*mut Def)>("FLBPluginUnregister")(&raw mut def) };
    });
}
