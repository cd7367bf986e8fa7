//! `halt`: the lane stands at the event, says why, tries again, and goes on when the cause is gone.

use super::{configure, first_appearances, unknowing};
use crate::bad_input::given;
use crate::delivery::{arrive, numbers, outboxes, stop, values, write, write_numbers};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Role, say};
use crate::support::relay::Relay;
use crate::support::said::{counted, entered, said_once, says};

/// One outbox that publishes all to one topic and halts at what cannot be published.
fn halting_at(topic: &str) -> toml::Value {
    outboxes(&format!("[[outbox]]\nname = 'default'\n[[outbox.route]]\ntopic = '{topic}'\non_reject = 'halt'\n"))
}

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
        words: &["gives a name that is not among the route's `topics`"],
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
        parts.push(format!("[[outbox]]\nname = '{}'\nstart = 'earliest'\non_reject = 'halt'\n", halt.name));
        parts.push(format!("[[outbox.route]]\nwhen.aggregate_type = {others:?}\npublish = false\n"));
        for route in [route.as_str(), more].into_iter().filter(|route| !route.is_empty()) {
            parts.push(format!(
                "[[outbox.route]]\non_reject = 'halt'\nwhen.aggregate_type = '{}'\n{route}\n",
                halt.name
            ));
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

#[tokio::test]
async fn a_payload_larger_than_its_topic_takes_waits_for_the_topic() {
    const SIZE: usize = 5_000_000;
    let (database, kafka, topic) = given("a_payload_larger_than_its_topic_takes").await;
    let insert = "insert into outbox.events (aggregate_type, aggregate_id, event_type, payload_bytes)";
    write(&database, &format!("{insert} values ('order', '7', 'Huge', convert_to(repeat('é', {SIZE} / 2), 'UTF8'))"))
        .await;
    write_numbers(&database, "order", 5..=6).await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("outbox", halting_at(&topic));
    relay.start();

    // it is said how large the record is: 36 + 61 bytes of overhead, key, four headers, value
    let size = 97 + 1 + "idtypeaggregate-typeaggregate-id".len() + 36 + "Hugeorder7".len() + SIZE;
    let huge = database.committed().await.into_iter().find(|row| row.event_type == "Huge").unwrap();
    let words = [
        &format!("event {} ({})", huge.id, huge.event_id),
        &format!("the record has {size} bytes, topic {topic} takes 1048588 (max.message.bytes)"),
        "raise `max.message.bytes` of the topic, or write smaller events",
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

/// The relay may not ask for the topic's limits: the event fails among others, and is found by sending one by one.
#[tokio::test]
async fn an_event_that_kafka_refuses_halts_its_lane_and_no_later_one_passes_it() {
    let (database, kafka, topic) = given("an_event_that_kafka_refuses").await;
    let mut relay = unknowing(&database, &kafka, &topic).await.set("outbox", halting_at(&topic));
    relay.start();
    let mut reader = kafka.reader(&[&topic]);
    assert_eq!(values(&arrive(&mut reader, 3, &relay).await), numbers(1..=3));

    // given an old event before many others
    configure(&kafka, &topic, "message.timestamp.before.max.ms", "600000").await;
    let old = "insert into outbox.events (aggregate_type, aggregate_id, event_type, payload, created_at)
               values ('order', '7', 'Counted', '4', now() - interval '1 day')";
    let rest = "insert into outbox.events (aggregate_type, aggregate_id, event_type, payload)
                select 'order', '7', 'Counted', to_jsonb(n) from generate_series(5, 300) n";
    say(&mut database.connect(Role::Owner).await, &format!("begin; {old}; {rest}; commit")).await;

    // then it halts there, and tries it again
    let refused = database.committed().await.into_iter().find(|row| row.value.as_deref() == Some(b"4")).unwrap();
    let words = [&format!("event {} ({})", refused.id, refused.event_id), "(InvalidTimestamp)"];
    says(&relay, "default", "halted", &words).await;
    counted(&relay, "sessions_ended", "default", "rejection", 3.0).await; // among others, alone, and again alone
    assert_eq!(first_appearances(&reader.read_on().await), [] as [&str; 0]);

    configure(&kafka, &topic, "message.timestamp.before.max.ms", "9223372036854775807").await;
    let mut records = Vec::new();
    eventually("all arrive behind it", PATIENCE, async || {
        records.extend(reader.read_on().await);
        if records.iter().any(|record| record.value.as_deref() == Some(b"300")) {
            Ok(())
        } else {
            Err(format!("{} records; {:?}", records.len(), relay.status().await))
        }
    })
    .await;
    assert_eq!(first_appearances(&records), numbers(4..=300));
    relay.ready().await;
}
