//! A stream, the events of one aggregate, and their numbers in it. Pure.

use std::fmt;
use std::num::NonZeroU64;

/// Names a stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Stream {
    /// Type of the aggregate.
    pub aggregate_type: String,
    /// Id of the aggregate.
    pub aggregate_id: String,
}

/// The gapless number of an event in its stream, from 1; only events written by `outbox.emit()` have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sequence(NonZeroU64);

impl Sequence {
    /// The column's value; `None` for a number below 1, which its check constraint refuses.
    pub fn new(number: i64) -> Option<Self> {
        u64::try_from(number).ok().and_then(NonZeroU64::new).map(Self)
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
