//! How times are distributed. Pure.

use serde::Serialize;

/// Milliseconds that so many of a hundred times do not exceed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Quantiles {
    pub(crate) count: usize,
    pub(crate) p50_ms: f64,
    pub(crate) p90_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) max_ms: f64,
}

impl Quantiles {
    /// Of times in microseconds; `None` of none.
    pub(crate) fn of(mut micros: Vec<i64>) -> Option<Self> {
        micros.sort_unstable();
        let at = |per_mille| micros.get(rank(micros.len(), per_mille)).copied().map(milliseconds);
        Some(Self {
            count: micros.len(),
            p50_ms: at(500)?,
            p90_ms: at(900)?,
            p99_ms: at(990)?,
            p999_ms: at(999)?,
            max_ms: at(1_000)?,
        })
    }
}

/// The place of the least value that so many of a thousand do not exceed: one that was measured, never one in between.
fn rank(count: usize, per_mille: usize) -> usize {
    (count * per_mille).div_ceil(1_000).saturating_sub(1)
}

#[expect(clippy::cast_precision_loss, reason = "exact for 285 years")]
fn milliseconds(micros: i64) -> f64 {
    micros as f64 / 1e3
}
