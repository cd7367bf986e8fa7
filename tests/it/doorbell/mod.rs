//! The doorbell: a relay that sleeps is woken by whoever writes, and what becomes of that when something breaks.
//!
//! `poll.max` is an hour in all of them: what arrives was not waited for by the clock.

mod hanging;
mod rings;
mod sleep;
mod trouble;

use sqlx::postgres::PgListener;

use crate::delivery::{metric, outboxes};
use crate::guards::{Scene, ask};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Role, say};
use crate::support::relay::{Output, Relay};

/// The first half of the keys of the locks: `obox`.
const LOCKS: &str = "locktype = 'advisory' and classid = 1868722040
    and database = (select oid from pg_database where datname = current_database())";

/// Outboxes with a doorbell, each with a topic of its own for events of the type `order`.
fn with_doorbells(kafka: &Kafka, names: &[&str]) -> toml::Value {
    let outbox = |name: &&str| {
        let topic = kafka.topic(if *name == "default" { "order" } else { name });
        format!(
            "[[outbox]]\nname = \"{name}\"\nstart = \"earliest\"\ndoorbell = true\n[[outbox.route]]\ntopic = \"{topic}\"\n"
        )
    };
    outboxes(&names.iter().map(outbox).collect::<String>())
}

/// A relay that sleeps for up to an hour. Nothing runs yet, and no doorbell hangs.
async fn scene(test: &str) -> Scene {
    let mut scene = Scene::new(test).await;
    let outboxes = with_doorbells(&scene.kafka, &["default"]);
    scene.relay.configure("outbox", outboxes);
    scene.relay.configure("relay.poll.max", "1h");
    scene
}

/// The same with a doorbell, and asleep.
async fn sleeping(test: &str) -> Scene {
    let mut scene = scene(test).await;
    hang(&scene, "default").await;
    scene.relay.start();
    scene.relay.ready().await;
    asleep(&scene.relay, "default").await;
    scene
}

/// One event of a stream: none takes a lock of it, so each writer at work has its own.
fn insert(stream: &str) -> String {
    format!(
        "insert into outbox.events (aggregate_type, aggregate_id, event_type) values ('order', '{stream}', 'Placed')"
    )
}

async fn migrate(scene: &Scene, arguments: &[&str]) -> Output {
    let owner = scene.database.url(Role::Owner);
    scene.relay.command(&[&["migrate", "--admin-url", &owner], arguments].concat()).await
}

/// Hangs the doorbell up for an outbox. The servers of these tests allow prepared transactions.
async fn hang(scene: &Scene, outbox: &str) {
    let output = migrate(scene, &["--doorbell", outbox, "--allow-prepared-transactions"]).await;
    assert_eq!(output.code, 0, "{output}");
}

async fn take_down(scene: &Scene, outbox: &str) {
    let output = migrate(scene, &["--no-doorbell", outbox]).await;
    assert_eq!(output.code, 0, "{output}");
}

/// Waits until the doorbell of an outbox is as wanted; answers why nobody would hear it.
async fn doorbell(relay: &Relay, outbox: &str, state: &str) -> Option<String> {
    eventually(&format!("the doorbell of {outbox} is {state}"), PATIENCE, async || {
        let status = relay.status().await.map_err(|error| format!("{error:#}"))?;
        let lane = status["lanes"].as_array().unwrap().iter().find(|lane| lane["outbox"] == outbox).unwrap();
        if lane["doorbell"] != state {
            return Err(status.to_string());
        }
        Ok(lane["doorbell_trouble"].as_str().map(str::to_owned))
    })
    .await
}

async fn asleep(relay: &Relay, outbox: &str) {
    doorbell(relay, outbox, "asleep").await;
}

/// How many events a lane has published. Asked in haste: what is looked at here takes milliseconds.
async fn published(relay: &Relay, outbox: &str, least: usize) {
    let name = format!("outboxd_events_published_total{{outbox=\"{outbox}\",lane=\"0\"}}");
    let least = f64::from(u32::try_from(least).unwrap());
    eventually(&format!("{outbox} has published {least}"), PATIENCE, async || {
        let mut found = None;
        for _ in 0..100 {
            found = metric(relay, &name).await;
            if found >= Some(least) {
                return Ok(());
            }
        }
        Err(format!("{found:?}; {:?}", relay.status().await))
    })
    .await;
}

/// How often writers woke a lane.
async fn rings(relay: &Relay, outbox: &str) -> f64 {
    metric(relay, &format!("outboxd_doorbell_rings_total{{outbox=\"{outbox}\",lane=\"0\"}}")).await.unwrap()
}

/// How many hold a lock of the doorbell in this mode.
async fn holders(database: &Database, mode: &str) -> i64 {
    ask(database, &format!("select count(*) from pg_locks where {LOCKS} and mode = '{mode}' and granted")).await
}

/// The process of the connection that sleeps.
async fn sleeper(database: &Database) -> i32 {
    ask(database, &format!("select pid from pg_locks where {LOCKS} and mode = 'ExclusiveLock' and granted")).await
}

/// A channel of the tests.
const MARK: &str = "mark";

/// Hears what a relay would.
struct Ear {
    listener: PgListener,
}

impl Ear {
    async fn new(database: &Database, outbox: &str) -> Self {
        let number: i32 = ask(database, &format!("select hashtext('{outbox}')")).await;
        let mut listener = PgListener::connect(&database.url(Role::Relay)).await.unwrap();
        listener.listen_all([format!("outbox_{number}").as_str(), MARK]).await.unwrap();
        Self { listener }
    }

    /// How often it rang until now. Notifications come in the order of the commits: one of our own marks the end.
    async fn rang(&mut self, database: &Database) -> usize {
        say(&mut database.connect(Role::Owner).await, &format!("notify {MARK}")).await;
        let mut count = 0;
        while self.listener.recv().await.unwrap().channel() != MARK {
            count += 1;
        }
        count
    }
}
