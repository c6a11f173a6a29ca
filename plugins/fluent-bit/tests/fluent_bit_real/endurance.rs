//! The plugin in a real Fluent Bit for long: hundreds of starts and stops, a state kept by another process, an hour of
//! flow. Too long for every change, so these tests are ignored by default: `.ci/fluent-bit` runs them, and documents
//! the variables below.
//!
//! A crash is any end of Fluent Bit that is not that of a signal sent from here. The records are compared with
//! everything the simulated tenant has published.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use m365_audit::sim::SimConfig;

use crate::agent::{Agent, Build, Setup, fluent_bit};
use crate::support::{Service, wait_until};

/// Starts in all, half of them threaded.
const STARTS: &str = "FLUENT_BIT_STARTS";
/// Minutes of flow, in both modes at a time.
const MINUTES: &str = "FLUENT_BIT_MINUTES";
/// A `data_dir` that another run has left, and its tenant.
const KEPT_STATE: &str = "FLUENT_BIT_KEPT_STATE";
const KEPT_TENANT: &str = "FLUENT_BIT_KEPT_TENANT";

/// Starts beside a kept state, in each mode.
const KEPT_STARTS: usize = 20;
/// Between two blobs of the flow.
const PUBLISH_EVERY: Duration = Duration::from_secs(5);
const EVENTS_PER_BLOB: usize = 20;
/// The interval of progress lines.
const TELL_EVERY: Duration = Duration::from_secs(300);

fn modes() -> [(&'static str, Setup); 2] {
    [("threaded: off", Setup::safe()), ("threaded: on", Setup::threaded())]
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is {text}")))
}

/// `None`: there is none. A build without the packages' `malloc` is reported and refused, unless requested.
fn packaged() -> Option<()> {
    let build = Build::of(&fluent_bit()?);
    let any = std::env::var_os("FLUENT_BIT_ANY_BUILD").is_some();
    assert!(build.has_own_malloc() || any, "{build}; FLUENT_BIT_ANY_BUILD=1 runs with it all the same");
    Some(())
}

/// Runs `each` in both modes at a time.
fn in_both_modes(each: impl Fn(&'static str, &Setup) + Sync) {
    std::thread::scope(|scope| {
        for (mode, setup) in modes() {
            let each = &each;
            scope.spawn(move || each(mode, &setup));
        }
    });
}

/// Every second start is stopped at a random moment, the others when everything has arrived.
#[test]
#[ignore = "long: .ci/fluent-bit runs it"]
fn starts_and_stops() {
    let starts = number(STARTS, 500) / 2;
    if packaged().is_none() {
        return;
    }
    in_both_modes(|mode, setup| {
        let service = Service::new(1);
        service.publish(20, 100);
        let Some(mut agent) = Agent::new(&service.properties(), setup) else { return };
        let (mut random, mut early) = (fastrand::Rng::with_seed(11), 0);
        for start in 0..starts {
            service.publish_now(1, 2);
            agent.start();
            if start % 2 == 0 {
                agent.wait_until_all(&service);
            } else {
                std::thread::sleep(Duration::from_millis(random.u64(0..1_500)));
            }
            agent.signal("TERM");
            let status = agent.wait();
            // Before Fluent Bit has installed its signal handler, the signal itself ends it.
            let ended_by_it = status.signal() == Some(15);
            early += usize::from(ended_by_it);
            assert!(status.success() || ended_by_it, "{mode}: start {start}, {status}:\n{}", agent.last_lines());
            if start % 50 == 49 {
                println!("{mode}: {} starts and stops", start + 1);
            }
        }
        agent.start();
        agent.wait_until_all(&service);
        agent.terminate();
        service.assert_nothing_lost(&agent.records());
        let comparison = service.compare(&agent.records());
        println!(
            "{mode}: {} starts and stops ({early} before Fluent Bit was ready), no crash; {comparison}",
            starts + 1
        );
    });
}

#[test]
#[ignore = "long: .ci/fluent-bit runs it"]
fn a_kept_state_of_another_run() {
    if packaged().is_none() {
        return;
    }
    let Some(kept) = std::env::var_os(KEPT_STATE).map(PathBuf::from) else {
        return test_support::skip("kept-state", format_args!("{KEPT_STATE} is not set"));
    };
    let tenant = std::env::var(KEPT_TENANT).unwrap_or_else(|_| panic!("{KEPT_TENANT} is missing"));
    in_both_modes(|mode, setup| {
        let service = Service::of(SimConfig { tenants: vec![tenant.parse().unwrap()], ..SimConfig::default() });
        service.publish(20, 50);
        let Some(mut agent) = Agent::new(&service.properties(), setup) else { return };
        let mut crashes = Vec::new();
        for start in 0..KEPT_STARTS {
            // The state is restored each time.
            copy(&kept, &agent.path("state"));
            service.publish_now(1, 20);
            agent.start();
            let before = agent.records().len();
            wait_until("records, or an end", || agent.has_ended() || agent.records().len() > before);
            let status = match agent.has_ended() {
                true => agent.wait(),
                false => {
                    agent.signal("TERM");
                    agent.wait()
                }
            };
            if !status.success() {
                crashes.push(format!("start {start}: {status}"));
            }
        }
        assert!(crashes.is_empty(), "{mode}: {} of {KEPT_STARTS} starts crash: {crashes:?}", crashes.len());
        println!("{mode}: {KEPT_STARTS} starts beside {}, no crash", kept.display());
    });
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
#[ignore = "long: .ci/fluent-bit runs it"]
fn flow() {
    let time = Duration::from_secs(60 * number(MINUTES, 60) as u64);
    if packaged().is_none() {
        return;
    }
    in_both_modes(|mode, setup| {
        let service = Service::new(1);
        let mut properties = service.properties();
        properties.retain(|(key, _)| key != "poll_interval_secs");
        properties.push(("poll_interval_secs".to_owned(), "5s".to_owned()));
        let Some(mut agent) = Agent::new(&properties, setup) else { return };
        agent.start();
        let begun = Instant::now();
        let mut told = Duration::ZERO;
        while begun.elapsed() < time {
            service.publish_now(1, EVENTS_PER_BLOB);
            std::thread::sleep(PUBLISH_EVERY);
            assert!(!agent.has_ended(), "{mode}: it has ended after {:?}:\n{}", begun.elapsed(), agent.last_lines());
            if begun.elapsed() > told + TELL_EVERY {
                told = begun.elapsed();
                let published = service.sim.truth().event_count();
                println!("{mode}: {} min, {published} events published, {}", told.as_secs() / 60, agent.memory());
            }
        }
        agent.wait_until_all(&service);
        agent.terminate();
        service.assert_nothing_lost(&agent.records());
        let (minutes, comparison) = (begun.elapsed().as_secs() / 60, service.compare(&agent.records()));
        println!("{mode}: {minutes} minutes of flow, no crash; {comparison}");
    });
}
