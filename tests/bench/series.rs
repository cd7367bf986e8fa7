//! The series of drains: what each varies, and what it leaves as it is.

use anyhow::Context as _;
use clap::ValueEnum;

use super::backlog::Shape;
use super::drain::{Bench, Beside, Contender, Move};
use super::relay::{Relay, Target};
use super::report::{Finished, Run, Section, grouped};
use super::topics::AGGREGATE_TYPE;
use super::{idle, latency, say, wal, writers};

/// The payloads of the series of sizes.
const SIZES: [u32; 3] = [200, 1_024, 10_240];

/// All payloads of a backlog together: larger ones are fewer.
const PAYLOADS_BYTES: u32 = 1 << 30;

/// Rows of a transaction in the series of transactions.
const TRANSACTIONS: [u32; 3] = [1, 10, 1_000];

/// The shortest backlog of the series of backlogs.
const LEAST: u32 = 10_000;

/// Streams of the series of streams.
const STREAMS: [u32; 4] = [1, 100, 10_000, 1_000_000];

/// What is drained behind rows that are delivered already, and beside an open transaction.
const BEHIND: u32 = 100_000;

/// A set of runs that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Series {
    /// One backlog: the floors, and all relays.
    Drain,
    /// Payloads of 200 B, 1 KiB and 10 KiB.
    Sizes,
    /// 1, 10 and 1,000 rows in a transaction.
    Transactions,
    /// Backlogs of 10,000 events and more, tenfold up to --most.
    Backlogs,
    /// 100,000 events behind 10,000 rows and more that are delivered already, tenfold up to --most.
    Delivered,
    /// 1 to 1,000,000 streams.
    Streams,
    /// Beside a transaction that has written an event and stays open.
    Long,
    /// What a drain writes into Postgres.
    Wal,
    /// From a commit to a consumer's hands, under a load of --rate events a second.
    Latency,
    /// One event a second, and none.
    Idle,
    /// What --writers keep of their rate beside a relay, and beside what --beside makes.
    Writers,
}

impl Series {
    /// What it is called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Sizes => "sizes",
            Self::Transactions => "transactions",
            Self::Backlogs => "backlogs",
            Self::Delivered => "delivered",
            Self::Streams => "streams",
            Self::Long => "long",
            Self::Wal => "wal",
            Self::Latency => "latency",
            Self::Idle => "idle",
            Self::Writers => "writers",
        }
    }

    /// Whether events come one by one, as they are written.
    pub(crate) fn is_of_single_events(self) -> bool {
        matches!(self, Self::Latency | Self::Idle | Self::Writers)
    }

    /// Runs it.
    pub(crate) async fn run(self, bench: &mut Bench) -> anyhow::Result<Finished> {
        match self {
            Self::Drain => drain(bench).await,
            Self::Sizes => sizes(bench).await,
            Self::Transactions => transactions(bench).await,
            Self::Backlogs => backlogs(bench).await,
            Self::Delivered => delivered(bench).await,
            Self::Streams => streams(bench).await,
            Self::Long => long(bench).await,
            Self::Wal => wal::measure(bench).await,
            Self::Latency => latency::measure(bench).await,
            Self::Idle => idle::measure(bench).await,
            Self::Writers => writers::measure(bench).await,
        }
    }
}

async fn drain(bench: &mut Bench) -> anyhow::Result<Finished> {
    let mut section = Section::new("drain");
    let mut contenders = vec![Contender::Copy, Contender::Producer, Contender::Pump];
    contenders.extend(bench.all_relays());
    contenders.push(Contender::Again);
    let shape = bench.arguments.shape();
    rounds(bench, &mut section, "", shape, &contenders).await?;
    section.finish()
}

async fn sizes(bench: &mut Bench) -> anyhow::Result<Finished> {
    let mut section = Section::new("sizes");
    let contenders = pump_and_relays(bench);
    for payload_bytes in SIZES {
        let shape = bench.arguments.shape();
        let shape = Shape { payload_bytes, events: shape.events.min(PAYLOADS_BYTES / payload_bytes), ..shape };
        rounds(bench, &mut section, &format!("{payload_bytes} B"), shape, &contenders).await?;
    }
    section.finish()
}

async fn transactions(bench: &mut Bench) -> anyhow::Result<Finished> {
    let mut section = Section::new("transactions");
    let contenders = pump_and_relays(bench);
    for rows_per_transaction in TRANSACTIONS {
        let shape = Shape { rows_per_transaction, ..bench.arguments.shape() };
        rounds(bench, &mut section, &format!("{rows_per_transaction} a transaction"), shape, &contenders).await?;
    }
    section.finish()
}

async fn backlogs(bench: &mut Bench) -> anyhow::Result<Finished> {
    let mut section = Section::new("backlogs");
    let contenders: Vec<Contender> = bench.all_relays().collect();
    for events in tenfold(bench.arguments.most) {
        let shape = Shape { events, ..bench.arguments.shape() };
        rounds(bench, &mut section, &grouped(f64::from(events)), shape, &contenders).await?;
    }
    section.finish()
}

async fn streams(bench: &mut Bench) -> anyhow::Result<Finished> {
    let mut section = Section::new("streams");
    let (contenders, shape) = (pump_and_relays(bench), bench.arguments.shape());
    for streams in STREAMS.into_iter().filter(|&streams| streams <= shape.events) {
        let (case, shape) = (grouped(f64::from(streams)), Shape { streams, ..shape });
        rounds(bench, &mut section, &case, shape, &contenders).await?;
    }
    section.finish()
}

/// The cursor is behind all that is delivered, as it is when all of it was drained. A relay that reads the log never meets
/// what is delivered, so only ours is measured.
async fn delivered(bench: &mut Bench) -> anyhow::Result<Finished> {
    let mut section = Section::new("delivered");
    let target = Target::outboxd();
    for delivered in tenfold(bench.arguments.most) {
        let shape = bench.arguments.shape();
        let (before, behind) =
            (Shape { events: delivered, ..shape }, Shape { events: shape.events.min(BEHIND), ..shape });
        let case = grouped(f64::from(delivered));
        section.case(&case, behind, None);
        for round in 1..=bench.arguments.runs {
            for at in ours(bench) {
                before.load(&mut bench.database, &target, AGGREGATE_TYPE).await?;
                let run = behind_delivered(bench, at, delivered, behind).await;
                bench.relay(at)?.detach().await?;
                let run = run.with_context(|| void(round, &case))?;
                note(bench, &mut section, &case, round, run)?;
            }
        }
    }
    section.finish()
}

async fn behind_delivered(bench: &mut Bench, at: usize, delivered: u32, behind: Shape) -> anyhow::Result<Run> {
    let (target, first) = (Target::outboxd(), delivered.saturating_add(1));
    let unused = bench.topics.create().await?;
    let relay = bench.relay(at)?;
    relay.attach(&unused).await?;
    relay.pause().await?;
    bench.topics.delete(&unused).await?;
    behind.add(&mut bench.database, &target, AGGREGATE_TYPE, first).await?;
    let expected = behind.expected(&mut bench.database, &target, first).await?;
    let topic = bench.topics.create().await?;
    bench.relay(at)?.turn_to(&topic)?;
    bench.database.checkpoint().await?;
    bench.measured(at, &topic, &expected, Move::Resume).await
}

/// The transaction is older than all events of the backlog, so that each of them is younger than what may still commit.
async fn long(bench: &mut Bench) -> anyhow::Result<Finished> {
    let mut section = Section::new("long");
    let shape = bench.arguments.shape();
    let backlogs = [BEHIND, 10 * BEHIND].into_iter().filter(|&events| events <= bench.arguments.events);
    let mut backlogs: Vec<u32> = backlogs.collect();
    if backlogs.is_empty() {
        backlogs.push(shape.events);
    }
    for events in backlogs {
        let shape = Shape { events, ..shape };
        section.case(&grouped(f64::from(events)), shape, None);
        for round in 1..=bench.arguments.runs {
            beside_open(bench, &mut section, round, shape).await?;
        }
    }
    section.finish()
}

async fn beside_open(bench: &mut Bench, section: &mut Section, round: u32, shape: Shape) -> anyhow::Result<()> {
    let events = grouped(f64::from(shape.events));
    let (with, without) = (format!("{events}, one is open"), format!("{events}, none is"));
    let target = Target::outboxd();
    bench.database.execute(&format!("truncate {}", target.table)).await?;
    let open = bench.open_transaction(&target, AGGREGATE_TYPE).await?;
    let mut backlog = bench.load_behind(shape).await?;
    for at in ours(bench) {
        bench.database.checkpoint().await?;
        let run = bench.drain(at, &backlog, Beside::OpenTransaction).await.with_context(|| void(round, &with))?;
        note(bench, section, &with, round, run)?;
    }
    sqlx::Connection::close(open).await?;
    backlog = bench.load(shape).await?;
    for at in ours(bench) {
        let run = bench.run(Contender::Relay(at), &backlog).await.with_context(|| void(round, &without))?;
        note(bench, section, &without, round, run)?;
    }
    for at in others(bench) {
        for (case, beside) in [(&with, Beside::OpenTransaction), (&without, Beside::Nothing)] {
            let run = bench.drain(at, &backlog, beside).await.with_context(|| void(round, case))?;
            note(bench, section, case, round, run)?;
        }
    }
    Ok(())
}

/// All contenders, in turn, so often as was asked for; every other round the other way round.
async fn rounds(
    bench: &mut Bench,
    section: &mut Section,
    case: &str,
    shape: Shape,
    contenders: &[Contender],
) -> anyhow::Result<()> {
    let backlog = bench.load(shape).await?;
    section.case(case, shape, Some(backlog.loaded));
    let mut order = contenders.to_vec();
    for round in 1..=bench.arguments.runs {
        for &contender in &order {
            let what = format!("{} {case}", bench.name(contender));
            let run = bench.run(contender, &backlog).await.with_context(|| void(round, &what))?;
            note(bench, section, case, round, run)?;
        }
        order.reverse();
    }
    Ok(())
}

fn note(bench: &Bench, section: &mut Section, case: &str, round: u32, run: Run) -> anyhow::Result<()> {
    let rate = run.events_per_second.or(run.with_start_per_second).unwrap_or_default();
    let what = [case, &run.what].join(" ");
    say(&format!("round {round} of {}: {} {} events/s", bench.arguments.runs, what.trim_start(), grouped(rate)))?;
    section.add(case, round, run);
    Ok(())
}

fn void(round: u32, what: &str) -> String {
    format!("round {round}, {}: this run is void", what.trim_end())
}

fn pump_and_relays(bench: &Bench) -> Vec<Contender> {
    [Contender::Pump].into_iter().chain(bench.all_relays()).collect()
}

/// The places of our relay and its variants in the list.
pub(crate) fn ours(bench: &Bench) -> Vec<usize> {
    let all = bench.relays.iter().enumerate();
    all.filter(|(_, relay)| matches!(relay, Relay::Outboxd(_))).map(|(at, _)| at).collect()
}

/// The places of the other relays.
pub(crate) fn others(bench: &Bench) -> Vec<usize> {
    let all = bench.relays.iter().enumerate();
    all.filter(|(_, relay)| matches!(relay, Relay::Adapter(_))).map(|(at, _)| at).collect()
}

fn tenfold(most: u32) -> impl Iterator<Item = u32> {
    std::iter::successors(Some(LEAST), |events| events.checked_mul(10)).take_while(move |&events| events <= most)
}
