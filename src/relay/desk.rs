//! Where a lane keeps its status, its metrics and its heartbeat. Written by the lane and its monitor, read by `http`.

use super::status::{DoorbellState, LaneState, LaneStatus};
use crate::source::poll::backlog::Backlog;
use crate::telemetry::changes;
use crate::telemetry::metrics::LaneMetrics;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// See the module.
#[derive(Debug)]
pub struct Desk {
    status: watch::Sender<LaneStatus>,
    /// The lane's metrics.
    pub metrics: LaneMetrics,
    outbox: String,
    lane: String,
    started: Instant,
    /// Milliseconds after `started` at which the loop last turned.
    beat: AtomicU64,
}

impl Desk {
    /// The desk of a lane that has not begun.
    pub fn new(outbox: &str, lane: i16, metrics: LaneMetrics) -> Self {
        let published_events = metrics.events_published.get(); // a lane of the configuration before this one may have begun
        let (status, _) = watch::channel(LaneStatus { published_events, ..LaneStatus::new(outbox, lane) });
        Self {
            status,
            metrics,
            outbox: outbox.to_owned(),
            lane: lane.to_string(),
            started: Instant::now(),
            beat: AtomicU64::new(0),
        }
    }

    /// Name of the outbox.
    pub fn outbox(&self) -> &str {
        &self.outbox
    }

    /// Number of the lane, in text.
    pub fn lane(&self) -> &str {
        &self.lane
    }

    /// Outbox and lane, for people.
    pub fn name(&self) -> String {
        format!("{}/{}", self.outbox, self.lane)
    }

    /// The status now.
    pub fn status(&self) -> LaneStatus {
        self.status.borrow().clone()
    }

    /// Notes that the loop turns.
    pub fn beat(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.beat.store(millis, Ordering::Relaxed);
    }

    /// For how long the loop has not turned.
    pub fn silence(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.beat.load(Ordering::Relaxed)))
    }

    /// Changes the state, and says so once if it is another state, or another reason for one that waits.
    pub fn enter(&self, state: LaneState, reason: Option<&str>, hint: Option<&str>) {
        let changed = self.status.send_if_modified(|status| {
            let changed = status.state != state || status.waits_for.as_deref() != reason;
            status.state = state;
            status.ready = state.is_ready();
            status.waits_for = reason.map(str::to_owned);
            status.hint = hint.map(str::to_owned);
            changed
        });
        self.metrics.ready.set(i64::from(state.is_ready()));
        if changed {
            changes::lane_state(&self.outbox, &self.lane, state.name(), state.weight(), reason, hint);
        }
    }

    /// Says of a lane that cannot do so itself that it has ended.
    pub fn close(&self) {
        self.enter(LaneState::Stopped, Some("ended by a panic"), None);
        self.metrics.leader.set(0);
        self.note(|status| status.epoch = None);
    }

    /// Changes other fields of the status.
    pub fn note(&self, change: impl FnOnce(&mut LaneStatus)) {
        self.status.send_modify(change);
    }

    /// Says how the doorbell is, and why nobody would hear it. Returns how it was; `None`: there is none, or nobody reads.
    pub fn doorbell(&self, state: Option<DoorbellState>, trouble: Option<String>) -> Option<DoorbellState> {
        self.metrics.doorbell_asleep.set(i64::from(state == Some(DoorbellState::Asleep)));
        let mut before = None;
        self.note(|status| {
            before = std::mem::replace(&mut status.doorbell, state);
            status.doorbell_trouble = trouble;
        });
        before
    }

    /// Takes over what was seen of the backlog; `None` if it cannot be seen: then nobody may believe what was seen before.
    pub fn look(&self, backlog: Option<Backlog>) {
        #[expect(clippy::cast_precision_loss, reason = "counting ends at 10,000")]
        let events = backlog.map_or(f64::NAN, |seen| seen.events as f64);
        self.metrics.backlog.set(events);
        self.metrics.lag.set(backlog.map_or(f64::NAN, |seen| seen.oldest_seconds));
        self.note(|status| status.look(backlog));
    }
}
