//! How long to sleep between two reads, and how much to ask for. Pure.

use crate::config::relay::Poll;
use std::time::Duration;

/// Adapts the pause between reads to the traffic.
#[derive(Debug)]
pub struct Pace {
    bounds: Poll,
    pause: Duration,
    /// How long nothing has come.
    quiet: Duration,
    empty_reads: u32,
}

/// After a quiet time the pause is this share of it, so whoever ends it waits for no more than that. Doubled from read to read, the
/// pause came to half of it: at 100 transactions a second, one event in a hundred was 29 ms under way.
const QUIET_SHARE: u32 = 8;

/// After a read of so many commits the pause is `poll.min`, and it grows with the square root of their number, so with the rate of commits itself,
/// up to [`MANY_TIMES`] as much: the more come, the more of them share the price of a read and of the requests to Kafka. Two writers that commit
/// as fast as they can kept 58 % of their rate, where with a constant pause they kept 42 (two runs each). Events are not what counts: 10,000 a second
/// in transactions of ten have cores to spare, and were 9.0 ms under way in the median, where by events it had been 13.4 (two runs each).
const COMMITS_AT_MIN: f64 = 4.0;
const MANY_TIMES: f64 = 10.0;

/// What a read brought, as far as the pace needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// There is more to read at once.
    More,
    /// Events of about so many commits came, and there is no more.
    Some(u64),
    /// None came.
    None,
}

impl Pace {
    /// Starts as if there were traffic.
    pub fn new(bounds: Poll) -> Self {
        Self { pause: bounds.min, bounds, quiet: Duration::ZERO, empty_reads: 0 }
    }

    /// How many reads in a row brought nothing.
    pub fn empty_reads(&self) -> u32 {
        self.empty_reads
    }

    /// The pause before the next read.
    ///
    /// | traffic | pause |
    /// |---|---|
    /// | more | none |
    /// | some | `poll.min` less what the read `took`; longer where many were committed |
    /// | none | an eighth of the time for which none came, at least the same, at most `poll.max` |
    pub fn after(&mut self, traffic: Traffic, took: Duration) -> Duration {
        let soon = self.bounds.min.saturating_sub(took);
        (self.pause, self.quiet, self.empty_reads) = match traffic {
            Traffic::More => (Duration::ZERO, Duration::ZERO, 0),
            Traffic::Some(commits) => (soon.max(self.shared_by(commits)), Duration::ZERO, 0),
            Traffic::None => {
                let quiet = self.quiet.saturating_add(self.pause).saturating_add(took);
                let share = quiet / QUIET_SHARE;
                let pause = if share > self.bounds.min { share.min(self.bounds.max) } else { soon };
                (pause, quiet, self.empty_reads.saturating_add(1))
            }
        };
        self.pause
    }

    fn shared_by(&self, commits: u64) -> Duration {
        let commits = u32::try_from(commits).map_or(f64::INFINITY, f64::from);
        self.bounds.min.mul_f64((commits / COMMITS_AT_MIN).sqrt().min(MANY_TIMES)).min(self.bounds.max)
    }
}

/// How many rows to ask for, so that a page stays within its share of the memory budget.
#[derive(Debug)]
pub struct PageSize {
    most_rows: usize,
    budget_bytes: usize,
    average_bytes: usize,
    largest_bytes: usize,
}

/// Events whose size is not known yet are taken for this large: more than most are, so that the first page stays small.
const FIRST_GUESS_BYTES: usize = 8 * 1024;

/// An event above this share of the budget is large.
const LARGE_SHARE: usize = 64;

impl PageSize {
    /// A page of at most `most_rows` rows and about `budget_bytes` bytes.
    pub fn new(most_rows: usize, budget_bytes: usize) -> Self {
        Self { most_rows: most_rows.max(1), budget_bytes, average_bytes: FIRST_GUESS_BYTES, largest_bytes: 0 }
    }

    /// Rows to ask for.
    pub fn rows(&self) -> usize {
        (self.budget_bytes / self.average_bytes.max(1)).clamp(1, self.most_rows)
    }

    /// The bytes above which the server should cut the page, if there are events so large that a few of them would pass the
    /// budget. To weigh them it has to print every payload once more, so where events are small the reader alone stops.
    pub fn cut_bytes(&self) -> Option<usize> {
        (self.rows() > 1 && self.largest_bytes > self.budget_bytes / LARGE_SHARE).then_some(self.budget_bytes)
    }

    /// The bytes above which the reader itself stops taking rows: only the first meeting with large events gets here.
    pub fn stop_bytes(&self) -> usize {
        self.budget_bytes.saturating_mul(2)
    }

    /// Learns from what was received. The largest size is forgotten slowly: large events come in groups.
    pub fn received(&mut self, rows: usize, bytes: usize, largest_bytes: usize) {
        if let Some(average) = bytes.checked_div(rows) {
            self.average_bytes = average.max(1);
            self.largest_bytes = largest_bytes.max(self.largest_bytes / 16 * 15);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polls_often_under_traffic_and_rarely_when_idle() {
        let mut pace = Pace::new(Poll { min: Duration::from_millis(2), max: Duration::from_millis(5) });
        let steps = [
            (Traffic::None, 0, 2_000), // quiet for 2 ms
            (Traffic::None, 1_000, 1_000),
            (Traffic::None, 12_000, 2_250), // for 18 ms
            (Traffic::None, 11_750, 4_000), // for 32 ms
            (Traffic::None, 12_000, 5_000), // for 48 ms
            (Traffic::None, 1_000, 5_000),
            (Traffic::More, 1_000, 0),
            (Traffic::Some(1), 0, 2_000),
            (Traffic::Some(1), 700, 1_300),
            (Traffic::Some(4), 5_000, 2_000),
            (Traffic::Some(16), 5_000, 4_000),
            (Traffic::Some(1_000), 5_000, 5_000),
            (Traffic::None, 0, 2_000),
        ];
        for (traffic, took, pause) in steps {
            let [took, pause] = [took, pause].map(Duration::from_micros);
            assert_eq!(pace.after(traffic, took), pause, "{traffic:?} after {took:?}");
        }
    }

    #[test]
    fn who_ends_a_quiet_time_waits_for_an_eighth_of_it() {
        let bounds = Poll { min: Duration::from_millis(2), max: Duration::from_millis(250) };
        let (mut pace, mut quiet, mut reads) = (Pace::new(bounds), Duration::ZERO, 0);
        quiet += pace.after(Traffic::Some(1), Duration::ZERO);
        while quiet < Duration::from_secs(4) {
            let pause = pace.after(Traffic::None, Duration::ZERO);
            assert!(pause <= bounds.max && pause <= (quiet / QUIET_SHARE).max(bounds.min), "{pause:?} after {quiet:?}");
            (quiet, reads) = (quiet + pause, reads + 1);
        }
        assert!(reads < 60, "{reads} reads in 4 s");
    }

    #[test]
    fn a_page_follows_the_size_of_the_events() {
        let mut size = PageSize::new(5_000, 8 << 20);
        assert_eq!(size.rows(), 1_024); // a guess of 8 KiB each
        size.received(1_000, 300_000, 400);
        assert_eq!((size.rows(), size.cut_bytes()), (5_000, None));
        size.received(5_000, 5_000 * 10_000, 10_000);
        assert_eq!((size.rows(), size.cut_bytes()), (838, None));
        size.received(838, 18_380_000, 10 << 20); // one of 10 MiB among them
        assert_eq!((size.rows(), size.cut_bytes()), (382, Some(8 << 20)));
        size.received(0, 0, 0);
        assert_eq!(size.rows(), 382);
        for _ in 0..300 {
            size.received(382, 382 * 300, 400);
        }
        assert_eq!((size.rows(), size.cut_bytes()), (5_000, None));
    }

    #[test]
    fn a_page_holds_at_least_one_event() {
        let mut size = PageSize::new(0, 1_000);
        size.received(1, 1 << 30, 1 << 30);
        assert_eq!(size.rows(), 1);
    }
}
