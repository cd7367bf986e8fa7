//! An event: one row of the outbox. Pure.

use super::stream::{Sequence, Stream};
use std::fmt;
use uuid::Uuid;

/// What consumers de-duplicate on: random, so it never comes again, while a [`RowId`] can after a crash of Postgres.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventId(Uuid);

impl EventId {
    /// The uuid, for binding it to a statement.
    pub fn get(self) -> Uuid {
        self.0
    }

    /// Wraps the column `event_id`.
    pub fn new(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// As text; several times faster than by way of `Display`.
    pub fn text(self) -> String {
        let mut buffer = Uuid::encode_buffer();
        self.0.hyphenated().encode_lower(&mut buffer).to_owned()
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// The column `id`: a place in reading. Only `Cursor` may say which of two comes first, so there is no order on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowId(i64);

impl RowId {
    /// Wraps the column `id`.
    pub fn new(id: i64) -> Self {
        Self(id)
    }

    /// The number, for binding it to a statement.
    pub fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names an event for good: a row id can come again, with the uuid beside it it cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventKey {
    /// Place in reading.
    pub id: RowId,
    /// For de-duplication.
    pub event_id: EventId,
}

impl fmt::Display for EventKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.id, self.event_id)
    }
}

/// Microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Micros(pub i64);

/// A row of the outbox, as it was read. Payload and headers are the bytes that Postgres sent: nothing parses them unless a route asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Place in reading.
    pub id: RowId,
    /// For de-duplication.
    pub event_id: EventId,
    /// The event before this one in its stream, where the stream is numbered.
    pub previous_event_id: Option<EventId>,
    /// Number in its stream, where the stream is numbered.
    pub sequence: Option<Sequence>,
    /// When the row was inserted, by the server's clock.
    pub created_at: Micros,
    /// Type of the aggregate.
    pub aggregate_type: String,
    /// Id of the aggregate.
    pub aggregate_id: String,
    /// Type of the event.
    pub event_type: String,
    /// Bytes of `payload` (JSON as Postgres prints it) or `payload_bytes`; `None` is a tombstone.
    pub payload: Option<Vec<u8>>,
    /// JSON object in text; `None` for an empty one.
    pub headers: Option<String>,
}

impl Event {
    /// Its name.
    pub fn key(&self) -> EventKey {
        EventKey { id: self.id, event_id: self.event_id }
    }

    /// The name of its stream.
    pub fn stream(&self) -> Stream {
        Stream { aggregate_type: self.aggregate_type.clone(), aggregate_id: self.aggregate_id.clone() }
    }

    /// What the event holds in memory, about: texts, payload, headers and the struct itself.
    pub fn size_bytes(&self) -> usize {
        let texts = self.aggregate_type.len() + self.aggregate_id.len() + self.event_type.len();
        let bodies = self.payload.as_ref().map_or(0, Vec::len) + self.headers.as_ref().map_or(0, String::len);
        size_of::<Self>() + texts + bodies
    }
}
