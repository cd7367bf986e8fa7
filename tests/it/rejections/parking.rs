//! `park`: the event and the later ones of its stream wait where an operator can see them; other streams flow.

use super::{are_parked, configure, decides, first_appearances, parked, unknowing};
use crate::delivery::{arrive, metric, numbers, outboxes, stop, values, write};
use crate::support::checker::{Checker, check};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Role, say};
use crate::support::relay::Relay;
use crate::support::said::{entered, says};

/// A bad event: its type, its columns beside the usual ones, and why it is refused.
struct Bad {
    stream: &'static str,
    kind: &'static str,
    columns: &'static str,
    values: &'static str,
    code: &'static str,
}

const BAD: [Bad; 6] = [
    Bad { stream: "unrouted", kind: "Unheard of", columns: "", values: "", code: "no_route" },
    Bad { stream: "misnamed", kind: "to a b", columns: "", values: "", code: "illegal_topic" },
    Bad { stream: "huge", kind: "Huge", columns: "", values: "", code: "too_large" },
    Bad { stream: "keyless", kind: "Keyless", columns: "", values: "", code: "no_key" },
    Bad {
        stream: "old",
        kind: "Good",
        columns: ", created_at",
        values: ", now() - interval '1 day'",
        code: "bad_timestamp",
    },
    Bad { stream: "unfilled", kind: "Unfilled", columns: "", values: "", code: "unfilled_template" },
];

#[derive(Clone, Copy, PartialEq)]
enum Routes {
    Bad,
    Mended,
}

/// Routes under which each bad event is refused; or, mended, under which all go to one topic.
fn routes(kafka: &Kafka, kind: Routes) -> toml::Value {
    let (topic, compacted) = (kafka.topic("order"), kafka.topic("compacted"));
    let routes = if kind == Routes::Mended {
        format!("[[outbox.route]]\ntopic = '{topic}'\n")
    } else {
        format!(
            "[[outbox.route]]\nwhen.event_type = ['Good', 'Huge']\ntopic = '{topic}'\n
             [[outbox.route]]\nwhen.event_type = 'to *'\ntopic = '{topic}{{event_type}}'\n
             [[outbox.route]]\nwhen.event_type = 'Keyless'\ntopic = '{compacted}'\nkey = ''\n
             [[outbox.route]]\nwhen.event_type = 'Unfilled'\ntopic = '{topic}'\nkey = '{{headers.tenant}}'\n"
        )
    };
    outboxes(&format!("[[outbox]]\nname = 'default'\n{routes}"))
}

#[tokio::test]
async fn what_can_be_known_to_fail_is_parked_before_anything_of_its_stream_is_sent() {
    const NAME: &str = "what_can_be_known_to_fail";
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    let settings = [("message.timestamp.before.max.ms", "600000"), ("max.message.bytes", "20000")];
    let topic = kafka.create_topic_with("order", 1, &settings).await;
    kafka.create_topic_with("compacted", 1, &[("cleanup.policy", "compact")]).await;

    // given in each stream a good event, a bad one, and good ones behind it
    let mut owner = database.connect(Role::Owner).await; // who may say when an event was created
    for number in 1..=4 {
        for bad in &BAD {
            let (kind, columns, values) =
                if number == 2 { (bad.kind, bad.columns, bad.values) } else { ("Good", "", "") };
            let size = if kind == "Huge" { 40_000 } else { 0 };
            let insert = format!(
                "insert into outbox.events (aggregate_type, aggregate_id, event_type, payload{columns})
                 values ('order', '{}', '{kind}', to_jsonb('{number}' || repeat('x', {size})){values})",
                bad.stream
            );
            say(&mut owner, &insert).await;
        }
        write(&database, &format!("insert into outbox.events (aggregate_type, aggregate_id, event_type, payload) values ('order', 'well', 'Good', '{number}')")).await;
    }
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("outbox", routes(&kafka, Routes::Bad));
    relay.start();

    // then what is before the bad ones is there, and the whole of the good stream
    let mut reader = kafka.reader(&[&topic]);
    let records = arrive(&mut reader, BAD.len() + 4, &relay).await;
    for bad in &BAD {
        let of_stream: Vec<_> =
            records.iter().filter(|record| record.key.as_deref() == Some(bad.stream.as_bytes())).cloned().collect();
        assert_eq!(values(&of_stream), ["\"1\""], "{}", bad.stream);
    }
    relay.ready().await;
    let found = are_parked(&relay, BAD.len()).await;
    for bad in &BAD {
        let stream = found.iter().find(|stream| stream["aggregate_id"] == bad.stream).unwrap();
        assert_eq!(
            (&stream["code"], &stream["events"], &stream["attempts"]),
            (&bad.code.into(), &3.into(), &1.into()),
            "{stream}"
        );
        assert!(!stream["reason"].as_str().unwrap().is_empty());
    }
    assert_eq!(relay.status().await.unwrap()["lanes"][0]["parked_streams"], BAD.len());
    assert_eq!(metric(&relay, "outboxd_parked_streams{outbox=\"default\",lane=\"0\"}").await, Some(6.0));
    assert_eq!(metric(&relay, "outboxd_events_parked_total{outbox=\"default\",lane=\"0\"}").await, Some(18.0));
    assert_eq!(entered(&relay, "default", "halted").len(), 0);
    let check = relay.command(&["check"]).await;
    assert!(check.code == 2 && check.stdout.contains("parked: 6 streams"), "{check}");
    let log = relay.log();
    assert_eq!(log.matches("event parked").count(), BAD.len(), "{log}");
    assert!(!log.contains("misnamed") && !log.contains("xxxx"), "a key or a payload is in the log");

    // while the causes are still there, a retry changes nothing but the count
    let said = decides(&relay, &["retry", "--stream", "order/unrouted"]).await;
    assert!(said.contains("1 event of 1 stream will be sent again"), "{said}");
    eventually("it was tried again", PATIENCE, async || {
        let found = parked(&relay).await;
        let stream = found.iter().find(|stream| stream["aggregate_id"] == "unrouted").unwrap();
        if stream["attempts"] == 2 && stream["decision"].is_null() { Ok(()) } else { Err(stream.to_string()) }
    })
    .await;

    // when they are gone, all arrive in their order, and those that are written meanwhile behind them
    stop(&mut relay).await;
    relay = relay.set("outbox", routes(&kafka, Routes::Mended));
    configure(&kafka, &topic, "max.message.bytes", "100000").await;
    relay.start();
    relay.ready().await;
    let said = decides(&relay, &["retry", "--all"]).await;
    assert!(said.contains("6 events of 6 streams will be sent again"), "{said}");
    for bad in &BAD {
        write(&database, &format!("insert into outbox.events (aggregate_type, aggregate_id, event_type, payload) values ('order', '{}', 'Good', '5')", bad.stream)).await;
    }
    let records = arrive(&mut reader, BAD.len() * 4, &relay).await;
    for bad in &BAD {
        let of_stream = records.iter().filter(|record| record.key.as_deref() == Some(bad.stream.as_bytes()));
        let numbers: Vec<u8> = of_stream
            .map(|record| record.value.as_deref().unwrap().iter().copied().find(u8::is_ascii_digit).unwrap())
            .collect();
        assert_eq!(numbers, *b"2345", "{}", bad.stream);
    }
    are_parked(&relay, 0).await;
    eventually("the streams are free", PATIENCE, async || {
        let status = relay.status().await.unwrap();
        if status["lanes"][0]["parked_streams"] == 0 { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    stop(&mut relay).await;
}

/// The relay may not ask for the topic's limits, so the bad events fail in flight among all the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_kafka_refuses_are_parked_among_ten_thousand_streams() {
    const NAME: &str = "events_that_kafka_refuses_are_parked";
    const STREAMS: usize = 10_000;
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    let topic = kafka.create_topic("order", 6).await;
    let mut relay = unknowing(&database, &kafka, &topic).await;
    relay.start();
    let all = format!(
        "insert into outbox.events (aggregate_type, aggregate_id, event_type, payload)
         select 'order', s::text, 'Good', to_jsonb(n) from generate_series(1, 3) n, generate_series(1, {STREAMS}) s"
    );
    write(&database, &all.replace("(1, 3)", "(1, 1)")).await;
    let mut reader = kafka.reader(&[&topic]);
    let mut records = arrive(&mut reader, STREAMS, &relay).await;

    // when every thousandth stream has an event that the topic refuses, in the middle of the others
    configure(&kafka, &topic, "message.timestamp.before.max.ms", "600000").await;
    let old = format!(
        "insert into outbox.events (aggregate_type, aggregate_id, event_type, payload, created_at)
         select 'order', s::text, 'Old', '0', now() - interval '1 day' from generate_series(1000, {STREAMS}, 1000) s"
    );
    say(&mut database.connect(Role::Owner).await, &format!("begin; {all}; {old}; {all}; commit")).await;

    // then these wait with what follows them, and all others are there
    let rows = database.committed().await;
    let expected = STREAMS * 7 - 10 * 3;
    eventually("the others are there", PATIENCE, async || {
        records.extend(reader.read_on().await);
        let distinct: std::collections::HashSet<_> = records.iter().map(|record| record.header("id")).collect();
        if distinct.len() >= expected {
            Ok(())
        } else {
            Err(format!("{} of {expected}; {:?}", distinct.len(), relay.status().await))
        }
    })
    .await;
    let found = are_parked(&relay, 10).await;
    assert!(found.iter().all(|stream| stream["code"] == "InvalidTimestamp" && stream["events"] == 4), "{found:?}");
    relay.ready().await;

    // and when the topic takes them, each comes before what follows it
    configure(&kafka, &topic, "message.timestamp.before.max.ms", "9223372036854775807").await;
    let mut checker = Checker::new(rows);
    for record in &records {
        checker.see(record);
    }
    eventually("all are there", PATIENCE, async || {
        drop(relay.command(&["parked", "retry", "--code", "InvalidTimestamp"]).await); // the broker may not know its new setting yet
        reader.read_on().await.iter().for_each(|record| checker.see(record));
        if checker.missing() == 0 {
            Ok(())
        } else {
            Err(format!("{}; {:?}", checker.verdict(&[]), relay.status().await))
        }
    })
    .await;
    let verdict = checker.verdict(&[]);
    eprintln!("{verdict}");
    assert!(verdict.is_sound(), "{verdict}");
    are_parked(&relay, 0).await;
    stop(&mut relay).await;
}

/// If the routes of an event differ, the strictest policy counts; and one event is all its records or none.
#[tokio::test]
async fn an_event_that_one_of_its_routes_refuses_is_parked_whole() {
    const NAME: &str = "an_event_that_one_of_its_routes_refuses";
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    let (v1, v2) = (kafka.create_topic("v1", 1).await, kafka.create_topic("v2", 1).await);
    let config = |key: &str| {
        outboxes(&format!(
            "[[outbox]]\nname = 'default'\n[[outbox.route]]\ntopic = '{v1}'\non_reject = {{ dead_letter = '{v1}' }}
             [[outbox.route]]\ntopic = '{v2}'\nkey = '{key}'\n"
        ))
    };
    write(&database, "insert into outbox.events (aggregate_type, aggregate_id, event_type, payload, headers)
        values ('order', '7', 'Good', '1', '{\"tenant\": \"a\"}'), ('order', '7', 'Good', '2', '{}'), ('order', '7', 'Good', '3', '{\"tenant\": \"a\"}')").await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("outbox", config("{headers.tenant}"));
    relay.start();
    let found = are_parked(&relay, 1).await;
    assert_eq!((&found[0]["code"], &found[0]["events"]), (&"unfilled_template".into(), &2.into()), "{found:?}");
    for topic in [&v1, &v2] {
        assert_eq!(values(&kafka.read(topic).await), ["1"], "{topic}");
    }
    stop(&mut relay).await;

    relay = relay.set("outbox", config("{aggregate_id}"));
    decides(&relay, &["retry", found[0]["event_id"].as_str().unwrap()]).await; // nobody runs: it is done later
    relay.start();
    for topic in [&v1, &v2] {
        let records = arrive(&mut kafka.reader(&[topic]), 3, &relay).await;
        assert_eq!(values(&records), numbers(1..=3), "{topic}");
    }
    stop(&mut relay).await;
    let verdict = check(database.committed().await, &kafka.read(&v1).await, &[]);
    assert!(verdict.is_sound(), "{verdict}");
    assert_eq!(first_appearances(&kafka.read(&v2).await), numbers(1..=3));
}

/// Somebody cleans the outbox up before the event is parked: that is said, and what is behind it goes on.
#[tokio::test]
async fn an_event_that_is_gone_before_it_is_parked_is_missed_aloud() {
    const NAME: &str = "an_event_that_is_gone_before_it_is_parked";
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    let topic = kafka.create_topic("order", 1).await;
    let config = outboxes(&format!(
        "[[outbox]]\nname = 'default'\n[[outbox.route]]\ntopic = '{topic}'\nwhen.event_type = 'Good'\n"
    ));
    let relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("outbox", config);
    let mut relay = relay.set("relay.lease", "5m").set("relay.save_every", "100s"); // at rest it saves after a tenth of that
    relay.start();
    relay.ready().await;
    let insert = "insert into outbox.events (aggregate_type, aggregate_id, event_type, payload) values";
    write(&database, &format!("{insert} ('order', '7', 'Odd', '1')")).await;
    eventually("the event is read", PATIENCE, async || {
        let read = metric(&relay, "outboxd_events_read_total{outbox=\"default\",lane=\"0\"}").await;
        if read >= Some(1.0) { Ok(()) } else { Err(format!("{read:?}")) }
    })
    .await;
    say(&mut database.connect(Role::Owner).await, "delete from outbox.events").await;

    let words = ["an event that was to be parked is no longer in the outbox", "stop whoever cleans up"];
    says(&relay, "default", "refused", &words).await;
    write(&database, &format!("{insert} ('order', '7', 'Good', '2')")).await;
    assert_eq!(values(&arrive(&mut kafka.reader(&[&topic]), 1, &relay).await), ["2"]);
    relay.ready().await;
    are_parked(&relay, 0).await;
    stop(&mut relay).await;
}

/// The index of what is parked has more columns than that of the table.
#[tokio::test]
async fn whoever_can_be_written_can_be_parked() {
    const NAME: &str = "whoever_can_be_written";
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    let mut app = database.connect(Role::App).await;
    // digests do not compress, so that the index stores all of them
    let insert = |bytes: usize| {
        format!(
            "insert into outbox.events (aggregate_type, aggregate_id, event_type)
             select 'x/y', left(string_agg(encode(sha256(n::text::bytea), 'base64'), ''), {bytes}), 'Written' from generate_series(1, 100) n"
        )
    };
    let refused = sqlx::query(sqlx::AssertSqlSafe(insert(2_498))).execute(&mut app).await.unwrap_err();
    assert!(refused.to_string().contains("violates check constraint \"stream_name\""), "{refused}");
    say(&mut app, &insert(2_497)).await;

    let longest = "o".repeat(63);
    let outbox =
        format!("[[outbox]]\nname = '{longest}'\n[[outbox.route]]\ntopic = '{}{{aggregate_type}}'\n", kafka.topic(""));
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("outbox", outboxes(&outbox));
    relay.start();
    are_parked(&relay, 1).await;
    stop(&mut relay).await;
}
