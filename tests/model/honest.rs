//! The protocol as it is: every state within the bounds is visited, and nothing is found.

use crate::protocol::{Protocol, State};
use crate::setup::{Budget, Habit, Plan, Setup};
use stateright::{Checker, Model};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::time::Instant;

/// Visits every state and finds nothing.
pub(crate) fn holds(name: &str, setup: Setup) {
    let (started, protocol) = (Instant::now(), Protocol::new(setup));
    let expanded = Arc::clone(&protocol.expanded);
    let checker = protocol.checker().spawn_dfs().join();
    let (states, seconds) = (checker.unique_state_count(), started.elapsed().as_secs_f32());
    eprintln!("{name}: {states} states, depth {}, {seconds:.1} s", checker.max_depth());
    assert!(checker.is_done(), "the search was cut short");
    assert_eq!(expanded.load(Ordering::Relaxed), states, "not every state was visited");
    checker.assert_properties();
}

const ONE: Plan = Plan { streams: &[0], habits: &[] };
const TWICE: Plan = Plan { streams: &[0, 0], habits: &[] };
const BOTH: Plan = Plan { streams: &[0, 1], habits: &[] };
const OTHER: Plan = Plan { streams: &[1], habits: &[] };
const EARLY: Plan = Plan { streams: &[0], habits: &[Habit::Early] };
const CHANGES_ITS_MIND: Plan = Plan { streams: &[0], habits: &[Habit::Early, Habit::GoesBack, Habit::Aborts] };
const ABORTS: Plan = Plan { streams: &[0], habits: &[Habit::Aborts] };
const OTHER_ABORTS: Plan = Plan { streams: &[1], habits: &[Habit::Aborts] };
const ASYNCHRONOUS: Plan = Plan { streams: &[0], habits: &[Habit::Early, Habit::Asynchronous] };

/// `OUTBOXD_MODEL=long`: minutes and gigabytes instead of seconds.
fn is_long() -> bool {
    std::env::var("OUTBOXD_MODEL").is_ok_and(|bounds| bounds == "long")
}

fn once_more(times: u8) -> u8 {
    times + u8::from(is_long())
}

/// The last writer only in a long run.
fn one_more(writers: &[Plan]) -> &[Plan] {
    &writers[..writers.len() - usize::from(!is_long())]
}

#[test]
fn an_honest_relay_loses_nothing() {
    let budget = Budget { crashes: once_more(1), ..Budget::NOTHING };
    holds("three writers, pages of one", Setup::new(&[EARLY, ONE, OTHER], budget));
}

#[test]
fn whole_windows_lose_nothing_when_relay_and_producer_fail() {
    let budget = Budget { crashes: 1, breaks: once_more(0), ..Budget::NOTHING };
    holds("three writers, whole windows", Setup { page: 8, ..Setup::new(&[EARLY, ONE, BOTH], budget) });
}

#[test]
fn transactions_that_abort_or_go_back_leave_no_hole() {
    let budget = Budget { crashes: once_more(0), ..Budget::NOTHING };
    holds("aborts and savepoints", Setup::new(&[CHANGES_ITS_MIND, ABORTS, OTHER_ABORTS], budget));
}

#[test]
fn a_frozen_relay_and_its_successor_lose_nothing() {
    let budget = Budget { freezes: 1, jumps: once_more(0), ..Budget::NOTHING };
    holds("two relays, one frozen", Setup { relays: 2, ..Setup::new(&[ONE, BOTH], budget) });
}

#[test]
fn two_relays_at_work_lose_nothing_when_the_clock_jumps() {
    let budget = Budget { jumps: 1, crashes: 1, breaks: once_more(0), ..Budget::NOTHING };
    let setup = Setup { relays: 2, page: 8, ..Setup::new(&[ONE, BOTH], budget) };
    holds("two relays, the clock jumps", setup);
}

#[test]
fn a_relay_that_stops_hands_over_without_a_loss() {
    let budget = Budget { stops: 2, crashes: once_more(0), breaks: 1, ..Budget::NOTHING };
    holds("two relays, one after the other", Setup { relays: 2, ..Setup::new(&[EARLY, BOTH], budget) });
}

#[test]
fn a_crash_of_postgres_undoes_nothing_that_was_sent() {
    let budget = Budget { postgres_crashes: 2, crashes: once_more(0), ..Budget::NOTHING };
    holds("Postgres crashes, pages of one", Setup::new(&[ASYNCHRONOUS, ONE], budget));
    let budget = Budget { postgres_crashes: 1, ..Budget::NOTHING };
    let setup = Setup::new(one_more(&[ASYNCHRONOUS, OTHER, ONE]), Budget { crashes: 1, ..budget });
    holds("Postgres crashes, whole windows", Setup { page: 8, ..setup });
}

#[test]
fn a_refused_event_is_parked_with_those_behind_it() {
    let budget = Budget { crashes: 1, breaks: 1, ..Budget::NOTHING };
    let setup = Setup { refused: Some(0), ..Setup::new(one_more(&[TWICE, OTHER, ONE]), budget) };
    holds("one refused", setup.clone());
    let budget = Budget { jumps: 1, ..Budget::NOTHING };
    let setup = Setup { relays: 2, page: 8, partitions: 1, budget, ..setup };
    holds("one refused, two relays, one partition", setup);
}

#[test]
fn gaps_between_ids_of_any_size_are_crossed() {
    let budget = Budget { crashes: once_more(0), ..Budget::NOTHING };
    holds("gaps", Setup { stride: 150_000, ..Setup::new(&[ONE, TWICE, OTHER], budget) });
}

/// Then a run that goes on reaches its end, and what holds there holds for all: no step of a run leads back.
#[test]
fn no_run_goes_round() {
    let budget = Budget { breaks: 1, freezes: 1, jumps: 1, stops: 1, ..Budget::NOTHING };
    let setups = [
        Setup { relays: 2, ..Setup::new(&[ONE], budget) },
        Setup { refused: Some(0), ..Setup::new(&[TWICE], Budget { crashes: 1, ..budget }) },
        Setup::new(&[ASYNCHRONOUS, ONE], Budget { postgres_crashes: 1, ..Budget::NOTHING }),
    ];
    for setup in setups {
        let protocol = Protocol::new(setup);
        let mut under_way: Vec<(State, bool)> =
            protocol.init_states().into_iter().map(|state| (state, false)).collect();
        let mut over: HashMap<State, bool> = HashMap::new();
        while let Some((state, is_left)) = under_way.pop() {
            if is_left {
                over.insert(state, true);
                continue;
            }
            match over.insert(state.clone(), false) {
                Some(true) => drop(over.insert(state, true)),
                Some(false) => panic!("a run comes back to {state:?}"),
                None => {
                    under_way.push((state.clone(), true));
                    under_way.extend(protocol.next_states(&state).into_iter().map(|next| (next, false)));
                }
            }
        }
        eprintln!("no way round: {} states", over.len());
    }
}
