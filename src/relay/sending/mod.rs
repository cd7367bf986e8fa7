//! What a lane sends: the events of the batch in order, and parked ones that may go again; and what becomes of those that cannot.
//!
//! All records of an event are made and checked before any of them is queued. What is known to fail never enters the
//! producer, because a record that fails in flight takes everything behind it along.

mod aside;
mod settling;

pub use aside::{Standing, parked};
pub use settling::Remains;

use super::culprits::Culprits;
use super::desk::Desk;
use super::inquiry::Inquiry;
use super::ledger::{Dispatch, Form, Ledger};
use super::parking::Parked;
use super::verdict::Trouble;
use super::warmth::{Landing, Warmths};
use crate::config::route::Policy;
use crate::outbox::cursor::Cursor;
use crate::outbox::event::{Event, EventKey};
use crate::outbox::lsn::Lsn;
use crate::outbox::parked::{Cause, Release};
use crate::outbox::snapshot::Snapshot;
use crate::outbox::stream::Stream;
use crate::routing::record::Record;
use crate::routing::{Rejection, Router};
use crate::sink::kafka::options::Haste;
use crate::sink::kafka::{self, KafkaSink};
use crate::sink::{Failure, Report, SendErrorKind, Sent, Token};
use crate::source::Batch;
use crate::telemetry::changes;
use aside::Probe;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// Events sent in one turn of the loop; a few milliseconds, so that a renewal is never late because of a batch.
const EVENTS_A_TURN: usize = 1_000;
/// What a record costs in memory beside its event's bytes, in librdkafka and here.
const RECORD_BYTES: usize = 512;
/// What was learnt of a topic longer ago is learnt again before an event is rejected because of it.
const STALE: Duration = Duration::from_secs(1);

/// The batch that is being sent.
struct Current {
    from: Cursor,
    window_end: Snapshot,
    events: std::vec::IntoIter<Event>,
    end_mark: Option<Cursor>,
    needs_wal: Option<Lsn>,
    haste: Haste,
    /// The head's token and how many of its records are queued, when the queue was full in the middle of it.
    begun: Option<(Token, usize)>,
}

impl Current {
    /// Whether its events are on disk, with the WAL there up to `flushed`.
    fn is_durable(&self, flushed: Option<Lsn>) -> bool {
        self.needs_wal.is_none() || flushed >= self.needs_wal
    }

    fn head_only(mut self) -> Self {
        let head: Vec<Event> = self.events.by_ref().take(1).collect();
        Self { events: head.into_iter(), end_mark: None, ..self }
    }
}

/// Where an event comes from.
enum Origin {
    /// The outbox; with the position that is true once it is settled.
    Table(Cursor),
    /// Where it was parked.
    Parked,
}

/// What became of the event at the head.
enum Step {
    /// It is out of the way.
    Done,
    /// The producer takes no more; these records of it are queued.
    Full(Token, usize),
    /// It waits: for an answer, for time to pass, or for room.
    Wait,
}

/// What is to be sent for an event.
enum Plan {
    /// These records.
    Send,
    /// Nothing yet: of this topic not enough is known.
    Learn(String),
    /// Nothing: it is rejected. With the topic that cannot take it, if it is that.
    Reject(Rejection, Option<String>),
}

/// See the module.
pub struct Sender<'l> {
    router: &'l Router,
    desk: &'l Desk,
    culprits: &'l mut Culprits,
    /// The producer.
    pub sink: KafkaSink,
    /// Questions to the cluster.
    pub inquiry: Inquiry,
    /// What was sent.
    pub ledger: Ledger,
    /// Streams that are parked.
    pub parked: Parked,
    /// Why nothing is sent, if so.
    pub standing: Option<Standing>,
    current: Option<Current>,
    begun_again: Option<(Token, usize)>,
    failed_tries: u32,
    /// No more can be sent until reports come: librdkafka takes no more, or a first record has to travel alone.
    queue_full: bool,
    /// Which partitions know the producers.
    pub warmth: Warmths,
    /// Where the records land that were checked last.
    landings: Vec<Option<Landing>>,
    /// No more can be parked until the next save.
    parking_full: bool,
    /// Sent once more, alone, although Kafka has refused it.
    probe: Option<Probe>,
    careful_left: usize,
    reports: Vec<Report>,
    /// Delivered, perhaps to another cluster than the one that was there before.
    unproven: Vec<Token>,
    failures: Vec<Failure>,
    /// Parked events that were refused again, and of which the table does not know that.
    refused_again: Vec<(EventKey, Stream, Rejection)>,
    /// When something was settled last, or sent with nothing open before it.
    moved_at: Instant,
    /// Milliseconds since 1970, at the beginning of the turn.
    now_ms: i64,
}

impl<'l> Sender<'l> {
    /// Prepares to send with `sink`; the first `careful_events` with a careful one.
    #[expect(clippy::too_many_arguments, reason = "each is one of the parts that the lane has built")]
    pub fn new(
        router: &'l Router,
        desk: &'l Desk,
        culprits: &'l mut Culprits,
        sink: KafkaSink,
        inquiry: Inquiry,
        ledger: Ledger,
        parked: Parked,
        careful_events: usize,
    ) -> Self {
        Self {
            router,
            desk,
            culprits,
            sink,
            inquiry,
            ledger,
            parked,
            standing: None,
            current: None,
            begun_again: None,
            failed_tries: 0,
            queue_full: false,
            warmth: Warmths::default(),
            landings: Vec::new(),
            parking_full: false,
            probe: None,
            careful_left: careful_events,
            reports: Vec::new(),
            unproven: Vec::new(),
            failures: Vec::new(),
            refused_again: Vec::new(),
            moved_at: Instant::now(),
            now_ms: 0,
        }
    }

    /// Whether a save has to come before more can be parked.
    pub fn is_parking_full(&self) -> bool {
        self.parking_full
    }

    /// Whether the batch is sent whole, or there is none.
    pub fn wants_batch(&self) -> bool {
        self.current.is_none()
    }

    /// Takes a batch, when there is none.
    pub fn take(&mut self, batch: Batch) {
        let end_mark = batch.end_mark().cloned();
        let haste = if batch.is_small_window() { Haste::Soon } else { Haste::Bulk };
        let Batch { from, window_end, events, needs_wal, .. } = batch;
        let needs_wal = needs_wal.filter(|_| !events.is_empty());
        let events = events.into_iter();
        self.current = Some(Current { from, window_end, events, end_mark, needs_wal, haste, begun: None });
    }

    /// Up to where the WAL must be on disk before the batch may be sent.
    pub fn needs_wal(&self) -> Option<Lsn> {
        self.current.as_ref().and_then(|current| current.needs_wal)
    }

    /// Whether something can be sent now, with the WAL on disk up to `flushed`.
    pub fn can_send(&self, flushed: Option<Lsn>) -> bool {
        let stopped = self.is_stopped() || self.queue_full;
        let open_events = self.ledger.open_events();
        let alone = self.probe.is_some() && open_events > 0;
        let careful_enough = self.is_careful() && open_events >= self.careful_left;
        !stopped && !alone && !careful_enough && (self.can_send_again() || self.can_send_batch(flushed))
    }

    /// Whether it is for want of reports that nothing of the batch can be sent.
    pub fn waits_for_reports(&self, flushed: Option<Lsn>) -> bool {
        self.ledger.open_events() > 0
            && !self.is_stopped()
            && self.current.as_ref().is_some_and(|current| current.is_durable(flushed))
            && !self.can_send(flushed)
    }

    /// Whether nothing can be sent, for another reason than reports that have not come.
    fn is_stopped(&self) -> bool {
        self.standing.is_some() || self.inquiry.is_busy() || self.parking_full
    }

    fn can_send_again(&self) -> bool {
        let fits = |event: &Event| self.begun_again.is_some() || self.has_room(event);
        self.parked.next().is_some_and(fits) && !self.has_begun_batch()
    }

    /// A large parked event waits until the ledger is empty, not for as long as small ones take each place that is free.
    fn can_send_batch(&self, flushed: Option<Lsn>) -> bool {
        let is_wanted_for = |parked: &Event| !self.has_begun_batch() && !self.has_room(parked);
        !self.parked.next().is_some_and(is_wanted_for)
            && self.current.as_ref().filter(|current| current.is_durable(flushed)).is_some_and(|current| {
                let switches = self.sink.should_switch(current.haste) && self.ledger.open_events() > 0;
                let may_go = |event: &Event| !switches && self.has_room(event);
                current.begun.is_some() || current.events.as_slice().first().is_none_or(may_go)
            })
    }

    /// An event whose first records are queued goes before any other.
    fn has_begun_batch(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.begun.is_some())
    }

    fn has_room(&self, event: &Event) -> bool {
        self.ledger.has_room(event.size_bytes().saturating_add(RECORD_BYTES))
    }

    /// Sends what can be sent without waiting, for one turn of the loop.
    ///
    /// # Errors
    /// The producer will take no record any more.
    pub fn send_some(&mut self, flushed: Option<Lsn>) -> Result<(), Trouble> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.now_ms = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
        for _ in 0..EVENTS_A_TURN {
            let done = if self.can_send_again() {
                self.send_again()?
            } else if self.can_send_batch(flushed) {
                self.send_of_batch()?
            } else {
                false
            };
            if !done || !self.can_send(flushed) {
                break;
            }
        }
        Ok(())
    }

    /// Sends the next parked event. Whether more can be sent.
    fn send_again(&mut self) -> Result<bool, Trouble> {
        let Some(event) = self.parked.take_next() else { return Ok(false) };
        let begun = self.begun_again.take();
        match self.offer(&event, Origin::Parked, begun)? {
            Step::Done => return Ok(true),
            Step::Full(token, queued) => (self.begun_again, self.queue_full) = (Some((token, queued)), true),
            Step::Wait => self.begun_again = begun,
        }
        self.parked.put_back(event);
        Ok(false)
    }

    /// Sends the next event of the batch, or marks its end. Whether more can be sent.
    fn send_of_batch(&mut self) -> Result<bool, Trouble> {
        let Some(mut current) = self.current.take() else { return Ok(false) };
        let Some(event) = current.events.as_slice().first() else {
            if let Some(end) = current.end_mark.take() {
                self.ledger.mark(end);
            }
            return Ok(false); // the batch is sent whole
        };
        if current.begun.is_none() && self.sink.should_switch(current.haste) {
            self.sink.switch(current.haste).map_err(Trouble::Send)?;
        }
        let position = current.from.at(&current.window_end, event.id);
        let begun = current.begun.take();
        let step = self.offer(event, Origin::Table(position), begun)?;
        match step {
            Step::Done => drop(current.events.next()),
            Step::Full(token, queued) => (current.begun, self.queue_full) = (Some((token, queued)), true),
            Step::Wait => current.begun = begun,
        }
        self.current = Some(current);
        Ok(matches!(step, Step::Done))
    }

    /// Sends an event, or applies the policy of its route to it.
    fn offer(&mut self, event: &Event, origin: Origin, begun: Option<(Token, usize)>) -> Result<Step, Trouble> {
        if let Origin::Table(position) = &origin
            && begun.is_none()
            && self.parked.holds(event)
        {
            return Ok(self.park(event, position.clone(), Cause::Follows));
        }
        let router = self.router;
        let rejection; // outlives the record that tells of it
        let mut records = Vec::with_capacity(1);
        match self.plan(event, &mut records) {
            Plan::Send => {}
            Plan::Learn(topic) => return Ok(self.learn(topic)),
            Plan::Reject(why, topic) => {
                rejection = why;
                let was_dead_letter =
                    self.culprits.of(event.key()).is_some_and(|refusal| refusal.of == Form::DeadLetter);
                match router.policy(event) {
                    Policy::DeadLetter(to) if !was_dead_letter => {
                        records.clear();
                        records.push(router.dead_letter(event, to, &rejection));
                    }
                    policy => return Ok(self.set_aside(event, origin, &rejection, policy, topic)),
                }
                match self.check(&records) {
                    Plan::Send => {
                        let step = self.queue(event, origin, &records, Form::DeadLetter, begun)?;
                        if matches!(step, Step::Done) {
                            self.count(event.key(), &rejection);
                            changes::dead_lettered(self.desk.outbox(), self.desk.lane(), &event.key());
                        }
                        return Ok(step);
                    }
                    Plan::Learn(topic) => return Ok(self.learn(topic)),
                    Plan::Reject(why, _) => {
                        let both = Rejection { reason: format!("{}; dead letter: {why}", rejection.reason), ..why };
                        return Ok(self.set_aside(event, origin, &both, &Policy::Park, None));
                    }
                }
            }
        }
        self.failed_tries = 0;
        self.queue(event, origin, &records, Form::Records, begun)
    }

    /// What to do with an event, as far as can be known before it is sent. Makes its records.
    fn plan<'e>(&mut self, event: &'e Event, records: &mut Vec<Record<'e>>) -> Plan
    where
        'l: 'e,
    {
        if let Some(refusal) = self.culprits.of(event.key())
            && self.probe.as_ref().is_none_or(|probe| probe.key != event.key())
        {
            return Plan::Reject(refusal.rejection.clone(), None);
        }
        let router: &'l Router = self.router;
        match router.route(event, records) {
            Ok(()) => self.check(records),
            Err(rejection) => Plan::Reject(rejection, None),
        }
    }

    fn check(&mut self, records: &[Record<'_>]) -> Plan {
        self.landings.clear();
        for record in records {
            let Some(topic) = self.inquiry.known(&record.topic) else {
                return Plan::Learn(record.topic.clone().into_owned());
            };
            if let Err(rejection) = kafka::fits(record, topic, self.now_ms) {
                let name = record.topic.clone().into_owned();
                let is_stale = topic.learnt_at.elapsed() > STALE;
                return if is_stale { Plan::Learn(name) } else { Plan::Reject(rejection, Some(name)) };
            }
            let landing = self.warmth.of(self.sink.haste()).landing(&topic, record.key.as_deref());
            self.landings.push(landing);
        }
        Plan::Send
    }

    fn learn(&mut self, topic: String) -> Step {
        self.ask_about(topic);
        Step::Wait
    }

    fn queue(
        &mut self,
        event: &Event,
        origin: Origin,
        records: &[Record<'_>],
        form: Form,
        begun: Option<(Token, usize)>,
    ) -> Result<Step, Trouble> {
        let key = event.key();
        let warmth = self.warmth.of(self.sink.haste());
        if begun.is_none() && !self.landings.iter().flatten().all(|landing| warmth.allows(*landing)) {
            self.queue_full = true;
            return Ok(Step::Wait);
        }
        let (token, queued) = match (begun, origin) {
            (Some(begun), _) => begun,
            (None, Origin::Table(position)) if records.is_empty() => {
                self.ledger.left_out(position);
                self.desk.metrics.events_left_out.inc();
                return Ok(Step::Done);
            }
            (None, origin) => {
                let bytes = event.size_bytes().saturating_add(RECORD_BYTES).saturating_mul(records.len().max(1));
                if self.ledger.open_events() == 0 {
                    self.moved_at = Instant::now();
                }
                let token = match origin {
                    Origin::Table(position) => self.ledger.sent(Dispatch { key, form }, position, records.len(), bytes),
                    Origin::Parked => {
                        let release = Release { key, stream: event.stream() };
                        self.ledger.resent(release, form, records.len(), bytes)
                    }
                };
                (token, 0)
            }
        };
        if let Some(probe) = self.probe.as_mut().filter(|probe| probe.key == key) {
            probe.sent = true;
        }
        for (index, record) in records.iter().enumerate().skip(queued) {
            match self.sink.send(record, token) {
                Ok(Sent::Queued) => {
                    if let Some(landing) = self.landings.get(index).copied().flatten() {
                        self.warmth.of(self.sink.haste()).sent(token, landing);
                    }
                }
                Ok(Sent::Full) => return Ok(Step::Full(token, index)),
                Err(error) => {
                    if error.kind == SendErrorKind::Rejection {
                        let (topic, partition) = (record.topic.clone().into_owned(), i32::MIN); // nobody is beside it
                        self.failures.push(Failure { token, topic, partition, error: error.clone() });
                    }
                    return Err(Trouble::Send(self.sink.explain(error)));
                }
            }
        }
        self.ledger.advance(); // a parked event that a route now leaves out has no records
        Ok(Step::Done)
    }
}
