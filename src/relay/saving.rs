//! The writer's connection of a session and what it is used for: saving the cursor, renewing the lease, the flush barrier, and
//! errands for parked events. One statement at a time; the pump goes on meanwhile.

use super::leadership::Terms;
use super::ledger::Ledger;
use super::pending::{Pending, later};
use super::verdict::{self, Trouble};
use crate::db::{DbError, Session};
use crate::outbox::cursor::Cursor;
use crate::outbox::event::EventKey;
use crate::outbox::lsn::Lsn;
use crate::outbox::parked::{Parking, Release};
use crate::outbox::stream::Stream;
use crate::routing::Rejection;
use crate::source::poll::flush;
use crate::store::cursor::{self, Lease, Saved};
use crate::store::parked::{self, Extent, Fetched};
use std::time::Duration;
use tokio::time::Instant;

/// Looks at the flushed WAL, each as long as [`flush::reached`] waits. After them a commit of our own makes it so: another's open transaction
/// can hold it back for long.
const FLUSH_LOOKS: u32 = 2;

/// The connection and the lease that it renews.
pub type Writer = (Session, Lease);

/// What a statement brought.
pub enum Done {
    /// A save, of the position and the events that were to be parked before it.
    Saved(Result<Saved, DbError>, Cursor, Vec<Parking>),
    /// A look at the flushed WAL.
    Flushed(Result<Option<Lsn>, DbError>),
    /// An errand.
    Ran(Result<Ran, DbError>),
}

/// A statement about parked events. Rare, and never urgent.
#[derive(Debug)]
pub enum Errand {
    /// Note that one was refused again.
    Refused(EventKey, Stream, Rejection),
    /// Remove those that are delivered.
    Remove(Vec<Release>),
    /// Read those of streams that may go on, at most about so many bytes.
    Fetch(Vec<Stream>, usize),
    /// Look what was decided.
    Look,
}

/// What an errand brought.
pub enum Ran {
    /// The table knows that the event was refused again.
    Refused(EventKey),
    /// The event was given up before it was refused again: its stream does not stand because of it.
    GivenUp(EventKey, Stream),
    /// They are gone.
    Removed(Vec<Release>),
    /// Of these streams, these events; cut where the budget was full.
    Fetched(Vec<Stream>, Vec<Fetched>, Extent),
    /// These streams may go on; whether an event of them was given up.
    Decided(Vec<(Stream, bool)>),
}

/// What came of a statement.
pub enum Finished {
    /// Nothing that concerns anybody else.
    Nothing,
    /// The row says this, and these events are parked.
    Saved(Cursor, Vec<Parking>),
    /// An errand is done.
    Ran(Ran),
}

/// How a session leaves its row.
pub struct Ended {
    /// The connection. None after a save that failed: what that was to park is known to nobody any more, so nothing behind
    /// it may be saved.
    pub writer: Option<Writer>,
    /// Events were settled that the row does not know.
    pub unsaved: bool,
    /// What came of the statement that was under way.
    pub last: Finished,
}

/// Events of one stream that are read at once.
const ROWS_OF_STREAM: i64 = 100;

/// When a save is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Events are in flight, or may come at once.
    Flowing,
    /// Nothing is in flight, and nothing to read.
    AtRest,
    /// The lane stops, and nothing is in flight; or it can park no more before a save.
    AtOnce,
}

/// See the module.
pub struct Saving {
    terms: Terms,
    save_every: Duration,
    writer: Option<Writer>,
    /// The statement under way, with the connection in it.
    pub working: Pending<(Writer, Done)>,
    flushed: Option<Lsn>,
    flush_looks: u32,
    fence_at: Instant,
    renew_at: Instant,
    saved_at: Instant,
    /// Events were settled that the row does not know.
    unsaved: bool,
}

impl Saving {
    /// Takes over the connection on which the lease was acquired.
    pub fn new(writer: Writer, terms: Terms, save_every: Duration) -> Self {
        let (now, renewed) = (Instant::now(), writer.1.renewed());
        Self {
            terms,
            save_every,
            writer: Some(writer),
            working: None,
            flushed: None,
            flush_looks: 0,
            fence_at: later(renewed, terms.fence),
            renew_at: later(renewed, terms.renew_every),
            saved_at: now,
            unsaved: false,
        }
    }

    /// From this moment nothing may be sent, unless the lease is renewed before.
    pub fn fence_at(&self) -> Instant {
        self.fence_at
    }

    /// Notes that events were settled.
    pub fn events_settled(&mut self) {
        self.unsaved = true;
    }

    /// Whether the row says all that is settled, and no statement is under way.
    pub fn is_done(&self) -> bool {
        !self.unsaved && self.writer.is_some()
    }

    /// Up to where the WAL is on disk, as far as is known.
    pub fn flushed(&self) -> Option<Lsn> {
        self.flushed
    }

    fn has_flushed(&self, place: Option<Lsn>) -> bool {
        place.is_none_or(|place| self.flushed >= Some(place))
    }

    /// Begins to wait for the WAL anew: the first look is due at once.
    pub fn expect_flush(&mut self) {
        self.flush_looks = 0;
    }

    /// Starts the statement that is due, if the connection is free.
    pub fn start(&mut self, ledger: &mut Ledger, urgency: Urgency, needs_wal: Option<Lsn>) {
        let Some((mut session, mut lease)) = self.writer.take() else { return };
        let awaited = needs_wal.filter(|place| !self.has_flushed(Some(*place)));
        if self.save_due_at(urgency) <= Instant::now() || awaited.is_some() && self.flush_looks >= FLUSH_LOOKS {
            (self.unsaved, self.flush_looks) = (false, 0);
            let (position, parkings) = (ledger.position().clone(), ledger.take_parkings());
            self.working = Some(Box::pin(async move {
                let result = cursor::save(&mut session, &mut lease, &position, &parkings).await;
                ((session, lease), Done::Saved(result, position, parkings))
            }));
        } else if let Some(place) = awaited {
            self.working = Some(Box::pin(async move {
                let result = flush::reached(&mut session, place).await;
                ((session, lease), Done::Flushed(result))
            }));
        } else {
            self.writer = Some((session, lease));
        }
    }

    /// Whether an errand can be run.
    pub fn is_free(&self) -> bool {
        self.writer.is_some()
    }

    /// Runs an errand, if the connection is free.
    pub fn run(&mut self, errand: Errand) {
        let Some((mut session, lease)) = self.writer.take() else { return };
        self.working = Some(Box::pin(async move {
            let result = run(&mut session, &lease, errand).await;
            ((session, lease), Done::Ran(result))
        }));
    }

    /// When the next save is due: it renews the lease too.
    ///
    /// | | due |
    /// |---|---|
    /// | events settled since the last save, and more flowing | `save_every` after it |
    /// | the same, at rest | a tenth of that |
    /// | the same, stopping, or no more can be parked | at once |
    /// | otherwise | when the lease is to be renewed |
    fn save_due_at(&self, urgency: Urgency) -> Instant {
        let pause = match urgency {
            Urgency::Flowing => self.save_every,
            Urgency::AtRest => self.save_every / 10,
            Urgency::AtOnce => Duration::ZERO,
        };
        if self.unsaved { later(self.saved_at, pause).min(self.renew_at) } else { self.renew_at }
    }

    /// When [`Saving::start`] has something to do; `None` while a statement is under way.
    pub fn next_time(&self, urgency: Urgency) -> Option<Instant> {
        self.writer.as_ref().map(|_| self.save_due_at(urgency))
    }

    /// Takes the connection back from a statement, and says what came of it.
    ///
    /// # Errors
    /// The statement failed, or the row is no longer ours.
    pub fn finish(&mut self, writer: Writer, done: Done) -> Result<Finished, Trouble> {
        let renewed = writer.1.renewed();
        (self.writer, self.working) = (Some(writer), None);
        match done {
            Done::Saved(result, position, parkings) => {
                self.saved_at = Instant::now();
                verdict::saved(result.inspect_err(|_| self.unsaved = true).map_err(Trouble::Db)?)?;
                (self.fence_at, self.renew_at) =
                    (later(renewed, self.terms.fence), later(renewed, self.terms.renew_every));
                Ok(Finished::Saved(position, parkings))
            }
            Done::Flushed(result) => {
                self.flushed = self.flushed.max(result.map_err(Trouble::Db)?);
                self.flush_looks = self.flush_looks.saturating_add(1);
                Ok(Finished::Nothing)
            }
            Done::Ran(result) => result.map(Finished::Ran).map_err(Trouble::Db),
        }
    }

    /// Waits for the statement under way, which has a limit of its own.
    pub async fn end(mut self) -> Ended {
        let mut last = Finished::Nothing;
        if let Some(working) = self.working.take() {
            let (writer, done) = working.await;
            match self.finish(writer, done) {
                Ok(finished) => last = finished,
                Err(_) => return Ended { writer: None, unsaved: true, last },
            }
        }
        Ended { writer: self.writer, unsaved: self.unsaved, last }
    }
}

async fn run(session: &mut Session, lease: &Lease, errand: Errand) -> Result<Ran, DbError> {
    Ok(match errand {
        Errand::Refused(key, stream, Rejection { code, reason, .. }) => {
            let is_there = parked::refused_again(session, lease, key, &code, &reason).await?;
            if is_there { Ran::Refused(key) } else { Ran::GivenUp(key, stream) }
        }
        Errand::Remove(releases) => {
            parked::remove(session, lease, &releases).await?;
            Ran::Removed(releases)
        }
        Errand::Fetch(streams, budget_bytes) => {
            let (found, extent) = parked::fetch(session, lease, &streams, ROWS_OF_STREAM, budget_bytes).await?;
            Ran::Fetched(streams, found, extent)
        }
        Errand::Look => Ran::Decided(parked::decided(session, lease).await?),
    })
}
