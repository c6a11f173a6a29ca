//! A tenant to write a host against: the simulated one, and a configuration that leads to it.
//!
//! Its other features (faults, late content, exports) are for the tests of this crate.

use std::io;

use jiff::SignedDuration;

use crate::clock::SystemClock;
use crate::config::{SourceConfig, SourceConfigBuilder};
use crate::sim::{GenerateSpec, Sim, SimConfig};

/// A simulated tenant that serves the feed over real HTTP on this machine. Needs no account and no network.
#[derive(Debug)]
pub struct SimulatedTenant {
    sim: Sim,
}

impl SimulatedTenant {
    /// Starts one with some hundred events of the last day. It ends when the value is dropped.
    ///
    /// # Errors
    /// When no port of this machine is available.
    pub async fn start() -> io::Result<Self> {
        let sim = Sim::start(SimConfig::default(), SystemClock::new()).await?;
        let (from, to) = (sim.now() - SignedDuration::from_hours(20), sim.now());
        let events = GenerateSpec { late_rate: 0.0, ..GenerateSpec::new(10, 5, from, to) };
        for tenant in &SimConfig::default().tenants {
            sim.generate(tenant, events.clone());
        }
        Ok(Self { sim })
    }

    /// The configuration with which a source reads it: ids, the secret, the address. More keys can be set.
    pub fn config(&self) -> SourceConfigBuilder {
        let SimConfig { tenants, client_id, client_secret, .. } = SimConfig::default();
        let tenant = tenants.first().map(|tenant| tenant.as_str()).unwrap_or_default();
        SourceConfig::builder()
            .tenant_id(tenant)
            .client_id(client_id)
            .client_secret(client_secret)
            .set("api_url", self.sim.url())
            .set("authority_url", self.sim.url())
    }
}
