//! Is what was read on disk already? A commit with `synchronous_commit = off` is visible before its WAL is durable:
//! sent at once, its record would outlive a crash that its row does not. (No phantom.)

use crate::db::{DbError, Session, lsn};
use crate::outbox::lsn::Lsn;
use sqlx::AssertSqlSafe;

const FLUSHED: &str = "pg_current_wal_flush_lsn()";

/// The last arms of a `case`, made of three expressions: they wait on the server until the WAL is on disk up to `awaited`, which is no null,
/// for 4 ms: so long most commits take to be flushed. The server sleeps whole milliseconds, and for 1 ms it sleeps two of them.
/// As a recursive part of the statement the looks took a fifth of what a read costs the server, also where none was needed.
pub fn wait(awaited: &str, reached: &str, otherwise: &str) -> String {
    const LOOKS: usize = 5;
    let look = format!("when {FLUSHED} >= {awaited} then {reached}");
    let looks = vec![look; LOOKS].join("\n              when pg_sleep(0.0005) is null then null "); // it is never null
    format!("{looks}\n              else {otherwise}")
}

/// Asks how far the WAL is on disk, and waits a little for `place`.
///
/// # Errors
/// Those of the server.
pub async fn reached(session: &mut Session, place: Lsn) -> Result<Option<Lsn>, DbError> {
    let doing = "asking how far the WAL is flushed";
    let flushed = format!("{FLUSHED}::text");
    let arms = wait("$1::text::pg_lsn", &flushed, &flushed);
    let look = sqlx::query(AssertSqlSafe(format!("select case {arms} end as flushed"))) // of constants
        .bind(place.to_string())
        .fetch_one(&mut session.connection);
    let row = Session::brief(doing, look).await?;
    lsn(&row, "flushed").map_err(DbError::during(doing))
}
