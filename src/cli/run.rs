//! `outboxd run`: the daemon. Only this file knows signals.

use super::{Ends, Exit, output};
use crate::config::Config;
use crate::http::{self, Surface};
use crate::relay::{Outcome, Relay};
use crate::supervise::TaskGroup;
use crate::telemetry::{self, metrics::Metrics};
use anyhow::Context;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Questions to the cluster run on threads of their own and end by themselves; nobody waits for their answers at the end.
const LEFTOVERS: Duration = Duration::from_millis(100);

pub(super) fn run(config: &Config) -> anyhow::Result<Exit> {
    telemetry::start(&config.log).map_err(|message| Ends { exit: Exit::Configuration, message })?;
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(at = panic.location().map(ToString::to_string), "panic: a bug in outboxd, please report it");
    }));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    let exit = runtime.block_on(serve(config));
    runtime.shutdown_timeout(LEFTOVERS);
    exit
}

async fn serve(config: &Config) -> anyhow::Result<Exit> {
    let mut signals = Signals::new().context("listening for signals")?;
    let listener = TcpListener::bind(config.http.listen).await.map_err(|error| Ends {
        exit: Exit::Configuration,
        message: format!(
            "http.listen: {}: {error}\nhint: another outboxd may be running; choose another port",
            config.http.listen
        ),
    })?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), listen = %config.http.listen, outboxes = config.outboxes.len(), "outboxd started");
    let (metrics, stop, done) = (Metrics::default(), CancellationToken::new(), CancellationToken::new());
    let relay = Relay::new(Arc::new(config.clone()), &metrics);
    let surface = Surface { desks: relay.desks().into(), metrics };
    let mut tasks = TaskGroup::default();
    let served = done.clone();
    tasks.spawn("http", async move {
        if let Err(error) = http::serve(listener, surface, served).await {
            tracing::error!(%error, "http ended");
        }
    });
    let outcome = tokio::select! {
        outcome = relay.run(stop.clone()) => outcome,
        exit = ended_at_once(&mut signals, &stop) => return Ok(exit),
    };
    done.cancel();
    tasks.abort_all().await;
    Ok(match outcome {
        Outcome::Clean => {
            tracing::info!("outboxd stopped: all that was sent is settled and saved");
            Exit::Done
        }
        Outcome::Unsettled => {
            tracing::warn!("outboxd stopped: the grace period was not enough; what was in flight may come twice");
            Exit::Failed
        }
        Outcome::Panicked(_) => Exit::Bug,
    })
}

/// The first signal stops the relay; a second one ends the process at once.
async fn ended_at_once(signals: &mut Signals, stop: &CancellationToken) -> Exit {
    let name = signals.next().await;
    tracing::info!(signal = name, "stopping: settling what is in flight");
    stop.cancel();
    let name = signals.next().await;
    output::note(&format!("outboxd: second {name}, ending at once"));
    Exit::Failed
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
