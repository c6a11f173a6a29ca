//! The control socket of a running process: `control.sock` under `data_dir`, for the operator's commands.
//!
//! Owns the socket and its protocol: one question a connection, one JSON object a line, the version in each; answers
//! until the last one. Who may ask: the user the process runs as, and root; the file is 0600 and the peer's user is
//! looked at besides, because the file's mode comes a moment after the file. A process that dies leaves the file; as
//! the state's lock is held before the socket is made, a file found then is nobody's and is replaced.
//!
//! Refuses to know how a question is carried out: `status` is put together here from what the process measures, a
//! back-fill goes to the source's desk, a move of positions to whoever owns the sources.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::status::{Monitor, Status};
use crate::clock::Clock;
use crate::model::{Actionable, ContentType, TenantId, Timestamp};
use crate::source::backfill::{Ask, Asked, Counter, Ended, Progress, Snapshot};

/// The socket's name under `data_dir`.
pub const SOCKET_FILE: &str = "control.sock";
/// The protocol's version.
pub const VERSION: u32 = 1;

/// Bytes of a question.
const QUESTION_BYTES_MAX: u64 = 64 * 1024;
/// Bytes of an answer a client reads.
const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// A question must be asked within this time, an answer taken.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections served at once.
const CONNECTIONS_MAX: usize = 16;
/// A client is told how a back-fill goes this often.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// A path longer than this does not fit the system's address of a socket.
const PATH_BYTES_MAX: usize = 100;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// [`VERSION`].
    pub version: u32,
    /// The question.
    pub ask: What,
}

/// The questions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// How everything fares.
    Status {},
    /// Read a range again.
    Backfill {
        /// The source.
        source: String,
        /// The range.
        ask: Ask,
    },
    /// Move positions.
    Move {
        /// The source.
        source: String,
        /// Its content types.
        content_types: Vec<String>,
        /// Where to.
        from: Timestamp,
        /// Events may be passed over.
        yes: bool,
    },
}

/// One line of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`].
    pub version: u32,
    /// What is said.
    pub say: Say,
}

/// What is said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Say {
    /// The status, and nothing more.
    Status(Box<Status>),
    /// How a back-fill goes; more follows.
    Progress(Snapshot),
    /// How a back-fill ended.
    Ended(Ended),
    /// Positions were moved: what to print.
    Moved(Vec<String>),
    /// It is not done.
    Refused(Refusal),
}

/// Why a question is refused, as the operator is told it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The error's page.
    pub slug: String,
    /// What could not be done and why.
    pub what: String,
    /// The remedy.
    pub hint: String,
    /// The exit code.
    pub exit: u8,
}

impl Refusal {
    /// An error with its exit code.
    pub fn of(error: &dyn Actionable, exit: u8) -> Self {
        Self { slug: error.slug().into(), what: error.to_string(), hint: error.hint(), exit }
    }
}

/// Why the socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The process cannot listen.
    #[error("cannot listen on `{}`: {source}; `status`, `backfill` and `state set` cannot reach this process", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The socket may not be used by this user.
    #[error("cannot ask the running process through `{}`: {source}", path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The process went away, or answered nonsense.
    #[error("the running process did not answer to the end: {why}")]
    Broken {
        /// What happened.
        why: String,
    },
    /// Another version.
    #[error("the running process speaks version {theirs} of the control protocol, this program {VERSION}")]
    Version {
        /// The process's version.
        theirs: u32,
    },
}

impl Actionable for ControlError {
    fn slug(&self) -> &'static str {
        match self {
            Self::Listen { .. } => "control-not-listening",
            Self::Denied { .. } => "control-denied",
            Self::Broken { .. } => "control-broken",
            Self::Version { .. } => "control-version",
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Listen { .. } => {
                "records are read and delivered all the same; check the permissions of `data_dir`".into()
            }
            Self::Denied { .. } => "run this as the user the service runs as, or as root".into(),
            Self::Broken { .. } => {
                "look at its log, then run the same command again: a back-fill goes on where it was".into()
            }
            Self::Version { .. } => "use the program the service runs, or restart the service with this one".into(),
        }
    }
}

/// A move of positions, for whoever owns the sources.
pub struct MoveAsked {
    /// The source.
    pub source: String,
    /// Its content types.
    pub content_types: Vec<ContentType>,
    /// Where to.
    pub from: Timestamp,
    /// Events may be passed over.
    pub yes: bool,
    /// Told what to print.
    pub answer: oneshot::Sender<Result<Vec<String>, Refusal>>,
}

/// One source of the process.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The tenant.
    pub tenant: TenantId,
    /// What it reads.
    pub content_types: Vec<ContentType>,
    /// Its quota; 0 is no limit.
    pub max_requests_per_minute: u32,
    /// Its desk for back-fills.
    pub counter: Counter,
    /// The back-fill that runs.
    pub backfill: Option<Arc<Progress>>,
}

/// The sources of the process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Registry(Arc<Mutex<BTreeMap<String, Entry>>>);

impl Registry {
    /// Takes note of a source that is started.
    pub fn put(&self, name: &str, entry: Entry) {
        self.lock().insert(name.to_owned(), entry);
    }

    /// Forgets a source.
    pub fn remove(&self, name: &str) {
        self.lock().remove(name);
    }

    /// The sources now.
    pub fn entries(&self) -> BTreeMap<String, Entry> {
        self.lock().clone()
    }

    fn note_backfill(&self, name: &str, progress: Option<Arc<Progress>>) {
        if let Some(entry) = self.lock().get_mut(name) {
            entry.backfill = progress;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Maps an error of a back-fill to its exit code; the command line's business.
pub type ExitOf = fn(&crate::source::backfill::BackfillError) -> u8;

/// What answers questions with.
#[derive(Clone)]
pub struct Backend {
    /// The sources.
    pub registry: Registry,
    /// What is measured.
    pub monitor: Arc<Monitor>,
    /// Where moves are carried out.
    pub moves: mpsc::Sender<MoveAsked>,
    /// Exit codes.
    pub exit_of: ExitOf,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// The path for the system call: through the open directory where the plain one is too long for a socket's address.
fn reachable(data_dir: &Path, name: &str) -> io::Result<(PathBuf, Option<fs::File>)> {
    let path = data_dir.join(name);
    if path.as_os_str().len() <= PATH_BYTES_MAX {
        return Ok((path, None));
    }
    let dir = fs::File::open(data_dir)?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd())), Some(dir)))
}

/// The listening side.
#[derive(Debug)]
pub struct ControlServer {
    listener: UnixListener,
    path: PathBuf,
    owner: u32,
}

impl ControlServer {
    /// Listens. Call it only while the state's lock is held.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn bind(data_dir: &Path) -> Result<Self, ControlError> {
        let path = data_dir.join(SOCKET_FILE);
        let failed = |source| ControlError::Listen { path: path.clone(), source };
        // Under another name until its mode is right: nobody finds an open one under this name.
        let new = format!("{SOCKET_FILE}.new");
        for leftover in [data_dir.join(&new), path.clone()] {
            match fs::remove_file(leftover) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        let (bound, _dir) = reachable(data_dir, &new).map_err(failed)?;
        let listener = UnixListener::bind(&bound).map_err(failed)?;
        let new = data_dir.join(&new);
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let owner = fs::metadata(&new).map_err(failed)?.uid();
        fs::rename(&new, &path).map_err(failed)?;
        Ok(Self { listener, path, owner })
    }

    /// Answers until `stop`, then removes the file.
    pub async fn serve(self, backend: Backend, stop: CancellationToken) {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    let user = stream.peer_cred().map(|peer| peer.uid());
                    if !user.is_ok_and(|user| user == self.owner || user == 0) {
                        tracing::warn!("a question through the control socket was refused: it came from another user");
                        continue;
                    }
                    // Beyond the bound a client is turned away: it sees its connection closed.
                    let Ok(permit) = room.clone().try_acquire_owned() else { continue };
                    let (backend, stop) = (backend.clone(), stop.child_token());
                    connections.spawn(async move {
                        let _permit = permit;
                        // A client that went away is its own business.
                        let _ = answer(stream, backend, stop).await;
                    });
                }
                Err(error) => {
                    tracing::debug!("control socket: {error}");
                    backend.clock.sleep(Duration::from_millis(100)).await;
                }
            }
        }
        let _ = fs::remove_file(&self.path);
        connections.shutdown().await;
    }
}

async fn answer(stream: UnixStream, backend: Backend, stop: CancellationToken) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut reader = BufReader::new(read.take(QUESTION_BYTES_MAX));
    let mut line = String::new();
    tokio::select! {
        read = reader.read_line(&mut line) => { read?; }
        () = backend.clock.sleep(PATIENCE) => return Ok(()),
    }
    let say = async |write: &mut tokio::net::unix::OwnedWriteHalf, say: Say| -> io::Result<()> {
        let mut text = serde_json::to_string(&Answer { version: VERSION, say }).map_err(io::Error::other)?;
        text.push('\n');
        tokio::select! {
            written = write.write_all(text.as_bytes()) => written,
            () = backend.clock.sleep(PATIENCE) => Err(io::ErrorKind::TimedOut.into()),
        }
    };
    let refuse = |slug: &str, what: String, hint: &str, exit: u8| {
        Say::Refused(Refusal { slug: slug.into(), what, hint: hint.into(), exit })
    };
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let question: Question = match serde_json::from_str(&line) {
        Ok(question) => question,
        Err(error) => {
            let newer = serde_json::from_str::<Version>(&line).is_ok_and(|v| v.version != VERSION);
            let refusal = if newer {
                version_refusal()
            } else {
                refuse("control-broken", format!("the question cannot be read: {error}"), "ask with `m365-audit`", 64)
            };
            return say(&mut write, refusal).await;
        }
    };
    if question.version != VERSION {
        return say(&mut write, version_refusal()).await;
    }
    let unknown = |source: &str| {
        let known = backend.registry.entries().into_keys().collect::<Vec<_>>().join(", ");
        let what = format!("no source named `{source}` is running; there are: {known}");
        refuse("source-unknown", what, "give one of them with --source, or reload the process (SIGHUP)", 64)
    };
    match question.ask {
        What::Status {} => {
            let status = backend.monitor.status(&backend.registry);
            say(&mut write, Say::Status(Box::new(status))).await
        }
        What::Move { source, content_types, from, yes } => {
            let Some(entry) = backend.registry.entries().remove(&source) else {
                return say(&mut write, unknown(&source)).await;
            };
            let types: Vec<ContentType> = if content_types.is_empty() {
                entry.content_types
            } else {
                content_types.iter().filter_map(|name| name.parse().ok()).collect()
            };
            let (answer, answered) = oneshot::channel();
            let asked = MoveAsked { source, content_types: types, from, yes, answer };
            let gone = || refuse("control-broken", "the process is stopping".into(), "try again once it runs", 73);
            if backend.moves.send(asked).await.is_err() {
                return say(&mut write, gone()).await;
            }
            let result = match answered.await {
                Ok(Ok(lines)) => Say::Moved(lines),
                Ok(Err(refusal)) => Say::Refused(refusal),
                Err(_) => gone(),
            };
            say(&mut write, result).await
        }
        What::Backfill { source, ask } => {
            let Some(entry) = backend.registry.entries().remove(&source) else {
                return say(&mut write, unknown(&source)).await;
            };
            let (begun, mut has_begun) = oneshot::channel();
            let (answer, mut answered) = oneshot::channel();
            let asked = Asked { ask, begun, stop: stop.clone(), answer };
            if let Err(error) = entry.counter.hand_in(asked) {
                return say(&mut write, Say::Refused(Refusal::of(&error, (backend.exit_of)(&error)))).await;
            }
            // Whoever asked may hang up or die: then it stops, and goes on when asked again.
            let mut rest = reader.into_inner();
            let _stop_with_this = stop.clone().drop_guard();
            let mut gone = false;
            let mut one = [0];
            let mut progress: Option<Arc<Progress>> = None;
            let mut told = false;
            let waiting_since = backend.clock.monotonic();
            let result = loop {
                tokio::select! {
                    ended = &mut answered => break match ended {
                        Ok(Ok(ended)) => Say::Ended(ended),
                        Ok(Err(error)) => Say::Refused(Refusal::of(&error, (backend.exit_of)(&error))),
                        Err(_) => {
                            let error = crate::source::backfill::BackfillError::SourceEnded;
                            Say::Refused(Refusal::of(&error, (backend.exit_of)(&error)))
                        }
                    },
                    begun = &mut has_begun, if !told => {
                        told = true;
                        if let Ok(begun) = begun {
                            backend.registry.note_backfill(&source, Some(begun.clone()));
                            progress = Some(begun);
                        }
                    }
                    read = rest.read(&mut one), if !gone => if !read.is_ok_and(|n| n > 0) {
                        gone = true;
                        stop.cancel();
                    },
                    () = backend.clock.sleep(TELL_EVERY) => {
                        let late = backend.clock.monotonic() > waiting_since + 3 * PATIENCE;
                        if let Some(progress) = &progress {
                            let told = say(&mut write, Say::Progress(progress.snapshot())).await;
                            if told.is_err() {
                                gone = true;
                                stop.cancel();
                            }
                        } else if late {
                            break refuse(
                                "backfill-not-begun",
                                format!("the source `{source}` does not begin the back-fill: it has not signed in, or its state cannot be read"),
                                "`m365-audit status` shows what is wrong with it; `m365-audit check` tests the connection",
                                75,
                            );
                        }
                    }
                }
            };
            if progress.is_some() {
                backend.registry.note_backfill(&source, None);
            }
            say(&mut write, result).await
        }
    }
}

fn version_refusal() -> Say {
    Say::Refused(Refusal {
        slug: "control-version".into(),
        what: format!("this process speaks version {VERSION} of the control protocol"),
        hint: "use the program the service runs, or restart the service with this one".into(),
        exit: 73,
    })
}

/// The asking side: one question.
#[derive(Debug)]
pub struct Client {
    lines: BufReader<tokio::io::Take<tokio::net::unix::OwnedReadHalf>>,
    write: tokio::net::unix::OwnedWriteHalf,
}

impl Client {
    /// Connects to the process that runs on `data_dir`; `None` when none does (or one without a socket).
    ///
    /// # Errors
    /// The socket is there and may not be used.
    pub async fn connect(data_dir: &Path) -> Result<Option<Self>, ControlError> {
        let denied = |source| ControlError::Denied { path: data_dir.join(SOCKET_FILE), source };
        let (path, _dir) = match reachable(data_dir, SOCKET_FILE) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(denied(error)),
        };
        match UnixStream::connect(&path).await {
            Ok(stream) => {
                let (read, write) = stream.into_split();
                Ok(Some(Self { lines: BufReader::new(read.take(ANSWER_BYTES_MAX)), write }))
            }
            // Left by a process that died.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(error) => Err(denied(error)),
        }
    }

    /// Asks.
    ///
    /// # Errors
    /// The process went away.
    pub async fn ask(&mut self, ask: What) -> Result<(), ControlError> {
        let broken = |error: &dyn std::fmt::Display| ControlError::Broken { why: error.to_string() };
        let mut text = serde_json::to_string(&Question { version: VERSION, ask }).map_err(|e| broken(&e))?;
        text.push('\n');
        self.write.write_all(text.as_bytes()).await.map_err(|e| broken(&e))
    }

    /// Asks to stop: what was asked for is stopped in an orderly way, and its end is told.
    ///
    /// # Errors
    /// The process went away.
    pub async fn hang_up(&mut self) -> Result<(), ControlError> {
        self.write.shutdown().await.map_err(|error| ControlError::Broken { why: error.to_string() })
    }

    /// The next line of the answer.
    ///
    /// # Errors
    /// The process went away, or is of another version.
    pub async fn next(&mut self) -> Result<Say, ControlError> {
        let broken = |why: String| ControlError::Broken { why };
        let mut line = String::new();
        let read = self.lines.read_line(&mut line).await.map_err(|error| broken(error.to_string()))?;
        if read == 0 {
            return Err(broken("it closed the connection".into()));
        }
        self.lines.get_mut().set_limit(ANSWER_BYTES_MAX);
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let version: Version = serde_json::from_str(&line).map_err(|error| broken(error.to_string()))?;
        if version.version != VERSION {
            return Err(ControlError::Version { theirs: version.version });
        }
        let answer: Answer = serde_json::from_str(&line).map_err(|error| broken(error.to_string()))?;
        Ok(answer.say)
    }
}
