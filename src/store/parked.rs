//! The table `outbox.parked`, as the relay uses it: what is parked, what an operator has decided, and what may be sent again.
//!
//! A stream stands as long as its first row is a rejection about which nothing was decided. So nothing else has to be
//! remembered: after a crash the rows themselves tell which streams stand and which are on their way.
//! Rows are written by `cursor::save` only, in the statement that moves the cursor over their events.

use super::cursor::Lease;
use crate::db::event::{self, COLUMNS};
use crate::db::{DbError, Session};
use crate::outbox::event::{Event, EventKey};
use crate::outbox::lane::LaneId;
use crate::outbox::parked::Release;
use crate::outbox::stream::Stream;
use futures::TryStreamExt;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};

/// A stream of which events are parked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its name.
    pub stream: Stream,
    /// Whether its events may be sent again; else it stands.
    pub released: bool,
}

/// A parked event that was read to be sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// As it was written.
    pub event: Event,
    /// Whether it may be sent: not if it is a rejection about which nothing, or something else, was decided.
    pub released: bool,
}

/// Whether an answer holds all that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// It does.
    Whole,
    /// It ends at its last event, because of its size.
    Cut,
}

/// Leaps from stream to stream in the index, however many rows each has. On the reader's connection, whose settings forbid another plan.
const LOAD: &str = "
    with recursive heads as (
      (select aggregate_type, aggregate_id, cause, decision from outbox.parked
        where outbox = $1 and lane = $2 and settled_at is null
        order by aggregate_type, aggregate_id, place limit 1)
       union all
      select next.* from heads h cross join lateral (
        select p.aggregate_type, p.aggregate_id, p.cause, p.decision from outbox.parked p
         where p.outbox = $1 and p.lane = $2 and p.settled_at is null
           and (p.aggregate_type, p.aggregate_id) > (h.aggregate_type, h.aggregate_id)
         order by p.aggregate_type, p.aggregate_id, p.place limit 1) next)
    select aggregate_type, aggregate_id, cause = 'follows' or decision is not null as released from heads limit $3";

/// The streams of which events are parked, up to `most`.
///
/// # Errors
/// Those of the server.
pub async fn load(reader: &mut Session, outbox: &str, lane: LaneId, most: usize) -> Result<Vec<Head>, DbError> {
    let doing = "reading what is parked";
    let rows = sqlx::query(LOAD)
        .bind(outbox)
        .bind(lane.get())
        .bind(i64::try_from(most).unwrap_or(i64::MAX))
        .fetch_all(&mut reader.connection)
        .await
        .map_err(DbError::during(doing))?;
    let head = |row: &PgRow| Ok(Head { stream: stream(row)?, released: row.try_get("released")? });
    rows.iter().map(head).collect::<Result<_, sqlx::Error>>().map_err(DbError::during(doing))
}

fn stream(row: &PgRow) -> Result<Stream, sqlx::Error> {
    Ok(Stream { aggregate_type: row.try_get("aggregate_type")?, aggregate_id: row.try_get("aggregate_id")? })
}

/// A part at a time, the rest with the next look: a row that is settled does not come again, so its stream has to be among those returned.
const DECIDED: &str = "
    with discarded as (
      update outbox.parked set settled_at = clock_timestamp()
       where ctid = any (array(  -- by their places: without statistics a join looks at each row for each other; locked, so they stay there
         select ctid from outbox.parked
          where outbox = $1 and lane = $2 and settled_at is null and decision = 'discard'
            and exists (select from outbox.cursors where outbox = $1 and lane = $2 and epoch = $3)  -- only the holder of the lease
          order by place limit $4 for update skip locked))
      returning aggregate_type, aggregate_id)
    select aggregate_type, aggregate_id, true as discarded from discarded
     union
    (select aggregate_type, aggregate_id, false from outbox.parked
      where outbox = $1 and lane = $2 and settled_at is null and decision = 'retry'
      order by place limit $4)";

/// Rows of each decision that are looked at at once.
const DECIDED_AT_ONCE: i64 = 10_000;

/// Carries out what was decided to be discarded, up to ten thousand events, and returns the streams that may go on; whether one of their events
/// was given up.
///
/// # Errors
/// Those of the server.
pub async fn decided(writer: &mut Session, lease: &Lease) -> Result<Vec<(Stream, bool)>, DbError> {
    let doing = "reading what was decided about parked events";
    let statement = sqlx::query(DECIDED)
        .bind(lease.outbox())
        .bind(lease.lane().get())
        .bind(lease.epoch().get())
        .bind(DECIDED_AT_ONCE)
        .fetch_all(&mut writer.connection);
    let rows = Session::brief(doing, statement).await?;
    let one = |row: &PgRow| Ok((stream(row)?, row.try_get("discarded")?));
    rows.iter().map(one).collect::<Result<_, sqlx::Error>>().map_err(DbError::during(doing))
}

/// What the server sends at once, in bytes as stored: what we leave unread is drained by the connection's next statement, and in its time.
/// Compression saves up to 99 % (pglz; lz4 99.6 %), so this is 25 MB at the worst, or 65, and one event of any size.
const STORED_BYTES: i64 = 256 << 10;

/// `$5` rows of each stream, `asked` in all. They come while those before them are within the budget, so always the first.
fn fetch_statement() -> String {
    format!(
        "select cause = 'follows' and decision is null or decision = 'retry' as released, asked, {COLUMNS}
           from (select *, count(*) over () as asked, sum(weight) over (order by nr, place) - weight < {STORED_BYTES} as kept
                   from unnest($3::text[], $4::text[]) with ordinality as wanted(type, name, nr) cross join lateral (
                     select *, coalesce(pg_column_size(payload), pg_column_size(payload_bytes), 0) + pg_column_size(headers) as weight  -- reads no value
                       from outbox.parked
                      where outbox = $1 and lane = $2 and settled_at is null and aggregate_type = wanted.type and aggregate_id = wanted.name
                      order by place limit $5) found) weighed
          where kept
          order by nr, place"
    )
}

/// Where the first column of an event stands in an answer.
const EVENT_AT: usize = 2;

/// Reads the first parked events of streams, in their order. Where the budget, in bytes, or the server's own is full, the answer is cut,
/// which it says; one event comes always.
///
/// # Errors
/// Those of the server.
pub async fn fetch(
    writer: &mut Session,
    lease: &Lease,
    streams: &[Stream],
    rows_each: i64,
    budget_bytes: usize,
) -> Result<(Vec<Fetched>, Extent), DbError> {
    let (types, names): (Vec<&str>, Vec<&str>) =
        streams.iter().map(|stream| (stream.aggregate_type.as_str(), stream.aggregate_id.as_str())).unzip();
    let statement = sqlx::query(AssertSqlSafe(fetch_statement())) // composed of constants only
        .bind(lease.outbox())
        .bind(lease.lane().get())
        .bind(types)
        .bind(names)
        .bind(rows_each);
    let reading = async {
        let (mut found, mut bytes, mut asked) = (Vec::new(), 0_usize, 0);
        let mut rows = statement.fetch(&mut writer.connection);
        while let Some(row) = rows.try_next().await? {
            let released = row.try_get("released")?;
            asked = row.try_get("asked")?;
            let event = event::event(&event::columns(&row, EVENT_AT)?)?;
            bytes = bytes.saturating_add(event.size_bytes());
            found.push(Fetched { event, released });
            if bytes > budget_bytes {
                break; // the driver discards the rest of the answer before its next statement
            }
        }
        let is_whole = i64::try_from(found.len()).is_ok_and(|came| came == asked);
        Ok((found, if is_whole { Extent::Whole } else { Extent::Cut }))
    };
    Session::brief("reading parked events", reading).await
}

const REMOVE: &str = "
    with mine as (select from outbox.cursors where outbox = $1 and lane = $2 and epoch = $3 for share)  -- only the holder of the lease
    delete from outbox.parked p using mine, unnest($4::bigint[], $5::uuid[]) as r(id, event_id)         -- neither is unique alone
     where p.outbox = $1 and p.id = r.id and p.event_id = r.event_id";

/// Removes events that were sent after all and are acknowledged.
///
/// # Errors
/// Those of the server.
pub async fn remove(writer: &mut Session, lease: &Lease, releases: &[Release]) -> Result<(), DbError> {
    let (ids, uuids): (Vec<_>, Vec<_>) =
        releases.iter().map(|release| (release.key.id.get(), release.key.event_id.get())).unzip();
    let statement = sqlx::query(REMOVE)
        .bind(lease.outbox())
        .bind(lease.lane().get())
        .bind(lease.epoch().get())
        .bind(ids)
        .bind(uuids)
        .execute(&mut writer.connection);
    Session::brief("removing parked events that were delivered", statement).await.map(drop)
}

const REFUSED_AGAIN: &str = "
    with mine as (select from outbox.cursors where outbox = $1 and lane = $2 and epoch = $3 for share)
    update outbox.parked p
       set cause = 'rejection', code = $6, reason = $7, decision = null, attempts = attempts + 1
      from mine
     where p.outbox = $1 and p.id = $4 and p.event_id = $5 and p.settled_at is null
       and p.decision is distinct from 'discard'";

/// Notes that a parked event was refused once more: its stream stands again, until somebody decides anew. Whether the event is
/// still there: given up meanwhile, it holds nothing up.
///
/// # Errors
/// Those of the server.
pub async fn refused_again(
    writer: &mut Session,
    lease: &Lease,
    key: EventKey,
    code: &str,
    reason: &str,
) -> Result<bool, DbError> {
    let statement = sqlx::query(REFUSED_AGAIN)
        .bind(lease.outbox())
        .bind(lease.lane().get())
        .bind(lease.epoch().get())
        .bind(key.id.get())
        .bind(key.event_id.get())
        .bind(code)
        .bind(reason)
        .execute(&mut writer.connection);
    let done = Session::brief("noting that a parked event was refused again", statement).await?;
    Ok(done.rows_affected() > 0)
}
