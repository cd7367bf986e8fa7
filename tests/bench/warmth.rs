//! When a broker is warm: what it is asked for costs it no less any more.
//!
//! A virtual machine compiles while it works, on the cores that are measured. Of one that had just started, a million records in bulk
//! took 4 CPU seconds where later ones took 1.5, and 2,000 single records a second 1.5 cores where later ones took 0.7.

use std::ops::RangeInclusive;

/// So many steps, at least and at most.
const STEPS: RangeInclusive<u32> = 6..=16;

/// A step above this share of the least that one has cost brings nothing; the second such one in a row ends it.
const NO_LESS: f64 = 0.95;

/// The steps so far.
#[derive(Debug)]
pub(crate) struct Warmth {
    steps: u32,
    least: f64,
    no_less: u32,
}

impl Warmth {
    /// Of a broker that has done nothing.
    pub(crate) fn none() -> Self {
        Self { steps: 0, least: f64::INFINITY, no_less: 0 }
    }

    /// How many steps there were.
    pub(crate) fn steps(&self) -> u32 {
        self.steps
    }

    /// Notes what a step has cost. Whether it was the last one.
    pub(crate) fn is_enough(&mut self, cost: f64) -> bool {
        self.steps += 1;
        self.no_less = if cost > self.least * NO_LESS { self.no_less + 1 } else { 0 };
        self.least = self.least.min(cost);
        self.steps >= *STEPS.end() || self.no_less > 1 && STEPS.contains(&self.steps)
    }
}
