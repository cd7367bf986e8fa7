//! What a run explores: how writers write, how large a page is, how often what may fail, and which bug is sown.

/// What a writer may do besides: lock, insert, commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Habit {
    /// Take its transaction id long before it writes.
    Early,
    /// Abort instead of committing.
    Aborts,
    /// Go back to a savepoint behind an insert, once, and insert again.
    GoesBack,
    /// Commit without waiting for the disk.
    Asynchronous,
}

/// One transaction: an event for each stream, in this order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) streams: &'static [usize],
    pub(crate) habits: &'static [Habit],
}

impl Plan {
    pub(crate) fn has(&self, habit: Habit) -> bool {
        self.habits.contains(&habit)
    }
}

/// How often each of these may still happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    /// A relay is killed.
    pub(crate) crashes: u8,
    /// A producer breaks: nobody knows what became of the records in flight, and a report that was due is lost.
    pub(crate) breaks: u8,
    /// A process stands still.
    pub(crate) freezes: u8,
    /// The server's clock jumps: the lease of a relay that is alive runs out.
    pub(crate) jumps: u8,
    /// A relay is told to stop.
    pub(crate) stops: u8,
    /// Postgres forgets what is not on disk.
    pub(crate) postgres_crashes: u8,
}

impl Budget {
    pub(crate) const NOTHING: Self =
        Self { crashes: 0, breaks: 0, freezes: 0, jumps: 0, stops: 0, postgres_crashes: 0 };
}

/// A bug that the model must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seed {
    SavedBeforeAcknowledged,
    SnapshotAfterRows,
    EpochNotChecked,
    AfterUnderNewWindow,
    HotStandby,
    CursorOnId,
    HorizonByXid,
    HorizonById,
    InsertBeforeLock,
    LocksFreedEarly,
    LandsOutOfOrder,
    RetryOnSameProducer,
    CursorFromMemory,
    SentBeforeFlush,
    ParkedBesideSave,
    FollowersSent,
}

/// The bounds of one run.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) writers: Vec<Plan>,
    /// The stream of each event; events are numbered in the order of the plans.
    pub(crate) events: Vec<usize>,
    pub(crate) relays: usize,
    /// Rows to ask for.
    pub(crate) page: usize,
    /// Events that may be open.
    pub(crate) in_flight: usize,
    /// Distance between two ids: beyond the span of a page, a window has gaps.
    pub(crate) stride: i64,
    pub(crate) partitions: usize,
    /// The event that Kafka never takes.
    pub(crate) refused: Option<usize>,
    pub(crate) budget: Budget,
    pub(crate) seed: Option<Seed>,
}

impl Setup {
    pub(crate) fn new(writers: &[Plan], budget: Budget) -> Self {
        Self {
            writers: writers.to_vec(),
            events: writers.iter().flat_map(|plan| plan.streams).copied().collect(),
            relays: 1,
            page: 1,
            in_flight: 4,
            stride: 1,
            partitions: 2,
            refused: None,
            budget,
            seed: None,
        }
    }

    pub(crate) fn is_sown(&self, seed: Seed) -> bool {
        self.seed == Some(seed)
    }

    /// The number of the first event of a writer.
    pub(crate) fn first_event(&self, writer: usize) -> usize {
        self.writers.iter().take(writer).map(|plan| plan.streams.len()).sum()
    }

    pub(crate) fn streams(&self) -> usize {
        self.events.iter().max().map_or(0, |last| last + 1)
    }

    pub(crate) fn stream_of(&self, event: usize) -> usize {
        self.events[event]
    }

    pub(crate) fn partition_of(&self, event: usize) -> usize {
        self.stream_of(event) % self.partitions
    }

    /// A server that can crash has to say which transaction ids are taken for good: then each save takes one itself.
    pub(crate) fn burns(&self) -> bool {
        self.budget.postgres_crashes > 0
    }
}
