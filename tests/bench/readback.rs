//! Is what was drained what was committed? Without this, the fastest relay is one that drops events.

use std::collections::HashMap;

use anyhow::ensure;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use uuid::Uuid;

/// The committed events, in the order of their ids, which is the order of their commits: one connection wrote them.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    places: HashMap<Uuid, u32>,
    /// By place, the stream that the event belongs to.
    streams: Vec<u32>,
    by_id: HashMap<String, u32>,
    payload_bytes: usize,
}

impl Expected {
    /// Expects events with payloads of so many bytes.
    pub(crate) fn of(payload_bytes: usize) -> Self {
        Self { payload_bytes, ..Self::default() }
    }

    /// Adds the next event.
    pub(crate) fn push(&mut self, event_id: Uuid, aggregate_id: &str) -> anyhow::Result<()> {
        let next = u32::try_from(self.by_id.len())?;
        let stream = match self.by_id.get(aggregate_id) {
            Some(&known) => known,
            None => *self.by_id.entry(aggregate_id.to_owned()).or_insert(next),
        };
        let known = self.places.insert(event_id, self.count());
        ensure!(known.is_none(), "event id {event_id} was given twice");
        self.streams.push(stream);
        Ok(())
    }

    /// How many events were committed.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.streams.len()).unwrap_or(u32::MAX)
    }

    /// How many streams they belong to.
    pub(crate) fn streams(&self) -> usize {
        self.by_id.len()
    }
}

/// What a topic holds of what is expected.
#[derive(Debug)]
pub(crate) struct Found<'e> {
    expected: &'e Expected,
    /// By place, whether the event was seen.
    seen: Vec<bool>,
    /// By stream, where it was seen last: partition, and place of its latest event.
    last: Vec<Option<(i32, u32)>>,
    distinct: u32,
    /// Seen again. A drain without a kill has none; at least once allows them.
    pub(crate) duplicates: u32,
    unknown: u32,
    out_of_order: u32,
    astray: u32,
    altered: u32,
}

impl<'e> Found<'e> {
    /// Nothing has been read yet.
    pub(crate) fn nothing_of(expected: &'e Expected) -> Self {
        let (seen, last) = (vec![false; expected.streams.len()], vec![None; expected.streams()]);
        Self { expected, seen, last, distinct: 0, duplicates: 0, unknown: 0, out_of_order: 0, astray: 0, altered: 0 }
    }

    /// Takes the next record of a partition into account.
    pub(crate) fn see(&mut self, record: &BorrowedMessage<'_>) {
        let place = event_id(record).and_then(|id| self.expected.places.get(&id).copied());
        let Some((place, at)) = place.and_then(|place| Some((place, usize::try_from(place).ok()?))) else {
            self.unknown += 1;
            return;
        };
        let Some(seen) = self.seen.get_mut(at) else { return };
        if std::mem::replace(seen, true) {
            self.duplicates += 1;
            return;
        }
        self.distinct += 1;
        let key = record.key().and_then(|key| std::str::from_utf8(key).ok());
        let stream = self.expected.streams.get(at).copied();
        let by_key = key.and_then(|key| self.expected.by_id.get(key).copied());
        self.astray += u32::from(stream != by_key);
        self.altered += u32::from(record.payload().map(<[u8]>::len) != Some(self.expected.payload_bytes));
        let Some(last) = stream.and_then(|stream| self.last.get_mut(usize::try_from(stream).ok()?)) else { return };
        if let Some((partition, before)) = last.replace((record.partition(), place)) {
            self.astray += u32::from(partition != record.partition());
            self.out_of_order += u32::from(before > place);
        }
    }

    /// Whether the drain counts.
    pub(crate) fn judge(&self) -> anyhow::Result<()> {
        let Self { expected, distinct, duplicates, unknown, out_of_order, astray, altered, .. } = self;
        let lost = expected.count() - distinct;
        ensure!(
            [lost, *unknown, *out_of_order, *astray, *altered] == [0; 5],
            "of {} committed events {distinct} are in the topic: lost {lost}, duplicates {duplicates}, unknown {unknown}, out of order {out_of_order}, \
             under another key or in two partitions {astray}, with another payload {altered}",
            expected.count(),
        );
        Ok(())
    }
}

fn event_id(record: &BorrowedMessage<'_>) -> Option<Uuid> {
    let id = record.headers()?.iter().find(|header| header.key == "id")?;
    Uuid::try_parse_ascii(id.value?).ok()
}
