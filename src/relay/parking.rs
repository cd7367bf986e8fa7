//! Which streams are parked, and which of them may be sent again. Pure; the rows are in `store::parked`.
//!
//! While a stream is in this set its live events are parked behind the others, also while those are being sent again:
//! so they arrive in their order. It leaves the set when nothing of it is left, neither in the table, nor on the way
//! into it, nor on the way out.

use crate::outbox::event::Event;
use crate::outbox::parked::{Parking, Release};
use crate::outbox::stream::Stream;
use crate::store::parked::{Extent, Fetched, Head};
use std::collections::{HashMap, VecDeque};

/// Streams that one lane may hold parked. Each takes memory for as long.
pub const MOST_STREAMS: usize = 100_000;

/// See the module.
#[derive(Debug, Default)]
pub struct Parked {
    streams: HashMap<Stream, State>,
    /// Streams that may be sent again and of which nothing is under way; some may have left since they were put here.
    due: VecDeque<Stream>,
    /// Read to be sent again, in order.
    again: VecDeque<Event>,
}

/// What is known of a parked stream.
#[derive(Debug, Default)]
struct State {
    /// Its events may be sent again; else it stands.
    released: bool,
    /// To be parked, and not yet in the table.
    unsaved: usize,
    /// Read from the table to be sent again, and not yet removed from it.
    open: usize,
    /// Nothing more of it was in the table at the last look.
    is_dry: bool,
    /// It is among those that are due.
    is_queued: bool,
}

impl Parked {
    /// Takes over what the table says.
    pub fn new(heads: Vec<Head>) -> Self {
        let mut parked = Self::default();
        for Head { stream, released } in heads {
            parked.streams.insert(stream.clone(), State { released, ..State::default() });
            parked.go_on_with(&stream);
        }
        parked
    }

    /// Streams in the set.
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Whether nothing is parked.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Whether no other stream may be parked.
    pub fn is_full(&self) -> bool {
        self.streams.len() >= MOST_STREAMS
    }

    /// Whether the event has to wait behind parked ones of its stream.
    pub fn holds(&self, event: &Event) -> bool {
        !self.streams.is_empty() && self.streams.contains_key(&event.stream())
    }

    /// Notes that an event of a stream is on its way into the table.
    pub fn park(&mut self, stream: Stream) {
        let state = self.streams.entry(stream).or_default();
        state.unsaved = state.unsaved.saturating_add(1);
    }

    /// Notes that events have arrived in the table.
    pub fn saved(&mut self, parkings: &[Parking]) {
        for parking in parkings {
            if let Some(state) = self.streams.get_mut(&parking.stream) {
                state.unsaved = state.unsaved.saturating_sub(1);
                state.is_dry = false;
                self.go_on_with(&parking.stream);
            }
        }
    }

    /// Notes that somebody has decided: the stream may be sent again. Whether it stood until now.
    pub fn release(&mut self, stream: &Stream) -> bool {
        let Some(state) = self.streams.get_mut(stream).filter(|state| !state.released) else { return false };
        (state.released, state.is_dry) = (true, false);
        self.go_on_with(stream);
        true
    }

    /// Notes that the event of the stream that was taken out last was refused once more: nothing later of it may be sent.
    /// What was read of it is read again then.
    pub fn stand(&mut self, stream: &Stream) {
        let dropped = self.drop_read(stream).saturating_add(1);
        if let Some(state) = self.streams.get_mut(stream) {
            state.released = false;
            state.open = state.open.saturating_sub(dropped);
        }
    }

    /// Forgets what was read of the stream and not sent: something was decided about it since.
    pub fn read_again(&mut self, stream: &Stream) {
        let dropped = self.drop_read(stream);
        if let Some(state) = self.streams.get_mut(stream) {
            (state.open, state.is_dry) = (state.open.saturating_sub(dropped), false);
            self.go_on_with(stream);
        }
    }

    fn drop_read(&mut self, stream: &Stream) -> usize {
        let is_of =
            |event: &Event| event.aggregate_id == stream.aggregate_id && event.aggregate_type == stream.aggregate_type;
        let before = self.again.len();
        self.again.retain(|event| !is_of(event));
        before.saturating_sub(self.again.len())
    }

    /// Which streams to read next, at most `most`. They are under way until [`Parked::fetched`].
    pub fn take_due(&mut self, most: usize) -> Vec<Stream> {
        let count = self.due.len().min(most);
        let is_due = |stream: &Stream| {
            self.streams.get_mut(stream).is_some_and(|state| {
                state.is_queued = false;
                state.is_due()
            })
        };
        self.due.drain(..count).filter(is_due).collect()
    }

    /// Takes in what was read of streams.
    pub fn fetched(&mut self, asked: Vec<Stream>, found: Vec<Fetched>, extent: Extent) {
        let cut_at = found.last().filter(|_| extent == Extent::Cut).map(|last| last.event.stream());
        for Fetched { event, released } in found {
            let stream = event.stream();
            let Some(state) = self.streams.get_mut(&stream) else { continue };
            if released && state.released {
                state.open = state.open.saturating_add(1);
                self.again.push_back(event);
            } else {
                state.released = false; // it stands at this row; the rows behind it are not taken
            }
        }
        let mut is_whole = true;
        for stream in asked {
            is_whole &= cut_at.as_ref() != Some(&stream);
            let Some(state) = self.streams.get_mut(&stream) else { continue };
            state.is_dry = is_whole && state.open == 0 && state.released;
            self.go_on_with(&stream);
        }
    }

    /// The next event to send again.
    pub fn next(&self) -> Option<&Event> {
        self.again.front()
    }

    /// Takes the next event out, to be sent or put back.
    pub fn take_next(&mut self) -> Option<Event> {
        self.again.pop_front()
    }

    /// Puts an event back that could not be sent yet.
    pub fn put_back(&mut self, event: Event) {
        self.again.push_front(event);
    }

    /// Notes that events are no longer in the table: they were sent and are acknowledged.
    pub fn removed(&mut self, releases: &[Release]) {
        for release in releases {
            if let Some(state) = self.streams.get_mut(&release.stream) {
                state.open = state.open.saturating_sub(1);
                self.go_on_with(&release.stream);
            }
        }
    }

    /// Forgets what was read and not sent; it is read again.
    pub fn drain(&mut self) {
        self.again.clear();
        self.due.clear();
    }

    fn go_on_with(&mut self, stream: &Stream) {
        let Some(state) = self.streams.get_mut(stream) else { return };
        if state.has_left() {
            self.streams.remove(stream);
        } else if state.is_due() && !std::mem::replace(&mut state.is_queued, true) {
            self.due.push_back(stream.clone());
        }
    }
}

impl State {
    fn is_due(&self) -> bool {
        self.released && self.open == 0 && !self.is_dry
    }

    fn has_left(&self) -> bool {
        self.released && self.open == 0 && self.is_dry && self.unsaved == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::event::{EventId, EventKey, Micros, RowId};
    use crate::outbox::parked::Cause;

    fn event(id: i64, aggregate_id: &str) -> Event {
        Event {
            id: RowId::new(id),
            event_id: EventId::new(uuid::Uuid::nil()),
            previous_event_id: None,
            sequence: None,
            created_at: Micros(0),
            aggregate_type: "Order".to_owned(),
            aggregate_id: aggregate_id.to_owned(),
            event_type: "Placed".to_owned(),
            payload: None,
            headers: None,
        }
    }

    fn key(id: i64) -> EventKey {
        event(id, "").key()
    }

    fn stream(aggregate_id: &str) -> Stream {
        event(0, aggregate_id).stream()
    }

    fn saved(parked: &mut Parked, id: i64, aggregate_id: &str) {
        parked.saved(&[Parking { key: key(id), stream: stream(aggregate_id), cause: Cause::Follows }]);
    }

    /// One round: what is due is read, and `rows` are there.
    fn fetch(parked: &mut Parked, rows: &[(i64, &str, bool)], extent: Extent) -> Vec<Stream> {
        let asked = parked.take_due(100);
        let found = rows.iter().map(|(id, name, released)| Fetched { event: event(*id, name), released: *released });
        parked.fetched(asked.clone(), found.collect(), extent);
        asked
    }

    fn send(parked: &mut Parked) -> Vec<i64> {
        let mut sent = Vec::new();
        while let Some(event) = parked.take_next() {
            sent.push(event.id.get());
        }
        sent
    }

    fn removed(parked: &mut Parked, rows: &[(i64, &str)]) {
        let releases: Vec<Release> =
            rows.iter().map(|(id, name)| Release { key: key(*id), stream: stream(name) }).collect();
        parked.removed(&releases);
    }

    #[test]
    fn a_stream_stands_until_somebody_decides_and_leaves_when_nothing_of_it_is_left() {
        let mut parked = Parked::default();
        parked.park(stream("a"));
        saved(&mut parked, 1, "a");
        assert!(parked.holds(&event(2, "a")) && !parked.holds(&event(2, "b")));
        assert!(parked.take_due(100).is_empty());
        assert!(parked.release(&stream("a")) && !parked.release(&stream("a")));
        assert_eq!(fetch(&mut parked, &[(1, "a", true)], Extent::Whole), [stream("a")]);
        assert_eq!(send(&mut parked), [1]);
        assert!(parked.take_due(100).is_empty(), "the next ones are read when these are out of the table");
        removed(&mut parked, &[(1, "a")]);
        fetch(&mut parked, &[], Extent::Whole);
        assert!(parked.is_empty());
    }

    #[test]
    fn a_live_event_that_comes_meanwhile_goes_through_the_table_too() {
        let mut parked = Parked::new(vec![Head { stream: stream("a"), released: true }]);
        fetch(&mut parked, &[(1, "a", true)], Extent::Whole);
        parked.park(stream("a")); // event 2 is read
        send(&mut parked);
        removed(&mut parked, &[(1, "a")]);
        fetch(&mut parked, &[], Extent::Whole); // not saved yet
        assert!(parked.holds(&event(3, "a")));
        saved(&mut parked, 2, "a");
        fetch(&mut parked, &[(2, "a", true)], Extent::Whole);
        assert_eq!(send(&mut parked), [2]);
        removed(&mut parked, &[(2, "a")]);
        fetch(&mut parked, &[], Extent::Whole);
        assert!(parked.is_empty());
    }

    #[test]
    fn what_is_refused_again_stands_and_nothing_later_of_its_stream_is_sent() {
        let mut parked = Parked::new(vec![
            Head { stream: stream("a"), released: true },
            Head { stream: stream("b"), released: true },
        ]);
        fetch(&mut parked, &[(1, "a", true), (2, "a", true), (3, "a", true), (4, "b", true)], Extent::Whole);
        assert_eq!(parked.take_next().unwrap().id.get(), 1);
        assert_eq!(parked.take_next().unwrap().id.get(), 2);
        parked.stand(&stream("a")); // event 2
        assert_eq!(send(&mut parked), [4]);
        removed(&mut parked, &[(1, "a"), (4, "b")]);
        assert_eq!(fetch(&mut parked, &[], Extent::Whole), [stream("b")]);
        assert!(parked.holds(&event(5, "a")) && !parked.holds(&event(5, "b")));
        assert!(parked.release(&stream("a")));
        assert_eq!(fetch(&mut parked, &[(2, "a", true), (3, "a", true)], Extent::Whole), [stream("a")]);
        assert_eq!(send(&mut parked), [2, 3]);
    }

    #[test]
    fn what_was_given_up_after_it_was_read_is_not_sent() {
        let mut parked = Parked::new(vec![Head { stream: stream("a"), released: true }]);
        fetch(&mut parked, &[(1, "a", true), (2, "a", true), (3, "a", true)], Extent::Whole);
        assert_eq!(parked.take_next().unwrap().id.get(), 1);
        parked.read_again(&stream("a")); // event 2 was given up
        assert_eq!(send(&mut parked), [] as [i64; 0]);
        removed(&mut parked, &[(1, "a")]);
        assert_eq!(fetch(&mut parked, &[(3, "a", true)], Extent::Whole), [stream("a")]);
        assert_eq!(send(&mut parked), [3]);
    }

    #[test]
    fn a_row_about_which_nothing_was_decided_stops_its_stream() {
        let mut parked = Parked::new(vec![Head { stream: stream("a"), released: true }]);
        fetch(&mut parked, &[(1, "a", true), (2, "a", false), (3, "a", true)], Extent::Whole);
        assert_eq!(send(&mut parked), [1]);
        removed(&mut parked, &[(1, "a")]);
        assert!(parked.take_due(100).is_empty() && !parked.is_empty());
    }

    #[test]
    fn an_answer_that_was_cut_says_nothing_of_the_streams_behind_the_cut() {
        let heads = ["a", "b", "c"].map(|name| Head { stream: stream(name), released: true });
        let mut parked = Parked::new(heads.to_vec());
        fetch(&mut parked, &[(7, "b", true)], Extent::Cut);
        assert_eq!(send(&mut parked), [7]);
        assert!(!parked.holds(&event(9, "a")), "nothing of it was there");
        removed(&mut parked, &[(7, "b")]);
        assert_eq!(fetch(&mut parked, &[(8, "b", true)], Extent::Whole), [stream("c"), stream("b")]);
        assert!(!parked.holds(&event(9, "c")) && parked.holds(&event(9, "b")));
    }
}
