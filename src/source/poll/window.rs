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

use super::flush;
use crate::db::Answered;
use crate::db::event::{COLUMNS, Columns, jsonb};
use crate::outbox::event::RowId;
use crate::outbox::lsn::Lsn;
use crate::outbox::snapshot::{Snapshot, SnapshotError};
use serde::Deserialize;
use sqlx::Row;
use sqlx::postgres::PgRow;

/// Which server answered: the values of [`Answered`], which a look gives as columns and a read among its flags.
const STANDBY: &str = "pg_is_in_recovery()";
const PID: &str = "pg_backend_pid()";
const TIMELINE: &str = "case when not pg_is_in_recovery() then substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) end";

/// How far the WAL of a window has come.
const WAL: &str = "case when not pg_is_in_recovery() then pg_current_wal_insert_lsn() end";
const FLUSHED: &str = "case when not pg_is_in_recovery() then pg_current_wal_flush_lsn() end";

/// The last row of an answer is no event: it has no id, and the flags are its headers.
fn flags_row(flags: &str) -> String {
    let answered = format!("'standby', {STANDBY}, 'pid', {PID}, 'timeline', {TIMELINE}");
    format!(
        "select null::bigint as id, null::timestamptz as created_at, null::bigint as sequence, null::uuid as event_id,
       null::uuid as previous_event_id, null::text as aggregate_type, null::text as aggregate_id, null::text as event_type,
       null::jsonb as payload, null::bytea as payload_bytes, jsonb_build_object({answered}, {flags}) as headers"
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
///
/// Where there are events it waits a little until the WAL is on disk to where it was behind the snapshot: a statement of its own for
/// that took longer.
pub fn first(cut: Cut) -> String {
    let rows = match cut {
        Cut::Never => "w join outbox.events using (id)".to_owned(),
        Cut::AtBytes => cut_window("$3"),
    };
    let flags = flags_row(
        "'needs_wal', now.wal::text, 'flushed', (select max(place)::text from looks),
       'seen', now.s::text, 'clean', pg_current_xact_id_if_assigned() is null",
    );
    let looks = flush::looks(FLUSHED, "(select wal from now where exists (select from w))");
    format!(
        "with recursive now as materialized (select pg_current_snapshot() as s, {WAL} as wal),
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
     {looks}
select {COLUMNS} from {rows}
union all
{flags} from now"
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
    let flags = flags_row(&format!("'needs_wal', ({WAL})::text, 'flushed', ({FLUSHED})::text"));
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

/// The last id of the window that ends at `$1`; once per large window.
pub fn upto() -> String {
    look("(select max(id) from outbox.events where pg_visible_in_snapshot(xid, $1::text::pg_snapshot))")
}

/// The first id beyond `$1`: ids can have gaps of any size.
pub fn beyond() -> String {
    look("(select min(id) from outbox.events where id > $1)")
}

fn look(id: &str) -> String {
    format!("select {id} as id, {STANDBY} as standby, {PID} as pid, {TIMELINE} as timeline")
}

/// What a reading statement says beside its events.
#[derive(Debug, Deserialize)]
pub struct Flags {
    /// Which server answered.
    #[serde(flatten)]
    pub answered: Answered,
    needs_wal: Option<String>,
    flushed: Option<String>,
    seen: Option<String>,
    clean: Option<bool>,
}

impl Flags {
    /// Reads them from the last row of an answer; `None` if it is an event.
    ///
    /// # Errors
    /// It does not hold them.
    pub fn of(columns: &Columns<'_>) -> Result<Option<Self>, sqlx::Error> {
        if columns[0].is_some() {
            return Ok(None);
        }
        let json = columns[10].ok_or(sqlx::Error::RowNotFound)?;
        serde_json::from_slice(jsonb(json)?).map(Some).map_err(|error| sqlx::Error::Decode(Box::new(error)))
    }

    /// The WAL's end after the snapshot was taken, if it was not on disk up to there.
    ///
    /// # Errors
    /// A place in the WAL cannot be read.
    pub fn needs_wal(&self) -> Result<Option<Lsn>, sqlx::Error> {
        let place = |text: &Option<String>| text.as_deref().map(Lsn::parse).transpose();
        let both = place(&self.needs_wal).and_then(|needs| Ok((needs, place(&self.flushed)?)));
        let (needs, flushed) = both.map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        Ok(needs.filter(|_| flushed < needs))
    }

    /// The statement's snapshot, where it opened a window.
    pub fn seen(&self) -> Option<Result<Snapshot, SnapshotError>> {
        self.seen.as_deref().map(Snapshot::parse)
    }

    /// Whether the statement's transaction had an id of its own.
    pub fn was_writing(&self) -> bool {
        self.clean == Some(false)
    }
}

/// Reads which server answered.
///
/// # Errors
/// A column is missing or of another type.
pub fn answered(row: &PgRow) -> Result<Answered, sqlx::Error> {
    Ok(Answered { standby: row.try_get("standby")?, pid: row.try_get("pid")?, timeline: row.try_get("timeline")? })
}
