#![cfg(test)]
#![expect(clippy::print_stderr, reason = "a run tells how many states it has seen")]
//! The cursor protocol in every order of events, within small bounds.
//!
//! Cursor, snapshots, ledger and verdicts are those of production; Postgres and Kafka are drawn in a few lines each.
//! [`honest`] explores the protocol as it is, [`sown`] with one bug at a time, which has to be found.
//! `OUTBOXD_MODEL=long` chooses larger bounds.

mod honest;
mod kafka;
mod postgres;
mod properties;
mod protocol;
mod relay;
mod setup;
mod sown;
