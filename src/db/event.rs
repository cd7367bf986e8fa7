//! Row to [`Event`]: the same columns in the outbox and where events are parked.

use crate::outbox::event::{Event, EventId, Micros, RowId};
use crate::outbox::stream::Sequence;
use sqlx::postgres::PgRow;
use sqlx::{Row, ValueRef};
use uuid::Uuid;

/// The columns of an event, in the order in which [`event`] reads them.
pub const COLUMNS: &str = "id, created_at, sequence, event_id, previous_event_id, aggregate_type, aggregate_id, event_type, payload, payload_bytes, nullif(headers, '{}') as headers";

/// Reads the event whose first column is `at`; `None` if the row carries none.
///
/// # Errors
/// A column is missing or of another type.
pub fn event(row: &PgRow, at: usize) -> Result<Option<Event>, sqlx::Error> {
    let Some(id): Option<i64> = row.try_get(at)? else { return Ok(None) };
    let payload = match jsonb(row, at + 8)? {
        Some(text) => Some(text),
        None => row.try_get::<Option<Vec<u8>>, _>(at + 9)?,
    };
    let headers = jsonb(row, at + 10)?
        .map(String::from_utf8)
        .transpose()
        .map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    Ok(Some(Event {
        id: RowId::new(id),
        created_at: micros(row, at + 1)?,
        sequence: row.try_get::<Option<i64>, _>(at + 2)?.and_then(Sequence::new),
        event_id: EventId::new(row.try_get::<Uuid, _>(at + 3)?),
        previous_event_id: row.try_get::<Option<Uuid>, _>(at + 4)?.map(EventId::new),
        aggregate_type: row.try_get(at + 5)?,
        aggregate_id: row.try_get(at + 6)?,
        event_type: row.try_get(at + 7)?,
        payload,
        headers,
    }))
}

/// The text of a jsonb, as bytes: in binary format it is a version byte, always 1, and the text (`jsonb_send`).
fn jsonb(row: &PgRow, index: usize) -> Result<Option<Vec<u8>>, sqlx::Error> {
    let value = row.try_get_raw(index)?;
    if value.is_null() {
        return Ok(None);
    }
    let bytes = value.as_bytes().map_err(sqlx::Error::Decode)?;
    match bytes.split_first() {
        Some((1, text)) => Ok(Some(text.to_vec())),
        _ => Err(sqlx::Error::Decode("expected jsonb in binary format, version 1".into())),
    }
}

/// From 2000-01-01, where Postgres counts from, back to 1970-01-01.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// A timestamptz in binary format: microseconds since 2000-01-01 as a big-endian number.
fn micros(row: &PgRow, index: usize) -> Result<Micros, sqlx::Error> {
    let bytes = row.try_get_raw(index)?.as_bytes().map_err(sqlx::Error::Decode)?;
    let number = <[u8; 8]>::try_from(bytes).map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    Ok(Micros(i64::from_be_bytes(number).saturating_add(EPOCH_MICROS)))
}
