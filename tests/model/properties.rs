//! What must hold in every state.

use crate::protocol::{Protocol, State};
use crate::setup::Setup;
use stateright::Property;

pub(crate) const NO_LOSS: &str = "what the cursor settles is in the log or parked";
pub(crate) const ORDER: &str = "events of a stream appear in the order of their commits";
pub(crate) const SETTLED: &str = "the cursor stays within what is acknowledged or parked";
pub(crate) const ONE_SAVER: &str = "one relay saves under an epoch";
pub(crate) const NO_PHANTOM: &str = "nothing is in the log that a crash can undo";
pub(crate) const NO_PASSING: &str = "nothing of a stream passes its parked event";
pub(crate) const DELIVERY: &str = "in the end all is in the log or parked";

/// What must hold, and what must come about for it to mean something.
pub(crate) fn of(setup: &Setup) -> Vec<Property<Protocol>> {
    let mut all = must_hold();
    all.extend(must_come(setup));
    all
}

fn must_hold() -> Vec<Property<Protocol>> {
    vec![
        Property::always(NO_LOSS, |_, state: &State| settled(state).all(|event| is_done(state, event))),
        Property::always(ORDER, |_, state: &State| {
            state.kafka.log.iter().zip(&state.postgres.committed).all(is_in_order)
        }),
        Property::always(SETTLED, |_, state: &State| {
            settled(state).all(|event| state.kafka.is_acknowledged(event) || is_parked(state, event))
        }),
        Property::always(ONE_SAVER, |_, state: &State| !state.postgres.is_trespassed),
        Property::always(NO_PHANTOM, |_, state: &State| {
            state.kafka.log.iter().flatten().all(|event| state.postgres.is_durable(*event))
        }),
        Property::always(NO_PASSING, nothing_passes),
        Property::always(DELIVERY, |protocol, state| all_done(state) || !is_at_rest(protocol, state)),
    ]
}

/// Each where the bounds allow it.
fn must_come(setup: &Setup) -> Vec<Property<Protocol>> {
    let (events, left) = (setup.events.len(), setup.budget);
    let late = |_: &Protocol, state: &State| state.kafka.olds() > 0;
    let two = |_: &Protocol, state: &State| state.relays.iter().all(|relay| relay.session.is_some());
    let open = |_: &Protocol, state: &State| state.postgres.cursor.t().is_some();
    let parked = |_: &Protocol, state: &State| !state.postgres.parked.is_empty();
    let end: fn(&Protocol, &State) -> bool = |protocol, state| all_done(state) && is_at_rest(protocol, state);
    let table = [
        (true, Property::sometimes("an end is reached", end)),
        (setup.page < events, Property::sometimes("the cursor is saved within a window", open)),
        (left.crashes + left.breaks > 0, Property::sometimes("records of an earlier producer may land", late)),
        (setup.relays > 1 && left.freezes + left.jumps > 0, Property::sometimes("two relays are at work", two)),
        (setup.refused.is_some(), Property::sometimes("an event is parked", parked)),
    ];
    table.into_iter().filter_map(|(is_possible, property)| is_possible.then_some(property)).collect()
}

/// The committed events that the cursor row says are settled.
fn settled(state: &State) -> impl Iterator<Item = usize> {
    let postgres = &state.postgres;
    let is_committed = |event: usize, stream: usize| postgres.committed[stream].contains(&event);
    let rows = postgres.rows.iter().filter(|row| row.is_settled_by(&postgres.cursor));
    rows.filter(move |row| is_committed(row.event, row.stream)).map(|row| row.event)
}

fn is_parked(state: &State, event: usize) -> bool {
    state.postgres.parked.contains(&event)
}

fn is_done(state: &State, event: usize) -> bool {
    state.kafka.has(event) || is_parked(state, event)
}

fn all_done(state: &State) -> bool {
    state.postgres.committed.iter().flatten().all(|event| is_done(state, *event))
}

/// Nothing is left to happen by itself. Steps lead to no earlier state, so every run that goes on ends in such a state.
fn is_at_rest(protocol: &Protocol, state: &State) -> bool {
    let mut steps = Vec::new();
    protocol.certain(state, &mut steps);
    steps.is_empty()
}

fn is_in_order((log, committed): (&Vec<usize>, &Vec<usize>)) -> bool {
    let place = |event: &usize| committed.iter().position(|other| other == event);
    log.iter().filter_map(place).is_sorted()
}

fn nothing_passes(_: &Protocol, state: &State) -> bool {
    state.kafka.log.iter().zip(&state.postgres.committed).all(|(log, committed)| {
        let parked = committed.iter().position(|event| is_parked(state, *event));
        parked.is_none_or(|place| committed[place..].iter().all(|event| !log.contains(event)))
    })
}
