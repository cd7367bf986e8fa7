//! Told to stop: in the middle of a full load, while a server is a black hole, and told twice.

use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

use super::{GRACE, lane, write_orders};
use crate::support::checker::check;
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Role};
use crate::support::relay::Relay;
use crate::support::servers::Servers;

/// What an end at once takes.
const AT_ONCE: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_under_full_load_settles_all_and_nothing_comes_twice() {
    const NAME: &str = "a_stop_under_full_load";
    const EVENTS: i64 = 200_000;
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    let topic = kafka.create_topic("order", 3).await;
    // much waits in the producer's queue
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await.set(
        "kafka.properties",
        "\"linger.ms\" = \"1000\"\n\"batch.size\" = \"10000000\"\n\"batch.num.messages\" = \"100000\"\n"
            .parse::<toml::Table>()
            .unwrap(),
    );
    relay.start();
    relay.ready().await;
    write_orders(&database, 100).await;
    lane(&relay, "every partition is known", |lane| lane["published_events"] == 100).await;
    write_orders(&database, EVENTS).await;
    let full =
        lane(&relay, "all that may be is in flight", |lane| lane["in_flight_events"].as_i64() >= Some(15_000)).await;
    let begun = Instant::now();
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0), "{}", relay.log());
    let (took, sent) = (begun.elapsed(), super::records(&kafka, &topic).await);
    assert!(sent < EVENTS, "the end came too late to show anything: {sent}");

    relay.start();
    eventually("the rest is published", PATIENCE, async || {
        let found = super::records(&kafka, &topic).await;
        if found >= 100 + EVENTS { Ok(()) } else { Err(format!("{found}")) }
    })
    .await;
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0));
    let verdict = check(database.committed().await, &kafka.read(&topic).await, &[]);
    eprintln!("stopped with {} in flight and {sent} sent, in {took:?}: {verdict}", full["in_flight_events"]);
    assert!(verdict.is_sound() && verdict.duplicates.count == 0, "{verdict}");
}

/// Servers of its own, and a relay that gives up soon.
async fn alone(name: &str) -> (Servers, Database, Kafka, Relay) {
    let servers = Servers::start(&[]).await;
    let database = Database::create_on(servers.postgres(), name).await;
    database.migrate().await;
    let kafka = Kafka::create_on(servers.kafka(), name);
    kafka.create_topic("order", 1).await;
    let grace = humantime(GRACE);
    let relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("relay.shutdown_grace", grace);
    (servers, database, kafka, relay)
}

fn humantime(time: Duration) -> String {
    format!("{}ms", time.as_millis())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_delays_no_end() {
    let (servers, database, _kafka, mut relay) = alone("a_black_hole_delays_no_end").await;

    // when the first question to the cluster is under way
    servers.does("pause", "kafka").await;
    relay.start();
    lane(&relay, "it has begun", |lane| lane["state"] == "starting").await;
    let begun = Instant::now();
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0), "nothing was in flight");
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());

    // when events are in flight
    servers.does("resume", "kafka").await;
    relay.start();
    relay.ready().await;
    write_orders(&database, 10).await;
    lane(&relay, "ten are published", |lane| lane["published_events"] == 10).await;
    servers.does("pause", "kafka").await;
    write_orders(&database, 10).await;
    lane(&relay, "ten are in flight", |lane| lane["in_flight_events"] == 10).await;
    let begun = Instant::now();
    relay.terminate().await;
    lane(&relay, "it settles", |lane| lane["state"] == "draining" && lane["ready"] == false).await;
    assert_eq!(relay.get("/livez").await.unwrap().status, 200);
    assert_eq!(relay.exit_code().await, Some(1), "the grace period was not enough");
    let took = begun.elapsed();
    assert!(took >= GRACE && took < GRACE + AT_ONCE, "{took:?}");

    // when a second signal follows the first one
    servers.does("resume", "kafka").await;
    relay.start();
    relay.ready().await;
    lane(&relay, "they are published", |lane| lane["published_events"] == 10).await;
    servers.does("pause", "kafka").await;
    write_orders(&database, 10).await;
    lane(&relay, "ten are in flight", |lane| lane["in_flight_events"] == 10).await;
    relay.terminate().await;
    lane(&relay, "it settles", |lane| lane["state"] == "draining").await;
    let begun = Instant::now();
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(1));
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    servers.does("resume", "kafka").await;
}

/// `outboxd run 2>&1 | collector`, and the collector dies.
#[tokio::test]
async fn a_log_that_nobody_takes_is_no_reason_to_end() {
    const NAME: &str = "a_log_that_nobody_takes";
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    let relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.command(&["config", "show"]).await; // writes the file
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_outboxd"));
    command.arg("--config").arg(relay.file()).arg("run").stdout(Stdio::null()).stderr(writer);
    let mut child = command.spawn().unwrap();
    let listens = eventually("it relays", Duration::from_secs(20), async || {
        if let Some(ended) = child.try_wait().unwrap() {
            return Ok(Some(ended)); // told below
        }
        match relay.get("/readyz").await {
            Ok(answer) if answer.status == 200 => Ok(None),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(listens, None, "it ended by itself");
}
