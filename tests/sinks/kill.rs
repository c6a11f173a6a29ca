//! The program killed right after a receiver has refused, again and again: what a receiver has not acknowledged is not
//! in the checkpoint, so the next start sends it. Real time, a real state store, kill -9.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use m365_audit::clock::SystemClock;
use m365_audit::model::TenantId;
use m365_audit::sim::Sim;
use tokio::sync::Notify;

use crate::truth::{Received, assert_nothing_lost, compare, source_table, tenant};

/// Nothing here takes nearly so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(240);
const KILLS: usize = 8;

/// How the receivers answer: some requests are refused, and each refusal is told to whoever kills.
#[derive(Clone, Default)]
pub struct Verdicts {
    asked: Arc<AtomicUsize>,
    calm: Arc<AtomicBool>,
    refused: Arc<Notify>,
}

impl Verdicts {
    /// Whether the next request is refused.
    pub fn refuse(&self) -> bool {
        let number = self.asked.fetch_add(1, Ordering::SeqCst) as u64;
        let refuse = !self.calm.load(Ordering::SeqCst) && fastrand::Rng::with_seed(number).f32() < 0.6;
        if refuse {
            self.refused.notify_one();
        }
        refuse
    }
}

struct Program {
    config: PathBuf,
    child: Child,
}

impl Program {
    fn start(config: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
        command.args(["run", "-c"]).arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { config: config.to_owned(), child: command.spawn().unwrap() }
    }

    fn kill_and_start_again(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        *self = Self::start(&self.config.clone());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the program into `sink`, whose receiver answers by `verdicts` and adds to `received` what it acknowledges.
pub async fn kill_after_refusals(sink: &str, verdicts: &Verdicts, received: &Received) {
    let (sim, tenant) = tenant(SystemClock::new(), 40, 30).await;
    let dir = tempfile::tempdir().unwrap();
    let config = configure(dir.path(), &sim, &tenant, sink);
    let mut program = Program::start(&config);
    for _ in 0..KILLS {
        let refused = tokio::time::timeout(PATIENCE, verdicts.refused.notified()).await;
        refused.unwrap_or_else(|_| panic!("no refusal, {} records received", received.count()));
        // Before the answer, while it is read, or a little after it.
        tokio::time::sleep(Duration::from_millis(fastrand::u64(..30))).await;
        program.kill_and_start_again();
    }
    verdicts.calm.store(true, Ordering::SeqCst);
    let begun = Instant::now();
    let outcome = loop {
        let outcome = compare(&sim, received.all());
        if outcome.lost.is_empty() || begun.elapsed() > PATIENCE {
            break outcome;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_nothing_lost(&outcome);
}

fn configure(dir: &Path, sim: &Sim, tenant: &TenantId, sink: &str) -> PathBuf {
    let config = dir.join("m365-audit.toml");
    let source = source_table(sim, tenant);
    let text = format!(
        "data_dir = {:?}\n[sources.s]\n{source}poll_interval_secs = 1\nmax_requests_per_minute = 0\n\
         [sinks.out]\ninputs = [\"s\"]\n{sink}\n",
        dir.join("state")
    );
    std::fs::write(&config, text).unwrap();
    config
}
