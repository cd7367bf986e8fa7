//! The reader: a task that polls ahead of the pump, and stops when nobody takes what it reads.

use crate::config::relay::Poll as PollBounds;
use crate::db::DbError;
use crate::outbox::cursor::Cursor;
use crate::source::poll::pace::{Pace, Traffic};
use crate::source::poll::{Poll, Watch};
use crate::source::{Batch, SourceError};
use std::time::Duration;
use tokio::sync::mpsc;

/// A read that takes longer will not end: its answer was lost on the way. Opening a window reads its ids once, a million in a second.
const READ_LIMIT: Duration = Duration::from_mins(10);

/// How often a read that takes long is looked at, and how many looks without work and without a row make it lost.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const LOOKS: u32 = 2;

/// Batches between reader and pump. With the one being read and the one being sent, three pages of a quarter of the budget each at most.
pub const BATCHES_AHEAD: usize = 1;

/// Reads batches one after the other, ahead of the loop, until nobody takes them or something is wrong.
pub async fn read(
    mut poll: Poll,
    mut from: Cursor,
    bounds: PollBounds,
    feed: mpsc::Sender<Result<Batch, SourceError>>,
) {
    let (mut pace, watch) = (Pace::new(bounds), poll.watch());
    loop {
        let read = tokio::time::timeout(READ_LIMIT, answered(poll.next(&from), &watch)).await;
        let read = read.unwrap_or_else(|_| Err(SourceError::Db(DbError::silent("reading events", READ_LIMIT))));
        let pause = read.as_ref().map(|batch| {
            from = batch.to.clone();
            match (batch.end_mark(), batch.events.is_empty()) {
                (None, _) => pace.after(Traffic::More),
                (Some(_), false) => pace.after(Traffic::Some),
                (Some(_), true) => pace.after(Traffic::None),
            }
        });
        let pause = pause.ok();
        if feed.send(read).await.is_err() {
            return;
        }
        match pause {
            Some(pause) => tokio::time::sleep(pause).await,
            None => return,
        }
    }
}

/// Waits for a read, but not for one that is lost: the server is not at it, and no row comes.
async fn answered(read: impl Future<Output = Result<Batch, SourceError>>, watch: &Watch) -> Result<Batch, SourceError> {
    let mut read = std::pin::pin!(read);
    let (mut idle, mut received) = (0_u32, watch.received());
    loop {
        if let Ok(read) = tokio::time::timeout(LOOK_EVERY, &mut read).await {
            return read;
        }
        // a server that does not answer here, either, is no proof: the renewal of the lease finds it out
        let at_work = tokio::select! {
            read = &mut read => return read,
            at_work = watch.is_at_work() => at_work.unwrap_or(true),
        };
        let quiet = !at_work && std::mem::replace(&mut received, watch.received()) == watch.received();
        idle = if quiet { idle.saturating_add(1) } else { 0 };
        if idle >= LOOKS {
            return Err(SourceError::Db(DbError::silent("reading events", LOOK_EVERY.saturating_mul(LOOKS))));
        }
    }
}
