//! `m365-audit simulate`: serves the simulated tenant, for tests of any client or agent without an account.
//!
//! It owns the arguments and the messages; [`crate::sim`] simulates. All messages go to stderr.

use std::fs;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock::{Clock, SystemClock};
use crate::model::{ContentType, TenantId, counted};
use crate::sim::{Comparison, ExportForm, ExportSpec, FaultPlan, GenerateSpec, Side, Sim, SimConfig, Truth};

/// Seconds between new blobs; the content types take turns.
const NEW_BLOB_EVERY_SECS: u64 = 10;

/// The simulated tenant as a server.
#[derive(Debug, Clone, clap::Args)]
pub struct SimulateArgs {
    /// Address to listen on; plain HTTP, so keep it on this machine
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Blobs of history to begin with, over all five content types
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub blobs: usize,
    /// Events in each blob
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub events_per_blob: usize,
    /// How many days back the history goes; the feed lists seven
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=7))]
    pub days: u32,
    /// Where all randomness comes from: the same seed makes the same history
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Share of the calls that fail in a passing way, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub fault_rate: f64,
    /// The tenant's GUID
    #[arg(long, value_name = "GUID", value_parser = tenant)]
    pub tenant: Option<TenantId>,
    /// Blobs on a page of a listing
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = page_size)]
    pub page_size: usize,
    /// A folder to write exports of the tenant's audit search to, in every form `reconcile` reads them in: of the history
    #[arg(long, value_name = "DIR")]
    pub export: Option<PathBuf>,
    /// Events of the history that the feed never brings
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub withhold_from_feed: usize,
    /// Events of the history that the audit search does not find
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub withhold_from_search: usize,
    /// Requests a minute before AF429; no limit when absent
    #[arg(long, value_name = "N")]
    pub quota: Option<u32>,
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(format!("`{text}` is not between 0 and 1")) }
}

fn page_size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(size) if size > 0 => Ok(size),
        _ => Err(format!("`{text}` is not a whole number above 0")),
    }
}

fn tenant(text: &str) -> Result<TenantId, String> {
    text.parse().map_err(|error: crate::model::NotAGuid| error.to_string())
}

/// Serves until `shutdown` resolves, and publishes a new blob at intervals. It first prints how to connect an agent,
/// and last the outcome of the events.
///
/// # Errors
/// When the address cannot be bound.
pub async fn simulate(args: SimulateArgs, shutdown: impl Future<Output = ()>) -> Result<(), io::Error> {
    let clock = SystemClock::new();
    let mut config =
        SimConfig { seed: args.seed, page_size: args.page_size, quota_per_minute: args.quota, ..SimConfig::default() };
    config.tenants = args.tenant.iter().cloned().chain(config.tenants).take(1).collect();
    let Some(tenant) = config.tenants.first().cloned() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no tenant to simulate"));
    };
    let sim = Sim::start_on(args.listen, config.clone(), clock.clone()).await?;
    sim.set_faults(FaultPlan::bad_weather(args.fault_rate));
    let now = sim.now();
    let from = now.saturating_sub(jiff::SignedDuration::from_hours(24 * i64::from(args.days))).unwrap_or(now);
    sim.generate(&tenant, GenerateSpec::new(args.blobs, args.events_per_blob, from, now));
    withhold(&sim, &tenant, &args);
    if let Some(folder) = &args.export {
        export(&sim, &tenant, folder)?;
    }
    eprintln!("{}", agent_config(sim.address(), &sim.url(), &tenant, &config, args.days));

    tokio::pin!(shutdown);
    let mut types = ContentType::ALL.into_iter().cycle();
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            () = clock.sleep(Duration::from_secs(NEW_BLOB_EVERY_SECS)) => {}
        }
        let now = sim.now();
        let soon = now.saturating_add(jiff::SignedDuration::from_millis(1)).unwrap_or(now);
        let content_types = types.next().into_iter().collect();
        let spec = GenerateSpec { content_types, ..GenerateSpec::new(1, args.events_per_blob, now, soon) };
        sim.generate(&tenant, spec);
    }
    sim.stop().await;
    eprintln!("{}", summary(&sim));
    Ok(())
}

/// Removes events from the feed and from the audit search, and prints which.
fn withhold(sim: &Sim, tenant: &TenantId, args: &SimulateArgs) {
    let sides = [("feed", Side::Feed, args.withhold_from_feed), ("search", Side::Search, args.withhold_from_search)];
    for (name, side, count) in sides {
        let ids = sim.withhold(tenant, side, count, args.seed);
        ids.iter().for_each(|id| eprintln!("# withheld from the {name}: {id}"));
    }
}

/// Writes the results of the audit search in every form.
fn export(sim: &Sim, tenant: &TenantId, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for form in ExportForm::ALL {
        let files = sim.export(tenant, &ExportSpec::new(form));
        files.iter().try_for_each(|file| fs::write(folder.join(&file.name), &file.bytes))?;
        let count = counted(files.len() as u64, "file");
        eprintln!("# the audit search as {}: {count} in {}", form.as_str(), folder.display());
    }
    Ok(())
}

/// Which other machines can use a simulator that listens on `address`, if any can.
fn open_to(address: SocketAddr) -> Option<String> {
    let port = address.port();
    match address.ip() {
        ip if ip.to_canonical().is_loopback() => None,
        ip if ip.is_unspecified() => Some(format!(
            "# Everybody who reaches this machine on port {port} can use it: it listens on every address, without TLS, and its\n\
             # secret stands below. It holds invented events only. `--listen 127.0.0.1:{port}` keeps it to this machine. From\n\
             # another machine, put this one's name into both URLs, and add `allow_plain_http = true`.\n"
        )),
        ip => Some(format!(
            "# Everybody who reaches {ip} on port {port} can use it: it speaks plain HTTP, and its secret stands below. It holds\n\
             # invented events only. `--listen 127.0.0.1:{port}` keeps it to this machine.\n"
        )),
    }
}

/// The part of an `agent.toml` that reads from the simulator; it is a complete file.
fn agent_config(address: SocketAddr, url: &str, tenant: &TenantId, config: &SimConfig, days: u32) -> String {
    let backfill_secs = u64::from(days) * 86_400;
    let open = open_to(address).unwrap_or_default();
    let local = address.ip().is_unspecified() || address.ip().to_canonical().is_loopback();
    // Plain HTTP to an address of a network is refused unless it is allowed.
    let plain = if local { "" } else { "allow_plain_http = true\n" };
    format!(
        "\
# The simulated tenant listens on {url}. Save this as agent.toml and run
#   m365-audit run -c agent.toml
# Ctrl-C here stops the tenant and says what became of its events.
{open}data_dir = \"simulated-state\"

[sources.simulated]
type = \"m365_audit\"
tenant_id = \"{tenant}\"
client_id = \"{}\"
client_secret = \"{}\"
api_url = \"{url}\"
authority_url = \"{url}\"
{plain}poll_interval_secs = 10
backfill_secs = {backfill_secs}

[sinks.out]
type = \"stdout\"
inputs = [\"simulated\"]
",
        config.client_id, config.client_secret
    )
}

fn summary(sim: &Sim) -> String {
    let truth: Truth = sim.truth();
    let counters = sim.counters();
    let requests: u64 = counters.requests.values().sum();
    let nobody: Comparison = truth.compare([] as [String; 0]);
    let irregular: u64 = truth.irregularities.values().sum();
    let without_publisher: u64 = counters.without_publisher.values().sum();
    let faults: Vec<String> = sim.faults().served().iter().map(|(name, count)| format!("{name} {count}")).collect();
    let faults = if faults.is_empty() { "none".to_owned() } else { faults.join(", ") };
    format!(
        "published: {} events in {} blobs, {} of them in irregular shapes, and {} copies; {} could be listed so far\n\
         read: {} blobs to the end\n\
         requests: {requests}, {without_publisher} without PublisherIdentifier\n\
         faults: {faults}",
        truth.event_count(),
        truth.blobs,
        irregular,
        truth.copies,
        nobody.expected,
        truth.blobs_read,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SimulateArgs,
    }

    fn parse(arguments: &[&str]) -> Result<SimulateArgs, clap::Error> {
        Line::try_parse_from(std::iter::once("simulate").chain(arguments.iter().copied())).map(|line| line.args)
    }

    #[test]
    fn arguments_outside_their_range_are_refused() {
        assert_eq!(parse(&[]).unwrap().listen, "127.0.0.1:8080".parse().unwrap());
        for bad in [["--fault-rate", "2"], ["--page-size", "0"], ["--days", "8"], ["--tenant", "contoso.example"]] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn it_serves_until_it_is_told_to_stop() {
        let args = parse(&["--listen", "127.0.0.1:0", "--blobs", "10", "--fault-rate", "0.1"]).unwrap();
        simulate(args, async {}).await.unwrap();
    }

    #[tokio::test]
    async fn it_writes_exports_in_every_form() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("exports");
        let mut args = parse(&["--listen", "127.0.0.1:0", "--blobs", "10", "--withhold-from-feed", "1"]).unwrap();
        args.export = Some(folder.clone());
        simulate(args, async {}).await.unwrap();
        let files = std::fs::read_dir(folder).unwrap().count();
        assert!(files >= ExportForm::ALL.len(), "{files}");
    }

    #[tokio::test]
    async fn what_is_printed_can_be_run_as_it_stands_and_says_who_can_reach_it() {
        let config = SimConfig::default();
        for (listen, url, open) in [
            ("127.0.0.1:8080", "http://127.0.0.1:8080", false),
            ("[::1]:8080", "http://[::1]:8080", false),
            ("0.0.0.0:8080", "http://127.0.0.1:8080", true),
            ("[::]:8080", "http://[::1]:8080", true),
            ("192.0.2.7:8080", "http://192.0.2.7:8080", true),
            ("[2001:db8::7]:8080", "http://[2001:db8::7]:8080", true),
        ] {
            let address: SocketAddr = listen.parse().unwrap();
            let text = agent_config(address, url, &config.tenants[0], &config, 6);
            let read =
                crate::config::Config::parse(&text, &|_| None).unwrap_or_else(|error| panic!("{listen}: {error}"));
            assert_eq!(read.sources["simulated"].api_origin(), url, "{text}");
            assert_eq!(text.contains("Everybody who reaches"), open, "{text}");
        }
        // A client on this machine can connect to the URL that a running simulator prints.
        for listen in ["0.0.0.0:0", "[::]:0"] {
            let Ok(sim) = Sim::start_on(listen.parse().unwrap(), config.clone(), SystemClock::new()).await else {
                continue; // A machine without IPv6.
            };
            let url = url::Url::parse(&sim.url()).unwrap();
            assert!(crate::config::is_loopback(&url), "{url}");
            sim.stop().await;
        }
    }

    #[test]
    fn the_printed_configuration_is_toml_with_the_names_an_agent_reads() {
        let config = SimConfig::default();
        let address = "127.0.0.1:8080".parse().unwrap();
        let text = agent_config(address, "http://127.0.0.1:8080", &config.tenants[0], &config, 6);
        let parsed: toml::Table = text.parse().unwrap();
        let source = parsed["sources"]["simulated"].as_table().unwrap();
        for key in ["type", "tenant_id", "client_id", "client_secret", "api_url", "authority_url"] {
            assert!(source[key].is_str(), "{key}");
        }
    }
}
