//! Is what was read on disk already? A commit with `synchronous_commit = off` is visible before its WAL is durable:
//! sent at once, its record would outlive a crash that its row does not. (No phantom.)

use super::window;
use crate::db::{DbError, Session, lsn};
use crate::naps::nap;
use crate::outbox::lsn::Lsn;
use sqlx::AssertSqlSafe;
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks. A commit is flushed in less than a millisecond, mostly.
const PAUSE: Duration = Duration::from_micros(250);
/// So long most commits take to be flushed. Whatever a round trip takes, nobody waits for long here.
const PATIENCE: Duration = Duration::from_millis(4);

/// Waits a little until the WAL is on disk up to `place`, and says how far it is.
///
/// # Errors
/// Those of the server, or another one answered.
pub async fn reached(session: &mut Session, place: Lsn) -> Result<Option<Lsn>, DbError> {
    let began = Instant::now();
    loop {
        nap(PAUSE).await;
        let flushed = look(session).await?;
        if flushed >= Some(place) || began.elapsed() >= PATIENCE {
            return Ok(flushed);
        }
    }
}

async fn look(session: &mut Session) -> Result<Option<Lsn>, DbError> {
    let doing = "asking how far the WAL is flushed";
    let statement = sqlx::query(AssertSqlSafe(window::flushed())).fetch_one(&mut session.connection); // of constants
    let row = Session::brief(doing, statement).await?;
    window::answered(&row).map_err(DbError::during(doing))?.by(&session.server)?;
    lsn(&row, "flushed").map_err(DbError::during(doing))
}
