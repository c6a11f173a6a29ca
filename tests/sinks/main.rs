//! The sinks against strict receivers written from the protocols' specifications, and against the real agents that
//! are installed: what a simulated tenant published is what arrives.

mod agents;
mod collector;
mod contract;
mod destinations;
mod elastic;
mod forward;
mod http;
#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "kafka")]
mod kafka_broker;
mod kill;
mod logstash;
mod nats;
mod opensearch;
mod otlp;
mod poison;
mod recipes;
mod retry;
mod s3;
mod selection;
mod tail;
mod tls;
mod transport;
mod truth;
mod vector;
mod vector_routes;
