//! `outboxd status`: where the relay is and what it waits for; from the daemon when it answers, else from the database.

use super::output::{self, Format};
use super::{Exit, block_on, client, migrate};
use crate::config::Config;
use crate::db::{self, Purpose, Session};
use crate::http::Status;
use crate::outbox::lane::LaneId;
use crate::relay::status::{LaneState, LaneStatus};
use crate::source::poll::backlog::{self, CAP};
use crate::store::guards;

pub(super) fn run(config: &Config, format: Format) -> anyhow::Result<Exit> {
    block_on(async {
        let (from, status) = match client::get(config.http.listen, "/status").await {
            Ok(body) => (format!("daemon at {}", config.http.listen), serde_json::from_str(&body)?),
            Err(error) => {
                output::note(&format!("no daemon at {} ({error:#}); reading the database", config.http.listen));
                ("database".to_owned(), from_database(config).await?)
            }
        };
        match format {
            Format::Json => output::json(&status),
            Format::Text => output::data(&text(&from, &status)),
        }
        Ok(Exit::Done)
    })
}

async fn from_database(config: &Config) -> anyhow::Result<Status> {
    let mut session =
        db::connect(&config.postgres.url, Purpose::Observe).await.map_err(|error| migrate::ends(&error))?;
    let mut lanes = Vec::new();
    for outbox in &config.outboxes {
        lanes.push(look(&mut session, outbox.name.as_str()).await?);
    }
    session.close().await;
    Ok(Status { version: env!("CARGO_PKG_VERSION").to_owned(), ready: false, lanes })
}

async fn look(session: &mut Session, outbox: &str) -> anyhow::Result<LaneStatus> {
    let mut status = LaneStatus::new(outbox, LaneId::FIRST.get());
    status.state = LaneState::Stopped;
    let place = guards::place(session, outbox, LaneId::FIRST).await.map_err(|error| migrate::ends(&error))?;
    let cluster = place.cursor.as_ref().and_then(|row| row.kafka_cluster.clone()).unwrap_or_default();
    let judged = guards::judge_place(&place, outbox, &session.server.role, &cluster);
    let Some(row) = place.cursor else {
        status.waits_for = Some("outboxd was never started for this outbox".to_owned());
        return Ok(status);
    };
    let held = row.owner.as_deref().filter(|_| !row.expired);
    status.waits_for = Some(match held {
        Some(owner) => format!("the lease is held by {owner} until {}", row.lease_until.unwrap_or_default()),
        None => format!("nobody holds the lease; the cursor was saved at {}", row.saved_at),
    });
    status.cursor = Some(row.position);
    if let Err(refusal) = judged {
        (status.waits_for, status.hint) = (Some(refusal.message), refusal.hint); // how much waits cannot be known by it
        return Ok(status);
    }
    status.look(Some(backlog::look(session, outbox, LaneId::FIRST).await.map_err(|error| migrate::ends(&error))?));
    Ok(status)
}

fn text(from: &str, status: &Status) -> String {
    let parts: Vec<String> = status.lanes.iter().map(|lane| output::pairs(rows(from, lane))).collect();
    parts.join("\n\n")
}

fn rows(from: &str, lane: &LaneStatus) -> Vec<(String, String)> {
    let mut rows = vec![
        ("outbox".to_owned(), format!("{} (lane {}), from the {from}", lane.outbox, lane.lane)),
        ("state".to_owned(), lane.state.name().to_owned()),
    ];
    let mut row = |name: &str, value: Option<String>| rows.extend(value.map(|value| (name.to_owned(), value)));
    row("waits for", lane.waits_for.clone());
    row("hint", lane.hint.clone());
    row(
        "lag",
        lane.lag_events.map(|events| {
            format!(
                "{} events, {:.1} s",
                if events >= CAP { format!("{CAP} or more") } else { events.to_string() },
                lane.lag_seconds.unwrap_or_default()
            )
        }),
    );
    row("published", (lane.published_events > 0).then(|| format!("{} events since the start", lane.published_events)));
    row("in flight", (lane.in_flight_events > 0).then(|| format!("{} events", lane.in_flight_events)));
    row(
        "parked",
        lane.parked_streams
            .filter(|streams| *streams > 0)
            .map(|streams| format!("{streams} streams, see: outboxd parked list")),
    );
    row("doorbell", lane.doorbell.map(|state| state.words().to_owned()));
    row("no doorbell", lane.doorbell_trouble.clone());
    row("cursor", lane.cursor.clone());
    row("epoch", lane.epoch.map(|epoch| epoch.to_string()));
    row("last error", lane.last_error.clone());
    for open in &lane.open_transactions {
        row("open transaction", Some(open.clone()));
    }
    rows
}
