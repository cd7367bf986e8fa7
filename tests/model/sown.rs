//! One bug at a time: the search has to find it, and finds nothing in the same bounds without it.

use crate::honest::holds;
use crate::properties::{DELIVERY, NO_LOSS, NO_PASSING, NO_PHANTOM, ONE_SAVER, ORDER, SETTLED};
use crate::protocol::Protocol;
use crate::setup::{Budget, Habit, Plan, Seed, Setup};
use stateright::{Checker, HasDiscoveries, Model};

/// Sows a bug and expects it to break these properties.
fn is_found(seed: Seed, setup: Setup, broken: &[&'static str]) {
    holds(&format!("{seed:?}, not sown"), setup.clone());
    let protocol = Protocol::new(Setup { seed: Some(seed), ..setup });
    let until = HasDiscoveries::AllOf(broken.iter().copied().collect());
    let checker = protocol.checker().finish_when(until).spawn_bfs().join();
    for name in broken {
        let path = checker.discovery(name).unwrap_or_else(|| panic!("{seed:?} does not break: {name}"));
        eprintln!("{seed:?} breaks: {name}\n  {:?}", path.into_actions());
    }
}

const ONE: Plan = Plan { streams: &[0], habits: &[] };
const EARLY: Plan = Plan { streams: &[0], habits: &[Habit::Early] };
const TWICE: Plan = Plan { streams: &[0, 0], habits: &[] };
const OTHER: Plan = Plan { streams: &[1], habits: &[] };
const OTHER_EARLY: Plan = Plan { streams: &[1], habits: &[Habit::Early] };
const OTHER_TWICE: Plan = Plan { streams: &[1, 1], habits: &[] };
const ABORTS: Plan = Plan { streams: &[0], habits: &[Habit::Aborts] };
const ASYNCHRONOUS: Plan = Plan { streams: &[0], habits: &[Habit::Asynchronous] };

fn pages(writers: &[Plan]) -> Setup {
    Setup::new(writers, Budget::NOTHING)
}

fn windows(writers: &[Plan]) -> Setup {
    Setup { page: 8, ..pages(writers) }
}

#[test]
fn a_cursor_saved_before_the_acknowledgement_is_found() {
    is_found(Seed::SavedBeforeAcknowledged, pages(&[ONE]), &[NO_LOSS, SETTLED]);
}

#[test]
fn a_snapshot_taken_after_its_rows_is_found() {
    is_found(Seed::SnapshotAfterRows, windows(&[ONE, OTHER]), &[NO_LOSS]);
}

#[test]
fn a_save_that_does_not_check_the_epoch_is_found() {
    let budget = Budget { jumps: 1, ..Budget::NOTHING };
    is_found(Seed::EpochNotChecked, Setup { relays: 2, budget, ..pages(&[ONE, OTHER]) }, &[ONE_SAVER]);
}

#[test]
fn a_place_kept_under_a_new_window_is_found() {
    is_found(Seed::AfterUnderNewWindow, pages(&[ONE, OTHER_TWICE]), &[NO_LOSS]);
}

#[test]
fn reading_on_a_hot_standby_is_found() {
    is_found(Seed::HotStandby, windows(&[ONE, OTHER]), &[NO_LOSS]);
}

#[test]
fn a_cursor_on_the_id_is_found() {
    is_found(Seed::CursorOnId, pages(&[ONE, OTHER]), &[NO_LOSS]);
}

#[test]
fn a_horizon_in_the_order_of_transaction_ids_is_found() {
    is_found(Seed::HorizonByXid, pages(&[EARLY, ONE]), &[ORDER]);
}

#[test]
fn a_horizon_in_the_order_of_ids_is_found() {
    is_found(Seed::HorizonById, windows(&[EARLY, OTHER_EARLY, ONE]), &[ORDER]);
}

#[test]
fn an_insert_before_the_lock_is_found() {
    is_found(Seed::InsertBeforeLock, windows(&[ONE, ONE]), &[ORDER]);
}

#[test]
fn locks_freed_before_the_commit_is_visible_are_found() {
    is_found(Seed::LocksFreedEarly, windows(&[ONE, ONE]), &[ORDER]);
}

#[test]
fn records_that_land_out_of_order_are_found() {
    is_found(Seed::LandsOutOfOrder, windows(&[TWICE]), &[ORDER]);
}

#[test]
fn a_retry_on_the_same_producer_is_found() {
    let budget = Budget { breaks: 1, ..Budget::NOTHING };
    is_found(Seed::RetryOnSameProducer, Setup { budget, ..windows(&[TWICE]) }, &[ORDER]);
}

#[test]
fn a_cursor_kept_in_memory_over_a_crash_of_postgres_is_found() {
    let budget = Budget { postgres_crashes: 1, ..Budget::NOTHING };
    is_found(Seed::CursorFromMemory, Setup { budget, ..pages(&[ABORTS, ONE]) }, &[DELIVERY]);
}

#[test]
fn a_record_sent_before_its_commit_is_on_disk_is_found() {
    let budget = Budget { postgres_crashes: 1, ..Budget::NOTHING };
    is_found(Seed::SentBeforeFlush, Setup { budget, ..pages(&[ASYNCHRONOUS]) }, &[NO_PHANTOM]);
}

#[test]
fn parking_in_a_statement_beside_the_save_is_found() {
    is_found(Seed::ParkedBesideSave, Setup { refused: Some(0), ..pages(&[ONE]) }, &[NO_LOSS, SETTLED]);
}

#[test]
fn followers_sent_past_a_parked_event_are_found() {
    is_found(Seed::FollowersSent, Setup { refused: Some(0), ..pages(&[TWICE]) }, &[NO_PASSING]);
}
