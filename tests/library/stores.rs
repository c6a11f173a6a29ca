//! What every `StateStore` promises, and each of ours keeps: one suite for all. A new store adds a line to [`stores`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use m365_audit::checkpoint::format::Position;
use m365_audit::checkpoint::key::Key;
use m365_audit::checkpoint::ledger::{Change, Ledger, LedgerSettings, OpenedLedger, ServerTimeSource};
use m365_audit::clock::{Clock, TestClock};
use m365_audit::host::{Entries, Expected, Loaded, Op, Revision, StateError, StateStore};
use m365_audit::hosts::embedded::memory::MemoryStore;
use m365_audit::hosts::embedded::store::SqliteStore;
use m365_audit::hosts::postgres::members::{Beat, Introduction, Member};
use m365_audit::hosts::postgres::schema::TablesMade;
use m365_audit::hosts::postgres::{Endpoint, PostgresStore};
use m365_audit::model::{ContentType, TenantId};
use proptest::prelude::*;
use test_support::postgres::Postgres;

use crate::examples::{custom_host, state_on_disk};

/// A store, empty, and what must live as long as it does.
struct Subject {
    name: &'static str,
    store: Arc<dyn StateStore>,
    _dir: Option<tempfile::TempDir>,
}

async fn stores() -> Vec<Subject> {
    let dir = tempfile::tempdir().unwrap();
    let sqlite = SqliteStore::open(dir.path()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = state_on_disk::DiskState::open(&folder.path().join("state.sqlite")).unwrap();
    let on_disk = Subject { name: "the example's on disk", store: Arc::new(store), _dir: Some(folder) };
    let in_memory = |name, store| Subject { name, store, _dir: None };
    let mut stores = vec![
        in_memory("memory", Arc::new(MemoryStore::new()) as Arc<dyn StateStore>),
        in_memory("the example's", Arc::new(custom_host::State::default())),
        on_disk,
        Subject { name: "SQLite", store: Arc::new(sqlite), _dir: Some(dir) },
    ];
    if let Some(server) = Postgres::shared() {
        stores.push(in_memory("PostgreSQL", Arc::new(postgres(&server.database()).await)));
    }
    stores
}

/// A store on an empty database.
async fn postgres(url: &str) -> PostgresStore {
    let store = PostgresStore::new(&Endpoint::of(url, None).unwrap(), "test", clock()).unwrap();
    assert_eq!(store.make_tables(1).await, Ok(TablesMade::New));
    store
}

fn put(key: &str, value: impl Into<Bytes>, expected: Expected) -> Op {
    Op::Put { key: key.into(), value: value.into(), expected }
}

fn delete(key: &str, expected: Expected) -> Op {
    Op::Delete { key: key.into(), expected }
}

async fn value(store: &dyn StateStore, key: &str) -> Option<Bytes> {
    store.load(key).await.unwrap().map(|(value, _)| value)
}

async fn keys(store: &dyn StateStore, prefix: &str) -> Vec<String> {
    store.list(prefix).await.unwrap().into_iter().map(|(key, _)| key).collect()
}

#[tokio::test]
async fn what_was_committed_is_there_byte_for_byte_and_what_was_deleted_is_gone() {
    for Subject { name, store, .. } in stores().await {
        assert_eq!(store.load("a").await.unwrap(), None, "{name}");
        let large = Bytes::from(vec![0xff_u8; 1 << 20]);
        let values = [("a", Bytes::new()), ("b", Bytes::from_static(b"\0\xff'\"")), ("c", large)];
        let ops = values.iter().map(|(key, value)| put(key, value.clone(), Expected::Absent)).collect();
        let revision = store.commit(ops).await.unwrap();
        for (key, value) in &values {
            assert_eq!(store.load(key).await.unwrap(), Some((value.clone(), revision)), "{name} {key}");
        }
        store.commit(vec![delete("b", Expected::At(revision)), delete("nothing", Expected::Any)]).await.unwrap();
        assert_eq!(keys(&*store, "").await, ["a", "c"], "{name}");
        assert_eq!(store.load("b").await.unwrap(), None, "{name}");
    }
}

#[tokio::test]
async fn a_list_is_of_the_keys_that_begin_so_in_order_and_of_no_others() {
    for Subject { name, store, .. } in stores().await {
        let all = ["", "A/1", "a", "a%", "a/", "a/10", "a/2", "a/ä", "a/\u{10ffff}", "a0", "a_", "b/a/1"];
        let ops = all.iter().rev().map(|key| put(key, "x", Expected::Absent)).collect();
        store.commit(ops).await.unwrap();
        for prefix in ["", "a", "a/", "a%", "a_", "a/1", "A", "a/\u{10ffff}", "c", "a/10/"] {
            let expected: Vec<&str> = all.into_iter().filter(|key| key.starts_with(prefix)).collect();
            assert_eq!(keys(&*store, prefix).await, expected, "{name} {prefix:?}");
        }
    }
}

#[tokio::test]
async fn a_commit_that_meets_another_writer_names_the_key_and_changes_nothing() {
    for Subject { name, store, .. } in stores().await {
        let first = store.commit(vec![put("a", "1", Expected::Absent)]).await.unwrap();
        let second = store.commit(vec![put("a", "2", Expected::At(first))]).await.unwrap();
        assert_ne!(second, first, "{name}");
        let refused = [
            put("a", "3", Expected::At(first)),
            put("a", "3", Expected::Absent),
            put("a", "3", Expected::At(Revision(second.0 + 1))),
            delete("a", Expected::At(first)),
            delete("a", Expected::Absent),
        ];
        for op in refused {
            let ops = vec![put("b", "new", Expected::Any), op.clone(), delete("a", Expected::Any)];
            let error = store.commit(ops).await.unwrap_err();
            assert_eq!(error, StateError::Conflict { key: "a".into() }, "{name} {op:?}");
        }
        for op in [put("none", "3", Expected::At(second)), delete("none", Expected::At(second))] {
            let error = store.commit(vec![put("b", "new", Expected::Any), op.clone()]).await.unwrap_err();
            assert_eq!(error, StateError::Conflict { key: "none".into() }, "{name} {op:?}");
        }
        assert_eq!(store.list("").await.unwrap(), [("a".to_owned(), second)], "{name}");
        assert_eq!(value(&*store, "a").await, Some("2".into()), "{name}");
    }
}

#[tokio::test]
async fn a_step_sees_those_before_it_in_its_commit() {
    for Subject { name, store, .. } in stores().await {
        let again = vec![put("a", "1", Expected::Absent), put("a", "2", Expected::Absent)];
        assert_eq!(store.commit(again).await, Err(StateError::Conflict { key: "a".into() }), "{name}");
        let replaced =
            vec![put("a", "1", Expected::Absent), delete("a", Expected::Any), put("a", "2", Expected::Absent)];
        let revision = store.commit(replaced).await.unwrap();
        assert_eq!(store.load("a").await.unwrap(), Some(("2".into(), revision)), "{name}");
        store.commit(Vec::new()).await.unwrap();
        assert_eq!(store.load("a").await.unwrap(), Some(("2".into(), revision)), "{name}: a commit of nothing");
    }
}

/// Compare-and-swap is what keeps two processes apart that own the same tenant.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_writers_beside_each_other_none_overwrites_what_it_has_not_seen() {
    const EACH: usize = 20;
    for Subject { name, store, .. } in stores().await {
        let count = |store: Arc<dyn StateStore>, writer: usize| async move {
            for _ in 0..EACH {
                loop {
                    let found = store.load("counter").await.unwrap();
                    let (text, expected) = match &found {
                        None => (String::new(), Expected::Absent),
                        Some((value, revision)) => {
                            (String::from_utf8(value.to_vec()).unwrap(), Expected::At(*revision))
                        }
                    };
                    match store.commit(vec![put("counter", format!("{text}{writer}"), expected)]).await {
                        Ok(_) => break,
                        Err(StateError::Conflict { .. }) => tokio::task::yield_now().await,
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        };
        let writers: Vec<_> = (0..4).map(|writer| tokio::spawn(count(store.clone(), writer))).collect();
        for writer in writers {
            writer.await.unwrap();
        }
        let text = value(&*store, "counter").await.unwrap();
        assert_eq!(text.len(), 4 * EACH, "{name}");
        assert_eq!(text.iter().collect::<BTreeSet<_>>().len(), 4, "{name}");
    }
}

fn commits() -> impl Strategy<Value = Vec<Vec<Op>>> {
    let expected =
        prop_oneof![Just(Expected::Any), Just(Expected::Absent), (1..8u64).prop_map(|r| Expected::At(Revision(r)))];
    let op =
        ("[ab/]{0,2}|owner", "[xy]{0,3}", expected, any::<bool>()).prop_map(|(key, value, expected, is_delete)| {
            match is_delete {
                true => delete(&key, expected),
                false => put(&key, value, expected),
            }
        });
    prop::collection::vec(prop::collection::vec(op, 0..4), 0..12)
}

/// A store and the revisions it gave out, in their order: each store draws its own.
struct Numbered {
    subject: Subject,
    given: Vec<Revision>,
    prefix: &'static str,
}

impl Numbered {
    /// The n-th revision that was given out; one that never was, where there is none.
    fn nth(&self, n: u64) -> Revision {
        self.given.get(n as usize - 1).copied().unwrap_or(Revision(u64::MAX >> 2))
    }

    /// Commits steps whose revisions are numbers; the number of the revision it has, or the key in conflict.
    async fn commit(&mut self, ops: &[Op]) -> Result<usize, StateError> {
        let own = |expected| match expected {
            Expected::At(Revision(n)) => Expected::At(self.nth(n)),
            other => other,
        };
        let named = |key: &str| format!("{}{key}", self.prefix);
        let ops = ops.iter().map(|op| match op {
            Op::Put { key, value, expected } => put(&named(key), value.clone(), own(*expected)),
            Op::Delete { key, expected } => delete(&named(key), own(*expected)),
        });
        let revision = self.subject.store.commit(ops.collect()).await?;
        self.given.push(revision);
        Ok(self.given.len())
    }

    /// Everything, with the numbers of its revisions.
    async fn all(&self, prefix: &str) -> Vec<(String, usize, Bytes)> {
        let mut all = Vec::new();
        for (key, revision) in self.subject.store.list(&format!("{}{prefix}", self.prefix)).await.unwrap() {
            let (value, loaded) = self.subject.store.load(&key).await.unwrap().unwrap();
            assert_eq!(loaded, revision, "{}", self.subject.name);
            let number = self.given.iter().position(|given| *given == revision).unwrap();
            all.push((key, number, value));
        }
        all
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn all_stores_answer_the_same(commits in commits(), of_a_tenant in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let prefix = if of_a_tenant { "m365_audit/v1/7f3c0000-0000-0000-0000-000000000001/" } else { "" };
        runtime.block_on(async {
            let numbered = |subject| Numbered { subject, given: Vec::new(), prefix };
            let mut stores: Vec<Numbered> = stores().await.into_iter().map(numbered).collect();
            let (first, others) = stores.split_first_mut().unwrap();
            for ops in commits {
                let answer = first.commit(&ops).await;
                for other in &mut *others {
                    prop_assert_eq!(&other.commit(&ops).await, &answer, "{}", other.subject.name);
                }
            }
            for other in others {
                for prefix in ["", "a"] {
                    prop_assert_eq!(other.all(prefix).await, first.all(prefix).await, "{}", other.subject.name);
                }
            }
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn all_values_between_two_keys_come_in_order_a_mebibyte_or_so_at_a_time() {
    for Subject { name, store, .. } in stores().await {
        let large = Bytes::from(vec![1_u8; 600 << 10]);
        let keys = ["a/1", "a/2", "a/3", "a/4", "a/5"];
        let mut ops: Vec<Op> = keys.iter().map(|key| put(key, large.clone(), Expected::Absent)).collect();
        ops.extend(["a", "a/", "a0", "b"].map(|key| put(key, "no", Expected::Absent)));
        let revision = store.commit(ops).await.unwrap();
        let first = store.load_all("a/", "a0").await.unwrap();
        assert!(first.more, "{name}");
        let found: Vec<(&str, usize, Revision)> = first.entries.iter().map(|(k, v, r)| (&**k, v.len(), *r)).collect();
        assert_eq!(found, [("a/1", 600 << 10, revision), ("a/2", 600 << 10, revision)], "{name}");
        let mut entries = Entries::below(&*store, "a/");
        let mut all = Vec::new();
        while let Some((key, value)) = entries.next().await.unwrap() {
            assert_eq!(value, large, "{name} {key}");
            all.push(key);
        }
        assert_eq!(all, keys, "{name}");
        assert_eq!(store.load_all("b", "c").await.unwrap(), Loaded::default(), "{name}");
    }
}

/// A store whose answers to some commits are lost: they were taken, and nobody was told.
struct LosesAnswers {
    store: Arc<dyn StateStore>,
    /// Counts down to the commit whose answer is lost.
    until: AtomicUsize,
    /// Somebody else takes the tenant over before the commit is tried again.
    stolen: bool,
}

#[async_trait]
impl StateStore for LosesAnswers {
    async fn load(&self, key: &str) -> Result<Option<(Bytes, Revision)>, StateError> {
        self.store.load(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Revision)>, StateError> {
        self.store.list(prefix).await
    }

    async fn commit(&self, ops: Vec<Op>) -> Result<Revision, StateError> {
        let taken = self.store.commit(ops).await?;
        match self.until.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |until| until.checked_sub(1)) {
            Ok(1) => {
                if self.stolen {
                    opened(self.store.clone(), &clock()).await?;
                }
                Err(StateError::Unavailable("the connection was lost".into()))
            }
            _ => Ok(taken),
        }
    }
}

fn tenant() -> TenantId {
    "7f3c0000-0000-0000-0000-000000000001".parse().unwrap()
}

fn clock() -> Arc<TestClock> {
    Arc::new(TestClock::at("2026-11-30T00:00:00Z".parse().unwrap()))
}

async fn opened(store: Arc<dyn StateStore>, clock: &Arc<TestClock>) -> Result<OpenedLedger, StateError> {
    let settings = LedgerSettings {
        tenant: tenant(),
        content_types: ContentType::ALL.to_vec(),
        event_keys_max: 1_000,
        receipts: None,
        fills_gaps: false,
        server_time: ServerTimeSource::default(),
    };
    Ledger::open(store, clock.clone(), &settings, Box::new(|_| {})).await
}

/// What `work` comes to, with a clock that goes on whenever everybody waits for it.
async fn driven<T>(clock: &TestClock, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::task::yield_now() => drop(clock.advance_to_next_sleeper()),
        }
    }
}

const COMMITS: usize = 6;

/// Hands in `COMMITS` changes of one event and a position each; the results, and how the writer ended.
async fn write(store: Arc<dyn StateStore>) -> (Vec<Result<(), StateError>>, Result<(), StateError>) {
    let clock = clock();
    let OpenedLedger { ledger, handle, .. } = opened(store, &clock).await.unwrap();
    let running = tokio::spawn(ledger.run());
    let mut results = Vec::new();
    for n in 0..COMMITS {
        let delivered = vec![Key::of_anonymous("blob", format!("event {n}").as_bytes(), 0)];
        let positions = BTreeMap::from([(ContentType::General, Position::first(clock.now()))]);
        results.push(driven(&clock, handle.commit(Change { delivered, positions, ..Change::default() })).await);
    }
    drop(handle);
    (results, running.await.unwrap())
}

#[tokio::test]
async fn a_writer_whose_answer_is_lost_knows_its_commit_and_goes_on() {
    // The first commit is the one that takes the tenant over.
    for lost in 2..=COMMITS + 1 {
        for Subject { name, store, _dir } in stores().await {
            let losing = LosesAnswers { store: store.clone(), until: AtomicUsize::new(lost), stolen: false };
            let (results, end) = write(Arc::new(losing)).await;
            assert_eq!((results, end), (vec![Ok(()); COMMITS], Ok(())), "{name}, answer {lost} lost");
            let OpenedLedger { events, .. } = opened(store, &clock()).await.unwrap();
            assert_eq!(events.with_keys(|keys| keys.len()), COMMITS as u64, "{name}, answer {lost} lost");
        }
    }
}

#[tokio::test]
async fn a_writer_whose_answer_is_lost_and_with_it_the_tenant_is_told() {
    for lost in 2..=COMMITS + 1 {
        for Subject { name, store, _dir } in stores().await {
            let losing = LosesAnswers { store, until: AtomicUsize::new(lost), stolen: true };
            let (results, end) = write(Arc::new(losing)).await;
            assert!(matches!(end, Err(StateError::Conflict { .. })), "{name}, answer {lost} lost: {end:?}");
            assert_eq!(results.iter().filter(|result| result.is_ok()).count(), lost - 2, "{name}, answer {lost} lost");
        }
    }
}

/// What an asynchronous failover does: the store goes back to what it was some commits ago, and another owner goes on
/// from there. Were revisions counted, the first owner's next would fit.
#[tokio::test]
async fn no_revision_is_given_out_again_after_a_store_lost_commits() {
    for (Subject { name, store, _dir }, restored) in stores().await.into_iter().zip(stores().await) {
        let before = store.commit(vec![put("owner", "first", Expected::Absent)]).await.unwrap();
        // What was restored from a backup of the empty store.
        let other = restored.store.commit(vec![put("owner", "second", Expected::Absent)]).await.unwrap();
        assert_ne!(other, before, "{name} counts: draw revisions at random, `Revision::draw`");
        let lost = store.commit(vec![put("owner", "first", Expected::At(before))]).await.unwrap();
        store.commit(vec![delete("owner", Expected::At(lost))]).await.unwrap();
        store.commit(vec![put("owner", "second", Expected::Absent)]).await.unwrap();
        let again = store.commit(vec![put("owner", "second", Expected::Any)]).await.unwrap();
        assert!(again != lost && again != before, "{name}");
        let stale = store.commit(vec![put("owner", "first", Expected::At(lost)), delete("held", Expected::Any)]).await;
        assert_eq!(stale, Err(StateError::Conflict { key: "owner".into() }), "{name}");
    }
}

/// A store that counts what it is asked.
struct Counting {
    store: Arc<dyn StateStore>,
    asked: AtomicUsize,
}

impl Counting {
    fn asked(&self) {
        self.asked.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl StateStore for Counting {
    async fn load(&self, key: &str) -> Result<Option<(Bytes, Revision)>, StateError> {
        self.asked();
        self.store.load(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Revision)>, StateError> {
        self.asked();
        self.store.list(prefix).await
    }

    async fn commit(&self, ops: Vec<Op>) -> Result<Revision, StateError> {
        self.asked();
        self.store.commit(ops).await
    }

    async fn load_all(&self, after: &str, before: &str) -> Result<Loaded, StateError> {
        self.asked();
        self.store.load_all(after, before).await
    }

    fn read_ahead_bytes(&self) -> usize {
        self.store.read_ahead_bytes()
    }
}

/// A takeover of a tenant with some days behind it: four statements, and with the two of a source's back-fill and gaps
/// six.
#[tokio::test]
async fn a_tenant_is_opened_from_postgresql_in_few_statements() {
    let Some(server) = Postgres::shared() else { return };
    let store: Arc<dyn StateStore> = Arc::new(postgres(&server.database()).await);
    let (results, end) = write(store.clone()).await;
    assert_eq!((results, end), (vec![Ok(()); COMMITS], Ok(())));
    let prefix = format!("m365_audit/v1/{}/", tenant());
    // A sealed part of a month's receipts is read by nobody at a start.
    let sealed =
        (0..50).map(|n| put(&format!("{prefix}receipts/sealed/{n:016x}/0"), vec![7_u8; 60_000], Expected::Any));
    store.commit(sealed.collect()).await.unwrap();
    let counting = Arc::new(Counting { store, asked: AtomicUsize::new(0) });
    let OpenedLedger { events, .. } = opened(counting.clone(), &clock()).await.unwrap();
    assert_eq!(events.with_keys(|keys| keys.len()), COMMITS as u64);
    assert_eq!(counting.asked.load(Ordering::SeqCst), 4, "owner, range, tenant, commit");
}

/// A damaged row is told, and nothing is made of it.
#[tokio::test]
async fn a_damaged_row_in_postgresql_is_told_by_its_key() {
    let Some(server) = Postgres::shared() else { return };
    let url = server.database();
    let store = postgres(&url).await;
    let key = format!("m365_audit/v1/{}/Audit.General/position", tenant());
    store.commit(vec![put(&key, "what was written", Expected::Any)]).await.unwrap();
    let name = url.rsplit('/').next().unwrap().split('?').next().unwrap();
    server.sql(name, "update kv set value = 'what was not written'");
    let corrupt = StateError::Corrupt { key: key.clone(), why: "it does not match its checksum".into() };
    assert_eq!(store.load(&key).await, Err(corrupt.clone()));
    assert_eq!(
        store.load_all(&format!("m365_audit/v1/{}/", tenant()), &format!("m365_audit/v1/{}0", tenant())).await,
        Err(corrupt)
    );
}

#[tokio::test]
async fn tables_of_a_newer_build_are_left_alone_and_missing_ones_name_the_command_that_makes_them() {
    let Some(server) = Postgres::shared() else { return };
    let url = server.database();
    let store = PostgresStore::new(&Endpoint::of(&url, None).unwrap(), "test", clock()).unwrap();
    for error in [store.verify_tables().await.unwrap_err(), store.load("a").await.unwrap_err()] {
        assert!(error.to_string().contains("cluster init"), "{error}");
    }
    // In parts, and again: what is there stays.
    assert_eq!(store.make_tables(4).await, Ok(TablesMade::New));
    store.commit(vec![put("a", "1", Expected::Absent)]).await.unwrap();
    assert_eq!(store.make_tables(1).await, Ok(TablesMade::Known));
    assert_eq!(value(&store, "a").await, Some("1".into()));
    let name = url.rsplit('/').next().unwrap().split('?').next().unwrap();
    server.sql(name, "update meta set value = 999 where name = 'schema'");
    for error in [store.verify_tables().await.unwrap_err(), store.make_tables(1).await.unwrap_err()] {
        assert!(error.to_string().contains("999"), "{error}");
    }
}

/// A standby takes no commit, and says why.
#[tokio::test]
async fn a_server_that_cannot_be_written_is_not_taken() {
    let Some(server) = Postgres::start("default_transaction_read_only=on fsync=off") else { return };
    let store = PostgresStore::new(&Endpoint::of(&server.url("postgres"), None).unwrap(), "test", clock()).unwrap();
    let error = store.load("a").await.unwrap_err();
    assert!(matches!(&error, StateError::Unavailable(why) if why.contains("does not allow writes")), "{error}");
}

#[tokio::test]
async fn only_a_heartbeat_in_time_keeps_a_member_alive_and_a_name_has_one_life() {
    let Some(server) = Postgres::shared() else { return };
    let store = postgres(&server.database()).await;
    let said = |secs: u64| Introduction {
        id: "one".into(),
        weight: 1,
        address: String::new(),
        lease: Duration::from_millis(secs * 100),
    };
    let mut member = Member::new(store.clone(), said(600));
    assert_eq!(member.join().await, Ok(false));
    assert_eq!(member.beat().await, Ok(Beat::Alive));
    let mut other = Member::new(store.clone(), said(1));
    assert_eq!(other.join().await, Ok(true), "the name was in use");
    assert_eq!(member.beat().await, Ok(Beat::Replaced));
    assert_eq!(store.peers().await.unwrap().len(), 1);
    // The store's clock alone says when.
    while !store.peers().await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(other.beat().await, Ok(Beat::Expired), "a heartbeat revives nobody");
    let mut again = Member::new(store.clone(), said(600));
    assert_eq!(again.join().await, Ok(false));
    assert_eq!(again.beat().await, Ok(Beat::Alive));
    again.leave().await.unwrap();
    assert_eq!(store.members().await.unwrap(), []);
}

#[tokio::test]
async fn a_server_is_believed_by_the_authority_that_is_named_and_by_its_own_name_alone() {
    let made = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    };
    let (certificate, key) = made("localhost");
    let Some(server) = Postgres::start_with_tls(&certificate, &key) else { return };
    let rows = [
        ("localhost", Some(certificate.as_str()), "cluster init"),
        // The certificate is of another name, of an authority nobody named, or none is asked for.
        ("127.0.0.1", Some(certificate.as_str()), "certificate"),
        ("localhost", None, "certificate"),
    ];
    for (host, ca, expected) in rows {
        let url = format!("postgres://postgres@{host}:{}/postgres?sslmode=verify-full", server.port());
        let endpoint = Endpoint::of(&url, ca.map(str::as_bytes)).unwrap();
        let error = PostgresStore::new(&endpoint, "test", clock()).unwrap().verify_tables().await.unwrap_err();
        assert!(error.to_string().contains(expected), "{host}: {error}");
    }
    let plain = Endpoint::of(&server.url("postgres"), None).unwrap();
    let error = PostgresStore::new(&plain, "test", clock()).unwrap().verify_tables().await.unwrap_err();
    assert!(error.to_string().contains("no encryption"), "{error}");
}
