//! `outboxd parked retry` and `discard`: in order per stream, also while events arrive and relays die.

use std::collections::HashSet;
use std::time::Duration;

use outboxd::config::outbox::Start;
use outboxd::config::secret::Secret;
use outboxd::db::{DbErrorKind, Purpose, Session, connect};
use outboxd::outbox::cursor::Cursor;
use outboxd::outbox::lane::LaneId;
use outboxd::outbox::stream::Stream;
use outboxd::store::cursor::{Acquired, Claim, Lease, Saved, acquire, begin, save};
use outboxd::store::decisions::{Filter, give_up, list};
use outboxd::store::parked::{Extent, decided, fetch};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::sleep;

use super::{are_parked, configure, decides, parked};
use crate::bad_input::given;
use crate::delivery::{arrive, numbers, stop, values, write, write_numbers};
use crate::support::checker::Checker;
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Role, say};
use crate::support::relay::Relay;
use crate::support::seed;

/// An event that the topic does not take unless its limit is raised.
const HUGE: &str = "insert into outbox.events (aggregate_type, aggregate_id, event_type, payload)
                    values ('order', '7', 'Huge', to_jsonb(repeat('x', 40000)))";

#[tokio::test]
async fn a_discarded_event_is_kept_and_what_follows_it_is_sent() {
    let (database, kafka, topic) = given("a_discarded_event_is_kept").await;
    configure(&kafka, &topic, "max.message.bytes", "20000").await;
    write(&database, HUGE).await;
    write_numbers(&database, "order", 5..=6).await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.start();
    let mut reader = kafka.reader(&[&topic]);
    assert_eq!(values(&arrive(&mut reader, 3, &relay).await), numbers(1..=3));
    let found = are_parked(&relay, 1).await;
    let event = found[0]["event_id"].as_str().unwrap().to_owned();

    // without --yes nothing is done, and it is said what would be
    let output = relay.command(&["parked", "discard", &event]).await;
    let said = &output.stderr;
    assert_eq!(output.code, 1, "{said}");
    assert!(said.contains("1 event of 1 stream would be given up") && said.contains("say --yes"), "{said}");
    let output = relay.command(&["parked", "discard", "--yes"]).await;
    assert_eq!(output.code, 64, "nothing says which");

    decides(&relay, &["discard", &event, "--yes"]).await;
    assert_eq!(values(&arrive(&mut reader, 2, &relay).await), numbers(5..=6));
    are_parked(&relay, 0).await;
    let output = relay.command(&["parked", "show", &event]).await;
    let shown: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(shown["decision"], "discard", "{shown}");
    assert!(shown["decided_by"].as_str().unwrap().contains(" as ") && shown["settled_at"].is_string(), "{shown}");
    assert_eq!(shown["payload"].as_str().unwrap().len(), 40_000);

    // with its followers, a stream starts anew behind them
    write(&database, HUGE).await;
    write_numbers(&database, "order", 8..=9).await;
    eventually("three events are parked", PATIENCE, async || {
        let found = parked(&relay).await;
        if found.first().is_some_and(|stream| stream["events"] == 3) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    let said = decides(&relay, &["discard", "--all", "--with-followers", "--yes"]).await;
    assert!(said.contains("3 events of 1 stream will be given up"), "{said}");
    are_parked(&relay, 0).await;
    write_numbers(&database, "order", 10..=11).await;
    assert_eq!(values(&arrive(&mut reader, 2, &relay).await), numbers(10..=11));
    let output = relay.command(&["parked", "retry", &event]).await;
    let said = &output.stderr;
    assert_eq!(output.code, 1, "{said}");
    assert!(said.contains("is not the first that is parked"), "{said}");
    stop(&mut relay).await;
}

/// A lane waits for a topic only as long as somebody needs it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_sent_again_to_a_topic_that_is_gone_can_be_given_up() {
    const NAME: &str = "an_event_that_is_sent_again_to_a_topic_that_is_gone";
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    let order = kafka.create_topic("order", 1).await;
    let gone = kafka.create_topic_with("gone", 1, &[("max.message.bytes", "20000")]).await;
    write(&database, &HUGE.replace("'order'", "'gone'")).await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.start();
    let event = are_parked(&relay, 1).await[0]["event_id"].as_str().unwrap().to_owned();
    kafka.delete_topic(&gone).await;
    decides(&relay, &["retry", &event]).await;
    eventually("the lane waits for the topic", PATIENCE, async || {
        let status = relay.status().await.map_err(|error| format!("{error:#}"))?;
        let reason = status["lanes"][0]["waits_for"].as_str().unwrap_or_default();
        if reason.contains(&gone) { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    write_numbers(&database, "order", 1..=3).await;

    decides(&relay, &["discard", &event, "--yes"]).await;
    assert_eq!(values(&arrive(&mut kafka.reader(&[&order]), 3, &relay).await), numbers(1..=3));
    are_parked(&relay, 0).await;
    stop(&mut relay).await;
}

/// Parks rows of a stream, each of `blocks` times 32 bytes that do not compress.
fn parks(stream: &str, rows: i32, blocks: i32) -> String {
    format!(
        "insert into outbox.parked (outbox, lane, id, xid, created_at, event_id, aggregate_type, aggregate_id, event_type, headers, cause, payload_bytes)
         select 'default', 0, n, '3', now(), gen_random_uuid(), 'order', '{stream}', 'Written', '{{}}', 'follows',
                (select string_agg(sha256(convert_to(n || ' ' || i, 'UTF8')), ''::bytea) from generate_series(1, {blocks}) i)
           from generate_series(1, {rows}) n"
    )
}

/// A new outbox, its cursor, and a connection that holds its lease.
async fn lead(database: &Database) -> (Session, Lease, Cursor) {
    let mut writer = connect(&Secret::new(database.url(Role::Relay)), Purpose::Write).await.unwrap();
    begin(&mut writer, "default", LaneId::FIRST, Start::Earliest).await.unwrap();
    let claim = Claim {
        outbox: "default".to_owned(),
        lane: LaneId::FIRST,
        owner: "test".to_owned(),
        ttl: PATIENCE,
        kafka_cluster: String::new(),
    };
    let Acquired::Held(lease, cursor) = acquire(&mut writer, &claim, None).await.unwrap() else { panic!("not free") };
    (writer, lease, cursor)
}

/// A row that is settled does not come again: a stream that is not told then would stand until the next start.
#[tokio::test]
async fn of_however_many_discarded_events_every_stream_is_told_a_part_at_a_time() {
    let database = Database::migrated("of_however_many_discarded_events").await;
    let (mut writer, lease, _) = lead(&database).await;
    let park = "insert into outbox.parked (outbox, lane, id, xid, created_at, event_id, aggregate_type, aggregate_id, event_type, headers, cause, decision)
                select 'default', 0, n, '3', now(), gen_random_uuid(), 'order', n::text, 'Written', '{}', 'rejection', 'discard'
                  from generate_series(1, 12000) n";
    let mut owner = database.connect(Role::Owner).await;
    say(&mut owner, park).await;
    // somebody looks at one of them, and does not let it go
    let mut holder = database.connect(Role::Owner).await;
    say(&mut holder, "begin; select from outbox.parked where id = 7 for update").await;
    let mut told = HashSet::new();
    for expected in [10_000, 1_999, 0] {
        let streams = decided(&mut writer, &lease).await.unwrap();
        assert_eq!(streams.len(), expected);
        told.extend(streams.into_iter().map(|(stream, given_up)| (stream.aggregate_id, given_up)));
    }
    say(&mut holder, "commit").await;
    let rest = decided(&mut writer, &lease).await.unwrap();
    told.extend(rest.into_iter().map(|(stream, given_up)| (stream.aggregate_id, given_up)));
    assert_eq!(told, (1..=12_000).map(|n: i32| (n.to_string(), true)).collect());
}

/// The last ones first, a part at a time. Rows that somebody else changes meanwhile are not passed over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_long_stream_all_is_given_up_or_it_is_said_how_much() {
    const ROWS: u64 = 25_000;
    let database = Database::migrated("of_a_long_stream_all_is_given_up").await;
    let mut owner = database.connect(Role::Owner).await;
    say(&mut owner, &parks("7", 25_000, 0)).await;
    say(&mut owner, &parks("8", 1, 0).replace("select 'default', 0, n,", "select 'default', 0, 30000,")).await;
    let mut reader = connect(&Secret::new(database.url(Role::Relay)), Purpose::Read).await.unwrap();
    let outboxes = vec!["default".to_owned()];
    let heads = list(&mut reader, &Filter { outboxes, ..Filter::default() }, 10).await.unwrap();
    let head = heads.iter().find(|head| head.aggregate_id == "7").unwrap();
    assert_eq!((heads.len(), head.events), (2, 10_000));

    // while somebody holds one of them, what is behind it is given up
    let mut holder = database.connect(Role::Owner).await;
    say(&mut holder, "begin; update outbox.parked set attempts = attempts + 1 where id = 7").await;
    let mut events = 0;
    let error = give_up(&mut reader, head, "me", &mut events).await.unwrap_err();
    assert_eq!((error.kind(), events), (DbErrorKind::Busy, 20_000), "{error}");

    // when he lets it go, changed, so is the rest
    let mut admin = database.connect(Role::Admin).await;
    let (given_up, ()) = tokio::join!(give_up(&mut reader, head, "me", &mut events), async {
        eventually("it waits", PATIENCE, async || {
            let waiting =
                "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%given_up%'";
            let count: i64 = sqlx::query_scalar(waiting).fetch_one(&mut admin).await.unwrap();
            if count == 1 { Ok(()) } else { Err(format!("{count} do")) }
        })
        .await;
        say(&mut holder, "commit").await;
    });
    given_up.unwrap();
    assert_eq!(events, ROWS);
    let left = "select count(*) from outbox.parked where decision is distinct from 'discard'";
    let left: i64 = sqlx::query_scalar(left).fetch_one(&mut owner).await.unwrap();
    assert_eq!(left, 1, "the other stream");
    give_up(&mut reader, head, "me", &mut events).await.unwrap();
    assert_eq!(events, ROWS, "nothing is counted twice");
}

/// What is restored over a relay at work has its epoch, but was not written here: a save would make it look as if it were.
#[tokio::test]
async fn a_cursor_that_was_restored_under_a_relay_is_not_written() {
    let database = Database::migrated("a_cursor_that_was_restored_under").await;
    let (mut writer, mut lease, cursor) = lead(&database).await;
    assert_eq!(save(&mut writer, &mut lease, &cursor, &[]).await.unwrap(), Saved::Renewed);
    let mut owner = database.connect(Role::Owner).await;
    say(
        &mut owner,
        "create table copy as table outbox.cursors; truncate outbox.cursors; insert into outbox.cursors table copy",
    )
    .await;
    assert_eq!(save(&mut writer, &mut lease, &cursor, &[]).await.unwrap(), Saved::Fenced);
}

/// It is the server that cuts: the rest of an answer holds up the next statement, and that is a save of the cursor.
#[tokio::test]
async fn the_server_sends_a_bounded_part_of_what_is_parked() {
    const SMALL: &str = "small 1, small 2, small 3, small 4, small 5";
    let database = Database::migrated("the_server_sends_a_bounded_part").await;
    let mut owner = database.connect(Role::Owner).await;
    for (stream, rows, blocks) in [("small", 5, 0), ("wide", 5, 3_200), ("huge", 2, 32_000)] {
        say(&mut owner, &parks(stream, rows, blocks)).await;
    }
    let (mut writer, lease, _) = lead(&database).await;
    let mut read = async |streams: &[&str], budget_bytes| {
        let streams: Vec<Stream> = streams
            .iter()
            .map(|name| Stream { aggregate_type: "order".to_owned(), aggregate_id: (*name).to_owned() })
            .collect();
        let (found, extent) = fetch(&mut writer, &lease, &streams, 100, budget_bytes).await.unwrap();
        let names = found.iter().map(|row| format!("{} {}", row.event.aggregate_id, row.event.id.get()));
        (names.collect::<Vec<_>>().join(", "), extent)
    };
    assert_eq!(read(&["small"], usize::MAX).await, (SMALL.to_owned(), Extent::Whole));
    assert_eq!(read(&[], usize::MAX).await, (String::new(), Extent::Whole));
    // three rows of 100 kB: before the fourth, 256 KiB are full
    let three = format!("{SMALL}, wide 1, wide 2, wide 3");
    assert_eq!(read(&["small", "wide", "huge"], usize::MAX).await, (three, Extent::Cut));
    // one that is too large comes, and alone
    assert_eq!(read(&["huge", "small"], usize::MAX).await, ("huge 1".to_owned(), Extent::Cut));
    // the reader's own budget is the smaller one
    assert_eq!(read(&["wide"], 150_000).await, ("wide 1, wide 2".to_owned(), Extent::Cut));
}

#[tokio::test]
async fn streams_with_more_than_the_server_sends_at_once_are_released_completely_and_in_order() {
    const NAME: &str = "streams_with_more_than_the_server_sends";
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    let topic = kafka.create_topic_with("order", 1, &[("max.message.bytes", "20000")]).await;
    for stream in ["7", "8"] {
        // the first is too large; those behind it are 1.4 MB that do not compress
        let insert = format!(
            "insert into outbox.events (aggregate_type, aggregate_id, event_type, payload)
             select 'order', '{stream}', 'Written',
                    to_jsonb((select string_agg(md5(n || ' ' || i), '') from generate_series(1, case when n = 1 then 1000 else 300 end) i))
               from generate_series(1, 150) n"
        );
        write(&database, &insert).await;
    }
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.start();
    eventually("all is parked", PATIENCE, async || {
        let found = parked(&relay).await;
        let is_all = found.len() == 2 && found.iter().all(|stream| stream["events"] == 150);
        if is_all { Ok(()) } else { Err(format!("{found:?}; {:?}", relay.status().await)) }
    })
    .await;

    configure(&kafka, &topic, "max.message.bytes", "100000").await;
    let mut checker = Checker::new(database.committed().await);
    let mut reader = kafka.reader(&[&topic]);
    decides(&relay, &["retry", "--all"]).await;
    arrive(&mut reader, 300, &relay).await.iter().for_each(|record| checker.see(record));
    are_parked(&relay, 0).await;
    stop(&mut relay).await;
    let verdict = checker.verdict(&[]);
    assert!(verdict.is_sound() && checker.missing() == 0, "{verdict}");
}

/// Bug 23 of the field: the release of a stream races its live events. Here the relay also dies, and the cause comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_released_arrives_in_its_order_whatever_happens_meanwhile() {
    const NAME: &str = "a_stream_that_is_released";
    const STREAMS: i32 = 20;
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    let topic = kafka.create_topic_with("order", 3, &[("max.message.bytes", "20000")]).await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka)
        .await
        .variable("OUTBOXD__RELAY__IN_FLIGHT__EVENTS", "50")
        .variable("OUTBOXD__RELAY__LEASE", "3s");
    relay.start();

    let mut kills = 0;
    for round in 0..40 {
        // one transaction per stream; now and then with an event that is too large now
        for stream in 0..STREAMS {
            let size = if random.random_ratio(1, 15) { 40_000 } else { 10 };
            let events = random.random_range(1..6);
            write(&database, &format!(
                "insert into outbox.events (aggregate_type, aggregate_id, event_type, payload)
                 select 'order', '{stream}', 'Written', to_jsonb(repeat('x', case when n = 2 then {size} else 10 end)) from generate_series(1, {events}) n"
            )).await;
        }
        match random.random_range(0..6) {
            0 => {
                relay.kill().await;
                kills += 1;
                relay.start();
            }
            1 => configure(&kafka, &topic, "max.message.bytes", "100000").await,
            2 => configure(&kafka, &topic, "max.message.bytes", "20000").await,
            3 | 4 => drop(relay.command(&["parked", "retry", "--all"]).await), // nothing may be parked
            _ => sleep(Duration::from_millis(random.random_range(0..300))).await, // what happens meanwhile is the test
        }
        if round % 10 == 9 {
            relay.kill().await;
            kills += 1;
            relay.start();
        }
    }

    // when the topic takes all and all is released, all is there, in order
    configure(&kafka, &topic, "max.message.bytes", "100000").await;
    let mut checker = Checker::new(database.committed().await);
    let mut reader = kafka.reader(&[&topic]);
    eventually(&format!("OUTBOXD_SEED={seed}: every event is there"), PATIENCE, async || {
        drop(relay.command(&["parked", "retry", "--all"]).await);
        reader.read_on().await.iter().for_each(|record| checker.see(record));
        if checker.missing() == 0 {
            return Ok(());
        }
        Err(format!("{}; parked {:?}; {:?}", checker.verdict(&[]), parked(&relay).await, relay.status().await))
    })
    .await;
    are_parked(&relay, 0).await;
    relay.ready().await;
    stop(&mut relay).await;
    reader.read_on().await.iter().for_each(|record| checker.see(record));
    let verdict = checker.verdict(&[]);
    eprintln!("OUTBOXD_SEED={seed}: {kills} kills; {verdict}");
    assert!(verdict.is_sound(), "OUTBOXD_SEED={seed}: {verdict}");
}
