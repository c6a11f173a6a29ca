//! Fluent Bit's functions as Rust ones: the table passed to `FLBPluginInit`, and the exports of its executable.
//!
//! Layout after `flb_api.h` and `go.h` (5.1; entries used here are unchanged since 2.0). Of the per-plugin struct only
//! the first three fields are read, and none are written: the context block behind the fourth changed in 4.1.
//!
//! Every function here but [`HostApi::name`] may be called from the host's threads only, inside one of its calls:
//! from others the host's log misses its file, and its metrics are not locked.

use std::ffi::{CStr, CString, c_char, c_double, c_int, c_void};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::task::Wake;

use super::metrics::Sample;
use super::ring::Counted;
use m365_audit::metrics::MetricKind;

/// `struct flb_plugin_proxy_def`: what `FLBPluginRegister` fills in. Hosts since 5.0 have more fields after these;
/// older ones do not, so later fields are not touched.
#[repr(C)]
pub struct PluginDef {
    kind: c_int,
    proxy: c_int,
    flags: c_int,
    name: *const c_char,
    description: *const c_char,
}

/// `struct flbgo_input_plugin`: what `FLBPluginInit` is given. Shared by all instances and rewritten before each.
#[repr(C)]
pub struct Plugin {
    name: *const c_char,
    api: *const ApiTable,
    instance: *mut c_void,
}

/// `FLB_PROXY_INPUT_PLUGIN`.
const INPUT: c_int = 1;
/// `FLB_PROXY_GOLANG`, the only kind of proxy there is; no Go is meant.
const PROXY: c_int = 11;
/// The name in `name: m365_audit`.
pub const NAME: &CStr = c"m365_audit";
const DESCRIPTION: &CStr = c"Microsoft 365 unified audit log (Office 365 Management Activity API)";

impl PluginDef {
    /// Fills in the description of this plugin. The texts are static, since the host keeps the pointer of the
    /// description.
    pub fn fill(&mut self) {
        self.kind = INPUT;
        self.proxy = PROXY;
        self.flags = 0;
        self.name = NAME.as_ptr();
        self.description = DESCRIPTION.as_ptr();
    }
}

/// `struct flb_api` up to the last entry an input needs.
#[repr(C)]
struct ApiTable {
    _output_get_property: *const c_void,
    input_get_property: Option<unsafe extern "C" fn(*const c_char, *mut c_void) -> *const c_char>,
    _output_get_cmt_instance: *const c_void,
    input_get_cmt_instance: Option<unsafe extern "C" fn(*mut c_void) -> *mut c_void>,
    log_print: Option<unsafe extern "C" fn(c_int, *const c_char, c_int, *const c_char, ...)>,
    input_log_check: Option<unsafe extern "C" fn(*mut c_void, c_int) -> c_int>,
}

/// One instance's access to the host. Valid from its `FLBPluginInit` to the end of its `FLBPluginExit`.
#[derive(Debug)]
pub struct HostApi {
    table: *const ApiTable,
    instance: *mut c_void,
    name: String,
    append: Option<Append>,
    engine: Option<Engine>,
}

/// `flb_sched_ctx_get`: the calling thread's scheduler, or null.
type GetScheduler = unsafe extern "C" fn() -> *mut c_void;
/// `flb_sched_timer_cb_create`: 0 done.
type CreateTimer = unsafe extern "C" fn(*mut c_void, c_int, c_int, OnTimer, *mut c_void, *mut *mut c_void) -> c_int;
/// `flb_input_set_collector_event`: the collector's number, or -1.
type SetCollector = unsafe extern "C" fn(*mut c_void, OnReadable, c_int, *mut c_void) -> c_int;
/// `flb_input_collector_start`: 0 done.
type StartCollector = unsafe extern "C" fn(c_int, *mut c_void) -> c_int;

/// The callback of an engine's timer: with its configuration, and with the data of the timer's maker.
pub type OnTimer = extern "C" fn(Config, *mut c_void);
/// The callback of a collector: with the input, the engine's configuration, and the plugin's context.
pub type OnReadable = extern "C" fn(*mut c_void, Config, *mut c_void) -> c_int;

/// `struct flb_config`, the running engine. Only the engine passes one, and the plugin only passes it back.
#[repr(transparent)]
#[derive(Debug, Clone, Copy)]
pub struct Config(*mut c_void);

/// The functions by which the engine's own inputs are called when there is something to read; the same from 2.0 to
/// 5.1.
#[derive(Debug, Clone, Copy)]
struct Engine {
    scheduler: GetScheduler,
    create_timer: CreateTimer,
    set_collector: SetCollector,
    start_collector: StartCollector,
}

/// `FLB_SCHED_TIMER_CB_ONESHOT`, from 2.0 to 5.1.
const ONE_SHOT: c_int = 3;

impl Engine {
    fn find() -> Option<Self> {
        // SAFETY: the signatures in `flb_scheduler.h` and `flb_input.h`.
        unsafe {
            Some(Self {
                scheduler: std::mem::transmute::<*mut c_void, GetScheduler>(symbol(c"flb_sched_ctx_get")?),
                create_timer: std::mem::transmute::<*mut c_void, CreateTimer>(symbol(c"flb_sched_timer_cb_create")?),
                set_collector: std::mem::transmute::<*mut c_void, SetCollector>(symbol(
                    c"flb_input_set_collector_event",
                )?),
                start_collector: std::mem::transmute::<*mut c_void, StartCollector>(symbol(
                    c"flb_input_collector_start",
                )?),
            })
        }
    }
}

/// The descriptor that the engine watches to call this plugin at once. It is never closed, so that its number is not
/// reused while an engine that is ending, before a reload, may still watch it; there is one live instance at a time.
#[derive(Debug)]
pub struct Bell(File);

impl Bell {
    /// The one of this process.
    pub fn of_process() -> io::Result<Arc<Self>> {
        static BELL: OnceLock<Arc<Bell>> = OnceLock::new();
        if let Some(bell) = BELL.get() {
            return Ok(bell.clone());
        }
        // SAFETY: creates a descriptor, or returns -1.
        let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if descriptor == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just created, and not shared.
        let bell = Self(File::from(unsafe { OwnedFd::from_raw_fd(descriptor) }));
        Ok(BELL.get_or_init(|| Arc::new(bell)).clone())
    }

    /// Rings it, from any thread, until [`Bell::hush`].
    pub fn ring(&self) {
        // It fails after 2^64 - 2 unread writes.
        let _ = (&self.0).write(&1u64.to_ne_bytes());
    }

    /// Ends its ringing.
    pub fn hush(&self) {
        // It fails when it is not ringing.
        let _ = (&self.0).read(&mut [0; 8]);
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}

/// `flb_input_log_append`: 0, or -1 when the host did not accept the bytes. The same from 2.0 to 5.1.
type Append = unsafe extern "C" fn(*mut c_void, *const c_char, usize, *const c_void, usize) -> c_int;

// SAFETY: the table and the instance outlive this value (they live until the instance's exit is over, when it is
// dropped), neither is written through these pointers, and the calls that must stay on host threads are made in
// `super::instance` inside a call of the host, as the module's documentation requires.
unsafe impl Send for HostApi {}
// SAFETY: as above.
unsafe impl Sync for HostApi {}

impl HostApi {
    /// Copies the needed fields of the struct of `FLBPluginInit`; `None` when it is not one.
    ///
    /// # Safety
    /// `plugin` is null or points to the host's per-plugin struct, valid during the call; the table and instance it
    /// names stay valid until the instance has exited.
    pub unsafe fn new(plugin: *const Plugin) -> Option<Self> {
        // SAFETY: the caller guarantees that it is null or valid.
        let plugin = unsafe { plugin.as_ref() }?;
        if plugin.api.is_null() || plugin.instance.is_null() {
            return None;
        }
        let append = symbol(c"flb_input_log_append");
        // SAFETY: the signature in `flb_input_log.h` since 2.0.
        let append = append.map(|function| unsafe { std::mem::transmute::<*mut c_void, Append>(function) });
        let (table, instance, engine) = (plugin.api, plugin.instance, Engine::find());
        let mut api = Self { table, instance, name: String::new(), append, engine };
        api.name = api.instance_name();
        Some(api)
    }

    /// The instance's name or alias.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value of a property, variables replaced by the host; `None` when it is not set, empty, or not UTF-8.
    pub fn property(&self, key: &str) -> Option<String> {
        let key = CString::new(key).ok()?;
        let get = self.table().input_get_property?;
        // SAFETY: the host's function with the host's instance; the text is copied before anything else is called.
        let value = unsafe { get(key.as_ptr(), self.instance) };
        // SAFETY: null or a C string of the host that lives as long as the instance.
        let value = (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) })?;
        value.to_str().ok().filter(|text| !text.is_empty()).map(str::to_owned)
    }

    /// Whether the instance's `log_level` shows lines of this level (1 error … 5 trace).
    pub fn shows(&self, level: c_int) -> bool {
        // SAFETY: the host's function with the host's instance.
        self.table().input_log_check.is_none_or(|check| unsafe { check(self.instance, level) } != 0)
    }

    /// Prints one line to the host's log. The host does not check the level here: call [`HostApi::shows`] before.
    pub fn print(&self, level: c_int, text: &str) {
        let line = format!("[input:{}:{}] {}", NAME.to_string_lossy(), self.name, text.replace('\0', "\u{fffd}"));
        if let (Some(print), Ok(line)) = (self.table().log_print, CString::new(line)) {
            // SAFETY: a printf-like function, with its format and the one string that the format needs.
            unsafe { print(level, std::ptr::null(), 0, c"%s".as_ptr(), line.as_ptr()) };
        }
    }

    /// Whether the executable exports its append function.
    pub fn can_append(&self) -> bool {
        self.append.is_some()
    }

    /// Appends whole entries under the input's tag, as the host itself does with the result of a collect call; must be
    /// called inside a collect call, as there. `false`: the host did not accept them.
    pub fn append(&self, entries: &[u8]) -> bool {
        let Some(append) = self.append else { return false };
        // SAFETY: the host's function with the host's instance, on the thread the host would call it on; no tag, as
        // in its own call; the bytes are copied before it returns.
        unsafe { append(self.instance, std::ptr::null(), 0, entries.as_ptr().cast(), entries.len()) == 0 }
    }

    /// Has the engine call `then` on this thread, once and soon, with the configuration that further calls need.
    /// `false`: it does not. The call may come after the instance's exit, and never after the thread's event loop has
    /// ended.
    pub fn ask_for_config(&self, then: OnTimer) -> bool {
        let Some(Engine { scheduler, create_timer, .. }) = self.engine else { return false };
        // SAFETY: the host's function; it reads a pointer of the thread.
        let scheduler = unsafe { scheduler() };
        let null = std::ptr::null_mut;
        // SAFETY: the host's functions, with the calling thread's own scheduler; `then` takes no data, and its code
        // stays: see `keep_loaded`.
        !scheduler.is_null() && unsafe { create_timer(scheduler, ONE_SHOT, 1, then, null(), std::ptr::null_mut()) } == 0
    }

    /// Has the engine call `then` on this thread while `bell` rings, as long as the instance lives. `false`: it does
    /// not.
    pub fn call_when_rung(&self, config: Config, bell: &Bell, then: OnReadable) -> bool {
        let Some(Engine { set_collector, start_collector, .. }) = self.engine else { return false };
        // SAFETY: the host's functions with the host's instance, its own configuration, on the thread whose loop it
        // will be; the descriptor stays open, and the code of `then` stays: see `keep_loaded`.
        unsafe {
            let collector = set_collector(self.instance, then, bell.0.as_raw_fd(), config.0);
            collector != -1 && start_collector(collector, self.instance) == 0
        }
    }

    /// The host's own metrics of this instance, if the executable exports the functions to write them.
    pub fn metrics(&self) -> Option<HostMetrics> {
        // A host built without metrics leaves the table's entry uninitialised; it then has no metrics of its own,
        // either.
        symbol(c"flb_metrics_create")?;
        let functions = CmtFunctions::find()?;
        let get = self.table().input_get_cmt_instance?;
        // SAFETY: the host's function with the host's instance.
        let cmt = unsafe { get(self.instance) };
        (!cmt.is_null()).then(|| HostMetrics { cmt, functions, handles: Vec::new() })
    }

    /// The host's counters of this instance, if the executable exports the functions to read them.
    pub fn counters(&self) -> Option<HostCounters> {
        symbol(c"flb_metrics_create")?;
        let (encode, free) = (symbol(c"cmt_encode_prometheus_create")?, symbol(c"cmt_encode_prometheus_destroy")?);
        let get = self.table().input_get_cmt_instance?;
        // SAFETY: the host's function with the host's instance.
        let cmt = unsafe { get(self.instance) };
        // SAFETY: the signatures in `cmt_encode_prometheus.h`, the same since cmetrics 0.2.
        let (encode, free) = unsafe {
            (std::mem::transmute::<*mut c_void, Encode>(encode), std::mem::transmute::<*mut c_void, Free>(free))
        };
        (!cmt.is_null()).then_some(HostCounters { cmt, encode, free })
    }

    fn table(&self) -> &ApiTable {
        // SAFETY: not null, and valid as long as `self`: see `HostApi::new`.
        unsafe { &*self.table }
    }

    /// From `flb_input_name`, which the executable exports; else the name the first instance has by default.
    fn instance_name(&self) -> String {
        let default = || format!("{}.0", NAME.to_string_lossy());
        let Some(function) = symbol(c"flb_input_name") else { return default() };
        // SAFETY: the signature in `flb_input.h` since 2.0.
        let function: unsafe extern "C" fn(*mut c_void) -> *const c_char = unsafe { std::mem::transmute(function) };
        // SAFETY: the host's function with the host's instance.
        let name = unsafe { function(self.instance) };
        if name.is_null() {
            return default();
        }
        // SAFETY: not null, a C string of the host.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    }
}

type Create = unsafe extern "C" fn(
    *mut c_void,
    *const c_char,
    *const c_char,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
) -> *mut c_void;
type Set = unsafe extern "C" fn(*mut c_void, u64, c_double, c_int, *const *const c_char) -> c_int;

#[derive(Debug, Clone, Copy)]
struct CmtFunctions {
    counter_create: Create,
    counter_set: Set,
    gauge_create: Create,
    gauge_set: Set,
}

impl CmtFunctions {
    fn find() -> Option<Self> {
        // SAFETY: the signatures in `cmt_counter.h` and `cmt_gauge.h`, the same since cmetrics 0.2.
        unsafe {
            Some(Self {
                counter_create: std::mem::transmute::<*mut c_void, Create>(symbol(c"cmt_counter_create")?),
                counter_set: std::mem::transmute::<*mut c_void, Set>(symbol(c"cmt_counter_set")?),
                gauge_create: std::mem::transmute::<*mut c_void, Create>(symbol(c"cmt_gauge_create")?),
                gauge_set: std::mem::transmute::<*mut c_void, Set>(symbol(c"cmt_gauge_set")?),
            })
        }
    }
}

/// The instance's metrics inside the host. They belong to the host, which frees them with the instance.
#[derive(Debug)]
pub struct HostMetrics {
    cmt: *mut c_void,
    functions: CmtFunctions,
    handles: Vec<(&'static str, *mut c_void)>,
}

// SAFETY: the pointers are only dereferenced in `set`, which the module's documentation restricts to the host's
// threads.
unsafe impl Send for HostMetrics {}

impl HostMetrics {
    /// Writes one sample; registers its metric with the host at the first sample.
    pub fn set(&mut self, sample: &Sample, unix_nanoseconds: u64) {
        let Some(handle) = self.handle(sample) else { return };
        let Some(values) = c_strings(sample.label_values.iter().map(String::as_str)) else { return };
        let values: Vec<*const c_char> = values.iter().map(|value| value.as_ptr()).collect();
        let set = match sample.metric.kind {
            MetricKind::Counter => self.functions.counter_set,
            MetricKind::Gauge | MetricKind::Histogram => self.functions.gauge_set,
        };
        let count = c_int::try_from(values.len()).unwrap_or(0);
        // SAFETY: a handle made by the host for this kind, and as many values as keys.
        unsafe { set(handle, unix_nanoseconds, sample.value, count, values.as_ptr()) };
    }

    fn handle(&mut self, sample: &Sample) -> Option<*mut c_void> {
        let metric = sample.metric;
        if let Some((_, handle)) = self.handles.iter().find(|(name, _)| *name == metric.name) {
            return (!handle.is_null()).then_some(*handle);
        }
        let namespace = NAME.to_string_lossy();
        let short = metric.name.strip_prefix(&format!("{namespace}_")).unwrap_or(metric.name);
        let keys = c_strings(metric.labels.iter().copied())?;
        let keys: Vec<*const c_char> = keys.iter().map(|key| key.as_ptr()).collect();
        let (short, help) = (CString::new(short).ok()?, CString::new(metric.help).ok()?);
        let create = match metric.kind {
            MetricKind::Counter => self.functions.counter_create,
            MetricKind::Gauge | MetricKind::Histogram => self.functions.gauge_create,
        };
        let count = c_int::try_from(keys.len()).unwrap_or(0);
        // SAFETY: the host copies every text.
        let handle = unsafe {
            create(self.cmt, NAME.as_ptr(), c"".as_ptr(), short.as_ptr(), help.as_ptr(), count, keys.as_ptr())
        };
        self.handles.push((metric.name, handle));
        (!handle.is_null()).then_some(handle)
    }
}

/// `cmt_encode_prometheus_create`: a text without timestamps, or null.
type Encode = unsafe extern "C" fn(*mut c_void, c_int) -> *mut c_char;
/// `cmt_encode_prometheus_destroy`.
type Free = unsafe extern "C" fn(*mut c_char);

/// The host's counters of the instance. The host's page of the instance's metrics is the only exported way to its own
/// counters.
#[derive(Debug)]
pub struct HostCounters {
    cmt: *mut c_void,
    encode: Encode,
    free: Free,
}

// SAFETY: the pointer is only dereferenced in `counted`, which the module's documentation restricts to the host's
// threads: the instance's metrics are created at its init and, for this plugin's, on that thread. A threaded instance's
// engine sets values meanwhile, as atomics, and may add a series (that of the tag), whole before it is linked.
unsafe impl Send for HostCounters {}
// SAFETY: as above.
unsafe impl Sync for HostCounters {}

impl HostCounters {
    /// The records that the engine has begun to append.
    pub fn counted(&self) -> Option<Counted> {
        // SAFETY: the host's function with the host's metrics.
        let page = unsafe { (self.encode)(self.cmt, 0) };
        if page.is_null() {
            return None;
        }
        // SAFETY: not null, a C string of the host until it is freed.
        let counted = read_counters(&unsafe { CStr::from_ptr(page) }.to_string_lossy());
        // SAFETY: created by its counterpart, and not used any more.
        unsafe { (self.free)(page) };
        counted
    }
}

/// The instance's records and bytes in a page of metrics.
fn read_counters(page: &str) -> Option<Counted> {
    let value = |name: &str| {
        let labels_and_value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('{'))?;
        let value: f64 = labels_and_value.rsplit_once(' ')?.1.parse().ok()?;
        // Exact up to here; larger values and NaN cannot be compared.
        (0.0..9e15).contains(&value).then_some(value as u64)
    };
    Some(Counted { records: value("fluentbit_input_records_total")?, bytes: value("fluentbit_input_bytes_total")? })
}

fn c_strings<'a>(texts: impl Iterator<Item = &'a str>) -> Option<Vec<CString>> {
    texts.map(|text| CString::new(text).ok()).collect()
}

/// The name of the calling thread, set by the host.
pub fn thread_name() -> String {
    let mut name = [0 as c_char; 32];
    // SAFETY: writes at most `name.len()` bytes, the ending zero among them.
    let failed = unsafe { libc::pthread_getname_np(libc::pthread_self(), name.as_mut_ptr(), name.len()) };
    let bytes = name.iter().map(|c| c.cast_unsigned()).take_while(|b| *b != 0).collect::<Vec<u8>>();
    if failed == 0 { String::from_utf8_lossy(&bytes).into_owned() } else { String::new() }
}

/// Keeps this library in memory for the rest of the process. Its threads are joined in `FLBPluginExit`, but only for a
/// limited time: the code of one that is still inside a system call must stay.
pub fn keep_loaded() {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: the address is of this library, or of the executable when it is linked in; `info` is local.
    let found = unsafe { libc::dladdr(keep_loaded as fn() as *const c_void, info.as_mut_ptr()) };
    // SAFETY: plain pointers, zeroed above, so initialised whatever `dladdr` did.
    let info = unsafe { info.assume_init() };
    if found != 0 && !info.dli_fname.is_null() {
        // SAFETY: a C string of the loader; the library is loaded already, so nothing of it runs again.
        unsafe { libc::dlopen(info.dli_fname, libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE) };
    }
}

fn symbol(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: looks a name up in what is loaded already.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!address.is_null()).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instances_own_counters_are_read_from_a_page_of_metrics() {
        let page = "# HELP fluentbit_input_bytes_total Number of input bytes.\n# TYPE fluentbit_input_bytes_total counter\n\
            fluentbit_input_bytes_total{name=\"a } 7\"} 413000000123\n\
            fluentbit_input_records_total{name=\"a } 7\"} 194074\n\
            m365_audit_events_total{tenant=\"t\"} 3\n";
        assert_eq!(read_counters(page), Some(Counted { records: 194_074, bytes: 413_000_000_123 }));
        assert_eq!(read_counters(&page.replace("194074", "nan")), None);
        assert_eq!(read_counters(&page.replace("413000000123", "1e16")), None);
        assert_eq!(read_counters("fluentbit_input_records_total 4\nfluentbit_input_bytes_total 5\n"), None);
    }
}
