//! `outboxd cursor show`. Needs no more than the relay's own rights.

use super::super::output::{self, Format, counted};
use super::super::{Ends, Exit, migrate};
use super::{Which, known, words};
use crate::config::Config;
use crate::db::{self, Purpose, Session};
use crate::outbox::lane::LaneId;
use crate::relay::leadership::Terms;
use crate::sink::kafka::topics::Topics;
use crate::source::poll::backlog::{self, CAP};
use crate::store::guards::{self, CursorRow, Note, Place, Refusal};
use crate::store::{rebase, standing};
use serde::Serialize;

/// Lists of transactions that were open are cut here.
const OPEN_SHOWN: usize = 10;

/// A cursor, and what is to be said of it.
#[derive(Debug, Serialize)]
struct Shown {
    outbox: String,
    lane: i16,
    /// Whether the configuration has this outbox.
    configured: bool,
    /// `None` before the first start.
    cursor: Option<Row>,
    server: Location,
    /// `refused`, `goes on`, or `begins`.
    verdict: &'static str,
    /// Why it is refused, or what is to be known although it goes on.
    reason: Option<String>,
    hint: Option<String>,
    /// Events behind the cursor, up to a cap; `None` where the cursor does not fit.
    backlog_events: Option<i64>,
    backlog_seconds: Option<f64>,
}

/// What the row says.
#[derive(Debug, Serialize)]
struct Row {
    position: String,
    saved_at: String,
    epoch: i64,
    /// `held`, `expired` or `free`.
    lease: &'static str,
    owner: Option<String>,
    lease_until: Option<String>,
    kafka_cluster: Option<String>,
    saved_in: Location,
}

/// A database of a cluster in a timeline.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Location {
    system_id: i64,
    database_oid: u32,
    timeline: String,
}

pub(super) async fn run(config: &Config, which: &Which, format: Format) -> anyhow::Result<Exit> {
    let mut session =
        db::connect(&config.postgres.url, Purpose::Observe).await.map_err(|error| migrate::ends(&error))?;
    let mut names = which.names(config);
    let standing = standing::look(&mut session, &names).await.map_err(|error| migrate::ends(&error))?;
    let refusal = standing.iter().find_map(standing::Finding::refusal);
    let saved = match rebase::outboxes(&mut session).await {
        Ok(saved) => saved,
        Err(error) => return Err(refusal.map_or_else(|| migrate::ends(&error), |refusal| super::refused(&refusal))),
    };
    match &which.outbox {
        Some(name) => known(config, name.as_str(), &saved)?,
        None => names.extend(saved.into_iter().filter(|saved| !names.contains(saved)).collect::<Vec<_>>()),
    }
    let cluster = cluster(config).await;
    let mut shown = Vec::new();
    for name in &names {
        shown.push(look(&mut session, name, config, refusal.as_ref(), cluster.as_deref()).await?);
    }
    session.close().await;
    match format {
        Format::Json => output::json(&shown),
        Format::Text => output::data(&text(&shown)),
    }
    Ok(Exit::Done)
}

/// The cluster that the relay would reach; without an answer it is not compared.
async fn cluster(config: &Config) -> Option<String> {
    let asked = async { Topics::new(&config.kafka, Terms::of(config.relay.lease).socket_timeout)?.cluster().await };
    match asked.await {
        Ok(cluster) => Some(cluster),
        Err(error) => {
            output::note(&format!("{}; the Kafka cluster of the cursor is not compared", error.what));
            None
        }
    }
}

async fn look(
    session: &mut Session,
    outbox: &str,
    config: &Config,
    standing: Option<&Refusal>,
    cluster: Option<&str>,
) -> anyhow::Result<Shown> {
    let ends = |error: db::DbError| match standing {
        Some(refusal) => anyhow::Error::from(Ends { exit: Exit::Failed, message: words(refusal) }),
        None => migrate::ends(&error),
    };
    let settings = config.outboxes.iter().find(|known| known.name.as_str() == outbox);
    let place = guards::place(session, outbox, LaneId::FIRST).await.map_err(ends)?;
    let was = place.cursor.as_ref().and_then(|row| row.kafka_cluster.clone()).unwrap_or_default();
    let role = session.server.role.clone();
    let fits = guards::judge_place(&place, outbox, &role, &was).is_ok();
    let judged = match standing {
        Some(refusal) => Err(refusal.clone()),
        None => guards::judge_place(&place, outbox, &role, cluster.unwrap_or(&was)).and_then(|note| {
            let start = settings.and_then(|known| known.start);
            guards::may_begin(&place, outbox, start).map(|()| note)
        }),
    };
    let backlog = match place.cursor {
        Some(_) if fits => Some(backlog::look(session, outbox, LaneId::FIRST).await.map_err(ends)?),
        _ => None,
    };
    let (verdict, reason, hint) = match judged {
        Err(refusal) => ("refused", Some(refusal.message), refusal.hint),
        Ok(_) if place.cursor.is_none() => {
            ("begins", Some("outboxd was never started for this outbox".to_owned()), None)
        }
        Ok(Note::AsBefore) => ("goes on", None, None),
        Ok(Note::Moved { .. }) => (
            "goes on",
            Some("another cluster, the cursor intact: upgraded or moved".to_owned()),
            Some("run ANALYZE".to_owned()),
        ),
        Ok(Note::FailedOver { from, to }) => ("goes on", Some(format!("timeline {from} -> {to}: failed over")), None),
    };
    Ok(Shown {
        outbox: outbox.to_owned(),
        lane: LaneId::FIRST.get(),
        configured: settings.is_some(),
        server: here(&place),
        cursor: place.cursor.map(saved),
        verdict,
        reason,
        hint,
        backlog_events: backlog.map(|backlog| backlog.events),
        backlog_seconds: backlog.map(|backlog| backlog.oldest_seconds),
    })
}

fn here(place: &Place) -> Location {
    Location { system_id: place.system_id, database_oid: place.database_oid.0, timeline: place.timeline.clone() }
}

fn saved(row: CursorRow) -> Row {
    let lease = match (&row.owner, row.expired) {
        (None, _) => "free",
        (Some(_), true) => "expired",
        (Some(_), false) => "held",
    };
    Row {
        position: row.position,
        saved_at: row.saved_at,
        epoch: row.epoch,
        lease,
        owner: row.owner,
        lease_until: row.lease_until,
        kafka_cluster: row.kafka_cluster,
        saved_in: Location { system_id: row.system_id, database_oid: row.database_oid.0, timeline: row.timeline },
    }
}

fn text(shown: &[Shown]) -> String {
    let parts: Vec<String> = shown.iter().map(|cursor| output::pairs(rows(cursor))).collect();
    parts.join("\n\n")
}

fn rows(shown: &Shown) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
    let stranger = if shown.configured { "" } else { ", not in this configuration" };
    row("outbox", format!("{} (lane {}){stranger}", shown.outbox, shown.lane));
    let reason = shown.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    row("verdict", format!("{}{reason}", shown.verdict));
    if let Some(hint) = &shown.hint {
        row("hint", hint.clone());
    }
    let Some(saved) = &shown.cursor else {
        row("server", location(&shown.server));
        return rows;
    };
    row("cursor", saved.position.clone());
    row("settled", position(&saved.position));
    row("saved", saved.saved_at.clone());
    row("backlog", waiting(shown));
    let until = saved.lease_until.as_deref().unwrap_or_default();
    let owner = saved.owner.as_deref().unwrap_or_default();
    row(
        "lease",
        match saved.lease {
            "held" => format!("held by {owner} until {until}"),
            "expired" => format!("expired at {until}, was held by {owner}"),
            _ => "free".to_owned(),
        },
    );
    row("epoch", saved.epoch.to_string());
    row("kafka", saved.kafka_cluster.as_ref().map_or("none yet".to_owned(), |cluster| format!("cluster {cluster}")));
    row("saved in", location(&saved.saved_in));
    let same = if saved.saved_in == shown.server { "the same: " } else { "" };
    row("server", format!("{same}{}", location(&shown.server)));
    rows
}

fn location(location: &Location) -> String {
    format!("system {}, database {}, timeline {}", location.system_id, location.database_oid, location.timeline)
}

fn waiting(shown: &Shown) -> String {
    match (shown.backlog_events, shown.backlog_seconds) {
        (Some(count), Some(seconds)) if count >= CAP => format!("{CAP} events or more, the oldest {seconds:.1} s old"),
        (Some(0), _) => "nothing waits".to_owned(),
        (Some(count), Some(seconds)) => format!("{}, the oldest {seconds:.1} s old", counted(count, "event")),
        _ => "not known: the cursor does not fit this database".to_owned(),
    }
}

/// A cursor as it is saved, in words.
fn position(text: &str) -> String {
    let mut parts = text.split_whitespace();
    let settled = parts.next().map(snapshot).unwrap_or_default();
    match (parts.next().map(snapshot), parts.next()) {
        (Some(end), Some(after)) => format!("{settled}; then, of {end}, the events up to id {after}"),
        _ => settled,
    }
}

fn snapshot(text: &str) -> String {
    let mut parts = text.splitn(3, ':');
    let (_, xmax, open) = (parts.next(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if text == "3:3:" {
        return "nothing".to_owned();
    }
    let open: Vec<&str> = open.split(',').filter(|xid| !xid.is_empty()).collect();
    let more = if open.len() > OPEN_SHOWN { format!(" and {} more", open.len() - OPEN_SHOWN) } else { String::new() };
    let list = open.iter().take(OPEN_SHOWN).copied().collect::<Vec<_>>().join(", ");
    match open.len() {
        0 => format!("all transactions before {xmax}"),
        _ => format!("all transactions before {xmax} but {list}{more}, then open"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_said_in_words() {
        let cases = [
            ("3:3:", "nothing"),
            ("812:815:", "all transactions before 815"),
            ("812:815:812,814", "all transactions before 815 but 812, 814, then open"),
            ("3:3: 9:12:9 77", "nothing; then, of all transactions before 12 but 9, then open, the events up to id 77"),
        ];
        for (text, expected) in cases {
            assert_eq!(position(text), expected, "{text}");
        }
        let open: Vec<String> = (1..=13).map(|xid| xid.to_string()).collect();
        assert!(position(&format!("1:20:{}", open.join(","))).ends_with("9, 10 and 3 more, then open"));
    }
}
