//! What a record looks like, where it goes, and how often: the daemon from a committed row to a topic.

use std::collections::{BTreeMap, HashSet};

use rand::RngCore as _;
use sqlx::{Executor as _, Row as _};
use toml::{Table, Value};
use uuid::Uuid;

use crate::support::checker::{Checker, Record};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::{Kafka, Reader};
use crate::support::postgres::{Database, Role, say};
use crate::support::relay::Relay;

/// What a broker takes by default in one batch, and what librdkafka counts of it beside key, value and headers.
const LIMIT: usize = 1_048_588;
const OVERHEAD: usize = 36 + 61;

/// The `[[outbox]]` of a configuration, as a user would write them.
pub(crate) fn outboxes(text: &str) -> Value {
    text.parse::<Table>().unwrap().remove("outbox").expect("an [[outbox]]")
}

/// Commits what the application writes.
pub(crate) async fn write(database: &Database, statements: &str) {
    say(&mut database.connect(Role::App).await, statements).await;
}

/// Commits one event per number, whose payload is that number: all of one type, in one stream.
pub(crate) async fn write_numbers(database: &Database, aggregate_type: &str, numbers: std::ops::RangeInclusive<i32>) {
    let (from, to) = numbers.into_inner();
    let columns = "aggregate_type, aggregate_id, event_type, payload";
    let rows = format!("select '{aggregate_type}', '7', 'Counted', to_jsonb(n) from generate_series({from}, {to}) n");
    write(database, &format!("insert into outbox.events ({columns}) {rows}")).await;
}

/// Waits for this many records. More than that is a failure here, or of the next call.
pub(crate) async fn arrive(reader: &mut Reader, count: usize, relay: &Relay) -> Vec<Record> {
    let mut records = Vec::new();
    eventually(&format!("{count} records"), PATIENCE, async || {
        records.extend(reader.read_on().await);
        if records.len() >= count {
            return Ok(());
        }
        Err(format!("{} of them; status: {:?}", records.len(), relay.status().await))
    })
    .await;
    assert_eq!(records.len(), count, "more came than was written: {:?}", values(&records));
    records
}

/// The values, as text.
pub(crate) fn values(records: &[Record]) -> Vec<String> {
    let text = |record: &Record| String::from_utf8_lossy(record.value.as_deref().unwrap_or(b"null")).into_owned();
    records.iter().map(text).collect()
}

/// Numbers as text.
pub(crate) fn numbers(range: std::ops::RangeInclusive<i32>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

/// The value of a metric, named with its labels.
pub(crate) async fn metric(relay: &Relay, name: &str) -> Option<f64> {
    let answer = relay.get("/metrics").await.ok()?;
    answer.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// Waits until the saved cursor settles all that is committed.
async fn settled(database: &Database) {
    eventually("the saved cursor settles all", PATIENCE, async || {
        let open = database.unsettled(&database.place().await).await.unsettled.len();
        if open == 0 { Ok(()) } else { Err(format!("{open} events are not settled")) }
    })
    .await;
}

/// Ends a relay as an operator does, with nothing left to settle.
pub(crate) async fn stop(relay: &mut Relay) {
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0), "SIGTERM");
}

fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

/// An event as the application writes it, and what its record must hold beside the four headers of every record.
struct Case {
    key: &'static str,
    payload: Option<&'static str>,
    bytes: Option<Vec<u8>>,
    headers: &'static str,
    value: Option<Vec<u8>>,
    own: Vec<(&'static str, Option<&'static str>)>,
}

impl Case {
    fn new(key: &'static str) -> Self {
        Self { key, payload: None, bytes: None, headers: "{}", value: None, own: Vec::new() }
    }

    fn payload(self, payload: &'static str, value: &str) -> Self {
        Self { payload: Some(payload), value: Some(value.into()), ..self }
    }

    fn bytes(self, bytes: Vec<u8>) -> Self {
        Self { value: Some(bytes.clone()), bytes: Some(bytes), ..self }
    }

    fn headers(self, headers: &'static str, own: &[(&'static str, Option<&'static str>)]) -> Self {
        Self { headers, own: own.to_vec(), ..self }
    }
}

const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Postgres orders the keys of a jsonb by their length.
fn cases() -> Vec<Case> {
    vec![
        Case::new("1").payload(r#"{"b":1,  "a" : [1e2, 1.50, "x\ny"]}"#, r#"{"a": [100, 1.50, "x\ny"], "b": 1}"#),
        Case::new("2").bytes((0..=255).collect()),
        Case::new("3"),
        Case::new("4").bytes(Vec::new()),
        Case::new("5").payload("null", "null"),
        Case::new("").payload(r#""no key""#, r#""no key""#),
        Case::new("Zoë/ключ/鍵\t🗝").payload(r#"{"ключ": "\u00e9 🗝 \\"}"#, r#"{"ключ": "é 🗝 \\"}"#),
        Case::new("6").payload("1", "1").headers(
            r#"{"a": "text as \"it\" is\n é", "nothing": null, "yes": true, "n": 12345678901234567890.10, "empty": "",
                "list": [1, {"a b": " c "}], "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#,
            &[
                ("a", Some("text as \"it\" is\n é")),
                ("n", Some("12345678901234567890.10")),
                ("yes", Some("true")),
                ("list", Some(r#"[1,{"a b":" c "}]"#)),
                ("empty", Some("")),
                ("nothing", None),
                ("traceparent", Some(TRACEPARENT)),
            ],
        ),
    ]
}

#[tokio::test]
async fn a_record_is_its_event_byte_for_byte() {
    const NAME: &str = "a_record_is_its_event_byte_for_byte";
    let database = Database::migrated(NAME).await;
    let kafka = Kafka::create("outbox.event.order"); // what the default route makes of an aggregate type
    let topic = kafka.create_topic("v1", 1).await;
    let aggregate_type = topic.strip_prefix("outbox.event.").unwrap().to_owned();
    let none: Vec<Table> = Vec::new();
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("outbox", none);

    // given: events of every kind, the last of them as large as its topic takes, in bytes that do not compress
    let mut app = database.connect(Role::App).await;
    let mut cases = cases();
    let of_headers = "idtypeaggregate-typeaggregate-id".len() + 36 + "Placed".len() + aggregate_type.len() + 1;
    let mut largest = vec![0; LIMIT - OVERHEAD - 1 - of_headers];
    rand::rng().fill_bytes(&mut largest);
    cases.push(Case::new("7").bytes(largest));
    let mut ids = Vec::new();
    for case in &cases {
        let id = Uuid::new_v4();
        let insert = "insert into outbox.events (event_id, aggregate_type, aggregate_id, event_type, payload, payload_bytes, headers)
                      values ($1, $2, $3, 'Placed', $4::jsonb, $5, $6::jsonb)";
        let insert = sqlx::query(insert).bind(id).bind(&aggregate_type).bind(case.key).bind(case.payload);
        app.execute(insert.bind(&case.bytes).bind(case.headers)).await.unwrap();
        ids.push(id);
    }
    for payload in ["{}", "[]"] {
        let id = Uuid::new_v4();
        let emit = sqlx::query("select outbox.emit($1, 'numbered', 'Placed', $2::jsonb, event_id => $3)");
        app.execute(emit.bind(&aggregate_type).bind(payload).bind(id)).await.unwrap();
        ids.push(id);
        cases.push(Case::new("numbered").payload(payload, payload));
    }

    // when
    relay.start();
    let records = arrive(&mut kafka.reader(&[&topic]), cases.len(), &relay).await;

    // then
    let rows = database.committed().await;
    let times = "select floor(extract(epoch from created_at) * 1000)::bigint as ms from outbox.events order by id";
    let times = sqlx::query(times).fetch_all(&mut database.connect(Role::Owner).await).await.unwrap();
    let numbered = cases.len() - 2;
    for (nr, (record, case)) in records.iter().zip(&cases).enumerate() {
        let what = format!("event {nr}, key `{}`", case.key);
        assert_eq!(record.key.as_deref(), Some(case.key.as_bytes()), "{what}");
        assert!(record.value == case.value, "{what}: {:?}", values(std::slice::from_ref(record)));
        assert!(record.value == rows[nr].value, "{what}: another value than Postgres prints");
        assert_eq!(record.timestamp, Some(times[nr].get("ms")), "{what}");
        let (id, previous) = (ids[nr].to_string(), ids[nr.saturating_sub(1)].to_string());
        let mut expected = vec![
            ("id", Some(id.as_str())),
            ("type", Some("Placed")),
            ("aggregate-type", Some(aggregate_type.as_str())),
            ("aggregate-id", Some(case.key)),
        ];
        if nr == numbered {
            expected.push(("sequence", Some("1")));
        } else if nr > numbered {
            expected.extend([("sequence", Some("2")), ("previous-event-id", Some(previous.as_str()))]);
        }
        expected.extend(&case.own);
        let text = |bytes: &Vec<u8>| String::from_utf8(bytes.clone()).unwrap();
        let headers: Vec<(String, Option<String>)> =
            record.headers.iter().map(|(name, value)| (name.clone(), value.as_ref().map(text))).collect();
        let headers: Vec<(&str, Option<&str>)> =
            headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
        assert_eq!(headers, expected, "{what}");
    }
}

#[tokio::test]
async fn an_event_goes_through_each_route_that_matches_it() {
    const NAME: &str = "an_event_goes_through_each_route";
    let database = Database::migrated(NAME).await;
    let kafka = Kafka::create(NAME);
    let (v1, v2) = (kafka.create_topic("v1.order", 1).await, kafka.create_topic("v2", 1).await);
    let routes = outboxes(&format!(
        r#"
        [[outbox]]
        name = "default"
        [[outbox.route]]
        when = {{ aggregate_type = "order" }}
        topic = "{}"
        headers = {{ content-type = "application/json", of = "{{headers.tenant}}/{{event_type}} {{{{x}}}}" }}
        [[outbox.route]]
        when = {{ aggregate_type = ["order", "cart"], event_type = ["Placed", "Pay*d"] }}
        topic = "{v2}"
        key = "{{aggregate_type}}/{{aggregate_id}}"
        timestamp = "none"
        [[outbox.route]]
        when = {{ aggregate_type = "*audit*" }}
        publish = false
        "#,
        kafka.topic("v1.{aggregate_type}"),
    ));
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("outbox", routes);
    let started = now_ms();

    // given: in which topics each event belongs
    let events: [(&str, &str, &[&str]); 8] = [
        ("order", "Placed", &[&v1, &v2]),
        ("order", "Shipped", &[&v1]),
        ("cart", "Payed", &[&v2]),
        ("audit", "Placed", &[]),
        ("order", "PayFailure", &[&v1]),
        ("cart", "Payed and delivered", &[&v2]),
        ("pre-audit-2", "Placed", &[]),
        ("order", "Pay*d", &[&v1, &v2]),
    ];
    let columns = "aggregate_type, aggregate_id, event_type, payload, headers, created_at";
    let mut owner = database.connect(Role::Owner).await; // who may say when it was created
    for (nr, (aggregate_type, event_type, _)) in events.iter().enumerate() {
        let rest = "'{\"tenant\": \"acme\"}', '2001-01-01 00:00:00.123999Z'";
        let row = format!("'{aggregate_type}', '{nr}', '{event_type}', '{nr}', {rest}");
        say(&mut owner, &format!("insert into outbox.events ({columns}) values ({row})")).await;
    }
    let expected = |topic: &str| -> Vec<String> {
        let there = events.iter().enumerate().filter(|(_, (.., topics))| topics.contains(&topic));
        there.map(|(nr, _)| nr.to_string()).collect()
    };

    // when
    relay.start();
    let first = arrive(&mut kafka.reader(&[&v1]), expected(&v1).len(), &relay).await;
    let second = arrive(&mut kafka.reader(&[&v2]), expected(&v2).len(), &relay).await;
    settled(&database).await;

    // then
    assert_eq!((values(&first), values(&second)), (expected(&v1), expected(&v2)));
    for (record, nr) in first.iter().zip(expected(&v1)) {
        let (_, event_type, _) = events[nr.parse::<usize>().unwrap()];
        assert_eq!(record.key.as_deref(), Some(nr.as_bytes()));
        assert_eq!(record.timestamp, Some(978_307_200_123), "created_at, cut to milliseconds");
        assert_eq!(record.header("content-type"), Some("application/json"));
        assert_eq!(record.header("of"), Some(format!("acme/{event_type} {{x}}").as_str()));
        assert_eq!(record.header("tenant"), Some("acme"), "the event's own");
    }
    for (record, nr) in second.iter().zip(expected(&v2)) {
        let (aggregate_type, ..) = events[nr.parse::<usize>().unwrap()];
        assert_eq!(record.key.as_deref(), Some(format!("{aggregate_type}/{nr}").as_bytes()));
        assert!(record.timestamp >= Some(started), "when it was sent: {:?}", record.timestamp);
        assert_eq!(record.header("of"), None, "a header of the other route");
    }
    let count =
        async |name: &str| metric(&relay, &format!("outboxd_{name}_total{{outbox=\"default\",lane=\"0\"}}")).await;
    assert_eq!(count("events_left_out").await, Some(2.0));
    assert_eq!(count("records_delivered").await, Some(8.0));
    assert_eq!(count("events_published").await, Some(6.0), "what is left out is not published");
}

#[tokio::test]
async fn a_stream_stays_in_one_partition_and_in_order() {
    const NAME: &str = "a_stream_stays_in_one_partition";
    const EVENTS: i32 = 400;
    const STREAMS: i32 = 20;
    let database = Database::migrated(NAME).await;
    let kafka = Kafka::create(NAME);
    let topic = kafka.create_topic("order", 6).await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.start();
    let columns = "aggregate_type, aggregate_id, event_type, payload";
    let rows =
        format!("select 'order', (n % {STREAMS})::text, 'Counted', to_jsonb(n) from generate_series(1, {EVENTS}) n");
    write(&database, &format!("insert into outbox.events ({columns}) {rows}")).await;

    let records = arrive(&mut kafka.reader(&[&topic]), usize::try_from(EVENTS).unwrap(), &relay).await;
    let mut streams: BTreeMap<i32, Vec<(i32, i32)>> = BTreeMap::new();
    for (record, value) in records.iter().zip(values(&records)) {
        let stream = std::str::from_utf8(record.key.as_deref().unwrap()).unwrap().parse().unwrap();
        streams.entry(stream).or_default().push((record.partition, value.parse().unwrap()));
    }
    for (stream, events) in &streams {
        assert!(events.iter().all(|(partition, _)| *partition == events[0].0), "stream {stream}: {events:?}");
        let read: Vec<i32> = events.iter().map(|(_, number)| *number).collect();
        let written: Vec<i32> = (1..=EVENTS).filter(|number| number % STREAMS == *stream).collect();
        assert_eq!(read, written, "stream {stream}");
    }
    let used: HashSet<i32> = records.iter().map(|record| record.partition).collect();
    assert!(used.len() > 1, "all {STREAMS} streams in one partition");
}

#[tokio::test]
async fn several_outboxes_read_one_table_each_at_its_own_pace() {
    const NAME: &str = "several_outboxes_read_one_table";
    let database = Database::migrated(NAME).await;
    let kafka = Kafka::create(NAME);
    let outbox = |name: &str, start: &str| {
        format!("[[outbox]]\nname = \"{name}\"\n{start}\n[[outbox.route]]\ntopic = \"{}\"\n", kafka.topic(name))
    };
    let first = outbox("default", "");
    let all = [first.as_str(), &outbox("again", "start = \"earliest\""), &outbox("new", "start = \"latest\"")].concat();
    let (default, again, new) = (
        kafka.create_topic("default", 1).await,
        kafka.create_topic("again", 1).await,
        kafka.create_topic("new", 1).await,
    );
    let mut default = kafka.reader(&[&default]);
    let (mut again, mut new) = (kafka.reader(&[&again]), kafka.reader(&[&new]));

    // the first outbox ever begins with the oldest event
    write_numbers(&database, "order", 1..=3).await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("outbox", outboxes(&first));
    relay.start();
    assert_eq!(values(&arrive(&mut default, 3, &relay).await), numbers(1..=3));
    stop(&mut relay).await;

    // another one begins where it says, and takes nothing from the first
    write_numbers(&database, "order", 4..=5).await;
    relay = relay.set("outbox", outboxes(&all));
    relay.start();
    relay.ready().await;
    assert_eq!(values(&arrive(&mut default, 2, &relay).await), numbers(4..=5));
    assert_eq!(values(&arrive(&mut again, 5, &relay).await), numbers(1..=5));
    write_numbers(&database, "order", 6..=8).await;
    for reader in [&mut default, &mut again, &mut new] {
        assert_eq!(values(&arrive(reader, 3, &relay).await), numbers(6..=8));
    }
    let status = relay.status().await.unwrap();
    let names: Vec<_> =
        status["lanes"].as_array().unwrap().iter().map(|lane| lane["outbox"].as_str().unwrap()).collect();
    assert_eq!(names, ["default", "again", "new"]);

    // and a renamed one has to say where it begins
    stop(&mut relay).await;
    relay = relay.set("outbox", outboxes(&outbox("renamed", "")));
    relay.start();
    eventually("a new name is refused", PATIENCE, async || {
        let status = relay.status().await.map_err(|error| error.to_string())?;
        let lane = &status["lanes"][0];
        let said = lane["state"] == "refused" && lane["waits_for"].to_string().contains("a new one, or a renamed one?");
        let said = said && lane["hint"].to_string().contains("start = ");
        if said { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
}

/// All outboxes of a first start begin at once: which of them makes its cursor first must not matter.
#[tokio::test]
async fn the_first_start_may_be_with_several_outboxes() {
    const NAME: &str = "the_first_start_with_several_outboxes";
    const OTHERS: usize = 6; // few would do, but for one that is fast
    let database = Database::migrated(NAME).await;
    let kafka = Kafka::create(NAME);
    let topic = kafka.create_topic("order", 1).await;
    let route = format!("[[outbox.route]]\ntopic = \"{topic}\"\n");
    let other = |nr| format!("[[outbox]]\nname = \"other-{nr}\"\nstart = \"earliest\"\n{route}");
    let mut all: Vec<String> = (0..OTHERS).map(other).collect();
    all.push(format!("[[outbox]]\nname = \"default\"\n{route}"));
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("outbox", outboxes(&all.concat()));
    write_numbers(&database, "order", 1..=3).await;
    relay.start();
    relay.ready().await;
    arrive(&mut kafka.reader(&[&topic]), 3 * (OTHERS + 1), &relay).await;
}

#[tokio::test]
async fn an_outbox_that_starts_with_the_latest_leaves_the_past_alone() {
    const NAME: &str = "an_outbox_that_starts_with_the_latest";
    let database = Database::migrated(NAME).await;
    let kafka = Kafka::create(NAME);
    let topic = kafka.create_topic("order", 1).await;
    let outbox = format!("[[outbox]]\nstart = \"latest\"\n[[outbox.route]]\ntopic = \"{topic}\"");
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("outbox", outboxes(&outbox));

    write_numbers(&database, "order", 1..=3).await;
    let mut late = database.connect(Role::App).await; // in progress when the cursor is made: its event is not the past
    let insert = "insert into outbox.events (aggregate_type, aggregate_id, event_type, payload) values ('order', '7', 'Counted', '4')";
    say(&mut late, &format!("begin; {insert}")).await;
    relay.start();
    relay.ready().await;
    say(&mut late, "commit").await;
    write_numbers(&database, "order", 5..=6).await;
    let mut reader = kafka.reader(&[&topic]);
    let mut arrived = values(&arrive(&mut reader, 3, &relay).await);
    arrived.sort();
    assert_eq!(arrived, numbers(4..=6));

    // `start` is for a cursor that is not there yet
    stop(&mut relay).await;
    write_numbers(&database, "order", 7..=9).await;
    relay.start();
    assert_eq!(values(&arrive(&mut reader, 3, &relay).await), numbers(7..=9));
}

#[tokio::test]
async fn nothing_comes_twice_without_a_kill_under_way() {
    const NAME: &str = "nothing_comes_twice_without_a_kill_under_way";
    const BACKLOG: i32 = 3_000;
    let database = Database::migrated(NAME).await;
    let kafka = Kafka::create(NAME);
    let topic = kafka.create_topic("order", 1).await;
    let mut reader = kafka.reader(&[&topic]);
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay = relay.variable("OUTBOXD__RELAY__IN_FLIGHT__EVENTS", "100"); // so that SIGTERM comes in the middle
    write_numbers(&database, "order", 1..=BACKLOG).await;

    // what was committed before the first start is published, whenever it is told to stop meanwhile
    relay.start();
    let mut records = Vec::new();
    eventually("the first records", PATIENCE, async || {
        records.extend(reader.read_on().await);
        if records.is_empty() { Err("no record".to_owned()) } else { Ok(()) }
    })
    .await;
    stop(&mut relay).await;
    relay.start();
    let all = usize::try_from(BACKLOG).unwrap();
    records.extend(reader.read_on().await);
    records.extend(arrive(&mut reader, all.saturating_sub(records.len()), &relay).await);
    assert_eq!(values(&records), numbers(1..=BACKLOG));

    // a kill repeats nothing once the cursor is saved
    settled(&database).await;
    relay.kill().await;
    write_numbers(&database, "order", BACKLOG + 1..=BACKLOG + 3).await;
    relay.start();
    records.extend(arrive(&mut reader, 3, &relay).await);
    settled(&database).await;
    stop(&mut relay).await;
    relay.start();
    relay.ready().await;
    stop(&mut relay).await;
    records.extend(reader.read_on().await);
    assert_eq!(values(&records), numbers(1..=BACKLOG + 3));
    let mut checker = Checker::new(database.committed().await);
    for record in &records {
        checker.see(record);
    }
    let verdict = checker.verdict(&[]);
    assert!(verdict.is_sound() && verdict.is_tight(), "{verdict}");
}

/// What the README says may be deleted.
#[tokio::test]
async fn what_every_cursor_has_settled_can_be_deleted_and_nothing_else_is() {
    const NAME: &str = "what_every_cursor_has_settled";
    let readme = include_str!("../../README.md");
    let (_, delete) = readme.split_once("delete from outbox.events").unwrap();
    let delete = format!("delete from outbox.events{}", delete.split_once(';').unwrap().0).replace("7 days", "0 days");
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    let topic = kafka.create_topic("order", 1).await;
    let mut owner = database.connect(Role::Owner).await;
    let left = async || database.committed().await.len();

    // nothing was ever relayed: nothing may go
    write_numbers(&database, "order", 1..=5).await;
    say(&mut owner, &delete).await;
    assert_eq!(left().await, 5);

    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.start();
    let mut reader = kafka.reader(&[&topic]);
    arrive(&mut reader, 5, &relay).await;
    stop(&mut relay).await;
    write_numbers(&database, "order", 6..=7).await;
    say(&mut owner, &delete).await;
    assert_eq!(left().await, 2);

    relay.start();
    assert_eq!(values(&arrive(&mut reader, 2, &relay).await), numbers(6..=7));
    stop(&mut relay).await;
}
