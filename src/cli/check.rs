//! `outboxd check`: configuration, both servers, schema, grants, topics; each finding with its remedy.

use super::output::{self, Format};
use super::{Exit, File, block_on, valid};
use crate::config::Config;
use crate::config::route::{Part, Policy};
use crate::db::{self, DbError, Purpose, Session, doorbell};
use crate::outbox::lane::LaneId;
use crate::relay::leadership::Terms;
use crate::sink::SendError;
use crate::sink::kafka::topics::{self, Missing, Topics};
use crate::store::decisions::{self, Filter};
use crate::store::standing::{Finding, Severity};
use crate::store::{guards, holders, standing};
use serde::Serialize;
use std::collections::BTreeSet;

/// One line of the report.
#[derive(Debug, Serialize)]
struct Line {
    area: &'static str,
    severity: &'static str,
    message: String,
    hint: Option<String>,
}

impl Line {
    fn new(area: &'static str, severity: &'static str, message: impl Into<String>, hint: Option<String>) -> Self {
        Self { area, severity, message: message.into(), hint }
    }

    fn is_finding(&self) -> bool {
        matches!(self.severity, "error" | "warning")
    }
}

pub(super) fn run(file: &File, format: Format) -> anyhow::Result<Exit> {
    let (lines, broken) = match valid(&file.text) {
        Err(problems) => {
            (problems.into_iter().map(|problem| Line::new("config", "error", problem, None)).collect(), true)
        }
        Ok(config) => (block_on(async { Ok(look(&config).await) })?, false),
    };
    match format {
        Format::Json => output::json(&lines),
        Format::Text => output::data(&text(&lines)),
    }
    let found = lines.iter().any(Line::is_finding);
    Ok(if broken {
        Exit::Configuration
    } else if found {
        Exit::Findings
    } else {
        Exit::Done
    })
}

fn text(lines: &[Line]) -> String {
    let mut rows: Vec<String> = lines.iter().map(row).collect();
    rows.push(match lines.iter().filter(|line| line.is_finding()).count() {
        0 => "no findings".to_owned(),
        1 => "1 finding".to_owned(),
        n => format!("{n} findings"),
    });
    rows.join("\n")
}

fn row(line: &Line) -> String {
    let hint = line.hint.as_ref().map(|hint| format!("\n                   hint: {hint}")).unwrap_or_default();
    format!("{:8} {:9} {}{hint}", line.severity, line.area, line.message)
}

async fn look(config: &Config) -> Vec<Line> {
    let mut lines = vec![Line::new("config", "ok", format!("{} outbox(es)", config.outboxes.len()), None)];
    let topics = kafka(config, &mut lines).await;
    postgres(config, topics, &mut lines).await;
    lines
}

/// Returns the id of the cluster, if it answers.
async fn kafka(config: &Config, lines: &mut Vec<Line>) -> Option<String> {
    let asked = async {
        let mut topics = Topics::new(&config.kafka, Terms::of(config.relay.lease).socket_timeout)?;
        let cluster = topics.cluster().await?;
        lines.push(Line::new("kafka", "ok", format!("cluster {cluster}"), None));
        for topic in fixed_topics(config) {
            match topics.learn(&topic, Missing::Stays).await {
                Ok(found) => lines.push(Line::new(
                    "kafka",
                    "ok",
                    format!("topic {topic}: {} partitions, takes {} bytes", found.partitions, found.limit_bytes),
                    None,
                )),
                Err(error) if topics::is_missing(&error) && config.kafka.create_topics.is_some() => {
                    lines.push(Line::new("kafka", "info", format!("topic {topic}: made at its first event"), None));
                }
                Err(error) => lines.push(Line::new("kafka", "error", error.what, error.hint)),
            }
        }
        Ok::<String, SendError>(cluster)
    };
    match asked.await {
        Ok(cluster) => Some(cluster),
        Err(error) => {
            lines.push(Line::new("kafka", "error", error.what, error.hint));
            None
        }
    }
}

/// Topics whose names do not depend on events: those of routes, and for dead letters.
fn fixed_topics(config: &Config) -> BTreeSet<String> {
    let routes = || config.outboxes.iter().flat_map(|outbox| &outbox.routes).filter(|route| route.publish);
    let targets = routes().filter_map(|route| match &route.topic.parts[..] {
        [Part::Literal(topic)] => Some(topic),
        _ => None,
    });
    let policies = config.outboxes.iter().map(|outbox| &outbox.on_reject).chain(routes().map(|route| &route.on_reject));
    let dead_letters = policies.filter_map(|policy| match policy {
        Policy::DeadLetter(topic) => Some(topic),
        Policy::Park | Policy::Halt => None,
    });
    targets.chain(dead_letters).cloned().collect()
}

async fn postgres(config: &Config, cluster: Option<String>, lines: &mut Vec<Line>) {
    if let Err(error) = ask_postgres(config, cluster, lines).await {
        lines.push(Line::new("postgres", "error", error.to_string(), error.hint().map(str::to_owned)));
    }
}

async fn ask_postgres(config: &Config, cluster: Option<String>, lines: &mut Vec<Line>) -> Result<(), DbError> {
    let mut session = db::connect(&config.postgres.url, Purpose::Observe).await?;
    let server = session.server.clone();
    lines.push(Line::new(
        "postgres",
        "ok",
        format!("version {} at {}, as {}", server.version / 10_000, server.host, server.role),
        None,
    ));
    let names = config.outbox_names();
    let findings = standing::look(&mut session, &names).await?;
    lines.extend(findings.iter().map(finding));
    if findings.iter().any(|finding| finding.severity == Severity::Refuse) {
        return Ok(()); // the cursor cannot be judged on such a schema
    }
    lines.push(Line::new("postgres", "ok", "schema and grants", None));
    for (outbox, settings) in names.iter().zip(&config.outboxes) {
        let place = guards::place(&mut session, outbox, LaneId::FIRST).await?;
        let saved = place.cursor.as_ref().and_then(|row| row.kafka_cluster.clone());
        let cluster = cluster.clone().or(saved).unwrap_or_default(); // an absent cluster is a finding of its own
        let judged = guards::judge_place(&place, outbox, &server.role, &cluster);
        match judged.and_then(|_| guards::may_begin(&place, outbox, settings.start)) {
            Ok(()) => lines.push(Line::new("postgres", "ok", cursor_words(outbox, &place), None)),
            Err(refusal) => lines.push(Line::new("postgres", "error", refusal.message, refusal.hint)),
        }
    }
    doorbells(config, &mut session, lines).await?;
    parked(config, &names, lines).await?;
    for holder in holders::look(&mut session).await?.iter().filter(|holder| holder.is_long()) {
        let (transaction, age) = (holder.transaction(), holder.age_seconds);
        let message = format!("{transaction}, open for {age:.0} s: its own events wait, no others");
        lines.push(Line::new("postgres", "warning", message, Some(holder.remedy())));
    }
    session.close().await;
    Ok(())
}

/// A doorbell that is configured and does not ring, and one that costs writers something for nobody.
async fn doorbells(config: &Config, session: &mut Session, lines: &mut Vec<Line>) -> Result<(), DbError> {
    for outbox in &config.outboxes {
        let name = outbox.name.as_str();
        let bell = Session::brief("looking at the doorbell", doorbell::look(&mut session.connection, name)).await?;
        match (outbox.doorbell, bell.rings_for(name)) {
            (true, Ok(())) => lines.push(Line::new("postgres", "ok", format!("doorbell of {name}"), None)),
            (true, Err(unrung)) => {
                let message = format!("outbox {name} polls: {unrung}");
                lines.push(Line::new("postgres", "warning", message, Some(unrung.hint(name))));
            }
            (false, Ok(())) => {
                let message = format!("the doorbell of outbox.events rings for {name}, which has no `doorbell = true`");
                let hint = Some(format!("if nobody else needs it: outboxd migrate --no-doorbell {name}"));
                lines.push(Line::new("postgres", "info", message, hint));
            }
            (false, Err(_)) => {}
        }
        if bell.max_prepared > 0 && bell.rings_for(name).is_ok() {
            let most = bell.max_prepared;
            let message =
                format!("max_prepared_transactions is {most}: a transaction that wakes {name} cannot be prepared");
            lines.push(Line::new("postgres", "info", message, None));
        }
    }
    Ok(())
}

/// Parked streams wait for somebody, so they are a finding.
async fn parked(config: &Config, names: &[String], lines: &mut Vec<Line>) -> Result<(), DbError> {
    let mut reader = db::connect(&config.postgres.url, Purpose::Read).await?;
    let filter = Filter { outboxes: names.to_vec(), ..Filter::default() };
    let found = decisions::list(&mut reader, &filter, MANY).await?;
    reader.close().await;
    if !found.is_empty() {
        let more = if found.len() < 1_000 { "" } else { " or more" };
        let streams = output::counted(found.len(), "stream");
        let hint = Some("look at them: outboxd parked list".to_owned());
        lines.push(Line::new("postgres", "warning", format!("parked: {streams}{more}"), hint));
    }
    Ok(())
}

/// More parked streams are not counted.
const MANY: i64 = 1_000;

fn cursor_words(outbox: &str, place: &guards::Place) -> String {
    match &place.cursor {
        Some(row) => format!("cursor of {outbox} saved at {}", row.saved_at),
        None => format!("outbox {outbox} has no cursor yet: `outboxd run` makes it"),
    }
}

fn finding(found: &Finding) -> Line {
    let severity = match found.severity {
        Severity::Refuse => "error",
        Severity::Warn => "warning",
        Severity::Info => "info",
    };
    Line::new("postgres", severity, found.message.clone(), found.hint.clone())
}
