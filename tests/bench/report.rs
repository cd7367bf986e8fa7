//! What was measured, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::SystemTime;

use comfy_table::{CellAlignment, Table, presets};
use rdkafka::ClientConfig;
use serde::Serialize;

use super::Arguments;
use super::backlog::{Backlog, Loaded};
use super::daemon::Daemon;
use super::meter::{Cpu, Servers, Usage};
use super::topics::PARTITIONS;

/// What a run measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum What {
    /// Reading alone.
    Copy,
    /// Sending alone.
    Producer,
    /// Reading and sending, and nothing else.
    Pump,
    /// The daemon.
    Outboxd,
}

impl What {
    /// In the order of a round.
    pub(crate) const ALL: [Self; 4] = [Self::Copy, Self::Producer, Self::Pump, Self::Outboxd];
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Copy => "copy to stdout",
            Self::Producer => "bare producer",
            Self::Pump => "bare pump",
            Self::Outboxd => "outboxd",
        })
    }
}

/// One measure.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Run {
    round: u32,
    what: What,
    /// Of the daemon from the first record that was seen in the topic to the last, of a floor from its start to its end.
    pub(crate) events_per_second: f64,
    /// From the start of the daemon's process.
    pub(crate) with_start_per_second: Option<f64>,
    cpu_seconds_per_million: Cpu,
    pub(crate) peak_memory_bytes: Option<u64>,
    pub(crate) bytes: Option<u64>,
    pub(crate) duplicates: Option<u32>,
    cpu_elsewhere_percent: f64,
    cpu_stolen_percent: f64,
}

impl Run {
    /// A run that moved `events` at a rate and used up so much for all of them.
    pub(crate) fn new(what: What, events: u32, events_per_second: f64, usage: &Usage) -> Self {
        Self {
            round: 0,
            what,
            events_per_second,
            with_start_per_second: None,
            cpu_seconds_per_million: usage.per_million(events),
            peak_memory_bytes: None,
            bytes: None,
            duplicates: None,
            cpu_elsewhere_percent: usage.elsewhere_percent,
            cpu_stolen_percent: usage.stolen_percent,
        }
    }
}

/// What the numbers depend on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Settings {
    events: u32,
    payload_bytes: u32,
    rows_per_transaction: u32,
    streams: usize,
    partitions: i32,
    outboxd: String,
    postgres: String,
    kafka: String,
    librdkafka: String,
    cores: usize,
    /// Of the daemon and of the floors.
    producer: BTreeMap<String, String>,
}

impl Settings {
    /// Asks all parts for their versions.
    pub(crate) async fn collect(
        arguments: &Arguments,
        streams: usize,
        servers: &Servers,
        backlog: &mut Backlog,
        daemon: &Daemon,
        producer: &ClientConfig,
    ) -> anyhow::Result<Self> {
        let (_, librdkafka) = rdkafka::util::get_rdkafka_version();
        let mut producer = producer.config_map();
        producer.remove("bootstrap.servers");
        let producer: BTreeMap<String, String> =
            producer.iter().map(|(&name, &value)| (name.to_owned(), value.to_owned())).collect();
        Ok(Self {
            events: arguments.events,
            payload_bytes: arguments.size,
            rows_per_transaction: arguments.per_transaction,
            streams,
            partitions: PARTITIONS,
            outboxd: daemon.version().await?,
            postgres: backlog.version().await?,
            kafka: servers.kafka_version()?,
            librdkafka,
            cores: std::thread::available_parallelism()?.get(),
            producer,
        })
    }

    fn compression(&self) -> &str {
        self.producer.get("compression.type").map_or("none", String::as_str)
    }
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    at: String,
    settings: Settings,
    backlog: Loaded,
    runs: Vec<Run>,
}

/// The middle one of several, and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Report {
    /// Begins with no runs.
    pub(crate) fn new(settings: Settings, backlog: Loaded) -> Self {
        Self {
            at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            settings,
            backlog,
            runs: Vec::new(),
        }
    }

    /// Adds a run.
    pub(crate) fn add(&mut self, round: u32, run: Run) {
        self.runs.push(Run { round, ..run });
    }

    /// Writes all of it as JSON.
    pub(crate) fn write(&self, file: &Path) -> anyhow::Result<()> {
        std::fs::write(file, serde_json::to_string_pretty(self)? + "\n")?;
        Ok(())
    }

    fn of(&self, what: What) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |run| run.what == what)
    }

    fn spread(&self, what: What, number: impl Fn(&Run) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.of(what).filter_map(number).collect())
    }

    /// The daemon's rate by that of a floor, round by round: what slows a machine down slows both.
    fn ratio(&self, floor: What) -> Option<Spread> {
        let pairs = self.of(What::Outboxd).zip(self.of(floor));
        Spread::of(pairs.map(|(daemon, floor)| daemon.events_per_second / floor.events_per_second).collect())
    }

    fn measures(&self) -> Table {
        let mut table =
            table(&["", "events/s", "with start", "CPU s per million: client", "Postgres", "Kafka", "peak memory"]);
        for what in What::ALL {
            let show = |number: &dyn Fn(&Run) -> Option<f64>, print: &dyn Fn(f64) -> String| {
                self.spread(what, number).map_or_else(String::new, |spread| spread.print(print))
            };
            let cpu = |part: fn(&Cpu) -> f64| {
                show(&|run| Some(part(&run.cpu_seconds_per_million)), &|number| format!("{number:.2}"))
            };
            table.add_row([
                what.to_string(),
                show(&|run| Some(run.events_per_second), &grouped),
                show(&|run| run.with_start_per_second, &grouped),
                cpu(|cpu| cpu.client),
                cpu(|cpu| cpu.postgres),
                cpu(|cpu| cpu.kafka),
                show(&|run| run.peak_memory_bytes.map(mebibytes), &|number| format!("{number:.0} MiB")),
            ]);
        }
        table
    }

    fn ratios(&self) -> Table {
        let mut table = table(&["", "rate of outboxd by that of the floor"]);
        for floor in [What::Pump, What::Copy, What::Producer] {
            let ratio =
                self.ratio(floor).map_or_else(String::new, |spread| spread.print(&|number| format!("{number:.2}")));
            table.add_row([floor.to_string(), ratio]);
        }
        table
    }

    /// The worst of the runs: how much of the machine went to others.
    fn most(&self, number: impl Fn(&Run) -> f64) -> f64 {
        self.runs.iter().map(number).fold(0.0, f64::max)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { events, payload_bytes, rows_per_transaction, streams, partitions, .. } = &self.settings;
        let Settings { outboxd, postgres, kafka, librdkafka, cores, .. } = &self.settings;
        let rounds = self.of(What::Outboxd).count();
        writeln!(
            f,
            "{} events of {payload_bytes} bytes, {rows_per_transaction} in a transaction, {streams} streams",
            grouped(f64::from(*events))
        )?;
        writeln!(f, "{partitions} partitions, acks=all, compression {}, one broker", self.settings.compression())?;
        writeln!(
            f,
            "{outboxd}, Postgres {postgres}, Kafka {kafka}, librdkafka {librdkafka}, {cores} cores for all of them"
        )?;
        writeln!(f, "rounds: {rounds}; median (least … most)\n\n{}\n", self.measures())?;
        writeln!(f, "{}\n", self.ratios())?;
        let (elsewhere, stolen) = (self.most(|run| run.cpu_elsewhere_percent), self.most(|run| run.cpu_stolen_percent));
        write!(
            f,
            "Each drain was read back: nothing lost, in order per stream; duplicates: {}. ",
            self.of(What::Outboxd).filter_map(|run| run.duplicates).sum::<u32>()
        )?;
        write!(f, "CPU taken by others: at most {elsewhere:.0} %, by the host: {stolen:.0} %.")
    }
}

impl Spread {
    fn of(mut numbers: Vec<f64>) -> Option<Self> {
        numbers.sort_by(f64::total_cmp);
        let (least, most) = (*numbers.first()?, *numbers.last()?);
        let (lower, upper) = (numbers.get((numbers.len() - 1) / 2)?, numbers.get(numbers.len() / 2)?);
        Some(Self { median: f64::midpoint(*lower, *upper), least, most })
    }

    fn print(self, print: &dyn Fn(f64) -> String) -> String {
        let [median, least, most] = [self.median, self.least, self.most].map(print);
        if least == most { median } else { format!("{median} ({least} … {most})") }
    }
}

fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(head);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// A whole number with commas between the thousands.
pub(crate) fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Exact enough below 2^53 bytes.
#[expect(clippy::cast_precision_loss, reason = "a memory of 8 PiB is not measured here")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
