//! Memory is bounded, whatever waits: while Kafka is away, reading stops at what may be in flight.

use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::delivery::write;
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Role};
use crate::support::relay::Relay;
use crate::support::servers::Servers;

/// `relay.in_flight.size`, as it is by default.
const IN_FLIGHT_KILOBYTES: u64 = 28 * 1024;

/// Beside what is in flight: pages read ahead, the process itself, and what the allocator does not give back.
const BESIDE_KILOBYTES: u64 = 64_000_000 / 1024;

/// The payload of most events, and of the one that is larger.
const BYTES: usize = 10_000;
const LARGE_BYTES: usize = 10_000_000;

/// While an event passes it is in the driver's buffer, in ours, in librdkafka's and in the batch that is being compressed.
const COPIES: u64 = 4;

/// About as many events may be in flight at once.
const FULL: i64 = 2_500;

/// Events that are published before Kafka goes.
const FIRST: i64 = 600;

/// How much is tried: little in the everyday run, the whole promise under `OUTBOXD_FAULTS=long`.
fn extent() -> (i64, Duration) {
    match std::env::var("OUTBOXD_FAULTS").as_deref() {
        Ok("long") => (1_000_000, Duration::from_mins(1)),
        _ => (50_000, Duration::from_secs(10)),
    }
}

/// What the kernel says of the process.
struct Memory {
    now: u64,
    peak: u64,
    file: u64,
}

impl Memory {
    fn of(relay: &mut Relay) -> Self {
        let [now, peak, file] = ["VmRSS:", "VmHWM:", "RssFile:"].map(|line| relay.memory_kilobytes(line));
        Self { now, peak, file }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} kB, of which {} kB are files; at most {} kB", self.now, self.file, self.peak)
    }
}

/// Commits events of one size whose payloads compress well, so that neither server needs much disk.
async fn write_large(database: &Database, count: i64, bytes: usize) {
    let columns = "aggregate_type, aggregate_id, event_type, payload";
    let payload = format!("to_jsonb(repeat('x', {bytes}))");
    let rows = format!("select 'big', (n % 100)::text, 'Written', {payload} from generate_series(1, {count}) n");
    write(database, &format!("insert into outbox.events ({columns}) {rows}")).await;
}

/// Looks at the memory of a relay with a backlog while Kafka is away, and until all of it is published.
async fn a_backlog_without_kafka(name: &str, count: i64, away: Duration, large: i64) -> u64 {
    let servers = Servers::start(&[]).await;
    let database = Database::create_on(servers.postgres(), name).await;
    database.migrate().await;
    let kafka = Kafka::create_on(servers.kafka(), name);
    let topic = kafka.create_topic_with("big", 3, &[("max.message.bytes", "20000000")]).await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.start();
    relay.ready().await;
    write_large(&database, FIRST, BYTES).await; // a backlog: enough that its producer is known in every partition
    published(&relay, FIRST).await;
    let before = Memory::of(&mut relay);

    // when Kafka goes, and the backlog comes
    servers.does("pause", "kafka").await;
    write_large(&database, count / 2, BYTES).await;
    write_large(&database, large, LARGE_BYTES).await;
    write_large(&database, count - count / 2, BYTES).await;
    eventually("nothing more is read", PATIENCE, async || {
        let status = relay.status().await.map_err(|error| format!("{error:#}"))?;
        let lane = &status["lanes"][0];
        let full = lane["in_flight_events"].as_i64() > Some(FULL);
        if full && lane["state"] == "waiting" { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    let until = Instant::now() + away;
    while Instant::now() < until {
        sleep(Duration::from_secs(1)).await; // that time passes is the fault
        assert_eq!(relay.get("/livez").await.unwrap().status, 200);
    }
    let waiting = Memory::of(&mut relay);
    let status = relay.status().await.unwrap();

    // then it comes back, and all is published
    servers.does("resume", "kafka").await;
    let back = Instant::now();
    published(&relay, FIRST + count + large).await;
    let after = Memory::of(&mut relay);
    eprintln!(
        "{count} events of {BYTES} bytes and {large} of {LARGE_BYTES}:\n  idle:    {before}\n  waiting: {waiting}, {} events in flight\n  after:   {after}, {:?} later",
        status["lanes"][0]["in_flight_events"],
        back.elapsed()
    );
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0), "SIGTERM");
    assert_eq!(kafka.ends(&[&topic]).await.values().sum::<i64>(), FIRST + count + large, "nothing came twice");
    after.peak
}

/// Waits until this many are published. The topic is not asked: a broker that was paused has no leaders for a while.
async fn published(relay: &Relay, count: i64) {
    eventually(&format!("{count} events are published"), PATIENCE * 10, async || {
        let status = relay.status().await.map_err(|error| format!("{error:#}"))?;
        if status["lanes"][0]["published_events"].as_i64() >= Some(count) { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_of_large_events_without_kafka_stays_within_what_may_be_in_flight() {
    let (count, away) = extent();
    let peak = a_backlog_without_kafka("a_backlog_of_large_events", count, away, 0).await;
    let bound = IN_FLIGHT_KILOBYTES + BESIDE_KILOBYTES;
    assert!(peak <= bound, "{peak} kB, more than {bound}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_very_large_event_among_them_costs_a_few_times_itself() {
    let (count, away) = extent();
    let peak = a_backlog_without_kafka("one_very_large_event", count, away, 1).await;
    let bound = IN_FLIGHT_KILOBYTES + BESIDE_KILOBYTES + COPIES * LARGE_BYTES as u64 / 1024;
    assert!(peak <= bound, "{peak} kB, more than {bound}");
}
