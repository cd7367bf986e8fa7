//! What `copy … to stdout (format binary)` sends: the columns that the relay reads, taken apart without a copy.

use anyhow::{Context as _, bail, ensure};
use uuid::Uuid;

/// The columns of an event as the relay reads them, in the order of the table: no sort, no index, nothing but reading.
pub(crate) const COPY: &str =
    "copy (select id, created_at, sequence, event_id, previous_event_id, aggregate_type, aggregate_id, event_type,
         payload, payload_bytes, nullif(headers, '{}') as headers
    from outbox.events) to stdout (format binary)";

const COLUMNS: usize = 11;

/// `PGCOPY` and what follows, then 4 bytes of flags, then the length of an extension, which nobody uses.
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
const HEADER_BYTES: usize = SIGNATURE.len() + 8;

/// From 2000-01-01, where Postgres counts from, back to 1970-01-01.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// What a record is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a> {
    pub(crate) created_at_ms: i64,
    pub(crate) event_id: Uuid,
    pub(crate) aggregate_type: &'a [u8],
    pub(crate) aggregate_id: &'a [u8],
    pub(crate) event_type: &'a [u8],
    pub(crate) payload: &'a [u8],
}

/// Finds the rows in the pieces of an answer. Postgres sends a row in a piece, but does not promise to.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    begun: bool,
    ended: bool,
    rest: Vec<u8>,
}

impl Rows {
    /// Gives each row that is complete with this piece to `each`.
    pub(crate) fn feed(
        &mut self,
        piece: &[u8],
        mut each: impl FnMut(Row<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        if self.rest.is_empty() {
            let left = self.parse(piece, &mut each)?;
            self.rest.extend_from_slice(left);
            return Ok(());
        }
        let mut whole = std::mem::take(&mut self.rest);
        whole.extend_from_slice(piece);
        let left = self.parse(&whole, &mut each)?.len();
        whole.drain(..whole.len() - left);
        self.rest = whole;
        Ok(())
    }

    /// Whether the answer came to its end.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        ensure!(self.ended && self.rest.is_empty(), "the answer to copy has no end");
        Ok(())
    }

    fn parse<'a>(
        &mut self,
        mut bytes: &'a [u8],
        each: &mut impl FnMut(Row<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<&'a [u8]> {
        if !self.begun {
            let Some((header, rows)) = bytes.split_at_checked(HEADER_BYTES) else { return Ok(bytes) };
            ensure!(header.starts_with(SIGNATURE), "copy did not answer in binary format");
            (self.begun, bytes) = (true, rows);
        }
        loop {
            let mut ahead = bytes;
            match tuple(&mut ahead)? {
                Some(Tuple::Row(columns)) => each(row(&columns)?)?,
                Some(Tuple::End) => self.ended = true,
                None => return Ok(bytes),
            }
            bytes = ahead;
        }
    }
}

enum Tuple<'a> {
    Row([Option<&'a [u8]>; COLUMNS]),
    End,
}

/// The next row; `None` if not all of it is there.
fn tuple<'a>(bytes: &mut &'a [u8]) -> anyhow::Result<Option<Tuple<'a>>> {
    let Some(count) = take(bytes).map(i16::from_be_bytes) else { return Ok(None) };
    if count == -1 {
        return Ok(Some(Tuple::End));
    }
    ensure!(usize::try_from(count).is_ok_and(|count| count == COLUMNS), "a row of {count} columns, not {COLUMNS}");
    let mut columns = [None; COLUMNS];
    for column in &mut columns {
        let Some(length) = take(bytes).map(i32::from_be_bytes) else { return Ok(None) };
        let Ok(length) = usize::try_from(length) else { continue }; // -1 is null
        let Some((value, rest)) = bytes.split_at_checked(length) else { return Ok(None) };
        (*column, *bytes) = (Some(value), rest);
    }
    Ok(Some(Tuple::Row(columns)))
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

fn row<'a>(columns: &[Option<&'a [u8]>; COLUMNS]) -> anyhow::Result<Row<'a>> {
    let [
        _,
        Some(created_at),
        _,
        Some(event_id),
        _,
        Some(aggregate_type),
        Some(aggregate_id),
        Some(event_type),
        Some(payload),
        ..,
    ] = *columns
    else {
        bail!("a row without one of the columns that each row here has");
    };
    let micros = <[u8; 8]>::try_from(created_at).map(i64::from_be_bytes).context("created_at is no timestamptz")?;
    let payload = payload.strip_prefix(&[1]).context("expected jsonb in binary format, version 1")?;
    Ok(Row {
        created_at_ms: micros.saturating_add(EPOCH_MICROS).div_euclid(1_000),
        event_id: Uuid::from_slice(event_id).context("event_id is no uuid")?,
        aggregate_type,
        aggregate_id,
        event_type,
        payload,
    })
}
