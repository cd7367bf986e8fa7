//! What a lane is doing and why it is not getting on, for `/status`, `/readyz` and the log.

use crate::source::poll::backlog::Backlog;
use crate::telemetry::changes::Weight;
use serde::{Deserialize, Serialize};

/// What a lane is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LaneState {
    /// Connecting, for the first time or again.
    Starting,
    /// A server is away or refuses us; tried again for ever.
    Waiting,
    /// A guard forbids reading.
    Refused,
    /// Another relay holds the lease; this one takes over when that one is gone.
    Standby,
    /// The lease was taken from a relay that vanished: waiting until nothing of it can be under way.
    Holding,
    /// Reading and publishing, or idle.
    Relaying,
    /// Standing at an event that cannot be published.
    Halted,
    /// Stopping: settling what is in flight.
    Draining,
    /// Ended.
    Stopped,
}

impl LaneState {
    /// As in JSON and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Waiting => "waiting",
            Self::Refused => "refused",
            Self::Standby => "standby",
            Self::Holding => "holding",
            Self::Relaying => "relaying",
            Self::Halted => "halted",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        }
    }

    /// Whether the lane does what it is there for.
    pub fn is_ready(self) -> bool {
        matches!(self, Self::Relaying | Self::Standby)
    }

    /// How much it matters to an operator.
    pub fn weight(self) -> Weight {
        match self {
            Self::Starting | Self::Standby | Self::Relaying | Self::Draining | Self::Stopped => Weight::Good,
            Self::Waiting | Self::Holding => Weight::Waiting,
            Self::Refused | Self::Halted => Weight::NeedsHelp,
        }
    }
}

/// How a lane with a doorbell waits for events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DoorbellState {
    /// Nobody would hear it: polling.
    Away,
    /// There is traffic, or was just now: polling.
    Awake,
    /// Asleep until a writer rings.
    Asleep,
}

impl DoorbellState {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Away => "away, polling",
            Self::Awake => "awake, polling",
            Self::Asleep => "asleep until a writer rings",
        }
    }
}

/// Everything that can be said of a lane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaneStatus {
    /// Name of the outbox.
    pub outbox: String,
    /// Number of the lane.
    pub lane: i16,
    /// What it is doing.
    pub state: LaneState,
    /// Whether it does what it is there for.
    pub ready: bool,
    /// What it waits for, if it does.
    pub waits_for: Option<String>,
    /// What to do about that.
    pub hint: Option<String>,
    /// What ended the last session that broke.
    pub last_error: Option<String>,
    /// Number of the lease, while it is held.
    pub epoch: Option<i64>,
    /// The position up to which all is settled: S, and T and after inside a large window.
    pub cursor: Option<String>,
    /// Events whose records Kafka has acknowledged since the process started.
    pub published_events: u64,
    /// Events sent and not settled.
    pub in_flight_events: usize,
    /// Streams of which events are parked. `None` until the lane has looked.
    pub parked_streams: Option<usize>,
    /// Events behind the saved cursor, at least; 10,000 means that many or more. `None` until it was looked at.
    pub lag_events: Option<i64>,
    /// Age of the oldest event behind the saved cursor, at least.
    pub lag_seconds: Option<f64>,
    /// How the doorbell is; `None` without one, or while this relay does not read.
    pub doorbell: Option<DoorbellState>,
    /// Why nobody would hear it, and what to do.
    pub doorbell_trouble: Option<String>,
    /// Transactions that have been open for long: their own events wait.
    pub open_transactions: Vec<String>,
}

impl LaneStatus {
    /// Of a lane that has not begun.
    pub fn new(outbox: &str, lane: i16) -> Self {
        Self {
            outbox: outbox.to_owned(),
            lane,
            state: LaneState::Starting,
            ready: false,
            waits_for: None,
            hint: None,
            last_error: None,
            epoch: None,
            cursor: None,
            published_events: 0,
            in_flight_events: 0,
            parked_streams: None,
            lag_events: None,
            lag_seconds: None,
            doorbell: None,
            doorbell_trouble: None,
            open_transactions: Vec::new(),
        }
    }

    /// Takes over what was seen of the backlog.
    pub fn look(&mut self, backlog: Option<Backlog>) {
        self.lag_events = backlog.map(|seen| seen.events);
        self.lag_seconds = backlog.map(|seen| seen.oldest_seconds);
    }
}
