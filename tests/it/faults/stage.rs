//! What the tests of servers share: a storm through a relay, what the relay says meanwhile, and what the checker says in the end.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use crate::support::checker::{Checker, Kill, Verdict};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::{Kafka, Reader};
use crate::support::postgres::{Database, Place, Role};
use crate::support::relay::Relay;
use crate::support::said::says;
use crate::support::seed;
use crate::support::writer::{LOCKED, NUMBERED, Plan, Storm};

/// Events that may be on their way: few, so that the bound of the duplicates is tight.
pub(super) const IN_FLIGHT: usize = 500;

/// Partitions of each topic.
pub(super) const PARTITIONS: i32 = 3;

/// A relay, its servers, and what has been read of its topics.
pub(super) struct Stage {
    pub(super) seed: u64,
    pub(super) database: Database,
    pub(super) kafka: Kafka,
    pub(super) topics: Vec<String>,
    pub(super) relay: Relay,
    /// What a fault left open: it explains the duplicates that come after.
    pub(super) kills: Vec<Kill>,
}

impl Stage {
    /// With a topic for each kind of stream. Nothing runs yet.
    pub(super) async fn new(database: Database, kafka: Kafka) -> Self {
        let mut topics = Vec::new();
        for aggregate_type in [LOCKED[0], LOCKED[1], NUMBERED] {
            topics.push(kafka.create_topic(aggregate_type, PARTITIONS).await);
        }
        let relay = Relay::new(&database.url(Role::Relay), &kafka)
            .await
            .variable("OUTBOXD__RELAY__IN_FLIGHT__EVENTS", &IN_FLIGHT.to_string());
        Self { seed: seed(), database, kafka, topics, relay, kills: Vec::new() }
    }

    /// On the servers that all tests share.
    pub(super) async fn shared(test: &str) -> Self {
        Self::new(Database::migrated(test).await, Kafka::create(test)).await
    }

    /// A storm of a moderate rate, so that a fault of seconds leaves a backlog of seconds.
    pub(super) fn plan(&self, seconds: u64) -> Plan {
        Plan { events_per_second: 600, ..Plan::new(self.seed, Duration::from_secs(seconds)) }
    }

    /// Starts the relay and lets the writers loose.
    pub(super) async fn begin(&mut self, plan: Plan) -> Storm {
        self.relay.start();
        self.relay.ready().await;
        Storm::start(&self.database, plan).await
    }

    /// Waits until the lane waits, or is refused, and says all of `words`; answers how it says it.
    pub(super) async fn seen(&self, state: &str, words: &[&str]) -> String {
        let reason = says(&self.relay, "default", state, words).await;
        format!("{state}: {reason}")
    }

    /// Waits until the relay works again. To be ready is less: who waits for a lease is, too.
    pub(super) async fn relays(&self) {
        eventually("the lane is relaying", PATIENCE, async || {
            let status = self.relay.status().await.map_err(|error| format!("{error:#}"))?;
            let lane = &status["lanes"][0];
            if lane["state"] == "relaying" { Ok(()) } else { Err(lane.to_string()) }
        })
        .await;
    }

    /// The same, and answers how long that took.
    pub(super) async fn recovers(&self) -> Duration {
        let mended = Instant::now();
        self.relays().await;
        mended.elapsed()
    }

    /// Notes what is open at this moment, in which the relay can neither send nor save: as much as may be on its way can come
    /// twice.
    pub(super) async fn note_open(&mut self) {
        let place = self.database.place().await;
        let open = self.database.unsettled(&place).await;
        self.kills.push(Kill { in_flight: IN_FLIGHT, ..open });
    }

    /// The same where Kafka took records all the time, and only the save of the cursor failed: what is in the topics as well.
    pub(super) async fn note_unsaved(&mut self) {
        self.note_open().await;
        self.kills.last_mut().expect("a kill").ends = self.ends().await;
    }

    /// The same where a session has ended at some moment since the cursor stood at `place`: it may have sent all that was not settled there.
    pub(super) async fn note_since(&mut self, place: &Place) {
        let until_now = place.until(self.database.place().await);
        let open = self.database.unsettled(&until_now).await;
        self.kills.push(Kill { in_flight: IN_FLIGHT, ends: self.ends().await, ..open });
    }

    /// Waits for so many records.
    pub(super) async fn has_published(&self, count: usize) {
        eventually(&format!("{count} records are in the topics"), PATIENCE, async || {
            let found: i64 = self.ends().await.values().sum();
            if usize::try_from(found).unwrap() >= count { Ok(()) } else { Err(found.to_string()) }
        })
        .await;
    }

    async fn ends(&self) -> HashMap<(String, i32), i64> {
        let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        self.kafka.ends(&topics).await
    }

    pub(super) fn reader(&self) -> Reader {
        let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        self.kafka.reader(&topics)
    }

    /// Waits until every committed event has been seen, ends the relay, and sums up.
    pub(super) async fn arrives(&mut self, mut checker: Checker, mut reader: Reader) -> Verdict {
        let seed = self.seed;
        eventually(&format!("OUTBOXD_SEED={seed}: every event is in a topic"), PATIENCE, async || {
            reader.read_on().await.iter().for_each(|record| checker.see(record));
            if checker.missing() == 0 {
                return Ok(());
            }
            let status =
                self.relay.status().await.map_or_else(|error| format!("{error:#}"), |status| status.to_string());
            Err(format!("{} events; {}; status: {status}", checker.missing(), checker.verdict(&self.kills)))
        })
        .await;
        self.relay.ready().await;
        self.relay.terminate().await;
        assert_eq!(self.relay.exit_code().await, Some(0), "OUTBOXD_SEED={seed}: SIGTERM");
        reader.read_on().await.iter().for_each(|record| checker.see(record));
        checker.verdict(&self.kills)
    }

    /// The same, and asserts that nothing is lost, invented or out of order, and that what came twice is explained.
    pub(super) async fn all_is_well(&mut self) -> Verdict {
        let checker = Checker::new(self.database.committed().await);
        let reader = self.reader();
        let verdict = self.arrives(checker, reader).await;
        self.judge(&verdict);
        verdict
    }

    pub(super) fn judge(&self, verdict: &Verdict) {
        let seed = self.seed;
        assert!(verdict.committed > 0, "a test without events proves nothing");
        assert!(verdict.is_sound(), "OUTBOXD_SEED={seed}: {verdict}");
        assert!(verdict.is_tight(), "OUTBOXD_SEED={seed}: more came again than the fault explains: {verdict}");
    }
}

/// Tells in one line what a fault was, what the relay said, and what came of it; how fast, unless somebody had to act on the
/// relay.
pub(super) fn tell(fault: &str, seen: &str, recovered: Option<Duration>, duplicates: impl fmt::Display) {
    let seconds = recovered.map_or_else(|| "-".to_owned(), |time| format!("{:.1}", time.as_secs_f64()));
    eprintln!("fault: {fault} | seen: {seen} | recovered: {seconds} | duplicates: {duplicates}");
}

/// Whether there is time for more of the same.
pub(super) fn is_long() -> bool {
    std::env::var("OUTBOXD_FAULTS").is_ok_and(|faults| faults == "long")
}
