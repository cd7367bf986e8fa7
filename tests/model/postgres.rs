//! Postgres, as far as the protocol leans on it: transaction ids, locks, the running set, the log on disk, the cursor row.

use crate::setup::{Habit, Plan, Seed, Setup};
use outboxd::outbox::cursor::Cursor;
use outboxd::outbox::event::RowId;
use outboxd::outbox::snapshot::{Snapshot, Xid};

/// A row of the outbox, committed or not. The rows of an aborted transaction are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Row {
    /// Which event of the run: an id can come again after a crash, this number cannot.
    pub(crate) event: usize,
    pub(crate) stream: usize,
    pub(crate) id: i64,
    pub(crate) xid: u64,
    /// The place of the commit in the log, if nobody waited for the disk.
    pub(crate) wal: u8,
}

impl Row {
    pub(crate) fn row_id(&self) -> RowId {
        RowId::new(self.id)
    }

    pub(crate) fn is_seen_by(&self, snapshot: &Snapshot) -> bool {
        snapshot.sees(Xid::new(self.xid))
    }

    /// Whether a cursor says that the row is settled.
    pub(crate) fn is_settled_by(&self, cursor: &Cursor) -> bool {
        let within = |t: &Snapshot, after| self.is_seen_by(t) && !Cursor::is_behind(self.row_id(), after);
        self.is_seen_by(cursor.s()) || cursor.t().zip(cursor.after()).is_some_and(|(t, after)| within(t, after))
    }
}

/// How far a transaction has come. A commit takes three steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Writing,
    /// The commit is in the log: a crash does not undo it. Nobody sees it yet.
    Logged,
    /// It has left the running set: snapshots see it. Its locks are still held.
    Visible,
    Over,
}

/// A transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Writer {
    phase: Phase,
    xid: Option<u64>,
    locked: usize,
    inserted: usize,
    went_back: bool,
    wal: u8,
}

/// What a writer does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    TakeXid,
    Lock,
    Insert,
    GoBack,
    Commit,
    Leave,
    FreeLocks,
    Abort,
}

/// The server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Postgres {
    next_xid: u64,
    /// The last transaction id, in order of the ids, that has ended.
    last_ended: u64,
    next_id: i64,
    running: Vec<u64>,
    writers: Vec<Writer>,
    pub(crate) rows: Vec<Row>,
    /// Per stream, in the order of the commits.
    pub(crate) committed: Vec<Vec<usize>>,
    /// What a statement that starts now would see.
    now: Snapshot,
    /// Commits that did not wait for the disk, and how many of them are there.
    pub(crate) wal: u8,
    pub(crate) flushed: u8,
    /// The highest transaction id that the log names.
    logged_xid: u64,
    /// Where a crash sets the counters back to.
    kept: (u64, i64),
    pub(crate) cursor: Cursor,
    pub(crate) epoch: u8,
    pub(crate) owner: Option<usize>,
    /// Who saved under this epoch.
    saver: Option<usize>,
    /// Two relays saved under one epoch.
    pub(crate) is_trespassed: bool,
    pub(crate) parked: Vec<usize>,
}

impl Postgres {
    pub(crate) fn new(setup: &Setup) -> Self {
        let idle = Writer { phase: Phase::Writing, xid: None, locked: 0, inserted: 0, went_back: false, wal: 0 };
        Self {
            next_xid: 3,
            last_ended: 2,
            next_id: 1,
            running: Vec::new(),
            writers: vec![idle; setup.writers.len()],
            rows: Vec::new(),
            committed: vec![Vec::new(); setup.streams()],
            now: Snapshot::before_all(),
            wal: 0,
            flushed: 0,
            logged_xid: 2,
            kept: (3, 1),
            cursor: Cursor::earliest(),
            epoch: 0,
            owner: None,
            saver: None,
            is_trespassed: false,
            parked: Vec::new(),
        }
    }

    // ---- reading

    pub(crate) fn now(&self) -> &Snapshot {
        &self.now
    }

    /// The snapshot of a hot standby: it lists no running transactions.
    pub(crate) fn on_standby(&self) -> Snapshot {
        snapshot(self.last_ended + 1, self.last_ended + 1, &[])
    }

    /// The oldest running transaction, as a snapshot that sees nothing at or above it.
    pub(crate) fn horizon(&self) -> u64 {
        self.running.first().copied().unwrap_or(self.last_ended + 1).min(self.last_ended + 1)
    }

    /// The rows that a statement returns which looks for those that `snapshot` sees. Ascending by id.
    pub(crate) fn rows_in<'a>(&'a self, snapshot: &'a Snapshot) -> impl Iterator<Item = &'a Row> {
        self.rows.iter().filter(|row| row.is_seen_by(snapshot) && !self.running.contains(&row.xid))
    }

    pub(crate) fn is_durable(&self, event: usize) -> bool {
        let lasts = |row: &Row| row.event == event && row.wal <= self.flushed;
        self.committed.iter().flatten().any(|committed| *committed == event) && self.rows.iter().any(lasts)
    }

    // ---- writers

    pub(crate) fn steps(&self, writer: usize, setup: &Setup, found: &mut Vec<Step>) {
        let (own, plan) = (&self.writers[writer], &setup.writers[writer]);
        match own.phase {
            Phase::Writing => {}
            Phase::Logged => return found.push(Step::Leave),
            Phase::Visible => return found.push(Step::FreeLocks),
            Phase::Over => return,
        }
        let (first, second) = if setup.is_sown(Seed::InsertBeforeLock) {
            ((own.inserted, Step::Insert), (own.locked, Step::Lock))
        } else {
            ((own.locked, Step::Lock), (own.inserted, Step::Insert))
        };
        if plan.has(Habit::Early) && own.xid.is_none() {
            found.push(Step::TakeXid);
        }
        let next = if first.0 > second.0 {
            Some(second.1)
        } else if second.0 < plan.streams.len() {
            Some(first.1)
        } else {
            Some(Step::Commit)
        };
        found.extend(next.filter(|step| *step != Step::Lock || self.is_free(writer, plan.streams[own.locked], setup)));
        if plan.has(Habit::GoesBack) && !own.went_back && own.inserted > 0 && own.inserted == own.locked {
            found.push(Step::GoBack);
        }
    }

    /// What a writer may do instead of going on.
    pub(crate) fn may_abort(&self, writer: usize, setup: &Setup) -> bool {
        let own = &self.writers[writer];
        setup.writers[writer].has(Habit::Aborts) && own.phase == Phase::Writing && (own.xid.is_some())
    }

    fn is_free(&self, writer: usize, stream: usize, setup: &Setup) -> bool {
        let holds = |own: &Writer, plan: &Plan| {
            let has = match own.phase {
                Phase::Writing => true,
                Phase::Logged | Phase::Visible => !setup.is_sown(Seed::LocksFreedEarly),
                Phase::Over => false,
            };
            has && plan.streams[..own.locked].contains(&stream)
        };
        let mut all = self.writers.iter().zip(&setup.writers).enumerate();
        !all.any(|(other, (own, plan))| other != writer && holds(own, plan))
    }

    pub(crate) fn take(&mut self, writer: usize, step: Step, setup: &Setup) {
        let plan = &setup.writers[writer];
        match step {
            Step::TakeXid => self.begin(writer),
            Step::Lock => {
                self.begin(writer); // a row lock takes an id
                self.writers[writer].locked += 1;
            }
            Step::Insert => {
                self.begin(writer);
                let (own, place) = (&self.writers[writer], self.writers[writer].inserted);
                let (event, stream) = (setup.first_event(writer) + place, plan.streams[place]);
                let xid = own.xid.unwrap();
                self.rows.push(Row { event, stream, id: self.next_id, xid, wal: 0 });
                self.next_id += setup.stride;
                self.logged_xid = self.logged_xid.max(xid);
                self.writers[writer].inserted += 1;
            }
            Step::GoBack => {
                let last = setup.first_event(writer) + self.writers[writer].inserted - 1;
                self.rows.retain(|row| row.event != last);
                let own = &mut self.writers[writer];
                (own.locked, own.inserted, own.went_back) = (own.locked - 1, own.inserted - 1, true);
            }
            Step::Commit => self.commit(writer, setup),
            Step::Leave => {
                self.writers[writer].phase = Phase::Visible;
                self.end(writer);
            }
            Step::FreeLocks => self.writers[writer].phase = Phase::Over,
            Step::Abort => {
                self.undo(writer);
                self.end(writer);
            }
        }
    }

    fn begin(&mut self, writer: usize) {
        if self.writers[writer].xid.is_none() {
            self.writers[writer].xid = Some(self.next_xid);
            self.running.push(self.next_xid);
            self.next_xid += 1;
        }
    }

    fn commit(&mut self, writer: usize, setup: &Setup) {
        let (own, plan) = (&mut self.writers[writer], &setup.writers[writer]);
        own.phase = Phase::Logged;
        for (place, stream) in plan.streams.iter().enumerate() {
            self.committed[*stream].push(setup.first_event(writer) + place);
        }
        self.logged_xid = self.logged_xid.max(own.xid.unwrap());
        if plan.has(Habit::Asynchronous) {
            self.wal += 1;
            own.wal = self.wal;
            let xid = own.xid.unwrap();
            self.rows.iter_mut().filter(|row| row.xid == xid).for_each(|row| row.wal = self.wal);
        } else {
            self.flush(setup);
        }
    }

    /// Leaves the running set.
    fn end(&mut self, writer: usize) {
        let xid = self.writers[writer].xid.unwrap();
        self.running.retain(|running| *running != xid);
        self.last_ended = self.last_ended.max(xid);
        self.look();
    }

    fn undo(&mut self, writer: usize) {
        let own = &mut self.writers[writer];
        (own.phase, own.wal) = (Phase::Over, 0);
        let Some(xid) = own.xid else { return };
        let gone: Vec<usize> = self.rows.iter().filter(|row| row.xid == xid).map(|row| row.event).collect();
        self.rows.retain(|row| row.xid != xid);
        self.committed.iter_mut().for_each(|stream| stream.retain(|event| !gone.contains(event)));
    }

    fn look(&mut self) {
        self.now = snapshot(self.horizon(), self.last_ended + 1, &self.running);
    }

    // ---- the disk

    pub(crate) fn is_on_disk(&self) -> bool {
        self.flushed == self.wal
    }

    pub(crate) fn flush(&mut self, setup: &Setup) {
        self.flushed = self.wal;
        if setup.burns() {
            self.kept = (self.logged_xid + 1, self.next_id);
        }
    }

    /// What is not on disk never was; its ids and transaction ids come again.
    pub(crate) fn crash(&mut self) {
        for writer in 0..self.writers.len() {
            let own = &self.writers[writer];
            match own.phase {
                Phase::Writing if own.xid.is_none() => {}
                Phase::Writing => self.undo(writer),
                Phase::Logged | Phase::Visible | Phase::Over if own.wal > self.flushed => self.undo(writer),
                Phase::Logged | Phase::Visible | Phase::Over => self.writers[writer].phase = Phase::Over,
            }
        }
        self.wal = self.flushed;
        (self.next_xid, self.next_id) = self.kept;
        (self.last_ended, self.logged_xid) = (self.next_xid - 1, self.next_xid - 1);
        self.running.clear();
        self.look();
    }

    // ---- the cursor row

    pub(crate) fn acquire(&mut self, relay: usize, setup: &Setup) {
        (self.epoch, self.owner, self.saver) = (self.epoch + 1, Some(relay), None);
        self.wrote(setup);
    }

    pub(crate) fn release(&mut self, setup: &Setup) {
        self.owner = None;
        self.wrote(setup);
    }

    /// Moves the cursor and parks, in one statement.
    pub(crate) fn save(&mut self, relay: usize, cursor: Cursor, parked: &[usize], setup: &Setup) {
        self.is_trespassed |= self.saver.is_some_and(|saver| saver != relay);
        self.saver = Some(relay);
        self.cursor = cursor;
        self.park(parked);
        self.wrote(setup);
    }

    fn park(&mut self, events: &[usize]) {
        self.parked.extend(events);
        self.parked.sort_unstable();
        self.parked.dedup(); // on conflict do nothing
    }

    /// A statement of a relay: a transaction that is on disk before it is answered.
    fn wrote(&mut self, setup: &Setup) {
        if setup.burns() {
            (self.last_ended, self.logged_xid) = (self.next_xid, self.next_xid);
            self.next_xid += 1;
            self.look();
        }
        self.flush(setup);
    }
}

/// As the server prints it, read as the relay reads it.
pub(crate) fn snapshot(xmin: u64, xmax: u64, running: &[u64]) -> Snapshot {
    let below: Vec<String> = running.iter().filter(|xid| **xid < xmax).map(ToString::to_string).collect();
    Snapshot::parse(&format!("{xmin}:{xmax}:{}", below.join(","))).unwrap()
}
