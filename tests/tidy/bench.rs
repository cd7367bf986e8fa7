//! The pure parts of the benchmark: a program without a harness has no place for its own tests.

use std::time::Duration;

use proptest::prelude::*;
use uuid::Uuid;

#[path = "../bench/events.rs"]
mod events;
#[path = "../bench/quantiles.rs"]
mod quantiles;
#[path = "../bench/schedule.rs"]
mod schedule;

use events::{Ids, PAYLOADS, Pattern};
use quantiles::Quantiles;
use schedule::Schedule;

const MINUTE: Duration = Duration::from_mins(1);

#[test]
fn a_schedule_is_sorted_ends_in_time_and_has_the_rate_that_was_asked_for() {
    for (seed, per_second) in [(1, 100.0), (2, 1_000.0), (3, 10_000.0)] {
        let schedule = Schedule::poisson(per_second, MINUTE, seed);
        assert!(schedule.due().is_sorted());
        assert!(schedule.due().last().is_some_and(|last| *last < MINUTE));
        let wanted = per_second * MINUTE.as_secs_f64();
        let off = f64::from(u32::try_from(schedule.due().len()).unwrap()) - wanted;
        assert!(off.abs() < 5.0 * wanted.sqrt(), "{off} off {wanted}");
    }
}

#[test]
fn the_gaps_of_a_poisson_schedule_are_exponential() {
    let schedule = Schedule::poisson(1_000.0, MINUTE, 4);
    let gaps = schedule.due().windows(2).map(|pair| pair[1].saturating_sub(pair[0]).as_secs_f64());
    let long = gaps.filter(|gap| *gap > 0.001).count();
    let share = f64::from(u32::try_from(long).unwrap()) / f64::from(u32::try_from(schedule.due().len()).unwrap());
    assert!((share - (-1.0_f64).exp()).abs() < 0.01, "{share} of the gaps are longer than the mean");
}

#[test]
fn the_same_seed_gives_the_same_schedule() {
    let of = |seed| Schedule::poisson(100.0, MINUTE, seed).due().to_vec();
    assert_eq!(of(5), of(5));
    assert_ne!(of(5), of(6));
}

#[test]
fn what_a_transaction_writes_comes_at_once() {
    let schedule = Schedule::poisson(10.0, MINUTE, 8);
    let repeated = schedule.repeated(3);
    assert_eq!(repeated.due().len(), 3 * schedule.due().len());
    assert!(repeated.due().chunks(3).zip(schedule.due()).all(|(three, one)| three == [*one; 3]));
}

#[test]
fn one_in_each_second_leaves_half_a_second_between_two() {
    let schedule = Schedule::one_in_each(Duration::from_secs(1), 60, 7);
    assert_eq!(schedule.due().len(), 60);
    assert!(schedule.due().windows(2).all(|pair| pair[1].saturating_sub(pair[0]) >= Duration::from_millis(500)));
}

#[test]
fn the_quantiles_of_a_thousand_are_their_ranks() {
    let found = Quantiles::of((1..=1_000).rev().map(|ms| ms * 1_000).collect()).unwrap();
    let ranks =
        Quantiles { count: 1_000, p50_ms: 500.0, p90_ms: 900.0, p99_ms: 990.0, p999_ms: 999.0, max_ms: 1_000.0 };
    assert_eq!(found, ranks);
}

#[test]
fn few_times_have_their_largest_as_high_quantiles() {
    let found = Quantiles::of(vec![3_000, 1_000, 2_000]).unwrap();
    let ranks = Quantiles { count: 3, p50_ms: 2.0, p90_ms: 3.0, p99_ms: 3.0, p999_ms: 3.0, max_ms: 3.0 };
    assert_eq!(found, ranks);
    assert_eq!(Quantiles::of(Vec::new()), None);
}

#[test]
fn payloads_have_the_size_that_was_asked_for() {
    for payload_bytes in [64, 200, 1_024] {
        let payloads = Pattern { payload_bytes, streams: 1 }.payloads();
        assert_eq!(payloads.len(), usize::try_from(PAYLOADS).unwrap());
        assert!(payloads.iter().all(|payload| payload.len() == usize::try_from(payload_bytes).unwrap()));
    }
}

#[test]
fn two_runs_have_no_id_in_common() {
    assert_eq!(Ids::fresh().number(Ids::fresh().id(1)), None);
}

#[test]
fn events_go_to_the_streams_in_turn() {
    let pattern = Pattern { payload_bytes: 64, streams: 3 };
    assert_eq!([0, 1, 3].map(|number| pattern.key(number)), ["order-0", "order-1", "order-0"]);
}

proptest! {
    #[test]
    fn a_quantile_is_not_exceeded_by_more_than_its_share(times_ms in prop::collection::vec(0..1_000_u32, 1..2_000)) {
        let found = Quantiles::of(times_ms.iter().map(|&ms| i64::from(ms) * 1_000).collect()).unwrap();
        let quantiles = [(found.p50_ms, 500), (found.p99_ms, 990), (found.p999_ms, 999), (found.max_ms, 1_000)];
        for (bound_ms, per_mille) in quantiles {
            let above = times_ms.iter().filter(|&&ms| f64::from(ms) > bound_ms).count();
            let below = times_ms.iter().filter(|&&ms| f64::from(ms) < bound_ms).count();
            prop_assert!(above * 1_000 <= times_ms.len() * (1_000 - per_mille));
            prop_assert!(below * 1_000 < times_ms.len() * per_mille, "the quantile is not the least such time");
        }
    }

    #[test]
    fn the_number_of_an_event_is_found_in_its_id(run: u32, number: u32, bit in 0..128_u32) {
        let (ids, id) = (Ids::of(run), Ids::of(run).id(number));
        prop_assert_eq!(ids.number(id), Some(number));
        prop_assert_eq!(Ids::of(run ^ 1).number(id), None);
        prop_assert_eq!(ids.number(Uuid::from_u128(id.as_u128() ^ (1 << bit))), None, "another id");
    }
}
