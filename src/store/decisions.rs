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
    /// All that is parked of the stream now is kept and never sent.
    DiscardAll,
}

impl Decision {
    fn word(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Discard | Self::DiscardAll => "discard",
        }
    }
}

/// The last ones first: as long as the head is undecided, nothing moves.
const DECIDE: &str = "
    update outbox.parked set decision = $4, decided_by = $5
     where ctid = any (array(  -- locked, so they stay where they are
       select q.ctid
         from unnest($1::text[], $2::bigint[], $3::uuid[]) as chosen(outbox, id, event_id)
         join outbox.parked head using (outbox, id, event_id)
         join outbox.parked q on q.outbox = head.outbox and q.lane = head.lane
                             and q.aggregate_type = head.aggregate_type and q.aggregate_id = head.aggregate_id
        where head.settled_at is null and q.settled_at is null
          and case when $6 then q.decision is distinct from $4 else q.place = head.place end
          and not exists (  -- it is still the first
            select from outbox.parked r
             where r.outbox = head.outbox and r.lane = head.lane and r.aggregate_type = head.aggregate_type and r.aggregate_id = head.aggregate_id
               and r.settled_at is null and r.place < head.place)
        order by q.place desc limit $7 for update of q))";

/// Rows that one statement changes, so that it ends in time and holds no other up for long.
const AT_ONCE: u16 = 10_000;

/// Records a decision about the first events of streams; those that are no longer first are left out. Returns the events that it concerns:
/// with [`Decision::DiscardAll`] those about which it was not yet decided so.
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
    let mut events = 0_u64;
    loop {
        let statement = sqlx::query(DECIDE)
            .bind(&outboxes)
            .bind(&ids)
            .bind(&event_ids)
            .bind(decision.word())
            .bind(decided_by)
            .bind(decision == Decision::DiscardAll)
            .bind(i32::from(AT_ONCE));
        let done = statement.execute(&mut session.connection).await;
        let changed = done.map_err(DbError::during("recording a decision about parked events"))?.rows_affected();
        events = events.saturating_add(changed);
        if changed < u64::from(AT_ONCE) {
            return Ok(events);
        }
    }
}
