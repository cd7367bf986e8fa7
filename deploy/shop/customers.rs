//! What goes on in the shop: who calls its functions, when, and with what end. Nothing in here knows of outboxd.

use crate::{pay, place, redirect, restock, ship};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use sqlx::{Connection, PgConnection, PgPool};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Few, so that the writers meet on the same rows.
const ITEMS: [&str; 6] = ["apples", "bread", "cheese", "figs", "olives", "pasta"];
/// Sold by nobody before its delivery is entered.
const NEW_ITEM: &str = "truffles";
const ADDRESSES: [&str; 4] = ["Elm Street 1", "Harbour 12", "Mill Lane 7", "Station Road 30"];
/// How many of the latest orders people still come back for: few, for the same reason.
const RECENT: i64 = 16;
/// What is on the shelves before the shop opens.
const OPENING_STOCK: i32 = 500;
/// How long a writer rests at most between two transactions.
const REST: Duration = Duration::from_millis(20);

/// Fills the shelves.
pub(crate) async fn open_shop(database: &PgPool) -> sqlx::Result<()> {
    let mut tx = database.begin().await?;
    for item in ITEMS {
        restock(&mut tx, item, OPENING_STOCK).await?;
    }
    tx.commit().await
}

/// One writer: does one thing after the other until the shop closes. One time in ten it thinks better of it at the last
/// moment, and neither change nor event must be seen by anybody.
pub(crate) async fn trade(
    database: PgPool,
    latest: Arc<AtomicI64>,
    mut rng: StdRng,
    closing: Instant,
) -> sqlx::Result<()> {
    while Instant::now() < closing {
        let mut tx = database.begin().await?;
        let placed = visit(&mut tx, &latest, &mut rng).await?;
        if rng.random_ratio(1, 10) {
            tx.rollback().await?;
        } else {
            tx.commit().await?;
            latest.fetch_max(placed.unwrap_or(0), Ordering::Relaxed);
        }
        sleep(rng.random_range(Duration::ZERO..REST)).await;
    }
    Ok(())
}

/// One thing that happens. Answers the order that was placed, if one was.
async fn visit(tx: &mut PgConnection, latest: &AtomicI64, rng: &mut StdRng) -> sqlx::Result<Option<i64>> {
    let item = ITEMS.choose(rng).copied().unwrap_or_default();
    let address = ADDRESSES.choose(rng).copied().unwrap_or_default();
    let order = latest.load(Ordering::Relaxed) - rng.random_range(0..RECENT);
    match rng.random_range(0..100) {
        0..30 => return place(tx, item, rng.random_range(1..=5), address).await,
        30..60 => drop(pay(tx, order).await?),
        60..85 => drop(redirect(tx, order, address).await?),
        85..95 => send_parcels(tx, order, rng).await?,
        _ => restock(tx, item, rng.random_range(20..=60)).await?,
    }
    Ok(None)
}

/// Ships several orders in one transaction, each behind a savepoint: what the carrier does not take is undone, with its
/// event, and the others go. In the order of their ids, so that two writers never wait for each other.
async fn send_parcels(tx: &mut PgConnection, first: i64, rng: &mut StdRng) -> sqlx::Result<()> {
    for order in first..first + 4 {
        let mut parcel = tx.begin().await?;
        ship(&mut parcel, order).await?;
        if rng.random_ratio(1, 4) {
            parcel.rollback().await?;
        } else {
            parcel.commit().await?;
        }
    }
    Ok(())
}

/// One long transaction: a delivery of which a part is entered at once and the rest only when the lorry is empty.
pub(crate) async fn long_delivery(database: PgPool, unloading: Duration) -> sqlx::Result<()> {
    let mut tx = database.begin().await?;
    restock(&mut tx, NEW_ITEM, 100).await?;
    sleep(unloading).await;
    restock(&mut tx, NEW_ITEM, 100).await?;
    tx.commit().await
}
