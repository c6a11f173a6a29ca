//! One file for each agent, and the code that several of them share. A plugin that is loaded into an agent's process is
//! a package of its own, under `plugins/`.

#[cfg(feature = "embedded")]
pub(crate) mod answers;
#[cfg(feature = "embedded")]
mod client_certificate;
#[cfg(feature = "embedded")]
pub mod embedded;
/// Of the embedded host, its state store alone.
#[cfg(all(feature = "sqlite", not(feature = "embedded")))]
pub mod embedded {
    mod place;
    pub mod store;
}
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

#[cfg(feature = "embedded")]
use crate::config::SinkConfig;
#[cfg(feature = "embedded")]
use crate::delivery::Sink;

/// A sink that cannot be set up.
#[cfg(feature = "embedded")]
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Standard output cannot be used.
    #[error(transparent)]
    Stdout(#[from] std::io::Error),
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] file::FileSinkError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Net(#[from] net::NetSinkError),
    /// The build lacks the feature that this type needs.
    #[error("this build has no `{0}` sink")]
    NotBuilt(&'static str),
}

/// The sink as configured, with what it remembers over restarts. Nothing is connected yet. Must be called on a tokio
/// runtime.
///
/// # Errors
/// It cannot be set up.
#[cfg(feature = "embedded")]
pub fn open_sink(config: &SinkConfig, memory: file::Memory) -> Result<Box<dyn Sink>, SinkError> {
    let clock = memory.clock.clone();
    Ok(match config {
        SinkConfig::Stdout(_) => Box::new(stdout::StdoutSink::open()?.into_sink()),
        SinkConfig::File(config) => Box::new(file::FileSink::configured(config, memory)?.into_sink()),
        SinkConfig::Http(config) => Box::new(http::sink(config, clock)?),
        SinkConfig::FluentForward(config) => Box::new(fluent_forward::FluentForwardSink::new(config, clock)?),
        SinkConfig::Otlp(config) => Box::new(otlp::sink(config, clock)?),
        #[cfg(feature = "kafka")]
        SinkConfig::Kafka(config) => Box::new(kafka::KafkaSink::new(config, clock)?),
        // Such a configuration is not valid in this build.
        #[cfg(not(feature = "kafka"))]
        SinkConfig::Kafka(_) => return Err(SinkError::NotBuilt("kafka")),
    })
}
