//! Orchestration: builds the parts, starts the lanes, waits, sums up. Only this module and `cli` know both Postgres and Kafka.

pub mod culprits;
pub mod desk;
pub mod inquiry;
pub mod lane;
pub mod leadership;
pub mod ledger;
pub mod monitor;
pub mod parking;
pub mod pending;
pub mod pump;
pub mod reader;
pub mod saving;
pub mod sending;
pub mod status;
pub mod verdict;
pub mod warmth;

use crate::config::Config;
use crate::config::outbox::Outbox;
use crate::outbox::lane::LaneId;
use crate::supervise::{self, TaskGroup};
use crate::telemetry::metrics::Metrics;
use desk::Desk;
use lane::{Ended, Lane};
use monitor::Monitor;
use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// All lanes of one configuration.
pub struct Relay {
    config: Arc<Config>,
    desks: Vec<Arc<Desk>>,
}

/// How the relay ended.
#[derive(Debug)]
pub enum Outcome {
    /// All that was sent is settled and saved.
    Clean,
    /// The grace period was not enough for some lane.
    Unsettled,
    /// A bug. The payload is what `std::panic::resume_unwind` takes.
    Panicked(Box<dyn Any + Send>),
}

impl Relay {
    /// Prepares a desk for each lane; nothing is connected yet.
    pub fn new(config: Arc<Config>, metrics: &Metrics) -> Self {
        let lane = LaneId::FIRST;
        let desk = |outbox: &Outbox| {
            let name = outbox.name.as_str();
            Arc::new(Desk::new(name, lane.get(), metrics.lane(name, &lane.to_string())))
        };
        Self { desks: config.outboxes.iter().map(desk).collect(), config }
    }

    /// The desks, in the order of the configuration.
    pub fn desks(&self) -> &[Arc<Desk>] {
        &self.desks
    }

    /// Runs all lanes until `stop`. The first panic stops the others, which settle and save first.
    pub async fn run(&self, stop: CancellationToken) -> Outcome {
        let (mut lanes, mut monitors) = (TaskGroup::default(), TaskGroup::default());
        let (unsettled, first_look) = (Arc::new(AtomicBool::new(false)), Arc::new(OnceLock::new()));
        for (outbox, desk) in self.config.outboxes.iter().zip(&self.desks) {
            let (refusal, refused) = watch::channel(None);
            let monitor =
                Monitor { url: self.config.postgres.url.clone(), desk: Arc::clone(desk), refusal, lane: LaneId::FIRST };
            monitors.spawn("monitor", monitor.run());
            let lane = Lane::new(
                Arc::clone(&self.config),
                outbox.clone(),
                LaneId::FIRST,
                Arc::clone(desk),
                refused,
                stop.clone(),
                Arc::clone(&first_look),
            );
            let unsettled = Arc::clone(&unsettled);
            lanes.spawn("lane", async move {
                unsettled.fetch_or(lane.run().await == Ended::Unsettled, Ordering::Relaxed);
            });
        }
        let mut outcome = Outcome::Clean;
        loop {
            let ended = tokio::select! {
                ended = lanes.next_ended() => match ended { Some(ended) => ended, None => break },
                Some(ended) = monitors.next_ended() => ended,
            };
            if let supervise::Ended::Panicked(_, payload) = ended {
                outcome = Outcome::Panicked(payload);
                stop.cancel();
            }
        }
        monitors.abort_all().await;
        match outcome {
            Outcome::Clean if unsettled.load(Ordering::Relaxed) => Outcome::Unsettled,
            outcome => outcome,
        }
    }
}
