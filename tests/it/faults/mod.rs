//! Faults from outside: kills, cuts, lost answers. Each test ends in the checker: lost, order, duplicates.

mod away;
mod endings;
mod frozen;
mod network;
mod scene;
mod storm;
mod takeover;
