//! One writer, and what it does in a transaction of each kind.

use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use sqlx::PgConnection;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{HOLD, Kind, LOCKED, NUMBERED, Prepared, Shared, Tally, committed, reconnect, second_phase, send};
use crate::support::postgres::connect;

/// Streams in `app.streams`; few, so that writers meet.
const STREAMS: usize = 50;

/// Streams that `outbox.emit` numbers.
const NUMBERED_STREAMS: usize = 8;

/// Events of a big transaction: [`BIG_STREAMS`] times as many as one statement inserts.
const BIG: i64 = 2000;
const BIG_STREAMS: usize = 4;

/// How many events a transaction committed: none if it was undone, or if another connection ends it.
type Written = Result<usize, sqlx::Error>;

/// A connection that writes, and the chance that it follows.
pub(super) struct Writer {
    number: u32,
    serial: u64,
    random: StdRng,
    connection: PgConnection,
    shared: Shared,
    prepared: mpsc::Sender<Prepared>,
    choice: Vec<(Kind, u32)>,
    tally: Tally,
}

impl Writer {
    pub(super) async fn new(
        number: u32,
        random: StdRng,
        shared: Shared,
        prepared: mpsc::Sender<Prepared>,
        without: &[Kind],
    ) -> Self {
        let connection = connect(&shared.url).await;
        let choice = Kind::CHOICE.into_iter().filter(|(kind, _)| !without.contains(kind)).collect();
        Self { number, serial: 0, random, connection, shared, prepared, choice, tally: Tally::default() }
    }

    /// One of each kind first, in an order of its own, then as chance wants it.
    pub(super) async fn run(mut self, events_per_second: f64) -> Tally {
        let mut first: Vec<Kind> = self.choice.iter().map(|(kind, _)| *kind).collect();
        first.shuffle(&mut self.random);
        if self.number > 0 {
            first.retain(|kind| *kind != Kind::Big); // one writer does it for all
        }
        let mut due = Instant::now();
        while !self.shared.stop.is_cancelled() {
            let kind = first.pop().unwrap_or_else(|| self.choice.choose_weighted(&mut self.random, |c| c.1).unwrap().0);
            match self.transact(kind).await {
                Ok(events) => {
                    self.tally.add(committed(&self.shared, kind, events));
                    let cost =
                        Duration::from_secs_f64(f64::from(u32::try_from(events.max(1)).unwrap()) / events_per_second);
                    // who was held up does not catch up: that would be a burst of another shape
                    due = due.max(Instant::now().checked_sub(Duration::from_secs(1)).unwrap_or(due)) + cost;
                    tokio::select! { () = sleep_until(due) => {} () = self.shared.stop.cancelled() => {} }
                }
                Err(error) => {
                    self.tally.interruptions += 1;
                    self.connection = reconnect(&self.shared, &error).await;
                }
            }
        }
        self.tally
    }

    async fn transact(&mut self, kind: Kind) -> Written {
        self.send("begin").await?;
        let events = match kind {
            Kind::Plain => self.write_some(1).await?,
            Kind::MultiRow => {
                let each = self.random.random_range(2..=6);
                self.write_some(each).await?
            }
            Kind::Rollback => {
                self.write_some(2).await?;
                return self.undo().await;
            }
            Kind::Savepoints => self.write_around_savepoints().await?,
            Kind::Exception => self.write_around_an_exception().await?,
            Kind::EarlyXid => {
                self.send("select pg_current_xact_id()").await?;
                self.let_others_commit().await;
                self.write_some(1).await?
            }
            Kind::Prepared => return self.prepare().await,
            Kind::Unflushed => {
                self.send("set local synchronous_commit = off").await?;
                self.write_some(1).await?
            }
            Kind::Slow => {
                let events = self.write_some(1).await?;
                self.hold(HOLD).await;
                events
            }
            Kind::Emit => {
                let events = self.emit_some().await?;
                if self.random.random_ratio(1, 5) {
                    return self.undo().await;
                }
                events
            }
            Kind::Big => self.write_big().await?,
            Kind::Long => unreachable!("not among the choices"),
        };
        self.send("commit").await?;
        Ok(events)
    }

    async fn undo(&mut self) -> Written {
        self.send("rollback").await?;
        Ok(0)
    }

    async fn write_some(&mut self, each: i64) -> Written {
        let count = self.random.random_range(1..=3);
        let mut events = 0;
        for stream in self.streams(count) {
            events += self.write(stream, each).await?;
        }
        Ok(events)
    }

    /// Takes the stream's lock, then inserts its next events: this order is the writer's part of the promise.
    async fn write(&mut self, stream: usize, events: i64) -> Written {
        let version: i64 =
            sqlx::query_scalar(LOCK).bind(name_of(stream)).bind(events).fetch_one(&mut self.connection).await?;
        for nr in version - events + 1..=version {
            let payload = serde_json::json!({
                "nr": nr,
                "writer": self.number,
                "amount": f64::from(self.random.random_range(-100_000..100_000)) / 100.0,
                "note": "\"Zürich\" 🚂\n".repeat(self.random.random_range(0..20)),
            });
            let (aggregate_type, aggregate_id) = aggregate_of(stream);
            let insert = sqlx::query(INSERT).bind(aggregate_type).bind(aggregate_id).bind(payload.to_string());
            insert.execute(&mut self.connection).await?;
        }
        Ok(usize::try_from(events).unwrap())
    }

    /// Locks of later streams only: after a savepoint, too, no two writers may wait for each other.
    async fn write_around_savepoints(&mut self) -> Written {
        let [first, undone, kept] = self.three_streams();
        let mut events = self.write(first, 1).await?;
        self.send("savepoint undone").await?;
        self.write(undone, 2).await?;
        self.send("rollback to undone").await?;
        self.send("savepoint kept").await?;
        events += self.write(kept, 1).await?;
        self.send("release kept").await?;
        Ok(events)
    }

    async fn write_around_an_exception(&mut self) -> Written {
        let streams = self.three_streams();
        let [first, undone, kept] = streams.map(|stream| {
            let (aggregate_type, aggregate_id) = aggregate_of(stream);
            format!(
                "update app.streams set version = version + 1 where stream = '{}' returning version into nr;
                 insert into outbox.events (aggregate_type, aggregate_id, event_type, payload) values
                   ('{aggregate_type}', '{aggregate_id}', 'Changed', jsonb_build_object('nr', nr, 'writer', {}));",
                name_of(stream),
                self.number
            )
        });
        let block = format!(
            "do $$ declare nr bigint; begin
               {first}
               begin {undone} raise exception 'thought better of it'; exception when raise_exception then null; end;
               begin {kept} exception when raise_exception then null; end;
             end $$"
        );
        self.send(&block).await?;
        Ok(2)
    }

    async fn emit_some(&mut self) -> Written {
        let mut streams: Vec<usize> = (0..NUMBERED_STREAMS).collect();
        streams.shuffle(&mut self.random);
        streams.truncate(self.random.random_range(1..=3));
        streams.sort_unstable();
        for stream in &streams {
            let payload = match self.random.random_range(0..10) {
                0 => "null::jsonb".to_owned(), // a tombstone
                1 => format!("null::jsonb, payload_bytes => '\\x00ff{:02x}'::bytea", self.number & 0xff),
                _ => format!("'{{\"writer\": {}}}'::jsonb", self.number),
            };
            self.send(&format!("select outbox.emit('{NUMBERED}', '{stream}', 'Booked', {payload})")).await?;
        }
        Ok(streams.len())
    }

    async fn write_big(&mut self) -> Written {
        let each = BIG / i64::try_from(BIG_STREAMS).unwrap();
        for stream in self.streams(BIG_STREAMS) {
            let version: i64 =
                sqlx::query_scalar(LOCK).bind(name_of(stream)).bind(each).fetch_one(&mut self.connection).await?;
            let (aggregate_type, aggregate_id) = aggregate_of(stream);
            let insert =
                sqlx::query(INSERT_MANY).bind(aggregate_type).bind(aggregate_id).bind(version - each).bind(version);
            insert.execute(&mut self.connection).await?;
        }
        Ok(usize::try_from(BIG).unwrap())
    }

    /// The first phase. The second comes from here after a while, or from another connection; from there in any case
    /// when the answer was lost, because what is prepared outlives its connection.
    async fn prepare(&mut self) -> Written {
        let events = self.write_some(1).await?;
        self.serial += 1;
        let name = format!("{}-{}-{}", self.shared.database, self.number, self.serial);
        let (end, events) = if self.random.random_ratio(4, 5) { ("commit", events) } else { ("rollback", 0) };
        let held = HOLD.mul_f64(self.random.random::<f64>() / 4.0);
        let by_itself: bool = self.random.random();

        let mut outcome = self.send(&format!("prepare transaction '{name}'")).await;
        let not_before = Instant::now() + held;
        if outcome.is_ok() && by_itself {
            sleep_until(not_before).await;
            outcome = self.send(&second_phase(end, &name)).await;
            if outcome.is_ok() {
                return Ok(events);
            }
        }
        let prepared = Prepared { name, end, events, not_before };
        self.prepared.send(prepared).await.expect("somebody ends what is prepared");
        outcome.map(|()| 0) // counted by who ends it
    }

    /// Until a few transactions of others are through. Holds no lock; when all writers wait here, time ends it.
    async fn let_others_commit(&mut self) {
        let mut commits = self.shared.commits.subscribe();
        let enough = *commits.borrow() + self.random.random_range(3..10);
        tokio::select! {
            _ = timeout(HOLD, commits.wait_for(|commits| *commits >= enough)) => {}
            () = self.shared.stop.cancelled() => {}
        }
    }

    async fn hold(&mut self, at_most: Duration) {
        let part = self.random.random::<f64>();
        sleep(at_most.mul_f64(part * part).max(Duration::from_millis(1))).await;
    }

    /// Different streams in the order in which all lock them; the first of them far more often than the last.
    fn streams(&mut self, count: usize) -> Vec<usize> {
        let mut chosen = Vec::new();
        while chosen.len() < count {
            let stream = self.random.random_range(0..STREAMS) * self.random.random_range(0..STREAMS) / STREAMS;
            if !chosen.contains(&stream) {
                chosen.push(stream);
            }
        }
        chosen.sort_unstable();
        chosen
    }

    fn three_streams(&mut self) -> [usize; 3] {
        self.streams(3).try_into().expect("three")
    }

    async fn send(&mut self, statement: &str) -> Result<(), sqlx::Error> {
        send(&mut self.connection, statement).await
    }
}

pub(super) fn name_of(stream: usize) -> String {
    let (aggregate_type, aggregate_id) = aggregate_of(stream);
    format!("{aggregate_type}/{aggregate_id}")
}

pub(super) fn aggregate_of(stream: usize) -> (&'static str, String) {
    (LOCKED[stream % LOCKED.len()], stream.to_string())
}

pub(super) const LOCK: &str = "update app.streams set version = version + $2 where stream = $1 returning version";

pub(super) const INSERT: &str = "
insert into outbox.events (aggregate_type, aggregate_id, event_type, payload, headers)
values ($1, $2, 'Changed', $3::text::jsonb, '{\"traceparent\": \"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\"}')";

const INSERT_MANY: &str = "
insert into outbox.events (aggregate_type, aggregate_id, event_type, payload)
select $1, $2, 'Imported', jsonb_build_object('nr', nr)
  from generate_series($3 + 1, $4) nr
 order by nr";
