//! A fleet under load and under blows, into a receiver that counts how often each event came.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::routing::post;
use parking_lot::Mutex;

use super::cut_off::{CUT, FROM, OPEN, TO, Wire};
use super::*;

const EVENTS_OF_A_BLOB: usize = 250;
/// So many events are on their way at a time, at most: with more the blows would hit nothing but the beginning.
const WAITING_MAX: usize = 40_000;
const WORKERS_MAX: usize = 8;
/// Blows of a run, about: they come by events and not by time, so that a run says the same on every machine.
const BLOWS: usize = 50;
/// Of the events of a run so many may come again, at most, where the run is long enough for its blows to be rare.
const AGAIN_MAX: f64 = 0.001;
const LONG: usize = 10_000_000;

/// How often each event came, by its number.
#[derive(Default)]
struct Counts {
    times: Vec<u8>,
    distinct: usize,
    repeats: usize,
}

impl Counts {
    fn count(&mut self, body: &[u8]) {
        const KEY: &[u8] = b"\"event_id\":\"e";
        for at in memchr::memmem::find_iter(body, KEY) {
            let number =
                body.get(at + KEY.len()..at + KEY.len() + 10).and_then(|digits| std::str::from_utf8(digits).ok());
            let Some(number) = number.and_then(|digits| digits.parse::<usize>().ok()) else { continue };
            if self.times.len() <= number {
                self.times.resize(number + 1, 0);
            }
            match self.times[number] {
                0 => self.distinct += 1,
                _ => self.repeats += 1,
            }
            self.times[number] = self.times[number].saturating_add(1);
        }
    }
}

async fn take(counts: State<Arc<Mutex<Counts>>>, body: Bytes) {
    counts.lock().count(&body);
}

/// A receiver on a port of loopback.
async fn receiver() -> (u16, Arc<Mutex<Counts>>) {
    let counts = Arc::new(Mutex::new(Counts::default()));
    let router = Router::new().route("/", post(take)).layer(DefaultBodyLimit::disable()).with_state(counts.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (port, counts)
}

/// What is undone later.
enum Recovery {
    Wake(usize),
    Open(usize),
    Resume,
}

struct Storm {
    fleet: Fleet,
    wires: Vec<Wire>,
    random: fastrand::Rng,
    due: Vec<(Instant, Recovery)>,
    blows: BTreeMap<&'static str, usize>,
    /// Those that sleep or are cut off.
    hit: BTreeSet<usize>,
    store_is_away: bool,
    grows: bool,
}

impl Storm {
    fn blow(&mut self) {
        let awake: Vec<usize> =
            self.fleet.workers.keys().copied().filter(|worker| !self.hit.contains(worker)).collect();
        let Some(worker) = self.random.choice(awake) else { return };
        let tenths = self.random.u32(5..50);
        let later = Instant::now() + LEASE * tenths / 10;
        let name = match self.random.u8(0..7) {
            0 => {
                self.fleet.end(worker, "-KILL");
                self.fleet.start(worker);
                "killed"
            }
            1 => {
                assert!(self.fleet.end(worker, "-TERM"), "{}", self.fleet.logs());
                self.fleet.start(worker);
                "ended"
            }
            2 => {
                self.fleet.signal(worker, "-STOP");
                self.hit.insert(worker);
                self.due.push((later, Recovery::Wake(worker)));
                "stopped"
            }
            3 | 4 => {
                self.wires[worker].set([CUT, TO, FROM][self.random.usize(..3)]);
                self.hit.insert(worker);
                self.due.push((later, Recovery::Open(worker)));
                "cut off"
            }
            5 if !self.store_is_away && self.random.bool() => {
                self.fleet.server.kill();
                self.store_is_away = true;
                let later = Instant::now() + Duration::from_millis(self.random.u64(500..8000));
                self.due.push((later, Recovery::Resume));
                "database killed"
            }
            _ => return self.scale(),
        };
        *self.blows.entry(name).or_default() += 1;
    }

    /// From the few there were to many, and back.
    fn scale(&mut self) {
        let there = self.fleet.workers.len();
        self.grows = if there <= 2 { true } else { self.grows && there < WORKERS_MAX };
        if self.grows {
            let new = (0..WORKERS_MAX).find(|worker| !self.fleet.workers.contains_key(worker)).unwrap();
            self.fleet.start(new);
            *self.blows.entry("joined").or_default() += 1;
        } else if let Some(worker) = self.fleet.workers.keys().copied().find(|worker| !self.hit.contains(worker)) {
            assert!(self.fleet.end(worker, "-TERM"), "{}", self.fleet.logs());
            *self.blows.entry("left").or_default() += 1;
        }
    }

    /// A process that was started while it could not reach the database has ended with an error: it is started again, as a
    /// supervisor would.
    fn supervise(&mut self) {
        let ended: Vec<usize> = {
            let is_over = |(worker, child): (&usize, &mut Child)| child.try_wait().unwrap().map(|_| *worker);
            self.fleet.workers.iter_mut().filter_map(is_over).collect()
        };
        for worker in ended {
            self.fleet.workers.remove(&worker);
            self.fleet.start(worker);
            *self.blows.entry("ended by itself").or_default() += 1;
        }
    }

    /// Undoes what is due; `all`: whatever was done.
    fn recover(&mut self, all: bool) {
        let now = Instant::now();
        let (due, rest) = std::mem::take(&mut self.due).into_iter().partition(|(at, _)| all || *at <= now);
        self.due = rest;
        let due: Vec<(Instant, Recovery)> = due;
        for (_, recovery) in due {
            match recovery {
                Recovery::Wake(worker) => {
                    self.fleet.signal(worker, "-CONT");
                    self.hit.remove(&worker);
                }
                Recovery::Open(worker) => {
                    self.wires[worker].set(OPEN);
                    self.hit.remove(&worker);
                }
                Recovery::Resume => {
                    self.fleet.server.resume();
                    self.store_is_away = false;
                }
            }
        }
    }
}

/// So many events through a fleet that is struck all the while; how many came twice.
async fn storm(tenants: usize, events: usize, seed: u64) -> Option<usize> {
    let mut fleet = Fleet::new(tenants).await?;
    let (port, counts) = receiver().await;
    fleet.keys = "in_flight_bytes_max = 4194304".into();
    fleet.sink = Some(format!("type = \"http\"\nuri = \"http://127.0.0.1:{port}/\"\n"));
    let mut wires = Vec::new();
    for worker in 0..WORKERS_MAX {
        wires.push(fleet.wire(worker).await);
    }
    let mut storm = Storm {
        fleet,
        wires,
        random: fastrand::Rng::with_seed(seed),
        due: Vec::new(),
        blows: BTreeMap::new(),
        hit: BTreeSet::new(),
        store_is_away: false,
        grows: true,
    };
    (0..5).for_each(|worker| storm.fleet.start(worker));
    let begun = Instant::now();
    let (mut published, mut seen, mut next_blow) = (0, (0, begun), events / BLOWS);
    loop {
        let came = counts.lock().distinct;
        if came > seen.0 {
            seen = (came, Instant::now());
        }
        if came == events {
            break;
        }
        let is_stuck = seen.1.elapsed() > PATIENCE * 2;
        assert!(!is_stuck, "{came} of {published} came\n{}\n{}", storm.fleet.cluster_status(), storm.fleet.logs());
        while published < events && published - came < WAITING_MAX {
            let now = storm.fleet.sim.now() - jiff::SignedDuration::from_mins(10);
            let count = EVENTS_OF_A_BLOB.min(events - published);
            let event = |number: usize| {
                format!(
                    r#"{{"Id":"e{number:010}","CreationTime":"{now}","Operation":"Test","RecordType":1,"Workload":"X"}}"#
                )
            };
            let blob = NewBlob::at(now).with_events((published..published + count).map(event));
            let number = storm.random.usize(..tenants);
            storm.fleet.sim.add_blob(&tenant(number), ContentType::General, blob);
            published += count;
        }
        storm.recover(published == events);
        storm.supervise();
        if published < events && came >= next_blow {
            next_blow += storm.random.usize(1..events * 2 / BLOWS);
            storm.blow();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let lasted = begun.elapsed();
    storm.recover(true);
    // What is repeated yet comes now.
    tokio::time::sleep(LEASE * 3).await;
    let workers: Vec<usize> = storm.fleet.workers.keys().copied().collect();
    for worker in workers {
        assert!(storm.fleet.end(worker, "-TERM"), "{}", storm.fleet.logs());
    }
    let counts = counts.lock();
    assert_eq!((counts.distinct, counts.times.len()), (events, events));
    println!(
        "seed {seed}: {events} events of {tenants} tenants in {} s, 2 to {WORKERS_MAX} processes, {:?}: 0 lost, {} came again ({:.3} %)",
        lasted.as_secs(),
        storm.blows,
        counts.repeats,
        counts.repeats as f64 * 100.0 / events as f64
    );
    let again = counts.repeats as f64 / events as f64;
    assert!(events < LONG || again <= AGAIN_MAX, "seed {seed}: {again}");
    Some(counts.repeats)
}

/// `FLEET_EVENTS=10000000 FLEET_SEEDS=1,2,3 cargo test --release --test program -- --ignored --nocapture cluster::scale`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes for each million of events"]
async fn millions_of_events_under_blows_are_all_there() {
    let events = std::env::var("FLEET_EVENTS").ok().map_or(1_000_000, |text| text.parse().unwrap());
    let seeds = std::env::var("FLEET_SEEDS").unwrap_or_else(|_| "1,2,3".into());
    for seed in seeds.split(',').map(|seed| seed.parse().unwrap()) {
        if storm(200, events, seed).await.is_none() {
            return;
        }
    }
}
