//! After a restore, a copy or an upgrade: refuse, rebase as the refusal says, go on, and nothing is lost or comes twice.

mod commands;
mod copies;
mod dumps;
mod rebase;
mod set;
mod show;

use serde_json::Value;
use sqlx::AssertSqlSafe;

use crate::guards::Scene;
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Role};
use crate::support::relay::Output;

/// What a refusal says where a rebase mends it.
const REBASE: &str = "run: outboxd cursor rebase";

impl Scene {
    /// Runs what a hint says behind `outboxd`, as an operator does who has the owner's URL at hand.
    async fn operator(&self, command: &str) -> Output {
        let owner = self.database.url(Role::Admin);
        let words: Vec<&str> = command.split(' ').collect();
        self.relay.command(&[&words[..], &["--yes", "--admin-url", &owner]].concat()).await
    }

    /// The same where it has to work, and its answer.
    async fn rebase(&self, flags: &[&str]) -> Value {
        let owner = self.database.url(Role::Admin);
        let rebase = ["cursor", "rebase", "--yes", "--output", "json", "--admin-url", &owner];
        done(&self.relay.command(&[&rebase, flags].concat()).await)
    }

    /// `cursor show`, of the only outbox.
    async fn shown(&self) -> Value {
        let shown = done(&self.relay.command(&["cursor", "show", "--output", "json"]).await);
        assert_eq!(shown.as_array().map(Vec::len), Some(1), "{shown}");
        shown[0].clone()
    }

    /// Publishes into a topic of its own from now on: what comes is then known to come now.
    async fn elsewhere(&mut self, test: &str) {
        self.kafka = Kafka::create(test);
        self.topic = self.kafka.create_topic("order", 1).await;
        self.relay = self.beside().await;
    }

    /// Waits until exactly these events are in the topic, each once, in this order. A quiet topic proves nothing, so one more event follows them.
    async fn publishes(&self, expected: &[String]) {
        self.write(1).await;
        let last = ids(&self.database, "true").await.pop().unwrap();
        let expected: Vec<&str> = expected.iter().chain([&last]).map(String::as_str).collect();
        let published = eventually("the last event is in the topic", PATIENCE, async || {
            let records = self.kafka.read(&self.topic).await;
            let published: Vec<String> =
                records.iter().map(|record| record.header("id").unwrap_or_default().to_owned()).collect();
            if published.contains(&last) { Ok(published) } else { Err(format!("{} records", published.len())) }
        })
        .await;
        assert_eq!(published, expected);
    }
}

/// The answer of a command that has to work.
fn done(output: &Output) -> Value {
    assert_eq!(output.code, 0, "{output}");
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"))
}

/// Asserts how a command ended, and what it said about it.
fn fails(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.code, code, "{output}");
    for word in words {
        assert!(output.stderr.contains(word), "not said: {word}: {output}");
    }
}

/// The uuids of events, by id.
async fn ids(database: &Database, condition: &str) -> Vec<String> {
    let query = format!("select event_id::text from outbox.events where {condition} order by id");
    let ids = sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(&mut database.connect(Role::Admin).await).await;
    ids.unwrap()
}
