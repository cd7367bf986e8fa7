//! Drains backlogs from a real Postgres to a real Kafka and says how fast, beside floors in the same rounds: reading alone
//! (`copy … to stdout`), sending alone (a bare producer), and the two put together without a ledger and without a cursor
//! (a bare pump). Other relays go through the same measures, each behind an adapter.
//!
//! `deploy/bench` builds this, brings the servers up and runs it. Our table is loaded once; each drain gets an outbox of
//! its own, which starts at the earliest event, and a topic of its own. The floors use the daemon's own producer settings
//! and send the daemon's records. Another relay gets its own table, filled while it is paused.

mod adapter;
mod arrivals;
mod backlog;
mod cores;
mod daemon;
mod database;
mod drain;
mod events;
mod floors;
mod idle;
mod latency;
mod load;
mod meter;
mod quantiles;
mod readback;
mod relay;
mod report;
mod roundtrip;
mod rows;
mod schedule;
mod series;
mod topics;
mod wal;
mod warmth;
mod writers;

use std::collections::HashSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use clap::builder::RangedU64ValueParser;
use clap::{Parser, ValueEnum as _};
use tokio::signal::unix::{SignalKind, signal};

use backlog::Shape;
use daemon::{Daemon, Variant};
use database::Database;
use drain::Bench;
use floors::Floors;
use meter::{Client, Meter, Servers};
use relay::Relay;
use report::{Report, Settings};
use series::Series;
use topics::Topics;

/// Drains backlogs of events from Postgres to Kafka and prints how fast, beside floors and other relays.
#[derive(Clone, Debug, Parser)]
#[command(name = "bench", args_override_self = true)]
struct Arguments {
    /// The binary of the daemon, built for release.
    #[arg(long, value_name = "PATH")]
    daemon: PathBuf,
    /// The command of another relay's adapter.
    #[arg(long, value_name = "COMMAND", action = clap::ArgAction::Append)]
    against: Vec<String>,
    /// A file with settings of the daemon that are measured beside those that it has by default.
    #[arg(long, value_name = "FILE", action = clap::ArgAction::Append)]
    variant: Vec<PathBuf>,
    /// What is measured; without it, the drain.
    #[arg(long, value_name = "NAME", action = clap::ArgAction::Append)]
    series: Vec<Series>,
    /// All series.
    #[arg(long)]
    all: bool,
    /// Events in the backlog.
    #[arg(long, default_value_t = 1_000_000, value_parser = RangedU64ValueParser::<u32>::new().range(1..=100_000_000))]
    events: u32,
    /// Events in the longest backlog of the series that make it longer.
    #[arg(long, default_value_t = 1_000_000, value_parser = RangedU64ValueParser::<u32>::new().range(10_000..=100_000_000))]
    most: u32,
    /// Bytes of an event's payload as Postgres prints it.
    #[arg(long, value_name = "BYTES", default_value_t = 200, value_parser = RangedU64ValueParser::<u32>::new().range(64..=500_000))]
    size: u32,
    /// Events that one transaction writes.
    #[arg(long, value_name = "ROWS", default_value_t = 1_000, value_parser = RangedU64ValueParser::<u32>::new().range(1..))]
    per_transaction: u32,
    /// Streams that the events belong to, in turn.
    #[arg(long, default_value_t = 1_000, value_parser = RangedU64ValueParser::<u32>::new().range(1..))]
    streams: u32,
    /// Rounds; each runs all that is compared.
    #[arg(long, default_value_t = 3, value_parser = RangedU64ValueParser::<u32>::new().range(1..=100))]
    runs: u32,
    /// Events a second of a load that does not wait; again for one more.
    #[arg(long, value_name = "N", default_values_t = [100, 1_000, 5_000, 10_000], value_parser = RangedU64ValueParser::<u32>::new().range(1..=1_000_000))]
    rate: Vec<u32>,
    /// How long a run under such a load lasts, and how long nothing happens at all.
    #[arg(long, default_value_t = 30, value_parser = RangedU64ValueParser::<u32>::new().range(5..=3_600))]
    seconds: u32,
    /// Events that one transaction of such a load writes.
    #[arg(long, value_name = "ROWS", default_value_t = 1, value_parser = RangedU64ValueParser::<u32>::new().range(1..=1_000))]
    rows: u32,
    /// Connections of such a load.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = RangedU64ValueParser::<u32>::new().range(1..=100))]
    connections: u32,
    /// Connections that commit as fast as they can; again for one more number of them.
    #[arg(long, value_name = "N", default_values_t = [2, 16], value_parser = RangedU64ValueParser::<u32>::new().range(1..=100))]
    writers: Vec<u32>,
    /// A file of SQL whose effect on writers is measured; a line `-- after` stands before what takes it back.
    #[arg(long, value_name = "FILE", action = clap::ArgAction::Append)]
    beside: Vec<PathBuf>,
    /// The times of the events of such a load follow from it.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Writes the settings and all runs to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Cargo gives it to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    /// The backlog that was asked for.
    fn shape(&self) -> Shape {
        Shape {
            events: self.events,
            payload_bytes: self.size,
            rows_per_transaction: self.per_transaction,
            streams: self.streams,
        }
    }

    /// In the order in which they run, each once.
    fn chosen(&self) -> Vec<Series> {
        let mut chosen = if self.all { Series::value_variants().to_vec() } else { self.series.clone() };
        if chosen.is_empty() {
            chosen.push(Series::Drain);
        }
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }
}

/// Sent in each step of the warm-up.
const WARM_UP_EVENTS: u32 = 1_000_000;

fn main() -> anyhow::Result<ExitCode> {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(wrong) => {
            wrong.print()?;
            return Ok(ExitCode::from(if wrong.use_stderr() { 64 } else { 0 }));
        }
    };
    // One thread: the pump reads and sends in turn, as little as a pump can do.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(unless_interrupted(run(&arguments))) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            say(&format!("{error:#}"))?;
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Dropped, a run ends its relays; the servers take the rest with them.
async fn unless_interrupted(run: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let (mut terminated, mut hung_up) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    tokio::select! {
        done = run => done,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminated.recv() => bail!("terminated"),
        _ = hung_up.recv() => bail!("the terminal is gone"),
    }
}

async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let servers = Servers::find()?;
    let topics = Topics::new(&servers.kafka)?;
    let database = Database::create(&servers.postgres, &arguments.daemon).await?;
    let place = database.place()?;
    let daemon = Daemon::new(&arguments.daemon, Variant::default(), &place.daemon, &servers)?;
    let mut bench = Bench { arguments: arguments.clone(), servers, topics, database, daemon, relays: Vec::new() };
    let measured = measure(&mut bench, &place).await;
    let Bench { database, relays, .. } = bench;
    drop(relays); // what still runs holds the database
    database.remove().await?;
    measured
}

/// A series that fails does not keep the others from running.
async fn measure(bench: &mut Bench, place: &relay::Place) -> anyhow::Result<()> {
    let arguments = bench.arguments.clone();
    bench.relays.push(Relay::outboxd(&arguments.daemon, Variant::default(), place, &bench.servers)?);
    for file in &arguments.variant {
        bench.relays.push(Relay::outboxd(&arguments.daemon, Variant::read(file)?, place, &bench.servers)?);
    }
    for command in &arguments.against {
        bench.relays.push(Relay::against(command, place, &bench.servers).await?);
    }
    let mut names = HashSet::new();
    let twice = bench.relays.iter().map(Relay::name).find(|name| !names.insert(*name));
    ensure!(
        twice.is_none(),
        "two relays have the name {}: rename a variant's file, or leave one out",
        twice.unwrap_or_default()
    );
    let settings = Settings::collect(bench).await?;
    let mut output = std::io::stdout();
    writeln!(output, "{settings}")?;
    let mut report = Report::new(settings);
    keep(&report, arguments.json.as_deref())?; // a file that cannot be written is known before anything is measured
    warm_up(bench).await?;
    let mut failed = Vec::new();
    for series in arguments.chosen() {
        match series.run(bench).await {
            Ok(finished) => {
                writeln!(output, "\n{}", finished.text)?;
                if finished.void_runs > 0 {
                    say(&format!("{}: {} void, in no median", finished.name, finished.void_runs))?;
                    failed.push(finished.name);
                }
                report.add(finished);
            }
            Err(error) => {
                say(&format!("{}: {error:#}", series.name()))?;
                failed.push(series.name());
            }
        }
        keep(&report, arguments.json.as_deref())?;
    }
    ensure!(failed.is_empty(), "void, or without a result: {}", failed.join(", "));
    Ok(())
}

fn keep(report: &Report, file: Option<&Path>) -> anyhow::Result<()> {
    file.map_or(Ok(()), |file| report.write(file).with_context(|| format!("cannot write {}", file.display())))
}

/// Sends records in bulk until the broker is warm, and single ones too where those are measured.
async fn warm_up(bench: &mut Bench) -> anyhow::Result<()> {
    say("warming the broker up")?;
    let events = bench.arguments.events.min(WARM_UP_EVENTS);
    let shape = Shape { events: events.min(10_000), ..bench.arguments.shape() };
    let floors: Floors = bench.load(shape).await?.floors;
    let Bench { servers, topics, .. } = &*bench;
    warmth::warm(&format!("CPU seconds for {events} records"), async || {
        let topic = topics.create().await?;
        let meter = Meter::start(servers, &Client::Floor)?;
        floors.produce(&topic, events)?;
        let seconds = meter.read(&Client::Floor)?.kafka;
        topics.delete(&topic).await?;
        Ok(seconds)
    })
    .await?;
    if bench.arguments.chosen().into_iter().any(Series::is_of_single_events) {
        latency::warm_broker(bench).await?;
    }
    Ok(())
}

fn say(line: &str) -> anyhow::Result<()> {
    writeln!(std::io::stderr(), "bench: {line}").context("cannot write to stderr")
}
