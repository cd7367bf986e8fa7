//! A relay: what its lane does between two waits, with the cursor, the ledger and the verdicts of production.
//! Connections, clocks and the producer's client are left out: here they only fail.

use crate::kafka::{Kafka, Producer, Record};
use crate::postgres::{Postgres, Row, snapshot};
use crate::setup::{Seed, Setup};
use outboxd::outbox::cursor::{Cursor, Extent};
use outboxd::outbox::event::{EventId, EventKey, RowId};
use outboxd::outbox::parked::{Cause, Parking};
use outboxd::outbox::snapshot::Snapshot;
use outboxd::outbox::stream::Stream;
use outboxd::relay::ledger::{Bounds, Dispatch, Form, Ledger};
use outboxd::relay::verdict::{self, Next, Trouble};
use outboxd::sink::{Generation, SendError, SendErrorKind};

/// What is read and not sent yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Batch {
    from: Cursor,
    window_end: Snapshot,
    rows: Vec<Row>,
    to: Cursor,
    /// The log has to be on disk up to here before anything is sent.
    needs_wal: u8,
}

/// From taking the lease to the first trouble.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Session {
    pub(crate) epoch: u8,
    /// Where the next read begins.
    from: Cursor,
    batch: Option<Batch>,
    /// Rows without their snapshot: half of a read that was split.
    half: Option<Vec<Row>>,
    ledger: Ledger,
    pub(crate) producer: Producer,
    /// Only where parking is a statement of its own: what the cursor has passed already.
    to_park: Vec<Parking>,
    parked_streams: Vec<usize>,
    /// Something failed: nothing is read or sent any more.
    poisoned: bool,
    /// Events were settled that the row does not know; asked only where a save itself takes a transaction id.
    unsaved: bool,
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Relay {
    pub(crate) session: Option<Session>,
    pub(crate) frozen: bool,
    /// The next session sends one event at a time.
    careful: bool,
    /// Events that Kafka refused when they were sent alone.
    culprits: Vec<usize>,
}

impl Relay {
    /// A new session, at the place that the row says.
    pub(crate) fn start(&mut self, postgres: &Postgres, setup: &Setup) {
        let events = if self.careful { 1 } else { setup.in_flight };
        let mut parked_streams: Vec<usize> = postgres.parked.iter().map(|event| setup.stream_of(*event)).collect();
        parked_streams.dedup();
        self.session = Some(Session {
            epoch: postgres.epoch,
            from: postgres.cursor.clone(),
            batch: None,
            half: None,
            ledger: Ledger::new(postgres.cursor.clone(), Generation::FIRST, Bounds { events, bytes: usize::MAX }),
            producer: Producer::default(),
            to_park: Vec::new(),
            parked_streams,
            poisoned: false,
            unsaved: false,
        });
    }

    /// Forgets everything that the row does not know; what the network has of it may still arrive.
    pub(crate) fn end(&mut self, kafka: &mut Kafka, setup: &Setup) {
        if let Some(session) = self.session.take() {
            kafka.abandon(&session.producer, setup);
        }
    }

    /// The process is gone, with all that it has learnt.
    pub(crate) fn crash(&mut self, kafka: &mut Kafka, setup: &Setup) {
        self.end(kafka, setup);
        *self = Self::default();
    }

    /// The session whose process turns.
    pub(crate) fn awake(&self) -> Option<&Session> {
        self.session.as_ref().filter(|_| !self.frozen)
    }

    pub(crate) fn is_free(&self) -> bool {
        self.session.is_none() && !self.frozen
    }

    /// The producer is broken, for one reason or another.
    pub(crate) fn poison(&mut self, trouble: &Trouble) {
        if let Some(session) = &mut self.session {
            session.poisoned = true;
            session.batch = None;
            session.half = None;
        }
        match verdict::judge(trouble).next {
            Next::Carefully => self.careful = true,
            Next::Normally => self.careful = false,
            Next::Again | Next::Smaller(_) => {}
        }
    }

    /// Kafka does not take this event. Among others it has to be found first.
    pub(crate) fn refused(&mut self, event: usize, setup: &Setup) {
        let Some(session) = &mut self.session else { return };
        session.producer.refuse(event, setup);
        let cause = failure(SendErrorKind::Rejection);
        if self.careful {
            self.culprits.push(event);
            self.poison(&Trouble::Found(cause));
        } else {
            self.poison(&Trouble::Send(cause));
        }
    }

    pub(crate) fn broken(&mut self) {
        self.poison(&Trouble::Send(failure(SendErrorKind::Fatal)));
    }

    /// Hands what is read to the producer, as far as there is room.
    pub(crate) fn send(&mut self, setup: &Setup) {
        let Self { session: Some(session), culprits, .. } = self else { return };
        let Some(mut batch) = session.batch.take() else { return };
        while let Some(row) = batch.rows.first().copied() {
            if !session.ledger.has_room(1) {
                session.batch = Some(batch);
                return;
            }
            batch.rows.remove(0);
            let position = batch.from.at(&batch.window_end, row.row_id());
            let follows = session.parked_streams.contains(&row.stream) && !setup.is_sown(Seed::FollowersSent);
            if culprits.contains(&row.event) || follows {
                session.ledger.parked(parking(&row), position, 1);
                session.parked_streams.push(row.stream);
                session.parked_streams.sort_unstable();
                session.parked_streams.dedup();
            } else {
                let token = session.ledger.sent(Dispatch { key: key(&row), form: Form::Records }, position, 1, 1);
                session.producer.waiting.push(Record { event: row.event, token });
                if setup.is_sown(Seed::SavedBeforeAcknowledged) {
                    session.ledger.settled(token);
                    session.ledger.advance();
                }
            }
        }
        session.mark(&batch.to);
        session.note_progress(setup);
    }

    /// Saves what may be saved. `false` when a newer holder has the lane.
    #[must_use]
    pub(crate) fn save(&mut self, own: usize, postgres: &mut Postgres, setup: &Setup) -> bool {
        let Some(session) = &mut self.session else { return true };
        if session.epoch != postgres.epoch && !setup.is_sown(Seed::EpochNotChecked) {
            self.poison(&Trouble::Fenced);
            return false;
        }
        let position = session.ledger.position().clone();
        session.to_park.extend(session.ledger.take_parkings());
        if setup.is_sown(Seed::ParkedBesideSave) && position != postgres.cursor {
            postgres.save(own, position, &[], setup);
            return true;
        }
        session.unsaved = false;
        let passed: Vec<usize> = session.to_park.drain(..).map(|parking| event_of(&parking)).collect();
        postgres.save(own, position, &passed, setup);
        true
    }
}

impl Session {
    // ---- reading

    /// Whether a read would bring anything: events, or the end of a window.
    pub(crate) fn can_read(&self, postgres: &Postgres, setup: &Setup) -> bool {
        if self.poisoned || self.batch.is_some() {
            return false;
        }
        match setup.seed {
            Some(Seed::CursorOnId | Seed::HorizonByXid) => self.one_row(postgres, setup).is_some(),
            _ => match &self.from {
                Cursor::Closed { s } => self.half.is_some() || *s != seen(postgres, setup),
                Cursor::Open { .. } => true,
            },
        }
    }

    pub(crate) fn read(&mut self, postgres: &Postgres, setup: &Setup) {
        let batch = match (setup.seed, &self.from) {
            (Some(Seed::CursorOnId | Seed::HorizonByXid), _) => self.one_row(postgres, setup).unwrap(),
            (Some(Seed::SnapshotAfterRows), Cursor::Closed { s }) if self.half.is_none() => {
                self.half = Some(window(s, postgres.now(), postgres));
                return;
            }
            (_, Cursor::Closed { s }) => {
                let seen = seen(postgres, setup);
                let rows = self.half.take().unwrap_or_else(|| window(s, &seen, postgres));
                self.first(&seen, rows, postgres, setup)
            }
            (_, Cursor::Open { s, t, after }) => page(s, t, *after, postgres, setup),
        };
        self.from = batch.to.clone();
        if batch.rows.is_empty() {
            self.mark(&batch.to);
            self.note_progress(setup);
        } else {
            self.batch = Some(batch);
        }
    }

    /// Opens a window: asks for one row more than a page holds.
    fn first(&self, seen: &Snapshot, mut rows: Vec<Row>, postgres: &Postgres, setup: &Setup) -> Batch {
        let more = rows.len() > setup.page;
        rows.truncate(setup.page);
        let stopped_at = rows.last().filter(|_| more).map(Row::row_id);
        let to = self.from.after_first(seen, extent(stopped_at));
        Batch { from: self.from.clone(), window_end: seen.clone(), rows, to, needs_wal: postgres.wal }
    }

    /// The two ways that compare numbers, written as windows of one row.
    fn one_row(&self, postgres: &Postgres, setup: &Setup) -> Option<Batch> {
        let batch = |row: &Row, s: Snapshot, t: Snapshot| Batch {
            from: Cursor::Closed { s: s.clone() },
            to: Cursor::Open { s, t: t.clone(), after: row.row_id() },
            window_end: t,
            rows: vec![*row],
            needs_wal: postgres.wal,
        };
        let mut rows: Vec<&Row> =
            postgres.rows_in(postgres.now()).filter(|row| !row.is_settled_by(&self.from)).collect();
        if setup.is_sown(Seed::CursorOnId) {
            return rows.first().map(|row| batch(row, Snapshot::before_all(), snapshot(1_000, 1_000, &[])));
        }
        let below = |xmax: u64| snapshot(xmax, xmax, &[]);
        rows.retain(|row| row.xid < postgres.horizon());
        let first = rows.into_iter().min_by_key(|row| (row.xid, row.id));
        first.map(|row| batch(row, below(row.xid), below(row.xid + 1)))
    }

    // ---- sending and settling

    pub(crate) fn can_send(&self, postgres: &Postgres, setup: &Setup) -> bool {
        let durable = |batch: &Batch| batch.needs_wal <= postgres.flushed || setup.is_sown(Seed::SentBeforeFlush);
        self.batch.as_ref().is_some_and(|batch| durable(batch) && self.ledger.has_room(1))
    }

    fn mark(&mut self, to: &Cursor) {
        if matches!(to, Cursor::Closed { .. }) {
            self.ledger.mark(to.clone());
        }
    }

    fn note_progress(&mut self, setup: &Setup) {
        let progress = self.ledger.take_progress();
        self.unsaved |= setup.burns() && progress.events > 0;
    }

    /// The first record in flight with this event lands.
    pub(crate) fn land(&mut self, event: usize, kafka: &mut Kafka, setup: &Setup) {
        let place = self.producer.waiting.iter().position(|record| record.event == event).unwrap();
        let record = self.producer.waiting.remove(place);
        self.producer.landed.push(record);
        kafka.append(event, setup);
    }

    pub(crate) fn settle(&mut self, event: usize, kafka: &mut Kafka, setup: &Setup) {
        let place = self.producer.landed.iter().position(|record| record.event == event).unwrap();
        let record = self.producer.landed.remove(place);
        self.ledger.settled(record.token);
        self.ledger.advance();
        self.note_progress(setup);
        kafka.acknowledge(event);
    }

    // ---- saving and ending

    /// Whether a save has something to say, or to find out.
    pub(crate) fn can_save(&self, postgres: &Postgres, setup: &Setup) -> bool {
        let moved = if setup.burns() { self.unsaved } else { *self.ledger.position() != postgres.cursor };
        moved || self.epoch != postgres.epoch || !self.to_park.is_empty()
    }

    pub(crate) fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    pub(crate) fn can_break(&self) -> bool {
        !self.poisoned && self.ledger.open_events() > 0
    }

    pub(crate) fn can_stop(&self, postgres: &Postgres, setup: &Setup) -> bool {
        self.ledger.open_events() == 0 && !self.can_save(postgres, setup)
    }
}

fn key(row: &Row) -> EventKey {
    let number = u128::try_from(row.event).unwrap();
    EventKey { id: row.row_id(), event_id: EventId::new(uuid::Uuid::from_u128(number)) }
}

fn parking(row: &Row) -> Parking {
    let stream = Stream { aggregate_type: "Order".to_owned(), aggregate_id: row.stream.to_string() };
    Parking { key: key(row), stream, cause: Cause::Follows }
}

fn event_of(parking: &Parking) -> usize {
    usize::try_from(parking.key.event_id.get().as_u128()).unwrap()
}

/// The snapshot of a statement that starts now.
fn seen(postgres: &Postgres, setup: &Setup) -> Snapshot {
    match setup.seed {
        Some(Seed::HotStandby) => postgres.on_standby(),
        Some(Seed::HorizonById) => snapshot(postgres.horizon(), postgres.horizon(), &[]),
        _ => postgres.now().clone(),
    }
}

/// Reads on in an open window.
fn page(s: &Snapshot, t: &Snapshot, after: RowId, postgres: &Postgres, setup: &Setup) -> Batch {
    let t = if setup.is_sown(Seed::AfterUnderNewWindow) { postgres.now() } else { t };
    let from = Cursor::Open { s: s.clone(), t: t.clone(), after };
    let upto = RowId::new(postgres.rows_in(t).map(|row| row.id).max().unwrap_or(0));
    let bound = Cursor::page_bound(after, upto);
    let looks_at = |row: &&Row| Cursor::is_behind(row.row_id(), after) && !Cursor::is_behind(row.row_id(), bound);
    let rows: Vec<Row> =
        postgres.rows_in(t).filter(looks_at).filter(|row| !row.is_seen_by(s)).take(setup.page).copied().collect();
    let stopped_at = rows.last().filter(|_| rows.len() >= setup.page).map(Row::row_id);
    let behind = match stopped_at {
        None if bound != upto => {
            let mut beyond = postgres.rows_in(postgres.now()).map(Row::row_id);
            Cursor::behind_gap(bound, beyond.find(|id| Cursor::is_behind(*id, bound)))
        }
        _ => bound,
    };
    let to = from.after_page(behind, upto, extent(stopped_at));
    Batch { from, window_end: t.clone(), rows, to, needs_wal: postgres.wal }
}

/// The rows between two snapshots.
fn window(s: &Snapshot, seen: &Snapshot, postgres: &Postgres) -> Vec<Row> {
    postgres.rows_in(seen).filter(|row| !row.is_seen_by(s)).copied().collect()
}

fn extent(stopped_at: Option<RowId>) -> Extent {
    stopped_at.map_or(Extent::Whole, Extent::UpTo)
}

fn failure(kind: SendErrorKind) -> SendError {
    SendError { kind, code: String::new(), what: String::new(), hint: None }
}
