//! Every guard, provoked for real: what the operator reads, that nothing is published meanwhile, and what mends it.

pub(crate) mod copies;
mod cursors;
mod durability;
mod leases;
mod schemas;
pub(crate) mod servers;
mod tables;

use serde::Deserialize;
use sqlx::AssertSqlSafe;

use crate::support::checker::{Verdict, check};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Role, say};
use crate::support::relay::Relay;

/// The exit status of `check` that found something.
const FINDINGS: i32 = 2;

/// A relay, its database and its topic. Nothing runs yet.
pub(crate) struct Scene {
    pub(crate) relay: Relay,
    pub(crate) database: Database,
    pub(crate) kafka: Kafka,
    pub(crate) topic: String,
}

impl Scene {
    /// With the schema of the binary under test.
    pub(crate) async fn new(test: &str) -> Self {
        Self::of(Database::migrated(test).await, test).await
    }

    /// In a database of the test's own making.
    pub(crate) async fn of(database: Database, test: &str) -> Self {
        let kafka = Kafka::create(test);
        let topic = kafka.create_topic("order", 1).await;
        let relay = Relay::new(&database.url(Role::Relay), &kafka).await;
        Self { relay, database, kafka, topic }
    }

    /// Another relay of the same outbox, with a state folder of its own.
    pub(crate) async fn beside(&self) -> Relay {
        Relay::new(&self.database.url(Role::Relay), &self.kafka).await
    }

    /// Commits events, one transaction each.
    pub(crate) async fn write(&self, events: usize) {
        write(&self.database, events).await;
    }

    /// Makes a cursor by publishing, and ends the relay.
    pub(crate) async fn publish_and_end(&mut self, events: usize) {
        self.write(events).await;
        self.relay.start();
        self.everything_arrives().await;
        self.end().await;
    }

    /// SIGTERM, to the end.
    pub(crate) async fn end(&mut self) {
        self.relay.terminate().await;
        assert_eq!(self.relay.exit_code().await, Some(0), "SIGTERM");
    }

    /// How many records the topic has.
    pub(crate) async fn published(&self) -> i64 {
        self.kafka.ends(&[&self.topic]).await.values().sum()
    }

    /// Waits until every committed event is in the topic; none twice, for no relay was killed at work.
    pub(crate) async fn everything_arrives(&self) {
        let verdict = self.arrives().await;
        assert!(verdict.is_tight(), "{verdict}");
    }

    /// The same after a kill: some may have come twice.
    pub(crate) async fn arrives(&self) -> Verdict {
        let rows = self.database.committed().await;
        assert!(!rows.is_empty(), "a test without events proves nothing");
        let verdict = eventually("every event is in the topic", PATIENCE, async || {
            let verdict = check(rows.clone(), &self.kafka.read(&self.topic).await, &[]);
            if verdict.lost.count == 0 { Ok(verdict) } else { Err(verdict.to_string()) }
        })
        .await;
        assert!(verdict.is_sound(), "{verdict}");
        verdict
    }

    /// Waits until the running relay refuses in these words, and proves that it does no more than that.
    pub(crate) async fn refuses(&self, message: &str, hint: Option<&str>) {
        let (published, before) = (self.published().await, evidence(&self.database).await);
        refuses(&self.relay, message, hint).await;
        assert_eq!(self.published().await, published, "published under a guard that says: {message}");
        assert_eq!(evidence(&self.database).await, before, "moved the cursor under a guard that says: {message}");
    }

    /// What `check` finds.
    async fn findings(&self) -> Vec<Line> {
        let output = self.relay.command(&["check", "--output", "json"]).await;
        let lines: Vec<Line> = serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"));
        let findings: Vec<Line> = lines.into_iter().filter(Line::is_finding).collect();
        assert_eq!(output.code, if findings.is_empty() { 0 } else { FINDINGS }, "{output}");
        findings
    }

    /// Asserts that `check` finds this, and nothing else.
    pub(crate) async fn check_says(&self, severity: &str, message: &str, hint: Option<&str>) {
        let findings = self.findings().await;
        assert!(
            matches!(&findings[..], [only] if only.severity == severity && fits(&only.message, message) && only.hint.as_deref() == hint),
            "`check` does not say `{message}` with the hint {hint:?}, and only that, but {findings:#?}"
        );
    }

    /// Asserts that `check` finds nothing.
    pub(crate) async fn check_says_nothing(&self) {
        let findings = self.findings().await;
        assert!(findings.is_empty(), "{findings:#?}");
    }

    /// Runs statements as the owner of the schema.
    pub(crate) async fn owner(&self, statements: &str) {
        say(&mut self.database.connect(Role::Owner).await, statements).await;
    }
}

/// A line of `check`.
#[derive(Debug, Deserialize)]
struct Line {
    severity: String,
    message: String,
    hint: Option<String>,
}

impl Line {
    fn is_finding(&self) -> bool {
        matches!(self.severity.as_str(), "error" | "warning")
    }
}

/// Commits events, one transaction each.
pub(crate) async fn write(database: &Database, events: usize) {
    let mut app = database.connect(Role::App).await;
    for nr in 0..events {
        let insert = format!(
            "insert into outbox.events (aggregate_type, aggregate_id, event_type, payload)
             values ('order', '{}', 'Placed', '{{\"total\": 10}}')",
            nr % 3
        );
        say(&mut app, &insert).await;
    }
}

/// Waits until a running relay refuses in these words, at `/status` and at `/readyz`.
pub(crate) async fn refuses(relay: &Relay, message: &str, hint: Option<&str>) {
    let said = waits(relay, "refused", message).await;
    assert_eq!(said.hint.as_deref(), hint, "the hint beside: {message}");
    let body = relay.get("/readyz").await.unwrap();
    let hint = hint.map(|hint| format!("; {hint}")).unwrap_or_default();
    let expected = format!("lane {}/0 refused: {message}{hint}\n", said.outbox);
    assert!(body.status == 503 && fits(&body.body, &expected), "/readyz: expected {expected}, found {body:?}");
    assert_eq!(relay.get("/livez").await.unwrap().status, 200, "a restart would not help");
}

/// A lane in `/status`.
#[derive(Debug, Deserialize)]
pub(crate) struct Said {
    outbox: String,
    state: String,
    ready: bool,
    waits_for: Option<String>,
    hint: Option<String>,
}

/// Waits until the only lane is in a state, and waits for what is said.
pub(crate) async fn waits(relay: &Relay, state: &str, message: &str) -> Said {
    eventually(&format!("/status says `{state}`: {message}"), PATIENCE, async || {
        let said = said(relay).await.map_err(|error| format!("{error:#}"))?;
        let right = said.state == state && said.waits_for.as_ref().is_some_and(|text| fits(text, message));
        if right { Ok(said) } else { Err(format!("{said:?}")) }
    })
    .await
}

async fn said(relay: &Relay) -> anyhow::Result<Said> {
    let [lane] = serde_json::from_value::<[Said; 1]>(relay.status().await?["lanes"].take())?;
    Ok(lane)
}

/// What must stay as it is under a refusal: who wrote the cursor row, and when.
pub(crate) async fn evidence(database: &Database) -> Option<String> {
    let there: bool = ask(database, "select to_regclass('outbox.cursors') is not null").await;
    if !there {
        return None;
    }
    let row = "select coalesce(string_agg(concat_ws(' ', outbox, lane, xmin, epoch, owner, s, t, after), ', ' order by outbox, lane), 'none') from outbox.cursors";
    Some(ask(database, row).await)
}

/// One value, as the superuser sees it.
pub(crate) async fn ask<T>(database: &Database, query: &str) -> T
where
    T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    let answer = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&mut database.connect(Role::Admin).await).await;
    answer.unwrap_or_else(|error| panic!("{query}: {error}"))
}

/// Whether a text is the expected one, with some number wherever that has `<n>`: the ids of transactions are not ours alone.
pub(crate) fn fits(text: &str, expected: &str) -> bool {
    let Some((head, rest)) = expected.split_once("<n>") else { return text == expected };
    text.strip_prefix(head).is_some_and(|tail| {
        let behind = tail.trim_start_matches(|c: char| c.is_ascii_digit());
        behind.len() < tail.len() && fits(behind, rest)
    })
}

#[test]
fn a_number_fits_where_one_is_expected_and_nothing_else_does() {
    for (text, fitting) in [("at 12 of 3", true), ("at  of 3", false), ("at x of 3", false), ("at 12 of 4", false)] {
        assert_eq!(fits(text, "at <n> of 3"), fitting, "{text}");
    }
}
