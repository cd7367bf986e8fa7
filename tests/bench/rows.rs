//! What `copy … to stdout (format binary)` sends: the columns that the relay reads, taken apart without a copy.

use anyhow::{Context as _, bail, ensure};
use outboxd::db::copy::Tuples;
use outboxd::db::event::{COLUMNS, Columns, jsonb, micros};
use uuid::Uuid;

/// The columns of an event as the relay reads them, in the order of the table: no sort, no index, nothing but reading.
pub(crate) fn copy() -> String {
    format!("copy (select {COLUMNS} from outbox.events) to stdout (format binary)")
}

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

/// Finds the rows in the pieces of an answer.
#[derive(Debug, Default)]
pub(crate) struct Rows(Tuples);

impl Rows {
    /// Gives each row that is complete with this piece to `each`.
    pub(crate) fn feed(
        &mut self,
        piece: &[u8],
        mut each: impl FnMut(Row<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.0.feed(piece, |columns: &Columns<'_>| each(row(columns)?))
    }

    /// Whether the answer came to its end.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        ensure!(self.0.is_whole(), "the answer to copy has no end");
        Ok(())
    }
}

fn row<'a>(columns: &Columns<'a>) -> anyhow::Result<Row<'a>> {
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
    Ok(Row {
        created_at_ms: micros(created_at)?.0.div_euclid(1_000),
        event_id: Uuid::from_slice(event_id).context("event_id is no uuid")?,
        aggregate_type,
        aggregate_id,
        event_type,
        payload: jsonb(payload)?,
    })
}
