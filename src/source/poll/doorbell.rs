//! Sleeping until a writer rings, on a connection of its own. What rings, and why no ring is missed, is told in `db/doorbell.rs`.
//!
//! A sleeper that stands still must not keep writers ringing: the server ends its session, and with it the lock, after
//! [`IDLE_LIMIT`] without a statement. So it asks [every](ASK_EVERY) while whether the bell still hangs, and takes a missing
//! [answer](ANSWER_LIMIT) for the loss of the connection: it is up before the server has freed the lock, and rings nobody hears do not exist.

use crate::config::secret::Secret;
use crate::db::doorbell::{self, LOCKS, Unrung};
use crate::db::listener::Listener;
use crate::db::{DbError, Server};
use std::time::Duration;
use tokio::time::Instant;

const IDLE_LIMIT: Duration = Duration::from_secs(5);
const ASK_EVERY: Duration = Duration::from_secs(2);
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
const _: () = assert!(ASK_EVERY.as_millis() + ANSWER_LIMIT.as_millis() < IDLE_LIMIT.as_millis());

/// A connection that hears the doorbell of an outbox.
#[derive(Debug)]
pub struct Sleeper {
    listener: Listener,
    outbox: String,
    number: i32,
}

/// Why nobody would be woken.
#[derive(Debug, thiserror::Error)]
pub enum Deaf {
    /// The server refused, or the connection broke.
    #[error(transparent)]
    Db(DbError),
    /// The doorbell does not hang, or not for this outbox.
    #[error(transparent)]
    Unrung(Unrung),
}

/// What came of lying down.
#[derive(Debug)]
pub enum LaidDown {
    /// Who writes from now on rings. What was written before has to be read first.
    Down(Sleeper),
    /// A transaction that has written is open.
    WriterActive(Sleeper),
}

/// Why a sleep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// By a writer.
    Rung,
    /// By the clock. Writers still ring.
    Time,
}

// Without the lock there is nothing to lose: then the session may be idle for as long as it likes.
const LIE_DOWN: &str = "
    with tried as materialized (select pg_try_advisory_lock($1, $2) as down)  -- never the blocking one: while it waits, every writer rings
    select down, set_config('idle_session_timeout', case when down then $3 else '0' end, false) from tried";

const GET_UP: &str = "select pg_advisory_unlock($1, $2), set_config('idle_session_timeout', '0', false)";

impl Sleeper {
    /// Connects to the server that the events are read from, and listens to the doorbell if it hangs.
    ///
    /// # Errors
    /// See [`Deaf`].
    pub async fn listen(url: &Secret, outbox: &str, reader: &Server) -> Result<Self, Deaf> {
        let mut listener = Listener::connect(url).await.map_err(Deaf::Db)?;
        if !listener.server.is_same_place(reader) {
            return Err(Deaf::Db(DbError::other_server(&listener.server.host)));
        }
        let number = answered(&mut listener, outbox).await?;
        brief(listener.listen(&format!("outbox_{number}"))).await?;
        Ok(Self { listener, outbox: outbox.to_owned(), number })
    }

    /// Tries to become one for whom writers ring.
    ///
    /// # Errors
    /// See [`Deaf`].
    pub async fn lie_down(mut self) -> Result<LaidDown, Deaf> {
        let limit = humantime::format_duration(IDLE_LIMIT).to_string();
        let down = brief(async {
            let connection = self.listener.connection().await?;
            let statement = sqlx::query_as(LIE_DOWN).bind(LOCKS).bind(self.number).bind(limit);
            let (down, _): (bool, String) = statement.fetch_one(connection).await?;
            Ok(down)
        })
        .await?;
        self.listener.forget(); // what rang until now is visible to the read that comes now
        Ok(if down { LaidDown::Down(self) } else { LaidDown::WriterActive(self) })
    }

    /// Sleeps until a writer rings, or for `most`. Only after [`Self::lie_down`] and a read that found nothing.
    ///
    /// # Errors
    /// See [`Deaf`].
    pub async fn sleep(&mut self, most: Duration) -> Result<Woken, Deaf> {
        let now = Instant::now();
        let until = now.checked_add(most).unwrap_or(now);
        loop {
            let ask_at = Instant::now().checked_add(ASK_EVERY).unwrap_or(until);
            tokio::select! {
                biased;
                rung = self.listener.heard() => return rung.map(|()| Woken::Rung).map_err(Deaf::Db),
                () = tokio::time::sleep_until(until) => return Ok(Woken::Time),
                () = tokio::time::sleep_until(ask_at) => self.ask().await?,
            }
        }
    }

    async fn ask(&mut self) -> Result<(), Deaf> {
        answered(&mut self.listener, &self.outbox).await.map(|_| ())
    }

    /// Lets writers write without ringing.
    ///
    /// # Errors
    /// See [`Deaf`].
    pub async fn get_up(mut self) -> Result<Self, Deaf> {
        brief(async {
            let connection = self.listener.connection().await?;
            sqlx::query(GET_UP).bind(LOCKS).bind(self.number).execute(connection).await
        })
        .await?;
        Ok(self)
    }
}

/// Asks how the bell hangs.
async fn answered(listener: &mut Listener, outbox: &str) -> Result<i32, Deaf> {
    let bell = brief(async { doorbell::look(listener.connection().await?, outbox).await }).await?;
    bell.rings_for(outbox).map_err(Deaf::Unrung)?;
    Ok(bell.number)
}

const DOING: &str = "waiting for the doorbell";

async fn brief<T>(statement: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Deaf> {
    match tokio::time::timeout(ANSWER_LIMIT, statement).await {
        Ok(result) => result.map_err(|error| Deaf::Db(DbError::from_driver(DOING, &error))),
        Err(_) => Err(Deaf::Db(DbError::silent(DOING, ANSWER_LIMIT))),
    }
}
