//! What comes back from the producer: reports are booked, and at its end it is found out whom Kafka has refused.

use super::Sender;
use crate::relay::culprits::{Culprits, certain};
use crate::relay::ledger::{Ledger, Progress};
use crate::relay::verdict::Trouble;
use crate::sink::kafka::options::Care;
use crate::sink::{Failure, Report, SendError, SendErrorKind};
use crate::telemetry::changes;
use std::time::Duration;
use tokio::time::Instant;

/// What is left when the producer is gone.
pub struct Remains<'l> {
    /// What may still be saved.
    pub ledger: Ledger,
    /// Those known by now.
    pub culprits: &'l mut Culprits,
    /// Events among which those are that Kafka has refused: from the first that is not settled.
    pub suspects: usize,
    /// It is known which of them Kafka has refused.
    pub found_culprits: bool,
}

impl<'l> Sender<'l> {
    /// Books the reports that have come.
    ///
    /// # Errors
    /// One of them is of a failure: its cause, the first that is not another one's consequence.
    pub fn settle(&mut self) -> Result<(), Trouble> {
        self.queue_full = false;
        let mut reports = std::mem::take(&mut self.reports);
        self.sink.take(&mut reports);
        let failure = self.book(&mut reports).map(|error| self.sink.explain(error));
        self.reports = reports;
        match failure {
            Some(error) => Err(Trouble::Send(error)),
            None => Ok(()),
        }
    }

    /// Whether all that had to be sent with care got through.
    pub fn is_careful_done(&self) -> bool {
        self.is_careful() && self.careful_left == 0 && self.ledger.open_events() == 0
    }

    /// Whether records travel alone, because one of them was refused.
    pub fn is_careful(&self) -> bool {
        self.sink.tuning().care == Care::Alone
    }

    fn book(&mut self, reports: &mut Vec<Report>) -> Option<SendError> {
        let (mut cause, mut consequence, mut delivered) = (None, None, 0_u64);
        for report in reports.drain(..) {
            match report {
                Report::Delivered(token) => {
                    delivered = delivered.saturating_add(1);
                    self.unproven.push(token);
                }
                Report::Failed(failure) => {
                    let first =
                        if failure.error.kind == SendErrorKind::NotMine { &mut consequence } else { &mut cause };
                    first.get_or_insert_with(|| failure.error.clone());
                    self.failures.push(*failure);
                }
                Report::Broken(error) => drop(cause.get_or_insert(*error)),
                Report::Away(reason) => self.inquiry.gone(*reason),
                Report::Changed(topic, partitions) => {
                    if self.inquiry.changed(&topic, partitions) {
                        changes::partitions_changed(self.desk.outbox(), &topic);
                    }
                    self.warmth.cool();
                }
            }
        }
        if delivered > 0 {
            self.inquiry.back();
            if self.inquiry.away().is_none() {
                self.hope();
            }
            self.desk.metrics.records_delivered.inc_by(delivered);
        }
        self.believe();
        cause.or(consequence)
    }

    /// Books what was delivered, unless nobody has answered for a while: then it can be another cluster that did.
    pub(super) fn believe(&mut self) {
        if self.inquiry.away().is_none() && !self.unproven.is_empty() {
            self.queue_full = false; // a partition may be warm now
            for token in self.unproven.drain(..) {
                if self.ledger.settled(token) {
                    self.warmth.of(self.sink.haste()).stored(token);
                }
            }
        }
        self.ledger.advance();
        if self.ledger.open_events() == 0
            && let Some(probe) = self.probe.take_if(|probe| probe.sent)
        {
            self.culprits.forget(probe.key); // it got through
        }
    }

    /// What was settled since the last call.
    pub fn take_progress(&mut self) -> Progress {
        let progress = self.ledger.take_progress();
        if progress.moved {
            self.moved_at = Instant::now();
        }
        let settled = progress.events.saturating_add(progress.released);
        self.careful_left = self.careful_left.saturating_sub(settled);
        progress
    }

    /// For how long nothing was settled, with something open.
    pub fn unsettled_for(&self) -> Option<Duration> {
        (self.ledger.open_events() > 0).then(|| self.moved_at.elapsed())
    }

    /// Ends the sending: what was read and not sent is read again. An event of which some records are queued is sent to its end.
    pub fn drain(&mut self) {
        self.current = self.current.take().filter(|current| current.begun.is_some()).map(super::Current::head_only);
        let begun = self.begun_again.and_then(|_| self.parked.take_next());
        self.parked.drain();
        if let Some(event) = begun {
            self.parked.put_back(event);
        }
    }

    /// Whether some records of an event are queued, and others are not.
    pub fn has_begun(&self) -> bool {
        self.begun_again.is_some() || self.has_begun_batch()
    }

    /// Ends the producer, books what it still knows, and notes who was refused.
    pub async fn close(self, patience: Duration) -> Remains<'l> {
        let Self { mut ledger, sink, mut failures, culprits, desk, inquiry, .. } = self;
        let mut is_proven = inquiry.away().is_none();
        for report in sink.close(patience).await {
            match report {
                Report::Delivered(token) => {
                    desk.metrics.records_delivered.inc();
                    if is_proven {
                        ledger.settled(token);
                    }
                }
                Report::Failed(failure) => failures.push(*failure),
                Report::Away(_) => is_proven = false,
                Report::Broken(_) | Report::Changed(..) => {}
            }
        }
        let mut found_culprits = false;
        for failure in certain(&failures) {
            if let Some(dispatch) = ledger.dispatch(failure.token) {
                desk.metrics.rejected(&failure.error.code);
                culprits.add(dispatch, &failure.error);
                found_culprits = true;
            }
        }
        let is_suspect = |failure: &&Failure| failure.error.kind == SendErrorKind::Rejection;
        let tokens = failures.iter().filter(is_suspect).map(|failure| failure.token);
        let suspects = ledger.events_up_to(tokens).unwrap_or_else(|| ledger.open_events());
        ledger.advance();
        Remains { ledger, culprits, suspects, found_culprits }
    }
}
