//! The demonstration: customers come, outboxd is killed and comes back, and in the end the table and the topics are compared.

use crate::checker::{self, Record, Row, Verdict};
use crate::daemon::{Daemon, Running};
use crate::show::{self, Show};
use crate::topics::Topics;
use crate::{TABLES, customers};
use anyhow::Context;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use sqlx::types::Uuid;
use std::convert::Infallible;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

const WRITERS: u32 = 8;
const KILLS: u32 = 5;
/// How long all may take to be published once the writers have stopped.
const PATIENCE: Duration = Duration::from_secs(30);

/// What it needs.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The shop's database, as the role of the application
    #[arg(long, value_name = "URL")]
    database: String,
    /// The same database, as a role that may read the outbox
    #[arg(long, value_name = "URL")]
    audit: String,
    /// A broker
    #[arg(long, value_name = "HOST:PORT")]
    kafka: String,
    #[command(flatten)]
    daemon: Daemon,
    /// How long the customers come
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(10..=3600))]
    seconds: u32,
    /// Chooses what the customers do and when outboxd is killed
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

/// Both sides, as an auditor sees them.
struct Audit {
    table: PgPool,
    topics: Topics,
}

/// Runs it. Ends with 1 if anything is lost or out of order.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let database = PgPoolOptions::new().max_connections(WRITERS + 1).connect(&arguments.database).await?;
    sqlx::raw_sql(TABLES).execute(&database).await.context("making the tables of the shop")?;
    let audit = Audit {
        table: PgPoolOptions::new().max_connections(1).connect(&arguments.audit).await?,
        topics: Topics::new(&arguments.kafka)?,
    };
    let show = Show::new(Duration::from_secs(arguments.seconds.into()))?;
    let outboxd = tokio::select! {
        outboxd = trade_and_kill(&arguments, &database, &audit, &show) => outboxd?,
        failed = watch(&arguments.daemon, &audit, &show) => match failed? {},
    };
    outboxd.stop().await?;
    show.event("SIGTERM to outboxd, which ends with 0");
    show.end();
    let verdict = audit.compare().await?;
    show::verdict(&verdict, KILLS as usize);
    Ok(if verdict.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Shows how it stands, until it is dropped.
async fn watch(daemon: &Daemon, audit: &Audit, show: &Show) -> anyhow::Result<Infallible> {
    loop {
        let published = audit.topics.count().await?;
        let committed = audit.committed().await?;
        show.progress(committed, published, daemon.status().await.as_ref());
        sleep(show.tick()).await;
    }
}

/// Lets the customers in, kills outboxd meanwhile, and waits until all is published.
async fn trade_and_kill(
    arguments: &Arguments,
    database: &PgPool,
    audit: &Audit,
    show: &Show,
) -> anyhow::Result<Running> {
    let mut outboxd = arguments.daemon.start().await?;
    show.event("outboxd runs, the shop opens");
    let opened = Instant::now();
    let length = Duration::from_secs(arguments.seconds.into());
    let mut rng = StdRng::seed_from_u64(arguments.seed);
    let mut writers = open(database, length, &mut rng, show).await?;
    show.event(&format!("{WRITERS} writers, and a transaction that stays open: only its own events wait for it"));
    for nr in 0..KILLS {
        let part = (f64::from(nr) + rng.random_range(0.3..0.9)) / f64::from(KILLS);
        sleep_until(opened + length.mul_f64(part)).await;
        outboxd.kill().await?;
        let killed = Instant::now();
        show.event(&format!("SIGKILL to outboxd ({} of {KILLS})", nr + 1));
        outboxd = arguments.daemon.start().await?;
        show.event(&format!("outboxd is back after {:.1} s", killed.elapsed().as_secs_f64()));
    }
    while let Some(ended) = writers.join_next().await {
        ended?.context("a writer failed")?;
    }
    show.event("the shop is closed");
    settle(&mut outboxd, &arguments.daemon, audit, show).await?;
    Ok(outboxd)
}

/// Starts the writers.
async fn open(
    database: &PgPool,
    length: Duration,
    rng: &mut StdRng,
    show: &Show,
) -> sqlx::Result<JoinSet<sqlx::Result<()>>> {
    customers::open_shop(database).await?;
    let (latest, closing) = (Arc::new(AtomicI64::new(0)), Instant::now() + length);
    let mut writers = JoinSet::new();
    let (long, show) = (customers::long_delivery(database.clone(), length.mul_f64(0.85)), show.clone());
    writers.spawn(async move {
        long.await?;
        show.event("the long transaction commits");
        Ok(())
    });
    for _ in 0..WRITERS {
        let own = StdRng::seed_from_u64(rng.random());
        writers.spawn(customers::trade(database.clone(), Arc::clone(&latest), own, closing));
    }
    Ok(writers)
}

/// Waits until outboxd says that nothing is left, and until that is true.
async fn settle(outboxd: &mut Running, daemon: &Daemon, audit: &Audit, show: &Show) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        outboxd.lives()?;
        let lane = daemon.status().await.unwrap_or_default();
        if lane["lag_events"] == 0 && audit.compare().await?.lost.count == 0 {
            show.event("outboxd says lag 0, and all that was committed is in the topics");
            return Ok(());
        }
        if Instant::now() > deadline {
            show.event(&format!("not all is published after {PATIENCE:?}; outboxd says: {lane}"));
            return Ok(()); // the verdict says the rest
        }
        sleep(Duration::from_millis(200)).await;
    }
}

impl Audit {
    async fn committed(&self) -> sqlx::Result<u64> {
        let rows: i64 = sqlx::query_scalar("select count(*) from outbox.events").fetch_one(&self.table).await?;
        Ok(rows.unsigned_abs())
    }

    /// Reads both sides back.
    async fn compare(&self) -> anyhow::Result<Verdict> {
        let rows = self.rows().await?;
        let records: Vec<Record> = self.topics.read().await?;
        Ok(checker::check(rows, &records, &[]))
    }

    /// The place of an event in its stream: its number if `outbox.emit` gave it one, else the version that the shop counted
    /// up under the lock of the order's row.
    async fn rows(&self) -> sqlx::Result<Vec<Row>> {
        type Columns = (i64, Uuid, String, String, String, String, i64);
        let rows: Vec<Columns> = sqlx::query_as(
            "select id, event_id, aggregate_type, aggregate_id, event_type, payload::text,
                    coalesce(sequence, (payload ->> 'version')::bigint)
               from outbox.events",
        )
        .fetch_all(&self.table)
        .await?;
        let row = |(id, event_id, aggregate_type, aggregate_id, event_type, payload, nr): Columns| Row {
            id,
            event_id,
            aggregate_type,
            aggregate_id,
            event_type,
            value: Some(payload.into_bytes()),
            nr,
        };
        Ok(rows.into_iter().map(row).collect())
    }
}
