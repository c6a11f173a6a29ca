//! Instructions that pieces of the hot path take, counted by valgrind, so that a machine's load, clock and caches have
//! no influence. `.ci/instructions` compares them with `benches/instructions.tsv`.
//!
//! Without arguments it counts every piece and prints a line for each: its name, a tab, instructions. A piece is a
//! round over the fixture events, or the step its function names. `<piece> <rounds>` runs one, under any tool.

mod events;
/// The plugin is a library to load and not to link, so its encoder is compiled in here.
#[allow(dead_code, reason = "what its tests have, which a bench does not run")]
#[path = "../plugins/fluent-bit/src/encode.rs"]
mod fluent_bit;

use parking_lot::Mutex;
use std::fmt::Write as _;
use std::io;
use std::process::{Command, ExitCode};

use bytes::Bytes;
use m365_audit::checkpoint::key_set::{Key, KeyKind, KeySet, Probe, contains_all, maintain};
use m365_audit::config::{Format, RawForm};
use m365_audit::host::{BatchBuilder, Expected, Op, StateStore};
use m365_audit::hosts::embedded::memory::MemoryStore;
use m365_audit::hosts::embedded::store::SqliteStore;
use m365_audit::hosts::{fluent_forward, otlp};
use m365_audit::model::{ContentType, Timestamp};
use m365_audit::normalise::split::{Piece, Splitter};
use m365_audit::normalise::{Event, Rendered, Unhashed};
use m365_audit::receipts::statement::Hour;
use m365_audit::receipts::{Class, OpenReceipts};
use m365_audit::severity::Severity;

/// Bytes the splitter gets at a time, as from the network.
const CHUNK_BYTES: usize = 16 * 1024;
/// Events of a commit to the key set: those of one blob.
const BLOB_EVENTS: usize = 200;
/// Commits of a round of `key-set`: enough that their keys are folded into pages once.
const BLOBS_PER_FOLD: usize = 72;

/// Name, rounds beyond the first, and the function. Enough rounds that variation at the start (seeds of hash tables) is
/// under 2 % of a round.
type Step = (&'static str, usize, fn(usize));

const PIECES: &[Step] = &[
    ("splitter", 20, splitter),
    ("parse", 20, parse),
    ("identity-and-key", 200, identity_and_key),
    ("receipts", 100, receipts),
    ("severity", 50, severity),
    ("raw", 20, |rounds| render(Format::Raw, true, rounds)),
    ("raw-no-rules", 20, |rounds| render(Format::Raw, false, rounds)),
    ("native", 20, |rounds| render(Format::Native, true, rounds)),
    ("native-no-rules", 20, |rounds| render(Format::Native, false, rounds)),
    ("ecs", 20, |rounds| render(Format::Ecs, true, rounds)),
    ("ocsf", 20, |rounds| render(Format::Ocsf, true, rounds)),
    ("batch", 200, batch),
    ("msgpack-fluent-bit", 20, msgpack_fluent_bit),
    ("msgpack-forward", 20, msgpack_forward),
    ("protobuf-otlp", 10, protobuf_otlp),
    ("key-set-stage", 2, key_set_stage),
    ("key-set-lookup", 200, key_set_lookup),
    ("state-commit", 50, state_commit),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => count_all(),
        [name, rounds] => {
            let (_, _, run) = PIECES.iter().find(|piece| piece.0 == name).expect("the name of a piece");
            run(rounds.parse().expect("a number of rounds"));
            ExitCode::SUCCESS
        }
        _ => panic!("no arguments, or a piece and a number of rounds"),
    }
}

/// Counts all pieces, as many at a time as there are processors.
fn count_all() -> ExitCode {
    let next = Mutex::new(PIECES.iter().enumerate());
    let counts: Mutex<Vec<io::Result<u64>>> = Mutex::new(PIECES.iter().map(|_| Ok(0)).collect());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((place, (name, rounds, _))) = { next.lock().next() } {
                    let count = count(name, *rounds);
                    counts.lock()[place] = count;
                }
            });
        }
    });
    let mut table = String::new();
    for ((name, ..), count) in PIECES.iter().zip(counts.into_inner()) {
        match count {
            Ok(count) => writeln!(table, "{name}\t{count}").expect("a string"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                eprintln!("instructions: not counted, {error}");
                return ExitCode::SUCCESS;
            }
            Err(error) => {
                eprintln!("instructions: cannot count `{name}`: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    print!("{table}");
    ExitCode::SUCCESS
}

/// Instructions of one round: the difference between runs of one and of more, so that the common beginning cancels out.
fn count(name: &str, more: usize) -> io::Result<u64> {
    let one = run_counted(name, 1)?;
    let all = run_counted(name, 1 + more)?;
    Ok(all.saturating_sub(one) / more as u64)
}

fn run_counted(name: &str, rounds: usize) -> io::Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args([name, &rounds.to_string()])
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("valgrind cannot be started: {error}")))?;
    let said = String::from_utf8_lossy(&output.stderr);
    // `==123== I   refs:      1,234`, in later versions `I refs:`.
    let line = said.lines().find_map(|line| line.split_once(" refs:").filter(|(name, _)| name.contains("== I")));
    let count = line.and_then(|(_, count)| count.trim().replace(',', "").parse().ok());
    match count {
        Some(count) if output.status.success() => Ok(count),
        _ => Err(io::Error::other(format!("{}: {said}", output.status))),
    }
}

// ------------------------------------------------------------------------------------------- the pieces

fn splitter(rounds: usize) {
    let events = events::events();
    let body = Bytes::from([b"[".as_slice(), &events.join(&b','), b"]"].concat());
    for _ in 0..rounds {
        let (mut splitter, mut rest, mut elements) = (Splitter::new(), body.clone(), 0);
        while !rest.is_empty() {
            splitter.push(rest.split_to(CHUNK_BYTES.min(rest.len())));
            while let Some(piece) = splitter.next() {
                elements += usize::from(matches!(piece, Piece::Element { .. }));
            }
        }
        assert_eq!(elements, events.len());
    }
}

fn parse(rounds: usize) {
    let events = events::events();
    for _ in 0..rounds {
        assert!(events.iter().all(|event| Event::parse(event).is_ok()));
    }
}

fn identity_and_key(rounds: usize) {
    let events = events::parsed();
    for _ in 0..rounds {
        let keys = events.iter().filter_map(|event| Some(Key::of_event(&event.identity()?)));
        assert_ne!(keys.fold(0, |all, key| all ^ key.as_u128()), 0);
    }
}

/// The cost of a receipt of each event: its canonical key, and its place in the page of a commit.
fn receipts(rounds: usize) {
    let events = events::parsed();
    for _ in 0..rounds {
        let (mut receipts, mut unhashed) = (OpenReceipts::default(), Unhashed::default());
        assert!(events.iter().all(|event| unhashed.push(event).is_some()));
        let keys = unhashed.keys().into_iter().map(Some);
        receipts.add_all(ContentType::Exchange, Class::Delivered, keys);
        assert!(!receipts.encode(Hour::of(Timestamp::UNIX_EPOCH)).is_empty());
    }
}

fn severity(rounds: usize) {
    let (events, normaliser) = (events::parsed(), events::normaliser(Format::Native, RawForm::Object, true));
    for _ in 0..rounds {
        assert!(events.iter().map(|event| normaliser.assess(event).severity()).max() > Some(Severity::Low));
    }
}

fn render(format: Format, with_rules: bool, rounds: usize) {
    let (events, tenant) = (events::parsed(), events::tenant());
    let normaliser = events::normaliser(format, RawForm::Object, with_rules);
    let mut out = Vec::new();
    for _ in 0..rounds {
        out.clear();
        for event in &events {
            let rendered = normaliser.render(event, &events::blob(&tenant), &mut out);
            assert!(matches!(rendered, Rendered::Record { .. }));
        }
    }
}

/// Records into the buffer that sinks write.
fn batch(rounds: usize) {
    let (events, tenant) = (events::events(), events::tenant());
    for _ in 0..rounds {
        let mut builder = BatchBuilder::default();
        for event in &events {
            builder.push_with(|out| {
                out.extend_from_slice(event);
                Some((Timestamp::UNIX_EPOCH, Severity::Info))
            });
        }
        let batch = builder.finish("bench".into(), tenant.clone(), ContentType::General);
        assert_eq!(batch.records().len(), events.len());
    }
}

fn msgpack_fluent_bit(rounds: usize) {
    let batch = events::batch(Format::Native);
    let mut out = Vec::new();
    for _ in 0..rounds {
        out.clear();
        for record in batch.records() {
            fluent_bit::entry(&mut out, record.time, record.json).expect("an object");
        }
    }
}

fn msgpack_forward(rounds: usize) {
    let batch = events::batch(Format::Native);
    for _ in 0..rounds {
        assert!(!fluent_forward::encode(&batch).expect("objects").is_empty());
    }
}

fn protobuf_otlp(rounds: usize) {
    let batch = events::batch(Format::Native);
    for _ in 0..rounds {
        assert!(!otlp::encode(&batch, Timestamp::UNIX_EPOCH).expect("objects").is_empty());
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

/// Keys of events that happened up to an hour before the ten a second that are delivered.
fn keys(blob: usize) -> Vec<Key> {
    let time = |n: usize| Timestamp::from_second((n / 10 + n % 3600) as i64).expect("a time");
    (blob * BLOB_EVENTS..(blob + 1) * BLOB_EVENTS).map(|n| Key::of_blob(&n.to_string(), time(n))).collect()
}

async fn stage(set: &Mutex<KeySet>, store: &MemoryStore, keys: &[Key]) {
    let staged = set.lock().stage(keys, Timestamp::UNIX_EPOCH);
    store.commit(staged.ops).await.expect("room");
    set.lock().committed(staged.token);
    while let Some(staged) = maintain(set, store).await.expect("a store") {
        store.commit(staged.ops).await.expect("room");
        set.lock().committed(staged.token);
    }
}

/// Commits until they are folded once, each after a lookup of its keys.
fn key_set_stage(rounds: usize) {
    let store = MemoryStore::new();
    block_on(async {
        let set = Mutex::new(KeySet::load(&store, "bench", KeyKind::Events).await.expect("an empty set"));
        for blob in 0..rounds * BLOBS_PER_FOLD {
            let keys = keys(blob);
            assert!(keys.iter().all(|key| set.lock().probe(*key) != Probe::Present));
            stage(&set, &store, &keys).await;
        }
        assert_eq!(set.lock().len(), (rounds * BLOBS_PER_FOLD * BLOB_EVENTS) as u64);
    });
}

/// The lookup of a blob's known keys and of another's unknown ones, with pages read if memory does not suffice.
fn key_set_lookup(rounds: usize) {
    let store = MemoryStore::new();
    block_on(async {
        let set = Mutex::new(KeySet::load(&store, "bench", KeyKind::Events).await.expect("an empty set"));
        for blob in 0..BLOBS_PER_FOLD {
            stage(&set, &store, &keys(blob)).await;
        }
        let (known, new) = (keys(BLOBS_PER_FOLD / 2), keys(BLOBS_PER_FOLD));
        for _ in 0..rounds {
            assert!(contains_all(&set, &store, &known).await.expect("a store").iter().all(|known| *known));
            assert!(contains_all(&set, &store, &new).await.expect("a store").iter().all(|known| !*known));
        }
    });
}

/// The commit of a settled blob, into SQLite: its events' keys, its mark, and the owner's entry at its last revision.
fn state_commit(rounds: usize) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = SqliteStore::open(dir.path()).expect("a store");
    let put = |key: String, bytes: usize, expected| Op::Put { key, value: vec![b'x'; bytes].into(), expected };
    block_on(async {
        let mut owner = Expected::Absent;
        for round in 0..rounds {
            let ops = vec![
                put(format!("m365_audit/v1/t/events/d/{round:016x}"), BLOB_EVENTS * 16, Expected::Any),
                put(format!("m365_audit/v1/t/blobs/d/{round:016x}"), 16, Expected::Any),
                put("m365_audit/v1/t/owner".into(), 120, owner),
            ];
            owner = Expected::At(store.commit(ops).await.expect("room"));
        }
    });
}
