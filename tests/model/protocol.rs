//! The whole: all that can happen next, and what comes of it.

use crate::kafka::Kafka;
use crate::postgres::{Postgres, Step};
use crate::properties;
use crate::relay::Relay;
use crate::setup::{Budget, Seed, Setup};
use stateright::{Model, Property};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Everything at one moment. The parts are shared with the states before, as most steps change one of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) postgres: Arc<Postgres>,
    pub(crate) kafka: Arc<Kafka>,
    pub(crate) relays: Vec<Arc<Relay>>,
    left: Budget,
}

impl State {
    /// Whether a relay that is alive has the lease: it does not run out, unless the clock jumps.
    fn is_held_by_other(&self, own: usize) -> bool {
        let alive = |owner: usize| owner != own && self.relays[owner].awake().is_some();
        self.postgres.owner.is_some_and(alive)
    }
}

/// One step. Numbers are those of writers, relays and events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Write(usize, Step),
    Flush,
    PostgresCrashes,
    Read(usize),
    Send(usize),
    Save(usize),
    /// Trouble has ended the session; the next one starts at the row.
    WindUp(usize),
    Acquire(usize),
    Crash(usize),
    Break(usize),
    Stop(usize),
    Freeze(usize),
    Thaw(usize),
    /// A record is in the log.
    Land(usize, usize),
    /// The report of it arrives.
    Acknowledge(usize, usize),
    Refuse(usize, usize),
    Retry(usize, usize),
    /// What an earlier producer had sent lands.
    LandLate(usize),
}

/// The protocol under one set of bounds.
pub(crate) struct Protocol {
    pub(crate) setup: Setup,
    /// States whose next steps were asked for.
    pub(crate) expanded: Arc<AtomicUsize>,
}

impl Protocol {
    pub(crate) fn new(setup: Setup) -> Self {
        Self { setup, expanded: Arc::default() }
    }

    /// What happens by itself, sooner or later. Where nothing of this is left, everything has to be delivered.
    pub(crate) fn certain(&self, state: &State, found: &mut Vec<Action>) {
        let (setup, postgres) = (&self.setup, &state.postgres);
        let mut steps = Vec::new();
        for writer in 0..setup.writers.len() {
            postgres.steps(writer, setup, &mut steps);
            found.extend(steps.drain(..).map(|step| Action::Write(writer, step)));
        }
        if !postgres.is_on_disk() {
            found.push(Action::Flush);
        }
        for (own, relay) in state.relays.iter().enumerate() {
            if relay.frozen {
                found.push(Action::Thaw(own));
            }
            if relay.is_free() && !state.is_held_by_other(own) {
                found.push(Action::Acquire(own));
            }
            if let Some(session) = &relay.session {
                let lands = session.producer.heads(setup).filter(|record| setup.refused != Some(record.event));
                found.extend(lands.map(|record| Action::Land(own, record.event)));
            }
            let Some(session) = relay.awake() else { continue };
            if session.can_read(postgres, setup) {
                found.push(Action::Read(own));
            }
            if session.can_send(postgres, setup) {
                found.push(Action::Send(own));
            }
            if session.can_save(postgres, setup) {
                found.push(Action::Save(own));
            }
            if session.is_poisoned() {
                found.push(Action::WindUp(own));
            }
            found.extend(session.producer.reports(setup).map(|record| Action::Acknowledge(own, record.event)));
            let refused = session.producer.heads(setup).filter(|record| setup.refused == Some(record.event));
            found.extend(refused.map(|record| Action::Refuse(own, record.event)));
        }
    }

    /// What may happen or not.
    fn possible(&self, state: &State, found: &mut Vec<Action>) {
        let (setup, left) = (&self.setup, &state.left);
        let aborts = (0..setup.writers.len()).filter(|writer| state.postgres.may_abort(*writer, setup));
        found.extend(aborts.map(|writer| Action::Write(writer, Step::Abort)));
        if left.postgres_crashes > 0 {
            found.push(Action::PostgresCrashes);
        }
        for (own, relay) in state.relays.iter().enumerate() {
            if left.jumps > 0 && relay.is_free() && state.is_held_by_other(own) {
                found.push(Action::Acquire(own));
            }
            let Some(session) = &relay.session else { continue };
            if left.crashes > 0 {
                found.push(Action::Crash(own));
            }
            if relay.frozen {
                continue;
            }
            if left.freezes > 0 {
                found.push(Action::Freeze(own));
            }
            if left.breaks > 0 && session.can_break() {
                if setup.is_sown(Seed::RetryOnSameProducer) {
                    found.extend(session.producer.heads(setup).map(|record| Action::Retry(own, record.event)));
                } else {
                    found.push(Action::Break(own));
                }
            }
            if left.stops > 0 && session.epoch == state.postgres.epoch && session.can_stop(&state.postgres, setup) {
                found.push(Action::Stop(own));
            }
        }
        found.extend((0..state.kafka.olds()).map(Action::LandLate));
    }

    fn take(&self, state: &mut State, action: Action) {
        let (setup, held) = (&self.setup, matches!(action, Action::Acquire(own) if state.is_held_by_other(own)));
        let State { postgres, kafka, relays, left } = state;
        match action {
            Action::Write(writer, step) => Arc::make_mut(postgres).take(writer, step, setup),
            Action::Flush => Arc::make_mut(postgres).flush(setup),
            Action::PostgresCrashes => {
                left.postgres_crashes -= 1;
                Arc::make_mut(postgres).crash();
                if !setup.is_sown(Seed::CursorFromMemory) {
                    for relay in relays.iter_mut().filter(|relay| relay.session.is_some()) {
                        Arc::make_mut(relay).end(Arc::make_mut(kafka), setup);
                    }
                }
            }
            Action::LandLate(queue) => Arc::make_mut(kafka).land_late(queue, setup),
            Action::Acquire(own) => {
                left.jumps -= u8::from(held);
                Arc::make_mut(postgres).acquire(own, setup);
                Arc::make_mut(&mut relays[own]).start(postgres, setup);
            }
            Action::Crash(own) => {
                left.crashes -= 1;
                Arc::make_mut(&mut relays[own]).crash(Arc::make_mut(kafka), setup);
            }
            Action::WindUp(own) => Arc::make_mut(&mut relays[own]).end(Arc::make_mut(kafka), setup),
            Action::Break(own) => {
                left.breaks -= 1;
                Arc::make_mut(&mut relays[own]).broken();
            }
            Action::Stop(own) => {
                left.stops -= 1;
                Arc::make_mut(&mut relays[own]).end(Arc::make_mut(kafka), setup);
                Arc::make_mut(postgres).release(setup);
            }
            Action::Freeze(own) => {
                left.freezes -= 1;
                Arc::make_mut(&mut relays[own]).frozen = true;
            }
            Action::Thaw(own) => Arc::make_mut(&mut relays[own]).frozen = false,
            Action::Send(own) => Arc::make_mut(&mut relays[own]).send(setup),
            Action::Refuse(own, event) => Arc::make_mut(&mut relays[own]).refused(event, setup),
            Action::Save(own) => {
                let relay = Arc::make_mut(&mut relays[own]);
                if !relay.save(own, Arc::make_mut(postgres), setup) {
                    relay.end(Arc::make_mut(kafka), setup);
                }
            }
            Action::Read(own) | Action::Land(own, _) | Action::Acknowledge(own, _) | Action::Retry(own, _) => {
                let Some(session) = &mut Arc::make_mut(&mut relays[own]).session else { return };
                match action {
                    Action::Land(_, event) => session.land(event, Arc::make_mut(kafka), setup),
                    Action::Acknowledge(_, event) => session.settle(event, Arc::make_mut(kafka), setup),
                    Action::Retry(_, event) => {
                        left.breaks -= 1;
                        session.producer.retry(event);
                    }
                    _ => session.read(postgres, setup),
                }
            }
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    /// The first relay has the lease already: which one is first makes no difference.
    fn init_states(&self) -> Vec<State> {
        let mut postgres = Postgres::new(&self.setup);
        postgres.acquire(0, &self.setup);
        let mut first = Relay::default();
        first.start(&postgres, &self.setup);
        let others = (1..self.setup.relays).map(|_| Arc::new(Relay::default()));
        vec![State {
            postgres: Arc::new(postgres),
            kafka: Arc::new(Kafka::new(&self.setup)),
            relays: std::iter::once(Arc::new(first)).chain(others).collect(),
            left: self.setup.budget,
        }]
    }

    fn actions(&self, state: &State, found: &mut Vec<Action>) {
        self.expanded.fetch_add(1, Ordering::Relaxed);
        self.certain(state, found);
        self.possible(state, found);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.take(&mut state, action);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::of(&self.setup)
    }
}
