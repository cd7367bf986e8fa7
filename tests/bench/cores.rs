//! How many cores each part kept busy, on average over a run.

use serde::Serialize;

use super::meter::Usage;

/// CPU seconds per second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Cores {
    pub(crate) relay: f64,
    pub(crate) postgres: f64,
    pub(crate) kafka: f64,
    /// The measure itself: its writers, its producer, its consumer.
    pub(crate) bench: f64,
    pub(crate) idle_percent: f64,
    pub(crate) elsewhere_percent: f64,
    pub(crate) stolen_percent: f64,
}

impl Cores {
    /// What was used in so many seconds, while a relay was the client.
    pub(crate) fn of(usage: &Usage, seconds: f64) -> Self {
        Self {
            relay: usage.client / seconds,
            postgres: usage.postgres / seconds,
            kafka: usage.kafka / seconds,
            bench: usage.bench / seconds,
            idle_percent: usage.idle_percent,
            elsewhere_percent: usage.elsewhere_percent,
            stolen_percent: usage.stolen_percent,
        }
    }
}
