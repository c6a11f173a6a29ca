//! Fluent Bit: the library `m365_audit` as a dynamic input, `-i m365_audit`.
//!
//! A package of its own, since a library that is loaded into another program's process brings an allocator
//! ([`memory`]), and one that others link must not. `m365_audit` in this code is the library at the top of the
//! repository; this package has the same name, so that cargo names its output `libm365_audit.so`.
//!
//! The host calls this plugin once a second, and as soon as records wait if it exports the functions that its own
//! inputs use for that. It never reports a delivery. [`settle`] defines at which of its calls it has accepted the
//! bytes, which is when a ticket is answered.
//!
//! In reading order: [`ffi`] has the functions that the host calls; [`instance`] is the running instance, with the
//! configuration that [`m365_audit::hosts::fluent_bit`] reads; [`host`] adapts this agent for the source; [`settle`],
//! [`ring`] and [`encode`] process a batch; [`log`] and [`metrics`] pass data from the plugin's threads to the host;
//! [`api`] calls the host; [`memory`] is the allocator.
//!
//! One instance serves any number of tenants and a second one is refused: the host keeps one "current instance" for
//! each plugin, pauses and resumes that one even if another was meant, and drops the records that it collects from the
//! other meanwhile.
//!
//! The only unsafe code of this package is in [`ffi`], [`api`] and [`memory`].

#[expect(unsafe_code, reason = "the host's tables are C")]
pub mod api;
pub mod encode;
#[expect(unsafe_code, reason = "the host looks these names up")]
pub mod ffi;
pub mod host;
pub mod instance;
pub mod log;
#[expect(unsafe_code, reason = "an allocator hands out addresses")]
pub mod memory;
pub mod metrics;
pub mod ring;
pub mod settle;

/// For all Rust code of this library.
#[global_allocator]
static MEMORY: memory::Aligning<memory::OfProcess> = memory::Aligning(memory::OfProcess);
