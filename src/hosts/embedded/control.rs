//! The control socket of a running process: `control.sock` under `data_dir`, or `control_socket`, for the operator's
//! commands.
//!
//! Owns the socket and its protocol: one request a connection, one JSON object a line, with the version in each;
//! several response lines may follow. The user that runs the process and root may send requests. The file is 0600, and
//! the peer's user is checked in addition, because the mode is set a moment after the file is created. A process that
//! dies leaves the file. As the state's lock is held before the socket is created, a socket without a listener belongs
//! to no process and is replaced. A socket file that is removed while the process runs is created again, but not in the
//! directory beneath a mount that went away.
//!
//! Does not know how a request is carried out: it assembles `status` from the process's measurements, and passes a
//! back-fill to the source and a move of positions to the owner of the sources.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::place::{MountPlace, PlaceChange};
use super::registry::{Registry, RunningSource};
use super::status::{Monitor, Status};
use crate::clock::Clock;
use crate::model::{Actionable, ContentType, TenantId, Timestamp};
use crate::source::aside::Retried;
use crate::source::backfill_requests::{BackfillAsk, BackfillError, BackfillNumbers, BackfillProgress, BackfillResult};
use crate::source::heal;

mod working;

use working::WorkParts;

/// The protocol's version.
pub const VERSION: u32 = 1;

/// Bytes of a question.
const QUESTION_BYTES_MAX: u64 = 64 * 1024;
/// Bytes of an answer a client reads.
const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// A client must send its request within this time, and read each answer within it.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the process checks that the socket still has its name.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Connections served at once.
const CONNECTIONS_MAX: usize = 16;
/// A client gets the progress of a back-fill this often.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// A path longer than this does not fit the system's address of a socket.
const PATH_BYTES_MAX: usize = 100;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlRequest {
    /// [`VERSION`].
    pub version: u32,
    /// The question.
    pub ask: What,
}

/// The questions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The status of the process.
    Status {},
    /// Read a range again.
    Backfill {
        /// The source.
        source: String,
        /// The range.
        ask: BackfillAsk,
    },
    /// Fill a range through Microsoft Graph.
    Heal {
        /// The source.
        source: String,
        /// The range.
        ask: heal::requests::HealAsk,
    },
    /// Offer what a source has set aside to the sinks again.
    Retry {
        /// The source.
        source: String,
    },
    /// Read the configuration again, and remove from the state the data of a tenant that it no longer names.
    Purge {
        /// The tenant.
        tenant: String,
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
pub struct AnswerLine {
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
    /// The progress of a back-fill; more lines follow.
    Progress(BackfillNumbers),
    /// How a back-fill ended.
    Ended(BackfillResult),
    /// The progress of filling a range; more lines follow.
    Healing(heal::requests::HealNumbers),
    /// How it ended.
    Healed(heal::requests::HealResult),
    /// The outcome for the records that were set aside.
    Retried(Retried),
    /// Positions were moved: what to print.
    Moved(Vec<String>),
    /// A tenant's data was removed: what to print.
    Purged(Vec<String>),
    /// The request was refused.
    Refused(ControlRefusal),
}

/// Why a request is refused, in the words for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlRefusal {
    /// The error's page.
    pub slug: String,
    /// What could not be done and why.
    pub what: String,
    /// The remedy.
    pub hint: String,
    /// The exit code.
    pub exit: u8,
}

impl ControlRefusal {
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
    /// The file system of the socket is no longer mounted.
    #[error("what was mounted at `{}` is not mounted any more, and with it the control socket `{}`; nothing is made beneath it, and `status`, `backfill` and `state set` cannot reach this process", mount.display(), path.display())]
    MountGone {
        /// The socket.
        path: PathBuf,
        /// Where it was mounted.
        mount: PathBuf,
    },
    /// The socket may not be used by this user.
    #[error("cannot ask the running process through `{}`: {source}", path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The process ended, or its answer is invalid.
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
            Self::MountGone { .. } => "control-mount-gone",
            Self::Denied { .. } => "control-denied",
            Self::Broken { .. } => "control-broken",
            Self::Version { .. } => "control-version",
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Listen { source, .. } if refuses_sockets(source) => {
                "records are read and delivered all the same; its file system may refuse Unix sockets (SMB, Azure Files, \
                 some NFS and FUSE): set `control_socket` to a path on another, as in `control_socket = \
                 \"/run/m365-audit/control.sock\"`"
                    .into()
            }
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                "records are read and delivered all the same; give each process a `control_socket` of its own".into()
            }
            Self::Listen { .. } => "records are read and delivered all the same; check the permissions of its directory, \
                                    or set `control_socket` to another path"
                .into(),
            Self::MountGone { .. } => "mount it again: the socket is made anew by itself".into(),
            Self::Denied { .. } => "run this as the user the service runs as, or as root".into(),
            Self::Broken { .. } => {
                "look at its log, then run the same command again: a back-fill goes on where it was".into()
            }
            Self::Version { .. } => "use the program the service runs, or restart the service with this one".into(),
        }
    }
}

/// Whether the file system, and not a permission, prevents a socket.
fn refuses_sockets(error: &io::Error) -> bool {
    // A bind answers `EPERM` where a file system has no special files, `EACCES` where a directory may not be written.
    let no_special_files = [libc::EPERM, libc::EINVAL, libc::ENXIO, libc::ENODEV];
    error.kind() == io::ErrorKind::Unsupported || error.raw_os_error().is_some_and(|e| no_special_files.contains(&e))
}

/// A move of positions, for the owner of the sources.
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
    pub answer: oneshot::Sender<Result<Vec<String>, ControlRefusal>>,
}

/// A request to remove a tenant's data, for the owner of the sources and the state.
pub struct PurgeAsked {
    /// The tenant.
    pub tenant: TenantId,
    /// Told what to print.
    pub answer: oneshot::Sender<Result<Vec<String>, ControlRefusal>>,
}

/// Maps an error of a back-fill to its exit code, which the command line defines.
pub type ExitOf = fn(&BackfillError) -> u8;
/// The same for a range that is filled through Microsoft Graph.
pub type HealExitOf = fn(&heal::requests::HealError) -> u8;

/// The parts with which requests are answered.
#[derive(Clone)]
pub struct Backend {
    /// The sources.
    pub registry: Registry,
    /// What is measured.
    pub monitor: Arc<Monitor>,
    /// Where moves are carried out.
    pub moves: mpsc::Sender<MoveAsked>,
    /// Where tenants' data is removed.
    pub purges: mpsc::Sender<PurgeAsked>,
    /// Exit codes.
    pub exit_of: ExitOf,
    /// Those of `heal`.
    pub heal_exit_of: HealExitOf,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// The path for the system call: through the open directory if the plain path is too long for a socket's address.
fn reachable(path: &Path) -> io::Result<(PathBuf, Option<fs::File>)> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::other("it does not end in the name of a file"));
    };
    if path.as_os_str().len() <= PATH_BYTES_MAX {
        return Ok((path.to_owned(), None));
    }
    let dir = fs::File::open(dir)?;
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    if short.as_os_str().len() > PATH_BYTES_MAX {
        return Err(io::Error::other("its name is too long for a socket: at most 80 bytes"));
    }
    Ok((short, Some(dir)))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// The listening side.
#[derive(Debug)]
pub struct ControlServer {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket.
    identity: (u64, u64),
    owner: u32,
    /// Where its directory is mounted; `None` when that could not be read.
    place: Option<MountPlace>,
    /// Its directory is made anew, too, and not left to whoever writes the state.
    makes_directory: bool,
    /// Why it could not be made anew, once that was logged.
    trouble: Option<String>,
}

/// The result of a check of the socket's name.
#[derive(Debug, PartialEq, Eq)]
enum SocketState {
    /// It is there, or something that is left alone.
    AsLeft,
    /// It is gone.
    Gone,
    /// The file system that it was on is no longer mounted here.
    MountGone(PathBuf),
}

impl ControlServer {
    /// Listens at `path`, whose directory is made (0700) if it is missing. Call it only while the state's lock is held.
    ///
    /// # Errors
    /// The socket cannot be made, or something else lies there.
    pub fn bind(path: &Path) -> Result<Self, ControlError> {
        Self::listen(path).map_err(|source| ControlError::Listen { path: path.to_owned(), source })
    }

    fn listen(path: &Path) -> io::Result<Self> {
        let path = &std::path::absolute(path)?;
        if let Some(dir) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        // Created under another name until its mode is set, so that the final name never has an open socket.
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        for leftover in [&new, path] {
            take_away(leftover)?;
        }
        let (bound, _dir) = reachable(&new)?;
        let listener = UnixListener::bind(&bound)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
        let owner = fs::metadata(&new)?.uid();
        fs::rename(&new, path)?;
        let identity = identity(path)?;
        let place = path.parent().and_then(|dir| MountPlace::of(dir).ok());
        Ok(Self { listener, path: path.to_owned(), identity, owner, place, makes_directory: false, trouble: None })
    }

    /// Has its directory made anew when that is gone. For a socket outside `data_dir`, which the state makes anew.
    #[must_use]
    pub fn making_its_directory(mut self) -> Self {
        self.makes_directory = true;
        self
    }

    /// Waits, then checks whether the socket's name is gone. The check runs on a thread of its own, since a file system
    /// that hangs must not block this process.
    fn look(&self, clock: &dyn Clock) -> BoxFuture<'static, SocketState> {
        let (pause, path, place) = (clock.sleep(LOOK_EVERY), self.path.clone(), self.place.clone());
        let makes_directory = self.makes_directory;
        Box::pin(async move {
            pause.await;
            let looked = tokio::task::spawn_blocking(move || state_of(&path, place.as_ref(), makes_directory));
            looked.await.unwrap_or(SocketState::AsLeft)
        })
    }

    /// Acts on a check: makes a socket that is gone anew, but not beneath a mount that went away. A reason that holds
    /// is logged once.
    fn repair(&mut self, found: SocketState) {
        let outcome = match found {
            SocketState::AsLeft => return self.trouble = None,
            SocketState::Gone => Self::bind(&self.path),
            SocketState::MountGone(mount) => Err(ControlError::MountGone { path: self.path.clone(), mount }),
        };
        match outcome {
            Ok(mut anew) => {
                anew.makes_directory = self.makes_directory;
                tracing::warn!(path = %self.path.display(), "the control socket was removed while this process ran, and was made anew");
                *self = anew;
            }
            Err(error) => {
                let why = format!("{}: {error} (hint: {})", error.slug(), error.hint());
                if self.trouble.as_ref() != Some(&why) {
                    tracing::warn!("{why}");
                }
                self.trouble = Some(why);
            }
        }
    }

    /// Answers until `stop`, then removes the file.
    pub async fn serve(mut self, backend: Backend, stop: CancellationToken) {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        let mut looked = self.look(&*backend.clock);
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                found = &mut looked => {
                    self.repair(found);
                    looked = self.look(&*backend.clock);
                    continue;
                }
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    let user = stream.peer_cred().map(|peer| peer.uid());
                    if !user.is_ok_and(|user| user == self.owner || user == 0) {
                        tracing::warn!("a question through the control socket was refused: it came from another user");
                        continue;
                    }
                    // Above the limit a client is refused: it sees its connection closed.
                    let Ok(permit) = room.clone().try_acquire_owned() else { continue };
                    let (backend, stop) = (backend.clone(), stop.child_token());
                    connections.spawn(async move {
                        let _permit = permit;
                        // A client that disconnected needs no report.
                        let _ = answer(stream, backend, stop).await;
                    });
                }
                Err(error) => {
                    tracing::debug!("control socket: {error}");
                    backend.clock.sleep(Duration::from_millis(100)).await;
                }
            }
        }
        if identity(&self.path).is_ok_and(|there| there == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
        connections.shutdown().await;
    }
}

/// Checks the socket's name. Another file under that name is left alone. Where a file system was mounted over it, whoever
/// asks looks above, so it is made there.
fn state_of(path: &Path, place: Option<&MountPlace>, makes_directory: bool) -> SocketState {
    let (Some(dir), Err(error)) = (path.parent(), identity(path)) else { return SocketState::AsLeft };
    if error.kind() != io::ErrorKind::NotFound {
        return SocketState::AsLeft;
    }
    match (MountPlace::of(dir), place) {
        (Ok(now), Some(known)) if now.since(known) == PlaceChange::Elsewhere => {
            SocketState::MountGone(known.mount().to_owned())
        }
        (Ok(now), _) if now.directory.is_some() || makes_directory => SocketState::Gone,
        _ => SocketState::AsLeft,
    }
}

/// Removes a socket without a listener.
fn take_away(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if metadata.file_type().is_socket() => {
            let (reached, _dir) = reachable(path)?;
            if std::os::unix::net::UnixStream::connect(reached).is_ok() {
                return Err(io::ErrorKind::AddrInUse.into());
            }
        }
        // A link is removed, not followed.
        Ok(metadata) if metadata.is_symlink() => {}
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket lies there")),
    }
    fs::remove_file(path)
}

/// Answers the one request of a connection.
async fn answer(stream: UnixStream, backend: Backend, stop: CancellationToken) -> io::Result<()> {
    let (read, write) = stream.into_split();
    let mut reader = BufReader::new(read.take(QUESTION_BYTES_MAX));
    let mut line = String::new();
    tokio::select! {
        read = reader.read_line(&mut line) => { read?; }
        () = backend.clock.sleep(PATIENCE) => return Ok(()),
    }
    let mut asker = Asker { write, backend: &backend };
    let say = match question(&line) {
        Err(refusal) => Say::Refused(refusal),
        Ok(What::Status {}) => Say::Status(Box::new(backend.monitor.status(&backend.registry))),
        Ok(What::Retry { source }) => retry(&backend, &source).await,
        Ok(What::Purge { tenant }) => purge(&backend, &tenant).await,
        Ok(What::Move { source, content_types, from, yes }) => {
            move_positions(&backend, source, &content_types, from, yes).await
        }
        Ok(What::Backfill { source, ask }) => asker.backfill(reader, &source, ask, &stop).await,
        Ok(What::Heal { source, ask }) => asker.heal(reader, &source, ask, &stop).await,
    };
    asker.say(say).await
}

/// Parses the request, or returns why it cannot be answered.
fn question(line: &str) -> Result<What, ControlRefusal> {
    #[derive(Deserialize)]
    struct RequestVersion {
        version: u32,
    }
    match serde_json::from_str::<ControlRequest>(line) {
        Ok(question) if question.version == VERSION => Ok(question.ask),
        Ok(_) => Err(version_refusal()),
        Err(_) if serde_json::from_str::<RequestVersion>(line).is_ok_and(|v| v.version != VERSION) => {
            Err(version_refusal())
        }
        Err(error) => {
            Err(refusal("control-broken", format!("the question cannot be read: {error}"), "ask with `m365-audit`", 64))
        }
    }
}

fn refusal(slug: &str, what: String, hint: &str, exit: u8) -> ControlRefusal {
    ControlRefusal { slug: slug.into(), what, hint: hint.into(), exit }
}

/// The source of this name, or the refusal that there is none.
fn source_of(backend: &Backend, source: &str) -> Result<RunningSource, ControlRefusal> {
    let mut entries = backend.registry.entries();
    entries.remove(source).ok_or_else(|| {
        let known = entries.into_keys().collect::<Vec<_>>().join(", ");
        let what = format!("no source named `{source}` is running; there are: {known}");
        refusal("source-unknown", what, "give one of them with --source, or reload the process (SIGHUP)", 64)
    })
}

/// Has a source offer again what it has set aside.
async fn retry(backend: &Backend, source: &str) -> Say {
    let entry = match source_of(backend, source) {
        Ok(entry) => entry,
        Err(refusal) => return Say::Refused(refusal),
    };
    let (answer, answered) = oneshot::channel();
    let asked = async {
        entry.retries.send(answer).await.ok()?;
        answered.await.ok()
    };
    match asked.await {
        Some(Ok(retried)) => Say::Retried(retried),
        Some(Err(error)) => Say::Refused(refusal(
            "state-not-read",
            error.to_string(),
            "what was delivered is delivered, the rest stays set aside; see docs/errors/state-not-read.md",
            73,
        )),
        None => Say::Refused(refusal(
            "source-unknown",
            format!("the source `{source}` has ended"),
            "reload the process (SIGHUP) or start it again, then run the same command",
            75,
        )),
    }
}

/// Has positions of a source moved.
async fn move_positions(backend: &Backend, source: String, types: &[String], from: Timestamp, yes: bool) -> Say {
    let entry = match source_of(backend, &source) {
        Ok(entry) => entry,
        Err(refusal) => return Say::Refused(refusal),
    };
    let content_types: Vec<ContentType> = if types.is_empty() {
        entry.content_types
    } else {
        types.iter().filter_map(|name| name.parse().ok()).collect()
    };
    let (answer, answered) = oneshot::channel();
    let asked = MoveAsked { source, content_types, from, yes, answer };
    let gone =
        || Say::Refused(refusal("control-broken", "the process is stopping".into(), "try again once it runs", 73));
    if backend.moves.send(asked).await.is_err() {
        return gone();
    }
    match answered.await {
        Ok(Ok(lines)) => Say::Moved(lines),
        Ok(Err(refusal)) => Say::Refused(refusal),
        Err(_) => gone(),
    }
}

/// Has a tenant's data removed.
async fn purge(backend: &Backend, tenant: &str) -> Say {
    let tenant: TenantId = match tenant.parse() {
        Ok(tenant) => tenant,
        Err(error) => {
            return Say::Refused(refusal(
                "control-broken",
                format!("the question: {error}"),
                "ask with `m365-audit`",
                64,
            ));
        }
    };
    let (answer, answered) = oneshot::channel();
    let asked = async {
        backend.purges.send(PurgeAsked { tenant, answer }).await.ok()?;
        answered.await.ok()
    };
    match asked.await {
        Some(Ok(lines)) => Say::Purged(lines),
        Some(Err(refusal)) => Say::Refused(refusal),
        None => Say::Refused(refusal("control-broken", "the process is stopping".into(), "try again once it runs", 73)),
    }
}

/// The client at the other end of the connection.
struct Asker<'a> {
    write: tokio::net::unix::OwnedWriteHalf,
    backend: &'a Backend,
}

impl Asker<'_> {
    async fn say(&mut self, say: Say) -> io::Result<()> {
        let mut text = serde_json::to_string(&AnswerLine { version: VERSION, say }).map_err(io::Error::other)?;
        text.push('\n');
        tokio::select! {
            written = self.write.write_all(text.as_bytes()) => written,
            () = self.backend.clock.sleep(PATIENCE) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Has a source read a range again.
    async fn backfill(
        &mut self,
        reader: RequestReader,
        source: &str,
        ask: BackfillAsk,
        stop: &CancellationToken,
    ) -> Say {
        let backend = self.backend;
        let entry = match source_of(backend, source) {
            Ok(entry) => entry,
            Err(refusal) => return Say::Refused(refusal),
        };
        // If it is refused, another one is running and stays registered.
        let is_noted = AtomicBool::new(false);
        let work = WorkParts {
            source,
            counter: &entry.counter,
            ask,
            what: "the back-fill",
            progress: |progress: &BackfillProgress| Say::Progress(progress.snapshot()),
            ended: Say::Ended,
            exit_of: backend.exit_of,
            begun: &|progress| {
                backend.registry.note_backfill(source, Some(progress));
                is_noted.store(true, Ordering::Relaxed);
            },
        };
        let said = self.have_done(reader, work, stop).await;
        if is_noted.load(Ordering::Relaxed) {
            backend.registry.note_backfill(source, None);
        }
        said
    }

    /// Has a source fill a range through Microsoft Graph.
    async fn heal(
        &mut self,
        reader: RequestReader,
        source: &str,
        ask: heal::requests::HealAsk,
        stop: &CancellationToken,
    ) -> Say {
        let entry = match source_of(self.backend, source) {
            Ok(entry) => entry,
            Err(refusal) => return Say::Refused(refusal),
        };
        let work = WorkParts {
            source,
            counter: &entry.heal,
            ask,
            what: "to fill the range",
            progress: |progress: &heal::requests::HealProgress| Say::Healing(progress.snapshot()),
            ended: Say::Healed,
            exit_of: self.backend.heal_exit_of,
            begun: &|_| {},
        };
        self.have_done(reader, work, stop).await
    }
}

/// The rest of a request's connection.
type RequestReader = BufReader<tokio::io::Take<tokio::net::unix::OwnedReadHalf>>;

fn version_refusal() -> ControlRefusal {
    let what = format!("this process speaks version {VERSION} of the control protocol");
    refusal("control-version", what, "use the program the service runs, or restart the service with this one", 73)
}

/// The client side: one request.
#[derive(Debug)]
pub struct Client {
    lines: Lines<BufReader<tokio::io::Take<tokio::net::unix::OwnedReadHalf>>>,
    write: tokio::net::unix::OwnedWriteHalf,
}

impl Client {
    /// Connects to the process that listens at `socket`; `None` when none does.
    ///
    /// # Errors
    /// The socket is there and may not be used.
    pub async fn connect(socket: &Path) -> Result<Option<Self>, ControlError> {
        let denied = |source| ControlError::Denied { path: socket.to_owned(), source };
        let (path, _dir) = match reachable(socket) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(denied(error)),
        };
        match UnixStream::connect(&path).await {
            Ok(stream) => Ok(Some(Self::over(stream))),
            // Left by a process that died.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(error) => Err(denied(error)),
        }
    }

    /// Uses an existing connection.
    pub fn over(stream: UnixStream) -> Self {
        let (read, write) = stream.into_split();
        Self { lines: BufReader::new(read.take(ANSWER_BYTES_MAX)).lines(), write }
    }

    /// Asks.
    ///
    /// # Errors
    /// The process went away.
    pub async fn ask(&mut self, ask: What) -> Result<(), ControlError> {
        let text = serde_json::to_string(&ControlRequest { version: VERSION, ask });
        self.ask_line(&text.map_err(|error| ControlError::Broken { why: error.to_string() })?).await
    }

    /// Sends a request that is already one line of JSON.
    ///
    /// # Errors
    /// The process went away.
    pub async fn ask_line(&mut self, line: &str) -> Result<(), ControlError> {
        let text = format!("{line}\n");
        self.write.write_all(text.as_bytes()).await.map_err(|error| ControlError::Broken { why: error.to_string() })
    }

    /// Asks to stop: the work stops in an orderly way, and its end is reported.
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
        let line = self.next_line().await?;
        #[derive(Deserialize)]
        struct RequestVersion {
            version: u32,
        }
        let version: RequestVersion = serde_json::from_str(&line).map_err(|error| broken(error.to_string()))?;
        if version.version != VERSION {
            return Err(ControlError::Version { theirs: version.version });
        }
        let answer: AnswerLine = serde_json::from_str(&line).map_err(|error| broken(error.to_string()))?;
        Ok(answer.say)
    }

    /// The next line of the answer, unparsed; cancelling this future loses no bytes.
    ///
    /// # Errors
    /// The process went away.
    pub async fn next_line(&mut self) -> Result<String, ControlError> {
        let broken = |why: String| ControlError::Broken { why };
        let line = self.lines.next_line().await.map_err(|error| broken(error.to_string()))?;
        self.lines.get_mut().get_mut().set_limit(ANSWER_BYTES_MAX);
        line.ok_or_else(|| broken("it closed the connection".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_made_in_a_directory_of_its_own_under_any_path() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["control.sock", "run/m365/control.sock", &format!("{}/c.sock", "deep".repeat(60))] {
            let path = dir.path().join(path);
            let server = ControlServer::bind(&path).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
            assert!(Client::connect(&path).await.unwrap().is_some(), "{}", path.display());
            // Its process is alive, so it is not removed.
            let taken = ControlServer::bind(&path).unwrap_err();
            assert!(taken.hint().contains("of its own"), "{taken}: {}", taken.hint());
            drop(server);
            assert!(Client::connect(&path).await.unwrap().is_none(), "left behind");
            ControlServer::bind(&path).unwrap();
        }
        assert_eq!(fs::metadata(dir.path().join("run")).unwrap().mode() & 0o777, 0o700);
        let long = ControlServer::bind(&dir.path().join("x".repeat(200))).unwrap_err();
        assert!(long.to_string().contains("at most 80 bytes"), "{long}");
    }

    #[tokio::test]
    async fn what_is_no_socket_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("precious");
        fs::write(&file, "text").unwrap();
        for path in [&file, &dir.path().to_owned()] {
            let error = ControlServer::bind(path).unwrap_err();
            assert!(error.to_string().contains("no socket"), "{error}");
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "text");
    }

    #[tokio::test]
    async fn a_socket_that_was_removed_is_made_anew_and_one_of_another_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data/control.sock");
        let mut server = ControlServer::bind(&path).unwrap();
        let first = server.identity;
        let state = |server: &ControlServer| state_of(&path, server.place.as_ref(), server.makes_directory);
        assert_eq!(state(&server), SocketState::AsLeft, "it is there");
        fs::remove_file(&path).unwrap();
        assert_eq!(state(&server), SocketState::Gone);
        server.repair(SocketState::Gone);
        assert_ne!(server.identity, first);
        assert!(Client::connect(&path).await.unwrap().is_some());
        fs::remove_dir_all(dir.path().join("data")).unwrap();
        assert_eq!(state(&server), SocketState::AsLeft, "the directory is the state's to make");
        let outside = server.making_its_directory();
        assert_eq!(state(&outside), SocketState::Gone, "and its own outside `data_dir`");
        let mut server = ControlServer { makes_directory: false, ..outside };
        fs::create_dir(dir.path().join("data")).unwrap();
        fs::write(&path, "another's").unwrap();
        assert_eq!(state(&server), SocketState::AsLeft);
        server.repair(SocketState::Gone);
        assert_eq!(fs::read_to_string(&path).unwrap(), "another's");
        assert!(server.trouble.as_ref().unwrap().starts_with("control-not-listening: "), "{:?}", server.trouble);
    }

    #[tokio::test]
    async fn no_socket_is_made_beneath_a_mount_that_went_away_and_one_is_when_it_is_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let mut server = ControlServer::bind(&path).unwrap();
        let here = server.place.clone();
        // As if the directory was a mount of its own, which is gone.
        server.place = Some(MountPlace { directory: Some((1, 1)), mount: Some(dir.path().to_owned()) });
        fs::remove_file(&path).unwrap();
        for _ in 0..2 {
            let found = state_of(&path, server.place.as_ref(), server.makes_directory);
            assert_eq!(found, SocketState::MountGone(dir.path().to_owned()));
            server.repair(found);
            assert!(!path.exists());
            assert!(server.trouble.as_ref().unwrap().starts_with("control-mount-gone: "), "{:?}", server.trouble);
        }
        // The mount of a directory above, beneath which there is none.
        let beneath = dir.path().join("deeper/control.sock");
        assert!(matches!(state_of(&beneath, server.place.as_ref(), true), SocketState::MountGone(_)));
        server.place = here;
        server.repair(state_of(&path, server.place.as_ref(), server.makes_directory));
        assert!(path.exists());
        assert_eq!(server.trouble, None);
    }

    #[test]
    fn a_file_system_without_sockets_is_told_as_that_and_a_permission_as_that() {
        for (code, hint) in [
            (libc::EOPNOTSUPP, "control_socket = "),
            (libc::EPERM, "control_socket = "),
            (libc::EINVAL, "control_socket = "),
            (libc::ENOSYS, "control_socket = "),
            (libc::EACCES, "check the permissions"),
            (libc::EROFS, "check the permissions"),
            (libc::EADDRINUSE, "of its own"),
        ] {
            let error = ControlError::Listen { path: "x".into(), source: io::Error::from_raw_os_error(code) };
            assert!(error.hint().contains(hint), "{code}: {}", error.hint());
        }
    }
}
