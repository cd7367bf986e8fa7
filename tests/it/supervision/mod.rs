//! The process and its parts: how it takes another configuration, how it stops, and what it does about a bug of its own.

mod ends;
mod panics;
mod reload;

use std::time::Duration;

use crate::delivery::{outboxes, write};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::Database;
use crate::support::relay::Relay;

/// How long a black hole is waited for when the process stops.
const GRACE: Duration = Duration::from_secs(3);

/// Two outboxes over one table, each with a topic of its own for events of the type `order`.
fn two(kafka: &Kafka) -> toml::Value {
    let outbox = |name: &str| {
        format!(
            "[[outbox]]\nname = \"{name}\"\nstart = \"earliest\"\n[[outbox.route]]\ntopic = \"{}\"\n",
            kafka.topic(name)
        )
    };
    outboxes(&(outbox("left") + &outbox("right")))
}

/// Commits this many events in ten streams; their numbers are their ids.
async fn write_orders(database: &Database, count: i64) {
    let columns = "aggregate_type, aggregate_id, event_type, payload";
    let rows = format!("select 'order', (n % 10)::text, 'Placed', '{{}}' from generate_series(1, {count}) n");
    write(database, &format!("insert into outbox.events ({columns}) {rows}")).await;
}

/// Records in a topic.
async fn records(kafka: &Kafka, topic: &str) -> i64 {
    kafka.ends(&[topic]).await.values().sum()
}

/// Waits until a field of the status of the first lane is as wanted.
async fn lane(relay: &Relay, what: &str, is_so: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
    eventually(what, PATIENCE, async || {
        let status = relay.status().await.map_err(|error| format!("{error:#}"))?;
        let lane = &status["lanes"][0];
        if is_so(lane) { Ok(lane.clone()) } else { Err(status.to_string()) }
    })
    .await
}

/// Waits until the log says something, and returns the lines that do.
async fn logged(relay: &Relay, words: &str) -> Vec<serde_json::Value> {
    eventually(&format!("the log says `{words}`"), PATIENCE, async || {
        let lines: Vec<_> = relay.log().lines().filter(|line| line.contains(words)).map(str::to_owned).collect();
        if lines.is_empty() { Err(relay.log()) } else { Ok(lines) }
    })
    .await
    .iter()
    .map(|line| serde_json::from_str(line).unwrap())
    .collect()
}
