//! The relays under measure: ours, and others behind an adapter. All are attached, paused and resumed in the same way.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::time::Instant;
use uuid::Uuid;

use super::adapter::Adapter;
use super::daemon::{Daemon, Hang, Running, Start, Variant};
use super::meter::Servers;
use super::topics::AGGREGATE_TYPE;

/// For a relay to be there, or to be gone.
const READY: Duration = Duration::from_mins(2);

/// Between two looks whether it is.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A relay under measure.
pub(crate) enum Relay {
    /// The daemon of this project.
    Outboxd(Box<Outboxd>),
    /// Another one.
    Adapter(Box<Adapter>),
}

/// The database of this run, for all relays.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// URL of the superuser.
    pub(crate) admin: String,
    /// URL of the role that the daemon has.
    pub(crate) daemon: String,
}

/// Where an application writes the events for a relay. Names are as SQL wants them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) table: String,
    /// A uuid.
    pub(crate) event_id: String,
    pub(crate) aggregate_type: String,
    pub(crate) aggregate_id: String,
    pub(crate) event_type: String,
    /// A jsonb.
    pub(crate) payload: String,
}

/// An SQL expression for each column of an event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Values<'v> {
    pub(crate) event_id: &'v str,
    pub(crate) aggregate_type: &'v str,
    pub(crate) aggregate_id: &'v str,
    pub(crate) event_type: &'v str,
    pub(crate) payload: &'v str,
}

impl Target {
    /// The table that `outboxd migrate` makes.
    pub(crate) fn outboxd() -> Self {
        Self {
            table: "outbox.events".to_owned(),
            event_id: "event_id".to_owned(),
            aggregate_type: "aggregate_type".to_owned(),
            aggregate_id: "aggregate_id".to_owned(),
            event_type: "event_type".to_owned(),
            payload: "payload".to_owned(),
        }
    }

    /// `insert into … (…) select …`; a `from` clause may follow.
    pub(crate) fn insert(&self, values: &Values<'_>) -> String {
        let Self { table, event_id, aggregate_type, aggregate_id, event_type, payload } = self;
        let columns = [event_id, aggregate_type, aggregate_id, event_type, payload].map(String::as_str).join(", ");
        let Values { event_id, aggregate_type, aggregate_id, event_type, payload } = values;
        let values = [*event_id, aggregate_type, aggregate_id, event_type, payload].join(", ");
        format!("insert into {table} ({columns}) select {values}")
    }
}

impl Relay {
    /// The daemon of this project, with other settings than it has by default if the variant has some. Nothing runs yet.
    pub(crate) fn outboxd(binary: &Path, variant: Variant, place: &Place, servers: &Servers) -> anyhow::Result<Self> {
        let daemon = Daemon::new(binary, variant, &place.daemon, servers)?;
        let (admin, target) = (place.admin.clone(), Target::outboxd());
        Ok(Self::Outboxd(Box::new(Outboxd { daemon, admin, target, route: None, running: None })))
    }

    /// Another relay, by the command of its adapter. Nothing runs yet.
    pub(crate) async fn against(command: &str, place: &Place, servers: &Servers) -> anyhow::Result<Self> {
        Ok(Self::Adapter(Box::new(Adapter::new(command, &place.admin, servers).await?)))
    }

    /// What it is called in tables.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Outboxd(outboxd) => outboxd.daemon.name(),
            Self::Adapter(adapter) => adapter.name(),
        }
    }

    /// Where an application writes its events.
    pub(crate) fn target(&self) -> &Target {
        match self {
            Self::Outboxd(outboxd) => &outboxd.target,
            Self::Adapter(adapter) => adapter.target(),
        }
    }

    /// The aggregate type that leads to a topic: ours has a route to it, others take it for the topic's name.
    pub(crate) fn aggregate_type<'t>(&self, topic: &'t str) -> &'t str {
        match self {
            Self::Outboxd(_) => AGGREGATE_TYPE,
            Self::Adapter(_) => topic,
        }
    }

    /// Gives it a place at the end of its table, and starts it. It relays into this topic what is committed from now on.
    pub(crate) async fn attach(&mut self, topic: &str) -> anyhow::Result<()> {
        match self {
            Self::Outboxd(outboxd) => outboxd.attach(topic).await,
            Self::Adapter(adapter) => adapter.attach(topic).await,
        }
    }

    /// Starts ours on an outbox that nobody has read before, from the first event of the table on. Does not wait until it
    /// reads: that is part of what is measured.
    pub(crate) fn begin(&mut self, topic: &str) -> anyhow::Result<()> {
        match self {
            Self::Outboxd(outboxd) => outboxd.begin(topic, Start::Earliest),
            Self::Adapter(adapter) => bail!("{} cannot begin at the first event", adapter.name()),
        }
    }

    /// Leads what is relayed from the next start on into another topic. Others go by the events themselves.
    pub(crate) fn turn_to(&mut self, topic: &str) -> anyhow::Result<()> {
        match self {
            Self::Outboxd(outboxd) => outboxd.turn_to(topic),
            Self::Adapter(_) => Ok(()),
        }
    }

    /// Stops relaying; a runtime that has to stay warm stays.
    pub(crate) async fn pause(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Outboxd(outboxd) => outboxd.pause().await,
            Self::Adapter(adapter) => adapter.pause().await,
        }
    }

    /// Goes on where it was paused. Does not wait until it relays: that is part of what is measured.
    pub(crate) async fn resume(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Outboxd(outboxd) => outboxd.resume(),
            Self::Adapter(adapter) => adapter.resume().await,
        }
    }

    /// Stops relaying and forgets its place. A runtime that has to stay warm stays until the relay is dropped.
    pub(crate) async fn detach(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Outboxd(outboxd) => outboxd.detach().await,
            Self::Adapter(adapter) => adapter.detach().await,
        }
    }

    /// The roots of its process tree, for CPU time and memory. None if nothing runs.
    pub(crate) fn processes(&self) -> Vec<u32> {
        match self {
            Self::Outboxd(outboxd) => outboxd.running.as_ref().map(Running::pid).into_iter().collect(),
            Self::Adapter(adapter) => adapter.processes(),
        }
    }

    /// Whether it has not ended by itself.
    pub(crate) fn still_runs(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Outboxd(outboxd) => outboxd.running.as_mut().context("the daemon was not started")?.still_runs(),
            Self::Adapter(adapter) => adapter.still_runs(),
        }
    }

    /// The last lines of its log.
    pub(crate) fn log_end(&self) -> String {
        match self {
            Self::Outboxd(outboxd) => outboxd.running.as_ref().map(Running::log_end).unwrap_or_default(),
            Self::Adapter(adapter) => adapter.log_end(),
        }
    }
}

/// The daemon, and what it is attached to.
pub(crate) struct Outboxd {
    daemon: Daemon,
    admin: String,
    target: Target,
    route: Option<Route>,
    running: Option<Running>,
}

/// An outbox of its own and the topic that it leads to.
#[derive(Clone, Debug)]
struct Route {
    outbox: String,
    topic: String,
    start: Start,
}

const CURSOR: &str = "select exists (select from outbox.cursors where outbox = ";
const FORGET: &str = "delete from outbox.cursors where outbox = ";

impl Outboxd {
    fn begin(&mut self, topic: &str, start: Start) -> anyhow::Result<()> {
        ensure!(self.route.is_none(), "the daemon is attached already");
        let outbox = format!("bench_{}", &Uuid::new_v4().simple().to_string()[..8]);
        self.route = Some(Route { outbox, topic: topic.to_owned(), start });
        self.resume()
    }

    /// The cursor stays where it is.
    fn turn_to(&mut self, topic: &str) -> anyhow::Result<()> {
        ensure!(self.running.is_none(), "the daemon has to be paused first");
        topic.clone_into(&mut self.route.as_mut().context("the daemon is not attached")?.topic);
        Ok(())
    }

    async fn attach(&mut self, topic: &str) -> anyhow::Result<()> {
        self.begin(topic, Start::Latest)?;
        let outbox = self.outbox()?;
        self.daemon.doorbell(&self.admin, outbox, Hang::Up).await?;
        let has_cursor = format!("{CURSOR}'{outbox}')");
        let running = self.running.as_mut().context("the daemon was not started")?;
        let saved = tokio::select! {
            saved = until(&self.admin, &has_cursor, Answer::Yes) => saved,
            ended = running.ended() => ended,
        };
        saved.with_context(|| self.log_end())
    }

    async fn pause(&mut self) -> anyhow::Result<()> {
        match self.running.take() {
            Some(mut running) => running.stop().await,
            None => Ok(()),
        }
    }

    fn resume(&mut self) -> anyhow::Result<()> {
        ensure!(self.running.is_none(), "the daemon is running already");
        let Route { outbox, topic, start } = self.route.as_ref().context("the daemon is not attached")?;
        self.running = Some(self.daemon.start(topic, outbox, *start)?);
        Ok(())
    }

    async fn detach(&mut self) -> anyhow::Result<()> {
        let (route, paused) = (self.route.take(), self.pause().await);
        if let Some(Route { outbox, .. }) = route {
            self.daemon.doorbell(&self.admin, &outbox, Hang::Down).await?;
            execute(&self.admin, &format!("{FORGET}'{outbox}'")).await?;
        }
        paused
    }

    fn outbox(&self) -> anyhow::Result<&str> {
        Ok(&self.route.as_ref().context("the daemon is not attached")?.outbox)
    }

    fn log_end(&self) -> String {
        let log = self.running.as_ref().map(Running::log_end).unwrap_or_default();
        format!("the daemon has saved no cursor; end of its log:\n{log}")
    }
}

/// What a query is waited for to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Yes,
    No,
}

/// Waits until a query answers this. In between it may answer null.
pub(crate) async fn until(url: &str, question: &str, wanted: Answer) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY;
    let mut connection = PgConnection::connect(url).await?;
    loop {
        let answer: Option<bool> = sqlx::query_scalar(AssertSqlSafe(question)).fetch_one(&mut connection).await?;
        if answer == Some(wanted == Answer::Yes) {
            return Ok(connection.close().await?);
        }
        ensure!(Instant::now() < deadline, "for {READY:?} this was not {wanted:?}: {question}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Runs statements on a connection of their own. They are ours or an adapter's, so nothing has to be bound.
pub(crate) async fn execute(url: &str, statements: &str) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    connection.execute(AssertSqlSafe(statements)).await.with_context(|| format!("failed: {statements}"))?;
    Ok(connection.close().await?)
}
