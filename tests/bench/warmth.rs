//! When a broker is warm: what it is asked for costs it no less any more.
//!
//! A virtual machine compiles while it works, on the cores that are measured. Of one that had just started, a million records in bulk
//! took 4 CPU seconds where later ones took 1.5, and 2,000 single records a second 1.5 cores where later ones took 0.7.

use std::ops::RangeInclusive;

/// So many steps, at least and at most.
const STEPS: RangeInclusive<u32> = 6..=16;

/// A step above this share of the least that one has cost brings nothing; the second such one in a row ends it.
const NO_LESS: f64 = 0.95;

/// Repeats `step`, which answers what it cost, until it costs no less. `unit` says of what.
pub(crate) async fn warm(unit: &str, mut step: impl AsyncFnMut() -> anyhow::Result<f64>) -> anyhow::Result<()> {
    let (mut least, mut no_less) = (f64::INFINITY, 0);
    for count in 1..=*STEPS.end() {
        let cost = step().await?;
        super::say(&format!("warming the broker up: {cost:.2} {unit}"))?;
        no_less = if cost > least * NO_LESS { no_less + 1 } else { 0 };
        least = least.min(cost);
        if no_less > 1 && STEPS.contains(&count) {
            break;
        }
    }
    Ok(())
}
