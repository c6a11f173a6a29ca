//! Tests the plugin in other processes: in a real Fluent Bit, named by `FLUENT_BIT` or found in `PATH`, and in a C
//! program with a `malloc` of its own. Without one, a test is skipped and reports that.
#![cfg(target_os = "linux")]

#[path = "../fluent_bit_support/agent.rs"]
mod agent;
#[path = "../fluent_bit_support/decode.rs"]
mod decode;
#[path = "../fluent_bit_support/mod.rs"]
mod support;
#[path = "../fluent_bit_support/symbols.rs"]
mod symbols;

mod endurance;
mod life;
#[cfg(target_env = "gnu")]
mod memory;
