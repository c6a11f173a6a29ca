//! One agent, one file; and what several of them share. What is loaded into an agent's process is a package of its own:
//! `plugins/`.

#[cfg(feature = "embedded")]
pub(crate) mod answers;
#[cfg(feature = "embedded")]
mod client_certificate;
#[cfg(feature = "embedded")]
pub mod embedded;
#[cfg(feature = "embedded")]
pub mod file;
pub mod fluent_bit;
#[cfg(feature = "embedded")]
pub mod fluent_forward;
#[cfg(feature = "embedded")]
mod grpc_connector;
#[cfg(feature = "embedded")]
pub mod http;
#[cfg_attr(not(feature = "embedded"), allow(dead_code, reason = "for hosts that are left out"))]
pub(crate) mod json_walk;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "kafka")]
mod kafka_key;
#[cfg_attr(not(feature = "embedded"), allow(dead_code, reason = "for hosts that are left out"))]
pub(crate) mod msgpack;
#[cfg(feature = "embedded")]
pub mod net;
#[cfg(feature = "embedded")]
mod no_answer;
#[cfg(feature = "embedded")]
pub mod otlp;
#[cfg(feature = "embedded")]
mod otlp_message;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "embedded")]
mod requests;
#[cfg(feature = "embedded")]
pub mod stdout;
#[cfg(feature = "embedded")]
mod stream;
