//! A lane: an ordered share of the streams, with one writer at a time. Pure.

use std::fmt;

/// Number of a lane, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LaneId(i16);

impl LaneId {
    /// The only lane of an outbox that is not split.
    pub const FIRST: Self = Self(0);

    /// The number, for binding it to a statement.
    pub fn get(self) -> i16 {
        self.0
    }
}

impl fmt::Display for LaneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of the right to work a lane. Each holder has a greater one than the one before; every move of the cursor compares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch(i64);

impl Epoch {
    /// Wraps the column `epoch`.
    pub fn new(number: i64) -> Self {
        Self(number)
    }

    /// The number, for binding it to a statement.
    pub fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
