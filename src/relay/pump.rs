//! The hot loop of a lane: read, send, settle, save. One loop, a closed set of inputs, a written priority.
//!
//! 1. the lease is lost: by our own clock, nothing more may be sent
//! 2. stop: reading ends, what is in flight is settled and saved
//! 3. a statement on the writer's connection has ended: a save, or a look at the flushed WAL; rare, and renewals hang on it
//! 4. reports: settled comes before new, so memory shrinks under pressure
//! 5. a question to the cluster is answered: about a topic, or whether it is back
//! 6. a standing guard forbids reading
//! 7. the next batch, if there is room
//! 8. more of the batch can be sent
//! 9. a time has come: a save, a renewal, another look

use super::desk::Desk;
use super::inquiry::{Answer, Inquiry};
use super::leadership::Terms;
use super::ledger::{Bounds, Ledger};
use super::pending::{later, pending};
use super::reader;
use super::saving::{Done, Saving, Urgency, Writer};
use super::status::LaneState;
use super::verdict::Trouble;
use crate::backoff::Backoff;
use crate::config::relay::Relay;
use crate::outbox::cursor::Cursor;
use crate::outbox::event::Event;
use crate::outbox::lsn::Lsn;
use crate::outbox::snapshot::Snapshot;
use crate::routing::{Rejection, Router};
use crate::sink::kafka::options::Care;
use crate::sink::kafka::topics::Topics;
use crate::sink::kafka::{self, KafkaSink};
use crate::sink::{Report, SendError, SendErrorKind, Sent, Token};
use crate::source::poll::Poll;
use crate::source::{Batch, SourceError};
use crate::store::cursor;
use crate::store::guards::Refusal;
use crate::supervise::TaskGroup;
use crate::telemetry::changes;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Events sent in one turn of the loop; a few milliseconds, so that a renewal is never late because of a batch.
const EVENTS_A_TURN: usize = 1_000;
/// What a record costs in memory beside its event's bytes, in librdkafka and here.
const RECORD_BYTES: usize = 512;
/// Standing at an event, or waiting for a topic.
const STANDING: Backoff = Backoff { first: Duration::from_secs(1), most: Duration::from_mins(1) };
/// A read beside the pause before it.
const SLOW_READ: Duration = Duration::from_secs(30);
const UNACKNOWLEDGED: &str = "Kafka takes records and has acknowledged none for long";
const REPLICAS_HINT: &str = "is a partition without a leader, or below min.insync.replicas? outboxd goes on by itself";
const UNREAD: &str = "Postgres has not answered a read for long";
const READ_HINT: &str =
    "a large window is being opened, or the answer was lost on the way: then the read is given up after 10 minutes";
const AWAY_HINT: &str = "check the brokers and the network; outboxd goes on by itself";
/// Longest sleep of the loop: its heart has to beat.
const TICK: Duration = Duration::from_secs(1);

/// How the pump ended.
#[derive(Debug)]
pub enum End {
    /// Told to stop; all is settled, saved and released.
    Drained,
    /// Told to stop; the grace period was not enough.
    GraceOver,
    /// Something is wrong.
    Trouble(Trouble),
}

/// The batch that is being sent.
struct Current {
    from: Cursor,
    window_end: Snapshot,
    events: std::vec::IntoIter<Event>,
    end_mark: Option<Cursor>,
    needs_wal: Option<Lsn>,
    /// The head's token and how many of its records are queued, when the queue was full in the middle of it.
    begun: Option<(Token, usize)>,
}

/// Why nothing is sent although there is something to send.
struct Standing {
    state: LaneState,
    reason: String,
    hint: Option<String>,
    retry_at: Instant,
    /// Learnt again before the next try.
    topic: Option<String>,
}

/// See the module.
pub struct Pump<'l> {
    relay: &'l Relay,
    router: &'l Router,
    desk: &'l Desk,
    terms: Terms,
    sink: KafkaSink,
    inquiry: Inquiry,
    ledger: Ledger,
    reports: Vec<Report>,
    batches: mpsc::Receiver<Result<Batch, SourceError>>,
    feed: Option<mpsc::Sender<Result<Batch, SourceError>>>,
    current: Option<Current>,
    idle: bool,
    standing: Option<Standing>,
    failed_tries: u32,
    saving: Saving,
    /// librdkafka takes no more until reports come.
    queue_full: bool,
    /// When something was settled last, or sent with nothing open before it.
    moved_at: Instant,
    /// When a batch came last.
    read_at: Instant,
    settled_events: u64,
    stop_by: Option<Instant>,
    careful_left: usize,
    last_event: Option<String>,
    /// After trouble the lane keeps saying what it waits for, until something gets through or there is nothing to send.
    unproven: bool,
}

impl<'l> Pump<'l> {
    /// Prepares to go on from `cursor`; `careful_events` are sent one at a time.
    #[expect(clippy::too_many_arguments, reason = "each is one of the parts that the lane has built")]
    pub fn new(
        relay: &'l Relay,
        router: &'l Router,
        desk: &'l Desk,
        terms: Terms,
        sink: KafkaSink,
        topics: Topics,
        writer: Writer,
        cursor: &Cursor,
        careful_events: usize,
    ) -> Self {
        let events = if careful_events > 0 { 1 } else { relay.in_flight.events };
        let bounds = Bounds { events, bytes: relay.in_flight.size_bytes };
        let (feed, batches) = mpsc::channel(reader::BATCHES_AHEAD);
        Self {
            ledger: Ledger::new(cursor.clone(), sink.generation(), bounds),
            relay,
            router,
            desk,
            terms,
            sink,
            inquiry: Inquiry::new(topics),
            reports: Vec::new(),
            batches,
            feed: Some(feed),
            current: None,
            idle: false,
            standing: None,
            failed_tries: 0,
            saving: Saving::new(writer, terms, relay.save_every),
            queue_full: false,
            moved_at: Instant::now(),
            read_at: Instant::now(),
            settled_events: 0,
            stop_by: None,
            careful_left: careful_events,
            last_event: None,
            unproven: matches!(desk.status().state, LaneState::Waiting | LaneState::Refused | LaneState::Halted),
        }
    }

    /// Pumps until told to stop, or until there is trouble; then winds up: what is settled is saved. Also says how many events were open.
    pub async fn run(
        mut self,
        poll: Poll,
        from: Cursor,
        refusal: &mut watch::Receiver<Option<Refusal>>,
        stop: &CancellationToken,
    ) -> (End, usize) {
        let (mut tasks, reader) = (TaskGroup::default(), poll.process());
        if let Some(feed) = self.feed.take() {
            tasks.spawn("reader", reader::read(poll, from, self.relay.poll, feed));
        }
        let ended = self.turn(refusal, stop).await;
        self.batches.close();
        tasks.abort_all().await;
        let open_events = self.ledger.open_events();
        if let Err(trouble) = &ended {
            changes::session_ended(
                self.desk.outbox(),
                self.desk.lane(),
                &trouble.to_string(),
                self.settled_events,
                open_events,
            );
        }
        (self.wind_up(ended, reader).await, open_events)
    }

    async fn turn(
        &mut self,
        refusal: &mut watch::Receiver<Option<Refusal>>,
        stop: &CancellationToken,
    ) -> Result<(), Trouble> {
        loop {
            self.desk.beat();
            self.advance()?;
            if self.stop_by.is_some() && self.is_settled() {
                return Ok(());
            }
            let (timer, stop_by) = (self.next_time(), self.stop_by.unwrap_or_else(Instant::now));
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(self.saving.fence_at()) => return Err(Trouble::LeaseLost(self.terms.fence)),
                () = stop.cancelled(), if self.stop_by.is_none() => self.drain(),
                () = tokio::time::sleep_until(stop_by), if self.stop_by.is_some() => return Ok(()),
                (writer, done) = pending(&mut self.saving.working) => self.worked(writer, done)?,
                () = self.sink.rung() => self.settle()?,
                (topics, answer) = pending(&mut self.inquiry.asking) => self.answered(topics, answer)?,
                found = refused(refusal) => return Err(Trouble::Refused(found)),
                batch = self.batches.recv(), if self.wants_batch() => self.take(batch)?,
                () = std::future::ready(()), if self.can_send() => {}
                () = tokio::time::sleep_until(timer) => {}
            }
        }
    }

    /// Does what can be done without waiting: sends, and starts the statement that is due.
    fn advance(&mut self) -> Result<(), Trouble> {
        let now = Instant::now();
        if now >= self.saving.fence_at() {
            return Err(Trouble::LeaseLost(self.terms.fence)); // the timer below can be late, after a freeze above all
        }
        if self.standing.as_ref().is_some_and(|standing| standing.retry_at <= now) && !self.inquiry.is_busy() {
            self.try_again();
        }
        if self.can_send() {
            self.send_some()?;
        }
        self.inquiry.probe_if_due(now);
        self.saving.start(self.ledger.position(), self.urgency(), self.needs_wal());
        self.show();
        Ok(())
    }

    // ---- sending

    fn wants_batch(&self) -> bool {
        self.current.is_none() && self.stop_by.is_none()
    }

    fn can_send(&self) -> bool {
        let Some(current) = &self.current else { return false };
        let stopped = self.stop_by.is_some() || self.standing.is_some() || self.inquiry.is_busy() || self.queue_full;
        !stopped && self.saving.has_flushed(current.needs_wal) && self.has_room(current)
    }

    /// An event whose first records are queued has its place in the ledger already.
    fn has_room(&self, current: &Current) -> bool {
        let fits = |event: &Event| self.ledger.has_room(event.size_bytes().saturating_add(RECORD_BYTES));
        current.begun.is_some() || current.events.as_slice().first().is_none_or(fits)
    }

    fn needs_wal(&self) -> Option<Lsn> {
        self.current.as_ref().and_then(|current| current.needs_wal)
    }

    fn take(&mut self, batch: Option<Result<Batch, SourceError>>) -> Result<(), Trouble> {
        let Some(batch) = batch else { return Err(Trouble::Displaced) }; // the reader ends only with an error, or by a panic that is passed on
        let batch = batch.map_err(Trouble::Source)?;
        self.desk.metrics.events_read.inc_by(as_u64(batch.events.len()));
        self.read_at = Instant::now();
        self.idle = batch.events.is_empty() && batch.end_mark().is_some();
        let end_mark = batch.end_mark().cloned();
        let Batch { from, window_end, events, needs_wal, .. } = batch;
        let needs_wal = needs_wal.filter(|_| !events.is_empty());
        self.current = Some(Current { from, window_end, events: events.into_iter(), end_mark, needs_wal, begun: None });
        self.saving.expect_flush();
        Ok(())
    }

    fn send_some(&mut self) -> Result<(), Trouble> {
        let Some(mut current) = self.current.take() else { return Ok(()) };
        for _ in 0..EVENTS_A_TURN {
            let Some(event) = current.events.as_slice().first() else {
                if let Some(end) = current.end_mark.take() {
                    self.ledger.mark(end);
                    self.progress();
                }
                return Ok(()); // the batch is sent whole
            };
            if !self.has_room(&current) {
                break;
            }
            let position = current.from.at(&current.window_end, event.id);
            match self.send_event(event, position, current.begun.take())? {
                Step::Sent => drop(current.events.next()),
                Step::Full(token, queued) => {
                    (current.begun, self.queue_full) = (Some((token, queued)), true);
                    break;
                }
                Step::Stand => break,
            }
        }
        self.current = Some(current);
        Ok(())
    }

    /// All records of an event are made and checked before any of them is queued.
    fn send_event(&mut self, event: &Event, position: Cursor, begun: Option<(Token, usize)>) -> Result<Step, Trouble> {
        let mut records = Vec::with_capacity(1);
        if let Err(rejection) = self.router.route(event, &mut records) {
            return Ok(self.halt_at(event, &rejection, None));
        }
        for record in &records {
            let Some(topic) = self.inquiry.known(&record.topic) else {
                self.inquiry.ask_about(record.topic.clone().into_owned());
                return Ok(Step::Stand);
            };
            if let Err(rejection) = kafka::fits(record, topic) {
                return Ok(self.halt_at(event, &rejection, Some(record.topic.clone().into_owned())));
            }
        }
        self.failed_tries = 0;
        let (token, queued) = begun.unwrap_or_else(|| {
            let bytes = event.size_bytes().saturating_add(RECORD_BYTES).saturating_mul(records.len().max(1));
            if self.ledger.open_events() == 0 {
                self.moved_at = Instant::now();
            }
            (self.ledger.sent(position, records.len(), bytes), 0)
        });
        for (index, record) in records.iter().enumerate().skip(queued) {
            match self.sink.send(record, token) {
                Ok(Sent::Queued) => {}
                Ok(Sent::Full) => return Ok(Step::Full(token, index)),
                Err(cause) => return Err(self.refused(cause, name(event))),
            }
        }
        if self.sink.tuning().care == Care::Alone {
            self.last_event = Some(name(event));
        }
        if records.is_empty() {
            self.desk.metrics.events_left_out.inc();
            self.progress();
        }
        Ok(Step::Sent)
    }

    fn halt_at(&mut self, event: &Event, rejection: &Rejection, topic: Option<String>) -> Step {
        self.desk.metrics.rejected(rejection.code);
        let reason = format!("event {}: {rejection}", name(event));
        self.stand(LaneState::Halted, reason, Some(rejection.hint.to_owned()), topic);
        Step::Stand
    }

    fn stand(&mut self, state: LaneState, reason: String, hint: Option<String>, topic: Option<String>) {
        let pause = STANDING.pause(self.failed_tries, rand::random());
        self.failed_tries = self.failed_tries.saturating_add(1);
        self.standing = Some(Standing { state, reason, hint, retry_at: later(Instant::now(), pause), topic });
    }

    fn try_again(&mut self) {
        let Some(standing) = &mut self.standing else { return };
        match standing.topic.take() {
            Some(topic) => self.inquiry.ask_about(topic), // what it stands for is said until the answer is there
            None => self.standing = None,
        }
    }

    fn answered(&mut self, topics: Topics, answer: Answer) -> Result<(), Trouble> {
        match self.inquiry.finish(topics, answer) {
            Some((_, Ok(topic))) if topic.limit_bytes < self.sink.tuning().batch_bytes => {
                return Err(Trouble::BatchTooLarge(topic.limit_bytes));
            }
            Some((_, Ok(_))) => self.standing = None,
            Some((topic, Err(error))) => {
                self.stand(LaneState::Waiting, error.to_string(), error.hint, Some(topic));
            }
            None => {}
        }
        Ok(())
    }

    // ---- settling

    fn settle(&mut self) -> Result<(), Trouble> {
        self.queue_full = false;
        let mut reports = std::mem::take(&mut self.reports);
        self.sink.take(&mut reports);
        let failure = self.book(&reports).map(|error| self.sink.explain(error));
        self.reports = reports;
        match failure {
            Some(error) => {
                let event = self.last_event.take().unwrap_or_default();
                Err(self.refused(error, event))
            }
            None if self.careful_left == 0
                && self.sink.tuning().care == Care::Alone
                && self.ledger.open_events() == 0 =>
            {
                Err(Trouble::CarefulDone)
            }
            None => Ok(()),
        }
    }

    /// An event that was sent alone is the one that Kafka refuses; among others it has to be found first.
    fn refused(&self, cause: SendError, event: String) -> Trouble {
        if self.sink.tuning().care == Care::Alone && cause.is_rejection() {
            self.desk.metrics.rejected(&cause.code);
            return Trouble::Culprit { event, cause };
        }
        Trouble::Send(cause)
    }

    /// Books the reports and returns the cause, if there is a failure among them: the first that is not another one's consequence.
    fn book(&mut self, reports: &[Report]) -> Option<SendError> {
        let (mut cause, mut consequence, mut delivered) = (None, None, 0_u64);
        for report in reports {
            match report {
                Report::Delivered(token) => {
                    delivered = delivered.saturating_add(1);
                    self.ledger.settled(*token);
                }
                Report::Failed(_, error) if error.kind == SendErrorKind::NotMine => {
                    consequence.get_or_insert_with(|| error.clone());
                }
                Report::Failed(_, error) | Report::Broken(error) => {
                    cause.get_or_insert_with(|| error.clone());
                }
                Report::Away(reason) => self.inquiry.gone(reason.clone()),
            }
        }
        if delivered > 0 {
            self.inquiry.back();
            self.desk.metrics.records_delivered.inc_by(delivered);
        }
        self.ledger.advance();
        self.progress();
        cause.or(consequence)
    }

    fn progress(&mut self) {
        let progress = self.ledger.take_progress();
        if progress.moved {
            self.moved_at = Instant::now();
        }
        if progress.events > 0 {
            self.saving.events_settled();
            self.careful_left = self.careful_left.saturating_sub(progress.events);
            self.settled_events = self.settled_events.saturating_add(as_u64(progress.events));
            self.desk.metrics.events_published.inc_by(as_u64(progress.published));
            self.desk.note(|status| {
                status.published_events = status.published_events.saturating_add(as_u64(progress.published));
            });
        }
    }

    // ---- status, time, end

    fn show(&mut self) {
        let at_rest = self.idle && self.current.is_none() && self.ledger.open_events() == 0;
        self.unproven &= self.settled_events == 0 && !at_rest;
        let (state, reason, hint) = match (&self.standing, self.inquiry.away()) {
            _ if self.stop_by.is_some() => (LaneState::Draining, None, None),
            (Some(standing), _) => (standing.state, Some(standing.reason.as_str()), standing.hint.as_deref()),
            (None, Some(away)) => (LaneState::Waiting, Some(away), Some(AWAY_HINT)),
            (None, None) if self.is_unacknowledged() => (LaneState::Waiting, Some(UNACKNOWLEDGED), Some(REPLICAS_HINT)),
            (None, None) if self.is_unread() => (LaneState::Waiting, Some(UNREAD), Some(READ_HINT)),
            (None, None) if self.unproven => return,
            (None, None) => (LaneState::Relaying, None, None),
        };
        self.desk.enter(state, reason, hint);
        let open_events = self.ledger.open_events();
        self.desk.metrics.in_flight.set(i64::try_from(open_events).unwrap_or(i64::MAX));
        self.desk.note(|status| status.in_flight_events = open_events);
    }

    /// librdkafka tries for ever, and as long as one broker answers it says nothing.
    fn is_unacknowledged(&self) -> bool {
        self.ledger.open_events() > 0 && self.moved_at.elapsed() > self.terms.socket_timeout
    }

    /// The reader is at it for longer than any pause: a very large window, or an answer that was lost.
    fn is_unread(&self) -> bool {
        self.wants_batch() && self.read_at.elapsed() > self.relay.poll.max.saturating_add(SLOW_READ)
    }

    fn next_time(&self) -> Instant {
        let times = [
            self.saving.next_time(self.urgency(), self.needs_wal()),
            self.standing.as_ref().map(|standing| standing.retry_at).filter(|_| !self.inquiry.is_busy()),
            self.inquiry.next_time(),
        ];
        let tick = later(Instant::now(), TICK);
        times.into_iter().flatten().fold(tick, Instant::min)
    }

    fn urgency(&self) -> Urgency {
        match self.ledger.open_events() {
            0 if self.stop_by.is_some() => Urgency::Stopping,
            0 if self.idle => Urgency::AtRest,
            _ => Urgency::Flowing,
        }
    }

    /// A statement on the writer's connection has ended.
    fn worked(&mut self, writer: Writer, done: Done) -> Result<(), Trouble> {
        if let Some(position) = self.saving.finish(writer, done)? {
            self.desk.metrics.cursor_saves.inc();
            self.desk.note(|status| status.cursor = Some(position.to_string()));
        }
        Ok(())
    }

    fn drain(&mut self) {
        self.stop_by = Some(later(Instant::now(), self.relay.shutdown_grace));
        self.batches.close();
        self.current = None; // what was read and not sent is read again
    }

    fn is_settled(&self) -> bool {
        self.ledger.open_events() == 0 && self.saving.is_done()
    }

    /// Stop and trouble end alike: collect what the producer still knows, save the settled prefix, give the lease back when stopping.
    async fn wind_up(mut self, ended: Result<(), Trouble>, reader: i32) -> End {
        let stopping = self.stop_by.is_some();
        let settled = self.is_settled();
        let until_fence = self.saving.fence_at().saturating_duration_since(Instant::now());
        let patience = match ended {
            _ if stopping => Duration::ZERO,
            Err(Trouble::Fenced) => Duration::ZERO,
            _ => self.terms.socket_timeout.min(until_fence),
        };
        let reports = self.sink.close(patience).await;
        for report in &reports {
            if let Report::Delivered(token) = report {
                self.ledger.settled(*token);
            }
        }
        self.ledger.advance();
        let open_events = self.ledger.open_events();
        let (writer, unsaved) = self.saving.end().await;
        let mut saved = !unsaved && !self.ledger.take_progress().moved;
        if let Some((mut session, mut lease)) = writer {
            if !matches!(ended, Err(Trouble::Fenced | Trouble::Displaced | Trouble::Db(_))) {
                session.cancel(reader).await;
                if !saved {
                    let result = cursor::save(&mut session, &mut lease, self.ledger.position()).await;
                    saved = matches!(result, Ok(cursor::Saved::Renewed)); // else the row stands where it stood
                }
            }
            if stopping && open_events == 0 {
                // if it fails, the lease runs out; with records under way it has to
                drop(cursor::release(&mut session, lease).await);
            }
            session.close().await;
        }
        match ended {
            _ if stopping && !settled && (open_events > 0 || !saved) => End::GraceOver,
            Err(trouble) => End::Trouble(trouble),
            Ok(()) => End::Drained,
        }
    }
}

/// What became of the event at the head.
enum Step {
    Sent,
    Full(Token, usize),
    Stand,
}

/// Waits until a standing guard forbids reading. Cancel-safe.
async fn refused(refusal: &mut watch::Receiver<Option<Refusal>>) -> Refusal {
    while refusal.changed().await.is_ok() {
        if let Some(found) = refusal.borrow_and_update().clone() {
            return found;
        }
    }
    std::future::pending().await // the monitor is gone: the process ends
}

fn name(event: &Event) -> String {
    format!("{} ({})", event.id, event.event_id)
}

fn as_u64(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
