//! Is what was read on disk already? A commit with `synchronous_commit = off` is visible before its WAL is durable:
//! sent at once, its record would outlive a crash that its row does not. (No phantom.)

use crate::db::{DbError, Session, lsn};
use crate::outbox::lsn::Lsn;

/// Waits on the server until the WAL is on disk up to `$1`, for 3 ms: most commits are flushed within one or two, so one question
/// is enough, and it is answered at once. `0 * n`: a function without arguments would be run once for all.
const REACHED: &str = "
    with recursive looks as (
      select pg_current_wal_flush_lsn() as place, 0 as n
      union all
      select pg_current_wal_flush_lsn(), n + 1 from looks cross join lateral pg_sleep(0.001 + 0 * n)
       where place < $1::text::pg_lsn and n < 3)
    select max(place)::text as flushed from looks";

/// Asks how far the WAL is on disk, and waits a little for `place`.
///
/// # Errors
/// Those of the server.
pub async fn reached(session: &mut Session, place: Lsn) -> Result<Option<Lsn>, DbError> {
    let doing = "asking how far the WAL is flushed";
    let look = sqlx::query(REACHED).bind(place.to_string()).fetch_one(&mut session.connection);
    let row = Session::brief(doing, look).await?;
    lsn(&row, "flushed").map_err(DbError::during(doing))
}
