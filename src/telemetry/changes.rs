//! One function per change of state: one log line, said once, with the reason and what happens next. Never a payload, key or secret.

use super::metrics::Metrics;
use tracing::{error, info, warn};

/// How much a change of a lane's state matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// As it should be.
    Good,
    /// Not making progress, and expected to go on by itself.
    Waiting,
    /// Not making progress until somebody acts.
    NeedsHelp,
}

/// A lane is in another state than before.
pub fn lane_state(outbox: &str, lane: &str, state: &str, weight: Weight, reason: Option<&str>, hint: Option<&str>) {
    match weight {
        Weight::Good => info!(outbox, lane, state, reason, "lane {state}"),
        Weight::Waiting => warn!(outbox, lane, state, reason, hint, "lane {state}"),
        Weight::NeedsHelp => error!(outbox, lane, state, reason, hint, "lane {state}"),
    }
}

/// A task has ended by a panic: the process ends, after these have stopped in order.
pub fn task_panicked(task: &str, running: &[&str]) {
    let next = "ending with exit code 70, after the lanes that still run have settled and saved";
    error!(task, running = running.join(", "), next, "task ended by a panic");
}

/// A task has ended that nobody told to: the process ends, after the lanes have stopped in order.
pub fn task_ended(task: &str) {
    error!(
        task,
        next = "ending with exit code 70, after the lanes have settled and saved",
        "task ended by itself: a bug"
    );
}

/// The process was told to read its configuration again.
pub fn reload_refused(file: &str, findings: &[String], metrics: &Metrics) {
    for finding in findings {
        error!(file, finding, "configuration not taken over");
    }
    warn!(
        file,
        findings = findings.len(),
        "configuration refused: going on with the one before; correct it and send SIGHUP again"
    );
    metrics.reloaded("refused");
}

/// The configuration says what it said before.
pub fn reload_unchanged(file: &str, metrics: &Metrics) {
    info!(file, "configuration read again: nothing has changed");
    metrics.reloaded("unchanged");
}

/// Another configuration holds, and the lanes need not be stopped for it.
pub fn reload_applied(file: &str, metrics: &Metrics) {
    info!(file, "configuration taken over");
    metrics.reloaded("applied");
}

/// Another configuration holds for the lanes that start now.
pub fn reload_begun(file: &str) {
    info!(file, "configuration read again: settling what is in flight, then going on with it");
}

/// The lanes of the configuration before could not settle all.
pub fn reload_unsettled() {
    warn!(
        "the grace period was not enough: what was in flight may come twice; going on with the new configuration from the saved cursors"
    );
}

/// A setting of the log that holds from the next start on.
pub fn log_format_later() {
    warn!("log.format has changed: it holds from the next start on");
}

/// A session ended and the lane goes on from the saved cursor.
pub fn session_ended(outbox: &str, lane: &str, reason: &str, settled_events: u64, unsettled_events: usize) {
    info!(outbox, lane, reason, settled_events, unsettled_events, "session ended, going on from the saved cursor");
}

/// The lease was taken.
pub fn lease_acquired(outbox: &str, lane: &str, epoch: i64, cursor: &str) {
    info!(outbox, lane, epoch, cursor, "lease acquired");
}

/// The cursor of an outbox was made.
pub fn cursor_begun(outbox: &str, lane: &str, start: &str) {
    info!(outbox, lane, start, "first cursor made");
}

/// The database is reached at another place than where the cursor was saved.
pub fn moved(outbox: &str, lane: &str, what: &str) {
    warn!(outbox, lane, "{what}");
}

/// A transaction holds its own events back for long.
pub fn holder(outbox: &str, transaction: &str, age_seconds: f64, hint: &str) {
    let age_seconds = age_seconds.round();
    warn!(outbox, transaction, age_seconds, hint, "open transaction: its own events wait, no others");
}

/// A standing guard found something that does not stop the lane.
pub fn finding(outbox: &str, message: &str, hint: Option<&str>) {
    warn!(outbox, hint, "{message}");
}

/// A topic has got more partitions, or was made again.
pub fn partitions_changed(outbox: &str, topic: &str) {
    let next = "keys lie in other partitions from now on: the order of a stream does not hold across the change";
    warn!(outbox, topic, next, "topic has another number of partitions");
}

/// A stream is parked, because of this event of it.
pub fn parked(outbox: &str, lane: &str, event: &dyn std::fmt::Display, reason: &str) {
    let next = "its stream waits, others go on; see: outboxd parked list";
    warn!(outbox, lane, event = %event, reason, next, "event parked");
}

/// A parked event was sent again and refused again: its stream stands again.
pub fn refused_again(outbox: &str, lane: &str, event: &dyn std::fmt::Display, reason: &str) {
    warn!(outbox, lane, event = %event, reason, "parked event refused again, its stream waits");
}

/// An event went to the dead-letter topic.
pub fn dead_lettered(outbox: &str, lane: &str, event: &dyn std::fmt::Display) {
    info!(outbox, lane, event = %event, "event sent to the dead-letter topic, its stream goes on without it");
}

/// Somebody has decided: these streams that were parked are sent again, and of these some events are given up.
pub fn decided(outbox: &str, lane: &str, released: usize, shortened: usize) {
    if released > 0 {
        info!(outbox, lane, streams = released, "parked streams are sent again");
    }
    if shortened > 0 {
        info!(outbox, lane, streams = shortened, "parked events are given up");
    }
}

/// The doorbell is heard: the lane may sleep when there is nothing to do.
pub fn doorbell_heard(outbox: &str, lane: &str) {
    info!(outbox, lane, "doorbell heard");
}

/// Nobody would hear the doorbell.
pub fn doorbell_away(outbox: &str, lane: &str, reason: &str, hint: Option<&str>, next: &str) {
    warn!(outbox, lane, reason, hint, next, "doorbell away");
}
