//! A storm of writers: all the ways in which an application commits events, and some in which it does not.
//!
//! Each stream has a row in `app.streams`. A writer locks it by raising its version, then inserts the event with that
//! version as `nr`. So per stream `nr` rises in the order of the commits, without gaps: what is rolled back takes its
//! number along. Streams of [`NUMBERED`] are written by `outbox.emit` only; their place is `sequence`.
//!
//! The sleeps in here are the workload: open transactions that take long, and a pace. Nothing waits for them.

mod bystander;
mod transaction;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Executor as _, PgConnection};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::eventually::{INTERVAL, PATIENCE};
use super::postgres::{Database, Role, say};
use transaction::Writer;

/// Aggregate types of the streams in `app.streams`.
pub(crate) const LOCKED: [&str; 2] = ["order", "customer"];

/// Aggregate type of the streams that `outbox.emit` numbers.
pub(crate) const NUMBERED: &str = "account";

/// The longest a transaction is held open, apart from the two that are held for most of the run.
const HOLD: Duration = Duration::from_millis(300);

/// How many prepared transactions may wait for their end; each holds the locks of its streams.
const PREPARED_WAITING: usize = 4;

/// What a storm is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) writers: u32,
    /// A target for all writers together. Locks and holds may keep them below it.
    pub(crate) events_per_second: u32,
    /// How long it is meant to last: the long transaction is open for three quarters of it.
    pub(crate) lasts: Duration,
    /// What writers do not do.
    pub(crate) without: &'static [Kind],
}

impl Plan {
    /// Enough to meet every kind of transaction in a few seconds, in a debug build on two cores.
    pub(crate) fn new(seed: u64, lasts: Duration) -> Self {
        Self { seed, writers: 10, events_per_second: 1500, lasts, without: &[] }
    }
}

/// A kind of transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// One to three events.
    Plain,
    /// Several events per stream, each by a statement of its own.
    MultiRow,
    /// Rolled back.
    Rollback,
    /// One savepoint rolled back, one released.
    Savepoints,
    /// A PL/pgSQL block that catches its own exception.
    Exception,
    /// Takes its transaction id, lets others commit, then writes.
    EarlyXid,
    /// Ended in two phases, by itself or by another connection.
    Prepared,
    /// `synchronous_commit = off`: visible before it is on disk.
    Unflushed,
    /// Held open after the insert: its ids are older than its commit.
    Slow,
    /// `outbox.emit`: JSON, bytes and tombstones.
    Emit,
    /// [`BIG`] events in one transaction.
    Big,
    /// Open for most of the run, with an early and a late event.
    Long,
}

impl Kind {
    /// What writers choose from, and how often.
    const CHOICE: [(Self, u32); 11] = [
        (Self::Plain, 300),
        (Self::MultiRow, 100),
        (Self::Rollback, 80),
        (Self::Savepoints, 100),
        (Self::Exception, 70),
        (Self::EarlyXid, 80),
        (Self::Prepared, 60),
        (Self::Unflushed, 100),
        (Self::Slow, 60),
        (Self::Emit, 120),
        (Self::Big, 2),
    ];
}

/// What the writers committed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) events: usize,
    pub(crate) transactions: BTreeMap<Kind, usize>,
    /// Lost connections: the outcome of those transactions is known to the table only.
    pub(crate) interruptions: usize,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.events += other.events;
        self.interruptions += other.interruptions;
        for (kind, count) in other.transactions {
            *self.transactions.entry(kind).or_default() += count;
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} events, {} interruptions, transactions:", self.events, self.interruptions)?;
        self.transactions.iter().try_for_each(|(kind, count)| write!(f, " {kind:?} {count}"))
    }
}

/// Writers at work. Dropped, they stop in the middle; [`Storm::stop`] ends them well.
pub(crate) struct Storm {
    shared: Shared,
    tasks: JoinSet<Tally>,
}

/// What all writers know.
#[derive(Clone)]
struct Shared {
    database: String,
    url: String,
    stop: CancellationToken,
    commits: watch::Sender<u64>,
}

/// A transaction in its first phase, given to another connection to end.
struct Prepared {
    name: String,
    /// `commit` or `rollback`.
    end: &'static str,
    /// What it commits.
    events: usize,
    not_before: Instant,
}

impl Storm {
    /// Makes the application's own schema and lets the writers loose. Once per database.
    pub(crate) async fn start(database: &Database, plan: Plan) -> Self {
        let mut owner = database.connect(Role::Owner).await;
        let app = format!("{}_app", database.name());
        say(&mut owner, APPLICATION).await;
        say(&mut owner, &format!("grant usage on schema app to {app}; grant select, update on app.streams to {app}"))
            .await;
        let allowed: String = sqlx::query_scalar("show max_prepared_transactions").fetch_one(&mut owner).await.unwrap();
        assert!(
            allowed.parse::<usize>().unwrap() > PREPARED_WAITING + plan.writers as usize,
            "max_prepared_transactions is {allowed}: the storm prepares transactions\nhint: start the server with 64"
        );

        let shared = Shared {
            database: database.name().to_owned(),
            url: database.url(Role::App),
            stop: CancellationToken::new(),
            commits: watch::Sender::new(0),
        };
        let mut tasks = JoinSet::new();
        let (prepared, ends) = mpsc::channel(PREPARED_WAITING);
        tasks.spawn(bystander::end_prepared(shared.clone(), ends));
        tasks.spawn(bystander::long_transaction(shared.clone(), plan.lasts * 3 / 4));
        tasks.spawn(bystander::long_transaction_elsewhere(shared.clone(), database.url_elsewhere(Role::App)));
        for number in 0..plan.writers {
            let random = StdRng::seed_from_u64(plan.seed.wrapping_add(u64::from(number)));
            let writer = Writer::new(number, random, shared.clone(), prepared.clone(), plan.without).await;
            tasks.spawn(writer.run(f64::from(plan.events_per_second) / f64::from(plan.writers)));
        }
        Self { shared, tasks }
    }

    /// How many transactions with events have been committed.
    pub(crate) fn commits(&self) -> u64 {
        *self.shared.commits.borrow()
    }

    /// Waits until so many transactions with events have been committed.
    pub(crate) async fn has_committed(&self, transactions: u64) {
        let mut commits = self.shared.commits.subscribe();
        let came = timeout(PATIENCE, commits.wait_for(|commits| *commits >= transactions)).await.is_ok();
        assert!(came, "{} of {transactions} transactions within {PATIENCE:?}", *commits.borrow());
    }

    /// Ends every transaction, the prepared ones, too, and says what was committed. Panics when a writer did.
    pub(crate) async fn stop(mut self) -> Tally {
        self.shared.stop.cancel();
        let mut sum = Tally::default();
        while let Some(tally) = timeout(PATIENCE, self.tasks.join_next()).await.expect("the writers end") {
            sum.add(tally.expect("a writer failed"));
        }
        sum
    }
}

fn second_phase(end: &str, name: &str) -> String {
    format!("{end} prepared '{name}'")
}

fn committed(shared: &Shared, kind: Kind, events: usize) -> Tally {
    if events > 0 {
        shared.commits.send_modify(|commits| *commits += 1);
    }
    Tally { events, transactions: [(kind, 1)].into(), interruptions: 0 }
}

async fn send(connection: &mut PgConnection, statement: &str) -> Result<(), sqlx::Error> {
    connection.execute(sqlx::AssertSqlSafe(statement.to_owned())).await?;
    Ok(())
}

/// A new connection after a lost one. Every other error is a fault of the storm itself.
async fn reconnect(shared: &Shared, error: &sqlx::Error) -> PgConnection {
    assert!(is_interruption(error), "a writer failed: {error}");
    let options: PgConnectOptions = shared.url.parse().expect("a URL of Postgres");
    // by hand: the future of `eventually` over an async closure is not known to be `Send` in a spawned task
    let deadline = Instant::now() + PATIENCE;
    loop {
        match options.connect().await {
            Ok(connection) => return connection,
            Err(error) => assert!(Instant::now() < deadline, "Postgres takes no writers within {PATIENCE:?}: {error}"),
        }
        sleep(INTERVAL).await;
    }
}

/// Is it the connection or the server, and not the statement?
fn is_interruption(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(error) => {
            error.code().is_some_and(|code| ["57P", "08", "53"].iter().any(|class| code.starts_with(class)))
        }
        _ => false,
    }
}

const APPLICATION: &str = "
create schema app;
create table app.streams (stream text primary key, version bigint not null) with (fillfactor = 50);
insert into app.streams
select (array['order', 'customer'])[1 + n % 2] || '/' || n, 0 from generate_series(0, 49) n";

#[tokio::test]
async fn a_storm_numbers_each_stream_without_gaps_and_knows_what_it_committed() {
    let database = Database::migrated("a_storm_numbers_each_stream_without_gaps").await;
    let storm = Storm::start(&database, Plan::new(super::seed(), Duration::from_secs(2))).await;
    storm.has_committed(500).await;
    let tally = storm.stop().await;

    let rows = database.committed().await;
    assert_eq!(rows.len(), tally.events, "{tally}");
    let mut kinds: Vec<Kind> = Kind::CHOICE.iter().map(|(kind, _)| *kind).collect();
    kinds.push(Kind::Long);
    assert!(kinds.iter().all(|kind| tally.transactions.contains_key(kind)), "{tally}");
    let mut streams: BTreeMap<_, Vec<i64>> = BTreeMap::new();
    for row in rows {
        streams.entry((row.aggregate_type, row.aggregate_id)).or_default().push(row.nr);
    }
    for (stream, numbers) in streams {
        let gapless: Vec<i64> = (1..).take(numbers.len()).collect();
        assert_eq!(numbers, gapless, "{stream:?} in the order of the ids");
    }
}
