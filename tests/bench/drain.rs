//! Drains a backlog from a real Postgres to a real Kafka and says how fast, beside three floors in the same run:
//! reading alone (`copy … to stdout`), sending alone (a bare producer), and the two put together without a ledger
//! and without a cursor (a bare pump).
//!
//! `deploy/bench` builds this, brings the servers up and runs it. One table is loaded once; each drain gets an outbox
//! of its own, which starts at the earliest event, and a topic of its own. The floors use the daemon's own producer
//! settings and send the daemon's records. A drain counts only if the topic, read back, holds each committed
//! event, in order per stream.

mod backlog;
mod daemon;
mod floors;
mod meter;
mod readback;
mod report;
mod rows;
mod topics;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use clap::builder::RangedU64ValueParser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use backlog::Backlog;
use daemon::Daemon;
use floors::Floors;
use meter::{Client, Meter, Servers};
use readback::Expected;
use report::{Report, Run, Settings, What};
use topics::Topics;

/// Drains a backlog of events from Postgres to Kafka and prints how fast, beside three floors.
#[derive(Clone, Debug, Parser)]
#[command(name = "drain", args_override_self = true)]
struct Arguments {
    /// The binary of the daemon, built for release.
    #[arg(long, value_name = "PATH")]
    daemon: PathBuf,
    /// Events in the backlog.
    #[arg(long, default_value_t = 1_000_000, value_parser = RangedU64ValueParser::<u32>::new().range(1..=100_000_000))]
    events: u32,
    /// Bytes of an event's payload as Postgres prints it.
    #[arg(long, value_name = "BYTES", default_value_t = 200, value_parser = RangedU64ValueParser::<u32>::new().range(64..=500_000))]
    size: u32,
    /// Events that one transaction writes.
    #[arg(long, value_name = "ROWS", default_value_t = 1_000, value_parser = RangedU64ValueParser::<u32>::new().range(1..))]
    per_transaction: u32,
    /// Streams that the events belong to, in turn.
    #[arg(long, default_value_t = 1_000, value_parser = RangedU64ValueParser::<u32>::new().range(1..))]
    streams: u32,
    /// Rounds; each runs the three floors and the daemon once.
    #[arg(long, default_value_t = 3, value_parser = RangedU64ValueParser::<u32>::new().range(1..=100))]
    runs: u32,
    /// Writes the settings and all runs to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Cargo gives it to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// How often the topic's end offsets are asked for during a drain: it is one request, and a hundredth of a second is near enough.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A drain that brings nothing for so long has failed.
const PATIENCE: Duration = Duration::from_mins(1);

/// Sent before the first round: a broker that has just started is slower than it will be.
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

/// Dropped, a run ends its daemon; the servers take the rest with them.
async fn unless_interrupted(run: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        done = run => done,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminated.recv() => bail!("terminated"),
    }
}

async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let servers = Servers::find()?;
    let topics = Topics::new(&servers.kafka)?;
    let mut backlog = Backlog::create(&servers.postgres, &arguments.daemon).await?;
    let measured = measure(arguments, &servers, &topics, &mut backlog).await;
    backlog.remove().await?;
    let report = measured?;
    if let Some(file) = &arguments.json {
        report.write(file).with_context(|| format!("cannot write {}", file.display()))?;
    }
    writeln!(std::io::stdout(), "{report}")?;
    Ok(())
}

async fn measure(
    arguments: &Arguments,
    servers: &Servers,
    topics: &Topics,
    backlog: &mut Backlog,
) -> anyhow::Result<Report> {
    let loaded = backlog.load(arguments).await?;
    let expected = backlog.expected().await?;
    let daemon = Daemon::new(&arguments.daemon, &backlog.relay_url()?, servers)?;
    let floors = Floors::new(backlog, daemon.producer_settings()?).await?;
    let settings =
        Settings::collect(arguments, expected.streams(), servers, backlog, &daemon, floors.properties()).await?;
    let mut report = Report::new(settings, loaded);
    warm_up(arguments, topics, &floors).await?;
    for round in 1..=arguments.runs {
        for what in What::ALL {
            backlog.checkpoint().await?;
            let run = match what {
                What::Copy => copy(servers, backlog, arguments.events).await,
                What::Producer => produce(servers, topics, &floors, arguments.events).await,
                What::Pump => pump(servers, topics, &floors, backlog, arguments.events).await,
                What::Outboxd => drain(servers, topics, &daemon, &expected).await,
            };
            let run = run.with_context(|| format!("round {round}, {what}: this run is void"))?;
            say(&format!(
                "round {round} of {}: {what} {} events/s",
                arguments.runs,
                report::grouped(run.events_per_second)
            ))?;
            report.add(round, run);
        }
    }
    Ok(report)
}

async fn warm_up(arguments: &Arguments, topics: &Topics, floors: &Floors) -> anyhow::Result<()> {
    say("warming the broker up")?;
    let topic = topics.create().await?;
    floors.produce(&topic, arguments.events.min(WARM_UP_EVENTS))?;
    topics.delete(&topic).await
}

async fn copy(servers: &Servers, backlog: &mut Backlog, events: u32) -> anyhow::Result<Run> {
    let meter = Meter::start(servers)?;
    let began = Instant::now();
    let bytes = floors::copy(&mut backlog.connection).await?;
    let seconds = began.elapsed().as_secs_f64();
    let mut run = Run::new(What::Copy, events, f64::from(events) / seconds, &meter.read(Client::Floor)?);
    run.bytes = Some(bytes);
    Ok(run)
}

async fn produce(servers: &Servers, topics: &Topics, floors: &Floors, events: u32) -> anyhow::Result<Run> {
    let topic = topics.create().await?;
    let meter = Meter::start(servers)?;
    let seconds = floors.produce(&topic, events)?.as_secs_f64();
    let run = Run::new(What::Producer, events, f64::from(events) / seconds, &meter.read(Client::Floor)?);
    end_of_floor(topics, &topic, events).await?;
    Ok(run)
}

async fn pump(
    servers: &Servers,
    topics: &Topics,
    floors: &Floors,
    backlog: &mut Backlog,
    events: u32,
) -> anyhow::Result<Run> {
    let topic = topics.create().await?;
    let meter = Meter::start(servers)?;
    let seconds = floors.pump(&topic, &mut backlog.connection).await?.as_secs_f64();
    let run = Run::new(What::Pump, events, f64::from(events) / seconds, &meter.read(Client::Floor)?);
    end_of_floor(topics, &topic, events).await?;
    Ok(run)
}

async fn end_of_floor(topics: &Topics, topic: &str, events: u32) -> anyhow::Result<()> {
    let found = topics.total(topic)?;
    ensure!(found == u64::from(events), "{found} of {events} records are in the topic");
    topics.delete(topic).await
}

async fn drain(servers: &Servers, topics: &Topics, daemon: &Daemon, expected: &Expected) -> anyhow::Result<Run> {
    let topic = topics.create().await?;
    let (meter, began) = (Meter::start(servers)?, Instant::now());
    let mut running = daemon.start(&Topics::template(&topic), &topic)?;
    let watched = watch(topics, &topic, expected.count(), &mut running, began).await;
    let (usage, memory) = (meter.read(Client::Daemon(running.pid()))?, running.peak_memory_bytes()?);
    let ended = running.stop().await;
    let watched = watched?;
    ended?;
    let found = topics.read_back(&topic, expected)?;
    found.judge()?;
    topics.delete(&topic).await?;
    let rate = f64::from(watched.between) / watched.first_to_last.as_secs_f64();
    let mut run = Run::new(What::Outboxd, expected.count(), rate, &usage);
    run.with_start_per_second = Some(f64::from(expected.count()) / watched.with_start.as_secs_f64());
    run.peak_memory_bytes = Some(memory);
    run.duplicates = Some(found.duplicates);
    Ok(run)
}

/// What the end offsets said during a drain.
struct Watched {
    /// From the first look that saw records to the first that saw all.
    first_to_last: Duration,
    /// The records that came between these two looks.
    between: u32,
    /// From the start of the process.
    with_start: Duration,
}

async fn watch(
    topics: &Topics,
    topic: &str,
    events: u32,
    running: &mut daemon::Running,
    began: Instant,
) -> anyhow::Result<Watched> {
    let mut first = None;
    let (mut moved, mut before) = (began, 0);
    loop {
        let (seen, now) = (topics.total(topic)?, Instant::now());
        if seen > before {
            (moved, before) = (now, seen);
            first.get_or_insert((now, seen));
        }
        let (at, at_first) = first.unwrap_or((now, seen));
        if seen >= u64::from(events) {
            let between = u32::try_from(seen.saturating_sub(at_first)).context("more records than events")?;
            ensure!(between > 0, "all records came between two looks: the backlog is too small to measure");
            return Ok(Watched { first_to_last: now - at, between, with_start: now - began });
        }
        running.still_runs()?;
        ensure!(
            now - moved < PATIENCE,
            "no record for {PATIENCE:?}, {seen} of {events} came; end of the log:\n{}",
            running.log_end()
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn say(line: &str) -> anyhow::Result<()> {
    writeln!(std::io::stderr(), "bench: {line}").context("cannot write to stderr")
}
