//! Fluent Bit: the library `m365_audit` as a dynamic input, `-i m365_audit`.
//!
//! A package of its own, since what is loaded into another program's process brings an allocator ([`memory`]), and a
//! library that others link must not. `m365_audit` in this code is the library at the top of the repository; this package is called the same, so that cargo
//! names what it makes `libm365_audit.so`.
//!
//! The host calls us once a second, and as soon as records wait where it exports what its own inputs use for that; it
//! never says that it delivered. [`settle`] says at which of its calls it has taken the bytes, which is when a ticket is
//! answered.
//!
//! In reading order: [`ffi`] is what the host calls; [`instance`] is what runs while it does, with what
//! [`m365_audit::hosts::fluent_bit`] reads of the operator's configuration; [`host`] is this agent as the source sees it;
//! [`settle`], [`ring`] and [`encode`] are the way of a batch; [`log`] and [`metrics`] lead out of our threads; [`api`] is
//! the way into the host; [`memory`] is where all of it lies.
//!
//! One instance serves any number of tenants and a second one is refused: the host keeps one "current instance" for
//! each plugin and pauses and resumes that one, whichever was meant, and drops what the other is asked for meanwhile.
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
