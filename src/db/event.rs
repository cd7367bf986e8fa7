//! Row to [`Event`]: the same columns in the outbox and where events are parked, whichever way they come.

use crate::outbox::event::{Event, EventId, Micros, RowId};
use crate::outbox::stream::Sequence;
use sqlx::postgres::PgRow;
use sqlx::{Row, ValueRef};
use uuid::Uuid;

/// The columns of an event, in the order of [`Columns`].
pub const COLUMNS: &str = "id, created_at, sequence, event_id, previous_event_id, aggregate_type, aggregate_id, event_type, payload, payload_bytes, nullif(headers, '{}') as headers";

/// A row of events in binary format; `None` is a null.
pub type Columns<'r> = [Option<&'r [u8]>; 11];

/// The columns of a row whose first one of an event is `at`.
///
/// # Errors
/// A column is missing.
pub fn columns(row: &PgRow, at: usize) -> Result<Columns<'_>, sqlx::Error> {
    let mut columns = [None; 11];
    for (index, column) in (at..).zip(&mut columns) {
        let value = row.try_get_raw(index)?;
        *column = if value.is_null() { None } else { Some(value.as_bytes().map_err(sqlx::Error::Decode)?) };
    }
    Ok(columns)
}

/// Reads an event.
///
/// # Errors
/// A column is null that never is, or of another type.
pub fn event(columns: &Columns<'_>) -> Result<Event, sqlx::Error> {
    let [id, created_at, sequence, event_id, previous, aggregate_type, aggregate_id, event_type, json, bytes, headers] =
        *columns;
    let payload = match json {
        Some(json) => Some(jsonb(json)?.to_vec()),
        None => bytes.map(<[u8]>::to_vec),
    };
    Ok(Event {
        id: RowId::new(number(there(id)?)?),
        created_at: micros(there(created_at)?)?,
        sequence: sequence.map(number).transpose()?.and_then(Sequence::new),
        event_id: uuid(there(event_id)?)?,
        previous_event_id: previous.map(uuid).transpose()?,
        aggregate_type: text(there(aggregate_type)?)?,
        aggregate_id: text(there(aggregate_id)?)?,
        event_type: text(there(event_type)?)?,
        payload,
        headers: headers.map(|json| text(jsonb(json)?)).transpose()?,
    })
}

fn there(column: Option<&[u8]>) -> Result<&[u8], sqlx::Error> {
    column.ok_or_else(|| sqlx::Error::Decode("a column of an event is null that never is".into()))
}

/// A timestamptz: microseconds since 2000-01-01.
///
/// # Errors
/// It is none.
pub fn micros(bytes: &[u8]) -> Result<Micros, sqlx::Error> {
    Ok(Micros(number(bytes)?.saturating_add(EPOCH_MICROS)))
}

/// A bigint.
///
/// # Errors
/// It is none.
pub fn number(bytes: &[u8]) -> Result<i64, sqlx::Error> {
    <[u8; 8]>::try_from(bytes).map(i64::from_be_bytes).map_err(decode)
}

fn uuid(bytes: &[u8]) -> Result<EventId, sqlx::Error> {
    Uuid::from_slice(bytes).map(EventId::new).map_err(decode)
}

/// A text.
///
/// # Errors
/// It is not in UTF-8.
pub fn text(bytes: &[u8]) -> Result<String, sqlx::Error> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(decode)
}

/// The text of a jsonb: in binary format it is a version byte, always 1, and the text (`jsonb_send`).
///
/// # Errors
/// It is of another version, or none.
pub fn jsonb(bytes: &[u8]) -> Result<&[u8], sqlx::Error> {
    bytes.strip_prefix(&[1]).ok_or_else(|| sqlx::Error::Decode("expected jsonb in binary format, version 1".into()))
}

/// An error for what a column should not hold.
pub fn decode(error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::Decode(Box::new(error))
}

/// From 2000-01-01, where Postgres counts from, back to 1970-01-01.
const EPOCH_MICROS: i64 = 946_684_800_000_000;
