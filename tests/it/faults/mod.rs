//! Faults from outside: kills, cuts, lost answers. Each test ends in the checker: lost, order, duplicates.

mod access;
mod away;
mod disk;
mod endings;
mod frozen;
mod network;
mod phantoms;
mod pooler;
mod scene;
mod security;
mod stage;
mod standby;
mod storm;
mod takeover;
mod topics;
