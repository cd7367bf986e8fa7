//! SIGHUP: another configuration in the same process; a bad one changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{GRACE, lane, logged, records, two, write_orders};
use crate::delivery::{metric, write_numbers};
use crate::support::checker::check;
use crate::support::eventually::{INTERVAL, PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Role};
use crate::support::relay::{Relay, free_address};
use crate::support::servers::Servers;

/// Waits until this many readings ended so.
async fn counted(relay: &Relay, result: &str, count: i32) {
    let name = format!("outboxd_config_reloads_total{{result=\"{result}\"}}");
    eventually(&format!("{count} {result}"), PATIENCE, async || {
        let found = metric(relay, &name).await;
        if found == Some(f64::from(count)) { Ok(()) } else { Err(format!("{found:?}; {}", relay.log())) }
    })
    .await;
}

async fn settled(relay: &Relay, count: i64) {
    lane(relay, &format!("{count} are published"), |lane| lane["published_events"] == count).await;
}

#[tokio::test]
async fn a_bad_configuration_changes_nothing_and_is_told_in_full() {
    const NAME: &str = "a_bad_configuration_changes_nothing";
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    kafka.create_topic("order", 1).await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.start();
    relay.ready().await;
    write_orders(&database, 10).await;
    settled(&relay, 10).await;
    let (process, before) = (relay.process(), lane(&relay, "it relays", |lane| lane["state"] == "relaying").await);

    // when the file is wrong, cannot be read, or says what librdkafka or this machine does not take
    let (good, taken) = (relay.config(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = taken.local_addr().unwrap();
    let wrong = format!("{good}\n[log]\nfilter = \"inof\"\n").replace("[relay]\n", "[relay]\nleese = \"11s\"\n");
    let line = wrong.lines().position(|line| line.starts_with("leese")).unwrap() + 1;
    let leese = format!("line {line}: relay.leese");
    let (key, value) = ("sasl.pasword", "hunter2");
    let property = format!("{good}\n[kafka.properties]\n\"{key}\" = \"{value}\"\n");
    let occupied = good.lines().filter(|line| !line.starts_with("listen")).collect::<Vec<_>>().join("\n");
    let occupied = occupied.replace("[http]", &format!("[http]\nlisten = \"{address}\""));
    for (nth, (text, findings)) in (1..).zip([
        (wrong.as_str(), &[leese.as_str(), "log.filter: found `inof`"][..]),
        ("", &["kafka.brokers", "postgres.url"]),
        (&property, &["sasl.pasword"]),
        (&occupied, &["Address already in use"]),
    ]) {
        relay.reload_text(text).await;
        counted(&relay, "refused", nth).await;
        for finding in findings {
            let lines = logged(&relay, finding).await;
            assert_eq!(lines[0]["level"], "ERROR", "{lines:?}");
        }
    }
    std::fs::remove_file(relay.file()).unwrap();
    relay.hang_up().await;
    counted(&relay, "refused", 5).await;
    assert!(!relay.log().contains(value), "a value is never told");

    // then it goes on undisturbed
    write_orders(&database, 10).await;
    settled(&relay, 20).await;
    let after = lane(&relay, "it relays", |lane| lane["state"] == "relaying").await;
    assert_eq!((process, &before["epoch"]), (relay.process(), &after["epoch"]), "the lane has not been stopped");

    // and what says the same as before, or concerns the log only, disturbs nothing either
    relay.reload_text(&format!("# a comment\n{good}")).await;
    counted(&relay, "unchanged", 1).await;
    let log = |filter: &str| format!("{good}\n[log]\nfilter = \"{filter}\"\nformat = \"json\"\n");
    relay.reload_text(&log("warn")).await;
    counted(&relay, "applied", 1).await;
    logged(&relay, "log.format has changed: it holds from the next start on").await;
    assert!(!relay.log().contains("configuration taken over"), "that is `info`");
    relay.reload_text(&log("info")).await;
    logged(&relay, "configuration taken over").await;
    counted(&relay, "applied", 2).await;
    let after = lane(&relay, "it relays", |lane| lane["state"] == "relaying").await;
    assert_eq!((before["epoch"].clone(), 20), (after["epoch"].clone(), after["published_events"].as_i64().unwrap()));
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_nothing_comes_twice_and_somebody_always_answers() {
    const NAME: &str = "under_load_nothing_comes_twice";
    const ROUNDS: i64 = 4;
    let (database, kafka) = (Arc::new(Database::migrated(NAME).await), Kafka::create(NAME));
    let topic = kafka.create_topic("order", 3).await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("relay.lease", "5m"); // too long to be waited for
    relay.start();
    relay.ready().await;
    let process = relay.process();

    // given writers that never rest
    let rest = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    {
        let (database, rest) = (Arc::clone(&database), Arc::clone(&rest));
        writers.spawn(async move {
            let mut connection = database.connect(Role::App).await;
            let rows = "insert into outbox.events (aggregate_type, aggregate_id, event_type, payload)
                        select 'order', (n % 10)::text, 'Placed', '{}' from generate_series(1, 200) n";
            let mut count = 0;
            while !rest.load(Ordering::Relaxed) {
                crate::support::postgres::say(&mut connection, rows).await;
                count += 200;
            }
            count
        });
    }

    // when the configuration changes again and again, its address with it
    let mut longest = Duration::ZERO;
    for round in 1..=ROUNDS {
        let (old, new) = (relay.listens_at(), free_address().await);
        let epoch = lane(&relay, "it relays", |lane| lane["epoch"].is_i64()).await["epoch"].as_i64().unwrap();
        relay = relay.set("http.listen", new.clone()).set("relay.in_flight", in_flight(1_000 * round));
        let begun = Instant::now();
        relay.reload().await;
        relay.reload().await; // twice in a row is safe
        let (mut published, mut is_new) = (0, false);
        eventually("the new lanes relay", PATIENCE, async || {
            let there = relay.get_at(&new, "/livez").await;
            let alive = match &there {
                Ok(answer) => Ok(answer.status),
                Err(_) if !is_new => match relay.get_at(&old, "/livez").await {
                    Ok(answer) => Ok(answer.status),
                    // the new door is open before the old one is closed
                    Err(_) => relay.get_at(&new, "/livez").await.map(|answer| answer.status),
                },
                Err(error) => panic!("nobody answers any more: {error:#}"),
            };
            assert_eq!(alive.unwrap(), 200);
            is_new |= there.is_ok();
            if !is_new {
                return Err("it listens there not yet".to_owned());
            }
            relay.look_at(&new);
            let status = relay.status().await.unwrap();
            let lane = &status["lanes"][0];
            let now = lane["published_events"].as_i64().unwrap();
            assert!(now >= published, "{now} published, {published} before");
            published = now;
            assert_eq!(
                lane["ready"] == true,
                ["relaying", "standby"].contains(&lane["state"].as_str().unwrap()),
                "{lane}"
            );
            let relays = lane["state"] == "relaying" && lane["epoch"].as_i64() > Some(epoch);
            if relays { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
        longest = longest.max(begun.elapsed());
        counted(&relay, "applied", i32::try_from(round).unwrap()).await;
        eventually("the old door is closed", PATIENCE, async || match relay.get_at(&old, "/livez").await {
            Err(_) => Ok(()),
            Ok(answer) => Err(format!("{answer:?}")),
        })
        .await;
        tokio::time::sleep(INTERVAL * 10).await; // load between two changes
    }
    rest.store(true, Ordering::Relaxed);
    let written: i64 = writers.join_next().await.unwrap().unwrap();

    // then everything is there, once
    assert_eq!(process, relay.process());
    eventually("all is published", PATIENCE, async || {
        let found = records(&kafka, &topic).await;
        if found >= written { Ok(()) } else { Err(format!("{found} of {written}")) }
    })
    .await;
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0));
    let verdict = check(database.committed().await, &kafka.read(&topic).await, &[]);
    eprintln!("{ROUNDS} reloads, the longest took {longest:?}: {verdict}");
    assert!(verdict.is_sound() && verdict.duplicates.count == 0, "{verdict}");
    assert!(!relay.log().contains("waits for its own lease"), "{}", relay.log());
}

fn in_flight(events: i64) -> toml::Value {
    format!("x = {{ events = {events} }}").parse::<toml::Table>().unwrap()["x"].clone()
}

#[tokio::test]
async fn outboxes_come_and_go() {
    const NAME: &str = "outboxes_come_and_go";
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    for topic in ["order", "left", "right"] {
        kafka.create_topic(topic, 1).await;
    }
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.start();
    relay.ready().await;
    write_numbers(&database, "order", 1..=5).await;
    settled(&relay, 5).await;
    relay = relay.set("outbox", two(&kafka));
    relay.reload().await;
    counted(&relay, "applied", 1).await;
    relay.ready().await;
    let status = relay.status().await.unwrap();
    let names: Vec<_> = status["lanes"].as_array().unwrap().iter().map(|lane| lane["outbox"].clone()).collect();
    assert_eq!(names, ["left", "right"]);
    assert_eq!(metric(&relay, r#"outboxd_ready{outbox="default",lane="0"}"#).await, None, "nobody would change it");
    assert_eq!(metric(&relay, r#"outboxd_events_published_total{outbox="default",lane="0"}"#).await, Some(5.0));
    for topic in ["left", "right"] {
        eventually("what was written before is there", PATIENCE, async || {
            let found = records(&kafka, &kafka.topic(topic)).await;
            if found == 5 { Ok(()) } else { Err(found.to_string()) }
        })
        .await;
    }
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_while_kafka_is_away_goes_on_after_the_grace_period() {
    const NAME: &str = "a_change_while_kafka_is_away";
    let servers = Servers::start(&[]).await;
    let database = Database::create_on(servers.postgres(), NAME).await;
    database.migrate().await;
    let kafka = Kafka::create_on(servers.kafka(), NAME);
    let topic = kafka.create_topic("order", 1).await;
    let grace = format!("{}s", GRACE.as_secs());
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("relay.shutdown_grace", grace);
    relay.start();
    relay.ready().await;
    write_orders(&database, 10).await;
    settled(&relay, 10).await;

    // when nothing can be settled
    servers.does("pause", "kafka").await;
    write_orders(&database, 10).await;
    lane(&relay, "ten are in flight", |lane| lane["in_flight_events"] == 10).await;
    let begun = Instant::now();
    relay = relay.set("relay.save_every", "100ms");
    relay.reload().await;
    lane(&relay, "it settles", |lane| lane["state"] == "draining" && lane["ready"] == false).await;
    assert_eq!(relay.get("/livez").await.unwrap().status, 200);
    counted(&relay, "applied", 1).await;
    assert!(begun.elapsed() >= GRACE && begun.elapsed() < GRACE * 2, "{:?}", begun.elapsed());
    logged(&relay, "what was in flight may come twice; going on with the new configuration").await;

    // then the new lanes wait, and go on under the same owner when Kafka is back, without waiting for the lease
    lane(&relay, "it waits", |lane| ["starting", "waiting"].contains(&lane["state"].as_str().unwrap())).await;
    servers.does("resume", "kafka").await;
    settled(&relay, 20).await;
    let all = kafka.read(&topic).await;
    let verdict = check(database.committed().await, &all, &[]);
    eprintln!("a change while Kafka is away: {verdict}");
    assert!(verdict.is_sound() && verdict.duplicates.count <= 10, "{verdict}");
    assert!(!relay.log().contains("\"state\":\"holding\"") && !relay.log().contains("\"state\":\"standby\""));

    // and SIGTERM in the middle of such a change is heeded
    servers.does("pause", "kafka").await;
    write_orders(&database, 10).await;
    lane(&relay, "ten are in flight", |lane| lane["in_flight_events"] == 10).await;
    relay = relay.set("relay.save_every", "200ms");
    let begun = Instant::now();
    relay.reload().await;
    lane(&relay, "it settles", |lane| lane["state"] == "draining").await;
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(1));
    assert!(begun.elapsed() < GRACE * 2, "{:?}", begun.elapsed());
    servers.does("resume", "kafka").await;
}
