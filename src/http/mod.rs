//! The HTTP surface of the daemon, on loopback by default: reads what the lanes say, does no work itself.

use crate::relay::desk::Desk;
use crate::relay::status::{LaneState, LaneStatus};
use crate::telemetry::metrics::Metrics;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A loop that has not turned for this long is stuck: longer than any wait for a server within it.
const STUCK: Duration = Duration::from_secs(45);

/// One desk per lane, in the order of the configuration.
pub type Desks = Arc<[Arc<Desk>]>;

/// What the endpoints read.
#[derive(Clone)]
pub struct Surface {
    /// The desks of the lanes that run now: a new configuration brings others.
    pub desks: watch::Receiver<Desks>,
    /// For `/metrics`.
    pub metrics: Metrics,
}

impl Surface {
    fn desks(&self) -> Desks {
        Arc::clone(&self.desks.borrow())
    }
}

/// The answer of `/status`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    /// Version of the running outboxd.
    pub version: String,
    /// Whether every lane relays or stands by.
    pub ready: bool,
    /// The lanes, in the order of the configuration.
    pub lanes: Vec<LaneStatus>,
}

/// Serves until `stop`.
///
/// # Errors
/// The listener broke.
pub async fn serve(listener: TcpListener, surface: Surface, stop: CancellationToken) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .with_state(surface);
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// Alive means that the loops turn that have not ended; never because a server is away.
async fn livez(State(surface): State<Surface>) -> Response {
    let stuck: Vec<String> = surface
        .desks()
        .iter()
        .filter(|desk| desk.silence() > STUCK && desk.status().state != LaneState::Stopped)
        .map(|desk| format!("lane {}/{} does not turn\n", desk.outbox(), desk.lane()))
        .collect();
    if stuck.is_empty() {
        (StatusCode::OK, "ok\n").into_response()
    } else {
        (StatusCode::INTERNAL_SERVER_ERROR, stuck.concat()).into_response()
    }
}

/// Ready means that every lane relays or stands by; the body says why not.
async fn readyz(State(surface): State<Surface>) -> Response {
    let waiting: Vec<String> = surface
        .desks()
        .iter()
        .map(|desk| desk.status())
        .filter(|status| !status.ready)
        .map(|status| why(&status))
        .collect();
    if waiting.is_empty() {
        (StatusCode::OK, "ok\n").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, waiting.concat()).into_response()
    }
}

fn why(status: &LaneStatus) -> String {
    let reason = status.waits_for.as_deref().unwrap_or("not yet");
    let hint = status.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
    format!("lane {}/{} {}: {reason}{hint}\n", status.outbox, status.lane, status.state.name())
}

async fn status(State(surface): State<Surface>) -> Json<Status> {
    let lanes: Vec<LaneStatus> = surface.desks().iter().map(|desk| desk.status()).collect();
    Json(Status { version: env!("CARGO_PKG_VERSION").to_owned(), ready: lanes.iter().all(|lane| lane.ready), lanes })
}

async fn metrics(State(surface): State<Surface>) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    (kind, surface.metrics.text()).into_response()
}
