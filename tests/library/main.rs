//! The library from outside, in one process: its client, its reader of events, its hosts, and the promises that are kept
//! by looking at the source itself.

mod api_client;
mod architecture;
mod benches;
mod canonical_key;
mod catch_up;
mod embedded_host;
mod examples;
mod exports;
mod fleet;
mod lease_model;
mod meaning;
mod monitoring;
mod mutants;
mod pictures;
mod receipts;
mod reconcile;
mod records;
mod report;
mod sign_in;
mod simulated_graph;
mod simulated_tenant;
mod skips;
mod stores;
mod surface;
mod vector_native;
mod watching;
