//! Readers that are known to be wrong, and one that is right: does the checker tell them apart?
//!
//! They read while a storm of writers runs. What makes the wrong ones fail is made certain beside it, not left to the
//! storm: a transaction that draws its id early and commits late, and one that takes its xid early and locks late.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use sqlx::PgConnection;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::checker::{Record, Verdict, check};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::postgres::{Database, Role, say};
use crate::support::seed;
use crate::support::writer::{Plan, Storm};

const PAGE: i64 = 200;

/// Partitions of the topic that these readers pretend to write.
const PARTITIONS: u64 = 4;

/// A way to know what comes next. Each binds a text and an id, and answers with those of the next call.
#[derive(Clone, Copy)]
struct Way {
    start: (&'static str, i64),
    statement: &'static str,
    reads: Reads,
}

/// When a way reads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reads {
    DuringTheStorm,
    Afterwards,
}

/// Loses what drew its id before the last one read and committed after.
const ID_CURSOR: Way = Way {
    start: ("", 0),
    statement: "
select null::text as place, id, event_id, aggregate_type, aggregate_id, event_type,
       coalesce(payload_bytes, convert_to(payload::text, 'UTF8'))
  from outbox.events
 where id > $2 and $1::text is not null
 order by id
 limit $3",
    reads: Reads::DuringTheStorm,
};

/// Loses nothing, but who took its xid first and wrote second comes first.
///
/// What it publishes in the end is all events by (xid, id), since it waits at its horizon until none can come before.
/// Any transaction of the cluster holds that horizon up, other tests' too, so it reads when all is over, without it.
const HORIZON: Way = Way {
    start: ("0", 0),
    statement: "
select xid::text as place, id, event_id, aggregate_type, aggregate_id, event_type,
       coalesce(payload_bytes, convert_to(payload::text, 'UTF8'))
  from outbox.events
 where (xid, id) > ($1::text::xid8, $2)
 order by xid, id
 limit $3",
    reads: Reads::Afterwards,
};

/// The difference of two snapshots, in one window however large. The last row tells the snapshot only.
const SNAPSHOTS: Way = Way {
    start: ("3:3:", 0),
    statement: "
with now as materialized (select pg_current_snapshot() as s)
select now.s::text as place, e.id, e.event_id, e.aggregate_type, e.aggregate_id, e.event_type,
       coalesce(e.payload_bytes, convert_to(e.payload::text, 'UTF8'))
  from now
  join outbox.events e on pg_visible_in_snapshot(e.xid, now.s) and not pg_visible_in_snapshot(e.xid, $1::text::pg_snapshot)
 where $2::bigint is not null and $3::bigint is not null
 order by e.id",
    reads: Reads::DuringTheStorm,
};

type Columns = (Option<String>, i64, Uuid, String, String, String, Option<Vec<u8>>);

/// Reads until it is told to stop and then until nothing comes.
async fn read(
    mut connection: PgConnection,
    way: Way,
    last: watch::Sender<i64>,
    stop: CancellationToken,
) -> Vec<Record> {
    let (mut place, mut after) = (way.start.0.to_owned(), way.start.1);
    let mut records = Vec::new();
    loop {
        let ending = stop.is_cancelled();
        let statement = sqlx::query_as(way.statement).bind(&place).bind(after).bind(PAGE);
        let page: Vec<Columns> = statement.fetch_all(&mut connection).await.unwrap();
        if page.is_empty() && ending {
            return records;
        }
        for (seen, id, event_id, aggregate_type, aggregate_id, event_type, value) in page {
            place = seen.unwrap_or(place);
            after = id;
            last.send_if_modified(|last| std::mem::replace(last, id.max(*last)) < id);
            let offset = i64::try_from(records.len()).unwrap();
            records.push(record(offset, event_id, &aggregate_type, &aggregate_id, &event_type, value));
        }
        tokio::task::yield_now().await;
    }
}

fn record(
    offset: i64,
    event_id: Uuid,
    aggregate_type: &str,
    aggregate_id: &str,
    event_type: &str,
    value: Option<Vec<u8>>,
) -> Record {
    let mut hasher = DefaultHasher::new();
    (aggregate_type, aggregate_id).hash(&mut hasher);
    let header = |name: &str, value: &str| (name.to_owned(), Some(value.as_bytes().to_vec()));
    Record {
        topic: "memory".to_owned(),
        partition: i32::try_from(hasher.finish() % PARTITIONS).unwrap(),
        offset,
        key: Some(aggregate_id.as_bytes().to_vec()),
        value,
        headers: vec![
            header("id", &event_id.to_string()),
            header("type", event_type),
            header("aggregate-type", aggregate_type),
            header("aggregate-id", aggregate_id),
        ],
        timestamp: None,
    }
}

const PLACED: &str = "insert into outbox.events (aggregate_type, aggregate_id, event_type, payload)";

/// Lets one way of reading follow a storm, and the two transactions that wrong ways cannot take.
async fn verdict_on(test: &str, way: Way) -> Verdict {
    let database = Database::migrated(test).await;
    let storm = Storm::start(&database, Plan::new(seed(), Duration::from_secs(4))).await;
    let (last, mut passed) = watch::channel(0);
    let (stop, stormy) = (CancellationToken::new(), way.reads == Reads::DuringTheStorm);
    let mut reading = JoinSet::new();
    if stormy {
        reading.spawn(read(database.connect(Role::Relay).await, way, last.clone(), stop.clone()));
    }

    // id early, commit late: others pass it and are read
    let mut early = database.connect(Role::App).await;
    say(&mut early, "begin").await;
    let insert = format!("{PLACED} values ('order', 'early id', 'Placed', '{{\"nr\": 1}}') returning id");
    let id: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(insert)).fetch_one(&mut early).await.unwrap();
    storm.has_committed(300).await;
    if stormy {
        eventually("the reader is past the id of an open transaction", PATIENCE, async || {
            let last = *passed.borrow_and_update();
            if last > id { Ok(()) } else { Err(format!("it is at {last}, the id is {id}")) }
        })
        .await;
    }
    say(&mut early, "commit").await;

    // xid early, lock late: its event is the second of the stream
    let (mut first_xid, mut first_event) = (database.connect(Role::App).await, database.connect(Role::App).await);
    say(&mut first_xid, "begin; select pg_current_xact_id()").await;
    say(&mut first_event, &format!("{PLACED} values ('order', 'early xid', 'Placed', '{{\"nr\": 1}}')")).await;
    say(&mut first_xid, &format!("{PLACED} values ('order', 'early xid', 'Placed', '{{\"nr\": 2}}'); commit")).await;

    storm.has_committed(600).await;
    storm.stop().await;
    stop.cancel();
    if !stormy {
        reading.spawn(read(database.connect(Role::Relay).await, way, last, stop));
    }
    let records = reading.join_next().await.unwrap().unwrap();
    let verdict = check(database.committed().await, &records, &[]);
    eprintln!("{verdict}");
    verdict
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_checker_finds_what_an_id_cursor_loses() {
    let verdict = verdict_on("the_checker_finds_what_an_id_cursor_loses", ID_CURSOR).await;
    assert!(verdict.lost.count > 0, "{verdict}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_checker_finds_the_disorder_of_a_horizon() {
    let verdict = verdict_on("the_checker_finds_the_disorder_of_a_horizon", HORIZON).await;
    assert_eq!(verdict.lost.count, 0, "{verdict}");
    assert!(verdict.out_of_order.count > 0, "{verdict}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_checker_finds_no_fault_in_the_difference_of_two_snapshots() {
    let verdict = verdict_on("the_checker_finds_no_fault_in_snapshots", SNAPSHOTS).await;
    assert!(verdict.is_sound(), "{verdict}");
    assert_eq!(verdict.duplicates.count, 0, "{verdict}");
}
