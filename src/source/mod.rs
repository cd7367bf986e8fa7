//! Reads events. Knows Postgres and not Kafka, and saves no cursor.

pub mod poll;

use crate::db::DbError;
use crate::outbox::cursor::Cursor;
use crate::outbox::event::Event;
use crate::outbox::lsn::Lsn;
use crate::outbox::snapshot::Snapshot;

/// The events of one read, in the order in which they must be sent, and where reading stands after them.
#[derive(Debug)]
pub struct Batch {
    /// Where reading stood before.
    pub from: Cursor,
    /// The end of the window that the events lie in: with it and `from`, each event has its own position.
    pub window_end: Snapshot,
    /// Ascending by id within the window.
    pub events: Vec<Event>,
    /// Where reading stands after them. Closed if the batch ends its window: then it carries an end mark.
    pub to: Cursor,
    /// The WAL must be on disk up to here before anything of the batch is sent; `None` if it was when the batch was read, or
    /// if there is no event.
    pub needs_wal: Option<Lsn>,
}

impl Batch {
    /// Whether it is a window by itself: events that come as they are written, and no backlog.
    pub fn is_small_window(&self) -> bool {
        matches!((&self.from, &self.to), (Cursor::Closed { .. }, Cursor::Closed { .. }))
    }

    /// The end mark: the position that holds when all events of a window are settled, if the batch ends one.
    pub fn end_mark(&self) -> Option<&Cursor> {
        matches!(self.to, Cursor::Closed { .. }).then_some(&self.to)
    }
}

/// Why nothing could be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The server refused, or the connection broke. Read again on a new pair of connections, from the saved cursor.
    #[error(transparent)]
    Db(DbError),
    /// The reading statement ran in a transaction that had an id of its own: that snapshot hides its own events.
    #[error("snapshot of a writing transaction hides its own events: defect, report it")]
    OwnTransaction,
    /// Rows did not come in the order of their ids, the flags behind them.
    #[error("the server returned events out of order: defect, report it")]
    Disorder,
    /// A snapshot that the server printed cannot be read.
    #[error("the server printed a snapshot that cannot be read")]
    Snapshot(#[source] crate::outbox::snapshot::SnapshotError),
}
