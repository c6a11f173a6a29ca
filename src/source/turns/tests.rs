use futures_util::FutureExt as _;
use proptest::prelude::*;

use super::*;

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A tenant with much work, fetching when it may.
fn much(ended: u64) -> Need {
    Need { ready: true, fetching: true, class: Priority::Many, ended }
}

fn of(class: Priority) -> Need {
    Need { class, ..much(0) }
}

const DONE: Need = Need { ready: false, fetching: false, class: Priority::Many, ended: 9 };

fn seats(turns: &Turns, count: usize) -> Vec<TurnSeat> {
    (0..count).map(|_| turns.seat()).collect()
}

fn has_turn(seat: &TurnSeat) -> bool {
    seat.turns.lock().turns.contains_key(&seat.id)
}

#[test]
fn so_many_read_and_the_others_wait_in_the_order_they_came() {
    let turns = Turns::new(2);
    let seats = seats(&turns, 4);
    let standings: Vec<TurnState> = seats.iter().map(|seat| seat.ask(secs(5), much(0))).collect();
    let waiting = TurnState::Waiting(secs(5));
    assert_eq!(standings, [TurnState::Reading, TurnState::Reading, waiting, waiting]);
    assert_eq!((seats[2].place(), seats[3].place()), ((0, 2), (1, 2)));
    // Asking again does not change the order.
    assert_eq!(seats[3].ask(secs(8), much(0)), waiting);
    assert!(seats[2].woken().now_or_never().is_none());
    assert_eq!(seats[1].ask(secs(9), DONE), TurnState::Idle);
    assert!(seats[2].woken().now_or_never().is_some(), "it is told");
    assert!(has_turn(&seats[2]) && !has_turn(&seats[3]));
    assert_eq!(seats[2].ask(secs(9), much(0)), TurnState::Reading);
}

#[test]
fn a_turn_lasts_as_long_as_nobody_waits_and_a_minute_when_somebody_does() {
    let turns = Turns::new(1);
    let seats = seats(&turns, 2);
    assert_eq!(seats[0].ask(secs(0), much(0)), TurnState::Reading);
    assert_eq!(seats[0].ask(secs(3600), much(5)), TurnState::Reading);
    assert_eq!(seats[1].ask(secs(3601), much(0)), TurnState::Waiting(secs(3601)));
    // It has had its minute: it begins no new fetch, and its running ones are awaited.
    assert_eq!(seats[0].ask(secs(3602), much(6)), TurnState::Ending);
    assert!(!has_turn(&seats[1]));
    let drained = Need { fetching: false, ..much(7) };
    assert_eq!(seats[0].ask(secs(3603), drained), TurnState::Waiting(secs(3603)));
    assert_eq!(seats[1].ask(secs(3603), much(0)), TurnState::Reading);
    assert_eq!(seats[1].ask(secs(3662), much(1)), TurnState::Reading, "a whole minute");
    assert_eq!(seats[1].ask(secs(3663), much(2)), TurnState::Ending);
    // The other has given up: there is no reason to end.
    assert_eq!(seats[0].ask(secs(3664), DONE), TurnState::Idle);
    assert_eq!(seats[1].ask(secs(3665), much(3)), TurnState::Reading);
}

#[test]
fn what_expires_goes_first_then_a_few_blobs_then_many() {
    let turns = Turns::new(1);
    let seats = seats(&turns, 6);
    let classes =
        [Priority::Many, Priority::Many, Priority::Few, Priority::Expiring, Priority::Few, Priority::Expiring];
    for (seat, class) in seats.iter().zip(classes) {
        seat.ask(secs(1), of(class));
    }
    // Content of a waiting tenant is about to expire: it moves ahead.
    seats[1].ask(secs(2), of(Priority::Expiring));
    let mut order = Vec::new();
    while let Some(at) = seats.iter().position(has_turn) {
        order.push(at);
        seats[at].ask(secs(3), DONE);
    }
    assert_eq!(order, [0, 1, 3, 5, 2, 4]);
}

#[test]
fn what_expires_gives_way_to_its_like_alone_as_long_as_it_gets_on() {
    let turns = Turns::new(1);
    let seats = seats(&turns, 3);
    let expiring = |ended| Need { class: Priority::Expiring, ..much(ended) };
    seats[0].ask(secs(0), expiring(0));
    seats[1].ask(secs(0), of(Priority::Few));
    for minute in 1..10 {
        assert_eq!(seats[0].ask(secs(minute * 59), expiring(minute)), TurnState::Reading);
    }
    seats[2].ask(secs(540), expiring(0));
    assert_eq!(seats[0].ask(secs(541), expiring(10)), TurnState::Ending);
    seats[2].ask(secs(542), DONE);
    assert_eq!(seats[0].ask(secs(543), expiring(11)), TurnState::Reading);
    // A receiver that accepts nothing does not block tenants with other receivers.
    assert_eq!(seats[0].ask(secs(603), expiring(11)), TurnState::Ending);
}

#[test]
fn turns_that_do_not_come_free_are_passed_on_one_a_minute() {
    let turns = Turns::new(10);
    let seats = seats(&turns, 40);
    let mut had = vec![0];
    for second in 0..=600 {
        // Each tenant with a turn fetches, and none of its fetches ever ends.
        for seat in &seats {
            let fetching = has_turn(seat);
            seat.ask(secs(second), Need { ready: true, fetching, class: Priority::Many, ended: 0 });
        }
        if second % 60 == 0 {
            had.push(seats.iter().filter(|seat| has_turn(seat)).count());
        }
    }
    assert!(had.iter().skip(1).all(|turns| *turns == 10), "{had:?}");
    let passed_on = turns.lock().next - 40 - 40;
    // Each that lost its turn took a new place in the line; from the second minute on.
    assert_eq!(passed_on, 9);
}

#[test]
fn a_seat_that_goes_leaves_its_turn_and_its_place() {
    let turns = Turns::new(1);
    let mut seats = seats(&turns, 3);
    for seat in &seats {
        seat.ask(secs(100), much(0));
    }
    drop(seats.remove(1));
    drop(seats.remove(0));
    assert!(has_turn(&seats[0]));
    assert_eq!(seats[0].ask(secs(101), much(0)), TurnState::Reading);
    drop(seats);
    let line = turns.lock();
    assert!(line.turns.is_empty() && line.waiting.is_empty() && line.places.is_empty());
}

#[test]
fn the_number_of_turns_changes_while_they_are_taken() {
    let turns = Turns::new(0);
    let seats = seats(&turns, 4);
    for seat in &seats {
        seat.ask(secs(0), much(0));
    }
    assert!(has_turn(&seats[0]) && !has_turn(&seats[1]), "at least one");
    turns.set_max(3);
    seats[3].ask(secs(1), much(0));
    assert_eq!(seats.iter().filter(|seat| has_turn(seat)).count(), 3);
    turns.set_max(1);
    for second in 2..300 {
        for seat in &seats {
            let fetching = has_turn(seat) && seat.ask(secs(second), much(second)) == TurnState::Reading;
            seat.ask(secs(second), Need { fetching, ..much(second) });
        }
    }
    assert_eq!(seats.iter().filter(|seat| has_turn(seat)).count(), 1);
}

#[test]
fn many_that_read_know_less_each_and_who_waits_knows_little() {
    let turns = Turns::new(300);
    let seats = seats(&turns, 301);
    for (readers, most) in [(1, 10_000), (20, 10_000), (50, 4_000), (200, 1_000), (300, 1_000)] {
        for seat in &seats[..readers] {
            seat.ask(secs(0), much(0));
        }
        assert_eq!(seats[0].unsettled_max(TurnState::Reading), most, "{readers}");
    }
    assert_eq!(seats[300].unsettled_max(seats[300].ask(secs(0), much(0))), UNSETTLED_WAITING);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// For any work: never more tenants read than allowed, none waits longer than the turns of the others take, and all
    /// finish.
    #[test]
    fn all_get_their_turn_in_time(
        max in 1..6_u32,
        work in prop::collection::vec((0..200_u64, 1..4_u64), 1..20),
    ) {
        let turns = Turns::new(max);
        let seats = seats(&turns, work.len());
        // Left to fetch, under way, ended so far.
        let mut state: Vec<(u64, u64, u64)> = work.iter().map(|(blobs, _)| (*blobs, 0, 0)).collect();
        let rounds = work.len() as u64 / u64::from(max) + 1;
        let mut longest = Duration::ZERO;
        let mut now = secs(0);
        while state.iter().any(|(left, under_way, _)| left + under_way > 0) {
            prop_assert!(now < secs(20 * 200 * 4), "it does not end: {:?}", state);
            for (seat, ((left, under_way, ended), (_, speed))) in seats.iter().zip(state.iter_mut().zip(&work)) {
                *ended += *under_way;
                *under_way = 0;
                let class = if *left <= FEW as u64 { Priority::Few } else { Priority::Many };
                let need = Need { ready: *left > 0, fetching: false, class, ended: *ended };
                match seat.ask(now, need) {
                    TurnState::Reading => {
                        *under_way = (*left).min(*speed);
                        *left -= *under_way;
                        seat.ask(now, Need { ready: *left > 0, fetching: true, ..need });
                    }
                    TurnState::Waiting(since) => longest = longest.max(now - since),
                    TurnState::Idle | TurnState::Ending => {}
                }
                prop_assert!(turns.lock().turns.len() <= max as usize);
            }
            now += secs(1);
        }
        // The few go before the many, each at most twice.
        prop_assert!(longest <= (TURN + secs(2)) * u32::try_from(2 * rounds).unwrap(), "{longest:?}");
    }
}
