//! The hot loop of a lane: read, send, settle, save. One loop, a closed set of inputs, a written priority.
//!
//! 1. the lease is lost: by our own clock, nothing more may be sent
//! 2. stop: reading ends, what is in flight is settled and saved
//! 3. a statement on the writer's connection has ended: a save, a look at the flushed WAL, an errand; rare, and renewals hang on it
//! 4. reports: settled comes before new, so memory shrinks under pressure
//! 5. a question to the cluster is answered: about a topic, or whether it is back
//! 6. a standing guard forbids reading
//! 7. the next batch, if there is room
//! 8. more of the batch can be sent
//! 9. a time has come: a save, a renewal, another look

use super::desk::Desk;
use super::leadership::Terms;
use super::ledger::Progress;
use super::pending::{later, pending};
use super::reader;
use super::saving::{Done, Ended, Errand, Finished, Ran, Saving, Urgency, Writer};
use super::sending::{self, Remains, Sender};
use super::status::LaneState;
use super::verdict::{self, Trouble};
use super::waker::Waker;
use crate::config::relay::Relay;
use crate::outbox::cursor::Cursor;
use crate::sink::kafka::topics::is_missing;
use crate::source::poll::Poll;
use crate::source::{Batch, SourceError};
use crate::store::guards::Refusal;
use crate::store::{cursor, parked};
use crate::supervise::TaskGroup;
use crate::telemetry::changes;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A read beside the pause before it.
const SLOW_READ: Duration = Duration::from_secs(30);
const UNACKNOWLEDGED: &str = "Kafka takes records and has acknowledged none for long";
const REPLICAS_HINT: &str = "is a partition without a leader, or below min.insync.replicas? outboxd goes on by itself";
const UNREAD: &str = "Postgres has not answered a read for long";
const READ_HINT: &str =
    "a large window is being opened, or the server is slow; a lost answer is found and asked for again";
const CAREFUL: &str = "Kafka has refused one of these events: they go one by one, until it is known which";
const AWAY_HINT: &str = "check the brokers and the network; outboxd goes on by itself";
/// Longest sleep of the loop: its heart has to beat.
const TICK: Duration = Duration::from_secs(1);
/// While anything is parked: between two looks at what was decided about it.
const DECISIONS: Duration = Duration::from_secs(1);
/// Parked streams that are read at once.
const STREAMS_AT_ONCE: usize = 100;
/// Parked events that are read at once take at most this share of what may be in flight.
const AGAIN_SHARE: usize = 4;

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

/// What a session has shown, beyond how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Events that it settled.
    pub settled_events: u64,
    /// Events among which those are that Kafka has refused: from the first that is not settled.
    pub suspects: usize,
}

/// See the module.
pub struct Pump<'l> {
    relay: &'l Relay,
    desk: &'l Desk,
    terms: Terms,
    sender: Sender<'l>,
    saving: Saving,
    batches: mpsc::Receiver<Result<Batch, SourceError>>,
    feed: Option<mpsc::Sender<Result<Batch, SourceError>>>,
    idle: bool,
    /// Since when a batch is waited for.
    wanted_at: Instant,
    /// When to look what was decided about parked events.
    look_at: Instant,
    settled_events: u64,
    stop_by: Option<Instant>,
    /// After trouble the lane keeps saying what it waits for, until something gets through or there is nothing to send.
    unproven: bool,
}

impl<'l> Pump<'l> {
    /// Prepares to go on with what `sender` has been given.
    pub fn new(relay: &'l Relay, desk: &'l Desk, terms: Terms, sender: Sender<'l>, writer: Writer) -> Self {
        let (feed, batches) = mpsc::channel(reader::BATCHES_AHEAD);
        Self {
            relay,
            desk,
            terms,
            sender,
            saving: Saving::new(writer, terms, relay.save_every),
            batches,
            feed: Some(feed),
            idle: false,
            wanted_at: Instant::now(),
            look_at: Instant::now(),
            settled_events: 0,
            stop_by: None,
            unproven: matches!(desk.status().state, LaneState::Waiting | LaneState::Refused | LaneState::Halted),
        }
    }

    /// Pumps until told to stop, or until there is trouble; then winds up: what is settled is saved.
    pub async fn run(
        mut self,
        poll: Poll,
        waker: Waker,
        from: Cursor,
        refusal: &mut watch::Receiver<Option<Refusal>>,
        stop: &CancellationToken,
    ) -> (End, Closed) {
        let (mut tasks, reader) = (TaskGroup::default(), poll.process());
        if let Some(feed) = self.feed.take() {
            tasks.spawn("reader", reader::read(poll, from, waker, feed));
        }
        let ended = self.turn(refusal, stop).await;
        self.batches.close();
        tasks.abort_all().await;
        if let Err(trouble) = &ended {
            let (settled, open) = (self.settled_events, self.sender.ledger.open_events());
            changes::session_ended(self.desk.outbox(), self.desk.lane(), &trouble.to_string(), settled, open);
            let verdict = verdict::judge(trouble);
            if matches!(trouble, Trouble::LeaseLost(_) | Trouble::Fenced) {
                self.desk.metrics.leader.set(0);
            }
            if verdict.wait.is_some() {
                // winding up takes long where a server is silent: nobody may think that we relay meanwhile
                self.desk.enter(verdict.state, Some(&verdict::reason(trouble)), verdict.hint.as_deref());
            }
        }
        self.wind_up(ended, reader).await
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
                () = self.sender.sink.rung() => self.settle()?,
                (topics, answer) = pending(&mut self.sender.inquiry.asking) => {
                    let answered = self.sender.answered(topics, answer);
                    self.progress();
                    answered?;
                }
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
        if !self.sender.wants_batch() {
            self.wanted_at = now;
        }
        self.sender.warmth.cool_if_due(now);
        self.sender.try_again_if_due(now);
        if self.can_send() {
            let sent = self.sender.send_some(self.saving.flushed());
            self.progress();
            sent?;
        }
        if self.sender.waits_for_reports(self.saving.flushed()) {
            self.sender.sink.hurry();
        }
        if self.sender.is_careful_done() {
            return Err(Trouble::CarefulDone);
        }
        self.sender.inquiry.probe_if_due(now);
        self.sender.doubt_if_due();
        let (urgency, needs_wal) = (self.urgency(), self.sender.needs_wal());
        self.saving.start(&mut self.sender.ledger, urgency, needs_wal);
        if self.saving.is_free()
            && let Some(errand) = self.errand(now)
        {
            self.saving.run(errand);
        }
        self.show();
        Ok(())
    }

    fn wants_batch(&self) -> bool {
        self.sender.wants_batch() && self.stop_by.is_none()
    }

    fn can_send(&self) -> bool {
        (self.stop_by.is_none() || self.sender.has_begun()) && self.sender.can_send(self.saving.flushed())
    }

    fn take(&mut self, batch: Option<Result<Batch, SourceError>>) -> Result<(), Trouble> {
        let Some(batch) = batch else { return Err(Trouble::Displaced) }; // the reader ends only with an error, or by a panic that is passed on
        let batch = batch.map_err(Trouble::Source)?;
        self.desk.metrics.events_read.inc_by(as_u64(batch.events.len()));
        self.idle = batch.events.is_empty() && batch.end_mark().is_some();
        self.sender.take(batch);
        self.saving.expect_flush();
        Ok(())
    }

    fn settle(&mut self) -> Result<(), Trouble> {
        let settled = self.sender.settle();
        self.progress();
        settled
    }

    fn progress(&mut self) {
        let progress = self.sender.take_progress();
        if progress.events > 0 {
            self.saving.events_settled();
        }
        self.settled_events = self.settled_events.saturating_add(count(self.desk, &progress));
    }

    // ---- the writer's connection

    /// What is to be done about parked events, if anything, in the order of its importance.
    fn errand(&mut self, now: Instant) -> Option<Errand> {
        if let Some((key, stream, rejection)) = self.sender.take_refused_again() {
            return Some(Errand::Refused(key, stream, rejection));
        }
        let releases = self.sender.ledger.take_releases();
        if !releases.is_empty() {
            return Some(Errand::Remove(releases));
        }
        let parked = &mut self.sender.parked;
        if self.stop_by.is_some() || parked.is_empty() {
            return None;
        }
        if self.look_at <= now {
            self.look_at = later(now, DECISIONS);
            return Some(Errand::Look); // before what is read: it may have been given up because it cannot be
        }
        let streams = if parked.next().is_none() { parked.take_due(STREAMS_AT_ONCE) } else { Vec::new() };
        (!streams.is_empty()).then_some(Errand::Fetch(streams, self.relay.in_flight.size_bytes / AGAIN_SHARE))
    }

    /// A statement on the writer's connection has ended.
    fn worked(&mut self, writer: Writer, done: Done) -> Result<(), Trouble> {
        match self.saving.finish(writer, done)? {
            Finished::Saved(position, parkings) => {
                self.desk.metrics.cursor_saves.inc();
                self.desk.note(|status| status.cursor = Some(position.to_string()));
                self.sender.parked_saved(&parkings);
            }
            Finished::Ran(Ran::Refused(key)) => self.sender.refusal_noted(key),
            Finished::Ran(Ran::GivenUp(key, stream)) => {
                self.sender.refusal_noted(key);
                self.sender.parked.release(&stream);
            }
            Finished::Ran(Ran::Removed(releases)) => self.sender.parked.removed(&releases),
            Finished::Ran(Ran::Fetched(streams, found, extent)) if self.stop_by.is_none() => {
                self.sender.parked.fetched(streams, found, extent);
            }
            Finished::Nothing | Finished::Ran(Ran::Fetched(..)) => {} // when stopping, what is parked is read again by the next one
            Finished::Ran(Ran::Decided(streams)) => {
                self.look_at = later(Instant::now(), DECISIONS);
                let (mut shortened, mut released) = (0_usize, 0_usize);
                for (stream, given_up) in &streams {
                    if *given_up {
                        self.sender.read_again(stream);
                    }
                    let count = if *given_up { &mut shortened } else { &mut released };
                    *count = count.saturating_add(usize::from(self.sender.parked.release(stream)));
                }
                changes::decided(self.desk.outbox(), self.desk.lane(), released, shortened);
            }
        }
        Ok(())
    }

    // ---- status, time, end

    fn show(&mut self) {
        let (open_events, parked) = (self.sender.ledger.open_events(), self.sender.parked.len());
        let at_rest = self.idle && self.sender.wants_batch() && open_events == 0;
        self.unproven &= self.settled_events == 0 && !at_rest;
        let (state, reason, hint) = match (&self.sender.standing, self.sender.inquiry.away()) {
            _ if self.stop_by.is_some() => (LaneState::Draining, None, None),
            (Some(standing), _) => (standing.state, Some(standing.reason.as_str()), standing.hint.as_deref()),
            (None, _) if self.sender.inquiry.is_busy() && self.desk.status().state == LaneState::Waiting => return,
            (None, Some(away)) => {
                (LaneState::Waiting, Some(away.what.as_str()), Some(away.hint.as_deref().unwrap_or(AWAY_HINT)))
            }
            (None, None) if self.is_unacknowledged() => (LaneState::Waiting, Some(UNACKNOWLEDGED), Some(REPLICAS_HINT)),
            (None, None) if self.is_unread() => (LaneState::Waiting, Some(UNREAD), Some(READ_HINT)),
            (None, None) if self.unproven || self.sender.inquiry.is_busy() => return,
            (None, None) if self.sender.is_careful() => (LaneState::Relaying, Some(CAREFUL), None),
            (None, None) => (LaneState::Relaying, None, None),
        };
        self.desk.enter(state, reason, hint);
        self.desk.metrics.in_flight.set(i64::try_from(open_events).unwrap_or(i64::MAX));
        self.desk.metrics.parked_streams.set(i64::try_from(parked).unwrap_or(i64::MAX));
        self.desk.note(|status| (status.in_flight_events, status.parked_streams) = (open_events, Some(parked)));
    }

    /// librdkafka tries for ever, and as long as one broker answers it says nothing.
    fn is_unacknowledged(&self) -> bool {
        self.sender.unsettled_for().is_some_and(|time| time > self.terms.socket_timeout)
    }

    /// The reader is at it for longer than any pause: a very large window, or an answer that was lost.
    fn is_unread(&self) -> bool {
        self.wants_batch() && self.wanted_at.elapsed() > self.relay.poll.max.saturating_add(SLOW_READ)
    }

    fn next_time(&self) -> Instant {
        let (sender, saving) = (&self.sender, &self.saving);
        let times = [
            saving.next_time(self.urgency()),
            sender.standing.as_ref().map(|standing| standing.retry_at).filter(|_| !sender.inquiry.is_busy()),
            sender.inquiry.next_time(),
            (saving.is_free() && self.stop_by.is_none() && !sender.parked.is_empty()).then_some(self.look_at),
        ];
        let tick = later(Instant::now(), TICK);
        times.into_iter().flatten().fold(tick, Instant::min)
    }

    fn urgency(&self) -> Urgency {
        match self.sender.ledger.open_events() {
            _ if self.sender.is_parking_full() => Urgency::AtOnce,
            0 if self.stop_by.is_some() => Urgency::AtOnce,
            0 if self.idle => Urgency::AtRest,
            _ => Urgency::Flowing,
        }
    }

    fn drain(&mut self) {
        self.stop_by = Some(later(Instant::now(), self.relay.shutdown_grace));
        self.batches.close();
        self.sender.drain();
    }

    fn is_settled(&self) -> bool {
        let ledger = &self.sender.ledger;
        ledger.open_events() == 0 && !ledger.has_releases() && self.saving.is_done()
    }

    /// Stop and trouble end alike: collect what the producer still knows, save the settled prefix, give the lease back when stopping.
    async fn wind_up(self, ended: Result<(), Trouble>, reader: i32) -> (End, Closed) {
        let (stopping, settled) = (self.stop_by.is_some(), self.is_settled());
        let until_fence = self.saving.fence_at().saturating_duration_since(Instant::now());
        let patience = match ended {
            _ if stopping => Duration::ZERO,
            Err(Trouble::Fenced) => Duration::ZERO,
            Err(Trouble::Send(ref error)) if is_missing(error) => Duration::ZERO, // before somebody makes it: see `Topics::learn`
            _ => self.terms.socket_timeout.min(until_fence),
        };
        let desk = self.desk;
        let settled_events = self.settled_events;
        let Remains { mut ledger, culprits, suspects, found_culprits } = self.sender.close(patience).await;
        let open_events = ledger.open_events();
        let Ended { writer, unsaved, last } = self.saving.end().await;
        match last {
            Finished::Saved(_, parkings) => sending::parked(desk, culprits, &parkings),
            Finished::Ran(Ran::Refused(key) | Ran::GivenUp(key, _)) => culprits.forget(key), // the next retry sends it
            Finished::Ran(_) | Finished::Nothing => {}
        }
        let last_progress = ledger.take_progress();
        let settled_events = settled_events.saturating_add(count(desk, &last_progress));
        let mut saved = !unsaved && !last_progress.moved;
        if let Some((mut session, mut lease)) = writer {
            if !matches!(ended, Err(Trouble::Fenced | Trouble::Displaced | Trouble::EventGone | Trouble::Db(_))) {
                session.cancel(reader).await;
                if !saved {
                    let parkings = ledger.take_parkings();
                    let result = cursor::save(&mut session, &mut lease, ledger.position(), &parkings).await;
                    saved = matches!(result, Ok(cursor::Saved::Renewed)); // else the row stands where it stood
                    if saved {
                        sending::parked(desk, culprits, &parkings);
                    }
                }
                let releases = ledger.take_releases();
                if saved && !releases.is_empty() {
                    drop(parked::remove(&mut session, &lease, &releases).await); // if it fails, they come twice
                }
            }
            if stopping && open_events == 0 {
                // if it fails, the lease runs out; with records under way it has to
                drop(cursor::release(&mut session, lease).await);
            }
            session.close().await;
        }
        let end = match ended {
            _ if stopping && !settled && (open_events > 0 || !saved) => End::GraceOver,
            Err(Trouble::Send(cause)) if found_culprits => End::Trouble(Trouble::Found(cause)),
            Err(trouble) => End::Trouble(trouble),
            Ok(()) => End::Drained,
        };
        (end, Closed { settled_events, suspects })
    }
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

/// Counts what was settled; how many events that are.
fn count(desk: &Desk, progress: &Progress) -> u64 {
    let settled = as_u64(progress.events.saturating_add(progress.released));
    if settled > 0 {
        desk.metrics.events_published.inc_by(as_u64(progress.published));
        desk.metrics.events_dead_lettered.inc_by(as_u64(progress.dead_lettered));
        desk.note(|status| {
            status.published_events = status.published_events.saturating_add(as_u64(progress.published));
        });
    }
    settled
}

fn as_u64(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
