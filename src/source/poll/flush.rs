//! Is what was read on disk already? A commit with `synchronous_commit = off` is visible before its WAL is durable:
//! sent at once, its record would outlive a crash that its row does not. (No phantom.)

use crate::db::{DbError, Session, lsn};
use crate::outbox::lsn::Lsn;
use sqlx::AssertSqlSafe;

/// A recursive part of a statement, `looks(place, n)`, which waits on the server until the WAL is on disk up to `awaited`, for 4 ms: so long
/// most commits take to be flushed. A null is not waited for. The server sleeps whole milliseconds, and for 1 ms it sleeps two of them.
/// `0 * n`: without it the sleep would be run once for all.
pub fn looks(flushed: &str, awaited: &str) -> String {
    format!(
        "looks as (
       select {flushed} as place, 0 as n
        union all
       select {flushed}, n + 1 from looks cross join lateral pg_sleep(0.0005 + 0 * n) where place < {awaited} and n < 4)"
    )
}

/// Asks how far the WAL is on disk, and waits a little for `place`.
///
/// # Errors
/// Those of the server.
pub async fn reached(session: &mut Session, place: Lsn) -> Result<Option<Lsn>, DbError> {
    let doing = "asking how far the WAL is flushed";
    let looks = looks("pg_current_wal_flush_lsn()", "$1::text::pg_lsn");
    let look =
        sqlx::query(AssertSqlSafe(format!("with recursive {looks} select max(place)::text as flushed from looks"))) // of constants
            .bind(place.to_string())
            .fetch_one(&mut session.connection);
    let row = Session::brief(doing, look).await?;
    lsn(&row, "flushed").map_err(DbError::during(doing))
}
