//! The functions that the host calls. Only exported functions: a null check, a panic boundary, one call inwards, a
//! result.
//!
//! Names and signatures are those of Fluent Bit's proxy plugins (`flb_plugin_proxy.c`, `go.c`), C calling convention.
//! Calls for an instance never overlap. Both generations of the data callbacks are exported: the host prefers those
//! with a context (4.1 and later); this plugin never sets the context and so never reads it.

use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::api::{Bell, Config, HostApi, Plugin, PluginDef};
use super::instance::{self, Instance};

/// `FLBPluginInit`: the instance runs.
const INIT_OK: c_int = 1;
const INIT_FAILED: c_int = 0;
/// Everything else: the host checks only for -1.
const OK: c_int = 0;
const FAILED: c_int = -1;

/// A panic that left an exported function would end the agent.
fn guarded<T>(call: &str, fallback: T, work: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        // Neither dropping the payload nor reporting it may panic a second time.
        let _ = catch_unwind(AssertUnwindSafe(move || {
            drop(payload);
            if let Some(instance) = instance::live() {
                instance.panicked(call);
            }
        }));
        fallback
    })
}

fn with_live<T>(call: &str, fallback: T, work: impl FnOnce(&Instance) -> T) -> T
where
    T: Copy,
{
    guarded(call, fallback, || instance::live().map_or(fallback, |instance| work(&instance)))
}

/// At load, before registration. Does nothing: no thread may start before the host has forked.
#[unsafe(no_mangle)]
pub extern "C" fn FLBPluginPreRegister(_hot_reloading: c_int) -> c_int {
    OK
}

/// At load: describes this plugin. Writes the first five fields of `def`, which the host owns; the texts are static and
/// owned by the plugin. -1: `def` is null.
///
/// # Safety
/// `def` is null or points to the host's registration struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn FLBPluginRegister(def: *mut PluginDef) -> c_int {
    // SAFETY: the caller guarantees that it is null or valid.
    let Some(def) = (unsafe { def.as_mut() }) else { return FAILED };
    guarded("FLBPluginRegister", FAILED, || {
        // A fault is reported at Init, where the host has a log.
        let _ = instance::memory_found();
        def.fill();
        OK
    })
}

/// Once for each configured instance: 1 it runs, 0 it cannot (the reason has been logged). The host owns `plugin`,
/// which is read only during the call and not written.
///
/// # Safety
/// `plugin` is null or points to the host's per-plugin struct, whose table and instance live until
/// [`FLBPluginExit`] has returned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn FLBPluginInit(plugin: *const Plugin) -> c_int {
    guarded("FLBPluginInit", INIT_FAILED, || {
        // SAFETY: as the caller says.
        let Some(api) = (unsafe { HostApi::new(plugin) }) else { return INIT_FAILED };
        if instance::start(api).is_ok() { INIT_OK } else { INIT_FAILED }
    })
}

/// Once, after Init, on the thread of the collect calls: has the engine call this plugin when records wait.
#[unsafe(no_mangle)]
pub extern "C" fn FLBPluginInputPreRun(_hot_reload_enabled: c_int) -> c_int {
    with_live("FLBPluginInputPreRun", (), |instance| instance.ask_to_be_called(engine_runs));
    OK
}

/// Every second, hosts from 4.1. As [`FLBPluginInputCallback`]; the context is not looked at.
///
/// # Safety
/// As [`FLBPluginInputCallback`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn FLBPluginInputCallbackCtx(
    _context: *mut c_void,
    data: *mut *mut c_void,
    size: *mut usize,
) -> c_int {
    // SAFETY: as the caller says.
    unsafe { FLBPluginInputCallback(data, size) }
}

/// Every second. Lends the host a buffer of whole entries: `*data` and `*size` are set; the plugin owns the bytes and
/// does not change them until the cleanup call with the same address. Without records: `*data` null, `*size` 0. Never
/// blocks on network, disk or a full queue.
///
/// # Safety
/// `data` and `size` are null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn FLBPluginInputCallback(data: *mut *mut c_void, size: *mut usize) -> c_int {
    if data.is_null() || size.is_null() {
        return FAILED;
    }
    let lent = with_live("FLBPluginInputCallback", None, |instance| {
        instance.ask_to_be_called(engine_runs);
        instance.collect()
    });
    let (address, len) = lent.map_or((std::ptr::null_mut(), 0), |b| (b.data.cast_mut().cast::<c_void>(), b.len));
    // SAFETY: not null, and the caller guarantees that it is writable.
    unsafe {
        *data = address;
        *size = len;
    }
    OK
}

/// Once, by a timer of the engine that PreRun or a collect call has requested, on the same thread. Not exported.
extern "C" fn engine_runs(config: Config, _data: *mut c_void) {
    with_live("engine_runs", (), |instance| instance.listen(config, records_wait));
}

/// Whenever records wait, by the engine, on the same thread. Not exported. The arguments belong to the host and are not
/// used.
extern "C" fn records_wait(_instance: *mut c_void, _config: Config, _context: *mut c_void) -> c_int {
    guarded("records_wait", OK, || {
        // First of all, even without an instance: otherwise the engine would call for ever. Records put from here on
        // ring again.
        if let Ok(bell) = Bell::of_process() {
            bell.hush();
        }
        if let Some(instance) = instance::live() {
            instance.records_wait();
        }
        OK
    })
}

/// Right after the append, hosts from 4.1. As [`FLBPluginInputCleanupCallback`]; the context is not looked at.
#[unsafe(no_mangle)]
pub extern "C" fn FLBPluginInputCleanupCallbackCtx(_context: *mut c_void, data: *mut c_void) -> c_int {
    FLBPluginInputCleanupCallback(data)
}

/// Right after the append: the host has its copy, and the buffer at `data` belongs to the plugin alone again. The
/// address is only compared; -1: it is not that of the buffer lent.
#[unsafe(no_mangle)]
pub extern "C" fn FLBPluginInputCleanupCallback(data: *mut c_void) -> c_int {
    if data.is_null() {
        return FAILED;
    }
    let known =
        with_live("FLBPluginInputCleanupCallback", false, |instance| instance.cleanup(data.cast_const().cast::<u8>()));
    if known { OK } else { FAILED }
}

/// Back-pressure, or the shutdown, when it is called twice.
#[unsafe(no_mangle)]
pub extern "C" fn FLBPluginInputPause() {
    with_live("FLBPluginInputPause", (), Instance::pause);
}

/// The end of back-pressure.
#[unsafe(no_mangle)]
pub extern "C" fn FLBPluginInputResume() {
    with_live("FLBPluginInputResume", (), Instance::resume);
}

/// Just before exit. From here on no batch is settled.
#[unsafe(no_mangle)]
pub extern "C" fn FLBPluginInputPreExit(_by_hot_reload: c_int) -> c_int {
    with_live("FLBPluginInputPreExit", OK, |instance| {
        instance.pre_exit();
        OK
    })
}

/// Once for each instance: joins its threads, within two seconds. Harmless when nothing runs.
#[unsafe(no_mangle)]
pub extern "C" fn FLBPluginExit() -> c_int {
    guarded("FLBPluginExit", OK, || {
        instance::stop();
        OK
    })
}

/// Before the library is closed. `def` is the host's; there is nothing to free.
#[unsafe(no_mangle)]
pub extern "C" fn FLBPluginUnregister(_def: *mut PluginDef) {}
