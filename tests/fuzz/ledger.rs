//! The ledger and the set of parked streams, against a table of what happened to each event.
//!
//! An input is a run of a lane: each byte a step. Events are written, read, sent, left out, refused and parked; reports come
//! in any order; one statement at a time is under way, and sees the rows of a moment of its own; an operator decides; the
//! process dies and another goes on from what was saved.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use outboxd::outbox::cursor::Cursor;
use outboxd::outbox::event::{Event, EventId, EventKey, Micros, RowId};
use outboxd::outbox::parked::{Cause, Parking, Release};
use outboxd::outbox::snapshot::Snapshot;
use outboxd::outbox::stream::Stream;
use outboxd::relay::ledger::{Bounds, Dispatch, Form, Ledger, Progress};
use outboxd::relay::parking::Parked;
use outboxd::sink::{Generation, Token};
use outboxd::store::parked::{Extent, Fetched, Head};
use uuid::Uuid;

use crate::bytes::Bytes;

pub(crate) const WORDS: &[&str] = &[];

/// Few, so that they meet.
const STREAMS: usize = 3;

const BOUNDS: Bounds = Bounds { events: 5, bytes: 2_000 };

/// Inputs are read no further.
const STEPS: usize = 400;

/// What an event is to become when it is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Records(usize),
    LeftOut,
    Refused,
}

/// A row of `outbox.parked` that is not settled.
#[derive(Clone, Debug)]
struct Row {
    id: i64,
    stream: usize,
    is_rejection: bool,
    decision: Option<Decision>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Retry,
    Discard,
}

/// What is in the ledger, in its order.
#[derive(Clone, Debug)]
struct Entry {
    what: What,
    /// Records that are not acknowledged.
    open: usize,
    bytes: usize,
    token: Option<Token>,
    position: Option<Cursor>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Sent(i64),
    LeftOut,
    Parked(i64),
    Resent(i64),
    EndMark,
}

/// What the connection of the writer is to be used for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Job {
    Save,
    Errand,
}

/// At which end of its time a statement sees the rows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sees {
    AtFirst,
    AtLast,
}

/// The statement that is under way on the connection of the writer.
enum Statement {
    Save(Cursor, Vec<Parking>, usize),
    Remove(Vec<Release>),
    Refused(i64),
    Fetch(Vec<Stream>, Option<(Vec<Fetched>, Extent)>),
    Look(Option<Vec<(Stream, bool)>>),
}

/// The database, which outlives a session.
#[derive(Default)]
struct Database {
    /// The stream of each event, by id from 1.
    events: Vec<usize>,
    fates: HashMap<i64, Fate>,
    parked: Vec<Row>,
    /// Everything up to this id is settled.
    saved: i64,
    sent: BTreeSet<i64>,
    left_out: BTreeSet<i64>,
    discarded: BTreeSet<i64>,
    /// Which came out of the ledger to be parked, by session.
    was_parked: BTreeSet<i64>,
}

/// One session of the lane beside its model.
struct Session {
    ledger: Ledger,
    parked: Parked,
    generation: Generation,
    entries: Vec<Entry>,
    /// True of what is settled.
    position: Cursor,
    /// The last id that was read.
    read: i64,
    /// Ids and their bytes that are to be parked by the next save, and may be.
    parkable: Vec<(i64, usize)>,
    /// Ids whose release is under way: sent, and not yet removed from the table.
    released: Vec<i64>,
    refused_again: Vec<i64>,
    under_way: Option<Statement>,
    progress: Progress,
    stale: Vec<Token>,
}

fn stream(number: usize) -> Stream {
    Stream { aggregate_type: "Order".to_owned(), aggregate_id: number.to_string() }
}

fn key(id: i64) -> EventKey {
    EventKey { id: RowId::new(id), event_id: EventId::new(Uuid::from_u128(id.unsigned_abs().into())) }
}

fn event(id: i64, number: usize) -> Event {
    let Stream { aggregate_type, aggregate_id } = stream(number);
    Event {
        id: RowId::new(id),
        event_id: key(id).event_id,
        previous_event_id: None,
        sequence: None,
        created_at: Micros(0),
        aggregate_type,
        aggregate_id,
        event_type: "Placed".to_owned(),
        payload: None,
        headers: None,
    }
}

fn at(id: i64) -> Cursor {
    Cursor::earliest().at(&Snapshot::parse("9:9:").unwrap(), RowId::new(id))
}

impl Database {
    fn stream_of(&self, id: i64) -> usize {
        self.events[usize::try_from(id - 1).unwrap()]
    }

    fn last(&self) -> i64 {
        i64::try_from(self.events.len()).unwrap()
    }

    fn rows(&self, number: usize) -> impl Iterator<Item = &Row> {
        self.parked.iter().filter(move |row| row.stream == number)
    }

    /// What a new session reads: the first row of each stream says whether it may go on.
    fn heads(&self) -> Vec<Head> {
        let first = |number| self.rows(number).next().map(|row| (number, !row.is_rejection || row.decision.is_some()));
        (0..STREAMS).filter_map(first).map(|(number, released)| Head { stream: stream(number), released }).collect()
    }

    /// The first rows of the streams, up to a budget.
    fn fetch(&self, asked: &[Stream], rows_each: usize, budget: usize) -> (Vec<Fetched>, Extent) {
        let mut found = Vec::new();
        for name in asked {
            let number = name.aggregate_id.parse().unwrap();
            for row in self.rows(number).take(rows_each) {
                let released = !row.is_rejection && row.decision.is_none() || row.decision == Some(Decision::Retry);
                found.push(Fetched { event: event(row.id, number), released });
                if found.len() > budget {
                    return (found, Extent::Cut);
                }
            }
        }
        (found, Extent::Whole)
    }

    /// Carries out what was decided to be discarded, and says which streams may go on, and of which an event was given up.
    fn look(&mut self) -> Vec<(Stream, bool)> {
        let decided: BTreeSet<usize> =
            self.parked.iter().filter(|row| row.decision.is_some()).map(|row| row.stream).collect();
        let discarded: Vec<i64> =
            self.parked.iter().filter(|row| row.decision == Some(Decision::Discard)).map(|row| row.id).collect();
        self.parked.retain(|row| row.decision != Some(Decision::Discard));
        let given_up: BTreeSet<usize> = discarded.iter().map(|id| self.stream_of(*id)).collect();
        self.discarded.extend(discarded);
        decided.into_iter().map(|number| (stream(number), given_up.contains(&number))).collect()
    }

    /// Whether everything of the stream before an event is out of the way: only then may the event be sent.
    fn is_next(&self, id: i64) -> bool {
        let number = self.stream_of(id);
        let done = |id: &i64| self.sent.contains(id) || self.left_out.contains(id) || self.discarded.contains(id);
        (1..id).filter(|other| self.stream_of(*other) == number).all(|other| done(&other))
    }
}

impl Session {
    fn new(database: &Database, generation: Generation, stale: Vec<Token>) -> Self {
        Self {
            ledger: Ledger::new(at(database.saved), generation, BOUNDS),
            parked: Parked::new(database.heads()),
            generation,
            entries: Vec::new(),
            position: at(database.saved),
            read: database.saved,
            parkable: Vec::new(),
            released: Vec::new(),
            refused_again: Vec::new(),
            under_way: None,
            progress: Progress::default(),
            stale,
        }
    }

    fn open(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| matches!(entry.what, What::Sent(_) | What::Resent(_)))
    }

    fn unparked(&self) -> (usize, usize) {
        let behind = self.entries.iter().filter(|entry| matches!(entry.what, What::Parked(_)));
        let sizes: Vec<usize> =
            behind.map(|entry| entry.bytes).chain(self.parkable.iter().map(|(_, bytes)| *bytes)).collect();
        (sizes.len(), sizes.iter().sum())
    }

    // ---- steps

    /// Offers the next event of the table, as the sender does.
    fn offer(&mut self, database: &mut Database, bytes: usize) {
        let id = self.read + 1;
        if id > database.last() {
            return;
        }
        let (number, fate) = (database.stream_of(id), database.fates[&id]);
        let event = event(id, number);
        let holds = self.parked.holds(&event);
        if holds || fate == Fate::Refused {
            if !self.ledger.has_room_to_park(bytes) {
                return;
            }
            let cause = if holds { Cause::Follows } else { Cause::Rejection { code: "x".into(), reason: "y".into() } };
            self.parked.park(stream(number));
            self.ledger.parked(Parking { key: key(id), stream: stream(number), cause }, at(id), bytes);
            self.push(What::Parked(id), 0, bytes, None, Some(at(id)));
            self.advance(database);
        } else if fate == Fate::LeftOut {
            assert!(
                database.is_next(id) || database.left_out.contains(&id),
                "event {id} is left out before one of its stream"
            );
            self.ledger.left_out(at(id));
            database.left_out.insert(id);
            self.push(What::LeftOut, 0, 0, None, Some(at(id)));
            self.advance(database);
        } else if let Fate::Records(records) = fate {
            if !self.ledger.has_room(bytes) {
                return;
            }
            assert!(database.is_next(id) || database.sent.contains(&id), "event {id} is sent before one of its stream");
            let token = self.ledger.sent(Dispatch { key: key(id), form: Form::Records }, at(id), records, bytes);
            database.sent.insert(id);
            self.push(What::Sent(id), records, bytes, Some(token), Some(at(id)));
        }
        self.read = id;
    }

    /// Sends the next parked event again, or finds that it is refused once more, or left out now.
    fn send_again(&mut self, database: &mut Database, choice: usize) {
        let Some(event) = self.parked.take_next() else { return };
        let (id, bytes) = (event.id.get(), 300);
        if choice == 0 || !self.ledger.has_room(bytes) {
            self.parked.put_back(event);
            return;
        }
        if choice == 1 {
            self.parked.stand(&event.stream());
            self.refused_again.push(id);
            return;
        }
        // one that is given up after it was read is sent all the same: the decision came too late
        let was_there = database.parked.iter().any(|row| row.id == id) || database.discarded.contains(&id);
        assert!(was_there, "event {id} is sent again and is not parked");
        assert!(
            database.is_next(id) || database.sent.contains(&id),
            "event {id} is sent again before one of its stream"
        );
        let is_open = self.open().any(|entry| entry.what == What::Resent(id)) || self.released.contains(&id);
        assert!(!is_open, "event {id} is sent again twice");
        let records = choice - 2;
        let form = if choice > 3 { Form::DeadLetter } else { Form::Records };
        let token = self.ledger.resent(Release { key: key(id), stream: event.stream() }, form, records, bytes);
        database.sent.insert(id);
        self.push(What::Resent(id), records, bytes, Some(token), None);
        self.advance(database);
    }

    fn push(&mut self, what: What, open: usize, bytes: usize, token: Option<Token>, position: Option<Cursor>) {
        self.entries.push(Entry { what, open, bytes, token, position });
    }

    /// A report: of any record that is under way, or of another producer's.
    fn report(&mut self, choice: usize) {
        if choice == 0 && !self.stale.is_empty() {
            assert!(!self.ledger.settled(self.stale[0]), "a report of another producer settled something");
            return;
        }
        let waiting: Vec<usize> = (0..self.entries.len()).filter(|place| self.entries[*place].open > 0).collect();
        if waiting.is_empty() {
            return;
        }
        let entry = &mut self.entries[waiting[choice % waiting.len()]];
        entry.open -= 1;
        let token = entry.token.unwrap();
        assert_eq!(self.ledger.settled(token), entry.open == 0, "the last record of an event");
    }

    /// Moves the frontier of both.
    fn advance(&mut self, database: &Database) {
        self.ledger.advance();
        let settled = self.entries.iter().take_while(|entry| entry.open == 0).count();
        for entry in self.entries.drain(..settled) {
            self.progress.moved = true;
            self.position = entry.position.clone().unwrap_or_else(|| self.position.clone());
            match entry.what {
                What::Sent(_) => {
                    (self.progress.events, self.progress.published) =
                        (self.progress.events + 1, self.progress.published + 1);
                }
                What::LeftOut => self.progress.events += 1,
                What::Parked(id) => {
                    self.progress.events += 1;
                    self.parkable.push((id, entry.bytes));
                }
                What::Resent(id) => {
                    self.released.push(id);
                    self.progress.released += 1;
                }
                What::EndMark => {}
            }
        }
        assert!(self.released.iter().all(|id| database.sent.contains(id)), "released and never sent");
    }

    fn mark(&mut self, database: &Database) {
        if self.read < database.last() {
            return; // a window ends behind its events
        }
        let end = at(self.read);
        self.ledger.mark(end.clone());
        match self.entries.last_mut() {
            Some(last) if last.what == What::EndMark => last.position = Some(end),
            _ => self.push(What::EndMark, 0, 0, None, Some(end)),
        }
        self.advance(database);
    }

    /// Starts the next statement, if none is under way: a save, or what is to be done about parked events, in its order.
    fn start(&mut self, database: &mut Database, job: Job, sees: Sees) {
        if self.under_way.is_some() {
            return;
        }
        let statement = if job == Job::Save {
            let parkings = self.ledger.take_parkings();
            let ids: Vec<i64> = parkings.iter().map(|parking| parking.key.id.get()).collect();
            let expected: Vec<i64> = self.parkable.iter().map(|(id, _)| *id).collect();
            assert_eq!(ids, expected, "what the position has passed is parked, once and in its order");
            let saved = self.position.after().map_or(0, RowId::get);
            Statement::Save(self.ledger.position().clone(), parkings, usize::try_from(saved).unwrap())
        } else if let Some(id) = self.refused_again.pop() {
            Statement::Refused(id)
        } else if self.ledger.has_releases() {
            Statement::Remove(self.ledger.take_releases())
        } else if self.parked.is_empty() {
            return;
        } else {
            let asked = if self.parked.next().is_none() { self.parked.take_due(2) } else { Vec::new() };
            if asked.is_empty() {
                Statement::Look((sees == Sees::AtFirst).then(|| database.look()))
            } else {
                let answer = (sees == Sees::AtFirst).then(|| database.fetch(&asked, 3, 2));
                Statement::Fetch(asked, answer)
            }
        };
        if job == Job::Save {
            self.parkable.clear();
        }
        self.under_way = Some(statement);
    }

    /// The statement under way has done its work, and its answer is here.
    fn finish(&mut self, database: &mut Database, budget: usize) {
        match self.under_way.take() {
            None => {}
            Some(Statement::Save(position, parkings, saved)) => {
                save(database, &position, &parkings, saved);
                self.parked.saved(&parkings);
            }
            Some(Statement::Remove(releases)) => {
                let ids: Vec<i64> = releases.iter().map(|release| release.key.id.get()).collect();
                assert_eq!(ids, self.released[..ids.len()], "what is acknowledged goes, once and in its order");
                self.released.drain(..ids.len());
                database.parked.retain(|row| !ids.contains(&row.id));
                self.parked.removed(&releases);
            }
            Some(Statement::Refused(id)) => {
                let is_there = |row: &&mut Row| row.id == id && row.decision != Some(Decision::Discard);
                match database.parked.iter_mut().find(is_there) {
                    Some(row) => (row.is_rejection, row.decision) = (true, None),
                    // given up meanwhile: its stream does not stand because of it
                    None => drop(self.parked.release(&stream(database.stream_of(id)))),
                }
            }
            Some(Statement::Fetch(asked, answer)) => {
                let (found, extent) = answer.unwrap_or_else(|| database.fetch(&asked, 3, budget));
                self.parked.fetched(asked, found, extent);
            }
            Some(Statement::Look(decided)) => {
                for (stream, given_up) in decided.unwrap_or_else(|| database.look()) {
                    if given_up {
                        self.parked.read_again(&stream);
                    }
                    self.parked.release(&stream);
                }
            }
        }
    }

    // ---- what must hold after each step

    fn holds(&mut self, database: &Database) {
        assert_eq!(self.ledger.position(), &self.position, "the position is that of the settled prefix");
        let (open, bytes) = (self.open().count(), self.open().map(|entry| entry.bytes).sum::<usize>());
        assert_eq!(self.ledger.open_events(), open, "open events");
        assert!(open <= BOUNDS.events, "{open} events are open");
        let room = |more: usize| open == 0 || open < BOUNDS.events && bytes + more <= BOUNDS.bytes;
        for more in [0, 1, 300, 2_000] {
            assert_eq!(self.ledger.has_room(more), room(more), "room for {more} bytes");
        }
        let (count, bytes) = self.unparked();
        for more in [0, 700, 2_000] {
            let room = count == 0 || count < 1_000 && bytes + more <= BOUNDS.bytes;
            assert_eq!(self.ledger.has_room_to_park(more), room, "room to park {more} bytes beside {count}");
        }
        let mut events = 0;
        for entry in &self.entries {
            events += usize::from(!matches!(entry.what, What::EndMark));
            if let Some(token) = entry.token {
                assert_eq!(self.ledger.events_up_to([token].into_iter()), Some(events), "the place of a token");
            }
        }

        let to_be_parked = |number: usize| {
            let behind =
                self.entries.iter().filter_map(|entry| if let What::Parked(id) = entry.what { Some(id) } else { None });
            let saving = match &self.under_way {
                Some(Statement::Save(_, parkings, _)) => parkings.iter().map(|parking| parking.key.id.get()).collect(),
                _ => Vec::new(),
            };
            let mut all = behind.chain(self.parkable.iter().map(|(id, _)| *id)).chain(saving);
            all.any(|id| database.stream_of(id) == number)
        };
        for number in 0..STREAMS {
            let is_parked = database.rows(number).next().is_some() || to_be_parked(number);
            let said = self.parked.holds(&event(0, number));
            assert!(said || !is_parked, "stream {number} is parked, and its next event would pass");
        }
        let (progress, expected) = (self.ledger.take_progress(), std::mem::take(&mut self.progress));
        // a dead letter is no publication, but one of the two
        let published = progress.published + progress.dead_lettered;
        assert_eq!(published, expected.published + expected.released, "{progress:?}");
        let rest = |progress: &Progress| (progress.events, progress.released, progress.moved);
        assert_eq!(rest(&progress), rest(&expected), "{progress:?}");
    }
}

/// One statement: the cursor moves, and what it passes is in the table.
fn save(database: &mut Database, position: &Cursor, parkings: &[Parking], saved: usize) {
    let saved = i64::try_from(saved).unwrap();
    assert_eq!(position.after().map_or(0, RowId::get), saved, "the saved position is the model's");
    assert!(saved >= database.saved, "the cursor went back");
    for Parking { key, cause, .. } in parkings {
        let id = key.id.get();
        assert!(id <= saved, "event {id} is parked before the cursor has passed it");
        assert!(database.was_parked.insert(id), "event {id} is parked twice");
        let is_rejection = matches!(cause, Cause::Rejection { .. });
        database.parked.push(Row { id, stream: database.stream_of(id), is_rejection, decision: None });
    }
    let passed = (database.saved + 1..=saved)
        .find(|id| !(database.sent.contains(id) || database.left_out.contains(id) || database.was_parked.contains(id)));
    assert_eq!(passed, None, "an event that the cursor has passed is nowhere");
    database.saved = saved;
}

/// What an operator does about the first row of a stream.
fn decide(database: &mut Database, number: usize, decision: Decision) {
    let head = database.parked.iter_mut().find(|row| row.stream == number);
    if let Some(row) = head {
        row.decision = Some(decision);
    }
}

pub(crate) fn target(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let mut database = Database::default();
    let mut session = Session::new(&database, Generation::FIRST, Vec::new());
    for _ in 0..STEPS {
        if bytes.is_empty() {
            break;
        }
        match bytes.byte() % 16 {
            0 | 1 => {
                database.events.push(bytes.below(STREAMS));
                let fate = match bytes.below(8) {
                    0 | 1 => Fate::Refused,
                    2 => Fate::LeftOut,
                    more => Fate::Records(more - 2),
                };
                database.fates.insert(database.last(), fate);
            }
            2 | 3 => session.offer(&mut database, 1 + 7 * bytes.below(120)),
            4 | 5 => session.report(bytes.below(8)),
            6 => session.advance(&database),
            7 => session.mark(&database),
            8 => session.start(&mut database, Job::Save, Sees::AtLast),
            9 | 10 => {
                let sees = if bytes.below(2) == 1 { Sees::AtFirst } else { Sees::AtLast };
                session.start(&mut database, Job::Errand, sees);
            }
            11 | 12 => session.finish(&mut database, bytes.below(4)),
            13 => session.send_again(&mut database, bytes.below(6)),
            14 => {
                let decision = if bytes.below(3) == 0 { Decision::Discard } else { Decision::Retry };
                decide(&mut database, bytes.below(STREAMS), decision);
            }
            _ => {
                // rarely, or nothing else would ever get far
                if bytes.below(4) == 0 {
                    let stale = session.open().filter_map(|entry| entry.token).collect();
                    session = Session::new(&database, session.generation.next(), stale);
                }
            }
        }
        session.holds(&database);
    }
    comes_to_rest(&mut session, &mut database);
}

/// With nothing in its way, all of it is settled: published, left out or discarded, and nothing is parked any more.
fn comes_to_rest(session: &mut Session, database: &mut Database) {
    for _ in 0..40 * (database.events.len() + 4) {
        session.offer(database, 1);
        session.report(1);
        session.advance(database);
        session.send_again(database, 3);
        session.report(1);
        session.advance(database);
        session.holds(database);
        for number in 0..STREAMS {
            if database.rows(number).next().is_some_and(|row| row.is_rejection && row.decision.is_none()) {
                decide(database, number, Decision::Retry);
            }
        }
        session.finish(database, 3);
        let is_saved = session.parkable.is_empty() && database.saved == session.read;
        session.start(database, if is_saved { Job::Errand } else { Job::Save }, Sees::AtLast);
        session.holds(database);
        if is_saved && session.parked.is_empty() && session.under_way.is_none() && session.read == database.last() {
            break;
        }
    }
    let rows: Vec<i64> = database.parked.iter().map(|row| row.id).collect();
    assert_eq!(rows, [] as [i64; 0], "parked, though everything may go on");
    assert!(session.parked.is_empty(), "{} streams are held, and nothing of them is left", session.parked.len());
    assert_eq!((session.ledger.open_events(), session.read, database.saved), (0, database.last(), database.last()));
    let settled: BTreeMap<i64, usize> = (1..=database.last())
        .map(|id| {
            (
                id,
                [&database.sent, &database.left_out, &database.discarded]
                    .iter()
                    .filter(|set| set.contains(&id))
                    .count(),
            )
        })
        .collect();
    assert!(settled.values().all(|count| *count >= 1), "{settled:?}");
}
