//! How many events wait behind the saved cursor, and how old the oldest is. Counts are capped, so that a look costs the same at any backlog.

use crate::db::{DbError, Session};
use crate::outbox::lane::LaneId;

/// Counting ends here: "10000 or more".
pub const CAP: i64 = 10_000;

/// What waits behind the saved cursor.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Backlog {
    /// Events that are committed and not settled; [`CAP`] means that many or more.
    pub events: i64,
    /// Age of the oldest of them, by the server's clock; 0 if there is none.
    pub oldest_seconds: f64,
}

// Behind a closed cursor by transaction id, behind an open one by primary key from `after`: neither walks what is settled.
// Events of a late commit below `after` are left out until their window is opened. `order by xid` is for the planner: a bound that it does
// not know it takes for a third of the table, so it read the index of all that waits, or the heap from its beginning: a second of each second
// behind 10,000,000 delivered rows.
/// `$1` outbox, `$2` lane, `$3` the cap.
pub const BACKLOG: &str = "
    with c as materialized (select s, t, after from outbox.cursors where outbox = $1 and lane = $2),
         waiting as (
           (select e.created_at from c cross join lateral (
              select created_at from outbox.events where c.t is null and xid >= pg_snapshot_xmax(c.s) order by xid limit $3) e)
            union all
           (select e.created_at from c cross join lateral pg_snapshot_xip(c.s) as x cross join lateral (
              select created_at from outbox.events where c.t is null and xid >= x and xid <= x offset 0) e limit $3)
            union all
           (select e.created_at from c cross join lateral (
              select created_at from outbox.events where id > c.after and not pg_visible_in_snapshot(xid, c.s) order by id limit $3) e))
    select least(count(*), $3) as events, coalesce(extract(epoch from clock_timestamp() - min(created_at)), 0)::float8 as oldest from waiting";

/// Looks how much waits.
///
/// # Errors
/// Those of the server.
pub async fn look(session: &mut Session, outbox: &str, lane: LaneId) -> Result<Backlog, DbError> {
    let statement = sqlx::query_as(BACKLOG).bind(outbox).bind(lane.get()).bind(CAP).fetch_one(&mut session.connection);
    let (events, oldest_seconds): (i64, f64) = Session::brief("looking at the backlog", statement).await?;
    Ok(Backlog { events, oldest_seconds: oldest_seconds.max(0.0) })
}
