//! When things are to happen: fixed before the first of them, so that a slow one cannot put off those behind it. Pure.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Times since the start, in ascending order.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    due: Vec<Duration>,
}

impl Schedule {
    /// A Poisson process, as independent writers make it: the gaps are exponential, and the next one owes nothing to the last.
    pub(crate) fn poisson(per_second: f64, lasting: Duration, seed: u64) -> Self {
        let (mut random, mut at, mut due) = (StdRng::seed_from_u64(seed), 0.0, Vec::new());
        loop {
            at += -(1.0 - random.random::<f64>()).ln() / per_second;
            if at >= lasting.as_secs_f64() {
                return Self { due };
            }
            due.push(Duration::from_secs_f64(at));
        }
    }

    /// One in each period, somewhere in its first half: never in step with a poll, and the gap is half a period at least.
    pub(crate) fn one_in_each(period: Duration, periods: u32, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let due = (0..periods).map(|period_nr| period * period_nr + (period / 2).mul_f64(random.random()));
        Self { due: due.collect() }
    }

    /// Each time so often: what a transaction writes comes at once.
    pub(crate) fn repeated(&self, times: usize) -> Self {
        Self { due: self.due.iter().flat_map(|due| std::iter::repeat_n(*due, times)).collect() }
    }

    /// The times.
    pub(crate) fn due(&self) -> &[Duration] {
        &self.due
    }
}
