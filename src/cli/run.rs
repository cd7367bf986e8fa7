//! `outboxd run`: the daemon. Only this file knows signals.
//!
//! The lanes of one configuration run until a signal or a bug ends them; after SIGHUP those of the next one follow in the same
//! process. Between the two they are drained as at the end, so nothing comes twice, and the same locked files give the leases back.

use super::reload::{self, Reading};
use super::{Ends, Exit, File, load, output};
use crate::config::Config;
use crate::http::{self, Desks, Surface};
use crate::relay::{Outcome, Relay};
use crate::supervise::{self, TaskGroup};
use crate::telemetry::{Voice, changes, metrics::Metrics};
use anyhow::Context;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Questions to the cluster run on threads of their own and end by themselves; nobody waits for their answers at the end.
const LEFTOVERS: Duration = Duration::from_millis(100);

pub(super) fn run(file: &File) -> anyhow::Result<Exit> {
    let config = load(file)?;
    let voice = Voice::start(&config.log).map_err(|message| Ends { exit: Exit::Configuration, message })?;
    let panicked = CancellationToken::new();
    watch_panics(panicked.clone());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.outboxes.len().clamp(1, cores()))
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let served = std::panic::catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async { Ok(Daemon::start(&file.path, config, voice, panicked).await?.run().await) })
    }));
    runtime.shutdown_timeout(LEFTOVERS); // also after a panic: to drop it would wait for the questions
    served.unwrap_or_else(|payload| std::panic::resume_unwind(payload))
}

/// One thread for each outbox, up to so many: on two cores a second one made nothing faster, and events later and memory larger.
/// Batches are made, sent and reported by librdkafka on threads of its own.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

/// A panic of whatever thread is told to the daemon, that of a request or of a producer as well: nobody joins those.
fn watch_panics(panicked: CancellationToken) {
    std::panic::set_hook(Box::new(move |panic| {
        let (at, thread) = (panic.location().map(ToString::to_string), std::thread::current());
        tracing::error!(at, thread = thread.name(), "panic: a bug in outboxd, please report it");
        panicked.cancel();
    }));
}

/// What outlives a configuration.
struct Daemon {
    file: PathBuf,
    config: Config,
    voice: Voice,
    metrics: Metrics,
    desks: watch::Sender<Desks>,
    servers: TaskGroup,
    door: Door,
    stops: Stops,
    hangups: Signal,
    panicked: CancellationToken,
}

/// Where HTTP is served.
struct Door {
    listen: SocketAddr,
    close: CancellationToken,
}

/// What follows when the lanes have drained.
enum Then {
    /// Nothing yet: they are to go on.
    Unsaid,
    /// The lanes of the next configuration; with the door of the one before, if that was another.
    Next(Box<Config>, Option<Door>),
    /// The end of the process.
    End,
}

impl Daemon {
    async fn start(file: &Path, config: Config, voice: Voice, panicked: CancellationToken) -> anyhow::Result<Self> {
        let stops = Stops::new().context("listening for signals")?;
        let hangups = signal(SignalKind::hangup()).context("listening for signals")?;
        let listen = config.http.listen;
        let listener = bind(listen).await.map_err(|message| Ends { exit: Exit::Configuration, message })?;
        let served = listener.local_addr().unwrap_or(listen); // the port that was found, where 0 is configured
        tracing::info!(version = env!("CARGO_PKG_VERSION"), listen = %served, outboxes = config.outboxes.len(), "outboxd started");
        let mut daemon = Self {
            file: file.to_owned(),
            config,
            voice,
            metrics: Metrics::default(),
            desks: watch::Sender::new(Arc::new([])),
            servers: TaskGroup::default(),
            door: Door::at(listen),
            stops,
            hangups,
            panicked,
        };
        daemon.serve(listener);
        Ok(daemon)
    }

    async fn run(mut self) -> Exit {
        let exit = loop {
            if let Some(exit) = self.lanes().await {
                break exit;
            }
        };
        self.servers.abort_all().await;
        exit
    }

    /// Runs the lanes of one configuration to their end. `None` when those of the next follow.
    async fn lanes(&mut self) -> Option<Exit> {
        let (stop, mut then) = (CancellationToken::new(), Then::Unsaid);
        let relay = Relay::new(Arc::new(self.config.clone()), &self.metrics);
        self.desks.send_replace(relay.desks().into());
        let mut lanes = pin!(relay.run(stop.clone()));
        let outcome = loop {
            tokio::select! {
                outcome = &mut lanes => break outcome,
                name = self.stops.next() => match then {
                    Then::End => {
                        output::note(&format!("outboxd: second {name}, ending at once"));
                        return Some(Exit::Failed);
                    }
                    Then::Unsaid | Then::Next(..) => {
                        tracing::info!(signal = name, "stopping: settling what is in flight");
                        then = Then::End;
                    }
                },
                // One that comes while the lanes drain is heard by the next ones.
                _ = self.hangups.recv(), if matches!(then, Then::Unsaid) => then = self.reload().await,
                Some(ended) = self.servers.next_ended() => self.server_ended(&ended),
                () = self.panicked.cancelled(), if !stop.is_cancelled() => stop.cancel(),
            }
            if !matches!(then, Then::Unsaid) {
                stop.cancel();
            }
        };
        match outcome {
            Outcome::Clean | Outcome::Unsettled if !self.panicked.is_cancelled() => self.conclude(&outcome, then),
            _ => Some(Exit::Bug), // what it was is in the log
        }
    }

    fn conclude(&mut self, outcome: &Outcome, then: Then) -> Option<Exit> {
        match (then, outcome) {
            (Then::Next(next, door), outcome) => {
                if *outcome == Outcome::Unsettled {
                    changes::reload_unsettled();
                }
                self.adopt(*next, door);
                None
            }
            (Then::End | Then::Unsaid, Outcome::Clean) => {
                tracing::info!("outboxd stopped: all that was sent is settled and saved");
                Some(Exit::Done)
            }
            (Then::End | Then::Unsaid, _) => {
                tracing::warn!("outboxd stopped: the grace period was not enough; what was in flight may come twice");
                Some(Exit::Failed)
            }
        }
    }

    /// Reads the configuration again. What concerns the lanes waits until they have drained, the rest holds at once.
    async fn reload(&mut self) -> Then {
        let file = self.file.display().to_string();
        let (next, lanes) = match reload::look(&self.file, &self.config) {
            Reading::Unchanged => {
                changes::reload_unchanged(&file, &self.metrics);
                return Then::Unsaid;
            }
            Reading::Refused(findings) => {
                changes::reload_refused(&file, &findings, &self.metrics);
                return Then::Unsaid;
            }
            Reading::Beside(next) => (next, false),
            Reading::Lanes(next) => (next, true),
        };
        let before = match self.open(next.http.listen).await {
            Ok(before) => before,
            Err(finding) => {
                changes::reload_refused(&file, &[reload::one_line(&finding)], &self.metrics);
                return Then::Unsaid;
            }
        };
        if lanes {
            changes::reload_begun(&file);
            return Then::Next(next, before);
        }
        self.adopt(*next, before);
        Then::Unsaid
    }

    /// From now on this configuration holds.
    fn adopt(&mut self, next: Config, before: Option<Door>) {
        if let Some(door) = before {
            door.close.cancel();
        }
        if let Err(error) = self.voice.follow(&next.log) {
            tracing::warn!(error, "the log goes on as before");
        }
        let is_gone = |name: &str| next.outboxes.iter().all(|outbox| outbox.name.as_str() != name);
        for desk in self.desks.borrow().iter().filter(|desk| is_gone(desk.outbox())) {
            self.metrics.forget(desk.outbox(), desk.lane());
        }
        self.config = next;
        changes::reload_applied(&self.file.display().to_string(), &self.metrics);
    }

    // ---- http

    /// Serves at another address too, if it is another. Returns the door that is to be closed then.
    async fn open(&mut self, listen: SocketAddr) -> Result<Option<Door>, String> {
        if listen == self.door.listen {
            return Ok(None);
        }
        let listener = bind(listen).await?;
        let before = std::mem::replace(&mut self.door, Door::at(listen));
        self.serve(listener);
        Ok(Some(before))
    }

    fn serve(&mut self, listener: TcpListener) {
        let surface = Surface { desks: self.desks.subscribe(), metrics: self.metrics.clone() };
        let close = self.door.close.clone();
        self.servers.spawn(self.door.name(), async move {
            if let Err(error) = http::serve(listener, surface, close).await {
                tracing::error!(%error, "http ended");
            }
        });
    }

    /// A door closes when it is told to; else something is broken that nobody would see.
    fn server_ended(&self, ended: &supervise::Ended) {
        let (supervise::Ended::Returned(name) | supervise::Ended::Panicked(name, _) | supervise::Ended::Aborted(name)) =
            ended;
        if *name == self.door.name() {
            changes::task_ended(name);
            self.panicked.cancel();
        }
    }
}

impl Door {
    fn at(listen: SocketAddr) -> Self {
        Self { listen, close: CancellationToken::new() }
    }

    fn name(&self) -> String {
        format!("http {}", self.listen)
    }
}

async fn bind(listen: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(listen).await.map_err(|error| {
        format!("http.listen: {listen}: {error}\nhint: another outboxd may be running; choose another port")
    })
}

/// Signals that end the process: the first one stops the lanes, a second one ends it at once.
struct Stops {
    terminate: Signal,
    interrupt: Signal,
}

impl Stops {
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
