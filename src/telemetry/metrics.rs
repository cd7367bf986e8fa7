//! Every metric, with its name, unit, labels and help. Raised in `changes.rs` and by the lanes; a label never holds a key or an id.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

type Labels = Vec<(&'static str, String)>;
type Fraction = Gauge<f64, AtomicU64>;

/// All metrics of the process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    events_read: Family<Labels, Counter>,
    events_published: Family<Labels, Counter>,
    events_left_out: Family<Labels, Counter>,
    events_parked: Family<Labels, Counter>,
    events_dead_lettered: Family<Labels, Counter>,
    parked_streams: Family<Labels, Gauge>,
    records_delivered: Family<Labels, Counter>,
    rejections: Family<Labels, Counter>,
    cursor_saves: Family<Labels, Counter>,
    sessions: Family<Labels, Counter>,
    in_flight: Family<Labels, Gauge>,
    backlog: Family<Labels, Fraction>,
    lag: Family<Labels, Fraction>,
    ready: Family<Labels, Gauge>,
    leader: Family<Labels, Gauge>,
    doorbell_asleep: Family<Labels, Gauge>,
    doorbell_rings: Family<Labels, Counter>,
    reloads: Family<Labels, Counter>,
}

/// What a SIGHUP can bring.
const RELOADS: [&str; 3] = ["applied", "refused", "unchanged"];

/// The metrics of one lane, with its labels filled in.
#[derive(Clone, Debug)]
pub struct LaneMetrics {
    /// Events read from the table; more than published after a session that broke.
    pub events_read: Counter,
    /// Events whose records are all acknowledged.
    pub events_published: Counter,
    /// Events that a route leaves out on purpose.
    pub events_left_out: Counter,
    /// Events parked, those that follow a rejected one included.
    pub events_parked: Counter,
    /// Events that the dead-letter topic has.
    pub events_dead_lettered: Counter,
    /// Streams of which events are parked.
    pub parked_streams: Gauge,
    /// Records acknowledged by all in-sync replicas.
    pub records_delivered: Counter,
    /// Saves of the cursor.
    pub cursor_saves: Counter,
    /// Events sent and not settled.
    pub in_flight: Gauge,
    /// Events that wait behind the saved cursor, at least; 10,000 means that many or more, and NaN that nobody can see them.
    pub backlog: Fraction,
    /// Age of the oldest of them, in seconds; NaN as before.
    pub lag: Fraction,
    /// Whether the lane does what it is there for: relays, or stands by.
    pub ready: Gauge,
    /// Whether this relay holds the lane's lease.
    pub leader: Gauge,
    /// Whether the lane sleeps until a writer rings.
    pub doorbell_asleep: Gauge,
    /// Times that a writer woke it.
    pub doorbell_rings: Counter,
    rejections: Family<Labels, Counter>,
    sessions: Family<Labels, Counter>,
    labels: Labels,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("outboxd");
        let info = prometheus_client::metrics::info::Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The running outboxd", info);
        macro_rules! metric {
            ($name:literal, $help:literal) => {{
                let family = Family::default();
                registry.register($name, $help, family.clone());
                family
            }};
        }
        let lag: Family<Labels, Fraction> = Family::default();
        registry.register_with_unit(
            "lag",
            "Age of the oldest event behind the saved cursor, at least",
            Unit::Seconds,
            lag.clone(),
        );
        let reloads: Family<Labels, Counter> = metric!("config_reloads", "Times that the configuration was read again");
        for result in RELOADS {
            drop(reloads.get_or_create(&vec![("result", result.to_owned())])); // an increase is seen from 0 only
        }
        Self {
            lag,
            reloads,
            events_read: metric!("events_read", "Events read from the outbox"),
            events_published: metric!("events_published", "Events whose records are all acknowledged"),
            events_left_out: metric!("events_left_out", "Events that a route leaves out on purpose"),
            events_parked: metric!("events_parked", "Events parked, those that follow a rejected one included"),
            events_dead_lettered: metric!("events_dead_lettered", "Events that the dead-letter topic has"),
            parked_streams: metric!("parked_streams", "Streams of which events are parked"),
            records_delivered: metric!("records_delivered", "Records acknowledged by all in-sync replicas"),
            rejections: metric!("rejections", "Times that an event could not become a record, or was refused by Kafka"),
            cursor_saves: metric!("cursor_saves", "Saves of the cursor"),
            sessions: metric!("sessions_ended", "Times that a lane stopped and went on from the saved cursor"),
            in_flight: metric!("in_flight_events", "Events sent and not settled"),
            backlog: metric!(
                "backlog_events",
                "Events behind the saved cursor, at least; 10000 means that many or more"
            ),
            ready: metric!("ready", "Whether the lane relays or stands by"),
            leader: metric!("lease_held", "Whether this relay holds the lease of the lane"),
            doorbell_asleep: metric!("doorbell_asleep", "Whether the lane sleeps until a writer rings"),
            doorbell_rings: metric!("doorbell_rings", "Times that a writer woke the lane"),
            registry: Arc::new(registry),
        }
    }
}

impl Metrics {
    /// The metrics of one lane.
    pub fn lane(&self, outbox: &str, lane: &str) -> LaneMetrics {
        let labels: Labels = vec![("outbox", outbox.to_owned()), ("lane", lane.to_owned())];
        LaneMetrics {
            events_read: self.events_read.get_or_create_owned(&labels),
            events_published: self.events_published.get_or_create_owned(&labels),
            events_left_out: self.events_left_out.get_or_create_owned(&labels),
            events_parked: self.events_parked.get_or_create_owned(&labels),
            events_dead_lettered: self.events_dead_lettered.get_or_create_owned(&labels),
            parked_streams: self.parked_streams.get_or_create_owned(&labels),
            records_delivered: self.records_delivered.get_or_create_owned(&labels),
            cursor_saves: self.cursor_saves.get_or_create_owned(&labels),
            in_flight: self.in_flight.get_or_create_owned(&labels),
            backlog: self.backlog.get_or_create_owned(&labels),
            lag: self.lag.get_or_create_owned(&labels),
            ready: self.ready.get_or_create_owned(&labels),
            leader: self.leader.get_or_create_owned(&labels),
            doorbell_asleep: self.doorbell_asleep.get_or_create_owned(&labels),
            doorbell_rings: self.doorbell_rings.get_or_create_owned(&labels),
            rejections: self.rejections.clone(),
            sessions: self.sessions.clone(),
            labels,
        }
    }

    /// Forgets a lane that is no longer configured: nobody would change its gauges any more.
    pub fn forget(&self, outbox: &str, lane: &str) {
        let labels: Labels = vec![("outbox", outbox.to_owned()), ("lane", lane.to_owned())];
        let gauges = [&self.parked_streams, &self.in_flight, &self.ready, &self.leader, &self.doorbell_asleep];
        for gauges in gauges {
            gauges.remove(&labels);
        }
        for gauges in [&self.backlog, &self.lag] {
            gauges.remove(&labels);
        }
    }

    /// Counts what a SIGHUP brought.
    pub fn reloaded(&self, result: &str) {
        self.reloads.get_or_create(&vec![("result", result.to_owned())]).inc();
    }

    /// The text that Prometheus scrapes, in the format of `OpenMetrics`.
    pub fn text(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(error) => format!("# {error}\n"),
        }
    }
}

impl LaneMetrics {
    /// Counts a rejection by its code.
    pub fn rejected(&self, reason: &str) {
        self.rejections.get_or_create(&self.with("reason", reason)).inc();
    }

    /// Counts the end of a session by its kind.
    pub fn session_ended(&self, reason: &str) {
        self.sessions.get_or_create(&self.with("reason", reason)).inc();
    }

    fn with(&self, name: &'static str, value: &str) -> Labels {
        let mut labels = self.labels.clone();
        labels.push((name, value.to_owned()));
        labels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_units_are_those_of_prometheus() {
        let metrics = Metrics::default();
        let lane = metrics.lane("shop", "0");
        lane.events_published.inc_by(3);
        lane.lag.set(1.5);
        lane.rejected("no_route");
        let text = metrics.text();
        assert!(text.contains(r#"outboxd_events_published_total{outbox="shop",lane="0"} 3"#), "{text}");
        assert!(text.contains(r#"outboxd_lag_seconds{outbox="shop",lane="0"} 1.5"#), "{text}");
        assert!(text.contains(r#"outboxd_rejections_total{outbox="shop",lane="0",reason="no_route"} 1"#), "{text}");
    }
}
