//! A storm of writers and a relay behind proxies, what is seen of a fault, and the proof afterwards.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use crate::support::checker::{Checker, Kill, Verdict};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Place, Role};
use crate::support::proxy::Proxy;
use crate::support::relay::Relay;
use crate::support::seed;
use crate::support::servers::Servers;
use crate::support::writer::{LOCKED, NUMBERED, Plan, Storm};

/// Of every relay here: the shortest that can be configured, since most faults last longer than it.
pub(super) const LEASE: Duration = Duration::from_secs(3);

/// What a relay has under way at once, at most: so many may come again beside those that were published and not saved.
pub(super) const IN_FLIGHT: usize = 1_000;

/// What a busy machine may add to a time that is promised.
pub(super) const MARGIN: Duration = Duration::from_secs(4);

const PARTITIONS: i32 = 3;

/// Whose network is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Server {
    Postgres,
    Kafka,
}

/// See the module.
pub(super) struct Scene {
    pub(super) relay: Relay,
    /// On another machine, so to speak; past the proxies.
    pub(super) second: Option<Relay>,
    pub(super) database: Database,
    /// Past the proxy.
    pub(super) kafka: Kafka,
    /// Before Postgres.
    postgres: Proxy,
    /// Before Kafka, which then is one of the test's own.
    broker: Option<(Servers, Proxy)>,
    topics: Vec<String>,
    storm: Option<Storm>,
    moments: Vec<Moment>,
    /// How long it took, where that is not the time from the end of the fault until all has arrived.
    pub(super) recovered: Option<Duration>,
    seed: u64,
}

/// A moment after which events may come again.
struct Moment {
    place: Place,
    ends: HashMap<(String, i32), i64>,
}

/// A lane in `/status`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Said {
    pub(super) state: String,
    pub(super) ready: bool,
    pub(super) waits_for: Option<String>,
    pub(super) lag_seconds: Option<f64>,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.waits_for, self.lag_seconds) {
            (Some(reason), _) => write!(f, "{}: {reason}", self.state),
            (None, Some(lag)) => write!(f, "{}, lag {lag:.1} s", self.state),
            (None, None) => f.write_str(&self.state),
        }
    }
}

impl Scene {
    /// A relay that relays a storm, and the network of one server in the test's hands.
    pub(super) async fn before(server: Server, name: &str) -> Self {
        let broker = match server {
            Server::Postgres => None,
            Server::Kafka => Some(Servers::behind_proxy().await),
        };
        let mut scene = Self::new(name, broker).await;
        scene.relay.start();
        scene.relay.ready().await;
        scene.rages(400).await;
        scene
    }

    /// A relay that does not run yet.
    pub(super) async fn new(name: &str, broker: Option<(Servers, Proxy)>) -> Self {
        let seed = seed();
        let database = Database::migrated(name).await;
        let kafka = broker.as_ref().map_or_else(
            || Kafka::create(name),
            |(servers, _)| Kafka::create_on(servers.kafka(), name), // past the proxy
        );
        let mut topics = Vec::new();
        for aggregate_type in [LOCKED[0], LOCKED[1], NUMBERED] {
            topics.push(kafka.create_topic(aggregate_type, PARTITIONS).await);
        }
        let (postgres, url) = Proxy::before(&database.url(Role::Relay)).await;
        let brokers = broker.as_ref().map_or(kafka.brokers().to_owned(), |(_, proxy)| proxy.address().to_string());
        let relay = prepared(&url, &kafka, &brokers).await;
        Self {
            relay,
            second: None,
            database,
            kafka,
            postgres,
            broker,
            topics,
            storm: None,
            moments: Vec::new(),
            recovered: None,
            seed,
        }
    }

    /// The relay works, and another one, with a state folder of its own as on another machine, stands by.
    pub(super) async fn stands_by(&mut self) {
        self.relay.start();
        self.relay.ready().await;
        let mut second = prepared(&self.database.url(Role::Relay), &self.kafka, self.kafka.brokers()).await;
        second.start();
        is(&second, "standby").await;
        self.second = Some(second);
    }

    /// Lets the writers loose, and waits until they are at it.
    pub(super) async fn rages(&mut self, events_per_second: u32) {
        let plan = Plan { events_per_second, ..Plan::new(self.seed, Duration::from_secs(8)) };
        let storm = Storm::start(&self.database, plan).await;
        storm.has_committed(200).await;
        self.storm = Some(storm);
        self.flows().await;
    }

    /// The network before a server.
    pub(super) fn network(&mut self, server: Server) -> &mut Proxy {
        match (server, &mut self.broker) {
            (Server::Postgres, _) => &mut self.postgres,
            (Server::Kafka, Some((_, proxy))) => proxy,
            (Server::Kafka, None) => panic!("this Kafka has no proxy"),
        }
    }

    /// The servers of the test's own.
    pub(super) fn servers(&self) -> &Servers {
        &self.broker.as_ref().expect("a Kafka of the test's own").0
    }

    /// How many records the topics hold.
    pub(super) async fn published(&self) -> i64 {
        self.ends().await.values().sum()
    }

    async fn ends(&self) -> HashMap<(String, i32), i64> {
        let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        self.kafka.ends(&topics).await
    }

    /// Waits until another record comes.
    pub(super) async fn flows(&self) {
        self.flows_beyond(self.published().await).await;
    }

    /// Waits until there are more records than these.
    pub(super) async fn flows_beyond(&self, before: i64) {
        eventually("events flow", PATIENCE, async || {
            let now = self.published().await;
            if now > before { Ok(()) } else { Err(self.words().await) }
        })
        .await;
    }

    /// Number and holder of the lease, as the row says.
    pub(super) async fn holder(&self) -> (i64, Option<String>) {
        let row = sqlx::query_as("select epoch, owner from outbox.cursors");
        row.fetch_one(&mut self.database.connect(Role::Owner).await).await.expect("a cursor")
    }

    /// One value, as the owner of the schema sees it.
    pub(super) async fn ask(&self, query: &'static str) -> i64 {
        sqlx::query_scalar(query).fetch_one(&mut self.database.connect(Role::Owner).await).await.expect(query)
    }

    /// Sets a key of the relay's config. Counts from the next start.
    pub(super) fn set(&mut self, key: &str, value: &str) {
        self.relay.configure(key, value);
    }

    /// Waits until so many events are sent and not settled.
    pub(super) async fn has_open_events(&self, events: usize) {
        eventually("events are under way", PATIENCE, async || {
            let status = self.relay.status().await.map_err(|error| format!("{error:#}"))?;
            let open = status["lanes"][0]["in_flight_events"].as_u64().expect("a number");
            if usize::try_from(open).unwrap() >= events { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
    }

    /// Notes that events may come again from here: those that the saved cursor does not settle now. To be called while no
    /// new session can begin; what the ended one still saves makes them only fewer.
    pub(super) async fn may_repeat(&mut self) {
        let ends = self.ends().await;
        self.moments.push(Moment { place: self.database.place().await, ends });
    }

    /// What `/status` says of the lane.
    pub(super) async fn said(&self) -> Said {
        said(&self.relay).await.unwrap_or_else(|error| panic!("/status: {error:#}"))
    }

    async fn words(&self) -> String {
        said(&self.relay).await.map_or_else(|error| format!("{error:#}"), |said| said.to_string())
    }

    /// Waits until the lane says that it does not get on, and why, at `/status` and at `/readyz`.
    pub(super) async fn says_why(&self, within: Duration) -> Said {
        let started = Instant::now();
        let seen = eventually("the lane says what it waits for", within, async || {
            let said = said(&self.relay).await.map_err(|error| format!("{error:#}"))?;
            let readiness = self.relay.get("/readyz").await.map_err(|error| format!("{error:#}"))?;
            let tells = said.waits_for.as_ref().is_some_and(|reason| readiness.body.contains(reason));
            if !said.ready && tells && readiness.status == 503 {
                Ok(said)
            } else {
                Err(format!("{said:?} {readiness:?}"))
            }
        })
        .await;
        let alive = self.relay.get("/livez").await.unwrap();
        assert_eq!(alive.status, 200, "a restart would not help: {alive:?}");
        eprintln!("said after {:.1} s: {seen}", started.elapsed().as_secs_f64());
        seen
    }

    /// Ends the storm, then the fault, by `recover`; waits until all has arrived, and judges.
    pub(super) async fn ends_well(mut self, what: &str, seen: &str, recover: impl AsyncFnOnce(&mut Self)) {
        let run = format!("OUTBOXD_SEED={}: {what}", self.seed);
        let tally = self.storm.take().expect("a storm").stop().await;
        let rows = self.database.committed().await;
        assert_eq!(rows.len(), tally.events, "{run}: {tally}");
        let mut checker = Checker::new(rows);
        let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        let mut reader = self.kafka.reader(&topics);
        reader.read_on().await.iter().for_each(|record| checker.see(record));
        recover(&mut self).await;
        let fault_over = Instant::now();
        eventually(&format!("{run}: every event is in a topic"), PATIENCE, async || {
            reader.read_on().await.iter().for_each(|record| checker.see(record));
            if checker.missing() == 0 {
                Ok(())
            } else {
                Err(format!("{} missing; {}", checker.missing(), self.words().await))
            }
        })
        .await;
        let recovered = self.recovered.unwrap_or_else(|| fault_over.elapsed()).as_secs_f64();

        // every relay ends well, with nothing left to say
        for relay in std::iter::once(&mut self.relay).chain(&mut self.second) {
            relay.ready().await;
            relay.terminate().await;
            assert_eq!(relay.exit_code().await, Some(0), "{run}: SIGTERM");
        }
        let open = self.database.unsettled(&self.database.place().await).await.unsettled.len();
        assert_eq!(open, 0, "{run}: events that the last cursor does not settle");
        reader.read_on().await.iter().for_each(|record| checker.see(record));
        let verdict = self.judge(&checker).await;
        eprintln!(
            "fault: {what} | seen: {seen} | recovered: {recovered:.1} s | duplicates: {}",
            verdict.duplicates.count
        );
        eprintln!("{run}: {verdict}");
        assert!(verdict.is_sound(), "{run}: {verdict}");
        assert!(verdict.is_tight(), "{run}: more came again than the fault explains: {verdict}");
    }

    async fn judge(&self, checker: &Checker) -> Verdict {
        let mut kills = Vec::new();
        for Moment { place, ends } in &self.moments {
            kills.push(Kill { ends: ends.clone(), in_flight: IN_FLIGHT, ..self.database.unsettled(place).await });
        }
        checker.verdict(&kills)
    }
}

/// Waits until the lane is in this state.
pub(super) async fn is(relay: &Relay, state: &str) -> Said {
    eventually(&format!("the lane is {state}"), PATIENCE, async || {
        let said = said(relay).await.map_err(|error| format!("{error:#}"))?;
        if said.state == state { Ok(said) } else { Err(said.to_string()) }
    })
    .await
}

/// What `/status` says of the only lane.
pub(super) async fn said(relay: &Relay) -> anyhow::Result<Said> {
    let [lane] = serde_json::from_value::<[Said; 1]>(relay.status().await?["lanes"].take())?;
    Ok(lane)
}

async fn prepared(postgres: &str, kafka: &Kafka, brokers: &str) -> Relay {
    Relay::new(postgres, kafka)
        .await
        .set("kafka.brokers", brokers)
        .set("relay.lease", humantime::format_duration(LEASE).to_string())
        .variable("OUTBOXD__RELAY__IN_FLIGHT__EVENTS", &IN_FLIGHT.to_string())
}
