//! What goes wrong around the processes: the network between one of them and the database or Microsoft, their clocks, the disk
//! of the database.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// Packets that get through: neither way, one way, both.
pub(super) const CUT: u8 = 0;
pub(super) const TO: u8 = 1;
pub(super) const FROM: u8 = 2;
pub(super) const OPEN: u8 = TO | FROM;

/// The network between a process and a server. What is sent while it is cut is not lost: it comes when it is open again, as
/// TCP sends again what nobody acknowledged; so a statement may reach the database long after its sender gave it up.
pub(super) struct Wire {
    pub(super) port: u16,
    state: Arc<AtomicU8>,
    task: tokio::task::JoinHandle<()>,
}

impl Wire {
    pub(super) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let state = Arc::new(AtomicU8::new(OPEN));
        let passes = state.clone();
        let task = tokio::spawn(async move {
            loop {
                let Ok((near, _)) = listener.accept().await else { continue };
                let passes = passes.clone();
                tokio::spawn(async move {
                    until(&passes, OPEN).await;
                    let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    let (near_reads, near_writes) = near.into_split();
                    let (far_reads, far_writes) = far.into_split();
                    tokio::join!(
                        carry(near_reads, far_writes, &passes, TO),
                        carry(far_reads, near_writes, &passes, FROM)
                    );
                });
            }
        });
        Self { port: own, state, task }
    }

    pub(super) fn set(&self, passes: u8) {
        self.state.store(passes, Ordering::Relaxed);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn until(state: &AtomicU8, passes: u8) {
    while state.load(Ordering::Relaxed) & passes != passes {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One direction of a connection, to its end.
async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, state: &AtomicU8, passes: u8) {
    let mut bytes = vec![0; 65536];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        until(state, passes).await;
        if to.write_all(&bytes[..read]).await.is_err() {
            break;
        }
    }
    until(state, passes).await;
    let _ = to.shutdown().await;
}

impl Fleet {
    /// The database behind a wire, for this process.
    pub(super) async fn wire(&mut self, worker: usize) -> Wire {
        let port = self.server.port();
        let wire = Wire::to(port).await;
        let url = self.url.replace(&format!("127.0.0.1:{port}"), &format!("127.0.0.1:{}", wire.port));
        self.urls.insert(worker, url);
        wire
    }

    fn files_of(&self, worker: usize) -> usize {
        fs::read_to_string(self.at(format!("out-{worker}"))).unwrap_or_default().lines().count()
    }
}

/// Whichever direction is cut: the process hands nothing over and asks nothing once its lease is not sure, the other one takes
/// its tenants, and afterwards it begins anew. What it sent to the database before arrives late and is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_cut_off_from_the_database_stands_still_and_others_go_on() {
    let Some(mut fleet) = Fleet::new(6).await else { return };
    let wire = fleet.wire(1).await;
    fleet.add_for_all("first");
    fleet.start(1);
    fleet.until_delivered("the first events").await;
    fleet.start(0);
    fleet.until("both are there", || fleet.cluster_status().starts_with("2 members")).await;
    for (round, passes) in [CUT, TO, FROM].into_iter().enumerate() {
        fleet.until_settled("all before it is cut off").await;
        wire.set(passes);
        // Asked for while the lease is sure yet, or not at all: at most what this very moment has under way.
        fleet.until("the other has all", || fleet.shares() == BTreeMap::from([("worker-0".into(), 6)])).await;
        let before = fleet.files_of(1);
        fleet.add_for_all(&format!("cut-{round}"));
        fleet.until_delivered("by the other").await;
        assert_eq!(fleet.files_of(1), before, "round {round}: it stands still");
        let lost = fleet.said("lease-lost: ");
        wire.set(OPEN);
        fleet.until("it begins anew", || fleet.said("lease-lost: ") > lost).await;
        fleet.add_for_all(&format!("open-{round}"));
        fleet.until_delivered("after it").await;
        // So that the next round takes something from it.
        fleet.end(0, "-TERM");
        fleet.until("it has all again", || fleet.shares() == BTreeMap::from([("worker-1".into(), 6)])).await;
        fleet.start(0);
        fleet.until("both are there again", || fleet.cluster_status().starts_with("2 members")).await;
    }
    assert!(fleet.end(0, "-TERM") && fleet.end(1, "-TERM"), "{}", fleet.logs());
    assert_eq!(fleet.twice(), 0, "{}", fleet.logs());
}

/// Who is cut off in the middle of its work repeats no more than what was at the sink at that moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_under_way_when_a_process_is_cut_off_comes_twice_at_most() {
    let Some(mut fleet) = Fleet::new(4).await else { return };
    let wire = fleet.wire(1).await;
    fleet.start(1);
    fleet.until("it has all", || fleet.shares() == BTreeMap::from([("worker-1".into(), 4)])).await;
    fleet.start(0);
    for round in 0..3 {
        (0..10).for_each(|blob| fleet.add_for_all(&format!("busy-{round}-{blob}")));
        let so_far = fleet.delivered().len();
        fleet.until("it works", || fleet.delivered().len() > so_far).await;
        wire.set([FROM, TO, CUT][round]);
        fleet.until_delivered("by the other").await;
        wire.set(OPEN);
    }
    assert!(fleet.end(0, "-TERM") && fleet.end(1, "-TERM"), "{}", fleet.logs());
    let (twice, all) = (fleet.twice(), fleet.events.len());
    println!("cut off from the database at work, three times: {all} events, {twice} twice");
    // Of each tenant a few blobs are under way at a time.
    assert!(twice <= 3 * 4 * 4 * EVENTS_PER_BLOB, "{twice} of {all}");
}

/// The tenants stay with a member that Microsoft does not answer: it is alive, and the others would fare no better as far as
/// anybody knows. It goes on by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_cut_off_from_microsoft_goes_on_where_it_was() {
    let Some(mut fleet) = Fleet::new(3).await else { return };
    let wire = Wire::to(fleet.sim.address().port()).await;
    fleet.add_for_all("first");
    let (sim, through) = (fleet.sim.url(), format!("http://127.0.0.1:{}", wire.port));
    fleet.start_with(0, |text| text.replace(&sim, &through), &[]);
    fleet.until_delivered("the first events").await;
    wire.set(CUT);
    fleet.add_for_all("cut");
    tokio::time::sleep(LEASE * 2).await;
    assert_eq!(fleet.shares(), BTreeMap::from([("worker-0".into(), 3)]));
    wire.set(OPEN);
    fleet.until_delivered("afterwards").await;
    assert!(fleet.end(0, "-TERM"), "{}", fleet.logs());
    assert_eq!(fleet.twice(), 0);
}

/// Nothing of a cluster goes by the time of day of its members: one that is an hour ahead and one that is an hour behind
/// share the tenants and take them over from each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_whose_clocks_are_hours_apart_take_over_from_each_other() {
    let Some(library) = test_support::library_of_faketime() else { return };
    let Some(mut fleet) = Fleet::new(8).await else { return };
    fleet.add_for_all("first");
    for (worker, offset) in [(0, "+1h"), (1, "-1h"), (2, "+0")] {
        let clock =
            [("LD_PRELOAD", library.to_str().unwrap()), ("FAKETIME", offset), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
        fleet.start_with(worker, |text| text, &clock);
    }
    fleet.until("all three are there", || fleet.cluster_status().starts_with("3 members, 8 tenants, 0 ")).await;
    fleet.until_settled("the first events").await;
    // The clocks are what they are said to be: each log line has its own.
    let stamp = |worker: usize| -> jiff::Timestamp {
        let log = fs::read_to_string(fleet.at(format!("log-{worker}"))).unwrap();
        log.lines()
            .find(|line| line.contains("joined the cluster"))
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap()
    };
    let apart = (stamp(0) - stamp(1)).as_secs();
    assert!((7000..7400).contains(&apart), "{apart} s");
    for round in 0..2 {
        let worker = fleet.busiest();
        let (name, signal) = (format!("worker-{worker}"), ["-KILL", "-STOP"][round]);
        if round == 0 {
            fleet.end(worker, signal);
        } else {
            fleet.signal(worker, signal);
        }
        fleet.add_for_all(&format!("round-{round}"));
        fleet
            .until("others have all", || !fleet.shares().contains_key(&name) && !fleet.shares().contains_key("nobody"))
            .await;
        fleet.until_settled("by the others").await;
        if round == 1 {
            fleet.signal(worker, "-CONT");
        }
    }
    fleet.add_for_all("last");
    fleet.until_delivered("the last events").await;
    let workers: Vec<usize> = fleet.workers.keys().copied().collect();
    for worker in workers {
        assert!(fleet.end(worker, "-TERM"), "{}", fleet.logs());
    }
    assert_eq!(fleet.twice(), 0, "{}", fleet.logs());
}

/// The database's disk is full, so that it takes no commit or ends; then there is room again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_whose_disk_is_full_loses_nothing_and_work_goes_on_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = test_support::Mounted::at(&folder.path().join("disk"), "size=160m") else { return };
    let Some(server) = Postgres::start_in(&disk.path().join("postgres"), "max_wal_size=64MB") else { return };
    let mut fleet = Fleet::on(server, 4).await;
    fleet.add_for_all("first");
    (0..2).for_each(|worker| fleet.start(worker));
    fleet.until_delivered("the first events").await;
    let ballast = disk.path().join("ballast");
    let full = fs::File::create(&ballast).and_then(|mut file| std::io::copy(&mut std::io::repeat(0), &mut file));
    assert_eq!(full.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    // Until there is no room in what the database has taken already.
    let (begun, mut round) = (Instant::now(), 0);
    while fleet.said("cluster-store-away") + fleet.said("state-not-written") == 0 {
        assert!(begun.elapsed() < PATIENCE, "{}", fleet.logs());
        round += 1;
        let text = format!("insert into filler select repeat('x', 1000) from generate_series(1, 2000) -- {round}");
        let _ = fleet.server.try_sql("postgres", "create table if not exists filler (text text)");
        let _ = fleet.server.try_sql("postgres", &text);
        tokio::time::sleep(Duration::from_millis(100)).await;
        if round % 20 == 0 {
            fleet.add_for_all(&format!("filling-{round}"));
        }
    }
    fleet.add_for_all("full");
    tokio::time::sleep(LEASE * 2).await;
    assert!(fleet.workers.values_mut().all(|child| child.try_wait().unwrap().is_none()), "{}", fleet.logs());
    fs::remove_file(&ballast).unwrap();
    fleet.server.revive();
    fleet.until_delivered("when there is room").await;
    fleet.add_for_all("after");
    fleet.until_delivered("and afterwards").await;
    for worker in 0..2 {
        assert!(fleet.end(worker, "-TERM"), "{}", fleet.logs());
    }
    println!("disk full: {} events, {} twice", fleet.events.len(), fleet.twice());
    assert!(fleet.twice() <= 4 * 4 * EVENTS_PER_BLOB, "{}", fleet.logs());
}
