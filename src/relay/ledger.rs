//! What was sent and what is settled, in the order of reading; the settled prefix is what may be saved. Pure.
//!
//! 1. Token order = read order = send order.
//! 2. An entry is settled when all its records are acknowledged; an event without records, and an end mark, at once.
//! 3. The frontier is the first entry that is not settled; it never goes back, whatever the order of the reports.
//! 4. What may be saved is the position of the last entry before the frontier, never more.
//! 5. After poison no entry is added: a new session starts a new ledger at the saved cursor.
//! 6. The open entries are bounded in number and bytes; at the bound, reading stops.

use crate::outbox::cursor::Cursor;
use crate::sink::{Generation, Token};
use std::collections::VecDeque;

/// The bounds of what may be open at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Events.
    pub events: usize,
    /// Bytes, the overhead of the records included.
    pub bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    generation: Generation,
    bounds: Bounds,
    entries: VecDeque<Entry>,
    /// The index of the first entry.
    first: usize,
    open_events: usize,
    open_bytes: usize,
    /// True of all that is settled.
    position: Cursor,
    progress: Progress,
}

#[derive(Debug)]
struct Entry {
    /// Records that are not acknowledged.
    open: usize,
    kind: Kind,
    bytes: usize,
    position: Cursor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Event,
    LeftOut,
    EndMark,
}

/// What has been settled since the ledger was asked last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Events that the position moved over.
    pub events: usize,
    /// Those among them that had records.
    pub published: usize,
    /// Whether the position moved at all: over an end mark too.
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
            open_events: 0,
            open_bytes: 0,
            position,
            progress: Progress::default(),
        }
    }

    /// Whether another event may be sent. One event always may, however large it is.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.open_events == 0
            || self.open_events < self.bounds.events && self.open_bytes.saturating_add(bytes) <= self.bounds.bytes
    }

    /// Adds an event that is about to be sent as `records` records, none if a route leaves it out.
    pub fn sent(&mut self, position: Cursor, records: usize, bytes: usize) -> Token {
        let index = self.first.wrapping_add(self.entries.len());
        let kind = if records == 0 { Kind::LeftOut } else { Kind::Event };
        self.entries.push_back(Entry { open: records, kind, bytes, position });
        self.open_events = self.open_events.saturating_add(1);
        self.open_bytes = self.open_bytes.saturating_add(bytes);
        self.advance();
        Token::new(self.generation, index)
    }

    /// Adds the end of a window: true once all before it is settled. One mark behind another replaces it.
    pub fn mark(&mut self, position: Cursor) {
        match self.entries.back_mut() {
            Some(last) if last.kind == Kind::EndMark => last.position = position,
            _ => self.entries.push_back(Entry { open: 0, kind: Kind::EndMark, bytes: 0, position }),
        }
        self.advance();
    }

    /// Notes that one record of an event is acknowledged. Tokens of another producer, and of what is settled already, change nothing.
    pub fn settled(&mut self, token: Token) {
        let place = token.index(self.generation).and_then(|index| index.checked_sub(self.first));
        if let Some(entry) = place.and_then(|place| self.entries.get_mut(place)) {
            entry.open = entry.open.saturating_sub(1);
        }
    }

    /// Moves the frontier over what is settled. Call it after a group of reports.
    pub fn advance(&mut self) {
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.open == 0) {
            self.first = self.first.wrapping_add(1);
            if entry.kind != Kind::EndMark {
                self.open_events = self.open_events.saturating_sub(1);
                self.progress.events = self.progress.events.saturating_add(1);
                self.progress.published =
                    self.progress.published.saturating_add(usize::from(entry.kind == Kind::Event));
            }
            self.open_bytes = self.open_bytes.saturating_sub(entry.bytes);
            self.progress.moved = true;
            self.position = entry.position;
        }
    }

    /// The position that may be saved.
    pub fn position(&self) -> &Cursor {
        &self.position
    }

    /// What was settled since the last call.
    pub fn take_progress(&mut self) -> Progress {
        std::mem::take(&mut self.progress)
    }

    /// Events sent and not settled.
    pub fn open_events(&self) -> usize {
        self.open_events
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::event::RowId;
    use crate::outbox::snapshot::Snapshot;
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

    #[test]
    fn only_the_settled_prefix_may_be_saved() {
        let mut ledger = ledger();
        let tokens: Vec<Token> = (1..=3).map(|id| ledger.sent(at(id), 1, 10)).collect();
        ledger.settled(tokens[2]);
        ledger.settled(tokens[1]);
        ledger.advance();
        assert_eq!(ledger.position(), &Cursor::earliest());
        ledger.settled(tokens[0]);
        ledger.advance();
        assert_eq!(ledger.position(), &at(3));
        assert_eq!(
            (ledger.open_events(), ledger.take_progress()),
            (0, Progress { events: 3, published: 3, moved: true })
        );
    }

    #[test]
    fn an_event_is_settled_when_all_its_records_are() {
        let mut ledger = ledger();
        let token = ledger.sent(at(1), 2, 10);
        ledger.settled(token);
        ledger.advance();
        assert_eq!(ledger.open_events(), 1);
        ledger.settled(token);
        ledger.advance();
        assert_eq!(ledger.position(), &at(1));
    }

    #[test]
    fn an_event_left_out_waits_for_those_before_it() {
        let mut ledger = ledger();
        let token = ledger.sent(at(1), 1, 10);
        ledger.sent(at(2), 0, 10);
        assert_eq!(ledger.position(), &Cursor::earliest());
        ledger.settled(token);
        ledger.advance();
        assert_eq!(ledger.position(), &at(2));
        assert_eq!(ledger.take_progress(), Progress { events: 2, published: 1, moved: true });
    }

    #[test]
    fn end_marks_do_not_pile_up_and_are_no_events() {
        let mut ledger = ledger();
        ledger.mark(end(5));
        assert_eq!(ledger.take_progress(), Progress { events: 0, published: 0, moved: true });
        assert_eq!(ledger.position(), &end(5));
        let token = ledger.sent(at(1), 1, 10);
        (6..1_000).for_each(|xmax| ledger.mark(end(xmax)));
        assert_eq!(ledger.entries.len(), 2);
        ledger.settled(token);
        ledger.advance();
        assert_eq!(ledger.position(), &end(999));
    }

    #[test]
    fn a_report_of_another_producer_settles_nothing() {
        let mut ledger = ledger();
        ledger.sent(at(1), 1, 10);
        ledger.settled(Token::new(Generation::FIRST.next(), 0));
        ledger.advance();
        assert_eq!(ledger.open_events(), 1);
    }

    #[test]
    fn is_bounded_in_events_and_bytes_but_lets_one_event_pass() {
        let mut ledger = ledger();
        assert!(ledger.has_room(1 << 30));
        ledger.sent(at(1), 1, 900);
        assert!(ledger.has_room(100) && !ledger.has_room(101));
        for id in 2..=4 {
            ledger.sent(at(id), 1, 1);
        }
        assert!(!ledger.has_room(1));
    }

    proptest! {
        /// Whatever the order of the reports, the position is that of the longest settled prefix, and never goes back.
        #[test]
        fn the_frontier_is_the_settled_prefix(records in proptest::collection::vec(0_usize..4, 1..40), order in proptest::collection::vec(any::<prop::sample::Index>(), 0..200)) {
            let mut ledger = Ledger::new(at(0), Generation::FIRST, Bounds { events: 1_000, bytes: 1_000_000 });
            let tokens: Vec<Token> = (1..).zip(&records).map(|(id, n)| ledger.sent(at(id), *n, 1)).collect();
            let mut waiting: Vec<usize> = records.iter().enumerate().flat_map(|(i, n)| std::iter::repeat_n(i, *n)).collect();
            let mut open = records.clone();
            for index in order {
                if waiting.is_empty() { break }
                let event = waiting.swap_remove(index.index(waiting.len()));
                open[event] -= 1;
                ledger.settled(tokens[event]);
                ledger.advance();
                let prefix = open.iter().take_while(|n| **n == 0).count();
                prop_assert_eq!(ledger.position(), &at(i64::try_from(prefix).unwrap()));
                prop_assert_eq!(ledger.open_events(), records.len() - prefix);
            }
        }
    }
}
