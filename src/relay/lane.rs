//! A lane from start to end: connect, pass the guards, take the lease, pump; after trouble the same again, from the saved cursor.
//! Starting and recovering are the same code.

use super::culprits::Culprits;
use super::desk::Desk;
use super::inquiry::Inquiry;
use super::leadership::{Owner, Seat, Terms, Watch};
use super::ledger::{Bounds, Ledger};
use super::parking::{MOST_STREAMS, Parked};
use super::pump::{End, Pump};
use super::sending::Sender;
use super::status::LaneState;
use super::verdict::{self, Next, Trouble};
use super::waker::{Door, Waker};
use crate::config::Config;
use crate::config::outbox::{Outbox, Start};
use crate::db::{self, DbError, Purpose, Session};
use crate::outbox::cursor::Cursor;
use crate::outbox::lane::LaneId;
use crate::routing::Router;
use crate::sink::Generation;
use crate::sink::kafka::KafkaSink;
use crate::sink::kafka::options::{BATCH_BYTES, Care, Tuning};
use crate::sink::kafka::topics::Topics;
use crate::source::SourceError;
use crate::source::poll::Poll;
use crate::source::poll::pace::PageSize;
use crate::store::cursor::{self, Acquired, Claim, Lease};
use crate::store::guards::{self, Note, Place, Refusal};
use crate::store::{parked, standing};
use crate::telemetry::changes;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often a standby looks whether the lease is free.
const STANDBY_LOOK: Duration = Duration::from_millis(500);
/// Which cluster it is, is asked again before a lease is taken, if nobody has asked for this long: a standby may have waited for weeks.
const CLUSTER_KNOWN: Duration = Duration::from_secs(10);
/// Longest sleep without a heartbeat.
const TICK: Duration = Duration::from_secs(1);
/// A session that lived this long was a good one: the back-off starts anew.
const GOOD_SESSION: Duration = Duration::from_secs(10);
/// A page takes at most these shares of what may be in flight, by events and by bytes. With one page being sent, one read ahead and
/// one being read, they take a fifth of the bound beside it; pages of small events are bounded by their number.
const PAGE_SHARE: usize = 4;
const PAGE_BYTES_SHARE: usize = 16;

/// One lane of one outbox.
pub struct Lane {
    config: Arc<Config>,
    outbox: Outbox,
    id: LaneId,
    router: Router,
    desk: Arc<Desk>,
    refusal: watch::Receiver<Option<Refusal>>,
    stop: CancellationToken,
    terms: Terms,
    owner: Option<(Seat, Owner)>,
    watch: Watch,
    generation: Generation,
    batch_bytes: usize,
    /// Events to be sent one by one, because Kafka has refused one of them.
    careful_events: usize,
    /// How often that found nobody: what comes next may be another than what was open then.
    careful_rounds: u32,
    culprits: Culprits,
    suspects_batch: bool,
    failures: u32,
    /// Whether this session has settled anything.
    has_settled: bool,
    /// When this session began to pump.
    led_since: Option<Instant>,
    /// Until when nothing may be sent: something of an earlier holder can be under way.
    hold_until: Option<Instant>,
    first_look: Arc<OnceLock<bool>>,
}

/// How a lane ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All that was sent is settled and saved.
    Clean,
    /// The grace period was not enough.
    Unsettled,
}

/// What a session works with.
struct Parts {
    writer: Session,
    reader: Session,
    topics: Topics,
    /// When the cluster has said which one it is.
    asked_at: Instant,
    claim: Claim,
}

impl Lane {
    /// Prepares a lane; nothing is connected yet. All lanes of a process share the `first_look`.
    pub fn new(
        config: Arc<Config>,
        outbox: Outbox,
        lane: LaneId,
        desk: Arc<Desk>,
        refusal: watch::Receiver<Option<Refusal>>,
        stop: CancellationToken,
        first_look: Arc<OnceLock<bool>>,
    ) -> Self {
        let (router, terms) = (Router::compile(&outbox), Terms::of(config.relay.lease));
        Self {
            config,
            outbox,
            id: lane,
            router,
            desk,
            refusal,
            stop,
            terms,
            owner: None,
            watch: Watch::default(),
            generation: Generation::FIRST,
            batch_bytes: BATCH_BYTES,
            careful_events: 0,
            careful_rounds: 0,
            culprits: Culprits::default(),
            suspects_batch: false,
            failures: 0,
            has_settled: false,
            led_since: None,
            hold_until: None,
            first_look,
        }
    }

    /// Works until it is told to stop. Whatever Postgres or Kafka do, it goes on, and says why it does not get on.
    pub async fn run(mut self) -> Ended {
        let ended = loop {
            self.led_since = None;
            match Box::pin(self.session()).await {
                Ok(ended) => break ended,
                Err(trouble) => {
                    if self.was_good(&trouble) {
                        self.failures = 0;
                    }
                    self.learn_from(&trouble);
                    if !self.wait_after(&trouble).await {
                        break Ended::Clean; // nothing is in flight between two sessions
                    }
                    self.failures = self.failures.saturating_add(1);
                }
            }
        };
        self.desk.enter(LaneState::Stopped, None, None);
        ended
    }

    /// Whether the back-off starts anew: the session lived for long, or delivered something until Postgres went away.
    fn was_good(&mut self, trouble: &Trouble) -> bool {
        let has_settled = std::mem::take(&mut self.has_settled);
        let postgres_away =
            matches!(trouble, Trouble::LeaseLost(_) | Trouble::Db(_) | Trouble::Source(SourceError::Db(_)));
        has_settled && postgres_away || self.led_since.is_some_and(|since| since.elapsed() > GOOD_SESSION)
    }

    /// One session, from connecting to the first trouble or to the end.
    async fn session(&mut self) -> Result<Ended, Trouble> {
        self.refusal.mark_unchanged(); // what was told before is looked at anew by ourselves
        let Some(parts) = self.unless_stopped(Self::gather).await? else { return Ok(Ended::Clean) };
        let mut parts = parts;
        let Some((lease, cursor)) = self.lead(&mut parts).await? else { return Ok(Ended::Clean) };
        changes::lease_acquired(self.desk.outbox(), self.desk.lane(), lease.epoch().get(), &cursor.to_string());
        self.desk.metrics.leader.set(1);
        self.desk.note(|status| (status.epoch, status.cursor) = (Some(lease.epoch().get()), Some(cursor.to_string())));
        self.led_since = Some(Instant::now());
        let end = Box::pin(self.pump(parts, lease, cursor)).await;
        self.desk.metrics.leader.set(0);
        self.desk.metrics.parked_streams.set(0);
        self.desk.metrics.in_flight.set(0);
        self.desk.note(|status| {
            (status.epoch, status.parked_streams, status.in_flight_events) = (None, None, 0); // whoever leads now knows
        });
        match end {
            End::Drained => Ok(Ended::Clean),
            End::GraceOver => Ok(Ended::Unsettled),
            End::Trouble(trouble) => Err(trouble),
        }
    }

    /// Phase 1: a pair of connections to one primary, the guards, a client of the cluster that the cursor belongs to.
    async fn gather(&mut self) -> Result<Parts, Trouble> {
        let url = self.config.postgres.url.clone();
        let mut writer = db::connect(&url, Purpose::Write).await.map_err(Trouble::Db)?;
        let findings = standing::look(&mut writer, std::slice::from_ref(&self.outbox.name.as_str().to_owned()))
            .await
            .map_err(Trouble::Db)?;
        if let Some(refusal) = findings.iter().find_map(standing::Finding::refusal) {
            return Err(Trouble::Refused(refusal));
        }
        self.desk.beat();
        let mut topics = Topics::new(&self.config.kafka, self.terms.socket_timeout).map_err(Trouble::Send)?;
        let cluster = topics.cluster().await.map_err(Trouble::Send)?;
        let asked_at = Instant::now();
        self.desk.beat();
        let (_, note) = self.pass_guards(&mut writer, &cluster).await?;
        self.say(note);
        let reader = db::connect(&url, Purpose::Read).await.map_err(Trouble::Db)?;
        if reader.server.pid == writer.server.pid {
            return Err(Trouble::Db(DbError::pooler(&reader.server.host))); // two open sessions of one process
        }
        if !reader.server.is_same_place(&writer.server) {
            return Err(Trouble::Displaced);
        }
        let claim = self.claim(&writer, cluster);
        Ok(Parts { writer, reader, topics, asked_at, claim })
    }

    async fn pass_guards(&mut self, writer: &mut Session, cluster: &str) -> Result<(Place, Note), Trouble> {
        let name = self.outbox.name.as_str();
        let place = guards::place(writer, name, self.id).await.map_err(Trouble::Db)?;
        self.any_at_start(&place);
        let note = guards::judge_place(&place, name, &writer.server.role, cluster).map_err(Trouble::Refused)?;
        if place.cursor.is_none() {
            self.begin(writer, &place).await?;
        }
        Ok((place, note))
    }

    fn say(&self, note: Note) {
        let moved = |what: String| changes::moved(self.desk.outbox(), self.desk.lane(), &what);
        match note {
            Note::AsBefore => {}
            Note::Moved { from, to } => {
                moved(format!("system identifier {from} -> {to}, cursor intact: upgraded or moved; run ANALYZE"));
            }
            Note::FailedOver { from, to } => {
                moved(format!("timeline {from} -> {to}: failed over; the cursor is read again"));
            }
        }
    }

    /// The first cursor of an outbox.
    async fn begin(&self, writer: &mut Session, place: &Place) -> Result<(), Trouble> {
        let name = self.outbox.name.as_str();
        let first = (!self.any_at_start(place)).then_some(Start::Earliest);
        let start = guards::beginning(name, self.outbox.start.or(first)).map_err(Trouble::Refused)?;
        cursor::begin(writer, name, self.id, start).await.map_err(Trouble::Db)?;
        changes::cursor_begun(name, self.desk.lane(), if start == Start::Earliest { "earliest" } else { "latest" });
        Ok(())
    }

    /// Whether any cursor was there when the first lane of this process looked: those that our own lanes make do not count.
    fn any_at_start(&self, place: &Place) -> bool {
        *self.first_look.get_or_init(|| place.any_cursor)
    }

    fn claim(&mut self, writer: &Session, kafka_cluster: String) -> Claim {
        let outbox = self.outbox.name.as_str().to_owned();
        let seat = Seat {
            system_id: writer.server.system_id,
            database_oid: writer.server.database_oid.0,
            outbox: outbox.clone(),
            lane: self.id.get(),
        };
        let kept = self.owner.take().filter(|(kept, _)| *kept == seat);
        let (seat, owner) = kept.unwrap_or_else(|| {
            let owner = Owner::find(&self.config.relay.state, &seat);
            if let Some(warning) = &owner.warning {
                changes::finding(
                    self.desk.outbox(),
                    warning,
                    Some("give each relay a writable folder of its own in relay.state"),
                );
            }
            (seat, owner)
        });
        let claim = Claim { outbox, lane: self.id, owner: owner.id.clone(), ttl: self.terms.ttl, kafka_cluster };
        self.owner = Some((seat, owner));
        claim
    }

    /// Phase 2: the lease, for which a standby waits. `None` when told to stop.
    async fn lead(&mut self, parts: &mut Parts) -> Result<Option<(Lease, Cursor)>, Trouble> {
        loop {
            let (place, _) = self.pass_guards(&mut parts.writer, &parts.claim.kafka_cluster).await?;
            let row = place.cursor.as_ref();
            let until = row.and_then(|row| row.lease_until.clone());
            let unchanged = self.watch.is_unchanged(until.as_deref(), Instant::now(), self.terms);
            let seen = until.as_deref().filter(|_| unchanged);
            if cursor::is_free(&place, &parts.claim, seen) {
                if parts.asked_at.elapsed() > CLUSTER_KNOWN {
                    if self.unless_stopped(async |lane: &mut Self| lane.ask_again(parts).await).await?.is_none() {
                        return Ok(None);
                    }
                    continue; // the row may be another one by now
                }
                let outlived = row.and_then(|row| row.owner.as_deref()).is_some_and(|owner| owner != parts.claim.owner);
                if outlived {
                    self.hold_until = Instant::now().checked_add(self.terms.hold); // before: the answer may be lost
                    if let Some((_, owner)) = &mut self.owner {
                        owner.rename(); // who starts here before the hold is over must not take the lease for its own
                        parts.claim.owner.clone_from(&owner.id);
                    }
                }
                let acquired = cursor::acquire(&mut parts.writer, &parts.claim, seen).await.map_err(Trouble::Row)?;
                if let Acquired::Held(lease, cursor) = acquired {
                    return self.hold(parts, lease, cursor).await;
                }
                self.hold_until = None;
            }
            let holder = row.and_then(|row| row.owner.as_deref()).unwrap_or("nobody yet");
            let reason =
                format!("another relay ({holder}) holds the lease of {}/{}", self.desk.outbox(), self.desk.lane());
            self.desk.enter(LaneState::Standby, Some(&reason), None);
            if !self.sleep(STANDBY_LOOK).await {
                return Ok(None);
            }
        }
    }

    async fn ask_again(&self, parts: &mut Parts) -> Result<(), Trouble> {
        parts.claim.kafka_cluster = parts.topics.cluster().await.map_err(Trouble::Send)?;
        parts.asked_at = Instant::now();
        self.desk.beat();
        Ok(())
    }

    /// After an expired lease nothing is sent until nothing of the earlier holder can be under way, whatever interrupts the wait.
    /// The lease is renewed meanwhile. Who is told to stop, or is killed, lets it run out, so that the next one waits too.
    async fn hold(
        &mut self,
        parts: &mut Parts,
        mut lease: Lease,
        cursor: Cursor,
    ) -> Result<Option<(Lease, Cursor)>, Trouble> {
        while let Some(rest) = self.hold_until.map(|until| until.saturating_duration_since(Instant::now())) {
            if rest.is_zero() {
                self.hold_until = None;
                break;
            }
            let reason = format!(
                "the relay before this one vanished; sending in {}",
                humantime::format_duration(self.terms.hold)
            );
            self.desk.enter(LaneState::Holding, Some(&reason), None);
            if !self.sleep(rest.min(self.terms.renew_every)).await {
                return Ok(None);
            }
            let saved = cursor::save(&mut parts.writer, &mut lease, &cursor, &[]).await;
            verdict::saved(saved.map_err(Trouble::Db)?)?;
        }
        if let Some((_, owner)) = &mut self.owner {
            owner.keep();
        }
        Ok(Some((lease, cursor)))
    }

    /// Streams of which events are parked: their later ones have to wait behind them.
    async fn parked(&self, parts: &mut Parts) -> Result<Parked, Trouble> {
        let heads = parked::load(&mut parts.reader, self.outbox.name.as_str(), self.id, MOST_STREAMS.saturating_add(1));
        let heads = match tokio::time::timeout(self.terms.fence, heads).await {
            Ok(heads) => heads.map_err(Trouble::Db)?,
            Err(_) => return Err(Trouble::Db(DbError::silent("reading what is parked", self.terms.fence))),
        };
        if heads.len() > MOST_STREAMS {
            let message = format!("more than {MOST_STREAMS} streams are parked");
            let hint = Some("discard what nobody needs: outboxd parked discard".to_owned());
            return Err(Trouble::Refused(Refusal { message, hint }));
        }
        Ok(Parked::new(heads))
    }

    /// Phase 3: read, send, settle, save.
    async fn pump(&mut self, mut parts: Parts, lease: Lease, cursor: Cursor) -> End {
        let parked = match self.parked(&mut parts).await {
            Ok(parked) => parked,
            Err(trouble) => return End::Trouble(trouble),
        };
        let care = if self.careful_events > 0 { Care::Alone } else { Care::Batched };
        let tuning = Tuning { batch_bytes: self.batch_bytes, care, socket_timeout: self.terms.socket_timeout };
        self.generation = self.generation.next();
        let in_flight = &self.config.relay.in_flight;
        let sink = match KafkaSink::new(&self.config.kafka, tuning, self.generation) {
            Ok(sink) => sink,
            Err(error) => return End::Trouble(Trouble::Send(error)),
        };
        let door = self.outbox.doorbell.then(|| Door {
            url: self.config.postgres.url.clone(),
            reader: parts.reader.server.clone(),
            desk: Arc::clone(&self.desk),
        });
        let waker = Waker::new(self.config.relay.poll, door);
        let poll = Poll::new(
            parts.reader,
            PageSize::new(in_flight.events / PAGE_SHARE, in_flight.size_bytes / PAGE_BYTES_SHARE),
        );
        let bounds = Bounds { events: in_flight.events, bytes: in_flight.size_bytes };
        let ledger = Ledger::new(cursor.clone(), self.generation, bounds);
        let sender = Sender::new(
            &self.router,
            &self.desk,
            &mut self.culprits,
            sink,
            Inquiry::new(parts.topics, parts.claim.kafka_cluster),
            ledger,
            parked,
            self.careful_events,
        );
        let pump = Pump::new(&self.config.relay, &self.desk, self.terms, sender, (parts.writer, lease));
        let (end, closed) = pump.run(poll, waker, cursor, &mut self.refusal, &self.stop).await;
        self.has_settled = closed.settled_events > 0;
        if care == Care::Batched && self.led_since.is_some_and(|since| since.elapsed() > GOOD_SESSION) {
            self.careful_rounds = 0; // what was suspected before is long past
        }
        match &end {
            End::Trouble(Trouble::Send(error)) if error.is_rejection() => {
                self.careful_events = closed.suspects.max(1).saturating_mul(1 << self.careful_rounds);
                self.careful_rounds = self.careful_rounds.saturating_add(1).min(10);
                self.suspects_batch = error.code.starts_with("Message"); // too large: the record, or the batch it was in
            }
            End::Trouble(Trouble::Found(_)) => self.careful_rounds = 0,
            _ => {}
        }
        end
    }

    fn learn_from(&mut self, trouble: &Trouble) {
        match verdict::judge(trouble).next {
            Next::Again | Next::Carefully => {}
            Next::Smaller(bytes) => self.batch_bytes = bytes,
            Next::Normally => {
                self.careful_events = 0;
                if std::mem::take(&mut self.suspects_batch) {
                    self.batch_bytes = (self.batch_bytes / 2).max(1_024); // every event passed alone: it was the batch
                }
            }
        }
        if let (Trouble::Fenced, Some((_, owner))) = (trouble, &mut self.owner) {
            owner.renew();
        }
    }

    /// Says what is wrong and waits as long as the verdict says. `false` when told to stop.
    async fn wait_after(&mut self, trouble: &Trouble) -> bool {
        let verdict = verdict::judge(trouble);
        let reason = verdict::reason(trouble);
        self.desk.metrics.session_ended(verdict.kind);
        if verdict.wait.is_some() {
            self.desk.enter(verdict.state, Some(&reason), verdict.hint.as_deref());
        }
        self.desk.note(|status| status.last_error = Some(reason));
        match verdict.wait {
            Some(backoff) => self.sleep(backoff.pause(self.failures, rand::random())).await,
            None => !self.stop.is_cancelled(),
        }
    }

    /// Sleeps with a beating heart; `false` when told to stop.
    async fn sleep(&self, mut rest: Duration) -> bool {
        while !rest.is_zero() {
            let step = rest.min(TICK);
            self.desk.beat();
            if self.stop.run_until_cancelled(tokio::time::sleep(step)).await.is_none() {
                return false;
            }
            rest = rest.saturating_sub(step);
        }
        !self.stop.is_cancelled()
    }

    async fn unless_stopped<T>(
        &mut self,
        phase: impl AsyncFnOnce(&mut Self) -> Result<T, Trouble>,
    ) -> Result<Option<T>, Trouble> {
        let stop = self.stop.clone();
        stop.run_until_cancelled(phase(self)).await.transpose()
    }
}
