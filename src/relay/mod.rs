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
pub mod waker;
pub mod warmth;

use crate::config::Config;
use crate::config::outbox::Outbox;
use crate::outbox::lane::LaneId;
use crate::supervise::{self, TaskGroup};
use crate::telemetry::changes;
use crate::telemetry::metrics::Metrics;
use desk::Desk;
use lane::{Ended, Lane};
use monitor::Monitor;
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
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All that was sent is settled and saved.
    Clean,
    /// The grace period was not enough for some lane.
    Unsettled,
    /// A bug, in the task of this name. The other lanes have settled and saved.
    Panicked(String),
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
            monitors.spawn(format!("monitor {}", desk.name()), monitor.run());
            let lane = Lane::new(
                Arc::clone(&self.config),
                outbox.clone(),
                LaneId::FIRST,
                Arc::clone(desk),
                refused,
                stop.clone(),
                Arc::clone(&first_look),
            );
            let (unsettled, closing) = (Arc::clone(&unsettled), Closing(Arc::clone(desk)));
            lanes.spawn(format!("lane {}", desk.name()), async move {
                let _closing = closing;
                unsettled.fetch_or(Box::pin(lane.run()).await == Ended::Unsettled, Ordering::Relaxed);
            });
        }
        match supervise(lanes, monitors, &stop).await {
            Outcome::Clean if unsettled.load(Ordering::Relaxed) => Outcome::Unsettled,
            outcome => outcome,
        }
    }
}

/// Closes the desk of a lane that ends by a panic: nobody is to read that it relays.
struct Closing(Arc<Desk>);

impl Drop for Closing {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.close();
        }
    }
}

/// Waits until all lanes have ended, and ends their monitors then. A panic of any of them is told to the lanes by `stop`.
async fn supervise(mut lanes: TaskGroup, mut monitors: TaskGroup, stop: &CancellationToken) -> Outcome {
    let mut outcome = Outcome::Clean;
    loop {
        let ended = tokio::select! {
            ended = lanes.next_ended() => match ended { Some(ended) => ended, None => break },
            Some(ended) = monitors.next_ended() => ended,
        };
        if let supervise::Ended::Panicked(task, _) = ended {
            changes::task_panicked(&task, &lanes.running());
            stop.cancel();
            if outcome == Outcome::Clean {
                outcome = Outcome::Panicked(task);
            }
        }
    }
    monitors.abort_all().await;
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::time::Duration;

    /// Lanes that settle for a while when they are told to stop, and then say so.
    fn lanes(names: &[&'static str], stop: &CancellationToken) -> (TaskGroup, Arc<Mutex<Vec<&'static str>>>) {
        let (mut group, saved) = (TaskGroup::default(), Arc::new(Mutex::new(Vec::new())));
        for &name in names {
            let (stop, saved) = (stop.clone(), Arc::clone(&saved));
            group.spawn(name, async move {
                stop.cancelled().await;
                tokio::time::sleep(Duration::from_secs(1)).await;
                saved.lock().unwrap().push(name);
            });
        }
        (group, saved)
    }

    async fn broken() {
        tokio::task::yield_now().await;
        panic!("a bug")
    }

    #[tokio::test(start_paused = true)]
    async fn lanes_that_are_told_to_stop_end_well() {
        let stop = CancellationToken::new();
        let (group, saved) = lanes(&["a", "b"], &stop);
        stop.cancel();
        assert_eq!(supervise(group, TaskGroup::default(), &stop).await, Outcome::Clean);
        assert_eq!(saved.lock().unwrap().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn when_a_lane_panics_the_others_save_first() {
        let stop = CancellationToken::new();
        let (mut group, saved) = lanes(&["a", "b"], &stop);
        group.spawn("lane broken/0", broken());
        assert_eq!(supervise(group, TaskGroup::default(), &stop).await, Outcome::Panicked("lane broken/0".to_owned()));
        assert_eq!(saved.lock().unwrap().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn when_a_monitor_panics_all_lanes_save_first() {
        let stop = CancellationToken::new();
        let (group, saved) = lanes(&["a"], &stop);
        let mut monitors = TaskGroup::default();
        monitors.spawn("monitor a/0", std::future::pending());
        monitors.spawn("monitor b/0", broken());
        assert_eq!(supervise(group, monitors, &stop).await, Outcome::Panicked("monitor b/0".to_owned()));
        assert_eq!(*saved.lock().unwrap(), ["a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_of_two_panics_is_named() {
        let stop = CancellationToken::new();
        let mut group = TaskGroup::default();
        let told = stop.clone();
        group.spawn("second", async move {
            told.cancelled().await;
            panic!("a consequence")
        });
        group.spawn("first", broken());
        assert_eq!(supervise(group, TaskGroup::default(), &stop).await, Outcome::Panicked("first".to_owned()));
    }
}
