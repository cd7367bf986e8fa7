//! The events of a drain: written into the table of a relay, and read from it again to know what was committed.

use anyhow::ensure;
use futures::TryStreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use sqlx::{AssertSqlSafe, Row as _};
use tokio::time::Instant;

use super::database::Database;
use super::readback::Expected;
use super::relay::{Target, Values};

/// Loaded between two steps of the progress bar.
const STEP_EVENTS: u32 = 20_000;

/// What a payload `{"nr": N, "fill": "…"}` holds beside the number and the filling.
const FRAME_BYTES: u32 = 20;

/// The filling comes in blocks of so many hexadecimal digits, none like another: nothing for a compression to find.
const BLOCK_BYTES: u32 = 128;

/// What a backlog looks like.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Shape {
    pub(crate) events: u32,
    /// Of a payload as Postgres prints it.
    pub(crate) payload_bytes: u32,
    pub(crate) rows_per_transaction: u32,
    /// The events belong to so many streams, in turn.
    pub(crate) streams: u32,
}

/// What was loaded.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Loaded {
    seconds: f64,
    table_bytes: i64,
    indexes_bytes: i64,
}

impl Shape {
    /// Writes the events into an empty table and brings it to rest: what the first reader would do for all later ones,
    /// vacuum does.
    pub(crate) async fn load(self, database: &mut Database, to: &Target, kind: &str) -> anyhow::Result<Loaded> {
        database.execute(&format!("truncate {}", to.table)).await?;
        self.add(database, to, kind, 1).await
    }

    /// Writes the events behind others, with numbers from `first` on.
    pub(crate) async fn add(
        self,
        database: &mut Database,
        to: &Target,
        kind: &str,
        first: u32,
    ) -> anyhow::Result<Loaded> {
        let (began, last) = (Instant::now(), first.saturating_add(self.events - 1));
        let bar = ProgressBar::new(self.events.into());
        bar.set_style(ProgressStyle::with_template(
            "bench: loading {bar:30} {human_pos} of {human_len} events, {eta} left",
        )?);
        let step = STEP_EVENTS.div_ceil(self.rows_per_transaction).saturating_mul(self.rows_per_transaction);
        let mut next = first;
        while next <= last {
            let end = next.saturating_add(step - 1).min(last);
            database.execute(&self.insert(to, kind, next, end)).await?;
            bar.set_position((end - first + 1).into());
            next = end.saturating_add(1);
        }
        bar.finish_and_clear();
        database.execute(&format!("vacuum (analyze) {}", to.table)).await?;
        self.weigh(database, to, last, began).await
    }

    async fn weigh(self, database: &mut Database, to: &Target, count: u32, began: Instant) -> anyhow::Result<Loaded> {
        let seconds = began.elapsed().as_secs_f64();
        let Target { table, payload, .. } = to;
        let weight = format!(
            "select count(*) as events, min(octet_length({payload}::text)) as least,
                    max(octet_length({payload}::text)) as most,
                    pg_table_size('{table}') as table_bytes, pg_indexes_size('{table}') as indexes_bytes
               from {table}"
        );
        let row = sqlx::query(AssertSqlSafe(weight)).fetch_one(&mut database.connection).await?;
        let (events, least, most): (i64, i32, i32) =
            (row.try_get("events")?, row.try_get("least")?, row.try_get("most")?);
        let (size, count) = (i32::try_from(self.payload_bytes)?, i64::from(count));
        ensure!(
            (events, least, most) == (count, size, size),
            "loaded {events} events of {least} to {most} bytes, not {count} of {size}"
        );
        Ok(Loaded { seconds, table_bytes: row.try_get("table_bytes")?, indexes_bytes: row.try_get("indexes_bytes")? })
    }

    /// What is committed from the event with this number on, in order. The number is the end of the event id.
    pub(crate) async fn expected(self, database: &mut Database, of: &Target, first: u32) -> anyhow::Result<Expected> {
        let mut expected = Expected::of(usize::try_from(self.payload_bytes)?);
        let Target { table, event_id, aggregate_id, .. } = of;
        let committed = format!(
            "select {event_id}, {aggregate_id} from {table}
              where right({event_id}::text, 12) >= '{first:012x}' order by right({event_id}::text, 12)"
        );
        let mut rows = sqlx::query(AssertSqlSafe(committed)).fetch(&mut database.connection);
        while let Some(row) = rows.try_next().await? {
            expected.push(row.try_get(0)?, row.try_get(1)?)?;
        }
        Ok(expected)
    }

    /// Events `first` to `last` in transactions of the size that was asked for; the server commits by itself.
    fn insert(self, to: &Target, kind: &str, first: u32, last: u32) -> String {
        let Self { payload_bytes, rows_per_transaction, streams, .. } = self;
        let (aggregate_type, aggregate_id) = (format!("'{kind}'"), format!("'order-' || n % {streams}"));
        let payload = format!(
            "('{{\"nr\": ' || n || ', \"fill\": \"' || left(fill, {payload_bytes} - {FRAME_BYTES} - length(n::text)) \
             || '\"}}')::jsonb"
        );
        let insert = to.insert(&Values {
            event_id: EVENT_ID,
            aggregate_type: &aggregate_type,
            aggregate_id: &aggregate_id,
            event_type: "'OrderPlaced'",
            payload: &payload,
        });
        let blocks = payload_bytes.div_ceil(BLOCK_BYTES);
        format!(
            "do $$ begin
  for i in {first}..{last} by {rows_per_transaction} loop
    {insert}
      from generate_series(i, least(i + {rows_per_transaction} - 1, {last})) n,
           lateral (select string_agg(encode(sha512(convert_to(n || ' ' || block, 'UTF8')), 'hex'), '') as fill
                      from generate_series(1, {blocks}) block) filled;
    commit;
  end loop;
end $$"
        )
    }
}

/// In random order, as ids are, with the number at the end.
const EVENT_ID: &str = "(left(md5(n::text), 20) || lpad(to_hex(n), 12, '0'))::uuid";
