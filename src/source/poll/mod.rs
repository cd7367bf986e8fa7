//! Reads the outbox by polling: windows between two snapshots, in pages where they are large.

pub mod backlog;
pub mod doorbell;
pub mod flush;
pub mod pace;
pub mod window;

use super::{Batch, SourceError};
use crate::db::copy::Tuples;
use crate::db::event::Columns;
use crate::db::{self, DbError, Session, Witness};
use crate::outbox::cursor::{Cursor, Extent};
use crate::outbox::event::{Event, RowId};
use crate::outbox::lsn::Lsn;
use crate::outbox::snapshot::Snapshot;
use futures::TryStreamExt;
use pace::PageSize;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection, Postgres, Row};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use window::{Cut, Flags, Page};

/// After an event larger than this the driver gives back the buffer that it came in.
const LARGE_BYTES: usize = 1024 * 1024;

/// Reads batches, one after the other, on a connection of its own.
#[derive(Debug)]
pub struct Poll {
    session: Session,
    size: PageSize,
    /// An id beyond which the open window has none, once it is known: it costs a look, and holds as long as `t` does.
    upto: Option<(Snapshot, RowId)>,
    /// How far the WAL had come when the open window was opened, if it was not on disk: what its pages need.
    wal: Option<(Snapshot, Option<Lsn>)>,
    first: [String; 2],
    received: Arc<AtomicU64>,
}

/// What can be known of a read from outside, while it is under way.
#[derive(Clone, Debug)]
pub struct Watch {
    witness: Witness,
    received: Arc<AtomicU64>,
}

impl Watch {
    /// Rows received so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Whether the server is at it.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn is_at_work(&self) -> Result<bool, DbError> {
        self.witness.is_at_work().await
    }
}

/// One answer of the server.
struct Answer {
    flags: Flags,
    events: Vec<Event>,
    /// The last row received, if there may be more behind it.
    stopped_at: Option<RowId>,
}

impl Poll {
    /// Reads on `session`, in pages that `size` bounds.
    pub fn new(session: Session, size: PageSize) -> Self {
        Self {
            session,
            size,
            upto: None,
            wal: None,
            first: [window::first(Cut::Never), window::first(Cut::AtBytes)],
            received: Arc::default(),
        }
    }

    /// For looking at a read while it is under way.
    pub fn watch(&self) -> Watch {
        Watch { witness: self.session.witness(), received: Arc::clone(&self.received) }
    }

    /// The server's process that reads, for cancelling it.
    pub fn process(&self) -> i32 {
        self.session.server.pid
    }

    /// Reads what comes after `from`: a whole small window, or a page of a large one.
    ///
    /// Not cancel-safe: a dropped read leaves the connection in the middle of an answer; drop it too.
    ///
    /// # Errors
    /// See [`SourceError`]; after any of them the connection is not to be used again.
    pub async fn next(&mut self, from: &Cursor) -> Result<Batch, SourceError> {
        match from {
            Cursor::Closed { s } => self.open(from, s).await,
            Cursor::Open { s, t, after } => self.page(from, s, t, *after).await,
        }
    }

    async fn open(&mut self, from: &Cursor, s: &Snapshot) -> Result<Batch, SourceError> {
        let (rows, cut) = (self.size.rows(), self.size.cut_bytes());
        let [plain, cutting] = &self.first;
        let statement = sqlx::query(AssertSqlSafe(if cut.is_some() { cutting } else { plain }.clone())) // composed of constants only
            .bind(s.to_string())
            .bind(as_i64(rows));
        let statement = if let Some(bytes) = cut { statement.bind(as_i64(bytes)) } else { statement };
        let mut answer = self.fetch(statement).await?;
        let seen = answer.flags.seen.as_deref().ok_or(SourceError::OwnTransaction)?;
        let seen = Snapshot::parse(seen).map_err(SourceError::Snapshot)?;
        if answer.events.len() > rows {
            answer.events.truncate(rows); // the one above tells that there is more
            answer.stopped_at = answer.events.last().map(|event| event.id);
        }
        answer.may_be_cut(cut);
        if answer.stopped_at.is_some() {
            let newest = self.look(sqlx::query(AssertSqlSafe(window::newest()))).await?; // composed of constants only, as the next ones
            self.upto = newest.map(|newest| (seen.clone(), newest));
        }
        let to = from.after_first(&seen, extent(answer.stopped_at));
        let needs_wal = self.not_flushed(answer.flags.needs_wal).await?;
        self.wal = Some((seen.clone(), needs_wal));
        Ok(Batch { from: from.clone(), window_end: seen, events: answer.events, to, needs_wal })
    }

    /// Waits a little for the WAL up to `place`: here it takes no way through the lane, which has other things to wait for.
    async fn not_flushed(&mut self, place: Option<Lsn>) -> Result<Option<Lsn>, SourceError> {
        let Some(place) = place else { return Ok(None) };
        let flushed = flush::reached(&mut self.session, place).await.map_err(SourceError::Db)?;
        Ok((flushed < Some(place)).then_some(place))
    }

    async fn page(&mut self, from: &Cursor, s: &Snapshot, t: &Snapshot, after: RowId) -> Result<Batch, SourceError> {
        let upto = self.upto(s, t).await?;
        let bound = Cursor::page_bound(after, upto);
        let (rows, cut_bytes) = (self.size.rows(), self.size.cut_bytes());
        let mut answer = self.copy(&window::page(&Page { after, bound, s, t, rows, cut_bytes })).await?;
        if answer.events.len() >= rows {
            answer.stopped_at = answer.events.last().map(|event| event.id);
        }
        answer.may_be_cut(cut_bytes);
        let behind = match answer.stopped_at {
            None if bound != upto => self.behind_gap(bound).await?,
            _ => bound,
        };
        let to = from.after_page(behind, upto, extent(answer.stopped_at));
        let needs_wal = match &self.wal {
            Some((known, needs_wal)) if known == t => *needs_wal,
            _ => answer.flags.needs_wal, // goes on after a restart
        };
        self.wal = Some((t.clone(), needs_wal));
        Ok(Batch { from: from.clone(), window_end: t.clone(), events: answer.events, to, needs_wal })
    }

    /// Runs a prepared statement: the one that is run often, for few rows.
    async fn fetch(&mut self, statement: Query<'_, Postgres, PgArguments>) -> Result<Answer, SourceError> {
        let mut answer = Receiving::new(&self.session.server, &self.size, &self.received);
        {
            let mut rows = statement.fetch(&mut self.session.connection);
            while let Some(row) = rows.try_next().await.map_err(reading)? {
                answer.take(&db::event::columns(&row, 0).map_err(reading)?)?;
            }
        }
        let received = answer.finish()?;
        Ok(self.learn(received))
    }

    /// Runs a statement that returns many rows, by `copy`.
    async fn copy(&mut self, statement: &str) -> Result<Answer, SourceError> {
        let mut answer = Receiving::new(&self.session.server, &self.size, &self.received);
        let mut tuples = Tuples::default();
        {
            let copy = format!("copy ({statement}) to stdout (format binary)");
            let mut pieces = self.session.connection.copy_out_raw(&copy).await.map_err(reading)?;
            while let Some(piece) = pieces.try_next().await.map_err(reading)? {
                tuples.feed(&piece, |columns| answer.take(columns))?;
            }
        }
        if !tuples.is_whole() {
            return Err(no_answer());
        }
        let received = answer.finish()?;
        Ok(self.learn(received))
    }

    fn learn(&mut self, received: Received) -> Answer {
        let Received { answer, bytes, largest } = received;
        if largest > LARGE_BYTES {
            self.session.connection.shrink_buffers();
        }
        self.size.received(answer.events.len(), bytes, largest);
        answer
    }

    async fn upto(&mut self, s: &Snapshot, t: &Snapshot) -> Result<RowId, SourceError> {
        if let Some((known, upto)) = &self.upto
            && known == t
        {
            return Ok(*upto);
        }
        let statement = sqlx::query(AssertSqlSafe(window::upto())).bind(s.to_string()).bind(t.to_string());
        let upto = self.look(statement).await?.unwrap_or(RowId::new(0));
        self.upto = Some((t.clone(), upto));
        Ok(upto)
    }

    async fn behind_gap(&mut self, bound: RowId) -> Result<RowId, SourceError> {
        let next = self.look(sqlx::query(AssertSqlSafe(window::beyond())).bind(bound.get())).await?;
        Ok(Cursor::behind_gap(bound, next))
    }

    async fn look(&mut self, statement: Query<'_, Postgres, PgArguments>) -> Result<Option<RowId>, SourceError> {
        let row = statement.fetch_one(&mut self.session.connection).await.map_err(reading)?;
        window::answered(&row).map_err(reading)?.by(&self.session.server).map_err(SourceError::Db)?;
        row.try_get::<Option<i64>, _>("id").map(|id| id.map(RowId::new)).map_err(reading)
    }
}

/// What has come of an answer.
struct Receiving<'p> {
    server: &'p db::Server,
    stop_bytes: usize,
    count: &'p AtomicU64,
    flags: Option<Flags>,
    events: Vec<Event>,
    stopped_at: Option<RowId>,
    bytes: usize,
    largest: usize,
}

impl<'p> Receiving<'p> {
    fn new(server: &'p db::Server, size: &PageSize, count: &'p AtomicU64) -> Self {
        let stop_bytes = size.stop_bytes();
        Self { server, stop_bytes, count, flags: None, events: Vec::new(), stopped_at: None, bytes: 0, largest: 0 }
    }

    fn take(&mut self, columns: &Columns<'_>) -> Result<(), SourceError> {
        self.count.fetch_add(1, Ordering::Relaxed);
        if self.flags.is_some() {
            return Err(SourceError::Disorder);
        }
        if let Some(flags) = Flags::of(columns).map_err(reading)? {
            // even an empty answer says which server gave it; another server's answer moves nothing
            flags.answered.by(self.server).map_err(SourceError::Db)?;
            self.flags = Some(flags);
            return Ok(());
        }
        if self.stopped_at.is_some() {
            return Ok(()); // it has to be received, but not to be kept
        }
        let event = db::event::event(columns).map_err(reading)?;
        if self.events.last().is_some_and(|last| !Cursor::is_behind(event.id, last.id)) {
            return Err(SourceError::Disorder);
        }
        let weight = event.size_bytes();
        (self.bytes, self.largest) = (self.bytes.saturating_add(weight), self.largest.max(weight));
        self.stopped_at = (self.bytes > self.stop_bytes).then_some(event.id);
        self.events.push(event);
        Ok(())
    }

    fn finish(self) -> Result<Received, SourceError> {
        let Self { flags, events, stopped_at, bytes, largest, .. } = self;
        Ok(Received { answer: Answer { flags: flags.ok_or_else(no_answer)?, events, stopped_at }, bytes, largest })
    }
}

/// A whole answer, and the sizes in it.
struct Received {
    answer: Answer,
    bytes: usize,
    largest: usize,
}

impl Answer {
    /// An answer that the server may have cut counts as full, whatever is in it: another read costs less than to ask it for the difference.
    fn may_be_cut(&mut self, budget: Option<usize>) {
        if budget.is_some() {
            self.stopped_at = self.stopped_at.or(self.events.last().map(|event| event.id));
        }
    }
}

fn extent(stopped_at: Option<RowId>) -> Extent {
    stopped_at.map_or(Extent::Whole, Extent::UpTo)
}

impl From<sqlx::Error> for SourceError {
    fn from(error: sqlx::Error) -> Self {
        reading(error)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` gives")]
fn reading(error: sqlx::Error) -> SourceError {
    SourceError::Db(DbError::from_driver("reading events", &error))
}

fn no_answer() -> SourceError {
    reading(sqlx::Error::RowNotFound)
}

/// Counts and sizes of a page are far below this limit.
fn as_i64(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
