//! The table `outbox.cursors`: the saved cursor and the lease on it, in one row.
//!
//! Every write compares the epoch, sets `saved_xid` (the evidence of the incarnation check) and stamps the WAL position,
//! in one top-level statement. Nobody else writes this table; nothing here decides what may be saved: the ledger does.

use super::guards::Place;
use crate::config::outbox::Start;
use crate::db::{DbError, Session};
use crate::outbox::cursor::{Cursor, CursorError};
use crate::outbox::lane::{Epoch, LaneId};
use crate::outbox::parked::{Cause, Parking};
use sqlx::Row;
use sqlx::postgres::PgRow;
use std::time::Duration;
use tokio::time::Instant;

/// Who works which lane of which outbox: the key of the row and the name of the holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Name of the outbox.
    pub outbox: String,
    /// The lane.
    pub lane: LaneId,
    /// Random name of this relay, see `relay::leadership`.
    pub owner: String,
    /// How long the lease is good for without a renewal.
    pub ttl: Duration,
    /// The Kafka cluster into which the events go.
    pub kafka_cluster: String,
}

/// The right to move one cursor. Only this file makes one, so code that never held it cannot save.
#[derive(Debug)]
pub struct Lease {
    claim: Claim,
    epoch: Epoch,
    renewed: Instant,
}

impl Lease {
    /// Name of the outbox.
    pub fn outbox(&self) -> &str {
        &self.claim.outbox
    }

    /// The lane.
    pub fn lane(&self) -> LaneId {
        self.claim.lane
    }

    /// The number of this right.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The moment before the last successful renewal was sent: from here the holder counts how long it may send.
    pub fn renewed(&self) -> Instant {
        self.renewed
    }
}

/// What became of an attempt to take the lease.
#[derive(Debug)]
pub enum Acquired {
    /// It is ours, and this is where to go on.
    Held(Lease, Cursor),
    /// Another holds it, or was faster.
    Foreign,
}

/// What became of a save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saved {
    /// The row moved and the lease is renewed.
    Renewed,
    /// A newer holder has the lane: nothing was written, and nothing may be sent any more.
    Fenced,
    /// The row was written in a sub-transaction or by a server of another timeline: a defect, or a fail-over under the connection.
    Displaced,
    /// An event that was to be parked is no longer in the table: somebody deletes what is not delivered. Nothing was written.
    EventGone,
}

/// Why the row could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CursorRowError {
    /// The server refused, or the connection broke: the outcome is unknown, read the row again.
    #[error(transparent)]
    Db(DbError),
    /// The row holds no cursor.
    #[error("the cursor row of {outbox}/{lane} cannot be read")]
    Cursor {
        /// Name of the outbox.
        outbox: String,
        /// The lane.
        lane: LaneId,
        /// What is wrong with it.
        #[source]
        source: CursorError,
    },
}

const BEGIN: &str = "
    insert into outbox.cursors (outbox, lane, lanes, s, system_id, database_oid, timeline)
    select $1, $2, 1,
           case when $3 and exists (select from outbox.events)
                then pg_current_snapshot()               -- own xid is not in it: no event is written here
                else '3:3:' end,                         -- an empty table has nothing to leave out
           $4, $5, $6
        on conflict (outbox, lane) do nothing";

/// Makes the first cursor of an outbox, unless another relay just did.
///
/// # Errors
/// Those of the server.
pub async fn begin(session: &mut Session, outbox: &str, lane: LaneId, start: Start) -> Result<(), DbError> {
    let server = session.server.clone();
    let statement = sqlx::query(BEGIN)
        .bind(outbox)
        .bind(lane.get())
        .bind(start == Start::Latest)
        .bind(server.system_id)
        .bind(server.database_oid)
        .bind(&server.timeline)
        .execute(&mut session.connection);
    Session::brief("making the first cursor", statement).await.map(drop)
}

const ACQUIRE: &str = "
    update outbox.cursors
       set epoch = epoch + 1, owner = $3, lease_until = clock_timestamp() + $4 * interval '1 ms',
           saved_xid = pg_current_xact_id(),             -- every write says which incarnation wrote it
           system_id = $5, database_oid = $6, timeline = $7, kafka_cluster = $8
     where outbox = $1 and lane = $2
       and (owner is null
            or owner = $3 and timeline = $7 and system_id = $5  -- never after a fail-over: a clone may be working
            or lease_until < clock_timestamp()           -- the server's clock, nobody else's
            or lease_until::text = $9)                   -- that clock stepped back: seen unchanged for long enough
       and xmin = saved_xid::xid                         -- written here; else acquiring would destroy the evidence
       and (system_id <> $5 or database_oid = $6)        -- not in a copy of the database
       and coalesce(kafka_cluster, $8) = $8
 returning epoch, s::text, t::text, after";

/// Takes the lease if it is free, ours, or has run out.
///
/// `unchanged` is a `lease_until` that has been seen without a change for longer than any holder could live.
/// Not cancel-safe: a dropped attempt may have succeeded.
///
/// # Errors
/// Those of the server, or a row that holds no cursor.
pub async fn acquire(
    session: &mut Session,
    claim: &Claim,
    unchanged: Option<&str>,
) -> Result<Acquired, CursorRowError> {
    let renewed = Instant::now();
    let server = session.server.clone();
    let statement = sqlx::query(ACQUIRE)
        .bind(&claim.outbox)
        .bind(claim.lane.get())
        .bind(&claim.owner)
        .bind(millis(claim.ttl))
        .bind(server.system_id)
        .bind(server.database_oid)
        .bind(&server.timeline)
        .bind(&claim.kafka_cluster)
        .bind(unchanged)
        .fetch_optional(&mut session.connection);
    let doing = "acquiring the lease";
    let Some(row) = Session::brief(doing, statement).await.map_err(CursorRowError::Db)? else {
        return Ok(Acquired::Foreign);
    };
    let (epoch, cursor) = read(&row).map_err(|error| CursorRowError::Db(DbError::from_driver(doing, &error)))?;
    let cursor =
        cursor.map_err(|source| CursorRowError::Cursor { outbox: claim.outbox.clone(), lane: claim.lane, source })?;
    Ok(Acquired::Held(Lease { claim: claim.clone(), epoch, renewed }, cursor))
}

fn read(row: &PgRow) -> Result<(Epoch, Result<Cursor, CursorError>), sqlx::Error> {
    let (s, t): (&str, Option<&str>) = (row.try_get("s")?, row.try_get("t")?);
    Ok((Epoch::new(row.try_get("epoch")?), Cursor::parse(s, t, row.try_get("after")?)))
}

/// Moves the cursor, renews the lease and parks, in one statement: the cursor never passes an event that is neither published nor parked.
const SAVE: &str = "
    with moved as (
      update outbox.cursors
         set s = $4::text::pg_snapshot, t = $5::text::pg_snapshot, after = $6,  -- always as a triple: after means nothing under another t
             lease_until = clock_timestamp() + $7 * interval '1 ms',
             saved_xid = pg_current_xact_id(), saved_lsn = pg_current_wal_insert_lsn(), saved_at = clock_timestamp()
       where outbox = $1 and lane = $2
         and epoch = $3                                    -- no row back: a newer holder has fenced us
         and xmin = saved_xid::xid                         -- nor over a row that was restored: it would be taken for ours
         and (select count(*) from outbox.events where id = any ($8)) = cardinality($8)  -- or an event to be parked is gone
   returning xmin = saved_xid::xid as ours, substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) as timeline),
    kept as (
      insert into outbox.parked (outbox, lane, cause, code, reason, xid, id, created_at, sequence, event_id, previous_event_id,
                                 aggregate_type, aggregate_id, event_type, payload, payload_bytes, headers)
      select $1, $2, p.cause, p.code, p.reason, xid, id, created_at, sequence, event_id, previous_event_id,
             aggregate_type, aggregate_id, event_type, payload, payload_bytes, headers
        from moved cross join unnest($8, $9::text[], $10::text[], $11::text[]) as p(park, cause, code, reason)
        join outbox.events e on e.id = p.park
       order by e.id                                       -- their place is the order in which they were read
      on conflict (outbox, id, event_id) do update         -- read again after a rebase: it is parked already, or was given up before
         set place = default, cause = excluded.cause, code = excluded.code, reason = excluded.reason, parked_at = excluded.parked_at,
             attempts = parked.attempts + 1, decision = null, decided_by = null, settled_at = null
       where parked.settled_at is not null)
    select ours, timeline from moved";

const EPOCH: &str = "select epoch from outbox.cursors where outbox = $1 and lane = $2 and xmin = saved_xid::xid";

/// Moves the cursor, parks the events that wait for it, and renews the lease, in one statement.
///
/// Not cancel-safe: after a drop or an error the outcome is unknown, and only the row knows it.
///
/// # Errors
/// Those of the server.
pub async fn save(
    session: &mut Session,
    lease: &mut Lease,
    cursor: &Cursor,
    parkings: &[Parking],
) -> Result<Saved, DbError> {
    let sent = Instant::now();
    let doing = "saving the cursor";
    let (mut ids, mut causes, mut codes, mut reasons) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for parking in parkings {
        let (cause, code, reason) = match &parking.cause {
            Cause::Rejection { code, reason } => ("rejection", Some(code.as_str()), Some(reason.as_str())),
            Cause::Follows => ("follows", None, None),
        };
        ids.push(parking.key.id.get());
        causes.push(cause);
        codes.push(code);
        reasons.push(reason);
    }
    let statement = sqlx::query(SAVE)
        .bind(&lease.claim.outbox)
        .bind(lease.claim.lane.get())
        .bind(lease.epoch.get())
        .bind(cursor.s().to_string())
        .bind(cursor.t().map(ToString::to_string))
        .bind(cursor.after().map(crate::outbox::event::RowId::get))
        .bind(millis(lease.claim.ttl))
        .bind(ids)
        .bind(causes)
        .bind(codes)
        .bind(reasons)
        .fetch_optional(&mut session.connection);
    let Some(row) = Session::brief(doing, statement).await? else {
        return if parkings.is_empty() { Ok(Saved::Fenced) } else { not_saved(session, lease).await };
    };
    let ours: bool = row.try_get("ours").map_err(DbError::during(doing))?;
    let timeline: String = row.try_get("timeline").map_err(DbError::during(doing))?;
    if !ours || timeline != session.server.timeline {
        return Ok(Saved::Displaced);
    }
    lease.renewed = sent;
    Ok(Saved::Renewed)
}

/// Why nothing was written by a save that parks: the row's epoch tells.
async fn not_saved(session: &mut Session, lease: &Lease) -> Result<Saved, DbError> {
    let statement = sqlx::query_scalar(EPOCH)
        .bind(&lease.claim.outbox)
        .bind(lease.claim.lane.get())
        .fetch_optional(&mut session.connection);
    let epoch: Option<i64> = Session::brief("reading the epoch", statement).await?;
    Ok(if epoch == Some(lease.epoch.get()) { Saved::EventGone } else { Saved::Fenced })
}

const RELEASE: &str = "
    update outbox.cursors
       set owner = null, lease_until = null,
           saved_xid = pg_current_xact_id()              -- every write says which incarnation wrote it
     where outbox = $1 and lane = $2
       and epoch = $3                                    -- no row back: a newer holder has fenced us
       and xmin = saved_xid::xid
 returning epoch";

/// Gives the lease back, so that the next relay takes over at once. Being fenced is as good.
///
/// # Errors
/// Those of the server; the lease then runs out by itself.
pub async fn release(session: &mut Session, lease: Lease) -> Result<(), DbError> {
    let statement = sqlx::query(RELEASE)
        .bind(&lease.claim.outbox)
        .bind(lease.claim.lane.get())
        .bind(lease.epoch.get())
        .fetch_optional(&mut session.connection);
    Session::brief("releasing the lease", statement).await.map(drop)
}

/// Whether the row's lease may be taken now, as far as the last look tells. The statement decides.
pub fn is_free(place: &Place, claim: &Claim, unchanged: Option<&str>) -> bool {
    place.cursor.as_ref().is_some_and(|row| {
        row.owner.is_none() || row.owner.as_deref() == Some(claim.owner.as_str()) || row.expired || unchanged.is_some()
    })
}

fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}
