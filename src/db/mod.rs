//! Postgres plumbing: connections and their session settings, migrations, error classes. No decision about events.

pub mod copy;
pub mod doorbell;
pub mod error;
pub mod event;
pub mod listener;
pub mod migrate;

pub use error::{DbError, DbErrorKind};

use crate::config::secret::Secret;
use crate::outbox::lsn::Lsn;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow};
use sqlx::{ConnectOptions, Connection, Executor, Row};
use std::str::FromStr;
use std::time::Duration;

/// A connection that is slower to come about than this counts as one that does not.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What a connection is for; each has session settings of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Reads windows and pages; opening a large window may take long.
    Read,
    /// Guards, lease, cursor, barrier: short statements, cut off after [`WRITER_TIMEOUT`].
    Write,
    /// Looks on: lag, holders, standing guards. As short as the writer's statements.
    Observe,
    /// Hears the doorbell.
    Listen,
    /// Changes the schema, with its owner's rights.
    Own,
}

/// The server cuts a writer's statement after this, so that a renewal ends well before the fence.
pub const WRITER_TIMEOUT: Duration = Duration::from_secs(4);

/// How much longer the client waits for an answer that the server should have cut: the network may be a black hole.
const ANSWER_GRACE: Duration = Duration::from_secs(1);

/// A direct connection and the server that it reaches.
#[derive(Debug)]
pub struct Session {
    /// The connection; statements on it run in autocommit.
    pub connection: PgConnection,
    /// Who answered at connect.
    pub server: Server,
    url: Secret,
}

/// Looks, from another connection, whether the process of one is at work.
#[derive(Clone, Debug)]
pub struct Witness {
    url: Secret,
    process: i32,
}

impl Witness {
    /// Whether the server works on a statement of it, or has more of an answer than the connection takes.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn is_at_work(&self) -> Result<bool, DbError> {
        let mut session = connect(&self.url, Purpose::Observe).await?;
        let look = sqlx::query_scalar(
            "select exists (select from pg_stat_activity where pid = $1 and state is distinct from 'idle')",
        )
        .bind(self.process)
        .fetch_one(&mut session.connection);
        let at_work = Session::brief("looking at a read", look).await?;
        session.close().await;
        Ok(at_work)
    }
}

/// Which server a connection reaches. All but `pid` are equal on two connections to one primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// `host:port`, for messages.
    pub host: String,
    /// The role that we are, quoted where a statement needs it: hints are statements.
    pub role: String,
    /// Process of the connection.
    pub pid: i32,
    /// First eight digits of the WAL file's name; changes at a promotion.
    pub timeline: String,
    /// `system_identifier` of the cluster.
    pub system_id: i64,
    /// The database.
    pub database_oid: sqlx::postgres::types::Oid,
    /// For example `160004`.
    pub version: i32,
}

impl Server {
    /// Whether both are connections to one database of one server in one timeline.
    pub fn is_same_place(&self, other: &Self) -> bool {
        self.timeline == other.timeline && self.system_id == other.system_id && self.database_oid == other.database_oid
    }
}

/// What a reading statement says of the server that ran it; it must be the one of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Process of the connection.
    pub pid: i32,
    /// `None` on a hot standby.
    pub timeline: Option<String>,
}

impl Answered {
    /// Refuses an answer of another server than the one that the connection was made to (fail-over under it, a proxy that spreads reads).
    ///
    /// # Errors
    /// It was a standby, or another server.
    pub fn by(&self, server: &Server) -> Result<(), DbError> {
        let Some(timeline) = &self.timeline else { return Err(DbError::standby(&server.host)) };
        if self.pid == server.pid && *timeline == server.timeline {
            Ok(())
        } else {
            Err(DbError::other_server(&server.host))
        }
    }
}

// `set` and not start-up options: a pooler that forgets them is found by reading one back.
const SETTINGS: &str = "
    set statement_timeout = 0;                 -- of the role or database: opening a window takes as long as it takes
    set idle_session_timeout = 0;              -- a long lease, and a sleep beside a doorbell, leave a session idle
    set search_path = pg_catalog, pg_temp;     -- nobody's function of the same name
    select set_config(name, '0', false) from pg_settings where name = 'transaction_timeout';  -- since Postgres 17
    set session characteristics as transaction isolation level read committed;
    set row_security = off;                    -- hidden rows become error 42501
    set plan_cache_mode = force_custom_plan;
    set jit = off;
    set max_parallel_workers_per_gather = 0;
    set synchronous_commit = local;            -- a save is flushed here and never hangs on a standby
    set lock_timeout = '5s'";

// Beside a doorbell these two are silent for as long as `poll.max`: no firewall may take them for dead.
const QUIET_SETTINGS: &str = "set tcp_keepalives_idle = 60";

// The two reads have one good plan each, whatever the statistics say; so it is made once: planning took ten times as long as an idle read.
const READER_SETTINGS: &str = "
    set plan_cache_mode = force_generic_plan;
    set enable_seqscan = off;
    set enable_bitmapscan = off;
    set enable_hashjoin = off;
    set enable_mergejoin = off;
    set enable_sort = off";

const IDENTIFY: &str = "
    select pg_backend_pid() as pid, quote_ident(current_user) as role, current_setting('server_version_num')::int as version,
           current_setting('row_security') = 'off' as settings_kept,
           substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) as timeline, i.system_identifier, d.oid
      from pg_control_system() i join pg_database d on d.datname = current_database()";

/// Connects, applies the session settings of `purpose`, and finds out who answered.
///
/// Cancel-safe: a connection that is not handed over is closed.
///
/// # Errors
/// Unreachable, a wrong password or database, a hot standby, or a transaction pooler in between.
pub async fn connect(url: &Secret, purpose: Purpose) -> Result<Session, DbError> {
    match tokio::time::timeout(CONNECT_TIMEOUT, open(url, purpose)).await {
        Ok(result) => result,
        Err(_) => Err(DbError::silent("connecting", CONNECT_TIMEOUT)),
    }
}

async fn open(url: &Secret, purpose: Purpose) -> Result<Session, DbError> {
    let options = options(url)?;
    let host = format!("{}:{}", options.get_host(), options.get_port());
    let doing = "connecting";
    let mut connection = options.connect().await.map_err(|error| DbError::from_driver(doing, &error).at(&host))?;
    let server = settle(&mut connection, host, purpose).await?;
    Ok(Session { connection, server, url: url.clone() })
}

/// Refuses a standby and a pooler, and applies the settings.
async fn settle(connection: &mut PgConnection, host: String, purpose: Purpose) -> Result<Server, DbError> {
    let doing = "connecting";
    let standby: bool = sqlx::query_scalar("select pg_is_in_recovery()")
        .fetch_one(&mut *connection)
        .await
        .map_err(DbError::during(doing))?;
    if standby {
        return Err(DbError::standby(&host));
    }
    connection.execute(SETTINGS).await.map_err(DbError::during(doing))?;
    match purpose {
        Purpose::Read => {
            connection.execute(QUIET_SETTINGS).await.map_err(DbError::during(doing))?;
            connection.execute(READER_SETTINGS).await.map_err(DbError::during(doing))?
        }
        Purpose::Listen => connection.execute(QUIET_SETTINGS).await.map_err(DbError::during(doing))?,
        Purpose::Write | Purpose::Observe => {
            connection.execute("set statement_timeout = '4s'").await.map_err(DbError::during(doing))?
        }
        Purpose::Own => connection.execute("set lock_timeout = '500ms'").await.map_err(DbError::during(doing))?,
    };
    let row = connection.fetch_one(IDENTIFY).await.map_err(DbError::during(doing))?;
    let server = identify(host, &row).map_err(DbError::during(doing))?;
    pooler(connection, &server, &row).await?;
    Ok(server)
}

fn identify(host: String, row: &PgRow) -> Result<Server, sqlx::Error> {
    Ok(Server {
        host,
        role: row.try_get("role")?,
        pid: row.try_get("pid")?,
        timeline: row.try_get("timeline")?,
        system_id: row.try_get("system_identifier")?,
        database_oid: row.try_get("oid")?,
        version: row.try_get("version")?,
    })
}

/// A transaction pooler hands each statement to any server process: a setting is gone, or the process is another one.
async fn pooler(connection: &mut PgConnection, server: &Server, row: &PgRow) -> Result<(), DbError> {
    let doing = "looking for a pooler";
    let kept: bool = row.try_get("settings_kept").map_err(DbError::during(doing))?;
    let pid: i32 =
        sqlx::query_scalar("select pg_backend_pid()").fetch_one(connection).await.map_err(DbError::during(doing))?;
    if kept && pid == server.pid { Ok(()) } else { Err(DbError::pooler(&server.host)) }
}

fn options(url: &Secret) -> Result<PgConnectOptions, DbError> {
    let options = PgConnectOptions::from_str(url.expose()).map_err(DbError::during("reading postgres.url"))?;
    let options = if options.get_application_name().is_none() { options.application_name("outboxd") } else { options };
    Ok(options.disable_statement_logging())
}

impl Session {
    /// Who can say whether the process of this connection is at work.
    pub fn witness(&self) -> Witness {
        Witness { url: self.url.clone(), process: self.server.pid }
    }

    /// Runs one short statement, which gives up when neither server nor network answers in time.
    ///
    /// # Errors
    /// Those of the statement, or the silence. After a silence the outcome is unknown: drop the session.
    pub async fn brief<T>(
        doing: &'static str,
        statement: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, DbError> {
        let limit = WRITER_TIMEOUT.saturating_add(ANSWER_GRACE);
        match tokio::time::timeout(limit, statement).await {
            Ok(result) => result.map_err(DbError::during(doing)),
            Err(_) => Err(DbError::silent(doing, limit)),
        }
    }

    /// Cancels what another session of our role is doing: a client that only hangs up is noticed when the answer is ready.
    pub async fn cancel(&mut self, process: i32) {
        let statement = sqlx::query("select pg_cancel_backend(pid) from pg_stat_activity where pid = $1") // gone already: no warning
            .bind(process)
            .execute(&mut self.connection);
        if let Err(error) = Self::brief("cancelling a read", statement).await {
            tracing::debug!(%error, "a read was not cancelled");
        }
    }

    /// Says goodbye to the server; an error no longer matters.
    pub async fn close(self) {
        drop(tokio::time::timeout(ANSWER_GRACE, self.connection.close()).await);
    }
}

/// Reads a `pg_lsn` that was selected as text.
///
/// # Errors
/// The column is missing or holds no place in the WAL.
pub fn lsn(row: &PgRow, column: &str) -> Result<Option<Lsn>, sqlx::Error> {
    let text: Option<&str> = row.try_get(column)?;
    let decode = |error| sqlx::Error::ColumnDecode { index: column.to_owned(), source: Box::new(error) };
    text.map(Lsn::parse).transpose().map_err(decode)
}
