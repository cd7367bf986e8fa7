//! What the relay owns in Postgres, one file per table, and the guards that say whether it may go on. Knows nothing of Kafka.

pub mod cursor;
pub mod decisions;
pub mod guards;
pub mod holders;
pub mod parked;
pub mod rebase;
pub mod standing;
