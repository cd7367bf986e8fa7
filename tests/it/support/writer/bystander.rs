//! What goes on beside the writers: the second phases of prepared transactions, and transactions that never seem to end.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection};
use tokio::sync::mpsc;
use tokio::time::{sleep, sleep_until};

use super::transaction::{INSERT, LOCK, aggregate_of, name_of};
use super::{Kind, Prepared, Shared, Tally, committed, is_interruption, reconnect, second_phase, send};
use crate::support::postgres::{connect, say};

/// Ends what was prepared by others, in the order in which it comes. None is left over: it would hold its locks for ever.
pub(super) async fn end_prepared(shared: Shared, mut prepared: mpsc::Receiver<Prepared>) -> Tally {
    let mut connection = connect(&shared.url).await;
    let mut tally = Tally::default();
    while let Some(Prepared { name, end, events, not_before }) = prepared.recv().await {
        sleep_until(not_before).await;
        loop {
            match send(&mut connection, &second_phase(end, &name)).await {
                Ok(()) => {
                    tally.events += committed(&shared, Kind::Prepared, events).events; // its writer counted the transaction
                    break;
                }
                Err(error) if is_gone(&error) => break, // never prepared, or ended by a statement without an answer
                Err(error) => {
                    tally.interruptions += 1;
                    connection = reconnect(&shared, &error).await;
                }
            }
        }
    }
    tally
}

fn is_gone(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == "42704")
}

/// Draws an id at the start, holds its transaction open, and writes a last event on a stream that all write.
pub(super) async fn long_transaction(shared: Shared, lasts: Duration) -> Tally {
    let transaction = async || {
        let mut connection = PgConnection::connect(&shared.url).await?;
        send(&mut connection, "begin").await?;
        let insert = sqlx::query(INSERT).bind("order").bind("long").bind(r#"{"nr": 1}"#);
        insert.execute(&mut connection).await?;
        tokio::select! { () = sleep(lasts) => {} () = shared.stop.cancelled() => {} }
        let nr: i64 = sqlx::query_scalar(LOCK).bind(name_of(0)).bind(1_i64).fetch_one(&mut connection).await?;
        let (aggregate_type, aggregate_id) = aggregate_of(0);
        let insert = sqlx::query(INSERT).bind(aggregate_type).bind(aggregate_id).bind(format!("{{\"nr\": {nr}}}"));
        insert.execute(&mut connection).await?;
        send(&mut connection, "commit").await
    };
    match transaction().await {
        Ok(()) => committed(&shared, Kind::Long, 2),
        Err(error) => {
            assert!(is_interruption(&error), "the long transaction: {error}");
            Tally { interruptions: 1, ..Tally::default() }
        }
    }
}

/// Has a transaction id in another database for the whole run: it holds back every horizon of the server.
pub(super) async fn long_transaction_elsewhere(shared: Shared, url: String) -> Tally {
    let mut connection = connect(&url).await;
    say(&mut connection, "begin; select pg_current_xact_id()").await;
    shared.stop.cancelled().await;
    connection.close().await.ok(); // a server that was killed has ended it already
    Tally::default()
}
