//! The reader: a task that polls ahead of the pump, and stops when nobody takes what it reads.

use super::waker::Waker;
use crate::db::DbError;
use crate::outbox::cursor::Cursor;
use crate::outbox::snapshot::Snapshot;
use crate::source::poll::pace::Traffic;
use crate::source::poll::{Poll, Watch};
use crate::source::{Batch, SourceError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// A read of which nothing is heard for longer will not end: no row comes, and nobody says that the server is at it. One that is may take
/// as long as it does: opening a window reads its ids once, a million in a second.
const READ_LIMIT: Duration = Duration::from_mins(10);

/// How often a read that takes long is looked at, and how many looks without work and without a row make it lost.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const LOOKS: u32 = 2;

/// Batches between reader and pump: with the one being read and the one being sent, three pages.
pub const BATCHES_AHEAD: usize = 1;

/// Reads batches one after the other, ahead of the loop, until nobody takes them or something is wrong.
pub async fn read(mut poll: Poll, mut from: Cursor, mut waker: Waker, feed: mpsc::Sender<Result<Batch, SourceError>>) {
    let watch = poll.watch();
    loop {
        let began = Instant::now();
        let read = answered(poll.next(&from), &watch).await;
        let took = began.elapsed();
        let traffic = read.as_ref().map(|batch| {
            from = batch.to.clone();
            traffic(batch)
        });
        let traffic = traffic.ok();
        if traffic != Some(Traffic::None) || feed.capacity() == 0 {
            waker.stay_up().await;
        }
        if feed.send(read).await.is_err() {
            return;
        }
        match traffic {
            Some(traffic) => waker.wait(traffic, took).await,
            None => return,
        }
    }
}

/// What a read says of the traffic. The end of a large window says nothing of what was written since that was opened: only a read that
/// opens one may say that there is nothing, for on its word the reader goes to sleep.
fn traffic(batch: &Batch) -> Traffic {
    match (batch.end_mark(), &batch.from) {
        (None, _) => Traffic::More,
        (Some(_), Cursor::Closed { .. }) if batch.events.is_empty() => Traffic::None,
        (Some(_), _) => Traffic::Some(commits(batch.events.len(), batch.from.s(), &batch.window_end)),
    }
}

/// About how many commits so many events are of: neither one with many events counts as many, nor do those that wrote to other tables.
fn commits(events: usize, s: &Snapshot, window_end: &Snapshot) -> u64 {
    u64::try_from(events).unwrap_or(u64::MAX).min(window_end.began_since(s))
}

/// Waits for a read, but not for one that is lost: the server is not at it, and no row comes.
async fn answered(read: impl Future<Output = Result<Batch, SourceError>>, watch: &Watch) -> Result<Batch, SourceError> {
    let silent = |limit| Err(SourceError::Db(DbError::silent("reading events", limit)));
    let mut read = std::pin::pin!(read);
    let (mut idle, mut received, mut heard_at) = (0_u32, watch.received(), Instant::now());
    loop {
        if let Ok(read) = tokio::time::timeout(LOOK_EVERY, &mut read).await {
            return read;
        }
        // a server that does not answer here, either, is no proof: the renewal of the lease finds it out
        let at_work = tokio::select! {
            read = &mut read => return read,
            at_work = watch.is_at_work() => at_work.ok(),
        };
        let rows_came = std::mem::replace(&mut received, watch.received()) != watch.received();
        if rows_came || at_work == Some(true) {
            (idle, heard_at) = (0, Instant::now());
        } else if at_work == Some(false) {
            idle = idle.saturating_add(1);
        }
        if idle >= LOOKS {
            return silent(LOOK_EVERY.saturating_mul(LOOKS));
        }
        if heard_at.elapsed() > READ_LIMIT {
            return silent(READ_LIMIT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::event::RowId;

    #[test]
    fn neither_many_events_of_a_commit_nor_commits_without_events_are_much_traffic() {
        for (events, window_end, expected) in [(10, "5:5:", 2), (2, "90:90:", 2)] {
            let [s, window_end] = ["3:3:", window_end].map(|text| Snapshot::parse(text).unwrap());
            assert_eq!(commits(events, &s, &window_end), expected);
        }
    }

    #[test]
    fn only_a_read_that_opens_a_window_says_that_there_is_nothing() {
        let snapshot = |text| Snapshot::parse(text).unwrap();
        let closed = |text| Cursor::Closed { s: snapshot(text) };
        let open = Cursor::Open { s: snapshot("3:3:"), t: snapshot("9:9:"), after: RowId::new(4) };
        let table = [
            (closed("3:3:"), closed("9:9:"), Traffic::None),
            (closed("3:3:"), open.clone(), Traffic::More),
            (open.clone(), open.clone(), Traffic::More),
            (open, closed("9:9:"), Traffic::Some(0)), // an empty last page
        ];
        for (from, to, expected) in table {
            let batch = Batch { from, window_end: snapshot("9:9:"), events: Vec::new(), to, needs_wal: None };
            assert_eq!(traffic(&batch), expected, "{batch:?}");
        }
    }
}
