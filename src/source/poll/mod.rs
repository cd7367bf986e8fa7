//! Reads the outbox by polling: windows between two snapshots, in pages where they are large.

pub mod backlog;
pub mod flush;
pub mod pace;
pub mod window;

use super::{Batch, SourceError};
use crate::db::{self, DbError, Session, Witness};
use crate::outbox::cursor::{Cursor, Extent};
use crate::outbox::event::{Event, RowId};
use crate::outbox::snapshot::Snapshot;
use futures::TryStreamExt;
use pace::PageSize;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection, Postgres, Row};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use window::{Cut, Flags};

/// After an event larger than this the driver gives back the buffer that it came in.
const LARGE_BYTES: usize = 1024 * 1024;

/// Reads batches, one after the other, on a connection of its own.
#[derive(Debug)]
pub struct Poll {
    session: Session,
    size: PageSize,
    /// The last id of the open window, once it is known: it costs a look, and holds as long as `t` does.
    upto: Option<(Snapshot, RowId)>,
    first: [String; 2],
    page: [String; 2],
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
        let both = |statement: fn(Cut) -> String| [statement(Cut::Never), statement(Cut::AtBytes)];
        Self {
            session,
            size,
            upto: None,
            first: both(window::first),
            page: both(window::page),
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
        let statement = statement(&self.first, cut).bind(s.to_string()).bind(as_i64(rows));
        let statement = bind_cut(statement, cut);
        let mut answer = receive(&mut self.session, statement, &mut self.size, &self.received).await?;
        let seen = answer.flags.seen.take().ok_or_else(no_answer)?.map_err(SourceError::Snapshot)?;
        if !answer.flags.clean {
            return Err(SourceError::OwnTransaction);
        }
        if answer.events.len() > rows {
            answer.events.truncate(rows); // the one above tells that there is more
            answer.stopped_at = answer.events.last().map(|event| event.id);
        }
        let to = from.after_first(&seen, extent(answer.stopped_at));
        Ok(batch(from, seen, answer, to))
    }

    async fn page(&mut self, from: &Cursor, s: &Snapshot, t: &Snapshot, after: RowId) -> Result<Batch, SourceError> {
        let upto = self.upto(t).await?;
        let bound = Cursor::page_bound(after, upto);
        let (rows, cut) = (self.size.rows(), self.size.cut_bytes());
        let statement = statement(&self.page, cut)
            .bind(after.get())
            .bind(s.to_string())
            .bind(t.to_string())
            .bind(as_i64(rows))
            .bind(bound.get());
        let mut answer = receive(&mut self.session, bind_cut(statement, cut), &mut self.size, &self.received).await?;
        if answer.events.len() >= rows {
            answer.stopped_at = answer.events.last().map(|event| event.id);
        }
        let behind = match answer.stopped_at {
            None if bound != upto => self.behind_gap(bound).await?,
            _ => bound,
        };
        let to = from.after_page(behind, upto, extent(answer.stopped_at));
        Ok(batch(from, t.clone(), answer, to))
    }

    async fn upto(&mut self, t: &Snapshot) -> Result<RowId, SourceError> {
        if let Some((known, upto)) = &self.upto
            && known == t
        {
            return Ok(*upto);
        }
        let statement = sqlx::query(window::UPTO).bind(t.to_string());
        let upto: i64 = self.look(statement, "upto").await?;
        self.upto = Some((t.clone(), RowId::new(upto)));
        Ok(RowId::new(upto))
    }

    async fn behind_gap(&mut self, bound: RowId) -> Result<RowId, SourceError> {
        let next: Option<i64> = self.look(sqlx::query(window::BEYOND).bind(bound.get()), "beyond").await?;
        Ok(Cursor::behind_gap(bound, next.map(RowId::new)))
    }

    async fn look<'q, T>(
        &mut self,
        statement: Query<'q, Postgres, PgArguments>,
        column: &'static str,
    ) -> Result<T, SourceError>
    where
        T: for<'r> sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>,
    {
        let row = statement.fetch_one(&mut self.session.connection).await.map_err(reading)?;
        window::answered(&row).map_err(reading)?.by(&self.session.server).map_err(SourceError::Db)?;
        row.try_get(column).map_err(reading)
    }
}

fn statement([plain, cut]: &[String; 2], budget: Option<usize>) -> Query<'static, Postgres, PgArguments> {
    let text = if budget.is_some() { cut } else { plain };
    sqlx::query(AssertSqlSafe(text.clone())) // composed in window.rs of constants only
}

fn bind_cut(statement: Query<'_, Postgres, PgArguments>, budget: Option<usize>) -> Query<'_, Postgres, PgArguments> {
    match budget {
        Some(bytes) => statement.bind(as_i64(bytes)),
        None => statement,
    }
}

async fn receive(
    session: &mut Session,
    statement: Query<'_, Postgres, PgArguments>,
    size: &mut PageSize,
    received: &AtomicU64,
) -> Result<Answer, SourceError> {
    let (mut bytes, mut largest, mut told) = (0_usize, 0_usize, None);
    let mut events: Vec<Event> = Vec::new();
    let mut stopped_at = None;
    {
        let mut rows = statement.fetch(&mut session.connection);
        while let Some(row) = rows.try_next().await.map_err(reading)? {
            received.fetch_add(1, Ordering::Relaxed);
            if told.is_none() {
                told = Some(flags(&row, &session.server)?);
            }
            let Some(event) = db::event::event(&row, window::EVENT_AT).map_err(reading)? else { continue };
            if events.last().is_some_and(|last| !Cursor::is_behind(event.id, last.id)) {
                return Err(SourceError::Disorder);
            }
            let weight = event.size_bytes();
            (bytes, largest) = (bytes.saturating_add(weight), largest.max(weight));
            stopped_at = (bytes > size.stop_bytes()).then_some(event.id);
            events.push(event);
            if stopped_at.is_some() {
                break; // the driver discards the rest of the answer before its next statement
            }
        }
    }
    if largest > LARGE_BYTES {
        session.connection.shrink_buffers();
    }
    size.received(events.len(), bytes, largest);
    let flags = told.ok_or_else(no_answer)?;
    if flags.cut {
        stopped_at = events.last().map(|event| event.id);
    }
    Ok(Answer { flags, events, stopped_at })
}

/// Even an empty answer says which server gave it; another server's answer moves nothing.
fn flags(row: &PgRow, server: &db::Server) -> Result<Flags, SourceError> {
    let flags = window::flags(row).map_err(reading)?;
    flags.answered.by(server).map_err(SourceError::Db)?;
    Ok(flags)
}

fn batch(from: &Cursor, window_end: Snapshot, answer: Answer, to: Cursor) -> Batch {
    let on_disk = answer.flags.flushed >= answer.flags.needs_wal;
    let needs_wal = if on_disk { None } else { answer.flags.needs_wal };
    Batch { from: from.clone(), window_end, events: answer.events, to, needs_wal }
}

fn extent(stopped_at: Option<RowId>) -> Extent {
    stopped_at.map_or(Extent::Whole, Extent::UpTo)
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
