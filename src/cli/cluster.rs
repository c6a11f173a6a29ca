//! `m365-audit cluster`: the tables of a cluster, its members, and who reads which tenant.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use serde::Serialize;

use super::exit::Exit;
use super::moment::span;
use super::{Failure, loaded, opened};
use crate::checkpoint::format::{self, Position};
use crate::clock::{Clock, SystemClock};
use crate::config::{ClusterConfig, Config};
use crate::hosts::embedded::receipts_key;
use crate::hosts::postgres::TenantPlace;
use crate::hosts::postgres::members::MemberRow;
use crate::hosts::postgres::schema::{PARTITIONS_MAX, SCHEMA, TablesMade};
use crate::model::Timestamp;

/// Arguments of `cluster`.
#[derive(Debug, clap::Args)]
pub struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ClusterCommand {
    /// Make the tables in the database of `[cluster]`, and the key that receipts are signed with; what is there stays
    Init {
        /// The configuration file
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// Cut the largest table into so many parts, by tenant; worth it from 5,000 tenants on, and only at the first time
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(PARTITIONS_MAX)))]
        partitions: u32,
    },
    /// Show the members, and for each tenant who reads it and how far it is; from the database, whatever runs
    Status {
        /// The configuration file
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs the subcommand.
///
/// # Errors
/// The configuration has no cluster, or its database cannot be used.
pub async fn cluster(args: ClusterArgs, out: &mut (dyn Write + Send)) -> Result<Exit, Failure> {
    match args.command {
        ClusterCommand::Init { config, partitions } => {
            // Its tenants may be in the table that is made here.
            let config = loaded::load_to_run(&config).await?.0;
            init(&config, partitions, out).await
        }
        ClusterCommand::Status { config, json } => {
            let config = loaded::load_to_run(&config).await?.0;
            status(&config, json, out).await
        }
    }
}

fn cluster_of(config: &Config) -> Result<&ClusterConfig, Failure> {
    config.cluster.as_ref().ok_or_else(|| Failure {
        message: "config-invalid: `cluster` is missing, expected a table `[cluster]`\n  hint: write `url = \"postgres://USER@HOST/DATABASE\"` under it"
            .into(),
        exit: Exit::Config,
    })
}

async fn init(config: &Config, partitions: u32, out: &mut (dyn Write + Send)) -> Result<Exit, Failure> {
    let store = opened::connected(cluster_of(config)?)?;
    let made = store.make_tables(partitions).await.map_err(Failure::of_cluster)?;
    let what = match made {
        TablesMade::New => "made",
        TablesMade::Known => "already there",
    };
    writeln!(out, "{}: tables of version {SCHEMA} {what}", store.shown()).map_err(Failure::io)?;
    if config.receipts.days > 0 {
        let path = config.receipts_key();
        let was_there = path.exists();
        let signer = receipts_key::open_or_make(&path)?;
        let what = if was_there { "already there" } else { "made: copy it to all members" };
        writeln!(out, "{}: the key that receipts are signed with, {what}", path.display()).map_err(Failure::io)?;
        writeln!(out, "{}", signer.key()).map_err(Failure::io)?;
    }
    Ok(Exit::Done)
}

#[derive(Serialize)]
struct ClusterView {
    members: Vec<MemberShown>,
    tenants: Vec<TenantView>,
}

#[derive(Serialize)]
struct MemberShown {
    member: String,
    alive: bool,
    expires_in_secs: i64,
    weight: u32,
    version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    address: String,
    tenants: i64,
}

#[derive(Serialize)]
struct TenantView {
    tenant: String,
    sources: Vec<String>,
    member: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wanted_by: Option<String>,
    /// Of the content type that is furthest behind.
    complete_until: Option<Timestamp>,
    lag_secs: Option<i64>,
}

async fn status(config: &Config, json: bool, out: &mut (dyn Write + Send)) -> Result<Exit, Failure> {
    let store = opened::shared(cluster_of(config)?).await?;
    let members = store.members().await.map_err(Failure::of_cluster)?;
    let standings = store.standings().await.map_err(Failure::of_cluster)?;
    let now = SystemClock::new().now();
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, source) in &config.sources {
        names.entry(source.tenant_id.to_string()).or_default().push(name.clone());
    }
    let mut tenants: Vec<TenantView> = Vec::new();
    for standing in standings {
        let sources = names.remove(&standing.tenant).unwrap_or_default();
        tenants.push(tenant_shown(standing, sources, now));
    }
    // Those that nobody has begun yet.
    tenants.extend(names.into_iter().map(|(tenant, sources)| TenantView {
        tenant,
        sources,
        member: None,
        wanted_by: None,
        complete_until: None,
        lag_secs: None,
    }));
    // Trouble first: without a member, then by how far behind.
    tenants.sort_by_key(|tenant| (tenant.member.is_some(), tenant.lag_secs.map_or(i64::MIN, |lag| -lag)));
    let without = tenants.iter().filter(|tenant| tenant.member.is_none() && !tenant.sources.is_empty()).count();
    let shown = ClusterView { members: members.into_iter().map(member_shown).collect(), tenants };
    if json {
        let text = serde_json::to_string_pretty(&shown).map_err(Failure::internal)?;
        writeln!(out, "{text}").map_err(Failure::io)?;
    } else {
        write_text(&shown, without, out).map_err(Failure::io)?;
    }
    Ok(if without == 0 { Exit::Done } else { Exit::Left })
}

fn member_shown(listed: MemberRow) -> MemberShown {
    MemberShown {
        member: listed.id,
        alive: listed.expires_in_secs > 0,
        expires_in_secs: listed.expires_in_secs,
        weight: listed.weight,
        version: listed.version,
        address: listed.address,
        tenants: listed.tenants,
    }
}

fn tenant_shown(standing: TenantPlace, sources: Vec<String>, now: Timestamp) -> TenantView {
    let position = |(key, value): &(String, bytes::Bytes)| {
        let position: Position = format::decode(key, value).ok()?;
        Some(position.complete_until.unwrap_or(position.origin))
    };
    let complete_until = standing.positions.iter().filter_map(position).min();
    TenantView {
        tenant: standing.tenant,
        sources,
        member: standing.member,
        wanted_by: standing.wanted_by,
        complete_until,
        lag_secs: complete_until.map(|until| now.duration_since(until).as_secs()),
    }
}

fn write_text(shown: &ClusterView, without: usize, out: &mut (dyn Write + Send)) -> std::io::Result<()> {
    let alive = shown.members.iter().filter(|member| member.alive).count();
    writeln!(out, "{alive} members, {} tenants, {without} without a member", shown.tenants.len())?;
    let width = shown.members.iter().map(|member| member.member.len()).max().unwrap_or(0).max(6);
    writeln!(out, "\n{:width$}  {:>7}  {:>6}  {:8}  state", "member", "tenants", "weight", "version")?;
    for member in &shown.members {
        let state = match member.expires_in_secs {
            secs if secs > 0 => format!("alive, next heartbeat within {secs} s"),
            secs => format!("silent, expired {} ago", span(-secs as f64)),
        };
        let at = if member.address.is_empty() { String::new() } else { format!(", {}", member.address) };
        let (name, tenants, weight, version) = (&member.member, member.tenants, member.weight, &member.version);
        writeln!(out, "{name:width$}  {tenants:>7}  {weight:>6}  {version:8}  {state}{at}")?;
    }
    writeln!(out)?;
    for tenant in &shown.tenants {
        let name = if tenant.sources.is_empty() { "(not configured)".to_owned() } else { tenant.sources.join(", ") };
        let member = tenant.member.as_deref().unwrap_or("nobody");
        let wanted = tenant.wanted_by.as_ref().map(|by| format!(", wanted by {by}")).unwrap_or_default();
        let until = match (tenant.complete_until, tenant.lag_secs) {
            (Some(until), Some(lag)) => {
                format!("complete until {until}, {} behind", span(lag as f64))
            }
            _ => "not begun".to_owned(),
        };
        writeln!(out, "{name}  {}  {member}{wanted}  {until}", tenant.tenant)?;
    }
    Ok(())
}
