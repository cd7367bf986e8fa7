//! The table `outbox.parked`, as an operator uses it: look, and decide. The relay that holds the lease carries the decisions out.

use crate::db::{DbError, Session};
use serde::Serialize;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

/// Which parked streams are meant. Nothing given means all of the outboxes.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Names of outboxes.
    pub outboxes: Vec<String>,
    /// Those whose first event is one of these.
    pub events: Vec<Uuid>,
    /// The one stream of this type and id.
    pub stream: Option<(String, String)>,
    /// Those that stand for this reason.
    pub code: Option<String>,
}

/// A parked stream: its first event and what waits behind it.
#[derive(Clone, Debug, Serialize)]
pub struct Standing {
    /// Name of the outbox.
    pub outbox: String,
    /// Its lane.
    pub lane: i16,
    /// Type of the aggregate.
    pub aggregate_type: String,
    /// Id of the aggregate.
    pub aggregate_id: String,
    /// Row id of the first event.
    pub id: i64,
    /// Its uuid.
    pub event_id: Uuid,
    /// `rejection`; `follows` while the stream is on its way again.
    pub cause: String,
    /// Why, in one word.
    pub code: Option<String>,
    /// Why, in one sentence.
    pub reason: Option<String>,
    /// When it was parked.
    pub parked_at: String,
    /// How often it was tried.
    pub attempts: i32,
    /// What was decided.
    pub decision: Option<String>,
    /// By whom.
    pub decided_by: Option<String>,
    /// Parked events of the stream, the first included; 10,000 means that many or more.
    pub events: i64,
}

/// More events of a stream than this are not counted.
pub const CAP: i64 = 10_000;

/// Leaps from stream to stream in the index, however many events each has parked.
const LIST: &str = "
    with recursive heads as (
      select first.* from unnest($1::text[]) as o(name) cross join lateral (
        select * from outbox.parked where outbox = o.name and settled_at is null
         order by outbox, lane, aggregate_type, aggregate_id, place limit 1) first
       union all
      select next.* from heads h cross join lateral (
        select * from outbox.parked p
         where p.outbox = h.outbox and p.settled_at is null
           and (p.lane, p.aggregate_type, p.aggregate_id) > (h.lane, h.aggregate_type, h.aggregate_id)
         order by p.outbox, p.lane, p.aggregate_type, p.aggregate_id, p.place limit 1) next)
    select outbox, lane, aggregate_type, aggregate_id, id, event_id, cause, code, reason, parked_at::text as parked_at,
           attempts, decision, decided_by,
           (select count(*) from (
              select from outbox.parked q
               where q.outbox = heads.outbox and q.lane = heads.lane and q.aggregate_type = heads.aggregate_type
                 and q.aggregate_id = heads.aggregate_id and q.settled_at is null limit $6) counted) as events
      from heads
     where (cardinality($2::uuid[]) = 0 or event_id = any ($2)) and ($3::text is null or aggregate_type = $3 and aggregate_id = $4)
       and ($5::text is null or code = $5)
     limit $7";

/// Lists parked streams, up to `most`. On a reader's session, whose settings forbid another plan.
///
/// # Errors
/// Those of the server.
pub async fn list(reader: &mut Session, filter: &Filter, most: i64) -> Result<Vec<Standing>, DbError> {
    let doing = "listing what is parked";
    let (aggregate_type, aggregate_id) = filter.stream.clone().unzip();
    let rows = sqlx::query(LIST)
        .bind(&filter.outboxes)
        .bind(&filter.events)
        .bind(aggregate_type)
        .bind(aggregate_id)
        .bind(&filter.code)
        .bind(CAP)
        .bind(most)
        .fetch_all(&mut reader.connection)
        .await
        .map_err(DbError::during(doing))?;
    rows.iter().map(standing).collect::<Result<_, sqlx::Error>>().map_err(DbError::during(doing))
}

fn standing(row: &PgRow) -> Result<Standing, sqlx::Error> {
    Ok(Standing {
        outbox: row.try_get("outbox")?,
        lane: row.try_get("lane")?,
        aggregate_type: row.try_get("aggregate_type")?,
        aggregate_id: row.try_get("aggregate_id")?,
        id: row.try_get("id")?,
        event_id: row.try_get("event_id")?,
        cause: row.try_get("cause")?,
        code: row.try_get("code")?,
        reason: row.try_get("reason")?,
        parked_at: row.try_get("parked_at")?,
        attempts: row.try_get("attempts")?,
        decision: row.try_get("decision")?,
        decided_by: row.try_get("decided_by")?,
        events: row.try_get("events")?,
    })
}

const SHOW: &str = "
    select (to_jsonb(p) - 'payload_bytes' || jsonb_build_object('payload_bytes', encode(payload_bytes, 'hex')))::text as event
      from outbox.parked p where outbox = any ($1) and event_id = $2 order by place";

/// Everything that is kept of a parked event, as JSON; settled ones too. Several outboxes may have parked it.
///
/// # Errors
/// Those of the server.
pub async fn show(session: &mut Session, outboxes: &[String], event: Uuid) -> Result<Vec<String>, DbError> {
    let statement = sqlx::query_scalar(SHOW).bind(outboxes).bind(event).fetch_all(&mut session.connection);
    statement.await.map_err(DbError::during("reading a parked event"))
}

/// What is to become of the first event of a parked stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is sent again, and the others behind it.
    Retry,
    /// It is kept and never sent; the others behind it are sent.
    Discard,
}

impl Decision {
    fn word(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Discard => "discard",
        }
    }
}

// What is first, and last, is looked up by a subquery with a limit: a join without statistics looks at each row for each other.

const DECIDE: &str = "
    update outbox.parked head set decision = $4, decided_by = $5
      from unnest($1::text[], $2::bigint[], $3::uuid[]) as chosen(outbox, id, event_id)
     where head.outbox = chosen.outbox and head.id = chosen.id and head.event_id = chosen.event_id and head.settled_at is null
       and head.place = (
         select place from outbox.parked r
          where r.outbox = head.outbox and r.lane = head.lane and r.aggregate_type = head.aggregate_type and r.aggregate_id = head.aggregate_id
            and r.settled_at is null
          order by r.outbox, r.lane, r.aggregate_type, r.aggregate_id, r.place limit 1)";

/// Records a decision about the first events of streams; those that are no longer first are left out. Returns how many events it concerns.
///
/// # Errors
/// Those of the server.
pub async fn decide(
    session: &mut Session,
    heads: &[Standing],
    decision: Decision,
    decided_by: &str,
) -> Result<u64, DbError> {
    let outboxes: Vec<&str> = heads.iter().map(|head| head.outbox.as_str()).collect();
    let (ids, event_ids): (Vec<i64>, Vec<Uuid>) = heads.iter().map(|head| (head.id, head.event_id)).unzip();
    let statement = sqlx::query(DECIDE)
        .bind(outboxes)
        .bind(ids)
        .bind(event_ids)
        .bind(decision.word())
        .bind(decided_by)
        .execute(&mut session.connection);
    Ok(statement.await.map_err(DbError::during(DECIDING))?.rows_affected())
}

const DECIDING: &str = "recording a decision about parked events";

/// The last place of a stream, if the event is still its first.
const LAST_PLACE: &str = "
    select (
      select place from outbox.parked
       where outbox = $1 and lane = $2 and aggregate_type = $3 and aggregate_id = $4 and settled_at is null
       order by outbox desc, lane desc, aggregate_type desc, aggregate_id desc, place desc limit 1)
     where ($5, $6) = (
      select id, event_id from outbox.parked
       where outbox = $1 and lane = $2 and aggregate_type = $3 and aggregate_id = $4 and settled_at is null
       order by outbox, lane, aggregate_type, aggregate_id, place limit 1)";

/// The last ones first: as long as the head is undecided, nothing moves. A row that somebody has changed since the statement began is locked
/// where it is now, and not found there by its snapshot: it is picked, and left for another round.
const GIVE_UP: &str = "
    with picked as (
      select ctid, place from outbox.parked
       where outbox = $1 and lane = $2 and aggregate_type = $3 and aggregate_id = $4 and settled_at is null and place <= $5
         and decision is distinct from 'discard'
       order by outbox desc, lane desc, aggregate_type desc, aggregate_id desc, place desc limit $6 for update),
    given_up as (
      update outbox.parked set decision = 'discard', decided_by = $7
       where ctid = any (array(select ctid from picked))
      returning 1)
    select (select min(place) from picked), (select count(*) from picked), (select count(*) from given_up)";

/// Rows that one statement changes, so that it ends in time and holds no other up for long.
const AT_ONCE: i64 = 10_000;

/// Gives up all that is parked of a stream now, if it still begins with this event. Counts into `events` those about which it was not
/// yet decided so, also before an error.
///
/// # Errors
/// Those of the server. The last ones of the stream may be given up already; nothing else has happened.
pub async fn give_up(
    session: &mut Session,
    head: &Standing,
    decided_by: &str,
    events: &mut u64,
) -> Result<(), DbError> {
    let last = sqlx::query_scalar(LAST_PLACE)
        .bind(&head.outbox)
        .bind(head.lane)
        .bind(&head.aggregate_type)
        .bind(&head.aggregate_id)
        .bind(head.id)
        .bind(head.event_id)
        .fetch_optional(&mut session.connection);
    let mut last: Option<i64> = last.await.map_err(DbError::during(DECIDING))?;
    while let Some(place) = last {
        let (first, picked, given_up): (Option<i64>, i64, i64) = sqlx::query_as(GIVE_UP)
            .bind(&head.outbox)
            .bind(head.lane)
            .bind(&head.aggregate_type)
            .bind(&head.aggregate_id)
            .bind(place)
            .bind(AT_ONCE)
            .bind(decided_by)
            .fetch_one(&mut session.connection)
            .await
            .map_err(DbError::during(DECIDING))?;
        *events = events.saturating_add(u64::try_from(given_up).unwrap_or_default());
        if given_up == picked {
            last = first.map(|first| first.saturating_sub(1));
        }
    }
    Ok(())
}
