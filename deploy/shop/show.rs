//! All printing: what happens to stderr, the verdict to stdout.

use crate::checker::Verdict;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use serde_json::Value;
use std::io::Write;
use std::time::Duration;
use tokio::time::Instant;

/// On a terminal the line moves; in a file it is written anew.
const TICK: Duration = Duration::from_millis(500);
const TICK_OF_A_FILE: Duration = Duration::from_secs(2);

/// Shows how far the demonstration is.
#[derive(Clone)]
pub(crate) struct Show {
    bar: ProgressBar,
    since: Instant,
}

impl Show {
    /// The bar is full after `length`.
    pub(crate) fn new(length: Duration) -> anyhow::Result<Self> {
        let bar = ProgressBar::new(length.as_secs());
        bar.set_style(ProgressStyle::with_template("{bar:24} {pos:>3} s  {msg}")?);
        Ok(Self { bar, since: Instant::now() })
    }

    /// How often [`Self::progress`] is worth a call.
    pub(crate) fn tick(&self) -> Duration {
        if self.bar.is_hidden() { TICK_OF_A_FILE } else { TICK }
    }

    /// How it stands now. What was published twice is counted twice; the lag is what outboxd says.
    pub(crate) fn progress(&self, committed: u64, published: u64, status: Option<&Value>) {
        let lag = status.and_then(|lane| lane["lag_events"].as_u64()).map_or_else(|| "-".to_owned(), count);
        let seconds = self.since.elapsed().as_secs();
        let line = format!("committed {:>7}  published {:>7}  lag {lag:>5}", count(committed), count(published));
        self.bar.set_position(seconds);
        self.bar.set_message(line.clone());
        if self.bar.is_hidden() {
            note(&format!("{seconds:>3} s  {line}"));
        }
    }

    /// Something that happened.
    pub(crate) fn event(&self, text: &str) {
        let line = format!("{:>3} s  {text}", self.since.elapsed().as_secs());
        self.bar.suspend(|| note(&line));
    }

    /// Takes the line away.
    pub(crate) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// Says something on stderr.
pub(crate) fn note(text: &str) {
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}

/// Prints what the comparison found.
pub(crate) fn verdict(verdict: &Verdict, kills: usize) {
    let usual = [
        ("committed", verdict.committed),
        ("published", verdict.published),
        ("lost", verdict.lost.count),
        ("duplicates", verdict.duplicates.count),
        ("out of order", verdict.out_of_order.count),
    ];
    let faults = [
        ("lost", &verdict.lost),
        ("out of order", &verdict.out_of_order),
        ("never committed", &verdict.phantom),
        ("in another partition", &verdict.wrong_partition),
        ("altered", &verdict.altered),
    ];
    for (what, number) in usual {
        data(&format!("{what:<12} {:>9}", count(number as u64)));
    }
    for (what, finding) in faults {
        finding.examples.iter().for_each(|example| data(&format!("{what}: {example}")));
    }
    if verdict.is_sound() {
        data(&format!("Every committed event is in Kafka, and each stream in order, after {kills} times SIGKILL."));
    } else {
        data("This must not happen.");
    }
}

/// Prints a line of what was asked for. Nobody may be there to read it.
fn data(text: &str) {
    drop(writeln!(std::io::stdout().lock(), "{text}"));
}

fn count(number: u64) -> String {
    HumanCount(number).to_string()
}
