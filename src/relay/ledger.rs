//! What was sent and what is settled, in the order of reading; the settled prefix is what may be saved. Pure.
//!
//! 1. Token order = read order = send order.
//! 2. An entry is settled when all its records are acknowledged; an event without records, one that is to be parked, and an end mark, at once.
//! 3. The frontier is the first entry that is not settled; it never goes back, whatever the order of the reports.
//! 4. What may be saved is the position of the last entry before the frontier, never more; the events to be parked before it
//!    are written by the same save.
//! 5. A parked event that is sent again moves no position: its row goes when the frontier has passed it.
//! 6. After poison no entry is added: a new session starts a new ledger at the saved cursor.
//! 7. The open entries are bounded in number and bytes, and so is what waits to be parked; at the bound, reading stops. What is passed
//!    without a record makes one entry, however much it is: else nothing would bound it behind a record that is not acknowledged.

use crate::outbox::cursor::Cursor;
use crate::outbox::event::EventKey;
use crate::outbox::parked::{Parking, Release};
use crate::sink::{Generation, Token};
use std::collections::VecDeque;

/// The bounds of what may be open at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Events.
    pub events: usize,
    /// Bytes, the overhead of the records included.
    pub bytes: usize,
}

/// Events that one save parks at most: it copies their rows.
const MOST_PARKINGS: usize = 1_000;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ledger {
    generation: Generation,
    bounds: Bounds,
    entries: VecDeque<Entry>,
    /// The index of the first entry.
    first: usize,
    open: Amount,
    /// What waits to be parked, behind the frontier and before it.
    unparked: Amount,
    /// The part of it that is before the frontier.
    parkable: Amount,
    /// True of all that is settled.
    position: Cursor,
    progress: Progress,
    parkings: Vec<Parking>,
    releases: Vec<Release>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Entry {
    /// Records that are not acknowledged.
    open: usize,
    kind: Kind,
    bytes: usize,
    /// `None` of a parked event that is sent again.
    position: Option<Cursor>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Event(Dispatch),
    /// So many events that a route leaves out, and ends of windows.
    Passed(usize),
    Parked(Box<Parking>),
    Released(Dispatch, Box<Release>),
}

/// Events and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Amount {
    events: usize,
    bytes: usize,
}

impl Amount {
    fn add(&mut self, bytes: usize) {
        self.events = self.events.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn take(&mut self, other: Self) {
        self.events = self.events.saturating_sub(other.events);
        self.bytes = self.bytes.saturating_sub(other.bytes);
    }

    fn leaves_room(self, bytes: usize, bounds: Bounds) -> bool {
        self.events < bounds.events && self.bytes.saturating_add(bytes) <= bounds.bytes
    }
}

impl Kind {
    /// Events that are settled with it.
    fn events(&self) -> usize {
        if let Self::Passed(events) = self { *events } else { 1 }
    }
}

/// What is sent for an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dispatch {
    /// Which event.
    pub key: EventKey,
    /// As what.
    pub form: Form,
}

/// As what an event is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// As the records of its routes.
    Records,
    /// As a record for the dead-letter topic.
    DeadLetter,
}

/// What has been settled since the ledger was asked last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Progress {
    /// Events that the position moved over.
    pub events: usize,
    /// Events whose records are acknowledged, be it the first time or after they were parked.
    pub published: usize,
    /// Events that the dead-letter topic has.
    pub dead_lettered: usize,
    /// Parked events that are acknowledged.
    pub released: usize,
    /// Whether the frontier moved at all: over an end mark too.
    pub moved: bool,
}

impl Ledger {
    /// Starts where everything before `position` is settled.
    pub fn new(position: Cursor, generation: Generation, bounds: Bounds) -> Self {
        Self {
            generation,
            bounds,
            entries: VecDeque::new(),
            first: 0,
            open: Amount::default(),
            unparked: Amount::default(),
            parkable: Amount::default(),
            position,
            progress: Progress::default(),
            parkings: Vec::new(),
            releases: Vec::new(),
        }
    }

    /// Whether another event may be sent. One event always may, however large it is.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.open.events == 0 || self.open.leaves_room(bytes, self.bounds)
    }

    /// Whether another event may be parked before the next save. One always may.
    pub fn has_room_to_park(&self, bytes: usize) -> bool {
        self.unparked.events == 0
            || self.unparked.leaves_room(bytes, Bounds { events: MOST_PARKINGS, bytes: self.bounds.bytes })
    }

    /// Adds an event that is about to be sent as `records` records.
    pub fn sent(&mut self, dispatch: Dispatch, position: Cursor, records: usize, bytes: usize) -> Token {
        self.open.add(bytes);
        self.push(Entry { open: records, kind: Kind::Event(dispatch), bytes, position: Some(position) })
    }

    /// Adds an event that a route leaves out.
    pub fn left_out(&mut self, position: Cursor) {
        self.pass(1, position);
    }

    /// Adds an event that is to be parked; the save that moves the position over it writes it.
    pub fn parked(&mut self, parking: Parking, position: Cursor, bytes: usize) {
        self.unparked.add(bytes);
        self.push(Entry { open: 0, kind: Kind::Parked(Box::new(parking)), bytes, position: Some(position) });
        self.advance();
    }

    /// Adds a parked event that is about to be sent again.
    pub fn resent(&mut self, release: Release, form: Form, records: usize, bytes: usize) -> Token {
        let dispatch = Dispatch { key: release.key, form };
        self.open.add(bytes);
        self.push(Entry { open: records, kind: Kind::Released(dispatch, Box::new(release)), bytes, position: None })
    }

    /// Adds the end of a window: true once all before it is settled.
    pub fn mark(&mut self, position: Cursor) {
        self.pass(0, position);
    }

    fn pass(&mut self, events: usize, position: Cursor) {
        if let Some(Entry { kind: Kind::Passed(passed), position: last, .. }) = self.entries.back_mut() {
            (*passed, *last) = (passed.saturating_add(events), Some(position));
        } else {
            self.push(Entry { open: 0, kind: Kind::Passed(events), bytes: 0, position: Some(position) });
        }
        self.advance();
    }

    fn push(&mut self, entry: Entry) -> Token {
        let index = self.first.wrapping_add(self.entries.len());
        self.entries.push_back(entry);
        Token::new(self.generation, index)
    }

    /// Notes that one record of an event is acknowledged. Tokens of another producer, and of what is settled already, change nothing.
    /// Whether that was the last of its records.
    pub fn settled(&mut self, token: Token) -> bool {
        let Some(entry) = self.place(token).and_then(|place| self.entries.get_mut(place)) else { return false };
        entry.open = entry.open.saturating_sub(1);
        entry.open == 0
    }

    /// What was sent under a token, as long as it is not settled with all before it.
    pub fn dispatch(&self, token: Token) -> Option<Dispatch> {
        match self.place(token).and_then(|place| self.entries.get(place)).map(|entry| &entry.kind) {
            Some(Kind::Event(dispatch) | Kind::Released(dispatch, _)) => Some(*dispatch),
            _ => None,
        }
    }

    /// How many events are settled when the last of these is, and all before it. `None` where all of them are.
    pub fn events_up_to(&self, tokens: impl Iterator<Item = Token>) -> Option<usize> {
        let last = tokens.filter_map(|token| self.place(token)).max()?;
        Some(self.entries.iter().take(last.saturating_add(1)).map(|entry| entry.kind.events()).sum())
    }

    fn place(&self, token: Token) -> Option<usize> {
        token.index(self.generation).and_then(|index| index.checked_sub(self.first))
    }

    /// Moves the frontier over what is settled. Call it after a group of reports.
    pub fn advance(&mut self) {
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.open == 0) {
            self.first = self.first.wrapping_add(1);
            self.progress.moved = true;
            let counted = match entry.kind {
                Kind::Released(..) => &mut self.progress.released,
                Kind::Event(_) | Kind::Passed(_) | Kind::Parked(_) => &mut self.progress.events,
            };
            *counted = counted.saturating_add(entry.kind.events());
            match entry.kind {
                Kind::Passed(_) => {}
                Kind::Parked(parking) => {
                    self.parkable.add(entry.bytes);
                    self.parkings.push(*parking);
                }
                Kind::Event(dispatch) => self.count(dispatch, entry.bytes),
                Kind::Released(dispatch, release) => {
                    self.count(dispatch, entry.bytes);
                    self.releases.push(*release);
                }
            }
            if let Some(position) = entry.position {
                self.position = position;
            }
        }
    }

    fn count(&mut self, dispatch: Dispatch, bytes: usize) {
        self.open.take(Amount { events: 1, bytes });
        let counted = match dispatch.form {
            Form::Records => &mut self.progress.published,
            Form::DeadLetter => &mut self.progress.dead_lettered,
        };
        *counted = counted.saturating_add(1);
    }

    /// The position that may be saved, together with what [`Ledger::take_parkings`] then returns.
    pub fn position(&self) -> &Cursor {
        &self.position
    }

    /// The events to be parked before the position. Whoever takes them saves them with the position, or ends the session.
    pub fn take_parkings(&mut self) -> Vec<Parking> {
        self.unparked.take(std::mem::take(&mut self.parkable));
        std::mem::take(&mut self.parkings)
    }

    /// Parked events that have been acknowledged since the last call.
    pub fn take_releases(&mut self) -> Vec<Release> {
        std::mem::take(&mut self.releases)
    }

    /// Whether [`Ledger::take_releases`] has something to return.
    pub fn has_releases(&self) -> bool {
        !self.releases.is_empty()
    }

    /// What was settled since the last call.
    pub fn take_progress(&mut self) -> Progress {
        std::mem::take(&mut self.progress)
    }

    /// Events sent and not settled.
    pub fn open_events(&self) -> usize {
        self.open.events
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::event::{EventId, RowId};
    use crate::outbox::parked::Cause;
    use crate::outbox::snapshot::Snapshot;
    use crate::outbox::stream::Stream;
    use proptest::prelude::*;

    const BOUNDS: Bounds = Bounds { events: 4, bytes: 1_000 };

    fn at(id: i64) -> Cursor {
        Cursor::earliest().at(&Snapshot::parse("9:9:").unwrap(), RowId::new(id))
    }

    fn end(xmax: u64) -> Cursor {
        Cursor::parse(&format!("{xmax}:{xmax}:"), None, None).unwrap()
    }

    fn ledger() -> Ledger {
        Ledger::new(Cursor::earliest(), Generation::FIRST, BOUNDS)
    }

    fn key(id: i64) -> EventKey {
        EventKey { id: RowId::new(id), event_id: EventId::new(uuid::Uuid::nil()) }
    }

    fn dispatch(id: i64) -> Dispatch {
        Dispatch { key: key(id), form: Form::Records }
    }

    fn stream() -> Stream {
        Stream { aggregate_type: "Order".to_owned(), aggregate_id: "1".to_owned() }
    }

    fn parking(id: i64) -> Parking {
        Parking { key: key(id), stream: stream(), cause: Cause::Follows }
    }

    #[test]
    fn however_much_is_left_out_behind_an_open_event_takes_one_entry() {
        let mut ledger = ledger();
        let token = ledger.sent(dispatch(1), at(1), 1, 100);
        for id in 2..=1_000 {
            ledger.left_out(at(id));
            ledger.mark(end(u64::try_from(id).unwrap() + 10));
        }
        assert_eq!((ledger.entries.len(), ledger.position()), (2, &Cursor::earliest()));
        ledger.settled(token);
        ledger.advance();
        assert_eq!((ledger.take_progress().events, ledger.position()), (1_000, &end(1_010)));
    }

    fn ids(parkings: &[Parking]) -> Vec<i64> {
        parkings.iter().map(|parking| parking.key.id.get()).collect()
    }

    #[test]
    fn only_the_settled_prefix_may_be_saved() {
        let mut ledger = ledger();
        let tokens: Vec<Token> = (1..=3).map(|id| ledger.sent(dispatch(id), at(id), 1, 10)).collect();
        ledger.settled(tokens[2]);
        ledger.settled(tokens[1]);
        ledger.advance();
        assert_eq!(ledger.position(), &Cursor::earliest());
        ledger.settled(tokens[0]);
        ledger.advance();
        assert_eq!(ledger.position(), &at(3));
        assert_eq!(
            (ledger.open_events(), ledger.take_progress()),
            (0, Progress { events: 3, published: 3, moved: true, ..Progress::default() })
        );
    }

    #[test]
    fn an_event_is_settled_when_all_its_records_are() {
        let mut ledger = ledger();
        let token = ledger.sent(dispatch(1), at(1), 2, 10);
        ledger.settled(token);
        ledger.advance();
        assert_eq!(ledger.open_events(), 1);
        assert_eq!(ledger.dispatch(token), Some(dispatch(1)));
        ledger.settled(token);
        ledger.advance();
        assert_eq!(ledger.position(), &at(1));
        assert_eq!(ledger.dispatch(token), None);
    }

    #[test]
    fn an_event_left_out_waits_for_those_before_it() {
        let mut ledger = ledger();
        let token = ledger.sent(dispatch(1), at(1), 1, 10);
        ledger.left_out(at(2));
        assert_eq!(ledger.position(), &Cursor::earliest());
        ledger.settled(token);
        ledger.advance();
        assert_eq!(ledger.position(), &at(2));
        assert_eq!(ledger.take_progress(), Progress { events: 2, published: 1, moved: true, ..Progress::default() });
    }

    #[test]
    fn an_event_is_parked_by_the_save_that_passes_it_and_by_no_earlier_one() {
        let mut ledger = ledger();
        let token = ledger.sent(dispatch(1), at(1), 1, 10);
        ledger.parked(parking(2), at(2), 10);
        assert_eq!(ledger.position(), &Cursor::earliest());
        assert_eq!(ids(&ledger.take_parkings()), [] as [i64; 0]);
        ledger.settled(token);
        ledger.advance();
        assert_eq!(ledger.position(), &at(2));
        assert_eq!(ids(&ledger.take_parkings()), [2]);
        assert_eq!(ids(&ledger.take_parkings()), [] as [i64; 0]);
    }

    #[test]
    fn what_one_save_parks_is_bounded() {
        let mut ledger = ledger();
        assert!(ledger.has_room_to_park(1 << 30));
        ledger.parked(parking(1), at(1), 900);
        assert!(ledger.has_room(1 << 30), "it is not in flight");
        assert!(ledger.has_room_to_park(100) && !ledger.has_room_to_park(101));
        assert_eq!(ids(&ledger.take_parkings()), [1]);
        assert!(ledger.has_room_to_park(1_000));
        let token = ledger.sent(dispatch(2), at(2), 1, 10);
        ledger.parked(parking(3), at(3), 900);
        assert_eq!(ids(&ledger.take_parkings()), [] as [i64; 0]);
        assert!(!ledger.has_room_to_park(101), "it waits behind the frontier");
        ledger.settled(token);
        ledger.advance();
        assert_eq!(ids(&ledger.take_parkings()), [3]);
        (0..1_000).for_each(|id| ledger.parked(parking(id), at(id), 0));
        assert!(!ledger.has_room_to_park(0));
    }

    #[test]
    fn a_parked_event_that_is_sent_again_moves_nothing_but_itself() {
        let mut ledger = ledger();
        let before = ledger.sent(dispatch(8), at(8), 1, 10);
        let again = ledger.resent(Release { key: key(2), stream: stream() }, Form::Records, 1, 10);
        ledger.settled(again);
        ledger.advance();
        assert!(!ledger.has_releases());
        ledger.settled(before);
        ledger.advance();
        assert_eq!((ledger.position(), ledger.open_events()), (&at(8), 0));
        assert_eq!(ledger.take_releases(), [Release { key: key(2), stream: stream() }]);
        let progress = Progress { events: 1, published: 2, released: 1, moved: true, ..Progress::default() };
        assert_eq!(ledger.take_progress(), progress);
    }

    #[test]
    fn end_marks_do_not_pile_up_and_are_no_events() {
        let mut ledger = ledger();
        ledger.mark(end(5));
        assert_eq!(ledger.take_progress(), Progress { moved: true, ..Progress::default() });
        assert_eq!(ledger.position(), &end(5));
        let token = ledger.sent(dispatch(1), at(1), 1, 10);
        (6..1_000).for_each(|xmax| ledger.mark(end(xmax)));
        assert_eq!(ledger.entries.len(), 2);
        ledger.settled(token);
        ledger.advance();
        assert_eq!(ledger.position(), &end(999));
    }

    #[test]
    fn a_report_of_another_producer_settles_nothing() {
        let mut ledger = ledger();
        ledger.sent(dispatch(1), at(1), 1, 10);
        ledger.settled(Token::new(Generation::FIRST.next(), 0));
        ledger.advance();
        assert_eq!(ledger.open_events(), 1);
    }

    #[test]
    fn is_bounded_in_events_and_bytes_but_lets_one_event_pass() {
        let mut ledger = ledger();
        assert!(ledger.has_room(1 << 30));
        ledger.sent(dispatch(1), at(1), 1, 900);
        assert!(ledger.has_room(100) && !ledger.has_room(101));
        for id in 2..=4 {
            ledger.sent(dispatch(id), at(id), 1, 1);
        }
        assert!(!ledger.has_room(1));
    }

    proptest! {
        /// Whatever the order of the reports, the position is that of the longest settled prefix, never goes back, and each
        /// event to be parked comes out once, with the first position that passes it. No records stand for an event to be parked.
        #[test]
        fn the_frontier_is_the_settled_prefix(records in proptest::collection::vec(0_usize..4, 1..40), order in proptest::collection::vec(any::<prop::sample::Index>(), 0..200)) {
            let mut ledger = Ledger::new(at(0), Generation::FIRST, Bounds { events: 1_000, bytes: 1_000_000 });
            let mut tokens = Vec::new();
            for (id, n) in (1..).zip(&records) {
                if *n == 0 { ledger.parked(parking(id), at(id), 1) } else { tokens.push((id, ledger.sent(dispatch(id), at(id), *n, 1))) }
            }
            let tokens: std::collections::HashMap<i64, Token> = tokens.into_iter().collect();
            let mut waiting: Vec<i64> = (1..).zip(&records).flat_map(|(id, n)| std::iter::repeat_n(id, *n)).collect();
            let mut open = records.clone();
            let mut parked = Vec::new();
            for index in order {
                if waiting.is_empty() { break }
                let id = waiting.swap_remove(index.index(waiting.len()));
                open[usize::try_from(id - 1).unwrap()] -= 1;
                ledger.settled(tokens[&id]);
                ledger.advance();
                let prefix = open.iter().take_while(|n| **n == 0).count();
                let sent_in_prefix = records.iter().take(prefix).filter(|n| **n > 0).count();
                prop_assert_eq!(ledger.position(), &at(i64::try_from(prefix).unwrap()));
                prop_assert_eq!(ledger.open_events(), tokens.len() - sent_in_prefix);
                parked.extend(ids(&ledger.take_parkings()));
                let passed: Vec<i64> = (1..).zip(&records).take(prefix).filter(|(_, n)| **n == 0).map(|(id, _)| id).collect();
                prop_assert_eq!(&parked, &passed);
            }
        }
    }
}
