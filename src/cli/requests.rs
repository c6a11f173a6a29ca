//! How an operator's command reaches the process that reads a tenant: over the control socket of this machine, or, in a
//! cluster, over the database, wherever that process runs. Both ends speak the protocol of the control socket.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::task::JoinSet;

use super::exit::Exit;
use super::{Failure, opened};
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::host::StateError;
use crate::hosts::embedded::control::{AnswerLine, Client, ControlRefusal, Say, VERSION};
use crate::hosts::postgres::PostgresStore;
use crate::hosts::postgres::fence::Fence;
use crate::hosts::postgres::requests::{RequestNews, StoredRequest};
use crate::model::TenantId;

/// Between two looks at the table.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Beyond two lives of a lease, nobody takes a question any more.
const NOBODY_AFTER: u32 = 2;

/// The process that reads a source's tenant; `None` when none runs here and there is no cluster.
///
/// # Errors
/// It cannot be asked.
pub(super) async fn client(config: &Config, source: &str) -> Result<Option<Client>, Failure> {
    let (Some(cluster), Some(asked)) = (&config.cluster, config.sources.get(source)) else {
        return Ok(Client::connect(&config.control_socket()).await?);
    };
    let store = opened::shared(cluster).await?;
    let (near, far) = UnixStream::pair().map_err(Failure::io)?;
    let patience = Duration::from_secs(cluster.lease_secs) * NOBODY_AFTER;
    let question = ClusterRequest { store, tenant: asked.tenant_id.clone(), patience, clock: SystemClock::new() };
    tokio::spawn(question.carry(far));
    Ok(Some(Client::over(near)))
}

/// An operator's question on its way.
struct ClusterRequest {
    store: PostgresStore,
    tenant: TenantId,
    patience: Duration,
    clock: Arc<dyn Clock>,
}

impl ClusterRequest {
    /// Takes the question from the command and brings it the answers.
    async fn carry(self, stream: UnixStream) {
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        let Ok(Some(text)) = lines.next_line().await else { return };
        let id = match self.store.ask(&self.tenant, &text).await {
            Ok(id) => id,
            Err(error) => return say(&mut write, &away(&error)).await,
        };
        let mut heard = RequestNews::default();
        let (mut waited, mut hung_up) = (Duration::ZERO, false);
        loop {
            tokio::select! {
                line = lines.next_line(), if !hung_up => {
                    // The command hangs up when it is to stop, or is gone.
                    if !matches!(line, Ok(Some(_))) {
                        hung_up = true;
                        let _ = self.store.stop_request(id).await;
                    }
                }
                () = self.clock.sleep(LOOK_EVERY) => {}
            }
            let now = match self.store.heard(id).await {
                Ok(Some(now)) => now,
                Ok(None) => return say(&mut write, &gone(&self.tenant)).await,
                // The store may be back at the next look.
                Err(_) => continue,
            };
            if now.said > heard.said
                && let Some(line) = &now.line
            {
                let text = format!("{line}\n");
                if write.write_all(text.as_bytes()).await.is_err() || is_last(line) {
                    let _ = self.store.forget_request(id).await;
                    return;
                }
            }
            waited = if now.taken { Duration::ZERO } else { waited + LOOK_EVERY };
            if waited > self.patience {
                let _ = self.store.forget_request(id).await;
                return say(&mut write, &nobody(&self.tenant)).await;
            }
            heard = now;
        }
    }
}

async fn say(write: &mut OwnedWriteHalf, refusal: &ControlRefusal) {
    let answer = AnswerLine { version: VERSION, say: Say::Refused(refusal.clone()) };
    if let Ok(mut text) = serde_json::to_string(&answer) {
        text.push('\n');
        let _ = write.write_all(text.as_bytes()).await;
    }
}

fn is_last(line: &str) -> bool {
    let answer: Option<AnswerLine> = serde_json::from_str(line).ok();
    !matches!(answer.map(|answer| answer.say), Some(Say::Progress(_) | Say::Healing(_)))
}

fn away(error: &StateError) -> ControlRefusal {
    ControlRefusal {
        slug: "cluster-store-away".into(),
        what: error.to_string(),
        hint: "nothing was begun; run the same command again when the database answers".into(),
        exit: Exit::State as u8,
    }
}

fn gone(tenant: &TenantId) -> ControlRefusal {
    ControlRefusal {
        slug: "cluster-nobody".into(),
        what: format!("the request about tenant `{tenant}` was taken back"),
        hint: "somebody removed it from the table `request`; run the same command again".into(),
        exit: Exit::Left as u8,
    }
}

fn nobody(tenant: &TenantId) -> ControlRefusal {
    ControlRefusal {
        slug: "cluster-nobody".into(),
        what: format!("no live member of the cluster reads tenant `{tenant}`, so nobody took the request"),
        hint: "`m365-audit cluster status` shows who is there; start a member whose configuration has the tenant, then run the \
               same command again"
            .into(),
        exit: Exit::Left as u8,
    }
}

/// The other end: takes the questions about the tenants that this process has, and asks itself.
pub(super) struct Relay {
    /// The cluster's store.
    pub(super) store: PostgresStore,
    /// Which tenants this process has, and in which life.
    pub(super) fence: Arc<Fence>,
    /// Its own control socket.
    pub(super) socket: PathBuf,
    /// Time.
    pub(super) clock: Arc<dyn Clock>,
}

impl Relay {
    /// Until it is dropped.
    pub(super) async fn run(self) {
        let mut work = JoinSet::new();
        loop {
            self.clock.sleep(LOOK_EVERY * 2).await;
            while work.try_join_next().is_some() {}
            let (tenants, incarnation) = self.fence.held();
            let names: Vec<&str> = tenants.iter().map(TenantId::as_str).collect();
            if names.is_empty() {
                continue;
            }
            // A store that is away is told of elsewhere.
            for request in self.store.take_requests(&names, incarnation).await.unwrap_or_default() {
                let (store, socket, clock) = (self.store.clone(), self.socket.clone(), self.clock.clone());
                work.spawn(async move { answer(&store, &socket, &request, incarnation, &clock).await });
            }
        }
    }
}

/// Asks this process what was asked, and says what it answers.
async fn answer(
    store: &PostgresStore,
    socket: &Path,
    request: &StoredRequest,
    incarnation: i64,
    clock: &Arc<dyn Clock>,
) {
    if let Err(why) = relay(store, socket, request, incarnation, clock).await {
        let refusal = ControlRefusal {
            slug: "control-broken".into(),
            what: format!("the member that reads the tenant could not ask itself: {why}"),
            hint: "look at its log, then run the same command again: a back-fill goes on where it was".into(),
            exit: Exit::State as u8,
        };
        let said =
            serde_json::to_string(&AnswerLine { version: VERSION, say: Say::Refused(refusal) }).unwrap_or_default();
        let _ = store.say(request.id, incarnation, &said, true).await;
    }
}

async fn relay(
    store: &PostgresStore,
    socket: &Path,
    request: &StoredRequest,
    incarnation: i64,
    clock: &Arc<dyn Clock>,
) -> Result<(), String> {
    let mut client = Client::connect(socket).await.map_err(|e| e.to_string())?.ok_or("its control socket is gone")?;
    client.ask_line(&request.what).await.map_err(|e| e.to_string())?;
    let (mut lines, mut stopping) = (None, false);
    loop {
        let said = tokio::select! {
            said = client.next_line() => Some(said.map_err(|error| error.to_string())?),
            () = clock.sleep(LOOK_EVERY) => None,
        };
        let over = said.as_deref().is_some_and(is_last);
        lines = said.or(lines);
        if over {
            // Whoever asked waits for it.
            let line = lines.unwrap_or_default();
            while let Err(StateError::Unavailable(_)) = store.say(request.id, incarnation, &line, true).await {
                clock.sleep(LOOK_EVERY).await;
            }
            return Ok(());
        }
        if let Some(line) = lines.take() {
            let _ = store.say(request.id, incarnation, &line, false).await;
        }
        if !stopping && store.is_stopped(request.id).await.unwrap_or(false) {
            stopping = true;
            client.hang_up().await.map_err(|error| error.to_string())?;
        }
    }
}
