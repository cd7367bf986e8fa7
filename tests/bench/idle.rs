//! What a relay does, and costs, while there is next to nothing to relay.

use std::fmt;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use tokio::time::Instant;

use super::arrivals::Arrivals;
use super::cores::Cores;
use super::drain::Bench;
use super::events::Ids;
use super::latency::{Stage, milliseconds, starts};
use super::load::{Load, Order, Pace};
use super::meter::{Client, Meter};
use super::quantiles::Quantiles;
use super::relay::Relay;
use super::report::{Finished, table};
use super::schedule::Schedule;

/// For a relay to come to rest.
const REST: Duration = Duration::from_secs(5);

/// Fewer have no quantiles worth the name.
const LEAST_EVENTS: u32 = 30;

/// What is measured.
#[derive(Clone, Copy, Debug, Serialize)]
struct Plan {
    /// One a second, at a random moment of its first half: a wake-up each.
    events: u32,
    /// Without any event.
    seconds: u32,
}

/// What one relay did.
#[derive(Clone, Debug, Serialize)]
struct Run {
    what: String,
    /// From the commit to the consumer's hands; `None` where there is no relay.
    latency: Option<Quantiles>,
    /// While there was no event.
    cores: Cores,
}

/// All of them, and the servers alone.
#[derive(Clone, Debug, Serialize)]
struct Idle {
    seed: u64,
    plan: Plan,
    runs: Vec<Run>,
}

/// Measures the servers alone, and then all relays of the benchmark.
pub(crate) async fn measure(bench: &mut Bench) -> anyhow::Result<Finished> {
    let (admin, arguments) = (bench.database.place()?.admin, bench.arguments.clone());
    let plan = Plan { events: arguments.seconds.max(LEAST_EVENTS), seconds: arguments.seconds };
    let stage = Stage::of(&arguments, &bench.servers, &bench.topics, &admin);
    let idle = all(stage, plan, &mut bench.relays).await?;
    Ok(Finished { name: "idle", text: idle.to_string(), measured: serde_json::to_value(&idle)?, void_runs: 0 })
}

async fn all(stage: Stage<'_>, plan: Plan, relays: &mut [Relay]) -> anyhow::Result<Idle> {
    super::say("idle: the servers alone")?;
    let alone = rest(stage, plan, Client::Relay(Vec::new())).await?;
    let mut runs = vec![Run { what: "no relay".to_owned(), latency: None, cores: alone }];
    for relay in relays {
        super::say(&format!("idle: {}", relay.name()))?;
        let topic = stage.topics.create().await?;
        relay.attach(&topic).await?;
        let run = attached(stage, plan, relay, &topic).await;
        let run = run.with_context(|| format!("{}: {}", relay.name(), relay.log_end()));
        let detached = relay.detach().await;
        runs.push(run?);
        detached?;
        stage.topics.delete(&topic).await?;
    }
    Ok(Idle { seed: stage.seed, plan, runs })
}

async fn attached(stage: Stage<'_>, plan: Plan, relay: &mut Relay, topic: &str) -> anyhow::Result<Run> {
    tokio::time::sleep(REST).await;
    let latency = trickle(stage, plan, relay, topic).await?;
    relay.still_runs()?;
    let cores = rest(stage, plan, Client::Relay(relay.processes())).await?;
    relay.still_runs()?;
    Ok(Run { what: relay.name().to_owned(), latency, cores })
}

/// One event a second.
async fn trickle(stage: Stage<'_>, plan: Plan, relay: &Relay, topic: &str) -> anyhow::Result<Option<Quantiles>> {
    let ids = Ids::fresh();
    let order = Order {
        url: stage.admin.to_owned(),
        target: relay.target().clone(),
        aggregate_type: relay.aggregate_type(topic).to_owned(),
        pattern: stage.pattern,
        ids,
        pace: Pace::At(Schedule::one_in_each(Duration::from_secs(1), plan.events, stage.seed)),
        connections: 1,
        rows_per_transaction: 1,
    };
    let load = Load::connect(order).await?;
    let arrivals = Arrivals::of(&stage.servers.kafka, topic, ids, usize::try_from(plan.events)?)?;
    let written = load.run().await?;
    arrivals.all(plan.events).await?;
    let (starts, seen) = (starts(stage.admin, &written, 1).await?, arrivals.end()?);
    let latencies = starts.iter().filter_map(|start| Some(seen.at_micros(start.number)? - start.at_micros));
    Ok(Quantiles::of(latencies.collect()))
}

/// No event at all.
async fn rest(stage: Stage<'_>, plan: Plan, client: Client) -> anyhow::Result<Cores> {
    tokio::time::sleep(REST).await;
    let (meter, began) = (Meter::start(stage.servers, &client)?, Instant::now());
    tokio::time::sleep(Duration::from_secs(plan.seconds.into())).await;
    Ok(Cores::of(&meter.read(&client)?, began.elapsed().as_secs_f64()))
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { events, seconds } = self.plan;
        writeln!(f, "At rest: {events} events, one a second (seed {}); then {seconds} s without any.\n", self.seed)?;
        let mut table = table(&["", "p50 ms", "p90 ms", "max ms", "idle, % of a core: relay", "Postgres", "Kafka"]);
        for run in &self.runs {
            let time = |part: fn(&Quantiles) -> f64| {
                run.latency.as_ref().map_or_else(|| "–".to_owned(), |times| milliseconds(part(times)))
            };
            let percent = |cores: f64| format!("{:.2}", cores * 100.0);
            table.add_row([
                run.what.clone(),
                time(|times| times.p50_ms),
                time(|times| times.p90_ms),
                time(|times| times.max_ms),
                percent(run.cores.relay),
                percent(run.cores.postgres),
                percent(run.cores.kafka),
            ]);
        }
        write!(f, "{table}")
    }
}
