//! A bug of outboxd itself: the process says where, settles and saves what it can, and ends with 70. It never hangs.
//!
//! The binary is the one that ships. The panic comes from outside: a small library makes the clock fail, once, for the task
//! that has just received certain words, or for a thread of a certain name.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

use super::{lane, logged, records, two, write_orders};
use crate::delivery::write;
use crate::support::checker::check;
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Role, say};
use crate::support::relay::Relay;
use crate::support::servers::Servers;

/// What a task receives before its clock fails.
const MARKER: &str = "clockfails";

/// From the panic to the end of the process: much less than the grace period, which nobody needs here.
const SECONDS: Duration = Duration::from_secs(10);

/// Events before the panic, and about the time of it.
const EVENTS: i64 = 2_000;

/// A folder with the library, and a file that arms it.
struct Fault {
    folder: TempDir,
}

impl Fault {
    fn build() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/supervision/panic.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-O1", "-shared", "-fPIC", "-o"]).arg(folder.path().join("panic.so")).arg(source).arg("-ldl");
        let built = compiler.output().expect("a C compiler, which the build needs as well");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        Self { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn arm(&self) {
        std::fs::write(self.folder.path().join("armed"), "").unwrap();
    }

    fn on(&self, relay: Relay, thread: &str) -> Relay {
        let relay = relay.variable("LD_PRELOAD", &self.path("panic.so")).variable("FAULT_MARKER", MARKER);
        relay.variable("FAULT_FILE", &self.path("armed")).variable("FAULT_THREAD", thread)
    }
}

/// Two lanes that have published something and are about to publish more.
struct Scene {
    database: Database,
    kafka: Kafka,
    fault: Fault,
    relay: Relay,
    topics: [String; 2],
}

impl Scene {
    async fn set(name: &str) -> Self {
        let (database, kafka, fault) = (Database::migrated(name).await, Kafka::create(name), Fault::build());
        let topics = [kafka.create_topic("left", 1).await, kafka.create_topic("right", 1).await];
        let relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("outbox", two(&kafka));
        let mut relay = fault.on(relay, "tokio-r");
        relay.start();
        relay.ready().await;
        write_orders(&database, EVENTS).await;
        let scene = Self { database, kafka, fault, relay, topics };
        scene.all_published(EVENTS).await;
        scene
    }

    async fn all_published(&self, count: i64) {
        for topic in &self.topics {
            eventually(&format!("{topic} has {count} records"), PATIENCE, async || {
                let found = records(&self.kafka, topic).await;
                if found >= count { Ok(()) } else { Err(format!("{found}")) }
            })
            .await;
        }
    }

    /// The process ends with 70 soon and says where; a lane that has not panicked has saved all that it has sent.
    /// `task` is where the log says that it was; `broken` how many lanes may send something again.
    async fn ends_well(mut self, begun: Instant, task: &str, broken: usize, total: i64) {
        assert_eq!(self.relay.exit_code().await, Some(70), "{}", self.relay.log());
        let took = begun.elapsed();
        assert!(took < SECONDS, "{took:?}");
        let panics = logged(&self.relay, "panic: a bug in outboxd, please").await;
        assert_eq!(panics.len(), 1, "{panics:?}");
        assert!(panics[0]["at"].as_str().is_some_and(|at| at.contains(".rs:")), "{panics:?}");
        if !task.is_empty() {
            let ended = logged(&self.relay, "task ended by a panic").await;
            assert!(ended[0]["task"].as_str().unwrap().starts_with(task), "{ended:?}");
        }
        let held: Vec<String> = sqlx::query_scalar("select outbox from outbox.cursors where owner is not null")
            .fetch_all(&mut self.database.connect(Role::Owner).await)
            .await
            .unwrap();
        assert_eq!(held.len(), broken, "leases that were not given back: {held:?}");

        // and the next one goes on from there: nothing is lost, and only a lane that broke sends anything again
        let mut relay = self.relay.variable("LD_PRELOAD", "");
        relay.start();
        relay.ready().await;
        self.relay = relay;
        self.all_published(total).await;
        self.relay.terminate().await;
        assert_eq!(self.relay.exit_code().await, Some(0));
        let mut again = 0;
        for topic in &self.topics {
            let all = self.kafka.read(topic).await;
            let verdict = check(self.database.committed().await, &all, &[]);
            assert!(verdict.is_sound(), "{topic}: {verdict}");
            again += usize::from(verdict.duplicates.count > 0);
            eprintln!("{task}: ended after {took:?}; {topic}: {verdict}");
        }
        assert!(again <= broken, "{again} lanes have sent something again, {broken} broke");
    }
}

#[tokio::test]
async fn a_panic_of_a_reader_ends_its_lane_and_the_other_one_saves() {
    let scene = Scene::set("a_panic_of_a_reader").await;
    let begun = Instant::now();
    let mark = format!("select 'order', '1', 'Placed', '{{\"why\": \"{MARKER}\"}}'::jsonb");
    let rows =
        format!("{mark} union all select 'order', (n % 10)::text, 'Placed', '{{}}' from generate_series(1, 500) n");
    let columns = "aggregate_type, aggregate_id, event_type, payload";
    write(&scene.database, &format!("insert into outbox.events ({columns}) {rows}")).await;
    scene.ends_well(begun, "lane ", 1, EVENTS + 501).await;
}

#[tokio::test]
async fn a_panic_of_a_pump_ends_its_lane_and_the_other_one_saves() {
    let scene = Scene::set("a_panic_of_a_pump").await;
    scene.fault.arm();
    let begun = Instant::now();
    write_orders(&scene.database, EVENTS).await;
    scene.ends_well(begun, "lane ", 1, 2 * EVENTS).await;
}

#[tokio::test]
async fn after_a_panic_of_a_monitor_the_lanes_save() {
    let scene = Scene::set("a_panic_of_a_monitor").await;
    let begun = Instant::now();
    write_orders(&scene.database, EVENTS).await;
    let mut app = scene.database.connect(Role::App).await;
    say(&mut app, &format!("begin; select pg_current_xact_id(); prepare transaction '{MARKER}'")).await;
    logged(&scene.relay, "task ended by a panic").await;
    say(&mut app, &format!("rollback prepared '{MARKER}'")).await;
    scene.ends_well(begun, "monitor ", 0, 2 * EVENTS).await;
}

#[tokio::test]
async fn after_a_panic_in_an_answer_over_http_the_lanes_save() {
    let scene = Scene::set("a_panic_in_an_answer").await;
    let begun = Instant::now();
    write_orders(&scene.database, EVENTS).await;
    drop(scene.relay.get(&format!("/livez?{MARKER}")).await); // nobody answers
    scene.ends_well(begun, "", 0, 2 * EVENTS).await;
}

/// Nobody joins that thread while a lane works: it would wait for its reports for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_of_the_producers_thread_ends_the_process() {
    const NAME: &str = "a_panic_of_the_producers_thread";
    let (servers, fault) = (Servers::start(&[]).await, Fault::build());
    let database = Database::create_on(servers.postgres(), NAME).await;
    database.migrate().await;
    let kafka = Kafka::create_on(servers.kafka(), NAME);
    kafka.create_topic("order", 1).await;
    let relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("log.filter", "info,librdkafka=debug");
    let mut relay = fault.on(relay, "kafka reports");
    relay.start();
    relay.ready().await;
    write_orders(&database, EVENTS).await;
    lane(&relay, "all is published", |lane| lane["published_events"] == EVENTS).await;
    fault.arm();
    let begun = Instant::now();
    servers.does("kill", "kafka").await; // of which the producer's thread has a line to log
    assert_eq!(relay.exit_code().await, Some(70));
    assert!(begun.elapsed() < SECONDS, "{:?}", begun.elapsed());
    let panics = logged(&relay, "panic: a bug in outboxd, please").await;
    assert_eq!(panics[0]["thread"], "kafka reports", "{panics:?}");
}
