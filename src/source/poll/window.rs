//! The statements that read windows and pages: the other half of `outbox/cursor.rs`.
//!
//! One statement is one snapshot: split one and events are lost. All variants of the reading statements are composed here.
//! Each odd part has a measured reason:
//!
//! * `union all`: in one branch, `order by id limit` walked the primary key through all delivered rows.
//! * A range with an unknown bound (`xid < xmax(now)`, `x <= xid <= x`) is estimated at 0.5 % whatever the statistics say;
//!   `xid = any(…)` made a full scan of a table that was filled by few large transactions.
//! * `offset 0` in the lateral and around the union: fences; without them the planner finds a way round the sort of ids.
//! * Ids first, whole rows joined back by primary key: whole rows would be sorted on disk. Nothing is converted below the `limit`.
//! * A page looks at a bounded range of ids: the last page of a window would filter everything newer.
//! * No `order by` around the whole: it sorted complete rows, on disk where they are large. Nested loops, the only join that the
//!   session allows, keep the order of the ids; the reader checks that each row comes behind the one before.
//! * The flags come from one materialised row: as expressions of the select list they would be computed for every event.

use crate::db::Answered;
use crate::db::event::COLUMNS;
use crate::outbox::lsn::Lsn;
use crate::outbox::snapshot::{Snapshot, SnapshotError};
use sqlx::Row;
use sqlx::postgres::PgRow;

// Which server answered; how far its WAL has come, taken in this statement and so after its snapshot.
const FLAGS: &str = "
    standby, pid, timeline, needs_wal, flushed";

const FLAGS_CTE: &str = "flags as materialized (
      select pg_is_in_recovery() as standby, pg_backend_pid() as pid,
             case when not pg_is_in_recovery() then substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) end as timeline,
             case when not pg_is_in_recovery() then pg_current_wal_insert_lsn()::text end as needs_wal,
             case when not pg_is_in_recovery() then pg_current_wal_flush_lsn()::text end as flushed)";

/// Keeps rows while the bytes of those before them are within `$budget`, so always the first. `pg_column_size` would be the compressed size.
const WEIGHT: &str = "coalesce(octet_length(payload_bytes), octet_length(payload::text), 0)";

/// Whether the server cuts an answer that would be too large for the memory budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It cannot be.
    Never,
    /// Above a number of bytes, the last argument of the statement.
    AtBytes,
}

/// Opens a window. `$1` S, `$2` n, with [`Cut::AtBytes`] also `$3` bytes. Returns up to n + 1 events, or one row without an event.
pub fn first(cut: Cut) -> String {
    let (rows, is_cut) = match cut {
        Cut::Never => ("(w join outbox.events using (id))".to_owned(), "false as is_cut"),
        Cut::AtBytes => (cut_window("$3"), "is_cut"),
    };
    format!(
        "with now as materialized (select pg_current_snapshot() as s),
     late as materialized (  -- in progress at S, ended since
       select x from now, pg_snapshot_xip($1::text::pg_snapshot) as x where pg_visible_in_snapshot(x, now.s)),
     w as materialized (  -- ids only
       select id from (
         select id from outbox.events
          where xid >= pg_snapshot_xmax($1::text::pg_snapshot) and xid < (select pg_snapshot_xmax(s) from now)
          union all
         select r.id from late cross join lateral (
           select id from outbox.events where xid >= late.x and xid <= late.x offset 0) r offset 0) i
        order by id limit $2::bigint + 1),
     {FLAGS_CTE}
select {FLAGS}, now.s::text as seen, pg_current_xact_id_if_assigned() is null as clean, {is_cut}, {COLUMNS}
  from flags cross join now left join {rows} on true"
    )
}

/// Reads on in an open window. `$1` after, `$2` S, `$3` T, `$4` n, `$5` bound, with [`Cut::AtBytes`] also `$6` bytes.
pub fn page(cut: Cut) -> String {
    let rows = "(select * from outbox.events
         where id > $1 and id <= $5 and pg_visible_in_snapshot(xid, $3::text::pg_snapshot) and not pg_visible_in_snapshot(xid, $2::text::pg_snapshot)
         order by id limit $4::bigint) p";
    let (rows, is_cut) = match cut {
        Cut::Never => (rows.to_owned(), "false as is_cut"),
        Cut::AtBytes => (cut_page(rows, "$6"), "is_cut"),
    };
    format!(
        "with {FLAGS_CTE}\nselect {FLAGS}, null::text as seen, true as clean, {is_cut}, {COLUMNS}\n  from flags left join {rows} on true"
    )
}

/// The window's ids are sorted once more with their weights: asked for complete rows in order, the planner, which may not sort,
/// walked the whole primary key. `offset 0` is a fence again.
fn cut_window(budget: &str) -> String {
    let kept =
        kept(&format!("(select id, {WEIGHT} as weight from w join outbox.events using (id) offset 0) weighed"), budget);
    format!("({kept} join outbox.events using (id))")
}

/// The page comes in the order of the primary key; its rows are weighed as they pass.
fn cut_page(rows: &str, budget: &str) -> String {
    kept(&format!("(select *, {WEIGHT} as weight from {rows}) weighed"), budget)
}

fn kept(weighed: &str, budget: &str) -> String {
    format!(
        "(select * from (select *, sum(weight) over (order by id) - weight < {budget}::bigint as kept,
                                 sum(weight) over () >= {budget}::bigint as is_cut from {weighed}) summed where kept) q"
    )
}

/// The last id of the window that ends at `$1`; once per large window.
pub const UPTO: &str = "
    select coalesce((select max(id) from outbox.events where pg_visible_in_snapshot(xid, $1::text::pg_snapshot)), 0) as upto,
           pg_is_in_recovery() as standby, pg_backend_pid() as pid,
           case when not pg_is_in_recovery() then substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) end as timeline";

/// The first id beyond `$1`: ids can have gaps of any size.
pub const BEYOND: &str = "
    select (select min(id) from outbox.events where id > $1) as beyond,
           pg_is_in_recovery() as standby, pg_backend_pid() as pid,
           case when not pg_is_in_recovery() then substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) end as timeline";

/// What a reading statement says beside its events.
#[derive(Debug)]
pub struct Flags {
    /// Which server answered.
    pub answered: Answered,
    /// The WAL's end after the snapshot was taken; `None` on a standby.
    pub needs_wal: Option<Lsn>,
    /// Up to where the WAL was on disk.
    pub flushed: Option<Lsn>,
    /// The statement's snapshot; `None` for a page.
    pub seen: Option<Result<Snapshot, SnapshotError>>,
    /// The statement's transaction had no id of its own.
    pub clean: bool,
    /// The server cut the answer at the budget.
    pub cut: bool,
}

/// Reads the flags, which are the same in every row of an answer.
///
/// # Errors
/// A column is missing or of another type.
pub fn flags(row: &PgRow) -> Result<Flags, sqlx::Error> {
    let seen: Option<&str> = row.try_get("seen")?;
    Ok(Flags {
        answered: answered(row)?,
        needs_wal: crate::db::lsn(row, "needs_wal")?,
        flushed: crate::db::lsn(row, "flushed")?,
        seen: seen.map(Snapshot::parse),
        clean: row.try_get("clean")?,
        cut: row.try_get::<Option<bool>, _>("is_cut")?.unwrap_or(false),
    })
}

/// Where the first column of an event stands in an answer: behind five flags and three of the snapshot.
pub const EVENT_AT: usize = 8;

/// Reads which server answered.
///
/// # Errors
/// A column is missing or of another type.
pub fn answered(row: &PgRow) -> Result<Answered, sqlx::Error> {
    Ok(Answered { standby: row.try_get("standby")?, pid: row.try_get("pid")?, timeline: row.try_get("timeline")? })
}
