//! A sample shop: how an application uses the outbox. It changes its own tables and writes the event of each change in the
//! same transaction, so that either both are there or neither is.
//!
//! The functions below are all that such an application needs; whoever calls them begins the transaction and commits it.
//! The rest is a demonstration: in `customers` several writers call them at once, `demo` kills outboxd meanwhile and
//! compares the table with the topics afterwards. `deploy/demo` brings up what it needs.

use clap::{Parser, Subcommand};
use serde_json::{Value, json};
use sqlx::PgConnection;
use std::io::Read;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

#[expect(dead_code, reason = "the tests ask it for more")]
#[path = "../../tests/it/support/checker.rs"]
mod checker;
mod customers;
mod daemon;
mod demo;
mod show;
mod topics;

/// The shop's own tables.
const TABLES: &str = "
    create table if not exists stock (
      item text primary key,
      available int not null check (available >= 0)
    );
    create table if not exists orders (
      id bigint generated always as identity primary key,
      item text not null,
      quantity int not null,
      address text not null,
      status text not null,
      version int not null default 1
    )";

/// Takes an order. Answers its id, or `None` if there is not enough in stock; then nothing has changed.
async fn place(tx: &mut PgConnection, item: &str, quantity: i32, address: &str) -> sqlx::Result<Option<i64>> {
    let available: Option<i32> = sqlx::query_scalar(
        "update stock set available = available - $2 where item = $1 and available >= $2 returning available",
    )
    .bind(item)
    .bind(quantity)
    .fetch_optional(&mut *tx)
    .await?;
    let Some(available) = available else { return Ok(None) };
    emit(tx, item, "StockReserved", &json!({ "quantity": quantity, "available": available })).await?;

    let order = sqlx::query_scalar(
        "insert into orders (item, quantity, address, status) values ($1, $2, $3, 'placed') returning id",
    )
    .bind(item)
    .bind(quantity)
    .bind(address)
    .fetch_one(&mut *tx)
    .await?;
    let payload = json!({ "version": 1, "item": item, "quantity": quantity, "address": address });
    insert(tx, order, "OrderPlaced", &payload).await?;
    Ok(Some(order))
}

/// Notes another address. Answers whether the order was still there to change.
async fn redirect(tx: &mut PgConnection, order: i64, address: &str) -> sqlx::Result<bool> {
    let version: Option<i32> = sqlx::query_scalar(
        "update orders set address = $2, version = version + 1 where id = $1 and status in ('placed', 'paid')
         returning version",
    )
    .bind(order)
    .bind(address)
    .fetch_optional(&mut *tx)
    .await?;
    let Some(version) = version else { return Ok(false) };
    insert(tx, order, "OrderRedirected", &json!({ "version": version, "address": address })).await?;
    Ok(true)
}

/// Notes a payment. Answers whether there was something to pay.
async fn pay(tx: &mut PgConnection, order: i64) -> sqlx::Result<bool> {
    let version: Option<i32> = sqlx::query_scalar(
        "update orders set status = 'paid', version = version + 1 where id = $1 and status = 'placed'
         returning version",
    )
    .bind(order)
    .fetch_optional(&mut *tx)
    .await?;
    let Some(version) = version else { return Ok(false) };
    insert(tx, order, "OrderPaid", &json!({ "version": version })).await?;
    Ok(true)
}

/// Hands a paid order to the carrier. Answers whether there was something to ship.
async fn ship(tx: &mut PgConnection, order: i64) -> sqlx::Result<bool> {
    let shipped: Option<(i32, String)> = sqlx::query_as(
        "update orders set status = 'shipped', version = version + 1 where id = $1 and status = 'paid'
         returning version, address",
    )
    .bind(order)
    .fetch_optional(&mut *tx)
    .await?;
    let Some((version, address)) = shipped else { return Ok(false) };
    insert(tx, order, "OrderShipped", &json!({ "version": version, "address": address })).await?;
    Ok(true)
}

/// Takes a delivery, of a new item too.
async fn restock(tx: &mut PgConnection, item: &str, quantity: i32) -> sqlx::Result<()> {
    let available: i32 = sqlx::query_scalar(
        "insert into stock as s (item, available) values ($1, $2)
         on conflict (item) do update set available = s.available + excluded.available returning available",
    )
    .bind(item)
    .bind(quantity)
    .fetch_one(&mut *tx)
    .await?;
    emit(tx, item, "StockDelivered", &json!({ "quantity": quantity, "available": available })).await
}

/// Writes an event of an order by a plain insert. The row of the order is locked by the change that this event tells of,
/// so nobody else writes an event of this order until we have committed: that is what keeps its events in order.
async fn insert(tx: &mut PgConnection, order: i64, event: &str, payload: &Value) -> sqlx::Result<()> {
    sqlx::query(
        "insert into outbox.events (aggregate_type, aggregate_id, event_type, payload)
         values ('Order', $1::text, $2, $3::jsonb)",
    )
    .bind(order.to_string())
    .bind(event)
    .bind(payload.to_string())
    .execute(tx)
    .await?;
    Ok(())
}

/// Writes an event of an item by `outbox.emit`, which takes the lock itself and numbers the events of the item: from the
/// header `sequence` a consumer sees at once that it has missed none.
async fn emit(tx: &mut PgConnection, item: &str, event: &str, payload: &Value) -> sqlx::Result<()> {
    sqlx::query("select outbox.emit('Stock', $1, $2, $3::jsonb)")
        .bind(item)
        .bind(event)
        .bind(payload.to_string())
        .execute(tx)
        .await?;
    Ok(())
}

// ---------------------------------------------------------------- the demonstration

/// A sample shop that writes to an outbox, while outboxd is killed and comes back.
#[derive(Parser)]
#[command(name = "shop", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Trade, kill outboxd meanwhile, then compare the table with the topics; ends with 1 if anything is lost or out of order
    Run(demo::Arguments),
    /// Run the SQL of standard input, for machines without psql
    Sql {
        /// Where
        #[arg(long)]
        url: String,
    },
}

/// As in `sysexits.h`.
const USAGE: u8 = 64;
/// As a shell says it of a process that SIGINT ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            drop(error.print());
            return if error.use_stderr() { USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    match start(arguments.command) {
        Ok(exit) => exit,
        Err(error) => {
            show::note(&format!("shop: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn start(command: Command) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let exit = runtime.block_on(async {
        tokio::select! {
            exit = dispatch(command) => exit,
            stopped = interrupted() => stopped, // what is dropped here ends: the writers, and outboxd
        }
    });
    runtime.shutdown_background(); // a question to Kafka that nobody waits for any more
    exit
}

async fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(arguments) => demo::run(arguments).await,
        Command::Sql { url } => sql(&url).await,
    }
}

/// Waits for the wish to end.
async fn interrupted() -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(INTERRUPTED.into())
}

async fn sql(url: &str) -> anyhow::Result<ExitCode> {
    use sqlx::{AssertSqlSafe, Connection};
    let mut statements = String::new();
    std::io::stdin().read_to_string(&mut statements)?;
    let mut connection = PgConnection::connect(url).await?;
    sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut connection).await?;
    connection.close().await?;
    Ok(ExitCode::SUCCESS)
}
