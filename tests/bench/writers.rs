//! What writers lose to what runs beside them: a relay, or a trigger.
//!
//! The writers commit single events as fast as they can, alone and with the other beside, in turn; each run with it is
//! compared with the mean of the two runs around it, so that a drift of the machine cancels out. A relay takes from them
//! in two ways, and the table lets them be told apart: where the machine has no idle time, it competes for the cores, as
//! does the Kafka behind it, and the CPU time that a commit takes stays what it was; where the machine has idle time,
//! nothing but waiting can slow the writers down. Hence many writers, who use the cores up, and few, who wait for the
//! flush of their commits.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Serialize;
use tokio::time::Instant;

use super::cores::Cores;
use super::drain::Bench;
use super::events::Ids;
use super::latency::{Stage, milliseconds};
use super::load::{Committed, Load, Order, Pace, micros};
use super::meter::{Client, Meter};
use super::quantiles::Quantiles;
use super::relay::{Relay, Target, execute};
use super::report::{Finished, Spread, grouped, table};
use super::topics::{AGGREGATE_TYPE, Topics};

/// At the beginning of each run, not counted.
const LEAD_IN: Duration = Duration::from_secs(1);

/// A relay that relays nothing for so long will not catch up.
const PATIENCE: Duration = Duration::from_mins(1);

/// Between two looks whether a relay has caught up, and then for it to come to rest.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const REST: Duration = Duration::from_secs(1);

/// Between the SQL that makes something and the SQL that takes it back.
const AFTER: &str = "\n-- after\n";

/// The most of the machine that others may use before it can no longer be told what cores alone would do.
const OTHERS_PERCENT: f64 = 10.0;

/// What is measured.
#[derive(Clone, Debug, Serialize)]
struct Plan {
    /// Numbers of connections, measured one after the other.
    writers: Vec<u32>,
    /// Of a run.
    seconds: u32,
    /// Runs with the other beside; there is one more without.
    pairs: u32,
}

/// What runs beside the writers.
enum Beside<'b> {
    /// A relay, which has nothing left to relay when the run begins.
    Relay(&'b mut Relay),
    /// What statements make of our table, until others take it back.
    Statements(Statements),
}

/// SQL, by the name of its file.
#[derive(Debug)]
struct Statements {
    name: String,
    before: String,
    after: String,
}

impl Statements {
    fn read(file: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let (before, after) =
            text.split_once(AFTER).with_context(|| format!("{} has no line `-- after`", file.display()))?;
        let name = file.file_stem().context("a file without a name")?.to_string_lossy().into_owned();
        Ok(Self { name, before: before.to_owned(), after: after.to_owned() })
    }
}

/// Whether it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Leg {
    Without,
    With,
}

/// One run.
#[derive(Clone, Copy, Debug, Serialize)]
struct Run {
    leg: Leg,
    commits_per_second: f64,
    /// How long a writer waited for its commit.
    commit: Option<Quantiles>,
    /// Of Postgres and the writers.
    cpu_ms_per_commit: f64,
    cores: Cores,
    /// Of what was committed while the relay ran, what it had relayed at the end.
    relayed_share: Option<f64>,
}

/// What so many writers kept.
#[derive(Clone, Debug, Serialize)]
struct Comparison {
    beside: String,
    writers: u32,
    /// Run by run.
    kept: Vec<f64>,
    /// What they would keep if they lost nothing but cores.
    by_cores: Option<f64>,
    /// Why it does not count.
    void: Option<String>,
    runs: Vec<Run>,
}

/// All of them.
#[derive(Clone, Debug, Serialize)]
struct Writers {
    plan: Plan,
    payload_bytes: u32,
    comparisons: Vec<Comparison>,
}

/// Measures what writers keep of their rate beside each relay of the benchmark, and beside the SQL that was given.
pub(crate) async fn measure(bench: &mut Bench) -> anyhow::Result<Finished> {
    let (admin, arguments) = (bench.database.place()?.admin, bench.arguments.clone());
    let plan = Plan { writers: arguments.writers.clone(), seconds: arguments.seconds, pairs: arguments.runs };
    let statements: Vec<Statements> =
        arguments.beside.iter().map(|file| Statements::read(file)).collect::<Result<_, _>>()?;
    let stage = Stage::of(&arguments, &bench.servers, &bench.topics, &admin);
    let beside = bench.relays.iter_mut().map(Beside::Relay).chain(statements.into_iter().map(Beside::Statements));
    let writers = all(stage, plan, beside.collect()).await?;
    let void_runs = writers.comparisons.iter().filter(|one| one.void.is_some()).count();
    Ok(Finished { name: "writers", text: writers.to_string(), measured: serde_json::to_value(&writers)?, void_runs })
}

async fn all(stage: Stage<'_>, plan: Plan, beside: Vec<Beside<'_>>) -> anyhow::Result<Writers> {
    let mut comparisons = Vec::new();
    for mut other in beside {
        for &writers in &plan.writers {
            let comparison = compare(stage, &plan, &mut other, writers).await;
            comparisons.push(comparison.with_context(|| format!("{writers} writers beside {}", other.name()))?);
        }
    }
    Ok(Writers { plan, payload_bytes: stage.pattern.payload_bytes, comparisons })
}

impl Beside<'_> {
    fn name(&self) -> String {
        match self {
            Self::Relay(relay) => relay.name().to_owned(),
            Self::Statements(statements) => statements.name.clone(),
        }
    }

    /// Makes it ready, and leaves it away for now.
    async fn attach(&mut self, topic: &str) -> anyhow::Result<()> {
        match self {
            Self::Relay(relay) => {
                relay.attach(topic).await?;
                relay.pause().await
            }
            Self::Statements(_) => Ok(()),
        }
    }

    /// Lets it run; a relay first relays what was written without it.
    async fn enter(&mut self, stage: Stage<'_>, topic: &str, written: u64) -> anyhow::Result<()> {
        match self {
            Self::Relay(relay) => {
                relay.resume().await?;
                caught_up(stage.topics, relay, topic, written).await
            }
            Self::Statements(statements) => execute(stage.admin, &statements.before).await,
        }
    }

    async fn leave(&mut self, stage: Stage<'_>) -> anyhow::Result<()> {
        match self {
            Self::Relay(relay) => relay.pause().await,
            Self::Statements(statements) => execute(stage.admin, &statements.after).await,
        }
    }

    async fn detach(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Relay(relay) => relay.detach().await,
            Self::Statements(_) => Ok(()),
        }
    }

    fn target(&self) -> Target {
        match self {
            Self::Relay(relay) => relay.target().clone(),
            Self::Statements(_) => Target::outboxd(),
        }
    }

    fn aggregate_type<'t>(&self, topic: &'t str) -> &'t str {
        match self {
            Self::Relay(relay) => relay.aggregate_type(topic),
            Self::Statements(_) => AGGREGATE_TYPE,
        }
    }

    fn processes(&self) -> Vec<u32> {
        match self {
            Self::Relay(relay) => relay.processes(),
            Self::Statements(_) => Vec::new(),
        }
    }
}

async fn caught_up(topics: &Topics, relay: &mut Relay, topic: &str, written: u64) -> anyhow::Result<()> {
    let (mut moved, mut before) = (Instant::now(), 0);
    loop {
        let found = topics.total(topic)?;
        if found >= written {
            tokio::time::sleep(REST).await;
            return Ok(());
        }
        if std::mem::replace(&mut before, found) < found {
            moved = Instant::now();
        }
        relay.still_runs()?;
        ensure!(moved.elapsed() < PATIENCE, "it had relayed {found} of {written} events, and for {PATIENCE:?} no more");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Without, with, without, … and without at the end.
async fn compare(stage: Stage<'_>, plan: &Plan, beside: &mut Beside<'_>, writers: u32) -> anyhow::Result<Comparison> {
    let topic = stage.topics.create().await?;
    beside.attach(&topic).await?;
    let mut trial = Trial { stage, plan, topic: &topic, writers, written: 0, runs: Vec::new() };
    let void = trial.all(beside).await.err().map(|error| format!("{error:#}"));
    let runs = trial.runs;
    beside.detach().await?;
    stage.topics.delete(&topic).await?;
    let cores = std::thread::available_parallelism()?;
    let (kept, by_cores) = (kept(&runs), by_cores(&runs, f64::from(u32::try_from(cores.get())?)));
    let comparison = Comparison { beside: beside.name(), writers, kept, by_cores, void, runs };
    super::say(&format!("writers: {comparison}"))?;
    Ok(comparison)
}

/// What the writers would keep if they lost nothing but cores: those that the relay and Kafka take, less those that were idle.
/// What the relay lets Postgres do counts as the writers' own.
fn by_cores(runs: &[Run], all: f64) -> Option<f64> {
    let middle = |leg, part: fn(&Cores) -> f64| {
        let of_leg = runs.iter().filter(|run| run.leg == leg);
        Spread::of(of_leg.map(|run| part(&run.cores)).collect()).map(|spread| spread.median)
    };
    let others = |cores: &Cores| cores.elsewhere_percent + cores.stolen_percent;
    if runs.iter().any(|run| others(&run.cores) > OTHERS_PERCENT) {
        return None;
    }
    let own = middle(Leg::Without, |cores| cores.postgres + cores.bench)?;
    let idle = middle(Leg::Without, |cores| cores.idle_percent)? / 100.0 * all;
    let taken = middle(Leg::With, |cores| cores.relay + cores.kafka)? - middle(Leg::Without, |cores| cores.kafka)?;
    Some(1.0 - ((taken - idle).max(0.0) / own.max(f64::EPSILON)).min(1.0))
}

/// Each run with it, by the mean of the runs before and behind it.
fn kept(runs: &[Run]) -> Vec<f64> {
    let three = runs.windows(3).filter_map(|three| <&[Run; 3]>::try_from(three).ok());
    let with = three.filter(|[_, with, _]| with.leg == Leg::With);
    with.map(|[before, with, after]| {
        with.commits_per_second / f64::midpoint(before.commits_per_second, after.commits_per_second)
    })
    .collect()
}

/// What so many writers do beside one other.
struct Trial<'t> {
    stage: Stage<'t>,
    plan: &'t Plan,
    topic: &'t str,
    writers: u32,
    written: u64,
    runs: Vec<Run>,
}

impl Trial<'_> {
    async fn all(&mut self, beside: &mut Beside<'_>) -> anyhow::Result<()> {
        // Not counted: the first one finds everything cold.
        self.write(beside, Leg::Without).await?;
        for _ in 0..self.plan.pairs {
            let without = self.write(beside, Leg::Without).await?;
            self.runs.push(without);
            beside.enter(self.stage, self.topic, self.written).await?;
            let with = self.write(beside, Leg::With).await;
            beside.leave(self.stage).await?; // first: what it has made would stand beside the next ones
            self.runs.push(with?);
        }
        let without = self.write(beside, Leg::Without).await?;
        self.runs.push(without);
        // Not counted: whether all has come that was written last.
        beside.enter(self.stage, self.topic, self.written).await?;
        beside.leave(self.stage).await
    }

    async fn write(&mut self, beside: &Beside<'_>, leg: Leg) -> anyhow::Result<Run> {
        let Self { stage, plan, topic, .. } = *self;
        execute(stage.admin, "checkpoint").await?; // so that all begin with the same: whole pages go to the WAL at first
        let lasting = Duration::from_secs(plan.seconds.into());
        let load = Load::connect(Order {
            url: stage.admin.to_owned(),
            target: beside.target(),
            aggregate_type: beside.aggregate_type(topic).to_owned(),
            pattern: stage.pattern,
            ids: Ids::fresh(),
            pace: Pace::Flat(LEAD_IN + lasting),
            connections: self.writers,
            rows_per_transaction: 1,
        });
        let load = load.await?;
        let client = Client::Relay(if leg == Leg::With { beside.processes() } else { Vec::new() });
        let (meter, began) = (Meter::start(stage.servers, &client)?, Instant::now());
        let committed = load.run().await?.transactions;
        let seconds = began.elapsed().as_secs_f64();
        let cores = Cores::of(&meter.read(&client)?, seconds);
        let relayed = stage.topics.total(topic)?.saturating_sub(self.written);
        let written = u64::try_from(committed.len())?;
        let counted: Vec<&Committed> = committed.iter().filter(|one| one.due >= LEAD_IN).collect();
        self.written += written;
        let events = count(written.max(1));
        Ok(Run {
            leg,
            commits_per_second: count(u64::try_from(counted.len())?) / lasting.as_secs_f64(),
            commit: Quantiles::of(counted.iter().map(|one| micros(one.took)).collect()),
            cpu_ms_per_commit: (cores.postgres + cores.bench) * seconds * 1e3 / events,
            cores,
            relayed_share: (leg == Leg::With && matches!(beside, Beside::Relay(_))).then(|| count(relayed) / events),
        })
    }
}

impl Comparison {
    fn spread(&self, leg: Leg, number: impl Fn(&Run) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.runs.iter().filter(|run| run.leg == leg).filter_map(number).collect())
    }

    fn show(&self, leg: Leg, number: &dyn Fn(&Run) -> Option<f64>, print: &dyn Fn(f64) -> String) -> String {
        self.spread(leg, number).map_or_else(|| "–".to_owned(), |spread| spread.print(print))
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = |leg| self.show(leg, &|run| Some(run.commits_per_second), &grouped);
        let Self { beside, writers, void, .. } = self;
        if let Some(reason) = void {
            return write!(f, "{writers} beside {beside}: void: {reason}");
        }
        write!(f, "{writers} beside {beside}: {}, alone {}: {} kept", rate(Leg::With), rate(Leg::Without), self.kept())
    }
}

impl fmt::Display for Writers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { seconds, pairs, .. } = self.plan;
        writeln!(
            f,
            "Writers that commit one event of {} bytes after the other, alone and beside something else, {pairs} × in turn,\n\
             {seconds} s beside it, each by the mean of the two alone around it; median (least … most). `By cores`: what they\n\
             would keep if they lost nothing but the cores that the relay and Kafka take. An arrow leads from alone to beside.\n",
            self.payload_bytes,
        )?;
        let mut table = table(&[
            "beside",
            "writers",
            "commits/s alone",
            "beside it",
            "kept",
            "by cores",
            "commit p50 ms",
            "commit p99 ms",
            "CPU ms a commit",
            "idle %",
            "others %",
            "cores: relay / Kafka",
            "relayed meanwhile",
        ]);
        for one in self.comparisons.iter().filter(|one| one.void.is_none()) {
            table.add_row(one.row());
        }
        write!(f, "{table}")?;
        for one in self.comparisons.iter().filter(|one| one.void.is_some()) {
            write!(f, "\n{one}")?;
        }
        Ok(())
    }
}

impl Comparison {
    fn row(&self) -> Vec<String> {
        let middle = |leg, number: &dyn Fn(&Run) -> Option<f64>, print: &dyn Fn(f64) -> String| {
            self.spread(leg, number).map_or_else(|| "–".to_owned(), |spread| print(spread.median))
        };
        let both = |number: &dyn Fn(&Run) -> Option<f64>, print: &dyn Fn(f64) -> String| {
            format!("{} → {}", middle(Leg::Without, number, print), middle(Leg::With, number, print))
        };
        let (whole, hundredths) = (|number| format!("{number:.0}"), |number| format!("{number:.2}"));
        vec![
            self.beside.clone(),
            self.writers.to_string(),
            self.show(Leg::Without, &|run| Some(run.commits_per_second), &grouped),
            self.show(Leg::With, &|run| Some(run.commits_per_second), &grouped),
            self.kept(),
            self.by_cores.map_or_else(|| "–".to_owned(), percent),
            both(&|run| Some(run.commit?.p50_ms), &milliseconds),
            both(&|run| Some(run.commit?.p99_ms), &milliseconds),
            both(&|run| Some(run.cpu_ms_per_commit), &|number| format!("{number:.3}")),
            both(&|run| Some(run.cores.idle_percent), &whole),
            both(&|run| Some(run.cores.elsewhere_percent + run.cores.stolen_percent), &whole),
            [
                middle(Leg::With, &|run| Some(run.cores.relay), &hundredths),
                middle(Leg::With, &|run| Some(run.cores.kafka), &hundredths),
            ]
            .join(" / "),
            middle(Leg::With, &|run| run.relayed_share, &percent),
        ]
    }

    fn kept(&self) -> String {
        Spread::of(self.kept.clone()).map_or_else(|| "–".to_owned(), |kept| kept.print(&percent))
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[expect(clippy::cast_precision_loss, reason = "exact below 2^53 events")]
fn count(events: u64) -> f64 {
    events as f64
}
