//! Is what was read on disk already? A commit with `synchronous_commit = off` is visible before its WAL is durable:
//! sent at once, its record would outlive a crash that its row does not. (No phantom.)

use crate::db::{DbError, Session, lsn};
use crate::outbox::lsn::Lsn;
use sqlx::Executor;

/// Asks how far the WAL is on disk.
///
/// # Errors
/// Those of the server.
pub async fn reached(session: &mut Session) -> Result<Option<Lsn>, DbError> {
    let doing = "asking how far the WAL is flushed";
    let row = Session::brief(doing, session.connection.fetch_one("select pg_current_wal_flush_lsn()::text as flushed"))
        .await?;
    lsn(&row, "flushed").map_err(DbError::during(doing))
}
