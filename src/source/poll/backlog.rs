//! How many events wait behind the saved cursor, and how old the oldest is. Counts are capped and every walk has an end, so that a look
//! costs the same at any backlog; where an end is met, both answers are "at least".

use crate::db::{DbError, Session};
use crate::outbox::lane::LaneId;

/// Counting ends here: "10000 or more".
pub const CAP: i64 = 10_000;

/// What waits behind the saved cursor.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Backlog {
    /// Events that are committed and not settled, at least; [`CAP`] means that many or more.
    pub events: i64,
    /// Age of the oldest of those counted, by the server's clock; 0 if there is none.
    pub oldest_seconds: f64,
}

// Four walks, each of at most `$3` rows or 100,000 ids, and no row in two of them: `near`, what an open window holds up to `far`, by primary
// key; and beyond `far`, or behind a closed cursor altogether, what was `late` at S, the `newest` of the open window and what is `newer` than it.
// Near `after` all may be settled, where one transaction was open while others wrote on. But what S sees has smaller ids than what began
// behind it, so then the `newest` are all beyond `far`. Ids count from the next row on: a gap can be of any size. So the answer can be too
// low, but not 0 while something waits. Events of a late commit below `after` are left out until their window is opened.
// `order by xid` is for the planner, and so is that no range of transactions has two bounds that it does not know: one it takes for a third
// of the table, two for 0.5 %. Without, it read the index of all that waits, or the heap from its beginning: a second of each second behind
// 10,000,000 delivered rows.
/// `$1` outbox, `$2` lane, `$3` the cap.
pub const BACKLOG: &str = "
    with c as materialized (
           select s, coalesce(t, s) as t, after,
                  case when t is null then -9223372036854775808
                       else least(coalesce((select min(id) from outbox.events where id > after), after), 9223372036854675808) + 99999  -- within bigint
                   end as far
             from outbox.cursors where outbox = $1 and lane = $2),
         waiting as (
           (select e.created_at from c cross join lateral (
              select created_at from outbox.events near where id > c.after and id <= c.far and not pg_visible_in_snapshot(xid, c.s) order by id limit $3) e)
            union all
           (select e.created_at from c cross join lateral pg_snapshot_xip(c.s) as x cross join lateral (
              select created_at from outbox.events late where (xid, id) > (x, c.far) and xid <= x order by xid, id limit $3) e)
            union all
           (select e.created_at from c cross join lateral (
              select * from outbox.events newest where c.after is not null and xid < pg_snapshot_xmax(c.t) order by xid desc, id desc limit $3) e
             where e.xid >= pg_snapshot_xmax(c.s) and e.id > c.far)
            union all
           (select e.created_at from c cross join lateral (
              select * from outbox.events newer where xid >= pg_snapshot_xmax(c.t) order by xid limit $3) e
             where e.id > c.far)  -- the others were counted as near
            limit $3)
    select count(*) as events, coalesce(extract(epoch from clock_timestamp() - min(created_at)), 0)::float8 as oldest from waiting";

/// Looks how much waits.
///
/// # Errors
/// Those of the server.
pub async fn look(session: &mut Session, outbox: &str, lane: LaneId) -> Result<Backlog, DbError> {
    let statement = sqlx::query_as(BACKLOG).bind(outbox).bind(lane.get()).bind(CAP).fetch_one(&mut session.connection);
    let (events, oldest_seconds): (i64, f64) = Session::brief("looking at the backlog", statement).await?;
    Ok(Backlog { events, oldest_seconds: oldest_seconds.max(0.0) })
}
