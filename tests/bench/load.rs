//! Writers: connections that commit events, either at times that were fixed beforehand or as fast as they can.
//!
//! At fixed times the loop is open: no event waits for an earlier one, unless all connections are busy, and how late each
//! was is recorded. Each connection has a thread of its own, for a timer of the kernel is finer than one of a runtime.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, SqlSafeStr as _, Statement as _};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::events::{Ids, PAYLOADS, Pattern};
use super::relay::{Target, Values};
use super::schedule::Schedule;

/// From the call to the first event, so that all threads stand ready.
const RUN_UP: Duration = Duration::from_millis(100);

/// When events are written.
#[derive(Clone, Debug)]
pub(crate) enum Pace {
    /// Each transaction begins at its time.
    At(Schedule),
    /// Each connection begins the next transaction when the last one is committed, for so long.
    Flat(Duration),
}

/// What is to be written, and where.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// Of a role that may write.
    pub(crate) url: String,
    pub(crate) target: Target,
    pub(crate) aggregate_type: String,
    pub(crate) pattern: Pattern,
    pub(crate) ids: Ids,
    pub(crate) pace: Pace,
    pub(crate) connections: u32,
    pub(crate) rows_per_transaction: u32,
}

/// One transaction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Committed {
    /// Its number; its events have the numbers from this times the rows on.
    pub(crate) number: usize,
    /// When it was to begin, or did if nothing said when.
    pub(crate) due: Duration,
    /// How much later it began.
    pub(crate) late: Duration,
    /// From its beginning until the connection knew that it was committed.
    pub(crate) took: Duration,
    pub(crate) xid: i64,
}

/// All that was written, by number.
#[derive(Debug)]
pub(crate) struct Written {
    /// The wall clock at the beginning.
    pub(crate) began_micros: i64,
    pub(crate) transactions: Vec<Committed>,
}

/// Writers that stand ready. Dropped, they end.
pub(crate) struct Load {
    go: SyncSender<()>,
    done: oneshot::Receiver<anyhow::Result<Written>>,
    stop: Arc<AtomicBool>,
}

impl Load {
    /// Opens the connections and prepares their statements.
    pub(crate) async fn connect(order: Order) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (go, began) = sync_channel(1);
        let (ready, connected) = oneshot::channel();
        let (tell, mut done) = oneshot::channel();
        let stopped = Arc::clone(&stop);
        thread::Builder::new().name("load".to_owned()).spawn(move || {
            // Nobody listens any more if the run was given up.
            drop(tell.send(order.run(ready, &began, &stopped)));
        })?;
        if connected.await.is_err() {
            return Err((&mut done).await?.err().unwrap_or_else(|| anyhow!("the writers ended before they began")));
        }
        Ok(Self { go, done, stop })
    }

    /// Writes, and answers when all is committed.
    pub(crate) async fn run(mut self) -> anyhow::Result<Written> {
        self.go.send(()).context("the writers have ended")?;
        (&mut self.done).await.context("the writers have ended")?
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A connection and what drives it.
struct Writer {
    runtime: Runtime,
    connection: PgConnection,
}

/// What the writers of a run have in common.
struct Common<'o> {
    order: &'o Order,
    statement: String,
    payloads: Vec<String>,
    began: Instant,
    next: AtomicUsize,
    stop: &'o AtomicBool,
}

impl Order {
    fn run(&self, ready: oneshot::Sender<()>, began: &Receiver<()>, stop: &AtomicBool) -> anyhow::Result<Written> {
        let (statement, payloads) = (self.statement(), self.pattern.payloads());
        let writers: Vec<Writer> =
            (0..self.connections).map(|_| Writer::connect(&self.url, &statement)).collect::<Result<_, _>>()?;
        ready.send(()).map_err(|()| anyhow!("given up"))?;
        began.recv()?;
        let (began, began_micros) = (Instant::now() + RUN_UP, wall_micros() + micros(RUN_UP));
        let next = AtomicUsize::new(0);
        let common = Common { order: self, statement, payloads, began, next, stop };
        let mut transactions = thread::scope(|scope| {
            let threads: Vec<_> = writers
                .into_iter()
                .map(|writer| {
                    scope.spawn(|| writer.write(&common).inspect_err(|_| stop.store(true, Ordering::Relaxed)))
                })
                .collect();
            let ended = threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a writer died"))?);
            ended.collect::<anyhow::Result<Vec<_>>>()
        })?
        .concat();
        transactions.sort_unstable_by_key(|committed| committed.number);
        Ok(Written { began_micros, transactions })
    }

    /// One statement, which commits by itself and answers with the id of its transaction.
    fn statement(&self) -> String {
        let aggregate_type = format!("'{}'", self.aggregate_type.replace('\'', "''"));
        let insert = self.target.insert(&Values {
            event_id: "r.id",
            aggregate_type: &aggregate_type,
            aggregate_id: "r.key",
            event_type: "'OrderPlaced'",
            payload: "r.payload::jsonb",
        });
        let row = |row| format!("(${}::uuid, ${}::text, ${}::text)", 3 * row + 1, 3 * row + 2, 3 * row + 3);
        let rows: Vec<String> = (0..self.rows_per_transaction).map(row).collect();
        let rows = rows.join(", ");
        format!("{insert} from (values {rows}) as r (id, key, payload) returning pg_current_xact_id()::text::int8")
    }
}

impl Common<'_> {
    /// When the transaction begins; `None` if there is none any more.
    fn turn(&self, number: usize) -> Option<Duration> {
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        match &self.order.pace {
            Pace::At(schedule) => schedule.due().get(number).copied(),
            Pace::Flat(lasting) => Some(self.began.elapsed()).filter(|now| now < lasting),
        }
    }
}

impl Writer {
    fn connect(url: &str, statement: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let connection = runtime.block_on(async {
            let mut connection = PgConnection::connect(url).await?;
            connection.prepare(AssertSqlSafe(statement).into_sql_str()).await?;
            Ok::<_, sqlx::Error>(connection)
        });
        Ok(Self { runtime, connection: connection.context("a writer cannot connect")? })
    }

    fn write(mut self, common: &Common<'_>) -> anyhow::Result<Vec<Committed>> {
        let sql = AssertSqlSafe(common.statement.as_str()).into_sql_str();
        let statement = self.runtime.block_on(self.connection.prepare(sql))?;
        let mut transactions = Vec::new();
        sleep_until(common.began);
        loop {
            let number = common.next.fetch_add(1, Ordering::Relaxed);
            let Some(due) = common.turn(number) else { return Ok(transactions) };
            sleep_until(common.began + due);
            let at = Instant::now();
            let mut query = statement.query_scalar::<i64>();
            for row in 0..common.order.rows_per_transaction {
                let number = u32::try_from(number)? * common.order.rows_per_transaction + row;
                let payload = common.payloads.get(usize::try_from(number % PAYLOADS)?).map(String::as_str);
                query = query.bind(common.order.ids.id(number)).bind(common.order.pattern.key(number)).bind(payload);
            }
            let xid =
                self.runtime.block_on(query.fetch_one(&mut self.connection)).context("an event was not written")?;
            let late = at.saturating_duration_since(common.began + due);
            transactions.push(Committed { number, due, late, took: at.elapsed(), xid });
        }
    }
}

/// The wall clock, in microseconds since 1970: the clock that Postgres takes its commit times from.
pub(crate) fn wall_micros() -> i64 {
    micros(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

/// Microseconds, to be compared with a wall clock.
pub(crate) fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// Sleeps as exactly as the kernel does: within a tenth of a millisecond on an idle machine.
pub(crate) fn sleep_until(at: Instant) {
    let left = at.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        thread::sleep(left);
    }
}
