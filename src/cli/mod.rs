//! The commands of `m365-audit`, one file each. Data goes to standard output, everything else to standard error.

mod alike;
mod asking;
pub mod backfill;
mod bad_records;
pub mod check;
pub mod cluster;
pub mod completions;
pub mod demo;
mod estimate;
mod event_line;
pub mod exit;
pub mod explain;
mod glance;
pub mod heal;
pub mod health;
pub mod init;
mod keeping;
mod loaded;
pub mod logging;
mod moment;
pub mod normalize;
mod opened;
pub mod plugin;
mod progress;
pub mod purge;
pub mod reading;
pub mod receipts;
pub mod reconcile;
pub mod report;
mod requests;
pub mod run;
pub mod schema;
mod seat;
mod service;
pub mod simulate;
pub mod state;
pub mod status;
pub mod tenant;
pub mod transfer;
mod unopened;
pub mod usage;
pub mod validate;
mod work;
pub mod written;

use std::ffi::OsString;
use std::fmt;
use std::io::Write;
use std::sync::Arc;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use exit::Exit;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, SystemClock};
use crate::config::{ConfigError, LogConfig};
use crate::hosts::SinkError;
use crate::hosts::embedded::control::{ControlError, ControlRefusal};
use crate::hosts::embedded::metrics_server::MetricsError;
use crate::hosts::embedded::store::StoreError;
use crate::model::{Actionable, error_page};

/// Microsoft 365 unified audit log as a source for log agents, with nothing lost.
#[derive(Debug, Parser)]
#[command(name = "m365-audit", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run all sources of a configuration into their sinks
    Run(run::RunArgs),
    /// Test the connection of each source, with cause and remedy for each fault; changes nothing without --probe
    Check(check::CheckArgs),
    /// Ask a running process how its sources fare; exit code 0 when none has failed
    Health(health::HealthArgs),
    /// Check a configuration file, telling all problems at once
    Validate(validate::Args),
    /// Show the source at work on a simulated tenant: no account, no network
    Demo(demo::DemoArgs),
    /// Serve the simulated tenant, for trying any client or agent
    Simulate(simulate::SimulateArgs),
    /// Make records of audit events as people have them: exports, archives, what other tools wrapped
    Normalize(normalize::NormalizeArgs),
    /// Compare an export of Microsoft's audit search with what was delivered: what is missing, on either side
    Reconcile(reconcile::ReconcileArgs),
    /// Show, move or export what is remembered between runs
    State(state::StateArgs),
    /// Verify what became of every event, write it out, print the key to verify it with
    Receipts(receipts::ReceiptsArgs),
    /// Write what an auditor asks for: what was read, what is missing and why, and whether it was verified
    Report(report::ReportArgs),
    /// Show the state of the running process, live or once
    Status(status::StatusArgs),
    /// Write a first configuration: asks what it needs to know, or takes it as options
    Init(init::InitArgs),
    /// Make the tables of a cluster, or show its members and who reads which tenant
    Cluster(cluster::ClusterArgs),
    /// Add tenants to the configuration, take them out with or without what is remembered of them, list them
    Tenant(tenant::TenantArgs),
    /// Read a range again: inside the running process, or alone when none runs
    Backfill(backfill::BackfillArgs),
    /// Fill a range beyond the feed's seven days through Microsoft Graph's audit search
    Heal(heal::HealArgs),
    /// Tell for each event of files which rules matched and why
    Explain(explain::ExplainArgs),
    /// Print a JSON Schema
    Schema(schema::Args),
    /// Print the manifest
    Plugin(plugin::Args),
    /// Print the completions of a shell
    Completions(completions::CompletionsArgs),
    /// Print the manual page, or write those of all commands
    Man(completions::ManArgs),
}

/// The command line, for documents generated from it.
pub fn command_line() -> clap::Command {
    usage::with_examples(Cli::command(), "")
}

/// Parses the command line, runs the command, prints its error, returns the exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> Exit {
    // What is generic is compiled with its caller, and all of the program is below this.
    main_of(args.into_iter().collect())
}

fn main_of(args: Vec<OsString>) -> Exit {
    let parsed = command_line().try_get_matches_from(args).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
            let _ = error.print();
            return exit;
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return print_failure(Failure::io(error)),
    };
    let result = runtime.block_on(dispatch(cli.command));
    // A read of standard input may still block a thread of the runtime, and nothing else remains to wait for.
    runtime.shutdown_background();
    result.unwrap_or_else(print_failure)
}

async fn dispatch(command: Command) -> Result<Exit, Failure> {
    let mut out = std::io::stdout().lock();
    match command {
        Command::Run(args) => {
            drop(out);
            run::run(args).await
        }
        Command::Check(args) => check::check_all(args, &mut out).await,
        Command::Health(args) => health::health(args, &mut out).await,
        Command::Validate(args) => {
            validate::validate(&args, &mut out, &mut std::io::stderr())?;
            Ok(Exit::Done)
        }
        Command::Demo(args) => {
            drop(out);
            demo::demo(args, stop_at_signal()).await
        }
        Command::Simulate(args) => {
            drop(out);
            logging::install(&LogConfig { level: "info".into(), ..LogConfig::default() });
            simulate::simulate(args, stop_at_signal().cancelled_owned()).await.map_err(Failure::io)?;
            Ok(Exit::Done)
        }
        Command::Normalize(args) => {
            drop(out);
            normalized(args).await
        }
        Command::Explain(args) => {
            drop(out);
            explained(args).await
        }
        Command::Backfill(args) => {
            drop(out);
            backfill::backfill(args, &mut std::io::stdout()).await
        }
        Command::Cluster(args) => cluster::cluster(args, &mut std::io::stdout()).await,
        Command::Tenant(args) => tenant::tenant(args, &mut std::io::stdout()).await,
        Command::Heal(args) => {
            drop(out);
            heal::heal(args, &mut std::io::stdout()).await
        }
        Command::Status(args) => {
            drop(out);
            status::status(args, &mut std::io::stdout()).await
        }
        Command::Init(args) => init::init(args).await,
        Command::Completions(args) => {
            completions::completions(command_line(), &args, &mut out).map(|()| Exit::Done).map_err(Failure::io)
        }
        Command::Man(args) => {
            completions::man(command_line(), &args, &mut out).map(|()| Exit::Done).map_err(Failure::io)
        }
        Command::Reconcile(args) => {
            drop(out);
            reconcile::reconcile(args, &mut std::io::stdout()).await
        }
        Command::State(args) => state::state(args, &mut std::io::stdout()).await,
        Command::Receipts(args) => receipts::receipts(args, &mut std::io::stdout()).await,
        Command::Report(args) => {
            drop(out);
            report::report(args, &mut std::io::stdout()).await
        }
        Command::Schema(args) => schema::schema(&args, &mut out).map(|()| Exit::Done).map_err(Failure::io),
        Command::Plugin(args) => plugin::plugin(&args, &mut out).map(|()| Exit::Done).map_err(Failure::io),
    }
}

async fn normalized(args: normalize::NormalizeArgs) -> Result<Exit, Failure> {
    let clock: Arc<dyn Clock> = SystemClock::new();
    let done = tokio::task::spawn_blocking(move || normalize::run(&args, &clock)).await;
    let tally = done.map_err(Failure::internal)?;
    tally.map(|tally| tally.exit()).map_err(|error| Failure::of(&error, error.exit()))
}

async fn explained(args: explain::ExplainArgs) -> Result<Exit, Failure> {
    let done = tokio::task::spawn_blocking(move || explain::run(&args)).await;
    let tally = done.map_err(Failure::internal)?;
    tally.map(|tally| tally.exit()).map_err(|error| Failure::of(&error, error.exit()))
}

/// Cancelled by SIGINT or SIGTERM, or by SIGHUP: the terminal has gone, and there is nothing to reload.
fn stop_at_signal() -> CancellationToken {
    let stop = CancellationToken::new();
    let cancel = stop.clone();
    // The signals are caught from here on, not only once the task first runs.
    if let Ok(mut signals) = run::ProcessSignals::new() {
        tokio::spawn(async move {
            signals.any().await;
            cancel.cancel();
        });
    }
    stop
}

fn print_failure(failure: Failure) -> Exit {
    if !failure.message.is_empty() {
        let _ = writeln!(std::io::stderr(), "{failure}");
    }
    failure.exit
}

/// Why a command could not do its work: what to print, and the exit code.
#[derive(Debug)]
pub struct Failure {
    /// What happened, in the form `slug: what` with a hint line.
    pub message: String,
    /// The exit code.
    pub exit: Exit,
}

impl Failure {
    /// An error with a slug and a remedy.
    pub fn of(error: &dyn Actionable, exit: Exit) -> Self {
        let page = error_page(error.slug());
        Self { message: format!("{}: {error}\n  hint: {}\n  page: {page}", error.slug(), error.hint()), exit }
    }

    /// The state cannot be read.
    pub fn of_state(error: crate::host::StateError) -> Self {
        Self {
            message: format!("state-not-read: {error}\n  hint: nothing was changed; see docs/errors/state-corrupt.md"),
            exit: Exit::State,
        }
    }

    /// The store of a cluster cannot be used.
    pub fn of_cluster(error: crate::host::StateError) -> Self {
        Self {
            message: format!(
                "cluster-store-away: {error}\n  hint: nothing was changed; see docs/errors/cluster-store-away.md"
            ),
            exit: Exit::State,
        }
    }

    /// A bug in this program.
    pub fn internal(what: impl fmt::Display) -> Self {
        Self { message: format!("internal: {what}\n  hint: this is a bug, please report it"), exit: Exit::Internal }
    }

    /// Standard input or output failed. A reader that closes the pipe (`| head`) causes neither a failure nor a
    /// message.
    pub fn io(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self { message: String::new(), exit: Exit::Done };
        }
        Self { message: format!("io: {error}"), exit: Exit::Internal }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<ConfigError> for Failure {
    /// Its text already has the slug, every problem and every hint.
    fn from(error: ConfigError) -> Self {
        Self { message: error.to_string(), exit: Exit::Config }
    }
}

impl From<validate::ValidateError> for Failure {
    fn from(error: validate::ValidateError) -> Self {
        match error {
            validate::ValidateError::Config(error) => error.into(),
            validate::ValidateError::Output(error) => Self::io(error),
            error @ validate::ValidateError::FluentBit(_) => Self { message: error.to_string(), exit: Exit::Config },
            error @ validate::ValidateError::Unopened { .. } => {
                Self { message: error.to_string(), exit: Exit::NoInput }
            }
        }
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        Self::of(&error, Exit::State)
    }
}

impl From<ControlRefusal> for Failure {
    fn from(refusal: ControlRefusal) -> Self {
        let ControlRefusal { slug, what, hint, exit } = refusal;
        Self { message: format!("{slug}: {what}\n  hint: {hint}"), exit: Exit::of_number(exit) }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::of(&error, Exit::State)
    }
}

impl From<SinkError> for Failure {
    fn from(error: SinkError) -> Self {
        match error {
            SinkError::Stdout(error) => Self::io(error),
            SinkError::File(error) => Self::of(&error, Exit::State),
            SinkError::Net(error) => Self::of(&error, Exit::Config),
            SinkError::NotBuilt(_) => Self::internal(error.to_string()),
        }
    }
}

impl From<MetricsError> for Failure {
    fn from(error: MetricsError) -> Self {
        Self::of(&error, Exit::Config)
    }
}
