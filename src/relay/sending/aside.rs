//! What becomes of an event that cannot be sent: the lane stands at it, it is parked, or it stays where it is parked.

use super::{Origin, Sender, Step};
use crate::backoff::Backoff;
use crate::config::route::Policy;
use crate::outbox::cursor::Cursor;
use crate::outbox::event::{Event, EventKey};
use crate::outbox::parked::{Cause, Parking};
use crate::outbox::stream::Stream;
use crate::relay::culprits::Culprits;
use crate::relay::desk::Desk;
use crate::relay::inquiry::{Answer, Learnt};
use crate::relay::parking::MOST_STREAMS;
use crate::relay::pending::later;
use crate::relay::status::LaneState;
use crate::relay::verdict::Trouble;
use crate::routing::Rejection;
use crate::sink::kafka::topics::{Missing, Topics, is_missing};
use crate::telemetry::changes;
use std::time::Duration;
use tokio::time::Instant;

/// Nothing is acknowledged for this long: is a topic gone?
const DOUBT: Duration = Duration::from_secs(3);

/// Standing at an event, or waiting for a topic.
const STANDING: Backoff = Backoff { first: Duration::from_secs(1), most: Duration::from_mins(1) };

/// Why nothing is sent although there is something to send.
pub struct Standing {
    /// What the lane is.
    pub state: LaneState,
    /// Why.
    pub reason: String,
    /// The next step, for the operator.
    pub hint: Option<String>,
    /// The next try.
    pub retry_at: Instant,
    /// What is done then, before the head is tried again.
    before: Option<Before>,
}

/// What precedes another try.
enum Before {
    /// The topic is learnt again.
    Learn(String),
    /// What Kafka said of the event is put aside: it is sent once more, alone.
    Probe(EventKey),
}

/// An event that is sent alone although Kafka has refused it.
pub(super) struct Probe {
    pub(super) key: EventKey,
    pub(super) sent: bool,
}

impl Sender<'_> {
    pub(super) fn set_aside(
        &mut self,
        event: &Event,
        origin: Origin,
        rejection: &Rejection,
        policy: &Policy,
        topic: Option<String>,
    ) -> Step {
        let Origin::Table(position) = origin else {
            self.parked.stand(&event.stream());
            self.count(event.key(), rejection);
            changes::refused_again(self.desk.outbox(), self.desk.lane(), &event.key(), &rejection.reason);
            self.refused_again.push((event.key(), event.stream(), rejection.clone()));
            return Step::Done; // it stays where it is parked
        };
        if *policy == Policy::Halt {
            self.count(event.key(), rejection);
            return self.halt_at(event, rejection, topic);
        }
        if self.parked.is_full() {
            let reason = format!("event {}: {rejection}, and {MOST_STREAMS} streams are parked already", event.key());
            let hint = "look at them: outboxd parked list; then: outboxd parked retry, or discard".to_owned();
            return self.stand(LaneState::Halted, reason, Some(hint), None);
        }
        let cause = Cause::Rejection { code: rejection.code.clone().into_owned(), reason: rejection.reason.clone() };
        self.park(event, position, cause)
    }

    /// Counts a rejection, unless it was counted when Kafka said it.
    pub(super) fn count(&self, key: EventKey, rejection: &Rejection) {
        if self.culprits.of(key).is_none() {
            self.desk.metrics.rejected(&rejection.code);
        }
    }

    pub(super) fn park(&mut self, event: &Event, position: Cursor, cause: Cause) -> Step {
        let bytes = event.size_bytes();
        if !self.ledger.has_room_to_park(bytes) {
            self.parking_full = true;
            return Step::Wait;
        }
        let parking = Parking { key: event.key(), stream: event.stream(), cause };
        self.parked.park(parking.stream.clone());
        self.ledger.parked(parking, position, bytes);
        Step::Done
    }

    fn halt_at(&mut self, event: &Event, rejection: &Rejection, topic: Option<String>) -> Step {
        let key = event.key();
        let refused = self.culprits.of(key).map(|refusal| refusal.times);
        if let Some(times) = refused {
            self.failed_tries = self.failed_tries.max(times.saturating_sub(1)); // also those of earlier sessions
        }
        let before = topic.map(Before::Learn).or(refused.map(|_| Before::Probe(key)));
        self.stand(LaneState::Halted, format!("event {key}: {rejection}"), Some(rejection.hint.to_string()), before)
    }

    fn stand(&mut self, state: LaneState, reason: String, hint: Option<String>, before: Option<Before>) -> Step {
        let pause = STANDING.pause(self.failed_tries, rand::random());
        self.failed_tries = self.failed_tries.saturating_add(1);
        self.standing = Some(Standing { state, reason, hint, retry_at: later(Instant::now(), pause), before });
        Step::Wait
    }

    /// What the lane waits for can be there, or be no longer wanted: it looks soon.
    pub(super) fn hope(&mut self) {
        if let Some(standing) = self.standing.as_mut().filter(|standing| standing.state == LaneState::Waiting) {
            standing.retry_at = standing.retry_at.min(later(Instant::now(), STANDING.first));
        }
    }

    /// Tries the head again, if its time has come.
    pub fn try_again_if_due(&mut self, now: Instant) {
        if self.inquiry.is_busy() {
            return;
        }
        let Some(standing) = self.standing.as_mut().filter(|standing| standing.retry_at <= now) else { return };
        match standing.before.take() {
            Some(Before::Learn(topic)) => self.ask_about(topic), // what it stands for is said until the answer is there
            Some(Before::Probe(key)) => (self.probe, self.standing) = (Some(Probe { key, sent: false }), None),
            None => self.standing = None,
        }
    }

    /// Looks, when nothing is acknowledged for long, whether the topics are still there: librdkafka would wait for minutes.
    pub fn doubt_if_due(&mut self) {
        let doubtful = self.unsettled_for().is_some_and(|time| time > DOUBT);
        if doubtful
            && self.standing.is_none()
            && self.inquiry.away().is_none()
            && let Some(topic) = self.inquiry.older_than(DOUBT)
        {
            self.ask_about(topic);
        }
    }

    pub(super) fn ask_about(&mut self, topic: String) {
        let is_under_way = self.ledger.open_events() > 0 && self.inquiry.has_known(&topic);
        self.inquiry.ask_about(topic, if is_under_way { Missing::Stays } else { Missing::Make });
    }

    /// An answer of the cluster.
    ///
    /// # Errors
    /// The producer's batches are too large for a topic, a topic is gone to which records are under way, it is another cluster, or the
    /// producer does not reach it.
    pub fn answered(&mut self, topics: Topics, answer: Answer) -> Result<(), Trouble> {
        let was_away = self.inquiry.away().is_some();
        let learnt = self.inquiry.finish(topics, answer)?;
        if was_away && self.inquiry.away().is_none() {
            self.hope();
        }
        self.believe();
        let Some(Learnt { topic, partitions_before, answer }) = learnt else { return Ok(()) };
        match answer {
            Ok(found) => {
                if partitions_before.is_some_and(|before| before != found.partitions) {
                    changes::partitions_changed(self.desk.outbox(), &topic);
                    self.warmth.cool();
                }
                let largest_batch = found.limit_bytes.max(1); // librdkafka takes no 0; each event is then too large
                if largest_batch < self.sink.tuning().batch_bytes {
                    return Err(Trouble::BatchTooLarge(largest_batch));
                }
                self.standing = None;
                let is_doubtful = self.unsettled_for().is_some_and(|time| time > self.sink.tuning().socket_timeout);
                if is_doubtful && self.inquiry.away().is_none() {
                    self.inquiry.ask_producer(self.sink.reaches(topic));
                }
            }
            Err(error) => {
                let is_under_way = self.ledger.open_events() > 0 && self.inquiry.has_known(&topic);
                if is_under_way && is_missing(&error) {
                    return Err(Trouble::Send(error));
                }
                self.inquiry.changed(&topic, 0); // who needs it asks again; by then it may be nobody
                self.stand(LaneState::Waiting, error.to_string(), error.hint, None);
            }
        }
        Ok(())
    }

    /// Parked events that were refused again, which the table has to be told.
    pub fn take_refused_again(&mut self) -> Option<(EventKey, Stream, Rejection)> {
        self.refused_again.pop()
    }

    /// A save has written what was to be parked.
    pub fn parked_saved(&mut self, parkings: &[Parking]) {
        self.parking_full = false;
        parked(self.desk, self.culprits, parkings);
        self.parked.saved(parkings);
    }

    /// An event of the stream was given up: what was read of it before that, and is not sent, is read again.
    pub fn read_again(&mut self, stream: &Stream) {
        let begun = self.begun_again.and_then(|_| self.parked.take_next());
        self.parked.read_again(stream);
        if let Some(event) = begun {
            self.parked.put_back(event);
        }
        self.hope(); // it may be what the lane waits for
    }

    /// The table knows that a parked event was refused again.
    pub fn refusal_noted(&mut self, key: EventKey) {
        self.culprits.forget(key);
    }
}

/// Events are parked: the policy was applied to those that were refused.
pub fn parked(desk: &Desk, culprits: &mut Culprits, parkings: &[Parking]) {
    desk.metrics.events_parked.inc_by(u64::try_from(parkings.len()).unwrap_or(u64::MAX));
    for Parking { key, cause, .. } in parkings {
        let is_counted = culprits.of(*key).is_some(); // when Kafka said it
        culprits.forget(*key);
        if let Cause::Rejection { code, reason } = cause {
            if !is_counted {
                desk.metrics.rejected(code);
            }
            changes::parked(desk.outbox(), desk.lane(), key, reason);
        }
    }
}
