//! One piece of the hot path, so many times over the same input: what `.ci/instructions` counts instructions of.
//!
//! `instructions <piece> <times>`; without arguments it names the pieces. No clock, no thread, no random number, so that
//! two runs on one build differ by next to nothing.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use m365_audit::checkpoint::key_set::{Key, KeySet, Kind, Probe};
use m365_audit::config::{Format, RawForm};
use m365_audit::host::BatchBuilder;
use m365_audit::model::{ContentType, TenantId, Timestamp};
use m365_audit::normalise::split::{Piece, Splitter};
use m365_audit::normalise::{BlobContext, Event, Normaliser, Rendered, Settings};
use m365_audit::severity::{Rules, Severity};

#[path = "memory_store/mod.rs"]
mod memory_store;
use memory_store::{Memory, block_on};

const FAMILIES: [&str; 4] = [
    include_str!("../tests/fixtures/records/entra.ndjson"),
    include_str!("../tests/fixtures/records/exchange.ndjson"),
    include_str!("../tests/fixtures/records/general.ndjson"),
    include_str!("../tests/fixtures/records/sharepoint.ndjson"),
];
/// As the network gives it.
const CHUNK_BYTES: usize = 16 * 1024;

const PIECES: &[(&str, fn(usize))] = &[
    ("split", split),
    ("parse", parse),
    ("event-keys", event_keys),
    ("key-set", key_set),
    ("raw-without-rules", |times| render(Format::Raw, false, times)),
    ("raw", |times| render(Format::Raw, true, times)),
    ("native", |times| render(Format::Native, true, times)),
    ("ecs", |times| render(Format::Ecs, true, times)),
    ("ocsf", |times| render(Format::Ocsf, true, times)),
    ("batch", batch),
    #[cfg(feature = "fluent-bit")]
    ("msgpack", msgpack),
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [piece, times] = &args[..] else {
        PIECES.iter().for_each(|(name, _)| println!("{name}"));
        return;
    };
    let (_, run) = PIECES.iter().find(|(name, _)| name == piece).expect("a piece");
    run(times.parse().expect("a number"));
}

fn events() -> Vec<&'static [u8]> {
    FAMILIES.iter().flat_map(|family| family.lines()).map(str::as_bytes).collect()
}

fn split(times: usize) {
    let body = format!("[{}]", FAMILIES.concat().trim_end().replace('\n', ","));
    let body = Bytes::from(body);
    for _ in 0..times {
        let (mut splitter, mut rest, mut elements) = (Splitter::new(), body.clone(), 0);
        while !rest.is_empty() {
            splitter.push(rest.split_to(CHUNK_BYTES.min(rest.len())));
            while let Some(piece) = splitter.next() {
                elements += usize::from(matches!(piece, Piece::Element { .. }));
            }
        }
        assert_eq!(elements, events().len());
    }
}

fn parse(times: usize) {
    let events = events();
    for _ in 0..times {
        for event in &events {
            assert!(Event::parse(event).is_ok_and(|event| event.identity().is_some()));
        }
    }
}

fn event_keys(times: usize) {
    let events: Vec<Event<'_>> = events().into_iter().filter_map(|event| Event::parse(event).ok()).collect();
    for _ in 0..times {
        let keys = events.iter().filter_map(Event::identity).map(|identity| Key::of_event(&identity));
        assert!(keys.fold(0, |all, key| all ^ key.as_u128()) != 1);
    }
}

/// A commit of 200 keys and the question for 200 others.
fn key_set(times: usize) {
    let store = Memory::default();
    let set = Mutex::new(block_on(KeySet::load(&store, "bench", Kind::Events)).expect("an empty set"));
    let now = Timestamp::from_second(1_800_000_000).expect("a time");
    let key = |n: usize| Key::of_blob(&n.to_string(), now);
    for round in 0..times {
        let keys: Vec<Key> = (round * 200..round * 200 + 200).map(key).collect();
        let mut set = set.lock().expect("a lock");
        assert!(keys.iter().all(|key| set.probe(*key) == Probe::Absent));
        let staged = set.stage(&keys, now);
        block_on(m365_audit::host::StateStore::commit(&store, staged.ops)).expect("room");
        set.committed(staged.token);
    }
}

fn render(format: Format, with_rules: bool, times: usize) {
    let events = events();
    let tenant: TenantId = "7f3c0000-0000-0000-0000-000000000001".parse().expect("a GUID");
    let blob = BlobContext {
        tenant: &tenant,
        content_type: ContentType::General,
        content_id: "20260501100000000000001$20260501100500000000001$audit_shared$shared",
        content_created: "2026-05-01T10:05:00.123Z".parse().expect("a time"),
    };
    let normaliser = Normaliser::new(Settings {
        format,
        raw: RawForm::Object,
        rules: if with_rules { Rules::built_in() } else { Arc::new(Rules::none()) },
        ..Settings::default()
    });
    let mut out = Vec::new();
    for _ in 0..times {
        out.clear();
        for event in &events {
            let event = Event::parse(event).expect("an event");
            assert!(matches!(normaliser.render(&event, &blob, &mut out), Rendered::Record { .. }));
        }
    }
}

/// Events of one blob into the lines that sinks write.
fn batch(times: usize) {
    let events = events();
    let tenant: TenantId = "7f3c0000-0000-0000-0000-000000000001".parse().expect("a GUID");
    for _ in 0..times {
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

#[cfg(feature = "fluent-bit")]
fn msgpack(times: usize) {
    let events = events();
    let mut out = Vec::new();
    for _ in 0..times {
        out.clear();
        for event in &events {
            m365_audit::hosts::fluent_bit::encode::entry(&mut out, Timestamp::UNIX_EPOCH, event).expect("an object");
        }
    }
}
