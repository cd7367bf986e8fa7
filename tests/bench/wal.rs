//! What a drain writes into Postgres: bytes of the write-ahead log, and rows whose old version is left to vacuum. Beside
//! it, what reading the same rows once writes, and what is written while nothing happens.
//!
//! The table was vacuumed before, so that reading has no hint to set in it.

use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use tokio::time::Instant;

use super::backlog::Shape;
use super::database::Database;
use super::drain::{Bench, Move};
use super::floors;
use super::report::{Finished, Spread, table};
use super::say;
use super::series::{others, ours};

/// A backend tells what it has counted no more than once a second, and at its end.
const COUNTED: Duration = Duration::from_millis(1_200);

/// Where the log ends, and the changes of all tables of the database.
const MARK: &str = "
    select (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint,
           sum(n_tup_upd)::bigint, sum(n_tup_upd + n_tup_del)::bigint
      from pg_stat_all_tables";

/// What was written in the time of one run.
#[derive(Clone, Debug, Serialize)]
struct Written {
    round: u32,
    what: String,
    events: u32,
    seconds: f64,
    wal_bytes: i64,
    updates: i64,
    /// Old versions of rows that were updated or deleted.
    dead: i64,
}

/// A point from which is counted.
struct Mark {
    at: Instant,
    wal_bytes: i64,
    updates: i64,
    dead: i64,
}

/// Measures idle time, reading, and all relays.
pub(crate) async fn measure(bench: &mut Bench) -> anyhow::Result<Finished> {
    let (shape, mut all) = (bench.arguments.shape(), Vec::new());
    for round in 1..=bench.arguments.runs {
        let backlog = bench.load(shape).await?;
        for at in ours(bench) {
            bench.database.checkpoint().await?;
            let topic = bench.topics.create().await?;
            let mark = mark(&mut bench.database).await?;
            let drained = bench.measured(at, &topic, &backlog.expected, Move::Begin).await;
            let written = since(&mut bench.database, &mark).await?;
            bench.relay(at)?.detach().await?;
            let run = drained.with_context(|| format!("round {round}: this run is void"))?;
            note(&mut all, Written { round, what: run.what, events: shape.events, ..written })?;
        }
        for written in beside(bench, &all, round, shape).await? {
            note(&mut all, written)?;
        }
        for at in others(bench) {
            let written = theirs(bench, at, shape).await;
            bench.relay(at)?.detach().await?;
            let written = written.with_context(|| format!("round {round}: this run is void"))?;
            note(&mut all, Written { round, ..written })?;
        }
    }
    Ok(Finished { name: "wal", text: text(&all), measured: serde_json::to_value(&all)?, void_runs: 0 })
}

/// Reading once, and doing nothing for as long as the first drain took.
async fn beside(bench: &mut Bench, all: &[Written], round: u32, shape: Shape) -> anyhow::Result<[Written; 2]> {
    let took = all.last().map_or(1.0, |drain| drain.seconds);
    bench.database.checkpoint().await?;
    let start = mark(&mut bench.database).await?;
    floors::copy(&mut bench.database.connection).await?;
    let read = since(&mut bench.database, &start).await?;
    bench.database.checkpoint().await?;
    let start = mark(&mut bench.database).await?;
    tokio::time::sleep(Duration::from_secs_f64(took).saturating_sub(COUNTED)).await;
    let idle = since(&mut bench.database, &start).await?;
    let events = shape.events;
    Ok([("copy to stdout", read), ("nothing", idle)].map(|(what, written)| Written {
        round,
        what: what.to_owned(),
        events,
        ..written
    }))
}

async fn theirs(bench: &mut Bench, at: usize, shape: Shape) -> anyhow::Result<Written> {
    let (target, warm_up) = bench.readied(at).await?;
    let topic = bench.topics.create().await?;
    let kind = bench.relay(at)?.aggregate_type(&topic).to_owned();
    shape.load(&mut bench.database, &target, &kind).await?;
    let expected = shape.expected(&mut bench.database, &target, 1).await?;
    bench.database.checkpoint().await?;
    let mark = mark(&mut bench.database).await?;
    let run = bench.measured(at, &topic, &expected, Move::Resume).await?;
    let written = since(&mut bench.database, &mark).await?;
    bench.topics.delete(&warm_up).await?;
    Ok(Written { what: run.what, events: shape.events, ..written })
}

async fn counted(database: &mut Database) -> anyhow::Result<(i64, i64, i64)> {
    tokio::time::sleep(COUNTED).await;
    database.execute("select").await?; // at its end our own backend tells what it has counted
    Ok(sqlx::query_as(MARK).fetch_one(&mut database.connection).await?)
}

async fn mark(database: &mut Database) -> anyhow::Result<Mark> {
    let (wal_bytes, updates, dead) = counted(database).await?;
    Ok(Mark { at: Instant::now(), wal_bytes, updates, dead })
}

async fn since(database: &mut Database, mark: &Mark) -> anyhow::Result<Written> {
    let (wal_bytes, updates, dead) = counted(database).await?;
    Ok(Written {
        round: 0,
        what: String::new(),
        events: 0,
        seconds: mark.at.elapsed().as_secs_f64(),
        wal_bytes: wal_bytes - mark.wal_bytes,
        updates: updates - mark.updates,
        dead: dead - mark.dead,
    })
}

fn note(all: &mut Vec<Written>, written: Written) -> anyhow::Result<()> {
    let Written { round, what, wal_bytes, updates, dead, .. } = &written;
    say(&format!("round {round}: {what} {wal_bytes} bytes of log, {updates} updates, {dead} dead rows"))?;
    all.push(written);
    Ok(())
}

fn text(all: &[Written]) -> String {
    let mut table =
        table(&["wal", "s", "bytes of log", "bytes an event", "updates", "dead rows", "dead rows per 1,000 events"]);
    let mut names: Vec<&str> = Vec::new();
    for written in all {
        if !names.contains(&written.what.as_str()) {
            names.push(&written.what);
        }
    }
    for name in names {
        let show = |number: fn(&Written) -> f64, digits: usize| {
            let numbers = all.iter().filter(|written| written.what == name).map(number).collect();
            Spread::of(numbers).map_or_else(String::new, |spread| spread.print(&|number| format!("{number:.digits$}")))
        };
        table.add_row([
            name.to_owned(),
            show(|written| written.seconds, 1),
            show(|written| float(written.wal_bytes), 0),
            show(|written| float(written.wal_bytes) / f64::from(written.events), 3),
            show(|written| float(written.updates), 0),
            show(|written| float(written.dead), 0),
            show(|written| 1_000.0 * float(written.dead) / f64::from(written.events), 3),
        ]);
    }
    format!(
        "{table}\n\nFrom before its start to after its end, with what the server writes by itself; that is `nothing`."
    )
}

/// Exact enough below 2^53.
#[expect(clippy::cast_precision_loss, reason = "8 PiB of log are not written here")]
fn float(number: i64) -> f64 {
    number as f64
}
