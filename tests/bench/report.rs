//! What was measured, as tables and as JSON.

use outboxd::sink::kafka::options::Haste;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::SystemTime;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::backlog::{Loaded, Shape};
use super::drain::Bench;
use super::meter::{Cpu, Usage};
use super::topics::PARTITIONS;

/// One run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Run {
    /// What the backlog was like, where that is what differs.
    pub(crate) case: String,
    pub(crate) round: u32,
    /// A floor or a relay.
    pub(crate) what: String,
    /// Of a relay from the first record that was seen in the topic to the last, of a floor from its start to its end.
    pub(crate) events_per_second: Option<f64>,
    /// From the start of a process, or from when it was told to go on.
    pub(crate) with_start_per_second: Option<f64>,
    /// From there to the first record.
    pub(crate) first_record_seconds: Option<f64>,
    pub(crate) cpu_seconds_per_million: Cpu,
    pub(crate) peak_memory_bytes: Option<u64>,
    pub(crate) bytes: Option<u64>,
    pub(crate) duplicates: Option<u32>,
    pub(crate) cpu_elsewhere_percent: f64,
    pub(crate) cpu_stolen_percent: f64,
}

impl Run {
    /// A run that moved `events` at a rate and used up so much for all of them.
    pub(crate) fn new(events: u32, events_per_second: Option<f64>, usage: &Usage) -> Self {
        Self {
            case: String::new(),
            round: 0,
            what: String::new(),
            events_per_second,
            with_start_per_second: None,
            first_record_seconds: None,
            cpu_seconds_per_million: usage.per_million(events),
            peak_memory_bytes: None,
            bytes: None,
            duplicates: None,
            cpu_elsewhere_percent: usage.elsewhere_percent,
            cpu_stolen_percent: usage.stolen_percent,
        }
    }
}

/// What all numbers depend on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Settings {
    partitions: i32,
    outboxd: String,
    postgres: String,
    kafka: String,
    librdkafka: String,
    cores: usize,
    /// Of the daemon and of the floors.
    producer: BTreeMap<String, String>,
    relays: Vec<String>,
}

impl Settings {
    /// Asks all parts for their versions.
    pub(crate) async fn collect(bench: &mut Bench) -> anyhow::Result<Self> {
        let (_, librdkafka) = rdkafka::util::get_rdkafka_version();
        let settings = bench.daemon.producer_settings(Haste::Bulk)?;
        let mut producer = settings.config_map();
        producer.remove("bootstrap.servers");
        let producer: BTreeMap<String, String> =
            producer.iter().map(|(&name, &value)| (name.to_owned(), value.to_owned())).collect();
        Ok(Self {
            partitions: PARTITIONS,
            outboxd: bench.daemon.version().await?,
            postgres: bench.database.version().await?,
            kafka: bench.servers.kafka_version()?,
            librdkafka,
            cores: std::thread::available_parallelism()?.get(),
            producer,
            relays: bench.relays.iter().map(|relay| relay.name().to_owned()).collect(),
        })
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partitions, outboxd, postgres, kafka, librdkafka, cores, .. } = self;
        let compression = self.producer.get("compression.type").map_or("none", String::as_str);
        writeln!(
            f,
            "{outboxd}, Postgres {postgres}, Kafka {kafka}, librdkafka {librdkafka}, {cores} cores for all of them"
        )?;
        write!(
            f,
            "{partitions} partitions, acks=all, one broker; compression of outboxd and of the floors: {compression}"
        )
    }
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    at: String,
    settings: Settings,
    series: Vec<Finished>,
}

impl Report {
    /// Begins with nothing measured.
    pub(crate) fn new(settings: Settings) -> Self {
        let at = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        Self { at, settings, series: Vec::new() }
    }

    /// Adds what one series has found.
    pub(crate) fn add(&mut self, finished: Finished) {
        self.series.push(finished);
    }

    /// Writes all of it as JSON.
    pub(crate) fn write(&self, file: &Path) -> anyhow::Result<()> {
        std::fs::write(file, serde_json::to_string_pretty(self)? + "\n")?;
        Ok(())
    }
}

/// A series that was measured: a text for people and the numbers behind it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finished {
    pub(crate) name: &'static str,
    #[serde(skip)]
    pub(crate) text: String,
    pub(crate) measured: serde_json::Value,
    /// Runs that do not count; they are in the text and in what was measured, and in no median.
    pub(crate) void_runs: usize,
}

/// Runs of the same kind, to be compared with one another.
#[derive(Debug, Serialize)]
pub(crate) struct Section {
    #[serde(skip)]
    name: &'static str,
    cases: Vec<Case>,
    runs: Vec<Run>,
}

#[derive(Debug, Serialize)]
struct Case {
    #[serde(rename = "case")]
    name: String,
    shape: Shape,
    /// If all runs had the same one.
    backlog: Option<Loaded>,
}

/// By whose runs those of the others are divided.
const OURS: &str = "outboxd";

impl Section {
    /// Begins with no runs.
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, cases: Vec::new(), runs: Vec::new() }
    }

    /// Notes what the backlog of a case is like.
    pub(crate) fn case(&mut self, case: &str, shape: Shape, backlog: Option<Loaded>) {
        self.cases.push(Case { name: case.to_owned(), shape, backlog });
    }

    /// Adds a run.
    pub(crate) fn add(&mut self, case: &str, round: u32, run: Run) {
        self.runs.push(Run { case: case.to_owned(), round, ..run });
    }

    /// Sums the runs up.
    pub(crate) fn finish(self) -> anyhow::Result<Finished> {
        let measured = serde_json::to_value(&self)?;
        Ok(Finished { name: self.name, text: self.to_string(), measured, void_runs: 0 })
    }

    fn table(&self) -> Table {
        let head = [
            self.name,
            "",
            "events/s",
            "with start",
            "first record, s",
            "CPU s per million: client",
            "Postgres",
            "Kafka",
            "peak memory",
            "outboxd by it",
        ];
        let one = self.runs.iter().all(|run| run.case.is_empty());
        let mut table = table(if one { &head[1..] } else { &head });
        let mut rows: Vec<(&str, &str)> = Vec::new();
        for run in &self.runs {
            if !rows.contains(&(&run.case, &run.what)) {
                rows.push((&run.case, &run.what));
            }
        }
        for (case, what) in rows {
            table.add_row(self.row(case, what).into_iter().skip(usize::from(one)));
        }
        table
    }

    fn row(&self, case: &str, what: &str) -> [String; 10] {
        let show = |number: &dyn Fn(&Run) -> Option<f64>, print: &dyn Fn(f64) -> String| {
            let runs = self.runs.iter().filter(|run| run.case == case && run.what == what);
            Spread::of(runs.filter_map(number).collect()).map_or_else(String::new, |spread| spread.print(print))
        };
        let fine = |number: f64| format!("{number:.2}");
        let cpu = |part: fn(&Cpu) -> f64| show(&|run| Some(part(&run.cpu_seconds_per_million)), &fine);
        [
            case.to_owned(),
            what.to_owned(),
            show(&|run| run.events_per_second, &grouped),
            show(&|run| run.with_start_per_second, &grouped),
            show(&|run| run.first_record_seconds, &fine),
            cpu(|cpu| cpu.client),
            cpu(|cpu| cpu.postgres),
            cpu(|cpu| cpu.kafka),
            show(&|run| run.peak_memory_bytes.map(mebibytes), &|number| format!("{number:.0} MiB")),
            if what == OURS { String::new() } else { show(&|run| self.ratio(run), &fine) },
        ]
    }

    /// The rate of our relay by that of this run, of the same round: what slows a machine down slows both.
    fn ratio(&self, run: &Run) -> Option<f64> {
        let same = |ours: &&Run| ours.what == OURS && ours.case == run.case && ours.round == run.round;
        Some(self.runs.iter().find(same)?.events_per_second? / run.events_per_second?)
    }

    /// The worst of the runs: how much of the machine went to others.
    fn most(&self, number: impl Fn(&Run) -> f64) -> f64 {
        self.runs.iter().map(number).fold(0.0, f64::max)
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Case { name, shape, .. } in &self.cases {
            let Shape { events, payload_bytes, rows_per_transaction, streams } = shape;
            let separator = if name.is_empty() { "" } else { ": " };
            writeln!(
                f,
                "{name}{separator}{} events of {payload_bytes} bytes, {rows_per_transaction} in a transaction, \
                 {streams} streams",
                grouped(f64::from(*events))
            )?;
        }
        let rounds = self.runs.iter().map(|run| run.round).max().unwrap_or_default();
        writeln!(f, "rounds: {rounds}; median (least … most)\n\n{}\n", self.table())?;
        let (elsewhere, stolen) = (self.most(|run| run.cpu_elsewhere_percent), self.most(|run| run.cpu_stolen_percent));
        let duplicates = self.runs.iter().filter_map(|run| run.duplicates).sum::<u32>();
        write!(f, "Each drain was read back: nothing lost, in order per stream; duplicates: {duplicates}. ")?;
        write!(f, "CPU taken by others: at most {elsewhere:.0} %, by the host: {stolen:.0} %.")
    }
}

/// The middle one of several, and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    pub(crate) fn of(mut numbers: Vec<f64>) -> Option<Self> {
        numbers.sort_by(f64::total_cmp);
        let (least, most) = (*numbers.first()?, *numbers.last()?);
        let (lower, upper) = (numbers.get((numbers.len() - 1) / 2)?, numbers.get(numbers.len() / 2)?);
        Some(Self { median: f64::midpoint(*lower, *upper), least, most })
    }

    pub(crate) fn print(self, print: &dyn Fn(f64) -> String) -> String {
        let [median, least, most] = [self.median, self.least, self.most].map(print);
        if least == most { median } else { format!("{median} ({least} … {most})") }
    }
}

/// A table of Markdown. The first column holds names, and so does one without a head; the others hold numbers.
pub(crate) fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(head);
    for (column, head) in table.column_iter_mut().zip(head).skip(1) {
        column.set_cell_alignment(if head.is_empty() { CellAlignment::Left } else { CellAlignment::Right });
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
pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
