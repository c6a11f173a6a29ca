//! Everything at once.

use m365_audit::sim::{CallKind, FaultPlan, GenerateSpec, Rate, SimConfig, SimFault};

use crate::host::Manner;
use crate::world::{World, hours, mins};

/// Faults of a kind of call, of which each in turn strikes an equal part of `share`.
fn rates(kind: CallKind, share: f64, faults: &[SimFault]) -> Vec<Rate> {
    faults.iter().map(|fault| Rate { kind, share: share / faults.len() as f64, fault: fault.clone() }).collect()
}

/// Throttling, server and transport faults, and damaged bodies, each on a fifth of the calls.
fn storm() -> FaultPlan {
    let mut all = Vec::new();
    for kind in [CallKind::List, CallKind::Start, CallKind::Content, CallKind::NextPage, CallKind::Blob] {
        all.extend(rates(
            kind,
            0.2,
            &[
                SimFault::Throttled { status: 403, retry_after_secs: None, single_quoted: false },
                SimFault::Throttled { status: 429, retry_after_secs: Some(2), single_quoted: false },
                SimFault::Throttled { status: 403, retry_after_secs: None, single_quoted: true },
            ],
        ));
        all.extend(rates(
            kind,
            0.2,
            &[
                SimFault::InternalError,
                SimFault::InternalErrorUndocumented,
                SimFault::Gateway(502),
                SimFault::Gateway(503),
                SimFault::RequestTimeout,
                SimFault::Reset,
            ],
        ));
        all.extend(rates(
            kind,
            0.2,
            &[
                SimFault::CutBody(200),
                SimFault::WrongLength(-3),
                SimFault::WrongLength(3),
                SimFault::DamagedGzip,
                SimFault::HtmlPage,
                SimFault::EmptyBody,
                SimFault::WrongDate(86_400),
            ],
        ));
    }
    all.extend(rates(
        CallKind::Token,
        0.2,
        &[SimFault::Gateway(503), SimFault::Reset, SimFault::HtmlPage, SimFault::EmptyBody],
    ));
    FaultPlan { scripts: Vec::new(), rates: all }
}

fn spec(w: &World, blobs: usize) -> GenerateSpec {
    GenerateSpec {
        late_rate: 0.2,
        late_by_max_secs: 3600,
        same_instant_rate: 0.2,
        empty_blob_rate: 0.05,
        copy_rate: 0.2,
        old_event_rate: 0.2,
        irregular_rate: 0.3,
        ..GenerateSpec::new(blobs, 8, w.ago(hours(40)), w.ago(mins(70)))
    }
}

/// Every fault at 20 %, late, duplicate, same-instant and out-of-order blobs, and a host that refuses a fifth: every
/// event once.
#[tokio::test]
async fn every_fault_at_a_fifth_delivers_every_event_once() {
    for seed in 1..=2 {
        let mut w =
            World::with(SimConfig { seed, page_size: 4, token_lifetime_secs: 600, ..SimConfig::default() }).await;
        w.all_types();
        let spec = spec(&w, 120);
        w.generate(spec);
        w.sim.set_faults(storm());
        // Of wrong dates.
        w.clock_jumps = true;
        for _ in 0..40 {
            w.host.answer_next(1, Manner::Refuse);
            w.host.answer_next(4, Manner::Take);
        }
        let running = w.start();
        w.until_all_delivered().await;
        w.pass(mins(30)).await;
        w.stop(running).await;
        w.assert_clean();
        assert!(w.sim.faults().served().len() >= 10, "{:?}", w.sim.faults().served());
    }
}

/// The same with the process killed every few minutes: nothing lost.
#[tokio::test]
async fn every_fault_at_a_fifth_and_crashes_lose_nothing() {
    for seed in 4..=5 {
        let mut w = World::with(SimConfig { seed, page_size: 4, ..SimConfig::default() }).await;
        w.all_types();
        let spec = spec(&w, 100);
        w.generate(spec);
        w.sim.set_faults(storm());
        // Of wrong dates.
        w.clock_jumps = true;
        for _ in 0..8 {
            let running = w.start();
            w.pass(mins(4)).await;
            w.kill(running).await;
        }
        let running = w.start();
        w.until_all_delivered().await;
        w.pass(mins(30)).await;
        w.stop(running).await;
        w.assert_nothing_lost();
    }
}

/// A day in the life: blobs appear all the time, some late, in bad weather; every event once, no gap, healthy at the end.
#[tokio::test]
async fn a_day_of_bad_weather_delivers_every_event_once() {
    let mut w = World::with(SimConfig { seed: 9, page_size: 5, ..SimConfig::default() }).await;
    w.all_types();
    w.sim.set_faults(FaultPlan::bad_weather(0.2));
    let running = w.start();
    for _ in 0..24 {
        let spec = GenerateSpec {
            late_rate: 0.3,
            late_by_max_secs: 2 * 3600,
            ..GenerateSpec::new(10, 4, w.now(), w.now() + hours(1))
        };
        w.generate(spec);
        w.leap(hours(1), mins(1)).await;
    }
    w.sim.faults().clear();
    w.leap(hours(4), mins(1)).await;
    w.stop(running).await;
    assert!(w.gaps().is_empty(), "{:?}", w.gaps());
    w.assert_clean();
    w.assert_healthy();
}
