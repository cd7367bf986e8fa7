//! One run: a floor, or a drain by a relay. A drain counts only if the topic, read back, holds each committed event, in
//! order per stream.

use outboxd::sink::kafka::options::Haste;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::time::Instant;

use super::Arguments;
use super::backlog::{Loaded, Shape};
use super::daemon::Daemon;
use super::database::Database;
use super::floors::{self, Floors};
use super::meter::{self, Client, Meter, Servers};
use super::readback::Expected;
use super::relay::{Relay, Target, Values};
use super::report::Run;
use super::topics::{AGGREGATE_TYPE, Topics};

/// How often the topic's end offsets are asked for during a drain, which costs the broker a request: after a hundredth of a second, later
/// after a two-hundredth of the time until then. So the longer drains of slower relays are not charged for more looks than a few.
const LOOK_EVERY: Duration = Duration::from_millis(10);
const LOOK_SHARE: u32 = 200;

/// A drain that brings nothing for so long has failed.
const PATIENCE: Duration = Duration::from_mins(1);

/// Drained before each drain of another relay, and not counted: a virtual machine has to compile first, and the log holds
/// what others have written since.
const WARM_UP_EVENTS: u32 = 200_000;

/// What all measures share.
pub(crate) struct Bench {
    pub(crate) arguments: Arguments,
    pub(crate) servers: Servers,
    pub(crate) topics: Topics,
    pub(crate) database: Database,
    /// For its settings and its version; the relays have daemons of their own.
    pub(crate) daemon: Daemon,
    /// Ours with its default settings first.
    pub(crate) relays: Vec<Relay>,
}

/// Who takes part in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// Reading alone.
    Copy,
    /// Sending alone.
    Producer,
    /// Reading and sending, and nothing else.
    Pump,
    /// A relay, by its place in the list.
    Relay(usize),
    /// Our relay once more: what its two runs differ by is noise.
    Again,
}

/// Our table, loaded, and what is to be sent from it.
pub(crate) struct Backlog {
    pub(crate) shape: Shape,
    pub(crate) loaded: Loaded,
    pub(crate) expected: Expected,
    pub(crate) floors: Floors,
}

/// What else goes on while another relay's table is loaded and drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beside {
    Nothing,
    /// A transaction that has written an event and does not end.
    OpenTransaction,
}

/// How a relay is set in motion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    /// From the first event of the table.
    Begin,
    /// From where it was paused.
    Resume,
}

impl Bench {
    /// The relays, in the order of the command line.
    pub(crate) fn all_relays(&self) -> impl Iterator<Item = Contender> + use<> {
        (0..self.relays.len()).map(Contender::Relay)
    }

    /// What a contender is called in tables.
    pub(crate) fn name(&self, contender: Contender) -> String {
        let relay = |at: usize| self.relays.get(at).map_or("?", Relay::name);
        match contender {
            Contender::Copy => "copy to stdout".to_owned(),
            Contender::Producer => "bare producer".to_owned(),
            Contender::Pump => "bare pump".to_owned(),
            Contender::Relay(at) => relay(at).to_owned(),
            Contender::Again => format!("{} again", relay(0)),
        }
    }

    /// Empties our table and fills it.
    pub(crate) async fn load(&mut self, shape: Shape) -> anyhow::Result<Backlog> {
        self.database.execute(&format!("truncate {}", Target::outboxd().table)).await?;
        self.load_behind(shape).await
    }

    /// Fills our table, which has to be empty but for what is not committed.
    pub(crate) async fn load_behind(&mut self, shape: Shape) -> anyhow::Result<Backlog> {
        let (database, target) = (&mut self.database, Target::outboxd());
        let loaded = shape.add(database, &target, AGGREGATE_TYPE, 1).await?;
        let expected = shape.expected(database, &target, 1).await?;
        let floors = Floors::new(database, self.daemon.producer_settings(Haste::Bulk)?).await?;
        Ok(Backlog { shape, loaded, expected, floors })
    }

    /// Runs one contender on the backlog. Other relays than ours have one of their own, of the same shape.
    pub(crate) async fn run(&mut self, contender: Contender, backlog: &Backlog) -> anyhow::Result<Run> {
        self.database.checkpoint().await?;
        let run = match contender {
            Contender::Copy => self.copy(backlog.shape.events).await,
            Contender::Producer => self.produce(&backlog.floors, backlog.shape.events).await,
            Contender::Pump => self.pump(&backlog.floors, backlog.shape.events).await,
            Contender::Relay(at) => self.drain(at, backlog, Beside::Nothing).await,
            Contender::Again => self.drain(0, backlog, Beside::Nothing).await,
        };
        run.map(|run| Run { what: self.name(contender), ..run })
    }

    async fn copy(&mut self, events: u32) -> anyhow::Result<Run> {
        let (meter, began) = (Meter::start(&self.servers, &Client::Floor)?, Instant::now());
        let bytes = floors::copy(&mut self.database.connection).await?;
        let seconds = began.elapsed().as_secs_f64();
        let run = Run::new(events, Some(f64::from(events) / seconds), &meter.read(&Client::Floor)?);
        Ok(Run { bytes: Some(bytes), ..run })
    }

    async fn produce(&mut self, floors: &Floors, events: u32) -> anyhow::Result<Run> {
        let topic = self.topics.create().await?;
        let meter = Meter::start(&self.servers, &Client::Floor)?;
        let seconds = floors.produce(&topic, events)?.as_secs_f64();
        let run = Run::new(events, Some(f64::from(events) / seconds), &meter.read(&Client::Floor)?);
        self.end_of_floor(&topic, events).await?;
        Ok(run)
    }

    async fn pump(&mut self, floors: &Floors, events: u32) -> anyhow::Result<Run> {
        let topic = self.topics.create().await?;
        let meter = Meter::start(&self.servers, &Client::Floor)?;
        let seconds = floors.pump(&topic, &mut self.database.connection).await?.as_secs_f64();
        let run = Run::new(events, Some(f64::from(events) / seconds), &meter.read(&Client::Floor)?);
        self.end_of_floor(&topic, events).await?;
        Ok(run)
    }

    async fn end_of_floor(&self, topic: &str, events: u32) -> anyhow::Result<()> {
        let found = self.topics.total(topic)?;
        ensure!(found == u64::from(events), "{found} of {events} records are in the topic");
        self.topics.delete(topic).await
    }

    /// Drains with a relay and forgets its place, also when the drain is void.
    pub(crate) async fn drain(&mut self, at: usize, backlog: &Backlog, beside: Beside) -> anyhow::Result<Run> {
        let drained = match self.relay(at)? {
            Relay::Outboxd(_) => self.drain_ours(at, &backlog.expected).await,
            Relay::Adapter(_) => self.drain_theirs(at, backlog.shape, beside).await,
        };
        let detached = self.relay(at)?.detach().await;
        let run = drained?;
        detached?;
        Ok(run)
    }

    async fn drain_ours(&mut self, at: usize, expected: &Expected) -> anyhow::Result<Run> {
        let topic = self.topics.create().await?;
        self.measured(at, &topic, expected, Move::Begin).await
    }

    /// The table is filled while the relay is paused, with its place at the end of an empty one.
    async fn drain_theirs(&mut self, at: usize, shape: Shape, beside: Beside) -> anyhow::Result<Run> {
        let (target, warm_up) = self.readied(at).await?;
        let topic = self.topics.create().await?;
        let kind = self.relay(at)?.aggregate_type(&topic).to_owned();
        self.database.execute(&format!("truncate {}", target.table)).await?;
        let open = match beside {
            Beside::Nothing => None,
            Beside::OpenTransaction => Some(self.open_transaction(&target, &kind).await?),
        };
        shape.add(&mut self.database, &target, &kind, 1).await?;
        let expected = shape.expected(&mut self.database, &target, 1).await?;
        self.database.checkpoint().await?;
        let run = self.measured(at, &topic, &expected, Move::Resume).await;
        if let Some(open) = open {
            open.close().await?;
        }
        self.topics.delete(&warm_up).await?;
        run
    }

    /// Attaches another relay, warms it up by a drain and pauses it. Answers where its events are written, and the topic of
    /// the warm-up, which has to stay: after a pause, some relays send their last event again.
    pub(crate) async fn readied(&mut self, at: usize) -> anyhow::Result<(Target, String)> {
        let Shape { payload_bytes, rows_per_transaction, streams, .. } = self.arguments.shape();
        let events = WARM_UP_EVENTS.min(self.arguments.events);
        let shape = Shape { events, payload_bytes, rows_per_transaction, streams };
        let topic = self.topics.create().await?;
        let relay = self.relay(at)?;
        relay.attach(&topic).await?;
        relay.pause().await?;
        let (target, kind) = (relay.target().clone(), relay.aggregate_type(&topic).to_owned());
        shape.load(&mut self.database, &target, &kind).await?;
        let began = Instant::now();
        self.relay(at)?.resume().await?;
        self.watch(at, &topic, events, began).await.context("the warm-up failed")?;
        self.relay(at)?.pause().await?;
        Ok((target, topic))
    }

    /// A transaction that has written an event into this table and stays open until the connection is closed.
    pub(crate) async fn open_transaction(&self, target: &Target, kind: &str) -> anyhow::Result<PgConnection> {
        let mut connection = PgConnection::connect(&self.database.place()?.admin).await?;
        let insert = target.insert(&Values {
            event_id: "gen_random_uuid()",
            aggregate_type: &format!("'{kind}'"),
            aggregate_id: "'order-0'",
            event_type: "'OrderPlaced'",
            payload: "'{}'::jsonb",
        });
        connection.execute("begin").await?;
        connection.execute(AssertSqlSafe(insert)).await?;
        Ok(connection)
    }

    /// Sets a relay in motion, watches the topic until all events are there, pauses it, and reads them back.
    pub(crate) async fn measured(
        &mut self,
        at: usize,
        topic: &str,
        expected: &Expected,
        how: Move,
    ) -> anyhow::Result<Run> {
        let before = self.relay(at)?.processes();
        meter::reset_peaks(&before)?;
        let (meter, began) = (Meter::start(&self.servers, &Client::Relay(before))?, Instant::now());
        match how {
            Move::Begin => self.relay(at)?.begin(topic)?,
            Move::Resume => self.relay(at)?.resume().await?,
        }
        let watched = self.watch(at, topic, expected.count(), began).await;
        let processes = self.relay(at)?.processes();
        let (memory, usage) = (meter::peak_memory_bytes(&processes)?, meter.read(&Client::Relay(processes))?);
        let watched = watched?;
        self.relay(at)?.pause().await?;
        let found = self.topics.read_back(topic, expected)?;
        found.judge()?;
        self.topics.delete(topic).await?;
        let rate = |events: u32, time: Duration| f64::from(events) / time.as_secs_f64();
        let run = Run::new(expected.count(), watched.rate(), &usage);
        Ok(Run {
            what: self.relay(at)?.name().to_owned(),
            with_start_per_second: Some(rate(expected.count(), watched.with_start)),
            first_record_seconds: Some(watched.to_first.as_secs_f64()),
            peak_memory_bytes: Some(memory),
            duplicates: Some(found.duplicates),
            ..run
        })
    }

    /// The relay at this place of the list.
    pub(crate) fn relay(&mut self, at: usize) -> anyhow::Result<&mut Relay> {
        self.relays.get_mut(at).context("there is no such relay")
    }

    async fn watch(&mut self, at: usize, topic: &str, events: u32, began: Instant) -> anyhow::Result<Watched> {
        let relay = self.relays.get_mut(at).context("there is no such relay")?;
        let mut first = None;
        let (mut moved, mut before) = (began, 0);
        loop {
            let (seen, now) = (self.topics.total(topic)?, Instant::now());
            if seen > before {
                (moved, before) = (now, seen);
                first.get_or_insert((now, seen));
            }
            let (at, at_first) = first.unwrap_or((now, seen));
            if seen >= u64::from(events) {
                let between = u32::try_from(seen.saturating_sub(at_first)).context("more records than events")?;
                return Ok(Watched { first_to_last: now - at, between, to_first: at - began, with_start: now - began });
            }
            relay.still_runs()?;
            if now - moved >= PATIENCE {
                bail!("no record for {PATIENCE:?}, {seen} of {events} came; end of the log:\n{}", relay.log_end());
            }
            tokio::time::sleep(LOOK_EVERY.max((now - began) / LOOK_SHARE)).await;
        }
    }
}

/// What the end offsets said during a drain.
struct Watched {
    /// From the first look that saw records to the first that saw all.
    first_to_last: Duration,
    /// The records that came between these two looks.
    between: u32,
    /// From the start to the first look that saw records.
    to_first: Duration,
    /// From the start of the process, or from when it was told to go on.
    with_start: Duration,
}

impl Watched {
    /// Events per second from the first to the last. None if all came between two looks.
    fn rate(&self) -> Option<f64> {
        (self.between > 0).then(|| f64::from(self.between) / self.first_to_last.as_secs_f64())
    }
}
