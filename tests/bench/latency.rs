//! From a commit to a consumer's hands, under a load that does not wait for anybody.
//!
//! The latency of an event begins at its commit, as `pg_xact_commit_timestamp` tells it: Postgres takes that time before
//! it flushes, so the flush is in it. It ends when a consumer on the same machine, and with the same clock, has the record.
//! Beside each rate runs a bare producer at the same times: what Kafka and the client alone need.

use outboxd::sink::kafka::options::Haste;
use std::fmt;
use std::time::Duration;

use anyhow::Context as _;
use comfy_table::Table;
use rdkafka::ClientConfig;
use serde::Serialize;
use sqlx::{Connection as _, PgConnection};
use tokio::time::Instant;

use super::Arguments;
use super::arrivals::{Arrivals, Seen};
use super::cores::Cores;
use super::drain::Bench;
use super::events::{Ids, Pattern};
use super::load::{Load, Order, Pace, Written, micros};
use super::meter::{self, Client, Meter, Servers};
use super::quantiles::Quantiles;
use super::relay::{Relay, execute};
use super::report::{Finished, Spread, grouped, mebibytes, table};
use super::roundtrip::{Sending, Sent};
use super::schedule::Schedule;
use super::topics::Topics;
use super::warmth;

/// The share of its schedule's rate below which a run does not show that rate.
const ENOUGH: f64 = 0.95;

/// Of a run, what is dropped as its warm-up.
const WARM_UP_SHARE: u32 = 5;

/// A load that nobody measures, before the first run of a relay.
const WARM_UP_PER_SECOND: u32 = 2_000;

/// Its length at most.
const WARM_UP_SECONDS: u32 = 10;

/// Of each step in which a broker gets warm.
const STEP_SECONDS: u32 = 5;

/// Where a measure takes place, and with which events.
#[derive(Clone, Copy)]
pub(crate) struct Stage<'s> {
    pub(crate) servers: &'s Servers,
    pub(crate) topics: &'s Topics,
    /// URL of the superuser, to the database of the relays.
    pub(crate) admin: &'s str,
    pub(crate) pattern: Pattern,
    /// The times of events follow from it.
    pub(crate) seed: u64,
}

impl<'s> Stage<'s> {
    /// As it was asked for.
    pub(crate) fn of(arguments: &Arguments, servers: &'s Servers, topics: &'s Topics, admin: &'s str) -> Self {
        let pattern = Pattern { payload_bytes: arguments.size, streams: arguments.streams };
        Self { servers, topics, admin, pattern, seed: arguments.seed }
    }
}

/// What is measured.
#[derive(Clone, Debug, Serialize)]
struct Plan {
    /// Events a second.
    rates: Vec<u32>,
    /// Of a run; its first fifth is dropped.
    seconds: u32,
    rounds: u32,
    /// At most so many transactions are open at once.
    connections: u32,
    rows_per_transaction: u32,
}

/// One run at one rate.
#[derive(Clone, Debug, Serialize)]
struct Run {
    round: u32,
    what: String,
    asked_per_second: u32,
    achieved_per_second: f64,
    events: usize,
    /// Of the events after the warm-up.
    latency: Option<Quantiles>,
    /// From the time at which the event was to be written: with all that the load had to wait for.
    since_due: Option<Quantiles>,
    /// How much later than that its transaction began, or its record was sent.
    late: Option<Quantiles>,
    /// How long a writer waited for its commit.
    commit: Option<Quantiles>,
    cores: Cores,
    peak_memory_bytes: Option<u64>,
    duplicates: u32,
    /// Why the run does not count.
    void: Option<String>,
}

/// All runs.
#[derive(Clone, Debug, Serialize)]
struct Latency {
    seed: u64,
    plan: Plan,
    payload_bytes: u32,
    runs: Vec<Run>,
}

/// When an event's latency began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    pub(crate) number: usize,
    due: Duration,
    late: Duration,
    pub(crate) at_micros: i64,
    /// When it was to be written, by the same clock.
    due_micros: i64,
}

/// A run before it is judged.
struct Observed {
    starts: Vec<Start>,
    /// When each transaction was due, and how long its statement took.
    commits: Vec<(Duration, Duration)>,
    seen: Seen,
    cores: Cores,
    peak_memory_bytes: Option<u64>,
    complete: anyhow::Result<()>,
}

/// Measures all relays of the benchmark, and a bare producer as our daemon has it.
pub(crate) async fn measure(bench: &mut Bench) -> anyhow::Result<Finished> {
    let (admin, producer) = (bench.database.place()?.admin, bench.daemon.producer_settings(Haste::Soon)?);
    let arguments = bench.arguments.clone();
    let plan = Plan {
        rates: arguments.rate.clone(),
        seconds: arguments.seconds,
        rounds: arguments.runs,
        connections: arguments.connections,
        rows_per_transaction: arguments.rows,
    };
    let stage = Stage::of(&arguments, &bench.servers, &bench.topics, &admin);
    let latency = all(stage, plan, &mut bench.relays, &producer).await?;
    let void_runs = latency.runs.iter().filter(|run| run.void.is_some()).count();
    Ok(Finished { name: "latency", text: latency.to_string(), measured: serde_json::to_value(&latency)?, void_runs })
}

/// Sends single records until the broker is warm.
pub(crate) async fn warm_broker(bench: &Bench) -> anyhow::Result<()> {
    let (admin, producer) = (bench.database.place()?.admin, bench.daemon.producer_settings(Haste::Soon)?);
    let stage = Stage::of(&bench.arguments, &bench.servers, &bench.topics, &admin);
    let rates = vec![WARM_UP_PER_SECOND];
    let plan = Plan { rates, seconds: STEP_SECONDS, rounds: 1, connections: 1, rows_per_transaction: 1 };
    let trial = Trial::new(stage, &plan, WARM_UP_PER_SECOND, 0);
    let unit = format!("of a core for {WARM_UP_PER_SECOND} single records a second");
    warmth::warm(&unit, async || Ok(trial.floor(&producer).await?.cores.kafka)).await
}

/// All relays at all rates, in turn, with a bare producer of these settings beside them.
async fn all(stage: Stage<'_>, plan: Plan, relays: &mut [Relay], producer: &ClientConfig) -> anyhow::Result<Latency> {
    let floors = floors(producer);
    for relay in relays.iter_mut() {
        super::say(&format!("latency: warming {} up", relay.name()))?;
        let seconds = plan.seconds.min(WARM_UP_SECONDS);
        let warm = Plan { rates: vec![WARM_UP_PER_SECOND], seconds, ..plan.clone() };
        Trial::new(stage, &warm, WARM_UP_PER_SECOND, 0).relay(relay).await?;
    }
    let mut runs = Vec::new();
    for round in 1..=plan.rounds {
        for &rate in &plan.rates {
            let trial = Trial::new(stage, &plan, rate, round);
            let mut contenders: Vec<Contender<'_>> = relays.iter_mut().map(Contender::Relay).collect();
            contenders.extend(floors.iter().map(|(name, properties)| Contender::Floor(name, properties)));
            if round.is_multiple_of(2) {
                contenders.reverse(); // who comes later finds another machine
            }
            for contender in contenders {
                runs.push(trial.run(contender).await?);
            }
        }
    }
    Ok(Latency { seed: stage.seed, plan, payload_bytes: stage.pattern.payload_bytes, runs })
}

/// A producer as the daemon has it, and one that sends each record at once.
fn floors(producer: &ClientConfig) -> Vec<(String, ClientConfig)> {
    let mut at_once = producer.clone();
    at_once.set("linger.ms", "0");
    let linger = producer.get("linger.ms").unwrap_or("5");
    let mut floors = vec![(format!("bare producer, linger {linger} ms"), producer.clone())];
    if linger != "0" {
        floors.push(("bare producer, linger 0".to_owned(), at_once));
    }
    floors
}

/// Who is measured.
enum Contender<'c> {
    Relay(&'c mut Relay),
    /// A producer of these settings.
    Floor(&'c str, &'c ClientConfig),
}

/// One rate in one round: all get the same schedule.
struct Trial<'s> {
    stage: Stage<'s>,
    plan: &'s Plan,
    per_second: u32,
    round: u32,
    schedule: Schedule,
    ids: Ids,
}

impl<'s> Trial<'s> {
    fn new(stage: Stage<'s>, plan: &'s Plan, per_second: u32, round: u32) -> Self {
        let lasting = Duration::from_secs(plan.seconds.into());
        let seed = stage.seed ^ (u64::from(round) << 32 | u64::from(per_second));
        let per_transaction = f64::from(plan.rows_per_transaction.max(1));
        let schedule = Schedule::poisson(f64::from(per_second) / per_transaction, lasting, seed);
        Self { stage, plan, per_second, round, schedule, ids: Ids::fresh() }
    }

    async fn run(&self, contender: Contender<'_>) -> anyhow::Result<Run> {
        let at = |name: &str| format!("{name} at {}/s", self.per_second);
        match contender {
            Contender::Relay(relay) => {
                let observed = self.relay(relay).await.with_context(|| at(relay.name()))?;
                self.judge(relay.name(), observed)
            }
            Contender::Floor(name, properties) => {
                self.judge(name, self.floor(properties).await.with_context(|| at(name))?)
            }
        }
    }

    async fn relay(&self, relay: &mut Relay) -> anyhow::Result<Observed> {
        execute(self.stage.admin, "checkpoint").await?;
        let topic = self.stage.topics.create().await?;
        relay.attach(&topic).await?;
        let observed = self.attached(relay, &topic).await;
        let observed = observed.with_context(|| relay.log_end());
        let detached = relay.detach().await;
        let observed = observed?; // before what may have failed because of it
        detached?;
        self.stage.topics.delete(&topic).await?;
        Ok(observed)
    }

    async fn attached(&self, relay: &mut Relay, topic: &str) -> anyhow::Result<Observed> {
        let Self { stage, plan, .. } = self;
        let load = Load::connect(Order {
            url: stage.admin.to_owned(),
            target: relay.target().clone(),
            aggregate_type: relay.aggregate_type(topic).to_owned(),
            pattern: stage.pattern,
            ids: self.ids,
            pace: Pace::At(self.schedule.clone()),
            connections: plan.connections,
            rows_per_transaction: plan.rows_per_transaction,
        });
        let load = load.await?;
        let rows = usize::try_from(plan.rows_per_transaction)?;
        let events = self.schedule.due().len() * rows;
        let arrivals = Arrivals::of(&stage.servers.kafka, topic, self.ids, events)?;
        let processes = relay.processes();
        meter::reset_peaks(&processes)?;
        let client = Client::Relay(processes);
        let (meter, began) = (Meter::start(stage.servers, &client)?, Instant::now());
        let written = load.run().await?;
        let cores = Cores::of(&meter.read(&client)?, began.elapsed().as_secs_f64());
        let complete = arrivals.all(u32::try_from(events)?).await;
        relay.still_runs()?;
        let peak_memory_bytes = Some(meter::peak_memory_bytes(&relay.processes())?);
        let starts = starts(stage.admin, &written, rows).await?;
        let commits = written.transactions.iter().map(|committed| (committed.due, committed.took)).collect();
        Ok(Observed { starts, commits, seen: arrivals.end()?, cores, peak_memory_bytes, complete })
    }

    async fn floor(&self, properties: &ClientConfig) -> anyhow::Result<Observed> {
        let Self { stage, .. } = self;
        let topic = stage.topics.create().await?;
        let schedule = self.schedule.repeated(usize::try_from(self.plan.rows_per_transaction)?);
        let events = schedule.due().len();
        let arrivals = Arrivals::of(&stage.servers.kafka, &topic, self.ids, events)?;
        let (properties, pattern, ids) = (properties.clone(), stage.pattern, self.ids);
        let nobody = Client::Relay(Vec::new());
        let (meter, began) = (Meter::start(stage.servers, &nobody)?, Instant::now());
        let sent = Sending { properties, topic: topic.clone(), schedule, pattern, ids }.run().await?;
        let cores = Cores::of(&meter.read(&nobody)?, began.elapsed().as_secs_f64());
        let complete = arrivals.all(u32::try_from(events)?).await;
        let seen = arrivals.end()?;
        stage.topics.delete(&topic).await?;
        let starts = sent.iter().enumerate();
        let starts = starts.map(|(number, &Sent { at_micros, due, due_micros, late })| Start {
            number,
            due,
            late,
            at_micros,
            due_micros,
        });
        let (starts, commits) = (starts.collect(), Vec::new());
        Ok(Observed { starts, commits, seen, cores, peak_memory_bytes: None, complete })
    }

    fn judge(&self, what: &str, observed: Observed) -> anyhow::Result<Run> {
        let Observed { starts, commits, seen, cores, peak_memory_bytes, complete } = observed;
        let from = Duration::from_secs(self.plan.seconds.into()) / WARM_UP_SHARE;
        let measured: Vec<&Start> = starts.iter().filter(|start| start.due >= from).collect();
        let since = |begin: fn(&Start) -> i64| {
            let times = measured.iter().map(|start| Some(seen.at_micros(start.number)? - begin(start)));
            times.collect::<Option<Vec<i64>>>()
        };
        let latency = since(|start| start.at_micros);
        let backwards = latency.iter().flatten().any(|&micros| micros < 0);
        let achieved_per_second = rate(&measured, |start| start.at_micros);
        let reached = achieved_per_second >= ENOUGH * rate(&measured, |start| start.due_micros);
        let void = match complete {
            Err(error) => Some(format!("{error:#}")),
            Ok(()) if seen.unknown > 0 => Some(format!("{} records are no events of this run", seen.unknown)),
            Ok(()) if backwards => Some("the clock of the machine was set".to_owned()),
            Ok(()) => (!reached).then(|| "the load did not reach this rate".to_owned()),
        };
        let run = Run {
            round: self.round,
            what: what.to_owned(),
            asked_per_second: self.per_second,
            achieved_per_second,
            events: starts.len(),
            latency: latency.and_then(Quantiles::of),
            since_due: since(|start| start.due_micros).and_then(Quantiles::of),
            late: Quantiles::of(measured.iter().map(|start| micros(start.late)).collect()),
            commit: Quantiles::of(
                commits.iter().filter(|(due, _)| *due >= from).map(|(_, took)| micros(*took)).collect(),
            ),
            cores,
            peak_memory_bytes,
            duplicates: seen.duplicates,
            void,
        };
        super::say(&run.to_string())?;
        Ok(run)
    }
}

/// Asks Postgres when the transactions were committed.
pub(crate) async fn starts(url: &str, written: &Written, rows: usize) -> anyhow::Result<Vec<Start>> {
    let xids: Vec<i64> = written.transactions.iter().map(|committed| committed.xid).collect();
    let mut connection = PgConnection::connect(url).await?;
    let times: Vec<i64> = sqlx::query_scalar(COMMIT_TIMES)
        .bind(xids)
        .fetch_all(&mut connection)
        .await
        .context("Postgres does not tell when a transaction was committed")?;
    connection.close().await?;
    let each = written.transactions.iter().zip(times).flat_map(|(committed, at_micros)| {
        let (first, due, late) = (committed.number * rows, committed.due, committed.late);
        let due_micros = written.began_micros + micros(due);
        (first..first + rows).map(move |number| Start { number, due, late, at_micros, due_micros })
    });
    Ok(each.collect())
}

const COMMIT_TIMES: &str = "
    select (extract(epoch from pg_xact_commit_timestamp(t.xid::text::xid8::xid)) * 1000000)::int8
      from unnest($1::int8[]) with ordinality as t (xid, place)
     order by t.place";

/// From the first of these times to the last. A schedule has a rate of its own, which is that of its process on average.
#[expect(clippy::cast_precision_loss, reason = "exact below 2^53 microseconds")]
fn rate(starts: &[&Start], at: fn(&Start) -> i64) -> f64 {
    let times = starts.iter().map(|start| at(start));
    match (times.clone().min(), times.max()) {
        (Some(first), Some(last)) if last > first => (starts.len() - 1) as f64 / ((last - first) as f64 / 1e6),
        _ => 0.0,
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { round, what, asked_per_second, achieved_per_second, .. } = self;
        write!(f, "latency, round {round}: {what} at {asked_per_second}/s ({achieved_per_second:.0}/s)")?;
        if let Some(Quantiles { p50_ms, p99_ms, max_ms, .. }) = self.latency {
            write!(f, ": p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms, max {max_ms:.1} ms")?;
        }
        match &self.void {
            Some(reason) => write!(f, "; void: {reason}"),
            None => Ok(()),
        }
    }
}

impl Latency {
    /// By rate, and then by what was measured, in the order of a round.
    fn groups(&self) -> Vec<Group<'_>> {
        let mut groups: Vec<Group<'_>> = Vec::new();
        for run in &self.runs {
            let same = |group: &&mut Group<'_>| (group.rate, group.what) == (run.asked_per_second, run.what.as_str());
            match groups.iter_mut().find(same) {
                Some(group) => group.runs.push(run),
                None => groups.push(Group { rate: run.asked_per_second, what: &run.what, runs: vec![run] }),
            }
        }
        groups
    }

    fn latencies(&self) -> Table {
        let mut table = table(&[
            "events/s",
            "",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "max ms",
            "cores: relay / Postgres / Kafka",
            "peak memory",
        ]);
        for group in self.groups() {
            let time = |part: fn(&Quantiles) -> f64| group.spread(|run| run.latency.as_ref().map(part), &milliseconds);
            let cores =
                |part: fn(&Cores) -> f64| group.middle(|run| Some(part(&run.cores)), &|one| format!("{one:.2}"));
            table.add_row([
                grouped(group.rate.into()) + group.mark(),
                group.what.to_owned(),
                time(|times| times.p50_ms),
                time(|times| times.p99_ms),
                time(|times| times.p999_ms),
                time(|times| times.max_ms),
                format!("{} / {} / {}", cores(|one| one.relay), cores(|one| one.postgres), cores(|one| one.kafka)),
                group.spread(|run| run.peak_memory_bytes.map(mebibytes), &|number| format!("{number:.0} MiB")),
            ]);
        }
        table
    }

    /// What the load itself was like: late, or waiting for its commits, it says how far the machine was at its end.
    fn loads(&self) -> Table {
        let mut table = table(&[
            "events/s",
            "",
            "achieved",
            "late p50 / p99 / max ms",
            "commit p50 / p99 ms",
            "since due p50 / p99 ms",
            "cores: measure",
            "idle %",
            "others %",
        ]);
        for group in self.groups() {
            let time = |of: fn(&Run) -> Option<Quantiles>, part: fn(&Quantiles) -> f64| {
                group.middle(|run| of(run).as_ref().map(part), &milliseconds)
            };
            let pair = |of| format!("{} / {}", time(of, |times| times.p50_ms), time(of, |times| times.p99_ms));
            let percent =
                |part: fn(&Cores) -> f64| group.middle(|run| Some(part(&run.cores)), &|one| format!("{one:.0}"));
            table.add_row([
                grouped(group.rate.into()) + group.mark(),
                group.what.to_owned(),
                group.spread(|run| Some(run.achieved_per_second), &grouped),
                format!("{} / {}", pair(|run| run.late), time(|run| run.late, |times| times.max_ms)),
                pair(|run| run.commit),
                pair(|run| run.since_due),
                group.middle(|run| Some(run.cores.bench), &|number| format!("{number:.2}")),
                percent(|cores| cores.idle_percent),
                percent(|cores| cores.elsewhere_percent + cores.stolen_percent),
            ]);
        }
        table
    }
}

/// The rounds of one row.
struct Group<'r> {
    rate: u32,
    what: &'r str,
    runs: Vec<&'r Run>,
}

impl Group<'_> {
    fn of(&self, number: impl Fn(&Run) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.runs.iter().filter(|run| run.void.is_none()).filter_map(|run| number(run)).collect())
    }

    fn spread(&self, number: impl Fn(&Run) -> Option<f64>, print: &dyn Fn(f64) -> String) -> String {
        self.of(number).map_or_else(|| "–".to_owned(), |spread| spread.print(print))
    }

    fn middle(&self, number: impl Fn(&Run) -> Option<f64>, print: &dyn Fn(f64) -> String) -> String {
        self.of(number).map_or_else(|| "–".to_owned(), |spread| print(spread.median))
    }

    /// Behind the rate, if one of the runs does not show it.
    fn mark(&self) -> &'static str {
        if self.runs.iter().any(|run| run.void.is_some()) { " (void)" } else { "" }
    }
}

/// Two digits below ten, and one below a hundred.
pub(crate) fn milliseconds(number: f64) -> String {
    match number {
        ..10.0 => format!("{number:.2}"),
        ..100.0 => format!("{number:.1}"),
        _ => grouped(number),
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { seconds, rounds, connections, rows_per_transaction, .. } = &self.plan;
        let rows = match rows_per_transaction {
            1 => "one event".to_owned(),
            rows => format!("{rows} events"),
        };
        writeln!(
            f,
            "Open loop: Poisson arrivals (seed {}) of transactions with {rows} of {} bytes, on at most {connections} connections,\n\
             {seconds} s without their first fifth; rounds: {rounds}, median (least … most).\n\n\
             From the commit to a consumer's hands; of a bare producer, from its call:\n\n{}\n",
            self.seed,
            self.payload_bytes,
            self.latencies(),
        )?;
        writeln!(f, "How late the load was, and how long it waited for its commits:\n\n{}\n", self.loads())?;
        for run in self.runs.iter().filter(|run| run.void.is_some()) {
            writeln!(f, "{run}")?;
        }
        let duplicates: u32 = self.runs.iter().map(|run| run.duplicates).sum();
        write!(f, "In every other run each event came; duplicates: {duplicates}.")
    }
}
