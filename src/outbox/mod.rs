//! The words of the product as types: event, stream, snapshot, cursor, lane. Pure: no serde, no sqlx, no rdkafka, no clock.

pub mod cursor;
pub mod event;
pub mod lane;
pub mod lsn;
pub mod parked;
pub mod snapshot;
pub mod stream;
pub mod table;
