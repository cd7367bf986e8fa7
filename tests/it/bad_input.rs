//! What is wrong outside the daemon: a wrong address, password or right, a missing topic, an event that cannot be sent.
//!
//! Each ends in a clear message, said once, and nothing is lost: when the cause is gone the same daemon goes on by
//! itself, or after a restart where only another configuration helps.

use std::collections::HashMap;
use std::process::Command;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use toml::Table;

use crate::delivery::{arrive, metric, numbers, outboxes, values, write, write_numbers};
use crate::support::checker::Record;
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Role, connect, say};
use crate::support::proxy::Proxy;
use crate::support::relay::{Relay, outboxd};
use crate::support::server;
use crate::support::servers::Servers;

/// More lines than a daemon writes that starts, waits for one thing and goes on; fewer than one per try.
const FEW_LINES: usize = 25;

/// Waits until a lane is in a state and its reason and hint say all of `words`; meanwhile `/readyz` says the same with 503,
/// and `/livez` 200.
async fn says(relay: &Relay, outbox: &str, state: &str, words: &[&str]) -> String {
    eventually(&format!("{outbox} is {state} and says {words:?}"), PATIENCE, async || {
        let status = relay.status().await.map_err(|error| format!("{error:#}"))?;
        let lanes = status["lanes"].as_array().unwrap();
        let lane = lanes.iter().find(|lane| lane["outbox"] == outbox).expect("a lane of this outbox");
        let (reason, hint) = (lane["waits_for"].as_str().unwrap_or(""), lane["hint"].as_str().unwrap_or(""));
        let missing: Vec<_> = words.iter().filter(|word| !format!("{reason}; {hint}").contains(**word)).collect();
        if lane["state"] != state || !missing.is_empty() {
            return Err(format!("{missing:?} in {status}"));
        }
        let ready = relay.get("/readyz").await.map_err(|error| format!("{error:#}"))?;
        if ready.status != 503 || !ready.body.contains(&format!("lane {outbox}/0 {state}: {reason}")) {
            return Err(format!("/readyz says {} {}", ready.status, ready.body));
        }
        assert_eq!(relay.get("/livez").await.unwrap().status, 200, "alive, whatever the servers do");
        Ok(reason.to_owned())
    })
    .await
}

/// Waits until a counter says so. With `reason` and the like: `sessions_ended`, `reason="kafka"`.
async fn counted(relay: &Relay, name: &str, outbox: &str, reason: &str, least: f64) {
    let name = format!("outboxd_{name}_total{{outbox=\"{outbox}\",lane=\"0\",reason=\"{reason}\"}}");
    eventually(&format!("{name} is {least}"), PATIENCE, async || {
        let found = metric(relay, &name).await;
        if found >= Some(least) { Ok(()) } else { Err(format!("{found:?}; {:?}", relay.status().await)) }
    })
    .await;
}

/// The lines of the log in which a lane enters a state.
fn entered(relay: &Relay, outbox: &str, state: &str) -> Vec<Value> {
    let log = relay.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["outbox"] == outbox && line["state"] == state).collect()
}

/// The log says once that the lane waits, and why, and does not repeat itself with every try.
fn said_once(relay: &Relay, outbox: &str, state: &str, reason: &str) {
    let lines = entered(relay, outbox, state);
    assert!(matches!(&lines[..], [line] if line["reason"] == reason), "expected once {reason}: {lines:#?}");
    let log = relay.log();
    assert!(log.lines().count() <= FEW_LINES, "{} lines:\n{log}", log.lines().count());
}

async fn stop(relay: &mut Relay) {
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0), "SIGTERM");
}

/// A database with three events, and a topic for them.
async fn given(test: &str) -> (Database, Kafka, String) {
    let (database, kafka) = (Database::migrated(test).await, Kafka::create(test));
    write_numbers(&database, "order", 1..=3).await;
    let topic = kafka.create_topic("order", 1).await;
    (database, kafka, topic)
}

/// All three events are there, once and in order.
async fn delivers(relay: &mut Relay, kafka: &Kafka, topic: &str) {
    let mut reader = kafka.reader(&[topic]);
    assert_eq!(values(&arrive(&mut reader, 3, relay).await), numbers(1..=3));
    relay.ready().await;
    stop(relay).await;
    assert_eq!(reader.read_on().await.len(), 0, "more came than was written");
}

// ---- Postgres

#[tokio::test]
async fn a_port_where_no_postgres_listens_is_said_and_waited_for() {
    let (database, kafka, topic) = given("a_port_where_no_postgres_listens").await;
    let (mut proxy, url) = Proxy::before(&database.url(Role::Relay)).await;
    proxy.refuse().await;
    let mut relay = Relay::new(&url, &kafka).await;
    relay.start();
    let reason = says(&relay, "default", "waiting", &[&proxy.address().to_string(), "Connection refused"]).await;
    counted(&relay, "sessions_ended", "default", "postgres", 3.0).await;
    proxy.welcome().await;
    delivers(&mut relay, &kafka, &topic).await;
    said_once(&relay, "default", "waiting", &reason);
}

#[tokio::test]
async fn a_database_that_is_not_there_is_said_and_waited_for() {
    let (database, kafka, topic) = given("a_database_that_is_not_there").await;
    let mut admin = connect(&database.url_elsewhere(Role::Admin)).await;
    let rename = async |admin: &mut _, from: &str, to: &str| {
        eventually("nobody is in the database", PATIENCE, async || {
            let rename = format!("alter database {from} rename to {to}");
            sqlx::raw_sql(sqlx::AssertSqlSafe(rename)).execute(&mut *admin).await.map_err(|error| error.to_string())
        })
        .await;
    };
    let (name, away) = (database.name().to_owned(), format!("{}_away", database.name()));
    rename(&mut admin, &name, &away).await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.start();
    let words = [&format!("database \"{name}\" does not exist"), "check the name of the database in `postgres.url`"];
    let reason = says(&relay, "default", "waiting", &words).await;
    counted(&relay, "sessions_ended", "default", "postgres", 2.0).await;
    rename(&mut admin, &away, &name).await;
    delivers(&mut relay, &kafka, &topic).await;
    said_once(&relay, "default", "waiting", &reason);
}

#[tokio::test]
async fn a_host_that_nobody_knows_is_said() {
    let (database, kafka, topic) = given("a_host_that_nobody_knows").await;
    let mut relay = Relay::new("postgres://outboxd@postgres.invalid/shop?sslmode=disable", &kafka).await;
    relay.start();
    says(&relay, "default", "waiting", &["postgres.invalid:5432"]).await;
    stop(&mut relay).await;
    relay = relay.set("postgres.url", database.url(Role::Relay));
    relay.start();
    delivers(&mut relay, &kafka, &topic).await;
}

#[tokio::test]
async fn a_wrong_password_is_said_without_it_and_waited_for() {
    const NAME: &str = "a_wrong_password";
    let servers = Servers::start(&["--only", "postgres"]).await; // whose rules of access may be changed
    let database = Database::create_on(servers.postgres(), NAME).await;
    let kafka = Kafka::create(NAME);
    let topic = kafka.create_topic("order", 1).await;
    database.migrate().await;
    write_numbers(&database, "order", 1..=3).await;
    let mut url = url::Url::parse(&database.url(Role::Relay)).unwrap();
    let role = url.username().to_owned();
    let mut admin = database.connect(Role::Admin).await;
    say(&mut admin, &format!("alter role {role} password 'the-right-one'")).await;
    let file: String = sqlx::query_scalar("show hba_file").fetch_one(&mut admin).await.unwrap();
    let rules = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("host all {role} 127.0.0.1/32 scram-sha-256\n{rules}")).unwrap();
    say(&mut admin, "select pg_reload_conf()").await;
    url.set_password(Some("of-no-use")).unwrap();

    let mut relay = Relay::new(url.as_str(), &kafka).await;
    relay.start();
    let words = [&format!("password authentication failed for user \"{role}\""), "check user and password"];
    let reason = says(&relay, "default", "waiting", &words).await;
    counted(&relay, "sessions_ended", "default", "postgres", 2.0).await;
    assert!(!relay.status().await.unwrap().to_string().contains("of-no-use"));
    say(&mut admin, &format!("alter role {role} password 'of-no-use'")).await;
    delivers(&mut relay, &kafka, &topic).await;
    said_once(&relay, "default", "waiting", &reason);
    assert!(!relay.log().contains("of-no-use"), "{}", relay.log());
}

// ---- Kafka

#[tokio::test]
async fn brokers_that_do_not_listen_are_said_and_waited_for() {
    let (database, kafka, topic) = given("brokers_that_do_not_listen").await;
    let mut proxy = Proxy::start(kafka.brokers()).await; // only the first contact goes through it
    proxy.refuse().await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay = relay.set("kafka.brokers", proxy.address().to_string());
    relay.start();
    let reason = says(&relay, "default", "waiting", &["kafka", "check `kafka.brokers`"]).await;
    proxy.welcome().await;
    delivers(&mut relay, &kafka, &topic).await;
    said_once(&relay, "default", "waiting", &reason);
}

#[tokio::test]
async fn a_missing_topic_is_said_and_waited_for() {
    const NAME: &str = "a_missing_topic";
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    write_numbers(&database, "order", 1..=3).await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.start();
    let topic = kafka.topic("order");
    let words = [&format!("topic {topic}: "), "Unknown topic", "create the topic, or set `kafka.create_topics`"];
    let reason = says(&relay, "default", "waiting", &words).await;
    assert_eq!(reason, format!("topic {topic}: Unknown topic or partition (UnknownTopicOrPartition)"));
    kafka.create_topic("order", 1).await;
    delivers(&mut relay, &kafka, &topic).await;
    said_once(&relay, "default", "waiting", &reason);
}

#[tokio::test]
async fn a_topic_is_made_where_that_is_asked_for() {
    const NAME: &str = "a_topic_is_made";
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    write_numbers(&database, "order", 1..=3).await;
    let shape: Table = "partitions = 4\nreplication = 1".parse().unwrap();
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("kafka.create_topics", shape);
    relay.start();
    let topic = kafka.topic("order");
    eventually("the topic is made", PATIENCE, async || {
        let partitions = kafka.ends(&[&topic]).await.len();
        if partitions == 4 { Ok(()) } else { Err(format!("{partitions} of 4 partitions")) }
    })
    .await;
    delivers(&mut relay, &kafka, &topic).await;
    assert_eq!(entered(&relay, "default", "waiting").len(), 0, "{}", relay.log());
}

#[tokio::test]
async fn a_topic_that_cannot_be_made_is_said_and_waited_for() {
    const NAME: &str = "a_topic_that_cannot_be_made";
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    write_numbers(&database, "order", 1..=3).await;
    let shape: Table = "partitions = 2\nreplication = 3".parse().unwrap(); // there is one broker
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("kafka.create_topics", shape);
    relay.start();
    let topic = kafka.topic("order");
    let words =
        [&format!("making topic {topic} with 2 partitions and replication 3: "), "replication factor", "by hand"];
    let reason = says(&relay, "default", "waiting", &words).await;
    kafka.create_topic("order", 1).await;
    delivers(&mut relay, &kafka, &topic).await;
    said_once(&relay, "default", "waiting", &reason);
}

/// What an ACL allows, as the protocol numbers it.
#[derive(Clone, Copy)]
enum Operation {
    Write = 4,
    Describe = 8,
}

/// Allows the user `relay` something on a topic. librdkafka's own call for it is not bound in Rust, so the request is
/// made by hand: `CreateAcls` (30) version 1, of one ACL.
async fn allow(kafka: &Kafka, topic: &str, operation: Operation) {
    let text = |text: &str| [&u16::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat();
    let header = [&[0, 30, 0, 1, 0, 0, 0, 7][..], &text("tests")].concat();
    let (a_topic, literally, allowed) = ([2], [3], [3]);
    let who = [text("User:relay"), text("*"), vec![operation as u8]].concat();
    let body = [&[0, 0, 0, 1][..], &a_topic, &text(topic), &literally, &who, &allowed].concat();
    let request = [header, body].concat();
    let mut stream = TcpStream::connect(kafka.brokers()).await.unwrap();
    stream.write_u32(u32::try_from(request.len()).unwrap()).await.unwrap();
    stream.write_all(&request).await.unwrap();
    let length = stream.read_u32().await.unwrap();
    let mut answer = vec![0; length as usize];
    stream.read_exact(&mut answer).await.unwrap();
    // correlation 7, throttled for 0 ms, one result, error 0
    assert_eq!(answer[..14], [0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], "{answer:?}");
}

/// The user `relay`, who may do what ACLs allow.
fn sasl(password: &str) -> Table {
    let lines = [
        r#""security.protocol" = "SASL_PLAINTEXT""#,
        r#""sasl.mechanism" = "PLAIN""#,
        r#""sasl.username" = "relay""#,
        &format!("\"sasl.password\" = \"{password}\""),
    ];
    lines.join("\n").parse().unwrap()
}

#[tokio::test]
async fn a_topic_that_may_not_be_written_is_said_and_waited_for() {
    let (database, kafka, topic) = given("a_topic_that_may_not_be_written").await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay = relay.set("kafka.brokers", server("OUTBOXD_TEST_KAFKA_SASL"));
    relay = relay.set("kafka.properties", sasl("relay-secret"));
    relay.start();
    let words = [&format!("topic {topic}: "), "authorization failed", "allow the user of outboxd Write and Describe"];
    let unseen = says(&relay, "default", "waiting", &words).await;
    assert!(matches!(&entered(&relay, "default", "waiting")[..], [line] if line["reason"] == unseen.as_str()));

    // may be seen, but not written: what the producer says of it
    allow(&kafka, &topic, Operation::Describe).await;
    counted(&relay, "sessions_ended", "default", "kafka", 3.0).await;
    let words = ["uthorization failed", "allow the user of outboxd Write"]; // of the topic, or of the cluster's producer ids
    let reason = says(&relay, "default", "waiting", &words).await;
    let tries = entered(&relay, "default", "relaying");
    assert!(tries.len() <= 2, "a try is no success: {tries:#?}"); // before the first, and when the topic was seen
    let lines = entered(&relay, "default", "waiting");
    // not seen, then not written; the producer may find another word for that at first
    let last = lines.last().is_some_and(|line| line["reason"] == reason.as_str());
    assert!(last && lines.len() <= 3, "the same is said with every try: {lines:#?}");

    allow(&kafka, &topic, Operation::Write).await;
    delivers(&mut relay, &kafka, &topic).await;
}

#[tokio::test]
async fn a_wrong_password_for_kafka_is_said_without_it() {
    let (database, kafka, topic) = given("a_wrong_password_for_kafka").await;
    allow(&kafka, &topic, Operation::Write).await;
    allow(&kafka, &topic, Operation::Describe).await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay = relay.set("kafka.brokers", server("OUTBOXD_TEST_KAFKA_SASL"));
    relay = relay.set("kafka.properties", sasl("of-no-use"));
    relay.start();
    let reason = says(&relay, "default", "waiting", &["uthentication", "`sasl.password`"]).await;
    said_once(&relay, "default", "waiting", &reason);
    stop(&mut relay).await;
    assert!(!relay.log().contains("of-no-use"), "{}", relay.log());
    relay = relay.set("kafka.properties", sasl("relay-secret"));
    relay.start();
    delivers(&mut relay, &kafka, &topic).await;
}

// ---- events

/// An event that cannot be sent, and what mends it.
struct Halt {
    /// Name of the outbox, and the aggregate type of its events.
    name: &'static str,
    /// Of the event in the middle: `event_type`, and more columns with their values.
    bad: (&'static str, &'static str, &'static str),
    /// A route that stands at the event, and one that does not; TOPIC stands for the topic of the case.
    routes: [&'static str; 2],
    /// Code of the rejection, and what is said.
    code: &'static str,
    words: &'static [&'static str],
}

const HALTS: [Halt; 6] = [
    Halt {
        name: "unrouted",
        bad: ("Unheard of", "", ""),
        routes: ["topic = 'TOPIC'\nwhen.event_type = 'Good'", "topic = 'TOPIC'"],
        code: "no_route",
        words: &["no route matches", "add an [[outbox.route]]", "publish = false"],
    },
    Halt {
        name: "misnamed",
        bad: ("a b", "", ""),
        routes: ["topic = 'TOPIC{event_type}'\nwhen.event_type = 'a b'", "topic = 'TOPIC'"],
        code: "illegal_topic",
        words: &["a name that Kafka does not allow", "a route with a fixed topic"],
    },
    Halt {
        name: "bounded",
        bad: ("secret-topic", "", ""),
        routes: ["topic = '{event_type}'\ntopics = ['TOPIC']\nwhen.event_type = 'secret*'", "topic = 'TOPIC'"],
        code: "foreign_topic",
        words: &["topic `secret-topic` is not among the route's `topics`"],
    },
    Halt {
        name: "headless",
        bad: ("Good", "", ""),
        routes: ["topic = 'TOPIC'\nheaders.tenant = 'of {headers.tenant}'", "topic = 'TOPIC'"],
        code: "unfilled_template",
        words: &["template of the header", "{headers.tenant}"],
    },
    Halt {
        name: "keyless",
        bad: ("Unnumbered", "", ""),
        routes: ["topic = 'TOPIC'\nkey = 'n{sequence}'\nwhen.event_type = 'Unn*'", "topic = 'TOPIC'"],
        code: "unfilled_template",
        words: &["template of the key", "{sequence}"],
    },
    Halt {
        name: "ancient",
        bad: ("Good", ", created_at", ", '1969-12-31 23:59:59Z'"),
        routes: ["topic = 'TOPIC'", "topic = 'TOPIC'\ntimestamp = 'none'"],
        code: "bad_timestamp",
        words: &["created_at lies before 1970"],
    },
];

/// One outbox per case, which leaves the events of the others out; `which` of the two routes it has.
fn halting(kafka: &Kafka, which: usize) -> toml::Value {
    let mut parts = Vec::new();
    for halt in &HALTS {
        let route = halt.routes[which].replace("TOPIC", &kafka.topic(halt.name));
        let good = format!("topic = '{}'\nwhen.event_type = 'Good'", kafka.topic(halt.name));
        // where the bad event has a route of its own, the good ones need theirs
        let more = if route.contains("when") && halt.name != "unrouted" { good.as_str() } else { "" };
        let others: Vec<&str> = HALTS.iter().map(|other| other.name).filter(|name| *name != halt.name).collect();
        parts.push(format!("[[outbox]]\nname = '{}'\nstart = 'earliest'\n", halt.name));
        parts.push(format!("[[outbox.route]]\nwhen.aggregate_type = {others:?}\npublish = false\n"));
        for route in [route.as_str(), more].into_iter().filter(|route| !route.is_empty()) {
            parts.push(format!("[[outbox.route]]\nwhen.aggregate_type = '{}'\n{route}\n", halt.name));
        }
    }
    parts.push("[[outbox]]\nname = 'well'\nstart = 'earliest'\n".to_owned());
    parts.push(format!("[[outbox.route]]\ntimestamp = 'none'\ntopic = '{}'\n", kafka.topic("well")));
    outboxes(&parts.concat())
}

#[tokio::test]
async fn a_lane_halts_at_an_event_that_cannot_be_sent_and_others_go_on() {
    const NAME: &str = "a_lane_halts_at_an_event";
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    let mut owner = database.connect(Role::Owner).await; // who may say when an event was created
    for halt in &HALTS {
        kafka.create_topic(halt.name, 1).await;
        let (kind, columns, values) = halt.bad;
        let columns = format!("aggregate_type, aggregate_id, event_type, payload{columns}");
        let headers = if halt.name == "headless" { "{\"tenant\": \"acme\"}" } else { "{}" };
        for (number, kind, bad) in [(1, "Good", false), (2, kind, true), (3, "Good", false)] {
            let (columns, values) = if bad {
                (columns.clone(), values.to_owned())
            } else {
                ("aggregate_type, aggregate_id, event_type, payload, headers".to_owned(), format!(", '{headers}'"))
            };
            let row = format!("'{}', '7', '{kind}', '{number}'{values}", halt.name);
            say(&mut owner, &format!("insert into outbox.events ({columns}) values ({row})")).await;
        }
    }
    kafka.create_topic("well", 1).await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("outbox", halting(&kafka, 0));
    relay.start();

    // each stands at its event and names it; the one before it is there, the one behind it is not
    let rows = database.committed().await;
    let mut reasons = Vec::new();
    for halt in &HALTS {
        let bad =
            rows.iter().find(|row| row.aggregate_type == halt.name && row.value.as_deref() == Some(b"2")).unwrap();
        let event = format!("event {} ({})", bad.id, bad.event_id);
        let words: Vec<&str> = [event.as_str()].into_iter().chain(halt.words.iter().copied()).collect();
        reasons.push(says(&relay, halt.name, "halted", &words).await);
    }
    arrive(&mut kafka.reader(&[&kafka.topic("well")]), rows.len(), &relay).await;
    for (halt, reason) in HALTS.iter().zip(&reasons) {
        counted(&relay, "rejections", halt.name, halt.code, 2.0).await; // tried again
        let lines = entered(&relay, halt.name, "halted");
        assert!(matches!(&lines[..], [line] if line["reason"] == reason.as_str()), "{}: {lines:#?}", halt.name);
        assert_eq!(values(&kafka.read(&kafka.topic(halt.name)).await), ["1"], "{}", halt.name);
    }

    // another configuration lets them pass
    stop(&mut relay).await;
    relay = relay.set("outbox", halting(&kafka, 1));
    relay.start();
    relay.ready().await;
    for halt in &HALTS {
        let records = arrive(&mut kafka.reader(&[&kafka.topic(halt.name)]), 3, &relay).await;
        assert_eq!(values(&records), numbers(1..=3), "{}", halt.name);
    }
    stop(&mut relay).await;
    assert_eq!(kafka.read(&kafka.topic("well")).await.len(), rows.len());
}

async fn configure(kafka: &Kafka, topic: &str, name: &str, value: &str) {
    let mut config = ClientConfig::new();
    let admin: AdminClient<DefaultClientContext> = config.set("bootstrap.servers", kafka.brokers()).create().unwrap();
    let entries = HashMap::from([(name, value)]);
    let change = AlterConfig { specifier: ResourceSpecifier::Topic(topic), entries };
    let options = AdminOptions::new().request_timeout(Some(Duration::from_secs(10)));
    let changed = admin.alter_configs([&change], &options).await.expect("an answer");
    assert!(changed.iter().all(Result::is_ok), "{changed:?}");
}

#[tokio::test]
async fn a_payload_larger_than_its_topic_takes_waits_for_the_topic() {
    const SIZE: usize = 5_000_000;
    let (database, kafka, topic) = given("a_payload_larger_than_its_topic_takes").await;
    let insert = "insert into outbox.events (aggregate_type, aggregate_id, event_type, payload_bytes)";
    write(&database, &format!("{insert} values ('order', '7', 'Huge', convert_to(repeat('é', {SIZE} / 2), 'UTF8'))"))
        .await;
    write_numbers(&database, "order", 5..=6).await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.start();

    // it is said how large the record is: 36 + 61 bytes of overhead, key, four headers, value
    let size = 97 + 1 + "idtypeaggregate-typeaggregate-id".len() + 36 + "Hugeorder7".len() + SIZE;
    let huge = database.committed().await.into_iter().find(|row| row.event_type == "Huge").unwrap();
    let words = [
        &format!("event {} ({})", huge.id, huge.event_id),
        &format!("the record has {size} bytes, topic {topic} takes 1048588 (max.message.bytes)"),
        "raise `max.message.bytes` of the topic; outboxd goes on by itself",
    ];
    let reason = says(&relay, "default", "halted", &words).await;
    counted(&relay, "rejections", "default", "too_large", 2.0).await;
    let mut reader = kafka.reader(&[&topic]);
    assert_eq!(values(&arrive(&mut reader, 3, &relay).await), numbers(1..=3));

    configure(&kafka, &topic, "max.message.bytes", "6000000").await;
    let records = arrive(&mut reader, 3, &relay).await;
    assert!(records[0].value == huge.value, "{} bytes", records[0].value.as_deref().map_or(0, <[u8]>::len));
    assert_eq!(values(&records[1..]), numbers(5..=6));
    relay.ready().await;
    said_once(&relay, "default", "halted", &reason);
}

/// Nothing tells beforehand that the topic takes no record of that age: it fails among others, and is found by sending one at a time.
#[tokio::test]
async fn an_event_that_kafka_refuses_halts_its_lane_and_no_later_one_passes_it() {
    let (database, kafka, topic) = given("an_event_that_kafka_refuses").await;
    configure(&kafka, &topic, "message.timestamp.before.max.ms", "600000").await;
    let old = "insert into outbox.events (aggregate_type, aggregate_id, event_type, payload, created_at)
               values ('order', '7', 'Counted', '4', now() - interval '1 day')";
    say(&mut database.connect(Role::Owner).await, old).await;
    write_numbers(&database, "order", 5..=300).await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.start();

    let refused = database.committed().await.into_iter().find(|row| row.value.as_deref() == Some(b"4")).unwrap();
    let words = [&format!("event {} ({}) is refused", refused.id, refused.event_id), "(InvalidTimestamp)"];
    says(&relay, "default", "halted", &words).await;
    counted(&relay, "sessions_ended", "default", "rejection", 3.0).await; // among others, alone, and again alone
    let mut reader = kafka.reader(&[&topic]);
    let first_appearances = |records: Vec<Record>| {
        let mut seen = Vec::new();
        for value in values(&records) {
            if !seen.contains(&value) {
                seen.push(value);
            }
        }
        seen
    };
    assert_eq!(first_appearances(reader.read_on().await), numbers(1..=3));

    configure(&kafka, &topic, "message.timestamp.before.max.ms", "9223372036854775807").await;
    let mut records = Vec::new();
    eventually("all arrive behind it", PATIENCE, async || {
        records.extend(reader.read_on().await);
        if records.iter().any(|record| record.value.as_deref() == Some(b"300")) {
            Ok(())
        } else {
            Err(format!("{} records", records.len()))
        }
    })
    .await;
    assert_eq!(first_appearances(records), numbers(4..=300));
    relay.ready().await;
}

// ---- configuration and command line

/// A mark behind a mistake says what its finding holds.
const MISTAKES: &str = r#"[postgres]
url = "postgres://127.0.0.1"            #! with a user
[kafka]
brokers = "k1:no"                       #! expected `host:port`
brokerz = "k1"                          #! did you mean `kafka.brokers`?
[kafka.properties]
acks = "1"                              #! it is all
"linger.ms" = 2.5                       #! a string, an integer or a boolean
[relay]
pool = { min = "1s" }                   #! did you mean `relay.poll`?
poll = { min = "2s", max = "1s" }       #! at most 1s
save_every = "5s"                       #! a third of `relay.lease`
in_flight = { events = "many", size = "1KiB" } #! `many` #! `1KiB`
shutdown_grace = 20                     #! with its unit
[http]
listen = "localhost:9464"               #! an IP address
token = { env = "NO_SUCH_VARIABLE" }    #! `NO_SUCH_VARIABLE`
[log]
format = "jsno"                         #! did you mean `json`?
[[outbox]]
name = "a b"                            #! outbox[0].name
start = "erliest"                       #! did you mean `earliest`?
[[outbox.route]]
topic = "{agregate_type}"               #! did you mean `{aggregate_type}`?
key = "{aggregate_id"                   #! a `}` for each
headers = { id = "x" }                  #! sets itself
value = "json"                          #! `payload`
"#;

#[tokio::test]
async fn twenty_mistakes_are_twenty_findings_each_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("outboxd.toml");
    std::fs::write(&file, MISTAKES).unwrap();
    let marks = |(line, text): (usize, &'static str)| text.split("#!").skip(1).map(move |mark| (line, mark.trim()));
    let expected: Vec<(usize, &str)> = (1..).zip(MISTAKES.lines()).flat_map(marks).collect();
    assert_eq!(expected.len(), 20, "the mistakes of this test");
    for arguments in [&["run"][..], &["check"], &["status"], &["config", "show"], &["migrate"]] {
        let output = outboxd(&file, arguments).await;
        assert_eq!(output.code, 78, "{arguments:?}: {output}");
        let said = if arguments == ["check"] { &output.stdout } else { &output.stderr };
        for (line, mark) in &expected {
            let place = format!("line {line}: ");
            let found = said
                .split("line ")
                .any(|finding| finding.starts_with(place.trim_start_matches("line ")) && finding.contains(mark));
            assert!(found, "{arguments:?}: line {line} {mark}: {said}");
        }
        assert_eq!(said.matches("line ").count(), 20, "{arguments:?}: {said}");
        let total = if arguments == ["check"] { "20 findings" } else { "20 problems in the configuration" };
        assert!(said.trim_end().ends_with(total), "{arguments:?}: {said}");
    }
}

#[tokio::test]
async fn a_configuration_that_is_not_there_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [("nowhere.toml", "No such file or directory"), (".", "Is a directory")];
    for (name, words) in cases {
        let path = folder.path().join(name);
        let output = outboxd(&path, &["run"]).await;
        assert_eq!(output.code, 78, "{output}");
        assert!(output.stderr.contains(words) && output.stderr.contains(path.to_str().unwrap()), "{output}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_outboxd"));
    let output = command.arg("run").env_remove("OUTBOXD_CONFIG").current_dir(folder.path()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("no configuration") && said.contains("--config FILE"), "{said}");
}

#[tokio::test]
async fn a_reference_to_what_is_not_there_is_a_finding() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("outboxd.toml");
    let text = "[postgres]\nurl = { file = \"/nowhere/url\" }\n[kafka]\nbrokers = { env = \"NO_SUCH_BROKERS\" }\n";
    std::fs::write(&file, text).unwrap();
    let output = outboxd(&file, &["run"]).await;
    assert_eq!(output.code, 78, "{output}");
    for words in ["line 2: postgres.url", "`/nowhere/url`", "line 4: kafka.brokers", "`NO_SUCH_BROKERS`", "2 problems"]
    {
        assert!(output.stderr.contains(words), "{words}: {output}");
    }
}

#[tokio::test]
async fn wrong_usage_has_a_code_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("outboxd.toml");
    let cases: [&[&str]; 7] = [
        &[],
        &["frobnicate"],
        &["run", "--nonsense"],
        &["run", "twice"],
        &["status", "--output", "yaml"],
        &["completions", "tcsh"],
        &["config"],
    ];
    for arguments in cases {
        let output = outboxd(&file, arguments).await;
        assert_eq!((output.code, output.stdout.as_str()), (64, ""), "{arguments:?}: {output}");
        let says_how = ["Usage: outboxd", "try '--help'"].iter().any(|words| output.stderr.contains(words));
        assert!(says_how, "{arguments:?}: {output}");
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_said() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let kafka = Kafka::create_on("127.0.0.1:9", "a_port_that_is_taken");
    let relay = Relay::new("postgres://outboxd@127.0.0.1:9/shop", &kafka).await.set("http.listen", address.as_str());
    let output = relay.command(&["run"]).await;
    assert_eq!(output.code, 78, "{output}");
    for words in [&format!("http.listen: {address}: Address already in use"), "choose another port"] {
        assert!(output.stderr.contains(words), "{output}");
    }
}
