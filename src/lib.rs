//! outboxd, a transactional outbox relay: tails an outbox table in Postgres and publishes each event to Kafka at least once,
//! in order per stream, and only then saves its cursor.
//!
//! The house has levels; a module imports from lower ones only (`cli` may use `http`). `tests/tidy` keeps this true.
//!
//! | level | modules | |
//! |---|---|---|
//! | 7 | `main` | arguments in, exit code out |
//! | 6 | [`cli`], [`http`] | commands; the HTTP surface of the daemon |
//! | 5 | [`relay`] | orchestration: only here and in `cli` meet Postgres and Kafka |
//! | 4 | [`source`], [`sink`], [`store`] | reads events; writes records; what the relay owns in Postgres |
//! | 3 | [`routing`], [`db`] | event to records, pure; Postgres plumbing |
//! | 2 | [`telemetry`], [`supervise`], [`backoff`], [`naps`] | how the process speaks; who owns a task; how long to wait, and waiting |
//! | 1 | [`config`] | what the operator wrote, as valid values |
//! | 0 | [`outbox`] | the words as types, pure |
//!
//! Three invariants carry the product:
//!
//! * one statement is one snapshot (`source::poll::window`);
//! * the saved cursor never passes an event that is not settled (`relay::ledger`);
//! * a cursor moves only under the epoch of its lease (`store::cursor`).

pub mod backoff;
pub mod cli;
pub mod config;
pub mod db;
pub mod http;
pub mod naps;
pub mod outbox;
pub mod relay;
pub mod routing;
pub mod sink;
pub mod source;
pub mod store;
pub mod supervise;
pub mod telemetry;
