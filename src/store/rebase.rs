//! Makes cursors fit a database whose transaction ids mean something else than when they were saved: after a restore, a copy, an
//! upgrade by dump. And sets a cursor by hand. Both only while nobody holds the lease; both take a new epoch.
//!
//! A row of the table is *unsettled* if the saved triple of a cursor does not settle it. Rows and triple came together, so that
//! still holds in a copy. But an event that was written here, under a cursor that was not, may only look settled. Each of both kinds
//! gets the transaction id of the rebase, and the new cursor ends there: they are read, in the order of their ids, and nothing else is.

use super::guards::Refusal;
use super::standing;
use crate::db::{DbError, DbErrorKind, Session};
use crate::outbox::cursor::Cursor;
use crate::outbox::lane::{Epoch, LaneId};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RebaseError {
    /// The server refused, or the connection broke. In the last case of a rebase or a set, look at the cursor: the outcome is unknown.
    #[error(transparent)]
    Db(DbError),
    /// It must not be done now, or not by us.
    #[error(transparent)]
    Refused(Refusal),
}

/// What is to be rebased, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebase {
    /// Whose cursors.
    pub outboxes: Vec<String>,
    /// Every event of the table is to be published again.
    pub all: bool,
    /// The cursors forget into which Kafka cluster the events went.
    pub kafka: bool,
}

/// What a rebase means for one cursor on the table, chosen or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// Name of the outbox.
    pub outbox: String,
    /// Number of the lane.
    pub lane: i16,
    /// Whether its cursor is rebased.
    pub chosen: bool,
    /// How many of the newly stamped events look settled to it: they come again, or were written here unnoticed.
    pub again_events: i64,
}

/// What a rebase would do now. Events that are committed meanwhile come on top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Events that get a new transaction id, and so will be read.
    pub restamped_events: i64,
    /// Settled events that carry ids of transactions which did not begin yet here: they get the oldest id there is.
    pub aged_events: i64,
    /// One for each cursor on the table.
    pub effects: Vec<Effect>,
    /// What forbids the rebase now.
    pub refusal: Option<Refusal>,
}

/// A cursor that was moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Name of the outbox.
    pub outbox: String,
    /// Number of the lane.
    pub lane: i16,
    /// Where it was.
    pub from: String,
    /// Where it is.
    pub to: String,
    /// Its new epoch.
    pub epoch: i64,
}

/// What a rebase did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebased {
    /// See [`Plan::restamped_events`].
    pub restamped_events: u64,
    /// See [`Plan::aged_events`].
    pub aged_events: u64,
    /// The cursors, by name.
    pub cursors: Vec<Moved>,
}

/// The triple of `place` settles `e`, an event.
fn settled(place: &str) -> String {
    format!(
        "(pg_visible_in_snapshot(e.xid, {place}.s) or coalesce(e.id <= {place}.after and pg_visible_in_snapshot(e.xid, {place}.t), false))"
    )
}

// `$1` outboxes, `$2` the own transaction id, or null: the one that is next.
const PARTS: &str = "
    own as materialized (select coalesce($2::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint) as x),
    born as materialized (  -- as old as the table here: this row of the catalogue never changes
      select own.x - ((own.x - a.xmin::text::bigint) & 4294967295) as x
        from own cross join pg_attribute a where a.attrelid = 'outbox.events'::regclass and a.attnum = -1),
    c as materialized (
      select c.outbox, c.lane, c.s, c.t, c.after, c.outbox = any ($1) as chosen,
             c.xmin <> c.saved_xid::xid
             or pg_snapshot_xmax(pg_current_snapshot()) < greatest(pg_snapshot_xmax(c.s), pg_snapshot_xmax(c.t))
             or c.system_id = i.system_identifier and c.timeline = substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
                and pg_current_wal_insert_lsn() < c.saved_lsn as strange
        from outbox.cursors c cross join pg_control_system() i)";

/// The event `e` needs a new transaction id. `$3` all.
fn restamped() -> String {
    let settled = settled("c");
    format!(
        "($3 or exists (
            select from c where c.chosen and (
              not {settled}
              or c.strange and e.xid::text::bigint  -- written here: between the birth of the table and its own row's transaction
                 between born.x and own.x - ((own.x - e.xmin::text::bigint) & 4294967295)))
          or e.xid::text::bigint >= own.x  -- came with a copy, and would be hidden until that id comes
             and (not exists (select from c) or exists (select from c where not {settled})))"
    )
}

fn count() -> String {
    format!(
        "with {PARTS}
    select c.outbox, c.lane, c.chosen, count(*) filter (where a.again) as restamped,
           count(*) filter (where not a.again and e.xid::text::bigint >= own.x) as aged,
           count(*) filter (where a.again and {}) as again
      from own cross join born cross join outbox.events e
     cross join lateral (select {} as again) a
      left join c on true
     group by 1, 2, 3 order by 3 desc, 1, 2",
        settled("c"),
        restamped()
    )
}

fn restamp() -> String {
    format!(
        "with {PARTS} update outbox.events e set xid = pg_current_xact_id() from own cross join born where {}",
        restamped()
    )
}

// All that is left above the own id is settled by every cursor: 3 is what the first transaction of all had, and only `earliest` reads it.
const AGE: &str = "update outbox.events set xid = '3' where xid > pg_current_xact_id()";

// The new snapshot ends at the own id, which `pg_current_snapshot()` never lists, or before it: ids from `xmax` on are not listed
// either, and those below the own one may run and write later.
// An epoch above all that this or another incarnation gave: a holder that slept through a restore must not find its own again.
const MOVE: &str = "
    update outbox.cursors c
       set s = (select format('%s:%s:%s', least(pg_snapshot_xmin(n.s)::text::bigint, n.ends), n.ends,
                              (select string_agg(x::text, ',' order by x) from pg_snapshot_xip(n.s) x where x::text::bigint < n.ends))::pg_snapshot
                  from (select s, least(pg_snapshot_xmax(s), pg_current_xact_id())::text::bigint as ends from pg_current_snapshot() s) n),
           t = null, after = null,
           epoch = greatest(epoch + 1, extract(epoch from clock_timestamp())::bigint), owner = null, lease_until = null,
           saved_xid = pg_current_xact_id(), saved_lsn = pg_current_wal_insert_lsn(), saved_at = clock_timestamp(),
           system_id = i.system_identifier, database_oid = d.oid, timeline = substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8),
           kafka_cluster = case when $2 then null else kafka_cluster end
      from pg_control_system() i cross join pg_database d
     where d.datname = current_database() and c.outbox = any ($1)
 returning c.outbox, c.lane, concat_ws(' ', c.s::text, c.t::text, c.after::text) as position, c.epoch";

// Whoever holds a lease in another incarnation or another database cannot work here: acquiring compares both.
const HELD: &str = "
    select c.outbox, c.lane, c.owner, c.lease_until::text as lease_until, concat_ws(' ', c.s::text, c.t::text, c.after::text) as position,
           coalesce(c.owner is not null and c.lease_until >= clock_timestamp() and c.xmin = c.saved_xid::xid
                    and c.system_id = i.system_identifier and c.database_oid = d.oid, false) as held
      from outbox.cursors c cross join pg_control_system() i cross join pg_database d
     where d.datname = current_database() and c.outbox = any ($1)
     order by 1, 2";

const SEQUENCE: &str = "
    select (select last_value - (not is_called)::int from outbox.events_id_seq) as sequence_at,
           greatest(coalesce((select max(id) from outbox.events), 0),
                    coalesce((select max(newest.id) from unnest($1::text[]) as o(name) cross join lateral (
                                select id from outbox.parked where outbox = o.name order by id desc limit 1) newest), 0)) as largest_id";

const RIGHTS: &str = "
    select t.name, p.privilege
      from (values ('outbox.events', 'select'), ('outbox.events', 'update'), ('outbox.cursors', 'select'), ('outbox.cursors', 'update'),
                   ('outbox.parked', 'select')) as p(relation, privilege), lateral (select p.relation) as t(name)
     where not has_table_privilege(p.relation, p.privilege)
     union all
    select 'outbox.events_id_seq', 'select' where not has_sequence_privilege('outbox.events_id_seq', 'select')
     limit 1";

const BLOCKERS: &str = "
    select distinct coalesce('session ' || l.pid, 'prepared transaction ' || p.gid, 'a prepared transaction') || coalesce(' of ' || coalesce(a.usename::text, p.owner::text), '') as who
      from pg_locks l
      left join pg_stat_activity a on a.pid = l.pid
      left join pg_locks x on l.pid is null and x.pid is null and x.virtualtransaction = l.virtualtransaction and x.locktype = 'transactionid'
      left join pg_prepared_xacts p on p.transaction = x.transactionid
     where l.locktype = 'relation' and l.database = (select oid from pg_database where datname = current_database())
       and l.relation = 'outbox.events'::regclass and l.granted and l.pid is distinct from pg_backend_pid()
       and l.mode not in ('AccessShareLock', 'RowShareLock')
     order by 1 limit 5";

/// Names of the outboxes that have cursors here.
///
/// # Errors
/// Those of the server.
pub async fn outboxes(session: &mut Session) -> Result<Vec<String>, DbError> {
    let statement =
        sqlx::query_scalar("select distinct outbox from outbox.cursors order by 1").fetch_all(&mut session.connection);
    Session::brief("listing the cursors", statement).await
}

/// Counts what [`rebase`] would do, and changes nothing. As long as a look at every event takes.
///
/// # Errors
/// Those of the server, or a missing right.
pub async fn plan(session: &mut Session, wanted: &Rebase) -> Result<Plan, RebaseError> {
    let doing = "counting events";
    rights(session).await?;
    let rows = sqlx::query(AssertSqlSafe(count())) // composed of constants only
        .bind(&wanted.outboxes)
        .bind(None::<i64>)
        .bind(wanted.all)
        .fetch_all(&mut session.connection)
        .await
        .map_err(db(doing))?;
    let cursors = cursors(&mut session.connection, HELD, &wanted.outboxes).await?;
    let refusal = forbidden(&mut session.connection, &cursors, &wanted.outboxes).await?;
    let mut plan = Plan { restamped_events: 0, aged_events: 0, effects: Vec::new(), refusal };
    for row in &rows {
        read_count(row, &mut plan).map_err(db(doing))?;
    }
    if rows.is_empty() {
        // no event to count with; the cursors are rebased all the same
        let effect = |row: Held| Effect { outbox: row.outbox, lane: row.lane, chosen: true, again_events: 0 };
        plan.effects = cursors.into_iter().map(effect).collect();
    }
    Ok(plan)
}

fn read_count(row: &PgRow, plan: &mut Plan) -> Result<(), sqlx::Error> {
    (plan.restamped_events, plan.aged_events) = (row.try_get("restamped")?, row.try_get("aged")?);
    let outbox: Option<String> = row.try_get("outbox")?;
    if let Some(outbox) = outbox {
        plan.effects.push(Effect {
            outbox,
            lane: row.try_get("lane")?,
            chosen: row.try_get("chosen")?,
            again_events: row.try_get("again")?,
        });
    }
    Ok(())
}

/// Rebases cursors in one transaction: locks out writers, stamps anew what must be read, moves the cursors.
///
/// Not cancel-safe: a dropped call may have committed. An outbox without a cursor gets none: the relay makes it.
///
/// # Errors
/// Those of the server; a holder of a lease, a sequence behind its table, a writer that does not end, a missing right.
pub async fn rebase(session: &mut Session, wanted: &Rebase) -> Result<Rebased, RebaseError> {
    rights(session).await?;
    match attempt(&mut session.connection, wanted).await {
        Err(RebaseError::Db(error)) if error.kind() == DbErrorKind::Busy => {
            Err(RebaseError::Refused(blocked(session).await?))
        }
        other => other,
    }
}

async fn attempt(connection: &mut PgConnection, wanted: &Rebase) -> Result<Rebased, RebaseError> {
    let doing = "rebasing";
    let mut transaction = connection.begin().await.map_err(db(doing))?;
    transaction.execute("set local lock_timeout = '5s'").await.map_err(db(doing))?;
    // Waits for inserters in flight, keeps new ones out. Before our own transaction id is drawn: none of theirs is above it.
    transaction.execute("lock table outbox.events in share row exclusive mode").await.map_err(db(doing))?;
    let before = cursors(&mut transaction, &format!("{HELD} for update of c"), &wanted.outboxes).await?;
    let refusal = forbidden(&mut transaction, &before, &wanted.outboxes).await?;
    if let Some(refusal) = refusal {
        transaction.rollback().await.map_err(db(doing))?;
        return Err(RebaseError::Refused(refusal));
    }
    let own: i64 = sqlx::query_scalar("select pg_current_xact_id()::text::bigint")
        .fetch_one(&mut *transaction)
        .await
        .map_err(db(doing))?;
    let restamped = sqlx::query(AssertSqlSafe(restamp())) // composed of constants only
        .bind(&wanted.outboxes)
        .bind(own)
        .bind(wanted.all)
        .execute(&mut *transaction)
        .await
        .map_err(db(doing))?;
    let aged = transaction.execute(AGE).await.map_err(db(doing))?;
    let rows = sqlx::query(MOVE)
        .bind(&wanted.outboxes)
        .bind(wanted.kafka)
        .fetch_all(&mut *transaction)
        .await
        .map_err(db(doing))?;
    transaction.commit().await.map_err(db(doing))?;
    let mut moved =
        rows.iter().map(|row| read_moved(row, &before)).collect::<Result<Vec<_>, _>>().map_err(db(doing))?;
    moved.sort_by(|one, other| (&one.outbox, one.lane).cmp(&(&other.outbox, other.lane)));
    Ok(Rebased { restamped_events: restamped.rows_affected(), aged_events: aged.rows_affected(), cursors: moved })
}

fn read_moved(row: &PgRow, before: &[Held]) -> Result<Moved, sqlx::Error> {
    let (outbox, lane): (String, i16) = (row.try_get("outbox")?, row.try_get("lane")?);
    let from = before.iter().find(|held| held.outbox == outbox && held.lane == lane);
    let from = from.map(|held| held.position.clone()).unwrap_or_default();
    Ok(Moved { outbox, lane, from, to: row.try_get("position")?, epoch: row.try_get("epoch")? })
}

/// A cursor row before it is moved.
struct Held {
    outbox: String,
    lane: i16,
    position: String,
    holder: Option<Refusal>,
}

async fn cursors(connection: &mut PgConnection, text: &str, names: &[String]) -> Result<Vec<Held>, RebaseError> {
    let doing = "looking for the lease";
    let rows = sqlx::query(AssertSqlSafe(text.to_owned())) // one of two constants
        .bind(names)
        .fetch_all(connection)
        .await
        .map_err(db(doing))?;
    rows.iter().map(read_held).collect::<Result<_, _>>().map_err(db(doing))
}

fn read_held(row: &PgRow) -> Result<Held, sqlx::Error> {
    let (outbox, lane): (String, i16) = (row.try_get("outbox")?, row.try_get("lane")?);
    let (owner, until): (Option<String>, Option<String>) = (row.try_get("owner")?, row.try_get("lease_until")?);
    let held: bool = row.try_get("held")?;
    let holder = held.then(|| holds(&outbox, lane, &owner.unwrap_or_default(), &until.unwrap_or_default()));
    Ok(Held { outbox, lane, position: row.try_get("position")?, holder })
}

fn holds(outbox: &str, lane: i16, owner: &str, until: &str) -> Refusal {
    Refusal {
        message: format!("a relay ({owner}) holds the lease of {outbox}/{lane} until {until}"),
        hint: Some("stop it; if it is gone already, run this again once its lease has run out".to_owned()),
    }
}

/// A holder of a lease, or a sequence behind its table.
async fn forbidden(
    connection: &mut PgConnection,
    cursors: &[Held],
    names: &[String],
) -> Result<Option<Refusal>, RebaseError> {
    if let Some(holder) = cursors.iter().find_map(|row| row.holder.clone()) {
        return Ok(Some(holder));
    }
    let doing = "checking the sequence";
    let (at, largest): (i64, i64) =
        sqlx::query_as(SEQUENCE).bind(names).fetch_one(connection).await.map_err(db(doing))?;
    Ok((at < largest).then(|| standing::sequence_behind(largest)))
}

async fn rights(session: &mut Session) -> Result<(), RebaseError> {
    let role = session.server.role.clone();
    let asked = sqlx::query_as(RIGHTS).fetch_optional(&mut session.connection);
    let missing: Option<(String, String)> =
        Session::brief("checking the rights", asked).await.map_err(RebaseError::Db)?;
    missing.map_or(Ok(()), |(table, privilege)| {
        Err(RebaseError::Refused(Refusal {
            message: format!(
                "role {role} lacks {privilege} on {table}: a rebase stamps events anew and moves the cursor"
            ),
            hint: Some("connect as the owner of the schema, with --admin-url URL or OUTBOXD_ADMIN_URL".to_owned()),
        }))
    })
}

async fn blocked(session: &mut Session) -> Result<Refusal, RebaseError> {
    let asked = sqlx::query_scalar(BLOCKERS).fetch_all(&mut session.connection);
    let who: Vec<String> = Session::brief("looking for open transactions", asked).await.map_err(RebaseError::Db)?;
    let who = if who.is_empty() { "another session".to_owned() } else { who.join(", ") };
    Ok(Refusal {
        message: format!("outbox.events is locked by {who}; nothing was changed"),
        hint: Some(
            "its transaction wrote events and is open: end it, or wait until it has ended, and run this again"
                .to_owned(),
        ),
    })
}

/// What it would mean to set a cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weighed {
    /// Where it is, as saved.
    pub from: String,
    /// Where it would be, as saved: if that was the present, the present of this look.
    pub to: String,
    /// The epoch under which this holds.
    pub epoch: Epoch,
    /// Settled events that would be sent again.
    pub again_events: i64,
    /// Events that are not settled, and would be left out.
    pub left_out_events: i64,
    /// What forbids it now.
    pub refusal: Option<Refusal>,
}

// One statement is one snapshot: what is committed after it is neither counted nor passed by a cursor that is set to it.
fn weighing() -> String {
    format!(
        "
    with now as materialized (select pg_current_snapshot() as s),
         n as materialized (select coalesce($3::text::pg_snapshot, now.s) as s, $4::text::pg_snapshot as t, $5::bigint as after from now),
         c as materialized (select * from outbox.cursors where outbox = $1 and lane = $2)
    select concat_ws(' ', c.s::text, c.t::text, c.after::text) as position, concat_ws(' ', n.s::text, n.t::text, n.after::text) as place,
           c.epoch, c.owner, c.lease_until::text as lease_until,
           coalesce(c.owner is not null and c.lease_until >= clock_timestamp(), false) as held,
           greatest(pg_snapshot_xmax(n.s), pg_snapshot_xmax(n.t)) > pg_snapshot_xmax(now.s) as ahead, pg_snapshot_xmax(now.s)::text as next_xid,
           w.again, w.left_out
      from now cross join n cross join c
     cross join lateral (
       select count(*) filter (where x.was and not x.becomes) as again, count(*) filter (where not x.was and x.becomes) as left_out
         from outbox.events e cross join lateral (
           select {} as was, {} as becomes) x) w",
        settled("c"),
        settled("n")
    )
}

/// Counts what setting the cursor would mean; `None` for the present. Changes nothing. As long as a look at every event takes.
///
/// # Errors
/// Those of the server. An outbox without a cursor is `None`.
pub async fn weigh(
    session: &mut Session,
    outbox: &str,
    lane: LaneId,
    to: Option<&Cursor>,
) -> Result<Option<Weighed>, RebaseError> {
    let doing = "counting events";
    let row = sqlx::query(AssertSqlSafe(weighing())) // composed of constants only
        .bind(outbox)
        .bind(lane.get())
        .bind(to.map(|to| to.s().to_string()))
        .bind(to.and_then(Cursor::t).map(ToString::to_string))
        .bind(to.and_then(Cursor::after).map(crate::outbox::event::RowId::get))
        .fetch_optional(&mut session.connection)
        .await
        .map_err(db(doing))?;
    row.map(|row| read_weighed(&row, outbox, lane)).transpose().map_err(db(doing))
}

fn read_weighed(row: &PgRow, outbox: &str, lane: LaneId) -> Result<Weighed, sqlx::Error> {
    let (held, ahead): (bool, bool) = (row.try_get("held")?, row.try_get("ahead")?);
    let (owner, until): (Option<String>, Option<String>) = (row.try_get("owner")?, row.try_get("lease_until")?);
    let next: String = row.try_get("next_xid")?;
    let refusal = if held {
        Some(holds(outbox, lane.get(), &owner.unwrap_or_default(), &until.unwrap_or_default()))
    } else {
        ahead.then(|| Refusal {
            message: format!(
                "the snapshot is ahead of this database, whose next transaction is {next}: events would look settled"
            ),
            hint: Some("give one that was taken in this database".to_owned()),
        })
    };
    Ok(Weighed {
        from: row.try_get("position")?,
        to: row.try_get("place")?,
        epoch: Epoch::new(row.try_get("epoch")?),
        again_events: row.try_get("again")?,
        left_out_events: row.try_get("left_out")?,
        refusal,
    })
}

const SET: &str = "
    update outbox.cursors
       set s = $4::text::pg_snapshot, t = $5::text::pg_snapshot, after = $6,  -- always as a triple: after means nothing under another t
           epoch = epoch + 1, owner = null, lease_until = null,
           saved_xid = pg_current_xact_id(), saved_lsn = pg_current_wal_insert_lsn(), saved_at = clock_timestamp()
     where outbox = $1 and lane = $2
       and epoch = $3                                    -- no row back: a relay has taken it meanwhile
       and (owner is null or lease_until < clock_timestamp())
       and xmin = saved_xid::xid                         -- written here; else setting would destroy the evidence
 returning epoch";

/// Sets a cursor, if it is still as it was weighed. Answers its new epoch, or nothing if a relay took it meanwhile.
///
/// # Errors
/// Those of the server; the outcome is unknown then.
pub async fn set(
    session: &mut Session,
    outbox: &str,
    lane: LaneId,
    seen: Epoch,
    to: &Cursor,
) -> Result<Option<Epoch>, DbError> {
    let statement = sqlx::query_scalar(SET)
        .bind(outbox)
        .bind(lane.get())
        .bind(seen.get())
        .bind(to.s().to_string())
        .bind(to.t().map(ToString::to_string))
        .bind(to.after().map(crate::outbox::event::RowId::get))
        .fetch_optional(&mut session.connection);
    let epoch: Option<i64> = Session::brief("setting the cursor", statement).await?;
    Ok(epoch.map(Epoch::new))
}

fn db(doing: &'static str) -> impl FnOnce(sqlx::Error) -> RebaseError {
    move |error| RebaseError::Db(DbError::from_driver(doing, &error))
}
