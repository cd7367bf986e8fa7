//! Ten writers, every kind of transaction, and a relay that is killed again and again.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::{Instant, sleep};

use crate::support::checker::{Checker, Kill};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Place, Role};
use crate::support::relay::Relay;
use crate::support::seed;
use crate::support::writer::{LOCKED, NUMBERED, Plan, Storm};

const NAME: &str = "a_storm_of_writers_and_kills";

/// Few events in flight make small pages, and windows that a kill cuts in the middle.
const IN_FLIGHT: usize = 200;

const PARTITIONS: i32 = 4;

/// A kill, before it is known which events were committed then.
struct Killed {
    place: Place,
    ends: std::collections::HashMap<(String, i32), i64>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_writers_and_kills_loses_nothing() {
    let seed = seed();
    let lasts = Duration::from_secs(std::env::var("OUTBOXD_STORM_SECONDS").map_or(20, |text| text.parse().unwrap()));
    let database = Database::migrated(NAME).await;
    let kafka = Kafka::create(NAME);
    let mut topics = Vec::new();
    for aggregate_type in [LOCKED[0], LOCKED[1], NUMBERED] {
        topics.push(kafka.create_topic(aggregate_type, PARTITIONS).await);
    }
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka)
        .await
        .variable("OUTBOXD__RELAY__IN_FLIGHT__EVENTS", &IN_FLIGHT.to_string());
    relay.start();
    relay.ready().await;

    // when writers write and the relay dies
    let storm = Storm::start(&database, Plan::new(seed, lasts)).await;
    let mut random = StdRng::seed_from_u64(seed);
    let mut killed = Vec::new();
    let end = Instant::now() + lasts;
    while Instant::now() < end {
        sleep(Duration::from_millis(random.random_range(1000..4000))).await; // how long it lives is the fault
        relay.kill().await;
        let ends = kafka.ends(&topics).await;
        killed.push(Killed { place: database.place().await, ends });
        relay.start();
    }
    let tally = storm.stop().await;
    eprintln!("{tally}; {} kills", killed.len());

    // then all that was committed arrives
    let rows = database.committed().await;
    assert_eq!(rows.len(), tally.events, "OUTBOXD_SEED={seed}: the storm does not know what it committed: {tally}");
    let mut kills = Vec::new();
    for Killed { place, ends } in killed {
        kills.push(Kill { ends, in_flight: IN_FLIGHT, ..database.unsettled(&place).await });
    }
    let mut checker = Checker::new(rows);
    let mut reader = kafka.reader(&topics);
    eventually(&format!("OUTBOXD_SEED={seed}: every event is in a topic"), PATIENCE, async || {
        reader.read_on().await.iter().for_each(|record| checker.see(record));
        if checker.missing() == 0 {
            return Ok(());
        }
        let status = relay.status().await.map_or_else(|error| format!("{error:#}"), |status| status.to_string());
        Err(format!("{} events; {}; status: {status}", checker.missing(), checker.verdict(&kills)))
    })
    .await;

    // and the relay ends well, with nothing left to say
    relay.ready().await;
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0), "OUTBOXD_SEED={seed}: SIGTERM");
    let open = database.unsettled(&database.place().await).await.unsettled.len();
    assert_eq!(open, 0, "OUTBOXD_SEED={seed}: events that the last cursor does not settle");

    reader.read_on().await.iter().for_each(|record| checker.see(record));
    let verdict = checker.verdict(&kills);
    eprintln!("{verdict}");
    assert!(verdict.is_sound(), "OUTBOXD_SEED={seed}: {verdict}");
    assert!(verdict.is_tight(), "OUTBOXD_SEED={seed}: more came again than the kills explain: {verdict}");
}
