//! The whole source against a simulated tenant: real HTTP on loopback, time moved by a test clock, what was delivered
//! compared with what was published.
//!
//! Every scenario ends in [`world::World::assert_clean`] or in its parts, which also assert what was watched all along:
//! at every state commit the invariants CK-1 to CK-3, over all requests CK-4 and the manners promised to Microsoft,
//! over all batches CK-5. Numbers of traps are those of the protocol brief's list of traps.
#![cfg(all(feature = "sim", feature = "embedded"))]

mod host;
mod watch;
mod world;

mod access;
mod alerts;
mod aside;
mod backfill;
mod blobs;
mod clocks;
mod delivery;
mod dlp;
mod duplicates;
mod heal;
mod listing;
mod once;
mod pace;
mod receipts;
mod restart;
mod weather;
