//! Machines and servers whose clocks are wrong, or jump.

use m365_audit::clock::Clock;
use m365_audit::sim::{CallKind, FaultScript, SimConfig, SimFault};

use crate::world::{EXCHANGE, World, hours, mins};

/// Trap 12: a machine whose clock is hours ahead or behind reads everything.
#[tokio::test]
async fn a_machine_whose_clock_is_wrong_reads_everything() {
    for offset in [-30 * 3600, -3 * 3600, 3 * 3600, 40 * 86_400] {
        let mut w = World::with(SimConfig { clock_offset_secs: offset, ..SimConfig::default() }).await;
        for n in 0..10 {
            w.add_aged(2, mins(10) + hours(15 * n));
        }
        let running = w.start();
        w.pass(hours(1)).await;
        w.add_now(2);
        w.pass(hours(1)).await;
        // An administrator sets the clock.
        let wall = w.clock.now();
        w.sim.set_clock_offset(0);
        w.clock.set_wall(wall + jiff::SignedDuration::from_secs(offset));
        w.add_now(2);
        w.pass(hours(1)).await;
        w.stop(running).await;
        assert!(w.gaps().is_empty());
        w.assert_clean();
        w.assert_healthy();
    }
}

/// Design 3.6: while the server's clock jumps, nothing moves and nothing is declared; when it is back all goes on.
#[tokio::test]
async fn a_jump_of_the_servers_clock_moves_and_declares_nothing() {
    for jump in [30 * 86_400, -86_400, 6 * 3600, -3600] {
        let mut w = World::new().await;
        w.clock_jumps = true;
        w.set("poll_interval_secs", 30);
        w.add_aged(3, mins(30));
        let running = w.start();
        w.pass(mins(20)).await;
        let before = w.watch.positions();
        w.sim.set_clock_offset(jump);
        w.pass(mins(4)).await;
        let during = w.watch.positions();
        let moved = during[&EXCHANGE].complete_until.unwrap().duration_since(before[&EXCHANGE].complete_until.unwrap());
        assert!(moved.as_secs() <= 60, "{jump}: {moved:?}");
        assert!(w.gaps().is_empty());
        w.sim.set_clock_offset(0);
        w.add_now(2);
        w.pass(mins(30)).await;
        assert!(w.complete_until(EXCHANGE) > Some(w.ago(mins(10))), "{jump}: it goes on: {:?}", w.watch.positions());
        w.stop(running).await;
        assert!(w.gaps().is_empty());
        w.assert_clean();
        w.assert_healthy();
    }
}

/// CK-1: a window that was listed while the clock stood in the future does not vouch for what comes later.
#[tokio::test]
async fn a_window_listed_in_the_future_does_not_count_as_read_later() {
    let mut w = World::new().await;
    w.clock_jumps = true;
    w.set("poll_interval_secs", 60);
    w.add_aged(3, mins(30));
    let running = w.start();
    w.pass(mins(20)).await;
    w.sim.set_clock_offset(6 * 3600);
    w.pass(mins(3)).await;
    w.sim.set_clock_offset(0);
    w.pass(mins(2)).await;
    // Now no listing works, and what appears is unknown.
    w.sim.faults().rate(CallKind::Content, 1.0, SimFault::InternalError);
    w.add_now(2);
    w.pass(mins(20)).await;
    w.add_now(2);
    w.pass(hours(5)).await;
    w.sim.faults().clear();
    w.pass(hours(1)).await;
    w.stop(running).await;
    w.assert_clean();
}

/// Single answers with a wrong date change nothing, on whichever call they come.
#[tokio::test]
async fn single_answers_with_a_wrong_date_change_nothing() {
    let mut w = World::new().await;
    w.clock_jumps = true;
    w.set("poll_interval_secs", 60);
    for n in 0..10 {
        w.add_aged(2, mins(10) + hours(15 * n));
    }
    for (skip, wrong) in [(3, 40 * 86_400), (9, -40 * 86_400), (15, 3600)] {
        let script = FaultScript::next(CallKind::Content, 1, SimFault::WrongDate(wrong));
        w.sim.faults().script(FaultScript { skip, ..script });
        w.sim.faults().script(FaultScript { skip, ..FaultScript::next(CallKind::Blob, 1, SimFault::WrongDate(wrong)) });
    }
    let running = w.start();
    w.pass(mins(30)).await;
    w.add_now(2);
    w.pass(hours(1)).await;
    w.stop(running).await;
    assert!(w.gaps().is_empty());
    w.assert_clean();
}

/// A very first answer with a wrong date does not fix the origin for ever.
#[tokio::test]
async fn a_wrong_date_on_the_very_first_answer_loses_nothing() {
    for wrong in [30 * 86_400, -30 * 86_400, 7200] {
        let mut w = World::new().await;
        w.clock_jumps = true;
        w.set("poll_interval_secs", 60);
        for n in 0..10 {
            w.add_aged(2, mins(10) + hours(15 * n));
        }
        w.sim.faults().next(CallKind::List, 1, SimFault::WrongDate(wrong));
        let running = w.start();
        w.pass(hours(1)).await;
        w.add_now(2);
        w.pass(mins(20)).await;
        w.stop(running).await;
        assert!(w.gaps().is_empty(), "{wrong}: {:?}", w.gaps());
        w.assert_clean();
    }
}

/// The machine slept, or was suspended, for two days: nothing is lost.
#[tokio::test]
async fn a_machine_that_slept_for_days_goes_on() {
    let mut w = World::new().await;
    w.add_aged(3, mins(30));
    let running = w.start();
    w.pass(mins(20)).await;
    for _ in 0..4 {
        w.add_now(2);
        w.clock.advance(hours(12));
    }
    w.pass(hours(1)).await;
    w.stop(running).await;
    assert!(w.gaps().is_empty());
    w.assert_clean();
    assert!(w.complete_until(EXCHANGE) > Some(w.ago(mins(20))));
}
