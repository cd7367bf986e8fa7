//! The reader: a task that polls ahead of the pump, and stops when nobody takes what it reads.

use crate::config::relay::Poll as PollBounds;
use crate::db::DbError;
use crate::outbox::cursor::Cursor;
use crate::source::poll::Poll;
use crate::source::poll::pace::{Pace, Traffic};
use crate::source::{Batch, SourceError};
use std::time::Duration;
use tokio::sync::mpsc;

/// A read that takes longer will not end: its answer was lost on the way. Opening a window reads its ids once, a million in a second.
const READ_LIMIT: Duration = Duration::from_mins(10);

/// Batches between reader and pump. With the one being read and the one being sent, three pages of a quarter of the budget each at most.
pub const BATCHES_AHEAD: usize = 1;

/// Reads batches one after the other, ahead of the loop, until nobody takes them or something is wrong.
pub async fn read(
    mut poll: Poll,
    mut from: Cursor,
    bounds: PollBounds,
    feed: mpsc::Sender<Result<Batch, SourceError>>,
) {
    let mut pace = Pace::new(bounds);
    loop {
        let read = tokio::time::timeout(READ_LIMIT, poll.next(&from)).await;
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
