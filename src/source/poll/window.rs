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
//!   session allows, keep the order of the ids, and `union all` takes its branches one after the other; the reader checks that the
//!   flags come last and each row behind the one before.
//! * The flags are a row of their own: as columns of every event they cost Postgres a quarter of its time in a drain.

use crate::db::Answered;
use crate::db::event::{COLUMNS, Columns, decode, number, text};
use crate::outbox::event::RowId;
use crate::outbox::lsn::Lsn;
use crate::outbox::snapshot::Snapshot;
use sqlx::Row;
use sqlx::postgres::PgRow;

/// Which server answered: the values of [`Answered`].
const PID: &str = "pg_backend_pid()";
const TIMELINE: &str = "case when not pg_is_in_recovery() then substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) end";

/// The last row of an answer is no event: it has no id. What [`Flags`] reads stands in columns of the same types.
fn flags_row(needs_wal: &str, seen: &str) -> String {
    format!(
        "select null::bigint as id, null::timestamptz, {PID}::bigint as pid, null::uuid, null::uuid, {TIMELINE} as timeline,
       {needs_wal} as needs_wal, {seen} as seen, null::jsonb, null::bytea, null::jsonb"
    )
}

/// What a row weighs. `pg_column_size` would be the compressed size.
const WEIGHT: &str = "coalesce(octet_length(payload_bytes), octet_length(payload::text), 0)";

/// Whether the server cuts an answer that would be too large for the memory budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It cannot be.
    Never,
    /// Above a number of bytes, the last argument of the statement.
    AtBytes,
}

/// Opens a window. `$1` S, `$2` n, with [`Cut::AtBytes`] also `$3` bytes. Returns up to n + 1 events and the flags.
pub fn first(cut: Cut) -> String {
    let rows = match cut {
        Cut::Never => "w join outbox.events using (id)".to_owned(),
        Cut::AtBytes => cut_window("$3"),
    };
    let flags = flags_row(
        "case when now.wal is null or not exists (select from w) then null
              when pg_current_wal_flush_lsn() < now.wal then now.wal::text end",
        "case when pg_current_xact_id_if_assigned() is null then now.s::text end",
    );
    let ids = ids("(select pg_snapshot_xmax(s) from now)", "late");
    format!(
        "with now as materialized (select pg_current_snapshot() as s, case when not pg_is_in_recovery() then pg_current_wal_insert_lsn() end as wal),
     late as materialized (  -- in progress at S, ended since
       select x from now, pg_snapshot_xip($1::text::pg_snapshot) as x where pg_visible_in_snapshot(x, now.s)),
     w as materialized (  -- ids only
       select id from ({ids}) i order by id limit $2::bigint + 1)
select {COLUMNS} from {rows}
union all
{flags} from now"
    )
}

/// The ids behind `$1`: of transactions that began after it and before `end`, and of those `late` ones, a table with a column `x`, that
/// were in progress at it.
fn ids(end: &str, late: &str) -> String {
    format!(
        "select id from outbox.events where xid >= pg_snapshot_xmax($1::text::pg_snapshot) and xid < {end}
          union all
         select r.id from {late} cross join lateral (
           select id from outbox.events where xid >= x and xid <= x offset 0) r offset 0"
    )
}

/// The bounds of a page.
#[derive(Clone, Copy, Debug)]
pub struct Page<'s> {
    /// Behind this id.
    pub after: RowId,
    /// Not beyond this one.
    pub bound: RowId,
    /// What is settled.
    pub s: &'s Snapshot,
    /// The end of the window.
    pub t: &'s Snapshot,
    /// At most so many rows.
    pub rows: usize,
    /// Up to about so many bytes, where the server has to cut.
    pub cut_bytes: Option<usize>,
}

/// Reads on in an open window. The bounds are numbers, so they stand in the text: `copy` takes no arguments.
pub fn page(page: &Page<'_>) -> String {
    let Page { after, bound, s, t, rows, cut_bytes } = page;
    let events = format!(
        "(select * from outbox.events
         where id > {after} and id <= {bound} and pg_visible_in_snapshot(xid, '{t}'::pg_snapshot) and not pg_visible_in_snapshot(xid, '{s}'::pg_snapshot)
         order by id limit {rows}) p"
    );
    let events = cut_bytes.map_or_else(|| events.clone(), |bytes| cut_page(&events, &bytes.to_string()));
    let flags = flags_row(
        "case when pg_is_in_recovery() then null
              when pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn() then pg_current_wal_insert_lsn()::text end",
        "null::text",
    );
    format!("select {COLUMNS} from {events}\nunion all\n{flags}")
}

/// The window's ids are sorted once more with their weights: asked for complete rows in order, the planner, which may not sort,
/// walked the whole primary key. `offset 0` is a fence again.
fn cut_window(budget: &str) -> String {
    let kept =
        kept(&format!("(select id, {WEIGHT} as weight from w join outbox.events using (id) offset 0) weighed"), budget);
    format!("{kept} join outbox.events using (id)")
}

/// The page comes in the order of the primary key; its rows are weighed as they pass.
fn cut_page(rows: &str, budget: &str) -> String {
    kept(&format!("(select *, {WEIGHT} as weight from {rows}) weighed"), budget)
}

/// Rows while the bytes of those before them are within the budget, so always the first.
fn kept(weighed: &str, budget: &str) -> String {
    format!(
        "(select * from (select *, sum(weight) over (order by id) - weight < {budget}::bigint as kept from {weighed}) summed
          where kept) q"
    )
}

/// How far the WAL is on disk.
pub fn flushed() -> String {
    look("case when not pg_is_in_recovery() then pg_current_wal_flush_lsn()::text end as flushed")
}

/// The last id that there is: no id of a window that was opened before lies beyond it. Once per large window.
pub fn newest() -> String {
    look("(select max(id) from outbox.events) as id")
}

/// No id of the window from `$1` to `$2` lies beyond this one; for a window that an earlier session has opened. It reads what opening the
/// window has read: by the primary key it would walk all that was written since.
pub fn upto() -> String {
    let ids = ids("pg_snapshot_xmax($2::text::pg_snapshot)", "pg_snapshot_xip($1::text::pg_snapshot) as late(x)");
    look(&format!("(select max(id) from ({ids}) i) as id"))
}

/// The first id beyond `$1`: ids can have gaps of any size.
pub fn beyond() -> String {
    look("(select min(id) from outbox.events where id > $1) as id")
}

fn look(column: &str) -> String {
    format!("select {column}, {PID} as pid, {TIMELINE} as timeline")
}

/// What a reading statement says beside its events.
#[derive(Debug)]
pub struct Flags {
    /// Which server answered.
    pub answered: Answered,
    /// The WAL's end after the snapshot was taken, if there are events and it was not on disk up to there.
    pub needs_wal: Option<Lsn>,
    /// The statement's snapshot, where it opened a window in a transaction that had no id of its own.
    pub seen: Option<String>,
}

impl Flags {
    /// Reads them from the last row of an answer; `None` if it is an event.
    ///
    /// # Errors
    /// It does not hold them.
    pub fn of(columns: &Columns<'_>) -> Result<Option<Self>, sqlx::Error> {
        let [None, _, pid, _, _, timeline, needs_wal, seen, ..] = *columns else { return Ok(None) };
        let pid = pid.ok_or(sqlx::Error::RowNotFound).and_then(number)?;
        let pid = i32::try_from(pid).map_err(decode)?;
        let timeline = timeline.map(text).transpose()?;
        let needs_wal = needs_wal.map(text).transpose()?;
        let needs_wal = needs_wal.as_deref().map(Lsn::parse).transpose().map_err(decode)?;
        Ok(Some(Self { answered: Answered { pid, timeline }, needs_wal, seen: seen.map(text).transpose()? }))
    }
}

/// Reads which server answered.
///
/// # Errors
/// A column is missing or of another type.
pub fn answered(row: &PgRow) -> Result<Answered, sqlx::Error> {
    Ok(Answered { pid: row.try_get("pid")?, timeline: row.try_get("timeline")? })
}
