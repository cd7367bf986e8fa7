//! A server goes away while events flow, and comes back: the relay goes on by itself, and nothing is lost.

use std::time::Duration;

use tokio::time::Instant;

use super::scene::is;
use crate::delivery::{arrive, numbers, values, write, write_numbers};
use crate::support::checker::{Checker, Record};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Role};
use crate::support::relay::Relay;
use crate::support::seed;
use crate::support::servers::Servers;
use crate::support::writer::{LOCKED, NUMBERED, Plan, Storm};

async fn a_server_goes_away(name: &str, server: &str, verb: &str) {
    let seed = seed();
    let servers = Servers::start(&[]).await;
    let database = Database::create_on(servers.postgres(), name).await;
    database.migrate().await;
    let kafka = Kafka::create_on(servers.kafka(), name);
    let mut topics = Vec::new();
    for aggregate_type in [LOCKED[0], LOCKED[1], NUMBERED] {
        topics.push(kafka.create_topic(aggregate_type, 3).await);
    }
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.start();
    relay.ready().await;

    // when the server goes in the middle of a storm, and comes back
    let plan = Plan { events_per_second: 500, ..Plan::new(seed, Duration::from_secs(8)) };
    let storm = Storm::start(&database, plan).await;
    storm.has_committed(300).await;
    servers.does(verb, server).await;
    is(&relay, "waiting").await;
    let why = relay.get("/readyz").await.unwrap();
    assert_eq!(why.status, 503, "{why:?}");
    assert_eq!(relay.get("/livez").await.unwrap().status, 200, "a server that is away is no reason to be restarted");
    servers.does("start", server).await;
    let tally = storm.stop().await;
    eprintln!("OUTBOXD_SEED={seed}: {verb} of {server}: {tally}");

    // then the same process goes on, and all arrives in order
    let mut checker = Checker::new(database.committed().await);
    let mut reader = kafka.reader(&topics);
    eventually(&format!("OUTBOXD_SEED={seed}: every event is in a topic"), PATIENCE, async || {
        reader.read_on().await.iter().for_each(|record| checker.see(record));
        if checker.missing() == 0 { Ok(()) } else { Err(checker.verdict(&[]).to_string()) }
    })
    .await;
    relay.ready().await;
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0), "OUTBOXD_SEED={seed}: SIGTERM");
    reader.read_on().await.iter().for_each(|record| checker.see(record));
    let verdict = checker.verdict(&[]);
    assert!(verdict.is_sound(), "OUTBOXD_SEED={seed}: {verdict}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_kafka_is_waited_for() {
    a_server_goes_away("a_stopped_kafka_is_waited_for", "kafka", "stop").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_kafka_is_waited_for() {
    a_server_goes_away("a_killed_kafka_is_waited_for", "kafka", "kill").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_postgres_is_waited_for() {
    a_server_goes_away("a_stopped_postgres_is_waited_for", "postgres", "stop").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_postgres_is_waited_for() {
    a_server_goes_away("a_killed_postgres_is_waited_for", "postgres", "kill").await;
}

/// The more topics an answer tells of, the more often a client of librdkafka looks for no broker after it.
const TOPICS: usize = 100;

/// A broker that was frozen, or is isolated, is asked for topics while the cluster does not list it. Here that lasts for longer.
/// A client may take it for gone then, and find it no more; the lane notices, whichever of its clients it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_was_not_listed_is_found_again() {
    let name = "a_broker_that_was_not_listed_is_found_again";
    let servers = Servers::start(&["--only", "kafka"]).await;
    let database = Database::migrated(name).await;
    let kafka = Kafka::create_on(servers.kafka(), name);
    for topic in 1..=TOPICS {
        kafka.create_topic(&format!("t{topic}"), 1).await;
    }
    let asks_often = ("topic.metadata.refresh.interval.ms".to_owned(), toml::Value::from("200"));
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka)
        .await
        .set("kafka.properties", toml::Table::from_iter([asks_often]));
    relay.start();
    relay.ready().await;
    let events = format!(
        "insert into outbox.events (aggregate_type, aggregate_id, event_type, payload)
         select 't' || n, n::text, 'Written', 'true' from generate_series(1, {TOPICS}) n"
    );
    write(&database, &events).await; // each topic is known
    let published = async |count: usize| {
        eventually(&format!("{count} events are published"), PATIENCE, async || {
            let status = relay.status().await.map_err(|error| format!("{error:#}"))?;
            let is_so = status["lanes"][0]["published_events"].as_u64() >= Some(count as u64);
            if is_so { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
    };
    published(TOPICS).await;

    for round in 1..=2 {
        kafka.unregister_broker().await;
        write(&database, &events).await;
        is(&relay, "waiting").await;
        servers.does("kill", "kafka").await;
        servers.does("start", "kafka").await;
        let back = Instant::now();
        published((round + 1) * TOPICS).await;
        eprintln!("round {round}: published {:?} after the broker had registered again", back.elapsed());
    }
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0), "SIGTERM");
}

/// What came, in the order in which it came first: when a session ends some may come again.
fn once(records: &[Record]) -> Vec<String> {
    let mut seen = Vec::new();
    for value in values(records) {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen
}

/// In most of them the other cluster takes records before it is asked who it is.
const ROUNDS: usize = 3;

/// Another cluster answers at the same address while records are on their way. What it takes counts for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_cluster_takes_is_not_delivered() {
    const NAME: &str = "what_another_cluster_takes";
    let (servers, mut proxy) = Servers::behind_proxy().await;
    let port = proxy.address().port().to_string();
    let others = Servers::start(&["--only", "kafka", "--advertise", &port]).await;
    let database = Database::migrated(NAME).await;
    let kafka = Kafka::create_on(servers.kafka(), NAME);
    let other = kafka.on(others.kafka());
    let topic = kafka.create_topic("order", 1).await;
    other.create_topic("order", 1).await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.configure("kafka.brokers", proxy.address().to_string());
    relay.start();
    write_numbers(&database, "order", 1..=3).await;
    arrive(&mut kafka.reader(&[&topic]), 3, &relay).await;

    let mut written = 3_i32;
    for _ in 1..=ROUNDS {
        // when records wait for a broker, and one of another cluster comes
        proxy.refuse().await;
        proxy.reset();
        write_numbers(&database, "order", written + 1..=written + 6).await;
        written += 6;
        is(&relay, "waiting").await;
        proxy.forwards_to(others.proxied());
        proxy.welcome().await;
        let seen = is(&relay, "refused").await;
        let says_so = |reason: &String| reason.contains("cursor belongs to Kafka cluster");
        assert!(seen.waits_for.as_ref().is_some_and(says_so), "{seen}");
        eventually("nobody says how much waits", PATIENCE, async || {
            let seen = is(&relay, "refused").await;
            if seen.lag_seconds.is_none() { Ok(()) } else { Err(format!("{:?}", seen.lag_seconds)) }
        })
        .await;

        // then all of them are in the first, once it is back
        proxy.forwards_to(servers.proxied());
        proxy.reset();
        eventually(&format!("{written} are there"), PATIENCE, async || {
            let came = once(&kafka.read(&topic).await);
            if came == numbers(1..=written) { Ok(()) } else { Err(format!("{came:?}; {:?}", relay.status().await)) }
        })
        .await;
        is(&relay, "relaying").await;
    }
    assert!(!other.read(&topic).await.is_empty(), "the other one has taken some");
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0), "SIGTERM");
}

/// A first record in a partition travels alone, and what is delivered while nobody knows whether it is the same cluster is not believed yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_first_record_goes_on_after_a_short_outage() {
    const NAME: &str = "what_waits_for_a_first_record";
    const PARTITIONS: i32 = 50;
    let (servers, proxy) = Servers::behind_proxy().await;
    let database = Database::migrated(NAME).await;
    let kafka = Kafka::create_on(servers.kafka(), NAME);
    let topic = kafka.create_topic("order", PARTITIONS).await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.configure("kafka.brokers", proxy.address().to_string());
    relay.start();
    let both_go = async |round: i64| {
        let two = format!(
            "insert into outbox.events (aggregate_type, aggregate_id, event_type)
             select 'order', 'stream {round}', 'Placed' from generate_series(1, 2)"
        );
        write(&database, &two).await;
        eventually("both are there", PATIENCE, async || {
            let ends: i64 = kafka.ends(&[&topic]).await.values().sum();
            if ends == 2 * round { Ok(()) } else { Err(format!("{ends}; {:?}", relay.status().await)) }
        })
        .await;
    };
    both_go(1).await;
    proxy.reset();
    is(&relay, "waiting").await;
    both_go(2).await;
    is(&relay, "relaying").await;
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0), "SIGTERM");
}
